//! Gives the reasons for which sessions and flows ended, and the newest lines of Ringway's own log.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::control::admin::api::{Api, Fault};
use crate::control::admin::board::Board;
use crate::control::closes::{OfReason, totals};
use crate::control::events::{EVENTS, Entry, MOST};

pub fn routes() -> Router<Api> {
    Router::new().route("/closes", get(closes)).route("/events", get(events))
}

#[derive(Serialize)]
struct Closes {
    closes: Vec<OfReason>,
}

async fn closes(State(Api { board, .. }): State<Api>) -> Json<Closes> {
    Json(Closes { closes: of_the_last_hour(&board) })
}

pub fn of_the_last_hour(board: &Board) -> Vec<OfReason> {
    let series = Arc::clone(&board.latest().series);
    let totals = totals(board.workers(), series.listeners());
    board.closes.lock().by_reason(&totals)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Only lines with a higher number.
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Events {
    events: Vec<Entry>,
}

async fn events(which: Result<Query<Which>, QueryRejection>) -> Result<Json<Events>, Fault> {
    let Query(which) = which?;
    let limit = which.most()?;
    Ok(Json(Events { events: EVENTS.after(which.after, limit) }))
}

impl Which {
    pub(super) fn most(&self) -> Result<usize, Fault> {
        match self.limit.unwrap_or(MOST) {
            limit @ 1..=MOST => Ok(limit),
            _ => Err(Fault::bad(format!("limit: 1 to {MOST}"))),
        }
    }
}
