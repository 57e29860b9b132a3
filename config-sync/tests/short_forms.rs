//! A short form and its long form are one configuration.

use config_sync::check::parse_for;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::gateway::print;
use config_sync::machine::Machine;
use config_sync::model::config::{Config, Cores};
use config_sync::model::resolver::Resolver;

/// The configuration as TOML, and the table that workers get. The names draw the secret of the
/// sources' keys, so only tables of the same names can be equal.
fn compiled(text: &str, names: &mut Names) -> (String, String) {
    let machine = Machine { cores: vec![0, 1], congestion: vec!["cubic".to_owned()] };
    let config = parse_for("f", text, &machine).unwrap_or_else(|error| panic!("{text}\n{error}"));
    let table = compile(&config, names, 1);
    let table = table.unwrap_or_else(|error| panic!("{text}\n{error}"));
    (print::toml(&config, &mut |_| None), format!("{table:#?}"))
}

/// Compares two forms, and both with what is printed for them.
#[track_caller]
fn same(short: &str, long: &str) {
    let names = &mut Names::new();
    let (printed, table) = compiled(long, names);
    assert_eq!(compiled(short, names), (printed.clone(), table.clone()), "{short}");
    assert_eq!(compiled(&printed, names), (printed, table), "{long}");
}

const LISTENER: &str =
    "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\naddress = \"0.0.0.0:80\"\n";

fn route(backends: &str) -> String {
    format!("[[routes]]\nname = \"l\"\nlisteners = [\"l\"]\nbackends = {backends}\n")
}

fn backend(name: &str, more: &str) -> String {
    format!(
        "[[backends]]\nname = \"{name}\"\nendpoints = [\"10.0.0.1:80\", \"10.0.0.2:80\"]\n{more}\n"
    )
}

const ENDPOINTS: &str = "endpoints = [\"10.0.0.1:80\", \"10.0.0.2:80\"]\n";

/// The long form has every key that is about the process too.
#[test]
fn the_long_form_of_a_whole_file_means_the_same() {
    let all = include_str!("../../tests/fuzz/seeds/config/all.toml");
    let short = include_str!("../../tests/fuzz/seeds/config/short.toml");
    for text in [all, short, ""] {
        let machine = Machine { cores: vec![0, 1], congestion: vec!["cubic".to_owned()] };
        let config = parse_for("f", text, &machine).unwrap_or_else(|error| panic!("{error}"));
        let long = print::long(&config);
        let read = parse_for("f", &long, &machine).unwrap_or_else(|error| panic!("{long}{error}"));
        let process = |config: &Config| {
            let Config { admin, drain_timeout, drain_grace, lame_duck, limits, .. } = config;
            let places = [*drain_timeout, *drain_grace, *lame_duck];
            let cores = match &config.cores {
                Cores::Auto => Vec::new(),
                Cores::List(cores) => cores.iter().map(|core| core.value).collect(),
            };
            let servers = config.resolver.servers.iter().map(|at| at.value.clone());
            let resolver = Resolver { servers: Vec::new(), ..config.resolver.clone() };
            let names = (servers.collect::<Vec<_>>(), resolver);
            (cores, *admin, places, config.access_log.clone(), *limits, names)
        };
        assert_eq!(process(&read), process(&config), "{long}");
        assert_eq!(print::long(&read), long);
        let names = &mut Names::new();
        assert_eq!(compiled(&long, names), compiled(text, names), "{long}");
    }
}

#[test]
fn endpoints_of_a_listener_are_a_route_and_a_backend() {
    let long = format!("{LISTENER}{}{}", route("[{ name = \"l\", weight = 1 }]"), backend("l", ""));
    same(&format!("{LISTENER}{ENDPOINTS}"), &long);
}

#[test]
fn keys_of_a_backend_stand_beside_endpoints() {
    let keys = "balance = \"source-hash\"\nconnect_timeout = \"1s\"\nconnect_attempts = 2\n\
                source = [\"10.0.0.9\"]\nsend_proxy = \"v2\"\nproxy_tlvs = [\"unique-id\"]\n\
                health_check = { interval = \"1s\" }\n";
    let long = format!("{LISTENER}{}{}", route("[\"l\"]"), backend("l", keys));
    same(&format!("{LISTENER}{ENDPOINTS}{keys}"), &long);
    let udp = |text: &str| text.replace("TCP", "UDP");
    let keys = "upstream_rest = \"500ms\"\nupstream_sockets = \"shared\"\n\
                source = [\"127.1.0.0/16\"]\nhealth_check = { port = 81 }\n";
    let long = format!("{LISTENER}{}{}", route("[\"l\"]"), backend("l", keys));
    same(&udp(&format!("{LISTENER}{ENDPOINTS}{keys}")), &udp(&long));
}

/// Keys that listeners and backends have are the listener's.
#[test]
fn keys_of_both_are_the_listeners() {
    let keys =
        "nodelay = false\nkeepalive = \"5s\"\nuser_timeout = \"9s\"\ncongestion = \"cubic\"\n";
    let long = format!("{LISTENER}{keys}{}{}", route("[\"l\"]"), backend("l", ""));
    same(&format!("{LISTENER}{keys}{ENDPOINTS}"), &long);
}

#[test]
fn backends_of_a_listener_are_a_route() {
    let pools = backend("a", "") + &backend("b", "balance = \"random\"");
    for weights in [
        "[\"a\", \"b\"]",
        "[{ name = \"a\", weight = 90 }, { name = \"b\", weight = 10 }]",
        "[\"a\", { name = \"b\", weight = 0 }]",
        "[]",
    ] {
        let long = format!("{LISTENER}{}{pools}", route(weights));
        same(&format!("{LISTENER}backends = {weights}\n{pools}"), &long);
    }
}

/// Several backends have one balance, so these keys are the route's.
#[test]
fn keys_of_a_route_stand_beside_backends() {
    let pools = backend("a", "") + &backend("b", "balance = \"random\"");
    for keys in [
        "balance = \"source-hash\"\n",
        "on_unavailable = \"next\"\n",
        "balance = \"round-robin\"\non_unavailable = \"refuse\"\n",
    ] {
        let long = format!("{LISTENER}{}{keys}{pools}", route("[\"a\", \"b\"]"));
        same(&format!("{LISTENER}backends = [\"a\", \"b\"]\n{keys}{pools}"), &long);
    }
}

/// Other routes stand beside the listener's own, and may lead to its endpoints.
#[test]
fn a_listeners_own_route_is_for_all_others() {
    let tls = "[[listeners]]\nname = \"l\"\nprotocol = \"TLS\"\naddress = \"[::]:443\"\n\
               hostnames = [\"*.a.test\", \"b.test\"]\n";
    let more = "[[routes]]\nname = \"special\"\nlisteners = [\"l\"]\nhostnames = [\"x.a.test\"]\n\
                backends = [\"l\", \"other\"]\n";
    let pools = backend("l", "") + &backend("other", "");
    let long = format!("{tls}{}{more}{pools}", route("[\"l\"]"));
    same(&format!("{tls}{ENDPOINTS}{more}{}", backend("other", "")), &long);
    let more = "[[routes]]\nname = \"special\"\nlisteners = [\"l\"]\nsources = [\"10.0.0.0/8\"]\n\
                backends = [\"other\"]\n";
    let long = format!("{LISTENER}{}{more}{pools}", route("[\"l\"]"));
    same(&format!("{LISTENER}{ENDPOINTS}{more}{}", backend("other", "")), &long);
}

#[test]
fn defaults_are_for_keys_that_are_not_there() {
    let defaults = "[defaults.listener]\nidle_timeout = \"10m\"\nflow_timeout = \"9s\"\n\
                    max_sessions = 7\n\
                    [defaults.backend]\nbalance = \"random\"\nkeepalive = \"9s\"\n\
                    health_check = { interval = \"1s\" }\nupstream_rest = \"1s\"\n";
    // A default for endpoints' connections is no default for clients' connections.
    let own = "balance = \"random\"\nkeepalive = \"9s\"\nhealth_check = { interval = \"1s\" }";
    let long = format!(
        "{LISTENER}idle_timeout = \"10m\"\nmax_sessions = 7\n{}{}",
        route("[\"l\"]"),
        backend("l", own)
    );
    same(&format!("{defaults}{LISTENER}{ENDPOINTS}"), &long);
    same(&format!("{defaults}{LISTENER}{}{}", route("[\"l\"]"), backend("l", "")), &long);
    let long = long
        .replace("max_sessions = 7", "max_sessions = 0")
        .replace("\"random\"", "\"round-robin\"");
    let other = "max_sessions = 0\n";
    let short = format!("{defaults}{LISTENER}{other}{ENDPOINTS}balance = \"round-robin\"\n");
    same(&short, &long);
    // Defaults for TCP, and checks over TCP, do not apply to UDP.
    let udp = |text: &str| text.replace("TCP", "UDP");
    let long = format!(
        "{LISTENER}flow_timeout = \"9s\"\nmax_sessions = 7\n{}{}",
        route("[\"l\"]"),
        backend("l", "balance = \"random\"\nupstream_rest = \"1s\"")
    );
    let names = &mut Names::new();
    let short = compiled(&udp(&format!("{defaults}{LISTENER}{ENDPOINTS}")), names);
    assert_eq!(short, compiled(&udp(&long), names));
    let short = format!("{defaults}{LISTENER}{}{}", route("[\"l\"]"), backend("l", ""));
    same(&udp(&short), &udp(&long));
    let all = "[defaults.listener]\nprotocol = \"UDP\"\n";
    same(
        &format!("{all}{}{ENDPOINTS}", LISTENER.replace("protocol = \"TCP\"\n", "")),
        &udp(&format!("{LISTENER}{ENDPOINTS}")),
    );
}

/// Cargo sets `CARGO_PKG_NAME` for every test.
#[test]
fn variables_stand_for_their_values() {
    let listener = LISTENER.replace("\"l\"", "\"${CARGO_PKG_NAME}\"");
    let listener = listener.replace("0.0.0.0:80", "${RINGWAY_NOT_SET:-0.0.0.0}:80");
    let long = LISTENER.replace("\"l\"", "\"config-sync\"");
    same(&format!("{listener}{ENDPOINTS}"), &format!("{long}{ENDPOINTS}"));
    let file = "allow = { file = \"a$${b}\" }\n";
    let machine = Machine { cores: vec![0], congestion: Vec::new() };
    let config = parse_for("f", &format!("{LISTENER}{ENDPOINTS}{file}"), &machine).expect("valid");
    let printed = print::toml(&config, &mut |_| None);
    assert!(config.files().contains(std::path::Path::new("a${b}")), "{printed}");
    assert!(printed.contains("a$${b}"), "{printed}");
}

#[test]
fn one_address_and_one_name_in_a_list_are_the_same_alone() {
    let tls = "[[listeners]]\nname = \"l\"\nprotocol = \"TLS\"\n";
    same(
        &format!("{tls}addresses = [\"[::]:443\"]\nhostnames = [\"A.test\"]\n{ENDPOINTS}"),
        &format!("{tls}address = \"[::]:443\"\nhostname = \"a.test\"\n{ENDPOINTS}"),
    );
}
