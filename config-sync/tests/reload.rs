//! A file that changes, from the watch to the table that a worker gets.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config_sync::model::place::Warning;
use config_sync::publish::{Command, Link, Publisher};
use config_sync::source::Source;
use config_sync::source::watch::watch;
use config_sync::sync::dry_run::{Checked, Summary, check};
use config_sync::sync::reading::Wish;
use config_sync::sync::{ConfigSync, Outcome};
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
        Box::new(|socket, workers, _| match socket.address.ip().map_or(0, |at| at.port()) {
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
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });
    assert_eq!(generation_and_sockets(), Some((1, 1)));
    assert_eq!(sync.follow(Wish::Refresh), Outcome::Unchanged);
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 2 });
    assert_eq!(generation_and_sockets(), Some((2, 0)), "the socket is kept");

    directory.write("ringway.toml", &GOOD.replace("TCP", "tcp"));
    let Outcome::Rejected(text) = sync.follow(Wish::Refresh) else { panic!("rejected") };
    assert!(text.contains("ringway.toml:4:12: listeners[0].protocol: must be"), "{text}");
    assert_eq!(sync.last_error(), Some(text.as_str()));
    assert_eq!(sync.follow(Wish::Refresh), Outcome::Unchanged, "the same fault is told once");
    assert_eq!((sync.reloads_ok(), sync.reloads_failed()), (2, 1));

    directory.write("ringway.toml", &GOOD.replace(":8080", ":1"));
    let Outcome::Rejected(text) = sync.follow(Wish::Refresh) else { panic!("rejected") };
    assert!(text.contains("cannot listen on TCP 127.0.0.1:1: permission denied"), "{text}");
    assert!(matches!(sync.follow(Wish::Reload), Outcome::Rejected(_)), "tried again");
    assert_eq!(generation_and_sockets(), None);
    assert_eq!(sync.in_force().map(|it| it.text()), Some(GOOD), "what is in force");

    fs::remove_file(&path).expect("removed");
    assert!(matches!(sync.follow(Wish::Refresh), Outcome::Rejected(_)));
    directory.write("ringway.toml", GOOD);
    assert_eq!(sync.follow(Wish::Refresh), Outcome::Published { generation: 3 });
    assert_eq!(generation_and_sockets(), Some((3, 0)));
    assert_eq!((sync.last_error(), sync.generation()), (None, 3));
}

/// However short `drain_timeout` is, sessions have 5 s to go to the next process of an upgrade. A
/// stop keeps to `drain_timeout`.
#[test]
fn an_upgrade_leaves_sessions_five_seconds_at_the_least() {
    let directory = Directory::new("drain");
    for (said, stop, upgrade) in [("1s", 1_000, 5_000), ("5s", 5_000, 5_000), ("6s", 6_000, 6_000)]
    {
        let text = format!("drain_timeout = \"{said}\"\n{GOOD}");
        let path = directory.write("ringway.toml", &text);
        let timeout = |end: fn(&mut ConfigSync)| {
            let (mut sync, commands) = start(&path);
            assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });
            assert!(matches!(commands.try_recv(), Ok(Command::Table { .. })));
            end(&mut sync);
            match commands.try_recv() {
                Ok(Command::Table { table, .. }) => table.drain.map(|drain| drain.timeout),
                _ => None,
            }
        };
        assert_eq!(timeout(ConfigSync::drain), Some(stop), "{said}");
        assert_eq!(timeout(|sync| sync.hand_over(&BTreeSet::new(), 1)), Some(upgrade), "{said}");
    }
}

#[test]
fn what_another_thread_has_read_is_in_force_once_it_is_handed_over() {
    let directory = Directory::new("reading");
    let (mut sync, commands) = start(&directory.write("ringway.toml", GOOD));
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });
    assert_eq!(commands.try_iter().count(), 1);

    directory.write("ringway.toml", &GOOD.replace("\"l\"", "\"second\""));
    let reading = sync.begin(Wish::Refresh).expect("something is to be read");
    assert!(sync.begin(Wish::Reload).is_none(), "one at a time");
    let found = std::thread::spawn(move || reading.run()).join().expect("no panic");
    assert_eq!((commands.try_iter().count(), sync.names().listeners().count()), (0, 1));
    assert_eq!(sync.finish(found), Outcome::Published { generation: 2 });
    assert_eq!((commands.try_iter().count(), sync.names().listeners().count()), (1, 2));

    // A reader that has panicked leaves what is in force, and it is tried again.
    assert!(sync.begin(Wish::Reload).is_some());
    assert_eq!(sync.abandon("panicked".into()), Outcome::Rejected("panicked".into()));
    assert_eq!((sync.generation(), sync.reloads_failed()), (2, 1));
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 3 });

    // The drain is the last table, whatever was read meanwhile.
    directory.write("ringway.toml", &GOOD.replace("\"l\"", "\"third\""));
    let reading = sync.begin(Wish::Refresh).expect("something is to be read");
    sync.drain();
    assert_eq!(sync.finish(reading.run()), Outcome::Unchanged);
    assert!(sync.begin(Wish::Reload).is_none());
    assert_eq!((sync.generation(), sync.names().listeners().count()), (4, 2));
}

#[test]
fn a_drain_is_the_last_table() {
    let directory = Directory::new("drain");
    let (mut sync, commands) = start(&directory.write("ringway.toml", GOOD));
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });
    sync.drain();
    assert_eq!(sync.follow(Wish::Reload), Outcome::Unchanged);
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
    let (directory, empty) = (Directory::new("check"), Directory::new("check-empty"));
    let check = |path: PathBuf| check(&Source::from(path), 0);
    let good = check(directory.write("good.toml", GOOD)).expect("good");
    let Checked { summary, warnings, hints, .. } = good;
    assert_eq!((warnings, hints), (vec![], vec![]));
    assert_eq!(summary, Summary { listeners: 1, routes: 1, backends: 1, endpoints: 2 });
    assert_eq!(summary.to_string(), "listeners: 1, routes: 1, backends: 1, endpoints: 2");
    let said = check(directory.write("bad.toml", "a = 1\nb = 2")).expect_err("bad");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.lines().all(|line| line.contains("bad.toml:")), "{said}");
    for (path, expected) in [
        (empty.0.clone(), "has no file that ends in .toml, .yaml, .yml or .json"),
        (directory.write("gateway.yaml", ""), "the file is empty"),
        (directory.0.join("none.toml"), "No such file"),
        (directory.write("empty.toml", "\n"), "the file is empty"),
    ] {
        let said = check(path).expect_err("no configuration");
        assert!(said.contains(expected), "{said}");
    }
    let latin = directory.0.join("latin.toml");
    fs::write(&latin, b"a = 1\nb = \"\xe4\"").expect("written");
    assert!(check(latin).expect_err("latin").ends_with("latin.toml:2:6: not UTF-8"));
}

#[test]
fn a_file_that_works_and_is_hardly_meant_is_warned_of() {
    let directory = Directory::new("warnings");
    let path = directory.write("odd.toml", "# later\nadmin.address = \"0.0.0.0:9900\"\n");
    let Checked { warnings, .. } = check(&Source::from(path.clone()), 0).expect("valid");
    let said: Vec<String> = warnings.iter().map(Warning::marked).collect();
    let name = path.display();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with(&format!("{name}:1:1: warning: there is no listener")), "{said:?}");
    assert!(said[1].starts_with(&format!("{name}:2:17: warning: admin.address: 0.0.0.0")));
}

#[test]
fn check_hints_at_shares_that_are_refused() {
    let directory = Directory::new("hints");
    let two = GOOD.replace("[{ name = \"b\" }]", "[{ name = \"b\" }, { name = \"c\" }]")
        + "[[backends]]\nname = \"c\"\nendpoints = [\"127.0.0.1:3\"]\n";
    let path = directory.write("two.toml", &two);
    let Checked { warnings, hints, .. } = check(&Source::from(path), 0).expect("valid");
    assert_eq!(warnings, []);
    let hints: Vec<String> = hints.iter().map(Warning::as_hint).collect();
    assert!(hints.len() == 1 && hints[0].contains(": hint: routes[0].backends: "), "{hints:?}");
    assert!(hints[0].contains("on_unavailable = \"next\""), "{hints:?}");
}

#[test]
fn a_confirmed_reload_that_is_tried_again_is_still_confirmed() {
    let directory = Directory::new("confirmed");
    let more = |port: u16| {
        format!(
            "[[listeners]]\nname = \"{port}\"\nprotocol = \"UDP\"\naddress = \"127.0.0.1:{port}\"\n"
        )
    };
    let text = (9_001..9_005).fold(GOOD.to_owned(), |text, port| text + &more(port));
    let path = directory.write("ringway.toml", &text);
    let (mut sync, _commands) = start(&path);
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });

    directory.write("ringway.toml", &GOOD.replace(":8080", ":1"));
    let Outcome::Rejected(text) = sync.follow(Wish::Reload) else { panic!("rejected") };
    assert!(text.contains("only 1 are left of 5"), "{text}");
    let Outcome::Rejected(text) = sync.follow(Wish::Confirmed) else { panic!("rejected") };
    assert!(text.contains("cannot listen"), "{text}");
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(sync.follow(Wish::Retry), Outcome::Unchanged, "it fails for the same reason");
    assert_eq!(sync.last_error(), Some(text.as_str()));
}

#[test]
fn every_address_that_cannot_be_bound_is_told_with_its_listener() {
    let directory = Directory::new("bind");
    let more = "[[listeners]]\nname = \"m\"\nprotocol = \"UDP\"\naddress = \"127.0.0.1:1\"\n";
    let text = format!("{}{more}", GOOD.replace("8080", "1"));
    let path = directory.write("ringway.toml", &text);
    let (mut sync, _commands) = start(&path);
    let Outcome::Rejected(said) = sync.follow(Wish::Reload) else { panic!("nothing can be bound") };
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    for (line, name, transport) in [(lines[0], "l", "TCP"), (lines[1], "m", "UDP")] {
        assert!(line.starts_with(&format!("{}:", path.display())), "{said}");
        let expected = format!(".address: listener \"{name}\": cannot listen on {transport} ");
        assert!(line.contains(&expected) && line.contains("CAP_NET_BIND_SERVICE"), "{said}");
    }
}

async fn change(changes: &mut mpsc::Receiver<()>) {
    let change = tokio::time::timeout(Duration::from_secs(20), changes.recv());
    assert_eq!(change.await, Ok(Some(())), "a change is told");
}

#[tokio::test]
async fn the_watch_sees_a_write_a_rename_and_a_new_file() {
    let directory = Directory::new("watch");
    let path = directory.write("ringway.toml", "1");
    let mut changes = watch(&[path.clone()].into()).expect("watched").changes;
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
    let mut changes = watch(&[path.clone()].into()).expect("watched").changes;
    symlink("..2", directory.0.join("..data_tmp")).expect("linked");
    fs::rename(directory.0.join("..data_tmp"), directory.0.join("..data")).expect("swapped");
    change(&mut changes).await;
    assert_eq!(fs::read_to_string(&path).expect("read"), "2");
}

const OBJECTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: ringway
  listeners: [{name: one, protocol: TCP, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: g}]
  rules: [{backendRefs: [{name: s, port: 80}]}]
";

const ENDPOINTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: '', port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.0.0.1]}]
";

#[tokio::test]
async fn a_directory_of_objects_is_followed_and_a_bad_file_changes_nothing() {
    let directory = Directory::new("objects");
    directory.write("a.yaml", OBJECTS);
    let base = directory.write("base.toml", "lame_duck = \"9s\"\n");
    let (mut sync, _worker) = start(&directory.0);
    let paths = [directory.0.clone()].into();
    let mut changes = watch(&paths).expect("watched").changes;
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });
    let endpoints = |sync: &ConfigSync| {
        sync.in_force().expect("a configuration").config.backends[0].endpoints.len()
    };
    assert_eq!(endpoints(&sync), 0, "the Service is not there yet");
    assert_eq!(sync.in_force().expect("a configuration").config.lame_duck, 9_000);
    assert!(sync.in_force().expect("a configuration").text().contains("lame_duck = \"9s\"\n"));

    directory.write("b.yaml", ENDPOINTS);
    change(&mut changes).await;
    assert_eq!(sync.follow(Wish::Refresh), Outcome::Published { generation: 2 });
    assert_eq!(endpoints(&sync), 1);
    let shown = sync.in_force().expect("a configuration").text().to_owned();
    assert!(shown.contains("endpoints = [\"10.0.0.1:8080\"]"), "{shown}");

    directory.write("b.yaml", &ENDPOINTS.replace("port: 80}", "port: eighty}"));
    change(&mut changes).await;
    let Outcome::Rejected(why) = sync.follow(Wish::Refresh) else { panic!("a bad file was taken") };
    let place = "b.yaml:1: document 1: Service default/s: spec.ports[0].port: ";
    assert!(why.contains(place), "{why}");
    assert_eq!(endpoints(&sync), 1, "what was in force stays");

    directory.write("b.yaml", ENDPOINTS);
    fs::write(base, "[[listeners]]\nname = \"l\"").expect("written");
    let Outcome::Rejected(why) = sync.follow(Wish::Reload) else { panic!("a bad base was taken") };
    assert!(why.contains("base.toml"), "{why}");
}

#[test]
fn a_cluster_is_served_but_for_what_can_not_be_bound() {
    let config = |listeners: &str| {
        let text = format!("{GOOD}{listeners}");
        config_sync::check::parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"))
    };
    let bad = config(
        "[[listeners]]\nname = \"bad\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:1\"\n\
         [[routes]]\nname = \"bad\"\nlisteners = [\"bad\"]\nbackends = [{ name = \"b\" }]\n",
    );
    let (mut sync, commands) = start(Path::new("none"));
    let put = sync.put(&bad).expect("the rest is good");
    assert!(put.published);
    assert_eq!(put.failed.keys().collect::<Vec<_>>(), ["bad"]);
    assert!(put.failed["bad"].contains("CAP_NET_BIND_SERVICE"), "{:?}", put.failed);
    let Ok(Command::Table { table, sockets }) = commands.try_recv() else { panic!("a table") };
    assert_eq!((table.generation, table.listeners.len(), table.routes.len()), (1, 1, 1));
    assert_eq!(sockets.len(), 1);

    let same = sync.put(&bad).expect("nothing is new");
    assert_eq!((same.published, same.generation), (false, 1));
    assert_eq!(same.failed, put.failed);
    // Tried again after a while, it fails again, and nothing is given out for that.
    let is_due = (0..1_500).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        sync.wants_put()
    });
    assert!(is_due, "it is not tried again");
    let again = sync.put(&bad).expect("nothing is new");
    assert_eq!((again.published, again.generation), (false, 1));
    assert!(!sync.wants_put(), "it rests for longer now");

    let good = sync.put(&config("")).expect("it is good");
    assert!(good.published && good.failed.is_empty());
    assert!(matches!(commands.try_recv(), Ok(Command::Table { .. })));
    assert!(commands.try_recv().is_err());
}

#[test]
fn what_does_not_fit_in_a_cluster_is_left_out_alone() {
    let text = format!(
        "{GOOD}[[listeners]]\nname = \"second\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:7002\"\n\
         [[routes]]\nname = \"second\"\nlisteners = [\"second\"]\nbackends = [{{ name = \"b\" }}]\n\
         [[listeners]]\nname = \"third\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:7003\"\n\
         [[routes]]\nname = \"third\"\nlisteners = [\"third\"]\nbackends = [{{ name = \"c\" }}]\n\
         [[backends]]\nname = \"c\"\nendpoints = [\"127.0.0.1:7004\", \"127.0.0.1:7005\"]\n"
    );
    let mut config = config_sync::check::parse("test", &text).expect("a configuration");
    // As for translated objects: the owner stands in place of the file.
    for listener in &mut config.listeners {
        let name: Arc<str> = listener.name.value.as_str().into();
        listener.addresses.iter_mut().for_each(|at| at.place.file = name.clone());
    }
    for backend in &mut config.backends {
        let name: Arc<str> = backend.name.value.as_str().into();
        backend.endpoints.iter_mut().for_each(|at| at.address.place.file = name.clone());
    }
    let first = config.listeners[0].addresses[0].value;
    config.listeners[1].addresses[0].value = first;
    let (mut sync, commands) = start(Path::new("none"));
    let put = sync.put(&config).expect("the rest is good");
    assert_eq!(put.failed.keys().collect::<Vec<_>>(), ["second"]);
    assert!(put.failed["second"].contains("clashes with listener \"l\""), "{:?}", put.failed);
    let Ok(Command::Table { table, .. }) = commands.try_recv() else { panic!("a table") };
    assert_eq!((table.listeners.len(), table.routes.len()), (2, 2));

    config.listeners.remove(1);
    config.routes.remove(1);
    let twice = config.backends[1].endpoints[0].address.value.clone();
    config.backends[1].endpoints[1].address.value = twice;
    let put = sync.put(&config).expect("the rest is good");
    assert!(put.published && put.failed.is_empty());
    let Ok(Command::Table { table, .. }) = commands.try_recv() else { panic!("a table") };
    let endpoints = |name: &str| {
        let backend = table.backends.iter().find(|backend| &*backend.name == name);
        backend.expect("it keeps its share").endpoints.len()
    };
    assert_eq!((endpoints("b"), endpoints("c")), (2, 0));

    // Of nobody's fault, so that nothing can be left out.
    config.listeners[1].addresses[0].value = first;
    config.listeners[1].addresses[0].place.file = "elsewhere".into();
    let why = sync.put(&config).expect_err("it can't be compiled");
    assert!(why.starts_with("elsewhere:"), "{why}");
    assert_eq!(sync.generation(), 2);
}

/// Ports of the endpoints of the latest table that was given out, once it has these.
async fn given(sync: &mut ConfigSync, commands: &Receiver<Command>, wanted: &[u16]) -> u64 {
    let mut last = Vec::new();
    for _ in 0..1_000 {
        sync.check_endpoints(&|_| 0);
        if let Some(Command::Table { table, sockets }) = commands.try_iter().last() {
            let endpoints = table.backends.iter().flat_map(|backend| &backend.endpoints);
            last = endpoints
                .map(|endpoint| endpoint.address.socket_address().map_or(0, |at| at.port()))
                .collect();
            if last == wanted {
                assert!(sockets.is_empty(), "nothing is opened for it");
                return table.generation;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the latest table has {last:?}, not {wanted:?}")
}

#[tokio::test]
async fn an_endpoint_that_fails_its_checks_is_left_out_until_it_is_back() {
    let listen = |port| std::net::TcpListener::bind(("127.0.0.1", port)).expect("a port");
    let servers = [listen(0), listen(0)];
    let ports =
        [&servers[0], &servers[1]].map(|server| server.local_addr().expect("its address").port());
    let text = |interval: &str| {
        let text = GOOD.replace(":80\"", &format!(":{}\"", ports[0]));
        let text = text.replace(":81\"", &format!(":{}\"", ports[1]));
        format!("{text}health_check = {{ interval = \"{interval}\", fall = 2, rise = 1 }}\n")
    };
    let directory = Directory::new("health");
    let (mut sync, commands) = start(&directory.write("ringway.toml", &text("100ms")));
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });
    assert!(commands.try_recv().is_ok());

    let [first, second] = servers;
    drop(first);
    assert_eq!(given(&mut sync, &commands, &[ports[1]]).await, 2);
    assert_eq!((sync.generation(), sync.reloads_ok()), (2, 1), "it is not a reload");
    assert_eq!(sync.follow(Wish::Refresh), Outcome::Unchanged);

    // What is known is known: no table in between has it.
    directory.write("ringway.toml", &text("150ms"));
    assert_eq!(sync.follow(Wish::Refresh), Outcome::Published { generation: 3 });
    let Ok(Command::Table { table, .. }) = commands.try_recv() else { panic!("a table") };
    assert_eq!(table.backends[0].endpoints.len(), 1);
    let in_force = &sync.in_force().expect("a configuration").config;
    assert_eq!(in_force.backends[0].endpoints.len(), 2, "it is asked for all the same");

    drop(second);
    given(&mut sync, &commands, &[]).await;
    let _first = listen(ports[0]);
    given(&mut sync, &commands, &[ports[0]]).await;

    sync.drain();
    assert!(matches!(commands.try_recv(), Ok(Command::Table { .. })));
    assert!(sync.figures().0.endpoints.is_empty(), "nothing is checked any more");
    assert!(!sync.check_endpoints(&|_| 0));
}

#[tokio::test]
async fn a_clusters_endpoints_are_checked_as_well() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("its address").port();
    let text = GOOD.replace(":80\"", &format!(":{port}\"")).replace(":81\"", ":1\"");
    let text = format!("{text}health_check = {{ interval = \"100ms\" }}\n");
    let config = config_sync::check::parse("test", &text).expect("a configuration");
    let (mut sync, commands) = start(Path::new("none"));
    assert!(sync.put(&config).expect("it is good").published);
    assert!(commands.try_recv().is_ok());
    assert_eq!(given(&mut sync, &commands, &[port]).await, 2);
    let same = sync.put(&config).expect("nothing is new");
    assert_eq!((same.published, same.generation), (false, 2));
}

/// A listener with a route of its own. Its name is also the end of its port.
fn short(nth: u8) -> String {
    let addresses = format!("address = \"127.0.0.1:818{nth}\"\nendpoints = [\"127.0.0.1:80\"]");
    format!("[[listeners]]\nname = \"l{nth}\"\nprotocol = \"TCP\"\n{addresses}\n")
}

fn listeners(sync: &ConfigSync) -> Vec<String> {
    let listeners = &sync.in_force().expect("a configuration").config.listeners;
    listeners.iter().map(|listener| listener.name.value.clone()).collect()
}

/// Follows a change of a file, once the watch has seen it.
async fn follow(sync: &mut ConfigSync, changes: &mut mpsc::Receiver<()>) -> Outcome {
    change(changes).await;
    sync.follow(Wish::Refresh)
}

#[tokio::test]
async fn included_files_are_followed_and_a_bad_one_changes_nothing() {
    let directory = Directory::new("include");
    let includes = "include = [\"conf.d/*.toml\", \"db.toml\"]\n";
    let path = directory.write("ringway.toml", &format!("{includes}{GOOD}"));
    let db = directory.write("db.toml", "lame_duck = \"9s\"\n");
    let (mut sync, _worker) = start(&path);
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });
    assert_eq!(
        (listeners(&sync), sync.in_force().unwrap().config.lame_duck),
        (vec!["l".into()], 9_000)
    );
    let files = sync.files();
    assert!(files.contains(&db) && files.contains(&path), "{files:?}");
    let mut changes = watch(&files).expect("watched").changes;

    fs::create_dir(directory.0.join("conf.d")).expect("a folder");
    directory.write("conf.d/b.toml", &short(2));
    assert_eq!(follow(&mut sync, &mut changes).await, Outcome::Published { generation: 2 });
    assert_eq!(listeners(&sync), ["l", "l2"], "the folder appears");
    directory.write("conf.d/a.toml", &short(1));
    assert_eq!(follow(&mut sync, &mut changes).await, Outcome::Published { generation: 3 });
    assert_eq!(listeners(&sync), ["l", "l1", "l2"], "a file appears");
    let shown = sync.in_force().expect("a configuration").text().to_owned();
    for name in ["ringway.toml", "conf.d/a.toml", "conf.d/b.toml", "db.toml"] {
        let header = format!("# {}\n", directory.0.join(name).display());
        assert_eq!(shown.matches(&header).count(), 1, "{shown}");
    }
    assert!(!shown.contains('\0'), "{shown}");

    fs::write(&db, "lame_duck = \"8s\"\n").expect("written");
    assert_eq!(follow(&mut sync, &mut changes).await, Outcome::Published { generation: 4 });
    assert_eq!(sync.in_force().expect("a configuration").config.lame_duck, 8_000);
    for (bad, expected) in [
        ("lame_duck = \"8", "db.toml:1:"),
        ("", "ringway.toml:1:29: include[1]: "),
        ("[[listeners]]\nname = \"l2\"", "db.toml:1:1: listeners[0].protocol: missing"),
    ] {
        fs::write(&db, bad).expect("written");
        let outcome = follow(&mut sync, &mut changes).await;
        let Outcome::Rejected(why) = outcome else { panic!("{bad} was taken: {outcome:?}") };
        assert!(why.contains(expected), "{why}");
        assert_eq!((listeners(&sync).len(), sync.files().contains(&db)), (3, true));
    }
    fs::remove_file(&db).expect("removed");
    let outcome = follow(&mut sync, &mut changes).await;
    let Outcome::Rejected(why) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("ringway.toml:1:29: include[1]: "), "{why}");
    assert!(why.contains("No such file"), "{why}");
    fs::write(&db, "lame_duck = \"7s\"\n").expect("written");
    fs::remove_file(directory.0.join("conf.d/a.toml")).expect("removed");
    let outcome = follow(&mut sync, &mut changes).await;
    assert_eq!(outcome, Outcome::Published { generation: 5 });
    assert_eq!(listeners(&sync), ["l", "l2"], "a file disappears");
}

#[tokio::test]
async fn a_directory_of_toml_files_is_one_configuration() {
    let directory = Directory::new("directory");
    directory.write("b.toml", &short(2));
    directory.write("a.toml", &short(1));
    directory.write(".#a.toml", "an editor's");
    let (mut sync, _worker) = start(&directory.0);
    assert_eq!(sync.follow(Wish::Reload), Outcome::Published { generation: 1 });
    assert_eq!(listeners(&sync), ["l1", "l2"]);
    let checked = check(&Source::from(directory.0.clone()), 0).expect("good");
    assert_eq!(checked.summary.listeners, 2);
    assert_eq!(checked.warnings, vec![]);
    let mut changes = watch(&sync.files()).expect("watched").changes;
    directory.write("c.toml", &short(3));
    assert_eq!(follow(&mut sync, &mut changes).await, Outcome::Published { generation: 2 });
    assert_eq!(listeners(&sync), ["l1", "l2", "l3"]);
    fs::remove_file(directory.0.join("a.toml")).expect("removed");
    assert_eq!(follow(&mut sync, &mut changes).await, Outcome::Published { generation: 3 });
    assert_eq!(listeners(&sync), ["l2", "l3"]);
    directory.write("gateway.yaml", OBJECTS);
    let outcome = follow(&mut sync, &mut changes).await;
    let Outcome::Rejected(why) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("has 3 files that end in .toml; one may be there"), "{why}");
}
