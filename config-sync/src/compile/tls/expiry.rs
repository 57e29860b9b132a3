//! Ends of certificates that are in use, for metrics and warnings.

use crate::model::place::Place;

/// A certificate, or a list of revoked ones, that is in use: for metrics and warnings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub of: Expiring,
    /// The listener or backend that has it.
    pub owner: String,
    /// Where it comes from: a file, or what its source is called.
    pub name: String,
    /// Where the configuration names it, or else its owner.
    pub place: Place,
    /// Seconds of Unix time after which it is not valid.
    pub not_after: i64,
}

/// Days before a certificate's end from which on it is warned of.
const EXPIRY_DAYS: i64 = 14;

impl Expiry {
    /// What somebody must do about it; `now` is in seconds of Unix time.
    pub fn warning(&self, now: i64) -> Option<String> {
        let Self { of, owner, name, not_after, .. } = self;
        let days = (not_after - now).div_euclid(24 * 3_600);
        match of {
            // They are short-lived, and renewed in the last moment.
            Expiring::RevocationList => (*not_after <= now).then(|| {
                format!(
                    "the list of revoked certificates {name} of {owner} has expired, and so \
                     clients whose issuer it is of are refused: renew it"
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
pub enum Expiring {
    Certificate,
    RevocationList,
}
