//! Routes: which listeners take a route, where a route leads, and which of several routes is
//! served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::gateway::objects::reference::ParentRef;
use crate::gateway::objects::{GROUP, Objects, Route};
use crate::gateway::status::Kind;
use crate::gateway::translate::backends::{self, Destination};
use crate::gateway::translate::index::{Index, key, seniority};
use crate::gateway::translate::listeners::{Entry, Listeners, Protocol};
use crate::gateway::translate::party::Party;
use crate::gateway::translate::policy::Policies;
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::verdict::{Fault, Verdict};

/// A route with one of Ringway's Gateways or ListenerSets as a parent, now or earlier.
pub(super) struct Routed<'o> {
    pub(super) kind: Kind,
    pub(super) object: &'o Route,
    pub(super) parents: Vec<Parent>,
    /// The backends of the first rule.
    pub(super) backends: Vec<Weighted<'o>>,
    pub(super) resolved: Verdict,
    /// The number of rules after the first, which no route may have any more.
    pub(super) dropped_rules: usize,
}

/// A parentRef, with the verdict on the reference.
pub(super) struct Parent {
    pub(super) reference: ParentRef,
    pub(super) accepted: Verdict,
    /// The listeners that take the route.
    pub(super) entries: Vec<usize>,
    /// The listeners among `entries` that serve another route in place of this one, with that
    /// route's title.
    pub(super) superseded: BTreeMap<usize, String>,
}

pub(super) struct Weighted<'o> {
    pub(super) weight: u32,
    /// The words for the reference in the name of a backend that leads nowhere.
    pub(super) words: String,
    pub(super) destination: Result<Destination<'o>, Fault>,
}

/// All routes, oldest first. Counts the routes that are attached to each listener.
pub(super) fn routes<'o>(
    objects: &'o Objects,
    index: &Index<'o>,
    listeners: &mut Listeners<'o>,
    settings: &Settings,
) -> Vec<Routed<'o>> {
    let kinds = [
        (Kind::TcpRoute, &objects.tcp_routes),
        (Kind::UdpRoute, &objects.udp_routes),
        (Kind::TlsRoute, &objects.tls_routes),
        (Kind::HttpRoute, &objects.http_routes),
    ];
    let mut all: Vec<(Kind, &Route)> = Vec::new();
    for (kind, routes) in kinds {
        all.extend(routes.iter().map(|route| (kind, Arc::as_ref(route))));
    }
    all.sort_by(|(a_kind, a), (b_kind, b)| {
        seniority(&a.metadata).cmp(&seniority(&b.metadata)).then(a_kind.cmp(b_kind))
    });
    let owners = Owners::of(listeners);
    let mut routes = Vec::new();
    for (kind, object) in all {
        let route = routed(kind, object, &owners, index, listeners);
        if !route.parents.is_empty() || has_ours(object, settings) {
            let taken: BTreeSet<_> =
                route.parents.iter().flat_map(|p| &p.entries).copied().collect();
            for entry in taken {
                listeners.entries[entry].attached += 1;
            }
            routes.push(route);
        }
    }
    routes
}

/// Whether the status has parts of Ringway's that must be removed if there is nothing to say any
/// more.
fn has_ours(object: &Route, settings: &Settings) -> bool {
    let parents = object.status.as_ref().and_then(|status| status["parents"].as_array());
    let mut parents = parents.into_iter().flatten();
    parents.any(|parent| parent["controllerName"] == *settings.controller_name)
}

/// Listeners by their owner: the kind, namespace and name of a parent.
struct Owners<'o> {
    entries: BTreeMap<(Kind, &'o str, &'o str), Owned<'o>>,
    /// Gateways that take routes without a parent (GEP-3793).
    defaults: Vec<(&'o str, &'o str)>,
}

/// The listeners of one owner: all of them, and by name.
#[derive(Default)]
struct Owned<'o> {
    all: Vec<usize>,
    named: BTreeMap<&'o str, Vec<usize>>,
}

impl<'o> Owners<'o> {
    fn of(listeners: &Listeners<'o>) -> Self {
        let mut entries = BTreeMap::new();
        let mut defaults = Vec::new();
        for gate in &listeners.gates {
            let (namespace, name) = key(&gate.object.metadata);
            entries.insert((Kind::Gateway, namespace, name), Owned::default());
            if gate.object.spec.default_scope.as_deref() == Some("All") {
                defaults.push((namespace, name));
            }
        }
        for set in &listeners.sets {
            let (namespace, name) = key(&set.object.metadata);
            entries.insert((Kind::ListenerSet, namespace, name), Owned::default());
        }
        for (at, entry) in listeners.entries.iter().enumerate() {
            let (namespace, name) = listeners.key(entry);
            let kind = if entry.set.is_none() { Kind::Gateway } else { Kind::ListenerSet };
            let owned: &mut Owned<'o> = entries.entry((kind, namespace, name)).or_default();
            owned.all.push(at);
            owned.named.entry(entry.spec.name.as_str()).or_default().push(at);
        }
        Self { entries, defaults }
    }
}

fn routed<'o>(
    kind: Kind,
    object: &'o Route,
    owners: &Owners<'o>,
    index: &Index<'o>,
    listeners: &Listeners<'o>,
) -> Routed<'o> {
    let namespace = key(&object.metadata).0;
    let (mut backends, mut resolved) = (Vec::new(), Ok(()));
    let party = Party { group: GROUP, kind: kind.name(), namespace };
    for reference in object.spec.rules.iter().take(1).flat_map(|rule| &rule.backend_refs) {
        let target = (backends::target(reference, namespace), reference.port);
        let destination = backends::find(target, party, kind == Kind::UdpRoute, index);
        if let (Ok(()), Err(why)) = (&resolved, &destination) {
            resolved = Err(why.clone());
        }
        let weight = reference.weight.unwrap_or(1).clamp(0, 1_000_000).unsigned_abs();
        let of = reference.namespace.as_deref().unwrap_or(namespace);
        let port = reference.port.map(|port| format!(":{port}")).unwrap_or_default();
        let words = format!("{of}/{}{port}", reference.name);
        backends.push(Weighted { weight, words, destination });
    }
    let mut references = object.spec.parent_refs.clone();
    if object.spec.use_default_gateways.as_deref() == Some("All") {
        references.extend(owners.defaults.iter().map(|(namespace, name)| ParentRef {
            group: Some(GROUP.to_owned()),
            kind: Some(Kind::Gateway.name().to_owned()),
            namespace: Some((*namespace).to_owned()),
            name: (*name).to_owned(),
            ..ParentRef::default()
        }));
    }
    let mut parents: Vec<Parent> = Vec::new();
    for reference in references {
        let same = |parent: &Parent| parent.reference == reference;
        if let Some(of) = entries_of(&reference, namespace, owners)
            && !parents.iter().any(same)
        {
            parents.push(parent(reference, (kind, object), &of, index, listeners));
        }
    }
    let dropped_rules = object.spec.rules.len().saturating_sub(1);
    Routed { kind, object, parents, backends, resolved, dropped_rules }
}

/// The listeners of a parent, or those with the requested name. `None`: the parent is not
/// Ringway's.
fn entries_of(reference: &ParentRef, namespace: &str, owners: &Owners<'_>) -> Option<Vec<usize>> {
    let kind = match reference.kind.as_deref().unwrap_or("Gateway") {
        "Gateway" => Kind::Gateway,
        "ListenerSet" => Kind::ListenerSet,
        _ => return None,
    };
    if reference.group.as_deref().unwrap_or(GROUP) != GROUP {
        return None;
    }
    let namespace = reference.namespace.as_deref().unwrap_or(namespace);
    let owned = owners.entries.get(&(kind, namespace, reference.name.as_str()))?;
    Some(match &reference.section_name {
        None => owned.all.clone(),
        Some(name) => owned.named.get(name.as_str()).cloned().unwrap_or_default(),
    })
}

fn parent(
    reference: ParentRef,
    (kind, object): (Kind, &Route),
    of: &[usize],
    index: &Index<'_>,
    listeners: &Listeners<'_>,
) -> Parent {
    let taken = take(&reference, (kind, object), of, index, listeners);
    let (accepted, entries) = match taken {
        Ok(entries) => (Ok(()), entries),
        Err(why) => (Err(why), Vec::new()),
    };
    Parent { reference, accepted, entries, superseded: BTreeMap::new() }
}

/// The listeners that take a route. The Gateway API's order of reasons holds: the listener exists,
/// the listener allows the route, the host names meet, and all requested features are supported.
fn take(
    reference: &ParentRef,
    (kind, object): (Kind, &Route),
    of: &[usize],
    index: &Index<'_>,
    listeners: &Listeners<'_>,
) -> Result<Vec<usize>, Fault> {
    let entry = |at: &usize| &listeners.entries[*at];
    let on_port = |at: &&usize| reference.port.is_none_or(|port| port == entry(at).spec.port);
    let named: Vec<usize> = of.iter().filter(on_port).copied().collect();
    if named.is_empty() {
        let section = reference.section_name.as_deref().map(|name| format!(" named {name}"));
        let port = reference.port.map(|port| format!(" with port {port}"));
        let which = format!("{}{}", section.unwrap_or_default(), port.unwrap_or_default());
        let message = format!("{} has no listener{which}", reference.name);
        return Err(Fault::new("NoMatchingParent", message));
    }
    let namespace = key(&object.metadata).0;
    let (mut allowed, mut refusals) = (Vec::new(), Vec::new());
    for at in named {
        match allows(entry(&at), kind, namespace, listeners, index) {
            Ok(()) => allowed.push(at),
            Err(why) => refusals.push((entry(&at).spec.name.as_str(), why)),
        }
    }
    if allowed.is_empty() {
        return Err(Fault::new("NotAllowedByListeners", not_allowed(&refusals)));
    }
    let meets = |at: &&usize| !hostnames(entry(at), &object.spec.hostnames).is_empty();
    let meeting: Vec<usize> = allowed.iter().filter(meets).copied().collect();
    if meeting.is_empty() {
        let message = "no hostname of the route is one that a listener takes".to_owned();
        return Err(Fault::new("NoMatchingListenerHostname", message));
    }
    supported(kind, object, meeting.iter().map(entry))?;
    Ok(meeting)
}

/// Whether a listener allows a route. The Gateway need not be accepted, because attachment depends
/// only on allowedRoutes and parentRefs (Gateway API, `ListenerStatus.attachedRoutes`).
fn allows(
    entry: &Entry<'_>,
    kind: Kind,
    namespace: &str,
    listeners: &Listeners<'_>,
    index: &Index<'_>,
) -> Result<(), String> {
    let protocol = &entry.spec.protocol;
    let allowed = entry.spec.allowed_routes.as_ref();
    let allowed = allowed.and_then(|allowed| allowed.namespaces.as_ref());
    if let Err(why) = &entry.accepted {
        return Err(format!("is not accepted ({})", why.reason));
    }
    if entry.set.is_some_and(|set| listeners.sets[set].accepted.is_err()) {
        return Err("is of a ListenerSet that is not accepted".to_owned());
    }
    if entry.protocol.is_some_and(|of| of.route() != kind) {
        return Err(format!("has protocol {protocol}, which takes no {kind}"));
    }
    if !entry.kinds.iter().any(|of| of.kind == kind.name()) {
        return Err(format!("has allowedRoutes.kinds without {kind}"));
    }
    if !index.lets_in(allowed, "Same", listeners.key(entry).0, namespace) {
        let from = allowed.and_then(|allowed| allowed.from.as_deref()).unwrap_or("Same");
        return Err(format!(
            "has allowedRoutes.namespaces ({from}) that let in nothing of namespace {namespace}"
        ));
    }
    Ok(())
}

/// The reasons that keep a route out, by listener, as far as a status has room.
fn not_allowed(refusals: &[(&str, String)]) -> String {
    const SHOWN: usize = 16;
    let shown = refusals.iter().take(SHOWN);
    let mut shown: Vec<_> = shown.map(|(name, why)| format!("listener {name} {why}")).collect();
    if let Some(more) = refusals.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        shown.push(format!("{more} more do not allow it either"));
    }
    shown.join("; ")
}

/// The names that a route with the host names `of` has on a listener. `None` is every name that the
/// listener takes. The list is empty if no names meet.
pub(super) fn hostnames(entry: &Entry<'_>, of: &[String]) -> Vec<Option<String>> {
    let named = matches!(entry.protocol, Some(Protocol::Tls | Protocol::Https | Protocol::Http));
    if !named || of.is_empty() {
        return vec![None];
    }
    let own = entry.hostname.as_deref();
    let (mut met, mut seen) = (Vec::new(), BTreeSet::new());
    for name in of.iter().map(|name| name.to_lowercase()) {
        let meets = own.is_none_or(|own| crate::check::overlap(own, &name));
        if meets && seen.insert(name.clone()) {
            met.push(Some(name));
        }
    }
    met
}

/// Checks that a Layer-4 gateway supports all that the route asks for.
fn supported<'e>(
    kind: Kind,
    object: &Route,
    entries: impl Iterator<Item = &'e Entry<'e>>,
) -> Result<(), Fault> {
    let spec = &object.spec;
    for name in &spec.hostnames {
        if let Err(message) = crate::toml::values::read_hostname(name) {
            return Err(Fault::new("UnsupportedValue", format!("hostnames: {message}")));
        }
    }
    if kind != Kind::HttpRoute {
        return Ok(());
    }
    let no = |what: &str| {
        let message = format!(
            "Ringway is a Layer-4 gateway: it forwards what an HTTPRoute gets as bytes, and can't \
             do {what}"
        );
        Err(Fault::new("UnsupportedValue", message))
    };
    let everything = serde_json::json!({"path": {"type": "PathPrefix", "value": "/"}});
    let [rule] = spec.rules.as_slice() else { return no("several rules, or none") };
    if rule.matches.iter().any(|found| *found != everything) {
        return no("matches");
    }
    if !rule.filters.is_empty() || rule.backend_refs.iter().any(|to| !to.filters.is_empty()) {
        return no("filters");
    }
    if let Some(field) = rule.rest.keys().next() {
        return no(field);
    }
    let mut plain = entries.filter(|entry| entry.protocol == Some(Protocol::Http));
    if !spec.hostnames.is_empty() && plain.next().is_some() {
        return no("hostnames on an HTTP listener");
    }
    Ok(())
}

/// Chooses the route that is served: one route on a TCP or UDP listener, and one for each name and
/// protocol (ALPN) on a TLS listener, always the oldest. Refusals are written into the route's
/// parents.
pub(super) fn choose(
    routes: &mut [Routed<'_>],
    listeners: &Listeners<'_>,
    policies: &Policies<'_>,
) -> Served {
    let mut served = Served::default();
    // Routes are in the order of age.
    for (at, route) in routes.iter_mut().enumerate() {
        let title = title(route.kind, route.object);
        let protocols = policies.protocols(route.kind.name(), &route.object.metadata);
        for parent in &mut route.parents {
            for entry in &parent.entries {
                let own = &listeners.entries[*entry];
                let place = listeners.place(*entry);
                let mut winner = None;
                for name in hostnames(own, &route.object.spec.hostnames) {
                    let keys = || protocols.iter().map(|of| (place, name.clone(), of.clone()));
                    let older = keys()
                        .find_map(|key| served.winners.get(&key).filter(|(first, _)| *first != at));
                    // A route that shares one protocol with an older one is not served in part.
                    if let Some((_, older)) = older {
                        winner = Some(older.clone());
                        continue;
                    }
                    served.winners.extend(keys().map(|key| (key, (at, title.clone()))));
                    served.places.entry((at, place)).or_default().insert(name);
                }
                let nothing = !served.places.contains_key(&(at, place));
                if let Some(winner) = winner.filter(|_| nothing) {
                    parent.superseded.insert(*entry, winner);
                }
            }
        }
    }
    served
}

/// The listener's place, and the server name and the protocol (ALPN) that a client asks for.
type Asked = (usize, Option<String>, Option<String>);

/// The names and protocols, with the route that serves each.
#[derive(Default)]
pub(super) struct Served {
    winners: BTreeMap<Asked, (usize, String)>,
    /// The names of each route at each place.
    pub(super) places: BTreeMap<(usize, usize), BTreeSet<Option<String>>>,
}

impl Listeners<'_> {
    /// The entry with the configuration's listener for this entry. HTTP listeners of one Gateway
    /// and port differ only in HTTP, so the first stands for all of them.
    pub(super) fn place(&self, at: usize) -> usize {
        let own = &self.entries[at];
        if own.protocol != Some(Protocol::Http) {
            return at;
        }
        self.first_http.get(&(own.gate, own.spec.port)).copied().unwrap_or(at)
    }
}

/// A title such as `TCPRoute/namespace/name`.
pub(super) fn title(kind: Kind, object: &Route) -> String {
    let (namespace, name) = key(&object.metadata);
    format!("{kind}/{namespace}/{name}")
}
