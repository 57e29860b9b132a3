//! Doubts about objects in files that have no effect although their statuses do not say so, because
//! another controller may serve them, or others may make the missing parts. In a cluster that is
//! normal. An operator who gives Ringway files wants the objects served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::api::ObjectMeta;
use serde_json::Value;

use crate::gateway::objects::reference::ParentRef;
use crate::gateway::objects::{GROUP, Gateway, ListenerSet, Objects, Route};
use crate::gateway::status::{Kind, StatusOf};
use crate::gateway::translate::backends::{self, Empty};
use crate::gateway::translate::index::{Index, ObjectKey, key};
use crate::gateway::translate::listeners::{self, Claim};
use crate::gateway::translate::party::Party;
use crate::gateway::translate::policy::Policies;
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::x_backends;
use crate::model::place::Hints;

/// An object, by its group, kind, namespace and name, and the reason why it has no effect.
pub(crate) struct Doubt {
    pub(crate) object: [String; 4],
    /// `FIELD: MESSAGE`.
    pub(crate) message: String,
}

/// `statuses` are the statuses of the objects.
pub(crate) fn of(objects: &Objects, settings: &Settings, statuses: &[StatusOf]) -> Vec<Doubt> {
    let told = statuses.iter().map(|of| {
        let namespace = of.namespace.as_deref().unwrap_or("default");
        ((of.kind, namespace, of.name.as_str()), &of.status)
    });
    let mut index = Index::of(objects);
    index.external_names = settings.external_names;
    index.externals = x_backends::read_all(objects, &index);
    let policies = Policies::of(objects, settings, &index);
    let mut asked = Asked {
        objects,
        settings,
        index,
        policies,
        told: told.collect(),
        empty: Empty::default(),
        hints: Hints::default(),
        doubts: Vec::new(),
    };
    for gateway in &objects.gateways {
        asked.gateway(gateway);
    }
    for set in &objects.listener_sets {
        asked.listener_set(set);
    }
    let kinds = [
        (Kind::TcpRoute, &objects.tcp_routes),
        (Kind::UdpRoute, &objects.udp_routes),
        (Kind::TlsRoute, &objects.tls_routes),
        (Kind::HttpRoute, &objects.http_routes),
    ];
    for (kind, routes) in kinds {
        routes.iter().for_each(|route| asked.route(kind, route));
    }
    for policy in &objects.backend_tls_policies {
        asked.policy(Kind::BackendTlsPolicy, &policy.metadata);
    }
    for policy in &objects.policies {
        asked.policy(Kind::L4Policy, &policy.metadata);
    }
    asked.slices();
    asked.doubts
}

struct Asked<'a> {
    objects: &'a Objects,
    settings: &'a Settings,
    index: Index<'a>,
    policies: Policies<'a>,
    told: BTreeMap<(Kind, &'a str, &'a str), &'a Value>,
    /// By Service, port and protocol. Many routes may lead to one Service.
    empty: Empty<'a>,
    hints: Hints,
    doubts: Vec<Doubt>,
}

impl<'a> Asked<'a> {
    fn doubt(&mut self, kind: Kind, metadata: &ObjectMeta, message: String) {
        self.doubt_of(kind.group(), kind.name(), metadata, message);
    }

    fn doubt_of(&mut self, group: &str, kind: &str, metadata: &ObjectMeta, message: String) {
        let (namespace, name) = key(metadata);
        let object = [group, kind, namespace, name].map(str::to_owned);
        self.doubts.push(Doubt { object, message });
    }

    fn told(&self, kind: Kind, metadata: &ObjectMeta) -> Option<&'a Value> {
        let (namespace, name) = key(metadata);
        self.told.get(&(kind, namespace, name)).copied()
    }

    fn gateway(&mut self, gateway: &Gateway) {
        let class = gateway.spec.gateway_class_name.as_str();
        let classes = || {
            let own = self.objects.gateway_classes.iter();
            let own = own.filter(|c| c.spec.controller_name == self.settings.controller_name);
            own.filter_map(|class| class.metadata.name.as_deref())
        };
        let why = match listeners::claim(gateway, self.objects, self.settings) {
            Claim::Ours => return self.listeners(Kind::Gateway, &gateway.metadata),
            // The status of the class has the reason.
            Claim::Waits => return,
            Claim::Nobodys => {
                let near = self.hints.did_you_mean(class, classes());
                format!("there is no GatewayClass {class}{near}")
            }
            Claim::Theirs => {
                let own: Vec<_> = classes().collect();
                let own = if own.is_empty() { "none".to_owned() } else { own.join(", ") };
                format!(
                    "GatewayClass {class} is another controller's; Ringway's classes are those \
                     with the controllerName {}: {own}",
                    self.settings.controller_name
                )
            }
        };
        let message = format!("spec.gatewayClassName: {why}; nothing of the Gateway is served");
        self.doubt(Kind::Gateway, &gateway.metadata, message);
    }

    fn listener_set(&mut self, set: &ListenerSet) {
        if self.told(Kind::ListenerSet, &set.metadata).is_some() {
            return self.listeners(Kind::ListenerSet, &set.metadata);
        }
        let message = match listeners::parent(set) {
            None => "is no Gateway".to_owned(),
            Some((namespace, name)) => {
                let near = self.near((namespace, name), Kind::Gateway);
                match self.index.gateways.contains_key(&(namespace, name)) {
                    true => format!("Gateway {namespace}/{name} is not served"),
                    false => format!("there is no Gateway {namespace}/{name}{near}"),
                }
            }
        };
        let message = format!("spec.parentRef: {message}; nothing of the ListenerSet is served");
        self.doubt(Kind::ListenerSet, &set.metadata, message);
    }

    /// Listeners that are served and have no route.
    fn listeners(&mut self, kind: Kind, metadata: &ObjectMeta) {
        let told = self.told(kind, metadata).map(|status| &status["listeners"]);
        let told = told.and_then(Value::as_array).into_iter().flatten();
        for (at, listener) in told.enumerate() {
            let mut conditions = listener["conditions"].as_array().into_iter().flatten();
            let served = conditions.any(|of| of["type"] == "Programmed" && of["status"] == "True");
            if served && listener["attachedRoutes"] == 0 {
                let name = listener["name"].as_str().unwrap_or_default();
                let message = format!(
                    "spec.listeners[{at}]: no route is for listener {name}, so every session of it \
                     is refused"
                );
                self.doubt(kind, metadata, message);
            }
        }
    }

    fn route(&mut self, kind: Kind, route: &'a Route) {
        let spec = &route.spec;
        let by_default = spec.use_default_gateways.as_deref() == Some("All");
        if spec.parent_refs.is_empty() && !by_default {
            let message = "spec.parentRefs: missing; without a Gateway the route is for nothing, \
                           so name one: parentRefs: [{name: GATEWAY}]";
            self.doubt(kind, &route.metadata, message.to_owned());
        }
        let mut missing = false;
        for (at, parent) in spec.parent_refs.iter().enumerate() {
            if let Some(message) = self.missing(parent, key(&route.metadata).0) {
                missing = true;
                self.doubt(kind, &route.metadata, format!("spec.parentRefs[{at}]: {message}"));
            }
        }
        let told = self.told(kind, &route.metadata).and_then(|status| status["parents"].as_array());
        if told.is_none_or(Vec::is_empty) {
            if !missing && !spec.parent_refs.is_empty() {
                let message = "spec.parentRefs: none is a Gateway or ListenerSet that is served";
                self.doubt(kind, &route.metadata, message.to_owned());
            }
            return;
        }
        self.backends(kind, route);
    }

    /// Why a route's parent does not exist.
    fn missing(&self, parent: &ParentRef, own: &str) -> Option<String> {
        if parent.group.as_deref().unwrap_or(GROUP) != GROUP {
            return None;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(own);
        let wanted = (namespace, parent.name.as_str());
        let (kind, exists) = match parent.kind.as_deref().unwrap_or("Gateway") {
            "Gateway" => (Kind::Gateway, self.index.gateways.contains_key(&wanted)),
            "ListenerSet" => (Kind::ListenerSet, self.index.listener_sets.contains(&wanted)),
            other => return Some(format!("a {other} can't be the parent of a route")),
        };
        let near = || self.near(wanted, kind);
        (!exists).then(|| format!("there is no {kind} {namespace}/{}{}", parent.name, near()))
    }

    fn near(&self, (namespace, name): (&str, &str), kind: Kind) -> String {
        let known: Vec<&ObjectKey<'_>> = match kind {
            Kind::ListenerSet => self.index.listener_sets.iter().collect(),
            _ => self.index.gateways.keys().collect(),
        };
        let known: Vec<String> =
            known.into_iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
        let known = known.iter().map(String::as_str);
        self.hints.did_you_mean(&format!("{namespace}/{name}"), known)
    }

    /// Doubts about the backends of a route that has a parent.
    fn backends(&mut self, kind: Kind, route: &'a Route) {
        let Some(rule) = route.spec.rules.first() else {
            let message = "spec.rules: missing; every session of the route is refused".to_owned();
            return self.doubt(kind, &route.metadata, message);
        };
        let weight = |of: &crate::gateway::objects::BackendRef| of.weight.unwrap_or(1);
        if rule.backend_refs.iter().all(|of| weight(of) <= 0) {
            let what = match rule.backend_refs.is_empty() {
                true => "names no backend",
                false => "all weights are 0",
            };
            let message = format!("spec.rules[0].backendRefs: {what}, so every session is refused");
            return self.doubt(kind, &route.metadata, message);
        }
        let party = Party { group: GROUP, kind: kind.name(), namespace: key(&route.metadata).0 };
        let (mut empty, mut serving) = (Vec::new(), false);
        for (at, reference) in rule.backend_refs.iter().enumerate() {
            let target = (backends::target(reference, party.namespace), reference.port);
            let found = backends::find(target, party, kind == Kind::UdpRoute, &self.index);
            let Ok(destination) = found else { continue };
            let zone = self.settings.zone.as_deref();
            let why = self.empty.why(destination, zone, &self.index);
            match why {
                _ if weight(reference) <= 0 => {}
                Some(why) => empty.push((at, destination, why)),
                None => serving = true,
            }
        }
        let passed_on = serving && self.policies.passes_shares_on(kind.name(), &route.metadata);
        for (at, destination, why) in empty {
            let message = backends::empty_message(&destination, &why, passed_on);
            let message = format!("spec.rules[0].backendRefs[{at}]: {message}");
            self.doubt(kind, &route.metadata, message);
        }
    }

    /// Policies that reach nothing. Their statuses would be under a Gateway.
    fn policy(&mut self, kind: Kind, metadata: &ObjectMeta) {
        let told = self.told(kind, metadata).and_then(|status| status["ancestors"].as_array());
        if told.is_none_or(Vec::is_empty) {
            let message = "spec.targetRefs: nothing that is served leads to any of them, so the \
                           policy has no effect";
            self.doubt(kind, metadata, message.to_owned());
        }
    }

    /// Endpoints of Services that do not exist.
    fn slices(&mut self) {
        let services: BTreeSet<_> = self.index.services.keys().copied().collect();
        for slice in &self.objects.endpoint_slices {
            let label = "kubernetes.io/service-name";
            let (namespace, _) = key(&slice.metadata);
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get(label)).map(String::as_str);
            let message = match service {
                None => format!("metadata.labels: {label} is missing, so it belongs to no Service"),
                Some(service) if !services.contains(&(namespace, service)) => {
                    let own = services.range((namespace, "")..);
                    let own = own.take_while(|(of, _)| *of == namespace);
                    let near = self.hints.did_you_mean(service, own.map(|(_, name)| *name));
                    format!(
                        "metadata.labels: {label}: there is no Service {namespace}/{service}{near}"
                    )
                }
                Some(_) => continue,
            };
            let slice = Arc::clone(slice);
            self.doubt_of("discovery.k8s.io", "EndpointSlice", &slice.metadata, message);
        }
    }
}
