//! Keeps a ServiceAccount beside each Gateway that carries the labels and annotations of
//! `spec.infrastructure` (GEP-1867). Ringway runs on nodes and not in Pods of a Gateway, so no
//! other object can carry them. The account has no rights, and nothing runs under it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, Preconditions};
use kube::{Api, Client};

use crate::gateway::follow::causes::is_ending;
use crate::gateway::objects::{GROUP, ObjectName};
use crate::gateway::translate::notice::Infrastructure;

/// All accounts of Ringway have this label, so that Ringway finds them again.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "ringway");

/// The field manager of server-side apply: fields that are no longer wanted are removed, and fields
/// that others have added stay.
const MANAGER: &str = "ringway-infrastructure";

/// Makes the ServiceAccounts equal to the wanted ones.
#[derive(Default)]
pub struct Accounts {
    /// The accounts that exist, as they were last written.
    written: BTreeMap<ObjectName, Infrastructure>,
    /// Accounts of an earlier leader have been searched for.
    searched: bool,
    /// Foreign accounts with names that Ringway wants.
    taken: BTreeSet<ObjectName>,
}

impl Accounts {
    /// Makes the accounts equal to the wanted ones.
    ///
    /// # Errors
    /// The API server's latest error. A failure does not stop the other accounts, and the next call
    /// tries again.
    pub async fn keep(
        &mut self,
        client: &Client,
        namespaces: &[String],
        controller: &str,
        wanted: &[Infrastructure],
    ) -> kube::Result<()> {
        let mut result = Ok(());
        let all: BTreeSet<ObjectName> = wanted.iter().map(key).collect();
        self.taken.retain(|key| all.contains(key));
        let mut gone: BTreeSet<ObjectName> =
            self.written.keys().filter(|key| !all.contains(*key)).cloned().collect();
        if !self.searched {
            match left(client, namespaces, controller, &all).await {
                Ok(left) => {
                    gone.extend(left);
                    self.searched = true;
                }
                Err(error) => result = Err(error),
            }
        }
        for (namespace, name) in gone {
            match delete(client, &namespace, &name).await {
                Ok(()) => _ = self.written.remove(&(namespace, name)),
                Err(error) => {
                    self.searched = false;
                    result = Err(error);
                }
            }
        }
        for account in wanted {
            if self.written.get(&key(account)) == Some(account) {
                continue;
            }
            match write(client, controller, account).await {
                Ok(true) => {
                    self.taken.remove(&key(account));
                    self.written.insert(key(account), account.clone());
                }
                Ok(false) => self.say_taken(account),
                // The namespace is gone or going, and the Gateway with it.
                Err(kube::Error::Api(status)) if status.code == 404 || is_ending(&status) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    fn say_taken(&mut self, account: &Infrastructure) {
        if self.taken.insert(key(account)) {
            let Infrastructure { namespace, gateway, name, .. } = account;
            let (label, value) = MANAGED_BY;
            tracing::warn!(
                "Gateway {namespace}/{gateway}: its infrastructure labels and annotations have no \
                 effect, because the ServiceAccount {name} is not Ringway's; remove the \
                 ServiceAccount, or label it {label}={value} to hand it to Ringway"
            );
        }
    }

    /// Forgets the accounts, because another replica leads and may change them.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

fn key(account: &Infrastructure) -> ObjectName {
    (account.namespace.clone(), account.name.clone())
}

/// Ringway's accounts that are no longer wanted: for example, their Gateway is of another class
/// now.
async fn left(
    client: &Client,
    namespaces: &[String],
    controller: &str,
    wanted: &BTreeSet<ObjectName>,
) -> kube::Result<BTreeSet<ObjectName>> {
    let (label, value) = MANAGED_BY;
    let selector = format!("{label}={value},{GROUP}/gateway-name");
    let list = ListParams::default().labels(&selector);
    let apis: Vec<Api<ServiceAccount>> = if namespaces.is_empty() {
        vec![Api::all(client.clone())]
    } else {
        namespaces.iter().map(|name| Api::namespaced(client.clone(), name)).collect()
    };
    let mut left = BTreeSet::new();
    for api in apis {
        for account in api.list(&list).await?.items {
            let annotations = account.metadata.annotations.unwrap_or_default();
            if annotations.get(CONTROLLER).is_none_or(|of| of != controller) {
                continue;
            }
            let metadata = (account.metadata.namespace, account.metadata.name);
            let (Some(namespace), Some(name)) = metadata else { continue };
            left.insert((namespace, name));
        }
    }
    left.retain(|key| !wanted.contains(key));
    Ok(left)
}

/// The controller of the account, if several Ringway controllers share a cluster.
const CONTROLLER: &str = "ringway.dev/controller";

/// Whether the account is Ringway's, which the name alone does not show.
fn is_ours(account: &ServiceAccount) -> bool {
    let (label, value) = MANAGED_BY;
    let labels = account.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(label)).is_some_and(|of| of == value)
}

/// Returns whether the account is written. A foreign account with the name is left as it is.
async fn write(client: &Client, controller: &str, account: &Infrastructure) -> kube::Result<bool> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &account.namespace);
    if api.get_opt(&account.name).await?.is_some_and(|there| !is_ours(&there)) {
        return Ok(false);
    }
    let patch = Patch::Apply(object(account, controller));
    let how = PatchParams::apply(MANAGER).force();
    api.patch(&account.name, &how, &patch).await.map(|_| true)
}

async fn delete(client: &Client, namespace: &str, name: &str) -> kube::Result<()> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let Some(account) = api.get_opt(name).await?.filter(is_ours) else { return Ok(()) };
    let preconditions = Preconditions { uid: account.metadata.uid, resource_version: None };
    let options = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(name, &options).await {
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        result => result.map(drop),
    }
}

fn object(account: &Infrastructure, controller: &str) -> ServiceAccount {
    let (label, value) = MANAGED_BY;
    let mut labels = account.labels.clone();
    labels.insert(label.into(), value.into());
    let mut annotations = account.annotations.clone();
    annotations.insert(CONTROLLER.into(), controller.into());
    let owner = account.gateway_uid.as_ref().map(|uid| OwnerReference {
        api_version: format!("{GROUP}/v1"),
        kind: "Gateway".into(),
        name: account.gateway.clone(),
        uid: uid.clone(),
        ..OwnerReference::default()
    });
    ServiceAccount {
        metadata: ObjectMeta {
            name: Some(account.name.clone()),
            namespace: Some(account.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
