//! Variables of the environment in the strings of a file: `${NAME}`, and `${NAME:-default}`.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::model::place::Problem;
use crate::toml::reader::Reader;

/// Replaces variables in all strings of a table, and returns the problems. `get` gives the value of
/// a variable. A string with a problem stays as it is. Values are not looked through again.
pub(crate) fn replace<'t>(
    reader: &Reader<'t>,
    table: &mut DeTable<'t>,
    get: &dyn Fn(&str) -> Option<String>,
) -> Vec<Problem> {
    let mut replace = Replace { reader, get, problems: Vec::new() };
    replace.table(table, "");
    replace.problems
}

struct Replace<'r, 't> {
    reader: &'r Reader<'t>,
    get: &'r dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

impl<'t> Replace<'_, 't> {
    fn table(&mut self, table: &mut DeTable<'t>, field: &str) {
        for (key, value) in table.iter_mut() {
            let dot = if field.is_empty() { "" } else { "." };
            self.value(value, &format!("{field}{dot}{}", key.get_ref()));
        }
    }

    fn value(&mut self, value: &mut Spanned<DeValue<'t>>, field: &str) {
        let at = value.span().start;
        match value.get_mut() {
            DeValue::String(text) if text.contains("${") => match replaced(text, self.get) {
                Ok(new) => *text = Cow::Owned(new),
                Err(message) => {
                    let place = self.reader.place(at, field.to_owned());
                    self.problems.push(place.problem(message));
                }
            },
            DeValue::Array(values) => {
                for (index, value) in values.iter_mut().enumerate() {
                    self.value(value, &format!("{field}[{index}]"));
                }
            }
            DeValue::Table(table) => self.table(table, field),
            _ => {}
        }
    }
}

/// The text with the values of its variables. `$${` stands for `${`.
fn replaced(text: &str, get: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            result.extend([before, "${"]);
            rest = after;
            continue;
        }
        result.push_str(before);
        let Some((inside, after)) = after.split_once('}') else {
            return Err(format!("has \"${{\" without \"}}\"; {ESCAPE}"));
        };
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let is_name = name.starts_with(is_first)
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(format!("\"{name}\" is no name of a variable; {ESCAPE}"));
        }
        match (get(name), default) {
            (Some(value), None) => result.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => result.push_str(&value),
            (_, Some(default)) => result.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment has no variable {name}; set the variable, or give a default: \
                     ${{{name}:-value}}"
                ));
            }
        }
        rest = after;
    }
    Ok(result + rest)
}

const ESCAPE: &str = "a variable is written ${NAME} or ${NAME:-default}, and $${ stands for ${";

#[cfg(test)]
mod tests {
    use super::*;

    fn get(name: &str) -> Option<String> {
        match name {
            "IP" => Some("10.0.0.1".into()),
            "EMPTY" => Some(String::new()),
            "RAW" => Some("${IP}".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_have_their_values_or_defaults() {
        for (text, expected) in [
            ("${IP}:5432", "10.0.0.1:5432"),
            ("a ${IP}${IP} b", "a 10.0.0.110.0.0.1 b"),
            ("${NONE:-127.0.0.1}:1", "127.0.0.1:1"),
            ("${NONE:-}", ""),
            ("${EMPTY}", ""),
            ("${EMPTY:-x}", "x"),
            ("${IP:-x}", "10.0.0.1"),
            ("${RAW}", "${IP}"),
            ("$${IP}", "${IP}"),
            ("$$${IP}", "$${IP}"),
            ("$IP $ {IP} }", "$IP $ {IP} }"),
            ("ä${NONE:-ö}ü", "äöü"),
        ] {
            assert_eq!(replaced(text, &get).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn faults_say_what_to_write() {
        for (text, expected) in [
            (
                "${NONE}",
                "the environment has no variable NONE; set the variable, or give a default",
            ),
            ("${IP", "has \"${\" without \"}\"; a variable is written ${NAME}"),
            ("${}", "\"\" is no name of a variable"),
            ("${1A}", "\"1A\" is no name of a variable"),
            ("${a b}", "\"a b\" is no name of a variable"),
        ] {
            let message = replaced(text, &get).expect_err(text);
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
