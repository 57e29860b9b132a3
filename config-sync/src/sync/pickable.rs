//! What is known of the endpoints becomes a table.

use std::sync::Arc;
use std::time::Instant;

use crate::compile::whole::Whole;
use crate::health::Health;
use crate::health::ejection::Ejections;
use crate::health::warming::Warming;
use crate::table::routing::RoutingTable;

/// The table for workers, without endpoints that are known to be down or are ejected. Endpoints
/// that could not be picked before begin to warm up.
pub(super) fn pickable(
    (whole, before): (&Whole, &RoutingTable),
    generation: u64,
    (health, ejections, warming): (&Health, &Ejections, &mut Warming),
    now: Instant,
) -> Arc<RoutingTable> {
    let standing = |backend: &str, endpoint| ejections.standing(health, backend, endpoint);
    warming.look(&standing, now);
    let standing = |backend: &str, endpoint| {
        warming.standing(backend, endpoint, standing(backend, endpoint), now)
    };
    Arc::new(whole.pickable(generation, &standing, Some(before)))
}
