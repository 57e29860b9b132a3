//! The PROXY protocol, versions 1 and 2: who a connection or datagram came from, told by the proxy
//! in front, and told to the server behind.
//!
//! Reading keeps nothing between calls: each is given all bytes from the first one on. What may not
//! stand in a header is refused at the first byte that shows it; what may, but says nothing of a
//! source (LOCAL, UNKNOWN, a UNIX socket, the other transport), leaves the peer's own address.
//!
//! Source: "The PROXY protocol, Versions 1 & 2" (doc/proxy-protocol.txt of HAProxy, 2026-04-27),
//! sections 2.1, 2.2 and, for datagrams, 2.6.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use config_sync::table::routing::{ProxyVersion, Transport};

/// Bytes of a version 1 header at the most, CRLF included (section 2.1).
pub const MAX_V1: usize = 107;
/// Bytes of a version 2 header that are taken at the most: room for a client's certificate among
/// its TLVs. The length field would allow 65,551.
pub const MAX_V2: usize = 16 * 1024;

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

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// No answer is possible below this many bytes in all; always more than were given, and never
    /// more than the header has.
    NeedMore { at_least: usize },
    /// The first `len` bytes are the header.
    Known { len: usize, addresses: Option<Addresses> },
    /// No header, whatever may follow. The text is for people.
    Invalid(&'static str),
}

/// Where a connection came from and what it was made to, as the sender of a header saw it. An IPv4
/// address within IPv6 is given as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// Reads the header at the start of a connection, of either version.
pub fn read(bytes: &[u8]) -> Header {
    let header = match bytes.first() {
        None => Err(Halt::Missing { at_least: 1 }),
        Some(byte) if *byte == SIGNATURE[0] => v2(bytes, Transport::Tcp),
        Some(_) => v1(bytes),
    };
    match header {
        Ok((len, addresses)) => Header::Known { len, addresses },
        Err(Halt::Missing { at_least }) => Header::NeedMore { at_least },
        Err(Halt::Invalid(why)) => Header::Invalid(why),
    }
}

/// Reads the header of a datagram: version 2, and whole. The payload begins at the length that is
/// returned.
///
/// # Errors
/// What is wrong with it.
pub fn read_datagram(bytes: &[u8]) -> Result<(usize, Option<Addresses>), &'static str> {
    v2(bytes, Transport::Udp).map_err(|halt| match halt {
        Halt::Missing { .. } => "cut off",
        Halt::Invalid(why) => why,
    })
}

/// What an outgoing header says.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub transport: Transport,
    pub addresses: Addresses,
    /// These and all below: version 2 only. The server name that the client asked for.
    pub authority: Option<&'a str>,
    /// The protocol that was agreed on with the client.
    pub alpn: Option<&'a [u8]>,
    /// The client's TLS, where it ended here.
    pub tls: Option<&'a ClientTls>,
    pub unique_id: Option<u128>,
    /// With a checksum over the header.
    pub crc32c: bool,
}

/// A client's TLS connection, in OpenSSL's words: servers compare them as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    pub version: &'static str,
    pub cipher: &'static str,
    pub certificate: Option<ClientCertificate>,
}

/// A certificate that a client has shown and that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Within an earlier connection, of which this one resumes the session.
    pub resumed: bool,
    pub common_name: Option<String>,
}

/// Adds a header to `out`: [`MAX_V1`] bytes at the most, or about 1 KiB.
pub fn write(version: ProxyVersion, header: &Outgoing<'_>, out: &mut Vec<u8>) {
    match version {
        ProxyVersion::V1 => write_v1(&header.addresses, out),
        ProxyVersion::V2 => write_v2(header, out),
    }
}

/// Why reading stopped without an answer.
enum Halt {
    Missing { at_least: usize },
    Invalid(&'static str),
}

type Outcome = Result<(usize, Option<Addresses>), Halt>;

fn v1(bytes: &[u8]) -> Outcome {
    let within = &bytes[..bytes.len().min(MAX_V1)];
    let start = within.len().min(V1_START.len());
    if within[..start] != V1_START[..start] {
        return Err(Halt::Invalid("no PROXY header"));
    }
    let Some(end) = within.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        if within.len() >= MAX_V1 - 1 {
            return Err(Halt::Invalid("a version 1 header without its end in 107 bytes"));
        }
        if let Some(line) = within.get(V1_START.len()..) {
            v1_begins(line)?;
        }
        return Err(Halt::Missing { at_least: within.len() + 1 });
    };
    let line = within.get(V1_START.len()..end).unwrap_or_default();
    match (within[end], within.get(end + 1)) {
        (b'\r', Some(b'\n')) => {}
        (b'\r', None) if end + 1 < MAX_V1 => {
            v1_line(line)?;
            return Err(Halt::Missing { at_least: end + 2 });
        }
        _ => return Err(Halt::Invalid("a version 1 header that does not end in CRLF")),
    }
    Ok((end + 2, v1_line(line)?))
}

const NO_PROTOCOL: Halt = Halt::Invalid("a protocol other than TCP4, TCP6 and UNKNOWN");
const NO_ADDRESS: Halt = Halt::Invalid("an address or port that is none");
const TOO_MANY: Halt = Halt::Invalid("more than two addresses and ports");

/// What stands between `PROXY ` and CRLF.
fn v1_line(line: &[u8]) -> Result<Option<Addresses>, Halt> {
    let line = ascii(line)?;
    let (protocol, rest) = line.split_once(' ').unwrap_or((line, ""));
    let address = match protocol {
        "UNKNOWN" => return Ok(None),
        "TCP4" => v4,
        "TCP6" => v6,
        _ => return Err(NO_PROTOCOL),
    };
    // Exactly one space between the parts.
    let mut parts = rest.split(' ');
    let mut next = || parts.next().unwrap_or_default();
    let (source, destination) = (address(next()), address(next()));
    let (from, to) = (port(next()), port(next()));
    let read = || {
        let source = SocketAddr::new(source?.to_canonical(), from?);
        let destination = SocketAddr::new(destination?.to_canonical(), to?);
        Some(Addresses { source, destination })
    };
    let addresses = read().ok_or(NO_ADDRESS)?;
    if parts.next().is_some() { Err(TOO_MANY) } else { Ok(Some(addresses)) }
}

/// Whether a line that has no end yet may still become a right one.
fn v1_begins(line: &[u8]) -> Result<(), Halt> {
    let line = ascii(line)?;
    let Some((protocol, rest)) = line.split_once(' ') else {
        let known = ["TCP4", "TCP6", "UNKNOWN"].iter().any(|known| known.starts_with(line));
        return if known { Ok(()) } else { Err(NO_PROTOCOL) };
    };
    let address = match protocol {
        "UNKNOWN" => return Ok(()),
        "TCP4" => v4,
        "TCP6" => v6,
        _ => return Err(NO_PROTOCOL),
    };
    let last = rest.split(' ').count() - 1;
    for (place, part) in rest.split(' ').enumerate() {
        let right = match place {
            0 | 1 if place == last => {
                ENDINGS.iter().any(|end| address(&[part, end].concat()).is_some())
            }
            0 | 1 => address(part).is_some(),
            2 | 3 => port(part).is_some() || (place == last && part.is_empty()),
            _ => return Err(TOO_MANY),
        };
        if !right {
            return Err(NO_ADDRESS);
        }
    }
    Ok(())
}

/// One of these makes a whole address of whatever is the beginning of one.
const ENDINGS: [&str; 11] =
    ["", "0", ":", "::", ":0", "0.0.0.0", "0.0.0", "0.0", ".0.0.0", ".0.0", ".0"];

fn ascii(line: &[u8]) -> Result<&str, Halt> {
    let text = std::str::from_utf8(line).ok().filter(|text| text.is_ascii());
    text.ok_or(Halt::Invalid("not ASCII"))
}

fn v4(text: &str) -> Option<IpAddr> {
    text.parse().map(IpAddr::V4).ok()
}

fn v6(text: &str) -> Option<IpAddr> {
    text.parse().map(IpAddr::V6).ok()
}

/// Without zeros before the number.
fn port(text: &str) -> Option<u16> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| plain)
}

fn v2(bytes: &[u8], transport: Transport) -> Outcome {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Err(Halt::Invalid("no PROXY header"));
    }
    let version = bytes.get(12).map_or(2, |byte| byte >> 4);
    let command = bytes.get(12).map_or(0, |byte| byte & 0xf);
    if version != 2 || command > 1 {
        return Err(Halt::Invalid(
            "a version other than 2, or a command other than LOCAL and PROXY",
        ));
    }
    let family = bytes.get(13).copied().unwrap_or(0);
    if command == 1 && !matches!(family, 0 | 0x11 | 0x12 | 0x21 | 0x22 | 0x31 | 0x32) {
        return Err(Halt::Invalid("an address family or transport that there is not"));
    }
    let Some((start, rest)) = bytes.split_first_chunk::<V2_START>() else {
        return Err(Halt::Missing { at_least: bytes.len() + 1 });
    };
    let len = V2_START + usize::from(u16::from_be_bytes([start[14], start[15]]));
    if len > MAX_V2 {
        return Err(Halt::Invalid("a version 2 header over 16 KiB"));
    }
    let size = len - V2_START;
    let block = &rest[..rest.len().min(size)];
    // LOCAL: the rest is for nobody, and need not be right.
    let addresses = if command == 0 { None } else { v2_block(start, (block, size), transport)? };
    if block.len() < size { Err(Halt::Missing { at_least: len }) } else { Ok((len, addresses)) }
}

/// Addresses and TLVs, as far as they have come: `whole` bytes in the end.
fn v2_block(
    start: &[u8; V2_START],
    (block, whole): (&[u8], usize),
    transport: Transport,
) -> Result<Option<Addresses>, Halt> {
    let size = match start[13] >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => return Ok(None),
    };
    let Some(room) = whole.checked_sub(size) else {
        return Err(Halt::Invalid("no room for the addresses"));
    };
    let Some((addresses, tlvs)) = block.split_at_checked(size) else { return Ok(None) };
    check_tlvs(start, addresses, (tlvs, room))?;
    let carried = match start[13] & 0xf {
        1 => Transport::Tcp,
        _ => Transport::Udp,
    };
    Ok(if carried == transport { v2_addresses(addresses) } else { None })
}

fn v2_addresses(bytes: &[u8]) -> Option<Addresses> {
    let port = |at: usize| Some(u16::from_be_bytes(*bytes[at..].first_chunk()?));
    let (source, destination, ports) = match bytes.len() {
        12 => {
            let address = |at: usize| Some(IpAddr::from(*bytes[at..].first_chunk::<4>()?));
            (address(0)?, address(4)?, 8)
        }
        36 => {
            let address = |at: usize| Some(IpAddr::from(*bytes[at..].first_chunk::<16>()?));
            (address(0)?, address(16)?, 32)
        }
        // A UNIX socket.
        _ => return None,
    };
    Some(Addresses {
        source: SocketAddr::new(source.to_canonical(), port(ports)?),
        destination: SocketAddr::new(destination.to_canonical(), port(ports + 2)?),
    })
}

/// Every TLV must end within the header, and a checksum must be right. What they say is for others.
/// Of `room` bytes of TLVs, `tlvs` have come.
fn check_tlvs(
    start: &[u8; V2_START],
    addresses: &[u8],
    (tlvs, room): (&[u8], usize),
) -> Result<(), Halt> {
    let mut rest = tlvs;
    loop {
        let left = room - (tlvs.len() - rest.len());
        if left == 0 {
            return Ok(());
        }
        let Some(([kind, high, low], tail)) = rest.split_first_chunk() else {
            return if left < 3 { Err(CUT_OFF) } else { Ok(()) };
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        if len > left - 3 {
            return Err(CUT_OFF);
        }
        if *kind == TLV_CRC32C && len != 4 {
            return Err(Halt::Invalid("a checksum that is not of 4 bytes"));
        }
        let Some((value, tail)) = tail.split_at_checked(len) else { return Ok(()) };
        if *kind == TLV_CRC32C && tlvs.len() == room {
            // It was computed with zeros in its own place.
            let before = tlvs.len() - tail.len() - 4;
            let mut sum = Crc32c::new();
            for part in [&start[..], addresses, &tlvs[..before], &[0; 4], tail] {
                sum.add(part);
            }
            if sum.value().to_be_bytes() != *value {
                return Err(Halt::Invalid("a wrong checksum"));
            }
        }
        rest = tail;
    }
}

const CUT_OFF: Halt = Halt::Invalid("a TLV that is cut off");

/// Both of one IP version: as they are, or both as IPv6.
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
    let family = family(&header.addresses);
    let family_bits = match family {
        Family::V4(..) => 0x10,
        Family::V6(..) => 0x20,
    };
    out.extend_from_slice(&[VERSION_2_PROXY, family_bits | transport, 0, 0]);
    match family {
        Family::V4(source, destination) => {
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
        Family::V6(source, destination) => {
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
    }
    out.extend_from_slice(&header.addresses.source.port().to_be_bytes());
    out.extend_from_slice(&header.addresses.destination.port().to_be_bytes());
    write_tlvs(header, out);
    if header.crc32c {
        tlv(out, TLV_CRC32C, |out| out.extend_from_slice(&[0; 4]));
    }
    // Names are at most 256 bytes, and there are few: it fits.
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
            // 0: there was a certificate and it was right; a wrong one does not come this far.
            out.extend_from_slice(&u32::from(tls.certificate.is_none()).to_be_bytes());
            plain(out, TLV_SSL_VERSION, Some(tls.version.as_bytes()));
            let name = tls.certificate.as_ref().and_then(|found| found.common_name.as_deref());
            plain(out, TLV_SSL_CN, name.map(str::as_bytes));
            plain(out, TLV_SSL_CIPHER, Some(tls.cipher.as_bytes()));
        });
    }
}

/// Bytes of a value: longer ones are left out. Server names and protocols are not.
const LONGEST: usize = 256;

fn tlv(out: &mut Vec<u8>, kind: u8, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[kind, 0, 0]);
    let start = out.len();
    value(out);
    let len = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start - 2..start].copy_from_slice(&len.to_be_bytes());
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: Outgoing<'static> = Outgoing {
        transport: Transport::Tcp,
        addresses: Addresses {
            source: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 56_324),
            destination: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 443),
        },
        authority: None,
        alpn: None,
        tls: None,
        unique_id: None,
        crc32c: false,
    };

    fn pair(source: &str, destination: &str) -> Addresses {
        Addresses {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    fn written(version: ProxyVersion, header: &Outgoing<'_>) -> Vec<u8> {
        let mut out = b"before".to_vec();
        write(version, header, &mut out);
        out.split_off(6)
    }

    /// What `bytes` are read as, whole; on the way there, every shorter start of them must ask for
    /// more, and never for more than there is.
    fn in_any_fragmentation(bytes: &[u8]) -> Header {
        let whole = read(bytes);
        if let Header::Known { len, .. } = whole {
            for end in 0..len {
                match read(&bytes[..end]) {
                    Header::NeedMore { at_least } => {
                        assert!(at_least > end && at_least <= len, "{end}: {at_least} of {len}");
                    }
                    other => panic!("{end} bytes of {len} are {other:?}"),
                }
            }
        }
        whole
    }

    fn full_tls() -> ClientTls {
        ClientTls {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            certificate: Some(ClientCertificate {
                resumed: false,
                common_name: Some("client".to_owned()),
            }),
        }
    }

    #[test]
    fn crc32c_is_that_of_the_rfc() {
        for (bytes, sum) in
            [(&b"123456789"[..], 0xe306_9283), (&[0; 32], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43)]
        {
            let mut crc = Crc32c::new();
            crc.add(bytes);
            assert_eq!(crc.value(), sum);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let tls = full_tls();
        let both_v6 = pair("[2001:db8::1]:1", "[2001:db8::2]:65535");
        let mixed = pair("192.0.2.1:1", "[2001:db8::2]:2");
        for addresses in [PLAIN.addresses, both_v6, mixed] {
            for version in [ProxyVersion::V1, ProxyVersion::V2] {
                for crc32c in [false, true] {
                    let header = Outgoing {
                        addresses,
                        authority: Some("db.example.com"),
                        alpn: Some(b"h2"),
                        tls: Some(&tls),
                        unique_id: Some(7),
                        crc32c,
                        ..PLAIN
                    };
                    let mut bytes = written(version, &header);
                    let len = bytes.len();
                    bytes.extend_from_slice(b"payload");
                    let known = Header::Known { len, addresses: Some(addresses) };
                    assert_eq!(in_any_fragmentation(&bytes), known);
                }
            }
        }
    }

    #[test]
    fn version_1_as_the_specification_shows_it() {
        let text = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
        assert_eq!(written(ProxyVersion::V1, &PLAIN), text);
        let widest = "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                      ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert!(matches!(in_any_fragmentation(widest.as_bytes()), Header::Known { .. }));
        let unknown = [
            "PROXY UNKNOWN\r\n".to_owned(),
            "PROXY UNKNOWN whatever\r\n".to_owned(),
            format!("PROXY UNKNOWN {}\r\n", "f".repeat(MAX_V1 - 16)),
        ];
        for text in unknown {
            let known = Header::Known { len: text.len(), addresses: None };
            assert_eq!(in_any_fragmentation(text.as_bytes()), known, "{text:?}");
        }
        let mapped = read(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n");
        let Header::Known { addresses: Some(addresses), .. } = mapped else { panic!("{mapped:?}") };
        assert_eq!(addresses, pair("192.0.2.1:1", "[::1]:2"));
    }

    proptest! {
        #[test]
        fn version_1_is_never_refused_before_its_end(
            addresses in prop_oneof![
                any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
                any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
                // With a run of zeros, or IPv4 within.
                (any::<[u16; 8]>(), any::<u8>(), any::<Ipv4Addr>()).prop_map(|(of, which, v4)| {
                    let some = |n: usize| if which >> n & 1 == 1 { of[n] } else { 0 };
                    let zeros = Ipv6Addr::from(std::array::from_fn::<u16, 8, _>(some));
                    (IpAddr::from(zeros), IpAddr::from(v4.to_ipv6_mapped()))
                }),
            ],
            ports in any::<(u16, u16)>(),
        ) {
            let (source, destination): (IpAddr, IpAddr) = addresses;
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let text = format!(
                "PROXY {family} {source} {destination} {} {}\r\n", ports.0, ports.1
            );
            let header = in_any_fragmentation(text.as_bytes());
            prop_assert!(matches!(header, Header::Known { .. }), "{text:?}: {header:?}");
        }
    }

    #[test]
    fn version_1_that_is_none_is_refused_as_soon_as_it_shows() {
        let long = format!("PROXY UNKNOWN {}", "f".repeat(MAX_V1));
        for text in [
            "GET / HTTP/1.1\r\n",
            "PROXY\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rx",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP6 fe80::1%1 ::1 1 2\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
            &long,
        ] {
            assert!(matches!(read(text.as_bytes()), Header::Invalid(_)), "{text:?}");
        }
        // The last byte is the one that shows it.
        for text in [
            "G",
            "PROXX",
            "PROXY \r",
            "PROXY TCP5",
            "PROXY UNKNOWNS",
            "PROXY UNKNOWN \u{e9}",
            "PROXY TCP4 x",
            "PROXY TCP4 :",
            "PROXY TCP4 256",
            "PROXY TCP4 1.2.3.4.",
            "PROXY TCP4 1.2.3 ",
            "PROXY TCP4 1.2.3.4 1.2.3.4 00",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1  ",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 ",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r",
            "PROXY TCP6 1.",
            "PROXY TCP6 12345",
            "PROXY TCP6 ::1::",
            "PROXY TCP6 1:2:3:4:5:6:7:8:",
            &long[..MAX_V1 - 1],
        ] {
            assert!(matches!(read(text.as_bytes()), Header::Invalid(_)), "{text:?}");
            let cut = text.char_indices().next_back().expect("a text").0;
            let before = read(&text.as_bytes()[..cut]);
            assert!(matches!(before, Header::NeedMore { .. }), "{text:?} but a byte: {before:?}");
        }
    }

    /// A version 2 header of these parts.
    fn v2_of(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let len = u16::try_from(block.len()).expect("a length");
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[command, family]);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(block);
        bytes
    }

    #[test]
    fn version_2_that_names_no_source_keeps_the_peer() {
        let four = [0; 12];
        for bytes in [
            v2_of(0x20, 0, &[]),
            // LOCAL: the family is ignored, and what follows is thrown away.
            v2_of(0x20, 0xff, &[1, 2, 3]),
            v2_of(0x21, 0, &[]),
            v2_of(0x21, 0, &[1, 2, 3]),
            v2_of(0x21, 0x31, &[0; 216]),
            v2_of(0x21, 0x12, &four),
        ] {
            let known = Header::Known { len: bytes.len(), addresses: None };
            assert_eq!(in_any_fragmentation(&bytes), known, "{bytes:?}");
        }
        let udp = read_datagram(&v2_of(0x21, 0x12, &four));
        assert!(matches!(udp, Ok((28, Some(_)))), "{udp:?}");
        assert!(matches!(read_datagram(&v2_of(0x21, 0x11, &four)), Ok((28, None))));
    }

    #[test]
    fn version_2_that_is_wrong_is_refused() {
        let with = |tlv: &[u8]| v2_of(0x21, 0x11, &[&[0; 12], tlv].concat());
        assert!(matches!(read(&with(&[TLV_CRC32C + 1, 0, 1, 9])), Header::Known { .. }));
        for bytes in [
            v2_of(0x11, 0x11, &[0; 12]),
            v2_of(0x22, 0x11, &[0; 12]),
            v2_of(0x21, 0x10, &[0; 12]),
            v2_of(0x21, 0x41, &[0; 12]),
            v2_of(0x21, 0x13, &[0; 12]),
            v2_of(0x21, 0x11, &[0; 11]),
            v2_of(0x21, 0x21, &[0; 35]),
            v2_of(0x20, 0, &[0; MAX_V2 - 15]),
            with(&[1]),
            with(&[1, 0]),
            with(&[1, 0, 1]),
            with(&[TLV_CRC32C, 0, 4, 0, 0, 0, 0]),
            with(&[TLV_CRC32C, 0, 3, 0, 0, 0]),
            b"\r\n\r\nX".to_vec(),
        ] {
            assert!(matches!(read(&bytes), Header::Invalid(_)), "{bytes:?}");
        }
        // As soon as it shows: no room, a family, a TLV, a checksum's length.
        for (bytes, shows) in [
            (v2_of(0x21, 0x11, &[0; 11]), 16),
            (v2_of(0x21, 0x41, &[0; 12]), 14),
            (with(&[1, 0, 9, 9, 9]), 31),
            (with(&[1, 0, 1, 9, 1, 0]), 32),
            (with(&[TLV_CRC32C, 0, 3, 0, 0, 0]), 31),
        ] {
            for end in 0..bytes.len() {
                let refused = matches!(read(&bytes[..end]), Header::Invalid(_));
                assert_eq!(refused, end >= shows, "{end} of {bytes:?}");
            }
        }
    }

    /// Whoever waits for as many bytes as one answer names must not hear later of fewer.
    #[test]
    fn what_is_asked_for_never_shrinks() {
        for start in [&b"P"[..], b"PROXY ", b"PROXY UNKNOWN", b"PROXY UNKNOWN\r", b"\r\n\r\n\0"] {
            let at_least = start.len() + 1;
            assert_eq!(read(start), Header::NeedMore { at_least }, "{start:?}");
        }
    }

    #[test]
    fn every_bit_of_a_header_with_a_checksum_counts() {
        let good = written(ProxyVersion::V2, &Outgoing { crc32c: true, ..PLAIN });
        // What turns the checksum's TLV into another kind takes the checksum away.
        let kind = good.len() - 7;
        for bit in (0..good.len() * 8).filter(|bit| bit / 8 != kind) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // LOCAL and a longer header are what two of these bits make of it.
            if let Header::Known { addresses: Some(_), .. } = read(&bytes) {
                panic!("bit {bit} can be turned");
            }
        }
    }

    #[test]
    fn tlvs_are_where_readers_look_for_them() {
        let tls = full_tls();
        let header = Outgoing {
            authority: Some("a.example"),
            alpn: Some(b"h2"),
            tls: Some(&tls),
            unique_id: Some(0xabc),
            ..PLAIN
        };
        let bytes = written(ProxyVersion::V2, &header);
        let expected: &[&[u8]] = &[
            b"\x01\x00\x02h2\x02\x00\x09a.example\x05\x00\x20",
            b"00000000000000000000000000000abc",
            b"\x20\x00\x31\x07\x00\x00\x00\x00",
            b"\x21\x00\x07TLSv1.3\x22\x00\x06client\x23\x00\x16TLS_AES_128_GCM_SHA256",
        ];
        assert_eq!(
            bytes[28..].escape_ascii().to_string(),
            expected.concat().escape_ascii().to_string()
        );
        let anonymous = ClientTls { certificate: None, ..full_tls() };
        let bytes = written(ProxyVersion::V2, &Outgoing { tls: Some(&anonymous), ..PLAIN });
        assert_eq!(bytes[28..36], *b"\x20\x00\x28\x01\x00\x00\x00\x01");
    }

    #[test]
    fn datagrams_have_version_2_and_whole_headers() {
        let header = Outgoing { transport: Transport::Udp, ..PLAIN };
        let bytes = written(ProxyVersion::V2, &header);
        assert_eq!(read_datagram(&bytes), Ok((28, Some(PLAIN.addresses))));
        for end in 0..bytes.len() {
            assert_eq!(read_datagram(&bytes[..end]), Err("cut off"));
        }
        assert!(read_datagram(&written(ProxyVersion::V1, &PLAIN)).is_err());
    }
}
