//! Makes the report for each object: its status, without the parts that only the data plane can
//! decide.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use kube::api::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::gateway::objects::policy::MAX_ANCESTORS;
use crate::gateway::objects::reference::ParentRef;
use crate::gateway::objects::{Bundle, GROUP, Gateway, GatewayClass, Objects};
use crate::gateway::status::{Kind, SUPERSEDED, StatusOf};
use crate::gateway::translate::backend_tls::BackendTls;
use crate::gateway::translate::backends::{self, Empty};
use crate::gateway::translate::fallback::Fallbacks;
use crate::gateway::translate::index::{Index, ObjectKey, key};
use crate::gateway::translate::leads::Leads;
use crate::gateway::translate::listeners::{self, Claim, Entry, Gate, Listeners, Protocol, Set};
use crate::gateway::translate::policy::{Policies, PolicyStatus, PolicyTarget, Unchecked};
use crate::gateway::translate::report::{
    Condition, ObjectReport, Part, Says, condition, not_all_valid,
};
use crate::gateway::translate::routes::{Parent, Routed};
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::verdict::{Fault, Verdict};

/// The features of a GatewayClass (GEP-2162), sorted. There are none of HTTPRoute, because HTTP is
/// forwarded as bytes.
const FEATURES: [&str; 13] = [
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayInfrastructure",
    "GatewayInfrastructurePropagation",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

/// The facts of a translation.
pub(super) struct Known<'a, 'o> {
    pub(super) objects: &'o Objects,
    pub(super) settings: &'a Settings,
    pub(super) index: &'a Index<'o>,
    pub(super) policies: &'a Policies<'o>,
    pub(super) backend_tls: &'a BackendTls<'o>,
    pub(super) listeners: &'a Listeners<'o>,
    pub(super) routes: &'a [Routed<'o>],
    pub(super) unchecked: &'a Unchecked,
    pub(super) fallbacks: &'a Fallbacks<'o>,
    pub(super) leads: Leads<'o>,
    pub(super) empty: RefCell<Empty<'o>>,
}

impl<'o> Known<'_, 'o> {
    /// Sorted by kind, namespace and name.
    pub(super) fn reports(&self) -> Vec<ObjectReport> {
        let mut reports = Vec::new();
        for class in &self.objects.gateway_classes {
            if class.spec.controller_name == self.settings.controller_name {
                reports.push(self.class(class));
            }
        }
        for at in 0..self.listeners.gates.len() {
            reports.push(self.gateway(at));
        }
        for at in 0..self.listeners.sets.len() {
            reports.push(self.set(at));
        }
        reports.extend(self.unserved());
        reports.extend(self.routes.iter().map(|route| self.route(route)));
        reports.extend(self.backend_tls_policies());
        reports.extend(self.l4_policies());
        reports.extend(self.x_backends());
        reports.sort_by(|a, b| {
            let by = |report: &ObjectReport| {
                (report.of.kind, report.of.namespace.clone(), report.of.name.clone())
            };
            by(a).cmp(&by(b))
        });
        reports
    }

    pub(super) fn report(&self, kind: Kind, metadata: &ObjectMeta) -> ObjectReport {
        let (namespace, name) = key(metadata);
        let of = StatusOf {
            kind,
            namespace: (kind != Kind::GatewayClass).then(|| namespace.to_owned()),
            name: name.to_owned(),
            uid: metadata.uid.clone(),
            generation: metadata.generation.unwrap_or(0),
            controller: Arc::from(self.settings.controller_name.as_str()),
            status: Value::Null,
        };
        ObjectReport {
            of,
            fields: Map::new(),
            conditions: None,
            listeners: None,
            parts: None,
            passing: Vec::new(),
        }
    }

    fn class(&self, class: &GatewayClass) -> ObjectReport {
        let mut report = self.report(Kind::GatewayClass, &class.metadata);
        let version = self.objects.bundle.as_ref().map_or(Ok(()), is_supported);
        let message = "Ringway serves Gateways of this class";
        report.conditions = Some(vec![
            condition("Accepted", listeners::accepts(class), "Accepted", message),
            condition(
                "SupportedVersion",
                version,
                "SupportedVersion",
                "the installed Gateway API is one that Ringway knows",
            ),
        ]);
        let features = FEATURES.map(|name| json!({"name": name}));
        report.fields.insert("supportedFeatures".into(), features.to_vec().into());
        report
    }

    fn gateway(&self, at: usize) -> ObjectReport {
        let gate = &self.listeners.gates[at];
        let mut report = self.report(Kind::Gateway, &gate.object.metadata);
        let own: Vec<_> = self.entries(at, None).collect();
        let shown = gate.addresses.as_ref().map_or(&[][..], |assigned| &assigned.shown);
        let shown: Vec<_> =
            shown.iter().map(|a| json!({"type": "IPAddress", "value": a.to_string()})).collect();
        report.fields.insert("addresses".into(), shown.into());
        let sets = &self.listeners.sets;
        let sets = &sets[sets.partition_point(|set| set.gate < at)..];
        let own_sets = sets.iter().take_while(|set| set.gate == at);
        let attached = own_sets.filter(|set| set.accepted.is_ok()).count();
        report.fields.insert("attachedListenerSets".into(), attached.into());
        let mut conditions = vec![self.accepted(&gate.accepted, &own), programmed(gate, &own)];
        if let Err(why) = &gate.certificate_resolved {
            conditions.push(Condition { kind: "ResolvedRefs", says: Says::False(why.clone()) });
        } else if let Some(why) = own.iter().find_map(|entry| entry.resolved.as_ref().err()) {
            let message = format!("a listener's references do not resolve: {}", why.message);
            let why = Fault::new("ListenersNotResolved", message);
            conditions.push(Condition { kind: "ResolvedRefs", says: Says::False(why) });
        } else {
            let message = "every reference of the listeners resolves";
            conditions.push(condition("ResolvedRefs", Ok(()), "ResolvedRefs", message));
        }
        report.conditions = Some(conditions);
        report.passing = expired(&own);
        report.listeners = Some(own.into_iter().map(|entry| self.listener(entry)).collect());
        report
    }

    fn set(&self, at: usize) -> ObjectReport {
        let set = &self.listeners.sets[at];
        let mut report = self.report(Kind::ListenerSet, &set.object.metadata);
        let own: Vec<_> = self.entries(set.gate, Some(at)).collect();
        report.conditions = Some(vec![
            self.accepted(&set.accepted, &own),
            set_programmed(set, &self.listeners.gates[set.gate], &own),
        ]);
        report.passing = expired(&own);
        report.listeners = Some(own.into_iter().map(|entry| self.listener(entry)).collect());
        report
    }

    /// The Accepted condition of a Gateway or ListenerSet. Some invalid listeners do not change it.
    fn accepted(&self, verdict: &Verdict, own: &[&Entry<'_>]) -> Condition {
        let by = listeners::accepted_by(self.settings);
        if verdict.is_ok() && own.iter().all(|entry| entry.is_valid()) {
            let names = own.iter().flat_map(|entry| &entry.names).cloned().collect();
            return Condition { kind: "Accepted", says: Says::Valid(names, by) };
        }
        condition("Accepted", verdict.clone(), "ListenersNotValid", &not_all_valid(&by))
    }

    /// Reports for Gateways and ListenerSets that are not served and that no other controller has.
    /// Their old statuses must go, except for the addresses, which are reserved.
    fn unserved(&self) -> Vec<ObjectReport> {
        let mut reports = Vec::new();
        for gateway in &self.objects.gateways {
            let status = gateway.status.as_ref();
            reports.extend(self.why_unserved(gateway, status).map(|why| {
                let mut report = self.report(Kind::Gateway, &gateway.metadata);
                let had = status.map(|status| status["addresses"].clone());
                let had = had.filter(Value::is_array).unwrap_or_else(|| json!([]));
                report.fields.insert("addresses".into(), had);
                report.fields.insert("attachedListenerSets".into(), 0.into());
                report.wait(&why)
            }));
        }
        for set in &self.objects.listener_sets {
            let status = set.status.as_ref();
            let Some(parent) = listeners::parent(set) else { continue };
            let why = match self.index.gateways.get(&parent) {
                Some(gateway) => self.why_unserved(gateway, status),
                None if listeners::was_ours(status, self.settings) => {
                    Some("there is no such Gateway".to_owned())
                }
                None => None,
            };
            reports.extend(why.map(|why| self.report(Kind::ListenerSet, &set.metadata).wait(&why)));
        }
        reports
    }

    /// Why a Gateway, or an object of the Gateway, waits for a controller, if Ringway is to say so.
    /// `status` is the object's status.
    fn why_unserved(&self, gateway: &Gateway, status: Option<&Value>) -> Option<String> {
        let class = &gateway.spec.gateway_class_name;
        match listeners::claim(gateway, self.objects, self.settings) {
            Claim::Waits => Some(format!("GatewayClass {class} is not accepted")),
            Claim::Nobodys if listeners::was_ours(status, self.settings) => {
                Some(format!("there is no GatewayClass {class}"))
            }
            Claim::Nobodys | Claim::Ours | Claim::Theirs => None,
        }
    }

    fn entries(&self, gate: usize, set: Option<usize>) -> impl Iterator<Item = &Entry<'_>> {
        self.listeners.entries[self.listeners.own(gate, set)].iter()
    }

    fn listener(&self, entry: &Entry<'_>) -> Part {
        let mut conditions = Vec::new();
        let plain_hostname = entry.hostname.is_some() && entry.tls.is_none();
        let http = entry.spec.protocol == "HTTP" && plain_hostname;
        let message = if http {
            "accepted; all HTTP listeners of the port are one stream of bytes, so the hostname is \
             not looked at"
        } else {
            "accepted"
        };
        let names = || entry.names.iter().cloned().collect();
        conditions.push(match entry.accepted.clone() {
            Ok(()) => {
                let says = Says::Opened(names(), message, self.hint(entry));
                Condition { kind: "Accepted", says }
            }
            Err(why) => Condition { kind: "Accepted", says: Says::False(why) },
        });
        let mut message = vec!["every reference resolves"];
        message.extend(entry.expired.iter().map(String::as_str));
        let (resolved, message) = (entry.resolved.clone(), message.join("; "));
        conditions.push(condition("ResolvedRefs", resolved, "ResolvedRefs", &message));
        if let Err(why) = &entry.conflict {
            let says = Says::True(why.reason, why.message.clone());
            conditions.push(Condition { kind: "Conflicted", says });
        } else {
            let message = "no other listener is in the way".to_owned();
            let says = Says::False(Fault::new("NoConflicts", message));
            conditions.push(Condition { kind: "Conflicted", says });
        }
        let programmed = if let Err(why) = &entry.conflict {
            Says::False(why.clone())
        } else if !entry.is_valid() {
            let message = "the listener is not valid: see Accepted and ResolvedRefs".to_owned();
            Says::False(Fault::new("Invalid", message))
        } else if entry.names.is_empty() {
            let message = "what the listener belongs to is not programmed".to_owned();
            Says::False(Fault::new("Pending", message))
        } else {
            Says::Served(names())
        };
        conditions.push(Condition { kind: "Programmed", says: programmed });
        let fields = json!({
            "name": entry.spec.name,
            "supportedKinds": entry.kinds,
            "attachedRoutes": entry.attached,
        });
        Part { fields, title: format!("listener {}", entry.spec.name), conditions }
    }

    /// A hint for a listener that could not be opened because Ringway itself has the port.
    fn hint(&self, entry: &Entry<'_>) -> Option<String> {
        let port = self.settings.base.admin.map(|admin| admin.port())?;
        let own = i32::from(port) == entry.spec.port && entry.protocol != Some(Protocol::Udp);
        own.then(|| {
            format!(
                "; port {port} is that of Ringway's own admin API: take another here, or there \
                 (admin.address)"
            )
        })
    }

    fn route(&self, route: &Routed<'o>) -> ObjectReport {
        let mut report = self.report(route.kind, &route.object.metadata);
        let refused = self.refused(route);
        let message = refused.as_ref().map(|(_, message)| message.as_str());
        let parents = route.parents.iter().map(|parent| self.parent(route, parent, message));
        report.parts = Some(("parents", parents.collect()));
        if route.parents.iter().any(|parent| parent.accepted.is_ok()) {
            report.passing.extend(refused);
        }
        report
    }

    /// Why sessions are refused although every reference resolves.
    fn refused(&self, route: &Routed<'o>) -> Option<(&'static str, String)> {
        if route.backends.iter().all(|backend| backend.weight == 0) {
            let what = match route.backends.is_empty() {
                true => "no backend is named",
                false => "all weights are 0",
            };
            return Some(("NoBackends", format!("{what}, so every session is refused")));
        }
        let (mut empty, mut serving) = (Vec::new(), false);
        for backend in route.backends.iter().filter(|backend| backend.weight > 0) {
            let Ok(destination) = &backend.destination else { continue };
            let zone = self.settings.zone.as_deref();
            let why = self.empty.borrow_mut().why(*destination, zone, self.index);
            match why {
                Some(why) => empty.push((destination, why)),
                None => serving = true,
            }
        }
        let passed_on =
            serving && self.policies.passes_shares_on(route.kind.name(), &route.object.metadata);
        let message = |(destination, why): (_, Rc<str>)| {
            backends::empty_message(destination, &why, passed_on)
        };
        let messages: BTreeSet<String> = empty.into_iter().map(message).collect();
        let message = messages.into_iter().collect::<Vec<_>>().join("; ");
        (!message.is_empty()).then_some(("NoEndpoints", message))
    }

    fn parent(&self, route: &Routed<'_>, parent: &Parent, refused: Option<&str>) -> Part {
        let message = if route.kind == Kind::HttpRoute {
            "accepted: its bytes are forwarded as they come"
        } else {
            "accepted"
        };
        let resolved = "every backendRef resolves".to_owned();
        let resolved = match refused.filter(|_| parent.accepted.is_ok()) {
            Some(refused) => format!("{resolved}, but {refused}"),
            None => resolved,
        };
        let mut conditions = vec![
            condition("Accepted", parent.accepted.clone(), "Accepted", message),
            condition("ResolvedRefs", route.resolved.clone(), "ResolvedRefs", &resolved),
        ];
        if route.dropped_rules > 0 && parent.accepted.is_ok() {
            let count = route.dropped_rules;
            let message = format!(
                "Dropped Rule: only the first rule is served, {count} behind it are not; make \
                 them routes of their own"
            );
            let says = Says::True("UnsupportedValue", message);
            conditions.push(Condition { kind: "PartiallyInvalid", says });
        }
        if let Some((_, winner)) = parent.superseded.first_key_value() {
            let names = parent.superseded.keys().map(|at| &self.listeners.entries[*at].spec.name);
            let names: Vec<_> = names.map(String::as_str).collect();
            let message = format!(
                "gets no traffic of {}: {winner} is older and has it; this route takes over as \
                 soon as that one is gone",
                names.join(", ")
            );
            let says = Says::True("OlderRoute", message);
            conditions.push(Condition { kind: SUPERSEDED, says });
        }
        let fields = json!({
            "parentRef": parent.reference,
            "controllerName": self.settings.controller_name,
        });
        Part { fields, title: format!("parent {}", parent.reference.name), conditions }
    }

    fn backend_tls_policies(&self) -> Vec<ObjectReport> {
        let mut reports = Vec::new();
        for (at, policy) in self.backend_tls.all.iter().enumerate() {
            let gateways = self.backend_tls_gateways(at, policy);
            let status = policy.object.status.as_ref();
            let had = status.and_then(|status| status["ancestors"].as_array());
            let mut had = had.into_iter().flatten();
            let ours = had.any(|old| old["controllerName"] == *self.settings.controller_name);
            if gateways.is_empty() && !ours {
                continue;
            }
            let mut report = self.report(Kind::BackendTlsPolicy, &policy.object.metadata);
            let part = |((namespace, name), accepted): ((String, String), Verdict)| {
                let ancestor = json!({
                    "group": GROUP, "kind": "Gateway", "namespace": namespace, "name": name,
                });
                let resolved = policy.resolved.clone();
                let conditions = vec![
                    condition("Accepted", accepted, "Accepted", "accepted"),
                    condition("ResolvedRefs", resolved, "ResolvedRefs", "every reference resolves"),
                ];
                self.ancestor(ancestor, &name, conditions)
            };
            let parts = gateways.into_iter().take(MAX_ANCESTORS).map(part).collect();
            report.parts = Some(("ancestors", parts));
            reports.push(report);
        }
        reports
    }

    /// The Gateways with routes to a target of a policy, each with a verdict: the first fault of
    /// the targets that the Gateway reaches, of targets that nobody can reach, or of the whole
    /// policy.
    fn backend_tls_gateways(
        &self,
        at: usize,
        policy: &crate::gateway::translate::backend_tls::Policy<'_>,
    ) -> BTreeMap<(String, String), Verdict> {
        let mut gateways = BTreeMap::new();
        let mut everywhere = Ok(());
        for target in &policy.targets {
            let (namespace, name, _) = target.service;
            let reached = self.gateways_of_backend("Service", (namespace, name), |of| {
                self.backend_tls.winner(of) == Some(at) || target.accepted.is_err()
            });
            if reached.is_empty() {
                everywhere = everywhere.and_then(|()| target.accepted.clone());
            }
            for gateway in reached {
                let known = gateways.entry(gateway).or_insert(Ok(()));
                *known = known.clone().and_then(|()| target.accepted.clone());
            }
        }
        let everywhere = everywhere.and_then(|()| policy.read.clone().map(drop));
        for known in gateways.values_mut() {
            *known = known.clone().and_then(|()| everywhere.clone());
        }
        gateways
    }

    fn l4_policies(&self) -> Vec<ObjectReport> {
        let controller = &self.settings.controller_name;
        let reached = |aim: PolicyTarget<'_>| self.reached(aim);
        let statuses = self.policies.statuses(controller, reached, (self.unchecked, self.index));
        let report = |status: PolicyStatus<'_>| {
            let PolicyStatus { object, ancestors, resolved, in_force } = status;
            let mut report = self.report(Kind::L4Policy, &object.metadata);
            let part = |(ancestor, verdict): (ParentRef, Verdict)| {
                let mut conditions = vec![condition("Accepted", verdict, "Accepted", &in_force)];
                conditions.extend(resolved.clone().map(|resolved| {
                    let message = "every reference resolves";
                    condition("ResolvedRefs", resolved, "ResolvedRefs", message)
                }));
                self.ancestor(json!(ancestor), &ancestor.name, conditions)
            };
            report.parts = Some(("ancestors", ancestors.into_iter().map(part).collect()));
            report
        };
        statuses.into_iter().map(report).collect()
    }

    fn ancestor(&self, ancestor: Value, name: &str, conditions: Vec<Condition>) -> Part {
        let controller = &self.settings.controller_name;
        let fields = json!({"ancestorRef": ancestor, "controllerName": controller});
        Part { fields, title: format!("ancestor {name}"), conditions }
    }

    /// The Gateways that the target of a policy belongs to.
    fn reached(&self, aim: PolicyTarget<'_>) -> Result<Vec<(String, String)>, Fault> {
        let PolicyTarget { kind, namespace, name, section } = aim;
        let wanted = (namespace, name);
        let missing = || {
            let section = section.map_or_else(String::new, |section| format!(", {section}"));
            Fault::new("TargetNotFound", format!("there is no {kind} {name}{section}"))
        };
        match kind {
            "Gateway" => {
                let at = self.listeners.gate_at(wanted).ok_or_else(missing)?;
                self.has_own(at, None, section).unwrap_or_else(|| Err(missing()))?;
                Ok(vec![self.gateway_name(at)])
            }
            "ListenerSet" => {
                let at = self.listeners.set_at(wanted).ok_or_else(missing)?;
                let gate = self.listeners.sets[at].gate;
                self.has_own(gate, Some(at), section).unwrap_or_else(|| Err(missing()))?;
                Ok(vec![self.gateway_name(gate)])
            }
            "Service" => {
                let service = self.index.services.get(&wanted).ok_or_else(missing)?;
                let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref());
                let mut names = ports.into_iter().flatten().map(|port| port.name.as_deref());
                if section.is_some() && !names.any(|name| name == section) {
                    return Err(missing());
                }
                let all = self.gateways_of_backend(kind, wanted, |of| {
                    section.is_none_or(|section| of.port_name() == Some(section))
                });
                Ok(all.into_iter().collect())
            }
            "XBackend" => {
                let known = self.index.externals.contains_key(&wanted) && section.is_none();
                let all = known.then(|| self.gateways_of_backend(kind, wanted, |_| true));
                Ok(all.ok_or_else(missing)?.into_iter().collect())
            }
            kind => {
                let route = self.leads.routes.get(&(kind, wanted)).map(|at| &self.routes[*at]);
                // A part of a route can't be a target.
                let route = route.filter(|_| section.is_none());
                Ok(self.gateways_of(route.ok_or_else(missing)?).into_iter().collect())
            }
        }
    }

    /// Whether a policy can be in force for a Gateway or ListenerSet, or for one section of it.
    /// `None`: there is no such section.
    fn has_own(&self, gate: usize, set: Option<usize>, section: Option<&str>) -> Option<Verdict> {
        let Some(section) = section else { return Some(Ok(())) };
        let entries = &self.listeners.entries;
        let at = self.listeners.own(gate, set).find(|at| entries[*at].spec.name == section)?;
        let place = self.listeners.place(at);
        if place == at {
            return Some(Ok(()));
        }
        let (port, other) = (entries[at].spec.port, &entries[place].spec.name);
        let message = format!(
            "{section} shares port {port} with {other}, and the settings of {other} hold for \
             both: name {other}"
        );
        Some(Err(Fault::new("Invalid", message)))
    }

    fn gateways_of_backend(
        &self,
        kind: &str,
        key: ObjectKey<'_>,
        counts: impl Fn(&backends::Destination<'_>) -> bool,
    ) -> BTreeSet<(String, String)> {
        let leads_there = |route: &&Routed<'_>| {
            let found =
                route.backends.iter().filter_map(|backend| backend.destination.as_ref().ok());
            found.into_iter().any(|of| of.kind() == kind && of.object == key && counts(of))
        };
        let routes = self.leads.to_backends.get(&(kind, key));
        let routes = routes.into_iter().flatten().map(|at| &self.routes[*at]);
        let by_routes = routes.filter(leads_there).flat_map(|route| self.gateways_of(route));
        let used = self.fallbacks.get(&(kind, key)).into_iter().flatten();
        let used = used.filter(|(of, _)| counts(of));
        by_routes.chain(used.map(|(_, gate)| self.gateway_name(*gate))).collect()
    }

    pub(super) fn gateways_of(&self, route: &Routed<'_>) -> BTreeSet<(String, String)> {
        let entries = route.parents.iter().flat_map(|parent| &parent.entries);
        entries.map(|at| self.gateway_name(self.listeners.entries[*at].gate)).collect()
    }

    pub(super) fn gateway_name(&self, gate: usize) -> (String, String) {
        let (namespace, name) = key(&self.listeners.gates[gate].object.metadata);
        (namespace.to_owned(), name.to_owned())
    }
}

/// Whether the CRDs' version is supported. GA came with v1.5 (TLSRoute, ListenerSet) and v1.6
/// (TCPRoute, UDPRoute). Older versions have them as alpha, which reads alike. A later major
/// version may not.
fn is_supported(bundle: &Bundle) -> Verdict {
    if bundle.version.starts_with("v1.") {
        return Ok(());
    }
    let message = format!("the installed Gateway API is {}; Ringway knows v1", bundle.version);
    Err(Fault::new("UnsupportedVersion", message))
}

/// Events for expired certificates.
fn expired(own: &[&Entry<'_>]) -> Vec<(&'static str, String)> {
    let all = own.iter().flat_map(|entry| {
        let name = &entry.spec.name;
        entry.expired.iter().map(move |what| format!("listener {name}: {what}"))
    });
    all.map(|message| ("CertificateExpired", message)).collect()
}

fn programmed(gate: &Gate<'_>, own: &[&Entry<'_>]) -> Condition {
    let says = match (&gate.accepted, &gate.addresses) {
        (Err(_), _) => {
            let message = "the Gateway is not accepted: see Accepted".to_owned();
            Says::False(Fault::new("Invalid", message))
        }
        (Ok(()), Err(why)) => Says::False(why.clone()),
        (Ok(()), Ok(_)) => served(own),
    };
    Condition { kind: "Programmed", says }
}

fn set_programmed(set: &Set<'_>, gate: &Gate<'_>, own: &[&Entry<'_>]) -> Condition {
    let says = match (&set.accepted, &gate.addresses) {
        (Err(why), _) | (Ok(()), Err(why)) => Says::False(why.clone()),
        (Ok(()), Ok(_)) => served(own),
    };
    Condition { kind: "Programmed", says }
}

fn served(own: &[&Entry<'_>]) -> Says {
    Says::SomeServed(own.iter().flat_map(|entry| &entry.names).cloned().collect())
}
