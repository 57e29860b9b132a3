//! Which flows the kernel may forward.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use config_sync::table::routing::{EndpointId, RoutingTable, SocketId};

use crate::sim::endpoints::endpoint_at;
use crate::sim::udp::datagram::Exchange;

/// What the table in force says about flows that the kernel may forward.
#[derive(Debug, Default)]
pub struct MayPromote {
    /// Listening sockets whose flows do not end with their answers, and that have no limits of
    /// datagrams or bytes.
    sockets: BTreeSet<SocketId>,
    /// Endpoints of backends that ask for the kernel.
    endpoints: BTreeSet<EndpointId>,
    /// Since when the process has had a limit of bytes, microseconds.
    pub(super) total_bytes_since: Option<u64>,
}

impl MayPromote {
    pub fn table_applied(&mut self, table: &RoutingTable, now: u64) {
        let is_plain = |listener: usize| {
            let listener = &table.listeners[listener];
            let limit = listener.limit_source.as_ref();
            let counts = limit.is_some_and(|of| of.datagrams.is_some() || of.bytes.is_some());
            listener.responses == 0 && !counts
        };
        let sockets = table.sockets.iter();
        let plain = sockets.filter(|socket| socket.listeners.any().is_some_and(is_plain));
        self.sockets = plain.map(|socket| socket.id).collect();
        let backends = table.backends.iter().filter(|backend| backend.fast_path);
        self.endpoints = backends.flat_map(|of| &of.endpoints).map(|of| of.id).collect();
        let has_bytes = table.total.as_ref().is_some_and(|limit| limit.bytes.is_some());
        self.total_bytes_since = has_bytes.then(|| self.total_bytes_since.unwrap_or(now));
    }

    pub(super) fn has(&self, exchange: &Exchange, endpoint: SocketAddr) -> bool {
        self.sockets.contains(&exchange.socket) && self.endpoints.contains(&endpoint_at(endpoint))
    }
}
