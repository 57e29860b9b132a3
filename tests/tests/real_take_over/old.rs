//! The old process of a test. It has what a gateway has, and goes as far through the hand-over as
//! its act says.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
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
use ringway_tests::real::echo;
use socket2::{Domain, SockRef, Socket, Type};

use crate::Act::{
    self, DiesAfterFigures, DiesAfterFlows, DiesAfterMine, DiesAfterOffer, DiesAfterSockets,
    DiesAfterYours, DiesAmidSockets, DiesBeforeOverrides, DiesBeforeTickets, DiesBeforeYours,
    HangsUp, IsDeafToMine, IsDeafToSessions, RefusesLate, RefusesLateAndDies, SaysNothing,
};
use crate::DEADLINE;

const SEED: u64 = 7;

/// A variable that the test has set.
fn given<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Hands over as far as the act says. Other tests start it.
#[test]
#[ignore = "other tests start it as a process"]
fn an_old_process_of_a_test() {
    let Some(act) = given::<String>("RINGWAY_TEST_ACT") else { return };
    let act: Act = serde_json::from_value(act.into()).expect("an act");
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
    link.hands_over(act, &old, [client, endpoint]);
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
