//! Says where a client would go.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::Method;
use axum::response::Response;
use config_sync::table::routing::{EndpointId, Protocol};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, Parts};
use crate::control::admin::calls::Asked;
use crate::control::shown::protocol;
use crate::control::time_of_day::unix_micros;
use crate::control::why::asked::{Client, Running, Speaks};
use crate::control::why::backends::{EndpointRow, Rests};
use crate::control::why::{Answer, why};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/why", ask, "Says where a client would go, and why")
            .query::<Words>()
            .answers::<Told>(),
    ]
}

#[derive(JsonSchema, Deserialize)]
#[schemars(rename = "WhyAsked")]
#[serde(deny_unknown_fields)]
pub(super) struct Words {
    /// An address, with a port or without.
    client: String,
    listener: String,
    /// The listener's address that the client comes to.
    local: Option<SocketAddr>,
    server_name: Option<String>,
    /// Protocols with commas between them, best first.
    alpn: Option<String>,
    /// What the client sends first, if the listener is for TLS.
    #[serde(default)]
    speaks: Speaks,
    /// The listener has to be one for UDP.
    #[serde(default)]
    udp: bool,
}

/// The answer, and the limits that a worker checks on the way.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Why")]
struct Told {
    #[serde(flatten)]
    answer: Answer,
    limits: Vec<Limit>,
}

/// A limit of one worker. Which worker a client comes to is the kernel's choice.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "WhyLimit")]
struct Limit {
    limit: &'static str,
    /// Absent: of all workers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<usize>,
    used: u64,
    most: u32,
    /// The reason of a new session or flow, if the limit is reached now.
    #[serde(skip_serializing_if = "Option::is_none")]
    refuses: Option<&'static str>,
}

async fn ask(
    State(api): State<Api>,
    query: Result<Query<Words>, QueryRejection>,
) -> Result<Response, Fault> {
    let Query(words) = query?;
    let udp = words.udp;
    let client = client(words).map_err(Fault::bad)?;
    let Parts { in_force, table, endpoints, .. } = api.parts().await?;
    // Long tables take a while, and the control thread must not wait.
    let answered = api.apart(move |_| {
        let (config, endpoints) = (&in_force.config, &endpoints[..]);
        why(&Running { table: &table, config, endpoints, now: unix_micros() }, &client)
    });
    let mut answer = answered.await?.map_err(Fault::bad)?;
    if udp && answer.protocol != protocol(Protocol::Udp) {
        let text = format!("listener {:?} is for {}", answer.listener, answer.protocol);
        return Err(Fault::bad(text + ", and not for UDP"));
    }
    find_resting(&api, &mut answer).await?;
    api.answer(move |api| Told { limits: limits(api, &answer), answer }).await
}

/// The most endpoints that workers are asked about, because a worker answers in one turn.
const MOST_ASKED: usize = 1_024;

/// Asks the workers which endpoints come last, because a session could not be given to them.
async fn find_resting(api: &Api, answer: &mut Answer) -> Result<(), Fault> {
    let rows = answer.backends.iter_mut().flat_map(|of| &mut of.endpoints).take(MOST_ASKED);
    let mut rows: BTreeMap<EndpointId, &mut EndpointRow> = rows.map(|row| (row.id, row)).collect();
    let endpoints: Box<[_]> = rows.keys().copied().collect();
    let of = api.board.workers().len();
    for worker in 0..of {
        let asked = Asked::Resting { worker, endpoints: endpoints.clone() };
        for (id, left) in api.caller.ask(asked).await?.reply.resting {
            let Some(row) = rows.get_mut(&id) else { continue };
            let rests = row.rests.get_or_insert(Rests { on: 0, of, left_ms: 0 });
            rests.on += 1;
            rests.left_ms = rests.left_ms.max(left.div_ceil(1_000));
        }
    }
    for row in rows.into_values() {
        let Some(Rests { on, of, left_ms }) = row.rests else { continue };
        let said = format!(
            "comes last on {on} of {of} workers for {} s more, because a connect to it failed",
            left_ms.div_ceil(1_000)
        );
        row.why = Some(match row.why.take() {
            Some(why) => format!("{why}; {said}"),
            None => said,
        });
    }
    Ok(())
}

pub(super) fn client(words: Words) -> Result<Client, String> {
    let text = words.client;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text);
    let (address, port) = match (bare.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
        (Ok(ip), _) => (SocketAddr::new(ip, 0), false),
        (_, Ok(address)) => (address, true),
        _ => {
            return Err(format!(
                "client: {text:?} is no address, such as 192.0.2.1, 192.0.2.1:4000 or [::1]:4000"
            ));
        }
    };
    let alpn = words.alpn.iter().flat_map(|alpn| alpn.split(','));
    Ok(Client {
        address,
        port,
        listener: words.listener,
        local: words.local,
        // As clients' names are read.
        server_name: words
            .server_name
            .map(|name| name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase()),
        alpn: alpn.filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        speaks: words.speaks,
    })
}

fn limits(api: &Api, answer: &Answer) -> Vec<Limit> {
    let mut found = Vec::new();
    let is_udp = answer.protocol == protocol(Protocol::Udp);
    let (slots, limits) = (if is_udp { "flows" } else { "sessions" }, api.board.limits());
    let most = if is_udp { limits.flows } else { limits.sessions };
    let mut limit = |limit, worker, used: u64, most: u32, reason| {
        let refuses = (used >= u64::from(most)).then_some(reason);
        found.push(Limit { limit, worker, used, most, refuses });
    };
    for (at, worker) in api.board.workers().iter().enumerate() {
        let used = if is_udp { worker.flows.get() } else { worker.sessions.get() };
        limit(slots, Some(at), used, most, "session_limit");
    }
    if let Some(most) = answer.max_sessions {
        limit("max_sessions", None, answer.taken.into(), most, "listener_limit");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(client: &str) -> Result<Client, String> {
        super::client(Words {
            client: client.to_owned(),
            listener: "l".to_owned(),
            local: None,
            server_name: Some("DB.Example.com.".to_owned()),
            alpn: Some("h2,,http/1.1".to_owned()),
            speaks: Speaks::Tls,
            udp: false,
        })
    }

    #[test]
    fn a_client_is_an_address_with_or_without_a_port() {
        for (text, address, port) in [
            ("192.0.2.1", "192.0.2.1:0", false),
            ("192.0.2.1:4000", "192.0.2.1:4000", true),
            ("::1", "[::1]:0", false),
            ("[::1]", "[::1]:0", false),
            ("[::1]:9", "[::1]:9", true),
        ] {
            let client = asked(text).expect(text);
            assert_eq!((client.address.to_string().as_str(), client.port), (address, port));
            assert_eq!(client.server_name.as_deref(), Some("db.example.com"));
            assert_eq!(client.alpn, ["h2", "http/1.1"]);
        }
        for wrong in ["", "x", "192.0.2.1:", "192.0.2.1:99999", "192.0.2.0/24", "[::1"] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }
}
