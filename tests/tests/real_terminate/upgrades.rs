//! Sessions whose TLS ends at the gateway do not move in an upgrade: they have `drain_timeout` to
//! end in the process before.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use ringway_tests::real::config::backend;
use ringway_tests::real::{Gateway, Launch, Server, echo, free_address, now, wait_for, wait_until};

use crate::{Client, Files, terminate};

/// A gateway after an upgrade, and a client on each side of it.
struct Setup {
    gateway: Gateway,
    /// The process before has its session.
    before: Client,
    /// The new process has its session.
    after: Client,
    _server: Server,
    _files: Files,
}

impl Setup {
    fn upgraded(drain_timeout: &str) -> Self {
        let (files, server, address) = (Files::new(), Server::tcp(echo), free_address());
        let a = files.issue("a", &["a.example.com"]);
        let config = format!("drain_timeout = \"{drain_timeout}\"\n")
            + &terminate(address, &format!("certificates = [{a}]"))
            + &backend("main", [server.address], "");
        let gateway = Launch::default().socket().start(&config);
        let mut before = files.client(address, "a.example.com");
        ask(&mut before, b"before");
        let answer = gateway.asks(&["upgrade"]);
        assert_eq!(answer["generation"], 2, "{answer}");
        let mut after = files.client(address, "a.example.com");
        ask(&mut after, b"new");
        ask(&mut before, b"after");
        let setup = Self { gateway, before, after, _server: server, _files: files };
        wait_until("the status tells of the session", || setup.draining() == [1, 1]);
        assert_eq!(setup.status("taken_over"), 0, "it has not moved");
        setup
    }

    fn status(&self, name: &str) -> u64 {
        self.gateway.asks(&["status"])["upgrade"][name].as_u64().expect("a number")
    }

    /// Processes before this one, and the sessions in them.
    fn draining(&self) -> [u64; 2] {
        ["processes", "sessions"].map(|name| self.status(name))
    }

    /// The process before ends well, and only the new one is left. Its client is served.
    fn has_ended(&mut self) {
        let status = wait_for("the process before ends", || self.gateway.ended());
        assert!(status.success(), "{status}");
        assert_eq!(self.gateway.line().len(), 1);
        wait_until("the status tells of the end", || self.draining() == [0, 0]);
        ask(&mut self.after, b"still");
    }
}

fn ask(client: &mut Client, word: &[u8]) {
    client.0.write_all(word).expect("the session lives");
    let mut answer = vec![0; word.len()];
    client.0.read_exact(&mut answer).expect("the session lives");
    assert_eq!(answer, word);
}

/// A session that does not end has all of `drain_timeout`, in which it goes on, and is closed then.
#[test]
fn a_session_has_the_drain_timeout_after_an_upgrade() {
    let began = now();
    let mut setup = Setup::upgraded("3s");
    while began.elapsed() < Duration::from_secs(2) {
        ask(&mut setup.before, b"during");
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut rest = Vec::new();
    // With or without an end of TLS: what matters is that no byte comes.
    let end = setup.before.0.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{rest:?}, {end:?}");
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    let line = setup.gateway.closed_for("drained");
    assert_eq!(line.number("bytes_up"), line.number("bytes_down"), "{line:?}");
    setup.has_ended();
}

/// If the session ends by itself, the process before ends then.
#[test]
fn the_process_before_ends_with_its_last_session() {
    let mut setup = Setup::upgraded("300s");
    setup.before.end();
    assert_eq!(setup.before.rest(), b"");
    let line = setup.gateway.closed_for("client_fin");
    let bytes = ["bytes_up", "bytes_down"].map(|field| line.number(field));
    assert_eq!(bytes, [6 + 5; 2], "{line:?}");
    setup.has_ended();
}
