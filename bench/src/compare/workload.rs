//! What is compared: every workload, by name.

use crate::peers::Transport;
use crate::results::{SIZES, Unit};

/// One load on one kind of backend.
#[derive(Clone, Debug)]
pub struct Workload {
    pub name: String,
    pub transport: Transport,
    pub load: Load,
    pub unit: Unit,
    /// Proxies are started anew for each run: what counts is how they grow from nothing.
    pub fresh: bool,
    /// Part of `--quick`.
    pub quick: bool,
    pub udp: Udp,
    /// `None`: as many as the comparison is asked for.
    pub workers: Option<usize>,
}

/// How long a UDP proxy is to keep a flow, and from how many addresses it may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    pub responses: Option<u32>,
    pub idle_ms: u64,
    pub sources: u8,
    /// All flows go through few upstream sockets, which only Ringway does.
    pub shared: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// `bench load` with these arguments against `bench serve`.
    Ours {
        serve: &'static str,
        load: &'static str,
        arguments: Vec<String>,
    },
    /// Connections or flows that are opened, kept, and then counted in memory and files.
    Held {
        serve: &'static str,
        load: &'static str,
        arguments: Vec<String>,
        /// In all processes of the load together.
        sessions: u32,
        processes: u32,
        /// In which all are opened; nothing is timed.
        seconds: f64,
    },
    Iperf3 {
        streams: u32,
        down: bool,
    },
    RedisBenchmark {
        clients: u32,
    },
    Dnsperf,
    Wrk {
        connections: u32,
    },
}

impl Workload {
    /// Its addresses would have to be set up there, and so would the tools' own waiting.
    pub fn works_on_veth(&self) -> bool {
        self.udp.sources == 0 && !self.udp.shared && self.load.programs().is_empty()
    }

    /// Connections or flows that are there at the end, where that is the point.
    pub fn sessions(&self) -> Option<u32> {
        match self.load {
            Load::Held { sessions, .. } => Some(sessions),
            _ => None,
        }
    }
}

impl Load {
    /// Programs that it needs beside this one.
    pub fn programs(&self) -> &'static [&'static str] {
        match self {
            Self::Ours { .. } | Self::Held { .. } => &[],
            Self::Iperf3 { .. } => &["iperf3"],
            Self::RedisBenchmark { .. } => &["redis-server", "redis-benchmark"],
            Self::Dnsperf => &["nsd", "dnsperf"],
            Self::Wrk { .. } => &["wrk"],
        }
    }
}

/// How many connections the requests are spread over; the others are only asked at 64 bytes.
const CONNECTIONS: [u32; 3] = [1, 64, 512];

/// Further points of the curve over the number of connections.
const MORE_CONNECTIONS: [u32; 3] = [8, 4_096, 9_000];

/// How long the others keep an idle flow: 200 ms, and what 2 s costs.
const QUARANTINES: [u64; 2] = [200, 2_000];

pub const IDLE_CONNECTIONS: u32 = 9_000;

pub fn all() -> Vec<Workload> {
    let mut all: Vec<Workload> = bulk().collect();
    all.extend(requests());
    all.extend(other_tcp());
    all.extend(tls());
    all.extend(udp());
    all.extend(others_tools());
    all
}

fn bulk() -> impl Iterator<Item = Workload> {
    let cases = [(1, "up"), (1, "down"), (8, "up"), (8, "down")];
    cases.into_iter().map(|(streams, direction)| {
        let (serve, load) =
            if direction == "up" { ("sink", "upload") } else { ("source", "download") };
        let arguments = ["--connections".to_owned(), streams.to_string()];
        Workload {
            quick: matches!((streams, direction), (1, "up") | (8, "down")),
            unit: Unit::Gigabyte,
            ..tcp(format!("tcp-bulk-{streams}-{direction}"), serve, load, &arguments)
        }
    })
}

fn requests() -> impl Iterator<Item = Workload> {
    let grid =
        SIZES.into_iter().flat_map(|size| CONNECTIONS.map(|connections| (size, connections)));
    // A megabyte is there for the mark, which is the same for any number of connections.
    let grid = grid.filter(|((_, size), connections)| *size < 1 << 20 || *connections == 64);
    let curve = MORE_CONNECTIONS.map(|connections| (SIZES[0], connections));
    grid.chain(curve).map(|((name, size), connections)| {
        let arguments = ["--connections", &connections.to_string(), "--size", &size.to_string()];
        Workload {
            quick: connections == 64 && matches!(name, "64" | "64k"),
            ..tcp(format!("tcp-request-{name}x{connections}"), "respond", "request", &arguments)
        }
    })
}

fn other_tcp() -> [Workload; 3] {
    let held = vec!["--connections".to_owned(), IDLE_CONNECTIONS.to_string()];
    let no_arguments: [String; 0] = [];
    [
        Workload {
            unit: Unit::Connection,
            quick: true,
            ..tcp("tcp-connect".to_owned(), "close", "connect", &no_arguments)
        },
        tcp(
            "tcp-mixed".to_owned(),
            "respond",
            "mixed",
            // What the core of load and backend has time for.
            &["--bulk-rate", "500", "--rate", "10000"],
        ),
        Workload {
            load: Load::Held {
                serve: "hold",
                load: "idle",
                arguments: held,
                sessions: IDLE_CONNECTIONS,
                processes: 1,
                seconds: 0.0,
            },
            unit: Unit::Connection,
            fresh: true,
            ..tcp("tcp-idle".to_owned(), "hold", "idle", &no_arguments)
        },
    ]
}

/// TLS that the proxy ends, and TCP behind it.
fn tls() -> [Workload; 5] {
    let of = |name: &str, unit, serve, load, arguments: &[&str]| Workload {
        transport: Transport::Tls,
        unit,
        ..tcp(name.to_owned(), serve, load, arguments)
    };
    let no_arguments: [&str; 0] = [];
    [
        of("tls-bulk-8-down", Unit::Gigabyte, "source", "tls-download", &["--connections", "8"]),
        of("tls-request-64x64", Unit::Request, "respond", "tls-request", &["--connections", "64"]),
        of(
            "tls-request-64x512",
            Unit::Request,
            "respond",
            "tls-request",
            &["--connections", "512"],
        ),
        of("tls-connect-full", Unit::Connection, "close", "tls-connect", &no_arguments),
        of("tls-connect-resumed", Unit::Connection, "close", "tls-connect", &["--resume"]),
    ]
}

fn udp() -> Vec<Workload> {
    let mut all = Vec::new();
    for flows in [1, 10, 100, 1_000, 10_000] {
        // More at once would overflow what a socket holds by default.
        let flow_count = flows.to_string();
        let arguments = ["--flows", &flow_count, "--window", "100", "--size", "64"];
        all.push(Workload {
            quick: flows == 100,
            // Else the ports of all that is kept for 30 s would run out.
            fresh: flows >= 10_000,
            ..udp_requests(format!("udp-64-{flows}"), &arguments)
        });
    }
    for flows in [1, 100, 10_000] {
        let flow_count = flows.to_string();
        let arguments = ["--flows", &flow_count, "--window", "100", "--size", "1200"];
        all.push(Workload {
            fresh: flows >= 10_000,
            ..udp_requests(format!("udp-1200-{flows}"), &arguments)
        });
    }
    let train = ["--flows", "100", "--size", "1400", "--train", "16"];
    let mut trains = udp_requests("udp-train-16x100".to_owned(), &train);
    trains.quick = true;
    all.push(trains);
    // Two bursts, or all would only wait for one another.
    let train = ["--flows", "1", "--depth", "2", "--size", "1400", "--train", "32"];
    all.push(udp_requests("udp-train-32x1".to_owned(), &train));
    for idle_ms in QUARANTINES {
        // One answer ends a flow where the peer knows such a thing. Ringway's socket then rests.
        let udp = Udp { responses: Some(1), idle_ms, sources: 4, shared: false };
        all.push(Workload {
            udp,
            ..udp_load(
                format!("udp-new-flow-{idle_ms}ms"),
                "udp-echo",
                "udp-new-flow",
                &["--sources", "4"],
            )
        });
    }
    let one_way = ["--flows", "100", "--size", "512"];
    all.push(udp_load("udp-one-way".to_owned(), "udp-sink", "udp-one-way", &one_way));
    all.push(many_flows(30_000, Udp { sources: 4, ..KEPT }));
    let shared = many_flows(100_000, Udp { shared: true, ..KEPT });
    all.push(Workload { name: format!("{}-shared", shared.name), ..shared });
    all
}

fn many_flows(count: u32, udp: Udp) -> Workload {
    // Each process may open as many files as are commonly allowed.
    let processes = count.div_ceil(16_700).max(2);
    let flows = (count / processes).to_string();
    let arguments = ["--flows", &flows, "--size", "64", "--sources", "4", "--rate", "7500"];
    let arguments = arguments.map(str::to_owned);
    let load = Load::Held {
        serve: "udp-echo",
        load: "udp-request",
        arguments: arguments.to_vec(),
        sessions: count / processes * processes,
        processes,
        // Twice what the flows take by the rate, which spares the sockets' buffers.
        seconds: 4.0,
    };
    Workload {
        load,
        fresh: true,
        udp,
        // A ring holds no more registered files than a process may have open.
        workers: Some(2),
        ..udp_requests(format!("udp-flows-{count}"), &[])
    }
}

fn others_tools() -> [Workload; 6] {
    let of = |name: &str, transport, unit, load| {
        let base = tcp(name.to_owned(), "", "", &[] as &[&str]);
        Workload { transport, unit, load, ..base }
    };
    let iperf3 = |streams, down| Load::Iperf3 { streams, down };
    [
        of("iperf3-1-up", Transport::Tcp, Unit::Gigabyte, iperf3(1, false)),
        of("iperf3-8-up", Transport::Tcp, Unit::Gigabyte, iperf3(8, false)),
        of("iperf3-8-down", Transport::Tcp, Unit::Gigabyte, iperf3(8, true)),
        of("redis-get-64", Transport::Tcp, Unit::Request, Load::RedisBenchmark { clients: 64 }),
        of("wrk-64", Transport::Tcp, Unit::Request, Load::Wrk { connections: 64 }),
        of("dns", Transport::Udp, Unit::Query, Load::Dnsperf),
    ]
}

/// A flow that lasts through the run.
const KEPT: Udp = Udp { responses: None, idle_ms: 30_000, sources: 0, shared: false };

fn tcp<S: ToString>(
    name: String,
    serve: &'static str,
    load: &'static str,
    arguments: &[S],
) -> Workload {
    let arguments = arguments.iter().map(ToString::to_string).collect();
    Workload {
        name,
        transport: Transport::Tcp,
        load: Load::Ours { serve, load, arguments },
        unit: Unit::Request,
        fresh: false,
        quick: false,
        udp: KEPT,
        workers: None,
    }
}

fn udp_load(name: String, serve: &'static str, load: &'static str, arguments: &[&str]) -> Workload {
    let transport = Transport::Udp;
    Workload { transport, unit: Unit::Datagram, ..tcp(name, serve, load, arguments) }
}

fn udp_requests(name: String, arguments: &[&str]) -> Workload {
    Workload { unit: Unit::RoundTrip, ..udp_load(name, "udp-echo", "udp-request", arguments) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_some_are_quick() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(|workload| &workload.name).collect();
        assert_eq!(names.len(), all.len());
        let quick = |transport| {
            all.iter().filter(|workload| workload.quick && workload.transport == transport).count()
        };
        assert!(quick(Transport::Tcp) >= 4 && quick(Transport::Udp) >= 2);
    }
}
