//! A backend, and the default values of its keys.

use std::time::Duration;

use crate::model::eject::Eject;
use crate::model::endpoint::Endpoint;
use crate::model::gone::WhenGone;
use crate::model::health_check::HealthCheck;
use crate::model::limit::{Limit, LimitOf};
use crate::model::listener;
use crate::model::place::{At, Place};
use crate::model::time::{MINUTE, SECOND};
use crate::model::tls::Origination;
use crate::table::address::{EndpointAddress, Interface};
use crate::table::routing::{SendProxy, SocketOptions, Sources};

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub name: At<String>,
    /// If the list is empty, sessions for this backend are refused.
    pub endpoints: Vec<Endpoint>,
    pub balance: Balance,
    /// The time for one attempt. 0: the kernel decides how long to try.
    pub connect_timeout: u32,
    /// From 1 to 8.
    pub connect_attempts: u8,
    /// Local addresses to connect from, used in turn. If the list is empty, the kernel chooses.
    pub source: Vec<At<Sources>>,
    /// Connections and datagrams to endpoints leave through this interface only.
    pub interface: Option<At<Interface>>,
    /// For TCP and TLS listeners only. `None`: bytes that the client sends, or that a listener has
    /// decrypted, go to the endpoint unchanged.
    pub tls: Option<Origination>,
    /// UDP: all flows share a few sockets. Flows then differ by their local addresses.
    pub shared_sockets: Option<At<bool>>,
    /// UDP: the pause between two flows of an upstream socket. `None`: [`UPSTREAM_REST`].
    pub upstream_rest: Option<At<u32>>,
    /// The PROXY header that an endpoint receives first, or, for UDP, in every datagram. `None`: no
    /// header.
    pub send_proxy: Option<At<SendProxy>>,
    /// UDP: whether the kernel forwards long-lived flows. `None`: [`FastPath::Off`].
    pub fast_path: Option<At<FastPath>>,
    /// UDP: the datagrams each way after which the kernel forwards a flow. `None`:
    /// [`FAST_PATH_AFTER`].
    pub fast_path_after: Option<At<u32>>,
    /// Ringway connects to endpoints from the client's own address.
    pub transparent: Option<At<bool>>,
    /// `None`: all endpoints are used, healthy or not.
    pub health_check: Option<At<HealthCheck>>,
    pub when_gone: WhenGone,
    /// For TCP and TLS listeners only: how many sessions wait while every endpoint is full.
    pub queue: Option<At<u32>>,
    /// Milliseconds. `None`: [`QUEUE_TIMEOUT`].
    pub queue_timeout: Option<At<u32>>,
    /// What all sessions or flows of the backend may have together.
    pub limit: Option<LimitOf>,
    /// What each endpoint may have that has no `limit` of its own.
    pub endpoint_limit: Option<Limit>,
    /// Whether new sessions go back from backups as soon as another endpoint may be picked again.
    pub failback: bool,
    /// How long an endpoint that is new or has returned gets less than its weight. 0: it has its
    /// weight at once.
    pub slow_start: u32,
    /// `None`: failures of sessions and flows leave no endpoint out.
    pub eject: Option<At<Eject>>,
    pub options: SocketOptions,
    /// The places of keys that UDP does not use.
    pub stream_keys: Vec<Place>,
}

impl Backend {
    pub(crate) fn has_shared_sockets(&self) -> bool {
        self.shared_sockets.as_ref().is_some_and(|shared| shared.value)
    }

    /// Whether a connection to this address can begin: it has the IP version of a source, if there
    /// are sources.
    pub(crate) fn can_reach(&self, address: EndpointAddress) -> bool {
        let Some(ip) = address.ip() else { return true };
        let is_same = |source: &At<Sources>| source.value.first.is_ipv4() == ip.is_ipv4();
        self.source.is_empty() || self.source.iter().any(is_same)
    }

    /// Whether the kernel forwards flows of this backend.
    pub fn fast_path(&self) -> FastPath {
        self.fast_path.as_ref().map_or(FastPath::Off, |asked| asked.value)
    }

    /// Milliseconds for which a worker tries an endpoint last after a session could not be given to
    /// the endpoint. If the backend has checks, a check that began later has ended by then, so the
    /// table says how the endpoint is. No rest is longer than an ejection.
    pub(crate) fn rest(&self) -> u32 {
        let checked = self.health_check.as_ref().map(|asked| asked.value.ends_within());
        let ejected = self.eject.as_ref().map(|asked| asked.value.base);
        [checked, ejected].into_iter().flatten().fold(REST, u32::min)
    }

    pub fn is_transparent(&self) -> bool {
        self.transparent.as_ref().is_some_and(|transparent| transparent.value)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastConnections,
    Random,
    SourceHash,
    SourcePortHash,
}
/// Whether the kernel forwards a backend's UDP flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastPath {
    Off,
    /// If the kernel and the process's rights allow that. Otherwise workers forward all flows.
    Auto,
    /// Without the kernel's help the configuration is refused.
    Required,
}

/// Forwarding a flow in the kernel costs about as much as a datagram through the worker, so flows
/// of a few datagrams stay there.
pub(crate) const FAST_PATH_AFTER: u32 = 16;

/// Longer than a live endpoint and the path to the endpoint take to answer.
pub(crate) const UPSTREAM_REST: u32 = 2 * SECOND;
pub(crate) const LEAST_UPSTREAM_REST: Duration = Duration::from_millis(100);

/// The values of socket options that are not given. An endpoint that acknowledges no byte for a
/// minute is dead; without a user timeout, the kernel takes a quarter of an hour to say so.
pub(crate) const OPTIONS: SocketOptions =
    SocketOptions { user_timeout: MINUTE, ..listener::OPTIONS };

/// The longest time for which an endpoint comes last: as long as nginx's `fail_timeout`. The time
/// is short enough for an endpoint that was only restarted, and clients seldom meet a dead one.
const REST: u32 = 10 * SECOND;

/// The default of a session's time in the queue.
pub(crate) const QUEUE_TIMEOUT: u32 = 10 * SECOND;

/// The default of one attempt's time.
pub(crate) const CONNECT_TIMEOUT: u32 = 5 * SECOND;
pub(crate) const CONNECT_ATTEMPTS: u8 = 3;
