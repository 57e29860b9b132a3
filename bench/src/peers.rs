//! The programs that Ringway is compared with, each configured at its best for the workload:
//! limits out of the way, reuseport, no access log, as many workers as Ringway has, on its cores.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

mod baseline;
mod debian;
mod dnat;
mod dnsdist;
mod envoy;
mod haproxy;
mod nginx;
mod process;
mod ringway;
mod sozu;

pub use baseline::{Baseline, Options as BaselineOptions, run as run_baseline};
pub use process::Running;

use debian::Debian;
use process::Program;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Peer {
    Ringway,
    /// `option splice-request` and `splice-response`: every byte through pipes.
    HaproxySplice,
    /// As most people run it.
    HaproxyCopy,
    Nginx,
    Envoy,
    Sozu,
    /// UDP only: a DNS load balancer.
    Dnsdist,
    /// Ours: epoll, copying that turns to splice(2).
    EpollSplice,
    /// Ours: monoio's `readable()`, and splice(2).
    Monoio,
    /// nftables: what the kernel does without any process.
    Dnat,
    /// No proxy: what the load itself can reach.
    Direct,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What a peer is to do.
#[derive(Clone, Debug)]
pub struct Setup {
    pub transport: Transport,
    pub listen: SocketAddr,
    pub backends: Vec<SocketAddr>,
    pub workers: usize,
    /// The cores of the process; empty: wherever the scheduler likes.
    pub cores: Vec<usize>,
    pub udp: UdpShape,
    /// For configurations, logs and sockets.
    pub dir: PathBuf,
    /// The network namespace that it runs in.
    pub netns: Option<String>,
}

#[derive(Clone, Debug)]
pub struct UdpShape {
    /// Replies after which a flow is over, where the peer knows such a thing.
    pub responses: Option<u32>,
    pub idle: Duration,
    /// Local addresses towards the backends, where the peer can choose; empty: the kernel's choice.
    pub sources: Vec<IpAddr>,
    /// Flows share few upstream sockets, where the peer can do that.
    pub shared: bool,
}

impl Default for UdpShape {
    fn default() -> Self {
        let idle = Duration::from_secs(30);
        Self { responses: None, idle, sources: Vec::new(), shared: false }
    }
}

/// Where programs are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The gateway's binary.
    pub ringway: PathBuf,
    /// What `bench/install-peers` has filled.
    pub peers: PathBuf,
}

impl Places {
    /// `$RINGWAY_PEERS`, or `ringway-peers` in the user's cache folder.
    pub fn new(ringway: &Path) -> Self {
        let cache = || {
            let home =
                std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
            home.join(".cache/ringway-peers")
        };
        let peers = std::env::var_os("RINGWAY_PEERS").map_or_else(cache, PathBuf::from);
        Self { ringway: ringway.to_owned(), peers }
    }
}

/// A peer that can be started.
#[derive(Clone, Debug)]
pub struct Found {
    /// As the program itself says.
    pub version: String,
    pub(crate) program: Program,
}

#[derive(Debug)]
pub struct Missing {
    peer: Peer,
    why: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, why } = self;
        write!(f, "{peer} is not there ({why}): install it with `bench/install-peers`")
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no variant is skipped");
        f.write_str(value.get_name())
    }
}

impl Peer {
    pub fn speaks(self, transport: Transport) -> bool {
        match self {
            Self::HaproxySplice | Self::HaproxyCopy | Self::EpollSplice | Self::Monoio => {
                transport == Transport::Tcp
            }
            Self::Dnsdist => transport == Transport::Udp,
            Self::Ringway | Self::Nginx | Self::Envoy | Self::Sozu | Self::Dnat | Self::Direct => {
                true
            }
        }
    }

    /// # Errors
    /// It is not installed, or does not run here.
    pub fn find(self, places: &Places) -> Result<Found, Missing> {
        let debian = Debian::new(&places.peers);
        let found = match self {
            Self::Ringway => ringway::find(&places.ringway),
            Self::HaproxySplice | Self::HaproxyCopy => haproxy::find(&debian),
            Self::Nginx => nginx::find(&debian),
            Self::Dnsdist => dnsdist::find(&debian),
            Self::Envoy => envoy::find(&places.peers),
            Self::Sozu => sozu::find(&places.peers),
            Self::EpollSplice | Self::Monoio => baseline::find(),
            Self::Dnat => dnat::find(),
            Self::Direct => Ok(Found { version: "-".to_owned(), program: Program::none() }),
        };
        found.map_err(|why| Missing { peer: self, why: format!("{why:#}") })
    }

    /// Returns once it listens.
    ///
    /// # Errors
    /// It ends at once, or does not listen in time; with what it had to say.
    pub fn start(self, found: &Found, setup: &Setup) -> anyhow::Result<Running> {
        std::fs::create_dir_all(&setup.dir)?;
        match self {
            Self::Ringway => ringway::start(found, setup),
            Self::HaproxySplice => haproxy::start(found, setup, true),
            Self::HaproxyCopy => haproxy::start(found, setup, false),
            Self::Nginx => nginx::start(found, setup),
            Self::Envoy => envoy::start(found, setup),
            Self::Sozu => sozu::start(found, setup),
            Self::Dnsdist => dnsdist::start(found, setup),
            Self::EpollSplice => baseline::start(found, setup, Baseline::EpollSplice),
            Self::Monoio => baseline::start(found, setup, Baseline::Monoio),
            Self::Dnat => dnat::start(setup),
            Self::Direct => Ok(Running::nothing(setup.backends[0])),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_is_missing_says_how_to_get_it() {
        let places = Places { ringway: "/none".into(), peers: "/none".into() };
        let missing = Peer::Envoy.find(&places).expect_err("nothing is there");
        let text = missing.to_string();
        assert!(text.starts_with("envoy is not there"), "{text}");
        assert!(text.contains("bench/install-peers"), "{text}");
    }

    /// One exchange through each peer that is here, TCP and UDP.
    #[test]
    fn every_peer_that_is_there_passes_traffic() {
        let own = std::env::current_exe().expect("a path");
        let binary = own.parent().and_then(Path::parent).expect("target/debug").join("bench");
        let places = Places::new(&binary.with_file_name("ringway"));
        let dir = std::env::temp_dir().join(format!("ringway-peers-{}", std::process::id()));
        for (transport, backend) in [(Transport::Tcp, tcp_echo()), (Transport::Udp, udp_echo())] {
            for peer in Peer::value_variants() {
                if !peer.speaks(transport) || [Peer::Dnat, Peer::Dnsdist].contains(peer) {
                    continue;
                }
                let Ok(mut found) = peer.find(&places).map_err(|missing| eprintln!("{missing}"))
                else {
                    continue;
                };
                if matches!(peer, Peer::EpollSplice | Peer::Monoio) {
                    // The test's own binary has no subcommands.
                    found.program = Program::new([&binary]);
                }
                let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
                let setup = Setup {
                    transport,
                    listen: free.expect("a free port"),
                    backends: vec![backend],
                    workers: 1,
                    cores: vec![0],
                    udp: UdpShape::default(),
                    dir: dir.join(format!("{peer}-{transport:?}")),
                    netns: None,
                };
                let running =
                    peer.start(&found, &setup).unwrap_or_else(|error| panic!("{peer}: {error:#}"));
                eprintln!("{peer} {transport:?}: {}", found.version);
                match transport {
                    Transport::Tcp => exchange_tcp(*peer, running.listen),
                    Transport::Udp => exchange_udp(*peer, running.listen),
                }
            }
        }
        let _ = std::fs::remove_dir_all(dir);
    }

    fn tcp_echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 65_536];
                    while let Ok(count @ 1..) = stream.read(&mut bytes) {
                        let _ = stream.write_all(&bytes[..count]);
                    }
                });
            }
        });
        address
    }

    fn udp_echo() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = socket.local_addr().expect("bound");
        std::thread::spawn(move || {
            let mut bytes = [0; 2_000];
            while let Ok((count, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..count], from);
            }
        });
        address
    }

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

    /// A megabyte there and back, so that those that splice do.
    fn exchange_tcp(peer: Peer, address: SocketAddr) {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(PATIENCE).expect("a timeout");
        let mut sender = stream.try_clone().expect("a descriptor");
        let said: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
        let expected = said.clone();
        let sending = std::thread::spawn(move || sender.write_all(&said));
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).expect("all of it");
        assert!(answer == expected, "{peer} changes bytes");
        sending.join().expect("no panic").expect("sent");
    }

    fn exchange_udp(peer: Peer, address: SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(PATIENCE).expect("a timeout");
        socket.send_to(b"hello", address).expect("sent");
        let mut answer = [0; 100];
        let count = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{peer}: {error}"));
        assert_eq!(&answer[..count], b"hello", "{peer}");
    }
}
