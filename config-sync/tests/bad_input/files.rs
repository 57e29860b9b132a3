//! What is said of several files that are one configuration.

use config_sync::check::parse_files;
use config_sync::compile::compile;
use config_sync::compile::names::Names;

use super::{GOOD, machine};

/// Loads several files, and compares all that is said.
fn refused_files(files: &[(&str, &str)], expected: &[&str]) {
    let table = parse_files(files, &machine())
        .and_then(|config| compile(&config, &mut Names::new(), 1).map(|_| ()));
    let problems = table.expect_err("faulty");
    assert_eq!(problems.0.len(), expected.len(), "{problems}");
    for (said, expected) in problems.to_string().lines().zip(expected) {
        assert!(said.starts_with(expected), "said     {said}\nexpected {expected}");
    }
}

const ONE_MORE: &str = r#"[[listeners]]
name = "m"
protocol = "TCP"
address = "0.0.0.0:81"
idle_timeout = "1h"
endpoints = ["10.0.0.1:81"]
"#;

#[test]
fn faults_of_several_files_have_the_places_of_their_files() {
    let same_address = ONE_MORE.replace(":81\"\ni", ":80\"\ni");
    refused_files(
        &[("b.toml", GOOD), ("a.toml", &same_address)],
        &["a.toml:4:11: listeners[0].address: 0.0.0.0:80 clashes with listener \"l\" (b.toml:2)"],
    );
    refused_files(
        &[("a.toml", GOOD), ("b.toml", GOOD)],
        &[
            "b.toml:2:8: listeners[0].name: a.toml:2 has a listener named \"l\" already",
            "b.toml:4:11: listeners[0].address: 0.0.0.0:80 clashes with listener \"l\" (a.toml:2)",
            "b.toml:6:8: routes[0].name: a.toml:6 has a route named \"r\" already",
            "b.toml:7:14: routes[0].listeners[0]: listener \"l\" has a route already: \"r\", in \
             a.toml:6",
            "b.toml:10:8: backends[0].name: a.toml:10 has a backend named \"b\" already",
        ],
    );
    // Files without faults lie between files with faults, and the last one is not TOML.
    refused_files(
        &[
            ("main.toml", "colour = 1\n"),
            ("b.toml", ONE_MORE),
            ("a.toml", &GOOD.replace("\"b\" }", "\"c\" }")),
            ("c.toml", "routes = 1"),
        ],
        &[
            "c.toml:1:10: routes: must be a list, not a whole number",
            "main.toml:1:1: colour: unknown key",
        ],
    );
    refused_files(
        &[("b.toml", "colour = 1\n"), ("a.toml", "\n\nhalf"), ("c.toml", "x = \n")],
        &["a.toml:3:5: not TOML: ", "c.toml:1:5: not TOML: "],
    );
}

#[test]
fn a_table_may_stand_in_one_file_only_and_defaults_are_for_all() {
    refused_files(
        &[
            ("a.toml", "lame_duck = \"1s\"\n[limits]\nflows = 1\n"),
            ("b.toml", "\nlame_duck = \"1s\"\n[limits]\npipes = 1\n"),
        ],
        &[
            "b.toml:2:1: lame_duck: a.toml:1 has this key; one file may have it",
            "b.toml:3:2: limits: a.toml:2 has this key; one file may have it",
        ],
    );
    let defaults = "[defaults.listener]\nhalf_close_timeout = \"7s\"\nmax_lifetime = \"2h\"\n";
    let tls = "[defaults.backend.tls]\nca = \"ca.pem\"\nserver_name = \"a\"\n";
    let files = [("main.toml", GOOD), ("d/b.toml", ONE_MORE), ("e/c.toml", defaults), ("f/d", tls)];
    let config = parse_files(&files, &machine()).expect("good");
    let [l, m] = &config.listeners[..] else { panic!("{:?}", config.listeners) };
    for listener in [l, m] {
        assert_eq!(listener.timeouts.half_close, 7_000, "{}", listener.name.value);
        assert_eq!(listener.timeouts.lifetime, 7_200_000, "{}", listener.name.value);
    }
    let files: Vec<_> = config.files().into_iter().collect();
    assert_eq!(files, [std::path::PathBuf::from("f/ca.pem")], "beside the file that names it");
    refused_files(
        &[("a.toml", defaults), ("b.toml", "[defaults]\nlistener = {}\nbackend = {}\n")],
        &["b.toml:2:1: defaults.listener: a.toml:1 has this key; one file may have it"],
    );
    refused_files(
        &[("a.toml", GOOD), ("b.toml", &defaults.replace("7s", "7 s"))],
        &["b.toml:2:22: defaults.listener.half_close_timeout: \"7 s\" is no duration"],
    );
}
