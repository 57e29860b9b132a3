//! TCP through the release binary: ends of all kinds, timeouts, limits, failing endpoints.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Lines, Pattern, Server, accept_full, connect, echo, exchange, free_address,
    in_own_network, now, program, udp_client, wait_until, was_reset,
};
use socket2::SockRef;

/// A gateway with one TCP listener, and its address.
fn forwarding(to: &Server, options: &str) -> (Gateway, SocketAddr) {
    let address = free_address();
    (Gateway::start(&forward("TCP", address, [to.address], options)), address)
}

/// A server whose connections go to the test, one after the other.
fn handed_over() -> (Server, mpsc::Receiver<TcpStream>) {
    let (give, take) = mpsc::channel();
    let server = Server::tcp(move |stream| {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let _ = give.send(stream);
    });
    (server, take)
}

fn next(accepted: &mpsc::Receiver<TcpStream>) -> TcpStream {
    accepted.recv_timeout(Duration::from_secs(60)).expect("a connection")
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}

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

/// Large answers and their last byte, with the direction in splice mode when the FIN comes.
#[test]
fn last_byte_of_a_bulk_answer_is_intact() {
    const LEN: u64 = 50_000_003;
    let server = Server::tcp(|mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).expect("a question");
        Pattern::new(2).send(&stream, LEN).expect("the answer is taken");
    });
    let (gateway, address) = forwarding(&server, "");
    for _ in 0..3 {
        let mut client = connect(address);
        client.write_all(b"?").expect("sent");
        client.shutdown(Shutdown::Write).expect("a FIN");
        Pattern::new(2).expect(&client, LEN).expect("all of it");
        assert_eq!(client.read(&mut [0]).expect("a FIN"), 0);
    }
    for line in gateway.closes(3) {
        assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (1, LEN));
    }
}

/// What lies below the mark of a bulk stream arrives all the same: while the stream pauses, before
/// its FIN, and before its reset, whatever the size.
#[test]
fn tails_below_the_mark_of_a_bulk_stream_arrive() {
    const RUN: u64 = 3_000_000;
    const MARK: u64 = 256 << 10;
    let sizes = [1, 1_000, MARK / 4, MARK / 2 - 1, MARK / 2, MARK - 1, MARK, MARK + 1, 4 << 20];
    let (server, accepted) = handed_over();
    let address = free_address();
    let limits = "[limits]\nbulk_bytes = 262144\n";
    let gateway = Gateway::start(&(forward("TCP", address, [server.address], "") + limits));
    let runs = || gateway.metrics().value("ringway_bulk_runs_total", &[]);
    let mut closes = 0;
    for size in sizes {
        for ending in [Shutdown::Write, Shutdown::Both] {
            let before = runs();
            let mut client = connect(address);
            client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            let endpoint = next(&accepted);
            let (go, wait) = mpsc::channel();
            let sender = std::thread::spawn(move || {
                let mut pattern = Pattern::new(size);
                for len in [RUN, size, RUN, size] {
                    pattern.send(&endpoint, len).expect("sent");
                    let () = wait.recv().expect("the client has it");
                }
                // A close with a byte unread is a reset.
                match ending {
                    Shutdown::Both => abort(endpoint),
                    _ => endpoint.shutdown(ending).expect("a FIN"),
                }
            });
            let mut pattern = Pattern::new(size);
            for len in [RUN, size, RUN, size] {
                pattern.expect(&client, len).unwrap_or_else(|error| panic!("{size}: {error}"));
                go.send(()).expect("the sender waits");
            }
            match ending {
                Shutdown::Both => assert!(was_reset(&mut client), "{size}"),
                _ => assert_eq!(client.read(&mut [0]).expect("a FIN"), 0, "{size}"),
            }
            sender.join().expect("no panic");
            assert!(runs() > before, "{size}: no direction became bulk");
            drop(client);
            closes += 1;
        }
    }
    for line in gateway.closes(closes) {
        assert_eq!(line.number("bytes_up"), 0);
    }
}

/// A bulk stream that ends in the middle, by FIN or reset: what came before is delivered, and the
/// end is not a clean one if it was not.
#[test]
fn bulk_streams_end_as_they_were_ended_wherever_that_is() {
    let server = Server::tcp(|mut stream| {
        let mut question = [0; 9];
        stream.read_exact(&mut question).expect("a question");
        let len = u64::from_le_bytes(question[..8].try_into().expect("eight bytes"));
        Pattern::new(3).send(&stream, len).expect("the answer is taken");
        match question[8] {
            0 => drop(stream),
            _ => {
                // Once it has all arrived, so that the reset overtakes nothing.
                let _ = stream.read(&mut [0]);
                abort(stream);
            }
        }
    });
    let address = free_address();
    let limits = "[limits]\nbulk_bytes = 262144\n";
    let gateway = Gateway::start(&(forward("TCP", address, [server.address], "") + limits));
    let mark = 256_u64 << 10;
    let lengths = [2 << 20, (2 << 20) + 1, (2 << 20) + mark - 1, (2 << 20) + mark, 5_000_011];
    for len in lengths {
        for reset in [0, 1] {
            let mut client = connect(address);
            client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            let mut question = len.to_le_bytes().to_vec();
            question.push(reset);
            client.write_all(&question).expect("sent");
            Pattern::new(3).expect(&client, len).unwrap_or_else(|error| panic!("{len}: {error}"));
            if reset == 1 {
                client.write_all(b"x").expect("sent");
                assert!(was_reset(&mut client), "{len}");
            } else {
                assert_eq!(client.read(&mut [0]).expect("a FIN"), 0, "{len}");
            }
        }
    }
    assert!(gateway.metrics().value("ringway_bulk_runs_total", &[]) > 0);
}

/// Pacing is taken off bulk to a peer on this machine, unless the configuration names a congestion
/// control; where the kernel's own does not pace, there is nothing to take.
#[test]
fn bulk_to_a_near_peer_is_not_paced() {
    let default = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    let default = default.expect("Linux has it");
    let paced = u64::from(default.starts_with("bbr"));
    for (named, changed) in [("", paced), ("reno", 0), (default.trim(), 0)] {
        let server = Server::tcp(|mut stream| {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            let _ = stream.write_all(b"done");
        });
        let option = match named {
            "" => String::new(),
            name => format!("congestion = \"{name}\"\n"),
        };
        let address = free_address();
        let text = forward("TCP", address, [server.address], &option) + &option;
        let gateway = Gateway::start(&(text + "[limits]\nbulk_bytes = 262144\n"));
        let mut client = connect(address);
        Pattern::new(5).send(&client, 16 << 20).expect("sent");
        client.shutdown(Shutdown::Write).expect("a FIN");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "done");
        let metrics = gateway.metrics();
        assert!(metrics.value("ringway_bulk_runs_total", &[]) > 0, "{named}");
        assert_eq!(metrics.value("ringway_unpaced_total", &[]), changed, "{named}");
    }
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

/// Telnet's and FTP's ABOR, say: bytes behind the mark arrive, and the end comes after them.
#[test]
fn urgent_data_in_the_middle_of_bulk_loses_nothing() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "");
    for bulk in [10, 1 << 16, 1 << 22] {
        let mut client = connect(address);
        let mut endpoint = next(&accepted);
        let mut pattern = Pattern::new(1);
        client.write_all(&pattern.take(bulk)).expect("sent");
        let mut got = vec![0; bulk];
        endpoint.read_exact(&mut got).expect("all in front of the mark");
        assert_eq!(SockRef::from(&client).send_out_of_band(b"!").expect("sent"), 1);
        let behind = pattern.take(5_000);
        client.write_all(&behind).expect("sent");
        let mut rest = vec![0; behind.len()];
        endpoint.read_exact(&mut rest).expect("all behind the mark");
        assert!(rest == behind, "other bytes behind the mark");
        client.shutdown(Shutdown::Write).expect("a FIN");
        assert_eq!(endpoint.read(&mut [0]).expect("the FIN"), 0);
    }
    gateway.closes(3);
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

#[test]
fn idle_session_ends_at_idle_timeout() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "idle_timeout = \"1s\"");
    let mut client = connect(address);
    let mut endpoint = next(&accepted);
    assert!(client.read(&mut [0]).map_or(true, |len| len == 0), "no byte was sent");
    assert!(endpoint.read(&mut [0]).map_or(true, |len| len == 0), "no byte was sent");
    gateway.closed_for("idle_timeout");
}

#[test]
fn half_closed_session_ends_at_half_close_timeout() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "half_close_timeout = \"1s\"");
    let client = connect(address);
    client.shutdown(Shutdown::Write).expect("a FIN");
    let mut endpoint = next(&accepted);
    assert_eq!(endpoint.read(&mut [0]).expect("the FIN"), 0);
    gateway.closed_for("half_close_timeout");
}

/// However long the session was silent before: the server has its time to answer.
#[test]
fn half_close_timeout_counts_from_the_fin() {
    let (server, accepted) = handed_over();
    let (_gateway, address) = forwarding(&server, "half_close_timeout = \"3s\"");
    let mut client = connect(address);
    let mut endpoint = next(&accepted);
    std::thread::sleep(Duration::from_secs(4));
    client.shutdown(Shutdown::Write).expect("a FIN");
    assert_eq!(endpoint.read(&mut [0]).expect("the FIN"), 0);
    std::thread::sleep(Duration::from_secs(1));
    endpoint.write_all(b"late").expect("taken");
    drop(endpoint);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer");
    assert_eq!(answer, "late");
}

#[test]
fn session_ends_at_its_lifetime_however_busy() {
    let server = Server::tcp(echo);
    let (gateway, address) = forwarding(&server, "max_lifetime = \"2s\"");
    let mut client = connect(address);
    let mut byte = [0];
    while client.write_all(b"x").is_ok() && client.read(&mut byte).is_ok_and(|len| len == 1) {
        std::thread::sleep(Duration::from_millis(10));
    }
    gateway.closed_for("max_lifetime");
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

/// A process that was stopped, or a machine that was suspended, looks at what has come before it
/// takes anybody for idle.
#[test]
fn who_has_spoken_while_the_process_was_stopped_is_not_idle() {
    let server = Server::tcp(echo);
    let ports = Server::udp(|socket, _, peer| {
        let _ = socket.send_to(peer.to_string().as_bytes(), peer);
    });
    let (address, udp) = (free_address(), free_address());
    let config = forward("TCP", address, [server.address], "idle_timeout = \"4s\"")
        + &listener("udp", "UDP", udp, "flow_timeout = \"4s\"")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("udp", [ports.address], "");
    let gateway = Gateway::start(&config);
    let mut sessions: Vec<_> = (0..20).map(|_| connect(address)).collect();
    let flows: Vec<_> = (0..20).map(|_| udp_client(udp)).collect();
    let ask = |flow: &std::net::UdpSocket| flow.send(b"?").expect("sent");
    let port = |flow: &std::net::UdpSocket| {
        let mut answer = [0; 64];
        let len = flow.recv(&mut answer).expect("an answer");
        answer[..len].to_vec()
    };
    for session in &mut sessions {
        session.write_all(b"before").expect("sent");
        session.read_exact(&mut [0; 6]).expect("an echo");
    }
    flows.iter().for_each(|flow| _ = ask(flow));
    let before: Vec<_> = flows.iter().map(port).collect();
    gateway.signal(Signal::SIGSTOP);
    for session in &mut sessions {
        session.write_all(b"meanwhile").expect("sent");
    }
    flows.iter().for_each(|flow| _ = ask(flow));
    std::thread::sleep(Duration::from_secs(6));
    gateway.signal(Signal::SIGCONT);
    for session in &mut sessions {
        session.read_exact(&mut [0; 9]).expect("an echo: the session was not idle");
    }
    let after: Vec<_> = flows.iter().map(port).collect();
    assert_eq!(before, after, "flows were taken for idle, and others begun");
}

/// Writes until nothing is taken for a second.
fn fill(stream: &TcpStream) {
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let mut to = stream;
    while to.write(&[7; 65_536]).is_ok() {}
}

#[test]
fn client_that_will_not_read_is_closed() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "write_stall_timeout = \"1s\"");
    let client = connect(address);
    let endpoint = next(&accepted);
    fill(&endpoint);
    gateway.closed_for("client_stalled");
    drop(client);
}

#[test]
fn endpoint_that_will_not_read_is_closed() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "write_stall_timeout = \"1s\"");
    let client = connect(address);
    let endpoint = next(&accepted);
    fill(&client);
    gateway.closed_for("endpoint_stalled");
    drop(endpoint);
}

#[test]
fn endpoint_that_does_not_answer_ends_at_connect_timeout() {
    let (silent, _kept) = accept_full();
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [silent], "connect_timeout = \"1s\"\nconnect_attempts = 1");
    let gateway = Gateway::start(&config);
    assert!(was_reset(&mut connect(address)));
    gateway.closed_for("connect_timeout");
    let failures = gateway.metrics().value("ringway_endpoint_connect_failures_total", &[]);
    assert_eq!(failures, 1);
}

/// Of three endpoints two are dead; every client is served by the third.
#[test]
fn another_endpoint_is_tried_when_connecting_fails() {
    let server = Server::tcp(echo);
    let (address, dead) = (free_address(), [free_address(), free_address()]);
    let gateway = Gateway::start(&forward("TCP", address, [dead[0], server.address, dead[1]], ""));
    for _ in 0..30 {
        assert_eq!(exchange(address, b"anyone").expect("an echo"), b"anyone");
    }
    for line in gateway.closes(30) {
        assert_eq!(line.text("endpoint"), Some(server.address.to_string().as_str()));
    }
    assert!(gateway.metrics().value("ringway_endpoint_connect_failures_total", &[]) > 0);
}

#[test]
fn client_is_reset_when_all_endpoints_are_dead() {
    let address = free_address();
    let dead = [free_address(), free_address()];
    let gateway = Gateway::start(&forward("TCP", address, dead, ""));
    assert!(was_reset(&mut connect(address)));
    let line = gateway.closed_for("connect_failed");
    assert_eq!(line.text("detail"), Some("ECONNREFUSED"));
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("ringway_sessions_refused_total", &[("reason", "connect_failed")]), 1);
}

/// A backend without endpoints keeps its share and rejects it.
#[test]
fn backend_without_endpoints_rejects_its_share() {
    let server = Server::tcp_tag("a");
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("full", 3), ("empty", 1)], "")
        + &backend("full", [server.address], "")
        + &backend("empty", [], "");
    let gateway = Launch::default().one_worker().start(&config);
    let (mut served, mut reset) = (0, 0);
    for _ in 0..100 {
        let mut said = String::new();
        match connect(address).read_to_string(&mut said) {
            Ok(_) => served += u32::from(said == "a"),
            Err(_) => reset += 1,
        }
    }
    assert_eq!((served, reset), (75, 25));
    let refused = [("reason", "no_endpoint")];
    assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &refused), 25);
}

#[test]
fn route_with_all_weights_zero_refuses_all() {
    let server = Server::tcp_tag("a");
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("a", 0)], "")
        + &backend("a", [server.address], "");
    let gateway = Gateway::start(&config);
    assert!(was_reset(&mut connect(address)));
    gateway.closed_for("no_backend");
    assert_eq!(server.served(), 0);
}

#[test]
fn sessions_above_a_listeners_limit_are_refused_and_counted() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward("TCP", address, [server.address], "max_sessions = 10");
    refuses_above(10, &config, address, "listener_limit");
}

/// The endpoint is told only then that the client has ended, and takes its time.
#[test]
fn a_client_that_closes_and_comes_back_has_its_place() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward("TCP", address, [server.address], "max_sessions = 1");
    let gateway = Launch::default().one_worker().start(&config);
    let mut refused = 0;
    // No more than may be ending at once: how soon the server closes is its affair.
    for _ in 0..60 {
        let mut client = connect(address);
        let served = client.write_all(b"x").and_then(|()| client.read_exact(&mut [0]));
        refused += u32::from(served.is_err());
    }
    let counted = [("reason", "listener_limit")];
    let counted = gateway.metrics().value("ringway_sessions_refused_total", &counted);
    assert_eq!((refused, counted), (0, 0));
}

#[test]
fn sessions_above_the_workers_limit_are_refused_and_counted() {
    let server = Server::tcp(echo);
    let address = free_address();
    let limits = "[limits]\nsessions = 10\n";
    let config = forward("TCP", address, [server.address], "") + limits;
    refuses_above(10, &config, address, "session_limit");
}

fn refuses_above(limit: usize, config: &str, address: SocketAddr, reason: &str) {
    let gateway = Launch::default().one_worker().start(config);
    let mut kept: Vec<_> = (0..limit).map(|_| connect(address)).collect();
    for client in &mut kept {
        client.write_all(b"x").expect("sent");
        client.read_exact(&mut [0]).expect("an echo");
    }
    for _ in 0..5 {
        assert!(was_reset(&mut connect(address)), "one more than {limit} was let in");
    }
    let refused =
        || gateway.metrics().value("ringway_sessions_refused_total", &[("reason", reason)]);
    assert_eq!(refused(), 5);
    // There is room again once one has left.
    drop(kept.pop());
    wait_until("a session's end", || {
        gateway.metrics().value("ringway_sessions_active", &[]) < limit as u64
    });
    assert_eq!(exchange(address, b"again").expect("an echo"), b"again");
    assert_eq!(refused(), 5);
}

/// Two thousand sessions to one endpoint from an own network with 1,000 source ports.
#[test]
fn source_ports_that_run_out_are_a_local_limit() {
    in_own_network(|| {
        program("sysctl", &["-qw", "net.ipv4.ip_local_port_range=40000 40099"]);
        let (server, accepted) = handed_over();
        let (gateway, address) = forwarding(&server, "");
        // Clients choose their own ports, outside that range.
        let client = |port: u16| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("a socket");
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("a port");
            socket.connect(&address.into()).expect("connecting");
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            stream
        };
        let mut clients: Vec<_> = (0..150).map(|at| client(50_000 + at)).collect();
        let reason = [("reason", "local_limit")];
        let refused = || gateway.metrics().value("ringway_sessions_refused_total", &reason);
        wait_until("150 sessions are given or refused", || {
            gateway.metrics().value("ringway_sessions_active", &[]) + refused() == 150
        });
        assert!(refused() >= 50, "{} refused of 150 with 100 ports", refused());
        clients.clear();
        drop(accepted);
        drop(server);
        gateway.closes(150);
    });
}

/// With too few descriptors the gateway stops accepting for a while and not for good, does not spin
/// over it, and says all the while what has come of it, to more than one who ask. A session takes
/// two, so that of an odd and an even number of them one leaves none over.
#[test]
fn accepting_resumes_after_descriptors_ran_out() {
    let server = Server::tcp(echo);
    let limits = "[limits]\nsessions = 1024\nflows = 64\nbuffers = 16\npipes = 16\n";
    for files in ["--nofile=200:200", "--nofile=201:201"] {
        let address = free_address();
        let config = forward("TCP", address, [server.address], "") + limits;
        let gateway = Launch::default().under(&["prlimit", files]).start(&config);
        let clients: Vec<_> = (0..300).map(|_| connect(address)).collect();
        let pauses = || gateway.metrics().value("ringway_accept_pauses_total", &[]);
        wait_until("accepting pauses", || pauses() > 0);
        let (start, before) = (now(), gateway.ticks());
        std::thread::sleep(Duration::from_secs(2));
        let available = start.elapsed().as_secs() * 100;
        let used = gateway.ticks() - before;
        assert!(used * 2 < available, "{used} ticks of {available} on doing nothing");
        // A reload that needs files has some: for two sockets of each listener.
        let more: [_; 10] = std::array::from_fn(|_| free_address());
        let others = more.iter().enumerate().map(|(number, address)| {
            let name = format!("more{number}");
            listener(&name, "TCP", *address, "") + &route(&name, &name, &[("main", 1)], "")
        });
        gateway.reload(&(config + &others.collect::<String>()));
        more.iter().for_each(|address| drop(connect(*address)));
        // Each has a file, and says no more.
        let watchers: Vec<_> = (0..12).map(|_| connect(gateway.admin)).collect();
        assert!(pauses() > 0);
        drop(watchers);
        drop(clients);
        for _ in 0..20 {
            wait_until("clients are served again", || {
                exchange(address, b"again").is_ok_and(|echo| echo == b"again")
            });
        }
        wait_until("all sessions are over", || {
            gateway.metrics().value("ringway_sessions_active", &[]) == 0
        });
    }
}

/// Nine thousand idle sessions: all alive, and under 512 bytes of user memory each. They are held
/// by a process of their own, because each end needs a descriptor.
#[test]
fn nine_thousand_idle_sessions_are_cheap_and_alive() {
    const SESSIONS: usize = 9_000;
    const FIRST: usize = 500;
    let mut holder = Holder::start();
    let address = free_address();
    let config =
        forward("TCP", address, [holder.address], "") + "[limits]\nsessions = 9500\nflows = 64\n";
    let gateway = Gateway::start(&config);
    let hold = |clients: &mut Vec<TcpStream>, count: usize| {
        clients.resize_with(count, || connect(address));
        wait_until("all sessions are there", || {
            gateway.metrics().value("ringway_sessions_active", &[]) == count as u64
        });
        gateway.anonymous()
    };
    let mut clients = Vec::new();
    // What the first sessions cost is not what a session costs: both workers, the log and the
    // metrics touch their own memory for the first time.
    let before = hold(&mut clients, FIRST);
    let after = hold(&mut clients, SESSIONS);
    holder.wait_for(SESSIONS);
    let each = (after - before) * 1024 / (SESSIONS - FIRST) as u64;
    eprintln!("{each} bytes of user memory for each of {SESSIONS} idle sessions");
    assert!(each < 512, "{each} bytes for each idle session");

    holder.greet();
    for client in &mut clients {
        let mut word = [0; 5];
        client.read_exact(&mut word).expect("the greeting");
        assert_eq!(&word, b"hello");
    }
    drop(clients);
    drop(holder);
    wait_until("all sessions are over", || {
        gateway.metrics().value("ringway_sessions_active", &[]) == 0
    });
}

/// The helper program `hold`: accepts connections and keeps them.
struct Holder {
    child: Child,
    address: SocketAddr,
    says: Lines,
}

impl Holder {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hold"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the helper");
        let says = Lines::of(child.stdout.take().expect("its output"));
        Self { child, address: says.take().parse().expect("an address"), says }
    }

    /// Until it has accepted so many.
    fn wait_for(&mut self, count: usize) {
        let ask = self.child.stdin.as_mut().expect("its input");
        writeln!(ask, "{count}").expect("asked");
        assert_eq!(self.says.take(), count.to_string());
    }

    /// Has it say `hello` on all that are open.
    fn greet(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("its input"), "hello").expect("asked");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
