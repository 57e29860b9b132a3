//! What is said of files that are no TOML, and of what people write in place of it.

use super::{GOOD, load, refused};

/// What is said against `GOOD` with something else in the place of a part of it.
fn said(part: &str, instead: &str) -> String {
    let text = GOOD.replace(part, instead);
    load(&text).expect_err(&text).to_string()
}

#[test]
fn common_mistakes_are_told_what_to_write() {
    for (part, instead, hint) in [
        ("\"TCP\"", "TCP", "f:3:12: not TOML: invalid boolean, expected `true`; text stands in"),
        ("\"TCP\"", "TCP", "quotes: protocol = \"TCP\""),
        ("\"0.0.0.0:80\"", "0.0.0.0:80", "; text stands in quotes: address = \"0.0.0.0:80\""),
        ("\"TCP\"", "\"HTTP\"", "HTTP is bytes here: write \"TCP\""),
        ("\"TCP\"", "\"https\"", "write \"TLS\": it passes through by server name, or ends here"),
        ("\"TCP\"", "\"QUIC\"", "it runs on UDP: write \"UDP\""),
        (
            "[{ name = \"b\" }]",
            "[1]",
            "must be the name of a backend, or { name = \"pg-a\", weight =",
        ),
        ("[{ name = \"b\" }]", "\"b\"", "must be a list, not a string; write [\"b\"]"),
        ("[\"l\"]", "\"l\"", "must be a list, not a string; write [\"l\"]"),
        ("[[routes]]", "[routes]", "must be a list, not a table; each stands under [[routes]]"),
        ("0.0.0.0:80", ":80", "every address is written \"0.0.0.0:80\" (IPv4) or \"[::]:80\""),
        ("0.0.0.0:80", "0.0.0.0:99999", "not \"0.0.0.0:99999\": the port must be 1 to 65535"),
        ("\"0.0.0.0:80\"", "80", "not a whole number; it must be IP:PORT, such as"),
        ("{ name = \"b\" }", "{ name = \"postgres\" }", "there is no backend \"postgres\""),
    ] {
        let said = said(part, instead);
        assert!(said.contains(hint), "{hint}\n{said}");
    }
    let named = GOOD.replace("\"b\"\nend", "\"postgres-primary\"\nend");
    let problems = load(&named.replace("\"b\" }", "\"postgres\" }")).expect_err("no such backend");
    assert!(problems.to_string().contains("(did you mean \"postgres-primary\"?)"), "{problems}");
}

#[test]
fn yaml_is_told_from_toml_and_said_once() {
    for (text, hint) in [
        ("# a\napiVersion: v1\nkind: Service\n", "their file's name must end in .yaml"),
        ("---\napiVersion: v1\nkind: Service\n", "their file's name must end in .yaml"),
        ("listeners:\n- name: a\n", "this looks like YAML, and a TOML file has lines such as"),
    ] {
        let problems = load(text).expect_err(text);
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.to_string().contains(hint), "{problems}");
    }
    let problems = load("a = [\nb: 1").expect_err("neither");
    assert!(!problems.to_string().contains("YAML"), "{problems}");
}

#[test]
fn what_is_not_toml() {
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(load(&deep).expect_err("deep").0[0].message.starts_with("not TOML: "));
    refused("a = \nb = 1", &["1:5: not TOML: "]);
    refused("[x\n", &["1:3: not TOML: "]);
    refused("lame_duck = \"1s\"\nlame_duck = \"1s\"", &["2:1: not TOML: duplicate key"]);
}
