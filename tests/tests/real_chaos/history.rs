//! What clients, endpoints, the log and the metrics say of one time must be one story.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use ringway_tests::real::{Gateway, LogLine, Metrics, wait_until};

use crate::peers::{Act, End, HEAD, Plan, Seen};

/// A session as its client saw it. `None`: it came to no connection.
pub struct Outcome {
    pub plan: Plan,
    pub seen: Option<(SocketAddr, Seen)>,
}

/// What the endpoints wrote down.
#[derive(Default)]
pub struct Journal {
    /// How often a session began.
    began: BTreeMap<u64, u32>,
    ended: BTreeMap<u64, Seen>,
}

impl Journal {
    pub fn read(path: &Path) -> Self {
        let mut journal = Self::default();
        let text = std::fs::read_to_string(path).expect("the journal");
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let number = |at: usize| -> u64 { words[at].parse().expect("a number") };
            match words[0] {
                "began" => *journal.began.entry(number(1)).or_default() += 1,
                "ended" => {
                    let end = if words[5] == "true" { End::Clean } else { End::Error };
                    let (sent, got, eof) = (number(2), number(3), words[4] == "true");
                    journal.ended.insert(number(1), Seen { sent, got, eof, end });
                }
                _ => panic!("an endpoint got bytes that are not its session's: {line}"),
            }
        }
        journal
    }
}

/// How many sessions came to what.
#[derive(Debug, Default)]
pub struct Tally {
    pub sessions: usize,
    pub whole: usize,
    pub cut: usize,
    pub silent: usize,
    pub no_connection: usize,
    /// Of those that are whole, the ones with a side that is slow, or waits for the other's end.
    pub whole_slow: usize,
    pub whole_last: usize,
    pub bytes: u64,
}

/// Each side has a prefix of what the other sent, which is checked as it arrives; the whole, if the
/// stream has ended; and no stream ends that its sender has not ended.
pub fn check(outcomes: &[Outcome], journal: &Journal, log: &[LogLine]) -> Tally {
    let mut lines: BTreeMap<String, Vec<&LogLine>> = BTreeMap::new();
    for line in log.iter().filter(|line| line.text("listener") == Some("tcp")) {
        lines.entry(line.text("client").unwrap_or_default().to_owned()).or_default().push(line);
    }
    assert!(journal.began.values().all(|times| *times == 1), "a session went to two endpoints");
    let mut tally = Tally { sessions: outcomes.len(), ..Tally::default() };
    for Outcome { plan, seen } in outcomes {
        let Some((address, client)) = seen else {
            tally.no_connection += 1;
            continue;
        };
        let of_client = lines.get(&address.to_string()).map_or(&[][..], Vec::as_slice);
        let endpoint = journal.ended.get(&plan.id);
        judge(plan, client, endpoint, of_client);
        tally.bytes += client.got + client.sent;
        match client.end {
            End::Clean => {
                tally.whole += 1;
                tally.whole_slow += usize::from([plan.client, plan.endpoint].contains(&Act::Slow));
                tally.whole_last += usize::from([plan.client, plan.endpoint].contains(&Act::Last));
            }
            End::Silent => tally.silent += 1,
            _ => tally.cut += 1,
        }
    }
    tally
}

fn judge(plan: &Plan, client: &Seen, endpoint: Option<&Seen>, lines: &[&LogLine]) {
    let story = || format!("{plan:?}\nclient {client:?}\nendpoint {endpoint:?}\nlog {lines:?}");
    assert!(!matches!(client.end, End::Wrong(_)), "a client got wrong bytes: {}", story());
    // The gateway ends silent sessions with a FIN on both sides, by its configuration.
    let timed_out = lines.iter().any(|line| {
        line.text("reason")
            .is_some_and(|reason| ["idle_timeout", "half_close_timeout"].contains(&reason))
    });
    // An endpoint that was killed has written nothing, and its kernel may have said FIN for it.
    let Some(endpoint) = endpoint else { return };
    let is_short = client.eof && client.got < plan.down;
    assert!(!is_short || timed_out, "a client saw an end that was none: {}", story());
    let is_short = endpoint.eof && endpoint.got < plan.up;
    assert!(!is_short || timed_out, "an endpoint saw an end that was none: {}", story());
    if client.end != End::Clean || endpoint.end != End::Clean {
        return;
    }
    let [line] = lines else { return };
    let (up, down) = (line.number("bytes_up"), line.number("bytes_down"));
    assert_eq!((up, down), (plan.up + HEAD, plan.down), "{}", story());
    let reason = line.text("reason").unwrap_or_default();
    assert!(["client_fin", "endpoint_fin"].contains(&reason), "{}", story());
}

/// Waits until nothing lives, and compares the metrics with the sum of the log.
pub fn counters_are_the_log(gateway: &Gateway) -> (Metrics, Vec<LogLine>) {
    let lives = |name| gateway.metrics().value(name, &[]) > 0;
    wait_until("all sessions and flows have ended", || {
        !lives("ringway_sessions_active") && !lives("ringway_flows_active")
    });
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("ringway_log_lines_dropped_total", &[]), 0);
    // The control thread writes a line a moment after the worker has counted.
    let mut log = Vec::new();
    let mut differences = Vec::new();
    for _ in 0..50 {
        log = gateway.log();
        differences = compare(&metrics, &log);
        if differences.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(differences.is_empty(), "metrics and log differ: {differences:#?}");
    (metrics, log)
}

fn compare(metrics: &Metrics, log: &[LogLine]) -> Vec<String> {
    let mut differences = Vec::new();
    let mut same = |what: String, counted: u64, logged: u64| {
        if counted != logged {
            differences.push(format!("{what}: {counted} counted, {logged} logged"));
        }
    };
    let mut reasons: Vec<_> = log.iter().filter_map(|line| line.text("reason")).collect();
    reasons.sort_unstable();
    reasons.dedup();
    for (listener, names) in [
        ("tcp", ["ringway_sessions_closed_total", "ringway_sessions_refused_total"]),
        ("udp", ["ringway_flows_closed_total", "ringway_flows_refused_total"]),
    ] {
        let of: Vec<_> =
            log.iter().filter(|line| line.text("listener") == Some(listener)).collect();
        let [closed, refused] = ["close", "reject"].map(|event| {
            of.iter().filter(|line| line.text("event") == Some(event)).collect::<Vec<_>>()
        });
        for (name, event, lines) in [(names[0], "close", &closed), (names[1], "reject", &refused)] {
            for &reason in &reasons {
                let labels = [("listener", listener), ("reason", reason)];
                let with = lines.iter().filter(|line| line.text("reason") == Some(reason));
                let what = format!("{listener}, {event}, {reason}");
                same(what, metrics.value(name, &labels), with.map(|line| told(line)).sum());
            }
            // Reasons that the log does not have at all are among these.
            let counted = metrics.value(name, &[("listener", listener)]);
            let logged = lines.iter().map(|line| told(line)).sum();
            same(format!("{listener}, {event}"), counted, logged);
        }
        for (side, field) in [("client", "bytes_up"), ("endpoint", "bytes_down")] {
            let labels = [("listener", listener), ("side", side)];
            let counted = metrics.value("ringway_relayed_bytes_total", &labels);
            let logged = of.iter().map(|line| line.number(field)).sum();
            same(format!("{listener}, {field}"), counted, logged);
        }
    }
    for (listener, name, events) in [
        ("tcp", "ringway_sessions_opened_total", &["close", "reject"][..]),
        ("udp", "ringway_flows_created_total", &["close"]),
    ] {
        let begun = log.iter().filter(|line| {
            line.text("listener") == Some(listener)
                && line.text("event").is_some_and(|event| events.contains(&event))
        });
        let counted = metrics.value(name, &[("listener", listener)]);
        same(format!("{listener}, begun"), counted, begun.map(told).sum());
    }
    differences
}

/// How many ends a line tells: it has a count of the rejections before it that have no line.
fn told(line: &LogLine) -> u64 {
    1 + if line.has("suppressed") { line.number("suppressed") } else { 0 }
}
