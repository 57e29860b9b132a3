//! What a comparison found, as it is kept in results.json: all that is measured, before anything is
//! said about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cpu::Usage;
use crate::outcome::Outcome;

mod metric;
mod names;
mod state;
mod unit;

pub use metric::Metric;
pub use names::{SIZES, matches};
pub use state::State;
pub use unit::Unit;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub sessions: Vec<Session>,
    pub runs: Vec<Run>,
    pub skipped: Vec<Skipped>,
    pub configurations: Vec<Configuration>,
    /// What was measured of Ringway alone.
    pub figures: Vec<Figure>,
}

/// One call of `bench compare`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub began: String,
    pub command: String,
    pub quick: bool,
    pub seconds: f64,
    pub kernel: String,
    pub processor: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub peers: Vec<PeerVersion>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerVersion {
    pub peer: String,
    pub version: String,
}

/// One load on one proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Index into the sessions: rounds of different ones are no pairs.
    pub session: usize,
    pub workload: String,
    pub peer: String,
    pub workers: usize,
    pub network: String,
    pub round: usize,
    pub unit: Unit,
    pub state: State,
    pub outcome: Outcome,
    /// Seconds of CPU of the proxy's processes within the measured interval; `None` if it has no
    /// process.
    pub cpu: Option<f64>,
    /// Seconds that all cores worked within that interval, whoever is charged with them. What was
    /// measured before this was counted has none.
    #[serde(default)]
    pub machine: Option<f64>,
    /// How `cpu` was counted.
    pub counted_by: String,
    /// Before the load began, and at the end of the measured interval.
    pub before: Usage,
    pub after: Usage,
    /// Connections or flows that are there at the end of the interval, where that is the point.
    pub sessions: Option<u32>,
}

/// Runs that may be held against each other: one workload in one setting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub workload: String,
    pub workers: usize,
    pub network: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    pub what: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    pub workload: String,
    pub peer: String,
    pub text: String,
}

/// One thing measured of Ringway alone, with the target where it has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub value: String,
    pub target: String,
}

impl Results {
    pub fn quick(&self) -> bool {
        self.sessions.iter().any(|session| session.quick)
    }

    /// As found in the newest session that had it.
    pub fn version(&self, peer: &str) -> Option<&str> {
        let all = self.sessions.iter().rev().flat_map(|session| &session.peers);
        all.into_iter().find(|of| of.peer == peer).map(|of| of.version.as_str())
    }

    pub fn by_setting(&self) -> BTreeMap<Setting, Vec<&Run>> {
        let mut settings: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for run in &self.runs {
            settings.entry(Setting::of(run)).or_default().push(run);
        }
        settings
    }

    pub fn add(&mut self, other: Self) {
        let shift = self.sessions.len();
        self.sessions.extend(other.sessions);
        let renumbered = |run: Run| Run { session: run.session + shift, ..run };
        self.runs.extend(other.runs.into_iter().map(renumbered));
        self.skipped.extend(other.skipped);
        self.configurations.extend(other.configurations);
        self.figures.extend(other.figures);
    }
}

impl Setting {
    pub fn of(run: &Run) -> Self {
        let (workload, network) = (run.workload.clone(), run.network.clone());
        Self { workload, workers: run.workers, network }
    }
}

/// Made-up results: `peers` are names with the CPU seconds of each run, which vary by 2 %.
#[cfg(test)]
pub fn sample(workload: &str, rounds: usize, peers: &[(&str, f64)]) -> Results {
    use crate::outcome::Latency;
    let mut results = Results::default();
    let version =
        |(peer, _): &(&str, f64)| PeerVersion { peer: (*peer).to_owned(), version: "1.2".into() };
    let peer_versions = peers.iter().map(version).collect();
    results.sessions.push(Session { peers: peer_versions, seconds: 1.0, ..Session::default() });
    let state = State { round_trip: 100.0, spin: 1000.0, congestion: "cubic".into() };
    let idle = workload == "tcp-idle";
    for round in 0..rounds {
        for (index, (peer, cpu)) in peers.iter().enumerate() {
            let noise = 1.0 + 0.02 * ((round * 7 + index * 3) % 5) as f64;
            let latency =
                Latency { count: 1000, p50: 50.0 * cpu, p99: 90.0 * cpu, ..Latency::default() };
            results.runs.push(Run {
                session: 0,
                workload: workload.to_owned(),
                peer: (*peer).to_owned(),
                workers: 1,
                network: "loopback".to_owned(),
                round,
                unit: Unit::Request,
                state: state.clone(),
                outcome: Outcome {
                    seconds: 1.0,
                    operations: 10_000,
                    bytes: 1_000_000,
                    latency: Some(latency),
                    ..Outcome::default()
                },
                cpu: Some(cpu * noise),
                machine: Some(cpu * noise + 1.0),
                counted_by: "cgroup cpu.stat".to_owned(),
                before: Usage { rss: 2_000_000, pss: 2_000_000, anonymous: 1_000_000, files: 10 },
                after: Usage { rss: 3_000_000, pss: 3_000_000, anonymous: 2_000_000, files: 12 },
                sessions: idle.then_some(9_000),
            });
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_survive_their_file() {
        let results = sample("tcp-connect", 2, &[("ringway", 0.5), ("nginx", 1.0)]);
        let text = serde_json::to_string(&results).expect("plain data");
        let read: Results = serde_json::from_str(&text).expect("as it was written");
        assert_eq!(read.runs, results.runs);
        assert_eq!(read.sessions, results.sessions);
    }

    #[test]
    fn merged_sessions_keep_their_runs_apart() {
        let mut all = sample("tcp-connect", 1, &[("ringway", 0.5)]);
        all.add(sample("tcp-connect", 1, &[("ringway", 0.5)]));
        let sessions: Vec<_> = all.runs.iter().map(|run| run.session).collect();
        assert_eq!((sessions, all.sessions.len()), (vec![0, 1], 2));
        assert_eq!(all.version("ringway"), Some("1.2"));
        assert_eq!(all.version("envoy"), None);
    }
}
