//! How the two connections of a session fare, for people.

use schemars::JsonSchema;
use serde::Serialize;

use crate::wire::tcp_info::TcpInfo;

/// One connection.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Tcp {
    rtt_ms: f64,
    rttvar_ms: f64,
    min_rtt_ms: f64,
    /// Segments.
    cwnd: u32,
    unacked: u32,
    lost: u32,
    retransmits: u32,
    mss: u32,
    /// Bytes.
    window: u32,
    unread_bytes: u32,
    unacked_bytes: u32,
    not_sent_bytes: u32,
    bytes_acked: u64,
    bytes_received: u64,
    /// Bytes per second.
    delivery_rate: u64,
    /// Milliseconds with bytes on their way, and of these, those with a closed window.
    busy_ms: u64,
    window_limited_ms: u64,
    since_received_ms: u32,
}

impl From<TcpInfo> for Tcp {
    fn from(info: TcpInfo) -> Self {
        let millis = |micros: u32| f64::from(micros) / 1_000.0;
        Self {
            rtt_ms: millis(info.rtt),
            rttvar_ms: millis(info.rttvar),
            min_rtt_ms: millis(info.min_rtt),
            cwnd: info.cwnd,
            unacked: info.unacked,
            lost: info.lost,
            retransmits: info.retransmits,
            mss: info.mss,
            window: info.window,
            unread_bytes: info.unread,
            unacked_bytes: info.unacked_bytes,
            not_sent_bytes: info.not_sent,
            bytes_acked: info.bytes_acked,
            bytes_received: info.bytes_received,
            delivery_rate: info.delivery_rate,
            busy_ms: info.busy / 1_000,
            window_limited_ms: info.window_limited / 1_000,
            since_received_ms: info.since_received,
        }
    }
}

/// Says which side is slow, and by which sign: bytes that wait for it.
pub fn slow(client: &TcpInfo, endpoint: Option<&TcpInfo>) -> String {
    let Some(endpoint) = endpoint else {
        return match obstacle("client", client) {
            Some(text) => text,
            None => "no endpoint is connected yet".to_owned(),
        };
    };
    // What waits for one side came from the other.
    let sides = [("client", client, endpoint), ("endpoint", endpoint, client)];
    let found = sides.into_iter().filter_map(|(name, info, other)| {
        let text = obstacle(name, info)?;
        Some(match other.unread {
            0 => text,
            unread => format!("{text}; {unread} bytes behind it are not read yet"),
        })
    });
    let found: Vec<_> = found.collect();
    match found.is_empty() {
        false => found.join(". "),
        true => format!(
            "no side is slow: no bytes wait; the client sent its last byte {} ms ago, the \
             endpoint {} ms ago",
            client.since_received, endpoint.since_received
        ),
    }
}

/// Why bytes wait for this side. `None`: none do, or they are only on their way.
fn obstacle(name: &str, info: &TcpInfo) -> Option<String> {
    let TcpInfo { unacked_bytes: bytes, .. } = *info;
    if bytes == 0 {
        return None;
    }
    if info.probes > 0 || info.not_sent > 0 && info.window < info.mss {
        return Some(format!(
            "the {name} is slow: it does not read, and its window is closed; {bytes} bytes wait \
             for it"
        ));
    }
    if info.timeouts > 0 || info.lost > 0 {
        return Some(format!(
            "the path to the {name} loses packets: {} of the segments on their way are lost, {} \
             attempts in a row had no answer; {bytes} bytes wait",
            info.lost, info.timeouts
        ));
    }
    // With an open window, what was not sent waits for acknowledgements: the path is full.
    (info.not_sent > 0).then(|| {
        let waits = format!("{bytes} bytes wait for it, {} of them unsent", info.not_sent);
        match 2 * info.window_limited > info.busy {
            true => format!("the {name} is slow: its window was closed most of the time; {waits}"),
            false => format!("the path to the {name} is full (congestion window); {waits}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_for_which_bytes_wait_is_slow() {
        let calm = TcpInfo { mss: 1_448, window: 65_536, since_received: 7, ..TcpInfo::default() };
        let idle = slow(&calm, Some(&calm));
        assert!(idle.starts_with("no side is slow") && idle.contains("7 ms ago"), "{idle}");
        assert_eq!(slow(&calm, None), "no endpoint is connected yet");
        let on_its_way = TcpInfo { unacked_bytes: 100, unacked: 1, ..calm };
        assert!(slow(&on_its_way, Some(&calm)).starts_with("no side is slow"));

        let closed = TcpInfo { unacked_bytes: 900, not_sent: 900, window: 0, ..calm };
        let said = slow(&closed, Some(&TcpInfo { unread: 5_000, ..calm }));
        assert!(said.starts_with("the client is slow: it does not read"), "{said}");
        assert!(said.ends_with("900 bytes wait for it; 5000 bytes behind it are not read yet"));
        let said = slow(&calm, Some(&TcpInfo { probes: 2, ..closed }));
        assert!(said.starts_with("the endpoint is slow: it does not read"), "{said}");

        let lossy = TcpInfo { unacked_bytes: 9, lost: 3, ..calm };
        let said = slow(&calm, Some(&lossy));
        assert!(said.starts_with("the path to the endpoint loses packets: 3 of"), "{said}");
        let full = TcpInfo { unacked_bytes: 9_000, not_sent: 5_000, busy: 10, ..calm };
        assert!(slow(&full, Some(&calm)).starts_with("the path to the client is full"));
        let limited = TcpInfo { window_limited: 9, ..full };
        let said = slow(&limited, Some(&closed));
        assert!(said.contains("client is slow: its window was closed most"), "{said}");
        assert!(said.contains(". the endpoint is slow"), "both are said: {said}");
    }
}
