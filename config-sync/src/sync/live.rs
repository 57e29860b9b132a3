//! What an operator asks of what runs.

use std::sync::Arc;

use crate::compile::names::Names;
use crate::publish::request::Request;
use crate::sync::ConfigSync;

impl ConfigSync {
    /// Passes a request about sessions and flows on to a worker. False: the worker has ended, or
    /// there is no such worker.
    pub fn ask(&mut self, worker: usize, request: Request) -> bool {
        self.publisher.ask(worker, request)
    }

    /// The names of ids, for another thread. The thread keeps them for a moment only, because the
    /// next change copies all names that somebody keeps.
    pub fn shared_names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }
}
