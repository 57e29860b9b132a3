//! A backend, and what holds for one of which nothing else is said.

use std::net::SocketAddr;
use std::time::Duration;

use crate::model::health_check::HealthCheck;
use crate::model::place::{At, Place};
use crate::model::time::SECOND;
use crate::model::tls::Origination;
use crate::table::routing::{SendProxy, SocketOptions, Sources};

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub name: At<String>,
    /// Empty: what would go here is refused.
    pub endpoints: Vec<At<SocketAddr>>,
    pub balance: Balance,
    /// For one attempt; 0: as long as the kernel tries.
    pub connect_timeout: u32,
    /// 1 to 8.
    pub connect_attempts: u8,
    /// Local addresses to connect from, used in turn; empty: the kernel chooses.
    pub source: Vec<At<Sources>>,
    /// TCP and TLS listeners only. `None`: what the client sends, or what a listener has
    /// decrypted, goes as it is.
    pub tls: Option<Origination>,
    /// UDP: few sockets for all flows, which then differ by their local addresses.
    pub shared_sockets: Option<At<bool>>,
    /// UDP: between two flows of an upstream socket; `None`: [`UPSTREAM_REST`].
    pub upstream_rest: Option<At<u32>>,
    /// The PROXY header that endpoints are sent first, or, UDP, in every datagram; `None`: none.
    pub send_proxy: Option<At<SendProxy>>,
    /// Endpoints are connected to from clients' own addresses.
    pub transparent: Option<At<bool>>,
    /// `None`: all endpoints are used, whatever they do.
    pub health_check: Option<At<HealthCheck>>,
    pub options: SocketOptions,
    /// Where keys stand that mean nothing to UDP.
    pub stream_keys: Vec<Place>,
}

impl Backend {
    pub(crate) fn has_shared_sockets(&self) -> bool {
        self.shared_sockets.as_ref().is_some_and(|shared| shared.value)
    }

    pub(crate) fn is_transparent(&self) -> bool {
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
/// Longer than endpoints that are alive, and paths to them, take with an answer.
pub(crate) const UPSTREAM_REST: u32 = 2 * SECOND;
pub(crate) const LEAST_UPSTREAM_REST: Duration = Duration::from_millis(100);

/// Of backends of which nothing is said.
pub(crate) const CONNECT_TIMEOUT: u32 = 5 * SECOND;
pub(crate) const CONNECT_ATTEMPTS: u8 = 3;
