//! An endpoint's certificate must have one of the names that the configuration gives, whatever name
//! is asked for (Gateway API, `BackendTLSPolicy.validation.subjectAltNames`).

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

#[derive(Debug)]
pub(crate) struct NamedVerifier {
    /// For signatures.
    standard: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    /// DNS names, IP addresses and URIs.
    names: Vec<String>,
}

impl NamedVerifier {
    pub(crate) fn new(
        standard: Arc<WebPkiServerVerifier>,
        roots: Arc<RootCertStore>,
        provider: &CryptoProvider,
        names: Vec<String>,
    ) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { standard, roots, algorithms, names }
    }

    fn has_name(&self, certificate: &webpki::EndEntityCert<'_>) -> bool {
        self.names.iter().any(|name| match ServerName::try_from(name.as_str()) {
            Ok(name) => certificate.verify_is_valid_for_subject_name(&name).is_ok(),
            Err(_) => certificate.valid_uri_names().any(|uri| uri == name),
        })
    }
}

impl ServerCertVerifier for NamedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        let (roots, chain) = (&self.roots, intermediates);
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, chain, now, algorithms)?;
        let certificate = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.has_name(&certificate) {
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
        self.standard.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.standard.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.standard.supported_verify_schemes()
    }
}
