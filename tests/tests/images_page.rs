//! The live page in Chromium: `tests/page/page.mjs` looks at it, while this test makes the traffic.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Folder, Launch, Server, connect_from, echo, free_address, in_own_network, program, seconds,
    udp_from, wait_until,
};
use ringway_tests::sim::rng::Rng;

/// The folder with the script, and with Playwright beside it.
fn script() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
    let built = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&built).expect("a folder");
    for file in ["package.json", "package-lock.json", "page.mjs", "many.mjs", "pictures.mjs"] {
        std::fs::copy(folder.join(file), built.join(file)).expect(file);
    }
    let installed = Command::new("npm")
        .args(["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(&built)
        .status()
        .expect("npm");
    assert!(installed.success(), "npm ci: {installed}");
    built
}

#[test]
fn the_page_shows_what_happens_and_comes_back_with_the_gateway() {
    let script = script();
    let server = Server::tcp(echo);
    let address = free_address();
    let gateway = Launch::default().socket().start(&forward("TCP", address, [server.address], ""));
    let mut clients: Vec<_> = ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.1"]
        .map(|ip| connect_from(ip, address))
        .into();
    wait_until("the sessions are there", || gateway.asks(&["sessions"])[3].is_object());
    let killed = gateway.asks(&["sessions", "--client", "127.0.0.1"]);
    let id = killed[0]["id"].as_str().expect("an id").to_owned();
    assert!(gateway.verb(&["kill", &id]).status.success());

    let pictures = Folder::new();
    let mut browser = Command::new("node")
        .arg("page.mjs")
        .arg(format!("http://{}/", gateway.admin))
        .arg(pictures.file(""))
        .current_dir(&script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node");
    let mut lines = BufReader::new(browser.stdout.take().expect("its stdout")).lines();
    let mut steps = browser.stdin.take().expect("its stdin");
    let mut sees = |word: &str| {
        let line = lines.next().and_then(Result::ok);
        assert_eq!(line.as_deref(), Some(word), "what the browser says");
    };
    sees("loaded");
    clients.push(connect_from("127.0.0.3", address));
    writeln!(steps).expect("the next step");
    sees("live");
    sees("filtered");
    sees("dark");
    gateway.signal(Signal::SIGSTOP);
    writeln!(steps).expect("the next step");
    sees("gone");
    gateway.signal(Signal::SIGCONT);
    writeln!(steps).expect("the next step");
    sees("back");
    assert!(browser.wait().expect("its end").success());
    for name in ["light", "dark", "phone"] {
        let size = pictures.file(&format!("{name}.png")).metadata().expect(name).len();
        assert!(size > 10_000, "{name}.png has {size} bytes");
    }
}

/// A gateway with 1,000 endpoints, some of which are down: the page shows them, and stays quick.
#[test]
fn the_page_shows_many_endpoints() {
    const BACKENDS: usize = 20;
    let script = script();
    let dead = free_address();
    let mut config = listener("main", "TCP", free_address(), "");
    let names: Vec<_> = (0..BACKENDS).map(|number| format!("backend-{number}")).collect();
    let shares: Vec<_> = names.iter().map(|name| (&**name, 1)).collect();
    config += &route("main", "main", &shares, "");
    for (number, name) in names.iter().enumerate() {
        // Addresses of this machine, without a server; those of some backends are checked.
        let endpoints = (1..=1_000 / BACKENDS).map(|host| {
            let ip = format!("127.1.{number}.{host}").parse().expect("an address");
            SocketAddr::new(ip, dead.port())
        });
        let check = "health_check = { type = \"tcp\", interval = \"5s\", fall = 1 }";
        config += &backend(name, endpoints, if number < 3 { check } else { "" });
    }
    let gateway = Launch::default().socket().start(&config);
    let pictures = Folder::new();
    let browser = Command::new("node")
        .arg("many.mjs")
        .arg(format!("http://{}/", gateway.admin))
        .arg(pictures.file(""))
        .current_dir(&script)
        .status()
        .expect("node");
    assert!(browser.success(), "{browser}");
}

/// Makes the pictures of the page in `images/page`, of a gateway with five minutes of traffic.
/// Needs root: `cargo test --workspace --test images_page pictures -- --ignored`.
#[test]
#[ignore = "it takes five minutes, and writes into the tree"]
fn pictures() {
    let script = script();
    in_own_network(move || {
        // All addresses of these networks are this machine's.
        for network in ["10.0.0.1/8", "192.0.2.1/24", "198.51.100.1/24"] {
            program("ip", &["address", "add", network, "dev", "lo"]);
        }
        take_pictures(&script);
    });
}

const SHOWN: &str = r#"
[[listeners]]
name = "postgres"
protocol = "TCP"
address = "192.0.2.10:5432"
backends = [{ name = "pg-a", weight = 90 }, { name = "pg-b", weight = 10 }]

[[listeners]]
name = "redis"
protocol = "TCP"
address = "192.0.2.10:6379"
endpoints = ["10.0.1.11:6379", "10.0.1.12:6379"]
balance = "least-connections"

[[listeners]]
name = "dns"
protocol = "UDP"
address = "192.0.2.10:53"
responses = 1
endpoints = ["10.0.2.53:53", "10.0.3.53:53"]

[[backends]]
name = "pg-a"
endpoints = ["10.0.0.11:5432", "10.0.0.12:5432", "10.0.0.13:5432"]
health_check = { interval = "1s" }

[[backends]]
name = "pg-b"
endpoints = ["10.0.0.21:5432"]
"#;

/// Of `10.0.0.13:5432` there is no server.
fn take_pictures(script: &Path) {
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let _postgres = ["10.0.0.11:5432", "10.0.0.12:5432", "10.0.0.21:5432"]
        .map(|to| Server::tcp_at(at(to), echo));
    let _redis = ["10.0.1.11:6379", "10.0.1.12:6379"].map(|to| Server::tcp_at(at(to), echo));
    let _dns = ["10.0.2.53:53", "10.0.3.53:53"]
        .map(|to| Server::udp_at(at(to), |socket, bytes, peer| _ = socket.send_to(bytes, peer)));
    let gateway = Launch::default().socket().start(SHOWN);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..40 {
            let (over, mut rng) = (&over, Rng::new(n));
            let from = format!("198.51.100.{}", 10 + n / 2);
            scope.spawn(move || match n {
                // A few talk for long, and many for a moment.
                0..12 => sessions(over, &from, at("192.0.2.10:5432"), (&mut rng, 120, 32_000)),
                12..32 => sessions(over, &from, at("192.0.2.10:6379"), (&mut rng, 12, 500)),
                _ => queries(over, &from, at("192.0.2.10:53"), &mut rng),
            });
        }
        let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/page");
        let browser = Command::new("node")
            .arg("pictures.mjs")
            .arg(format!("http://{}/", gateway.admin))
            .arg(pictures)
            .arg(seconds(305).to_string())
            .current_dir(script)
            .status();
        over.store(true, Ordering::Relaxed);
        assert!(browser.expect("node").success());
    });
}

/// One session after another, of so many exchanges at most, each of so many bytes at most.
fn sessions(over: &AtomicBool, from: &str, to: SocketAddr, how: (&mut Rng, u64, u64)) {
    let (rng, exchanges, bytes) = how;
    while !over.load(Ordering::Relaxed) {
        let mut stream = connect_from(from, to);
        for _ in 0..rng.between(1, exchanges) {
            let len = usize::try_from(rng.between(bytes / 10, bytes)).expect("it fits");
            let sent = vec![b'x'; len];
            stream.write_all(&sent).expect("sending");
            stream.read_exact(&mut vec![0; len]).expect("the echo");
            if over.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(rng.between(20, 200)));
        }
        drop(stream);
        std::thread::sleep(Duration::from_millis(rng.between(10, 1_000)));
    }
}

fn queries(over: &AtomicBool, from: &str, to: SocketAddr, rng: &mut Rng) {
    while !over.load(Ordering::Relaxed) {
        let socket = udp_from(from, to);
        socket.send(&[b'q'; 60]).expect("sending");
        socket.recv(&mut [0; 512]).expect("an answer");
        std::thread::sleep(Duration::from_millis(rng.between(50, 500)));
    }
}
