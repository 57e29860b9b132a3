//! `ringway run` as a child process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Folder, binary, deadline, free_address, in_kernel, limited, wait_for, wait_until};

/// A running gateway. Killed when dropped; what it said is printed if the test has failed.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    folder: Folder,
    pub admin: SocketAddr,
    head: String,
    /// The name of the file in the folder.
    file: &'static str,
}

/// How to start one.
#[derive(Debug, Default)]
pub struct Launch {
    /// A program in front, with its arguments: `prlimit`, `setpriv`.
    wrapper: Vec<String>,
    one_worker: bool,
    /// The access log goes to a pipe that is never read.
    blocked_log: bool,
    socket: bool,
    directory: bool,
    admin: String,
    /// The admin address speaks TLS, so the Unix socket says whether the gateway is ready.
    tls: bool,
    /// Features that the gateway does not use.
    without: Vec<String>,
}

impl Launch {
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
        self
    }

    /// One worker, where a test counts what is kept per worker. Else there are two.
    pub fn one_worker(mut self) -> Self {
        self.one_worker = true;
        self
    }

    /// The admin API listens on a Unix socket too.
    pub fn socket(mut self) -> Self {
        self.socket = true;
        self
    }

    /// The admin address speaks TLS. `keys` are those of `admin` that say how.
    pub fn tls(self, keys: &str) -> Self {
        Self { tls: true, ..self.socket().admin(keys) }
    }

    /// The configuration is a directory, with the file alone in it.
    pub fn directory(mut self) -> Self {
        self.directory = true;
        self
    }

    /// Further keys of `admin`.
    pub fn admin(mut self, keys: &str) -> Self {
        self.admin = format!(", {keys}");
        self
    }

    /// As on an older kernel.
    pub fn without(mut self, feature: &str) -> Self {
        self.without.push(feature.to_owned());
        self
    }

    pub fn blocked_log(mut self) -> Self {
        self.blocked_log = true;
        self
    }

    /// Starts with `config` and what the fixture needs to look inside, and waits for `/readyz`.
    pub fn start(self, config: &str) -> Gateway {
        let folder = Folder::new();
        let admin = free_address();
        let cores = if self.one_worker { "[0]" } else { "[0, 1]" };
        let mut keys = format!("address = \"{admin}\"{}", self.admin);
        if self.socket {
            let socket = folder.file("admin.sock");
            write!(keys, ", socket = \"{}\"", socket.display()).expect("a string");
        }
        let mut head = format!("admin = {{ {keys} }}\nworkers = {{ cores = {cores} }}\n");
        if !self.blocked_log {
            let log = folder.file("access.log");
            writeln!(head, "access_log = {{ path = \"{}\" }}", log.display()).expect("a string");
        }
        let directory = self.directory.then(|| folder.file("conf.d"));
        if let Some(directory) = &directory {
            std::fs::create_dir(directory).expect("a directory");
        }
        let name = if self.directory { "conf.d/ringway.toml" } else { "ringway.toml" };
        let file = folder.write(name, &format!("{head}{config}"));
        let file = directory.unwrap_or(file);
        // A copy that any user may run: the build folder may be closed to others.
        let program = if self.wrapper.is_empty() { binary() } else { copy_of_binary(&folder) };
        let words: Vec<_> =
            self.wrapper.iter().cloned().chain([program.display().to_string()]).collect();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["run", "--config"])
            .arg(&file)
            .args(masked().into_iter().chain(self.without).flat_map(|it| ["--without".into(), it]))
            .stdin(Stdio::null())
            .stdout(if self.blocked_log { Stdio::piped() } else { Stdio::null() })
            .stderr(File::create(folder.file("stderr")).expect("a temporary file"));
        let child = match in_kernel::gateways() {
            Some(namespace) => namespace.run(move || command.spawn()),
            None => command.spawn(),
        };
        let child = child.unwrap_or_else(|error| panic!("starting {words:?}: {error}"));
        let mut gateway = Gateway { child, folder, admin, head, file: name };
        wait_until("the gateway is ready", || {
            if let Some(status) = gateway.child.try_wait().expect("its status") {
                panic!("the gateway ended at once: {status}");
            }
            match self.tls {
                true => gateway.verb(&["status"]).stdout.starts_with(b"state                ready"),
                false => gateway.get("/readyz").is_some_and(|(status, _)| status == 200),
            }
        });
        gateway
    }
}

/// Runs a verb of the binary against this admin API.
pub fn run_verb(words: &[&str], admin: &str) -> Output {
    let mut command = limited(binary());
    command.args(words).args(["--admin", admin]).output().expect("the binary runs")
}

/// The features named in `RINGWAY_WITHOUT`.
fn masked() -> Vec<String> {
    let names = std::env::var("RINGWAY_WITHOUT").unwrap_or_default();
    names.split_whitespace().map(str::to_owned).collect()
}

fn copy_of_binary(folder: &Folder) -> PathBuf {
    let copy = folder.file("ringway");
    std::fs::copy(binary(), &copy).expect("copying the binary");
    copy
}

impl Gateway {
    /// With two workers and nothing special.
    pub fn start(config: &str) -> Self {
        Launch::default().start(config)
    }

    /// The gateways whose command line names a file of this one, such as those that have taken its
    /// sockets over. A verb that speaks to it is none.
    pub fn line(&self) -> Vec<u32> {
        let folder = self.folder.file("").display().to_string();
        let processes = std::fs::read_dir("/proc").expect("it is mounted").filter_map(Result::ok);
        processes
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .filter(|process: &u32| {
                let words = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
                let words = String::from_utf8_lossy(&words);
                words.contains(&folder) && words.split('\0').any(|word| word == "run")
            })
            .collect()
    }

    /// Ends the processes of the line. One that is just being started comes a moment later.
    fn end_line(&self) {
        for _ in 0..100 {
            let line = self.line();
            if line.is_empty() {
                return;
            }
            for process in line.into_iter().filter_map(|process| i32::try_from(process).ok()) {
                _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What stands for `config` in the file, without a word to the gateway.
    pub fn write(&self, config: &str) {
        self.folder.write(self.file, &format!("{}{config}", self.head));
    }

    /// Writes into the file which cores the workers of the next process have: `[0, 1]`, say.
    pub fn set_cores(&self, cores: &str) {
        let path = self.folder.file(self.file);
        let text = std::fs::read_to_string(&path).expect("the configuration");
        let (before, rest) = text.split_once("cores = ").expect("cores");
        let (_, after) = rest.split_once(']').expect("a list");
        let text = format!("{before}cores = {cores}{after}");
        std::fs::write(path, text).expect("the configuration is written");
    }

    /// A file beside the gateway's own.
    pub fn beside(&self, name: &str, text: &str) -> PathBuf {
        self.folder.write(&self.file.replace("ringway.toml", name), text)
    }

    /// A file beside the gateway's own, which differs only in `config`.
    pub fn candidate(&self, config: &str) -> PathBuf {
        self.folder.write("candidate.toml", &format!("{}{config}", self.head))
    }

    /// The same without a rename, as some editors write.
    pub fn write_in_place(&self, config: &str) {
        let path = self.folder.file(self.file);
        std::fs::write(path, format!("{}{config}", self.head)).expect("writing the file");
    }

    /// The file, emptied, for whoever writes it bit by bit.
    pub fn rewrite(&self) -> File {
        let path = self.folder.file(self.file);
        let mut file = File::create(path).expect("emptying the file");
        std::io::Write::write_all(&mut file, self.head.as_bytes()).expect("writing the file");
        file
    }

    /// Writes `config` and waits until a table made of it is in force on every worker.
    pub fn reload(&self, config: &str) {
        let generations = || self.metrics().series("ringway_table_generation");
        let before = generations().into_iter().max();
        self.write(config);
        self.signal(Signal::SIGHUP);
        wait_until("the new table is in force on every worker", || {
            generations().into_iter().min() > before
        });
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("the gateway runs");
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("its status")
    }

    /// SIGTERM, and exit code 0 once everything has drained. Returns the whole access log.
    pub fn stop(mut self) -> Vec<LogLine> {
        self.report();
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    fn report(&self) {
        if in_kernel::gateways().is_some()
            && let Some((200, text)) = self.get("/metrics")
        {
            let metrics = Metrics::parse(&text);
            in_kernel::report(metrics.value("ringway_fast_path_promotions_total", &[]));
        }
    }

    /// Waits for exit code 0. Returns the whole access log.
    pub fn wait(&mut self) -> Vec<LogLine> {
        let status = wait_for("the gateway's end", || self.ended());
        assert!(status.success(), "the gateway ended with {status}");
        self.log()
    }

    /// The file of the admin API's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.file("admin.sock")
    }

    /// Runs a verb of the binary against this gateway's Unix socket.
    pub fn verb(&self, words: &[&str]) -> Output {
        let socket = self.socket().display().to_string();
        run_verb(words, &socket)
    }

    /// The JSON that a verb prints. It must succeed.
    pub fn asks(&self, words: &[&str]) -> serde_json::Value {
        let words: Vec<_> = words.iter().copied().chain(["--json"]).collect();
        let output = self.verb(&words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Status and body of a GET of the admin address; `None` if there was no answer in a minute.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(deadline())).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }

    pub fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics").expect("an answer to /metrics");
        assert_eq!(status, 200);
        Metrics::parse(&text)
    }

    /// What the gateway has said of itself.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder.file("stderr")).unwrap_or_default()
    }

    /// Waits until the gateway has said this of itself. A thread of its own writes the log, a
    /// moment after what the line tells of.
    pub fn says(&self, words: &str) {
        wait_until(&format!("the log says: {words}"), || self.stderr().contains(words));
    }

    /// Every line of the access log that is there by now.
    pub fn log(&self) -> Vec<LogLine> {
        let text = std::fs::read_to_string(self.folder.file("access.log")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(LogLine::parse).collect()
    }

    /// Waits until the log has `count` close lines or more, and returns them.
    pub fn closes(&self, count: usize) -> Vec<LogLine> {
        wait_for(&format!("{count} close lines in the access log"), || {
            let mut lines = self.log();
            lines.retain(|line| line.text("reason").is_some());
            (lines.len() >= count).then_some(lines)
        })
    }

    /// Waits for the only close line, checks its reason and returns it.
    pub fn closed_for(&self, reason: &str) -> LogLine {
        let mut lines = self.closes(1);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line = lines.remove(0);
        assert_eq!(line.text("reason"), Some(reason), "{line:?}");
        line
    }

    /// Kilobytes of memory of its own that the process has touched, by the page tables: VmRSS is
    /// an estimate, and has the pages of code in it that happen to be there.
    pub fn anonymous(&self) -> u64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()));
        let maps = maps.expect("the process runs");
        let line = maps.lines().find(|line| line.starts_with("Anonymous:")).expect("Anonymous");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    /// Clock ticks, 100 a second and core, that the process has computed.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let stat = stat.expect("the process runs");
        // proc_pid_stat(5): the name may hold spaces, so count from the parenthesis behind it.
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let fields: Vec<_> = fields.split_whitespace().collect();
        [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("utime, stime")).sum()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Where something was lost, one of the counters says why.
        let metrics = std::thread::panicking().then(|| self.get("/metrics"));
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.report();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.end_line();
        let Some(metrics) = metrics else { return };
        let stderr = self.stderr();
        let tail: Vec<_> = stderr.lines().rev().take(30).collect();
        eprintln!("---- what the gateway said ----");
        tail.iter().rev().for_each(|line| eprintln!("{line}"));
        eprintln!("---- what it had counted ----");
        let (_, text) = metrics.unwrap_or_default();
        let samples = text.lines().filter(|line| line.starts_with("ringway_"));
        let counted = samples.filter(|line| line.contains("_total") && !line.ends_with(" 0"));
        counted.for_each(|line| eprintln!("{line}"));
    }
}

/// One line of the access log.
#[derive(Clone, Debug)]
pub struct LogLine(serde_json::Value);

impl LogLine {
    fn parse(line: &str) -> Self {
        let value = serde_json::from_str(line);
        Self(value.unwrap_or_else(|error| panic!("not JSON: {error}: {line}")))
    }

    pub fn text(&self, field: &str) -> Option<&str> {
        self.0.get(field)?.as_str()
    }

    pub fn number(&self, field: &str) -> u64 {
        let value = self.0.get(field).and_then(serde_json::Value::as_u64);
        value.unwrap_or_else(|| panic!("no number {field} in {}", self.0))
    }

    pub fn fraction(&self, field: &str) -> f64 {
        let value = self.0.get(field).and_then(serde_json::Value::as_f64);
        value.unwrap_or_else(|| panic!("no number {field} in {}", self.0))
    }

    pub fn has(&self, field: &str) -> bool {
        self.0.get(field).is_some()
    }
}

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics(Vec<(String, BTreeMap<String, String>, f64)>);

impl Metrics {
    /// The Prometheus text format, as far as it holds labels without commas, quotes and braces.
    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples = samples.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.trim_end_matches('}').split(',').filter_map(|label| {
                let (key, value) = label.split_once('=')?;
                Some((key.to_owned(), value.trim_matches('"').to_owned()))
            });
            let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
            (name.to_owned(), labels.collect(), value)
        });
        Self(samples.collect())
    }

    /// The sum of all series of that name that have these labels; 0 if there are none yet.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let matching = self.0.iter().filter(|(series, has, _)| {
            series == name
                && labels.iter().all(|(key, value)| has.get(*key).is_some_and(|v| v == value))
        });
        matching.map(|(_, _, value)| whole(*value)).sum()
    }

    /// The upper bound of the bucket that has this share of what a histogram has counted since
    /// `before`, over all its series.
    pub fn quantile_since(&self, before: &Self, name: &str, share: f64) -> f64 {
        let bucket = format!("{name}_bucket");
        let mut buckets: Vec<(f64, u64)> = Vec::new();
        for (_, labels, _) in self.0.iter().filter(|(series, ..)| *series == bucket) {
            let bound = labels["le"].parse().expect("a bound");
            let count = |page: &Self| page.value(&bucket, &[("le", &labels["le"])]);
            buckets.push((bound, count(self) - count(before)));
        }
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        let total = buckets.last().map_or(0, |(_, count)| *count);
        let reached = |(_, count): &&(f64, u64)| *count as f64 >= total as f64 * share;
        buckets.iter().find(reached).map_or(f64::NAN, |(bound, _)| *bound)
    }

    /// The values of all series of that name.
    pub fn series(&self, name: &str) -> Vec<u64> {
        let matching = self.0.iter().filter(|(series, ..)| series == name);
        matching.map(|(_, _, value)| whole(*value)).collect()
    }
}

/// Counters of a test are far below 2^52, so nothing is lost.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and small")]
fn whole(value: f64) -> u64 {
    value as u64
}
