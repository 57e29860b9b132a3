//! A random world around the proxy: a seed makes a configuration that changes, clients, endpoints,
//! faults, a worker's loop, and an end by drain. Whatever breaks a promise panics.

mod actions;
mod ask;
mod asked;
mod check;
mod moves;
mod peer;
mod reached;
mod tables;
mod tried;
mod under_way;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::routing::{Drain, EndpointId, RoutingTable, SocketId};
use ringway::contract::{Op, Token};
use ringway::proxy::Proxy;
use ringway::proxy::table_queue::TableQueue;
use ringway::stats::counters::Counters;
use ringway::stats::records::Demotion;

use crate::sim::coverage::{Coverage, Fault, State};
use crate::sim::endpoints::endpoint_at;
use crate::sim::kernel::faults::Faults;
use crate::sim::kernel::{Kernel, Turn};
use crate::sim::model::Model;
use crate::sim::rng::Rng;
use crate::sim::udp::datagram::{Datagram, Path};
use crate::sim::world::check::Check;
use crate::sim::world::peer::Peer;
use crate::sim::world::tried::Tried;

/// What a run has seen.
#[derive(Debug)]
pub struct Outcome {
    pub coverage: Coverage,
    pub events: u64,
    pub sessions: u64,
    pub flows: u64,
    /// Sessions and flows that another process has adopted.
    pub moved: u64,
    /// Flows among them.
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
    proxy: Proxy,
    counters: Arc<Counters>,
    model: Model,
    check: Check,
    actions: BTreeMap<(u64, u64), Action>,
    sequence: u64,
    peers: Vec<Peer>,
    clients: u32,
    /// UDP flows that clients began.
    exchanges: u64,
    in_force: Vec<SocketId>,
    /// What was in force when the turn began.
    before: Vec<SocketId>,
    /// The table that was applied last; `None` in the turn in which it is.
    settled: Option<Arc<RoutingTable>>,
    latest: Option<Arc<RoutingTable>>,
    /// Sockets that the proxy was told to leave and has not closed yet.
    leaving: BTreeSet<SocketId>,
    next_table: Option<Next>,
    /// What the tables hand over and ask for.
    tables: TableQueue<SocketAddr>,
    /// When an endpoint was last in a table; `u64::MAX`: it is in the one in force.
    present: BTreeMap<EndpointId, u64>,
    tried: Tried,
    habits: Habits,
    turn: Turn,
    ops: Vec<(Token, Op)>,
    turns: u64,
    idle_resumes: u32,
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

/// The table that the worker finds when it next looks.
#[derive(Debug)]
enum Next {
    Model,
    Drain(Drain),
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
    /// Sessions or flows go to another process.
    Part,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut model = Model::random(&mut rng);
        let mut faults = Faults::random(&mut rng);
        let counters = Arc::new(Counters::new());
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
        let mut proxy = Proxy::new(model.limits, rng.number(), Arc::clone(&counters));
        // Not of `rng`: the rest of a seed's world does not depend on it.
        proxy.bound_new_flows(1 + (seed % 4) as u32, model.limits.buffers);
        let mut world = Self {
            check: Check::new(model.limits),
            asks: Rng::new(seed ^ 0x61736b),
            rng,
            kernel,
            proxy,
            counters,
            model,
            actions: BTreeMap::new(),
            sequence: 0,
            peers: Vec::new(),
            clients: 0,
            exchanges: 0,
            in_force: Vec::new(),
            before: Vec::new(),
            settled: None,
            latest: None,
            leaving: BTreeSet::new(),
            next_table: None,
            tables: TableQueue::default(),
            present: BTreeMap::new(),
            tried: Tried::default(),
            habits,
            turn: Turn::default(),
            ops: Vec::new(),
            turns: 0,
            idle_resumes: 0,
            quiet: false,
        };
        for (_, endpoint) in world.model.endpoints().collect::<Vec<_>>() {
            world.change_endpoint(&endpoint);
        }
        for backend in &world.model.backends {
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
        self.next_table = Some(Next::Model);
        self.after(0, Action::Arrive);
        self.after(100, Action::SwapTable);
        self.after(1_000, Action::ChangeEndpoint);
        if self.asks.per_mille(500) {
            self.after(2_000, Action::Ask);
        }
        if self.asks.per_mille(500) {
            self.after(3_000, Action::Part);
        }
    }

    fn live(&mut self) {
        while self.kernel.events < ENOUGH_EVENTS
            || self.kernel.accepted + self.exchanges < ENOUGH_EXCHANGES
        {
            self.step();
        }
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
        let spread = self.rng.scale(1, 500) as u32;
        self.next_table = Some(Next::Drain(Drain { timeout, spread }));
        self.kernel.hit_all(Fault::Drain);
        let began = self.kernel.now;
        let stop_at = self.rng.per_mille(200).then(|| began + self.rng.scale(1, 1_000_000));
        // The kernel's own delays, a sweep of the flows, and steps of the timers.
        let slack = 1_500_000 + 4 * self.kernel.faults.lag;
        let deadline = began + 1000 * u64::from(timeout + spread) + slack;
        let mut stopped = false;
        let is_asked = |world: &Self| {
            world.next_table.is_some() || world.check.asked.is_open() || world.check.moves.is_open()
        };
        while is_asked(self) || !self.tables.is_empty() || !self.proxy.is_done() {
            assert!(
                self.kernel.now <= deadline,
                "not drained within the deadline: {} sessions, {} flows, {} upstreams",
                self.counters.sessions.get(),
                self.counters.flows.get(),
                self.counters.upstreams.get(),
            );
            self.step();
            let stops = stop_at.is_some_and(|at| self.kernel.now >= at);
            if !stopped && stops && !self.check.moves.is_open() {
                stopped = true;
                self.kernel.hit_all(Fault::Stop);
                self.proxy.stop(self.kernel.now, &mut self.ops);
                self.end_turn();
            }
        }
    }

    fn finish(mut self) -> Outcome {
        self.kernel.check_empty();
        for why in Demotion::ALL {
            let times = self.counters.demotions[*why as usize].get();
            self.kernel.coverage.add(State::Live, Fault::Demoted(*why), times);
        }
        self.check.at_the_end(&self.kernel, &self.counters);
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
        Outcome {
            coverage: self.kernel.coverage,
            events: self.kernel.events,
            sessions: self.kernel.accepted,
            flows: self.exchanges,
            moved: self.check.moves.adopted,
            moved_flows: self.check.moves.flows,
        }
    }

    /// Time goes on to whatever is next; then peers act, and the worker has a turn.
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
        let deadline = self.proxy.next_deadline();
        let next = [
            self.kernel.next_time(),
            deadline,
            self.check.moves.next(),
            self.actions.first_key_value().map(|((at, _), _)| *at),
        ];
        let mut next = next.into_iter().flatten().min().unwrap_or(self.kernel.now);
        // The last table wakes a worker that has nothing else to do for minutes.
        let wakes = self.quiet && self.next_table.is_some();
        if wakes || !self.tables.is_empty() {
            // The worker does not wait, but it may not be given the core at once.
            next = next.min(self.kernel.now + self.rng.scale(1, 1_000));
        }
        self.kernel.now = self.kernel.now.max(next);
        self.act();
        let mut most = self.rng.between(1, self.habits.batch) as usize;
        if !self.quiet && self.rng.per_mille(self.habits.jumps) {
            self.jump();
            // What has come in the meantime comes in one turn, as far as there are buffers.
            most = usize::MAX;
        }
        let due = |at: Option<u64>| at.is_some_and(|at| at <= self.kernel.now);
        let asked = self.next_table.is_some()
            || !self.tables.is_empty()
            || !self.check.asked.next.is_empty()
            || due(self.check.moves.next())
            || !self.check.moves.replies.is_empty();
        if due(self.kernel.next_time()) || due(deadline) || asked {
            self.worker_turn(most);
        }
        self.after_turn();
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
            let last = self.present.get(&endpoint_at(address)).copied().unwrap_or(0);
            assert!(
                self.quiet || last >= self.kernel.now,
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
        let moved = u32::try_from(self.check.moves.adopted).expect("few");
        self.model.backends.iter().for_each(|backend| backend.check_loads(moved));
        let live = self.counters.sessions.get() + self.counters.flows.get();
        // The sources of a listener, and those of a route.
        assert!(self.model.sources.sessions() <= 2 * live, "sources have more than there is");
        self.model.shared.check(live, moved);
        for (path, datagram) in std::mem::take(&mut self.kernel.sent_up) {
            self.endpoint_hears(path, datagram);
        }
        for (endpoint, exchange) in std::mem::take(&mut self.kernel.fed) {
            self.check_fed(endpoint, exchange);
        }
        for (endpoint, interface) in std::mem::take(&mut self.kernel.given) {
            self.check_interface(endpoint_at(endpoint), interface);
        }
        for (exchange, from, to) in std::mem::take(&mut self.kernel.moves) {
            self.check_move(exchange, from, to);
        }
        self.check.replies += self.kernel.sent_down.drain(..).count() as u64;
    }
}
