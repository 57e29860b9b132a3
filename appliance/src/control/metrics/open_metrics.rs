//! The page at /metrics in the form of OpenMetrics 1.0, for clients that prefer it.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

/// The value of Content-Type.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the client prefers OpenMetrics 1.0 to the text format of Prometheus (RFC 9110, section
/// 12.5.1). A client that says nothing gets the text format.
pub fn is_preferred(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut open, mut text) = (0.0, 0.0);
    for accepted in accepted.flat_map(|value| value.split(',')) {
        let mut parts = accepted.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut version, mut weight) = (None, 1.0_f32);
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key {
                "version" => version = Some(value),
                "q" => weight = value.parse().unwrap_or(0.0),
                _ => {}
            }
        }
        match kind.as_str() {
            "application/openmetrics-text" if matches!(version, None | Some("1.0.0")) => {
                open = weight.max(open);
            }
            "text/plain" => text = weight.max(text),
            _ => {}
        }
    }
    open > 0.0 && open >= text
}

/// Turns a page in the text format into one of OpenMetrics: the family of a counter is called
/// without `_total`, and the page has an end.
pub fn from_text(page: &str) -> String {
    let mut open = String::with_capacity(page.len() + 8);
    for line in page.lines() {
        match family(line) {
            Some((start, name, rest)) => {
                open.push_str(start);
                open.push_str(name.strip_suffix("_total").unwrap_or(name));
                open.push_str(rest);
            }
            None => open.push_str(line),
        }
        open.push('\n');
    }
    open.push_str("# EOF\n");
    open
}

/// Cuts a line that describes a family: what stands before the name, the name, and the rest.
fn family(line: &str) -> Option<(&str, &str, &str)> {
    let start = ["# HELP ", "# TYPE "].into_iter().find(|start| line.starts_with(start))?;
    let rest = &line[start.len()..];
    let end = rest.find(' ').unwrap_or(rest.len());
    Some((start, &rest[..end], &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefers(accept: &str) -> bool {
        is_preferred(&HeaderMap::from_iter([(ACCEPT, accept.parse().expect("a value"))]))
    }

    #[test]
    fn the_heavier_form_is_taken() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert!(prefers(prometheus));
        assert!(prefers("application/openmetrics-text"));
        assert!(!prefers("text/plain, application/openmetrics-text; version=1.0.0; q=0.5"));
        assert!(!prefers("application/openmetrics-text; version=0.0.1"));
        assert!(!prefers("application/openmetrics-text; q=0"));
        assert!(!prefers("*/*") && !is_preferred(&HeaderMap::new()));
    }

    #[test]
    fn families_of_counters_lose_their_ending() {
        let text = "# HELP a_total Help, a_total.\n# TYPE a_total counter\n\
                    a_total{x=\"# TYPE b_total \"} 1\n# HELP b B.\n# TYPE b gauge\nb 2\n";
        let open = "# HELP a Help, a_total.\n# TYPE a counter\n\
                    a_total{x=\"# TYPE b_total \"} 1\n# HELP b B.\n# TYPE b gauge\nb 2\n# EOF\n";
        assert_eq!(from_text(text), open);
    }
}
