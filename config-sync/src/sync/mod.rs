//! Follows one source: read, compile, publish, report.

pub mod left_out;
pub mod reading;
mod transparent;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::compile::names::{InUse, Names, Retired};
use crate::health::{Checks, Health};
use crate::machine::Machine;
use crate::model::config::Config;
use crate::model::listener::{self, Listener};
use crate::model::place::{Problems, Warning};
use crate::publish::{PublishError, Publisher};
use crate::source::{Parsed, Source};
use crate::sync::left_out::{LeftOut, Put};
use crate::sync::reading::{Compiled, Found, Looked, Reading, Refused, Wish};
use crate::table::routing::{EndpointId, ListenerId, RoutingTable, SocketId};
use crate::{compile, gateway};

/// Follows one configuration file: read, compile, publish, report.
pub struct ConfigSync {
    source: Source,
    publisher: Publisher,
    /// Those that are read beside it may add to their own.
    names: Arc<Names>,
    in_force: Option<Arc<InForce>>,
    /// What was put in force first: of some keys, what holds until the process ends.
    started_with: Option<Config>,
    /// A reload may take all listeners away.
    allow_empty: bool,
    /// When a reload that was refused for a reason that may pass is tried again.
    again: Backoff,
    /// What was compiled of it, with every endpoint, up or down.
    whole: Option<Arc<RoutingTable>>,
    checks: Checks,
    /// What was last looked at, in force or refused.
    last: Looked,
    /// Something is looked at just now.
    is_reading: bool,
    /// Of the latest table.
    generation: u64,
    draining: bool,
    reloads_ok: u64,
    reloads_failed: u64,
    last_error: Option<String>,
    timing: Timing,
    left_out: LeftOut,
    /// Sockets that drain, and between which generations the tables are that workers may keep for
    /// them.
    kept: BTreeMap<SocketId, (u64, u64)>,
    /// Of the table that every worker had reached when names were last retired.
    applied: u64,
}

/// The configuration that was published last.
pub struct InForce {
    pub config: Config,
    /// The text that it came from; of a cluster's, made when somebody asks for it.
    text: OnceLock<String>,
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
            names: Arc::default(),
            in_force: None,
            started_with: None,
            allow_empty: false,
            again: Backoff::default(),
            whole: None,
            checks: Checks::default(),
            last: Looked::default(),
            is_reading: false,
            generation: 0,
            draining: false,
            reloads_ok: 0,
            reloads_failed: 0,
            last_error: None,
            timing: Timing::default(),
            left_out: LeftOut::default(),
            kept: BTreeMap::new(),
            applied: 0,
        }
    }

    /// A reload may take all listeners away: without this, a file that was cut off is told from one
    /// that is meant so.
    pub fn allow_empty(&mut self) {
        self.allow_empty = true;
    }

    /// What is to be done for a wish, on whatever thread: [`Self::finish`] takes what it finds.
    /// `None`: nothing is to be done, or that of another wish is not over yet.
    pub fn begin(&mut self, wish: Wish) -> Option<Reading> {
        #[expect(clippy::disallowed_methods, reason = "for pauses between attempts")]
        let is_due = wish != Wish::Retry || self.again.is_due(Instant::now());
        if self.draining || self.is_reading || !is_due {
            return None;
        }
        self.is_reading = true;
        Some(Reading {
            wish,
            source: self.source.clone(),
            names: Arc::clone(&self.names),
            allow_empty: self.allow_empty,
            listeners: self.config().map_or(0, |before| before.listeners.len()),
            last: self.last.clone(),
        })
    }

    /// Publishes what was found, or keeps what is in force.
    pub fn finish(&mut self, found: Found) -> Outcome {
        self.is_reading = false;
        let Some(result) = found.result.filter(|_| !self.draining) else {
            return Outcome::Unchanged;
        };
        self.last = found.looked;
        match result.and_then(|compiled| self.put_in_force(compiled)) {
            Ok(generation) => {
                self.reloads_ok += 1;
                self.last_error = None;
                self.again = Backoff::default();
                Outcome::Published { generation }
            }
            Err(refused) => self.refuse(refused, found.wish),
        }
    }

    /// A reading has ended without a result: it has panicked, or there was no thread for it.
    pub fn abandon(&mut self, why: String) -> Outcome {
        self.is_reading = false;
        self.refuse(Refused::passing(why), Wish::Retry)
    }

    #[expect(clippy::disallowed_methods, reason = "for pauses between attempts")]
    fn refuse(&mut self, Refused { why, may_pass }: Refused, wish: Wish) -> Outcome {
        match may_pass {
            true => self.again.failed(Instant::now()),
            false => self.again = Backoff::default(),
        }
        if wish == Wish::Retry && self.last_error.as_ref() == Some(&why) {
            return Outcome::Unchanged;
        }
        self.reloads_failed += 1;
        self.last_error = Some(why.clone());
        Outcome::Rejected(why)
    }

    /// A wish from beginning to end.
    pub fn follow(&mut self, wish: Wish) -> Outcome {
        match self.begin(wish) {
            Some(reading) => self.finish(reading.run()),
            None => Outcome::Unchanged,
        }
    }

    /// Puts in force what a cluster asks for. Unlike with a file, what is wrong with one part does
    /// not hold up the others, which belong to other people. A listener whose address can't be
    /// bound is left out, and tried again from time to time; so are a listener or a route that do
    /// not fit, until they are asked for otherwise; a backend that does not fit has no endpoints.
    ///
    /// # Errors
    /// There is a fault that has no owner, or the table can't be given out: what was in force stays
    /// so. The text is for the operator.
    pub fn put(&mut self, asked: &Config) -> Result<Put, String> {
        #[expect(clippy::disallowed_methods, reason = "for pauses between attempts to bind")]
        let now = Instant::now();
        let same = self.left_out.asked.as_ref() == Some(asked) && !self.left_out.is_due(now);
        if self.draining || same {
            let failed = self.left_out.failed(asked);
            return Ok(Put { generation: self.generation, published: false, failed });
        }
        let result = self.put_now(asked, now);
        match &result {
            Ok(published) => {
                self.reloads_ok += u64::from(*published);
                self.last_error = None;
                self.left_out.asked = Some(asked.clone());
            }
            Err(error) => {
                self.reloads_failed += 1;
                self.last_error = Some(error.clone());
            }
        }
        result.map(|published| Put {
            generation: self.generation,
            published,
            failed: self.left_out.failed(asked),
        })
    }

    /// Whether [`Self::put`] should be called again although nothing else is asked for.
    pub fn wants_put(&self) -> bool {
        #[expect(clippy::disallowed_methods, reason = "for pauses between attempts to bind")]
        self.left_out.is_due(Instant::now())
    }

    /// Publishes the empty table: nothing is accepted any more, and what lives drains. From here on
    /// the file is not looked at.
    pub fn drain(&mut self) {
        self.draining = true;
        self.checks = Checks::default();
        self.generation += 1;
        let table = compile::drained(self.config(), self.generation);
        let published = self.publisher.publish(table);
        self.note(published);
    }

    /// Tells every worker to close everything now.
    pub fn stop(&mut self) {
        self.draining = true;
        self.checks = Checks::default();
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

    /// To be called now and then, on a tokio runtime: checks the endpoints of which a check is due.
    /// True if some have gone down or come back, and a new table says so: the configuration in
    /// force without those that are down.
    #[expect(clippy::disallowed_methods, reason = "checks are made by the clock")]
    pub fn check_endpoints(&mut self) -> bool {
        let now = Instant::now();
        if self.draining || !self.checks.tick(now) {
            return false;
        }
        let Some(whole) = &self.whole else { return false };
        let generation = self.generation + 1;
        let published = self.publisher.publish(self.checks.health.table(whole, generation));
        let is_published = published.is_ok();
        if is_published {
            self.generation = generation;
        }
        self.checks.given_out(is_published, now);
        self.note(published);
        is_published
    }

    /// Of the endpoints that are checked.
    pub fn health(&self) -> &Health {
        &self.checks.health
    }

    /// To be called now and then: frees ids of which nobody can speak any more. `applied` is the
    /// generation that every worker has reached; the rest says which ids have sessions or flows.
    #[expect(clippy::disallowed_methods, reason = "ids rest for some time before they are free")]
    pub fn retire(
        &mut self,
        applied: u64,
        listener: &dyn Fn(ListenerId) -> bool,
        endpoint: &dyn Fn(EndpointId) -> bool,
    ) -> Retired {
        if self.is_reading {
            // It gives ids as if none had been freed.
            return Retired::default();
        }
        let closing: BTreeSet<SocketId> = self.publisher.closing().collect();
        self.kept.retain(|id, _| closing.contains(id));
        let since = (self.applied.saturating_sub(1), self.generation);
        for id in &closing {
            // Somewhere in between is the table that it left with, and the ones before that which
            // a worker may have skipped.
            self.kept.entry(*id).or_insert(since);
        }
        self.applied = applied;
        // Many sockets that leave with one table have the same.
        let kept: BTreeSet<_> = self.kept.values().copied().collect();
        let closing = |id| closing.contains(&id);
        let in_use = InUse { applied, kept: &kept, closing: &closing, listener, endpoint };
        Arc::make_mut(&mut self.names).retire(&in_use, Instant::now())
    }

    /// Files that are to be watched: the configuration's own, and those that it names. None if it
    /// is in memory.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        match &self.source {
            Source::File(path) | Source::Objects { path, .. } => {
                self.last.files.iter().chain([path]).cloned().collect()
            }
            Source::Pipe(_) | Source::Text { .. } => BTreeSet::new(),
        }
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// `None` before the first table.
    pub fn in_force(&self) -> Option<&Arc<InForce>> {
        self.in_force.as_ref()
    }

    fn config(&self) -> Option<&Config> {
        self.in_force.as_ref().map(|in_force| &in_force.config)
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

    fn put_in_force(&mut self, compiled: Compiled) -> Result<u64, Refused> {
        let Compiled { config, shown, warnings, names, mut table, took } = compiled;
        let generation = self.generation + 1;
        table.generation = generation;
        self.open(&config, &table).map_err(Refused::passing)?;
        self.names = names;
        self.give_out(&config, table, took).map_err(Refused::passing)?;
        warn_of_fixed_keys(self.started_with.get_or_insert_with(|| config.clone()), &config);
        transparent::warn(&config);
        self.generation = generation;
        self.in_force = Some(Arc::new(InForce::new(config, shown)));
        let doubts = self.names.doubts().iter().cloned().map(Warning::from);
        for warning in warnings.into_iter().chain(doubts) {
            tracing::warn!("{warning}");
        }
        Ok(generation)
    }

    /// Opens the sockets that are new in a table.
    ///
    /// # Errors
    /// Each listener whose address can't be bound, with its place: nothing is opened then.
    fn open(&mut self, config: &Config, table: &RoutingTable) -> Result<(), String> {
        let errors = self.publisher.prepare(table);
        if errors.is_empty() {
            return Ok(());
        }
        self.publisher.discard();
        let by_address: BTreeMap<_, _> =
            errors.iter().map(|error| ((error.transport, error.address), error)).collect();
        let faults = config.listeners.iter().filter_map(|listener| {
            let Listener { name, protocol, address, .. } = listener;
            let error = by_address.get(&(listener::transport(*protocol), address.value))?;
            Some(address.problem(format!("listener \"{}\": {error}", name.value)))
        });
        Err(Problems::new(faults.collect()).to_string())
    }

    #[expect(clippy::disallowed_methods, reason = "figures for operators; nothing hangs on them")]
    fn put_now(&mut self, asked: &Config, now: Instant) -> Result<bool, String> {
        let began = Instant::now();
        let generation = self.generation + 1;
        let is_lost = self.left_out.is_lost;
        self.left_out.forget(asked);
        let (mut config, mut table) = self.fitting(asked, now)?;
        let errors = self.publisher.prepare(&table);
        self.left_out.tried(&table, &errors, now);
        if !errors.is_empty() {
            for error in errors {
                tracing::error!("{error}: what listens there is left out for now");
            }
            (config, table) = self.fitting(asked, now)?;
            if !is_lost && self.config() == Some(&config) {
                return Ok(false);
            }
        }
        self.give_out(&config, table, began.elapsed())?;
        // Tables come many times a second: it is said when the first backend asks for it.
        if !self.config().is_some_and(transparent::is_asked) {
            transparent::warn(&config);
        }
        self.generation = generation;
        self.in_force = Some(Arc::new(InForce { config, text: OnceLock::new() }));
        Ok(true)
    }

    /// Publishes what was compiled of `config`, but for endpoints that are known to be down.
    #[expect(clippy::disallowed_methods, reason = "figures for operators; pauses between checks")]
    fn give_out(
        &mut self,
        config: &Config,
        whole: RoutingTable,
        took: Duration,
    ) -> Result<(), String> {
        let compiled = Instant::now();
        let whole = Arc::new(whole);
        let health = self.checks.health.following(config, compiled);
        let table = health.table(&whole, whole.generation);
        self.publisher.publish(table).map_err(|error| error.to_string())?;
        // An endpoint that is down keeps its id.
        Arc::make_mut(&mut self.names).published(&whole, compiled);
        self.whole = Some(whole);
        self.checks.health = health;
        self.timing =
            Timing { compile_micros: micros(took), publish_micros: micros(compiled.elapsed()) };
        Ok(())
    }

    /// What can be in force of what is asked for: without the addresses that can't be bound, and
    /// without what does not fit, which is one owner's fault and must not be everybody's.
    fn fitting(&mut self, asked: &Config, now: Instant) -> Result<(Config, RoutingTable), String> {
        let mut config = self.left_out.without(asked, now);
        let names = Arc::make_mut(&mut self.names);
        loop {
            match compile::compile(&config, names, self.generation + 1) {
                Ok(table) => return Ok((config, table)),
                Err(problems) if self.left_out.leave_out(&mut config, &problems) => {}
                Err(problems) => return Err(problems.to_string()),
            }
        }
    }

    fn note(&mut self, published: Result<(), PublishError>) {
        if let Err(error) = published {
            tracing::error!(%error, "a table that waited could not be published");
            self.left_out.is_lost = true;
            #[expect(clippy::disallowed_methods, reason = "for pauses between attempts")]
            self.again.failed(Instant::now());
            self.reloads_failed += 1;
            self.last_error = Some(error.to_string());
        }
    }
}

impl InForce {
    pub fn new(config: Config, text: String) -> Self {
        Self { config, text: text.into() }
    }

    /// It as TOML; a cluster's without certificates and keys, as it is there to be read.
    pub fn text(&self) -> &str {
        self.text.get_or_init(|| gateway::print::toml(&self.config, &mut |_| None))
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

/// Reads and compiles a source, and goes no further. Returns beside the summary what will not work,
/// or is hardly meant. `now`, in seconds of Unix time, is for the ends of certificates.
///
/// # Errors
/// For the operator: every fault, one a line, as `FILE:LINE:COLUMN: FIELD: MESSAGE`.
pub fn check(source: &Source, now: i64) -> Result<(Summary, Vec<Warning>), String> {
    let Parsed { config, mut warnings, .. } = source.config(&source.read()?)?;
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
        endpoints: table.backends.iter().map(|backend| backend.endpoints.len()).sum(),
    };
    Ok((summary, warnings))
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
/// `runs` is what the process was started with.
fn warn_of_fixed_keys(runs: &Config, asked: &Config) {
    let target = |config: &Config| (config.access_log.target.clone(), config.access_log.format);
    let changes = [
        ("workers.cores", runs.cores.numbers() != asked.cores.numbers()),
        ("admin.address", runs.admin != asked.admin),
        ("limits", runs.limits != asked.limits),
        ("access_log", target(runs) != target(asked)),
    ];
    for (key, _) in changes.iter().filter(|(_, changed)| *changed) {
        tracing::warn!("{key} is not what runs: that is in force after a restart only");
    }
}
