//! What is in Secrets, now and before.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::gateway::objects::ObjectName;
use crate::model::tls::{Certificate, Pem};

/// What was found in a Secret.
#[derive(Clone, Default)]
pub(super) struct Found {
    /// If it is broken, what was in it before that.
    pub(super) loaded: Option<KeyPair>,
    pub(super) fault: Option<String>,
}

/// A certificate and its key, seen to fit each other.
#[derive(Clone, Debug)]
pub(super) struct KeyPair {
    pub(super) certificate: Certificate,
    /// Whether clients can ask for it.
    pub(super) has_names: bool,
    /// In seconds, where it can be read.
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

/// What Secrets that Gateways and their listeners name were last found to hold, with their `uid`s.
/// It stays in force while what they hold is broken, as what a file of TOML names does: whoever
/// writes a key and then its certificate breaks nothing in between. What this replica has not seen
/// before the fault, as after a start, it does not have.
#[derive(Clone, Debug, Default)]
pub struct LastGood(Arc<BTreeMap<ObjectName, Good>>);

#[derive(Clone, Debug)]
struct Good {
    uid: Option<String>,
    loaded: KeyPair,
}

impl LastGood {
    /// After a translation that has found this in these Secrets.
    pub(super) fn of<'a>(
        found: impl Iterator<Item = (&'a ObjectName, &'a Found, &'a Secret)>,
    ) -> Self {
        let good = found.filter_map(|(key, found, secret)| {
            let uid = secret.metadata.uid.clone();
            Some((key.clone(), Good { uid, loaded: found.loaded.clone()? }))
        });
        Self(Arc::new(good.collect()))
    }

    /// When the next of them expires after `now`.
    pub(super) fn next_end(&self, now: i64) -> Option<i64> {
        let ends = self.0.values().filter_map(|good| good.loaded.not_after);
        ends.filter(|end| *end > now).min()
    }

    /// Not of a Secret that has been deleted and made anew.
    pub(super) fn get(&self, key: &ObjectName, secret: &Secret) -> Option<KeyPair> {
        let Good { uid, loaded } = self.0.get(key)?;
        (*uid == secret.metadata.uid).then(|| loaded.clone())
    }
}
