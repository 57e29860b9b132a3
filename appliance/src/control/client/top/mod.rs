//! `ringway top`: who has the most to do. On a terminal it is a screen with keys, through a pipe it
//! is one table.
//!
//! `live` asks, reads keys and draws. `model` and `frame` are pure: answers and keys go in, and a
//! frame comes out.

mod frame;
mod keys;
mod live;
mod model;
mod once;
mod overview;
mod panes;
mod rates;
mod style;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::control::client::arguments::{Output, time};
use crate::control::client::http::Question;
use crate::control::output::print;

#[derive(Debug, Args)]
pub struct Top {
    /// What the lists are sorted by at first.
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
pub enum By {
    /// Live sessions and flows; of clients, those that ended.
    Sessions,
    Bytes,
    /// New sessions and flows; of clients, those that ended.
    New,
    /// Sessions and flows that got no endpoint; of endpoints, failed connects.
    Refused,
}

impl Top {
    pub async fn run(self) -> anyhow::Result<()> {
        if self.output.json {
            return print(&format!("{}\n", self.look().await?));
        }
        let is_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
        match self.once || !is_terminal {
            true => self.print_once().await,
            false => live::run(self.output.reach, self.by, self.interval).await,
        }
    }

    async fn look(&self) -> anyhow::Result<Value> {
        self.output.reach.ask(&Question::get("top")).await
    }
}
