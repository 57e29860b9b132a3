//! PROXY headers in the simulated world: what clients begin with, what the ring takes of it and
//! gives endpoints of the gateway's own, and whether that was right; and proxies that put one
//! before each of their datagrams.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range as Of;

use config_sync::table::routing::{ProxyVersion, SendProxy, Transport};
use ringway::contract::{BufferId, Event, Side, Stop, Token};
use ringway::wire::proxy_header::Addresses;
use ringway::wire::proxy_header::read::{Header, read};
use ringway::wire::proxy_header::write::{Outgoing, write};

use crate::kernel::{Kernel, Turn};
use crate::rng::Rng;
use crate::stream::{Bytes, Range};
use crate::tcp::Got;
use crate::udp::{Datagram, Exchange};

/// The stream of bytes that are the gateway's own.
pub(crate) const OWN: u32 = u32::MAX;

/// Of one connection.
#[derive(Debug, Default)]
pub struct Proxied {
    /// The header with which the client begins, if it is a right one: its length, and who the
    /// client is by it.
    pub header: u64,
    pub says: Option<SocketAddr>,
    /// The client begins with a header because it must; it may be a wrong one.
    pub must: bool,
    /// Bytes that the gateway took for itself.
    pub away: u64,
    /// What the gateway said itself.
    own: Vec<u8>,
}

impl Proxied {
    /// Bytes that the gateway said itself.
    pub fn told(&self) -> u64 {
        self.own.len() as u64
    }

    /// Who the client is by the header that the gateway sent.
    pub fn introduced(&self) -> Option<SocketAddr> {
        match read(&self.own) {
            _ if self.own.is_empty() => None,
            Header::Known { len, addresses: Some(addresses) } if len == self.own.len() => {
                Some(addresses.source)
            }
            other => panic!("an endpoint was told {other:?}"),
        }
    }
}

/// A header of version 2 that says nothing of a source.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// What a client that must send a header begins with.
pub fn some_header(rng: &mut Rng, source: SocketAddr) -> (Vec<u8>, Proxied) {
    let mut bytes = Vec::new();
    let mut proxied = Proxied { must: true, ..Proxied::default() };
    match rng.below(10) {
        0 => return (bytes, proxied),
        1 => bytes.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        2 => bytes.extend_from_slice(LOCAL),
        _ => {
            let header = Outgoing {
                transport: Transport::Tcp,
                addresses: Addresses { source, destination: ([203, 0, 113, 1], 443).into() },
                authority: rng.per_mille(500).then_some("a.test"),
                alpn: None,
                tls: None,
                unique_id: rng.per_mille(500).then_some(7),
                crc32c: rng.per_mille(500),
            };
            let version = rng.pick(&[ProxyVersion::V1, ProxyVersion::V2]);
            write(version, &header, &mut bytes);
            proxied.says = Some(source);
        }
    }
    if rng.per_mille(100) {
        // Within what both versions and all commands begin with, and in none of them.
        bytes[rng.below(10) as usize] = b'z';
        proxied.says = None;
    } else {
        proxied.header = bytes.len() as u64;
    }
    (bytes, proxied)
}

/// A train of datagrams that a proxy sends for several clients.
#[derive(Debug)]
pub(crate) struct Train {
    pieces: Vec<Piece>,
    /// Bytes of each datagram but the last, and of the last.
    pub(crate) size: u32,
    last: u32,
}

/// One datagram of it.
#[derive(Clone, Debug)]
struct Piece {
    /// What it begins with: a header, or what should be one.
    head: Vec<u8>,
    /// Whose it is by its header; `None`: that is not valid.
    exchange: Option<Exchange>,
}

impl Train {
    fn random(rng: &mut Rng, proxy: Exchange) -> Self {
        let count = rng.scale(1, 64) as usize;
        let mut piece = Piece::random(rng, proxy);
        let mut next = || {
            if rng.per_mille(300) {
                piece = Piece::random(rng, proxy);
            }
            piece.clone()
        };
        let pieces: Vec<_> = (0..count).map(|_| next()).collect();
        let longest = pieces.iter().map(|piece| piece.head.len()).max().unwrap_or(0) as u64;
        let size = longest + if rng.per_mille(100) { 0 } else { rng.scale(1, 800) };
        let last = rng.between(pieces[count - 1].head.len() as u64, size);
        Self { pieces, size: size as u32, last: last as u32 }
    }

    fn len(&self, number: usize) -> u32 {
        if number + 1 == self.pieces.len() { self.last } else { self.size }
    }

    fn payload(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, piece) in self.pieces.iter().enumerate() {
            let end = bytes.len() + self.len(number) as usize;
            bytes.extend_from_slice(&piece.head);
            bytes.resize(end, 0);
        }
        bytes
    }

    /// What is left of some of its datagrams without their header, of which all have the same one;
    /// and how large they are.
    pub(crate) fn part(&self, of: Of<usize>, strip: u16, whole: Datagram) -> (Datagram, Vec<u32>) {
        let exchange = self.pieces[of.start].exchange;
        let exchange = exchange.expect("a datagram without a valid header is forwarded");
        for piece in &self.pieces[of.clone()] {
            assert_eq!(piece.exchange, Some(exchange), "datagrams of two clients go together");
            assert_eq!(piece.head.len(), usize::from(strip), "not the header is taken off");
        }
        let sizes: Vec<_> = of.map(|number| self.len(number) - u32::from(strip)).collect();
        let (bytes, count) = (sizes.iter().sum(), sizes.len() as u32);
        (Datagram { exchange, bytes, count, train: None, ..whole }, sizes)
    }
}

impl Piece {
    fn random(rng: &mut Rng, proxy: Exchange) -> Self {
        let IpAddr::V4(ip) = proxy.client.ip() else { unreachable!("proxies have IPv4 addresses") };
        let [_, _, high, low] = ip.octets();
        let (mut head, mut says) = (Vec::new(), None);
        match rng.below(10) {
            0 => return Self { head: b"no header".to_vec(), exchange: None },
            1 => head.extend_from_slice(LOCAL),
            _ => {
                let port = proxy.client.port() + rng.below(3) as u16;
                let source = SocketAddr::from(([100, 64, high, low], port));
                let header = Outgoing {
                    transport: Transport::Udp,
                    addresses: Addresses { source, destination: ([203, 0, 113, 1], 443).into() },
                    authority: None,
                    alpn: None,
                    tls: None,
                    unique_id: rng.per_mille(300).then_some(7),
                    crc32c: rng.per_mille(300),
                };
                write(ProxyVersion::V2, &header, &mut head);
                says = Some(source);
            }
        }
        if rng.per_mille(100) {
            head[0] ^= 0x20;
            return Self { head, exchange: None };
        }
        Self { head, exchange: Some(Exchange { says, ..proxy }) }
    }
}

// ---- What proxies send ----
impl Kernel {
    pub fn proxied(&mut self, proxy: Exchange) -> Datagram {
        let train = Train::random(&mut self.rng, proxy);
        self.trains.push(train);
        let train = self.trains.last().expect("pushed just now");
        let (count, at) = (train.pieces.len() as u32, self.trains.len() - 1);
        Datagram {
            exchange: proxy,
            number: 0,
            bytes: (count - 1) * train.size + train.last,
            count,
            truncated: false,
            train: Some(at),
        }
    }

    /// What the proxy is shown with an event: the payload of a buffer, or the turn's bytes.
    pub fn payload<'a>(&self, event: Event, turn: &'a Turn, payload: &'a mut Vec<u8>) -> &'a [u8] {
        let Event::Datagrams { buffer: BufferId(buffer), .. } = event else { return &turn.bytes };
        // Nobody looks into others than a proxy's.
        let train = self.buffers.get(&buffer).and_then(|held| held.datagram.train);
        *payload = train.map_or_else(Vec::new, |train| self.trains[train].payload());
        payload
    }
}

/// What a backend's endpoints are told.
pub fn some_send_proxy(rng: &mut Rng) -> Option<SendProxy> {
    let version = rng.pick(&[ProxyVersion::V1, ProxyVersion::V2]);
    let (unique_id, crc32c) = (rng.per_mille(500), rng.per_mille(500));
    rng.per_mille(400).then_some(SendProxy { version, unique_id, crc32c })
}

// ---- What the ring does for the proxy ----
impl Kernel {
    pub(crate) fn take(&mut self, token: Token, from: Side, at_most: u32, turn: &mut Turn) {
        assert_eq!(from, Side::Client, "only clients have headers");
        let id = self.live(token).client;
        let conn = &mut self.conns[id.0];
        if std::mem::take(&mut conn.peeked) {
            conn.lowat = 1;
        }
        conn.unlooked = false;
        let start = turn.bytes.len() as u32;
        let (len, stop) = match self.read(id, at_most.into()) {
            Got::Data(bytes) => {
                let conn = &mut self.conns[id.0];
                for range in bytes.ranges() {
                    turn.bytes.extend(
                        (range.at..range.at + range.len).map(|at| conn.byte(at, range.stream)),
                    );
                }
                conn.proxied.away += bytes.len();
                assert!(conn.proxied.away <= conn.proxied.header, "more was taken than a header");
                let whole = bytes.len() == u64::from(at_most);
                (bytes.len() as u32, if whole { Stop::Budget } else { Stop::Drained })
            }
            Got::Nothing => (0, Stop::Drained),
            Got::End => (0, Stop::Eof),
            Got::Failed(why) => (0, Stop::Failed { side: from, why }),
        };
        self.event(token, Event::Taken { from, start, len, stop }, turn);
    }

    pub(crate) fn give(
        &mut self,
        token: Token,
        to: Side,
        (start, len): (u32, u32),
        turn: &mut Turn,
    ) {
        let id = self.live(token).conn(to).expect("Give to a side that is not there");
        let given = self.output[start as usize..][..len as usize].to_vec();
        let own = &mut self.conns[id.0].proxied.own;
        let at = own.len() as u64;
        own.extend_from_slice(&given);
        let mut bytes = Bytes::default();
        bytes.push(Range { stream: OWN, at, len: len.into() });
        let written = self.write(id, &mut bytes);
        let left = bytes.len() as usize;
        let stop = match written {
            Err(why) => Stop::Failed { side: to, why },
            Ok(_) if left > 0 => Stop::Blocked,
            Ok(_) => Stop::Drained,
        };
        let sent = given.len() - left;
        self.conns[id.0].proxied.own.truncate(at as usize + sent);
        let start = turn.bytes.len() as u32;
        turn.bytes.extend_from_slice(&given[sent..]);
        self.live(token).introducing = stop == Stop::Blocked;
        self.event(
            token,
            Event::Given { to, sent: sent as u32, start, len: left as u32, stop },
            turn,
        );
    }
}
