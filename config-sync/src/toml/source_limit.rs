//! The keys of a limit for each source.

use ipnet::IpNet;

use crate::model::limit::BYTES;
use crate::model::source_limit::{MOST, MOST_EXCEPTIONS, PREFIX_V4, PREFIX_V6, SourceLimit};
use crate::table::routing::Protocol;
use crate::toml::limit::OVER;
use crate::toml::reader::{Reader, Section, Table, any, integer, or, word};
use crate::toml::values::{name, range};

/// Of a listener or a route.
pub(crate) static LIMIT_SOURCE: Section = Section {
    name: "limit_source",
    keys: &[
        any("shared"),
        any("sessions"),
        any("new_per_second"),
        any("burst"),
        any("datagrams_per_second"),
        any("bytes_per_second"),
        any("prefix_v4"),
        any("prefix_v6"),
        any("except"),
        any("over"),
    ],
};

/// The limit for each source of a listener or a route. `None`: there is no limit. `protocol`: the
/// listener's, if it is known.
pub(crate) fn limit_source<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    protocol: Option<Protocol>,
) -> Option<SourceLimit> {
    let given = &reader.table(table, "limit_source", &LIMIT_SOURCE)?;
    let shared = reader.get(given, "shared", name).map(|given| given.value);
    let mut number = |key| reader.get(given, key, integer(1..=MOST)).map(|given| given.value);
    let [sessions, new_per_second, burst, datagrams_per_second] =
        ["sessions", "new_per_second", "burst", "datagrams_per_second"].map(&mut number);
    let bytes_per_second = reader.get(given, "bytes_per_second", integer(BYTES));
    let bytes_per_second = bytes_per_second.map(|given| given.value);
    let mut refuse = |key, message: &str| {
        reader.get(given, key, |_| Err::<(), _>(message.to_owned()));
    };
    if given.has("burst") && !given.has("new_per_second") {
        refuse("burst", "has no effect without `new_per_second`");
    }
    if given.has("datagrams_per_second") && protocol.is_some_and(|of| of != Protocol::Udp) {
        refuse("datagrams_per_second", "is for UDP listeners; a stream has no datagrams");
    }
    if reader.get(given, "over", word(&OVER)).is_some_and(|given| given.value) {
        let message = "can't be \"delay\" here: a connection has to be accepted before its source \
                       is known, so it can't wait in the accept queue; `limit` can delay";
        reader.get(given, "over", |_| Err::<(), _>(message.to_owned()));
    }
    let limits = ["sessions", "new_per_second", "datagrams_per_second", "bytes_per_second"];
    if !limits.iter().any(|key| given.has(key)) {
        let message = "limits nothing; give `sessions`, `new_per_second`, `bytes_per_second` or, \
                       for UDP, `datagrams_per_second`";
        reader.get(table, "limit_source", |_| Err::<(), _>(message.to_owned()));
    }
    let prefix_v4 = or(reader.get(given, "prefix_v4", integer(1..=32)), PREFIX_V4);
    let prefix_v6 = or(reader.get(given, "prefix_v6", integer(1..=128)), PREFIX_V6);
    let except = reader.list(given, "except", range).unwrap_or_default();
    if except.len() > MOST_EXCEPTIONS {
        let message = format!("names {} ranges; {MOST_EXCEPTIONS} at the most", except.len());
        reader.get(given, "except", |_| Err::<(), _>(message));
    }
    let except: Vec<IpNet> = except.into_iter().map(|range| range.value).collect();
    Some(SourceLimit {
        shared,
        sessions,
        new_per_second,
        burst,
        datagrams_per_second,
        bytes_per_second,
        prefix_v4,
        prefix_v6,
        except,
    })
}
