//! Certificates for tests: one authority, and what it has signed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use config_sync::model::tls::{Certificate, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, RevokedCertParams,
    SignatureAlgorithm,
};

pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    algorithm: &'static SignatureAlgorithm,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    pub cert: String,
    pub key: String,
}

impl Pki {
    /// With ECDSA: OpenSSL reads such keys as rcgen writes them.
    pub fn new() -> Self {
        Self::with(&PKCS_ECDSA_P256_SHA256)
    }

    /// The simulator's, with Ed25519: its signatures have one size, so that a run has the same
    /// sizes every time.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Pki> = OnceLock::new();
        SHARED.get_or_init(|| Self::with(&PKCS_ED25519))
    }

    /// All keys are of this kind.
    pub fn with(algorithm: &'static SignatureAlgorithm) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        Self { issuer, algorithm }
    }

    /// The authority's own certificate, in PEM.
    pub fn ca(&self) -> String {
        self.issuer.pem()
    }

    pub fn issue(&self, names: &[&str]) -> Issued {
        self.sign(names, |_| {})
    }

    /// As [`Self::issue`], with a serial number by which it can be revoked.
    pub fn issue_numbered(&self, names: &[&str], serial: u64) -> Issued {
        self.sign(names, |params| params.serial_number = Some(serial.into()))
    }

    /// A list of revoked serial numbers, in PEM.
    pub fn revoke(&self, serials: &[u64]) -> String {
        self.revoke_until(serials, 4096)
    }

    /// As [`Self::revoke`], valid until the end of the year before `year`.
    pub fn revoke_until(&self, serials: &[u64], year: i32) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(year, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("signed").pem().expect("PEM")
    }

    /// Valid until the end of the year before `year`.
    pub fn issue_until(&self, names: &[&str], year: i32) -> Issued {
        self.sign(names, |params| params.not_after = rcgen::date_time_ymd(year, 1, 1))
    }

    /// Valid up to a second of Unix time.
    pub fn issue_up_to(&self, names: &[&str], second: u64) -> Issued {
        let end = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second);
        self.sign(names, |params| params.not_after = end)
    }

    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("good names");
        params.not_after = rcgen::date_time_ymd(4096, 1, 1);
        change(&mut params);
        let key = KeyPair::generate_for(self.algorithm).expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Issued { cert: cert.pem(), key: key.serialize_pem() }
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

impl Issued {
    pub fn configured(&self) -> Certificate {
        Certificate { cert: inline("cert", &self.cert), key: inline("key", &self.key) }
    }
}

pub fn inline(name: &str, pem: &str) -> Pem {
    Pem::Inline { name: name.to_owned(), bytes: Arc::from(pem.as_bytes()) }
}
