//! Certificates of listeners: renewed, expiring; sessions that are resumed.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ringway_tests::real::config::backend;
use ringway_tests::real::{
    Gateway, Launch, Server, SetWhenDropped, free_address, parrot, wait_until,
};

use crate::{Files, tagged, terminate};

#[test]
fn without_session_tickets_every_handshake_is_a_full_one() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}], session_tickets = false"))
        + &backend("main", [server.address], "");
    let _gateway = Gateway::start(&config);
    for version in ["-tls1_2", "-tls1_3"] {
        let said = files.openssl(address, &format!("{version} -servername a.example.com"));
        assert!(said.contains("New, TLSv1") && said.contains("served"), "{said}");
        assert!(!said.contains("TLS session ticket:"), "{said}");
    }
}

#[test]
fn sessions_are_resumed_on_every_worker_and_across_a_renewed_certificate() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let session = files.path("session");
    for version in ["-tls1_2", "-tls1_3"] {
        let options = format!("{version} -servername a.example.com");
        let said = files.openssl(address, &format!("{options} -sess_out {session}"));
        assert!(said.contains("New, TLSv1"), "{said}");
        for _ in 0..4 {
            let said = files.openssl(address, &format!("{options} -sess_in {session}"));
            assert!(said.contains("Reused, TLSv1") && said.contains("served"), "{said}");
        }
        files.issue("a", &["a.example.com"]);
        gateway.reload(&format!("{config}\n# {version}"));
        let said = files.openssl(address, &format!("{options} -sess_in {session}"));
        assert!(said.contains("Reused, TLSv1"), "{said}");
    }
}

/// The keys of tickets go along in an upgrade.
#[test]
fn sessions_are_resumed_after_upgrades() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let session = files.path("session");
    for version in ["-tls1_2", "-tls1_3"] {
        let options = format!("{version} -servername a.example.com");
        let said = files.openssl(address, &format!("{options} -sess_out {session}"));
        assert!(said.contains("New, TLSv1"), "{said}");
        for _ in 0..2 {
            gateway.asks(&["upgrade"]);
            wait_until("the old process ends", || gateway.line().len() == 1);
            for _ in 0..4 {
                let said = files.openssl(address, &format!("{options} -sess_in {session}"));
                assert!(said.contains("Reused, TLSv1") && said.contains("served"), "{said}");
            }
        }
    }
}

#[test]
fn an_expired_certificate_is_warned_of() {
    let (files, server, address) = (Files::new(), Server::tcp(parrot), free_address());
    let old = files.write("old", &files.pki.issue_until(&["a.example.com"], 2001));
    let config = terminate(address, &format!("certificates = [{old}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let warned = || gateway.stderr().contains("of main has expired: renew it");
    wait_until("a warning in the log", warned);
    let expiry = gateway.metrics().series("ringway_certificate_expiry_timestamp_seconds");
    assert_eq!(expiry, [978_307_200]);
}

#[test]
fn certificates_are_renewed_under_load_without_a_failure() {
    let (files, server, address) = (Files::new(), Server::tcp(parrot), free_address());
    let a = files.write("a", &files.pki.issue_until(&["a.example.com"], 3000));
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let expiry = || gateway.metrics().series("ringway_certificate_expiry_timestamp_seconds");
    let (first, stop) = (expiry(), AtomicBool::new(false));
    assert_eq!(first.len(), 1);
    let mut old = files.client(address, "a.example.com");
    old.0.write_all(b"old").expect("sent");
    thread::scope(|scope| {
        let _stop = SetWhenDropped(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut client = files.client(address, "a.example.com");
                    client.0.write_all(b"hello").expect("sent");
                    client.end();
                    assert_eq!(client.rest(), b"hello");
                }
            });
        }
        for year in 3001..3006 {
            let before = expiry();
            // The key first: in between, the two do not fit, which is refused and forgotten.
            files.write("a", &files.pki.issue_until(&["a.example.com"], year));
            wait_until("the new certificate", || expiry() != before);
        }
    });
    old.0.write_all(b" session").expect("sent");
    old.end();
    assert_eq!(old.rest(), b"old session");
    assert!(expiry() > first);
}
