//! What is said of the keys of one listener.

use super::{GOOD, listener, load, refused, route};

/// Faults that one more line in the TCP listener of `GOOD` makes (line 5).
const TCP_LISTENER: &[(&str, &str)] = &[
    ("idle_timout = \"1h\"", "unknown key (did you mean \"idle_timeout\"?)"),
    ("idle_timeout = true", "must be a string, not true or false; a duration"),
    ("max_lifetime = \"-1s\"", "\"-1s\" is no duration"),
    ("write_stall_timeout = \"\"", "\"\" is no duration"),
    ("half_close_timeout = \"1.5h\"", "\"1.5h\" is no duration"),
    ("max_sessions = 1048577", "must be a whole number, 0 to 1048576"),
    ("limit_source = 5", "must be a table"),
    ("limit_source = {}", "limits nothing; give `sessions`"),
    ("limit = 5", "must be a table such as { sessions = 100 }, or the name of a shared limit"),
    ("limit = {}", "limits nothing; give `sessions`, `new_per_second` or"),
    ("limit = \"all\"", "there is no shared limit \"all\""),
    ("nodelay = 1", "must be true or false, not a whole number"),
    ("keepalive = \"1500ms\"", "must be whole seconds, \"0s\" (off) to \"32767s\""),
    ("user_timeout = \"1000h\"", "must be at most \"596h\""),
    ("congestion = \"bbr\"", "this kernel has no \"bbr\" loaded; it has reno, cubic"),
    ("congestion = \"0123456789abcdef\"", "must be at most 15 characters"),
    ("hostname = \"a.example.com\"", "is for TLS listeners only"),
    ("default_hostname = \"a.example.com\"", "is for TLS listeners only"),
    ("starttls = \"postgres\"", "is for TLS listeners only"),
    ("not_tls = \"b\"", "is for TLS listeners only"),
    ("silent = \"b\"", "is for TLS listeners only"),
    ("hello_timeout = \"5s\"", "is for TLS listeners, and for TCP listeners with accept_proxy"),
    ("tls = { mode = \"Passthrough\" }", "is for TLS listeners only"),
    ("flow_timeout = \"60s\"", "is for UDP listeners only"),
    ("responses = 1", "is for UDP listeners only"),
    ("accept_proxy = [\"10.0.0.0/8\"]", "must be a table, not a list"),
    ("allow = \"10.0.0.0\"", "must be a list, not a string"),
    ("allow = 1", "must be a list, not a whole number"),
    ("deny = { files = \"a\" }", "must be a range such as \"10.0.0.0/8\", or { file ="),
    ("deny = {}", "must be a range such as"),
    ("deny = { file = \"\" }", "names no file"),
    ("deny = { file = \"no.txt\" }", "no.txt: No such file"),
];

#[test]
fn faults_of_one_listener() {
    for (line, expected) in TCP_LISTENER {
        let text = GOOD.replace("[[routes]]", &format!("{line}\n[[routes]]"));
        let key = line.split(' ').next().expect("a key");
        let problems = load(&text).expect_err(line);
        assert_eq!(problems.0.len(), 1, "{problems}");
        let problem = &problems.0[0];
        assert_eq!((problem.line, problem.field.as_str()), (5, &*format!("listeners[0].{key}")));
        assert!(problem.message.starts_with(expected), "{problem}");
    }
}

#[test]
fn faults_of_ranges() {
    let ranges = |line: &str| GOOD.replace("[[routes]]", &format!("{line}\n[[routes]]"));
    refused(
        &ranges("allow = [\"10.0.0.1/8\", \"office\", \"::ffff:10.0.0.1\"]"),
        &[
            "5:10: listeners[0].allow[0]: \"10.0.0.1/8\" has bits behind its prefix; write",
            "5:24: listeners[0].allow[1]: \"office\" is no IP address or prefix, such as",
            "5:34: listeners[0].allow[2]: ::ffff:10.0.0.1 is an IPv4 address inside IPv6; write it",
        ],
    );
    refused(
        &ranges("allow = [\"10.0.0.0/8\", \"10.1.0.0/16\"]\ndeny = [\"10.1.0.0/16\"]"),
        &["6:9: listeners[0].deny[0]: 10.1.0.0/16 is in `allow` too; it can be in one only"],
    );
    let folder = std::env::temp_dir().join(format!("ringway-ranges-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a temporary file");
        path.display().to_string()
    };
    let wrong = file("wrong.txt", "10.0.0.0/8\n10.0.0.300\n");
    let good = file("good.txt", "# some\n10.2.0.0/16\n10.1.0.0/16\n");
    let empty = file("empty.txt", "\n");
    let said = |line: &str| load(&ranges(line)).expect_err(line).to_string();
    let expected = format!("{wrong}:2:1: listeners[0].deny: \"10.0.0.300\" is no IP address");
    assert!(said(&format!("deny = {{ file = \"{wrong}\" }}")).starts_with(&expected));
    let both = format!("allow = [\"10.1.0.0/16\"]\ndeny = {{ file = [\"{good}\"] }}");
    let expected = format!("{good}:3:1: listeners[0].deny: 10.1.0.0/16 is in `allow` too");
    assert!(said(&both).starts_with(&expected), "{}", said(&both));
    let said = said(&format!("allow = [{{ file = \"{good}\" }}, {{ file = \"{empty}\" }}]"));
    assert!(said.contains("listeners[0].allow[1]: ") && said.contains("is empty"), "{said}");
    std::fs::remove_dir_all(&folder).expect("the temporary folder");
}

#[test]
fn faults_of_limits_for_sources() {
    let faults = [
        ("sessions = 0", "sessions", "must be a whole number, 1 to 1000000"),
        ("sessions = 1, burst = 2", "burst", "has no effect without `new_per_second`"),
        ("sessions = 1, prefix_v4 = 33", "prefix_v4", "must be a whole number, 1 to 32"),
        ("sessions = 1, prefix_v6 = 0", "prefix_v6", "must be a whole number, 1 to 128"),
        ("sessions = 1, except = [\"10.0.0.1/8\"]", "except[0]", "\"10.0.0.1/8\" has bits behind"),
        ("sessions = 1, session = 1", "session", "unknown key (did you mean \"sessions\"?)"),
        (
            "bytes_per_second = 999",
            "bytes_per_second",
            "must be a whole number, 1000 to 10000000000",
        ),
        ("datagrams_per_second = 9", "datagrams_per_second", "is for UDP listeners; a stream has"),
        ("sessions = 1, over = \"delay\"", "over", "can't be \"delay\" here: a connection has"),
    ];
    for (keys, field, message) in faults {
        let text = GOOD.replace("[[routes]]", &format!("limit_source = {{ {keys} }}\n[[routes]]"));
        let problems = load(&text).expect_err(&text);
        let [problem] = &*problems.0 else { panic!("{text}{problems}") };
        assert_eq!(problem.field, format!("listeners[0].limit_source.{field}"));
        assert!(problem.message.starts_with(message), "{problem}");
    }
}

#[test]
fn faults_of_limits() {
    let faults = [
        ("sessions = 0", "sessions", "must be a whole number, 1 to 1000000"),
        ("new_per_second = 1, burst = 0", "burst", "must be a whole number, 1 to 1000000"),
        ("sessions = 1, burst = 2", "burst", "has no effect without `new_per_second`"),
        ("bytes_per_second = 0", "bytes_per_second", "must be a whole number, 1000 to 10000000000"),
        ("sessions = 1, session = 1", "session", "unknown key (did you mean \"sessions\"?)"),
        ("sessions = 1, over = \"wait\"", "over", "must be \"refuse\" or \"delay\", not \"wait\""),
        (
            "bytes_per_second = 1000, over = \"delay\"",
            "over",
            "has no effect without `sessions` or `new_per_second`",
        ),
    ];
    for (keys, field, message) in faults {
        let text = GOOD.replace("[[routes]]", &format!("limit = {{ {keys} }}\n[[routes]]"));
        let problems = load(&text).expect_err(&text);
        let [problem] = &*problems.0 else { panic!("{text}{problems}") };
        assert_eq!(problem.field, format!("listeners[0].limit.{field}"));
        assert!(problem.message.starts_with(message), "{problem}");
    }
    let shared = "[[shared_limits]]\nname = \"all\"\n";
    let of_route = GOOD.replace("backends = [", "limit = \"al\"\nbackends = [");
    refused(
        &format!("{of_route}{shared}sessions = 5\n{shared}burst = 5\n"),
        &[
            "8:9: routes[0].limit: there is no shared limit \"al\" (did you mean \"all\"?)",
            "16:1: shared_limits[1]: limits nothing; give `sessions`, `new_per_second`",
            "17:8: shared_limits[1].name: line 14 has a shared limit named \"all\" already",
            "18:9: shared_limits[1].burst: has no effect without `new_per_second`",
        ],
    );
}

#[test]
fn only_listeners_for_tcp_delay() {
    let delays = "limit = { sessions = 1, over = \"delay\" }\n";
    let of_listener = GOOD.replace("[[routes]]", &format!("{delays}[[routes]]"));
    load(&of_listener).unwrap_or_else(|problems| panic!("{problems}"));
    refused(
        &GOOD.replace("backends = [", &format!("{delays}backends = [")),
        &["8:32: routes[0].limit.over: is for TCP listeners; which route and backend a client"],
    );
    for (protocol, message) in
        [("UDP", "a datagram can't wait"), ("TLS", "which TLS listener a client wants is known")]
    {
        let text = of_listener.replace("\"TCP\"", &format!("\"{protocol}\""));
        let said = format!("5:32: listeners[0].limit.over: is for TCP listeners; {message}");
        refused(&text, &[&said]);
        let refuses = text.replace("\"delay\"", "\"refuse\"");
        load(&refuses).unwrap_or_else(|problems| panic!("{problems}"));
    }
    let shared = |keys: &str| format!("{GOOD}[[shared_limits]]\nname = \"all\"\n{keys}\n");
    let waits = shared("sessions = 1\nover = \"delay\"").replace("\"delay\"", "\"wait\"");
    refused(
        &waits,
        &["15:8: shared_limits[0].over: must be \"refuse\" or \"delay\", not \"wait\""],
    );
    refused(
        &shared("bytes_per_second = 1000\nover = \"delay\""),
        &["15:8: shared_limits[0].over: has no effect without `sessions` or `new_per_second`"],
    );
}

#[test]
fn faults_of_the_proxy_protocol() {
    let from = |list: &str| {
        GOOD.replace("[[routes]]", &format!("accept_proxy = {{ from = [{list}] }}\n[[routes]]"))
    };
    let field = "listeners[0].accept_proxy.from";
    refused(&from(""), &[&format!("5:25: {field}: names no range: nobody would have to send")]);
    let bits = "\"10.0.0.1/8\" has bits behind its prefix; write 10.0.0.0/8";
    refused(&from("\"10.0.0.1/8\""), &[&format!("5:26: {field}[0]: {bits}")]);
    let none = "\"proxy.internal\" is no IP address or prefix, such as \"10.0.0.0/8\"";
    refused(&from("\"::1\", \"proxy.internal\""), &[&format!("5:33: {field}[1]: {none}")]);
    let many: Vec<_> = (0..257).map(|i| format!("\"10.0.{}.{}\"", i / 256, i % 256)).collect();
    refused(&from(&many.join(",")), &[&format!("5:25: {field}: names 257 ranges; 256 at the")]);
    refused(
        &GOOD.replace("[[routes]]", "accept_proxy = {}\n[[routes]]"),
        &[&format!("5:16: {field}: missing; the source ranges that must send a header")],
    );
    refused(
        &format!("{GOOD}send_proxy = \"v2\"\nproxy_tlvs = [\"crc\"]"),
        &["13:15: backends[0].proxy_tlvs[0]: must be \"unique-id\" or \"crc32c\", not \"crc\""],
    );
    let udp = GOOD.replace("\"TCP\"", "\"UDP\"");
    let word = "backends[0].send_proxy: \"v1\" has no word for UDP, and a UDP listener uses this";
    refused(&format!("{udp}send_proxy = \"v1\""), &[&format!("12:14: {word}")]);
    assert!(load(&format!("{udp}send_proxy = \"v2\"")).is_ok());
}

#[test]
fn faults_of_udp_and_tls_listeners() {
    let udp = |line: &str| GOOD.replace("\"TCP\"", "\"UDP\"").replace("[[routes]]", line);
    refused(&udp("nodelay = true\n[[routes]]"), &["5:1: listeners[0].nodelay: is for TCP and TLS"]);
    refused(&udp("idle_timeout = \"1h\"\n[[routes]]"), &["5:1: listeners[0].idle_timeout: is for"]);
    refused(
        &udp("flow_timeout = \"0s\"\n[[routes]]"),
        &["5:16: listeners[0].flow_timeout: must be at least \"100ms\"; it can't be off"],
    );
    refused(&udp("responses = -1\n[[routes]]"), &["5:13: listeners[0].responses: must be a whole"]);
    let tls = |line: &str| GOOD.replace("\"TCP\"", "\"TLS\"").replace("[[routes]]", line);
    refused(
        &tls("default_hostname = \"*.example.com\"\n[[routes]]"),
        &["5:20: listeners[0].default_hostname: \"*.example.com\" is a pattern; give one name"],
    );
    refused(
        &tls("hostname = \"*.a.test\"\ndefault_hostname = \"b.test\"\n[[routes]]"),
        &["6:20: listeners[0].default_hostname: no listener of this address takes \"b.test\""],
    );
    refused(
        &tls("starttls = \"postgresql\"\n[[routes]]"),
        &["5:12: listeners[0].starttls: must be \"postgres\", not \"postgresql\" (did you mean"],
    );
    refused(
        &tls("tls.mode = \"Terminate\"\n[[routes]]"),
        &["5:1: listeners[0].tls.certificates: missing; such as [{ cert = \"a.pem\""],
    );
    refused(
        &tls("tls = { mode = \"passthrough\" }\n[[routes]]"),
        &["5:16: listeners[0].tls.mode: must be \"Passthrough\" or \"Terminate\", not"],
    );
    refused(
        &tls("tls = { alpn = [1], client_ca = 1 }\n[[routes]]"),
        &[
            "5:9: listeners[0].tls.alpn: must be with mode = \"Terminate\"; this listener",
            "5:21: listeners[0].tls.client_ca: must be with mode",
        ],
    );
    let terminate =
        |keys: &str| tls(&format!("tls = {{ mode = \"Terminate\", {keys} }}\n[[routes]]"));
    refused(
        &terminate("certificates = [{ cert = \"a.pem\" }], alpn = [\"\"], client_auth = \"on\""),
        &[
            "5:45: listeners[0].tls.certificates[0].key: missing; a PEM file",
            "5:74: listeners[0].tls.alpn[0]: must be 1 to 255 bytes",
            "5:93: listeners[0].tls.client_auth: must be \"required\" or \"optional\"",
        ],
    );
    refused(
        &terminate("default_certificate = { cert = \"no.pem\", key = \"no.key\" }"),
        &["5:60: listeners[0].tls.default_certificate.cert: no.pem can't be read: No such file"],
    );
    refused(
        &tls("hostname = \"a-.example.com\"\n[[routes]]"),
        &["5:12: listeners[0].hostname: \"a-.example.com\" is no host name (RFC 1123)"],
    );
}

#[test]
fn faults_of_backends_for_clients_without_tls() {
    let tls = |line: &str| GOOD.replace("\"TCP\"", "\"TLS\"").replace("[[routes]]", line);
    refused(
        &tls("not_tls = [\"b\"]\nsilent = 5\n[[routes]]"),
        &[
            "5:11: listeners[0].not_tls: must be a string, not a list",
            "6:10: listeners[0].silent: must be a string, not a whole number",
        ],
    );
    refused(
        &tls("not_tls = \"nobody\"\nsilent = \"no\"\n[[routes]]"),
        &[
            "5:11: listeners[0].not_tls: there is no backend \"nobody\"",
            "6:10: listeners[0].silent: there is no backend \"no\"",
        ],
    );
    refused(
        &tls("hello_timeout = \"0s\"\nsilent = \"b\"\n[[routes]]"),
        &["6:10: listeners[0].silent: needs `hello_timeout`, which is off here"],
    );
}

#[test]
fn keys_of_a_route_beside_a_listeners_own_backends() {
    let own = |more: &str| listener("l", "TCP", "0.0.0.0:80", more);
    let backend = "[[backends]]\nname = \"b\"\nendpoints = []\n";
    let endpoints = "endpoints = [\"10.0.0.1:80\"]";
    for (text, expected) in [
        (
            own("balance = \"random\"\nbackends = [\"b\"]") + backend,
            "5:11: listeners[0].balance: must be \"round-robin\" or \"source-hash\", not",
        ),
        (
            own("balance = \"random\""),
            "5:1: listeners[0].balance: is about endpoints, and this listener has no",
        ),
        (
            own(&format!("{endpoints}\non_unavailable = \"next\"")),
            "6:18: listeners[0].on_unavailable: is about a choice of backends, and this",
        ),
        (
            own("backends = []\non_unavailable = \"fallback\""),
            "6:18: listeners[0].on_unavailable: must be \"refuse\" or \"next\", not \"fallback\"",
        ),
    ] {
        refused(&text, &[expected]);
    }
}

#[test]
fn endpoints_and_backends_of_a_listeners_own() {
    let own = |more: &str| listener("l", "TCP", "0.0.0.0:80", more);
    let endpoints = "endpoints = [\"10.0.0.1:80\"]";
    let backend = "[[backends]]\nname = \"b\"\nendpoints = []\n";
    assert!(load(&own(&format!("{endpoints}\nbalance = \"random\""))).is_ok());
    for (text, expected) in [
        (
            own(&format!("{endpoints}\nbackends = [\"b\"]")) + backend,
            &["6:12: listeners[0].backends: stands beside `endpoints`; put the endpoints into"][..],
        ),
        (own("backends = [\"b\"]"), &["5:13: listeners[0].backends[0]: there is no backend \"b\""]),
        (
            own("connect_timeout = \"1s\""),
            &["5:1: listeners[0].connect_timeout: is about endpoints, and this listener has no"],
        ),
        (own("endpoints = [\"x\"]"), &["5:14: listeners[0].endpoints[0]: the port is missing"]),
        (
            own(&format!("{endpoints}\nhealth_check = {{ rise = 0 }}")),
            &["6:25: listeners[0].health_check.rise: must be a whole number"],
        ),
        (
            own(&format!("{endpoints}\nconnect_timeout = \"1s\"")).replace("TCP", "UDP"),
            &["6:1: listeners[0].connect_timeout: is for TCP and TLS listeners only"],
        ),
        (
            own(&format!("{endpoints}\nupstream_rest = \"1s\"")),
            &["6:1: listeners[0].upstream_rest: is for UDP listeners only"],
        ),
        (
            own(&format!("{endpoints}\nhealth_check = {{}}")).replace("TCP", "UDP"),
            &["6:16: listeners[0].health_check: is a TCP connection, and only UDP listeners"],
        ),
        (
            own(endpoints) + &route("r", "[\"l\"]", "[]"),
            &["8:14: routes[0].listeners[0]: listener \"l\" has a route already"],
        ),
        (
            own(endpoints) + &route("l", "[\"l\"]", "[]"),
            &[
                "7:8: routes[0].name: listener \"l\" has a route of this name already: its own",
                "8:14: routes[0].listeners[0]: listener \"l\" has a route already: its own",
            ],
        ),
        (
            backend.replace("\"b\"", "\"l\"") + &own(endpoints),
            &["5:8: listeners[0].name: listener \"l\" has a backend of this name already: its own"],
        ),
        (
            own(endpoints).replace("\"l\"", "\"\""),
            &["2:8: listeners[0].name: must be 1 to 253 of the characters"],
        ),
    ] {
        refused(&text, expected);
    }
    // A listener with a fault still has a route and a backend that others may name.
    let faulty = own(&format!("{endpoints}\nidle_timeout = 1"));
    let other = "[[routes]]\nname = \"r\"\nlisteners = [\"l\"]\nbackends = [\"l\"]\n";
    refused(&format!("{faulty}{other}"), &["6:16: listeners[0].idle_timeout: must be a string"]);
}
