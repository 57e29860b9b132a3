//! Trains of datagrams that a proxy sends for several clients, each with a header before it.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use config_sync::table::routing::{ProxyVersion, Transport};
use ringway::wire::proxy_header::Addresses;
use ringway::wire::proxy_header::write::{Outgoing, write};

use crate::sim::proxied::LOCAL;
use crate::sim::rng::Rng;
use crate::sim::udp::datagram::{Datagram, Exchange};

/// A train of datagrams that a proxy sends for several clients.
#[derive(Debug)]
pub(crate) struct Train {
    pub(super) pieces: Vec<Piece>,
    /// Bytes of each datagram but the last, and of the last.
    pub(crate) size: u32,
    pub(super) last: u32,
}

impl Train {
    pub(super) fn random(rng: &mut Rng, proxy: Exchange) -> Self {
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

    pub(super) fn payload(&self) -> Vec<u8> {
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
    pub(crate) fn part(
        &self,
        of: Range<usize>,
        strip: u16,
        whole: Datagram,
    ) -> (Datagram, Vec<u32>) {
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

/// One datagram of it.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// What it begins with: a header, or what should be one.
    head: Vec<u8>,
    /// The client that its header names; `None`: the header is not valid.
    exchange: Option<Exchange>,
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
                    unix: None,
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
