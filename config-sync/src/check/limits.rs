//! Checks whether the limits that parts share are there, and whether limits fit the protocol.

use crate::check::{Check, set};
use crate::model::config::{Broken, Config};
use crate::model::limit::LimitOf;
use crate::model::place::At;
use crate::model::route::Route;
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

    /// A limit for datagrams is for a route of UDP listeners only.
    pub(super) fn datagrams(&mut self, route: &Route) {
        let limit = route.limit_source.as_ref();
        let Some(limit) = limit.filter(|of| of.value.datagrams_per_second.is_some()) else {
            return;
        };
        let mut listeners =
            route.listeners.iter().filter_map(|name| self.listeners.get(name.value.as_str()));
        if let Some(other) = listeners.find(|of| of.protocol != Protocol::Udp) {
            let message = format!(
                "has `datagrams_per_second`, and listener \"{}\" of the route is not UDP: a stream \
                 has no datagrams",
                other.name.value
            );
            self.problems.push(limit.problem(message));
        }
    }
}

/// The names by which listeners, routes and backends have shared limits.
pub(super) fn named(config: &Config) -> impl Iterator<Item = &At<String>> {
    let listeners = config.listeners.iter().map(|of| &of.limit);
    let routes = config.routes.iter().map(|of| &of.limit);
    let backends = config.backends.iter().map(|of| &of.limit);
    let limits = listeners.chain(routes).chain(backends).flatten();
    limits.filter_map(LimitOf::shared)
}
