//! A random world around the proxy: a seed makes a configuration that changes, clients, endpoints,
//! faults, a worker's loop, and an end by drain. Whatever breaks a promise panics.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use config_sync::table::routing::{Backend, Drain, Protocol, RoutingTable, SocketId, Transport};
use ringway::contract::{Event, Op, Token};
use ringway::proxy::Proxy;
use ringway::proxy::table_queue::{Step, TableQueue};
use ringway::stats::counters::Counters;

use crate::check::Check;
use crate::coverage::{Coverage, Fault};
use crate::hello::client_hello;
use crate::kernel::{Faults, Kernel, Turn};
use crate::model::Model;
use crate::peers::Peer;
use crate::proxied::{Proxied, some_header};
use crate::rng::Rng;
use crate::tcp::EndpointMode;
use crate::udp::{Datagram, Exchange, Path};

/// What a run has seen.
#[derive(Debug)]
pub struct Outcome {
    pub coverage: Coverage,
    pub events: u64,
    pub sessions: u64,
    pub flows: u64,
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

/// Replies come so much earlier than a socket that rests from now on serves another flow,
/// microseconds: more than the kernel's own delays.
const EARLIER: u64 = 50_000;

struct World {
    rng: Rng,
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
    present: BTreeMap<SocketAddr, u64>,
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
    Send { left: u32, datagram: Datagram, pause: u64 },
    Reply(Path, Datagram),
    Unreachable(Path),
    SwapTable,
    ChangeEndpoint,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let model = Model::random(&mut rng);
        let faults = Faults::random(&mut rng);
        let counters = Arc::new(Counters::new());
        let habits = Habits {
            arrivals: rng.scale(200, 50_000),
            table_swaps: rng.scale(500, 1_000_000),
            jumps: if rng.per_mille(300) { 5 } else { 0 },
            batch: rng.scale(1, 64),
            steps: rng.scale(1, 8),
            eager: rng.per_mille(300),
            udp: rng.pick(&[0, 300, 500, 1000]),
        };
        let mut kernel = Kernel::new(rng.number(), model.limits, faults);
        kernel.trace = trace;
        let proxy = Proxy::new(model.limits, rng.number(), Arc::clone(&counters));
        let mut world = Self {
            check: Check::new(model.limits),
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
            habits,
            turn: Turn::default(),
            ops: Vec::new(),
            turns: 0,
            idle_resumes: 0,
            quiet: false,
        };
        for (_, endpoint) in world.model.endpoints().collect::<Vec<_>>() {
            world.change_endpoint(endpoint.address);
        }
        for backend in &world.model.backends {
            let rest = 1_000 * u64::from(backend.upstream_rest);
            let endpoints = backend.endpoints.iter().map(|(_, endpoint)| endpoint.address);
            world.kernel.rests.extend(endpoints.map(|address| (address, rest)));
        }
        if world.rng.per_mille(300) {
            world.kernel.ports = world.rng.scale(2, u64::from(world.kernel.ports)) as u32;
        }
        world.next_table = Some(Next::Model);
        world.after(0, Action::Arrive);
        world.after(100, Action::SwapTable);
        world.after(1_000, Action::ChangeEndpoint);
        world
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
        while !(self.next_table.is_none() && self.tables.is_empty() && self.proxy.is_done()) {
            assert!(
                self.kernel.now <= deadline,
                "not drained within the deadline: {} sessions, {} flows, {} upstreams",
                self.counters.sessions.get(),
                self.counters.flows.get(),
                self.counters.upstreams.get(),
            );
            self.step();
            if !stopped && stop_at.is_some_and(|at| self.kernel.now >= at) {
                stopped = true;
                self.kernel.hit_all(Fault::Stop);
                self.proxy.stop(self.kernel.now, &mut self.ops);
                self.end_turn();
            }
        }
    }

    fn finish(self) -> Outcome {
        self.kernel.check_empty();
        self.check.at_the_end(&self.kernel, &self.counters);
        Outcome {
            coverage: self.kernel.coverage,
            events: self.kernel.events,
            sessions: self.kernel.accepted,
            flows: self.exchanges,
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
            self.actions.first_key_value().map(|((at, _), _)| *at),
        ];
        let mut next = next.into_iter().flatten().min().unwrap_or(self.kernel.now);
        if !self.tables.is_empty() {
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
        let asked = self.next_table.is_some() || !self.tables.is_empty();
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

    // ---- The worker's loop ----

    fn worker_turn(&mut self, most: usize) {
        let now = self.kernel.now;
        self.turn.events.clear();
        self.turn.bytes.clear();
        self.before.clone_from(&self.in_force);
        self.settled.clone_from(&self.latest);
        self.kernel.reap(most, &mut self.turn);
        self.check.turn_begins(&self.turn, &self.kernel);
        self.settle(0);
        if let Some(next) = self.next_table.take() {
            self.read_records();
            self.apply_next(next);
            self.settle(self.turn.events.len());
        }
        self.carry_on_with_tables();
        self.proxy.expire(now, &mut self.ops);
        self.proxy.resume(now, &mut self.ops);
        self.end_turn();
        let deadline = self.proxy.next_deadline();
        assert!(
            deadline.is_none_or(|at| at == 0 || at > self.kernel.now),
            "a deadline is in the past after expire: {deadline:?} at {}",
            self.kernel.now
        );
        let moved = self.turn.events.iter().any(|(_, e)| matches!(e, Event::Moved { .. }));
        self.idle_resumes = if deadline == Some(0) && !moved { self.idle_resumes + 1 } else { 0 };
        assert!(self.idle_resumes < 3, "livelock: resumes that move nothing");
    }

    /// Some of what the tables hand over and ask for, as the worker does it.
    fn carry_on_with_tables(&mut self) {
        let steps = self.rng.between(1, self.habits.steps) as usize;
        let from = self.turn.events.len();
        for step in self.tables.some(steps) {
            match step {
                Step::Listen(id, transport, address) => self.kernel.listen(id, transport, address),
                Step::Op(token, op) => {
                    self.kernel.carry_out(&mut vec![(token, op)], &mut self.turn);
                }
            }
        }
        self.settle(from);
    }

    fn carry_out(&mut self) {
        self.tables.defer(&mut self.ops);
        self.kernel.output.append(self.proxy.output());
        self.kernel.carry_out(&mut self.ops, &mut self.turn);
    }

    /// Gives the proxy the events from `from` on.
    fn handle_from(&mut self, from: usize) -> usize {
        let mut at = from;
        while let Some((token, event)) = self.turn.events.get(at).copied() {
            at += 1;
            if self.tables.is_stale(token, event) {
                continue;
            }
            let before = self.ops.len();
            let mut payload = Vec::new();
            let bytes = self.kernel.payload(event, &self.turn, &mut payload);
            self.proxy.handle(self.kernel.now, token, event, bytes, &mut self.ops);
            assert!(self.ops.len() - before <= 300, "livelock: {event:?} made too many ops");
            if self.habits.eager {
                self.carry_out();
            }
        }
        at
    }

    /// Gives the proxy the events from `from` on, carries out what it asks for, and hands direct
    /// events back, until there are none.
    fn settle(&mut self, from: usize) {
        let mut handled = self.handle_from(from);
        for round in 0.. {
            assert!(round < 1_000, "livelock: a turn does not end");
            self.carry_out();
            if handled == self.turn.events.len() {
                break;
            }
            handled = self.handle_from(handled);
        }
    }

    fn end_turn(&mut self) {
        self.settle(self.turn.events.len());
        self.kernel.end_turn();
        self.kernel.check_stalls(self.proxy.next_deadline() == Some(0));
        self.check.gauges(&self.kernel, &self.counters);
        self.read_records();
        if self.tables.is_empty() {
            self.kernel.check_armed();
            self.kernel.check_listening(&self.in_force, &self.leaving);
        }
    }

    fn read_records(&mut self) {
        self.check.records(self.proxy.records(), &mut self.kernel);
        for id in self.check.unlistened.drain(..) {
            assert!(self.leaving.remove(&id), "Unlistened of {id:?} that was not leaving");
        }
    }

    /// What the kernel has for the peers.
    fn after_turn(&mut self) {
        for address in std::mem::take(&mut self.kernel.connects) {
            // A table applied in this turn came after the attempts of its events; what is still
            // accepted after the last table is routed by the one before.
            let last = self.present.get(&address).copied().unwrap_or(0);
            assert!(
                self.quiet || last >= self.kernel.now,
                "connects to {address}, which left the table {} us ago",
                self.kernel.now - last
            );
        }
        for conn in std::mem::take(&mut self.kernel.established) {
            let mut peer = Peer::random(&mut self.rng, conn, self.kernel.now, 0);
            if self.quiet {
                peer.quiet();
            }
            self.join(peer);
        }
        for (path, datagram) in std::mem::take(&mut self.kernel.sent_up) {
            self.endpoint_hears(path, datagram);
        }
        for endpoint in std::mem::take(&mut self.kernel.fed) {
            self.check_fed(endpoint);
        }
        self.check.replies += self.kernel.sent_down.drain(..).count() as u64;
    }

    // ---- The control thread ----

    /// Compiles the configuration as it stands, takes sockets over, and applies the table.
    fn apply_next(&mut self, next: Next) {
        let table = match next {
            Next::Drain(drain) => self.model.drain(drain),
            Next::Model => {
                // A TCP address that is being closed can't be bound yet; a UDP address can.
                let leaving = self.leaving.clone();
                let udp = self.model.udp_sockets();
                self.model.compile(|id| !leaving.contains(&id) || udp.contains(&id))
            }
        };
        for socket in &table.sockets {
            self.leaving.remove(&socket.id);
            if !self.in_force.contains(&socket.id) {
                self.tables.listen(socket.id, socket.transport, socket.address);
            }
        }
        let ids: Vec<_> = table.sockets.iter().map(|socket| socket.id).collect();
        self.leaving.extend(self.in_force.iter().filter(|id| !ids.contains(id)));
        self.in_force = ids;
        self.apply(Arc::new(table));
        self.tables.ask(&mut self.ops);
    }

    fn apply(&mut self, table: Arc<RoutingTable>) {
        let now = self.kernel.now;
        self.kernel.hit_all(Fault::TableSwap);
        self.check.table_applied(&table);
        for last in self.present.values_mut().filter(|last| **last == u64::MAX) {
            *last = now;
        }
        for endpoint in table.backends.iter().flat_map(|backend| &backend.endpoints) {
            self.present.insert(endpoint.address, u64::MAX);
        }
        // A copy: at the end it is checked that nobody holds a table any more.
        self.latest = Some(Arc::new((*table).clone()));
        self.settled = None;
        self.proxy.apply(now, table, &mut self.ops);
    }

    // ---- Peers ----

    fn after(&mut self, delay: u64, action: Action) {
        self.sequence += 1;
        self.actions.insert((self.kernel.now + delay, self.sequence), action);
    }

    fn act(&mut self) {
        // A jump makes many actions due: some of them in this turn, the rest in the next.
        for _ in 0..100 {
            let Some(entry) = self.actions.first_entry() else { break };
            if entry.key().0 > self.kernel.now {
                break;
            }
            let action = entry.remove();
            self.carry_on(action);
        }
    }

    fn carry_on(&mut self, action: Action) {
        match action {
            Action::Arrive => {
                // More than this many at once teach nothing new.
                let crowded = self.actions.len() > 100;
                for _ in 0..if crowded { 0 } else { self.rng.scale(1, 4) } {
                    if self.rng.per_mille(self.habits.udp) {
                        self.new_exchange();
                    } else {
                        self.new_client();
                    }
                }
                let delay = self.rng.between(1, self.habits.arrivals);
                self.after(delay, Action::Arrive);
            }
            Action::Peer(index) => {
                let next = self.peers[index].step(&mut self.kernel, &mut self.rng);
                if let Some(at) = next {
                    self.after(at - self.kernel.now, Action::Peer(index));
                }
            }
            Action::Send { left, mut datagram, pause } => {
                self.kernel.client_sends(datagram);
                datagram.number += 1;
                // Most of a proxy's trains look like the one before.
                if datagram.train.is_some() && self.rng.per_mille(200) {
                    let next = self.kernel.proxied(datagram.exchange);
                    datagram = Datagram { number: datagram.number, ..next };
                }
                if left > 1 {
                    let delay = self.rng.between(1, pause);
                    self.after(delay, Action::Send { left: left - 1, datagram, pause });
                }
            }
            Action::Reply(path, datagram) => self.kernel.endpoint_sends(path, datagram),
            Action::Unreachable(path) => self.kernel.endpoint_refuses(path),
            Action::SwapTable => {
                // Bursts coalesce while the worker has no time.
                if self.next_table.is_none() {
                    self.model.change(&mut self.rng);
                    self.next_table = Some(Next::Model);
                }
                let delay = self.rng.between(1, self.habits.table_swaps);
                self.after(delay, Action::SwapTable);
            }
            Action::ChangeEndpoint => {
                let all: Vec<_> = self.model.endpoints().collect();
                let (_, endpoint) = self.rng.pick(&all);
                self.change_endpoint(endpoint.address);
                let delay = self.rng.scale(100, 1_000_000);
                self.after(delay, Action::ChangeEndpoint);
            }
        }
    }

    fn join(&mut self, peer: Peer) {
        self.peers.push(peer);
        let delay = self.rng.scale(1, 2_000);
        self.after(delay, Action::Peer(self.peers.len() - 1));
    }

    fn change_endpoint(&mut self, address: SocketAddr) {
        let mode = match self.rng.below(10) {
            0..6 => EndpointMode::Accepts,
            6 => EndpointMode::AcceptsAfter(self.rng.scale(1_000, 3_000_000)),
            7 => EndpointMode::Refuses,
            8 => EndpointMode::Silent,
            _ => EndpointMode::Unreachable,
        };
        self.kernel.set_endpoint(address, mode);
    }

    /// A socket of this transport, listening or leaving or gone.
    fn some_socket(&mut self, transport: Transport) -> (SocketId, Protocol, IpAddr) {
        let of_kind = self.model.sockets.iter().filter(|s| s.transport() == transport);
        let all: Vec<_> = of_kind.map(|s| (s.id, s.protocol, s.address.ip())).collect();
        self.rng.pick(&all)
    }

    fn next_client(&mut self) -> SocketAddr {
        self.clients += 1;
        let [_, _, high, low] = self.clients.to_be_bytes();
        SocketAddr::from(([198, 18, high, low], 10_000 + (self.clients % 50_000) as u16))
    }

    fn new_client(&mut self) {
        let (socket, protocol, _) = self.some_socket(Transport::Tcp);
        let address = self.next_client();
        let mut prefix = Vec::new();
        let mut proxied = Proxied::default();
        if self.model.believes(socket, address.ip()) {
            // Clients of a proxy in front have other addresses than all that come by themselves.
            let IpAddr::V4(ip) = address.ip() else { unreachable!("clients have IPv4 addresses") };
            let [_, _, high, low] = ip.octets();
            let source = SocketAddr::from(([100, 64, high, low], address.port()));
            (prefix, proxied) = some_header(&mut self.rng, source);
        }
        if protocol == Protocol::Tls {
            prefix.extend(self.some_hello());
        }
        let window = self.rng.scale(4_096, 4 << 20);
        let len = prefix.len() as u64;
        let conn = self.kernel.peer_connect(socket, address, prefix, window);
        self.kernel.conn_mut(conn).proxied = proxied;
        self.check.client_connects(address, conn);
        let mut peer = Peer::random(&mut self.rng, conn, self.kernel.now, len);
        if self.quiet {
            peer.quiet();
        }
        self.join(peer);
    }

    fn some_hello(&mut self) -> Vec<u8> {
        let names = [Some("a.test"), Some("x.b.test"), Some("y.x.b.test"), Some("none.test"), None];
        let name = self.rng.pick(&names);
        let padding = self.rng.scale(1, 2_000) as u16;
        let fragment = self.rng.scale(16, 4_096) as usize;
        let mut hello = client_hello(name, padding, fragment);
        match self.rng.below(20) {
            0 => hello[0] = b'G',
            1 => hello.truncate(self.rng.below(hello.len() as u64) as usize),
            _ => {}
        }
        hello
    }

    fn new_exchange(&mut self) {
        let (socket, _, ip) = self.some_socket(Transport::Udp);
        let client = self.next_client();
        let local: IpAddr =
            if ip.is_unspecified() { [192, 0, 2, self.rng.between(1, 2) as u8].into() } else { ip };
        let exchange = Exchange { socket, client, says: None, local };
        self.exchanges += 1;
        let count = if self.rng.per_mille(200) { self.rng.between(2, 64) as u32 } else { 1 };
        let bytes = if self.rng.per_mille(20) { 0 } else { self.rng.scale(1, 1_200) as u32 };
        let count = if bytes == 0 { 1 } else { count };
        let (bytes, truncated) = (bytes * count, false);
        let mut datagram = Datagram { exchange, number: 0, bytes, count, truncated, train: None };
        if self.model.believes(socket, client.ip()) {
            datagram = self.kernel.proxied(exchange);
        }
        let left = self.rng.scale(1, 30) as u32;
        let pause = self.rng.scale(10, 500_000);
        self.carry_on(Action::Send { left, datagram, pause });
    }

    fn endpoint_hears(&mut self, path: Path, datagram: Datagram) {
        let address = path.endpoint;
        let present = self.present.get(&address).copied().unwrap_or(0);
        let lame_duck = u64::from(self.model.lame_duck) * 1_000;
        // Leaving sockets keep their flows where they are; one may have come back in this turn.
        let socket = datagram.exchange.socket;
        let leaving = ![&self.in_force, &self.before].iter().all(|ids| ids.contains(&socket));
        assert!(
            leaving || self.kernel.now <= present.saturating_add(lame_duck + 1_000),
            "a flow feeds {address}, which left the table {} us ago",
            self.kernel.now - present
        );
        match self.rng.below(20) {
            0..4 => {}
            4 => {
                let delay = self.rng.scale(10, 1_000);
                self.after(delay, Action::Unreachable(path));
            }
            5 if path.local.is_some() => self.spoof(path, datagram),
            habit => {
                for _ in 0..if habit == 6 { 3 } else { 1 } {
                    let late = self.rng.per_mille(200);
                    let most = if late { self.lateness(address) } else { 2_000 };
                    let delay = self.rng.scale(10, most);
                    self.after(delay, Action::Reply(path, datagram));
                }
            }
        }
    }

    /// Someone else answers: from another port or address, or to an address that has no flow.
    fn spoof(&mut self, path: Path, datagram: Datagram) {
        let SocketAddr::V4(endpoint) = path.endpoint else { return };
        let [_, _, pool, host] = endpoint.ip().octets();
        let (port, strange) = (endpoint.port(), [10, 200, pool, host]);
        let path = match self.rng.below(3) {
            0 => Path { endpoint: (*endpoint.ip(), port + 1).into(), ..path },
            1 => Path { endpoint: (strange, port).into(), ..path },
            _ => Path { local: Some(strange.into()), ..path },
        };
        let delay = self.rng.scale(10, 150_000);
        self.after(delay, Action::Reply(path, datagram));
    }

    /// A flow goes on at an endpoint that has refused it: there is no other to go to.
    fn check_fed(&self, endpoint: SocketAddr) {
        let gauges = self.counters.upstreams.get() + self.counters.pairs.get();
        // Without a socket for it, it can't go.
        let room = gauges + 8 < u64::from(self.model.limits.flows)
            && self.kernel.now >= self.kernel.no_ports.0 + 100_000;
        let Some(table) = self.settled.as_ref().filter(|_| room) else { return };
        let has = |backend: &&Backend| backend.endpoints.iter().any(|of| of.address == endpoint);
        // Nor can it where addresses of its own may be short.
        let backend = table.backends.iter().find(has).filter(|backend| !backend.shared_sockets);
        let Some(backend) = backend else { return };
        let recent = |address: &SocketAddr| {
            let closed = self.kernel.closed_ports.get(address);
            closed.is_some_and(|at| self.kernel.now < at + 5_000_000)
        };
        for other in backend.endpoints.iter().map(|other| other.address) {
            let is_open = other != endpoint && !recent(&other);
            assert!(!is_open, "a flow stays at {endpoint}, whose port is closed; {other}'s is not");
        }
    }

    /// How late an endpoint answers at the most, microseconds.
    fn lateness(&self, endpoint: SocketAddr) -> u64 {
        self.kernel.rests[&endpoint] - EARLIER
    }
}
