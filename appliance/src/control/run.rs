//! The control thread's work until all workers have ended: follows the configuration and signals,
//! and collects the workers' records every 20 ms.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use config_sync::publish::socket_file::SocketFile;
use config_sync::source::watch::Watch;
use config_sync::sync::reading::Wish;
use config_sync::sync::{ConfigSync, Outcome};
use config_sync::table::address::UnixPath;
use crossbeam_channel::Receiver;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle as JoinTask;
use tokio::time::{Instant, MissedTickBehavior};

use crate::control::access_log::AccessLog;
use crate::control::admin::board::{Board, Source};
use crate::control::admin::calls::{Call, Refusal};
use crate::control::cluster::{Following, News};
use crate::control::fd_store::FdStore;
use crate::control::line_of::line;
use crate::control::live::Live;
use crate::control::looking::Looking;
use crate::control::memory::{Looks, Memory};
use crate::control::output::{BadConfig, panic_message};
use crate::control::pid_file::PidFile;
use crate::control::pulse::Pulse;
use crate::control::spare_files::SpareFiles;
use crate::control::systemd;
use crate::control::time_of_day::{time_of_day, unix_seconds};
use crate::control::timestamp::{Timestamp, WallClock};
use crate::control::upgrade::state::{Upgrade, knocked};
use crate::control::upgrade::under_way::FIRST_NUMBER;
use crate::stats::records::{Record, SessionRecord};
use crate::worker::Copies;

/// How often the control thread collects the workers' records. Workers do not wake the control
/// thread, because that would cost them a system call for each record. Their channels hold the
/// records of one tick. For answers to requests they ring.
const TICK: Duration = Duration::from_millis(20);

/// How soon the control thread looks again whether a worker takes a request, or has answered one
/// while its channel was full.
const SOON: Duration = Duration::from_millis(1);

/// Files that are kept for a reload. A reload can open this many new sockets when sessions have
/// taken all other files. A reload that needs more is tried again.
pub const SPARE: usize = 32;

/// How often unused ids are looked for.
const RETIRE: Duration = Duration::from_secs(10);

/// How often the log warns of certificates that are about to end.
const DAY: Duration = Duration::from_secs(86_400);
/// How often the metrics page gets the figures of the cluster and of the endpoints.
const SHOW: Duration = Duration::from_millis(500);

pub struct Control {
    pub sync: ConfigSync,
    pub workers: Vec<Running>,
    /// The end of a pipe: a worker has answered a request.
    pub answered: OwnedFd,
    pub log: AccessLog,
    /// What the admin API asks of the workers.
    pub live: Live,
    /// The admin API's socket.
    pub admin_socket: Option<UnixPath>,
    pub upgrade: Upgrade,
    pub fd_store: FdStore,
    pub pid_file: Option<PidFile>,
    /// Whether the workers live.
    pub pulse: Pulse,
    /// The file of the admin API's socket, which is removed at the end.
    pub socket_file: Option<SocketFile>,
    pub wall: WallClock,
    pub board: Arc<Board>,
    pub phase: Phase,
    /// The first table is in force. Before that, addresses that this machine lacks are bound too.
    pub is_started: Arc<AtomicBool>,
    /// Spare files for reloads of files.
    pub spare: SpareFiles,
    pub watched: BTreeSet<PathBuf>,
    /// The cluster that is followed in place of a file.
    pub cluster: Option<Following>,
    pub leaving: Option<JoinTask<()>>,
    /// When the figures of the cluster, and those of the endpoints, were last shown.
    pub shown: Instant,
    pub health_shown: Instant,
    /// When unused ids were last looked for.
    pub retired: Instant,
    pub memory: Memory,
    pub looks: Looks,
}

/// A worker, as the control thread sees the worker.
pub struct Running {
    /// `None` once it has been joined.
    pub thread: Option<JoinHandle<io::Result<()>>>,
    pub records: Receiver<Record>,
    pub copies: Receiver<Copies>,
    /// The generation of the worker's table.
    pub applied: u64,
}

pub enum Phase {
    Running,
    /// Readiness fails, so that load balancers choose other gateways. All else still works.
    Grace {
        until: Instant,
    },
    /// No new session or flow is accepted. Sessions have until `drain_timeout` to end.
    Draining,
    /// All sessions and flows are being closed.
    Stopping,
}

/// The signals. They must be taken first of all, because an earlier signal would end the process.
pub struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
    upgrade: Signal,
}

impl Signals {
    pub fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }
}

impl Control {
    /// Runs until every worker has ended: after SIGTERM or SIGINT, or because a worker has died,
    /// which is an error. `changes` says when a file may have changed.
    pub async fn run(
        mut self,
        mut signals: Signals,
        mut changes: Option<Watch>,
    ) -> anyhow::Result<()> {
        self.note_own_memory();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut daily = tokio::time::interval_at(Instant::now() + DAY, DAY);
        let mut looking = Looking::default();
        let bell = pipe::Receiver::from_owned_fd(self.answered.try_clone()?)?;
        let result = loop {
            tokio::select! {
                _ = tick.tick() => match self.tick(&mut looking) {
                    Ok(false) if self.cluster.is_none() => self.look(&mut looking, Wish::Retry),
                    Ok(false) => {}
                    Ok(true) => break Ok(()),
                    Err(error) => break Err(error),
                },
                () = changed(&mut changes) => self.look(&mut looking, Wish::Refresh),
                found = looking.found() => self.found(found, &mut looking, &mut changes),
                Some(()) = signals.hangup.recv() => {
                    self.log.reopen();
                    let asked = (Wish::Reload, None);
                    if let Err(Refusal::Busy(why)) = self.reload(&mut looking, &changes, asked) {
                        tracing::info!("{why}");
                    }
                }
                _ = daily.tick() => self.warn_of_certificates(),
                Some(call) = self.live.next() => match call {
                    Call::Reload { confirmed, answer } => {
                        self.log.reopen();
                        let wish = if confirmed { Wish::Confirmed } else { Wish::Reload };
                        _ = self.reload(&mut looking, &changes, (wish, Some(answer)));
                    }
                    call => self.serve(call),
                },
                Some(()) = signals.upgrade.recv() => self.begin_upgrade(None, None),
                connection = knocked(&mut self.upgrade.door) => self.on_knock(connection),
                Some(step) = self.upgrade.steps.recv() => self.on_step(step),
                () = rung(&bell) => self.collect_all(),
                () = tokio::time::sleep(SOON), if self.is_waiting() => self.collect_all(),
                Some(()) = signals.interrupt.recv() => self.terminate(),
                Some(()) = signals.terminate.recv() => self.terminate(),
            }
        };
        if let Some(leaving) = self.leaving.take() {
            // The task logs its own errors.
            _ = leaving.await;
        }
        self.log.close();
        match self.upgrade.failure.take() {
            Some(why) => result.and(Err(anyhow!("--take-over: {why}"))),
            None => result,
        }
    }

    /// Loads the first table. Unlike in a reload, a failure is an error, because no earlier table
    /// is in force.
    pub fn load(&mut self) -> anyhow::Result<()> {
        let outcome = self.sync.follow(Wish::Reload);
        if let Outcome::Rejected(problems) = outcome {
            bail!(BadConfig(problems));
        }
        self.is_started.store(true, Ordering::Relaxed);
        self.reloaded(outcome);
        Ok(())
    }

    pub fn warn_of_certificates(&self) {
        let (now, own) = (unix_seconds(), self.board.admin_certificate());
        for of in self.sync.names().expiries().iter().chain(&own) {
            of.warning(now).into_iter().for_each(|warning| tracing::warn!("{warning}"));
        }
    }

    /// Tells the admin API the values in force.
    pub fn post(&mut self) {
        if let Some(in_force) = self.sync.in_force() {
            self.log.sample(&in_force.config.access_log.sample);
        }
        if let (Some(start), Some(whole)) = (&mut *self.board.start.lock(), self.sync.whole()) {
            start.note(whole);
        }
        let mut board = self.board.latest();
        board.reloads_ok = self.sync.reloads_ok();
        let (failed, why) = (self.sync.reloads_failed(), self.sync.last_error());
        if let Some(why) = why.filter(|_| failed > board.reloads_failed) {
            board.last_refused = Some((Timestamp::of(time_of_day()), why.to_owned()));
        }
        board.reloads_failed = failed;
        board.refused = self.sync.last_error().map(str::to_owned);
        board.source = if self.cluster.is_some() { Source::Cluster } else { Source::Files };
        board.timing = self.sync.timing();
        if let (Some(in_force), Some(whole)) = (self.sync.in_force(), self.sync.whole()) {
            Arc::make_mut(&mut board.series).learn(&in_force.config, whole, self.sync.names());
            if !board.in_force.as_ref().is_some_and(|known| Arc::ptr_eq(known, in_force)) {
                board.generation = self.sync.generation();
                board.since = Some(Timestamp::of(time_of_day()));
            }
            board.in_force = Some(Arc::clone(in_force));
        }
    }

    pub fn terminate(&mut self) {
        if let Some(taking) = &mut self.upgrade.taking {
            tracing::info!("this process ends once it is clear who has the sockets");
            taking.must_end = true;
            return;
        }
        if self.puts_off_the_end() || self.is_meant_for_both() {
            return;
        }
        match self.phase {
            Phase::Running => {
                systemd::tell("STOPPING=1");
                self.board.ready.store(false, Ordering::Relaxed);
                self.board.draining.store(true, Ordering::Relaxed);
                self.leaving = self.cluster.as_ref().map(Following::leave);
                let grace = self.sync.in_force().map_or(0, |in_force| in_force.config.drain_grace);
                let until = Instant::now() + Duration::from_millis(grace.into());
                tracing::info!("draining: a second SIGTERM or Ctrl-C closes all sessions at once");
                self.phase = Phase::Grace { until };
                self.drain_after_grace();
            }
            Phase::Grace { .. } | Phase::Draining => {
                tracing::info!("ending now: all sessions are closed");
                self.phase = Phase::Stopping;
                self.sync.stop();
            }
            Phase::Stopping => {}
        }
    }

    fn drain_after_grace(&mut self) {
        if let Phase::Grace { until } = self.phase
            && Instant::now() >= until
        {
            self.phase = Phase::Draining;
            self.sync.drain();
        }
    }

    /// True once all workers have ended.
    fn tick(&mut self, looking: &mut Looking) -> anyhow::Result<bool> {
        self.board.beat();
        self.look_at_memory();
        self.look_at_workers();
        self.upgrade_tick();
        if !self.upgrade.is_under_way()
            && looking.under_way.is_none()
            && let Some(wish) = looking.next.take()
        {
            self.look(looking, wish);
        }
        let failed = self.sync.reloads_failed();
        for index in 0..self.workers.len() {
            // In this order no record of a worker that has ended is missed.
            let ended = self.workers[index].ended();
            self.collect(index);
            if ended {
                self.join(index)?;
            }
        }
        self.sync.flush();
        self.board.newest.store(self.sync.generation(), Ordering::Relaxed);
        let applied = self.workers.iter().map(|worker| worker.applied).min().unwrap_or(0);
        self.follow(applied);
        if self.sync.resolve_names() {
            tracing::debug!("table {} goes to the workers", self.sync.generation());
            self.post();
        }
        self.check_endpoints();
        if self.retired.elapsed() >= RETIRE {
            self.retire(applied);
        }
        self.drain_after_grace();
        self.board.lines_dropped.store(self.log.dropped(), Ordering::Relaxed);
        self.board.lines_failed.store(self.log.failed(), Ordering::Relaxed);
        let error = self.sync.last_error();
        if self.sync.reloads_failed() != failed || error != self.board.latest().refused.as_deref() {
            self.post();
        }
        let ready = matches!(self.phase, Phase::Running)
            && self.workers.iter().all(|worker| worker.applied > 0);
        if ready && !self.board.ready.swap(true, Ordering::Relaxed) {
            tracing::info!("ready: {} workers", self.workers.len());
            if self.upgrade.taking.is_none() {
                systemd::tell("READY=1");
            }
        }
        self.tell_systemd(looking);
        Ok(self.workers.iter().all(|worker| worker.thread.is_none()))
    }

    /// Frees the ids of names that left the tables long ago.
    fn retire(&mut self, applied: u64) {
        self.retired = Instant::now();
        let workers = self.board.workers();
        let listener = |id| workers.iter().any(|worker| worker.listener(id).live() > 0);
        let endpoint = |id| workers.iter().any(|worker| worker.endpoint(id).live() > 0);
        let route = |id| workers.iter().any(|worker| worker.route(id).live() > 0);
        let retired = self.sync.retire(applied, &listener, &route, &endpoint);
        for worker in workers {
            retired.listeners.iter().for_each(|id| worker.forget_listener(*id));
            retired.routes.iter().for_each(|id| worker.forget_route(*id));
            retired.endpoints.iter().for_each(|id| worker.forget_endpoint(*id));
        }
        Arc::make_mut(&mut self.board.latest().series).forget(&retired);
    }

    fn follow(&mut self, applied: u64) {
        let Some(cluster) = &mut self.cluster else { return };
        let news = cluster.tick(&mut self.sync, applied);
        if news != News::Nothing || self.shown.elapsed() >= SHOW {
            self.shown = Instant::now();
            self.board.latest().kubernetes = Some(cluster.figures());
        }
        match news {
            News::Nothing => {}
            News::Published => {
                tracing::debug!("table {} goes to the workers", self.sync.generation());
                self.post();
            }
            News::Refused => self.post(),
        }
    }

    fn check_endpoints(&mut self) {
        let workers = self.board.workers();
        let failures =
            |id| workers.iter().map(|worker| worker.endpoint(id).failures.get()).sum::<u64>();
        let is_due = self.health_shown.elapsed() >= SHOW;
        let mut published = self.sync.check_endpoints(&failures);
        published |= self.sync.publish_more_gone();
        if is_due && self.sync.follow_interfaces() {
            published = true;
            self.post();
        }
        if published {
            tracing::debug!("table {} goes to the workers", self.sync.generation());
        }
        if published || is_due {
            self.health_shown = Instant::now();
            let mut latest = self.board.latest();
            (latest.health, latest.ejections) = self.sync.figures();
            latest.resolver = self.sync.resolver_figures();
            latest.overrides = self.sync.overrides().len() as u64;
            drop(latest);
            self.board.sample();
        }
    }

    fn collect_all(&mut self) {
        self.sync.flush();
        (0..self.workers.len()).for_each(|index| self.collect(index));
    }

    fn collect(&mut self, index: usize) {
        let (records, now) = (self.workers[index].records.clone(), Instant::now());
        // Takes no more records than there are now, because a worker that writes without pause must
        // not keep the control thread here.
        for record in records.try_iter().take(records.len()) {
            match record {
                Record::Opened(session) => self.write("open", index, &session, now),
                Record::Closed(session) => {
                    self.board.clients.lock().ended(&session, now);
                    let event = if session.refused { "reject" } else { "close" };
                    self.write(event, index, &session, now);
                }
                Record::Applied { generation, previous } => {
                    self.workers[index].applied = generation;
                    drop(previous);
                }
                Record::Retired(table) => drop(table),
                Record::Unlistened(socket) => self.sync.unlistened(index, socket),
                Record::Reply(reply) if reply.number < FIRST_NUMBER => {
                    self.live.replied(reply, &self.sync);
                }
                Record::Reply(reply) => self.moved(index, reply),
            }
        }
        self.log.flush();
    }

    fn write(&mut self, event: &'static str, worker: usize, session: &SessionRecord, now: Instant) {
        let stamp = (self.wall, self.live.run());
        let mut line = line(event, worker, session, self.sync.names(), stamp);
        self.log.write(&mut line);
        if let Some(reason) = session.reason {
            self.board.closes.lock().sample(reason, &line, now);
        }
    }

    /// Joins a worker. A worker may end only after all workers were told to end.
    fn join(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(thread) = self.workers[index].thread.take() else { return Ok(()) };
        self.live.ended(index);
        self.moves_ended(index);
        let ending = matches!(self.phase, Phase::Draining | Phase::Stopping);
        match thread.join() {
            Ok(Ok(())) if ending => Ok(()),
            Ok(Ok(())) => Err(anyhow!("it has stopped")),
            Ok(Err(error)) => Err(anyhow!("its ring: {error}")),
            Err(panic) => Err(anyhow!("{}", panic_message(&*panic))),
        }
        .with_context(|| format!("worker {index} died"))
    }
}

impl Running {
    fn ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

/// What workers ring when they have answered a request: the end that the control thread reads, and
/// theirs.
pub fn bell() -> nix::Result<(OwnedFd, Arc<OwnedFd>)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    Ok((read, Arc::new(write)))
}

/// Waits until a worker has answered a request.
async fn rung(bell: &pipe::Receiver) {
    if bell.readable().await.is_err() {
        return std::future::pending().await;
    }
    // However often it has rung: all answers are collected. Once all workers have ended, the pipe
    // has an end, at which there is always something to read.
    if bell.try_read(&mut [0; 512]).is_ok_and(|len| len == 0) {
        std::future::pending().await
    }
}

/// Waits for a change. Never returns if there is no file to watch.
async fn changed(watch: &mut Option<Watch>) {
    if let Some(changes) = watch.as_mut().map(|watch| &mut watch.changes) {
        if changes.recv().await.is_some() {
            return;
        }
        tracing::error!("the configuration file is no longer watched; SIGHUP still reloads it");
        *watch = None;
    }
    std::future::pending().await
}
