//! Gives the reasons for which sessions and flows ended, and the newest lines of Ringway's own log.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::Method;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault};
use crate::control::admin::board::Board;
use crate::control::closes::{OfReason, totals};
use crate::control::events::{EVENTS, Entry, MOST};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::GET,
            "/closes",
            closes,
            "Lists the reasons for which sessions and flows ended within the last hour",
        )
        .answers::<Closes>(),
        Operation::new(
            Method::GET,
            "/events",
            events,
            "Lists lines of the own log, the newest last",
        )
        .query::<Which>()
        .answers::<Events>(),
    ]
}

#[derive(JsonSchema, Serialize)]
struct Closes {
    closes: Vec<OfReason>,
}

async fn closes(State(api): State<Api>) -> Result<Response, Fault> {
    api.answer(|api| Closes { closes: of_the_last_hour(&api.board) }).await
}

pub fn of_the_last_hour(board: &Board) -> Vec<OfReason> {
    let series = Arc::clone(&board.latest().series);
    let totals = totals(board.workers(), series.listeners());
    board.closes.lock().by_reason(&totals)
}

#[derive(JsonSchema, Deserialize)]
#[schemars(rename = "EventsAsked")]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Only lines with a higher number.
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

#[derive(JsonSchema, Serialize)]
struct Events {
    events: Vec<Entry>,
}

async fn events(
    State(api): State<Api>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Response, Fault> {
    let Query(which) = which?;
    let limit = which.most()?;
    api.answer(move |_| Events { events: EVENTS.after(which.after, limit) }).await
}

impl Which {
    pub(super) fn most(&self) -> Result<usize, Fault> {
        match self.limit.unwrap_or(MOST) {
            limit @ 1..=MOST => Ok(limit),
            _ => Err(Fault::bad(format!("limit: 1 to {MOST}"))),
        }
    }
}
