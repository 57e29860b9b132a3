//! What two processes say to each other when one takes the listening sockets of the other over.
//!
//! Each message is one packet of a Unix socket (SOCK_SEQPACKET, unix(7)): a head, and JSON behind
//! it. Descriptors come beside the packet.
//!
//! ```text
//! "RWUP"  version: u16  length of the JSON: u32  JSON      numbers in network order
//!
//! new process                      old process
//! Hello                     ->
//!                           <-     Offer, Sockets..., Overrides..., Tickets...
//!                                                          (or Refused, at any time)
//! Taken..., Ready           ->     everything serves by now; so far both accept
//!                           <-     Flows                   UDP flows, which go on for now
//! Adopted                   ->     those that the new process can have; the above repeats
//!                           <-     Figures...              flows whose datagrams wait
//!                           <-     Yours                   nothing speaks against the end
//! Mine                      ->     only now the old process stops to accept
//!                           <-     Sessions                sessions that neither process reads
//! Adopted                   ->     those of them that are the new process's from now on
//!                           <-     Draining                this and the above, until the old
//!                                                          process ends
//! ```

use std::fmt;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A process refuses to speak with one of another version.
pub const VERSION: u16 = 6;

/// The most bytes of a message.
pub const MOST_BYTES: usize = 131_072;

/// The most sockets of a `Sockets` message. The kernel passes 253 descriptors at most beside a
/// packet (SCM_MAX_FD).
pub const MOST_SOCKETS: usize = 64;

/// The most numbers of a `Taken` message.
pub const MOST_NUMBERS: usize = 2_048;

/// The most entries of a `Tickets` message.
pub const MOST_TICKETS: usize = 64;

/// The most entries of an `Overrides` message.
pub const MOST_OVERRIDES: usize = 64;

/// The most sessions of a `Sessions` message. Each has two sockets.
pub const MOST_SESSIONS: usize = 16;

/// The most flows of a `Flows` message. Each has one socket.
pub const MOST_FLOWS: usize = 200;

/// The most entries of a `Figures` message.
pub const MOST_FIGURES: usize = 1_000;

/// The most bytes in front of a flow's datagrams.
pub const MOST_HEADER: usize = 256;

const MAGIC: [u8; 4] = *b"RWUP";
const HEAD: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// The new process has checked its configuration, and its workers have their rings.
    Hello {
        program: String,
        workers: u32,
    },
    Offer {
        program: String,
        /// How many processes have handed their sockets on so far.
        generation: u64,
        workers: u32,
        /// Keys the choice of the worker (`ring::listen::steering`).
        seed: u64,
        /// The number of sockets that follow.
        sockets: u32,
        /// The number of overrides behind them, and of listeners with tickets.
        overrides: u32,
        tickets: u32,
    },
    /// The descriptors beside the message are these sockets, in this order.
    Sockets(Vec<Name>),
    /// What operators have said of endpoints, backends and listeners. It does not change any more.
    Overrides(Vec<Override>),
    /// The keys of session tickets, so that tickets of the old process are good in the new one.
    Tickets(Vec<Tickets>),
    /// The sender goes no further. Whoever served before goes on.
    Refused {
        why: String,
    },
    /// Numbers of sockets, in the order of the `Sockets` messages, that the new process uses.
    Taken(Vec<u32>),
    Ready,
    Yours,
    Mine,
    /// Plain TCP sessions of which no byte is in the gateway. The descriptors beside the message
    /// are the connections of each with the client and with the endpoint. The old process does not
    /// read from them until it has the answer.
    Sessions(Vec<Session>),
    /// UDP flows. The descriptors beside the message are their sockets towards their endpoints. The
    /// old process goes on with them, and the new one receives nothing from the sockets.
    Flows(Vec<Flow>),
    /// What flows that were adopted have carried. No process receives their datagrams from here on,
    /// neither the client's nor the endpoint's. With `Mine` these flows are the new process's, and
    /// without it they are the old one's. Flows without figures are the old one's anyway.
    Figures(Vec<Figures>),
    /// Whether each of the sessions is the new process's. The sender begins to read once this is on
    /// its way, so the old process lets these go, and goes on with the others. Of flows: whether
    /// each can be the new process's.
    Adopted(Vec<bool>),
    /// What still lives in the old process, and in processes before it.
    Draining {
        processes: u64,
        sessions: u64,
        flows: u64,
    },
}

/// What an operator has said of an endpoint of a backend, of a backend, or of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    pub listener: Option<String>,
    pub backend: Option<String>,
    pub endpoint: Option<String>,
    pub action: Action,
    /// Milliseconds. `None`: until somebody takes it back.
    pub left: Option<u64>,
}

/// The keys of a listener's session tickets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tickets {
    pub listener: String,
    /// A hash of which clients may come in, in hexadecimal digits.
    pub admission: String,
    pub current: Secret,
    pub previous: Option<Secret>,
    /// When the next key makes tickets, in seconds of Unix time.
    pub next: u64,
}

/// Name and bytes of a key, in hexadecimal digits. They are overwritten when they are dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(String);

impl Secret {
    pub fn new(bytes: &[u8]) -> Self {
        Self(hexadecimal(bytes))
    }

    /// `None`: these are no digits.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        binary(&self.0)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        forget(std::mem::take(&mut self.0).into_bytes());
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Overwrites bytes that may have keys.
pub fn forget(mut bytes: Vec<u8>) {
    bytes.fill(0);
    // Otherwise the compiler may leave out what nobody reads.
    black_box(&bytes);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Drain,
    Disable,
    Weight(u32),
}

/// Which socket a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    pub what: What,
    /// As in the configuration.
    pub address: String,
    /// The number of the network interface. 0: all.
    pub interface: u32,
    /// The worker that has the socket. 0 for sockets of the process.
    pub worker: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Tcp,
    Udp,
    /// A listening socket of the admin API.
    Admin,
    /// The socket on which the next process comes to take over.
    Door,
}

/// A session that relays. What ids stand for in one process, names stand for here. Times are
/// microseconds of Unix time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The listening socket: its address, and the number of its network interface.
    pub address: String,
    pub interface: u32,
    /// The client began with a ClientHello, which passed through.
    pub tls: bool,
    pub listener: String,
    pub route: Option<String>,
    pub backend: String,
    pub endpoint: String,
    /// Milliseconds until the session ends, from when the configuration no longer has the endpoint.
    /// `None`: the session stays.
    pub close_after: Option<u32>,
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// The sender of the client's PROXY header, and the destination that it names.
    pub peer: Option<SocketAddr>,
    pub destination: Option<SocketAddr>,
    /// The id that the endpoint was told, in two halves.
    pub unique_id: Option<[u64; 2]>,
    pub server_name: Option<String>,
    /// Milliseconds: hello, idle, write stall, half close, lifetime.
    pub timeouts: [u32; 5],
    pub opened: u64,
    pub last_byte: u64,
    /// Microseconds that the connection to the endpoint took.
    pub connect: Option<u32>,
    /// Bytes from the client, and from the endpoint.
    pub bytes: [u64; 2],
    /// Whether the client has ended, and the endpoint.
    pub ended: [bool; 2],
    /// Whether the client ended first.
    pub client_first: Option<bool>,
    /// `max_sessions` counts the session as one that has begun to end.
    pub ending: bool,
    /// Whether the pacing of each connection may still be changed.
    pub paced: [bool; 2],
}

impl Session {
    /// Whether a session can be so.
    fn is_sound(&self) -> bool {
        let has_ended = self.ended != [false; 2];
        are_sound(self.bytes) && self.ended != [true; 2] && has_ended == self.client_first.is_some()
    }
}

/// A UDP flow. Times are microseconds of Unix time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// The listening socket: its address, and the number of its network interface.
    pub address: String,
    pub interface: u32,
    pub listener: String,
    pub route: String,
    pub backend: String,
    pub endpoint: String,
    /// As of a session.
    pub close_after: Option<u32>,
    /// The worker of the new process whose socket gets the client's datagrams.
    pub worker: u32,
    /// The sender of the client's datagrams.
    pub peer: SocketAddr,
    /// The address that the client spoke to, where the socket is bound to a wildcard.
    pub local: Option<IpAddr>,
    /// The source and the destination in the header of the client's first datagram.
    pub said: Option<[SocketAddr; 2]>,
    /// The bytes in front of each datagram to the endpoint, in hexadecimal digits.
    pub header: String,
    /// The id that the endpoint was told, in two halves.
    pub unique_id: Option<[u64; 2]>,
    /// Milliseconds.
    pub timeout: u32,
    pub responses: u32,
    /// Datagrams from the client, and from the endpoint.
    pub datagrams: [u32; 2],
    /// Bytes from the client, and from the endpoint.
    pub bytes: [u64; 2],
    pub opened: u64,
    pub last: u64,
    /// The endpoint's port is closed.
    pub refused: bool,
    /// The socket is of no use to any other flow.
    pub own: bool,
    /// The number of the network interface through which the socket reaches the endpoint.
    pub through: u32,
}

impl Flow {
    /// Whether a flow can be so.
    fn is_sound(&self) -> bool {
        are_sound(self.bytes) && self.header.len() <= 2 * MOST_HEADER && self.header().is_some()
    }

    /// The bytes in front of each datagram to the endpoint.
    pub fn header(&self) -> Option<Vec<u8>> {
        binary(&self.header)
    }
}

/// What a flow has carried in the end. In a message it is a list of six, because many must come
/// while datagrams wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub struct Figures {
    /// Which flow: the number of flows that were adopted before it.
    pub flow: u32,
    /// As those of [`Flow`].
    pub datagrams: [u32; 2],
    pub bytes: [u64; 2],
    pub last: u64,
    pub refused: bool,
    /// The kernel forwarded the flow until now (`fast_path`).
    pub promoted: bool,
}

type Row = (u32, [u32; 2], [u64; 2], u64, bool, bool);

impl From<Row> for Figures {
    fn from((flow, datagrams, bytes, last, refused, promoted): Row) -> Self {
        Self { flow, datagrams, bytes, last, refused, promoted }
    }
}

impl From<Figures> for Row {
    fn from(Figures { flow, datagrams, bytes, last, refused, promoted }: Figures) -> Self {
        (flow, datagrams, bytes, last, refused, promoted)
    }
}

/// Whether so many bytes can have been carried each way. The bound lets sums of them be sums.
fn are_sound(bytes: [u64; 2]) -> bool {
    bytes.iter().all(|bytes| *bytes <= u64::MAX >> 2)
}

/// The bytes of hexadecimal digits.
pub fn binary(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|of| u8::try_from(of).ok());
    let pairs = digits.chunks(2).map(|pair| match *pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    pairs.collect()
}

/// Bytes as hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    // It does not grow, so no piece of it stays elsewhere.
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string can't fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("{0} bytes are no message of another Ringway")]
    Head(usize),
    #[error(
        "the other process speaks version {0} of the hand-over, and this one version {VERSION}"
    )]
    Version(u16),
    #[error("a message says that it has {said} bytes, and has {has}")]
    Length { said: usize, has: usize },
    #[error("a message can't be read: {0}")]
    Json(String),
    #[error("a message has {0} entries, which is too many")]
    Entries(usize),
    #[error("a session of a message contradicts itself")]
    Session,
    #[error("a flow of a message can't be as it is")]
    Flow,
}

/// Writes a message.
pub fn write(message: &Message) -> Vec<u8> {
    let json = serde_json::to_vec(message).unwrap_or_default();
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEAD + json.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(json);
    bytes
}

/// Reads a packet, which is one message.
///
/// # Errors
/// The bytes are no message of this version.
pub fn read(bytes: &[u8]) -> Result<Message, Fault> {
    let head = |has| Fault::Head(has);
    let (magic, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| head(bytes.len()))?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(|| head(bytes.len()))?;
    if *magic != MAGIC {
        return Err(head(bytes.len()));
    }
    let version = u16::from_be_bytes(*version);
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let (length, json) = rest.split_first_chunk::<4>().ok_or_else(|| head(bytes.len()))?;
    let (said, has) = (u32::from_be_bytes(*length) as usize, json.len());
    if said != has || bytes.len() > MOST_BYTES {
        return Err(Fault::Length { said, has });
    }
    let message = serde_json::from_slice(json).map_err(|error| Fault::Json(error.to_string()))?;
    match &message {
        Message::Sockets(names) if names.len() > MOST_SOCKETS => Err(Fault::Entries(names.len())),
        Message::Taken(numbers) if numbers.len() > MOST_NUMBERS => {
            Err(Fault::Entries(numbers.len()))
        }
        Message::Overrides(all) if all.len() > MOST_OVERRIDES => Err(Fault::Entries(all.len())),
        Message::Tickets(all) if all.len() > MOST_TICKETS => Err(Fault::Entries(all.len())),
        Message::Sessions(sessions) if sessions.len() > MOST_SESSIONS => {
            Err(Fault::Entries(sessions.len()))
        }
        Message::Flows(flows) if flows.len() > MOST_FLOWS => Err(Fault::Entries(flows.len())),
        Message::Figures(all) if all.len() > MOST_FIGURES => Err(Fault::Entries(all.len())),
        Message::Adopted(adopted) if adopted.len() > MOST_FLOWS => {
            Err(Fault::Entries(adopted.len()))
        }
        Message::Flows(flows) if !flows.iter().all(Flow::is_sound) => Err(Fault::Flow),
        Message::Figures(all) if !all.iter().all(|of| are_sound(of.bytes)) => Err(Fault::Flow),
        Message::Sessions(sessions) if !sessions.iter().all(Session::is_sound) => {
            Err(Fault::Session)
        }
        _ => Ok(message),
    }
}
