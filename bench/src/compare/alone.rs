//! What has no peer to be held against: reloads under load, the cost of a large table, and what
//! knobs are worth.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cpu::Meter;
use crate::outcome::Outcome;
use crate::peers::{Found, More, Peer, Running, Setup, Transport, UdpShape};
use crate::results::Figure;
use crate::stats::{Interval, median};

use super::bed::{Bed, Layout, free_address};
use super::interrupt;
use super::knobs;
use super::workload;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Reload,
    Tables,
    Knobs,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::Reload, Self::Tables, Self::Knobs];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload => "reload",
            Self::Tables => "tables",
            Self::Knobs => "knobs",
        })
    }
}

pub fn measure(
    part: Part,
    ringway: &Found,
    layout: Layout,
    rounds: usize,
    files: &Path,
) -> anyhow::Result<Vec<Figure>> {
    match part {
        Part::Knobs => knobs::measure(ringway, layout, rounds, files),
        Part::Reload => {
            let mut figures = Vec::new();
            for name in ["tcp-request-64x64", "tcp-bulk-8-down", "udp-64-100"] {
                figures.extend(reload(name, ringway, layout, rounds, files)?);
            }
            Ok(figures)
        }
        Part::Tables => {
            let mut figures = large_table(ringway, layout, rounds, files)?;
            figures.extend(routes(ringway, layout, rounds, files)?);
            Ok(figures)
        }
    }
}

const EVERY: Duration = Duration::from_millis(100);

/// The same load with a reload every 100 ms and without, in alternation.
fn reload(
    name: &str,
    ringway: &Found,
    layout: Layout,
    rounds: usize,
    files: &Path,
) -> anyhow::Result<Vec<Figure>> {
    let all = workload::all();
    let workload = all.iter().find(|workload| workload.name == name).context("a workload")?;
    let mut bed = Bed::new(workload, layout, None, 1, &files.join("reload"))?;
    bed.start(0, Peer::Ringway, ringway)?;
    let (mut ratios, mut failed, mut reloads) = (Vec::new(), [0, 0], 0);
    for round in 0..rounds {
        let mut rates = [0.0; 2];
        for with in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            eprintln!("    {name} round {}/{rounds}, reloads: {}", round + 1, with == 1);
            let (running, directory) = bed.running(0).context("Ringway runs no more")?;
            let reloader = Reloader::new(running, &directory)?;
            let stop = AtomicBool::new(with == 0);
            let outcome: Outcome = std::thread::scope(|scope| {
                let thread = scope.spawn(|| reloader.run(&stop));
                let measured = bed.measure(0);
                stop.store(true, Ordering::Relaxed);
                reloads += thread.join().expect("does not panic")?;
                anyhow::Ok(measured?.outcome)
            })?;
            failed[with] += outcome.errors + outcome.lost;
            let amount = if outcome.bytes > 0 { outcome.bytes } else { outcome.operations };
            rates[with] = amount as f64 / outcome.seconds;
        }
        ratios.push(rates[1] / rates[0]);
    }
    let ratio = Interval::of_ratios(&ratios).context("two rounds or more")?;
    Ok(vec![
        Figure {
            name: format!("{name}: throughput with a reload every 100 ms / without"),
            value: format!("{} of {} pairs", interval(ratio), ratio.count),
            target: ">= 0.97".to_owned(),
        },
        Figure {
            name: format!("{name}: lost or failed in {reloads} reloads (without: {})", failed[0]),
            value: failed[1].to_string(),
            target: "0".to_owned(),
        },
    ])
}

/// Gives a running gateway another configuration again and again.
struct Reloader {
    pid: Pid,
    file: PathBuf,
    texts: [String; 2],
}

impl Reloader {
    fn new(running: &Running, directory: &Path) -> anyhow::Result<Self> {
        let pid = Pid::from_raw(*running.pids.first().context("a process")?);
        let text = running.configuration.clone();
        // Another weight of the only backend: a new table that sends everything where the old did.
        let other = text.replace("{ name = \"main\" }", "{ name = \"main\", weight = 2 }");
        if other == text {
            bail!("the configuration has no backend to give another weight");
        }
        Ok(Self { pid, file: directory.join("ringway.toml"), texts: [text, other] })
    }

    fn run(&self, stop: &AtomicBool) -> anyhow::Result<u64> {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            replace(&self.file, &self.texts[usize::from(count % 2 == 0)])?;
            kill(self.pid, Signal::SIGHUP)?;
            count += 1;
            std::thread::sleep(EVERY);
        }
        Ok(count)
    }
}

/// At once: a reload never sees half of a file.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, file).context("the new configuration")
}

const LISTENERS: usize = 1_000;
const ROUTES: usize = 10_000;

/// Time from SIGHUP until a table of 1,000 listeners, 10,000 routes and 10,000 endpoints is in
/// force, and what one small connection waits meanwhile at the most.
fn large_table(
    ringway: &Found,
    layout: Layout,
    rounds: usize,
    files: &Path,
) -> anyhow::Result<Vec<Figure>> {
    let gateway = Alone::start(ringway, layout, &files.join("tables"), "")?;
    let large = large_configuration();
    let mut stream = TcpStream::connect(gateway.listen())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut published, mut stalls, mut calm) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("    large table {}/{rounds}", round + 1);
        calm.push(longest_echo(&mut stream, &mut || Ok(()))?);
        let mut took = 0.0;
        stalls.push(longest_echo(&mut stream, &mut || {
            took = gateway.publish(&large)?;
            Ok(())
        })?);
        published.push(took);
        gateway.publish("")?;
    }
    let of = |values: &[f64]| median(values).unwrap_or_default();
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let table = format!("{LISTENERS} listeners, {ROUTES} routes, {ROUTES} endpoints");
    Ok(vec![
        Figure {
            name: format!("{table}: SIGHUP until in force on all workers, median"),
            value: format!("{:.0} ms", of(&published) * 1e3),
            target: String::new(),
        },
        Figure {
            name: "longest 1-byte echo while it is compiled and published (without)".to_owned(),
            value: format!(
                "median {:.2} ms, most {:.2} ms ({:.2} and {:.2})",
                of(&stalls) * 1e3,
                most(&stalls) * 1e3,
                of(&calm) * 1e3,
                most(&calm) * 1e3
            ),
            target: "no turn over 1 ms more".to_owned(),
        },
    ])
}

/// Seconds of the longest exchange of a byte while `work` is done, and a moment longer: what keeps
/// the worker from its sockets shows here, whoever it is.
fn longest_echo(
    stream: &mut TcpStream,
    work: &mut (dyn FnMut() -> anyhow::Result<()> + Send),
) -> anyhow::Result<f64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let result = work();
            std::thread::sleep(Duration::from_millis(100));
            done.store(true, Ordering::Relaxed);
            result
        });
        let mut longest = 0.0_f64;
        let mut byte = [1];
        while !done.load(Ordering::Relaxed) {
            let began = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            longest = longest.max(began.elapsed().as_secs_f64());
            std::thread::sleep(Duration::from_micros(200));
        }
        worker.join().expect("does not panic")?;
        Ok(longest)
    })
}

/// How many routes a listener has, and to how many of them sessions go in turn. Memory of the
/// others is used by no session, so the third tells a search that takes longer from memory that no
/// cache has.
const ROUTE_COUNTS: [(usize, usize); 4] = [(1, 1), (100, 100), (10_000, 1), (10_000, 10_000)];
const SESSIONS: usize = 1_000;

/// CPU of a TLS session that is opened by its server name and closed, by the number of routes of
/// its listener.
fn routes(
    ringway: &Found,
    layout: Layout,
    rounds: usize,
    files: &Path,
) -> anyhow::Result<Vec<Figure>> {
    let mut gateways = Vec::new();
    for (count, used) in ROUTE_COUNTS {
        let tls = free_address()?;
        let more = many_routes(tls, echo()?, count);
        let directory = files.join(format!("routes-{count}-{used}"));
        gateways.push((Alone::start(ringway, layout, &directory, &more)?, tls, (count, used)));
    }
    let mut costs = vec![Vec::new(); gateways.len()];
    for round in 0..rounds {
        for index in super::schedule::order(gateways.len(), round) {
            let (gateway, tls, (count, used)) = &gateways[index];
            eprintln!("    {count} routes, {used} of them used, {}/{rounds}", round + 1);
            let before = gateway.meter.seconds()?;
            for session in 0..SESSIONS {
                interrupt::check()?;
                open_and_close(*tls, &name(session * 7_919 % used))?;
            }
            let spent = gateway.meter.seconds()? - before;
            costs[index].push(spent / SESSIONS as f64 * 1e6);
        }
    }
    let mut figures = Vec::new();
    for (cost, (count, used)) in costs.iter().zip(ROUTE_COUNTS) {
        let ratios: Vec<f64> = cost.iter().zip(&costs[0]).map(|(own, one)| own / one).collect();
        let ratio = Interval::of_ratios(&ratios).map_or_else(|| "-".to_owned(), interval);
        figures.push(Figure {
            name: format!(
                "CPU of a TLS session by server name, {count} routes on its listener, {used} used"
            ),
            value: format!("{:.1} us, {ratio} of one route", median(cost).unwrap_or_default()),
            target: "flat".to_owned(),
        });
    }
    Ok(figures)
}

fn open_and_close(to: SocketAddr, name: &str) -> anyhow::Result<()> {
    let hello = client_hello(name);
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&hello)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer != hello {
        bail!("{name} answered {} bytes instead of {}", answer.len(), hello.len());
    }
    Ok(())
}

/// Ringway with a TCP listener before an echo server, and whatever else.
struct Alone {
    running: Running,
    meter: Meter,
    file: PathBuf,
}

impl Alone {
    fn start(
        ringway: &Found,
        layout: Layout,
        directory: &Path,
        more: &str,
    ) -> anyhow::Result<Self> {
        let setup = Setup {
            transport: Transport::Tcp,
            listen: free_address()?,
            backends: vec![echo()?],
            workers: layout.workers,
            cores: layout.proxy_cores(),
            udp: UdpShape::default(),
            more: More::default(),
            certificates: directory.to_owned(),
            dir: directory.to_owned(),
            netns: None,
        };
        let running = Peer::Ringway.start(ringway, &setup)?;
        let meter = Meter::of("alone", &running.pids);
        let alone = Self { running, meter, file: directory.join("ringway.toml") };
        alone.publish(more)?;
        Ok(alone)
    }

    fn listen(&self) -> SocketAddr {
        self.running.listen
    }

    /// Puts `more` beneath the configuration; returns the seconds until it is in force.
    fn publish(&self, more: &str) -> anyhow::Result<f64> {
        let before = self.generation()?;
        let text = format!("{}\n{more}", self.running.configuration);
        if fs::read_to_string(&self.file)? == text {
            return Ok(0.0);
        }
        replace(&self.file, &text)?;
        let began = Instant::now();
        kill(Pid::from_raw(self.running.pids[0]), Signal::SIGHUP)?;
        while self.generation()? <= before {
            interrupt::check()?;
            if began.elapsed() > Duration::from_secs(60) {
                bail!("the configuration is not in force: {}", self.said());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(began.elapsed().as_secs_f64())
    }

    /// Of the worker that is behind the others.
    fn generation(&self) -> anyhow::Result<u64> {
        let port = self.running.listen.port() + 1_000;
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("admin")?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ringway\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        oldest_generation(&page).context("no ringway_table_generation in /metrics")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.file.with_file_name("output")).unwrap_or_default()
    }
}

fn oldest_generation(page: &str) -> Option<u64> {
    let lines = page.lines().filter(|line| line.starts_with("ringway_table_generation{"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).min()
}

/// A server on a free port, in a thread per connection, until this process ends.
fn echo() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

fn name(number: usize) -> String {
    format!("n{number}.bench.test")
}

/// Routes by name on the listeners in turn, each with a backend of its own; the addresses are
/// loopback's and nobody listens there.
fn large_configuration() -> String {
    let mut text = String::new();
    for number in 0..LISTENERS {
        // Ten addresses share a port, so that few ports are taken.
        let (host, port) = (number / 100 + 1, 20_000 + number % 100);
        text.push_str(&listener(&format!("l{number}"), &format!("127.0.9.{host}:{port}")));
    }
    for number in 0..ROUTES {
        let endpoint = format!("127.1.{}.{}:9", number / 250, number % 250 + 1);
        text.push_str(&route(number, &format!("l{}", number % LISTENERS), &endpoint));
    }
    text
}

fn many_routes(listen: SocketAddr, endpoint: SocketAddr, count: usize) -> String {
    let routes = (0..count).map(|number| route(number, "tls", &endpoint.to_string()));
    std::iter::once(listener("tls", &listen.to_string())).chain(routes).collect()
}

fn listener(name: &str, address: &str) -> String {
    format!("[[listeners]]\nname = \"{name}\"\nprotocol = \"TLS\"\naddress = \"{address}\"\n")
}

fn route(number: usize, listener: &str, endpoint: &str) -> String {
    format!(
        "[[routes]]\nname = \"r{number}\"\nlisteners = [\"{listener}\"]\nhostnames = [\"{}\"]\n\
         backends = [{{ name = \"b{number}\" }}]\n\
         [[backends]]\nname = \"b{number}\"\nendpoints = [\"{endpoint}\"]\n",
        name(number)
    )
}

/// The least that is one (RFC 8446, 4.1.2): TLS 1.2's form, one cipher suite, a server name.
fn client_hello(name: &str) -> Vec<u8> {
    let with_length = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("a name is short").to_be_bytes();
        [&length[..], bytes].concat()
    };
    let host = [&[0][..], &with_length(name.as_bytes())].concat();
    let server_name = [&[0, 0][..], &with_length(&with_length(&host))].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(with_length(&server_name));
    // A length of three bytes; the first is 0.
    let message = [&[1, 0][..], &with_length(&body)].concat();
    [&[22, 3, 1][..], &with_length(&message)].concat()
}

fn interval(of: Interval) -> String {
    format!("{:.3} ({:.3} to {:.3})", of.middle, of.low, of.high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_that_is_behind_counts() {
        let page = "# TYPE ringway_table_generation gauge\n\
                    ringway_table_generation{worker=\"0\"} 7\n\
                    ringway_table_generation{worker=\"1\"} 6\n";
        assert_eq!(oldest_generation(page), Some(6));
        assert_eq!(oldest_generation(""), None);
    }

    #[test]
    fn lengths_of_the_hello_agree() {
        let hello = client_hello("a.test");
        let number = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
        assert_eq!(number(3), hello.len() - 5);
        assert_eq!(number(7), hello.len() - 9);
        assert!(hello.ends_with(b"a.test"));
    }
}
