//! `ringway check --json`: what is wrong with configurations, for machines.

use config_sync::source::Source;
use config_sync::sync::dry_run::{self, Checked};
use serde::Serialize;

/// What was found in one source.
#[derive(Debug, Serialize)]
pub struct Report {
    pub source: String,
    pub valid: bool,
    pub findings: Vec<Finding>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, and what is allowed there or what to do.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration can't be in force.
    Fault,
    Warning,
    Hint,
}

/// `now`, in seconds of Unix time, is for the ends of certificates.
pub fn report(source: &Source, now: i64) -> Report {
    let name = source.name();
    match dry_run::check(source, now) {
        Ok(Checked { warnings, hints, .. }) => {
            let all = warnings.iter().map(|of| (Severity::Warning, of));
            let all = all.chain(hints.iter().map(|of| (Severity::Hint, of)));
            let findings = all.map(|(severity, of)| {
                let colon = if of.place.is_empty() { "" } else { ": " };
                Finding::read(severity, &format!("{}{colon}{}", of.place, of.message))
            });
            Report { source: name, valid: true, findings: findings.collect() }
        }
        Err(faults) => {
            let findings = faults.lines().map(|line| Finding::read(Severity::Fault, line));
            Report { source: name, valid: false, findings: findings.collect() }
        }
    }
}

impl Finding {
    /// Reads `FILE:LINE:COLUMN: FIELD: MESSAGE`, the form of all problems of files. Place and field
    /// may be missing.
    fn read(severity: Severity, text: &str) -> Self {
        let (place, rest) = match place(text) {
            Some((file, line, column, rest)) => (Some((file, line, column)), rest),
            None => (None, text),
        };
        let is_field = |field: &str| {
            let is_of_one = |c: char| c.is_ascii_alphanumeric() || "._-[]\"".contains(c);
            !field.is_empty() && field.chars().all(is_of_one)
        };
        let field = rest.split_once(": ").filter(|(field, _)| place.is_some() && is_field(field));
        Self {
            severity,
            file: place.map(|(file, ..)| file.to_owned()),
            line: place.map(|(_, line, _)| line),
            column: place.map(|(.., column)| column),
            field: field.map(|(field, _)| field.to_owned()),
            message: field.map_or(rest, |(_, message)| message).to_owned(),
        }
    }
}

/// The first `FILE:LINE:COLUMN: `, and what follows. A file's name may have colons.
fn place(text: &str) -> Option<(&str, u32, u32, &str)> {
    text.match_indices(": ").find_map(|(at, _)| {
        let (head, rest) = (&text[..at], &text[at + 2..]);
        let (head, column) = head.rsplit_once(':')?;
        let (file, line) = head.rsplit_once(':')?;
        Some((file, line.parse().ok()?, column.parse().ok()?, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_place_field_and_message() {
        let read = |text| {
            let found = Finding::read(Severity::Fault, text);
            (found.file, found.line, found.column, found.field, found.message)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            read("a.toml:3:7: listeners[1].address: must be IP:PORT, such as: x"),
            (
                some("a.toml"),
                Some(3),
                Some(7),
                some("listeners[1].address"),
                "must be IP:PORT, such as: x".into()
            )
        );
        assert_eq!(
            read("/tmp/a: b:1.toml:3:7: this is no TOML: expected a key"),
            (
                some("/tmp/a: b:1.toml"),
                Some(3),
                Some(7),
                None,
                "this is no TOML: expected a key".into()
            )
        );
        let unplaced = "x.toml: No such file or directory (os error 2)";
        assert_eq!(read(unplaced), (None, None, None, None, unplaced.into()));
        assert_eq!(read(""), (None, None, None, None, String::new()));
    }
}
