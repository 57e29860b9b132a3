//! Drives a ring, with clients and endpoints for the ring to talk to.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use config_sync::table::address::Bind;
use config_sync::table::routing::{
    AcceptProxy, Hosts, Limits, OnRefusal, Socket, SocketId, SocketOptions, Transport,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringway::contract::{Event, Kind, Mode, Op, Origin, Side, Stop, Token};
use ringway::ring::listen::open::open_listeners;
use ringway::ring::{Features, Ring, Turn};
use ringway::stats::counters::Counters;

pub(crate) const CLIENT: Side = Side::Client;
pub(crate) const ENDPOINT: Side = Side::Endpoint;

pub(crate) const LIMITS: Limits = Limits {
    sessions: 256,
    flows: 64,
    buffers: 64,
    pipes: 16,
    turn_bytes: 1 << 20,
    bulk_bytes: 8 << 20,
};

pub(crate) const OPTIONS: SocketOptions =
    SocketOptions { nodelay: true, keepalive: 0, user_timeout: 0, congestion: [0; 16] };

/// Tests that count the open files of the process run alone.
static ALONE: RwLock<()> = RwLock::new(());

#[expect(dead_code, reason = "held, not read")]
pub(crate) enum Company {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

pub(crate) fn alone() -> Company {
    let company = Company::Alone(ALONE.write().unwrap_or_else(|poisoned| poisoned.into_inner()));
    // A test that has just ended may drop its files a moment after its guard.
    std::thread::sleep(Duration::from_millis(100));
    company
}

pub(crate) fn shared() -> Company {
    Company::Shared(ALONE.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

pub(crate) struct Driver {
    pub(crate) ring: Ring,
    pub(crate) counters: Arc<Counters>,
    pub(crate) turn: Turn,
    pub(crate) seen: VecDeque<(Token, Event)>,
    pub(crate) wake: EventFd,
    next_socket: u32,
    _company: Company,
}

impl Driver {
    pub(crate) fn new(limits: Limits) -> Self {
        Self::with(limits, shared())
    }

    pub(crate) fn with(limits: Limits, company: Company) -> Self {
        Self::made(limits, company, &[])
    }

    /// Makes a driver with some features masked.
    pub(crate) fn without(features: &[&str]) -> Self {
        Self::made(LIMITS, shared(), features)
    }

    fn made(limits: Limits, company: Company, masked: &[&str]) -> Self {
        // Both ends of each connection are in this process.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let theirs = std::os::fd::AsFd::as_fd(&wake).try_clone_to_owned().unwrap();
        let counters = Arc::new(Counters::new());
        let mut features = Features::probe().unwrap();
        // The suite runs a second time with all features newer than Linux 6.1 masked.
        let newer = std::env::var("RINGWAY_WITHOUT").unwrap_or_default();
        for name in newer.split_whitespace().chain(masked.iter().copied()) {
            features.without(name).unwrap();
        }
        let ring = Ring::new(limits, &features, theirs, counters.clone()).unwrap();
        let (turn, seen) = (Turn::default(), VecDeque::new());
        Self { ring, counters, turn, seen, wake, next_socket: 0, _company: company }
    }

    pub(crate) fn listen(&mut self, transport: Transport, address: &str) -> (Token, SocketAddr) {
        let fd = open(transport, address, 1).pop().unwrap();
        let local = local_address(&fd);
        let id = SocketId(self.next_socket);
        self.next_socket += 1;
        self.ring.listen(id, transport, fd);
        (Token::socket(id), local)
    }

    pub(crate) fn act(&mut self, token: Token, op: Op) {
        self.ring.carry_out(&mut vec![(token, op)], &mut self.turn);
        self.seen.extend(self.turn.events.drain(..));
    }

    /// Carries out several ops in one turn.
    pub(crate) fn act_all(&mut self, mut ops: Vec<(Token, Op)>) {
        self.ring.carry_out(&mut ops, &mut self.turn);
        self.seen.extend(self.turn.events.drain(..));
    }

    /// Makes one turn. Returns false if no event came within the time that only a hanging test
    /// takes.
    pub(crate) fn turn(&mut self) -> bool {
        self.ring.wait(Some(Duration::from_secs(10)), &mut self.turn).unwrap();
        let came = !self.turn.events.is_empty();
        self.seen.extend(self.turn.events.drain(..));
        came
    }

    /// Takes the events that are there, without waiting.
    pub(crate) fn poll(&mut self) {
        self.ring.wait(Some(Duration::ZERO), &mut self.turn).unwrap();
        self.seen.extend(self.turn.events.drain(..));
    }

    /// The first event for which `wanted` has an answer. The events before that one stay.
    pub(crate) fn until<T>(&mut self, wanted: impl Fn(Token, &Event) -> Option<T>) -> T {
        let mut looked_at = 0;
        loop {
            while looked_at < self.seen.len() {
                let (token, event) = self.seen[looked_at];
                if let Some(answer) = wanted(token, &event) {
                    self.seen.remove(looked_at);
                    return answer;
                }
                looked_at += 1;
            }
            let before = self.seen.len();
            for _ in 0..3 {
                if self.seen.len() == before {
                    self.turn();
                }
            }
            assert!(self.seen.len() > before, "no event came; seen: {:?}", self.seen);
        }
    }

    pub(crate) fn accepted(&mut self) -> u32 {
        self.until(|_, event| match event {
            Event::Accepted { incoming, .. } => Some(*incoming),
            _ => None,
        })
    }

    /// Waits for this event.
    pub(crate) fn event(&mut self, token: Token, event: Event) {
        self.until(|at, seen| (at == token && *seen == event).then_some(()));
    }

    /// Carries out a direct `Move`.
    pub(crate) fn step(&mut self, token: Token, from: Side, mode: Mode, budget: u32) -> Event {
        self.act(token, Op::Move { from, mode, budget, to_eof: false });
        let position = self
            .seen
            .iter()
            .position(|(at, event)| *at == token && matches!(event, Event::Moved { .. }));
        self.seen.remove(position.expect("Move is direct")).unwrap().1
    }

    /// Makes a session between a new client and a new endpoint. Returns the token and both far
    /// ends.
    pub(crate) fn session(&mut self, slot: u32, generation: u32) -> (Token, TcpStream, TcpStream) {
        let (socket, address) = self.listen(Transport::Tcp, "127.0.0.1:0");
        let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
        self.act(socket, Op::Accept);
        let client = TcpStream::connect(address).unwrap();
        let incoming = self.accepted();
        let token = session_token(slot, generation);
        self.act(token, Op::Adopt { incoming });
        let address = endpoint.local_addr().unwrap();
        self.act(token, connect_to(address));
        self.event(token, Event::Connected);
        let (accepted, _) = endpoint.accept().unwrap();
        for stream in [&client, &accepted] {
            // Long enough for a slow machine, but not for ever.
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        }
        (token, client, accepted)
    }

    /// Relays, as the proxy does, until both directions have ended or one has failed. Returns the
    /// failure.
    pub(crate) fn relay(&mut self, token: Token, mode: Mode, budget: u32) -> Option<Stop> {
        let mut ended = [false; 2];
        let mut to_eof = [false; 2];
        loop {
            for (index, from) in [Side::Client, Side::Endpoint].into_iter().enumerate() {
                while !ended[index] {
                    self.act(token, Op::Move { from, mode, budget, to_eof: to_eof[index] });
                    let (_, moved) = self.seen.pop_back().unwrap();
                    let Event::Moved { held, stop, .. } = moved else { panic!("{moved:?}") };
                    match stop {
                        Stop::Budget => continue,
                        Stop::Drained | Stop::Blocked => break,
                        Stop::Eof => {
                            assert_eq!(held, 0, "half-close comes after the last byte");
                            self.act(token, Op::Shutdown { side: from.other() });
                            ended[index] = true;
                        }
                        Stop::Failed { .. } => return Some(stop),
                    }
                }
            }
            if ended == [true; 2] {
                return None;
            }
            let (side, ending) = self.until(|at, event| match event {
                Event::Ready { side, ending, .. } if at == token => Some((*side, *ending)),
                _ => None,
            });
            to_eof[usize::from(side == Side::Endpoint)] |= ending;
        }
    }

    pub(crate) fn close(&mut self, token: Token, reset: bool) {
        self.act(token, Op::Close { reset });
        self.event(token, Event::Closed);
    }
}

pub(crate) fn session_token(slot: u32, generation: u32) -> Token {
    Token { kind: Kind::Session, slot, generation }
}

/// An op that connects to an endpoint from any address, by any interface.
pub(crate) fn connect_to(address: SocketAddr) -> Op {
    let address = address.into();
    Op::Connect { address, source: Origin::Any, interface: 0, options: OPTIONS }
}

/// Opens listening sockets. If the address has a port, this process already has a socket on that
/// port.
pub(crate) fn open(transport: Transport, address: &str, workers: usize) -> Vec<OwnedFd> {
    let address: SocketAddr = address.parse().unwrap();
    try_open(transport, address, (workers, 1), address.port() != 0).unwrap()
}

pub(crate) fn try_open(
    transport: Transport,
    address: SocketAddr,
    (workers, seed): (usize, u64),
    rejoins: bool,
) -> io::Result<Vec<OwnedFd>> {
    let socket = Socket {
        id: SocketId(0),
        transport,
        address: address.into(),
        options: OPTIONS,
        reads_hello: false,
        hello_timeout: 0,
        access: None,
        starttls: None,
        on_refusal: OnRefusal::default(),
        default_hostname: None,
        not_tls: None,
        silent: None,
        bind: Bind::default(),
        accept_proxy: AcceptProxy::default(),
        listeners: Hosts::new([0; 4]),
    };
    open_listeners(&socket, workers, rejoins, false, seed)
}

pub(crate) fn local_address(fd: &OwnedFd) -> SocketAddr {
    socket2::SockRef::from(fd).local_addr().unwrap().as_socket().unwrap()
}

/// Pseudorandom bytes, so that lost or misplaced bytes show.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}
