//! Writes the results of a translation: statuses, Events, and ServiceAccounts of Gateways. Only the
//! leader writes. A status says that an object is programmed only once all replicas serve the
//! object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::gateway::follow::causes::Causes;
use crate::gateway::follow::contests::{self, Contests, Step};
use crate::gateway::follow::events::Events;
use crate::gateway::follow::infrastructure::Accounts;
use crate::gateway::follow::lease::{Leases, Level};
use crate::gateway::follow::store::{Existing, Store, Version};
use crate::gateway::follow::watch::Watch;
use crate::gateway::objects::ObjectName;
use crate::gateway::status::{self, Kind, Outcome, StatusOf, promise};
use crate::gateway::translate::Translation;
use crate::gateway::translate::outline::part;

/// `AT_ONCE` statuses are written at a time. After the first burst, `RATE` are written each second.
const AT_ONCE: usize = 8;
const RATE: u32 = 50;
const BURST: u32 = 200;

/// A pass goes on for this time although there is a newer report. Otherwise nothing would be
/// written in a cluster that changes all the time.
const LEAST_PASS: Duration = Duration::from_secs(1);

/// How often one status is tried while other programs write the same object.
const ATTEMPTS: usize = 5;

/// The pauses between attempts to write one status.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// While replicas are behind, nothing is written for this time: most replicas follow in moments,
/// and one write is enough. After this time, the parts that do not depend on the replicas are
/// written.
const GRACE: Duration = Duration::from_secs(1);

/// How often replicas are checked while some are behind, and after what time the log says so.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(10);

/// A lead that is silently lost or won is noticed after this time.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);

/// A translation that this replica serves or is about to serve.
#[derive(Clone, Debug)]
pub struct Report {
    pub translation: Arc<Translation>,
    /// Why nothing of the translation is served. The configuration in force is older.
    pub refused: Option<String>,
}

/// Counts of the work done, for metrics.
#[derive(Debug, Default)]
pub struct Tally {
    pub writes: AtomicU64,
    pub conflicts: AtomicU64,
    pub errors: AtomicU64,
    /// This replica leads, and a live replica has not applied the latest report.
    pub behind: AtomicBool,
}

pub struct Reporter {
    pub client: Client,
    pub controller: String,
    pub identity: String,
    pub namespaces: Vec<String>,
    pub store: Arc<Store>,
    pub watch: Arc<Watch>,
    pub leases: Arc<Leases>,
    pub causes: Arc<Causes>,
    pub tally: Arc<Tally>,
    pub reports: Receiver<Option<Report>>,
    /// The field manager's name for statuses.
    manager: PatchParams,
    done: Arc<Mutex<Statuses>>,
    budget: Mutex<Budget>,
}

#[derive(Default)]
struct Statuses {
    /// Statuses that are right.
    written: BTreeMap<(Kind, ObjectName), Done>,
    /// Statuses that could not be written.
    failed: BTreeMap<(Kind, ObjectName), Backoff>,
    /// Statuses that other programs overwrite.
    contests: Contests,
}

/// A status that was found right or written.
#[derive(Clone)]
struct Done {
    wanted: StatusOf,
    /// The version that the watch knew then. The watch may not have seen `now` yet.
    seen: Version,
    now: Existing,
}

impl Done {
    /// Whether the object has not changed since.
    fn holds(&self, seen: &Version) -> bool {
        *seen == self.seen || *seen == self.now.version
    }
}

/// The state of a leader.
#[derive(Default)]
struct Desk {
    events: Events,
    accounts: Accounts,
    accounts_failed: Option<Backoff>,
    /// Since when a replica is behind.
    behind_since: Option<Instant>,
    told_of_it: bool,
    /// The last pass that went to its end. Only failed writes remain.
    passed: Option<Pass>,
}

impl Desk {
    /// Another replica leads, and may change the objects that were written here.
    fn leave(&mut self) {
        self.accounts.forget();
        self.accounts_failed = None;
        (self.behind_since, self.told_of_it) = (None, false);
        self.passed = None;
    }
}

/// All inputs of the statuses.
struct Pass {
    translation: Arc<Translation>,
    outcome: Outcome,
    /// Parts of the outline that not every replica has applied.
    lags: BTreeSet<usize>,
}

impl Pass {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.translation, &other.translation)
            && (&self.outcome, &self.lags) == (&other.outcome, &other.lags)
    }
}

impl Reporter {
    #[expect(clippy::too_many_arguments, reason = "each is one thing that it works with")]
    pub fn new(
        client: Client,
        controller: String,
        identity: String,
        namespaces: Vec<String>,
        store: Arc<Store>,
        watch: Arc<Watch>,
        leases: Arc<Leases>,
        causes: Arc<Causes>,
        manager: String,
        reports: Receiver<Option<Report>>,
    ) -> Self {
        Self {
            client,
            controller,
            identity,
            namespaces,
            store,
            watch,
            leases,
            causes,
            tally: Arc::default(),
            reports,
            manager: PatchParams { field_manager: Some(manager), ..PatchParams::default() },
            done: Arc::default(),
            budget: Mutex::new(Budget::new(Instant::now())),
        }
    }

    /// Reports until nobody sends reports any more.
    pub async fn run(self: Arc<Self>) {
        let (mut desk, mut reports) = (Desk::default(), self.reports.clone());
        let leases = Arc::clone(&self.leases);
        loop {
            let report = reports.borrow_and_update().clone();
            let wait = match report {
                Some(report) if self.leases.leads() => self.look(&report, &mut desk).await,
                _ => {
                    desk.leave();
                    self.tally.behind.store(false, Ordering::Relaxed);
                    LOOK_ANYWAY
                }
            };
            tokio::select! {
                changed = reports.changed() => if changed.is_err() { return },
                () = leases.changed() => {}
                () = tokio::time::sleep(wait.min(LOOK_ANYWAY)) => {}
            }
        }
    }

    /// Writes all that is to be written now, and returns for how long there is nothing else to do.
    async fn look(&self, report: &Report, desk: &mut Desk) -> Duration {
        let translation = Arc::clone(&report.translation);
        let pass = match &report.refused {
            Some(why) => {
                let outcome = Outcome::Failed([(String::new(), why.clone())].into());
                Pass { translation, outcome, lags: BTreeSet::new() }
            }
            None => {
                let level = self.leases.level(&translation.outline);
                if let Some(wait) = self.mind(&level, desk) {
                    return wait.min(LOOK_AGAIN);
                }
                let outcome = match level.failed.is_empty() {
                    true => Outcome::Applied,
                    false => Outcome::Failed(level.failed),
                };
                Pass { translation, outcome, lags: level.lags }
            }
        };
        let again =
            |desk: &Desk| if desk.behind_since.is_some() { LOOK_AGAIN } else { LOOK_ANYWAY };
        let is_done = desk.passed.as_ref().is_some_and(|passed| passed.is(&pass));
        if !is_done || self.until_retry(desk).is_some_and(|wait| wait.is_zero()) {
            let whole = self.write(&pass, desk).await;
            desk.passed = whole.then_some(pass);
        }
        self.until_retry(desk).unwrap_or(LOOK_ANYWAY).min(again(desk))
    }

    /// How long to wait for replicas that are behind before anything is written.
    fn mind(&self, level: &Level, desk: &mut Desk) -> Option<Duration> {
        self.tally.behind.store(!level.behind.is_empty(), Ordering::Relaxed);
        if level.behind.is_empty() {
            (desk.behind_since, desk.told_of_it) = (None, false);
            return None;
        }
        let since = *desk.behind_since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE && !std::mem::replace(&mut desk.told_of_it, true) {
            let who = level.behind.join(", ");
            tracing::warn!(
                "Programmed waits for replicas that have not applied the latest configuration: \
                 {who}"
            );
        }
        GRACE.checked_sub(since.elapsed()).filter(|wait| !wait.is_zero())
    }

    /// The time until a failed write is to be tried again.
    fn until_retry(&self, desk: &Desk) -> Option<Duration> {
        let done = self.done.lock();
        let all = done.failed.values().chain(&desk.accounts_failed);
        let all = all.filter_map(Backoff::due).map(Instant::from_std).chain(done.contests.next());
        let next = all.min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Writes a pass. False if newer input has ended the pass.
    async fn write(&self, pass: &Pass, desk: &mut Desk) -> bool {
        self.keep_accounts(pass, desk).await;
        let open = self.open(pass).await;
        let (began, mut whole) = (Instant::now(), true);
        futures::stream::iter(open)
            .take_while(|_| {
                let latest = self.reports.borrow();
                let newer = latest
                    .as_ref()
                    .is_some_and(|latest| !Arc::ptr_eq(&latest.translation, &pass.translation));
                let enough = newer && began.elapsed() >= LEAST_PASS;
                whole = !enough && self.leases.leads();
                std::future::ready(whole)
            })
            .map(|wanted| async move { self.write_one(&wanted).await })
            .buffer_unordered(AT_ONCE)
            .collect::<()>()
            .await;
        if self.leases.leads() {
            let notices = pass.translation.notices(&pass.outcome);
            let (server, controller) = ((&self.client, &*self.causes), &self.controller);
            desk.events.tell(server, controller, &self.identity, &notices).await;
        }
        whole
    }

    async fn keep_accounts(&self, pass: &Pass, desk: &mut Desk) {
        let now = Instant::now();
        if desk.accounts_failed.is_some_and(|failed| !failed.is_due(now.into_std())) {
            return;
        }
        let wanted = pass.translation.infrastructure();
        let (client, controller) = (&self.client, &self.controller);
        let kept = desk.accounts.keep(client, &self.namespaces, controller, wanted).await;
        desk.accounts_failed = kept.err().map(|error| {
            self.tally.errors.fetch_add(1, Ordering::Relaxed);
            self.causes.say("ServiceAccounts", "ServiceAccounts of Gateways", &error);
            let mut backoff = desk.accounts_failed.unwrap_or(BACKOFF);
            backoff.failed(Instant::now().into_std());
            backoff
        });
    }

    /// The statuses that are not known to be right and may be tried. For thousands of objects this
    /// takes longer than a probe of this process should wait, so it runs on a thread of its own.
    async fn open(&self, pass: &Pass) -> Vec<StatusOf> {
        let (translation, outcome) = (Arc::clone(&pass.translation), pass.outcome.clone());
        let (store, done, lags) =
            (Arc::clone(&self.store), Arc::clone(&self.done), pass.lags.clone());
        let open = move || {
            let mut statuses = translation.statuses(&outcome);
            for wanted in &mut statuses {
                let (kind, key) = id(wanted);
                let mut parts = translation.opened_for(kind, &key).map(part);
                if parts.any(|part| lags.contains(&part)) {
                    promise::withhold(wanted);
                }
            }
            let (now, mut done) = (Instant::now(), done.lock());
            let Statuses { written, contests, .. } = &mut *done;
            written.retain(|id, done| {
                let holds = store.version(id.0, &id.1).is_some_and(|of| done.holds(&of));
                if !holds {
                    contests.lose(id.clone(), done.wanted.clone());
                }
                holds
            });
            contests.look(now, |(kind, key)| store.version(*kind, key).is_some());
            statuses.retain(|wanted| {
                done.written.get(&id(wanted)).is_none_or(|done| done.wanted != *wanted)
            });
            let open: BTreeSet<_> = statuses.iter().map(id).collect();
            // Statuses that are no longer wanted are not tried again.
            done.failed.retain(|id, _| open.contains(id));
            statuses.retain(|wanted| {
                done.failed.get(&id(wanted)).is_none_or(|failed| failed.is_due(now.into_std()))
                    && !done.contests.rests(&id(wanted), wanted)
            });
            statuses
        };
        tokio::task::spawn_blocking(open).await.expect("no panic in there")
    }

    async fn write_one(&self, wanted: &StatusOf) {
        let is_done = self.try_one(wanted).await;
        let (id, mut done) = (id(wanted), self.done.lock());
        if is_done {
            done.failed.remove(&id);
        } else {
            done.failed.entry(id).or_insert(BACKOFF).failed(Instant::now().into_std());
        }
    }

    /// Reads, merges and writes one status, again if another program has written in between. False
    /// if the status must be tried again later.
    async fn try_one(&self, wanted: &StatusOf) -> bool {
        let id = id(wanted);
        let Some(seen) = self.store.version(wanted.kind, &id.1) else { return true };
        let done = self.done.lock().written.get(&id).filter(|done| done.holds(&seen)).cloned();
        let existing = match done {
            Some(done) => Some(done.now),
            None => self.store.existing(wanted.kind, &id.1),
        };
        let Some(mut existing) = existing else { return true };
        let Some(api) = self.api(wanted) else { return true };
        for attempt in 0..ATTEMPTS {
            if wanted.uid.as_ref().is_some_and(|uid| *uid != existing.version.uid) {
                return true;
            }
            let upheld = promise::uphold(wanted.clone(), existing.status.as_ref());
            let new = status::merge(existing.status.as_ref(), &upheld, &now());
            let Some(new) = new else {
                let done = Done { wanted: wanted.clone(), seen, now: existing };
                self.done.lock().written.insert(id, done);
                return true;
            };
            if attempt == 0 && self.rests(wanted, &existing, &new, &api).await {
                return true;
            }
            self.pace().await;
            let patch = patch(&existing, new);
            let result = api.patch_status(&wanted.name, &self.manager, &patch).await;
            let result = match result {
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    self.tally.conflicts.fetch_add(1, Ordering::Relaxed);
                    if attempt > 0 {
                        tokio::time::sleep(Duration::from_millis(20 << attempt)).await;
                    }
                    api.get(&wanted.name).await.map(|object| existing = known(object))
                }
                Ok(object) => {
                    self.tally.writes.fetch_add(1, Ordering::Relaxed);
                    let done = Done { wanted: wanted.clone(), seen, now: known(object) };
                    self.done.lock().written.insert(id, done);
                    return true;
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => return true,
                Err(error) => {
                    self.failed(wanted, &error);
                    return false;
                }
            }
        }
        false
    }

    /// Whether to write the status later, because another program overwrites the status again and
    /// again. Logs the program's name once.
    async fn rests(
        &self,
        wanted: &StatusOf,
        existing: &Existing,
        new: &Value,
        api: &Api<DynamicObject>,
    ) -> bool {
        let step = self.done.lock().contests.step(id(wanted), wanted, Instant::now());
        let Step::Rest { is_news } = step else { return false };
        if is_news {
            let own = self.manager.field_manager.as_deref();
            let fields = api.get(&wanted.name).await.ok().and_then(|of| of.metadata.managed_fields);
            let others = fields.into_iter().flatten().filter(|fields| {
                fields.subresource.as_deref() == Some("status") && fields.manager.as_deref() != own
            });
            let latest = others.max_by_key(|fields| fields.time.as_ref().map(|time| time.0));
            let who = latest.and_then(|fields| fields.manager);
            let who = who.map_or_else(|| "its own name".to_owned(), |who| format!("\"{who}\""));
            tracing::warn!(
                "the status of {} is overwritten again and again, by {who} (managedFields): {}; \
                 Ringway corrects it after ever longer pauses. Two installations of Ringway need \
                 two names (--controller-name)",
                title(wanted),
                contests::difference(existing.status.as_ref(), new)
            );
        }
        true
    }

    fn failed(&self, wanted: &StatusOf, error: &kube::Error) {
        self.tally.errors.fetch_add(1, Ordering::Relaxed);
        let line = format!("the status of {} can't be written", title(wanted));
        self.causes.say(&format!("the status of {}", wanted.kind), &line, error);
    }

    fn api(&self, wanted: &StatusOf) -> Option<Api<DynamicObject>> {
        let resource = self.watch.resource(wanted.kind.name())?;
        let client = self.client.clone();
        Some(match &wanted.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        })
    }

    async fn pace(&self) {
        let wait = self.budget.lock().take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

fn id(wanted: &StatusOf) -> (Kind, ObjectName) {
    (wanted.kind, (wanted.namespace.clone().unwrap_or_default(), wanted.name.clone()))
}

/// A title such as `TCPRoute shop/route`.
fn title(wanted: &StatusOf) -> String {
    let StatusOf { kind, name, .. } = wanted;
    let namespace = wanted.namespace.iter().map(|namespace| format!("{namespace}/"));
    format!("{kind} {}{name}", namespace.collect::<String>())
}

fn known(object: DynamicObject) -> Existing {
    Existing { version: Version::of(&object.metadata), status: object.data.get("status").cloned() }
}

/// A merge patch (RFC 7386) that makes the status right, if the object is still the version that
/// was read. Fields to be removed are null.
fn patch(existing: &Existing, mut status: Value) -> Patch<Value> {
    if let (Some(Value::Object(before)), Value::Object(after)) = (&existing.status, &mut status) {
        for field in before.keys() {
            after.entry(field.as_str()).or_insert(Value::Null);
        }
    }
    let metadata = json!({ "resourceVersion": existing.version.resource });
    Patch::Merge(json!({ "metadata": metadata, "status": status }))
}

/// The time in the form of conditions: RFC 3339, in whole seconds.
fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// Tokens for writes: `BURST` at once, then `RATE` a second.
#[derive(Debug)]
struct Budget {
    tokens: f64,
    refilled: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { tokens: f64::from(BURST), refilled: now }
    }

    /// Takes a token, and returns how long to wait for the token.
    fn take(&mut self, now: Instant) -> Duration {
        let new = now.duration_since(self.refilled).as_secs_f64() * f64::from(RATE);
        self.refilled = now;
        self.tokens = (self.tokens + new).min(f64::from(BURST)) - 1.0;
        Duration::from_secs_f64((-self.tokens).max(0.0) / f64::from(RATE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_gone_are_taken_away() {
        let existing = Existing {
            version: Version { uid: "u".into(), resource: "7".into() },
            status: Some(json!({ "addresses": [1], "conditions": [] })),
        };
        let Patch::Merge(patch) = patch(&existing, json!({ "conditions": [2] })) else {
            panic!("a merge patch");
        };
        let status = json!({ "addresses": null, "conditions": [2] });
        assert_eq!(patch, json!({ "metadata": { "resourceVersion": "7" }, "status": status }));
    }

    #[test]
    fn a_burst_is_free_and_the_rest_is_spread() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert!((0..BURST).all(|_| budget.take(start).is_zero()));
        assert_eq!(budget.take(start), Duration::from_secs(1) / RATE);
        assert_eq!(budget.take(start), Duration::from_secs(2) / RATE);
        let later = start + Duration::from_secs(60);
        assert!(budget.take(later).is_zero());
    }
}
