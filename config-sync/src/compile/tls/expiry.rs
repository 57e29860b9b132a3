//! The ends of certificates in use, for metrics and warnings.

use crate::model::place::Place;

/// A certificate or certificate revocation list in use, and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub of: Expiring,
    /// The listener or backend that uses the certificate or list.
    pub owner: String,
    pub owned_by: OwnedBy,
    /// The names in the certificate: the DNS names, or else the subject's common name.
    pub names: Vec<String>,
    /// The file, or the name of another source.
    pub name: String,
    /// The place where the configuration names the file, or else the owner's place.
    pub place: Place,
    /// The certificate or list is valid until this second of Unix time.
    pub not_after: i64,
}

/// Days before a certificate's end from which warnings begin.
const EXPIRY_DAYS: i64 = 14;

impl Expiry {
    /// The warning, if somebody must act. `now` is in seconds of Unix time.
    pub fn warning(&self, now: i64) -> Option<String> {
        let Self { of, owner, name, not_after, .. } = self;
        let days = (not_after - now).div_euclid(24 * 3_600);
        match of {
            // Revocation lists are short-lived and renewed at the last moment, so only their end is
            // warned of.
            Expiring::RevocationList => (*not_after <= now).then(|| {
                format!(
                    "the list of revoked certificates {name} of {owner} has expired, so clients \
                     whose issuer signed the list are refused: renew it"
                )
            }),
            Expiring::Certificate if *not_after <= now => {
                Some(format!("the certificate {name} of {owner} has expired: renew it"))
            }
            Expiring::Certificate => (days < EXPIRY_DAYS).then(|| {
                format!("the certificate {name} of {owner} expires in {days} days: renew it")
            }),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnedBy {
    Listener,
    Backend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiring {
    Certificate,
    RevocationList,
}
