//! Follows one source: reads, compiles, publishes and reports its configuration.

mod drained;
pub mod dry_run;
pub mod fast_path;
mod fixed_keys;
pub mod hand_over;
mod interfaces;
pub mod left_out;
mod live;
mod outcome;
pub mod overrides;
mod pickable;
pub mod reading;
mod renumber;
pub mod saved;
mod transparent;

pub use self::outcome::{Outcome, Timing};

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::compile::names::{InUse, Names, Retired};
use crate::compile::whole::Whole;
use crate::health::checks::Checks;
use crate::model::config::Config;
use crate::model::listener::bound_to;
use crate::model::place::{Problems, Warning};
use crate::publish::{PublishError, Publisher};
use crate::resolve::lookups::{Answers, Lookups};
use crate::source::Source;
use crate::sync::fast_path::OpenFastPath;
use crate::sync::interfaces::Interfaces;
use crate::sync::left_out::{LeftOut, Put};
use crate::sync::overrides::{Override, Overrides};
use crate::sync::pickable::pickable;
use crate::sync::reading::{Compiled, Finished, Looked, Reading, Refused, Wish};
use crate::table::routing::{EndpointId, ListenerId, RouteId, RoutingTable, SocketId};
use crate::{compile, gateway};

/// Follows one source: reads, compiles, publishes and reports its configuration.
pub struct ConfigSync {
    source: Source,
    publisher: Publisher,
    open_fast_path: Option<OpenFastPath>,
    /// Shared with readings on other threads, which may add names to their own copies.
    names: Arc<Names>,
    in_force: Option<Arc<InForce>>,
    /// The first configuration in force. Some of its keys hold until the process ends.
    started_with: Option<Config>,
    /// A reload may take all listeners away, or most.
    allow_empty: bool,
    /// The reload that is tried again may do so.
    is_confirmed: bool,
    /// When to try again a reload that was refused for a reason that may pass.
    again: Backoff,
    /// The compiled table with all endpoints, up or down.
    whole: Option<Arc<Whole>>,
    /// The latest table for workers.
    table: Arc<RoutingTable>,
    lookups: Lookups,
    checks: Checks,
    overrides: Overrides,
    /// Those of the process before, until the first table has them.
    inherited: Option<Vec<Override>>,
    /// Another process has been told of the overrides.
    frozen: bool,
    /// `whole` has endpoints that sessions must leave, of which the workers do not know yet.
    has_more_gone: bool,
    /// The files that were looked at last, in force or refused.
    last: Looked,
    /// A reading is under way.
    is_reading: bool,
    /// The generation of the latest table.
    generation: u64,
    draining: bool,
    reloads_ok: u64,
    reloads_failed: u64,
    last_error: Option<String>,
    timing: Timing,
    left_out: LeftOut,
    interfaces: Interfaces,
    /// Sockets that drain. For each socket, workers may keep tables between these two generations.
    kept: BTreeMap<SocketId, (u64, u64)>,
    /// The generation that every worker had reached when names were last retired.
    applied: u64,
}

/// The configuration that was published last.
pub struct InForce {
    pub config: Config,
    /// The text of the configuration. A cluster's text is made when somebody asks for the text.
    text: OnceLock<String>,
}

impl ConfigSync {
    /// Nothing is read before the first [`Self::reload`].
    pub fn new(source: impl Into<Source>, publisher: Publisher) -> Self {
        Self {
            source: source.into(),
            publisher,
            open_fast_path: None,
            names: Arc::default(),
            in_force: None,
            started_with: None,
            allow_empty: false,
            is_confirmed: false,
            again: Backoff::default(),
            whole: None,
            table: Arc::new(RoutingTable::empty()),
            lookups: Lookups::default(),
            checks: Checks::new(),
            overrides: Overrides::default(),
            inherited: None,
            frozen: false,
            has_more_gone: false,
            last: Looked::default(),
            is_reading: false,
            generation: 0,
            draining: false,
            reloads_ok: 0,
            reloads_failed: 0,
            last_error: None,
            timing: Timing::default(),
            left_out: LeftOut::default(),
            interfaces: Interfaces::default(),
            kept: BTreeMap::new(),
            applied: 0,
        }
    }

    /// Allows each reload to take away all listeners, or most. Otherwise such a reload is refused,
    /// because the file may have been cut off, unless the wish is [`Wish::Confirmed`].
    pub fn allow_empty(&mut self) {
        self.allow_empty = true;
    }

    /// Sets what opens the kernel's path for UDP flows. Without it no flow takes that path.
    pub fn set_fast_path(&mut self, open: OpenFastPath) {
        self.open_fast_path = Some(open);
    }

    /// Begins a reading, which may run on any thread. [`Self::finish`] takes the result. `None`:
    /// there is nothing to do, or another reading is not over yet.
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
            resolved: Arc::new(self.lookups.resolve.resolved()),
            allow_empty: self.allow_empty || wish == Wish::Retry && self.is_confirmed,
            listeners: self.config().map_or(0, |before| before.listeners.len()),
            last: self.last.clone(),
        })
    }

    /// Publishes the result of a reading, or keeps the configuration in force.
    pub fn finish(&mut self, found: Finished) -> Outcome {
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
                self.is_confirmed = false;
                Outcome::Published { generation }
            }
            Err(refused) => self.refuse(refused, found.wish),
        }
    }

    /// Ends a reading without a result: the reading has panicked, or there was no thread for it.
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
        let is_confirmed = wish == Wish::Confirmed || wish == Wish::Retry && self.is_confirmed;
        self.is_confirmed = may_pass && is_confirmed;
        if wish == Wish::Retry && self.last_error.as_ref() == Some(&why) {
            return Outcome::Unchanged;
        }
        self.reloads_failed += 1;
        self.last_error = Some(why.clone());
        Outcome::Rejected(why)
    }

    /// Follows a wish from beginning to end on this thread.
    pub fn follow(&mut self, wish: Wish) -> Outcome {
        match self.begin(wish) {
            Some(reading) => self.finish(reading.run()),
            None => Outcome::Unchanged,
        }
    }

    /// Puts in force what a cluster asks for. Unlike in a file, a fault of one part does not hold
    /// up the other parts, because they belong to other people. A listener with an address that
    /// can't be bound is left out, and tried again from time to time. A listener or route that does
    /// not fit is left out until the cluster changes it. A backend that does not fit has no
    /// endpoints.
    ///
    /// # Errors
    /// There is a fault that has no owner, or the table can't be given out. The configuration in
    /// force stays. The text is for the operator.
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

    /// Whether to call [`Self::put`] again although the configuration has not changed.
    pub fn wants_put(&self) -> bool {
        #[expect(clippy::disallowed_methods, reason = "for pauses between attempts to bind")]
        self.left_out.is_due(Instant::now())
    }

    /// Publishes the empty table: workers accept nothing any more, and all sessions and flows
    /// drain. From now on the file is not looked at.
    pub fn drain(&mut self) {
        self.draining = true;
        self.checks = Checks::new();
        self.generation += 1;
        let table = compile::last_table(self.config(), self.generation);
        let published = self.publisher.publish(table);
        self.note(published);
    }

    /// Tells every worker to close everything now.
    pub fn stop(&mut self) {
        self.draining = true;
        self.checks = Checks::new();
        self.publisher.stop();
    }

    /// Notes that a worker has closed its socket of an address that left the table. A table that
    /// waits to bind the address again goes out when all workers have closed theirs.
    pub fn unlistened(&mut self, worker: usize, socket: SocketId) {
        let published = self.publisher.unlistened(worker, socket);
        self.note(published);
    }

    /// Sends commands that a full channel has held up. The caller calls this repeatedly.
    pub fn flush(&mut self) {
        let published = self.publisher.flush();
        self.note(published);
    }

    /// Makes the checks of endpoints that are due, and looks at the `failures` of sessions and
    /// flows by endpoint. The caller calls this repeatedly, on a tokio runtime. True if endpoints
    /// have gone down or come back, and a new table is out: the configuration in force without the
    /// endpoints that are down.
    #[expect(clippy::disallowed_methods, reason = "checks are made by the clock")]
    pub fn check_endpoints(&mut self, failures: &dyn Fn(EndpointId) -> u64) -> bool {
        let now = Instant::now();
        if self.draining {
            return false;
        }
        let changed = self.checks.tick(failures, now);
        (self.expire_overrides(now) || changed) && self.publish_pickable(now)
    }

    /// Looks up the names of endpoints that are due. The caller calls this repeatedly, on a tokio
    /// runtime. True if addresses have changed, and a new table is out.
    #[expect(clippy::disallowed_methods, reason = "names are looked up by the clock")]
    pub fn resolve_names(&mut self) -> bool {
        let now = Instant::now();
        if self.draining {
            return false;
        }
        self.lookups.tick(now);
        // A reading that is under way gives ids as if no name had been resolved meanwhile.
        if self.is_reading || !self.lookups.resolve.take_changed() {
            return false;
        }
        let (Some(whole), Some(in_force)) = (&self.whole, &self.in_force) else { return false };
        let (before, mut whole) = (Arc::clone(whole), Whole::clone(whole));
        let names = Arc::make_mut(&mut self.names);
        let resolved = self.lookups.resolve.resolved();
        for problem in whole.resolve(in_force.config.backends.iter(), &resolved, names) {
            tracing::error!("left out: {problem}");
        }
        whole.after(&before, names);
        names.published(&whole.table, self.generation + 1, now);
        let Checks { health, ejections, warming, .. } = &mut self.checks;
        *health = health.following(&in_force.config, (&whole.table, &whole.checks), now);
        *ejections = ejections.following(&in_force.config, &whole.table);
        *warming = warming.following(&in_force.config, &whole.table);
        self.overrides.follow(&in_force.config, &whole);
        self.whole = Some(Arc::new(whole));
        self.publish_pickable(now)
    }

    /// Publishes the configuration in force with the endpoints that may be picked now. What can't
    /// be published is tried again later.
    fn publish_pickable(&mut self, now: Instant) -> bool {
        let Some(whole) = &self.whole else { return false };
        let generation = self.generation + 1;
        let Checks { health, ejections, warming, .. } = &mut self.checks;
        let known = (&*health, &*ejections, &self.overrides, warming);
        let table = pickable((whole, &self.table), generation, known, now);
        let published = self.publisher.publish(Arc::clone(&table));
        let is_published = published.is_ok();
        if is_published {
            self.generation = generation;
            self.table = table;
        }
        self.checks.given_out(is_published, now);
        self.note(published);
        is_published
    }

    /// Frees ids that nothing can refer to any more. The caller calls this repeatedly. `applied` is
    /// the generation that every worker has reached; the others say which ids have sessions.
    #[expect(clippy::disallowed_methods, reason = "ids rest for some time before they are free")]
    pub fn retire(
        &mut self,
        applied: u64,
        listener: &dyn Fn(ListenerId) -> bool,
        route: &dyn Fn(RouteId) -> bool,
        endpoint: &dyn Fn(EndpointId) -> bool,
    ) -> Retired {
        if self.is_reading {
            // The reading that is under way gives ids as if no id had been freed, so none is freed
            // now.
            return Retired::default();
        }
        let closing: BTreeSet<SocketId> = self.publisher.closing().collect();
        self.kept.retain(|id, _| closing.contains(id));
        let since = (self.applied.saturating_sub(1), self.generation);
        for id in &closing {
            // The table with which the socket left is in this range, and so are earlier tables that
            // a worker may have skipped.
            self.kept.entry(*id).or_insert(since);
        }
        self.applied = applied;
        // Many sockets that leave with one table have one range.
        let kept: BTreeSet<_> = self.kept.values().copied().collect();
        let closing = |id| closing.contains(&id);
        let in_use = InUse { applied, kept: &kept, closing: &closing, listener, route, endpoint };
        Arc::make_mut(&mut self.names).retire(&in_use, Instant::now())
    }

    /// Files to watch: the configuration's own files, and the files that the configuration names. A
    /// configuration in memory has no files.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        match &self.source {
            Source::File(path) | Source::Objects { path, .. } => {
                let Looked { files, sources, .. } = &self.last;
                files.iter().chain(sources).chain([path]).cloned().collect()
            }
            Source::Pipe(_) | Source::Text { .. } => BTreeSet::new(),
        }
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The configuration in force. `None` before the first table.
    pub fn in_force(&self) -> Option<&Arc<InForce>> {
        self.in_force.as_ref()
    }

    fn config(&self) -> Option<&Config> {
        self.in_force.as_ref().map(|in_force| &in_force.config)
    }

    /// The table of the configuration in force with all its endpoints. `None` before the first.
    pub fn whole(&self) -> Option<&RoutingTable> {
        self.whole.as_ref().map(|whole| &whole.table)
    }

    /// The latest table for workers.
    pub fn table(&self) -> &Arc<RoutingTable> {
        &self.table
    }

    /// The generation of the latest table that was published. 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn reloads_ok(&self) -> u64 {
        self.reloads_ok
    }

    pub fn reloads_failed(&self) -> u64 {
        self.reloads_failed
    }

    /// Why the latest reload failed. `None` once a reload has succeeded.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub fn timing(&self) -> Timing {
        self.timing
    }

    fn put_in_force(&mut self, compiled: Compiled) -> Result<u64, Refused> {
        let Compiled { config, shown, warnings, names, whole, answers, took } = compiled;
        let generation = self.generation + 1;
        self.restore(&config, &whole).map_err(Refused::passing)?;
        fast_path::open(self.open_fast_path.as_mut(), &config).map_err(Refused::passing)?;
        let drained = self.overrides.drained_listeners();
        let table = drained::without(Cow::Borrowed(&whole.table), &drained);
        self.open(&config, &table).map_err(Refused::passing)?;
        self.names = names;
        self.give_out(&config, whole, answers, took).map_err(Refused::passing)?;
        fixed_keys::warn(self.started_with.get_or_insert_with(|| config.clone()), &config);
        transparent::warn(&config);
        self.generation = generation;
        self.in_force = Some(Arc::new(InForce::new(config, shown)));
        let doubts = self.names.doubts().iter().cloned().map(Warning::from);
        for warning in warnings.into_iter().chain(doubts) {
            tracing::warn!("{warning}");
        }
        Ok(generation)
    }

    /// Opens the new sockets of a table.
    ///
    /// # Errors
    /// Each listener with an address that can't be bound, and its place. Then no socket is opened.
    fn open(&mut self, config: &Config, table: &RoutingTable) -> Result<(), String> {
        let errors = self.publisher.prepare(table);
        if errors.is_empty() {
            return Ok(());
        }
        self.publisher.discard();
        let by_address: BTreeMap<_, _> = errors.iter().map(|error| (&error.bound, error)).collect();
        let mut faults = Vec::new();
        for listener in &config.listeners {
            for (address, bound) in listener.addresses.iter().zip(bound_to(listener)) {
                let Some(error) = by_address.get(&bound) else { continue };
                let name = &listener.name.value;
                faults.push(address.problem(format!("listener \"{name}\": {error}")));
            }
        }
        Err(Problems::new(faults).to_string())
    }

    #[expect(clippy::disallowed_methods, reason = "figures for operators; nothing hangs on them")]
    fn put_now(&mut self, asked: &Config, now: Instant) -> Result<bool, String> {
        let began = Instant::now();
        let generation = self.generation + 1;
        let is_lost = self.left_out.is_lost;
        self.left_out.forget(asked);
        let (mut config, mut whole) = self.fitting(asked, now)?;
        self.restore(&config, &whole)?;
        let drained = self.overrides.drained_listeners();
        let table = drained::without(Cow::Borrowed(&whole.table), &drained);
        let errors = self.publisher.prepare(&table);
        self.left_out.tried(&whole.table, &errors, now);
        if !errors.is_empty() {
            for error in errors {
                tracing::error!(
                    "{error}: the listeners of that address are left out, and tried again"
                );
            }
            (config, whole) = self.fitting(asked, now)?;
            if !is_lost && self.config() == Some(&config) {
                return Ok(false);
            }
        }
        self.give_out(&config, whole, Answers::new(), began.elapsed())?;
        // A cluster makes many tables a second, so the warning comes only when a backend first asks
        // for this.
        if !self.config().is_some_and(transparent::is_asked) {
            transparent::warn(&config);
        }
        self.generation = generation;
        self.in_force = Some(Arc::new(InForce { config, text: OnceLock::new() }));
        Ok(true)
    }

    /// Publishes the compiled table of `config`, without endpoints that are known to be down.
    #[expect(clippy::disallowed_methods, reason = "figures for operators; pauses between checks")]
    fn give_out(
        &mut self,
        config: &Config,
        mut whole: Whole,
        answers: Answers,
        took: Duration,
    ) -> Result<(), String> {
        let compiled = Instant::now();
        let generation = self.generation + 1;
        if let Some(before) = &self.whole {
            whole.after(before, &self.names);
        }
        let health = self.checks.health.following(config, (&whole.table, &whole.checks), compiled);
        let ejections = self.checks.ejections.following(config, &whole.table);
        let mut warming = self.checks.warming.following(config, &whole.table);
        let known = (&health, &ejections, &self.overrides, &mut warming);
        let table = pickable((&whole, &self.table), generation, known, compiled);
        self.publisher.publish(Arc::clone(&table)).map_err(|error| error.to_string())?;
        self.table = table;
        // An endpoint that is down keeps its id, so the whole table counts here.
        Arc::make_mut(&mut self.names).published(&whole.table, generation, compiled);
        self.overrides.follow(config, &whole);
        self.whole = Some(Arc::new(whole));
        self.lookups.follow(config, answers, compiled);
        self.interfaces.learn(config);
        self.checks.health = health;
        self.checks.ejections = ejections;
        self.checks.warming = warming;
        self.timing =
            Timing { compile_micros: micros(took), publish_micros: micros(compiled.elapsed()) };
        Ok(())
    }

    /// The parts of `asked` that can be in force: without addresses that can't be bound, and
    /// without parts that do not fit. One owner's fault must not harm everybody.
    fn fitting(&mut self, asked: &Config, now: Instant) -> Result<(Config, Whole), String> {
        let mut config = self.left_out.without(asked, now);
        let resolved = self.lookups.resolve.resolved();
        let names = Arc::make_mut(&mut self.names);
        loop {
            match compile::whole(&config, &resolved, names) {
                Ok(whole) => return Ok((config, whole)),
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

    /// The configuration as TOML. A cluster's TOML has no certificates and keys, because the TOML
    /// is for readers.
    pub fn text(&self) -> &str {
        self.text.get_or_init(|| gateway::print::toml(&self.config, &mut |_| None))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
