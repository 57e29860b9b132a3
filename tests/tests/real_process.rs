//! The program itself: its commands, its log, and what it needs of the machine.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Folder, Gateway, Launch, Lines, LogLine, Server, binary, client_hello, connect, echo, exchange,
    free_address, is_root, limited, program, udp_client, wait_for, wait_until, was_reset,
};
use serde_json::Value;

fn ringway(arguments: &[&str]) -> Output {
    limited(binary()).args(arguments).output().expect("the binary")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn check_says_every_error_at_once() {
    let folder = Folder::new();
    let bad = "[[listeners]]\n\
               name = \"a\"\n\
               protocol = \"SCTP\"\n\
               address = \"127.0.0.1\"\n\
               colour = \"blue\"\n\
               \n\
               [[listeners]]\n\
               name = \"b\"\n\
               protocol = \"TCP\"\n\
               address = \"127.0.0.1:7000\"\n\
               idle_timeout = 5\n\
               \n\
               [[routes]]\n\
               name = \"b\"\n\
               listeners = [\"b\", \"nobody\"]\n\
               backends = [{ name = \"absent\", weight = 1 }]\n\
               \n\
               [[routes]]\n\
               name = \"c\"\n\
               backends = [{ name = \"absent\", weight = 2000000 }]\n";
    let file = folder.write("bad.toml", bad).display().to_string();
    let output = ringway(&["check", &file]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout) + &text(&output.stderr);
    // The line of each fault, with some column, and the word in question.
    let faults = [
        (3, "protocol"),
        (4, "address"),
        (5, "colour"),
        (11, "idle_timeout"),
        (15, "nobody"),
        (16, "absent"),
        (20, "weight"),
    ];
    for (line, word) in faults {
        let place = format!("{file}:{line}:");
        let found = said.lines().any(|text| {
            let Some(rest) = text.strip_prefix(&place) else { return false };
            rest.starts_with(|first: char| first.is_ascii_digit()) && rest.contains(word)
        });
        assert!(found, "nothing of {word} in line {line}:\n{said}");
    }

    let good = forward("TCP", free_address(), [free_address()], "");
    let file = folder.write("good.toml", &good).display().to_string();
    let output = ringway(&["check", &file]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(ringway(&["check", "/nonexistent.toml"]).status.code(), Some(1));
}

#[test]
fn run_refuses_a_bad_file() {
    let folder = Folder::new();
    let file = folder.write("bad.toml", "[[listeners]]\nname = 5\n").display().to_string();
    let output = ringway(&["run", "--config", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("{file}:2:")), "{}", text(&output.stderr));
}

#[test]
fn check_takes_several_files_and_stdin_and_may_be_strict() {
    let folder = Folder::new();
    let good = forward("TCP", free_address(), [free_address()], "");
    let good = folder.write("good.toml", &good).display().to_string();
    let doubtful = folder.write("doubtful.toml", "drain_timeout = \"9s\"\n").display().to_string();
    let bad = folder.write("bad.toml", "colour = 1\n").display().to_string();
    let worse = folder.write("worse.toml", "[[listeners]]\n").display().to_string();

    let output = ringway(&["check", &bad, &good, &worse]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(&format!("{good}: valid")), "{output:?}");
    let faults = text(&output.stderr);
    assert!(faults.contains(&format!("{bad}:1:1: colour")), "{faults}");
    assert!(faults.contains(&format!("{worse}:1:")), "{faults}");

    assert_eq!(ringway(&["check", &good, &doubtful]).status.code(), Some(0));
    assert_eq!(ringway(&["check", "--strict", &good]).status.code(), Some(0));
    let strict = ringway(&["check", "--strict", &good, &doubtful]);
    assert_eq!(strict.status.code(), Some(1));
    let said = text(&strict.stderr);
    assert!(said.contains(&format!("{doubtful}: warnings (--strict): 1")), "{said}");

    let script = "cat \"$1\" | \"$0\" check -";
    let piped = limited("sh").args(["-c", script]).arg(binary()).arg(&bad).output().expect("sh");
    assert!(text(&piped.stderr).contains("the pipe:1:1: colour"), "{piped:?}");
}

#[test]
fn check_tells_machines_each_finding_with_its_place() {
    let folder = Folder::new();
    let good = forward("TCP", free_address(), [free_address()], "");
    let good = folder.write("good.toml", &good).display().to_string();
    let doubtful = folder.write("doubtful.toml", "drain_timeout = \"9s\"\n").display().to_string();
    let bad = "colour = 1\n[[listeners]]\nprotocol = \"TCQ\"\n";
    let bad = folder.write("bad.toml", bad).display().to_string();
    let output = ringway(&["check", "--json", &bad, &good, &doubtful, "/nonexistent.toml"]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(1), 0), "{output:?}");
    let reports: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let valid: Vec<_> = (0..4).map(|at| reports[at]["valid"].as_bool()).collect();
    assert_eq!(valid, [Some(false), Some(true), Some(true), Some(false)], "{reports}");
    let first = &reports[0]["findings"][0];
    assert_eq!((first["file"].as_str(), first["severity"].as_str()), (Some(&*bad), Some("fault")));
    assert_eq!((first["line"].as_u64(), first["column"].as_u64()), (Some(1), Some(1)));
    assert_eq!(first["field"], "colour");
    let all = reports[0]["findings"].as_array().expect("findings");
    let of_protocol = all.iter().find(|of| of["field"] == "listeners[0].protocol");
    assert_eq!(of_protocol.map(|of| of["line"].as_u64()), Some(Some(3)), "{all:?}");
    assert_eq!(reports[1]["findings"], Value::Array(Vec::new()));
    assert_eq!(reports[2]["findings"][0]["severity"], "warning", "{reports}");
    assert!(
        reports[3]["findings"][0]["message"].as_str().is_some_and(|of| of.contains("nonexist"))
    );
    assert_eq!(ringway(&["check", "--json", &good, &doubtful]).status.code(), Some(0));
    assert_eq!(ringway(&["check", "--json", "--strict", &doubtful]).status.code(), Some(1));
}

#[test]
fn doctor_judges_the_machine_and_the_timeouts_of_a_file() {
    let output = ringway(&["doctor", "--json"]);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks: Vec<_> = findings.iter().filter_map(|one| one["check"].as_str()).collect();
    for check in ["kernel", "steering", "open files", "locked memory", "net.core.somaxconn"] {
        assert!(checks.contains(&check), "{check} is not in {checks:?}");
    }
    // Ringway runs on this machine, or no other test here would pass.
    assert!(findings.iter().all(|one| one["state"] != "fault"), "{findings:?}");
    assert_eq!(output.status.code(), Some(0));

    let folder = Folder::new();
    let config = forward("TCP", free_address(), [free_address()], "keepalive = \"0s\"");
    let file = folder.write("ringway.toml", &config).display().to_string();
    let output = ringway(&["doctor", "--strict", "--config", &file]);
    let said = text(&output.stdout);
    assert!(said.contains("listener main: no keepalive probe is sent"), "{said}");
    assert_eq!(output.status.code(), Some(1), "a warning is a failure with --strict");
    let run = ["-c", WITHOUT_IO_URING, EPERM, &binary().display().to_string(), "doctor"];
    let output = limited("python3").args(run).output().expect("python3");
    assert!(text(&output.stdout).contains("FAULT    kernel "), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
}

/// What is no regular file is refused at once, wherever it is named; but for a pipe that the
/// command line names, which is read once.
#[test]
fn a_pipe_is_read_once_and_a_fifo_stops_nothing() {
    let (folder, server, address) = (Folder::new(), Server::tcp(echo), free_address());
    let config = forward("TCP", address, [server.address], "");
    let good = folder.write("good.toml", &config).display().to_string();
    let shell = |command: &str| {
        let script = format!("\"$0\" {command} <(cat \"$1\")");
        limited("bash").args(["-c", &script]).arg(binary()).arg(&good).output().expect("bash")
    };
    let output = shell("check");
    assert!(output.status.success(), "{}", text(&output.stderr));
    // As of a file, what is hardly meant is said.
    let file = folder.write("good.toml", "drain_timeout = \"9s\"\n").display().to_string();
    let [of_pipe, of_file] = [shell("check"), ringway(&["check", &file])];
    assert!(text(&of_pipe.stderr).contains("the pipe:1:1: warning: "), "{of_pipe:?}");
    assert_eq!(
        text(&of_pipe.stderr).replace("the pipe", &file),
        text(&of_file.stderr),
        "the same is said of both"
    );
    folder.write("good.toml", "");
    let output = shell("check");
    assert!(text(&output.stderr).contains("the pipe: the file is empty"), "{output:?}");
    let fifo = folder.file("fifo");
    program("mkfifo", &[&fifo.display().to_string()]);
    let fifo = "{ cert = \"fifo\", key = \"fifo\" }";
    let tls = &format!("tls = {{ mode = \"Terminate\", certificates = [{fifo}] }}");
    let config = forward("TLS", address, [server.address], tls);
    let file = folder.write("ringway.toml", &config).display().to_string();
    let output = ringway(&["check", &file]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("fifo can't be read: it is a FIFO"), "{said}");
}

/// A file may be meant for another machine.
#[test]
fn a_core_that_is_not_there_is_a_warning_and_nothing_runs() {
    let (folder, server) = (Folder::new(), Server::tcp(echo));
    let config = "workers.cores = [0, 4095]\n".to_owned()
        + &forward("TCP", free_address(), [server.address], "");
    let file = folder.write("ringway.toml", &config).display().to_string();
    let place = format!("{file}:1:21: ");
    let what = "workers.cores[1]: core 4095 is not usable";
    let output = ringway(&["check", &file]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&place) && said.contains(what), "{said}");
    let output = ringway(&["run", "--config", &file]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&place) && said.contains(what), "{said}");
}

/// Keys that need a restart are compared with what runs, not with the file before.
#[test]
fn keys_that_need_a_restart_are_compared_with_what_runs() {
    let (server, address) = (Server::tcp(echo), free_address());
    let config = |top: &str| top.to_owned() + &forward("TCP", address, [server.address], "");
    let gateway = Gateway::start(&config(""));
    // Of the latest reload: on a busy machine one change may be two, by the watch and by SIGHUP.
    let said = || {
        let said = gateway.stderr();
        let before = said.rsplit(" is in force\n").nth(1).unwrap_or_default();
        before.contains("limits is not what runs")
    };
    gateway.reload(&config("limits = { sessions = 10 }\n"));
    wait_until("it is not what runs", said);
    gateway.reload(&config("limits = { sessions = 10 }\nlame_duck = \"9s\"\n"));
    wait_until("it still is not what runs", said);
    gateway.reload(&config(""));
    wait_until("it is what runs again", || !said());
}

/// A killed gateway's listeners are in use for some milliseconds more, while the kernel ends its
/// rings. Another's stay in use.
#[test]
fn run_waits_for_the_addresses_of_a_killed_one_and_for_no_others() {
    let (server, tcp, udp) = (Server::tcp(echo), free_address(), free_address());
    let config = forward("TCP", tcp, [server.address], "")
        + &listener("dns", "UDP", udp, "")
        + &route("dns", "dns", &[("dns", 1)], "")
        + &backend("dns", [server.address], "");
    for _ in 0..10 {
        // Dropped, that is killed, at the end of each turn.
        let gateway = Gateway::start(&config);
        assert_eq!(exchange(tcp, b"hello").expect("an answer"), b"hello");
        wait_until("it says that it is ready", || gateway.stderr().contains("ready"));
    }
    let _another = (
        wait_for("the TCP address to be free", || TcpListener::bind(tcp).ok()),
        wait_for("the UDP address to be free", || UdpSocket::bind(udp).ok()),
    );
    for (taken, protocol) in [(tcp, "TCP"), (udp, "UDP")] {
        let folder = Folder::new();
        let admin = format!("admin = {{ address = \"{}\" }}\n", free_address());
        let config = admin + &forward(protocol, taken, [server.address], "");
        let file = folder.write("taken.toml", &config).display().to_string();
        let output = ringway(&["run", "--config", &file]);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains(&format!("cannot listen on {protocol} {taken}")), "{said}");
        assert!(said.contains("another process listens there"), "{said}");
    }
}

#[test]
fn features_are_listed_and_can_be_masked() {
    let output = ringway(&["features"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed = text(&output.stdout);
    assert!(listed.lines().count() > 2, "{listed}");
    let optional = listed.lines().find(|line| line.contains("6.6")).expect("one newer than 6.1");
    let optional = optional.split_whitespace().next().expect("its name");
    let masked = text(&ringway(&["features", "--without", optional]).stdout);
    let line = masked.lines().find(|line| line.starts_with(optional)).expect("it is listed still");
    assert!(line.contains("masked"), "{line}");
    let output = ringway(&["features", "--without", "nonsense"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("nonsense"), "{}", text(&output.stderr));
}

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

/// Where io_uring is refused the error says so and what to change, and nothing is half started.
#[test]
fn refused_io_uring_is_one_clear_error() {
    const ENOSYS: &str = "38";
    let folder = Folder::new();
    let config = forward("TCP", free_address(), [free_address()], "");
    let file = folder.write("ringway.toml", &config).display().to_string();
    let binary = binary().display().to_string();
    for (errno, word) in [(EPERM, "seccomp"), (ENOSYS, "io_uring")] {
        let run = ["-c", WITHOUT_IO_URING, errno, &binary, "run", "--config", &file];
        let output = limited("python3").args(run).output().expect("python3");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("io_uring") && said.contains(word), "{said}");
        assert_eq!(said.matches("ringway: ").count(), 1, "one error: {said}");
    }
}

/// A user with no rights at all, on ports of 1024 and above.
#[test]
fn runs_without_root() {
    if !is_root() {
        return; // Then every other test has shown it.
    }
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let address = free_address();
    let config = listener("tcp", "TCP", address, "")
        + &listener("udp", "UDP", address, "")
        + &route("tcp", "tcp", &[("tcp", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("tcp", [tcp.address], "")
        + &backend("udp", [udp.address], "");
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let wrapper = [&nobody[..], &["env", "-i"]].concat();
    let gateway = Launch::default().under(&wrapper).start(&config);
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid()));
    let status = status.expect("the process runs");
    assert!(status.contains("Uid:\t65534\t65534") && status.contains("CapEff:\t0000000000000000"));
    let large = vec![7; 10_000_000];
    let mut session = connect(address);
    let mut writing = session.try_clone().expect("a descriptor");
    let sent = large.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(&sent).expect("sent");
        writing.shutdown(std::net::Shutdown::Write).expect("a FIN");
    });
    let mut back = Vec::new();
    session.read_to_end(&mut back).expect("an echo");
    writer.join().expect("no panic");
    assert!(back == large);
    let socket = udp_client(address);
    socket.send(b"datagram").expect("sent");
    let mut answer = [0; 16];
    assert_eq!(socket.recv(&mut answer).expect("an echo"), 8);
    gateway.stop();
}

/// The log goes to a pipe that nobody reads: traffic does not stop, lines are dropped and counted,
/// and the process ends when it is told to.
#[test]
fn blocked_log_stops_nothing() {
    let server = Server::udp_echo();
    let (address, tcp) = (free_address(), Server::tcp(echo));
    // The port of a flow that is over is the next one's soon: there are many, one behind the other.
    let config = listener("udp", "UDP", address, "responses = 1")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("udp", [server.address], "upstream_rest = \"100ms\"")
        + &listener("tcp", "TCP", address, "")
        + &route("tcp", "tcp", &[("tcp", 1)], "")
        + &backend("tcp", [tcp.address], "");
    let mut gateway = Launch::default().blocked_log().start(&config);
    let dropped = || gateway.metrics().value("ringway_log_lines_dropped_total", &[]);
    // Every flow is a line; the queues before the pipe take some ten thousands of them.
    let (mut flows, socket) = (0_u64, udp_client(address));
    let mut answer = [0; 16];
    while flows % 1000 != 0 || dropped() == 0 {
        socket.send(b"question").expect("sent");
        socket.recv(&mut answer).expect("an answer");
        flows += 1;
        assert!(flows < 1_000_000, "a million lines, and none was dropped");
    }
    eprintln!("{} of {flows} lines dropped", dropped());
    for _ in 0..100 {
        assert_eq!(exchange(address, b"goes on").expect("an echo"), b"goes on");
    }
    gateway.signal(Signal::SIGTERM);
    let status = wait_for("the gateway's end", || gateway.ended());
    assert!(status.success(), "{status}");
}

/// Every session and flow has one close line, whatever became of it, and the metrics agree.
#[test]
fn log_and_metrics_account_for_every_session() {
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let (address, tls, dead) = (free_address(), free_address(), free_address());
    let config = listener("tcp", "TCP", address, "")
        + &listener("udp", "UDP", address, "responses = 1")
        + &listener("tls", "TLS", tls, "")
        + &listener("dead", "TCP", dead, "")
        + &route("tcp", "tcp", &[("tcp", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &route("tls", "tls", &[("tcp", 1)], "hostnames = [\"a.example.com\"]")
        + &route("dead", "dead", &[("dead", 1)], "")
        + &backend("tcp", [tcp.address], "")
        + &backend("udp", [udp.address], "")
        + &backend("dead", [free_address()], "");
    let gateway = Gateway::start(&config);
    for _ in 0..200 {
        assert_eq!(exchange(address, b"counted").expect("an echo"), b"counted");
        let (socket, mut answer) = (udp_client(address), [0; 16]);
        socket.send(b"datagram").expect("sent");
        socket.recv(&mut answer).expect("an echo");
        let hello = client_hello(Some("a.example.com"));
        assert_eq!(exchange(tls, &hello).expect("an echo"), hello);
    }
    // Few enough that none of these lines is held back.
    for _ in 0..3 {
        assert!(was_reset(&mut connect(dead)));
    }
    let lines = gateway.closes(603);
    let counts = complete_lines_by_reason(&lines);
    let bytes = |name: &str, field: &str| -> u64 {
        let of = lines.iter().filter(|line| line.text("listener") == Some(name));
        of.map(|line| line.number(field)).sum()
    };
    assert_eq!((bytes("tcp", "bytes_up"), bytes("tcp", "bytes_down")), (1400, 1400));
    assert_eq!((bytes("udp", "bytes_up"), bytes("udp", "bytes_down")), (1600, 1600));
    let metrics = gateway.metrics();
    for ((name, reason), count) in &counts {
        let labels = [("listener", name.as_str()), ("reason", reason.as_str())];
        let counted: u64 = [
            "ringway_sessions_closed_total",
            "ringway_sessions_refused_total",
            "ringway_flows_closed_total",
            "ringway_flows_refused_total",
        ]
        .iter()
        .map(|metric| metrics.value(metric, &labels))
        .sum();
        assert_eq!(counted, *count, "{name} {reason}");
    }
    assert_eq!(metrics.value("ringway_connections_accepted_total", &[]), 403);
    assert_eq!(metrics.value("ringway_sessions_active", &[]), 0);
    assert_eq!(metrics.value("ringway_flows_active", &[]), 0);
    for (listener, each) in [("tcp", 7), ("tls", client_hello(Some("a.example.com")).len() as u64)]
    {
        for side in ["client", "endpoint"] {
            let labels = [("listener", listener), ("side", side)];
            assert_eq!(metrics.value("ringway_relayed_bytes_total", &labels), 200 * each);
        }
    }
    assert_eq!(gateway.stop().len(), 603, "a line came late or twice");
}

/// Checks that each line has all its fields; counts them by listener and reason.
fn complete_lines_by_reason(lines: &[LogLine]) -> BTreeMap<(String, String), u64> {
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in lines {
        let name = line.text("listener").expect("a listener").to_owned();
        let reason = line.text("reason").expect("a reason").to_owned();
        *counts.entry((name, reason)).or_default() += 1;
        for field in ["ts", "event", "protocol", "client", "local", "route", "backend"] {
            assert!(line.has(field), "no {field}: {line:?}");
        }
        for field in ["endpoint", "bytes_up", "bytes_down", "duration_ms", "worker"] {
            assert!(line.has(field), "no {field}: {line:?}");
        }
        assert!(line.text("client").is_some_and(|at| at.parse::<SocketAddr>().is_ok()));
    }
    counts
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
                let reset = Some(std::time::Duration::ZERO);
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

/// `ringway demo` as a child process, interrupted when dropped.
struct Demo {
    child: Child,
    says: Lines,
}

impl Demo {
    /// Starts it on free ports and returns it with what it prints before it gets to work.
    fn start() -> (Self, String) {
        let mut command = Command::new(binary());
        command.arg("demo");
        for option in ["--tcp-port", "--udp-port", "--tls-port", "--admin-port"] {
            command.args([option, &free_address().port().to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the binary");
        let says = Lines::of(child.stdout.take().expect("its output"));
        let mut printed = String::new();
        while !printed.contains("Ctrl-C ends the demo") {
            printed += &says.take();
            printed.push('\n');
        }
        (Self { child, says }, printed)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every command that it prints is tried as it stands, and answers as the line below it says.
#[test]
fn demo_keeps_its_word() {
    let (mut demo, printed) = Demo::start();
    let mut tried = 0;
    let mut lines = printed.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(command) = line.strip_prefix("  ").filter(|line| !line.starts_with(' ')) else {
            continue;
        };
        let mut promise = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with("      ")) {
            promise += line.trim_start();
        }
        // Typed by hand the line would come before the end of input by a while.
        let typed = format!("(echo typed; sleep 1) | timeout 3 {command} 2>/dev/null || true");
        let answer = wait_for(command, || {
            let answer = program("sh", &["-c", &typed]);
            (!answer.is_empty()).then_some(answer)
        });
        if let Some(quoted) = promise.split('"').nth(1) {
            assert!(answer.contains(quoted), "{command} said {answer}");
        }
        if promise.contains("line") {
            assert!(answer.contains("typed"), "{command} said {answer}");
        }
        if command.contains("metrics") {
            assert!(answer.contains("ringway_sessions_opened_total"), "{answer}");
        }
        tried += 1;
    }
    assert_eq!(tried, 5, "{printed}");

    let pid = Pid::from_raw(i32::try_from(demo.child.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("the demo runs");
    let status = wait_for("the demo's end", || demo.child.try_wait().expect("its status"));
    assert_eq!(status.code(), Some(0));
    let log = demo.says.rest().join("\n");
    assert!(log.contains("server_name=\"a.demo.test\"") && log.contains("close"), "{log}");
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
