//! From what was asked to what runs. Pure: the same configuration and names give the same table.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::check::{self, Broken, hosts_on, transport};
use crate::config::{self, Config};
use crate::maglev;
use crate::names::Names;
use crate::problem::{At, Problem, Problems};
use crate::routing::{
    self, BackendId, Balance, Drain, Endpoint, EndpointId, Hosts, ListenerId, Protocol, RouteId,
    RoutingTable, SocketId, Transport,
};

/// Compiles the table of this generation, giving ids to names that are new.
///
/// # Errors
/// Every part that does not fit with the others: names given twice or to nothing, addresses that
/// clash, host names that no client could ask for; or ids have run out, because the configurations
/// of this process have named more than [`routing::MAX_LISTENERS`] listeners in all, say.
pub fn compile(
    config: &Config,
    names: &mut Names,
    generation: u64,
) -> Result<RoutingTable, Problems> {
    let problems = check::check(config, &Broken::default());
    Problems::new(problems).or(())?;
    let mut compile = Compile { config, names, problems: Vec::new() };
    let (sockets, socket_of) = compile.sockets();
    let backends = compile.backends();
    let table = RoutingTable {
        generation,
        sockets,
        listeners: compile.listeners(&socket_of),
        routes: compile.routes(&backends),
        backends,
        lame_duck: config.lame_duck,
        drain: None,
        log_opens: config.access_log.open,
    };
    Problems::new(compile.problems).or(table)
}

/// The last table of a process: it has nothing, so whatever lives drains. `asked` is the
/// configuration in force.
pub fn drained(asked: Option<&Config>, generation: u64) -> RoutingTable {
    let mut table = RoutingTable { generation, ..RoutingTable::empty() };
    let timeout = asked.map_or(0, |config| config.drain_timeout);
    table.drain = Some(Drain { timeout, spread: (timeout / 10).min(MAX_SPREAD) });
    if let Some(config) = asked {
        table.lame_duck = config.lame_duck;
        table.log_opens = config.access_log.open;
    }
    table
}

/// Milliseconds: enough that clients which come back do not all come at once.
const MAX_SPREAD: u32 = 5_000;

/// Of the hash of host names. Not secret: only configured names are stored, so no client can make
/// them collide.
const HOST_SEEDS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

struct Compile<'c> {
    config: &'c Config,
    names: &'c mut Names,
    problems: Vec<Problem>,
}

/// Index of a socket in the table, by what it is bound to.
type SocketOf = BTreeMap<(Transport, SocketAddr), usize>;

impl Compile<'_> {
    fn sockets(&mut self) -> (Vec<routing::Socket>, SocketOf) {
        let mut sockets: Vec<routing::Socket> = Vec::new();
        let mut socket_of = SocketOf::new();
        for (index, listener) in self.config.listeners.iter().enumerate() {
            let key @ (transport, address) = bound_to(listener);
            let at = *socket_of.entry(key).or_insert(sockets.len());
            if at == sockets.len() {
                let id = self.names.sockets.id(key);
                sockets.push(routing::Socket {
                    id: SocketId(self.given(id, &listener.address, "addresses")),
                    transport,
                    address,
                    options: listener.options,
                    reads_hello: listener.protocol == Protocol::Tls,
                    hello_timeout: listener.timeouts.hello,
                    listeners: Hosts::new(HOST_SEEDS),
                });
            }
            // Which of them it is shows in the ClientHello: until then the most patient one counts.
            let patience = &mut sockets[at].hello_timeout;
            *patience = match listener.timeouts.hello {
                0 => 0,
                _ if *patience == 0 => 0,
                timeout => timeout.max(*patience),
            };
            let hostname = listener.hostname.as_ref().map(|hostname| hostname.value.as_str());
            sockets[at].listeners.insert(hostname, index);
        }
        (sockets, socket_of)
    }

    fn listeners(&mut self, socket_of: &SocketOf) -> Vec<routing::Listener> {
        let mut listeners = Vec::new();
        let index_of = index(self.config.listeners.iter().map(|listener| &listener.name));
        for listener in &self.config.listeners {
            let id = self.names.listeners.id(listener.name.value.clone());
            listeners.push(routing::Listener {
                id: ListenerId(self.given(id, &listener.name, "listeners")),
                name: listener.name.value.as_str().into(),
                socket: socket_of[&bound_to(listener)],
                protocol: listener.protocol,
                timeouts: listener.timeouts,
                flow_timeout: listener.flow_timeout,
                responses: listener.responses,
                max_sessions: listener.max_sessions,
                routes: Hosts::new(HOST_SEEDS),
            });
        }
        for (index, route) in self.config.routes.iter().enumerate() {
            for name in &route.listeners {
                let at = index_of[name.value.as_str()];
                for (host, _) in hosts_on(route, &self.config.listeners[at], &name.place) {
                    listeners[at].routes.insert(host, index);
                }
            }
        }
        listeners
    }

    fn routes(&mut self, backends: &[routing::Backend]) -> Vec<routing::Route> {
        let index_of: BTreeMap<_, _> =
            backends.iter().enumerate().map(|(index, backend)| (&*backend.name, index)).collect();
        let mut routes = Vec::new();
        for route in &self.config.routes {
            let id = self.names.routes.id(route.name.value.clone());
            let shares = route.backends.iter().map(|used| routing::WeightedBackend {
                id: backends[index_of[used.name.value.as_str()]].id,
                backend: index_of[used.name.value.as_str()],
                weight: used.weight,
            });
            routes.push(routing::Route {
                id: RouteId(self.given(id, &route.name, "routes")),
                name: route.name.value.as_str().into(),
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
            let addresses: Vec<_> = backend.endpoints.iter().map(|at| at.value).collect();
            let endpoints = backend.endpoints.iter().map(|at| {
                let endpoint = self.names.endpoints.id((id, at.value));
                Endpoint {
                    id: EndpointId(self.given(endpoint, at, "endpoints")),
                    address: at.value,
                }
            });
            backends.push(routing::Backend {
                id,
                name: backend.name.value.as_str().into(),
                endpoints: endpoints.collect(),
                balance: match backend.balance {
                    config::Balance::RoundRobin => Balance::RoundRobin,
                    config::Balance::LeastConnections => Balance::LeastConnections,
                    config::Balance::Random => Balance::Random,
                    config::Balance::SourceHash => Balance::SourceHash(maglev::table(&addresses)),
                    config::Balance::SourcePortHash => {
                        Balance::SourcePortHash(maglev::table(&addresses))
                    }
                },
                connect_timeout: backend.connect_timeout,
                connect_attempts: backend.connect_attempts,
                options: backend.options,
                source: backend.source.iter().map(|at| at.value).collect(),
                shared_sockets: backend.has_shared_sockets(),
            });
        }
        backends.sort_unstable_by_key(|backend| backend.id);
        backends
    }

    /// The id, or a problem and any id: the table will not be used.
    fn given<T>(&mut self, id: Option<u32>, at: &At<T>, what: &str) -> u32 {
        if id.is_none() {
            self.problems.push(at.problem(format!(
                "too many {what}: this process has seen as many as it can number; a restart \
                 forgets those that are gone"
            )));
        }
        id.unwrap_or_default()
    }
}

fn bound_to(listener: &config::Listener) -> (Transport, SocketAddr) {
    (transport(listener.protocol), listener.address.value)
}

fn index<'c>(names: impl Iterator<Item = &'c At<String>>) -> BTreeMap<&'c str, usize> {
    names.enumerate().map(|(index, name)| (name.value.as_str(), index)).collect()
}
