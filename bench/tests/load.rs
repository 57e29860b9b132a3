//! Each load generator against its backend, as processes, as the comparison runs them.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;

#[test]
fn requests() {
    for size in [1, 64, 5_000, 300_000] {
        let arguments = ["--connections", "8", "--size", &size.to_string()];
        let outcome = Outcome::of("respond", "request", &arguments);
        outcome.is_sound(size);
        outcome.has_latency_of_each();
    }
}

#[test]
fn requests_by_the_clock() {
    let outcome = Outcome::of("respond", "request", &["--connections", "4", "--rate", "1000"]);
    assert_eq!(outcome.operations, 300);
    outcome.is_sound(64);
    outcome.has_latency_of_each();
}

#[test]
fn connections() {
    let outcome = Outcome::of("close", "connect", &["--connections", "8"]);
    outcome.is_sound(64);
    outcome.has_latency_of_each();
}

#[test]
fn connections_from_several_addresses() {
    Outcome::of("close", "connect", &["--connections", "8", "--sources", "3"]).is_sound(64);
}

#[test]
fn bulk() {
    for (backend, kind) in [("sink", "upload"), ("source", "download")] {
        for streams in ["1", "8"] {
            let outcome = Outcome::of(backend, kind, &["--connections", streams]);
            assert!(outcome.operations > 0 && outcome.errors == 0, "{outcome:?}");
            assert!(outcome.bytes > outcome.operations, "{outcome:?}");
        }
    }
}

#[test]
fn requests_beside_bulk() {
    let source = Backend::start("source");
    let bulk_to = source.address.to_string();
    let arguments = ["--connections", "8", "--streams", "2", "--bulk-to", &bulk_to];
    let arguments = [&arguments[..], &["--bulk-rate", "50"]].concat();
    let outcome = Outcome::of("respond", "mixed", &arguments);
    assert!(outcome.bytes < 100_000_000, "{outcome:?}");
    assert!(outcome.operations > 0 && outcome.errors == 0, "{outcome:?}");
    assert!(outcome.bytes > outcome.operations * 64, "{outcome:?}");
    outcome.has_latency_of_each();
}

#[test]
fn idle_connections_stay_until_the_input_ends() {
    let backend = Backend::start("hold");
    let outcome = idle(backend.address, 500, || ());
    assert_eq!((outcome.operations, outcome.errors), (500, 0));
}

#[test]
fn idle_connections_that_end_are_errors() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let outcome = idle(server.local_addr().unwrap(), 20, || {
        for _ in 0..5 {
            server.accept().unwrap();
        }
    });
    assert_eq!((outcome.operations, outcome.errors), (15, 5));
}

/// Opens connections, does `meanwhile` when they stand, and ends.
fn idle(to: SocketAddr, connections: u32, meanwhile: impl FnOnce()) -> Outcome {
    let mut command = load("idle", to);
    let mut child = command.args(["--connections", &connections.to_string()]).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    meanwhile();
    drop(child.stdin.take());
    line.clear();
    output.read_line(&mut line).unwrap();
    assert!(child.wait().unwrap().success());
    Outcome::parse(&line)
}

#[test]
fn datagrams() {
    for (arguments, size) in [
        (&["--flows", "1"][..], 64),
        (&["--flows", "100", "--size", "512"], 512),
        (&["--flows", "5", "--size", "1400", "--train", "16"], 1_400),
        (&["--flows", "1", "--size", "9", "--train", "64"], 9),
        (&["--flows", "20", "--sources", "4"], 64),
        (&["--flows", "50", "--window", "5"], 64),
        (&["--flows", "2", "--depth", "3"], 64),
    ] {
        let outcome = Outcome::of("udp-echo", "udp-request", arguments);
        outcome.is_sound(size);
        outcome.has_latency_of_each();
        assert_eq!(outcome.lost, 0, "{outcome:?}");
    }
}

#[test]
fn datagrams_by_the_clock() {
    let outcome = Outcome::of("udp-echo", "udp-request", &["--flows", "4", "--rate", "1000"]);
    assert_eq!((outcome.operations, outcome.lost), (300, 0));
    outcome.is_sound(64);
}

#[test]
fn datagrams_of_new_flows() {
    let outcome = Outcome::of("udp-echo", "udp-new-flow", &["--flows", "8", "--sources", "2"]);
    outcome.is_sound(64);
    assert_eq!(outcome.lost, 0, "{outcome:?}");
}

#[test]
fn datagrams_one_way() {
    for train in ["1", "16"] {
        let arguments = ["--flows", "4", "--rate", "20000", "--train", train];
        let outcome = Outcome::of("udp-sink", "udp-one-way", &arguments);
        outcome.is_sound(512);
        assert_eq!(outcome.lost, 0, "{outcome:?}");
    }
}

#[test]
fn wrong_answers_are_errors() {
    // Echo gives back the request, which does not begin with the sequence number.
    let outcome = Outcome::of("echo", "request", &["--connections", "2"]);
    assert!(outcome.operations == 0 && outcome.errors > 0, "{outcome:?}");
    // And this one does not count as a sink does.
    let outcome = Outcome::of("echo", "upload", &["--connections", "1"]);
    assert!(outcome.errors > 0, "{outcome:?}");
}

#[test]
fn lost_datagrams_are_counted() {
    let outcome = Outcome::of("udp-sink", "udp-request", &["--flows", "10"]);
    assert!(outcome.operations == 0 && outcome.lost >= 10, "{outcome:?}");
}

#[derive(Debug)]
struct Outcome {
    operations: u64,
    bytes: u64,
    errors: u64,
    lost: u64,
    latencies: Option<u64>,
}

impl Outcome {
    /// Runs `kind` for 0.3 s against a backend of its own.
    fn of(backend: &str, kind: &str, arguments: &[&str]) -> Self {
        let backend = Backend::start(backend);
        let output = load(kind, backend.address).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        Self::parse(text.strip_prefix("begin\n").unwrap())
    }

    fn parse(line: &str) -> Self {
        let json: Value = serde_json::from_str(line).unwrap();
        let number = |name: &str| json[name].as_u64().unwrap();
        Self {
            operations: number("operations"),
            bytes: number("bytes"),
            errors: number("errors"),
            lost: number("lost"),
            latencies: json["latency"]["count"].as_u64(),
        }
    }

    fn is_sound(&self, size: u64) {
        assert!(self.operations > 0 && self.errors == 0, "{self:?}");
        assert_eq!(self.bytes, self.operations * size, "{self:?}");
    }

    fn has_latency_of_each(&self) {
        assert_eq!(self.latencies, Some(self.operations), "{self:?}");
    }
}

fn load(kind: &str, to: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["load", kind, "--to", &to.to_string()]);
    command.args(["--seconds", "0.3", "--warmup", "0.05"]);
    // Less than the time after a run in which answers still count.
    command.env("RINGWAY_PATIENCE", "1500");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A backend that ends with its input, and so with the test.
struct Backend {
    address: SocketAddr,
    process: Child,
    input: Option<ChildStdin>,
}

impl Backend {
    fn start(kind: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut process = Command::new(env!("CARGO_BIN_EXE_bench"))
            .args(["serve", kind, "--listen", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        let said = process.stdout.as_mut().unwrap().read_exact(&mut ready);
        let input = process.stdin.take();
        let backend = Self { address, process, input };
        assert!(said.is_ok() && &ready == b"ready\n", "{kind} does not listen");
        backend
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.input.take());
        // It has no reason to stay; waiting shows that it does not.
        let _ = self.process.wait();
    }
}
