//! Checks whether the limits that parts share are there, and whether limits fit the protocol.

use std::collections::BTreeMap;

use crate::check::{Check, set};
use crate::model::config::{Broken, Config};
use crate::model::limit::LimitOf;
use crate::model::place::At;
use crate::model::route::Route;
use crate::model::source_limit::SourceLimit;
use crate::table::routing::Protocol;

impl<'c> Check<'c> {
    pub(super) fn shared_limits(&mut self, config: &'c Config, broken: &'c Broken) {
        let limits = config.shared_limits.iter().map(|limit| &limit.name);
        let limits = limits.chain(&broken.shared_limits).collect();
        self.distinct("shared limit", &limits);
        let limits = set(&limits);
        for name in named(config) {
            self.references("shared limit", &vec![name], &limits);
        }
    }

    /// Limits for sources that share a name are alike, but for the most sessions. A rate counts in
    /// time that is paid for, which means nothing to another rate. A prefix makes other sources.
    pub(super) fn shared_sources(&mut self, config: &'c Config) {
        let mut first: BTreeMap<&str, (&At<String>, &SourceLimit)> = BTreeMap::new();
        for (part, limit) in sources(config) {
            let Some(name) = &limit.shared else { continue };
            let (before, other) = *first.entry(name).or_insert((part, limit));
            let for_datagrams = [limit, other].map(|of| of.datagrams_per_second);
            let are_alike = matches!(for_datagrams, [None, _] | [_, None])
                || for_datagrams[0] == for_datagrams[1];
            let plain = |of: &SourceLimit| SourceLimit {
                sessions: None,
                datagrams_per_second: None,
                ..of.clone()
            };
            if !are_alike || plain(limit) != plain(other) {
                self.problems.push(part.problem(format!(
                    "has a limit_source with `shared = \"{name}\"` that differs from that of \
                     \"{}\"; write the same keys (`sessions` may differ), or another name",
                    before.value
                )));
            }
        }
    }

    /// A limit for datagrams is for a route of UDP listeners only. A limit that a route shares is
    /// not the listener's too.
    pub(super) fn limit_source(&mut self, route: &Route) {
        let Some(limit) = &route.limit_source else { return };
        let names = route.listeners.iter().map(|name| name.value.as_str());
        let listeners = names.filter_map(|name| self.listeners.get(name));
        let shared = |of: &SourceLimit| of.shared.is_some() && of.shared == limit.value.shared;
        let mut sharing =
            listeners.clone().filter(|of| of.limit_source.as_ref().is_some_and(shared));
        if let Some(listener) = sharing.next() {
            let message = format!(
                "shares \"{}\" with listener \"{}\" of the route, so each session would count \
                 twice; remove one of the two, or give it another `shared`",
                limit.value.shared.as_deref().unwrap_or_default(),
                listener.name.value
            );
            self.problems.push(limit.problem(message));
        }
        let has_datagrams = limit.value.datagrams_per_second.is_some();
        let mut others = listeners.filter(|of| of.protocol != Protocol::Udp);
        if has_datagrams && let Some(other) = others.next() {
            let message = format!(
                "has `datagrams_per_second`, and listener \"{}\" of the route is not UDP: a stream \
                 has no datagrams",
                other.name.value
            );
            self.problems.push(limit.problem(message));
        }
    }
}

/// The limits for sources, with the names of the listeners and routes that have them.
pub(super) fn sources(config: &Config) -> impl Iterator<Item = (&At<String>, &SourceLimit)> {
    let listeners = config.listeners.iter().map(|of| (&of.name, of.limit_source.as_ref()));
    let routes = config.routes.iter();
    let routes = routes.map(|of| (&of.name, of.limit_source.as_ref().map(|of| &of.value)));
    listeners.chain(routes).filter_map(|(name, limit)| Some((name, limit?)))
}

/// The names by which listeners, routes and backends have shared limits.
pub(super) fn named(config: &Config) -> impl Iterator<Item = &At<String>> {
    let listeners = config.listeners.iter().map(|of| &of.limit);
    let routes = config.routes.iter().map(|of| &of.limit);
    let backends = config.backends.iter().map(|of| &of.limit);
    let limits = listeners.chain(routes).chain(backends).flatten();
    limits.filter_map(LimitOf::shared)
}
