//! Holds what a worker knows of an endpoint from table to table.

use std::sync::Arc;

use config_sync::table::limit::{Limit, Load};

/// The facts about an endpoint that outlive a table.
#[derive(Clone, Debug, Default)]
pub struct OfEndpoint {
    /// This worker's sessions or flows.
    pub active: u32,
    /// The sessions and flows of all workers, if somebody has to know them, and the most of them.
    shared: Option<Load>,
    /// Until this time, in microseconds, sessions try this endpoint last. 0: the last session could
    /// be given to the endpoint, or the endpoint has returned to the table since.
    pub rest: u64,
    /// The milliseconds from a failure until then.
    rests_for: u32,
    /// The number of the latest table that has the endpoint.
    listed: u64,
}

impl OfEndpoint {
    /// The endpoint is in the table of this number. Numbers grow by one. An endpoint that was not
    /// in the table before has been found well since, by a health check or after an ejection, so
    /// the endpoint does not rest.
    pub fn listed(&mut self, number: u64, rests_for: u32) {
        if self.listed + 1 < number {
            self.rest = 0;
        }
        self.listed = number;
        self.rests_for = rests_for;
    }

    /// A session could not be given to the endpoint.
    pub fn failed(&mut self, now: u64) {
        self.rest = now + 1_000 * u64::from(self.rests_for);
    }

    /// Counts a session, unless the endpoint is full. `unix`: microseconds since 1970.
    pub fn opened(&mut self, unix: u64) -> bool {
        if self.shared.as_ref().is_some_and(|load| !load.enter(unix)) {
            return false;
        }
        self.active += 1;
        true
    }

    /// Counts a session that has its place already.
    pub fn arrived(&mut self) {
        self.active += 1;
        if let Some(load) = &self.shared {
            load.sessions.add(1);
        }
    }

    pub fn closed(&mut self) {
        self.active -= 1;
        if let Some(load) = &self.shared {
            load.sessions.sub(1);
        }
    }

    /// Takes a session back that the endpoint has not heard of.
    pub fn not_opened(&mut self) {
        self.active -= 1;
        if let Some(load) = &self.shared {
            load.leave_unheard();
        }
    }

    pub fn has_limit(&self) -> bool {
        self.shared.as_ref().is_some_and(Load::has_limit)
    }

    pub fn is_full(&self, unix: u64) -> bool {
        self.shared.as_ref().is_some_and(|load| load.is_full(unix))
    }

    /// What bounds the bytes of the endpoint.
    pub fn limit_of_bytes(&self) -> Option<&Limit> {
        let limit = self.shared.as_ref()?.limit.as_deref();
        limit.filter(|limit| limit.bytes.is_some())
    }

    pub fn sessions(&self) -> u32 {
        self.shared.as_ref().map_or(self.active, |load| load.sessions.get())
    }

    /// Counts this worker's sessions in this load from now on, and no longer in another one.
    pub fn count_in(&mut self, load: Option<&Load>) {
        let count = |load: Option<&Load>| load.map(|load| Arc::as_ptr(&load.sessions));
        if count(self.shared.as_ref()) != count(load) {
            if let Some(before) = &self.shared {
                before.sessions.sub(self.active);
            }
            if let Some(load) = load {
                load.sessions.add(self.active);
            }
        }
        self.shared = load.cloned();
    }
}
