//! Reads a request in each way in which the API reads requests, without a server: for fuzzing.

use axum::extract::Query;
use axum::http::Uri;
use serde::de::DeserializeOwned;

use crate::control::admin::api::closes::Which;
use crate::control::admin::api::endpoints::{Say, TakeBack};
use crate::control::admin::api::log_level::Set;
use crate::control::admin::api::{lasts, sessions, why};
use crate::control::admin::calls::Words;
use crate::control::id::Id;
use crate::control::own_log::{Levels, LogLevel};

/// What the API has understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The last part of the path is an id.
    pub id: bool,
    /// The query asks for a page of a list.
    pub page: bool,
    /// The query says what to kill.
    pub kill: bool,
    pub why: bool,
    pub events: bool,
    pub take_back: bool,
    /// The body says something about an endpoint, a backend or a listener.
    pub say: bool,
    /// The body sets the level of the log.
    pub level: bool,
}

/// Reads the target of a request (its path and query) and its body.
///
/// # Panics
/// What was read is not what is shown again: an id or a cursor has changed.
pub fn read(target: &str, body: &[u8]) -> Read {
    let uri = target.parse::<Uri>().unwrap_or_default();
    let mut read = Read::default();
    let part = uri.path().rsplit('/').next().unwrap_or_default();
    if let Ok(id) = part.parse::<Id>() {
        assert_eq!(id.to_string().parse(), Ok(id), "an id is read as it is shown");
        read.id = true;
    }
    if let Some(words) = query::<Words>(&uri) {
        // The words for the log are short, whatever they quote.
        assert!(words.said().len() <= 16 * (target.len() + 16), "{words:?}");
        read.kill = sessions::says_which(&words).is_ok();
        if let Ok((most, at)) = sessions::page(&words, usize::MAX) {
            assert!(most > 0);
            assert_eq!(sessions::cursor(&at.to_string()), Some(at), "a cursor is read as shown");
            read.page = true;
        }
    }
    read.why = query(&uri).is_some_and(|words| why::client(words).is_ok());
    read.events = query::<Which>(&uri).is_some_and(|which| which.most().is_ok());
    read.take_back = query::<TakeBack>(&uri).is_some_and(|back| back.asked().is_ok());
    read.say = json::<Say>(body).is_some_and(|say| say.action().is_ok() && say.asked().is_ok());
    read.level = json::<Set>(body).is_some_and(|Set { level, for_seconds }| {
        lasts(for_seconds).is_ok() && Levels::read(&level, LogLevel::Info).is_ok()
    });
    read
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Option<T> {
    Query::try_from_uri(uri).ok().map(|Query(words)| words)
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of the fuzz target `api_requests` are understood, so the target begins behind the
    /// first checks.
    #[test]
    fn requests_are_read_without_a_server() {
        let all = |target: &str, body: &str| read(target, body.as_bytes());
        let none = Read::default();
        let list = Read { page: true, kill: true, ..none };
        assert_eq!(all("/api/v1/sessions?listener=web&client=10.0.0.0%2F8", ""), list);
        let page = Read { page: true, events: true, kill: false, ..Read::default() };
        assert_eq!(all("/api/v1/flows?limit=7", ""), page);
        assert!(all("/api/v1/flows?limit=7&cursor=3.70000", "").page);
        assert!(!all("/api/v1/flows?limit=0", "").page);
        let sorted = all("/api/v1/sessions?sort=age_ms&reverse=true&limit=20&listener=web", "");
        assert!(sorted.page && !sorted.kill);
        let bounds =
            "min_age_ms=1&max_age_ms=6&min_idle_ms=5&max_idle_ms=9&min_bytes=6&max_bytes=7";
        assert_eq!(all(&format!("/api/v1/flows?{bounds}&state=relaying"), ""), list);
        assert!(!all("/api/v1/sessions?sort=colour", "").page);
        assert!(all("/api/v1/session/s0-1f-2-9ac1e07b", "").id);
        assert!(all("/api/v1/why?client=[::1]:9&listener=web&udp=true", "").why);
        assert!(all("/api/v1/events?after=9", "").events);
        assert!(all("/api/v1/overrides?endpoint=web/a&action=drain", "").take_back);
        assert!(all("/api/v1/overrides?listener=web", "").take_back);
        assert!(!all("/api/v1/overrides?listener=web&backend=web", "").take_back);
        assert!(all("/api/v1/overrides", r#"{"backend": "web", "action": "drain"}"#).say);
        assert!(!all("/api/v1/overrides", r#"{"action": "drain"}"#).say);
        let say = r#"{"endpoint": "web/a", "action": "weight", "weight": 3, "for_seconds": 9}"#;
        assert!(all("/api/v1/overrides", say).say);
        assert!(!all("/api/v1/overrides", r#"{"endpoint": "a", "action": "weight"}"#).say);
        assert!(all("/api/v1/log-level", r#"{"level": "info,config_sync=debug"}"#).level);
        assert!(!all("/api/v1/log-level", r#"{"level": "info", "for_seconds": 0}"#).level);
    }
}
