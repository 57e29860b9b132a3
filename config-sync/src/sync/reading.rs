//! What of a reload needs the files and what is known already, and nothing else: it may take its
//! time on a thread of its own, while the control thread serves signals and records.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile::names::Names;
use crate::model::config::Config;
use crate::model::place::Warning;
use crate::source::{Parsed, Source};
use crate::table::routing::RoutingTable;
use crate::{compile, disk};

/// Why the files are looked at. One that is greater does all that a lesser one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// They were refused for a reason that may have passed (an address in use, no files left, a
    /// file that could not be read), 1 to 60 s ago. To be refused in the same words again is no
    /// news, and is not counted.
    Retry,
    /// They may have changed; if they have not, nothing is done.
    Refresh,
    /// Somebody has asked for it.
    Reload,
}

/// Files that are to be read, checked and compiled.
#[derive(Debug)]
pub struct Reading {
    pub(crate) wish: Wish,
    pub(crate) source: Source,
    pub(crate) names: Arc<Names>,
    pub(crate) allow_empty: bool,
    /// How many listeners are in force.
    pub(crate) listeners: usize,
    pub(crate) last: Looked,
}

/// What files held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looked {
    /// `None`: it could not be read.
    pub(crate) text: Option<String>,
    /// The other files that the text names, and what they held.
    pub(crate) files: BTreeSet<PathBuf>,
    pub(crate) fingerprint: u64,
}

/// What they come to.
#[derive(Debug)]
pub struct Found {
    pub(crate) wish: Wish,
    pub(crate) looked: Looked,
    /// `None`: they are as they were.
    pub(crate) result: Option<Result<Compiled, Refused>>,
}

#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) config: Config,
    pub(crate) shown: String,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) names: Arc<Names>,
    /// Its generation is not known yet.
    pub(crate) table: RoutingTable,
    pub(crate) took: Duration,
}

/// Why a reload did not come to a table.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) why: String,
    /// The same files may be good in a while.
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
    pub fn run(self) -> Found {
        let text = self.source.read();
        let (wish, mut looked) = (self.wish, self.last.clone());
        if wish == Wish::Refresh
            && text.as_ref().ok() == self.last.text.as_ref()
            && text.is_ok()
            && disk::fingerprint(&self.last.files) == self.last.fingerprint
        {
            return Found { wish, looked, result: None };
        }
        looked.text = text.as_ref().ok().cloned();
        let result = text.map_err(Refused::passing);
        let result = result.and_then(|text| self.compile(&text, &mut looked));
        Found { wish, looked, result: Some(result) }
    }

    #[expect(clippy::disallowed_methods, reason = "figures for operators; nothing hangs on them")]
    fn compile(self, text: &str, looked: &mut Looked) -> Result<Compiled, Refused> {
        let began = Instant::now();
        let Parsed { config, shown, warnings } =
            self.source.config(text).map_err(Refused::for_good)?;
        if config.listeners.is_empty() && self.listeners > 0 && !self.allow_empty {
            return Err(Refused::for_good(format!(
                "{}: listeners: none is left of {}, as in a file that was cut off; where that is \
                 meant, start with `ringway run --allow-empty`",
                self.source.name(),
                self.listeners
            )));
        }
        looked.files = config.files();
        // Taken before they are read: what changes in between is read once more.
        looked.fingerprint = disk::fingerprint(&looked.files);
        let mut names = self.names;
        let table = compile::compile(&config, Arc::make_mut(&mut names), 0);
        let table = table.map_err(|problems| {
            let may_pass = disk::is_one_unreadable(&looked.files);
            Refused { why: problems.to_string(), may_pass }
        })?;
        Ok(Compiled { config, shown, warnings, names, table, took: began.elapsed() })
    }
}
