//! An upgrade that runs out of time, or whose new process runs out of files: every session stays
//! where it is, alive, and the gateway says why.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringway::wire::hand_over::Message;
use ringway_tests::real::config::listener;
use ringway_tests::real::{
    Gateway, Imposter, Launch, Server, binary, connect, echo, free_address, now, wait_for,
    wait_until,
};

/// A gateway with some TCP listeners, and one session through each.
struct Setup {
    gateway: Gateway,
    listeners: Vec<SocketAddr>,
    clients: Vec<TcpStream>,
    _server: Server,
}

impl Setup {
    fn new(listeners: usize) -> Self {
        let server = Server::tcp(echo);
        let listeners: Vec<_> = (0..listeners).map(|_| free_address()).collect();
        let endpoints = format!("endpoints = [\"{}\"]\n", server.address);
        let each = listeners.iter().enumerate();
        let each = each.map(|(nth, at)| listener(&format!("l{nth}"), "TCP", *at, &endpoints));
        let config = "drain_timeout = \"300s\"\n".to_owned() + &each.collect::<String>();
        let gateway = Launch::default().socket().start(&config);
        let clients: Vec<_> = listeners.iter().map(|at| connect(*at)).collect();
        let setup = Self { gateway, listeners, clients, _server: server };
        setup.all_live();
        setup
    }

    fn all_live(&self) {
        for mut client in &self.clients {
            client.write_all(b"word").expect("the session lives");
            let mut answer = [0; 4];
            client.read_exact(&mut answer).expect("the session lives");
            assert_eq!(&answer, b"word");
        }
    }

    fn failures(&self) -> u64 {
        self.gateway.metrics().value("ringway_upgrade_failures_total", &[])
    }

    /// Files that the gateway has open.
    fn files(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.gateway.pid()));
        files.expect("it runs").count()
    }

    /// Starts a process that takes over and may have no more than so many files.
    fn take_over_with(&self, files: usize) -> New {
        let stderr = self.gateway.candidate("").with_file_name("stderr-of-new");
        let child = Command::new("prlimit")
            .arg(format!("--nofile={files}:{files}"))
            .arg(binary())
            .args(["run", "--take-over", "--config"])
            .arg(self.gateway.candidate("").with_file_name("ringway.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&stderr).expect("a file"))
            .spawn()
            .expect("it starts");
        New { child, stderr }
    }

    /// With enough files, the next upgrade takes all sessions along.
    fn goes_on(&self) {
        self.gateway.asks(&["upgrade"]);
        wait_until("all sessions have gone", || self.gateway.line().len() == 1);
        self.all_live();
    }
}

struct New {
    child: Child,
    stderr: PathBuf,
}

impl New {
    fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for New {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- what the new process said ----\n{}", self.said());
        }
    }
}

const CUT: &str =
    "not all sockets could be received: this process may have no more files (RLIMIT_NOFILE)";

#[test]
fn without_files_for_the_listening_sockets_there_is_no_upgrade() {
    let setup = Setup::new(50);
    // Each session has two files, and a process that runs has 32 to spare. Some twenty more are
    // the gateway's after the hand-over only. So twenty of the hundred listening sockets find no
    // place.
    let mut new = setup.take_over_with(setup.files() - 2 * setup.clients.len() - 32 - 40);
    let ended = wait_for("it ends", || new.child.try_wait().expect("its status"));
    assert!(!ended.success(), "{ended}");
    assert!(new.said().contains(CUT), "{}", new.said());
    wait_until("the upgrade has failed", || setup.failures() == 1);
    setup.gateway.says(&format!("the upgrade has failed: the other process refuses: {CUT}"));
    setup.all_live();
    assert!(setup.listeners.iter().all(|at| TcpStream::connect(at).is_ok()));
    setup.goes_on();
}

const NO_ADMIN: &str = "no files are left for the admin API of this process (RLIMIT_NOFILE)";

/// However few files the new process has, it serves with an admin API, or leaves all to the old
/// one.
#[test]
fn a_new_process_serves_with_its_admin_api_or_not_at_all() {
    let setup = Setup::new(50);
    let clients = 2 * setup.clients.len();
    // From a limit on at which some listening sockets find no place.
    let limits = (setup.files() - clients - 32 - 40..).step_by(2);
    let mut without_admin = 0;
    let serves = limits.take(100).find_map(|files| {
        let mut new = setup.take_over_with(files);
        let ended = wait_for("it takes over, or ends", || {
            let ended = new.child.try_wait().expect("its status");
            let serves = new.said().contains("this process has taken over");
            (serves || ended.is_some()).then_some(ended)
        });
        let Some(status) = ended else { return Some(new) };
        assert!(!status.success(), "{status}");
        without_admin += usize::from(new.said().contains(NO_ADMIN));
        setup.all_live();
        None
    });
    let new = serves.expect("with enough files it takes over");
    assert!(without_admin > 0, "no limit leaves files for the sockets alone");
    assert!(!new.said().contains("no upgrade will be possible"), "{}", new.said());
    let status = setup.gateway.asks(&["status"]);
    assert_eq!(status["upgrade"]["generation"], 2, "{status}");
    setup.all_live();
}

#[test]
fn without_files_for_sessions_they_stay_in_the_old_process() {
    let mut setup = Setup::new(2);
    let files = setup.files();
    setup.clients.extend((0..98).map(|_| connect(setup.listeners[0])));
    setup.all_live();
    // A message has 16 sessions, of two files each.
    let new = setup.take_over_with(files + 20);
    wait_until("it has taken over", || new.said().contains("this process has taken over"));
    wait_until("it says what fails", || new.said().contains(CUT));
    setup.all_live();
    let status = setup.gateway.asks(&["status"]);
    assert_eq!(status["upgrade"]["generation"], 2, "{status}");
    wait_until("the sessions are the old process's", || {
        let status = setup.gateway.asks(&["status"]);
        let of = |what: &str| status["upgrade"][what].as_u64().unwrap_or(0);
        of("sessions") + of("taken_over") == 100 && of("sessions") > 0
    });
    assert_eq!(new.said().matches(CUT).count(), 1, "it is said once: {}", new.said());
    setup.all_live();
    assert!(setup.listeners.iter().all(|at| TcpStream::connect(at).is_ok()));
}

/// A new process that begins, and never says that it is ready, has 25 s. `tests/run --long` runs
/// this test.
#[test]
#[ignore = "it takes half a minute"]
fn a_new_process_that_is_never_ready_is_given_up() {
    let setup = Setup::new(1);
    let new = Imposter::connect(&setup.gateway);
    let began = now();
    let _sockets = new.is_offered();
    // A sign of life does not help.
    std::thread::sleep(Duration::from_secs(3));
    new.say(&Message::Taken(vec![0]));
    let why = new.is_refused();
    assert_eq!(why, "the new process was not ready within 25 s");
    assert!(began.elapsed() >= Duration::from_secs(24), "{:?}", began.elapsed());
    assert_eq!(setup.failures(), 1);
    setup.all_live();
    drop(new);
    setup.goes_on();
}
