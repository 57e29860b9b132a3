//! What a comparison found, as it is kept in results.json, and the report made of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::compare::state::State;
use crate::cpu::Usage;
use crate::outcome::Outcome;

mod chart;
mod markdown;
mod plots;

#[derive(Args)]
pub struct Options {
    /// results.json of one comparison or more; their runs are put together.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Where report.md and plots/ go; next to the first file if left out.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut all = Results::default();
    for file in &options.results {
        let text = fs::read(file).with_context(|| file.display().to_string())?;
        let results = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
        all.add(results);
    }
    let beside = || options.results[0].parent().unwrap_or_else(|| Path::new(".")).to_owned();
    let directory = options.out.clone().unwrap_or_else(beside);
    write(&all, &directory)?;
    println!("{}", directory.join("report.md").display());
    Ok(())
}

/// Writes report.md, plots/*.svg and plots/*.png.
pub fn write(results: &Results, directory: &Path) -> anyhow::Result<()> {
    let drawn = plots::draw(results, &directory.join("plots"))?;
    fs::write(directory.join("report.md"), markdown::render(results, &drawn))?;
    Ok(())
}

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
    /// How that was counted.
    pub counted_by: String,
    /// Before the load began, and at the end of the measured interval.
    pub before: Usage,
    pub after: Usage,
    /// Connections or flows that are there at the end of the interval, where that is the point.
    pub sessions: Option<u32>,
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

/// Of what one operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// 10^9 bytes that arrived.
    Gigabyte,
    Request,
    Connection,
    RoundTrip,
    Datagram,
    Query,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Gigabytes or thousands of operations per second.
    Throughput,
    /// Seconds per gigabyte or microseconds per operation.
    Cpu,
    P50,
    P99,
    /// Bytes of anonymous memory that a connection or flow adds.
    AnonymousPerSession,
    /// Bytes of all processes, shared pages in parts.
    Memory,
    /// Descriptors more than before the load.
    Files,
    Lost,
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

impl Unit {
    /// Of the operations of an outcome, in units of a thousand (gigabytes: in one).
    fn amount(self, outcome: &Outcome) -> f64 {
        match self {
            Self::Gigabyte => outcome.bytes as f64 / 1e9,
            _ => outcome.operations as f64,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Gigabyte => "GB",
            Self::Request => "request",
            Self::Connection => "connection",
            Self::RoundTrip => "round trip",
            Self::Datagram => "datagram",
            Self::Query => "query",
        }
    }
}

impl Metric {
    /// `None` if the run does not have it.
    pub fn of(self, run: &Run) -> Option<f64> {
        let amount = run.unit.amount(&run.outcome);
        let latency = run.outcome.latency.as_ref();
        // What is held is opened once, in no measured time.
        let flowing = run.sessions.is_none() && amount > 0.0;
        let bulk = run.unit == Unit::Gigabyte;
        match self {
            Self::Throughput if flowing => {
                Some(amount / run.outcome.seconds / if bulk { 1.0 } else { 1e3 })
            }
            Self::Cpu if flowing => Some(run.cpu? / amount * if bulk { 1.0 } else { 1e6 }),
            Self::Throughput | Self::Cpu => None,
            Self::P50 => latency.map(|latency| latency.p50),
            Self::P99 => latency.map(|latency| latency.p99),
            Self::AnonymousPerSession => {
                let growth = run.after.anonymous.saturating_sub(run.before.anonymous);
                (run.after.rss > 0).then_some(growth as f64 / f64::from(run.sessions?))
            }
            Self::Memory => (run.after.pss > 0).then_some(run.after.pss as f64),
            Self::Files => {
                run.sessions?;
                Some(run.after.files as f64 - run.before.files as f64)
            }
            Self::Lost => Some((run.outcome.lost + run.outcome.errors) as f64),
        }
    }

    pub fn more_is_better(self) -> bool {
        self == Self::Throughput
    }

    pub fn title(self, unit: Unit) -> String {
        match self {
            Self::Throughput if unit == Unit::Gigabyte => "GB/s".to_owned(),
            Self::Throughput if unit == Unit::Query => "1,000 queries/s".to_owned(),
            Self::Throughput => format!("1,000 {}s/s", unit.name()),
            Self::Cpu if unit == Unit::Gigabyte => "CPU s/GB".to_owned(),
            Self::Cpu => format!("CPU us/{}", unit.name()),
            Self::P50 => "p50 us".to_owned(),
            Self::P99 => "p99 us".to_owned(),
            Self::AnonymousPerSession => "bytes/session".to_owned(),
            Self::Memory => "memory MB".to_owned(),
            Self::Files => "more files".to_owned(),
            Self::Lost => "lost".to_owned(),
        }
    }

    /// From what [`Self::of`] gives to what [`Self::title`] says.
    pub fn scale(self) -> f64 {
        if self == Self::Memory { 1e-6 } else { 1.0 }
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

    #[test]
    fn metrics_are_in_the_units_of_their_titles() {
        let results = sample("tcp-idle", 1, &[("ringway", 0.5)]);
        let held = &results.runs[0];
        assert_eq!(Metric::Cpu.of(held), None);
        let per_session = Metric::AnonymousPerSession.of(held).expect("it has sessions");
        assert!((per_session - 1_000_000.0 / 9_000.0).abs() < 1e-9);
        assert_eq!(Metric::Files.of(held), Some(2.0));
        let flowing = Run { sessions: None, ..held.clone() };
        assert_eq!(Metric::Throughput.of(&flowing), Some(10.0));
        assert_eq!(Metric::Cpu.of(&flowing), Some(50.0));
        let bulk = Run { unit: Unit::Gigabyte, ..flowing };
        assert_eq!(Metric::Throughput.of(&bulk), Some(0.001));
        assert_eq!(Metric::Cpu.of(&bulk), Some(500.0));
        assert_eq!(Metric::Files.of(&bulk), None);
    }
}
