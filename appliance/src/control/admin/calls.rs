//! What the admin API asks of the control thread.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use config_sync::compile::names::Names;
use config_sync::sync::ConfigSync;
use config_sync::table::request::{Handle, Of};
use config_sync::table::routing::EndpointId;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::control::id::Run;
use crate::control::timestamp::WallClock;
use crate::stats::records::Reply;

/// The most calls that wait for the control thread. One more call waits in the API.
pub const CALLS: usize = 32;

/// A question for the control thread.
pub enum Call {
    /// One question to a worker, and where the answer goes.
    Worker { asked: Box<Asked>, answer: oneshot::Sender<Result<Answer, Refusal>> },
    /// Start the next process, which takes over. `None`: the program that runs.
    Upgrade { binary: Option<PathBuf>, answer: oneshot::Sender<Result<Upgraded, Refusal>> },
    /// Read the configuration's files again. `confirmed`: also if most listeners are gone.
    Reload { confirmed: bool, answer: oneshot::Sender<Result<Reloaded, Refusal>> },
    /// Work on the configuration in force. It sends its own answer, and takes milliseconds at most.
    Sync(Box<dyn FnOnce(&mut ConfigSync) + Send>),
}

/// Which worker is asked for what.
pub enum Asked {
    List { worker: usize, of: Of, words: Words, from: u32, most: u32 },
    Inspect { worker: usize, handle: Handle, run: Run },
    Kill { worker: usize, handle: Handle, run: Run },
    KillAll { worker: usize, of: Of, words: Words },
    Resting { worker: usize, endpoints: Box<[EndpointId]> },
}

/// A worker's answer, and what makes ids and times readable.
pub struct Answer {
    pub reply: Reply,
    pub names: Arc<Names>,
    pub wall: WallClock,
    pub run: Run,
}

/// Why there is no answer. The text is for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The caller's fault.
    Bad(String),
    /// The thing that the caller names does not exist.
    Unknown(String),
    /// The gateway can't answer now.
    Busy(&'static str),
    /// The gateway has tried, and says why that came to nothing.
    Failed(String),
}

/// An upgrade that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Upgraded {
    /// The number of the new process.
    pub process: u32,
    /// How many processes there have been, with the new one.
    pub generation: u64,
    /// The number of listening addresses that the new process has taken over.
    pub listeners: usize,
    /// The number of UDP flows that have gone to the new process. TCP sessions go to it from now
    /// on: the new process's status says how many have.
    pub flows: usize,
}

/// A reading of the configuration's files that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Reloaded {
    /// The generation of the configuration that is in force.
    pub generation: u64,
}

/// What sessions or flows have to be like, in the words of the configuration.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Deserialize)]
#[schemars(rename = "SessionFilter")]
#[serde(deny_unknown_fields)]
pub struct Words {
    pub listener: Option<String>,
    pub route: Option<String>,
    pub backend: Option<String>,
    /// The endpoint's address as in the access log, alone or behind its backend and a slash.
    pub endpoint: Option<String>,
    #[serde(default, deserialize_with = "prefix")]
    #[schemars(with = "Option<String>")]
    pub client: Option<IpNet>,
    pub server_name: Option<String>,
    /// The state, as lists show it.
    pub state: Option<String>,
    pub min_age_ms: Option<u64>,
    pub max_age_ms: Option<u64>,
    pub min_idle_ms: Option<u64>,
    pub max_idle_ms: Option<u64>,
    /// The bytes of both directions.
    pub min_bytes: Option<u64>,
    pub max_bytes: Option<u64>,
    /// Only for lists: the most entries of a page, and where the page begins.
    pub limit: Option<u32>,
    pub cursor: Option<String>,
    /// Only for lists: the answer is one page, with the first entries in this order. Of numbers the
    /// greatest come first, of all else the first of the alphabet.
    pub sort: Option<Column>,
    /// Turns the order of `sort` round.
    pub reverse: Option<bool>,
}

/// What a list can be sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Deserialize)]
#[schemars(rename = "SessionColumn")]
#[serde(rename_all = "snake_case")]
pub enum Column {
    Id,
    Protocol,
    Listener,
    Route,
    Backend,
    Endpoint,
    EndpointName,
    Client,
    Peer,
    Local,
    ServerName,
    State,
    AgeMs,
    IdleMs,
    BytesUp,
    BytesDown,
    /// The bytes of both directions.
    Bytes,
    ConnectMs,
    Worker,
}

impl Words {
    /// The words as the caller has given them, for the log.
    pub fn said(&self) -> String {
        let words = [
            ("listener", self.listener.clone()),
            ("route", self.route.clone()),
            ("backend", self.backend.clone()),
            ("endpoint", self.endpoint.clone()),
            ("client", self.client.map(|client| client.to_string())),
            ("server_name", self.server_name.clone()),
            ("state", self.state.clone()),
        ];
        let numbers = [
            ("min_age_ms", self.min_age_ms),
            ("max_age_ms", self.max_age_ms),
            ("min_idle_ms", self.min_idle_ms),
            ("max_idle_ms", self.max_idle_ms),
            ("min_bytes", self.min_bytes),
            ("max_bytes", self.max_bytes),
        ];
        let words = words.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let words = words.map(|(key, value)| format!("{key} {value:?}"));
        let numbers = numbers.iter().filter_map(|(key, value)| Some((key, (*value)?)));
        let numbers = numbers.map(|(key, value)| format!("{key} {value}"));
        words.chain(numbers).collect::<Vec<_>>().join(", ")
    }
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(Some).map_err(|_| {
        serde::de::Error::custom(format!("{text:?} is no address or prefix, such as 10.0.0.0/8"))
    })
}

const GONE: Refusal = Refusal::Busy("the gateway is ending");

/// The way to the control thread.
#[derive(Clone)]
pub struct Caller(mpsc::Sender<Call>);

/// Makes the way to the control thread, and its end there.
pub fn channel() -> (Caller, mpsc::Receiver<Call>) {
    let (sender, receiver) = mpsc::channel(CALLS);
    (Caller(sender), receiver)
}

impl Caller {
    /// Asks, and waits for the answer.
    pub async fn ask(&self, asked: Asked) -> Result<Answer, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Call::Worker { asked: Box::new(asked), answer }).await.map_err(|_| GONE)?;
        answered.await.unwrap_or(Err(GONE))
    }

    /// Has the configuration's files read again, and waits until they are in force or refused.
    /// `confirmed`: also if most listeners are gone.
    pub async fn reload(&self, confirmed: bool) -> Result<Reloaded, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Call::Reload { confirmed, answer }).await.map_err(|_| GONE)?;
        answered.await.unwrap_or(Err(GONE))
    }

    /// Starts the next process, and waits until it has taken over.
    pub async fn upgrade(&self, binary: Option<PathBuf>) -> Result<Upgraded, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Call::Upgrade { binary, answer }).await.map_err(|_| GONE)?;
        answered.await.unwrap_or(Err(GONE))
    }

    /// Does something with the configuration in force, on the control thread.
    pub async fn with_sync<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ConfigSync) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        // The caller may have gone in the meantime.
        let work = Box::new(move |sync: &mut ConfigSync| _ = answer.send(work(sync)));
        self.0.send(Call::Sync(work)).await.map_err(|_| GONE)?;
        answered.await.map_err(|_| GONE)
    }
}
