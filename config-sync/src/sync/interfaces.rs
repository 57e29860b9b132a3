//! The numbers of network interfaces, and what is known of those that are not in force yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::machine::{interface_name, interface_number};
use crate::model::config::Config;
use crate::model::endpoint;
use crate::table::address::{Address, EndpointAddress, Interface};

/// What is known of interfaces, and of numbers that could not be put in force.
#[derive(Debug)]
pub(super) struct Interfaces {
    pub(super) again: Backoff,
    pub(super) failed: Option<String>,
    /// The names of the interfaces that link-local addresses of the configuration in force name. An
    /// address has only the number, which is nobody's once the interface is gone.
    scopes: BTreeMap<u32, Arc<str>>,
}

/// With pauses of 1 to 10 s between attempts.
impl Default for Interfaces {
    fn default() -> Self {
        let again = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        Self { again, failed: None, scopes: BTreeMap::new() }
    }
}

/// The numbers that have changed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changed {
    /// By the names of interfaces: the number now.
    pub(super) by_name: BTreeMap<Arc<str>, u32>,
    /// By the number before: the number now.
    scopes: BTreeMap<u32, u32>,
}

impl Interfaces {
    /// Notes the interfaces of link-local addresses of a configuration that is in force now.
    pub(super) fn learn(&mut self, config: &Config) {
        let used: BTreeSet<u32> = scopes(config).collect();
        self.scopes.retain(|number, _| used.contains(number));
        for number in used {
            if !self.scopes.contains_key(&number)
                && let Some(name) = interface_name(number)
            {
                self.scopes.insert(number, name.into());
            }
        }
    }

    /// The interfaces of the configuration in force that have another number now. An interface that
    /// is not there keeps its number.
    pub(super) fn changed(&self, config: &Config) -> Changed {
        let backends = config.backends.iter().filter_map(|backend| backend.interface.as_ref());
        let listeners = config.listeners.iter().filter_map(|listener| listener.interface.as_ref());
        let all = backends.map(|at| &at.value).chain(listeners);
        let bound = all.map(|of| (Arc::clone(&of.name), of.index));
        let all: BTreeSet<_> = bound.chain(self.names()).collect();
        let now = |(name, before): (Arc<str>, u32)| {
            let number = interface_number(&name).filter(|number| *number != before)?;
            Some((name, before, number))
        };
        let mut changed = Changed::default();
        for (name, before, number) in all.into_iter().filter_map(now) {
            if self.scopes.get(&before) == Some(&name) {
                changed.scopes.insert(before, number);
            }
            changed.by_name.insert(name, number);
        }
        changed
    }

    fn names(&self) -> impl Iterator<Item = (Arc<str>, u32)> {
        self.scopes.iter().map(|(number, name)| (Arc::clone(name), *number))
    }

    /// New numbers are in force.
    pub(super) fn succeeded(&mut self) {
        *self = Self { scopes: std::mem::take(&mut self.scopes), ..Self::default() };
    }
}

impl Changed {
    pub(super) fn renumber(&self, interface: &mut Interface) {
        if let Some(number) = self.by_name.get(&interface.name) {
            interface.index = *number;
        }
    }

    pub(super) fn readdress(&self, address: &mut Address) {
        if let Address::Ip(SocketAddr::V6(address)) = address
            && let Some(number) = self.scopes.get(&address.scope_id())
        {
            address.set_scope_id(*number);
        }
    }

    pub(super) fn readdress_endpoint(&self, address: &mut endpoint::Address) {
        if let endpoint::Address::Fixed(EndpointAddress::At(address)) = address {
            self.readdress(address);
        }
    }
}

/// The scopes of all link-local addresses.
fn scopes(config: &Config) -> impl Iterator<Item = u32> {
    let listeners = config.listeners.iter().flat_map(|listener| &listener.addresses);
    let listeners = listeners.filter_map(|address| address.value.ip());
    let backends = config.backends.iter().flat_map(|backend| &backend.endpoints);
    let backends = backends.filter_map(|endpoint| endpoint.socket_address());
    let scope = |address| match address {
        SocketAddr::V6(address) => Some(address.scope_id()).filter(|scope| *scope != 0),
        SocketAddr::V4(_) => None,
    };
    listeners.chain(backends).filter_map(scope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::parse;

    /// Loopback stands for an interface that had another number before.
    #[test]
    fn link_local_addresses_follow_the_number_of_their_interface() {
        let text = "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\n\
            address = \"[fe80::1%lo]:80\"\n\
            endpoints = [\"[fe80::2%lo]:80\", \"[2001:db8::1]:80\", \"10.0.0.1:80\"]\n";
        let new = parse("f", text).expect("a configuration");
        let mut interfaces = Interfaces::default();
        interfaces.learn(&new);
        assert_eq!(interfaces.changed(&new), Changed::default());

        let now = interface_number("lo").expect("it is everywhere");
        interfaces.scopes = BTreeMap::from([(now + 70, "lo".into())]);
        let changed = interfaces.changed(&new);
        let mut old = new.clone();
        let turn_back = Changed { scopes: BTreeMap::from([(now, now + 70)]), ..Changed::default() };
        put(&turn_back, &mut old);
        assert_ne!(old, new);
        put(&changed, &mut old);
        assert_eq!(old, new);

        // The name of a number that is nobody's is kept while the number is in use.
        put(&turn_back, &mut old);
        interfaces.learn(&old);
        assert_eq!(interfaces.changed(&old), changed);
        interfaces.learn(&new);
        assert_eq!(interfaces.changed(&new), Changed::default());
    }

    fn put(changed: &Changed, config: &mut Config) {
        for address in config.listeners.iter_mut().flat_map(|of| &mut of.addresses) {
            changed.readdress(&mut address.value);
        }
        for endpoint in config.backends.iter_mut().flat_map(|of| &mut of.endpoints) {
            changed.readdress_endpoint(&mut endpoint.address.value);
        }
    }
}
