//! Arguments that several verbs have.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::control::client::http::{Question, Reach};
use crate::control::client::screen::{draw, on_other_screen};
use crate::control::client::show::{Columns, event, table};
use crate::control::output::{print, print_again};

/// Where the gateway is, and how the answer is printed.
#[derive(Debug, Args)]
pub struct Output {
    #[command(flatten)]
    pub reach: Reach,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How an answer is printed: once, or again and again.
#[derive(Debug, Args)]
pub struct Watched {
    /// Show it again every 2 s until Ctrl-C.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    pub output: Output,
}

/// How often new lines of the log are asked for.
const PAUSE: Duration = Duration::from_secs(1);

/// The pause between two looks.
const LOOK: Duration = Duration::from_secs(2);

impl Watched {
    pub async fn list(&self, path: &'static str, columns: Columns) -> anyhow::Result<()> {
        let ask = async || {
            let answer = self.output.reach.ask(&Question::get(path)).await?;
            anyhow::Ok(self.output.text_of_list(&answer, path, columns))
        };
        self.look(ask).await
    }

    /// As [`Self::list`], of rows that need more than one question.
    pub async fn rows(
        &self,
        path: &'static str,
        rows: impl AsyncFn() -> anyhow::Result<Vec<Value>>,
        columns: Columns,
    ) -> anyhow::Result<()> {
        self.look(async || Ok(self.output.text_of_rows(path, rows().await?, columns))).await
    }

    pub async fn show(
        &self,
        question: &Question,
        text: fn(&Value) -> String,
    ) -> anyhow::Result<()> {
        let ask =
            async || anyhow::Ok(self.output.text_of(&self.output.reach.ask(question).await?, text));
        self.look(ask).await
    }

    async fn look(&self, ask: impl AsyncFn() -> anyhow::Result<String>) -> anyhow::Result<()> {
        if !self.watch {
            return print(&ask().await?);
        }
        let on_screen = io::stdout().is_terminal() && !self.output.json;
        let again = async || {
            loop {
                let text = ask().await?;
                match (on_screen, self.output.json) {
                    (true, _) => draw(&text)?,
                    (false, true) => print_again(&text)?,
                    (false, false) => print_again(&format!("{text}\n"))?,
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        match on_screen {
            true => on_other_screen(again()).await,
            false => again().await,
        }
    }
}

impl Output {
    pub async fn show(
        &self,
        question: &Question,
        text: fn(&Value) -> String,
    ) -> anyhow::Result<()> {
        print(&self.text_of(&self.reach.ask(question).await?, text))
    }

    fn text_of_list(&self, answer: &Value, path: &str, columns: Columns) -> String {
        let rows = answer.get(path).and_then(Value::as_array).cloned().unwrap_or_default();
        self.text_of_rows(path, rows, columns)
    }

    fn text_of_rows(&self, path: &str, rows: Vec<Value>, columns: Columns) -> String {
        match self.json {
            true => format!("{}\n", Value::Array(rows)),
            false if rows.is_empty() => format!("no {path}\n"),
            false => table(&rows, columns),
        }
    }

    fn text_of(&self, answer: &Value, text: fn(&Value) -> String) -> String {
        match self.json {
            true => format!("{answer}\n"),
            false => text(answer),
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
            print_again(&text)?;
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
