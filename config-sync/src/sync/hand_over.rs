//! The end of a process with whose sockets another process goes on.

use std::collections::BTreeSet;

use super::ConfigSync;
use crate::compile;
use crate::health::checks::Checks;
use crate::publish::hand_over::SharedSocket;
use crate::table::routing::SocketId;

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
        let table = compile::drained(self.config(), self.generation);
        self.publisher.hand_over(table, taken, workers);
    }
}
