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
use ringway::Variant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Peer {
    Ringway,
    /// UDP only: the kernel forwards each flow for Ringway as soon as the flow has lasted a while.
    RingwayFastPath,
    /// Without its access log, as the others are run.
    RingwayWithoutLog,
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
    /// TCP behind the proxy, and TLS that it ends before it.
    Tls,
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
    pub more: More,
    /// Where `cert.pem`, `key.pem` and both in `both.pem` are, if TLS is ended.
    pub certificates: PathBuf,
    /// For configurations, logs and sockets.
    pub dir: PathBuf,
    /// The network namespace that it runs in.
    pub netns: Option<String>,
}

/// Lines of Ringway's configuration beside those that every comparison has.
#[derive(Clone, Debug, Default)]
pub struct More {
    pub limits: String,
    pub listener: String,
    pub backend: String,
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
        let how = match peer {
            Peer::Ringway | Peer::RingwayFastPath | Peer::RingwayWithoutLog => {
                "cargo build --release"
            }
            _ => "bench/install-peers",
        };
        write!(f, "{peer} is not there ({why}): install it with `{how}`")
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
            Self::HaproxyCopy => transport != Transport::Udp,
            Self::HaproxySplice | Self::EpollSplice | Self::Monoio => transport == Transport::Tcp,
            Self::RingwayFastPath | Self::Dnsdist => transport == Transport::Udp,
            Self::Ringway | Self::RingwayWithoutLog | Self::Envoy => true,
            Self::Nginx | Self::Sozu | Self::Dnat | Self::Direct => transport != Transport::Tls,
        }
    }

    /// Whether it needs a network in which the kernel forwards.
    pub fn forwards(self) -> bool {
        matches!(self, Self::RingwayFastPath | Self::Dnat)
    }

    /// Whether it is somebody else's: what ratios are taken to.
    pub fn is_rival(self) -> bool {
        !matches!(
            self,
            Self::Ringway
                | Self::RingwayFastPath
                | Self::RingwayWithoutLog
                | Self::EpollSplice
                | Self::Monoio
                | Self::Dnat
                | Self::Direct
        )
    }

    /// # Errors
    /// It is not installed, or does not run here.
    pub fn find(self, places: &Places) -> Result<Found, Missing> {
        let debian = Debian::new(&places.peers);
        let found = match self {
            Self::Ringway | Self::RingwayFastPath | Self::RingwayWithoutLog => {
                ringway::find(&places.ringway)
            }
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

    /// Returns once it listens. A peer ends with the thread that started it: the main one, best.
    ///
    /// # Errors
    /// It ends at once, or does not listen in time; with what it had to say.
    pub fn start(self, found: &Found, setup: &Setup) -> anyhow::Result<Running> {
        std::fs::create_dir_all(&setup.dir)?;
        match self {
            Self::Ringway => ringway::start(found, setup, Variant::Default),
            Self::RingwayFastPath => ringway::start(found, setup, Variant::FastPath),
            Self::RingwayWithoutLog => ringway::start(found, setup, Variant::WithoutLog),
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

    /// One exchange through each peer that is here, TCP and UDP. DNAT needs a network of its own.
    #[test]
    fn every_peer_that_is_there_passes_traffic() {
        let backends = backends();
        let own = std::env::current_exe().expect("a path");
        let binary = own.parent().and_then(Path::parent).expect("target/debug").join("bench");
        let places = Places::new(&binary.with_file_name("ringway"));
        let dir = std::env::temp_dir().join(format!("ringway-peers-{}", std::process::id()));
        for (index, transport) in [Transport::Tcp, Transport::Udp].into_iter().enumerate() {
            for peer in Peer::value_variants().iter().filter(|peer| peer.speaks(transport)) {
                let mut found = match peer.find(&places) {
                    Ok(_) if peer.forwards() => continue,
                    Ok(found) => found,
                    Err(missing) => {
                        eprintln!("{missing}");
                        continue;
                    }
                };
                if matches!(peer, Peer::EpollSplice | Peer::Monoio) {
                    // The test's own binary has no subcommands.
                    found.program = Program::new([&binary]);
                }
                let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
                let setup = Setup {
                    transport,
                    listen: free.expect("bound"),
                    backends: vec![backends[index]],
                    workers: 1,
                    cores: vec![0],
                    udp: UdpShape::default(),
                    more: More::default(),
                    certificates: PathBuf::new(),
                    dir: dir.join(format!("{peer}-{index}")),
                    netns: None,
                };
                let running =
                    peer.start(&found, &setup).unwrap_or_else(|e| panic!("{peer}: {e:#}"));
                eprintln!("{peer} {transport:?}: {}, processes {:?}", found.version, running.pids);
                match transport {
                    Transport::Tcp | Transport::Tls => exchange_bytes(*peer, running.listen),
                    Transport::Udp => exchange_query(*peer, running.listen),
                }
                let pids = running.pids.clone();
                drop(running);
                for pid in pids {
                    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{peer} runs on");
                }
            }
        }
        let _ = std::fs::remove_dir_all(dir);
    }

    /// Echo servers of both transports; UDP's marks what it sends back as a DNS response, which
    /// dnsdist demands.
    fn backends() -> [SocketAddr; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let addresses = [listener.local_addr(), datagrams.local_addr()];
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 65_536];
                    while let Ok(count @ 1..) = stream.read(&mut bytes) {
                        let _ = stream.write_all(&bytes[..count]);
                    }
                });
            }
        });
        std::thread::spawn(move || {
            let mut bytes = [0; 2_000];
            while let Ok((count, from)) = datagrams.recv_from(&mut bytes) {
                bytes[2] |= 0x80;
                let _ = datagrams.send_to(&bytes[..count], from);
            }
        });
        addresses.map(|address| address.expect("bound"))
    }

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

    fn exchange_bytes(peer: Peer, to: SocketAddr) {
        let mut stream = TcpStream::connect(to).expect("a connection");
        stream.set_read_timeout(PATIENCE).expect("a timeout");
        let mut sender = stream.try_clone().expect("a descriptor");
        let said: Vec<u8> = (0..1 << 20).map(|n: u32| (n >> 5).to_le_bytes()[0]).collect();
        let expected = said.clone();
        let sending = std::thread::spawn(move || sender.write_all(&said));
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).unwrap_or_else(|e| panic!("{peer}: {e}"));
        assert!(answer == expected, "{peer} changes bytes");
        sending.join().expect("no panic").expect("sent");
    }

    fn exchange_query(peer: Peer, to: SocketAddr) {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04test\0\0\x01\0\x01";
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(PATIENCE).expect("a timeout");
        socket.send_to(query, to).expect("sent");
        let mut answer = [0; 1_000];
        let count = socket.recv(&mut answer).unwrap_or_else(|e| panic!("{peer}: {e}"));
        assert_eq!(&answer[..2], &query[..2], "{peer}");
        assert_eq!(count, query.len(), "{peer}");
    }
}
