//! Any bytes at all: no panic, no answer taken back, what was read can be written and read again,
//! and the same answer as `ppp`, another reader of the PROXY protocol, but for what it lets pass.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::{ProxyVersion, Transport};
use libfuzzer_sys::fuzz_target;
use ppp::{HeaderResult, PartialResult as _, v1, v2};
use ringway::wire::proxy_header::Addresses;
use ringway::wire::proxy_header::read::{Header, MAX_V1, MAX_V2, read, read_datagram};
use ringway::wire::proxy_header::write::{Outgoing, write};

/// Every prefix is read, so time grows with the square; nothing new is found in longer inputs.
const LONGEST: usize = 600;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// A header for nobody, of version 2: what follows is thrown away here, and must be right for ppp.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20";

fuzz_target!(|input: &[u8]| {
    let input = &input[..input.len().min(LONGEST)];
    let (version_2, version_1) = ([SIGNATURE, input].concat(), [b"PROXY ", input].concat());
    // Mutation seldom gets the signatures right, so they are also put in front.
    for bytes in [input, &version_2, &version_1] {
        prefixes_agree(bytes);
        ppp_agrees(bytes);
        datagrams_agree(bytes);
    }
});

/// Every prefix wants more than it has, and never more than the header has; or it has the answer of
/// the whole.
fn prefixes_agree(bytes: &[u8]) {
    let whole = read(bytes);
    let mut bound = 0;
    for len in 0..=bytes.len() {
        match read(&bytes[..len]) {
            Header::NeedMore { at_least } => {
                assert!(at_least > len && at_least >= bound && at_least <= MAX_V2.max(MAX_V1));
                bound = at_least;
            }
            Header::Known { len: header, addresses } => {
                assert_eq!((Header::Known { len: header, addresses }, header), (whole, len));
                assert_eq!(header, bound);
                if let Some(addresses) = addresses {
                    again(addresses);
                }
                return;
            }
            Header::Invalid(_) => return assert!(matches!(whole, Header::Invalid(_))),
        }
    }
}

/// Both versions say of these addresses what was read.
fn again(addresses: Addresses) {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let mut bytes = Vec::new();
        let header = Outgoing {
            unix: None,
            transport: Transport::Tcp,
            addresses,
            authority: Some("a"),
            alpn: None,
            tls: None,
            unique_id: None,
            crc32c: true,
        };
        write(version, &header, &mut bytes);
        let known = Header::Known { len: bytes.len(), addresses: Some(addresses) };
        assert_eq!(read(&bytes), known);
    }
}

fn datagrams_agree(bytes: &[u8]) {
    match (read_datagram(bytes), read(bytes)) {
        // Only the transport decides which addresses these are.
        (Ok((len, _)), Header::Known { len: same, .. }) => assert_eq!(len, same),
        (Ok(_), other) => panic!("a datagram's header, but of a connection it is {other:?}"),
        (Err(_), Header::Known { .. }) => assert!(bytes.starts_with(b"PROXY")),
        (Err(_), _) => {}
    }
}

/// What is a header here is one for ppp, of the same length and with the same addresses. The other
/// way it is not: ppp takes version 2 longer than 16 KiB, with a family or transport that is not
/// among the pairs of section 2.2, with TLVs that are cut off, and with a wrong checksum, which it
/// does not look at; and version 1 with what is no CRLF-free line behind UNKNOWN.
fn ppp_agrees(bytes: &[u8]) {
    let Header::Known { len, addresses } = read(bytes) else { return };
    if ppp_misses_the_end(&bytes[..len]) {
        return;
    }
    let theirs = HeaderResult::parse(bytes);
    assert!(theirs.is_complete(), "{theirs:?}");
    let (their_len, theirs) = match theirs {
        HeaderResult::V1(Ok(header)) => (header.header.len(), v1_addresses(&header.addresses)),
        HeaderResult::V1(Err(v1::BinaryParseError::InvalidUtf8(_))) => return,
        HeaderResult::V2(Ok(header)) => (header.len(), v2_addresses(&header)),
        _ if bytes.starts_with(LOCAL) => return,
        other => panic!("ppp does not take {}: {other:?}", bytes.escape_ascii()),
    };
    assert_eq!((len, addresses), (their_len, theirs), "{}", bytes.escape_ascii());
}

/// ppp cuts a line of version 1 into seven parts at most, and takes the CRLF for a part. So it
/// finds no end of a line of more parts. Only UNKNOWN can have more: all up to the CRLF is ignored
/// (section 2.1).
fn ppp_misses_the_end(header: &[u8]) -> bool {
    let cuts = header.iter().filter(|byte| matches!(byte, b' ' | b'\r')).count();
    header.starts_with(b"PROXY UNKNOWN") && cuts > 6
}

fn of(source: IpAddr, from: u16, destination: IpAddr, to: u16) -> Addresses {
    Addresses {
        source: SocketAddr::new(source.to_canonical(), from),
        destination: SocketAddr::new(destination.to_canonical(), to),
    }
}

fn v1_addresses(theirs: &v1::Addresses) -> Option<Addresses> {
    match theirs {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(ip) => Some(of(
            ip.source_address.into(),
            ip.source_port,
            ip.destination_address.into(),
            ip.destination_port,
        )),
        v1::Addresses::Tcp6(ip) => Some(of(
            ip.source_address.into(),
            ip.source_port,
            ip.destination_address.into(),
            ip.destination_port,
        )),
    }
}

fn v2_addresses(header: &v2::Header<'_>) -> Option<Addresses> {
    if header.command == v2::Command::Local || header.protocol != v2::Protocol::Stream {
        return None;
    }
    match header.addresses {
        v2::Addresses::IPv4(ip) => Some(of(
            ip.source_address.into(),
            ip.source_port,
            ip.destination_address.into(),
            ip.destination_port,
        )),
        v2::Addresses::IPv6(ip) => Some(of(
            ip.source_address.into(),
            ip.source_port,
            ip.destination_address.into(),
            ip.destination_port,
        )),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    }
}
