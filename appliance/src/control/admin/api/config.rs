//! Gives the configuration in force in its long form, with what lives on its parts.

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use config_sync::gateway::tree::tree;
use config_sync::sync::overrides::Shown;
use config_sync::table::routing::Listener;
use serde_json::Value;

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

/// A long configuration takes a while to print, so all is made apart.
async fn config(State(api): State<Api>) -> Result<Response, Fault> {
    let parts = api.parts().await?;
    let printed = api.apart(move |_| tree(&parts.in_force.config).map(|tree| (tree, parts)));
    let printed = printed.await?;
    let (config, parts) =
        printed.map_err(|text| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, text))?;
    api.answer(move |api| running(api, parts, config)).await
}

fn running(api: &Api, parts: Parts, config: Value) -> Running {
    let Parts { table, endpoints, .. } = parts;
    let workers = api.board.workers();
    let listener = |listener: &Listener| {
        let live = workers.iter().map(|worker| worker.listener(listener.id).live()).sum();
        (listener.name.to_string(), live)
    };
    let endpoint = |of: Shown| OfEndpoint {
        sessions: workers.iter().map(|worker| worker.endpoint(of.id).live()).sum(),
        backend: of.backend.to_string(),
        endpoint: of.address.to_string(),
        name: of.name.as_deref().map(str::to_owned),
    };
    let sessions = Sessions {
        listeners: table.listeners.iter().map(listener).collect(),
        endpoints: endpoints.into_iter().map(endpoint).collect(),
    };
    Running { generation: table.generation, config, sessions }
}
