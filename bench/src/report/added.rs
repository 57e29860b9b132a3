//! What forwarding adds to routing: the CPU of the whole machine for a datagram, less that of the
//! same load through the same namespaces without a proxy. Pure.

use std::fmt::Write as _;

use crate::results::{Results, Run, Setting, Unit};
use crate::stats::{Interval, median};

use super::numbers::{figure, interval};
use super::palette;

/// Nobody between load and backend.
const ROUTED: &str = "direct";

const FAST_PATH: &str = "ringway-fast-path";

/// A table for each setting that has datagrams through a network and through each peer.
pub fn render(results: &Results) -> String {
    let mut text = String::new();
    for (setting, runs) in results.by_setting() {
        if has_added(&setting, &runs) {
            text.push_str(&table(&setting, &runs));
        }
    }
    if text.is_empty() { text } else { format!("{HEAD}{text}") }
}

const HEAD: &str = "## What forwarding adds to routing\n\n\
    CPU of the whole machine, in seconds for a million datagrams, there and back counted apart. \
    `added` is that less what `direct` takes in the same round, which is the same load routed \
    through the same namespaces: the median over all rounds, and its 95 % interval from the ranks \
    of the differences.\n\n";

fn has_added(setting: &Setting, runs: &[&Run]) -> bool {
    let round_trips = runs.iter().all(|run| run.unit == Unit::RoundTrip);
    let with = |peer: &str| runs.iter().any(|run| run.peer == peer && run.machine.is_some());
    setting.network == "veth" && round_trips && with(ROUTED) && with(FAST_PATH)
}

fn table(setting: &Setting, runs: &[&Run]) -> String {
    let mut text = format!(
        "### {}\n\n| peer | total | added (95 %) | rounds | lost |\n|---|---|---|---|---|\n",
        setting.workload
    );
    for peer in palette::peers(runs) {
        let own: Vec<&Run> = runs.iter().copied().filter(|run| run.peer == peer).collect();
        let totals: Vec<f64> = own.iter().filter_map(|run| total(run)).collect();
        let total = median(&totals).map_or_else(|| "-".to_owned(), figure);
        let differences: Vec<f64> = own.iter().filter_map(|run| added(runs, run)).collect();
        let added = match peer.as_str() {
            ROUTED => "0".to_owned(),
            _ => Interval::of_median(&differences).map_or_else(|| "-".to_owned(), interval),
        };
        let lost = own.iter().map(|run| run.outcome.lost + run.outcome.errors).sum::<u64>();
        let rounds = differences.len();
        let _ = writeln!(text, "| {peer} | {total} | {added} | {rounds} | {lost} |");
    }
    text.push('\n');
    text
}

/// Seconds for a million datagrams. A round trip has two.
fn total(run: &Run) -> Option<f64> {
    let datagrams = run.outcome.operations * 2;
    (datagrams > 0).then_some(run.machine? / datagrams as f64 * 1e6)
}

/// Less the routed load of the same round. The state of the machine may have changed within the
/// round: with as many rounds in each order, that moves the median of the differences neither way.
fn added(runs: &[&Run], run: &Run) -> Option<f64> {
    let routed = runs.iter().find(|other| {
        (other.session, other.round) == (run.session, run.round) && other.peer == ROUTED
    });
    Some(total(run)? - total(routed?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;

    fn through_veth(peers: &[(&str, f64)]) -> Results {
        let mut results = sample("udp-64-100", 6, peers);
        for run in &mut results.runs {
            let cost = peers.iter().find(|(peer, _)| *peer == run.peer).expect("it is there").1;
            run.network = "veth".to_owned();
            run.unit = Unit::RoundTrip;
            // 10,000 round trips.
            run.machine = Some(cost * 0.02);
        }
        results
    }

    #[test]
    fn what_is_added_is_the_total_less_that_of_the_routed_load() {
        let all = [(FAST_PATH, 6.5), ("nginx", 16.0), ("dnat", 7.0), (ROUTED, 6.0)];
        let text = render(&through_veth(&all));
        for expected in [
            "### udp-64-100",
            "| ringway-fast-path | 6.50 | 0.500 (0.500 to 0.500) | 6 | 0 |",
            "| nginx | 16.0 | 10.0 (10.0 to 10.0) | 6 | 0 |",
            "| dnat | 7.00 | 1.00 (1.00 to 1.00) | 6 | 0 |",
            "| direct | 6.00 | 0 | 6 | 0 |",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
    }

    #[test]
    fn without_a_network_or_a_routed_load_nothing_is_said() {
        assert_eq!(render(&sample("udp-64-100", 3, &[(FAST_PATH, 1.0), (ROUTED, 1.0)])), "");
        assert_eq!(render(&through_veth(&[(FAST_PATH, 6.5), ("nginx", 16.0)])), "");
    }
}
