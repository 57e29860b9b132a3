//! Several workers with one table: what they count together.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;

use config_sync::check::parse_for;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::machine::Machine;
use config_sync::table::routing::{EndpointId, RoutingTable};
use ringway::proxy::balance::Balancer;

fn table(backend: &str) -> RoutingTable {
    let machine = Machine { cores: vec![0], congestion: Vec::new() };
    let text = format!("[[backends]]\nname = \"b\"\n{backend}\n");
    let config = parse_for("f", &text, &machine).unwrap_or_else(|problems| panic!("{problems}"));
    compile(&config, &mut Names::new(), 1).unwrap_or_else(|problems| panic!("{problems}"))
}

fn worker(table: &RoutingTable, seed: u64) -> Balancer {
    let mut balancer = Balancer::new(seed);
    balancer.prepare(table);
    balancer
}

fn client() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1))
}

fn counts(table: &RoutingTable) -> Vec<u32> {
    let loads = table.backends[0].loads.iter().flatten();
    loads.map(|load| load.sessions.get()).collect()
}

/// A worker may miss the one session that each other worker is about to add. So the endpoint that
/// has more has at most one session for each worker more.
#[test]
fn least_connections_holds_over_all_workers() {
    const WORKERS: u32 = 4;
    let table =
        table("balance = \"least-connections\"\nendpoints = [\"10.0.0.1:80\", \"10.0.0.2:80\"]");
    let open = |mut balancer: Balancer, sessions| {
        for _ in 0..sessions {
            balancer.endpoint(&table.backends[0], client(), &[]).expect("there are two");
        }
    };
    // One worker has opened on one endpoint only, and the next worker sees that.
    let mut first = worker(&table, 7);
    (0..30).for_each(|_| _ = first.endpoint(&table.backends[0], client(), &[EndpointId(0)]));
    open(worker(&table, 8), 30);
    assert_eq!(counts(&table), [30, 30]);
    thread::scope(|scope| {
        for seed in 0..WORKERS {
            let (table, open) = (&table, &open);
            scope.spawn(move || open(worker(table, seed.into()), 5_000));
        }
    });
    let counts = counts(&table);
    assert_eq!(counts.iter().sum::<u32>(), 20_060);
    assert!(counts[0].abs_diff(counts[1]) <= WORKERS, "{counts:?}");
}

/// Workers that open and close at the same time never have more than the endpoint takes. With all
/// closed, each place is free again.
#[test]
fn an_endpoint_never_has_more_than_its_sessions() {
    let table = table("endpoints = [{ address = \"10.0.0.1:80\", max_sessions = 3 }]");
    let (open, most) = (AtomicU32::new(0), AtomicU32::new(0));
    let work = |seed: u64| {
        let mut balancer = worker(&table, seed);
        for _ in 0..20_000 {
            let picked = balancer.session_endpoint(&table.backends[0], client(), &[], 0);
            let Some(endpoint) = picked else { continue };
            most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
            open.fetch_sub(1, SeqCst);
            balancer.closed(endpoint.id);
        }
    };
    thread::scope(|scope| {
        for seed in 0..6 {
            let work = &work;
            scope.spawn(move || work(seed));
        }
    });
    assert!((1..=3).contains(&most.load(SeqCst)), "{most:?}");
    assert_eq!(counts(&table), [0]);
    let mut last = worker(&table, 9);
    let mut opens = || last.endpoint(&table.backends[0], client(), &[]).is_some();
    assert_eq!([(); 4].map(|()| opens()), [true, true, true, false]);
}
