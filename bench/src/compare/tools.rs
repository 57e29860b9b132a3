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
        Load::Wrk { .. } => {
            let arguments = ["serve", "http", "--listen", &listen.to_string()];
            let mut child = Child::ourselves(&arguments.map(str::to_owned), spot)?;
            child.expect("ready", Duration::from_secs(20))?;
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
        Load::Wrk { connections } => {
            let connections = connections.to_string();
            add(&["-t", "1", "-c", &connections, "-d", &format!("{time}s"), "--latency"]);
            add(&[&format!("http://{to}/")]);
            "wrk"
        }
        Load::Ours { .. } | Load::Held { .. } => bail!("not a tool"),
    };
    let mut child = Child::start(program, &arguments, spot)?;
    let text = child.rest(Duration::from_secs_f64(seconds * 5.0 + 60.0))?;
    let outcome = match load {
        Load::Iperf3 { .. } => iperf3(&text),
        Load::RedisBenchmark { .. } => redis_benchmark(&text, requests),
        Load::Wrk { .. } => wrk(&text),
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

/// It says how many requests in how long, and times with units of their own; p99.9 it does not: the
/// longest stands for it.
fn wrk(text: &str) -> anyhow::Result<Outcome> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |name: &[&str]| {
        let at = words.windows(name.len()).position(|words| words == name);
        let word = at.and_then(|at| words.get(at + name.len()));
        word.copied().with_context(|| name.join(" "))
    };
    let micros = |text: &str| {
        let unit = text.find(|one: char| one.is_ascii_alphabetic()).context("a unit")?;
        let factor = match &text[unit..] {
            "us" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            other => bail!("{other} is no unit of time"),
        };
        anyhow::Ok(text[..unit].parse::<f64>()? * factor)
    };
    let percentile = |name: &str| micros(after(&[name])?);
    // "N requests in 2.00s": the words before and after these two.
    let at = words.windows(2).position(|words| words == ["requests", "in"]);
    let at = at.filter(|at| *at > 0).context("requests in")?;
    let operations: u64 = words[at - 1].parse().context("requests")?;
    let seconds = micros(words.get(at + 2).context("a time")?.trim_end_matches(','))? / 1e6;
    let most = words.iter().position(|word| *word == "Latency").and_then(|at| words.get(at + 3));
    let max = micros(most.context("Latency")?)?;
    let mean = micros(after(&["Latency"])?)?;
    let failed: u64 = match after(&["Non-2xx", "or", "3xx", "responses:"]) {
        Ok(count) => count.parse()?,
        Err(_) => 0,
    };
    Ok(Outcome {
        seconds,
        operations,
        errors: failed + u64::from(text.contains("Socket errors:")),
        latency: Some(Latency {
            count: operations,
            mean,
            p50: percentile("50%")?,
            p90: percentile("90%")?,
            p99: percentile("99%")?,
            p999: max,
            max,
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
    fn reads_wrk() {
        let text = "Running 1s test @ http://127.0.0.1:8080/\n  1 threads and 64 connections\n  \
                    Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
                    Latency   631.31us  266.29us   4.49ms   83.18%\n    \
                    Req/Sec   103.31k     5.70k  108.65k    90.00%\n  Latency Distribution\n     \
                    50%  580.00us\n     75%  702.00us\n     90%    0.91ms\n     99%    1.70ms\n  \
                    102807 requests in 1.00s, 3.92MB read\nRequests/sec: 102742.31\n";
        let outcome = wrk(text).expect("as it prints it");
        assert_eq!((outcome.operations, outcome.errors), (102_807, 0));
        assert!((outcome.seconds - 1.0).abs() < 1e-9);
        let latency = outcome.latency.expect("it has one");
        assert!((latency.p50 - 580.0).abs() < 1e-9 && (latency.p99 - 1_700.0).abs() < 1e-9);
        assert!((latency.max - 4_490.0).abs() < 1e-9);
        let failing = format!("{text}  Non-2xx or 3xx responses: 12\n");
        assert_eq!(wrk(&failing).expect("as it prints it").errors, 12);
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
