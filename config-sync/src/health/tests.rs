use std::collections::{BTreeSet, VecDeque};

use super::*;
use crate::check::parse;
use crate::compile::names::Names;
use crate::compile::whole;
use crate::compile::whole::Whole;
use crate::model::endpoint::Resolved;
use crate::model::health_check::{HealthCheck, Kind};
use crate::table::routing::Balance;

/// The places where there are files enough.
const PLACES: usize = 4_096;

fn check() -> HealthCheck {
    HealthCheck { rise: 2, fall: 3, ..HealthCheck::new(Kind::Tcp) }
}

fn states(mut state: State, findings: &[bool]) -> Vec<bool> {
    let next = findings.iter().map(|good| {
        state = state.after(*good, &check());
        state.is_up()
    });
    next.collect()
}

#[test]
fn so_many_in_a_row_take_an_endpoint_out_and_bring_it_back() {
    let new = State::new(&check());
    assert!(new.is_up(), "nothing waits for the first check");
    assert_eq!(states(new, &[false]), [false], "but that one decides");
    let fails = [true, false, false, true, false, false, false];
    assert_eq!(states(new, &fails), [true, true, true, true, true, true, false]);
    let comes_back = [true, false, true, true, false];
    let down = State::Down { passed: 0 };
    assert_eq!(states(down, &comes_back), [false, false, false, true, true]);
}

#[test]
fn fewer_that_are_allowed_by_a_new_configuration_count_at_the_next_check() {
    let strict = HealthCheck { rise: 1, fall: 1, ..check() };
    assert!(!State::Up { failed: 2 }.after(false, &strict).is_up());
    assert!(State::Down { passed: 1 }.after(true, &strict).is_up());
}

/// Endpoints 1 to `count` of `b`, known since `start`.
struct World {
    config: Config,
    health: Health,
    start: Instant,
}

impl World {
    fn new(count: u16, options: &str) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let start = Instant::now();
        let config = config(count, options);
        Self { health: follow(&Health::new(PLACES, 0), &config, start), config, start }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    /// Makes all checks that are due; those of the ports `bad` fail.
    fn run(&mut self, millis: u64, bad: &[u16]) -> Vec<u16> {
        let now = self.at(millis);
        let mut ports = Vec::new();
        while let Some(probe) = self.health.due(0, now) {
            let port = probe.endpoint.socket_address().map_or(0, |at| at.port());
            let bad = bad.contains(&port);
            let finding = if bad { Finding::Bad("refused".into()) } else { Finding::Good };
            self.health.found(&probe, &finding, now);
            ports.push(port);
        }
        ports
    }

    /// The ports of the endpoints in the table.
    fn table(&self) -> Vec<u16> {
        let standing = |backend: &str, at| self.health.standing(backend, at);
        let table = compiled(&self.config).pickable(2, &standing, None);
        assert_eq!(table.generation, 2);
        table.backends[0]
            .endpoints
            .iter()
            .map(|of| of.address.socket_address().map_or(0, |at| at.port()))
            .collect()
    }
}

/// The health of `config` after `before`.
fn follow(before: &Health, config: &Config, now: Instant) -> Health {
    let whole = compiled(config);
    before.following(config, (&whole.table, &whole.checks), now)
}

fn compiled(config: &Config) -> Whole {
    whole(config, &Resolved::default(), &mut Names::new()).expect("its parts fit")
}

/// The weights of a route's backends, with the backends in `down` down.
fn weights(on_unavailable: &str, empty: &str, down: &[&str]) -> Vec<u32> {
    let backend = |name: &str, port: u16| {
        let endpoints = if name == empty { String::new() } else { format!("\"10.0.0.1:{port}\"") };
        let keys = "health_check = {}";
        format!("[[backends]]\nname = \"{name}\"\nendpoints = [{endpoints}]\n{keys}\n")
    };
    let shares = "{ name = \"a\", weight = 70 }, { name = \"b\", weight = 20 }, { name = \"c\", \
                  weight = 10 }";
    let text = format!(
        "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\naddress = \"0.0.0.0:80\"\n[[routes]]\n\
         name = \"r\"\nlisteners = [\"l\"]\n{on_unavailable}\nbackends = [{shares}]\n{}{}{}",
        backend("a", 1),
        backend("b", 2),
        backend("c", 3)
    );
    let config = parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    let start = Instant::now();
    let mut health = follow(&Health::new(PLACES, 0), &config, start);
    let later = start + Duration::from_secs(60);
    while let Some(probe) = health.due(0, later) {
        let is_down = down.contains(&&*probe.backend);
        let finding = if is_down { Finding::Bad("refused".into()) } else { Finding::Good };
        health.found(&probe, &finding, later);
    }
    let standing = |backend: &str, endpoint| health.standing(backend, endpoint);
    let table = compiled(&config).pickable(2, &standing, None);
    table.routes[0].backends.iter().map(|share| share.weight).collect()
}

#[test]
fn a_backend_without_endpoints_refuses_its_share_or_gives_it_to_the_others() {
    for keys in ["", "on_unavailable = \"refuse\""] {
        assert_eq!(weights(keys, "b", &["a"]), [70, 20, 10]);
    }
    let next = "on_unavailable = \"next\"";
    assert_eq!(weights(next, "", &[]), [70, 20, 10]);
    assert_eq!(weights(next, "", &["a"]), [0, 20, 10], "in proportion");
    assert_eq!(weights(next, "b", &[]), [70, 0, 10], "without any endpoint in the file");
    assert_eq!(weights(next, "b", &["a"]), [0, 0, 10]);
    assert_eq!(weights(next, "", &["a", "b", "c"]), [70, 20, 10], "no endpoint, not no backend");
}

fn config(count: u16, options: &str) -> Config {
    let endpoints: Vec<_> = (1..=count).map(|port| format!("\"10.0.0.1:{port}\"")).collect();
    let text =
        format!("[[backends]]\nname = \"b\"\nendpoints = [{}]\n{options}\n", endpoints.join(", "));
    parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn checks_are_spread_over_the_interval_and_stay_so() {
    let mut world = World::new(1000, "health_check = { interval = \"1s\" }");
    let rounds = |world: &mut World, from: u64| -> Vec<_> {
        let rounds = (1..=10u64).map(|tenth| {
            let mut round = world.run(from + tenth * 100 - 1, &[]);
            round.sort_unstable();
            round
        });
        rounds.collect()
    };
    let first = rounds(&mut world, 0);
    assert_eq!(first.iter().map(Vec::len).sum::<usize>(), 1000, "each once");
    assert!(first.iter().all(|round| (50..=150).contains(&round.len())), "{first:?}");
    assert_eq!(rounds(&mut world, 1_000), first);
    // After a time without checks, each endpoint is checked once, and then as before.
    assert_eq!(world.run(60_999, &[]).len(), 1000);
    assert_eq!(rounds(&mut world, 61_000), first);
}

#[test]
fn an_endpoint_has_one_check_at_a_time() {
    let mut world = World::new(1, "health_check = { interval = \"1s\", timeout = \"1s\" }");
    let probe = world.health.due(0, world.at(1_000)).expect("it is due");
    assert!(world.health.due(0, world.at(60_000)).is_none(), "it is under way");
    world.health.found(&probe, &Finding::Good, world.at(2_010));
    world.health.found(&probe, &Finding::Bad("twice".into()), world.at(2_010));
    assert_eq!(world.health.figures().checks[0].1, Tally { ok: 1, failed: 0, not_made: 0 });
    assert!(world.health.due(0, world.at(2_010)).is_some(), "late by less than an interval");
}

/// `backends` backends of `count` endpoints that never answer, and one healthy backend of three.
/// Each check of a dead one ends at its timeout. Returns the number of checks of dead endpoints.
fn beside_dead(backends: usize, count: u16, options: &str) -> usize {
    let backend = |nth: usize, name: &str, count: u16| {
        let ip = std::net::Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(nth).expect("a few"));
        let endpoints: Vec<_> = (1..=count).map(|port| format!("\"{ip}:{port}\"")).collect();
        format!(
            "[[backends]]\nname = \"{name}\"\nendpoints = [{}]\n\
             health_check = {{ {options} }}\n",
            endpoints.join(", ")
        )
    };
    let mut text = backend(0, "healthy", 3);
    (1..=backends).for_each(|nth| text += &backend(nth, &format!("dead-{nth:05}"), count));
    let mut world = World::new(0, "");
    world.config = parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
    world.health = follow(&Health::new(PLACES, 0), &world.config, world.start);
    let (mut under_way, mut healthy, mut dead) = (VecDeque::new(), BTreeSet::new(), 0);
    for tick in 0..(40_000 / 20) {
        let now = world.at(tick * 20);
        while under_way.front().is_some_and(|(_, ends)| *ends <= now) {
            let (probe, _) = under_way.pop_front().expect("it is there");
            world.health.found(&probe, &Finding::Bad("no answer".into()), now);
            dead += 1;
        }
        while let Some(probe) = world.health.due(under_way.len(), now) {
            if &*probe.backend == "healthy" {
                let late = now.saturating_duration_since(probe.due);
                assert!(late <= Duration::from_millis(20), "{probe:?}: {late:?}");
                healthy.insert((probe.endpoint, probe.due));
                world.health.found(&probe, &Finding::Good, now);
            } else {
                let timeout = Duration::from_millis(probe.plan.check.timeout.into());
                under_way.push_back((probe, now + timeout));
            }
        }
        assert!(under_way.len() <= PLACES, "{}", under_way.len());
    }
    assert_eq!(healthy.len(), 24, "three endpoints, eight times in forty seconds");
    dead
}

#[test]
fn ten_thousand_endpoints_that_do_not_answer_delay_no_check_of_a_healthy_backend() {
    // With the default times 4,000 of 10,000 checks are under way at once, if there is room.
    let in_one = beside_dead(1, 10_000, "");
    assert!(in_one > 20_000, "a round takes 20 s at most: {in_one}");
    let in_ten = beside_dead(10, 1_000, "");
    assert!(in_ten > 30_000, "{in_ten}");
    let in_many = beside_dead(10_000, 1, "");
    assert!(in_many > 30_000, "{in_many}");
    // Each check takes the whole interval, so there is never room for all.
    let slow = beside_dead(10, 1_000, "timeout = \"5s\"");
    assert!(slow > 10_000, "{slow}");
}

#[test]
fn intervals_hang_on_the_state() {
    let times = "interval = \"10s\", fast_interval = \"1s\", down_interval = \"30s\"";
    let mut world = World::new(1, &format!("health_check = {{ {times}, fall = 3, rise = 2 }}"));
    // The pause after each check.
    let mut pause = |good: bool| {
        let slot = world.health.backends["b"].endpoints.values().next().expect("one").due;
        let millis = u64::try_from((slot - world.start).as_millis()).expect("a time");
        assert_eq!(world.run(millis, if good { &[] } else { &[1] }), [1]);
        (world.health.backends["b"].endpoints.values().next().expect("one").due - slot).as_secs()
    };
    let seen =
        [true, true, false, false, true, false, false, false, false, true, false, true, true];
    let pauses = seen.map(&mut pause);
    assert_eq!(pauses, [10, 10, 1, 1, 10, 1, 1, 30, 30, 1, 30, 1, 10]);
}

#[test]
fn jitter_makes_checks_late_and_does_not_add_up() {
    let mut world = World::new(1, "health_check = { interval = \"1s\", jitter = \"400ms\" }");
    let (mut offsets, mut first) = (BTreeSet::new(), None);
    for nth in 0..200u64 {
        let due = world.health.backends["b"].endpoints.values().next().expect("one").due;
        let first = *first.get_or_insert(due);
        let late = due - first - Duration::from_secs(nth);
        assert!(late <= Duration::from_millis(400), "{nth}: {late:?}");
        offsets.insert(late);
        let millis = u64::try_from((due - world.start).as_millis()).expect("a time");
        assert_eq!(world.run(millis, &[]), [1]);
    }
    assert!(offsets.len() > 100, "{offsets:?}");
}

#[test]
fn the_table_has_what_is_up_and_hashes_over_that() {
    let options = "balance = \"source-hash\"\nhealth_check = { fall = 1, rise = 1 }";
    let mut world = World::new(3, options);
    assert_eq!(world.table(), [1, 2, 3]);
    world.run(5_000, &[2]);
    assert_eq!(world.table(), [1, 3]);
    let standing = |backend: &str, at| world.health.standing(backend, at);
    let table = compiled(&world.config).pickable(1, &standing, None);
    let Balance::SourceHash(slots) = &table.backends[0].balance else { panic!("{table:?}") };
    assert!(slots.iter().all(|slot| *slot < 2), "{slots:?}");
    world.run(10_000, &[1, 2, 3]);
    assert_eq!(world.table(), [0u16; 0], "nothing is left, and nothing is made up");
    world.run(15_000, &[]);
    assert_eq!(world.table(), [1, 2, 3]);
}

#[test]
fn an_endpoint_that_asks_for_no_share_gets_nothing_new() {
    let mut world = World::new(2, "health_check = { type = \"agent\" }");
    let probe = world.health.due(0, world.at(5_000)).expect("it is due");
    let port = |of: EndpointAddress| of.socket_address().map_or(0, |at| at.port());
    let other = 3 - port(probe.endpoint);
    world.health.found(&probe, &Finding::Share(0), world.at(5_000));
    assert_eq!(world.table(), [other], "it drains");
    assert!(world.health.standing("b", probe.endpoint).is_up, "nobody closes its sessions");
    world.run(5_000, &[]);
    let probe = world.health.due(0, world.at(9_999)).expect("it is due");
    world.health.found(&probe, &Finding::Share(75), world.at(9_999));
    assert_eq!(world.table(), [1, 2]);
}

#[test]
fn a_reload_keeps_what_is_known_and_forgets_who_is_not_asked_for() {
    let checked = "health_check = { fall = 1 }";
    let mut world = World::new(2, checked);
    world.run(5_000, &[1, 2]);
    let change = |world: &mut World, count, options: &str| {
        world.config = config(count, options);
        world.health = follow(&world.health, &world.config, world.at(6_000));
    };
    change(&mut world, 3, "health_check = { fall = 2, interval = \"1s\" }");
    assert_eq!(world.table(), [3], "who is new is up");
    assert_eq!(world.run(7_000, &[]).len(), 3, "a shorter interval counts at once");
    change(&mut world, 1, checked);
    change(&mut world, 2, checked);
    assert_eq!(world.table(), [2], "who was gone is new");
    change(&mut world, 2, "");
    assert_eq!(world.table(), [1, 2], "nobody is checked");
    assert!(world.run(60_000, &[1, 2]).is_empty());
    assert!(world.health.figures().endpoints.is_empty());
}

#[test]
fn a_check_that_a_reload_overtakes_means_nothing() {
    let mut world = World::new(1, "health_check = { fall = 1 }");
    let probe = world.health.due(0, world.at(5_000)).expect("it is due");
    let checked = world.config.clone();
    world.health = follow(&world.health, &config(1, ""), world.at(5_100));
    world.health = follow(&world.health, &checked, world.at(5_200));
    world.health.found(&probe, &Finding::Bad("old".into()), world.at(5_300));
    assert_eq!(world.table(), [1]);
    assert_eq!(world.run(11_000, &[]), [1], "it has one of its own");
}

#[test]
fn a_check_that_could_not_be_made_says_nothing() {
    let mut world = World::new(1, "health_check = { fall = 1 }");
    let probe = world.health.due(0, world.at(5_000)).expect("it is due");
    world.health.found(&probe, &Finding::NotMade("no file".into()), world.at(5_000));
    assert_eq!(world.table(), [1]);
    assert_eq!(world.health.figures().checks[0].1, Tally { ok: 0, failed: 0, not_made: 1 });
}
