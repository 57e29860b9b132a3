//! Sessions that speak TLS, in a small world of their own: bytes are real here, and all peers are
//! rustls' buffered connections. Several sessions share a proxy, as they share its buffers; in some
//! worlds more than may take bytes at once. A seed makes the cuts, the order of ends, and the
//! faults.
//!
//! What of rustls is an argument here, and what is not:
//!
//! - The time by which the gateway verifies certificates and issues and takes tickets is the
//!   proxy's, so virtual. That by which ticket keys are changed is the system's (rustls' `Ticketer`
//!   reads it); a run would have to last 6 hours for that to show. The peers' is the system's, too.
//! - Keys, nonces, hello randoms and session ids are drawn by aws-lc-rs. rustls takes another
//!   source for the last two in a provider, but Ringway has one provider, and no configuration
//!   names another; key exchange and signatures draw from the system whatever the provider says.
//!
//! So bytes differ from run to run. Their number does not (see `pki`), and that is all that the
//! schedule depends on: a seed is a run but for the bytes' values.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::check;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::model::config::Config;
use config_sync::model::tls::{Origination, Termination};
use config_sync::table::routing::{EndpointId, Limits};
use ringway::contract::{Event, Op, Side, Stop, Token, Why};
use ringway::proxy::Proxy;
use ringway::stats::counters::Counters;
use ringway::stats::records::{CloseReason, Record, SessionRecord};

use crate::pki::{Issued, Pki, inline};
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
    /// The backend has a second endpoint, with which nothing is wrong.
    pub spare: bool,
    /// An end without close_notify is a clean one.
    pub fin: bool,
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
    /// The endpoint takes connections and neither reads nor says anything.
    Silence,
}

impl Case {
    pub fn random(rng: &mut Rng) -> Self {
        let (client, endpoint) =
            rng.pick(&[(true, false), (false, true), (true, true), (false, false)]);
        let through = !client && !endpoint;
        let asks = through || (client && rng.per_mille(300));
        let starttls = asks.then_some(false);
        let (spare, fin) = (rng.per_mille(500), rng.per_mille(500));
        Self { client, endpoint, starttls, old: false, spare, fin, fault: Fault::None }.varied(rng)
    }

    /// The same configuration, with clients and endpoints of another kind and another fault.
    fn varied(self, rng: &mut Rng) -> Self {
        let Self { client, endpoint, .. } = self;
        let through = !client && !endpoint;
        let asks = self.starttls.is_some();
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
        let starttls = self.starttls.map(|_| rng.per_mille(300));
        Self { starttls, old: rng.per_mille(300), fault, ..self }
    }

    fn passes_through(&self) -> bool {
        !self.client && !self.endpoint
    }

    /// The peers, which say these bytes.
    fn peers(&self, rng: &mut Rng, issued: &Issued, up: Vec<u8>, down: Vec<u8>) -> [TlsPeer; 2] {
        let through = self.passes_through();
        let client = match self.client || through {
            true => TlsPeer::client(Pki::shared(), NAME, self.old, up),
            false => TlsPeer::plain(up),
        };
        let endpoint = match self.endpoint || through {
            true => TlsPeer::server(issued, self.old, down),
            false => TlsPeer::plain(down),
        };
        let Some(gss) = self.starttls else { return [client, endpoint] };
        let wrong = |side| self.fault == Fault::Words(side);
        let client = client.asking(gss, if wrong(Side::Client) { b"Q" } else { b"" });
        if !endpoint.speaks_tls() {
            return [client, endpoint];
        }
        let bad = rng.pick(&[b"N", b"E"]);
        [client, endpoint.asked(if wrong(Side::Endpoint) { bad } else { b"S" })]
    }

    /// A listener, a route and a backend of their own.
    fn configure(&self, config: &mut String, at: usize, backend: &str) {
        let spare = if self.spare { format!(", \"10.0.2.{at}:80\"") } else { String::new() };
        let protocol = if self.client || self.passes_through() { "TLS" } else { "TCP" };
        let starttls = if self.starttls.is_some() { "starttls = \"postgres\"" } else { "" };
        let on_truncation = if self.fin { "fin" } else { "reset" };
        config.push_str(&format!(
            r#"
            [[listeners]]
            name = "l{at}"
            protocol = "{protocol}"
            address = "10.0.0.{at}:443"
            on_truncation = "{on_truncation}"
            {starttls}
            [[routes]]
            name = "r{at}"
            listeners = ["l{at}"]
            backends = [{{ name = "b{at}" }}]
            [[backends]]
            name = "b{at}"
            endpoints = ["10.0.1.{at}:80"{spare}]
            {backend}
            "#
        ));
    }

    fn configure_tls(&self, config: &mut Config, at: usize, issued: &Issued) {
        config.listeners[at].tls = self.client.then(|| Termination {
            certificates: vec![issued.configured()],
            ..Termination::default()
        });
        config.backends[at].tls = self.endpoint.then(|| Origination {
            server_name: NAME.to_owned(),
            ca: Some(inline("ca", &Pki::shared().ca())),
            certificate: None,
            subject_alt_names: Vec::new(),
            alpn: None,
            pins: Vec::new(),
        });
    }
}

/// Runs the sessions of a seed's world to their end, and checks what all peers have heard.
pub fn run(seed: u64) -> Vec<CloseReason> {
    play(Rng::new(seed))
}

/// As [`run`], with choices from anywhere.
pub fn play(mut rng: Rng) -> Vec<CloseReason> {
    let sessions = match rng.below(60) {
        0 => rng.between(66, 96),
        1..20 => rng.between(2, 5),
        _ => 1,
    };
    let kinds: Vec<_> = (0..rng.between(1, 3)).map(|_| Case::random(&mut rng)).collect();
    let cases = (0..sessions).map(|_| {
        let kind = rng.below(kinds.len() as u64) as usize;
        (kind, kinds[kind].varied(&mut rng))
    });
    let cases = cases.collect();
    World::new(rng, &kinds, cases, "").live()
}

/// So many clients say hello within one turn.
pub fn crowd(seed: u64, sessions: usize, case: Case) -> Vec<CloseReason> {
    World::new(Rng::new(seed), &[case], vec![(0, case); sessions], "").live()
}

/// A session whose endpoint is silent, with these keys of the backend: its end, and how often the
/// endpoint was counted as failed.
pub fn silent(case: Case, backend: &str) -> (CloseReason, u64) {
    let case = Case { fault: Fault::Silence, ..case };
    let world = World::new(Rng::new(1), &[case], vec![(0, case)], backend);
    let counters = Arc::clone(&world.counters);
    (world.live()[0], counters.endpoint(EndpointId(0)).connect_failures.get())
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
    proxy: Proxy,
    counters: Arc<Counters>,
    now: u64,
    ops: Vec<(Token, Op)>,
    lives: Vec<Life>,
    turn: Turn,
}

/// What a worker's turn has in its hands.
struct Turn {
    rng: Rng,
    number: u64,
    events: VecDeque<(Token, Event)>,
    bytes: Vec<u8>,
    output: Vec<u8>,
}

/// One session with its peers.
struct Life {
    case: Case,
    address: SocketAddr,
    token: Option<Token>,
    wires: [Wire; 2],
    connected: bool,
    peers: [TlsPeer; 2],
    /// Who answers the second connection to an endpoint.
    spare: Option<TlsPeer>,
    /// The first endpoint was given up for it.
    replaced: bool,
    acts: u64,
    /// When the fault strikes: after so many acts of peers.
    strike: u64,
    /// The turn in which there was news of a client whose handshake is under way, since it was
    /// last looked at.
    told: Option<u64>,
    closing: bool,
    closed: bool,
    record: Option<SessionRecord>,
    /// How much a side had said when its connection ended early, if all of that was on its way.
    said: Option<(Side, usize)>,
}

const LIMITS: Limits = Limits {
    sessions: 4,
    flows: 1,
    buffers: 1,
    pipes: 1,
    turn_bytes: 1 << 18,
    bulk_bytes: 1 << 20,
};

/// What `tls_relay.rs` promises: `Take`s of a worker at once.
const MOST_TAKES: u64 = 64;

const NAME: &str = "db.example.com";

impl World {
    fn new(mut rng: Rng, kinds: &[Case], cases: Vec<(usize, Case)>, backend: &str) -> Self {
        let issued = Pki::shared().issue(&[NAME]);
        let mut text = String::new();
        for (at, kind) in kinds.iter().enumerate() {
            kind.configure(&mut text, at, backend);
        }
        let mut config = check::parse("world", &text).expect("a configuration");
        for (at, kind) in kinds.iter().enumerate() {
            kind.configure_tls(&mut config, at, &issued);
        }
        let table = compile(&config, &mut Names::new(), 1).expect("a table");
        let sockets: Vec<_> =
            table.sockets.iter().map(|s| (s.address, Token::socket(s.id))).collect();
        let counters = Arc::new(Counters::new());
        let limits = Limits { sessions: cases.len() as u32, ..LIMITS };
        let mut proxy = Proxy::new(limits, rng.below(256), Arc::clone(&counters));
        proxy.set_epoch(1_900_000_000_000_000);
        let mut ops = Vec::new();
        proxy.apply(1, Arc::new(table), &mut ops);
        ops.clear();
        let most = if cases.len() > 5 { 1 << 13 } else { 1 << 19 };
        let mut events = VecDeque::new();
        let mut lives = Vec::new();
        for (incoming, (kind, case)) in (0u32..).zip(cases) {
            let life = Life::new(&mut rng, case, incoming, most, &issued);
            let (local, socket) = sockets[kind];
            let accepted = Event::Accepted { incoming, peer: life.address, local };
            events.push_back((socket, accepted));
            lives.push(life);
        }
        let turn = Turn { rng, number: 0, events, bytes: Vec::new(), output: Vec::new() };
        Self { proxy, counters, now: 1, ops, lives, turn }
    }

    fn live(mut self) -> Vec<CloseReason> {
        let silent = self.lives.iter().any(|life| life.case.fault == Fault::Silence);
        for act in 0.. {
            assert!(act < 200_000, "{:?}: the sessions do not come to their end", self.cases());
            // A byte that was changed may stand in a length: then only a timeout ends the wait.
            self.now += if act < 20_000 && !silent { 10 } else { 10_000 };
            let alone = self.lives.len() == 1;
            for life in &mut self.lives {
                if alone || self.turn.rng.per_mille(800) {
                    life.act(&mut self.turn.rng);
                }
                life.tell(&mut self.turn);
            }
            self.turn();
            if self.lives.iter().all(Life::is_over) {
                break;
            }
        }
        let next = self.proxy.next_deadline();
        assert_eq!(next, None, "{:?}: something is left to do", self.cases());
        self.lives.iter().map(Life::check).collect()
    }

    fn cases(&self) -> Vec<Case> {
        self.lives.iter().map(|life| life.case).collect()
    }

    /// The worker's turn.
    fn turn(&mut self) {
        self.turn.number += 1;
        self.settle();
        self.proxy.expire(self.now, &mut self.ops);
        self.proxy.resume(self.now, &mut self.ops);
        self.carry_out();
        self.settle();
        for record in self.proxy.records().drain(..) {
            if let Record::Closed(record) = record {
                let life = self.lives.iter_mut().find(|life| life.address == record.client);
                let life = life.expect("a record of a session");
                assert!(life.record.replace(record).is_none(), "closed twice");
            }
        }
    }

    fn settle(&mut self) {
        while !self.turn.events.is_empty() {
            while let Some((token, event)) = self.turn.events.pop_front() {
                self.proxy.handle(self.now, token, event, &self.turn.bytes, &mut self.ops);
            }
            self.turn.bytes.clear();
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        std::mem::swap(self.proxy.output(), &mut self.turn.output);
        let others = self.lives.len() as u64;
        let mut takes = 0;
        for (token, op) in std::mem::take(&mut self.ops) {
            let much = matches!(op, Op::Take { at_most: 1_024.., .. } | Op::Peek { .. });
            takes += u64::from(much);
            let life = match op {
                Op::Accept => continue,
                Op::Adopt { incoming } => {
                    let life = &mut self.lives[incoming as usize];
                    life.token = Some(token);
                    life
                }
                _ => {
                    let life = self.lives.iter_mut().find(|life| life.token == Some(token));
                    life.expect("an op of a session")
                }
            };
            if let Op::Take { from: Side::Client, .. } | Op::Peek { .. } = op
                && let Some(told) = life.told.take()
                && !life.connected
            {
                let waited = self.turn.number - told;
                let most = 2 * (others / MOST_TAKES) + 2;
                assert!(waited <= most, "a client waited for {waited} turns to be heard");
            }
            life.carry_out(&mut self.turn, token, op);
        }
        assert!(takes <= MOST_TAKES, "the bytes of {takes} at once are in memory");
        self.turn.output.clear();
    }
}

impl Life {
    fn new(rng: &mut Rng, case: Case, number: u32, most: u64, issued: &Issued) -> Self {
        // No two sessions say the same, so bytes that cross from one to another show.
        let mut data = |stream: u32| -> Vec<u8> {
            let len = rng.scale(1, most) as u32;
            let byte = |at: u32| (at ^ (2 * number + stream) << 16).wrapping_mul(0x9E37_79B1) >> 24;
            (0..len).map(|at| byte(at) as u8).collect()
        };
        let (up, down) = (data(0), data(1));
        let good = Case { fault: Fault::None, ..case };
        let spare = case.spare.then(|| good.peers(rng, issued, up.clone(), down.clone()));
        let spare = spare.map(|[_, endpoint]| endpoint);
        let peers = case.peers(rng, issued, up, down);
        // A hello is looked at where it is, so a socket has room for a whole one: with a
        // post-quantum key share it has 1.7 kB.
        let mut wire =
            || Wire { capacity: rng.scale(1 << 12, 1 << 18) as usize, ..Wire::default() };
        let mut wires = [wire(), wire()];
        if case.fault == Fault::Silence {
            wires[1].capacity = 0;
        }
        Self {
            case,
            address: SocketAddr::from(([10, 9, 0, 0], 1_000 + number as u16)),
            token: None,
            wires,
            connected: false,
            peers,
            spare,
            replaced: false,
            acts: 0,
            strike: rng.scale(1, 200),
            told: None,
            closing: false,
            closed: false,
            record: None,
            said: None,
        }
    }

    fn is_over(&self) -> bool {
        self.closed && self.wires.iter().all(|wire| wire.outbound.is_empty())
    }

    /// A peer does something.
    fn act(&mut self, rng: &mut Rng) {
        self.acts += 1;
        let side = rng.below(if self.connected { 2 } else { 1 }) as usize;
        if self.acts > self.strike && !self.closing && self.strike_now() {
            self.strike = u64::MAX;
            return;
        }
        if side == 1 && self.case.fault == Fault::Silence && !self.replaced {
            return;
        }
        let (wire, peer) = (&mut self.wires[side], &mut self.peers[side]);
        if rng.per_mille(500) {
            let some = (rng.scale(1, 1 << 16) as usize).min(wire.outbound.len());
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
        let said = peer.speak(rng, room);
        wire.news |= !said.is_empty();
        wire.inbound.extend(said);
        if peer.is_done() {
            wire.fin_in = true;
            wire.news = true;
        }
    }

    fn strike_now(&mut self) -> bool {
        let (side, fault) = match self.case.fault {
            Fault::None | Fault::Words(_) | Fault::Silence => return true,
            Fault::Truncation(side) | Fault::Reset(side) | Fault::Corruption(side) => {
                (side as usize, self.case.fault)
            }
        };
        let wire = &mut self.wires[side];
        if side == 1 && self.replaced {
            return true;
        }
        if (side == 1 && !self.connected) || wire.fin_in {
            return false;
        }
        if let Fault::Truncation(side) | Fault::Reset(side) = fault {
            let peer = &self.peers[side as usize];
            self.said = peer.said_all().map(|said| (side, said));
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
    fn tell(&mut self, turn: &mut Turn) {
        let Some(token) = self.token.filter(|_| !self.closing) else { return };
        for side in [Side::Client, Side::Endpoint] {
            let wire = &mut self.wires[side as usize];
            let ending = wire.fin_in || wire.failed;
            let readable = wire.news && (wire.inbound.len() >= wire.lowat || ending);
            if (readable || wire.writable) && turn.rng.per_mille(700) {
                let (failed, writable) = (wire.failed, wire.writable);
                wire.news &= !readable;
                wire.writable = false;
                if readable && side == Side::Client {
                    self.told.get_or_insert(turn.number);
                }
                let ready = Event::Ready { side, readable, writable, ending, failed };
                turn.events.push_back((token, ready));
            }
        }
    }

    fn carry_out(&mut self, turn: &mut Turn, token: Token, op: Op) {
        match op {
            Op::Adopt { .. } => {}
            Op::Peek { at_least } => self.peek(turn, token, at_least as usize),
            Op::Connect { .. } => {
                self.connected = true;
                turn.events.push_back((token, Event::Connected));
            }
            Op::Abandon => {
                assert!(
                    self.connected && self.peers[1].heard.is_empty(),
                    "it has a client's bytes"
                );
                self.connected = false;
                if let Some(spare) = self.spare.take() {
                    let capacity = turn.rng.scale(1_024, 1 << 18) as usize;
                    self.wires[1] = Wire { capacity, ..Wire::default() };
                    self.peers[1] = spare;
                    self.replaced = true;
                }
                turn.events.push_back((token, Event::ConnectFailed { why: Why::Abandoned }));
            }
            Op::Take { from, at_most, to_eof } => {
                self.take(turn, token, (from, at_most as usize, to_eof))
            }
            Op::Move { from, budget, to_eof, .. } => {
                self.move_bytes(turn, token, (from, budget as usize, to_eof));
            }
            // No buffer is free.
            Op::Stream { from } => moved(turn, token, from, 0, Stop::Budget),
            Op::Mark { from, at_least } => {
                let wire = &mut self.wires[from as usize];
                wire.lowat = at_least as usize;
                wire.news |= !wire.inbound.is_empty();
            }
            Op::Unpace { .. } => {}
            Op::Give { to, start, len } => {
                self.give(turn, token, (to, start as usize, len as usize));
            }
            Op::Unacked { side } => {
                let wire = &self.wires[side as usize];
                let bytes = if wire.failed { 0 } else { wire.outbound.len() as u32 };
                turn.events.push_back((token, Event::Unacked { side, bytes }));
            }
            Op::Shutdown { side } => {
                let wire = &mut self.wires[side as usize];
                assert!(!wire.fin_out, "Shutdown twice");
                wire.fin_out = true;
            }
            Op::Close { reset } => self.close(turn, token, reset),
            other => panic!("{other:?} in a session of two connections"),
        }
    }

    fn peek(&mut self, turn: &mut Turn, token: Token, at_least: usize) {
        self.told = None;
        let wire = &mut self.wires[0];
        wire.lowat = at_least;
        let room = at_least.max(1).next_multiple_of(64);
        let start = turn.bytes.len() as u32;
        turn.bytes.extend(wire.inbound.iter().take(room));
        let len = turn.bytes.len() as u32 - start;
        let end = wire.fin_in && len as usize == wire.inbound.len();
        turn.events.push_back((token, Event::Peeked { start, len, end }));
    }

    fn take(
        &mut self,
        turn: &mut Turn,
        token: Token,
        (from, at_most, to_eof): (Side, usize, bool),
    ) {
        let wire = &mut self.wires[from as usize];
        wire.lowat = 0;
        let mut len = at_most.min(wire.inbound.len());
        if len > 1 && turn.rng.per_mille(100) {
            // The rest comes a moment later.
            len = turn.rng.between(1, len as u64 - 1) as usize;
            wire.news = true;
        }
        let start = turn.bytes.len();
        turn.bytes.extend(wire.inbound.drain(..len));
        let more = to_eof || wire.fin_in || wire.failed;
        let stop = match len {
            0 if wire.failed => Stop::Failed { side: from, why: Why::Reset },
            0 if wire.fin_in => Stop::Eof,
            _ if len > 0 && (len == at_most || more) => Stop::Budget,
            _ => Stop::Drained,
        };
        let (start, len) = (start as u32, len as u32);
        turn.events.push_back((token, Event::Taken { from, start, len, stop }));
    }

    /// Where TLS passes through.
    fn move_bytes(
        &mut self,
        turn: &mut Turn,
        token: Token,
        (from, budget, to_eof): (Side, usize, bool),
    ) {
        assert!(self.case.passes_through(), "Move in a session that speaks TLS");
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
            return moved(turn, token, from, 0, stop);
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
        moved(turn, token, from, len as u32, stop);
    }

    fn give(&mut self, turn: &mut Turn, token: Token, (to, start, len): (Side, usize, usize)) {
        let wire = &mut self.wires[to as usize];
        assert!(!wire.fin_out, "bytes after a FIN");
        let bytes = &turn.output[start..][..len];
        let at = turn.bytes.len() as u32;
        if wire.failed {
            let stop = Stop::Failed { side: to, why: Why::Reset };
            let given = Event::Given { to, sent: 0, start: at, len: 0, stop };
            return turn.events.push_back((token, given));
        }
        let sent = len.min(wire.capacity.saturating_sub(wire.outbound.len()));
        wire.outbound.extend(&bytes[..sent]);
        wire.blocked |= sent < len;
        turn.bytes.extend(&bytes[sent..]);
        let stop = if sent < len { Stop::Blocked } else { Stop::Drained };
        let (sent, len) = (sent as u32, (len - sent) as u32);
        turn.events.push_back((token, Event::Given { to, sent, start: at, len, stop }));
    }

    fn close(&mut self, turn: &mut Turn, token: Token, reset: bool) {
        assert!(!std::mem::replace(&mut self.closing, true), "Close twice");
        for wire in &mut self.wires {
            wire.was_reset = reset;
            wire.fin_out = true;
            if reset {
                wire.outbound.clear();
            }
        }
        self.closed = true;
        turn.events.push_back((token, Event::Closed));
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
            let cut = case.fin
                && matches!(case.fault, Fault::Truncation(side) if side as usize == speaker);
            assert!(!told || whole || cut, "{case:?} {reason:?}: a part was taken for the whole");
        }
        // An endpoint that was replaced had nothing to say yet that counts.
        let counts = |(side, _): &(Side, usize)| {
            record.connect.is_some() && (*side == Side::Client || !self.replaced)
        };
        if let Some((side, said)) = self.said.filter(counts) {
            let heard = self.peers[side.other() as usize].heard.len();
            assert_eq!(heard, said, "{case:?} {reason:?}: what was said before an end was lost");
            let given = if side == Side::Client { record.bytes_up } else { record.bytes_down };
            assert!(case.passes_through() || given == said as u64, "{case:?}: bytes in the log");
        }
        let failures = [
            CloseReason::ClientTlsFailed,
            CloseReason::EndpointTlsFailed,
            CloseReason::EndpointStarttlsFailed,
            CloseReason::HelloInvalid,
        ];
        if failures.contains(&reason) {
            assert!(record.detail.is_some(), "{case:?}: {reason:?} without its cause");
        }
        match case.fault {
            Fault::Words(Side::Client) => {
                // Behind the answer it is a bad hello.
                let expected = [CloseReason::StarttlsEarly, CloseReason::HelloInvalid];
                assert!(expected.contains(&reason), "{case:?}: {reason:?}");
            }
            Fault::Words(Side::Endpoint) => {
                let failed = reason == CloseReason::EndpointStarttlsFailed;
                assert!(failed != case.spare, "{case:?}: {reason:?}");
            }
            Fault::Silence => assert_eq!(self.replaced, case.spare, "{case:?}: {reason:?}"),
            _ => {}
        }
        if case.fault == Fault::None || self.replaced {
            let clean = [CloseReason::ClientFin, CloseReason::EndpointFin];
            assert!(clean.contains(&reason), "{case:?}: {reason:?}");
            let given = [record.bytes_up, record.bytes_down];
            for (peer, given) in self.peers.iter().zip(given) {
                // What passes through is counted as it is: encrypted.
                let through = case.passes_through();
                let said = peer.to_send.len() as u64;
                assert!(said == given || (through && said < given), "{case:?}: bytes in the log");
                assert!(peer.error.is_none(), "{case:?}: {:?}", peer.error);
            }
        }
        reason
    }
}

fn moved(turn: &mut Turn, token: Token, from: Side, len: u32, stop: Stop) {
    let moved = Event::Moved { from, read: len, sent: len, held: 0, stop };
    turn.events.push_back((token, moved));
}
