//! Load generators: one thread, one workload, a bounded time, a line "begin", and one line of
//! JSON, the [`Outcome`]. TCP runs on monoio, UDP on epoll and direct calls.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use crate::outcome::Outcome;
use crate::serve::host;

mod bulk;
mod connections;
mod meter;
mod pace;
mod request;
pub mod tls;
mod udp;
mod udp_one_way;

#[derive(Args, Clone)]
pub struct Options {
    #[arg(value_enum)]
    kind: Kind,
    /// The address under load.
    #[arg(long)]
    to: SocketAddr,
    /// Where the bulk streams of `mixed` come from; without it, from where the requests go.
    #[arg(long)]
    bulk_to: Option<SocketAddr>,
    /// PEM: the certificate that those of the address under load lead to.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// `tls-connect` resumes sessions; without it every handshake is a full one.
    #[arg(long)]
    resume: bool,
    /// The core to run on; without it, wherever the scheduler likes.
    #[arg(long)]
    core: Option<usize>,
    /// Length of the measured interval.
    #[arg(long)]
    seconds: f64,
    /// Seconds of load before the measured interval.
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Connections or flows; for `connect` and `udp-new-flow`, how many at a time.
    #[arg(long, alias = "flows", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Bulk streams of `mixed`.
    #[arg(long, default_value_t = 8)]
    streams: u32,
    /// MB/s that the bulk streams of `mixed` take together, at the most: as fast as they go they
    /// leave the load and its backends no time for requests, whatever stands between.
    #[arg(long)]
    bulk_rate: Option<f64>,
    /// Bytes of an answer, of a datagram (9 or more), or given to the kernel at once by `upload`.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64 << 20))]
    size: Option<u32>,
    /// Operations (datagrams) per second. Without it each connection or flow goes on as soon as it
    /// is answered (closed loop).
    #[arg(long)]
    rate: Option<f64>,
    /// Datagrams of a burst, sent as one by segmentation offload.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    train: u8,
    /// Bursts that one flow of `udp-request` has in flight.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    depth: u8,
    /// Bursts that all flows of `udp-request` together have in flight at the most; without it
    /// nothing but their number bounds it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    window: Option<u32>,
    /// How many loopback addresses, from 127.0.0.2 on, to send from in turn, each with its own
    /// ports; 0: the kernel's choice.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=250))]
    sources: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Requests over kept connections to `serve respond`.
    Request,
    /// A new connection for each request, to `serve close`.
    Connect,
    /// Bulk to `serve sink`.
    Upload,
    /// Bulk from `serve source`.
    Download,
    /// Connections that do nothing: prints "ready" when they stand, and keeps them until its input
    /// ends. Operations are those still open then.
    Idle,
    /// Bulk from `serve source` at --bulk-to beside requests, whose operations and latency count.
    Mixed,
    /// As `request`, in TLS that the address under load ends.
    TlsRequest,
    /// As `connect`, likewise.
    TlsConnect,
    /// As `download`, likewise.
    TlsDownload,
    /// Round trips with `serve udp-echo`, one burst in flight for each flow.
    UdpRequest,
    /// A round trip from a port that was not used lately, with `serve udp-echo`. Has no latency.
    UdpNewFlow,
    /// As fast as the kernel takes them, or at --rate, to `serve udp-sink`.
    UdpOneWay,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let valid = |seconds: f64| (0.0..=86_400.0).contains(&seconds);
    ensure!(valid(options.seconds) && valid(options.warmup), "seconds: 0 to 86400");
    ensure!(options.rate.is_none_or(|rate| (0.001..=1e9).contains(&rate)), "rate: 0.001 to 10^9");
    ensure!(options.bulk_rate.is_none_or(|rate| (0.001..=1e6).contains(&rate)), "bulk-rate");
    ensure!(options.sources == 0 || options.to.is_ipv4(), "--sources are IPv4 addresses");
    host::raise_file_limit()?;
    host::pin(options.core)?;
    let outcome = match options.kind {
        Kind::Request => host::block_on(request::requests(options))??,
        Kind::Mixed => host::block_on(request::mixed(options))??,
        Kind::Connect => host::block_on(connections::connect(options))??,
        Kind::Idle => host::block_on(connections::idle(options))??,
        Kind::Upload => host::block_on(bulk::run(options, bulk::Direction::Up))??,
        Kind::Download => host::block_on(bulk::run(options, bulk::Direction::Down))??,
        Kind::TlsRequest => host::block_on(tls::requests(options))??,
        Kind::TlsConnect => host::block_on(tls::connect(options))??,
        Kind::TlsDownload => host::block_on(tls::download(options))??,
        Kind::UdpRequest => udp::requests(options)?,
        Kind::UdpNewFlow => udp::new_flows(options)?,
        Kind::UdpOneWay => udp_one_way::run(options)?,
    };
    print(&outcome)
}

fn print(outcome: &Outcome) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(outcome)?);
    std::io::stdout().flush().context("standard output")
}

impl Options {
    fn size(&self, default: u32) -> u32 {
        self.size.unwrap_or(default)
    }

    /// Says on a line of its own that the measured interval begins after the warm-up from now: who
    /// counts what the load costs elsewhere counts within the same interval.
    fn begin(&self) -> std::io::Result<Instant> {
        println!("begin");
        std::io::stdout().flush()?;
        Ok(Instant::now())
    }

    fn warmup(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// The address that connection or flow `index` comes from; `None` leaves it to the kernel.
    fn source(&self, index: u32) -> Option<IpAddr> {
        let number = index.checked_rem(u32::from(self.sources))?;
        Some(Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + 1 + number).into())
    }
}
