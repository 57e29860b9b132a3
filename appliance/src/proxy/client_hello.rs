//! The server name and the protocols of a TLS ClientHello, read from the first bytes of a
//! connection, however records and segments cut it.
//!
//! Nothing is taken from the connection and nothing is kept between calls: each call is given all
//! bytes from the first one on (they were peeked), and the endpoint later gets the same bytes
//! unchanged. Only what routing needs is looked at and checked; all else is the endpoint's to
//! judge. Encrypted ClientHello is not opened: its outer name is the name.
//!
//! Sources: RFC 8446 sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3; RFC 7301 section 3.1.

#![forbid(unsafe_code)]

use std::fmt;

use super::postgres::SSL_REQUEST;

/// Bytes of the connection within which the answer must be found, record headers included.
pub const MAX_HELLO: usize = 64 * 1024;

/// A client that sends a byte at a time may cost one look per extension. Some 60 types are assigned
/// and none may come twice (RFC 8446 section 4.2), so this is out of reach for honest clients.
const MAX_EXTENSIONS: usize = 128;

const RECORD_HEADER: usize = 5;
/// RFC 8446 section 5.1
const MAX_RECORD: usize = 1 << 14;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const HOST_NAME: u8 = 0;
const SERVER_NAME_EXTENSION: u16 = 0;
const ALPN_EXTENSION: u16 = 16;

/// What the bytes so far say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one call on the stack, and this code does not allocate"
)]
pub enum Hello {
    /// No answer is possible below this many bytes in all; always more than were given.
    NeedMore {
        at_least: usize,
    },
    Known(ClientHello),
    /// No ClientHello, whatever may follow. The text is for the log.
    Invalid(&'static str),
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
/// The answer comes as soon as both names and protocols, or the last extension's header, were seen;
/// what follows is not waited for and not looked at.
pub fn read(bytes: &[u8], end: bool) -> Hello {
    let within = &bytes[..bytes.len().min(MAX_HELLO)];
    match client_hello(within) {
        Ok(hello) => Hello::Known(hello),
        Err(Halt::Invalid(why)) => Hello::Invalid(why),
        Err(Halt::TooLarge) => Hello::TooLarge,
        Err(Halt::Missing { .. }) if end => Hello::Invalid("the client ended within its hello"),
        // What is no TLS at all shows in the first byte, so that one is asked for alone.
        Err(Halt::Missing { .. }) if bytes.is_empty() => Hello::NeedMore { at_least: 1 },
        Err(Halt::Missing { at_least }) => Hello::NeedMore { at_least },
    }
}

/// What the client speaks instead of TLS, if that is easily told.
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

/// The name that a client asks for: printable ASCII in lower case, 1 to 255 bytes, without the dot
/// that may end it. Often, but not surely, a DNS name: some clients send IP addresses.
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

/// The application protocols that a client offers, best first: as many of the first as fit in 256
/// bytes with a length byte each, which is at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Protocols {
    /// As on the wire: a length byte before each.
    bytes: [u8; 256],
    len: usize,
}

impl Protocols {
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
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
}

impl fmt::Debug for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(<[u8]>::escape_ascii)).finish()
    }
}

/// Why reading stopped without an answer.
enum Halt {
    Missing { at_least: usize },
    Invalid(&'static str),
    TooLarge,
}

type Outcome<T> = Result<T, Halt>;

fn client_hello(bytes: &[u8]) -> Outcome<ClientHello> {
    let mut input = Input { bytes, at: 0, record: 0, taken: 0, wanted: 0 };
    let mut message = input.message()?;
    // Version and random. The version is fixed in TLS 1.3, and the endpoint's affair below.
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
    /// Where the next byte of the message is, or the next record's header if `record` is 0. Beyond
    /// the end after a skip: skipped bytes need not be there before something after them is read.
    at: usize,
    /// What is left of the current record.
    record: usize,
    /// Bytes of the message behind `at`.
    taken: usize,
    /// Bytes of the message without which there is no answer.
    wanted: usize,
}

impl Input<'_> {
    /// The message's header; returns the length of what follows it.
    fn message(&mut self) -> Outcome<usize> {
        self.want(4);
        let [kind] = self.array()?;
        if kind != CLIENT_HELLO {
            return Err(Halt::Invalid("a handshake that does not begin with a ClientHello"));
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
                // The last one's body cannot change the answer.
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
            // Other kinds are not defined, nor how they are delimited: what follows one is opaque.
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

    /// Takes a field with an 8-bit length out of the one it stands in; returns that length.
    fn field8(&mut self, outer: &mut usize) -> Outcome<usize> {
        let [len] = self.part(outer)?;
        take(outer, usize::from(len))
    }

    /// The same with a 16-bit length.
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

    /// Waits for what was skipped, where its end was asked for already.
    fn arrive(&self) -> Outcome<()> {
        if self.at > self.bytes.len() { Err(self.missing()) } else { Ok(()) }
    }

    fn advance(&mut self, len: usize) {
        self.at += len;
        self.record -= len;
        self.taken += len;
    }

    /// Reads the next record's header where the last record has ended.
    fn open_record(&mut self) -> Outcome<()> {
        if self.record > 0 {
            return Ok(());
        }
        let header = self.bytes.get(self.at..).unwrap_or_default();
        if header.first().is_some_and(|kind| *kind != HANDSHAKE_RECORD) {
            return Err(Halt::Invalid("not a TLS handshake record"));
        }
        // The minor version is arbitrary in practice; the major one never was anything else.
        if header.get(1).is_some_and(|major| *major != 3) {
            return Err(Halt::Invalid("not a TLS record version"));
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

    /// Notes that no answer is possible without `len` bytes from here on.
    fn want(&mut self, len: usize) {
        self.wanted = self.wanted.max(self.taken + len);
    }

    fn missing(&self) -> Halt {
        let at_least = self.reach(self.wanted - self.taken);
        if at_least > MAX_HELLO { Halt::TooLarge } else { Halt::Missing { at_least } }
    }

    /// Where `len` more bytes of the message end at the earliest: in records as long as can be.
    fn reach(&self, len: usize) -> usize {
        let records = len.saturating_sub(self.record).div_ceil(MAX_RECORD);
        self.at + len + records * RECORD_HEADER
    }
}

/// Takes `len` bytes out of a field that has `outer` left.
fn take(outer: &mut usize, len: usize) -> Outcome<usize> {
    let Some(left) = outer.checked_sub(len) else {
        return Err(Halt::Invalid("a length that passes the end of what it stands in"));
    };
    *outer = left;
    Ok(len)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strangers_are_called_by_their_names() {
        let hello = [22, 3, 1, 0, 9];
        for (bytes, name) in [
            (&b"GET / HTTP/1.1"[..], Some("HTTP without TLS")),
            (b"SSH-2.0-x", Some("SSH")),
            (&SSL_REQUEST, Some("a PostgreSQL client that asks for TLS: see `starttls`")),
            (b"GE", None),
            (&hello, None),
        ] {
            assert_eq!(stranger(bytes), name);
        }
    }

    /// A ClientHello message with these extensions; `None`: without the field, as before TLS 1.2.
    fn message(extensions: Option<&[(u16, Vec<u8>)]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(with_length8(&[9; 32]));
        body.extend(with_length16(&[0x13, 0x01, 0x0a, 0x0a]));
        body.extend(with_length8(&[0]));
        if let Some(extensions) = extensions {
            let mut block = Vec::new();
            for (kind, content) in extensions {
                block.extend(kind.to_be_bytes());
                block.extend(with_length16(content));
            }
            body.extend(with_length16(&block));
        }
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1, len[1], len[2], len[3]], &body[..]].concat()
    }

    fn with_length8(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn with_length16(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    fn sni(name: &[u8]) -> (u16, Vec<u8>) {
        (0, with_length16(&[&[0], &with_length16(name)[..]].concat()))
    }

    fn alpn(names: &[&[u8]]) -> (u16, Vec<u8>) {
        let list: Vec<u8> = names.iter().flat_map(|name| with_length8(name)).collect();
        (16, with_length16(&list))
    }

    /// GREASE (RFC 8701), and a key share of post-quantum size.
    fn grease() -> (u16, Vec<u8>) {
        (0x2a2a, vec![])
    }

    fn key_share() -> (u16, Vec<u8>) {
        (51, vec![5; 1260])
    }

    /// Cuts a message into records: of the given sizes, the last of which repeats.
    fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = message;
        let mut sizes = sizes.iter().copied();
        let mut size = 1;
        while !rest.is_empty() {
            size = sizes.next().unwrap_or(size).clamp(1, MAX_RECORD);
            let (record, others) = rest.split_at(size.min(rest.len()));
            out.extend([22, 3, 1]);
            out.extend(with_length16(record));
            rest = others;
        }
        out
    }

    fn one_record(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        records(&message(Some(extensions)), &[MAX_RECORD])
    }

    fn known(bytes: &[u8]) -> ClientHello {
        match read(bytes, false) {
            Hello::Known(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    fn name_of(bytes: &[u8]) -> Option<String> {
        known(bytes).server_name.map(|name| name.as_str().to_owned())
    }

    fn assert_invalid(bytes: &[u8]) {
        assert!(matches!(read(bytes, false), Hello::Invalid(_)), "{:?}", read(bytes, false));
    }

    /// Every prefix is either not enough, and says truly how much is, or has the whole's answer.
    /// Returns the length of the shortest prefix that has it.
    fn assert_prefixes_agree(bytes: &[u8]) -> usize {
        let whole = read(bytes, false);
        assert!(!matches!(whole, Hello::NeedMore { .. }), "{whole:?}");
        let mut decided = None;
        let mut bound = 0;
        for len in 0..=bytes.len() {
            match read(&bytes[..len], false) {
                Hello::NeedMore { at_least } => {
                    assert!(decided.is_none(), "an answer was taken back at {len}");
                    assert!(at_least > len && at_least >= bound, "{at_least} at {len}");
                    assert!(at_least <= MAX_HELLO);
                    assert!(matches!(read(&bytes[..len], true), Hello::Invalid(_)));
                    bound = at_least;
                }
                answer => {
                    assert_eq!(answer, whole, "at {len}");
                    assert_eq!(read(&bytes[..len], true), whole);
                    if decided.is_none() && matches!(whole, Hello::Known(_)) {
                        assert!(len >= bound, "{bound} bytes asked for, {len} were enough");
                    }
                    decided.get_or_insert(len);
                }
            }
        }
        decided.unwrap()
    }

    /// How often a client that sends a byte at a time has itself looked at.
    fn looks(bytes: &[u8]) -> usize {
        let mut len = 0;
        for count in 1.. {
            match read(&bytes[..len.min(bytes.len())], false) {
                Hello::NeedMore { at_least } => len = at_least,
                _ => return count,
            }
        }
        unreachable!("each look asks for more bytes than there were")
    }

    #[test]
    fn names_and_protocols_are_read_wherever_they_stand() {
        let hello = one_record(&[
            grease(),
            key_share(),
            alpn(&[b"h2", b"http/1.1"]),
            (23, vec![]),
            sni(b"DB.Example.COM."),
            (21, vec![0; 100]),
        ]);
        let hello = known(&hello);
        assert_eq!(hello.server_name.unwrap().as_str(), "db.example.com");
        assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);

        assert_eq!(name_of(&one_record(&[sni(b"192.0.2.7")])).as_deref(), Some("192.0.2.7"));
        assert_eq!(name_of(&one_record(&[sni(&[b'a'; 255])])).map(|name| name.len()), Some(255));
        assert_eq!(name_of(&one_record(&[alpn(&[b"postgresql"])])), None);
        assert_eq!(name_of(&one_record(&[])), None);
        assert_eq!(name_of(&records(&message(None), &[MAX_RECORD])), None);
    }

    #[test]
    fn nothing_is_waited_for_once_the_answer_is_known() {
        let bytes =
            one_record(&[sni(b"a.example"), alpn(&[b"h2"]), key_share(), (21, vec![0; 400])]);
        assert_eq!(assert_prefixes_agree(&bytes), bytes.len() - (4 + 1260) - (4 + 400));
        // Without ALPN the last extension's header settles it, and its body is not needed.
        let bytes = one_record(&[sni(b"a.example"), key_share()]);
        assert_eq!(assert_prefixes_agree(&bytes), bytes.len() - 1260);
    }

    #[test]
    fn long_protocol_lists_are_cut_after_a_whole_name() {
        let long = [b'x'; 255];
        let hello = known(&one_record(&[alpn(&[&long, b"h2"])]));
        assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [&long[..]]);
        let names = vec![&b"0123456"[..]; 40];
        assert_eq!(known(&one_record(&[alpn(&names)])).alpn.iter().count(), 256 / 8);
        // A short one behind one that did not fit must not take its place.
        let hello = known(&one_record(&[alpn(&[b"h2", &long, b"h3"])]));
        assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [b"h2"]);
    }

    #[test]
    fn what_is_no_client_hello_is_refused_at_its_first_wrong_byte() {
        assert_invalid(b"G");
        assert_invalid(b"\x80");
        assert_invalid(b"\x80\x2e\x01\x03\x01");
        assert_invalid(&[21, 3, 3, 0, 2, 1, 0]);
        assert_invalid(&[23]);
        assert_invalid(&[22, 2]);
        assert_invalid(&[22, 3, 1, 0, 0]);
        assert_invalid(&[22, 3, 1, 0x40, 0x01]);
        assert_invalid(&[22, 3, 1, 0, 5, 2]);
        let mut two = records(&message(None), &[20]);
        two[25] = 21;
        assert_invalid(&two);
        assert_eq!(read(b"", false), Hello::NeedMore { at_least: 1 });
        assert!(matches!(read(b"", true), Hello::Invalid(_)));
    }

    #[test]
    fn wrong_names_are_refused() {
        for name in [&b""[..], b".", b"a\0b", b"a b", b"caf\xc3\xa9", &[b'a'; 256]] {
            assert_invalid(&one_record(&[sni(name)]));
        }
        let name = [&[0], &with_length16(b"a")[..]].concat();
        let two = with_length16(&[&name[..], &name].concat());
        assert_invalid(&one_record(&[(0, two)]));
        assert_invalid(&one_record(&[sni(b"a"), sni(b"b")]));
        for content in [
            &[][..],
            &[0],
            &[0, 0],
            &[0, 5, 0, 0, 1, b'a'],
            &[0, 3, 0, 0, 1, b'a'],
            &[0, 4, 0, 0, 2, b'a'],
            &[0, 4, 1, 0, 1, b'a'],
            &[0, 4, 0, 0, 1, b'a', 0],
        ] {
            assert_invalid(&one_record(&[(0, content.to_vec())]));
        }
        // A second name of an undefined kind is opaque and changes nothing.
        let extra = with_length16(&[&name[..], &[9, 1, 2, 3]].concat());
        assert_eq!(name_of(&one_record(&[(0, extra)])).as_deref(), Some("a"));
    }

    #[test]
    fn wrong_protocol_lists_and_inner_lengths_are_refused() {
        for content in [&[][..], &[0, 0], &[0, 1, 0], &[0, 3, 2, b'h'], &[0, 2, 2, b'h', b'2']] {
            assert_invalid(&one_record(&[(16, content.to_vec())]));
        }
        assert_invalid(&one_record(&[alpn(&[b"h2"]), alpn(&[b"h2"])]));
        let whole = one_record(&[key_share(), grease(), sni(b"a.example")]);
        // Lengths of: session id, suites, compression, extensions; in the record's bytes.
        for (place, wrong) in [(43, 33), (77, 3), (77, 0), (82, 0), (85, 0xff)] {
            let mut bytes = whole.clone();
            bytes[place] = wrong;
            assert_invalid(&bytes);
        }
        let many: Vec<_> = (0..129).map(|kind| (1000 + kind, vec![])).collect();
        assert_invalid(&one_record(&many));
        assert_eq!(name_of(&one_record(&many[..128])), None);
    }

    #[test]
    fn the_limit_counts_every_byte_of_the_connection() {
        let filler = |len: usize| vec![(21, vec![0; len]), sni(b"late.example")];
        let fits = one_record(&filler(MAX_HELLO - 200));
        assert_eq!(name_of(&fits).as_deref(), Some("late.example"));
        let long = records(&message(Some(&filler(MAX_HELLO - 100))), &[MAX_RECORD]);
        assert_eq!(read(&long, false), Hello::TooLarge);
        assert_eq!(read(&long[..9], false), Hello::TooLarge, "its length says so");
        // The same message that fits in whole records does not in records of one byte.
        let drip = records(&message(Some(&filler(20_000))), &[1]);
        assert_eq!(read(&drip, false), Hello::TooLarge);
        assert_eq!(read(&drip[..MAX_HELLO], false), Hello::TooLarge);
        assert!(matches!(read(&drip[..30_000], false), Hello::NeedMore { .. }));
    }

    #[test]
    fn a_drip_costs_a_bounded_number_of_looks() {
        let usual = [grease(), key_share(), sni(b"db.example.com"), alpn(&[b"h2"]), key_share()];
        assert!(looks(&one_record(&usual)) <= 16);
        let message = message(Some(&usual));
        assert!(looks(&records(&message, &[1])) <= 120);
        // The worst that was thought of: as many extensions as are allowed, in records of one byte,
        // so that each header and body is found to be cut again and again.
        let worst: Vec<_> = (0..128).map(|kind| (1000 + kind, vec![0; 80])).collect();
        let worst = records(&self::message(Some(&worst)), &[1]);
        assert!(worst.len() <= MAX_HELLO && worst.len() > MAX_HELLO - 3_000, "{}", worst.len());
        let looks = looks(&worst);
        assert!(looks <= 24 * MAX_EXTENSIONS, "{looks}");
    }

    #[test]
    fn a_real_client_is_understood() {
        let first = rustls_first_flight("Db.Example.com", &["postgresql", "h2"]);
        let hello = known(&first);
        assert_eq!(hello.server_name.unwrap().as_str(), "db.example.com");
        assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [&b"postgresql"[..], b"h2"]);
        assert_prefixes_agree(&first);
    }

    fn rustls_first_flight(name: &str, protocols: &[&str]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    /// What rustls' server side makes of the same bytes; `None` where it wants more or refuses.
    fn rustls_name(bytes: &[u8]) -> Option<Option<String>> {
        let mut acceptor = rustls::server::Acceptor::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).ok()?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    return Some(accepted.client_hello().server_name().map(str::to_owned));
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// Where rustls accepts, so do we, and see the same name. It shows no IP addresses, and keeps
    /// the final dot.
    fn assert_agrees_with_rustls(bytes: &[u8]) {
        let Some(theirs) = rustls_name(bytes) else { return };
        let ours = name_of(bytes);
        match theirs {
            Some(theirs) => assert_eq!(ours.as_deref(), Some(theirs.trim_end_matches('.'))),
            None => assert!(ours.is_none_or(|name| name.parse::<std::net::IpAddr>().is_ok())),
        }
    }

    fn extension() -> impl Strategy<Value = (u16, Vec<u8>)> {
        prop_oneof![
            "[a-zA-Z0-9.-]{1,40}".prop_map(|name| sni(name.as_bytes())),
            "[a-z]{1,8}(\\.[a-z]{1,8}){1,3}\\.?".prop_map(|name| sni(name.as_bytes())),
            vec("[a-z0-9/.]{1,9}", 1..5).prop_map(|names| {
                alpn(&names.iter().map(String::as_bytes).collect::<Vec<_>>())
            }),
            vec(any::<u8>(), 0..12).prop_map(|content| (0, content)),
            vec(any::<u8>(), 0..12).prop_map(|content| (16, content)),
            (1000_u16.., vec(any::<u8>(), 0..60)),
            Just(grease()),
        ]
    }

    fn hello() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            9 => vec(extension(), 0..8).prop_map(|all| message(Some(&all))),
            1 => Just(message(None)),
        ]
    }

    proptest! {
        #[test]
        fn prefixes_agree(message in hello(), sizes in vec(1..200_usize, 1..6)) {
            assert_prefixes_agree(&records(&message, &sizes));
        }

        #[test]
        fn records_do_not_matter(message in hello(), sizes in vec(1..200_usize, 1..6)) {
            let whole = read(&records(&message, &[MAX_RECORD]), false);
            prop_assert_eq!(read(&records(&message, &sizes), false), whole.clone());
            prop_assert_eq!(read(&records(&message, &[1]), false), whole);
        }

        #[test]
        fn rustls_agrees(
            name in "[a-zA-Z]{1,9}(\\.[a-zA-Z0-9]{1,9}){1,3}[a-z]",
            sizes in vec(1..200_usize, 1..6),
            flip in proptest::option::of((9..180_usize, any::<u8>())),
        ) {
            let first = rustls_first_flight(&name, &["h2"]);
            prop_assert_eq!(name_of(&first), Some(name.to_lowercase()));
            let mut message = first[5..].to_vec();
            if let Some((place, value)) = flip {
                message[place % first.len().saturating_sub(5)] = value;
            }
            assert_agrees_with_rustls(&records(&message, &sizes));
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in vec(any::<u8>(), 0..300)) {
            let answer = read(&bytes, true);
            prop_assert!(!matches!(answer, Hello::NeedMore { .. }), "{answer:?}");
            assert_agrees_with_rustls(&bytes);
        }
    }
}
