//! Endpoints are listed, drained, disabled and weighted.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Server, connect, echo, free_address, run_verb, wait_until,
};
use serde_json::Value;

use crate::{rows, tagged, tags, text};

fn count_of(tags: &[u8], tag: u8) -> usize {
    tags.iter().filter(|of| **of == tag).count()
}

/// The row of the endpoint.
fn endpoint(gateway: &Gateway, of: &Server) -> Value {
    let all = gateway.asks(&["endpoints"]);
    let found = rows(&all).iter().find(|row| text(row, "endpoint") == of.address.to_string());
    found.expect("a row").clone()
}

#[test]
fn a_drained_endpoint_keeps_its_sessions_and_gets_no_new_ones() {
    let (a, b) = (tagged(b'a'), tagged(b'b'));
    let address = free_address();
    let config = forward("TCP", address, [a.address, b.address], "");
    let gateway = Launch::default().socket().start(&config);
    let mut live = loop {
        let mut stream = connect(address);
        let mut tag = [0];
        stream.read_exact(&mut tag).expect("a tag");
        if tag == *b"a" {
            break stream;
        }
    };
    let name = a.address.to_string();
    // Others come all the while.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut served = 0;
            // A test that fails says no stop.
            for _ in 0..10_000 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                served += tags(address, 10).len();
            }
            served
        });
        gateway.asks(&["drain", &name]);
        wait_until("no new session goes there", || count_of(&tags(address, 20), b'a') == 0);
        assert_eq!(count_of(&tags(address, 100), b'a'), 0);
        let row = endpoint(&gateway, &a);
        assert_eq!((text(&row, "state"), row["weight"].as_u64()), ("drained", Some(1)));
        assert_eq!(row["weight_in_force"].as_f64(), Some(0.0));
        live.write_all(b"y").expect("it lives");
        live.read_exact(&mut [0]).expect("it lives");
        gateway.reload(&format!("{config}# Another text.\n"));
        assert_eq!(count_of(&tags(address, 40), b'a'), 0, "a reload forgets nothing");
        assert_eq!(rows(&gateway.asks(&["overrides"])).len(), 1);
        gateway.asks(&["undrain", &name]);
        wait_until("it is used again", || count_of(&tags(address, 20), b'a') > 0);
        stop.store(true, Ordering::Relaxed);
        assert!(load.join().expect("nobody was refused") > 0);
    });
    assert_eq!(gateway.asks(&["overrides"]), Value::Array(Vec::new()));
    assert_eq!(text(&endpoint(&gateway, &a), "state"), "up");
    live.write_all(b"y").expect("it lives");
    live.read_exact(&mut [0]).expect("it lives");
}

#[test]
fn weights_move_the_split_and_overrides_end() {
    let (a, b) = (tagged(b'a'), tagged(b'b'));
    let address = free_address();
    let config = forward("TCP", address, [a.address, b.address], "");
    let gateway = Launch::default().socket().start(&config);
    let name = a.address.to_string();
    let share = |percent: usize| {
        let found = count_of(&tags(address, 200), b'a');
        found.abs_diff(2 * percent) <= 4
    };
    gateway.asks(&["weight", &format!("main/{name}"), "3"]);
    wait_until("three of four go there", || share(75));
    let row = endpoint(&gateway, &a);
    assert_eq!((row["weight"].as_u64(), row["weight_in_force"].as_f64()), (Some(1), Some(3.0)));
    gateway.asks(&["disable", &name, "--for", "2s"]);
    wait_until("it is as if down", || count_of(&tags(address, 20), b'a') == 0);
    assert_eq!(text(&endpoint(&gateway, &a), "state"), "disabled");
    assert!(rows(&gateway.asks(&["overrides"])).iter().any(|row| row["left_ms"].is_u64()));
    wait_until("the disable ends", || text(&endpoint(&gateway, &a), "state") == "up");
    wait_until("the weight is still in force", || share(75));
    gateway.asks(&["weight", &name, "--configured"]);
    wait_until("one of two goes there", || share(50));
    assert_eq!(gateway.asks(&["overrides"]), Value::Array(Vec::new()));
}

#[test]
fn an_endpoint_that_is_unknown_or_unclear_is_an_error_with_the_candidates() {
    let (server, other) = (Server::tcp(echo), Server::tcp(echo));
    let (shared, own) = (server.address, other.address);
    let first = free_address();
    let plain = listener("a", "TCP", first, "")
        + &route("a", "a", &[("a", 1), ("b", 1)], "")
        + &backend("a", [shared], "");
    let names = format!("endpoints = [\"{shared}\", {{ address = \"{own}\", name = \"own\" }}]\n");
    let config = format!("{plain}[[backends]]\nname = \"b\"\n{names}");
    let gateway = Launch::default().socket().start(&config);
    let refused = |words: &[&str]| {
        let output = gateway.verb(words);
        assert!(!output.status.success(), "{words:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&["drain", &shared.to_string()]);
    assert!(said.contains(&format!("a/{shared}, b/{shared}")), "{said}");
    let said = refused(&["drain", "nobody"]);
    assert!(said.contains("no endpoint is called") && said.contains(&own.to_string()), "{said}");
    let said = refused(&["weight", "own", "257"]);
    assert!(said.contains("0 to 256"), "{said}");
    let said = refused(&["enable", "own"]);
    assert!(said.contains("no disable override"), "{said}");
    assert_eq!(gateway.asks(&["drain", "b/own"])["endpoint"], format!("b/{own}"));
    gateway.asks(&["disable", &format!("b/{shared}")]);
    assert_eq!(rows(&gateway.asks(&["overrides"])).len(), 2);
    wait_until("the metric says so", || gateway.metrics().value("ringway_overrides", &[]) == 2);
    // Everybody may read, and only the socket may change.
    let output = run_verb(&["drain", "own"], &format!("http://{}", gateway.admin));
    assert!(String::from_utf8_lossy(&output.stderr).contains("reading only"), "{output:?}");
    // The endpoint leaves the configuration, and its override with it.
    gateway.reload(&(plain + &backend("b", [shared], "")));
    let left = gateway.asks(&["overrides"]);
    assert_eq!(rows(&left).len(), 1, "{left}");
    gateway.says(&format!("endpoint b/{own} is gone: drain"));
}

#[test]
fn the_list_of_endpoints_says_why_one_is_down_and_which_stand_by() {
    let server = tagged(b'a');
    let (address, dead, spare) = (free_address(), free_address(), free_address());
    let up = server.address;
    let endpoints = format!(
        "\"{up}\", \"{dead}\", {{ address = \"{spare}\", backup = true, name = \"spare\" }}"
    );
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &format!("[[backends]]\nname = \"main\"\nendpoints = [{endpoints}]\n")
        + "health_check = { type = \"tcp\", interval = \"100ms\" }\n";
    let gateway = Launch::default().socket().start(&config);
    let row = |of: SocketAddr| {
        let all = gateway.asks(&["endpoints"]);
        let found = rows(&all).iter().find(|row| text(row, "endpoint") == of.to_string());
        found.expect("a row").clone()
    };
    wait_until("the check has failed", || text(&row(dead), "state") == "down");
    assert!(text(&row(dead), "why").contains("refused"), "{}", row(dead));
    let mut streams: Vec<_> = (0..3).map(|_| connect(address)).collect();
    streams.iter_mut().for_each(|stream| stream.read_exact(&mut [0]).expect("a tag"));
    assert_eq!((text(&row(up), "state"), row(up)["sessions"].as_u64()), ("up", Some(3)));
    let stands_by = row(spare);
    // Nobody is at the spare endpoint either.
    wait_until("the spare is checked", || text(&row(spare), "state") == "down");
    assert_eq!(text(&stands_by, "name"), "spare");
    assert_eq!(stands_by["weight_in_force"].as_f64(), Some(0.0));
}
