//! What a translation depends on beside the objects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::gateway::translate::found::LastGood;
use crate::machine::Machine;
use crate::model::config::Config;

/// What a translation depends on beside the objects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// GatewayClasses with this name are ours.
    pub controller_name: String,
    /// Each Gateway gets an address of its own out of these; empty: Gateways share the node's.
    pub address_pool: Vec<IpNet>,
    /// What each Gateway, by namespace and name, got out of the pool in the translation before:
    /// between that and its status others may come that are older by their names.
    pub given: BTreeMap<(String, String), Vec<IpAddr>>,
    /// Certificates that the translation before found.
    pub last_good: LastGood,
    /// The only namespaces that are followed; empty: all are.
    pub namespaces: Arc<[String]>,
    /// The time of day in seconds; `None`: certificates that have expired are not told of.
    pub now: Option<i64>,
    /// What statuses say where there is no pool; the first 16 count.
    pub node_addresses: Vec<IpAddr>,
    /// Endpoints whose hints name this zone come first.
    pub zone: Option<String>,
    /// What no object says: workers, admin API, access log, limits, drain. It has no listeners.
    pub base: Config,
    /// Which congestion controls a policy may name.
    pub machine: Machine,
}
