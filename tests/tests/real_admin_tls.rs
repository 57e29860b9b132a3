//! The admin API over TLS: who may read, who may change things, and who holds it up.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use ringway_tests::pki::{Issued, Pki};
use ringway_tests::real::config::forward;
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, connect, echo, free_address, now, run_verb, wait_until,
    was_reset,
};

/// Files of a gateway and its clients.
struct Files {
    folder: Folder,
    pki: Pki,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: Folder::new(), pki: Pki::new() };
        files.folder.write("ca.pem", &files.pki.ca());
        files.keep("gateway", &files.pki.issue(&["127.0.0.1", "localhost"]));
        files
    }

    fn keep(&self, name: &str, issued: &Issued) {
        self.folder.write(&format!("{name}.pem"), &issued.cert);
        self.folder.write(&format!("{name}.key"), &issued.key);
    }

    fn path(&self, name: &str) -> String {
        self.folder.file(name).display().to_string()
    }

    fn start(&self, config: &str, more: &str) -> Gateway {
        let (cert, key) = (self.path("gateway.pem"), self.path("gateway.key"));
        let keys = format!("cert = {cert:?}, key = {key:?}{more}");
        Launch::default().tls(&keys).start(config)
    }

    /// Runs the verb over TLS. True, if the verb succeeded, and what it has said.
    fn ask(&self, gateway: &Gateway, words: &[&str], client: Option<&str>) -> (bool, String) {
        let ca = self.path("ca.pem");
        let mut words = [words, &["--admin-ca", &ca]].concat();
        let files =
            client.map(|name| ["pem", "key"].map(|kind| self.path(&format!("{name}.{kind}"))));
        if let Some([cert, key]) = &files {
            words.extend(["--admin-cert", cert, "--admin-key", key]);
        }
        let output = run_verb(&words, &format!("https://{}", gateway.admin));
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

#[test]
fn everybody_reads_and_a_certificate_that_client_ca_has_signed_changes_things() {
    let (files, others) = (Files::new(), Pki::new());
    files.keep("operator", &files.pki.issue(&["operator"]));
    files.keep("expired", &files.pki.issue_until(&["operator"], 2024));
    files.keep("stranger", &others.issue(&["operator"]));
    files.folder.write("other-ca.pem", &others.ca());
    let (server, address) = (Server::tcp(echo), free_address());
    let config = forward("TCP", address, [server.address], "");
    let gateway = files.start(&config, &format!(", client_ca = {:?}", files.path("ca.pem")));
    let mut stream = connect(address);
    stream.write_all(b"x").expect("sent");
    stream.read_exact(&mut [0]).expect("an echo");
    let kill = ["kill", "--listener", "main"];

    let (done, said) = files.ask(&gateway, &["status"], None);
    assert!(done && said.contains("ready"), "{said}");
    let (done, said) = files.ask(&gateway, &kill, None);
    assert!(!done && said.contains("a change needs a certificate"), "{said}");
    for client in ["expired", "stranger"] {
        for words in [&["status"][..], &kill] {
            let (done, said) = files.ask(&gateway, words, Some(client));
            assert!(!done && !said.contains("ready"), "{client} {words:?}: {said}");
        }
    }
    stream.write_all(b"y").expect("it lives");
    stream.read_exact(&mut [0]).expect("it lives");
    let (done, said) = files.ask(&gateway, &kill, Some("operator"));
    assert!(done && said == "1 closed\n", "{said}");
    assert!(was_reset(&mut stream));

    // The client does not take another gateway for this one, and does not ask without TLS.
    let https = format!("https://{}", gateway.admin);
    let wrong = run_verb(&["status", "--admin-ca", &files.path("other-ca.pem")], &https);
    assert!(!wrong.status.success() && wrong.stdout.is_empty());
    let none = run_verb(&["status"], &https);
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(said.contains("https needs --admin-ca FILE"), "{said}");
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("do not agree on TLS") && said.contains("--admin-ca FILE"), "{said}");
    let plain = run_verb(&["status"], &format!("http://{}", gateway.admin));
    let said = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(!plain.status.success() && said.contains(&format!("--admin {https}")), "{said}");
    // And the other way round.
    let bare = Gateway::start(&config.replace(&address.to_string(), &free_address().to_string()));
    let (done, said) = files.ask(&bare, &["status"], None);
    assert!(!done && said.contains(&format!("--admin http://{}", bare.admin)), "{said}");
}

/// The certificate is told of like those of listeners.
#[test]
fn the_end_of_the_certificate_is_told() {
    let files = Files::new();
    files.keep("gateway", &files.pki.issue_until(&["127.0.0.1"], 2024));
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let gateway = files.start(&config, "");
    let rows = gateway.asks(&["certificates"]);
    let (row, file) = (&rows[0], files.path("gateway.pem"));
    assert_eq!((&row["of"], &row["source"]), (&"admin API".into(), &file.clone().into()), "{row}");
    assert!(row["warning"].as_str().is_some_and(|said| said.contains("expired")), "{row}");
    assert_eq!(gateway.asks(&["status"])["certificates_ending"], 1);
    gateway.says("of the admin API has expired");
    // The file is read again.
    files.keep("gateway", &files.pki.issue(&["127.0.0.1"]));
    wait_until("it is renewed", || gateway.asks(&["status"])["certificates_ending"] == 0);
    let (done, _) = files.ask(&gateway, &["status"], None);
    assert!(done);
}

#[test]
fn a_token_lets_change_things_over_tls_too() {
    let files = Files::new();
    let token = files.folder.write("token", "0123456789abcdef").display().to_string();
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let gateway = files.start(&config, &format!(", token_file = {token:?}"));
    let drain = server.address.to_string();
    let (done, said) = files.ask(&gateway, &["drain", &drain], None);
    assert!(!done && said.contains("token"), "{said}");
    let (done, said) = files.ask(&gateway, &["drain", &drain, "--token-file", &token], None);
    assert!(done, "{said}");
}

#[test]
fn stalled_handshakes_hold_nobody_up_and_end() {
    let files = Files::new();
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let gateway = files.start(&config, "");
    // More than the places of the address. Half of them send the beginning of a record.
    let mut stalled: Vec<_> = (0..300)
        .map(|number| {
            let mut stream = TcpStream::connect(gateway.admin).expect("it listens");
            if number % 2 == 0 {
                stream.write_all(b"\x16\x03\x01\x02").expect("sent");
            }
            stream
        })
        .collect();
    let began = now();
    let (done, said) = files.ask(&gateway, &["status"], None);
    assert!(done, "{said}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for stream in &mut stalled {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let ended = !matches!(stream.read(&mut [0; 16]), Err(error)
            if matches!(error.kind(), std::io::ErrorKind::WouldBlock));
        assert!(ended, "a stalled handshake has its time, too");
    }
}

#[test]
fn a_renewed_certificate_is_taken_up() {
    let files = Files::new();
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let gateway = files.start(&config, "");
    let (done, said) = files.ask(&gateway, &["status"], None);
    assert!(done, "{said}");
    files.folder.write("gateway.pem", "nothing");
    gateway.says("no certificate is in it");
    let (done, said) = files.ask(&gateway, &["status"], None);
    assert!(done, "what was read before stays: {said}");
    let others = Pki::new();
    files.folder.write("ca.pem", &others.ca());
    files.keep("gateway", &others.issue(&["127.0.0.1"]));
    wait_until("the new certificate", || files.ask(&gateway, &["status"], None).0);
}
