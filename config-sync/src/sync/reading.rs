//! The part of a reload that needs only the files and known state. This part may take its time on a
//! thread of its own, while the control thread serves signals and records.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile::names::Names;
use crate::compile::whole::Whole;
use crate::model::config::Config;
use crate::model::endpoint::Resolved;
use crate::model::place::Warning;
use crate::resolve::lookups::{self, Answers};
use crate::source::{Parsed, Source};
use crate::{compile, disk};

/// Why the files are looked at. A greater wish includes the lesser ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// The files were refused 1 to 60 s ago for a reason that may have passed: an address in use,
    /// no files left, a file that could not be read. A second refusal in the same words is no news,
    /// and is not counted.
    Retry,
    /// The files may have changed. If they have not, nothing is done.
    Refresh,
    /// An operator has asked for a reload.
    Reload,
    /// An operator has asked for a reload that may take away most listeners.
    Confirmed,
}

/// With fewer listeners, a reload may take away more than half of them, but not all.
const FEW: usize = 4;

/// A job: read, check and compile the files.
#[derive(Debug)]
pub struct Reading {
    pub(crate) wish: Wish,
    pub(crate) source: Source,
    pub(crate) names: Arc<Names>,
    pub(crate) resolved: Arc<Resolved>,
    /// A reload may take away most listeners.
    pub(crate) allow_empty: bool,
    /// The number of listeners in force.
    pub(crate) listeners: usize,
    pub(crate) last: Looked,
}

/// The contents of the files that were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looked {
    /// `None`: the text could not be read.
    pub(crate) text: Option<String>,
    /// The files and directories of the latest text.
    pub(crate) sources: BTreeSet<PathBuf>,
    /// The other files that the text names, and a fingerprint of their contents.
    pub(crate) files: BTreeSet<PathBuf>,
    pub(crate) fingerprint: u64,
}

/// The result of a reading.
#[derive(Debug)]
pub struct Finished {
    pub(crate) wish: Wish,
    pub(crate) looked: Looked,
    /// `None`: the files have not changed.
    pub(crate) result: Option<Result<Compiled, Refused>>,
}

#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) config: Config,
    pub(crate) shown: String,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) names: Arc<Names>,
    /// The table has no generation yet.
    pub(crate) whole: Whole,
    /// Of names that are new.
    pub(crate) answers: Answers,
    pub(crate) took: Duration,
}

/// Why a reload did not make a table.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) why: String,
    /// The same files may be good later.
    pub(crate) may_pass: bool,
}

impl Refused {
    pub(crate) fn passing(why: String) -> Self {
        Self { why, may_pass: true }
    }

    pub(crate) fn for_good(why: String) -> Self {
        Self { why, may_pass: false }
    }
}

impl Reading {
    pub fn run(self) -> Finished {
        let text = self.source.read();
        let (wish, mut looked) = (self.wish, self.last.clone());
        if wish == Wish::Refresh
            && text.as_ref().ok() == self.last.text.as_ref()
            && text.is_ok()
            && disk::fingerprint(&self.last.files) == self.last.fingerprint
        {
            return Finished { wish, looked, result: None };
        }
        looked.text = text.as_ref().ok().cloned();
        if let Some(text) = &looked.text {
            looked.sources = self.source.files(text);
        }
        let result = text.map_err(Refused::passing);
        let result = result.and_then(|text| self.compile(&text, &mut looked));
        Finished { wish, looked, result: Some(result) }
    }

    #[expect(clippy::disallowed_methods, reason = "figures for operators; nothing hangs on them")]
    fn compile(self, text: &str, looked: &mut Looked) -> Result<Compiled, Refused> {
        let began = Instant::now();
        let Parsed { config, shown, warnings, .. } =
            self.source.config(text).map_err(Refused::for_good)?;
        let may_lose = self.allow_empty || self.wish == Wish::Confirmed;
        if let Some(left) = lost(self.listeners, config.listeners.len()).filter(|_| !may_lose) {
            return Err(Refused::for_good(format!(
                "{}: listeners: {left} of {}, so the file may have been cut off; if that is meant, \
                 `ringway reload --confirm` puts the file in force, and `ringway run \
                 --allow-empty` always does",
                self.source.name(),
                self.listeners
            )));
        }
        looked.files = config.files();
        // The fingerprint is taken before the files are read, so that a file that changes in
        // between is read once more.
        looked.fingerprint = disk::fingerprint(&looked.files);
        let answers = lookups::first(&config, &self.resolved);
        let mut resolved = self.resolved;
        let found = answers
            .iter()
            .filter_map(|(name, found)| Some((name.clone(), found.as_ref().ok()?.targets.clone())));
        Arc::make_mut(&mut resolved).0.extend(found);
        let mut names = self.names;
        let whole = compile::whole(&config, &resolved, Arc::make_mut(&mut names));
        let whole = whole.map_err(|problems| {
            let may_pass = disk::is_one_unreadable(&looked.files);
            Refused { why: problems.to_string(), may_pass }
        })?;
        Ok(Compiled { config, shown, warnings, names, whole, answers, took: began.elapsed() })
    }
}

/// What is left of so many listeners, if that is so little that the file may have been cut off.
fn lost(before: usize, now: usize) -> Option<String> {
    match now {
        0 if before > 0 => Some("none is left".to_owned()),
        _ if before >= FEW && 2 * now < before => Some(format!("only {now} are left")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_most_listeners_may_have_been_cut_off() {
        let lost = |before, now| lost(before, now).is_some();
        assert!(!lost(0, 0) && lost(1, 0) && lost(3, 0));
        assert!(!lost(3, 1) && lost(4, 1) && !lost(4, 2) && !lost(4, 9));
        assert!(lost(5, 2) && !lost(5, 3) && !lost(6, 3));
    }
}
