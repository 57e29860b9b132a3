//! Gives the listening sockets to another process, which goes on with them.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::publish::Publisher;
use crate::publish::socket_file::SocketFile;
use crate::table::routing::{Bound, RoutingTable, SocketId};

/// A listening address, and the socket of each worker, in the workers' order.
#[derive(Debug)]
pub struct SharedSocket {
    pub id: SocketId,
    pub bound: Bound,
    pub sockets: Vec<Arc<OwnedFd>>,
}

impl Publisher {
    /// Another process serves on the sockets too, until [`Self::own_files`]. The end of this
    /// process leaves the files of Unix sockets there.
    pub fn share_files(&mut self) {
        self.shares_files = true;
    }

    /// Tells every worker to accept what waits, because another process that had the sockets too
    /// has gone.
    pub fn look(&mut self) {
        for worker in &mut self.workers {
            worker.look = true;
        }
        self.deliver();
    }

    /// From now on the Unix sockets are this process's alone.
    pub fn own_files(&mut self) {
        self.shares_files = false;
        let files = self
            .listening
            .iter()
            .filter_map(|(id, bound)| Some((*id, SocketFile::of(&bound.address)?)));
        self.socket_files.extend(files);
    }

    /// The sockets of the latest table, for another process. `None`: a table is still on its way to
    /// the workers, or a worker has ended.
    pub fn shared(&self) -> Option<Vec<SharedSocket>> {
        if self.pending.is_some() {
            return None;
        }
        let shared = self.listening.iter().map(|(id, bound)| {
            let sockets = self.open_sockets.of(*id, self.workers.len())?;
            Some(SharedSocket { id: *id, bound: bound.clone(), sockets })
        });
        shared.collect()
    }

    /// Publishes `table`, the last one, which has no sockets. Another process of so many `workers`
    /// goes on with the sockets `taken`. It has the first sockets of each group, as many as it has
    /// workers. Of the rest, the connections that wait are served here.
    pub fn hand_over(&mut self, table: RoutingTable, taken: &BTreeSet<SocketId>, workers: usize) {
        // All workers share a Unix socket, so the other process has each worker's.
        let whole = |id: &&SocketId| {
            self.listening.get(id).is_some_and(|bound| bound.address.unix().is_some())
        };
        let of_rest = taken.iter().filter(whole).copied().collect();
        for (_, file) in self.socket_files.extract_if(.., |id, _| taken.contains(id)) {
            file.leave();
        }
        self.pending = None;
        self.prepared.clear();
        let rest = Arc::new(RoutingTable { handed_over: Arc::new(of_rest), ..table.clone() });
        let first = RoutingTable { handed_over: Arc::new(taken.clone()), ..table };
        let given = self.give_out(Arc::new(first));
        debug_assert!(given.is_ok(), "a table without sockets opens none");
        for worker in self.workers.iter_mut().skip(workers) {
            worker.table = Some(Arc::clone(&rest));
        }
        self.deliver();
    }
}
