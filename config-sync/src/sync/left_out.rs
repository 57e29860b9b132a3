//! The parts that are left out of a cluster's configuration, because their address can't be bound,
//! or because they do not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::backoff::Backoff;
use crate::model::backend::Backend;
use crate::model::config::Config;
use crate::model::listener::{Listener, bound_to};
use crate::model::place::{At, Problem, Problems};
use crate::publish::PublishError;
use crate::table::routing::{Bound, RoutingTable};

/// The result of putting a configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The generation of the table with this configuration.
    pub generation: u64,
    /// False: the configuration was in force before.
    pub published: bool,
    /// Listeners that are left out, with the reasons.
    pub failed: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub struct LeftOut {
    /// The latest configuration that was put in force, including the parts that were left out.
    pub asked: Option<Config>,
    /// A table that waited for an address could not be published.
    pub is_lost: bool,
    failures: BTreeMap<Bound, Failure>,
    /// Listeners that do not fit, with the reasons.
    misfits: BTreeMap<String, String>,
    /// The log's last message about parts that do not fit.
    said: String,
}

#[derive(Debug)]
struct Failure {
    why: String,
    again: Backoff,
}

impl LeftOut {
    /// Whether a part that was left out is to be tried again, or a table was lost.
    pub fn is_due(&self, now: Instant) -> bool {
        self.is_lost || self.failures.values().any(|failure| failure.again.is_due(now))
    }

    /// Forgets the failures of parts that are no longer asked for.
    pub fn forget(&mut self, asked: &Config) {
        self.is_lost = false;
        let bound: BTreeSet<Bound> = asked.listeners.iter().flat_map(bound_to).collect();
        self.failures.retain(|at, _| bound.contains(at));
    }

    /// The configuration without the listeners that are not to be tried now, and without routes
    /// that have no other listener.
    pub fn without(&mut self, asked: &Config, now: Instant) -> Config {
        self.misfits.clear();
        let mut config = asked.clone();
        let rests = |listener: &Listener| {
            let mut failures = bound_to(listener).filter_map(|at| self.failures.get(&at));
            failures.any(|failure| !failure.again.is_due(now))
        };
        let gone = config.listeners.extract_if(.., |listener| rests(listener));
        let gone: BTreeSet<String> = gone.map(|listener| listener.name.value).collect();
        unlist(&mut config, &gone);
        config
    }

    /// Leaves out the parts that have these problems. Each problem has the name of its listener,
    /// route or backend in place of a file name. False if no such part was left; then another
    /// attempt is useless.
    pub fn leave_out(&mut self, config: &mut Config, problems: &Problems) -> bool {
        let why: BTreeMap<&str, &Problem> =
            problems.0.iter().rev().map(|problem| (&*problem.file, problem)).collect();
        let is_bad = |name: &At<String>| why.contains_key(name.value.as_str());
        let listeners = config.listeners.extract_if(.., |listener| is_bad(&listener.name));
        let listeners: BTreeSet<String> = listeners.map(|listener| listener.name.value).collect();
        let routes = config.routes.len();
        config.routes.retain(|route| !is_bad(&route.name));
        let mut found = !listeners.is_empty() || routes > config.routes.len();
        for backend in config.backends.iter_mut().filter(|backend| is_bad(&backend.name)) {
            let empty = empty(backend);
            found |= *backend != empty;
            *backend = empty;
        }
        let words = problems.to_string();
        if found && words != self.said {
            words.lines().for_each(|problem| tracing::error!("left out: {problem}"));
            self.said = words;
        }
        unlist(config, &listeners);
        let reasons = listeners.into_iter().map(|name| {
            let reason = why[name.as_str()].message.clone();
            (name, reason)
        });
        self.misfits.extend(reasons);
        found
    }

    /// Notes which addresses of a table could be bound, and which could not.
    pub fn tried(&mut self, table: &RoutingTable, errors: &[PublishError], now: Instant) {
        let failed: BTreeSet<&Bound> = errors.iter().map(|error| &error.bound).collect();
        for socket in &table.sockets {
            let at = socket.bound();
            if !failed.contains(&at) {
                self.failures.remove(&at);
            }
        }
        for error in errors {
            let mut again =
                self.failures.get(&error.bound).map(|before| before.again).unwrap_or_default();
            again.failed(now);
            self.failures.insert(error.bound.clone(), Failure { why: error.to_string(), again });
        }
    }

    /// Listeners that are left out, with the reasons.
    pub fn failed(&self, asked: &Config) -> BTreeMap<String, String> {
        let why = |listener: &Listener| {
            let name = &listener.name.value;
            let unbound = || bound_to(listener).find_map(|at| Some(&self.failures.get(&at)?.why));
            let why = self.misfits.get(name).or_else(unbound)?;
            Some((name.clone(), why.clone()))
        };
        asked.listeners.iter().filter_map(why).collect()
    }
}

/// Takes these listeners out of the routes, and removes routes that have no other listener.
fn unlist(config: &mut Config, gone: &BTreeSet<String>) {
    if gone.is_empty() {
        return;
    }
    config.routes.retain_mut(|route| {
        let had = route.listeners.len();
        route.listeners.retain(|name| !gone.contains(&name.value));
        had == 0 || !route.listeners.is_empty()
    });
}

/// A backend without endpoints, which keeps its share of a route and refuses the share.
fn empty(backend: &Backend) -> Backend {
    Backend {
        endpoints: Vec::new(),
        source: Vec::new(),
        tls: None,
        shared_sockets: None,
        fast_path: None,
        fast_path_after: None,
        upstream_rest: None,
        health_check: None,
        stream_keys: Vec::new(),
        ..backend.clone()
    }
}
