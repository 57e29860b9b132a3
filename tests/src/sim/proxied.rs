//! PROXY headers in the simulated world: what clients begin with, and what the gateway takes of it
//! and says itself.

use std::net::SocketAddr;

use config_sync::table::routing::{ProxyVersion, SendProxy, Transport};
use ringway::wire::proxy_header::Addresses;
use ringway::wire::proxy_header::read::{Header, read};
use ringway::wire::proxy_header::write::{Outgoing, write};

use crate::sim::rng::Rng;

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
    pub(crate) own: Vec<u8>,
}

impl Proxied {
    /// Bytes that the gateway said itself.
    pub fn told(&self) -> u64 {
        self.own.len() as u64
    }

    /// Who the client is by the header that the gateway sent. A client of a Unix socket is nobody.
    pub fn introduced(&self) -> Option<Option<SocketAddr>> {
        match read(&self.own) {
            _ if self.own.is_empty() => None,
            Header::Known { len, addresses } if len == self.own.len() => {
                Some(addresses.map(|addresses| addresses.source))
            }
            other => panic!("an endpoint was told {other:?}"),
        }
    }
}

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
                unix: None,
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

/// What a backend's endpoints are told.
pub fn some_send_proxy(rng: &mut Rng) -> Option<SendProxy> {
    let version = rng.pick(&[ProxyVersion::V1, ProxyVersion::V2]);
    let (unique_id, crc32c) = (rng.per_mille(500), rng.per_mille(500));
    rng.per_mille(400).then_some(SendProxy { version, unique_id, crc32c })
}

/// The stream of bytes that are the gateway's own.
pub(crate) const OWN: u32 = u32::MAX;

/// A header of version 2 that says nothing of a source.
pub(crate) const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
