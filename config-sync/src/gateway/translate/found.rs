//! The contents of Secrets, now and before, and of XBackends.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::gateway::objects::ObjectName;
use crate::model::endpoint::Address;
use crate::model::tls::{Certificate, Origination, Pem};

/// Where an XBackend leads, and how.
#[derive(Clone, Debug)]
pub(super) struct External {
    /// A name, and the port.
    pub(super) address: Address,
    pub(super) port: u16,
    pub(super) tls: Option<Origination>,
    /// The XBackend asks for TLS, or for a protocol that runs on TCP.
    pub(super) is_for_tcp: bool,
}

/// The contents of a Secret.
#[derive(Clone, Default)]
pub(super) struct SecretState {
    /// The pair in the Secret. If the Secret is broken, the pair from before.
    pub(super) loaded: Option<KeyPair>,
    pub(super) fault: Option<String>,
}

/// A certificate and its key, which fit each other.
#[derive(Clone, Debug)]
pub(super) struct KeyPair {
    pub(super) certificate: Certificate,
    /// Whether the certificate has names that clients can ask for.
    pub(super) has_names: bool,
    /// In seconds, if the end can be read.
    pub(super) not_after: Option<i64>,
}

impl KeyPair {
    pub(super) fn expired(&self, now: i64) -> Option<String> {
        let end = self.not_after.filter(|end| *end <= now)?;
        let Pem::Inline { name, .. } = &self.certificate.cert else { return None };
        let end = Timestamp::from_second(end).ok()?;
        Some(format!("{name} has expired ({end}), so clients refuse it: renew it"))
    }
}

/// The last good contents of Secrets that Gateways and their listeners name, with the Secrets'
/// `uid`s. These contents stay in force while a Secret is broken, as with files that TOML names. So
/// an operator who writes a key and then its certificate breaks nothing in between. A replica that
/// saw the Secret only with the fault, as after a start, has no good contents.
#[derive(Clone, Debug, Default)]
pub struct LastGood(Arc<BTreeMap<ObjectName, Good>>);

#[derive(Clone, Debug)]
struct Good {
    uid: Option<String>,
    loaded: KeyPair,
}

impl LastGood {
    /// The contents after a translation that has found these Secrets.
    pub(super) fn of<'a>(
        found: impl Iterator<Item = (&'a ObjectName, &'a SecretState, &'a Secret)>,
    ) -> Self {
        let good = found.filter_map(|(key, found, secret)| {
            let uid = secret.metadata.uid.clone();
            Some((key.clone(), Good { uid, loaded: found.loaded.clone()? }))
        });
        Self(Arc::new(good.collect()))
    }

    /// When the next certificate expires after `now`.
    pub(super) fn next_end(&self, now: i64) -> Option<i64> {
        let ends = self.0.values().filter_map(|good| good.loaded.not_after);
        ends.filter(|end| *end > now).min()
    }

    /// The last good pair. `None` if the Secret has been deleted and created again.
    pub(super) fn get(&self, key: &ObjectName, secret: &Secret) -> Option<KeyPair> {
        let Good { uid, loaded } = self.0.get(key)?;
        (*uid == secret.metadata.uid).then(|| loaded.clone())
    }
}
