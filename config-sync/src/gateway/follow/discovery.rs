//! Which kinds the cluster serves, and in which version.
//!
//! By asking for the API server's own list every few seconds. Watching the CRDs would tell of a
//! change at once, but a CRD is there before it is served, the whole list of them may be tens of
//! megabytes, and it takes a right to every CRD of the cluster; this takes none beyond `get` of
//! one.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ApiResource;
use kube::core::GroupVersionKind;
use kube::{Api, Client};

use crate::gateway::objects::{Bundle, GROUP, policy};

/// A kind that is followed.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    pub group: &'static str,
    /// The best first. The types that objects are read into fit all of them.
    versions: &'static [&'static str],
    pub namespaced: bool,
    /// A selector: only these objects matter.
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
pub static SERVICE: Kind = kind("Service", "", &["v1"]);
pub static ENDPOINT_SLICE: Kind = kind("EndpointSlice", "discovery.k8s.io", &["v1"]);
pub static SECRET: Kind =
    Kind { fields: Some("type=kubernetes.io/tls"), ..kind("Secret", "", &["v1"]) };
pub static CONFIG_MAP: Kind = kind("ConfigMap", "", &["v1"]);
pub static NAMESPACE: Kind = Kind { namespaced: false, ..kind("Namespace", "", &["v1"]) };

pub static KINDS: [&Kind; 15] = [
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
    &SERVICE,
    &ENDPOINT_SLICE,
    &SECRET,
    &CONFIG_MAP,
    &NAMESPACE,
];

impl Kind {
    /// Whether a CRD must be installed for it.
    pub fn is_custom(&self) -> bool {
        [GROUP, policy::GROUP].contains(&self.group)
    }
}

/// Each kind's resource in the best version that is served, by the kind's name.
pub type Served = BTreeMap<&'static str, ApiResource>;

/// Asks for what is served now.
///
/// # Errors
/// The API server can't be asked; nothing is known then.
pub async fn served(client: &Client) -> kube::Result<Served> {
    let groups = client.list_api_groups().await?;
    // By group and version: the kinds and their names in URLs.
    let mut lists = BTreeMap::new();
    for group in groups.groups {
        if ![GROUP, policy::GROUP].contains(&group.name.as_str()) {
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
            // Subresources have the kind of what they are of.
            let is_it = |name: &str, of: &str| of == kind.name && !name.contains('/');
            let list = lists.get(&format!("{}/{version}", kind.group))?;
            let resource = list.iter().find(|resource| is_it(&resource.name, &resource.kind))?;
            Some(ApiResource::from_gvk_with_plural(&gvk, &resource.name))
        });
        served.extend(found.map(|resource| (kind.name, resource)));
    }
    Ok(served)
}

/// What the CRDs of the Gateway API say of themselves; `None` if they are not there.
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
