//! Tells what is known of a client's TLS connection that ends at the gateway.

use std::sync::Arc;

/// A client's TLS connection, as far as its handshake came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// In OpenSSL's words: `TLSv1.3`.
    pub version: &'static str,
    /// In OpenSSL's words: `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// The protocol that was agreed on, of at most 255 bytes.
    pub alpn: Option<Box<[u8]>>,
    /// The client's certificate, if the client has shown one and may come in. Shared, because lists
    /// of sessions are asked for again and again.
    pub certificate: Option<Arc<CertificateFacts>>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// As `config_sync::table::subject::subject` writes it. `None`: the subject is empty.
    pub subject: Option<Box<str>>,
    /// SHA-256 of the certificate in DER.
    pub fingerprint: [u8; 32],
}
