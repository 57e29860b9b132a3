//! The live page in Chromium: `tests/page/page.mjs` looks at it, while this test makes the traffic.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{Folder, Launch, Server, connect_from, echo, free_address, wait_until};

/// The folder with the script, and with Playwright beside it.
fn script() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
    let built = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&built).expect("a folder");
    for file in ["package.json", "package-lock.json", "page.mjs", "many.mjs"] {
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
            std::net::SocketAddr::new(ip, dead.port())
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
