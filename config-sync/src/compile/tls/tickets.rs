//! Keys of session tickets, which outlive a table.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::ProducesTickets;

use crate::model::tls::ClientAuth;

/// Keys of session tickets by listener. They outlive a table, so that sessions can be resumed after
/// certificates were renewed; but not a change of who may come in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tickets(BTreeMap<String, (Admission, Arc<dyn ProducesTickets>)>);

/// Who may come in: clients admitted by one must not resume under another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) client_auth: ClientAuth,
    pub(crate) ca: Vec<u8>,
    pub(crate) crl: Vec<u8>,
}

impl Tickets {
    /// Forgets the keys of listeners that are no more.
    pub(crate) fn retain(&mut self, is_listener: impl Fn(&str) -> bool) {
        self.0.retain(|listener, _| is_listener(listener));
    }

    /// The keys of a listener: those that it had, if the same clients may come in.
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
