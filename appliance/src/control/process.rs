//! Starts and ends the process: finds the features, starts the workers, waits until each has its
//! ring, and only then binds addresses.
//!
//! The order matters: a listening socket takes connections from the moment it is bound, so the
//! workers must be there to serve them.

use std::collections::BTreeSet;
use std::io;
use std::io::ErrorKind::{AddrInUse, AddrNotAvailable};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::gateway::follow::cluster;
use config_sync::gateway::follow::cluster::Cluster;
use config_sync::machine::Machine;
use config_sync::model::config;
use config_sync::model::config::{Config, Cores};
use config_sync::model::place::Problems;
use config_sync::publish::{COMMANDS, Link, OpenListeners, Publisher};
use config_sync::source::Source;
use config_sync::source::watch::watch;
use config_sync::sync::ConfigSync;
use config_sync::sync::fast_path::OpenFastPath;
use config_sync::table::address::Address;
use config_sync::table::routing::{Limits, Socket};
use core_affinity::CoreId;
use crossbeam_channel::Receiver;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs::default_provider;
use socket2::Type;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::control::access_log::AccessLog;
use crate::control::admin::access::Access;
use crate::control::admin::board::{Board, source_ports};
use crate::control::admin::calls::{self, Call};
use crate::control::admin::server::Door;
use crate::control::admin::tls::Tls;
use crate::control::cluster::Following;
use crate::control::fast_path;
use crate::control::fd_store::FdStore;
use crate::control::id::Run;
use crate::control::live::Live;
use crate::control::memory::{Looks, Memory};
use crate::control::output::{self, BadConfig, panic_message};
use crate::control::passed::{self, Passed};
use crate::control::pid_file::PidFile;
use crate::control::privileges;
use crate::control::pulse::Pulse;
use crate::control::run::{Control, Phase, Running, SPARE, Signals, bell};
use crate::control::sandbox::Sandbox;
use crate::control::spare_files::SpareFiles;
use crate::control::systemd;
use crate::control::timestamp::WallClock;
use crate::control::upgrade::door;
use crate::control::upgrade::starter::Starter;
use crate::control::upgrade::state::Upgrade;
use crate::control::upgrade::taking::{Given, Sockets, ask};
use crate::ring::listen::given::complete;
use crate::ring::listen::open::{join_listeners, open_listeners};
use crate::ring::listen::unix;
use crate::ring::{Features, RingError, SharedPath};
use crate::stats::counters::Counters;
use crate::wire::hand_over::{MOST_FLOWS, What};
use crate::worker::{self, Clock, RECORDS, Spawned, WorkerConfig};

/// How long after its start the process waits for addresses that are in use. The kernel closes a
/// ring, and the sockets on which the ring accepts, only after the ring's process has ended
/// (`io_ring_exit_work`). So a gateway that starts when another ends finds the addresses in use for
/// some milliseconds.
const RELEASE: Duration = Duration::from_secs(1);

/// The place that the configuration comes from.
pub enum Origin {
    File {
        source: Source,
        /// False: only SIGHUP reloads.
        watch: bool,
        /// A reload may take all listeners away, or most.
        allow_empty: bool,
    },
    /// The cluster gives listeners, routes and backends. `base` gives the rest, from a file if
    /// there is one.
    Cluster { options: Box<cluster::Options>, base: Source },
}

/// How the process starts.
#[derive(Default)]
pub struct Start {
    /// This process takes the listening sockets of the one over that runs with this configuration.
    pub take_over: bool,
    /// The file for this process's number.
    pub pid_file: Option<PathBuf>,
    /// Features that are not used.
    pub without: Vec<String>,
}

/// Runs the gateway until a signal ends it.
///
/// # Errors
/// The configuration is bad, the machine lacks something, an address can't be bound, or a worker
/// has died. The text is for the operator.
pub fn run(origin: Origin, start: Start) -> anyhow::Result<()> {
    // The control thread is not the main thread, so that tools show CPU time under its own name.
    thread::Builder::new()
        .name("ringway-control".into())
        .spawn(move || {
            // Before anything opens a file.
            let passed = passed::take();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(control(origin, start, passed))
        })
        .context("the control thread")?
        .join()
        .unwrap_or_else(|panic| bail!("the control thread died: {}", panic_message(&*panic)))
}

async fn control(origin: Origin, start: Start, passed: Passed) -> anyhow::Result<()> {
    let signals = Signals::take().context("signals")?;
    // Later another program may have this name.
    let program = std::env::current_exe().context("the path of this program")?;
    let (source, options, is_watched, allow_empty) = match origin {
        Origin::File { source, watch, allow_empty } => (source, None, watch, allow_empty),
        Origin::Cluster { options, base } => (base, Some(options), false, false),
    };
    let (config, sources) = configured(&source, options.is_some())?;
    let take_over = start.take_over.then(|| door::path(config.admin_socket())).transpose();
    let take_over = take_over.map_err(|why| anyhow!("--take-over: {why}"))?;
    let files = raise_file_limit();
    let tls = config.admin_tls.as_ref().map(Tls::read).transpose();
    let tls = tls.map_err(|problem| BadConfig(problem.to_string()))?;
    go_on_as_user(&config, &source, options.is_some())?;
    let sandbox = Sandbox::begin(&config, options.is_some())?;
    let starter = Starter::new(program).context("the thread that starts programs")?;
    sandbox.enter();
    let features = probe(&start.without)?;
    let mut watched = BTreeSet::new();
    let changes = match source.path() {
        Some(path) if is_watched => {
            watched = config.files();
            watched.extend(sources);
            Some(watch(&watched).with_context(|| format!("watching {}", path.display()))?)
        }
        _ => None,
    };
    let log = AccessLog::open(&config.access_log.target, config.access_log.format)
        .context("access_log.path")?;
    let early = early(&source, options.is_some());
    let (caller, calls) = calls::channel();
    let pid_file = start.pid_file.as_deref().map(open_pid_file).transpose()?;
    sandbox.hold_files();
    let running = spawn_all(&config, &features, files, (&sandbox, take_over.is_some()))?;
    sandbox.no_more_rings();
    let given = match take_over {
        Some(path) => Some(ask(path, running.workers.len()).map_err(|why| anyhow!("{why}"))?),
        None => None,
    };
    let sockets = given.as_ref().map(|given| Arc::clone(&given.sockets)).unwrap_or_default();
    if given.is_none() {
        passed::sort(passed, &config, &mut sockets.lock());
    }
    let running = (running, Arc::clone(&sockets));
    let from = (&given, starter);
    let mut control = make(source, &config, running, from, (calls, log, early), tls.clone())?;
    (control.watched, control.pid_file) = (watched, pid_file);
    match options {
        None => control.load()?,
        Some(options) => {
            control.cluster = Some(Following::new(Cluster::start(*options).await?));
        }
    }
    let doors = doors(&config, tls, &sockets).await?;
    say_admin(&config);
    match given {
        None => {
            control.open_doors(doors, caller, None, None)?;
            control.claim_pid_file();
            passed::warn_of_rest(&mut sockets.lock());
        }
        Some(given) => control.take_over(given, doors, caller),
    }
    if allow_empty {
        control.sync.allow_empty();
    }
    control.run(signals, changes).await
}

/// Reads the configuration, for what it says of the process.
fn configured(source: &Source, is_cluster: bool) -> anyhow::Result<(Config, BTreeSet<PathBuf>)> {
    let (config, sources) = check_and_name(source)?;
    if is_cluster && !(config.listeners.is_empty() && config.backends.is_empty()) {
        let name = source.name();
        bail!("{name}: listeners, routes and backends come from the cluster with --kubernetes");
    }
    if is_cluster && source.path().is_some() {
        for doubt in &config.doubts {
            tracing::warn!("{doubt}");
        }
    }
    Ok((config, sources))
}

fn open_pid_file(path: &Path) -> anyhow::Result<PidFile> {
    PidFile::open(path).with_context(|| format!("--pid-file {}", path.display()))
}

/// What only root can read would fail in the first reload, so it fails now.
fn go_on_as_user(config: &Config, source: &Source, is_cluster: bool) -> anyhow::Result<()> {
    if privileges::give_up(config, is_cluster)? && source.path().is_some() {
        check_and_name(source).context("as that user")?;
    }
    Ok(())
}

/// The addresses that are bound although this machine may lack them.
fn early(source: &Source, is_cluster: bool) -> Vec<IpNet> {
    match source {
        // A Gateway may ask for an address of another node, because every replica serves the
        // Gateway.
        _ if is_cluster => vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
        Source::Objects { options, .. } => options.address_pool.clone(),
        Source::File(_) | Source::Pipe(_) | Source::Text { .. } => Vec::new(),
    }
}

fn say_admin(config: &Config) {
    if let Some(address) = config.admin {
        let scheme = if config.admin_tls.is_some() { "https" } else { "http" };
        tracing::info!("admin API: {scheme}://{address}");
    }
    if let Some(path) = config.admin_socket() {
        tracing::info!("admin API: {}", Address::Unix(path));
    }
}

/// Parses and compiles the configuration, without running it.
pub fn check(source: &Source) -> anyhow::Result<Config> {
    Ok(check_and_name(source)?.0)
}

/// Does the work of [`check`], and names the source's own files and directories.
fn check_and_name(source: &Source) -> anyhow::Result<(Config, BTreeSet<PathBuf>)> {
    let text = source.read().map_err(BadConfig)?;
    let config = source.config(&text).map_err(BadConfig)?.config;
    let compiled = compile(&config, &mut Names::new(), 1);
    compiled.map_err(|problems| BadConfig(problems.to_string()))?;
    Ok((config, source.files(&text)))
}

/// The kernel's features, without those that are left out.
pub fn probe(without: &[String]) -> anyhow::Result<Features> {
    let mut features = Features::probe()?;
    for name in without {
        features.without(name).map_err(|error| anyhow!("--without {name}: {error}"))?;
    }
    Ok(features)
}

/// Opens the sockets of the admin API that the process before has not given.
async fn doors(
    config: &Config,
    tls: Option<Tls>,
    given: &Mutex<Sockets>,
) -> anyhow::Result<Vec<Door>> {
    let mut doors = Vec::new();
    if let Some(address) = config.admin {
        let file = config.admin_token_file.as_ref().map(|file| file.value.clone());
        let certificates = tls.as_ref().is_some_and(Tls::asks);
        let access = Access::with_token(file, certificates).map_err(anyhow::Error::msg)?;
        let listener = match take_admin(given, &address.to_string()) {
            Some(socket) => socket.into(),
            None => TcpListener::bind(address)
                .await
                .and_then(TcpListener::into_std)
                .with_context(|| format!("admin.address: {address}"))?,
        };
        doors.push(Door::Tcp(listener, access, tls));
    }
    if let Some(path) = config.admin_socket() {
        let hint = |error: &io::Error| match error.kind() {
            AddrInUse => "; another process listens there, or the file is no socket",
            io::ErrorKind::NotFound => {
                "; make its directory for the gateway's user first (install -d -o USER DIRECTORY; \
                 under systemd: RuntimeDirectory=)"
            }
            io::ErrorKind::PermissionDenied => {
                "; the gateway's user must be able to write to its directory"
            }
            _ => "",
        };
        let socket = match take_admin(given, &Address::Unix(path).to_string()) {
            Some(socket) => socket,
            None => unix::open_private(path, Type::STREAM).map_err(|error| {
                anyhow!("admin.socket: {}: {error}{}", Address::Unix(path), hint(&error))
            })?,
        };
        doors.push(Door::Unix(socket.into()));
    }
    Ok(doors)
}

fn take_admin(given: &Mutex<Sockets>, address: &str) -> Option<OwnedFd> {
    given.lock().take(What::Admin, address, 0).pop()
}

/// The workers, each with its ring.
struct Workers {
    links: Vec<Link>,
    workers: Vec<Running>,
    counters: Vec<Arc<Counters>>,
    clock: Clock,
    limits: Limits,
    features: String,
    fast_path: OpenFastPath,
    answered: OwnedFd,
}

/// Starts the workers, and waits until each has its ring.
fn spawn_all(
    config: &Config,
    features: &Features,
    files: u64,
    (sandbox, waits): (&Sandbox, bool),
) -> anyhow::Result<Workers> {
    let cores = seats(&config.cores)?;
    let ports = source_ports().unwrap_or(0);
    let limits = limits(config, cores.len(), files, ports, features);
    let clock = Clock::start();
    let ports_short = Arc::new(AtomicU64::new(0));
    let fast_path = SharedPath::default();
    let (answered, bell) = bell()?;
    let shared = (&ports_short, &fast_path, &bell);
    let (mut links, mut workers) = (Vec::new(), Vec::new());
    let (mut counters, mut starting) = (Vec::new(), Vec::new());
    for (index, core) in cores.into_iter().enumerate() {
        let own = Arc::new(Counters::new());
        counters.push(Arc::clone(&own));
        let seat = (index, core, sandbox.is_on(), waits);
        let (link, running, ready) = spawn(seat, limits, features, own, clock, shared)
            .with_context(|| format!("worker {index}"))?;
        links.push(link);
        workers.push(running);
        starting.push(ready);
    }
    for (index, (worker, ready)) in workers.iter_mut().zip(starting).enumerate() {
        worker.wait_for(&ready).with_context(|| format!("worker {index}"))?;
    }
    let fast_path = (!sandbox.keeps_out_fast_path()).then_some(fast_path);
    let tcx = features.may_use_tcx();
    let fast_path = fast_path::opener(fast_path, limits.flows, workers.len(), tcx);
    let features = output::features(features);
    Ok(Workers { links, workers, counters, clock, limits, features, fast_path, answered })
}

/// Makes the control thread's state out of what runs, and what the process before has given.
fn make(
    source: Source,
    config: &Config,
    (running, sockets): (Workers, Arc<Mutex<Sockets>>),
    (given, starter): (&Option<Given>, Starter),
    (calls, log, early): (mpsc::Receiver<Call>, AccessLog, Vec<IpNet>),
    tls: Option<Tls>,
) -> anyhow::Result<Control> {
    let Workers { links, workers, counters, clock, limits, features, fast_path, answered } =
        running;
    let steering = match given {
        Some(given) => given.seed,
        None => seed()?,
    };
    let is_started = Arc::<AtomicBool>::default();
    let open = opener(sockets, early, steering, Arc::clone(&is_started));
    let wall = wall_clock(clock);
    let mut sync = ConfigSync::new(source, Publisher::new(links, open));
    sync.set_fast_path(fast_path);
    if let Some(given) = given {
        sync.share_files();
        sync.inherit(given.overrides.clone());
        sync.inherit_tickets(given.tickets.clone());
    }
    let mut board = Board::new(counters, (limits, config.limits), features);
    board.reopen_log = log.reopener();
    board.tls = tls;
    let generation = given.as_ref().map_or(1, |given| given.generation + 1);
    Ok(Control {
        sync,
        workers,
        answered,
        board: Arc::new(board),
        log,
        wall,
        live: Live::new(calls, Run(u32::try_from(seed()? >> 32)?), wall),
        admin_socket: config.admin_socket(),
        fd_store: FdStore::new(),
        pid_file: None,
        upgrade: Upgrade::new(steering, generation, starter),
        pulse: Pulse::new(systemd::watchdog()),
        socket_file: None,
        phase: Phase::Running,
        is_started,
        spare: SpareFiles::new(SPARE),
        watched: BTreeSet::new(),
        cluster: None,
        leaving: None,
        shown: Instant::now(),
        health_shown: Instant::now(),
        retired: Instant::now(),
        memory: Memory::open(),
        looks: Looks::new(),
    })
}

/// Opens listening sockets, or takes those that the process before, or systemd, has given. A
/// standby binds the addresses of the pools `early` before it has them.
fn opener(
    given: Arc<Mutex<Sockets>>,
    early: Vec<IpNet>,
    steering: u64,
    is_started: Arc<AtomicBool>,
) -> OpenListeners {
    let start = Instant::now();
    Box::new(move |socket: &Socket, workers: usize, rejoins: bool| {
        let ip = socket.address.ip();
        let early = ip.is_some_and(|at| early.iter().any(|pool| pool.contains(&at.ip())));
        let (found, passed) = {
            let mut given = given.lock();
            (given.take_listening(socket), given.passed)
        };
        if !found.is_empty() {
            let whole = if passed { complete } else { join_listeners };
            return whole(socket, found, workers, early, steering);
        }
        loop {
            match open_listeners(socket, workers, rejoins, early, steering) {
                Err(error) if error.kind() == AddrInUse && start.elapsed() < RELEASE => {
                    thread::sleep(Duration::from_millis(10));
                }
                // A machine that boots does not have all of its addresses yet.
                Err(error) if error.kind() == AddrNotAvailable && !is_started.load(Relaxed) => {
                    tracing::warn!(
                        "no interface has the address of {} yet: clients can connect once one has",
                        socket.address
                    );
                    return open_listeners(socket, workers, rejoins, true, steering);
                }
                result => return result,
            }
        }
    })
}

/// The limits of each worker, which the log says.
fn limits(config: &Config, workers: usize, files: u64, ports: u64, features: &Features) -> Limits {
    let (sockets, descriptors) = (config.listening_sockets(), features.flows_take_descriptors());
    let limits = config::limits(config.limits, sockets, workers, files, ports, descriptors);
    say_capacity(config, limits, workers, files);
    limits
}

/// If there is room for fewer sessions, the log says that the limit of files is low for a server.
const FEW_SESSIONS: u32 = 4_096;

fn say_capacity(config: &Config, limits: Limits, workers: usize, files: u64) {
    let Limits { sessions, flows, buffers, pipes, .. } = limits;
    tracing::info!(
        "capacity of each of {workers} workers: sessions {sessions}, UDP flows {flows}, receive \
         buffers {buffers}, pipes {pipes}; of all: open files {files}"
    );
    if config.limits.sessions == 0 && sessions < FEW_SESSIONS {
        tracing::warn!(
            "the limit of open files ({files}, RLIMIT_NOFILE) leaves room for few sessions: raise \
             that limit (`LimitNOFILE=` of the service, `ulimit -n`, `--ulimit nofile=` of the \
             container)"
        );
    }
}

/// One seat for each worker, with the core that the worker is pinned to. Under a CPU quota (cgroup
/// `cpu.max`, or `cpu.cfs_quota_us`) there are as many workers as the quota allows, and they are
/// not pinned. More workers would all be stopped together in each period, and other containers
/// would use the same cores.
fn seats(asked: &Cores) -> anyhow::Result<Vec<Option<usize>>> {
    let machine = Machine::this();
    let unusable = asked.unusable(&machine);
    if !unusable.is_empty() {
        bail!(BadConfig(Problems(unusable).to_string()));
    }
    let seats: Vec<_> = match asked {
        Cores::List(cores) => cores.iter().map(|core| Some(core.value)).collect(),
        Cores::Auto => {
            let most = thread::available_parallelism().map_or(usize::MAX, usize::from);
            if most < machine.cores.len() {
                tracing::info!("workers: {most}, as many cores as the CPU quota allows");
                vec![None; most]
            } else {
                machine.cores.into_iter().map(Some).collect()
            }
        }
    };
    if seats.is_empty() {
        bail!("workers.cores: this process may use no core");
    }
    Ok(seats)
}

type Ready = Receiver<Result<(), RingError>>;

fn spawn(
    (index, core, confined, waits): (usize, Option<usize>, bool, bool),
    limits: Limits,
    features: &Features,
    counters: Arc<Counters>,
    clock: Clock,
    (ports_short, fast_path, bell): (&Arc<AtomicU64>, &SharedPath, &Arc<OwnedFd>),
) -> anyhow::Result<(Link, Running, Ready)> {
    // Non-blocking: if a wake-up waits to be read, a second one is not needed.
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let wake = OwnedFd::from(wake);
    let (commands, receiver) = crossbeam_channel::bounded(COMMANDS);
    let (sender, records) = crossbeam_channel::bounded(RECORDS);
    let (copier, copies) = crossbeam_channel::bounded(MOST_FLOWS);
    let Spawned { thread, ready } = worker::spawn(WorkerConfig {
        core: core.map(|id| CoreId { id }),
        index,
        waits,
        confined,
        limits,
        features: features.clone(),
        counters,
        commands: receiver,
        wake: wake.try_clone()?,
        records: sender,
        copies: copier,
        bell: Arc::clone(bell),
        clock,
        ports_short: Arc::clone(ports_short),
        fast_path: Arc::clone(fast_path),
        seed: seed()?,
    })?;
    let link = Link { commands, wake: Arc::new(wake) };
    Ok((link, Running { thread: Some(thread), records, copies, applied: 0 }, ready))
}

impl Running {
    /// Waits until the worker has its ring.
    fn wait_for(&mut self, ready: &Ready) -> anyhow::Result<()> {
        if let Ok(ready) = ready.recv() {
            return Ok(ready?);
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => bail!("it died at start: {}", panic_message(&*panic)),
            Some(Ok(_)) | None => bail!("it has stopped at start"),
        }
    }
}

/// Raises the limit of files, because each connection takes two files. The soft limit is low by
/// default only for programs that use select(2). Returns the number of files that may be open now.
fn raise_file_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(error) => {
                tracing::warn!("the limit of open files stays at {soft}: {error}");
                soft
            }
        },
        Err(error) => {
            tracing::warn!("the limit of open files is unknown: {error}");
            1_024
        }
    }
}

/// A random seed for a worker's hash tables or for the choice of the worker, so that clients can't
/// choose keys that collide.
fn seed() -> anyhow::Result<u64> {
    let mut seed = [0; 8];
    let filled = default_provider().secure_random.fill(&mut seed);
    filled.map_err(|_| anyhow!("the system has no random numbers"))?;
    Ok(u64::from_ne_bytes(seed))
}

#[expect(clippy::disallowed_methods, reason = "the one look at the time of day, for the log")]
fn wall_clock(clock: Clock) -> WallClock {
    WallClock::new(SystemTime::now(), clock.micros())
}
