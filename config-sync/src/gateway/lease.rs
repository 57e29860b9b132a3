//! Leases: which replica writes statuses, and what each replica has applied.
//!
//! An own small loop, because the two uses share it: every replica renews a Lease of its own, whose
//! annotations say what it serves, and all follow one more that names the leader. Crates for leader
//! election know nothing of the first, and ask the API server where the watch has told already.
//!
//! Only the local clock decides whether a Lease has run out: from when its latest renewal was seen
//! here, never from the time that stands in it, which another machine's clock has made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::watch::{WATCH_SECONDS, said};

const CONTROLLER: &str = "ringway.dev/controller";
const APPLIED: &str = "ringway.dev/applied";
const VERSION: &str = "ringway.dev/version";
const FAILED: &str = "ringway.dev/failed";
const ADDRESSES: &str = "ringway.dev/addresses";

/// Listeners that a replica names as failed: an annotation has a limit.
const MOST_FAILED: usize = 50;

#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the Leases.
    pub namespace: String,
    /// The controller's name: replicas with the same are replicas of each other.
    pub controller: String,
    /// What this replica is called among them.
    pub identity: String,
    /// Of this node.
    pub addresses: Vec<IpAddr>,
    /// How long a Lease holds after its latest renewal; it is renewed three times as often.
    pub lasts: Duration,
}

/// What a replica serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Of the configuration's outline: the same on every replica that serves the same.
    pub outline: String,
    /// Listeners that this replica could not open, and why.
    pub failed: BTreeMap<String, String>,
}

/// How far the replicas are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Level {
    /// These live and have applied something else, or nothing yet.
    Behind(Vec<String>),
    /// All that live have applied it, but for these listeners.
    Level { failed: BTreeMap<String, String> },
}

/// Takes part as long as it lives.
pub struct Leases {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

struct Shared {
    client: Client,
    options: Options,
    state: Mutex<State>,
    /// This replica has applied something new, or a Lease has changed.
    news: Notify,
    /// For whoever waits for replicas or for the lead.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Leases of this controller, by name, and when each was last seen to change.
    seen: BTreeMap<String, (Lease, Instant)>,
    listed: bool,
    applied: Option<Applied>,
    /// What was last written of it, and when.
    written: Option<(Applied, Instant)>,
    /// Until when this replica leads, if it does.
    leads_until: Option<Instant>,
    errors: u64,
    /// When the API server last answered or told something.
    heard: Option<Instant>,
}

impl Leases {
    /// Starts to take part. To be called on a tokio runtime.
    pub fn start(client: Client, options: Options) -> Self {
        let shared = Arc::new(Shared {
            client,
            options,
            state: Mutex::default(),
            news: Notify::new(),
            changed: Notify::new(),
        });
        let follow = tokio::spawn(Arc::clone(&shared).follow()).abort_handle();
        let renew = tokio::spawn(Arc::clone(&shared).renew()).abort_handle();
        Self { shared, tasks: [follow, renew] }
    }

    /// Whether this replica writes statuses.
    pub fn leads(&self) -> bool {
        let state = self.shared.state();
        let me = Some(self.shared.options.identity.as_str());
        state.leads_until.is_some_and(|until| Instant::now() < until)
            && state.seen.get(&self.shared.leader_name()).is_some_and(|(l, _)| holder(l) == me)
    }

    /// Says what this replica serves from now on.
    pub fn applied(&self, applied: Applied) {
        self.shared.state().applied = Some(applied);
        self.shared.news.notify_one();
    }

    /// Whether every replica that lives serves this.
    pub fn level(&self, outline: &str) -> Level {
        let state = self.shared.state();
        let own = state.applied.clone().unwrap_or_default();
        if own.outline != outline || !state.listed {
            return Level::Behind(vec![self.shared.options.identity.clone()]);
        }
        let others = self.shared.live(&state).filter(|lease| !self.shared.is_own(lease));
        level(own.failed, outline, others)
    }

    /// Of the nodes of all replicas that live, this one's included.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let state = self.shared.state();
        let of = |lease: &Lease| -> Vec<IpAddr> {
            let list = annotation(lease, ADDRESSES).unwrap_or_default();
            list.split(',').filter_map(|address| address.parse().ok()).collect()
        };
        let others = self.shared.live(&state).flat_map(of);
        self.shared.options.addresses.iter().copied().chain(others).collect()
    }

    /// Replicas that live, this one included.
    pub fn replicas(&self) -> usize {
        let state = self.shared.state();
        1 + self.shared.live(&state).filter(|lease| !self.shared.is_own(lease)).count()
    }

    /// Requests for Leases that have failed.
    pub fn errors(&self) -> u64 {
        self.shared.state().errors
    }

    /// When the API server last answered or told something; it is asked every few seconds.
    pub fn heard(&self) -> Option<Instant> {
        self.shared.state().heard
    }

    /// Comes back when a replica or the leader may have changed.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Gives up the lead and this replica's Lease, so that nobody waits for it.
    pub async fn leave(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        let shared = &self.shared;
        let api = shared.api();
        let leads = shared.state().leads_until.take().is_some();
        let leader = shared.state().seen.get(&shared.leader_name()).cloned();
        if let Some((mut lease, _)) = leader.filter(|_| leads) {
            // As client-go does: a Lease of a second without a holder is free at once.
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            let name = shared.leader_name();
            let result = api.replace(&name, &PostParams::default(), &lease).await;
            shared.note("giving up the lead", result.map(drop));
        }
        let result = api.delete(&shared.own_name(), &DeleteParams::default()).await;
        shared.note("deleting this replica's Lease", result.map(drop));
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    fn leader_name(&self) -> String {
        self.options.controller.replace('/', ".")
    }

    fn own_name(&self) -> String {
        format!("{}.{}", self.leader_name(), self.options.identity)
    }

    fn is_own(&self, lease: &Lease) -> bool {
        lease.metadata.name.as_deref() == Some(&self.own_name())
    }

    /// Of replicas, not the leader's.
    fn live<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Lease> {
        let replica = format!("{}.", self.leader_name());
        let live = |at: &Instant| at.elapsed() < self.options.lasts;
        state
            .seen
            .iter()
            .filter(move |(name, (_, at))| name.starts_with(&replica) && live(at))
            .map(|(_, (lease, _))| lease)
    }

    /// Keeps `seen` up to date.
    async fn follow(self: Arc<Self>) {
        let selector = format!("{CONTROLLER}={}", self.label());
        let config = watcher::Config::default().labels(&selector).timeout(WATCH_SECONDS);
        let mut events = pin!(watcher(self.api(), config));
        let mut fresh = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => fresh.clear(),
                Ok(Event::InitApply(lease)) => {
                    fresh.insert(name(&lease), lease);
                }
                Ok(Event::InitDone) => {
                    let mut state = self.state();
                    state.listed = true;
                    state.seen.retain(|name, _| fresh.contains_key(name));
                    for (_, lease) in std::mem::take(&mut fresh) {
                        state.see(lease);
                    }
                }
                Ok(Event::Apply(lease)) => self.state().see(lease),
                Ok(Event::Delete(lease)) => {
                    self.state().seen.remove(&name(&lease));
                }
                Err(error) => {
                    self.state().errors += 1;
                    tracing::debug!("Leases can't be followed: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            self.news.notify_one();
            self.changed.notify_one();
        }
    }

    /// Renews what is this replica's, takes the lead where nobody has it.
    async fn renew(self: Arc<Self>) {
        let every = self.options.lasts / 3;
        loop {
            self.renew_own(every).await;
            self.contend(every).await;
            // A change is written at once, but no more than a few times a second.
            tokio::time::sleep(every.min(Duration::from_millis(200))).await;
            _ = tokio::time::timeout(every / 4, self.news.notified()).await;
        }
    }

    /// Before anything is applied there is no Lease, and nobody waits for this replica.
    async fn renew_own(&self, every: Duration) {
        let applied = {
            let state = self.state();
            let Some(applied) = state.applied.clone() else { return };
            let written = state.written.as_ref();
            if written.is_some_and(|(same, at)| *same == applied && at.elapsed() < every) {
                return;
            }
            applied
        };
        let patch = PatchParams::apply("ringway").force();
        let lease = self.own(&applied);
        let result = self.api().patch(&self.own_name(), &patch, &Patch::Apply(lease)).await;
        if result.is_ok() {
            let mut state = self.state();
            state.heard = Some(Instant::now());
            state.written = state.heard.map(|at| (applied, at));
        }
        self.note("renewing this replica's Lease", result.map(drop));
    }

    async fn contend(&self, every: Duration) {
        let (leader, leads_until) = {
            let state = self.state();
            if !state.listed {
                return;
            }
            (state.seen.get(&self.leader_name()).cloned(), state.leads_until)
        };
        // The lead ends before others may take it: they wait for `lasts` from the same renewal.
        let renewed_until = Instant::now() + every * 2;
        let me = &self.options.identity;
        let step = match &leader {
            None => Step::Create,
            Some((lease, at)) => {
                // Held by the process before this one, it is renewed at once.
                let every = if leads_until.is_some() { every } else { Duration::ZERO };
                decide(lease.spec.as_ref(), me, at.elapsed(), every)
            }
        };
        let result = match (step, leader) {
            (Step::Create, _) => {
                let lease = self.leader_lease(None);
                self.api().create(&PostParams::default(), &lease).await
            }
            (Step::Take | Step::Renew, Some((lease, _))) => {
                let lease = self.leader_lease(Some(lease));
                self.api().replace(&self.leader_name(), &PostParams::default(), &lease).await
            }
            _ => return,
        };
        match result {
            Ok(lease) => {
                let mut state = self.state();
                state.see(lease);
                state.heard = Some(Instant::now());
                state.leads_until = Some(renewed_until);
                drop(state);
                if leads_until.is_none_or(|until| until < Instant::now()) {
                    tracing::info!("this replica ({me}) leads: it writes statuses");
                    self.changed.notify_one();
                }
            }
            // Another was first: the watch will tell who.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => self.note("the leader's Lease", Err(error)),
        }
    }

    fn own(&self, applied: &Applied) -> Lease {
        let failed: BTreeMap<_, _> = applied.failed.iter().take(MOST_FAILED).collect();
        let addresses = self.options.addresses.iter().map(IpAddr::to_string);
        let annotations = [
            (APPLIED, applied.outline.clone()),
            (VERSION, env!("CARGO_PKG_VERSION").to_owned()),
            (FAILED, serde_json::to_string(&failed).unwrap_or_default()),
            (ADDRESSES, addresses.collect::<Vec<_>>().join(",")),
        ];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value));
        Lease {
            metadata: ObjectMeta {
                annotations: Some(annotations.into()),
                ..self.metadata(self.own_name())
            },
            spec: Some(self.spec(None)),
        }
    }

    fn leader_lease(&self, before: Option<Lease>) -> Lease {
        let spec = before.as_ref().and_then(|lease| lease.spec.clone());
        let mut lease = before
            .unwrap_or_else(|| Lease { metadata: self.metadata(self.leader_name()), spec: None });
        lease.metadata.managed_fields = None;
        lease.spec = Some(self.spec(spec));
        lease
    }

    fn metadata(&self, name: String) -> ObjectMeta {
        let labels = [
            ("app.kubernetes.io/managed-by".to_owned(), "ringway".to_owned()),
            (CONTROLLER.to_owned(), self.label()),
        ];
        ObjectMeta { name: Some(name), labels: Some(labels.into()), ..ObjectMeta::default() }
    }

    /// The controller's name as a label's value, which has at most 63 bytes.
    fn label(&self) -> String {
        let name: String = self.leader_name().chars().take(63).collect();
        name.trim_end_matches(['.', '-', '_']).to_owned()
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let me = &self.options.identity;
        let before = before.unwrap_or_default();
        let mine = before.holder_identity.as_ref() == Some(me);
        let changes = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            acquire_time: if mine { before.acquire_time } else { Some(now.clone()) },
            holder_identity: Some(me.clone()),
            lease_duration_seconds: i32::try_from(self.options.lasts.as_secs().max(1)).ok(),
            lease_transitions: Some(if mine { changes } else { changes.saturating_add(1) }),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    fn note(&self, what: &str, result: kube::Result<()>) {
        let Err(error) = result else { return };
        let mut state = self.state();
        state.errors += 1;
        // Once in a while is enough to be read.
        if state.errors % 16 == 1 {
            drop(state);
            tracing::warn!("{what}: {}", said(&error));
        }
    }
}

impl State {
    fn see(&mut self, lease: Lease) {
        let renewed = |lease: &Lease| lease.spec.as_ref().map(|spec| spec.renew_time.clone());
        let at = match self.seen.get(&name(&lease)) {
            Some((before, at)) if renewed(before) == renewed(&lease) => *at,
            _ => Instant::now(),
        };
        self.seen.insert(name(&lease), (lease, at));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Take,
    Renew,
    Wait,
}

/// What to do about the leader's Lease, whose latest renewal was seen so long ago.
fn decide(spec: Option<&LeaseSpec>, me: &str, age: Duration, every: Duration) -> Step {
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    let lasts = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    let lasts = Duration::from_secs(u64::try_from(lasts).unwrap_or(0));
    match holder {
        "" => Step::Take,
        holder if holder == me && age < every => Step::Wait,
        holder if holder == me => Step::Renew,
        _ if age > lasts => Step::Take,
        _ => Step::Wait,
    }
}

/// What replicas that live say of `outline`. One of another version of Ringway may translate the
/// same objects to something else: during an update it is not waited for.
fn level<'a>(
    mut failed: BTreeMap<String, String>,
    outline: &str,
    others: impl Iterator<Item = &'a Lease>,
) -> Level {
    let mut behind = Vec::new();
    for lease in others.filter(|l| annotation(l, VERSION) == Some(env!("CARGO_PKG_VERSION"))) {
        let holder = holder(lease).map_or_else(|| name(lease), str::to_owned);
        if annotation(lease, APPLIED) != Some(outline) {
            behind.push(holder);
            continue;
        }
        let theirs = annotation(lease, FAILED).unwrap_or_default();
        let theirs: BTreeMap<String, String> = serde_json::from_str(theirs).unwrap_or_default();
        for (listener, why) in theirs {
            failed.entry(listener).or_insert_with(|| format!("on {holder}: {why}"));
        }
    }
    if behind.is_empty() { Level::Level { failed } } else { Level::Behind(behind) }
}

fn annotation<'a>(lease: &'a Lease, key: &str) -> Option<&'a str> {
    lease.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

fn name(lease: &Lease) -> String {
    lease.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(5);

    fn held(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn lead_is_taken_only_where_nobody_has_renewed_it() {
        let step =
            |holder: &str, age| decide(Some(&held(holder)), "a", Duration::from_secs(age), EVERY);
        assert_eq!(step("a", 4), Step::Wait);
        assert_eq!(step("a", 6), Step::Renew);
        assert_eq!(step("b", 14), Step::Wait);
        assert_eq!(step("b", 16), Step::Take);
        assert_eq!(step("", 0), Step::Take, "it was given up");
        assert_eq!(decide(None, "a", Duration::ZERO, EVERY), Step::Take);
    }

    fn replica(name: &str, applied: &str, version: &str, failed: &str) -> Lease {
        let annotations = [(APPLIED, applied), (VERSION, version), (FAILED, failed)];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Lease {
            metadata: ObjectMeta {
                name: Some(name.into()),
                annotations: Some(annotations.into()),
                ..ObjectMeta::default()
            },
            spec: Some(held(name)),
        }
    }

    #[test]
    fn replicas_are_level_when_all_of_this_version_have_applied_the_same() {
        let this = env!("CARGO_PKG_VERSION");
        let (a, b) = (replica("a", "1", this, "{}"), replica("b", "2", this, "{}"));
        let old = replica("old", "0", "0.0.1", "{}");
        let of = |replicas: &[&Lease]| level(BTreeMap::new(), "1", replicas.iter().copied());
        assert_eq!(of(&[&a, &b]), Level::Behind(vec!["b".into()]));
        assert_eq!(of(&[&a, &old]), Level::Level { failed: BTreeMap::new() });
        let c = replica("c", "1", this, r#"{"l": "no"}"#);
        let failed = BTreeMap::from([("l".to_owned(), "on c: no".to_owned())]);
        assert_eq!(of(&[&a, &c]), Level::Level { failed });
    }
}
