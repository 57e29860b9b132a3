//! Several workers with one table: what they count together.

use std::net::SocketAddr;
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
    table.backends[0].loads.iter().map(|load| load.sessions.get()).collect()
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
            let endpoint = balancer.endpoint(&table.backends[0], client(), &[]);
            balancer.opened(endpoint.expect("there are two").id);
        }
    };
    // One worker has opened on one endpoint only, and the next worker sees that.
    let mut first = worker(&table, 7);
    (0..30).for_each(|_| first.opened(EndpointId(1)));
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
