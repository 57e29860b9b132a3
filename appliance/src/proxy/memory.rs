//! The most memory that the sessions and flows of a worker may come to take, computed from the
//! sizes of what they keep. Hardly a session keeps all that it may keep. What has no size that is
//! known before (long chains of certificates, long subjects, many backends that failed) may come on
//! top; `images/OPERATING.md` names that. Sockets are the kernel's memory, and no part of it.

use config_sync::table::routing::Limits;

use crate::proxy::core::{MOST_OUTPUT, MOST_TAKES};
use crate::proxy::heap::{SERVER_NAME, block};
use crate::proxy::{tcp, udp};
use crate::stats::detail::LONGEST;
use crate::stats::records::Record;
use crate::stats::tls_facts::{CertificateFacts, TlsFacts};

pub use crate::proxy::tcp::memory::{RUSTLS, of_tls};

/// The most bytes by which the proxy's memory grows once it is made. `most_events`: of one turn.
/// `reads`: the worker looks into some clients' bytes. Otherwise bytes only pass through.
pub const fn growth(limits: &Limits, most_events: usize, reads: bool) -> usize {
    let places = limits.sessions as usize + limits.flows as usize;
    // A session or flow that ends has one event.
    let ends = if places < most_events { places } else { most_events };
    tcp::memory::growth(limits.sessions, reads)
        + udp::memory::growth(limits.flows, reads)
        + ends * (size_of::<Record>() + of_record(reads))
        + if reads { ARENAS } else { 0 }
}

/// What a record has on the heap.
pub const fn of_record(reads: bool) -> usize {
    let tls = block(size_of::<TlsFacts>()) + block(PROTOCOL) + block(CERTIFICATE);
    if reads { block(SERVER_NAME) + block(LONGEST) + tls } else { 0 }
}

/// Bytes that one `Take` or `Peek` brings at the most.
const TAKEN: usize = 64 * 1024;

/// The bytes of all `Take`s and `Peek`s of a turn, and those that `Give`s leave over; what is
/// given, of this turn and the one before; and what is decrypted and encrypted.
const ARENAS: usize = MOST_TAKES as usize * TAKEN + 3 * MOST_OUTPUT + 4 * TAKEN;

/// The longest protocol of ALPN.
const PROTOCOL: usize = 255;

/// A client's certificate, with a subject that is longer than most. Not a bound: a longer subject
/// is kept whole, and comes on top.
const CERTIFICATE: usize = size_of::<CertificateFacts>() + 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        sessions: 1_000,
        flows: 2_000,
        buffers: 64,
        pipes: 8,
        turn_bytes: 262_144,
        bulk_bytes: 8 << 20,
    };

    fn of(limits: Limits) -> usize {
        growth(&limits, 16_384, false)
    }

    #[test]
    fn each_session_and_flow_takes_what_its_slot_and_its_heap_take() {
        let one_more = of(Limits { sessions: 1_001, ..LIMITS }) - of(LIMITS);
        assert!(one_more > tcp::memory::of_session(false), "and a record");
        assert!((700..3_000).contains(&one_more), "{one_more} bytes for a session");
        // The places of a hash table grow by doubling.
        let double = of(Limits { flows: 4_000, ..LIMITS }) - of(LIMITS);
        let each = double / 2_000;
        assert!((500..3_000).contains(&each), "{each} bytes for a flow");
        assert_eq!(of(Limits { pipes: 9, ..LIMITS }), of(LIMITS), "the ring has pipes");
    }

    #[test]
    fn bytes_that_are_looked_into_take_memory() {
        let more = growth(&LIMITS, 16_384, true) - of(LIMITS);
        assert!(more > ARENAS + 3_000 * SERVER_NAME, "{more}");
    }
}
