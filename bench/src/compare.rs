//! Ringway beside other proxies: the same load on each, in alternation, and what it cost them.
//!
//! Every load, backend and proxy is a process of its own; the CPU of a proxy is that of its whole
//! processes within the measured interval (see [`crate::cpu`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::net::Network;
use crate::outcome::Outcome;
use crate::peers::{Found, Peer, Places, Transport};
use crate::report::{self, claims};
use crate::results::{Configuration, PeerVersion, Results, Run, Session, Skipped, matches};

mod alone;
mod bed;
mod child;
mod condition;
mod interrupt;
mod knobs;
mod machine;
mod schedule;
mod tools;
pub mod workload;

use alone::Part;
use bed::{Bed, Layout};
use workload::{Load, Workload};

#[derive(Args)]
pub struct Options {
    /// A few workloads, 3 rounds of half a second, under 3 minutes in all; gives no verdicts.
    #[arg(long)]
    quick: bool,
    /// Only these workloads; `*` stands for any text, and `tls` for all that begin with `tls-`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these; without it all that are found. Ringway itself must be named, too.
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Length of each measured interval [default: 2; quick: 0.5].
    #[arg(long)]
    seconds: Option<f64>,
    /// Rounds; each has one run of each peer. A verdict takes 12 pairs, and some are left out
    /// because the machine's state changed between their runs [default: 16; quick: 3].
    #[arg(long)]
    repeat: Option<usize>,
    /// Workers of each proxy. One is pinned to core 0 and load and backend to core 1; two are not
    /// pinned, nor is the load.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    workers: u8,
    /// `veth`: client, proxy and backend in a namespace each (needs root); only there DNAT can be
    /// compared, and only loopback has the workloads with several source addresses or other tools.
    #[arg(long, value_enum, default_value_t = Link::Loopback)]
    network: Link,
    /// Where results.json, report.md and plots/ go [default: target/bench/DATE].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the workloads and the peers with their versions, and run nothing.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Link {
    Loopback,
    Veth,
}

/// After this a quick comparison begins no other workload: the report still has to be made.
const QUICK: Duration = Duration::from_secs(150);

pub fn run(ringway: &Path, options: &Options) -> anyhow::Result<()> {
    interrupt::watch()?;
    let places = Places::new(ringway);
    let workloads = options.workloads();
    let (contenders, missing) = contenders(options, &places)?;
    if options.list {
        return list(&workloads, &options.parts(), &contenders, &missing);
    }
    if workloads.is_empty() && options.parts().is_empty() {
        bail!("no workload is called {}; see --list", options.only.join(" or "));
    }
    let directory = options.out.clone().unwrap_or_else(|| {
        Path::new("target/bench").join(machine::utc(std::time::SystemTime::now()))
    });
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let mut comparison = Comparison::new(options, contenders, missing, directory.clone())?;
    let result = comparison.run(&workloads);
    // What was measured before an interrupt or a failure is kept.
    comparison.save()?;
    result?;
    report::write(&comparison.results, &directory)?;
    println!("{}", directory.join("report.md").display());
    Ok(())
}

impl Options {
    fn workloads(&self) -> Vec<Workload> {
        let chosen = |workload: &Workload| match &self.only[..] {
            [] => !self.quick || workload.quick,
            only => only.iter().any(|pattern| {
                let kind = workload.name.split_once('-').map(|(kind, _)| kind);
                matches(pattern, &workload.name) || kind == Some(pattern)
            }),
        };
        workload::all().into_iter().filter(chosen).collect()
    }

    fn parts(&self) -> Vec<Part> {
        let chosen = |part: &Part| match &self.only[..] {
            [] => !self.quick && self.network == Link::Loopback,
            only => only.iter().any(|pattern| matches(pattern, &part.to_string())),
        };
        Part::ALL.into_iter().filter(chosen).collect()
    }

    fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.5 } else { 2.0 })
    }

    fn rounds(&self) -> usize {
        self.repeat.unwrap_or(if self.quick { 3 } else { claims::ENOUGH_PAIRS + 4 })
    }
}

type Contenders = Vec<(Peer, Found)>;

/// Those that are here, and why others are not. One that was asked for must be here.
fn contenders(options: &Options, places: &Places) -> anyhow::Result<(Contenders, Vec<Skipped>)> {
    let (mut here, mut missing) = (Vec::new(), Vec::new());
    for peer in Peer::value_variants() {
        if !options.peers.is_empty() && !options.peers.contains(peer) {
            continue;
        }
        match peer.find(places) {
            Ok(found) => here.push((*peer, found)),
            Err(why) if options.peers.contains(peer) => bail!("{why}"),
            Err(why) => {
                missing.push(Skipped { what: peer.to_string(), why: why.to_string() });
            }
        }
    }
    Ok((here, missing))
}

fn list(
    workloads: &[Workload],
    parts: &[Part],
    here: &Contenders,
    missing: &[Skipped],
) -> anyhow::Result<()> {
    println!("Workloads:");
    for workload in workloads {
        let quick = if workload.quick { ", in --quick" } else { "" };
        println!(
            "  {:<24} {}{quick}",
            workload.name,
            match workload.transport {
                Transport::Tcp => "TCP",
                Transport::Tls => "TLS, ended by the proxy",
                Transport::Udp => "UDP",
            }
        );
    }
    for part in parts {
        println!("  {:<24} Ringway alone", part.to_string());
    }
    println!("Peers:");
    for (peer, found) in here {
        println!("  {:<24} {}", peer.to_string(), found.version);
    }
    for Skipped { what, why } in missing {
        println!("  {what:<24} not here: {why}");
    }
    Ok(())
}

struct Comparison {
    contenders: Contenders,
    layout: Layout,
    network: Option<Rc<Network>>,
    parts: Vec<Part>,
    rounds: usize,
    deadline: Option<Instant>,
    directory: PathBuf,
    results: Results,
}

impl Comparison {
    fn new(
        options: &Options,
        contenders: Contenders,
        skipped: Vec<Skipped>,
        directory: PathBuf,
    ) -> anyhow::Result<Self> {
        let version = |(peer, found): &(Peer, Found)| PeerVersion {
            peer: peer.to_string(),
            version: found.version.clone(),
        };
        let session = Session {
            quick: options.quick,
            seconds: options.seconds(),
            peers: contenders.iter().map(version).collect(),
            ..machine::session()
        };
        Ok(Self {
            layout: Layout { workers: usize::from(options.workers), seconds: options.seconds() },
            rounds: options.rounds(),
            parts: options.parts(),
            network: match options.network {
                Link::Loopback => None,
                Link::Veth => Some(Rc::new(Network::new().context("--network veth")?)),
            },
            deadline: options.quick.then(|| Instant::now() + QUICK),
            directory,
            results: Results { sessions: vec![session], skipped, ..Results::default() },
            contenders,
        })
    }

    fn run(&mut self, workloads: &[Workload]) -> anyhow::Result<()> {
        let began = Instant::now();
        for (number, workload) in workloads.iter().enumerate() {
            interrupt::check()?;
            if self.deadline.is_some_and(|deadline| Instant::now() > deadline) {
                self.skip(&workload.name, "no time left in a quick comparison");
                continue;
            }
            let progress = Progress { began, number, of: workloads.len() };
            if let Err(error) = self.workload(workload, &progress) {
                interrupt::check()?;
                self.skip(&workload.name, &format!("{error:#}"));
            }
            self.save()?;
        }
        self.alone(began)
    }

    /// What is measured of Ringway alone.
    fn alone(&mut self, began: Instant) -> anyhow::Result<()> {
        let Some((_, ringway)) = self.contenders.iter().find(|(peer, _)| *peer == Peer::Ringway)
        else {
            return Ok(());
        };
        for part in self.parts.clone() {
            interrupt::check()?;
            eprintln!("{part} after {:.0} s", began.elapsed().as_secs_f64());
            let files = self.directory.join("files");
            match alone::measure(part, ringway, self.layout, self.rounds, &files) {
                Ok(figures) => self.results.figures.extend(figures),
                Err(error) => {
                    interrupt::check()?;
                    let skipped = Skipped { what: part.to_string(), why: format!("{error:#}") };
                    eprintln!("    {}", skipped.why);
                    self.results.skipped.push(skipped);
                }
            }
        }
        Ok(())
    }

    fn workload(&mut self, workload: &Workload, progress: &Progress) -> anyhow::Result<()> {
        for program in workload.load.programs() {
            if Command::new("sh")
                .args(["-c", &format!("command -v {program}")])
                .output()?
                .stdout
                .is_empty()
            {
                bail!("{program} is not installed: apt-get install iperf3 redis nsd dnsperf wrk");
            }
        }
        if self.network.is_some() && !workload.works_on_veth() {
            bail!("only on loopback");
        }
        let contenders: Vec<usize> = (0..self.contenders.len())
            .filter(|index| self.contenders[*index].0.speaks(workload.transport))
            .filter(|index| self.network.is_some() || !self.contenders[*index].0.forwards())
            // It answers nothing that is no DNS.
            .filter(|index| !workload.udp.shared || self.contenders[*index].0 == Peer::Ringway)
            .filter(|index| {
                workload.load == Load::Dnsperf || self.contenders[*index].0 != Peer::Dnsdist
            })
            .collect();
        let files = self.directory.join("files");
        let network = self.network.clone();
        let layout = self.layout.of(workload);
        let mut bed =
            Bed::new(workload, layout, network.as_deref(), self.contenders.len(), &files)?;
        let mut failed = Vec::new();
        for round in 0..self.rounds {
            for place in schedule::order(contenders.len(), round) {
                interrupt::check()?;
                let index = contenders[place];
                let peer = self.contenders[index].0;
                // One that failed twice will go on failing, and each time takes as long as it is
                // waited for.
                if failed.iter().filter(|one| **one == index).count() >= 2 {
                    continue;
                }
                progress.show(workload, round, self.rounds, peer);
                if let Err(error) = self.measure(&mut bed, workload, index, round) {
                    interrupt::check()?;
                    failed.push(index);
                    let what = format!("{}, {peer}, round {}", workload.name, round + 1);
                    self.skip(&what, &format!("{error:#}"));
                }
            }
        }
        Ok(())
    }

    fn measure(
        &mut self,
        bed: &mut Bed<'_>,
        workload: &Workload,
        index: usize,
        round: usize,
    ) -> anyhow::Result<()> {
        let (peer, found) = &self.contenders[index];
        let text = bed.start(index, *peer, found)?;
        let configuration =
            Configuration { workload: workload.name.clone(), peer: peer.to_string(), text };
        let state = condition::measure()?;
        let measured = bed.measure(index)?;
        eprintln!(
            "    cores {} ({:.0} ns), spin {:.0} us, {}: {}",
            state.distance(),
            state.round_trip,
            state.spin / 1e3,
            state.congestion,
            summary(&measured.outcome, measured.cpu)
        );
        self.results.runs.push(Run {
            session: 0,
            workload: workload.name.clone(),
            peer: peer.to_string(),
            workers: self.layout.of(workload).workers,
            network: if bed.is_veth() { "veth" } else { "loopback" }.to_owned(),
            round,
            unit: workload.unit,
            state,
            outcome: measured.outcome,
            cpu: measured.cpu,
            machine: measured.machine,
            counted_by: measured.counted_by.to_owned(),
            before: measured.before,
            after: measured.after,
            sessions: workload.sessions(),
        });
        if round == 0 {
            self.results.configurations.push(configuration);
        }
        Ok(())
    }

    fn skip(&mut self, what: &str, why: &str) {
        eprintln!("    {what}: {why}");
        self.results.skipped.push(Skipped { what: what.to_owned(), why: why.to_owned() });
    }

    fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(&self.results)?;
        fs::write(self.directory.join("results.json"), text).context("results.json")
    }
}

struct Progress {
    began: Instant,
    number: usize,
    of: usize,
}

impl Progress {
    fn show(&self, workload: &Workload, round: usize, rounds: usize, peer: Peer) {
        let done = self.number as f64 + round as f64 / rounds as f64;
        let spent = self.began.elapsed().as_secs_f64();
        let left = (done > 0.0).then(|| spent / done * (self.of as f64 - done));
        let left = left.map_or(String::new(), |left| format!(", about {:.0} s left", left));
        eprintln!(
            "[{}/{}] {} round {}/{rounds}: {peer}{left}",
            self.number + 1,
            self.of,
            workload.name,
            round + 1
        );
    }
}

/// What a run gave, for who watches.
fn summary(outcome: &Outcome, cpu: Option<f64>) -> String {
    let cpu = cpu.map_or(String::new(), |cpu| format!(", {cpu:.2} s of CPU"));
    let per_second = |amount: u64| amount as f64 / outcome.seconds;
    format!(
        "{:.0} operations/s, {:.2} GB/s, {} failed, {} lost{cpu}",
        per_second(outcome.operations),
        per_second(outcome.bytes) / 1e9,
        outcome.errors,
        outcome.lost
    )
}
