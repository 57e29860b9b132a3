//! Certificates that clients and endpoints have sent. None makes a panic, and a whole one has the
//! name and the end that it was made with.

#![no_main]

use std::sync::LazyLock;

use config_sync::table::subject::{MOST_SUBJECT, subject};
use config_sync::table::x509::{common_name, not_after, not_before, public_key};
use libfuzzer_sys::fuzz_target;
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

const NAME: &str = "a client";

/// 2040-01-02.
const END: i64 = 2_208_988_800 + 86_400;

static CERTIFICATE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.not_after = date_time_ymd(2040, 1, 2);
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").der().to_vec()
});

fuzz_target!(|input: &[u8]| {
    check(input);
    // Mutation does not find the way through a certificate by itself: each four bytes change one of
    // its bytes, or cut it off.
    let mut certificate = CERTIFICATE.clone();
    assert_eq!(common_name(&certificate).as_deref(), Some(NAME));
    assert_eq!(subject(&certificate).as_deref(), Some("CN=a client"));
    assert_eq!(not_after(&certificate), Some(END));
    assert!(not_before(&certificate).is_some_and(|start| start < END));
    assert!(public_key(&certificate).is_some());
    for edit in input.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        if edit[3] == 0 {
            certificate.truncate(at.max(1));
        } else if let Some(byte) = certificate.get_mut(at) {
            *byte = edit[2];
        }
    }
    check(&certificate);
});

fn check(certificate: &[u8]) {
    if let Some(name) = common_name(certificate) {
        assert!((1..=256).contains(&name.len()) && !name.contains(char::is_control));
    }
    if let Some(subject) = subject(certificate) {
        assert!((1..=MOST_SUBJECT).contains(&subject.len()));
        assert!(!subject.contains(char::is_control));
    }
    not_after(certificate);
    not_before(certificate);
    if let Some(key) = public_key(certificate) {
        assert!(key.len() < certificate.len());
    }
}
