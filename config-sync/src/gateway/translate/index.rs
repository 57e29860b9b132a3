//! Objects by name, and answers to questions about objects.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ObjectMeta;

use crate::gateway::objects::{FromNamespaces, Gateway, Objects};
use crate::gateway::translate::found::{External, LastGood, SecretState};
use crate::gateway::translate::party::{Party, Target};
use crate::gateway::translate::verdict::Fault;

/// Namespace and name.
pub(super) type ObjectKey<'o> = (&'o str, &'o str);

#[derive(Default)]
pub(super) struct Index<'o> {
    pub(super) services: BTreeMap<ObjectKey<'o>, &'o Service>,
    pub(super) gateways: BTreeMap<ObjectKey<'o>, &'o Gateway>,
    pub(super) listener_sets: BTreeSet<ObjectKey<'o>>,
    /// By the Service of the slices. Slices are in the order of their names.
    pub(super) slices: BTreeMap<ObjectKey<'o>, Vec<&'o EndpointSlice>>,
    pub(super) secrets: BTreeMap<ObjectKey<'o>, &'o Secret>,
    pub(super) config_maps: BTreeMap<ObjectKey<'o>, &'o ConfigMap>,
    /// The contents of the Secrets that were read. Many listeners name one Secret.
    pub(super) certificates: RefCell<BTreeMap<(String, String), SecretState>>,
    /// The last good contents of Secrets.
    pub(super) last_good: LastGood,
    /// The only namespaces that are followed. Empty: all are.
    pub(super) namespaces: Arc<[String]>,
    /// ExternalName Services, EndpointSlices of type FQDN and XBackends lead to their names.
    pub(super) external_names: bool,
    /// The XBackends, whether or not they may lead to their names.
    pub(super) externals: BTreeMap<ObjectKey<'o>, Result<External, Fault>>,
    /// Why the machine's own CA certificates can't be used. It takes a while to find out.
    pub(super) system_trust: OnceCell<Result<(), String>>,
    /// The time of day in seconds, if certificates are compared with the time.
    pub(super) now: Option<i64>,
    labels: BTreeMap<&'o str, &'o BTreeMap<String, String>>,
    /// The ReferenceGrants, by the namespace of the object that is referred to.
    grants: BTreeMap<&'o str, BTreeSet<Grant<'o>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Grant<'o> {
    from: Party<'o>,
    to_group: &'o str,
    to_kind: &'o str,
    to_name: Option<&'o str>,
}

impl<'o> Index<'o> {
    pub(super) fn of(objects: &'o Objects) -> Self {
        let mut index = Self::default();
        for service in &objects.services {
            index.services.insert(key(&service.metadata), service);
        }
        for slice in &objects.endpoint_slices {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            if let Some(service) = service {
                let (namespace, _) = key(&slice.metadata);
                index.slices.entry((namespace, service)).or_default().push(slice);
            }
        }
        for slices in index.slices.values_mut() {
            slices.sort_by_key(|slice| &slice.metadata.name);
        }
        for gateway in &objects.gateways {
            index.gateways.entry(key(&gateway.metadata)).or_insert(gateway);
        }
        index.listener_sets = objects.listener_sets.iter().map(|set| key(&set.metadata)).collect();
        for secret in &objects.secrets {
            index.secrets.insert(key(&secret.metadata), secret);
        }
        for map in &objects.config_maps {
            index.config_maps.insert(key(&map.metadata), map);
        }
        for namespace in &objects.namespaces {
            if let Some(labels) = &namespace.metadata.labels {
                index.labels.insert(key(&namespace.metadata).1, labels);
            }
        }
        for grant in &objects.reference_grants {
            let grants = index.grants.entry(key(&grant.metadata).0).or_default();
            for from in &grant.spec.from {
                let (group, kind, namespace) = (&from.group, &from.kind, &from.namespace);
                for to in &grant.spec.to {
                    grants.insert(Grant {
                        from: Party { group, kind, namespace },
                        to_group: &to.group,
                        to_kind: &to.kind,
                        to_name: to.name.as_deref().filter(|name| !name.is_empty()),
                    });
                }
            }
        }
        index
    }

    /// The good contents of Secrets, for the next translation.
    pub(super) fn good(&self) -> LastGood {
        let known = self.certificates.borrow();
        let found = known.iter().filter_map(|(key, found)| {
            let secret = self.secrets.get(&(key.0.as_str(), key.1.as_str()))?;
            Some((key, found, *secret))
        });
        LastGood::of(found)
    }

    /// A hint for messages about objects that are missing in a namespace.
    pub(super) fn limits(&self, namespace: &str) -> String {
        let followed = &self.namespaces;
        if followed.is_empty() || followed.iter().any(|of| of == namespace) {
            return String::new();
        }
        let followed = followed.join(", ");
        format!(" that is known here: only objects of {followed} are followed (--namespace)")
    }

    /// Whether `from` may refer to `to`. References within a namespace are always allowed; others
    /// need a ReferenceGrant.
    pub(super) fn permits(&self, from: Party<'_>, to: Target<'_>) -> bool {
        let named = |to_name| Grant { from, to_group: to.group, to_kind: to.kind, to_name };
        from.namespace == to.namespace
            || self.grants.get(to.namespace).is_some_and(|grants| {
                grants.contains(&named(None)) || grants.contains(&named(Some(to.name)))
            })
    }

    /// Whether an object of `home` lets in objects of `namespace`.
    pub(super) fn lets_in(
        &self,
        allowed: Option<&FromNamespaces>,
        default: &str,
        home: &str,
        namespace: &str,
    ) -> bool {
        match allowed.and_then(|allowed| allowed.from.as_deref()).unwrap_or(default) {
            "All" => true,
            "Same" => home == namespace,
            "Selector" => {
                let selector = allowed.and_then(|allowed| allowed.selector.as_ref());
                selector.is_some_and(|selector| self.selects(selector, namespace))
            }
            _ => false,
        }
    }

    /// Whether a selector matches a namespace. A namespace that is not among the objects (as in
    /// files) has the one label that every namespace has.
    fn selects(&self, selector: &LabelSelector, namespace: &str) -> bool {
        let label = |key: &str| {
            let given = self.labels.get(namespace).and_then(|labels| labels.get(key));
            let own = (key == "kubernetes.io/metadata.name").then_some(namespace);
            given.map(String::as_str).or(own)
        };
        let equal = selector.match_labels.iter().flatten().all(|(key, value)| {
            let found: Option<&str> = label(key);
            found == Some(value)
        });
        equal
            && selector.match_expressions.iter().flatten().all(|expression| {
                let found = label(&expression.key);
                let listed = || {
                    let values = expression.values.iter().flatten();
                    values.into_iter().any(|value| found == Some(value))
                };
                match expression.operator.as_str() {
                    "In" => listed(),
                    "NotIn" => !listed(),
                    "Exists" => found.is_some(),
                    "DoesNotExist" => found.is_none(),
                    _ => false,
                }
            })
    }
}

/// The namespace and name. An object in a file without a namespace is in `default`, as with
/// kubectl.
pub(super) fn key(metadata: &ObjectMeta) -> ObjectKey<'_> {
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    (namespace, metadata.name.as_deref().unwrap_or_default())
}

/// Older objects first, then by namespace and name: the Gateway API's order of precedence. An
/// object without an age (in a file) is older than one with an age.
pub(super) fn seniority(metadata: &ObjectMeta) -> impl Ord + '_ {
    (metadata.creation_timestamp.as_ref().map(|time| time.0), key(metadata))
}
