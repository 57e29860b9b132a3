//! Encrypts an alert of the gateway's own. rustls sends alerts only for faults that it has found.

use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion, SupportedCipherSuite};

use crate::wire::alert::Alert;

/// The alert as the record with this number, encrypted by the suite's own code in rustls.
pub fn seal(
    suite: SupportedCipherSuite,
    (number, secrets): (u64, ConnectionTrafficSecrets),
    alert: Alert,
) -> Option<Vec<u8>> {
    use ConnectionTrafficSecrets as S;
    let (S::Aes128Gcm { key, iv } | S::Aes256Gcm { key, iv } | S::Chacha20Poly1305 { key, iv }) =
        secrets
    else {
        return None;
    };
    let mut encrypter = match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            // With AES-GCM rustls has put both parts of the nonce into one (RFC 5288, section 3).
            let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
            let (fixed, explicit) = iv.as_ref().split_at_checked(fixed)?;
            suite.aead_alg.encrypter(key, fixed, explicit)
        }
    };
    let message = alert.message();
    let message = OutboundPlainMessage {
        typ: ContentType::Alert,
        // TLS 1.3 keeps this number on the wire (RFC 8446, section 5.1).
        version: ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(&message),
    };
    Some(encrypter.encrypt(message, number).ok()?.encode())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, default_provider};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{
        AlertDescription, ClientConfig, ClientConnection, RootCertStore, ServerConfig,
        ServerConnection,
    };

    use super::*;

    /// A client and a server after a handshake with this suite.
    fn connected(suite: SupportedCipherSuite) -> (ClientConnection, ServerConnection) {
        let names = vec!["db.test".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("made");
        let provider = default_provider();
        let provider = rustls::crypto::CryptoProvider { cipher_suites: vec![suite], ..provider };
        let provider = Arc::new(provider);
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[suite.version()])
            .expect("the suite's version")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a certificate");
        server.enable_secret_extraction = true;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[suite.version()])
            .expect("the suite's version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "db.test".try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(client), name).expect("a client");
        let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
        loop {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            client.write_tls(&mut up).expect("memory");
            server.read_tls(&mut up.as_slice()).expect("memory");
            server.process_new_packets().expect("TLS");
            while server.wants_write() {
                server.write_tls(&mut down).expect("memory");
            }
            client.read_tls(&mut down.as_slice()).expect("memory");
            client.process_new_packets().expect("TLS");
            if up.is_empty() && down.is_empty() {
                return (client, server);
            }
        }
    }

    #[test]
    fn a_client_reads_the_alert_whatever_was_agreed_on() {
        // The key is not RSA. Suites differ in nothing else of what matters here.
        let suites = ALL_CIPHER_SUITES.iter();
        for suite in suites.filter(|suite| !format!("{suite:?}").contains("_RSA_")) {
            let (mut client, server) = connected(*suite);
            let suite = server.negotiated_cipher_suite().expect("it is agreed on");
            let secrets = server.dangerous_extract_secrets().expect("the handshake is over");
            let record = seal(suite, secrets.tx, Alert::InternalError).expect("a record");
            client.read_tls(&mut record.as_slice()).expect("memory");
            let heard = client.process_new_packets().expect_err("an alert");
            let expected = rustls::Error::AlertReceived(AlertDescription::InternalError);
            assert_eq!(heard, expected, "{suite:?}");
        }
    }
}
