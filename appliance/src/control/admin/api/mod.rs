//! The API under /api/v1: JSON about what runs, and changes to it.

mod access_log;
mod backends;
mod certificates;
mod closes;
mod config;
mod document;
mod endpoints;
pub mod inputs;
mod limits;
mod listeners;
mod log_level;
mod order;
mod reload;
mod routes;
mod sessions;
mod status;
pub mod stream;
mod top;
mod upgrade;
mod why;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use config_sync::compile::names::Names;
use config_sync::sync::InForce;
use config_sync::sync::overrides::Shown;
use config_sync::table::routing::RoutingTable;
use document::{Operation, document};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::control::admin::access::Access;
use crate::control::admin::board::Board;
use crate::control::admin::calls::{Caller, Refusal};

/// What a request needs.
#[derive(Clone)]
pub struct Api {
    pub board: Arc<Board>,
    pub caller: Caller,
    pub access: Access,
}

/// The most bytes of a request's body.
pub const MOST_BODY: usize = 4_096;

/// Where all paths of the API begin.
const PREFIX: &str = "/api/v1";

pub fn routes() -> Router<Api> {
    let all = document::router(operations());
    let all = all.fallback(unknown).method_not_allowed_fallback(not_allowed);
    // `nest` leaves the bare prefix with a slash to others.
    Router::new().nest(PREFIX, all).route(&format!("{PREFIX}/"), any(unknown))
}

fn operations() -> Vec<Operation> {
    let about = "Gives this document";
    let mut all = vec![Operation::new(Method::GET, "/openapi.json", described, about)];
    all.extend(sessions::operations());
    all.extend(endpoints::operations());
    all.extend(top::operations());
    all.extend(status::operations());
    all.extend(why::operations());
    all.extend(config::operations());
    all.extend(closes::operations());
    all.extend(log_level::operations());
    all.extend(listeners::operations());
    all.extend(routes::operations());
    all.extend(limits::operations());
    all.extend(certificates::operations());
    all.extend(backends::operations());
    all.extend(stream::operations());
    all.extend(upgrade::operations());
    all.extend(access_log::operations());
    all.extend(reload::operations());
    all
}

async fn described() -> Json<Value> {
    Json(document(&operations(), PREFIX))
}

/// What is in force at one moment.
struct Parts {
    in_force: Arc<InForce>,
    table: Arc<RoutingTable>,
    endpoints: Vec<Shown>,
    /// Only for a moment, because the next change copies all names that somebody keeps.
    names: Arc<Names>,
    /// Listeners that an operator drains.
    drained: BTreeSet<Arc<str>>,
}

impl Api {
    async fn parts(&self) -> Result<Parts, Fault> {
        let found = self.caller.with_sync(|sync| {
            let in_force = Arc::clone(sync.in_force()?);
            let (table, endpoints) = (Arc::clone(sync.table()), sync.endpoints());
            let (names, drained) = (sync.shared_names(), sync.drained_listeners());
            Some(Parts { in_force, table, endpoints, names, drained })
        });
        found.await?.ok_or_else(|| Fault::bad("there is no configuration yet"))
    }

    /// Works on another thread, because a gateway may have thousands of endpoints on many workers,
    /// and probes must not wait.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let api = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&api)).await;
        done.map_err(|_| Fault::bad("the answer can't be made"))
    }

    /// Makes an answer and writes it as JSON, both on another thread: an answer may have thousands
    /// of rows.
    async fn answer<T: Serialize>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<Response, Fault> {
        let text = self.apart(move |api| serde_json::to_vec(&work(api))).await?;
        let text = text.map_err(|_| Fault::bad("the answer can't be written"))?;
        Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
    }

    /// The token's file is read on another thread, because a disk may be slow.
    async fn may_change(&self, headers: &HeaderMap) -> Result<(), Fault> {
        let (access, headers) = (self.access.clone(), headers.clone());
        let checked = tokio::task::spawn_blocking(move || access.check(&headers)).await;
        let checked = checked.map_err(|_| Fault::bad("the token can't be checked"))?;
        checked.map_err(|why| Fault::new(StatusCode::FORBIDDEN, why))
    }
}

/// How long something is to last.
fn lasts(for_seconds: Option<u64>) -> Result<Option<Duration>, Fault> {
    match for_seconds {
        Some(0) => Err(Fault::bad("for_seconds: at least 1")),
        seconds => Ok(seconds.map(Duration::from_secs)),
    }
}

async fn unknown() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "the API has no such path; /api/v1/openapi.json lists all")
}

async fn not_allowed() -> Fault {
    let text = "the path has no such method; openapi.json beside it lists all";
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, text)
}

/// An error that the caller is told.
#[derive(Debug)]
pub struct Fault {
    status: StatusCode,
    text: String,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Error")]
struct Told<'a> {
    error: &'a str,
}

impl Fault {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(Told { error: &self.text })).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Bad(text) => Self::bad(text),
            Refusal::Unknown(text) => Self::new(StatusCode::NOT_FOUND, text),
            Refusal::Failed(text) => Self::new(StatusCode::CONFLICT, text),
            Refusal::Busy(text) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
        }
    }
}

impl From<QueryRejection> for Fault {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Fault {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<JsonRejection> for Fault {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}
