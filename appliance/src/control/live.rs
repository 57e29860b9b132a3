//! Passes what the admin API asks on to the workers, and their answers back.

use std::collections::BTreeMap;

use config_sync::compile::names::Names;
use config_sync::sync::ConfigSync;
use config_sync::table::request::{Filter, Request, Span, What};
use tokio::sync::{mpsc, oneshot};

use crate::control::admin::calls::{Answer, Asked, CALLS, Call, Refusal, Words};
use crate::control::id::Run;
use crate::control::timestamp::WallClock;
use crate::stats::records::{FLOW_STATES, Reply, SESSION_STATES};

/// The calls of the admin API that the control thread serves.
pub struct Live {
    pub calls: mpsc::Receiver<Call>,
    run: Run,
    wall: WallClock,
    /// Requests that a worker has not answered yet, by number: the worker, and who waits.
    waiting: BTreeMap<u64, Waiting>,
    number: u64,
}

type Waiting = (usize, oneshot::Sender<Result<Answer, Refusal>>);

impl Live {
    pub fn new(calls: mpsc::Receiver<Call>, run: Run, wall: WallClock) -> Self {
        Self { calls, run, wall, waiting: BTreeMap::new(), number: 0 }
    }

    pub fn run(&self) -> Run {
        self.run
    }

    /// Whether a worker will answer soon.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next call, if there is room for another request.
    pub async fn next(&mut self) -> Option<Call> {
        if self.waiting.len() >= CALLS {
            return std::future::pending().await;
        }
        match self.calls.recv().await {
            Some(call) => Some(call),
            // Without an admin API, nobody calls.
            None => std::future::pending().await,
        }
    }

    pub fn serve(&mut self, call: Call, sync: &mut ConfigSync) {
        let (asked, answer) = match call {
            Call::Worker { asked, answer } => (asked, answer),
            Call::Sync(work) => return work(sync),
            Call::Upgrade { answer, .. } => {
                let why = Refusal::Busy("upgrades are not the workers' affair");
                _ = answer.send(Err(why));
                return;
            }
            Call::Reload { answer, .. } => {
                _ = answer.send(Err(Refusal::Busy("reloads are not the workers' affair")));
                return;
            }
        };
        match self.pass_on(*asked, sync) {
            Ok(worker) => _ = self.waiting.insert(self.number, (worker, answer)),
            // The caller may have gone in the meantime.
            Err(refusal) => _ = answer.send(Err(refusal)),
        }
    }

    /// Returns the worker that will answer the request `self.number`.
    fn pass_on(&mut self, asked: Asked, sync: &mut ConfigSync) -> Result<usize, Refusal> {
        let (worker, what) = request(asked, self.run, sync.names())?;
        self.number += 1;
        match sync.ask(worker, Request { number: self.number, what }) {
            true => Ok(worker),
            false => Err(Refusal::Unknown(format!("there is no worker {worker}"))),
        }
    }

    pub fn replied(&mut self, reply: Reply, sync: &ConfigSync) {
        let Some((_, answer)) = self.waiting.remove(&reply.number) else { return };
        let (names, wall, run) = (sync.shared_names(), self.wall, self.run);
        _ = answer.send(Ok(Answer { reply, names, wall, run }));
    }

    /// The worker has ended, so it answers no more.
    pub fn ended(&mut self, worker: usize) {
        self.waiting.retain(|_, (of, _)| *of != worker);
    }
}

fn request(asked: Asked, run: Run, names: &Names) -> Result<(usize, What), Refusal> {
    Ok(match asked {
        Asked::List { worker, of, words, from, most } => {
            (worker, What::List { of, filter: filter(&words, names)?, from, most })
        }
        Asked::KillAll { worker, of, words } => {
            (worker, What::KillAll { of, filter: filter(&words, names)? })
        }
        Asked::Resting { worker, endpoints } => (worker, What::Resting(endpoints)),
        Asked::Kill { run: of, .. } | Asked::Inspect { run: of, .. } if of != run => {
            return Err(Refusal::Unknown("the id is of an earlier run of the gateway".to_owned()));
        }
        Asked::Inspect { worker, handle, .. } => (worker, What::Inspect(handle)),
        Asked::Kill { worker, handle, .. } => (worker, What::Kill(handle)),
    })
}

/// Finds the ids of the names. A name of something that has left the configuration is known as long
/// as sessions may have it.
fn filter(words: &Words, names: &Names) -> Result<Filter, Refusal> {
    let unknown = |kind: &str, name: &str| Refusal::Bad(format!("no {kind} is called {name:?}"));
    let find = |kind, asked: &Option<String>, found: &dyn Fn(&str) -> bool| match asked {
        Some(name) if !found(name) => Err(unknown(kind, name)),
        _ => Ok(()),
    };
    let listener = |name: &str| names.listeners().find(|of| of.1 == name).map(|of| of.0);
    let route = |name: &str| names.routes().find(|of| of.1 == name).map(|of| of.0);
    let backend = |name: &str| names.backends().find(|of| of.1 == name).map(|of| of.0);
    find("listener", &words.listener, &|name| listener(name).is_some())?;
    find("route", &words.route, &|name| route(name).is_some())?;
    find("backend", &words.backend, &|name| backend(name).is_some())?;
    let endpoints = words.endpoint.as_deref().map(|asked| {
        let all = names.endpoints().filter(|(_, backend, address)| {
            let address = address.to_string();
            address == asked
                || asked
                    .strip_prefix(*backend)
                    .is_some_and(|rest| rest.strip_prefix('/').is_some_and(|rest| rest == address))
        });
        all.map(|(id, _, _)| id).collect::<Vec<_>>()
    });
    if let (Some([]), Some(asked)) = (endpoints.as_deref(), &words.endpoint) {
        return Err(unknown("endpoint", asked));
    }
    let states = [SESSION_STATES, FLOW_STATES].concat();
    find("state", &words.state, &|state| states.contains(&state))?;
    let micros = |millis: u64| millis.saturating_mul(1_000);
    let time = |least: Option<u64>, most: Option<u64>| {
        // Lists show whole milliseconds.
        let most = most.map(|most| micros(most).saturating_add(999));
        Span { least: least.map_or(0, micros), most: most.unwrap_or(u64::MAX) }
    };
    Ok(Filter {
        listener: words.listener.as_deref().and_then(listener),
        route: words.route.as_deref().and_then(route),
        backend: words.backend.as_deref().and_then(backend),
        endpoints,
        client: words.client,
        server_name: words.server_name.as_deref().map(|name| name.to_ascii_lowercase().into()),
        state: words.state.as_deref().map(Into::into),
        age: time(words.min_age_ms, words.max_age_ms),
        idle: time(words.min_idle_ms, words.max_idle_ms),
        bytes: Span {
            least: words.min_bytes.unwrap_or(0),
            most: words.max_bytes.unwrap_or(u64::MAX),
        },
    })
}
