//! Keys of session tickets. The keys outlive a table.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::ProducesTickets;

use crate::model::tls::ClientAuth;

/// Keys of session tickets by listener. The keys outlive a table, so that sessions can be resumed
/// after certificates were renewed. The keys do not outlive a change of which clients may come in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tickets(BTreeMap<String, (Admission, Arc<dyn ProducesTickets>)>);

/// Which clients may come in. A client that was admitted under one value must not resume under
/// another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) client_auth: ClientAuth,
    pub(crate) ca: Vec<u8>,
    pub(crate) crl: Vec<u8>,
}

impl Tickets {
    /// Forgets the keys of listeners that no longer exist.
    pub(crate) fn retain(&mut self, is_listener: impl Fn(&str) -> bool) {
        self.0.retain(|listener, _| is_listener(listener));
    }

    /// The keys of a listener. The listener keeps its keys as long as the same clients may come in.
    pub(crate) fn of(&mut self, listener: &str, admission: Admission) -> Arc<dyn ProducesTickets> {
        if let Some((before, keys)) = self.0.get(listener)
            && *before == admission
        {
            return Arc::clone(keys);
        }
        let keys = aws_lc_rs::Ticketer::new().expect("the system has randomness");
        self.0.insert(listener.to_owned(), (admission, Arc::clone(&keys)));
        keys
    }
}
