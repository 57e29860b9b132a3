//! A short summary of a configuration's promises, which replicas compare.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use crate::model::admission::{Admission, Ranges};
use crate::model::config::Config;
use crate::model::place::At;
use crate::model::tls::{Origination, Pem, Termination};
use crate::table::fnv::Fnv;

/// A hash for each part of the listeners. Two replicas with equal hashes of a part serve the part's
/// listeners alike. There are parts, and not one hash of all, so that a Gateway with routes that
/// change all the time holds up no other Gateway's status. There are few parts, and not one for
/// each Gateway, so that the outline fits into an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline(Vec<u64>);

const PARTS: usize = 256;

/// Hashes the facts that the statuses are about: the listeners, their clients, their certificates,
/// and their routes with the names, weights and encryption of backends. Endpoints are left out,
/// because they change many times a second and differ between zones.
pub fn outline(config: &Config) -> Outline {
    let mut parts = vec![Hash(Fnv::new()); PARTS];
    for listener in &config.listeners {
        let hash = &mut parts[part(&listener.name.value)];
        let addresses: Vec<_> = listener.addresses.iter().map(|at| &at.value).collect();
        let hostnames: Vec<_> = listener.hostnames.iter().map(|at| &at.value).collect();
        let name = &listener.name.value;
        hash.add(&(name, listener.protocol, addresses, hostnames, &listener.tls));
        hash.add(&admission(&listener.admission));
        listener.tls.iter().flat_map(shown).for_each(|pem| hash.pem(pem));
    }
    let mut encrypted: Vec<_> = config.backends.iter().collect();
    encrypted.retain(|backend| backend.tls.is_some());
    encrypted.sort_by_key(|backend| &backend.name.value);
    for route in &config.routes {
        let listeners: BTreeSet<_> = route.listeners.iter().map(|at| &at.value).collect();
        let hostnames: Vec<_> = route.hostnames.iter().map(|at| &at.value).collect();
        let backends: Vec<_> =
            route.backends.iter().map(|used| (&used.name.value, used.weight)).collect();
        let mut hash = Hash(Fnv::new());
        hash.add(&(&route.name.value, &listeners, hostnames, &backends));
        let alpn: Vec<_> = route.alpn.iter().map(|at| &at.value).collect();
        hash.add(&(route.balance, route.on_unavailable, alpn));
        hash.add(&admission(&route.admission));
        for (name, _) in backends {
            let at = encrypted.binary_search_by_key(&name, |backend| &backend.name.value);
            let Some(tls) = at.ok().and_then(|at| encrypted[at].tls.as_ref()) else { continue };
            hash.add(tls);
            trusted(tls).for_each(|pem| hash.pem(pem));
        }
        let parts_of: BTreeSet<_> = listeners.iter().map(|name| part(name)).collect();
        parts_of.into_iter().for_each(|part| parts[part].add(&hash.0.value()));
    }
    Outline(parts.into_iter().map(|hash| hash.0.value()).collect())
}

/// The part of a listener, by its name in the configuration.
pub(in crate::gateway) fn part(listener: &str) -> usize {
    usize::try_from(Fnv::of(listener) % PARTS as u64).expect("less than there are parts")
}

impl Outline {
    /// The parts that differ. All parts differ if `other` is `None`.
    pub(in crate::gateway) fn differs(&self, other: Option<&Self>) -> BTreeSet<usize> {
        let other = other.map_or(&[][..], |other| &other.0);
        (0..PARTS).filter(|at| self.0.get(*at) != other.get(*at)).collect()
    }

    /// Reads the text that [`fmt::Display`] writes.
    pub(in crate::gateway) fn read(text: &str) -> Option<Self> {
        let digits = text.as_bytes().chunks(16).map(|digits| {
            let digits = str::from_utf8(digits).ok()?;
            u64::from_str_radix(digits, 16).ok()
        });
        digits.collect::<Option<Vec<_>>>().filter(|parts| parts.len() == PARTS).map(Self)
    }
}

impl fmt::Display for Outline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| write!(f, "{part:016x}"))
    }
}

/// Leaves out the places, which differ between any two files.
fn admission(admission: &Admission) -> impl fmt::Debug {
    let values =
        |list: &Vec<At<Ranges>>| list.iter().map(|at| at.value.clone()).collect::<Vec<_>>();
    (admission.allow.as_ref().map(values), values(&admission.deny))
}

/// The certificates that clients get, and those that verify client certificates. Private keys are
/// left out, because a Lease must reveal nothing about them. A new key always has a new
/// certificate.
fn shown(tls: &Termination) -> impl Iterator<Item = &Pem> {
    let pairs = tls.certificates.iter().chain(&tls.default_certificate);
    pairs.map(|pair| &pair.cert).chain(&tls.client_ca).chain(&tls.client_crl)
}

fn trusted(tls: &Origination) -> impl Iterator<Item = &Pem> {
    tls.certificate.iter().map(|pair| &pair.cert).chain(&tls.ca)
}

/// A hash of one part. Nobody gains by a collision, which would only make a status come early.
#[derive(Clone)]
struct Hash(Fnv);

impl Hash {
    fn add(&mut self, value: &impl fmt::Debug) {
        // A write to the hash can't fail.
        _ = writeln!(self, "{value:?}");
    }

    /// Adds a PEM from a Secret or ConfigMap. A cluster's configuration names no files.
    fn pem(&mut self, pem: &Pem) {
        if let Pem::Inline { bytes, .. } = pem {
            self.0.add(bytes);
        }
    }
}

impl fmt::Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.add(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::parse;

    fn of(text: &str) -> Outline {
        let text = text.replace(';', "\n");
        outline(&parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}")))
    }

    fn whole(listener: &str, weight: u32, backend: &str) -> Outline {
        of(&format!(
            "[[listeners]];name = \"other\";protocol = \"TCP\";address = \"127.0.0.1:7\"\n\
             [[listeners]];name = \"l\";protocol = \"TCP\";{listener}\n\
             [[routes]];name = \"r\";listeners = [\"l\"]\n\
             backends = [{{ name = \"b\", weight = {weight} }}]\n\
             [[backends]];name = \"b\";{backend}\n"
        ))
    }

    #[test]
    fn endpoints_are_no_part_of_it_but_what_statuses_speak_of_is() {
        let (listener, backend) = ("address = \"127.0.0.1:80\"", "endpoints = [\"10.0.0.1:1\"]");
        let base = whole(listener, 1, backend);
        assert_eq!(base, whole(listener, 1, "endpoints = [\"10.0.0.1:2\"]"));
        let own = BTreeSet::from([part("l")]);
        let differs = |other: &Outline| base.differs(Some(other));
        assert_eq!(differs(&whole("address = \"127.0.0.1:81\"", 1, backend)), own);
        assert_eq!(differs(&whole(listener, 2, backend)), own, "and no other listener's");
        let denied = format!("{listener};deny = [\"10.0.0.0/8\"]");
        assert_eq!(differs(&whole(&denied, 1, backend)), own);
        let encrypted = format!("{backend};tls = {{ server_name = \"db\" }}");
        assert_eq!(differs(&whole(listener, 1, &encrypted)), own);
        assert_eq!(base.differs(None).len(), PARTS);
    }

    #[test]
    fn certificates_count_and_keys_do_not() {
        let with = |cert: &str, key: &str| {
            let text = "[[listeners]];name = \"l\";protocol = \"TLS\";address = \"127.0.0.1:443\"\n\
                        tls.mode = \"Terminate\"\n\
                        tls.certificates = [{ cert = \"c\", key = \"k\" }]";
            let mut config = parse("test.toml", &text.replace(';', "\n")).expect("it is right");
            let tls = config.listeners[0].tls.as_mut().expect("it is terminated");
            let pem =
                |bytes: &str| Pem::Inline { name: "s".into(), bytes: bytes.as_bytes().into() };
            tls.certificates[0].cert = pem(cert);
            tls.certificates[0].key = pem(key);
            outline(&config)
        };
        assert_ne!(with("a", "k"), with("b", "k"));
        assert_eq!(with("a", "k"), with("a", "l"));
    }

    #[test]
    fn what_is_written_can_be_read() {
        let outline = of("");
        assert_eq!(Outline::read(&outline.to_string()), Some(outline));
        assert_eq!(Outline::read("0123"), None);
        assert_eq!(Outline::read(""), None);
    }
}
