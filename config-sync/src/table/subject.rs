//! Writes who a certificate is of: its subject as text, and its fingerprint.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::x509::{IA5_STRING, PRINTABLE_STRING, UTF8_STRING, element, from_validity};

/// The maximum length of a subject in bytes. A subject may have any number of names.
pub const MOST_SUBJECT: usize = 256;

/// The subject of a DER certificate as RFC 4514 writes it: the most specific name first, such as
/// `CN=alice,O=Example`. At most [`MOST_SUBJECT`] bytes: a longer text ends with dots. `None` if
/// the subject is empty, or the bytes are no certificate.
pub fn subject(certificate: &[u8]) -> Option<String> {
    let (_, _, rest) = element(from_validity(certificate)?)?;
    let (_, names, _) = element(rest)?;
    let mut text = String::new();
    for set in elements(names)?.into_iter().rev() {
        if !text.is_empty() {
            text.push(',');
        }
        for (index, attribute) in elements(set)?.into_iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            write_attribute(&mut text, attribute)?;
        }
        if text.len() > MOST_SUBJECT {
            cut(&mut text);
            break;
        }
    }
    (!text.is_empty()).then_some(text)
}

/// SHA-256 of a DER certificate: `openssl x509 -noout -fingerprint -sha256`.
pub fn fingerprint(certificate: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut hash = [0; SHA256_OUTPUT_LEN];
    hash.copy_from_slice(digest(&SHA256, certificate).as_ref());
    hash
}

/// The contents of all elements of a sequence or set.
fn elements(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (_, content, rest) = element(bytes)?;
        found.push(content);
        bytes = rest;
    }
    Some(found)
}

/// Writes a type and a value. `None`: the bytes are no attribute.
fn write_attribute(out: &mut String, attribute: &[u8]) -> Option<()> {
    let (_, kind, encoded) = element(attribute)?;
    let (tag, value, rest) = element(encoded)?;
    let word = KINDS.iter().find(|(known, _)| *known == kind).map(|(_, word)| *word);
    let is_text = matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING);
    let text = std::str::from_utf8(value).ok().filter(|_| is_text);
    match (word, text) {
        (Some(word), Some(text)) => {
            out.push_str(word);
            out.push('=');
            write_escaped(out, text);
        }
        (word, _) => {
            match word {
                Some(word) => out.push_str(word),
                None => write_dotted(out, kind)?,
            }
            out.push_str("=#");
            write_hex(out, &encoded[..encoded.len() - rest.len()]);
        }
    }
    Some(())
}

/// The types that RFC 4514 has words for (section 3).
const KINDS: [(&[u8], &str); 9] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
];

/// Escapes what would end a value, or confuse a reader (section 2.4).
fn write_escaped(out: &mut String, text: &str) {
    let last = text.chars().count().saturating_sub(1);
    for (index, char) in text.chars().enumerate() {
        match char {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', char]),
            '#' if index == 0 => out.push_str("\\#"),
            ' ' if index == 0 || index == last => out.push_str("\\ "),
            char if char.is_control() => {
                for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                    out.push('\\');
                    write_hex(out, &[byte]);
                }
            }
            char => out.push(char),
        }
    }
}

/// Writes an object identifier (X.690, section 8.19). `None`: the bytes are none.
fn write_dotted(out: &mut String, kind: &[u8]) -> Option<()> {
    let (mut number, mut is_first) = (0_u64, true);
    for byte in kind {
        number = number.checked_mul(128)? + u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        // Writing to a String cannot fail.
        if std::mem::take(&mut is_first) {
            let root = (number / 40).min(2);
            let _ = write!(out, "{root}.{}", number - 40 * root);
        } else {
            let _ = write!(out, ".{number}");
        }
        number = 0;
    }
    kind.last().filter(|byte| **byte & 0x80 == 0).map(|_| ())
}

fn write_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
}

fn cut(text: &mut String) {
    const DOTS: &str = "...";
    text.truncate(text.floor_char_boundary(MOST_SUBJECT - DOTS.len()));
    text.push_str(DOTS);
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn made(names: &[(DnType, DnValue)]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn subjects_are_written_as_rfc_4514_says() {
        let text = |text: &str| DnValue::Utf8String(text.to_owned());
        let names = [
            (DnType::CountryName, text("DE")),
            (DnType::OrganizationName, text(" Example, Inc. ")),
            (DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]), text("a@b")),
            (DnType::CommonName, text("#1\n\u{e9}")),
        ];
        let expected = "CN=\\#1\\0a\u{e9},1.2.840.113549.1.9.1=#0c03614062,\
                        O=\\ Example\\, Inc.\\ ,C=DE";
        assert_eq!(subject(&made(&names)).as_deref(), Some(expected));
        assert_eq!(subject(&made(&[])), None);
    }

    #[test]
    fn subjects_are_bounded() {
        let long = [(DnType::CommonName, DnValue::Utf8String("\u{20ac}".repeat(200)))];
        let said = subject(&made(&long)).expect("a subject");
        assert!(said.len() <= MOST_SUBJECT && said.len() > MOST_SUBJECT - 4, "{said}");
        assert!(said.starts_with("CN=\u{20ac}") && said.ends_with("\u{20ac}..."), "{said}");
    }

    #[test]
    fn fingerprints_are_sha_256_of_the_whole() {
        let hex: String = fingerprint(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        // FIPS 180-2, appendix B.1.
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
