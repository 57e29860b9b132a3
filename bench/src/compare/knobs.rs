//! What each knob of `tuning/` and of the configuration is worth: Ringway with and without it, in
//! alternation.

use std::path::Path;

use anyhow::Context;

use crate::net::{Network, Place};
use crate::peers::{Found, More, Peer};
use crate::results::Figure;
use crate::stats::Interval;

use super::bed::{Bed, Layout, Measured};
use super::workload::{self, Workload};

struct Knob {
    name: &'static str,
    turn: Turn,
    workloads: &'static [&'static str],
}

/// How it is turned.
#[derive(Clone, Copy)]
enum Turn {
    /// By lines under `[limits]`.
    Limits(&'static str),
    /// By a line of the listener and of the backend.
    Sockets(&'static str),
    /// By receive packet steering to all cores on the gateway's devices (veth).
    Steering,
}

const KNOBS: &[Knob] = &[
    Knob {
        name: "congestion = \"bbr\"",
        turn: Turn::Sockets("congestion = \"bbr\"\n"),
        workloads: BULK_AND_SMALL,
    },
    Knob {
        name: "congestion = \"reno\"",
        turn: Turn::Sockets("congestion = \"reno\"\n"),
        workloads: BULK_AND_SMALL,
    },
    Knob {
        name: "bulk_bytes = 4294967295 (no mark)",
        turn: Turn::Limits("bulk_bytes = 4294967295\n"),
        workloads: &[
            "tcp-bulk-1-up",
            "tcp-bulk-1-down",
            "tcp-bulk-8-up",
            "tcp-bulk-8-down",
            "tcp-request-64kx64",
            "tcp-request-256kx64",
            "tcp-request-1mx64",
        ],
    },
    Knob {
        name: "keepalive = \"0s\"",
        turn: Turn::Sockets("keepalive = \"0s\"\n"),
        workloads: &["tcp-connect"],
    },
    Knob {
        name: "RPS to all cores (veth)",
        turn: Turn::Steering,
        workloads: &["udp-64-100", "tcp-request-64x64"],
    },
];

const BULK_AND_SMALL: &[&str] = &[
    "tcp-bulk-1-up",
    "tcp-bulk-8-down",
    "tcp-request-64x64",
    "tcp-request-16kx64",
    "tcp-request-64kx64",
    "tcp-request-256kx64",
    "tcp-request-1mx64",
];

pub fn measure(
    ringway: &Found,
    layout: Layout,
    rounds: usize,
    files: &Path,
) -> anyhow::Result<Vec<Figure>> {
    let all = workload::all();
    let mut figures = Vec::new();
    for (number, knob) in KNOBS.iter().enumerate() {
        for name in knob.workloads {
            let workload = all.iter().find(|one| one.name == *name).context("a workload")?;
            let files = files.join(format!("knob-{number}"));
            match pairs(knob, workload, ringway, layout, rounds, &files) {
                Ok(pairs) => figures.extend(pairs.figures(knob, name)),
                Err(error) => figures.push(Figure {
                    name: format!("{}: {name}", knob.name),
                    value: format!("could not be measured: {error:#}"),
                    target: String::new(),
                }),
            }
        }
    }
    Ok(figures)
}

/// With / without, one of each per round.
#[derive(Default)]
struct Pairs {
    cpu: Vec<f64>,
    rate: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

fn pairs(
    knob: &Knob,
    workload: &Workload,
    ringway: &Found,
    layout: Layout,
    rounds: usize,
    files: &Path,
) -> anyhow::Result<Pairs> {
    let network = match knob.turn {
        Turn::Steering => Some(Network::new()?),
        Turn::Limits(_) | Turn::Sockets(_) => None,
    };
    let mut bed = Bed::new(workload, layout, network.as_ref(), 2, files)?;
    bed.configure(1, knob.turn.more());
    let mut pairs = Pairs::default();
    for round in 0..rounds {
        let mut both = [None, None];
        for with in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            eprintln!("    {}: {} {}/{rounds}, {with}", knob.name, workload.name, round + 1);
            if let Some(network) = &network {
                network.steer(Place::Gateway, with == 1)?;
            }
            bed.start(with, Peer::Ringway, ringway)?;
            both[with] = Some(bed.measure(with)?);
        }
        if let [Some(without), Some(with)] = both {
            pairs.add(&without, &with);
        }
    }
    Ok(pairs)
}

impl Turn {
    fn more(self) -> More {
        match self {
            Self::Limits(lines) => More { limits: lines.to_owned(), ..More::default() },
            Self::Sockets(line) => {
                More { listener: line.to_owned(), backend: line.to_owned(), ..More::default() }
            }
            Self::Steering => More::default(),
        }
    }
}

impl Pairs {
    fn add(&mut self, without: &Measured, with: &Measured) {
        let amount = |one: &Measured| match one.outcome.bytes {
            0 => one.outcome.operations as f64,
            bytes => bytes as f64,
        };
        let rate = |one: &Measured| amount(one) / one.outcome.seconds;
        let cpu = |one: &Measured| one.cpu.map(|cpu| cpu / amount(one));
        self.rate.push(rate(with) / rate(without));
        if let (Some(with), Some(without)) = (cpu(with), cpu(without)) {
            self.cpu.push(with / without);
        }
        if let (Some(with), Some(without)) = (&with.outcome.latency, &without.outcome.latency) {
            self.p50.push(with.p50 / without.p50);
            self.p99.push(with.p99 / without.p99);
        }
    }

    fn figures(&self, knob: &Knob, workload: &str) -> Vec<Figure> {
        let ratios = [
            ("CPU per unit", &self.cpu),
            ("throughput", &self.rate),
            ("p50", &self.p50),
            ("p99", &self.p99),
        ];
        let figure = |(what, ratios): (&str, &Vec<f64>)| {
            let of = Interval::of_ratios(ratios)?;
            Some(Figure {
                name: format!("{}: {workload}, {what} with / without", knob.name),
                value: format!("{:.3} ({:.3} to {:.3})", of.middle, of.low, of.high),
                target: String::new(),
            })
        };
        ratios.into_iter().filter_map(figure).collect()
    }
}
