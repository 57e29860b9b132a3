//! TLS that ends at the gateway, and TLS to backends, through the release binary: OpenSSL's clients
//! in all moods, curl, and rustls where a client must stop in the middle.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringway_tests::pki::{Issued, Pki};
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Launch, Pattern, Server, SetWhenDropped, connect, echo, free_address,
    limited, program, wait_until,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, RootCertStore, ServerConfig, ServerConnection,
    StreamOwned,
};

/// Certificates in files: `ca.pem`, and `NAME.pem` with `NAME.key`.
struct Files {
    pki: Pki,
    folder: Folder,
}

impl Files {
    fn new() -> Self {
        let (pki, folder) = (Pki::new(), Folder::new());
        folder.write("ca.pem", &pki.ca());
        Self { pki, folder }
    }

    /// Writes a certificate for these names, and returns what stands for it in a configuration.
    fn issue(&self, file: &str, names: &[&str]) -> String {
        self.write(file, &self.pki.issue(names))
    }

    fn write(&self, file: &str, issued: &Issued) -> String {
        self.folder.write(&format!("{file}.key"), &issued.key);
        self.folder.write(&format!("{file}.pem"), &issued.cert);
        let path = |end: &str| self.path(&format!("{file}.{end}"));
        format!("{{ cert = \"{}\", key = \"{}\" }}", path("pem"), path("key"))
    }

    fn path(&self, name: &str) -> String {
        self.folder.file(name).display().to_string()
    }

    /// A client that trusts the authority.
    fn client(&self, address: SocketAddr, name: &str) -> Client {
        Client::new(&self.pki, address, name)
    }

    /// What `openssl s_client` says; it has sent a line, and reads to the end.
    fn openssl(&self, address: SocketAddr, options: &str) -> String {
        let ca = self.path("ca.pem");
        let command = format!(
            "echo hello | openssl s_client -connect {address} -CAfile {ca} -ign_eof {options} 2>&1 \
             || true"
        );
        program("sh", &["-c", &command])
    }
}

struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    fn new(pki: &Pki, address: SocketAddr, name: &str) -> Self {
        Self::with(pki, address, name, None)
    }

    /// `own`: its certificate, if it has one.
    fn with(pki: &Pki, address: SocketAddr, name: &str, own: Option<&Issued>) -> Self {
        let mut roots = RootCertStore::empty();
        let ca = pki.ca();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a CA");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(Issued { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                config.with_client_auth_cert(vec![cert], key).expect("a certificate")
            }
        };
        let name = name.to_owned().try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        Self(StreamOwned::new(connection, connect(address)))
    }

    /// Says that nothing more comes, and still reads.
    fn end(&mut self) {
        self.0.conn.send_close_notify();
        self.0.flush().expect("flushed");
        self.0.sock.shutdown(Shutdown::Write).expect("shut down");
    }

    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).expect("a clean end");
        bytes
    }

    /// Reads until it is this client's turn, or the handshake is over.
    fn hear(&mut self) {
        while self.0.conn.is_handshaking() && !self.0.conn.wants_write() {
            let len = self.0.conn.read_tls(&mut self.0.sock).expect("an answer");
            assert!(len > 0, "it ends within the handshake");
            self.0.conn.process_new_packets().expect("TLS");
        }
    }

    /// What the next flight of the handshake is.
    fn flight(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.0.conn.wants_write() {
            self.0.conn.write_tls(&mut bytes).expect("memory");
        }
        bytes
    }
}

/// A TLS listener that ends TLS, with these keys.
fn terminate(address: SocketAddr, keys: &str) -> String {
    let tls = format!("tls = {{ mode = \"Terminate\", {keys} }}");
    listener("main", "TLS", address, &tls) + &route("main", "main", &[("main", 1)], "")
}

/// Reads to the end, and then says it all back.
fn parrot() -> Server {
    Server::tcp(|mut stream| {
        let mut bytes = Vec::new();
        if stream.read_to_end(&mut bytes).is_ok() {
            let _ = stream.write_all(&bytes);
        }
    })
}

/// Says `tag` once something has come, and ends.
fn tagged(tag: &'static str) -> Server {
    Server::tcp(move |mut stream| {
        let mut bytes = [0; 4096];
        if stream.read(&mut bytes).is_ok_and(|len| len > 0) {
            let _ = stream.write_all(tag.as_bytes());
        }
    })
}

#[test]
fn openssl_gets_the_certificate_of_its_name_in_both_versions() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let (a, b) = (files.issue("a", &["a.example.com"]), files.issue("b", &["*.b.example.com"]));
    let config = terminate(address, &format!("certificates = [{a}, {b}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    for version in ["-tls1_2", "-tls1_3"] {
        for name in ["a.example.com", "x.b.example.com"] {
            let check = "-verify_return_error -verify_hostname";
            let said =
                files.openssl(address, &format!("{version} -servername {name} {check} {name}"));
            assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
            assert!(said.contains("served"), "{said}");
        }
    }
    for line in gateway.closes(4) {
        assert_eq!(line.text("protocol"), Some("TLS"));
        assert_eq!(line.number("bytes_up"), 6);
        assert_eq!(line.number("bytes_down"), 6);
    }
}

/// The newest key exchange and the longest curve that the provider has, of both ends.
#[test]
fn post_quantum_key_exchange_and_p521_certificates() {
    let pki = Pki::with(&rcgen::PKCS_ECDSA_P521_SHA512);
    let folder = Folder::new();
    folder.write("ca.pem", &pki.ca());
    let (files, server, address) = (Files { pki, folder }, tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let keys = format!("certificates = [{a}], client_ca = \"{}\"", files.path("ca.pem"));
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let _gateway = Gateway::start(&config);
    let own = files.pki.issue(&["me.example.com"]);
    let mut client = Client::with(&files.pki, address, "a.example.com", Some(&own));
    client.0.write_all(b"hello").expect("sent");
    client.end();
    assert_eq!(client.rest(), b"served");
    let group = client.0.conn.negotiated_key_exchange_group().expect("a full handshake");
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
}

/// Without a default certificate: FIN or RST, and not an alert; with one, they get that.
#[test]
fn clients_without_a_name_or_with_an_unknown_one() {
    let (files, server) = (Files::new(), tagged("served"));
    let (with, without) = (free_address(), free_address());
    let (a, other) = (files.issue("a", &["a.example.com"]), files.issue("b", &["b.example.com"]));
    let keys = format!("certificates = [{a}]");
    let config = terminate(without, &keys) + &backend("main", [server.address], "");
    let keys = format!("{keys}, default_certificate = {other}");
    let with_default = terminate(with, &keys).replace("main", "with");
    let gateway = Gateway::start(&(config + &with_default.replace("\"with\", w", "\"main\", w")));
    for option in ["-noservername", "-servername other.example.com"] {
        let said = files.openssl(without, &format!("-msg {option}"));
        assert!(said.contains(">>> TLS") && !said.contains("<<< TLS"), "an answer: {said}");
        let said = files.openssl(with, &format!("{option} -verify_hostname b.example.com"));
        assert!(said.contains("Verify return code: 0 (ok)") && said.contains("served"), "{said}");
    }
    let lines = gateway.closes(4);
    let refused = lines.iter().filter(|line| line.text("reason") == Some("no_certificate"));
    assert_eq!(refused.count(), 2);
}

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
    let warned = || gateway.stderr().contains("of main has expired, and so clients");
    wait_until("a warning in the log", warned);
    let expiry = gateway.metrics().series("ringway_crl_expiry_timestamp_seconds");
    assert_eq!(expiry, [1_735_689_600]);
    assert!(!ask() && server.served() == 0);
    files.folder.write("crl.pem", &files.pki.revoke(&[]));
    wait_until("a new list is in force", ask);
}

/// close_notify would say that the endpoint had no more to say, and a FIN that this is all of it.
#[test]
fn a_session_that_the_gateway_ends_is_cut_off() {
    let server = Server::tcp(|mut stream| {
        while stream.write_all(b"more").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let (files, address) = (Files::new(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let listener = terminate(address, &format!("certificates = [{a}]"));
    let limited = "protocol = \"TLS\"\nmax_lifetime = \"1s\"";
    let config = listener.replacen("protocol = \"TLS\"", limited, 1);
    assert!(config.contains("max_lifetime"), "{config}");
    let gateway = Gateway::start(&(config + &backend("main", [server.address], "")));
    let mut client = files.client(address, "a.example.com");
    client.0.write_all(b"hello").expect("sent");
    let mut heard = Vec::new();
    let error = client.0.read_to_end(&mut heard).expect_err("it is not the whole");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(heard.starts_with(b"more"));
    assert_eq!(gateway.closes(1)[0].text("reason"), Some("max_lifetime"));
}

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

#[test]
fn openssl_in_odd_moods() {
    let (files, server, address) = (Files::new(), Server::tcp(echo), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    // A line that is a single letter is a command to openssl, if nothing came with it: each line
    // is typed once that before it has led to so many lines with a word. After the last there is a
    // moment for what must not be heard.
    let typed = |lines: &[(&str, &str, u8)], options: &str| {
        let (ca, out) = (files.path("ca.pem"), files.path("said"));
        let lines = lines.iter().map(|(line, word, count)| {
            let heard = format!("grep -c '{word}' {out}");
            format!("echo {line}; until [ $({heard}) -ge {count} ]; do sleep 0.1; done; ")
        });
        let command = format!(
            ": > {out}; ({}sleep 1) | openssl s_client -connect {address} -CAfile {ca} -servername \
             a.example.com {options} >> {out} 2>&1; cat {out}",
            lines.collect::<String>()
        );
        program("sh", &["-c", &command])
    };
    let keyed = "KEYUPDATE";
    let lines = [
        ("alpha", "alpha", 1),
        ("K", keyed, 1),
        ("beta", "beta", 1),
        ("k", keyed, 2),
        ("gamma", "gamma", 1),
    ];
    let said = typed(&lines, "-tls1_3");
    assert!(said.contains("KEYUPDATE"), "{said}");
    for heard in ["alpha", "beta", "gamma"] {
        assert!(said.contains(heard), "{heard}: {said}");
    }
    assert_eq!(gateway.closes(1)[0].number("bytes_up"), 6 + 5 + 6);
    let lines = [("alpha", "alpha", 1), ("R", "no renegotiation", 1), ("gamma", "", 0)];
    let said = typed(&lines, "-tls1_2");
    assert!(said.contains("RENEGOTIATING") && said.contains("alpha"), "{said}");
    let lines = gateway.closes(2);
    assert!(said.contains("no renegotiation") && !said.contains("gamma"), "{said}");
    assert_eq!(lines[1].text("reason"), Some("client_tls_failed"));
    for version in ["-tls1_2", "-tls1_3"] {
        let count = gateway.log().len();
        let command = format!(
            "head -c 100000 /dev/zero | openssl s_client -quiet -no_ign_eof -connect {address} \
             {version} -servername a.example.com -max_send_frag 700 -split_send_frag 600 \
             2>/dev/null || true"
        );
        program("sh", &["-c", &command]);
        assert_eq!(gateway.closes(count + 1)[count].number("bytes_up"), 100_000, "{version}");
    }
}

#[test]
fn alpn_matches_in_the_servers_order_or_the_client_is_refused() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let keys =
        format!("certificates = [{a}], alpn = [\"h2\", \"http/1.1\"], min_version = \"1.3\"");
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let say =
        |options: &str| files.openssl(address, &format!("-servername a.example.com {options}"));
    assert!(say("-alpn http/1.1,h2").contains("ALPN protocol: h2"));
    assert!(say("-alpn http/1.1").contains("ALPN protocol: http/1.1"));
    assert!(say("").contains("served"), "a client that offers nothing is served");
    let said = say("-alpn postgresql");
    assert!(said.contains("alert") && !said.contains("served"), "{said}");
    let said = say("-tls1_2");
    assert!(said.contains("alert") && !said.contains("served"), "below the least version: {said}");
    // Two workers log, so the lines come in any order.
    let lines = gateway.closes(5);
    let details: BTreeSet<_> = lines.iter().filter_map(|line| line.text("detail")).collect();
    assert_eq!(details, BTreeSet::from(["ALPN: no protocol in common", "no version in common"]));
}

/// `openssl s_server` that serves the file `who`, in which its own name stands.
fn secure_server(files: &Files, name: &str, options: &[&str]) -> (SocketAddr, Daemon) {
    let address = free_address();
    files.issue(name, &[name]);
    files.folder.write("who", name);
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-WWW", "-accept", &address.to_string()]);
    command.args(["-key", &format!("{name}.key"), "-cert", &format!("{name}.pem")]);
    command.args(options).current_dir(files.folder.file(""));
    (address, Daemon::start(address, &mut command))
}

#[test]
fn curl_reaches_plain_and_encrypted_backends_and_none_that_is_not_what_it_should_be() {
    let files = Files::new();
    let (address, plain) = (free_address(), free_address());
    let (server, _daemon) = secure_server(&files, "db.internal", &[]);
    files.issue("me", &["me.example.com"]);
    let ask = ["-Verify", "1", "-verify_return_error", "-CAfile", "ca.pem"];
    let (strict, _strict) = secure_server(&files, "strict.internal", &ask);
    files.folder.write("who", "who");
    let a = files.issue("a", &["a.example.com"]);
    let ca = files.path("ca.pem");
    let tls = |name: &str, more: &str| {
        format!("tls = {{ server_name = \"{name}\", ca = \"{ca}\"{more} }}")
    };
    let mine = format!(", cert = \"{}\", key = \"{}\"", files.path("me.pem"), files.path("me.key"));
    let good = [
        (server, tls("db.internal", "")),
        (server, tls("other.internal", ", subject_alt_names = [\"db.internal\"]")),
        (strict, tls("strict.internal", &mine)),
    ];
    let bad = [
        (server, tls("other.internal", "")),
        (server, tls("db.internal", ", subject_alt_names = [\"other.internal\"]")),
        (server, "tls = { server_name = \"db.internal\" }".to_owned()),
        (strict, tls("strict.internal", "")),
    ];
    let config = |(to, tls): &(SocketAddr, String)| {
        terminate(address, &format!("certificates = [{a}]"))
            + &listener("plain", "TCP", plain, "")
            + &route("plain", "plain", &[("main", 1)], "")
            + &backend("main", [*to], tls)
    };
    let gateway = Gateway::start(&config(&good[0]));
    let port = address.port();
    let resolve = format!("a.example.com:{port}:127.0.0.1");
    let (secure, clear) =
        (format!("https://a.example.com:{port}/who"), format!("http://{plain}/who"));
    let ways = [&["--cacert", &ca, "--resolve", &resolve, &secure][..], &[&clear]];
    let common = ["-sS", "--http1.0", "--noproxy", "*"];
    for case in &good {
        gateway.reload(&config(case));
        for way in ways {
            assert_eq!(program("curl", &[&common, way].concat()), "who", "{case:?}");
        }
    }
    for case in &bad {
        gateway.reload(&config(case));
        for way in ways {
            let done = limited("curl").args(common).args(way).output().expect("curl");
            let hangs = done.status.code().is_none_or(|code| [124, 137].contains(&code));
            assert!(!done.status.success() && !hangs, "{case:?}: {done:?}");
            assert!(done.stdout.is_empty(), "{case:?}: {done:?}");
        }
    }
    let lines = gateway.closes(14);
    let failed = lines.iter().filter(|line| line.text("reason") == Some("endpoint_tls_failed"));
    let details: Vec<_> = failed.filter_map(|line| line.text("detail")).collect();
    // Of TLS 1.3, a client certificate is judged after the client has done its part.
    assert!(details.len() >= 6, "{lines:?}");
    let said = |what: &str| details.iter().filter(|detail| detail.contains(what)).count();
    assert_eq!(said("certificate: unknown issuer"), 2, "{details:?}");
    assert_eq!(said("only valid for DnsName(\"db.internal\")"), 2, "{details:?}");
    assert_eq!(said("certificate: of another name"), 2, "{details:?}");
}

/// Nothing of the client's was sent to it, so the other endpoint serves; and it is tried once.
#[test]
fn an_endpoint_with_a_wrong_certificate_costs_nobody_a_session() {
    let (files, address) = (Files::new(), free_address());
    let (wrong, _wrong) = secure_server(&files, "other.internal", &[]);
    let (right, _right) = secure_server(&files, "db.internal", &[]);
    files.folder.write("who", "who");
    let ca = files.path("ca.pem");
    let tls = format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}");
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [wrong, right], &tls);
    let gateway = Launch::default().one_worker().start(&config);
    let url = format!("http://{address}/who");
    for _ in 0..6 {
        let said = program("curl", &["-sS", "--http1.0", "--noproxy", "*", &url]);
        assert_eq!(said, "who");
    }
    let failures = gateway.metrics().value("ringway_endpoint_connect_failures_total", &[]);
    assert_eq!(failures, 1);
}

#[test]
fn half_close_and_large_transfers_both_ways() {
    let (files, server) = (Files::new(), parrot());
    let (address, relay) = (free_address(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let tls =
        format!("tls = {{ server_name = \"a.example.com\", ca = \"{}\" }}", files.path("ca.pem"));
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "")
        + &listener("relay", "TCP", relay, "")
        + &route("relay", "relay", &[("relay", 1)], "")
        + &backend("relay", [address], &tls);
    let gateway = Gateway::start(&config);
    const BYTES: usize = 24 << 20;
    let sent = Pattern::new(7).take(BYTES);
    let mut client = files.client(address, "a.example.com");
    client.0.write_all(&sent).expect("sent");
    client.end();
    assert!(client.rest() == sent, "what came back is not what was sent");
    // Through the gateway twice: encrypted to itself.
    let mut plain = connect(relay);
    plain.write_all(&sent).expect("sent");
    plain.shutdown(Shutdown::Write).expect("shut down");
    let mut back = Vec::new();
    plain.read_to_end(&mut back).expect("a clean end");
    assert!(back == sent, "what came back is not what was sent");
    for line in gateway.closes(3) {
        assert_eq!(line.text("reason"), Some("client_fin"));
        assert_eq!(line.number("bytes_up"), BYTES as u64);
        assert_eq!(line.number("bytes_down"), BYTES as u64);
    }
}

/// Both sides of a session of which one ends TLS without close_notify, with this listener's key:
/// what the other was given, and how that ended.
fn truncated(from: End, bytes: usize, on_truncation: &str) -> (Vec<u8>, Result<(), ErrorKind>) {
    let (files, address) = (Files::new(), free_address());
    let issued = files.pki.issue(&["a.example.com"]);
    let a = files.write("a", &issued);
    let (heard, hear) = mpsc::channel();
    let server = Server::tcp(move |mut stream| match from {
        End::Client => {
            let _ = heard.send(read_late(&mut stream));
        }
        End::Endpoint => {
            let mut tls = StreamOwned::new(server_connection(&issued), stream);
            tls.write_all(&Pattern::new(3).take(bytes)).expect("sent");
            tls.sock.shutdown(Shutdown::Write).expect("shut down");
            let _ = tls.sock.read(&mut [0]);
        }
    });
    let to = match from {
        End::Client => terminate(address, &format!("certificates = [{a}]")),
        End::Endpoint => {
            listener("main", "TCP", address, "") + &route("main", "main", &[("main", 1)], "")
        }
    };
    let to = to.replacen("address =", &format!("{on_truncation}\naddress ="), 1);
    let tls =
        format!("tls = {{ server_name = \"a.example.com\", ca = \"{}\" }}", files.path("ca.pem"));
    let keys = if let End::Client = from { "" } else { &tls };
    let gateway = Gateway::start(&(to + &backend("main", [server.address], keys)));
    // Dropped with unread session tickets, it would reset its connection.
    let mut kept = None;
    let (got, reason) = match from {
        End::Client => {
            let mut client = files.client(address, "a.example.com");
            client.0.write_all(&Pattern::new(3).take(bytes)).expect("sent");
            client.0.sock.shutdown(Shutdown::Write).expect("shut down");
            kept = Some(client);
            let got = hear.recv_timeout(Duration::from_secs(60)).expect("an end");
            (got, "client_truncated")
        }
        End::Endpoint => (read_late(&mut connect(address)), "endpoint_truncated"),
    };
    let line = gateway.closed_for(reason);
    let given = line.number("bytes_up") + line.number("bytes_down");
    assert_eq!(given, bytes as u64, "the log counts what was delivered");
    drop(kept);
    got
}

#[derive(Clone, Copy)]
enum End {
    Client,
    Endpoint,
}

/// When all that is on its way has had the time to be overtaken.
fn read_late(stream: &mut TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    thread::sleep(Duration::from_millis(300));
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).map(|_| ()).map_err(|error| error.kind());
    (bytes, end)
}

fn server_connection(issued: &Issued) -> ServerConnection {
    let cert = CertificateDer::from_pem_slice(issued.cert.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("a certificate");
    ServerConnection::new(Arc::new(config)).expect("a server")
}

/// Many programs end TLS like this (Python, rsyslog, some HTTPS servers): what they sent before is
/// delivered to the last byte, and the end is what `on_truncation` says.
#[test]
fn an_end_without_close_notify_comes_after_the_last_byte() {
    let sent = Pattern::new(3).take(3_000_000);
    for from in [End::Client, End::Endpoint] {
        for (key, end) in [
            ("", Err(ErrorKind::ConnectionReset)),
            ("on_truncation = \"reset\"", Err(ErrorKind::ConnectionReset)),
            ("on_truncation = \"fin\"", Ok(())),
        ] {
            for bytes in [6, sent.len()] {
                let (got, was) = truncated(from, bytes, key);
                assert!(got == sent[..bytes], "{} of {bytes} bytes, {key}", got.len());
                assert_eq!(was, end, "{key}");
            }
        }
    }
}

/// Says something, and hears it again.
fn talk(mut client: Client) {
    client.0.write_all(b"hello").expect("sent");
    client.end();
    assert_eq!(client.rest(), b"hello");
}

fn leave(stream: TcpStream, reset: bool) {
    if reset {
        let socket = socket2::SockRef::from(&stream);
        socket.set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

/// What `stop` begins and does not end, by FIN or by reset, costs the gateway nothing afterwards.
fn leaves_nothing_behind(gateway: &Gateway, serve: impl Fn(), stop: impl Fn(bool)) {
    let held = || {
        let metrics = gateway.metrics();
        let value = |name| usize::try_from(metrics.value(name, &[])).expect("few");
        [value("ringway_session_slots_used"), value("ringway_pipes_used"), files_of(gateway)]
    };
    let free = || gateway.metrics().value("ringway_receive_buffers_free", &[]);
    serve();
    wait_until("an idle gateway", || held()[0] == 0);
    let (before, buffers) = (held(), free());
    stop(false);
    stop(true);
    // Connections of those who ask for metrics come and go too.
    let given_back =
        || held().iter().zip(before).all(|(now, before)| *now <= before) && free() >= buffers;
    wait_until("every session, pipe, file and receive buffer to be given back", given_back);
    serve();
}

/// Open files of a process.
fn files_of(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("its files").count()
}

#[test]
fn handshakes_that_stop_at_any_step_leave_nothing_behind() {
    let (files, server, address) = (Files::new(), parrot(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let serve = || talk(files.client(address, "a.example.com"));
    let stop = |reset| {
        for step in 0..6 {
            let mut client = files.client(address, "a.example.com");
            let hello = client.flight();
            let cut = [0, 1, hello.len() / 2, hello.len() - 1].get(step).copied();
            client.0.sock.write_all(&hello[..cut.unwrap_or(hello.len())]).expect("sent");
            if cut.is_none() {
                client.hear();
                let finished = client.flight();
                let some = if step == 4 { 0 } else { finished.len() / 2 };
                client.0.sock.write_all(&finished[..some]).expect("sent");
            }
            leave(client.0.sock, reset);
        }
    };
    leaves_nothing_behind(&gateway, serve, stop);
}

#[test]
fn client_certificates_that_stop_in_the_middle_leave_nothing_behind() {
    let (files, server, address) = (Files::new(), parrot(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let own = files.pki.issue(&["me.example.com"]);
    let keys = format!("certificates = [{a}], client_ca = \"{}\"", files.path("ca.pem"));
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let client = || Client::with(&files.pki, address, "a.example.com", Some(&own));
    let stop = |reset| {
        for eighths in 0..8 {
            let mut client = client();
            let hello = client.flight();
            client.0.sock.write_all(&hello).expect("sent");
            client.hear();
            let shown = client.flight();
            client.0.sock.write_all(&shown[..shown.len() * eighths / 8]).expect("sent");
            leave(client.0.sock, reset);
        }
    };
    leaves_nothing_behind(&gateway, || talk(client()), stop);
}

#[test]
fn what_stops_before_tls_leaves_nothing_behind() {
    const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
    const REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let (files, server, address) = (Files::new(), parrot(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let before = "accept_proxy = { from = [\"127.0.0.1\"] }\nstarttls = \"postgres\"\ntls =";
    let config = terminate(address, &format!("certificates = [{a}]")).replace("tls =", before)
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let begun = || {
        let mut client = files.client(address, "a.example.com");
        client.0.sock.write_all(&[HEADER, REQUEST].concat()).expect("sent");
        let mut answer = [0];
        client.0.sock.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"S");
        client
    };
    let stop = |reset| {
        let all = [HEADER, REQUEST].concat();
        for cut in 0..=all.len() {
            let mut stream = connect(address);
            stream.write_all(&all[..cut]).expect("sent");
            leave(stream, reset);
        }
        for cut in [0, 1, 50] {
            let mut client = begun();
            let hello = client.flight();
            client.0.sock.write_all(&hello[..cut]).expect("sent");
            leave(client.0.sock, reset);
        }
    };
    leaves_nothing_behind(&gateway, || talk(begun()), stop);
}

/// Endpoints that leave at once, after the hello, or in the middle of their answer; and clients
/// that leave one that says nothing.
#[test]
fn handshakes_with_endpoints_that_stop_leave_nothing_behind() {
    let (files, good) = (Files::new(), parrot());
    let (plain, secret) = (free_address(), free_address());
    // Not how many were accepted: the habit of each is to be settled before the next one comes.
    let met = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&met);
    let bad = Server::tcp(move |mut stream| {
        let mut hello = [0; 4096];
        let habit = count.fetch_add(1, Ordering::SeqCst) % 4;
        if habit > 0 && stream.read(&mut hello).is_ok() && habit == 2 {
            let _ = stream.write_all(b"\x16\x03\x03\x00\x50\x02half of it");
        }
        if habit == 3 {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let ca = files.path("ca.pem");
    let tls = format!("tls = {{ server_name = \"a.example.com\", ca = \"{ca}\" }}");
    let config = forward("TCP", plain, [good.address], "")
        + &listener("secret", "TCP", secret, "")
        + &route("secret", "secret", &[("secret", 1)], "")
        + &backend("secret", [bad.address], &tls);
    let gateway = Gateway::start(&config);
    let serve = || {
        let back = ringway_tests::real::exchange(plain, b"hello").expect("an answer");
        assert_eq!(back, b"hello");
    };
    let stop = |reset| {
        let before = met.load(Ordering::SeqCst);
        for number in 1..=8 {
            let mut stream = connect(secret);
            // An endpoint that leaves at once may have ended the session by now.
            let _ = stream.write_all(b"hello");
            wait_until("the endpoint was reached", || {
                met.load(Ordering::SeqCst) == before + number
            });
            if number % 4 > 0 {
                assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "an answer");
            }
            leave(stream, reset);
        }
    };
    leaves_nothing_behind(&gateway, serve, stop);
    wait_until("twelve failures in the access log", || {
        let lines = gateway.log();
        let reasons = lines.iter().filter_map(|line| line.text("reason"));
        reasons.filter(|reason| *reason == "endpoint_tls_failed").count() >= 12
    });
}

#[test]
fn a_handshake_that_takes_too_long_is_closed() {
    let (files, server, address) = (Files::new(), parrot(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let keys = format!("certificates = [{a}]");
    let config = terminate(address, &keys).replace("tls =", "hello_timeout = \"1s\"\ntls =")
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let mut client = files.client(address, "a.example.com");
    let hello = client.flight();
    client.0.sock.write_all(&hello).expect("sent");
    // The gateway's part of the handshake, and nothing after it.
    let mut heard = Vec::new();
    let end = client.0.sock.read_to_end(&mut heard);
    assert!(!heard.is_empty(), "{end:?}");
    gateway.closed_for("handshake_timeout");
    assert_eq!(server.served(), 0);
}

#[test]
fn an_expired_certificate_is_warned_of() {
    let (files, server, address) = (Files::new(), parrot(), free_address());
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
    let (files, server, address) = (Files::new(), parrot(), free_address());
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

#[test]
fn a_hello_cut_at_every_byte_is_the_same_hello() {
    let (files, server, address) = (Files::new(), parrot(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let len = files.client(address, "a.example.com").flight().len();
    for cut in 1..len {
        let mut client = files.client(address, "a.example.com");
        let hello = client.flight();
        let (front, back) = hello.split_at(cut.min(hello.len()));
        client.0.sock.set_nodelay(true).expect("no delay");
        client.0.sock.write_all(front).expect("sent");
        thread::yield_now();
        client.0.sock.write_all(back).expect("sent");
        client.0.write_all(b"hello").expect("sent");
        client.end();
        assert_eq!(client.rest(), b"hello", "cut at {cut}");
    }
    // The first client has only shown how long its hello is.
    let lines = gateway.closes(len);
    let whole = lines.iter().filter(|line| line.text("reason") == Some("client_fin"));
    assert_eq!(whole.count(), len - 1);
}

/// A listener that passes TLS through and one that ends it, on one address.
#[test]
fn both_modes_share_an_address() {
    let (files, server, address) = (Files::new(), tagged("ended"), free_address());
    let (inner, _daemon) = secure_server(&files, "pass.example.com", &[]);
    let a = files.issue("a", &["end.example.com"]);
    let tls = format!(
        "hostname = \"end.example.com\"\ntls = {{ mode = \"Terminate\", certificates = [{a}] }}"
    );
    let pass = "hostname = \"pass.example.com\"";
    let config = listener("end", "TLS", address, &tls)
        + &listener("pass", "TLS", address, pass)
        + &route("end", "end", &[("end", 1)], "")
        + &route("pass", "pass", &[("pass", 1)], "")
        + &backend("end", [server.address], "")
        + &backend("pass", [inner], "");
    let _gateway = Gateway::start(&config);
    let said = files.openssl(address, "-servername end.example.com");
    assert!(said.contains("ended"), "{said}");
    let said = files.openssl(
        address,
        "-servername pass.example.com -verify_hostname pass.example.com -brief -no_ign_eof",
    );
    assert!(said.contains("Verification: OK"), "{said}");
    let said = files.openssl(address, "-msg -servername none.example.com");
    assert!(!said.contains("<<< TLS"), "{said}");
}

/// TCP and UDP beside it know nothing of all this.
#[test]
fn a_plain_listener_beside_it_stays_plain() {
    let (files, server) = (Files::new(), parrot());
    let (address, plain) = (free_address(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let tls = terminate(address, &format!("certificates = [{a}]")).replace("main", "tls");
    let config =
        tls.replace("\"tls\", w", "\"main\", w") + &forward("TCP", plain, [server.address], "");
    let _gateway = Gateway::start(&config);
    let back = ringway_tests::real::exchange(plain, b"as it is").expect("an answer");
    assert_eq!(back, b"as it is");
}
