//! Finds which kinds the cluster serves, and in which version.
//!
//! Ringway asks for the API server's own list every few seconds. A watch of the CRDs would tell of
//! a change at once. But a CRD exists before it is served, the list of all CRDs may be tens of
//! megabytes, and the watch needs a right to every CRD of the cluster. The list needs only the
//! right to `get` one CRD.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ApiResource;
use kube::core::GroupVersionKind;
use kube::{Api, Client};

use crate::gateway::objects::{Bundle, GROUP, X_GROUP, policy};

/// A kind that is followed.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    pub group: &'static str,
    /// The best version first. The types of objects fit all of them.
    versions: &'static [&'static str],
    pub namespaced: bool,
    /// A selector of the objects that matter.
    pub fields: Option<&'static str>,
}

const fn kind(name: &'static str, group: &'static str, versions: &'static [&'static str]) -> Kind {
    Kind { name, group, versions, namespaced: true, fields: None }
}

pub static GATEWAY_CLASS: Kind =
    Kind { namespaced: false, ..kind("GatewayClass", GROUP, &["v1", "v1beta1"]) };
pub static GATEWAY: Kind = kind("Gateway", GROUP, &["v1", "v1beta1"]);
pub static LISTENER_SET: Kind = kind("ListenerSet", GROUP, &["v1"]);
pub static TCP_ROUTE: Kind = kind("TCPRoute", GROUP, &["v1", "v1alpha2"]);
pub static UDP_ROUTE: Kind = kind("UDPRoute", GROUP, &["v1", "v1alpha2"]);
pub static TLS_ROUTE: Kind = kind("TLSRoute", GROUP, &["v1", "v1alpha3", "v1alpha2"]);
pub static HTTP_ROUTE: Kind = kind("HTTPRoute", GROUP, &["v1", "v1beta1"]);
pub static REFERENCE_GRANT: Kind = kind("ReferenceGrant", GROUP, &["v1", "v1beta1", "v1alpha2"]);
pub static BACKEND_TLS_POLICY: Kind = kind("BackendTLSPolicy", GROUP, &["v1", "v1alpha3"]);
pub static L4_POLICY: Kind = kind("L4Policy", policy::GROUP, &["v1alpha1"]);
pub static X_BACKEND: Kind = kind("XBackend", X_GROUP, &["v1alpha1"]);
pub static SERVICE: Kind = kind("Service", "", &["v1"]);
pub static ENDPOINT_SLICE: Kind = kind("EndpointSlice", "discovery.k8s.io", &["v1"]);
pub static SECRET: Kind =
    Kind { fields: Some("type=kubernetes.io/tls"), ..kind("Secret", "", &["v1"]) };
pub static CONFIG_MAP: Kind = kind("ConfigMap", "", &["v1"]);
pub static NAMESPACE: Kind = Kind { namespaced: false, ..kind("Namespace", "", &["v1"]) };

pub static KINDS: [&Kind; 16] = [
    &GATEWAY_CLASS,
    &GATEWAY,
    &LISTENER_SET,
    &TCP_ROUTE,
    &UDP_ROUTE,
    &TLS_ROUTE,
    &HTTP_ROUTE,
    &REFERENCE_GRANT,
    &BACKEND_TLS_POLICY,
    &L4_POLICY,
    &X_BACKEND,
    &SERVICE,
    &ENDPOINT_SLICE,
    &SECRET,
    &CONFIG_MAP,
    &NAMESPACE,
];

/// The groups whose kinds need an installed CRD.
const CUSTOM: [&str; 3] = [GROUP, X_GROUP, policy::GROUP];

impl Kind {
    /// Whether the kind needs an installed CRD.
    pub fn is_custom(&self) -> bool {
        CUSTOM.contains(&self.group)
    }
}

/// Each kind's resource in the best version that is served, by the kind's name.
pub type Served = BTreeMap<&'static str, ApiResource>;

/// Asks which kinds are served now.
///
/// # Errors
/// The API server can't be asked. Then nothing is known.
pub async fn served(client: &Client) -> kube::Result<Served> {
    let groups = client.list_api_groups().await?;
    // The kinds and their names in URLs, by group and version.
    let mut lists = BTreeMap::new();
    for group in groups.groups {
        if !CUSTOM.contains(&group.name.as_str()) {
            continue;
        }
        for version in group.versions {
            let list = client.list_api_group_resources(&version.group_version).await?;
            lists.insert(version.group_version, list.resources);
        }
    }
    let mut served = Served::new();
    for kind in KINDS {
        let found = kind.versions.iter().find_map(|version| {
            let gvk = GroupVersionKind::gvk(kind.group, version, kind.name);
            if !kind.is_custom() {
                return Some(ApiResource::from_gvk(&gvk));
            }
            // Subresources have the kind of their resource.
            let is_it = |name: &str, of: &str| of == kind.name && !name.contains('/');
            let list = lists.get(&format!("{}/{version}", kind.group))?;
            let resource = list.iter().find(|resource| is_it(&resource.name, &resource.kind))?;
            Some(ApiResource::from_gvk_with_plural(&gvk, &resource.name))
        });
        served.extend(found.map(|resource| (kind.name, resource)));
    }
    Ok(served)
}

/// The version and channel in the Gateway API's CRDs. `None` if there are no such CRDs.
///
/// # Errors
/// The API server can't be asked, or does not allow `get` of this one CRD.
pub async fn bundle(client: &Client) -> kube::Result<Option<Bundle>> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let Some(crd) = crds.get_metadata_opt(&format!("gateways.{GROUP}")).await? else {
        return Ok(None);
    };
    let annotations = crd.metadata.annotations.unwrap_or_default();
    let of = |key: &str| annotations.get(&format!("{GROUP}/{key}")).cloned();
    Ok(of("bundle-version")
        .map(|version| Bundle { version, channel: of("channel").unwrap_or_default() }))
}
