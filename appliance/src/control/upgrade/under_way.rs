//! The sessions and flows that are on their way from one process to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use config_sync::table::request::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::control::upgrade::voice::Voice;
use crate::wire::hand_over::{Figures, Flow, Session};

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
    /// Tells the old process which were adopted.
    pub voice: Arc<Voice>,
    /// Whether it was told.
    pub answer: Option<oneshot::Sender<bool>>,
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

/// What the new process is told of flows.
#[derive(Debug)]
pub enum Departure {
    /// They are announced.
    Flows(FlowBatch),
    /// They have settled.
    Figures(Vec<Figures>),
}

/// What is under way of flows.
#[derive(Default)]
pub struct FlowMoves {
    /// `None`: no flow is known to another process.
    pub leaving: Option<FlowsLeaving>,
    pub arriving: Option<FlowsArriving>,
    /// In the new process: the flows that were adopted, in their order, each with its worker, until
    /// it is clear whose they are.
    pub arrived: Vec<(usize, Handle)>,
}

/// In the old process.
pub struct FlowsLeaving {
    pub stage: Stage,
    /// Since when the datagrams of clients wait.
    pub deaf_since: Option<Instant>,
    /// Who waits for flows.
    pub answer: Option<Answer<Option<Departure>>>,
    /// The requests that workers have not answered, and when the last one was made.
    pub asked: BTreeMap<u64, usize>,
    pub asked_at: Instant,
    /// The slot from which each worker goes on. `None`: it has no more flows to announce.
    pub from: Vec<Option<u32>>,
    /// The passes over all workers that are over, and the flows of this one that were adopted.
    pub passes: u32,
    pub found: u32,
    /// The flows that the new process is being offered, and their worker.
    pub offered: Vec<Handle>,
    pub of: usize,
    /// The number of each flow that the new process has adopted, and of the next one.
    pub numbers: BTreeMap<(usize, Handle), u32>,
    pub count: u32,
    /// Workers with flows that have begun too late for the passes.
    pub late: BTreeSet<usize>,
    /// What flows that have settled have carried, and those flows by worker.
    pub figures: Vec<Figures>,
    pub settled: BTreeMap<usize, Vec<Handle>>,
}

/// How far the old process is with its flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One worker after the other announces flows, which go on.
    Announcing,
    /// All workers leave the datagrams of clients in the sockets, from now on.
    Deafening,
    /// All workers bring their announced flows to a halt.
    Settling,
    /// Some workers announce the flows that have begun since.
    Rest,
    /// They bring those to a halt.
    SettlingRest,
    Over,
}

/// In the new process: flows that workers are adopting.
pub struct FlowsArriving {
    pub answer: Option<oneshot::Sender<Vec<bool>>>,
    /// By request: the worker, and the positions of the flows in their batch.
    pub asked: BTreeMap<u64, (usize, Vec<usize>)>,
    /// By position: the flow that was adopted, and its worker.
    pub adopted: Vec<Option<(usize, Handle)>>,
}

impl FlowsLeaving {
    pub fn new(workers: usize) -> Self {
        Self {
            stage: Stage::Announcing,
            deaf_since: None,
            answer: None,
            asked: BTreeMap::new(),
            asked_at: Instant::now(),
            from: vec![Some(0); workers],
            passes: 0,
            found: 0,
            offered: Vec::new(),
            of: 0,
            numbers: BTreeMap::new(),
            count: 0,
            late: BTreeSet::new(),
            figures: Vec::new(),
            settled: BTreeMap::new(),
        }
    }

    /// Tells who waits. If nobody does any more, the conversation has ended, which is a step of its
    /// own.
    pub fn tell(&mut self, departure: Option<Departure>) {
        if let Some(answer) = self.answer.take() {
            _ = answer.send(Ok(departure));
        }
    }

    pub fn fail(&mut self, why: String) {
        if let Some(answer) = self.answer.take() {
            _ = answer.send(Err(why));
        }
    }

    /// A worker that has flows to announce, and the slot from which it goes on.
    pub fn next_worker(&self) -> Option<(usize, u32)> {
        self.from.iter().enumerate().find_map(|(worker, from)| Some((worker, (*from)?)))
    }

    pub fn has_no_more(&mut self, worker: usize) {
        self.from[worker] = None;
    }

    pub fn pass_again(&mut self) {
        self.found = 0;
        self.from.fill(Some(0));
    }
}

impl FlowMoves {
    /// Whether a worker will answer soon.
    pub fn is_waiting(&self) -> bool {
        let arrives = |arriving: &FlowsArriving| !arriving.asked.is_empty();
        let leaves = |of: &FlowsLeaving| !of.asked.is_empty();
        self.leaving.as_ref().is_some_and(leaves) || self.arriving.as_ref().is_some_and(arrives)
    }
}
