//! The keys of a file in the table that workers get, and what any bytes in their place come to.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use config_sync::check::parse_for;
use config_sync::compile::names::Names;
use config_sync::compile::{compile, last_table};
use config_sync::machine::Machine;
use config_sync::model::config::{Cores, LogTarget, limits};
use config_sync::table::address::UnixPath;
use config_sync::table::load::NO_LIMIT;
use config_sync::table::rate::Rate;
use config_sync::table::routing::{
    Balance, Drain, Limits, Protocol, ProxyVersion, RoutingTable, SendProxy, Sources, Transport,
};
use proptest::prelude::*;

use super::{ALL, load, machine, table};

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
    limits_reach_the_table(&table);
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
    assert_eq!(slots.len(), 5_003);
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
    assert_eq!((dns.fast_path_after, web.fast_path_after), (4, 16));
    let options = web.options;
    assert_eq!((options.nodelay, options.keepalive, options.user_timeout), (false, 0, 30_000));
    assert!(none.endpoints.is_empty() && matches!(none.balance, Balance::Random));
}

#[test]
fn a_failed_endpoint_rests_no_longer_than_a_check_or_an_ejection_takes() {
    for (keys, rest) in [
        ("", 10_000),
        ("health_check = {}", 7_000),
        ("health_check = { interval = \"1s\", jitter = \"500ms\", timeout = \"300ms\" }", 1_800),
        ("health_check = { interval = \"1m\" }", 10_000),
        ("eject = {}", 10_000),
        ("eject = { base = \"2s\" }", 2_000),
        ("eject = { base = \"9s\" }\nhealth_check = { interval = \"2s\" }", 4_000),
    ] {
        let text = format!("[[backends]]\nname = \"b\"\nendpoints = [\"10.0.0.1:1\"]\n{keys}\n");
        assert_eq!(table(&text).backends[0].rest, rest, "{keys}");
    }
}

#[test]
fn an_empty_file_is_a_configuration_of_defaults() {
    let config = parse_for("f", "", &machine()).expect("defaults");
    assert_eq!((config.drain_timeout, config.drain_grace, config.lame_duck), (30_000, 0, 5_000));
    assert_eq!(config.cores, Cores::Auto);
    assert_eq!(config.admin, Some("127.0.0.1:9900".parse().expect("address")));
    assert_eq!(config.access_log.target, LogTarget::Stdout);
    assert!(!config.access_log.open && config.sandbox);
}

#[test]
fn the_log_may_go_to_syslog_and_be_sampled() {
    let text = "sandbox = false\nadmin = { endpoint_labels = false }\naccess_log = { path = \
                \"syslog\", sample = { flow_timeout = 0, client_fin = 100 } }\n";
    let config = parse_for("f", text, &machine()).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(!config.endpoint_labels);
    assert_eq!(config.access_log.target, LogTarget::Syslog("/dev/log".into()));
    let sample: Vec<_> = config.access_log.sample.iter().collect();
    assert_eq!(sample, [(&"client_fin", &100), (&"flow_timeout", &0)]);
    let printed = config_sync::gateway::print::long(&config);
    let again = parse_for("f", &printed, &machine()).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(again.access_log, config.access_log, "{printed}");
    assert!(!again.endpoint_labels && !again.sandbox, "{printed}");
}

fn limits_reach_the_table(table: &RoutingTable) {
    let total = table.total.as_ref().map(|limit| limit.sessions);
    let route = table.routes[0].limit.as_ref().map(|limit| limit.sessions);
    assert_eq!((total, route), (Some(5_000), Some(50)));
    let own = table.listeners[1].limit.as_deref().expect("a limit");
    assert_eq!((own.sessions, own.opening), (500, Some(Rate::new(50, 100))));
    assert_eq!(own.bytes, Some(Rate::new(1_000_000, 1_000_000)));
    let source = table.listeners[0].limit_source.as_ref().and_then(|limit| limit.bytes);
    assert_eq!(source, Some(Rate::new(10_000, 10_000)));
    let of_route = table.routes[0].limit_source.as_deref().expect("a limit");
    assert_eq!((of_route.sessions, of_route.prefix_v4), (7, 28));
    let of_listener = table.listeners[0].limit_source.as_deref().expect("a limit");
    assert!(table.sources.is_some() && of_route.key != of_listener.key);
    let another = table.routes.iter().find(|route| &*route.name == "by-protocol");
    let another = another.and_then(|route| route.limit_source.as_deref()).expect("a limit");
    assert_eq!((another.key, another.shared.as_deref()), (of_route.key, Some("all")));
    let web = table.backends.iter().find(|of| &*of.name == "web").expect("a backend");
    let loads = web.loads.iter().flatten().filter_map(|load| load.limit.as_deref());
    let rates: Vec<_> = loads.map(|limit| (limit.opening, limit.bytes)).collect();
    let own = (Some(Rate::new(5, 9)), None);
    let each = (None, Some(Rate::new(2_000_000, 2_000_000)));
    assert_eq!(rates.iter().filter(|rate| **rate == each).count(), 2);
    assert!(rates.contains(&own) || rates.len() == 2, "the backup has its own: {rates:?}");
    let of_listener = table.listeners[0].limit.as_deref().expect("a limit");
    let mut backends = table.backends.iter().filter_map(|of| of.limit.as_deref());
    let of_backend = backends.next().expect("one has a limit");
    assert!(Arc::ptr_eq(&of_listener.usage, &of_backend.usage), "they share it");
    assert_eq!(of_backend.shared.as_deref(), Some("site"));
    assert_eq!((of_backend.sessions, of_backend.opening), (NO_LIMIT, Some(Rate::new(20, 20))));
}

#[test]
fn a_listener_for_tcp_may_delay() {
    let text = "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:80\"\n\
                endpoints = [\"10.0.0.1:80\"]\nlimit = { sessions = 5, over = \"delay\" }\n";
    let delays = |table: &RoutingTable| table.listeners[0].limit.as_ref().map(|of| of.delays);
    assert_eq!(delays(&table(text)), Some(true));
    let config = parse_for("f", text, &machine()).unwrap_or_else(|faults| panic!("{faults}"));
    let printed = config_sync::gateway::print::long(&config);
    assert_eq!(delays(&table(&printed)), Some(true), "{printed}");
    assert_eq!(delays(&table(&text.replace("delay", "refuse"))), Some(false));
}

/// Who shares a limit that delays, and can't let clients wait, refuses them.
#[test]
fn of_those_who_share_a_limit_listeners_for_tcp_may_delay() {
    let text = "[[listeners]]\nname = \"t\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:80\"\n\
                backends = [\"b\"]\nlimit = \"all\"\n\
                [[listeners]]\nname = \"u\"\nprotocol = \"UDP\"\naddress = \"127.0.0.1:80\"\n\
                backends = [\"b\"]\nlimit = \"all\"\n\
                [[listeners]]\nname = \"s\"\nprotocol = \"TLS\"\naddress = \"127.0.0.1:443\"\n\
                backends = [\"b\"]\nlimit = \"all\"\n\
                [[backends]]\nname = \"b\"\nendpoints = [\"10.0.0.1:80\"]\nlimit = \"all\"\n\
                [[shared_limits]]\nname = \"all\"\nsessions = 5\nover = \"delay\"\n";
    let config = parse_for("f", text, &machine()).unwrap_or_else(|faults| panic!("{faults}"));
    for text in [text, &config_sync::gateway::print::long(&config)] {
        let table = table(text);
        let listeners = table.listeners.iter().filter_map(|of| of.limit.as_deref());
        let limits = listeners.chain(table.backends.iter().filter_map(|of| of.limit.as_deref()));
        let limits: Vec<_> = limits.collect();
        let delays: Vec<_> = limits.iter().map(|limit| limit.delays).collect();
        assert_eq!(delays, [true, false, false, false], "{text}");
        assert!(limits.iter().all(|limit| Arc::ptr_eq(&limit.usage, &limits[0].usage)));
    }
}

/// What is in use of a limit outlives a table without the limit, as long as a session has a place.
#[test]
fn a_limit_that_comes_back_counts_what_is_there() {
    let mut names = Names::new();
    let mut table = |keys: &str| {
        let text = format!(
            "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:80\"\n\
             endpoints = [\"10.0.0.1:80\"]\n{keys}\n"
        );
        let config = parse_for("f", &text, &machine()).unwrap_or_else(|why| panic!("{why}"));
        compile(&config, &mut names, 1).unwrap_or_else(|why| panic!("{why}"))
    };
    let used = |table: &RoutingTable| {
        let limit = table.listeners[0].limit.as_ref().expect("a limit");
        limit.usage.sessions.get()
    };
    let first = table("limit = { sessions = 5 }");
    let place = first.listeners[0].limit.as_ref().expect("a limit").enter(0);
    drop(first);
    assert!(table("").listeners[0].limit.is_none());
    assert_eq!(used(&table("limit = { sessions = 2 }")), 1);
    drop(place);
    assert_eq!(used(&table("limit = { sessions = 2 }")), 0);
}

#[test]
fn keys_at_the_top_are_read() {
    let config = parse_for("f", ALL, &machine()).unwrap_or_else(|problems| panic!("{problems}"));
    let memory = (config.memory_percent, config.memory_readiness);
    assert_eq!((config.total_sessions, memory), (5_000, (80, true)));
    assert_eq!(config.readiness_percent, 90);
    let Cores::List(cores) = &config.cores else { panic!("{:?}", config.cores) };
    assert_eq!(cores.iter().map(|core| core.value).collect::<Vec<_>>(), [0, 1]);
    let other = Machine { cores: vec![0], congestion: Vec::new() };
    assert!(config.cores.unusable(&machine()).is_empty());
    let unusable = config.cores.unusable(&other);
    assert!(unusable[0].to_string().contains("core 1 is not usable"), "{unusable:?}");
    assert_eq!(config.admin, Some("127.0.0.1:9900".parse().expect("address")));
    let socket = config.admin_socket().and_then(UnixPath::file);
    assert_eq!(socket, Some(Path::new("/run/ringway/admin.sock")));
    let token = config.admin_token_file.as_ref().map(|file| file.value.as_path());
    assert_eq!(token, Some(Path::new("token")));
    let tls = config.admin_tls.as_ref().expect("TLS");
    let client_ca = tls.client_ca.as_ref().map(|file| file.value.as_path());
    let files = (tls.cert.value.as_path(), tls.key.value.as_path(), client_ca);
    let expected = (Path::new("admin.pem"), Path::new("admin.key"), Some(Path::new("ca.pem")));
    assert_eq!(files, expected);
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
fn the_last_table_has_nothing_and_says_how_long_to_drain() {
    let config = parse_for("f", "drain_timeout = \"10s\"\nlame_duck = \"1s\"", &machine());
    let table = last_table(config.as_ref().ok(), 7);
    assert_eq!((table.generation, table.lame_duck, table.sockets.len()), (7, 1_000, 0));
    assert_eq!(table.drain, Some(Drain { timeout: 10_000, spread: 1_000 }));
    assert_eq!(last_table(None, 1).drain, Some(Drain { timeout: 0, spread: 0 }));
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
