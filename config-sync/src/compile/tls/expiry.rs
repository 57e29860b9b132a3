//! The ends of certificates in use, for metrics and warnings.

use rustls::pki_types::CertificateDer;

use crate::model::place::Place;
use crate::table::x509::{common_name, not_after};

/// A certificate or certificate revocation list in use, and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub of: Expiring,
    /// The listener or backend that uses the certificate or list. [`ADMIN`]: the admin API does.
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

/// The owner of the admin API's certificate. No listener or backend has a name with a blank.
pub const ADMIN: &str = "admin API";

/// Days before a certificate's end from which warnings begin.
const EXPIRY_DAYS: i64 = 14;

impl Expiry {
    /// The end of a certificate, if the certificate says when it ends. `name` is that of the file,
    /// or of another source.
    pub fn of_certificate(
        der: &CertificateDer<'_>,
        (owned_by, owner): (OwnedBy, &str),
        (name, place): (String, Place),
    ) -> Option<Self> {
        let mut names = dns_names(der);
        if names.is_empty() {
            names.extend(common_name(der));
        }
        let (of, owner, not_after) = (Expiring::Certificate, owner.to_owned(), not_after(der)?);
        Some(Self { of, owner, owned_by, names, name, place, not_after })
    }

    /// The warning, if somebody must act. `now` is in seconds of Unix time.
    pub fn warning(&self, now: i64) -> Option<String> {
        let Self { of, name, not_after, .. } = self;
        let owner = match self.owned_by {
            OwnedBy::Admin => "the admin API",
            OwnedBy::Listener | OwnedBy::Backend => &self.owner,
        };
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
    Admin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiring {
    Certificate,
    RevocationList,
}

pub(crate) fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate);
    parsed.map_or_else(|_| Vec::new(), |cert| cert.valid_dns_names().map(str::to_owned).collect())
}
