//! Builds the configuration from listeners and routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::check::reaches;
use crate::gateway::status::Kind;
use crate::gateway::translate::backend_tls::BackendTls;
use crate::gateway::translate::backends::{self, Destination, Found, To, Way};
use crate::gateway::translate::checks;
use crate::gateway::translate::fallback::{self, Fallbacks};
use crate::gateway::translate::index::{Index, key};
use crate::gateway::translate::listeners::{Entry, Listeners, Protocol};
use crate::gateway::translate::places::at;
use crate::gateway::translate::policy::{Policies, PolicyTarget, Unchecked};
use crate::gateway::translate::routes::{Routed, Served, title};
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::values::{BackendValues, Fallback};
use crate::gateway::translate::verdict::Fault;
use crate::model::backend::{self, Backend, Balance, CONNECT_ATTEMPTS, CONNECT_TIMEOUT};
use crate::model::config::Config;
use crate::model::endpoint::{Address, Endpoint};
use crate::model::gone::{CLOSE_AFTER, WhenGone};
use crate::model::limit::{Limit, LimitOf, SharedLimit};
use crate::model::listener::{AcceptProxy, FLOW_TIMEOUT, Listener, OPTIONS, TIMEOUTS, nameless};
use crate::model::route::{Route, Takes, WeightedBackend};
use crate::model::source_limit::SourceLimit;
use crate::model::tls::Origination;
use crate::table::address;
use crate::table::fnv::Fnv;
use crate::table::routing::{self, OnRefusal, ProxyVersion, RouteBalance, SendProxy, Timeouts};
use crate::toml::fallback::routes as fallback_routes;

/// What leads from a listener to a backend.
#[derive(Clone, Copy)]
struct Lead<'a, 'o> {
    /// The route. `None`: the listener itself names the backend.
    route: Option<PolicyTarget<'o>>,
    /// The words for the reference in the name of a backend that leads nowhere.
    words: &'a str,
    destination: &'a Result<Destination<'o>, Fault>,
    /// The bytes are the client's TLS, which passes through.
    is_tls: bool,
}

/// The inputs from which the parts of a configuration are made.
pub(super) struct Build<'a, 'o> {
    pub(super) settings: &'a Settings,
    pub(super) index: &'a Index<'o>,
    pub(super) policies: &'a Policies<'o>,
    pub(super) backend_tls: &'a BackendTls<'o>,
    pub(super) listeners: &'a mut Listeners<'o>,
    pub(super) unchecked: Unchecked,
    pub(super) fallbacks: Fallbacks<'o>,
}

impl<'o> Build<'_, 'o> {
    pub(super) fn config(&mut self, routes: &[Routed<'o>], served: &Served) -> Config {
        let mut config = self.settings.base.clone();
        let mut pool = Pool::default();
        config.listeners = self.listeners(&mut pool);
        let fallbacks = config.listeners.iter().flat_map(fallback_routes).map(placed);
        config.routes.extend(fallbacks);
        for (at, route) in routes.iter().enumerate() {
            let mut parts = self.routes(at, route, served, &mut pool);
            config.shared_limits.extend(shared_limit(&mut parts));
            config.routes.extend(parts);
        }
        config.backends = pool.backends;
        self.unchecked = pool.unchecked;
        self.fallbacks = pool.fallbacks;
        config.listeners.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        config.routes.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        config.shared_limits.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        config.backends.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        config
    }

    /// One listener for each address of each entry. HTTP listeners of one port are one listener.
    fn listeners(&mut self, pool: &mut Pool<'o>) -> Vec<Listener> {
        let mut listeners = Vec::new();
        // The first listener of an address sets the values that apply before a server name is
        // known.
        let mut first: BTreeMap<SocketAddr, Listener> = BTreeMap::new();
        for at in 0..self.listeners.entries.len() {
            let entry = &self.listeners.entries[at];
            if !self.listeners.is_served(entry) {
                continue;
            }
            let place = self.listeners.place(at);
            if place != at {
                let names = self.listeners.entries[place].names.clone();
                self.listeners.entries[at].names = names;
                continue;
            }
            let named = self.listeners.addresses(at);
            for (name, address) in &named {
                let mut listener = self.listener(entry, name.clone(), *address);
                if entry.protocol != Some(Protocol::Udp) {
                    let first = first.entry(*address).or_insert_with(|| {
                        self.fallbacks_of(entry, &mut listener, pool);
                        listener.clone()
                    });
                    listener.options = first.options;
                    listener.timeouts.hello = first.timeouts.hello;
                    listener.accept_proxy.clone_from(&first.accept_proxy);
                    listener.starttls = first.starttls;
                    listener.on_refusal = first.on_refusal;
                    listener.default_hostname.clone_from(&first.default_hostname);
                    listener.not_tls.clone_from(&first.not_tls);
                    listener.silent.clone_from(&first.silent);
                }
                listeners.push(listener);
            }
            self.listeners.entries[at].names = named.into_iter().map(|(name, _)| name).collect();
        }
        drop_untaken_names(&mut listeners);
        listeners
    }

    fn listener(&self, entry: &Entry<'o>, name: String, address: SocketAddr) -> Listener {
        let values = self.policies.listener(&self.aims(entry));
        let protocol = match entry.protocol {
            Some(Protocol::Udp) => routing::Protocol::Udp,
            Some(Protocol::Tls | Protocol::Https) => routing::Protocol::Tls,
            Some(Protocol::Tcp | Protocol::Http) | None => routing::Protocol::Tcp,
        };
        let (udp, tls) = (protocol == routing::Protocol::Udp, protocol == routing::Protocol::Tls);
        let stream = |value: Option<u32>, default| value.filter(|_| !udp).unwrap_or(default);
        let of = name.clone();
        let accept_proxy = values.accept_proxy;
        let proxied = !udp && accept_proxy.is_some();
        Listener {
            protocol,
            addresses: vec![at(address.into(), &of)],
            interface: None,
            freebind: false,
            mode: None,
            owner: None,
            hostnames: entry
                .hostname
                .iter()
                .filter(|_| tls)
                .map(|name| at(name.clone(), &of))
                .collect(),
            default_hostname: values.default_hostname.filter(|_| tls).map(|name| at(name, &of)),
            starttls: values.starttls.filter(|_| tls),
            not_tls: None,
            silent: None,
            // The conformance suite takes a reset or an end for a refusal, and no alert.
            on_refusal: match tls {
                true => values.on_refusal.unwrap_or(OnRefusal::Reset),
                false => OnRefusal::default(),
            },
            tls: entry.tls.clone(),
            timeouts: Timeouts {
                hello: values.hello.filter(|_| tls || proxied).unwrap_or(TIMEOUTS.hello),
                idle: stream(values.idle, TIMEOUTS.idle),
                write_stall: stream(values.write_stall, TIMEOUTS.write_stall),
                half_close: stream(values.half_close, TIMEOUTS.half_close),
                lifetime: stream(values.lifetime, TIMEOUTS.lifetime),
            },
            on_truncation: values.on_truncation.filter(|_| !udp).unwrap_or_default(),
            flow_timeout: values.flow_timeout.filter(|_| udp).unwrap_or(FLOW_TIMEOUT),
            responses: values.responses.filter(|_| udp).unwrap_or(0),
            dns_guard: values.dns_guard.filter(|_| udp),
            max_sessions: values.max_sessions.unwrap_or(0),
            limit_source: values.limit_source.and_then(|limit| limit_for(limit, udp)),
            limit: values.limit.map(|limit| {
                let delays = limit.delays && protocol == routing::Protocol::Tcp;
                LimitOf::Own(Limit { delays, ..limit })
            }),
            accept_proxy: accept_proxy.map(|from| at(AcceptProxy { from, only: false }, &of)),
            options: if udp { OPTIONS } else { values.socket.over(OPTIONS) },
            admission: values.admission.of(&of),
            name: at(name, &of),
        }
    }

    /// Sets the backends of clients of a TLS listener that do not speak TLS.
    fn fallbacks_of(&self, entry: &Entry<'o>, listener: &mut Listener, pool: &mut Pool<'o>) {
        if listener.protocol != routing::Protocol::Tls {
            return;
        }
        let values = self.policies.listener(&self.aims(entry));
        let silent = values.silent.filter(|_| listener.timeouts.hello > 0);
        let of = listener.name.value.clone();
        let mut name = |given: Fallback<'o>| {
            let destination = fallback::destination(given, self.index);
            if let Ok(to) = &destination {
                let used = pool.fallbacks.entry((to.kind(), to.object)).or_default();
                used.push((*to, entry.gate));
            }
            let words = fallback::words(given);
            let lead =
                Lead { route: None, words: &words, destination: &destination, is_tls: false };
            at(self.backend(lead, entry, pool), &of)
        };
        listener.not_tls = values.not_tls.map(&mut name);
        listener.silent = silent.map(&mut name);
    }

    /// The targets by which a policy may mean a listener, the most specific first.
    fn aims(&self, entry: &Entry<'o>) -> Vec<PolicyTarget<'o>> {
        let (namespace, name) = key(&self.listeners.gates[entry.gate].object.metadata);
        let gateway = PolicyTarget { kind: "Gateway", namespace, name, section: None };
        let section = Some(entry.spec.name.as_str());
        let Some(set) = entry.set else {
            return vec![PolicyTarget { section, ..gateway }, gateway];
        };
        let (namespace, name) = key(&self.listeners.sets[set].object.metadata);
        let set = PolicyTarget { kind: "ListenerSet", namespace, name, section: None };
        vec![PolicyTarget { section, ..set }, set, gateway]
    }

    /// One route, or several if the route differs from listener to listener.
    fn routes(
        &self,
        at_route: usize,
        route: &Routed<'o>,
        served: &Served,
        pool: &mut Pool<'o>,
    ) -> Vec<Route> {
        type Shape = (Vec<String>, Vec<(String, u32)>);
        let title = title(route.kind, route.object);
        let mut shapes: Vec<(Shape, Vec<String>)> = Vec::new();
        let mut known: BTreeMap<Shape, usize> = BTreeMap::new();
        for ((_, place), names) in served.places.range((at_route, 0)..(at_route + 1, 0)) {
            let entry = &self.listeners.entries[*place];
            if entry.names.is_empty() {
                continue;
            }
            let hostnames: Vec<_> = names.iter().flatten().cloned().collect();
            let hostnames =
                if entry.protocol.is_some_and(Protocol::reads_hello) { hostnames } else { vec![] };
            let shape = (hostnames, self.weighted(route, entry, pool));
            let at = *known.entry(shape.clone()).or_insert(shapes.len());
            match shapes.get_mut(at) {
                Some((_, listeners)) => listeners.extend(entry.names.iter().cloned()),
                None => shapes.push((shape, entry.names.clone())),
            }
        }
        let (namespace, name) = key(&route.object.metadata);
        let own = PolicyTarget { kind: route.kind.name(), namespace, name, section: None };
        let values = self.policies.route(own);
        // A source counts once, however many routes the object becomes, and goes on counting when
        // their number changes.
        let shared = Some(config_name(&title));
        let sources = values.limit_source.clone().map(|of| SourceLimit { shared, ..of });
        let sources = sources.and_then(|of| limit_for(of, route.kind == Kind::UdpRoute));
        let shapes = shapes.into_iter().enumerate();
        let route = shapes.map(|(nth, ((hostnames, backends), listeners))| {
            let own = config_name(&numbered(&title, nth));
            let backend = |(name, weight)| WeightedBackend { name: at(name, &own), weight };
            Route {
                takes: Takes::Usual,
                listeners: listeners.into_iter().map(|name| at(name, &own)).collect(),
                hostnames: hostnames.into_iter().map(|name| at(name, &own)).collect(),
                alpn: values.alpn.iter().flatten().map(|name| at(name.clone(), &own)).collect(),
                sources: Vec::new(),
                admission: values.admission.of(&own),
                limit_source: sources.clone().map(|of| at(of, &own)),
                limit: values.limit.clone().map(LimitOf::Own),
                balance: values.balance.unwrap_or(RouteBalance::RoundRobin),
                on_unavailable: values.on_unavailable,
                backends: backends.into_iter().map(backend).collect(),
                name: at(own.clone(), &own),
            }
        });
        route.collect()
    }

    /// The names of a route's backends on a listener, each once, with their weights.
    fn weighted(
        &self,
        route: &Routed<'o>,
        entry: &Entry<'o>,
        pool: &mut Pool<'o>,
    ) -> Vec<(String, u32)> {
        let mut weighted: Vec<(String, u32)> = Vec::new();
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        let (namespace, name) = key(&route.object.metadata);
        let own = PolicyTarget { kind: route.kind.name(), namespace, name, section: None };
        for backend in &route.backends {
            let lead = Lead {
                route: Some(own),
                words: &backend.words,
                destination: &backend.destination,
                is_tls: entry.protocol == Some(Protocol::Tls) && entry.tls.is_none(),
            };
            let name = self.backend(lead, entry, pool);
            let at = *known.entry(name.clone()).or_insert(weighted.len());
            match weighted.get_mut(at) {
                Some((_, weight)) => *weight += backend.weight,
                None => weighted.push((name, backend.weight)),
            }
        }
        let most = weighted.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
        if most > MAX_WEIGHT {
            for (_, weight) in &mut weighted {
                let scaled = u64::from(*weight) * u64::from(MAX_WEIGHT) / u64::from(most);
                *weight = u32::try_from(scaled).unwrap_or(MAX_WEIGHT).max(u32::from(*weight > 0));
            }
        }
        weighted
    }

    fn backend(&self, lead: Lead<'_, 'o>, entry: &Entry<'o>, pool: &mut Pool<'o>) -> String {
        let udp = entry.protocol == Some(Protocol::Udp);
        let Lead { route, words, destination, is_tls } = lead;
        match destination {
            Err(why) => pool.nowhere(&format!("{words}/{}", why.reason), udp),
            Ok(destination) => {
                let aims = self.backend_aims(route, destination, entry);
                let values = self.policies.backend(&aims);
                let tls = match self.backend_tls.of(destination, self.index) {
                    Some(Ok(tls)) if !udp && !is_tls => match destination.to {
                        To::Service(..) => {
                            let own = &self.listeners.gates[entry.gate].certificate;
                            Some(Origination { certificate: own.clone(), ..tls })
                        }
                        // An XBackend says itself which certificate it gets.
                        To::XBackend => Some(tls),
                    },
                    Some(Err(why)) if !udp && !is_tls => {
                        return pool.nowhere(&format!("{words}/{}", why.reason), udp);
                    }
                    _ => None,
                };
                let endpoints = pool.endpoints(*destination, self);
                let check = values.health_check.as_ref();
                let why = check.and_then(|check| checks::unfit(check, udp, tls.is_some()));
                let name =
                    pool.backend(&destination.name(), Contents { udp, values, tls, endpoints });
                if let (Some(why), Some(policy)) = (why, self.policies.checking(&aims)) {
                    let backends = pool.unchecked.entry(policy).or_default();
                    backends.entry(why).or_default().insert(name.clone());
                }
                name
            }
        }
    }

    fn backend_aims(
        &self,
        route: Option<PolicyTarget<'o>>,
        destination: &Destination<'o>,
        entry: &Entry<'o>,
    ) -> Vec<PolicyTarget<'o>> {
        let (namespace, name) = destination.object;
        let backend = PolicyTarget { kind: destination.kind(), namespace, name, section: None };
        let port = destination.port_name();
        let port = port.map(|port| PolicyTarget { section: Some(port), ..backend });
        port.into_iter().chain([backend]).chain(route).chain(self.aims(entry)).collect()
    }
}

/// The same route with its own name in every place.
fn placed(route: Route) -> Route {
    let own = route.name.value.clone();
    let backend = |of: WeightedBackend| WeightedBackend { name: at(of.name.value, &own), ..of };
    Route {
        name: at(own.clone(), &own),
        listeners: route.listeners.into_iter().map(|name| at(name.value, &own)).collect(),
        backends: route.backends.into_iter().map(backend).collect(),
        ..route
    }
}

/// Drops default names that no listener of the address takes. A policy for a whole Gateway may give
/// a name that only some of the Gateway's addresses take.
fn drop_untaken_names(listeners: &mut [Listener]) {
    let mut sharing: BTreeMap<&address::Address, Vec<usize>> = BTreeMap::new();
    for (at, listener) in listeners.iter().enumerate() {
        for address in &listener.addresses {
            sharing.entry(&address.value).or_default().push(at);
        }
    }
    // The listeners of one address have one name, so each name is looked for once.
    let mut known: BTreeMap<(&address::Address, &str), bool> = BTreeMap::new();
    let mut is_taken = |address, name| {
        *known
            .entry((address, name))
            .or_insert_with(|| sharing[address].iter().any(|at| reaches(&listeners[*at], name)))
    };
    let taken: Vec<bool> = listeners
        .iter()
        .map(|listener| {
            let Some(name) = nameless(listener) else { return true };
            listener.addresses.iter().all(|address| is_taken(&address.value, name))
        })
        .collect();
    for (listener, _) in listeners.iter_mut().zip(taken).filter(|(_, taken)| !taken) {
        listener.default_hostname = None;
    }
}

/// The largest weight of one backend in a route.
const MAX_WEIGHT: u32 = 1_000_000;

/// The backends. Each is in the pool once.
#[derive(Default)]
struct Pool<'o> {
    /// Many routes may lead to one port of a Service.
    endpoints: BTreeMap<Way<'o>, Arc<[Found<'o>]>>,
    backends: Vec<Backend>,
    known: BTreeMap<String, Vec<(Contents<'o>, String)>>,
    unchecked: Unchecked,
    fallbacks: Fallbacks<'o>,
    shared: BTreeMap<SocketAddr, String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Contents<'o> {
    udp: bool,
    values: BackendValues,
    tls: Option<Origination>,
    endpoints: Arc<[Found<'o>]>,
}

impl<'o> Pool<'o> {
    fn endpoints(
        &mut self,
        destination: Destination<'o>,
        build: &Build<'_, 'o>,
    ) -> Arc<[Found<'o>]> {
        let known = self.endpoints.entry(destination.way());
        let read = || {
            let zone = build.settings.zone.as_deref();
            backends::endpoints(destination, zone, build.index).into()
        };
        Arc::clone(known.or_insert_with(read))
    }

    /// A backend that refuses its share.
    fn nowhere(&mut self, base: &str, udp: bool) -> String {
        let values = BackendValues::default();
        self.backend(base, Contents { udp, values, tls: None, endpoints: Arc::new([]) })
    }

    fn backend(&mut self, base: &str, contents: Contents<'o>) -> String {
        let base = if contents.udp { format!("{base}/UDP") } else { base.to_owned() };
        let known = self.known.entry(base.clone()).or_default();
        if let Some((_, name)) = known.iter().find(|(known, _)| *known == contents) {
            return name.clone();
        }
        let name = config_name(&numbered(&base, known.len()));
        known.push((contents.clone(), name.clone()));
        let backend = self.build(name.clone(), contents);
        self.backends.push(backend);
        name
    }

    fn build(&mut self, name: String, contents: Contents<'o>) -> Backend {
        let Contents { udp, values, tls, endpoints } = contents;
        let mut endpoints = endpoints.to_vec();
        let has_tls = tls.is_some();
        let transparent = values.transparent == Some(true);
        let source = values.source.clone().filter(|_| !transparent).unwrap_or_default();
        let ip = |found: &Found<'_>| match &found.address {
            Address::Fixed(address) => address.socket_address(),
            Address::Name(_) => None,
        };
        let reached = |endpoint: &Found<'_>| {
            let same = |address: SocketAddr| {
                source.iter().any(|from| from.first.is_ipv4() == address.is_ipv4())
            };
            source.is_empty() || ip(endpoint).is_none_or(same)
        };
        endpoints.retain(reached);
        // The first backend keeps an endpoint, because replies to two backends would look alike. A
        // name may stand for an endpoint of another backend.
        let is_free = |endpoint: &Found<'_>| {
            ip(endpoint).is_some_and(|address| !self.shared.contains_key(&address))
        };
        let shared = udp
            && values.shared_sockets == Some(true)
            && !source.is_empty()
            && endpoints.iter().all(is_free);
        if shared {
            let addresses = endpoints.iter().filter_map(ip);
            self.shared.extend(addresses.map(|address| (address, name.clone())));
        }
        let may_skip = udp && !shared && !transparent && values.send_proxy.is_none();
        let fast_path = values.fast_path.filter(|_| may_skip);
        let after = values.fast_path_after.filter(|_| fast_path.is_some());
        Backend {
            endpoints: endpoints.iter().map(|found| endpoint(found, &values, &name)).collect(),
            balance: values.balance.unwrap_or(Balance::RoundRobin),
            connect_timeout: values.connect_timeout.filter(|_| !udp).unwrap_or(CONNECT_TIMEOUT),
            connect_attempts: values.connect_attempts.filter(|_| !udp).unwrap_or(CONNECT_ATTEMPTS),
            source: source.into_iter().map(|source| at(source, &name)).collect(),
            tls,
            interface: None,
            shared_sockets: shared.then(|| at(true, &name)),
            upstream_rest: values.upstream_rest.filter(|_| udp).map(|rest| at(rest, &name)),
            fast_path: fast_path.map(|asked| at(asked, &name)),
            fast_path_after: after.map(|after| at(after, &name)),
            limit: values.limit.clone().map(LimitOf::Own),
            endpoint_limit: values.endpoint_limit.clone(),
            send_proxy: values.send_proxy.map(|asked| at(spoken(asked, udp), &name)),
            transparent: transparent.then(|| at(true, &name)),
            health_check: values
                .health_check
                .filter(|check| checks::unfit(check, udp, has_tls).is_none())
                .map(|check| at(check.asked, &name)),
            when_gone: WhenGone {
                on_down: values.on_down.map(|asked| at(asked, &name)),
                on_removed: values.on_removed.map(|asked| at(asked, &name)),
                close_after: values.close_after.unwrap_or(CLOSE_AFTER),
            },
            failback: values.failback.unwrap_or(true),
            slow_start: values.slow_start.unwrap_or(0),
            queue: values.queue.filter(|_| !udp).map(|most| at(most, &name)),
            queue_timeout: values.queue_timeout.filter(|_| !udp).map(|time| at(time, &name)),
            eject: values.eject.map(|asked| at(asked, &name)),
            options: if udp { backend::OPTIONS } else { values.socket.over(backend::OPTIONS) },
            stream_keys: Vec::new(),
            name: at(name.clone(), &name),
        }
    }
}

impl Listeners<'_> {
    /// The listeners of an entry in the configuration: a name and an address for each address of
    /// its Gateway.
    pub(super) fn addresses(&self, at: usize) -> Vec<(String, SocketAddr)> {
        let entry = &self.entries[at];
        let (Ok(assigned), Ok(port)) =
            (&self.gates[entry.gate].addresses, u16::try_from(entry.spec.port))
        else {
            return Vec::new();
        };
        let (namespace, owner) = self.key(entry);
        let owner = match entry.set {
            None => format!("{namespace}/{owner}"),
            Some(_) => format!("{namespace}/listenerset:{owner}"),
        };
        let base = format!("{owner}/{}", entry.spec.name);
        let name = |address: &IpAddr| {
            let several = assigned.bound.len() > 1;
            config_name(&if several { format!("{base}/{address}") } else { base.clone() })
        };
        let bound = assigned.bound.iter();
        bound.map(|address| (name(address), SocketAddr::new(*address, port))).collect()
    }
}

fn numbered(base: &str, nth: usize) -> String {
    if nth == 0 { base.to_owned() } else { format!("{base}/{}", nth + 1) }
}

/// A name in the form of the configuration. A name that has other characters or is too long ends in
/// a hash, so that the name stays unique.
fn config_name(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if text.len() <= 253 && text.chars().all(plain) {
        return text.to_owned();
    }
    let cut: String = text.chars().map(|c| if plain(c) { c } else { '-' }).take(236).collect();
    format!("{cut}-{:016x}", Fnv::of(text))
}

/// The limit for listeners or routes of this transport. `None`: nothing of it is for them.
fn limit_for(mut limit: SourceLimit, udp: bool) -> Option<SourceLimit> {
    limit.datagrams_per_second = limit.datagrams_per_second.filter(|_| udp);
    limit.limits_something().then_some(limit)
}

/// An endpoint of the backend `of`. Endpoints that are meant for other zones are backups.
fn endpoint(found: &Found<'_>, values: &BackendValues, of: &str) -> Endpoint {
    let rule = values.endpoints.iter().flatten().find(|rule| found.fits(rule));
    let (weight, backup) = rule.map_or((None, None), |rule| (rule.weight, rule.backup));
    let most = rule.and_then(|rule| rule.max_sessions).or(values.endpoint_max_sessions);
    Endpoint {
        weight: weight.unwrap_or(1),
        backup: found.is_far || backup == Some(true),
        max_sessions: most.filter(|most| *most > 0),
        ..Endpoint::at(at(found.address.clone(), of))
    }
}

/// The limit of a route of several parts, which all of them share.
fn shared_limit(parts: &mut [Route]) -> Option<SharedLimit> {
    let [first, _, ..] = parts else { return None };
    let Some(LimitOf::Own(limit)) = first.limit.clone() else { return None };
    let name = first.name.clone();
    parts.iter_mut().for_each(|part| part.limit = Some(LimitOf::Shared(name.clone())));
    Some(SharedLimit { name, limit })
}

/// The header's version: version 1 has no word for UDP, so UDP gets version 2.
fn spoken(asked: SendProxy, udp: bool) -> SendProxy {
    let version = if udp { ProxyVersion::V2 } else { asked.version };
    SendProxy { version, ..asked }
}
