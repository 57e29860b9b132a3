//! A process of the gateway, with one worker. There is one, and more while an upgrade is under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::moving::{Moving, MovingFlow};
use config_sync::table::request::{Handle, Request, What};
use config_sync::table::routing::{Drain, EndpointId, RoutingTable, SocketId};
use ringway::contract::{Kind, Op, Token};
use ringway::proxy::Proxy;
use ringway::proxy::table_queue::TableQueue;
use ringway::stats::counters::Counters;
use ringway::stats::records::{Demotion, Reply};

use crate::sim::coverage::{Fault, State};
use crate::sim::kernel::{Kernel, Turn};
use crate::sim::model::Model;
use crate::sim::world::check::{Check, FIRST_NUMBER};
use crate::sim::world::clients::Clients;

pub struct Process {
    pub number: u32,
    pub proxy: Proxy,
    pub counters: Arc<Counters>,
    pub model: Model,
    pub check: Check,
    pub in_force: Vec<SocketId>,
    /// What was in force when the turn began.
    pub before: Vec<SocketId>,
    /// The table that was applied last; `None` in the turn in which it is.
    pub settled: Option<Arc<RoutingTable>>,
    pub latest: Option<Arc<RoutingTable>>,
    /// Sockets that the proxy was told to leave and has not closed yet.
    pub leaving: BTreeSet<SocketId>,
    pub next_table: Option<Next>,
    /// What the tables hand over and ask for.
    pub tables: TableQueue<SocketAddr>,
    /// When an endpoint was last in a table; `u64::MAX`: it is in the one in force.
    pub present: BTreeMap<EndpointId, u64>,
    pub turn: Turn,
    pub ops: Vec<(Token, Op)>,
    pub idle_resumes: u32,
    /// What the control thread asks of the worker, in order, and from when on the worker finds it.
    pub commands: VecDeque<(u64, Command)>,
    /// Requests about what moves so far.
    asked: u64,
    /// The answers to them.
    pub replies: Vec<Reply>,
    /// It was started to take over, and has the sockets of the one before.
    pub is_heir: bool,
    /// Until when sessions may pause that nobody offers.
    pub pausing: u64,
    /// It receives nothing of clients, because flows are on their way.
    pub is_deaf: bool,
    /// When all must have ended of a process that drains, microseconds.
    pub drain: Option<u64>,
    /// Sessions and flows that it has adopted.
    pub adopted: u32,
}

/// The table that the worker finds when it next looks.
#[derive(Debug)]
pub enum Next {
    Model,
    /// Another process goes on with some sockets.
    Drain(Drain, BTreeSet<SocketId>),
}

/// What a control thread asks of a worker.
#[derive(Debug)]
pub enum Command {
    Table(Next),
    Ask(Request),
    /// With the number under which the kernel has the connections of each.
    Adopt(u64, Vec<(Moving, u32)>),
    /// With the socket of each, as the kernel knows it. `None`: no file is left for it.
    AdoptFlows(u64, Vec<(MovingFlow, Option<Token>)>),
}

impl Process {
    /// A process that knows nothing yet. `seed`: what its choices depend on.
    pub fn new(number: u32, model: Model, seed: u64, most_new: u32) -> Self {
        let counters = Arc::new(Counters::new());
        let limits = model.limits;
        let mut proxy = Proxy::new(limits, seed, Arc::clone(&counters));
        proxy.bound_new_flows(most_new, limits.buffers);
        Self {
            number,
            proxy,
            counters,
            model,
            check: Check::new(limits),
            in_force: Vec::new(),
            before: Vec::new(),
            settled: None,
            latest: None,
            leaving: BTreeSet::new(),
            next_table: Some(Next::Model),
            tables: TableQueue::default(),
            present: BTreeMap::new(),
            turn: Turn::default(),
            ops: Vec::new(),
            idle_resumes: 0,
            commands: VecDeque::new(),
            asked: 0,
            replies: Vec::new(),
            is_heir: false,
            pausing: 0,
            is_deaf: false,
            drain: None,
            adopted: 0,
        }
    }

    /// Has the worker do something at this time, after all that it was asked before.
    pub fn command(&mut self, at: u64, command: Command) {
        let at = self.commands.back().map_or(at, |(before, _)| at.max(*before));
        self.commands.push_back((at, command));
    }

    pub fn next_command(&mut self, now: u64) -> Option<Command> {
        self.commands.pop_front_if(|(at, _)| *at <= now).map(|(_, command)| command)
    }

    pub fn has_commands(&self) -> bool {
        !self.commands.is_empty()
    }

    /// A number for a request.
    pub fn number_of_request(&mut self) -> u64 {
        self.asked += 1;
        FIRST_NUMBER + self.asked
    }

    pub fn ask(&mut self, at: u64, what: What) -> u64 {
        let number = self.number_of_request();
        self.command(at, Command::Ask(Request { number, what }));
        number
    }

    /// When it has something to do, microseconds.
    pub fn next(&self) -> Option<u64> {
        let command = self.commands.front().map(|(at, _)| *at);
        [self.proxy.next_deadline(), command].into_iter().flatten().min()
    }

    /// Whether there is something that it need not wait for.
    pub fn has_news(&self) -> bool {
        self.next_table.is_some() || !self.tables.is_empty() || !self.check.asked.next.is_empty()
    }

    /// Whether the latest table is in force, and all that it asks for is done.
    pub fn is_settled(&self) -> bool {
        let waits = self.next_table.is_some() || !self.tables.is_empty();
        self.latest.is_some() && !waits && self.commands.is_empty()
    }

    /// Whether it has drained, and ends.
    pub fn is_done(&self) -> bool {
        self.drain.is_some()
            && self.is_settled()
            && !self.check.asked.is_open()
            && self.replies.is_empty()
            && self.proxy.is_done()
    }

    /// It has ended by itself: nothing is left, and what it has counted is what it has logged.
    pub fn at_the_end(&self, kernel: &mut Kernel, clients: &mut Clients) {
        kernel.end_process();
        for why in Demotion::ALL {
            let times = self.counters.demotions[*why as usize].get();
            kernel.coverage.add(State::Live, Fault::Demoted(*why), times);
        }
        self.check.at_the_end(kernel, &self.counters, clients);
        for load in self.model.backends.iter().flat_map(|backend| &backend.loads) {
            assert_eq!(load.sessions.get(), 0, "sessions of an endpoint after the end");
            let held = load.limit.as_ref().map_or(0, |limit| limit.usage.sessions.get());
            assert_eq!(held, 0, "places within an endpoint's limit after the end");
        }
        assert_eq!(self.model.sources.sessions(), 0, "sessions of sources after the end");
        self.model.shared.check_empty();
        for queue in self.model.backends.iter().flat_map(|backend| &backend.queue) {
            assert_eq!(queue.line.waiting(), 0, "sessions that wait after the end");
        }
    }
}

/// The token of a session, as its process knows it.
pub fn token_of(handle: Handle) -> Token {
    Token { kind: Kind::Session, slot: handle.slot, generation: handle.generation }
}
