//! Keys with which the worker forwards all datagrams, because it looks into them or counts each.

use config_sync::table::routing::ListenerId;

use crate::proxy::udp::trial::tests::World;

/// The datagrams each way of a flow. Without further keys, 16 promote the flow.
const ROUNDS: u64 = 100;

/// A query for the address of the root, with one question and nothing else.
const QUERY: [u8; 17] = [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];

/// A PROXY header, of version 2, for a datagram from 192.0.2.1:9 to 192.0.2.2:53.
const HEADER: [u8; 28] =
    *b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x09\0\x35";

/// Where keys stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    Top,
    Listener,
    Route,
    Backend,
    Endpoint,
}

fn config(place: In, keys: &str) -> String {
    let at = |wanted| if place == wanted { keys } else { "" };
    let comma = if place == In::Endpoint { ", " } else { "" };
    format!(
        "{}
        [[listeners]]
        name = \"l\"
        protocol = \"UDP\"
        address = \"127.0.0.1:53\"
        flow_timeout = \"1h\"
        {}
        [[routes]]
        name = \"r\"
        listeners = [\"l\"]
        backends = [\"b\"]
        {}
        [[backends]]
        name = \"b\"
        endpoints = [{{ address = \"10.0.0.1:53\"{comma}{} }}]
        fast_path = \"auto\"
        {}",
        at(In::Top),
        at(In::Listener),
        at(In::Route),
        at(In::Endpoint),
        at(In::Backend),
    )
}

/// The promotions of a flow, after its datagrams have gone both ways.
fn promotions(place: In, keys: &str) -> u64 {
    let mut world = World::with(&config(place, keys));
    let header = if keys.starts_with("accept_proxy") { &HEADER[..] } else { &[] };
    world.payload = [header, &QUERY].concat();
    for _ in 0..ROUNDS {
        world.up();
        world.down();
    }
    let carried = world.carried.unwrap_or_default();
    let counters = world.counters.listener(ListenerId(0));
    assert_eq!(counters.to_endpoints.get() + carried.up, ROUNDS, "up with {place:?} {keys}");
    assert_eq!(counters.to_clients.get() + carried.down, ROUNDS, "down with {place:?} {keys}");
    world.promotions
}

/// Limits are high, so all datagrams go both ways.
#[test]
fn a_flow_whose_datagrams_are_looked_into_or_counted_stays_with_the_worker() {
    let all = [
        (In::Listener, "dns_guard = {}"),
        (In::Listener, "responses = 2"),
        (In::Listener, "interface = \"lo\""),
        (In::Listener, "accept_proxy = { from = [\"10.9.9.9\"] }"),
        (In::Listener, "limit_source = { datagrams_per_second = 1_000 }"),
        (In::Listener, "limit_source = { bytes_per_second = 10_000_000 }"),
        (In::Listener, "limit = { bytes_per_second = 10_000_000 }"),
        (In::Route, "limit_source = { datagrams_per_second = 1_000 }"),
        (In::Route, "limit_source = { bytes_per_second = 10_000_000 }"),
        (In::Route, "limit = { bytes_per_second = 10_000_000 }"),
        (In::Backend, "limit = { bytes_per_second = 10_000_000 }"),
        (In::Backend, "endpoint_limit = { bytes_per_second = 10_000_000 }"),
        (In::Endpoint, "limit = { bytes_per_second = 10_000_000 }"),
        (In::Backend, "fast_path_after = 100"),
    ];
    let wrong: Vec<_> = all.iter().filter(|(place, keys)| promotions(*place, keys) != 0).collect();
    assert!(wrong.is_empty(), "the kernel forwards flows with {wrong:#?}");
}

/// Limits of flows are no reason.
#[test]
fn a_flow_whose_datagrams_nobody_counts_is_promoted() {
    let all = [
        (In::Top, ""),
        (In::Top, "limits = { total_sessions = 9 }"),
        (In::Listener, "max_sessions = 9"),
        (In::Listener, "limit = { sessions = 9, new_per_second = 9 }"),
        (In::Listener, "limit_source = { sessions = 9, new_per_second = 9 }"),
        (In::Route, "limit = { sessions = 9 }"),
        (In::Route, "limit_source = { sessions = 9 }"),
        (In::Backend, "limit = { sessions = 9 }"),
        (In::Backend, "endpoint_limit = { new_per_second = 9 }"),
        (In::Endpoint, "max_sessions = 9"),
        (In::Backend, "fast_path_after = 99"),
        // The limit leaves this client out.
        (In::Route, "limit_source = { datagrams_per_second = 9, except = [\"10.9.9.9\"] }"),
    ];
    let wrong: Vec<_> = all.iter().filter(|(place, keys)| promotions(*place, keys) != 1).collect();
    assert!(wrong.is_empty(), "the kernel forwards no flow with {wrong:#?}");
}
