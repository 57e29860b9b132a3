//! The destinations of routes: Services and XBackends, and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::gateway::objects::{BackendRef, X_GROUP};
use crate::gateway::translate::index::{Index, ObjectKey};
use crate::gateway::translate::party::{Party, Target};
use crate::gateway::translate::values::EndpointRule;
use crate::gateway::translate::verdict::Fault;
use crate::model::endpoint::{Address, DnsName};
use crate::toml::values::dns_name;

/// A port that a route leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination<'o> {
    pub(super) object: ObjectKey<'o>,
    number: i32,
    pub(super) to: To<'o>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum To<'o> {
    Service(&'o Service, &'o ServicePort),
    XBackend,
}

/// The kind, object, port and protocol of a destination.
pub(super) type Way<'o> = (&'static str, ObjectKey<'o>, i32, &'o str);

impl<'o> Destination<'o> {
    pub(super) fn kind(&self) -> &'static str {
        match self.to {
            To::Service(..) => "Service",
            To::XBackend => "XBackend",
        }
    }

    pub(super) fn way(&self) -> Way<'o> {
        let protocol = match self.to {
            To::Service(_, port) => port.protocol.as_deref().unwrap_or_default(),
            To::XBackend => "",
        };
        (self.kind(), self.object, self.number, protocol)
    }

    /// The name of a Service's port.
    pub(super) fn port_name(&self) -> Option<&'o str> {
        match self.to {
            To::Service(_, port) => port.name.as_deref(),
            To::XBackend => None,
        }
    }

    /// The name in the configuration.
    pub(super) fn name(&self) -> String {
        let ((namespace, name), number) = (self.object, self.number);
        match self.to {
            To::Service(..) => format!("{namespace}/{name}:{number}"),
            To::XBackend => format!("{namespace}/xbackend:{name}:{number}"),
        }
    }
}

/// The object that a route of `namespace` names.
pub(super) fn target<'o>(reference: &'o BackendRef, namespace: &'o str) -> Target<'o> {
    Target {
        group: reference.group.as_deref().unwrap_or_default(),
        kind: reference.kind.as_deref().unwrap_or("Service"),
        namespace: reference.namespace.as_deref().unwrap_or(namespace),
        name: &reference.name,
    }
}

/// The destination of a reference, or why there is none.
pub(super) fn find<'o>(
    (target, number): (Target<'o>, Option<i32>),
    party: Party<'o>,
    udp: bool,
    index: &Index<'o>,
) -> Result<Destination<'o>, Fault> {
    let Target { group, kind, namespace, name } = target;
    let is_external = is_x_backend(group, kind);
    if !is_service(group, kind) && !is_external {
        let kind = if group.is_empty() { kind.to_owned() } else { format!("{kind} of {group}") };
        let message = format!("a {kind} can't be a backend; name a Service");
        return Err(Fault::new("InvalidKind", message));
    }
    let group = if is_external { X_GROUP } else { "" };
    if !index.permits(party, Target { group, kind, namespace, name }) {
        return Err(Fault::not_permitted(party, kind, namespace, name));
    }
    if is_external {
        return find_external(number, (namespace, name), udp, index);
    }
    find_service(number, (namespace, name), udp, index)
}

/// The destination in a Service.
fn find_service<'o>(
    number: Option<i32>,
    (namespace, name): ObjectKey<'o>,
    udp: bool,
    index: &Index<'o>,
) -> Result<Destination<'o>, Fault> {
    let missing = |message| Err(Fault::new("BackendNotFound", message));
    let Some(object) = index.services.get(&(namespace, name)).copied() else {
        let limits = index.limits(namespace);
        return missing(format!("there is no Service {namespace}/{name}{limits}"));
    };
    let spec = object.spec.as_ref();
    if is_external(object) && !index.external_names {
        let message = format!(
            "Service {namespace}/{name} is an ExternalName, which Ringway resolves only if it is \
             started with --external-names; use a Service with endpoints"
        );
        return Err(Fault::new("InvalidKind", message));
    }
    let Some(number) = number else {
        return missing(format!("port of Service {namespace}/{name} is missing"));
    };
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let mut ports = ports.iter().filter(|port| port.port == number).peekable();
    if ports.peek().is_none() {
        let fix =
            if is_external(object) { "; list the port in the Service's spec.ports" } else { "" };
        return missing(format!("Service {namespace}/{name} has no port {number}{fix}"));
    }
    let wanted = if udp { "UDP" } else { "TCP" };
    let Some(port) = ports.find(|port| protocol(port.protocol.as_deref()) == wanted) else {
        let message = format!("port {number} of Service {namespace}/{name} is not for {wanted}");
        return Err(Fault::new("UnsupportedProtocol", message));
    };
    Ok(Destination { object: (namespace, name), number, to: To::Service(object, port) })
}

/// The destination of an XBackend. A reference need not repeat the XBackend's only port.
fn find_external<'o>(
    number: Option<i32>,
    (namespace, name): ObjectKey<'o>,
    udp: bool,
    index: &Index<'o>,
) -> Result<Destination<'o>, Fault> {
    let title = format!("XBackend {namespace}/{name}");
    let missing = |message| Err(Fault::new("BackendNotFound", message));
    let Some(read) = index.externals.get(&(namespace, name)) else {
        return missing(format!("there is no {title}{}", index.limits(namespace)));
    };
    if !index.external_names {
        return Err(Fault::new("InvalidKind", format!("{title}: {EXTERNAL_NAMES_OFF}")));
    }
    let external =
        read.as_ref().map_err(|why| Fault::new(why.reason, format!("{title}: {}", why.message)))?;
    let own = i32::from(external.port);
    if let Some(other) = number.filter(|number| *number != own) {
        return missing(format!("{title} has no port {other}; its port is {own}"));
    }
    if udp && external.is_for_tcp {
        let message = format!("{title} is not for UDP: it has a protocol or TLS, which need TCP");
        return Err(Fault::new("UnsupportedProtocol", message));
    }
    Ok(Destination { object: (namespace, name), number: own, to: To::XBackend })
}

/// Why an XBackend does not lead to its name.
pub(super) const EXTERNAL_NAMES_OFF: &str =
    "Ringway resolves its name only if it is started with --external-names";

/// Whether a reference is to an XBackend.
pub(super) fn is_x_backend(group: &str, kind: &str) -> bool {
    (group, kind) == (X_GROUP, "XBackend")
}

fn is_external(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

/// Whether a reference is to a Service of Kubernetes' own.
pub(super) fn is_service(group: &str, kind: &str) -> bool {
    matches!((group, kind), ("" | "core", "Service"))
}

fn protocol(given: Option<&str>) -> &str {
    given.unwrap_or("TCP")
}

/// An endpoint of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found<'o> {
    pub(super) address: Address,
    /// The endpoint is meant for other zones.
    pub(super) is_far: bool,
    pod: Option<&'o str>,
    node: Option<&'o str>,
    zone: Option<&'o str>,
}

impl<'o> Found<'o> {
    fn new(address: Address, endpoint: &'o Endpoint) -> Self {
        let target = endpoint.target_ref.as_ref();
        Self {
            address,
            is_far: false,
            pod: target.and_then(|target| target.name.as_deref()),
            node: endpoint.node_name.as_deref(),
            zone: endpoint.zone.as_deref(),
        }
    }

    pub(super) fn fits(&self, rule: &EndpointRule) -> bool {
        let fits = |wanted: &Option<String>, own: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| own == Some(wanted))
        };
        let address = || match &self.address {
            Address::Fixed(address) => address.ip().map(|ip| ip.to_string()),
            Address::Name(DnsName::Host { host, .. }) => Some(host.to_string()),
            Address::Name(DnsName::Service(_)) => None,
        };
        fits(&rule.pod, self.pod)
            && fits(&rule.node, self.node)
            && fits(&rule.zone, self.zone)
            && (rule.address.is_none() || fits(&rule.address, address().as_deref()))
    }
}

/// The endpoints to use, sorted. These are the ready endpoints, or, if none is ready, those that
/// end and still serve. A Service of both IP versions uses its preferred version, if there are such
/// endpoints; but a ready endpoint of any version goes before an ending one. If the cluster has
/// given every zone its own endpoints, those of zones other than `zone` are far.
pub(super) fn endpoints<'o>(
    destination: Destination<'o>,
    zone: Option<&str>,
    index: &Index<'o>,
) -> Vec<Found<'o>> {
    let names = names(destination, index);
    let To::Service(object, wanted) = destination.to else { return names };
    if !names.is_empty() {
        return names;
    }
    let slices = index.slices.get(&destination.object).map_or(&[][..], Vec::as_slice);
    let mut all: BTreeMap<bool, Vec<(&Endpoint, SocketAddr)>> = BTreeMap::new();
    for slice in slices {
        let Some(port) = port(slice, wanted) else { continue };
        for endpoint in &slice.endpoints {
            let address = endpoint.addresses.first().and_then(|address| address.parse().ok());
            let Some(address) = address.filter(|address| is_one_machine(*address)) else {
                continue;
            };
            let of_version = all.entry(address.is_ipv6()).or_default();
            of_version.push((endpoint, SocketAddr::new(address, port)));
        }
    }
    let spec = object.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let prefers_v6 = families.first().is_some_and(|family| family == "IPv6");
    let kinds: [fn(&Endpoint) -> bool; 2] = [is_ready, is_ending];
    let versions = [prefers_v6, !prefers_v6];
    let mut choices = kinds.iter().flat_map(|is| versions.map(|v6| (is, v6)));
    let of = |(is, v6): (&fn(&Endpoint) -> bool, bool)| {
        let mut of_version = all.get(&v6).cloned().unwrap_or_default();
        of_version.retain(|(endpoint, _)| is(endpoint));
        (!of_version.is_empty()).then_some(of_version)
    };
    let chosen = choices.find_map(of).unwrap_or_default();
    let near = near(&chosen, zone);
    let chosen = chosen.into_iter().map(|(endpoint, address)| {
        let is_far = near.is_some_and(|zone| !is_for(endpoint, zone));
        Found { is_far, ..Found::new(Address::Fixed(address.into()), endpoint) }
    });
    sorted(chosen)
}

/// Each address once. Two slices may have it while the endpoint moves from one to the other.
fn sorted<'o>(found: impl Iterator<Item = Found<'o>>) -> Vec<Found<'o>> {
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    found.dedup_by(|next, kept| next.address == kept.address);
    found
}

/// The name of an XBackend or ExternalName Service, or the names of the EndpointSlices of type
/// FQDN, sorted.
fn names<'o>(destination: Destination<'o>, index: &Index<'o>) -> Vec<Found<'o>> {
    if !index.external_names {
        return Vec::new();
    }
    let address = |name: &str, port: u16| {
        let host = dns_name(name).ok()?.into();
        Some(Address::Name(DnsName::Host { host, port }))
    };
    let found = |address| Found { address, is_far: false, pod: None, node: None, zone: None };
    let To::Service(object, wanted) = destination.to else {
        let external = index.externals.get(&destination.object);
        let external = external.and_then(|external| external.as_ref().ok());
        return external.map(|external| found(external.address.clone())).into_iter().collect();
    };
    if is_external(object) {
        let spec = object.spec.as_ref();
        let name = spec.and_then(|spec| spec.external_name.as_deref()).unwrap_or_default();
        let port = u16::try_from(wanted.port).ok().filter(|port| *port > 0);
        let address = port.and_then(|port| address(name, port));
        return address.map(found).into_iter().collect();
    }
    let slices = index.slices.get(&destination.object).map_or(&[][..], Vec::as_slice);
    let slices = slices.iter().filter(|slice| slice.address_type == "FQDN");
    let with_port = slices.filter_map(|slice| Some((slice, port(slice, wanted)?)));
    let names = with_port.flat_map(|(slice, port)| {
        let ready = slice.endpoints.iter().filter(|endpoint| is_ready(endpoint));
        ready.flat_map(move |endpoint| {
            let names = endpoint.addresses.iter().filter_map(move |name| address(name, port));
            names.map(|address| Found::new(address, endpoint))
        })
    });
    sorted(names)
}

/// Why destinations have no endpoint. Each destination is checked once, because many routes may
/// lead to one Service.
#[derive(Default)]
pub(super) struct Empty<'o>(BTreeMap<Way<'o>, Option<Rc<str>>>);

impl<'o> Empty<'o> {
    pub(super) fn why(
        &mut self,
        destination: Destination<'o>,
        zone: Option<&str>,
        index: &Index<'o>,
    ) -> Option<Rc<str>> {
        let found = self.0.entry(destination.way()).or_insert_with(|| {
            let is_empty = endpoints(destination, zone, index).is_empty();
            is_empty.then(|| why_empty(&destination, index).into())
        });
        found.clone()
    }
}

fn why_empty(destination: &Destination<'_>, index: &Index<'_>) -> String {
    let Some(slices) = index.slices.get(&destination.object) else {
        return "no EndpointSlice has the label kubernetes.io/service-name with its name".into();
    };
    if slices.iter().all(|slice| slice.address_type == "FQDN") {
        return "its EndpointSlices have names (FQDN), which are resolved only with \
                --external-names"
            .into();
    }
    let ports: BTreeSet<(&str, &str)> = slices
        .iter()
        .flat_map(|slice| slice.ports.iter().flatten())
        .map(|of| (of.name.as_deref().unwrap_or_default(), protocol(of.protocol.as_deref())))
        .collect();
    let wanted = match destination.to {
        To::Service(_, port) => {
            Some((port.name.as_deref().unwrap_or_default(), protocol(port.protocol.as_deref())))
        }
        To::XBackend => None,
    };
    let differs = |wanted: &(&str, &str)| !ports.is_empty() && !ports.contains(wanted);
    if let Some(wanted) = wanted.filter(differs) {
        let told = |(name, protocol): (&str, &str)| match name {
            "" => format!("{protocol} without a name"),
            name => format!("{protocol} {name:?}"),
        };
        let theirs: Vec<_> = ports.into_iter().map(told).collect();
        return format!(
            "the Service's port is {}, and the ports of its EndpointSlices are {}; give both one \
             name and protocol",
            told(wanted),
            theirs.join(", ")
        );
    }
    "no EndpointSlice of it has a ready endpoint for that port".into()
}

/// The message for statuses and warnings. `passed_on`: other backends of the route get the share.
pub(super) fn empty_message(destination: &Destination<'_>, why: &str, passed_on: bool) -> String {
    let (kind, (namespace, name), port, _) = destination.way();
    let so = match passed_on {
        true => "so other backends of the route get its share",
        false => "so what goes there is refused",
    };
    format!("{kind} {namespace}/{name}, port {port}, has no endpoint, {so}: {why}")
}

/// Matches ports of a slice and of a Service by name, because the number differs if `targetPort`
/// does.
fn port(slice: &EndpointSlice, wanted: &ServicePort) -> Option<u16> {
    let name = |name: Option<&String>| name.map_or("", String::as_str).to_owned();
    let same = |port: &&k8s_openapi::api::discovery::v1::EndpointPort| {
        name(port.name.as_ref()) == name(wanted.name.as_ref())
            && protocol(port.protocol.as_deref()) == protocol(wanted.protocol.as_deref())
    };
    let port = slice.ports.iter().flatten().find(same)?.port?;
    u16::try_from(port).ok().filter(|port| *port > 0)
}

fn is_one_machine(address: IpAddr) -> bool {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !address.is_unspecified() && !address.is_multicast() && !mapped
}

fn is_ready(endpoint: &Endpoint) -> bool {
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
    ready.unwrap_or(true)
}

/// Whether the endpoint ends and still serves.
fn is_ending(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_some_and(|conditions| {
        conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false)
    })
}

/// The zone, if its endpoints are near and others are far. As kube-proxy does: if one endpoint has
/// no hint, or no endpoint is for this zone, the hints are being changed or do not hold here.
fn near<'z>(chosen: &[(&Endpoint, SocketAddr)], zone: Option<&'z str>) -> Option<&'z str> {
    let all = || chosen.iter().map(|(endpoint, _)| *endpoint);
    let is_whole = |zone: &&str| {
        all().all(|endpoint| zones(endpoint).next().is_some())
            && all().any(|endpoint| is_for(endpoint, zone))
    };
    zone.filter(is_whole)
}

fn is_for(endpoint: &Endpoint, zone: &str) -> bool {
    zones(endpoint).any(|of| of == zone)
}

/// The zones in the hints.
fn zones(endpoint: &Endpoint) -> impl Iterator<Item = &str> {
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
    hints.into_iter().flatten().map(|zone| zone.name.as_str())
}
