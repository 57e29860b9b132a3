//! Certificates of clients: missing, wrong, revoked, expired.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringway_tests::pki::Pki;
use ringway_tests::real::config::backend;
use ringway_tests::real::{Gateway, LogLine, free_address, program, wait_until};

use crate::{Files, tagged, terminate};

#[test]
fn client_certificates_missing_wrong_right_and_revoked_by_absence_of_trust() {
    let (files, server) = (Files::new(), tagged("served"));
    let (required, optional) = (free_address(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    files.issue("me", &["me.example.com"]);
    files.write("stranger", &Pki::new().issue(&["me.example.com"]));
    let keys = format!("certificates = [{a}], client_ca = \"{}\"", files.path("ca.pem"));
    let optional_keys = format!("{keys}, client_auth = \"optional\"");
    let main = terminate(required, &keys) + &backend("main", [server.address], "");
    let other = terminate(optional, &optional_keys).replace("main", "other");
    let gateway = Gateway::start(&(main + &other.replace("\"other\", w", "\"main\", w")));
    let shown = |who: &str| {
        format!(
            "-cert {} -key {}",
            files.path(&format!("{who}.pem")),
            files.path(&format!("{who}.key"))
        )
    };
    for (address, who, served) in [
        (required, String::new(), false),
        (required, shown("stranger"), false),
        (required, shown("me"), true),
        (optional, String::new(), true),
        (optional, shown("stranger"), false),
        (optional, shown("me"), true),
    ] {
        for version in ["-tls1_2", "-tls1_3"] {
            let said =
                files.openssl(address, &format!("{version} -servername a.example.com {who}"));
            assert_eq!(said.contains("served"), served, "{version} {who}: {said}");
            assert_eq!(said.contains("alert"), !served, "{version} {who}: {said}");
        }
    }
    let lines = gateway.closes(12);
    let failed = lines.iter().filter(|line| line.text("reason") == Some("client_tls_failed"));
    let mut details: Vec<_> = failed.map(|line| line.text("detail")).collect();
    details.sort_unstable();
    // The stranger's authority has the same name, and another key.
    let wrong = [Some("certificate: its signature is not its issuer's"); 4];
    assert_eq!(details, [&wrong[..], &[Some("no certificate was sent"); 2]].concat());
    let pem = files.path("me.pem");
    let said = program("openssl", &["x509", "-in", &pem, "-noout", "-fingerprint", "-sha256"]);
    let fingerprint = said.rsplit('=').next().expect("a value").trim().replace(':', "");
    let of = |who: Option<&str>, version: &str| {
        let is_its = |line: &&LogLine| {
            line.text("fingerprint").map(str::to_ascii_uppercase).as_deref() == who
                && line.text("client_subject") == who.map(|_| "CN=rcgen self signed cert")
                && line.text("tls_version") == Some(version)
                && line.text("tls_cipher").is_some_and(|cipher| cipher.contains("AES"))
                && line.text("reason") != Some("client_tls_failed")
        };
        lines.iter().filter(is_its).count()
    };
    for version in ["TLSv1.2", "TLSv1.3"] {
        assert_eq!((of(Some(&fingerprint), version), of(None, version)), (2, 1), "{lines:?}");
    }
    assert_eq!(server.served(), 6, "no endpoint hears of a client that may not come in");
}

/// A list that is renewed is in force at once, and ends the tickets that were given under the last.
#[test]
fn revoked_client_certificates_are_refused() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    for (who, serial) in [("me", 1), ("ex", 2)] {
        files.write(who, &files.pki.issue_numbered(&["me.example.com"], serial));
    }
    files.folder.write("crl.pem", &files.pki.revoke(&[2]));
    let (ca, crl) = (files.path("ca.pem"), files.path("crl.pem"));
    let keys = format!("certificates = [{a}], client_ca = \"{ca}\", client_crl = \"{crl}\"");
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let session = files.path("session");
    let ask = |who: &str, more: &str| {
        let (cert, key) = (files.path(&format!("{who}.pem")), files.path(&format!("{who}.key")));
        let said = files
            .openssl(address, &format!("-servername a.example.com -cert {cert} -key {key} {more}"));
        assert_eq!(said.contains("alert"), !said.contains("served"), "{said}");
        said.contains("served")
    };
    assert!(ask("me", &format!("-sess_out {session}")));
    assert!(ask("me", &format!("-sess_in {session}")));
    assert!(!ask("ex", ""));
    files.folder.write("crl.pem", &files.pki.revoke(&[1, 2]));
    gateway.reload(&format!("{config}\n# renewed"));
    assert!(!ask("me", &format!("-sess_in {session}")));
    assert_eq!(server.served(), 2);
}

/// Nor do clients come in by an old session after its certificate has ended.
#[test]
fn a_session_does_not_outlive_its_certificate() {
    let ends = [4, 16].into_iter().any(a_session_ends_with_its_certificate);
    assert!(ends, "four handshakes take longer than a certificate lasts");
}

/// False if the machine is so slow that the certificate ends, after so many seconds, before there
/// is something to see.
#[expect(clippy::disallowed_methods, reason = "certificates end by the time of day")]
fn a_session_ends_with_its_certificate(lifetime: u64) -> bool {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let end = now + lifetime;
    let is_after = |at| SystemTime::now() >= UNIX_EPOCH + Duration::from_secs(at);
    files.write("me", &files.pki.issue_up_to(&["me.example.com"], end));
    let keys = format!("certificates = [{a}], client_ca = \"{}\"", files.path("ca.pem"));
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let (cert, key) = (files.path("me.pem"), files.path("me.key"));
    let ask = |version: &str, more: &str| {
        let own = format!("-servername a.example.com -cert {cert} -key {key}");
        files.openssl(address, &format!("{version} {own} {more}"))
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let session = files.path(version);
        let first = ask(version, &format!("-sess_out {session}"));
        let second = ask(version, &format!("-sess_in {session}"));
        if is_after(end) {
            return false;
        }
        assert!(first.contains("served"), "{first}");
        assert!(second.contains("Reused, TLSv1") && second.contains("served"), "{second}");
    }
    // A worker knows the time of day to a second.
    wait_until("the certificate's end", || is_after(end + 2));
    for version in ["-tls1_2", "-tls1_3"] {
        let said = ask(version, &format!("-sess_in {}", files.path(version)));
        assert!(!said.contains("served"), "{said}");
    }
    assert_eq!(server.served(), 4);
    for line in &gateway.closes(6)[4..] {
        assert_eq!(line.text("reason"), Some("client_tls_failed"));
    }
    true
}

#[test]
fn an_expired_list_of_revoked_certificates_admits_nobody_of_its_issuer() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    files.issue("me", &["me.example.com"]);
    files.folder.write("crl.pem", &files.pki.revoke_until(&[], 2025));
    let (ca, crl) = (files.path("ca.pem"), files.path("crl.pem"));
    let keys = format!("certificates = [{a}], client_ca = \"{ca}\", client_crl = \"{crl}\"");
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let (cert, key) = (files.path("me.pem"), files.path("me.key"));
    let ask = || {
        let own = format!("-servername a.example.com -cert {cert} -key {key}");
        files.openssl(address, &own).contains("served")
    };
    let warned = || gateway.stderr().contains("of main has expired, so clients");
    wait_until("a warning in the log", warned);
    let expiry = gateway.metrics().series("ringway_crl_expiry_timestamp_seconds");
    assert_eq!(expiry, [1_735_689_600]);
    assert!(!ask() && server.served() == 0);
    files.folder.write("crl.pem", &files.pki.revoke(&[]));
    wait_until("a new list is in force", ask);
}
