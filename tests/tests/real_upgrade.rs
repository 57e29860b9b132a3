//! One process takes the listening sockets of another over, under traffic: no client is turned
//! away, and whatever goes wrong, the old process goes on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway::wire::hand_over::{Message, write};
use ringway_tests::real::config::{forward_as, listener};
use ringway_tests::real::{
    Folder, Gateway, Imposter, Launch, Server, SetWhenDropped, binary, connect as connect_to, echo,
    exchange, free_address, now, udp_client, wait_for, wait_until,
};
use socket2::SockRef;

/// Only a test that hangs takes so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// A TCP and a UDP listener.
struct Setup {
    gateway: Gateway,
    tcp: SocketAddr,
    udp: SocketAddr,
    config: String,
    _servers: [Server; 2],
}

impl Setup {
    fn new(launch: Launch, keys: &str) -> Self {
        let servers = [Server::tcp(echo), Server::udp_echo()];
        let (tcp, udp) = (free_address(), free_address());
        let config = format!("{keys}\n")
            + &forward_as("tcp", "TCP", tcp, [servers[0].address], "")
            + &forward_as("udp", "UDP", udp, [servers[1].address], "");
        let gateway = launch.socket().start(&config);
        Self { gateway, tcp, udp, config, _servers: servers }
    }

    fn serves(&self) {
        assert_eq!(exchange(self.tcp, b"word").expect("it serves"), b"word");
    }

    /// Upgrades, and returns the number of the new process.
    fn upgrade(&self) -> u32 {
        let answer = self.gateway.asks(&["upgrade"]);
        let process = answer["process"].as_u64().expect("a number");
        u32::try_from(process).expect("a process id")
    }
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(i32::try_from(process).expect("a process id"))
}

fn lives(process: u32) -> bool {
    Path::new(&format!("/proc/{process}/exe")).exists()
        && std::fs::read_link(format!("/proc/{process}/exe")).is_ok()
}

/// Six upgrades in a row. Clients that connect without pause are all served, over TCP and over the
/// admin API's address; a session from before the first upgrade goes along; each datagram of UDP
/// clients is answered, and none gets another's answer.
#[test]
fn nobody_is_turned_away_through_six_upgrades() {
    let setup = Setup::new(Launch::default(), "drain_timeout = \"300s\"");
    let mut idle = connect_to(setup.tcp);
    idle.write_all(b"before").expect("it is sent");
    idle.read_exact(&mut [0; 6]).expect("it comes back");
    let over = AtomicBool::new(false);
    let counts = [const { AtomicU64::new(0) }; 3];
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let word = exchange(setup.tcp, b"short").expect("a client was turned away");
                    assert_eq!(word, b"short");
                    counts[0].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let (status, _) = setup.gateway.get("/healthz").expect("the admin API answers");
                assert_eq!(status, 200);
                counts[1].fetch_add(1, Ordering::SeqCst);
            }
        });
        for client in 0..2 {
            let (over, counts) = (&over, &counts);
            let udp = setup.udp;
            scope.spawn(move || {
                let socket = udp_client(udp);
                let mut number = 0u64;
                while !over.load(Ordering::SeqCst) {
                    number += 1;
                    ask_over_udp(&socket, &format!("{client} {number}"));
                    counts[2].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for generation in 2..8 {
            let answer = setup.gateway.asks(&["upgrade"]);
            assert_eq!(answer["generation"], generation, "{answer}");
            assert_eq!(answer["listeners"], 2, "{answer}");
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let counts = counts.map(AtomicU64::into_inner);
    eprintln!("sessions, questions and datagrams over six upgrades: {counts:?}");
    assert!(counts.iter().all(|count| *count > 6), "{counts:?}");
    idle.write_all(b"after").expect("the session lives");
    let mut word = [0; 5];
    idle.read_exact(&mut word).expect("the session lives");
    assert_eq!(&word, b"after");
    let metrics = setup.gateway.metrics();
    assert_eq!(metrics.value("ringway_process_generation", &[]), 7);
    assert_eq!(metrics.value("ringway_upgrade_listeners", &[]), 2);
    drop(idle);
    wait_until("the first process ends without a session", || !lives(setup.gateway.pid()));
    wait_until("the process before ends", || {
        setup.gateway.metrics().value("ringway_upgrade_draining_processes", &[]) == 0
    });
    setup.serves();
    let refused =
        setup.gateway.log().into_iter().filter(|line| line.text("event") == Some("reject"));
    assert_eq!(refused.count(), 0, "a session was refused");
}

/// The gateway answers the question. A datagram may be lost, as everywhere, but not without end.
fn ask_over_udp(socket: &UdpSocket, question: &str) {
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket.send(question.as_bytes()).expect("it is sent");
    let mut answer = [0; 64];
    let len = socket.recv(&mut answer).expect("a datagram was lost");
    assert_eq!(&answer[..len], question.as_bytes());
}

/// With another number of workers nobody is turned away either: up, down, and up again.
#[test]
fn the_number_of_workers_may_change() {
    let setup = Setup::new(Launch::default(), "drain_timeout = \"300s\"");
    let over = AtomicBool::new(false);
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let word = exchange(setup.tcp, b"short").expect("a client was turned away");
                    assert_eq!(word, b"short");
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for cores in ["[0]", "[0, 1]", "[1]", "[0, 1]"] {
            setup.gateway.set_cores(cores);
            setup.upgrade();
            let workers = cores.matches(|c: char| c.is_ascii_digit()).count() as u64;
            assert_eq!(setup.gateway.metrics().value("ringway_workers", &[]), workers);
            // Each worker accepts: the kernel steers to all of them, and to none that is gone.
            for _ in 0..50 {
                setup.serves();
            }
        }
    });
    assert!(count.into_inner() > 10);
}

/// A new process that fails, whatever it does, leaves the old one as it was; and the next succeeds.
#[test]
fn a_new_process_that_fails_changes_nothing() {
    let setup = Setup::new(Launch::default(), "");
    let file = setup.gateway.candidate("").with_file_name("ringway.toml");
    let good = std::fs::read_to_string(&file).expect("the configuration");
    let fails = |words: &[&str], why: &str| {
        let output = setup.gateway.verb(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{words:?}: {said}");
        setup.serves();
    };
    fails(&["upgrade", "--binary", "/bin/false"], "exit status: 1");
    fails(&["upgrade", "--binary", "/no/such/file"], "No such file");
    std::fs::write(&file, format!("{good}\nnonsense = 1\n")).expect("it is written");
    fails(&["upgrade"], "before it asked to take over");
    let taken = Server::tcp(echo);
    let more = listener("more", "TCP", taken.address, "endpoints = [\"127.0.0.1:9\"]\n");
    std::fs::write(&file, format!("{good}{more}")).expect("it is written");
    fails(&["upgrade"], "the other process has ended");
    std::fs::write(&file, good).expect("it is written");
    // A second process that nobody has sent, of another configuration file of the same sockets.
    assert_eq!(setup.gateway.metrics().value("ringway_upgrade_failures_total", &[]), 3);
    setup.upgrade();
    setup.serves();
}

/// SIGUSR2 does what the verb does, and a process that is started with `--take-over` as well.
#[test]
fn a_signal_and_a_second_process_upgrade_too() {
    let mut setup = Setup::new(Launch::default(), "");
    setup.gateway.signal(Signal::SIGUSR2);
    let generation =
        |setup: &Setup| setup.gateway.asks(&["status"])["upgrade"]["generation"].clone();
    wait_until("the second process serves", || generation(&setup) == 2);
    let status = wait_for("the end of the first process", || setup.gateway.ended());
    assert!(status.success(), "{status}");
    let file = setup.gateway.candidate("").with_file_name("ringway.toml");
    let mut third = Command::new(binary())
        .args(["run", "--take-over", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_until("the third process serves", || generation(&setup) == 3);
    setup.serves();
    kill(pid(third.id()), Signal::SIGTERM).expect("it lives");
    assert!(third.wait().expect("its status").success());
    assert!(!setup.gateway.socket().exists(), "the last process removes the socket's file");
    // Nobody is left to take over from.
    let output =
        Command::new(binary()).args(["run", "--take-over", "--config"]).arg(&file).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no gateway can be taken over"), "{said}");
}

/// A container ends with its process 1, so process 1 does not hand over. Another process may not
/// take over from it either. Needs root.
#[test]
fn process_1_of_a_container_refuses_and_serves_on() {
    let launch = Launch::default().under(&["unshare", "--pid", "--fork", "--kill-child"]);
    let setup = Setup::new(launch, "");
    let output = setup.gateway.verb(&["upgrade"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("process 1 can't hand over"), "{said}");
    let file = setup.gateway.candidate("").with_file_name("ringway.toml");
    let output = Command::new(binary())
        .args(["run", "--take-over", "--config"])
        .arg(&file)
        .output()
        .expect("it runs");
    assert!(!output.status.success(), "{output:?}");
    setup.serves();
}

/// The new process dies after each message in turn; or says nonsense. The old one goes on, no
/// client notices, and the next upgrade succeeds.
#[test]
fn the_old_process_survives_the_new_one_at_every_message() {
    let setup = Setup::new(Launch::default(), "");
    let mut idle = connect_to(setup.tcp);
    idle.write_all(b"x").expect("it is sent");
    let failures = || setup.gateway.metrics().value("ringway_upgrade_failures_total", &[]);
    type Act = fn(&Imposter);
    let acts: &[Act] = &[
        |_| {},
        |new| new.say(&Message::Hello { program: "test".into(), workers: 2 }),
        |new| drop(new.is_offered()),
        |new| {
            let _sockets = new.is_offered();
            new.say(&Message::Taken(vec![0, 1]));
        },
        |new| {
            let _sockets = new.is_offered();
            new.say(&Message::Taken(vec![0, 1, 2, 3]));
            new.say(&Message::Ready);
        },
        |new| {
            let _sockets = new.is_offered();
            new.say(&Message::Taken(vec![0, 1, 2, 3]));
            new.say(&Message::Ready);
            assert_eq!(new.hears().0, Message::Yours);
        },
        |new| {
            // With fewer workers, the groups are steered anew, and back.
            new.say(&Message::Hello { program: "test".into(), workers: 1 });
            let (Message::Offer { .. }, _) = new.hears() else { panic!("no offer") };
            let (Message::Sockets(names), _sockets) = new.hears() else { panic!("none") };
            new.say(&Message::Taken((0..u32::try_from(names.len()).expect("few")).collect()));
            new.say(&Message::Ready);
            assert_eq!(new.hears().0, Message::Yours);
        },
        |new| {
            let _sockets = new.is_offered();
            new.say(&Message::Taken(vec![99]));
            new.say(&Message::Ready);
            new.is_refused();
        },
        |new| {
            let mut another = write(&Message::Ready);
            another[5] = 9;
            new.says_bytes(&another);
            let why = new.is_refused();
            assert!(why.contains("version 9"), "{why}");
        },
        |new| {
            new.say(&Message::Mine);
            let why = new.is_refused();
            assert!(why.contains("out of order"), "{why}");
        },
    ];
    for (number, act) in (1..).zip(acts) {
        let new = Imposter::connect(&setup.gateway);
        act(&new);
        drop(new);
        wait_until("the upgrade has failed", || failures() == number);
        for _ in 0..20 {
            setup.serves();
        }
    }
    idle.read_exact(&mut [0]).expect("the session lives");
    setup.upgrade();
    setup.serves();
}

/// While an upgrade is under way, another is refused; SIGTERM ends the old process, and the new one
/// is told.
#[test]
fn a_second_upgrade_and_a_sigterm_are_refused_clearly() {
    let setup = Setup::new(Launch::default(), "drain_timeout = \"300s\"");
    let mut idle = connect_to(setup.tcp);
    idle.write_all(b"x").expect("it is sent");
    idle.read_exact(&mut [0]).expect("it comes back");
    let new = Imposter::connect(&setup.gateway);
    let _sockets = new.is_offered();
    let second = Imposter::connect(&setup.gateway);
    second.say(&Message::Hello { program: "test".into(), workers: 2 });
    let why = second.is_refused();
    assert!(why.contains("another upgrade is under way"), "{why}");
    let output = setup.gateway.verb(&["upgrade"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another upgrade is under way"), "{said}");
    setup.gateway.signal(Signal::SIGTERM);
    wait_until("the drain begins", || {
        setup.gateway.get("/readyz").is_some_and(|(status, _)| status == 503)
    });
    new.say(&Message::Taken(vec![0]));
    new.say(&Message::Ready);
    let why = new.is_refused();
    assert!(why.contains("the gateway is ending"), "{why}");
    let third = Imposter::connect(&setup.gateway);
    let why = third.is_refused();
    assert!(why.contains("the gateway is ending"), "{why}");
}

/// The old process ends while the new one says nothing: the new one is told, so that it does not
/// take the end for a crash.
#[test]
fn a_new_process_hears_of_a_sigterm_at_once() {
    let setup = Setup::new(Launch::default(), "");
    let new = Imposter::connect(&setup.gateway);
    let _sockets = new.is_offered();
    setup.gateway.signal(Signal::SIGTERM);
    let why = new.is_refused();
    assert!(why.contains("the gateway is ending"), "{why}");
}

/// The next process sees the process that serves at the other end, and not an earlier one that had
/// opened the socket.
#[test]
fn the_door_belongs_to_the_process_that_serves() {
    let setup = Setup::new(Launch::default(), "");
    let process = setup.upgrade();
    wait_until("the first process has ended", || setup.gateway.line() == [process]);
    let new = Imposter::connect(&setup.gateway);
    assert_eq!(new.process(), process);
}

/// SIGTERM comes when only the new process's last word is missing, and then that process dies: the
/// old one ends as if there had been no upgrade.
#[test]
fn a_sigterm_before_the_last_word_ends_the_gateway() {
    let mut setup = Setup::new(Launch::default(), "");
    let new = Imposter::connect(&setup.gateway);
    let _sockets = new.is_offered();
    new.say(&Message::Taken(vec![0, 1, 2, 3]));
    new.say(&Message::Ready);
    assert_eq!(new.hears().0, Message::Yours);
    setup.gateway.signal(Signal::SIGTERM);
    setup.gateway.says(PUT_OFF);
    setup.serves();
    drop(new);
    let status = wait_for("the end", || setup.gateway.ended());
    assert!(status.success(), "{status}");
    assert!(!setup.gateway.stderr().contains(PASSED_ON));
}

const PUT_OFF: &str = "ends once it is clear which process has the sockets";
const PASSED_ON: &str = "SIGTERM goes on to process";

/// SIGTERM comes then, and the new process says its last word all the same: it has the sockets,
/// which accept as before, and hears the signal.
#[test]
fn a_sigterm_before_the_last_word_goes_on_to_the_new_process() {
    let mut setup = Setup::new(Launch::default(), "");
    let folder = Folder::new();
    // A program that is started so hears no SIGTERM, and can be asked what it has.
    let mut new = Command::new("bash")
        .args(["-c", "trap '' TERM; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", "a_new_process_of_a_test"])
        .env("RINGWAY_TEST_DOOR", format!("{}.upgrade", setup.gateway.socket().display()))
        .env("RINGWAY_TEST_FOLDER", folder.file(""))
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_until("only the last word is missing", || folder.file("yours").exists());
    setup.gateway.signal(Signal::SIGTERM);
    setup.gateway.says(PUT_OFF);
    std::fs::write(folder.file("mine"), "").expect("it is written");
    let status = wait_for("the old process ends", || setup.gateway.ended());
    assert!(status.success(), "{status}");
    let told = format!("{PASSED_ON} {}", new.id());
    assert!(setup.gateway.stderr().contains(&told), "{}", setup.gateway.stderr());
    for _ in 0..20 {
        assert_eq!(exchange(setup.tcp, b"new").expect("it accepts"), b"new");
    }
    std::fs::write(folder.file("end"), "").expect("it is written");
    assert!(new.wait().expect("its status").success());
}

/// Takes the sockets over and serves on them, step by step, as files of a folder say.
#[test]
#[ignore = "another test starts it as a process"]
fn a_new_process_of_a_test() {
    let words = ["RINGWAY_TEST_DOOR", "RINGWAY_TEST_FOLDER"].map(std::env::var);
    let [Ok(door), Ok(folder)] = words else { return };
    let folder = Path::new(&folder);
    let new = Imposter::at(&door);
    let sockets = new.is_offered();
    new.say(&Message::Taken((0..4).collect()));
    new.say(&Message::Ready);
    assert_eq!(new.hears().0, Message::Yours);
    std::fs::write(folder.join("yours"), "").expect("it is written");
    wait_until("it may go on", || folder.join("mine").exists());
    new.say(&Message::Mine);
    for socket in sockets {
        if !SockRef::from(&socket).is_listener().expect("it can be asked") {
            continue;
        }
        let listener = TcpListener::from(socket);
        // It does not block, and must not: the old process may still look into its queue.
        std::thread::spawn(move || {
            loop {
                match listener.accept() {
                    Ok((client, _)) => echo(client),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
    }
    wait_until("it may end", || folder.join("end").exists());
}

/// What operators have said holds in the next process, and can't be changed while it is handed on.
#[test]
fn overrides_go_along() {
    let setup = Setup::new(Launch::default(), "");
    let drains = |words: &[&str]| {
        let output = setup.gateway.verb(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    assert!(drains(&["drain", "backend", "tcp", "--for", "10m"]).0);
    wait_until("the backend is drained", || !answers(setup.tcp));
    let new = Imposter::connect(&setup.gateway);
    let _sockets = new.is_offered();
    let (Message::Overrides(all), _) = new.hears() else { panic!("no overrides") };
    assert_eq!(all.len(), 1, "{all:?}");
    let (done, said) = drains(&["undrain", "backend", "tcp"]);
    assert!(!done && said.contains("an upgrade is under way"), "{said}");
    drop(new);
    wait_until("the upgrade has failed", || drains(&["drain", "backend", "tcp", "--for", "9m"]).0);

    setup.upgrade();
    let all = setup.gateway.asks(&["overrides"]);
    let text = all.to_string();
    assert!(text.contains("\"drain\"") && text.contains("left_ms"), "{text}");
    assert!(!answers(setup.tcp), "the backend is drained from the first table on");
    assert!(drains(&["undrain", "backend", "tcp"]).0);
    wait_until("it serves again", || answers(setup.tcp));
}

fn answers(address: SocketAddr) -> bool {
    exchange(address, b"word").is_ok_and(|answer| answer == b"word")
}

/// A reload that comes during an upgrade waits for its end, and is not lost if it fails.
#[test]
fn a_reload_waits_for_the_end_of_an_upgrade() {
    let setup = Setup::new(Launch::default(), "");
    let new = Imposter::connect(&setup.gateway);
    let _sockets = new.is_offered();
    let late = free_address();
    let server = Server::tcp(echo);
    let more = listener("late", "TCP", late, &format!("endpoints = [\"{}\"]\n", server.address));
    setup.gateway.write(&format!("{}{more}", setup.config));
    setup.gateway.signal(Signal::SIGHUP);
    let began = now();
    while began.elapsed() < Duration::from_millis(500) {
        assert!(TcpStream::connect(late).is_err(), "the set of sockets changes meanwhile");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(new);
    wait_until("the reload comes", || TcpStream::connect(late).is_ok());
}

/// systemd is told who the main process is, and when it is ready. The Unix socket of a listener
/// stays, and its file goes with the last process.
#[test]
fn systemd_and_unix_sockets_follow() {
    let folder = Folder::new();
    let (notify, path) = (folder.file("notify"), folder.file("x.sock"));
    let systemd = UnixDatagram::bind(&notify).expect("a socket");
    systemd.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let said = || {
        let mut bytes = [0; 256];
        let len = systemd.recv(&mut bytes).expect("a word");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let server = Server::tcp(echo);
    let config = format!(
        "[[listeners]]\nname = \"x\"\nprotocol = \"TCP\"\naddress = \"unix:{}\"\n\
         endpoints = [\"{}\"]\n",
        path.display(),
        server.address
    );
    let variable = format!("NOTIFY_SOCKET={}", notify.display());
    let launch = Launch::default().under(&["env", &variable]);
    let setup = Setup::new(launch, &config);
    assert_eq!(said(), "READY=1");
    let asks = || {
        let mut client = UnixStream::connect(&path).expect("the listener's socket is there");
        client.write_all(b"word").expect("it is sent");
        client.shutdown(std::net::Shutdown::Write).expect("open");
        let mut word = Vec::new();
        client.read_to_end(&mut word).expect("it comes back");
        assert_eq!(word, b"word");
    };
    asks();
    let process = setup.upgrade();
    let (one, other) = (said(), said());
    let main = format!("MAINPID={process}");
    assert!([&one, &other].contains(&&main), "{one} {other}");
    assert!([one.as_str(), other.as_str()].contains(&"READY=1"), "{one} {other}");
    asks();
    kill(pid(process), Signal::SIGTERM).expect("it lives");
    assert_eq!(said(), "STOPPING=1");
    wait_until("the last process has ended", || !lives(process));
    assert!(!path.exists(), "the last process removes the socket's file");
}
