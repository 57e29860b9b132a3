//! The lists of sessions and flows: which are shown, and in what order.

use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::Value;

use crate::control::client::arguments::{Watched, time};
use crate::control::client::http::Question;
use crate::control::client::show::SESSIONS;

/// What a list shows.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    which: Which,
    /// Show the first by this column, out of all that match: of numbers the greatest first, of all
    /// else the first of the alphabet.
    ///
    /// Without this, sessions come in the order of the gateway's memory.
    #[arg(long, value_name = "COLUMN", value_parser = PossibleValuesParser::new(columns()))]
    sort: Option<String>,
    /// Turn the order of --sort round.
    #[arg(long, requires = "sort")]
    reverse: bool,
    /// Stop after this many (default: all; with --sort 1000, and 5000 at the most).
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    watched: Watched,
}

/// All that are given must match.
#[derive(Debug, Args)]
pub struct Which {
    /// Of the listener of this name.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Of the route of this name.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Of the backend of this name.
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Of the endpoint with this address.
    #[arg(long, value_name = "[BACKEND/]ADDRESS")]
    endpoint: Option<String>,
    /// Of clients with this address, or with an address of this prefix.
    #[arg(long, value_name = "IP|PREFIX")]
    client: Option<String>,
    /// Of clients that sent this server name.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// In this state, such as relaying, half_closed, connecting or queued.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Begun at least this long ago, such as 90s, 10m or 2h.
    #[arg(long, value_name = "TIME", value_parser = time)]
    min_age: Option<Duration>,
    /// Begun at most this long ago.
    #[arg(long, value_name = "TIME", value_parser = time)]
    max_age: Option<Duration>,
    /// Without a byte or datagram for at least this long.
    #[arg(long, value_name = "TIME", value_parser = time)]
    min_idle: Option<Duration>,
    /// With a byte or datagram within this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    max_idle: Option<Duration>,
    /// That have carried at least this many bytes, such as 4096, 64K, 10M or 1G.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    min_bytes: Option<u64>,
    /// That have carried at most this many bytes.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    max_bytes: Option<u64>,
}

/// The rows of a page. A page takes some milliseconds.
const PAGE: usize = 1_000;

/// The names of columns, and the API's words for them.
const SORTS: &[(&str, &str)] = &[
    ("id", "id"),
    ("protocol", "protocol"),
    ("listener", "listener"),
    ("route", "route"),
    ("backend", "backend"),
    ("endpoint", "endpoint"),
    ("name", "endpoint_name"),
    ("client", "client"),
    ("peer", "peer"),
    ("local", "local"),
    ("server-name", "server_name"),
    ("state", "state"),
    ("age", "age_ms"),
    ("idle", "idle_ms"),
    ("up", "bytes_up"),
    ("down", "bytes_down"),
    ("bytes", "bytes"),
    ("connect", "connect_ms"),
    ("worker", "worker"),
];

fn columns() -> impl Iterator<Item = &'static str> {
    SORTS.iter().map(|(name, _)| *name)
}

/// A number of bytes.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: write a number, or one with K, M or G behind it");
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

impl Which {
    pub fn query(&self) -> Vec<(&'static str, String)> {
        let words = [
            ("listener", &self.listener),
            ("route", &self.route),
            ("backend", &self.backend),
            ("endpoint", &self.endpoint),
            ("client", &self.client),
            ("server_name", &self.server_name),
            ("state", &self.state),
        ];
        let millis = |time: Option<Duration>| time.map(|time| time.as_millis().to_string());
        let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes.to_string());
        let numbers = [
            ("min_age_ms", millis(self.min_age)),
            ("max_age_ms", millis(self.max_age)),
            ("min_idle_ms", millis(self.min_idle)),
            ("max_idle_ms", millis(self.max_idle)),
            ("min_bytes", bytes(self.min_bytes)),
            ("max_bytes", bytes(self.max_bytes)),
        ];
        let words = words.into_iter().filter_map(|(key, value)| Some((key, value.clone()?)));
        words.chain(numbers.into_iter().filter_map(|(key, value)| Some((key, value?)))).collect()
    }
}

impl List {
    pub async fn run(&self, path: &'static str) -> anyhow::Result<()> {
        let rows = async || match &self.sort {
            Some(column) => self.sorted(path, column).await,
            None => self.pages(path).await,
        };
        self.watched.rows(path, rows, SESSIONS).await
    }

    /// A sorted list is one page.
    async fn sorted(&self, path: &'static str, column: &str) -> anyhow::Result<Vec<Value>> {
        let word = SORTS.iter().find(|(name, _)| *name == column).map_or(column, |(_, word)| word);
        let mut query = self.which.query();
        query.push(("sort", word.to_owned()));
        query.push(("limit", self.limit.unwrap_or(PAGE).to_string()));
        if self.reverse {
            query.push(("reverse", "true".to_owned()));
        }
        self.page(path, query).await.map(|(rows, _)| rows)
    }

    /// Reads page after page.
    async fn pages(&self, path: &'static str) -> anyhow::Result<Vec<Value>> {
        let most = self.limit.unwrap_or(usize::MAX);
        let (mut rows, mut cursor) = (Vec::new(), None::<String>);
        while rows.len() < most {
            let mut query = self.which.query();
            query.push(("limit", PAGE.min(most - rows.len()).to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let (mut found, next) = self.page(path, query).await?;
            rows.append(&mut found);
            if next.is_none() {
                break;
            }
            cursor = next;
        }
        Ok(rows)
    }

    async fn page(
        &self,
        path: &'static str,
        query: Vec<(&'static str, String)>,
    ) -> anyhow::Result<(Vec<Value>, Option<String>)> {
        let question = Question { query, ..Question::get(path) };
        let mut page = self.watched.output.reach.ask(&question).await?;
        let rows = match page.get_mut(path) {
            Some(Value::Array(rows)) => std::mem::take(rows),
            _ => Vec::new(),
        };
        Ok((rows, page.get("next").and_then(Value::as_str).map(str::to_owned)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_may_have_a_unit() {
        let sizes = ["0", "4096", "64K", "10M", "1G"].map(size);
        assert_eq!(sizes, [0, 4_096, 65_536, 10_485_760, 1_073_741_824].map(Ok));
        for wrong in ["", "K", "-1", "1.5M", "1k", "1KiB", "99999999999999999999", "\u{e4}K"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(size("18446744073709551615K").is_err());
    }
}
