//! What runs out: sessions, source ports, open files, memory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringway_tests::real::config::{forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Lines, Server, connect, echo, exchange, free_address, in_own_network, now,
    program, wait_until, was_reset,
};

use crate::{forwarding, handed_over};

#[test]
fn sessions_above_a_listeners_limit_are_refused_and_counted() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward("TCP", address, [server.address], "max_sessions = 10");
    refuses_above(10, &config, address, "listener_limit");
}

/// The kernel spreads clients over the workers as it likes, and all have one count.
#[test]
fn a_listeners_limit_holds_over_all_workers() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward("TCP", address, [server.address], "max_sessions = 2");
    let gateway = Launch::default().start(&config);
    let workers = gateway.metrics().value("ringway_workers", &[]);
    assert!(workers > 1, "with {workers} worker the test shows nothing");
    let mut clients: Vec<_> = (0..24).map(|_| connect(address)).collect();
    let served = |client: &mut TcpStream| {
        client.write_all(b"x").and_then(|()| client.read_exact(&mut [0])).is_ok()
    };
    let count = clients.iter_mut().filter_map(|client| served(client).then_some(())).count();
    let counted = [("reason", "listener_limit")];
    let refused = gateway.metrics().value("ringway_sessions_refused_total", &counted);
    assert_eq!((count, refused), (2, 22));
}

/// The endpoint is told only then that the client has ended, and takes its time.
#[test]
fn a_client_that_closes_and_comes_back_has_its_place() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward("TCP", address, [server.address], "max_sessions = 1");
    let gateway = Launch::default().one_worker().start(&config);
    let mut refused = 0;
    // No more than may be ending at once: how soon the server closes is its affair.
    for _ in 0..60 {
        let mut client = connect(address);
        let served = client.write_all(b"x").and_then(|()| client.read_exact(&mut [0]));
        refused += u32::from(served.is_err());
    }
    let counted = [("reason", "listener_limit")];
    let counted = gateway.metrics().value("ringway_sessions_refused_total", &counted);
    assert_eq!((refused, counted), (0, 0));
}

#[test]
fn sessions_above_the_workers_limit_are_refused_and_counted() {
    let server = Server::tcp(echo);
    let address = free_address();
    let limits = "[limits]\nsessions = 10\n";
    let config = forward("TCP", address, [server.address], "") + limits;
    refuses_above(10, &config, address, "session_limit");
}

fn refuses_above(limit: usize, config: &str, address: SocketAddr, reason: &str) {
    let gateway = Launch::default().one_worker().start(config);
    let mut kept: Vec<_> = (0..limit).map(|_| connect(address)).collect();
    for client in &mut kept {
        client.write_all(b"x").expect("sent");
        client.read_exact(&mut [0]).expect("an echo");
    }
    for _ in 0..5 {
        assert!(was_reset(&mut connect(address)), "one more than {limit} was let in");
    }
    let refused =
        || gateway.metrics().value("ringway_sessions_refused_total", &[("reason", reason)]);
    assert_eq!(refused(), 5);
    // There is room again once one has left.
    drop(kept.pop());
    wait_until("a session's end", || {
        gateway.metrics().value("ringway_sessions_active", &[]) < limit as u64
    });
    assert_eq!(exchange(address, b"again").expect("an echo"), b"again");
    assert_eq!(refused(), 5);
}

/// Two thousand sessions to one endpoint from an own network with 1,000 source ports.
#[test]
fn source_ports_that_run_out_are_a_local_limit() {
    in_own_network(|| {
        program("sysctl", &["-qw", "net.ipv4.ip_local_port_range=40000 40099"]);
        let (server, accepted) = handed_over();
        let (gateway, address) = forwarding(&server, "");
        // Clients choose their own ports, outside that range.
        let client = |port: u16| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("a socket");
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("a port");
            socket.connect(&address.into()).expect("connecting");
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            stream
        };
        let mut clients: Vec<_> = (0..150).map(|at| client(50_000 + at)).collect();
        let reason = [("reason", "local_limit")];
        let refused = || gateway.metrics().value("ringway_sessions_refused_total", &reason);
        // Active are those too that still connect.
        let opened = || gateway.metrics().value("ringway_endpoint_sessions_opened_total", &[]);
        wait_until("150 sessions are connected or refused", || opened() + refused() == 150);
        assert!(refused() >= 50, "{} refused of 150 with 100 ports", refused());
        clients.clear();
        drop(accepted);
        drop(server);
        gateway.closes(150);
    });
}

/// With too few descriptors the gateway stops accepting for a while and not for good, does not spin
/// over it, and says all the while what has come of it, to more than one who ask, and at both ends
/// in its log. Sessions that live go on. A session takes two descriptors, so that of an odd and an
/// even number of them one leaves none over.
#[test]
fn accepting_resumes_after_descriptors_ran_out() {
    // Both at once: each waits until the log says that the shortage is over.
    std::thread::scope(|scope| {
        for files in ["--nofile=200:200", "--nofile=201:201"] {
            scope.spawn(|| accepting_resumes_with(files));
        }
    });
}

fn accepting_resumes_with(files: &str) {
    let server = Server::tcp(echo);
    let limits = "[limits]\nsessions = 1024\nflows = 64\nbuffers = 16\npipes = 16\n";
    let address = free_address();
    let config = forward("TCP", address, [server.address], "") + limits;
    let gateway = Launch::default().under(&["prlimit", files]).start(&config);
    let mut live = connect(address);
    let mut lives = || {
        let mut word = [0; 4];
        live.write_all(b"live").and_then(|()| live.read_exact(&mut word)).expect("it lives");
        assert_eq!(&word, b"live");
    };
    lives();
    let clients: Vec<_> = (0..300).map(|_| connect(address)).collect();
    let pauses = || gateway.metrics().value("ringway_accept_pauses_total", &[]);
    wait_until("accepting pauses", || pauses() > 0);
    let (start, before) = (now(), gateway.ticks());
    // A session from before goes on all the while.
    for _ in 0..20 {
        lives();
        std::thread::sleep(Duration::from_millis(100));
    }
    let available = start.elapsed().as_secs() * 100;
    let used = gateway.ticks() - before;
    assert!(used * 2 < available, "{used} ticks of {available} on doing nothing");
    // A reload that needs files has some: for two sockets of each listener.
    let more: [_; 10] = std::array::from_fn(|_| free_address());
    let others = more.iter().enumerate().map(|(number, address)| {
        let name = format!("more{number}");
        listener(&name, "TCP", *address, "") + &route(&name, &name, &[("main", 1)], "")
    });
    gateway.reload(&(config + &others.collect::<String>()));
    more.iter().for_each(|address| drop(connect(*address)));
    // Each has a file, and says no more.
    let watchers: Vec<_> = (0..12).map(|_| connect(gateway.admin)).collect();
    assert!(pauses() > 0);
    drop(watchers);
    lives();
    let said = || gateway.stderr();
    wait_until("the log says that files ran out", || said().contains("overload: no file"));
    drop(live);
    drop(clients);
    for _ in 0..20 {
        wait_until("clients are served again", || {
            exchange(address, b"again").is_ok_and(|echo| echo == b"again")
        });
    }
    wait_until("all sessions are over", || {
        gateway.metrics().value("ringway_sessions_active", &[]) == 0
    });
    wait_until("the log says that there are files", || {
        said().contains("the shortage of files is over: ")
    });
    assert_eq!(said().matches("overload: no file").count(), 1, "{}", said());
}

/// Nine thousand idle sessions: all alive, and under 512 bytes of user memory each. They are held
/// by a process of their own, because each end needs a descriptor.
#[test]
fn nine_thousand_idle_sessions_are_cheap_and_alive() {
    const SESSIONS: usize = 9_000;
    const FIRST: usize = 500;
    let mut holder = Holder::start();
    let address = free_address();
    let config =
        forward("TCP", address, [holder.address], "") + "[limits]\nsessions = 9500\nflows = 64\n";
    let gateway = Gateway::start(&config);
    let hold = |clients: &mut Vec<TcpStream>, count: usize| {
        clients.resize_with(count, || connect(address));
        wait_until("all sessions are there", || {
            gateway.metrics().value("ringway_sessions_active", &[]) == count as u64
        });
        gateway.anonymous()
    };
    let mut clients = Vec::new();
    // What the first sessions cost is not what a session costs: both workers, the log and the
    // metrics touch their own memory for the first time.
    let before = hold(&mut clients, FIRST);
    let after = hold(&mut clients, SESSIONS);
    holder.wait_for(SESSIONS);
    let each = (after - before) * 1024 / (SESSIONS - FIRST) as u64;
    eprintln!("{each} bytes of user memory for each of {SESSIONS} idle sessions");
    assert!(each < 512, "{each} bytes for each idle session");

    holder.greet();
    for client in &mut clients {
        let mut word = [0; 5];
        client.read_exact(&mut word).expect("the greeting");
        assert_eq!(&word, b"hello");
    }
    drop(clients);
    drop(holder);
    wait_until("all sessions are over", || {
        gateway.metrics().value("ringway_sessions_active", &[]) == 0
    });
}

/// The helper program `hold`: accepts connections and keeps them.
struct Holder {
    child: Child,
    address: SocketAddr,
    says: Lines,
}

impl Holder {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hold"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the helper");
        let says = Lines::of(child.stdout.take().expect("its output"));
        Self { child, address: says.take().parse().expect("an address"), says }
    }

    /// Until it has accepted so many.
    fn wait_for(&mut self, count: usize) {
        let ask = self.child.stdin.as_mut().expect("its input");
        writeln!(ask, "{count}").expect("asked");
        assert_eq!(self.says.take(), count.to_string());
    }

    /// Has it say `hello` on all that are open.
    fn greet(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("its input"), "hello").expect("asked");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
