//! What is said of keys at the top level, of the resolver, of defaults and of variables.

use super::{GOOD, listener, load, refused};

/// Faults that one more line at the top level makes.
const TOP_LEVEL: &[(&str, &str)] = &[
    ("drain_timeot = \"5s\"", "1:1: drain_timeot: unknown key (did you mean \"drain_timeout\"?)"),
    ("colour = 1", "1:1: colour: unknown key; allowed here: include, workers, admin"),
    ("user = 1000", "1:8: user: must be a string, not a whole number"),
    ("user = \"\"", "1:8: user: must be the name or number of a user, such as"),
    ("user = \"a b\"", "1:8: user: must be the name or number of a user"),
    ("drain_timeout = 5", "1:17: drain_timeout: must be a string, not a whole number; a duration"),
    ("drain_timeout = \"5\"", "1:17: drain_timeout: \"5\" is no duration"),
    ("drain_grace = \"5 s\"", "1:15: drain_grace: \"5 s\" is no duration"),
    ("lame_duck = \"2000h\"", "1:13: lame_duck: \"2000h\" is too long; at most \"1193h\""),
    ("workers = 2", "1:11: workers: must be a table, not a whole number"),
    ("workers.cores = \"all\"", "1:17: workers.cores: must be \"auto\" or a list of core ids"),
    ("workers.cores = []", "1:17: workers.cores: names no core; give at least one"),
    ("workers.cores = [1, 1]", "1:21: workers.cores[1]: core 1 is named twice"),
    ("workers.cores = [-1]", "1:18: workers.cores[0]: must be a whole number, 0 to 65535, not -1"),
    ("workers.threads = 2", "1:9: workers.threads: unknown key"),
    (
        "admin.socket = \"admin.sock\"",
        "1:16: admin.socket: must be an absolute path, such as \"/run/ringway/admin.sock\"",
    ),
    ("admin.socket = \"/run/ringway/\"", "1:16: admin.socket: \"unix:/run/ringway/\" names no"),
    (
        "access_log.path = \"syslog:log\"",
        "1:19: access_log.path: must have an absolute path behind \"syslog:\"",
    ),
    (
        "access_log.sample = { client_fine = 1 }",
        "1:21: access_log.sample: \"client_fine\" is no close reason (did you mean \"client_fin",
    ),
    (
        "access_log.sample = { client_fin = -1 }",
        "1:21: access_log.sample: client_fin must be a whole number",
    ),
    ("admin.endpoint_labels = 1", "1:25: admin.endpoint_labels: must be true or false"),
    ("sandbox = 1", "1:11: sandbox: must be true or false"),
    ("admin.overrides_file = \"\"", "1:24: admin.overrides_file: names no file"),
    ("admin.overrides_file = 1", "1:24: admin.overrides_file: must be"),
    ("admin.cert = \"a.pem\"", "1:14: admin.cert: needs admin.key beside it"),
    ("admin.key = \"a.key\"", "1:13: admin.key: needs admin.cert beside it"),
    ("admin.client_ca = \"ca.pem\"", "1:19: admin.client_ca: needs admin.cert beside it"),
    (
        "admin = { address = \"\", client_ca = \"ca.pem\" }",
        "1:37: admin.client_ca: is for admin.address, which is off",
    ),
    ("admin.token_file = \"\"", "1:20: admin.token_file: names no file"),
    (
        "admin = { address = \"\", token_file = \"token\" }",
        "1:38: admin.token_file: is for admin.address, which is off",
    ),
    ("admin.address = \":9900\"", "1:17: admin.address: must be IP:PORT"),
    ("admin.address = \"127.0.0.1:0\"", "1:17: admin.address: the port must be 1 to 65535"),
    (
        "access_log.format = \"xml\"",
        "1:21: access_log.format: must be \"json\" or \"text\", not \"xml\"",
    ),
    ("access_log.open = \"yes\"", "1:19: access_log.open: must be true or false, not a string"),
    ("access_log.path = 1", "1:19: access_log.path: must be a string, not a whole number"),
    (
        "limits.total_sessions = -1",
        "1:25: limits.total_sessions: must be a whole number, 0 to 1000000",
    ),
    (
        "limits.memory_percent = 101",
        "1:25: limits.memory_percent: must be a whole number, 0 to 100",
    ),
    ("limits.memory_readiness = 1", "1:27: limits.memory_readiness: must be true or false"),
    (
        "limits.readiness_percent = 101",
        "1:28: limits.readiness_percent: must be a whole number, 0 to 100",
    ),
    ("limits.sessions = -1", "1:19: limits.sessions: must be a whole number, 0 to 1048576, not -1"),
    (
        "limits.flows = 1e6",
        "1:16: limits.flows: must be a whole number, 0 to 1048576, not a number",
    ),
    ("limits.buffers = 40000", "1:18: limits.buffers: must be a whole number, 0 to 32768"),
    ("limits.pipes = 70000", "1:16: limits.pipes: must be a whole number, 0 to 65536, not 70000"),
    (
        "include = [\"a.toml\"]",
        "1:12: include[0]: only a TOML file, or a directory of TOML files, can include others",
    ),
    ("include = \"a.toml\"", "1:11: include: must be a list, not a string; write [\"a.toml\"]"),
    ("routes = 1", "1:10: routes: must be a list, not a whole number"),
    ("backends = [1]", "1:13: backends[0]: must be a table, not a whole number"),
];

#[test]
fn faults_at_the_top_level() {
    for (line, expected) in TOP_LEVEL {
        refused(line, &[expected]);
    }
}

#[test]
fn faults_of_defaults_are_told_once_and_where_they_stand() {
    let two = listener("a", "TCP", "0.0.0.0:80", "endpoints = []")
        + &listener("b", "UDP", "0.0.0.0:80", "endpoints = []");
    for (defaults, expected) in [
        ("defaults = 1\n", "1:12: defaults: must be a table"),
        ("[defaults]\nroute = {}\n", "2:1: defaults.route: unknown key; allowed here: listener"),
        (
            "[defaults.listener]\nidle_timeout = \"5x\"\n",
            "2:16: defaults.listener.idle_timeout: \"5x\" is no duration",
        ),
        (
            "[defaults.listener]\naddress = \"0.0.0.0:1\"\n",
            "2:1: defaults.listener.address: every listener gives this key itself",
        ),
        (
            "[defaults.listener]\nbalance = \"random\"\n",
            "2:1: defaults.listener.balance: unknown key",
        ),
        (
            "[defaults.backend]\nendpoints = []\n",
            "2:1: defaults.backend.endpoints: every backend gives this key itself",
        ),
        (
            "[defaults.backend]\nhealth_check = { rise = 0 }\n",
            "2:25: defaults.backend.health_check.rise: must be a whole number",
        ),
        (
            "[defaults.listener]\nprotocol = \"HTTP\"\n",
            "2:12: defaults.listener.protocol: must be \"TCP\" or \"UDP\"",
        ),
    ] {
        refused(&format!("{defaults}{two}"), &[expected]);
    }
    assert!(load(&format!("[defaults.listener]\nhello_timeout = \"1s\"\n{two}")).is_ok());
}

#[test]
fn a_variable_that_is_not_set_is_the_only_fault_of_its_string() {
    refused(
        &GOOD.replace("0.0.0.0:80", "${RINGWAY_NOT_SET}").replace("10.0.0.1:80", "${"),
        &[
            "4:11: listeners[0].address: the environment has no variable RINGWAY_NOT_SET; set the",
            "11:14: backends[0].endpoints[0]: has \"${\" without \"}\"; a variable is written",
        ],
    );
}

#[test]
fn faults_of_the_resolver() {
    for (keys, expected) in [
        ("servers = [\"ns.example.com\"]", "2:12: resolver.servers[0]: must be such as"),
        ("servers = [\"tls:9.9.9.9\"]", "2:12: resolver.servers[0]: must be such as"),
        (
            "servers = [\"10.0.0.1\", \"10.0.0.1:53\"]",
            "2:24: resolver.servers[1]: 10.0.0.1:53 is named twice",
        ),
        ("min_ttl = \"0s\"", "2:11: resolver.min_ttl: must be \"1s\" to \"24h\""),
        ("max_ttl = \"2s\"", "2:11: resolver.max_ttl: min_ttl is above max_ttl"),
        ("keep = 1", "2:8: resolver.keep: must be a string, not a whole number; a duration"),
    ] {
        refused(&format!("[resolver]\n{keys}\n"), &[expected]);
    }
    assert!(load("[resolver]\nmin_ttl = \"2h\"\n").is_ok(), "it moves the default of max_ttl");
    let shared =
        GOOD.replace("\"TCP\"", "\"UDP\"").replace("\"10.0.0.1:80\"", "\"db.internal:80\"");
    refused(
        &format!("{shared}upstream_sockets = \"shared\"\nsource = [\"10.0.0.9\"]\n"),
        &["11:14: backends[0].endpoints[0]: with `upstream_sockets = \"shared\"` endpoints are IP"],
    );
}
