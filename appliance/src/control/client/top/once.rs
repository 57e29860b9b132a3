//! What `ringway top` prints without a terminal: one table of each kind.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::control::client::show::{As, Columns, table};
use crate::control::client::top::rates::each_growth;
use crate::control::client::top::{By, Top};
use crate::control::output::print;

/// The rows of each list.
const ROWS: usize = 20;

const LISTENERS: Columns = &[
    ("LISTENER", "listener", As::Text),
    ("SESSIONS", "sessions", As::Text),
    ("NEW", "opened", As::Text),
    ("REFUSED", "refused", As::Text),
    ("UP", "bytes_up", As::Bytes),
    ("DOWN", "bytes_down", As::Bytes),
];

const ENDPOINTS: Columns = &[
    ("BACKEND", "backend", As::Text),
    ("ENDPOINT", "endpoint", As::Text),
    ("SESSIONS", "sessions", As::Text),
    ("NEW", "opened", As::Text),
    ("FAILED", "connect_failures", As::Text),
    ("UP", "bytes_up", As::Bytes),
    ("DOWN", "bytes_down", As::Bytes),
];

const COUNTS: Columns =
    &[("CLIENT", "client", As::Text), ("COUNT", "count", As::Text), ("ERROR", "error", As::Text)];

const SIZES: Columns =
    &[("CLIENT", "client", As::Text), ("BYTES", "count", As::Bytes), ("ERROR", "error", As::Bytes)];

impl Top {
    /// Prints what has changed over one interval.
    pub(super) async fn print_once(&self) -> anyhow::Result<()> {
        let before = self.look().await?;
        let began = Instant::now();
        tokio::time::sleep(self.interval).await;
        let after = self.look().await?;
        print(&self.tables(&before, &after, began.elapsed()))
    }

    fn tables(&self, before: &Value, after: &Value, time: Duration) -> String {
        let listeners = self.changed(before, after, "listeners", &["listener"]);
        let endpoints = self.changed(before, after, "endpoints", &["backend", "endpoint"]);
        let (list, said, columns) = match self.by {
            By::Bytes => ("bytes", "bytes of ended sessions", SIZES),
            By::Refused => ("refused", "refused sessions", COUNTS),
            By::Sessions | By::New => ("ended", "ended sessions", COUNTS),
        };
        let clients = &after["clients"];
        let window = clients["window_ms"].as_u64().unwrap_or(0) as f64 / 1_000.0;
        let top = clients[list].as_array().map_or(&[][..], Vec::as_slice);
        let top = &top[..top.len().min(ROWS)];
        format!(
            "Listeners and endpoints: the last {:.1} s. Clients: {said}, {window:.0} s.\n\n\
             {}\n{}\n{}",
            time.as_secs_f64(),
            table(&listeners, LISTENERS),
            table(&endpoints, ENDPOINTS),
            table(top, columns),
        )
    }

    /// The rows of a list with what their totals have grown by.
    fn changed(&self, before: &Value, after: &Value, list: &str, key: &[&str]) -> Vec<Value> {
        let rows = |of: &Value| of[list].as_array().cloned().unwrap_or_default();
        let mut new = rows(after);
        each_growth(&rows(before), &mut new, key, |row, field, grown| {
            // All that a new row has counted is new.
            if let Some(grown) = grown {
                row[field] = json!(grown);
            }
        });
        new.sort_by_key(|row| std::cmp::Reverse(self.by.of(row)));
        new.truncate(ROWS);
        new
    }
}

impl By {
    fn of(self, row: &Value) -> u64 {
        let fields: &[_] = match self {
            Self::Sessions => &["sessions"],
            Self::Bytes => &["bytes_up", "bytes_down"],
            Self::New => &["opened"],
            Self::Refused => &["refused", "connect_failures"],
        };
        fields.iter().filter_map(|field| row.get(*field)?.as_u64()).sum()
    }
}
