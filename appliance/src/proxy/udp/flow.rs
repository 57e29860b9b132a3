//! Holds one flow: its facts, the sender that its datagrams come from, and the reasons that end it.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::{
    BackendId, EndpointId, Listener, ListenerId, Protocol, RouteId, RoutingTable, SendProxy,
    SocketId, Transport,
};
use config_sync::table::source_limit::{SourceLimit, SourceRecord};

use crate::contract::{self, BufferId, Side, size};
use crate::proxy::core::{Core, micros};
use crate::proxy::held::Held;
use crate::proxy::tables::Tables;
use crate::stats::records::{CloseReason, DropReason, SessionRecord};
use crate::wire::proxy_header::Addresses;
use crate::wire::proxy_header::write::{Outgoing, write};

#[derive(Debug)]
pub struct Flow {
    pub peer: SocketAddr,
    /// The address that the client spoke to, where the socket is bound to a wildcard.
    pub local: Option<IpAddr>,
    pub socket: SocketId,
    pub listener: ListenerId,
    pub route: RouteId,
    pub backend: BackendId,
    pub endpoint: EndpointId,
    pub upstream: u32,
    pub timeout: u32,
    pub responses: u32,
    /// Datagrams from the client, and replies to the client.
    pub sent: u64,
    pub replies: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub opened: u64,
    pub last: u64,
    /// ICMP has said since the client's last datagram that the endpoint's port is closed.
    pub refused: bool,
    pub whose: Whose,
    pub promotion: Promotion,
    pub proxied: Option<Box<FlowHeader>>,
    /// The record of the client's source, if the listener limits sources.
    pub source: Option<SourceRecord>,
    /// The places within the limits of process, listener, route and backend.
    pub held: Held,
}

/// The facts of a flow that are about PROXY headers. Few flows have such facts.
#[derive(Debug, Default)]
pub struct FlowHeader {
    /// The addresses in the header of the client's first datagram.
    pub said: Option<Addresses>,
    /// The bytes in front of each datagram to the endpoint. Empty: no bytes are put in front.
    pub header: Vec<u8>,
    pub unique_id: Option<u128>,
}

/// The sender of a datagram, which tells the flows of one socket apart.
#[derive(Clone, Copy)]
pub struct Sender {
    pub peer: SocketAddr,
    pub local: Option<IpAddr>,
    /// The addresses in the header of a proxy. Only the source tells flows apart.
    pub said: Option<Addresses>,
}

/// A batch of datagrams of one sender, in one buffer.
#[derive(Clone, Copy)]
pub struct Batch {
    pub buffer: BufferId,
    pub bytes: u32,
    pub count: u32,
    pub part: contract::Part,
}

/// Microseconds. Where flows are nearly used up, a flow that was never answered ends after this
/// silence. Such a flow may be part of a flood, which would lock new clients out for
/// `flow_timeout`.
pub const UNANSWERED: u64 = 2_000_000;

/// Replies after which a flow is promoted again that was demoted, or that the kernel did not take.
pub const PROMOTE_AGAIN: u64 = 1_024;

/// How a flow's datagrams are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// By the worker, until the flow ends or gets another endpoint.
    Never,
    /// By the worker, until so many replies have come.
    After(Due),
    /// By the worker, which finds out whether both sides are heard (`Trial`).
    Trial,
    /// By the kernel. The place among the promoted flows.
    Kernel(u32),
    /// By the worker since the flow has settled, until its client's next datagram
    /// (`Promoted::again_from`). The kernel forwarded the flow before.
    Again(Silence),
}

/// When a flow is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The flow's replies by then. The replies of another endpoint do not count, so the socket of a
    /// flow that has moved is open by then.
    pub replies: u64,
    /// The least datagrams of the client.
    pub sent: u32,
    pub silence: Silence,
}

/// What earlier promotions have shown. One side of the flow may be silent at times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Silence {
    /// The kernel has carried datagrams of both sides.
    pub both_heard: bool,
    /// How often the flow was demoted because one side was silent. The kernel waits twice as long
    /// the next time.
    pub times: u8,
}

/// Whose a flow is. It may be on its way from process to process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This process's.
    Ours,
    /// This process's. Another process knows of it and has its socket, but receives nothing.
    Announced,
    /// This process's, because the other process has refused the flow.
    Refused,
    /// This process's. The flow's socket is about to receive nothing more.
    Stopping,
    /// Still. It may be both processes' until it is decided.
    Settled,
    /// Another process's so far.
    Theirs,
}

impl Promotion {
    pub fn is_due(self, sent: u64, replies: u64) -> bool {
        matches!(self, Self::After(due) if replies >= due.replies && sent >= u64::from(due.sent))
    }
}

impl Sender {
    pub fn client(&self) -> SocketAddr {
        self.said.as_ref().map_or(self.peer, |said| said.source)
    }
}

impl FlowHeader {
    /// Puts the header into the turn's output. Returns its start and its length.
    pub fn say(&self, output: &mut Vec<u8>) -> (u32, u16) {
        let start = size(output.len());
        output.extend_from_slice(&self.header);
        (start, u16::try_from(self.header.len()).expect("a header without a name is short"))
    }
}

impl Flow {
    pub fn is_of(&self, sender: &Sender) -> bool {
        self.peer == sender.peer
            && self.local == sender.local
            && self.said().map(|said| said.source) == sender.said.as_ref().map(|said| said.source)
    }

    /// Whether the kernel forwards the flow's datagrams, or was asked to.
    pub fn is_promoted(&self) -> bool {
        matches!(self.promotion, Promotion::Kernel(_))
    }

    /// Whether another process may have the flow too.
    pub fn is_shared(&self) -> bool {
        matches!(self.whose, Whose::Settled | Whose::Theirs)
    }

    pub fn said(&self) -> Option<&Addresses> {
        self.proxied.as_ref()?.said.as_ref()
    }

    pub fn client(&self) -> SocketAddr {
        self.said().map_or(self.peer, |said| said.source)
    }

    /// Makes the header for the flow's datagrams to the endpoint, if the backend wants one.
    pub fn introduce(&mut self, core: &mut Core, asked: Option<SendProxy>) {
        if asked.is_none() && self.proxied.is_none() {
            return;
        }
        let destination = self.said().map_or_else(|| self.bound(core), |said| said.destination);
        let addresses = Addresses { source: self.client(), destination };
        let proxied = self.proxied.get_or_insert_default();
        proxied.header.clear();
        let Some(SendProxy { version, unique_id, crc32c }) = asked else { return };
        let unique_id =
            unique_id.then(|| *proxied.unique_id.get_or_insert_with(|| core.ids.next()));
        let header = Outgoing {
            transport: Transport::Udp,
            addresses,
            unix: None,
            authority: None,
            alpn: None,
            tls: None,
            unique_id,
            crc32c,
        };
        write(version, &header, &mut proxied.header);
    }

    /// Whether limits allow so many datagrams and bytes from the client.
    #[inline]
    pub fn may_send(&self, core: &Core, sent: (u32, u32)) -> Result<(), DropReason> {
        if self.is_unlimited() { Ok(()) } else { self.take_sent(core, sent) }
    }

    #[inline(never)]
    fn take_sent(&self, core: &Core, (count, bytes): (u32, u32)) -> Result<(), DropReason> {
        let now = core.unix_micros();
        let source = self.source_limit(core);
        if source.is_some_and(|(limit, of)| !limit.may_send(of, (count, bytes), now)) {
            return Err(DropReason::SourceLimit);
        }
        self.held.take_sent(core, (count, bytes)).inspect_err(|_| {
            if let Some((limit, of)) = source {
                limit.has_not_sent(of, (count, bytes));
            }
        })
    }

    /// Whether limits allow so many bytes to the client.
    #[inline]
    pub fn may_get(&self, core: &Core, bytes: u32) -> Result<(), DropReason> {
        if self.is_unlimited() { Ok(()) } else { self.take_reply(core, bytes) }
    }

    /// Whether no limit counts the flow.
    #[inline]
    fn is_unlimited(&self) -> bool {
        self.source.is_none() && self.held.is_empty()
    }

    #[inline(never)]
    fn take_reply(&self, core: &Core, bytes: u32) -> Result<(), DropReason> {
        self.held.take_reply(core, bytes)?;
        match self.source_limit(core) {
            Some((limit, of)) if !limit.may_get(of, bytes, core.unix_micros()) => {
                self.held.give_back(core, Side::Endpoint, bytes);
                Err(DropReason::SourceLimit)
            }
            _ => Ok(()),
        }
    }

    /// The limit of the flow's source in the table in force.
    fn source_limit<'c>(&self, core: &'c Core) -> Option<(&'c SourceLimit, SourceRecord)> {
        let source = self.source?;
        let (_, listener) = listener_of(&core.tables, self.socket)?;
        Some((listener.limit_source.as_deref()?, source))
    }

    /// The address that the flow's client, or the proxy in front, has sent to.
    pub fn bound(&self, core: &Core) -> SocketAddr {
        let bound = core.tables.of(self.socket).and_then(|(_, socket)| socket.address.ip());
        let bound = bound.unwrap_or_else(|| SocketAddr::new([0, 0, 0, 0].into(), 0));
        self.local.map_or(bound, |ip| SocketAddr::new(ip, bound.port()))
    }

    /// Why the flow is over, if it is. `crowded`: flows are nearly used up.
    pub fn over(&self, core: &Core, crowded: bool) -> Option<CloseReason> {
        if let Some(reason) = core.gone.reason(self.endpoint, core.now) {
            return Some(reason);
        }
        let silent = core.now - self.last;
        // A listener that left the table keeps its flows as long as they are in use.
        if core.tables.is_leaving(self.socket) && silent >= micros(core.tables.current().lame_duck)
        {
            return Some(CloseReason::Drained);
        }
        if self.timeout > 0 && silent >= micros(self.timeout) {
            return Some(CloseReason::FlowTimeout);
        }
        let in_the_way = self.replies == 0
            && silent >= UNANSWERED
            && (crowded || self.has_crowded_listener(core));
        in_the_way.then_some(CloseReason::FlowUnanswered)
    }

    pub fn has_crowded_listener(&self, core: &Core) -> bool {
        let Some((table, listener)) = listener_of(&core.tables, self.socket) else { return false };
        let mut limits = [&table.total, &listener.limit].into_iter().flatten();
        core.places.is_crowded(listener) || limits.any(|limit| limit.is_crowded())
    }

    pub fn record(&self, core: &Core, reason: Option<CloseReason>) -> SessionRecord {
        let known = |id: u32| id != u32::MAX;
        let (client, local) = (self.client(), self.bound(core));
        SessionRecord {
            peer: self.said().map(|_| self.peer),
            unique_id: self.proxied.as_ref().and_then(|proxied| proxied.unique_id),
            listener: Some(self.listener),
            route: known(self.route.0).then_some(self.route),
            backend: known(self.backend.0).then_some(self.backend),
            endpoint: known(self.endpoint.0).then_some(self.endpoint),
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            reason,
            ..SessionRecord::new(Protocol::Udp, self.socket, (client, local), self.opened, core.now)
        }
    }
}

/// Returns the one listener of a UDP socket, and its table.
pub fn listener_of(tables: &Tables, socket: SocketId) -> Option<(&RoutingTable, &Listener)> {
    let (table, socket) = tables.of(socket)?;
    Some((table, &table.listeners[socket.listeners.any()?]))
}
