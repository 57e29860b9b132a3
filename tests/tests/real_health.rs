//! Health checks: a real gateway, and endpoints that stop and start.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Launch, Server, connect, echo, free_address, udp_client, wait_for,
    wait_until,
};
use socket2::SockRef;

const CHECK: &str =
    "connect_attempts = 1\nhealth_check = { interval = \"100ms\", fall = 2, rise = 2 }";

/// Says `tag` to who asks, and then whatever it is told.
fn tagged(address: SocketAddr, tag: u8) -> Server {
    Server::tcp_at(address, move |stream| says_tag(stream, tag))
}

fn says_tag(mut stream: TcpStream, tag: u8) {
    if stream.read_exact(&mut [0]).is_ok() && stream.write_all(&[tag]).is_ok() {
        echo(stream);
    }
}

/// Resets the session once it is asked. Earlier, the gateway might take the reset for a failed
/// connect, after which workers let the endpoint rest for 10 s.
fn resets(mut stream: TcpStream) {
    _ = stream.read_exact(&mut [0]);
    _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Asks with a byte. Returns the answer, if there is one.
fn session(address: SocketAddr) -> (Option<u8>, TcpStream) {
    let (mut stream, mut tag) = (connect(address), [0]);
    let answer = stream.write_all(b"?").and_then(|()| stream.read_exact(&mut tag));
    (answer.ok().map(|()| tag[0]), stream)
}

/// Where new sessions in a row went; `None`: nowhere.
fn seen(address: SocketAddr) -> BTreeSet<Option<u8>> {
    (0..20).map(|_| session(address).0).collect()
}

fn is_alive(mut stream: &TcpStream) -> bool {
    let mut answer = [0; 5];
    stream.write_all(b"alive").is_ok() && stream.read_exact(&mut answer).is_ok()
}

fn healthy(gateway: &Gateway, endpoint: SocketAddr) -> u64 {
    let endpoint = endpoint.to_string();
    let labels = [("backend", "main"), ("endpoint", endpoint.as_str())];
    gateway.metrics().value("ringway_endpoint_healthy", &labels)
}

#[test]
fn sessions_go_where_checks_are_good() {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (first, second) = (tagged(anywhere, b'a'), tagged(anywhere, b'b'));
    let (a, b) = (first.address, second.address);
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [a, b], CHECK);
    let gateway = Gateway::start(&config);
    let both = BTreeSet::from([Some(b'a'), Some(b'b')]);
    assert_eq!(seen(address), both);
    wait_until("both are checked", || {
        let labels = [("backend", "main"), ("result", "ok")];
        gateway.metrics().value("ringway_health_checks_total", &labels) >= 2
    });
    assert_eq!((healthy(&gateway, a), healthy(&gateway, b)), (1, 1));
    let old = wait_for("a session with the first", || {
        let (tag, stream) = session(address);
        (tag == Some(b'a')).then_some(stream)
    });

    drop(first);
    wait_until("the first is known to be down", || healthy(&gateway, a) == 0);
    wait_until("all that is new goes to the second", || seen(address) == [Some(b'b')].into());
    assert_eq!(healthy(&gateway, b), 1);
    assert!(is_alive(&old), "what was there is not touched");
    let labels = [("backend", "main"), ("result", "failed")];
    assert!(gateway.metrics().value("ringway_health_checks_total", &labels) >= 2);
    let down = format!("endpoint {a} of backend main is down: connecting to {a}: ");
    gateway.says(&down);

    gateway.reload(&(config + &backend("more", [b], "")));
    assert_eq!(seen(address), [Some(b'b')].into(), "a reload brings nobody back");
    assert_eq!(gateway.metrics().value("ringway_reloads_total", &[]), 2, "health is no reload");

    let first = tagged(a, b'a');
    wait_until("the first is back", || seen(address) == both);
    assert_eq!(healthy(&gateway, a), 1);
    let up = format!("endpoint {a} of backend main is up again");
    gateway.says(&up);

    drop((first, second));
    wait_until("there is no endpoint left", || {
        let refused = session(address).0.is_none();
        refused && gateway.log().iter().any(|line| line.text("reason") == Some("no_endpoint"))
    });
    assert!(is_alive(&old), "what was there is not touched");
    drop(old);
    gateway.stop();
}

#[test]
fn backups_keep_new_sessions_until_failback_is_asked_for() {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (first, second) = (tagged(anywhere, b'a'), tagged(anywhere, b'b'));
    let (a, b) = (first.address, second.address);
    let address = free_address();
    let config = |failback: bool| {
        let endpoints = format!("\"{a}\", {{ address = \"{b}\", backup = true }}");
        let keys = format!("endpoints = [{endpoints}]\nfailback = {failback}\n{CHECK}");
        listener("main", "TCP", address, "")
            + &route("main", "main", &[("main", 1)], "")
            + &format!("[[backends]]\nname = \"main\"\n{keys}\n")
    };
    let gateway = Gateway::start(&config(false));
    let (only_a, only_b) = ([Some(b'a')].into(), [Some(b'b')].into());
    assert_eq!(seen(address), only_a);
    drop(first);
    wait_until("the backup has everything", || seen(address) == only_b);
    let first = tagged(a, b'a');
    wait_until("the first is up again", || healthy(&gateway, a) == 1);
    assert_eq!(seen(address), only_b, "the backup keeps what it got");
    drop(second);
    wait_until("the first has everything again", || seen(address) == only_a);
    let second = tagged(b, b'b');
    wait_until("the backup is up again", || healthy(&gateway, b) == 1);
    assert_eq!(seen(address), only_a);
    drop(first);
    wait_until("the backup has everything again", || seen(address) == only_b);
    let first = tagged(a, b'a');
    wait_until("the first is up once more", || healthy(&gateway, a) == 1);
    assert_eq!(seen(address), only_b);
    gateway.reload(&config(true));
    assert_eq!(seen(address), only_a, "the operator has asked for it");
    drop((first, second));
    gateway.stop();
}

#[test]
fn an_endpoint_that_returns_starts_slowly() {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (first, second) = (tagged(anywhere, b'a'), tagged(anywhere, b'b'));
    let a = first.address;
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [a, second.address], &format!("slow_start = \"4s\"\n{CHECK}"));
    let gateway = Launch::default().socket().start(&config);
    let of_first = |count: u32| (0..count).filter(|_| session(address).0 == Some(b'a')).count();
    assert!((80..=120).contains(&of_first(200)), "at the start all have their whole weights");
    wait_until("the first is checked", || healthy(&gateway, a) == 1);
    drop(first);
    // No session must find out: workers would then avoid the endpoint for some time of their own.
    wait_until("the first is down", || healthy(&gateway, a) == 0);
    wait_until("no worker has it any more", || gateway.asks(&["backends"])[0]["taking"] == 1);
    let first = tagged(a, b'a');
    wait_until("the first is up", || healthy(&gateway, a) == 1);
    wait_until("the first gets something again", || seen(address).contains(&Some(b'a')));
    let early = of_first(100);
    assert!((1..40).contains(&early), "{early} of 100 at once");
    wait_until("it has its whole weight", || (90..=110).contains(&of_first(200)));
    drop((first, second));
    gateway.stop();
}

#[test]
fn the_share_of_a_backend_that_is_down_is_refused_or_goes_to_the_next() {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (first, second) = (tagged(anywhere, b'a'), tagged(anywhere, b'b'));
    let a = first.address;
    let (refusing, passing) = (free_address(), free_address());
    let shares = [("a", 70), ("b", 30)];
    let config = listener("refusing", "TCP", refusing, "")
        + &listener("passing", "TCP", passing, "")
        + &route("refusing", "refusing", &shares, "")
        + &route("passing", "passing", &shares, "on_unavailable = \"next\"")
        + &backend("a", [a], CHECK)
        + &backend("b", [second.address], CHECK);
    let gateway = Gateway::start(&config);
    let both = BTreeSet::from([Some(b'a'), Some(b'b')]);
    assert_eq!((seen(refusing), seen(passing)), (both.clone(), both.clone()));
    drop(first);
    wait_until("the share goes to the second", || seen(passing) == [Some(b'b')].into());
    assert_eq!(seen(refusing), [None, Some(b'b')].into());
    let first = tagged(a, b'a');
    wait_until("the first has its share again", || seen(passing) == both);
    drop((first, second));
    gateway.stop();
}

/// The check is of something beside the endpoint; flows leave it as they leave one that is gone.
#[test]
fn flows_leave_an_endpoint_that_is_down() {
    let at = |last| IpAddr::from([127, 0, 0, last]);
    let server = |last, tag: &'static str| {
        Server::udp_at((at(last), 0).into(), move |socket, _, peer| {
            let _ = socket.send_to(tag.as_bytes(), peer);
        })
    };
    let (a, b) = (server(1, "a"), server(2, "b"));
    let first = TcpListener::bind((at(1), 0)).expect("a port");
    let port = first.local_addr().expect("its address").port();
    let _second = TcpListener::bind((at(2), port)).expect("the same port");
    let address = free_address();
    let check = format!("health_check = {{ interval = \"100ms\", fall = 1, port = {port} }}");
    let config = "lame_duck = \"100ms\"\n".to_owned()
        + &listener("main", "UDP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [a.address, b.address], &check);
    let gateway = Gateway::start(&config);
    let says = |client: &std::net::UdpSocket, tag: &str| {
        let mut answer = [0];
        client.send(b"?").expect("sent");
        client.recv(&mut answer).is_ok() && answer == tag.as_bytes()
    };
    let client = wait_for("a flow with the first", || {
        let client = udp_client(address);
        says(&client, "a").then_some(client)
    });
    drop(first);
    wait_until("the flow is with the second", || says(&client, "b"));
    assert_eq!((healthy(&gateway, a.address), healthy(&gateway, b.address)), (0, 1));
}

/// A process that is stopped still has its connections, and the kernel still accepts new ones for
/// it. A check by HTTP finds out, and the client hears of it within seconds.
#[test]
fn clients_of_a_dead_endpoint_are_told() {
    let (endpoint, folder) = (free_address(), Folder::new());
    let (ip, port) = (endpoint.ip().to_string(), endpoint.port().to_string());
    let arguments = ["-m", "http.server", &port, "--bind", &ip, "--directory"];
    let mut command = Command::new("python3");
    let server = Daemon::start(endpoint, command.args(arguments).arg(folder.file("")));
    let address = free_address();
    let check = "health_check = { type = \"http\", interval = \"200ms\", fall = 2, rise = 1 }";
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend(
            "main",
            [endpoint],
            &format!("{check}\non_down = \"close\"\nclose_after = \"1s\""),
        );
    let gateway = Gateway::start(&config);
    let half_asked = || {
        let mut client = connect(address);
        client.write_all(b"GET / HTTP/1.1\r\n").expect("sent");
        client
    };
    let mut client = half_asked();
    wait_until("the endpoint is checked", || healthy(&gateway, endpoint) == 1);
    server.signal(Signal::SIGSTOP);
    let error = client.read(&mut [0; 1]).expect_err("nobody has answered");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    gateway.closed_for("endpoint_down");

    server.signal(Signal::SIGCONT);
    wait_until("the endpoint is back", || healthy(&gateway, endpoint) == 1);
    let mut client = wait_for("a session", || {
        let mut client = half_asked();
        client.write_all(b"\r\n").expect("sent");
        (client.read(&mut [0; 1]).ok()? == 1).then(half_asked)
    });
    let removed = config.replace("on_down", "on_removed");
    gateway.reload(&removed);
    let elsewhere = removed.replace(&endpoint.to_string(), &free_address().to_string());
    gateway.reload(&elsewhere);
    let ended = client.read(&mut [0; 1]);
    assert!(matches!(&ended, Ok(0) | Err(_)), "{ended:?}");
    let log = gateway.stop();
    let removed = log.iter().filter(|line| line.text("reason") == Some("endpoint_removed"));
    assert_eq!(removed.count(), 1, "{log:?}");
}

/// An endpoint resets its sessions for some time. It is left out, and then begins slowly.
#[test]
fn an_endpoint_that_was_ejected_starts_slowly() {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let second = tagged(anywhere, b'b');
    let fails = Arc::new(AtomicBool::new(false));
    let its = Arc::clone(&fails);
    let first = Server::tcp(move |stream| match its.load(Ordering::SeqCst) {
        true => resets(stream),
        false => says_tag(stream, b'a'),
    });
    let address = free_address();
    let keys = "slow_start = \"4s\"\neject = { failures = 3, window = \"10s\", base = \"2s\" }";
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [first.address, second.address], keys);
    let gateway = Gateway::start(&config);
    let ejected = || gateway.metrics().value("ringway_endpoints_ejected", &[("backend", "main")]);
    let of_first = |count: u32| (0..count).filter(|_| session(address).0 == Some(b'a')).count();
    assert!((80..=120).contains(&of_first(200)), "at the start all have their whole weights");
    fails.store(true, Ordering::SeqCst);
    wait_until("it is ejected", || {
        seen(address);
        ejected() == 1
    });
    fails.store(false, Ordering::SeqCst);
    wait_until("it is in again", || ejected() == 0);
    wait_until("it gets something again", || seen(address).contains(&Some(b'a')));
    let early = of_first(100);
    assert!((1..40).contains(&early), "{early} of 100 at once");
    wait_until("it has its whole weight", || (90..=110).contains(&of_first(200)));
    gateway.stop();
}

/// Sessions fail with one of two endpoints: without a health check it is left out, for a while.
#[test]
fn an_endpoint_with_failures_is_ejected() {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let good = tagged(anywhere, b'g');
    let bad = Server::tcp(resets);
    let address = free_address();
    let eject = "eject = { failures = 3, window = \"10s\", base = \"2s\" }";
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [good.address, bad.address], eject);
    let gateway = Gateway::start(&config);
    let value = |name| gateway.metrics().value(name, &[("backend", "main")]);
    assert_eq!(seen(address), BTreeSet::from([None, Some(b'g')]), "it is in at first");
    wait_until("it is ejected", || value("ringway_endpoints_ejected") == 1);
    wait_until("all go to the good one", || seen(address) == [Some(b'g')].into());
    assert_eq!(value("ringway_ejections_total"), 1);
    let why = format!("endpoint {} of backend main is ejected for 2 s: ", bad.address);
    gateway.says(&why);
    wait_until("it is tried again", || seen(address).contains(&None));
    gateway.stop();
}
