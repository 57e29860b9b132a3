//! How the gateway fares.

use ringway_tests::real::config::forward;
use ringway_tests::real::{Launch, Server, echo, free_address, session, wait_until};

use crate::text;

#[test]
fn status_says_how_the_gateway_fares_and_why_a_configuration_was_refused() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward("TCP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let sessions: Vec<_> = (0..3).map(|_| session(address)).collect();
    let status = || gateway.asks(&["status"]);
    let first = status();
    assert_eq!((&first["ready"], &first["draining"]), (&true.into(), &false.into()), "{first}");
    assert_eq!((text(&first, "source"), first["sessions"].as_u64()), ("files", Some(3)), "{first}");
    assert!(first["sessions_most"].as_u64() >= Some(3) && first["table"].as_u64() >= Some(1));
    assert!(first.get("refused").is_none() && text(&first, "since").ends_with('Z'), "{first}");

    gateway.write(&format!("{config}color = 1\n"));
    wait_until("the file is refused", || status().get("refused").is_some());
    let refused = status();
    assert!(text(&refused, "refused").contains("color"), "{refused}");
    assert_eq!(refused["reloads_failed"], 1, "{refused}");
    for same in ["generation", "since"] {
        assert_eq!(refused[same], first[same], "the earlier configuration stays: {refused}");
    }
    let shown = gateway.verb(&["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("state                ready\n") && shown.contains("color"), "{shown}");

    gateway.write(&format!("{config}connect_timeout = \"4s\"\n"));
    wait_until("the file is taken", || status().get("refused").is_none());
    let later = status();
    assert!(text(&later["last_refused"], "why").contains("color"), "{later}");
    assert!(text(&later["last_refused"], "at") > text(&first, "since"), "{later}");
    assert_eq!(later["workers_behind"], 0, "{later}");
    assert!(later["generation"].as_u64() > first["generation"].as_u64(), "{later}");
    assert_eq!(later["sessions"], 3, "{later}");
    drop(sessions);
    wait_until("no session is left", || status()["sessions"] == 0);
}
