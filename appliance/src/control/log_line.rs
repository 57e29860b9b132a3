//! One line of the access log, as JSON and for people.

use std::borrow::Cow;
use std::io::Write as _;

use serde::Serialize;

use crate::control::id::Id;
use crate::control::shown::Shown;
use crate::control::timestamp::{Timestamp, as_text};
use crate::control::tls_fields::TlsFields;

/// One line. Absent fields are left out of JSON objects.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    #[serde(rename = "ts", serialize_with = "as_text")]
    pub time: Timestamp,
    pub event: &'static str,
    /// The id that lists have, and `ringway kill` takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// TCP, UDP or TLS.
    pub protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<&'a str>,
    pub client: Shown<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Shown<'a>>,
    pub local: Shown<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<&'a str>,
    #[serde(flatten)]
    pub tls: Option<TlsFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Shown<'a>>,
    /// The name of the endpoint in its table of the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_name: Option<&'a str>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
    pub worker: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub suppressed: u32,
    /// The line stands for this many of its reason (`access_log.sample`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<u32>,
}

impl Line<'_> {
    pub fn json(&self, out: &mut Vec<u8>) {
        // Strings and numbers always serialize, and a Vec takes all bytes.
        let _ = serde_json::to_writer(out, self);
    }

    /// Writes time, event and protocol, then `key=value` for each field with a value. Names are
    /// quoted, because the client chooses the server name.
    pub fn text(&self, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{} {} {}", self.time, self.event, self.protocol);
        if let Some(id) = self.id {
            let _ = write!(out, " id={id}");
        }
        let mut name = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                let _ = write!(out, " {key}={value:?}");
            }
        };
        name("listener", self.listener);
        name("server_name", self.server_name);
        name("route", self.route);
        name("backend", self.backend);
        name("endpoint_name", self.endpoint_name);
        let _ = write!(out, " client={} local={}", self.client, self.local);
        if let Some(tls) = &self.tls {
            tls.text(out);
        }
        if let Some(peer) = self.peer {
            let _ = write!(out, " peer={peer}");
        }
        if let Some(endpoint) = self.endpoint {
            let _ = write!(out, " endpoint={endpoint}");
        }
        let _ = write!(out, " bytes_up={} bytes_down={}", self.bytes_up, self.bytes_down);
        let _ = write!(out, " duration_ms={}", self.duration_ms);
        if let Some(connect) = self.connect_ms {
            let _ = write!(out, " connect_ms={connect}");
        }
        if let Some(id) = &self.unique_id {
            let _ = write!(out, " unique_id={id}");
        }
        if let Some(reason) = self.reason {
            let _ = write!(out, " reason={reason}");
        }
        if let Some(detail) = &self.detail {
            let _ = write!(out, " detail={detail:?}");
        }
        let _ = write!(out, " worker={}", self.worker);
        if self.suppressed > 0 {
            let _ = write!(out, " suppressed={}", self.suppressed);
        }
        if let Some(each) = self.sampled {
            let _ = write!(out, " sampled={each}");
        }
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// A line for tests.
#[cfg(test)]
pub fn closed() -> Line<'static> {
    use std::net::SocketAddr;
    use std::time::UNIX_EPOCH;

    use crate::control::timestamp::WallClock;

    let at_one_second = WallClock::new(UNIX_EPOCH, 0).at(1_000_000);
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    Line {
        time: at_one_second,
        event: "close",
        id: None,
        protocol: "TLS",
        listener: Some("tls"),
        client: address("192.0.2.1:1000").into(),
        local: address("[::1]:443").into(),
        server_name: Some("a\"b"),
        tls: None,
        route: Some("web"),
        backend: Some("pool"),
        peer: None,
        unique_id: None,
        endpoint: Some(address("192.0.2.9:80").into()),
        endpoint_name: None,
        bytes_up: 10,
        bytes_down: 20,
        duration_ms: 1.5,
        connect_ms: Some(0.25),
        reason: Some("client_fin"),
        detail: None,
        worker: 1,
        suppressed: 0,
        sampled: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_line_has_the_agreed_keys() {
        let json = shown(|out| closed().json(out));
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(
            value,
            serde_json::json!({
                "ts": "1970-01-01T00:00:01.000000Z", "event": "close", "protocol": "TLS",
                "listener": "tls", "client": "192.0.2.1:1000", "local": "[::1]:443",
                "server_name": "a\"b", "route": "web", "backend": "pool",
                "endpoint": "192.0.2.9:80", "bytes_up": 10, "bytes_down": 20,
                "duration_ms": 1.5, "connect_ms": 0.25, "reason": "client_fin", "worker": 1,
            })
        );
        assert!(!json.contains('\n'));
    }

    #[test]
    fn an_endpoint_has_its_name_if_it_has_one() {
        let line = Line { endpoint_name: Some("pg \"2\""), ..closed() };
        let (json, text) = (shown(|out| line.json(out)), shown(|out| line.text(out)));
        let named = r#""endpoint":"192.0.2.9:80","endpoint_name":"pg \"2\"","bytes_up""#;
        assert!(json.contains(named), "{json}");
        assert!(text.contains(r#" backend="pool" endpoint_name="pg \"2\"" client="#), "{text}");
    }

    #[test]
    fn absent_fields_are_left_out() {
        let detail = Some(Cow::Borrowed("not \"TLS\"\n\u{1b}[2J"));
        let line = Line { endpoint: None, connect_ms: None, suppressed: 7, detail, ..closed() };
        let (json, text) = (shown(|out| line.json(out)), shown(|out| line.text(out)));
        assert!(!json.contains("endpoint") && !json.contains("connect_ms"), "{json}");
        assert!(json.contains("\"suppressed\":7"), "{json}");
        assert!(json.contains(r#""detail":"not \"TLS\"\n\u001b[2J""#), "{json}");
        assert_eq!(
            text,
            "1970-01-01T00:00:01.000000Z close TLS listener=\"tls\" server_name=\"a\\\"b\" \
             route=\"web\" backend=\"pool\" client=192.0.2.1:1000 local=[::1]:443 bytes_up=10 \
             bytes_down=20 duration_ms=1.5 reason=client_fin \
             detail=\"not \\\"TLS\\\"\\n\\u{1b}[2J\" worker=1 suppressed=7"
        );
    }

    fn shown(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }
}
