//! Ids that stay the same from table to table, and the names behind them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::routing::{
    BackendId, EndpointId, ListenerId, MAX_ENDPOINTS, MAX_LISTENERS, MAX_SOCKETS, RouteId,
    SocketId, Transport,
};

/// Gives every name an id once, for the life of the process. An id is never given to another name:
/// sessions outlive the tables they were opened under, and their log lines and counters go by id.
#[derive(Debug)]
pub struct Names {
    pub(crate) sockets: Ids<(Transport, SocketAddr)>,
    pub(crate) listeners: Ids<String>,
    pub(crate) routes: Ids<String>,
    pub(crate) backends: Ids<String>,
    pub(crate) endpoints: Ids<(BackendId, SocketAddr)>,
}

impl Names {
    pub fn new() -> Self {
        Self {
            sockets: Ids::below(MAX_SOCKETS),
            listeners: Ids::below(MAX_LISTENERS),
            routes: Ids::below(u32::MAX as usize),
            backends: Ids::below(u32::MAX as usize),
            endpoints: Ids::below(MAX_ENDPOINTS),
        }
    }

    pub fn socket(&self, id: SocketId) -> Option<(Transport, SocketAddr)> {
        self.sockets.name(id.0).copied()
    }

    pub fn listener(&self, id: ListenerId) -> Option<&str> {
        self.listeners.name(id.0).map(String::as_str)
    }

    pub fn route(&self, id: RouteId) -> Option<&str> {
        self.routes.name(id.0).map(String::as_str)
    }

    pub fn backend(&self, id: BackendId) -> Option<&str> {
        self.backends.name(id.0).map(String::as_str)
    }

    /// The name of the endpoint's backend, and the endpoint's address.
    pub fn endpoint(&self, id: EndpointId) -> Option<(&str, SocketAddr)> {
        let (backend, address) = *self.endpoints.name(id.0)?;
        Some((self.backend(backend)?, address))
    }

    /// Every listener that was ever in a table.
    pub fn listeners(&self) -> impl Iterator<Item = (ListenerId, &str)> {
        self.listeners.all().map(|(id, name)| (ListenerId(id), name.as_str()))
    }

    /// Every endpoint that was ever in a table, with its backend's name.
    pub fn endpoints(&self) -> impl Iterator<Item = (EndpointId, &str, SocketAddr)> {
        self.endpoints.all().filter_map(|(id, (backend, address))| {
            Some((EndpointId(id), self.backend(*backend)?, *address))
        })
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}

/// Ids from 0 up, in the order in which names are first seen.
#[derive(Debug)]
pub(crate) struct Ids<K> {
    ids: BTreeMap<K, u32>,
    names: Vec<K>,
    limit: usize,
}

impl<K: Ord + Clone> Ids<K> {
    fn below(limit: usize) -> Self {
        Self { ids: BTreeMap::new(), names: Vec::new(), limit }
    }

    /// The id of `name`, which is new or not. `None`: all ids are given away.
    pub(crate) fn id(&mut self, name: K) -> Option<u32> {
        if let Some(id) = self.ids.get(&name) {
            return Some(*id);
        }
        let id = u32::try_from(self.names.len()).ok().filter(|id| (*id as usize) < self.limit)?;
        self.names.push(name.clone());
        self.ids.insert(name, id);
        Some(id)
    }

    pub(crate) fn name(&self, id: u32) -> Option<&K> {
        self.names.get(id as usize)
    }

    fn all(&self) -> impl Iterator<Item = (u32, &K)> {
        (0u32..).zip(&self.names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_stays_and_is_never_given_twice() {
        let mut ids = Ids::below(2);
        assert_eq!(ids.id("a"), Some(0));
        assert_eq!(ids.id("b"), Some(1));
        assert_eq!(ids.id("a"), Some(0));
        assert_eq!(ids.id("c"), None);
        assert_eq!(ids.name(1), Some(&"b"));
        assert_eq!(ids.name(2), None);
    }
}
