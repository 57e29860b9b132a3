//! The keys of a health check.

use std::time::Duration;

use toml::de::DeValue;

use crate::model::health_check::{DEFAULT, HealthCheck, TIMES, timeout_of};
use crate::model::place::At;
use crate::toml::reader::{Read, Reader, Section, Table, any, integer, or};
use crate::toml::values::{duration, duration_from};

pub(crate) static HEALTH_CHECK: Section = Section {
    name: "backends.health_check",
    keys: &[any("interval"), any("timeout"), any("rise"), any("fall"), any("port")],
};

/// Reads `health_check`. `None`: the endpoints are not checked.
pub(crate) fn read<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<At<HealthCheck>> {
    let place = reader.peek(table, "health_check", |_| Ok(()))?.place;
    let given = &reader.table(table, "health_check", &HEALTH_CHECK)?;
    let asked = reader.get(given, "interval", interval);
    // If the interval is bad, the timeout is not compared with the interval: a second fault would
    // only repeat the first.
    let most = if asked.is_none() && given.has("interval") { u32::MAX } else { DEFAULT.interval };
    let interval = or(asked, most);
    let value = HealthCheck {
        interval,
        timeout: or(reader.get(given, "timeout", timeout_within(interval)), timeout_of(interval)),
        rise: or(reader.get(given, "rise", integer(TIMES)), DEFAULT.rise),
        fall: or(reader.get(given, "fall", integer(TIMES)), DEFAULT.fall),
        port: or(reader.get(given, "port", integer(0..=u16::MAX)), DEFAULT.port),
    };
    Some(At { value, place })
}

pub(crate) fn interval(value: &DeValue<'_>) -> Read<u32> {
    duration_from(Duration::from_millis(100))(value)
}

/// A timeout of at most the interval, because an endpoint has one check at a time.
pub(crate) fn timeout_within(interval: u32) -> impl Fn(&DeValue<'_>) -> Read<u32> {
    move |value| match duration(value)? {
        0 => Err("must be at least \"1ms\"; it can't be off".to_owned()),
        millis if millis > interval => {
            Err(format!("must be at most the interval, which is {interval} ms"))
        }
        millis => Ok(millis),
    }
}
