use std::net::Ipv4Addr;

use super::*;
use crate::check::parse;
use crate::compile::compile;
use crate::compile::names::Names;
use crate::model::health_check::DEFAULT;
use crate::model::place::At;

const CHECK: HealthCheck = HealthCheck { rise: 2, fall: 3, ..DEFAULT };

fn states(mut state: State, findings: &[bool]) -> Vec<bool> {
    let next = findings.iter().map(|good| {
        state = state.after(*good, &CHECK);
        state.is_up()
    });
    next.collect()
}

#[test]
fn so_many_in_a_row_take_an_endpoint_out_and_bring_it_back() {
    let new = State::new(&CHECK);
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
    let strict = HealthCheck { rise: 1, fall: 1, ..CHECK };
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
        Self { health: Health::default().following(&config, start), config, start }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    /// Makes all checks that are due; those of the ports `bad` fail.
    fn run(&mut self, millis: u64, bad: &[u16]) -> Vec<u16> {
        let now = self.at(millis);
        let mut ports = Vec::new();
        while let Some(probe) = self.health.due(0, now) {
            let port = probe.endpoint.port();
            let bad = bad.contains(&port);
            let finding = if bad { Finding::Bad("refused".into()) } else { Finding::Good };
            self.health.found(&probe, &finding, now);
            ports.push(port);
        }
        ports
    }

    /// The ports of the endpoints in the table.
    fn table(&self) -> Vec<u16> {
        let whole = compile(&self.config, &mut Names::new(), 1).expect("its parts fit");
        let table = self.health.table(&Arc::new(whole), 2);
        assert_eq!(table.generation, 2);
        table.backends[0].endpoints.iter().map(|endpoint| endpoint.address.port()).collect()
    }
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

#[test]
fn endpoints_that_do_not_answer_hold_up_those_of_their_own_backend_only() {
    let backend = |name: &str, count: u16| {
        let endpoints: Vec<_> = (1..=count).map(|port| format!("\"10.0.0.1:{port}\"")).collect();
        format!(
            "[[backends]]\nname = \"{name}\"\nendpoints = [{}]\nhealth_check = {{}}\n",
            endpoints.join(", ")
        )
    };
    let mut text = backend("healthy", 3);
    (0..20).for_each(|dead| text += &backend(&format!("dead-{dead:02}"), 1_000));
    let mut world = World::new(0, "");
    world.config = parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
    world.health = Health::default().following(&world.config, world.start);
    let (mut under_way, mut checked) = (0, BTreeSet::new());
    for millis in 0..10_000 {
        let now = world.at(millis);
        while let Some(probe) = world.health.due(under_way, now) {
            if &*probe.backend == "healthy" {
                let late = now.saturating_duration_since(probe.due);
                assert!(late <= Duration::from_millis(1), "{probe:?}: {late:?}");
                checked.insert((probe.endpoint, probe.due));
                world.health.found(&probe, &Finding::Good, now);
            } else {
                under_way += 1;
            }
        }
    }
    assert_eq!(checked.len(), 6, "three endpoints, twice in ten seconds");
    assert!((MOST_UNDER_WAY..=MOST_UNDER_WAY + 20).contains(&under_way), "{under_way}");
    for checked in world.health.backends.values() {
        assert!(checked.under_way <= MOST_OF_ONE, "{}", checked.under_way);
    }
}

#[test]
fn the_table_has_what_is_up_and_hashes_over_that() {
    let options = "balance = \"source-hash\"\nhealth_check = { fall = 1, rise = 1 }";
    let mut world = World::new(3, options);
    assert_eq!(world.table(), [1, 2, 3]);
    world.run(5_000, &[2]);
    assert_eq!(world.table(), [1, 3]);
    let whole = Arc::new(compile(&world.config, &mut Names::new(), 1).expect("it fits"));
    let table = world.health.table(&whole, 1);
    let Balance::SourceHash(slots) = &table.backends[0].balance else { panic!("{table:?}") };
    assert!(slots.iter().all(|slot| *slot < 2), "{slots:?}");
    world.run(10_000, &[1, 2, 3]);
    assert_eq!(world.table(), [0u16; 0], "nothing is left, and nothing is made up");
    world.run(15_000, &[]);
    assert_eq!(world.table(), [1, 2, 3]);
    assert!(Arc::ptr_eq(&world.health.table(&whole, 1), &whole), "nothing is copied");
}

#[test]
fn a_reload_keeps_what_is_known_and_forgets_who_is_not_asked_for() {
    let checked = "health_check = { fall = 1 }";
    let mut world = World::new(2, checked);
    world.run(5_000, &[1, 2]);
    let follow = |world: &mut World, count, options: &str| {
        world.config = config(count, options);
        world.health = world.health.following(&world.config, world.at(6_000));
    };
    follow(&mut world, 3, "health_check = { fall = 2, interval = \"1s\" }");
    assert_eq!(world.table(), [3], "who is new is up");
    assert_eq!(world.run(7_000, &[]).len(), 3, "a shorter interval counts at once");
    follow(&mut world, 1, checked);
    follow(&mut world, 2, checked);
    assert_eq!(world.table(), [2], "who was gone is new");
    follow(&mut world, 2, "");
    assert_eq!(world.table(), [1, 2], "nobody is checked");
    assert!(world.run(60_000, &[1, 2]).is_empty());
    assert!(world.health.figures().endpoints.is_empty());
}

#[test]
fn a_check_that_a_reload_overtakes_means_nothing() {
    let mut world = World::new(1, "health_check = { fall = 1 }");
    let probe = world.health.due(0, world.at(5_000)).expect("it is due");
    let checked = world.config.clone();
    world.health = world.health.following(&config(1, ""), world.at(5_100));
    world.health = world.health.following(&checked, world.at(5_200));
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

/// A probe of `address` from `source`.
fn probe(address: SocketAddr, port: u16, source: &str) -> Probe {
    let options = format!("source = [\"{source}\"]\nhealth_check = {{ port = {port} }}");
    let mut world = World::new(0, &options);
    let place = world.config.backends[0].name.place.clone();
    world.config.backends[0].endpoints.push(At { value: address, place });
    world.health = world.health.following(&world.config, world.start);
    world.health.due(0, world.at(5_000)).expect("it is due")
}

#[test]
fn what_this_machine_lacks_is_no_fault_of_the_endpoint() {
    use nix::libc::{EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, ENOBUFS, ENOMEM};
    let is_own = |code| is_own(&io::Error::from_raw_os_error(code));
    assert!([EADDRNOTAVAIL, ENOBUFS, ENOMEM].into_iter().all(is_own));
    assert!(![ECONNREFUSED, EHOSTUNREACH].into_iter().any(is_own));
}

#[tokio::test]
async fn a_check_connects_as_sessions_do() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    assert_eq!(probe(address, 0, "127.0.0.9").make().await, Finding::Good);
    let (_, peer) = listener.accept().await.expect("it has connected");
    assert_eq!(peer.ip().to_string(), "127.0.0.9");
    let elsewhere = SocketAddr::new(address.ip(), 1);
    assert_eq!(probe(elsewhere, address.port(), "127.0.0.9").make().await, Finding::Good);
    let found = probe(address, 0, "192.0.2.1").make().await;
    assert!(matches!(found, Finding::NotMade(_)), "it is not this machine's: {found:?}");
    drop(listener);
    let Finding::Bad(why) = probe(address, 0, "127.0.0.9").make().await else { panic!("good") };
    assert!(why.contains("refused"), "{why}");
}
