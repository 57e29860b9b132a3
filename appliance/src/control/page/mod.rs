//! The live page at `/`: static files, which are part of the program.

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The page runs its own scripts only, and talks to its own gateway only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

const INDEX: &str = include_str!("index.html");

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, type and text of each file under /page/.
const FILES: [(&str, &str, &str); 7] = [
    ("page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ("main.js", SCRIPT, include_str!("main.js")),
    ("show.js", SCRIPT, include_str!("show.js")),
    ("graphs.js", SCRIPT, include_str!("graphs.js")),
    ("picture.js", SCRIPT, include_str!("picture.js")),
    ("sessions.js", SCRIPT, include_str!("sessions.js")),
];

pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(async || answer("text/html; charset=utf-8", INDEX)))
        .route("/page/{name}", get(file))
}

async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|file| file.0 == name) {
        Some((_, kind, text)) => answer(kind, text),
        None => (StatusCode::NOT_FOUND, "the page has no such file\n").into_response(),
    }
}

fn answer(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 6] = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        // Another version of the gateway has another page.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        for inline in
            ["<style", " style=", " onclick=", " onload=", "javascript:", "http:", "https:"]
        {
            assert!(!INDEX.contains(inline), "{inline}");
        }
        assert_eq!(INDEX.matches("<script").count(), 1);
        for link in INDEX.split(['"', '\'']).filter_map(|text| text.strip_prefix("/page/")) {
            assert!(FILES.iter().any(|file| file.0 == link), "{link}");
        }
        for (name, _, text) in FILES {
            for forbidden in ["innerHTML", "eval(", "insertAdjacentHTML", "document.write"] {
                assert!(!text.contains(forbidden), "{name}: {forbidden}");
            }
            for part in text.split("from \"./").skip(1) {
                let other = part.split('"').next().unwrap_or_default();
                assert!(FILES.iter().any(|file| file.0 == other), "{name}: {other}");
            }
        }
    }
}
