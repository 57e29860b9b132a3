//! Names that an endpoint's certificate may have. The certificate must have one of the names that
//! the configuration gives, whatever name the TLS handshake asks for (Gateway API,
//! `BackendTLSPolicy.validation.subjectAltNames`).

use std::fmt;

use rustls::pki_types::{DnsName, IpAddr, ServerName};

/// A name that an endpoint's certificate may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AltName {
    /// A DNS name or an IP address. A wildcard of the certificate matches a DNS name too.
    Server(ServerName<'static>),
    /// A wildcard such as `*.example.com`, in lower case. The certificate must have exactly this
    /// wildcard.
    Wildcard(String),
    Uri(String),
}

impl AltName {
    /// # Errors
    /// The text is neither a host name, an IP address nor a URI. The caller puts the name of the
    /// field before the message.
    pub fn read(text: &str) -> Result<Self, String> {
        if let Ok(address) = IpAddr::try_from(text) {
            return Ok(Self::Server(ServerName::IpAddress(address)));
        }
        let name = if text.contains("://") { Self::uri(text) } else { Self::hostname(text) };
        name.map_err(|_| {
            format!(
                "\"{text}\" is none of these: a DNS name, of which the first label may be *, an IP \
                 address, a URI such as spiffe://example.com/db"
            )
        })
    }

    pub(crate) fn hostname(text: &str) -> Result<Self, String> {
        let lower = text.to_lowercase();
        let name = DnsName::try_from(lower.strip_prefix("*.").unwrap_or(&lower).to_owned());
        match name {
            Ok(_) if lower.starts_with("*.") => Ok(Self::Wildcard(lower)),
            Ok(name) => Ok(Self::Server(ServerName::DnsName(name))),
            Err(_) => Err(format!("\"{text}\" is no DNS name, of which the first label may be *")),
        }
    }

    /// Takes a URI with a scheme and an authority (RFC 3986, section 3). Certificates have no other
    /// URIs.
    pub(crate) fn uri(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let whole = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(of_scheme)
            && !rest.is_empty()
            && rest.chars().all(|c| c.is_ascii_graphic());
        if !whole {
            return Err(format!("\"{text}\" is no URI such as spiffe://example.com/db"));
        }
        Ok(Self::Uri(text.to_owned()))
    }

    pub(crate) fn is_of(&self, certificate: &webpki::EndEntityCert<'_>) -> bool {
        match self {
            Self::Server(name) => certificate.verify_is_valid_for_subject_name(name).is_ok(),
            Self::Wildcard(name) => {
                certificate.valid_dns_names().any(|own| own.eq_ignore_ascii_case(name))
            }
            Self::Uri(uri) => certificate.valid_uri_names().any(|own| own == uri),
        }
    }
}

/// Writes the form that [`AltName::read`] reads.
impl fmt::Display for AltName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => f.write_str(&name.to_str()),
            Self::Wildcard(text) | Self::Uri(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    /// The certificate's names: `*.Example.com`, `example.com`, `192.0.2.1` and
    /// `spiffe://example.com/db`.
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBuzCCAWGgAwIBAgIUcWAXw3SI0KeqWK1AYIsAqljigbcwCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDc2FuMCAXDTI2MTEyNTIwMDgzM1oYDzIxMjYxMTAxMjAwODMz
WjAOMQwwCgYDVQQDDANzYW4wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARrthh5
W5P54JzFi5huHI4SVBS6C9bE5UkkpiNqNuifcQihPjti1YaLDSbu0+5O3+MblGFI
q0KI4cJlGetofJa2o4GaMIGXMB0GA1UdDgQWBBTEF5X05hWWcHB4nPyq9Orl0dEB
GjAfBgNVHSMEGDAWgBTEF5X05hWWcHB4nPyq9Orl0dEBGjAPBgNVHRMBAf8EBTAD
AQH/MEQGA1UdEQQ9MDuCDSouRXhhbXBsZS5jb22CC2V4YW1wbGUuY29thwTAAAIB
hhdzcGlmZmU6Ly9leGFtcGxlLmNvbS9kYjAKBggqhkjOPQQDAgNIADBFAiEAjjDY
VjBMW5qDYL31skNS43YiEi6IFvYdnfXSbwJ8ki4CIBvyAgmu20CA1PXmPGdDbEAf
0YUpp47knHV+7ipj2fLk
-----END CERTIFICATE-----
";

    fn has(name: &str) -> bool {
        let der = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).expect("PEM");
        let certificate = webpki::EndEntityCert::try_from(&der).expect("a certificate");
        AltName::read(name).expect("a name").is_of(&certificate)
    }

    #[test]
    fn a_certificate_has_the_names_that_stand_in_it() {
        for name in ["example.com", "EXAMPLE.com", "a.example.com", "192.0.2.1"] {
            assert!(has(name), "{name}");
        }
        assert!(has("*.example.com") && has("*.EXAMPLE.com") && has("spiffe://example.com/db"));
        for name in ["other.com", "a.b.example.com", "192.0.2.2", "2001:db8::1"] {
            assert!(!has(name), "{name}");
        }
        // A wildcard does not ask for the names that the wildcard would match.
        assert!(!has("*.other.com") && !has("*.a.example.com") && !has("*.com"));
        assert!(!has("spiffe://example.com/other") && !has("spiffe://EXAMPLE.com/db"));
    }

    #[test]
    fn names_are_read_and_shown_again() {
        for name in ["a.example.com", "*.example.com", "192.0.2.1", "2001:db8::1", "spiffe://x/y"] {
            assert_eq!(AltName::read(name).map(|name| name.to_string()), Ok(name.to_owned()));
        }
        for name in
            ["", "*", "a.*.com", "*.*.com", "a b", "a:80", "://x", "1a://x", "s://", "s://a b"]
        {
            assert!(AltName::read(name).is_err(), "{name}");
        }
    }
}
