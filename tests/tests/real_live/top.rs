//! What `ringway top` counts.

use std::io::{Read as _, Write as _};

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{Launch, Server, connect, echo, free_address, session};

use crate::rows;

#[test]
fn top_counts_listeners_endpoints_and_clients() {
    let server = Server::tcp(echo);
    let (open, denied) = (free_address(), free_address());
    let config = listener("open", "TCP", open, "")
        + &listener("denied", "TCP", denied, "deny = [\"127.0.0.0/8\"]")
        + &route("open", "open", &[("web", 1)], "")
        + &route("denied", "denied", &[("web", 1)], "")
        + &backend("web", [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let live = session(open);
    (0..4).for_each(|_| drop(session(open)));
    _ = connect(denied).write_all(b"x");
    gateway.closes(5);
    let top = gateway.asks(&["top"]);
    let of = |list: &str, key: &str, name: &str| {
        let row = rows(&top[list]).iter().find(|row| row[key] == name);
        row.unwrap_or_else(|| panic!("no {name} in {top}")).clone()
    };
    let row = of("listeners", "listener", "open");
    assert_eq!(
        (&row["sessions"], &row["opened"], &row["refused"]),
        (&1.into(), &5.into(), &0.into())
    );
    assert_eq!(of("listeners", "listener", "denied")["refused"], 1);
    let row = of("endpoints", "endpoint", &server.address.to_string());
    assert_eq!((&row["sessions"], &row["opened"]), (&1.into(), &5.into()));
    // The first window is not over, or has just ended: it has all that has ended.
    for (list, count) in [("ended", 4), ("bytes", 8), ("refused", 1)] {
        let client = &top["clients"][list][0];
        let expected = serde_json::json!({ "client": "127.0.0.1", "count": count, "error": 0 });
        assert_eq!(client, &expected, "{list}: {top}");
    }
    let once = gateway.verb(&["top", "--once", "--by", "sessions", "--interval", "1s"]);
    let said = String::from_utf8_lossy(&once.stdout);
    assert!(once.status.success() && !said.contains('\x1b'), "{said}");
    for words in ["LISTENER", "open", "web", "127.0.0.1", "ended sessions"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    drop(live);
}

/// Who has more than its share is among those that are refused most.
#[test]
fn top_counts_sources_over_their_limit() {
    let server = Server::tcp(echo);
    let address = free_address();
    let limit = "limit_source = { sessions = 2 }";
    let gateway =
        Launch::default().socket().start(&forward("TCP", address, [server.address], limit));
    let held = [(); 2].map(|()| session(address));
    for _ in 0..5 {
        let mut client = connect(address);
        let served = client.write_all(b"x").and_then(|()| client.read_exact(&mut [0]));
        assert!(served.is_err(), "the source has two sessions");
    }
    gateway.closes(5);
    let top = gateway.asks(&["top"]);
    let expected = serde_json::json!({ "client": "127.0.0.1", "count": 5, "error": 0 });
    assert_eq!(top["clients"]["refused"][0], expected, "{top}");
    let once = gateway.verb(&["top", "--once", "--by", "refused", "--interval", "1s"]);
    let said = String::from_utf8_lossy(&once.stdout);
    assert!(once.status.success() && said.contains("127.0.0.1"), "{said}");
    drop(held);
}
