//! Checks whether the limits that parts share are there.

use crate::check::{Check, set};
use crate::model::config::{Broken, Config};
use crate::model::limit::LimitOf;
use crate::model::place::At;

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
}

/// The names by which listeners, routes and backends have shared limits.
pub(super) fn named(config: &Config) -> impl Iterator<Item = &At<String>> {
    let listeners = config.listeners.iter().map(|of| &of.limit);
    let routes = config.routes.iter().map(|of| &of.limit);
    let backends = config.backends.iter().map(|of| &of.limit);
    let limits = listeners.chain(routes).chain(backends).flatten();
    limits.filter_map(LimitOf::shared)
}
