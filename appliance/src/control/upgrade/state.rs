//! What the control thread knows of upgrades: as the old process, and as the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;

use config_sync::publish::socket_file::SocketFile;
use config_sync::table::routing::{SocketId, Transport};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::control::admin::calls::{Caller, Refusal, Upgraded};
use crate::control::admin::server::{Closing, Door};
use crate::control::spare_files::SpareFiles;
use crate::control::upgrade::door::Link;
use crate::control::upgrade::starter::Starter;
use crate::control::upgrade::under_way::{Answer, Batch, Departure, FlowBatch, FlowMoves, Moves};
use crate::control::upgrade::voice::Voice;
use crate::wire::hand_over::{Figures, Message, Name, Override, Tickets};

/// A step of an upgrade, for the control thread.
pub enum Step {
    // ---- in the old process ----
    /// The new process, with so many workers, asks for the sockets.
    Wanted { attempt: u64, workers: usize, answer: Answer<Offer> },
    /// The new process serves. It has taken the sockets of these numbers.
    Ready { attempt: u64, taken: BTreeSet<u32>, answer: Answer<()> },
    /// Flows are wanted for the new process. `None`: no more can go.
    PartFlows { attempt: u64, answer: Answer<Option<Departure>> },
    /// The flows of the last answer, in their order: whether the new process has adopted each.
    FlowsParted { attempt: u64, adopted: Vec<bool> },
    /// The new process knows that it may go on alone.
    Mine { attempt: u64, answer: Answer<()> },
    /// The conversation has ended early.
    Broken { attempt: u64, why: String },
    /// The process that this one has started has ended.
    Ended { attempt: u64, status: io::Result<ExitStatus> },
    /// Sessions are wanted for the new process. `None`: none can go at the moment.
    Part { answer: Answer<Option<Batch>> },
    /// The sessions of the last answer, in their order: whether the new process has adopted each.
    /// `unheard`: no answer came, and the new process is to be told that all go on here.
    Parted { adopted: Vec<bool>, unheard: Option<Voice> },
    // ---- in the new process ----
    /// Sessions of the old process have arrived. It must be told which are adopted. The answer is
    /// whether it was.
    Arrived { batch: Batch, voice: Arc<Voice>, answer: oneshot::Sender<bool> },
    /// Flows of the old process have arrived. The answer is whether each can be adopted.
    FlowsArrived { batch: FlowBatch, answer: oneshot::Sender<Vec<bool>> },
    /// The old process could not be told so. Whether the sessions are this process's all the same.
    NotTold { are_ours: bool },
    /// The old process is about to stop. These flows of it have settled. `opening` is dropped once
    /// the admin API is open.
    Yours { figures: Vec<Figures>, opening: oneshot::Sender<()> },
    /// The old process has died before it could say so. Nobody but this process has the sockets.
    /// These flows had settled.
    Orphaned { figures: Vec<Figures>, why: String },
    /// The old process goes on alone.
    NotOurs { why: String },
    /// What lives in earlier processes.
    Draining { processes: u64, sessions: u64, flows: u64 },
}

/// A listening address, and the number of its interface.
pub type ListeningAt = (Transport, String, u32);

/// The sockets for the new process.
#[derive(Debug)]
pub struct Offer {
    /// The message that comes first.
    pub message: Message,
    pub sockets: Vec<(Name, Arc<OwnedFd>)>,
    pub overrides: Vec<Override>,
    pub tickets: Vec<Tickets>,
}

pub struct Upgrade {
    /// The socket on which the next process comes. Its type is SOCK_SEQPACKET. `None`: nobody can
    /// come.
    pub door: Option<UnixListener>,
    /// Why there is no door.
    pub no_door: String,
    /// The file of `door`.
    pub door_file: Option<SocketFile>,
    /// The admin API's listening sockets, for the next process.
    pub admin: Vec<(String, Arc<OwnedFd>)>,
    pub admin_closing: Option<Closing>,
    /// Steers sources to workers.
    pub seed: u64,
    /// 1 for a process that has taken nothing over.
    pub generation: u64,
    pub starter: Starter,
    pub arguments: Vec<OsString>,
    pub sender: mpsc::Sender<Step>,
    pub steps: mpsc::Receiver<Step>,
    pub attempts: u64,
    pub giving: Option<Giving>,
    pub taking: Option<Taking>,
    pub moves: Moves,
    pub flows: FlowMoves,
    /// Since when the other process may not know yet which of the two a SIGTERM is for. In the old
    /// process, with the number of the new one.
    pub passed_on: Option<(Instant, Option<u32>)>,
    /// Why this process ends with an error although it drains.
    pub failure: Option<String>,
}

/// In the old process: an upgrade that is under way.
pub struct Giving {
    pub attempt: u64,
    pub began: Instant,
    /// The process that this one has started, until it has ended.
    pub child: Option<u32>,
    /// The new process.
    pub peer: Option<u32>,
    /// Tells the new process that nothing comes of it, whatever the conversation waits for.
    pub voice: Option<Voice>,
    /// Who asked for the upgrade.
    pub caller: Option<oneshot::Sender<Result<Upgraded, Refusal>>>,
    /// The new process's workers, and who waits for the sockets.
    pub wanted: Option<(usize, Answer<Offer>)>,
    pub workers: usize,
    /// By the number of an offered socket.
    pub ids: Vec<Option<SocketId>>,
    /// A socket of each SO_REUSEPORT group, and the group's address.
    pub groups: BTreeMap<SocketId, (Arc<OwnedFd>, SocketAddr, Transport)>,
    pub taken: BTreeSet<SocketId>,
    /// The new process has all that it has asked for, but for the last word.
    pub is_ready: bool,
    /// The groups steer to the workers of the new process.
    pub steered: bool,
    /// SIGTERM has come since `is_ready`.
    pub must_end: bool,
}

/// In the new process: the old one still serves.
pub struct Taking {
    /// `None`: the old process was told that this one serves.
    pub link: Option<Link>,
    /// The workers of the old process.
    pub workers: usize,
    pub taken: Vec<u32>,
    /// The listening addresses that only the old process has.
    pub closed: Vec<ListeningAt>,
    /// What becomes of the admin API and of the next upgrade when this process is alone.
    pub doors: Vec<Door>,
    pub caller: Caller,
    pub door: Option<OwnedFd>,
    /// Files that these need.
    pub spare: SpareFiles,
    /// SIGTERM has come.
    pub must_end: bool,
}

impl Upgrade {
    pub fn new(seed: u64, generation: u64, starter: Starter) -> Self {
        let (sender, steps) = mpsc::channel(8);
        Self {
            door: None,
            no_door: "this gateway is not ready yet".to_owned(),
            door_file: None,
            admin: Vec::new(),
            admin_closing: None,
            seed,
            generation,
            starter,
            arguments: std::env::args_os().skip(1).collect(),
            sender,
            steps,
            attempts: 0,
            giving: None,
            taking: None,
            moves: Moves::default(),
            flows: FlowMoves::default(),
            failure: None,
            passed_on: None,
        }
    }

    /// Whether two processes serve. The set of sockets must not change then.
    pub fn is_under_way(&self) -> bool {
        self.taking.is_some() || self.giving.as_ref().is_some_and(|giving| giving.workers > 0)
    }
}

/// Waits until a process comes to take over, and lets it in.
pub async fn knocked(door: &mut Option<UnixListener>) -> io::Result<OwnedFd> {
    match door {
        Some(door) => Ok(door.accept().await?.0.into_std()?.into()),
        None => std::future::pending().await,
    }
}
