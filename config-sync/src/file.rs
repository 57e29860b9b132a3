//! The configuration file: read whole, and watched.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Far above any real configuration; a file that is larger is not one.
const MAX_BYTES: u64 = 64 << 20;

/// Editors and ConfigMap updates touch a directory several times for one change.
const SETTLE: Duration = Duration::from_millis(100);

/// Where a configuration's text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    /// It is in memory and never changes; problems call it by its name.
    Text {
        name: &'static str,
        text: String,
    },
}

impl Source {
    /// What problems call it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Text { name, .. } => (*name).to_owned(),
        }
    }

    /// # Errors
    /// As [`read`].
    pub fn read(&self) -> Result<String, String> {
        match self {
            Self::File(path) => read(path),
            Self::Text { text, .. } => Ok(text.clone()),
        }
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// Reads a TOML file.
///
/// # Errors
/// A message for the operator that names the file: it is not there, it is no TOML file, it is not
/// UTF-8, it is empty, it is larger than 64 MiB.
pub fn read(path: &Path) -> Result<String, String> {
    let name = path.display();
    let yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    if yaml || path.is_dir() {
        return Err(format!(
            "{name}: Gateway API YAML and directories are not supported yet by this version; \
             give a TOML file"
        ));
    }
    let file = std::fs::File::open(path).map_err(|error| format!("{name}: {error}"))?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{name}: larger than {} MiB", MAX_BYTES >> 20));
    }
    // Programs that write a file in place empty it first: that must not withdraw every listener.
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

/// Says `()` whenever the file may have changed, 100 ms after the last sign of it; never more than
/// one is kept. Watching ends when the receiver is dropped. To be called on a tokio runtime.
///
/// The directory is watched, not the file: editors put a new file in its place, and a ConfigMap
/// volume swaps the symbolic link `..data` beside it.
///
/// # Errors
/// The directory can't be watched (inotify(7): `fs.inotify.max_user_watches`).
pub fn watch(path: &Path) -> notify::Result<mpsc::Receiver<()>> {
    let (seen, mut changes) = mpsc::channel(1);
    let (say, said) = mpsc::channel(1);
    let names = names_of(path);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error (a queue that overflowed) may have hidden a change.
        if event.map_or(true, |event| concerns(&event, &names)) {
            _ = seen.try_send(());
        }
    })?;
    for directory in directories_of(path) {
        RecommendedWatcher::watch(&mut watcher, &directory, RecursiveMode::NonRecursive)?;
    }
    tokio::spawn(async move {
        let _watcher = watcher;
        loop {
            tokio::select! {
                () = say.closed() => return,
                change = changes.recv() => if change.is_none() { return },
            }
            while tokio::time::timeout(SETTLE, changes.recv()).await.is_ok_and(|c| c.is_some()) {}
            // A full channel has a change in it that nobody has looked at yet.
            _ = say.try_send(());
        }
    });
    Ok(said)
}

/// Where the file stands, and where it really is if it is a symbolic link.
fn directories_of(path: &Path) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let real = path.canonicalize().ok();
    std::iter::once(parent(path)).chain(real.as_deref().map(parent)).collect()
}

fn names_of(path: &Path) -> BTreeSet<std::ffi::OsString> {
    let real = path.canonicalize().ok();
    let names = [Some(path), real.as_deref()].into_iter().flatten().filter_map(Path::file_name);
    names.chain([OsStr::new("..data")]).map(OsStr::to_os_string).collect()
}

/// Reading the file is an event too, and so is the access log beside it: neither is a change.
fn concerns(event: &Event, names: &BTreeSet<std::ffi::OsString>) -> bool {
    let change = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    };
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| names.contains(name));
    change && (event.paths.is_empty() || event.paths.iter().any(named))
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, ModifyKind};

    use super::*;

    #[test]
    fn reading_the_file_and_writing_beside_it_are_no_changes() {
        let names = names_of(Path::new("/etc/ringway/ringway.toml"));
        let event = |kind, name: &str| {
            concerns(&Event::new(kind).add_path(Path::new("/etc/ringway").join(name)), &names)
        };
        let close = |mode| EventKind::Access(AccessKind::Close(mode));
        let written = EventKind::Modify(ModifyKind::Any);
        assert!(event(written, "ringway.toml"));
        assert!(event(close(AccessMode::Write), "ringway.toml"));
        assert!(event(EventKind::Create(CreateKind::Any), "..data"));
        assert!(!event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "ringway.toml"));
        assert!(!event(close(AccessMode::Read), "ringway.toml"));
        assert!(!event(written, "access.log"));
        assert!(concerns(&Event::new(EventKind::Other), &names), "the queue overflowed");
    }

    #[test]
    fn a_bare_file_name_stands_in_the_working_directory() {
        assert!(directories_of(Path::new("ringway.toml")).contains(Path::new(".")));
    }
}
