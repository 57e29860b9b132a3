//! Any bytes at all before TLS: no panic, and no answer taken back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::wire::postgres::{Request, SSL_REQUEST, read};

fuzz_target!(|input: &[u8]| {
    prefixes_agree(input);
    // Mutation seldom finds the one number that all requests have.
    let request = [&SSL_REQUEST[..7], input].concat();
    prefixes_agree(&request);
    let length = [&[0, 0], input.get(..2).unwrap_or(&[0, 8]), &SSL_REQUEST[4..7], input].concat();
    prefixes_agree(&length);
});

/// Every prefix wants more than it has, or has the answer of the whole; but that a request which is
/// to be answered first may have nothing behind it.
fn prefixes_agree(bytes: &[u8]) {
    let whole = read(bytes, false);
    for len in 0..=bytes.len() {
        match read(&bytes[..len], false) {
            Request::NeedMore { at_least } => assert!(at_least > len && at_least <= 8),
            Request::Encrypt | Request::EncryptGss if len < bytes.len() => {
                assert_eq!((len, whole), (8, Request::Early));
            }
            answer => assert_eq!(answer, whole),
        }
        let ended = read(&bytes[..len], true);
        assert!(!matches!(ended, Request::NeedMore { .. }));
    }
}
