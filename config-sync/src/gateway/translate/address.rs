//! Assigns addresses to Gateways.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;

use crate::gateway::objects::{Address, Gateway};
use crate::gateway::translate::index::key;
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::verdict::Fault;

/// The addresses of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    /// The addresses in the Gateway's status.
    pub(super) shown: Vec<IpAddr>,
    /// The addresses that the Gateway's listeners are bound to.
    pub(super) bound: Vec<IpAddr>,
}

/// Why a Gateway has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The Gateway can't be accepted.
    Unsupported(Fault),
    /// The Gateway can be accepted, but not be programmed.
    Unusable(Fault),
}

/// The most addresses that a status may list.
const MAX_SHOWN: usize = 16;

/// Assigns addresses in the order of seniority, which is the order of `gateways` and of the result.
/// Every Gateway keeps the addresses in its status, because clients know them. After that come the
/// addresses that specs ask for. Next come the addresses that a Gateway was given last, if its
/// status is not written yet. The other Gateways get the lowest free addresses. So neither a
/// restart nor a new Gateway changes anything.
///
/// Gateways that are `waiting` for their class are given nothing. The addresses in their statuses
/// stay reserved, because a class may be gone, or its name misspelt, for a moment.
///
/// The addresses that were given last may differ between replicas, because changes may fall into
/// different bursts. The leader's status decides: once every Gateway has a status, nothing depends
/// on `settings.given`.
pub(super) fn assign(
    gateways: &[&Gateway],
    waiting: &[&Gateway],
    settings: &Settings,
) -> Vec<Result<Assigned, Refused>> {
    let pool = &settings.address_pool;
    let mut asked: Vec<_> = gateways.iter().map(|gateway| asked_for(gateway, settings)).collect();
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    let mut kept = vec![Vec::new(); gateways.len()];
    for ((gateway, asked), kept) in gateways.iter().zip(&asked).zip(&mut kept) {
        let had = in_status(gateway);
        match asked {
            Ok(asked) if asked.is_empty() => *kept = keep(had, pool, &mut taken),
            Ok(asked) => taken.extend(had.iter().filter(|address| asked.contains(address))),
            Err(_) => {}
        }
    }
    // An address that a waiting Gateway asked for is not reserved: other Gateways may ask for it
    // too.
    let (unasked, own): (Vec<&Gateway>, Vec<&Gateway>) = waiting
        .iter()
        .copied()
        .partition(|gateway| asked_for(gateway, settings).is_ok_and(|of| of.is_empty()));
    let reserved = unasked.into_iter().map(|gateway| keep(in_status(gateway), pool, &mut taken));
    let reserved: Vec<_> = reserved.collect();
    taken.extend(own.into_iter().flat_map(in_status));
    refuse_held(kept.iter().chain(&reserved).flatten(), &mut asked);
    for static_addresses in asked.iter().flatten() {
        taken.extend(static_addresses);
    }
    for ((gateway, asked), kept) in gateways.iter().zip(&asked).zip(&mut kept) {
        if asked.as_ref().is_ok_and(Vec::is_empty) && kept.is_empty() {
            *kept = keep(given(gateway, settings), pool, &mut taken);
        }
    }
    let mut versions = [true, false].map(|v4| Version::of(pool, v4));
    let mut assigned = Vec::new();
    for (asked, kept) in asked.into_iter().zip(kept) {
        assigned.push(match asked {
            Err(refused) => Err(refused),
            Ok(asked) if !asked.is_empty() => Ok(Assigned { shown: asked.clone(), bound: asked }),
            Ok(_) if pool.is_empty() => Ok(shared(settings)),
            Ok(_) => from_pool(&mut versions, kept, &mut taken),
        });
    }
    assigned
}

/// One address of each IP version, of those in `had` that the pool gives and no Gateway has.
fn keep(had: Vec<IpAddr>, pool: &[IpNet], taken: &mut BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let mut versions = BTreeSet::new();
    let free = had.into_iter().filter(|address| {
        let usable = pool.iter().any(|net| gives(net, *address));
        usable && versions.insert(address.is_ipv4()) && taken.insert(*address)
    });
    free.collect()
}

/// Refuses addresses that were given to another Gateway. The message does not name the other
/// Gateway, which may be in another namespace.
fn refuse_held<'a>(
    held: impl Iterator<Item = &'a IpAddr>,
    asked: &mut [Result<Vec<IpAddr>, Refused>],
) {
    let held: BTreeSet<_> = held.collect();
    for asked in asked {
        let Ok(addresses) = asked else { continue };
        if let Some(address) = addresses.iter().find(|address| held.contains(address)) {
            let message = format!("{address} is in use by another Gateway; ask for a free one");
            *asked = Err(Refused::Unusable(Fault::new("AddressNotUsable", message)));
        }
    }
}

/// The addresses that the spec names. Empty if the spec leaves the choice to Ringway.
fn asked_for(gateway: &Gateway, settings: &Settings) -> Result<Vec<IpAddr>, Refused> {
    let kind = |address: &Address| address.kind.clone().unwrap_or_else(|| "IPAddress".into());
    let addresses = &gateway.spec.addresses;
    if let Some(address) = addresses.iter().find(|address| kind(address) != "IPAddress") {
        let message =
            format!("addresses of type {} are not supported; give an IPAddress", kind(address));
        return Err(Refused::Unsupported(Fault::new("UnsupportedAddress", message)));
    }
    let mut asked = Vec::new();
    for value in addresses.iter().filter_map(|address| address.value.as_deref()) {
        if value.is_empty() {
            continue;
        }
        // An address in the status stays usable while its node restarts, so that the Gateway keeps
        // its other addresses too.
        let had = |address: &IpAddr| {
            settings.address_pool.is_empty() && in_status(gateway).contains(address)
        };
        let usable = value.parse().ok();
        let usable = usable.filter(|address| is_usable(*address, settings) || had(address));
        let Some(address) = usable else {
            let message = format!("{value} is not {}", whose(settings));
            return Err(Refused::Unusable(Fault::new("AddressNotUsable", message)));
        };
        if !asked.contains(&address) {
            asked.push(address);
        }
    }
    Ok(asked)
}

fn is_usable(address: IpAddr, settings: &Settings) -> bool {
    settings.node_addresses.contains(&address)
        || settings.address_pool.iter().any(|net| gives(net, address))
}

fn whose(settings: &Settings) -> String {
    let list = |of: Vec<String>| of.join(", ");
    let nodes = list(settings.node_addresses.iter().map(IpAddr::to_string).collect());
    if settings.address_pool.is_empty() {
        return format!("an address of the node ({nodes})");
    }
    let pool = list(settings.address_pool.iter().map(IpNet::to_string).collect());
    format!("in the address pool ({pool})")
}

/// Addresses in the status, in its order.
fn in_status(gateway: &Gateway) -> Vec<IpAddr> {
    let addresses = gateway.status.as_ref().and_then(|status| status["addresses"].as_array());
    let value = |address: &Value| address["value"].as_str()?.parse().ok();
    addresses.into_iter().flatten().filter_map(value).collect()
}

fn given(gateway: &Gateway, settings: &Settings) -> Vec<IpAddr> {
    let (namespace, name) = key(&gateway.metadata);
    let given = settings.given.get(&(namespace.to_owned(), name.to_owned()));
    given.cloned().unwrap_or_default()
}

/// The listeners take all that arrives, because the node may have more addresses than the node
/// knows.
fn shared(settings: &Settings) -> Assigned {
    let addresses = settings.node_addresses.iter().copied();
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    let mut bound = Vec::new();
    if !v4.is_empty() || v6.is_empty() {
        bound.push(IpAddr::from(Ipv4Addr::UNSPECIFIED));
    }
    if !v6.is_empty() {
        bound.push(IpAddr::from(Ipv6Addr::UNSPECIFIED));
    }
    // Each version has half of the places, and those that the other version leaves free.
    let places = MAX_SHOWN.saturating_sub(v6.len()).max(MAX_SHOWN / 2);
    let shown = v4.into_iter().take(places).chain(v6).take(MAX_SHOWN).collect();
    Assigned { shown, bound }
}

/// The addresses of the pool of one IP version.
struct Version<'p> {
    v4: bool,
    nets: Vec<&'p IpNet>,
    /// The addresses after the last that was given. Addresses that were taken once stay taken.
    rest: Box<dyn Iterator<Item = IpAddr> + 'p>,
}

impl<'p> Version<'p> {
    fn of(pool: &'p [IpNet], v4: bool) -> Self {
        let nets: Vec<_> = pool.iter().filter(|net| net.addr().is_ipv4() == v4).collect();
        let rest = Box::new(nets.clone().into_iter().flat_map(|net| net.hosts()));
        Self { v4, nets, rest }
    }

    fn next(&mut self, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let nets = &self.nets;
        self.rest
            .find(|address| !taken.contains(address) && nets.iter().any(|net| gives(net, *address)))
    }
}

/// One free address of each IP version of the pool, as far as there are any.
fn from_pool(
    versions: &mut [Version<'_>],
    kept: Vec<IpAddr>,
    taken: &mut BTreeSet<IpAddr>,
) -> Result<Assigned, Refused> {
    let mut addresses = kept;
    let mut missing = Vec::new();
    for version in versions.iter_mut().filter(|version| !version.nets.is_empty()) {
        if addresses.iter().any(|address| address.is_ipv4() == version.v4) {
            continue;
        }
        match version.next(taken) {
            Some(address) => {
                taken.insert(address);
                addresses.push(address);
            }
            None => missing.push(if version.v4 { "IPv4" } else { "IPv6" }),
        }
    }
    if addresses.is_empty() {
        let version = missing.join(" or ");
        let message = format!("no {version} address of the pool is free; make it larger");
        return Err(Refused::Unusable(Fault::new("AddressNotAssigned", message)));
    }
    addresses.sort_by_key(|address| (address.is_ipv6(), *address));
    Ok(Assigned { shown: addresses.clone(), bound: addresses })
}

/// Whether `net` gives this address. A network or broadcast address is not given, nor the address
/// that stands for every router (RFC 4291, section 2.6.1).
fn gives(net: &IpNet, address: IpAddr) -> bool {
    let edge = match net {
        IpNet::V4(net) => {
            net.prefix_len() < 31 && {
                address == IpAddr::from(net.network()) || address == IpAddr::from(net.broadcast())
            }
        }
        IpNet::V6(net) => net.prefix_len() < 127 && address == IpAddr::from(net.network()),
    };
    net.contains(&address) && !edge
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::settings;

    fn gateway(name: &str, asked: &[&str], had: &[&str]) -> Gateway {
        let asked: Vec<_> = asked.iter().map(|value| serde_json::json!({"value": value})).collect();
        let had: Vec<_> = had.iter().map(|value| serde_json::json!({"value": value})).collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "n", "name": name},
            "spec": {"gatewayClassName": "ringway", "addresses": asked},
            "status": {"addresses": had},
        }))
        .expect("a Gateway")
    }

    fn shown(gateways: &[Gateway], pool: &[&str]) -> Vec<String> {
        shown_after(gateways, pool, &[])
    }

    fn shown_after(gateways: &[Gateway], pool: &[&str], given: &[(&str, &str)]) -> Vec<String> {
        let mut settings = settings();
        let given = given.iter().map(|(name, address)| {
            (("n".to_owned(), (*name).to_owned()), vec![address.parse().expect("an address")])
        });
        settings.given = given.collect();
        settings.address_pool = pool.iter().map(|net| net.parse().expect("CIDR")).collect();
        let gateways: Vec<_> = gateways.iter().collect();
        let say = |assigned: Result<Assigned, Refused>| match assigned {
            Ok(assigned) => {
                assigned.shown.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
            }
            Err(Refused::Unsupported(why) | Refused::Unusable(why)) => why.reason.to_owned(),
        };
        let (waiting, gateways): (Vec<_>, Vec<_>) =
            gateways.into_iter().partition(|gateway| gateway.spec.gateway_class_name == "gone");
        assign(&gateways, &waiting, &settings).into_iter().map(say).collect()
    }

    /// A Gateway that waits for its class.
    fn waiting(name: &str, asked: &[&str], had: &[&str]) -> Gateway {
        let mut gateway = gateway(name, asked, had);
        gateway.spec.gateway_class_name = "gone".into();
        gateway
    }

    #[test]
    fn what_a_gateway_has_that_waits_for_its_class_is_reserved() {
        let pool = &["10.9.0.0/29"];
        let waits = || waiting("w", &[], &["10.9.0.1"]);
        let asks = || gateway("b", &["10.9.0.1"], &[]);
        assert_eq!(shown(&[gateway("a", &[], &[]), waits()], pool), ["10.9.0.2"]);
        assert_eq!(shown(&[waits(), asks()], pool), ["AddressNotUsable"]);
        // Another Gateway has the address already, and keeps it.
        assert_eq!(shown(&[waits(), gateway("b", &[], &["10.9.0.1"])], pool), ["10.9.0.1"]);
        // An address that the Gateway has asked for is shared, as among Gateways that are served.
        let own = || waiting("w", &["10.9.0.1"], &["10.9.0.1"]);
        assert_eq!(shown(&[own(), asks()], pool), ["10.9.0.1"]);
        assert_eq!(shown(&[own(), gateway("a", &[], &[])], pool), ["10.9.0.2"]);
    }

    #[test]
    fn a_new_gateway_takes_nobodys_address() {
        let pool = &["10.9.0.0/29"];
        let old = gateway("b", &[], &["10.9.0.3"]);
        let gateways = [gateway("a", &[], &[]), old, gateway("c", &["10.9.0.1"], &[])];
        assert_eq!(shown(&gateways, pool), ["10.9.0.2", "10.9.0.3", "10.9.0.1"]);
    }

    #[test]
    fn what_was_given_stays_until_a_status_says_otherwise() {
        let pool = &["10.9.0.0/29"];
        let given = &[("b", "10.9.0.1")];
        let two = [gateway("a", &[], &[]), gateway("b", &[], &[])];
        assert_eq!(shown_after(&two, pool, given), ["10.9.0.2", "10.9.0.1"]);
        let two = [gateway("a", &[], &["10.9.0.1"]), gateway("b", &[], &["10.9.0.4"])];
        assert_eq!(shown_after(&two, pool, given), ["10.9.0.1", "10.9.0.4"]);
        // Another replica has written that `a` has the address that `b` was given here.
        let two = [gateway("b", &[], &[]), gateway("a", &[], &["10.9.0.1"])];
        assert_eq!(shown_after(&two, pool, given), ["10.9.0.2", "10.9.0.1"]);
    }

    #[test]
    fn what_another_gateway_has_can_not_be_asked_for() {
        let pool = &["10.9.0.0/29"];
        // Age does not count here: the Gateway that has the address keeps it.
        let holder = || gateway("b", &[], &["10.9.0.1"]);
        let asks = || gateway("a", &["10.9.0.1"], &[]);
        assert_eq!(shown(&[holder(), asks()], pool), ["10.9.0.1", "AddressNotUsable"]);
        assert_eq!(shown(&[asks(), holder()], pool), ["AddressNotUsable", "10.9.0.1"]);
        // A Gateway may ask for its own address. Then no other Gateway is given that address.
        let own = gateway("a", &["10.9.0.1"], &["10.9.0.1"]);
        assert_eq!(shown(&[own, holder()], pool), ["10.9.0.1", "10.9.0.2"]);
        // An address that is only remembered was promised to no client.
        let two = [gateway("b", &[], &[]), asks()];
        assert_eq!(shown_after(&two, pool, &[("b", "10.9.0.1")]), ["10.9.0.2", "10.9.0.1"]);
    }

    #[test]
    fn a_pool_of_both_versions_gives_one_of_each_and_ends() {
        let pool = &["10.9.0.0/30", "fd00::/126"];
        let gateways = [gateway("a", &[], &[]), gateway("b", &[], &["fd00::3", "10.9.0.2"])];
        assert_eq!(shown(&gateways, pool), ["10.9.0.1 fd00::1", "10.9.0.2 fd00::3"]);
        let three = [gateway("a", &[], &[]), gateway("b", &[], &[]), gateway("c", &[], &[])];
        assert_eq!(shown(&three, &["10.9.0.0/30"])[2], "AddressNotAssigned");
        // A Gateway keeps its address when the pool gets a second IP version and has too few of
        // that.
        let had = |name: &str, address: &str| gateway(name, &[], &[address]);
        let two = [had("a", "10.9.0.1"), had("b", "10.9.0.2")];
        assert_eq!(shown(&two, &["10.9.0.0/30", "fd00::/127"])[1], "10.9.0.2 fd00::1");
        assert_eq!(shown(&two, &["10.9.0.0/30", "fd00::1/128"])[1], "10.9.0.2");
    }

    #[test]
    fn a_status_has_addresses_of_both_versions_and_all_are_bound() {
        let mut settings = settings();
        let v4 = (1..=20).map(|n| format!("192.0.2.{n}"));
        let v6 = (1..=20).map(|n| format!("2001:db8::{n}"));
        for (count, (of_v4, of_v6)) in [(20, (8, 8)), (3, (13, 3))] {
            let all = v4.clone().chain(v6.clone().take(count));
            settings.node_addresses = all.map(|a| a.parse().expect("an address")).collect();
            let Assigned { shown, bound } = shared(&settings);
            assert_eq!(bound.len(), 2);
            let count = |v4| shown.iter().filter(|address| address.is_ipv4() == v4).count();
            assert_eq!((count(true), count(false)), (of_v4, of_v6));
        }
    }

    #[test]
    fn what_is_outside_of_the_pool_or_the_node_cannot_be_asked_for() {
        let outside = || [gateway("a", &["192.0.2.77"], &[])];
        assert_eq!(shown(&outside(), &["10.9.0.0/24"]), ["AddressNotUsable"]);
        assert_eq!(shown(&outside(), &[]), ["AddressNotUsable"]);
        assert_eq!(shown(&[gateway("a", &["no address"], &[])], &[]), ["AddressNotUsable"]);
        assert_eq!(
            shown(&[gateway("a", &["10.9.0.0"], &[])], &["10.9.0.0/24"]),
            ["AddressNotUsable"]
        );
        assert_eq!(shown(&[gateway("a", &["192.0.2.1"], &[])], &[]), ["192.0.2.1"]);
        // The addresses are of a node that is gone for the moment.
        let two = &["192.0.2.1", "192.0.2.2"];
        assert_eq!(shown(&[gateway("a", two, &[])], &[]), ["AddressNotUsable"]);
        assert_eq!(shown(&[gateway("a", two, two)], &[]), ["192.0.2.1 192.0.2.2"]);
        assert_eq!(shown(&[gateway("a", &[""], &[])], &[]), ["192.0.2.1"]);
    }
}
