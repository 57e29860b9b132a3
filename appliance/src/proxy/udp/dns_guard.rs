//! Stands in front of DNS servers: only queries go on, and a client over its limit is sent to TCP.

use config_sync::table::routing::{DnsGuard, SocketId};

use crate::contract::{Op, Part, Token, size};
use crate::proxy::core::Core;
use crate::proxy::udp::flow::{Batch, Sender, listener_of};
use crate::proxy::udp::forward::dropped;
use crate::proxy::udp::state::Flows;
use crate::stats::records::DropReason;
use crate::wire::dns::{Query, read_query, write_truncated};

impl Flows {
    /// Looks at each datagram of a client. `payload` holds the bytes of the buffer, in which every
    /// datagram but the last has `bytes` bytes.
    pub fn take_in_queries(
        &mut self,
        core: &mut Core,
        (socket, guard): (SocketId, DnsGuard),
        sender: &Sender,
        batch: Batch,
        (bytes, payload): (u32, &[u8]),
    ) {
        let first = u32::from(batch.part.first);
        let end = first + batch.count;
        for number in first..end {
            let whole = datagram(payload, bytes, number);
            let message = &whole[usize::from(batch.part.strip).min(whole.len())..];
            let small = |number: u32| u16::try_from(number).expect("a train has 64 datagrams");
            let more = batch.part.more || number + 1 < end;
            let part = Part { first: small(number), count: 1, more, ..batch.part };
            let one = Batch { bytes: size(message.len()), count: 1, part, ..batch };
            let query = match read_query(message) {
                Ok(Query { is_any: true, .. }) if guard.drops_any => Err(DropReason::DnsAny),
                read => read.map_err(|_| DropReason::DnsInvalid),
            };
            match query.map(|query| (self.admit(core, socket, sender, (1, one.bytes)), query)) {
                Ok((Ok(slot), _)) => self.forward(core, slot, one),
                Ok((Err(DropReason::SourceLimit), query)) if self.slips(guard) => {
                    let said = (message, query);
                    send_to_tcp(core, socket, sender, (one, size(whole.len())), said);
                }
                Ok((Err(reason), _)) | Err(reason) => dropped(core, socket, one, reason),
            }
        }
    }

    /// Whether it is the turn of an answer among the datagrams over a limit.
    fn slips(&mut self, guard: DnsGuard) -> bool {
        if guard.slip == 0 {
            return false;
        }
        self.slipped = (self.slipped + 1) % guard.slip;
        self.slipped == 0
    }
}

/// Answers a query without its records, with the flag by which an honest client comes back over
/// TCP. Who only used the client's address can't.
fn send_to_tcp(
    core: &mut Core,
    socket: SocketId,
    sender: &Sender,
    (one, bytes): (Batch, u32),
    (message, query): (&[u8], Query),
) {
    let start = size(core.output.len());
    write_truncated(message, query, &mut core.output);
    let len = size(core.output.len()) - start;
    if let Some((_, listener)) = listener_of(&core.tables, socket) {
        let counters = core.counters.listener(listener.id);
        counters.dropped[DropReason::DnsTruncated as usize].add(1);
        counters.to_clients.add(1);
        counters.bytes_down.add(u64::from(len));
    }
    let small = |bytes: u32| u16::try_from(bytes).expect("a datagram has 64 KiB at the most");
    let part = Part { strip: small(bytes), head: (start, small(len)), ..one.part };
    let Sender { peer, local, .. } = *sender;
    core.push(Token::socket(socket), Op::Answer { buffer: one.buffer, part, peer, local });
}

/// A datagram of a buffer, in which every datagram but the last has `bytes` bytes.
pub fn datagram(payload: &[u8], bytes: u32, number: u32) -> &[u8] {
    let start = ((number * bytes) as usize).min(payload.len());
    &payload[start..(start + bytes as usize).min(payload.len())]
}
