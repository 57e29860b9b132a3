//! Can bulk starve small sessions? Eight streams as fast as they go, and beside them one client
//! that sends 64 bytes and waits for them to come back, all on one worker.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use crate::gateway::Gateway;

#[derive(Args)]
pub struct Options {
    /// Seconds of each run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Pairs of runs: with the budget, without, with, without, ...
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Bulk streams.
    #[arg(long, default_value_t = 8)]
    streams: usize,
}

/// What the gateway allows one direction in one turn; the last is so much that it never ends.
const BUDGETS: [(&str, u64); 4] = [
    ("64 KiB a turn", 64 << 10),
    ("256 KiB a turn", 256 << 10),
    ("1 MiB a turn", 1 << 20),
    ("no budget", 1 << 30),
];

pub fn run(binary: &Path, options: &Options) -> anyhow::Result<()> {
    let echo = serve(|mut stream| {
        let mut buffer = [0; 64];
        while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
    })?;
    let sink = serve(|mut stream| {
        let mut buffer = vec![0; 1 << 18];
        while matches!(stream.read(&mut buffer), Ok(count) if count > 0) {}
    })?;
    let mut rows: [Vec<Row>; BUDGETS.len()] = std::array::from_fn(|_| Vec::new());
    for round in 0..options.repeat {
        for (rows, (name, budget)) in rows.iter_mut().zip(BUDGETS) {
            eprint!("\rround {} of {}: {name}          ", round + 1, options.repeat);
            rows.push(measure(binary, options, budget, [echo, sink])?);
        }
    }
    eprintln!();
    println!("64-byte ping beside {} bulk streams, one worker; medians", options.streams);
    println!("{:<14} {:>10} {:>10} {:>10} {:>12}", "", "p50 us", "p99 us", "max us", "bulk GB/s");
    for (rows, (name, _)) in rows.iter_mut().zip(BUDGETS) {
        let mut median = |key: fn(&Row) -> f64| {
            rows.sort_by(|a, b| key(a).total_cmp(&key(b)));
            key(&rows[rows.len() / 2])
        };
        println!(
            "{name:<14} {:>10.0} {:>10.0} {:>10.0} {:>12.2}",
            median(|row| row.p50),
            median(|row| row.p99),
            median(|row| row.max),
            median(|row| row.bulk)
        );
    }
    Ok(())
}

struct Row {
    p50: f64,
    p99: f64,
    max: f64,
    /// 10^9 bytes per second.
    bulk: f64,
}

fn measure(
    binary: &Path,
    options: &Options,
    budget: u64,
    [echo, sink]: [SocketAddr; 2],
) -> anyhow::Result<Row> {
    let [ping_port, bulk_port] = [free_port()?, free_port()?];
    let config = format!(
        r#"
[workers]
cores = [0]
[admin]
address = ""
[access_log]
path = "off"
[limits]
turn_bytes = {budget}
[[listeners]]
name = "ping"
protocol = "TCP"
address = "{ping_port}"
[[listeners]]
name = "bulk"
protocol = "TCP"
address = "{bulk_port}"
[[routes]]
name = "ping"
listeners = ["ping"]
backends = [{{ name = "echo" }}]
[[routes]]
name = "bulk"
listeners = ["bulk"]
backends = [{{ name = "sink" }}]
[[backends]]
name = "echo"
endpoints = ["{echo}"]
[[backends]]
name = "sink"
endpoints = ["{sink}"]
"#
    );
    let _gateway = Gateway::start(binary, &config, ping_port)?;
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let senders: Vec<_> = (0..options.streams)
        .map(|_| {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            std::thread::spawn(move || send(bulk_port, &stop, &sent))
        })
        .collect();
    let began = Instant::now();
    let times = ping(ping_port, Duration::from_secs(options.seconds));
    let seconds = began.elapsed().as_secs_f64();
    let bytes = sent.load(Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        let _ = sender.join();
    }
    let mut times = times?;
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    Ok(Row { p50: at(50), p99: at(99), max: at(100), bulk: bytes as f64 / seconds / 1e9 })
}

fn ping(address: SocketAddr, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = [7; 64];
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        times.push(sent.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(times)
}

fn send(address: SocketAddr, stop: &AtomicBool, sent: &AtomicU64) {
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    let block = vec![1; 1 << 18];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&block) {
            Ok(count) => sent.fetch_add(count as u64, Ordering::Relaxed),
            Err(_) => return,
        };
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// A server on a free port, a thread per connection, until the process ends.
fn serve(handle: fn(TcpStream)) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            std::thread::spawn(move || handle(stream));
        }
    });
    Ok(address)
}

fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
