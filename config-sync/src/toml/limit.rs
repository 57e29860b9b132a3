//! The keys of a limit for all sessions of a listener, route or backend together.

use toml::de::DeValue;

use crate::model::limit::{BYTES, Limit, LimitOf, MOST, SharedLimit};
use crate::model::place::At;
use crate::table::routing::Protocol;
use crate::toml::reader::{
    Read, Reader, Section, Table, any, flawless, integer, not, or, string, word,
};
use crate::toml::values::name;

/// Of a listener, a route or a backend.
pub(crate) static LIMIT: Section = Section {
    name: "limit",
    keys: &[
        any("sessions"),
        any("new_per_second"),
        any("burst"),
        any("bytes_per_second"),
        any("over"),
    ],
};

/// Of an endpoint, or of each endpoint of a backend. Its sessions have a key of their own.
pub(crate) static ENDPOINT_LIMIT: Section = Section {
    name: "endpoint_limit",
    keys: &[any("new_per_second"), any("burst"), any("bytes_per_second")],
};

pub(crate) static SHARED_LIMIT: Section = Section {
    name: "shared_limits",
    keys: &[
        any("name"),
        any("sessions"),
        any("new_per_second"),
        any("burst"),
        any("bytes_per_second"),
        any("over"),
    ],
};

/// Who has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// `None`: the protocol is not known.
    Listener(Option<Protocol>),
    /// Parts that share it. Those that can let new sessions wait do so, and the others refuse them.
    Shared,
    /// A route or a backend.
    Other,
}

impl Owner {
    /// Why new sessions can't wait for a place. `None`: they can.
    fn refuses_delay(self) -> Option<&'static str> {
        match self {
            Self::Listener(None | Some(Protocol::Tcp)) | Self::Shared => None,
            Self::Listener(Some(Protocol::Udp)) => {
                Some("is for TCP listeners; a datagram can't wait")
            }
            Self::Listener(Some(Protocol::Tls)) => Some(
                "is for TCP listeners; which TLS listener a client wants is known only once its \
                 connection was accepted",
            ),
            Self::Other => Some(
                "is for TCP listeners; which route and backend a client gets is known only once \
                 its connection was accepted",
            ),
        }
    }
}

/// What becomes of new sessions over a limit: whether they wait.
pub(crate) const OVER: [(&str, bool); 2] = [("refuse", false), ("delay", true)];

/// The limit of a listener, route or backend. `None`: there is no limit.
pub(crate) fn limit<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    owner: Owner,
) -> Option<LimitOf> {
    let At { value: is_name, place } = reader.get(table, "limit", is_name)?;
    if is_name {
        let value = reader.get(table, "limit", string)?.value.to_owned();
        return Some(LimitOf::Shared(At { value, place }));
    }
    let given = reader.table(table, "limit", &LIMIT)?;
    let limit = keys(reader, &given);
    if limit.is_none() {
        reader.refuse(&place, NOTHING);
    }
    let delays = delays(reader, &given, owner);
    limit.map(|limit| LimitOf::Own(Limit { delays, ..limit }))
}

/// The limit of an endpoint, or of each endpoint of a backend. `None`: there is no limit.
pub(crate) fn endpoint_limit<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    key: &str,
) -> Option<Limit> {
    let given = reader.table(table, key, &ENDPOINT_LIMIT)?;
    let limit = rates(reader, &given);
    if limit.is_none() {
        let message = "limits nothing; give `new_per_second` or `bytes_per_second`; for sessions, \
                       an endpoint has `max_sessions`";
        reader.refuse(&given.place, message);
    }
    limit
}

/// Whether new sessions over the limit wait.
fn delays<'t>(reader: &mut Reader<'t>, given: &Table<'t>, owner: Owner) -> bool {
    let delays = or(reader.get(given, "over", word(&OVER)), false);
    let counts = given.has("sessions") || given.has("new_per_second");
    let why_not = match owner.refuses_delay() {
        None if !counts => Some("has no effect without `sessions` or `new_per_second`"),
        why_not => why_not,
    };
    if let Some(message) = why_not.filter(|_| delays) {
        reader.get(given, "over", |_| Err::<(), _>(message.to_owned()));
    }
    delays
}

/// One of `[[shared_limits]]`.
pub(crate) fn shared_limit<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<SharedLimit> {
    let name = reader.need(table, "name", "parts have this limit by its name", name);
    let limit = flawless(reader, |reader| {
        let limit = keys(reader, table);
        if limit.is_none() {
            reader.refuse(&table.place, NOTHING);
        }
        let delays = delays(reader, table, Owner::Shared);
        limit.map(|limit| Limit { delays, ..limit })
    });
    Some(SharedLimit { name: name?, limit: limit? })
}

const NOTHING: &str = "limits nothing; give `sessions`, `new_per_second` or `bytes_per_second`";

/// `None`: no key limits anything.
fn keys<'t>(reader: &mut Reader<'t>, given: &Table<'t>) -> Option<Limit> {
    let sessions = reader.get(given, "sessions", integer(1..=MOST)).map(|given| given.value);
    let rates = rates(reader, given);
    let limits = given.has("sessions") || rates.is_some();
    limits.then(|| Limit { sessions, ..rates.unwrap_or_default() })
}

/// All keys but `sessions`. `None`: no key limits anything.
fn rates<'t>(reader: &mut Reader<'t>, given: &Table<'t>) -> Option<Limit> {
    let mut number = |key| reader.get(given, key, integer(1..=MOST)).map(|given| given.value);
    let limit = Limit {
        sessions: None,
        new_per_second: number("new_per_second"),
        burst: number("burst"),
        bytes_per_second: reader
            .get(given, "bytes_per_second", integer(BYTES))
            .map(|given| given.value),
        delays: false,
    };
    if given.has("burst") && !given.has("new_per_second") {
        let message = "has no effect without `new_per_second`";
        reader.get(given, "burst", |_| Err::<(), _>(message.to_owned()));
    }
    ["new_per_second", "bytes_per_second"].iter().any(|key| given.has(key)).then_some(limit)
}

fn is_name(value: &DeValue<'_>) -> Read<bool> {
    match value {
        DeValue::String(_) => Ok(true),
        DeValue::Table(_) => Ok(false),
        other => {
            Err(not("a table such as { sessions = 100 }, or the name of a shared limit", other))
        }
    }
}
