//! A random world around the proxy: a seed makes a configuration that changes, clients, endpoints,
//! faults, a worker's loop, and an end by drain. Whatever breaks a promise panics.

mod actions;
mod ask;
mod asked;
mod check;
mod clients;
mod peer;
mod process;
mod processes;
mod reached;
mod tables;
mod tried;
mod upgrade;
mod worker;

use std::collections::{BTreeMap, BTreeSet};

use config_sync::table::routing::Drain;

use crate::sim::coverage::{Coverage, Fault};
use crate::sim::endpoints::endpoint_at;
use crate::sim::kernel::Kernel;
use crate::sim::kernel::faults::Faults;
use crate::sim::model::Model;
use crate::sim::rng::Rng;
use crate::sim::udp::datagram::{Datagram, Path};
use crate::sim::world::clients::Clients;
use crate::sim::world::peer::Peer;
use crate::sim::world::process::{Next, Process};
use crate::sim::world::tried::Tried;
use crate::sim::world::upgrade::state::Upgrade;

/// What a run has seen.
#[derive(Debug)]
pub struct Outcome {
    pub coverage: Coverage,
    pub events: u64,
    pub sessions: u64,
    pub flows: u64,
    /// Sessions and flows that have gone on in another process.
    pub moved: u64,
    pub moved_flows: u64,
}

/// Runs a seed; panics with the invariant that was broken.
pub fn run(seed: u64, trace: bool) -> Outcome {
    let mut world = World::new(seed, trace);
    world.live();
    world.drain();
    world.finish()
}

const ENOUGH_EVENTS: u64 = 2_000;

const ENOUGH_EXCHANGES: u64 = 20;

/// Turns after which a world that has not come to its end is stuck.
const MOST_TURNS: u64 = 4_000_000;

struct World {
    rng: Rng,
    /// Chooses what an operator asks, so that the rest of a seed's world does not depend on that.
    asks: Rng,
    kernel: Kernel,
    /// The process whose turn it is, and the others that live.
    process: Process,
    others: Vec<Process>,
    /// The process that serves, or the one that is about to hand over.
    head: u32,
    upgrades: Vec<Upgrade>,
    /// Sessions and flows that another process has adopted.
    moved: (u64, u64),
    clients: Clients,
    actions: BTreeMap<(u64, u64), Action>,
    sequence: u64,
    peers: Vec<Peer>,
    /// Clients that have come.
    came: u32,
    /// UDP flows that clients began.
    exchanges: u64,
    tried: Tried,
    habits: Habits,
    turns: u64,
    quiet: bool,
}

/// What one seed's world is like.
struct Habits {
    arrivals: u64,
    table_swaps: u64,
    jumps: u32,
    batch: u64,
    /// Steps of tables in a turn, at most.
    steps: u64,
    /// Ops are carried out after each event, or after a batch of them.
    eager: bool,
    udp: u32,
    /// Few clients come, and they pause between datagrams, so flows last for many seconds.
    slow: bool,
}

#[derive(Debug)]
enum Action {
    Arrive,
    Peer(usize),
    Send {
        left: u32,
        datagram: Datagram,
        pause: u64,
    },
    Reply(Path, Datagram),
    Unreachable(Path),
    SwapTable,
    ChangeEndpoint,
    Ask,
    /// The next process begins.
    Upgrade,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut model = Model::random(&mut rng);
        let mut faults = Faults::random(&mut rng);
        let mut habits = Habits {
            arrivals: rng.scale(200, 50_000),
            table_swaps: rng.scale(500, 1_000_000),
            jumps: if rng.per_mille(300) { 5 } else { 0 },
            batch: rng.scale(1, 64),
            steps: rng.scale(1, 8),
            eager: rng.per_mille(300),
            udp: rng.pick(&[0, 300, 500, 1000]),
            slow: seed.is_multiple_of(16),
        };
        if habits.slow {
            habits = Habits { arrivals: 1_000_000, table_swaps: 20_000_000, udp: 1_000, ..habits };
            model.has_long_flows();
            faults.promoted_breaks = faults.promoted_breaks.max(200);
        }
        let mut kernel = Kernel::new(rng.number(), model.limits, faults);
        kernel.trace = trace;
        // Not of `rng`: the rest of a seed's world does not depend on it.
        let process = Process::new(0, model, rng.number(), 1 + (seed % 4) as u32);
        let mut world = Self {
            asks: Rng::new(seed ^ 0x61736b),
            rng,
            kernel,
            process,
            others: Vec::new(),
            head: 0,
            upgrades: Vec::new(),
            moved: (0, 0),
            clients: Clients::default(),
            actions: BTreeMap::new(),
            sequence: 0,
            peers: Vec::new(),
            came: 0,
            exchanges: 0,
            tried: Tried::default(),
            habits,
            turns: 0,
            quiet: false,
        };
        for (_, endpoint) in world.process.model.endpoints().collect::<Vec<_>>() {
            world.change_endpoint(&endpoint);
        }
        for backend in &world.process.model.backends {
            let rest = 1_000 * u64::from(backend.upstream_rest);
            let endpoints = backend.endpoints.iter().filter_map(|(_, of)| of.address.ip());
            world.kernel.rests.extend(endpoints.map(|ip| (ip, rest)));
        }
        if world.rng.per_mille(300) {
            world.kernel.ports = world.rng.scale(2, u64::from(world.kernel.ports)) as u32;
        }
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.after(0, Action::Arrive);
        self.after(100, Action::SwapTable);
        self.after(1_000, Action::ChangeEndpoint);
        if self.asks.per_mille(500) {
            self.after(2_000, Action::Ask);
        }
        if self.asks.per_mille(500) {
            self.after(3_000, Action::Upgrade);
        }
    }

    fn live(&mut self) {
        while !self.has_had_enough() || self.upgrades.iter().any(Upgrade::is_undecided) {
            self.step();
        }
    }

    fn has_had_enough(&self) -> bool {
        let exchanges = self.kernel.accepted + self.exchanges;
        self.kernel.events >= ENOUGH_EVENTS && exchanges >= ENOUGH_EXCHANGES
    }

    /// Publishes the last table, lets peers go quiet or stay, and waits for the end.
    fn drain(&mut self) {
        self.quiet = true;
        self.actions.retain(|_, action| matches!(action, Action::Peer(_) | Action::Reply(..)));
        let polite = self.rng.per_mille(500);
        for peer in &mut self.peers {
            if polite || !peer.stays() {
                peer.quiet();
            }
        }
        let timeout = self.rng.scale(1, 3_000) as u32;
        let drain = Drain { timeout, spread: self.rng.scale(1, 500) as u32 };
        self.kernel.hit_all(Fault::Drain);
        let began = self.kernel.now;
        let stop_at = self.rng.per_mille(200).then(|| began + self.rng.scale(1, 1_000_000));
        let mut stopped = false;
        loop {
            self.switch_to(self.head);
            // The process that served may be killed, and another one begins.
            if self.process.drain.is_none() {
                self.process.next_table = Some(Next::Drain(drain, BTreeSet::new()));
                self.drains_until(drain);
            }
            if self.process.is_done() && self.others.is_empty() {
                return;
            }
            self.step();
            self.switch_to(self.head);
            let stops = stop_at.is_some_and(|at| self.kernel.now >= at);
            // A stop overtakes nothing that was asked before.
            let alone = self.upgrades.is_empty()
                && self.process.next_table.is_none()
                && !self.process.has_commands();
            if !stopped && stops && alone {
                stopped = true;
                self.kernel.hit_all(Fault::Stop);
                self.process.proxy.stop(self.kernel.now, &mut self.process.ops);
                self.end_turn();
            }
        }
    }

    fn finish(mut self) -> Outcome {
        self.process.at_the_end(&mut self.kernel, &mut self.clients);
        self.link_ends(self.process.number);
        self.clients.at_the_end(&self.kernel);
        Outcome {
            coverage: self.kernel.coverage,
            events: self.kernel.events,
            sessions: self.kernel.accepted,
            flows: self.exchanges,
            moved: self.moved.0,
            moved_flows: self.moved.1,
        }
    }

    /// Time goes on to whatever is next; then peers act, and each process has a turn.
    fn step(&mut self) {
        self.turns += 1;
        assert!(
            self.turns < MOST_TURNS,
            "the world does not come to its end: {} events, {} peers, {} actions, {} us, {:?}",
            self.kernel.events,
            self.peers.len(),
            self.actions.len(),
            self.kernel.now,
            self.actions.values().nth(3),
        );
        let deadlines = self.processes().filter_map(Process::next).min();
        let next = [
            self.kernel.next_time(),
            deadlines,
            self.next_of_upgrades(),
            self.actions.first_key_value().map(|((at, _), _)| *at),
        ];
        let mut next = next.into_iter().flatten().min().unwrap_or(self.kernel.now);
        // The last table wakes a worker that has nothing else to do for minutes.
        let wakes = |process: &Process| {
            (self.quiet || process.latest.is_none()) && process.next_table.is_some()
        };
        if self.processes().any(|of| wakes(of) || !of.tables.is_empty()) {
            // The worker does not wait, but it may not be given the core at once.
            next = next.min(self.kernel.now + self.rng.scale(1, 1_000));
        }
        self.kernel.now = self.kernel.now.max(next);
        self.switch_to(self.head);
        self.act();
        let mut most = self.rng.between(1, self.habits.batch) as usize;
        if !self.quiet && self.rng.per_mille(self.habits.jumps) {
            self.jump();
            // What has come in the meantime comes in one turn, as far as there are buffers.
            most = usize::MAX;
        }
        self.carry_on_with_upgrades();
        let numbers: Vec<u32> = self.processes().map(|of| of.number).collect();
        for number in numbers {
            self.switch_to(number);
            let is_due = self.process.next().is_some_and(|at| at <= self.kernel.now);
            if is_due || self.kernel.is_due() || self.process.has_news() {
                self.worker_turn(most);
            }
            self.after_turn();
        }
        self.end_processes();
    }

    /// The worker gets no time for a while, the world goes on.
    fn jump(&mut self) {
        self.kernel.hit_all(Fault::TimeJump);
        let until = self.kernel.now + self.rng.scale(1_000, 5_000_000);
        while let Some(((at, _), _)) = self.actions.first_key_value()
            && *at <= until
        {
            self.kernel.now = self.kernel.now.max(*at);
            self.act();
        }
        self.kernel.now = until;
        self.drains_were_late();
    }

    fn after(&mut self, delay: u64, action: Action) {
        self.sequence += 1;
        self.actions.insert((self.kernel.now + delay, self.sequence), action);
    }

    /// What the kernel has for the peers.
    fn after_turn(&mut self) {
        for attempted in std::mem::take(&mut self.kernel.connects) {
            let address = attempted.address;
            // A table applied in this turn came after the attempts of its events; what is still
            // accepted after the last table is routed by the one before.
            let last = self.process.present.get(&endpoint_at(address)).copied().unwrap_or(0);
            assert!(
                self.process.drain.is_some() || last >= self.kernel.now,
                "connects to {address}, which left the table {} us ago",
                self.kernel.now - last
            );
            self.check_attempt(&attempted);
        }
        for conn in std::mem::take(&mut self.kernel.established) {
            let mut peer = Peer::random(&mut self.rng, conn, self.kernel.now, 0);
            if self.quiet {
                peer.quiet();
            }
            self.join(peer);
        }
        let moved = self.process.adopted;
        self.process.model.backends.iter().for_each(|backend| backend.check_loads(moved));
        let live = self.process.counters.sessions.get() + self.process.counters.flows.get();
        // The sources of a listener, and those of a route.
        assert!(
            self.process.model.sources.sessions() <= 2 * live,
            "sources have more than there is"
        );
        self.process.model.shared.check(live, moved);
        let number = self.process.number;
        for (path, datagram) in std::mem::take(&mut self.kernel.sent_up) {
            // The kernel may have forwarded it for another process.
            if let Some(of) = self.kernel.process_at(path.port) {
                self.switch_to(of);
            }
            self.endpoint_hears(path, datagram);
        }
        self.switch_to(number);
        for (endpoint, exchange) in std::mem::take(&mut self.kernel.fed) {
            self.check_fed(endpoint, exchange);
        }
        for (endpoint, interface) in std::mem::take(&mut self.kernel.given) {
            self.check_interface(endpoint_at(endpoint), interface);
        }
        for (exchange, from, to) in std::mem::take(&mut self.kernel.moves) {
            self.check_move(exchange, from, to);
        }
        self.process.check.replies += self.kernel.sent_down.drain(..).count() as u64;
    }
}
