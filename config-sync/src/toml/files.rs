//! Makes one tree of several TOML files. Every span of the tree says which file it is from.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::model::place::At;
use crate::toml::reader::{Reader, string};
use crate::toml::variables;

/// The top-level lists that may stand in several files.
const LISTS: [&str; 5] = ["include", "listeners", "routes", "backends", "shared_limits"];

/// The value of `include`. `None`: the file has no such key, or a fault that [`super::read`] tells.
pub(crate) fn includes(file: &str, text: &str) -> Option<Vec<At<String>>> {
    if !text.contains("include") {
        return None;
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    let (key, value) = root.into_inner().into_iter().find(|(key, _)| key.get_ref() == "include")?;
    let reader = Reader::new(file, text);
    let mut only = DeTable::new();
    only.insert(key, value);
    let unset = variables::replace(&reader, &mut only, &|name| std::env::var(name).ok());
    let DeValue::Array(values) = only.values().next()?.get_ref() else { return None };
    let place = |nth, at| reader.place(at, format!("include[{nth}]"));
    let read = |(nth, value): (usize, &Spanned<DeValue<'_>>)| {
        let path = string(value.get_ref()).ok()?.to_owned();
        Some(At { value: path, place: place(nth, value.span().start) })
    };
    let all: Option<Vec<_>> = values.iter().enumerate().map(read).collect();
    all.filter(|_| errors.is_empty() && unset.is_empty())
}

/// The same tree with spans that count from the first byte of all files.
pub(crate) fn shifted(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    let entry = |(key, of)| (moved(key, by, |key| key), moved(of, by, |of| value(of, by)));
    table.into_iter().map(entry).collect()
}

fn value(of: DeValue<'_>, by: usize) -> DeValue<'_> {
    match of {
        DeValue::Array(values) => {
            let values = values.into_iter().map(|of| moved(of, by, |of| value(of, by)));
            DeValue::Array(values.collect())
        }
        DeValue::Table(table) => DeValue::Table(shifted(table, by)),
        other => other,
    }
}

fn moved<T>(of: Spanned<T>, by: usize, inside: impl FnOnce(T) -> T) -> Spanned<T> {
    let span = of.span();
    Spanned::new(span.start + by..span.end + by, inside(of.into_inner()))
}

/// Adds the keys of one more file. Lists become longer. Another key may stand in one file only, and
/// so may each table of `defaults`.
pub(crate) fn merge<'t>(
    reader: &mut Reader<'t>,
    all: &mut DeTable<'t>,
    more: DeTable<'t>,
    within: &str,
) {
    for (key, value) in more {
        let name = key.get_ref().to_string();
        let is_top = within.is_empty();
        let Some((first, there)) = all.iter_mut().find(|(first, _)| *first.get_ref() == name)
        else {
            all.insert(key, value);
            continue;
        };
        let is_list = is_top && LISTS.contains(&name.as_str());
        match (there.get_mut(), value.get_ref()) {
            (DeValue::Array(list), DeValue::Array(_)) if is_list => {
                let DeValue::Array(more) = value.into_inner() else { continue };
                more.into_iter().for_each(|of| list.push(of));
            }
            // The reader of lists says what is wrong with the value that is none.
            (DeValue::Array(_), _) if is_list => *there = value,
            (_, _) if is_list => {}
            (DeValue::Table(table), DeValue::Table(_)) if is_top && name == "defaults" => {
                let DeValue::Table(more) = value.into_inner() else { continue };
                merge(reader, table, more, "defaults.");
            }
            _ => {
                let field = format!("{within}{name}");
                let first = reader.place(first.span().start, String::new());
                let place = reader.place(key.span().start, field);
                let first = first.seen_from(&place);
                reader.refuse(&place, format!("{first} has this key; one file may have it"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one_in_each_file() {
        let reader = Reader::of(&[("f", "a\nbä = 1\n"), ("g", ""), ("h", "x\ny")]);
        let place = |byte| {
            let place = reader.place(byte, String::new());
            (place.file.to_string(), place.line, place.column)
        };
        for (byte, file, line, column) in [
            (0, "f", 1, 1),
            (2, "f", 2, 1),
            (6, "f", 2, 4),
            (10, "f", 3, 1),
            (11, "g", 1, 1),
            (12, "h", 1, 1),
            (14, "h", 2, 1),
            (99, "h", 2, 2),
        ] {
            assert_eq!(place(byte), (file.to_owned(), line, column), "{byte}");
        }
    }

    #[test]
    fn includes_are_told_where_they_have_no_fault() {
        let told = |text| {
            let all = includes("f", text)?;
            let line = |at: At<String>| (at.value, at.place.line, at.place.column, at.place.field);
            Some(all.into_iter().map(line).collect::<Vec<_>>())
        };
        let one = |path: &str, column, nth| (path.into(), 1, column, format!("include[{nth}]"));
        assert_eq!(
            told("include = [\"a.toml\", \"${NO_SUCH_VARIABLE:-b}.toml\"]"),
            Some(vec![one("a.toml", 12, 0), one("b.toml", 22, 1)])
        );
        assert_eq!(told("include = []"), Some(vec![]));
        for text in ["a = 1", "include = 1", "include = [1]", "include = [\"${NO_SUCH_V}\"]"] {
            assert_eq!(told(text), None, "{text}");
        }
        assert_eq!(told("include = [\"a.toml\"]\nhalf"), None);
    }
}
