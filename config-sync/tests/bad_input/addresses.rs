//! What is said of where listeners listen, and of listeners that can not stand beside each other.

use super::{GOOD, listener, load, refused, route};

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
