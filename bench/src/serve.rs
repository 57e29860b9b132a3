//! Backends of the comparison, cheap enough that what stands before them is what is measured.
//! Each runs on one thread (UDP: one for each address) until SIGTERM or until its input ends.

use std::io::{Read, Write};
use std::net::SocketAddr;

use anyhow::Context;
use clap::{Args, ValueEnum};

pub mod host;
pub mod stream;
pub mod tcp;
pub mod udp;
pub mod wire;

#[derive(Args)]
pub struct Options {
    #[arg(value_enum)]
    kind: Kind,
    /// Where to listen; may be given several times.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// The core to run on; without it, wherever the scheduler likes.
    #[arg(long)]
    core: Option<usize>,
    /// Bytes that `source` gives to the kernel at once.
    #[arg(long, default_value_t = 256 << 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256 << 10))]
    size: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// TCP: sends back what it receives.
    Echo,
    /// TCP: requests of 64 bytes, answers of the size that they ask for.
    Respond,
    /// TCP: discards, and answers the client's FIN with the number of bytes, 8 of them, LE.
    Sink,
    /// TCP: sends until the peer closes.
    Source,
    /// TCP: one request of 64 bytes, an answer of 64, FIN.
    Close,
    /// TCP: answers each HTTP/1.1 request without a body, for wrk.
    Http,
    /// TCP: accepts and keeps.
    Hold,
    /// UDP: sends back what it receives, trains as trains.
    UdpEcho,
    /// UDP: counts datagrams; answers `?` with their number, 8 bytes LE.
    UdpSink,
}

/// Prints "ready" when all addresses are bound, and returns only with an error.
pub fn run(options: &Options) -> anyhow::Result<()> {
    host::raise_file_limit()?;
    host::pin(options.core)?;
    std::thread::spawn(end_with_input);
    match options.kind {
        Kind::UdpEcho => udp::serve(&options.listen, udp::Work::Echo, ready),
        Kind::UdpSink => udp::serve(&options.listen, udp::Work::Count, ready),
        kind => tcp::serve(kind, &options.listen, options.size as usize, ready),
    }
}

fn ready() -> anyhow::Result<()> {
    println!("ready");
    std::io::stdout().flush().context("standard output")
}

/// A backend must not outlive the run that started it, however that ends.
fn end_with_input() {
    let mut buffer = [0; 64];
    while matches!(std::io::stdin().read(&mut buffer), Ok(count) if count > 0) {}
    std::process::exit(0);
}
