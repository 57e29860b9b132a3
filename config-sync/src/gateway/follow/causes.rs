//! Logs why requests to the API server fail: each cause at once, and only once for all requests
//! that fail by the cause.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::core::Status;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::time::Instant;

/// A cause that has not occurred for `FORGOTTEN` is logged again when it comes back. A cause that
/// goes on is logged again after `AGAIN`. Attempts are at most 60 s apart.
const FORGOTTEN: Duration = Duration::from_secs(150);
const AGAIN: Duration = Duration::from_secs(3_600);

/// The most causes that are remembered.
const MOST: usize = 256;

/// The causes that have been logged, for all clients of one API server.
#[derive(Debug, Default)]
pub struct Causes(Mutex<BTreeMap<Cause, Met>>);

/// The request, if it matters, and the error.
type Cause = (String, String);

#[derive(Clone, Copy, Debug)]
struct Met {
    said: Instant,
    last: Instant,
}

impl Causes {
    /// Logs a failure. `what` is equal for all requests that share a cause; `line` names one of the
    /// requests.
    pub fn say(&self, what: &str, line: &str, error: &kube::Error) {
        match self.line(what, line, error, Instant::now()) {
            Some(line) => tracing::warn!("{line}"),
            None => tracing::debug!("{line}: {}", said(error)),
        }
    }

    /// Logs a failure of a watcher.
    pub fn say_watch(&self, what: &str, line: &str, error: &watcher::Error) {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => self.say(what, line, error),
            watcher::Error::WatchError(status) => {
                self.say(what, line, &kube::Error::Api(status.clone()));
            }
            other => {
                let cause = (what.to_owned(), without_numbers(&other.to_string()));
                if self.is_news(cause, Instant::now()) {
                    tracing::warn!("{line}: {other}");
                }
            }
        }
    }

    /// The line to log, if there is news.
    fn line(&self, what: &str, line: &str, error: &kube::Error, now: Instant) -> Option<String> {
        let why = said(error);
        let (cause, line) = match error {
            kube::Error::Api(status) if is_refusal(status) => {
                let kind = if is_ending(status) { "ending" } else { status.reason.as_str() };
                let cause = (what.to_owned(), format!("{} {kind}", status.code));
                (cause, format!("{line}: {why}"))
            }
            // Every request fails by this cause.
            _ => {
                let line =
                    format!("the API server answers with errors, and Ringway asks again: {why}");
                ((String::new(), without_numbers(&why)), line)
            }
        };
        self.is_news(cause, now).then_some(line)
    }

    fn is_news(&self, cause: Cause, now: Instant) -> bool {
        let mut met = self.0.lock();
        met.retain(|_, met| now.saturating_duration_since(met.last) < FORGOTTEN);
        let room = met.len() < MOST;
        match met.get_mut(&cause) {
            Some(met) => {
                met.last = now;
                let again = now.saturating_duration_since(met.said) >= AGAIN;
                met.said = if again { now } else { met.said };
                again
            }
            None if room => {
                met.insert(cause, Met { said: now, last: now });
                true
            }
            None => false,
        }
    }
}

/// Removes digits: local ports, and columns of an answer that was cut off, differ from time to
/// time.
fn without_numbers(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

/// Whether the API server has understood the request and refused it.
fn is_refusal(status: &Status) -> bool {
    (400..500).contains(&status.code) && status.code != 429 && status.code != 401
}

/// Whether the namespace is ending, so that nothing can be created there any more. The status has
/// that cause (`NamespaceTerminating` of k8s.io/api/core/v1); older API servers say so only in the
/// message.
pub fn is_ending(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut causes = causes.map(|cause| cause.reason.as_str());
    status.code == 403
        && (causes.any(|cause| cause == "NamespaceTerminating")
            || status.message.contains("being terminated"))
}

/// An error of the API server for the operator, with advice for the most common errors.
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if is_ending(status) => status.message.clone(),
        kube::Error::Api(status) if status.code == 403 => {
            format!("{}; give Ringway's ServiceAccount this right (RBAC)", status.message)
        }
        kube::Error::Api(status) if status.code == 401 => {
            format!("{}; the credentials are not valid (any more)", status.message)
        }
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        // The outermost text is only "service error".
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(error) = source {
                let more = error.to_string();
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                source = error.source();
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, reason: &str, message: &str) -> kube::Error {
        let status = Status { code, ..Status::failure(message, reason) };
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn each_new_cause_is_said_at_once_and_once() {
        let causes = Causes::default();
        let start = Instant::now();
        let line = |what: &str, error: &kube::Error, after: u64| {
            causes.line(what, what, error, start + Duration::from_secs(after))
        };
        let right = refused(403, "Forbidden", "gateways/status is forbidden");
        let rbac = "; give Ringway's ServiceAccount this right (RBAC)";
        let of = |what: &str| Some(format!("{what}: gateways/status is forbidden{rbac}"));
        assert_eq!(line("Gateway", &right, 0), of("Gateway"));
        assert_eq!(line("Gateway", &right, 1), None);
        assert_eq!(line("TCPRoute", &right, 1), of("TCPRoute"), "another kind");
        let invalid = refused(422, "Invalid", "too long");
        assert_eq!(line("Gateway", &invalid, 1).as_deref(), Some("Gateway: too long (422)"));
        let broken = |column: u32| refused(500, "", &format!("cut off at column {column}"));
        assert!(line("Gateway", &broken(17), 1).is_some());
        assert_eq!(line("Gateway", &broken(230), 1), None, "only a number differs");
        // The cause goes on for an hour; then it ends, and comes back.
        for after in (60..3_600).step_by(60) {
            assert_eq!(line("Gateway", &right, after), None, "{after}");
        }
        assert_eq!(line("Gateway", &right, 3_600), of("Gateway"));
        assert_eq!(line("Gateway", &right, 3_700), None);
        assert_eq!(line("Gateway", &right, 4_000), of("Gateway"));
    }

    #[test]
    fn an_api_server_that_is_away_is_one_cause_whatever_is_asked_for() {
        let causes = Causes::default();
        let away = refused(503, "ServiceUnavailable", "no endpoint");
        let said: Vec<_> = ["Gateway", "Service", "Lease"]
            .iter()
            .filter_map(|what| causes.line(what, what, &away, Instant::now()))
            .collect();
        let line = "the API server answers with errors, and Ringway asks again: no endpoint (503)";
        assert_eq!(said, [line]);
    }

    #[test]
    fn a_namespace_that_ends_is_no_matter_of_rights() {
        let error = refused(403, "Forbidden", "ns is forbidden: because it is being terminated");
        assert_eq!(said(&error), "ns is forbidden: because it is being terminated");
    }

    #[test]
    fn what_is_kept_in_mind_is_bounded() {
        let causes = Causes::default();
        let now = Instant::now();
        let news = |at: usize| causes.is_news((String::new(), at.to_string()), now);
        assert_eq!((0..2 * MOST).filter(|at| news(*at)).count(), MOST);
        assert!(causes.is_news((String::new(), "later".into()), now + FORGOTTEN));
    }
}
