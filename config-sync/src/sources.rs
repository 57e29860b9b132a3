//! Source ranges as a configuration has them: prefixes, and files of prefixes; and the sets of them
//! that workers see.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use toml::de::DeValue;

use crate::config::Config;
use crate::file;
use crate::problem::{At, Place, Problem, Problems};
use crate::reader::{Read, Reader, Table, not, string};
use crate::table::ranges::{Access, MAX_PREFIXES};
use crate::values::{range, read_range};

/// Who may come in: the longest prefix that has the client's address says so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// `None`: whoever is not denied. Else nobody but these.
    pub allow: Option<Vec<At<Ranges>>>,
    pub deny: Vec<At<Ranges>>,
}

/// Some of the ranges of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    Prefix(IpNet),
    /// A prefix or address in each line, read when the configuration is compiled and watched since.
    File(PathBuf),
}

impl Admission {
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let all = self.allow.iter().flatten().chain(&self.deny);
        all.filter_map(|ranges| match &ranges.value {
            Ranges::File(path) => Some(path.clone()),
            Ranges::Prefix(_) => None,
        })
    }

    fn is_open(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty()
    }
}

/// As it is written in TOML.
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: String| toml::Value::from(text);
        match self {
            Self::Prefix(prefix) => quoted(prefix.to_string()).fmt(f),
            Self::File(path) => {
                write!(f, "{{ file = {} }}", quoted(path.display().to_string()))
            }
        }
    }
}

/// The keys `allow` and `deny` of a table.
pub(crate) fn admission<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Admission {
    Admission {
        allow: ranges(reader, table, "allow"),
        deny: ranges(reader, table, "deny").unwrap_or_default(),
    }
}

fn ranges<'t>(reader: &mut Reader<'t>, table: &Table<'t>, key: &str) -> Option<Vec<At<Ranges>>> {
    let mut all = Vec::new();
    for At { value, place } in reader.list_or_table(table, key, item)? {
        let at = |value| At { value, place: place.clone() };
        match value {
            Item::Prefix(prefix) => all.push(at(Ranges::Prefix(prefix))),
            Item::Files(names) => {
                all.extend(names.iter().map(|name| at(Ranges::File(reader.path(name)))));
            }
        }
    }
    Some(all)
}

/// What stands in a list of ranges.
enum Item<'t> {
    Prefix(IpNet),
    Files(Vec<&'t str>),
}

fn item<'t>(value: &'t DeValue<'t>) -> Read<Item<'t>> {
    const FORM: &str = "a range such as \"10.0.0.0/8\", or { file = \"ranges.txt\" }";
    let name = |value: &'t DeValue<'t>| match string(value)? {
        "" => Err("names no file".to_owned()),
        name => Ok(name),
    };
    match value {
        DeValue::String(_) => range(value).map(Item::Prefix),
        DeValue::Table(table) => {
            let mut files = None;
            for (key, value) in table {
                files = match (key.get_ref().as_ref(), value.get_ref()) {
                    ("file", DeValue::Array(names)) => {
                        let names = names.iter().map(|value| name(value.get_ref()));
                        Some(names.collect::<Read<_>>()?)
                    }
                    ("file", value) => Some(vec![name(value)?]),
                    (key, _) => return Err(format!("must be {FORM}; it has no key `{key}`")),
                };
            }
            files.map(Item::Files).ok_or_else(|| format!("must be {FORM}; the file is missing"))
        }
        other => Err(not(FORM, other)),
    }
}

/// Who may come in, by the names of listeners and routes. Those that anybody may use have no entry.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    pub(crate) listeners: BTreeMap<String, Arc<Access>>,
    pub(crate) routes: BTreeMap<String, Arc<Access>>,
}

/// Reads the files and makes the sets; what is written the same is one set.
///
/// # Errors
/// A file can't be read or has a line that is no range; a prefix is in `allow` and in `deny`; there
/// are more than [`MAX_PREFIXES`].
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

/// Sets that are made, and files that are read.
#[derive(Default)]
struct Sets {
    /// By how they are written.
    made: BTreeMap<String, Option<Arc<Access>>>,
    files: BTreeMap<PathBuf, Arc<[Line]>>,
    problems: Vec<Problem>,
}

/// A prefix, and the line of its file; 0: it is of no file.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub prefix: IpNet,
    pub number: u32,
}

impl Sets {
    /// `None`: everyone may come in, or something is wrong, which is among the problems then.
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
        let text = match file::read(path) {
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

    /// No prefix may be in both lists; `allow` is the one that was asked for, sorted.
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

/// Of one file: more would not help whoever reads them.
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

/// What a file of ranges says: a prefix or address in each line; `#` and `;` begin a comment.
///
/// # Errors
/// Each line that is neither, with what is wrong with it.
pub fn read_lines(text: &str) -> Result<Vec<Line>, Vec<(u32, String)>> {
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match read_range(line) {
            Ok(prefix) => lines.push(Line { prefix, number }),
            Err(message) => wrong.push((number, message)),
        }
    }
    if wrong.is_empty() { Ok(lines) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_has_ranges_comments_and_empty_lines() {
        let text = "# office\r\n10.0.0.0/8 # all of it\r\n\r\n  2001:db8::/32;SBL1\n192.0.2.1\n";
        let lines = read_lines(text).expect("ranges");
        let said: Vec<_> = lines.iter().map(|l| (l.prefix.to_string(), l.number)).collect();
        let expected = [("10.0.0.0/8", 2), ("2001:db8::/32", 4), ("192.0.2.1/32", 5)];
        assert_eq!(said, expected.map(|(prefix, number)| (prefix.to_owned(), number)));
        let wrong = read_lines("10.0.0.0/8\n10.0.0.1/8\nex ample\n").expect_err("two faults");
        assert_eq!(wrong.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2, 3]);
        assert!(wrong[0].1.contains("10.0.0.0/8"), "{wrong:?}");
    }

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

    proptest! {
        #[test]
        fn any_text_is_ranges_or_lines_that_are_none(text in "([0-9a-f.:/#; \n\r]|.){0,60}") {
            match read_lines(&text) {
                Ok(lines) => prop_assert!(lines.len() <= text.lines().count()),
                Err(wrong) => prop_assert!(!wrong.is_empty()),
            }
        }
    }
}
