//! The sessions and flows that are on their way from one process to the next.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use config_sync::table::request::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::wire::hand_over::{Flow, Session};

pub type Answer<T> = oneshot::Sender<Result<T, String>>;

/// Sessions, and the connections of each with the client and with the endpoint.
#[derive(Debug)]
pub struct Batch {
    pub sessions: Vec<Session>,
    pub sockets: Vec<[OwnedFd; 2]>,
}

/// Requests about sessions that go from process to process have numbers from here on. The admin
/// API's have lower ones.
pub const FIRST_NUMBER: u64 = 1 << 63;

/// What is under way.
#[derive(Default)]
pub struct Moves {
    /// Requests that were made so far.
    count: u64,
    pub leaving: Leaving,
    pub arriving: Option<Arriving>,
}

/// In the old process: a pass over all workers, in their order.
#[derive(Default)]
pub struct Leaving {
    pub worker: usize,
    /// The slot from which the worker goes on.
    pub from: u32,
    /// The request that the worker has not answered, and who waits for sessions.
    pub asked: Option<(u64, Answer<Option<Batch>>)>,
    /// The sessions that the new process is being offered, and their worker.
    pub offered: Vec<Handle>,
    pub of: usize,
    /// Sessions that have gone since this was last logged.
    pub gone: usize,
}

/// In the new process: sessions that workers are adopting.
pub struct Arriving {
    pub answer: Option<oneshot::Sender<Vec<bool>>>,
    /// By request: the worker, and the positions of the sessions in their batch.
    pub asked: BTreeMap<u64, (usize, Vec<usize>)>,
    pub adopted: Vec<bool>,
    pub handles: BTreeMap<usize, Vec<Handle>>,
}

impl Moves {
    /// Whether a worker will answer soon.
    pub fn is_waiting(&self) -> bool {
        let arrives = |arriving: &Arriving| !arriving.asked.is_empty();
        self.leaving.asked.is_some() || self.arriving.as_ref().is_some_and(arrives)
    }

    pub fn number(&mut self) -> u64 {
        self.count += 1;
        FIRST_NUMBER + self.count
    }
}

impl Leaving {
    pub fn next_worker(&mut self) {
        (self.worker, self.from) = (self.worker + 1, 0);
    }
}

// ---- flows ----

/// Flows, and the socket of each towards its endpoint.
#[derive(Debug, Default)]
pub struct FlowBatch {
    pub flows: Vec<Flow>,
    pub sockets: Vec<OwnedFd>,
}

/// What is under way of flows.
#[derive(Default)]
pub struct FlowMoves {
    /// `None`: no datagram of a client waits for the sake of an upgrade.
    pub leaving: Option<FlowsLeaving>,
    pub arriving: Option<FlowsArriving>,
    /// In the new process: the flows of each worker that were adopted, until it is clear whose they
    /// are.
    pub arrived: BTreeMap<usize, Vec<Handle>>,
}

/// In the old process: one pass over all workers, in their order.
pub struct FlowsLeaving {
    pub began: Instant,
    /// Workers whose sockets are not deaf yet, by request.
    pub deafening: BTreeMap<u64, usize>,
    /// Who waits for flows.
    pub answer: Option<Answer<Option<FlowBatch>>>,
    /// The request that the worker has not answered.
    pub asked: Option<u64>,
    pub worker: usize,
    /// The slot from which the worker goes on.
    pub from: u32,
    /// The flows that the new process is being offered, and their worker.
    pub offered: Vec<Handle>,
    pub of: usize,
    /// The flows of each worker that the new process has adopted.
    pub adopted: BTreeMap<usize, Vec<Handle>>,
}

/// In the new process: flows that workers are adopting.
pub struct FlowsArriving {
    pub answer: Option<oneshot::Sender<Vec<bool>>>,
    /// By request: the worker, and the positions of the flows in their batch.
    pub asked: BTreeMap<u64, (usize, Vec<usize>)>,
    pub adopted: Vec<bool>,
}

impl FlowMoves {
    /// Whether a worker will answer soon.
    pub fn is_waiting(&self) -> bool {
        let arrives = |arriving: &FlowsArriving| !arriving.asked.is_empty();
        let leaves = |of: &FlowsLeaving| of.asked.is_some() || !of.deafening.is_empty();
        self.leaving.as_ref().is_some_and(leaves) || self.arriving.as_ref().is_some_and(arrives)
    }
}
