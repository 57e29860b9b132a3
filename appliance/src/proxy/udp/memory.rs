//! How much memory a flow may take.

use crate::contract::{SHARED_SOCKETS, Token};
use crate::proxy::heap::{HEADER, block, hash_table};
use crate::proxy::held::Held;
use crate::proxy::slab::Slab;
use crate::proxy::udp::flow::{Flow, FlowHeader};
use crate::proxy::udp::shared_sockets::Pair;
use crate::proxy::udp::state::{One, Trial, Upstream};
use crate::proxy::udp::trial::MOST_TRIALS;

/// See [`growth`](crate::proxy::memory::growth). Upstream sockets outlive their flows, but there
/// are no more of them than flows.
pub const fn growth(flows: u32, reads: bool) -> usize {
    let (flows, upstreams) = (flows as usize, flows as usize + SHARED_SOCKETS as usize);
    let slot = size_of::<u32>();
    let tables = hash_table(2 * flows, slot) + hash_table(2 * upstreams, slot);
    let trials = if flows < MOST_TRIALS { flows } else { MOST_TRIALS };
    flows * of_flow(reads) + upstreams * of_upstream() + tables + trials * size_of::<Trial>()
}

/// A flow with its slot and all that it may have on the heap, and its place among those that the
/// kernel forwards.
const fn of_flow(reads: bool) -> usize {
    let said = block(size_of::<FlowHeader>()) + block(HEADER);
    Slab::<Flow>::SLOT + block(Held::MOST) + size_of::<One>() + if reads { said } else { 0 }
}

/// A socket, or an address on a shared one, which may wait to receive again.
const fn of_upstream() -> usize {
    Slab::<Upstream>::SLOT + size_of::<Pair>() + size_of::<(u64, Token)>()
}
