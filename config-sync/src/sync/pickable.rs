//! What is known of the endpoints becomes a table.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use crate::compile::whole::Whole;
use crate::health::Health;
use crate::health::ejection::Ejections;
use crate::health::warming::Warming;
use crate::sync::drained;
use crate::sync::overrides::Overrides;
use crate::table::routing::RoutingTable;

/// The table for workers, without endpoints that are down or ejected, and with what operators say.
/// Endpoints that could not be picked before begin to warm up.
pub(super) fn pickable(
    (whole, before): (&Whole, &RoutingTable),
    generation: u64,
    (health, ejections, overrides, warming): (&Health, &Ejections, &Overrides, &mut Warming),
    now: Instant,
) -> Arc<RoutingTable> {
    let overridden = overrides.over(whole);
    let others = |backend: &str, at| overridden.over(backend, at, health.standing(backend, at));
    let standing = |backend: &str, endpoint| ejections.standing(&others, backend, endpoint);
    warming.look(&standing, now);
    let standing = |backend: &str, endpoint| {
        warming.standing(backend, endpoint, standing(backend, endpoint), now)
    };
    let table = whole.pickable(generation, &standing, Some(before));
    let table = drained::without(Cow::Owned(table), &overrides.drained_listeners());
    Arc::new(table.into_owned())
}
