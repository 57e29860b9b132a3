//! The verbs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::control::client::arguments::{Output, Watched, time};
use crate::control::client::http::Question;
use crate::control::client::list::{List, Which};
use crate::control::client::save;
use crate::control::client::show::{
    BACKENDS, CERTIFICATES, CLOSES, ENDPOINTS, LIMITS, LISTENERS, OVERRIDES, ROUTES,
    closes_with_samples, log_level, session, status, why,
};
use crate::control::client::top::Top;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say how a running gateway fares: version, configuration, sessions, rates, and what is wrong.
    Status(Watched),
    /// List the listeners of a running gateway: addresses, sessions, refusals, bytes.
    Listeners(Watched),
    /// List the routes of a running gateway, and the share of each of their backends.
    Routes(Watched),
    /// List the backends of a running gateway, the worst first: endpoints, sessions, what is wrong.
    Backends(Watched),
    /// List the TCP and TLS sessions of a running gateway.
    Sessions(List),
    /// List the UDP flows of a running gateway.
    Flows(List),
    /// Show one session or flow of a running gateway.
    Session {
        /// Its id, as in lists and in the access log.
        id: String,
        #[command(flatten)]
        watched: Watched,
    },
    /// Close a session or flow of a running gateway, or all that match.
    ///
    /// A session's client and endpoint get a reset. A flow's next datagram begins a new flow.
    Kill {
        /// Its id, as in lists and in the access log.
        #[arg(required_unless_present = "Which", conflicts_with_all = ["Which", "flows"])]
        id: Option<String>,
        /// Close flows that match, and not sessions.
        #[arg(long)]
        flows: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: Output,
    },
    /// List the endpoints of a running gateway: weight, state and sessions.
    Endpoints(Watched),
    /// Say why sessions and flows of a running gateway ended in the last hour.
    Closes {
        /// Show lines of the access log for each reason.
        #[arg(long)]
        samples: bool,
        #[command(flatten)]
        watched: Watched,
    },
    /// Show the newest lines of a running gateway's own log: what it noticed and did.
    Events {
        /// Show the newest N.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
        /// Go on with new lines until Ctrl-C.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Say where a client would go, and why: listener, rules, route, backends and endpoints.
    ///
    /// A running gateway is asked. Where a backend balances by the client's address, the answer is
    /// one endpoint. Otherwise it is the chance of each. A gateway with a PROXY header in front of
    /// it takes the header's address for the client's.
    Why {
        #[command(flatten)]
        client: WhyClient,
        #[command(flatten)]
        watched: Watched,
    },
    /// Show which listeners, endpoints and clients of a running gateway have the most to do.
    ///
    /// On a terminal this is a screen with panes: overview, listeners, backends, sessions, clients
    /// and events. `?` shows the keys, and `q` ends. Clients are counted when their sessions end,
    /// in windows of 10 s.
    Top(Top),
    /// List the limits of a running gateway, the fullest first: used, capacity, and what sets it.
    Limits(Watched),
    /// List the certificates of a running gateway, the first to end first.
    Certificates(Watched),
    /// List what operators have said about endpoints, backends and listeners of a running gateway.
    Overrides {
        /// Write those that have no end to this file, for `admin.overrides_file`.
        #[arg(long, value_name = "FILE", conflicts_with = "watch")]
        save: Option<PathBuf>,
        #[command(flatten)]
        watched: Watched,
    },
    /// Show or set how much a running gateway says about itself.
    LogLevel {
        /// off, error, warn, info, debug or trace; or this for a part of the program, such as
        /// config_sync::health=debug. Several have commas between them. Without: show the level.
        #[arg(value_name = "LEVEL|TARGET=LEVEL,...")]
        level: Option<String>,
        /// Go back to the level of before after this time, such as 90s, 10m or 2h.
        #[arg(long = "for", value_name = "TIME", value_parser = time, requires = "level")]
        lasts: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// Have a running gateway open the file of its access log again, as SIGHUP does.
    ///
    /// For log rotation: rename the file first. The next line goes to the new file. Unlike SIGHUP,
    /// this does not read the configuration again.
    LogReopen {
        #[command(flatten)]
        output: Output,
    },
    /// Have a running gateway read its configuration again, and say what became of it.
    ///
    /// As SIGHUP, but it waits. The exit code is 1 if the configuration is refused; then the one in
    /// force stays, and the faults are printed.
    Reload {
        /// Also if most listeners are gone, as in a file that was cut off.
        #[arg(long)]
        confirm: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Start a new process of a running gateway, which takes the listening sockets over.
    ///
    /// No client is turned away meanwhile. TCP sessions, TLS sessions that pass through, and UDP
    /// flows go on in the new process. Sessions where TLS ends at Ringway drain in the old one,
    /// which ends with the last of them, or after drain_timeout. If the new process fails, the old
    /// one goes on, and the exit code is 1. This needs admin.socket.
    Upgrade {
        /// The new program. Without: the one that runs, from where it was started.
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Give an endpoint, a backend or a listener no new sessions. Those that live stay.
    ///
    /// `drain ENDPOINT`: other endpoints of its backend get the sessions. `drain backend NAME`: no
    /// endpoint of it gets any, and its routes refuse sessions or go to their next backend, as
    /// `on_unavailable` says. `drain listener NAME`: its sockets close, so connections are refused
    /// and load balancers in front notice; on a socket that it shares with other listeners, its
    /// clients are refused with the reason `no_route`.
    Drain {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        lasts: For,
    },
    /// Take a drain back.
    Undrain {
        #[command(flatten)]
        what: What,
    },
    /// Treat an endpoint as down. `on_down` of its backend says what becomes of its sessions.
    Disable {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        lasts: For,
    },
    /// Take a disable back.
    Enable {
        #[command(flatten)]
        at: At,
    },
    /// Give an endpoint another weight than the configured one.
    Weight {
        #[command(flatten)]
        at: At,
        /// 0 to 256; 0 is no new sessions.
        #[arg(value_name = "WEIGHT", required_unless_present = "configured")]
        weight: Option<u32>,
        /// Go back to the configured weight.
        #[arg(long, conflicts_with_all = ["weight", "lasts"])]
        configured: bool,
        #[command(flatten)]
        lasts: For,
    },
}

/// A client, as an operator describes it.
#[derive(Debug, Args)]
pub struct WhyClient {
    /// The client's address.
    #[arg(value_name = "CLIENT[:PORT]")]
    client: String,
    /// The name of the listener that the client comes to.
    #[arg(long, value_name = "NAME")]
    listener: String,
    /// The listener's address that the client comes to (default: the listener's first).
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: Option<String>,
    /// The server name that the client sends.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// A protocol that the client offers (ALPN), best first; may be repeated.
    #[arg(long, value_name = "PROTOCOL")]
    alpn: Vec<String>,
    /// What the client of a TLS listener sends first: a ClientHello, something else, or nothing.
    #[arg(long, value_name = "WHAT", value_parser = ["tls", "not_tls", "silent"])]
    speaks: Option<String>,
    /// The client speaks UDP. It is an error if the listener does not.
    #[arg(long, conflicts_with_all = ["sni", "alpn", "speaks"])]
    udp: bool,
}

/// An endpoint, as an operator names it.
#[derive(Debug, Args)]
pub struct At {
    /// Its address or its `name`, alone or behind its backend and a slash.
    #[arg(value_name = "[BACKEND/]ENDPOINT")]
    endpoint: String,
    #[command(flatten)]
    output: Output,
}

/// What is drained, as an operator names it.
#[derive(Debug, Args)]
pub struct What {
    /// An endpoint by its address or its `name`, alone or behind its backend and a slash; or
    /// `backend` or `listener`, and a name.
    #[arg(
        value_name = "ENDPOINT | backend NAME | listener NAME",
        num_args = 1..=2,
        required = true
    )]
    words: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// How long an override lasts.
#[derive(Debug, Args)]
pub struct For {
    /// Take it back after this time, such as 90s, 10m or 2h. Without: until somebody takes it back,
    /// or a restart.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    lasts: Option<Duration>,
}

impl Verb {
    pub fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.act())
    }

    async fn act(self) -> anyhow::Result<()> {
        match self {
            Self::Top(top) => top.run().await,
            Self::Status(watched) => watched.show(&Question::get("status"), status).await,
            Self::Listeners(watched) => watched.list("listeners", LISTENERS).await,
            Self::Routes(watched) => watched.list("routes", ROUTES).await,
            Self::Backends(watched) => watched.list("backends", BACKENDS).await,
            Self::Sessions(list) => list.run("sessions").await,
            Self::Flows(list) => list.run("flows").await,
            Self::Session { id, watched } => {
                watched.show(&Question::get(format!("session/{}", part(&id))), session).await
            }
            Self::Kill { id: Some(id), output, .. } => {
                output.show(&Question::delete(format!("session/{}", part(&id))), killed).await
            }
            Self::Kill { id: None, flows, which, output } => {
                let path = if flows { "flows" } else { "sessions" };
                let question = Question { query: which.query(), ..Question::delete(path) };
                output.show(&question, killed).await
            }
            Self::Limits(watched) => watched.list("limits", LIMITS).await,
            Self::Certificates(watched) => watched.list("certificates", CERTIFICATES).await,
            Self::Endpoints(watched) => watched.list("endpoints", ENDPOINTS).await,
            Self::Closes { samples: true, watched } if !watched.output.json => {
                watched.show(&Question::get("closes"), closes_with_samples).await
            }
            Self::Closes { watched, .. } => watched.list("closes", CLOSES).await,
            Self::Events { limit, watch, output } => output.events(limit, watch).await,
            Self::Why { client, watched } => {
                let question = Question { query: client.query(), ..Question::get("why") };
                watched.show(&question, why).await
            }
            Self::Overrides { save: None, watched } => watched.list("overrides", OVERRIDES).await,
            Self::Overrides { save: Some(file), watched: Watched { output, .. } } => {
                save::run(&file, &output.reach, output.json).await
            }
            Self::LogLevel { level: None, output, .. } => {
                output.show(&Question::get("log-level"), log_level).await
            }
            Self::LogLevel { level: Some(level), lasts, output } => {
                output.show(&set_level(level, lasts), log_level).await
            }
            Self::LogReopen { output } => {
                let question =
                    Question { method: Method::POST, ..Question::get("access-log/reopen") };
                output.show(&question, |_| "the next line goes to the new file\n".to_owned()).await
            }
            Self::Reload { confirm, output } => {
                let query = confirm.then(|| ("confirm", "true".to_owned())).into_iter().collect();
                let question = Question { method: Method::POST, query, ..Question::get("reload") };
                output.show(&question, reloaded).await
            }
            Self::Upgrade { binary, output } => {
                let binary = binary.map(std::path::absolute).transpose()?;
                let body = Some(json!({ "binary": binary }));
                let question = Question { method: Method::POST, body, ..Question::get("upgrade") };
                output.show(&question, upgraded).await
            }
            Self::Drain { what, lasts } => what.drain(lasts).await,
            Self::Undrain { what } => what.undrain().await,
            Self::Disable { at, lasts } => at.say(json!({ "action": "disable" }), lasts).await,
            Self::Enable { at } => at.take_back("disable").await,
            Self::Weight { at, weight: Some(weight), lasts, .. } => {
                at.say(json!({ "action": "weight", "weight": weight }), lasts).await
            }
            Self::Weight { at, weight: None, .. } => at.take_back("weight").await,
        }
    }
}

impl WhyClient {
    fn query(self) -> Vec<(&'static str, String)> {
        let mut query = vec![("client", self.client), ("listener", self.listener)];
        query.extend(self.to.map(|to| ("local", to)));
        query.extend(self.sni.map(|name| ("server_name", name)));
        if !self.alpn.is_empty() {
            query.push(("alpn", self.alpn.join(",")));
        }
        query.extend(self.speaks.map(|what| ("speaks", what)));
        if self.udp {
            query.push(("udp", "true".to_owned()));
        }
        query
    }
}

impl At {
    async fn say(self, body: Value, lasts: For) -> anyhow::Result<()> {
        say("endpoint", &self.endpoint, body, lasts, &self.output).await
    }

    async fn take_back(self, action: &str) -> anyhow::Result<()> {
        take_back("endpoint", &self.endpoint, action, &self.output).await
    }
}

impl What {
    async fn drain(&self, lasts: For) -> anyhow::Result<()> {
        let (key, name) = self.named()?;
        say(key, name, json!({ "action": "drain" }), lasts, &self.output).await
    }

    async fn undrain(&self) -> anyhow::Result<()> {
        let (key, name) = self.named()?;
        take_back(key, name, "drain", &self.output).await
    }

    /// The API's word for what is named, and the name.
    fn named(&self) -> anyhow::Result<(&'static str, &str)> {
        match &self.words[..] {
            [endpoint] => Ok(("endpoint", endpoint)),
            [what, name] if what == "backend" => Ok(("backend", name)),
            [what, name] if what == "listener" => Ok(("listener", name)),
            _ => bail!("write ENDPOINT, or `backend NAME`, or `listener NAME`"),
        }
    }
}

async fn say(
    key: &'static str,
    name: &str,
    mut body: Value,
    For { lasts }: For,
    output: &Output,
) -> anyhow::Result<()> {
    body[key] = name.into();
    if let Some(lasts) = lasts {
        body["for_seconds"] = lasts.as_secs().into();
    }
    let question =
        Question { method: Method::POST, body: Some(body), ..Question::get("overrides") };
    output.show(&question, done).await
}

async fn take_back(
    key: &'static str,
    name: &str,
    action: &str,
    output: &Output,
) -> anyhow::Result<()> {
    let query = vec![(key, name.to_owned()), ("action", action.to_owned())];
    output.show(&Question { query, ..Question::delete("overrides") }, done).await
}

fn set_level(level: String, lasts: Option<Duration>) -> Question {
    let mut body = json!({ "level": level });
    if let Some(lasts) = lasts {
        body["for_seconds"] = lasts.as_secs().into();
    }
    Question { method: Method::PUT, body: Some(body), ..Question::get("log-level") }
}

fn done(answer: &Value) -> String {
    let names = ["endpoint", "backend", "listener"].map(|key| (key, answer[key].as_str()));
    match names.into_iter().find_map(|(key, name)| Some((key, name?))) {
        Some(("endpoint", name)) => format!("{name}: done\n"),
        Some((what, name)) => format!("{what} {name}: done\n"),
        None => "done\n".to_owned(),
    }
}

/// An id as one part of a path. What is in no id is left out, and the gateway says what an id is.
fn part(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

fn reloaded(answer: &Value) -> String {
    let generation = answer.get("generation").and_then(Value::as_u64).unwrap_or(0);
    format!("configuration {generation} is in force\n")
}

fn upgraded(answer: &Value) -> String {
    let number = |key: &str| answer.get(key).and_then(Value::as_u64).unwrap_or(0);
    format!(
        "process {} serves now, number {} of its line; it has taken {} listening addresses and {} \
         UDP flows over, and TCP sessions go to it from now on\n",
        number("process"),
        number("generation"),
        number("listeners"),
        number("flows")
    )
}

fn killed(answer: &Value) -> String {
    let killed = answer.get("killed").and_then(Value::as_u64).unwrap_or(0);
    format!("{killed} closed\n")
}
