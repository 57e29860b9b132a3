//! Gateways and ListenerSets with their listeners: which listeners are valid, and which conflict.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use crate::gateway::objects::{
    GROUP, Gateway, GatewayClass, Listener, ListenerSet, Objects, RouteKind,
};
use crate::gateway::status::Kind;
use crate::gateway::translate::address::{self, Assigned, Refused};
use crate::gateway::translate::certificates;
use crate::gateway::translate::index::{Index, ObjectKey, key, seniority};
use crate::gateway::translate::party::Party;
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::verdict::{Fault, Verdict};
use crate::model::tls::{Certificate, ClientAuth, Termination};

/// All Gateways, ListenerSets and listeners, in the order of precedence.
pub(super) struct Listeners<'o> {
    pub(super) gates: Vec<Gate<'o>>,
    pub(super) sets: Vec<Set<'o>>,
    /// The listeners of a Gateway, then those of its sets, oldest set first; then the next Gateway.
    pub(super) entries: Vec<Entry<'o>>,
    /// The first HTTP listener that is served, by its Gateway and port.
    pub(super) first_http: BTreeMap<(usize, i32), usize>,
    gate_at: BTreeMap<ObjectKey<'o>, usize>,
    set_at: BTreeMap<ObjectKey<'o>, usize>,
}

pub(super) struct Gate<'o> {
    pub(super) object: &'o Gateway,
    pub(super) accepted: Verdict,
    /// Without addresses, nothing of the Gateway is programmed.
    pub(super) addresses: Result<Assigned, Fault>,
    /// The certificate for backends.
    pub(super) certificate: Option<Certificate>,
    /// The fault of that certificate, or of its reference.
    pub(super) certificate_resolved: Verdict,
}

pub(super) struct Set<'o> {
    pub(super) object: &'o ListenerSet,
    pub(super) gate: usize,
    pub(super) accepted: Verdict,
}

/// A listener of a Gateway or a ListenerSet, with the verdicts on the listener.
pub(super) struct Entry<'o> {
    pub(super) spec: &'o Listener,
    pub(super) gate: usize,
    /// `None`: the listener is the Gateway's own.
    pub(super) set: Option<usize>,
    pub(super) protocol: Option<Protocol>,
    /// In lower case. `None`: every name.
    pub(super) hostname: Option<String>,
    pub(super) kinds: Vec<RouteKind>,
    pub(super) accepted: Verdict,
    pub(super) resolved: Verdict,
    pub(super) conflict: Verdict,
    /// `Some` if the listener terminates TLS.
    pub(super) tls: Option<Termination>,
    /// Messages about expired certificates.
    pub(super) expired: Vec<String>,
    /// The number of routes that the listener accepts.
    pub(super) attached: usize,
    /// The names of the entry's listeners in the configuration.
    pub(super) names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Https,
    Tls,
    Tcp,
    Udp,
}

impl Protocol {
    fn of(text: &str) -> Option<Self> {
        match text {
            "HTTP" => Some(Self::Http),
            "HTTPS" => Some(Self::Https),
            "TLS" => Some(Self::Tls),
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    /// The one kind of route that the protocol takes.
    pub(super) fn route(self) -> Kind {
        match self {
            Self::Http | Self::Https => Kind::HttpRoute,
            Self::Tls => Kind::TlsRoute,
            Self::Tcp => Kind::TcpRoute,
            Self::Udp => Kind::UdpRoute,
        }
    }

    /// Whether listeners of one address are told apart by the ClientHello.
    pub(super) fn reads_hello(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }
}

impl Entry<'_> {
    /// Whether the listener is a part of the data plane if its Gateway is.
    pub(super) fn is_valid(&self) -> bool {
        self.accepted.is_ok() && self.resolved_enough()
    }

    /// Reads the conditions for clients. The Gateway API has them only for HTTPS listeners.
    fn ask_clients(&mut self, gateway: &Gateway, index: &Index<'_>) {
        if self.protocol != Some(Protocol::Https) {
            return;
        }
        match certificates::clients(gateway, self.spec.port, index) {
            Ok(authorities) => {
                if let (Some(authorities), Some(tls)) = (authorities, &mut self.tls) {
                    tls.client_ca = Some(authorities);
                    tls.client_auth = ClientAuth::Required;
                }
            }
            Err((accepted, resolved)) => {
                self.accepted = self.accepted.clone().and(accepted);
                self.resolved = Err(resolved);
                self.tls = None;
            }
        }
    }

    /// Whether the listener can be served. An unknown kind of route does not stop the other kinds,
    /// and a missing certificate does not stop the other certificates.
    fn resolved_enough(&self) -> bool {
        let Err(why) = &self.resolved else { return true };
        !self.kinds.is_empty() && (why.reason == "InvalidRouteKinds" || self.tls.is_some())
    }
}

impl<'o> Listeners<'o> {
    pub(super) fn of(objects: &'o Objects, index: &Index<'o>, settings: &Settings) -> Self {
        let mut listeners = Self::all(objects, index, settings);
        listeners.find_conflicts(settings);
        listeners.find_empty();
        for (at, entry) in listeners.entries.iter().enumerate() {
            if entry.protocol == Some(Protocol::Http) && listeners.is_served(entry) {
                listeners.first_http.entry((entry.gate, entry.spec.port)).or_insert(at);
            }
        }
        listeners
    }

    /// All listeners, before conflicts are looked for.
    pub(super) fn all(objects: &'o Objects, index: &Index<'o>, settings: &Settings) -> Self {
        let (gateways, waiting) = ours(objects, settings);
        let assigned = address::assign(&gateways, &waiting, settings);
        let mut listeners = Self {
            gates: Vec::new(),
            sets: Vec::new(),
            entries: Vec::new(),
            first_http: BTreeMap::new(),
            gate_at: BTreeMap::new(),
            set_at: BTreeMap::new(),
        };
        for (object, assigned) in gateways.into_iter().zip(assigned) {
            listeners.gate_at.entry(key(&object.metadata)).or_insert(listeners.gates.len());
            listeners.gates.push(gate(object, assigned, index));
            listeners.entries_of(listeners.gates.len() - 1, None, &object.spec.listeners, index);
        }
        listeners.sets = sets(objects, index, &listeners);
        for at in 0..listeners.sets.len() {
            let set = &listeners.sets[at];
            listeners.set_at.entry(key(&set.object.metadata)).or_insert(at);
            let (object, gate) = (set.object, set.gate);
            listeners.entries_of(gate, Some(at), &object.spec.listeners, index);
        }
        // The sort is stable: the listeners of a Gateway or set keep the order of the spec.
        listeners.entries.sort_by_key(|entry| (entry.gate, entry.set));
        listeners
    }

    pub(super) fn gate_at(&self, key: ObjectKey<'_>) -> Option<usize> {
        self.gate_at.get(&key).copied()
    }

    pub(super) fn set_at(&self, key: ObjectKey<'_>) -> Option<usize> {
        self.set_at.get(&key).copied()
    }

    /// The entries of a Gateway itself, or of a set.
    pub(super) fn own(&self, gate: usize, set: Option<usize>) -> Range<usize> {
        let of = |entry: &Entry<'_>| (entry.gate, entry.set);
        let from = self.entries.partition_point(|entry| of(entry) < (gate, set));
        let count = self.entries[from..].partition_point(|entry| of(entry) == (gate, set));
        from..from + count
    }

    pub(super) fn key(&self, entry: &Entry<'o>) -> (&'o str, &'o str) {
        entry.set.map_or_else(
            || key(&self.gates[entry.gate].object.metadata),
            |set| key(&self.sets[set].object.metadata),
        )
    }

    /// Whether an entry is served: the entry, its set and its Gateway are all valid.
    pub(super) fn is_served(&self, entry: &Entry<'_>) -> bool {
        let set = entry.set.is_none_or(|set| self.sets[set].accepted.is_ok());
        let gate = &self.gates[entry.gate];
        entry.is_valid() && set && gate.addresses.is_ok() && gate.accepted.is_ok()
    }

    /// Finds Gateways and ListenerSets that are valid themselves but have no valid listener.
    fn find_empty(&mut self) {
        let mut valid = BTreeSet::new();
        for entry in self.entries.iter().filter(|entry| entry.is_valid()) {
            valid.insert((entry.gate, entry.set));
        }
        let none = || {
            Err(Fault::new(
                "ListenersNotValid",
                "no listener is valid; the status of each says why".to_owned(),
            ))
        };
        // A Gateway's listener counts even while its certificate is missing, so that the sets'
        // listeners with certificates stay.
        let own = self.entries.iter().filter(|entry| entry.set.is_none() && entry.accepted.is_ok());
        let own: BTreeSet<_> = own.map(|entry| entry.gate).collect();
        let sets = self.sets.iter().enumerate().filter(|(_, set)| set.accepted.is_ok());
        let stands = |(at, set): (usize, &Set<'_>)| {
            (own.contains(&set.gate) && valid.contains(&(set.gate, Some(at)))).then_some(set.gate)
        };
        let stand: BTreeSet<_> = sets.filter_map(stands).collect();
        for (at, gate) in self.gates.iter_mut().enumerate() {
            if gate.accepted.is_ok() && !valid.contains(&(at, None)) && !stand.contains(&at) {
                gate.accepted = none();
            }
        }
        for (at, set) in self.sets.iter_mut().enumerate() {
            if set.accepted.is_ok() && self.gates[set.gate].accepted.is_err() {
                let message = "the Gateway is not accepted".to_owned();
                set.accepted = Err(Fault::new("ParentNotAccepted", message));
            } else if set.accepted.is_ok() && !valid.contains(&(set.gate, Some(at))) {
                set.accepted = none();
            }
        }
    }

    fn entries_of(
        &mut self,
        gate: usize,
        set: Option<usize>,
        specs: &'o [Listener],
        index: &Index<'_>,
    ) {
        let (namespace, kind) = match set {
            None => (key(&self.gates[gate].object.metadata).0, Kind::Gateway),
            Some(set) => (key(&self.sets[set].object.metadata).0, Kind::ListenerSet),
        };
        let party = Party { group: GROUP, kind: kind.name(), namespace };
        let gateway = self.gates[gate].object;
        self.entries.extend(specs.iter().map(|spec| {
            let mut entry = entry(spec, gate, set, party, index);
            entry.ask_clients(gateway, index);
            entry
        }));
    }
}

/// The controller of a Gateway.
pub(super) enum Claim {
    Ours,
    /// The class is Ringway's, and not accepted.
    Waits,
    /// The class does not exist, so no controller has the Gateway.
    Nobodys,
    Theirs,
}

pub(super) fn claim(gateway: &Gateway, objects: &Objects, settings: &Settings) -> Claim {
    let name = Some(gateway.spec.gateway_class_name.as_str());
    let mut classes = objects.gateway_classes.iter();
    match classes.find(|class| class.metadata.name.as_deref() == name) {
        None => Claim::Nobodys,
        Some(class) if class.spec.controller_name != settings.controller_name => Claim::Theirs,
        Some(class) if accepts(class).is_err() => Claim::Waits,
        Some(_) => Claim::Ours,
    }
}

/// Whether Gateways of a class of Ringway's are served.
pub(super) fn accepts(class: &GatewayClass) -> Verdict {
    let Some(parameters) = &class.spec.parameters_ref else { return Ok(()) };
    let message = format!(
        "parametersRef names a {}, and Ringway knows no such parameters; remove it",
        parameters.kind
    );
    Err(Fault::new("InvalidParameters", message))
}

/// The Gateways that are served, and the Gateways that no controller has, in the order of
/// seniority.
fn ours<'o>(objects: &'o Objects, settings: &Settings) -> (Vec<&'o Gateway>, Vec<&'o Gateway>) {
    let mut all: Vec<_> = objects.gateways.iter().map(Arc::as_ref).collect();
    all.sort_by(|a, b| seniority(&a.metadata).cmp(&seniority(&b.metadata)));
    let (mut ours, mut waiting) = (Vec::new(), Vec::new());
    for gateway in all {
        match claim(gateway, objects, settings) {
            Claim::Ours => ours.push(gateway),
            Claim::Waits | Claim::Nobodys => waiting.push(gateway),
            // The class may be a typing error until the other controller writes a status.
            Claim::Theirs if was_ours(gateway.status.as_ref(), settings) => waiting.push(gateway),
            Claim::Theirs => {}
        }
    }
    (ours, waiting)
}

/// The text by which conditions of Gateways and ListenerSets show their controller.
pub(super) fn accepted_by(settings: &Settings) -> String {
    format!("accepted by {}", settings.controller_name)
}

/// Whether the status of a Gateway or ListenerSet is from the time when Ringway served the object.
pub(super) fn was_ours(status: Option<&Value>, settings: &Settings) -> bool {
    let conditions = status.and_then(|status| status["conditions"].as_array());
    let by = accepted_by(settings);
    conditions.into_iter().flatten().any(|condition| {
        let rest = condition["message"].as_str().and_then(|text| text.strip_prefix(&by));
        condition["type"] == "Accepted"
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
    })
}

fn gate<'o>(
    object: &'o Gateway,
    assigned: Result<Assigned, Refused>,
    index: &Index<'_>,
) -> Gate<'o> {
    let infrastructure = object.spec.infrastructure.as_ref();
    let parameters =
        infrastructure.and_then(|infrastructure| infrastructure.parameters_ref.as_ref());
    let invalid = parameters.map(|parameters| {
        let message = format!(
            "infrastructure.parametersRef names a {}, and Ringway knows no such parameters; remove \
             it (an L4Policy has what can be set)",
            parameters.kind
        );
        Fault::new("InvalidParameters", message)
    });
    let (unsupported, addresses) = match assigned {
        Ok(assigned) => (None, Ok(assigned)),
        Err(Refused::Unsupported(why)) => (Some(why.clone()), Err(why)),
        Err(Refused::Unusable(why)) => (None, Err(why)),
    };
    let accepted = invalid.or(unsupported).map_or(Ok(()), Err);
    let (certificate, certificate_resolved) = certificates::own_certificate(object, index);
    Gate { object, accepted, addresses, certificate, certificate_resolved }
}

/// The Gateway of a ListenerSet. `None`: the set's parent is no Gateway.
pub(super) fn parent(set: &ListenerSet) -> Option<ObjectKey<'_>> {
    let parent = &set.spec.parent_ref;
    let is_gateway = parent.group.as_deref().unwrap_or(GROUP) == GROUP
        && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway";
    let own = key(&set.metadata).0;
    let namespace = parent.namespace.as_deref().unwrap_or(own);
    is_gateway.then_some((namespace, parent.name.as_str()))
}

/// ListenerSets of Ringway's Gateways: the first Gateway's sets first, the oldest set first.
fn sets<'o>(objects: &'o Objects, index: &Index<'_>, listeners: &Listeners<'_>) -> Vec<Set<'o>> {
    let mut sets = Vec::new();
    for object in &objects.listener_sets {
        let own = key(&object.metadata).0;
        let Some(wanted) = parent(object) else { continue };
        let Some(gate) = listeners.gate_at(wanted) else { continue };
        let allowed = listeners.gates[gate].object.spec.allowed_listeners.as_ref();
        let allowed = allowed.and_then(|allowed| allowed.namespaces.as_ref());
        let accepted = if index.lets_in(allowed, "None", wanted.0, own) {
            Ok(())
        } else {
            let message = format!("the Gateway's allowedListeners do not let in namespace {own}");
            Err(Fault::new("NotAllowed", message))
        };
        sets.push(Set { object, gate, accepted });
    }
    sets.sort_by(|a, b| {
        let order = a.gate.cmp(&b.gate);
        order.then_with(|| seniority(&a.object.metadata).cmp(&seniority(&b.object.metadata)))
    });
    sets
}

fn entry<'o>(
    spec: &'o Listener,
    gate: usize,
    set: Option<usize>,
    party: Party<'_>,
    index: &Index<'_>,
) -> Entry<'o> {
    let protocol = Protocol::of(&spec.protocol);
    let (kinds, unknown) = kinds(spec, protocol);
    let mut entry = Entry {
        spec,
        gate,
        set,
        protocol,
        hostname: spec.hostname.as_ref().filter(|name| !name.is_empty()).map(|n| n.to_lowercase()),
        kinds,
        accepted: accepted(spec, protocol),
        resolved: unknown.map_or(Ok(()), Err),
        conflict: Ok(()),
        tls: None,
        expired: Vec::new(),
        attached: 0,
        names: Vec::new(),
    };
    let terminates = match protocol {
        Some(Protocol::Https) => true,
        Some(Protocol::Tls) => mode(spec) == "Terminate",
        _ => false,
    };
    if terminates {
        let ending = certificates::termination(spec, party, index);
        entry.tls = ending.tls;
        entry.resolved = ending.resolved.and(entry.resolved);
        entry.expired = ending.expired;
    }
    entry
}

fn mode(spec: &Listener) -> &str {
    spec.tls.as_ref().and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate")
}

fn accepted(spec: &Listener, protocol: Option<Protocol>) -> Verdict {
    let Some(protocol) = protocol else {
        let message = format!(
            "protocol {} is not supported; TCP, UDP, TLS, HTTP and HTTPS are",
            spec.protocol
        );
        return Err(Fault::new("UnsupportedProtocol", message));
    };
    let unsupported = |message: String| Err(Fault::new("UnsupportedValue", message));
    if !(1..=65_535).contains(&spec.port) {
        return unsupported(format!("port {} is not within 1 to 65535", spec.port));
    }
    if let Some(hostname) = spec.hostname.as_ref().filter(|name| !name.is_empty())
        && let Err(message) = crate::toml::values::read_hostname(hostname)
    {
        return unsupported(format!("hostname: {message}"));
    }
    if protocol == Protocol::Tls && !matches!(mode(spec), "Terminate" | "Passthrough") {
        return unsupported(format!(
            "tls.mode {} is neither Terminate nor Passthrough",
            mode(spec)
        ));
    }
    if protocol == Protocol::Https && mode(spec) != "Terminate" {
        return unsupported("an HTTPS listener terminates TLS; use protocol TLS".to_owned());
    }
    Ok(())
}

/// The requested kinds that the protocol can take, and a fault for the others.
fn kinds(spec: &Listener, protocol: Option<Protocol>) -> (Vec<RouteKind>, Option<Fault>) {
    let Some(protocol) = protocol else { return (Vec::new(), None) };
    let supported =
        RouteKind { group: Some(GROUP.to_owned()), kind: protocol.route().name().to_owned() };
    let asked = spec.allowed_routes.as_ref().map_or(&[][..], |allowed| &allowed.kinds);
    let is_it = |kind: &&RouteKind| {
        kind.kind == supported.kind && kind.group.as_deref().unwrap_or(GROUP) == GROUP
    };
    let unknown: Vec<_> =
        asked.iter().filter(|kind| !is_it(kind)).map(|k| k.kind.as_str()).collect();
    let why = (!unknown.is_empty()).then(|| {
        let (unknown, protocol) = (unknown.join(", "), &spec.protocol);
        let message = format!(
            "allowedRoutes.kinds: {unknown} can't attach to a {protocol} listener; {} can",
            supported.kind
        );
        Fault::new("InvalidRouteKinds", message)
    });
    let any = asked.is_empty() || asked.iter().any(|kind| is_it(&kind));
    (if any { vec![supported] } else { Vec::new() }, why)
}
