//! Load generators and backends that are not ours: they count over the whole of their run.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::outcome::{Latency, Outcome};

use super::child::{Child, Spot};
use super::interrupt;
use super::workload::Load;

/// Starts the backend of a tool and waits until it answers.
pub fn backend(
    load: &Load,
    listen: SocketAddr,
    directory: &Path,
    spot: &Spot,
) -> anyhow::Result<Child> {
    let (ip, port) = (listen.ip().to_string(), listen.port().to_string());
    let (program, arguments) = match load {
        Load::Iperf3 { .. } => ("iperf3", vec!["-s", "-B", &ip, "-p", &port]),
        Load::RedisBenchmark { .. } => {
            let mut arguments = vec!["--bind", &ip, "--port", &port, "--save", ""];
            arguments.extend(["--appendonly", "no", "--daemonize", "no"]);
            ("redis-server", arguments)
        }
        Load::Dnsperf => {
            write_zone(listen, directory)?;
            let file = directory.join("nsd.conf").to_string_lossy().into_owned();
            let arguments = ["-d", "-c", &file].map(str::to_owned);
            let mut child = Child::start("nsd", &arguments, spot)?;
            wait(&mut child, || answers_dns(listen))?;
            return Ok(child);
        }
        Load::Ours { .. } | Load::Held { .. } => bail!("not a tool"),
    };
    let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    let mut child = Child::start(program, &arguments, spot)?;
    wait(&mut child, || TcpStream::connect(listen).is_ok())?;
    Ok(child)
}

/// Runs a tool's load to its end.
pub fn load(
    load: &Load,
    to: SocketAddr,
    directory: &Path,
    seconds: f64,
    spot: &Spot,
) -> anyhow::Result<Outcome> {
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    // They take whole seconds.
    let time = seconds.ceil().max(1.0).to_string();
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |more: &[&str]| arguments.extend(more.iter().map(|one| (*one).to_owned()));
    // As many as a fast proxy answers in about the time: redis-benchmark knows no time.
    let requests = whole(seconds * 60_000.0);
    let program = match load {
        Load::Iperf3 { streams, down } => {
            add(&["-c", &ip, "-p", &port, "-J", "-t", &time, "-P", &streams.to_string()]);
            if *down {
                add(&["-R"]);
            }
            "iperf3"
        }
        Load::RedisBenchmark { clients } => {
            add(&["-h", &ip, "-p", &port, "-t", "get", "--csv", "-n", &requests.to_string()]);
            add(&["-c", &clients.to_string()]);
            "redis-benchmark"
        }
        Load::Dnsperf => {
            let queries = directory.join("queries").to_string_lossy().into_owned();
            add(&["-s", &ip, "-p", &port, "-d", &queries, "-l", &time, "-c", "100", "-q", "100"]);
            "dnsperf"
        }
        Load::Ours { .. } | Load::Held { .. } => bail!("not a tool"),
    };
    let mut child = Child::start(program, &arguments, spot)?;
    let text = child.rest(Duration::from_secs_f64(seconds * 5.0 + 60.0))?;
    let outcome = match load {
        Load::Iperf3 { .. } => iperf3(&text),
        Load::RedisBenchmark { .. } => redis_benchmark(&text, requests),
        _ => dnsperf(&text),
    };
    outcome.with_context(|| format!("{program} printed: {text}"))
}

const NAMES: usize = 1_000;

fn write_zone(listen: SocketAddr, directory: &Path) -> anyhow::Result<()> {
    let mut zone = "$ORIGIN bench.test.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\n\
                    ns A 192.0.2.1\n"
        .to_owned();
    let mut queries = String::new();
    for name in 0..NAMES {
        writeln!(zone, "n{name} A 192.0.2.{}", name % 250 + 1)?;
        writeln!(queries, "n{name}.bench.test A")?;
    }
    // Its own limit on equal answers would drop what dnsperf asks.
    let configuration = format!(
        "server:\n  ip-address: {}@{}\n  username: \"\"\n  database: \"\"\n  pidfile: \"\"\n  \
         zonelistfile: \"{directory}/zone.list\"\n  xfrdfile: \"\"\n  xfrdir: \"{directory}\"\n  \
         zonesdir: \"{directory}\"\n  server-count: 1\n  rrl-ratelimit: 0\n  \
         rrl-whitelist-ratelimit: 0\nremote-control:\n  control-enable: no\nzone:\n  \
         name: \"bench.test\"\n  zonefile: \"zone\"\n",
        listen.ip(),
        listen.port(),
        directory = directory.canonicalize()?.display(),
    );
    std::fs::write(directory.join("zone"), zone)?;
    std::fs::write(directory.join("queries"), queries)?;
    std::fs::write(directory.join("nsd.conf"), configuration)?;
    Ok(())
}

/// Asks for the zone's SOA.
fn answers_dns(server: SocketAddr) -> bool {
    let query = b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x05bench\x04test\0\0\x06\0\x01";
    let ask = || {
        let socket = UdpSocket::bind((server.ip(), 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.send_to(query, server)?;
        socket.recv(&mut [0; 512])
    };
    ask().is_ok()
}

fn wait(child: &mut Child, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
    let patience = Instant::now() + Duration::from_secs(20);
    while !ready() {
        interrupt::check()?;
        if Instant::now() > patience {
            child.rest(Duration::from_millis(100)).context("does not answer")?;
            bail!("does not answer");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn iperf3(text: &str) -> anyhow::Result<Outcome> {
    let json: serde_json::Value = serde_json::from_str(text)?;
    if let Some(error) = json["error"].as_str() {
        bail!("{error}");
    }
    let received = &json["end"]["sum_received"];
    let bytes = received["bytes"].as_u64().context("end.sum_received.bytes")?;
    let seconds = received["seconds"].as_f64().context("end.sum_received.seconds")?;
    Ok(Outcome { seconds, operations: bytes >> 17, bytes, ..Outcome::default() })
}

/// It prints no p90 and no p99.9: the next above stand for them. Its CSV has one line of names and
/// one of figures, latency in milliseconds.
fn redis_benchmark(text: &str, requests: u64) -> anyhow::Result<Outcome> {
    let row = |line: &str| -> Vec<String> {
        line.split(',').map(|field| field.trim_matches('"').to_owned()).collect()
    };
    let mut lines = text.lines().filter(|line| line.starts_with('"')).map(row);
    let names = lines.next().context("a line of names")?;
    let figures = lines.next().context("a line of figures")?;
    let field = |name: &str| {
        let at = names.iter().position(|one| one == name).with_context(|| name.to_owned())?;
        let text = figures.get(at).with_context(|| name.to_owned())?;
        text.parse::<f64>().with_context(|| format!("{name}: {text}"))
    };
    let micros = |name: &str| anyhow::Ok(field(name)? * 1e3);
    Ok(Outcome {
        seconds: requests as f64 / field("rps")?,
        operations: requests,
        latency: Some(Latency {
            count: requests,
            mean: micros("avg_latency_ms")?,
            p50: micros("p50_latency_ms")?,
            p90: micros("p95_latency_ms")?,
            p99: micros("p99_latency_ms")?,
            p999: micros("max_latency_ms")?,
            max: micros("max_latency_ms")?,
        }),
        ..Outcome::default()
    })
}

fn dnsperf(text: &str) -> anyhow::Result<Outcome> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        let figure = line.and_then(|rest| rest.split_whitespace().next());
        let figure = figure.with_context(|| name.to_owned())?;
        figure.parse::<f64>().with_context(|| format!("{name} {figure}"))
    };
    Ok(Outcome {
        seconds: field("Run time (s):")?,
        operations: whole(field("Queries completed:")?),
        lost: whole(field("Queries lost:")?),
        ..Outcome::default()
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts printed by tools; a float-to-int cast saturates"
)]
fn whole(count: f64) -> u64 {
    count.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_redis_benchmark() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                    \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                    \"GET\",\"50000.00\",\"0.030\",\"0.008\",\"0.023\",\
                    \"0.039\",\"0.063\",\"4.047\"\n";
        let outcome = redis_benchmark(text, 100_000).expect("as it prints it");
        assert!((outcome.seconds - 2.0).abs() < 1e-9);
        let latency = outcome.latency.expect("it has one");
        assert!((latency.p50 - 23.0).abs() < 1e-9 && (latency.p99 - 63.0).abs() < 1e-9);
        assert!(redis_benchmark("WARNING: no config\n", 1).is_err());
    }

    #[test]
    fn reads_dnsperf() {
        let text = "Statistics:\n\n  Queries sent:         1003\n  \
                    Queries completed:    1000 (99.70%)\n  Queries lost:         3 (0.30%)\n\n  \
                    Run time (s):         2.000314\n  Queries per second:   499.921512\n";
        let outcome = dnsperf(text).expect("as it prints it");
        assert_eq!((outcome.operations, outcome.lost), (1000, 3));
        assert!((outcome.seconds - 2.000_314).abs() < 1e-9);
    }

    #[test]
    fn reads_iperf3_and_its_errors() {
        let text = r#"{"end":{"sum_received":{"seconds":1.5,"bytes":3000000}}}"#;
        let outcome = iperf3(text).expect("as it prints it");
        assert_eq!(outcome.bytes, 3_000_000);
        let error = iperf3(r#"{"error":"unable to connect"}"#).expect_err("it failed");
        assert_eq!(error.to_string(), "unable to connect");
    }
}
