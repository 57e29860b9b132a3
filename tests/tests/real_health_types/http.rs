//! HTTP, and Patroni, which speaks it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{Gateway, Server, accept_full, free_address, wait_until};

use crate::{answering, case, check, closing, judge, silent, tag};

/// Patroni's REST API: a GET of `/primary` or `/replica` is answered with 200 or 503.
fn patroni(address: SocketAddr, is_primary: Arc<AtomicBool>) -> Server {
    Server::tcp_at(address, move |mut stream| {
        let mut request = Vec::new();
        let mut part = [0; 1_024];
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(len) if len > 0 => request.extend_from_slice(&part[..len]),
                _ => return,
            }
        }
        let is_primary = is_primary.load(Ordering::SeqCst);
        let good = if is_primary { &b"GET /primary "[..] } else { b"GET /replica " };
        let status = if request.starts_with(good) { "200 OK" } else { "503 Service Unavailable" };
        let role = if is_primary { "primary" } else { "replica" };
        let body = format!("{{\"state\": \"running\", \"role\": \"{role}\"}}");
        _ = write!(stream, "HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{body}");
    })
}

#[test]
fn sessions_follow_the_primary_that_patroni_names() {
    let ips: [IpAddr; 2] = [[127, 0, 0, 1].into(), [127, 0, 0, 2].into()];
    let tags = ["a", "b"];
    let servers = [0, 1].map(|nth| {
        Server::tcp_at((ips[nth], 0).into(), move |mut stream| {
            _ = stream.write_all(tags[nth].as_bytes());
        })
    });
    let roles = [true, false].map(|is_primary| Arc::new(AtomicBool::new(is_primary)));
    let first = patroni((ips[0], 0).into(), Arc::clone(&roles[0]));
    let port = first.address.port();
    let _second = patroni((ips[1], port).into(), Arc::clone(&roles[1]));
    let (write, read) = (free_address(), free_address());
    let mut config = String::new();
    for (name, address) in [("primary", write), ("replica", read)] {
        let keys = format!("type = \"http\", port = {port}, path = \"/{name}\", status = 200");
        config += &listener(name, "TCP", address, "");
        config += &route(name, name, &[(name, 1)], "");
        config += &backend(name, servers.each_ref().map(|server| server.address), &check(&keys));
    }
    let gateway = Gateway::start(&config);
    let go_to = |address: SocketAddr, tag_of: u8| {
        wait_until("sessions go where they should", || {
            (0..8).all(|_| tag(address) == Some(tag_of))
        });
    };
    go_to(write, b'a');
    go_to(read, b'b');
    roles[0].store(false, Ordering::SeqCst);
    roles[1].store(true, Ordering::SeqCst);
    go_to(write, b'b');
    go_to(read, b'a');
    gateway.says(&format!("HTTP with 127.0.0.1:{port}: its status is 503 Service Unavailable"));
    gateway.stop();
}

#[test]
fn http_servers_that_answer_lie_stall_or_close() {
    let good = answering(&["HTTP/1.1 2", "00 OK\r\nContent-Len", "gth: 2\r\n\r\no", "k"]);
    let etcd = answering(&["HTTP/1.1 200 OK\r\n\r\n{\"health\":\"true\",\"reason\":\"\"}"]);
    let lost = answering(&["HTTP/1.1 503 Service Unavailable\r\n\r\n{\"health\":\"false\"}"]);
    let lies = answering(&["SSH-2.0-OpenSSH_9.2p1\r\n"]);
    let cut = answering(&["HTTP/1.1 200 OK\r\nContent-Le"]);
    let (stalls, closes) = (silent(), closing());
    let (full, _sockets) = accept_full();
    let http = check("type = \"http\", path = \"/health\"");
    let body = check("type = \"http\", path = \"/health\", body = '\"health\":\"true\"'");
    judge(&[
        case(good.address, http.as_str(), None),
        case(
            good.address,
            check("type = \"http\", method = \"HEAD\", status = [\"200-299\"]"),
            None,
        ),
        case(good.address, check("type = \"http\", body_regex = \"^ok$\""), None),
        case(good.address, check("type = \"http\", status = 204"), Some("its status is 200 OK")),
        case(etcd.address, body.as_str(), None),
        case(lost.address, body.as_str(), Some("its status is 503 Service Unavailable")),
        case(good.address, body.as_str(), Some("its body does not have what is expected")),
        case(lies.address, http.as_str(), Some("the answer is no HTTP")),
        case(cut.address, http.as_str(), Some("the head of the answer does not end")),
        case(stalls.address, http.as_str(), Some("no answer within 500 ms")),
        case(closes.address, http.as_str(), Some("HTTP with ")),
        case(full, http.as_str(), Some("connecting to ")),
    ]);
}
