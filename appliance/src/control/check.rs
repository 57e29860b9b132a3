//! `ringway check`: what is wrong with configurations. With `--json` for machines.

use config_sync::model::config::Config;
use config_sync::model::place::{At, Problem, Problems, Warning};
use config_sync::source::Source;
use config_sync::sync::dry_run::{self, Checked};
use config_sync::table::address::UnixPath;
use serde::Serialize;

use crate::control::admin::access::Access;
use crate::control::admin::tls::Tls;

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
    /// The number of the YAML document in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<u32>,
    /// The object of the document, as `KIND NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
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

/// Reads and compiles a source, and reads the files of the admin API, which are no part of a table.
/// `now`, in seconds of Unix time, is for the ends of certificates.
///
/// # Errors
/// For the operator: every fault, one per line, as `FILE:LINE:COLUMN: FIELD: MESSAGE`.
pub fn checked(source: &Source, now: i64) -> Result<Checked, String> {
    let mut checked = dry_run::check(source, now)?;
    let Config { admin_tls, admin_token_file, admin_socket, .. } = &checked.config;
    let mut faults = Vec::new();
    match admin_tls.as_ref().map(Tls::read) {
        Some(Err(fault)) => faults.push(fault),
        Some(Ok(tls)) => checked.warnings.extend(tls.expiry().and_then(|of| {
            let warning = of.warning(now)?;
            Some(Warning::from(of.place.problem(warning)))
        })),
        None => {}
    }
    if let Some(file) = admin_token_file
        && let Err(fault) = Access::with_token(Some(file.value.clone()), false)
    {
        let told = fault.strip_prefix("admin.token_file: ").unwrap_or(&fault);
        faults.push(file.problem(told));
    }
    if let Some(hint) = admin_socket.as_ref().and_then(homeless) {
        checked.hints.push(hint.into());
    }
    match faults.is_empty() {
        true => Ok(checked),
        false => Err(Problems::new(faults).to_string()),
    }
}

/// Another machine may have the directory.
fn homeless(socket: &At<UnixPath>) -> Option<Problem> {
    let directory = socket.value.file()?.parent().filter(|directory| !directory.is_dir())?;
    let directory = directory.display();
    Some(socket.problem(format!(
        "{directory} is not there on this machine, and `ringway run` does not make it: \
         `install -d -o USER {directory}` does, for the user that Ringway runs as; under systemd \
         RuntimeDirectory= does"
    )))
}

/// `now` is as for [`checked`].
pub fn report(source: &Source, now: i64) -> Report {
    let name = source.name();
    match checked(source, now) {
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
    /// Reads `FILE:LINE:COLUMN: FIELD: MESSAGE`, the form of all problems of TOML, or `FILE:LINE:
    /// document N: KIND NAMESPACE/NAME: FIELD: MESSAGE`, that of objects. Place and field may be
    /// missing.
    fn read(severity: Severity, text: &str) -> Self {
        let mut found = Self {
            severity,
            file: None,
            line: None,
            column: None,
            document: None,
            object: None,
            field: None,
            message: text.to_owned(),
        };
        let mut rest = text;
        if let Some((file, line, number, after)) = document(text) {
            (found.file, found.line) = (Some(file.to_owned()), Some(line));
            found.document = Some(number);
            let object = after.split_once(": ").filter(|(object, _)| is_object(object));
            found.object = object.map(|(object, _)| object.to_owned());
            rest = object.map_or(after, |(_, rest)| rest);
        } else if let Some((file, line, column, after)) = place(text) {
            (found.file, found.line) = (Some(file.to_owned()), Some(line));
            found.column = Some(column);
            rest = after;
        }
        let is_field = |field: &str| {
            let is_of_one = |c: char| c.is_ascii_alphanumeric() || "._-[]\"".contains(c);
            !field.is_empty() && field.chars().all(is_of_one)
        };
        let has_place = found.file.is_some();
        let field = rest.split_once(": ").filter(|(field, _)| has_place && is_field(field));
        found.field = field.map(|(field, _)| field.to_owned());
        found.message = field.map_or(rest, |(_, message)| message).to_owned();
        found
    }
}

/// The first `FILE:LINE: document N: `, and what follows.
fn document(text: &str) -> Option<(&str, u32, u32, &str)> {
    let (head, rest) = text.split_once(": document ")?;
    let (file, line) = head.rsplit_once(':')?;
    let (number, rest) = rest.split_once(": ")?;
    Some((file, line.parse().ok()?, number.parse().ok()?, rest))
}

/// Whether this is `KIND NAMESPACE/NAME`.
fn is_object(text: &str) -> bool {
    text.split_once(' ').is_some_and(|(kind, name)| {
        kind.chars().all(|c| c.is_ascii_alphanumeric()) && name.contains('/') && !name.contains(' ')
    })
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

    #[test]
    fn findings_in_objects_are_taken_apart() {
        let read = |text: &str| {
            let found = Finding::read(Severity::Fault, text);
            assert_eq!(found.column, None);
            (found.line, found.document, found.object, found.field, found.message)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            read("/x/a.yaml:7: document 2: Gateway n/g: spec.listeners[0].port: must be: 1"),
            (
                Some(7),
                Some(2),
                some("Gateway n/g"),
                some("spec.listeners[0].port"),
                "must be: 1".into()
            )
        );
        assert_eq!(
            read("a.yaml:1: document 1: not YAML: a colon"),
            (Some(1), Some(1), None, None, "not YAML: a colon".into())
        );
    }
}
