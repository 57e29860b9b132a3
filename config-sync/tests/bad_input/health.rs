//! What is said of health checks and of ejection.

use super::{GOOD, load, refused};

/// Keys of a health check, and what is said of them.
const CHECKS: &[(&str, &str)] = &[
    ("interval = \"0s\"", "12:29: backends[0].health_check.interval: must be at least \"100"),
    ("interval = \"99ms\"", "12:29: backends[0].health_check.interval: must be at least"),
    ("interval = \"1\", timeout = \"9s\"", "12:29: backends[0].health_check.interval: \"1\" is no"),
    ("timeout = \"0s\"", "12:28: backends[0].health_check.timeout: must be at least \"1ms\""),
    (
        "timeout = \"6s\"",
        "12:28: backends[0].health_check.timeout: must be at most the interval, which is 5000",
    ),
    ("rise = 0", "12:25: backends[0].health_check.rise: must be a whole number, 1 to 100, not"),
    ("fall = 101", "12:25: backends[0].health_check.fall: must be a whole number, 1 to 100"),
    ("port = 65536", "12:25: backends[0].health_check.port: must be a whole number, 0 to 655"),
    ("paht = \"/\"", "12:18: backends[0].health_check.paht: unknown key (did you mean \"path\"?)"),
    ("type = \"htp\"", "12:25: backends[0].health_check.type: must be \"tcp\" or \"tls\" or"),
    (
        "path = \"/\"",
        "12:25: backends[0].health_check.path: is for type = \"http\", and the type is \"tcp\"",
    ),
    ("tls = true", "12:24: backends[0].health_check.tls: is for type = \"http\" or"),
    (
        "type = \"tls\"",
        "12:16: backends[0].health_check: speaks TLS, and the backend has no `tls` that says",
    ),
    (
        "fast_interval = \"6s\"",
        "12:34: backends[0].health_check.fast_interval: must be at most the interval, which is",
    ),
    ("down_interval = \"0s\"", "12:34: backends[0].health_check.down_interval: must be at le"),
    ("jitter = \"6s\"", "12:27: backends[0].health_check.jitter: must be at most the interval"),
    ("type = \"http\", path = \"x\"", "12:40: backends[0].health_check.path: must begin with"),
    ("type = \"http\", status = []", "12:42: backends[0].health_check.status: names no"),
    (
        "type = \"http\", status = [\"300-200\"]",
        "12:42: backends[0].health_check.status: must be a status, 100 to 599, or a range",
    ),
    (
        "type = \"http\", body_regex = \"(\"",
        "12:46: backends[0].health_check.body_regex: \"(\" is no regular expression: unclosed",
    ),
    (
        "type = \"http\", body = \"a\", body_regex = \"b\"",
        "12:58: backends[0].health_check.body_regex: can't be with `body`",
    ),
    (
        "type = \"exchange\"",
        "12:16: backends[0].health_check.steps: missing; such as [{ send = \"ruok\"",
    ),
    (
        "type = \"exchange\", steps = []",
        "12:45: backends[0].health_check.steps: must have 1 to 32 steps, not 0",
    ),
    (
        "type = \"exchange\", steps = [{}]",
        "12:46: backends[0].health_check.steps[0]: says and expects nothing",
    ),
    (
        "type = \"exchange\", steps = [{ send = \"a\", send_hex = \"61\" }]",
        "12:71: backends[0].health_check.steps[0].send_hex: says again what `send` says",
    ),
    (
        "type = \"exchange\", steps = [{ expect_hex = \"6\" }]",
        "12:61: backends[0].health_check.steps[0].expect_hex: must be pairs of hexadecimal",
    ),
    (
        "type = \"redis\", user = \"me\"",
        "12:16: backends[0].health_check.password_file: missing; a user of Redis has a",
    ),
    (
        "type = \"redis\", role = \"master\"",
        "12:41: backends[0].health_check.role: must be \"primary\" or \"replica\"",
    ),
    (
        "type = \"redis\", password_file = \"/none\"",
        "12:50: backends[0].health_check.password_file: /none can't be read: No such file",
    ),
    (
        "type = \"postgres\", role = \"primary\"",
        "12:16: backends[0].health_check.user: missing; the server tells its role to a user",
    ),
    (
        "type = \"mysql\", password_file = \"/none\"",
        "12:16: backends[0].health_check.user: missing; the server tells its role to a user",
    ),
    (
        "type = \"postgres\", user = \"a\\u0000b\"",
        "12:44: backends[0].health_check.user: must have 1 to 255 bytes, and no byte 0",
    ),
    ("type = \"dns\"", "12:16: backends[0].health_check.query: missing; a name that the"),
    (
        "type = \"dns\", query = \"a..b\"",
        "12:40: backends[0].health_check.query: \"a..b\" is no name",
    ),
    (
        "type = \"dns\", query = \".\", rcode = []",
        "12:53: backends[0].health_check.rcode: names no code",
    ),
    (
        "type = \"dns\", query = \".\", user = \"me\"",
        "12:52: backends[0].health_check.user: is for type = \"mysql\" or \"postgres\" or",
    ),
    ("type = \"udp\"", "12:16: backends[0].health_check.send: missing; what the endpoint is"),
    (
        "type = \"sip\", send_proxy = \"v1\"",
        "12:45: backends[0].health_check.send_proxy: \"v1\" has no word for UDP",
    ),
    (
        "type = \"agent\", expect = \"up\"",
        "12:43: backends[0].health_check.expect: is for type = \"udp\", and the type is",
    ),
    (
        "type = \"tls\", ca = \"/none\"",
        "12:16: backends[0].health_check.server_name: missing; the name that the endpoints'",
    ),
    (
        "type = \"tls\", ca = \"/none\", server_name = \"a\"",
        "12:37: backends[0].health_check.ca: /none can't be read: No such file",
    ),
    (
        "type = \"tls\", server_name = \"a b\"",
        "12:46: backends[0].health_check.server_name: \"a b\" is no DNS name or IP address",
    ),
    (
        "type = \"tls\", verify = false, ca = \"/none\"",
        "12:53: backends[0].health_check.ca: says which certificates are good, and with",
    ),
    (
        "type = \"http\", server_name = \"a\"",
        "12:47: backends[0].health_check.server_name: is for checks by TLS, and this check",
    ),
    ("ca = \"/none\"", "12:23: backends[0].health_check.ca: is for type = \"tls\" or \"http\" or"),
];

#[test]
fn faults_of_ejection() {
    for (keys, expected) in [
        ("failures = 0", "12:22: backends[0].eject.failures: must be a whole number, 1 to 10000"),
        (
            "window = \"0s\"",
            "12:20: backends[0].eject.window: must be at least \"100ms\"; it can't",
        ),
        ("max = \"1s\"", "12:17: backends[0].eject.max: must be at least the base, which is 30000"),
        ("max_share = 101", "12:23: backends[0].eject.max_share: must be a whole number, 1 to 100"),
        ("fail_open = 1", "12:23: backends[0].eject.fail_open: must be true or false"),
        ("rate = 1", "12:11: backends[0].eject.rate: unknown key (did you mean"),
    ] {
        refused(&format!("{GOOD}eject = {{ {keys} }}"), &[expected]);
    }
}

#[test]
fn faults_of_health_checks() {
    for (keys, expected) in CHECKS {
        refused(&format!("{GOOD}health_check = {{ {keys} }}"), &[expected]);
    }
    let udp = GOOD.replace("\"TCP\"", "\"UDP\"");
    refused(
        &format!("{udp}health_check = {{}}"),
        &["12:16: backends[0].health_check: is a TCP connection, and only UDP listeners use this"],
    );
    assert!(load(&format!("{udp}health_check = {{ port = 8080 }}")).is_ok());
    assert!(load(&format!("{udp}health_check = {{ type = \"sip\" }}")).is_ok());
    let (config, _) = load(&format!("{GOOD}[backends.health_check]\ninterval = \"1s\"")).expect("");
    let check = &config.backends[0].health_check.as_ref().expect("it is asked for").value;
    assert_eq!((check.interval, check.timeout), (1_000, 1_000), "no longer than the interval");
    assert_eq!((check.rise, check.fall, check.port), (2, 3, 0));
}
