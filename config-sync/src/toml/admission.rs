//! The keys `allow` and `deny`.

use ipnet::IpNet;
use toml::de::DeValue;

use crate::model::admission::{Admission, Ranges};
use crate::model::place::At;
use crate::toml::reader::{Read, Reader, Table, not, string};
use crate::toml::values::range;

/// Reads the keys `allow` and `deny` of a table.
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
                all.extend(names.iter().map(|name| at(Ranges::File(place.path(name)))));
            }
        }
    }
    Some(all)
}

/// One entry of a list of ranges.
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
