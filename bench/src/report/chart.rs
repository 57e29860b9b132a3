//! Which plots there are, and what is in them. Pure.

use crate::results::{Metric, Results, Run, SIZES, Setting, matches};
use crate::stats::Interval;

use super::palette;

/// One that is drawn: `file`.svg and `file`.png.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    pub file: String,
    pub title: String,
}

pub enum Chart {
    Bars(Bars),
    Curves(Curves),
}

/// Workloads side by side, in each a bar per peer.
pub struct Bars {
    pub peers: Vec<String>,
    pub groups: Vec<Group>,
    pub scale: String,
}

pub struct Group {
    pub name: String,
    /// In the order of the peers; `None` for one that did not run it.
    pub bars: Vec<Option<Interval>>,
}

/// A line per peer.
pub struct Curves {
    pub across: &'static str,
    pub scale: String,
    pub lines: Vec<(String, Vec<(f64, Interval)>)>,
}

impl Chart {
    pub fn peers(&self) -> Vec<&str> {
        match self {
            Self::Bars(bars) => bars.peers.iter().map(String::as_str).collect(),
            Self::Curves(curves) => curves.lines.iter().map(|(peer, _)| peer.as_str()).collect(),
        }
    }
}

pub fn charts(results: &Results) -> Vec<(Plot, Chart)> {
    let mut charts = Vec::new();
    for family in FAMILIES {
        for metric in family.metrics {
            charts.extend(bars(results, family, *metric));
        }
    }
    for curve in all_curves() {
        for metric in [Metric::Throughput, Metric::Cpu] {
            charts.extend(curves(results, &curve, metric));
        }
    }
    charts
}

/// Workloads with figures of one size, so that they fit on one scale.
struct Family {
    name: &'static str,
    title: &'static str,
    workloads: &'static [&'static str],
    metrics: &'static [Metric],
}

const COST: &[Metric] = &[Metric::Throughput, Metric::Cpu];
const REQUEST: &[Metric] = &[Metric::Throughput, Metric::Cpu, Metric::P50, Metric::P99];
const HELD: &[Metric] = &[Metric::AnonymousPerSession, Metric::Memory];

const fn family(
    name: &'static str,
    title: &'static str,
    workloads: &'static [&'static str],
    metrics: &'static [Metric],
) -> Family {
    Family { name, title, workloads, metrics }
}

const FAMILIES: &[Family] = &[
    family("bulk", "Bulk", &["tcp-bulk-*", "iperf3-*"], COST),
    family("request-1", "64 B requests, 1 connection", &["tcp-request-64x1"], REQUEST),
    family(
        "request-64",
        "64 B requests, 64 connections",
        &["tcp-request-64x64", "redis-*"],
        REQUEST,
    ),
    family("request-512", "64 B requests, 512 connections", &["tcp-request-64x512"], REQUEST),
    family(
        "answers-small",
        "Answers of 1 to 16 KiB, 64 connections",
        &["tcp-request-1kx64", "tcp-request-4kx64", "tcp-request-16kx64"],
        REQUEST,
    ),
    family(
        "answers-large",
        "Answers of 64 and 256 KiB, 64 connections",
        &["tcp-request-64kx64", "tcp-request-256kx64"],
        REQUEST,
    ),
    family("connect", "New connections", &["tcp-connect"], REQUEST),
    family("mixed", "Small requests beside bulk", &["tcp-mixed"], &[Metric::P50, Metric::P99]),
    family("idle", "Idle connections", &["tcp-idle"], HELD),
    family("udp-64", "64 B datagrams", &["udp-64-100", "udp-64-10000"], REQUEST),
    family("udp-other", "Datagrams one way, new flows", &["udp-one-way", "udp-new-flow-*"], COST),
    family("udp-train", "Trains of 1400 B datagrams", &["udp-train-*"], COST),
    family("udp-flows", "UDP flows", &["udp-flows-*"], HELD),
    family("dns", "DNS", &["dns"], COST),
];

fn bars(results: &Results, family: &Family, metric: Metric) -> Option<(Plot, Chart)> {
    let settings = results.by_setting();
    let chosen: Vec<(&Setting, &Vec<&Run>)> = settings
        .iter()
        .filter(|(setting, runs)| {
            let of_family = family.workloads.iter().any(|name| matches(name, &setting.workload));
            of_family && runs.iter().any(|run| metric.of(run).is_some())
        })
        .collect();
    let unit = chosen.first()?.1.first()?.unit;
    let all: Vec<&Run> = chosen.iter().flat_map(|(_, runs)| runs.iter().copied()).collect();
    let peers: Vec<String> = palette::peers(&all)
        .into_iter()
        .filter(|peer| of_peer(&all, peer, metric).is_some())
        .collect();
    let groups = chosen.iter().map(|(setting, runs)| Group {
        name: group_name(setting),
        bars: peers.iter().map(|peer| of_peer(runs, peer, metric)).collect(),
    });
    let (groups, scale) = (groups.collect(), metric.title(unit));
    let plot = Plot {
        file: format!("{}-{}", family.name, short(metric)),
        title: format!("{}: {scale} ({} is better)", family.title, metric.better()),
    };
    Some((plot, Chart::Bars(Bars { peers, groups, scale })))
}

fn group_name(setting: &Setting) -> String {
    let mut name = setting.workload.clone();
    if setting.workers != 1 {
        name = format!("{name}, {} workers", setting.workers);
    }
    if setting.network != "loopback" { format!("{name}, {}", setting.network) } else { name }
}

/// The mean of a peer's runs. One run has no interval: its ends are where it is.
fn of_peer(runs: &[&Run], peer: &str, metric: Metric) -> Option<Interval> {
    let own = runs.iter().filter(|run| run.peer == peer);
    let values: Vec<f64> =
        own.filter_map(|run| metric.of(run)).map(|value| value * metric.scale()).collect();
    Interval::of_values(&values).or_else(|| {
        let only = *values.first()?;
        Some(Interval { low: only, middle: only, high: only, count: 1 })
    })
}

fn short(metric: Metric) -> &'static str {
    match metric {
        Metric::Throughput => "throughput",
        Metric::Cpu => "cpu",
        Metric::P50 => "p50",
        Metric::P99 => "p99",
        Metric::AnonymousPerSession => "session-memory",
        Metric::Memory => "memory",
        Metric::Files => "files",
        Metric::Lost => "lost",
    }
}

/// How one workload grows along something.
struct Curve {
    file: String,
    title: String,
    across: &'static str,
    /// Workload and number of workers, and where on the axis they are.
    points: Vec<(f64, String, usize)>,
}

fn all_curves() -> Vec<Curve> {
    let one = |points: Vec<(f64, String)>| -> Vec<(f64, String, usize)> {
        points.into_iter().map(|(x, name)| (x, name, 1)).collect()
    };
    let connections = [1_u32, 8, 64, 512, 4_096, 9_000];
    let connections =
        connections.map(|count| (f64::from(count), format!("tcp-request-64x{count}"))).to_vec();
    let sizes = SIZES.map(|(name, size)| (f64::from(size), format!("tcp-request-{name}x64")));
    let flows = [1_u32, 10, 100, 1_000, 10_000];
    let flows = flows.map(|count| (f64::from(count), format!("udp-64-{count}"))).to_vec();
    let mut all = vec![
        Curve {
            file: "growth-connections".into(),
            title: "64 B requests".into(),
            across: "connections",
            points: one(connections),
        },
        Curve {
            file: "growth-size".into(),
            title: "Requests on 64 connections".into(),
            across: "bytes of an answer",
            points: one(sizes.to_vec()),
        },
        Curve {
            file: "growth-flows".into(),
            title: "64 B datagrams".into(),
            across: "flows",
            points: one(flows),
        },
    ];
    for name in ["tcp-bulk-8-down", "tcp-request-64x64", "udp-64-100"] {
        all.push(Curve {
            file: format!("growth-workers-{name}"),
            title: name.to_owned(),
            across: "workers",
            points: vec![(1.0, name.to_owned(), 1), (2.0, name.to_owned(), 2)],
        });
    }
    all
}

/// `None` with fewer than two points: that is no curve.
fn curves(results: &Results, curve: &Curve, metric: Metric) -> Option<(Plot, Chart)> {
    let at = |run: &&Run| {
        let here = |(_, name, workers): &&(f64, String, usize)| {
            *name == run.workload && *workers == run.workers && run.network == "loopback"
        };
        curve.points.iter().find(here).map(|(x, ..)| *x)
    };
    let all: Vec<&Run> = results.runs.iter().filter(|run| at(run).is_some()).collect();
    let unit = all.first()?.unit;
    let mut lines = Vec::new();
    for peer in palette::peers(&all) {
        let mut line = Vec::new();
        for (x, ..) in &curve.points {
            let here: Vec<&Run> = all.iter().copied().filter(|run| at(run) == Some(*x)).collect();
            line.extend(of_peer(&here, &peer, metric).map(|value| (*x, value)));
        }
        if line.len() > 1 {
            lines.push((peer, line));
        }
    }
    let scale = metric.title(unit);
    let plot = Plot {
        file: format!("{}-{}", curve.file, short(metric)),
        title: format!(
            "{}: {scale} by {} ({} is better)",
            curve.title,
            curve.across,
            metric.better()
        ),
    };
    let curves = Curves { across: curve.across, scale, lines };
    (!curves.lines.is_empty()).then_some((plot, Chart::Curves(curves)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::workload;
    use crate::results::sample;

    #[test]
    fn every_point_of_a_curve_is_a_workload() {
        let names: Vec<_> = workload::all().into_iter().map(|workload| workload.name).collect();
        for curve in all_curves() {
            for (_, name, _) in curve.points {
                assert!(names.contains(&name), "{name}");
            }
        }
        for pattern in FAMILIES.iter().flat_map(|family| family.workloads) {
            assert!(names.iter().any(|name| matches(pattern, name)), "{pattern}");
        }
    }

    #[test]
    fn a_curve_needs_two_points_and_bars_need_one() {
        let peers = [("ringway", 0.5), ("direct", 0.2)];
        let mut results = sample("udp-64-100", 2, &peers);
        let files = |results: &Results| -> Vec<String> {
            charts(results).into_iter().map(|(plot, _)| plot.file).collect()
        };
        let one = files(&results);
        assert!(one.contains(&"udp-64-cpu".to_owned()), "{one:?}");
        assert!(!one.iter().any(|file| file.starts_with("growth")), "{one:?}");
        results.add(sample("udp-64-1000", 2, &peers));
        assert!(files(&results).contains(&"growth-flows-cpu".to_owned()));
    }

    #[test]
    fn titles_say_the_unit_and_which_end_is_better() {
        let charts = charts(&sample("tcp-connect", 2, &[("ringway", 0.5)]));
        let titles: Vec<_> = charts.iter().map(|(plot, _)| plot.title.as_str()).collect();
        assert_eq!(titles[0], "New connections: 1,000 requests/s (higher is better)");
        assert_eq!(titles[1], "New connections: CPU us/request (lower is better)");
    }

    #[test]
    fn two_workers_are_a_group_of_their_own() {
        let mut results = sample("tcp-connect", 2, &[("ringway", 0.5)]);
        let mut two = sample("tcp-connect", 2, &[("ringway", 0.3)]);
        two.runs.iter_mut().for_each(|run| run.workers = 2);
        results.add(two);
        let charts = charts(&results);
        let cpu = charts.iter().find(|(plot, _)| plot.file == "connect-cpu");
        let Some((_, Chart::Bars(bars))) = cpu else { panic!("no bars") };
        let names: Vec<_> = bars.groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names, ["tcp-connect", "tcp-connect, 2 workers"]);
    }
}
