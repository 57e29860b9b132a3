//! Turns what was asked into what runs. One configuration with the same certificate files and names
//! always gives the same table.

pub mod admission;
mod limits;
pub mod names;
pub mod tls;
pub mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::check::{self, alpn, hosts_on};
use crate::compile::admission::Admitted;
use crate::compile::names::{LimitKey, Names, too_many};
use crate::compile::tls::expiry::OwnedBy;
use crate::compile::tls::load::{Loader, Owner};
use crate::compile::whole::Whole;
use crate::disk;
use crate::model::backend::{FAST_PATH_AFTER, FastPath, QUEUE_TIMEOUT, UPSTREAM_REST};
use crate::model::config::{Broken, Config};
use crate::model::endpoint::{Resolved, Standing};
use crate::model::health_check::MOST_OF_PASSWORD;
use crate::model::listener::{Listener, bound_to, nameless};
use crate::model::place::{At, Problem, Problems};
use crate::model::route::{Route, Takes};
use crate::table::address::Bind;
use crate::table::alpn::{AlpnChoice, ByAlpn};
use crate::table::fnv::Fnv;
use crate::table::ranges::{Access, ByPrefix};
use crate::table::routing::{
    self, AcceptProxy, BackendId, Balance, Bound, Drain, Fallback, Hosts, ListenerId, NO_ROUTE,
    OnUnavailable, Protocol, RouteId, RoutingTable, SocketId,
};
use crate::table::terminator::{Originator, Terminator};

/// Compiles the table of this generation as if every endpoint were up and no name were resolved.
///
/// # Errors
/// As [`whole`].
pub fn compile(
    config: &Config,
    names: &mut Names,
    generation: u64,
) -> Result<RoutingTable, Problems> {
    let whole = whole(config, &Resolved::default(), names)?;
    Ok(whole.pickable(generation, &|_, _| Standing::UP, None))
}

/// Compiles a configuration with all its endpoints, and gives ids to new names.
///
/// # Errors
/// Every part that does not fit with the others: names that are given twice or that name nothing,
/// addresses that clash, host names that no client could ask for. A certificate or key can't be
/// used. Ids have run out, because the configurations of this process have named too many parts in
/// all: more than [`routing::MAX_LISTENERS`] listeners, for example.
pub fn whole(config: &Config, resolved: &Resolved, names: &mut Names) -> Result<Whole, Problems> {
    let problems = check::check(config, &Broken::default());
    Problems::new(problems).or(())?;
    Problems::new(unreadable_passwords(config)).or(())?;
    let admitted = admission::admitted(config)?;
    let tls = tls(config, names)?;
    let mut compile = Compile { config, names, tls, admitted, problems: Vec::new() };
    let (mut sockets, sharing) = compile.sockets();
    let backends = compile.backends();
    let listeners = compile.listeners();
    let routes = compile.routes(&backends);
    for (socket, sharing) in sockets.iter_mut().zip(sharing).filter(|(s, _)| s.reads_hello) {
        socket.access = common_access(sharing.iter().map(|listener| &listeners[*listener]));
    }
    let table = RoutingTable {
        generation: 0,
        sockets,
        listeners,
        routes,
        backends,
        lame_duck: config.lame_duck,
        gone: Arc::default(),
        sources: compile.names.known_sources().cloned(),
        total: compile.total(),
        drain: None,
        handed_over: Arc::default(),
        log_opens: config.access_log.open,
    };
    let mut problems = compile.problems;
    let mut whole = Whole { table, checks: compile.tls.checks, pools: Vec::new() };
    problems.extend(whole.resolve(config.backends.iter(), resolved, names));
    Problems::new(problems).or(whole)
}

/// Password files of health checks that can't be read now. Checks read the files anew each time.
fn unreadable_passwords(config: &Config) -> Vec<Problem> {
    let checks = config.backends.iter().filter_map(|backend| backend.health_check.as_ref());
    let files = checks.filter_map(|check| check.value.login()?.password_file.as_ref());
    let read = |file: &At<PathBuf>| {
        let error = disk::bytes(&file.value, MOST_OF_PASSWORD).err()?;
        Some(file.problem(format!("{} can't be read: {error}", file.value.display())))
    };
    files.filter_map(read).collect()
}

/// The last table of a process. The table is empty, so all sessions and flows drain. `asked` is the
/// configuration in force.
pub fn last_table(asked: Option<&Config>, generation: u64) -> RoutingTable {
    let mut table = RoutingTable { generation, ..RoutingTable::empty() };
    let timeout = asked.map_or(0, |config| config.drain_timeout);
    table.drain = Some(Drain { timeout, spread: (timeout / 10).min(MAX_SPREAD) });
    if let Some(config) = asked {
        table.lame_duck = config.lame_duck;
        table.log_opens = config.access_log.open;
    }
    table
}

/// Milliseconds: long enough that clients which connect again do not all connect at once.
const MAX_SPREAD: u32 = 5_000;

/// Seeds for the hash of host names. They need not be secret: only configured names are stored, so
/// no client can cause collisions.
const HOST_SEEDS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

struct Compile<'c> {
    config: &'c Config,
    names: &'c mut Names,
    tls: Tls,
    admitted: Admitted,
    problems: Vec<Problem>,
}

/// The keys are the names of listeners and backends.
#[derive(Default)]
struct Tls {
    terminators: BTreeMap<String, Arc<Terminator>>,
    originators: BTreeMap<String, Arc<Originator>>,
    checks: BTreeMap<String, Arc<Originator>>,
}

fn tls(config: &Config, names: &mut Names) -> Result<Tls, Problems> {
    let loader = Loader::new(&mut names.tickets, HOST_SEEDS);
    let mut loader = loader.knowing(names.loaded.clone());
    let mut tls = Tls::default();
    for listener in &config.listeners {
        let At { value: name, place } = &listener.name;
        let made = loader.terminator(&Owner { name, kind: OwnedBy::Listener, place }, listener);
        tls.terminators.extend(made.map(|made| (name.clone(), made)));
    }
    for backend in &config.backends {
        let At { value: name, place } = &backend.name;
        let asked = backend.tls.as_ref();
        let owner = Owner { name, kind: OwnedBy::Backend, place };
        let made = asked.and_then(|asked| loader.originator(&owner, asked));
        let is_whole = asked.is_none() || made.is_some();
        tls.originators.extend(made.map(|made| (name.clone(), made)));
        let check = backend.health_check.as_ref().filter(|_| is_whole);
        if let Some(At { value: check, place }) = check
            && let Some(asked) = check.own_tls(asked)
        {
            let made =
                loader.check_originator(&Owner { name, kind: OwnedBy::Backend, place }, &asked);
            tls.checks.extend(made.map(|made| (name.clone(), made)));
        }
    }
    let Loader { loaded, expiries, doubts, problems, .. } = loader;
    Problems::new(problems).or(())?;
    names.loaded = loaded;
    names.latest = expiries;
    names.doubts = doubts;
    Ok(tls)
}

impl Compile<'_> {
    /// The sockets, and for each socket the indices of the listeners that share it.
    fn sockets(&mut self) -> (Vec<routing::Socket>, Vec<Vec<usize>>) {
        let (mut sockets, mut sharing) = (Vec::<routing::Socket>::new(), Vec::new());
        let mut socket_of: BTreeMap<Bound, usize> = BTreeMap::new();
        let fallbacks = fallbacks(self.config);
        let all = self.config.listeners.iter().enumerate();
        let all = all.flat_map(|(index, of)| {
            of.addresses.iter().zip(bound_to(of)).map(move |(at, bound)| (index, of, at, bound))
        });
        for (index, listener, address, bound) in all {
            let at = *socket_of.entry(bound.clone()).or_insert(sockets.len());
            if at == sockets.len() {
                let id = self.names.sockets.id(bound.clone());
                sharing.push(Vec::new());
                sockets.push(routing::Socket {
                    id: SocketId(self.given(id, address, "addresses")),
                    transport: bound.transport,
                    address: bound.address,
                    bind: bind(listener),
                    options: listener.options,
                    reads_hello: listener.protocol == Protocol::Tls,
                    hello_timeout: listener.timeouts.hello,
                    access: None,
                    starttls: listener.starttls,
                    on_refusal: listener.on_refusal,
                    default_hostname: nameless(listener).map(Box::from),
                    accept_proxy: accept_proxy(listener),
                    not_tls: None,
                    silent: None,
                    listeners: Hosts::new(HOST_SEEDS),
                });
            }
            sockets[at].bind.freebind |= listener.freebind;
            let fallback = |takes| {
                let route = *fallbacks.get(&(listener.name.value.as_str(), takes))?;
                Some(Fallback { listener: index, route })
            };
            sockets[at].not_tls = sockets[at].not_tls.or_else(|| fallback(Takes::NotTls));
            sockets[at].silent = sockets[at].silent.or_else(|| fallback(Takes::Silent));
            // The ClientHello tells which listener is meant. Until then the longest timeout counts.
            let patience = &mut sockets[at].hello_timeout;
            *patience = match listener.timeouts.hello {
                0 => 0,
                _ if *patience == 0 => 0,
                timeout => timeout.max(*patience),
            };
            for hostname in &listener.hostnames {
                sockets[at].listeners.insert(Some(&hostname.value), index);
            }
            if listener.hostnames.is_empty() {
                sockets[at].listeners.insert(None, index);
            }
            sharing[at].push(index);
        }
        (sockets, sharing)
    }

    fn listeners(&mut self) -> Vec<routing::Listener> {
        let mut listeners = Vec::new();
        for listener in &self.config.listeners {
            let id = self.names.listeners.id(listener.name.value.clone());
            let id = ListenerId(self.given(id, &listener.name, "listeners"));
            listeners.push(routing::Listener {
                id,
                name: listener.name.value.as_str().into(),
                protocol: listener.protocol,
                tls: self.tls.terminators.remove(&listener.name.value),
                timeouts: listener.timeouts,
                on_truncation: listener.on_truncation,
                flow_timeout: listener.flow_timeout,
                responses: listener.responses,
                dns_guard: listener.dns_guard,
                max_sessions: listener.max_sessions,
                taken: (listener.max_sessions > 0).then(|| self.names.taken(id)),
                limit_source: self.limit_source_of_listener(listener),
                limit: self.limit_of_listener(listener),
                access: self.admitted.listeners.get(&listener.name.value).cloned(),
                routes: Hosts::new(HOST_SEEDS),
                by_source: Vec::new(),
                by_alpn: None,
            });
        }
        self.place_routes(&mut listeners);
        listeners
    }

    /// Gives each listener its routes: by server name, and also by source if several routes share a
    /// name.
    fn place_routes(&self, listeners: &mut [routing::Listener]) {
        let index_of = index(self.config.listeners.iter().map(|listener| &listener.name));
        let mut placed: BTreeMap<Of<'_>, Vec<usize>> = BTreeMap::new();
        let usual = |(_, route): &(usize, &Route)| route.takes == Takes::Usual;
        for (index, route) in self.config.routes.iter().enumerate().filter(usual) {
            for name in &route.listeners {
                let at = index_of[name.value.as_str()];
                for (host, _) in hosts_on(route, &self.config.listeners[at], &name.place) {
                    for alpn in alpn::asked(route) {
                        placed.entry((at, host, alpn)).or_default().push(index);
                    }
                }
            }
        }
        let has_sources = |index: &usize| !self.config.routes[*index].sources.is_empty();
        let by_source: BTreeSet<usize> = placed
            .iter()
            .filter(|(_, routes)| routes.iter().any(has_sources))
            .map(|((at, ..), _)| *at)
            .collect();
        let mut choices: BTreeMap<(usize, Option<&str>), AlpnChoice> = BTreeMap::new();
        for ((at, host, alpn), routes) in placed {
            let listener = &mut listeners[at];
            let value = if by_source.contains(&at) {
                listener.by_source.push(self.by_source(&routes));
                listener.by_source.len() - 1
            } else {
                routes[0]
            };
            let choice = choices.entry((at, host)).or_default();
            match alpn {
                None => {
                    listener.routes.insert(host, value);
                    choice.otherwise = Some(value);
                }
                Some(alpn) => choice.by_protocol.push((alpn.as_bytes().into(), value)),
            }
        }
        let asks = |(key, choice): (&(usize, _), &AlpnChoice)| {
            (!choice.by_protocol.is_empty()).then_some(key.0)
        };
        let asking: BTreeSet<usize> = choices.iter().filter_map(asks).collect();
        for ((at, host), choice) in choices.into_iter().filter(|((at, _), _)| asking.contains(at)) {
            let empty = || ByAlpn { hosts: Hosts::new(HOST_SEEDS), choices: Vec::new() };
            let by_alpn = listeners[at].by_alpn.get_or_insert_with(|| Box::new(empty()));
            by_alpn.hosts.insert(host, by_alpn.choices.len());
            by_alpn.choices.push(choice);
        }
    }

    /// The routes of one listener and name, by the clients of each route.
    fn by_source(&self, routes: &[usize]) -> ByPrefix {
        let number = |index: usize| u32::try_from(index).unwrap_or(NO_ROUTE);
        let (mut prefixes, mut rest) = (Vec::new(), NO_ROUTE);
        for index in routes {
            let sources = &self.config.routes[*index].sources;
            prefixes.extend(sources.iter().map(|source| (source.value, number(*index))));
            if sources.is_empty() {
                rest = number(*index);
            }
        }
        ByPrefix::new(prefixes.into_iter(), rest)
    }

    fn routes(&mut self, backends: &[routing::Backend]) -> Vec<routing::Route> {
        let index_of: BTreeMap<_, _> =
            backends.iter().enumerate().map(|(index, backend)| (&*backend.name, index)).collect();
        let mut routes = Vec::new();
        for route in &self.config.routes {
            let id = self.names.routes.id(route.name.value.clone());
            let id = RouteId(self.given(id, &route.name, "routes"));
            let shares = route.backends.iter().map(|used| routing::WeightedBackend {
                id: backends[index_of[used.name.value.as_str()]].id,
                backend: index_of[used.name.value.as_str()],
                weight: used.weight,
                key: Fnv::of(&used.name.value),
            });
            routes.push(routing::Route {
                id,
                name: route.name.value.as_str().into(),
                access: self.admitted.routes.get(&route.name.value).cloned(),
                limit_source: self.limit_source_of_route(route),
                limit: self.limit(route.limit.as_ref(), LimitKey::Route, &route.name),
                balance: route.balance,
                on_unavailable: route.on_unavailable.unwrap_or(OnUnavailable::Refuse),
                backends: shares.collect(),
            });
        }
        routes
    }

    fn backends(&mut self) -> Vec<routing::Backend> {
        let mut backends = Vec::new();
        for backend in &self.config.backends {
            let id = self.names.backends.id(backend.name.value.clone());
            let id = BackendId(self.given(id, &backend.name, "backends"));
            let queue = backend.queue.as_ref().map(|at| at.value).filter(|most| *most > 0);
            backends.push(routing::Backend {
                id,
                name: backend.name.value.as_str().into(),
                // The four come with the endpoints, which `Whole` knows.
                endpoints: Vec::new(),
                turns: Arc::default(),
                loads: Vec::new(),
                queue: queue.map(|most| routing::Queue {
                    line: self.names.line(id),
                    most,
                    timeout: backend.queue_timeout.as_ref().map_or(QUEUE_TIMEOUT, |at| at.value),
                }),
                limit: self.limit(backend.limit.as_ref(), LimitKey::Backend, &backend.name),
                balance: Balance::RoundRobin,
                connect_timeout: backend.connect_timeout,
                connect_attempts: backend.connect_attempts,
                rest: backend.rest(),
                options: backend.options,
                send_proxy: backend.send_proxy.as_ref().map(|asked| asked.value),
                tls: self.tls.originators.remove(&backend.name.value),
                source: backend.source.iter().map(|at| at.value).collect(),
                interface: backend.interface.as_ref().map_or(0, |at| at.value.index),
                shared_sockets: backend.has_shared_sockets(),
                upstream_rest: backend.upstream_rest.as_ref().map_or(UPSTREAM_REST, |at| at.value),
                fast_path: backend.fast_path() != FastPath::Off,
                fast_path_after: backend
                    .fast_path_after
                    .as_ref()
                    .map_or(FAST_PATH_AFTER, |at| at.value),
                transparent: backend.is_transparent(),
            });
        }
        backends.sort_unstable_by_key(|backend| backend.id);
        backends
    }

    /// The id; or a problem and any id, because the table will not be used.
    fn given<T>(&mut self, id: Option<u32>, at: &At<T>, what: &str) -> u32 {
        if id.is_none() {
            self.problems.push(at.problem(too_many(what)));
        }
        id.unwrap_or_default()
    }
}

/// The indices of routes for clients without a ClientHello, by listener. Where listeners share an
/// address, the first of them has these clients.
fn fallbacks(config: &Config) -> BTreeMap<(&str, Takes), usize> {
    let routes = config.routes.iter().enumerate();
    let unusual = routes.filter(|(_, route)| route.takes != Takes::Usual);
    let by_listener = unusual.flat_map(|(index, route)| {
        route.listeners.iter().map(move |name| ((name.value.as_str(), route.takes), index))
    });
    by_listener.collect()
}

/// What a route of a TLS listener is for: the listener's index, a host name and a protocol.
type Of<'c> = (usize, Option<&'c str>, Option<&'c str>);

/// The access set that all listeners have. `None` if the sets differ, or all clients may come in.
fn common_access<'l>(
    mut listeners: impl Iterator<Item = &'l routing::Listener>,
) -> Option<Arc<Access>> {
    let first = listeners.next()?.access.as_ref()?;
    let same = |other: &routing::Listener| {
        other.access.as_ref().is_some_and(|other| Arc::ptr_eq(other, first))
    };
    listeners.all(same).then(|| Arc::clone(first))
}

fn bind(listener: &Listener) -> Bind {
    Bind {
        interface: listener.interface.clone(),
        freebind: listener.freebind,
        mode: listener.mode,
        owner: listener.owner.as_ref().map(|named| named.owner).unwrap_or_default(),
    }
}

/// The ranges in order, without ranges that lie in other ranges.
fn accept_proxy(listener: &Listener) -> AcceptProxy {
    let asked = listener.accept_proxy.as_ref().map(|asked| &asked.value);
    asked.map_or_else(AcceptProxy::default, |asked| AcceptProxy {
        from: IpNet::aggregate(&asked.from).into(),
        only: asked.only,
    })
}

fn index<'c>(names: impl Iterator<Item = &'c At<String>>) -> BTreeMap<&'c str, usize> {
    names.enumerate().map(|(index, name)| (name.value.as_str(), index)).collect()
}
