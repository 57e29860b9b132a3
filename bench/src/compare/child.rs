//! A process that carries load: started on its core, read line by line, stopped when dropped.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child as Process, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::interrupt;

/// Where a process runs: on a core (0-based), in a network namespace; by default wherever.
#[derive(Clone, Debug, Default)]
pub struct Spot {
    pub core: Option<usize>,
    pub netns: Option<String>,
}

pub struct Child {
    name: String,
    process: Process,
    /// Our own programs end with their input: they do not outlive us, however we end.
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    complaints: Option<JoinHandle<String>>,
}

impl Child {
    pub fn start(program: &str, arguments: &[String], spot: &Spot) -> anyhow::Result<Self> {
        let mut words = Vec::new();
        if let Some(netns) = &spot.netns {
            words.extend(["ip", "netns", "exec", netns].map(str::to_owned));
        }
        if let Some(core) = spot.core {
            words.extend(["taskset", "-c", &core.to_string()].map(str::to_owned));
        }
        words.push(program.to_owned());
        let mut process = Command::new(&words[0])
            .args(&words[1..])
            .args(arguments)
            // Whoever wants it for us does not want it in the report.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let output = process.stdout.take().context("its output")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let complaints = process.stderr.take().map(|stderr| std::thread::spawn(|| last(stderr)));
        let input = process.stdin.take();
        let verb = arguments.iter().take(2).map(String::as_str).collect::<Vec<_>>().join(" ");
        let name = format!("{} {verb}", program.rsplit('/').next().unwrap_or(program));
        Ok(Self { name, process, input, lines, complaints })
    }

    /// This program itself, with other arguments.
    pub fn ourselves(arguments: &[String], spot: &Spot) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program")?;
        Self::start(&program.to_string_lossy(), arguments, spot)
    }

    /// Its next line, or why there is none.
    pub fn line(&mut self, patience: Duration) -> anyhow::Result<String> {
        let until = Instant::now() + patience;
        loop {
            interrupt::check()?;
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => bail!("{}", self.last_words()),
                Err(RecvTimeoutError::Timeout) if Instant::now() > until => {
                    bail!("{} said nothing for {patience:?}", self.name)
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits for that line.
    pub fn expect(&mut self, wanted: &str, patience: Duration) -> anyhow::Result<()> {
        let line = self.line(patience)?;
        if line != wanted {
            bail!("{} said {line:?} instead of {wanted:?}", self.name);
        }
        Ok(())
    }

    /// All that it still prints until it ends, which must be well.
    pub fn rest(&mut self, patience: Duration) -> anyhow::Result<String> {
        self.end_input();
        let until = Instant::now() + patience;
        let mut text = String::new();
        loop {
            interrupt::check()?;
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => {
                    text.push_str(&line);
                    text.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if Instant::now() > until => {
                    bail!("{} did not end within {patience:?}", self.name)
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let status = self.process.wait()?;
        if !status.success() {
            bail!("{}: {text}", self.last_words());
        }
        Ok(text)
    }

    pub fn end_input(&mut self) {
        self.input = None;
    }

    fn last_words(&mut self) -> String {
        let _ = self.process.kill();
        let status = self.process.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
        let complaint = self.complaints.take().and_then(|reader| reader.join().ok());
        format!("{} ended ({status}): {}", self.name, complaint.unwrap_or_default().trim())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end_input();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The end of what it complains about, for a message; all of it is read, or it would block.
fn last(mut stderr: ChildStderr) -> String {
    const KEPT: usize = 2_000;
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Child {
        Child::start("sh", &["-c".to_owned(), script.to_owned()], &Spot::default()).expect("sh")
    }

    #[test]
    fn lines_come_one_by_one_and_the_rest_at_once() {
        let mut child = shell("echo ready; read ignored; echo one; echo two");
        child.expect("ready", PATIENCE).expect("it says so");
        assert_eq!(child.rest(PATIENCE).expect("it ends"), "one\ntwo\n");
    }

    #[test]
    fn the_complaint_of_one_that_fails_is_in_the_error() {
        let mut child = shell("echo no such thing >&2; exit 3");
        let error = child.line(PATIENCE).expect_err("it fails").to_string();
        assert!(error.contains("no such thing") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_dropped_one_is_gone() {
        let child = shell("exec sleep 60");
        let pid = i32::try_from(child.process.id()).expect("the kernel's pids are positive i32");
        let pid = nix::unistd::Pid::from_raw(pid);
        drop(child);
        assert_eq!(nix::sys::signal::kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }
}
