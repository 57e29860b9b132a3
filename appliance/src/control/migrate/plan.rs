//! What a migration makes: tables of Ringway's file, printed as TOML.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::control::migrate::findings::At;

/// A value of TOML.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    /// A number or a truth value, as it is written.
    Word(String),
    List(Vec<Self>),
    Table(Table),
}

/// Keys and values, in the order in which they are printed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table(pub Vec<(&'static str, Value)>);

/// An entry of `listeners`, `routes` or `backends`.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where the original has it, and what it is called there.
    pub at: At,
    pub origin: String,
    pub table: Table,
}

/// A whole configuration.
#[derive(Debug, Default)]
pub struct Plan {
    pub head: Table,
    pub listeners: Vec<Part>,
    pub routes: Vec<Part>,
    pub backends: Vec<Part>,
    names: BTreeSet<(Kind, String)>,
}

/// Names are unique within their kind. A listener with a route of its own gives the route its name,
/// so these two are one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Listener,
    Backend,
}

const WIDTH: usize = 100;

impl Table {
    pub fn of<const N: usize>(keys: [(&'static str, Value); N]) -> Self {
        Self(keys.into())
    }

    /// Adds the key, or replaces its value.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        let value = value.into();
        match self.0.iter_mut().find(|(name, _)| *name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    pub fn set_some(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }
}

impl Plan {
    /// A name of this kind that nothing else has: `wanted`, or that with a number behind.
    pub fn name(&mut self, kind: Kind, wanted: &str) -> String {
        let wanted = plain(wanted);
        let mut name = wanted.clone();
        for number in 2_u32.. {
            if self.names.insert((kind, name.clone())) {
                break;
            }
            name = format!("{wanted}-{number}");
        }
        name
    }

    /// `files` are the names of the originals.
    pub fn toml(&self, files: &[&str]) -> String {
        let mut text = String::new();
        print_table(&mut text, "", &self.head);
        let parts = [
            ("listeners", &self.listeners),
            ("routes", &self.routes),
            ("backends", &self.backends),
        ];
        for (kind, parts) in parts {
            for Part { at, origin, table } in parts {
                let file = files.get(at.file).copied().unwrap_or_default();
                let comment: String = format!("{file}:{}: {origin}", at.line)
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .collect();
                let gap = if text.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}# {comment}\n[[{kind}]]");
                print_table(&mut text, kind, table);
            }
        }
        text
    }
}

/// A text in the form of a name.
pub fn plain(text: &str) -> String {
    let is_of_one = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    let name = text.chars().take(200).map(|c| if is_of_one(c) { c } else { '-' }).collect();
    if text.is_empty() { "unnamed".to_owned() } else { name }
}

/// Tables that are too wide for a line get a header of their own, behind all other keys.
fn print_table(text: &mut String, path: &str, table: &Table) {
    let mut wide = Vec::new();
    for (key, value) in &table.0 {
        let line = format!("{key} = {}", inline(value));
        match value {
            _ if line.len() <= WIDTH => {
                let _ = writeln!(text, "{line}");
            }
            Value::List(items) => {
                let _ = writeln!(text, "{key} = [");
                for item in items {
                    let _ = writeln!(text, "  {},", inline(item));
                }
                text.push_str("]\n");
            }
            Value::Table(table) => wide.push((key, table)),
            Value::Text(_) | Value::Word(_) => {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    for (key, table) in wide {
        let path = if path.is_empty() { (*key).to_owned() } else { format!("{path}.{key}") };
        let _ = writeln!(text, "\n[{path}]");
        print_table(text, &path, table);
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Word(word) => word.clone(),
        Value::List(items) => {
            let items: Vec<_> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(Table(keys)) if keys.is_empty() => "{}".to_owned(),
        Value::Table(Table(keys)) => {
            let keys: Vec<_> =
                keys.iter().map(|(key, value)| format!("{key} = {}", inline(value))).collect();
            format!("{{ {} }}", keys.join(", "))
        }
    }
}

/// A string of TOML. `${` would be a variable of the environment.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.replace("${", "$${").chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A duration as the file has it: the largest units that lose nothing.
pub fn duration(milliseconds: u64) -> String {
    /// The largest that the file takes.
    const MAX: u64 = 1_193 * 3_600_000;
    let milliseconds = milliseconds.min(MAX);
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    let mut rest = milliseconds;
    for (unit, of) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= of {
            let _ = write!(text, "{}{unit}", rest / of);
            rest %= of;
        }
    }
    text
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Word(number.to_string())
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Word(truth.to_string())
    }
}

impl From<Table> for Value {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl<T: Into<Self>> From<Vec<T>> for Value {
    fn from(items: Vec<T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_lose_nothing() {
        let cases = [
            (0, "0s"),
            (1, "1ms"),
            (1_500, "1s500ms"),
            (60_000, "1m"),
            (5_400_000, "1h30m"),
            (u64::MAX, "1193h"),
        ];
        for (milliseconds, text) in cases {
            assert_eq!(duration(milliseconds), text);
        }
    }

    #[test]
    fn strings_are_quoted_and_are_no_variables() {
        assert_eq!(quoted("a\"\\\r\n\u{1}${X}"), "\"a\\\"\\\\\\r\\n\\u0001$${X}\"");
    }

    #[test]
    fn names_are_unique_within_their_kind() {
        let mut plan = Plan::default();
        let names = ["a b", "a-b", "a-b"].map(|name| plan.name(Kind::Backend, name));
        assert_eq!(names, ["a-b", "a-b-2", "a-b-3"]);
        assert_eq!(plan.name(Kind::Listener, "a-b"), "a-b");
        assert_eq!(plan.name(Kind::Listener, ""), "unnamed");
    }
}
