//! Steps of your own, and agents.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{Gateway, Server, free_address, wait_until};

use crate::{case, check, closing, judge, silent, tag};

#[test]
fn an_exchange_of_steps() {
    let mail = Server::tcp(|mut stream| {
        let mut asked = [0; 100];
        _ = stream.write_all(b"220 mail.test\r\n");
        while stream.read(&mut asked).is_ok_and(|len| len > 0) {
            for piece in ["250-mail.te", "st\r\n250 HE", "LP\r\n"] {
                _ = stream.write_all(piece.as_bytes());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let greeting = "{ expect_regex = \"^220 .*\\r\\n\" }";
    let steps = |more: &str| check(&format!("type = \"exchange\", steps = [{greeting}{more}]"));
    let hello = ", { send = \"EHLO me\\r\\n\", expect_regex = \"(?m)^250 \" }";
    let hex = ", { send_hex = \"0d 0a\", expect_hex = \"48454c50\" }, { send = \"QUIT\\r\\n\" }";
    let never = ", { send = \"EHLO me\\r\\n\", expect = \"354\" }";
    let busy = Server::tcp(|mut stream| _ = stream.write_all(b"421 too busy\r\n"));
    let (stalls, closes) = (silent(), closing());
    let endless = Server::tcp(|mut stream| while stream.write_all(&[b'x'; 4_096]).is_ok() {});
    judge(&[
        case(mail.address, steps(hello), None),
        case(mail.address, steps(hex), None),
        case(mail.address, steps(never), Some("no answer within 500 ms")),
        case(busy.address, steps(""), Some("but is \"421 too busy\\r\\n\"")),
        case(endless.address, steps(""), Some("the answer of step 1 does not have a match")),
        case(stalls.address, steps(""), Some("no answer within 500 ms")),
        case(closes.address, steps(""), Some("the exchange with ")),
    ]);
}

#[test]
fn an_agent_says_what_its_endpoint_gets() {
    let said = Arc::new(AtomicBool::new(true));
    let says = Arc::clone(&said);
    let agent = Server::tcp(move |mut stream| {
        let line = if says.load(Ordering::SeqCst) { "up 75%\n" } else { "drain # for an hour\n" };
        _ = stream.write_all(line.as_bytes());
    });
    let echo = Server::tcp_tag("a");
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend(
            "main",
            [echo.address],
            &check(&format!("type = \"agent\", port = {}", agent.address.port())),
        );
    let gateway = Gateway::start(&config);
    assert_eq!(tag(address), Some(b'a'));
    said.store(false, Ordering::SeqCst);
    wait_until("the endpoint drains", || tag(address).is_none());
    said.store(true, Ordering::SeqCst);
    wait_until("the endpoint is back", || tag(address) == Some(b'a'));
    gateway.says("asks for 0 % of its weight");
    gateway.stop();
    let down = Server::tcp_tag("stopped # disk full\n");
    let (stalls, closes) = (silent(), closing());
    let lies = Server::tcp_tag("HTTP/1.1 400 Bad Request\r\n\r\n");
    let pieces = Server::tcp(|mut stream| {
        for piece in ["do", "wn # dis", "k full\n"] {
            _ = stream.write_all(piece.as_bytes());
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    judge(&[
        case(down.address, check("type = \"agent\""), Some("it says stopped: \"disk full\"")),
        case(stalls.address, check("type = \"agent\""), Some("no answer within 500 ms")),
        case(closes.address, check("type = \"agent\""), Some("the agent at ")),
        case(lies.address, check("type = \"agent\""), Some("HTTP/1.1")),
        case(pieces.address, check("type = \"agent\""), Some("it says down: \"disk full\"")),
    ]);
}
