//! L4Policy: the keys of the TOML file that the Gateway API has no field for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use super::index::{key, seniority};
use super::objects::Objects;
use super::translate::{Settings, Verdict, Why};
use crate::model::admission::read_range;
use crate::model::admission::{Admission, Ranges};
use crate::model::backend::{Balance, LEAST_UPSTREAM_REST};
use crate::model::config::MAX_SESSIONS;
use crate::model::health_check::{self, HealthCheck};
use crate::table::routing::{
    OnTruncation, ProxyVersion, SendProxy, SocketOptions, Sources, Starttls,
};
use crate::toml::backend::BALANCES;
use crate::toml::health_check::{interval as interval_of, timeout_within};
use crate::toml::listener::{ON_TRUNCATION, STARTTLS};
use crate::toml::reader::word;
use crate::toml::values::{
    duration, duration_from, exact_hostname, keepalive, range, source, user_timeout,
};
use crate::toml::{proxy, socket_options};

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
    /// Of routes. Only a policy whose targets are all routes can have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteSettings>,
    /// Of backends: those of every route on the target's listeners, of the route, or the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendSettings>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// gateway.networking.k8s.io, or empty for a Service.
    pub group: String,
    pub kind: String,
    pub name: String,
    /// A listener of a Gateway or ListenerSet, or the name of a Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
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
    /// Whose PROXY headers are believed. TLS: the same for all listeners of one address.
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
    pub ancestor_ref: AncestorRef,
    pub controller_name: String,
    #[serde(default)]
    pub conditions: Vec<PolicyCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AncestorRef {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
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

/// Every policy, and what it says once it is read.
pub(super) struct Policies<'o> {
    /// Oldest first.
    all: Vec<Policy<'o>>,
    by_aim: BTreeMap<Aim<'o>, Vec<usize>>,
}

struct Policy<'o> {
    object: &'o L4Policy,
    values: Values,
    /// What is wrong with it. Then nothing of it holds but whom it keeps out.
    fault: Option<Why>,
}

#[derive(Default)]
struct Values {
    listener: ListenerValues,
    route: AdmissionValues,
    backend: BackendValues,
}

/// What policies may say of a listener, in the units of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListenerValues {
    pub(super) hello: Option<u32>,
    pub(super) default_hostname: Option<String>,
    pub(super) starttls: Option<Starttls>,
    pub(super) idle: Option<u32>,
    pub(super) write_stall: Option<u32>,
    pub(super) half_close: Option<u32>,
    pub(super) lifetime: Option<u32>,
    pub(super) on_truncation: Option<OnTruncation>,
    pub(super) flow_timeout: Option<u32>,
    pub(super) responses: Option<u32>,
    pub(super) max_sessions: Option<u32>,
    pub(super) accept_proxy: Option<Vec<IpNet>>,
    pub(super) socket: SocketValues,
    pub(super) admission: AdmissionValues,
}

/// What policies may say of a listener's or route's clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AdmissionValues {
    pub(super) allow: Option<Vec<IpNet>>,
    pub(super) deny: Option<Vec<IpNet>>,
}

/// What policies may say of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BackendValues {
    pub(super) balance: Option<Balance>,
    pub(super) connect_timeout: Option<u32>,
    pub(super) connect_attempts: Option<u8>,
    pub(super) source: Option<Vec<Sources>>,
    pub(super) shared_sockets: Option<bool>,
    pub(super) upstream_rest: Option<u32>,
    pub(super) send_proxy: Option<SendProxy>,
    pub(super) transparent: Option<bool>,
    pub(super) health_check: Option<HealthCheck>,
    pub(super) socket: SocketValues,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SocketValues {
    pub(super) nodelay: Option<bool>,
    pub(super) keepalive: Option<u32>,
    pub(super) user_timeout: Option<u32>,
    pub(super) congestion: Option<[u8; 16]>,
}

/// Something that a policy may have for a target: its kind, namespace, name, and which part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Aim<'a> {
    pub(super) kind: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) section: Option<&'a str>,
}

impl<'o> Policies<'o> {
    pub(super) fn of(objects: &'o Objects, settings: &Settings) -> Self {
        let mut all: Vec<_> = objects.policies.iter().map(Arc::as_ref).collect();
        all.sort_by(|a, b| seniority(&a.metadata).cmp(&seniority(&b.metadata)));
        let policy = |object: &'o L4Policy| match read(object, settings) {
            Ok(values) => Policy { object, values, fault: None },
            Err(why) => Policy { object, values: kept_out(&object.spec), fault: Some(why) },
        };
        let all: Vec<Policy<'o>> = all.into_iter().map(policy).collect();
        let mut by_aim: BTreeMap<Aim<'o>, Vec<usize>> = BTreeMap::new();
        for (at, policy) in all.iter().enumerate() {
            let targets = policy.object.spec.target_refs.iter();
            for target in targets.filter(|target| right_group(target).is_ok()) {
                let known = by_aim.entry(aim(policy.object, target)).or_default();
                if known.last() != Some(&at) {
                    known.push(at);
                }
            }
        }
        Self { all, by_aim }
    }

    /// What holds for a listener: `aims` are the ways to speak of it, most specific first.
    pub(super) fn listener(&self, aims: &[Aim<'_>]) -> ListenerValues {
        let mut values = ListenerValues::default();
        for at in self.at(aims) {
            values.fill(&at.listener);
        }
        values
    }

    /// What holds for a route.
    pub(super) fn route(&self, aim: Aim<'_>) -> AdmissionValues {
        let mut values = AdmissionValues::default();
        for at in self.at(&[aim]) {
            values.fill(&at.route);
        }
        values
    }

    /// What holds for a backend.
    pub(super) fn backend(&self, aims: &[Aim<'_>]) -> BackendValues {
        let mut values = BackendValues::default();
        for at in self.at(aims) {
            values.fill(&at.backend);
        }
        values
    }

    fn at<'a>(&'a self, aims: &'a [Aim<'a>]) -> impl Iterator<Item = &'a Values> {
        aims.iter().flat_map(|aim| self.of_target(*aim)).map(|at| &self.all[*at].values)
    }

    /// The policies of a target, oldest first.
    fn of_target<'a>(&'a self, aim: Aim<'a>) -> &'a [usize] {
        self.by_aim.get(&aim).map_or(&[], Vec::as_slice)
    }

    /// The statuses of all policies; `gateways` says which Gateways a target reaches, or why there
    /// is no such target.
    pub(super) fn statuses(
        &self,
        controller: &str,
        gateways: impl Fn(Aim<'_>) -> Result<Vec<(String, String)>, Why>,
    ) -> Vec<(&'o L4Policy, Vec<(AncestorRef, Verdict)>)> {
        let mut statuses = Vec::new();
        for (at, policy) in self.all.iter().enumerate() {
            let mut ancestors: Vec<(AncestorRef, Verdict)> = Vec::new();
            for target in &policy.object.spec.target_refs {
                let aim = aim(policy.object, target);
                let reached = right_group(target).and_then(|()| gateways(aim));
                let (reached, verdict) = match reached {
                    Ok(gateways) => (gateways, self.verdict(at, aim)),
                    Err(why) => {
                        ancestors.push((policy.itself(target), Err(why)));
                        continue;
                    }
                };
                for (namespace, name) in reached {
                    let ancestor = AncestorRef {
                        group: Some(super::objects::GROUP.to_owned()),
                        kind: Some("Gateway".to_owned()),
                        namespace: Some(namespace),
                        name,
                        section_name: None,
                    };
                    match ancestors.iter_mut().find(|(known, _)| *known == ancestor) {
                        Some((_, known)) if known.is_ok() => *known = verdict.clone(),
                        Some(_) => {}
                        None => ancestors.push((ancestor, verdict.clone())),
                    }
                }
            }
            ancestors.truncate(MAX_ANCESTORS);
            if !ancestors.is_empty() || policy.has_ours(controller) {
                statuses.push((policy.object, ancestors));
            }
        }
        statuses
    }

    /// Whether an older policy of the same target says something of the same fields.
    fn verdict(&self, at: usize, aim: Aim<'_>) -> Verdict {
        let policy = &self.all[at];
        if let Some(fault) = &policy.fault {
            return Err(fault.clone());
        }
        let older = self.of_target(aim).iter().take_while(|other| **other < at);
        for other in older.map(|other| &self.all[*other]) {
            let fields = fields(&policy.object.spec);
            let both: Vec<_> = other.in_force().intersection(&fields).cloned().collect();
            if !both.is_empty() {
                let (name, fields) = (key(&other.object.metadata).1, both.join(", "));
                let message = format!("L4Policy {name} is older and has {fields} for this target");
                return Err(Why::new("Conflicted", message));
            }
        }
        Ok(())
    }
}

fn aim<'o>(policy: &'o L4Policy, target: &'o TargetRef) -> Aim<'o> {
    Aim {
        kind: &target.kind,
        namespace: key(&policy.metadata).0,
        name: &target.name,
        section: target.section_name.as_deref(),
    }
}

/// As many as a status may list.
pub(super) const MAX_ANCESTORS: usize = 16;

fn has_listeners(kind: &str) -> bool {
    matches!(kind, "Gateway" | "ListenerSet")
}

fn is_route(kind: &str) -> bool {
    matches!(kind, "TCPRoute" | "UDPRoute" | "TLSRoute" | "HTTPRoute")
}

/// A target of another group is none of ours, whatever its kind is called.
fn right_group(target: &TargetRef) -> Verdict {
    let group = if target.kind == "Service" { "" } else { super::objects::GROUP };
    if target.group == group {
        return Ok(());
    }
    let TargetRef { kind, name, .. } = target;
    let message =
        format!("there is no {kind} {name} of group \"{}\"; say \"{group}\"", target.group);
    Err(Why::new("TargetNotFound", message))
}

/// The fields that a policy sets, as `listener.idleTimeout`.
fn fields(spec: &L4PolicySpec) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    let parts = [
        ("listener", serde_json::to_value(&spec.listener)),
        ("route", serde_json::to_value(&spec.route)),
        ("backend", serde_json::to_value(&spec.backend)),
    ];
    for (part, value) in parts {
        let value = value.ok();
        let given = value.as_ref().and_then(serde_json::Value::as_object);
        fields.extend(given.into_iter().flatten().map(|(field, _)| format!("{part}.{field}")));
    }
    fields
}

impl Policy<'_> {
    /// The fields that it has a say in.
    fn in_force(&self) -> BTreeSet<String> {
        let mut fields = fields(&self.object.spec);
        if self.fault.is_some() {
            let proxies = self.values.listener.accept_proxy.is_some();
            fields.retain(|field| {
                let ranges = field.ends_with(".allow") || field.ends_with(".deny");
                ranges || proxies && field == "listener.acceptProxy"
            });
        }
        fields
    }

    fn itself(&self, target: &TargetRef) -> AncestorRef {
        AncestorRef {
            group: Some(target.group.clone()),
            kind: Some(target.kind.clone()),
            namespace: Some(key(&self.object.metadata).0.to_owned()),
            name: target.name.clone(),
            section_name: target.section_name.clone(),
        }
    }

    fn has_ours(&self, controller: &str) -> bool {
        let ancestors = self.object.status.iter().flat_map(|status| &status.ancestors);
        ancestors.into_iter().any(|ancestor| ancestor.controller_name == controller)
    }
}

fn read(object: &L4Policy, settings: &Settings) -> Result<Values, Why> {
    let no_route = object.spec.target_refs.iter().find(|target| !is_route(&target.kind));
    if let (Some(target), Some(_)) = (no_route, &object.spec.route) {
        let message = format!("route: a {} is none; say it of a TCPRoute, say", target.kind);
        return Err(Why::new("Invalid", message));
    }
    let other = object.spec.target_refs.iter().find(|target| !has_listeners(&target.kind));
    if let (Some(target), Some(_)) = (other, &object.spec.listener) {
        let message = format!("listener: a {} has none; say it of a Gateway", target.kind);
        return Err(Why::new("Invalid", message));
    }
    let listener = object.spec.listener.as_ref();
    let listener = listener.map(|given| read_listener(given, settings)).transpose();
    let route = object.spec.route.as_ref();
    let route = route.map(|given| read_admission(&given.admission)).transpose();
    let backend = object.spec.backend.as_ref();
    let backend = backend.map(|given| read_backend(given, settings)).transpose();
    let invalid = |part: &'static str| {
        move |message: String| Why::new("Invalid", format!("{part}.{message}"))
    };
    Ok(Values {
        listener: listener.map_err(invalid("listener"))?.unwrap_or_default(),
        route: route.map_err(invalid("route"))?.unwrap_or_default(),
        backend: backend.map_err(invalid("backend"))?.unwrap_or_default(),
    })
}

/// Who may come in by a policy that is not right: nobody gets in for a slip elsewhere in it, nor,
/// if it is the ranges that can't be read, for one in them. Whose headers say who a client is goes
/// with that.
fn kept_out(spec: &L4PolicySpec) -> Values {
    let nobody = || AdmissionValues { allow: Some(Vec::new()), deny: None };
    let read = |given: &AdmissionSettings| read_admission(given).unwrap_or_else(|_| nobody());
    let listener = spec.listener.as_ref().map(|given| {
        let accept_proxy = given.accept_proxy.as_ref().map(read_accept_proxy).transpose();
        let mut admission = read(&given.admission);
        if accept_proxy.is_err() && admission != AdmissionValues::default() {
            admission = nobody();
        }
        let accept_proxy = accept_proxy.unwrap_or_default();
        ListenerValues { accept_proxy, admission, ..ListenerValues::default() }
    });
    let route = spec.route.as_ref().map(|given| read(&given.admission));
    Values {
        listener: listener.unwrap_or_default(),
        route: route.unwrap_or_default(),
        backend: BackendValues::default(),
    }
}

fn read_listener(given: &ListenerSettings, settings: &Settings) -> Result<ListenerValues, String> {
    let least = duration_from(Duration::from_millis(100));
    Ok(ListenerValues {
        hello: text("helloTimeout", given.hello_timeout.as_ref(), duration)?,
        default_hostname: text("defaultHostname", given.default_hostname.as_ref(), exact_hostname)?,
        starttls: text("starttls", given.starttls.as_ref(), word(&STARTTLS))?,
        idle: text("idleTimeout", given.idle_timeout.as_ref(), duration)?,
        write_stall: text("writeStallTimeout", given.write_stall_timeout.as_ref(), duration)?,
        half_close: text("halfCloseTimeout", given.half_close_timeout.as_ref(), duration)?,
        lifetime: text("maxLifetime", given.max_lifetime.as_ref(), duration)?,
        on_truncation: text("onTruncation", given.on_truncation.as_ref(), word(&ON_TRUNCATION))?,
        flow_timeout: text("flowTimeout", given.flow_timeout.as_ref(), least)?,
        responses: number("responses", given.responses, 0..=65_535)?,
        max_sessions: number("maxSessions", given.max_sessions, 0..=MAX_SESSIONS)?,
        accept_proxy: given.accept_proxy.as_ref().map(read_accept_proxy).transpose()?,
        socket: read_socket(&given.socket, settings)?,
        admission: read_admission(&given.admission)?,
    })
}

fn read_admission(given: &AdmissionSettings) -> Result<AdmissionValues, String> {
    let list = |field: &str, given: Option<&Vec<String>>| {
        let read = |text: &String| text_range(field, text);
        given.map(|given| given.iter().map(read).collect::<Result<Vec<_>, _>>()).transpose()
    };
    let (allow, deny) = (list("allow", given.allow.as_ref())?, list("deny", given.deny.as_ref())?);
    let values = AdmissionValues { allow, deny };
    match values.both().first() {
        Some(range) => Err(format!("deny: {range} is in `allow` too; it can be in one only")),
        None => Ok(values),
    }
}

fn text_range(field: &str, text: &str) -> Result<IpNet, String> {
    read_range(text).map_err(|message| format!("{field}: {message}"))
}

fn read_backend(given: &BackendSettings, settings: &Settings) -> Result<BackendValues, String> {
    let sockets = word(&[("connected", false), ("shared", true)]);
    let rest = duration_from(LEAST_UPSTREAM_REST);
    let mut values = BackendValues {
        balance: text("balance", given.balance.as_ref(), word(&BALANCES))?,
        connect_timeout: text("connectTimeout", given.connect_timeout.as_ref(), duration)?,
        connect_attempts: number("connectAttempts", given.connect_attempts, 1..=8)?,
        source: None,
        shared_sockets: text("upstreamSockets", given.upstream_sockets.as_ref(), sockets)?,
        upstream_rest: text("upstreamRest", given.upstream_rest.as_ref(), rest)?,
        send_proxy: read_send_proxy(given)?,
        transparent: given.transparent,
        health_check: given.health_check.as_ref().map(read_health_check).transpose()?,
        socket: read_socket(&given.socket, settings)?,
    };
    if let Some(given) = given.source.as_ref().filter(|given| !given.is_empty()) {
        let read = |from: &String| text("source", Some(from), source);
        let sources = given.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        values.source = Some(sources.into_iter().flatten().collect());
    }
    Ok(values)
}

fn read_accept_proxy(given: &AcceptProxy) -> Result<Vec<IpNet>, String> {
    if !(1..=proxy::MAX_RANGES).contains(&given.from.len()) {
        return Err(format!("acceptProxy.from: {}", proxy::count(given.from.len())));
    }
    let read = |from: &String| text("acceptProxy.from", Some(from), range);
    let ranges = given.from.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(ranges.into_iter().flatten().collect())
}

fn read_send_proxy(given: &BackendSettings) -> Result<Option<SendProxy>, String> {
    let version = text("sendProxy", given.send_proxy.as_ref(), word(&proxy::VERSIONS))?;
    let tlvs: Vec<_> = given.proxy_tlvs.iter().flatten().map(String::as_str).collect();
    if !tlvs.is_empty() && version != Some(ProxyVersion::V2) {
        return Err("proxyTlvs: needs sendProxy: v2".to_owned());
    }
    for tlv in &tlvs {
        proxy::asked(tlv).map_err(|message| format!("proxyTlvs: {message}"))?;
    }
    Ok(version.map(|version| proxy::told(version, &tlvs)))
}

fn read_health_check(given: &HealthCheckSettings) -> Result<HealthCheck, String> {
    let interval = text("healthCheck.interval", given.interval.as_ref(), interval_of)?;
    let interval = interval.unwrap_or(health_check::DEFAULT.interval);
    let within = timeout_within(interval);
    let timeout = text("healthCheck.timeout", given.timeout.as_ref(), within)?;
    let (rise, fall) = (given.rise, given.fall);
    Ok(HealthCheck {
        interval,
        timeout: timeout.unwrap_or_else(|| health_check::timeout_of(interval)),
        rise: number("healthCheck.rise", rise, health_check::TIMES)?
            .unwrap_or(health_check::DEFAULT.rise),
        fall: number("healthCheck.fall", fall, health_check::TIMES)?
            .unwrap_or(health_check::DEFAULT.fall),
        port: number("healthCheck.port", given.port, 0..=u16::MAX)?.unwrap_or_default(),
    })
}

fn read_socket(given: &SocketSettings, settings: &Settings) -> Result<SocketValues, String> {
    let congestion = |value: &DeValue<'_>| socket_options::congestion(value, &settings.machine);
    Ok(SocketValues {
        nodelay: given.nodelay,
        keepalive: text("keepalive", given.keepalive.as_ref(), keepalive)?,
        user_timeout: text("userTimeout", given.user_timeout.as_ref(), user_timeout)?,
        congestion: text("congestion", given.congestion.as_ref(), congestion)?,
    })
}

/// What the TOML file's own reader makes of the same text.
fn text<T>(
    field: &str,
    given: Option<&String>,
    read: impl Fn(&DeValue<'_>) -> Result<T, String>,
) -> Result<Option<T>, String> {
    let Some(given) = given else { return Ok(None) };
    let value = DeValue::String(given.as_str().into());
    read(&value).map(Some).map_err(|message| format!("{field}: {message}"))
}

fn number<T: TryFrom<i64> + PartialOrd + Display>(
    field: &str,
    given: Option<i64>,
    range: RangeInclusive<T>,
) -> Result<Option<T>, String> {
    let Some(given) = given else { return Ok(None) };
    let read = T::try_from(given).ok().filter(|number| range.contains(number));
    let refused = || format!("{field}: must be {} to {}, not {given}", range.start(), range.end());
    read.map(Some).ok_or_else(refused)
}

impl ListenerValues {
    /// What is not said yet is as in `under`.
    fn fill(&mut self, under: &Self) {
        fill(&mut self.hello, &under.hello);
        fill(&mut self.default_hostname, &under.default_hostname);
        fill(&mut self.starttls, &under.starttls);
        fill(&mut self.idle, &under.idle);
        fill(&mut self.write_stall, &under.write_stall);
        fill(&mut self.half_close, &under.half_close);
        fill(&mut self.lifetime, &under.lifetime);
        fill(&mut self.on_truncation, &under.on_truncation);
        fill(&mut self.flow_timeout, &under.flow_timeout);
        fill(&mut self.responses, &under.responses);
        fill(&mut self.max_sessions, &under.max_sessions);
        fill(&mut self.accept_proxy, &under.accept_proxy);
        self.socket.fill(&under.socket);
        self.admission.fill(&under.admission);
    }
}

impl AdmissionValues {
    fn fill(&mut self, under: &Self) {
        fill(&mut self.allow, &under.allow);
        fill(&mut self.deny, &under.deny);
    }

    fn both(&self) -> BTreeSet<IpNet> {
        let denied: BTreeSet<_> = self.deny.iter().flatten().collect();
        self.allow.iter().flatten().filter(|range| denied.contains(range)).copied().collect()
    }

    /// As the configuration of `of` has it. A range that one policy allows and another denies is
    /// denied.
    pub(super) fn of(&self, of: &str) -> Admission {
        let at = |range: &IpNet| super::build::at(Ranges::Prefix(*range), of);
        let both = self.both();
        let allowed = |allow: &Vec<IpNet>| {
            allow.iter().filter(|range| !both.contains(range)).map(at).collect()
        };
        Admission {
            allow: self.allow.as_ref().map(allowed),
            deny: self.deny.iter().flatten().map(at).collect(),
        }
    }
}

impl BackendValues {
    fn fill(&mut self, under: &Self) {
        fill(&mut self.balance, &under.balance);
        fill(&mut self.connect_timeout, &under.connect_timeout);
        fill(&mut self.connect_attempts, &under.connect_attempts);
        fill(&mut self.source, &under.source);
        fill(&mut self.shared_sockets, &under.shared_sockets);
        fill(&mut self.upstream_rest, &under.upstream_rest);
        fill(&mut self.send_proxy, &under.send_proxy);
        fill(&mut self.transparent, &under.transparent);
        fill(&mut self.health_check, &under.health_check);
        self.socket.fill(&under.socket);
    }
}

impl SocketValues {
    fn fill(&mut self, under: &Self) {
        fill(&mut self.nodelay, &under.nodelay);
        fill(&mut self.keepalive, &under.keepalive);
        fill(&mut self.user_timeout, &under.user_timeout);
        fill(&mut self.congestion, &under.congestion);
    }

    /// The options of a connection.
    pub(super) fn over(&self, default: SocketOptions) -> SocketOptions {
        SocketOptions {
            nodelay: self.nodelay.unwrap_or(default.nodelay),
            keepalive: self.keepalive.unwrap_or(default.keepalive),
            user_timeout: self.user_timeout.unwrap_or(default.user_timeout),
            congestion: self.congestion.unwrap_or(default.congestion),
        }
    }
}

fn fill<T: Clone>(value: &mut Option<T>, under: &Option<T>) {
    if value.is_none() {
        value.clone_from(under);
    }
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
