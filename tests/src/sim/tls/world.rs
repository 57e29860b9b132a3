//! Runs: a seed's sessions, a crowd of clients, a silent endpoint.

use std::collections::VecDeque;
use std::sync::Arc;

use config_sync::check;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::table::routing::{EndpointId, Limits};
use ringway::contract::{Event, Op, Side, Token};
use ringway::proxy::Proxy;
use ringway::stats::counters::Counters;
use ringway::stats::records::{CloseReason, Record};

use crate::pki::Pki;
use crate::sim::rng::Rng;
use crate::sim::tls::case::{Case, Fault, NAME};
use crate::sim::tls::life::{Life, Turn};

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
    // All sessions of a backend together, which some of them exceed.
    let limits = ["", "", "", "limit = { bytes_per_second = 100_000 }"];
    let limit = rng.pick(&limits);
    World::new(rng, &kinds, cases, limit).live()
}

/// So many clients say hello within one turn.
pub fn crowd(seed: u64, sessions: usize, case: Case) -> Vec<CloseReason> {
    World::new(Rng::new(seed), &[case], vec![(0, case); sessions], "").live()
}

/// A session with a silent endpoint, with these keys of the backend: its end, and how often the
/// endpoint was counted as failed.
pub fn silent(case: Case, backend: &str) -> (CloseReason, u64) {
    let case = Case { fault: Fault::Silence, ..case };
    let world = World::new(Rng::new(1), &[case], vec![(0, case)], backend);
    let counters = Arc::clone(&world.counters);
    (world.live()[0], counters.endpoint(EndpointId(0)).connect_failures.get())
}

struct World {
    proxy: Proxy,
    counters: Arc<Counters>,
    now: u64,
    ops: Vec<(Token, Op)>,
    lives: Vec<Life>,
    turn: Turn,
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
        let sockets: Vec<_> = table
            .sockets
            .iter()
            .map(|s| (s.address.ip().expect("an IP address"), Token::socket(s.id)))
            .collect();
        let counters = Arc::new(Counters::new());
        // Not so few that handshakes are crowded out.
        let limits = Limits { sessions: 2 * cases.len() as u32 + 2, ..LIMITS };
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
