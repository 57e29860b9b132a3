//! What is said of routes, and of routes that nothing tells apart.

use config_sync::check;

use super::{GOOD, listener, load, refused, route};

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
fn faults_of_limits_for_the_sources_of_a_route() {
    let with = |keys: &str| {
        GOOD.replace("[[backends]]", &format!("limit_source = {{ {keys} }}\n[[backends]]"))
    };
    assert!(load(&with("sessions = 5, except = [\"10.0.0.0/8\"]")).is_ok());
    let udp = GOOD.replace("\"TCP\"", "\"UDP\"");
    let of_udp = "limit_source = { datagrams_per_second = 9 }\n[[backends]]";
    assert!(load(&udp.replace("[[backends]]", of_udp)).is_ok());
    for (keys, fault) in [
        ("", "9:16: routes[0].limit_source: limits nothing; give `sessions`, `new_per_second`,"),
        ("sessions = 0", "9:29: routes[0].limit_source.sessions: must be a whole number, 1 to"),
        ("sessions = 1, over = \"delay\"", "routes[0].limit_source.over: can't be \"delay\" here"),
        (
            "datagrams_per_second = 9",
            "9:16: routes[0].limit_source: has `datagrams_per_second`, and listener \"l\" of the \
             route is not UDP: a stream has no datagrams",
        ),
    ] {
        let problems = load(&with(keys)).expect_err(keys).to_string();
        assert!(problems.contains(fault), "{problems}");
        assert_eq!(problems.lines().count(), 1, "{problems}");
    }
}

/// A session has a place with its listener and one with its route.
#[test]
fn a_route_shares_no_limit_for_sources_with_its_listener() {
    let with = |listener: &str, route: &str| {
        let limit = |name: &str| format!("limit_source = {{ shared = \"{name}\", sessions = 5 }}");
        GOOD.replace("[[routes]]", &format!("{}\n[[routes]]", limit(listener)))
            .replace("[[backends]]", &format!("{}\n[[backends]]", limit(route)))
    };
    assert!(load(&with("one", "other")).is_ok());
    let problems = load(&with("one", "one")).expect_err("both share").to_string();
    let fault =
        "10:16: routes[0].limit_source: shares \"one\" with listener \"l\" of the route, so";
    assert!(problems.contains(fault), "{problems}");
    let another = |keys: &str| {
        let one = "limit_source = { shared = \"one\", sessions = 5 }\n[[routes]]";
        let more = format!(
            "\n[[listeners]]\nname = \"m\"\nprotocol = \"UDP\"\naddress = \"127.0.0.1:81\"\n\
             endpoints = [\"10.0.0.1:80\"]\nlimit_source = {{ shared = \"one\", {keys} }}\n"
        );
        load(&(GOOD.replace("[[routes]]", one) + &more))
    };
    assert!(another("sessions = 6, datagrams_per_second = 9").is_ok());
    for keys in [
        "bytes_per_second = 5000",
        "sessions = 5, prefix_v4 = 24",
        "sessions = 5, new_per_second = 1",
    ] {
        let problems = another(keys).expect_err(keys).to_string();
        assert!(
            problems.contains("listeners[1].name: has a limit_source with `shared"),
            "{problems}"
        );
        assert!(problems.contains("differs from that of \"l\"; write the same keys"), "{problems}");
    }
    assert!(load(&with("on e", "other")).is_err_and(|faults| {
        faults.to_string().contains("listeners[0].limit_source.shared: must be 1 to 253 of")
    }));
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
fn a_bad_weight_does_not_hide_dangling_references() {
    let text = "[[routes]]\nname = \"r\"\nlisteners = [\"nobody\"]\n\
                backends = [{ name = \"nothing\", weight = 2000000 }]\n";
    let problems = check::parse("f.toml", text).expect_err("faulty").to_string();
    for wanted in ["weight", "nobody", "nothing"] {
        assert!(problems.contains(wanted), "{wanted} is missing:\n{problems}");
    }
}
