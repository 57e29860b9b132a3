//! Shows and sets the level of Ringway's own log.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, lasts};
use crate::control::own_log::{InForce, OwnLog, own_log};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/log-level", show, "Says the level of the own log")
            .answers::<Told>(),
        Operation::new(Method::PUT, "/log-level", set, "Sets the level of the own log")
            .body::<Set>()
            .answers::<Told>(),
    ]
}

#[derive(JsonSchema, Deserialize)]
#[schemars(rename = "LogLevelAsked")]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    pub(super) level: String,
    pub(super) for_seconds: Option<u64>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "LogLevel")]
struct Told {
    level: String,
    /// Absent: until somebody changes it, or a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_ms: Option<u64>,
    /// The level after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    then: Option<String>,
}

impl From<InForce> for Told {
    fn from(InForce { levels, then }: InForce) -> Self {
        let (left, then) = then.unzip();
        let millis = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Self {
            level: levels.to_string(),
            left_ms: left.map(millis),
            then: then.map(|levels| levels.to_string()),
        }
    }
}

fn log() -> Result<&'static OwnLog, Fault> {
    own_log().ok_or_else(|| Fault::bad("this process has no log of its own"))
}

async fn show() -> Result<Json<Told>, Fault> {
    Ok(Json(log()?.in_force(Instant::now()).into()))
}

async fn set(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Result<Json<Set>, JsonRejection>,
) -> Result<Json<Told>, Fault> {
    api.may_change(&headers).await?;
    let Json(Set { level, for_seconds }) = body?;
    let lasts = lasts(for_seconds)?;
    let log = log()?;
    let in_force = log.set(&level, lasts, Instant::now()).map_err(Fault::bad)?;
    if let Some(lasts) = lasts {
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            log.expire(Instant::now());
        });
    }
    Ok(Json(in_force.into()))
}
