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
