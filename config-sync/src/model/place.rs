//! Places in a configuration file, and problems at such places.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The place of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// The path of keys to the value, such as `listeners[1].hello_timeout`. The path is empty for
    /// the file as a whole.
    pub field: String,
}

/// A value and its place, so that a later check can say where the fault is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
}

/// One fault of a configuration: the place, the fault, and what is allowed there.
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

/// A value that can be put in force but is hardly meant, or that will not do what the operator
/// expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// `FILE:LINE:COLUMN`, or `FILE:LINE: document N` of YAML. Empty if the warning has no place.
    pub place: String,
    /// Begins with the field, or with the object and its field, and says what to do.
    pub message: String,
}

/// Every fault of a configuration, file by file and in the order of each file. Each line shows one
/// fault as `FILE:LINE:COLUMN: FIELD: MESSAGE`.
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

    /// `line 3`, or `FILE:3` in a problem at a place of another file.
    pub(crate) fn seen_from(&self, other: &Self) -> String {
        match self.file == other.file {
            true => format!("line {}", self.line),
            false => format!("{}:{}", self.file, self.line),
        }
    }

    /// A relative path of the file starts at the file's directory.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        Path::new(&*self.file).parent().unwrap_or_else(|| Path::new("")).join(path)
    }
}

impl<T> At<T> {
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        self.place.problem(message)
    }
}

impl Problems {
    pub fn new(mut problems: Vec<Problem>) -> Self {
        // Without lines the file is the name of a part, and the order is the finder's.
        let file = |of: &Problem| Some(Arc::clone(&of.file)).filter(|_| of.line > 0);
        problems.sort_by_cached_key(|problem| (file(problem), problem.line, problem.column));
        Self(problems)
    }

    /// `Ok(value)` if there is no problem.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl Warning {
    /// The warning in the form that compilers use: the word `warning` follows the place.
    pub fn marked(&self) -> String {
        let Self { place, message } = self;
        let colon = if place.is_empty() { "" } else { ": " };
        format!("{place}{colon}warning: {message}")
    }

    /// The form of a hint: nothing is wrong, but another value may serve the operator better.
    pub fn as_hint(&self) -> String {
        let Self { place, message } = self;
        let colon = if place.is_empty() { "" } else { ": " };
        format!("{place}{colon}hint: {message}")
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

/// A problem of a configuration that was translated from Gateway API objects is in no file. Then
/// `file` is the name of the part, and the problem has no line.
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

/// ` (did you mean "listeners"?)`, or nothing if no candidate is near. The nearest candidates need
/// few changes. After them come candidates that contain the word, or that the word contains.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let near = 1 + word.chars().count() / 4;
    let part = |a: &str, b: &str| a.len() >= 3 && b.contains(a);
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, name)| *distance <= near || part(word, name) || part(name, word))
        .min_by_key(|(distance, _)| *distance)
        .map_or_else(String::new, |(_, candidate)| format!(" (did you mean \"{candidate}\"?)"))
}

/// Suggestions for wrong words, with a limit on the number of comparisons. Thousands of wrong
/// words, each compared with thousands of names, would take seconds.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    compared: Cell<usize>,
}

/// The most words that are compared in all, which takes some 100 ms.
const MOST_COMPARED: usize = 100_000;

impl Hints {
    /// Does the work of [`did_you_mean`], or gives nothing once the most words were compared.
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

/// The number of changes that turn `a` into `b`, ignoring case. A change inserts, deletes or
/// replaces a character, or exchanges two neighbours.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    // The rows of the last two characters.
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
