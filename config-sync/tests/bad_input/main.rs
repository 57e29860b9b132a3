//! What an operator is told about a faulty file: every fault at once, each with its place.

mod addresses;
mod backends;
mod files;
mod health;
mod listeners;
mod routes;
mod syntax;
mod top_level;

use config_sync::check::parse_for;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::machine::Machine;
use config_sync::model::config::Config;
use config_sync::model::place::Problems;
use config_sync::table::routing::RoutingTable;
use config_sync::toml;

fn machine() -> Machine {
    Machine { cores: vec![0, 1], congestion: vec!["reno".to_owned(), "cubic".to_owned()] }
}

fn load(text: &str) -> Result<(Config, RoutingTable), Problems> {
    let config = parse_for("f", text, &machine())?;
    let table = compile(&config, &mut Names::new(), 1)?;
    Ok((config, table))
}

/// A listener, route and backend without fault, lines 1 to 10.
const GOOD: &str = r#"[[listeners]]
name = "l"
protocol = "TCP"
address = "0.0.0.0:80"
[[routes]]
name = "r"
listeners = ["l"]
backends = [{ name = "b" }]
[[backends]]
name = "b"
endpoints = ["10.0.0.1:80"]
"#;

/// Loads `text` and compares all that is said, without the name of the file.
fn refused(text: &str, expected: &[&str]) {
    let problems = load(text).expect_err(text);
    let said: Vec<_> =
        problems.0.iter().map(|p| p.to_string().trim_start_matches("f:").to_owned()).collect();
    assert_eq!(said.len(), expected.len(), "{text}\n{problems}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{text}\nsaid     {said}\nexpected {expected}");
    }
}

#[test]
fn missing_keys_and_wrong_words() {
    refused(
        "[[listeners]]\n[[routes]]\n[[backends]]",
        &[
            "1:1: listeners[0].name: missing; every listener has a name",
            "1:1: listeners[0].protocol: missing; \"TCP\", \"UDP\" or \"TLS\"",
            "1:1: listeners[0].address: missing; IP:PORT",
            "2:1: routes[0].name: missing",
            "2:1: routes[0].listeners: missing",
            "2:1: routes[0].backends: missing",
            "3:1: backends[0].name: missing",
            "3:1: backends[0].endpoints: missing",
        ],
    );
    refused(
        &GOOD.replace("\"TCP\"", "\"tcp\""),
        &["3:12: listeners[0].protocol: must be \"TCP\" or \"UDP\" or \"TLS\", not \"tcp\" (did"],
    );
    refused(
        &GOOD.replace("\"l\"", "\"a b\""),
        &["2:8: listeners[0].name: must be 1 to 253", "7:14: routes[0].listeners[0]: there is no"],
    );
    refused(&GOOD.replace("[\"l\"]", "[]"), &["7:13: routes[0].listeners: names no listener"]);
    refused(&GOOD.replace("[\"l\"]", "\"l\""), &["7:13: routes[0].listeners: must be a list"]);
}

fn listener(name: &str, protocol: &str, address: &str, more: &str) -> String {
    let names = format!("[[listeners]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\n");
    format!("{names}address = \"{address}\"\n{more}\n")
}

#[test]
fn names_that_are_given_twice() {
    let again = GOOD.replace("0.0.0.0:80", "0.0.0.0:81").replace("[\"l\"]", "[\"x\"]");
    refused(
        &format!("{GOOD}{again}"),
        &[
            "13:8: listeners[1].name: line 2 has a listener named \"l\" already",
            "17:8: routes[1].name: line 6 has a route named \"r\" already",
            "18:14: routes[1].listeners[0]: there is no listener \"x\"",
            "21:8: backends[1].name: line 10 has a backend named \"b\" already",
        ],
    );
}

fn route(name: &str, listeners: &str, hostnames: &str) -> String {
    let names = format!("[[routes]]\nname = \"{name}\"\nlisteners = {listeners}\n");
    format!("{names}hostnames = {hostnames}\nbackends = []\n")
}

#[test]
fn every_fault_is_told_at_once_and_none_that_follows_from_another() {
    refused(
        &GOOD
            .replace("0.0.0.0:80", "0.0.0.0")
            .replace("\"10.0.0.1:80\"", "1")
            .replace("\"r\"", "2"),
        &[
            "4:11: listeners[0].address: must be IP:PORT",
            "6:8: routes[0].name: must be a string, not a whole number",
            "11:14: backends[0].endpoints[0]: must be a string",
        ],
    );
    refused(
        &format!("lame_duck = 1\n{GOOD}").replace("[\"l\"]", "[\"m\"]"),
        &[
            "1:13: lame_duck: must be a string",
            "8:14: routes[0].listeners[0]: there is no listener",
        ],
    );
}

#[test]
fn wrong_types_are_refused_for_every_key_so_none_is_ignored() {
    for section in toml::SCHEMA {
        for key in section.keys.iter().map(|key| key.name) {
            let (before, path) = match section.name {
                "" => ("", String::new()),
                "listeners.tls" => ("[[listeners]]\ntls.", "listeners[0].tls.".to_owned()),
                "listeners.tls.certificates" => (
                    "[[listeners]]\ntls.mode = \"Terminate\"\n[[listeners.tls.certificates]]\n",
                    "listeners[0].tls.certificates[0].".to_owned(),
                ),
                "listeners.tls.default_certificate" => (
                    "[[listeners]]\ntls.mode = \"Terminate\"\ntls.default_certificate.",
                    "listeners[0].tls.default_certificate.".to_owned(),
                ),
                "listeners.accept_proxy" => {
                    ("[[listeners]]\naccept_proxy.", "listeners[0].accept_proxy.".to_owned())
                }
                "limit_source" => {
                    ("[[listeners]]\nlimit_source.", "listeners[0].limit_source.".to_owned())
                }
                "endpoint_limit" => {
                    ("[[backends]]\nendpoint_limit.", "backends[0].endpoint_limit.".to_owned())
                }
                "limit" => ("[[listeners]]\nlimit.", "listeners[0].limit.".to_owned()),
                "shared_limits" => ("[[shared_limits]]\n", "shared_limits[0].".to_owned()),
                "listeners.dns_guard" => {
                    ("[[listeners]]\ndns_guard.", "listeners[0].dns_guard.".to_owned())
                }
                "backends.eject" => ("[[backends]]\neject.", "backends[0].eject.".to_owned()),
                "backends.health_check" => {
                    ("[[backends]]\nhealth_check.", "backends[0].health_check.".to_owned())
                }
                "backends.endpoints" => (
                    "[[backends]]\n[[backends.endpoints]]\n",
                    "backends[0].endpoints[0].".to_owned(),
                ),
                "backends.health_check.steps" => (
                    "[[backends]]\n[[backends.health_check.steps]]\n",
                    "backends[0].health_check.steps[0].".to_owned(),
                ),
                "backends.tls" => ("[[backends]]\ntls.", "backends[0].tls.".to_owned()),
                "routes.backends" => {
                    ("[[routes]]\n[[routes.backends]]\n", "routes[0].backends[0].".to_owned())
                }
                "listeners" => ("[[listeners]]\n", "listeners[0].".to_owned()),
                "routes" => ("[[routes]]\n", "routes[0].".to_owned()),
                "backends" => ("[[backends]]\n", "backends[0].".to_owned()),
                table => (&*format!("[{table}]\n"), format!("{table}.")),
            };
            let text = format!("{before}{key} = 1979-05-27\n");
            let problems = load(&text).expect_err(&text);
            let said = problems.0.iter().find(|problem| problem.field == format!("{path}{key}"));
            let said = &said.unwrap_or_else(|| panic!("{text}{problems}")).message;
            assert!(said.starts_with("must be"), "{text}{problems}");
        }
    }
}

#[test]
fn the_reference_has_every_key() {
    let reference = include_str!("../../REFERENCE.md");
    for section in toml::SCHEMA {
        let heading = match section.name {
            "" => "## Top level".to_owned(),
            name => format!("## `{name}`"),
        };
        let part = reference.split("\n## ").find(|part| format!("## {part}").starts_with(&heading));
        let part = part.unwrap_or_else(|| panic!("no section {heading}"));
        for key in section.keys {
            let row = format!("| `{}` |", key.name);
            assert!(part.contains(&row), "{heading} has no row {row}");
        }
    }
}
