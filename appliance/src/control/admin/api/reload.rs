//! Reads the configuration's files again, and says what became of them.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Method};

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
        .answers::<Reloaded>(),
    ]
}

async fn reload(State(api): State<Api>, headers: HeaderMap) -> Result<Json<Reloaded>, Fault> {
    api.may_change(&headers).await?;
    Ok(Json(api.caller.reload().await?))
}
