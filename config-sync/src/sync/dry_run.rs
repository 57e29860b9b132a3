//! Reads and compiles a source, and publishes nothing: `ringway check`.

use std::fmt;

use crate::compile;
use crate::compile::names::Names;
use crate::machine::Machine;
use crate::model::config::Config;
use crate::model::place::Warning;
use crate::source::{Parsed, Source};

/// The numbers of a good configuration's parts, as `ringway check` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub listeners: usize,
    pub routes: usize,
    pub backends: usize,
    pub endpoints: usize,
}

/// A good configuration.
#[derive(Clone, Debug)]
pub struct Checked {
    pub summary: Summary,
    /// Parts that will not work, or that are hardly meant.
    pub warnings: Vec<Warning>,
    /// Parts that are in order, and do what an operator may not expect.
    pub hints: Vec<Warning>,
    pub config: Config,
}

/// Reads and compiles a source, without publishing. `now`, in seconds of Unix time, is for the ends
/// of certificates.
///
/// # Errors
/// For the operator: every fault, one per line, as `FILE:LINE:COLUMN: FIELD: MESSAGE`.
pub fn check(source: &Source, now: i64) -> Result<Checked, String> {
    let Parsed { config, mut warnings, hints, .. } = source.config(&source.read()?)?;
    let unusable = config.cores.unusable(&Machine::this()).into_iter();
    warnings.extend(unusable.map(|mut core| {
        core.message += "; `ringway run` refuses it on this machine";
        Warning::from(core)
    }));
    let mut names = Names::new();
    let table =
        compile::compile(&config, &mut names, 1).map_err(|problems| problems.to_string())?;
    let ends = names.latest.iter().filter_map(|of| Some(of.place.problem(of.warning(now)?)));
    warnings.extend(names.doubts().iter().cloned().chain(ends).map(Warning::from));
    let summary = Summary {
        listeners: table.listeners.len(),
        routes: table.routes.len(),
        backends: table.backends.len(),
        endpoints: config.backends.iter().map(|backend| backend.endpoints.len()).sum(),
    };
    Ok(Checked { summary, warnings, hints, config })
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listeners, routes, backends, endpoints } = self;
        write!(f, "listeners: {listeners}, routes: {routes}, ")?;
        write!(f, "backends: {backends}, endpoints: {endpoints}")
    }
}
