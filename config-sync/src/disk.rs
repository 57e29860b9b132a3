//! Reads files that may be of any kind. A FIFO, or a file on a mount that hangs, must not stop the
//! thread that asks.

use std::collections::BTreeSet;
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

/// The time to read a file or list a directory. Disks take milliseconds.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// The time to read a file while another path is stuck. Files on one mount hang together, so a
/// thread that reads them one by one must not wait for the whole deadline each time.
const SUSPECT: Duration = Duration::from_millis(500);

/// The most threads that may be stuck in the kernel at once. Each is stuck with its own path.
const MOST_STUCK: usize = 8;

/// Reads at most `most` bytes of a regular file.
///
/// # Errors
/// The errors of open(2) and read(2). The file is not a regular file; the file was written to
/// during the read; the read took more than two seconds. The path is then refused at once, until
/// the thread that reads the path comes back.
pub(crate) fn bytes(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let owned = path.to_owned();
    within(path, DEADLINE, move || read(&owned, most))
}

/// Runs `work`, which looks at `path`, on a thread of its own, and returns the result of `work`.
pub(crate) fn within<T: Send + 'static>(
    path: &Path,
    deadline: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (jobs, deadline) = {
        let mut desk = DESK.lock();
        if desk.under_way.contains(path) || desk.under_way.len() >= MOST_STUCK {
            return Err(late());
        }
        let idle = desk.idle.take();
        let jobs = idle.map_or_else(start, Ok)?;
        let is_alone = desk.under_way.is_empty();
        desk.under_way.insert(path.to_owned());
        (jobs, if is_alone { deadline } else { deadline.min(SUSPECT) })
    };
    let (tell, told) = channel();
    let owned = path.to_owned();
    let sent = jobs.send(Box::new(move || {
        let result = work();
        DESK.lock().under_way.remove(&owned);
        // If the result is too late, nobody listens any more.
        _ = tell.send(result);
    }));
    if sent.is_err() {
        DESK.lock().under_way.remove(path);
        return Err(io::Error::other("the thread that reads files has ended"));
    }
    let result = told.recv_timeout(deadline).map_err(|_| late())?;
    DESK.lock().idle = Some(jobs);
    result
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time: does its file system hang?")
}

type Job = Box<dyn FnOnce() + Send>;

struct Desk {
    /// The thread that waits for work. A thread that missed its deadline ends after its job.
    idle: Option<Sender<Job>>,
    under_way: BTreeSet<PathBuf>,
}

static DESK: Mutex<Desk> = Mutex::new(Desk { idle: None, under_way: BTreeSet::new() });

fn start() -> io::Result<Sender<Job>> {
    let (jobs, work): (Sender<Job>, Receiver<Job>) = channel();
    let thread = std::thread::Builder::new().name("ringway-files".into());
    thread.spawn(move || work.into_iter().for_each(|job| job()))?;
    Ok(jobs)
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Without `O_NONBLOCK`, the open of a FIFO would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        let message = format!("it is {}, and must be a regular file", word(before.file_type()));
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut bytes = Vec::new();
    (&file).take(most).read_to_end(&mut bytes)?;
    if is_changed(&before, &file)? {
        let message = "the file is being written: it changed while Ringway read it";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
    }
    Ok(bytes)
}

fn is_changed(before: &Metadata, file: &File) -> io::Result<bool> {
    let after = file.metadata()?;
    Ok(before.len() != after.len() || before.modified()? != after.modified()?)
}

fn word(kind: FileType) -> &'static str {
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::ops::Deref;
    use std::path::{Path, PathBuf};

    /// A folder in the file system that this value's drop removes.
    pub(crate) struct Folder(PathBuf);

    impl Folder {
        pub(crate) fn new(name: &str) -> Self {
            let name = format!("ringway-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).expect("a folder");
            Self(path)
        }
    }

    impl Deref for Folder {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::testing::Folder;
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let folder = Folder::new("no-file");
        let fifo = folder.join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo(1)").success());
        let why = |path: &Path| bytes(path, 10).expect_err("no regular file").to_string();
        assert!(why(&fifo).contains("a FIFO"), "{}", why(&fifo));
        assert!(why(&folder).contains("a directory"));
        assert!(why(Path::new("/dev/zero")).contains("a device"));
        let file = folder.join("file");
        std::fs::write(&file, "0123456789abc").expect("a file");
        assert_eq!(bytes(&file, 10).expect("its bytes"), b"0123456789");
    }

    #[test]
    fn what_hangs_is_given_up_and_holds_up_nobody() {
        let (release, held) = channel::<()>();
        let hangs = Path::new("/hangs");
        let soon = Duration::from_millis(10);
        let work = move || held.recv().map_err(io::Error::other);
        let error = within(hangs, soon, work).expect_err("it hangs");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let again = within(hangs, DEADLINE, || Ok(())).expect_err("it still does");
        assert_eq!(again.kind(), io::ErrorKind::TimedOut);
        within(Path::new("/elsewhere"), DEADLINE, || Ok(())).expect("another path");
        release.send(()).expect("it waits");
        while within(hangs, DEADLINE, || Ok(())).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The largest file that is read as a configuration. Real configurations are far smaller.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// Reads a text file.
///
/// # Errors
/// A message for the operator that names the file: the file is missing, is no regular file, can't
/// be read in time, is not UTF-8, is empty, or is larger than 64 MiB.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let name = path.display().to_string();
    let bytes = bytes(path, MAX_BYTES + 1).map_err(|error| format!("{name}: {error}"))?;
    text(&name, bytes)
}

/// A hash of the files' contents, which tells whether a file has changed. Ringway keeps only this
/// hash of private keys, not their bytes.
pub(crate) fn fingerprint(paths: &BTreeSet<PathBuf>) -> u64 {
    // The seeds need not be secret. A collision harms only the operator who made the collision: a
    // changed file is not read again.
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    hasher.hash_one(paths.iter().map(|path| bytes(path, MAX_BYTES).ok()).collect::<Vec<_>>())
}

pub(crate) fn is_one_unreadable(paths: &BTreeSet<PathBuf>) -> bool {
    paths.iter().any(|path| bytes(path, MAX_BYTES).is_err())
}

/// Turns the bytes of a whole file into text.
pub(crate) fn text(name: &str, bytes: Vec<u8>) -> Result<String, String> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{name}: larger than {} MiB", MAX_BYTES >> 20));
    }
    // Programs that write a file in place empty the file first. An empty file must not withdraw
    // every listener.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(format!("{name}: the file is empty"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("{name}:{line}:{column}: not UTF-8")
    })
}
