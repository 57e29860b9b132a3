//! What is under way of sessions and flows that go from one process to another.

use std::collections::BTreeMap;

use config_sync::table::moving::{FlowFigures, Moving, MovingFlow};
use config_sync::table::request::Handle;
use ringway::contract::Token;
use ringway::stats::records::Reply;

/// Requests about sessions that move have numbers from here on.
pub const FIRST_NUMBER: u64 = 1 << 63;

#[derive(Debug, Default)]
pub struct Moves {
    number: u64,
    /// The request for sessions that has no answer yet.
    pub asked: Option<u64>,
    /// Sessions that wait for the answer to their adoption.
    pub adopting: BTreeMap<u64, Handle>,
    /// What happens when, microseconds.
    pub due: Vec<(u64, Task)>,
    /// Until when sessions may pause that nobody offers.
    pub pausing: u64,
    pub replies: Vec<Reply>,
    /// Sessions and flows that were adopted.
    pub adopted: u64,
    /// Flows that were adopted.
    pub flows: u64,
    pub hearing: Hearing,
    /// The sockets of flows that were announced.
    pub upstreams: BTreeMap<Handle, Token>,
    /// Flows that were adopted, each with the one that was announced.
    pub announced: BTreeMap<Handle, Handle>,
    /// The request that brings them to a halt.
    pub settling: Option<u64>,
}

/// Whether the proxy receives the datagrams of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hearing {
    #[default]
    Hears,
    /// The request to leave them has no answer yet.
    Stops(u64),
    Deaf,
}

#[derive(Debug)]
pub enum Task {
    /// The other process takes the session, or does not.
    Offered(Handle, Box<Moving>),
    AnnouncedFlow(Handle, Box<MovingFlow>),
    /// Flows go on although the other process knows them.
    Wait,
    /// The flow stands still in both processes.
    Settled {
        old: Handle,
        new: Handle,
        figures: FlowFigures,
    },
    /// The flow is this process's, and has carried so much.
    Own(Handle, FlowFigures),
    /// It has the session, and says so, or nobody hears it.
    Adopted {
        old: Handle,
        new: Handle,
    },
    GoOn(Handle),
    Forget(Handle),
}

impl Moves {
    pub fn next(&self) -> Option<u64> {
        self.due.iter().map(|(at, _)| *at).min()
    }

    pub fn is_open(&self) -> bool {
        self.is_moving() || self.hearing != Hearing::Hears || !self.announced.is_empty()
    }

    pub fn is_moving(&self) -> bool {
        let asks = self.asked.is_some() || self.settling.is_some();
        asks || !self.adopting.is_empty() || !self.due.is_empty()
    }

    /// Whether sessions may stand still for the sake of a move.
    pub fn may_pause(&self, now: u64) -> bool {
        self.is_open() || now <= self.pausing
    }

    pub fn number(&mut self) -> u64 {
        self.number += 1;
        FIRST_NUMBER + self.number
    }
}
