//! Writes what became of a translation: statuses, events, and ServiceAccounts of Gateways. One
//! replica does, the leader, and only once all replicas serve what it speaks of.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use super::events::Events;
use super::infrastructure::Accounts;
use super::lease::{Leases, Level};
use super::status::{self, Kind, Outcome, StatusOf};
use super::store::{Existing, Key, Store, Version};
use super::translate::Translation;
use super::watch::{Watch, said};

/// Statuses written at a time, and in a second once the first burst is used up.
const AT_ONCE: usize = 8;
const RATE: u32 = 50;
const BURST: u32 = 200;

/// A pass goes on for so long although there is a newer report: where something changes all the
/// time, nothing would ever be written else.
const LEAST_PASS: Duration = Duration::from_secs(1);

/// How often one status is tried while others write the same object.
const ATTEMPTS: usize = 5;

/// Between passes of which some writes have failed; doubles from the least to the most.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(30);

/// How often replicas are looked at while some are behind, and when that is worth a word.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(10);

/// A translation that this replica serves.
#[derive(Clone, Debug)]
pub struct Report {
    pub translation: Arc<Translation>,
    pub outline: String,
    /// Nothing of it is served, for this reason: what is in force is older.
    pub refused: Option<String>,
}

/// What has been done, for metrics.
#[derive(Debug, Default)]
pub struct Tally {
    pub writes: AtomicU64,
    pub conflicts: AtomicU64,
    pub errors: AtomicU64,
    /// Some replica that lives has not applied the latest report.
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
    pub tally: Arc<Tally>,
    pub reports: Receiver<Option<Report>>,
    written: Arc<Mutex<Written>>,
    budget: Mutex<Budget>,
}

/// Statuses that are as they should be.
type Written = BTreeMap<(Kind, Key), Done>;

/// A status that was found or made as it should be.
#[derive(Clone)]
struct Done {
    wanted: StatusOf,
    /// What the watch had told then; it may not have told of `now` yet.
    seen: Version,
    now: Existing,
}

impl Done {
    /// Nothing has happened to the object since.
    fn holds(&self, seen: &Version) -> bool {
        *seen == self.seen || *seen == self.now.version
    }
}

/// What became of one status.
enum Wrote {
    Nothing,
    Status,
    /// It must be tried again later.
    Failed,
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
            tally: Arc::default(),
            reports,
            written: Arc::default(),
            budget: Mutex::new(Budget::new(Instant::now())),
        }
    }

    /// Reports for as long as there is somebody to tell.
    pub async fn run(mut self) {
        let (mut events, mut accounts) = (Events::default(), Accounts::default());
        let mut pause = LEAST_PAUSE;
        let mut behind_since = None;
        let leases = Arc::clone(&self.leases);
        loop {
            let report = self.reports.borrow_and_update().clone();
            let mut wait = Duration::MAX;
            match report {
                Some(report) if self.leases.leads() => match self.outcome(&report) {
                    Some(outcome) => {
                        behind_since = None;
                        let done = self.write(&report, &outcome, &mut events, &mut accounts).await;
                        (wait, pause) = match done {
                            true => (Duration::MAX, LEAST_PAUSE),
                            false => (pause, (pause * 2).min(MOST_PAUSE)),
                        };
                    }
                    None => {
                        wait = LOOK_AGAIN;
                        self.mind(&report, &mut behind_since);
                    }
                },
                Some(_) => {
                    behind_since = None;
                    accounts.forget();
                }
                None => {}
            }
            // A lead that is lost or won without a word is noticed after a while too.
            let wait = wait.min(Duration::from_secs(5));
            tokio::select! {
                changed = self.reports.changed() => if changed.is_err() { return },
                () = leases.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// `None` while replicas are behind: what statuses say stays true until then.
    fn outcome(&self, report: &Report) -> Option<Outcome> {
        if let Some(why) = &report.refused {
            return Some(Outcome::Failed([(String::new(), why.clone())].into()));
        }
        match self.leases.level(&report.outline) {
            Level::Behind(_) => None,
            Level::Level { failed } if failed.is_empty() => Some(Outcome::Applied),
            Level::Level { failed } => Some(Outcome::Failed(failed)),
        }
    }

    fn mind(&self, report: &Report, since: &mut Option<Instant>) {
        let since_when = *since.get_or_insert_with(Instant::now);
        let late = since_when.elapsed() > PATIENCE;
        if late
            && !self.tally.behind.swap(true, Ordering::Relaxed)
            && let Level::Behind(who) = self.leases.level(&report.outline)
        {
            let who = who.join(", ");
            tracing::warn!("statuses wait for replicas that have not applied all: {who}");
        }
    }

    /// True once all is written, or something newer is to be written first.
    async fn write(
        &self,
        report: &Report,
        outcome: &Outcome,
        events: &mut Events,
        accounts: &mut Accounts,
    ) -> bool {
        self.tally.behind.store(false, Ordering::Relaxed);
        let wanted = report.translation.infrastructure();
        let (client, controller) = (&self.client, &self.controller);
        let kept = accounts.keep(client, &self.namespaces, controller, wanted).await;
        if let Err(error) = &kept {
            self.tally.errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("ServiceAccounts of Gateways: {}", said(error));
        }
        let open = self.open(report, outcome).await;
        let began = Instant::now();
        let failed = futures::stream::iter(open)
            .take_while(|_| {
                let newer = self.reports.has_changed().unwrap_or(false);
                let enough = newer && began.elapsed() >= LEAST_PASS;
                std::future::ready(!enough && self.leases.leads())
            })
            .map(|wanted| async move { self.write_one(&wanted).await })
            .buffer_unordered(AT_ONCE)
            .filter(|wrote| std::future::ready(matches!(wrote, Wrote::Failed)))
            .count()
            .await;
        if self.leases.leads() {
            let notices = report.translation.notices(outcome);
            events.tell(client, controller, &self.identity, &notices).await;
        }
        failed == 0 && kept.is_ok()
    }

    /// What is not known to be as it should be. Of thousands of objects that takes longer than a
    /// probe of this process should have to wait, so that it has a thread of its own.
    async fn open(&self, report: &Report, outcome: &Outcome) -> Vec<StatusOf> {
        let (translation, outcome) = (Arc::clone(&report.translation), outcome.clone());
        let (store, written) = (Arc::clone(&self.store), Arc::clone(&self.written));
        let open = move || {
            let mut written = lock(&written);
            written.retain(|(kind, key), done| {
                store.version(*kind, key).is_some_and(|version| done.holds(&version))
            });
            let mut statuses = translation.statuses(&outcome);
            statuses.retain(|wanted| {
                written.get(&id(wanted)).is_none_or(|done| done.wanted != *wanted)
            });
            statuses
        };
        tokio::task::spawn_blocking(open).await.expect("no panic in there")
    }

    /// Reads, merges and writes one status, again where another has written in between.
    async fn write_one(&self, wanted: &StatusOf) -> Wrote {
        let id = id(wanted);
        let Some(seen) = self.store.version(wanted.kind, &id.1) else { return Wrote::Nothing };
        let done = lock(&self.written).get(&id).filter(|done| done.holds(&seen)).cloned();
        let existing = match done {
            Some(done) => Some(done.now),
            None => self.store.existing(wanted.kind, &id.1),
        };
        let Some(mut existing) = existing else { return Wrote::Nothing };
        let Some(api) = self.api(wanted) else { return Wrote::Nothing };
        for attempt in 0..ATTEMPTS {
            if wanted.uid.as_ref().is_some_and(|uid| *uid != existing.version.uid) {
                return Wrote::Nothing;
            }
            let new = status::merge(existing.status.as_ref(), wanted, &now());
            let Some(new) = new else {
                let done = Done { wanted: wanted.clone(), seen, now: existing };
                lock(&self.written).insert(id, done);
                return Wrote::Nothing;
            };
            self.pace().await;
            let patch = patch(&existing, new);
            let result = api.patch_status(&wanted.name, &PatchParams::default(), &patch).await;
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
                    lock(&self.written).insert(id, done);
                    return Wrote::Status;
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => return Wrote::Nothing,
                Err(error) => return self.failed(wanted, &error),
            }
        }
        Wrote::Failed
    }

    fn failed(&self, wanted: &StatusOf, error: &kube::Error) -> Wrote {
        // The first of many with the same cause, and then some.
        if self.tally.errors.fetch_add(1, Ordering::Relaxed).is_multiple_of(32) {
            let StatusOf { kind, name, .. } = wanted;
            let namespace = wanted.namespace.as_deref().unwrap_or_default();
            let why = said(error);
            tracing::warn!("the status of {kind} {namespace}/{name} can't be written: {why}");
        }
        Wrote::Failed
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
        let wait = self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

fn id(wanted: &StatusOf) -> (Kind, Key) {
    (wanted.kind, (wanted.namespace.clone().unwrap_or_default(), wanted.name.clone()))
}

fn lock(written: &Mutex<Written>) -> MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
}

fn known(object: DynamicObject) -> Existing {
    Existing { version: Version::of(&object.metadata), status: object.data.get("status").cloned() }
}

/// A merge patch (RFC 7386) that makes the status what it should be, if the object is still the one
/// that was looked at. Fields that are not to be there any more are said to be null.
fn patch(existing: &Existing, mut status: Value) -> Patch<Value> {
    if let (Some(Value::Object(before)), Value::Object(after)) = (&existing.status, &mut status) {
        for field in before.keys() {
            after.entry(field.as_str()).or_insert(Value::Null);
        }
    }
    let metadata = json!({ "resourceVersion": existing.version.resource });
    Patch::Merge(json!({ "metadata": metadata, "status": status }))
}

/// As conditions have it: RFC 3339, in whole seconds.
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

    /// Takes a token, and says for how long to wait for it.
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
