//! When an operator asks, and for what.

use std::collections::BTreeSet;

use config_sync::table::request::{Of, What};
use config_sync::table::routing::EndpointId;

use super::World;
use crate::sim::coverage::Fault;
use crate::sim::world::asked::{List, MOST, some_filter};

impl World {
    /// Asks for something, or has something killed.
    pub(super) fn ask(&mut self) {
        let asked = &mut self.process.check.asked;
        if asked.open.len() >= MOST {
            return;
        }
        let rng = &mut self.asks;
        let of = rng.pick(&[Of::Sessions, Of::Flows]);
        let what = match rng.below(8) {
            0 => What::KillAll { of, filter: some_filter(rng) },
            1 | 2 if !asked.named.is_empty() => What::Kill(rng.pick(&asked.named)),
            4 if of == Of::Sessions => What::Resting((0..4).map(EndpointId).collect()),
            3 if !asked.named.is_empty() => What::Inspect(rng.pick(&asked.named)),
            _ if asked.list.is_none() => {
                let filter = some_filter(rng);
                let began = self.kernel.now;
                let list = List { of, filter, began, ended: 0, seen: BTreeSet::new() };
                asked.list.insert(list).page(0, rng)
            }
            _ => return,
        };
        if let What::KillAll { filter, .. } = &what
            && filter.is_open()
        {
            self.kernel.hit_all(Fault::Kill);
        }
        asked.ask(what);
    }

    /// Hands the worker what was asked.
    pub(super) fn hand_requests_over(&mut self) {
        for request in std::mem::take(&mut self.process.check.asked.next) {
            let asked = &mut self.process.check.asked;
            asked.open.insert(request.number, (request.clone(), self.kernel.now));
            self.process.proxy.ask(self.kernel.now, request, &mut self.process.ops);
        }
    }

    /// Asks for the next page of the list, if the last page was not the end.
    pub(super) fn turn_the_page(&mut self, from: u32) {
        let Some(list) = &self.process.check.asked.list else { return };
        let what = list.page(from, &mut self.asks);
        self.process.check.asked.ask(what);
    }
}
