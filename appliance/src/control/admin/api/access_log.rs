//! Has the access log's file opened again, for log rotation.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::POST,
            "/access-log/reopen",
            reopen,
            "Opens the access log's file again before the next line",
        )
        .answers::<Reopened>(),
    ]
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "AccessLogReopened")]
struct Reopened {
    reopened: bool,
}

async fn reopen(State(api): State<Api>, headers: HeaderMap) -> Result<Json<Reopened>, Fault> {
    api.may_change(&headers).await?;
    let Some(reopen) = &api.board.reopen_log else {
        let why = "access_log.path is neither a file nor a syslog daemon's socket";
        return Err(Fault::new(StatusCode::CONFLICT, why));
    };
    reopen.store(true, Ordering::Release);
    tracing::info!("the access log is opened again, as an operator asked");
    Ok(Json(Reopened { reopened: true }))
}
