//! What forwarding adds to routing: the CPU of the whole machine for a datagram, less that of the
//! same load through the same namespaces without a proxy. Pure.

use std::fmt::Write as _;

use crate::results::{Results, Run, Setting, Unit};
use crate::stats::{Interval, median};

use super::numbers::{figure, interval};
use super::palette;

/// Nobody between load and backend.
const ROUTED: &str = "direct";

/// Whose costs are held against those of all others.
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
    `added` is that less what `direct` takes, which is the same load routed through the same \
    namespaces. The ratio is what `ringway-fast-path` adds to what the peer adds, over pairs of \
    one round in the same state of the machine: geometric mean and 95 % interval.\n\n";

fn has_added(setting: &Setting, runs: &[&Run]) -> bool {
    let round_trips = runs.iter().all(|run| run.unit == Unit::RoundTrip);
    let with = |peer: &str| runs.iter().any(|run| run.peer == peer && run.machine.is_some());
    setting.network == "veth" && round_trips && with(ROUTED) && with(FAST_PATH)
}

fn table(setting: &Setting, runs: &[&Run]) -> String {
    let mut text = format!(
        "### {}\n\n| peer | total | added | lost | ratio (95 %) | pairs |\n\
         |---|---|---|---|---|---|\n",
        setting.workload
    );
    for peer in palette::peers(runs) {
        let own: Vec<&Run> = runs.iter().copied().filter(|run| run.peer == peer).collect();
        let middle = |values: Vec<f64>| median(&values).map_or_else(|| "-".to_owned(), figure);
        let total = middle(own.iter().filter_map(|run| total(run)).collect());
        let added = middle(own.iter().filter_map(|run| added(runs, run)).collect());
        let lost = own.iter().map(|run| run.outcome.lost + run.outcome.errors).sum::<u64>();
        let ratios = ratios(runs, &own);
        let ratio = match peer.as_str() {
            ROUTED | FAST_PATH => String::new(),
            _ => Interval::of_ratios(&ratios).map_or_else(|| "-".to_owned(), interval),
        };
        let pairs = if ratio.is_empty() { String::new() } else { ratios.len().to_string() };
        let _ = writeln!(text, "| {peer} | {total} | {added} | {lost} | {ratio} | {pairs} |");
    }
    text.push('\n');
    text
}

/// Of the fast path's runs to those of a peer, where the same round has both and the routed one.
fn ratios(runs: &[&Run], own: &[&Run]) -> Vec<f64> {
    let of = |run: &&&Run| {
        let fast = beside(runs, run, FAST_PATH)?;
        Some(added(runs, fast)? / added(runs, run)?)
    };
    own.iter().filter_map(|run| of(&run)).collect()
}

/// Seconds for a million datagrams. A round trip has two.
fn total(run: &Run) -> Option<f64> {
    let datagrams = run.outcome.operations * 2;
    (datagrams > 0).then_some(run.machine? / datagrams as f64 * 1e6)
}

fn added(runs: &[&Run], run: &Run) -> Option<f64> {
    Some(total(run)? - total(beside(runs, run, ROUTED)?)?)
}

/// The peer's run in the same round and state of the machine.
fn beside<'a>(runs: &[&'a Run], run: &Run, peer: &str) -> Option<&'a Run> {
    let same = |other: &&&Run| {
        (other.session, other.round) == (run.session, run.round)
            && other.peer == peer
            && other.state.same(&run.state)
    };
    runs.iter().find(same).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;

    fn through_veth(peers: &[(&str, f64)]) -> Results {
        let mut results = sample("udp-64-100", 3, peers);
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
            "| ringway-fast-path | 6.50 | 0.500 | 0 |  |  |",
            "| nginx | 16.0 | 10.0 | 0 | 0.050 (0.050 to 0.050) | 3 |",
            "| dnat | 7.00 | 1.00 | 0 | 0.500 (0.500 to 0.500) | 3 |",
            "| direct | 6.00 | 0 | 0 |  |  |",
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
