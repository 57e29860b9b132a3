//! The fields of log and API that are about a client's TLS connection that ends here.

use std::borrow::Cow;
use std::io::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use crate::stats::tls_facts::TlsFacts;

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct TlsFields<'a> {
    tls_version: &'static str,
    tls_cipher: &'static str,
    /// The protocol that was agreed on. The client has chosen the bytes, so each writer must escape
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    alpn: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_subject: Option<Cow<'a, str>>,
    /// SHA-256 of the client's certificate: 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

impl<'a> TlsFields<'a> {
    pub fn of(facts: &'a TlsFacts) -> Self {
        let certificate = facts.certificate.as_ref();
        let subject = certificate.and_then(|certificate| certificate.subject.as_deref());
        Self {
            tls_version: facts.version,
            tls_cipher: facts.cipher,
            alpn: facts.alpn.as_deref().map(String::from_utf8_lossy),
            client_subject: subject.map(Cow::Borrowed),
            fingerprint: certificate.map(|certificate| hex(&certificate.fingerprint)),
        }
    }

    pub fn into_owned(self) -> TlsFields<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        TlsFields {
            tls_version: self.tls_version,
            tls_cipher: self.tls_cipher,
            alpn: self.alpn.map(owned),
            client_subject: self.client_subject.map(owned),
            fingerprint: self.fingerprint,
        }
    }

    /// Writes ` key=value` for each field with a value.
    pub fn text(&self, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        let _ = write!(out, " tls_version={} tls_cipher={}", self.tls_version, self.tls_cipher);
        if let Some(alpn) = &self.alpn {
            let _ = write!(out, " alpn={alpn:?}");
        }
        if let Some(subject) = &self.client_subject {
            let _ = write!(out, " client_subject={subject:?}");
        }
        if let Some(fingerprint) = &self.fingerprint {
            let _ = write!(out, " fingerprint={fingerprint}");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::stats::tls_facts::CertificateFacts;

    #[test]
    fn fields_are_the_agreed_ones() {
        let certificate =
            CertificateFacts { subject: Some("CN=\"me\"".into()), fingerprint: [0xab; 32] };
        let facts = TlsFacts {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            alpn: Some(Box::from(&b"h2\n\xff"[..])),
            certificate: Some(Arc::new(certificate)),
        };
        let fields = TlsFields::of(&facts);
        let fingerprint = "ab".repeat(32);
        assert_eq!(
            serde_json::to_value(&fields).expect("JSON"),
            serde_json::json!({
                "tls_version": "TLSv1.3", "tls_cipher": "TLS_AES_128_GCM_SHA256",
                "alpn": "h2\n\u{fffd}", "client_subject": "CN=\"me\"", "fingerprint": fingerprint,
            })
        );
        let mut text = Vec::new();
        fields.text(&mut text);
        let expected = format!(
            " tls_version=TLSv1.3 tls_cipher=TLS_AES_128_GCM_SHA256 alpn=\"h2\\n\u{fffd}\" \
             client_subject=\"CN=\\\"me\\\"\" fingerprint={fingerprint}"
        );
        assert_eq!(String::from_utf8(text).expect("text"), expected);
    }
}
