use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::*;
use crate::check::parse;
use crate::compile::names::Names;
use crate::compile::whole;
use crate::health::Health;
use crate::model::endpoint::{Address, Endpoint, Resolved};
use crate::model::place::At;

/// A check of `address`. `options` are keys of the backend.
fn probe(address: SocketAddr, options: &str) -> Probe {
    let text = format!("[[backends]]\nname = \"b\"\nendpoints = []\n{options}\n");
    let mut config = parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
    let place = config.backends[0].name.place.clone();
    let address = At { value: Address::Fixed(address.into()), place };
    config.backends[0].endpoints.push(Endpoint::at(address));
    let whole = whole(&config, &Resolved::default(), &mut Names::new()).expect("its parts fit");
    let now = Instant::now().into_std();
    let mut health = Health::new(1, 0).following(&config, (&whole.table, &whole.checks), now);
    health.due(0, now + Duration::from_secs(5)).expect("it is due")
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// Answers each connection with the pieces, some milliseconds apart, after something was read.
async fn answering(pieces: &[&str]) -> SocketAddr {
    let (listener, address) = listen().await;
    let pieces: Arc<[Vec<u8>]> = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 1_024];
            _ = stream.read(&mut asked).await;
            for piece in pieces.iter() {
                _ = stream.write_all(piece).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    address
}

fn why(finding: Finding) -> String {
    let Finding::Bad(why) = finding else { panic!("{finding:?}") };
    why
}

#[test]
fn what_this_machine_lacks_is_no_fault_of_the_endpoint() {
    use nix::libc::{EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, ENOBUFS, ENOMEM};
    let is_own = |code| is_own(&io::Error::from_raw_os_error(code));
    assert!([EADDRNOTAVAIL, ENOBUFS, ENOMEM].into_iter().all(is_own));
    assert!(![ECONNREFUSED, EHOSTUNREACH].into_iter().any(is_own));
}

#[tokio::test]
async fn a_check_connects_as_sessions_do() {
    let (listener, address) = listen().await;
    let from = |source: &str, port: u16| {
        format!("source = [\"{source}\"]\nhealth_check = {{ port = {port} }}")
    };
    assert_eq!(probe(address, &from("127.0.0.9", 0)).make().await, Finding::Good);
    let (_, peer) = listener.accept().await.expect("it has connected");
    assert_eq!(peer.ip().to_string(), "127.0.0.9");
    let elsewhere = SocketAddr::new(address.ip(), 1);
    let beside = from("127.0.0.9", address.port());
    assert_eq!(probe(elsewhere, &beside).make().await, Finding::Good);
    let found = probe(address, &from("192.0.2.1", 0)).make().await;
    assert!(matches!(found, Finding::NotMade(_)), "it is not this machine's: {found:?}");
    drop(listener);
    let why = why(probe(address, &from("127.0.0.9", 0)).make().await);
    assert!(why.starts_with(&format!("connecting to {address}: ")), "{why}");
    assert!(why.contains("refused"), "{why}");
}

#[tokio::test]
async fn http_is_good_by_its_status_however_the_answer_is_cut() {
    let pieces = ["HTTP/1.1 2", "00 OK\r", "\nContent-Length: 4\r\n\r", "\nab", "cd"];
    let address = answering(&pieces).await;
    let check = |keys: &str| format!("health_check = {{ type = \"http\", {keys} }}");
    for good in ["path = \"/\"", "body = \"bc\"", "body_regex = \"^a.*d$\"", "status = 200"] {
        assert_eq!(probe(address, &check(good)).make().await, Finding::Good, "{good}");
    }
    let refused = why(probe(address, &check("status = [\"500-599\", 204]")).make().await);
    assert_eq!(refused, format!("HTTP with {address}: its status is 200 OK"));
    let other = why(probe(address, &check("body = \"bd\"")).make().await);
    assert!(other.ends_with("its body does not have what is expected"), "{other}");
}

#[tokio::test]
async fn the_timeout_is_for_the_whole_check() {
    let pieces: Vec<_> = std::iter::once("HTTP/1.1 200 OK\r\n").chain(["A: b\r\n"; 90]).collect();
    let slow = answering(&pieces).await;
    let check = "health_check = { type = \"http\", timeout = \"100ms\" }";
    let began = Instant::now();
    let late = why(probe(slow, check).make().await);
    assert!(began.elapsed() < Duration::from_millis(500));
    assert_eq!(late, format!("HTTP with {slow}: no answer within 100 ms"));
}

/// A server that a busy machine holds up writes its answer after the check was given up. A reset
/// would make PostgreSQL log "could not send data to client".
#[tokio::test]
async fn a_check_that_is_given_up_does_not_reset_a_server_that_still_writes() {
    let (listener, address) = listen().await;
    let check = "health_check = { type = \"postgres\", user = \"me\", timeout = \"100ms\" }";
    let made = tokio::spawn(async move { probe(address, check).make().await });
    let (mut stream, _) = listener.accept().await.expect("it connects");
    let mut asked = [0; 1_024];
    assert!(stream.read(&mut asked).await.expect("a startup message") > 0);
    let late = why(made.await.expect("a finding"));
    assert!(late.ends_with("no answer within 100 ms"), "{late}");
    stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.expect("no reset came");
    assert_eq!(stream.read(&mut asked).await.expect("an end without a reset"), 0);
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let line = "x".repeat(1_000);
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    let pieces: Vec<_> = std::iter::once(head).chain([line.as_str(); 100]).collect();
    let address = answering(&pieces).await;
    let check = "health_check = { type = \"http\", body = \"y\" }";
    let late = why(probe(address, check).make().await);
    assert!(late.ends_with("its body does not have what is expected"), "{late}");
}

#[tokio::test]
async fn a_proxy_header_is_in_front() {
    let (listener, address) = listen().await;
    let sent = async |options: &str| {
        let probe = probe(address, options);
        let check = tokio::spawn(async move { probe.make().await });
        let (mut stream, _) = listener.accept().await.expect("it connects");
        let mut sent = vec![0; 16];
        _ = stream.read_exact(&mut sent).await;
        drop(stream);
        check.await.expect("a finding");
        sent
    };
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    assert_eq!(sent("health_check = { send_proxy = \"v2\" }").await, v2);
    let http = "health_check = { type = \"http\" }";
    assert_eq!(sent(&format!("send_proxy = \"v2\"\n{http}")).await, v2, "as sessions do");
    let off = "send_proxy = \"v2\"\nhealth_check = { type = \"http\", send_proxy = \"off\" }";
    assert_eq!(&sent(off).await[..6], b"GET / ");
    let v1 = "health_check = { type = \"http\", send_proxy = \"v1\" }";
    assert_eq!(sent(v1).await, b"PROXY UNKNOWN\r\nG");
}
