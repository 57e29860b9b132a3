//! `ringway run --take-over` beside an old process that dies, hangs or refuses at each step of the
//! hand-over. If the old process has died and the new one has all listening sockets, the new one
//! serves on alone. If the old process lives, the new one leaves everything to it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use config_sync::table::address::UnixPath;
use config_sync::table::steering::worker_of;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway::ring::listen::{steering, unix};
use ringway::ring::sys::pass;
use ringway::wire::hand_over::{
    Action, Figures, Flow, MOST_BYTES, Message, Name, Override, Session, What, read, write,
};
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Folder, Server, binary, connect, connect_from, echo, exchange, free_address, run_verb,
    udp_client, wait_for, wait_until,
};
use socket2::{Domain, SockRef, Socket, Type};

/// Only a test that hangs takes so long.
const DEADLINE: Duration = Duration::from_secs(60);

const SEED: u64 = 7;

/// What the old process does. It has one worker, and the new one has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    DiesAfterOffer,
    DiesAmidSockets,
    DiesAfterSockets,
    DiesBeforeOverrides,
    /// It has said what operators have said, and says no keys of tickets.
    DiesBeforeTickets,
    DiesBeforeYours,
    DiesAfterFlows,
    DiesAfterFigures,
    /// It hears no answer to its last word any more, and dies.
    DiesAfterYours,
    /// It hears no answer to its last word any more, and goes on serving.
    IsDeafToMine,
    /// It hears the answer to its last word, and dies.
    DiesAfterMine,
    RefusesLateAndDies,
    RefusesLate,
    HangsUp,
    SaysNothing,
    /// It hears no answer about a session any more, and dies.
    DiesAfterSessions,
    /// It hears no answer about a session any more, and goes on with it.
    IsDeafToSessions,
}

use Act::{
    DiesAfterFigures, DiesAfterFlows, DiesAfterMine, DiesAfterOffer, DiesAfterSessions,
    DiesAfterSockets, DiesAfterYours, DiesAmidSockets, DiesBeforeOverrides, DiesBeforeTickets,
    DiesBeforeYours, HangsUp, IsDeafToMine, IsDeafToSessions, RefusesLate, RefusesLateAndDies,
    SaysNothing,
};

const ALL: [Act; 17] = [
    DiesAfterOffer,
    DiesAmidSockets,
    DiesAfterSockets,
    DiesBeforeOverrides,
    DiesBeforeTickets,
    DiesBeforeYours,
    DiesAfterFlows,
    DiesAfterFigures,
    DiesAfterYours,
    IsDeafToMine,
    DiesAfterMine,
    RefusesLateAndDies,
    RefusesLate,
    HangsUp,
    SaysNothing,
    DiesAfterSessions,
    IsDeafToSessions,
];

fn act_of(name: &str) -> Act {
    ALL.into_iter().find(|act| format!("{act:?}") == name).expect("an act")
}

// ---- the old process ----

/// A variable that the test has set.
fn given<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Hands over as far as the act says. The tests below start it.
#[test]
#[ignore = "other tests start it as a process"]
fn an_old_process_of_a_test() {
    let Some(act) = given::<String>("RINGWAY_TEST_ACT") else { return };
    let folder: String = given("RINGWAY_TEST_FOLDER").expect("a folder");
    let folder = Path::new(&folder);
    let path = folder.join("admin.sock.upgrade");
    let path = UnixPath::new(path.to_str().expect("a name")).expect("a path");
    let old = Old::listen(path);
    std::fs::write(folder.join("listens"), "").expect("it is written");
    // The client of the one session comes first.
    let client = old.accepts();
    let endpoint = TcpStream::connect(old.tcp_endpoint).expect("the endpoint");
    std::fs::write(folder.join("serves"), "").expect("it is written");
    let link: OwnedFd = old.door.accept().expect("the new process").0.into();
    pass::set_patience(link.as_fd(), DEADLINE).expect("a timeout");
    let link = Conversation(link);
    link.hands_over(act_of(&act), &old, [client, endpoint]);
    // Nobody who dies by a signal says a last word.
    kill(Pid::this(), Signal::SIGKILL).expect("it dies");
}

/// What the old process has.
struct Old {
    door: Socket,
    tcp: TcpListener,
    udp: UdpSocket,
    upstream: UdpSocket,
    tcp_endpoint: SocketAddr,
    udp_endpoint: SocketAddr,
    udp_client: SocketAddr,
}

fn in_group(kind: Type, address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, kind, None).expect("a socket");
    socket.set_reuse_port(true).expect("an option");
    socket.bind(&address.into()).expect("the address is free");
    steering::attach(socket.as_fd(), true, 1, SEED).expect("a program");
    socket
}

impl Old {
    fn listen(path: UnixPath) -> Self {
        let address = |name| given::<SocketAddr>(name).expect("an address");
        let door = unix::open_private(path, Type::SEQPACKET).expect("the door");
        SockRef::from(&door).set_nonblocking(false).expect("a flag");
        let tcp = in_group(Type::STREAM, address("RINGWAY_TEST_TCP"));
        tcp.listen(64).expect("it listens");
        // As the listening sockets of a gateway.
        tcp.set_nonblocking(true).expect("a flag");
        let udp = in_group(Type::DGRAM, address("RINGWAY_TEST_UDP"));
        udp.set_nonblocking(true).expect("a flag");
        let udp_endpoint = address("RINGWAY_TEST_UDP_ENDPOINT");
        let upstream = UdpSocket::bind("127.0.0.1:0").expect("a port");
        upstream.connect(udp_endpoint).expect("it has a route");
        upstream.set_nonblocking(true).expect("a flag");
        let port = upstream.local_addr().expect("bound").port().to_string();
        let folder: String = given("RINGWAY_TEST_FOLDER").expect("a folder");
        std::fs::write(Path::new(&folder).join("port"), port).expect("it is written");
        Self {
            door: door.into(),
            tcp: tcp.into(),
            udp: udp.into(),
            upstream,
            tcp_endpoint: address("RINGWAY_TEST_TCP_ENDPOINT"),
            udp_endpoint,
            udp_client: address("RINGWAY_TEST_UDP_CLIENT"),
        }
    }

    fn flow(&self, workers: u32) -> Flow {
        let worker = worker_of(self.udp_client, workers as usize, SEED);
        Flow {
            address: self.udp.local_addr().expect("bound").to_string(),
            interface: 0,
            listener: "udp".into(),
            route: "udp".into(),
            backend: "udp".into(),
            endpoint: self.udp_endpoint.to_string(),
            close_after: None,
            worker: u32::try_from(worker).expect("few"),
            peer: self.udp_client,
            local: None,
            said: None,
            header: String::new(),
            unique_id: None,
            timeout: 60_000,
            responses: 0,
            datagrams: [1, 1],
            bytes: [4, 4],
            opened: micros(),
            last: micros(),
            refused: false,
            own: true,
            through: 0,
        }
    }

    fn session(&self, client: &TcpStream) -> Session {
        let local = self.tcp.local_addr().expect("bound");
        Session {
            address: local.to_string(),
            interface: 0,
            tls: false,
            listener: "tcp".into(),
            route: Some("tcp".into()),
            backend: "tcp".into(),
            endpoint: self.tcp_endpoint.to_string(),
            close_after: None,
            client: client.peer_addr().expect("connected"),
            local,
            peer: None,
            destination: None,
            unique_id: None,
            server_name: None,
            timeouts: [60_000; 5],
            opened: micros(),
            last_byte: micros(),
            connect: Some(1),
            bytes: [0; 2],
            ended: [false; 2],
            client_first: None,
            ending: false,
            paced: [false; 2],
        }
    }

    /// What an operator has said of the TCP endpoint.
    fn weight(&self) -> Override {
        Override {
            listener: None,
            backend: Some("tcp".into()),
            endpoint: Some(self.tcp_endpoint.to_string()),
            action: Action::Weight(5),
            left: None,
        }
    }

    /// Serves by itself until it is killed.
    fn serves(&self) -> ! {
        loop {
            let client = self.accepts();
            std::thread::spawn(move || echo(client));
        }
    }

    fn accepts(&self) -> TcpStream {
        loop {
            if let Ok((client, _)) = self.tcp.accept() {
                client.set_nonblocking(false).expect("a flag");
                return client;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Microseconds of Unix time.
fn micros() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the messages have the time of day")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_micros()).expect("before the year 500,000")
}

struct Conversation(OwnedFd);

impl Conversation {
    fn say(&self, message: &Message, beside: &[BorrowedFd<'_>]) {
        pass::send(self.0.as_fd(), &write(message), beside).expect("it is sent");
    }

    fn hears(&self) -> Message {
        let mut bytes = vec![0; MOST_BYTES];
        let (len, _) = pass::receive(self.0.as_fd(), &mut bytes).expect("a packet");
        read(&bytes[..len]).expect("a message")
    }

    /// Offers all that it has. Returns the number of the new process's workers, or `None` where the
    /// old process is to die.
    fn offers(&self, act: Act, old: &Old) -> Option<u32> {
        let Message::Hello { workers, .. } = self.hears() else { panic!("no hello") };
        let count = |of: &[Act]| u32::from(of.contains(&act));
        self.say(
            &Message::Offer {
                program: "test".into(),
                generation: 3,
                workers: 1,
                seed: SEED,
                sockets: 3,
                overrides: count(&[DiesBeforeOverrides, DiesBeforeTickets]),
                tickets: count(&[DiesBeforeTickets]),
            },
            &[],
        );
        if act == DiesAfterOffer {
            return None;
        }
        let name = |what, address: String| {
            Message::Sockets(vec![Name { what, address, interface: 0, worker: 0 }])
        };
        let tcp = old.tcp.local_addr().expect("bound").to_string();
        self.say(&name(What::Tcp, tcp), &[old.tcp.as_fd()]);
        if act == DiesAmidSockets {
            return None;
        }
        let udp = old.udp.local_addr().expect("bound").to_string();
        self.say(&name(What::Udp, udp), &[old.udp.as_fd()]);
        self.say(&name(What::Door, String::new()), &[old.door.as_fd()]);
        if [DiesAfterSockets, DiesBeforeOverrides].contains(&act) {
            return None;
        }
        if act == DiesBeforeTickets {
            self.say(&Message::Overrides(vec![old.weight()]), &[]);
            return None;
        }
        let Message::Taken(_) = self.hears() else { panic!("nothing is taken") };
        assert_eq!(self.hears(), Message::Ready);
        Some(workers)
    }

    /// Returns where the old process is to die.
    fn hands_over(self, act: Act, old: &Old, session: [TcpStream; 2]) {
        let Some(workers) = self.offers(act, old) else { return };
        match act {
            DiesBeforeYours => return,
            RefusesLate | RefusesLateAndDies => {
                self.say(&Message::Refused { why: "on second thoughts".into() }, &[]);
                if act == RefusesLate {
                    old.serves();
                }
                return;
            }
            HangsUp => {
                drop(self);
                old.serves();
            }
            SaysNothing => old.serves(),
            _ => {}
        }
        self.say(&Message::Flows(vec![old.flow(workers)]), &[old.upstream.as_fd()]);
        assert_eq!(self.hears(), Message::Adopted(vec![true]));
        if act == DiesAfterFlows {
            return;
        }
        self.say(&Message::Figures(vec![figures()]), &[]);
        if act == DiesAfterFigures {
            return;
        }
        if act == DiesAfterMine {
            // As a gateway does. If it dies before, the new process does so itself.
            for socket in [old.tcp.as_fd(), old.udp.as_fd()] {
                steering::attach(socket, true, workers as usize, SEED).expect("a program");
            }
        }
        if [DiesAfterYours, IsDeafToMine].contains(&act) {
            pass::stop_receiving(self.0.as_fd()).expect("it is open");
        }
        self.say(&Message::Yours, &[]);
        match act {
            DiesAfterYours => return,
            IsDeafToMine => old.serves(),
            _ => assert_eq!(self.hears(), Message::Mine),
        }
        if act == DiesAfterMine {
            return;
        }
        pass::stop_receiving(self.0.as_fd()).expect("it is open");
        let message = Message::Sessions(vec![old.session(&session[0])]);
        self.say(&message, &[session[0].as_fd(), session[1].as_fd()]);
        if act == IsDeafToSessions {
            relays(session);
        }
    }
}

/// What the flow has carried.
fn figures() -> Figures {
    Figures {
        flow: 0,
        datagrams: [2, 2],
        bytes: [8, 8],
        last: micros(),
        refused: false,
        promoted: false,
    }
}

/// Goes on with the session by hand.
fn relays([client, endpoint]: [TcpStream; 2]) -> ! {
    for socket in [&client, &endpoint] {
        socket.set_nonblocking(false).expect("a flag");
    }
    loop {
        let mut word = [0; 64];
        let len = (&client).read(&mut word).expect("the client lives");
        (&endpoint).write_all(&word[..len]).expect("it is taken");
        (&endpoint).read_exact(&mut word[..len]).expect("it comes back");
        (&client).write_all(&word[..len]).expect("it is taken");
    }
}

// ---- the new one ----

fn asks(mut client: &TcpStream, word: &[u8]) {
    client.write_all(word).expect("the session lives");
    let mut answer = vec![0; word.len()];
    client.read_exact(&mut answer).expect("the session lives");
    assert_eq!(answer, word);
}

/// An old process, which plays one act, and a real new process.
struct Play {
    old: Child,
    new: Child,
    folder: Folder,
    tcp: SocketAddr,
    /// The client of the old process's session, and that of its flow.
    client: TcpStream,
    player: UdpSocket,
    udp: SocketAddr,
    _servers: (Server, Server),
}

impl Play {
    fn begin(act: Act) -> Self {
        let servers = (
            Server::tcp(echo),
            Server::udp(|socket, bytes, peer| {
                let heard = format!("{} {}", peer.port(), String::from_utf8_lossy(bytes));
                let _ = socket.send_to(heard.as_bytes(), peer);
            }),
        );
        let (folder, tcp, udp) = (Folder::new(), free_address(), free_address());
        let player = udp_client(udp);
        let old = Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", "an_old_process_of_a_test", "--nocapture"])
            .env("RINGWAY_TEST_ACT", format!("{act:?}"))
            .env("RINGWAY_TEST_FOLDER", folder.file(""))
            .env("RINGWAY_TEST_TCP", tcp.to_string())
            .env("RINGWAY_TEST_UDP", udp.to_string())
            .env("RINGWAY_TEST_TCP_ENDPOINT", servers.0.address.to_string())
            .env("RINGWAY_TEST_UDP_ENDPOINT", servers.1.address.to_string())
            .env("RINGWAY_TEST_UDP_CLIENT", player.local_addr().expect("bound").to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_until("the old process listens", || folder.file("listens").exists());
        let client = connect(tcp);
        wait_until("the old process serves", || folder.file("serves").exists());
        let config = format!(
            "admin = {{ address = \"{}\", socket = \"{}\" }}\nworkers = {{ cores = [0, 1] }}\n\
             access_log = {{ path = \"{}\" }}\n",
            free_address(),
            folder.file("admin.sock").display(),
            folder.file("access.log").display(),
        ) + &listener("tcp", "TCP", tcp, "")
            + &route("tcp", "tcp", &[("tcp", 1)], "")
            + &backend("tcp", [servers.0.address], "")
            + &listener("udp", "UDP", udp, "")
            + &route("udp", "udp", &[("udp", 1)], "")
            + &backend("udp", [servers.1.address], "");
        let file = folder.write("ringway.toml", &config);
        let stderr = std::fs::File::create(folder.file("stderr")).expect("a file");
        let new = Command::new(binary())
            .args(["run", "--take-over", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("it starts");
        Self { old, new, folder, tcp, client, player, udp, _servers: servers }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.file("stderr")).unwrap_or_default()
    }

    /// What a verb prints as JSON. `None`: the new process does not answer.
    fn asks(&self, words: &[&str]) -> Option<serde_json::Value> {
        let words: Vec<_> = words.iter().copied().chain(["--json"]).collect();
        let output = run_verb(&words, &self.folder.file("admin.sock").display().to_string());
        let answer = || serde_json::from_slice(&output.stdout).expect("JSON");
        output.status.success().then(answer)
    }

    /// The new process serves alone, with both of its workers, and hands over to the next one.
    fn serves_alone(&mut self) {
        let status = wait_for("the new process answers", || self.asks(&["status"]));
        assert_eq!(status["upgrade"]["generation"], 4, "{status}");
        // Each worker accepts: the kernel steers by source.
        for host in 1..=40 {
            let client = connect_from(&format!("127.0.0.{host}"), self.tcp);
            asks(&client, b"word");
        }
        wait_until("each worker has had a client", || self.workers() == [0, 1]);
        assert_eq!(self.hears(&udp_client(self.udp), "word").1, "word");
        let answer = self.asks(&["upgrade"]).expect("the next upgrade succeeds");
        assert_eq!(answer["generation"], 5, "{answer}");
        assert_eq!(exchange(self.tcp, b"word").expect("it serves"), b"word");
        let process = answer["process"].as_i64().and_then(|number| i32::try_from(number).ok());
        kill(Pid::from_raw(process.expect("a number")), Signal::SIGTERM).expect("it lives");
        let new = &mut self.new;
        let ended = wait_for("the new process has ended", || new.try_wait().expect("its status"));
        assert!(ended.success(), "{ended}");
    }

    /// Workers whose sessions the access log has.
    fn workers(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.folder.file("access.log")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let mut workers: Vec<_> =
            lines.filter_map(|line: serde_json::Value| line["worker"].as_u64()).collect();
        workers.sort_unstable();
        workers.dedup();
        workers
    }

    /// The port that the endpoint sees, and what the client hears back.
    fn hears(&self, client: &UdpSocket, word: &str) -> (String, String) {
        client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        client.send(word.as_bytes()).expect("it is sent");
        let mut answer = [0; 64];
        let len = client.recv(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
        let (port, word) = answer.split_once(' ').expect("two words");
        (port.to_owned(), word.to_owned())
    }

    /// The new process ends with an error that says this.
    fn ends_with(&mut self, why: &str) {
        let new = &mut self.new;
        let ended = wait_for("the new process ends", || new.try_wait().expect("its status"));
        let said = self.said();
        assert!(!ended.success() && said.contains(why), "{ended}: {said}");
        assert!(!said.contains("goes on alone"), "{said}");
    }

    /// The old process still serves, and has its session.
    fn is_left_to_the_old_one(&mut self) {
        assert!(self.old.try_wait().expect("its status").is_none(), "the old process lives");
        for _ in 0..20 {
            assert_eq!(exchange(self.tcp, b"word").expect("the old one serves"), b"word");
        }
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        for child in [&mut self.old, &mut self.new] {
            _ = child.kill();
            _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- what the new process said ----\n{}", self.said());
        }
    }
}

#[test]
fn without_all_listening_sockets_the_new_process_ends() {
    for act in [DiesAfterOffer, DiesAmidSockets] {
        Play::begin(act).ends_with("the other process has ended, or has hung up");
    }
}

#[test]
fn with_all_listening_sockets_the_new_process_goes_on_alone() {
    for act in [DiesAfterSockets, DiesBeforeOverrides, DiesBeforeYours, DiesAfterFlows] {
        let mut play = Play::begin(act);
        play.serves_alone();
        let said = play.said();
        assert!(said.contains("this process goes on alone"), "{act:?}: {said}");
        let lost = said.contains("has died before it had said all");
        assert_eq!(lost, act == DiesBeforeOverrides, "{act:?}: {said}");
    }
}

/// What operators had said holds, though the keys of tickets have not come.
#[test]
fn what_had_come_before_the_old_process_died_holds() {
    let mut play = Play::begin(DiesBeforeTickets);
    let all = wait_for("the new process answers", || play.asks(&["overrides"]));
    assert_eq!((&all[0]["backend"], &all[0]["weight"]), (&"tcp".into(), &5.into()), "{all}");
    assert!(play.said().contains("has died before it had said all"), "{}", play.said());
    play.serves_alone();
}

/// The flow whose last figures had come goes on from the same port, whether or not the old process
/// has said its last word, and heard the answer.
#[test]
fn a_flow_that_had_settled_goes_on_alone_too() {
    for act in [DiesAfterFigures, DiesAfterYours, DiesAfterMine] {
        let mut play = Play::begin(act);
        let said = if act == DiesAfterMine { "has taken over" } else { "goes on alone" };
        wait_until("the new process is alone", || play.said().contains(said));
        let port = std::fs::read_to_string(play.folder.file("port")).expect("it is written");
        assert_eq!(play.hears(&play.player, "word"), (port, "word".to_owned()), "{act:?}");
        play.serves_alone();
    }
}

#[test]
fn a_late_refusal_leaves_all_to_the_old_process() {
    let mut play = Play::begin(RefusesLate);
    play.ends_with("the other process refuses: on second thoughts");
    play.is_left_to_the_old_one();
    // A refusal counts, whatever the old process does then: perhaps an operator has ended it.
    Play::begin(RefusesLateAndDies).ends_with("the other process refuses: on second thoughts");
}

#[test]
fn an_old_process_that_hangs_up_and_lives_has_all() {
    let mut play = Play::begin(HangsUp);
    play.ends_with("the other process has ended, or has hung up");
    play.is_left_to_the_old_one();
}

/// The new process can't give the last answer, and the old one lives.
#[test]
fn an_old_process_that_hears_no_answer_and_lives_has_all() {
    let mut play = Play::begin(IsDeafToMine);
    play.ends_with("the other process has ended");
    play.is_left_to_the_old_one();
}

/// `tests/run --long` runs it.
#[test]
#[ignore = "it takes half a minute"]
fn an_old_process_that_is_silent_for_too_long_has_all() {
    let mut play = Play::begin(SaysNothing);
    play.ends_with("the other process has said nothing for 25 s");
    play.is_left_to_the_old_one();
}

/// The new process can't say that it has adopted the session. If the old one has died, the session
/// goes on in the new one. If the old one lives, the session is the old one's.
#[test]
fn a_session_is_never_of_both_and_never_of_none() {
    for act in [DiesAfterSessions, IsDeafToSessions] {
        let mut play = Play::begin(act);
        let status = wait_for("the new process answers", || play.asks(&["status"]));
        assert_eq!(status["upgrade"]["generation"], 4, "{status}");
        asks(&play.client, b"first");
        asks(&play.client, b"again");
        let count = || play.asks(&["sessions"]).map(|all| all.as_array().map_or(0, Vec::len));
        let wanted = usize::from(act == DiesAfterSessions);
        wait_until("it is clear whose the session is", || count() == Some(wanted));
        assert_eq!(play.old.try_wait().expect("its status").is_some(), wanted == 1, "{act:?}");
    }
}
