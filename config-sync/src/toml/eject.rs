//! The keys of passive ejection.

use std::time::Duration;

use toml::de::DeValue;

use crate::model::eject::{DEFAULT, Eject, FAILURES, MAX_SHARE};
use crate::model::place::At;
use crate::toml::reader::{Read, Reader, Section, Table, any, boolean, integer, or};
use crate::toml::values::duration_from;

pub(crate) static EJECT: Section = Section {
    name: "backends.eject",
    keys: &[
        any("failures"),
        any("window"),
        any("base"),
        any("max"),
        any("max_share"),
        any("fail_open"),
    ],
};

/// Reads `eject`. `None`: failures leave no endpoint out.
pub(crate) fn read<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<At<Eject>> {
    let place = reader.peek(table, "eject", |_| Ok(()))?.place;
    let given = &reader.table(table, "eject", &EJECT)?;
    let base = or(reader.get(given, "base", time), DEFAULT.base);
    let value = Eject {
        failures: or(reader.get(given, "failures", integer(FAILURES)), DEFAULT.failures),
        window: or(reader.get(given, "window", time), DEFAULT.window),
        base,
        max: or(reader.get(given, "max", at_least(base)), DEFAULT.max.max(base)),
        max_share: or(reader.get(given, "max_share", integer(MAX_SHARE)), DEFAULT.max_share),
        fail_open: or(reader.get(given, "fail_open", boolean), DEFAULT.fail_open),
    };
    Some(At { value, place })
}

fn time(value: &DeValue<'_>) -> Read<u32> {
    duration_from(Duration::from_millis(100))(value)
}

fn at_least(base: u32) -> impl Fn(&DeValue<'_>) -> Read<u32> {
    move |value| match time(value)? {
        millis if millis < base => Err(format!("must be at least the base, which is {base} ms")),
        millis => Ok(millis),
    }
}
