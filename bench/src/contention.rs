//! What workers of one process would wait for each other for: threads that do nothing but that,
//! with a thing that all share and with one of their own. With more threads than cores it shows
//! what is lost when the holder of a lock is not running, and not what many cores would lose.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::time::ClockId;

use crate::stats::median;

#[derive(Args)]
pub struct Options {
    /// How many threads work at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,16,64")]
    threads: Vec<usize>,
    /// Seconds of each run.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Rounds, each with all threads and things in turn.
    #[arg(long, default_value_t = 7)]
    repeat: usize,
}

/// Something that workers do often.
#[derive(Clone, Copy)]
enum Act {
    /// socket(2) and close(2): a place in the descriptor table.
    Socket,
    /// A count of all workers, as of `max_sessions` and of a source's sessions.
    Count,
    /// 4 KiB of the allocator's, there and back. Sessions and flows have their memory from the
    /// start.
    Allocate,
}

/// Whether threads share what they work on.
#[derive(Clone, Copy, PartialEq)]
enum With {
    All,
    Oneself,
}

const RUNS: [(&str, Act, With); 5] = [
    ("socket and close, one descriptor table", Act::Socket, With::All),
    ("socket and close, own tables", Act::Socket, With::Oneself),
    ("count, shared", Act::Count, With::All),
    ("count, own", Act::Count, With::Oneself),
    ("allocate and free 4 KiB", Act::Allocate, With::All),
];

/// A cache line of its own, and the next, which some processors load with it.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// Prints the CPU of one act, in nanoseconds, for each number of threads.
///
/// # Errors
/// The kernel gives no sockets or no own descriptor table.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut all = vec![vec![Vec::new(); options.threads.len()]; RUNS.len()];
    for round in 0..options.repeat {
        for (costs, (name, act, with)) in all.iter_mut().zip(RUNS) {
            for (costs, threads) in costs.iter_mut().zip(&options.threads) {
                eprint!("\rround {} of {}: {threads} x {name}        ", round + 1, options.repeat);
                costs.push(measure(act, with, *threads, options.seconds)?);
            }
        }
    }
    eprintln!();
    println!("nanoseconds of CPU, medians of {} rounds", options.repeat);
    print!("{:<40}", "threads");
    options.threads.iter().for_each(|threads| print!(" {threads:>8}"));
    println!();
    for (costs, (name, ..)) in all.iter().zip(RUNS) {
        print!("{name:<40}");
        costs.iter().for_each(|costs| print!(" {:>8.1}", median(costs).unwrap_or_default()));
        println!();
    }
    Ok(())
}

/// Nanoseconds of CPU of one act, over all threads.
fn measure(act: Act, with: With, threads: usize, seconds: f64) -> anyhow::Result<f64> {
    let (begin, end) = (Barrier::new(threads + 1), AtomicBool::new(false));
    let shared = Line::default();
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let own = Line::default();
                    let count = if with == With::All { &shared } else { &own };
                    let ready = match (act, with) {
                        (Act::Socket, With::Oneself) => unshare(CloneFlags::CLONE_FILES),
                        _ => Ok(()),
                    };
                    // Whoever failed is waited for too.
                    begin.wait();
                    ready.context("a descriptor table of one's own")?;
                    work(act, count, &end)
                })
            })
            .collect();
        begin.wait();
        std::thread::sleep(Duration::from_secs_f64(seconds));
        end.store(true, Ordering::Relaxed);
        let joined = workers.into_iter().map(|worker| worker.join().expect("it does not panic"));
        joined.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let acts: u64 = results.iter().map(|(acts, _)| acts).sum();
    let spent: Duration = results.iter().map(|(_, spent)| *spent).sum();
    Ok(spent.as_secs_f64() * 1e9 / acts.max(1) as f64)
}

/// How often a thread acts until the end, and its CPU.
fn work(act: Act, count: &Line, end: &AtomicBool) -> anyhow::Result<(u64, Duration)> {
    let clock = || ClockId::CLOCK_THREAD_CPUTIME_ID.now().map(Duration::from);
    let (before, mut acts) = (clock()?, 0);
    while !end.load(Ordering::Relaxed) {
        // The end is looked at once in so many acts.
        for _ in 0..64 {
            match act {
                Act::Socket => {
                    let flags = SockFlag::SOCK_CLOEXEC;
                    drop(socket(AddressFamily::Inet, SockType::Stream, flags, None)?);
                }
                Act::Count => {
                    count.0.fetch_add(1, Ordering::Relaxed);
                }
                Act::Allocate => drop(black_box(Vec::<u8>::with_capacity(4_096))),
            }
        }
        acts += 64;
    }
    Ok((acts, clock()? - before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_act_costs_something() {
        for (name, act, with) in RUNS {
            let cost = measure(act, with, 2, 0.02).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            assert!(cost > 0.0, "{name}");
        }
    }
}
