//! The text of the page at /metrics, in the text format of Prometheus.
//!
//! The exporter's crate writes the lines. The crate's recorder is not used: the recorder's
//! histograms take single samples, and the histograms here are buckets that each core has counted.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;

use indexmap::IndexMap;
use metrics::{Key, Label};
use metrics_exporter_prometheus::LabelSet;
use metrics_exporter_prometheus::formatting::{
    write_help_line, write_metric_line, write_type_line,
};

use crate::control::metrics::descriptions::{self, Metric};
use crate::stats::counters::{BUCKETS, Histogram};

/// The metrics of one scrape.
#[derive(Default)]
pub(super) struct Page {
    /// The lines of each series, by the metric's name and the written form of the labels.
    metrics: RefCell<BTreeMap<&'static str, BTreeMap<String, String>>>,
}

impl Page {
    pub(super) fn set(&self, name: &'static str, labels: &[(&'static str, &str)], value: u64) {
        self.value(name, labels, value);
    }

    pub(super) fn seconds(&self, name: &'static str, labels: &[(&'static str, &str)], micros: u64) {
        self.value(name, labels, Seconds(micros));
    }

    fn value(&self, name: &'static str, labels: &[(&'static str, &str)], value: impl Display) {
        let labels = label_set(name, labels);
        let mut line = String::new();
        write_metric_line(&mut line, name, None, &labels, NO_LABEL, value, None);
        self.add(name, &labels, line);
    }

    pub(super) fn histogram(
        &self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        merged: &Merged,
    ) {
        let labels = label_set(name, labels);
        let mut lines = String::new();
        let mut bucket = |bound: &dyn Display, count: u64| {
            let bound = Some(("le", bound));
            write_metric_line(&mut lines, name, Some("bucket"), &labels, bound, count, None);
        };
        let mut cumulative = 0;
        for (count, bound) in merged.buckets.iter().zip(BUCKETS) {
            cumulative += count;
            bucket(&Seconds(bound), cumulative);
        }
        let count = merged.count();
        bucket(&"+Inf", count);
        let sum = Seconds(merged.sum);
        write_metric_line(&mut lines, name, Some("sum"), &labels, NO_LABEL, sum, None);
        write_metric_line(&mut lines, name, Some("count"), &labels, NO_LABEL, count, None);
        self.add(name, &labels, lines);
    }

    fn add(&self, name: &'static str, labels: &LabelSet, lines: String) {
        let labels: Vec<_> = labels.to_strings().collect();
        self.metrics.borrow_mut().entry(name).or_default().insert(labels.join(","), lines);
    }

    /// The text, sorted by names and labels, so that two scrapes can be compared.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for (name, series) in self.metrics.borrow().iter() {
            let Metric { kind, help, .. } = described(name);
            write_help_line(&mut text, name, None, None, help);
            write_type_line(&mut text, name, None, None, kind.word());
            series.values().for_each(|lines| text.push_str(lines));
        }
        text
    }
}

fn described(name: &str) -> &'static Metric {
    descriptions::of(name).expect("every metric is described")
}

const NO_LABEL: Option<(&str, &str)> = None;

fn label_set(name: &'static str, labels: &[(&'static str, &str)]) -> LabelSet {
    let is_described = |(key, _): &(&'static str, &str)| described(name).labels.contains(key);
    debug_assert!(labels.iter().all(is_described), "{name}: {labels:?}");
    let label = |(key, value): &(&'static str, &str)| Label::new(*key, (*value).to_owned());
    let key = Key::from_parts(name, labels.iter().map(label).collect::<Vec<_>>());
    LabelSet::from_key_and_global(&key, &IndexMap::new())
}

/// A histogram summed over workers.
#[derive(Default)]
pub(super) struct Merged {
    buckets: [u64; BUCKETS.len() + 1],
    sum: u64,
}

impl Merged {
    pub(super) fn add(&mut self, histogram: &Histogram) {
        self.sum += histogram.sum.get();
        for (total, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *total += bucket.get();
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Microseconds, written as seconds without rounding and without trailing zeros.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, fraction) = (self.0 / 1_000_000, self.0 % 1_000_000);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{fraction:06}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_exact() {
        let shown = [0, 1, 100, 2_500_000, 3_600_000_000].map(|micros| Seconds(micros).to_string());
        assert_eq!(shown, ["0", "0.000001", "0.0001", "2.5", "3600"]);
    }
}
