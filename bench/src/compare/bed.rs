//! Everything that one workload needs, started once and kept for its rounds: the backend, every
//! contender, and what each load prints turned into an outcome.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cpu::{self, Meter, Usage};
use crate::load::tls;
use crate::net::{self, Network, Place};
use crate::outcome::Outcome;
use crate::peers::{Found, More, Peer, Running, Setup, Transport, UdpShape};

use super::child::{Child, Spot};
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

    /// The core of the load and the backends.
    fn load_core(self) -> Option<usize> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (self.workers == 1 && cores > 1).then_some(1)
    }

    /// As the workload wants it.
    pub fn of(self, workload: &Workload) -> Self {
        Self { workers: workload.workers.unwrap_or(self.workers), ..self }
    }

    fn spot(self, network: Option<&Network>, place: Place) -> Spot {
        let netns = network.map(|network| network.namespace(place));
        Spot { core: self.load_core(), netns }
    }

    fn warmup(self) -> f64 {
        (self.seconds * 0.25).clamp(0.1, 0.5)
    }
}

const READY: Duration = Duration::from_secs(60);

pub struct Bed<'a> {
    workload: &'a Workload,
    layout: Layout,
    network: Option<&'a Network>,
    directory: PathBuf,
    backend: SocketAddr,
    _backend: Child,
    running: Vec<Option<Contender>>,
    /// Of the contenders, in their order.
    more: Vec<More>,
}

/// A proxy that stands ready.
struct Contender {
    peer: Peer,
    running: Running,
    meter: Meter,
}

/// What one run gave, without its circumstances.
pub struct Measured {
    pub outcome: Outcome,
    pub cpu: Option<f64>,
    /// Of all cores, within the same interval.
    pub machine: Option<f64>,
    pub counted_by: &'static str,
    pub before: Usage,
    pub after: Usage,
}

/// Seconds of CPU: since some moment before, or of an interval.
#[derive(Clone, Copy)]
struct Window {
    cpu: f64,
    machine: f64,
}

impl Window {
    fn open(contender: &Contender) -> anyhow::Result<Self> {
        Ok(Self { cpu: contender.meter.seconds()?, machine: cpu::of_machine()? })
    }

    fn close(self, contender: &Contender) -> anyhow::Result<Self> {
        let last = Self::open(contender)?;
        Ok(Self { cpu: last.cpu - self.cpu, machine: last.machine - self.machine })
    }
}

impl<'a> Bed<'a> {
    pub fn new(
        workload: &'a Workload,
        layout: Layout,
        network: Option<&'a Network>,
        contenders: usize,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let directory = directory.join(&workload.name);
        std::fs::create_dir_all(&directory)?;
        let mut backend = free_address()?;
        if network.is_some() {
            backend.set_ip(net::BACKEND);
        }
        let spot = layout.spot(network, Place::Backend);
        let process = match &workload.load {
            Load::Ours { serve, .. } | Load::Held { serve, .. } => {
                let arguments = ["serve", serve, "--listen", &backend.to_string()];
                let mut child = Child::ourselves(&arguments.map(str::to_owned), &spot)?;
                child.expect("ready", READY)?;
                child
            }
            tool => tools::backend(tool, backend, &directory, &spot)?,
        };
        let directory = directory.canonicalize()?;
        if workload.transport == Transport::Tls {
            tls::write_certificates(&directory)?;
        }
        let running = (0..contenders).map(|_| None).collect();
        let more = vec![More::default(); contenders];
        Ok(Self { workload, layout, network, directory, backend, _backend: process, running, more })
    }

    /// Gives contender number `index`, which is yet to be started, more of a configuration.
    pub fn configure(&mut self, index: usize, more: More) {
        self.more[index] = more;
    }

    /// Starts contender number `index`, unless it runs; returns its configuration.
    pub fn start(&mut self, index: usize, peer: Peer, found: &Found) -> anyhow::Result<String> {
        if let Some(contender) = &self.running[index] {
            return Ok(contender.running.configuration.clone());
        }
        let sources = (0..self.workload.udp.sources).map(|n| {
            Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + u32::from(n)).into()
        });
        let directory = self.directory.join(format!("{index}-{peer}"));
        std::fs::create_dir_all(&directory)?;
        let mut listen = free_address()?;
        if self.network.is_some() {
            listen.set_ip(net::GATEWAY);
        }
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
                shared: self.workload.udp.shared,
            },
            more: self.more[index].clone(),
            certificates: self.directory.clone(),
            dir: directory,
            netns: self.network.map(|network| network.namespace(Place::Gateway)),
        };
        let running = peer.start(found, &setup)?;
        let meter = Meter::of(&format!("{}-{peer}", self.workload.name), &running.pids);
        let configuration = running.configuration.clone();
        self.running[index] = Some(Contender { peer, running, meter });
        Ok(configuration)
    }

    /// Loads contender number `index`, which was started.
    pub fn measure(&mut self, index: usize) -> anyhow::Result<Measured> {
        let contender = self.running[index].as_ref().context("a contender that was started")?;
        let measured = self.load(contender);
        // One that failed may be in no state for another round. And rules of the kernel hold for
        // the others too: while there are some, conntrack looks at every packet.
        if self.workload.fresh || measured.is_err() || contender.peer == Peer::Dnat {
            self.running[index] = None;
        }
        measured
    }

    /// The processes of contender number `index`, and the folder of its files.
    pub fn running(&self, index: usize) -> Option<(&Running, PathBuf)> {
        let contender = self.running[index].as_ref()?;
        let directory = self.directory.join(format!("{index}-{}", contender.peer));
        Some((&contender.running, directory))
    }

    pub fn is_veth(&self) -> bool {
        self.network.is_some()
    }

    fn load(&self, contender: &Contender) -> anyhow::Result<Measured> {
        let before = contender.meter.usage();
        let to = contender.running.listen;
        let (outcome, window, after) = match &self.workload.load {
            Load::Ours { load, arguments, .. } => {
                let mut child = self.start_load(load, to, self.layout.seconds, arguments)?;
                child.expect("begin", READY)?;
                let begin = Instant::now() + Duration::from_secs_f64(self.layout.warmup());
                let (window, after) = self.window(contender, begin)?;
                (outcome(&mut child)?, Some(window), after)
            }
            Load::Held { load, arguments, processes, seconds, .. } => {
                let children =
                    (0..*processes).map(|_| self.start_load(load, to, *seconds, arguments));
                let mut children = children.collect::<anyhow::Result<Vec<_>>>()?;
                let after = self.held(contender, *seconds, &mut children)?;
                let mut all = Outcome::default();
                for child in &mut children {
                    let one = outcome(child)?;
                    all.seconds = all.seconds.max(one.seconds);
                    all.operations += one.operations;
                    all.errors += one.errors;
                    all.lost += one.lost;
                }
                (all, None, after)
            }
            tool => {
                let first = Window::open(contender)?;
                let spot = self.layout.spot(self.network, Place::Client);
                let outcome = tools::load(tool, to, &self.directory, self.layout.seconds, &spot)?;
                (outcome, Some(first.close(contender)?), contender.meter.usage())
            }
        };
        // What has no process has no CPU of its own.
        let cpu = window.map(|of| of.cpu).filter(|_| !contender.running.pids.is_empty());
        let machine = window.map(|of| of.machine);
        let counted_by = contender.meter.method();
        Ok(Measured { outcome, cpu, machine, counted_by, before, after })
    }

    /// What is used when all connections or flows stand.
    fn held(
        &self,
        contender: &Contender,
        seconds: f64,
        children: &mut [Child],
    ) -> anyhow::Result<Usage> {
        let mut flows = false;
        for child in children {
            flows |= child.line(READY)? == "begin";
        }
        if !flows {
            return settled(&contender.meter);
        }
        // They stand when their first round trips are made, which the interval has time for.
        interrupt::sleep_until(Instant::now() + Duration::from_secs_f64(seconds))?;
        Ok(contender.meter.usage())
    }

    /// The CPU of the interval that begins then, and what is used at its end.
    fn window(&self, contender: &Contender, begin: Instant) -> anyhow::Result<(Window, Usage)> {
        interrupt::sleep_until(begin)?;
        let first = Window::open(contender)?;
        interrupt::sleep_until(begin + Duration::from_secs_f64(self.layout.seconds))?;
        Ok((first.close(contender)?, contender.meter.usage()))
    }

    fn start_load(
        &self,
        kind: &str,
        to: SocketAddr,
        seconds: f64,
        more: &[String],
    ) -> anyhow::Result<Child> {
        let mut arguments = vec!["load".to_owned(), kind.to_owned()];
        let options = [
            ("--to", to.to_string()),
            ("--seconds", seconds.to_string()),
            ("--warmup", self.layout.warmup().to_string()),
        ];
        for (name, value) in options {
            arguments.extend([name.to_owned(), value]);
        }
        if self.workload.transport == Transport::Tls {
            let file = self.directory.join("ca.pem").display().to_string();
            arguments.extend(["--ca".to_owned(), file]);
        }
        arguments.extend_from_slice(more);
        Child::ourselves(&arguments, &self.layout.spot(self.network, Place::Client))
    }
}

/// What is used when it changes no more: a proxy goes on accepting and connecting for a while when
/// its clients are already connected to its queue.
fn settled(meter: &Meter) -> anyhow::Result<Usage> {
    let patience = Instant::now() + Duration::from_secs(20);
    let mut last = meter.usage();
    loop {
        interrupt::sleep_until(Instant::now() + Duration::from_millis(300))?;
        let now = meter.usage();
        if now.files == last.files || Instant::now() > patience {
            return Ok(now);
        }
        last = now;
    }
}

fn outcome(child: &mut Child) -> anyhow::Result<Outcome> {
    let text = child.rest(READY)?;
    let line = text.lines().last().context("the load printed no outcome")?;
    serde_json::from_str(line).with_context(|| format!("an outcome: {line}"))
}

/// A loopback address with a port that is free for TCP and UDP. Below the ports that the kernel
/// gives to clients, or a connection of the load could take it before the proxy does; and not the
/// ports next to these, where Ringway's admin address is.
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
