//! Reads the configuration's files again, and says what became of them.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault};
use crate::control::admin::calls::Reloaded;

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::POST,
            "/reload",
            reload,
            "Reads the configuration again, and answers when it is in force or refused",
        )
        .query::<Asked>()
        .answers::<Reloaded>(),
    ]
}

#[derive(JsonSchema, Deserialize)]
#[schemars(rename = "ReloadAsked")]
#[serde(deny_unknown_fields)]
struct Asked {
    /// Put the configuration in force also if most listeners are gone.
    #[serde(default)]
    confirm: bool,
}

async fn reload(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Reloaded>, Fault> {
    api.may_change(&headers).await?;
    let Query(Asked { confirm }) = query?;
    Ok(Json(api.caller.reload(confirm).await?))
}
