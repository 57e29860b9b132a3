//! Ringway's config thread as a library: a TOML file in, immutable routing tables out.
//!
//! The way of a configuration, top to bottom:
//!
//! | module | does |
//! |---|---|
//! | [`file`] | reads the file, and says when it has changed |
//! | [`config`] | [`Config`]: what was asked, every value of the right form |
//! | `reader`, `values` | the walk over the TOML tree; durations, addresses, names |
//! | `check` | whether the parts fit together: names, addresses, host names |
//! | [`compile`] | the [`routing::RoutingTable`]: what runs (`maglev`: hash tables of backends) |
//! | [`names`] | ids that stay the same from table to table |
//! | [`publish`] | opens new listening sockets and hands each worker the latest table |
//! | [`routing`] | the types that workers see; imports nothing of this crate |
//! | [`problem`] | what is wrong with a configuration, and where |
//! | [`machine`] | cores and congestion controls that a configuration may name |
//!
//! [`ConfigSync`] runs it; [`check()`] stops before anything is published.

mod check;
pub mod compile;
pub mod config;
pub mod file;
pub mod machine;
mod maglev;
pub mod names;
pub mod problem;
pub mod publish;
mod reader;
pub mod routing;
mod values;

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::file::Source;
use crate::names::Names;
use crate::publish::{PublishError, Publisher};
use crate::routing::SocketId;

/// Follows one configuration file: read, compile, publish, report.
pub struct ConfigSync {
    source: Source,
    publisher: Publisher,
    names: Names,
    /// What is in force, and the text that it came from.
    config: Option<(Config, String)>,
    /// The text that was last looked at, in force or refused.
    last_text: Option<String>,
    /// Of the latest table.
    generation: u64,
    draining: bool,
    reloads_ok: u64,
    reloads_failed: u64,
    last_error: Option<String>,
    timing: Timing,
}

/// What the latest table took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Parsing, checking and compiling.
    pub compile_micros: u64,
    /// Opening the sockets that are new in it, and handing it out.
    pub publish_micros: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Published {
        generation: u64,
    },
    /// The text of the file is what was looked at last, or the process is draining.
    Unchanged,
    /// What was in force stays so. The text is for the operator and has every fault, one a line.
    Rejected(String),
}

impl ConfigSync {
    /// Nothing is read before the first [`Self::reload`].
    pub fn new(source: impl Into<Source>, publisher: Publisher) -> Self {
        Self {
            source: source.into(),
            publisher,
            names: Names::new(),
            config: None,
            last_text: None,
            generation: 0,
            draining: false,
            reloads_ok: 0,
            reloads_failed: 0,
            last_error: None,
            timing: Timing::default(),
        }
    }

    /// Reads the file and publishes what it says, even if that is what is in force.
    pub fn reload(&mut self) -> Outcome {
        if self.draining {
            return Outcome::Unchanged;
        }
        let text = self.source.read();
        self.last_text = text.as_ref().ok().cloned();
        match text.and_then(|text| self.take(text)) {
            Ok(generation) => {
                self.reloads_ok += 1;
                self.last_error = None;
                Outcome::Published { generation }
            }
            Err(error) => {
                self.reloads_failed += 1;
                self.last_error = Some(error.clone());
                Outcome::Rejected(error)
            }
        }
    }

    /// The same, unless the file has the text that was looked at last: for [`file::watch`], which
    /// says that something may have changed.
    pub fn refresh(&mut self) -> Outcome {
        match self.source.read() {
            Ok(text) if self.last_text.as_ref() == Some(&text) => Outcome::Unchanged,
            _ => self.reload(),
        }
    }

    /// Publishes the empty table: nothing is accepted any more, and what lives drains. From here on
    /// the file is not looked at.
    pub fn drain(&mut self) {
        self.draining = true;
        self.generation += 1;
        let table = compile::drained(self.config(), self.generation);
        let published = self.publisher.publish(table).map(drop);
        self.note(published);
    }

    /// Tells every worker to close everything now.
    pub fn stop(&mut self) {
        self.draining = true;
        self.publisher.stop();
    }

    /// To be called when a worker says that it has closed its socket of an address that left the
    /// table: a table that waits to bind the address again goes out when all have.
    pub fn unlistened(&mut self, worker: usize, socket: SocketId) {
        let published = self.publisher.unlistened(worker, socket);
        self.note(published);
    }

    /// To be called now and then: sends what a full channel has held up.
    pub fn flush(&mut self) {
        let published = self.publisher.flush();
        self.note(published);
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The latest configuration that was published.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref().map(|(config, _)| config)
    }

    /// Its text.
    pub fn text(&self) -> Option<&str> {
        self.config.as_ref().map(|(_, text)| text.as_str())
    }

    /// Of the latest table that was published; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn reloads_ok(&self) -> u64 {
        self.reloads_ok
    }

    pub fn reloads_failed(&self) -> u64 {
        self.reloads_failed
    }

    /// Why the latest reload failed; `None` once one has succeeded.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub fn timing(&self) -> Timing {
        self.timing
    }

    #[expect(clippy::disallowed_methods, reason = "figures for operators; nothing hangs on them")]
    fn take(&mut self, text: String) -> Result<u64, String> {
        let file = self.source.name();
        let generation = self.generation + 1;
        let began = Instant::now();
        let config = config::parse(&file, &text).map_err(|problems| problems.to_string())?;
        let table = compile::compile(&config, &mut self.names, generation)
            .map_err(|problems| problems.to_string())?;
        let compiled = Instant::now();
        self.publisher.publish(table).map_err(|error| error.to_string())?;
        self.timing = Timing {
            compile_micros: micros(compiled - began),
            publish_micros: micros(compiled.elapsed()),
        };
        if let Some(before) = self.config() {
            warn_of_fixed_keys(before, &config);
        }
        self.generation = generation;
        self.config = Some((config, text));
        Ok(generation)
    }

    fn note(&mut self, published: Result<(), PublishError>) {
        if let Err(error) = published {
            tracing::error!(%error, "a table that waited could not be published");
            self.reloads_failed += 1;
            self.last_error = Some(error.to_string());
        }
    }
}

/// What a good configuration has, as `ringway check` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub listeners: usize,
    pub routes: usize,
    pub backends: usize,
    pub endpoints: usize,
}

/// Reads and compiles a file, and goes no further.
///
/// # Errors
/// For the operator: every fault, one a line, as `FILE:LINE:COLUMN: FIELD: MESSAGE`.
pub fn check(path: &Path) -> Result<Summary, String> {
    let text = file::read(path)?;
    let name = path.display().to_string();
    let config = config::parse(&name, &text).map_err(|problems| problems.to_string())?;
    let table =
        compile::compile(&config, &mut Names::new(), 1).map_err(|problems| problems.to_string())?;
    Ok(Summary {
        listeners: table.listeners.len(),
        routes: table.routes.len(),
        backends: table.backends.len(),
        endpoints: table.backends.iter().map(|backend| backend.endpoints.len()).sum(),
    })
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listeners, routes, backends, endpoints } = self;
        write!(f, "listeners: {listeners}, routes: {routes}, ")?;
        write!(f, "backends: {backends}, endpoints: {endpoints}")
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Workers, memory and the admin API are set up once; the rest of the file is in force at once.
fn warn_of_fixed_keys(before: &Config, after: &Config) {
    let target = |config: &Config| (config.access_log.target.clone(), config.access_log.format);
    let changes = [
        ("workers.cores", before.cores != after.cores),
        ("admin.address", before.admin != after.admin),
        ("limits", before.limits != after.limits),
        ("access_log", target(before) != target(after)),
    ];
    for (key, _) in changes.iter().filter(|(_, changed)| *changed) {
        tracing::warn!("{key} has changed: that is in force after a restart only");
    }
}
