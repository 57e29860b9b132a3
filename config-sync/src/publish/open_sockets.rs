//! Remembers which sockets the workers have open.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use crate::table::routing::SocketId;

/// The sockets that workers were given. A worker that closes its socket closes the descriptor, so
/// the publisher only remembers where the descriptor is.
#[derive(Debug, Default)]
pub(super) struct OpenSockets(BTreeMap<SocketId, Vec<(usize, Weak<OwnedFd>)>>);

impl OpenSockets {
    /// Notes the socket that a worker is about to be given.
    pub(super) fn add(&mut self, id: SocketId, worker: usize, socket: &Arc<OwnedFd>) {
        let of = self.0.entry(id).or_default();
        of.retain(|(_, socket)| socket.strong_count() > 0);
        of.push((worker, Arc::downgrade(socket)));
    }

    /// Forgets the sockets that workers have closed.
    pub(super) fn forget_closed(&mut self) {
        self.0.retain(|_, of| of.iter().any(|(_, socket)| socket.strong_count() > 0));
    }

    /// The socket of each worker. `None`: a worker has none, or has not closed its last one yet.
    pub(super) fn of(&self, id: SocketId, workers: usize) -> Option<Vec<Arc<OwnedFd>>> {
        let all = self.0.get(&id)?;
        let of_worker = |worker: usize| {
            let mut open = all.iter().filter(|of| of.0 == worker).filter_map(|of| of.1.upgrade());
            open.next().filter(|_| open.next().is_none())
        };
        (0..workers).map(of_worker).collect()
    }
}
