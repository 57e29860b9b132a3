//! Statuses that another program overwrites again and again: for example, two installations of one
//! controller name that want different statuses. Pauses grow, so that the two do not write as fast
//! as they can for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::backoff::Pauses;
use crate::gateway::objects::ObjectName;
use crate::gateway::status::{Kind, StatusOf};

/// So often a status is corrected at once, because people and tools restore objects from backups.
const FREE: u32 = 3;

/// After that, there is a pause before each write.
const PAUSES: Pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(60));

/// A contest is over after this time without an overwrite. The other program may pause as long.
const FORGOTTEN: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct Contests {
    /// Statuses that were right until another program changed the object.
    lost: BTreeMap<Id, StatusOf>,
    all: BTreeMap<Id, Contest>,
}

type Id = (Kind, ObjectName);

struct Contest {
    times: u32,
    last: Instant,
    pauses: Pauses,
    /// This status is not to be written before this time.
    rest: Option<(StatusOf, Instant)>,
}

/// The next step for a status that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Write,
    /// Write later. The first rest of a contest is logged.
    Rest {
        is_news: bool,
    },
}

impl Contests {
    /// Notes that an object with the right status has changed.
    pub fn lose(&mut self, id: Id, wanted: StatusOf) {
        self.lost.insert(id, wanted);
    }

    /// Ends rests that are over, and forgets objects that no longer exist.
    pub fn look(&mut self, now: Instant, exists: impl Fn(&Id) -> bool) {
        self.lost.retain(|id, _| exists(id));
        self.all.retain(|id, of| exists(id) && now - of.last < FORGOTTEN);
        for contest in self.all.values_mut() {
            contest.rest.take_if(|(_, until)| *until <= now);
        }
    }

    pub fn rests(&self, id: &Id, wanted: &StatusOf) -> bool {
        let rest = self.all.get(id).and_then(|contest| contest.rest.as_ref());
        rest.is_some_and(|(of, _)| of == wanted)
    }

    /// When the first rest is over.
    pub fn next(&self) -> Option<Instant> {
        self.all.values().filter_map(|contest| Some(contest.rest.as_ref()?.1)).min()
    }

    /// The next step before a status is written.
    pub fn step(&mut self, id: Id, wanted: &StatusOf, now: Instant) -> Step {
        // If the wanted status has changed, the write is no contest.
        if self.lost.remove(&id).is_none_or(|before| before != *wanted) {
            return Step::Write;
        }
        let begun = Contest { times: 0, last: now, pauses: PAUSES, rest: None };
        let contest = self.all.entry(id).or_insert(begun);
        contest.times += 1;
        contest.last = now;
        if contest.times <= FREE {
            return Step::Write;
        }
        let is_news = contest.pauses.is_first();
        contest.rest = Some((wanted.clone(), now + contest.pauses.take()));
        Step::Rest { is_news }
    }
}

/// The fields that another program has changed: their names, and the value of the first.
pub fn difference(theirs: Option<&Value>, ours: &Value) -> String {
    let theirs = theirs.unwrap_or(&Value::Null);
    let differs = |(field, value): &(&String, &Value)| theirs.get(field.as_str()) != Some(*value);
    let differing: Vec<_> = ours.as_object().into_iter().flatten().filter(differs).collect();
    let names: Vec<_> = differing.iter().map(|(field, _)| field.as_str()).collect();
    let Some((field, value)) = differing.first() else { return "nothing".to_owned() };
    let short = |value: Option<&Value>| {
        let text = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
        text[..text.floor_char_boundary(160)].to_owned()
    };
    let (was, is) = (short(theirs.get(field.as_str())), short(Some(value)));
    format!("{} ({field}: {was} in place of {is})", names.join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn wanted(address: &str) -> StatusOf {
        StatusOf {
            kind: Kind::Gateway,
            namespace: Some("shop".into()),
            name: "g".into(),
            uid: None,
            generation: 1,
            controller: Arc::from("c"),
            status: json!({ "addresses": [address] }),
        }
    }

    fn id() -> Id {
        (Kind::Gateway, ("shop".into(), "g".into()))
    }

    #[test]
    fn pauses_grow_while_the_same_is_overwritten() {
        let mut contests = Contests::default();
        let (own, mut now) = (wanted("a"), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            contests.lose(id(), own.clone());
            let step = contests.step(id(), &own, now);
            let Step::Rest { is_news } = step else { continue };
            assert_eq!(is_news, pauses.is_empty());
            assert!(contests.rests(&id(), &own));
            assert!(!contests.rests(&id(), &wanted("b")), "what is new is written at once");
            let until = contests.next().expect("a rest");
            pauses.push((until - now).as_secs());
            now = until;
            contests.look(now, |_| true);
            assert!(!contests.rests(&id(), &own) && contests.next().is_none());
            assert_eq!(contests.step(id(), &own, now), Step::Write, "its rest is over");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        contests.look(now + FORGOTTEN, |_| true);
        contests.lose(id(), own.clone());
        assert_eq!(contests.step(id(), &own, now + FORGOTTEN), Step::Write);
    }

    #[test]
    fn what_we_change_ourselves_is_no_contest() {
        let mut contests = Contests::default();
        let now = Instant::now();
        for at in 0..20 {
            contests.lose(id(), wanted(&at.to_string()));
            assert_eq!(contests.step(id(), &wanted(&(at + 1).to_string()), now), Step::Write);
        }
        contests.lose(id(), wanted("a"));
        contests.look(now, |_| false);
        assert!(contests.lost.is_empty() && contests.all.is_empty());
    }

    #[test]
    fn a_difference_says_what_is_in_place_of_what() {
        let ours = json!({ "addresses": ["a"], "listeners": [] });
        let theirs = json!({ "addresses": ["b"], "listeners": [] });
        let said = difference(Some(&theirs), &ours);
        assert_eq!(said, r#"addresses (addresses: ["b"] in place of ["a"])"#);
        let said = difference(None, &ours);
        assert_eq!(said, r#"addresses, listeners (addresses: nothing in place of ["a"])"#);
    }
}
