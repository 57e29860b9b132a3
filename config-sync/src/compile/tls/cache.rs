//! Keeps TLS parts from table to table. A part is kept if the configuration asks for the part in
//! the same words, and the files have the same contents.
//!
//! A cluster's endpoints change many times a minute, but its certificates do not. A kept originator
//! also keeps the sessions that endpoints let it resume.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::compile::tls::expiry::Expiry;
use crate::compile::tls::pem::read;
use crate::model::place::Problem;
use crate::model::tls::{Origination, Pem, Termination};
use crate::table::routing::Starttls;
use crate::table::terminator::{Originator, Terminator};

/// The TLS parts of the latest table.
#[derive(Clone, Default)]
pub(crate) struct Cache {
    /// A terminator is made of the listener's `tls`, `starttls` and `default_hostname`.
    pub(crate) terminators: Kept<(Termination, Option<Starttls>, Option<String>), Terminator>,
    pub(crate) originators: Kept<Origination, Originator>,
    /// For health checks that verify otherwise than sessions.
    pub(crate) checks: Kept<Origination, Originator>,
}

/// The key is the name of the listener or backend.
pub(crate) struct Kept<A, T>(BTreeMap<String, Arc<Made<A, T>>>);

pub(crate) struct Made<A, T> {
    pub(crate) asked: A,
    pub(crate) contents: Option<Contents>,
    pub(crate) made: Arc<T>,
    pub(crate) expiries: Vec<Expiry>,
    pub(crate) doubts: Vec<Problem>,
}

pub(crate) type Contents = Vec<Vec<u8>>;

impl<A: PartialEq, T> Kept<A, T> {
    pub(crate) fn find(
        &self,
        owner: &str,
        asked: &A,
        contents: Option<&Contents>,
    ) -> Option<&Arc<Made<A, T>>> {
        let same = |made: &&Arc<Made<A, T>>| {
            made.asked == *asked && contents.is_some() && made.contents.as_ref() == contents
        };
        self.0.get(owner).filter(same)
    }

    pub(crate) fn insert(&mut self, owner: &str, made: Arc<Made<A, T>>) {
        self.0.insert(owner.to_owned(), made);
    }
}

/// The contents of the files among `pems`. `None`: a file can't be read.
pub(crate) fn contents<'p>(pems: impl Iterator<Item = &'p Pem>) -> Option<Contents> {
    let files = pems.filter(|pem| matches!(pem, Pem::File(_)));
    files.map(|pem| read(pem).ok()).collect()
}

impl<A, T> Clone for Kept<A, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A, T> Default for Kept<A, T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Leaves out the keys.
impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (terminators, originators) = (self.terminators.0.keys(), self.originators.0.keys());
        f.debug_list().entries(terminators.chain(originators).chain(self.checks.0.keys())).finish()
    }
}
