//! Notices when files may have changed: by inotify(7), and every few seconds by a look at the
//! files. inotify says nothing about network file systems, or about a replaced folder far above.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TrySendError, bounded};
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::disk;
use crate::source::is_part;

/// How long to wait after the last sign of a change. Editors and ConfigMap updates touch a
/// directory several times for one change.
const SETTLE: Duration = Duration::from_millis(100);

/// The time between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// How long to wait for the close of a file that is open for writing, counted from the last write.
/// A program may keep the file open for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most events that wait for the thread. If more events come, the thread looks at all files.
const EVENTS: usize = 1_024;

/// Watches files until this value is dropped.
pub struct Watch {
    /// Gets `()` when a file may have changed. At most one `()` waits.
    pub changes: mpsc::Receiver<()>,
    /// A file is being written, so its contents may be incomplete.
    pub writing: Arc<AtomicBool>,
}

/// Watches these files, and the files in directories among them, on a thread of its own. The thread
/// reports a change 100 ms after the last sign of the change, but not before the writer closes the
/// file.
///
/// The thread watches every link on the way to a file, and finds the way again after each change: a
/// link may point to another link, as with certbot and with ConfigMap volumes.
///
/// # Errors
/// inotify is refused (`fs.inotify.max_user_instances`), or no thread can be made.
pub fn watch(paths: &BTreeSet<PathBuf>) -> notify::Result<Watch> {
    let (seen, events) = bounded(EVENTS);
    let missed = Arc::new(AtomicBool::new(false));
    let has_missed = Arc::clone(&missed);
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error means that the queue overflowed.
        let is_lost = match event {
            Ok(event) => matches!(seen.try_send(event), Err(TrySendError::Full(_))),
            Err(_) => true,
        };
        has_missed.fetch_or(is_lost, Ordering::Relaxed);
    })?;
    let (say, changes) = mpsc::channel(1);
    let writing = Arc::new(AtomicBool::new(false));
    let mut watching = Watching {
        paths: paths.clone(),
        watcher,
        way: Way::default(),
        watched: BTreeMap::new(),
        missed,
        writers: BTreeMap::new(),
        writing: Arc::clone(&writing),
    };
    let (begun, begins) = bounded(1);
    let thread = std::thread::Builder::new().name("ringway-watch".into());
    thread.spawn(move || {
        // The first look comes before anything else: the caller may change files as soon as the
        // caller has the watch, and a later look shows only differences from this one.
        let said = look(&watching.paths);
        let result = watching.resolve();
        let is_good = result.is_ok();
        // The watch began too late to know of earlier changes, so a change is reported.
        if begun.send(result).is_err() {
            _ = say.try_send(());
        }
        if is_good {
            watching.run(&events, &say, said);
        }
    })?;
    // If a mount hangs, the caller is not held up. The watch begins once the mount answers.
    begins.recv_timeout(disk::DEADLINE).unwrap_or(Ok(()))?;
    Ok(Watch { changes, writing })
}

struct Watching {
    paths: BTreeSet<PathBuf>,
    watcher: RecommendedWatcher,
    way: Way,
    /// Directories, and the device and inode that each had when it was added.
    watched: BTreeMap<PathBuf, Option<(u64, u64)>>,
    missed: Arc<AtomicBool>,
    /// Files that a program writes, and when the last write was seen.
    writers: BTreeMap<PathBuf, Instant>,
    writing: Arc<AtomicBool>,
}

impl Watching {
    #[expect(clippy::disallowed_methods, reason = "files are written by the clock of the machine")]
    fn run(mut self, events: &Receiver<Event>, say: &mpsc::Sender<()>, mut said: Look) {
        let mut before = said.clone();
        let (mut sign, mut next_look) = (None, Instant::now() + LOOK);
        while !say.is_closed() {
            let settled: Option<Instant> = sign.map(|sign: Instant| sign + SETTLE);
            let wake = settled.map_or(next_look, |settled| settled.min(next_look));
            let event = events.recv_timeout(wake.saturating_duration_since(Instant::now()));
            let now = Instant::now();
            match event {
                Ok(event) if self.concerns(&event, now) => sign = Some(now),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.missed.swap(false, Ordering::Relaxed) {
                sign = Some(now);
            }
            if now >= next_look {
                next_look = now + LOOK;
                let latest = look(&self.paths);
                // A file that differs from look to look is still being written.
                if latest != said && latest == before {
                    sign.get_or_insert(now);
                }
                before = latest;
            }
            self.writers.retain(|_, last| now < *last + PATIENCE);
            self.writing.store(!self.writers.is_empty(), Ordering::Relaxed);
            if self.writers.is_empty() && sign.is_some_and(|sign| now >= sign + SETTLE) {
                sign = None;
                if let Err(error) = self.resolve() {
                    tracing::warn!(%error, "not all files can be watched for changes, so Ringway \
                                            looks at them from time to time");
                }
                said = look(&self.paths);
                before.clone_from(&said);
                // A full channel already has a change that nobody has read yet.
                _ = say.try_send(());
            } else if !self.writers.is_empty() {
                sign = sign.map(|_| now);
            }
        }
    }

    /// Watches the directories that are on the way now, and no others.
    fn resolve(&mut self) -> notify::Result<()> {
        self.way = Way::of(&self.paths);
        let wanted: BTreeMap<_, _> =
            self.way.directories.iter().map(|path| (path.clone(), identity(path))).collect();
        let mut result = Ok(());
        for (path, which) in &self.watched {
            if wanted.get(path) != Some(which) {
                // The directory may be gone, and its watch too.
                _ = self.watcher.unwatch(path);
            }
        }
        for (path, which) in &wanted {
            if which.is_some() && self.watched.get(path) != Some(which) {
                let begun = self.watcher.watch(path, RecursiveMode::NonRecursive);
                result = result.and(begun);
            }
        }
        self.watched = wanted;
        result
    }

    /// Whether the event is about one of the watched files. Reads of a file are events too, and so
    /// are writes to an access log in the same folder; neither is a change.
    fn concerns(&mut self, event: &Event, now: Instant) -> bool {
        let paths: Vec<_> = event.paths.iter().filter(|path| self.way.has(path)).collect();
        if paths.is_empty() {
            return event.paths.is_empty();
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                paths.into_iter().for_each(|path| _ = self.writers.remove(path));
                true
            }
            EventKind::Access(_) => false,
            EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(_) => {
                for path in paths {
                    // A link is complete as soon as the link exists.
                    if path.symlink_metadata().is_ok_and(|data| data.is_file()) {
                        self.writers.insert(path.clone(), now);
                    }
                }
                true
            }
            EventKind::Modify(ModifyKind::Metadata(_)) => true,
            // The file was renamed or removed, so a writer no longer writes to this path.
            _ => {
                paths.into_iter().for_each(|path| _ = self.writers.remove(path));
                true
            }
        }
    }
}

/// The directories, links and files on the way to the watched files.
#[derive(Debug, Default)]
struct Way {
    directories: BTreeSet<PathBuf>,
    /// Links and files in these directories.
    names: BTreeSet<PathBuf>,
    /// Directories in which every configuration file counts.
    whole: BTreeSet<PathBuf>,
}

impl Way {
    fn of(paths: &BTreeSet<PathBuf>) -> Self {
        let mut way = Self::default();
        for path in paths {
            if path.is_dir() {
                let end = way.add(path);
                for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                    if is_part(&entry.path()) {
                        way.add(&entry.path());
                    }
                }
                way.directories.insert(end.clone());
                way.whole.insert(end);
            } else {
                way.add(path);
            }
        }
        way
    }

    /// Walks to the file through every link, and returns the file's real path.
    fn add(&mut self, path: &Path) -> PathBuf {
        // Events have whole paths, so the way has them too.
        let mut at = match path.is_absolute() {
            true => PathBuf::from("/"),
            false => std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
        };
        let mut rest: Vec<_> = parts(path);
        // More links are a circle (path_resolution(7)).
        let mut links = 40;
        while let Some(part) = rest.pop() {
            if part.as_os_str() == ".." {
                at.push("..");
                continue;
            }
            let next = at.join(&part);
            let link = fs::read_link(&next).ok().filter(|_| links > 0);
            if link.is_some() || rest.is_empty() {
                self.directories.insert(at.clone());
                self.names.insert(next.clone());
            }
            let Some(link) = link else {
                at = next;
                continue;
            };
            links -= 1;
            if link.is_absolute() {
                at = PathBuf::from("/");
            }
            rest.extend(parts(&link));
        }
        at
    }

    fn has(&self, path: &Path) -> bool {
        self.names.contains(path)
            || self.directories.contains(path)
            || (is_part(path) && path.parent().is_some_and(|parent| self.whole.contains(parent)))
    }
}

/// The names in a path, the last name first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|data| (data.dev(), data.ino()))
}

/// For each file, the numbers that tell one state of the file from another.
type Look = Vec<Option<[u64; 6]>>;

fn look(paths: &BTreeSet<PathBuf>) -> Look {
    let mut seen = Vec::new();
    for path in paths {
        seen.push(path.metadata().ok().map(|data| state(&data)));
        if seen.last().is_some_and(Option::is_some) && path.is_dir() {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
            files.retain(|path| is_part(path));
            files.sort();
            seen.extend(files.iter().map(|path| path.metadata().ok().map(|data| state(&data))));
        }
    }
    seen
}

fn state(data: &Metadata) -> [u64; 6] {
    let time = |seconds: i64, nanos: i64| [seconds.cast_unsigned(), nanos.cast_unsigned()];
    let [seconds, nanos] = time(data.mtime(), data.mtime_nsec());
    let [changed, _] = time(data.ctime(), data.ctime_nsec());
    [data.dev(), data.ino(), data.len(), seconds, nanos, changed]
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disk::testing::Folder;

    /// More than twice the longest time that a look takes.
    const SOON: Duration = Duration::from_secs(40);

    async fn is_said(watch: &mut Watch) -> bool {
        matches!(tokio::time::timeout(SOON, watch.changes.recv()).await, Ok(Some(())))
    }

    fn of(path: &Path) -> Watch {
        watch(&BTreeSet::from([path.to_owned()])).expect("inotify")
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_is_waited_for() {
        let folder = Folder::new("writing");
        let path = folder.join("f.toml");
        fs::write(&path, "all").expect("a file");
        let mut watch = of(&path);
        let mut file = File::create(&path).expect("it is emptied");
        file.write_all(b"ha").expect("half of it");
        let early = tokio::time::timeout(SETTLE * 5, watch.changes.recv()).await;
        assert!(early.is_err(), "it is open");
        assert!(watch.writing.load(Ordering::Relaxed));
        file.write_all(b"lf").expect("the rest");
        drop(file);
        assert!(is_said(&mut watch).await);
        assert!(!watch.writing.load(Ordering::Relaxed));
    }

    /// inotify's events have whole paths.
    #[test]
    fn the_way_to_a_relative_path_is_a_whole_path() {
        let here = std::env::current_dir().expect("a directory");
        let way = Way::of(&BTreeSet::from(["src".into(), "gateway.toml".into()]));
        assert!(way.has(&here.join("gateway.toml")) && way.directories.contains(&here));
        assert!(way.has(&here.join("src/more.toml")), "src is a directory");
        assert!(!way.has(&here.join("more.toml")));
    }

    /// `etc/f -> live/f -> archive/f1`: certbot's links, and one more link.
    #[tokio::test]
    async fn every_link_of_a_chain_and_what_it_points_to_later() {
        let folder = Folder::new("links");
        let at = |name: &str| folder.join(name);
        for name in ["etc", "live", "archive"] {
            fs::create_dir(at(name)).expect("a folder");
        }
        fs::write(at("archive/f1"), "1").expect("a file");
        fs::write(at("archive/f2"), "2").expect("a file");
        symlink(at("live/f"), at("etc/f")).expect("a link");
        symlink("../archive/f1", at("live/f")).expect("a link");
        let mut watch = of(&at("etc/f"));
        symlink("../archive/f2", at("live/new")).expect("a link");
        fs::rename(at("live/new"), at("live/f")).expect("it is swapped");
        assert!(is_said(&mut watch).await, "a link in the middle");
        fs::write(at("archive/f2"), "3").expect("written in place");
        assert!(is_said(&mut watch).await, "in place, after the swap");
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced() {
        let folder = Folder::new("replaced");
        let at = |name: &str| folder.join(name);
        for name in ["etc/conf", "new/conf"] {
            fs::create_dir_all(at(name)).expect("a folder");
            fs::write(at(name).join("f"), name).expect("a file");
        }
        let mut watch = of(&at("etc/conf/f"));
        // A folder far above is replaced, which only a look shows.
        fs::rename(at("etc"), at("old")).expect("it is moved away");
        fs::rename(at("new"), at("etc")).expect("another is put there");
        assert!(is_said(&mut watch).await);
        fs::write(at("etc/conf/f"), "in place").expect("written");
        assert!(is_said(&mut watch).await, "the new folder is watched");
    }

    #[test]
    fn reading_and_writing_beside_are_no_changes() {
        let folder = Folder::new("beside");
        let path = folder.join("f.toml");
        fs::write(&path, "x").expect("a file");
        let way = Way::of(&BTreeSet::from([path.clone()]));
        assert!(way.has(&path) && way.has(&folder));
        assert!(!way.has(&folder.join("access.log")));
        let way = Way::of(&BTreeSet::from([folder.to_path_buf()]));
        assert!(way.has(&path) && way.has(&folder.join("new.yaml")));
        assert!(!way.has(&folder.join("access.log")));
    }
}
