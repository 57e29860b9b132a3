//! The latest known objects of a cluster, by kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::ObjectMeta;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::gateway::objects::policy::L4Policy;
use crate::gateway::objects::{
    BackendTlsPolicy, Bundle, Gateway, GatewayClass, ListenerSet, ObjectName, Objects,
    ReferenceGrant, Route, XBackend,
};
use crate::gateway::status;

/// Watchers write the store and translations read the store, on one thread. Another thread reads
/// versions, one at a time, so that nobody waits long for the lock.
#[derive(Default)]
pub struct Store {
    tables: Mutex<Tables>,
    /// When the first and the last change came since the objects were taken.
    changes: Mutex<Option<(Instant, Instant)>>,
}

/// Objects of one kind, each with its known version.
pub type Table<T> = BTreeMap<ObjectName, (Version, Arc<T>)>;

/// `metadata.uid` and `metadata.resourceVersion`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    pub uid: String,
    pub resource: String,
}

impl Version {
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource: metadata.resource_version.clone().unwrap_or_default(),
        }
    }
}

#[derive(Default)]
pub struct Tables {
    pub gateway_classes: Table<GatewayClass>,
    pub gateways: Table<Gateway>,
    pub listener_sets: Table<ListenerSet>,
    pub tcp_routes: Table<Route>,
    pub udp_routes: Table<Route>,
    pub tls_routes: Table<Route>,
    pub http_routes: Table<Route>,
    pub reference_grants: Table<ReferenceGrant>,
    pub backend_tls_policies: Table<BackendTlsPolicy>,
    pub policies: Table<L4Policy>,
    pub x_backends: Table<XBackend>,
    pub services: Table<Service>,
    pub endpoint_slices: Table<EndpointSlice>,
    pub secrets: Table<Secret>,
    pub config_maps: Table<ConfigMap>,
    pub namespaces: Table<Namespace>,
    pub bundle: Option<Bundle>,
}

/// An object with a status that is about to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Existing {
    pub version: Version,
    pub status: Option<Value>,
}

/// Runs an expression with the table of a kind that has a status.
macro_rules! with_status {
    ($tables:ident, $kind:expr, |$table:ident| $use:expr) => {
        match $kind {
            status::Kind::GatewayClass => with_status!($tables.gateway_classes, $table, $use),
            status::Kind::Gateway => with_status!($tables.gateways, $table, $use),
            status::Kind::ListenerSet => with_status!($tables.listener_sets, $table, $use),
            status::Kind::TcpRoute => with_status!($tables.tcp_routes, $table, $use),
            status::Kind::UdpRoute => with_status!($tables.udp_routes, $table, $use),
            status::Kind::TlsRoute => with_status!($tables.tls_routes, $table, $use),
            status::Kind::HttpRoute => with_status!($tables.http_routes, $table, $use),
            status::Kind::BackendTlsPolicy => {
                with_status!($tables.backend_tls_policies, $table, $use)
            }
            status::Kind::L4Policy => with_status!($tables.policies, $table, $use),
            status::Kind::XBackend => with_status!($tables.x_backends, $table, $use),
        }
    };
    ($tables:ident.$field:ident, $table:ident, $use:expr) => {{
        let $table = &$tables.$field;
        $use
    }};
}

impl Store {
    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock()
    }

    /// Notes that an object has changed.
    pub fn touch(&self) {
        let now = Instant::now();
        let mut changes = self.changes.lock();
        let first = changes.map_or(now, |(first, _)| first);
        *changes = Some((first, now));
    }

    /// When the first and the last change came since [`Self::take`].
    pub fn changed(&self) -> Option<(Instant, Instant)> {
        *self.changes.lock()
    }

    /// All known objects, for a translation.
    pub fn take(&self) -> Objects {
        *self.changes.lock() = None;
        let tables = self.tables();
        Objects {
            gateway_classes: all(&tables.gateway_classes),
            gateways: all(&tables.gateways),
            listener_sets: all(&tables.listener_sets),
            tcp_routes: all(&tables.tcp_routes),
            udp_routes: all(&tables.udp_routes),
            tls_routes: all(&tables.tls_routes),
            http_routes: all(&tables.http_routes),
            reference_grants: all(&tables.reference_grants),
            backend_tls_policies: all(&tables.backend_tls_policies),
            x_backends: all(&tables.x_backends),
            services: all(&tables.services),
            endpoint_slices: all(&tables.endpoint_slices),
            secrets: all(&tables.secrets),
            config_maps: all(&tables.config_maps),
            namespaces: all(&tables.namespaces),
            policies: all(&tables.policies),
            bundle: tables.bundle.clone(),
        }
    }

    /// The known version and status of an object.
    pub fn existing(&self, kind: status::Kind, key: &ObjectName) -> Option<Existing> {
        let version = self.version(kind, key)?;
        let tables = self.tables();
        let status = with_status!(tables, kind, |table| table
            .get(key)
            .and_then(|(_, object)| json(&object.status)));
        Some(Existing { version, status })
    }

    /// The known version of an object, without its status.
    pub fn version(&self, kind: status::Kind, key: &ObjectName) -> Option<Version> {
        let tables = self.tables();
        with_status!(tables, kind, |table| table.get(key).map(|(version, _)| version.clone()))
    }
}

fn all<T>(table: &Table<T>) -> Vec<Arc<T>> {
    table.values().map(|(_, object)| Arc::clone(object)).collect()
}

fn json(status: &impl Serialize) -> Option<Value> {
    serde_json::to_value(status).ok().filter(|status| !status.is_null())
}
