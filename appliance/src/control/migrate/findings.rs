//! What a migration tells its reader: what was left behind, and what works differently.

use std::fmt::{self, Display};

/// A line of one of the given files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The file's number, from 0.
    pub file: usize,
    /// From 1.
    pub line: usize,
}

/// One thing that the reader should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub at: At,
    pub weight: Weight,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The result does not do what the original does.
    Loss,
    /// Nothing about the traffic is lost, but a reader may look for it.
    Note,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    pub fn loss(&mut self, at: At, text: impl Display) {
        self.add(at, Weight::Loss, text.to_string());
    }

    pub fn note(&mut self, at: At, text: impl Display) {
        self.add(at, Weight::Note, text.to_string());
    }

    /// A line of `defaults` counts for many sections; it is told of once.
    fn add(&mut self, at: At, weight: Weight, text: String) {
        let finding = Finding { at, weight, text };
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }

    pub fn has_losses(&self) -> bool {
        self.0.iter().any(|finding| finding.weight == Weight::Loss)
    }

    /// One line for each finding, in the order of the files.
    pub fn text(mut self, files: &[&str]) -> String {
        self.0.sort();
        let line = |Finding { at, weight, text }: &Finding| {
            let note = if *weight == Weight::Note { "note: " } else { "" };
            let file = files.get(at.file).copied().unwrap_or_default();
            format!("{file}:{}: {note}{text}\n", at.line)
        };
        self.0.iter().map(line).collect()
    }
}

impl Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)
    }
}
