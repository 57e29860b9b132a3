//! The panes of `ringway top`: what each asks for, shows and sorts by.

use std::cmp::Ordering;

use serde_json::Value;

use crate::control::client::show::{As, cell};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    Overview,
    Listeners,
    Backends,
    Sessions,
    Clients,
    Events,
}

/// A column. The first columns of a pane are the last to be left out on a narrow terminal.
pub struct Column {
    pub title: &'static str,
    pub field: &'static str,
    pub form: As,
    /// The column is left out rather than made narrower than this.
    pub least: usize,
}

/// An order of rows: of numbers the greatest first, of texts the first of the alphabet.
pub struct Sort {
    pub title: &'static str,
    /// Empty: the order of the gateway's answer.
    pub field: &'static str,
}

/// What is added to a row that has these totals: their growth each second.
pub const RATES: [(&str, &str); 5] = [
    ("opened", "opened_rate"),
    ("refused", "refused_rate"),
    ("connect_failures", "failed_rate"),
    ("bytes_up", "up_rate"),
    ("bytes_down", "down_rate"),
];

/// The sum of the growth of both directions.
pub const BYTES_RATE: &str = "bytes_rate";

const fn column(title: &'static str, field: &'static str, form: As, least: usize) -> Column {
    Column { title, field, form, least }
}

const fn sort(title: &'static str, field: &'static str) -> Sort {
    Sort { title, field }
}

const LISTENERS: &[Column] = &[
    column("LISTENER", "listener", As::Text, 12),
    column("SESSIONS", "sessions", As::Text, 8),
    column("NEW/s", "opened_rate", As::Text, 5),
    column("REFUSED/s", "refused_rate", As::Text, 9),
    column("UP/s", "up_rate", As::Bytes, 8),
    column("DOWN/s", "down_rate", As::Bytes, 8),
    column("STATE", "state", As::Text, 9),
    column("PROTOCOL", "protocol", As::Text, 8),
    column("ADDRESS", "addresses", As::Text, 14),
];

const BACKENDS: &[Column] = &[
    column("BACKEND", "backend", As::Text, 12),
    column("STATE", "state", As::Text, 11),
    column("HEALTHY", "healthy", As::Text, 7),
    column("OF", "endpoints", As::Text, 4),
    column("SESSIONS", "sessions", As::Text, 8),
    column("NEW/s", "opened_rate", As::Text, 5),
    column("FAILED/s", "failed_rate", As::Text, 8),
    column("UP/s", "up_rate", As::Bytes, 8),
    column("DOWN/s", "down_rate", As::Bytes, 8),
    column("WAITING", "waiting", As::Text, 7),
];

const SESSIONS: &[Column] = &[
    column("CLIENT", "client", As::Text, 15),
    column("ENDPOINT", "endpoint", As::Text, 15),
    column("AGE", "age_ms", As::Millis, 6),
    column("UP", "bytes_up", As::Bytes, 8),
    column("DOWN", "bytes_down", As::Bytes, 8),
    column("STATE", "state", As::Text, 8),
    column("IDLE", "idle_ms", As::Millis, 6),
    column("LISTENER", "listener", As::Text, 8),
    column("UP/s", "up_rate", As::Bytes, 8),
    column("DOWN/s", "down_rate", As::Bytes, 8),
    column("ID", "id", As::Text, 14),
];

const CLIENTS: &[Column] = &[
    column("CLIENT", "client", As::Text, 15),
    column("BYTES", "bytes", As::Bytes, 8),
    column("ENDED", "ended", As::Text, 8),
    column("REFUSED", "refused", As::Text, 8),
];

const EVENTS: &[Column] = &[
    column("LEVEL", "level", As::Text, 5),
    column("TEXT", "text", As::Text, 20),
    column("TIME", "ts", As::Text, 24),
];

const BY_LISTENER: &[Sort] = &[
    sort("bytes", BYTES_RATE),
    sort("sessions", "sessions"),
    sort("new", "opened_rate"),
    sort("refused", "refused_rate"),
    sort("name", "listener"),
];

const BY_BACKEND: &[Sort] = &[
    sort("worst", ""),
    sort("bytes", BYTES_RATE),
    sort("sessions", "sessions"),
    sort("new", "opened_rate"),
    sort("failed", "failed_rate"),
    sort("name", "backend"),
];

/// The gateway sorts by these, out of all sessions.
const BY_SESSION: &[Sort] = &[
    sort("bytes", "bytes"),
    sort("age", "age_ms"),
    sort("idle", "idle_ms"),
    sort("client", "client"),
    sort("endpoint", "endpoint"),
    sort("state", "state"),
];

const BY_CLIENT: &[Sort] =
    &[sort("bytes", "bytes"), sort("ended", "ended"), sort("refused", "refused")];

const BY_EVENT: &[Sort] = &[sort("newest", "number"), sort("level", "level")];

impl Pane {
    pub const ALL: [Self; 6] = [
        Self::Overview,
        Self::Listeners,
        Self::Backends,
        Self::Sessions,
        Self::Clients,
        Self::Events,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Listeners => "Listeners",
            Self::Backends => "Backends",
            Self::Sessions => "Sessions",
            Self::Clients => "Clients",
            Self::Events => "Events",
        }
    }

    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Overview => &[],
            Self::Listeners => LISTENERS,
            Self::Backends => BACKENDS,
            Self::Sessions => SESSIONS,
            Self::Clients => CLIENTS,
            Self::Events => EVENTS,
        }
    }

    pub fn sorts(self) -> &'static [Sort] {
        match self {
            Self::Overview => &[],
            Self::Listeners => BY_LISTENER,
            Self::Backends => BY_BACKEND,
            Self::Sessions => BY_SESSION,
            Self::Clients => BY_CLIENT,
            Self::Events => BY_EVENT,
        }
    }

    /// The field that tells rows apart.
    pub fn key(self) -> &'static str {
        match self {
            Self::Overview => "",
            Self::Listeners => "listener",
            Self::Backends => "backend",
            Self::Sessions => "id",
            Self::Clients => "client",
            Self::Events => "number",
        }
    }

    /// The field of a row that is shown whole below the list.
    pub fn said(self) -> Option<&'static str> {
        match self {
            Self::Backends => Some("news"),
            Self::Events => Some("text"),
            Self::Overview | Self::Listeners | Self::Sessions | Self::Clients => None,
        }
    }
}

/// The texts of a row.
pub fn cells(row: &Value, columns: &[Column]) -> Vec<String> {
    columns.iter().map(|of| cell(row.get(of.field), of.form)).collect()
}

/// Puts the rows into the order. Rows without the field come last.
pub fn order(rows: &mut [Value], sort: &Sort, reverse: bool) {
    if !sort.field.is_empty() {
        rows.sort_by(|a, b| match (a.get(sort.field), b.get(sort.field)) {
            (Some(a), Some(b)) => compare(a, b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        });
    }
    if reverse {
        rows.reverse();
    }
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        _ => a.as_str().cmp(&b.as_str()),
    }
}

/// What rows must have: words of their texts, and values that the gateway looks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub text: String,
    /// Of sessions only.
    pub query: Vec<(&'static str, String)>,
    words: Vec<String>,
}

/// The filters of sessions that the gateway knows.
const QUERIES: [&str; 7] =
    ["listener", "route", "backend", "endpoint", "client", "server_name", "state"];

impl Filter {
    pub fn new(text: &str, pane: Pane) -> Self {
        let mut filter = Self { text: text.trim().to_owned(), ..Self::default() };
        for word in text.split_whitespace() {
            let known = |key: &str| QUERIES.into_iter().find(|known| *known == key);
            let pair = word.split_once('=').and_then(|(key, value)| Some((known(key)?, value)));
            match pair.filter(|_| pane == Pane::Sessions) {
                Some((key, value)) => filter.query.push((key, value.to_owned())),
                None => filter.words.push(word.to_lowercase()),
            }
        }
        filter
    }

    /// Whether the row has each word in one of its texts.
    pub fn matches(&self, cells: &[String]) -> bool {
        let has = |word: &String| cells.iter().any(|cell| cell.to_lowercase().contains(word));
        self.words.iter().all(has)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_come_greatest_first_and_rows_without_the_field_last() {
        let mut rows =
            [json!({ "n": 1 }), json!({ "n": 3 }), json!({}), json!({ "n": 2.5 })].to_vec();
        order(&mut rows, &sort("n", "n"), false);
        assert_eq!(rows, [json!({ "n": 3 }), json!({ "n": 2.5 }), json!({ "n": 1 }), json!({})]);
        let mut rows = [json!({ "t": "b" }), json!({ "t": "a" })];
        order(&mut rows, &sort("t", "t"), false);
        assert_eq!(rows[0], json!({ "t": "a" }));
        order(&mut rows, &sort("t", "t"), true);
        assert_eq!(rows[0], json!({ "t": "b" }));
    }

    #[test]
    fn a_filter_of_sessions_asks_the_gateway_and_other_words_are_looked_for() {
        let filter = Filter::new(" listener=web Relay x=y", Pane::Sessions);
        assert_eq!(filter.query, [("listener", "web".to_owned())]);
        let cells = |texts: [&str; 2]| texts.map(str::to_owned);
        assert!(filter.matches(&cells(["relaying", "x=y"])));
        assert!(!filter.matches(&cells(["relaying", "z"])));
        let filter = Filter::new("listener=web", Pane::Listeners);
        assert!(filter.query.is_empty() && filter.matches(&cells(["listener=web", ""])));
        assert!(Filter::new("", Pane::Events).matches(&[]));
    }
}
