//! Starts the next process, which takes over.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::control::admin::access::Access;
use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault};
use crate::control::admin::calls::Upgraded;

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::POST,
            "/upgrade",
            upgrade,
            "Starts the next process; over the Unix socket only",
        )
        .body::<Asked>()
        .answers::<Upgraded>(),
    ]
}

#[derive(JsonSchema, Deserialize)]
#[schemars(rename = "UpgradeAsked")]
#[serde(deny_unknown_fields)]
struct Asked {
    /// Absent: the program that runs, from where it was started.
    binary: Option<PathBuf>,
}

/// Runs a program as the gateway's user, so a token is not enough: the caller must be that user.
async fn upgrade(
    State(api): State<Api>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Result<Json<Upgraded>, Fault> {
    if !matches!(api.access, Access::All) {
        let why = "an upgrade can be asked for through the Unix socket (admin.socket) only";
        return Err(Fault::new(StatusCode::FORBIDDEN, why));
    }
    let Json(Asked { binary }) = asked?;
    if binary.as_ref().is_some_and(|binary| !binary.is_absolute()) {
        return Err(Fault::bad("binary: write the whole path"));
    }
    Ok(Json(api.caller.upgrade(binary).await?))
}
