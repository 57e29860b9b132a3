//! L4Policy: the keys of the TOML file that the Gateway API has no field for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube::api::ObjectMeta;
use toml::de::DeValue;

use crate::gateway::objects::policy::{
    AcceptProxy, AdmissionSettings, BackendSettings, EndpointSettings, L4Policy, L4PolicySpec,
    ListenerSettings, MAX_ANCESTORS, RouteSettings, SocketSettings,
};
use crate::gateway::objects::reference::{ParentRef, TargetRef};
use crate::gateway::objects::{Objects, X_GROUP};
use crate::gateway::translate::index::{Index, key, seniority};
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::values::{
    AdmissionValues, BackendValues, EndpointRule, Fallback, ListenerValues, RouteValues,
    SocketValues,
};
use crate::gateway::translate::verdict::{Fault, Verdict};
use crate::gateway::translate::{checks, fallback, tables};
use crate::model::admission::read_range;
use crate::model::backend::LEAST_UPSTREAM_REST;
use crate::model::config::MAX_SESSIONS;
use crate::model::endpoint::MAX_WEIGHT;
use crate::table::routing::{OnUnavailable, ProxyVersion, SendProxy};
use crate::toml::backend::{BALANCES, FAST_PATHS, LEAST_QUEUE_TIMEOUT, MOST_AFTER, MOST_WAIT};
use crate::toml::endpoint::MOST_SESSIONS;
use crate::toml::listener::{ON_REFUSAL, ON_TRUNCATION, STARTTLS};
use crate::toml::reader::word;
use crate::toml::tls::protocol;
use crate::toml::values::{
    dns_name, duration, duration_from, exact_hostname, keepalive, range, source, user_timeout,
};
use crate::toml::{gone, proxy, route, socket_options};

/// Every policy with its values.
pub(super) struct Policies<'o> {
    /// Oldest first.
    all: Vec<Policy<'o>>,
    by_aim: BTreeMap<PolicyTarget<'o>, Vec<usize>>,
}

struct Policy<'o> {
    object: &'o L4Policy,
    values: Values<'o>,
    /// The policy's fault. A faulty policy has no effect, except for the clients that it keeps out.
    fault: Option<Fault>,
}

#[derive(Default)]
struct Values<'o> {
    listener: ListenerValues<'o>,
    route: RouteValues,
    backend: BackendValues,
}

/// The backends that policies' health checks do not check, and why. By the policy's index.
pub(super) type Unchecked = BTreeMap<usize, BTreeMap<&'static str, BTreeSet<String>>>;

/// What a policy's status says.
pub(super) struct PolicyStatus<'o> {
    pub(super) object: &'o L4Policy,
    pub(super) ancestors: Vec<(ParentRef, Verdict)>,
    /// Whether the policy's references resolve, if it has any.
    pub(super) resolved: Option<Verdict>,
    /// The message of ancestors at which the policy has no fault.
    pub(super) in_force: String,
}

/// A target of a policy: its kind, namespace, name and section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PolicyTarget<'a> {
    pub(super) kind: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) section: Option<&'a str>,
}

impl<'o> Policies<'o> {
    pub(super) fn of(objects: &'o Objects, settings: &Settings, index: &Index<'_>) -> Self {
        let mut all: Vec<_> = objects.policies.iter().map(Arc::as_ref).collect();
        all.sort_by(|a, b| seniority(&a.metadata).cmp(&seniority(&b.metadata)));
        let policy = |object: &'o L4Policy| match read(object, settings, index) {
            Ok(values) => Policy { object, values, fault: None },
            Err(why) => Policy { object, values: kept_out(&object.spec), fault: Some(why) },
        };
        let all: Vec<Policy<'o>> = all.into_iter().map(policy).collect();
        let mut by_aim: BTreeMap<PolicyTarget<'o>, Vec<usize>> = BTreeMap::new();
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

    /// The values for a listener. `aims` are the targets that mean the listener, most specific
    /// first.
    pub(super) fn listener(&self, aims: &[PolicyTarget<'_>]) -> ListenerValues<'o> {
        let mut values = ListenerValues::default();
        for at in self.at(aims) {
            values.fill(&at.listener);
        }
        values
    }

    /// The values for a route.
    pub(super) fn route(&self, aim: PolicyTarget<'_>) -> RouteValues {
        let mut values = RouteValues::default();
        for at in self.at(&[aim]) {
            values.fill(&at.route);
        }
        values
    }

    /// The protocols (ALPN) that a route asks for, or `None` for all others.
    pub(super) fn protocols(&self, kind: &str, route: &ObjectMeta) -> Vec<Option<String>> {
        let (namespace, name) = key(route);
        let values = self.route(PolicyTarget { kind, namespace, name, section: None });
        values.alpn.map_or_else(|| vec![None], |alpn| alpn.into_iter().map(Some).collect())
    }

    /// Whether a route gives the shares of backends without endpoints to its other backends.
    pub(super) fn passes_shares_on(&self, kind: &str, route: &ObjectMeta) -> bool {
        let (namespace, name) = key(route);
        let values = self.route(PolicyTarget { kind, namespace, name, section: None });
        values.on_unavailable == Some(OnUnavailable::Next)
    }

    /// The values for a backend.
    pub(super) fn backend(&self, aims: &[PolicyTarget<'_>]) -> BackendValues {
        let mut values = BackendValues::default();
        for at in self.at(aims) {
            values.fill(&at.backend);
        }
        values
    }

    /// The index of the policy that gives a backend its health check.
    pub(super) fn checking(&self, aims: &[PolicyTarget<'_>]) -> Option<usize> {
        let mut policies = aims.iter().flat_map(|aim| self.of_target(*aim)).copied();
        policies.find(|at| self.all[*at].values.backend.health_check.is_some())
    }

    fn at<'a>(&'a self, aims: &'a [PolicyTarget<'a>]) -> impl Iterator<Item = &'a Values<'o>> {
        aims.iter().flat_map(|aim| self.of_target(*aim)).map(|at| &self.all[*at].values)
    }

    /// The policies of a target, oldest first.
    fn of_target<'a>(&'a self, aim: PolicyTarget<'a>) -> &'a [usize] {
        self.by_aim.get(&aim).map_or(&[], Vec::as_slice)
    }

    /// The statuses of all policies. `gateways` gives the Gateways that a target reaches, or why
    /// the target does not exist.
    pub(super) fn statuses(
        &self,
        controller: &str,
        gateways: impl Fn(PolicyTarget<'_>) -> Result<Vec<(String, String)>, Fault>,
        (unchecked, index): (&Unchecked, &Index<'_>),
    ) -> Vec<PolicyStatus<'o>> {
        let mut statuses = Vec::new();
        for (at, policy) in self.all.iter().enumerate() {
            let mut ancestors: Vec<(ParentRef, Verdict)> = Vec::new();
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
                    let ancestor = ParentRef {
                        group: Some(crate::gateway::objects::GROUP.to_owned()),
                        kind: Some("Gateway".to_owned()),
                        namespace: Some(namespace),
                        name,
                        section_name: None,
                        port: None,
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
                let in_force = in_force(unchecked.get(&at));
                let mut resolved = fallback::resolved(policy.object, index);
                resolved.extend(checks::resolved(policy.object, index));
                let resolved = (!resolved.is_empty()).then(|| resolved.into_iter().collect());
                statuses.push(PolicyStatus {
                    object: policy.object,
                    ancestors,
                    resolved,
                    in_force,
                });
            }
        }
        statuses
    }

    /// Checks whether an older policy of the target sets some of the same fields.
    fn verdict(&self, at: usize, aim: PolicyTarget<'_>) -> Verdict {
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
                return Err(Fault::new("Conflicted", message));
            }
        }
        Ok(())
    }
}

/// The message of a policy without a fault.
fn in_force(unchecked: Option<&BTreeMap<&'static str, BTreeSet<String>>>) -> String {
    const MOST: usize = 3;
    let mut text = "in force".to_owned();
    for (why, backends) in unchecked.into_iter().flatten() {
        let named: Vec<_> = backends.iter().take(MOST).map(String::as_str).collect();
        let more = match backends.len().saturating_sub(MOST) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = named.join(", ");
        text += &format!("; backend.healthCheck does not check {named}{more}: {why}");
    }
    text
}

fn aim<'o>(policy: &'o L4Policy, target: &'o TargetRef) -> PolicyTarget<'o> {
    PolicyTarget {
        kind: &target.kind,
        namespace: key(&policy.metadata).0,
        name: &target.name,
        section: target.section_name.as_deref(),
    }
}

fn has_listeners(kind: &str) -> bool {
    matches!(kind, "Gateway" | "ListenerSet")
}

fn is_route(kind: &str) -> bool {
    matches!(kind, "TCPRoute" | "UDPRoute" | "TLSRoute" | "HTTPRoute")
}

/// Checks the group of a target. A target of a foreign group is not supported, whatever its kind.
fn right_group(target: &TargetRef) -> Verdict {
    let group = match target.kind.as_str() {
        "Service" => "",
        "XBackend" => X_GROUP,
        _ => crate::gateway::objects::GROUP,
    };
    if target.group == group {
        return Ok(());
    }
    let TargetRef { kind, name, .. } = target;
    let message =
        format!("there is no {kind} {name} of group \"{}\"; say \"{group}\"", target.group);
    Err(Fault::new("TargetNotFound", message))
}

/// The fields that a policy sets, such as `listener.idleTimeout`.
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
    /// The fields of this policy that have an effect.
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

    fn itself(&self, target: &TargetRef) -> ParentRef {
        ParentRef {
            group: Some(target.group.clone()),
            kind: Some(target.kind.clone()),
            namespace: Some(key(&self.object.metadata).0.to_owned()),
            name: target.name.clone(),
            section_name: target.section_name.clone(),
            port: None,
        }
    }

    fn has_ours(&self, controller: &str) -> bool {
        let ancestors = self.object.status.iter().flat_map(|status| &status.ancestors);
        ancestors.into_iter().any(|ancestor| ancestor.controller_name == controller)
    }
}

fn read<'o>(
    object: &'o L4Policy,
    settings: &Settings,
    index: &Index<'_>,
) -> Result<Values<'o>, Fault> {
    let no_route = object.spec.target_refs.iter().find(|target| !is_route(&target.kind));
    if let (Some(target), Some(_)) = (no_route, &object.spec.route) {
        let message = format!("route: a {} is none; say it of a TCPRoute, say", target.kind);
        return Err(Fault::new("Invalid", message));
    }
    let alpn = object.spec.route.as_ref().and_then(|route| route.alpn.as_ref());
    let blind = object.spec.target_refs.iter().find(|target| target.kind != "TLSRoute");
    if let (Some(target), Some(_)) = (blind, alpn) {
        let message = format!("route.alpn: a {} can't see it; say it of a TLSRoute", target.kind);
        return Err(Fault::new("Invalid", message));
    }
    let other = object.spec.target_refs.iter().find(|target| !has_listeners(&target.kind));
    if let (Some(target), Some(_)) = (other, &object.spec.listener) {
        let message = format!("listener: a {} has none; say it of a Gateway", target.kind);
        return Err(Fault::new("Invalid", message));
    }
    let listener = object.spec.listener.as_ref();
    let namespace = key(&object.metadata).0;
    let listener = listener.map(|given| read_listener(given, namespace, settings)).transpose();
    let route = object.spec.route.as_ref();
    let route = route.map(read_route).transpose();
    let backend = object.spec.backend.as_ref();
    let backend =
        backend.map(|given| read_backend(given, settings, (namespace, index))).transpose();
    let invalid = |part: &'static str| {
        move |message: String| Fault::new("Invalid", format!("{part}.{message}"))
    };
    Ok(Values {
        listener: listener.map_err(invalid("listener"))?.unwrap_or_default(),
        route: route.map_err(invalid("route"))?.unwrap_or_default(),
        backend: backend.map_err(invalid("backend"))?.unwrap_or_default(),
    })
}

/// The clients that a faulty policy keeps out. A fault elsewhere in the policy lets nobody in, and
/// if the ranges can't be read, all clients are kept out. The sources of PROXY headers are kept
/// too, because the headers say who a client is.
fn kept_out(spec: &L4PolicySpec) -> Values<'_> {
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
    let route = spec.route.as_ref().map(|given| {
        let admission = read(&given.admission);
        RouteValues { admission, ..RouteValues::default() }
    });
    Values {
        listener: listener.unwrap_or_default(),
        route: route.unwrap_or_default(),
        backend: BackendValues::default(),
    }
}

fn read_listener<'o>(
    given: &'o ListenerSettings,
    namespace: &'o str,
    settings: &Settings,
) -> Result<ListenerValues<'o>, String> {
    let least = duration_from(Duration::from_millis(100));
    let hello = text("helloTimeout", given.hello_timeout.as_ref(), duration)?;
    if given.silent.is_some() && hello == Some(0) {
        return Err("silent: needs helloTimeout, which is off here".to_owned());
    }
    let fallback =
        |given: &'o Option<_>| given.as_ref().map(|reference| Fallback { namespace, reference });
    Ok(ListenerValues {
        hello,
        default_hostname: text("defaultHostname", given.default_hostname.as_ref(), exact_hostname)?,
        starttls: text("starttls", given.starttls.as_ref(), word(&STARTTLS))?,
        not_tls: fallback(&given.not_tls),
        silent: fallback(&given.silent),
        on_refusal: text("onRefusal", given.on_refusal.as_ref(), word(&ON_REFUSAL))?,
        idle: text("idleTimeout", given.idle_timeout.as_ref(), duration)?,
        write_stall: text("writeStallTimeout", given.write_stall_timeout.as_ref(), duration)?,
        half_close: text("halfCloseTimeout", given.half_close_timeout.as_ref(), duration)?,
        lifetime: text("maxLifetime", given.max_lifetime.as_ref(), duration)?,
        on_truncation: text("onTruncation", given.on_truncation.as_ref(), word(&ON_TRUNCATION))?,
        flow_timeout: text("flowTimeout", given.flow_timeout.as_ref(), least)?,
        responses: number("responses", given.responses, 0..=65_535)?,
        dns_guard: given.dns_guard.as_ref().map(tables::read_dns_guard).transpose()?,
        max_sessions: number("maxSessions", given.max_sessions, 0..=MAX_SESSIONS)?,
        limit_source: given.limit_source.as_ref().map(tables::read_limit_source).transpose()?,
        limit: given.limit.as_ref().map(tables::read_listener_limit).transpose()?,
        accept_proxy: given.accept_proxy.as_ref().map(read_accept_proxy).transpose()?,
        socket: read_socket(&given.socket, settings)?,
        admission: read_admission(&given.admission)?,
    })
}

fn read_route(given: &RouteSettings) -> Result<RouteValues, String> {
    let alpn = given.alpn.as_ref();
    if alpn.is_some_and(Vec::is_empty) {
        return Err("alpn: names no protocol".to_owned());
    }
    for (nth, name) in alpn.into_iter().flatten().enumerate() {
        text(&format!("alpn[{nth}]"), Some(name), protocol)?;
        if given.alpn.iter().flatten().take(nth).any(|earlier| earlier == name) {
            return Err(format!("alpn[{nth}]: names protocol \"{name}\" twice"));
        }
    }
    let on_unavailable = given.on_unavailable.as_ref();
    Ok(RouteValues {
        balance: text("balance", given.balance.as_ref(), word(&route::BALANCES))?,
        on_unavailable: text("onUnavailable", on_unavailable, word(&route::ON_UNAVAILABLE))?,
        alpn: given.alpn.clone(),
        limit_source: given.limit_source.as_ref().map(tables::read_limit_source).transpose()?,
        limit: given.limit.as_ref().map(tables::read_limit).transpose()?,
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

fn read_backend(
    given: &BackendSettings,
    settings: &Settings,
    (namespace, index): (&str, &Index<'_>),
) -> Result<BackendValues, String> {
    let sockets = word(&[("connected", false), ("shared", true)]);
    let [rest, queue_timeout] = [LEAST_UPSTREAM_REST, LEAST_QUEUE_TIMEOUT].map(duration_from);
    let (check, limit_of_each) = (given.health_check.as_ref(), given.endpoint_limit.as_ref());
    let mut values = BackendValues {
        balance: text("balance", given.balance.as_ref(), word(&BALANCES))?,
        connect_timeout: text("connectTimeout", given.connect_timeout.as_ref(), duration)?,
        connect_attempts: number("connectAttempts", given.connect_attempts, 1..=8)?,
        source: None,
        shared_sockets: text("upstreamSockets", given.upstream_sockets.as_ref(), sockets)?,
        upstream_rest: text("upstreamRest", given.upstream_rest.as_ref(), rest)?,
        fast_path: text("fastPath", given.fast_path.as_ref(), word(&FAST_PATHS[..2]))?,
        fast_path_after: number("fastPathAfter", given.fast_path_after, 1..=MOST_AFTER)?,
        send_proxy: read_send_proxy(given)?,
        transparent: given.transparent,
        endpoint_max_sessions: number(
            "endpointMaxSessions",
            given.endpoint_max_sessions,
            1..=MOST_SESSIONS,
        )?,
        queue: number("queue", given.queue, 0..=MOST_WAIT)?,
        queue_timeout: text("queueTimeout", given.queue_timeout.as_ref(), queue_timeout)?,
        limit: given.limit.as_ref().map(tables::read_limit).transpose()?,
        endpoint_limit: limit_of_each.map(tables::read_endpoint_limit).transpose()?,
        endpoints: given.endpoints.as_deref().map(read_endpoints).transpose()?,
        health_check: check.map(|check| checks::read(check, namespace, index)).transpose()?,
        eject: given.eject.as_ref().map(tables::read_eject).transpose()?,
        on_down: text("onDown", given.on_down.as_ref(), word(&gone::WORDS))?,
        on_removed: text("onRemoved", given.on_removed.as_ref(), word(&gone::WORDS))?,
        close_after: text("closeAfter", given.close_after.as_ref(), duration)?,
        failback: given.failback,
        slow_start: text("slowStart", given.slow_start.as_ref(), duration)?,
        socket: read_socket(&given.socket, settings)?,
    };
    if let Some(given) = given.source.as_ref().filter(|given| !given.is_empty()) {
        let read = |from: &String| text("source", Some(from), source);
        let sources = given.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        values.source = Some(sources.into_iter().flatten().collect());
    }
    Ok(values)
}

fn read_endpoints(given: &[EndpointSettings]) -> Result<Vec<EndpointRule>, String> {
    let read = |(nth, given): (usize, &EndpointSettings)| {
        let field = |name: &str| format!("endpoints[{nth}].{name}");
        let EndpointSettings { pod, node, zone, address, weight, backup, max_sessions } = given;
        if [pod, node, zone, address].iter().all(|name| name.is_none()) {
            return Err(format!("endpoints[{nth}]: give pod, node, zone or address"));
        }
        if weight.is_none() && backup.is_none() && max_sessions.is_none() {
            let message = "says nothing; give weight, backup or maxSessions";
            return Err(format!("endpoints[{nth}]: {message}"));
        }
        let (pod, node, zone) = (pod.clone(), node.clone(), zone.clone());
        let address = text(&field("address"), address.as_ref(), host)?;
        let weight = number(&field("weight"), *weight, 0..=MAX_WEIGHT)?;
        let max_sessions = number(&field("maxSessions"), *max_sessions, 0..=MOST_SESSIONS)?;
        Ok(EndpointRule { pod, node, zone, address, weight, backup: *backup, max_sessions })
    };
    given.iter().enumerate().map(read).collect()
}

/// An IP address or a name, in the form that is compared.
fn host(value: &DeValue<'_>) -> Result<String, String> {
    let text = value.as_str().unwrap_or_default();
    let ip = text.parse::<IpAddr>().map(|ip| ip.to_string());
    ip.or_else(|_| dns_name(text))
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

fn read_socket(given: &SocketSettings, settings: &Settings) -> Result<SocketValues, String> {
    let congestion = |value: &DeValue<'_>| socket_options::congestion(value, &settings.machine);
    Ok(SocketValues {
        nodelay: given.nodelay,
        keepalive: text("keepalive", given.keepalive.as_ref(), keepalive)?,
        user_timeout: text("userTimeout", given.user_timeout.as_ref(), user_timeout)?,
        congestion: text("congestion", given.congestion.as_ref(), congestion)?,
    })
}

/// Reads a text with the reader of the TOML file.
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
