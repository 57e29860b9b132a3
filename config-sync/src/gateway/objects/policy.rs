//! L4Policy as an object: the keys of the TOML file that the Gateway API has no field for.

use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gateway::objects::limits::{
    EndpointLimitSettings, LimitSettings, ListenerLimitSettings, SourceLimitSettings,
};
use crate::gateway::objects::reference::{AuthorityRef, BackendTarget, ParentRef, TargetRef};

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
    /// ListenerSets, TCPRoutes, UDPRoutes, TLSRoutes, HTTPRoutes, Services or XBackends of its own
    /// namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Of listeners. A policy for a route or a Service can't have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenerSettings>,
    /// Of routes. A policy can have it only if all its targets are routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteSettings>,
    /// Of backends: those of every route on the target's listeners, of the route, or the Service or
    /// XBackend.
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
    /// TLS: what clients may say before the ClientHello: postgres. One value for each address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starttls: Option<String>,
    /// TLS: the backend of clients whose first bytes are no ClientHello. One for each address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_tls: Option<BackendTarget>,
    /// TLS: the backend of clients that are silent for helloTimeout. One for each address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<BackendTarget>,
    /// TLS: what refused clients see: tell, or reset (default). One value for each address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_refusal: Option<String>,
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
    /// UDP: only queries of DNS are forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_guard: Option<DnsGuardSettings>,
    /// Sessions or flows of this listener, over all workers of a gateway. 0: only their own limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub max_sessions: Option<i64>,
    /// What each source of clients may have and do, over all workers of a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_source: Option<SourceLimitSettings>,
    /// What all sessions or flows of this listener may have together, over all workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<ListenerLimitSettings>,
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
    /// TLSRoutes: only for clients that offer one of these protocols (ALPN).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub alpn: Option<Vec<String>>,
    /// What each source of the route's clients may have and do, over all workers of a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_source: Option<SourceLimitSettings>,
    /// What all sessions or flows of the route may have together, over all workers of a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitSettings>,
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
    /// UDP: off (default), or auto: the kernel forwards long-lived flows where it can. Without
    /// effect beside sendProxy, transparent, or shared upstreamSockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_path: Option<String>,
    /// UDP: so many datagrams each way go through a worker first (16). With fastPath auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub fast_path_after: Option<i64>,
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
    /// The most sessions and flows of each endpoint, over all workers of a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub endpoint_max_sessions: Option<i64>,
    /// TCP: so many sessions wait for a place when every endpoint is full. 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub queue: Option<i64>,
    /// TCP: how long a session waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout: Option<String>,
    /// What all sessions or flows of the backend may have together, over all workers of a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitSettings>,
    /// How fast new sessions and flows of each endpoint, and their bytes, may come, over all
    /// workers of a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_limit: Option<EndpointLimitSettings>,
    /// Weights and limits of endpoints, and which endpoints are backups. For each endpoint the
    /// first entry counts that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub endpoints: Option<Vec<EndpointSettings>>,
    /// Endpoints that are not well are left out. A check by TCP of a UDP Service needs a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheckSettings>,
    /// Endpoints with which sessions and flows fail are left out for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eject: Option<EjectSettings>,
    /// What becomes of an endpoint's sessions and flows when the endpoint goes down (healthCheck,
    /// eject): keep or close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_down: Option<String>,
    /// The same when the endpoint is removed: keep or close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_removed: Option<String>,
    /// With close: how long after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_after: Option<String>,
    /// With backups: whether new sessions go back to the other endpoints as soon as one of those
    /// may be picked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<bool>,
    /// An endpoint that is new or has returned begins with a tenth of its weight, and has the whole
    /// after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<String>,
    #[serde(flatten)]
    pub socket: SocketSettings,
}

/// Fits the endpoints that have all of pod, node, zone and address that it names; it names one at
/// least.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSettings {
    /// The name of the Pod, or of another object that the EndpointSlice names as its target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The name of the endpoint's Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The endpoint's zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The endpoint's IP address, or its name in an ExternalName Service or a slice of type FQDN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The share within the backend; 0: no new session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 256))]
    pub weight: Option<i64>,
    /// A backup gets sessions only while no other endpoint may be picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<bool>,
    /// The same as endpointMaxSessions, for these endpoints. 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub max_sessions: Option<i64>,
}

/// The same as the table of the TOML file, without files of passwords.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckSettings {
    /// What the check does: tcp, tls, http, exchange, mysql, postgres, redis, dns, sip, udp or
    /// agent. Without it tcp: a connection to each endpoint, opened and closed.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// From one check of an endpoint to its next; at least 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// The same while an endpoint is between up and down; at most the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_interval: Option<String>,
    /// The same while an endpoint is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_interval: Option<String>,
    /// Each check begins up to this much later, at random; at most the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// For the whole check; at most the interval.
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
    /// http, exchange, mysql, postgres, redis, agent, sip by TCP: whether the check speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Checks by TLS: whether the certificate is verified, by the Service's BackendTLSPolicy or by
    /// caCertificateRefs and serverName. False: any certificate is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
    /// Checks by TLS: the CA certificates that sign the endpoints' certificates, instead of those
    /// of the Service's BackendTLSPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub ca_certificate_refs: Option<Vec<AuthorityRef>>,
    /// Checks by TLS: the name to send, and the name that the certificate must have, instead of
    /// those of the Service's BackendTLSPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Checks by TLS, http, sip: the name to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The PROXY header in front of the check: off, v1 or v2. Without it as for sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_proxy: Option<String>,
    /// http: the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// http: the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// http, sip: the good statuses, such as 200 or 200-299.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub status: Option<Vec<String>>,
    /// http: text that the body must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// http: a regular expression that the body must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_regex: Option<String>,
    /// exchange: what is said, and what is expected, in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub steps: Option<Vec<CheckStep>>,
    /// udp: the datagram. agent: what the agent is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// The same in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_hex: Option<String>,
    /// udp: text that the answer must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// The same in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_hex: Option<String>,
    /// The same as a regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_regex: Option<String>,
    /// udp: what it means that no answer comes: up or down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<String>,
    /// postgres, mysql: who logs in, without a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// postgres, mysql, redis: the role that the server must have: primary or replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// dns, sip: udp or tcp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// dns: the name that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// dns: the type of the record, such as A or SOA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// dns: the good codes, such as NOERROR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub rcode: Option<Vec<String>>,
}

/// Says something, and then waits until the answer has what is expected. One of the two is needed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckStep {
    /// What is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// The same in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_hex: Option<String>,
    /// Text that the answer must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// The same in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_hex: Option<String>,
    /// The same as a regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_regex: Option<String>,
}

/// What is dropped in front of DNS servers, beside all that is no query.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DnsGuardSettings {
    /// Questions for all types of records: drop (default) or pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub any: Option<String>,
    /// Of so many queries over limitSource, one is answered by "come over TCP"; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub slip: Option<i64>,
}

/// When an endpoint is left out because sessions and flows fail with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EjectSettings {
    /// So many failures within the window take an endpoint out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub failures: Option<i64>,
    /// At least 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// How long the first ejection lasts; at least 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The longest ejection; at least the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// Per cent of the backend's endpoints that may be out at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_share: Option<i64>,
    /// Whether all endpoints are in when none would be left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
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
