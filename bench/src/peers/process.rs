//! A peer's process: how it is run, and that it ends.

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cpu::family;

use super::{Setup, Transport};

/// A program and the words that come before its own arguments.
#[derive(Clone, Debug)]
pub struct Program {
    words: Vec<OsString>,
}

impl Program {
    pub fn none() -> Self {
        Self { words: Vec::new() }
    }

    pub fn new(words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { words: words.into_iter().map(Into::into).collect() }
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }

    /// What it prints when asked for its version; the line that `pick` finds.
    pub fn version(
        &self,
        flag: &str,
        pick: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<String> {
        let output = self.command().arg(flag).output()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find_map(pick);
        line.with_context(|| format!("`{flag}` prints no version: {text}"))
    }

    /// The program on the setup's cores and in its namespace.
    pub fn placed(&self, setup: &Setup) -> Self {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(netns) = &setup.netns {
            words.extend(["ip", "netns", "exec", netns].map(OsString::from));
        }
        if !setup.cores.is_empty() {
            let cores: Vec<_> = setup.cores.iter().map(ToString::to_string).collect();
            words.extend(["taskset", "-c", &cores.join(",")].map(OsString::from));
        }
        // Drop does not run in a comparison that is killed.
        words.extend(["setpriv", "--pdeathsig", "TERM"].map(OsString::from));
        words.extend(self.words.iter().cloned());
        Self { words }
    }
}

/// A peer under load. Its processes are stopped when this is dropped.
pub struct Running {
    pub listen: SocketAddr,
    pub pids: Vec<i32>,
    /// As written, for the report.
    pub configuration: String,
    /// When each of `pids` was started, in the kernel's ticks.
    started: Vec<Option<u64>>,
    child: Option<Child>,
    /// Undoes what no process's end undoes.
    undo: Vec<Command>,
}

/// How long a peer may take until it listens, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(20);

impl Running {
    pub fn nothing(listen: SocketAddr) -> Self {
        Self {
            listen,
            pids: Vec::new(),
            configuration: String::new(),
            started: Vec::new(),
            child: None,
            undo: Vec::new(),
        }
    }

    pub fn rules(listen: SocketAddr, configuration: String, undo: Command) -> Self {
        let mut running = Self::nothing(listen);
        running.configuration = configuration;
        running.undo.push(undo);
        running
    }

    /// Starts `program`, and waits until it listens.
    pub fn start(
        program: &Program,
        arguments: &[&str],
        configuration: String,
        setup: &Setup,
    ) -> anyhow::Result<Self> {
        // Else the wait below would take another's socket for the peer's.
        if listens(setup) {
            bail!("something listens on {} already", setup.listen);
        }
        let said = setup.dir.join("output");
        let output = File::create(&said)?;
        let child = program
            .placed(setup)
            .command()
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{program:?}"))?;
        let id = i32::try_from(child.id())?;
        let mut running = Self::nothing(setup.listen);
        running.configuration = configuration;
        running.pids.push(id);
        running.child = Some(child);
        running.wait_until_it_listens(setup, &said)?;
        running.pids.extend(family(&[id]).into_iter().filter(|pid| *pid != id));
        running.started = running.pids.iter().copied().map(start_of).collect();
        Ok(running)
    }

    fn wait_until_it_listens(&mut self, setup: &Setup, said: &Path) -> anyhow::Result<()> {
        let until = now() + PATIENCE;
        let words = || std::fs::read_to_string(said).unwrap_or_default();
        while !listens(setup) {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("ended with {status}:\n{}", words());
            }
            if now() > until {
                bail!("does not listen on {} after {PATIENCE:?}:\n{}", setup.listen, words());
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for command in &mut self.undo {
            let _ = command.status();
        }
        let Some(child) = &mut self.child else { return };
        // Again and again: a second signal cuts waiting for sessions short.
        let until = now() + PATIENCE;
        let mut next = now();
        while matches!(child.try_wait(), Ok(None)) && now() < until {
            if now() >= next {
                let _ = kill(Pid::from_raw(self.pids[0]), Signal::SIGTERM);
                next = now() + Duration::from_millis(300);
            }
            std::thread::sleep(STEP);
        }
        let _ = child.kill();
        let _ = child.wait();
        // A number may belong to another by now; and orphans are for init to wait for.
        for (pid, started) in self.pids.iter().zip(&self.started) {
            while started.is_some() && start_of(*pid) == *started && now() < until {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                std::thread::sleep(STEP);
            }
        }
    }
}

/// proc_pid_stat(5), field 22; the second may hold spaces and ends with the last parenthesis.
fn start_of(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a socket has the address, by the tables of the namespace.
fn listens(setup: &Setup) -> bool {
    match (setup.transport, &setup.netns) {
        (Transport::Tcp | Transport::Tls, None) => TcpStream::connect(setup.listen).is_ok(),
        (transport, netns) => {
            let table = match transport {
                Transport::Tcp | Transport::Tls => "/proc/net/tcp",
                Transport::Udp => "/proc/net/udp",
            };
            let port = format!(":{:04X} ", setup.listen.port());
            read_in(netns.as_deref(), table).lines().skip(1).any(|line| {
                line.split_once(": ")
                    .is_some_and(|(_, rest)| rest[..14.min(rest.len())].contains(&port))
            })
        }
    }
}

fn read_in(netns: Option<&str>, path: &str) -> String {
    match netns {
        None => std::fs::read_to_string(path).unwrap_or_default(),
        Some(netns) => Command::new("ip")
            .args(["netns", "exec", netns, "cat", path])
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default(),
    }
}

/// Writes a configuration file.
pub fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn now() -> Instant {
    Instant::now()
}
