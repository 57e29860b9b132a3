//! A cluster as the source of the configuration: gives the configuration to run, and learns what
//! became of the configuration.
//!
//! The way of a change: [`Watch`] puts the change into the [`Store`]. When a burst of changes is
//! over, [`Cluster::translated`] makes the whole configuration again. The caller calls
//! [`Cluster::applied`] once every worker has the configuration. The reporter writes statuses when
//! all replicas have the configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tower::timeout::TimeoutLayer;

use crate::backoff::Pauses;
use crate::gateway::follow::causes::Causes;
use crate::gateway::follow::lease::{self, Applied, Leases};
use crate::gateway::follow::report::{Report, Reporter, Tally};
use crate::gateway::follow::store::Store;
use crate::gateway::follow::tasks::keep;
use crate::gateway::follow::watch::{CONNECT, Progress, WATCH_SECONDS, Watch};
use crate::gateway::objects::Objects;
use crate::gateway::translate::found::LastGood;
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::unfit::{Unfit, translate_what_fits};
use crate::gateway::translate::{Translation, translate};
use crate::machine::{self, Machine};
use crate::model::config::Config;

/// A burst is over when nothing has changed for `QUIET`, or at the latest after `BURST`.
const QUIET: Duration = Duration::from_millis(30);
const BURST: Duration = Duration::from_millis(200);

/// The next table waits for this many times as long as the last one took. This bounds the share of
/// a core that changes of a cluster can take.
const REST: u32 = 4;

/// How long a Lease holds after its latest renewal, and how long the Lease of a replica that is
/// gone is kept.
const LEASE: Duration = Duration::from_secs(15);
const LEASE_KEPT: Duration = Duration::from_secs(3_600);

/// The pauses between attempts to read this node's Node.
const PAUSES: Pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(30));

/// An answer of the API server begins within this time, or the request has failed: one request that
/// is never answered must not hold up all that wait for it. The API server itself ends requests
/// after 60 s. Less than `SETTLED` of the watch, after which a silent watch counts as following.
const ANSWER: Duration = Duration::from_secs(11);

/// If there is no first translation after this time, the log says what it waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the addresses of replicas are compared.
const ADDRESSES: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Options {
    /// `None`: the file that kubectl would find (`KUBECONFIG`, `~/.kube/config`), or the Pod's own
    /// credentials.
    pub kubeconfig: Option<PathBuf>,
    /// Empty: all namespaces.
    pub namespaces: Vec<String>,
    pub controller_name: String,
    pub address_pool: Vec<IpNet>,
    /// Addresses of this node. Empty: the addresses of the Node object.
    pub node_addresses: Vec<IpAddr>,
    pub node_name: Option<String>,
    /// `None`: the zone of the Node object.
    pub zone: Option<String>,
    /// ExternalName Services, EndpointSlices of type FQDN and XBackends lead to their names.
    pub external_names: bool,
    /// The name of this replica among the replicas.
    pub identity: String,
    /// The namespace of the Leases. `None`: the namespace of the credentials.
    pub lease_namespace: Option<String>,
    /// The keys that no object has: workers, admin API, access log, limits, drain.
    pub base: Config,
}

/// The cluster can't be reached. The text is for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ClusterError(String);

/// The result of translating the objects.
struct Translated {
    translation: Option<Translation>,
    unfit: Vec<Unfit>,
    took: Duration,
}

pub struct Cluster {
    store: Arc<Store>,
    watch: Arc<Watch>,
    leases: Arc<Leases>,
    tally: Arc<Tally>,
    reports: watch::Sender<Option<Report>>,
    reporter: AbortHandle,
    /// This node's addresses and zone. `None`: the Node has not been asked yet.
    node: watch::Receiver<Option<Own>>,
    /// The addresses and zone that are in use.
    own: Option<Own>,
    asking: AbortHandle,
    settings: Settings,
    /// When the next certificate expires.
    next_end: Option<i64>,
    /// The translation that is under way.
    translating: Option<oneshot::Receiver<Translated>>,
    /// The objects that the latest translation left out.
    unfit: Vec<Unfit>,
    /// The time that the latest translation took.
    translating_took: Duration,
    /// No translation begins before this time.
    rest: Instant,
    addresses_seen: Instant,
    following: bool,
    /// When the log is to say what the first translation waits for. `None`: it has been made, or
    /// the log has said so.
    patience: Option<Instant>,
}

/// The known facts of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Own {
    addresses: Vec<IpAddr>,
    zone: Option<String>,
}

/// Figures for the metrics page.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Progress by kind.
    pub kinds: BTreeMap<&'static str, Progress>,
    pub watch_errors: u64,
    pub status_writes: u64,
    pub status_conflicts: u64,
    pub errors: u64,
    pub leads: bool,
    pub replicas: usize,
    /// This replica leads, and another replica has not applied this replica's configuration.
    pub behind: bool,
    /// Every kind that is served is being followed.
    pub connected: bool,
    /// Milliseconds since the API server last sent anything. `None`: never.
    pub heard_millis: Option<u64>,
    /// The time that the latest translation took.
    pub translate_micros: u64,
}

impl Cluster {
    /// Begins to follow the cluster, on a tokio runtime.
    ///
    /// # Errors
    /// There are no credentials, or they can't be used. An API server that does not answer is no
    /// error: Ringway waits for the API server.
    pub async fn start(options: Options) -> Result<Self, ClusterError> {
        let client = client(options.kubeconfig.as_ref()).await?;
        Ok(Self::with_client(client, options))
    }

    /// Begins to follow the cluster with an existing client.
    pub fn with_client(client: Client, options: Options) -> Self {
        let (told, node) = watch::channel(None);
        let causes = Arc::new(Causes::default());
        let (asker, asked, told_to) = (client.clone(), options.clone(), Arc::clone(&causes));
        let asking = keep("reading the own Node", move || {
            ask(asker.clone(), asked.clone(), told.clone(), Arc::clone(&told_to))
        });
        let own_namespace = || client.default_namespace().to_owned();
        let lease = lease::Options {
            namespace: options.lease_namespace.unwrap_or_else(own_namespace),
            controller: options.controller_name.clone(),
            identity: options.identity.clone(),
            lasts: LEASE,
            kept: LEASE_KEPT,
        };
        // Two installations are different if their Leases are in different namespaces.
        let manager = format!("ringway@{}", lease.namespace);
        let followed = options.namespaces.clone();
        let store = Arc::new(Store::default());
        let (stored, said) = (Arc::clone(&store), Arc::clone(&causes));
        let follow = Arc::new(Watch::start(client.clone(), &options.namespaces, stored, said));
        let leases = Arc::new(Leases::start(client.clone(), lease, Arc::clone(&causes)));
        let (reports, latest) = watch::channel(None);
        let reporter = Arc::new(Reporter::new(
            client,
            options.controller_name.clone(),
            options.identity,
            options.namespaces,
            Arc::clone(&store),
            Arc::clone(&follow),
            Arc::clone(&leases),
            causes,
            manager,
            latest,
        ));
        let tally = Arc::clone(&reporter.tally);
        let now = Instant::now();
        Self {
            store,
            watch: follow,
            leases,
            tally,
            reports,
            reporter: keep("the reporter", move || Arc::clone(&reporter).run()),
            node,
            own: None,
            asking,
            settings: Settings {
                controller_name: options.controller_name,
                address_pool: options.address_pool,
                given: BTreeMap::new(),
                last_good: LastGood::default(),
                namespaces: followed.into(),
                now: None,
                node_addresses: Vec::new(),
                zone: None,
                external_names: options.external_names,
                base: options.base,
                machine: Machine::this(),
            },
            next_end: None,
            translating: None,
            unfit: Vec::new(),
            translating_took: Duration::ZERO,
            rest: now,
            addresses_seen: now,
            following: false,
            patience: Some(now + PATIENCE),
        }
    }

    /// A new translation of all known objects, if one was due and is done. The caller calls this
    /// repeatedly. A translation of thousands of objects takes longer than a probe of this process
    /// should wait, so each translation has a thread of its own.
    pub fn translated(&mut self) -> Option<Arc<Translation>> {
        if self.translating.is_none() && self.is_due() {
            self.settings.now = Some(Timestamp::now().as_second());
            self.patience = None;
            let (objects, settings) = (self.store.take(), self.settings.clone());
            let known = self.unfit.clone();
            let (done, translating) = oneshot::channel();
            tokio::task::spawn_blocking(move || {
                let began = Instant::now();
                let translate = |objects: &Objects| translate(objects, &settings);
                let (translation, unfit) = translate_what_fits(&objects, known, translate);
                // If the process is ending, nobody takes the result.
                _ = done.send(Translated { translation, unfit, took: began.elapsed() });
            });
            self.translating = Some(translating);
        }
        match self.translating.as_mut()?.try_recv() {
            Ok(Translated { translation, unfit, took }) => {
                self.translating = None;
                self.translating_took = took;
                for object in unfit.iter().filter(|object| !self.unfit.contains(object)) {
                    self.tally.errors.fetch_add(1, Ordering::Relaxed);
                    object.say();
                }
                self.unfit = unfit;
                let Some(mut translation) = translation else {
                    self.took(Duration::ZERO);
                    tracing::error!(
                        "the cluster's objects can't be translated: what is in force stays, until \
                         an object changes"
                    );
                    return None;
                };
                translation.left_out = self.unfit.iter().filter_map(Unfit::notice).collect();
                self.settings.given.clone_from(translation.given());
                self.settings.last_good.clone_from(translation.last_good());
                self.next_end = self.settings.now.and_then(|now| translation.next_end(now));
                let translation = Arc::new(translation);
                // Statuses do not wait for ever until the translation is applied, because a worker
                // may be stuck.
                self.report(Arc::clone(&translation), None);
                Some(translation)
            }
            Err(TryRecvError::Empty) => None,
            // The translation has panicked, which the log has said, or the runtime is ending. A
            // later change of the objects is translated again.
            Err(TryRecvError::Closed) => {
                self.translating = None;
                None
            }
        }
    }

    /// Notes how long the work after the latest translation took.
    pub fn took(&mut self, time: Duration) {
        self.rest = Instant::now() + (self.translating_took + time) * REST;
    }

    /// Notes that every worker has this translation, without the listeners in `failed`.
    pub fn applied(&self, translation: Arc<Translation>, failed: BTreeMap<String, String>) {
        self.leases.applied(Applied { outline: translation.outline.clone(), failed });
        self.report(translation, None);
    }

    /// Notes that no table could be made of a translation. The table in force stays.
    pub fn refused(&self, translation: Arc<Translation>, why: String) {
        self.report(translation, Some(why));
    }

    fn report(&self, translation: Arc<Translation>, refused: Option<String>) {
        self.reports.send_replace(Some(Report { translation, refused }));
    }

    pub fn figures(&self) -> Figures {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let millis = |at: Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        Figures {
            kinds: self.watch.progress(),
            watch_errors: self.watch.errors(),
            status_writes: count(&self.tally.writes),
            status_conflicts: count(&self.tally.conflicts),
            errors: count(&self.tally.errors) + self.leases.errors(),
            leads: self.leases.leads(),
            replicas: self.leases.replicas(),
            behind: self.tally.behind.load(Ordering::Relaxed),
            connected: self.following,
            heard_millis: self.watch.heard().max(self.leases.heard()).map(millis),
            translate_micros: u64::try_from(self.translating_took.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// Tells other replicas not to wait for this replica any more, so that another may lead.
    pub fn leave(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reporter.abort();
        let leases = Arc::clone(&self.leases);
        async move {
            // An API server that does not answer must not hold up the end.
            _ = tokio::time::timeout(Duration::from_secs(2), leases.leave()).await;
        }
    }

    /// Whether everything has been read, something has changed, and the burst is over.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        self.mind(now);
        if !self.knows_node() {
            return false;
        }
        let Some((first, last)) = self.store.changed() else { return false };
        let over = now >= last + QUIET || now >= first + BURST;
        over && now >= self.rest && self.watch.is_whole()
    }

    fn mind(&mut self, now: Instant) {
        if now < self.addresses_seen + ADDRESSES {
            return;
        }
        self.addresses_seen = now;
        if self.patience.take_if(|until| now >= *until).is_some() {
            let mut missing = self.watch.missing();
            if self.own.is_none() {
                missing.push("the own Node".to_owned());
            }
            if !missing.is_empty() {
                tracing::warn!("the first configuration waits for: {}", missing.join(", "));
            }
        }
        self.compare_addresses();
        if self.next_end.take_if(|end| Timestamp::now().as_second() >= *end).is_some() {
            self.store.touch();
        }
        let following = self.watch.is_following();
        if following != std::mem::replace(&mut self.following, following) {
            match following {
                true => tracing::info!("every kind of object in the cluster is followed"),
                false => tracing::warn!("the cluster can't be followed: what is in force stays"),
            }
        }
    }

    /// Whether the Node was asked for its addresses and zone. The first translation waits for the
    /// answer or for the first failure, so that a start takes no addresses out of statuses.
    fn knows_node(&mut self) -> bool {
        let own = self.node.borrow().clone();
        if own != self.own {
            self.own.clone_from(&own);
            let own = own.unwrap_or_default();
            self.leases.has(own.addresses);
            if self.settings.zone != own.zone {
                self.settings.zone = own.zone;
                self.store.touch();
            }
            self.compare_addresses();
        }
        self.own.is_some()
    }

    fn compare_addresses(&mut self) {
        let addresses: Vec<_> = self.leases.addresses().into_iter().collect();
        if addresses != self.settings.node_addresses {
            self.settings.node_addresses = addresses;
            self.store.touch();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.asking.abort();
        self.reporter.abort();
    }
}

async fn client(kubeconfig: Option<&PathBuf>) -> Result<Client, ClusterError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let at = |error: &dyn std::fmt::Display| {
                ClusterError(format!("--kubeconfig {}: {error}", path.display()))
            };
            let file = Kubeconfig::read_from(path).map_err(|error| at(&error))?;
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(file, &options).await;
            config.map_err(|error| at(&error))?
        }
        None => kube::Config::infer().await.map_err(|error| {
            ClusterError(format!("no cluster is configured: {error}; give --kubeconfig FILE"))
        })?,
    };
    config.connect_timeout = Some(CONNECT);
    // Whoever asks tries again, and says that it must: a client that does so in silence would pass
    // an API server that refuses everything for one that has nothing to tell.
    config.default_retry = false;
    // The server ends a quiet watch before this timeout. The timeout ends a dead watch.
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 10));
    let server = config.cluster_url.clone();
    let builder = ClientBuilder::try_from(config);
    let builder = builder.map_err(|error| ClusterError(format!("{server}: {error}")))?;
    Ok(builder.with_layer(&TimeoutLayer::new(ANSWER)).build())
}

/// Sends this node's addresses and zone. Values of the options are sent after the first failure,
/// and the other values when the Node has been read.
async fn ask(
    client: Client,
    options: Options,
    told: watch::Sender<Option<Own>>,
    causes: Arc<Causes>,
) {
    let given = Own { addresses: options.node_addresses, zone: options.zone };
    let missing = given.addresses.is_empty() || given.zone.is_none();
    let Some(name) = options.node_name.filter(|_| missing) else {
        let addresses = Some(given.addresses).filter(|given| !given.is_empty());
        let addresses = addresses.unwrap_or_else(machine::addresses);
        told.send_replace(Some(Own { addresses, zone: given.zone }));
        return;
    };
    let api: Api<Node> = Api::all(client);
    let mut pauses = PAUSES;
    loop {
        let line = format!("the addresses and zone of node {name}, asked for until known");
        let why = match tokio::time::timeout(CONNECT, api.get(&name)).await {
            Ok(Ok(node)) => {
                let own = own(&given, node);
                let is_whole = !own.addresses.is_empty();
                told.send_replace(Some(own));
                if is_whole {
                    return;
                }
                Some("it has none yet")
            }
            Ok(Err(error)) => {
                causes.say("node", &line, &error);
                None
            }
            Err(_) => Some("no answer"),
        };
        if let Some(why) = why.filter(|_| pauses.is_first()) {
            tracing::warn!("{line}: {why}");
        }
        told.send_if_modified(|own| own.is_none() && own.replace(given.clone()).is_none());
        tokio::time::sleep(pauses.take()).await;
    }
}

fn own(given: &Own, node: Node) -> Own {
    let mut own = given.clone();
    if own.addresses.is_empty() {
        own.addresses = addresses_of(&node);
    }
    let labels = node.metadata.labels.unwrap_or_default();
    own.zone = own.zone.or_else(|| labels.get("topology.kubernetes.io/zone").cloned());
    own
}

/// External addresses come first, because clients outside the cluster read a Gateway's status.
fn addresses_of(node: &Node) -> Vec<IpAddr> {
    let list = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let of = |kind: &str| -> Vec<IpAddr> {
        let list = list.clone().filter(|address| address.type_ == kind);
        list.filter_map(|address| address.address.parse().ok()).collect()
    };
    let external = of("ExternalIP");
    if external.is_empty() { of("InternalIP") } else { external }
}
