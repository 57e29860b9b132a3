//! Established TCP sessions go on in the next process of an upgrade: no byte is lost, nobody is
//! reset, and if the next process fails, the session goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway::wire::hand_over::{MOST_SESSIONS, Message};
use ringway_tests::real::config::{backend, forward_as, listener, route};
use ringway_tests::real::{
    Daemon, Gateway, Imposter, Launch, Pattern, Postgres, Server, SetWhenDropped, connect, echo,
    free_address, now, program, wait_for, wait_until,
};

/// A gateway with one TCP listener.
struct Setup {
    gateway: Gateway,
    tcp: SocketAddr,
    config: String,
}

impl Setup {
    fn new(endpoint: SocketAddr, options: &str) -> Self {
        let tcp = free_address();
        let config = "drain_timeout = \"300s\"\n".to_owned()
            + &forward_as("tcp", "TCP", tcp, [endpoint], options);
        let gateway = Launch::default().socket().start(&config);
        Self { gateway, tcp, config }
    }

    /// Upgrades, and returns the number of the new process.
    fn upgrade(&self) -> u32 {
        let answer = self.gateway.asks(&["upgrade"]);
        u32::try_from(answer["process"].as_u64().expect("a number")).expect("a process id")
    }

    fn figure(&self, name: &str) -> u64 {
        self.gateway.asks(&["status"])["upgrade"][name].as_u64().expect("a number")
    }

    /// Upgrades, and waits until the process before has ended, because all its sessions have gone.
    fn move_all(&self) {
        self.upgrade();
        wait_until("all sessions have gone", || self.gateway.line().len() == 1);
    }
}

fn ask(mut client: &TcpStream, word: &[u8]) {
    client.write_all(word).expect("the session lives");
    let mut answer = vec![0; word.len()];
    client.read_exact(&mut answer).expect("the session lives");
    assert_eq!(answer, word);
}

/// Bytes go round without pause. Returns the longest wait for an answer.
fn ask_until(over: &AtomicBool, address: SocketAddr) -> Duration {
    let client = connect(address);
    let mut longest = Duration::ZERO;
    let mut number = 0u64;
    while !over.load(Ordering::SeqCst) {
        let began = now();
        number += 1;
        ask(&client, &number.to_be_bytes());
        longest = longest.max(began.elapsed());
        std::thread::sleep(Duration::from_micros(200));
    }
    longest
}

/// Bulk goes both ways at once until the end, and each byte is the next one of the pattern.
fn bulk_until(over: &AtomicBool, address: SocketAddr, bytes: &AtomicU64) {
    const PIECE: u64 = 1 << 20;
    let client = connect(address);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut pattern = Pattern::new(7);
            while !over.load(Ordering::SeqCst) {
                pattern.send(&client, PIECE).expect("it is taken");
                bytes.fetch_add(PIECE, Ordering::SeqCst);
            }
            client.shutdown(Shutdown::Write).expect("open");
        });
        let mut pattern = Pattern::new(7);
        let mut piece = vec![0; 65_536];
        loop {
            let len = (&client).read(&mut piece).expect("the session lives");
            if len == 0 {
                break;
            }
            assert!(piece[..len] == pattern.take(len)[..], "wrong bytes");
        }
    });
}

/// Idle sessions, sessions with small messages, bulk and half-closed sessions go through five
/// upgrades in a row, and each process before ends at once.
#[test]
fn sessions_go_on_through_five_upgrades() {
    let server = Server::tcp(echo);
    let setup = Setup::new(server.address, "");
    let idle: Vec<_> = (0..200).map(|_| connect(setup.tcp)).collect();
    idle.iter().for_each(|client| ask(client, b"before"));
    let half_closed: Vec<_> = (0..10).map(|_| connect(setup.tcp)).collect();
    let over = AtomicBool::new(false);
    let bytes = AtomicU64::new(0);
    let pauses = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        for _ in 0..4 {
            scope.spawn(|| {
                let longest = ask_until(&over, setup.tcp);
                pauses.lock().expect("whole").push(longest);
            });
        }
        for _ in 0..2 {
            scope.spawn(|| bulk_until(&over, setup.tcp, &bytes));
        }
        std::thread::sleep(Duration::from_millis(300));
        for round in 0..5 {
            let moved = bytes.load(Ordering::SeqCst);
            setup.move_all();
            assert!(setup.figure("taken_over") >= 210, "round {round}");
            idle.iter().for_each(|client| ask(client, b"after"));
            wait_until("bulk goes on", || bytes.load(Ordering::SeqCst) > moved + (8 << 20));
        }
        let lists = setup.gateway.asks(&["sessions"]);
        assert_eq!(lists.as_array().map(Vec::len), Some(216), "{lists}");
    });
    let longest = pauses.into_inner().expect("whole").into_iter().max().expect("some");
    eprintln!(
        "longest wait for an answer over five upgrades: {} ms, beside {} MiB of bulk",
        longest.as_millis(),
        bytes.load(Ordering::SeqCst) >> 20
    );
    half_closed.iter().for_each(|client| ask(client, b"both ways"));
    drop(idle);
    drop(half_closed);
    let closes = setup.gateway.closes(216);
    assert_eq!(closes.len(), 216);
    assert!(closes.iter().all(|line| line.text("reason") == Some("client_fin")), "{closes:?}");
    let whole = closes.iter().filter(|line| line.number("bytes_up") == 6 + 5 * 5).count();
    assert_eq!(whole, 200, "each line has the whole session's bytes");
    assert_eq!(setup.gateway.metrics().value("ringway_sessions_active", &[]), 0);
}

/// Sessions go to more workers and to fewer, and each line has the whole session's bytes.
#[test]
fn the_number_of_workers_may_change() {
    let server = Server::tcp(echo);
    let setup = Setup::new(server.address, "");
    let clients: Vec<_> = (0..20).map(|_| connect(setup.tcp)).collect();
    clients.iter().for_each(|client| ask(client, b"before"));
    for cores in ["[0]", "[0, 1]", "[1]", "[0, 1]"] {
        setup.gateway.set_cores(cores);
        setup.move_all();
        assert_eq!(setup.figure("taken_over"), 20, "{cores}");
        clients.iter().for_each(|client| ask(client, b"after"));
    }
    drop(clients);
    let closes = setup.gateway.closes(20);
    assert_eq!(closes.len(), 20, "one line for each session");
    for line in &closes {
        assert_eq!(line.text("reason"), Some("client_fin"), "{line:?}");
        let bytes = ["bytes_up", "bytes_down"].map(|field| line.number(field));
        assert_eq!(bytes, [6 + 4 * 5; 2], "{line:?}");
    }
    let workers: BTreeSet<_> = closes.iter().map(|line| line.number("worker")).collect();
    assert_eq!(workers, BTreeSet::from([0, 1]), "each of the last two workers has some");
    assert_eq!(setup.gateway.metrics().value("ringway_sessions_active", &[]), 0);
}

/// A client takes no bytes, and sends. Its session can't move, and what it sends goes on meanwhile.
#[test]
fn one_direction_goes_on_while_the_other_one_stands_still() {
    let longest = Arc::new(AtomicU64::new(0));
    let gap = Arc::clone(&longest);
    // Sends as much as is taken, and looks how long it waits for each byte.
    let server = Server::tcp(move |stream| {
        let mut floods = stream.try_clone().expect("a copy");
        std::thread::spawn(move || while floods.write_all(&[0; 65_536]).is_ok() {});
        let (mut stream, mut last) = (stream, now());
        while stream.read(&mut [0; 64]).is_ok_and(|len| len > 0) {
            let waited = u64::try_from(last.elapsed().as_millis()).expect("short");
            gap.fetch_max(waited, Ordering::SeqCst);
            last = now();
        }
    });
    let setup = Setup::new(server.address, "");
    let client = connect(setup.tcp);
    let over = AtomicBool::new(false);
    let reads = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                (&client).write_all(b"x").expect("the session lives");
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        scope.spawn(|| {
            let mut bytes = vec![0; 65_536];
            while !over.load(Ordering::SeqCst) {
                if !reads.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                let len = (&client).read(&mut bytes).expect("the session lives");
                assert!(len > 0, "the session lives");
            }
        });
        std::thread::sleep(Duration::from_millis(400));
        longest.store(0, Ordering::SeqCst);
        setup.upgrade();
        // A busy machine may stall once. A direction that pauses, because the session is to move,
        // does so for 500 ms, and again and again.
        let mut waits = Vec::new();
        while waits.len() < 3 && !waits.iter().any(|wait| *wait < 400) {
            std::thread::sleep(Duration::from_millis(1_600));
            waits.push(longest.swap(0, Ordering::SeqCst));
        }
        assert_eq!(setup.gateway.line().len(), 2, "the session can't move");
        eprintln!("the longest wait while the other direction stood still: {waits:?} ms");
        assert!(waits.iter().any(|wait| *wait < 400), "{waits:?} ms");
        reads.store(true, Ordering::SeqCst);
        wait_until("the session has gone", || setup.gateway.line().len() == 1);
    });
    assert_eq!(setup.figure("taken_over"), 1);
}

/// A session of which one side has ended goes on the other way, and each line has the whole
/// session's time.
#[test]
fn half_closed_sessions_go_on() {
    let told = Arc::new(AtomicBool::new(false));
    let may_answer = Arc::clone(&told);
    // Says its word only after the client's end, and when it may.
    let server = Server::tcp(move |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("it ends");
        wait_until("it may answer", || may_answer.load(Ordering::SeqCst));
        stream.write_all(&bytes).expect("it is taken");
    });
    let setup = Setup::new(server.address, "");
    let mut clients: Vec<_> = (0..20).map(|_| connect(setup.tcp)).collect();
    for client in &mut clients {
        client.write_all(b"question").expect("it is taken");
        client.shutdown(Shutdown::Write).expect("open");
    }
    wait_until("all are half closed", || {
        let lists = setup.gateway.asks(&["sessions"]);
        let lists = lists.as_array().expect("a list");
        lists.iter().filter(|session| session["state"] == "half_closed").count() == 20
    });
    let began = now();
    std::thread::sleep(Duration::from_millis(300));
    setup.move_all();
    setup.move_all();
    told.store(true, Ordering::SeqCst);
    for client in &mut clients {
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("it ends cleanly");
        assert_eq!(answer, b"question");
    }
    let (closes, lived) = (setup.gateway.closes(20), began.elapsed());
    for line in closes {
        assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (8, 8), "{line:?}");
        let duration = line.fraction("duration_ms");
        let most = lived.as_secs_f64() * 1_000.0 + 2_000.0;
        assert!((300.0..most).contains(&duration), "{line:?}, {lived:?}");
    }
}

/// Redis and PostgreSQL under load, while one process follows the other.
#[test]
fn real_programs_do_not_notice() {
    let redis = free_address();
    let port = redis.port().to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--save", "", "--appendonly", "no"]);
    let _redis = Daemon::start(redis, &mut command);
    let setup = Setup::new(redis, "");
    let port = setup.tcp.port().to_string();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let benchmark = scope.spawn(|| {
            let words = ["-h", "127.0.0.1", "-p", &port, "-n", "200000", "-c", "20"];
            let printed = program("redis-benchmark", &[&words[..], &["-t", "get", "-q"]].concat());
            over.store(true, Ordering::SeqCst);
            printed
        });
        let mut count = 0;
        while !over.load(Ordering::SeqCst) && count < 20 {
            setup.upgrade();
            count += 1;
        }
        let printed = benchmark.join().expect("it ends well");
        eprintln!("redis over {count} upgrades: {}", printed.trim());
        assert!(count > 0 && !printed.contains("rror"), "{printed}");
    });
    let postgres = Postgres::start(&[]);
    let setup = Setup::new(postgres.address, "");
    let port = setup.tcp.port().to_string();
    let to = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    program("pgbench", &[&to[..], &["-i", "-q", "postgres"]].concat());
    std::thread::scope(|scope| {
        let load = scope
            .spawn(|| program("pgbench", &[&to[..], &["-c", "8", "-T", "6", "postgres"]].concat()));
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(300));
            setup.upgrade();
        }
        let printed = load.join().expect("it ends well");
        assert!(printed.contains("number of failed transactions: 0 "), "{printed}");
    });
}

/// A session whose listener and backend the next configuration does not have goes on too.
#[test]
fn sessions_of_a_listener_that_has_gone_go_on() {
    let server = Server::tcp(echo);
    let setup = Setup::new(server.address, "max_sessions = 3\n");
    let client = connect(setup.tcp);
    ask(&client, b"before");
    let other = free_address();
    let config = setup.config.replace(&setup.tcp.to_string(), &other.to_string());
    let config = config.replace("\"tcp\"", "\"other\"");
    let file = setup.gateway.candidate("").with_file_name("ringway.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let text = text.replace(&setup.config, &config);
    std::fs::write(&file, text).expect("it is written");
    setup.move_all();
    ask(&client, b"after");
    let sessions = setup.gateway.asks(&["sessions"]);
    assert_eq!(sessions[0]["listener"], "tcp", "{sessions}");
    setup.move_all();
    ask(&client, b"again");
    drop(client);
    let line = setup.gateway.closed_for("client_fin");
    assert_eq!(line.number("bytes_up"), 16, "{line:?}");
}

/// `max_sessions` and the endpoint's count hold for sessions that came from the process before.
#[test]
fn sessions_that_came_count_in_limits() {
    let server = Server::tcp(echo);
    let setup = Setup::new(server.address, "max_sessions = 2\n");
    let clients = [connect(setup.tcp), connect(setup.tcp)];
    clients.iter().for_each(|client| ask(client, b"before"));
    setup.move_all();
    let mut third = connect(setup.tcp);
    assert!(third.read(&mut [0]).map_or(true, |len| len == 0), "there is no place for a third");
    clients.iter().for_each(|client| ask(client, b"after"));
    drop(clients);
    wait_until("the places are free again", || {
        ringway_tests::real::exchange(setup.tcp, b"x").is_ok_and(|word| word == b"x")
    });
}

/// Whatever the new process does before its answer, or in place of it, the session goes on in the
/// old one: with the bytes that came meanwhile.
#[test]
fn a_session_survives_a_new_process_that_fails() {
    type Act = fn(Imposter);
    let acts: &[(&str, Act)] = &[
        ("hangs up before", |new| drop(new)),
        ("hangs up", |new| drop(new.is_offered_sessions())),
        ("adopts nothing", |new| {
            let (sessions, _sockets) = new.is_offered_sessions();
            new.say(&Message::Adopted(vec![false; sessions.len()]));
            std::thread::sleep(Duration::from_millis(500));
        }),
        ("says too little", |new| {
            let _sockets = new.is_offered_sessions();
            new.say(&Message::Adopted(Vec::new()));
            std::thread::sleep(Duration::from_millis(500));
        }),
        ("says something else", |new| {
            let _sockets = new.is_offered_sessions();
            new.say(&Message::Mine);
            std::thread::sleep(Duration::from_millis(500));
        }),
        ("says nonsense", |new| {
            let _sockets = new.is_offered_sessions();
            new.says_bytes(b"nonsense");
            std::thread::sleep(Duration::from_millis(500));
        }),
        ("answers too late", |new| {
            let (sessions, _sockets) = new.is_offered_sessions();
            // Longer than the old one waits.
            std::thread::sleep(Duration::from_secs(4));
            let late = Message::Adopted(vec![true; sessions.len()]);
            assert!(!new.reaches(&late), "it must know");
        }),
    ];
    let server = Server::tcp(echo);
    for (what, act) in acts {
        let setup = Setup::new(server.address, "");
        let client = connect(setup.tcp);
        ask(&client, b"before");
        let (new, _listening) = Imposter::takes_over(&setup.gateway);
        std::thread::scope(|scope| {
            scope.spawn(|| act(new));
            for _ in 0..100 {
                ask(&client, b"meanwhile");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        ask(&client, b"after");
        drop(client);
        let line = setup.gateway.closed_for("client_fin");
        assert_eq!(line.number("bytes_up"), 6 + 900 + 5, "the new process {what}: {line:?}");
    }
}

/// The new process dies when it has adopted some sessions, and is being offered others, or is about
/// to be. It has had those that it adopted, and all the others go on in the old one.
#[test]
fn the_rest_goes_on_if_the_new_process_dies_between_two_batches() {
    type Act = fn(Imposter);
    let acts: &[(&str, Act)] = &[
        ("before the next batch", |new| drop(new)),
        ("with the next batch", |new| drop(new.is_offered_sessions())),
    ];
    let server = Server::tcp(echo);
    for (what, act) in acts {
        let setup = Setup::new(server.address, "");
        // Each worker has more than go in a batch.
        let clients: Vec<_> = (0..80).map(|_| connect(setup.tcp)).collect();
        clients.iter().for_each(|client| ask(client, b"before"));
        let (new, _listening) = Imposter::takes_over(&setup.gateway);
        let (sessions, sockets) = new.is_offered_sessions();
        let count = sessions.len();
        assert!((1..=MOST_SESSIONS).contains(&count), "{count} sessions at once");
        new.adopts(count);
        act(new);
        let sockets: Vec<_> = sockets.into_iter().map(TcpStream::from).collect();
        for socket in &sockets {
            socket.set_nonblocking(false).expect("a flag");
        }
        let (pairs, _) = sockets.as_chunks::<2>();
        let gone: BTreeMap<_, _> = sessions.iter().map(|of| of.client).zip(pairs).collect();
        let (moved, rest): (Vec<_>, Vec<_>) = clients
            .iter()
            .partition(|client| gone.contains_key(&client.local_addr().expect("connected")));
        assert_eq!((moved.len(), rest.len()), (count, 80 - count));
        for _ in 0..20 {
            rest.iter().for_each(|client| ask(client, b"after"));
        }
        // The sockets of those that have gone are here, and nobody else reads from them.
        for mut client in moved {
            let [mut of_client, of_endpoint] =
                gone[&client.local_addr().expect("connected")].each_ref();
            let mut word = [0; 5];
            client.write_all(b"after").expect("the session lives");
            of_client.read_exact(&mut word).expect("the client's bytes are all here");
            ask(of_endpoint, &word);
        }
        drop(clients);
        let closes = setup.gateway.closes(80 - count);
        assert_eq!(closes.len(), 80 - count, "the new process dies {what}");
        for line in closes {
            assert_eq!(line.text("reason"), Some("client_fin"), "{what}: {line:?}");
            assert_eq!(line.number("bytes_up"), 6 + 20 * 5, "{what}: {line:?}");
        }
    }
}

/// Once the new process has said that it adopts a session, the old one neither reads nor closes it:
/// the new process has the session to itself, and the old one ends.
#[test]
fn an_adopted_session_is_the_new_processs_alone() {
    let server = Server::tcp(echo);
    let mut setup = Setup::new(server.address, "");
    let mut client = connect(setup.tcp);
    ask(&client, b"before");
    let (new, _listening) = Imposter::takes_over(&setup.gateway);
    let (sessions, mut sockets) = new.is_offered_sessions();
    let [session] = &sessions[..] else { panic!("one session: {sessions:?}") };
    assert_eq!((session.bytes, session.ended), ([6, 6], [false; 2]), "{session:?}");
    assert_eq!((session.listener.as_str(), session.backend.as_str()), ("tcp", "tcp"));
    assert_eq!(session.endpoint, server.address.to_string());
    new.adopts(1);
    let status = wait_for("the old process ends", || setup.gateway.ended());
    assert!(status.success(), "{status}");
    client.write_all(b"question").expect("open");
    let endpoint = TcpStream::from(sockets.pop().expect("the endpoint's"));
    let mut of_client = TcpStream::from(sockets.pop().expect("the client's"));
    for side in [&endpoint, &of_client] {
        side.set_nonblocking(false).expect("a flag");
    }
    let mut word = [0; 8];
    of_client.read_exact(&mut word).expect("the client's bytes are all here");
    assert_eq!(&word, b"question");
    ask(&endpoint, b"by hand");
    of_client.write_all(b"answer").expect("open");
    client.read_exact(&mut word[..6]).expect("open");
    assert_eq!(&word[..6], b"answer");
    assert!(setup.gateway.log().iter().all(|line| line.text("event") != Some("close")));
}

/// The old process is stopped by force while sessions are on their way. No peer sees a clean end in
/// the middle of an exchange: a session goes on in the new process, or is reset.
#[test]
fn a_forced_stop_while_sessions_move_looks_to_nobody_like_an_end() {
    let server = Server::tcp(echo);
    let mut setup = Setup::new(server.address, "");
    let clients: Vec<_> = (0..400).map(|_| connect(setup.tcp)).collect();
    clients.iter().for_each(|client| ask(client, b"before"));
    setup.upgrade();
    setup.gateway.signal(Signal::SIGTERM);
    wait_for("the old process ends", || setup.gateway.ended());
    let mut lived = 0;
    for mut client in &clients {
        let mut word = [0; 5];
        match client.write_all(b"after").and_then(|()| client.read(&mut word)) {
            Ok(0) => panic!("a session has ended as if it were whole"),
            Ok(_) => lived += 1,
            Err(_) => {}
        }
    }
    assert!(lived > 0, "no session has gone to the new process");
}

/// `on_removed = "close"` of the process before holds for sessions that have gone, too.
#[test]
fn sessions_leave_an_endpoint_that_the_next_configuration_has_not() {
    let servers = [Server::tcp(echo), Server::tcp(echo)];
    let tcp = free_address();
    let options = "on_removed = \"close\"\nclose_after = \"2s\"\n";
    let config = |endpoint: SocketAddr| {
        listener("tcp", "TCP", tcp, "")
            + &route("tcp", "tcp", &[("tcp", 1)], "")
            + &backend("tcp", [endpoint], options)
    };
    let before = config(servers[0].address);
    let gateway = Launch::default().socket().start(&before);
    let setup = Setup { gateway, tcp, config: before };
    let mut client = connect(tcp);
    ask(&client, b"before");
    setup.gateway.write(&config(servers[1].address));
    setup.upgrade();
    ask(&connect(tcp), b"the other endpoint");
    // Until it is closed, the session goes on.
    ask(&client, b"after");
    assert!(client.read(&mut [0]).is_ok_and(|len| len == 0) || client.write_all(b"x").is_err());
    let closes = setup.gateway.closes(2);
    assert!(
        closes.iter().any(|line| line.text("reason") == Some("endpoint_removed")),
        "{closes:?}"
    );
}
