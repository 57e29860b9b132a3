//! Reads the server name and the protocols of a TLS ClientHello from the first bytes of a
//! connection, however records and segments cut the message.
//!
//! Each call is given all bytes of the connection from the first one on, because the ring peeked
//! them. A call removes no bytes and keeps no state. The endpoint later receives the bytes
//! unchanged. This module checks only the fields that routing needs, because the endpoint judges
//! all other fields. This module does not open an Encrypted ClientHello: the outer name is the
//! server name.
//!
//! Sources: RFC 8446 sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3; RFC 7301 section 3.1.

#![forbid(unsafe_code)]

use std::fmt;

use crate::wire::postgres::SSL_REQUEST;

/// The answer must be found within this many bytes of the connection, record headers included.
pub const MAX_HELLO: usize = 64 * 1024;

/// A client that sends one byte at a time may cost one look per extension. Some 60 extension types
/// are assigned, and none may come twice (RFC 8446 section 4.2), so honest clients never reach this
/// limit.
const MAX_EXTENSIONS: usize = 128;

const RECORD_HEADER: usize = 5;
/// RFC 8446 section 5.1
const MAX_RECORD: usize = 1 << 14;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const HOST_NAME: u8 = 0;
const SERVER_NAME_EXTENSION: u16 = 0;
const ALPN_EXTENSION: u16 = 16;

/// How the bytes so far are understood.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one call on the stack, and this code does not allocate"
)]
pub enum Hello {
    /// An answer needs at least this many bytes in all. The number is always greater than the
    /// number of bytes given.
    NeedMore {
        at_least: usize,
    },
    Known(ClientHello),
    /// The first bytes are not those of a TLS record with a ClientHello. The text is for the log.
    NotTls(&'static str),
    /// Begins like a ClientHello and is none, whatever bytes may follow. For the log: what is
    /// wrong, and the number of bytes of the message before that place, without record headers.
    Invalid {
        why: &'static str,
        at: usize,
    },
    /// No answer within [`MAX_HELLO`] bytes.
    TooLarge,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    pub server_name: Option<ServerName>,
    pub alpn: Protocols,
}

/// Reads the start of a connection. `end`: the client sends no more.
///
/// The answer comes as soon as the server name and the protocols are read, or the header of the
/// last extension. This function does not wait for the bytes after that point, and does not look at
/// them.
pub fn read(bytes: &[u8], end: bool) -> Hello {
    let within = &bytes[..bytes.len().min(MAX_HELLO)];
    let mut input = Input { bytes: within, at: 0, record: 0, taken: 0, wanted: 0 };
    match client_hello(&mut input) {
        Ok(hello) => Hello::Known(hello),
        Err(Halt::NotTls(why)) => Hello::NotTls(why),
        Err(Halt::Invalid(why)) => Hello::Invalid { why, at: input.taken },
        Err(Halt::TooLarge) => Hello::TooLarge,
        Err(Halt::Missing { .. }) if end => {
            Hello::Invalid { why: "the client ended within its hello", at: input.taken }
        }
        // The first byte already tells TLS from other protocols, so this answer asks for that byte
        // alone.
        Err(Halt::Missing { .. }) if bytes.is_empty() => Hello::NeedMore { at_least: 1 },
        Err(Halt::Missing { at_least }) => Hello::NeedMore { at_least },
    }
}

/// The protocol that the client speaks instead of TLS, if the first bytes tell it.
pub fn stranger(bytes: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[&[u8]], &str); 4] = [
        (
            &[b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"DELETE ", b"CONNECT ", b"PRI "],
            "HTTP without TLS",
        ),
        (&[b"SSH-"], "SSH"),
        (
            &[b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"],
            "a PROXY header: its sender is not in `accept_proxy`",
        ),
        (&[&SSL_REQUEST], "a PostgreSQL client that asks for TLS: see `starttls`"),
    ];
    let is_one = |starts: &[&[u8]]| starts.iter().any(|start| bytes.starts_with(start));
    KNOWN.iter().find(|(starts, _)| is_one(starts)).map(|(_, name)| *name)
}

/// The server name that a client asks for: printable ASCII in lower case, 1 to 255 bytes, without a
/// final dot. The name is usually a DNS name, but some clients send IP addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerName {
    bytes: [u8; 255],
    len: usize,
}

impl ServerName {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("only ASCII is ever stored")
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The application protocols that a client offers, best first. 256 bytes hold as many of the first
/// protocols as fit with a length byte each, which is at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Protocols {
    /// In the format of the wire: a length byte before each protocol.
    bytes: [u8; 256],
    len: usize,
}

impl Protocols {
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let mut rest = &self.bytes[..self.len];
        std::iter::from_fn(move || {
            let (len, names) = rest.split_first()?;
            let (name, others) = names.split_at(usize::from(*len));
            rest = others;
            Some(name)
        })
    }

    fn none() -> Self {
        Self { bytes: [0; 256], len: 0 }
    }

    /// `None`: a protocol is empty or too long, or all protocols together are too long.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n [u8]>) -> Option<Self> {
        let mut protocols = Self::none();
        for name in names {
            let len = u8::try_from(name.len()).ok().filter(|len| *len > 0)?;
            let (at, end) = (protocols.len, protocols.len + 1 + name.len());
            let (first, rest) = protocols.bytes.get_mut(at..end)?.split_first_mut()?;
            *first = len;
            rest.copy_from_slice(name);
            protocols.len = end;
        }
        Some(protocols)
    }
}

impl fmt::Debug for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(<[u8]>::escape_ascii)).finish()
    }
}

/// Why reading stopped without an answer.
enum Halt {
    Missing { at_least: usize },
    NotTls(&'static str),
    Invalid(&'static str),
    TooLarge,
}

type Outcome<T> = Result<T, Halt>;

fn client_hello(input: &mut Input<'_>) -> Outcome<ClientHello> {
    let mut message = input.message()?;
    // Version and random. TLS 1.3 fixes the version. In older versions of TLS the endpoint judges
    // the version.
    input.pass(&mut message, 2 + 32)?;
    let session_id = input.field8(&mut message)?;
    if session_id > 32 {
        return Err(Halt::Invalid("session id over 32 bytes"));
    }
    input.skip(session_id)?;
    let suites = input.field16(&mut message)?;
    if suites == 0 || suites % 2 != 0 {
        return Err(Halt::Invalid("cipher suites empty or cut"));
    }
    input.skip(suites)?;
    let compression = input.field8(&mut message)?;
    if compression == 0 {
        return Err(Halt::Invalid("no compression method"));
    }
    input.skip(compression)?;
    if message == 0 {
        input.arrive()?;
        return Ok(ClientHello { server_name: None, alpn: Protocols::none() });
    }
    let extensions = input.field16(&mut message)?;
    if message > 0 {
        return Err(Halt::Invalid("bytes after the extensions"));
    }
    input.extensions(extensions)
}

/// The handshake message within its records.
struct Input<'a> {
    bytes: &'a [u8],
    /// The place of the next byte of the message, or of the next record header if `record` is 0.
    /// After a skip, `at` may lie beyond the end of `bytes`: skipped bytes need not have come
    /// before a byte after them is read.
    at: usize,
    /// Bytes left in the current record.
    record: usize,
    /// Bytes of the message before `at`.
    taken: usize,
    /// Bytes of the message without which there is no answer.
    wanted: usize,
}

impl Input<'_> {
    /// Reads the header of the message, and returns the length of the rest of the message.
    fn message(&mut self) -> Outcome<usize> {
        self.want(4);
        let [kind] = self.array()?;
        if kind != CLIENT_HELLO {
            return Err(Halt::NotTls("a handshake that does not begin with a ClientHello"));
        }
        let [high, middle, low] = self.array()?;
        let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if self.reach(len) > MAX_HELLO {
            return Err(Halt::TooLarge);
        }
        Ok(len)
    }

    fn extensions(&mut self, mut block: usize) -> Outcome<ClientHello> {
        let mut server_name = None;
        let mut alpn = None;
        let mut count = 0;
        while block > 0 && (server_name.is_none() || alpn.is_none()) {
            count += 1;
            if count > MAX_EXTENSIONS {
                return Err(Halt::Invalid("more than 128 extensions"));
            }
            self.want(4);
            let kind = self.number16(&mut block)?;
            let body = self.field16(&mut block)?;
            match kind {
                SERVER_NAME_EXTENSION if server_name.is_some() => {
                    return Err(Halt::Invalid("two server_name extensions"));
                }
                SERVER_NAME_EXTENSION => server_name = Some(self.server_name(body)?),
                ALPN_EXTENSION if alpn.is_some() => {
                    return Err(Halt::Invalid("two application_layer_protocol extensions"));
                }
                ALPN_EXTENSION => alpn = Some(self.protocols(body)?),
                // The body of the last extension cannot change the answer.
                _ if block == 0 => break,
                _ => self.skip(body)?,
            }
        }
        Ok(ClientHello { server_name, alpn: alpn.unwrap_or_else(Protocols::none) })
    }

    fn server_name(&mut self, mut body: usize) -> Outcome<ServerName> {
        self.want(body);
        let mut list = self.field16(&mut body)?;
        if list == 0 || body > 0 {
            return Err(Halt::Invalid("server_name list empty or of a wrong length"));
        }
        let [kind] = self.part(&mut list)?;
        if kind != HOST_NAME {
            return Err(Halt::Invalid("server_name list without a host name"));
        }
        let mut len = self.field16(&mut list)?;
        if len == 0 || len > 255 {
            return Err(Halt::Invalid("host name empty or over 255 bytes"));
        }
        let mut bytes = [0; 255];
        self.copy(&mut bytes[..len])?;
        if !bytes[..len].iter().all(u8::is_ascii_graphic) {
            return Err(Halt::Invalid("host name with other bytes than printable ASCII"));
        }
        if list > 0 {
            // RFC 6066 defines no other kinds, and no way to delimit them, so the bytes after one
            // are opaque.
            let [kind] = self.part(&mut list)?;
            if kind == HOST_NAME {
                return Err(Halt::Invalid("two host names"));
            }
            self.skip(list)?;
            self.arrive()?;
        }
        if bytes[len - 1] == b'.' {
            len -= 1;
            bytes[len] = 0;
        }
        if len == 0 {
            return Err(Halt::Invalid("host name is a dot"));
        }
        bytes.make_ascii_lowercase();
        Ok(ServerName { bytes, len })
    }

    fn protocols(&mut self, mut body: usize) -> Outcome<Protocols> {
        self.want(body);
        let mut list = self.field16(&mut body)?;
        if list == 0 || body > 0 {
            return Err(Halt::Invalid("protocol list empty or of a wrong length"));
        }
        let mut protocols = Protocols::none();
        let mut full = false;
        while list > 0 {
            let [len] = self.part(&mut list)?;
            let size = usize::from(len);
            take(&mut list, size)?;
            if size == 0 {
                return Err(Halt::Invalid("empty protocol name"));
            }
            let start = protocols.len + 1;
            full |= start + size > protocols.bytes.len();
            if full {
                self.skip(size)?;
                self.arrive()?;
            } else {
                protocols.bytes[protocols.len] = len;
                self.copy(&mut protocols.bytes[start..start + size])?;
                protocols.len = start + size;
            }
        }
        Ok(protocols)
    }

    /// Takes a field with an 8-bit length out of the enclosing field, and returns the length.
    fn field8(&mut self, outer: &mut usize) -> Outcome<usize> {
        let [len] = self.part(outer)?;
        take(outer, usize::from(len))
    }

    /// Takes a field with a 16-bit length out of the enclosing field, and returns the length.
    fn field16(&mut self, outer: &mut usize) -> Outcome<usize> {
        let len = self.number16(outer)?;
        take(outer, usize::from(len))
    }

    fn number16(&mut self, outer: &mut usize) -> Outcome<u16> {
        Ok(u16::from_be_bytes(self.part(outer)?))
    }

    fn part<const N: usize>(&mut self, outer: &mut usize) -> Outcome<[u8; N]> {
        take(outer, N)?;
        self.array()
    }

    fn pass(&mut self, outer: &mut usize, len: usize) -> Outcome<()> {
        take(outer, len)?;
        self.skip(len)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut out = [0; N];
        self.copy(&mut out)?;
        Ok(out)
    }

    fn copy(&mut self, mut out: &mut [u8]) -> Outcome<()> {
        self.want(out.len());
        while !out.is_empty() {
            self.open_record()?;
            let len = out.len().min(self.record);
            let Some(piece) = self.bytes.get(self.at..self.at + len) else {
                return Err(self.missing());
            };
            let (now, later) = out.split_at_mut(len);
            now.copy_from_slice(piece);
            out = later;
            self.advance(len);
        }
        Ok(())
    }

    fn skip(&mut self, mut len: usize) -> Outcome<()> {
        self.want(len);
        while len > 0 {
            self.open_record()?;
            let piece = len.min(self.record);
            self.advance(piece);
            len -= piece;
        }
        Ok(())
    }

    /// Asks for the skipped bytes, if the end of `bytes` comes before the end of the skip.
    fn arrive(&self) -> Outcome<()> {
        if self.at > self.bytes.len() { Err(self.missing()) } else { Ok(()) }
    }

    fn advance(&mut self, len: usize) {
        self.at += len;
        self.record -= len;
        self.taken += len;
    }

    /// Reads the next record header where the last record has ended.
    fn open_record(&mut self) -> Outcome<()> {
        if self.record > 0 {
            return Ok(());
        }
        let header = self.bytes.get(self.at..).unwrap_or_default();
        let wrong = if self.at == 0 { Halt::NotTls } else { Halt::Invalid };
        if header.first().is_some_and(|kind| *kind != HANDSHAKE_RECORD) {
            return Err(wrong("not a TLS handshake record"));
        }
        // The minor version is arbitrary in practice. The major version was always 3.
        if header.get(1).is_some_and(|major| *major != 3) {
            return Err(wrong("not a TLS record version"));
        }
        let [_, _, _, high, low, ..] = *header else { return Err(self.missing()) };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len == 0 || len > MAX_RECORD {
            return Err(Halt::Invalid("record empty or over 16 KiB"));
        }
        self.at += RECORD_HEADER;
        self.record = len;
        Ok(())
    }

    /// Notes that no answer is possible without the next `len` bytes of the message.
    fn want(&mut self, len: usize) {
        self.wanted = self.wanted.max(self.taken + len);
    }

    fn missing(&self) -> Halt {
        let at_least = self.reach(self.wanted - self.taken);
        if at_least > MAX_HELLO { Halt::TooLarge } else { Halt::Missing { at_least } }
    }

    /// The earliest place in the connection where `len` more bytes of the message end: the records
    /// are as long as they can be.
    fn reach(&self, len: usize) -> usize {
        let records = len.saturating_sub(self.record).div_ceil(MAX_RECORD);
        self.at + len + records * RECORD_HEADER
    }
}

/// Takes `len` bytes out of a field that has `outer` bytes left.
fn take(outer: &mut usize, len: usize) -> Outcome<usize> {
    let Some(left) = outer.checked_sub(len) else {
        return Err(Halt::Invalid("a length that passes the end of what it stands in"));
    };
    *outer = left;
    Ok(len)
}

#[cfg(test)]
mod tests;
