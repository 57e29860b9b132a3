//! The endpoints that may be picked: weights, backups, and those that are gone.

use std::sync::Arc;

use config_sync::check::parse_for;
use config_sync::compile::names::Names;
use config_sync::compile::whole;
use config_sync::compile::whole::Whole;
use config_sync::model::endpoint::{DnsName, Resolved, Standing, Target};
use config_sync::table::address::EndpointAddress;
use config_sync::table::limit::Load;
use config_sync::table::routing::{Absence, Backend, Balance};

use super::{load, machine, port};

/// Endpoint `n` of the backend `b` has the address 10.0.0.1 and port `n`.
fn pool(endpoints: &str, balance: &str) -> (Whole, String) {
    let text =
        format!("[[backends]]\nname = \"b\"\nbalance = \"{balance}\"\nendpoints = [{endpoints}]\n");
    let config = parse_for("f", &text, &machine()).expect("a configuration");
    let whole = whole(&config, &Resolved::default(), &mut Names::new()).expect("its parts fit");
    (whole, text)
}

fn ports(backend: &Backend) -> Vec<(u16, u32)> {
    backend.endpoints.iter().map(|of| (port(of.address), of.weight)).collect()
}

#[test]
fn weights_are_turns_and_shares_of_hashes() {
    let endpoints = "{ address = \"10.0.0.1:1\", weight = 3 }, \"10.0.0.1:2\", \
                     { address = \"10.0.0.1:3\", weight = 0 }";
    for balance in ["round-robin", "least-connections", "random", "source-hash"] {
        let (whole, text) = pool(endpoints, balance);
        let table = whole.pickable(1, &|_, _| Standing::UP, None);
        let [backend] = &table.backends[..] else { panic!("{table:?}") };
        assert_eq!(ports(backend), [(1, 3), (2, 1), (3, 0)]);
        assert_eq!(*backend.turns, [0, 0, 1, 0], "{text}");
        if let Balance::SourceHash(slots) = &backend.balance {
            let of = |index| slots.iter().filter(|slot| **slot == index).count();
            assert_eq!((of(0) + of(1), of(2)), (slots.len(), 0));
            assert!(of(0).abs_diff(3 * of(1)) < 10, "{} and {}", of(0), of(1));
        }
    }
}

/// Workers are told of one count for an endpoint, from table to table, and only where they need it.
#[test]
fn sessions_are_counted_over_all_workers_where_somebody_asks() {
    let mut names = Names::new();
    let mut loads = |balance: &str| {
        let text = format!(
            "[[backends]]\nname = \"b\"\nbalance = \"{balance}\"\nendpoints = [\"10.0.0.1:1\"]\n"
        );
        load(&text, &mut names, 1).expect("a table").backends.remove(0).loads
    };
    let of = |loads: &[Option<Load>]| loads[0].clone().expect("a load").sessions;
    let first = loads("least-connections");
    assert!(loads("round-robin").is_empty(), "nobody pays for what nobody uses");
    let second = loads("least-connections");
    assert!(Arc::ptr_eq(&of(&first), &of(&second)));
}

#[test]
fn backups_stand_in_only_while_no_other_may_be_picked() {
    let endpoints = "\"10.0.0.1:1\", { address = \"10.0.0.1:2\", backup = true }, \
                     { address = \"10.0.0.1:3\", weight = 0 }";
    let (whole, _) = pool(endpoints, "source-hash");
    let table = |down: &[u16]| {
        let standing = |_: &str, at: EndpointAddress| {
            if down.contains(&port(at)) { Standing::DOWN } else { Standing::UP }
        };
        let table = whole.pickable(1, &standing, None);
        ports(&table.backends[0])
    };
    assert_eq!(table(&[]), [(1, 1), (3, 0)]);
    assert_eq!(table(&[1]), [(2, 1), (3, 0)], "with weight 0 it gets nothing");
    assert_eq!(table(&[1, 2]), [(3, 0)]);
    assert_eq!(table(&[2, 3]), [(1, 1)]);
}

#[test]
fn backups_keep_what_they_got_without_failback() {
    let endpoints = "\"10.0.0.1:1\", { address = \"10.0.0.1:2\", backup = true }, \
                     { address = \"10.0.0.1:3\", backup = true }";
    for (key, back) in [("", &[1][..]), ("\"\nfailback = false\n#", &[2, 3])] {
        let (whole, text) = pool(endpoints, &format!("source-hash{key}"));
        let mut table = None;
        let mut ports_without = |down: &[u16]| -> Vec<u16> {
            let standing = |_: &str, at: EndpointAddress| {
                if down.contains(&port(at)) { Standing::DOWN } else { Standing::UP }
            };
            let next = whole.pickable(1, &standing, table.as_ref());
            let found = ports(&next.backends[0]).iter().map(|(port, _)| *port).collect();
            table = Some(next);
            found
        };
        assert_eq!(ports_without(&[]), [1], "{text}");
        assert_eq!(ports_without(&[1]), [2, 3]);
        assert_eq!(ports_without(&[1, 2]), [3]);
        assert_eq!(ports_without(&[]), back, "{text}");
        assert_eq!(ports_without(&[2, 3]), [1], "no backup is left");
        assert_eq!(ports_without(&[]), [1], "the first has it again, and keeps it");
        assert!(ports_without(&[1, 2, 3]).is_empty());
        assert_eq!(ports_without(&[]), [1], "nobody had it");
    }
}

#[test]
fn what_backups_keep_outlives_changes_of_other_keys() {
    let mut names = Names::new();
    let mut whole_of = |keys: &str, backups: &str| {
        let text = format!(
            "[[backends]]\nname = \"b\"\nendpoints = [\"10.0.0.1:1\", {{ address = \
             \"10.0.0.1:2\", backup = {backups} }}]\n{keys}\n"
        );
        let config = parse_for("f", &text, &machine()).expect("a configuration");
        whole(&config, &Resolved::default(), &mut names).expect("its parts fit")
    };
    let first_is_down = |_: &str, at: EndpointAddress| {
        if port(at) == 1 { Standing::DOWN } else { Standing::UP }
    };
    let kept = "failback = false";
    let failed_over = whole_of(kept, "true").pickable(1, &first_is_down, None);
    let first = |whole: &Whole, before| {
        let table = whole.pickable(2, &|_, _| Standing::UP, before);
        ports(&table.backends[0]).iter().map(|(port, _)| *port).collect::<Vec<_>>()
    };
    let other_keys = "failback = false\nbalance = \"random\"";
    assert_eq!(first(&whole_of(other_keys, "true"), Some(&failed_over)), [2]);
    assert_eq!(first(&whole_of(kept, "false"), Some(&failed_over)), [1, 2], "it is no backup");
    assert_eq!(first(&whole_of("", "true"), Some(&failed_over)), [1]);
    assert_eq!(first(&whole_of(kept, "true"), None), [1], "a new process");
}

#[test]
fn sessions_leave_endpoints_that_are_gone_where_that_is_asked_for() {
    let mut names = Names::new();
    let mut whole_of = |endpoints: &str, keys: &str, before: Option<&Whole>| {
        let text = format!("[[backends]]\nname = \"b\"\nendpoints = [{endpoints}]\n{keys}\n");
        let config = parse_for("f", &text, &machine()).expect("a configuration");
        let mut whole = whole(&config, &Resolved::default(), &mut names).expect("its parts fit");
        if let Some(before) = before {
            whole.after(before, &names);
        }
        whole
    };
    let gone = |whole: &Whole, down: &[u16]| {
        let standing = |_: &str, at: EndpointAddress| {
            if down.contains(&port(at)) { Standing::DOWN } else { Standing::UP }
        };
        let table = whole.pickable(1, &standing, None);
        table.gone.iter().map(|of| (of.id.0, of.absence, of.close_after)).collect::<Vec<_>>()
    };
    let (both, one) = ("\"10.0.0.1:1\", \"10.0.0.1:2\"", "\"10.0.0.1:1\"");
    let kept = whole_of(both, "", None);
    assert_eq!(gone(&kept, &[2]), [], "by default sessions stay");
    assert_eq!(gone(&whole_of(one, "", Some(&kept)), &[]), []);
    let keys = "on_down = \"close\"\non_removed = \"close\"\nclose_after = \"3s\"";
    let closed = whole_of(both, keys, Some(&kept));
    assert_eq!(gone(&closed, &[]), []);
    assert_eq!(gone(&closed, &[2]), [(1, Absence::Down, 3_000)]);
    // The key of the configuration that still had the endpoint counts, and goes on to count.
    let removed = whole_of(one, "", Some(&closed));
    assert_eq!(gone(&removed, &[]), [(1, Absence::Removed, 3_000)]);
    let later = whole_of(one, keys, Some(&removed));
    let both_gone = [(1, Absence::Removed, 3_000), (0, Absence::Down, 3_000)];
    assert_eq!(gone(&later, &[1]), both_gone);
    assert_eq!(gone(&whole_of(both, keys, Some(&later)), &[]), [], "it is back");
}

#[test]
fn a_part_of_a_weight_counts_and_what_has_not_changed_is_taken_over() {
    let (whole, _) = pool("\"10.0.0.1:1\", \"10.0.0.1:2\"", "source-hash");
    let share = |share| {
        move |_: &str, at: EndpointAddress| Standing {
            is_up: true,
            share: if port(at) == 1 { share } else { 100 },
            weight: None,
        }
    };
    let before = whole.pickable(1, &share(100), None);
    assert_eq!(ports(&before.backends[0]), [(1, 1), (2, 1)]);
    let quarter = whole.pickable(2, &share(25), Some(&before));
    assert_eq!(ports(&quarter.backends[0]), [(1, 25), (2, 100)]);
    assert_eq!(quarter.backends[0].turns.iter().filter(|turn| **turn == 1).count(), 4);
    let same = whole.pickable(3, &share(25), Some(&quarter));
    assert!(Arc::ptr_eq(&same.backends[0].turns, &quarter.backends[0].turns));
    let (Balance::SourceHash(old), Balance::SourceHash(new)) =
        (&quarter.backends[0].balance, &same.backends[0].balance)
    else {
        panic!("{same:?}")
    };
    assert!(Arc::ptr_eq(old, new), "hash tables take long");
}

#[test]
fn a_weight_that_is_asked_for_later_counts_in_place_of_the_configured_one() {
    let (whole, _) = pool("\"10.0.0.1:1\", \"10.0.0.1:2\"", "round-robin");
    let weighted = |weight, is_up| {
        let standing = move |_: &str, at: EndpointAddress| match port(at) {
            1 => Standing { is_up, weight, ..Standing::UP },
            _ => Standing::UP,
        };
        ports(&whole.pickable(1, &standing, None).backends[0])
    };
    assert_eq!(weighted(Some(3), true), [(1, 3), (2, 1)]);
    assert_eq!(weighted(Some(0), true), [(1, 0), (2, 1)], "it stays, with its sessions");
    assert_eq!(weighted(Some(3), false), [(2, 1)], "a weight brings nobody up");
}

#[test]
fn backups_take_over_from_endpoints_with_weight_0() {
    let endpoints = "\"10.0.0.1:1\", { address = \"10.0.0.1:2\", backup = true }";
    let (whole, _) = pool(endpoints, "round-robin");
    let drained = |_: &str, at: EndpointAddress| match port(at) {
        1 => Standing { weight: Some(0), ..Standing::UP },
        _ => Standing::UP,
    };
    let table = whole.pickable(1, &drained, None);
    assert_eq!(ports(&table.backends[0]), [(1, 0), (2, 1)]);
}

/// Weights are as before when an endpoint is back, and an endpoint with weight 0 gets nothing
/// before, meanwhile or afterwards: traefik/traefik issues 2986 (equal shares after a recovery) and
/// 3842 (servers with weight 0 got sessions after their checks).
#[test]
fn weights_are_as_before_when_an_endpoint_is_back() {
    let endpoints = "{ address = \"10.0.0.1:1\", weight = 3 }, \"10.0.0.1:2\", \
                     { address = \"10.0.0.1:3\", weight = 0 }";
    for balance in ["round-robin", "least-connections", "random", "source-hash"] {
        let (whole, _) = pool(endpoints, balance);
        let mut table = None;
        let mut turns_without = |down: &[u16]| {
            let standing = |_: &str, at: EndpointAddress| {
                if down.contains(&port(at)) { Standing::DOWN } else { Standing::UP }
            };
            let next = whole.pickable(1, &standing, table.as_ref());
            let turns = next.backends[0].turns.to_vec();
            let ports = turns.iter().map(|turn| ports(&next.backends[0])[usize::from(*turn)].0);
            let ports: Vec<_> = ports.collect();
            table = Some(next);
            ports
        };
        let before = turns_without(&[]);
        assert_eq!(before, [1, 1, 2, 1], "{balance}");
        assert_eq!(turns_without(&[1]), [2]);
        assert!(turns_without(&[1, 2]).is_empty());
        assert!(turns_without(&[1, 2, 3]).is_empty());
        assert_eq!(turns_without(&[1, 2]), [0; 0], "the endpoint with weight 0 is back");
        assert_eq!(turns_without(&[3]), before);
        assert_eq!(turns_without(&[]), before, "{balance}");
    }
}

/// Two records that lead to one address are one endpoint: haproxy/haproxy issue 1333 (a backend
/// filled up with copies of one address).
#[test]
fn an_address_that_several_records_give_is_one_endpoint() {
    let text = "[[backends]]\nname = \"b\"\n\
                endpoints = [\"srv:_b._tcp.test\", \"b.test:1\", \"10.0.0.1:1\"]\n";
    let config = parse_for("f", text, &machine()).expect("a configuration");
    let target = |rank, port, weight| Target { rank, ip: [10, 0, 0, 1].into(), port, weight };
    let host = DnsName::Host { host: "b.test".into(), port: 1 };
    let service = DnsName::Service("_b._tcp.test".into());
    let services = vec![target(0, 1, 5), target(0, 2, 5), target(1, 1, 7)];
    let resolved = Resolved([(host, vec![target(0, 1, 1)]), (service, services)].into());
    let mut names = Names::new();
    for _ in 0..3 {
        let whole = whole(&config, &resolved, &mut names).expect("its parts fit");
        assert_eq!(ports(&whole.table.backends[0]), [(1, 5), (2, 5)]);
    }
}
