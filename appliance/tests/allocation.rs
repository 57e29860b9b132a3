//! Tests that there is no allocation per packet and none per relay step, and no more per TLS record
//! than `tls_relay.rs` states. A worker runs on this thread, under an allocator that counts this
//! thread's requests.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use allocation_counter::AllocationInfo;
use config_sync::check;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::model::config;
use config_sync::model::tls::{Certificate, Pem, Termination};
use config_sync::publish::Command;
use config_sync::table::routing::Limits;
use crossbeam_channel::bounded;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ringway::proxy::memory::RUSTLS;
use ringway::ring::Features;
use ringway::ring::listen::open::open_listeners;
use ringway::stats::counters::Counters;
use ringway::worker::{Clock, Worker, WorkerConfig};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A worker with one TCP, one UDP and one TLS listener, each in front of an echo server. The TLS
/// listener terminates TLS.
struct Bench {
    worker: Worker,
    tcp: SocketAddr,
    udp: SocketAddr,
    tls: SocketAddr,
    /// The certificate that the TLS listener shows.
    certificate: CertificateDer<'static>,
    /// Ends the worker's wait.
    wake: Arc<EventFd>,
}

impl Bench {
    fn new() -> Self {
        let (tcp, udp, tls) = (free_tcp_port(), free_udp_port(), free_tcp_port());
        let text = format!(
            r#"
            [[listeners]]
            name = "tcp"
            protocol = "TCP"
            address = "{tcp}"
            [[listeners]]
            name = "udp"
            protocol = "UDP"
            address = "{udp}"
            [[listeners]]
            name = "tls"
            protocol = "TLS"
            address = "{tls}"
            [[routes]]
            name = "tcp"
            listeners = ["tcp", "tls"]
            backends = [{{ name = "tcp" }}]
            [[routes]]
            name = "udp"
            listeners = ["udp"]
            backends = [{{ name = "udp" }}]
            [[backends]]
            name = "tcp"
            endpoints = ["{}"]
            [[backends]]
            name = "udp"
            endpoints = ["{}"]
            "#,
            tcp_echo(),
            udp_echo()
        );
        let mut config = check::parse("test", &text).unwrap();
        let certificate = terminate(&mut config);
        let table = compile(&config, &mut Names::new(), 1).unwrap();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let ((send, commands), (records, _)) = (bounded(1), bounded(1));
        let sockets = table.sockets.iter().map(|socket| {
            let file = open_listeners(socket, 1, false, false, 1).unwrap().remove(0);
            (socket.id, socket.transport, Arc::new(file))
        });
        send.send(Command::Table { sockets: sockets.collect(), table: Arc::new(table) }).unwrap();
        wake.write(1).unwrap();
        let worker = Worker::new(WorkerConfig {
            core: None,
            index: 0,
            waits: false,
            confined: false,
            limits: LIMITS,
            features: Features::probe().unwrap(),
            counters: Arc::new(Counters::new()),
            commands,
            wake: wake.as_fd().try_clone_to_owned().unwrap(),
            records,
            copies: bounded(1).0,
            bell: Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into()),
            clock: Clock::start(),
            ports_short: Arc::default(),
            fast_path: Arc::default(),
            seed: 1,
        });
        Self { worker: worker.unwrap(), tcp, udp, tls, certificate, wake }
    }

    /// Turns the worker until the client is done. Returns how often the worker allocated in that
    /// time.
    fn allocations_during(&mut self, client: impl FnOnce() + Send + 'static) -> u64 {
        self.measure_during(client).count_total
    }

    fn measure_during(&mut self, client: impl FnOnce() + Send + 'static) -> AllocationInfo {
        let (client, done) = start(client, Arc::clone(&self.wake));
        let measured = allocation_counter::measure(|| {
            while !done.load(Ordering::Relaxed) {
                self.worker.turn().unwrap();
            }
        });
        client.join().unwrap();
        measured
    }
}

const NAME: &str = "a.test";

const LIMITS: Limits = Limits {
    sessions: 64,
    flows: 64,
    buffers: 64,
    pipes: 8,
    turn_bytes: 1 << 20,
    bulk_bytes: 8 << 20,
};

#[test]
fn a_tcp_relay_does_not_allocate() {
    let mut bench = Bench::new();
    let address = bench.tcp;
    // The first exchanges size the vectors that are reused from turn to turn.
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(connect_through(&mut bench, address));
    }
    let exchange = |streams: Vec<TcpStream>, rounds| {
        move || {
            for mut stream in streams {
                small_exchanges(&mut stream, rounds);
                bulk_exchange(&stream, rounds * 20_000);
            }
        }
    };
    let clones = |streams: &[TcpStream]| {
        streams.iter().map(|stream| stream.try_clone().unwrap()).collect::<Vec<_>>()
    };
    bench.allocations_during(exchange(clones(&streams), 100));
    let allocations = bench.allocations_during(exchange(clones(&streams), 1_000));
    assert_eq!(allocations, 0, "4 x 1,000 small exchanges and 4 x 20 MB both ways");
}

#[test]
fn a_udp_flow_does_not_allocate() {
    let mut bench = Bench::new();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(bench.udp).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let exchange = |socket: UdpSocket, rounds| {
        move || {
            let mut buffer = [0; 2_048];
            for round in 0..rounds {
                let sent = [7; 1_400];
                socket.send(&sent[..1 + round % 1_400]).unwrap();
                assert_eq!(socket.recv(&mut buffer).unwrap(), 1 + round % 1_400);
            }
        }
    };
    bench.allocations_during(exchange(socket.try_clone().unwrap(), 500));
    let allocations = bench.allocations_during(exchange(socket, 5_000));
    assert_eq!(allocations, 0, "5,000 datagrams both ways");
}

/// Makes the last listener terminate TLS. Returns the certificate that the listener shows.
fn terminate(config: &mut config::Config) -> CertificateDer<'static> {
    let issued = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let inline = |pem: String| Pem::Inline { name: "test".into(), bytes: pem.as_bytes().into() };
    let key = inline(issued.signing_key.serialize_pem());
    let shown = Certificate { cert: inline(issued.cert.pem()), key };
    let listener = config.listeners.last_mut().unwrap();
    listener.tls = Some(Termination { certificates: vec![shown], ..Termination::default() });
    issued.cert.der().clone()
}

/// The number of allocations that `tls_relay.rs` states for each record.
const PER_RECORD: u64 = 1;

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A client of the listener that terminates TLS.
fn tls_client(bench: &Bench) -> Arc<Mutex<TlsStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(bench.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let conn = ClientConnection::new(Arc::new(config), NAME.try_into().unwrap()).unwrap();
    Arc::new(Mutex::new(StreamOwned::new(conn, connect(bench.tls))))
}

/// The bound of the process's memory counts so much for each connection.
#[test]
fn rustls_has_no_more_memory_for_a_connection_than_is_counted() {
    let mut bench = Bench::new();
    let greet = |stream: Arc<Mutex<TlsStream>>| {
        move || {
            let mut stream = stream.lock().unwrap();
            stream.write_all(&[9; 64]).unwrap();
            stream.read_exact(&mut [0; 64]).unwrap();
        }
    };
    // The first session pays for vectors that grow to their size.
    let first = tls_client(&bench);
    bench.allocations_during(greet(Arc::clone(&first)));
    let second = tls_client(&bench);
    let measured = bench.measure_during(greet(Arc::clone(&second)));
    let (most, kept) = (measured.bytes_max, measured.bytes_current);
    eprintln!("{most} bytes in the handshake, {kept} after it");
    assert!(kept > 0, "the session has a connection");
    assert!(most <= RUSTLS as u64, "{most} bytes");
}

#[test]
fn a_terminated_relay_allocates_once_for_each_record() {
    let mut bench = Bench::new();
    let stream = tls_client(&bench);
    let exchange = |rounds| {
        let stream = Arc::clone(&stream);
        move || {
            let mut stream = stream.lock().unwrap();
            let mut buffer = [0; 64];
            for _ in 0..rounds {
                stream.write_all(&[9; 64]).unwrap();
                stream.read_exact(&mut buffer).unwrap();
            }
        }
    };
    // This exchange pays for the handshake, and for vectors that grow to their size.
    bench.allocations_during(exchange(100));
    let allocations = bench.allocations_during(exchange(1_000));
    // A few allocations have nothing to do with records.
    let most = 2 * 1_000 * PER_RECORD + 10;
    assert!(allocations <= most, "{allocations} for 1,000 records each way");
}

/// The allocator does count. Otherwise the tests above would show nothing.
#[test]
fn the_counter_counts() {
    let measured = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!(measured.count_total, 1);
}

/// A read that takes longer fails, and does not hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn connect_through(bench: &mut Bench, address: SocketAddr) -> TcpStream {
    let stream = connect(address);
    let mut copy = stream.try_clone().unwrap();
    bench.allocations_during(move || small_exchanges(&mut copy, 1));
    stream
}

fn small_exchanges(stream: &mut TcpStream, rounds: usize) {
    let mut buffer = [0; 64];
    for _ in 0..rounds {
        stream.write_all(&[9; 64]).unwrap();
        stream.read_exact(&mut buffer).unwrap();
    }
}

/// Sends and receives this many bytes at once.
fn bulk_exchange(stream: &TcpStream, bytes: usize) {
    let mut sender = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let block = [3; 65_536];
        let mut left = bytes;
        while left > 0 {
            left -= sender.write(&block[..left.min(block.len())]).unwrap();
        }
    });
    let mut reader = stream;
    let mut buffer = vec![0; 65_536];
    let mut left = bytes;
    while left > 0 {
        let limit = left.min(buffer.len());
        let count = reader.read(&mut buffer[..limit]).unwrap();
        assert!(count > 0, "{left} bytes are missing");
        left -= count;
    }
    sender.join().unwrap();
}

fn start(
    work: impl FnOnce() + Send + 'static,
    wake: Arc<EventFd>,
) -> (JoinHandle<()>, Arc<AtomicBool>) {
    let done = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&done);
    let thread = std::thread::spawn(move || {
        // This runs also when an assertion fails, because the test must not hang.
        struct Tell(Arc<AtomicBool>, Arc<EventFd>);
        impl Drop for Tell {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
                self.1.write(1).unwrap();
            }
        }
        let _tell = Tell(tell, wake);
        work();
    });
    (thread, done)
}

fn tcp_echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while let Ok(count) = stream.read(&mut buffer)
                    && count > 0
                    && stream.write_all(&buffer[..count]).is_ok()
                {}
            });
        }
    });
    address
}

fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((count, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..count], peer);
        }
    });
    address
}

fn free_tcp_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn free_udp_port() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}
