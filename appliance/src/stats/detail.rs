//! Explains a reason to people: holds the words of a peer, of TLS or of the kernel.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use rustls::{CertificateError, Error, PeerIncompatible};

use crate::contract::Why;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// At most [`LONGEST`] bytes. A peer may have chosen these bytes, so each writer must escape
    /// them.
    Said(Cow<'static, str>),
    /// The errno of the kernel, where no other word exists.
    Errno(i32),
}

/// The maximum length of a detail in bytes. A certificate may have any number of names.
pub const LONGEST: usize = 200;

impl From<&'static str> for Detail {
    fn from(text: &'static str) -> Self {
        Self::Said(Cow::Borrowed(text))
    }
}

impl Detail {
    /// Describes the failure of a TLS connection.
    pub fn tls(error: &Error) -> Self {
        use CertificateError as Bad;
        let text = match error {
            Error::NoCertificatesPresented => "no certificate was sent",
            Error::NoApplicationProtocol => "ALPN: no protocol in common",
            Error::DecryptError => "a record that cannot be decrypted",
            Error::PeerSentOversizedRecord => "malformed: a record over 16 KiB",
            Error::InvalidCertificate(Bad::UnknownIssuer) => "certificate: unknown issuer",
            Error::InvalidCertificate(Bad::Revoked) => "certificate: revoked",
            Error::InvalidCertificate(Bad::BadSignature) => {
                "certificate: its signature is not its issuer's"
            }
            Error::InvalidCertificate(Bad::NotValidForName) => "certificate: of another name",
            Error::InvalidCertificate(Bad::Expired) => "certificate: expired",
            Error::InvalidCertificate(Bad::NotValidYet) => "certificate: not valid yet",
            Error::InvalidCertificate(Bad::BadEncoding) => "certificate: malformed",
            Error::PeerIncompatible(why) => match incompatible(why) {
                Some(text) => text,
                None => return Self::of(format_args!("no way to agree: {why:?}")),
            },
            Error::InvalidCertificate(
                why @ (Bad::NotValidForNameContext { .. }
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYetContext { .. }
                | Bad::ExpiredRevocationListContext { .. }),
            ) => return Self::of(format_args!("{why}")),
            Error::InvalidCertificate(why) => return Self::of(format_args!("certificate: {why}")),
            Error::AlertReceived(alert) => {
                return Self::of(format_args!("alert received: {alert:?}"));
            }
            Error::InvalidMessage(what) => return Self::of(format_args!("malformed: {what:?}")),
            Error::InappropriateMessage { got_type: what, .. } => {
                return Self::of(format_args!("malformed: {what:?} is not what comes here"));
            }
            Error::InappropriateHandshakeMessage { got_type: what, .. } => {
                return Self::of(format_args!("malformed: {what:?} is not what comes here"));
            }
            other => return Self::of(format_args!("{other}")),
        };
        text.into()
    }

    /// Describes an error of the kernel.
    pub fn why(why: Why) -> Self {
        match why {
            Why::Refused => "ECONNREFUSED",
            Why::Reset => "ECONNRESET",
            Why::TimedOut => "ETIMEDOUT",
            Why::NoPorts => "no source port or address",
            Why::NoFiles => "no file descriptor",
            Why::NoMemory => "no memory",
            Why::Blocked => "EAGAIN",
            Why::TooBig => "EMSGSIZE",
            Why::BadSource => "EINVAL",
            Why::Abandoned => "given up",
            Why::Unreachable(errno) | Why::Other(errno) => return Self::Errno(errno),
        }
        .into()
    }

    /// Describes bytes that are not what they must be. `at`: how many bytes were right.
    pub fn malformed(why: &'static str, at: usize) -> Self {
        Self::of(format_args!("malformed at byte {at}: {why}"))
    }

    fn of(text: fmt::Arguments<'_>) -> Self {
        let mut bounded = Bounded(String::new());
        // `write_fmt` fails where the text is full. The dots then show that text is missing.
        let _ = bounded.write_fmt(text);
        Self::Said(Cow::Owned(bounded.0))
    }
}

fn incompatible(why: &PeerIncompatible) -> Option<&'static str> {
    use PeerIncompatible as P;
    Some(match why {
        P::NoCipherSuitesInCommon => "no cipher suite in common",
        P::NoKxGroupsInCommon => "no key exchange group in common",
        P::NoSignatureSchemesInCommon | P::NoCertificateRequestSignatureSchemesInCommon => {
            "no signature scheme in common"
        }
        P::ServerDoesNotSupportTls12Or13
        | P::ServerTlsVersionIsDisabledByOurConfig
        | P::SupportedVersionsExtensionRequired
        | P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled => "no version in common",
        _ => return None,
    })
}

struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const DOTS: &str = "...";
        if self.0.len() + text.len() <= LONGEST {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.extend(text.chars().take(LONGEST));
        while self.0.len() > LONGEST - DOTS.len() {
            self.0.pop();
        }
        self.0.push_str(DOTS);
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_bounded() {
        let said = |text: &str| match Detail::of(format_args!("{text}{text}")) {
            Detail::Said(said) => said.into_owned(),
            Detail::Errno(_) => unreachable!("a text"),
        };
        let half = "a".repeat(LONGEST / 2);
        assert_eq!(said(&half), half.repeat(2));
        for text in ["a".repeat(LONGEST - 1), "\u{20ac}".repeat(LONGEST), "\u{e9}".repeat(90)] {
            let said = said(&text);
            assert!(said.len() <= LONGEST && said.len() > LONGEST - 8, "{said}");
            assert!(text.repeat(2).starts_with(said.strip_suffix("...").expect("dots")), "{said}");
        }
    }
}
