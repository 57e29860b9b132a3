//! Which route of a listener takes a client, and what listeners of one socket share.

use std::fmt::Write as _;
use std::sync::Arc;

use config_sync::table::routing::{Fallback, RoutingTable};

use super::{ALL, listener, route, table};

#[test]
fn clients_without_a_client_hello_have_routes_of_their_own() {
    let table = table(ALL);
    let (udp, tls) = (&table.sockets[0], &table.sockets[1]);
    assert_eq!(tls.not_tls, Some(Fallback { listener: 1, route: 3 }));
    assert_eq!(tls.silent, Some(Fallback { listener: 1, route: 4 }));
    assert!(udp.not_tls.is_none() && udp.silent.is_none());
    for (route, name, backend) in [(3, "tls-a/not_tls", "named"), (4, "tls-a/silent", "none")] {
        let route = &table.routes[route];
        let backends: Vec<_> = route.backends.iter().map(|of| (of.backend, of.weight)).collect();
        let position = table.backends.iter().position(|of| &*of.name == backend);
        assert_eq!((&*route.name, backends), (name, vec![(position.expect("it"), 1)]));
    }
}

#[test]
fn the_longest_source_has_the_route_and_one_without_the_rest() {
    let text = listener("l", "TCP", "0.0.0.0:80", "")
        + &route("wide", "sources = [\"10.0.0.0/8\", \"2001:db8::/32\"]")
        + &route("rest", "")
        + &route("narrow", "sources = [\"10.1.0.0/16\"]");
    let table = table(&text);
    let listener = &table.listeners[0];
    for (client, expected) in [
        ("10.2.0.1", "wide"),
        ("10.1.0.1", "narrow"),
        ("::ffff:10.1.0.1", "narrow"),
        ("2001:db8::1", "wide"),
        ("192.0.2.1", "rest"),
        ("::1", "rest"),
    ] {
        let found = listener.routes.any().expect("routes");
        let route = listener.route(found, client.parse().expect("an address")).expect("a route");
        assert_eq!(&*table.routes[route].name, expected, "{client}");
    }
}

#[test]
fn protocols_choose_among_the_routes_of_one_name() {
    let text = listener("l", "TLS", "0.0.0.0:443", "")
        + &listener("plain", "TLS", "0.0.0.0:444", "")
        + &route("acme", "alpn = [\"acme-tls/1\"]\nsources = [\"10.1.0.0/16\"]")
        + &route("h2", "alpn = [\"h2\", \"h2c\"]\nhostnames = [\"a.example.com\"]")
        + &route("rest", "")
        + &route("p", "").replace("[\"l\"]", "[\"plain\"]");
    let table = table(&text);
    assert!(table.listeners[1].by_alpn.is_none());
    let listener = &table.listeners[0];
    let by_alpn = listener.by_alpn.as_ref().expect("protocols");
    for (name, offered, client, expected) in [
        ("a.example.com", &["h2"][..], "10.1.1.1", "h2"),
        ("a.example.com", &["http/1.1", "h2c"], "10.1.1.1", "h2"),
        ("a.example.com", &["acme-tls/1"], "10.1.1.1", "acme"),
        ("a.example.com", &["acme-tls/1"], "10.2.1.1", "rest"),
        ("b.example.com", &["h2"], "10.1.1.1", "rest"),
        ("b.example.com", &[], "10.1.1.1", "rest"),
    ] {
        let offered = offered.iter().map(|name| name.as_bytes());
        let client = client.parse().expect("an address");
        let mut found = by_alpn.values(Some(name), offered);
        let route = found.find_map(|found| listener.route(found, client)).expect("a route");
        assert_eq!(&*table.routes[route].name, expected, "{name} {client}");
    }
}

/// The server name says which routes there are, then the source which of them.
#[test]
fn a_longer_name_beats_a_longer_source() {
    let text = listener("l", "TLS", "0.0.0.0:443", "")
        + &route("any", "sources = [\"10.1.1.0/24\"]\nhostnames = [\"*.example.com\"]")
        + &route("exact", "sources = [\"10.1.0.0/16\"]\nhostnames = [\"a.example.com\"]")
        + &route("both", "hostnames = [\"*.example.com\"]");
    let table = table(&text);
    let listener = &table.listeners[0];
    for (name, client, expected) in [
        ("a.example.com", "10.1.1.1", Some("exact")),
        ("a.example.com", "10.2.1.1", None),
        ("b.example.com", "10.1.1.1", Some("any")),
        ("b.example.com", "10.2.1.1", Some("both")),
    ] {
        let found = listener.routes.get(Some(name)).expect("routes");
        let route = listener.route(found, client.parse().expect("an address"));
        let route = route.map(|route| &*table.routes[route].name);
        assert_eq!(route, expected, "{name} from {client}");
    }
}

#[test]
fn ten_thousand_routes_by_source_are_one_flat_table() {
    let mut text = listener("l", "UDP", "0.0.0.0:53", "");
    for n in 0..10_000 {
        let (high, low) = (n >> 8, n & 255);
        let sources = format!("sources = [\"10.{high}.{low}.0/24\"]");
        write!(text, "{}", route(&format!("r{n}"), &sources)).expect("a string");
    }
    let table = table(&text);
    let [by_source] = &table.listeners[0].by_source[..] else { panic!("one table") };
    assert!(by_source.size() < 10_000 * 16 + 200, "{} bytes", by_source.size());
    assert_eq!(by_source.get([10, 1, 2, 3].into()), 258);
    assert_eq!(table.listeners[0].route(0, [11, 0, 0, 1].into()), None);
}

/// What is denied whatever the server name is denied before the ClientHello.
#[test]
fn listeners_of_one_socket_with_the_same_ranges_have_them_in_common() {
    let (allow, deny) = ("allow = [\"10.0.0.0/8\"]", "deny = [\"10.0.0.0/8\"]");
    let two = |a: &str, b: &str| {
        let a = listener("a", "TLS", "0.0.0.0:443", &format!("hostname = \"a.test\"\n{a}"));
        table(&(a + &listener("b", "TLS", "0.0.0.0:443", b)))
    };
    let same = two(allow, allow);
    let access = |table: &RoutingTable, at: usize| table.listeners[at].access.clone();
    let common = same.sockets[0].access.clone().expect("common ranges");
    let both = access(&same, 0).zip(access(&same, 1)).expect("ranges of both");
    assert!(Arc::ptr_eq(&both.0, &both.1) && Arc::ptr_eq(&both.0, &common));
    for (a, b) in [(allow, deny), (allow, ""), ("", allow), ("", "")] {
        assert!(two(a, b).sockets[0].access.is_none(), "{a} {b}");
    }
}

#[test]
fn a_listener_has_a_socket_for_each_address_and_is_one_listener_for_all_its_names() {
    let text = "[[listeners]]\nname = \"web\"\nprotocol = \"TLS\"\n\
                addresses = [\"0.0.0.0:443\", \"[::]:443\"]\n\
                hostnames = [\"a.test\", \"*.b.test\"]\n\
                [[listeners]]\nname = \"rest\"\nprotocol = \"TLS\"\naddress = \"[::]:443\"\n\
                [[routes]]\nname = \"web\"\nlisteners = [\"web\"]\nbackends = []\n";
    let table = table(text);
    let addresses: Vec<_> = table.sockets.iter().map(|s| s.address.to_string()).collect();
    assert_eq!(addresses, ["0.0.0.0:443", "[::]:443"]);
    assert_eq!(table.listeners.len(), 2);
    for socket in &table.sockets {
        let listener = |name| socket.listeners.get(Some(name));
        assert_eq!([listener("a.test"), listener("x.b.test")], [Some(0), Some(0)]);
    }
    let other = table.sockets.iter().map(|socket| socket.listeners.get(Some("c.test")));
    assert_eq!(other.collect::<Vec<_>>(), [None, Some(1)], "only one address has the other");
    assert_eq!(table.listeners[0].routes.get(Some("a.test")), Some(0));
}
