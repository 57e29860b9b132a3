//! Two small TCP proxies of our own, to measure designs by: they have no limits, no timeouts and no
//! configuration, so what they cost is what their way of moving bytes costs.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use clap::{Args, ValueEnum};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::process::{Program, Running};
use super::{Found, Setup};

mod epoll;
mod monoio;
mod mover;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Baseline {
    /// epoll; recv and send, and splice(2) for what turns out to be bulk.
    EpollSplice,
    /// monoio's `readable()`, then the same calls.
    Monoio,
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    kind: Baseline,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
    /// Threads, each with a listening socket of its own.
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

pub fn find() -> anyhow::Result<Found> {
    let own = std::env::current_exe()?;
    let version = format!("of bench {}", env!("CARGO_PKG_VERSION"));
    Ok(Found { version, program: Program::new([own]) })
}

pub fn start(found: &Found, setup: &Setup, kind: Baseline) -> anyhow::Result<Running> {
    let kind = kind.to_possible_value().expect("no variant is skipped");
    let (listen, to) = (setup.listen.to_string(), setup.backends[0].to_string());
    let workers = setup.workers.to_string();
    let arguments =
        ["baseline", kind.get_name(), "--listen", &listen, "--to", &to, "--workers", &workers];
    Running::start(&found.program, &arguments, format!("bench {}\n", arguments.join(" ")), setup)
}

/// Runs one until it is killed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    crate::serve::host::raise_file_limit()?;
    let threads: Vec<_> = (0..options.workers)
        .map(|_| {
            let Options { kind, listen, to, .. } = *options;
            std::thread::spawn(move || match kind {
                Baseline::EpollSplice => epoll::run(listen, to),
                Baseline::Monoio => monoio::run(listen, to),
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a worker does not panic")?;
    }
    Ok(())
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// A non-blocking connection that is on its way.
fn begin_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// When a direction turns from copying to splicing and back: as in Ringway, so that the difference
/// is in what surrounds it.
#[derive(Debug, Default)]
pub struct Way {
    splicing: bool,
    streak: u8,
}

impl Way {
    pub fn splices(&self) -> bool {
        self.splicing
    }

    /// One wake-up has brought so many bytes.
    pub fn note(&mut self, bytes: usize) {
        let (enough, other_way) = match self.splicing {
            false => (3, bytes >= 32 << 10),
            true => (8, bytes < 8 << 10),
        };
        self.streak = if other_way { self.streak + 1 } else { 0 };
        if self.streak == enough || (!self.splicing && bytes >= 64 << 10) {
            self.splicing = !self.splicing;
            self.streak = 0;
        }
    }
}
