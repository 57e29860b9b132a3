//! Finds listeners that conflict. The listeners of a port and address are looked up in maps,
//! because thousands of listeners may share one port.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::gateway::translate::listeners::{Entry, Listeners, Protocol};
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::verdict::Fault;

impl Listeners<'_> {
    /// Between Gateways and sets, the first listener wins. Among the listeners of one Gateway or
    /// set there is no winner.
    pub(super) fn find_conflicts(&mut self, settings: &Settings) {
        let mut taken: BTreeMap<Place, Taken> = BTreeMap::new();
        let mut from = 0;
        while from < self.entries.len() {
            let Entry { gate, set, .. } = self.entries[from];
            let own = self.own(gate, set);
            from = own.end;
            if !self.takes_part(own.start) {
                continue;
            }
            let mut lost = Vec::new();
            for at in own.clone() {
                let entry = &self.entries[at];
                let ways = self.ways(at).into_iter().flatten();
                let others =
                    ways.filter_map(|(place, apart)| taken.get(&place)?.against(at, entry, apart));
                let why = others.min().and_then(|other| self.conflict(other, at, settings));
                lost.extend(why.map(|why| (at, why)));
            }
            self.mark(lost);
            let mut within: BTreeMap<Place, Taken> = BTreeMap::new();
            for at in own.clone() {
                if let Some(place) = self.within(at) {
                    within.entry(place).or_default().add(at, &self.entries[at]);
                }
            }
            let mut among = Vec::new();
            for at in own.clone() {
                let taken = self.within(at).and_then(|place| within.get(&place));
                let other = taken.and_then(|taken| taken.against(at, &self.entries[at], false));
                let why = other.and_then(|other| self.conflict(other, at, settings));
                among.extend(why.map(|why| (at, why)));
            }
            self.mark(among);
            for at in own {
                for place in self.places(at).into_iter().flatten() {
                    taken.entry(place).or_default().add(at, &self.entries[at]);
                }
            }
        }
    }

    fn mark(&mut self, conflicts: Vec<(usize, Fault)>) {
        for (at, why) in conflicts {
            let entry = &mut self.entries[at];
            entry.accepted = Err(why.clone());
            entry.conflict = Err(why);
        }
    }

    /// An entry that is refused as a whole conflicts with no other.
    fn takes_part(&self, at: usize) -> bool {
        let entry = &self.entries[at];
        let gate = &self.gates[entry.gate];
        gate.accepted.is_ok()
            && gate.addresses.is_ok()
            && entry.set.is_none_or(|set| self.sets[set].accepted.is_ok())
    }

    /// The place of all listeners of the Gateway with this port. `None`: the entry conflicts with
    /// no other.
    fn within(&self, at: usize) -> Option<Place> {
        let entry = &self.entries[at];
        let udp = entry.protocol? == Protocol::Udp;
        let place = Place { port: entry.spec.port, udp, of: Of::Gate(entry.gate) };
        entry.accepted.is_ok().then_some(place)
    }

    /// The places at which other entries find this entry.
    fn places(&self, at: usize) -> Option<Vec<Place>> {
        let own = self.within(at)?;
        let bound = self.bound(&self.entries[at]);
        let each = bound.iter().map(|address| Of::Address(*address));
        let specific = bound.iter().filter(|address| !address.is_unspecified());
        let parts = specific.map(|address| Of::Single(everywhere(*address)));
        let all = each.chain(parts).map(|of| Place { of, ..own });
        Some(std::iter::once(own).chain(all).collect())
    }

    /// The places at which this entry looks for others: entries of its Gateway; entries with one of
    /// its addresses; and (true) entries with the wildcard address if this entry has a single
    /// address, or the other way round.
    fn ways(&self, at: usize) -> Option<Vec<(Place, bool)>> {
        let own = self.within(at)?;
        let bound = self.bound(&self.entries[at]);
        let each = bound.iter().map(|address| (Of::Address(*address), false));
        let across = bound.iter().map(|address| match address.is_unspecified() {
            true => (Of::Single(*address), true),
            false => (Of::Address(everywhere(*address)), true),
        });
        let all = each.chain(across).map(|(of, apart)| (Place { of, ..own }, apart));
        Some(std::iter::once((own, false)).chain(all).collect())
    }

    /// Why `at` conflicts with `other`.
    fn conflict(&self, other: usize, at: usize, settings: &Settings) -> Option<Fault> {
        let (other, own) = (&self.entries[other], &self.entries[at]);
        let in_force = |entry: &Entry<'_>| entry.accepted.is_ok();
        let (theirs, ours) = (other.protocol?, own.protocol?);
        let transport = |protocol| protocol == Protocol::Udp;
        if !in_force(other)
            || !in_force(own)
            || other.spec.port != own.spec.port
            || transport(theirs) != transport(ours)
            || !self.share_an_address(other, own)
        {
            return None;
        }
        let port = own.spec.port;
        let by_name = theirs.reads_hello() && ours.reads_hello()
            || theirs == Protocol::Http && ours == Protocol::Http && other.gate == own.gate;
        // One socket takes all addresses or a single one. Names differ only among listeners of one
        // socket.
        let apart = by_name && self.has_a_part(other, own);
        if by_name && !apart && other.hostname != own.hostname {
            return None;
        }
        let shared =
            if other.gate == own.gate { String::new() } else { self.shared(other, settings) };
        if apart {
            let message = format!(
                "port {port} is taken{shared}; names can't be shared between one of a node's \
                 addresses and all of them"
            );
            return Some(Fault::new("ProtocolConflict", message));
        }
        if theirs != ours {
            let (theirs, ours) = (&other.spec.protocol, &own.spec.protocol);
            let message =
                format!("port {port} is for {theirs} already, which {ours} can't share{shared}");
            return Some(Fault::new("ProtocolConflict", message));
        }
        if !by_name {
            let message =
                format!("port {port} has a {} listener already{shared}", own.spec.protocol);
            return Some(Fault::new("ProtocolConflict", message));
        }
        let hostname = own.hostname.as_deref().unwrap_or("(every name)");
        let message = format!("port {port} has a listener for {hostname} already{shared}");
        Some(Fault::new("HostnameConflict", message))
    }

    /// Names the other listener's Gateway, but not the listener's owner, which may be in another
    /// namespace.
    fn shared(&self, other: &Entry<'_>, settings: &Settings) -> String {
        let without_pool = settings.address_pool.is_empty();
        let why = if without_pool { ", because there is no address pool" } else { "" };
        format!(
            " in Gateway {}, which has the same address{why}",
            self.gates[other.gate].object.metadata.name.as_deref().unwrap_or_default()
        )
    }

    fn share_an_address(&self, a: &Entry<'_>, b: &Entry<'_>) -> bool {
        a.gate == b.gate || self.meet(a, b, |a, b| a == b) || self.has_a_part(a, b)
    }

    /// Whether one entry has a wildcard address, and the other a single address of that IP version.
    fn has_a_part(&self, a: &Entry<'_>, b: &Entry<'_>) -> bool {
        self.meet(a, b, |a, b| {
            a.is_ipv4() == b.is_ipv4() && a.is_unspecified() != b.is_unspecified()
        })
    }

    fn meet(&self, a: &Entry<'_>, b: &Entry<'_>, meets: impl Fn(IpAddr, IpAddr) -> bool) -> bool {
        self.bound(a).iter().any(|a| self.bound(b).iter().any(|b| meets(*a, *b)))
    }

    fn bound(&self, entry: &Entry<'_>) -> &[IpAddr] {
        self.gates[entry.gate].addresses.as_ref().map_or(&[], |assigned| &assigned.bound)
    }
}

/// The wildcard address of this address's IP version.
fn everywhere(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A place where listeners may conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    port: i32,
    udp: bool,
    of: Of,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Gate(usize),
    /// One address, or the wildcard address of an IP version.
    Address(IpAddr),
    /// Any single address of this IP version.
    Single(IpAddr),
}

/// The way to tell listeners of one place apart. Listeners of different kinds can't be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    /// By the names in ClientHellos.
    ByHello,
    /// By HTTP alone, so HTTP listeners of one Gateway are one listener.
    ByHttp(usize),
    Not,
}

impl Told {
    fn of(entry: &Entry<'_>) -> Self {
        match entry.protocol {
            Some(protocol) if protocol.reads_hello() => Self::ByHello,
            Some(Protocol::Http) => Self::ByHttp(entry.gate),
            _ => Self::Not,
        }
    }
}

/// The entries of a place: as many as are needed to find the first that conflicts with another.
#[derive(Default)]
struct Taken {
    any: FirstTwo,
    first: Option<(usize, Told)>,
    /// The first entry of another kind than the first entry of all.
    unlike: Option<usize>,
    named: BTreeMap<(Told, Option<String>), FirstTwo>,
}

impl Taken {
    fn add(&mut self, at: usize, entry: &Entry<'_>) {
        let told = Told::of(entry);
        self.any.add(at);
        let (_, first) = *self.first.get_or_insert((at, told));
        if first != told {
            self.unlike.get_or_insert(at);
        }
        self.named.entry((told, entry.hostname.clone())).or_default().add(at);
    }

    /// The first entry that conflicts with `at`, which may be here itself. `apart`: one of the two
    /// has the wildcard address and the other a single address, so that names do not tell them
    /// apart.
    fn against(&self, at: usize, entry: &Entry<'_>, apart: bool) -> Option<usize> {
        let told = Told::of(entry);
        if apart || told == Told::Not {
            return self.any.besides(at);
        }
        let (first, of_first) = self.first?;
        let unlike = if of_first == told { self.unlike } else { Some(first) };
        let named = self.named.get(&(told, entry.hostname.clone()));
        let named = named.and_then(|named| named.besides(at));
        unlike.into_iter().chain(named).min()
    }
}

#[derive(Clone, Copy, Default)]
struct FirstTwo([Option<usize>; 2]);

impl FirstTwo {
    fn add(&mut self, at: usize) {
        if let Some(free) = self.0.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(at);
        }
    }

    fn besides(self, at: usize) -> Option<usize> {
        self.0.into_iter().flatten().find(|other| *other != at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::gateway::objects::Objects;
    use crate::gateway::testing::settings;
    use crate::gateway::translate::index::Index;

    /// The fields of a listener, as numbers.
    type Numbers = (u8, u8, u8);

    fn specs(listeners: &[Numbers]) -> serde_json::Value {
        let spec = |(nth, (port, protocol, name)): (usize, &Numbers)| {
            let protocol = ["TCP", "UDP", "TLS", "HTTP", "TLS"][usize::from(*protocol)];
            let hostname = ["", "a.example", "b.example", "*.example"][usize::from(*name)];
            json!({
                "name": format!("l{nth}"), "port": *port, "protocol": protocol,
                "hostname": hostname, "tls": {"mode": "Passthrough"},
            })
        };
        listeners.iter().enumerate().map(spec).collect::<Vec<_>>().into()
    }

    /// Gateways with or without an address of their own, and a set for each.
    fn objects(gateways: &[(bool, Vec<Numbers>, Vec<Numbers>)]) -> Objects {
        let mut objects = Objects::default();
        let class = json!({
            "metadata": {"name": "c"}, "spec": {"controllerName": settings().controller_name},
        });
        objects.gateway_classes.push(Arc::new(serde_json::from_value(class).expect("a class")));
        for (nth, (own_address, listeners, of_set)) in gateways.iter().enumerate() {
            let addresses = if *own_address { json!([{"value": "192.0.2.1"}]) } else { json!([]) };
            let gateway = json!({
                "metadata": {"name": format!("g{nth}")},
                "spec": {
                    "gatewayClassName": "c", "listeners": specs(listeners),
                    "addresses": addresses, "allowedListeners": {"namespaces": {"from": "All"}},
                },
            });
            objects.gateways.push(Arc::new(serde_json::from_value(gateway).expect("a Gateway")));
            let set = json!({
                "metadata": {"name": format!("s{nth}")},
                "spec": {"parentRef": {"name": format!("g{nth}")}, "listeners": specs(of_set)},
            });
            objects.listener_sets.push(Arc::new(serde_json::from_value(set).expect("a set")));
        }
        objects
    }

    /// Finds conflicts by comparing each entry with all others.
    fn compare_all(listeners: &mut Listeners<'_>, settings: &Settings) {
        let mut earlier: Vec<usize> = Vec::new();
        let mut from = 0;
        while from < listeners.entries.len() {
            let Entry { gate, set, .. } = listeners.entries[from];
            let own = listeners.own(gate, set);
            from = own.end;
            if !listeners.takes_part(own.start) {
                continue;
            }
            let mut find = |others: &[usize]| {
                let mut found = Vec::new();
                for at in own.clone() {
                    let mut others = others.iter().filter(|other| **other != at);
                    let why = others.find_map(|other| listeners.conflict(*other, at, settings));
                    found.extend(why.map(|why| (at, why)));
                }
                listeners.mark(found);
            };
            find(&earlier);
            find(&own.clone().collect::<Vec<_>>());
            earlier.extend(own);
        }
    }

    fn numbers() -> impl Strategy<Value = Vec<Numbers>> {
        prop::collection::vec((1..=2u8, 0..5u8, 0..4u8), 1..5)
    }

    proptest! {
        #[test]
        fn what_is_looked_up_is_what_a_comparison_of_all_with_all_finds(
            gateways in prop::collection::vec((any::<bool>(), numbers(), numbers()), 1..6),
            pool in any::<bool>(),
        ) {
            let mut settings = settings();
            if pool {
                settings.address_pool.push("192.0.2.0/29".parse().expect("CIDR"));
            }
            let objects = objects(&gateways);
            let index = Index::of(&objects);
            let mut found = Listeners::all(&objects, &index, &settings);
            let mut expected = Listeners::all(&objects, &index, &settings);
            prop_assert_eq!(found.gates.len(), gateways.len());
            found.find_conflicts(&settings);
            compare_all(&mut expected, &settings);
            for (found, expected) in found.entries.iter().zip(&expected.entries) {
                prop_assert_eq!(&found.accepted, &expected.accepted);
                prop_assert_eq!(&found.conflict, &expected.conflict);
            }
        }
    }
}
