//! Makes the sets of clients that may come in, as workers see them. Files of ranges are read here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use crate::disk;
use crate::model::admission::{Admission, Line, Ranges, read_lines};
use crate::model::config::Config;
use crate::model::place::{At, Place, Problem, Problems};
use crate::table::ranges::{Access, MAX_PREFIXES};

/// The clients that may come in, by the names of listeners and routes. A listener or route for all
/// clients has no entry.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    pub(crate) listeners: BTreeMap<String, Arc<Access>>,
    pub(crate) routes: BTreeMap<String, Arc<Access>>,
}

/// Reads the files and makes the sets. Lists that are written alike share one set.
///
/// # Errors
/// A file can't be read, or has a line that is no range; a prefix is in both `allow` and `deny`;
/// there are more than [`MAX_PREFIXES`].
pub(crate) fn admitted(config: &Config) -> Result<Admitted, Problems> {
    let mut sets = Sets::default();
    let mut admitted = Admitted::default();
    for listener in &config.listeners {
        let set = sets.of(&listener.admission);
        admitted.listeners.extend(set.map(|set| (listener.name.value.clone(), set)));
    }
    for route in &config.routes {
        let set = sets.of(&route.admission);
        admitted.routes.extend(set.map(|set| (route.name.value.clone(), set)));
    }
    Problems::new(sets.problems).or(admitted)
}

/// The sets that are made, and the files that were read.
#[derive(Default)]
pub(crate) struct Sets {
    /// The key is the written form of the lists.
    made: BTreeMap<String, Option<Arc<Access>>>,
    files: BTreeMap<PathBuf, Arc<[Line]>>,
    problems: Vec<Problem>,
}

impl Sets {
    /// `None`: all clients may come in, or the problems say what is wrong.
    fn of(&mut self, asked: &Admission) -> Option<Arc<Access>> {
        if asked.is_open() {
            return None;
        }
        let written = written(asked);
        if let Some(made) = self.made.get(&written) {
            return made.clone();
        }
        let made = self.make(asked).map(Arc::new);
        self.made.insert(written, made.clone());
        made
    }

    fn make(&mut self, asked: &Admission) -> Option<Access> {
        let allow = match &asked.allow {
            Some(ranges) => Some(self.prefixes(ranges)?),
            None => None,
        };
        let deny = self.prefixes(&asked.deny)?;
        let count = allow.as_ref().map_or(0, Vec::len) + deny.len();
        let first = asked.allow.iter().flatten().chain(&asked.deny).next();
        if let Some(first) = first.filter(|_| count > MAX_PREFIXES) {
            let message = format!("has {count} ranges with `deny`; at most {MAX_PREFIXES}");
            self.problems.push(first.problem(message));
            return None;
        }
        if let Some(allow) = &allow {
            self.distinct(allow, asked)?;
        }
        Some(Access::new(allow.as_deref(), &deny))
    }

    fn prefixes(&mut self, ranges: &[At<Ranges>]) -> Option<Vec<IpNet>> {
        let mut all = Vec::new();
        for ranges in ranges {
            all.extend(self.lines(ranges)?.iter().map(|line| line.prefix));
        }
        all.sort_unstable();
        Some(all)
    }

    fn lines(&mut self, ranges: &At<Ranges>) -> Option<Arc<[Line]>> {
        let path = match &ranges.value {
            Ranges::Prefix(prefix) => return Some([Line { prefix: *prefix, number: 0 }].into()),
            Ranges::File(path) => path,
        };
        if let Some(lines) = self.files.get(path) {
            return Some(Arc::clone(lines));
        }
        let text = match disk::read_text(path) {
            Ok(text) => text,
            Err(message) => {
                self.problems.push(ranges.problem(message));
                return None;
            }
        };
        match read_lines(&text) {
            Ok(lines) => {
                let lines: Arc<[Line]> = lines.into();
                self.files.insert(path.clone(), Arc::clone(&lines));
                Some(lines)
            }
            Err(wrong) => {
                for (number, message) in wrong.into_iter().take(MOST_PROBLEMS) {
                    self.problems.push(in_file(path, number, &ranges.place).problem(message));
                }
                None
            }
        }
    }

    /// Checks that no prefix is in both lists. `allow` is the list that was asked for, sorted.
    fn distinct(&mut self, allow: &[IpNet], asked: &Admission) -> Option<()> {
        let before = self.problems.len();
        for ranges in &asked.deny {
            for line in self.lines(ranges)?.iter() {
                if allow.binary_search(&line.prefix).is_err() {
                    continue;
                }
                let place = match &ranges.value {
                    Ranges::File(path) => in_file(path, line.number, &ranges.place),
                    Ranges::Prefix(_) => ranges.place.clone(),
                };
                let message = format!("{} is in `allow` too; it can be in one only", line.prefix);
                self.problems.push(place.problem(message));
                if self.problems.len() == before + MOST_PROBLEMS {
                    return None;
                }
            }
        }
        (self.problems.len() == before).then_some(())
    }
}

/// The most problems of one file. More problems would not help the reader.
const MOST_PROBLEMS: usize = 10;

fn written(asked: &Admission) -> String {
    let list = |ranges: &[At<Ranges>]| {
        let words: Vec<_> = ranges.iter().map(|ranges| ranges.value.to_string()).collect();
        words.join(", ")
    };
    let allow = asked.allow.as_ref().map_or_else(|| "all".to_owned(), |allow| list(allow));
    format!("{allow}\n{}", list(&asked.deny))
}

/// A place in a file of ranges, under the key that names it.
fn in_file(path: &Path, line: u32, key: &Place) -> Place {
    let file = path.display().to_string().into();
    Place { file, line, column: 1, field: key.field.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_the_same_is_one_set() {
        let place = Place { file: "f".into(), line: 1, column: 1, field: String::new() };
        let prefix: IpNet = "10.0.0.0/8".parse().expect("a prefix");
        let ranges =
            |line| At { value: Ranges::Prefix(prefix), place: Place { line, ..place.clone() } };
        let allowing = |line| Admission { allow: Some(vec![ranges(line)]), deny: Vec::new() };
        let mut sets = Sets::default();
        let (one, two) = (sets.of(&allowing(1)), sets.of(&allowing(2)));
        assert!(Arc::ptr_eq(&one.expect("a set"), &two.clone().expect("a set")));
        let denying = Admission { allow: None, deny: vec![ranges(3)] };
        let three = sets.of(&denying);
        assert!(!Arc::ptr_eq(&two.expect("a set"), &three.expect("a set")));
        assert!(sets.of(&Admission::default()).is_none());
    }
}
