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
//!                           <-     Offer, Sockets..., Overrides...    (or Refused, at any time)
//! Taken..., Ready           ->     everything serves by now; so far both accept
//!                           <-     Flows                   UDP flows, whose datagrams wait
//! Adopted                   ->     those that the new process can have; the above repeats
//!                           <-     Yours                   nothing speaks against the end
//! Mine                      ->     only now the old process stops to accept
//!                           <-     Sessions                sessions that neither process reads
//! Adopted                   ->     those of them that are the new process's from now on
//!                           <-     Draining                this and the above, until the old
//!                                                          process ends
//! ```

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A process refuses to speak with one of another version.
pub const VERSION: u16 = 4;

/// The most bytes of a message.
pub const MOST_BYTES: usize = 131_072;

/// The most sockets of a `Sockets` message. The kernel passes 253 descriptors at most beside a
/// packet (SCM_MAX_FD).
pub const MOST_SOCKETS: usize = 64;

/// The most numbers of a `Taken` message.
pub const MOST_NUMBERS: usize = 2_048;

/// The most entries of an `Overrides` message.
pub const MOST_OVERRIDES: usize = 64;

/// The most sessions of a `Sessions` message. Each has two sockets.
pub const MOST_SESSIONS: usize = 16;

/// The most flows of a `Flows` message. Each has one socket.
pub const MOST_FLOWS: usize = 200;

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
        /// The number of overrides behind them.
        overrides: u32,
    },
    /// The descriptors beside the message are these sockets, in this order.
    Sockets(Vec<Name>),
    /// What operators have said of endpoints, backends and listeners. It does not change any more.
    Overrides(Vec<Override>),
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
    /// UDP flows. The descriptors beside the message are their sockets towards their endpoints. No
    /// process receives a flow's datagrams from here on, neither the client's nor the endpoint's.
    /// With `Mine` the flows that were adopted are the new process's, and without it all are the
    /// old one's.
    Flows(Vec<Flow>),
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
    /// Whether a session can be so. The bound of the bytes lets sums of them be sums.
    fn is_sound(&self) -> bool {
        let has_ended = self.ended != [false; 2];
        self.bytes.iter().all(|bytes| *bytes <= u64::MAX >> 2)
            && self.ended != [true; 2]
            && has_ended == self.client_first.is_some()
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
        self.bytes.iter().all(|bytes| *bytes <= u64::MAX >> 2)
            && self.header.len() <= 2 * MOST_HEADER
            && self.header().is_some()
    }

    /// The bytes in front of each datagram to the endpoint.
    pub fn header(&self) -> Option<Vec<u8>> {
        let digits = self.header.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|of| u8::try_from(of).ok());
        let pairs = digits.chunks(2).map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        });
        pairs.collect()
    }
}

/// Bytes as hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
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
        Message::Sessions(sessions) if sessions.len() > MOST_SESSIONS => {
            Err(Fault::Entries(sessions.len()))
        }
        Message::Flows(flows) if flows.len() > MOST_FLOWS => Err(Fault::Entries(flows.len())),
        Message::Adopted(adopted) if adopted.len() > MOST_FLOWS => {
            Err(Fault::Entries(adopted.len()))
        }
        Message::Flows(flows) if !flows.iter().all(Flow::is_sound) => Err(Fault::Flow),
        Message::Sessions(sessions) if !sessions.iter().all(Session::is_sound) => {
            Err(Fault::Session)
        }
        _ => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name { what: What::Udp, address: "[::1]:53".into(), interface: 2, worker: 7 }
    }

    fn an_override() -> Override {
        Override {
            listener: None,
            backend: Some("b".repeat(253)),
            endpoint: Some("e".repeat(253)),
            action: Action::Weight(256),
            left: Some(u64::MAX),
        }
    }

    fn session() -> Session {
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        Session {
            address: "[::]:443".into(),
            interface: 3,
            tls: true,
            listener: "web".into(),
            route: Some("web".into()),
            backend: "blue".into(),
            endpoint: "unix:/run/app.sock".into(),
            close_after: Some(10_000),
            client: at(1),
            local: at(2),
            peer: Some(at(3)),
            destination: Some(at(4)),
            unique_id: Some([u64::MAX, 1]),
            server_name: Some("a.example".into()),
            timeouts: [1, 2, 3, 4, u32::MAX],
            opened: 5,
            last_byte: 6,
            connect: Some(7),
            bytes: [u64::MAX >> 2, 8],
            ended: [true, false],
            client_first: Some(true),
            ending: true,
            paced: [false, true],
        }
    }

    #[test]
    fn a_session_that_contradicts_itself_is_refused() {
        let unsound = [
            Session { bytes: [0, u64::MAX], ..session() },
            Session { ended: [true; 2], ..session() },
            Session { client_first: None, ..session() },
            Session { ended: [false; 2], ..session() },
        ];
        for session in unsound {
            assert_eq!(read(&write(&Message::Sessions(vec![session]))), Err(Fault::Session));
        }
    }

    fn flow() -> Flow {
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        Flow {
            address: "[::]:53".into(),
            interface: 3,
            listener: "dns".into(),
            route: "dns".into(),
            backend: "blue".into(),
            endpoint: "192.0.2.9:+1".into(),
            close_after: Some(10_000),
            worker: 63,
            peer: "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().expect("an address"),
            local: Some(at(0).ip()),
            said: Some([at(1), at(2)]),
            header: hexadecimal(&[0x0d, 0xff, 0]),
            unique_id: Some([u64::MAX, 1]),
            timeout: u32::MAX,
            responses: 1,
            datagrams: [u32::MAX; 2],
            bytes: [u64::MAX >> 2; 2],
            opened: u64::MAX,
            last: u64::MAX,
            refused: true,
            own: true,
            through: 7,
        }
    }

    #[test]
    fn a_flow_that_cannot_be_is_refused() {
        assert_eq!(flow().header(), Some(vec![0x0d, 0xff, 0]));
        let unsound = [
            Flow { bytes: [0, u64::MAX], ..flow() },
            Flow { header: "0".into(), ..flow() },
            Flow { header: "0g".into(), ..flow() },
            Flow { header: "é".into(), ..flow() },
            Flow { header: "00".repeat(MOST_HEADER + 1), ..flow() },
        ];
        for flow in unsound {
            assert_eq!(read(&write(&Message::Flows(vec![flow]))), Err(Fault::Flow));
        }
    }

    fn all() -> Vec<Message> {
        let program = || "0.1.0".to_owned();
        vec![
            Message::Hello { program: program(), workers: 4 },
            Message::Offer {
                program: program(),
                generation: 3,
                workers: 2,
                seed: u64::MAX,
                sockets: 5,
                overrides: 1,
            },
            Message::Overrides(vec![an_override(); MOST_OVERRIDES]),
            Message::Sockets(vec![name(); MOST_SOCKETS]),
            Message::Refused { why: "\"no\"".into() },
            Message::Taken((0..u32::try_from(MOST_NUMBERS).expect("few")).collect()),
            Message::Ready,
            Message::Yours,
            Message::Mine,
            Message::Sessions(vec![session(); MOST_SESSIONS]),
            Message::Flows(vec![flow(); MOST_FLOWS]),
            Message::Adopted(vec![true; MOST_FLOWS]),
            Message::Draining { processes: 1, sessions: 2, flows: 3 },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for message in all() {
            let bytes = write(&message);
            assert!(bytes.len() <= MOST_BYTES, "{message:?}");
            assert_eq!(read(&bytes), Ok(message));
        }
    }

    #[test]
    fn what_is_cut_or_longer_is_refused() {
        let bytes = write(&Message::Ready);
        for len in 0..bytes.len() {
            let fault = read(&bytes[..len]).expect_err("a part is no message");
            assert!(matches!(fault, Fault::Head(_) | Fault::Length { .. }), "{fault}");
        }
        let longer = [&bytes[..], b" "].concat();
        assert_eq!(read(&longer), Err(Fault::Length { said: 7, has: 8 }));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = write(&Message::Ready);
        bytes[5] = 9;
        assert_eq!(read(&bytes), Err(Fault::Version(9)));
        bytes[0] = b'x';
        assert_eq!(read(&bytes), Err(Fault::Head(bytes.len())));
    }

    #[test]
    fn too_many_entries_and_unknown_words_are_refused() {
        let many = write(&Message::Sockets(vec![name(); MOST_SOCKETS + 1]));
        assert_eq!(read(&many), Err(Fault::Entries(MOST_SOCKETS + 1)));
        let many = write(&Message::Adopted(vec![true; MOST_FLOWS + 1]));
        assert_eq!(read(&many), Err(Fault::Entries(MOST_FLOWS + 1)));
        let many = write(&Message::Flows(vec![flow(); MOST_FLOWS + 1]));
        assert_eq!(read(&many), Err(Fault::Entries(MOST_FLOWS + 1)));
        let many = write(&Message::Sessions(vec![session(); MOST_SESSIONS + 1]));
        assert_eq!(read(&many), Err(Fault::Entries(MOST_SESSIONS + 1)));
        let json = b"{\"hello\":{\"program\":\"\",\"workers\":1,\"more\":1}}";
        let length = u32::try_from(json.len()).expect("short").to_be_bytes();
        let unknown = [&MAGIC[..], &VERSION.to_be_bytes(), &length, json].concat();
        assert!(matches!(read(&unknown), Err(Fault::Json(_))));
    }
}
