//! What a running gateway says of the ends of sessions, and of what it noticed.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Server, closed_without_a_byte, connect, echo, free_address, wait_until,
};
use serde_json::Value;

fn reasons(gateway: &Gateway) -> Vec<(String, u64)> {
    let closes = gateway.asks(&["closes"]);
    let rows = closes.as_array().expect("a list").iter();
    let reason = |row: &Value| row["reason"].as_str().expect("a reason").to_owned();
    rows.map(|row| (reason(row), row["count"].as_u64().expect("a count"))).collect()
}

fn events(gateway: &Gateway) -> Vec<String> {
    let output = gateway.verb(&["events", "--json", "--limit", "1000"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = |line: &str| -> Value { serde_json::from_str(line).expect("JSON") };
    text.lines().map(|of| line(of)["text"].as_str().expect("a text").to_owned()).collect()
}

fn says(gateway: &Gateway, part: &str) {
    wait_until(part, || events(gateway).iter().any(|text| text.contains(part)));
}

#[test]
fn ends_are_counted_by_reason_and_the_log_tells_what_changed() {
    let server = Server::tcp(echo);
    let (open, shut) = (free_address(), free_address());
    let config = |more: &str| {
        listener("open", "TCP", open, more)
            + &route("open", "open", &[("echo", 1)], "")
            + &listener("shut", "TCP", shut, "deny = [\"127.0.0.0/8\"]")
            + &route("shut", "shut", &[("echo", 1)], "")
            + &backend("echo", [server.address], "health_check = { interval = \"200ms\" }")
    };
    let gateway = Launch::default().socket().start(&config(""));
    for _ in 0..7 {
        let mut stream: TcpStream = connect(open);
        stream.write_all(b"x").expect("sending");
        stream.read_exact(&mut [0]).expect("the echo");
    }
    for _ in 0..3 {
        assert!(closed_without_a_byte(&mut connect(shut)));
    }
    wait_until("all ends are counted", || {
        reasons(&gateway) == [("client_fin".to_owned(), 7), ("source_denied".to_owned(), 3)]
    });
    // The thread that writes the log keeps the samples, and may be behind the counters.
    wait_until("a line of the log is a sample", || {
        let sample = &gateway.asks(&["closes"])[1]["samples"][0];
        sample["reason"] == "source_denied" && sample["listener"] == "shut"
    });
    let shown = gateway.verb(&["closes", "--samples"]);
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert!(shown.starts_with("REASON") && shown.contains("reason=source_denied"), "{shown}");

    says(&gateway, "configuration 1 is in force");
    gateway.reload(&config("idle_timeout = \"2h\""));
    says(&gateway, "configuration 2: listener open changed (idle_timeout)");
    assert!(gateway.verb(&["drain", &server.address.to_string()]).status.success());
    says(&gateway, "by an operator");
    gateway.write("nothing = 1\n");
    says(&gateway, "the new configuration is refused; the previous one stays in force");
    gateway.reload(&config(""));
    drop(server);
    says(&gateway, "is down: ");
    let shown = gateway.verb(&["events", "--limit", "1"]);
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert_eq!(gateway.get("/api/v1/events?limit=0").map(|(status, _)| status), Some(400));
    assert_eq!(gateway.get("/api/v1/events?after=x").map(|(status, _)| status), Some(400));
}
