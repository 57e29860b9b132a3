//! Warnings about a TOML file: values that can be put in force but are hardly meant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::check::limits;
use crate::model::backend::Backend;
use crate::model::config::Config;
use crate::model::endpoint::Endpoint;
use crate::model::gone::OnGone;
use crate::model::listener::{Listener, bound_to, transport};
use crate::model::place::{At, Place, Problem, Problems};
use crate::model::route::{Route, Takes};
use crate::table::routing::{Protocol, Transport};

/// All warnings about a configuration that compiles. `file` is the file's name. `local` has the
/// machine's own addresses, without loopback.
pub(crate) fn of(config: &Config, file: &str, local: &[IpAddr]) -> Vec<Problem> {
    let mut found = config.doubts.clone();
    if config.listeners.is_empty() {
        let place = Place { file: file.into(), line: 1, column: 1, field: String::new() };
        found.push(place.problem("there is no listener, so nothing is served; add [[listeners]]"));
    }
    unused(config, &mut found);
    refusing(config, &mut found);
    unchecked(config, &mut found);
    sent_nowhere(config, &mut found);
    shared_badly(config, &mut found);
    found.extend(circles(config, local));
    Problems::new(found).0
}

/// Listeners and backends that no route names.
fn unused(config: &Config, found: &mut Vec<Problem>) {
    let usual = config.routes.iter().filter(|route| route.takes == Takes::Usual);
    let served: BTreeSet<&str> = names(usual.flat_map(|route| &route.listeners));
    for listener in &config.listeners {
        if !served.contains(listener.name.value.as_str()) {
            found.push(listener.name.problem(format!(
                "no route names this listener, so all its sessions are refused; give the listener \
                 `endpoints` or `backends`, or put \"{}\" into the `listeners` of a route",
                listener.name.value
            )));
        }
    }
    let used = config.routes.iter().flat_map(|route| &route.backends);
    let used: BTreeSet<&str> = names(used.map(|backend| &backend.name));
    for backend in &config.backends {
        if !used.contains(backend.name.value.as_str()) {
            found.push(
                backend.name.problem(
                    "no route names this backend; remove the backend, or name it in a route",
                ),
            );
        }
    }
    let used = names(limits::named(config));
    let of_tcp = config.listeners.iter().filter(|of| of.protocol == Protocol::Tcp);
    let delaying = names(of_tcp.filter_map(|of| of.limit.as_ref()?.shared()));
    for limit in &config.shared_limits {
        if !used.contains(limit.name.value.as_str()) {
            let message = "nothing has this limit; remove it, or write `limit` with its name into \
                           a listener, route or backend";
            found.push(limit.name.problem(message));
        }
        if limit.limit.delays && !delaying.contains(limit.name.value.as_str()) {
            let message = "only clients of TCP listeners wait, and no TCP listener has this limit; \
                           remove `over`, or give the limit to a TCP listener";
            found.push(limit.name.problem(message));
        }
    }
}

/// Listeners of DNS whose clients are sent to TCP, where nobody listens.
fn sent_nowhere(config: &Config, found: &mut Vec<Problem>) {
    for listener in &config.listeners {
        let sends = listener.dns_guard.is_some_and(|guard| guard.slip > 0);
        let streams = config.listeners.iter().filter(|of| of.protocol != Protocol::Udp);
        let by_stream: Vec<_> = streams.flat_map(|of| &of.addresses).map(|of| of.value).collect();
        let alone = listener.addresses.iter().find(|of| !by_stream.contains(&of.value));
        if sends
            && listener.limit_source.is_some()
            && let Some(address) = alone
        {
            found.push(address.problem(
                "clients over `limit_source` are told to come over TCP, and no TCP listener has \
                 this address; add one, or set `slip = 0` in `dns_guard`",
            ));
        }
    }
}

/// Limits for sources that share a name with no other, or with UDP. The parts of a translated route
/// share its own name, of which there may be one.
fn shared_badly(config: &Config, found: &mut Vec<Problem>) {
    let mut sharing: BTreeMap<&str, Vec<&At<String>>> = BTreeMap::new();
    for (part, limit) in limits::sources(config) {
        if let Some(name) = limit.shared.as_ref().filter(|name| **name != part.value) {
            sharing.entry(name).or_default().push(part);
        }
    }
    for (name, parts) in &sharing {
        if let [part] = parts[..] {
            found.push(part.problem(format!(
                "no other listener or route has a `limit_source` with `shared = \"{name}\"`, so \
                 this one counts by itself; write the same name elsewhere, or remove it here"
            )));
        }
    }
    let shares = |listener: &&Listener| {
        listener.limit_source.as_ref().is_some_and(|limit| limit.shared.is_some())
    };
    let (udp, streams): (Vec<_>, Vec<_>) =
        config.listeners.iter().filter(shares).partition(|of| of.protocol == Protocol::Udp);
    for listener in udp {
        let name = |of: &Listener| of.limit_source.as_ref().and_then(|limit| limit.shared.clone());
        if let Some(stream) = streams.iter().find(|of| name(of) == name(listener)) {
            found.push(listener.name.problem(format!(
                "shares its `limit_source` with listener \"{}\": whoever forges a client's \
                 address in datagrams spends the client's places there too; give UDP a limit of \
                 its own",
                stream.name.value
            )));
        }
    }
}

fn names<'c>(names: impl Iterator<Item = &'c At<String>>) -> BTreeSet<&'c str> {
    names.map(|name| name.value.as_str()).collect()
}

/// Whether an endpoint is full while sessions come too fast.
fn opens_slowly(backend: &Backend) -> bool {
    let limits = backend.endpoints.iter().map(|of| &of.limit).chain([&backend.endpoint_limit]);
    limits.flatten().any(|limit| limit.new_per_second.is_some())
}

/// Backends that ask for something when an endpoint goes down or is full, although none ever is.
fn unchecked(config: &Config, found: &mut Vec<Problem>) {
    for backend in &config.backends {
        if let Some(queue) = &backend.queue
            && queue.value > 0
            && backend.endpoints.iter().all(|of| of.max_sessions.is_none())
            && !opens_slowly(backend)
        {
            found.push(queue.problem(
                "has no effect, because no endpoint has max_sessions or new_per_second, so none \
                 is ever full",
            ));
        }
        if let Some(on_down) = &backend.when_gone.on_down
            && on_down.value == OnGone::Close
            && backend.health_check.is_none()
            && backend.eject.is_none()
        {
            found.push(on_down.problem(
                "has no effect without health_check or eject, because no endpoint ever goes down",
            ));
        }
    }
}

/// Routes without a backend that takes sessions, and backends that refuse their share of a route.
fn refusing(config: &Config, found: &mut Vec<Problem>) {
    let mut weighty = BTreeSet::new();
    for route in &config.routes {
        let used = route.backends.iter().filter(|backend| backend.weight > 0);
        let used: BTreeSet<&str> = names(used.map(|backend| &backend.name));
        if used.is_empty() {
            let what =
                if route.backends.is_empty() { "names no backend" } else { "all weights are 0" };
            let place = beside(&route.name.place, "backends");
            let message = format!("{what}, so every session of the route is refused");
            found.push(place.problem(message));
        }
        weighty.extend(used);
    }
    for backend in &config.backends {
        if backend.endpoints.is_empty() && weighty.contains(backend.name.value.as_str()) {
            let place = beside(&backend.name.place, "endpoints");
            found.push(
                place.problem("names no endpoint, so all sessions for this backend are refused"),
            );
        }
    }
}

/// Hints: what an operator may not expect of a configuration that is in order.
pub(crate) fn hints(config: &Config) -> Vec<Problem> {
    let several = |route: &&Route| {
        route.on_unavailable.is_none()
            && route.backends.iter().filter(|backend| backend.weight > 0).count() > 1
    };
    let hint = |route: &Route| {
        beside(&route.name.place, "backends").problem(
            "if no endpoint of one of these backends is up, the share of that backend is refused; \
             `on_unavailable = \"next\"` beside them gives the share to the others, and \
             `on_unavailable = \"refuse\"` says that this is meant",
        )
    };
    config.routes.iter().filter(several).map(hint).collect()
}

/// The place of another key, in the table of a name.
fn beside(name: &Place, key: &str) -> Place {
    let table = name.field.strip_suffix("name").unwrap_or_default();
    Place { field: format!("{table}{key}"), ..name.clone() }
}

/// Endpoints that are listeners of this gateway and lead back to themselves: each connection would
/// open another connection. A listener may lead to another listener, as long as the last one leads
/// out.
pub(crate) fn circles(config: &Config, local: &[IpAddr]) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut at: BTreeMap<(Transport, SocketAddr), Vec<usize>> = BTreeMap::new();
    let mut number: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        for bound in bound_to(listener) {
            let Some(address) = bound.address.ip() else { continue };
            at.entry((bound.transport, address)).or_default().push(index);
        }
        number.insert(&listener.name.value, index);
    }
    let hit = |endpoint: SocketAddr, transport: Transport| -> &[usize] {
        let whole = match endpoint.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let whole = SocketAddr::new(whole, endpoint.port());
        let is_own = endpoint.ip().is_loopback() || local.contains(&endpoint.ip());
        let whole = || at.get(&(transport, whole)).filter(|_| is_own);
        at.get(&(transport, endpoint)).or_else(whole).map_or(&[], Vec::as_slice)
    };
    // Backends with endpoints that are listeners, and these listeners by transport. Most backends
    // have no such endpoints.
    let both = [Transport::Tcp, Transport::Udp];
    let hits = |backend: &Backend| -> [BTreeSet<usize>; 2] {
        let endpoints = &backend.endpoints;
        let endpoints = endpoints.iter().filter_map(Endpoint::socket_address);
        both.map(|way| endpoints.clone().flat_map(|at| hit(at, way)).copied().collect())
    };
    let hits: BTreeMap<&str, [BTreeSet<usize>; 2]> = config
        .backends
        .iter()
        .map(|backend| (backend.name.value.as_str(), hits(backend)))
        .filter(|(_, [tcp, udp])| !tcp.is_empty() || !udp.is_empty())
        .collect();
    let mut leads = Leads::default();
    for route in &config.routes {
        let used = route.backends.iter().filter(|backend| backend.weight > 0);
        for [tcp, udp] in used.filter_map(|backend| hits.get(backend.name.value.as_str())) {
            for name in &route.listeners {
                let Some(from) = number.get(name.value.as_str()).copied() else { continue };
                let way = transport(config.listeners[from].protocol);
                leads.add(from, if way == Transport::Tcp { tcp } else { udp });
            }
        }
    }
    let circling = leads.circling();
    let hit_backends = config.backends.iter();
    for backend in hit_backends.filter(|backend| hits.contains_key(backend.name.value.as_str())) {
        for endpoint in &backend.endpoints {
            let Some(address) = endpoint.socket_address() else { continue };
            let mut reached = both.iter().flat_map(|way| hit(address, *way));
            let Some(listener) = reached.find(|index| circling.contains(index)) else { continue };
            let name = &config.listeners[*listener].name.value;
            found.push(endpoint.address.problem(format!(
                "{address} is this gateway's own listener \"{name}\", which leads back to this \
                 backend: each session would open another session, until a limit is reached"
            )));
        }
    }
    found
}

/// Which listeners lead to which.
#[derive(Default)]
struct Leads {
    to: BTreeMap<usize, BTreeSet<usize>>,
    from: BTreeMap<usize, BTreeSet<usize>>,
}

impl Leads {
    fn add(&mut self, from: usize, to: &BTreeSet<usize>) {
        self.to.entry(from).or_default().extend(to);
        for to in to {
            self.from.entry(*to).or_default().insert(from);
        }
    }

    /// The listeners that lead into a circle. Listeners that lead out are taken away one after
    /// another, and the circles remain.
    fn circling(mut self) -> BTreeSet<usize> {
        let all = self.from.keys().copied();
        let mut out: Vec<usize> = all.filter(|index| !self.to.contains_key(index)).collect();
        while let Some(gone) = out.pop() {
            for before in self.from.remove(&gone).unwrap_or_default() {
                let Some(to) = self.to.get_mut(&before) else { continue };
                to.remove(&gone);
                if to.is_empty() {
                    self.to.remove(&before);
                    out.push(before);
                }
            }
        }
        self.to.into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::parse_for;
    use crate::machine::Machine;

    const GOOD: &str = "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\naddress = \"0.0.0.0:80\"\n\
        [[routes]]\nname = \"r\"\nlisteners = [\"l\"]\nbackends = [{ name = \"b\" }]\n\
        [[backends]]\nname = \"b\"\nendpoints = [\"10.0.0.1:80\"]\n";

    /// The warnings about a text, without the file's name, on a machine with the address 10.9.0.1.
    fn said(text: &str) -> Vec<String> {
        let machine = Machine { cores: vec![0], congestion: Vec::new() };
        let config = parse_for("f", text, &machine).unwrap_or_else(|error| panic!("{error}"));
        let local = [IpAddr::from([10, 9, 0, 1])];
        let found = of(&config, "f", &local).into_iter();
        found.map(|problem| problem.to_string().trim_start_matches("f:").to_owned()).collect()
    }

    #[track_caller]
    fn warned(text: &str, expected: &[&str]) {
        let said = said(text);
        assert_eq!(said.len(), expected.len(), "{said:#?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.starts_with(expected), "{said}\n{expected}");
        }
    }

    #[test]
    fn what_nobody_uses_and_what_refuses_everything() {
        warned(GOOD, &[]);
        warned("# nothing\n", &["1:1: there is no listener, so nothing is served"]);
        let again = GOOD.replace(
            "[[routes]]",
            "[[listeners]]\nname = \"m\"\nprotocol = \"UDP\"\n\
            address = \"0.0.0.0:80\"\n[[routes]]",
        );
        warned(&again, &["6:8: listeners[1].name: no route names this listener"]);
        let spare = format!("{GOOD}[[backends]]\nname = \"c\"\nendpoints = [\"10.0.0.1:80\"]\n");
        warned(&spare, &["13:8: backends[1].name: no route names this backend"]);
        let unweighted = GOOD.replace("{ name = \"b\" }", "{ name = \"b\", weight = 0 }");
        warned(&unweighted, &["6:8: routes[0].backends: all weights are 0, so every session of"]);
        let none = GOOD.replace("{ name = \"b\" }", "");
        let unled = "10:8: backends[0].name: no route names this backend";
        warned(&none, &["6:8: routes[0].backends: names no backend, so every session", unled]);
        let unchecked = format!("{GOOD}on_down = \"close\"\n");
        let line = unchecked.lines().count();
        warned(&unchecked, &[&format!("{line}:11: backends[0].on_down: has no effect without")]);
        warned(&format!("{unchecked}health_check = {{}}\n"), &[]);
        warned(&format!("{unchecked}eject = {{}}\n"), &[]);
        let idle = format!("{GOOD}queue = 5\n");
        warned(&idle, &[&format!("{line}:9: backends[0].queue: has no effect, because no endp")]);
        let full = "{ address = \"10.0.0.1:80\", max_sessions = 2 }";
        warned(&idle.replace("\"10.0.0.1:80\"", full), &[]);
        let empty = GOOD.replace("\"10.0.0.1:80\"", "");
        warned(&empty, &["10:8: backends[0].endpoints: names no endpoint, so all sessions"]);
    }

    #[test]
    fn limits_for_sources_that_are_shared() {
        let alone = "limit_source = { shared = \"all\", sessions = 9 }\n[[routes]]";
        let alone = GOOD.replace("[[routes]]", alone);
        warned(
            &alone,
            &["2:8: listeners[0].name: no other listener or route has a `limit_source`"],
        );
        let with = |protocol: &str| {
            let another = format!(
                "[[listeners]]\nname = \"m\"\nprotocol = \"{protocol}\"\n\
                 address = \"127.0.0.1:81\"\nendpoints = [\"10.0.0.1:80\"]\n\
                 limit_source = {{ shared = \"all\", sessions = 9 }}\n[[routes]]"
            );
            alone.replacen("[[routes]]", &another, 1)
        };
        warned(&with("TCP"), &[]);
        let forged =
            "7:8: listeners[1].name: shares its `limit_source` with listener \"l\": whoever";
        warned(&with("UDP"), &[forged]);
        let own = "limit_source = { shared = \"r\", sessions = 9 }\n[[backends]]";
        warned(&GOOD.replace("[[backends]]", own), &[]);
    }

    #[test]
    fn a_shared_limit_that_delays_has_a_listener_that_can() {
        let shared = "[[shared_limits]]\nname = \"all\"\nsessions = 5\nover = \"delay\"\n";
        let udp = GOOD.replace("\"TCP\"", "\"UDP\"");
        let with = |text: &str| text.replace("[[routes]]", "limit = \"all\"\n[[routes]]") + shared;
        warned(&with(GOOD), &[]);
        let line = with(&udp).lines().count() - 2;
        let said = format!("{line}:8: shared_limits[0].name: only clients of TCP listeners wait");
        warned(&with(&udp), &[&said]);
        warned(&with(&udp).replace("delay", "refuse"), &[]);
    }

    #[test]
    fn clients_that_are_sent_to_tcp_find_somebody_there() {
        let dns = GOOD.replace("\"TCP\"", "\"UDP\"").replace(
            "[[routes]]",
            "dns_guard = {}\nlimit_source = { datagrams_per_second = 9 }\n[[routes]]",
        );
        warned(&dns, &["4:11: listeners[0].address: clients over `limit_source` are told"]);
        warned(&dns.replace("guard = {}", "guard = { slip = 0 }"), &[]);
        let tcp = "[[listeners]]\nname = \"t\"\nprotocol = \"TCP\"\naddress = \"0.0.0.0:80\"\n\
            endpoints = [\"10.0.0.1:80\"]\n";
        warned(&format!("{dns}{tcp}"), &[]);
    }

    #[test]
    fn a_route_with_several_backends_may_not_know_that_shares_are_refused() {
        let told = |backends: &str, keys: &str| {
            let text = GOOD.replace("[{ name = \"b\" }]\n", &format!("{backends}\n{keys}\n"))
                + "[[backends]]\nname = \"c\"\nendpoints = [\"10.0.0.2:80\"]\n";
            let machine = Machine { cores: vec![0], congestion: Vec::new() };
            let config = parse_for("f", &text, &machine).unwrap_or_else(|error| panic!("{error}"));
            hints(&config).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let both = "[{ name = \"b\", weight = 90 }, { name = \"c\" }]";
        let said = told(both, "");
        assert!(said.len() == 1 && said[0].starts_with("f:6:8: routes[0].backends: "), "{said:?}");
        assert_eq!(told(both, "on_unavailable = \"refuse\""), [""; 0]);
        assert_eq!(told(both, "on_unavailable = \"next\""), [""; 0]);
        assert_eq!(told("[{ name = \"b\" }, { name = \"c\", weight = 0 }]", ""), [""; 0]);
    }

    #[test]
    fn an_admin_api_that_others_reach() {
        for open in ["0.0.0.0", "[::]", "8.8.8.8", "[2001:db8::1]"] {
            let text = format!("admin.address = \"{open}:9900\"\n{GOOD}");
            let said = said(&text);
            assert!(said.len() == 1 && said[0].starts_with("1:17: admin.address: "), "{said:?}");
            assert!(said[0].contains("\"127.0.0.1:9900\" or a private address"), "{said:?}");
        }
        for closed in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "100.64.0.1", "[::1]", "[fd00::1]"] {
            warned(&format!("admin.address = \"{closed}:9900\"\n{GOOD}"), &[]);
        }
        warned(&format!("admin.address = \"\"\n{GOOD}"), &[]);
    }

    #[test]
    fn endpoints_that_lead_back_to_their_own_listener() {
        let endpoint = |address: &str| GOOD.replace("10.0.0.1:80", address);
        for own in ["127.0.0.1:80", "127.9.9.9:80", "10.9.0.1:80"] {
            let expected = format!("11:14: backends[0].endpoints[0]: {own} is this gateway's own");
            warned(&endpoint(own), &[&expected]);
            warned(&endpoint(own).replace("0.0.0.0:80", "[::]:80"), &[]);
        }
        warned(&endpoint("127.0.0.1:81"), &[]);
        warned(&endpoint("10.8.0.1:80"), &[]);
        let exact = endpoint("10.8.0.1:80").replace("0.0.0.0:80", "10.8.0.1:80");
        warned(&exact, &["11:14: backends[0].endpoints[0]: 10.8.0.1:80 is this gateway's own"]);

        // A listener leads to another listener, and from there out or back.
        let two = |second: &str| {
            endpoint("127.0.0.1:81")
                + "[[listeners]]\nname = \"m\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:81\"\n\
                   [[routes]]\nname = \"s\"\nlisteners = [\"m\"]\nbackends = [{ name = \"c\" }]\n\
                   [[backends]]\nname = \"c\"\nendpoints = [\""
                + second
                + "\"]\n"
        };
        warned(&two("10.0.0.1:80"), &[]);
        warned(
            &two("127.0.0.1:80"),
            &[
                "11:14: backends[0].endpoints[0]: 127.0.0.1:81 is",
                "22:14: backends[1].endpoints[0]",
            ],
        );
        let udp = endpoint("127.0.0.1:80").replace("\"TCP\"", "\"UDP\"");
        warned(&udp, &["11:14: backends[0].endpoints[0]: 127.0.0.1:80 is"]);
    }
}
