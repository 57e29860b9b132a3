//! Lists the certificates and revocation lists in use, the first to end first.

use std::time::{Duration, UNIX_EPOCH};

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use config_sync::compile::tls::expiry::{Expiring, Expiry, OwnedBy};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault};
use crate::control::time_of_day::unix_seconds;
use crate::control::timestamp::Timestamp;

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::GET,
            "/certificates",
            certificates,
            "Lists the certificates and revocation lists in use, the first to end first",
        )
        .answers::<Certificates>(),
    ]
}

#[derive(JsonSchema, Serialize)]
struct Certificates {
    certificates: Vec<Row>,
}

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Certificate")]
pub struct Row {
    /// The listener or backend that uses the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    /// Who else uses the certificate: `admin API`.
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    /// `crl`: a list of revoked certificates.
    kind: &'static str,
    /// The DNS names, or else the subject's common name.
    names: Vec<String>,
    not_after: String,
    /// Whole days. Negative: the certificate has expired.
    days_left: i64,
    /// The file, or the Secret.
    source: String,
    /// Absent: nobody has to act yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

async fn certificates(State(api): State<Api>) -> Result<Response, Fault> {
    api.answer(|api| Certificates { certificates: first(api, usize::MAX) }).await
}

/// Of those that end first as many as `most`.
pub fn first(api: &Api, most: usize) -> Vec<Row> {
    rows(&api.board.expiries(), unix_seconds(), most)
}

fn rows(expiries: &[Expiry], now: i64, most: usize) -> Vec<Row> {
    let mut all: Vec<_> = expiries.iter().collect();
    all.sort_by_key(|of| of.not_after);
    all.into_iter().take(most).map(|of| row(of, now)).collect()
}

fn row(of: &Expiry, now: i64) -> Row {
    let owner = |by| (of.owned_by == by).then(|| of.owner.clone());
    let seconds = Duration::from_secs(u64::try_from(of.not_after).unwrap_or(0));
    Row {
        listener: owner(OwnedBy::Listener),
        backend: owner(OwnedBy::Backend),
        of: owner(OwnedBy::Admin),
        kind: match of.of {
            Expiring::Certificate => "certificate",
            Expiring::RevocationList => "crl",
        },
        names: of.names.clone(),
        not_after: Timestamp::of(UNIX_EPOCH + seconds).to_string(),
        days_left: (of.not_after - now).div_euclid(86_400),
        source: of.name.clone(),
        warning: of.warning(now),
    }
}

#[cfg(test)]
mod tests {
    use config_sync::model::place::Place;

    use super::*;

    #[test]
    fn the_first_to_end_comes_first() {
        let place = || Place { file: "f".into(), line: 1, column: 1, field: String::new() };
        let of = |owned_by, days: i64| Expiry {
            of: Expiring::Certificate,
            owner: "web".to_owned(),
            owned_by,
            names: vec!["db.example.com".to_owned()],
            name: "web.pem".to_owned(),
            place: place(),
            not_after: days * 86_400,
        };
        let all = [of(OwnedBy::Backend, 400), of(OwnedBy::Listener, 99)];
        let rows = rows(&all, 100 * 86_400, 2);
        let said = |row: &Row| (row.listener.is_some(), row.days_left, row.warning.is_some());
        assert_eq!(
            rows.iter().map(said).collect::<Vec<_>>(),
            [(true, -1, true), (false, 300, false)]
        );
        assert_eq!(rows[0].not_after, "1970-04-10T00:00:00.000000Z");
    }
}
