//! Everything that one workload needs, started once and kept for its rounds: the backend, every
//! contender, and what each load prints turned into an outcome.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cpu::{Meter, Usage};
use crate::net::{self, Network, Place};
use crate::outcome::Outcome;
use crate::peers::{Found, Peer, Running, Setup, UdpShape};

use super::child::Child;
use super::interrupt;
use super::tools;
use super::workload::{Load, Workload};

/// How the processes of a run share the machine.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub workers: usize,
    pub seconds: f64,
}

impl Layout {
    /// One worker has core 0 for itself; more share all cores with the load.
    pub fn proxy_cores(self) -> Vec<usize> {
        if self.workers == 1 { vec![0] } else { Vec::new() }
    }

    /// Where the load and the backends are.
    pub fn load_core(self) -> Option<usize> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (self.workers == 1 && cores > 1).then_some(1)
    }

    pub fn warmup(self) -> f64 {
        (self.seconds * 0.25).clamp(0.1, 0.5)
    }
}

const READY: Duration = Duration::from_secs(60);

pub struct Bed<'a> {
    workload: &'a Workload,
    layout: Layout,
    directory: PathBuf,
    backend: SocketAddr,
    _backend: Child,
    running: Vec<Option<Contender>>,
    /// `None`: everything is on loopback.
    network: Option<&'a Network>,
}

/// A proxy that stands ready.
struct Contender {
    running: Running,
    meter: Meter,
}

/// What one run gave, without its circumstances.
pub struct Measured {
    pub outcome: Outcome,
    pub cpu: Option<f64>,
    pub before: Usage,
    pub after: Usage,
}

impl<'a> Bed<'a> {
    pub fn new(
        workload: &'a Workload,
        layout: Layout,
        contenders: usize,
        directory: &Path,
        network: Option<&'a Network>,
    ) -> anyhow::Result<Self> {
        let directory = directory.join(&workload.name);
        std::fs::create_dir_all(&directory)?;
        let mut backend = free_address()?;
        if network.is_some() {
            backend.set_ip(net::BACKEND);
        }
        let process = match &workload.load {
            Load::Ours { serve, .. } | Load::Held { serve, .. } => {
                let arguments = ["serve", serve, "--listen", &backend.to_string()];
                let mut arguments = arguments.map(str::to_owned).to_vec();
                if let Some(core) = layout.load_core() {
                    arguments.extend(["--core".to_owned(), core.to_string()]);
                }
                let mut child = ourselves(&arguments, network, Place::Backend)?;
                child.expect("ready", READY)?;
                child
            }
            _ if network.is_some() => anyhow::bail!("other programs are driven on loopback only"),
            tool => tools::backend(tool, backend, &directory, layout.load_core())?,
        };
        let running = (0..contenders).map(|_| None).collect();
        Ok(Self { workload, layout, directory, backend, _backend: process, running, network })
    }

    /// Starts contender number `index`, unless it runs; returns its configuration.
    pub fn start(&mut self, index: usize, peer: Peer, found: &Found) -> anyhow::Result<String> {
        if let Some(contender) = &self.running[index] {
            return Ok(contender.running.configuration.clone());
        }
        let mut listen = free_address()?;
        if self.network.is_some() {
            listen.set_ip(net::GATEWAY);
        }
        // Only loopback has as many addresses as anyone likes.
        let sources = if self.network.is_some() { 0 } else { self.workload.udp.sources };
        let sources = (0..sources).map(|n| {
            Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + u32::from(n)).into()
        });
        let directory = self.directory.join(peer.to_string());
        std::fs::create_dir_all(&directory)?;
        let setup = Setup {
            transport: self.workload.transport,
            listen,
            backends: vec![self.backend],
            workers: self.layout.workers,
            cores: self.layout.proxy_cores(),
            udp: UdpShape {
                responses: self.workload.udp.responses,
                idle: Duration::from_millis(self.workload.udp.idle_ms),
                sources: sources.collect(),
                shared: false,
            },
            dir: directory,
            netns: self.network.map(|network| network.namespace(Place::Gateway)),
        };
        let running = peer.start(found, &setup)?;
        let meter = Meter::of(&format!("{}-{peer}", self.workload.name), &running.pids);
        let configuration = running.configuration.clone();
        self.running[index] = Some(Contender { running, meter });
        Ok(configuration)
    }

    /// Loads contender number `index`, which was started.
    pub fn measure(&mut self, index: usize) -> anyhow::Result<Measured> {
        let contender = self.running[index].as_ref().context("a contender that was started")?;
        let measured = self.load(contender);
        // One that failed may be in no state for another round.
        if self.workload.fresh || measured.is_err() {
            self.running[index] = None;
        }
        measured
    }

    fn load(&self, contender: &Contender) -> anyhow::Result<Measured> {
        let before = contender.meter.usage();
        let to = contender.running.listen;
        let (outcome, cpu, after) = match &self.workload.load {
            Load::Ours { load, arguments, .. } => {
                let mut child = self.start_load(load, to, arguments)?;
                child.expect("begin", READY)?;
                let begin = Instant::now() + Duration::from_secs_f64(self.layout.warmup());
                let window = self.window(contender, begin)?;
                (outcome(&mut child)?, window.0, window.1)
            }
            Load::Held { load, arguments, .. } => {
                let mut child = self.start_load(load, to, arguments)?;
                let line = child.line(READY)?;
                // Flows are there when their first round trips are: at the end of the interval.
                let after = if line == "ready" {
                    contender.meter.usage()
                } else {
                    let begin = Instant::now() + Duration::from_secs_f64(self.layout.warmup());
                    self.window(contender, begin)?.1
                };
                (outcome(&mut child)?, None, after)
            }
            tool => {
                let first = contender.meter.seconds()?;
                let core = self.layout.load_core();
                let outcome = tools::load(tool, to, &self.directory, self.layout.seconds, core)?;
                let cpu = contender.meter.seconds()? - first;
                (outcome, Some(cpu), contender.meter.usage())
            }
        };
        // What has no process has no CPU of its own.
        let cpu = cpu.filter(|_| !contender.running.pids.is_empty());
        Ok(Measured { outcome, cpu, before, after })
    }

    /// The CPU of the interval that begins then, and what is used at its end.
    fn window(
        &self,
        contender: &Contender,
        begin: Instant,
    ) -> anyhow::Result<(Option<f64>, Usage)> {
        interrupt::sleep_until(begin)?;
        let first = contender.meter.seconds()?;
        interrupt::sleep_until(begin + Duration::from_secs_f64(self.layout.seconds))?;
        let last = contender.meter.seconds()?;
        Ok((Some(last - first), contender.meter.usage()))
    }

    fn start_load(&self, kind: &str, to: SocketAddr, more: &[String]) -> anyhow::Result<Child> {
        let mut arguments = vec!["load".to_owned(), kind.to_owned()];
        let options = [
            ("--to", to.to_string()),
            ("--seconds", self.layout.seconds.to_string()),
            ("--warmup", self.layout.warmup().to_string()),
        ];
        for (name, value) in options {
            arguments.extend([name.to_owned(), value]);
        }
        arguments.extend_from_slice(more);
        if let Some(core) = self.layout.load_core() {
            arguments.extend(["--core".to_owned(), core.to_string()]);
        }
        ourselves(&arguments, self.network, Place::Client)
    }
}

/// This program with other arguments, at a place of the network if there is one.
fn ourselves(
    arguments: &[String],
    network: Option<&Network>,
    place: Place,
) -> anyhow::Result<Child> {
    let Some(network) = network else { return Child::ourselves(arguments, None) };
    let program = std::env::current_exe().context("this program")?;
    let namespace = network.namespace(place);
    let mut all =
        ["netns", "exec", &namespace, &program.to_string_lossy()].map(str::to_owned).to_vec();
    all.extend_from_slice(arguments);
    Child::start("ip", &all, None)
}

fn outcome(child: &mut Child) -> anyhow::Result<Outcome> {
    let text = child.rest(READY)?;
    let line = text.lines().last().context("the load printed no outcome")?;
    serde_json::from_str(line).with_context(|| format!("an outcome: {line}"))
}

/// A loopback address whose port is free for TCP and UDP. Below the ports that the kernel gives to
/// clients, or a connection of the load could take it before the proxy does; and not the ports
/// next to these, where Ringway's admin address is.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 1_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = u16::try_from(std::process::id() * 37 % u32::from(COUNT)).unwrap_or(0);
    for _ in 0..COUNT {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + offset.wrapping_add(number) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    anyhow::bail!("no free port from {FIRST} to {}", FIRST + COUNT)
}
