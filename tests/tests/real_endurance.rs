//! Endurance: mixed load for a long time. The memory, the open files, the places of sessions and
//! the pipes of the gateway do not grow with time, neither in one process that reloads all along,
//! nor from one process to the next over many upgrades.
//!
//! `tests/run --long` runs this for half an hour, or for `RINGWAY_ENDURANCE_SECONDS`.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use ringway_tests::pki::Pki;
use ringway_tests::real::config::{forward_as, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Launch, Pattern, Postgres, Server, SetWhenDropped, amount,
    client_hello, connect, echo, free_address, now, program, udp_client, wait_until,
};
use ringway_tests::sim::rng::Rng;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::SockRef;

/// What a process has at one time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    kilobytes: u64,
    /// Without the ends of pipes.
    files: u64,
    slots: u64,
    flows: u64,
    pipes: u64,
    /// Ends of pipes, idle ones too: the gateway keeps those that it has made.
    pipe_ends: u64,
}

/// One of its numbers.
type Figure = fn(&Sample) -> u64;

impl Sample {
    /// Of the process that serves now.
    fn of(gateway: &Gateway) -> Option<Self> {
        let process = gateway.line().into_iter().max()?;
        let maps = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let line = maps.lines().find(|line| line.starts_with("Anonymous:"))?;
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten();
        let names = files.map(|file| std::fs::read_link(file.path()).unwrap_or_default());
        let (pipe_ends, files): (Vec<_>, Vec<_>) =
            names.partition(|name| name.display().to_string().starts_with("pipe:"));
        let metrics = gateway.metrics();
        Some(Self {
            kilobytes: line.split_whitespace().nth(1)?.parse().ok()?,
            files: files.len() as u64,
            pipe_ends: pipe_ends.len() as u64,
            slots: metrics.value("ringway_session_slots_used", &[]),
            flows: metrics.value("ringway_flow_slots_used", &[]),
            pipes: metrics.value("ringway_pipes_used", &[]),
        })
    }
}

struct World {
    gateway: Gateway,
    /// Another one, which is upgraded all along.
    line: Gateway,
    line_at: SocketAddr,
    /// Where iperf3 serves.
    iperf3: SocketAddr,
    at: Listening,
    pki: Pki,
    over: AtomicBool,
    done: Counts,
    _ends: (Server, Server, Postgres, Daemon, Folder),
}

/// Where the listeners are.
#[derive(Clone, Copy)]
struct Listening {
    echo: SocketAddr,
    udp: SocketAddr,
    tls: SocketAddr,
    ends: SocketAddr,
    postgres: SocketAddr,
    redis: SocketAddr,
    iperf3: SocketAddr,
}

#[derive(Debug, Default)]
struct Counts {
    talks: AtomicU64,
    bulk_megabytes: AtomicU64,
    hellos: AtomicU64,
    handshakes: AtomicU64,
    flows: AtomicU64,
    unanswered: AtomicU64,
    programs: AtomicU64,
    reloads: AtomicU64,
    upgrades: AtomicU64,
}

fn one(count: &AtomicU64) {
    count.fetch_add(1, SeqCst);
}

#[test]
#[ignore = "it takes half an hour"]
fn nothing_grows_with_time() {
    let span = Duration::from_secs(amount("RINGWAY_ENDURANCE_SECONDS", 1_800, 1_800));
    let (world, config) = World::new();
    let before = Sample::of(&world.gateway).expect("it runs");
    let (mut samples, in_line) = (Vec::new(), Mutex::new(Vec::new()));
    let works: [&(dyn Fn() + Sync); 10] = [
        &|| world.talk(1),
        &|| world.talk(2),
        &|| world.talk(3),
        &|| world.bulk(),
        &|| world.hellos(),
        &|| world.handshakes(),
        &|| world.play(),
        &|| world.programs(),
        &|| world.reload(&config),
        &|| world.upgrade(&in_line),
    ];
    std::thread::scope(|scope| {
        let over = &world.over;
        let _over = SetWhenDropped(over);
        for work in works {
            scope.spawn(move || {
                // One that fails ends all.
                let _over = SetWhenDropped(over);
                work();
            });
        }
        let began = now();
        while began.elapsed() < span && !world.over.load(SeqCst) {
            std::thread::sleep(Duration::from_secs(1));
            samples.extend(Sample::of(&world.gateway));
        }
    });
    eprintln!("{:?}", world.done);
    world.is_idle_again(before);
    judge("one process", &samples);
    judge("each process of a line, some seconds old", &in_line.into_inner().expect("whole"));
}

/// Compares the second quarter of the time with the last. In the first, the gateway allocates what
/// it keeps.
fn judge(what: &str, samples: &[Sample]) {
    let quarter = samples.len() / 4;
    assert!(quarter > 0, "{what}: too short a time");
    // The quietest moment: how many sessions there are otherwise depends on who has his turn.
    let least = |part: &[Sample], of: Figure| part.iter().map(of).min().unwrap_or_default();
    let (early, late) = (&samples[quarter..2 * quarter], &samples[samples.len() - quarter..]);
    let kinds: [(&str, Figure, u64); 6] = [
        ("KiB of memory", |of| of.kilobytes, 4_096),
        ("files", |of| of.files, 40),
        ("places of sessions", |of| of.slots, 40),
        ("places of flows", |of| of.flows, 40),
        ("pipes in use", |of| of.pipes, 10),
        ("ends of pipes", |of| of.pipe_ends, 20),
    ];
    for (kind, of, slack) in kinds {
        let (early, late) = (least(early, of), least(late, of));
        eprintln!(
            "{what}: at least {early} {kind}, and {late} in the end ({} samples)",
            samples.len()
        );
        // What moves by chance, and no more.
        assert!(late <= early + early / 10 + slack, "{what}: {kind} grow");
    }
}

impl World {
    fn new() -> (Self, String) {
        let (echoes, datagrams) = (Server::tcp(echo), Server::udp_echo());
        let (postgres, folder, pki) = (Postgres::start(&[]), Folder::new(), Pki::new());
        let [redis, iperf3, line_at] = [(); 3].map(|()| free_address());
        let port = |at: SocketAddr| at.port().to_string();
        let mut server = Command::new("redis-server");
        server.args(["--port", &port(redis), "--save", "", "--appendonly", "no"]);
        let redis_server = Daemon::start(redis, &mut server);
        let issued = pki.issue(&["long.test"]);
        let tls = format!(
            "tls = {{ mode = \"Terminate\", certificates = [{{ cert = \"{}\", key = \"{}\" }}] }}",
            folder.write("cert.pem", &issued.cert).display(),
            folder.write("key.pem", &issued.key).display(),
        );
        let [a, b, c, d, e, f, g] = [(); 7].map(|()| free_address());
        let at = Listening { echo: a, udp: b, tls: c, ends: d, postgres: e, redis: f, iperf3: g };
        let part =
            |(name, protocol, from, to, options): (&str, &str, SocketAddr, SocketAddr, &str)| {
                forward_as(name, protocol, from, [to], options)
            };
        let config = [
            ("echo", "TCP", at.echo, echoes.address, "limit_source = { sessions = 500 }"),
            ("udp", "UDP", at.udp, datagrams.address, "flow_timeout = \"2s\""),
            ("tls", "TLS", at.tls, echoes.address, ""),
            ("ends", "TLS", at.ends, echoes.address, &tls),
            ("postgres", "TCP", at.postgres, postgres.address, ""),
            ("redis", "TCP", at.redis, redis, ""),
            ("iperf3", "TCP", at.iperf3, iperf3, ""),
        ]
        .map(part)
        .concat();
        let gateway = Gateway::start(&config);
        let line = part(("echo", "TCP", line_at, echoes.address, ""));
        let line = Launch::default().socket().start(&line);
        program(
            "pgbench",
            &["-h", "127.0.0.1", "-p", &port(at.postgres), "-U", "postgres", "-iq", "postgres"],
        );
        let world = Self {
            gateway,
            line,
            line_at,
            iperf3,
            at,
            pki,
            over: AtomicBool::new(false),
            done: Counts::default(),
            _ends: (echoes, datagrams, postgres, redis_server, folder),
        };
        (world, config)
    }

    fn goes_on(&self) -> bool {
        !self.over.load(SeqCst)
    }

    /// Sessions of any size, which end in any way.
    fn talk(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        while self.goes_on() {
            let stream = connect(self.at.echo);
            let (mut sent, mut got) = (Pattern::new(seed), Pattern::new(seed));
            for _ in 0..rng.below(30) {
                let len = 1 + rng.below(60_000);
                sent.send(&stream, len).expect("it is taken");
                got.expect(&stream, len).expect("it comes back");
            }
            match rng.below(3) {
                0 => SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option"),
                1 => stream.shutdown(Shutdown::Write).expect("open"),
                _ => {}
            }
            one(&self.done.talks);
        }
    }

    /// Much, both ways at once.
    fn bulk(&self) {
        const MEGABYTES: u64 = 64;
        while self.goes_on() {
            let stream = connect(self.at.echo);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    Pattern::new(9).send(&stream, MEGABYTES << 20).expect("it is taken");
                });
                Pattern::new(9).expect(&stream, MEGABYTES << 20).expect("it comes back");
            });
            self.done.bulk_megabytes.fetch_add(2 * MEGABYTES, SeqCst);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// TLS that passes through.
    fn hellos(&self) {
        let hello = client_hello(Some("long.test"));
        while self.goes_on() {
            let mut stream = connect(self.at.tls);
            stream.write_all(&hello).expect("it is taken");
            stream.read_exact(&mut vec![0; hello.len()]).expect("it comes back");
            one(&self.done.hellos);
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// TLS that ends at the gateway.
    fn handshakes(&self) {
        let mut roots = RootCertStore::empty();
        let ca = self.pki.ca();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a CA");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = Arc::new(config);
        while self.goes_on() {
            let name = "long.test".to_owned().try_into().expect("a name");
            let client = ClientConnection::new(Arc::clone(&config), name).expect("a client");
            let mut stream: StreamOwned<_, TcpStream> =
                StreamOwned::new(client, connect(self.at.ends));
            stream.write_all(&[7; 3_000]).expect("it is taken");
            stream.read_exact(&mut [0; 3_000]).expect("it comes back");
            one(&self.done.handshakes);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Flows of a few datagrams.
    fn play(&self) {
        while self.goes_on() {
            let socket = udp_client(self.at.udp);
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
            for number in 0..20u8 {
                socket.send(&[number; 200]).expect("sending");
                if socket.recv(&mut [0; 256]).is_err() {
                    one(&self.done.unanswered);
                }
            }
            one(&self.done.flows);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Real clients, one after the other; pgbench has a session for each transaction, too.
    fn programs(&self) {
        let at = &self.at;
        let ports = [at.postgres, at.redis, at.iperf3].map(|at| at.port().to_string());
        let sql = ["-h", "127.0.0.1", "-p", &ports[0], "-U", "postgres", "-c", "4", "-T", "4"];
        let keys = ["-h", "127.0.0.1", "-p", &ports[1], "-c", "50", "-n", "50000", "-q"];
        let bytes = ["-c", "127.0.0.1", "-p", &ports[2], "-t", "3", "-P", "2", "-b", "300M"];
        while self.goes_on() {
            program("pgbench", &[&sql[..], &["-C", "postgres"]].concat());
            program("pgbench", &[&sql[..], &["postgres"]].concat());
            program("redis-benchmark", &[&keys[..], &["-t", "get,set"]].concat());
            for way in ["-4", "-R"] {
                let _server = Daemon::iperf3(self.iperf3);
                program("iperf3", &[&bytes[..], &[way]].concat());
            }
            one(&self.done.programs);
        }
    }

    /// A listener comes and goes.
    fn reload(&self, config: &str) {
        let more = listener("more", "TCP", free_address(), "")
            + &route("more", "more", &[("echo", 1)], "");
        let configs = [config.to_owned() + &more, config.to_owned()];
        for next in configs.iter().cycle() {
            if !self.goes_on() {
                return;
            }
            self.gateway.reload(next);
            one(&self.done.reloads);
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// One process follows the other, with sessions that never end.
    fn upgrade(&self, samples: &Mutex<Vec<Sample>>) {
        let sessions: Vec<_> = (0..200).map(|_| connect(self.line_at)).collect();
        let ask = |mut stream: &TcpStream| {
            stream.write_all(b"well?").expect("the session lives");
            stream.read_exact(&mut [0; 5]).expect("the session lives");
        };
        while self.goes_on() {
            for _ in 0..20 {
                sessions.iter().for_each(ask);
                std::thread::sleep(Duration::from_millis(100));
            }
            samples.lock().expect("whole").extend(Sample::of(&self.line));
            self.line.asks(&["upgrade"]);
            wait_until("all sessions have gone", || self.line.line().len() == 1);
            one(&self.done.upgrades);
        }
    }

    /// What was there before the load is there after it, and no more.
    fn is_idle_again(&self, before: Sample) {
        let mut last = before;
        // UDP sockets towards endpoints rest for a while.
        for _ in 0..60 {
            last = Sample::of(&self.gateway).expect("it runs");
            if (last.slots, last.flows, last.pipes, last.files) == (0, 0, 0, before.files) {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        eprintln!("before: {before:?}; after the load: {last:?}");
        assert_eq!((last.slots, last.flows, last.pipes), (0, 0, 0), "places are not free");
        assert!(last.files <= before.files + 2, "files are open");
        let metrics = self.gateway.metrics();
        let buffers = |name| metrics.value(name, &[]);
        assert_eq!(
            buffers("ringway_receive_buffers_free"),
            buffers("ringway_receive_buffers"),
            "a buffer was lost"
        );
        let reset = [("reason", "endpoint_reset")];
        eprintln!(
            "{} sessions, {} of them reset by their endpoint",
            metrics.value("ringway_sessions_opened_total", &[]),
            metrics.value("ringway_sessions_closed_total", &reset)
        );
    }
}
