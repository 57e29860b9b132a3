//! Keys of session tickets. The keys outlive a table, and the process.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;

use crate::compile::tls::ticketer::{SavedKeys, Ticketer};
use crate::model::tls::ClientAuth;

/// Keys of session tickets by listener. The keys outlive a table, so that sessions can be resumed
/// after certificates were renewed. The keys do not outlive a change of which clients may come in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tickets {
    keys: BTreeMap<String, (Admission, Arc<Ticketer>)>,
    /// Keys of the process before, until their listeners take them.
    inherited: BTreeMap<String, SavedTickets>,
}

/// Which clients may come in. A client that was admitted under one value must not resume under
/// another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) client_auth: ClientAuth,
    pub(crate) ca: Vec<u8>,
    pub(crate) crl: Vec<u8>,
}

/// The keys of a listener's tickets, for another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedTickets {
    pub listener: String,
    /// A hash of which clients may come in.
    pub admission: [u8; 32],
    pub keys: SavedKeys,
}

impl Tickets {
    /// Forgets the keys of listeners that no longer exist, and those of the process before that no
    /// listener of the first table has taken.
    pub(crate) fn retain(&mut self, is_listener: impl Fn(&str) -> bool) {
        self.inherited.clear();
        self.keys.retain(|listener, _| is_listener(listener));
    }

    /// The keys of a listener. The listener keeps its keys as long as the same clients may come in.
    pub(crate) fn of(&mut self, listener: &str, admission: Admission) -> Arc<dyn ProducesTickets> {
        if let Some((before, keys)) = self.keys.get(listener)
            && *before == admission
        {
            return Arc::<Ticketer>::clone(keys);
        }
        let now = UnixTime::now().as_secs();
        let inherited = self.inherited.remove(listener);
        let inherited = inherited.filter(|saved| saved.admission == admission.hash());
        let keys = match inherited.and_then(|saved| Ticketer::of(&saved.keys, now).ok()) {
            Some(keys) => keys,
            None => Ticketer::new(now).expect("the system has randomness"),
        };
        let keys = Arc::new(keys);
        self.keys.insert(listener.to_owned(), (admission, Arc::clone(&keys)));
        keys
    }

    /// Takes the keys of the process before.
    pub(crate) fn inherit(&mut self, all: Vec<SavedTickets>) {
        self.inherited = all.into_iter().map(|saved| (saved.listener.clone(), saved)).collect();
    }

    /// The keys, for another process.
    pub(crate) fn saved(&self) -> Vec<SavedTickets> {
        let save = |(listener, (admission, keys)): (&String, &(Admission, Arc<Ticketer>))| {
            let (listener, admission) = (listener.clone(), admission.hash());
            SavedTickets { listener, admission, keys: keys.saved() }
        };
        self.keys.iter().map(save).collect()
    }
}

impl Admission {
    fn hash(&self) -> [u8; 32] {
        let Self { client_auth, ca, crl } = self;
        let mut context = Context::new(&SHA256);
        let client_auth = match client_auth {
            ClientAuth::Off => b"off".as_slice(),
            ClientAuth::Optional => b"optional",
            ClientAuth::Required => b"required",
        };
        for part in [client_auth, ca, crl] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(ca: &[u8], crl: &[u8]) -> Admission {
        let (ca, crl) = (ca.to_vec(), crl.to_vec());
        Admission { client_auth: ClientAuth::Required, ca, crl }
    }

    #[test]
    fn keys_are_inherited_only_by_a_listener_that_lets_the_same_clients_in() {
        let mut before = Tickets::default();
        let ticket = before.of("l", admission(b"ca", b"")).encrypt(b"state").expect("a ticket");
        let reads = |name: &str, admission: Admission| {
            let mut after = Tickets::default();
            after.inherit(before.saved());
            after.of(name, admission).decrypt(&ticket).is_some()
        };
        assert!(reads("l", admission(b"ca", b"")));
        assert!(!reads("l", admission(b"c", b"a")), "other clients");
        assert!(!reads("l", admission(b"other", b"")));
        let off = Admission { client_auth: ClientAuth::Off, ..admission(b"ca", b"") };
        assert!(!reads("l", off));
        assert!(!reads("other", admission(b"ca", b"")));
    }

    #[test]
    fn keys_that_no_listener_takes_are_forgotten() {
        let mut before = Tickets::default();
        let ticket = before.of("l", admission(b"ca", b"")).encrypt(b"state").expect("a ticket");
        before.of("gone", admission(b"ca", b""));
        let mut after = Tickets::default();
        after.inherit(before.saved());
        after.of("l", admission(b"ca", b""));
        after.retain(|listener| listener == "l");
        assert!(after.inherited.is_empty());
        let kept = after.of("l", admission(b"ca", b""));
        assert!(kept.decrypt(&ticket).is_some(), "the listener has taken its keys");
    }
}
