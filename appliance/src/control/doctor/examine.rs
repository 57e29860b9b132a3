//! Judges the facts of a machine. Each check gives one finding, or none if its fact is unknown.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use config_sync::model::backend::FastPath;
use config_sync::model::config::{self, Config, Cores};
use config_sync::model::listener::Listener;
use config_sync::table::address::Address;
use config_sync::table::routing::Protocol;

use super::gather::{Card, Facts, recommended};
use super::{Finding, State};

/// Bits of the capability sets (capabilities(7)).
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_IPC_LOCK: u64 = 1 << 14;

/// The locked memory of one worker, at the most, in bytes.
const LOCKED_PER_WORKER: u64 = 512 << 10;

/// With fewer files, there is room for few sessions.
const FEW_FILES: u64 = 65_536;

pub fn machine(facts: &Facts, config: Option<&Config>) -> Vec<Finding> {
    let mut all = vec![ring(facts), steering(facts), cores(facts)];
    all.extend(seccomp(facts));
    all.push(files(facts, config));
    all.push(locked_memory(facts, config));
    all.extend(recommended().filter_map(|(name, wanted)| setting(facts, name, wanted)));
    all.extend(congestion(facts));
    all.extend(clock(facts));
    all.extend(facts.cards.iter().flat_map(|card| queues(card, workers(facts, config))));
    all.extend(synchronised(facts));
    all.extend(conntrack(facts));
    all.extend(config.and_then(|config| tracked(facts, config)));
    all.push(fast_path(facts, config));
    all
}

/// The number of workers that `ringway run` would start.
fn workers(facts: &Facts, config: Option<&Config>) -> usize {
    match config.map(|config| &config.cores) {
        Some(Cores::List(cores)) => cores.len(),
        Some(Cores::Auto) | None => facts.cores.min(facts.quota),
    }
}

fn ring(facts: &Facts) -> Finding {
    let check = "kernel";
    let kernel = &facts.kernel;
    let features = match &facts.features {
        Ok(features) => features,
        Err(error) => return Finding::new(State::Fault, check, format!("{kernel}: {error}")),
    };
    let absent = features.list().iter().filter(|feature| !feature.present);
    let absent: Vec<_> = absent.map(|of| format!("{} (Linux {})", of.name, of.since)).collect();
    if absent.is_empty() {
        return Finding::new(State::Ok, check, format!("Linux {kernel} has all that Ringway uses"));
    }
    let found = format!("Linux {kernel} lacks {}", absent.join(", "));
    Finding::new(State::Note, check, found).fix("`ringway features` says what each is for")
}

fn steering(facts: &Facts) -> Finding {
    let check = "steering";
    match &facts.steering {
        Ok(()) => Finding::new(State::Ok, check, "the kernel spreads clients over the workers"),
        Err(error) => {
            let found = format!("listeners of several workers can't be opened: {error}");
            Finding::new(State::Fault, check, found)
                .fix("allow setsockopt with SO_ATTACH_REUSEPORT_CBPF (seccomp), or run one worker")
        }
    }
}

/// Profiles of container runtimes often refuse io_uring, and programs in front may add filters.
fn seccomp(facts: &Facts) -> Option<Finding> {
    let check = "seccomp";
    let filters = facts.filters?;
    if filters == 0 {
        return Some(Finding::new(State::Ok, check, "no filter refuses system calls"));
    }
    if facts.features.is_ok() && facts.steering.is_ok() {
        let found = format!("filters: {filters}; they allow io_uring and the steering of clients");
        return Some(Finding::new(State::Ok, check, found));
    }
    let found = format!("filters: {filters}; they may cause the faults above");
    Some(Finding::new(State::Warning, check, found).fix(
        "images/seccomp.json is a profile that allows what Ringway calls (images/README.md); for a \
         service, see SystemCallFilter= in images/ringway.service",
    ))
}

fn cores(facts: &Facts) -> Finding {
    let Facts { cores, quota, .. } = facts;
    if quota < cores {
        let found = format!("a CPU quota allows {quota} of {cores} cores: workers are not pinned");
        return Finding::new(State::Note, "cores", found)
            .fix("give whole cores instead of a quota, if you can (cpuset, static CPU manager)");
    }
    Finding::new(State::Ok, "cores", format!("this process may use {cores}"))
}

fn files(facts: &Facts, config: Option<&Config>) -> Finding {
    let workers = workers(facts, config);
    let descriptors =
        facts.features.as_ref().is_ok_and(crate::ring::Features::flows_take_descriptors);
    let ports = range(facts).map_or(0, |ports| u64::from(ports.end() - ports.start()) + 1);
    let asked = config.map(|config| config.limits).unwrap_or_default();
    let sockets = config.map_or(0, Config::listening_sockets);
    let limits = config::limits(asked, sockets, workers, facts.files, ports, descriptors);
    let found = format!(
        "{} at the most: {} sessions and {} UDP flows in each of {workers} workers",
        facts.files, limits.sessions, limits.flows
    );
    if facts.files >= FEW_FILES {
        return Finding::new(State::Ok, "open files", found);
    }
    Finding::new(State::Warning, "open files", found).fix(
        "raise the hard limit to 1048576: LimitNOFILE= of the service, tuning/limits.conf, or \
         `--ulimit nofile=` of the container",
    )
}

fn locked_memory(facts: &Facts, config: Option<&Config>) -> Finding {
    let check = "locked memory";
    let workers = workers(facts, config) as u64;
    let needed = workers * LOCKED_PER_WORKER;
    if facts.capabilities & CAP_IPC_LOCK != 0 {
        return Finding::new(State::Ok, check, "CAP_IPC_LOCK: no limit");
    }
    let kib = facts.locked >> 10;
    if facts.locked >= needed {
        let found = if facts.locked == u64::MAX { "no limit".into() } else { format!("{kib} KiB") };
        return Finding::new(State::Ok, check, found);
    }
    let found = format!("{kib} KiB, and {workers} workers take up to {} KiB", needed >> 10);
    Finding::new(State::Fault, check, found)
        .fix("LimitMEMLOCK=infinity of the service, tuning/limits.conf, or CAP_IPC_LOCK")
}

/// Compares a setting with its value in `tuning/ringway.conf`.
fn setting(facts: &Facts, name: &'static str, wanted: &str) -> Option<Finding> {
    let value = facts.sysctls.get(name)?;
    let size = |text: &str| -> Option<u64> {
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        match numbers[..] {
            [number] => Some(number),
            [first, last] => Some(last.saturating_sub(first)),
            _ => None,
        }
    };
    if size(value)? >= size(wanted)? {
        return Some(Finding::new(State::Ok, name, value.clone()));
    }
    // A process with CAP_NET_ADMIN passes these two limits. The last two settings give room only
    // where there are very many clients or flows.
    let state = match name {
        "net.core.rmem_max" | "net.core.wmem_max" if facts.capabilities & CAP_NET_ADMIN != 0 => {
            State::Ok
        }
        "net.ipv4.tcp_max_syn_backlog" | "net.ipv4.ip_local_port_range" => State::Note,
        _ => State::Warning,
    };
    let finding = Finding::new(state, name, format!("{value} (for a gateway: {wanted})"));
    let fix = format!("sysctl -w '{name}={wanted}'; to stay: tuning/ringway.conf");
    Some(if state == State::Ok { finding } else { finding.fix(fix) })
}

fn congestion(facts: &Facts) -> Option<Finding> {
    let check = "congestion control";
    let name = facts.sysctls.get("net.ipv4.tcp_congestion_control")?;
    let finding = Finding::new(State::Ok, check, name.clone());
    if name != "bbr" {
        return Some(finding);
    }
    let found = "bbr paces, which costs most of the work towards near peers; Ringway changes bulk \
                 to peers nearer than 1 ms to Reno";
    Some(Finding { state: State::Note, found: found.into(), ..finding }.fix(
        "where all peers are near, `congestion = \"cubic\"` on listeners and backends saves the \
         first 8 MiB of pacing too",
    ))
}

/// Each turn of a worker reads the clock once.
fn clock(facts: &Facts) -> Option<Finding> {
    let name = facts.clock.as_deref()?;
    let fast = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen"];
    let finding = Finding::new(State::Ok, "clock", name);
    if fast.contains(&name) {
        return Some(finding);
    }
    let found = format!("{name}: each look at the clock is a slow read of a device");
    Some(Finding { state: State::Warning, found, ..finding }.fix(
        "find out why the kernel has left tsc (`dmesg | grep -i tsc`); on a VM, choose another \
         clock source of the host",
    ))
}

/// The log says when, and certificates end.
fn synchronised(facts: &Facts) -> Option<Finding> {
    let check = "time";
    if facts.synchronised? {
        return Some(Finding::new(State::Ok, check, "a time service keeps the clock"));
    }
    let found = "no time service keeps the clock: times in the log may be wrong, and \
                 certificates may seem to have ended";
    Some(Finding::new(State::Note, check, found).fix("start chrony or systemd-timesyncd"))
}

fn queues(card: &Card, workers: usize) -> Vec<Finding> {
    let Card { name, receive_queues, has_rps, interrupts } = card;
    let check = "network card";
    let mut all = Vec::new();
    if *has_rps && *receive_queues >= workers {
        let found =
            format!("{name}: RPS hands packets to other cores, though it has queues enough");
        all.push(Finding::new(State::Warning, check, found).fix(format!(
            "for queue in /sys/class/net/{name}/queues/rx-*; do echo 0 >$queue/rps_cpus; done"
        )));
    }
    let first = interrupts.first();
    if interrupts.len() > 1 && workers > 1 && interrupts.iter().all(|cores| Some(cores) == first) {
        let found = format!("{name}: all its interrupts reach core {}", interrupts[0]);
        all.push(Finding::new(State::Warning, check, found).fix(
            "stop irqbalance, and write the core of each worker to the smp_affinity_list of one \
             queue's interrupt (tuning/README.md)",
        ));
    }
    if *receive_queues < workers {
        let found = format!("{name}: receive queues: {receive_queues}, workers: {workers}");
        all.push(Finding::new(State::Note, check, found).fix(format!(
            "`ethtool -l {name}` says how many it can have; `ethtool -L {name} combined {workers}`"
        )));
    }
    if all.is_empty() {
        all.push(Finding::new(
            State::Ok,
            check,
            format!("{name}: receive queues: {receive_queues}"),
        ));
    }
    all
}

fn conntrack(facts: &Facts) -> Option<Finding> {
    let check = "connection tracking";
    let conntrack = facts.conntrack?;
    let (count, max) = (conntrack.count, conntrack.max);
    if count == 0 {
        return Some(Finding::new(State::Ok, check, "the kernel tracks no connection"));
    }
    let found = format!("the kernel tracks {count} connections of {max}");
    let state = if count > max / 5 * 4 { State::Warning } else { State::Note };
    Some(Finding::new(state, check, found).fix(
        "a full table drops packets of new clients; leave the gateway's ports out (nft: `notrack` \
         in hooks prerouting and output at priority raw), or raise \
         net.netfilter.nf_conntrack_max",
    ))
}

/// Whether the kernel tracks what goes to the gateway's own ports.
fn tracked(facts: &Facts, config: &Config) -> Option<Finding> {
    let ports: BTreeSet<_> = config.listeners.iter().flat_map(places).collect();
    let ports = ports.into_iter().filter_map(|place| Some((place, *facts.tracked.get(&place)?)));
    let found: Vec<_> =
        ports.map(|((transport, port), count)| format!("{transport} {port}: {count}")).collect();
    if found.is_empty() {
        return None;
    }
    let found = format!("of the gateway's ports the kernel tracks {}", found.join(", "));
    Some(Finding::new(State::Note, "connection tracking", found).fix(
        "each packet costs a look-up that the gateway does not need: leave these ports out (nft: \
         `notrack` in hooks prerouting and output at priority raw)",
    ))
}

/// The transport and port of each address of a listener.
fn places(listener: &Listener) -> impl Iterator<Item = (&'static str, u16)> {
    let transport = if listener.protocol == Protocol::Udp { "UDP" } else { "TCP" };
    listener.addresses.iter().filter_map(move |at| match at.value {
        Address::Ip(address) => Some((transport, address.port())),
        Address::Unix(_) => None,
    })
}

fn fast_path(facts: &Facts, config: Option<&Config>) -> Finding {
    let check = "fast path";
    let error = match &facts.fast_path {
        Ok(hook) => {
            let found = format!("the kernel can forward UDP flows (`fast_path`), by {hook}");
            return Finding::new(State::Ok, check, found);
        }
        Err(error) => error,
    };
    let backends = || config.into_iter().flat_map(|config| &config.backends);
    let asks = |path| backends().any(|backend| backend.fast_path() == path);
    let state = match () {
        () if asks(FastPath::Required) => State::Fault,
        () if asks(FastPath::Auto) => State::Warning,
        () => State::Note,
    };
    Finding::new(state, check, format!("the kernel forwards no UDP flows here: {error}"))
}

/// Checks of a machine against the listeners of a configuration.
pub fn listeners(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    let Some(range) = range(facts) else { return all };
    let reserved = facts.sysctls.get("net.ipv4.ip_local_reserved_ports");
    let reserved = reserved.map(|text| ranges(text)).unwrap_or_default();
    for listener in &config.listeners {
        let ports = places(listener).map(|(_, port)| port);
        let open = |port: &u16| {
            range.contains(port) && !reserved.iter().any(|reserved| reserved.contains(port))
        };
        let Some(port) = ports.filter(open).min() else { continue };
        let name = &listener.name.value;
        let found = format!(
            "listener {name}: port {port} is within net.ipv4.ip_local_port_range ({}-{}): before \
             Ringway starts, any connection of this machine may take it",
            range.start(),
            range.end()
        );
        all.push(Finding::new(State::Warning, "listening port", found).fix(format!(
            "sysctl -w net.ipv4.ip_local_reserved_ports={port} (with all that it has already)"
        )));
    }
    all
}

/// The source ports of connections.
fn range(facts: &Facts) -> Option<RangeInclusive<u16>> {
    let text = facts.sysctls.get("net.ipv4.ip_local_port_range")?;
    let (first, last) = text.split_once(char::is_whitespace)?;
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

/// Reads a list of ports and ranges, such as `8080,20000-20099`.
fn ranges(text: &str) -> Vec<RangeInclusive<u16>> {
    let parts = text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::control::doctor::gather::Conntrack;

    /// A machine on which nothing is wrong.
    fn fit() -> Facts {
        Facts {
            kernel: "6.12.1".into(),
            steering: Ok(()),
            fast_path: Ok("tcx"),
            cores: 4,
            quota: 4,
            files: 1 << 20,
            locked: u64::MAX,
            capabilities: 0,
            filters: Some(0),
            sysctls: recommended().map(|(name, value)| (name.into(), value.into())).collect(),
            clock: Some("tsc".into()),
            cards: Vec::new(),
            synchronised: Some(true),
            conntrack: None,
            tracked: BTreeMap::new(),
            ..Facts::of_this_machine()
        }
    }

    /// The gravest state of a check, and its text.
    fn worst(facts: &Facts, check: &str) -> (State, String) {
        let all = machine(facts, None).into_iter().filter(|finding| finding.check == check);
        let worst = all.max_by_key(|finding| finding.state).expect("the check");
        (worst.state, worst.found)
    }

    #[test]
    fn a_fit_machine_has_no_warnings() {
        let all = machine(&fit(), None);
        assert!(all.iter().all(|finding| finding.state <= State::Note), "{all:?}");
        assert!(all.len() >= 10, "{all:?}");
    }

    #[test]
    fn each_fault_is_found() {
        let mut facts = fit();
        facts.features = Err("no io_uring".into());
        facts.steering = Err("EPERM".into());
        facts.files = 1_024;
        facts.locked = 64 << 10;
        facts.clock = Some("hpet".into());
        facts.sysctls.insert("net.core.somaxconn".into(), "128".into());
        facts.sysctls.insert("net.core.rmem_max".into(), "212992".into());
        facts.sysctls.insert("net.ipv4.ip_local_port_range".into(), "32768\t60999".into());
        facts.sysctls.insert("net.ipv4.tcp_congestion_control".into(), "bbr".into());
        facts.conntrack = Some(Conntrack { count: 90, max: 100 });
        facts.synchronised = Some(false);
        facts.quota = 2;
        for (check, state, word) in [
            ("kernel", State::Fault, "no io_uring"),
            ("steering", State::Fault, "EPERM"),
            ("open files", State::Warning, "1024 at the most"),
            ("locked memory", State::Fault, "64 KiB, and 2 workers take up to 1024 KiB"),
            ("clock", State::Warning, "hpet"),
            ("time", State::Note, "no time service"),
            ("net.core.somaxconn", State::Warning, "128 (for a gateway: 4096)"),
            ("net.core.rmem_max", State::Warning, "212992"),
            ("net.ipv4.ip_local_port_range", State::Note, "32768\t60999"),
            ("congestion control", State::Note, "bbr"),
            ("connection tracking", State::Warning, "90 connections of 100"),
            ("cores", State::Note, "2 of 4"),
        ] {
            let (found, text) = worst(&facts, check);
            assert!(found == state && text.contains(word), "{check}: {found:?}: {text}");
        }
        assert_eq!(worst(&facts, "seccomp").0, State::Ok, "without a filter, none refuses");
        facts.filters = Some(1);
        let (found, text) = worst(&facts, "seccomp");
        assert!(found == State::Warning && text.contains("filters: 1"), "{text}");
        let filtered = Facts { filters: Some(1), ..fit() };
        assert_eq!(worst(&filtered, "seccomp").0, State::Ok);
        facts.capabilities = CAP_NET_ADMIN | CAP_IPC_LOCK;
        assert_eq!(worst(&facts, "net.core.rmem_max").0, State::Ok);
        assert_eq!(worst(&facts, "locked memory").0, State::Ok);
    }

    #[test]
    fn the_fast_path_is_a_fault_only_where_it_is_required() {
        let facts = Facts { fast_path: Err("no CAP_BPF".into()), ..fit() };
        assert_eq!(worst(&facts, "fast path").0, State::Note);
        for (word, state) in [("auto", State::Warning), ("required", State::Fault)] {
            let text = format!(
                "[[listeners]]\nname = \"a\"\nprotocol = \"UDP\"\naddress = \"10.0.0.1:1\"\n\
                 [[routes]]\nname = \"a\"\nlisteners = [\"a\"]\nbackends = [{{ name = \"a\" }}]\n\
                 [[backends]]\nname = \"a\"\nendpoints = [\"10.0.0.2:1\"]\nfast_path = \"{word}\"\n"
            );
            let config = config_sync::check::parse("a.toml", &text).expect("valid");
            let all = machine(&facts, Some(&config));
            let found = all.iter().find(|finding| finding.check == "fast path");
            assert_eq!(found.map(|finding| finding.state), Some(state), "{all:?}");
        }
    }

    #[test]
    fn tracked_connections_of_the_gateways_ports_are_named() {
        let text = "[[listeners]]\nname = \"a\"\nprotocol = \"UDP\"\naddress = \"0.0.0.0:53\"\n\
                    endpoints = [\"10.0.0.1:53\"]\n";
        let config = config_sync::check::parse("a.toml", text).expect("valid");
        let mut facts = fit();
        facts.tracked = [(("TCP", 53), 7)].into();
        assert_eq!(tracked(&facts, &config), None, "another transport");
        facts.tracked.insert(("UDP", 53), 12);
        let found = tracked(&facts, &config).expect("a finding").found;
        assert!(found.ends_with("tracks UDP 53: 12"), "{found}");
    }

    #[test]
    fn queues_rps_and_interrupts_of_a_card_are_compared_with_the_workers() {
        let card = |receive_queues, has_rps, cores: [&str; 2]| Card {
            name: "eth0".into(),
            receive_queues,
            has_rps,
            interrupts: cores.map(str::to_owned).to_vec(),
        };
        let states = |card: Card| -> Vec<State> {
            queues(&card, 4).into_iter().map(|finding| finding.state).collect()
        };
        assert_eq!(states(card(4, false, ["0", "1"])), [State::Ok]);
        assert_eq!(states(card(4, true, ["0", "1"])), [State::Warning]);
        assert_eq!(states(card(4, false, ["0", "0"])), [State::Warning]);
        assert_eq!(states(card(1, true, ["0", "1"])), [State::Note]);
    }

    #[test]
    fn a_listening_port_among_the_source_ports_wants_to_be_reserved() {
        let text = "[[listeners]]\nname = \"a\"\nprotocol = \"TCP\"\naddress = \"0.0.0.0:20000\"\n";
        let config = config_sync::check::parse("a.toml", text).expect("valid");
        let mut facts = fit();
        let found = listeners(&facts, &config);
        assert!(found[0].found.contains("port 20000 is within"), "{found:?}");
        let reserved = "net.ipv4.ip_local_reserved_ports";
        facts.sysctls.insert(reserved.into(), "8080,19000-21000".into());
        assert_eq!(listeners(&facts, &config), []);
    }
}
