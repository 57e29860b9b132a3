//! The language of scenarios, and how one is played.

use std::fmt::Write as _;

use ringway::stats::records::{CloseReason, Record, SessionRecord};

use crate::hello::{client_hello, offering};
use crate::sim::scenarios::setup::Setup;

use self::Step::{
    Answers, Asks, Connect, Ends, Exchanges, Fin, Gets, GetsHello, HasFailed, Hears, IsRefused,
    Logs, LogsReason, Reset, Returns, Sends, SendsHello, Served, Unlisten,
};

pub struct Scenario {
    pub name: &'static str,
    pub setup: Setup,
    pub steps: &'static [Step],
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
    /// The client offers this protocol.
    Offer(&'static str),
    Garbage,
    /// A TLS record that can't be one.
    EmptyRecord,
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
    /// The gateway knows of so many refusals of this endpoint, by its place in the setup.
    IsRefused(u32, u64),
    /// So many connects to this endpoint of the first backend have failed.
    HasFailed(u32, u64),
    /// This endpoint of the first backend leaves the table, and is in the table after that.
    Returns(u32),
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
    fn is_refused(&mut self, endpoint: u32, times: u64);
    fn has_failed(&mut self, endpoint: u32, times: u64);
    fn returns(&mut self, endpoint: u32);
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
            IsRefused(endpoint, times) => stage.is_refused(endpoint, times),
            HasFailed(endpoint, times) => stage.has_failed(endpoint, times),
            Returns(endpoint) => stage.returns(endpoint),
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
            Self::Offer(protocol) => offering(&["x", protocol], Some("a.test"), 300, 128),
            Self::Garbage => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Self::EmptyRecord => vec![22, 3, 1, 0, 0, 1],
        }
    }
}
