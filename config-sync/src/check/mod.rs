//! Checks whether the parts of a configuration fit together, which no single value can tell.

pub(crate) mod alpn;
mod endpoints;
mod fallback;
mod limits;
mod users;
pub(crate) mod warnings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::check::users::Users;
use crate::machine::Machine;
use crate::model::backend::{Backend, FastPath};
use crate::model::config::{Broken, Config};
use crate::model::listener::{AcceptProxy, Listener, bound_to, nameless};
use crate::model::place::{At, Hints, Place, Problem, Problems};
use crate::model::route::{Route, Takes};
use crate::table::address::Address;
use crate::table::routing::{Bound, Protocol, ProxyVersion};
use crate::toml::{self, Parts};

/// Reads a configuration for this machine. Problems use `file` as the file's name.
///
/// # Errors
/// Every fault of the text at once.
pub fn parse(file: &str, text: &str) -> Result<Config, Problems> {
    parse_for(file, text, &Machine::this())
}

/// Reads a configuration for a given machine. `parse` asks the system only for the machine's cores
/// and congestion controls.
pub fn parse_for(file: &str, text: &str, machine: &Machine) -> Result<Config, Problems> {
    checked(toml::read(&[(file, text)], false, machine)?)
}

/// Reads a configuration from several files, each a name and a text. A file that is included is
/// among them. There is at least one.
pub fn parse_files(files: &[(&str, &str)], machine: &Machine) -> Result<Config, Problems> {
    checked(toml::read(files, true, machine)?)
}

fn checked(Parts { config, broken, mut problems }: Parts) -> Result<Config, Problems> {
    if problems.is_empty() {
        return Ok(config);
    }
    problems.extend(check(&config, &broken));
    Err(Problems::new(problems))
}

pub(crate) fn check(config: &Config, broken: &Broken) -> Vec<Problem> {
    let listeners = config.listeners.iter().map(|l| &l.name).chain(&broken.listeners).collect();
    let routes = config.routes.iter().map(|r| &r.name).chain(&broken.routes).collect();
    let backends = config.backends.iter().map(|b| &b.name).chain(&broken.backends).collect();
    let mut check = Check {
        listeners: config.listeners.iter().map(|l| (l.name.value.as_str(), l)).collect(),
        problems: Vec::new(),
        hints: Hints::default(),
    };
    check.distinct("listener", &listeners);
    check.distinct("route", &routes);
    check.distinct("backend", &backends);
    check.shared_limits(config, broken);
    check.shared_sources(config);
    check.sockets(&config.listeners);
    let (listeners, backends) = (set(&listeners), set(&backends));
    for route in &config.routes {
        let used = route.backends.iter().map(|backend| &backend.name).collect();
        check.references("listener", &route.listeners.iter().collect(), &listeners);
        check.references("backend", &used, &backends);
        check.hostnames(route);
        check.limit_source(route);
        check.problems.extend(alpn::unseen(route, &check.listeners));
    }
    check.one_route_each(&config.routes);
    let users = check.users(&config.routes);
    for backend in &config.backends {
        let users = users.get(backend.name.value.as_str()).copied().unwrap_or_default();
        check.problems.extend(endpoints::distinct(backend));
        check.transparent(backend);
        check.fast_path(backend);
        check.keys_in_use(backend, users);
        check.problems.extend(endpoints::unix(backend, users.udp));
        check.problems.extend(endpoints::scopes(backend));
        check.problems.extend(endpoints::shifted(backend, users.unix, users.highest));
        check.encrypted_once(backend, users);
    }
    check.shared_sockets(&config.backends);
    check.problems
}

struct Check<'c> {
    listeners: BTreeMap<&'c str, &'c Listener>,
    problems: Vec<Problem>,
    hints: Hints,
}

/// A listener on one of its addresses.
#[derive(Clone, Copy)]
struct OnAddress<'c> {
    listener: &'c Listener,
    address: &'c At<Address>,
}

type NamesAt<'c> = Vec<&'c At<String>>;

fn set<'c>(names: &NamesAt<'c>) -> BTreeSet<&'c str> {
    names.iter().map(|name| name.value.as_str()).collect()
}

impl<'c> Check<'c> {
    fn distinct(&mut self, what: &str, names: &NamesAt<'c>) {
        let mut names = names.clone();
        names.sort_by_key(|At { value, place }| (value, &place.file, place.line, place.column));
        for same in names.chunk_by(|a, b| a.value == b.value) {
            for name in &same[1..] {
                let (name_is, at) = (&name.value, same[0].place.seen_from(&name.place));
                let message = match what {
                    "route" if let Some((listener, key)) = fallback::listener(same[0], name) => {
                        format!(
                            "listener \"{listener}\" has a route of this name already: its `{key}`"
                        )
                    }
                    "route" | "backend" if is_of_listener(same[0]) || is_of_listener(name) => {
                        format!(
                            "listener \"{name_is}\" has a {what} of this name already: its own \
                         `endpoints` or `backends`"
                        )
                    }
                    _ => format!("{at} has a {what} named \"{name_is}\" already"),
                };
                self.refuse(name, message);
            }
        }
    }

    /// Each name must be among `known`, and be given only once.
    fn references(&mut self, what: &str, names: &NamesAt<'c>, known: &BTreeSet<&str>) {
        let mut earlier = BTreeSet::new();
        for name in names {
            let wanted = &name.value;
            if !earlier.insert(wanted) {
                self.refuse(name, format!("names {what} \"{wanted}\" twice"));
            }
            if !known.contains(wanted.as_str()) {
                let near = self.hints.did_you_mean(wanted, known.iter().copied());
                self.refuse(name, format!("there is no {what} \"{wanted}\"{near}"));
            }
        }
    }

    /// Listeners that share an address must be TLS listeners with different host names. No listener
    /// may take a part of a wildcard address's connections, because the kernel would split the
    /// connections silently.
    fn sockets(&mut self, listeners: &'c [Listener]) {
        let mut sockets: BTreeMap<Bound, Vec<OnAddress<'c>>> = BTreeMap::new();
        for listener in listeners {
            let mut own = BTreeMap::new();
            for (address, bound) in listener.addresses.iter().zip(bound_to(listener)) {
                if let Some(first) = own.insert(bound.clone(), &address.place.field) {
                    let first = first.rsplit('.').next().unwrap_or_default();
                    self.refuse(address, format!("{} is {first} already", address.value));
                    continue;
                }
                sockets.entry(bound).or_default().push(OnAddress { listener, address });
            }
            self.distinct_hostnames(listener);
        }
        let mut told = BTreeSet::new();
        for (bound, sharing) in &sockets {
            let before = self.problems.len();
            self.shared_socket(sharing);
            self.default_hostname(sharing);
            self.problems.extend(fallback::agreed(sharing));
            self.overlaps(&sockets, bound, sharing[0]);
            // What is wrong with one port of a range is wrong with the others.
            let mut found = self.problems.split_off(before);
            let place = |of: &Problem| (Arc::clone(&of.file), of.line, of.column);
            found.retain(|problem| !told.contains(&place(problem)));
            told.extend(found.iter().map(place));
            self.problems.extend(found);
        }
    }

    fn overlaps(
        &mut self,
        sockets: &BTreeMap<Bound, Vec<OnAddress<'c>>>,
        bound: &Bound,
        OnAddress { listener, address }: OnAddress<'c>,
    ) {
        let Some((owner, why)) = overlapping(sockets, bound) else { return };
        let owners = &sockets[owner];
        let message = if owners.iter().any(|of| std::ptr::eq(of.listener, listener)) {
            format!("{} lies in {}, which the listener has", address.value, owner.address)
        } else {
            taken(&address.value, &address.place, owners[0].listener, why)
        };
        self.refuse(address, message);
    }

    fn distinct_hostnames(&mut self, listener: &'c Listener) {
        let mut own = BTreeMap::new();
        for (i, host) in listener.hostnames.iter().enumerate() {
            if let Some(first) = own.insert(&host.value, i) {
                self.refuse(host, format!("\"{}\" is hostnames[{first}] already", host.value));
            }
        }
    }

    fn shared_socket(&mut self, sharing: &[OnAddress<'c>]) {
        let first = sharing[0].listener;
        let mut by_host: BTreeMap<Option<&str>, &Listener> = BTreeMap::new();
        for (nth, OnAddress { listener, address }) in sharing.iter().enumerate() {
            let is_tls = listener.protocol == Protocol::Tls && first.protocol == Protocol::Tls;
            for (host, place) in hosts_of(listener, &address.place) {
                let same = *by_host.entry(host).or_insert(listener);
                if is_tls && !std::ptr::eq(same, *listener) {
                    let why = "with the same hostname, so nothing tells them apart";
                    self.problems.push(place.problem(taken(&address.value, place, same, why)));
                }
            }
            if nth == 0 {
                continue;
            }
            if !is_tls {
                let why = "and only TLS listeners can share an address";
                self.refuse(address, taken(&address.value, &address.place, first, why));
                continue;
            }
            let differing = [
                ("nodelay", listener.options.nodelay != first.options.nodelay),
                ("keepalive", listener.options.keepalive != first.options.keepalive),
                ("user_timeout", listener.options.user_timeout != first.options.user_timeout),
                ("congestion", listener.options.congestion != first.options.congestion),
                ("hello_timeout", listener.timeouts.hello != first.timeouts.hello),
                ("starttls", listener.starttls != first.starttls),
                ("on_refusal", listener.on_refusal != first.on_refusal),
                ("default_hostname", nameless(listener) != nameless(first)),
                ("accept_proxy", believed(listener) != believed(first)),
                ("mode", listener.mode != first.mode),
                ("owner", listener.owner != first.owner),
            ];
            for (key, _) in differing.iter().filter(|(_, differs)| *differs) {
                let message = format!(
                    "shares its address with listener \"{}\" ({}), so `{key}` must be the \
                     same: it applies before the server name is known",
                    first.name.value,
                    first.name.place.seen_from(&address.place)
                );
                self.refuse(address, message);
            }
        }
    }

    /// Some listener must take the name for clients that send no name.
    fn default_hostname(&mut self, sharing: &[OnAddress<'c>]) {
        if let Some(name) = &sharing[0].listener.default_hostname
            && !sharing.iter().any(|bound| reaches(bound.listener, &name.value))
        {
            let message = format!("no listener of this address takes \"{}\"", name.value);
            self.refuse(name, message);
        }
    }

    /// Every listener of a route with host names must be able to see one of these names. Some
    /// listener of the route must take each host name.
    fn hostnames(&mut self, route: &Route) {
        let found = route.listeners.iter().filter_map(|name| {
            let listener: &Listener = self.listeners.get(name.value.as_str())?;
            Some((name, listener))
        });
        let found: Vec<_> = found.filter(|_| !route.hostnames.is_empty()).collect();
        for (name, listener) in &found {
            let own: Vec<_> = listener.hostnames.iter().map(|own| own.value.as_str()).collect();
            let own = own.join("\" and \"");
            let (is, hosts) = (&name.value, &route.hostnames);
            if listener.protocol != Protocol::Tls {
                let why = format!("listener \"{is}\" is not TLS: it can't see them");
                self.refuse(name, format!("the route has hostnames, and {why}"));
            } else if !hosts.iter().any(|host| reaches(listener, &host.value)) {
                let what = format!("can match listener \"{is}\", which takes \"{own}\"");
                self.refuse(name, format!("no hostname of the route {what}"));
            }
        }
        let tls = found.iter().map(|(_, listener)| listener);
        let tls: Vec<_> = tls.filter(|listener| listener.protocol == Protocol::Tls).collect();
        for host in route.hostnames.iter().filter(|_| !tls.is_empty()) {
            if !tls.iter().any(|listener| reaches(listener, &host.value)) {
                let message = format!("\"{}\" can't match any listener of the route", host.value);
                self.refuse(host, message);
            }
        }
    }

    /// A TCP or UDP listener has at most one route for each source range. A TLS listener has at
    /// most one route for each host name and source range.
    fn one_route_each(&mut self, routes: &'c [Route]) {
        type Key<'c> = (&'c str, Option<&'c str>, Option<&'c str>, Option<IpNet>);
        let mut seen: BTreeMap<Key<'_>, &Route> = BTreeMap::new();
        for route in routes.iter().filter(|route| route.takes == Takes::Usual) {
            for name in &route.listeners {
                let Some(listener) = self.listeners.get(name.value.as_str()).copied() else {
                    continue;
                };
                for (host, at) in hosts_on(route, listener, &name.place) {
                    let ranges = route.sources.iter().map(|of| (Some(of.value), &of.place));
                    let rest = route.sources.is_empty().then_some((None, at));
                    let ranges = ranges.chain(rest);
                    for ((range, at), alpn) in
                        ranges.flat_map(|range| alpn::asked(route).map(move |alpn| (range, alpn)))
                    {
                        let first = seen.insert((&name.value, host, alpn, range), route);
                        let Some(first) = first else { continue };
                        let host = host.map(|host| format!(" for \"{host}\""));
                        let alpn = alpn.map(|alpn| format!(" with \"{alpn}\""));
                        let range = range.map(|range| format!(" from {range}"));
                        let which = if is_of_listener(&first.name) {
                            "its own `endpoints` or `backends`".to_owned()
                        } else {
                            format!(
                                "\"{}\", in {}",
                                first.name.value,
                                first.name.place.seen_from(at)
                            )
                        };
                        self.problems.push(at.problem(format!(
                            "listener \"{}\" has a route{}{}{} already: {which}",
                            name.value,
                            host.unwrap_or_default(),
                            alpn.unwrap_or_default(),
                            range.unwrap_or_default(),
                        )));
                    }
                }
            }
        }
    }

    /// If Ringway connects from the client's own address, there is no other source address.
    fn transparent(&mut self, backend: &Backend) {
        let Some(key) = backend.transparent.as_ref().filter(|key| key.value) else { return };
        let other = match backend {
            Backend { source, .. } if !source.is_empty() => "`source`",
            _ if backend.has_shared_sockets() => "`upstream_sockets = \"shared\"`",
            _ => return,
        };
        let message = format!("can't be with {other}: connections come from clients' addresses");
        self.refuse(key, message);
    }

    /// The kernel forwards flows between addresses, and changes nothing else.
    fn fast_path(&mut self, backend: &Backend) {
        if backend.fast_path() == FastPath::Off {
            return;
        }
        let Some(key) = &backend.fast_path else { return };
        let other = match backend {
            _ if backend.has_shared_sockets() => "`upstream_sockets = \"shared\"`",
            _ if backend.is_transparent() => "`transparent`",
            Backend { interface: Some(_), .. } => "`interface`",
            Backend { send_proxy: Some(_), .. } => "`send_proxy`",
            _ => return,
        };
        self.refuse(key, format!("can't be with {other}: no flow would go through the kernel"));
    }

    /// The users of each backend, by the backend's name. The map is made once, because a search of
    /// all routes for each backend would take seconds where there are many of both.
    fn users(&self, routes: &'c [Route]) -> BTreeMap<&'c str, Users<'c>> {
        let mut users: BTreeMap<&str, Users<'c>> = BTreeMap::new();
        for route in routes {
            let mut of_route = Users::default();
            for name in &route.listeners {
                of_route.add(self.listeners.get(name.value.as_str()).copied());
            }
            if route.takes != Takes::Usual {
                of_route.through = None;
            }
            for used in &route.backends {
                users.entry(&used.name.value).or_default().extend(of_route);
            }
        }
        users
    }

    /// A key that no listener of the backend uses is a mistake.
    fn keys_in_use(&mut self, backend: &Backend, users: Users<'_>) {
        if let Some(asked) = &backend.send_proxy
            && asked.value.version == ProxyVersion::V1
            && users.udp
        {
            let message = "\"v1\" has no word for UDP, and a UDP listener uses this backend; \
                           write \"v2\"";
            self.refuse(asked, message.to_owned());
        }
        let only_udp = users.udp && !users.tcp && !users.unknown;
        if only_udp {
            let message = "is for TCP, and only UDP listeners use this backend";
            self.problems.extend(backend.stream_keys.iter().map(|key| key.problem(message)));
        }
        let check = backend
            .health_check
            .as_ref()
            .filter(|check| !check.value.is_beside() && !check.value.speaks_udp());
        if let Some(check) = check.filter(|_| only_udp) {
            let message = "is a TCP connection, and only UDP listeners use this backend; give the \
                           `port` of a TCP server beside each endpoint";
            self.refuse(check, message.to_owned());
        }
        let sockets = backend.shared_sockets.as_ref().map(|key| &key.place);
        let rest = backend.upstream_rest.as_ref().map(|key| &key.place);
        let path = backend.fast_path.as_ref().map(|key| &key.place);
        let after = backend.fast_path_after.as_ref().map(|key| &key.place);
        let udp_keys = [sockets, rest, path, after].into_iter().flatten();
        let only_tcp = users.tcp && !users.udp && !users.unknown;
        for place in udp_keys.filter(|_| only_tcp) {
            let message = "is for UDP, and only TCP listeners use this backend";
            self.problems.push(place.problem(message));
        }
    }

    /// TLS that passes through is encrypted already, and its reader is behind the endpoint's TLS.
    fn encrypted_once(&mut self, backend: &Backend, users: Users<'_>) {
        if let Some(listener) = users.through.filter(|_| backend.tls.is_some()) {
            let message = format!(
                "has `tls`, and listener \"{}\" passes TLS through to it, which would be encrypted \
                 twice",
                listener.name.value
            );
            self.refuse(&backend.name, message);
        }
    }

    /// With shared sockets, flows differ only by the endpoint's address and by their own local
    /// address.
    fn shared_sockets(&mut self, backends: &[Backend]) {
        let mut seen: BTreeMap<SocketAddr, &Backend> = BTreeMap::new();
        for backend in backends.iter().filter(|backend| backend.has_shared_sockets()) {
            if backend.source.is_empty()
                && let Some(key) = &backend.shared_sockets
            {
                let message = "\"shared\" needs `source`: each flow of an endpoint needs a local \
                               address of its own";
                self.refuse(key, message.to_owned());
            }
            if let Some(interface) = &backend.interface {
                let message = "can't be with `upstream_sockets = \"shared\"`: the sockets are \
                               those of every backend that shares sockets";
                self.refuse(interface, message.to_owned());
            }
            for endpoint in &backend.endpoints {
                let at = &endpoint.address;
                let Some(address) = endpoint.socket_address() else {
                    let message = "with `upstream_sockets = \"shared\"` endpoints are IP \
                                   addresses and ports, because two others may be one";
                    self.refuse(at, message.to_owned());
                    continue;
                };
                let Some(first) = seen.insert(address, backend) else { continue };
                if first.name.value != backend.name.value {
                    let name = &first.name.value;
                    let message = format!(
                        "{address} is in backend \"{name}\" ({}) too, which has shared \
                         sockets as well: Ringway could not tell for which backend a reply is",
                        first.name.place.seen_from(&at.place)
                    );
                    self.refuse(at, message);
                }
            }
        }
    }

    fn refuse<T>(&mut self, at: &At<T>, message: String) {
        self.problems.push(at.problem(message));
    }
}

/// Whether this is the name of a listener's own route or backend, which is the listener's name.
fn is_of_listener(name: &At<String>) -> bool {
    name.place.field.starts_with("listeners[")
}

/// The sources of PROXY headers that a listener believes.
fn believed(listener: &Listener) -> Option<&AcceptProxy> {
    listener.accept_proxy.as_ref().map(|asked| &asked.value)
}

/// A socket with more addresses or more interfaces than `bound`, such that the kernel would not
/// tell the two apart, and the reason.
fn overlapping<'s, T>(
    sockets: &'s BTreeMap<Bound, T>,
    bound: &Bound,
) -> Option<(&'s Bound, &'static str)> {
    let address = bound.address.ip()?;
    let whole = match address.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let at = |address, interface| {
        let wanted = Bound { transport: bound.transport, address: Address::Ip(address), interface };
        sockets.get_key_value(&wanted).map(|(found, _)| found)
    };
    let whole = SocketAddr::new(whole, address.port());
    let narrow = bound.interface != 0;
    if whole != address {
        let found = at(whole, bound.interface).or_else(|| at(whole, 0));
        let found = found.or_else(|| {
            let mut others = sockets.keys().filter(|other| {
                !narrow && other.transport == bound.transport && other.address == whole.into()
            });
            others.next()
        });
        if let Some(owner) = found {
            return Some((owner, "which takes it whole"));
        }
    }
    let owner = at(address, 0).filter(|_| narrow)?;
    Some((owner, "which has no `interface`: each of the two needs one"))
}

/// `at` is the place of the problem.
fn taken(address: &Address, at: &Place, owner: &Listener, why: &str) -> String {
    let (name, line) = (&owner.name.value, owner.name.place.seen_from(at));
    format!("{address} clashes with listener \"{name}\" ({line}), {why}")
}

/// The host names of a listener, or `None` for every name. `otherwise` is the place of a listener
/// that has no host name.
fn hosts_of<'l>(
    listener: &'l Listener,
    otherwise: &'l Place,
) -> impl Iterator<Item = (Option<&'l str>, &'l Place)> {
    let every = listener.hostnames.is_empty().then_some((None, otherwise));
    let own = listener.hostnames.iter();
    own.map(|host| (Some(host.value.as_str()), &host.place)).chain(every)
}

/// The names that a route has on one of its listeners, with the place of each name.
pub(crate) fn hosts_on<'r>(
    route: &'r Route,
    listener: &Listener,
    reference: &'r Place,
) -> Vec<(Option<&'r str>, &'r Place)> {
    if listener.protocol != Protocol::Tls || route.hostnames.is_empty() {
        return vec![(None, reference)];
    }
    let reaching = route.hostnames.iter().filter(|host| reaches(listener, &host.value));
    reaching.map(|host| (Some(host.value.as_str()), &host.place)).collect()
}

/// Whether a client can ask for a name that both the listener and `pattern` match.
pub(crate) fn reaches(listener: &Listener, pattern: &str) -> bool {
    let own = &listener.hostnames;
    own.is_empty() || own.iter().any(|own| overlap(&own.value, pattern))
}

/// Whether some name matches both patterns.
pub(crate) fn overlap(a: &str, b: &str) -> bool {
    let below = |name: &str, suffix: &str| {
        name.strip_suffix(suffix).is_some_and(|front| front.ends_with('.'))
    };
    match (a.strip_prefix("*."), b.strip_prefix("*.")) {
        (None, None) => a == b,
        (Some(suffix), None) => below(b, suffix),
        (None, Some(suffix)) => below(a, suffix),
        (Some(x), Some(y)) => x == y || below(x, y) || below(y, x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_overlap_where_one_name_matches_both() {
        for (a, b, expected) in [
            ("a.example.com", "a.example.com", true),
            ("a.example.com", "b.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "xexample.com", false),
            ("*.example.com", "*.eu.example.com", true),
            ("*.example.com", "*.example.org", false),
            ("*.example.com", "*.com", true),
            ("*.example.com", "*.ple.com", false),
        ] {
            assert_eq!(overlap(a, b), expected, "{a} {b}");
            assert_eq!(overlap(b, a), expected, "{b} {a}");
        }
    }
}
