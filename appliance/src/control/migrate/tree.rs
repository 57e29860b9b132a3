//! YAML and TOML as one kind of tree, with lines.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use toml::de::{DeTable, DeValue};

use crate::control::migrate::findings::At;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    pub at: At,
    pub value: Data,
}

#[derive(Clone, Debug)]
pub enum Data {
    Null,
    /// Texts, numbers and truth values, as they are written.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entries().find(|(name, _)| *name == key).map(|(_, node)| node)
    }

    /// Of a path of keys.
    pub fn path(&self, keys: &[&str]) -> Option<&Self> {
        keys.iter().try_fold(self, |node, key| node.get(key))
    }

    /// The keys and values of a map; of anything else, nothing.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Self)> {
        let entries = match &self.value {
            Data::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// The values of a list; a single text is a list of one.
    pub fn items(&self) -> &[Self] {
        match &self.value {
            Data::List(items) => items,
            Data::Text(_) => std::slice::from_ref(self),
            _ => &[],
        }
    }

    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Data::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Self::text)
    }

    pub fn is_true(&self, key: &str) -> bool {
        self.text_of(key) == Some("true")
    }
}

/// The documents of a YAML file.
///
/// # Errors
/// The text is no YAML.
pub fn yaml(file: usize, text: &str) -> Result<Vec<Node>, (At, String)> {
    let mut nodes = Vec::new();
    for (first, text) in documents(text) {
        let options = serde_saphyr::options! { strict_booleans: true };
        let read = serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options);
        match read {
            Ok(read) => nodes.push(of_yaml(read, At { file, line: first })),
            Err(error) => {
                let line = error.location().map_or(0, |at| line_of(at.line()));
                let text = error.to_string();
                let short = text.lines().next().unwrap_or_default().to_owned();
                let line = first + line.saturating_sub(1);
                return Err((At { file, line }, format!("this is no YAML: {short}")));
            }
        }
    }
    Ok(nodes)
}

/// The texts between lines of `---`, each with the number of its first line.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut from, mut first, mut at) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" {
            documents.push((first, &text[from..at]));
            (from, first) = (at + line.len(), number + 2);
        }
        at += line.len();
    }
    documents.push((first, &text[from..]));
    let says = |text: &str| {
        text.lines().any(|line| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with('#')
        })
    };
    documents.retain(|(_, text)| says(text));
    documents
}

fn line_of(line: u64) -> usize {
    usize::try_from(line).unwrap_or(usize::MAX)
}

/// A value of YAML, before its line is known.
enum Raw {
    Null,
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

fn of_yaml(read: Spanned<Raw>, first: At) -> Node {
    let line = line_of(read.referenced.line()).max(1);
    let at = At { line: first.line + line - 1, ..first };
    let value = match read.value {
        Raw::Null => Data::Null,
        Raw::Text(text) => Data::Text(text),
        Raw::List(items) => Data::List(items.into_iter().map(|of| of_yaml(of, first)).collect()),
        Raw::Map(entries) => {
            let entry = |(key, value): (Spanned<String>, Spanned<Raw>)| {
                let line = line_of(key.referenced.line());
                let mut node = of_yaml(value, first);
                // A value may begin in a later line than its key.
                if line > 0 {
                    node.at.line = first.line + line - 1;
                }
                (key.value, node)
            };
            Data::Map(entries.into_iter().map(entry).collect())
        }
    };
    Node { at, value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }

            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }

            fn visit_bool<E>(self, truth: bool) -> Result<Raw, E> {
                Ok(Raw::Text(truth.to_string()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Raw, E> {
                Ok(Raw::Text(number.to_string()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Raw, E> {
                Ok(Raw::Text(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Raw, E> {
                Ok(Raw::Text(number.to_string()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
                Ok(Raw::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut of: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = of.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut of: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = of.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Map(entries))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// A TOML file.
///
/// # Errors
/// The text is no TOML.
pub fn toml(file: usize, text: &str) -> Result<Node, (At, String)> {
    let starts: Vec<usize> = std::iter::once(0)
        .chain(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1))
        .collect();
    let at = |byte: usize| At { file, line: starts.partition_point(|start| *start <= byte).max(1) };
    match DeTable::parse(text) {
        Ok(table) => Ok(of_table(table.get_ref(), At { file, line: 1 }, &at)),
        Err(error) => {
            let byte = error.span().map_or(0, |span| span.start);
            Err((at(byte), format!("this is no TOML: {}", error.message())))
        }
    }
}

fn of_table(table: &DeTable<'_>, of: At, at: &dyn Fn(usize) -> At) -> Node {
    let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        (key.to_string(), of_toml(value.get_ref(), at(value.span().start), at))
    };
    Node { at: of, value: Data::Map(table.iter().map(entry).collect()) }
}

fn of_toml(value: &DeValue<'_>, of: At, at: &dyn Fn(usize) -> At) -> Node {
    let value = match value {
        DeValue::Table(table) => return of_table(table, of, at),
        DeValue::Array(items) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| {
                of_toml(item.get_ref(), at(item.span().start), at)
            };
            Data::List(items.iter().map(item).collect())
        }
        DeValue::String(text) => Data::Text(text.to_string()),
        DeValue::Integer(number) => Data::Text(number.to_string()),
        DeValue::Float(number) => Data::Text(number.to_string()),
        DeValue::Boolean(truth) => Data::Text(truth.to_string()),
        DeValue::Datetime(time) => Data::Text(time.to_string()),
    };
    Node { at: of, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_know_their_lines() {
        let text = "# x\n---\na:\n  b: [1, true]\n  c:\n    d: ~\n---\ne: 'f'\n";
        let nodes = yaml(0, text).expect("YAML");
        let line = |node: &Node, path: &[&str]| node.path(path).expect("there").at.line;
        assert_eq!(nodes.len(), 2);
        let lines = [&["a"][..], &["a", "b"], &["a", "c", "d"]].map(|path| line(&nodes[0], path));
        assert_eq!(lines, [3, 4, 6]);
        assert_eq!(line(&nodes[1], &["e"]), 8);
        let items = nodes[0].path(&["a", "b"]).expect("there").items();
        assert_eq!(items.iter().filter_map(Node::text).collect::<Vec<_>>(), ["1", "true"]);
        let node = toml(0, "[a]\nb = [1]\n[a.c]\nd = 'e'\n").expect("TOML");
        assert_eq!([line(&node, &["a", "b"]), line(&node, &["a", "c", "d"])], [2, 4]);
        assert!(yaml(0, "a: [").is_err() && toml(0, "a =").is_err());
    }
}
