//! The newest lines of Ringway's own log, for the admin API: configurations, health, overrides,
//! names, certificates.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::control::time_of_day::time_of_day;
use crate::control::timestamp::{Timestamp, as_text};

/// As many lines are kept.
pub const MOST: usize = 1_000;

/// A longer line is cut.
const MOST_BYTES: usize = 1_000;

/// A line of the log.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "Event")]
pub struct Entry {
    /// Counts from 1. A follower asks for the lines after the last number that it has.
    pub number: u64,
    #[serde(rename = "ts", serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub time: Timestamp,
    pub level: &'static str,
    pub text: String,
}

#[derive(Debug, Default)]
pub struct Events(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<Entry>,
    last: u64,
}

/// The log's lines of this process.
pub static EVENTS: Events = Events::new();

impl Events {
    const fn new() -> Self {
        Self(Mutex::new(Kept { entries: VecDeque::new(), last: 0 }))
    }

    fn add(&self, time: Timestamp, level: &'static str, text: String) {
        let mut kept = self.0.lock();
        kept.last += 1;
        let number = kept.last;
        if kept.entries.len() == MOST {
            kept.entries.pop_front();
        }
        kept.entries.push_back(Entry { number, time, level, text });
    }

    /// The newest `most` lines with a number above `after`, the oldest first.
    pub fn after(&self, after: u64, most: usize) -> Vec<Entry> {
        let kept = self.0.lock();
        let newer = kept.entries.iter().rev().take_while(|entry| entry.number > after);
        let mut found: Vec<_> = newer.take(most).cloned().collect();
        found.reverse();
        found
    }
}

/// Puts lines into [`EVENTS`], whatever the level of the log on stderr is.
pub struct Keep;

/// Whether a line is kept: Ringway's own lines, for operators.
pub fn is_kept(metadata: &tracing::Metadata<'_>) -> bool {
    let own = ["ringway", "config_sync", "data_plane"];
    let of = metadata.target().split("::").next().unwrap_or_default();
    metadata.is_event() && *metadata.level() <= Level::INFO && own.contains(&of)
}

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let Text(mut text) = text;
        if text.len() > MOST_BYTES {
            text.truncate(text.floor_char_boundary(MOST_BYTES));
            text.push_str("...");
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => "info",
        };
        EVENTS.add(Timestamp::of(time_of_day()), level, text);
    }
}

/// The message, and the other fields behind it.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        _ = match field.name() {
            "message" => write!(self.0, "{space}{value:?}"),
            name => write!(self.0, "{space}{name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_newest_are_kept_and_a_follower_gets_each_once() {
        let events = Events::new();
        let time = Timestamp::of(UNIX_EPOCH);
        for number in 1..=MOST + 5 {
            events.add(time, "info", format!("line {number}"));
        }
        let all = events.after(0, usize::MAX);
        assert_eq!((all.len(), all[0].number), (MOST, 6));
        assert_eq!(all[MOST - 1].text, format!("line {}", MOST + 5));
        let last = all[MOST - 1].number;
        assert!(events.after(last, 10).is_empty());
        events.add(time, "warn", "one more".to_owned());
        let new = events.after(last, 10);
        assert_eq!(new.iter().map(|entry| &*entry.text).collect::<Vec<_>>(), ["one more"]);
        assert_eq!(events.after(0, 2).len(), 2);
    }
}
