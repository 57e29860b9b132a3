//! Reads the facts of this machine. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;

use config_sync::machine::Machine;
use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use crate::ring::Features;
use crate::ring::bpf::FastPath;
use crate::ring::listen::steering;
use crate::ring::sys::clock;

/// The facts of a machine. A fact that can't be read is absent, and its check is left out.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The release of the kernel, such as `6.12.41-amd64`.
    pub kernel: String,
    /// The features of io_uring, or the error of the probe.
    pub features: Result<Features, String>,
    /// Whether listening sockets can spread clients over workers, or the error.
    pub steering: Result<(), String>,
    /// Whether the kernel can forward UDP flows for this process, or the error.
    pub fast_path: Result<&'static str, String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// As many cores as the CPU quota of the cgroup allows, if that is fewer.
    pub quota: usize,
    /// The hard limit of open files.
    pub files: u64,
    /// The hard limit of locked memory, in bytes.
    pub locked: u64,
    /// The effective capabilities (capabilities(7)).
    pub capabilities: u64,
    /// The number of seccomp filters that this process is under.
    pub filters: Option<u64>,
    /// The values of `/proc/sys`, by their names in sysctl.d.
    pub sysctls: BTreeMap<String, String>,
    pub clock: Option<String>,
    /// Whether a time service keeps the clock.
    pub synchronised: Option<bool>,
    pub cards: Vec<Card>,
    pub conntrack: Option<Conntrack>,
    /// How many connections the kernel tracks towards each port of `TCP` and `UDP`.
    pub tracked: BTreeMap<(&'static str, u16), u64>,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    pub name: String,
    pub receive_queues: usize,
    /// RPS hands packets to other cores.
    pub has_rps: bool,
    /// For each interrupt, the cores that it may reach, as the kernel writes them.
    pub interrupts: Vec<String>,
}

/// How much of its table the kernel's connection tracking uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    pub count: u64,
    pub max: u64,
}

/// The settings for a gateway, each with its reason and its sign.
const RECOMMENDED: &str = include_str!("../../../../tuning/ringway.conf");

/// The settings that are looked at, beside those of `tuning/ringway.conf`.
const SYSCTLS: [&str; 4] = [
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.ip_forward",
];

impl Facts {
    pub fn of_this_machine() -> Self {
        let status = read("/proc/self/status").unwrap_or_default();
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = capabilities.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        let filters = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
        let filters = filters.and_then(|count| count.trim().parse().ok());
        let hard = |resource| getrlimit(resource).map_or(u64::MAX, |(_, hard)| hard);
        let wanted = recommended().map(|(name, _)| name);
        let sysctl = |name: &str| {
            let value = read(format!("/proc/sys/{}", name.replace('.', "/")))?;
            Some((name.to_owned(), value))
        };
        Self {
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            features: Features::probe().map_err(|error| error.to_string()),
            steering: steering().map_err(|error| error.to_string()),
            fast_path: FastPath::probe(true).map_err(|error| error.to_string()),
            cores: Machine::this().cores.len().max(1),
            quota: std::thread::available_parallelism().map_or(usize::MAX, usize::from),
            files: hard(Resource::RLIMIT_NOFILE),
            locked: hard(Resource::RLIMIT_MEMLOCK),
            capabilities: capabilities.unwrap_or(0),
            filters,
            sysctls: wanted.chain(SYSCTLS).filter_map(sysctl).collect(),
            clock: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            cards: cards(),
            synchronised: clock::is_synchronised().ok(),
            conntrack: conntrack(),
            tracked: read_at_most("/proc/net/nf_conntrack", TRACKED)
                .map_or_else(BTreeMap::new, |text| tracked(&text)),
        }
    }
}

/// The name and the value of each setting in `tuning/ringway.conf`.
pub fn recommended() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = RECOMMENDED.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.trim(), value.trim()))
}

/// The text of a file without the white space around it.
fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

/// The names in a directory. Empty if the directory can't be read.
fn names(path: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Attaches the program that spreads clients to a socket of its own.
fn steering() -> std::io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(1)?;
    steering::attach(socket.as_fd(), true, 2, 0)
}

/// The interfaces that a device stands behind. Loopback, bridges and the like have none.
fn cards() -> Vec<Card> {
    let all = names("/sys/class/net").into_iter();
    all.filter_map(|name| {
        let card = Path::new("/sys/class/net").join(&name);
        let device = fs::canonicalize(card.join("device")).ok()?;
        let queues = card.join("queues");
        let receive: Vec<_> =
            names(&queues).into_iter().filter(|queue| queue.starts_with("rx-")).collect();
        let has_rps = receive.iter().any(|queue| {
            let cores = read(queues.join(queue).join("rps_cpus")).unwrap_or_default();
            cores.chars().any(|digit| digit.is_ascii_hexdigit() && digit != '0')
        });
        // A virtio card's interrupts belong to the PCI device above it.
        let of_device = ["msi_irqs", "../msi_irqs"].map(|folder| names(device.join(folder)));
        let interrupts = of_device.into_iter().flatten();
        let cores = |irq: String| read(format!("/proc/irq/{irq}/effective_affinity_list"));
        let interrupts = interrupts.filter_map(cores).filter(|cores| !cores.is_empty());
        let interrupts = interrupts.collect();
        Some(Card { name, receive_queues: receive.len(), has_rps, interrupts })
    })
    .collect()
}

/// The bytes of the list of tracked connections that are looked at: some 100,000 connections.
const TRACKED: u64 = 16 << 20;

/// The beginning of a file. Only root may read the list of tracked connections, and not every
/// kernel has it.
fn read_at_most(path: &str, most: u64) -> Option<String> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(most).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Counts the lines of `/proc/net/nf_conntrack` by where the client connected to, which is the
/// first destination of a line.
fn tracked(text: &str) -> BTreeMap<(&'static str, u16), u64> {
    let mut tracked = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let transport = match words.nth(2) {
            Some("tcp") => "TCP",
            Some("udp") => "UDP",
            _ => continue,
        };
        let port = words.find_map(|word| word.strip_prefix("dport="));
        if let Some(port) = port.and_then(|port| port.parse().ok()) {
            *tracked.entry((transport, port)).or_default() += 1;
        }
    }
    tracked
}

fn conntrack() -> Option<Conntrack> {
    let count = number("/proc/sys/net/netfilter/nf_conntrack_count")?;
    let max = number("/proc/sys/net/netfilter/nf_conntrack_max")?;
    Some(Conntrack { count, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracked_connections_count_by_where_the_client_went() {
        let text = "ipv4     2 tcp      6 431999 ESTABLISHED src=192.0.2.7 dst=10.0.0.1 sport=5000 \
                    dport=5432 src=10.0.0.1 dst=192.0.2.7 sport=5432 dport=5000 [ASSURED] use=2\n\
                    ipv6     10 udp      17 29 src=::1 dst=::1 sport=1 dport=53 [UNREPLIED] \
                    src=::1 dst=::1 sport=53 dport=1 use=2\n\
                    ipv4     2 icmp     1 29 src=192.0.2.7 dst=10.0.0.1 type=8 code=0 id=1\n";
        let expected = [(("TCP", 5432), 1), (("UDP", 53), 1)];
        assert_eq!(tracked(text), BTreeMap::from(expected));
    }
}
