//! The UDP half of the simulated kernel: listening and upstream sockets, receive buffers, trains.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{BufferId, Event, Kind, Part, SHARED_SOCKETS, Token, Why};
use ringway::wire::proxy_header::read::Header;
use ringway::wire::proxy_header::read::{read, read_datagram};

use crate::coverage::{Fault, State};
use crate::kernel::{Kernel, Pending, Turn};

/// Who a datagram belongs to: all that a client's flow is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exchange {
    pub socket: SocketId,
    pub client: SocketAddr,
    /// Who the client is by the header of the proxy that `client` is then.
    pub says: Option<SocketAddr>,
    /// The address that the client spoke to.
    pub local: IpAddr,
}

/// A datagram, or a train of them, tagged with the client whose exchange it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub exchange: Exchange,
    /// Counts a client's datagrams; a reply has the number of what it answers.
    pub number: u32,
    /// Payload bytes in all.
    pub bytes: u32,
    pub count: u32,
    pub truncated: bool,
    /// A proxy's: which of the kernel's trains it is.
    pub train: Option<usize>,
}

impl Exchange {
    fn source(&self) -> SocketAddr {
        self.says.unwrap_or(self.client)
    }
}

#[derive(Debug)]
pub(crate) struct HeldBuffer {
    token: Token,
    pub(crate) datagram: Datagram,
    /// So many of its datagrams were sent, or passed over.
    answered: u32,
    /// On a shared socket.
    came: Option<Pair>,
}

/// Between an upstream socket and an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The source port. It is free again, and the next socket's, when its socket is closed.
    pub port: u32,
    pub endpoint: SocketAddr,
    /// The source address, of a shared socket.
    pub local: Option<IpAddr>,
}

/// What tells the flows of a shared socket apart.
pub(crate) type Pair = (SocketAddr, IpAddr);

/// What the ring has of an upstream socket.
#[derive(Debug)]
pub struct Upstream {
    pub token: Token,
    pub port: u32,
    /// `None`: shared, for all endpoints of its IP version.
    address: Option<SocketAddr>,
    /// Whose datagrams it last carried; `None` until the first, and after that flow's end.
    serves: Option<Exchange>,
    /// The same of a shared one.
    pairs: BTreeMap<Pair, Use>,
    armed: bool,
    /// `Receive` was asked for since the last turn.
    told: bool,
    closing: bool,
    /// When it last stopped for an error of the machine's, and when receiving may be asked for
    /// again, microseconds.
    pub(crate) stopped: u64,
    pause_until: u64,
    /// An ICMP port unreachable has come.
    refused: bool,
    received: VecDeque<(Datagram, Option<Pair>)>,
}

/// Whose datagrams last went a way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    /// The flow's upstream slot.
    slot: u32,
    exchange: Exchange,
    /// When that flow ended, microseconds.
    ended: Option<u64>,
}

/// Datagrams that fit a socket's receive queue; more are dropped, as Linux does.
const QUEUE: usize = 256;

/// Bytes of the largest datagram that goes to an endpoint in one packet.
const WHOLE: u32 = 500;

impl Use {
    /// Whether replies to it, late as they may be, are all there: then the way may be another's.
    fn gives_way(&self, to: Exchange, now: u64, rest: u64) -> bool {
        self.exchange == to || self.ended.is_some_and(|ended| now >= ended + rest)
    }
}

impl Upstream {
    pub fn is_receiving(&self) -> bool {
        self.armed || self.closing
    }

    pub fn state(&self) -> State {
        let serves = self.serves.is_some() || self.pairs.values().any(|used| used.ended.is_none());
        match (self.closing, serves) {
            (true, _) => State::Ending,
            (false, true) => State::Live,
            (false, false) => State::Resting,
        }
    }

    /// Whether this is the exchange whose datagrams it expects there.
    fn expects(&self, exchange: Exchange, pair: Option<Pair>) -> bool {
        match pair {
            None => self.serves == Some(exchange),
            Some(pair) => self
                .pairs
                .get(&pair)
                .is_some_and(|used| used.exchange == exchange && used.ended.is_none()),
        }
    }
}

// ---- What peers do ----
impl Kernel {
    /// A client sends; a socket that is not there, or is being closed, hears nothing.
    pub fn client_sends(&mut self, datagram: Datagram) {
        let id = datagram.exchange.socket;
        let Some(socket) = self.listening.get_mut(&id).filter(|s| !s.ending) else { return };
        assert_eq!(socket.transport, Transport::Udp);
        if socket.received.len() < QUEUE {
            socket.received.push_back((datagram, None));
            self.soon(Pending::Receive(Token::socket(id)));
        }
    }

    /// An endpoint answers whatever holds that source port now.
    pub fn endpoint_sends(&mut self, path: Path, datagram: Datagram) {
        let upstream = self.upstream_at(path);
        let Some(upstream) = upstream else { return };
        let pair = path.local.map(|local| (path.endpoint, local));
        if !upstream.expects(datagram.exchange, pair) {
            let state = upstream.state();
            if state != State::Live {
                self.coverage.hit(state, Fault::LateReply);
            }
        }
        let upstream = self.upstream_at(path).expect("found above");
        if upstream.received.len() < QUEUE {
            upstream.received.push_back((datagram, pair));
            let token = upstream.token;
            self.soon(Pending::Receive(token));
        }
    }

    /// An endpoint's port is closed: what was sent there comes back as ICMP.
    pub fn endpoint_refuses(&mut self, path: Path) {
        let upstream = self.upstream_at(path);
        // Of many peers' errors, a shared socket hears none.
        let Some(upstream) = upstream.filter(|u| u.address.is_some()) else { return };
        upstream.refused = true;
        let token = upstream.token;
        self.soon(Pending::Receive(token));
    }

    /// The flow of this exchange is over: its upstream socket rests from now on.
    pub fn flow_is_over(&mut self, client: SocketAddr) {
        for upstream in self.upstreams.values_mut() {
            if upstream.serves.is_some_and(|e| e.source() == client) {
                upstream.serves = None;
                self.refused.remove(&upstream.token);
            }
        }
        let pairs = self.upstreams.values_mut().flat_map(|upstream| upstream.pairs.values_mut());
        let used = pairs.chain(self.used.values_mut());
        for used in used.filter(|used| used.exchange.source() == client) {
            used.ended.get_or_insert(self.now);
        }
    }

    /// The socket that takes what comes this way: a connected one, from its endpoint only.
    fn upstream_at(&mut self, path: Path) -> Option<&mut Upstream> {
        let takes = |u: &Upstream| match u.address {
            Some(address) => path.local.is_none() && address == path.endpoint,
            None => path.local.is_some(),
        };
        self.upstreams.values_mut().find(|u| u.port == path.port && takes(u))
    }
}

// ---- What the ring does for the proxy ----
impl Kernel {
    pub(crate) fn receive(&mut self, token: Token) {
        let now = self.now;
        match token.kind {
            Kind::Socket => {
                let socket = self.listening_socket(token, Transport::Udp);
                assert!(!socket.armed, "Receive while receiving");
                if socket.followed {
                    // Its successor says that it has stopped, and is told then.
                    return;
                }
                assert!(!socket.ending, "Receive after Unlisten");
                assert!(now >= socket.pause_until, "Receive without a pause after an error");
                socket.armed = true;
            }
            // Asked for together with an Open that failed.
            Kind::Upstream if self.open_failed.contains(&token) => return,
            Kind::Upstream => {
                let upstream = self.upstream(token);
                assert!(!upstream.armed, "Receive while receiving");
                assert!(now >= upstream.pause_until, "Receive without a pause after an error");
                upstream.armed = true;
                upstream.told = true;
            }
            Kind::Session => panic!("Receive on a session"),
        }
        self.soon(Pending::Receive(token));
    }

    /// What shared sockets hold when they are told to receive comes with the next turn, before all
    /// else, as it does on Linux: a receive that finds something completes at its submission.
    pub(crate) fn receive_at_once(&mut self, turn: &mut Turn) {
        let told = |u: &mut &mut Upstream| u.address.is_none() && std::mem::take(&mut u.told);
        let told = self.upstreams.values_mut().filter_map(|mut u| told(&mut u).then_some(u.token));
        let tokens: Vec<_> = told.collect();
        for token in tokens {
            self.receive_all(token, turn);
        }
    }

    fn upstream(&mut self, token: Token) -> &mut Upstream {
        let upstream = self.upstreams.get_mut(&token.slot).filter(|u| u.token == token);
        let upstream = upstream.expect("op on an upstream socket that is over");
        assert!(!upstream.closing, "op on an upstream socket after CloseUpstream");
        upstream
    }

    /// All that an armed socket has: a multishot goes on until its queue is empty or it ends.
    pub(crate) fn receive_all(&mut self, token: Token, turn: &mut Turn) {
        while self.receive_one(token, turn) {}
    }

    fn receive_one(&mut self, token: Token, turn: &mut Turn) -> bool {
        let state = self.upstreams.get(&token.slot).filter(|u| u.token == token);
        let state = state.filter(|_| token.kind == Kind::Upstream).map(Upstream::state);
        let (armed, received, refused) = match token.kind {
            Kind::Socket => match self.listening.get_mut(&SocketId(token.slot)) {
                Some(s) if !s.ending => (&mut s.armed, &mut s.received, None),
                _ => return false,
            },
            _ => match self.upstreams.get_mut(&token.slot).filter(|u| u.token == token) {
                Some(u) => (&mut u.armed, &mut u.received, Some(&mut u.refused)),
                None => return false,
            },
        };
        if !*armed {
            return false;
        }
        if refused.is_some_and(std::mem::take) {
            *armed = false;
            self.stopped(token, state, Some(Why::Refused), Fault::ReceiveStopped, turn);
            self.is_refused(token);
            return false;
        }
        if received.is_empty() {
            return false;
        }
        if self.rng.per_mille(self.faults.exhausted) {
            *armed = false;
            self.pause(token);
            let why = self.rng.pick(&[Why::NoMemory, Why::Blocked, Why::TooBig, Why::Other(5)]);
            self.stopped(token, state, Some(why), Fault::ReceiveFailed, turn);
            return false;
        }
        if self.buffers.len() >= usize::from(self.limits.buffers) {
            *armed = false;
            self.stopped(token, state, None, Fault::NoBuffer, turn);
            return false;
        }
        let (mut datagram, came) = received.pop_front().expect("not empty");
        // A zero-length datagram ends the multishot.
        let ended = datagram.bytes == 0 || self.rng.per_mille(self.faults.stop);
        *armed = !ended;
        if self.rng.per_mille(self.faults.truncate) {
            datagram.truncated = true;
            self.hit_upstream(state, Fault::Truncated);
        }
        self.hand_up(token, datagram, came, turn);
        if ended {
            self.stopped(token, state, None, Fault::ReceiveStopped, turn);
        }
        !ended
    }

    /// The machine lacks something: who asks again at once is told the same.
    fn pause(&mut self, token: Token) {
        let times = match token.kind {
            Kind::Socket => {
                let socket = self.listening.get_mut(&SocketId(token.slot)).expect("it received");
                (&mut socket.stopped, &mut socket.pause_until)
            }
            _ => {
                let upstream = self.upstreams.get_mut(&token.slot).expect("it received");
                (&mut upstream.stopped, &mut upstream.pause_until)
            }
        };
        (*times.0, *times.1) = (self.now, self.now + 2_000);
    }

    /// The proxy is told that the port is closed to which this socket is connected.
    fn is_refused(&mut self, token: Token) {
        let upstream = self.upstreams.get(&token.slot).filter(|u| u.token == token);
        if let Some(Upstream { address: Some(address), serves, .. }) = upstream {
            self.closed_ports.insert(*address, self.now);
            if serves.is_some() {
                self.refused.insert(token, self.turn);
            }
        }
    }

    fn stopped(
        &mut self,
        token: Token,
        state: Option<State>,
        why: Option<Why>,
        fault: Fault,
        turn: &mut Turn,
    ) {
        self.hit_upstream(state, fault);
        self.event(token, Event::Stopped { why }, turn);
    }

    /// A fault of one upstream socket, or, on a listening socket, of all that there are.
    fn hit_upstream(&mut self, state: Option<State>, fault: Fault) {
        match state {
            Some(state) => self.coverage.hit(state, fault),
            None => {
                for upstream in self.upstreams.values() {
                    self.coverage.hit(upstream.state(), fault);
                }
            }
        }
    }

    /// Gives a datagram to the proxy in a buffer.
    pub(crate) fn hand_up(
        &mut self,
        token: Token,
        datagram: Datagram,
        came: Option<Pair>,
        turn: &mut Turn,
    ) {
        let free = (0..self.limits.buffers).find(|n| !self.buffers.contains_key(n));
        let Some(buffer) = free else { return };
        self.buffers.insert(buffer, HeldBuffer { token, datagram, answered: 0, came });
        let listening = token.kind == Kind::Socket;
        let upstream = self.upstreams.get(&token.slot).filter(|u| u.token == token);
        if let Some(pair) = came
            && upstream.is_some_and(|u| !u.pairs.contains_key(&pair))
        {
            self.strangers += u64::from(datagram.count);
        }
        let client = listening.then_some(datagram.exchange.client);
        let wildcard = self
            .listening
            .get(&datagram.exchange.socket)
            .is_some_and(|s| s.address.ip().is_unspecified());
        let event = Event::Datagrams {
            buffer: BufferId(buffer),
            peer: came.map_or(client, |(endpoint, _)| Some(endpoint)),
            local: match came {
                Some((_, local)) => Some(local),
                None => (listening && wildcard).then_some(datagram.exchange.local),
            },
            bytes: datagram.bytes,
            size: match datagram.train {
                Some(train) if datagram.count > 1 => self.trains[train].size,
                _ => datagram.bytes.div_ceil(datagram.count),
            },
            count: datagram.count,
            truncated: datagram.truncated,
        };
        self.event(token, event, turn);
    }

    fn take_buffer(&mut self, buffer: BufferId) -> HeldBuffer {
        self.buffers.remove(&buffer.0).expect("a buffer is given back twice")
    }

    pub(crate) fn recycle(&mut self, token: Token, buffer: BufferId) {
        let held = self.take_buffer(buffer);
        assert_eq!(held.token, token, "Recycle by another token than it was received on");
    }

    /// Without an address: a shared socket.
    pub(crate) fn open(&mut self, token: Token, address: Option<SocketAddr>, turn: &mut Turn) {
        assert_eq!(token.kind, Kind::Upstream);
        assert!(!self.upstreams.contains_key(&token.slot), "Open into a slot that is in use");
        assert!(token.slot < self.limits.flows + SHARED_SOCKETS, "a slot beyond the limit");
        let shared = self.upstreams.values().filter(|u| u.address.is_none() && !u.closing);
        assert!(address.is_some() || shared.count() == 0, "more shared sockets than one");
        let (until, turn_of_it) = self.no_ports;
        let allowed = self.now >= until || self.turn == turn_of_it;
        assert!(allowed, "Open without a pause after source ports ran out");
        let free: Vec<u32> = (1..=self.ports)
            .filter(|port| self.upstreams.values().all(|upstream| upstream.port != *port))
            .collect();
        if free.is_empty() || self.rng.per_mille(self.faults.open_fails) {
            self.coverage.hit(State::Live, Fault::OpenFailed);
            let other = self.rng.pick(&[Why::NoPorts, Why::NoFiles, Why::NoMemory]);
            let why = if free.is_empty() { Why::NoPorts } else { other };
            if why == Why::NoPorts {
                self.no_ports = (self.now + 9_000, self.turn);
            }
            self.open_failed.push(token);
            self.event(token, Event::OpenFailed { why }, turn);
            return;
        }
        self.use_slot(token);
        self.open_failed.retain(|failed| *failed != token);
        let port = self.rng.pick(&free);
        self.upstreams.insert(
            token.slot,
            Upstream {
                token,
                port,
                address,
                serves: None,
                pairs: BTreeMap::new(),
                armed: false,
                told: false,
                closing: false,
                stopped: 0,
                pause_until: 0,
                refused: false,
                received: VecDeque::new(),
            },
        );
    }

    pub(crate) fn send_up(&mut self, token: Token, buffer: BufferId, part: Part, turn: &mut Turn) {
        let datagram = self.take_from_client(token, buffer, part, turn);
        if self.open_failed.contains(&token) {
            return;
        }
        let upstream = self.upstream(token);
        let exchange = datagram.exchange;
        upstream.serves = Some(exchange);
        let endpoint = upstream.address.expect("SendUp on a shared socket");
        let path = Path { port: upstream.port, endpoint, local: None };
        if self.refused.remove(&token).is_some_and(|turn| turn < self.turn) {
            self.fed.push(endpoint);
        }
        let used = Use { slot: token.slot, exchange, ended: None };
        if let Some(before) = self.used.insert((path.port, endpoint), used) {
            let gives_way = before.gives_way(exchange, self.now, self.rest_of(endpoint));
            assert!(gives_way, "{path:?} carries {exchange:?} too soon after {before:?}");
        }
        self.send_on(token, path, datagram);
    }

    pub(crate) fn send_via(
        &mut self,
        token: Token,
        (buffer, part): (BufferId, Part),
        via: u32,
        pair @ (endpoint, local): Pair,
        turn: &mut Turn,
    ) {
        let datagram = self.take_from_client(token, buffer, part, turn);
        assert!(!self.upstreams.contains_key(&token.slot), "a flow's slot has a socket");
        if self.open_failed.iter().any(|failed| failed.slot == via) {
            return;
        }
        let (now, rest) = (self.now, self.rest_of(endpoint));
        let shared = self.upstreams.get_mut(&via).expect("SendVia no socket");
        assert!(shared.address.is_none() && !shared.closing, "SendVia a socket that is not shared");
        let exchange = datagram.exchange;
        if let Some(before) = shared.pairs.get(&pair) {
            let gives_way = before.gives_way(exchange, now, rest);
            assert!(gives_way, "{pair:?} carries {exchange:?} too soon after {before:?}");
        }
        shared.pairs.insert(pair, Use { slot: token.slot, exchange, ended: None });
        let path = Path { port: shared.port, endpoint, local: Some(local) };
        self.send_on(token, path, datagram);
    }

    fn rest_of(&self, endpoint: SocketAddr) -> u64 {
        self.rests.get(&endpoint).copied().unwrap_or(0)
    }

    /// What is sent to an endpoint of a buffer, which is given back with its last part.
    fn take_from_client(
        &mut self,
        token: Token,
        buffer: BufferId,
        part: Part,
        turn: &mut Turn,
    ) -> Datagram {
        let held = self.buffers.get_mut(&buffer.0).expect("a buffer is given back twice");
        let whole = held.datagram;
        assert_eq!(held.token.kind, Kind::Socket, "an endpoint is sent what an endpoint sent");
        assert!(!whole.truncated, "a truncated datagram is forwarded");
        let first = u32::from(part.first);
        let end = if part.count == 0 { whole.count } else { first + u32::from(part.count) };
        let in_order = held.answered <= first && first < end && end <= whole.count;
        assert!(in_order && part.more == (end < whole.count), "{part:?} of {whole:?}");
        held.answered = end;
        if !part.more {
            self.take_buffer(buffer);
        }
        let (datagram, sizes) = match whole.train {
            Some(train) => self.trains[train].part(first as usize..end as usize, part.strip, whole),
            None => {
                assert_eq!((first, end, part.strip), (0, whole.count, 0), "it has no header");
                (whole, vec![whole.bytes / whole.count; whole.count as usize])
            }
        };
        self.introduced(part, datagram.exchange.source());
        let grown = |size: &&u32| **size <= WHOLE && WHOLE < **size + u32::from(part.head.1);
        let count = sizes.iter().filter(grown).count() as u32;
        if count > 0 {
            self.fragmented += u64::from(count);
            self.event(token, Event::Fragmented { count }, turn);
        }
        datagram
    }

    /// An endpoint that is told whose a datagram is, is told the truth.
    fn introduced(&self, part: Part, client: SocketAddr) {
        let (start, len) = (part.head.0 as usize, usize::from(part.head.1));
        let head = &self.output[start..][..len];
        if head.is_empty() {
            return;
        }
        // The model gives backends to listeners of every protocol; the compiler allows version 2.
        let read = match head.starts_with(b"PROXY ") {
            true => match read(head) {
                Header::Known { len, addresses } => Ok((len, addresses)),
                other => panic!("an endpoint was told {other:?}"),
            },
            false => read_datagram(head),
        };
        let (whole, addresses) = read.expect("a header");
        let source = addresses.map(|addresses| addresses.source);
        assert_eq!((whole, source), (len, Some(client)), "what an endpoint was told");
    }

    fn send_on(&mut self, token: Token, path: Path, datagram: Datagram) {
        // A flow that was given another endpoint has left its socket or pair.
        if let Some(before) = self.ways.insert(datagram.exchange, path).filter(|old| *old != path)
            && let Some(used) = self.used.get_mut(&(before.port, before.endpoint))
            && used.exchange == datagram.exchange
        {
            used.ended.get_or_insert(self.now);
        }
        let carried = Some(datagram.exchange);
        for left in self.upstreams.values_mut() {
            if left.serves == carried && left.token != token {
                left.serves = None;
                self.refused.remove(&left.token);
            }
        }
        for shared in self.upstreams.values_mut() {
            for ((endpoint, local), used) in &mut shared.pairs {
                if used.exchange == datagram.exchange
                    && (*endpoint, Some(*local)) != (path.endpoint, path.local)
                {
                    used.ended.get_or_insert(self.now);
                }
            }
        }
        if self.rng.per_mille(self.faults.send_fails) {
            let why = self.rng.pick(&[
                if path.local.is_none() { Why::Refused } else { Why::BadSource },
                Why::Blocked,
                Why::TooBig,
                Why::NoMemory,
                Why::Other(1),
            ]);
            let refused = why == Why::Refused;
            let fault = if refused { Fault::SendRefused } else { Fault::SendFailed };
            self.coverage.hit(State::Live, fault);
            self.soon(Pending::SendFailed(token, why, datagram.count));
            return;
        }
        self.sent_up.push((path, datagram));
    }

    pub(crate) fn send_down(
        &mut self,
        token: Token,
        buffer: BufferId,
        from: u32,
        peer: SocketAddr,
        local: Option<IpAddr>,
    ) {
        let HeldBuffer { token: upstream, datagram, came, .. } = self.take_buffer(buffer);
        let Exchange { socket, client, local: spoken_to, .. } = datagram.exchange;
        assert_eq!(upstream.kind, Kind::Upstream, "SendDown of what a client sent");
        let slot = match came {
            None => upstream.slot,
            Some(pair) => {
                let shared = self.upstreams.get(&upstream.slot);
                let used = shared.and_then(|shared| shared.pairs.get(&pair));
                used.expect("a stranger's datagram is forwarded").slot
            }
        };
        assert_eq!(slot, from, "SendDown names another upstream slot");
        assert!(!datagram.truncated, "a truncated datagram is forwarded");
        assert_eq!(peer, client, "a reply reaches another client (quarantine)");
        assert_eq!(token, Token::socket(socket), "a reply leaves by another listening socket");
        let listening = self.listening_socket(token, Transport::Udp);
        assert!(!listening.ending, "SendDown after Unlisten");
        let wildcard = listening.address.ip().is_unspecified();
        if wildcard || local.is_some() {
            assert_eq!(local, Some(spoken_to), "a reply leaves from another address");
        }
        if self.rng.per_mille(self.faults.send_fails) {
            let why = self.rng.pick(&[Why::Blocked, Why::NoMemory, Why::Other(1)]);
            self.coverage.hit(State::Live, Fault::SendFailed);
            self.soon(Pending::SendFailed(token, why, datagram.count));
            return;
        }
        self.sent_down.push(datagram);
    }

    pub(crate) fn send_failed(&mut self, token: Token, why: Why, count: u32, turn: &mut Turn) {
        let there = match token.kind {
            Kind::Socket => self.listening.contains_key(&SocketId(token.slot)),
            // The slot of a flow on a shared socket has nothing in the ring.
            _ => self.upstreams.get(&token.slot).is_none_or(|u| u.token == token),
        };
        if there {
            self.event(token, Event::SendFailed { why, count }, turn);
        }
        if there && why == Why::Refused {
            self.is_refused(token);
        }
    }

    pub(crate) fn close_upstream(&mut self, token: Token) {
        if self.open_failed.contains(&token) {
            return;
        }
        let upstream = self.upstream(token);
        upstream.closing = true;
        if token.generation > 0 && self.rng.per_mille(self.faults.dead) {
            let dead = Token { generation: token.generation - 1, ..token };
            self.at(self.now, Pending::Dead(dead));
        }
        // A receive that is armed may still complete before the cancellation does.
        let at = self.closing_time();
        self.at(at, Pending::Closed(token));
    }

    pub(crate) fn upstream_closed(&mut self, token: Token, turn: &mut Turn) {
        self.upstreams.remove(&token.slot);
        self.event(token, Event::Closed, turn);
        self.haunt(token);
    }
}
