//! Reads and writes headers of the PROXY protocol, versions 1 and 2. With a header, the proxy in
//! front tells the gateway the source of a connection or datagram, and the gateway tells the server
//! behind.
//!
//! A reading call keeps no state: each call is given all bytes from the first one on. A reading
//! call refuses an invalid header at the first byte that shows the error. A valid header may name
//! no usable source (LOCAL, UNKNOWN, a UNIX socket, the other transport). Then the peer's own
//! address counts.
//!
//! Source: "The PROXY protocol, Versions 1 & 2" (doc/proxy-protocol.txt of HAProxy, 2026-04-27),
//! sections 2.1, 2.2 and, for datagrams, 2.6.

pub mod read;
#[cfg(test)]
mod tests;
pub mod write;

use std::net::SocketAddr;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V2_START: usize = 16;
const V1_START: &[u8] = b"PROXY ";

const TLV_ALPN: u8 = 0x01;
const TLV_AUTHORITY: u8 = 0x02;
const TLV_CRC32C: u8 = 0x03;
const TLV_UNIQUE_ID: u8 = 0x05;
const TLV_SSL: u8 = 0x20;
const TLV_SSL_VERSION: u8 = 0x21;
const TLV_SSL_CN: u8 = 0x22;
const TLV_SSL_CIPHER: u8 = 0x23;

/// The source and the destination of a connection, as the sender of a header saw them. An IPv4
/// address within an IPv6 address is given as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// CRC-32C (RFC 3720, appendix B.4): reflected, polynomial 0x1edc6f41.
struct Crc32c(u32);

impl Crc32c {
    fn new() -> Self {
        Self(u32::MAX)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = CRC32C[usize::from(self.0.to_le_bytes()[0] ^ byte)] ^ (self.0 >> 8);
        }
    }

    fn value(&self) -> u32 {
        !self.0
    }
}

const CRC32C: [u32; 256] = {
    const REFLECTED: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let (mut at, mut byte) = (0, 0);
    while at < table.len() {
        let mut rest = byte;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 1 { (rest >> 1) ^ REFLECTED } else { rest >> 1 };
            bit += 1;
        }
        table[at] = rest;
        (at, byte) = (at + 1, byte + 1);
    }
    table
};
