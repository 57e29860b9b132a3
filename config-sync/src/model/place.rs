//! Where something stands in a configuration file, and what is wrong there.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// The path of keys that leads to it, such as `listeners[1].hello_timeout`; empty for the file
    /// as a whole.
    pub field: String,
}

/// A value and where it stands, so that whoever finds fault with it later can say where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
}

/// One fault of a configuration: where it is, what it is and what is allowed there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    pub field: String,
    pub message: String,
}

/// Something that can be put in force and is hardly meant, or will not do what is hoped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// `FILE:LINE:COLUMN`, or `FILE:LINE: document N` of YAML. Empty: it stands nowhere.
    pub place: String,
    /// Begins with the field, or the object and its field, and says what to do.
    pub message: String,
}

/// Every fault of a configuration, in the order of the file. One per line as
/// `FILE:LINE:COLUMN: FIELD: MESSAGE`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Place {
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem {
            file: Arc::clone(&self.file),
            line: self.line,
            column: self.column,
            field: self.field.clone(),
            message: message.into(),
        }
    }
}

impl<T> At<T> {
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        self.place.problem(message)
    }
}

impl Problems {
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self(problems)
    }

    /// `Ok(value)` if nothing is wrong.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl Warning {
    /// As compilers show theirs: with the word `warning` behind the place.
    pub fn marked(&self) -> String {
        let Self { place, message } = self;
        let colon = if place.is_empty() { "" } else { ": " };
        format!("{place}{colon}warning: {message}")
    }
}

impl From<Problem> for Warning {
    fn from(problem: Problem) -> Self {
        let Problem { file, line, column, field, message } = problem;
        let place = if line == 0 { file.to_string() } else { format!("{file}:{line}:{column}") };
        let colon = if field.is_empty() { "" } else { ": " };
        Self { place, message: format!("{field}{colon}{message}") }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.place.is_empty() { "" } else { ": " };
        write!(f, "{}{colon}{}", self.place, self.message)
    }
}

/// What Gateway API objects come to stands in no file: then `file` is the name of the part, and
/// there is no line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: ", self.file)?,
            line => write!(f, "{}:{line}:{}: ", self.file, self.column)?,
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// ` (did you mean "listeners"?)`, or nothing where no candidate is near.
/// Near is what takes few changes, and behind that what has the word as a part, or is a part of it.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let near = 1 + word.chars().count() / 4;
    let part = |a: &str, b: &str| a.len() >= 3 && b.contains(a);
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, name)| *distance <= near || part(word, name) || part(name, word))
        .min_by_key(|(distance, _)| *distance)
        .map_or_else(String::new, |(_, candidate)| format!(" (did you mean \"{candidate}\"?)"))
}

/// What may have been meant, for as long as that does not take too long: thousands of wrong words,
/// each compared with thousands of names, would take seconds.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    compared: Cell<usize>,
}

/// Words that are compared in all: some 100 ms.
const MOST_COMPARED: usize = 100_000;

impl Hints {
    /// As [`did_you_mean`]; nothing when so many words were compared that this would take too long.
    pub(crate) fn did_you_mean<'a>(
        &self,
        word: &str,
        candidates: impl Iterator<Item = &'a str>,
    ) -> String {
        if self.compared.get() >= MOST_COMPARED {
            return String::new();
        }
        let counted = candidates.inspect(|_| self.compared.set(self.compared.get() + 1));
        did_you_mean(word, counted)
    }
}

/// Insertions, deletions and replacements of characters, and exchanges of two that are neighbours,
/// that turn `a` into `b`, whatever the case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    // The rows of the two characters before.
    let mut older: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut before = None;
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(x != *y);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if j > 0 && before == Some(*y) && b[j - 1] == x {
                least = least.min(older[j - 1] + 1);
            }
            row.push(least);
        }
        older = std::mem::replace(&mut last, row);
        before = Some(x);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_candidate_is_suggested_and_none_that_is_far() {
        let keys = || ["hostname", "hostnames", "idle_timeout"].into_iter();
        assert_eq!(did_you_mean("hostnam", keys()), " (did you mean \"hostname\"?)");
        assert_eq!(did_you_mean("idletimeout", keys()), " (did you mean \"idle_timeout\"?)");
        assert_eq!(did_you_mean("colour", keys()), "");
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(did_you_mean("pg", ["pg-primary"].into_iter()), "");
        let names = || ["redis", "postgres-primary"].into_iter();
        assert_eq!(did_you_mean("postgres", names()), " (did you mean \"postgres-primary\"?)");
        assert_eq!(did_you_mean("redis-cache", names()), " (did you mean \"redis\"?)");
        assert_eq!(did_you_mean("bd", ["db"].into_iter()), " (did you mean \"db\"?)");
        assert_eq!((distance("wieght", "weight"), distance("ab", "xbya")), (1, 3));
    }

    #[test]
    fn thousands_of_wrong_words_are_not_compared_with_thousands_of_names() {
        let names: Vec<String> = (0..1_000).map(|n| format!("name-{n}")).collect();
        let hints = Hints::default();
        let hint =
            |n: usize| hints.did_you_mean(&format!("nmae-{n}"), names.iter().map(String::as_str));
        assert_eq!(hint(7), " (did you mean \"name-7\"?)");
        let given = (0..1_000).filter(|n| !hint(*n).is_empty()).count();
        assert_eq!((given, hints.compared.get()), (99, 100_000));
    }

    #[test]
    fn problems_are_shown_in_the_order_of_the_file_one_a_line() {
        let place = |line| Place { file: "f".into(), line, column: 2, field: String::new() };
        let problems = Problems::new(vec![place(9).problem("late"), place(1).problem("early")]);
        assert_eq!(problems.to_string(), "f:1:2: early\nf:9:2: late");
        assert_eq!(problems.or(()).unwrap_err().0.len(), 2);
        assert_eq!(Problems::default().or(7), Ok(7));
    }
}
