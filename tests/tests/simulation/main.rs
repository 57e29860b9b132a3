//! The proxy in the simulated kernel: many seeds, each a world of its own.
//!
//! `SEEDS=n` sets how many (default 10,000), `SEED_SECONDS=n` ends after so long with as many as
//! there were, `SEED=n` replays one with a trace.

#![allow(clippy::cast_possible_truncation, reason = "what is counted here is small")]

mod endpoints;
mod fast_path;
mod flows;
mod making_room;
mod refused_header;

use std::io::Write as _;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use config_sync::table::routing::{Limits, SocketId};
use ringway::stats::records::{CloseReason, Record, SessionRecord};
use ringway_tests::sim::coverage::Coverage;
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::udp::datagram::{Datagram, Exchange};
use ringway_tests::sim::world;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how many seeds there is time for")]
fn every_seed_keeps_every_promise() {
    if let Some(seed) = number("SEED") {
        let outcome = world::run(seed, true);
        eprintln!("{}", outcome.coverage);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(10_000);
    let until = number("SEED_SECONDS").map(|limit| Instant::now() + Duration::from_secs(limit));
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let coverage = Mutex::new(Coverage::default());
    let totals = [const { AtomicU64::new(0) }; 5];
    let failed = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_late = until.is_some_and(|until| Instant::now() >= until);
                    if seed >= seeds
                        || is_late
                        || !failed.lock().expect("no panic while held").is_empty()
                    {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| world::run(seed, false))) {
                        Ok(outcome) => {
                            done.fetch_add(1, Ordering::Relaxed);
                            mine.merge(&outcome.coverage);
                            let world::Outcome {
                                events, sessions, flows, moved, moved_flows, ..
                            } = outcome;
                            let seen = [events, sessions, flows, moved, moved_flows];
                            for (total, n) in totals.iter().zip(seen) {
                                total.fetch_add(n, Ordering::Relaxed);
                            }
                            assert!(events >= 2_000 && seen[1] + seen[2] >= 20);
                        }
                        Err(_) => failed.lock().expect("no panic while held").push(seed),
                    }
                }
                coverage.lock().expect("no panic while held").merge(&mine);
            });
        }
    });
    let failed = failed.into_inner().expect("no panic while held");
    assert!(
        failed.is_empty(),
        "seed {failed:?} broke a promise; replay with a trace:\n  SEED={} cargo test \
         --workspace --test simulation every_seed -- --nocapture",
        failed[0]
    );
    let [events, sessions, flows, moved, moved_flows] = totals.map(AtomicU64::into_inner);
    let coverage = coverage.into_inner().expect("no panic while held");
    // Past the harness, which would show it only if the test failed.
    let seeds = done.into_inner();
    let total = format!(
        "{seeds} seeds, {events} events, {sessions} sessions ({moved} moved), {flows} flows \
         ({moved_flows} moved)"
    );
    assert!(moved > 0 || seeds < 100, "no session went to another process");
    assert!(moved_flows > 0 || seeds < 100, "no flow went to another process");
    writeln!(std::io::stderr(), "{total}\n{coverage}").expect("stderr");
    // A rare pair needs many seeds; a short run is for finding bugs.
    if seeds >= 10_000 {
        assert_eq!(coverage.missing(), [], "pairs of state and fault that were not reached");
    }
}

/// A client of the tests below sends a datagram, and the worker does what follows from it.
fn ask(fake: &mut Fake, port: u16) {
    fake.kernel.client_sends(datagram(port));
    while fake.step(fake.kernel.now + 1_000) {}
}

/// A datagram of the client with this port.
fn datagram(port: u16) -> Datagram {
    let client = SocketAddr::from(([198, 18, 0, 1], port));
    let exchange =
        Exchange { socket: SocketId(0), client, says: None, local: [192, 0, 2, 1].into() };
    Datagram { exchange, number: 0, bytes: 9, count: 1, truncated: false, train: None }
}

fn closed(fake: &Fake) -> impl Iterator<Item = &SessionRecord> {
    fake.records.iter().filter_map(|record| match record {
        Record::Closed(record) => Some(record),
        _ => None,
    })
}

/// The ports of those who were closed for this reason, in the order of their ends.
fn closed_ports(fake: &Fake, reason: CloseReason) -> Vec<u16> {
    let of_reason = closed(fake).filter(|record| record.reason == Some(reason));
    of_reason.map(|record| record.peer.unwrap_or(record.client).port()).collect()
}

const LIMITS: Limits = Limits {
    sessions: 64,
    flows: 64,
    buffers: 8,
    pipes: 8,
    turn_bytes: 1 << 20,
    bulk_bytes: 8 << 20,
};
