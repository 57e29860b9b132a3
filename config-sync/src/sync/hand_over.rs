//! The end of a process with whose sockets another process goes on.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::ConfigSync;
use crate::compile;
use crate::health::checks::Checks;
use crate::publish::Command;
use crate::publish::hand_over::SharedSocket;
use crate::table::address::EndpointAddress;
use crate::table::moving::Moving;
use crate::table::routing::{BackendId, Bound, EndpointId, ListenerId, RouteId, SocketId};

/// Milliseconds that sessions have at the least to go to the other process.
const LEAST_DRAIN: u32 = 5_000;

/// Where a session belongs, by names that another process understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub bound: Bound,
    pub listener: String,
    pub route: Option<String>,
    pub backend: String,
    pub endpoint: EndpointAddress,
    /// Milliseconds until the session ends, from when the configuration no longer has the endpoint
    /// (`on_removed`). `None`: the session stays.
    pub close_after: Option<u32>,
}

/// The same by the ids of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceIds {
    pub socket: SocketId,
    pub listener: ListenerId,
    pub route: Option<RouteId>,
    pub backend: BackendId,
    pub endpoint: EndpointId,
}

impl ConfigSync {
    /// Another process serves on the sockets too, until [`Self::own_files`].
    pub fn share_files(&mut self) {
        self.publisher.share_files();
    }

    /// Another process that had the sockets too has gone.
    pub fn look(&mut self) {
        self.publisher.look();
    }

    /// From now on the sockets are this process's alone.
    pub fn own_files(&mut self) {
        self.publisher.own_files();
    }

    /// The listening sockets, for another process. `None`: a change of the configuration is under
    /// way.
    pub fn shared_sockets(&self) -> Option<Vec<SharedSocket>> {
        if self.is_reading || self.draining { None } else { self.publisher.shared() }
    }

    /// Publishes the last table. Another process of so many `workers` goes on with the sockets
    /// `taken`. Sessions and flows drain here.
    pub fn hand_over(&mut self, taken: &BTreeSet<SocketId>, workers: usize) {
        self.draining = true;
        self.checks = Checks::new();
        self.generation += 1;
        let mut table = compile::last_table(self.config(), self.generation);
        if let Some(drain) = &mut table.drain {
            drain.timeout = drain.timeout.max(LEAST_DRAIN);
        }
        self.publisher.hand_over(table, taken, workers);
    }

    /// The ids of a session's place. What the configuration does not have gets an id, and drains as
    /// if a reload had removed it. `None`: no id is left, or a reading is under way, which would
    /// not know a new id.
    pub fn ids(&mut self, place: &Place) -> Option<PlaceIds> {
        if self.is_reading && !self.knows(place) {
            return None;
        }
        let names = Arc::make_mut(&mut self.names);
        let backend = BackendId(names.backends.id(place.backend.clone())?);
        let route = match &place.route {
            Some(name) => Some(RouteId(names.routes.id(name.clone())?)),
            None => None,
        };
        let endpoint = EndpointId(names.endpoints.id((backend, place.endpoint))?);
        let ids = PlaceIds {
            socket: SocketId(names.sockets.id(place.bound.clone())?),
            listener: ListenerId(names.listeners.id(place.listener.clone())?),
            route,
            backend,
            endpoint,
        };
        if let (Some(close_after), Some(whole)) = (place.close_after, &mut self.whole)
            && !whole.knows_of(endpoint)
        {
            Arc::make_mut(whole).removed_before(endpoint, close_after);
            self.has_more_gone = true;
        }
        Some(ids)
    }

    /// Tells the workers of endpoints that only sessions of another process had. True if there were
    /// some.
    #[expect(clippy::disallowed_methods, reason = "each table says when it was made")]
    pub fn publish_more_gone(&mut self) -> bool {
        let may_publish = !self.is_reading && !self.draining;
        if !may_publish || !std::mem::take(&mut self.has_more_gone) {
            return false;
        }
        self.publish_pickable(Instant::now())
    }

    /// Whether every name of a place has an id.
    fn knows(&self, place: &Place) -> bool {
        let names = self.names();
        let Some(backend) = names.backends.known(&place.backend) else { return false };
        let route = place.route.as_ref();
        names.sockets.known(&place.bound).is_some()
            && names.listeners.known(&place.listener).is_some()
            && route.is_none_or(|route| names.routes.known(route).is_some())
            && names.endpoints.known(&(BackendId(backend), place.endpoint)).is_some()
    }

    /// The names of a session's place. `None`: one of the ids has no name.
    pub fn place(&self, session: &Moving) -> Option<Place> {
        let names = self.names();
        let (backend, endpoint) = names.endpoint(session.endpoint)?;
        Some(Place {
            bound: names.socket(session.socket)?.clone(),
            listener: names.listener(session.listener)?.to_owned(),
            close_after: self.whole.as_ref().and_then(|of| of.close_after(session.endpoint)),
            route: session.route.and_then(|id| names.route(id)).map(str::to_owned),
            backend: backend.to_owned(),
            endpoint,
        })
    }

    /// Gives a worker sessions of another process, and says in which request. False: the worker has
    /// ended.
    pub fn adopt(
        &mut self,
        worker: usize,
        number: u64,
        sessions: Vec<Moving>,
        sockets: Vec<[OwnedFd; 2]>,
    ) -> bool {
        self.publisher.tell(worker, Command::Adopt { number, sessions, sockets })
    }
}
