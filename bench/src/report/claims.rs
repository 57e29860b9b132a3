//! What Ringway claims, as a table, and what a comparison has to say to each claim. Pure.

use std::collections::BTreeSet;

use clap::ValueEnum as _;

use crate::peers::Peer;
use crate::results::{Metric, Results, Run, Setting, matches};
use crate::stats::{Interval, median};

/// Fewer pairs than this, or a quick run, support no verdict.
pub const ENOUGH_PAIRS: usize = 12;

/// The same for a figure that stands alone, such as the memory of an idle connection.
const ENOUGH_VALUES: usize = 3;

pub const OURSELVES: &str = "ringway";

pub struct Claim {
    /// Patterns of workload names.
    workloads: &'static [&'static str],
    metric: Metric,
    against: Against,
    target: Target,
}

#[derive(Clone, Copy)]
enum Against {
    /// The one with the best median of the metric in this run, of all that are somebody else's:
    /// not limits (`direct`, `dnat`), not yardsticks of our own (`epoll-splice`, `monoio`).
    Anybody,
    /// The same of these.
    Best(&'static [&'static str]),
    /// Each of them by itself.
    Each(&'static [&'static str]),
    /// A figure, not a ratio.
    Nobody,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
}

const ANYBODY: Against = Against::Anybody;
const HAPROXY: Against = Against::Best(&["haproxy-splice", "haproxy-copy"]);
const SPLICING: Against = Against::Each(&["haproxy-splice"]);
const COPYING: Against = Against::Each(&["haproxy-copy", "nginx", "envoy", "sozu"]);
const NGINX: Against = Against::Each(&["nginx"]);
const DNSDIST: Against = Against::Each(&["dnsdist"]);

const fn claim(
    workloads: &'static [&'static str],
    metric: Metric,
    target: Target,
    against: Against,
) -> Claim {
    Claim { workloads, metric, against, target }
}

use Metric::{AnonymousPerSession, Cpu, Files, Lost, P50, P99, Throughput};
use Target::{AtLeast, AtMost};

pub const CLAIMS: &[Claim] = &[
    claim(&["tcp-bulk-1-*"], Cpu, AtMost(0.80), SPLICING),
    claim(&["tcp-bulk-8-*"], Cpu, AtMost(0.90), SPLICING),
    claim(&["tcp-bulk-*"], Cpu, AtMost(0.35), COPYING),
    claim(&["tcp-bulk-*"], Throughput, AtLeast(1.0), HAPROXY),
    claim(&["tcp-request-*x64"], Cpu, AtMost(0.87), ANYBODY),
    claim(&["tcp-request-*x1", "tcp-request-*x512"], Cpu, AtMost(0.95), ANYBODY),
    claim(REQUESTS, P50, AtMost(1.0), ANYBODY),
    claim(REQUESTS, P99, AtMost(1.0), ANYBODY),
    claim(&["tcp-connect"], Cpu, AtMost(0.92), ANYBODY),
    claim(&["tls-*"], Cpu, AtMost(0.9), ANYBODY),
    claim(&["tcp-mixed"], P99, AtMost(1.0), ANYBODY),
    claim(&["tcp-idle"], AnonymousPerSession, AtMost(512.0), Against::Nobody),
    claim(SMALL_DATAGRAMS, Throughput, AtLeast(1.4), NGINX),
    claim(SMALL_DATAGRAMS, Throughput, AtLeast(1.3), ANYBODY),
    claim(SMALL_DATAGRAMS, Cpu, AtMost(0.70), NGINX),
    claim(SMALL_DATAGRAMS, Cpu, AtMost(0.75), ANYBODY),
    claim(&["udp-train-16x100"], Throughput, AtLeast(4.0), ANYBODY),
    claim(&["udp-train-32x1"], Throughput, AtLeast(9.0), ANYBODY),
    claim(&["udp-new-flow-200ms"], Throughput, AtLeast(2.3), NGINX),
    claim(&["udp-one-way"], Throughput, AtLeast(1.45), NGINX),
    claim(&["dns"], Cpu, AtMost(0.75), NGINX),
    claim(&["dns"], Cpu, AtMost(0.88), DNSDIST),
    claim(&["dns"], Lost, AtMost(0.0), Against::Nobody),
    claim(MANY_FLOWS, Files, AtMost(19.0), Against::Nobody),
    claim(MANY_FLOWS, AnonymousPerSession, AtMost(512.0), Against::Nobody),
];

const REQUESTS: &[&str] = &["tcp-request-*x1", "tcp-request-*x64", "tcp-request-*x512"];
const MANY_FLOWS: &[&str] = &["udp-flows-30000", "udp-flows-100000-shared"];
const SMALL_DATAGRAMS: &[&str] = &["udp-64-100", "udp-64-10000"];

#[derive(Clone, Debug)]
pub struct Judgement {
    pub setting: Setting,
    pub metric: Metric,
    /// The peer; `None` if the claim is a figure.
    pub against: Option<String>,
    pub target: Target,
    /// Of the ratio Ringway / peer, or of the figure; `None` if there is nothing to compare.
    pub interval: Option<Interval>,
    /// Pairs that were left out because the machine's state changed between the two runs.
    pub left_out: usize,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Even the worse end of the interval meets the target.
    Met,
    /// The target lies within the interval.
    Tie,
    /// Not even the better end meets it.
    Short,
    /// Too few pairs in the same state.
    TooFew,
    /// A quick run is for a look, not for a verdict.
    Quick,
}

/// All claims that the results have runs for.
pub fn judge(results: &Results) -> Vec<Judgement> {
    let settings = results.by_setting();
    let mut judgements = Vec::new();
    for (setting, runs) in &settings {
        for claim in CLAIMS {
            let matching = claim.workloads.iter().any(|name| matches(name, &setting.workload));
            if matching && runs.iter().any(|run| run.peer == OURSELVES) {
                let of = Case { setting, runs, claim, quick: results.quick() };
                judgements.extend(of.judgements());
            }
        }
    }
    judgements
}

struct Case<'a> {
    setting: &'a Setting,
    runs: &'a [&'a Run],
    claim: &'a Claim,
    quick: bool,
}

impl Case<'_> {
    fn judgements(&self) -> Vec<Judgement> {
        match self.claim.against {
            Against::Nobody => vec![self.of_figure()],
            Against::Each(peers) => peers.iter().filter_map(|peer| self.against(peer)).collect(),
            Against::Best(peers) => self.against_best(peers),
            Against::Anybody => {
                let rivals = Peer::value_variants().iter().filter(|peer| peer.is_rival());
                let names: Vec<String> = rivals.map(ToString::to_string).collect();
                self.against_best(&names.iter().map(String::as_str).collect::<Vec<_>>())
            }
        }
    }

    fn against_best(&self, peers: &[&str]) -> Vec<Judgement> {
        let best = best(self.runs, self.claim.metric, peers);
        best.and_then(|peer| self.against(&peer)).into_iter().collect()
    }

    fn of_figure(&self) -> Judgement {
        let ours = self.runs.iter().filter(|run| run.peer == OURSELVES);
        let values: Vec<f64> = ours.filter_map(|run| self.claim.metric.of(run)).collect();
        self.judgement(None, Interval::of_values(&values), 0, ENOUGH_VALUES)
    }

    fn against(&self, peer: &str) -> Option<Judgement> {
        let pairs = Pairs::of(self.runs, self.claim.metric, peer);
        (pairs.left_out > 0 || !pairs.ratios.is_empty()).then(|| {
            let interval = Interval::of_ratios(&pairs.ratios);
            self.judgement(Some(peer.to_owned()), interval, pairs.left_out, ENOUGH_PAIRS)
        })
    }

    fn judgement(
        &self,
        against: Option<String>,
        interval: Option<Interval>,
        left_out: usize,
        enough: usize,
    ) -> Judgement {
        let verdict = match interval {
            _ if self.quick => Verdict::Quick,
            Some(interval) if interval.count >= enough => self.claim.target.verdict(interval),
            _ => Verdict::TooFew,
        };
        let (metric, target) = (self.claim.metric, self.claim.target);
        let setting = self.setting.clone();
        Judgement { setting, metric, against, target, interval, left_out, verdict }
    }
}

impl Target {
    fn verdict(self, interval: Interval) -> Verdict {
        let (met, missed) = match self {
            Self::AtMost(most) => (interval.high <= most, interval.low > most),
            Self::AtLeast(least) => (interval.low >= least, interval.high < least),
        };
        match (met, missed) {
            (true, _) => Verdict::Met,
            (false, true) => Verdict::Short,
            (false, false) => Verdict::Tie,
        }
    }
}

/// The peer with the best median of the metric, of those that have runs.
fn best(runs: &[&Run], metric: Metric, peers: &[&str]) -> Option<String> {
    let medians = peers.iter().filter_map(|peer| {
        let values = runs.iter().filter(|run| run.peer == *peer).filter_map(|run| metric.of(run));
        Some((*peer, median(&values.collect::<Vec<_>>())?))
    });
    let worse = |left: &(&str, f64), right: &(&str, f64)| {
        let order = left.1.total_cmp(&right.1);
        if metric.more_is_better() { order } else { order.reverse() }
    };
    medians.max_by(worse).map(|(peer, _)| peer.to_owned())
}

/// Ringway's runs over a peer's, round by round.
pub struct Pairs {
    pub ratios: Vec<f64>,
    pub left_out: usize,
}

impl Pairs {
    pub fn of(runs: &[&Run], metric: Metric, peer: &str) -> Self {
        let mut pairs = Self { ratios: Vec::new(), left_out: 0 };
        let rounds: BTreeSet<_> = runs.iter().map(|run| (run.session, run.round)).collect();
        for round in rounds {
            let of = |peer: &str| {
                runs.iter().find(|run| (run.session, run.round) == round && run.peer == peer)
            };
            let (Some(ours), Some(theirs)) = (of(OURSELVES), of(peer)) else { continue };
            let (Some(own), Some(their)) = (metric.of(ours), metric.of(theirs)) else { continue };
            if ours.state.same(&theirs.state) {
                pairs.ratios.push(own / their);
            } else {
                pairs.left_out += 1;
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;

    fn judged(results: &Results, metric: Metric, against: &str) -> Judgement {
        let all = judge(results);
        let found =
            all.iter().find(|one| one.metric == metric && one.against.as_deref() == Some(against));
        found.unwrap_or_else(|| panic!("{against} in {all:?}")).clone()
    }

    #[test]
    fn a_clear_difference_meets_the_target_and_a_slight_one_does_not() {
        let clear = sample("tcp-request-64x64", 12, &[("ringway", 0.5), ("nginx", 1.0)]);
        assert_eq!(judged(&clear, Cpu, "nginx").verdict, Verdict::Met);
        let slight = sample("tcp-request-64x64", 12, &[("ringway", 0.87), ("nginx", 1.0)]);
        assert_eq!(judged(&slight, Cpu, "nginx").verdict, Verdict::Tie);
        let worse = sample("tcp-request-64x64", 12, &[("ringway", 1.5), ("nginx", 1.0)]);
        assert_eq!(judged(&worse, Cpu, "nginx").verdict, Verdict::Short);
    }

    #[test]
    fn eleven_pairs_are_too_few() {
        let few = sample("tcp-request-64x64", 11, &[("ringway", 0.5), ("nginx", 1.0)]);
        assert_eq!(judged(&few, Cpu, "nginx").verdict, Verdict::TooFew);
    }

    #[test]
    fn a_quick_run_gives_no_verdict() {
        let mut quick = sample("tcp-connect", 12, &[("ringway", 0.5), ("nginx", 1.0)]);
        quick.sessions[0].quick = true;
        assert_eq!(judged(&quick, Cpu, "nginx").verdict, Verdict::Quick);
    }

    #[test]
    fn the_best_peer_is_the_cheapest_product() {
        let peers = [("ringway", 0.5), ("nginx", 1.0), ("envoy", 0.9), ("monoio", 0.1)];
        let results = sample("tcp-connect", 12, &peers);
        let judgement = judged(&results, Cpu, "envoy");
        let interval = judgement.interval.expect("twelve pairs");
        assert!((interval.middle - 0.5 / 0.9).abs() < 0.01, "{interval:?}");
        assert!(judge(&results).iter().all(|one| one.against.as_deref() != Some("monoio")));
    }

    #[test]
    fn pairs_in_different_states_are_left_out_and_counted() {
        let mut results = sample("tcp-connect", 14, &[("ringway", 0.5), ("nginx", 1.0)]);
        for run in results.runs.iter_mut().filter(|run| run.peer == "nginx" && run.round < 2) {
            run.state.round_trip *= 3.0;
        }
        let judgement = judged(&results, Cpu, "nginx");
        assert_eq!((judgement.left_out, judgement.verdict), (2, Verdict::Met));
        assert_eq!(judgement.interval.expect("the others").count, 12);
    }

    #[test]
    fn figures_need_no_peer() {
        let results = sample("tcp-idle", 3, &[("ringway", 1.0)]);
        let judgement = judge(&results).remove(0);
        assert_eq!((judgement.against, judgement.verdict), (None, Verdict::Met));
    }

    #[test]
    fn at_least_is_met_by_the_low_end() {
        let interval = Interval { low: 1.3, middle: 1.5, high: 1.7, count: 12 };
        assert_eq!(AtLeast(1.2).verdict(interval), Verdict::Met);
        assert_eq!(AtLeast(1.4).verdict(interval), Verdict::Tie);
        assert_eq!(AtLeast(1.8).verdict(interval), Verdict::Short);
        assert_eq!(AtMost(1.7).verdict(interval), Verdict::Met);
    }
}
