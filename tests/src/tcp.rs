//! The TCP half of the simulated kernel: connections, sessions, readiness, moving bytes.
//!
//! What is modelled after Linux: a reset leaves received bytes readable and the error comes behind
//! them; closing with unread bytes resets; data that reaches a closed peer resets; a blocked writer
//! is told of space only once a third of the buffer is free; SO_RCVLOWAT holds back wake-ups.

use std::net::SocketAddr;

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{Event, Kind, Mode, Side, Stop, Token, Why};

use crate::coverage::{Fault, State};
use crate::kernel::{Kernel, Pending, Turn};
use crate::proxied::{OWN, Proxied};
use crate::stream::{Bytes, Range, pattern};
use crate::streaming::Stream;

/// A connection of the proxy with a peer. Never used again, so it names the peer's byte stream too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub usize);

/// What an endpoint address does with connection attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointMode {
    Accepts,
    /// Accepts after this many microseconds.
    AcceptsAfter(u64),
    Refuses,
    /// Drops every SYN.
    Silent,
    Unreachable,
}

#[derive(Debug)]
pub struct Conn {
    pub side: Side,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub owner: Option<Token>,
    /// From the peer to the proxy's socket.
    pub inbound: Half,
    /// From the proxy's socket to the peer.
    pub outbound: Half,
    /// What the peer's stream begins with, before the pattern.
    pub prefix: Vec<u8>,
    /// What the gateway itself has to do with the peer's bytes and with those to it.
    pub proxied: Proxied,
    /// The connection that this one is relayed to and from.
    pub partner: Option<ConnId>,
    /// The handshake failed: nothing listened.
    pub refused: bool,
    /// The proxy's socket is closed.
    pub closed: bool,
    /// The peer was reset.
    pub reset_seen: bool,
    /// The peer closed its socket altogether.
    pub peer_closed: bool,
    /// The proxy's socket is broken, and why.
    pub error: Option<Why>,
    /// The turn in which the proxy was told of the error.
    pub(crate) error_told: Option<u64>,
    /// Wake-ups wait for this many bytes (SO_RCVLOWAT).
    pub(crate) lowat: u64,
    /// `lowat` is that of a `Peek`, which ends with the first `Move`.
    pub(crate) peeked: bool,
    /// When bytes first came that were too few to wake anybody, microseconds.
    pub(crate) below_since: Option<u64>,
    /// A write found no space: the proxy must be told when there is some.
    pub(crate) nospace: bool,
    news: News,
    ready_pending: bool,
    /// A stream's receive is about to take something.
    pub(crate) arriving: bool,
    /// Bytes that streams gave this connection: in which turn, and how many in that one.
    pub(crate) streamed: (u64, u64),
    /// How many of these the proxy may not have known of when it closed the session.
    pub untold: u64,
    /// Bytes or an end came since the proxy last looked.
    pub(crate) unlooked: bool,
    /// The last shutdown cut bytes off, and only a Close in the same turn can excuse that.
    cut: bool,
}

#[derive(Debug)]
pub struct Half {
    pub queue: Bytes,
    pub capacity: u64,
    /// The sender has sent its FIN.
    pub fin: bool,
    /// The receiver has seen it.
    pub fin_seen: bool,
    /// Bytes that the sender's socket took, and that the receiver took from its own.
    pub written: u64,
    pub taken: u64,
    /// Those that the sender has been told are in the receiver's socket: no reset overtakes them.
    acked: u64,
}

impl Half {
    fn new(capacity: u64) -> Self {
        Self {
            queue: Bytes::default(),
            capacity,
            fin: false,
            fin_seen: false,
            written: 0,
            taken: 0,
            acked: 0,
        }
    }

    fn space(&self) -> u64 {
        self.capacity.saturating_sub(self.queue.len())
    }

    /// Everything was sent and taken, and its end seen.
    pub fn finished(&self) -> bool {
        self.fin_seen && self.queue.is_empty()
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct News {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) ending: bool,
    pub(crate) failed: bool,
}

/// What the ring has of one session.
#[derive(Debug)]
pub struct Session {
    pub token: Token,
    pub client: ConnId,
    pub endpoint: Option<ConnId>,
    connecting: Option<Attempt>,
    /// `Abandon` was asked for and its `ConnectFailed` has not been given out.
    abandoning: bool,
    /// The turn in which the last `Connected` or `ConnectFailed` was given out.
    answered: Option<u64>,
    /// Taken and not yet given, by the side that they came from.
    pub(crate) held: [Bytes; 2],
    /// Directions that the proxy was told are blocked.
    pub(crate) blocked: [bool; 2],
    pub(crate) streams: [Stream; 2],
    /// Whether the direction has a pipe.
    pipes: [bool; 2],
    pub(crate) shut: [bool; 2],
    /// The endpoint has not taken all of its header.
    pub(crate) introducing: bool,
    /// The session is over, and is waiting for what is not acknowledged.
    delivering: bool,
    pub(crate) closing: bool,
}

#[derive(Debug)]
struct Attempt {
    number: u32,
    /// Microseconds.
    began: u64,
    address: SocketAddr,
    established: Option<ConnId>,
}

/// recv through the worker's scratch memory, or a pipe of the usual size.
const CHUNK: u64 = 65_536;
/// The steps in which a `Peek` looks further.
const PEEKED: u64 = 4_096;
/// How long bytes may lie below a mark, microseconds.
const TAIL: u64 = 2_000;
/// No timeout of a connection attempt is longer, microseconds.
const GIVEN_UP: u64 = 10_000_000;
/// After which Linux gives up a SYN that nobody answers (tcp_syn_retries 6), microseconds.
const SYN_GIVEN_UP: u64 = 127_000_000;

impl Session {
    pub fn state(&self) -> State {
        if self.closing {
            State::Closing
        } else if self.endpoint.is_none() {
            if self.connecting.is_some() { State::Connecting } else { State::Opening }
        } else if self.shut[0] || self.shut[1] {
            State::HalfClosed
        } else {
            State::Relaying
        }
    }

    pub(crate) fn conn(&self, side: Side) -> Option<ConnId> {
        match side {
            Side::Client => Some(self.client),
            Side::Endpoint => self.endpoint,
        }
    }
}

/// What reading a socket gives.
pub(crate) enum Got {
    Data(Bytes),
    Nothing,
    End,
    Failed(Why),
}

// ---- What peers do ----
impl Kernel {
    /// A client begins a handshake. `window`: bytes that fit the socket buffers each way.
    pub fn peer_connect(
        &mut self,
        socket: SocketId,
        peer: SocketAddr,
        prefix: Vec<u8>,
        window: u64,
    ) -> ConnId {
        let local = self.listening.get(&socket).map_or(peer, |s| s.address);
        let id = self.new_conn(Side::Client, peer, local, window);
        self.conns[id.0].prefix = prefix;
        match self.listening.get_mut(&socket).filter(|s| !s.ending) {
            Some(listening) => {
                assert_eq!(listening.transport, Transport::Tcp);
                listening.handshakes += 1;
                self.soon(Pending::Handshake(socket, id));
            }
            None => self.conns[id.0].refused = true,
        }
        id
    }

    /// The peer writes up to `n` bytes of its stream; returns what its socket took.
    pub fn peer_write(&mut self, id: ConnId, n: u64) -> u64 {
        let conn = &mut self.conns[id.0];
        if n == 0 || conn.inbound.fin {
            return 0;
        }
        if conn.closed {
            conn.reset_seen = true;
        }
        if conn.reset_seen || conn.error.is_some() {
            return 0;
        }
        let len = n.min(conn.inbound.space());
        conn.inbound.queue.push(Range { stream: id.0 as u32, at: conn.inbound.written, len });
        conn.inbound.written += len;
        if len > 0 && conn.inbound.queue.len() >= conn.lowat {
            conn.unlooked = true;
            self.wake(id, News { readable: true, ..News::default() });
        } else if len > 0 {
            conn.below_since.get_or_insert(self.now);
            self.hit_conn(id, Fault::BelowMark);
        }
        len
    }

    /// The peer reads up to `n` bytes, and sees a FIN once it has read all before it.
    pub fn peer_read(&mut self, id: ConnId, n: u64) -> u64 {
        let conn = &mut self.conns[id.0];
        let taken = conn.outbound.queue.take(n);
        let expected = conn.partner;
        let away = expected.map_or(0, |partner| self.conns[partner.0].proxied.away);
        let conn = &mut self.conns[id.0];
        for range in taken.ranges() {
            if range.stream == OWN {
                assert_eq!(range.at, conn.outbound.taken, "a header is not what comes first");
                conn.outbound.taken += range.len;
                continue;
            }
            assert_eq!(
                Some(ConnId(range.stream as usize)),
                expected,
                "bytes crossed sessions: {id:?} was given {range:?}"
            );
            assert_eq!(
                range.at - away,
                conn.outbound.taken - conn.proxied.told(),
                "bytes lost, doubled or out of order: {id:?} was given {range:?}"
            );
            conn.outbound.taken += range.len;
        }
        if conn.outbound.queue.is_empty() && conn.outbound.fin {
            conn.outbound.fin_seen = true;
        }
        // sk_stream_is_writeable: a third free.
        if conn.nospace && conn.outbound.space() * 3 >= conn.outbound.capacity {
            conn.nospace = false;
            self.wake(id, News { writable: true, ..News::default() });
        }
        taken.len()
    }

    /// The peer shuts its sending half down.
    pub fn peer_fin(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.0];
        if conn.inbound.fin || conn.error.is_some() || conn.reset_seen {
            return;
        }
        conn.inbound.fin = true;
        conn.unlooked = true;
        self.wake(id, News { readable: true, ending: true, ..News::default() });
    }

    pub fn peer_reset(&mut self, id: ConnId) {
        let side = self.conns[id.0].side;
        let fault = if side == Side::Client { Fault::ClientReset } else { Fault::EndpointReset };
        self.hit_conn(id, fault);
        self.break_conn(id, Why::Reset);
    }

    /// The peer is gone without a word; the kernel finds out after `after` microseconds.
    pub fn peer_vanish(&mut self, id: ConnId, after: u64) {
        let at = self.now + after;
        self.at(at, Pending::Break(id, Why::TimedOut));
    }

    /// The peer closes its socket: a FIN, or a reset if it leaves bytes unread; what reaches it
    /// afterwards is answered with a reset.
    pub fn peer_close(&mut self, id: ConnId) {
        let unread = !self.conns[id.0].outbound.queue.is_empty();
        self.peer_fin(id);
        self.conns[id.0].peer_closed = true;
        if unread {
            self.peer_reset(id);
        }
    }

    pub fn conn(&self, id: ConnId) -> &Conn {
        &self.conns[id.0]
    }

    pub fn conn_mut(&mut self, id: ConnId) -> &mut Conn {
        &mut self.conns[id.0]
    }

    pub fn set_endpoint(&mut self, address: SocketAddr, mode: EndpointMode) {
        self.endpoints.insert(address, mode);
    }

    /// Sets what fits the socket buffers of a connection each way.
    pub fn set_window(&mut self, id: ConnId, inbound: u64, outbound: u64) {
        self.conns[id.0].inbound.capacity = inbound;
        self.conns[id.0].outbound.capacity = outbound;
    }

    pub(crate) fn break_conn(&mut self, id: ConnId, why: Why) {
        if why == Why::TimedOut {
            let conn = &self.conns[id.0];
            let fault = match conn.side {
                Side::Client => Fault::ClientTimedOut,
                Side::Endpoint => Fault::EndpointTimedOut,
            };
            self.hit_conn(id, fault);
        }
        let conn = &mut self.conns[id.0];
        if conn.closed || conn.error.is_some() {
            return;
        }
        conn.error = Some(why);
        conn.peer_closed = true;
        conn.unlooked = true;
        // What was sent and not read is gone; what was received stays readable.
        conn.outbound.queue = Bytes::default();
        let all = News { readable: true, writable: true, ending: true, failed: true };
        self.wake(id, all);
    }
}

// ---- What the ring does for the proxy ----
impl Kernel {
    fn new_conn(&mut self, side: Side, peer: SocketAddr, local: SocketAddr, window: u64) -> ConnId {
        self.conns.push(Conn {
            side,
            peer,
            local,
            owner: None,
            inbound: Half::new(window),
            outbound: Half::new(window),
            prefix: Vec::new(),
            proxied: Proxied::default(),
            partner: None,
            refused: false,
            closed: false,
            reset_seen: false,
            peer_closed: false,
            error: None,
            error_told: None,
            lowat: 1,
            peeked: false,
            below_since: None,
            nospace: false,
            news: News::default(),
            ready_pending: false,
            arriving: false,
            streamed: (0, 0),
            untold: 0,
            unlooked: false,
            cut: false,
        });
        ConnId(self.conns.len() - 1)
    }

    pub(crate) fn handshake_done(&mut self, id: SocketId, conn: ConnId) {
        let socket = self.listening.get_mut(&id).expect("open while handshakes are under way");
        socket.handshakes -= 1;
        socket.backlog.push_back(conn);
        if socket.armed {
            self.soon(Pending::Accept(id));
        }
    }

    pub(crate) fn adopt(&mut self, token: Token, incoming: u32) {
        assert_eq!(token.kind, Kind::Session);
        let (_, client) = self.incoming.remove(&incoming).expect("Adopt of nothing");
        assert!(!self.sessions.contains_key(&token.slot), "Adopt into a slot that is in use");
        assert!(token.slot < self.limits.sessions, "a slot beyond the limit");
        self.use_slot(token);
        self.sessions.insert(
            token.slot,
            Session {
                token,
                client,
                endpoint: None,
                connecting: None,
                abandoning: false,
                answered: None,
                held: Default::default(),
                blocked: [false; 2],
                streams: [Stream::Off; 2],
                pipes: [false; 2],
                shut: [false; 2],
                introducing: false,
                delivering: false,
                closing: false,
            },
        );
        self.conns[client.0].owner = Some(token);
        self.arm(client);
    }

    /// A poll that is armed completes at once if there is something to say.
    pub(crate) fn arm(&mut self, id: ConnId) {
        let conn = &self.conns[id.0];
        let awaited = conn.owner.and_then(|token| self.sessions.get(&token.slot));
        let awaited = awaited.is_some_and(|session| session.blocked[conn.side.other() as usize]);
        let news = News {
            readable: !conn.inbound.queue.is_empty() || conn.inbound.fin,
            writable: !conn.nospace && (awaited || self.rng.per_mille(500)),
            ending: conn.inbound.fin,
            failed: conn.error.is_some(),
        };
        if news.readable || news.writable || news.failed {
            self.wake(id, news);
        }
    }

    pub(crate) fn live(&mut self, token: Token) -> &mut Session {
        let session = self.sessions.get_mut(&token.slot);
        let session = session.filter(|s| s.token == token).expect("op on a session that is over");
        assert!(!session.closing, "op on a session after its Close");
        session
    }

    pub(crate) fn peek(&mut self, token: Token, at_least: u32, turn: &mut Turn) {
        let client = self.live(token).client;
        let conn = &mut self.conns[client.0];
        conn.lowat = u64::from(at_least.max(1));
        conn.peeked = true;
        conn.unlooked = false;
        // A short look is a look before the rest arrived.
        let most = u64::from(at_least.max(1)).next_multiple_of(PEEKED).min(CHUNK);
        let mut len = conn.inbound.queue.len().min(most);
        let whole = len == conn.inbound.queue.len() || most == CHUNK;
        let mut more = false;
        if len > 1 && self.rng.per_mille(self.faults.short_read) {
            len = self.rng.between(1, len - 1);
            more = true;
        }
        let conn = &self.conns[client.0];
        let broken = conn.error.is_some();
        let end = (conn.inbound.fin || broken) && whole && !more;
        let start = turn.bytes.len() as u32;
        let mut left = len;
        for range in conn.inbound.queue.ranges() {
            let take = range.len.min(left);
            turn.bytes.extend((range.at..range.at + take).map(|at| conn.byte(at, range.stream)));
            left -= take;
        }
        // Setting SO_RCVLOWAT wakes if there is enough already; an arrival always does.
        let enough = conn.inbound.queue.len() >= conn.lowat;
        if enough && more {
            self.conns[client.0].unlooked = true;
            self.wake(client, News { readable: true, ..News::default() });
        } else if more && (self.conns[client.0].inbound.fin || broken) {
            self.conns[client.0].unlooked = true;
            self.wake(client, News { readable: true, ending: true, ..News::default() });
        }
        self.event(token, Event::Peeked { start, len: len as u32, end }, turn);
    }

    pub(crate) fn mark(&mut self, token: Token, from: Side, at_least: u32) {
        let id = self.live(token).conn(from).expect("Mark of a side that is not there");
        let conn = &mut self.conns[id.0];
        // The kernel lets nobody ask for more than half of what the buffer holds.
        conn.lowat = u64::from(at_least).min(conn.inbound.capacity / 2).max(1);
        if conn.lowat == 1 {
            conn.below_since = None;
        }
        let waiting = conn.inbound.queue.len();
        if waiting >= conn.lowat {
            self.wake(id, News { readable: true, ..News::default() });
        } else if waiting > 0 {
            self.hit_conn(id, Fault::BelowMark);
            let now = self.now;
            self.conns[id.0].below_since.get_or_insert(now);
        }
    }

    pub(crate) fn connect(&mut self, token: Token, address: SocketAddr, turn: &mut Turn) {
        self.attempts += 1;
        let (number, now) = (self.attempts, self.now);
        let session = self.live(token);
        assert!(session.endpoint.is_none(), "Connect with an endpoint side");
        assert!(session.connecting.is_none(), "Connect during a Connect");
        assert!(!session.abandoning, "Connect before the ConnectFailed of an Abandon");
        session.connecting = Some(Attempt { number, began: now, address, established: None });
        session.answered = None;
        self.connects.push(address);
        if self.rng.per_mille(self.faults.no_local) {
            let (why, fault) = self.rng.pick(&[
                (Why::NoPorts, Fault::NoPorts),
                (Why::NoFiles, Fault::NoFiles),
                (Why::NoMemory, Fault::NoMemory),
            ]);
            self.coverage.hit(State::Connecting, fault);
            if self.rng.per_mille(500) {
                self.connect_failed(token, number, why, turn);
            } else {
                self.soon(Pending::ConnectFailed(token, number, why));
            }
            return;
        }
        let mode = self.endpoints.get(&address).copied().unwrap_or(EndpointMode::Refuses);
        let rtt = self.rng.scale(1, 500);
        let failed = |why| Pending::ConnectFailed(token, number, why);
        match mode {
            EndpointMode::Accepts => self.at(self.now + rtt, Pending::Establish(token, number)),
            EndpointMode::AcceptsAfter(late) => {
                self.at(self.now + late, Pending::Establish(token, number));
            }
            EndpointMode::Refuses => {
                self.coverage.hit(State::Connecting, Fault::ConnectRefused);
                self.at(self.now + rtt, failed(Why::Refused));
            }
            EndpointMode::Silent => {
                self.coverage.hit(State::Connecting, Fault::ConnectSilent);
                self.at(self.now + SYN_GIVEN_UP, failed(Why::TimedOut));
            }
            EndpointMode::Unreachable => self.at(self.now + rtt, failed(Why::Unreachable(101))),
        }
    }

    fn attempt(&mut self, token: Token, number: u32) -> Option<&mut Attempt> {
        let session = self.sessions.get_mut(&token.slot).filter(|s| s.token == token)?;
        session.connecting.as_mut().filter(|a| a.number == number)
    }

    /// The handshake is over: the endpoint sees a connection, the proxy does not know yet.
    pub(crate) fn establish(&mut self, token: Token, number: u32) {
        let Some(address) = self.attempt(token, number).map(|a| a.address) else { return };
        let port = 1024 + (number % 60_000) as u16;
        let local = SocketAddr::new(address.ip(), port);
        let window = self.rng.scale(2048, 4 << 20);
        let id = self.new_conn(Side::Endpoint, address, local, window);
        let attempt = self.attempt(token, number).expect("just checked");
        attempt.established = Some(id);
        let client = self.sessions[&token.slot].client;
        self.conns[id.0].partner = Some(client);
        self.established.push(id);
        self.soon(Pending::Connected(token, number));
    }

    pub(crate) fn connected(&mut self, token: Token, number: u32, turn: &mut Turn) {
        let now = self.turn;
        let Some(id) = self.attempt(token, number).and_then(|a| a.established) else { return };
        let session = self.sessions.get_mut(&token.slot).expect("just checked");
        session.connecting = None;
        session.answered = Some(now);
        session.endpoint = Some(id);
        let client = session.client;
        self.conns[client.0].partner = Some(id);
        self.conns[id.0].owner = Some(token);
        self.event(token, Event::Connected, turn);
        self.arm(id);
    }

    pub(crate) fn connect_failed(&mut self, token: Token, number: u32, why: Why, turn: &mut Turn) {
        let now = self.turn;
        if self.attempt(token, number).is_none() {
            return;
        }
        let session = self.sessions.get_mut(&token.slot).expect("just checked");
        session.connecting = None;
        session.answered = Some(now);
        self.event(token, Event::ConnectFailed { why }, turn);
    }

    pub(crate) fn abandon(&mut self, token: Token) {
        let now = self.turn;
        let session = self.live(token);
        assert!(!session.abandoning, "Abandon twice");
        let established = match session.connecting.take() {
            Some(attempt) => attempt.established,
            // Its answer was given out in this very turn: the proxy could not know. A failure has
            // been said already; a success is taken back.
            None => {
                let this_turn = session.answered == Some(now);
                let Some(id) = session.endpoint.take() else {
                    assert!(this_turn, "Abandon without a Connect");
                    return;
                };
                session.introducing = false;
                session.abandoning = true;
                if this_turn {
                    self.coverage.hit(State::Connecting, Fault::ConnectLate);
                }
                let conn = &self.conns[id.0];
                let told = conn.proxied.told();
                assert_eq!(conn.outbound.written, told, "an endpoint that has a client's bytes");
                self.close_conn(id, false);
                return self.soon(Pending::Abandoned(token));
            }
        };
        session.abandoning = true;
        if let Some(id) = established {
            self.coverage.hit(State::Connecting, Fault::ConnectLate);
            self.close_conn(id, true);
        }
        self.soon(Pending::Abandoned(token));
    }

    pub(crate) fn abandoned(&mut self, token: Token, turn: &mut Turn) {
        let session = self.sessions.get_mut(&token.slot).filter(|s| s.token == token);
        let Some(session) = session.filter(|s| s.abandoning) else { return };
        session.abandoning = false;
        self.event(token, Event::ConnectFailed { why: Why::Abandoned }, turn);
    }

    pub(crate) fn relay(
        &mut self,
        token: Token,
        from: Side,
        mode: Mode,
        budget: u32,
        to_eof: bool,
        turn: &mut Turn,
    ) {
        let session = self.live(token);
        let way = from as usize;
        let (Some(source), Some(sink)) = (session.conn(from), session.conn(from.other())) else {
            panic!("Move without both sides");
        };
        assert!(!session.shut[from.other() as usize], "Move towards a side that was shut down");
        assert!(session.streams[way].is_over(), "Move of a direction that streams");
        let mut held = std::mem::take(&mut session.held[way]);
        if from == Side::Client && std::mem::take(&mut self.conns[source.0].peeked) {
            self.conns[source.0].lowat = 1;
        }
        self.conns[source.0].unlooked = false;
        self.conns[source.0].below_since = None;
        let (mut read, mut sent) = (0, 0);
        let stop = loop {
            if !held.is_empty() {
                match self.write(sink, &mut held) {
                    Ok(n) => sent += n,
                    Err(why) => break Stop::Failed { side: from.other(), why },
                }
                if !held.is_empty() {
                    break Stop::Blocked;
                }
            }
            if read >= u64::from(budget) {
                break Stop::Budget;
            }
            let mut chunk = CHUNK.min(u64::from(budget) - read);
            // Without a pipe nothing can be held: look, write, take what was written.
            let pipe = self.take_pipe(token, way);
            if !pipe {
                self.hit_conn(source, Fault::NoPipe);
                let space = self.space_for(sink);
                if space == 0 && !self.conns[source.0].inbound.queue.is_empty() {
                    self.conns[sink.0].nospace = true;
                    break Stop::Blocked;
                }
                chunk = chunk.min(space.max(1));
            }
            let got = match self.read(source, chunk) {
                Got::Data(bytes) => bytes,
                Got::Nothing => break Stop::Drained,
                Got::End => break Stop::Eof,
                Got::Failed(why) => break Stop::Failed { side: from, why },
            };
            let short = got.len() < chunk;
            read += got.len();
            held = got;
            match self.write_all_or(sink, &mut held, pipe) {
                Ok(n) => sent += n,
                Err(why) => break Stop::Failed { side: from.other(), why },
            }
            if !held.is_empty() {
                break Stop::Blocked;
            }
            if short && !to_eof && (mode == Mode::Copy || self.rng.per_mille(500)) {
                // The ring trusts a short read: whatever came since wakes by itself.
                break Stop::Drained;
            }
        };
        let left = held.len();
        let session = self.sessions.get_mut(&token.slot).expect("live");
        session.held[way] = held;
        session.blocked[way] = stop == Stop::Blocked;
        if left == 0 && std::mem::take(&mut session.pipes[way]) {
            self.pipes_used -= 1;
        }
        if let Stop::Failed { side, .. } = stop {
            let failed = if side == from { source } else { sink };
            self.conns[failed.0].error_told.get_or_insert(self.turn);
        }
        if stop == Stop::Blocked {
            // The sink must be watched.
            self.end_stream(token, from.other());
        }
        let moved =
            Event::Moved { from, read: read as u32, sent: sent as u32, held: left as u32, stop };
        self.event(token, moved, turn);
    }

    fn take_pipe(&mut self, token: Token, way: usize) -> bool {
        let session = self.sessions.get_mut(&token.slot).expect("live");
        if !session.pipes[way] && self.pipes_used < self.limits.pipes {
            session.pipes[way] = true;
            self.pipes_used += 1;
        }
        session.pipes[way]
    }

    fn space_for(&self, id: ConnId) -> u64 {
        let conn = &self.conns[id.0];
        if conn.peer_closed || conn.error.is_some() { u64::MAX } else { conn.outbound.space() }
    }

    pub(crate) fn read(&mut self, id: ConnId, max: u64) -> Got {
        let waiting = self.conns[id.0].inbound.queue.len();
        if waiting == 0 {
            let conn = &mut self.conns[id.0];
            return match conn.error {
                Some(why) => Got::Failed(why),
                None if conn.inbound.fin => {
                    conn.inbound.fin_seen = true;
                    Got::End
                }
                None => Got::Nothing,
            };
        }
        let mut n = waiting.min(max);
        // Both are what they are on Linux: the rest arrives a moment later, with its own wake-up.
        // What a broken connection had received is all there.
        let nothing =
            self.rng.per_mille(self.faults.would_block) && self.conns[id.0].error.is_none();
        if nothing || (n > 1 && self.rng.per_mille(self.faults.short_read)) {
            self.hit_conn(id, if nothing { Fault::WouldBlock } else { Fault::ShortRead });
            n = if nothing { 0 } else { self.rng.between(1, n - 1) };
            let conn = &self.conns[id.0];
            let news = News {
                readable: true,
                ending: conn.inbound.fin || conn.error.is_some(),
                failed: conn.error.is_some(),
                ..News::default()
            };
            self.wake(id, news);
        }
        if n == 0 {
            return Got::Nothing;
        }
        let conn = &mut self.conns[id.0];
        conn.inbound.taken += n;
        Got::Data(conn.inbound.queue.take(n))
    }

    pub(crate) fn write(&mut self, id: ConnId, bytes: &mut Bytes) -> Result<u64, Why> {
        self.write_all_or(id, bytes, true)
    }

    /// `may_fall_short`: without a pipe the ring writes only what it saw space for.
    fn write_all_or(
        &mut self,
        id: ConnId,
        bytes: &mut Bytes,
        may_fall_short: bool,
    ) -> Result<u64, Why> {
        let conn = &mut self.conns[id.0];
        assert!(!conn.outbound.fin, "bytes after a FIN");
        if let Some(why) = conn.error {
            return Err(why);
        }
        if conn.peer_closed {
            // The peer's kernel answers with a reset, a round trip later.
            let n = bytes.len();
            conn.outbound.written += n;
            *bytes = Bytes::default();
            let at = self.now + self.rng.scale(1, 500);
            self.at(at, Pending::Break(id, Why::Reset));
            return Ok(n);
        }
        let mut n = bytes.len().min(conn.outbound.space());
        let mut short = false;
        if may_fall_short && n > 0 && self.rng.per_mille(self.faults.short_write) {
            self.hit_conn(id, Fault::ShortWrite);
            n = self.rng.below(n);
            short = true;
        }
        let conn = &mut self.conns[id.0];
        conn.outbound.queue.append(bytes.take(n));
        conn.outbound.written += n;
        if !bytes.is_empty() {
            conn.nospace = true;
            if short {
                self.soon(Pending::Space(id));
            } else {
                self.hit_conn(id, Fault::Stalled);
            }
        }
        Ok(n)
    }

    /// The space that a short write did not find is there, if the buffer is not full.
    pub(crate) fn space(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.0];
        if conn.nospace && conn.outbound.space() * 3 >= conn.outbound.capacity {
            conn.nospace = false;
            self.wake(id, News { writable: true, ..News::default() });
        }
    }

    pub(crate) fn unacked(&mut self, token: Token, side: Side, turn: &mut Turn) {
        let session = self.live(token);
        session.delivering = true;
        let id = session.conn(side).expect("Unacked of a side that is not there");
        let all = self.rng.per_mille(500);
        let some = self.rng.number();
        let conn = &mut self.conns[id.0];
        let Half { written, taken, acked, .. } = &mut conn.outbound;
        let all = all || conn.error.is_some() || conn.peer_closed;
        let least = (*acked).max(*taken);
        *acked = if all { *written } else { least + some % (*written - least + 1) };
        let bytes = (*written - *acked) as u32;
        self.event(token, Event::Unacked { side, bytes }, turn);
    }

    pub(crate) fn shutdown(&mut self, token: Token, side: Side) {
        let session = self.live(token);
        let id = session.conn(side).expect("Shutdown of a side that is not there");
        assert!(!session.shut[side as usize], "Shutdown twice");
        session.shut[side as usize] = true;
        let held = session.held[side.other() as usize].len();
        let source = session.conn(side.other());
        let unread = source.map_or(0, |s| {
            let inbound = &self.conns[s.0].inbound;
            if inbound.fin_seen { 0 } else { inbound.queue.len() + 1 }
        });
        let conn = &mut self.conns[id.0];
        conn.outbound.fin = true;
        conn.cut = held + unread > 0;
    }

    pub(crate) fn close(&mut self, token: Token, reset: bool) {
        let turn = self.turn;
        let session = self.live(token);
        session.closing = true;
        let cut = session.held.iter().any(|held| !held.is_empty());
        assert!(reset || !cut, "bytes were cut off by a clean end: {token:?}");
        let sides = [Some(session.client), session.endpoint];
        let relaying = session.endpoint.is_some();
        session.streams = [Stream::Off; 2];
        if let Some(id) = session.connecting.take().and_then(|a| a.established) {
            self.close_conn(id, true);
        }
        for id in sides.into_iter().flatten() {
            let conn = &mut self.conns[id.0];
            conn.cut = false;
            let (then, bytes) = conn.streamed;
            conn.untold = if then == turn { bytes } else { 0 };
            let told = conn.error_told.is_some_and(|then| then < turn);
            assert!(
                reset || !relaying || !told,
                "a broken side became a clean end of the other: {id:?}"
            );
        }
        let at = self.closing_time();
        self.at(at, Pending::Close(token, reset));
    }

    /// The last completion is in: descriptors are closed, pipes emptied.
    pub(crate) fn closing_done(&mut self, token: Token, reset: bool, turn: &mut Turn) {
        let session = self.sessions.remove(&token.slot).expect("closing");
        for id in [Some(session.client), session.endpoint].into_iter().flatten() {
            self.close_conn(id, reset);
        }
        self.pipes_used -= session.pipes.iter().filter(|p| **p).count() as u32;
        self.event(token, Event::Closed, turn);
        self.haunt(token);
    }

    pub(crate) fn close_conn(&mut self, id: ConnId, reset: bool) {
        let lost = self.rng.number();
        let conn = &mut self.conns[id.0];
        assert!(!conn.closed, "{id:?} is closed twice");
        conn.closed = true;
        if conn.error.is_some() {
            return;
        }
        let unread = !conn.inbound.queue.is_empty();
        if (reset || unread) && !conn.peer_closed {
            conn.reset_seen = true;
            // The reset overtakes what was not delivered.
            let Half { queue, taken, acked, .. } = &mut conn.outbound;
            let len = queue.len();
            queue.truncate((lost % (len + 1)).max(acked.saturating_sub(*taken)));
            conn.outbound.fin = false;
        } else {
            conn.outbound.fin = true;
        }
    }

    pub(crate) fn wake(&mut self, id: ConnId, news: News) {
        let conn = &mut self.conns[id.0];
        conn.news.readable |= news.readable;
        conn.news.writable |= news.writable;
        conn.news.ending |= news.ending;
        conn.news.failed |= news.failed;
        let watched = conn.owner.is_some() && !conn.closed;
        if self.stream_of(id).is_some() {
            if news.readable || news.ending || news.failed {
                self.arrive_soon(id);
            }
            return;
        }
        let conn = &mut self.conns[id.0];
        if watched && !std::mem::replace(&mut conn.ready_pending, true) {
            self.soon(Pending::Ready(id));
        }
    }

    /// The poll's completion: the wake-up's own bits, and perhaps all else that is true now.
    pub(crate) fn ready(&mut self, id: ConnId, turn: &mut Turn) {
        let levels = self.rng.per_mille(500);
        let late = self.rng.per_mille(500);
        let again = self.rng.per_mille(self.faults.spurious);
        let streams = self.stream_of(id).is_some();
        let conn = &mut self.conns[id.0];
        conn.ready_pending = false;
        if streams && late {
            // The poll was cancelled; what it had seen is seen again when it is armed.
            return;
        }
        let News { mut readable, mut writable, mut ending, mut failed } =
            std::mem::take(&mut conn.news);
        if levels {
            readable |= conn.inbound.queue.len() >= conn.lowat || conn.inbound.fin;
            writable |= !conn.nospace;
            ending |= conn.inbound.fin;
            failed |= conn.error.is_some();
        }
        let Some(token) = conn.owner.filter(|_| !conn.closed) else { return };
        // A mark does not keep news away that is not about new bytes; a look that is awaited does.
        let (side, looks) = (conn.side, conn.lowat > 1 && conn.peeked);
        if failed {
            conn.error_told.get_or_insert(self.turn);
            ending = true;
        }
        let session = &self.sessions[&token.slot];
        if session.conn(side) != Some(id) || (session.closing && late) {
            return;
        }
        if writable {
            let session = self.sessions.get_mut(&token.slot).expect("just looked at");
            session.blocked[side.other() as usize] = false;
        }
        self.event(token, Event::Ready { side, readable, writable, ending, failed }, turn);
        if again && !looks {
            self.hit_conn(id, Fault::WouldBlock);
            self.wake(id, News { readable: true, writable: true, ..News::default() });
        }
    }

    pub(crate) fn dead_session_event(&mut self) -> Event {
        let side = self.rng.pick(&[Side::Client, Side::Endpoint]);
        match self.rng.below(5) {
            0 => Event::Ready { side, readable: true, writable: true, ending: true, failed: true },
            1 => Event::Connected,
            2 => Event::ConnectFailed { why: Why::Refused },
            3 => {
                let stop = self.rng.pick(&[Stop::Eof, Stop::Drained, Stop::Blocked]);
                Event::Moved { from: side, read: 0, sent: 0, held: 0, stop }
            }
            _ => Event::Closed,
        }
    }

    /// A FIN may be sent before the last byte only by a session that is closed in the same turn.
    pub(crate) fn check_half_closes(&self) {
        for session in self.sessions.values().filter(|s| !s.closing) {
            for id in [Some(session.client), session.endpoint].into_iter().flatten() {
                let cut = self.conns[id.0].cut;
                assert!(!cut, "half-close before the last byte: {:?}", session.token);
            }
        }
    }

    /// No direction may stand still with bytes, space, and nothing to come that would move it.
    /// `resumable`: the proxy has asked for another turn at once.
    pub fn check_stalls(&self, resumable: bool) {
        if resumable {
            return;
        }
        for session in self.sessions.values().filter(|s| !s.closing) {
            let client = &self.conns[session.client.0];
            let Some(endpoint) = session.endpoint.filter(|_| !session.introducing) else {
                assert!(
                    session.connecting.as_ref().is_none_or(|a| self.now < a.began + GIVEN_UP),
                    "stalled: a connection attempt is neither answered nor given up: {:?}",
                    session.token
                );
                let opening =
                    session.connecting.is_none() && !session.abandoning && !session.introducing;
                assert!(
                    !(opening && client.unlooked && !client.ready_pending),
                    "stalled: what the client sent is not looked at: {:?}",
                    session.token
                );
                continue;
            };
            let endpoint = &self.conns[endpoint.0];
            let pending = |conn: &Conn| conn.ready_pending || conn.arriving;
            if pending(client) || pending(endpoint) || session.streams.iter().any(|s| s.is_ending())
            {
                continue;
            }
            if session.delivering {
                continue;
            }
            for (source, sink) in [(client, endpoint), (endpoint, client)] {
                let inbound = &source.inbound;
                let held = &session.held[source.side as usize];
                let work = !held.is_empty()
                    || !inbound.queue.is_empty()
                    || inbound.fin
                    || source.error.is_some();
                let open = !sink.outbound.fin && sink.error.is_none();
                // A mark may hold a tail back, but not for longer than this.
                let below = inbound.queue.len() < source.lowat && held.is_empty();
                let patient = source.below_since.is_none_or(|since| self.now <= since + TAIL);
                if below && patient && !inbound.fin && source.error.is_none() {
                    continue;
                }
                assert!(
                    !(work && open && !sink.nospace),
                    "stalled: bytes or an end wait, there is space, and nothing is to come: {:?} \
                     from {:?}",
                    session.token,
                    source.side
                );
            }
        }
    }
}

impl Conn {
    /// Something that the proxy has not looked at has woken it, or is about to.
    pub(crate) fn has_news(&self) -> bool {
        self.unlooked || self.ready_pending
    }

    /// What stands at `at` in the peer's stream.
    pub(crate) fn byte(&self, at: u64, stream: u32) -> u8 {
        let prefix = usize::try_from(at).ok().and_then(|at| self.prefix.get(at));
        prefix.copied().unwrap_or_else(|| pattern(stream, at))
    }
}
