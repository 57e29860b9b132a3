//! Leases: which replica writes statuses, and what each replica has applied.
//!
//! The two uses share one small loop of Ringway's own. Every replica renews a Lease of its own with
//! annotations about what the replica serves, and all replicas follow one more Lease that names the
//! leader. Crates for leader election know only the second use, and ask the API server for facts
//! that the watch has already.
//!
//! Only the local clock decides whether a Lease has run out. The time runs from when this replica
//! saw the latest renewal, never from the time in the Lease, which is another machine's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::gateway::follow::causes::Causes;
use crate::gateway::follow::tasks::keep;
use crate::gateway::follow::watch::WATCH_SECONDS;
use crate::gateway::translate::outline::Outline;

const CONTROLLER: &str = "ringway.dev/controller";
const APPLIED: &str = "ringway.dev/applied";
const VERSION: &str = "ringway.dev/version";
const FAILED: &str = "ringway.dev/failed";
const ADDRESSES: &str = "ringway.dev/addresses";

/// The most bytes of names and reasons of listeners that failed. All annotations of an object
/// together may have 256 KiB.
const MOST_FAILED: usize = 64 << 10;

#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the Leases.
    pub namespace: String,
    /// The controller's name. Replicas with one controller name belong together.
    pub controller: String,
    /// The name of this replica among the replicas.
    pub identity: String,
    /// How long a Lease holds after its latest renewal. Renewals are three times as frequent.
    pub lasts: Duration,
    /// How long the Lease of a replica that is gone is kept for people to look at.
    pub kept: Duration,
}

/// The configuration that a replica serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Replicas that serve equal configurations have equal outlines.
    pub outline: Outline,
    /// Listeners that this replica could not open, with the reasons.
    pub failed: BTreeMap<String, String>,
}

/// How far the replicas are with a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Live replicas that have applied another configuration, or none yet.
    pub behind: Vec<String>,
    /// Parts of the outline that some of these replicas have not applied.
    pub lags: BTreeSet<usize>,
    /// Listeners that some live replica could not open. The empty name says that a replica has more
    /// such listeners than the replica can name.
    pub failed: BTreeMap<String, String>,
}

/// Takes part in the Leases until this value is dropped.
pub struct Leases {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

struct Shared {
    client: Client,
    causes: Arc<Causes>,
    options: Options,
    state: Mutex<State>,
    /// This replica has applied a new configuration, or a Lease has changed.
    news: Notify,
    /// Wakes tasks that wait for replicas or for the lead.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Leases of this controller, by name, and when this replica last saw each change.
    seen: BTreeMap<String, (Lease, Instant)>,
    listed: bool,
    /// The addresses of this node.
    addresses: Vec<IpAddr>,
    applied: Option<Applied>,
    /// The values that were last written, and when.
    written: Option<(Applied, Vec<IpAddr>, Instant)>,
    /// Until when this replica leads. `None`: it does not lead.
    leads_until: Option<Instant>,
    errors: u64,
    /// When the API server last sent anything.
    heard: Option<Instant>,
    /// When the last silence began, and until when other replicas may still renew after it.
    silence: Option<(Instant, Instant)>,
}

impl Leases {
    /// Starts to take part, on a tokio runtime.
    pub fn start(client: Client, options: Options, causes: Arc<Causes>) -> Self {
        let shared = Arc::new(Shared {
            client,
            causes,
            options,
            state: Mutex::default(),
            news: Notify::new(),
            changed: Notify::new(),
        });
        let (follows, renews) = (Arc::clone(&shared), Arc::clone(&shared));
        let follow = keep("following Leases", move || Arc::clone(&follows).follow());
        let renew = keep("renewing the Lease", move || Arc::clone(&renews).renew());
        Self { shared, tasks: [follow, renew] }
    }

    /// Whether this replica writes statuses.
    pub fn leads(&self) -> bool {
        self.shared.leads(&self.shared.state.lock())
    }

    /// Tells the other replicas what this replica serves from now on.
    pub fn applied(&self, applied: Applied) {
        self.shared.state.lock().applied = Some(applied);
        self.shared.news.notify_one();
    }

    /// Tells the other replicas which addresses this replica's node has.
    pub fn has(&self, addresses: Vec<IpAddr>) {
        self.shared.state.lock().addresses = addresses;
        self.shared.news.notify_one();
    }

    /// How far the live replicas are with this outline.
    pub fn level(&self, outline: &Outline) -> Level {
        let state = self.shared.state.lock();
        let mut level = Level::default();
        // Before the other replicas are known, they may be behind.
        let own = state.applied.as_ref().filter(|_| state.listed);
        let lags = outline.differs(own.map(|own| &own.outline));
        level.add(&self.shared.options.identity, lags);
        level.failed = own.map(|own| own.failed.clone()).unwrap_or_default();
        let others = self.shared.live(&state).filter(|lease| !self.shared.is_own(lease));
        others.for_each(|lease| level.other(outline, lease));
        level
    }

    /// The addresses of the nodes of all live replicas, including this one.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let state = self.shared.state.lock();
        let of = |lease: &Lease| -> Vec<IpAddr> {
            let list = annotation(lease, ADDRESSES).unwrap_or_default();
            list.split(',').filter_map(|address| address.parse().ok()).collect()
        };
        let others = self.shared.live(&state).flat_map(of);
        state.addresses.iter().copied().chain(others).collect()
    }

    /// The number of live replicas, including this one.
    pub fn replicas(&self) -> usize {
        let state = self.shared.state.lock();
        1 + self.shared.live(&state).filter(|lease| !self.shared.is_own(lease)).count()
    }

    /// The number of requests for Leases that have failed.
    pub fn errors(&self) -> u64 {
        self.shared.state.lock().errors
    }

    /// When the API server last sent anything. Ringway asks the API server every few seconds.
    pub fn heard(&self) -> Option<Instant> {
        self.shared.state.lock().heard
    }

    /// Waits until a replica or the leader may have changed.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Gives up the lead and this replica's Lease, so that nobody waits for this replica.
    pub async fn leave(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        let shared = &self.shared;
        let api = shared.api();
        let leads = shared.state.lock().leads_until.take().is_some();
        let leader = shared.state.lock().seen.get(&shared.leader_name()).cloned();
        if let Some((mut lease, _)) = leader.filter(|_| leads) {
            // As with client-go, a Lease of one second without a holder is free at once.
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
    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    fn leader_name(&self) -> String {
        self.options.controller.replace('/', ".")
    }

    fn own_name(&self) -> String {
        format!("{}.{}", self.leader_name(), self.options.identity)
    }

    fn leads(&self, state: &State) -> bool {
        let me = Some(self.options.identity.as_str());
        state.leads_until.is_some_and(|until| Instant::now() < until)
            && state.seen.get(&self.leader_name()).is_some_and(|(lease, _)| holder(lease) == me)
    }

    fn is_own(&self, lease: &Lease) -> bool {
        lease.metadata.name.as_deref() == Some(&self.own_name())
    }

    /// The live Leases of replicas, without the leader's Lease.
    fn live<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Lease> {
        let replica = format!("{}.", self.leader_name());
        let now = state.judges_as_of(Instant::now(), self.options.lasts);
        let live = move |at: &Instant| now.saturating_duration_since(*at) < self.options.lasts;
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
            // `Init` says only that the list is about to be asked for.
            if !matches!(event, Ok(Event::Init) | Err(_)) {
                self.hear();
            }
            match event {
                Ok(Event::Init) => fresh.clear(),
                Ok(Event::InitApply(lease)) => {
                    fresh.insert(name(&lease), lease);
                }
                Ok(Event::InitDone) => {
                    let mut state = self.state.lock();
                    state.listed = true;
                    state.seen.retain(|name, _| fresh.contains_key(name));
                    for (_, lease) in std::mem::take(&mut fresh) {
                        state.see(lease);
                    }
                }
                Ok(Event::Apply(lease)) => self.state.lock().see(lease),
                Ok(Event::Delete(lease)) => {
                    self.state.lock().seen.remove(&name(&lease));
                }
                Err(error) => {
                    self.state.lock().errors += 1;
                    self.causes.say_watch("watching Leases", "Leases can't be followed", &error);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            self.news.notify_one();
            self.changed.notify_one();
        }
    }

    /// Renews this replica's Leases, and takes the lead if nobody has the lead.
    async fn renew(self: Arc<Self>) {
        let every = self.options.lasts / 3;
        loop {
            self.renew_own(every).await;
            self.contend(every).await;
            self.sweep().await;
            // A change is written at once, but at most a few times a second.
            tokio::time::sleep(every.min(Duration::from_millis(200))).await;
            _ = tokio::time::timeout(every / 4, self.news.notified()).await;
        }
    }

    /// Renews this replica's Lease. Before a configuration is applied there is no Lease, so nobody
    /// waits.
    async fn renew_own(&self, every: Duration) {
        let (applied, addresses) = {
            let state = self.state.lock();
            let Some(applied) = state.applied.clone() else { return };
            let is_written = state.written.as_ref().is_some_and(|(before, addresses, at)| {
                (before, addresses) == (&applied, &state.addresses) && at.elapsed() < every
            });
            if is_written {
                return;
            }
            (applied, state.addresses.clone())
        };
        let patch = PatchParams::apply("ringway").force();
        let lease = self.own(&applied, &addresses);
        let result = self.api().patch(&self.own_name(), &patch, &Patch::Apply(lease)).await;
        if result.is_ok() {
            self.hear();
            self.state.lock().written = Some((applied, addresses, Instant::now()));
        }
        self.note("renewing this replica's Lease", result.map(drop));
    }

    async fn contend(&self, every: Duration) {
        let (leader, leads_until) = {
            let state = self.state.lock();
            if !state.listed {
                return;
            }
            (state.seen.get(&self.leader_name()).cloned(), state.leads_until)
        };
        // The lead ends before others may take it, because they wait for `lasts` from the same
        // renewal.
        let renewed_until = Instant::now() + every * 2;
        let me = &self.options.identity;
        let step = match &leader {
            None => Step::Create,
            Some((lease, at)) => {
                // A lead of this replica's earlier process is renewed at once.
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
                self.hear();
                let mut state = self.state.lock();
                state.see(lease);
                state.leads_until = Some(renewed_until);
                drop(state);
                if leads_until.is_none_or(|until| until < Instant::now()) {
                    tracing::info!("this replica ({me}) leads: it writes statuses");
                    self.changed.notify_one();
                }
            }
            // Another replica was first. The watch will tell which.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => self.note("the leader's Lease", Err(error)),
        }
    }

    /// Deletes Leases of replicas that ended silently and have successors with other names.
    async fn sweep(&self) {
        let gone: Vec<_> = {
            let state = self.state.lock();
            let now = state.judges_as_of(Instant::now(), self.options.lasts);
            let is_gone = |at: &Instant| now.saturating_duration_since(*at) > self.options.kept;
            let all = state.seen.values().filter(|_| self.leads(&state));
            let gone = all.filter(|(lease, at)| !self.is_own(lease) && is_gone(at));
            gone.map(|(lease, _)| lease.metadata.clone()).collect()
        };
        for metadata in gone {
            // A Lease that is renewed meanwhile stays.
            let resource_version = metadata.resource_version;
            let preconditions = Some(Preconditions { resource_version, uid: None });
            let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
            let name = metadata.name.unwrap_or_default();
            match self.api().delete(&name, &parameters).await {
                Ok(_) => _ = self.state.lock().seen.remove(&name),
                Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
                Err(error) => return self.note("deleting a Lease of old", Err(error)),
            }
        }
    }

    fn own(&self, applied: &Applied, addresses: &[IpAddr]) -> Lease {
        let addresses = addresses.iter().map(IpAddr::to_string);
        let annotations = [
            (APPLIED, applied.outline.to_string()),
            (VERSION, env!("CARGO_PKG_VERSION").to_owned()),
            (FAILED, serde_json::to_string(&bounded(&applied.failed)).unwrap_or_default()),
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

    /// The controller's name as the value of a label, which has at most 63 bytes.
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

    fn hear(&self) {
        self.state.lock().hear(Instant::now(), self.options.lasts);
    }

    fn note(&self, what: &str, result: kube::Result<()>) {
        let Err(error) = result else { return };
        self.state.lock().errors += 1;
        self.causes.say(what, what, &error);
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

    fn hear(&mut self, now: Instant, lasts: Duration) {
        if let Some(heard) = self.heard.filter(|heard| is_silence(now - *heard, lasts)) {
            self.silence = Some((heard, now + lasts));
        }
        self.heard = Some(now);
    }

    /// The time as of which Leases are judged. During a silence of the API server, no renewals are
    /// seen, which proves nothing. So the age at the beginning of the silence counts, until every
    /// replica has had time to renew after the silence.
    fn judges_as_of(&self, now: Instant, lasts: Duration) -> Instant {
        match (self.heard, self.silence) {
            (_, Some((began, until))) if now < until => began,
            (Some(heard), _) if is_silence(now - heard, lasts) => heard,
            _ => now,
        }
    }
}

/// Renewals are a third of `lasts` and some tenths of a second apart. Other Leases may have run out
/// after twice this time, so a silence must be noticed earlier.
fn is_silence(time: Duration, lasts: Duration) -> bool {
    time > lasts / 2
}

/// As many failed listeners as fit. If there are more, the empty name stands for all others. The
/// statuses then say that too few listeners are served, not too many.
fn bounded(failed: &BTreeMap<String, String>) -> BTreeMap<&str, String> {
    let mut told = BTreeMap::new();
    let mut room = MOST_FAILED;
    for (name, why) in failed {
        // Names and reasons have few escaped characters.
        let Some(left) = room.checked_sub(2 * (name.len() + why.len() + 4)) else {
            let more = failed.len() - told.len();
            told.insert(
                "",
                format!("{more} more listeners could not be opened, such as {name}: {why}"),
            );
            break;
        };
        room = left;
        told.insert(name, why.clone());
    }
    told
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Take,
    Renew,
    Wait,
}

/// The next step for the leader's Lease. `age` is the time since its latest renewal was seen.
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

impl Level {
    fn add(&mut self, who: &str, lags: BTreeSet<usize>) {
        if !lags.is_empty() {
            self.behind.push(who.to_owned());
            self.lags.extend(lags);
        }
    }

    /// Compares another replica's outline. A replica with another version of Ringway may translate
    /// the same objects to another configuration, so nobody waits for such a replica during an
    /// update.
    fn other(&mut self, outline: &Outline, lease: &Lease) {
        if annotation(lease, VERSION) != Some(env!("CARGO_PKG_VERSION")) {
            return;
        }
        let holder = holder(lease).map_or_else(|| name(lease), str::to_owned);
        let applied = annotation(lease, APPLIED).and_then(Outline::read);
        self.add(&holder, outline.differs(applied.as_ref()));
        let theirs = annotation(lease, FAILED).unwrap_or_default();
        let theirs: BTreeMap<String, String> = serde_json::from_str(theirs).unwrap_or_default();
        for (listener, why) in theirs {
            self.failed.entry(listener).or_insert_with(|| format!("on {holder}: {why}"));
        }
    }
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
mod tests;
