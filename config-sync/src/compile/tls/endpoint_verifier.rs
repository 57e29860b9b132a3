//! Verifies the certificates of endpoints.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::hash::{Hash, HashAlgorithm};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use crate::model::alt_name::AltName;
use crate::model::tls::Pin;
use crate::table::x509;

/// The conditions for an endpoint's certificate.
#[derive(Debug)]
pub(crate) struct EndpointVerifier {
    /// The CA certificates that sign the endpoint's certificate. `None`: only the pin counts.
    pub(crate) roots: Option<Arc<RootCertStore>>,
    /// The certificates of the `ca` file. An endpoint may also show such a certificate itself.
    /// Servers often have a certificate from `openssl req -x509`, which is marked as a CA's and
    /// would otherwise be refused as a server's.
    pub(crate) trusted: Vec<CertificateDer<'static>>,
    /// The certificate must have one of these names. If the list is empty, the certificate must
    /// have the server's name.
    pub(crate) names: Vec<AltName>,
    /// The certificate's key must have one of these hashes. If the list is empty, any key is
    /// allowed.
    pub(crate) pins: Vec<Pin>,
    pub(crate) provider: Arc<CryptoProvider>,
}

fn sha256(provider: &CryptoProvider) -> &'static dyn Hash {
    let suites = provider.cipher_suites.iter().filter_map(|suite| suite.tls13());
    let mut hashes = suites.map(|suite| suite.common.hash_provider);
    hashes.find(|hash| hash.algorithm() == HashAlgorithm::SHA256).expect("RFC 8446, section 9.1")
}

#[derive(Debug, thiserror::Error)]
#[error("no hash in tls.pin_sha256 is of the certificate's key")]
struct OtherKey;

impl EndpointVerifier {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }

    fn pinned(&self, certificate: &[u8]) -> bool {
        let key = x509::public_key(certificate).map(|key| sha256(&self.provider).hash(key));
        key.is_some_and(|hash| self.pins.iter().any(|pin| pin[..] == *hash.as_ref()))
    }

    /// A certificate that is itself in `ca` belongs to one known server, so the certificate needs
    /// no alternative name. If there is none, the common name counts (RFC 6125, section 6.4.4).
    fn is_named(&self, certificate: &CertificateDer<'_>, server: &ServerName<'_>) -> bool {
        let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return false };
        let is_unnamed = parsed.valid_dns_names().next().is_none();
        let common = || x509::common_name(certificate);
        is_unnamed && common().is_some_and(|name| name.eq_ignore_ascii_case(&server.to_str()))
    }
}

impl ServerCertVerifier for EndpointVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if !self.pins.is_empty() && !self.pinned(end_entity) {
            return Err(CertificateError::Other(OtherError(Arc::new(OtherKey))).into());
        }
        let is_itself = self.trusted.contains(end_entity);
        match &self.roots {
            _ if is_itself => in_time(end_entity, now)?,
            Some(roots) => verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                self.algorithms().all,
            )?,
            None if self.names.is_empty() => return Ok(ServerCertVerified::assertion()),
            None => {}
        }
        if self.names.is_empty() {
            match verify_server_name(&parsed, server_name) {
                Err(_) if is_itself && self.is_named(end_entity, server_name) => {}
                result => result?,
            }
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.names.iter().any(|name| name.is_of(&certificate)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidForName))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// Whether a certificate is valid at this time of day.
fn in_time(certificate: &[u8], now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (Some(from), Some(to)) = (x509::not_before(certificate), x509::not_after(certificate))
    else {
        return Err(CertificateError::BadEncoding.into());
    };
    match () {
        () if now < from => Err(CertificateError::NotValidYet.into()),
        () if now > to => Err(CertificateError::Expired.into()),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    /// The PostgreSQL manual's command made this certificate: `openssl req -new -x509 -nodes -subj
    /// /CN=db.test`.
    const SELF_SIGNED: &str = include_str!("testdata/self-signed.pem");
    const LEAF: &str = include_str!("testdata/leaf.pem");
    const ROOT: &str = include_str!("testdata/root.pem");
    /// A time in 2030.
    const NOW: u64 = 1_900_000_000;

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
    }

    fn verifier(ca: &[&str]) -> EndpointVerifier {
        let mut roots = RootCertStore::empty();
        let trusted: Vec<_> = ca.iter().map(|pem| der(pem)).collect();
        trusted.iter().for_each(|ca| roots.add(ca.clone()).expect("a certificate"));
        EndpointVerifier {
            roots: (!ca.is_empty()).then(|| Arc::new(roots)),
            trusted,
            names: Vec::new(),
            pins: Vec::new(),
            provider: Arc::new(default_provider()),
        }
    }

    fn verdict(verifier: &EndpointVerifier, shown: &str, name: &str, now: u64) -> String {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let verdict = verifier.verify_server_cert(&der(shown), &[], &name, &[], now);
        verdict.map_or_else(|error| format!("{error:?}"), |_| "right".to_owned())
    }

    fn pin(pem: &str) -> Pin {
        let hash = sha256(&default_provider()).hash(x509::public_key(&der(pem)).expect("a key"));
        hash.as_ref().try_into().expect("32 bytes")
    }

    #[test]
    fn a_certificate_in_ca_is_right_itself_as_long_as_it_lasts() {
        let own = verifier(&[SELF_SIGNED]);
        assert_eq!(verdict(&own, SELF_SIGNED, "db.test", NOW), "right");
        assert_eq!(verdict(&own, SELF_SIGNED, "DB.test", NOW), "right");
        assert!(verdict(&own, SELF_SIGNED, "other.test", NOW).contains("NotValidForName"));
        assert!(verdict(&own, SELF_SIGNED, "db.test", 1).contains("NotValidYet"));
        assert!(verdict(&own, SELF_SIGNED, "db.test", NOW * 4).contains("Expired"));
        assert!(verdict(&own, LEAF, "leaf.test", NOW).contains("UnknownIssuer"));
        // Only the certificate in the file is trusted, not any certificate that is marked as a
        // CA's.
        let other = verifier(&[ROOT]);
        assert!(verdict(&other, SELF_SIGNED, "db.test", NOW).contains("CaUsedAsEndEntity"));
    }

    #[test]
    fn a_pin_names_a_key_alone_or_beside_ca() {
        let mut alone = verifier(&[]);
        alone.pins = vec![pin(ROOT), pin(SELF_SIGNED)];
        assert_eq!(verdict(&alone, SELF_SIGNED, "any.test", 1), "right", "nothing else counts");
        assert!(verdict(&alone, LEAF, "leaf.test", NOW).contains("OtherKey"));
        alone.names = vec![AltName::read("leaf.test").expect("a name")];
        assert!(verdict(&alone, SELF_SIGNED, "db.test", NOW).contains("NotValidForName"));
        alone.pins = vec![pin(LEAF)];
        assert_eq!(verdict(&alone, LEAF, "any.test", NOW), "right");

        let mut beside = verifier(&[SELF_SIGNED]);
        beside.pins = vec![pin(LEAF)];
        assert!(verdict(&beside, SELF_SIGNED, "db.test", NOW).contains("OtherKey"));
        assert!(verdict(&beside, LEAF, "leaf.test", NOW).contains("UnknownIssuer"));
        beside.pins = vec![pin(SELF_SIGNED)];
        assert_eq!(verdict(&beside, SELF_SIGNED, "db.test", NOW), "right");
        assert!(verdict(&beside, SELF_SIGNED, "other.test", NOW).contains("NotValidForName"));
    }
}
