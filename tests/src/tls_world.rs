//! A session that speaks TLS, in a small world of its own: bytes are real here, and both peers are
//! rustls' buffered connections. A seed makes the cuts, the order of ends, and the faults.
//!
//! The seed decides all that happens but for keys and nonces, which ring draws itself and rustls'
//! API gives no way to replace: so bytes differ from run to run, and their number does not (see
//! `pki`). What the schedule depends on is their number alone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::compile::compile;
use config_sync::config::{self, Origination, Termination};
use config_sync::names::Names;
use config_sync::routing::Limits;
use ringway::proxy::Proxy;
use ringway::proxy::counters::Counters;
use ringway::proxy::op::{Event, Op, Side, Stop, Token, Why};
use ringway::proxy::record::{CloseReason, Record, SessionRecord};

use crate::pki::{Pki, inline};
use crate::rng::Rng;
use crate::tls_peer::TlsPeer;

/// Which sides speak TLS with the gateway, and how the session goes wrong. With none, TLS passes
/// through.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub client: bool,
    pub endpoint: bool,
    /// The client may ask for TLS as PostgreSQL's do, and does so: for GSSAPI's first, or not.
    pub starttls: Option<bool>,
    /// TLS 1.2 on both sides.
    pub old: bool,
    pub fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// A side ends its connection without close_notify.
    Truncation(Side),
    Reset(Side),
    /// A byte is flipped on its way from this side.
    Corruption(Side),
    /// Bytes come behind the client's request for TLS, or the endpoint's answer is none or more.
    Words(Side),
}

impl Case {
    /// The peers, which speak PostgreSQL's words before TLS.
    fn in_words(
        &self,
        rng: &mut Rng,
        gss: bool,
        client: TlsPeer,
        endpoint: TlsPeer,
    ) -> (TlsPeer, TlsPeer) {
        let wrong = |side| self.fault == Fault::Words(side);
        let client = client.asking(gss, if wrong(Side::Client) { b"Q" } else { b"" });
        if !endpoint.speaks_tls() {
            return (client, endpoint);
        }
        let bad = rng.pick(&[b"N", b"E"]);
        (client, endpoint.asked(if wrong(Side::Endpoint) { bad } else { b"S" }))
    }

    pub fn random(rng: &mut Rng) -> Self {
        let (client, endpoint) =
            rng.pick(&[(true, false), (false, true), (true, true), (false, false)]);
        let through = !client && !endpoint;
        let asks = through || (client && rng.per_mille(300));
        let starttls = asks.then(|| rng.per_mille(300));
        let side = rng.pick(&[Side::Client, Side::Endpoint]);
        let speaks = if side == Side::Client { client } else { endpoint };
        let fault = match rng.below(6) {
            0 => Fault::Reset(side),
            1 | 2 if asks && (side == Side::Client || endpoint || through) => Fault::Words(side),
            // Peers that a fault leaves within their handshake would wait for each other for ever.
            _ if through => Fault::None,
            1 if speaks => Fault::Truncation(side),
            2 if speaks => Fault::Corruption(side),
            _ => Fault::None,
        };
        Self { client, endpoint, starttls, old: rng.per_mille(300), fault }
    }
}

/// Runs one session to its end, and checks what both peers have heard.
pub fn run(seed: u64) -> CloseReason {
    let mut rng = Rng::new(seed);
    let case = Case::random(&mut rng);
    let mut world = World::new(rng, case);
    world.live();
    world.check()
}

/// One connection as the ring has it.
#[derive(Default)]
struct Wire {
    inbound: VecDeque<u8>,
    outbound: VecDeque<u8>,
    capacity: usize,
    /// The peer has sent its FIN; the proxy has.
    fin_in: bool,
    fin_out: bool,
    failed: bool,
    was_reset: bool,
    lowat: usize,
    /// A `Give` was cut short.
    blocked: bool,
    news: bool,
    writable: bool,
}

struct World {
    rng: Rng,
    case: Case,
    proxy: Proxy,
    now: u64,
    events: VecDeque<(Token, Event)>,
    ops: Vec<(Token, Op)>,
    bytes: Vec<u8>,
    output: Vec<u8>,
    session: Option<Token>,
    wires: [Wire; 2],
    connected: bool,
    peers: [TlsPeer; 2],
    /// When the fault strikes: after so many acts of peers.
    strike: u64,
    closing: bool,
    closed: bool,
    record: Option<SessionRecord>,
}

const TEXT: &str = r#"
[[listeners]]
name = "l"
protocol = "PROTOCOL"
address = "10.0.0.1:443"
[[routes]]
name = "r"
listeners = ["l"]
backends = [{ name = "b" }]
[[backends]]
name = "b"
endpoints = ["10.0.1.1:80"]
"#;

const LIMITS: Limits = Limits {
    sessions: 4,
    flows: 1,
    buffers: 1,
    pipes: 1,
    turn_bytes: 1 << 18,
    bulk_bytes: 1 << 20,
};

const NAME: &str = "db.example.com";

impl World {
    fn new(mut rng: Rng, case: Case) -> Self {
        let pki = Pki::shared();
        let issued = pki.issue(&[NAME]);
        let through = !case.client && !case.endpoint;
        let protocol = if case.client || through { "TLS" } else { "TCP" };
        let mut text = TEXT.replace("PROTOCOL", protocol);
        if case.starttls.is_some() {
            text = text.replace("[[routes]]", "starttls = \"postgres\"\n[[routes]]");
        }
        let mut config = config::parse("world", &text).expect("a configuration");
        config.listeners[0].tls = case.client.then(|| Termination {
            certificates: vec![issued.configured()],
            ..Termination::default()
        });
        config.backends[0].tls = case.endpoint.then(|| Origination {
            server_name: NAME.to_owned(),
            ca: Some(inline("ca", &pki.ca())),
            certificate: None,
            subject_alt_names: Vec::new(),
        });
        let table = compile(&config, &mut Names::new(), 1).expect("a table");
        let mut proxy = Proxy::new(LIMITS, rng.number(), Arc::new(Counters::new()));
        proxy.set_epoch(1_900_000_000_000_000);
        let mut ops = Vec::new();
        let socket = Token::socket(table.sockets[0].id);
        proxy.apply(1, Arc::new(table), &mut ops);
        ops.clear();
        let mut data = |stream: u8| -> Vec<u8> {
            let len = rng.scale(1, 1 << 19) as usize;
            (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(stream)).collect()
        };
        let (up, down) = (data(1), data(2));
        let mut client = match case.client || through {
            true => TlsPeer::client(pki, NAME, case.old, up),
            false => TlsPeer::plain(up),
        };
        let mut endpoint = match case.endpoint || through {
            true => TlsPeer::server(&issued, case.old, down),
            false => TlsPeer::plain(down),
        };
        if let Some(gss) = case.starttls {
            (client, endpoint) = case.in_words(&mut rng, gss, client, endpoint);
        }
        let mut wire = || Wire { capacity: rng.scale(1_024, 1 << 18) as usize, ..Wire::default() };
        let wires = [wire(), wire()];
        let local: SocketAddr = "10.0.0.1:443".parse().expect("an address");
        let peer = "10.9.9.9:999".parse().expect("an address");
        let events = [(socket, Event::Accepted { incoming: 0, peer, local })];
        Self {
            strike: rng.scale(1, 200),
            rng,
            case,
            proxy,
            now: 1,
            events: events.into(),
            ops,
            bytes: Vec::new(),
            output: Vec::new(),
            session: None,
            wires,
            connected: false,
            peers: [client, endpoint],
            closing: false,
            closed: false,
            record: None,
        }
    }

    fn live(&mut self) {
        for act in 0.. {
            assert!(act < 200_000, "{:?}: the session does not come to its end", self.case);
            // A byte that was changed may stand in a length: then only a timeout ends the wait.
            self.now += if act < 20_000 { 10 } else { 10_000 };
            self.act(act);
            self.tell();
            self.turn();
            if self.closed && self.wires.iter().all(|wire| wire.outbound.is_empty()) {
                return;
            }
        }
    }

    /// A peer does something.
    fn act(&mut self, act: u64) {
        let side = self.rng.below(if self.connected { 2 } else { 1 }) as usize;
        if act >= self.strike && !self.closing && self.strike_now() {
            self.strike = u64::MAX;
            return;
        }
        let (wire, peer) = (&mut self.wires[side], &mut self.peers[side]);
        if self.rng.per_mille(500) {
            let some = (self.rng.scale(1, 1 << 16) as usize).min(wire.outbound.len());
            let heard: Vec<_> = wire.outbound.drain(..some).collect();
            peer.hear(&heard);
            if wire.blocked && wire.outbound.len() * 3 <= wire.capacity * 2 {
                wire.blocked = false;
                wire.writable = true;
            }
            return;
        }
        if wire.fin_in || wire.failed || wire.was_reset || self.closed {
            return;
        }
        let room = wire.capacity.saturating_sub(wire.inbound.len());
        let said = peer.speak(&mut self.rng, room);
        wire.news |= !said.is_empty();
        wire.inbound.extend(said);
        if peer.is_done() {
            wire.fin_in = true;
            wire.news = true;
        }
    }

    fn strike_now(&mut self) -> bool {
        let (side, fault) = match self.case.fault {
            Fault::None | Fault::Words(_) => return true,
            Fault::Truncation(side) | Fault::Reset(side) | Fault::Corruption(side) => {
                (side as usize, self.case.fault)
            }
        };
        let wire = &mut self.wires[side];
        if (side == 1 && !self.connected) || wire.fin_in {
            return false;
        }
        match fault {
            Fault::Truncation(_) => wire.fin_in = true,
            Fault::Reset(_) => wire.failed = true,
            _ => match wire.inbound.back_mut() {
                Some(byte) => *byte ^= 1,
                None => return false,
            },
        }
        wire.news = true;
        true
    }

    /// What polls would say.
    fn tell(&mut self) {
        let Some(token) = self.session.filter(|_| !self.closing) else { return };
        for side in [Side::Client, Side::Endpoint] {
            let wire = &mut self.wires[side as usize];
            let ending = wire.fin_in || wire.failed;
            let readable = wire.news && (wire.inbound.len() >= wire.lowat || ending);
            if (readable || wire.writable) && self.rng.per_mille(700) {
                let (failed, writable) = (wire.failed, wire.writable);
                wire.news &= !readable;
                wire.writable = false;
                self.events
                    .push_back((token, Event::Ready { side, readable, writable, ending, failed }));
            }
        }
    }

    /// The worker's turn.
    fn turn(&mut self) {
        loop {
            while let Some((token, event)) = self.events.pop_front() {
                self.proxy.handle(self.now, token, event, &self.bytes, &mut self.ops);
            }
            self.bytes.clear();
            if self.ops.is_empty() {
                break;
            }
            std::mem::swap(self.proxy.output(), &mut self.output);
            for (token, op) in std::mem::take(&mut self.ops) {
                self.carry_out(token, op);
            }
            self.output.clear();
        }
        self.proxy.expire(self.now, &mut self.ops);
        self.proxy.resume(self.now, &mut self.ops);
        for record in self.proxy.records().drain(..) {
            if let Record::Closed(record) = record {
                assert!(self.record.replace(record).is_none(), "closed twice");
            }
        }
    }

    fn carry_out(&mut self, token: Token, op: Op) {
        match op {
            Op::Accept => {}
            Op::Adopt { .. } => self.session = Some(token),
            Op::Peek { at_least } => {
                let wire = &mut self.wires[0];
                wire.lowat = at_least as usize;
                let len = wire.inbound.len() as u32;
                self.bytes.clear();
                self.bytes.extend(&wire.inbound);
                self.events.push_back((token, Event::Peeked { start: 0, len, end: wire.fin_in }));
            }
            Op::Connect { .. } => {
                self.connected = true;
                self.events.push_back((token, Event::Connected));
            }
            Op::Take { from, at_most, to_eof } => self.take(token, from, at_most as usize, to_eof),
            Op::Move { from, budget, to_eof, .. } => {
                self.move_bytes(token, from, budget as usize, to_eof);
            }
            // No buffer is free.
            Op::Stream { from } => self.moved(token, from, 0, Stop::Budget),
            Op::Mark { from, at_least } => {
                let wire = &mut self.wires[from as usize];
                wire.lowat = at_least as usize;
                wire.news |= !wire.inbound.is_empty();
            }
            Op::Unpace { .. } => {}
            Op::Give { to, start, len } => self.give(token, to, start as usize, len as usize),
            Op::Shutdown { side } => {
                let wire = &mut self.wires[side as usize];
                assert!(!wire.fin_out, "Shutdown twice");
                wire.fin_out = true;
            }
            Op::Close { reset } => self.close(token, reset),
            other => panic!("{other:?} in a session of one connection each"),
        }
    }

    fn take(&mut self, token: Token, from: Side, at_most: usize, to_eof: bool) {
        let wire = &mut self.wires[from as usize];
        wire.lowat = 0;
        let mut len = at_most.min(wire.inbound.len());
        if len > 1 && self.rng.per_mille(100) {
            // The rest comes a moment later.
            len = self.rng.between(1, len as u64 - 1) as usize;
            wire.news = true;
        }
        let start = self.bytes.len();
        self.bytes.extend(wire.inbound.drain(..len));
        let more = to_eof || wire.fin_in || wire.failed;
        let stop = match len {
            0 if wire.failed => Stop::Failed { side: from, why: Why::Reset },
            0 if wire.fin_in => Stop::Eof,
            _ if len > 0 && (len == at_most || more) => Stop::Budget,
            _ => Stop::Drained,
        };
        let (start, len) = (start as u32, len as u32);
        self.events.push_back((token, Event::Taken { from, start, len, stop }));
    }

    /// Where TLS passes through.
    fn move_bytes(&mut self, token: Token, from: Side, budget: usize, to_eof: bool) {
        assert!(!self.case.client && !self.case.endpoint, "Move in a session that speaks TLS");
        let [client, endpoint] = &mut self.wires;
        let (source, destination) = match from {
            Side::Client => (client, endpoint),
            Side::Endpoint => (endpoint, client),
        };
        source.lowat = 0;
        let there = source.inbound.len().min(budget);
        let room = destination.capacity.saturating_sub(destination.outbound.len());
        let len = there.min(room);
        if destination.failed {
            let stop = Stop::Failed { side: from.other(), why: Why::Reset };
            return self.moved(token, from, 0, stop);
        }
        destination.outbound.extend(source.inbound.drain(..len));
        destination.blocked |= len < there;
        let stop = match len {
            _ if len < there => Stop::Blocked,
            0 if source.failed => Stop::Failed { side: from, why: Why::Reset },
            0 if source.fin_in => Stop::Eof,
            _ if len > 0 && (len == budget || to_eof || source.fin_in) => Stop::Budget,
            _ => Stop::Drained,
        };
        self.moved(token, from, len as u32, stop);
    }

    fn moved(&mut self, token: Token, from: Side, len: u32, stop: Stop) {
        let moved = Event::Moved { from, read: len, sent: len, held: 0, stop };
        self.events.push_back((token, moved));
    }

    fn give(&mut self, token: Token, to: Side, start: usize, len: usize) {
        let wire = &mut self.wires[to as usize];
        assert!(!wire.fin_out, "bytes after a FIN");
        let bytes = &self.output[start..][..len];
        let at = self.bytes.len() as u32;
        if wire.failed {
            let stop = Stop::Failed { side: to, why: Why::Reset };
            let given = Event::Given { to, sent: 0, start: at, len: 0, stop };
            return self.events.push_back((token, given));
        }
        let sent = len.min(wire.capacity.saturating_sub(wire.outbound.len()));
        wire.outbound.extend(&bytes[..sent]);
        wire.blocked |= sent < len;
        self.bytes.extend(&bytes[sent..]);
        let stop = if sent < len { Stop::Blocked } else { Stop::Drained };
        let (sent, len) = (sent as u32, (len - sent) as u32);
        self.events.push_back((token, Event::Given { to, sent, start: at, len, stop }));
    }

    fn close(&mut self, token: Token, reset: bool) {
        assert!(!std::mem::replace(&mut self.closing, true), "Close twice");
        for wire in &mut self.wires {
            wire.was_reset = reset;
            wire.fin_out = true;
            if reset {
                wire.outbound.clear();
            }
        }
        self.closed = true;
        self.events.push_back((token, Event::Closed));
    }

    /// What each peer has heard is what the other has said, from its beginning; all of it, unless
    /// it was told that something is missing.
    fn check(&self) -> CloseReason {
        let case = self.case;
        let record = self.record.as_ref().expect("a session is logged when it is closed");
        let reason = record.reason.expect("every close has a reason");
        for (hearer, speaker) in [(0, 1), (1, 0)] {
            let (heard, said) = (&self.peers[hearer].heard, &self.peers[speaker].to_send);
            assert!(said.starts_with(heard), "{case:?}: bytes were lost, added or changed");
            let peer = &self.peers[hearer];
            let clean = !self.wires[hearer].was_reset && (peer.heard_end || !peer.speaks_tls());
            let whole = heard.len() == said.len();
            let told = record.connect.is_some() && clean && peer.error.is_none();
            assert!(!told || whole, "{case:?} {reason:?}: a part was passed off as the whole");
        }
        match case.fault {
            Fault::Words(Side::Client) => {
                // Behind the answer it is a bad hello.
                let expected = [CloseReason::StarttlsEarly, CloseReason::HelloInvalid];
                assert!(expected.contains(&reason), "{case:?}: {reason:?}");
            }
            Fault::Words(Side::Endpoint) => {
                assert_eq!(reason, CloseReason::EndpointStarttlsFailed, "{case:?}");
            }
            _ => {}
        }
        if case.fault == Fault::None {
            let clean = [CloseReason::ClientFin, CloseReason::EndpointFin];
            assert!(clean.contains(&reason), "{case:?}: {reason:?}");
            let given = [record.bytes_up, record.bytes_down];
            for (peer, given) in self.peers.iter().zip(given) {
                // What passes through is counted as it is: encrypted.
                let through = !case.client && !case.endpoint;
                let said = peer.to_send.len() as u64;
                assert!(said == given || (through && said < given), "{case:?}: bytes in the log");
                assert!(peer.error.is_none(), "{case:?}: {:?}", peer.error);
            }
        }
        assert_eq!(self.proxy.next_deadline(), None, "{case:?}: something is left to do");
        reason
    }
}
