//! Limits how many requests a client's address may make through a TCP address of the admin API.
//!
//! A script that asks in a loop, or a client that means harm, takes processor time that sessions
//! need, and the places of other clients. Probes, /metrics and the page's files cost next to
//! nothing, so they are not counted. Neither are clients of the Unix socket: they may stop the
//! gateway anyway.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::control::admin::api::Fault;
use crate::control::admin::board::Board;

/// An address has a request back each [`EACH`], so 100 per second.
const EACH: Duration = Duration::from_millis(10);

/// The requests that an address may make at once.
const BURST: u32 = 200;

/// The most addresses that are remembered. All other addresses share one allowance.
const ADDRESSES: usize = 1_024;

/// Where a request comes from. `None`: from the Unix socket.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub Option<IpAddr>);

/// The allowances of all addresses.
///
/// The map says when each address has its whole burst again.
#[derive(Debug, Default)]
pub struct RequestRate(Mutex<HashMap<IpAddr, Instant>>);

impl RequestRate {
    /// Counts a request. False: the address has made too many.
    fn allows(&self, peer: IpAddr, now: Instant) -> bool {
        let mut whole = self.0.lock();
        let mut key = owner(peer);
        if whole.len() >= ADDRESSES && !whole.contains_key(&key) {
            whole.retain(|_, at| *at > now);
            if whole.len() >= ADDRESSES {
                key = Ipv6Addr::UNSPECIFIED.into();
            }
        }
        let at = whole.entry(key).or_insert(now);
        let next = (*at).max(now) + EACH;
        let allows = next <= now + EACH * BURST;
        if allows {
            *at = next;
        }
        allows
    }
}

/// The address whose allowance counts. One host often has all addresses of an IPv6 network of 64
/// bits.
fn owner(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// Answers requests beyond the limit.
pub async fn limit(
    State((rate, board)): State<(Arc<RequestRate>, Arc<Board>)>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
    match peer {
        Some(peer) if !rate.allows(peer, Instant::now()) => {
            board.requests_refused.fetch_add(1, Ordering::Relaxed);
            let each_second = Duration::from_secs(1).as_millis() / EACH.as_millis();
            let text = format!("too many requests: an address has {each_second} per second here");
            Fault::new(StatusCode::TOO_MANY_REQUESTS, text).into_response()
        }
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rate: &RequestRate, peer: &str, now: Instant) -> usize {
        let peer = peer.parse().expect("an address");
        (0..1_000).take_while(|_| rate.allows(peer, now)).count()
    }

    #[test]
    fn an_address_has_a_burst_and_then_so_many_per_second() {
        let (rate, start) = (RequestRate::default(), Instant::now());
        let second = |count: u64| start + Duration::from_secs(count);
        assert_eq!(count(&rate, "192.0.2.1", start), 200);
        assert_eq!(count(&rate, "::ffff:192.0.2.1", start), 0, "the same address");
        assert_eq!(count(&rate, "192.0.2.1", second(1)), 100);
        assert_eq!(count(&rate, "192.0.2.2", second(1)), 200);
        assert_eq!(count(&rate, "192.0.2.1", second(60)), 200, "no more than the burst");
        assert_eq!(count(&rate, "2001:db8::1", second(60)), 200);
        assert_eq!(count(&rate, "2001:db8::2", second(60)), 0, "of the same network");
        assert_eq!(count(&rate, "2001:db8:0:1::1", second(60)), 200);
    }

    #[test]
    fn many_addresses_take_no_more_memory_and_share_what_is_left() {
        let (rate, start) = (RequestRate::default(), Instant::now());
        let address = |n: u32| std::net::Ipv4Addr::from_bits(n).into();
        let allowed = (0..10_000).filter(|n| rate.allows(address(*n), start)).count();
        assert_eq!(allowed, ADDRESSES + 200);
        assert_eq!(rate.0.lock().len(), ADDRESSES + 1);
        let later = start + Duration::from_secs(10);
        assert!(rate.allows(address(20_000), later));
        assert_eq!(rate.0.lock().len(), 1, "those that had not asked for a while are gone");
    }
}
