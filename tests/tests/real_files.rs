//! Configurations of several files, with defaults and variables: a real gateway that follows them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, connect, echo, exchange, free_address, wait_until,
};

/// Says `tag` and the first line that it is told.
fn tagged(tag: char) -> Server {
    Server::tcp(move |mut stream| {
        let mut line = String::new();
        _ = BufReader::new(&stream).read_line(&mut line);
        _ = stream.write_all(format!("{tag} {line}").as_bytes());
        _ = stream.read_to_end(&mut Vec::new());
    })
}

/// What a session hears that says one line. Empty: the session was turned away.
fn heard(address: SocketAddr) -> String {
    let answer = exchange(address, b"hello\n").unwrap_or_default();
    String::from_utf8(answer).expect("text")
}

/// A session that stays, after the first bytes of its answer.
fn held(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(b"hello\n").expect("sending");
    stream.read_exact(&mut [0; 2]).expect("an answer");
    stream
}

#[test]
fn defaults_variables_and_included_files_are_followed() {
    let (first, second) = (tagged('a'), tagged('b'));
    let (own, address) = (Folder::new(), free_address());
    let included = |server: &Server| {
        let file = route("main", "main", &[("main", 1)], "");
        own.write("more.toml", &(file + &backend("main", [server.address], "")))
    };
    let main = |host: &str, defaults: &str| {
        let more = own.file("*.toml");
        format!(
            "include = [\"{}\"]\n{defaults}[[listeners]]\nname = \"main\"\nprotocol = \"TCP\"\n\
             address = \"{host}:{}\"\n",
            more.display(),
            address.port()
        )
    };
    let defaults = "[defaults.listener]\nmax_sessions = 1\n[defaults.backend]\n\
                    send_proxy = \"v1\"\n";
    included(&first);
    let launch = Launch::default().under(&["env", "RINGWAY_TEST_HOST=127.0.0.1"]);
    let gateway = launch.start(&main("${RINGWAY_TEST_HOST}", defaults));
    let one = held(address);
    assert_eq!(heard(address), "", "the listener has one session already");
    drop(one);
    wait_until("the session is over", || heard(address).starts_with("a PROXY TCP4 127.0.0.1 "));
    // The main file stays as it is, and no signal is sent.
    included(&second);
    wait_until("the included file is read", || heard(address).starts_with("b PROXY TCP4 "));

    gateway.reload(&main("${RINGWAY_TEST_NOTHING:-127.0.0.1}", ""));
    let two = [held(address), held(address)];
    assert_eq!(heard(address), "b hello\n", "neither limit nor header");
    drop(two);
    gateway.write(&main("${RINGWAY_TEST_NOTHING}", defaults));
    let told = || gateway.stderr().contains("RINGWAY_TEST_NOTHING");
    wait_until("the fault is told", told);
    assert_eq!(heard(address), "b hello\n", "the table stays");
    gateway.reload(&main("${RINGWAY_TEST_HOST}", ""));
    gateway.stop();
}

#[test]
fn files_of_a_directory_come_and_go() {
    let server = Server::tcp(echo);
    let (address, other) = (free_address(), free_address());
    let gateway =
        Launch::default().directory().start(&forward("TCP", address, [server.address], ""));
    let echoes = |address| exchange(address, b"word").is_ok_and(|answer| answer == b"word");
    let serves = |address| TcpStream::connect(address).is_ok();
    assert!(echoes(address) && !serves(other));
    let more = listener("other", "TCP", other, "") + &route("other", "other", &[("main", 1)], "");
    let more = gateway.beside("more.toml", &more);
    wait_until("the new file is read", || serves(other));
    assert!(echoes(address) && echoes(other));

    let bad = gateway.beside("bad.toml", "\nhalf");
    gateway.says("bad.toml:2:5: ");
    std::fs::remove_file(&more).expect("the file");
    // The whole configuration stays as long as one file has a fault.
    let refused = |gateway: &Gateway| gateway.metrics().value("ringway_reload_failures_total", &[]);
    wait_until("that is refused too", || refused(&gateway) >= 2);
    assert!(echoes(address) && echoes(other));
    std::fs::remove_file(&bad).expect("the file");
    wait_until("the listener is gone", || !serves(other));
    assert!(echoes(address));
    gateway.stop();
}
