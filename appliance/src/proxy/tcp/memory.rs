//! How much memory a session may take.

use std::collections::VecDeque;
use std::net::IpAddr;

use config_sync::table::routing::{BackendId, SocketId};

use crate::contract::{Side, Token};
use crate::proxy::core::Postponed;
use crate::proxy::heap::{HEADER, SERVER_NAME, block};
use crate::proxy::held::Held;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::state::{Connecting, Ending, HeaderFacts, Session};
use crate::proxy::tcp::tls_connection::MOST_CARRIED;
use crate::proxy::tcp::tls_relay::{MOST_HELD, TAKE, TlsRelay};
use crate::proxy::timer::Wheel;
use crate::stats::detail::{Detail, LONGEST};

/// See [`growth`](crate::proxy::memory::growth).
pub const fn growth(sessions: u32, reads: bool) -> usize {
    sessions as usize * of_session(reads)
}

/// A session with its slot, its deadline, its places in lines, and all that it may have on the heap
/// besides TLS.
pub const fn of_session(reads: bool) -> usize {
    let slot = Slab::<Session>::SLOT
        + Wheel::ENTRY
        + 2 * size_of::<(Token, Side)>()
        + 4 * size_of::<(Token, Side, Postponed)>();
    // In the line of a limit that delays, or of endpoints that are full.
    let waits = block(Held::MOST) + 8 * size_of::<Token>();
    // Backends that had no endpoint for it. Not a bound: a route may have more, which come on top.
    let failed = block(16 * size_of::<BackendId>());
    let ends =
        block(size_of::<Ending>()) + block(size_of::<Connecting>()) + block(size_of::<Detail>());
    slot + waits + failed + ends + if reads { of_undecided() } else { 0 }
}

/// What a session has because it may have to say where to go. Four lines have it (`undecided.rs`):
/// each leaves those out late that wait no more, so it has twice as many, and room for twice as
/// many again. Each source has a line of its own.
const fn of_undecided() -> usize {
    let of_source = size_of::<(SocketId, IpAddr)>() + size_of::<VecDeque<Token>>();
    let sources = 2 * (2 * of_source + block(4 * size_of::<Token>()));
    let lines = 4 * 4 * size_of::<Token>() + sources;
    let said = block(SERVER_NAME) + block(LONGEST) + block(size_of::<HeaderFacts>());
    lines + said + block(HEADER)
}

/// What a session takes besides, if one side or both speak TLS with the gateway. `tls_relay.rs`
/// says what a side holds.
pub const fn of_tls() -> usize {
    let port = block(MOST_HELD) + block(TAKE as usize) + block(MOST_CARRIED) + RUSTLS;
    block(size_of::<TlsRelay>()) + 2 * port
}

/// The memory that rustls has for one connection, within the handshake and after it. Measured: a
/// client's handshake takes 9.7 KB at the most (`allocation.rs`), and what aws-lc has is not in
/// that. 800 sessions that had done theirs took 4.4 KiB each, whole. Not a bound: long chains of
/// certificates, the gateway's or a peer's, come on top.
pub const RUSTLS: usize = 16 * 1024;
