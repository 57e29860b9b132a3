//! Writes the header that tells an endpoint about its client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use config_sync::table::routing::{ProxyVersion, Transport};

use crate::wire::proxy_header::{
    Addresses, Crc32c, SIGNATURE, TLV_ALPN, TLV_AUTHORITY, TLV_CRC32C, TLV_SSL, TLV_SSL_CIPHER,
    TLV_SSL_CN, TLV_SSL_VERSION, TLV_UNIQUE_ID, V2_START,
};

/// The content of an outgoing header.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub transport: Transport,
    pub addresses: Addresses,
    /// The name of the Unix socket that the client connected to, as the kernel takes the name. The
    /// client then has no address, and `addresses` do not count.
    pub unix: Option<&'a [u8]>,
    /// The server name that the client asked for. Only version 2 carries this field and the fields
    /// below.
    pub authority: Option<&'a str>,
    /// The protocol that the gateway and the client agreed on.
    pub alpn: Option<&'a [u8]>,
    /// The client's TLS connection, if the gateway terminated TLS.
    pub tls: Option<&'a ClientTls>,
    pub unique_id: Option<u128>,
    /// Whether the header has a checksum.
    pub crc32c: bool,
}

/// A client's TLS connection, in OpenSSL's words, because servers compare these words as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    pub version: &'static str,
    pub cipher: &'static str,
    pub certificate: Option<ClientCertificate>,
}

/// A certificate that a client has presented and that the gateway has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The client presented the certificate in an earlier connection, and resumed the session of
    /// that connection.
    pub resumed: bool,
    pub common_name: Option<String>,
}

/// Appends a header to `out`: at most [`MAX_V1`] bytes in version 1, about 1 KiB in version 2.
pub fn write(version: ProxyVersion, header: &Outgoing<'_>, out: &mut Vec<u8>) {
    match version {
        // Version 1 has no word for Unix sockets (section 2.1).
        ProxyVersion::V1 if header.unix.is_some() => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        ProxyVersion::V1 => write_v1(&header.addresses, out),
        ProxyVersion::V2 => write_v2(header, out),
    }
}

fn write_v1(addresses: &Addresses, out: &mut Vec<u8>) {
    let (from, to) = (addresses.source.port(), addresses.destination.port());
    let line = match family(addresses) {
        Family::V4(source, destination) => {
            format!("PROXY TCP4 {source} {destination} {from} {to}\r\n")
        }
        Family::V6(source, destination) => {
            format!("PROXY TCP6 {source} {destination} {from} {to}\r\n")
        }
    };
    out.extend_from_slice(line.as_bytes());
}

fn write_v2(header: &Outgoing<'_>, out: &mut Vec<u8>) {
    const VERSION_2_PROXY: u8 = 0x21;
    let start = out.len();
    out.extend_from_slice(&SIGNATURE);
    let transport = match header.transport {
        Transport::Tcp => 1,
        Transport::Udp => 2,
    };
    out.extend_from_slice(&[VERSION_2_PROXY, transport, 0, 0]);
    let bits = write_addresses(header, out);
    out[start + 13] |= bits;
    write_tlvs(header, out);
    if header.crc32c {
        tlv(out, TLV_CRC32C, |out| out.extend_from_slice(&[0; 4]));
    }
    // The length fits 16 bits: names have at most 256 bytes, and the names are few.
    let len = u16::try_from(out.len() - start - V2_START).unwrap_or(u16::MAX);
    out[start + 14..start + 16].copy_from_slice(&len.to_be_bytes());
    if header.crc32c {
        let mut sum = Crc32c::new();
        sum.add(&out[start..]);
        let place = out.len() - 4;
        out[place..].copy_from_slice(&sum.value().to_be_bytes());
    }
}

fn write_tlvs(header: &Outgoing<'_>, out: &mut Vec<u8>) {
    let plain = |out: &mut Vec<u8>, kind, value: Option<&[u8]>| {
        if let Some(value) = value.filter(|value| value.len() <= LONGEST) {
            tlv(out, kind, |out| out.extend_from_slice(value));
        }
    };
    plain(out, TLV_ALPN, header.alpn);
    plain(out, TLV_AUTHORITY, header.authority.map(str::as_bytes));
    if let Some(id) = header.unique_id {
        tlv(out, TLV_UNIQUE_ID, |out| out.extend_from_slice(format!("{id:032x}").as_bytes()));
    }
    if let Some(tls) = header.tls {
        tlv(out, TLV_SSL, |out| {
            const HAS_TLS: u8 = 1;
            const CERTIFICATE_NOW: u8 = 2;
            const CERTIFICATE_IN_SESSION: u8 = 4;
            let client = HAS_TLS
                | match &tls.certificate {
                    None => 0,
                    Some(ClientCertificate { resumed: true, .. }) => CERTIFICATE_IN_SESSION,
                    Some(_) => CERTIFICATE_NOW | CERTIFICATE_IN_SESSION,
                };
            out.push(client);
            // 0: the client presented a valid certificate. A client with an invalid one never gets
            // this far.
            out.extend_from_slice(&u32::from(tls.certificate.is_none()).to_be_bytes());
            plain(out, TLV_SSL_VERSION, Some(tls.version.as_bytes()));
            let name = tls.certificate.as_ref().and_then(|found| found.common_name.as_deref());
            plain(out, TLV_SSL_CN, name.map(str::as_bytes));
            plain(out, TLV_SSL_CIPHER, Some(tls.cipher.as_bytes()));
        });
    }
}

/// The maximum length of a value in bytes. Longer values are left out. Server names and protocols
/// are never longer.
const LONGEST: usize = 256;

fn tlv(out: &mut Vec<u8>, kind: u8, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[kind, 0, 0]);
    let start = out.len();
    value(out);
    let len = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start - 2..start].copy_from_slice(&len.to_be_bytes());
}

/// Writes the addresses and ports, and returns the bits of their family.
fn write_addresses(header: &Outgoing<'_>, out: &mut Vec<u8>) -> u8 {
    let Addresses { source, destination } = header.addresses;
    if let Some(name) = header.unix {
        // The client's own socket has no name.
        out.extend_from_slice(&[0; UNIX_NAME]);
        out.extend(name.iter().copied().chain(std::iter::repeat(0)).take(UNIX_NAME));
        return 0x30;
    }
    let bits = match family(&header.addresses) {
        Family::V4(source, destination) => {
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
            0x10
        }
        Family::V6(source, destination) => {
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
            0x20
        }
    };
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    bits
}

/// Bytes of the name of a Unix socket, filled up with zeros (section 2.2).
const UNIX_NAME: usize = 108;

/// Both addresses in one IP version: unchanged, or both as IPv6.
enum Family {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

fn family(addresses: &Addresses) -> Family {
    match (addresses.source.ip(), addresses.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Family::V4(source, destination),
        (source, destination) => {
            let wide = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            Family::V6(wide(source), wide(destination))
        }
    }
}
