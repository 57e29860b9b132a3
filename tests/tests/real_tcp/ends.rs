//! How a session ends: FIN and reset, from either side.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway_tests::real::config::forward;
use ringway_tests::real::{
    Gateway, Pattern, Server, connect, echo, exchange, free_address, program, wait_until, was_reset,
};

use crate::{abort, forwarding, handed_over, next};

/// `nc -N` sends a FIN behind the last byte and waits for the answer, which the server gives only
/// after that FIN.
#[test]
fn server_answers_after_the_clients_fin() {
    let server = Server::tcp(|mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).expect("a question");
        question.reverse();
        stream.write_all(&question).expect("the answer is taken");
    });
    let (gateway, address) = forwarding(&server, "");
    let command = format!("printf 'first to last' | nc -N 127.0.0.1 {}", address.port());
    assert_eq!(program("sh", &["-c", &command]), "tsal ot tsrif");

    let line = gateway.closed_for("client_fin");
    assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (13, 13));
}

/// The server ends first; what the client sends after that FIN arrives to the last byte.
#[test]
fn client_speaks_on_after_the_servers_fin() {
    const AFTER: u64 = 3_000_001;
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "");
    let mut client = connect(address);
    let mut endpoint = next(&accepted);
    endpoint.write_all(b"that is all").expect("sent");
    endpoint.shutdown(Shutdown::Write).expect("a FIN");
    let mut said = Vec::new();
    client.read_to_end(&mut said).expect("the server's words");
    assert_eq!(said, b"that is all");

    let sender = std::thread::spawn(move || Pattern::new(1).send(&client, AFTER));
    Pattern::new(1).expect(&endpoint, AFTER).expect("all of it");
    assert_eq!(endpoint.read(&mut [0]).expect("a FIN"), 0);
    sender.join().expect("no panic").expect("sent");
    let line = gateway.closed_for("endpoint_fin");
    assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (AFTER, 11));
}

#[test]
fn server_speaks_first() {
    let server = Server::tcp_tag("220 welcome\r\n");
    let (_gateway, address) = forwarding(&server, "");
    let mut greeting = String::new();
    connect(address).read_to_string(&mut greeting).expect("a greeting");
    assert_eq!(greeting, "220 welcome\r\n");
}

#[test]
fn reset_by_the_client_reaches_the_endpoint() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "");
    let mut client = connect(address);
    let mut endpoint = next(&accepted);
    client.write_all(b"x").expect("sent");
    endpoint.read_exact(&mut [0]).expect("the byte");
    abort(client);
    assert!(was_reset(&mut endpoint), "the endpoint saw no reset");
    gateway.closed_for("client_reset");
}

#[test]
fn reset_by_the_endpoint_reaches_the_client() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "");
    let mut client = connect(address);
    let mut endpoint = next(&accepted);
    endpoint.write_all(b"x").expect("sent");
    client.read_exact(&mut [0]).expect("the byte");
    abort(endpoint);
    assert!(was_reset(&mut client), "the client saw no reset");
    gateway.closed_for("endpoint_reset");
}

/// A reset that comes when one direction has ended already is still a reset on the other side.
#[test]
fn reset_after_a_half_close_is_a_reset() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "");
    let mut client = connect(address);
    client.shutdown(Shutdown::Write).expect("a FIN");
    let mut endpoint = next(&accepted);
    assert_eq!(endpoint.read(&mut [0]).expect("the FIN"), 0);
    endpoint.write_all(b"x").expect("sent");
    client.read_exact(&mut [0]).expect("the byte");
    abort(endpoint);
    assert!(was_reset(&mut client), "the client saw no reset");
    gateway.closed_for("endpoint_reset");
}

/// A reset is passed on when everything before it has arrived: it would overtake what has not.
#[test]
fn what_was_sent_before_a_reset_is_delivered() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "");
    let mut client = connect(address);
    let mut endpoint = next(&accepted);
    let sent = Pattern::new(1).take(1_000_000);
    client.write_all(&sent).expect("sent");
    let relayed = || gateway.metrics().value("ringway_relayed_bytes_total", &[("side", "client")]);
    wait_until("all bytes to be relayed", || relayed() == sent.len() as u64);
    abort(client);
    // The reset is there, and most bytes are still in the gateway's socket.
    std::thread::sleep(Duration::from_millis(300));
    let mut got = Vec::new();
    let end = endpoint.read_to_end(&mut got).map_err(|error| error.kind());
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    let line = gateway.closed_for("client_reset");
    assert_eq!(line.number("bytes_up"), sent.len() as u64);
}

#[test]
fn ipv6_on_both_legs() {
    let server = Server::tcp_at("[::1]:0".parse().expect("an address"), echo);
    let address = SocketAddr::new("::1".parse().expect("an address"), free_address().port());
    let gateway = Gateway::start(&forward("TCP", address, [server.address], ""));
    assert_eq!(exchange(address, b"six").expect("an echo"), b"six");
    let line = gateway.closed_for("client_fin");
    assert!(line.text("client").expect("a client").starts_with("[::1]:"), "{line:?}");
    assert_eq!(line.text("local"), Some(address.to_string().as_str()));
}

/// Who reads to the end must not take a part for the whole.
#[test]
fn transfers_that_the_gateway_cuts_end_with_a_reset() {
    for how in ["max_lifetime", "drained", "stopped"] {
        let (server, accepted) = handed_over();
        let address = free_address();
        let timeout = if how == "drained" { "500ms" } else { "10m" };
        let lifetime = if how == "max_lifetime" { "max_lifetime = \"1s\"" } else { "" };
        let config = format!("drain_timeout = \"{timeout}\"\n");
        let config = config + &forward("TCP", address, [server.address], lifetime);
        let mut gateway = Gateway::start(&config);
        let silent = connect(address);
        let silent_endpoint = next(&accepted);
        let mut client = connect(address);
        let mut endpoint = next(&accepted);
        let sender = std::thread::spawn(move || {
            while endpoint.write_all(&[7; 10_000]).is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        client.read_exact(&mut [0]).expect("the transfer has begun");
        if how != "max_lifetime" {
            gateway.signal(Signal::SIGTERM);
        }
        if how == "stopped" {
            wait_until("nobody is let in", || TcpStream::connect(address).is_err());
            gateway.signal(Signal::SIGTERM);
        }
        let end = client.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "{how}");
        sender.join().expect("no panic");
        // Nothing was on its way here.
        for mut stream in [silent, silent_endpoint] {
            assert_eq!(stream.read(&mut [0]).expect("a clean end"), 0, "{how}");
        }
        let log = if how == "max_lifetime" { gateway.closes(2) } else { gateway.wait() };
        assert!(log.iter().all(|line| line.text("reason") == Some(how)), "{how}: {log:?}");
    }
}
