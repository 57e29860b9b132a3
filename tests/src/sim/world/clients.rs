//! Clients, of whichever process: who has connected, and how their sessions ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::request::Of;
use config_sync::table::routing::{
    Fallback, Listener, ListenerId, Protocol, RoutingTable, Transport,
};
use ringway::contract::Why;
use ringway::stats::records::{CloseReason, Entry, Reply, SessionRecord};
use ringway::wire::proxy_header::read::{Header, read};

use crate::sim::kernel::Kernel;
use crate::sim::model::{FIRST_ALPN, FIRST_FALLBACK};
use crate::sim::protocols::value_for;
use crate::sim::tcp::conn::{Conn, ConnId};

#[derive(Debug, Default)]
pub struct Clients {
    by_address: BTreeMap<SocketAddr, ConnId>,
    /// Those that offer `PROTOCOL`.
    offers: BTreeSet<ConnId>,
    /// When their sessions ended.
    pub logged: BTreeMap<ConnId, u64>,
    /// Sessions that are checked once everything is over.
    pub ended: Vec<(CloseReason, ConnId, ConnId)>,
    /// The tables of all processes.
    pub tables: Vec<Arc<RoutingTable>>,
    /// By listener: the bytes of each way that all processes have counted, and logged.
    pub bytes: BTreeMap<ListenerId, [[u64; 2]; 2]>,
    /// Nobody has logged the sessions of a process that was killed.
    pub is_any_killed: bool,
}

impl Clients {
    pub fn connects(&mut self, address: SocketAddr, conn: ConnId, offers: bool) {
        if address != UNIX_CLIENT {
            self.by_address.insert(address, conn);
        }
        if offers {
            self.offers.insert(conn);
        }
    }

    /// The client of a session of the process whose turn it is. Clients of Unix sockets have no
    /// addresses, so their sessions' handles tell them apart. `None`: such a client was turned away
    /// before it had a session.
    pub fn client_of(&self, record: &SessionRecord, kernel: &Kernel) -> Option<ConnId> {
        let peer = record.peer.unwrap_or(record.client);
        if peer != UNIX_CLIENT {
            return Some(*self.by_address.get(&peer).expect("a client that connected"));
        }
        let slot = kernel.here(record.handle?.slot);
        let found = kernel.adopted.get(&(slot, record.handle?.generation));
        Some(*found.expect("an adopted client"))
    }

    /// Everything is over: how peers saw their sessions end, and what of bytes was logged.
    pub fn at_the_end(&self, kernel: &Kernel) {
        for (reason, client, endpoint) in &self.ended {
            check_ends(*reason, kernel.conn(*client), kernel.conn(*endpoint));
        }
        for (id, [counted, logged]) in &self.bytes {
            for (counted, logged) in counted.iter().zip(logged) {
                let all = counted == logged || (self.is_any_killed && counted > logged);
                assert!(all, "{id:?}: {counted} bytes counted, and {logged} logged");
            }
        }
    }

    /// Every session that is listed has a client that connected, and that had no end in the log
    /// when the worker looked.
    pub fn check_listed(&self, reply: &Reply, kernel: &Kernel) {
        let sessions = reply.entries.iter().filter(|entry| entry.handle.of == Of::Sessions);
        for Entry { record, .. } in sessions {
            let client = self.client_of(record, kernel).expect("a session has a handle");
            let ended = self.logged.get(&client);
            assert!(ended.is_none_or(|ended| record.closed <= *ended), "it had ended: {record:?}");
        }
    }

    /// However a session ended, its record says its protocol, and its listener unless only a server
    /// name could tell.
    pub fn check_socket(&self, record: &SessionRecord) {
        let mut sockets = self.tables.iter().rev().flat_map(|table| &table.sockets);
        let socket = sockets.find(|socket| socket.id == record.socket).expect("a socket");
        let protocol = match socket.transport {
            Transport::Udp => Protocol::Udp,
            Transport::Tcp if socket.reads_hello => Protocol::Tls,
            Transport::Tcp => Protocol::Tcp,
        };
        assert_eq!(record.protocol, protocol, "{record:?}");
        let known = record.listener.is_some() || protocol == Protocol::Tls;
        assert!(known, "a session that nobody's listener had: {record:?}");
    }

    /// Whom a listener denies does not come in, and who comes in has the route of its source.
    pub fn check_source(&self, record: &SessionRecord, reason: CloseReason, kernel: &Kernel) {
        let client = record.client.ip();
        let listeners = || {
            let all = self.tables.iter().flat_map(|t| t.listeners.iter().map(move |l| (t, l)));
            all.filter(|(_, listener)| Some(listener.id) == record.listener)
        };
        let admits = |listener: &Listener| {
            listener.access.as_ref().is_none_or(|access| access.admits(client))
        };
        if reason == CloseReason::SourceDenied {
            assert!(record.refused && record.route.is_none(), "a denied client: {record:?}");
            let denies = |(_, listener): (_, &Listener)| !admits(listener);
            assert!(listeners().any(denies), "nobody denies this client: {record:?}");
        }
        self.check_proxies(record, reason);
        if let Some(route) = record.route {
            let offers = record.protocol == Protocol::Tls
                && self.client_of(record, kernel).is_some_and(|of| self.offers.contains(&of));
            let is_its = |(table, listener): (&Arc<RoutingTable>, &Listener)| {
                let found = value_for(listener, offers);
                let found = found.and_then(|found| listener.route(found, client));
                found.is_some_and(|at| table.routes[at].id == route)
            };
            let falls_back = (FIRST_FALLBACK..FIRST_ALPN).contains(&route.0);
            assert!(
                if falls_back { self.falls_back(record) } else { listeners().any(is_its) },
                "not the route of its source and protocols: {record:?}"
            );
            let admits = |(_, listener): (_, &Listener)| admits(listener);
            assert!(listeners().any(admits), "a client that was always denied: {record:?}");
        }
    }

    /// Whether clients of this socket could do without a ClientHello, and the client did.
    fn falls_back(&self, record: &SessionRecord) -> bool {
        let leads = |table: &RoutingTable, fallback: Fallback| {
            Some(table.routes[fallback.route].id) == record.route
                && Some(table.listeners[fallback.listener].id) == record.listener
        };
        let mut found = self.tables.iter().flat_map(|table| {
            let sockets = table.sockets.iter().filter(|socket| socket.id == record.socket);
            sockets.flat_map(|socket| [socket.not_tls, socket.silent]).map(move |to| (table, to))
        });
        record.server_name.is_none()
            && found.any(|(table, to)| to.is_some_and(|to| leads(table, to)))
    }

    /// Where only proxies may come in, nobody else gets further than the accept.
    fn check_proxies(&self, record: &SessionRecord, reason: CloseReason) {
        let sender = record.peer.unwrap_or(record.client).ip();
        let mut sockets = self.tables.iter().flat_map(|table| &table.sockets);
        let bars =
            sockets.any(|socket| socket.id == record.socket && !socket.accept_proxy.admits(sender));
        assert!(bars || reason != CloseReason::ProxyMissing, "nobody bars this client: {record:?}");
        let full = [CloseReason::SessionLimit, CloseReason::Limit, CloseReason::Overload];
        let full = full.contains(&reason);
        assert!(!bars || full || reason == CloseReason::ProxyMissing, "barred: {record:?}");
    }
}

/// The client is who its header says, if that is right; without one it gets nowhere.
pub fn check_client(client: &Conn, peer: SocketAddr, record: &SessionRecord, reason: CloseReason) {
    let says = client.proxied.says.unwrap_or(peer);
    match record.peer {
        Some(_) => assert!(client.proxied.header > 0 && record.client == says, "{record:?}"),
        None if client.proxied.must => assert!(record.refused, "relayed without a header"),
        None => {
            let of_header = [CloseReason::ProxyInvalid, CloseReason::ProxyTimeout];
            assert!(!of_header.contains(&reason), "a header was waited for: {record:?}");
        }
    }
    // What no byte can make right any more is not waited for.
    if reason == CloseReason::ProxyTimeout && !client.has_news() {
        let sent = client.prefix.len().min(client.inbound.written as usize);
        let header = read(&client.prefix[..sent]);
        assert!(matches!(header, Header::NeedMore { .. }), "{header:?}: {record:?}");
    }
}

/// The reason is what happened.
pub fn check_reason(reason: CloseReason, client: &Conn, endpoint: &Conn, record: &SessionRecord) {
    use CloseReason as R;
    let truth = match reason {
        R::ClientFin | R::EndpointFin => {
            assert_eq!(
                (client.inbound.written - client.proxied.away, endpoint.inbound.written),
                (endpoint.outbound.written - endpoint.proxied.told(), client.outbound.written),
                "bytes were lost between clean ends: {record:?}"
            );
            client.inbound.finished() && endpoint.inbound.finished()
        }
        R::ClientReset => client.error.is_some(),
        R::EndpointReset => endpoint.error.is_some(),
        R::ClientTimedOut => client.error == Some(Why::TimedOut),
        R::EndpointTimedOut => endpoint.error == Some(Why::TimedOut),
        R::ClientError | R::EndpointError => false,
        R::HalfCloseTimeout => client.inbound.fin_seen || endpoint.inbound.fin_seen,
        _ => true,
    };
    assert!(truth, "{reason:?} is not what happened: {client:?} {endpoint:?}");
}

/// What was clean for one side was clean for the other, and so with resets.
fn check_ends(reason: CloseReason, client: &Conn, endpoint: &Conn) {
    use CloseReason as R;
    match reason {
        R::ClientFin | R::EndpointFin => {
            for conn in [client, endpoint] {
                assert!(!conn.reset_seen, "a clean end became a reset: {conn:?}");
                let gone = conn.error.is_some() || conn.peer_closed;
                assert!(gone || conn.outbound.fin, "a clean end was not passed on: {conn:?}");
            }
        }
        R::ClientReset | R::ClientTimedOut => {
            is_reset(endpoint);
            is_delivered(client, endpoint);
        }
        R::EndpointReset | R::EndpointTimedOut => {
            is_reset(client);
            is_delivered(endpoint, client);
        }
        _ => {}
    }
}

/// What a side sent before it broke has reached the other, unless that is gone.
fn is_delivered(from: &Conn, to: &Conn) {
    if to.error.is_some() || to.peer_closed {
        return;
    }
    let sent = from.inbound.written - from.proxied.away;
    let reached = to.outbound.taken + to.outbound.queue.len() - to.proxied.told();
    assert_eq!(sent, reached, "bytes sent before a reset were lost: {from:?} {to:?}");
}

fn is_reset(conn: &Conn) {
    let reset = conn.reset_seen || conn.error.is_some() || conn.peer_closed;
    assert!(reset, "a reset of one side did not reset the other: {conn:?}");
}
