//! A flood fills a flow table and uses buffers, and crowds hold most places for sessions. The
//! gateway's own memory stays below the bound that `ringway limits` says, and not far from it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use ringway_tests::real::config::forward_as;
use ringway_tests::real::{
    Gateway, Launch, Server, SetWhenDropped, amount, echo, exchange, free_address, in_own_network,
    now, wait_until,
};

use crate::floods::{connect, datagrams, source};
use crate::honest::requests;
use crate::{SOURCES, own_memory};

/// Of a worker.
const SESSIONS: u32 = 1_500;
const FLOWS: u32 = 2_000;
const HELD: u32 = 2_000;
/// A datagram that touches each page of its buffer.
static LARGE: [u8; 60_000] = [7; 60_000];

#[test]
fn full_tables_stay_below_the_bound_of_memory() {
    in_own_network(|| {
        let (tcp, udp) = (free_address(), free_address());
        let (echoes, answers) = (Server::tcp(echo), Server::udp_echo());
        // Nothing limits the flows of this listener but the table. The queue of a log is large,
        // compared with these tables, so there is none.
        let config = "access_log = { path = \"off\" }\n".to_owned()
            + &format!("limits = {{ sessions = {SESSIONS}, flows = {FLOWS}, pipes = 16 }}\n")
            + &forward_as("tcp", "TCP", tcp, [echoes.address], "")
            + &forward_as("udp", "UDP", udp, [answers.address], "");
        let gateway = Launch::default().socket().blocked_log().start(&config);
        let hold = |nth| connect(source(nth), tcp).expect("the gateway accepts");
        let held: Vec<_> = (0..HELD).map(hold).collect();
        wait_until("all sessions are there", || {
            gateway.metrics().value("ringway_sessions_active", &[]) == u64::from(HELD)
        });
        let most = flooded(&gateway, tcp, udp);
        let flows = gateway.metrics().value("ringway_flows_active", &[]);
        assert!(flows > u64::from(FLOWS), "{flows} flows: more than one worker's table is full");
        let labels = [("listener", "udp"), ("reason", "flow_limit")];
        assert!(gateway.metrics().value("ringway_datagrams_dropped_total", &labels) > 0);
        let says = format!("overload: the flow table of a worker is full (limits.flows = {FLOWS})");
        // Limits are looked at once a second.
        gateway.says(&says);
        let said = gateway.stderr();
        assert_eq!(said.matches(&says).count(), 1, "{said}");
        let refused = [("listener", "tcp")];
        assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &refused), 0);
        drop(held);
        let (used, bound) = own_memory(&gateway);
        eprintln!("{} KiB at the most, now {}, of {}", most >> 10, used >> 10, bound >> 10);
        assert!(most < bound && used < bound, "{most} and {used} of {bound} bytes");
        // Not every buffer need have been touched.
        assert!(bound < 4 * most, "{most} of {bound} bytes: a bound that far off shows nothing");
    });
}

/// The most memory, in bytes, that the gateway uses while datagrams of many sources come. Honest
/// clients have sessions meanwhile.
fn flooded(gateway: &Gateway, tcp: SocketAddr, udp: SocketAddr) -> u64 {
    let (over, all_over, began) = (AtomicBool::new(false), AtomicBool::new(false), now());
    let span = Duration::from_secs(amount("RINGWAY_ABUSE_SECONDS", 3, 20));
    std::thread::scope(|scope| {
        let _over = (SetWhenDropped(&over), SetWhenDropped(&all_over));
        let flood = scope.spawn(|| datagrams(&over, &[udp], SOURCES, &LARGE));
        let honest = scope.spawn(|| requests(&all_over, tcp));
        let mut most = 0;
        while began.elapsed() < span {
            assert_eq!(exchange(tcp, b"new").expect("a new session"), b"new");
            most = most.max(gateway.anonymous() << 10);
            std::thread::sleep(Duration::from_millis(50));
        }
        over.store(true, SeqCst);
        let count = flood.join().expect("the flood goes on");
        all_over.store(true, SeqCst);
        let served = honest.join().expect("an honest client was not served");
        eprintln!("{count} datagrams; {:.0} requests a second", served.rate());
        most
    })
}
