//! Turns the API's answers into tables.

use serde_json::Value;

use crate::control::client::table::Table;

/// How a value of an answer is shown.
#[derive(Clone, Copy)]
pub enum As {
    Text,
    Bytes,
    Millis,
    /// A part of 1.
    Percent,
    /// The backends of a route.
    Shares,
}

/// The columns of a table: title, field of the answer, form.
pub type Columns = &'static [(&'static str, &'static str, As)];

pub const SESSIONS: Columns = &[
    ("ID", "id", As::Text),
    ("LISTENER", "listener", As::Text),
    ("CLIENT", "client", As::Text),
    ("ENDPOINT", "endpoint", As::Text),
    ("STATE", "state", As::Text),
    ("AGE", "age_ms", As::Millis),
    ("IDLE", "idle_ms", As::Millis),
    ("UP", "bytes_up", As::Bytes),
    ("DOWN", "bytes_down", As::Bytes),
];

pub const ENDPOINTS: Columns = &[
    ("BACKEND", "backend", As::Text),
    ("ENDPOINT", "endpoint", As::Text),
    ("NAME", "name", As::Text),
    ("STATE", "state", As::Text),
    ("WEIGHT", "weight", As::Text),
    ("IN FORCE", "weight_in_force", As::Text),
    ("SESSIONS", "sessions", As::Text),
    ("WHY", "why", As::Text),
];

pub const LISTENERS: Columns = &[
    ("LISTENER", "listener", As::Text),
    ("PROTOCOL", "protocol", As::Text),
    ("ADDRESS", "addresses", As::Text),
    ("HOSTNAMES", "hostnames", As::Text),
    ("STATE", "state", As::Text),
    ("SESSIONS", "sessions", As::Text),
    ("OPENED", "opened", As::Text),
    ("REFUSED", "refused", As::Text),
    ("UP", "bytes_up", As::Bytes),
    ("DOWN", "bytes_down", As::Bytes),
];

pub const ROUTES: Columns = &[
    ("ROUTE", "route", As::Text),
    ("LISTENERS", "listeners", As::Text),
    ("HOSTNAMES", "hostnames", As::Text),
    ("SOURCES", "sources", As::Text),
    ("BACKENDS", "backends", As::Shares),
    ("NO ENDPOINT", "refused", As::Percent),
    ("SESSIONS", "sessions", As::Text),
    ("OPENED", "opened", As::Text),
    ("REFUSED", "refused_sessions", As::Text),
    ("UP", "bytes_up", As::Bytes),
    ("DOWN", "bytes_down", As::Bytes),
];

pub const BACKENDS: Columns = &[
    ("BACKEND", "backend", As::Text),
    ("STATE", "state", As::Text),
    ("ENDPOINTS", "endpoints", As::Text),
    ("HEALTHY", "healthy", As::Text),
    ("TAKING", "taking", As::Text),
    ("SESSIONS", "sessions", As::Text),
    ("OPENED", "opened", As::Text),
    ("FAILED", "connect_failures", As::Text),
    ("WAITING", "waiting", As::Text),
    ("UP", "bytes_up", As::Bytes),
    ("DOWN", "bytes_down", As::Bytes),
    ("NEWS", "news", As::Text),
];

pub const LIMITS: Columns = &[
    ("LIMIT", "limit", As::Text),
    ("OF", "of", As::Text),
    ("USED", "used", As::Text),
    ("CAPACITY", "capacity", As::Text),
    ("FULL", "full", As::Percent),
    ("REACHED", "reached", As::Text),
    ("SET BY", "set_by", As::Text),
];

pub const CERTIFICATES: Columns = &[
    ("LISTENER", "listener", As::Text),
    ("BACKEND", "backend", As::Text),
    ("OF", "of", As::Text),
    ("KIND", "kind", As::Text),
    ("NAMES", "names", As::Text),
    ("NOT AFTER", "not_after", As::Text),
    ("DAYS LEFT", "days_left", As::Text),
    ("SOURCE", "source", As::Text),
];

pub const OVERRIDES: Columns = &[
    ("LISTENER", "listener", As::Text),
    ("BACKEND", "backend", As::Text),
    ("ENDPOINT", "endpoint", As::Text),
    ("ACTION", "action", As::Text),
    ("WEIGHT", "weight", As::Text),
    ("ENDS IN", "left_ms", As::Millis),
];

pub fn table(rows: &[Value], columns: Columns) -> String {
    let titles: Vec<_> = columns.iter().map(|(title, _, _)| *title).collect();
    let mut table = Table::new(&titles);
    for row in rows {
        table.row(columns.iter().map(|(_, field, form)| cell(row.get(*field), *form)).collect());
    }
    table.text()
}

/// A session or flow: a line for each field, and a table of its two connections.
pub fn session(value: &Value) -> String {
    let (mut text, tcp, slow) = sides(value);
    if !tcp.is_empty() {
        text += &format!("\n{tcp}");
    }
    if let Some(slow) = slow {
        text += &format!("\n{slow}\n");
    }
    text
}

/// The fields of a session, a table of its two connections, and which of them is slow.
pub fn sides(value: &Value) -> (String, String, Option<String>) {
    let mut row = value.clone();
    let mut take = |key: &str| row.as_object_mut().and_then(|row| row.remove(key));
    let sides = ["client_tcp", "endpoint_tcp"].map(&mut take);
    let slow = take("slow").map(|slow| cell(Some(&slow), As::Text));
    let mut tcp = String::new();
    if let [Some(Value::Object(client)), endpoint] = &sides {
        let mut table = Table::new(&["TCP", "CLIENT", "ENDPOINT"]);
        for (key, value) in client {
            let other = endpoint.as_ref().and_then(|side| side.get(key));
            table.row(vec![key.clone(), cell(Some(value), As::Text), cell(other, As::Text)]);
        }
        tcp = table.text();
    }
    (object(&row), tcp, slow)
}

/// How a gateway fares: what its on-call person asks first stands first.
pub fn status(value: &Value) -> String {
    let get = |key: &str| value.get(key).unwrap_or(&Value::Null);
    let form = |key: &str, form: As| cell(value.get(key), form);
    let state = match (get("draining") == true, get("ready") == true) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let of = |now: &str, most: &str| format!("{} of {}", get(now), get(most));
    let rate = |key: &str| format!("{}/s", form(key, As::Bytes));
    let behind = match get("workers_behind").as_u64() {
        None | Some(0) => String::new(),
        Some(count) => format!(", {count} of them without the newest table"),
    };
    let mut lines = vec![
        ("state", state.to_owned()),
        ("version", form("version", As::Text)),
        ("uptime", form("uptime_ms", As::Millis)),
        (
            "configuration",
            format!(
                "{}, from {}, in force since {}",
                get("generation"),
                form("source", As::Text),
                form("since", As::Text)
            ),
        ),
        ("table", form("table", As::Text)),
        ("reloads", format!("{} done, {} refused", get("reloads_ok"), get("reloads_failed"))),
        ("workers", form("workers", As::Text) + &behind),
        ("sessions", of("sessions", "sessions_most")),
        ("flows", of("flows", "flows_most")),
        ("opened", format!("{}/s", get("opened_per_second"))),
        ("up", rate("bytes_up_per_second")),
        ("down", rate("bytes_down_per_second")),
        ("endpoints down", form("endpoints_down", As::Text)),
        ("overrides", form("overrides", As::Text)),
        ("certificates ending", form("certificates_ending", As::Text)),
        ("process", process(get("upgrade"))),
    ];
    // Each fault has a line of its own.
    let refused = get("refused").as_str().unwrap_or_default();
    lines.extend(refused.lines().map(|why| ("refused", cell(Some(&why.into()), As::Text))));
    if let (Some(last), true) = (value.get("last_refused"), refused.is_empty()) {
        let why = cell(last.get("why"), As::Text);
        lines.push(("last refused", format!("{}: {why}", cell(last.get("at"), As::Text))));
    }
    let width = lines.iter().map(|(title, _)| title.len()).max().unwrap_or(0);
    lines.iter().map(|(title, text)| format!("{title:<width$}  {text}\n")).collect()
}

/// The place of the process in its line, and what still lives in those before.
fn process(upgrade: &Value) -> String {
    let number = |key: &str| upgrade.get(key).and_then(Value::as_u64).unwrap_or(0);
    let mut text = format!("{} of its line", number("generation"));
    let (sessions, flows) = (number("taken_over"), number("flows_taken_over"));
    if sessions + flows > 0 {
        text += &format!("; {sessions} sessions and {flows} flows came from the one before");
    }
    if number("processes") > 0 {
        let (sessions, flows) = (number("sessions"), number("flows"));
        text += &format!(
            "; {} before it drain: {sessions} sessions, {flows} flows",
            number("processes")
        );
    }
    if number("failures") > 0 {
        text += &format!("; {} upgrades failed", number("failures"));
    }
    text
}

/// One object: a line for each field.
fn object(value: &Value) -> String {
    let fields = value.as_object().into_iter().flatten();
    let width = fields.clone().map(|(key, _)| key.len()).max().unwrap_or(0);
    let line = |(key, value): (&String, &Value)| {
        format!("{key:<width$}  {}\n", cell(Some(value), As::Text))
    };
    fields.map(line).collect()
}

const MATCHES: Columns =
    &[("ROUTE", "route", As::Text), ("MATCHES", "matched", As::Text), ("WHY", "why", As::Text)];

const CANDIDATES: Columns = &[
    ("CHANCE", "chance", As::Percent),
    ("ENDPOINT", "endpoint", As::Text),
    ("NAME", "name", As::Text),
    ("STATE", "state", As::Text),
    ("WEIGHT", "weight", As::Text),
    ("IN FORCE", "weight_in_force", As::Text),
    ("SESSIONS", "sessions", As::Text),
    ("MOST", "max_sessions", As::Text),
    ("WHY", "why", As::Text),
];

/// Where a client would go, and why.
pub fn why(answer: &Value) -> String {
    let word = |field: &str| cell(answer.get(field), As::Text);
    let rows = |of: &Value, field: &str| {
        of.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let mut text = format!("{} {}\n", word("client"), word("said"));
    text +=
        &format!("\nlistener {} ({}, {})\n", word("listener"), word("protocol"), word("address"));
    for rule in rows(answer, "rules") {
        let mark = if rule["passed"] == true { "+" } else { "-" };
        text += &format!("  {mark} {}\n", cell(rule.get("said"), As::Text));
    }
    for limit in rows(answer, "limits") {
        if limit.get("refuses").is_some() {
            let word = |field: &str| cell(limit.get(field), As::Text);
            let who = match limit.get("worker") {
                Some(worker) => format!("worker {worker}"),
                None => "all workers".to_owned(),
            };
            text += &format!(
                "  - {who}: {} is reached ({} of {}): {}\n",
                word("limit"),
                word("used"),
                word("most"),
                word("refuses")
            );
        }
    }
    let routes = rows(answer, "routes");
    if !routes.is_empty() {
        text += &format!("\n{}", table(&routes, MATCHES));
    }
    for backend in rows(answer, "backends") {
        let word = |field: &str, form| cell(backend.get(field), form);
        text += &format!(
            "\nbackend {}: weight {}, chance {}, {}\n",
            word("backend", As::Text),
            word("weight", As::Text),
            word("chance", As::Percent),
            word("balance", As::Text)
        );
        let endpoints = rows(&backend, "endpoints");
        if !endpoints.is_empty() {
            text += &table(&endpoints, CANDIDATES);
        }
        let when = if backend["none"] == true { "no endpoint" } else { "if no endpoint" };
        text += &format!("{when} may be picked: {}\n", word("if_none", As::Text));
    }
    text
}

pub const CLOSES: Columns = &[
    ("REASON", "reason", As::Text),
    ("LAST HOUR", "count", As::Text),
    ("LAST 1-2 MIN", "latest", As::Text),
];

/// Why sessions and flows ended, and lines of the access log for each reason.
pub fn closes_with_samples(answer: &Value) -> String {
    let rows = answer.get("closes").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut text = table(&rows, CLOSES);
    for of in &rows {
        text += &format!("\n{}\n", cell(of.get("reason"), As::Text));
        for line in of.get("samples").and_then(Value::as_array).into_iter().flatten() {
            let word = |(key, value): (&String, &Value)| match value {
                Value::String(_) => format!("{key}={}", cell(Some(value), As::Text)),
                value => format!("{key}={value}"),
            };
            let words = line.as_object().into_iter().flatten().map(word);
            text += &format!("  {}\n", words.collect::<Vec<_>>().join(" "));
        }
    }
    text
}

/// A line of the gateway's own log.
pub fn event(line: &Value) -> String {
    let word = |field: &str| cell(line.get(field), As::Text);
    format!("{} {:5} {}\n", word("ts"), word("level"), word("text"))
}

/// The level of the log, and when it ends.
pub fn log_level(answer: &Value) -> String {
    let word = |field: &str, form| cell(answer.get(field), form);
    let level = word("level", As::Text);
    match answer.get("left_ms") {
        Some(_) => {
            let (left, then) = (word("left_ms", As::Millis), word("then", As::Text));
            format!("{level} for {left}, then {then}\n")
        }
        None => format!("{level}\n"),
    }
}

pub fn cell(value: Option<&Value>, form: As) -> String {
    match (value, form) {
        (None | Some(Value::Null), _) => "-".to_owned(),
        (Some(Value::String(text)), _) => text.replace(|c: char| c.is_control(), "\u{fffd}"),
        (Some(Value::Number(number)), As::Bytes) => bytes(number.as_u64().unwrap_or(0)),
        (Some(Value::Number(number)), As::Percent) => {
            format!("{:.1} %", number.as_f64().unwrap_or(0.0) * 100.0)
        }
        (Some(Value::Number(number)), As::Millis) => millis(number.as_u64().unwrap_or(0)),
        (Some(Value::Array(list)), As::Shares) => {
            list.iter().map(share).collect::<Vec<_>>().join(", ")
        }
        (Some(Value::Array(list)), _) if list.is_empty() => "-".to_owned(),
        (Some(Value::Array(list)), _) => {
            list.iter().map(|value| cell(Some(value), form)).collect::<Vec<_>>().join(", ")
        }
        (Some(value), _) => value.to_string(),
    }
}

/// A backend's share of a route, such as `web 90.0 %`.
fn share(of: &Value) -> String {
    let (backend, share) = (cell(of.get("backend"), As::Text), cell(of.get("share"), As::Percent));
    let gone = if of["available"] == false { " (no endpoint)" } else { "" };
    format!("{backend} {share}{gone}")
}

/// A size in three digits or so.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut unit, mut rest) = (0, bytes);
    let mut tenths = 0;
    while rest >= 1_024 {
        (tenths, rest, unit) = (rest % 1_024 * 10 / 1_024, rest / 1_024, unit + 1);
    }
    match unit > 0 && rest < 10 {
        true => format!("{rest}.{tenths} {}", UNITS[unit]),
        false => format!("{rest} {}", UNITS[unit]),
    }
}

fn millis(millis: u64) -> String {
    let seconds = millis / 1_000;
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        let sizes = [0, 1_023, 1_024, 1_536, 10 << 10, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 KiB", "5.0 GiB", "15 EiB"]);
        let times = [0, 999, 1_000, 61_000, 3_600_000, 90_000_000].map(millis);
        assert_eq!(times, ["0 ms", "999 ms", "1 s", "1m01s", "1h00m", "1d01h"]);
    }

    #[test]
    fn a_status_says_the_state_and_each_fault() {
        let value = serde_json::json!({
            "ready": true, "draining": false, "sessions": 3, "sessions_most": 64,
            "bytes_up_per_second": 2048, "refused": "a.toml:1: x\nb.toml:2: \u{1b}y",
        });
        let text = status(&value);
        assert!(text.starts_with("state                ready\n"), "{text}");
        assert!(text.contains("sessions             3 of 64\n"), "{text}");
        assert!(text.contains("up                   2.0 KiB/s\n"), "{text}");
        assert!(text.contains("refused              a.toml:1: x\n"), "{text}");
        assert!(text.ends_with("refused              b.toml:2: \u{fffd}y\n"), "{text}");
        assert!(!status(&serde_json::json!({ "ready": true })).contains("refused   "), "{text}");
        let draining = serde_json::json!({ "ready": false, "draining": true });
        assert!(status(&draining).starts_with("state                draining\n"));
    }

    #[test]
    fn a_field_that_is_absent_is_a_dash() {
        let rows = [serde_json::json!({ "id": "s0-0-0-0", "bytes_up": 2048 })];
        let text = table(&rows, SESSIONS);
        assert!(text.starts_with("ID        LISTENER"), "{text}");
        assert!(text.contains("s0-0-0-0") && text.contains("2.0 KiB") && text.contains(" - "));
    }
}
