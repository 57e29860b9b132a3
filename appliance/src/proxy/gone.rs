//! Endpoints that left the table, and that sessions and flows must leave too (`on_down`,
//! `on_removed`).

use config_sync::table::routing::{Absence, EndpointId, GoneEndpoint};

use crate::proxy::balance::Balancer;
use crate::stats::records::CloseReason;

/// The endpoints that sessions and flows must leave, in the order of their ids.
#[derive(Debug, Default)]
pub struct Gone(Vec<Left>);

#[derive(Clone, Copy, Debug)]
struct Left {
    id: EndpointId,
    reason: CloseReason,
    /// When sessions and flows end, in microseconds.
    due: u64,
}

impl Gone {
    /// Takes over the endpoints of a new table. An endpoint that was gone before keeps its time.
    pub fn table_applied(&mut self, gone: &[GoneEndpoint], now: u64) {
        let left = gone.iter().map(|endpoint| {
            let due = now + 1_000 * u64::from(endpoint.close_after);
            Left {
                id: endpoint.id,
                reason: match endpoint.absence {
                    Absence::Down => CloseReason::EndpointDown,
                    Absence::Removed => CloseReason::EndpointRemoved,
                },
                due: self.find(endpoint.id).map_or(due, |known| known.due.min(due)),
            }
        });
        let mut left: Vec<_> = left.collect();
        left.sort_unstable_by_key(|left| left.id);
        self.0 = left;
    }

    /// Why sessions and flows of this endpoint end now. `None`: they stay.
    pub fn reason(&self, endpoint: EndpointId, now: u64) -> Option<CloseReason> {
        self.find(endpoint).filter(|left| left.due <= now).map(|left| left.reason)
    }

    pub fn is_any_due(&self, now: u64) -> bool {
        self.first_due().is_some_and(|due| due <= now)
    }

    fn find(&self, endpoint: EndpointId) -> Option<&Left> {
        let at = self.0.binary_search_by_key(&endpoint, |left| left.id).ok()?;
        Some(&self.0[at])
    }

    /// When the first of the endpoints is due, in microseconds.
    pub fn first_due(&self) -> Option<u64> {
        self.0.iter().map(|left| left.due).min()
    }

    /// Whether this worker has a session or flow of an endpoint that is due.
    pub fn has_any(&self, balancer: &Balancer, now: u64) -> bool {
        self.0.iter().any(|left| left.due <= now && balancer.has_any(left.id))
    }
}
