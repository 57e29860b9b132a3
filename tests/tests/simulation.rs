//! The proxy in the simulated kernel: many seeds, each a world of its own.
//!
//! `SEEDS=n` sets how many (default 10,000), `SEED=n` replays one with a trace.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ringway_tests::coverage::Coverage;
use ringway_tests::world;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

#[test]
fn every_seed_keeps_every_promise() {
    if let Some(seed) = number("SEED") {
        let outcome = world::run(seed, true);
        eprintln!("{}", outcome.coverage);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(10_000);
    let next = AtomicU64::new(0);
    let coverage = Mutex::new(Coverage::default());
    let totals = [const { AtomicU64::new(0) }; 3];
    let failed = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || !failed.lock().expect("no panic while held").is_empty() {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| world::run(seed, false))) {
                        Ok(outcome) => {
                            mine.merge(&outcome.coverage);
                            let seen = [outcome.events, outcome.sessions, outcome.flows];
                            for (total, n) in totals.iter().zip(seen) {
                                total.fetch_add(n, Ordering::Relaxed);
                            }
                            assert!(outcome.events >= 2_000 && seen[1] + seen[2] >= 20);
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
        "seed {failed:?} broke a promise; replay with a trace:\n  SEED={} cargo test -p \
         ringway-tests --test simulation every_seed -- --nocapture",
        failed[0]
    );
    let [events, sessions, flows] = totals.map(AtomicU64::into_inner);
    let coverage = coverage.into_inner().expect("no panic while held");
    eprintln!("{seeds} seeds, {events} events, {sessions} sessions, {flows} flows\n{coverage}");
    // A rare pair needs many seeds; a short run is for finding bugs.
    if seeds >= 2_000 {
        assert_eq!(coverage.missing(), [], "pairs of state and fault that were not reached");
    }
}
