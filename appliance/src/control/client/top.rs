//! `ringway top`: who has the most to do, drawn again and again.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::control::client::arguments::{Output, time};
use crate::control::client::http::Question;
use crate::control::client::screen::{draw, height, on_other_screen};
use crate::control::client::show::{As, Columns, table};
use crate::control::output::print;

#[derive(Debug, Args)]
pub struct Top {
    /// What the lists are sorted by.
    #[arg(long, value_enum, default_value_t = By::Bytes)]
    by: By,
    /// The time between two looks, such as 2s.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "2s")]
    interval: Duration,
    /// Print once, after one interval, and end. This is also what happens without a terminal.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// Live sessions and flows; of clients, those that ended.
    Sessions,
    Bytes,
    /// New sessions and flows; of clients, those that ended.
    New,
    /// Sessions and flows that got no endpoint; of endpoints, failed connects.
    Refused,
}

/// The rows of each list where nothing limits them.
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
    pub async fn run(self) -> anyhow::Result<()> {
        if self.output.json {
            return print(&format!("{}\n", self.look().await?));
        }
        if self.once || !io::stdout().is_terminal() {
            let before = self.look().await?;
            let began = Instant::now();
            tokio::time::sleep(self.interval).await;
            let after = self.look().await?;
            return print(&self.screen(&before, &after, began.elapsed(), ROWS));
        }
        on_other_screen(self.redraw()).await
    }

    async fn look(&self) -> anyhow::Result<Value> {
        self.output.reach.ask(&Question::get("top")).await
    }

    async fn redraw(&self) -> anyhow::Result<()> {
        let (mut before, mut began) = (self.look().await?, Instant::now());
        draw("waiting for the first interval")?;
        loop {
            tokio::time::sleep(self.interval).await;
            let (after, now) = (self.look().await?, Instant::now());
            // Each of the three lists has a line of titles, two have an empty line in front, and
            // two lines stand above all. The last line stays empty.
            let rows = height().saturating_sub(9) / 3;
            draw(&self.screen(&before, &after, now - began, rows.max(1)))?;
            (before, began) = (after, now);
        }
    }

    fn screen(&self, before: &Value, after: &Value, time: Duration, rows: usize) -> String {
        let listeners = self.changed(before, after, "listeners", &["listener"], rows);
        let endpoints = self.changed(before, after, "endpoints", &["backend", "endpoint"], rows);
        let (list, said, columns) = match self.by {
            By::Bytes => ("bytes", "bytes of ended sessions", SIZES),
            By::Refused => ("refused", "refused sessions", COUNTS),
            By::Sessions | By::New => ("ended", "ended sessions", COUNTS),
        };
        let clients = &after["clients"];
        let window = clients["window_ms"].as_u64().unwrap_or(0) as f64 / 1_000.0;
        let top = clients[list].as_array().map_or(&[][..], Vec::as_slice);
        let top = &top[..top.len().min(rows)];
        format!(
            "Listeners and endpoints: the last {:.1} s. Clients: {said}, {window:.0} s.\n\n\
             {}\n{}\n{}",
            time.as_secs_f64(),
            table(&listeners, LISTENERS),
            table(&endpoints, ENDPOINTS),
            table(top, columns),
        )
    }

    /// The rows of a list with what their totals have grown by, the first `most` of them.
    fn changed(
        &self,
        before: &Value,
        after: &Value,
        list: &str,
        key: &[&str],
        most: usize,
    ) -> Vec<Value> {
        let name = |row: &Value| key.iter().map(|key| row[*key].to_string()).collect::<String>();
        let rows = |of: &Value| of[list].as_array().cloned().unwrap_or_default();
        let old: HashMap<_, _> = rows(before).into_iter().map(|row| (name(&row), row)).collect();
        let mut new = rows(after);
        for row in &mut new {
            let old = old.get(&name(row));
            let totals = ["opened", "refused", "connect_failures", "bytes_up", "bytes_down"];
            for field in totals {
                let Some(total) = row.get(field).and_then(Value::as_u64) else { continue };
                let then = old.and_then(|old| old[field].as_u64()).unwrap_or(0);
                // A gateway that was started anew counts from 0.
                row[field] = json!(total.saturating_sub(then));
            }
        }
        new.sort_by_key(|row| std::cmp::Reverse(self.by.of(row)));
        new.truncate(most);
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
