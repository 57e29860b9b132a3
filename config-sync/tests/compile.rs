//! What workers are given for what was asked.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use config_sync::check::parse_for;
use config_sync::compile::names::Names;
use config_sync::compile::whole::Whole;
use config_sync::compile::{compile, drained, whole};
use config_sync::machine::Machine;
use config_sync::model::config::{Cores, LogTarget, limits};
use config_sync::model::endpoint::{Resolved, Standing};
use config_sync::model::place::Problems;
use config_sync::table::address::{EndpointAddress, UnixPath};
use config_sync::table::load::Load;
use config_sync::table::routing::{
    Absence, Backend, Balance, Drain, Fallback, Limits, Protocol, ProxyVersion, RoutingTable,
    SendProxy, Sources, Transport,
};
use proptest::prelude::*;

/// Every key that this version has.
const ALL: &str = include_str!("../../tests/fuzz/seeds/config/all.toml");

fn port(at: EndpointAddress) -> u16 {
    at.socket_address().expect("an IP address and port").port()
}

fn machine() -> Machine {
    Machine { cores: vec![0, 1], congestion: vec!["cubic".to_owned()] }
}

fn load(text: &str, names: &mut Names, generation: u64) -> Result<RoutingTable, Problems> {
    compile(&parse_for("f", text, &machine())?, names, generation)
}

fn table(text: &str) -> RoutingTable {
    load(text, &mut Names::new(), 1).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_key_reaches_the_table() {
    let table = table(ALL);
    assert_eq!((table.generation, table.lame_duck, table.log_opens), (1, 5_000, true));
    assert_eq!(table.sockets.len(), 2, "the TLS listeners share one");
    let (udp, tls) = (&table.sockets[0], &table.sockets[1]);
    assert_eq!(
        (udp.transport, udp.reads_hello, udp.listeners.any()),
        (Transport::Udp, false, Some(0))
    );
    assert_eq!(
        (tls.transport, tls.reads_hello, tls.listeners.any()),
        (Transport::Tcp, true, Some(2))
    );
    assert_eq!(tls.listeners.get(Some("x.a.example.com")), Some(1));
    assert_eq!(tls.listeners.get(Some("a.example.com")), Some(2));
    let options = tls.options;
    assert_eq!((options.nodelay, options.keepalive, options.user_timeout), (true, 60, 0));
    assert_eq!(&options.congestion, b"cubic\0\0\0\0\0\0\0\0\0\0\0");

    let from: Vec<_> = tls.accept_proxy.from.iter().map(ToString::to_string).collect();
    assert_eq!(from, ["10.0.0.0/8", "fd00::1/128"]);
    assert!(tls.accept_proxy.only && !udp.accept_proxy.only);
    assert!(udp.accept_proxy.from.is_empty());

    let dns = &table.listeners[0];
    assert_eq!((dns.protocol, dns.flow_timeout, dns.responses), (Protocol::Udp, 5_000, 1));
    assert_eq!((dns.max_sessions, dns.routes.any()), (100, Some(0)));
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let access = dns.access.as_ref().expect("ranges");
    assert!(access.admits(address("10.1.1.1")) && !access.admits(address("10.9.1.1")));
    assert_eq!(dns.route(0, address("10.1.2.3")), Some(0));
    assert_eq!(dns.route(0, address("10.2.2.3")), None, "it is in no route's sources");
    let access = table.routes[0].access.as_ref().expect("ranges");
    assert!(access.admits(address("10.1.1.2")) && !access.admits(address("10.1.1.1")));
    assert!(tls.access.is_none() && table.routes[1].access.is_none());
    let web = &table.listeners[1];
    assert_eq!(web.timeouts.idle, 5_400_000);
    assert_eq!((web.timeouts.hello, web.timeouts.lifetime), (5_000, 0));
    assert_eq!((web.timeouts.write_stall, web.timeouts.half_close), (300_000, 300_000));
    assert_eq!(web.routes.get(Some("db.a.example.com")), Some(1));
    assert_eq!(web.routes.any(), None);
    assert_eq!(table.listeners[2].routes.get(Some("b.example.com")), Some(1));

    assert_eq!(table.routes[0].backends[0].weight, 1_000_000);
    let weights: Vec<_> = table.routes[1].backends.iter().map(|b| (b.backend, b.weight)).collect();
    assert_eq!(weights, [(1, 0), (2, 1)], "a weight of 0 is kept, none is 1");

    let [dns, web, none, _named] = &table.backends[..] else { panic!("four backends") };
    let Balance::SourcePortHash(slots) = &dns.balance else { panic!("{:?}", dns.balance) };
    assert_eq!(slots.len(), 251);
    assert!(matches!(web.balance, Balance::LeastConnections));
    assert_eq!((web.connect_timeout, web.connect_attempts), (300, 8));
    let told = SendProxy { version: ProxyVersion::V2, unique_id: true, crc32c: true };
    assert_eq!((web.send_proxy, dns.send_proxy), (Some(told), None));
    assert_eq!(web.source, [Sources { first: [10, 0, 0, 9].into(), count: 1 }]);
    let six = "fd00:53::".parse().expect("address");
    let four = Sources { first: [127, 1, 0, 0].into(), count: 65_536 };
    assert_eq!(dns.source, [four, Sources { first: six, count: 1 << 20 }]);
    assert_eq!((dns.shared_sockets, web.shared_sockets), (true, false));
    assert_eq!((dns.upstream_rest, web.upstream_rest), (500, 2_000));
    let options = web.options;
    assert_eq!((options.nodelay, options.keepalive, options.user_timeout), (false, 0, 30_000));
    assert!(none.endpoints.is_empty() && matches!(none.balance, Balance::Random));
}

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

/// A listener of each protocol, without routes.
fn listener(name: &str, protocol: &str, address: &str, more: &str) -> String {
    let names = format!("[[listeners]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\n");
    format!("{names}address = \"{address}\"\n{more}\n")
}

fn route(name: &str, more: &str) -> String {
    format!("[[routes]]\nname = \"{name}\"\nlisteners = [\"l\"]\nbackends = []\n{more}\n")
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
fn an_empty_file_is_a_configuration_of_defaults() {
    let config = parse_for("f", "", &machine()).expect("defaults");
    assert_eq!((config.drain_timeout, config.drain_grace, config.lame_duck), (30_000, 0, 5_000));
    assert_eq!(config.cores, Cores::Auto);
    assert_eq!(config.admin, Some("127.0.0.1:9900".parse().expect("address")));
    assert_eq!(config.access_log.target, LogTarget::Stdout);
    assert!(!config.access_log.open);
}

#[test]
fn keys_at_the_top_are_read() {
    let config = parse_for("f", ALL, &machine()).unwrap_or_else(|problems| panic!("{problems}"));
    let Cores::List(cores) = &config.cores else { panic!("{:?}", config.cores) };
    assert_eq!(cores.iter().map(|core| core.value).collect::<Vec<_>>(), [0, 1]);
    let other = Machine { cores: vec![0], congestion: Vec::new() };
    assert!(config.cores.unusable(&machine()).is_empty());
    let unusable = config.cores.unusable(&other);
    assert!(unusable[0].to_string().contains("core 1 is not usable"), "{unusable:?}");
    assert_eq!(config.admin, Some("127.0.0.1:9900".parse().expect("address")));
    let socket = config.admin_socket.and_then(UnixPath::file);
    assert_eq!(socket, Some(Path::new("/run/ringway/admin.sock")));
    let token = config.admin_token_file.as_ref().map(|file| file.value.as_path());
    assert_eq!(token, Some(Path::new("token")));
    let overrides = config.admin_overrides_file.as_ref().map(|file| file.value.as_path());
    assert_eq!(overrides, Some(Path::new("overrides.toml")));
    assert_eq!(
        config.limits,
        Limits {
            sessions: 1000,
            flows: 1000,
            buffers: 100,
            pipes: 16,
            turn_bytes: 0,
            bulk_bytes: 0
        }
    );
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

#[test]
fn ids_stay_with_their_names_from_table_to_table() {
    let mut names = Names::new();
    let first = load(ALL, &mut names, 1).expect("first");
    let (before, after) = ALL.split_at(ALL.find("[[listeners]]").expect("listeners"));
    let more = "[[listeners]]\nname = \"new\"\nprotocol = \"TCP\"\naddress = \"0.0.0.0:53\"\n\n";
    let text =
        format!("{before}{more}{after}[[backends]]\nname = \"z\"\nendpoints = [\"10.0.0.1:53\"]\n")
            .replace("\"[2001:db8::1]:53\", ", "");
    let second = load(&text, &mut names, 2).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(second.listeners[1].id, first.listeners[0].id);
    assert_eq!(second.sockets[1].id, first.sockets[0].id, "of an unchanged listener");
    assert_eq!(second.routes[0].id, first.routes[0].id);
    assert_eq!(second.backends[0].id, first.backends[0].id);
    assert_eq!(second.backends[0].endpoints[0].id, first.backends[0].endpoints[1].id);
    let other = second.backends[4].endpoints[0].id;
    assert_ne!(other, second.backends[0].endpoints[0].id, "the same address in another backend");
    let third = load(ALL, &mut names, 3).expect("third");
    assert_eq!(third.backends[0].endpoints, first.backends[0].endpoints, "gone and back");

    let gone = second.listeners[0].id;
    assert_eq!(names.listener(gone), Some("new"), "it may still have sessions");
    assert_eq!(names.endpoint(other), Some(("z", SocketAddr::from(([10, 0, 0, 1], 53)).into())));
    assert_eq!(
        names.socket(first.sockets[0].id).map(|bound| bound.transport),
        Some(Transport::Udp)
    );
    assert_eq!(names.route(first.routes[1].id), Some("web"));
    assert_eq!(names.backend(first.backends[2].id), Some("none"));
    assert_eq!(names.listeners().count(), 4);
    assert_eq!(names.endpoints().count(), 6);
}

#[test]
fn ids_that_run_out_are_a_problem_of_the_new_table() {
    let mut names = Names::new();
    let backend = |generation: u16| {
        let [high, low] = generation.to_be_bytes();
        let endpoints: Vec<_> =
            (0..8192).map(|i| format!("\"10.{high}.{low}.{}:{}\"", i % 250, 1 + i)).collect();
        format!("[[backends]]\nname = \"b\"\nendpoints = [{}]\n", endpoints.join(","))
    };
    for generation in 0..8 {
        assert!(load(&backend(generation), &mut names, 1).is_ok(), "{generation}");
    }
    let problems = load(&backend(8), &mut names, 1).expect_err("full");
    assert_eq!(problems.0.len(), 8192);
    assert!(problems.0[0].message.starts_with("too many endpoints"), "{}", problems.0[0]);
    assert!(load(&backend(3), &mut names, 1).is_ok(), "what is known is still known");
}

#[test]
fn the_last_table_has_nothing_and_says_how_long_to_drain() {
    let config = parse_for("f", "drain_timeout = \"10s\"\nlame_duck = \"1s\"", &machine());
    let table = drained(config.as_ref().ok(), 7);
    assert_eq!((table.generation, table.lame_duck, table.sockets.len()), (7, 1_000, 0));
    assert_eq!(table.drain, Some(Drain { timeout: 10_000, spread: 1_000 }));
    assert_eq!(drained(None, 1).drain, Some(Drain { timeout: 0, spread: 0 }));
}

#[test]
fn limits_left_open_follow_from_workers_files_and_ports() {
    let open = Limits::default();
    let automatic = |workers, files| limits(open, 0, workers, files, 28_232, false);
    let expected = Limits {
        sessions: 4808,
        flows: 14_116,
        buffers: 256,
        pipes: 64,
        turn_bytes: 1 << 18,
        bulk_bytes: 8 << 20,
    };
    assert_eq!(automatic(2, 20_000), expected);
    assert_eq!(automatic(1, 1 << 30).sessions, 65_536);
    assert_eq!(automatic(1, u64::MAX).flows, 28_232);
    assert_eq!(automatic(64, u64::MAX).flows, 4_096);
    assert_eq!(limits(open, 0, 1, u64::MAX, 100_000, false).flows, 65_536);
    let range = limits(open, 1_000, 2, 20_000, 28_232, false);
    assert_eq!(range.sessions, 4808 - 500, "a socket of each worker for each port of a range");
    // Where flows take files, all that is opened at the most is no more than may be.
    for (workers, files) in [(1, 1024), (2, 1024), (2, 20_000), (8, 65_536), (4, 1 << 20)] {
        let some = limits(open, 0, workers, files, 28_232, true);
        let each = some.flows + 2 * some.sessions + 2 * some.pipes;
        let all = u64::from(each) * workers as u64 + 512;
        assert!(all <= files && some.flows > 0 && some.sessions > 0, "{files}: {some:?}");
    }
    assert_eq!(
        automatic(64, 100),
        Limits {
            sessions: 1,
            flows: 100,
            buffers: 256,
            pipes: 64,
            turn_bytes: 1 << 18,
            bulk_bytes: 8 << 20
        }
    );
    assert_eq!(automatic(0, 0).flows, 1);
    let asked =
        Limits { sessions: 5, flows: 6, buffers: 100, pipes: 7, turn_bytes: 8, bulk_bytes: 9 };
    assert_eq!(limits(asked, 0, 2, 1024, 28_232, false), Limits { buffers: 128, ..asked });
    let most = Limits { buffers: u16::MAX, ..open };
    assert_eq!(limits(most, 0, 1, 1024, 28_232, false).buffers, 32_768);
}

proptest! {
    /// Values of every kind in place of those of a good file.
    #[test]
    fn whatever_stands_there_nothing_panics_and_problems_have_places(
        cuts in prop::collection::vec((0..ALL.len(), 0..40usize, piece()), 1..6),
    ) {
        let mut text = ALL.to_owned();
        for (at, len, piece) in cuts {
            let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
            let at = at.unwrap_or(0);
            let end = (at + len).min(text.len());
            let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(at);
            text.replace_range(at..end, &piece);
        }
        if let Err(problems) = load(&text, &mut Names::new(), 1) {
            prop_assert!(!problems.0.is_empty());
            for problem in &problems.0 {
                prop_assert!(problem.line >= 1 && problem.column >= 1);
                prop_assert!(problem.line as usize <= text.lines().count() + 1);
                prop_assert!(!problem.message.is_empty());
            }
        }
    }

    #[test]
    fn any_text_is_read_without_panic(text in ".{0,200}") {
        _ = load(&text, &mut Names::new(), 1);
    }
}

fn piece() -> impl Strategy<Value = String> {
    let words = [
        "",
        "\"\"",
        "1",
        "-1",
        "true",
        "[]",
        "{}",
        "[[routes]]\n",
        "name = \"dns\"\n",
        "\n",
        "\"",
        "1979-05-27",
        "1.5",
        "\"*.\"",
        "\"0s\"",
        "\"10.0.0.1:53\"",
        "é",
        "=",
        "[",
        "}",
        "0xfff",
    ];
    prop::sample::select(words.to_vec()).prop_map(str::to_owned)
}

/// Endpoint `n` of the backend `b` has the address 10.0.0.1 and port `n`.
fn pool(endpoints: &str, balance: &str) -> (Whole, String) {
    let text =
        format!("[[backends]]\nname = \"b\"\nbalance = \"{balance}\"\nendpoints = [{endpoints}]\n");
    let config = parse_for("f", &text, &machine()).expect("a configuration");
    let whole = whole(&config, &Resolved::default(), &mut Names::new()).expect("its parts fit");
    (whole, text)
}

fn ports(backend: &Backend) -> Vec<(u16, u32)> {
    backend.endpoints.iter().map(|of| (port(of.address), of.weight)).collect()
}

#[test]
fn weights_are_turns_and_shares_of_hashes() {
    let endpoints = "{ address = \"10.0.0.1:1\", weight = 3 }, \"10.0.0.1:2\", \
                     { address = \"10.0.0.1:3\", weight = 0 }";
    for balance in ["round-robin", "least-connections", "random", "source-hash"] {
        let (whole, text) = pool(endpoints, balance);
        let table = whole.pickable(1, &|_, _| Standing::UP, None);
        let [backend] = &table.backends[..] else { panic!("{table:?}") };
        assert_eq!(ports(backend), [(1, 3), (2, 1), (3, 0)]);
        assert_eq!(*backend.turns, [0, 0, 1, 0], "{text}");
        if let Balance::SourceHash(slots) = &backend.balance {
            let of = |index| slots.iter().filter(|slot| **slot == index).count();
            assert_eq!((of(0) + of(1), of(2)), (slots.len(), 0));
            assert!(of(0).abs_diff(3 * of(1)) < 10, "{} and {}", of(0), of(1));
        }
    }
}

/// Workers are told of one count for an endpoint, from table to table, and only where they need it.
#[test]
fn sessions_are_counted_over_all_workers_where_somebody_asks() {
    let mut names = Names::new();
    let mut loads = |balance: &str| {
        let text = format!(
            "[[backends]]\nname = \"b\"\nbalance = \"{balance}\"\nendpoints = [\"10.0.0.1:1\"]\n"
        );
        load(&text, &mut names, 1).expect("a table").backends.remove(0).loads
    };
    let of = |loads: &[Option<Load>]| loads[0].clone().expect("a load").sessions;
    let first = loads("least-connections");
    assert!(loads("round-robin").is_empty(), "nobody pays for what nobody uses");
    let second = loads("least-connections");
    assert!(Arc::ptr_eq(&of(&first), &of(&second)));
}

#[test]
fn backups_stand_in_only_while_no_other_may_be_picked() {
    let endpoints = "\"10.0.0.1:1\", { address = \"10.0.0.1:2\", backup = true }, \
                     { address = \"10.0.0.1:3\", weight = 0 }";
    let (whole, _) = pool(endpoints, "source-hash");
    let table = |down: &[u16]| {
        let standing = |_: &str, at: EndpointAddress| {
            if down.contains(&port(at)) { Standing::DOWN } else { Standing::UP }
        };
        let table = whole.pickable(1, &standing, None);
        ports(&table.backends[0])
    };
    assert_eq!(table(&[]), [(1, 1), (3, 0)]);
    assert_eq!(table(&[1]), [(2, 1), (3, 0)], "with weight 0 it gets nothing");
    assert_eq!(table(&[1, 2]), [(3, 0)]);
    assert_eq!(table(&[2, 3]), [(1, 1)]);
}

#[test]
fn backups_keep_what_they_got_without_failback() {
    let endpoints = "\"10.0.0.1:1\", { address = \"10.0.0.1:2\", backup = true }, \
                     { address = \"10.0.0.1:3\", backup = true }";
    for (key, back) in [("", &[1][..]), ("\"\nfailback = false\n#", &[2, 3])] {
        let (whole, text) = pool(endpoints, &format!("source-hash{key}"));
        let mut table = None;
        let mut ports_without = |down: &[u16]| -> Vec<u16> {
            let standing = |_: &str, at: EndpointAddress| {
                if down.contains(&port(at)) { Standing::DOWN } else { Standing::UP }
            };
            let next = whole.pickable(1, &standing, table.as_ref());
            let found = ports(&next.backends[0]).iter().map(|(port, _)| *port).collect();
            table = Some(next);
            found
        };
        assert_eq!(ports_without(&[]), [1], "{text}");
        assert_eq!(ports_without(&[1]), [2, 3]);
        assert_eq!(ports_without(&[1, 2]), [3]);
        assert_eq!(ports_without(&[]), back, "{text}");
        assert_eq!(ports_without(&[2, 3]), [1], "no backup is left");
        assert_eq!(ports_without(&[]), [1], "the first has it again, and keeps it");
        assert!(ports_without(&[1, 2, 3]).is_empty());
        assert_eq!(ports_without(&[]), [1], "nobody had it");
    }
}

#[test]
fn what_backups_keep_outlives_changes_of_other_keys() {
    let mut names = Names::new();
    let mut whole_of = |keys: &str, backups: &str| {
        let text = format!(
            "[[backends]]\nname = \"b\"\nendpoints = [\"10.0.0.1:1\", {{ address = \
             \"10.0.0.1:2\", backup = {backups} }}]\n{keys}\n"
        );
        let config = parse_for("f", &text, &machine()).expect("a configuration");
        whole(&config, &Resolved::default(), &mut names).expect("its parts fit")
    };
    let first_is_down = |_: &str, at: EndpointAddress| {
        if port(at) == 1 { Standing::DOWN } else { Standing::UP }
    };
    let kept = "failback = false";
    let failed_over = whole_of(kept, "true").pickable(1, &first_is_down, None);
    let first = |whole: &Whole, before| {
        let table = whole.pickable(2, &|_, _| Standing::UP, before);
        ports(&table.backends[0]).iter().map(|(port, _)| *port).collect::<Vec<_>>()
    };
    let other_keys = "failback = false\nbalance = \"random\"";
    assert_eq!(first(&whole_of(other_keys, "true"), Some(&failed_over)), [2]);
    assert_eq!(first(&whole_of(kept, "false"), Some(&failed_over)), [1, 2], "it is no backup");
    assert_eq!(first(&whole_of("", "true"), Some(&failed_over)), [1]);
    assert_eq!(first(&whole_of(kept, "true"), None), [1], "a new process");
}

#[test]
fn sessions_leave_endpoints_that_are_gone_where_that_is_asked_for() {
    let mut names = Names::new();
    let mut whole_of = |endpoints: &str, keys: &str, before: Option<&Whole>| {
        let text = format!("[[backends]]\nname = \"b\"\nendpoints = [{endpoints}]\n{keys}\n");
        let config = parse_for("f", &text, &machine()).expect("a configuration");
        let mut whole = whole(&config, &Resolved::default(), &mut names).expect("its parts fit");
        if let Some(before) = before {
            whole.after(before, &names);
        }
        whole
    };
    let gone = |whole: &Whole, down: &[u16]| {
        let standing = |_: &str, at: EndpointAddress| {
            if down.contains(&port(at)) { Standing::DOWN } else { Standing::UP }
        };
        let table = whole.pickable(1, &standing, None);
        table.gone.iter().map(|of| (of.id.0, of.absence, of.close_after)).collect::<Vec<_>>()
    };
    let (both, one) = ("\"10.0.0.1:1\", \"10.0.0.1:2\"", "\"10.0.0.1:1\"");
    let kept = whole_of(both, "", None);
    assert_eq!(gone(&kept, &[2]), [], "by default sessions stay");
    assert_eq!(gone(&whole_of(one, "", Some(&kept)), &[]), []);
    let keys = "on_down = \"close\"\non_removed = \"close\"\nclose_after = \"3s\"";
    let closed = whole_of(both, keys, Some(&kept));
    assert_eq!(gone(&closed, &[]), []);
    assert_eq!(gone(&closed, &[2]), [(1, Absence::Down, 3_000)]);
    // The key of the configuration that still had the endpoint counts, and goes on to count.
    let removed = whole_of(one, "", Some(&closed));
    assert_eq!(gone(&removed, &[]), [(1, Absence::Removed, 3_000)]);
    let later = whole_of(one, keys, Some(&removed));
    let both_gone = [(1, Absence::Removed, 3_000), (0, Absence::Down, 3_000)];
    assert_eq!(gone(&later, &[1]), both_gone);
    assert_eq!(gone(&whole_of(both, keys, Some(&later)), &[]), [], "it is back");
}

#[test]
fn a_part_of_a_weight_counts_and_what_has_not_changed_is_taken_over() {
    let (whole, _) = pool("\"10.0.0.1:1\", \"10.0.0.1:2\"", "source-hash");
    let share = |share| {
        move |_: &str, at: EndpointAddress| Standing {
            is_up: true,
            share: if port(at) == 1 { share } else { 100 },
            weight: None,
        }
    };
    let before = whole.pickable(1, &share(100), None);
    assert_eq!(ports(&before.backends[0]), [(1, 1), (2, 1)]);
    let quarter = whole.pickable(2, &share(25), Some(&before));
    assert_eq!(ports(&quarter.backends[0]), [(1, 25), (2, 100)]);
    assert_eq!(quarter.backends[0].turns.iter().filter(|turn| **turn == 1).count(), 4);
    let same = whole.pickable(3, &share(25), Some(&quarter));
    assert!(Arc::ptr_eq(&same.backends[0].turns, &quarter.backends[0].turns));
    let (Balance::SourceHash(old), Balance::SourceHash(new)) =
        (&quarter.backends[0].balance, &same.backends[0].balance)
    else {
        panic!("{same:?}")
    };
    assert!(Arc::ptr_eq(old, new), "hash tables take long");
}

#[test]
fn a_weight_that_is_asked_for_later_counts_in_place_of_the_configured_one() {
    let (whole, _) = pool("\"10.0.0.1:1\", \"10.0.0.1:2\"", "round-robin");
    let weighted = |weight, is_up| {
        let standing = move |_: &str, at: EndpointAddress| match port(at) {
            1 => Standing { is_up, weight, ..Standing::UP },
            _ => Standing::UP,
        };
        ports(&whole.pickable(1, &standing, None).backends[0])
    };
    assert_eq!(weighted(Some(3), true), [(1, 3), (2, 1)]);
    assert_eq!(weighted(Some(0), true), [(1, 0), (2, 1)], "it stays, with its sessions");
    assert_eq!(weighted(Some(3), false), [(2, 1)], "a weight brings nobody up");
}

#[test]
fn backups_take_over_from_endpoints_with_weight_0() {
    let endpoints = "\"10.0.0.1:1\", { address = \"10.0.0.1:2\", backup = true }";
    let (whole, _) = pool(endpoints, "round-robin");
    let drained = |_: &str, at: EndpointAddress| match port(at) {
        1 => Standing { weight: Some(0), ..Standing::UP },
        _ => Standing::UP,
    };
    let table = whole.pickable(1, &drained, None);
    assert_eq!(ports(&table.backends[0]), [(1, 0), (2, 1)]);
}
