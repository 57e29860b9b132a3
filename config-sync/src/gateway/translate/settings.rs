//! The inputs of a translation besides the objects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::gateway::translate::found::LastGood;
use crate::machine::Machine;
use crate::model::config::Config;

/// The inputs of a translation besides the objects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// GatewayClasses with this name are Ringway's.
    pub controller_name: String,
    /// Each Gateway gets an address of its own from these. Empty: Gateways share the node's
    /// addresses.
    pub address_pool: Vec<IpNet>,
    /// The addresses that each Gateway got from the pool in the last translation, by namespace and
    /// name. Before a Gateway's status is written, Gateways may come that are older by their names.
    pub given: BTreeMap<(String, String), Vec<IpAddr>>,
    /// The good certificates of the last translation.
    pub last_good: LastGood,
    /// The only namespaces that are followed. Empty: all are.
    pub namespaces: Arc<[String]>,
    /// The time of day in seconds. `None`: expired certificates are not reported.
    pub now: Option<i64>,
    /// The addresses in statuses if there is no pool. The first 16 count.
    pub node_addresses: Vec<IpAddr>,
    /// Endpoints with a hint for this zone come first.
    pub zone: Option<String>,
    /// ExternalName Services, EndpointSlices of type FQDN and XBackends lead to their names. Off by
    /// default: whoever may write a Service could make the gateway connect to anything that it can
    /// reach.
    pub external_names: bool,
    /// The keys that no object has: workers, admin API, access log, limits, drain. There are no
    /// listeners.
    pub base: Config,
    /// The machine, with the congestion controls that a policy may name.
    pub machine: Machine,
}
