//! The endpoints of a backend: each an address, or a table with an address.

use toml::de::{DeTable, DeValue};

use crate::model::endpoint::{Address, Endpoint, MAX_WEIGHT};
use crate::model::place::At;
use crate::toml::limit::endpoint_limit;
use crate::toml::reader::{Read, Reader, Section, Table, any, boolean, flawless, integer, not, or};
use crate::toml::values::{endpoint, name};

pub(crate) static ENDPOINT: Section = Section {
    name: "backends.endpoints",
    keys: &[
        any("address"),
        any("name"),
        any("weight"),
        any("backup"),
        any("max_sessions"),
        any("limit"),
    ],
};

enum Given<'t> {
    Short(Address),
    Long(&'t DeTable<'t>),
}

/// The endpoints of the backend that are right. `None` if there is no list.
pub(crate) fn read<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Vec<Endpoint>> {
    let given = reader.list(table, "endpoints", given)?;
    let read = |At { value, place }| match value {
        Given::Short(address) => Some(Endpoint::at(At { value: address, place })),
        Given::Long(entries) => {
            let table = reader.open(entries, &ENDPOINT, place);
            flawless(reader, |reader| long(reader, &table))
        }
    };
    Some(given.into_iter().filter_map(read).collect())
}

/// More sessions than a machine has memory for.
pub(crate) const MOST_SESSIONS: u32 = 1_000_000_000;

fn given<'t>(value: &'t DeValue<'t>) -> Read<Given<'t>> {
    match value {
        DeValue::String(_) => endpoint(value).map(Given::Short),
        DeValue::Table(entries) => Ok(Given::Long(entries)),
        other => Err(not("a string such as \"10.0.0.1:5432\", or a table with `address`", other)),
    }
}

fn long<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Endpoint> {
    let address = reader.need(table, "address", "such as \"10.0.0.1:5432\"", endpoint);
    let name = reader.get(table, "name", name);
    let weight = or(reader.get(table, "weight", integer(0..=MAX_WEIGHT)), 1);
    let backup = or(reader.get(table, "backup", boolean), false);
    let most = or(reader.get(table, "max_sessions", integer(0..=MOST_SESSIONS)), 0);
    let max_sessions = Some(most).filter(|most| *most > 0);
    let limit = endpoint_limit(reader, table, "limit");
    Some(Endpoint { weight, backup, max_sessions, limit, name, ..Endpoint::at(address?) })
}
