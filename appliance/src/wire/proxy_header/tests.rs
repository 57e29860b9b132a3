//! A written header is read back, and an invalid header is refused.

use proptest::prelude::*;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use config_sync::table::routing::{ProxyVersion, Transport};

use super::read::*;
use super::write::*;
use super::*;

const PLAIN: Outgoing<'static> = Outgoing {
    transport: Transport::Tcp,
    addresses: Addresses {
        source: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 56_324),
        destination: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 443),
    },
    unix: None,
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

/// Reads the whole of `bytes`. Before that, each shorter start of `bytes` must ask for more bytes,
/// and never for more than there are.
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
fn a_client_over_a_unix_socket_is_told_by_the_name_of_the_socket() {
    let header = Outgoing { unix: Some(b"/run/x.sock"), crc32c: true, ..PLAIN };
    let bytes = written(ProxyVersion::V2, &header);
    let whole = bytes.len();
    assert_eq!((bytes[13], whole), (0x31, V2_START + 2 * 108 + 7));
    assert!(bytes[V2_START..][..108].iter().all(|byte| *byte == 0), "the client has no name");
    assert_eq!(&bytes[V2_START + 108..][..12], b"/run/x.sock\0");
    assert_eq!(in_any_fragmentation(&bytes), Header::Known { len: whole, addresses: None });
    let bytes = written(ProxyVersion::V1, &Outgoing { unix: Some(b"\0name"), ..PLAIN });
    assert_eq!(bytes, b"PROXY UNKNOWN\r\n");
    assert_eq!(in_any_fragmentation(&bytes), Header::Known { len: 15, addresses: None });
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
                    unix: None,
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
            // Addresses with a run of zeros, or with an IPv4 address inside.
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
    // The last byte of each text is the first that shows the error.
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

/// Makes a version 2 header of these parts.
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
        // LOCAL: the reader ignores the family and the bytes that follow.
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
    // The reader refuses a header at the first byte that shows the error: no room, a family, a TLV,
    // the length of a checksum.
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

/// A caller that waits for the number of bytes in one answer must not later be asked for fewer.
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
    // A change of the checksum's TLV kind removes the checksum, so that byte is left out.
    let kind = good.len() - 7;
    for bit in (0..good.len() * 8).filter(|bit| bit / 8 != kind) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // Two of these bits make LOCAL or a longer header, which is valid or incomplete.
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
