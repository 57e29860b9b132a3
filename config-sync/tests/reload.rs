//! A file that changes, from the watch to the table that a worker gets.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config_sync::publish::{Command, Link, Publisher};
use config_sync::{ConfigSync, Outcome, Summary, check, file};
use crossbeam_channel::{Receiver, bounded};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc;

const GOOD: &str = r#"
[[listeners]]
name = "l"
protocol = "TCP"
address = "127.0.0.1:8080"
[[routes]]
name = "r"
listeners = ["l"]
backends = [{ name = "b" }]
[[backends]]
name = "b"
endpoints = ["127.0.0.1:80", "127.0.0.1:81"]
"#;

/// A directory of one test, removed when it ends.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringway-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// One worker that takes tables when asked; listening on port 1 fails.
fn start(path: &Path) -> (ConfigSync, Receiver<Command>) {
    let (commands, receiver) = bounded(8);
    let wake = Arc::new(EventFd::new().expect("eventfd").into());
    let publisher = Publisher::new(
        vec![Link { commands, wake }],
        Box::new(|socket, workers, _| match socket.address.port() {
            1 => Err(std::io::ErrorKind::PermissionDenied.into()),
            _ => (0..workers).map(|_| Ok(fs::File::open("/dev/null")?.into())).collect(),
        }),
    );
    (ConfigSync::new(path.to_path_buf(), publisher), receiver)
}

#[test]
fn a_reload_publishes_a_refresh_only_what_is_new_and_faults_change_nothing() {
    let directory = Directory::new("reload");
    let path = directory.write("ringway.toml", GOOD);
    let (mut sync, commands) = start(&path);
    let generation_and_sockets = || match commands.try_recv() {
        Ok(Command::Table { table, sockets }) => Some((table.generation, sockets.len())),
        _ => None,
    };
    assert_eq!(sync.reload(), Outcome::Published { generation: 1 });
    assert_eq!(generation_and_sockets(), Some((1, 1)));
    assert_eq!(sync.refresh(), Outcome::Unchanged);
    assert_eq!(sync.reload(), Outcome::Published { generation: 2 });
    assert_eq!(generation_and_sockets(), Some((2, 0)), "the socket is kept");

    directory.write("ringway.toml", &GOOD.replace("TCP", "tcp"));
    let Outcome::Rejected(text) = sync.refresh() else { panic!("rejected") };
    assert!(text.contains("ringway.toml:4:12: listeners[0].protocol: must be"), "{text}");
    assert_eq!(sync.last_error(), Some(text.as_str()));
    assert_eq!(sync.refresh(), Outcome::Unchanged, "the same fault is told once");
    assert_eq!((sync.reloads_ok(), sync.reloads_failed()), (2, 1));

    directory.write("ringway.toml", &GOOD.replace(":8080", ":1"));
    let Outcome::Rejected(text) = sync.refresh() else { panic!("rejected") };
    assert!(text.contains("cannot listen on TCP 127.0.0.1:1: permission denied"), "{text}");
    assert!(matches!(sync.reload(), Outcome::Rejected(_)), "tried again");
    assert_eq!(generation_and_sockets(), None);
    assert_eq!(sync.text(), Some(GOOD), "what is in force");

    fs::remove_file(&path).expect("removed");
    assert!(matches!(sync.refresh(), Outcome::Rejected(_)));
    directory.write("ringway.toml", GOOD);
    assert_eq!(sync.refresh(), Outcome::Published { generation: 3 });
    assert_eq!(generation_and_sockets(), Some((3, 0)));
    assert_eq!((sync.last_error(), sync.generation()), (None, 3));
}

#[test]
fn a_drain_is_the_last_table() {
    let directory = Directory::new("drain");
    let (mut sync, commands) = start(&directory.write("ringway.toml", GOOD));
    assert_eq!(sync.reload(), Outcome::Published { generation: 1 });
    sync.drain();
    assert_eq!(sync.reload(), Outcome::Unchanged);
    sync.stop();
    let told: Vec<_> = commands.try_iter().collect();
    let [Command::Table { .. }, Command::Table { table, sockets }, Command::Stop] = &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!((table.generation, table.listeners.len(), sockets.len()), (2, 0, 0));
    assert_eq!(table.drain.map(|drain| drain.timeout), Some(30_000));
    assert_eq!(sync.names().listeners().count(), 1, "sessions that live still have their names");
}

#[test]
fn check_says_what_a_file_has_or_everything_that_is_wrong() {
    let directory = Directory::new("check");
    let summary = check(&directory.write("good.toml", GOOD)).expect("good");
    assert_eq!(summary, Summary { listeners: 1, routes: 1, backends: 1, endpoints: 2 });
    assert_eq!(summary.to_string(), "listeners: 1, routes: 1, backends: 1, endpoints: 2");
    let said = check(&directory.write("bad.toml", "a = 1\nb = 2")).expect_err("bad");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.lines().all(|line| line.contains("bad.toml:")), "{said}");
    for (path, expected) in [
        (directory.0.clone(), "not supported yet by this version"),
        (directory.write("gateway.yaml", ""), "not supported yet by this version"),
        (directory.0.join("none.toml"), "No such file"),
        (directory.write("empty.toml", "\n"), "the file is empty"),
    ] {
        let said = check(&path).expect_err("no TOML file");
        assert!(said.contains(expected), "{said}");
    }
    let latin = directory.0.join("latin.toml");
    fs::write(&latin, b"a = 1\nb = \"\xe4\"").expect("written");
    assert!(check(&latin).expect_err("latin").ends_with("latin.toml:2:6: not UTF-8"));
}

async fn change(changes: &mut mpsc::Receiver<()>) {
    let change = tokio::time::timeout(Duration::from_secs(20), changes.recv());
    assert_eq!(change.await, Ok(Some(())), "a change is told");
}

#[tokio::test]
async fn the_watch_sees_a_write_a_rename_and_a_new_file() {
    let directory = Directory::new("watch");
    let path = directory.write("ringway.toml", "1");
    let mut changes = file::watch(&path).expect("watched");
    directory.write("ringway.toml", "2");
    change(&mut changes).await;
    fs::rename(directory.write("other", "3"), &path).expect("renamed");
    change(&mut changes).await;
    fs::remove_file(&path).expect("removed");
    change(&mut changes).await;
    directory.write("ringway.toml", "4");
    change(&mut changes).await;
}

#[tokio::test]
async fn the_watch_sees_the_swap_of_a_configmap_volume() {
    let directory = Directory::new("configmap");
    for (version, text) in [("..1", "1"), ("..2", "2")] {
        fs::create_dir(directory.0.join(version)).expect("a version");
        directory.write(&format!("{version}/ringway.toml"), text);
    }
    symlink("..1", directory.0.join("..data")).expect("linked");
    let path = directory.0.join("ringway.toml");
    symlink("..data/ringway.toml", &path).expect("linked");
    let mut changes = file::watch(&path).expect("watched");
    symlink("..2", directory.0.join("..data_tmp")).expect("linked");
    fs::rename(directory.0.join("..data_tmp"), directory.0.join("..data")).expect("swapped");
    change(&mut changes).await;
    assert_eq!(fs::read_to_string(&path).expect("read"), "2");
}
