//! The simulated kernel: it eats Ops in order and makes Events, in virtual time, from one seed.
//!
//! It stands where the ring and Linux stand. Peers are driven from outside (`world`, `scenarios`)
//! through the `peer_*` functions of `tcp` and the datagram functions of `udp`. Whatever an op may
//! not do by the contract (`ringway::contract`), or Linux would not carry out, is a broken
//! invariant and panics with a message.
//!
//! Several processes may have sockets here: the one whose turn it is, and others. Each has a range
//! of slots, so that tokens tell them apart (`process`).
//!
//! What the kernel is stands here, and in `tcp::{conn, session}` and
//! `udp::{datagram, train, upstream}`. What the kernel does stands beside these: those files import
//! this one, and this one imports none of them.

mod checks;
pub mod faults;
mod listen;
mod ops;
pub(crate) mod process;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::{Limits, SocketId, Transport};
use ringway::contract::{Event, Kind, SHARED_SOCKETS, Side, Token, Why};

use crate::sim::coverage::{Coverage, Fault, State};
use crate::sim::kernel::faults::Faults;
use crate::sim::rng::Rng;
use crate::sim::tcp::conn::{Conn, ConnId, EndpointMode};
use crate::sim::tcp::session::Session;
use crate::sim::udp::datagram::{Datagram, Exchange, HeldBuffer, Pair, Path};
use crate::sim::udp::may_promote::MayPromote;
use crate::sim::udp::train::Train;
use crate::sim::udp::upstream::{Promoted, Upstream, Use};

/// The events of one turn of the worker's loop, and the bytes that `Peeked` refers to.
#[derive(Debug, Default)]
pub struct Turn {
    pub events: Vec<(Token, Event)>,
    pub bytes: Vec<u8>,
}

/// A listening socket, of all processes that have it.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) transport: Transport,
    pub(crate) address: SocketAddr,
    /// Handshakes that have begun: they end in the backlog even after `Unlisten`.
    pub(crate) handshakes: u32,
    pub(crate) backlog: VecDeque<ConnId>,
    pub(crate) received: VecDeque<(Datagram, Option<Pair>)>,
}

/// A process's descriptor of a listening socket.
#[derive(Debug, Default)]
pub(crate) struct Listening {
    pub(crate) armed: bool,
    /// It was last asked to accept one connection.
    pub(crate) one: bool,
    /// It accepts until further notice, and is to stop.
    pub(crate) stopping: bool,
    /// `Unlisten` was asked for.
    pub(crate) ending: bool,
    /// `Release` was asked for. UDP: the socket still sends.
    pub(crate) released: bool,
    /// UDP: `Halt` was asked for: it receives only after `Receive`.
    pub(crate) halted: bool,
    /// UDP: was handed over anew while it ends, and is followed by that.
    pub(crate) followed: bool,
    /// When it last stopped because the machine lacked something, microseconds.
    pub(crate) stopped: u64,
    /// When accepting or receiving may be asked for again after an error, microseconds.
    pub(crate) pause_until: u64,
}

/// A session's attempt to connect to an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Attempted {
    pub token: Token,
    pub address: SocketAddr,
    pub interface: u32,
    /// The port that the session's client came to.
    pub port: u16,
}

/// What will happen by itself.
#[derive(Debug)]
pub(crate) enum Pending {
    Handshake(SocketId, ConnId),
    Accept(SocketId),
    Unlisten(SocketId),
    /// The cancellation of what accepts or receives on a socket of another process too is through.
    Released(SocketId),
    Ready(ConnId),
    Space(ConnId),
    /// A stream's receive has something to take.
    Arrive(ConnId),
    /// The cancellation of a stream is through.
    StreamOver(Token, Side),
    Break(ConnId, Why),
    Establish(Token, u32),
    Connected(Token, u32),
    ConnectFailed(Token, u32, Why),
    Abandoned(Token),
    Close(Token, bool),
    Receive(Token),
    /// The cancellation of a receive is through.
    Halted(Token),
    SendFailed(Token, Why, u32),
    Closed(Token),
    Dead(Token),
}

pub struct Kernel {
    /// Microseconds.
    pub now: u64,
    pub faults: Faults,
    pub coverage: Coverage,
    pub trace: bool,
    /// Endpoint-side connections that were established since this was last drained.
    pub established: Vec<ConnId>,
    /// What the `Give`s that are to be carried out refer to.
    pub output: Vec<u8>,
    /// Attempts to connect since this was last drained.
    pub connects: Vec<Attempted>,
    /// Datagrams that endpoints were sent, and how.
    pub sent_up: Vec<(Path, Datagram)>,
    /// Datagrams that clients were sent.
    pub sent_down: Vec<Datagram>,
    /// Counts of what the kernel handed over.
    pub accepted: u64,
    pub events: u64,
    /// The process whose turn it is.
    pub(crate) process: u32,
    pub(crate) rings: Vec<Ring>,
    pub(crate) rng: Rng,
    pub(crate) limits: Limits,
    pub(crate) turn: u64,
    pub(crate) bound: BTreeMap<SocketId, Bound>,
    /// By process too.
    pub(crate) listening: BTreeMap<SocketId, Listening>,
    pub(crate) incoming: BTreeMap<u32, (SocketId, ConnId)>,
    /// Sessions that are offered to another process, or were adopted and are not its own yet.
    pub(crate) frozen: BTreeSet<Token>,
    /// The connections of sessions that are on their way to another process.
    pub(crate) arrivals: Vec<Option<Arrival>>,
    /// Upstream sockets that another process has got, by the number of that.
    pub(crate) lent: Vec<Token>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) sessions: BTreeMap<u32, Session>,
    /// The client of every session so far, by the session's slot and generation.
    pub adopted: BTreeMap<(u32, u32), ConnId>,
    /// The last generation that each slot had.
    pub(crate) generations: BTreeMap<(Kind, u32), u32>,
    pub(crate) endpoints: BTreeMap<SocketAddr, EndpointMode>,
    pub(crate) upstreams: BTreeMap<u32, Upstream>,
    /// Flows that the kernel forwards, by upstream slot.
    pub(crate) promoted: BTreeMap<u32, Promoted>,
    /// How often each exchange was demoted.
    pub(crate) demotions: BTreeMap<Exchange, u32>,
    /// Source ports that upstream sockets may have.
    pub ports: u32,
    /// The ports of processes that were killed. Nobody gets them again: there are few ports here,
    /// and late replies to such a port are nobody's fault.
    pub(crate) dead_ports: BTreeSet<u32>,
    /// How long each endpoint's sockets rest between two flows, microseconds.
    pub rests: BTreeMap<IpAddr, u64>,
    /// The client of the last datagram from each source port to each endpoint, of sockets that are
    /// not shared.
    pub(crate) used: BTreeMap<(u32, SocketAddr), Use>,
    /// The way that each client's datagrams went last, by process, as those below.
    pub(crate) ways: BTreeMap<(u32, Exchange), Path>,
    /// Sockets refused by ICMP since their last datagram, and in which turn.
    pub(crate) refused: BTreeMap<Token, u64>,
    /// Flows that the kernel forwarded until they settled, and has not begun to forward again.
    pub(crate) settled: BTreeSet<Exchange>,
    /// Endpoints that were sent more of a flow that they had refused.
    pub fed: Vec<(SocketAddr, Exchange)>,
    /// Endpoints of sockets that other flows were given since this was last drained, and the
    /// interfaces of these sockets.
    pub given: Vec<(SocketAddr, u32)>,
    /// Flows that went on from one endpoint to another since this was last drained.
    pub moves: Vec<(Exchange, SocketAddr, SocketAddr)>,
    /// The endpoints of flows that are not known to be over.
    pub(crate) homes: BTreeMap<(u32, Exchange), SocketAddr>,
    /// When these flows began, microseconds.
    pub(crate) begun: BTreeMap<(u32, Exchange), u64>,
    /// Upstream tokens with an `Open` that failed in this turn: ops pushed with it are void.
    pub(crate) open_failed: Vec<Token>,
    /// What proxies have sent.
    pub(crate) trains: Vec<Train>,
    /// Datagrams that a header has made too large for their path.
    pub(crate) fragmented: u64,
    pub(crate) attempts: u32,
    queue: BTreeMap<(u64, u64), Pending>,
    sequence: u64,
}

/// What a process alone has.
#[derive(Debug, Default)]
pub struct Ring {
    /// Connections that it was handed.
    pub accepted: u64,
    /// Datagrams that shared sockets had from where no flow had sent to.
    pub strangers: u64,
    pub(crate) pipes_used: u32,
    pub(crate) buffers: BTreeMap<u16, HeldBuffer>,
    /// Datagrams that the kernel has forwarded.
    pub carried: u64,
    pub(crate) may_promote: MayPromote,
    /// When a source port may be asked for again after none was free, microseconds, and in which
    /// turn that was.
    pub(crate) no_ports: (u64, u64),
    /// When each endpoint last refused something, as far as the process knows, microseconds.
    pub(crate) closed_ports: BTreeMap<SocketAddr, u64>,
}

/// The connections of a session between two processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) client: ConnId,
    pub(crate) endpoint: ConnId,
    pub(crate) shut: [bool; 2],
}

impl Kernel {
    pub fn new(seed: u64, limits: Limits, faults: Faults) -> Self {
        Self {
            now: 1_000_000,
            faults,
            coverage: Coverage::default(),
            trace: false,
            established: Vec::new(),
            output: Vec::new(),
            connects: Vec::new(),
            sent_up: Vec::new(),
            sent_down: Vec::new(),
            accepted: 0,
            events: 0,
            process: 0,
            rings: vec![Ring::default()],
            rng: Rng::new(seed),
            limits,
            turn: 0,
            bound: BTreeMap::new(),
            listening: BTreeMap::new(),
            incoming: BTreeMap::new(),
            frozen: BTreeSet::new(),
            arrivals: Vec::new(),
            lent: Vec::new(),
            conns: Vec::new(),
            sessions: BTreeMap::new(),
            adopted: BTreeMap::new(),
            generations: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            promoted: BTreeMap::new(),
            demotions: BTreeMap::new(),
            ports: limits.flows + SHARED_SOCKETS,
            dead_ports: BTreeSet::new(),
            rests: BTreeMap::new(),
            used: BTreeMap::new(),
            ways: BTreeMap::new(),
            refused: BTreeMap::new(),
            settled: BTreeSet::new(),
            fed: Vec::new(),
            given: Vec::new(),
            moves: Vec::new(),
            homes: BTreeMap::new(),
            begun: BTreeMap::new(),
            open_failed: Vec::new(),
            trains: Vec::new(),
            fragmented: 0,
            attempts: 0,
            queue: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// When something next happens by itself, microseconds.
    pub fn next_time(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn soon(&mut self, pending: Pending) {
        let mut delay = self.rng.below(50);
        if self.faults.lag > 0 && self.rng.per_mille(self.faults.late) {
            delay += self.rng.below(self.faults.lag);
            if let Pending::Ready(id) = &pending {
                self.hit_conn(*id, Fault::LateEvent);
            }
        }
        self.at(self.now + delay, pending);
    }

    /// When the last completion of something that is closed comes: mostly soon.
    pub(crate) fn closing_time(&mut self) -> u64 {
        let most = if self.rng.per_mille(200) { 5_000 } else { 50 };
        self.now + self.rng.between(1, most)
    }

    /// Takes out what is due by now and happens to the process whose turn it is, or to nobody.
    fn next_due(&mut self) -> Option<Pending> {
        let due = ..=(self.now, u64::MAX);
        let mut due = self.queue.range(due);
        let is_ours = |of: Option<u32>| of.is_none_or(|of| of == self.process);
        let (at, _) = due.find(|(_, pending)| is_ours(self.process_of(pending)))?;
        let at = *at;
        self.queue.remove(&at)
    }

    /// Whether something is due that happens to the process whose turn it is, or to nobody.
    pub fn is_due(&self) -> bool {
        let mut due = self.queue.range(..=(self.now, u64::MAX));
        due.any(|(_, pending)| self.process_of(pending).is_none_or(|of| of == self.process))
    }

    /// The sessions of the process that are being closed, and whether with a reset.
    pub(crate) fn closes(&self) -> Vec<(Token, bool)> {
        let closes = self.queue.values().filter_map(|pending| match pending {
            Pending::Close(token, reset) => Some((*token, *reset)),
            _ => None,
        });
        closes.filter(|(token, _)| process::parts(token.slot).0 == self.process).collect()
    }

    /// Nothing more happens to the process whose turn it is.
    pub(crate) fn forget_pending(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.retain(|_, pending| self.process_of(pending) != Some(self.process));
        self.queue = queue;
    }

    pub(crate) fn at(&mut self, time: u64, pending: Pending) {
        self.sequence += 1;
        self.queue.insert((time, self.sequence), pending);
    }

    pub(crate) fn event(&mut self, token: Token, event: Event, turn: &mut Turn) {
        if self.trace {
            eprintln!("{:>10} {} -> {event:?}", self.now, short(token));
        }
        self.events += 1;
        turn.events.push((self.as_own(token), event));
    }

    pub(crate) fn listening_socket(&mut self, token: Token, as_: Transport) -> &mut Listening {
        assert_eq!(token, Token::socket(SocketId(token.slot)), "not a listening socket's token");
        let transport = self.bound[&process::of_all(SocketId(token.slot))].transport;
        assert_eq!(transport, as_, "{token:?} is of the other transport");
        self.listening.get_mut(&SocketId(token.slot)).expect("no such socket")
    }

    /// Takes a slot into use: its generation must be a new one.
    pub(crate) fn use_slot(&mut self, token: Token) {
        assert!(token.generation <= Token::MAX_GENERATION, "generation beyond 24 bits");
        let last = self.generations.insert((token.kind, token.slot), token.generation);
        assert_ne!(last, Some(token.generation), "a slot is used again in the same generation");
    }

    /// After the last event of a token: perhaps one more, which must change nothing.
    pub(crate) fn haunt(&mut self, token: Token) {
        if self.rng.per_mille(self.faults.dead) {
            let at = self.now + self.rng.scale(1, 100_000);
            self.at(at, Pending::Dead(token));
        }
    }

    /// A fault that concerns every session there is.
    pub fn hit_sessions(&mut self, fault: Fault) {
        for session in self.sessions.values() {
            self.coverage.hit(session.state(), fault);
        }
    }

    /// A fault that concerns every session and upstream socket there is.
    pub fn hit_all(&mut self, fault: Fault) {
        self.hit_sessions(fault);
        for upstream in self.upstreams.values() {
            self.coverage.hit(upstream.state(), fault);
        }
    }

    pub(crate) fn hit_conn(&mut self, id: ConnId, fault: Fault) {
        let Some(owner) = self.conns[id.0].owner else { return };
        if let Some(state) = self.session_state(owner) {
            self.coverage.hit(state, fault);
        }
    }

    pub(crate) fn session_state(&self, token: Token) -> Option<State> {
        self.sessions.get(&token.slot).filter(|s| s.token == token).map(Session::state)
    }
}

/// A token as it stands in traces.
pub fn short(token: Token) -> String {
    let kind = match token.kind {
        Kind::Socket => "socket",
        Kind::Session => "session",
        Kind::Upstream => "upstream",
    };
    let (process, slot) = process::parts(token.slot);
    format!("{process}: {kind} {slot}.{}", token.generation)
}
