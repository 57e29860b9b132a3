//! Any bytes at all: no panic, no answer taken back, and the name that rustls sees.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use ringway::wire::client_hello::{Hello, read};

/// Every prefix is read, so time grows with the square; nothing new is found in longer inputs.
const LONGEST: usize = 400;

fuzz_target!(|input: &[u8]| {
    let input = &input[..input.len().min(LONGEST)];
    prefixes_agree(input);
    rustls_agrees(input);
    // Mutation seldom gets the outer lengths right, so the input is also taken as the extensions of
    // a hello that is right so far, in records as long as its first byte.
    if let Some((size, extensions)) = input.split_first() {
        let hello = wrap(extensions, usize::from(*size).max(1));
        prefixes_agree(&hello);
        rustls_agrees(&hello);
        assert_eq!(read(&hello, true), read(&wrap(extensions, 1 << 14), true));
    }
});

/// Every prefix wants more than it has, and never asks for more than the answer took; or it has the
/// answer of the whole.
fn prefixes_agree(bytes: &[u8]) {
    let whole = read(bytes, false);
    let mut bound = 0;
    for len in 0..=bytes.len() {
        match read(&bytes[..len], false) {
            Hello::NeedMore { at_least } => {
                assert!(at_least > len && at_least >= bound);
                bound = at_least;
            }
            answer => {
                assert_eq!(answer, whole);
                assert!(!matches!(answer, Hello::Known(_)) || len >= bound);
                // Who does not speak TLS is known within the first six bytes.
                let begins = |expected: &[u8], at: usize| {
                    bytes[..len].iter().skip(at).zip(expected).all(|(byte, wanted)| byte == wanted)
                };
                let is_hello = begins(&[22, 3], 0) && begins(&[1], 5);
                assert!(!matches!(answer, Hello::NotTls(_)) || (len <= 6 && !is_hello));
                return;
            }
        }
    }
    assert!(matches!(read(bytes, true), Hello::Invalid { .. }));
}

/// Where rustls accepts there is an answer, and the same name and protocols. It shows no IP
/// addresses, and keeps a final dot.
fn rustls_agrees(bytes: &[u8]) {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = bytes;
    let (theirs, offered) = loop {
        if rest.is_empty() || acceptor.read_tls(&mut rest).is_err() {
            return;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let offered = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec);
                let offered: Vec<_> = offered.collect();
                break (hello.server_name().map(str::to_owned), offered);
            }
            Err(_) => return,
        }
    };
    let Hello::Known(hello) = read(bytes, false) else {
        panic!("rustls accepts: {:?}", read(bytes, false));
    };
    let alpn: Vec<_> = hello.alpn.iter().map(<[u8]>::to_vec).collect();
    let fits = offered.iter().map(|name| name.len() + 1).sum::<usize>() <= 256;
    assert!(offered.starts_with(&alpn) && (alpn.len() == offered.len() || !fits));
    let ours = hello.server_name.as_ref().map(|name| name.as_str());
    match theirs {
        Some(theirs) => assert_eq!(ours, Some(theirs.trim_end_matches('.'))),
        None => assert!(ours.is_none_or(|name| name.parse::<IpAddr>().is_ok())),
    }
}

fn wrap(extensions: &[u8], record: usize) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 2, 0x13, 0x01, 1, 0]);
    // What rustls asks of every hello: supported groups, signature algorithms.
    let required = [0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3];
    let len = u16::try_from(extensions.len() + required.len()).unwrap_or(u16::MAX);
    body.extend(len.to_be_bytes());
    body.extend(required);
    body.extend(extensions);
    let len = u32::try_from(body.len()).expect("an input below 4 GiB").to_be_bytes();
    let message = [&[1], &len[1..], &body].concat();
    let mut out = Vec::new();
    for piece in message.chunks(record) {
        out.extend([22, 3, 1]);
        out.extend(u16::try_from(piece.len()).expect("a record's size").to_be_bytes());
        out.extend(piece);
    }
    out
}
