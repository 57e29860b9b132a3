//! Scenarios as data: what peers do, step by step, and what they see. The same steps run on the
//! simulated kernel and on the real one, and must give the same trace.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use config_sync::table::ranges::Access;
use config_sync::table::routing::{
    Backend, BackendId, Balance, Endpoint, EndpointId, Hosts, Limits, Listener, ListenerId,
    Protocol, Route, RouteId, RoutingTable, Socket, SocketId, Sources, Timeouts, Transport,
    WeightedBackend,
};
use ringway::stats::records::{CloseReason, Record, SessionRecord};

use crate::hello::client_hello;
use crate::model;

pub struct Scenario {
    pub name: &'static str,
    pub setup: Setup,
    pub steps: &'static [Step],
}

/// One listening socket, and what stands behind it. A TLS socket has two listeners, for `a.test`
/// and for `*.b.test`; all have the same backend.
#[derive(Clone, Copy)]
pub struct Setup {
    pub protocol: Protocol,
    pub endpoints: &'static [Serves],
    pub timeouts: Timeouts,
    pub max_sessions: u32,
    /// UDP.
    pub flow_timeout: u32,
    pub responses: u32,
    /// UDP: shared upstream sockets, with these addresses.
    pub source: Option<Sources>,
    /// Whether clients of the loopback network are denied.
    pub denied: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    Accepts,
    Refuses,
}

/// A client by its number, or the server's end of that client's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Client(u8),
    Server(u8),
}

/// What a client's stream begins with; a pattern follows.
#[derive(Clone, Copy)]
pub enum Begins {
    Plain,
    Hello(Option<&'static str>),
    Garbage,
}

#[derive(Clone, Copy)]
pub enum Step {
    Connect(u8, Begins),
    /// The server has the client's session.
    Served(u8),
    /// The next bytes of the peer's stream are given to its socket, now or as it takes them.
    Sends(Peer, u64),
    /// All of the client's hello.
    SendsHello(u8),
    /// After what it sends.
    Fin(Peer),
    Reset(Peer),
    /// The peer reads exactly so many bytes.
    Gets(Peer, u64),
    GetsHello(u8),
    /// So many times: a few bytes from the client, which the server reads, and as many back.
    Exchanges(u8, u64),
    /// The peer reads until the end: says how many bytes, and which end.
    Ends(Peer),
    /// The next line of the access log, with its byte counts...
    Logs(CloseReason),
    /// ...or without: how much fits socket buffers is the kernel's affair.
    LogsReason(CloseReason),
    /// The listener leaves the table.
    Unlisten,
    /// Datagrams: from a client, at the server, the server's answer, and at the client.
    Asks(u8, u32),
    Hears(Peer, u32),
    Answers(u8, u32),
}

/// Bytes of one message of an exchange.
const EXCHANGED: u64 = 100;

/// Where a scenario is played. Waits end with what they wait for.
pub trait Stage {
    fn connect(&mut self, client: u8, prefix: Vec<u8>);
    fn served(&mut self, client: u8);
    fn sends(&mut self, peer: Peer, bytes: u64);
    fn fin(&mut self, peer: Peer);
    fn reset(&mut self, peer: Peer);
    /// Reads `bytes`, checks them against the other peer's stream; fewer if the end comes first.
    fn gets(&mut self, peer: Peer, bytes: u64) -> u64;
    /// Reads until the end; true: a FIN, false: a reset.
    fn ends(&mut self, peer: Peer) -> (u64, bool);
    fn logs(&mut self) -> SessionRecord;
    fn unlisten(&mut self);
    fn asks(&mut self, client: u8, bytes: u32);
    /// The size of the next datagram.
    fn hears(&mut self, peer: Peer) -> u32;
    fn answers(&mut self, client: u8, bytes: u32);
}

/// Plays a scenario; returns what was seen, a line each.
pub fn play(scenario: &Scenario, stage: &mut impl Stage) -> String {
    let mut trace = String::new();
    let mut hellos = [0; 8];
    for step in scenario.steps {
        match *step {
            Connect(client, begins) => {
                let prefix = begins.bytes();
                hellos[usize::from(client)] = prefix.len() as u64;
                stage.connect(client, prefix);
            }
            Served(client) => stage.served(client),
            Sends(peer, bytes) => stage.sends(peer, bytes),
            SendsHello(client) => {
                stage.sends(Peer::Client(client), hellos[usize::from(client)]);
            }
            Fin(peer) => stage.fin(peer),
            Reset(peer) => stage.reset(peer),
            Gets(peer, bytes) => see(&mut trace, peer, stage.gets(peer, bytes), "bytes"),
            GetsHello(client) => {
                let peer = Peer::Server(client);
                see(&mut trace, peer, stage.gets(peer, hellos[usize::from(client)]), "bytes");
            }
            Exchanges(client, count) => {
                let (client, server) = (Peer::Client(client), Peer::Server(client));
                for (from, to) in [(client, server), (server, client)].repeat(count as usize) {
                    stage.sends(from, EXCHANGED);
                    assert_eq!(stage.gets(to, EXCHANGED), EXCHANGED, "{}", scenario.name);
                }
                see(&mut trace, client, count, "exchanges");
            }
            Ends(peer) => {
                let (bytes, fin) = stage.ends(peer);
                let end = if fin { "bytes and a FIN" } else { "bytes and a reset" };
                see(&mut trace, peer, bytes, end);
            }
            Logs(reason) => {
                let record = stage.logs();
                assert_eq!(record.reason, Some(reason), "{}: {record:?}", scenario.name);
                let (up, down) = (record.bytes_up, record.bytes_down);
                let _ = writeln!(trace, "log: {} {up} {down}", reason.word());
            }
            LogsReason(reason) => {
                let record = stage.logs();
                assert_eq!(record.reason, Some(reason), "{}: {record:?}", scenario.name);
                let _ = writeln!(trace, "log: {}", reason.word());
            }
            Unlisten => stage.unlisten(),
            Asks(client, bytes) => stage.asks(client, bytes),
            Hears(peer, bytes) => {
                let heard = stage.hears(peer);
                assert_eq!(heard, bytes, "{}", scenario.name);
                see(&mut trace, peer, u64::from(heard), "bytes in a datagram");
            }
            Answers(client, bytes) => stage.answers(client, bytes),
        }
    }
    trace
}

fn see(trace: &mut String, peer: Peer, bytes: u64, what: &str) {
    let _ = writeln!(trace, "{peer:?}: {bytes} {what}");
}

/// The closes among records.
pub fn closed(record: Record) -> Option<SessionRecord> {
    match record {
        Record::Closed(record) => Some(record),
        _ => None,
    }
}

impl Begins {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Plain => Vec::new(),
            Self::Hello(name) => client_hello(name, 300, 128),
            Self::Garbage => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        }
    }
}

pub const LIMITS: Limits = Limits {
    sessions: 16,
    flows: 16,
    buffers: 8,
    pipes: 8,
    turn_bytes: 1 << 20,
    bulk_bytes: 8 << 20,
};

impl Setup {
    pub fn transport(&self) -> Transport {
        match self.protocol {
            Protocol::Tcp | Protocol::Tls => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        }
    }

    pub fn table(&self, address: SocketAddr, endpoints: &[SocketAddr]) -> RoutingTable {
        let names: &[_] = match self.protocol {
            Protocol::Tls => &[Some("a.test"), Some("*.b.test")],
            Protocol::Tcp | Protocol::Udp => &[None],
        };
        let any = || {
            let mut hosts = Hosts::new([1, 2, 3, 4]);
            hosts.insert(None, 0);
            hosts
        };
        let mut by_name = Hosts::new([1, 2, 3, 4]);
        for (index, name) in names.iter().enumerate() {
            by_name.insert(*name, index);
        }
        let home = || "127.0.0.0/8".parse().expect("a prefix");
        let access = self.denied.then(|| Arc::new(Access::new(None, &[home()])));
        let listener = |id: usize| Listener {
            id: ListenerId(id as u32),
            timeouts: self.timeouts,
            max_sessions: self.max_sessions,
            access: access.clone(),
            flow_timeout: self.flow_timeout,
            tls: None,
            responses: self.responses,
            ..model::plain_listener(self.protocol, any())
        };
        let endpoint = |(id, address): (usize, &SocketAddr)| Endpoint {
            id: EndpointId(id as u32),
            address: *address,
        };
        RoutingTable {
            generation: 1,
            sockets: vec![Socket {
                id: SocketId(0),
                transport: self.transport(),
                address,
                options: model::options(),
                reads_hello: self.protocol == Protocol::Tls,
                hello_timeout: self.timeouts.hello,
                access: access.clone().filter(|_| self.protocol == Protocol::Tls),
                starttls: None,
                default_hostname: None,
                accept_proxy: Box::default(),
                listeners: by_name,
            }],
            listeners: (0..names.len()).map(listener).collect(),
            routes: vec![Route {
                id: RouteId(0),
                name: "route".into(),
                access: None,
                backends: vec![WeightedBackend { id: BackendId(0), backend: 0, weight: 1 }],
            }],
            backends: vec![Backend {
                id: BackendId(0),
                name: "backend".into(),
                balance: Balance::RoundRobin,
                endpoints: endpoints.iter().enumerate().map(endpoint).collect(),
                connect_timeout: 2_000,
                connect_attempts: 3,
                options: model::options(),
                source: self.source.into_iter().collect(),
                shared_sockets: self.source.is_some(),
                upstream_rest: 2_000,
                send_proxy: None,
                transparent: false,
                tls: None,
            }],
            ..RoutingTable::empty()
        }
    }
}

/// The loopback address: both stages speak of the same peers.
pub const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

const NONE: Timeouts = Timeouts { hello: 0, idle: 0, write_stall: 0, half_close: 0, lifetime: 0 };
const TCP: Setup = Setup {
    protocol: Protocol::Tcp,
    endpoints: &[Serves::Accepts],
    timeouts: NONE,
    max_sessions: 0,
    flow_timeout: 0,
    responses: 0,
    source: None,
    denied: false,
};
const TLS: Setup = Setup { protocol: Protocol::Tls, ..TCP };
pub const UDP: Setup = Setup { protocol: Protocol::Udp, flow_timeout: 60_000, ..TCP };
const TWO_ADDRESSES: Sources =
    Sources { first: IpAddr::V4(std::net::Ipv4Addr::new(127, 1, 0, 1)), count: 2 };
const SHARED: Setup = Setup { source: Some(TWO_ADDRESSES), ..UDP };

const C: Peer = Peer::Client(0);
const S: Peer = Peer::Server(0);

use Begins::{Garbage, Hello, Plain};
use CloseReason as R;
use Step::{
    Answers, Asks, Connect, Ends, Exchanges, Fin, Gets, GetsHello, Hears, Logs, LogsReason, Reset,
    Sends, SendsHello, Served, Unlisten,
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a request, an answer, and the client ends first",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Sends(C, 1_000),
            Served(0),
            Gets(S, 1_000),
            Sends(S, 5_000),
            Gets(C, 5_000),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "the server speaks first and ends first",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(S, 300),
            Fin(S),
            Ends(C),
            Sends(C, 7),
            Fin(C),
            Ends(S),
            Logs(R::EndpointFin),
        ],
    },
    Scenario {
        name: "a request that is ended by a half-close is answered",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Sends(C, 40),
            Fin(C),
            Served(0),
            Ends(S),
            Sends(S, 100_000),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "two ends without a byte",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "a client's reset is a reset for the server",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(C, 10),
            Gets(S, 10),
            Reset(C),
            Ends(S),
            Logs(R::ClientReset),
        ],
    },
    Scenario {
        name: "a server's reset is a reset for the client",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(S, 10),
            Gets(C, 10),
            Reset(S),
            Ends(C),
            Logs(R::EndpointReset),
        ],
    },
    Scenario {
        name: "a reset after a half-close",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Sends(C, 10),
            Fin(C),
            Served(0),
            Ends(S),
            Reset(S),
            Ends(C),
            Logs(R::EndpointReset),
        ],
    },
    Scenario {
        name: "nobody listens at the endpoint",
        setup: Setup { endpoints: &[Serves::Refuses], ..TCP },
        steps: &[Connect(0, Plain), Ends(C), Logs(R::ConnectFailed)],
    },
    Scenario {
        name: "one of two endpoints refuses, the other serves",
        setup: Setup { endpoints: &[Serves::Refuses, Serves::Accepts], ..TCP },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(C, 10),
            Gets(S, 10),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
            Connect(1, Plain),
            Served(1),
            Fin(Peer::Server(1)),
            Ends(Peer::Client(1)),
            Fin(Peer::Client(1)),
            Ends(Peer::Server(1)),
            Logs(R::EndpointFin),
        ],
    },
    Scenario {
        name: "a backend without endpoints refuses",
        setup: Setup { endpoints: &[], ..TCP },
        steps: &[Connect(0, Plain), Ends(C), Logs(R::NoEndpoint)],
    },
    Scenario {
        name: "bulk both ways",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(C, 6_000_000),
            Sends(S, 9_000_000),
            Fin(C),
            Gets(S, 6_000_000),
            Gets(C, 9_000_000),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "a server that reads late gets everything",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(C, 30_000_000),
            Fin(C),
            Sends(S, 100),
            Gets(C, 100),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "many small exchanges, and the client ends first",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Exchanges(0, 50),
            Fin(C),
            Ends(S),
            Sends(S, 3_000),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "small exchanges, bulk both ways, and small exchanges again",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Exchanges(0, 50),
            Sends(C, 3_000_000),
            Sends(S, 4_000_000),
            Gets(S, 3_000_000),
            Gets(C, 4_000_000),
            Exchanges(0, 50),
            Fin(S),
            Ends(C),
            Fin(C),
            Ends(S),
            Logs(R::EndpointFin),
        ],
    },
    Scenario {
        name: "after small exchanges, both sides read late and get everything",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Exchanges(0, 20),
            Sends(C, 30_000_000),
            Sends(S, 30_000_000),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "a client's reset after small exchanges",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Exchanges(0, 50),
            Reset(C),
            Ends(S),
            Logs(R::ClientReset),
        ],
    },
    Scenario {
        name: "a server's reset after small exchanges",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Exchanges(0, 50),
            Reset(S),
            Ends(C),
            Logs(R::EndpointReset),
        ],
    },
    Scenario {
        name: "silence after small exchanges",
        setup: Setup { timeouts: Timeouts { idle: 1_000, ..NONE }, ..TCP },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Exchanges(0, 50),
            Ends(C),
            Ends(S),
            Logs(R::IdleTimeout),
        ],
    },
    Scenario {
        name: "after small exchanges, a server that never reads",
        setup: Setup { timeouts: Timeouts { write_stall: 100, ..NONE }, ..TCP },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Exchanges(0, 20),
            Sends(C, 100_000_000),
            LogsReason(R::EndpointStalled),
        ],
    },
    Scenario {
        name: "two sessions side by side",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Connect(1, Plain),
            Served(1),
            Sends(C, 20_000),
            Sends(Peer::Client(1), 30_000),
            Gets(Peer::Server(1), 30_000),
            Gets(S, 20_000),
            Sends(Peer::Server(1), 5),
            Sends(S, 6),
            Gets(C, 6),
            Gets(Peer::Client(1), 5),
            Reset(C),
            Ends(S),
            Logs(R::ClientReset),
            Fin(Peer::Client(1)),
            Ends(Peer::Server(1)),
            Fin(Peer::Server(1)),
            Ends(Peer::Client(1)),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "one session more than the listener may have",
        setup: Setup { max_sessions: 1, ..TCP },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Connect(1, Plain),
            Ends(Peer::Client(1)),
            Logs(R::ListenerLimit),
            Sends(C, 3),
            Gets(S, 3),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "a client that the listener denies",
        setup: Setup { denied: true, ..TCP },
        steps: &[Connect(0, Plain), Ends(C), Logs(R::SourceDenied)],
    },
    Scenario {
        name: "a client that is denied before it says its name",
        setup: Setup { denied: true, ..TLS },
        steps: &[Connect(0, Plain), Ends(C), Logs(R::SourceDenied)],
    },
    Scenario {
        name: "silence on both sides",
        setup: Setup { timeouts: Timeouts { idle: 100, ..NONE }, ..TCP },
        steps: &[Connect(0, Plain), Served(0), Ends(C), Ends(S), Logs(R::IdleTimeout)],
    },
    Scenario {
        name: "silence after a half-close",
        setup: Setup { timeouts: Timeouts { half_close: 100, ..NONE }, ..TCP },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(C, 4),
            Fin(C),
            Ends(S),
            Ends(C),
            Logs(R::HalfCloseTimeout),
        ],
    },
    Scenario {
        name: "a server that never reads",
        setup: Setup { timeouts: Timeouts { write_stall: 100, ..NONE }, ..TCP },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(C, 100_000_000),
            LogsReason(R::EndpointStalled),
        ],
    },
    Scenario {
        name: "a session that reaches its age",
        setup: Setup { timeouts: Timeouts { lifetime: 1_000, ..NONE }, ..TCP },
        steps: &[
            Connect(0, Plain),
            Served(0),
            Sends(C, 4),
            Gets(S, 4),
            Ends(C),
            Ends(S),
            Logs(R::MaxLifetime),
        ],
    },
    Scenario {
        name: "a session outlives its listener",
        setup: TCP,
        steps: &[
            Connect(0, Plain),
            Served(0),
            Unlisten,
            Sends(C, 500),
            Gets(S, 500),
            Sends(S, 500),
            Gets(C, 500),
            Fin(S),
            Ends(C),
            Fin(C),
            Ends(S),
            Logs(R::EndpointFin),
        ],
    },
    Scenario {
        name: "TLS by its exact name",
        setup: TLS,
        steps: &[
            Connect(0, Hello(Some("A.test"))),
            SendsHello(0),
            Sends(C, 100),
            Served(0),
            GetsHello(0),
            Gets(S, 100),
            Sends(S, 2_000),
            Gets(C, 2_000),
            Fin(C),
            Ends(S),
            Fin(S),
            Ends(C),
            Logs(R::ClientFin),
        ],
    },
    Scenario {
        name: "TLS by a wildcard, in pieces",
        setup: TLS,
        steps: &[
            Connect(0, Hello(Some("x.y.b.test"))),
            Sends(C, 3),
            Sends(C, 50),
            Sends(C, 1_000),
            Served(0),
            GetsHello(0),
            Reset(S),
            Ends(C),
            LogsReason(R::EndpointReset),
        ],
    },
    Scenario {
        name: "TLS with a name that nobody has",
        setup: TLS,
        steps: &[
            Connect(0, Hello(Some("b.test"))),
            SendsHello(0),
            Ends(C),
            Logs(R::UnknownServerName),
            Connect(1, Hello(None)),
            SendsHello(1),
            Ends(Peer::Client(1)),
            Logs(R::UnknownServerName),
        ],
    },
    Scenario {
        name: "no TLS at all",
        setup: TLS,
        steps: &[Connect(0, Garbage), SendsHello(0), Ends(C), Logs(R::HelloInvalid)],
    },
    Scenario {
        name: "half a ClientHello",
        setup: Setup { timeouts: Timeouts { hello: 100, ..NONE }, ..TLS },
        steps: &[Connect(0, Hello(Some("a.test"))), Sends(C, 60), Ends(C), Logs(R::HelloTimeout)],
    },
    Scenario {
        name: "a client that leaves before it says anything",
        setup: TLS,
        steps: &[Connect(0, Plain), Fin(C), Ends(C), Logs(R::ClientGone)],
    },
    Scenario {
        name: "a query and its answer",
        setup: Setup { responses: 1, ..UDP },
        steps: &[Asks(0, 40), Hears(S, 40), Answers(0, 512), Hears(C, 512), Logs(R::FlowAnswered)],
    },
    Scenario {
        name: "two queries from one socket",
        setup: Setup { responses: 1, ..UDP },
        steps: &[
            Asks(0, 40),
            Asks(0, 41),
            Hears(S, 40),
            Hears(S, 41),
            Answers(0, 100),
            Answers(0, 200),
            Hears(C, 100),
            Hears(C, 200),
            Logs(R::FlowAnswered),
        ],
    },
    Scenario {
        name: "two clients of one server, and silence",
        setup: Setup { flow_timeout: 1_000, ..UDP },
        steps: &[
            Asks(0, 10),
            Hears(S, 10),
            Asks(1, 20),
            Hears(Peer::Server(1), 20),
            Answers(0, 1_200),
            Hears(C, 1_200),
            Answers(1, 0),
            Hears(Peer::Client(1), 0),
            LogsReason(R::FlowTimeout),
            LogsReason(R::FlowTimeout),
        ],
    },
    Scenario {
        name: "two clients of one server through a shared socket",
        setup: Setup { responses: 2, ..SHARED },
        steps: &[
            Asks(0, 10),
            Hears(S, 10),
            Asks(1, 20),
            Hears(Peer::Server(1), 20),
            Answers(1, 1_200),
            Hears(Peer::Client(1), 1_200),
            Answers(0, 0),
            Hears(C, 0),
            Answers(0, 7),
            Hears(C, 7),
            Logs(R::FlowAnswered),
            Answers(1, 8),
            Hears(Peer::Client(1), 8),
            Logs(R::FlowAnswered),
        ],
    },
    Scenario {
        name: "one flow more than a shared socket has addresses",
        setup: Setup { flow_timeout: 1_000, ..SHARED },
        steps: &[
            Asks(0, 10),
            Hears(S, 10),
            Asks(1, 20),
            Hears(Peer::Server(1), 20),
            Asks(2, 30),
            Logs(R::LocalLimit),
            Answers(0, 40),
            Hears(C, 40),
            LogsReason(R::FlowTimeout),
            LogsReason(R::FlowTimeout),
        ],
    },
    Scenario {
        name: "a datagram of a client that the listener denies",
        setup: Setup { denied: true, ..UDP },
        steps: &[Asks(0, 10), Logs(R::SourceDenied)],
    },
    Scenario {
        name: "a datagram for a backend without endpoints",
        setup: Setup { endpoints: &[], ..UDP },
        steps: &[Asks(0, 10), Logs(R::NoEndpoint)],
    },
];
