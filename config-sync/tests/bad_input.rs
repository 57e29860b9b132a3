//! What an operator is told about a faulty file: every fault at once, each with its place.

use config_sync::check::{parse_files, parse_for};
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::machine::Machine;
use config_sync::model::config::Config;
use config_sync::model::place::Problems;
use config_sync::table::routing::RoutingTable;
use config_sync::{check, toml};

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

/// Faults that one more line at the top level makes.
const TOP_LEVEL: &[(&str, &str)] = &[
    ("drain_timeot = \"5s\"", "1:1: drain_timeot: unknown key (did you mean \"drain_timeout\"?)"),
    ("colour = 1", "1:1: colour: unknown key; allowed here: include, workers, admin"),
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
    ("admin.overrides_file = \"\"", "1:24: admin.overrides_file: names no file"),
    ("admin.overrides_file = 1", "1:24: admin.overrides_file: must be"),
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
fn routes_of_one_listener_that_their_sources_do_not_tell_apart() {
    let two = |a: &str, b: &str| {
        let second = "[[routes]]\nname = \"s\"\nlisteners = [\"l\"]\nbackends = []";
        GOOD.replace("[[backends]]", &format!("{a}\n{second}\n{b}\n[[backends]]"))
    };
    assert!(load(&two("sources = [\"10.0.0.0/8\"]", "")).is_ok());
    assert!(load(&two("sources = [\"10.0.0.0/8\"]", "sources = [\"10.0.0.0/9\"]")).is_ok());
    refused(
        &two("sources = [\"10.0.0.0/8\"]", "sources = [\"::/0\", \"10.0.0.0/8\"]"),
        &["14:20: routes[1].sources[1]: listener \"l\" has a route from 10.0.0.0/8 already: \"r\""],
    );
    refused(&two("", ""), &["12:14: routes[1].listeners[0]: listener \"l\" has a route already"]);
    refused(
        &two("sources = []", ""),
        &["9:11: routes[0].sources: names no range; without this key the route is for all others"],
    );
}

#[test]
fn faults_of_routes_by_protocol() {
    let two = |a: &str, b: &str| {
        let second = "[[routes]]\nname = \"s\"\nlisteners = [\"l\"]\nbackends = []";
        let tls = GOOD.replace("\"TCP\"", "\"TLS\"");
        tls.replace("[[backends]]", &format!("{a}\n{second}\n{b}\n[[backends]]"))
    };
    assert!(load(&two("", "alpn = [\"acme-tls/1\"]")).is_ok());
    assert!(load(&two("alpn = [\"h2\"]", "alpn = [\"h3\", \"acme-tls/1\"]")).is_ok());
    refused(
        &two("alpn = [\"h3\", \"h2\"]", "alpn = [\"h2\"]"),
        &["12:14: routes[1].listeners[0]: listener \"l\" has a route with \"h2\" already"],
    );
    let host = "hostnames = [\"a.example.com\"]\n";
    refused(
        &two(&format!("{host}alpn = [\"h2\"]"), &format!("{host}alpn = [\"h2\"]")),
        &["15:14: routes[1].hostnames[0]: listener \"l\" has a route for \"a.example.com\" with"],
    );
    for (alpn, expected) in [
        ("[]", "14:8: routes[1].alpn: names no protocol; without this key the route is for"),
        ("\"h2\"", "14:8: routes[1].alpn: must be a list, not a string; write [\"h2\"]"),
        ("[\"\"]", "14:9: routes[1].alpn[0]: must be 1 to 255 bytes"),
        ("[\"h2\", \"h2\"]", "14:15: routes[1].alpn[1]: names protocol \"h2\" twice"),
    ] {
        let text = two("alpn = [\"h3\"]", &format!("alpn = {alpn}"));
        let problems = load(&text).expect_err(&text).to_string();
        assert!(problems.lines().next().is_some_and(|l| l.contains(expected)), "{problems}");
    }
    let tcp = two("", "").replace("\"TLS\"", "\"TCP\"");
    let tcp = tcp.replacen("backends = []", "backends = []\nalpn = [\"h2\"]", 1);
    let problems = load(&tcp).expect_err(&tcp).to_string();
    assert!(problems.contains("the route has alpn, and listener \"l\" is not TLS"), "{problems}");
}

#[test]
fn faults_of_where_listeners_listen() {
    let at = |address: &str| GOOD.replace("0.0.0.0:80", address);
    let field = "listeners[0].address";
    let said = |message: &str| format!("4:11: {field}: {message}");
    refused(&at("0.0.0.0:80-1080"), &[&said("the range has 1001 ports; 1000 at the most")]);
    refused(&at("[fe80::1%nowhere]:80"), &[&said("this machine has no interface \"nowhere\"; it")]);
    refused(&at("unix:x"), &[&said("\"unix:x\" names no socket; write an absolute path")]);
    let udp = at("unix:/run/x").replace("\"TCP\"", "\"UDP\"");
    refused(&udp, &[&said("a Unix socket is for TCP and TLS listeners only")]);
    let with = |line: &str| GOOD.replace("[[routes]]", &format!("{line}\n[[routes]]"));
    refused(
        &with("interface = \"nowhere\""),
        &["5:13: listeners[0].interface: this machine has no interface \"nowhere\"; it has "],
    );
    refused(&with("mode = \"0660\""), &["5:8: listeners[0].mode: is for Unix sockets only"]);
    let unix = |line: &str| with(line).replace("0.0.0.0:80", "unix:/run/x");
    refused(&unix("freebind = true"), &["5:12: listeners[0].freebind: is for IP addresses only"]);
    refused(&unix("mode = \"660x\""), &["5:8: listeners[0].mode: \"660x\" is no mode; a mode is"]);
    // One problem for a range, however many of its ports clash.
    let second = "[[listeners]]\nname = \"m\"\nprotocol = \"TCP\"\naddress = \"10.0.0.1:1-100\"\n";
    let both = GOOD.replace("[[routes]]", &format!("{second}[[routes]]"));
    let both = both.replace("0.0.0.0:80", "0.0.0.0:1-90");
    let clash =
        "8:11: listeners[1].address: 10.0.0.1:1 clashes with listener \"l\" (line 2), which";
    refused(&both, &[clash]);
    let two = |first: &str, second: &str| {
        with(&format!(
            "{first}\n[[listeners]]\nname = \"m\"\nprotocol = \"TCP\"\naddress = \"0.0.0.0:80\"\n\
             {second}"
        ))
    };
    let why = "9:11: listeners[1].address: 0.0.0.0:80 clashes with listener \"l\" (line 2), which \
               has no `interface`";
    refused(&two("", "interface = \"lo\""), &[why]);
}

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
        ("datagrams_per_second = 9", "datagrams_per_second", "is for UDP listeners; a stream has"),
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

#[test]
fn faults_of_routes_and_their_backends() {
    let weight = |weight: &str| GOOD.replace("{ name = \"b\" }", weight);
    refused(
        &weight("{ name = \"b\", weight = 1000001 }"),
        &["8:36: routes[0].backends[0].weight: must be a whole number, 0 to 1000000, not 1000001"],
    );
    refused(
        &weight("{ name = \"b\", weight = -1 }"),
        &["8:36: routes[0].backends[0].weight: must be a whole number, 0 to 1000000, not -1"],
    );
    let key = |line: &str| GOOD.replace("[[backends]]", &format!("{line}\n[[backends]]"));
    refused(
        &key("balance = \"random\""),
        &["9:11: routes[0].balance: must be \"round-robin\" or \"source-hash\", not \"random\""],
    );
    refused(
        &key("on_unavailable = \"fallback\""),
        &["9:18: routes[0].on_unavailable: must be \"refuse\" or \"next\", not \"fallback\""],
    );
    refused(&weight("{ weight = 1 }"), &["8:13: routes[0].backends[0].name: missing"]);
    refused(
        &weight("{ name = \"b\" }, { name = \"b\" }"),
        &["8:38: routes[0].backends[1].name: names backend \"b\" twice"],
    );
    refused(
        &weight("{ name = \"bb\" }"),
        &["8:22: routes[0].backends[0].name: there is no backend \"bb\" (did you mean \"b\"?)"],
    );
    refused(
        &GOOD.replace("[\"l\"]", "[\"web\"]"),
        &["7:14: routes[0].listeners[0]: there is no listener \"web\""],
    );
    refused(
        &GOOD.replace("[\"l\"]", "[\"l\", \"l\"]"),
        &[
            "7:19: routes[0].listeners[1]: names listener \"l\" twice",
            "7:19: routes[0].listeners[1]: listener \"l\" has a route already: \"r\", in line 6",
        ],
    );
}

/// Faults that another line in the backend of `GOOD` makes (line 12).
const BACKEND: &[(&str, &str)] = &[
    ("balance = \"round_robin\"", "must be \"round-robin\" or \"least-connections\" or"),
    ("connect_timeout = \"5\"", "\"5\" is no duration"),
    ("connect_attempts = 0", "must be a whole number, 1 to 8, not 0"),
    ("connect_attempts = 9", "must be a whole number, 1 to 8, not 9"),
    ("source = \"10.0.0.2\"", "must be a list, not a string"),
    ("transparent = 1", "must be true or false, not a whole number"),
    ("upstream_rest = \"99ms\"", "must be at least \"100ms\"; it can't be off"),
    ("upstream_sockets = \"one\"", "must be \"connected\" or \"shared\", not \"one\""),
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

#[test]
fn addresses_that_clash() {
    let two = |a: (&str, &str), b: (&str, &str)| {
        listener("a", a.0, a.1, "") + &listener("b", b.0, b.1, "")
    };
    for (a, b, expected) in [
        (
            ("TCP", "1.2.3.4:80"),
            ("TCP", "1.2.3.4:80"),
            "9:11: listeners[1].address: 1.2.3.4:80 clashes with listener \"a\" (line 2), and",
        ),
        (
            ("TCP", "1.2.3.4:80"),
            ("TLS", "1.2.3.4:80"),
            "9:11: listeners[1].address: 1.2.3.4:80 clashes",
        ),
        (
            ("UDP", "[::]:53"),
            ("UDP", "[::1]:53"),
            "9:11: listeners[1].address: [::1]:53 clashes with listener \"a\" (line 2), which",
        ),
        (
            ("UDP", "10.0.0.1:53"),
            ("UDP", "0.0.0.0:53"),
            "4:11: listeners[0].address: 10.0.0.1:53 clashes",
        ),
        (
            ("TLS", "0.0.0.0:443"),
            ("TLS", "10.0.0.1:443"),
            "9:11: listeners[1].address: 10.0.0.1:443 clashes",
        ),
        (
            ("TLS", "1.2.3.4:443"),
            ("TLS", "1.2.3.4:443"),
            "9:11: listeners[1].address: 1.2.3.4:443 clashes with listener \"a\" (line 2), with",
        ),
    ] {
        refused(&two(a, b), &[expected]);
    }
    for (a, b) in [
        (("TCP", "0.0.0.0:53"), ("UDP", "0.0.0.0:53")),
        (("TCP", "0.0.0.0:53"), ("TCP", "[::]:53")),
        (("TCP", "10.0.0.1:53"), ("TCP", "10.0.0.2:53")),
    ] {
        assert!(load(&two(a, b)).is_ok(), "{a:?} {b:?}");
    }
}

#[test]
fn tls_listeners_on_one_address_must_agree_on_what_comes_before_the_name() {
    let first = listener("a", "TLS", "[::]:443", "hostname = \"a.example.com\"");
    let second = |more: &str| {
        first.clone()
            + &listener("b", "TLS", "[::]:443", &format!("hostname = \"B.example.com\"\n{more}"))
    };
    let shares = "9:11: listeners[1].address: shares its address with listener \"a\" (line 2), so ";
    assert!(load(&second("max_sessions = 5\nidle_timeout = \"1s\"")).is_ok());
    refused(
        &second("nodelay = false\nhello_timeout = \"1s\""),
        &[
            &format!("{shares}`nodelay` must be the same"),
            &format!("{shares}`hello_timeout` must be the same"),
        ],
    );
    refused(
        &second("default_hostname = \"a.example.com\"\nstarttls = \"postgres\""),
        &[
            &format!("{shares}`starttls` must be the same"),
            &format!("{shares}`default_hostname` must be the same"),
        ],
    );
    let pools = ["x", "y"].map(|name| format!("[[backends]]\nname = \"{name}\"\nendpoints = []\n"));
    let both = |a: &str, b: &str| {
        second(&format!("not_tls = \"{b}\"\nsilent = \"{b}\"")).replacen(
            "hostname",
            &format!("not_tls = \"{a}\"\nsilent = \"{a}\"\nhostname"),
            1,
        ) + &pools.concat()
    };
    assert!(load(&both("x", "x")).is_ok());
    refused(
        &both("x", "y"),
        &[
            "13:11: listeners[1].not_tls: listener \"a\" (line 5) has the same address and",
            "14:10: listeners[1].silent: listener \"a\" (line 6) has the same address and",
        ],
    );
    let named = second("").replacen("hostname", "not_tls = \"x\"\nhostname", 1) + &pools.concat();
    assert!(load(&named).is_ok());
    refused(
        &(named + &route("a/not_tls", "[\"a\"]", "[]")),
        &["20:8: routes[0].name: listener \"a\" has a route of this name already: its `not_tls`"],
    );
    refused(
        &second("").replace("B.example", "A.EXAMPLE"),
        &["10:12: listeners[1].hostname: [::]:443 clashes with listener \"a\" (line 2), with"],
    );
}

#[test]
fn several_addresses_and_hostnames_of_one_listener() {
    let named = "[[listeners]]\nname = \"a\"\nprotocol = \"TLS\"\n";
    let both = "addresses = [\"0.0.0.0:443\", \"[::]:443\"]\n";
    let hosts = "hostnames = [\"a.example.com\", \"*.b.example.com\"]\n";
    assert!(load(&format!("{named}{both}{hosts}")).is_ok());
    for (text, expected) in [
        (format!("{named}addresses = []\n"), "4:13: listeners[0].addresses: names no address"),
        (
            format!("{named}address = \"[::]:443\"\n{both}"),
            "5:13: listeners[0].addresses: stands beside `address`; write all of them here",
        ),
        (
            format!("{named}addresses = [\"[::]:443\", \"[::]:443\"]\n"),
            "4:26: listeners[0].addresses[1]: [::]:443 is addresses[0] already",
        ),
        (
            format!("{named}addresses = [\"[::]:443\", \"[::1]:443\"]\n"),
            "4:26: listeners[0].addresses[1]: [::1]:443 lies in [::]:443, which the listener has",
        ),
        (
            format!("{named}addresses = [\"[::]:443\", \"443\"]\n"),
            "4:26: listeners[0].addresses[1]: must be IP:PORT",
        ),
        (
            format!("{named}{both}hostnames = []\n"),
            "5:13: listeners[0].hostnames: names no hostname",
        ),
        (
            format!("{named}{both}hostname = \"c.example.com\"\n{hosts}"),
            "6:13: listeners[0].hostnames: stands beside `hostname`",
        ),
        (
            format!("{named}{both}hostnames = [\"a.test\", \"A.test\"]\n"),
            "5:24: listeners[0].hostnames[1]: \"a.test\" is hostnames[0] already",
        ),
        (
            format!("{named}{both}hostnames = [\"a.test\"]\ndefault_hostname = \"b.test\"\n"),
            "6:20: listeners[0].default_hostname: no listener of this address takes \"b.test\"",
        ),
        (
            format!("{named}{both}{hosts}").replace("TLS", "TCP"),
            "5:1: listeners[0].hostnames: is for TLS listeners only",
        ),
        (
            format!("{named}{both}{hosts}")
                + &listener("b", "TLS", "[::]:443", "hostname = \"*.b.example.com\""),
            "10:12: listeners[1].hostname: [::]:443 clashes with listener \"a\" (line 2), with the",
        ),
        (
            format!("{named}{both}{hosts}") + &listener("b", "TCP", "[::]:443", ""),
            "9:11: listeners[1].address: [::]:443 clashes with listener \"a\" (line 2), and only",
        ),
        (
            format!("{named}{both}{hosts}") + &route("r", "[\"a\"]", "[\"c.example.com\"]"),
            "8:14: routes[0].listeners[0]: no hostname of the route can match listener \"a\", \
             which takes \"a.example.com\" and \"*.b.example.com\"",
        ),
    ] {
        let problems = load(&text).expect_err(&text).to_string();
        let first = problems.lines().next().expect("a line").trim_start_matches("f:");
        assert!(first.starts_with(expected), "{text}\n{problems}");
    }
    refused(
        &format!("{named}hostnames = [\"a.test\"]\n"),
        &["1:1: listeners[0].address: missing; IP:PORT"],
    );
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
            own("balance = \"random\"\nbackends = [\"b\"]") + backend,
            &["5:1: listeners[0].balance: is about endpoints, and this listener has no"],
        ),
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

fn route(name: &str, listeners: &str, hostnames: &str) -> String {
    let names = format!("[[routes]]\nname = \"{name}\"\nlisteners = {listeners}\n");
    format!("{names}hostnames = {hostnames}\nbackends = []\n")
}

#[test]
fn host_names_that_no_client_could_ask_for() {
    let tls = listener("l", "TLS", "[::]:443", "hostname = \"*.example.com\"");
    refused(
        &(tls.clone() + &route("r", "[\"l\"]", "[\"a.example.com\", \"example.com\"]")),
        &["9:31: routes[0].hostnames[1]: \"example.com\" can't match any listener of the route"],
    );
    refused(
        &(tls.clone() + &route("r", "[\"l\"]", "[\"a.example.org\"]")),
        &[
            "8:14: routes[0].listeners[0]: no hostname of the route can match listener \"l\",",
            "9:14: routes[0].hostnames[0]: \"a.example.org\" can't match any listener",
        ],
    );
    refused(
        &(listener("l", "TCP", "[::]:443", "") + &route("r", "[\"l\"]", "[\"a.example.org\"]")),
        &["8:14: routes[0].listeners[0]: the route has hostnames, and listener \"l\" is not TLS"],
    );
    refused(
        &(tls.clone() + &route("r", "[\"l\"]", "[\"a.example.com\", \"A.example.com\"]")),
        &["9:31: routes[0].hostnames[1]: listener \"l\" has a route for \"a.example.com\" already"],
    );
    refused(
        &(tls.clone() + &route("r", "[\"l\"]", "[]") + &route("s", "[\"l\"]", "[]")),
        &["13:14: routes[1].listeners[0]: listener \"l\" has a route already: \"r\", in line 7"],
    );
    let twice = tls + &route("r", "[\"l\"]", "[\"*.example.com\"]") + &route("s", "[\"l\"]", "[]");
    assert!(load(&twice).is_ok());
}

#[test]
fn two_routes_on_one_tcp_listener() {
    refused(
        &format!("{GOOD}[[routes]]\nname = \"s\"\nlisteners = [\"l\"]\nbackends = []"),
        &["14:14: routes[1].listeners[0]: listener \"l\" has a route already: \"r\", in line 6"],
    );
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
fn what_is_not_toml() {
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(load(&deep).expect_err("deep").0[0].message.starts_with("not TOML: "));
    refused("a = \nb = 1", &["1:5: not TOML: "]);
    refused("[x\n", &["1:3: not TOML: "]);
    refused("lame_duck = \"1s\"\nlame_duck = \"1s\"", &["2:1: not TOML: duplicate key"]);
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
                "listeners.limit_source" => {
                    ("[[listeners]]\nlimit_source.", "listeners[0].limit_source.".to_owned())
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
    let reference = include_str!("../REFERENCE.md");
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

#[test]
fn a_bad_weight_does_not_hide_dangling_references() {
    let text = "[[routes]]\nname = \"r\"\nlisteners = [\"nobody\"]\n\
                backends = [{ name = \"nothing\", weight = 2000000 }]\n";
    let problems = check::parse("f.toml", text).expect_err("faulty").to_string();
    for wanted in ["weight", "nobody", "nothing"] {
        assert!(problems.contains(wanted), "{wanted} is missing:\n{problems}");
    }
}

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
