//! Fields of X.509 that rustls does not give: the ends of certificates and of revocation lists, a
//! client's name, and which key signed a certificate.

use rustls::pki_types::SignatureVerificationAlgorithm;

/// `notAfter` of a DER certificate, in seconds of Unix time (RFC 5280, section 4.1.2.5). `None` if
/// the bytes are no certificate.
pub fn not_after(certificate: &[u8]) -> Option<i64> {
    let (_, validity, _) = element(from_validity(certificate)?)?;
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    unix_time(tag, time)
}

/// `notBefore` of a DER certificate, in seconds of Unix time. `None` if the bytes are no
/// certificate.
pub fn not_before(certificate: &[u8]) -> Option<i64> {
    let (_, validity, _) = element(from_validity(certificate)?)?;
    let (tag, time, _) = element(validity)?;
    unix_time(tag, time)
}

/// Whether the bytes are a certificate of X.509 version 1. Version 1 has no extensions.
pub(crate) fn is_version_1(certificate: &[u8]) -> bool {
    let signed = element(certificate).and_then(|(_, whole, _)| element(whole));
    let first = signed.and_then(|(_, fields, _)| element(fields));
    first.is_some_and(|(tag, version, _)| tag != VERSION || version == [2, 1, 0])
}

/// The whole SubjectPublicKeyInfo of a certificate, as DER: the public key's algorithm and bits
/// (RFC 5280, section 4.1).
pub fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let (_, _, rest) = element(from_validity(certificate)?)?;
    let (_, _, from_key) = element(rest)?;
    let (_, _, behind) = element(from_key)?;
    from_key.get(..from_key.len() - behind.len())
}

/// Whether `issuer` has signed `certificate`; both are DER. The names must match. If the issuer's
/// key is of one of the algorithms, the signature must match too.
pub(crate) fn is_issued_by(
    certificate: &[u8],
    issuer: &[u8],
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    let named = || {
        let (_, _, rest) = element(from_validity(issuer)?)?;
        let (_, subject, _) = element(rest)?;
        Some(issuer_name(certificate)? == subject)
    };
    if named() != Some(true) {
        return false;
    }
    let verified = || {
        let (_, whole, _) = element(certificate)?;
        let (_, _, rest) = element(whole)?;
        let signed = &whole[..whole.len() - rest.len()];
        let (_, algorithm, rest) = element(rest)?;
        let (_, signature, _) = element(rest)?;
        let (_, key, _) = element(public_key(issuer)?)?;
        let (_, kind, rest) = element(key)?;
        let (_, key, _) = element(rest)?;
        let mut fitting = algorithms.iter().filter(|known| {
            known.signature_alg_id().as_ref() == algorithm
                && known.public_key_alg_id().as_ref() == kind
        });
        // The first byte of a bit string is the number of unused bits in the last byte. The number
        // is 0 here.
        let (key, signature) = (key.get(1..)?, signature.get(1..)?);
        let known = fitting.next()?;
        Some(known.verify_signature(key, signed, signature).is_ok())
    };
    verified() != Some(false)
}

/// `nextUpdate` of a DER certificate revocation list, in seconds of Unix time (RFC 5280, section
/// 5.1.2.5). `None` if the list has no such field, or the bytes are no list.
pub fn next_update(list: &[u8]) -> Option<i64> {
    const INTEGER: u8 = 2;
    let (_, list, _) = element(list)?;
    let (_, mut fields, _) = element(list)?;
    // Skips the version (only present if it is not 1), signature algorithm, issuer and thisUpdate.
    let skipped = if fields.first() == Some(&INTEGER) { 4 } else { 3 };
    for _ in 0..skipped {
        (_, _, fields) = element(fields)?;
    }
    let (tag, time, _) = element(fields)?;
    unix_time(tag, time)
}

/// The common name of a DER certificate's subject (RFC 5280, section 4.1.2.6): 1 to 256 bytes of
/// UTF-8 without control characters. Of several names, the most specific is taken. `None` if there
/// is no such name.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, _, rest) = element(from_validity(certificate)?)?;
    let (_, mut names, _) = element(rest)?;
    let mut found = None;
    while !names.is_empty() {
        let (_, set, others) = element(names)?;
        names = others;
        let (_, attribute, _) = element(set)?;
        let (_, kind, value) = element(attribute)?;
        let (tag, text, _) = element(value)?;
        if kind == COMMON_NAME && matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING) {
            found = Some(std::str::from_utf8(text).ok()?);
        }
    }
    let fits = |name: &&str| (1..=256).contains(&name.len()) && !name.contains(char::is_control);
    found.filter(fits).map(str::to_owned)
}

/// id-at-commonName, 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
pub(super) const UTF8_STRING: u8 = 0x0c;
pub(super) const PRINTABLE_STRING: u8 = 0x13;
pub(super) const IA5_STRING: u8 = 0x16;

/// The fields of a certificate from its validity on.
pub(super) fn from_validity(certificate: &[u8]) -> Option<&[u8]> {
    let (_, _, rest) = element(from_issuer(certificate)?)?;
    Some(rest)
}

fn issuer_name(certificate: &[u8]) -> Option<&[u8]> {
    let (_, name, _) = element(from_issuer(certificate)?)?;
    Some(name)
}

const VERSION: u8 = 0xa0;

/// The fields of a certificate from its issuer on.
fn from_issuer(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    // Skips the version (only present if it is not 1), serial number and signature algorithm.
    let skipped = if fields.first() == Some(&VERSION) { 3 } else { 2 };
    for _ in 0..skipped {
        (_, _, fields) = element(fields)?;
    }
    Some(fields)
}

/// The first element: its tag, its content, and the bytes after the element (X.690, section 8.1).
pub(super) fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, rest) = match usize::from(*first) {
        short @ 0..0x80 => (short, rest),
        long => {
            let (len, rest) = rest.split_at_checked(long - 0x80)?;
            if len.len() > 4 {
                return None;
            }
            (len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((*tag, content, rest))
}

/// Reads `YYMMDDHHMMSSZ` (UTCTime, 1950 to 2049), or such a time with a year of four digits
/// (GeneralizedTime).
fn unix_time(tag: u8, text: &[u8]) -> Option<i64> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    let text = std::str::from_utf8(text).ok()?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let number = |at: usize| rest.get(at..at + 2)?.parse::<i64>().ok();
    let (month, day) = (number(0)?, number(2)?);
    let seconds = (number(4)? * 60 + number(6)?) * 60 + number(8)?;
    Some(days(year, month, day) * 86_400 + seconds)
}

/// Days since 1970-01-01 in the Gregorian calendar. Here years begin in March, so that the leap day
/// is the last day, and years come in cycles of 400.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_forms() {
        assert_eq!(unix_time(0x17, b"700101000000Z"), Some(0));
        assert_eq!(unix_time(0x17, b"000301000001Z"), Some(951_868_801));
        assert_eq!(unix_time(0x18, b"20380119031408Z"), Some(1 << 31));
        assert_eq!(unix_time(0x18, b"99991231235959Z"), Some(253_402_300_799));
        assert_eq!(unix_time(0x17, b"2101"), None);
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        for bytes in [&b""[..], b"\x30", b"\x30\x85\x01\x01\x01\x01\x01", b"\x30\x02\x30\x00"] {
            assert_eq!(not_after(bytes), None);
            assert_eq!(common_name(bytes), None);
            assert_eq!(next_update(bytes), None);
        }
    }
}
