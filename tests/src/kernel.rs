//! The simulated kernel: it eats Ops in order and makes Events, in virtual time, from one seed.
//!
//! It stands where the ring and Linux stand. Peers are driven from outside (`world`, `scenario`)
//! through the `peer_*` functions of `tcp` and the datagram functions of `udp`. Whatever an op may
//! not do by the contract (`ringway::contract`), or Linux would not carry out, is a broken
//! invariant and panics with a message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use config_sync::table::routing::{Limits, SocketId, Transport};
use ringway::contract::{Event, Kind, Op, SHARED_SOCKETS, Side, Token, Why};

use crate::coverage::{Coverage, Fault, State};
use crate::proxied::Train;
use crate::rng::Rng;
use crate::tcp::{Conn, ConnId, EndpointMode, Session};
use crate::udp::{Datagram, Exchange, HeldBuffer, Pair, Path, Upstream, Use};

/// The events of one turn of the worker's loop, and the bytes that `Peeked` refers to.
#[derive(Debug, Default)]
pub struct Turn {
    pub events: Vec<(Token, Event)>,
    pub bytes: Vec<u8>,
}

/// How often each fault strikes, in 1000.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub short_read: u32,
    pub short_write: u32,
    pub would_block: u32,
    /// A `Ready` without news.
    pub spurious: u32,
    /// An event that comes up to `lag` microseconds late, so that others overtake it.
    pub late: u32,
    pub lag: u64,
    /// A multishot that ends without a reason.
    pub stop: u32,
    /// Files or memory that run out at accept.
    pub exhausted: u32,
    /// A stream that does not begin, and one that no buffer is free for.
    pub no_stream: u32,
    pub no_buffer: u32,
    /// Ports, files or memory that run out at connect.
    pub no_local: u32,
    pub truncate: u32,
    pub send_fails: u32,
    pub open_fails: u32,
    /// Events of a slot's earlier generation.
    pub dead: u32,
}

impl Faults {
    /// Each fault is off in half of the seeds: what is always on hides what needs its absence.
    pub fn random(rng: &mut Rng) -> Self {
        let mut some = |max: u64| if rng.per_mille(500) { 0 } else { rng.scale(1, max) as u32 };
        Self {
            short_read: some(200),
            short_write: some(200),
            would_block: some(100),
            spurious: some(50),
            late: some(400),
            lag: u64::from(some(20_000)),
            stop: some(50),
            exhausted: some(50),
            no_stream: some(500),
            no_buffer: some(50),
            no_local: some(50),
            truncate: some(20),
            send_fails: some(50),
            open_fails: some(50),
            dead: some(300),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) transport: Transport,
    pub(crate) address: SocketAddr,
    pub(crate) armed: bool,
    /// `Unlisten` was asked for.
    pub(crate) ending: bool,
    /// UDP: was handed over anew while it ends, and is followed by that.
    pub(crate) followed: bool,
    /// Handshakes that have begun: they end in the backlog even after `Unlisten`.
    pub(crate) handshakes: u32,
    pub(crate) backlog: VecDeque<ConnId>,
    /// When it last stopped because the machine lacked something, microseconds.
    pub(crate) stopped: u64,
    /// When accepting or receiving may be asked for again after an error, microseconds.
    pub(crate) pause_until: u64,
    pub(crate) received: VecDeque<(Datagram, Option<Pair>)>,
}

/// What will happen by itself.
#[derive(Debug)]
pub(crate) enum Pending {
    Handshake(SocketId, ConnId),
    Accept(SocketId),
    Unlisten(SocketId),
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
    /// Where connections were attempted to since this was last drained.
    pub connects: Vec<SocketAddr>,
    /// Datagrams that endpoints were sent, and how.
    pub sent_up: Vec<(Path, Datagram)>,
    /// Datagrams that clients were sent.
    pub sent_down: Vec<Datagram>,
    /// Counts of what the kernel handed over.
    pub accepted: u64,
    pub events: u64,
    /// Datagrams that shared sockets had from where no flow had sent to.
    pub strangers: u64,
    pub(crate) rng: Rng,
    pub(crate) limits: Limits,
    pub(crate) turn: u64,
    pub(crate) listening: BTreeMap<SocketId, Listening>,
    pub(crate) incoming: BTreeMap<u32, (SocketId, ConnId)>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) sessions: BTreeMap<u32, Session>,
    /// The last generation that each slot had.
    pub(crate) generations: BTreeMap<(Kind, u32), u32>,
    pub(crate) endpoints: BTreeMap<SocketAddr, EndpointMode>,
    pub(crate) pipes_used: u32,
    pub(crate) upstreams: BTreeMap<u32, Upstream>,
    /// Source ports that upstream sockets may have.
    pub ports: u32,
    /// When a source port may be asked for again after none was free, microseconds, and in which
    /// turn that was.
    pub(crate) no_ports: (u64, u64),
    /// How long each endpoint's sockets rest between two flows, microseconds.
    pub rests: BTreeMap<SocketAddr, u64>,
    /// Whose datagrams went last from each source port to each endpoint, of sockets that are not
    /// shared.
    pub(crate) used: BTreeMap<(u32, SocketAddr), Use>,
    /// The way that each client's datagrams went last.
    pub(crate) ways: BTreeMap<Exchange, Path>,
    /// Whose socket was refused by ICMP since the last datagram from there, and in which turn.
    pub(crate) refused: BTreeMap<Token, u64>,
    /// When each endpoint last refused something, microseconds.
    pub closed_ports: BTreeMap<SocketAddr, u64>,
    /// Endpoints that were sent more of a flow that they had refused.
    pub fed: Vec<SocketAddr>,
    /// Upstream tokens whose `Open` failed in this turn: ops that were pushed with it are void.
    pub(crate) open_failed: Vec<Token>,
    pub(crate) buffers: BTreeMap<u16, HeldBuffer>,
    /// What proxies have sent.
    pub(crate) trains: Vec<Train>,
    /// Datagrams that a header has made too large for their path.
    pub(crate) fragmented: u64,
    pub(crate) attempts: u32,
    queue: BTreeMap<(u64, u64), Pending>,
    sequence: u64,
}

/// A listening socket that the machine lacked something for is tried again within this.
const LONGEST_PAUSE: u64 = 150_000;

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
            strangers: 0,
            rng: Rng::new(seed),
            limits,
            turn: 0,
            listening: BTreeMap::new(),
            incoming: BTreeMap::new(),
            conns: Vec::new(),
            sessions: BTreeMap::new(),
            generations: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            pipes_used: 0,
            upstreams: BTreeMap::new(),
            ports: limits.flows + SHARED_SOCKETS,
            no_ports: (0, 0),
            rests: BTreeMap::new(),
            used: BTreeMap::new(),
            ways: BTreeMap::new(),
            refused: BTreeMap::new(),
            closed_ports: BTreeMap::new(),
            fed: Vec::new(),
            open_failed: Vec::new(),
            buffers: BTreeMap::new(),
            trains: Vec::new(),
            fragmented: 0,
            attempts: 0,
            queue: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Takes over a socket that is bound and listens, as the ring does: a UDP socket that is open
    /// is kept instead, and one that is being closed is followed by the new one.
    pub fn listen(&mut self, id: SocketId, transport: Transport, address: SocketAddr) {
        if let Some(socket) = self.listening.get_mut(&id) {
            assert_eq!(transport, Transport::Udp, "{id:?} is bound twice");
            socket.followed = socket.ending;
            return;
        }
        let socket = Listening {
            transport,
            address,
            armed: false,
            ending: false,
            followed: false,
            handshakes: 0,
            backlog: VecDeque::new(),
            stopped: 0,
            pause_until: 0,
            received: VecDeque::new(),
        };
        self.listening.insert(id, socket);
    }

    pub fn is_listening(&self, id: SocketId) -> bool {
        self.listening.contains_key(&id)
    }

    /// What listens is what tables want: those in force, and nothing else for longer than it takes
    /// to end. Once their steps have been carried out.
    pub fn check_listening(&self, in_force: &[SocketId], leaving: &BTreeSet<SocketId>) {
        for id in in_force {
            let socket = self.listening.get(id);
            let there = socket.is_some_and(|socket| !socket.ending || socket.followed);
            assert!(there, "{id:?} is in the table in force and has no socket: {socket:?}");
        }
        for (id, socket) in &self.listening {
            let known = in_force.contains(id) || leaving.contains(id);
            assert!(known, "{id:?} is in no table and has a socket: {socket:?}");
        }
    }

    /// When something next happens by itself, microseconds.
    pub fn next_time(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Gives out what has completed by now, at most `max` events.
    pub fn reap(&mut self, max: usize, turn: &mut Turn) {
        self.receive_at_once(turn);
        while turn.events.len() < max {
            let Some(entry) = self.queue.first_entry() else { break };
            if entry.key().0 > self.now {
                break;
            }
            let pending = entry.remove();
            self.complete(pending, turn);
        }
    }

    /// Carries out what the proxy asked for, in order; direct events are appended to `turn`.
    pub fn carry_out(&mut self, ops: &mut Vec<(Token, Op)>, turn: &mut Turn) {
        for (token, op) in ops.drain(..) {
            if self.trace {
                eprintln!("{:>10}   {} <- {op:?}", self.now, short(token));
            }
            self.carry_out_one(token, op, turn);
        }
        self.output.clear();
    }

    fn carry_out_one(&mut self, token: Token, op: Op, turn: &mut Turn) {
        match op {
            Op::Accept => self.accept(token),
            Op::Configure(_) => {
                self.listening_socket(token, Transport::Tcp);
            }
            Op::Unlisten => self.unlisten(token),
            Op::Refuse { incoming } => self.refuse(token, incoming),
            Op::Adopt { incoming } => self.adopt(token, incoming),
            Op::Mark { from, at_least } => self.mark(token, from, at_least),
            Op::Unpace { .. } => {}
            Op::Peek { at_least } => self.peek(token, at_least, turn),
            Op::Connect { address, .. } => self.connect(token, address, turn),
            Op::Abandon => self.abandon(token),
            Op::Move { from, mode, budget, to_eof } => {
                self.relay(token, from, mode, budget, to_eof, turn);
            }
            Op::Stream { from } => self.stream(token, from, turn),
            Op::Unstream { from } => self.unstream(token, from),
            Op::Take { from, at_most, .. } => self.take(token, from, at_most, turn),
            Op::Give { to, start, len } => self.give(token, to, (start, len), turn),
            Op::Unacked { side } => self.unacked(token, side, turn),
            Op::Shutdown { side } => self.shutdown(token, side),
            Op::Close { reset } => self.close(token, reset),
            Op::Receive => self.receive(token),
            Op::Open { address, .. } => self.open(token, Some(address), turn),
            Op::OpenShared { ipv4 } => {
                assert!(ipv4, "there are no IPv6 endpoints here");
                self.open(token, None, turn);
            }
            Op::SendUp { buffer, part } => self.send_up(token, buffer, part, turn),
            Op::SendDown { buffer, from, peer, local } => {
                self.send_down(token, buffer, from, peer, local);
            }
            Op::SendVia { buffer, part, via, peer, local } => {
                self.send_via(token, (buffer, part), via, (peer, local), turn);
            }
            Op::Recycle { buffer } => self.recycle(token, buffer),
            Op::CloseUpstream => self.close_upstream(token),
        }
    }

    /// Ends a turn: what had to be answered within it must have been.
    pub fn end_turn(&mut self) {
        assert!(self.incoming.is_empty(), "an accepted connection was neither adopted nor refused");
        assert!(self.buffers.is_empty(), "a receive buffer was not given back within the turn");
        self.check_half_closes();
        self.open_failed.clear();
        self.turn += 1;
    }

    /// What has stopped by itself goes on: at once, or, where the machine lacked something, soon.
    pub fn check_armed(&self) {
        for (id, socket) in self.listening.iter().filter(|(_, s)| !s.ending) {
            let resting = self.now < socket.stopped + LONGEST_PAUSE;
            assert!(socket.armed || resting, "stopped for good: {id:?}");
        }
        for upstream in self.upstreams.values() {
            let resting = self.now < upstream.stopped + LONGEST_PAUSE;
            assert!(upstream.is_receiving() || resting, "stopped for good: {:?}", upstream.token);
        }
    }

    /// Nothing of the proxy's is left: no descriptor, pipe, buffer, nor anything in flight.
    pub fn check_empty(&self) {
        assert!(self.sessions.is_empty(), "sessions never closed: {:?}", self.sessions);
        assert!(self.upstreams.is_empty(), "upstream sockets never closed: {:?}", self.upstreams);
        assert!(self.listening.is_empty(), "listening sockets never closed: {:?}", self.listening);
        assert!(self.buffers.is_empty(), "buffers never given back: {:?}", self.buffers);
        assert_eq!(self.pipes_used, 0, "pipes never given back");
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

    pub(crate) fn at(&mut self, time: u64, pending: Pending) {
        self.sequence += 1;
        self.queue.insert((time, self.sequence), pending);
    }

    pub(crate) fn event(&mut self, token: Token, event: Event, turn: &mut Turn) {
        if self.trace {
            eprintln!("{:>10} {} -> {event:?}", self.now, short(token));
        }
        self.events += 1;
        turn.events.push((token, event));
    }

    fn complete(&mut self, pending: Pending, turn: &mut Turn) {
        match pending {
            Pending::Handshake(socket, conn) => self.handshake_done(socket, conn),
            Pending::Accept(socket) => self.accept_one(socket, turn),
            Pending::Unlisten(socket) => self.unlisten_on(socket, turn),
            Pending::Ready(conn) => self.ready(conn, turn),
            Pending::Space(conn) => self.space(conn),
            Pending::Arrive(conn) => self.arrive(conn, turn),
            Pending::StreamOver(token, from) => self.stream_cancelled(token, from, turn),
            Pending::Break(conn, why) => self.break_conn(conn, why),
            Pending::Establish(token, attempt) => self.establish(token, attempt),
            Pending::Connected(token, attempt) => self.connected(token, attempt, turn),
            Pending::ConnectFailed(token, attempt, why) => {
                self.connect_failed(token, attempt, why, turn);
            }
            Pending::Abandoned(token) => self.abandoned(token, turn),
            Pending::Close(token, reset) => self.closing_done(token, reset, turn),
            Pending::Receive(token) => self.receive_all(token, turn),
            Pending::SendFailed(token, why, count) => self.send_failed(token, why, count, turn),
            Pending::Closed(token) => self.upstream_closed(token, turn),
            Pending::Dead(token) => self.dead_event(token, turn),
        }
    }

    fn accept(&mut self, token: Token) {
        let now = self.now;
        let socket = self.listening_socket(token, Transport::Tcp);
        assert!(!socket.armed, "Accept while accepting");
        assert!(!socket.ending, "Accept after Unlisten");
        assert!(now >= socket.pause_until, "Accept without a pause after files or memory ran out");
        socket.armed = true;
        self.soon(Pending::Accept(SocketId(token.slot)));
    }

    fn accept_one(&mut self, id: SocketId, turn: &mut Turn) {
        let Some(socket) = self.listening.get_mut(&id).filter(|s| s.armed && !s.ending) else {
            return;
        };
        if socket.backlog.is_empty() {
            return;
        }
        let token = Token::socket(id);
        let exhausted = self.rng.per_mille(self.faults.exhausted);
        if exhausted || self.rng.per_mille(self.faults.stop) {
            socket.armed = false;
            let why = exhausted.then(|| self.rng.pick(&[Why::NoFiles, Why::NoMemory]));
            // The proxy pauses 100 ms; a kernel that is asked at once again would fail at once.
            if exhausted {
                socket.stopped = self.now;
                socket.pause_until = self.now + 50_000;
            }
            self.hit_sessions(Fault::AcceptStopped);
            self.event(token, Event::Stopped { why }, turn);
            return;
        }
        self.hand_over(id, turn);
        self.soon(Pending::Accept(id));
    }

    fn hand_over(&mut self, id: SocketId, turn: &mut Turn) {
        let Some(conn) = self.listening.get_mut(&id).and_then(|s| s.backlog.pop_front()) else {
            return;
        };
        let free = (0..).find(|n| !self.incoming.contains_key(n));
        let incoming = free.expect("fewer than 2^32 connections wait");
        self.incoming.insert(incoming, (id, conn));
        self.accepted += 1;
        let (peer, local) = (self.conns[conn.0].peer, self.conns[conn.0].local);
        self.event(Token::socket(id), Event::Accepted { incoming, peer, local }, turn);
    }

    fn refuse(&mut self, token: Token, incoming: u32) {
        let (socket, conn) = self.incoming.remove(&incoming).expect("Refuse of nothing");
        assert_eq!(Token::socket(socket), token, "Refuse by another socket's token");
        self.close_conn(conn, true);
    }

    fn unlisten(&mut self, token: Token) {
        let id = SocketId(token.slot);
        let socket = self.listening.get_mut(&id).expect("Unlisten of no listening socket");
        assert!(!socket.ending || socket.followed, "Unlisten twice");
        socket.armed = false;
        socket.followed = false;
        if std::mem::replace(&mut socket.ending, true) {
            return;
        }
        self.soon(Pending::Unlisten(id));
    }

    fn unlisten_on(&mut self, id: SocketId, turn: &mut Turn) {
        let socket = self.listening.get_mut(&id).expect("checked at Unlisten");
        let token = Token::socket(id);
        if !socket.backlog.is_empty() {
            self.hand_over(id, turn);
        } else if socket.handshakes == 0 {
            // Receives that had completed before come out before the last event.
            if !socket.received.is_empty() && self.rng.per_mille(300) {
                let (datagram, _) = socket.received.pop_front().expect("not empty");
                self.hand_up(token, datagram, None, turn);
            }
            let Listening { transport, address, followed, .. } =
                self.listening.remove(&id).expect("it is there");
            if followed {
                self.listen(id, transport, address);
                self.event(token, Event::Stopped { why: None }, turn);
            } else {
                self.event(token, Event::Unlistened, turn);
            }
            return;
        }
        self.soon(Pending::Unlisten(id));
    }

    pub(crate) fn listening_socket(&mut self, token: Token, as_: Transport) -> &mut Listening {
        assert_eq!(token, Token::socket(SocketId(token.slot)), "not a listening socket's token");
        let socket = self.listening.get_mut(&SocketId(token.slot)).expect("no such socket");
        assert_eq!(socket.transport, as_, "{token:?} is of the other transport");
        socket
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

    fn dead_event(&mut self, token: Token, turn: &mut Turn) {
        let state = match token.kind {
            Kind::Socket => None,
            Kind::Session => self.sessions.get(&token.slot).map(Session::state),
            Kind::Upstream => self.upstreams.get(&token.slot).map(Upstream::state),
        };
        if let Some(state) = state {
            self.coverage.hit(state, Fault::DeadEvent);
        }
        let event = match token.kind {
            Kind::Upstream => match self.rng.below(3) {
                0 => Event::Stopped { why: None },
                1 => Event::SendFailed { why: Why::Refused, count: 1 },
                _ => Event::Closed,
            },
            Kind::Socket | Kind::Session => self.dead_session_event(),
        };
        self.event(token, event, turn);
    }

    /// Everything that needs no buffer, as of now, whatever is there.
    pub fn idle(&self) -> bool {
        self.sessions.is_empty() && self.upstreams.is_empty()
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
    format!("{kind} {}.{}", token.slot, token.generation)
}
