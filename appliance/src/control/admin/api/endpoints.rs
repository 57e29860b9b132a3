//! Lists endpoints, and takes what operators say about them.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use config_sync::sync::overrides::{Action, Kind, Override, Shown};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, lasts};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/endpoints", endpoints, "Lists the endpoints")
            .answers::<Endpoints>(),
        Operation::new(
            Method::GET,
            "/overrides",
            overrides,
            "Lists what operators have said about endpoints",
        )
        .answers::<Overrides>(),
        Operation::new(
            Method::POST,
            "/overrides",
            say,
            "Drains or disables an endpoint, or sets its weight",
        )
        .body::<Say>()
        .answers::<Done>(),
        Operation::new(
            Method::DELETE,
            "/overrides",
            take_back,
            "Takes back what was said about an endpoint",
        )
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
    backend: String,
    endpoint: String,
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
    backend: Option<String>,
    endpoint: String,
    action: Word,
    weight: Option<u32>,
    for_seconds: Option<u64>,
}

#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeBack {
    backend: Option<String>,
    endpoint: String,
    /// Absent: all that is said about the endpoint.
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

/// The endpoint that was meant, behind its backend and a slash.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "OverrideDone")]
struct Done {
    endpoint: String,
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

async fn overrides(State(api): State<Api>) -> Result<Json<Overrides>, Fault> {
    let all = api.caller.with_sync(|sync| sync.overrides()).await?;
    Ok(Json(Overrides { overrides: all.into_iter().map(said).collect() }))
}

fn said(of: Override) -> Said {
    Said {
        backend: of.backend.to_string(),
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
    let Say { backend, endpoint, .. } = said;
    let work = move |sync: &mut config_sync::sync::ConfigSync| {
        sync.override_endpoint((backend.as_deref(), &endpoint), action, lasts)
    };
    let endpoint = api.caller.with_sync(work).await?.map_err(Fault::bad)?;
    Ok(Json(Done { endpoint }))
}

impl Say {
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
    let Query(TakeBack { backend, endpoint, action }) = query?;
    let kind = action.map(|word| match word {
        Word::Drain => Kind::Drain,
        Word::Disable => Kind::Disable,
        Word::Weight => Kind::Weight,
    });
    let work = move |sync: &mut config_sync::sync::ConfigSync| {
        sync.take_back((backend.as_deref(), &endpoint), kind)
    };
    let endpoint = api.caller.with_sync(work).await?.map_err(Fault::bad)?;
    Ok(Json(Done { endpoint }))
}
