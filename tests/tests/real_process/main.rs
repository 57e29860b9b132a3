//! The program itself: its commands, its log, and what it needs of the machine.

mod check;
mod demo;
mod log;
mod start;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Folder, Gateway, Server, SetWhenDropped, binary, connect, echo, exchange, free_address,
    limited, now, udp_client, wait_until,
};

/// As container runtimes do it: a seccomp filter in front of io_uring_setup(2); its number is the
/// same on every architecture.
const WITHOUT_IO_URING: &str = "
import ctypes, os, struct, sys
def instruction(code, yes, no, value): return struct.pack('HBBI', code, yes, no, value)
program = (instruction(0x20, 0, 0, 0) + instruction(0x15, 0, 1, 425)
    + instruction(0x06, 0, 0, 0x00050000 | int(sys.argv[1])) + instruction(0x06, 0, 0, 0x7fff0000))
code = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack('HxxxxxxP', 4, ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
";

const EPERM: &str = "1";

fn ringway(arguments: &[&str]) -> Output {
    limited(binary()).args(arguments).output().expect("the binary")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sockets, pipes and descriptors are back where they were when sessions of all kinds are over.
#[test]
fn nothing_leaks() {
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let address = free_address();
    let config = listener("tcp", "TCP", address, "")
        + &listener("udp", "UDP", address, "responses = 1\nflow_timeout = \"1s\"")
        + &route("tcp", "tcp", &[("tcp", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("tcp", [tcp.address], "")
        + &backend("udp", [udp.address], "")
        + "[limits]\npipes = 2\n";
    let gateway = Gateway::start(&config);
    // By kind, as "socket" and "pipe".
    let open = || {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()));
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for entry in folder.expect("the process runs").flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let kind = target.display().to_string();
            *kinds.entry(kind.split(':').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        kinds
    };
    let round = || {
        for at in 0..200 {
            let mut session = connect(address);
            session.write_all(&vec![1; 200_000]).expect("sent");
            if at % 2 == 0 {
                // Leaves with bytes under way in both directions.
                let reset = Some(Duration::ZERO);
                socket2::SockRef::from(&session).set_linger(reset).expect("SO_LINGER");
            }
            drop(session);
            assert_eq!(exchange(address, b"clean").expect("an echo"), b"clean");
            let _ = udp_client(address).send(b"?");
        }
        wait_until("all is over", || {
            let metrics = gateway.metrics();
            metrics.value("ringway_sessions_active", &[]) == 0
                && metrics.value("ringway_flows_active", &[]) == 0
                && metrics.value("ringway_pipes_used", &[]) == 0
        });
    };
    let pipes = open().get("pipe").copied().unwrap_or_default();
    // The first round opens what is kept. Pipes are pooled: two ends of two on each of two workers.
    round();
    let mut before = open();
    before.insert("pipe".into(), pipes + 2 * 2 * 2);
    round();
    round();
    wait_until(&format!("no more than {before:?} is open"), || {
        open().iter().all(|(kind, count)| before.get(kind).is_some_and(|limit| count <= limit))
    });
}

/// Whoever only holds connections to the admin API open, with nothing or half a request said, or
/// does not read an answer, keeps no probe out, and no file for long.
#[test]
fn hostile_connections_to_the_admin_api_keep_no_probe_out() {
    const HELD: usize = 300;
    let gateway = Gateway::start("");
    let files = || std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("fds").count();
    let before = files();
    let said = ["", "GET /metr", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"];
    let mut held = Vec::new();
    for n in 0..HELD {
        let mut stream = connect(gateway.admin);
        stream.write_all(said[n % said.len()].as_bytes()).expect("it is accepted");
        held.push(stream);
        if n % 20 == 0 {
            assert_eq!(gateway.get("/readyz").map(|(status, _)| status), Some(200), "after {n}");
        }
    }
    assert!(files() < before + 160, "{} files for {HELD} connections", files() - before);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(gateway.get(path).map(|(status, _)| status), Some(200), "{path}");
    }
    // Of themselves, while they are still held by their client.
    wait_until("all are closed", || files() <= before);
    drop(held);
}

/// Probes beside 1,000 connections that say nothing or half of something, and beside large answers
/// about 10,000 endpoints.
#[test]
fn probes_answer_within_100_ms_whatever_else_is_asked() {
    const BACKENDS: u8 = 10;
    let mut config = String::new();
    for at in 0..BACKENDS {
        let name = format!("b{at}");
        let hosts = (0..4u8).flat_map(|high| (0..250u8).map(move |low| (high, low)));
        let addresses = hosts.map(|(high, low)| SocketAddr::from(([127, 1 + at, high, low], 9)));
        config += &listener(&name, "TCP", free_address(), "");
        config += &route(&name, &name, &[(&name, 1)], "");
        config += &backend(&name, addresses, "");
    }
    let gateway = Gateway::start(&config);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = SetWhenDropped(&over);
        for path in ["/metrics", "/api/v1/endpoints", "/api/v1/backends"] {
            let (gateway, over) = (&gateway, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    _ = gateway.get(path);
                }
            });
        }
        let said = ["", "GET /metr", "GET /api/v1/endpoints HTTP/1.1\r\nHost: x\r\n\r\n"];
        let mut held = Vec::new();
        let mut took = Vec::new();
        for n in 0..1_000 {
            let mut stream = connect(gateway.admin);
            _ = stream.write_all(said[n % said.len()].as_bytes());
            held.push(stream);
            if n % 20 == 0 {
                let began = now();
                let path = ["/healthz", "/readyz"][n / 20 % 2];
                assert_eq!(gateway.get(path).map(|(status, _)| status), Some(200), "after {n}");
                took.push(began.elapsed());
            }
        }
        took.sort_unstable();
        eprintln!("probes: median {:?}, longest {:?}", took[took.len() / 2], took[took.len() - 1]);
        // The machine of the test has other work too, so one in ten may be late.
        assert!(took[took.len() * 9 / 10] < Duration::from_millis(100), "{took:?}");
    });
}

#[test]
fn every_command_has_a_manual_page_that_man_reads_without_warnings() {
    let folder = Folder::new();
    let directory = folder.file("man1");
    std::fs::create_dir(&directory).expect("a directory");
    let output = ringway(&["man", &directory.display().to_string()]);
    assert!(output.status.success(), "{output:?}");
    let pages: Vec<_> = std::fs::read_dir(&directory).expect("pages").flatten().collect();
    let names: Vec<_> =
        pages.iter().map(|page| page.file_name().to_string_lossy().into_owned()).collect();
    for name in ["ringway.1", "ringway-run.1", "ringway-why.1", "ringway-diff.1", "ringway-kill.1"]
    {
        assert!(names.iter().any(|of| of == name), "{name} is not in {names:?}");
    }
    for page in pages {
        let text = std::fs::read_to_string(page.path()).expect("a page");
        assert!(text.contains(".TH ") && text.contains(".SH NAME"), "{text}");
        // Not every machine has groff.
        let Ok(read) = limited("groff").args(["-man", "-Tutf8", "-ww"]).arg(page.path()).output()
        else {
            continue;
        };
        if read.status.code() == Some(127) {
            continue;
        }
        let said = String::from_utf8_lossy(&read.stderr);
        assert!(read.status.success() && said.trim().is_empty(), "{page:?}: {said}");
    }
    let nowhere = ringway(&["man", "/nonexistent"]);
    let said = text(&nowhere.stderr);
    assert!(!nowhere.status.success() && said.contains("/nonexistent"), "{said}");
}
