//! The keys of TLS: how a listener terminates it, and how a backend speaks it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use toml::de::DeValue;

use crate::model::alt_name::AltName;
use crate::model::place::{At, Place};
use crate::model::tls::{Certificate, ClientAuth, MinVersion, Origination, Pem, Pin, Termination};
use crate::toml::reader::{Reader, Section, Table, any, boolean, or, string, word};

pub(crate) static TLS: Section = Section {
    name: "listeners.tls",
    keys: &[
        any("mode"),
        any("certificates"),
        any("default_certificate"),
        any("client_ca"),
        any("client_auth"),
        any("client_crl"),
        any("alpn"),
        any("min_version"),
        any("session_tickets"),
    ],
};

pub(crate) static TLS_CERTIFICATE: Section =
    Section { name: "listeners.tls.certificates", keys: &[any("cert"), any("key")] };

pub(crate) static TLS_DEFAULT: Section =
    Section { name: "listeners.tls.default_certificate", keys: &[any("cert"), any("key")] };

pub(crate) static BACKEND_TLS: Section = Section {
    name: "backends.tls",
    keys: &[
        any("server_name"),
        any("ca"),
        any("cert"),
        any("key"),
        any("subject_alt_names"),
        any("alpn"),
        any("pin_sha256"),
    ],
};

/// Reads a listener's `tls`. `None`: there is no such key, or TLS passes through.
pub(crate) fn termination<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Termination> {
    let tls = &reader.table(table, "tls", &TLS)?;
    let modes = [("Passthrough", false), ("Terminate", true)];
    if !or(reader.get(tls, "mode", word(&modes)), false) {
        let given: Vec<Place> = tls.given(reader, |_| true).map(|(_, place)| place).collect();
        for place in given.iter().filter(|place| !place.field.ends_with(".mode")) {
            reader.refuse(place, "must be with mode = \"Terminate\"; this listener passes TLS on");
        }
        return None;
    }
    let asked = Termination {
        certificates: certificates(reader, tls),
        default_certificate: default_certificate(reader, tls),
        client_ca: pem(reader, tls, "client_ca"),
        client_auth: client_auth(reader, tls),
        client_crl: pem(reader, tls, "client_crl"),
        alpn: alpn(reader, tls),
        min_version: or(reader.get(tls, "min_version", word(&VERSIONS)), MinVersion::Tls12),
        session_tickets: or(reader.get(tls, "session_tickets", boolean), true),
    };
    if !tls.has("certificates") && !tls.has("default_certificate") {
        let example = "[{ cert = \"a.pem\", key = \"a.key\" }]";
        reader.miss(tls, "certificates", &format!("such as {example}, or a default_certificate"));
    }
    Some(asked)
}

const VERSIONS: [(&str, MinVersion); 2] = [("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)];

/// Reads a backend's `tls`.
pub(crate) fn origination<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Origination> {
    let tls = &reader.table(table, "tls", &BACKEND_TLS)?;
    let what = "the name that the endpoints' certificate has";
    let server_name = reader.need(tls, "server_name", what, server_name);
    let names = reader.list(tls, "subject_alt_names", |value| AltName::read(string(value)?));
    let given = tls.has("cert") || tls.has("key");
    let certificate = if given { certificate(reader, tls) } else { None };
    let ca = pem(reader, tls, "ca");
    let alpn = if tls.has("alpn") { Some(alpn(reader, tls)) } else { None };
    let pins = reader.list(tls, "pin_sha256", |value| pin(string(value)?));
    reader.get(tls, "pin_sha256", |value| match value {
        DeValue::Array(list) if list.is_empty() => Err(
            "names no key; leave pin_sha256 out to accept every key with a certificate from `ca`"
                .to_owned(),
        ),
        _ => Ok(()),
    });
    Some(Origination {
        server_name: server_name?.value,
        ca,
        certificate,
        subject_alt_names: names.unwrap_or_default().into_iter().map(|at| at.value).collect(),
        alpn,
        pins: pins.unwrap_or_default().into_iter().map(|at| at.value).collect(),
    })
}

/// The name that is sent to an endpoint, and that the endpoint's certificate must have.
pub(crate) fn server_name(value: &DeValue<'_>) -> Result<String, String> {
    let name = string(value)?;
    match rustls::pki_types::ServerName::try_from(name) {
        Ok(_) => Ok(name.to_owned()),
        Err(_) => Err(format!("\"{name}\" is no DNS name or IP address")),
    }
}

fn pin(text: &str) -> Result<Pin, String> {
    let bytes = BASE64.decode(text).ok().and_then(|bytes| Pin::try_from(bytes).ok());
    bytes.ok_or_else(|| {
        let hex = text.chars().filter(char::is_ascii_hexdigit).count() == 64;
        let hint = if hex {
            "this looks like the fingerprint of a certificate; give the fingerprint of its public \
             key"
        } else {
            "it has 44 characters"
        };
        format!(
            "must be SHA-256 of a public key in base64, as `openssl x509 -in cert.pem -pubkey \
             -noout | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | base64` \
             prints it; {hint}"
        )
    })
}

/// The form in which [`Origination::pins`] are read.
pub(crate) fn shown(pin: &Pin) -> String {
    BASE64.encode(pin)
}

fn certificates<'t>(reader: &mut Reader<'t>, tls: &Table<'t>) -> Vec<Certificate> {
    let tables = reader.tables(tls, "certificates").into_iter();
    let read = |At { value, place }| {
        let table = reader.open(value, &TLS_CERTIFICATE, place);
        certificate(reader, &table)
    };
    tables.filter_map(read).collect()
}

fn default_certificate<'t>(reader: &mut Reader<'t>, tls: &Table<'t>) -> Option<Certificate> {
    let table = reader.table(tls, "default_certificate", &TLS_DEFAULT)?;
    certificate(reader, &table)
}

fn certificate<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Certificate> {
    reader.miss(table, "cert", "a PEM file: the certificate, and those that it leads to");
    reader.miss(table, "key", "a PEM file: the certificate's private key");
    let (cert, key) = (pem(reader, table, "cert"), pem(reader, table, "key"));
    Some(Certificate { cert: cert?, key: key? })
}

pub(crate) fn pem<'t>(reader: &mut Reader<'t>, table: &Table<'t>, key: &str) -> Option<Pem> {
    let At { value, place } = reader.get(table, key, |value| match string(value)? {
        "" => Err("names no file".to_owned()),
        path => Ok(path),
    })?;
    Some(Pem::File(At { value: place.path(value), place }))
}

fn client_auth<'t>(reader: &mut Reader<'t>, tls: &Table<'t>) -> ClientAuth {
    let words = [("required", ClientAuth::Required), ("optional", ClientAuth::Optional)];
    let asked = reader.get(tls, "client_auth", word(&words));
    if asked.is_some() {
        reader.miss(
            tls,
            "client_ca",
            "name the file with the authorities that issue clients' certificates",
        );
    }
    if tls.has("client_crl") {
        reader.miss(
            tls,
            "client_ca",
            "a list of revoked certificates needs the authorities that issue clients' certificates",
        );
    }
    // An operator who names a CA wants certificates from the CA, so client certificates become
    // required.
    let default = if tls.has("client_ca") { ClientAuth::Required } else { ClientAuth::Off };
    or(asked, default)
}

/// The name of a protocol (ALPN).
pub(crate) fn protocol(value: &DeValue<'_>) -> Result<String, String> {
    match string(value)? {
        name if (1..=255).contains(&name.len()) => Ok(name.to_owned()),
        _ => Err("must be 1 to 255 bytes, such as \"h2\" or \"postgresql\"".to_owned()),
    }
}

fn alpn<'t>(reader: &mut Reader<'t>, tls: &Table<'t>) -> Vec<String> {
    let names = reader.list(tls, "alpn", protocol);
    names.unwrap_or_default().into_iter().map(|at| at.value).collect()
}
