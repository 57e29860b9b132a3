//! What is said of backends and their endpoints.

use super::{GOOD, load, refused};

#[test]
fn faults_of_endpoints_on_unix_sockets_and_on_the_clients_port() {
    let to = |address: &str| GOOD.replace("10.0.0.1:80", address);
    let field = "backends[0].endpoints[0]";
    let at = |message: &str| format!("11:14: {field}: {message}");
    refused(&to("unix:x"), &[&at("\"unix:x\" names no socket; write an absolute path")]);
    for wrong in ["10.0.0.1:+", "10.0.0.1:+65536", "db:+1", "::1:+1", "10.0.0.1:+-1"] {
        refused(&to(wrong), &[&at(&format!("\"{wrong}\" must be IP:+NUMBER, such as"))]);
    }
    refused(&to("0.0.0.0:+1"), &[&at("0.0.0.0 is not the address of one machine")]);
    let high = "port 80 of listener \"l\" and 65500 are more than 65535";
    refused(&to("10.0.0.1:+65500"), &[&at(high)]);
    let checked = to("10.0.0.1:+1") + "health_check = {}\n";
    refused(&checked, &[&at("a check has no client, so `health_check` needs its `port`")]);
    let unix = to("10.0.0.1:+1").replace("0.0.0.0:80", "unix:/run/x");
    refused(&unix, &[&at("listener \"l\" is on a Unix socket, which has no port")]);
    let udp = to("unix:/run/x").replace("\"TCP\"", "\"UDP\"");
    refused(&udp, &[&at("a UDP listener uses this backend, and a Unix socket takes no")]);
    let transparent = to("unix:/run/x") + "transparent = true\n";
    refused(&transparent, &[&at("with `transparent`, connections come from clients' IP")]);
    let bound = to("unix:/run/x") + "interface = \"lo\"\n";
    refused(&bound, &[&at("the backend has an `interface`, and no interface leads to a Unix")]);
}

#[test]
fn the_interface_of_a_backend_is_there_and_leads_to_its_endpoints() {
    let with = |keys: &str| format!("{GOOD}{keys}\n");
    let unknown = "12:13: backends[0].interface: this machine has no interface \"nowhere\"; it has";
    refused(&with("interface = \"nowhere\""), &[unknown]);
    let udp = with("interface = \"lo\"\nupstream_sockets = \"shared\"\nsource = [\"127.0.0.0/8\"]");
    let udp = udp.replace("\"TCP\"", "\"UDP\"");
    refused(&udp, &["12:13: backends[0].interface: can't be with `upstream_sockets = \"shared\"`"]);
    let (_, table) = load(&with("interface = \"lo\"")).expect("no fault");
    let index = nix::net::if_::if_nametoindex("lo").expect("every machine has it");
    assert_eq!(table.backends[0].interface, index);
}

/// Faults that another line in the backend of `GOOD` makes (line 12).
const BACKEND: &[(&str, &str)] = &[
    ("balance = \"round_robin\"", "must be \"round-robin\" or \"least-connections\" or"),
    ("connect_timeout = \"5\"", "\"5\" is no duration"),
    ("connect_attempts = 0", "must be a whole number, 1 to 8, not 0"),
    ("connect_attempts = 9", "must be a whole number, 1 to 8, not 9"),
    ("source = \"10.0.0.2\"", "must be a list, not a string"),
    ("transparent = 1", "must be true or false, not a whole number"),
    ("interface = 1", "must be a string, not a whole number"),
    ("upstream_rest = \"99ms\"", "must be at least \"100ms\"; it can't be off"),
    ("upstream_sockets = \"one\"", "must be \"connected\" or \"shared\", not \"one\""),
    ("fast_path = true", "must be a string, not true or false"),
    ("fast_path = \"on\"", "must be \"off\" or \"auto\" or \"required\", not \"on\""),
    ("fast_path_after = 0", "must be a whole number, 1 to 1000000, not 0"),
    ("fast_path_after = \"16\"", "must be a whole number, 1 to 1000000, not a string"),
    ("congestion = \"nope\"", "this kernel has no \"nope\" loaded; it has reno, cubic"),
    ("send_proxy = \"v3\"", "must be \"v1\" or \"v2\", not \"v3\""),
    ("proxy_tlvs = [\"crc32c\"]", "needs send_proxy = \"v2\": version 1 has no room for them"),
    ("health_check = true", "must be a table, not true or false"),
    ("failback = \"no\"", "must be true or false, not a string"),
    ("queue = -1", "must be a whole number, 0 to 1000000"),
    ("queue = \"5\"", "must be a whole number, 0 to 1000000, not a string"),
    ("queue_timeout = \"5ms\"", "must be at least \"10ms\"; it can't be off"),
    ("slow_start = 30", "must be a string, not a whole number; a duration is a number"),
    ("eject = 5", "must be a table, not a whole number"),
    ("on_down = \"drop\"", "must be \"keep\" or \"close\", not \"drop\""),
    ("on_removed = true", "must be a string, not true or false"),
    ("close_after = \"soon\"", "\"soon\" is no duration; a duration is a number and ms"),
    ("tls = 1", "must be a table, not a whole number"),
    ("weight = 1", "unknown key"),
    ("endpoint_limit = \"all\"", "must be a table, not a string"),
    ("endpoint_limit = {}", "limits nothing; give `new_per_second` or `bytes_per_second`"),
];

#[test]
fn faults_of_one_backend() {
    for (line, expected) in BACKEND {
        let problems = load(&format!("{GOOD}{line}")).expect_err(line);
        let key = line.split(' ').next().expect("a key");
        assert_eq!(problems.0.len(), 1, "{problems}");
        let problem = &problems.0[0];
        assert_eq!((problem.line, problem.field.as_str()), (12, &*format!("backends[0].{key}")));
        assert!(problem.message.starts_with(expected), "{problem}");
    }
    let endpoint = |text: &str| GOOD.replace("\"10.0.0.1:80\"", text);
    refused(
        &endpoint("\"10.0.0.1:80\", \"db.internal:0\", \"10.0.0.1\""),
        &[
            "11:29: backends[0].endpoints[1]: the port must be 1 to 65535",
            "11:46: backends[0].endpoints[2]: must be IP:PORT, such as",
        ],
    );
    refused(
        &endpoint("\"10.0.0.1:80\", \"10.0.0.1:80\""),
        &["11:29: backends[0].endpoints[1]: 10.0.0.1:80 is endpoints[0] already"],
    );
    for (table, expected) in [
        ("{ }", "11:14: backends[0].endpoints[0].address: missing; such as \"10.0.0.1:5432\""),
        ("{ address = \"10.0.0.1\" }", "11:26: backends[0].endpoints[0].address: must be IP:PORT"),
        (
            "\"db.internal:80\", \"DB.internal.:80\"",
            "11:32: backends[0].endpoints[1]: db.internal:80 is endpoints[0] already",
        ),
        (
            "{ address = \"10.0.0.1:80\", weight = 257 }",
            "11:50: backends[0].endpoints[0].weight: must be a whole number, 0 to 256, not 257",
        ),
        (
            "{ address = \"10.0.0.1:80\", backup = 1 }",
            "11:50: backends[0].endpoints[0].backup: must be true or false",
        ),
        (
            "{ address = \"10.0.0.1:80\", wieght = 1 }",
            "11:41: backends[0].endpoints[0].wieght: unknown key (did you mean \"weight\"?)",
        ),
        (
            "\"10.0.0.1:80\", { address = \"10.0.0.1:80\" }",
            "11:41: backends[0].endpoints[1].address: 10.0.0.1:80 is endpoints[0] already",
        ),
        (
            "{ address = \"10.0.0.1:80\", name = \"a\" }, \
             { address = \"10.0.0.2:80\", name = \"a\" }",
            "11:89: backends[0].endpoints[1].name: \"a\" is the name of endpoints[0]",
        ),
    ] {
        refused(&endpoint(table), &[expected]);
    }
    refused(
        &format!("{GOOD}source = [\"::1\"]"),
        &["11:14: backends[0].endpoints[0]: no address in `source` is IPv4"],
    );
    refused(
        &format!("{GOOD}nodelay = true").replace("\"TCP\"", "\"UDP\""),
        &["12:1: backends[0].nodelay: is for TCP, and only UDP listeners use this backend"],
    );
    refused(
        &format!("{GOOD}upstream_sockets = \"connected\""),
        &["12:20: backends[0].upstream_sockets: is for UDP, and only TCP listeners use this"],
    );
    refused(
        &format!("{GOOD}upstream_rest = \"1s\""),
        &["12:17: backends[0].upstream_rest: is for UDP, and only TCP listeners use this"],
    );
}

#[test]
fn limits_of_endpoints() {
    let endpoint = |limit: &str| {
        let table = format!("{{ address = \"10.0.0.1:80\", max_sessions = {limit} }}");
        GOOD.replace("\"10.0.0.1:80\"", &table)
    };
    for limit in ["-1", "1000000001", "\"2\""] {
        let problems = load(&endpoint(limit)).expect_err(limit);
        let [problem] = &problems.0[..] else { panic!("{problems}") };
        assert_eq!(problem.field, "backends[0].endpoints[0].max_sessions");
        let expected = "must be a whole number, 0 to 1000000000";
        assert!(problem.message.starts_with(expected), "{problem}");
    }
    assert!(load(&endpoint("0")).is_ok());
}

#[test]
fn a_transparent_backend_has_no_addresses_of_its_own() {
    let udp = format!("{}transparent = true\n", GOOD.replace("\"TCP\"", "\"UDP\""));
    assert!(load(&udp).is_ok());
    let shared = "source = [\"127.1.0.0/16\"]\nupstream_sockets = \"shared\"";
    refused(
        &format!("{udp}source = [\"10.0.0.2\"]"),
        &["12:15: backends[0].transparent: can't be with `source`: connections come from clients'"],
    );
    refused(&format!("{udp}{shared}"), &["12:15: backends[0].transparent: can't be with"]);
    assert!(load(&format!("{udp}{shared}").replace("true", "false")).is_ok());
}

#[test]
fn the_kernel_forwards_plain_flows_only() {
    let udp = format!("{}fast_path = \"auto\"\n", GOOD.replace("\"TCP\"", "\"UDP\""));
    assert!(load(&udp).is_ok());
    for (line, other) in [
        ("transparent = true", "`transparent`"),
        ("interface = \"lo\"", "`interface`"),
        ("send_proxy = \"v2\"", "`send_proxy`"),
        (
            "source = [\"127.1.0.0/16\"]\nupstream_sockets = \"shared\"",
            "`upstream_sockets = \"shared\"`",
        ),
    ] {
        let expected = format!("12:13: backends[0].fast_path: can't be with {other}");
        refused(&format!("{udp}{line}\n"), &[&expected]);
        assert!(load(&format!("{udp}{line}\n").replace("auto", "off")).is_ok());
    }
    refused(
        &format!("{GOOD}fast_path = \"auto\""),
        &["12:13: backends[0].fast_path: is for UDP, and only TCP listeners use this backend"],
    );
    refused(
        &format!("{GOOD}fast_path_after = 4"),
        &["12:19: backends[0].fast_path_after: is for UDP, and only TCP listeners use this"],
    );
}

#[test]
fn shared_sockets_need_addresses_that_tell_flows_apart() {
    let udp = GOOD.replace("\"TCP\"", "\"UDP\"");
    refused(
        &format!("{udp}upstream_sockets = \"shared\""),
        &["12:20: backends[0].upstream_sockets: \"shared\" needs `source`: each flow of"],
    );
    let shared = "upstream_sockets = \"shared\"\nsource = [\"127.1.0.0/16\"]\n";
    let again =
        |name| format!("[[backends]]\nname = \"{name}\"\nendpoints = [\"10.0.0.1:80\"]\n{shared}");
    assert!(load(&format!("{udp}{shared}")).is_ok());
    refused(
        &format!("{udp}{shared}{}", again("c")),
        &["16:14: backends[1].endpoints[0]: 10.0.0.1:80 is in backend \"b\" (line 10) too"],
    );
    assert!(load(&format!("{udp}{}", again("c"))).is_ok(), "only one of them is shared");
}

#[test]
fn faults_of_tls_to_endpoints() {
    let tls = |keys: &str| format!("{GOOD}tls = {{ server_name = \"a_b.test\", {keys} }}");
    let print = "AB:".repeat(31) + "AB";
    for (keys, expected) in [
        (
            "alpn = \"h2\"",
            "12:42: backends[0].tls.alpn: must be a list, not a string; write [\"h2\"]",
        ),
        ("alpn = [\"\"]", "12:43: backends[0].tls.alpn[0]: must be 1 to 255 bytes"),
        ("pin_sha256 = []", "12:48: backends[0].tls.pin_sha256: names no key"),
        ("pin_sha256 = [\"AAAA\"]", "12:49: backends[0].tls.pin_sha256[0]: must be SHA-256 of a"),
        (
            &format!("pin_sha256 = [\"{print}\"]"),
            "12:49: backends[0].tls.pin_sha256[0]: must be SHA-256 of a public key in base64",
        ),
    ] {
        refused(&tls(keys), &[expected]);
    }
    let problems =
        load(&tls(&format!("pin_sha256 = [\"{print}\"]"))).expect_err("no hash of a key");
    assert!(problems.to_string().contains("the fingerprint of a certificate"), "{problems}");
    let pin = "A".repeat(43) + "=";
    let (config, table) =
        load(&tls(&format!("alpn = [], pin_sha256 = [\"{pin}\"]"))).expect("good");
    let asked = config.backends[0].tls.as_ref().expect("TLS");
    assert_eq!((asked.alpn.as_deref(), asked.pins.as_slice()), (Some(&[][..]), &[[0; 32]][..]));
    let made = table.backends[0].tls.as_ref().expect("TLS");
    assert_eq!(made.offer(Some(b"h2")), Vec::<Vec<u8>>::new());
}

#[test]
fn faults_of_the_limit_of_an_endpoint() {
    let with = |keys: &str| {
        let table = format!("{{ address = \"10.0.0.1:80\", limit = {{ {keys} }} }}");
        GOOD.replace("endpoints = [\"10.0.0.1:80\"]", &format!("endpoints = [{table}]"))
    };
    assert!(load(&with("new_per_second = 5, burst = 9, bytes_per_second = 1000")).is_ok());
    for (keys, field, message) in [
        ("", "", "limits nothing; give `new_per_second` or `bytes_per_second`; for sessions, an"),
        ("new_per_second = 0", ".new_per_second", "must be a whole number, 1 to 1000000"),
        ("bytes_per_second = 1000, burst = 2", ".burst", "has no effect without `new_per_second`"),
        ("new_per_second = 1, over = \"delay\"", ".over", "unknown key"),
        ("new_per_second = 1, sessions = 5", ".sessions", "unknown key"),
    ] {
        let text = with(keys);
        let problems = load(&text).expect_err(&text);
        let [problem] = &*problems.0 else { panic!("{text}{problems}") };
        assert_eq!(problem.field, format!("backends[0].endpoints[0].limit{field}"));
        assert!(problem.message.starts_with(message), "{problem}");
    }
}
