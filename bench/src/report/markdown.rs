//! The report as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::results::{Metric, Results, Run, Session, Setting};
use crate::stats::{Interval, median};

use super::added;
use super::chart::Plot;
use super::claims::{self, Judgement, OURSELVES, Pairs, Target, Verdict};
use super::numbers::{figure, interval};
use super::palette;

/// `plots` are those that were drawn.
pub fn render(results: &Results, plots: &[Plot]) -> String {
    let judgements = claims::judge(results);
    let mut text = "# Ringway beside others\n\n".to_owned();
    text.push_str(&machines(&results.sessions));
    text.push_str(&claims_table(results, &judgements));
    text.push_str(&added::render(results));
    for (setting, runs) in results.by_setting() {
        text.push_str(&workload(&setting, &runs));
    }
    text.push_str(&figures(results));
    if !plots.is_empty() {
        text.push_str("## Plots\n\n");
    }
    for plot in plots {
        let _ = writeln!(text, "![{}](plots/{}.svg)\n", plot.title, plot.file);
    }
    text.push_str(&skipped(results));
    text.push_str(&configurations(results));
    text
}

fn machines(sessions: &[Session]) -> String {
    let mut text = String::new();
    for session in sessions {
        let Session { began, command, kernel, processor, cores, memory_gib, .. } = session;
        let _ = writeln!(
            text,
            "- {began}: `{command}`; Linux {kernel}, {processor}, {cores} cores, \
             {memory_gib:.1} GiB; {} s a run",
            session.seconds
        );
    }
    let mut versions = BTreeMap::new();
    for of in sessions.iter().flat_map(|session| &session.peers) {
        versions.insert(&of.peer, &of.version);
    }
    text.push_str("\n| peer | version |\n|---|---|\n");
    for (peer, version) in versions {
        let _ = writeln!(text, "| {peer} | {version} |");
    }
    text.push_str(
        "\nCPU is that of the proxy's whole processes, kernel workers included, within the \
         measured interval. Medians of all runs; ratios are Ringway / peer over pairs of runs of \
         one round in the same state of the machine: geometric mean and 95 % interval. `direct` \
         and `dnat` have no process.\n\n",
    );
    text
}

fn claims_table(results: &Results, judgements: &[Judgement]) -> String {
    let mut text = "## Claims\n\n".to_owned();
    if judgements.is_empty() {
        return text + "None of the claims is about what was run.\n\n";
    }
    if results.quick() {
        text.push_str("Quick: no verdicts.\n\n");
    }
    text.push_str(
        "| workload | workers | metric | against | target | measured (95 %) | pairs | verdict |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for of in judgements {
        let against = of.against.as_ref().map_or_else(
            || "-".to_owned(),
            |peer| format!("{peer} ({})", results.version(peer).unwrap_or("version unknown")),
        );
        let target = match of.target {
            Target::AtMost(most) => format!("<= {}", figure(most)),
            Target::AtLeast(least) => format!(">= {}", figure(least)),
        };
        let pairs = of.interval.map_or(0, |interval| interval.count);
        let left_out = match of.left_out {
            0 => String::new(),
            count => format!(", {count} left out"),
        };
        let measured = of.interval.map_or_else(|| "-".to_owned(), interval);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {against} | {target} | {measured} | {pairs}{left_out} | {} |",
            of.setting.workload,
            of.setting.workers,
            title(of.metric),
            of.verdict.word()
        );
    }
    text.push_str(
        "\nmet: the worse end of the interval meets the target. tie: the target lies within the \
         interval. short: the better end misses it.\n\n",
    );
    text
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Met => "**met**",
            Self::Tie => "tie",
            Self::Short => "short",
            Self::TooFew => "too few pairs",
            Self::Quick => "quick: none",
        }
    }
}

const COLUMNS: [Metric; 8] = [
    Metric::Throughput,
    Metric::Cpu,
    Metric::P50,
    Metric::P99,
    Metric::AnonymousPerSession,
    Metric::Files,
    Metric::Memory,
    Metric::Lost,
];

fn workload(setting: &Setting, runs: &[&Run]) -> String {
    let Setting { workload, workers, network } = setting;
    let plural = if *workers == 1 { "worker" } else { "workers" };
    let mut text = format!("## {workload}, {workers} {plural}, {network}\n\n");
    let Some(first) = runs.first() else { return text };
    let columns: Vec<Metric> = COLUMNS
        .into_iter()
        .filter(|metric| runs.iter().any(|run| metric.of(run).is_some()))
        .collect();
    let titles: Vec<String> = columns.iter().map(|metric| metric.title(first.unit)).collect();
    let _ = writeln!(text, "| peer | {} | CPU ratio | pairs |", titles.join(" | "));
    let _ = writeln!(text, "|---|{}---|---|", "---|".repeat(columns.len()));
    for peer in palette::peers(runs) {
        let own: Vec<&Run> = runs.iter().copied().filter(|run| run.peer == peer).collect();
        let cells: Vec<String> = columns.iter().map(|metric| cell(*metric, &own)).collect();
        let (ratio, pairs) = if peer == OURSELVES {
            (String::new(), String::new())
        } else {
            let pairs = Pairs::of(runs, Metric::Cpu, &peer);
            let ratio = Interval::of_ratios(&pairs.ratios).map_or_else(|| "-".to_owned(), interval);
            (ratio, pairs.ratios.len().to_string())
        };
        let _ = writeln!(text, "| {peer} | {} | {ratio} | {pairs} |", cells.join(" | "));
    }
    let _ = writeln!(text, "\n{}\n", states(runs));
    text
}

fn cell(metric: Metric, runs: &[&Run]) -> String {
    let values: Vec<f64> = runs.iter().filter_map(|run| metric.of(run)).collect();
    median(&values).map_or_else(|| "-".to_owned(), |value| figure(value * metric.scale()))
}

fn states(runs: &[&Run]) -> String {
    let near = runs.iter().filter(|run| run.state.distance() == "near").count();
    let range = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        format!("{} to {}", figure(low), figure(high))
    };
    let mut controls: Vec<&str> = runs.iter().map(|run| run.state.congestion.as_str()).collect();
    controls.sort_unstable();
    controls.dedup();
    let mut methods: Vec<&str> = runs.iter().map(|run| run.counted_by.as_str()).collect();
    methods.sort_unstable();
    methods.dedup();
    format!(
        "State: cores near in {near} of {} runs (a cache line there and back in {} ns), fixed \
         arithmetic in {} us, congestion control {}; CPU by {}.",
        runs.len(),
        range(runs.iter().map(|run| run.state.round_trip).collect()),
        range(runs.iter().map(|run| run.state.spin / 1e3).collect()),
        controls.join(", "),
        methods.join(", ")
    )
}

fn figures(results: &Results) -> String {
    if results.figures.is_empty() {
        return String::new();
    }
    let mut text = "## Ringway alone\n\n| what | measured | target |\n|---|---|---|\n".to_owned();
    for figure in &results.figures {
        let _ = writeln!(text, "| {} | {} | {} |", figure.name, figure.value, figure.target);
    }
    text + "\n"
}

fn skipped(results: &Results) -> String {
    if results.skipped.is_empty() {
        return String::new();
    }
    let mut text = "## Not measured\n\n".to_owned();
    for skipped in &results.skipped {
        let why = skipped.why.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "- {}: {why}", skipped.what);
    }
    text + "\n"
}

/// Those of a peer that differ in more than ports, once each.
fn configurations(results: &Results) -> String {
    let mut text = "## The peers' configurations\n\n".to_owned();
    let mut seen: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for of in results.configurations.iter().filter(|of| !of.text.trim().is_empty()) {
        let without_numbers: String = of.text.chars().filter(|c| !c.is_ascii_digit()).collect();
        let without_names = without_numbers.replace(&of.workload, "");
        seen.entry((of.peer.clone(), without_names)).or_default().push(&of.workload);
    }
    for ((peer, _), workloads) in &seen {
        let first = results
            .configurations
            .iter()
            .find(|of| of.peer == *peer && Some(&of.workload.as_str()) == workloads.first());
        let Some(first) = first else { continue };
        let _ = writeln!(
            text,
            "<details><summary>{peer}: {}</summary>\n\n```\n{}\n```\n\n</details>\n",
            workloads.join(", "),
            first.text.trim()
        );
    }
    text
}

fn title(metric: Metric) -> &'static str {
    match metric {
        Metric::Throughput => "throughput",
        Metric::Cpu => "CPU per unit",
        Metric::P50 => "p50",
        Metric::P99 => "p99",
        Metric::AnonymousPerSession => "user memory per session, bytes",
        Metric::Memory => "memory",
        Metric::Files => "open files more than at start",
        Metric::Lost => "lost or failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Configuration, Figure, Skipped, sample};

    #[test]
    fn a_report_has_verdicts_versions_tables_and_configurations() {
        let mut results = sample("tcp-connect", 12, &[("ringway", 0.5), ("nginx", 1.0)]);
        results.configurations.push(Configuration {
            workload: "tcp-connect".into(),
            peer: "nginx".into(),
            text: "worker_processes 1;".into(),
        });
        results.skipped.push(Skipped { what: "envoy".into(), why: "not\nhere".into() });
        results.figures.push(Figure {
            name: "reload".into(),
            value: "0 lost".into(),
            target: "0".into(),
        });
        let text = render(&results, &[Plot { file: "cpu".into(), title: "CPU".into() }]);
        for expected in [
            "| tcp-connect | 1 | CPU per unit | nginx (1.2) | <= 0.920 | 0.499 (",
            "| **met** |",
            "## tcp-connect, 1 worker, loopback",
            "| peer | 1,000 requests/s | CPU us/request | p50 us | p99 us | memory MB | lost |",
            "| reload | 0 lost | 0 |",
            "![CPU](plots/cpu.svg)",
            "- envoy: not here",
            "worker_processes 1;",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
    }

    #[test]
    fn a_quick_report_says_that_it_has_no_verdicts() {
        let mut results = sample("tcp-connect", 3, &[("ringway", 0.5), ("nginx", 1.0)]);
        results.sessions[0].quick = true;
        let text = render(&results, &[]);
        assert!(text.contains("Quick: no verdicts.") && !text.contains("**met** |"), "{text}");
    }
}
