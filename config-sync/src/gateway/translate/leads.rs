//! The routes by what leads to them.

use std::collections::BTreeMap;

use crate::gateway::translate::index::{ObjectKey, key};
use crate::gateway::translate::routes::Routed;

/// The routes by the ways in which policies name them: by kind and name, and by backend.
pub(super) struct Leads<'o> {
    pub(super) routes: BTreeMap<(&'static str, ObjectKey<'o>), usize>,
    /// By the kind of the backend (Service or XBackend), and its name.
    pub(super) to_backends: BTreeMap<(&'static str, ObjectKey<'o>), Vec<usize>>,
}

impl<'o> Leads<'o> {
    pub(super) fn of(all: &[Routed<'o>]) -> Self {
        let (mut routes, mut to_backends) = (BTreeMap::new(), BTreeMap::new());
        for (at, route) in all.iter().enumerate() {
            routes.entry((route.kind.name(), key(&route.object.metadata))).or_insert(at);
            for to in route.backends.iter().filter_map(|backend| backend.destination.as_ref().ok())
            {
                let known: &mut Vec<usize> = to_backends.entry((to.kind(), to.object)).or_default();
                if known.last() != Some(&at) {
                    known.push(at);
                }
            }
        }
        Self { routes, to_backends }
    }
}
