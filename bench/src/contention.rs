//! What workers of one process would wait for each other for: threads that do nothing but that,
//! with a thing that all share and with one of their own. With more threads than cores it shows
//! what is lost when the holder of a lock is not running, and not what many cores would lose.

mod accept;
mod act;
mod paper;
mod thread;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use crate::contention::act::{Act, Batch, Shared, With, batch};
use crate::contention::thread::cpu;
use crate::stats::median;

#[derive(Args)]
pub struct Options {
    /// How many threads work at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,16,64")]
    threads: Vec<usize>,
    /// How many listening sockets share an address.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,16,64")]
    sockets: Vec<usize>,
    /// Seconds of each run.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Rounds, each with all threads and things in turn.
    #[arg(long, default_value_t = 7)]
    repeat: usize,
}

/// A run, and the name of its row.
type Run = (&'static str, Act, With);

const RUNS: [Run; 14] = [
    ("socket and close, one descriptor table", Act::Socket, With::All),
    ("socket and close, own tables", Act::Socket, With::Oneself),
    ("receive nothing, one descriptor table", Act::Receive, With::All),
    ("receive nothing, own tables", Act::Receive, With::Oneself),
    ("connection, one group of listeners", Act::Connection, With::All),
    ("connection, own listeners", Act::Connection, With::Oneself),
    ("count, shared", Act::Count, With::All),
    ("count, own", Act::Count, With::Oneself),
    ("counter beside those of others", Act::Counter, With::All),
    ("counter in lines of its own", Act::Counter, With::Oneself),
    ("record, one channel", Act::Record, With::All),
    ("record, own channels", Act::Record, With::Oneself),
    ("record, the receiver's part", Act::Receipt, With::Oneself),
    ("allocate and free 4 KiB", Act::Allocate, With::All),
];

/// Prints the CPU of one act, in nanoseconds, for each number of threads; that of a connection, for
/// each number of listening sockets; and what follows for many workers.
///
/// # Errors
/// The kernel gives no sockets, or no own descriptor table.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut all = vec![vec![Vec::new(); options.threads.len()]; RUNS.len()];
    let mut groups = vec![vec![Vec::new(); options.sockets.len()]; GROUPS.len()];
    let mut busiest = groups.clone();
    for round in 0..options.repeat {
        for (costs, (name, act, with)) in all.iter_mut().zip(RUNS) {
            for (costs, threads) in costs.iter_mut().zip(&options.threads) {
                eprint!("\rround {} of {}: {threads} x {name}        ", round + 1, options.repeat);
                costs.push(measure(act, with, *threads, options.seconds)?);
            }
        }
        for (group, (_, is_steered)) in GROUPS.iter().enumerate() {
            for (place, sockets) in options.sockets.iter().enumerate() {
                let (cost, share) = accept::measure(*sockets, *is_steered, options.seconds)?;
                groups[group][place].push(cost);
                busiest[group][place].push(share);
            }
        }
    }
    eprintln!();
    println!("nanoseconds of CPU, medians of {} rounds\n", options.repeat);
    let all = medians(&all);
    print("threads", &options.threads, RUNS.map(|run| run.0).into_iter().zip(&all));
    let groups = medians(&groups);
    let names = GROUPS.map(|group| group.0);
    print("listening sockets", &options.sockets, names.into_iter().zip(&groups));
    println!("connections of the busiest socket, beside an equal share\n");
    print("listening sockets", &options.sockets, names.into_iter().zip(&medians(&busiest)));
    let column = |act, with, threads| {
        let run = RUNS.iter().position(|run| (run.1, run.2) == (act, with))?;
        Some(all[run][options.threads.iter().position(|of| *of == threads)?])
    };
    let group = |sockets| {
        let place = options.sockets.iter().position(|of| *of == sockets)?;
        Some(groups[0][place])
    };
    match paper::table(column, group) {
        Some(table) => println!("{table}"),
        None => println!("many workers: needs 2 threads, and groups of 1, 2, 16 and 64 sockets"),
    }
    Ok(())
}

/// Whether the process steers connections to listening sockets, as Ringway does.
const GROUPS: [(&str, bool); 2] =
    [("connection, steered by its source", true), ("connection, the kernel's choice", false)];

fn medians(all: &[Vec<Vec<f64>>]) -> Vec<Vec<f64>> {
    let of_row = |row: &Vec<Vec<f64>>| {
        row.iter().map(|costs| median(costs).unwrap_or_default()).collect::<Vec<_>>()
    };
    all.iter().map(of_row).collect()
}

/// A table in Markdown.
fn print<'r>(
    head: &str,
    columns: &[usize],
    rows: impl IntoIterator<Item = (&'r str, &'r Vec<f64>)>,
) {
    println!(
        "| {head} | {} |",
        columns.iter().map(usize::to_string).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}", "---|".repeat(columns.len()));
    for (name, values) in rows {
        let values: Vec<_> = values.iter().map(|value| paper::figure(*value)).collect();
        println!("| {name} | {} |", values.join(" | "));
    }
    println!();
}

/// Nanoseconds of CPU of one act, over all threads.
fn measure(act: Act, with: With, threads: usize, seconds: f64) -> anyhow::Result<f64> {
    let shared = Shared::new(act, with, threads)?;
    let (begin, end, over) = (Barrier::new(threads + 1), AtomicBool::new(false), &shared.over);
    let (acts, receipts) = std::thread::scope(|scope| {
        let (shared, begin, end) = (&shared, &begin, &end);
        let receiver = scope.spawn(move || -> anyhow::Result<_> {
            let before = cpu()?;
            Ok((shared.receive(), cpu()? - before))
        });
        let worker = |thread| {
            scope.spawn(move || {
                let batch = batch(act, with, shared, thread);
                // Whoever failed is waited for too.
                begin.wait();
                work(batch?, end)
            })
        };
        let workers: Vec<_> = (0..threads).map(worker).collect();
        begin.wait();
        std::thread::sleep(Duration::from_secs_f64(seconds));
        end.store(true, Ordering::Relaxed);
        let joined = workers.into_iter().map(|worker| worker.join().expect("it does not panic"));
        let acts = joined.collect::<Vec<_>>();
        over.store(true, Ordering::Relaxed);
        let receipts = receiver.join().expect("it does not panic")?;
        anyhow::Ok((acts.into_iter().collect::<anyhow::Result<Vec<_>>>()?, receipts))
    })?;
    let all = if act == Act::Receipt { vec![receipts] } else { acts };
    let count: u64 = all.iter().map(|(acts, _)| acts).sum();
    let spent: Duration = all.iter().map(|(_, spent)| *spent).sum();
    Ok(spent.as_secs_f64() * 1e9 / count.max(1) as f64)
}

/// How often a thread acts until the end, and its CPU.
fn work(mut batch: Batch<'_>, end: &AtomicBool) -> anyhow::Result<(u64, Duration)> {
    let (before, mut acts) = (cpu()?, 0);
    while !end.load(Ordering::Relaxed) {
        acts += batch()?;
    }
    Ok((acts, cpu()? - before))
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

    #[test]
    fn all_sockets_of_a_group_get_connections() {
        for (name, is_steered) in GROUPS {
            let (cost, busiest) = accept::measure(4, is_steered, 0.1).expect(name);
            assert!(cost > 0.0 && (1.0..3.0).contains(&busiest), "{name}: {cost} {busiest}");
        }
    }
}
