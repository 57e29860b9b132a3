//! The access log: one line per session or flow that was opened, closed or turned away.
//!
//! Lines go through a bounded queue to a thread of their own. So a terminal or pipe that nobody
//! reads stops neither the control thread nor a worker. Lines that find the queue full are dropped
//! and counted.

use std::collections::BTreeMap;
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
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::control::log_line::Line;
use crate::control::sample::Sample;
use crate::control::syslog::{Lines, Syslog};

/// A batch of lines goes into the queue at this size at the latest.
const BATCH_BYTES: usize = 16 * 1024;
/// The most batches that wait to be written.
const QUEUE: usize = 4_096;
/// Bytes of a long line.
const LINE: usize = 2 * 1024;

pub struct AccessLog {
    format: LogFormat,
    sink: Option<Sink>,
    /// Lines that are not in the queue yet.
    batch: Vec<u8>,
    lines: u64,
    /// Reasons of which not each line is written.
    samples: BTreeMap<&'static str, Sample>,
}

impl AccessLog {
    pub fn open(target: &LogTarget, format: LogFormat) -> io::Result<Self> {
        let sink = Sink::open(target)?;
        Ok(Self { format, sink, batch: Vec::new(), lines: 0, samples: BTreeMap::new() })
    }

    /// Whoever sets this has the file opened again before the next line, for log rotation by
    /// rename. `None`: lines do not go to a file or a syslog daemon.
    pub fn reopener(&self) -> Option<Arc<AtomicBool>> {
        let sink = self.sink.as_ref().filter(|sink| sink.reopens)?;
        Some(Arc::clone(&sink.reopen))
    }

    /// The most bytes that wait to be written. A batch may end with one line more.
    pub fn most_waiting(&self) -> u64 {
        let batches = if self.sink.is_some() { QUEUE } else { 0 };
        (batches * (BATCH_BYTES + LINE)) as u64
    }

    pub fn reopen(&self) {
        if let Some(reopen) = self.reopener() {
            reopen.store(true, Ordering::Release);
        }
    }

    /// Writes only some of the lines with these reasons from now on.
    pub fn sample(&mut self, asked: &BTreeMap<&'static str, u32>) {
        self.samples.retain(|reason, _| asked.contains_key(reason));
        for (reason, each) in asked {
            self.samples.entry(reason).or_default().each = *each;
        }
    }

    /// Writes a line, and never waits. The next `flush` sends the line at the latest.
    pub fn write(&mut self, line: &mut Line<'_>) {
        if self.sink.is_none() {
            return;
        }
        if let Some(sample) = line.reason.and_then(|reason| self.samples.get_mut(reason))
            && !sample.admits(line)
        {
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
    /// The target can be opened again.
    reopens: bool,
    failed: Arc<AtomicU64>,
}

impl Sink {
    fn open(target: &LogTarget) -> io::Result<Option<Self>> {
        let (reopen, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (file, path) = match target {
            LogTarget::Off => return Ok(None),
            LogTarget::Syslog(path) => {
                let lines = Lines {
                    syslog: Syslog::open(path)?,
                    reopen: Arc::clone(&reopen),
                    failed: Arc::clone(&failed),
                    is_failing: false,
                };
                return Ok(Some(Self::new(lines, (reopen, true), failed)));
            }
            // `io::stdout` would hold its lock while the terminal is blocked, so the file
            // descriptor is copied.
            LogTarget::Stdout => (File::from(io::stdout().as_fd().try_clone_to_owned()?), None),
            LogTarget::Stderr => (File::from(io::stderr().as_fd().try_clone_to_owned()?), None),
            LogTarget::File(path) => (append(path)?, Some(path.clone())),
        };
        let reopens = path.is_some();
        let writer = Writer {
            file: BufWriter::new(file),
            path,
            reopen: reopen.clone(),
            failed: failed.clone(),
            is_failing: false,
        };
        Ok(Some(Self::new(writer, (reopen, reopens), failed)))
    }

    /// Starts the thread that writes.
    fn new(
        writer: impl Write + Send + 'static,
        (reopen, reopens): (Arc<AtomicBool>, bool),
        failed: Arc<AtomicU64>,
    ) -> Self {
        let (queue, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUE)
            .thread_name("ringway-log")
            .finish(writer);
        Self { full: queue.error_counter(), dropped: 0, queue, guard, reopen, reopens, failed }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::log_line::closed;

    #[test]
    fn file_is_appended_to_and_reopened() {
        let directory = std::env::temp_dir().join(format!("ringway-log-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let (path, rotated) = (directory.join("log"), directory.join("log.1"));
        std::fs::write(&path, "before\n").expect("a file");
        let target = LogTarget::File(path.clone());

        let mut log = AccessLog::open(&target, LogFormat::Text).expect("the file opens");
        log.write(&mut closed());
        log.close();
        std::fs::rename(&path, &rotated).expect("a rename");
        let mut log = AccessLog::open(&target, LogFormat::Json).expect("the file opens");
        std::fs::remove_file(&path).expect("it was created");
        log.reopen();
        log.write(&mut closed());
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
                log.write(&mut closed());
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
            log.write(&mut closed());
            log.write(&mut closed());
            log.flush();
        }
        let dropped = log.dropped();
        assert!(dropped > 0 && dropped.is_multiple_of(2), "{dropped} lines of batches of two");
        log.close();
        drop(held);
    }
}
