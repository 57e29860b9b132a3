//! Translates Kubernetes objects into a configuration and a report for each object. Pure.

mod address;
mod backend_tls;
mod backends;
mod build;
mod certificates;
mod checks;
mod conflicts;
pub(crate) mod doubts;
mod fallback;
pub mod found;
mod index;
mod leads;
mod listeners;
pub mod notice;
pub mod outline;
mod party;
mod places;
mod policy;
mod render;
mod report;
mod routes;
pub mod settings;
mod tables;
pub(super) mod unfit;
mod values;
mod verdict;
mod x_backends;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::gateway::objects::{ObjectName, Objects};
use crate::gateway::status::{Kind, Outcome, StatusOf};
use crate::gateway::translate::backend_tls::BackendTls;
use crate::gateway::translate::build::Build;
use crate::gateway::translate::fallback::Fallbacks;
use crate::gateway::translate::found::LastGood;
use crate::gateway::translate::index::{Index, key};
use crate::gateway::translate::leads::Leads;
use crate::gateway::translate::listeners::Listeners;
use crate::gateway::translate::notice::{Infrastructure, Notice};
use crate::gateway::translate::outline::{Outline, outline};
use crate::gateway::translate::policy::{Policies, Unchecked};
use crate::gateway::translate::report::ObjectReport;
use crate::gateway::translate::settings::Settings;
use crate::model::config::Config;
use crate::table::fnv::Fnv;

/// A configuration, and the reports for the objects.
#[derive(Debug)]
pub struct Translation {
    pub config: Config,
    /// Equal on every replica that translates the objects to this configuration.
    pub outline: Outline,
    reports: Vec<ObjectReport>,
    /// Notices about objects at which translation panicked.
    pub(super) left_out: Vec<Notice>,
    infrastructure: Vec<Infrastructure>,
    given: BTreeMap<(String, String), Vec<IpAddr>>,
    last_good: LastGood,
    /// The listeners of the configuration, by their Gateway or ListenerSet.
    opened_for: BTreeMap<(Kind, ObjectName), BTreeSet<String>>,
}

/// Translates objects. The order of the objects does not matter: with equal settings, equal objects
/// give equal translations.
pub fn translate(objects: &Objects, settings: &Settings) -> Translation {
    let mut index = Index::of(objects);
    index.last_good = settings.last_good.clone();
    index.namespaces = Arc::clone(&settings.namespaces);
    index.now = settings.now;
    index.external_names = settings.external_names;
    index.externals = x_backends::read_all(objects, &index);
    let policies = Policies::of(objects, settings, &index);
    let backend_tls = BackendTls::of_all(objects, &index);
    let mut listeners = Listeners::of(objects, &index, settings);
    let mut routes = routes::routes(objects, &index, &mut listeners, settings);
    let served = routes::choose(&mut routes, &listeners, &policies);
    let mut build = Build {
        settings,
        index: &index,
        policies: &policies,
        backend_tls: &backend_tls,
        listeners: &mut listeners,
        unchecked: Unchecked::default(),
        fallbacks: Fallbacks::new(),
    };
    let config = build.config(&routes, &served);
    let (unchecked, fallbacks) = (build.unchecked, build.fallbacks);
    let infrastructure = infrastructure(&listeners);
    let given = listeners.gates.iter().filter_map(|gate| {
        let (namespace, name) = key(&gate.object.metadata);
        let addresses = gate.addresses.as_ref().ok()?;
        Some(((namespace.to_owned(), name.to_owned()), addresses.shown.clone()))
    });
    let given = given.collect();
    let opened_for = opened_for(&listeners);
    let known = render::Known {
        objects,
        settings,
        index: &index,
        policies: &policies,
        backend_tls: &backend_tls,
        listeners: &listeners,
        routes: &routes,
        unchecked: &unchecked,
        fallbacks: &fallbacks,
        empty: RefCell::default(),
        leads: Leads::of(&routes),
    };
    let outline = outline(&config);
    let last_good = index.good();
    Translation {
        config,
        outline,
        reports: known.reports(),
        left_out: Vec::new(),
        infrastructure,
        given,
        last_good,
        opened_for,
    }
}

impl Translation {
    /// The wanted status of every object of Ringway's, sorted by kind, namespace and name.
    pub fn statuses(&self, outcome: &Outcome) -> Vec<StatusOf> {
        self.reports.iter().map(|report| report.status(outcome)).collect()
    }

    /// Problems that users must act on, in the order of the statuses.
    pub fn notices(&self, outcome: &Outcome) -> Vec<Notice> {
        let notices = self.reports.iter().flat_map(|report| report.notices(outcome));
        notices.chain(self.left_out.iter().cloned()).collect()
    }

    /// The addresses of each Gateway, by namespace and name: [`Settings::given`] of the next
    /// translation.
    pub fn given(&self) -> &BTreeMap<(String, String), Vec<IpAddr>> {
        &self.given
    }

    /// [`Settings::last_good`] of the next translation.
    pub fn last_good(&self) -> &LastGood {
        &self.last_good
    }

    /// The configuration's listeners that the status of a Gateway or ListenerSet is about.
    pub(super) fn opened_for(&self, kind: Kind, key: &ObjectName) -> impl Iterator<Item = &str> {
        let names = self.opened_for.get(&(kind, key.clone()));
        names.into_iter().flatten().map(String::as_str)
    }

    /// When, after `now`, the reports change although no object has changed.
    pub(super) fn next_end(&self, now: i64) -> Option<i64> {
        self.last_good.next_end(now)
    }

    pub fn infrastructure(&self) -> &[Infrastructure] {
        &self.infrastructure
    }
}

fn opened_for(listeners: &Listeners<'_>) -> BTreeMap<(Kind, ObjectName), BTreeSet<String>> {
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for entry in &listeners.entries {
        let (kind, metadata) = match entry.set {
            Some(set) => (Kind::ListenerSet, &listeners.sets[set].object.metadata),
            None => (Kind::Gateway, &listeners.gates[entry.gate].object.metadata),
        };
        let (namespace, name) = key(metadata);
        let owner = (kind, (namespace.to_owned(), name.to_owned()));
        all.entry(owner).or_default().extend(entry.names.iter().cloned());
    }
    all
}

/// A ServiceAccount for each Gateway that wants labels or annotations on its infrastructure.
/// Nothing else is made for a Gateway, so the account carries them.
fn infrastructure(listeners: &Listeners<'_>) -> Vec<Infrastructure> {
    let mut wanted = Vec::new();
    for gate in listeners.gates.iter().filter(|gate| gate.accepted.is_ok()) {
        let Some(given) = &gate.object.spec.infrastructure else { continue };
        if given.labels.is_empty() && given.annotations.is_empty() {
            continue;
        }
        let (namespace, gateway) = key(&gate.object.metadata);
        let class = &gate.object.spec.gateway_class_name;
        let mut labels = given.labels.clone();
        // Label values have at most 63 characters, and names of Gateways at most 253.
        labels.insert("gateway.networking.k8s.io/gateway-name".into(), short(gateway, 63));
        wanted.push(Infrastructure {
            namespace: namespace.to_owned(),
            gateway: gateway.to_owned(),
            gateway_uid: gate.object.metadata.uid.clone(),
            name: short(&format!("{gateway}-{class}"), 253),
            labels,
            annotations: given.annotations.clone(),
        });
    }
    wanted
}

fn short(name: &str, most: usize) -> String {
    if name.len() <= most {
        return name.to_owned();
    }
    let cut: String = name.chars().take(most - 17).collect();
    format!("{cut}-{:016x}", Fnv::of(name))
}
