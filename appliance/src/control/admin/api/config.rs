//! Gives the configuration in force in its long form, with what lives on its parts.

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use config_sync::gateway::tree::tree;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, Parts};
use crate::control::diff::{OfEndpoint, Running, Sessions};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::GET,
            "/config",
            config,
            "Gives the configuration in force, and what lives on its parts",
        )
        .answers::<Running>(),
    ]
}

async fn config(State(api): State<Api>) -> Result<Json<Running>, Fault> {
    let Parts { in_force, table, endpoints, .. } = api.parts().await?;
    let workers = api.board.workers();
    let listener = |listener: &config_sync::table::routing::Listener| {
        let live = workers.iter().map(|worker| worker.listener(listener.id).live()).sum();
        (listener.name.to_string(), live)
    };
    let endpoint = |of: config_sync::sync::overrides::Shown| OfEndpoint {
        sessions: workers.iter().map(|worker| worker.endpoint(of.id).live()).sum(),
        backend: of.backend.to_string(),
        endpoint: of.address.to_string(),
        name: of.name.as_deref().map(str::to_owned),
    };
    let sessions = Sessions {
        listeners: table.listeners.iter().map(listener).collect(),
        endpoints: endpoints.into_iter().map(endpoint).collect(),
    };
    // A long configuration takes a while to print.
    let tree = tokio::task::spawn_blocking(move || tree(&in_force.config)).await;
    let config = tree.unwrap_or_else(|_| Err("it can't be printed".to_owned()));
    let config = config.map_err(|text| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, text))?;
    Ok(Json(Running { generation: table.generation, config, sessions }))
}
