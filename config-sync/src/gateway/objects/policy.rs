//! L4Policy as an object: the keys of the TOML file that the Gateway API has no field for.

use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gateway::objects::reference::{ParentRef, TargetRef};

/// Of Ringway's own kinds.
pub const GROUP: &str = "ringway.dev";

/// Settings of listeners and backends that the Gateway API has no field for. Every field does what
/// the key of the same name does in Ringway's TOML file. Where several policies reach a listener or
/// backend, the one with the more specific target wins, field by field.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "ringway.dev",
    version = "v1alpha1",
    kind = "L4Policy",
    plural = "l4policies",
    namespaced,
    status = "L4PolicyStatus",
    shortname = "l4p",
    category = "gateway-api",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct L4PolicySpec {
    /// What the policy is for: Gateways (all their listeners, or the one that sectionName names),
    /// ListenerSets, TCPRoutes, UDPRoutes, TLSRoutes, HTTPRoutes or Services of its own namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Of listeners. A policy for a route or a Service can't have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenerSettings>,
    /// Of routes. A policy can have it only if all its targets are routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteSettings>,
    /// Of backends: those of every route on the target's listeners, of the route, or the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendSettings>,
}

/// Durations are such as 300ms, 5s or 1h30m; 0s is off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSettings {
    /// TLS: from accept until the ClientHello is whole. The same for all listeners of one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello_timeout: Option<String>,
    /// TLS: the server name that clients are taken to ask for that send none. The same for all
    /// listeners of one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_hostname: Option<String>,
    /// TLS: what clients may say before the ClientHello: postgres. The same for all listeners of
    /// one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starttls: Option<String>,
    /// TCP, TLS: without a byte either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    /// TCP, TLS: bytes wait and their receiver takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_stall_timeout: Option<String>,
    /// TCP, TLS: one direction has ended, and no byte comes the other way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_close_timeout: Option<String>,
    /// TCP, TLS: from accept, whatever happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lifetime: Option<String>,
    /// TCP, TLS: what becomes of an end of TLS without close_notify: reset or fin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_truncation: Option<String>,
    /// UDP: without a datagram either way; at least 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_timeout: Option<String>,
    /// UDP: replies per client datagram after which a flow ends at once; 0: only by flowTimeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_535))]
    pub responses: Option<i64>,
    /// Sessions or flows of this listener, per worker. 0: only the worker's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub max_sessions: Option<i64>,
    /// The sources that must send PROXY headers. TLS: the same for all listeners of one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_proxy: Option<AcceptProxy>,
    #[serde(flatten)]
    pub socket: SocketSettings,
    #[serde(flatten)]
    pub admission: AdmissionSettings,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteSettings {
    /// How a session or flow is given to one of several backends: round-robin, or source-hash, by
    /// which a client's address stays with one backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<String>,
    /// What happens to the share of a backend without an endpoint: refuse, or next, which gives the
    /// share to the route's other backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unavailable: Option<String>,
    #[serde(flatten)]
    pub admission: AdmissionSettings,
}

/// Ranges of clients' addresses such as 10.0.0.0/8; the longest that has the address decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionSettings {
    /// Who may come in. Without it whoever is not denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub allow: Option<Vec<String>>,
    /// Who may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub deny: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptProxy {
    /// Source ranges: connections, and datagrams, from these must begin with a header, all others
    /// must not.
    #[schemars(length(min = 1, max = 256))]
    pub from: Vec<String>,
}

/// Of backends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendSettings {
    /// round-robin, least-connections, source-hash, source-port-hash or random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<String>,
    /// TCP: for one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<String>,
    /// TCP: endpoints tried before the client is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8))]
    pub connect_attempts: Option<i64>,
    /// Local addresses and prefixes to connect from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub source: Option<Vec<String>>,
    /// UDP: connected or shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_sockets: Option<String>,
    /// UDP: between two flows of a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_rest: Option<String>,
    /// The PROXY header that endpoints are sent: v1 or v2. UDP: v2, in every datagram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_proxy: Option<String>,
    /// With sendProxy v2: unique-id, crc32c.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub proxy_tlvs: Option<Vec<String>>,
    /// Connect from clients' own addresses; then source and upstreamSockets have no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transparent: Option<bool>,
    /// Endpoints that can't be connected to are left out. Without port it is for TCP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheckSettings>,
    #[serde(flatten)]
    pub socket: SocketSettings,
}

/// A TCP connection to each endpoint, opened and closed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckSettings {
    /// From one check of an endpoint to its next; at least 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// Within which it must be connected; at most the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Good checks in a row that bring an endpoint back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub rise: Option<i64>,
    /// Failed checks in a row that take it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub fall: Option<i64>,
    /// Where to connect; 0: to the endpoint's own port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_535))]
    pub port: Option<i64>,
}

/// Of TCP connections, to clients or to endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SocketSettings {
    /// TCP_NODELAY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodelay: Option<bool>,
    /// TCP_KEEPIDLE and TCP_KEEPINTVL, in whole seconds; 0s: no keepalive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<String>,
    /// TCP_USER_TIMEOUT; 0s: the kernel's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_timeout: Option<String>,
    /// TCP_CONGESTION; empty: the kernel's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
}

/// What became of the policy at each Gateway that it reaches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L4PolicyStatus {
    #[schemars(length(max = 16))]
    #[serde(default)]
    pub ancestors: Vec<AncestorStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    pub ancestor_ref: ParentRef,
    pub controller_name: String,
    #[serde(default)]
    pub conditions: Vec<PolicyCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// As many as a status may list.
pub(in crate::gateway) const MAX_ANCESTORS: usize = 16;

/// The CustomResourceDefinition, as YAML.
pub fn crd() -> String {
    let definition = serde_json::to_value(L4Policy::crd()).unwrap_or_default();
    let yaml = serde_saphyr::to_string(&definition);
    let yaml = yaml.unwrap_or_else(|error| format!("# {error}\n"));
    format!("# Made by `ringway crd`.\n{yaml}")
}

/// What a policy's `spec` may have: the schema (OpenAPI v3) of the definition.
pub(super) fn schema() -> serde_json::Value {
    let definition = serde_json::to_value(L4Policy::crd()).unwrap_or_default();
    let version = &definition["spec"]["versions"][0];
    version["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_in_the_manifests_is_that_of_the_type() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/kubernetes/crd.yaml");
        if std::env::var_os("RINGWAY_UPDATE_GOLDEN").is_some() {
            std::fs::write(path, crd()).expect("the manifests can be written");
        }
        let committed = std::fs::read_to_string(path).expect("the manifests");
        assert!(committed == crd(), "write it anew: ringway crd > images/kubernetes/crd.yaml");
        assert!(committed.contains("idleTimeout") && committed.contains("l4policies"));
    }
}
