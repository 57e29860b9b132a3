//! The access log: one line per session or flow that was opened, closed or turned away.
//!
//! Lines go through a bounded queue to a thread of their own. So a terminal or pipe that nobody
//! reads stops neither the control thread nor a worker. Lines that find the queue full are dropped
//! and counted.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use config_sync::model::config::{LogFormat, LogTarget};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::control::id::Id;
use crate::control::shown::Shown;
use crate::control::timestamp::{Timestamp, as_text};
use crate::control::tls_fields::TlsFields;

/// A batch of lines goes into the queue at this size at the latest.
const BATCH_BYTES: usize = 16 * 1024;
/// The most batches that wait to be written.
const QUEUE: usize = 4_096;

pub struct AccessLog {
    format: LogFormat,
    sink: Option<Sink>,
    /// Lines that are not in the queue yet.
    batch: Vec<u8>,
    lines: u64,
}

impl AccessLog {
    pub fn open(target: &LogTarget, format: LogFormat) -> io::Result<Self> {
        let sink = Sink::open(target)?;
        Ok(Self { format, sink, batch: Vec::new(), lines: 0 })
    }

    /// Opens the file again before the next line, for log rotation by rename.
    pub fn reopen(&self) {
        if let Some(sink) = &self.sink {
            sink.reopen.store(true, Ordering::Release);
        }
    }

    /// Writes a line, and never waits. The next `flush` sends the line at the latest.
    pub fn write(&mut self, line: &Line<'_>) {
        if self.sink.is_none() {
            return;
        }
        match self.format {
            LogFormat::Json => line.json(&mut self.batch),
            LogFormat::Text => line.text(&mut self.batch),
        }
        self.batch.push(b'\n');
        self.lines += 1;
        if self.batch.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Puts the lines written so far into the queue. Lines that find no room are dropped and
    /// counted.
    pub fn flush(&mut self) {
        if let Some(sink) = &mut self.sink
            && self.lines > 0
        {
            sink.put(&self.batch, self.lines);
            self.batch.clear();
            self.lines = 0;
        }
    }

    /// Lines that were lost since the start because the writer was too slow.
    pub fn dropped(&self) -> u64 {
        self.sink.as_ref().map_or(0, |sink| sink.dropped)
    }

    /// Lines that were lost since the start because they could not be written.
    pub fn failed(&self) -> u64 {
        self.sink.as_ref().map_or(0, |sink| sink.failed.load(Ordering::Relaxed))
    }

    /// Writes the lines that wait, for at most a second.
    pub fn close(mut self) {
        self.flush();
        if let Some(sink) = self.sink {
            flush(sink.guard);
        }
    }
}

struct Sink {
    queue: NonBlocking,
    /// The number of batches that the queue dropped.
    full: ErrorCounter,
    /// The number of lines in those batches.
    dropped: u64,
    guard: WorkerGuard,
    reopen: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
}

impl Sink {
    fn open(target: &LogTarget) -> io::Result<Option<Self>> {
        let (file, path) = match target {
            LogTarget::Off => return Ok(None),
            // `io::stdout` would hold its lock while the terminal is blocked, so the file
            // descriptor is copied.
            LogTarget::Stdout => (File::from(io::stdout().as_fd().try_clone_to_owned()?), None),
            LogTarget::Stderr => (File::from(io::stderr().as_fd().try_clone_to_owned()?), None),
            LogTarget::File(path) => (append(path)?, Some(path.clone())),
        };
        let (reopen, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let writer = Writer {
            file: BufWriter::new(file),
            path,
            reopen: reopen.clone(),
            failed: failed.clone(),
            is_failing: false,
        };
        let (queue, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUE)
            .thread_name("ringway-log")
            .finish(writer);
        Ok(Some(Self { full: queue.error_counter(), dropped: 0, queue, guard, reopen, failed }))
    }

    fn put(&mut self, batch: &[u8], lines: u64) {
        let full = self.full.dropped_lines();
        // The queue either takes the batch or counts the batch as dropped.
        let _ = self.queue.write_all(batch);
        if self.full.dropped_lines() > full {
            self.dropped += lines;
        }
    }
}

/// Drops the guard of a log queue, which writes the lines that wait, and gives up after a second.
/// The drop is on a thread of its own: a guard with a full queue prints to stdout, and stdout may
/// be blocked.
pub fn flush(guard: WorkerGuard) {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(guard);
        // If the drop took too long, nobody listens any more.
        let _ = done.send(());
    });
    let _ = wait.recv_timeout(Duration::from_millis(1_200));
}

/// Opens a log at its end. A FIFO must have a reader, because waiting for one would stop the
/// caller.
fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.append(true).create(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::ENXIO as i32 => io::Error::new(error.kind(), NO_READER),
        _ => error,
    })?;
    // Writes may wait, because only the log's thread writes.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(file)
}

const NO_READER: &str = "it is a FIFO that nobody reads; start its reader first, or name a file";

/// The file that the log's own thread writes to.
struct Writer {
    file: BufWriter<File>,
    /// `None` if the log can't be opened again.
    path: Option<PathBuf>,
    reopen: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    /// A write or an open has failed since the last success, and the failure was logged.
    is_failing: bool,
}

impl Writer {
    /// Opens the file again. If that fails, the old file stays, and the next batch tries again.
    fn reopen(&mut self, path: &Path) {
        match append(path) {
            Ok(file) => {
                if let Err(error) = self.file.flush() {
                    self.lost(lines(self.file.buffer()), &error);
                }
                // The old writer drops the bytes that could not be written, and does not try again.
                let _ = std::mem::replace(&mut self.file, BufWriter::new(file)).into_parts();
            }
            Err(error) => {
                self.reopen.store(true, Ordering::Release);
                self.fails(&format!(
                    "the file can't be opened anew: {error}; lines go to the old \
                                     file until that works"
                ));
            }
        }
    }

    fn lost(&mut self, lines: u64, error: &io::Error) {
        self.failed.fetch_add(lines, Ordering::Relaxed);
        self.fails(&format!("{error}; lines are lost until it can be written again"));
    }

    /// Logs a failure, once until the next success.
    fn fails(&mut self, how: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            let path = self.path.as_deref().unwrap_or_else(|| Path::new("standard output"));
            tracing::error!("access log {}: {how}", path.display());
        }
    }
}

fn lines(batch: &[u8]) -> u64 {
    batch.iter().filter(|byte| **byte == b'\n').count() as u64
}

impl Write for Writer {
    fn write(&mut self, batch: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, Ordering::AcqRel)
            && let Some(path) = self.path.clone()
        {
            self.reopen(&path);
        }
        if let Err(error) = self.file.write_all(batch) {
            self.lost(lines(batch), &error);
        }
        Ok(batch.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.file.flush() {
            Ok(()) => self.is_failing = self.reopen.load(Ordering::Acquire),
            // The bytes stay in the buffer, and the next write takes them along.
            Err(error) => self.fails(&error.to_string()),
        }
        Ok(())
    }
}

/// One line. Absent fields are left out of JSON objects.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    #[serde(rename = "ts", serialize_with = "as_text")]
    pub time: Timestamp,
    pub event: &'static str,
    /// The id that lists have, and `ringway kill` takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// TCP, UDP or TLS.
    pub protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<&'a str>,
    pub client: Shown<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Shown<'a>>,
    pub local: Shown<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<&'a str>,
    #[serde(flatten)]
    pub tls: Option<TlsFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Shown<'a>>,
    /// The name of the endpoint in its table of the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_name: Option<&'a str>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
    pub worker: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub suppressed: u32,
}

impl Line<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        // Strings and numbers always serialize, and a Vec takes all bytes.
        let _ = serde_json::to_writer(out, self);
    }

    /// Writes time, event and protocol, then `key=value` for each field with a value. Names are
    /// quoted, because the client chooses the server name.
    fn text(&self, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{} {} {}", self.time, self.event, self.protocol);
        if let Some(id) = self.id {
            let _ = write!(out, " id={id}");
        }
        let mut name = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                let _ = write!(out, " {key}={value:?}");
            }
        };
        name("listener", self.listener);
        name("server_name", self.server_name);
        name("route", self.route);
        name("backend", self.backend);
        name("endpoint_name", self.endpoint_name);
        let _ = write!(out, " client={} local={}", self.client, self.local);
        if let Some(tls) = &self.tls {
            tls.text(out);
        }
        if let Some(peer) = self.peer {
            let _ = write!(out, " peer={peer}");
        }
        if let Some(endpoint) = self.endpoint {
            let _ = write!(out, " endpoint={endpoint}");
        }
        let _ = write!(out, " bytes_up={} bytes_down={}", self.bytes_up, self.bytes_down);
        let _ = write!(out, " duration_ms={}", self.duration_ms);
        if let Some(connect) = self.connect_ms {
            let _ = write!(out, " connect_ms={connect}");
        }
        if let Some(id) = &self.unique_id {
            let _ = write!(out, " unique_id={id}");
        }
        if let Some(reason) = self.reason {
            let _ = write!(out, " reason={reason}");
        }
        if let Some(detail) = &self.detail {
            let _ = write!(out, " detail={detail:?}");
        }
        let _ = write!(out, " worker={}", self.worker);
        if self.suppressed > 0 {
            let _ = write!(out, " suppressed={}", self.suppressed);
        }
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::control::timestamp::WallClock;

    #[test]
    fn json_line_has_the_agreed_keys() {
        let json = shown(|out| closed().json(out));
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(
            value,
            serde_json::json!({
                "ts": "1970-01-01T00:00:01.000000Z", "event": "close", "protocol": "TLS",
                "listener": "tls", "client": "192.0.2.1:1000", "local": "[::1]:443",
                "server_name": "a\"b", "route": "web", "backend": "pool",
                "endpoint": "192.0.2.9:80", "bytes_up": 10, "bytes_down": 20,
                "duration_ms": 1.5, "connect_ms": 0.25, "reason": "client_fin", "worker": 1,
            })
        );
        assert!(!json.contains('\n'));
    }

    #[test]
    fn an_endpoint_has_its_name_if_it_has_one() {
        let line = Line { endpoint_name: Some("pg \"2\""), ..closed() };
        let (json, text) = (shown(|out| line.json(out)), shown(|out| line.text(out)));
        let named = r#""endpoint":"192.0.2.9:80","endpoint_name":"pg \"2\"","bytes_up""#;
        assert!(json.contains(named), "{json}");
        assert!(text.contains(r#" backend="pool" endpoint_name="pg \"2\"" client="#), "{text}");
    }

    #[test]
    fn absent_fields_are_left_out() {
        let detail = Some(Cow::Borrowed("not \"TLS\"\n\u{1b}[2J"));
        let line = Line { endpoint: None, connect_ms: None, suppressed: 7, detail, ..closed() };
        let (json, text) = (shown(|out| line.json(out)), shown(|out| line.text(out)));
        assert!(!json.contains("endpoint") && !json.contains("connect_ms"), "{json}");
        assert!(json.contains("\"suppressed\":7"), "{json}");
        assert!(json.contains(r#""detail":"not \"TLS\"\n\u001b[2J""#), "{json}");
        assert_eq!(
            text,
            "1970-01-01T00:00:01.000000Z close TLS listener=\"tls\" server_name=\"a\\\"b\" \
             route=\"web\" backend=\"pool\" client=192.0.2.1:1000 local=[::1]:443 bytes_up=10 \
             bytes_down=20 duration_ms=1.5 reason=client_fin \
             detail=\"not \\\"TLS\\\"\\n\\u{1b}[2J\" worker=1 suppressed=7"
        );
    }

    #[test]
    fn file_is_appended_to_and_reopened() {
        let directory = std::env::temp_dir().join(format!("ringway-log-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let (path, rotated) = (directory.join("log"), directory.join("log.1"));
        std::fs::write(&path, "before\n").expect("a file");
        let target = LogTarget::File(path.clone());

        let mut log = AccessLog::open(&target, LogFormat::Text).expect("the file opens");
        log.write(&closed());
        log.close();
        std::fs::rename(&path, &rotated).expect("a rename");
        let mut log = AccessLog::open(&target, LogFormat::Json).expect("the file opens");
        std::fs::remove_file(&path).expect("it was created");
        log.reopen();
        log.write(&closed());
        assert_eq!(log.dropped(), 0);
        log.close();

        let read = |path| std::fs::read_to_string(path).expect("a log");
        let (old, new) = (read(&rotated), read(&path));
        std::fs::remove_dir_all(&directory).expect("own directory");
        assert_eq!(old.lines().count(), 2, "{old}");
        assert!(old.starts_with("before\n"), "{old}");
        assert_eq!(new.lines().count(), 1, "{new}");
        assert!(new.starts_with("{\"ts\":"), "{new}");
    }

    #[test]
    fn full_disk_costs_lines_that_are_counted_until_it_is_no_more() {
        let directory = std::env::temp_dir().join(format!("ringway-full-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("log");
        std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
        let target = LogTarget::File(path.clone());
        let mut log = AccessLog::open(&target, LogFormat::Json).expect("it opens");
        let mut lines = 0;
        let mut write_until = |done: &dyn Fn(&AccessLog) -> bool| {
            while !done(&log) {
                log.write(&closed());
                log.flush();
                lines += 1;
            }
        };
        write_until(&|log| log.failed() > 0);
        std::fs::remove_file(&path).expect("the link");
        write_until(&|log| {
            log.reopen();
            path.exists()
        });
        let dropped = log.dropped();
        let failed = log.sink.as_ref().map(|sink| Arc::clone(&sink.failed)).expect("a file");
        log.close();
        let lost = failed.load(Ordering::Relaxed) + dropped;
        let read = std::fs::read_to_string(&path).expect("a log");
        std::fs::remove_dir_all(&directory).expect("own directory");
        assert_eq!(read.lines().count() as u64 + lost, lines, "written or counted");
    }

    #[test]
    fn blocked_reader_costs_lines_and_no_time() {
        let path = std::env::temp_dir().join(format!("ringway-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let target = LogTarget::File(path.clone());
        let error = AccessLog::open(&target, LogFormat::Json).err().expect("nobody reads it");
        assert!(format!("{error:#}").contains("a FIFO that nobody reads"), "{error:#}");
        // The FIFO is open for both directions, because an open for writing alone needs a reader.
        // Nothing is ever read.
        let held = OpenOptions::new().read(true).write(true).open(&path).expect("it opens");
        let mut log = AccessLog::open(&target, LogFormat::Json).expect("it opens");
        std::fs::remove_file(&path).expect("own file");
        for _ in 0..2 * QUEUE {
            log.write(&closed());
            log.write(&closed());
            log.flush();
        }
        let dropped = log.dropped();
        assert!(dropped > 0 && dropped.is_multiple_of(2), "{dropped} lines of batches of two");
        log.close();
        drop(held);
    }

    fn shown(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }

    fn at_one_second() -> Timestamp {
        WallClock::new(UNIX_EPOCH, 0).at(1_000_000)
    }

    fn closed() -> Line<'static> {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        Line {
            time: at_one_second(),
            event: "close",
            id: None,
            protocol: "TLS",
            listener: Some("tls"),
            client: address("192.0.2.1:1000").into(),
            local: address("[::1]:443").into(),
            server_name: Some("a\"b"),
            tls: None,
            route: Some("web"),
            backend: Some("pool"),
            peer: None,
            unique_id: None,
            endpoint: Some(address("192.0.2.9:80").into()),
            endpoint_name: None,
            bytes_up: 10,
            bytes_down: 20,
            duration_ms: 1.5,
            connect_ms: Some(0.25),
            reason: Some("client_fin"),
            detail: None,
            worker: 1,
            suppressed: 0,
        }
    }
}
