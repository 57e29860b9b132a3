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

/// Makes a ClientHello message with these extensions. `None`: the message has no extensions field,
/// as before TLS 1.2.
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

/// A GREASE extension (RFC 8701). `key_share` makes a key share of post-quantum size.
fn grease() -> (u16, Vec<u8>) {
    (0x2a2a, vec![])
}

fn key_share() -> (u16, Vec<u8>) {
    (51, vec![5; 1260])
}

/// Cuts a message into records of the given sizes. The last size repeats.
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
    assert!(matches!(read(bytes, false), Hello::Invalid { .. }), "{:?}", read(bytes, false));
}

/// Checks that each prefix either has the answer of the whole, or asks for more bytes and names no
/// more than the answer needs. Returns the length of the shortest prefix that has the answer.
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
                assert!(matches!(read(&bytes[..len], true), Hello::Invalid { .. }));
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

/// How many looks a client causes that sends one byte at a time.
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
    let bytes = one_record(&[sni(b"a.example"), alpn(&[b"h2"]), key_share(), (21, vec![0; 400])]);
    assert_eq!(assert_prefixes_agree(&bytes), bytes.len() - (4 + 1260) - (4 + 400));
    // Without ALPN, the header of the last extension settles the answer, so the body is not needed.
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
    // A short protocol behind one that did not fit must not take the place of the longer one.
    let hello = known(&one_record(&[alpn(&[b"h2", &long, b"h3"])]));
    assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [b"h2"]);
}

#[test]
fn what_is_no_client_hello_is_refused_at_its_first_wrong_byte() {
    for bytes in [
        &b"G"[..],
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x03\0\0\x13\x0e\xe0\0\0",
        b"\x80",
        b"\x80\x2e\x01\x03\x01",
        &[21, 3, 3, 0, 2, 1, 0],
        &[23],
        &[22, 2],
        &[22, 3, 1, 0, 5, 2],
    ] {
        let answer = read(bytes, false);
        assert!(matches!(answer, Hello::NotTls(_)), "{bytes:?}: {answer:?}");
        assert_eq!(read(bytes, true), answer);
    }
    assert_invalid(&[22, 3, 1, 0, 0]);
    assert_invalid(&[22, 3, 1, 0, 0, 2]);
    assert_invalid(&[22, 3, 1, 0x40, 0x01]);
    let mut two = records(&message(None), &[20]);
    two[25] = 21;
    assert_invalid(&two);
    assert_eq!(read(b"", false), Hello::NeedMore { at_least: 1 });
    assert!(matches!(read(b"", true), Hello::Invalid { .. }));
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
    // Places in the record of the lengths of the session id, suites, compression and extensions.
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
    // This message fits in whole records, but not in records of one byte.
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
    // The worst case known: the maximum number of extensions, in records of one byte. The reader
    // finds each header and each body cut again and again.
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

/// The server name that the server side of rustls reads from these bytes. `None`: rustls wants more
/// bytes or refuses.
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

/// Where rustls accepts a hello, this reader must accept the hello and read the same name. rustls
/// shows no IP addresses, and keeps the final dot.
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
        vec("[a-z0-9/.]{1,9}", 1..5)
            .prop_map(|names| { alpn(&names.iter().map(String::as_bytes).collect::<Vec<_>>()) }),
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
