//! Starts and ends the checks that are due.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use tokio::task::JoinSet;

use crate::backoff::Backoff;
use crate::health::ejection::Ejections;
use crate::health::warming::Warming;
use crate::health::{Finding, Health, Probe, places};
use crate::table::routing::EndpointId;

/// How long changes of endpoints are gathered into one table. A rack that fails then makes a few
/// tables, not hundreds.
const GATHER: Duration = Duration::from_millis(100);

/// How often the failures of sessions and flows are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Makes the checks that are due, and looks at the failures of sessions and flows.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) health: Health,
    pub(crate) ejections: Ejections,
    pub(crate) warming: Warming,
    /// When the failures of sessions and flows are looked at next.
    look: Option<Instant>,
    under_way: JoinSet<(Probe, Finding)>,
    /// When a table that could not be given out is tried again.
    again: Backoff,
}

impl Checks {
    #[expect(clippy::disallowed_methods, reason = "gateways must not make their checks together")]
    pub(crate) fn new() -> Self {
        let seed = ahash::RandomState::new().hash_one(0);
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(files, _)| files);
        Self { health: Health::new(places(files), seed), ..Self::default() }
    }

    /// Starts and ends checks. The caller calls this repeatedly, on a tokio runtime. True if a new
    /// table is to be made.
    pub(crate) fn tick(&mut self, failures: &dyn Fn(EndpointId) -> u64, now: Instant) -> bool {
        while let Some(ended) = self.under_way.try_join_next() {
            if let Ok((probe, finding)) = ended {
                self.health.found(&probe, &finding, now);
            }
        }
        while let Some(probe) = self.health.due(self.under_way.len(), now) {
            self.under_way.spawn(async move {
                let finding = probe.make().await;
                (probe, finding)
            });
        }
        let mut ejected = false;
        if self.look.is_none_or(|at| now >= at) {
            self.look = Some(now + LOOK);
            ejected = self.ejections.look(failures, now);
        }
        let changed = self.health.changed.take_if(|since| now >= *since + GATHER).is_some();
        changed || ejected || self.warming.is_due(now) || self.again.is_due(now)
    }

    /// Notes whether the table was published that was made after the latest [`Self::tick`].
    pub(crate) fn given_out(&mut self, is_published: bool, now: Instant) {
        if is_published {
            self.again = Backoff::default();
        } else {
            self.again.failed(now);
        }
    }
}
