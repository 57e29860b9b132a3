//! Reads the messages that a PostgreSQL client sends before TLS, and names an endpoint's answers.
//!
//! A client that wants TLS sends SSLRequest, waits for `S`, and only then sends its ClientHello.
//! The client may ask for GSSAPI encryption first. The answer `N` to GSSENCRequest makes the client
//! go on to SSLRequest. A client may also begin with TLS (PostgreSQL 17). As in `client_hello`,
//! each call is given all bytes of the connection from the first one on. A call removes no bytes
//! and keeps no state.
//!
//! Source: PostgreSQL 18 documentation, sections 54.2.8 to 54.2.11 (message flow) and 54.7 (message
//! formats).

#![forbid(unsafe_code)]

/// How the bytes so far are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An answer needs at least this many bytes in all. The number is always greater than the
    /// number of bytes given.
    NeedMore { at_least: usize },
    /// TLS has begun.
    Tls,
    /// A whole SSLRequest, and no byte behind it.
    Encrypt,
    /// A whole GSSENCRequest, and no byte behind it.
    EncryptGss,
    /// The beginning of a CancelRequest. A CancelRequest is not encrypted, and names no server.
    Cancel,
    /// The beginning of a StartupMessage: the client goes on without TLS.
    Startup,
    /// Bytes stand behind a request that must be answered first. An attacker may have put them
    /// there, so that the endpoint takes them for bytes sent under TLS (CVE-2021-23222).
    Early,
    /// None of these messages, whatever bytes may follow.
    Invalid,
}

/// The message that asks an endpoint for TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// One byte grants or refuses a request for encryption.
pub const GRANTED: u8 = b'S';
pub const REFUSED: u8 = b'N';

/// Appends an ErrorResponse, the last message of a connection that is refused. `code` is one of the
/// five characters of PostgreSQL's appendix A. The texts must have no NUL byte.
pub fn write_error(code: &str, message: &str, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(b"E\0\0\0\0");
    // Severity comes twice: in the server's language, and in English.
    for (field, text) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', message)] {
        out.push(field);
        out.extend_from_slice(text.as_bytes());
        out.push(0);
    }
    out.push(0);
    // The length counts itself, and not the first byte.
    let len = u32::try_from(out.len() - start - 1).unwrap_or(u32::MAX);
    out[start + 1..start + 5].copy_from_slice(&len.to_be_bytes());
}

/// Reads the start of a connection. `end`: the client sends no more.
pub fn read(bytes: &[u8], end: bool) -> Request {
    match bytes {
        [] if !end => Request::NeedMore { at_least: 1 },
        [TLS_HANDSHAKE, ..] => Request::Tls,
        [l0 @ 0, l1, l2, l3, high, low, code @ ..] if code.len() >= 2 => {
            let len = u32::from_be_bytes([*l0, *l1, *l2, *l3]);
            let version = u16::from_be_bytes([*high, *low]);
            let minor = u16::from_be_bytes([code[0], code[1]]);
            request(len, version, minor, bytes.len())
        }
        // Each of these messages begins with a length below 2^24.
        [0, ..] if !end => Request::NeedMore { at_least: SSL_REQUEST.len() },
        _ => Request::Invalid,
    }
}

/// The first byte of a TLS record with a handshake message (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// A StartupMessage has its major version in this place. The other requests have this number there.
const REQUEST: u16 = 1234;
const CANCEL: u16 = 5678;
const SSL: u16 = 5679;
const GSS: u16 = 5680;
/// Lengths of a CancelRequest: without a key, up to the longest key (version 3.2 of the protocol).
const CANCEL_LENGTHS: std::ops::RangeInclusive<u32> = 16..=268;
/// Lengths of a StartupMessage, its final zero included. Servers take no longer ones
/// (`MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_LENGTHS: std::ops::RangeInclusive<u32> = 9..=10_000;

fn request(len: u32, version: u16, minor: u16, given: usize) -> Request {
    match (version, minor, len) {
        (REQUEST, SSL | GSS, 8) if given > SSL_REQUEST.len() => Request::Early,
        (REQUEST, SSL, 8) => Request::Encrypt,
        (REQUEST, GSS, 8) => Request::EncryptGss,
        (REQUEST, CANCEL, len) if CANCEL_LENGTHS.contains(&len) => Request::Cancel,
        (2 | 3, _, len) if STARTUP_LENGTHS.contains(&len) => Request::Startup,
        _ => Request::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
    const CANCEL_REQUEST: [u8; 16] = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 9, 1, 2, 3, 4];
    const STARTUP: &[u8] = b"\0\0\0\x13\0\x03\0\0user\0alice\0\0";

    /// Each message up to its last byte that matters, and the answer when one byte more has come.
    #[test]
    fn messages_are_known_as_soon_as_they_can_be() {
        let longer = [&SSL_REQUEST[..], &[0]].concat();
        for (bytes, whole, more) in [
            (&SSL_REQUEST[..], Request::Encrypt, Request::Early),
            (&GSS_REQUEST, Request::EncryptGss, Request::Early),
            (&CANCEL_REQUEST[..8], Request::Cancel, Request::Cancel),
            (&STARTUP[..8], Request::Startup, Request::Startup),
            (&longer[..8], Request::Encrypt, Request::Early),
        ] {
            assert_eq!(read(&[], false), Request::NeedMore { at_least: 1 });
            for cut in 1..8 {
                assert_eq!(read(&bytes[..cut], false), Request::NeedMore { at_least: 8 }, "{cut}");
                assert_eq!(read(&bytes[..cut], true), Request::Invalid, "{cut}");
            }
            assert_eq!(read(bytes, false), whole);
            assert_eq!(read(bytes, true), whole);
            assert_eq!(read(&[bytes, &[0x16]].concat(), false), more);
        }
    }

    #[test]
    fn errors_have_the_form_of_postgresql() {
        let mut out = vec![1];
        write_error("28000", "no", &mut out);
        assert_eq!(out, b"\x01E\0\0\0\x1eSFATAL\0VFATAL\0C28000\0Mno\0\0");
    }

    #[test]
    fn tls_is_known_by_its_first_byte_and_strangers_are_refused() {
        assert_eq!(read(&[22], false), Request::Tls);
        assert_eq!(read(&[22, 3, 1, 0, 0], false), Request::Tls);
        for bytes in [&b"G"[..], b"\x80", b"\x15\x03", b"\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert_eq!(read(bytes, false), Request::Invalid, "{bytes:?}");
        }
        for (len, code) in [
            (9, [0x04, 0xd2, 0x16, 0x2f]),
            (7, [0x04, 0xd2, 0x16, 0x30]),
            (15, [0x04, 0xd2, 0x16, 0x2e]),
            (269, [0x04, 0xd2, 0x16, 0x2e]),
            (8, [0x04, 0xd2, 0x16, 0x31]),
            (8, [0, 3, 0, 0]),
            (10_001, [0, 3, 0, 0]),
            (20, [0, 4, 0, 0]),
            (20, [0, 1, 0, 0]),
        ] {
            let bytes = [u32::to_be_bytes(len), code].concat();
            assert_eq!(read(&bytes, false), Request::Invalid, "{bytes:?}");
        }
        assert_eq!(read(&[], true), Request::Invalid);
    }
}
