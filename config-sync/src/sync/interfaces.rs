//! The numbers of network interfaces, and what is known of those that are not in force yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::machine::interface_number;
use crate::model::config::Config;
use crate::table::address::Interface;

/// What is known of numbers that could not be put in force.
#[derive(Debug)]
pub(super) struct Interfaces {
    pub(super) again: Backoff,
    pub(super) failed: Option<String>,
}

/// With pauses of 1 to 10 s between attempts.
impl Default for Interfaces {
    fn default() -> Self {
        let again = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        Self { again, failed: None }
    }
}

/// The interfaces of a configuration that have another number now, by their names. An interface
/// that is not there keeps its number.
pub(super) fn changed(config: &Config) -> BTreeMap<Arc<str>, u32> {
    let backends = config.backends.iter().filter_map(|backend| backend.interface.as_ref());
    let listeners = config.listeners.iter().filter_map(|listener| listener.interface.as_ref());
    let all = backends.map(|at| &at.value).chain(listeners);
    let all: BTreeMap<_, _> = all.map(|of| (Arc::clone(&of.name), of.index)).collect();
    let now = |(name, before): (Arc<str>, u32)| {
        let number = interface_number(&name).filter(|number| *number != before)?;
        Some((name, number))
    };
    all.into_iter().filter_map(now).collect()
}

pub(super) fn renumber(interface: &mut Interface, numbers: &BTreeMap<Arc<str>, u32>) {
    if let Some(number) = numbers.get(&interface.name) {
        interface.index = *number;
    }
}
