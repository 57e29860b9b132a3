//! A client of which an operator asks, and what runs.

use std::net::SocketAddr;

use config_sync::model::config::Config;
use config_sync::sync::overrides::Shown;
use config_sync::table::address::{Address, UNIX_CLIENT};
use config_sync::table::routing::{Protocol, RoutingTable, Socket};
use schemars::JsonSchema;
use serde::Deserialize;

/// What a client of a TLS listener sends first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Speaks {
    /// A ClientHello.
    #[default]
    Tls,
    /// Something else.
    NotTls,
    /// Nothing until `hello_timeout`.
    Silent,
}

/// A client, as an operator describes it.
#[derive(Clone, Debug)]
pub struct Client {
    /// The address that the gateway takes for the client's: with a PROXY header, the header's.
    pub address: SocketAddr,
    /// False: the port of `address` means nothing.
    pub port: bool,
    /// The name of the listener that the client comes to.
    pub listener: String,
    /// The listener's address that the client comes to. `None`: the first.
    pub local: Option<SocketAddr>,
    /// In lower case.
    pub server_name: Option<String>,
    pub alpn: Vec<String>,
    pub speaks: Speaks,
}

/// What runs.
pub struct Running<'a> {
    pub table: &'a RoutingTable,
    pub config: &'a Config,
    pub endpoints: &'a [Shown],
    /// Microseconds since 1970.
    pub now: u64,
}

/// The port that the client comes to, for endpoints that are relative to it.
pub fn local_port(client: &Client, socket: &Socket) -> u16 {
    let local = client.local.or_else(|| socket.address.ip());
    local.unwrap_or(UNIX_CLIENT).port()
}

/// Whether an endpoint's address is one that this listener can connect to.
pub fn can_reach(address: Option<Address>, protocol: Protocol) -> bool {
    match address {
        Some(Address::Unix(_)) => protocol != Protocol::Udp,
        Some(Address::Ip(_)) => true,
        None => false,
    }
}
