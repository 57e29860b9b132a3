//! Which of a backend's endpoints get sessions: those in front, or the backups.

use std::collections::BTreeSet;

use super::routing::{Endpoint, EndpointId};

/// The tier whose endpoints get sessions. `takers`: the endpoints that may be picked, with their
/// tiers. `had`: the endpoints of the table before, if their tier keeps what it got.
pub fn tier_in_use(
    takers: impl Iterator<Item = (EndpointId, u32)> + Clone,
    had: &[Endpoint],
) -> Option<u32> {
    let had: BTreeSet<_> = had.iter().filter(|of| of.weight > 0).map(|of| of.id).collect();
    let kept = takers.clone().filter(|(id, _)| had.contains(id)).map(|(_, tier)| tier).min();
    kept.or_else(|| takers.map(|(_, tier)| tier).min())
}
