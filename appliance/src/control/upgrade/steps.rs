//! The control thread's part of upgrades.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use config_sync::publish::hand_over::SharedSocket;
use config_sync::publish::socket_file::SocketFile;
use config_sync::table::address::Address;
use config_sync::table::routing::{SocketId, Transport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::SockRef;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::control::admin::calls::{self, Call, Refusal, Upgraded};
use crate::control::admin::server;
use crate::control::fd_store;
use crate::control::pid_file::PidFile;
use crate::control::run::{Control, Phase};
use crate::control::spare_files::SpareFiles;
use crate::control::systemd;
use crate::control::upgrade::door::{self, Link, PATIENCE};
use crate::control::upgrade::giving::{Asks, give};
use crate::control::upgrade::named::{said, shown};
use crate::control::upgrade::state::{Giving, ListeningAt, Offer, Step, Taking};
use crate::control::upgrade::taking::{self, Given};
use crate::ring::listen::{steering, unix};
use crate::wire::hand_over::{Figures, Message, Name, What};

/// How long the new process's request waits for a reload that is under way.
const RELOADING: Duration = Duration::from_secs(10);

/// How soon systemd surely knows which process is the main one.
const SETTLED: Duration = Duration::from_secs(1);

type Caller = oneshot::Sender<Result<Upgraded, Refusal>>;

impl Control {
    pub fn serve(&mut self, call: Call) {
        match call {
            Call::Upgrade { binary, answer } => self.begin_upgrade(binary, Some(answer)),
            call => self.live.serve(call, &mut self.sync),
        }
    }

    /// Why no upgrade can begin now.
    fn no_upgrade(&self) -> Option<String> {
        let why = if std::process::id() == 1 {
            "process 1 can't hand over, because its container ends with it: replace the container"
        } else if !matches!(self.phase, Phase::Running) {
            "the gateway is ending"
        } else if self.upgrade.taking.is_some() {
            "this gateway is still taking over from the one before"
        } else if self.upgrade.door.is_none() {
            self.upgrade.no_door.as_str()
        } else if self.upgrade.giving.is_some() {
            "another upgrade is under way"
        } else {
            return None;
        };
        Some(why.to_owned())
    }

    /// Starts the next process, with this process's arguments and `--take-over`.
    pub fn begin_upgrade(&mut self, binary: Option<PathBuf>, caller: Option<Caller>) {
        if let Some(why) = self.no_upgrade() {
            return refuse(caller, why);
        }
        let program = binary.unwrap_or_else(|| self.upgrade.starter.own.clone());
        let attempt = self.begin_attempt();
        match self.start_process(&program, attempt) {
            Ok(child) => {
                tracing::info!("an upgrade begins: {} is process {child}", program.display());
                if let Some(giving) = &mut self.upgrade.giving {
                    (giving.child, giving.caller) = (Some(child), caller);
                }
            }
            Err(error) => {
                self.upgrade.giving = None;
                refuse(caller, format!("{} can't be started: {error}", program.display()));
            }
        }
    }

    fn start_process(&self, program: &PathBuf, attempt: u64) -> io::Result<u32> {
        let mut command = Command::new(program);
        command.args(&self.upgrade.arguments).stdin(Stdio::null());
        if !self.upgrade.arguments.iter().any(|word| word == "--take-over") {
            command.arg("--take-over");
        }
        for name in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        let mut child = self.upgrade.starter.start(command)?;
        let (number, steps) = (child.id(), self.upgrade.sender.clone());
        let wait = move || _ = steps.blocking_send(Step::Ended { attempt, status: child.wait() });
        thread::Builder::new().name("upgrade-child".into()).spawn(wait)?;
        Ok(number)
    }

    fn begin_attempt(&mut self) -> u64 {
        self.upgrade.attempts += 1;
        self.upgrade.giving = Some(Giving {
            attempt: self.upgrade.attempts,
            began: Instant::now(),
            child: None,
            peer: None,
            voice: None,
            caller: None,
            wanted: None,
            workers: 0,
            ids: Vec::new(),
            groups: BTreeMap::new(),
            taken: BTreeSet::new(),
            is_ready: false,
            steered: false,
            must_end: false,
        });
        self.upgrade.attempts
    }

    /// A process has come to take over.
    pub fn on_knock(&mut self, connection: io::Result<OwnedFd>) {
        let link = match connection.map_err(|error| error.to_string()).and_then(Link::new) {
            Ok(link) => link,
            Err(why) => return tracing::error!("an upgrade is refused: {why}"),
        };
        let peer = link.peer();
        if peer == 0 {
            // Signals would go to this process's own group.
            return tracing::error!("an upgrade is refused: who asks is of another PID namespace");
        }
        // The process that this one has started comes, and nobody else may.
        let awaited = self.upgrade.giving.as_mut().filter(|giving| giving.peer.is_none());
        let attempt = match awaited.filter(|giving| giving.child == Some(peer)) {
            Some(giving) => {
                giving.peer = Some(peer);
                giving.attempt
            }
            None => {
                if let Some(why) = self.no_upgrade() {
                    tracing::warn!("process {peer} may not take over: {why}");
                    let refuse = move || {
                        link.refuse(&why);
                        link.see_off();
                    };
                    // Without a thread the connection ends, which refuses too.
                    _ = thread::Builder::new().name("refusal".into()).spawn(refuse);
                    return;
                }
                tracing::info!("an upgrade begins: process {peer} asks to take over");
                let attempt = self.begin_attempt();
                if let Some(giving) = &mut self.upgrade.giving {
                    giving.peer = Some(peer);
                }
                attempt
            }
        };
        if let Some(giving) = &mut self.upgrade.giving {
            // Without a file for it, the end of this process looks like a crash to the new one.
            giving.voice = link.voice().ok();
        }
        let (steps, board) = (self.upgrade.sender.clone(), Arc::clone(&self.board));
        let work = move || give(link, &Asks { attempt, steps, board });
        if let Err(error) = thread::Builder::new().name("upgrade".into()).spawn(work) {
            self.give_up(&format!("no thread: {error}"));
        }
    }

    pub fn on_step(&mut self, step: Step) {
        match step {
            Step::Wanted { attempt, workers, answer } => {
                if let Some(giving) = self.giving(attempt) {
                    giving.wanted = Some((workers, answer));
                    self.offer();
                }
            }
            Step::Ready { attempt, taken, answer } => {
                if self.giving(attempt).is_some() {
                    let ready = self.new_one_serves(&taken);
                    // If nobody waits any more, `Broken` follows.
                    _ = answer.send(ready);
                }
            }
            Step::PartFlows { attempt, answer } => {
                if self.giving(attempt).is_some() {
                    self.part_flows(answer);
                }
            }
            Step::FlowsParted { attempt, adopted } => {
                if self.giving(attempt).is_some() {
                    self.flows_parted(&adopted);
                }
            }
            Step::Mine { attempt, answer } => {
                if self.giving(attempt).is_some() {
                    self.hand_over();
                    _ = answer.send(Ok(()));
                }
            }
            Step::Broken { attempt, why } => {
                if self.giving(attempt).is_some() {
                    self.give_up(&why);
                }
            }
            Step::Ended { attempt, status } => self.child_ended(attempt, status),
            Step::Part { answer } => self.part(answer),
            Step::Parted { adopted, unheard } => self.parted(&adopted, unheard),
            Step::Arrived { batch, voice, answer } => self.arrived(batch, voice, answer),
            Step::FlowsArrived { batch, answer } => self.flows_arrived(batch, answer),
            Step::NotTold { are_ours } => self.own_sessions(are_ours),
            Step::Yours { figures, .. } => self.is_alone(figures),
            Step::Orphaned { figures, why } => self.is_orphaned(figures, &why),
            Step::NotOurs { why } => self.leave_it_to_the_old_one(why),
            Step::Draining { processes, sessions, flows } => {
                let mut figures = self.board.upgrade.lock();
                let over = figures.processes > 0 && processes == 0;
                (figures.processes, figures.sessions, figures.flows) = (processes, sessions, flows);
                if over {
                    tracing::info!("no earlier process lives any more");
                }
            }
        }
    }

    fn giving(&mut self, attempt: u64) -> Option<&mut Giving> {
        self.upgrade.giving.as_mut().filter(|giving| giving.attempt == attempt)
    }

    fn child_ended(&mut self, attempt: u64, status: io::Result<ExitStatus>) {
        let Some(giving) = self.giving(attempt) else { return };
        giving.child = None;
        // A conversation that has begun knows more, and ends by itself.
        if giving.peer.is_none() {
            let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            self.give_up(&format!(
                "the new process has ended before it asked to take over ({how}); it says why on \
                 the gateway's stderr"
            ));
        }
    }

    /// What is due now.
    pub fn upgrade_tick(&mut self) {
        self.offer();
        self.flows_tick();
        let giving = self.upgrade.giving.as_ref();
        // From the moment on in which the new process may say that all is its own, the conversation
        // has bounds of its own: this process must not go on beside it.
        let is_late = giving.is_some_and(|of| !of.is_ready && of.began.elapsed() > PATIENCE);
        if is_late {
            self.give_up(&format!("the new process was not ready within {} s", PATIENCE.as_secs()));
        }
        self.tell_the_old_one();
    }

    /// Offers the sockets, once all workers have the latest table.
    fn offer(&mut self) {
        let applied = self.workers.iter().map(|worker| worker.applied).min().unwrap_or(0);
        let settled = applied > 0 && applied == self.sync.generation();
        let own = self.workers.len();
        let Some(giving) = &mut self.upgrade.giving else { return };
        let Some((workers, answer)) = giving.wanted.take() else { return };
        let running = matches!(self.phase, Phase::Running);
        match self.sync.shared_sockets().filter(|_| settled && running) {
            Some(shared) => {
                giving.workers = workers;
                let mut sockets = Vec::new();
                for SharedSocket { id, bound, sockets: group } in shared {
                    if let (Some(address), Some(first)) = (bound.address.ip(), group.first()) {
                        let group = (Arc::clone(first), address, bound.transport);
                        giving.groups.insert(id, group);
                    }
                    let one = bound.address.unix().is_some();
                    let count = if one { 1 } else { workers };
                    for (worker, socket) in (0..).zip(group).take(count) {
                        let what = match bound.transport {
                            Transport::Tcp => What::Tcp,
                            Transport::Udp => What::Udp,
                        };
                        let (address, interface) = (bound.address.to_string(), bound.interface);
                        sockets.push((Name { what, address, interface, worker }, socket));
                        giving.ids.push(Some(id));
                    }
                }
                let name = |what, address| Name { what, address, interface: 0, worker: 0 };
                for (address, socket) in &self.upgrade.admin {
                    sockets.push((name(What::Admin, address.clone()), Arc::clone(socket)));
                }
                let door = self.upgrade.door.as_ref();
                if let Some(door) = door.and_then(|door| door.as_fd().try_clone_to_owned().ok()) {
                    sockets.push((name(What::Door, String::new()), Arc::new(door)));
                }
                self.sync.freeze_overrides(true);
                let overrides: Vec<_> = self.sync.overrides().into_iter().map(said).collect();
                let tickets: Vec<_> = self.sync.tickets().iter().map(shown).collect();
                let message = Message::Offer {
                    program: env!("CARGO_PKG_VERSION").to_owned(),
                    generation: self.upgrade.generation,
                    workers: u32::try_from(own).unwrap_or(u32::MAX),
                    seed: self.upgrade.seed,
                    sockets: u32::try_from(sockets.len()).unwrap_or(u32::MAX),
                    overrides: u32::try_from(overrides.len()).unwrap_or(u32::MAX),
                    tickets: u32::try_from(tickets.len()).unwrap_or(u32::MAX),
                };
                _ = answer.send(Ok(Offer { message, sockets, overrides, tickets }));
            }
            None if !running => _ = answer.send(Err("the gateway is ending".to_owned())),
            None if giving.began.elapsed() > RELOADING => {
                _ = answer.send(Err("a reload is under way".to_owned()));
            }
            None => giving.wanted = Some((workers, answer)),
        }
    }

    /// The new process serves beside this one. Where it has another number of workers, the groups
    /// of sockets must steer to so many from now on.
    fn new_one_serves(&mut self, taken: &BTreeSet<u32>) -> Result<(), String> {
        if !matches!(self.phase, Phase::Running) {
            return Err("the gateway is ending".to_owned());
        }
        let (own, seed) = (self.workers.len(), self.upgrade.seed);
        let Some(giving) = &mut self.upgrade.giving else { return Ok(()) };
        let ids = taken.iter().filter_map(|number| *giving.ids.get(*number as usize)?);
        giving.taken = ids.collect();
        giving.is_ready = true;
        if giving.workers != own {
            giving.steered = true;
            steer(giving, Transport::Tcp, giving.workers, seed)
                .map_err(|error| format!("steering to other workers: {error}"))?;
        }
        Ok(())
    }

    /// No datagram of a client is received any more. Where the new process has another number of
    /// workers, the groups of UDP sockets must steer to so many from now on.
    pub fn steer_datagrams(&self) -> Result<(), String> {
        let giving = self.upgrade.giving.as_ref().filter(|giving| giving.steered);
        let Some(giving) = giving else { return Ok(()) };
        steer(giving, Transport::Udp, giving.workers, self.upgrade.seed)
            .map_err(|error| format!("steering datagrams to other workers: {error}"))
    }

    /// The new process goes on alone. All that it has taken stops here without being closed.
    fn hand_over(&mut self) {
        let Some(giving) = self.upgrade.giving.take() else { return };
        self.upgrade.door = None;
        self.upgrade.no_door = "this gateway has handed over already".to_owned();
        self.upgrade.admin.clear();
        if let Some(closing) = self.upgrade.admin_closing.take() {
            closing.close();
        }
        for file in [self.socket_file.take(), self.upgrade.door_file.take()] {
            file.into_iter().for_each(SocketFile::leave);
        }
        self.pid_file.take().into_iter().for_each(PidFile::leave);
        self.board.ready.store(false, Ordering::Relaxed);
        self.board.draining.store(true, Ordering::Relaxed);
        self.board.handed_over.store(true, Ordering::Relaxed);
        self.sync.hand_over(&giving.taken, giving.workers);
        let flows = self.flows_go();
        self.phase = Phase::Draining;
        let process = giving.peer.unwrap_or(0);
        match giving.must_end {
            true => self.pass_signal_on(process),
            false => self.upgrade.passed_on = Some((Instant::now(), Some(process))),
        }
        systemd::tell(&format!("MAINPID={process}"));
        tracing::info!(
            "process {process} has taken {} listening sockets over; what lives here drains",
            giving.taken.len()
        );
        if let Some(caller) = giving.caller {
            let (listeners, generation) = (giving.taken.len(), self.upgrade.generation + 1);
            _ = caller.send(Ok(Upgraded { process, generation, listeners, flows }));
            // The answer is on its way through the admin API's thread, which ends with the process.
            self.leaving = Some(tokio::spawn(tokio::time::sleep(Duration::from_millis(300))));
        }
    }

    /// The upgrade has failed, and this process goes on.
    fn give_up(&mut self, why: &str) {
        let Some(giving) = self.upgrade.giving.take() else { return };
        for transport in [Transport::Tcp, Transport::Udp] {
            let (own, seed) = (self.workers.len(), self.upgrade.seed);
            if giving.steered
                && let Err(error) = steer(&giving, transport, own, seed)
            {
                tracing::error!("sources can't be steered as before the upgrade: {error}");
            }
        }
        self.flows_stay(giving.steered);
        giving.voice.iter().for_each(|voice| voice.refuses(why));
        if let Some(child) = giving.child.and_then(|child| i32::try_from(child).ok()) {
            // The process has not been waited for, so the number is still its number.
            _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        self.sync.freeze_overrides(false);
        self.sync.look();
        tracing::error!("the upgrade has failed: {why}; this process goes on serving");
        self.board.upgrade.lock().failures += 1;
        refuse(giving.caller, why.to_owned());
        if giving.must_end {
            self.terminate();
        }
    }

    // ---- in the new process ----

    /// From now on this process and the one before serve side by side, until the other stops.
    pub fn take_over(&mut self, given: Given, doors: Vec<server::Door>, caller: calls::Caller) {
        let mut sockets = given.sockets.lock();
        let door = sockets.take(What::Door, "", 0).pop();
        let (taken, closed) = sockets.close_unused();
        self.board.upgrade.lock().listeners = sockets.listeners;
        drop(sockets);
        let (link, workers, spare) = (Some(given.link), given.workers, given.spare);
        let must_end = false;
        self.upgrade.taking =
            Some(Taking { link, workers, taken, closed, doors, caller, door, spare, must_end });
    }

    /// Tells the old process that this one serves, once all workers have their table.
    fn tell_the_old_one(&mut self) {
        let ready = self.workers.iter().all(|worker| worker.applied > 0);
        let Some(taking) = self.upgrade.taking.as_mut().filter(|_| ready) else { return };
        let Some(link) = taking.link.take() else { return };
        let taken = std::mem::take(&mut taking.taken);
        if let Err(error) = taking::finish(link, taken, self.upgrade.sender.clone()) {
            self.leave_it_to_the_old_one(format!("no thread: {error}"));
        }
    }

    /// The old process stops, and this one goes on alone.
    fn is_alone(&mut self, figures: Vec<Figures>) {
        let Some(taking) = self.upgrade.taking.take() else { return };
        self.own_flows(Some(figures), taking.workers);
        self.sync.own_files();
        taking.spare.give_up(taking::OPENING);
        let (door, spare) = (taking.door, Some(taking.spare));
        if let Err(error) = self.open_doors(taking.doors, taking.caller, door, spare) {
            tracing::error!("{error:#}");
        }
        tracing::info!(
            "this process has taken over: it is number {} of its line",
            self.upgrade.generation
        );
        systemd::tell("READY=1");
        self.drop_stored(taking.closed, taking.workers);
        self.fd_store.not_before = Instant::now() + SETTLED;
        self.claim_pid_file();
        if taking.must_end {
            self.terminate();
            self.upgrade.passed_on = Some((Instant::now(), None));
        }
    }

    /// The old process has died while both served, so nobody else has the sockets: to leave them
    /// would be an outage.
    fn is_orphaned(&mut self, figures: Vec<Figures>, why: &str) {
        tracing::error!(
            "the process before has died in the middle of the upgrade ({why}), and what lived in \
             it is lost; this process goes on alone"
        );
        if let Err(error) = self.steer_alone() {
            tracing::error!("sources can't be steered to this process's workers: {error}");
        }
        self.is_alone(figures);
    }

    /// The groups of sockets may still steer to the workers of the process before.
    fn steer_alone(&self) -> io::Result<()> {
        let (workers, seed) = (self.workers.len(), self.upgrade.seed);
        for SharedSocket { bound, sockets, .. } in self.sync.shared_sockets().unwrap_or_default() {
            let (Some(address), Some(socket)) = (bound.address.ip(), sockets.first()) else {
                continue;
            };
            // systemd has opened a socket that is one for all workers.
            if SockRef::from(socket).reuse_port()? {
                steering::attach(socket.as_fd(), address.is_ipv4(), workers, seed)?;
            }
        }
        Ok(())
    }

    /// systemd has sockets that the process before has stored, which had so many workers, and that
    /// nobody has any more: clients would wait in them for ever.
    fn drop_stored(&mut self, closed: Vec<ListeningAt>, workers: usize) {
        for (transport, address, interface) in closed {
            let group = fd_store::group(transport, &address, interface);
            self.fd_store.drop_sockets(&group, 0..workers);
        }
        let own = self.workers.len();
        for SharedSocket { bound, .. } in self.sync.shared_sockets().unwrap_or_default() {
            let group = fd_store::group(bound.transport, &bound.address, bound.interface);
            self.fd_store.drop_sockets(&group, own..workers);
            self.fd_store.before.push((group, own));
        }
    }

    pub fn claim_pid_file(&mut self) {
        self.pid_file.iter_mut().for_each(PidFile::claim);
    }

    /// The take-over has failed. This process serves what it has accepted, and ends with an error.
    fn leave_it_to_the_old_one(&mut self, why: String) {
        let Some(taking) = self.upgrade.taking.take() else { return };
        tracing::error!("no take-over: {why}");
        self.upgrade.failure = Some(why);
        self.board.ready.store(false, Ordering::Relaxed);
        self.board.draining.store(true, Ordering::Relaxed);
        self.own_flows(None, taking.workers);
        let all: BTreeSet<SocketId> =
            self.sync.table().sockets.iter().map(|socket| socket.id).collect();
        self.sync.hand_over(&all, usize::MAX);
        self.phase = Phase::Draining;
    }

    /// Opens the admin API, and the door for the next process. `door`: the socket that the process
    /// before has had.
    pub fn open_doors(
        &mut self,
        doors: Vec<server::Door>,
        caller: calls::Caller,
        door: Option<OwnedFd>,
        spare: Option<SpareFiles>,
    ) -> anyhow::Result<()> {
        self.board.upgrade.lock().generation = self.upgrade.generation;
        self.socket_file = self.admin_socket.and_then(SocketFile::at);
        let admin = doors.iter().map(server::Door::shared).collect::<io::Result<Vec<_>>>();
        self.upgrade.admin = admin.context("the admin API's sockets")?;
        if !doors.is_empty() {
            let closing = server::start(doors, Arc::clone(&self.board), caller, spare);
            self.upgrade.admin_closing = Some(closing.context("the admin API's threads")?);
        }
        if self.cluster.is_some() {
            self.upgrade.no_door = "replicas of a cluster are replaced, not upgraded".to_owned();
            return Ok(());
        }
        let opened = door::path(self.admin_socket).and_then(|path| {
            let door = match door {
                Some(door) => {
                    // The next process looks whether the process at the other end lives.
                    unix::take_private(&door).map_err(|error| error.to_string())?;
                    door
                }
                None => door::open(path).map_err(|error| {
                    format!("{}, the socket for upgrades: {error}", Address::Unix(path))
                })?,
            };
            let door = UnixListener::from_std(door.into()).map_err(|error| error.to_string())?;
            Ok((door, SocketFile::at(path)))
        });
        match opened {
            Ok((door, file)) => {
                self.upgrade.door = Some(door);
                self.upgrade.door_file = file;
            }
            Err(why) => {
                if self.admin_socket.is_some() {
                    tracing::warn!("no upgrade will be possible: {why}");
                }
                self.upgrade.no_door = why;
            }
        }
        Ok(())
    }
}

fn steer(giving: &Giving, of: Transport, workers: usize, seed: u64) -> io::Result<()> {
    for id in &giving.taken {
        let Some((socket, address, transport)) = giving.groups.get(id) else { continue };
        if *transport != of {
            continue;
        }
        // systemd has opened a socket that is one for all workers.
        if !SockRef::from(socket).reuse_port()? {
            continue;
        }
        steering::attach(socket.as_fd(), address.is_ipv4(), workers, seed)?;
    }
    Ok(())
}

fn refuse(caller: Option<Caller>, why: String) {
    match caller {
        Some(caller) => _ = caller.send(Err(Refusal::Failed(why))),
        None => tracing::error!("no upgrade: {why}"),
    }
}
