//! On paper: what an act of a session costs with many workers because of what they share, by the
//! figures of two threads on two cores.
//!
//! Of a thing that all use one after the other, two threads measure what one use costs more than
//! with a thing of one's own: the cache line that another core had last, or the lock. So long, the
//! thing is held. W workers hold it for a share of the time: W times the uses of a worker in a
//! second times that cost. A use then waits on the average for
//! `cost * share / (2 * (1 - share))` (one server, equal times of service, arrivals at random), and
//! never for more than all other workers.

use std::fmt::Write as _;

use crate::contention::act::{Act, With};

const WORKERS: [u32; 3] = [2, 16, 64];

/// What a worker does in a second if it does nothing else: a connection with its end takes 39 us of
/// its CPU.
const CONNECTIONS: f64 = 25_000.0;
/// Assumed: 25 us each.
const FLOWS: f64 = 40_000.0;

/// What an act uses of a thing.
struct Use {
    act: &'static str,
    thing: &'static str,
    of: Act,
    /// How often the act uses it.
    uses: f64,
    /// How often a worker does the act in a second. `None`: it costs more that the thing is shared,
    /// but nobody waits for another.
    acts: Option<f64>,
}

const USES: [Use; 4] = [
    Use {
        act: "new TCP connection and its end",
        thing: "descriptor table: two sockets",
        of: Act::Socket,
        uses: 2.0,
        acts: Some(CONNECTIONS),
    },
    Use {
        act: "new UDP flow and its end",
        thing: "descriptor table: one socket, until it is registered",
        of: Act::Socket,
        uses: 1.0,
        acts: Some(FLOWS),
    },
    Use {
        act: "TCP request and answer",
        thing: "descriptor table: two receives and two sends",
        of: Act::Receive,
        uses: 4.0,
        acts: None,
    },
    Use {
        act: "new session or flow and its end",
        thing: "count of a limit, if there is one",
        of: Act::Count,
        uses: 2.0,
        acts: Some(CONNECTIONS),
    },
];

/// The table, in Markdown. `cost`: nanoseconds of an act with so many threads; `group`: of a
/// connection to so many listening sockets. `None`: one of them was not measured.
pub fn table(
    cost: impl Fn(Act, With, usize) -> Option<f64>,
    group: impl Fn(usize) -> Option<f64>,
) -> Option<String> {
    let mut table = "| act | uses | 2 workers | 16 | 64 | in use with 64 |\n".to_owned();
    table += "|---|---|---|---|---|---|\n";
    for Use { act, thing, of, uses, acts } in USES {
        let own = cost(of, With::Oneself, 2)?;
        let more = (cost(of, With::All, 2)? - own).max(0.0);
        let waits = |workers| acts.map_or(0.0, |acts| wait(more, workers, uses * acts));
        let costs = WORKERS.map(|workers| uses * (own + more + waits(workers)));
        let share =
            acts.map_or_else(|| "-".to_owned(), |acts| percent(held(more, 64, uses * acts)));
        row(&mut table, (act, thing), costs, &share);
    }
    let grown = |sockets| Some((group(sockets)? - group(1)?).max(0.0));
    let of_groups = [grown(2)?, grown(16)?, grown(64)?];
    let chosen = ("new TCP connection", "choice among the listening sockets");
    row(&mut table, chosen, of_groups, "-");
    let record = cost(Act::Record, With::Oneself, 2)?;
    let sent = ("end of a session or flow", "record, on the worker");
    row(&mut table, sent, [record; 3], "-");
    let receipt = cost(Act::Receipt, With::Oneself, 2)?;
    let received = ("end of a session or flow", "record, on the control thread, without its text");
    let share = percent(held(receipt, 64, CONNECTIONS));
    row(&mut table, received, [receipt; 3], &share);
    let counter = cost(Act::Counter, With::Oneself, 2)?;
    row(&mut table, ("each", "a counter for the metrics"), [counter; 3], "-");
    Some(table)
}

fn row(table: &mut String, (act, uses): (&str, &str), costs: [f64; 3], share: &str) {
    let [two, sixteen, many] = costs.map(figure);
    // Writing to a string can't fail.
    _ = writeln!(table, "| {act} | {uses} | {two} | {sixteen} | {many} | {share} |");
}

/// The share of the time in which the thing is held. More than 1: so often is impossible.
fn held(cost: f64, workers: u32, uses: f64) -> f64 {
    cost * 1e-9 * f64::from(workers) * uses
}

/// Nanoseconds that a use waits for others.
fn wait(cost: f64, workers: u32, uses: f64) -> f64 {
    let (share, most) = (held(cost, workers, uses), cost * f64::from(workers - 1));
    if share < 1.0 { (cost * share / (2.0 * (1.0 - share))).min(most) } else { most }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Nanoseconds, as exact as they are.
pub fn figure(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_use_and_end_at_all_others() {
        assert_eq!(wait(50.0, 2, 0.0), 0.0);
        // Half of the time: half of one's own.
        assert!((wait(100.0, 10, 500_000.0) - 50.0).abs() < 1e-9);
        // More often than can be.
        assert_eq!(wait(100.0, 64, 1e6), 6_300.0);
        assert_eq!(wait(100.0, 2, 4_999_999.0), 100.0);
    }

    #[test]
    fn the_table_needs_all_figures() {
        let cost = |_, with, _| Some(if with == With::All { 60.0 } else { 10.0 });
        let made = table(cost, |sockets| u32::try_from(sockets).ok().map(f64::from));
        let made = made.expect("a table");
        assert_eq!(made.lines().count(), 2 + USES.len() + 4);
        let count = made.lines().find(|line| line.contains("count of a limit"));
        let count = count.expect("the row");
        assert!(count.ends_with("| 120 | 122 | 130 | 16.0 % |"), "{count}");
        assert_eq!(table(|_, _, _| None, |_| Some(1.0)), None);
    }
}
