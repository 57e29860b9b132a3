//! Reads the header of a connection, as far as its bytes have come, or of a datagram.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::Transport;

use crate::wire::proxy_header::{Addresses, Crc32c, SIGNATURE, TLV_CRC32C, V1_START, V2_START};

/// The maximum length of a version 1 header in bytes, CRLF included (section 2.1).
pub const MAX_V1: usize = 107;

/// The maximum length of a version 2 header that is accepted, in bytes. A client's certificate has
/// room among the TLVs. The length field would allow 65,551 bytes.
pub const MAX_V2: usize = 16 * 1024;

/// How the bytes so far are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An answer needs at least this many bytes in all. The number is always greater than the
    /// number of bytes given, and never greater than the length of the header.
    NeedMore { at_least: usize },
    /// The first `len` bytes are the header.
    Known { len: usize, addresses: Option<Addresses> },
    /// Not a header, whatever bytes may follow. The text is for people.
    Invalid(&'static str),
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

/// Reads the header of a datagram, which must be version 2 and whole. Returns the length of the
/// header, which is the place where the payload begins.
///
/// # Errors
/// Says what is wrong with the header.
pub fn read_datagram(bytes: &[u8]) -> Result<(usize, Option<Addresses>), &'static str> {
    v2(bytes, Transport::Udp).map_err(|halt| match halt {
        Halt::Missing { .. } => "cut off",
        Halt::Invalid(why) => why,
    })
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

/// Reads the text between `PROXY ` and CRLF.
fn v1_line(line: &[u8]) -> Result<Option<Addresses>, Halt> {
    let line = ascii(line)?;
    let (protocol, rest) = line.split_once(' ').unwrap_or((line, ""));
    let address = match protocol {
        "UNKNOWN" => return Ok(None),
        "TCP4" => v4,
        "TCP6" => v6,
        _ => return Err(NO_PROTOCOL),
    };
    // Exactly one space separates the parts.
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

/// Whether a line without an end may still become a valid line.
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

/// For each beginning of an address, one of these endings makes an address whole.
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

/// A port has no zeros before its number.
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
    // LOCAL: the receiver ignores the rest of the header, so the rest need not be valid.
    let addresses = if command == 0 { None } else { v2_block(start, (block, size), transport)? };
    if block.len() < size { Err(Halt::Missing { at_least: len }) } else { Ok((len, addresses)) }
}

/// Reads the addresses and checks the TLVs, as far as they have come. The whole block has `whole`
/// bytes.
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

/// Checks that each TLV ends within the header, and that a checksum is right. The other TLVs are
/// not read here. Of `room` bytes of TLVs, `tlvs` have come.
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
            // The sender computed the checksum with zeros in the place of the checksum.
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
