//! Which check begins next. Every backend has its fair share of the checks that may be under way.
//!
//! An endpoint that does not answer holds a place until the timeout, so thousands of such endpoints
//! could hold every place. Two rules keep places free for the others:
//!
//! - A backend may begin a check only if it has fewer checks under way than there are free places.
//!   One backend alone takes half of all places, two take a third each, and so on: as much as one
//!   of them has stays free. (Switches share the memory of their ports by this rule.)
//! - Endpoints that were slow to answer the latest check stand in a queue of their own, which has
//!   at most half of all places.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::table::address::EndpointAddress;

/// A check that takes this long makes its endpoint a slow one, until a check takes less.
const SLOW: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Quick,
    Slow,
}

impl Pace {
    pub(super) const ALL: [Self; 2] = [Self::Quick, Self::Slow];

    pub(super) fn of(took: Duration) -> Self {
        if took < SLOW { Self::Quick } else { Self::Slow }
    }
}

/// One backend's endpoints of one pace.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// Endpoints with no check under way, and when each has its next check.
    pub(super) due: BTreeSet<(Instant, EndpointAddress)>,
    pub(super) under_way: usize,
}

/// The lines of all backends of one pace.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    /// Lines by their first check. It is not known yet whether that check is due.
    waiting: BTreeSet<(Instant, Arc<str>, usize)>,
    /// Lines with a check that is due. The backend with the fewest checks under way comes first.
    ready: BTreeSet<(usize, Instant, Arc<str>)>,
    pub(super) under_way: usize,
}

impl Queue {
    /// The backend that may begin a check while `free` places are free.
    pub(super) fn next(&mut self, free: usize, now: Instant) -> Option<Arc<str>> {
        while self.waiting.first().is_some_and(|(due, ..)| *due <= now) {
            let (due, backend, under_way) = self.waiting.pop_first()?;
            self.ready.insert((under_way, due, backend));
        }
        let (under_way, _, backend) = self.ready.first()?;
        (*under_way < free).then(|| Arc::clone(backend))
    }

    /// Adds a backend's line. The line stays as it is until [`Self::remove`].
    pub(super) fn add(&mut self, backend: &Arc<str>, line: &Line) {
        if let Some((due, _)) = line.due.first() {
            self.waiting.insert((*due, Arc::clone(backend), line.under_way));
        }
    }

    pub(super) fn remove(&mut self, backend: &Arc<str>, line: &Line) {
        if let Some((due, _)) = line.due.first() {
            let backend = Arc::clone(backend);
            if !self.ready.remove(&(line.under_way, *due, Arc::clone(&backend))) {
                self.waiting.remove(&(*due, backend, line.under_way));
            }
        }
    }
}
