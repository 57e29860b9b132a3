//! Lists endpoints, and takes what operators say about them.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use config_sync::sync::ConfigSync;
use config_sync::sync::overrides::{Action, Asked, Kind, Override, Shown};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, lasts};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/endpoints", endpoints, "Lists the endpoints")
            .answers::<Endpoints>(),
        Operation::new(Method::GET, "/overrides", overrides, "Lists what operators have said")
            .answers::<Overrides>(),
        Operation::new(
            Method::POST,
            "/overrides",
            say,
            "Drains an endpoint, a backend or a listener, disables an endpoint, or sets its weight",
        )
        .body::<Say>()
        .answers::<Done>(),
        Operation::new(Method::DELETE, "/overrides", take_back, "Takes back what was said")
            .query::<TakeBack>()
            .answers::<Done>(),
    ]
}

#[derive(JsonSchema, Serialize)]
struct Endpoints {
    endpoints: Vec<Row>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Endpoint")]
struct Row {
    backend: String,
    endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    state: &'static str,
    /// As configured; for an SRV record, times the record's weight.
    weight: u32,
    /// 0: no new sessions.
    weight_in_force: f64,
    sessions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(JsonSchema, Serialize)]
struct Overrides {
    overrides: Vec<Said>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Override")]
struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    /// Absent: the listener, or the backend with all its endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    /// Absent: until somebody takes it back, or a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_ms: Option<u64>,
}

#[derive(JsonSchema, Deserialize)]
#[schemars(rename = "OverrideAsked")]
#[serde(deny_unknown_fields)]
pub(super) struct Say {
    listener: Option<String>,
    /// With `endpoint`: the endpoint's backend. Without: the backend with all its endpoints.
    backend: Option<String>,
    endpoint: Option<String>,
    action: Word,
    weight: Option<u32>,
    for_seconds: Option<u64>,
}

#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeBack {
    listener: Option<String>,
    backend: Option<String>,
    endpoint: Option<String>,
    /// Absent: all that is said.
    action: Option<Word>,
}

#[derive(Clone, Copy, JsonSchema, Deserialize)]
#[schemars(rename = "OverrideAction")]
#[serde(rename_all = "lowercase")]
enum Word {
    Drain,
    Disable,
    Weight,
}

/// What was meant; an endpoint, behind its backend and a slash.
#[derive(Default, JsonSchema, Serialize)]
#[schemars(rename = "OverrideDone")]
struct Done {
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
}

impl Done {
    fn of(asked: Asked<'_>, name: String) -> Self {
        let name = Some(name);
        match asked {
            Asked::Listener(_) => Self { listener: name, ..Self::default() },
            Asked::Backend(_) => Self { backend: name, ..Self::default() },
            Asked::Endpoint(..) => Self { endpoint: name, ..Self::default() },
        }
    }
}

/// What a request is about.
fn asked<'a>(
    listener: Option<&'a str>,
    backend: Option<&'a str>,
    endpoint: Option<&'a str>,
) -> Result<Asked<'a>, Fault> {
    match (listener, backend, endpoint) {
        (Some(listener), None, None) => Ok(Asked::Listener(listener)),
        (None, Some(backend), None) => Ok(Asked::Backend(backend)),
        (None, backend, Some(endpoint)) => Ok(Asked::Endpoint(backend, endpoint)),
        _ => Err(Fault::bad("say which: endpoint, backend or listener")),
    }
}

async fn endpoints(State(api): State<Api>) -> Result<Response, Fault> {
    let all = api.caller.with_sync(|sync| sync.endpoints()).await?;
    let rows = |api: &Api| all.into_iter().map(|of| row(of, api)).collect();
    api.answer(move |api| Endpoints { endpoints: rows(api) }).await
}

fn row(of: Shown, api: &Api) -> Row {
    Row {
        backend: of.backend.to_string(),
        endpoint: of.address.to_string(),
        name: of.name.map(|name| name.to_string()),
        state: of.state.word(),
        weight: of.configured,
        weight_in_force: of.in_force,
        sessions: api.board.workers().iter().map(|worker| worker.endpoint(of.id).live()).sum(),
        why: of.why,
    }
}

async fn overrides(State(api): State<Api>) -> Result<Response, Fault> {
    let all = api.caller.with_sync(|sync| sync.overrides()).await?;
    api.answer(move |_| Overrides { overrides: all.into_iter().map(said).collect() }).await
}

fn said(of: Override) -> Said {
    Said {
        listener: of.listener.map(|name| name.to_string()),
        backend: of.backend.map(|name| name.to_string()),
        endpoint: of.endpoint,
        action: of.action.kind().to_string(),
        weight: match of.action {
            Action::Weight(weight) => Some(weight),
            Action::Drain | Action::Disable => None,
        },
        left_ms: of.left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
    }
}

async fn say(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Result<Json<Say>, JsonRejection>,
) -> Result<Json<Done>, Fault> {
    api.may_change(&headers).await?;
    let Json(said) = body?;
    let (action, lasts) = said.action()?;
    let work = move |sync: &mut ConfigSync| {
        let asked = said.asked()?;
        let name = sync.set_override(asked, action, lasts).map_err(Fault::bad)?;
        Ok(Json(Done::of(asked, name)))
    };
    api.caller.with_sync(work).await?
}

impl Say {
    pub(super) fn asked(&self) -> Result<Asked<'_>, Fault> {
        asked(self.listener.as_deref(), self.backend.as_deref(), self.endpoint.as_deref())
    }

    pub(super) fn action(&self) -> Result<(Action, Option<Duration>), Fault> {
        let action = match (self.action, self.weight) {
            (Word::Drain, None) => Action::Drain,
            (Word::Disable, None) => Action::Disable,
            (Word::Weight, Some(weight)) => Action::Weight(weight),
            (Word::Weight, None) => return Err(Fault::bad("weight: say which")),
            (Word::Drain | Word::Disable, Some(_)) => {
                return Err(Fault::bad("weight: only with the action \"weight\""));
            }
        };
        Ok((action, lasts(self.for_seconds)?))
    }
}

async fn take_back(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Result<Query<TakeBack>, QueryRejection>,
) -> Result<Json<Done>, Fault> {
    api.may_change(&headers).await?;
    let Query(back) = query?;
    let kind = back.action.map(|word| match word {
        Word::Drain => Kind::Drain,
        Word::Disable => Kind::Disable,
        Word::Weight => Kind::Weight,
    });
    let work = move |sync: &mut ConfigSync| {
        let asked = back.asked()?;
        let name = sync.take_back(asked, kind).map_err(Fault::bad)?;
        Ok(Json(Done::of(asked, name)))
    };
    api.caller.with_sync(work).await?
}

impl TakeBack {
    pub(super) fn asked(&self) -> Result<Asked<'_>, Fault> {
        asked(self.listener.as_deref(), self.backend.as_deref(), self.endpoint.as_deref())
    }
}
