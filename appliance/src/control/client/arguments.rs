//! Arguments that several verbs have.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::control::client::http::{Question, Reach};
use crate::control::client::show::{Columns, event, table};
use crate::control::output::print;

/// Where the gateway is, and how the answer is printed.
#[derive(Debug, Args)]
pub struct Output {
    #[command(flatten)]
    pub reach: Reach,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How often new lines of the log are asked for.
const PAUSE: Duration = Duration::from_secs(1);

impl Output {
    pub async fn list(&self, path: &'static str, columns: Columns) -> anyhow::Result<()> {
        let answer = self.reach.ask(&Question::get(path)).await?;
        let rows = answer.get(path).and_then(Value::as_array).cloned().unwrap_or_default();
        self.rows(path, rows, columns)
    }

    pub fn rows(&self, path: &str, rows: Vec<Value>, columns: Columns) -> anyhow::Result<()> {
        match self.json {
            true => print(&format!("{}\n", Value::Array(rows))),
            false if rows.is_empty() => print(&format!("no {path}\n")),
            false => print(&table(&rows, columns)),
        }
    }

    pub async fn show(
        &self,
        question: &Question,
        text: fn(&Value) -> String,
    ) -> anyhow::Result<()> {
        let answer = self.reach.ask(question).await?;
        match self.json {
            true => print(&format!("{answer}\n")),
            false => print(&text(&answer)),
        }
    }

    /// The newest lines of the gateway's own log. JSON: an object for each line.
    pub async fn events(&self, limit: usize, watch: bool) -> anyhow::Result<()> {
        let mut query = vec![("limit", limit.to_string())];
        let mut last = 0;
        loop {
            let question = Question { query: query.clone(), ..Question::get("events") };
            let answer = self.reach.ask(&question).await?;
            let lines = answer.get("events").and_then(Value::as_array).cloned().unwrap_or_default();
            let number = |line: &Value| line.get("number").and_then(Value::as_u64);
            last = lines.iter().filter_map(number).max().unwrap_or(last);
            let text: String = match self.json {
                true => lines.iter().map(|line| format!("{line}\n")).collect(),
                false => lines.iter().map(event).collect(),
            };
            print(&text)?;
            if !watch {
                return Ok(());
            }
            query = vec![("after", last.to_string())];
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A time: a number and its unit.
pub fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write a number and s, m, h or d, such as 10m");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let time = count.checked_mul(seconds).filter(|time| *time > 0).ok_or_else(wrong)?;
    Ok(Duration::from_secs(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        let seconds = |text| time(text).map(|time| time.as_secs());
        assert_eq!(["1s", "10m", "2h", "1d"].map(seconds), [Ok(1), Ok(600), Ok(7_200), Ok(86_400)]);
        for wrong in ["", "m", "10", "0s", "-1s", "1\u{e4}", "1.5h", "99999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert!(seconds("18446744073709551615d").is_err());
    }
}
