//! A gateway that is started as root and goes on as another user.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use nix::sys::signal::Signal;

use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, binary, echo, exchange, free_address, in_own_network,
    run_verb, wait_for,
};

/// Lets any user write the access log and read the configuration.
const OPENED: &[&str] = &["sh", "-c", r#"chmod 777 "$(dirname "$3")"; exec "$0" "$@""#];

fn forward(name: &str, address: SocketAddr, server: &Server) -> String {
    listener(name, "TCP", address, "")
        + &route(name, name, &[("main", 1)], "")
        + &if name == "first" { backend("main", [server.address], "") } else { String::new() }
}

/// A line of `/proc/PID/task/TID/status` of each thread.
fn of_threads(gateway: &Gateway, key: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("its threads");
    let mut values: Vec<_> = tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
        .map(|status| {
            let line = status.lines().find(|line| line.starts_with(key)).expect(key);
            line[key.len()..].trim().to_owned()
        })
        .collect();
    values.sort();
    values.dedup();
    values
}

#[test]
fn root_becomes_another_user_that_may_bind_low_ports_and_nothing_more() {
    let server = Server::tcp(echo);
    // Below 1024, and of a network that no other test uses.
    let low = |port| SocketAddr::from(([127, 83, 0, 1], port));
    let user = "user = \"nobody\"\n".to_owned();
    let first = user + &forward("first", low(81), &server);
    let gateway = Launch::default().socket().under(OPENED).start(&first);
    assert_eq!(exchange(low(81), b"as nobody").expect("an echo"), b"as nobody");

    let nobody = "65534\t65534\t65534\t65534";
    assert_eq!(of_threads(&gateway, "Uid:"), [nobody]);
    assert_eq!(of_threads(&gateway, "Gid:"), [nobody]);
    assert_eq!(of_threads(&gateway, "Groups:"), ["65534"]);
    // Threads that are older than the change have no capabilities, and start no program.
    assert!(of_threads(&gateway, "NoNewPrivs:").contains(&"1".to_owned()));
    // CAP_NET_BIND_SERVICE is bit 10. The main thread, which only waits, has none.
    let only = "0000000000000400".to_owned();
    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        let sets = of_threads(&gateway, set);
        assert!(sets.contains(&only), "{set} {sets:?}");
        assert!(
            sets.iter().all(|set| *set == only || set.trim_matches('0').is_empty()),
            "{sets:?}"
        );
    }
    let bounding = of_threads(&gateway, "CapBnd:");
    assert!(bounding.contains(&only), "{bounding:?}");

    // A reload may bring another low port, and the verbs work.
    let second = first.clone() + &forward("second", low(82), &server);
    gateway.reload(&second);
    assert_eq!(exchange(low(82), b"again").expect("an echo"), b"again");
    assert_eq!(gateway.asks(&["status"])["ready"], true);
    // What root could do is refused: a folder is root's alone.
    let folder = Folder::new();
    fs::set_permissions(folder.file(""), fs::Permissions::from_mode(0o700)).expect("its mode");
    let socket = folder.file("socket").display().to_string();
    let third = "[[listeners]]\nname = \"third\"\nprotocol = \"TCP\"\nbackends = [\"main\"]\n";
    gateway.write(&(second + third + &format!("address = \"unix:{socket}\"\n")));
    let refused = gateway.verb(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("ermission denied"), "{said}");
    assert_eq!(fs::read_dir(folder.file("")).expect("root's folder").count(), 0);
    assert!(gateway.metrics().value("process_open_fds", &[]) > 0);
}

/// With a backend that has `fast_path` at the start, the process keeps two capabilities more:
/// CAP_NET_ADMIN is bit 12, and CAP_BPF is bit 39. A `transparent` backend needs the first of them.
#[test]
fn the_user_keeps_what_fast_path_and_transparent_need() {
    in_own_network(|| {
        for (keys, kept) in [
            ("fast_path = \"off\"", "0000000000000400"),
            ("fast_path = \"auto\"", "0000008000001400"),
            ("transparent = true", "0000000000001400"),
        ] {
            let udp = "user = \"nobody\"\n".to_owned()
                + &listener("udp", "UDP", free_address(), "")
                + &route("udp", "udp", &[("udp", 1)], "")
                + &backend("udp", [free_address()], keys);
            let gateway = Launch::default().under(OPENED).start(&udp);
            for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
                let sets = of_threads(&gateway, set);
                assert!(sets.contains(&kept.to_owned()), "{keys} {set} {sets:?}");
            }
        }
    });
}

/// The values of a line of `/proc/PID/task/TID/status`, by the thread's name.
fn by_thread(process: u32, key: &str) -> BTreeMap<String, u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let values = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let name = fs::read_to_string(task.join("comm")).ok()?.trim().to_owned();
        let status = fs::read_to_string(task.join("status")).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(key)).expect(key);
        Some((name, value.trim().parse().expect("a number")))
    });
    values.collect()
}

const THREADS: [&str; 6] =
    ["ringway-0", "ringway-1", "ringway-control", "ringway-admin", "ringway-log", "ringway-start"];

#[test]
fn the_process_holds_itself_and_so_does_the_next_one() {
    let server = Server::tcp(echo);
    let address = free_address();
    let gateway = Launch::default().socket().start(&forward("first", address, &server));
    let mut process = gateway.pid();
    // What the test itself was started under is not the gateway's.
    let given = by_thread(std::process::id(), "Seccomp_filters:").into_values().max().unwrap_or(0);
    for upgrades in 0..3 {
        if upgrades > 0 {
            let answer = gateway.asks(&["upgrade"]);
            process =
                answer["process"].as_u64().and_then(|number| number.try_into().ok()).expect("one");
        }
        assert_eq!(exchange(address, b"held").expect("an echo"), b"held");
        // A thread gives itself its name.
        let filters = wait_for("the threads' names", || {
            let filters = by_thread(process, "Seccomp_filters:");
            THREADS.iter().all(|name| filters.contains_key(*name)).then_some(filters)
        });
        let held = by_thread(process, "NoNewPrivs:");
        for name in ["ringway-0", "ringway-1", "ringway-control", "ringway-admin"] {
            assert_eq!(filters[name], given + 2, "{name} after {upgrades} upgrades: {filters:?}");
        }
        // It is older than the rings, so the filter that forbids another ring came later.
        assert_eq!(filters["ringway-log"], given + 1, "after {upgrades} upgrades: {filters:?}");
        assert_eq!(filters["ringway-start"], given, "the next program begins anew");
        for name in THREADS {
            assert_eq!(held[name], 1, "{name}");
        }
    }
    // No other process sees whether Landlock holds a thread. Each process says so, once the kernel
    // has taken the rules, or that the kernel has none.
    let said = wait_for("each process says so", || {
        let said = gateway.stderr();
        (said.matches("system calls are filtered, ").count() >= 3).then_some(said)
    });
    let lines = || said.lines().filter(|line| line.contains("system calls are filtered, "));
    let held = ["no file is written", "the kernel has no Landlock"];
    let held = lines().filter(|line| held.iter().any(|words| line.contains(words)));
    assert_eq!((held.count(), lines().count()), (3, 3), "{said}");
}

#[test]
fn a_crash_leaves_no_core_dump() {
    let server = Server::tcp(echo);
    let config = forward("first", free_address(), &server);
    let mut gateway = Launch::default().under(&["prlimit", "--core=unlimited"]).start(&config);
    gateway.signal(Signal::SIGABRT);
    let status = wait_for("the end", || gateway.ended());
    assert!(status.signal().is_some() && !status.core_dumped(), "{status}");
}

#[test]
fn what_holds_the_process_can_be_switched_off() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = "sandbox = false\n".to_owned() + &forward("first", address, &server);
    let gateway = Gateway::start(&config);
    assert_eq!(exchange(address, b"free").expect("an echo"), b"free");
    let given = by_thread(std::process::id(), "Seccomp_filters:").into_values().max();
    assert_eq!(by_thread(gateway.pid(), "Seccomp_filters:").into_values().max(), given);
}

#[test]
fn a_key_that_only_root_can_read_is_refused_at_the_start() {
    let (folder, pki) = (Folder::new(), Pki::new());
    let issued = pki.issue(&["a.test"]);
    let key = folder.write("key.pem", &issued.key);
    let certificate = folder.write("cert.pem", &issued.cert);
    fs::set_permissions(folder.file(""), fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("its mode");
    let options = format!(
        "tls = {{ mode = \"Terminate\", certificates = [{{ cert = \"{}\", key = \"{}\" }}] }}",
        certificate.display(),
        key.display()
    );
    let config = "user = \"nobody\"\nadmin = { address = \"\" }\n".to_owned()
        + &listener("tls", "TLS", free_address(), &options)
        + &route("tls", "tls", &[("main", 1)], "")
        + &backend("main", [free_address()], "");
    let output = run(&folder, &config);
    assert!(output.contains("as that user"), "{output}");
    assert!(output.contains("key.pem") && output.contains("ermission denied"), "{output}");
}

/// Root's key of the admin API is read before the rights are given up. The user can't read it
/// later, and what was read before stays.
#[test]
fn the_key_of_the_admin_api_may_be_roots() {
    let (files, pki, server) = (Folder::new(), Pki::new(), Server::tcp(echo));
    let issued = pki.issue(&["127.0.0.1"]);
    let path = |name: &str, text: &str| files.write(name, text).display().to_string();
    let (ca, cert) = (path("ca.pem", &pki.ca()), path("cert.pem", &issued.cert));
    let key = path("key.pem", &issued.key);
    fs::set_permissions(files.file(""), fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("its mode");
    let address = free_address();
    let config = "user = \"nobody\"\n".to_owned() + &forward("first", address, &server);
    let keys = format!("cert = {cert:?}, key = {key:?}");
    let gateway = Launch::default().tls(&keys).under(OPENED).start(&config);
    assert_eq!(of_threads(&gateway, "Uid:"), ["65534\t65534\t65534\t65534"]);
    let https = format!("https://{}", gateway.admin);
    let asks = || run_verb(&["status", "--admin-ca", &ca], &https).status.success();
    assert!(asks());
    gateway.says("ermission denied");
    gateway.says("the certificate that was read before stays");
    assert!(asks());
    gateway.write(&config.replace("\"nobody\"\n", "\"nobody\"\nlame_duck = \"1s\"\n"));
    assert!(gateway.verb(&["reload"]).status.success() && asks(), "a reload needs no key");
}

#[test]
fn a_user_that_is_not_there_is_refused_with_its_place() {
    let folder = Folder::new();
    let output = run(&folder, "user = \"no-such-user\"\n");
    assert!(output.contains("1:8: user: this machine has no such user"), "{output}");
}

/// What the program says that does not start.
fn run(folder: &Folder, config: &str) -> String {
    let file = folder.write("ringway.toml", config);
    let output = Command::new(binary()).arg("run").arg(&file).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).expect("text")
}
