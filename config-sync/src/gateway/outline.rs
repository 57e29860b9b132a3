//! What a configuration promises, in a few characters: replicas compare it.

use std::fmt::{self, Write as _};

use crate::config::{Config, Pem, Termination};

/// Of the listeners, their certificates, and their routes with the names and weights of backends:
/// what the statuses speak of. Not of endpoints, which come and go many times a second, and which
/// differ between zones.
pub fn outline(config: &Config) -> String {
    let mut hash = Fnv(OFFSET);
    for listener in &config.listeners {
        let (name, address) = (&listener.name.value, listener.address.value);
        let hostname = listener.hostname.as_ref().map(|hostname| &hostname.value);
        hash.add(&(name, listener.protocol, address, hostname, &listener.tls));
        for pem in listener.tls.iter().flat_map(inline) {
            hash.bytes(pem);
        }
    }
    for route in &config.routes {
        let listeners: Vec<_> = route.listeners.iter().map(|at| &at.value).collect();
        let hostnames: Vec<_> = route.hostnames.iter().map(|at| &at.value).collect();
        let backends: Vec<_> =
            route.backends.iter().map(|used| (&used.name.value, used.weight)).collect();
        hash.add(&(&route.name.value, listeners, hostnames, backends));
    }
    format!("{:032x}", hash.0)
}

/// What came from Secrets and ConfigMaps. Files have no place in a cluster's configuration.
fn inline(tls: &Termination) -> impl Iterator<Item = &[u8]> {
    let pairs = tls.certificates.iter().chain(&tls.default_certificate);
    let pems = pairs.flat_map(|pair| [&pair.cert, &pair.key]);
    pems.chain(&tls.client_ca).chain(&tls.client_crl).filter_map(|pem| match pem {
        Pem::Inline { bytes, .. } => Some(&**bytes),
        Pem::File(_) => None,
    })
}

/// FNV-1a of 128 bits (draft-eastlake-fnv): the same on every machine, as hashes made for tables
/// are not. Nobody gains by a collision: it would only make a status come early.
struct Fnv(u128);

const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

impl Fnv {
    fn add(&mut self, value: &impl fmt::Debug) {
        // Writing to it can't fail.
        _ = writeln!(self, "{value:?}");
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn of(text: &str) -> String {
        let text = text.replace(';', "\n");
        outline(&parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}")))
    }

    #[test]
    fn endpoints_are_no_part_of_it_but_listeners_and_weights_are() {
        let whole = |port: u16, weight: u32, endpoint: u16| {
            of(&format!(
                "[[listeners]];name = \"l\";protocol = \"TCP\";address = \"127.0.0.1:{port}\"\n\
                 [[routes]];name = \"r\";listeners = [\"l\"]\n\
                 backends = [{{ name = \"b\", weight = {weight} }}]\n\
                 [[backends]];name = \"b\";endpoints = [\"127.0.0.1:{endpoint}\"]\n"
            ))
        };
        let base = whole(80, 1, 9000);
        assert_eq!(base, whole(80, 1, 9001));
        assert_ne!(base, whole(81, 1, 9000));
        assert_ne!(base, whole(80, 2, 9000));
    }

    #[test]
    fn hash_is_fnv_1a() {
        let mut hash = Fnv(OFFSET);
        hash.bytes(b"a");
        assert_eq!(hash.0, 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}
