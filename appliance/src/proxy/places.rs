//! The places of listeners: how many sessions and flows each listener has, here and on all workers.

use std::sync::Arc;

use config_sync::table::load::Taken;
use config_sync::table::routing::{Listener, ListenerId, RoutingTable};

/// The sessions and flows of a worker's listeners. Sessions with one side that has ended are
/// counted apart.
#[derive(Debug, Default)]
pub struct Places(
    /// By `ListenerId`.
    Vec<Place>,
);

#[derive(Debug, Default)]
struct Place {
    /// This worker's.
    full: u32,
    ending: u32,
    /// Those of all workers. The counts of this worker are in it. `None`: no table has asked for
    /// it, so that workers share nothing.
    all: Option<Arc<Taken>>,
}

/// How many sessions of a listener may be ending, if `max_sessions` is less.
pub const ENDING: u32 = 64;

impl Places {
    /// Counts for the listeners of this table. What a worker has already, of a listener whose limit
    /// is new, counts too.
    pub fn prepare(&mut self, table: &RoutingTable) {
        for listener in &table.listeners {
            let index = listener.id.index();
            if index >= self.0.len() {
                self.0.resize_with(index + 1, Place::default);
            }
            let place = &mut self.0[index];
            let is_known = match (&place.all, &listener.taken) {
                (Some(known), Some(taken)) => Arc::ptr_eq(known, taken),
                (known, taken) => known.is_none() && taken.is_none(),
            };
            if is_known {
                continue;
            }
            if let Some(taken) = &listener.taken {
                taken.full.add(place.full);
                taken.ending.add(place.ending);
            }
            if let Some(before) = std::mem::replace(&mut place.all, listener.taken.clone()) {
                before.full.sub(place.full);
                before.ending.sub(place.ending);
            }
        }
    }

    /// Takes a place, unless the listener has `max_sessions`. Over all workers, there are never
    /// more.
    pub fn enter(&mut self, listener: &Listener) -> bool {
        let place = &mut self.0[listener.id.index()];
        let most = match listener.max_sessions {
            0 => u32::MAX,
            most => most,
        };
        let most_ending = most.max(ENDING);
        // A table that a socket keeps while it drains may have a limit that is not shared any more.
        let has_room = match &place.all {
            Some(all) => all.ending.get() <= most_ending && all.full.try_add(most),
            None => place.ending <= most_ending && place.full < most,
        };
        place.full += u32::from(has_room);
        has_room
    }

    /// Counts a session that had its place in another process.
    pub fn arrive(&mut self, id: ListenerId, ending: bool) {
        if self.0.len() <= id.index() {
            self.0.resize_with(id.index() + 1, Place::default);
        }
        let place = &mut self.0[id.index()];
        let counts = place.all.as_ref().map(|all| if ending { &all.ending } else { &all.full });
        counts.into_iter().for_each(|count| count.add(1));
        match ending {
            true => place.ending += 1,
            false => place.full += 1,
        }
    }

    /// One side has ended: a client that comes back has a place.
    pub fn begins_to_end(&mut self, id: ListenerId) {
        let place = &mut self.0[id.index()];
        place.full -= 1;
        place.ending += 1;
        if let Some(all) = &place.all {
            all.ending.add(1);
            all.full.sub(1);
        }
    }

    /// A session or flow has ended that had a whole place.
    pub fn leave(&mut self, id: ListenerId) {
        let place = &mut self.0[id.index()];
        place.full -= 1;
        if let Some(all) = &place.all {
            all.full.sub(1);
        }
    }

    /// A session has ended after `begins_to_end`.
    pub fn leave_ending(&mut self, id: ListenerId) {
        let place = &mut self.0[id.index()];
        place.ending -= 1;
        if let Some(all) = &place.all {
            all.ending.sub(1);
        }
    }

    /// How many more sessions there may be, if the listener has `max_sessions`.
    pub fn room(&self, listener: &Listener) -> u32 {
        listener.max_sessions.saturating_sub(self.taken(listener))
    }

    /// Whether the listener has as many sessions as it may have, by `max_sessions` or by its limit.
    pub fn is_full(&self, listener: &Listener) -> bool {
        let limit = listener.limit.as_ref();
        (listener.max_sessions > 0 && self.room(listener) == 0)
            || limit.is_some_and(|limit| limit.room() == 0)
    }

    /// Sessions that count for `max_sessions`.
    fn taken(&self, listener: &Listener) -> u32 {
        let place = &self.0[listener.id.index()];
        place.all.as_ref().map_or(place.full, |all| all.full.get())
    }

    /// Whether more than three quarters of `max_sessions` are taken.
    pub fn is_crowded(&self, listener: &Listener) -> bool {
        let most = listener.max_sessions;
        most > 0 && self.taken(listener) > most - most.div_ceil(4)
    }
}

#[cfg(test)]
mod tests {
    use config_sync::check::parse_for;
    use config_sync::compile::compile;
    use config_sync::compile::names::Names;
    use config_sync::machine::Machine;

    use super::*;

    fn table(names: &mut Names, most: u32) -> RoutingTable {
        let machine = Machine { cores: vec![0], congestion: Vec::new() };
        let text = format!(
            "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:80\"\n\
             max_sessions = {most}\nendpoints = [\"10.0.0.1:80\"]\n"
        );
        let config = parse_for("f", &text, &machine).unwrap_or_else(|why| panic!("{why}"));
        compile(&config, names, 1).unwrap_or_else(|why| panic!("{why}"))
    }

    #[test]
    fn a_limit_holds_over_workers_and_tables() {
        let mut names = Names::new();
        let (mut one, mut other) = (Places::default(), Places::default());
        let apply = |table: &RoutingTable, workers: [&mut Places; 2]| {
            workers.into_iter().for_each(|of| of.prepare(table));
        };
        let free = table(&mut names, 0);
        let id = free.listeners[0].id;
        apply(&free, [&mut one, &mut other]);
        assert!([(); 3].iter().all(|()| one.enter(&free.listeners[0])), "there is no limit");

        // The three that are there count in a limit that is new.
        let limited = table(&mut names, 4);
        let listener = &limited.listeners[0];
        apply(&limited, [&mut one, &mut other]);
        assert!(!other.is_crowded(listener));
        assert!(other.enter(listener));
        assert!(other.is_crowded(listener));
        assert_eq!([one.enter(listener), other.enter(listener)], [false; 2]);
        one.begins_to_end(id);
        assert!(other.enter(listener), "a place is free once a session begins to end");
        one.leave_ending(id);

        // The next table has the same count, and the last has none.
        let more = table(&mut names, 5);
        apply(&more, [&mut one, &mut other]);
        assert_eq!([(); 2].map(|()| one.enter(&more.listeners[0])), [true, false]);
        let taken = more.listeners[0].taken.clone().expect("a limit");
        assert_eq!((taken.full.get(), taken.ending.get()), (5, 0));
        apply(&table(&mut names, 0), [&mut one, &mut other]);
        assert_eq!(taken.full.get(), 0);
        other.leave(id);
        assert_eq!(taken.full.get(), 0);
    }

    #[test]
    fn sessions_that_end_are_limited_too() {
        let table = table(&mut Names::new(), 1);
        let (listener, mut places) = (&table.listeners[0], Places::default());
        places.prepare(&table);
        for _ in 0..=ENDING {
            assert!(places.enter(listener));
            places.begins_to_end(listener.id);
        }
        assert!(!places.enter(listener), "a client could have any number by closing half of each");
        places.leave_ending(listener.id);
        assert!(places.enter(listener));
    }
}
