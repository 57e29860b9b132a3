//! `ringway doctor`: whether this machine is fit for a gateway. [`gather`] reads facts of the
//! machine, [`examine`] judges the facts, and [`timeouts`] judges the timeouts of a configuration.

mod examine;
mod gather;
mod timeouts;

use config_sync::model::config::Config;
use serde::Serialize;

pub use gather::Facts;

/// What one check found. The order is the order of gravity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// A fact to know. Most machines need no change.
    Note,
    /// Ringway works, and loses speed, connections or datagrams under some loads.
    Warning,
    /// Ringway does not start.
    Fault,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub state: State,
    /// The name of the check, such as `open files`.
    pub check: &'static str,
    pub found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(state: State, check: &'static str, found: impl Into<String>) -> Self {
        Self { state, check, found: found.into(), fix: None }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// All findings about a machine, and about a configuration if there is one.
pub fn findings(facts: &Facts, config: Option<&Config>) -> Vec<Finding> {
    let mut all = examine::machine(facts, config);
    if let Some(config) = config {
        all.extend(examine::listeners(facts, config));
        all.extend(timeouts::of(config));
    }
    all
}

/// A block of lines for each finding: the state, the check and the fact; then the fix.
pub fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { state, check, found, fix } in findings {
        let state = match state {
            State::Ok => "ok",
            State::Note => "note",
            State::Warning => "WARNING",
            State::Fault => "FAULT",
        };
        text.push_str(&format!("{state:<8} {check:<width$} {found}\n"));
        if let Some(fix) = fix {
            text.push_str(&format!("{:<8} {:<width$} fix: {fix}\n", "", ""));
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let (faults, warnings) = (count(State::Fault), count(State::Warning));
    text + &format!("{} checks, {faults} faults, {warnings} warnings\n", findings.len())
}
