use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::check::parse_for;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::machine::Machine;
use config_sync::table::routing::{Limits, RoutingTable};

use crate::contract::{BufferId, Carried, Event, Op, Token};
use crate::proxy::Proxy;
use crate::stats::counters::Counters;
use crate::stats::records::Demotion;

mod barred;

const CONFIG: &str = "
    [[listeners]]
    name = \"l\"
    protocol = \"UDP\"
    address = \"127.0.0.1:53\"
    flow_timeout = \"1h\"
    backends = [\"b\"]
    [[backends]]
    name = \"b\"
    endpoints = [\"10.0.0.1:53\"]
    fast_path = \"auto\"
";

const SECOND: u64 = 1_000_000;

fn table(config: &str) -> Arc<RoutingTable> {
    let machine = Machine { cores: vec![0], congestion: Vec::new() };
    let config = parse_for("f", config, &machine).unwrap_or_else(|why| panic!("{why}"));
    Arc::new(compile(&config, &mut Names::new(), 1).unwrap_or_else(|why| panic!("{why}")))
}

/// A client and its endpoint, and the kernel between them.
struct World {
    proxy: Proxy,
    counters: Arc<Counters>,
    listener: Token,
    upstream: Option<Token>,
    now: u64,
    ops: Vec<(Token, Op)>,
    /// What the kernel has carried, while it forwards the flow.
    carried: Option<Carried>,
    promotions: u64,
    /// The bytes of each datagram.
    payload: Vec<u8>,
}

impl World {
    fn new() -> Self {
        Self::with(CONFIG)
    }

    fn with(config: &str) -> Self {
        let (table, counters) = (table(config), Arc::new(Counters::new()));
        let limits =
            Limits { sessions: 1, flows: 9, buffers: 1, pipes: 1, turn_bytes: 1, bulk_bytes: 1 };
        let mut world = Self {
            proxy: Proxy::new(limits, 1, Arc::clone(&counters)),
            counters,
            listener: Token::socket(table.sockets[0].id),
            upstream: None,
            now: SECOND,
            ops: Vec::new(),
            carried: None,
            promotions: 0,
            payload: vec![0; 9],
        };
        world.proxy.apply(world.now, table, &mut world.ops);
        world
    }

    /// A world whose flow the kernel has begun to forward.
    fn promoted() -> Self {
        let mut world = Self::new();
        for _ in 0..16 {
            world.up();
            world.down();
        }
        world.up();
        assert_eq!(world.promotions, 1);
        world
    }

    /// A datagram of the client, through the kernel or the worker.
    fn up(&mut self) {
        match &mut self.carried {
            Some(carried) => carried.up += 1,
            None => {
                let peer = SocketAddr::from(([10, 9, 9, 9], 9));
                self.event(self.listener, self.datagram(Some(peer)));
            }
        }
    }

    /// A datagram of the endpoint. If `self.up` was never called, there is no way for it.
    fn down(&mut self) {
        match &mut self.carried {
            Some(carried) => carried.down += 1,
            None => self.event(self.upstream.expect("a flow"), self.datagram(None)),
        }
    }

    /// A datagram of the endpoint that comes to the worker, if it forwards the flow.
    fn lost_by_the_kernel(&mut self) {
        if self.carried.is_none() {
            self.down();
        }
    }

    fn event(&mut self, token: Token, event: Event) {
        self.proxy.handle(self.now, token, event, &self.payload, &mut self.ops);
        self.carry_out();
    }

    fn datagram(&self, peer: Option<SocketAddr>) -> Event {
        let size = u32::try_from(self.payload.len()).expect("short");
        let (buffer, local) = (BufferId(0), None);
        Event::Datagrams { buffer, peer, local, bytes: size, size, count: 1, truncated: false }
    }

    fn carry_out(&mut self) {
        while !self.ops.is_empty() {
            for (token, op) in std::mem::take(&mut self.ops) {
                let event = match op {
                    Op::Open { .. } => {
                        self.upstream = Some(token);
                        continue;
                    }
                    Op::Promote { .. } => {
                        self.promotions += 1;
                        self.carried = Some(Carried::default());
                        Event::Promoted { done: true }
                    }
                    Op::Tally => Event::Carried(self.carried.expect("promoted")),
                    Op::Demote => Event::Demoted(self.carried.take().expect("promoted")),
                    _ => continue,
                };
                self.proxy.handle(self.now, token, event, &[], &mut self.ops);
            }
        }
    }

    fn wait(&mut self, micros: u64) {
        let until = self.now + micros;
        while self.now < until {
            self.now = until.min(self.now + 50_000);
            self.proxy.expire(self.now, &mut self.ops);
            self.carry_out();
        }
    }

    /// So many seconds, with ten steps in each.
    fn play(&mut self, seconds: u64, step: impl Fn(&mut Self)) {
        for _ in 0..seconds * 10 {
            step(self);
            self.wait(SECOND / 10);
        }
    }

    /// The seconds until the kernel forwards the flow, or does not.
    fn until(&mut self, in_kernel: bool, step: impl Fn(&mut Self)) -> u64 {
        (0..1_000)
            .find(|_| {
                let is_there = self.carried.is_some() == in_kernel;
                if !is_there {
                    self.play(1, &step);
                }
                is_there
            })
            .expect("it happens")
    }

    fn one_sided(&self) -> u64 {
        self.counters.demotions[Demotion::OneSided as usize].get()
    }
}

/// NAT gives the flow's datagrams other addresses: ten in a second are enough to notice.
#[test]
fn a_flow_that_the_kernels_path_breaks_stays_with_the_worker() {
    let mut world = World::promoted();
    let game = |world: &mut World| {
        world.up();
        world.lost_by_the_kernel();
    };
    assert!((3..=5).contains(&world.until(false, game)));
    assert_eq!(world.one_sided(), 1);
    world.play(600, game);
    assert_eq!(world.promotions, 1, "the worker has heard the silent side at once");
}

/// The same, where the client's datagrams are those that are lost.
#[test]
fn a_flow_is_broken_whichever_side_is_not_heard() {
    let mut world = World::promoted();
    let stream = |world: &mut World| {
        world.down();
        if world.carried.is_none() {
            world.up();
        }
    };
    assert!((3..=5).contains(&world.until(false, stream)));
    world.play(600, stream);
    assert_eq!(world.promotions, 1);
}

#[test]
fn a_short_silence_is_no_reason() {
    let mut world = World::promoted();
    for _ in 0..50 {
        for _ in 0..2 {
            world.play(1, |world| (0..100).for_each(|_| world.up()));
        }
        world.play(1, World::down);
    }
    // One question in 25 s, which is answered.
    for _ in 0..50 {
        world.up();
        world.wait(SECOND / 5);
        world.down();
        world.wait(25 * SECOND);
    }
    assert_eq!((world.promotions, world.one_sided()), (1, 0));
}

/// A call on hold goes on in the kernel nearly all the time, and the call goes on after that.
#[test]
fn a_flow_that_turns_one_way_is_promoted_again() {
    let mut world = World::promoted();
    world.play(10, |world| {
        world.up();
        world.down();
    });
    for least in [3, 6, 12, 24, 48, 48] {
        let most = least + 2;
        assert!((least..=most).contains(&world.until(false, World::down)), "{least} s");
        assert!((3..=4).contains(&world.until(true, World::down)), "the worker listens");
    }
    let before = world.promotions;
    world.play(100, |world| {
        world.up();
        world.down();
    });
    assert_eq!(world.promotions, before);
}

/// The kernel has heard both sides, so its path was not to blame.
#[test]
fn a_side_that_the_kernel_has_heard_may_come_back_through_the_worker() {
    let mut world = World::promoted();
    world.play(1, |world| {
        world.up();
        world.down();
    });
    world.until(false, World::up);
    let game = |world: &mut World| {
        world.up();
        world.down();
    };
    assert!(world.until(true, game) <= 2, "16 more replies");
    // The path breaks after all. The flow gets one more trial, in which the kernel hears nothing.
    let lost = |world: &mut World| {
        world.up();
        world.lost_by_the_kernel();
    };
    assert!((6..=8).contains(&world.until(false, lost)));
    world.play(600, lost);
    assert_eq!((world.promotions, world.one_sided()), (3, 3));
}

/// The kernel has heard both sides. Later it hears none of the client's keepalives, which come
/// while the worker listens.
#[test]
fn a_keepalive_that_the_kernel_missed_proves_nothing() {
    let mut world = World::promoted();
    world.play(1, |world| {
        world.up();
        world.down();
    });
    for _ in 0..5 {
        world.until(false, World::down);
        world.up();
        world.play(5, World::down);
        world.up();
        assert!(world.carried.is_some(), "it is promoted again");
    }
}

/// Nobody knows of this flow whether the kernel's path works, so both sides must talk first.
#[test]
fn a_flow_that_was_never_heard_both_ways_waits_for_replies() {
    let mut world = World::promoted();
    world.until(false, World::up);
    world.play(100, World::up);
    assert_eq!(world.promotions, 1);
    let game = |world: &mut World| {
        world.up();
        world.down();
    };
    assert!(world.until(true, game) <= 2);
}

#[test]
fn counts_beyond_four_billion_are_counted() {
    let mut world = World::promoted();
    for n in 1..20 {
        let many = 1 << (30 + n);
        world.carried = Some(Carried { up: many, down: many, ..Carried::default() });
        world.wait(SECOND);
    }
    assert_eq!((world.promotions, world.one_sided()), (1, 0));
    assert_eq!(world.counters.carried.get(), 2 << 49);
}

/// A reload turns the key off just before the flow is due.
#[test]
fn a_table_without_the_key_promotes_no_flow() {
    let mut world = World::new();
    for _ in 0..15 {
        world.up();
        world.down();
    }
    world.proxy.apply(world.now, table(&CONFIG.replace("auto", "off")), &mut world.ops);
    for _ in 0..100 {
        world.up();
        world.down();
    }
    assert_eq!(world.promotions, 0);
}
