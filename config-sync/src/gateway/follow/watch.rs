//! Follows a cluster's objects. There is one watcher for each kind that the cluster serves (and for
//! each namespace, if not all are followed). All watchers write into one [`Store`].
//!
//! Known objects stay known. While the API server can't be reached, or a watcher reads its kind
//! again, the store keeps its objects, and changes in one step when the list is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::backoff::Pauses;
use crate::gateway::follow::causes::Causes;
use crate::gateway::follow::discovery::{self, KINDS, Kind, Served};
use crate::gateway::follow::object::{key, read};
use crate::gateway::follow::store::{Store, Table, Tables, Version};
use crate::gateway::follow::tasks::keep;
use crate::gateway::objects::ObjectName;

/// How often the cluster is asked for its kinds: while kinds are missing, and otherwise.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const LOOK_SELDOM: Duration = Duration::from_secs(30);

/// A kind that is not served counts as gone after this time. While a CRD is replaced, or an API
/// server starts, a kind may be missing for a moment, which must not stop running traffic.
const GONE: Duration = Duration::from_secs(4);

/// The pauses between attempts to watch.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
const PAUSES: Pauses = Pauses::new(LEAST_PAUSE, Duration::from_secs(5));

/// How long the first table waits for a kind that Ringway may not read.
const REFUSED: Duration = Duration::from_secs(20);

/// `CONNECT` is the time to reach the API server. A watch counts as following after `SETTLED`.
pub const CONNECT: Duration = Duration::from_secs(10);
const SETTLED: Duration = Duration::from_secs(12);

/// Seconds for which one watch runs. The client's read timeout is longer, and ends a connection
/// that has died silently.
pub const WATCH_SECONDS: u32 = 50;

/// Objects of a list that are read at once. A ConfigMap has up to a MiB, and little of it is kept.
const PAGE: u32 = 100;

/// Follows objects until this value is dropped.
pub struct Watch {
    follower: Follower,
    discovery: AbortHandle,
}

/// The state of following one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Each list of the kind has been read at least once.
    pub listed: bool,
    /// All lists are up to date, or were when the API server last sent anything.
    pub following: bool,
    pub objects: usize,
    /// The version in which the cluster serves the kind.
    pub version: Option<String>,
}

#[derive(Clone)]
struct Follower {
    client: Client,
    /// Empty: all namespaces.
    namespaces: Arc<[String]>,
    store: Arc<Store>,
    causes: Arc<Causes>,
    state: Arc<Mutex<State>>,
    /// A watcher has found its kind gone, so the kinds are to be asked for.
    look: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// The cluster has said which kinds it serves.
    discovered: bool,
    /// The key is the kind's name.
    kinds: BTreeMap<&'static str, Following>,
    errors: u64,
    /// When the API server last sent anything.
    heard: Option<Instant>,
}

#[derive(Default)]
struct Following {
    resource: Option<ApiResource>,
    /// Lists by namespace. The empty name is for all namespaces, or for a kind without namespaces.
    lists: BTreeMap<String, List>,
    tasks: Vec<AbortHandle>,
    /// Since when the kind is not served any more.
    missed: Option<Instant>,
}

#[derive(Clone, Copy, Default)]
struct List {
    listed: bool,
    following: bool,
    /// Since when the API server has refused the list, if the list was never read.
    refused: Option<Instant>,
}

impl Following {
    fn is_settled(&self) -> bool {
        self.lists.values().all(List::is_settled)
    }
}

impl List {
    fn goes_well(&mut self) {
        self.following = self.listed;
    }

    /// Whether the first table need not wait for this list. A missing right may come late, because
    /// a new API server learns rights slowly. A right that does not come must not hold up all other
    /// kinds.
    fn is_settled(&self) -> bool {
        self.listed || self.refused.is_some_and(|since| since.elapsed() > REFUSED)
    }
}

impl Watch {
    /// Starts to follow these namespaces, or all of them, on a tokio runtime.
    pub fn start(
        client: Client,
        namespaces: &[String],
        store: Arc<Store>,
        causes: Arc<Causes>,
    ) -> Self {
        let follower = Follower {
            client,
            namespaces: namespaces.into(),
            store,
            causes,
            state: Arc::default(),
            look: Arc::default(),
        };
        let discoverer = follower.clone();
        let discovery = keep("discovery", move || discoverer.clone().discover());
        Self { follower, discovery }
    }

    /// Whether every kind that is served has been read, so that the store is whole.
    pub fn is_whole(&self) -> bool {
        let state = self.follower.state.lock();
        state.discovered && state.kinds.values().all(Following::is_settled)
    }

    /// What the store still lacks, for the log.
    pub fn missing(&self) -> Vec<String> {
        let state = self.follower.state.lock();
        if !state.discovered {
            return vec!["the list of kinds that the cluster serves".to_owned()];
        }
        let missing = state.kinds.iter().filter(|(_, following)| !following.is_settled());
        missing.map(|(kind, _)| (*kind).to_owned()).collect()
    }

    /// Whether the store is whole, and every watcher is up to date as far as the watcher knows.
    pub fn is_following(&self) -> bool {
        let state = self.follower.state.lock();
        let lists = |following: &Following| following.lists.values().all(|list| list.following);
        state.discovered && state.kinds.values().all(lists)
    }

    /// Progress by the kind's name.
    pub fn progress(&self) -> BTreeMap<&'static str, Progress> {
        let counts = counts(&self.follower.store.tables());
        let state = self.follower.state.lock();
        let progress = |kind: &Kind| {
            let Some(following) = state.kinds.get(kind.name) else { return Progress::default() };
            let lists = || following.lists.values();
            Progress {
                listed: !following.lists.is_empty() && lists().all(|list| list.listed),
                following: !following.lists.is_empty() && lists().all(|list| list.following),
                objects: counts.get(kind.name).copied().unwrap_or(0),
                version: following.resource.as_ref().map(|resource| resource.version.clone()),
            }
        };
        KINDS.iter().map(|kind| (kind.name, progress(kind))).collect()
    }

    /// How often a list or watch has failed.
    pub fn errors(&self) -> u64 {
        self.follower.state.lock().errors
    }

    /// When the API server last sent anything.
    pub fn heard(&self) -> Option<Instant> {
        self.follower.state.lock().heard
    }

    /// The resource of a kind in the version that is served.
    pub fn resource(&self, kind: &str) -> Option<ApiResource> {
        self.follower.state.lock().kinds.get(kind)?.resource.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.discovery.abort();
        for following in self.follower.state.lock().kinds.values() {
            following.tasks.iter().for_each(AbortHandle::abort);
        }
    }
}

impl Follower {
    /// Starts, restarts and ends watchers as kinds come and go.
    async fn discover(self) {
        let mut missing = BTreeSet::new();
        let mut pauses = PAUSES;
        loop {
            let pause = match discovery::served(&self.client).await {
                Ok(served) => {
                    missing = self.take(&served, &missing);
                    self.bundle().await;
                    pauses.restart();
                    if missing.is_empty() { LOOK_SELDOM } else { LOOK_AGAIN }
                }
                Err(error) => {
                    self.failed();
                    self.causes.say("kinds", "the kinds that the cluster serves", &error);
                    pauses.take()
                }
            };
            // A watcher that finds its kind gone may report that at once, and again and again.
            let early = async {
                self.look.notified().await;
                tokio::time::sleep(LEAST_PAUSE).await;
            };
            _ = tokio::time::timeout(pause, early).await;
        }
    }

    /// Returns the kinds that are not served. Logs the kinds that are not in `said`.
    fn take(&self, served: &Served, said: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
        let mut missing = BTreeSet::new();
        for kind in KINDS {
            let resource = served.get(kind.name);
            if resource.is_none() {
                missing.insert(kind.name);
                if !said.contains(kind.name) {
                    let (name, group) = (kind.name, kind.group);
                    tracing::warn!(
                        "the cluster serves no version of {name} of {group} that Ringway knows: \
                         such objects are not served until the CRD is installed"
                    );
                }
            }
            self.serve(kind, resource);
        }
        let mut state = self.state.lock();
        if !state.discovered {
            state.discovered = true;
            drop(state);
            self.store.touch();
        }
        missing
    }

    fn serve(&self, kind: &'static Kind, resource: Option<&ApiResource>) {
        let mut state = self.state.lock();
        let following = state.kinds.entry(kind.name).or_default();
        if following.resource.as_ref() == resource {
            following.missed = None;
            return;
        }
        if resource.is_none() && following.missed.get_or_insert_with(Instant::now).elapsed() < GONE
        {
            return;
        }
        following.missed = None;
        following.tasks.drain(..).for_each(|task| task.abort());
        following.resource = resource.cloned();
        let Some(resource) = resource else {
            following.lists.clear();
            drop(state);
            self.forget(kind);
            return;
        };
        tracing::info!("following {} of {}", kind.name, resource.api_version);
        // A list that is started again still counts as read, because the store still has its
        // objects.
        for namespace in self.scopes(kind) {
            following.lists.entry(namespace.clone()).or_default().following = false;
            following.tasks.push(self.start(kind, resource.clone(), namespace));
        }
    }

    /// The lists of a kind: one of all objects, or one for each namespace.
    fn scopes(&self, kind: &Kind) -> Vec<String> {
        let by_namespace = kind.namespaced || kind == &discovery::NAMESPACE;
        if self.namespaces.is_empty() || !by_namespace {
            return vec![String::new()];
        }
        self.namespaces.to_vec()
    }

    async fn bundle(&self) {
        match discovery::bundle(&self.client).await {
            Ok(bundle) => {
                let mut tables = self.store.tables();
                if tables.bundle != bundle {
                    tables.bundle = bundle;
                    drop(tables);
                    self.store.touch();
                }
            }
            Err(error) => {
                self.causes.say("bundle", "the version of the Gateway API's CRDs", &error);
            }
        }
    }

    fn failed(&self) {
        self.state.lock().errors += 1;
    }

    fn list(&self, kind: &Kind, namespace: &str, change: impl FnOnce(&mut List)) {
        let mut state = self.state.lock();
        let lists = state.kinds.get_mut(kind.name).map(|following| &mut following.lists);
        if let Some(list) = lists.and_then(|lists| lists.get_mut(namespace)) {
            change(list);
        }
    }
}

impl Follower {
    /// Keeps one list up to date, without end.
    async fn follow<T: DeserializeOwned>(
        self,
        kind: &'static Kind,
        resource: ApiResource,
        scope: String,
        table: fn(&mut Tables) -> &mut Table<T>,
    ) {
        let mut events = pin!(self.events(kind, &resource, &scope));
        // A list that is being read again. Until the list is whole, the earlier list stands.
        let mut fresh = Table::new();
        let mut pauses = PAUSES;
        loop {
            // A watch that works again is silent until an object changes. A watch that fails is
            // refused, or times out, within `SETTLED`.
            let event = match tokio::time::timeout(SETTLED, events.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(_) => {
                    self.list(kind, &scope, List::goes_well);
                    continue;
                }
            };
            match event {
                // The list is about to be asked for, which may fail again.
                Ok(Event::Init) => fresh.clear(),
                Ok(event) => {
                    pauses.restart();
                    self.state.lock().heard = Some(Instant::now());
                    self.take_event(kind, &scope, event, &mut fresh, table);
                }
                Err(error) => {
                    self.lost(kind, &scope, &error);
                    tokio::time::sleep(pauses.take()).await;
                }
            }
        }
    }

    fn events(
        &self,
        kind: &Kind,
        resource: &ApiResource,
        scope: &str,
    ) -> impl futures::Stream<Item = watcher::Result<Event<DynamicObject>>> + use<> {
        let client = self.client.clone();
        let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        if let Some(fields) = kind.fields {
            config = config.fields(fields);
        }
        let api = match scope {
            "" => Api::all_with(client, resource),
            namespace if kind.namespaced => Api::namespaced_with(client, namespace, resource),
            name => {
                config = config.fields(&format!("metadata.name={name}"));
                Api::all_with(client, resource)
            }
        };
        watcher(api, config)
    }

    fn take_event<T: DeserializeOwned>(
        &self,
        kind: &'static Kind,
        scope: &str,
        event: Event<DynamicObject>,
        fresh: &mut Table<T>,
        table: fn(&mut Tables) -> &mut Table<T>,
    ) {
        let mut tables = self.store.tables();
        let current = table(&mut tables);
        let changed = match event {
            Event::Init => false,
            Event::InitApply(object) => {
                read(kind, object, current).map(|(key, object)| fresh.insert(key, object));
                false
            }
            Event::InitDone => {
                let replaced = replace(kind, scope, current, std::mem::take(fresh));
                drop(tables);
                let new = !self.listed(kind, scope);
                if replaced || new {
                    self.store.touch();
                }
                return;
            }
            Event::Apply(object) => {
                let key = key(&object);
                match read(kind, object, current) {
                    Some((key, object)) => {
                        let before = current.insert(key, object.clone());
                        before.is_none_or(|before| before.0 != object.0)
                    }
                    // An object that can't be read is removed, because its earlier state no longer
                    // holds.
                    None => current.remove(&key).is_some(),
                }
            }
            Event::Delete(object) => current.remove(&key(&object)).is_some(),
        };
        drop(tables);
        if changed {
            self.store.touch();
        }
        self.list(kind, scope, List::goes_well);
    }

    /// Notes that the list is whole and up to date. Returns whether the list was so before.
    fn listed(&self, kind: &Kind, scope: &str) -> bool {
        let mut before = false;
        self.list(kind, scope, |list| {
            before = list.listed;
            *list = List { listed: true, following: true, refused: None };
        });
        before
    }

    fn lost(&self, kind: &Kind, scope: &str, error: &watcher::Error) {
        // The server ends a watch with a list that is too old (410). The list is then read again.
        let expired = matches!(error, watcher::Error::WatchError(status) if status.code == 410);
        if expired {
            tracing::debug!("{} is read anew: {error}", kind.name);
            return;
        }
        self.failed();
        let refused = is(error, 403);
        self.list(kind, scope, |list| {
            list.following = false;
            list.refused =
                if refused { list.refused.or_else(|| Some(Instant::now())) } else { None };
        });
        if refused {
            self.store.touch();
        }
        let name = kind.name;
        let line = format!("{name} can't be followed; what is known stays in force");
        self.causes.say_watch(&format!("watching {name} {scope}"), &line, error);
        // The kind is not served any more in the version that is followed.
        if is(error, 404) {
            self.look.notify_one();
        }
    }
}

/// Replaces the old list by a new one. False if the lists are equal.
fn replace<T>(kind: &Kind, scope: &str, current: &mut Table<T>, fresh: Table<T>) -> bool {
    let in_scope = |(namespace, name): &ObjectName| {
        scope.is_empty() || scope == if kind.namespaced { namespace } else { name }
    };
    let old = current.iter().filter(|(key, _)| in_scope(key));
    let versions =
        |(key, (version, _)): (&ObjectName, &(Version, Arc<T>))| (key.clone(), version.clone());
    if old.map(versions).eq(fresh.iter().map(versions)) {
        return false;
    }
    current.retain(|key, _| !in_scope(key));
    current.extend(fresh);
    true
}

/// Whether the API server has answered with this status.
fn is(error: &watcher::Error, code: u16) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == code,
        _ => false,
    }
}

/// Calls a function with the table of each kind.
macro_rules! tables {
    ($( $kind:ident => $table:ident ),* $(,)?) => {
        impl Follower {
            fn start(
                &self,
                kind: &'static Kind,
                resource: ApiResource,
                namespace: String,
            ) -> AbortHandle {
                let own = self.clone();
                $( if kind == &discovery::$kind {
                    return keep("following a kind", move || {
                        let (own, resource) = (own.clone(), resource.clone());
                        own.follow(kind, resource, namespace.clone(), |tables| &mut tables.$table)
                    });
                } )*
                unreachable!("every kind has a table")
            }

            /// Removes all objects of a kind that is gone.
            fn forget(&self, kind: &Kind) {
                let mut tables = self.store.tables();
                $( if kind == &discovery::$kind {
                    tables.$table.clear();
                } )*
                drop(tables);
                self.store.touch();
            }
        }

        fn counts(tables: &Tables) -> BTreeMap<&'static str, usize> {
            [$( (discovery::$kind.name, tables.$table.len()) ),*].into()
        }
    };
}

tables! {
    GATEWAY_CLASS => gateway_classes,
    GATEWAY => gateways,
    LISTENER_SET => listener_sets,
    TCP_ROUTE => tcp_routes,
    UDP_ROUTE => udp_routes,
    TLS_ROUTE => tls_routes,
    HTTP_ROUTE => http_routes,
    REFERENCE_GRANT => reference_grants,
    BACKEND_TLS_POLICY => backend_tls_policies,
    L4_POLICY => policies,
    X_BACKEND => x_backends,
    SERVICE => services,
    ENDPOINT_SLICE => endpoint_slices,
    SECRET => secrets,
    CONFIG_MAP => config_maps,
    NAMESPACE => namespaces,
}
