//! The verbs.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::control::client::http::{Question, Reach};
use crate::control::client::show::{SESSIONS, object, table};
use crate::control::output::print;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the TCP and TLS sessions of a running gateway.
    Sessions(List),
    /// List the UDP flows of a running gateway.
    Flows(List),
    /// Show one session or flow of a running gateway.
    Session {
        /// Its id, as in lists and in the access log.
        id: String,
        #[command(flatten)]
        output: Output,
    },
    /// Close a session or flow of a running gateway, or all that match.
    ///
    /// A session's client and endpoint get a reset. A flow's next datagram begins a new flow.
    Kill {
        /// Its id, as in lists and in the access log.
        #[arg(required_unless_present_any =
            ["listener", "route", "backend", "endpoint", "client", "server_name"],
            conflicts_with_all =
            ["listener", "route", "backend", "endpoint", "client", "server_name", "flows"])]
        id: Option<String>,
        /// Close flows that match, and not sessions.
        #[arg(long)]
        flows: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: Output,
    },
}

/// What a list shows.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    which: Which,
    /// Stop after this many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    output: Output,
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
}

/// Where the gateway is, and how the answer is printed.
#[derive(Debug, Args)]
pub struct Output {
    #[command(flatten)]
    reach: Reach,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The rows of a page. A page takes some milliseconds.
const PAGE: usize = 1_000;

impl Verb {
    pub fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.act())
    }

    async fn act(self) -> anyhow::Result<()> {
        match self {
            Self::Sessions(list) => list.run("sessions").await,
            Self::Flows(list) => list.run("flows").await,
            Self::Session { id, output } => {
                output.show(&Question::get(format!("session/{}", part(&id))), object).await
            }
            Self::Kill { id: Some(id), output, .. } => {
                output.show(&Question::delete(format!("session/{}", part(&id))), killed).await
            }
            Self::Kill { id: None, flows, which, output } => {
                let path = if flows { "flows" } else { "sessions" };
                let question = Question { query: which.query(), ..Question::delete(path) };
                output.show(&question, killed).await
            }
        }
    }
}

/// An id as one part of a path. What is in no id is left out, and the gateway says what an id is.
fn part(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

fn killed(answer: &Value) -> String {
    let killed = answer.get("killed").and_then(Value::as_u64).unwrap_or(0);
    format!("{killed} closed\n")
}

impl Which {
    fn query(&self) -> Vec<(&'static str, String)> {
        let words = [
            ("listener", &self.listener),
            ("route", &self.route),
            ("backend", &self.backend),
            ("endpoint", &self.endpoint),
            ("client", &self.client),
            ("server_name", &self.server_name),
        ];
        words.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect()
    }
}

impl Output {
    async fn show(&self, question: &Question, text: fn(&Value) -> String) -> anyhow::Result<()> {
        let answer = self.reach.ask(question).await?;
        match self.json {
            true => print(&format!("{answer}\n")),
            false => print(&text(&answer)),
        }
    }
}

impl List {
    /// Reads page after page.
    async fn run(&self, path: &'static str) -> anyhow::Result<()> {
        let most = self.limit.unwrap_or(usize::MAX);
        let (mut rows, mut cursor) = (Vec::new(), None::<String>);
        while rows.len() < most {
            let mut query = self.which.query();
            query.push(("limit", PAGE.min(most - rows.len()).to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let mut page =
                self.output.reach.ask(&Question { query, ..Question::get(path) }).await?;
            if let Some(Value::Array(found)) = page.get_mut(path) {
                rows.append(found);
            }
            cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        match self.output.json {
            true => print(&format!("{}\n", Value::Array(rows))),
            false if rows.is_empty() => print(&format!("no {path}\n")),
            false => print(&table(&rows, SESSIONS)),
        }
    }
}
