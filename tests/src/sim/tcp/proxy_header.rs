//! Headers: what the gateway takes of a client's, and gives endpoints of its own.

use ringway::contract::{Event, Side, Stop, Token};
use ringway::wire::client_hello::MAX_HELLO;

use crate::sim::bytes::{Bytes, Range};
use crate::sim::kernel::{Kernel, Turn};
use crate::sim::proxied::OWN;
use crate::sim::tcp::socket::Got;

impl Kernel {
    pub(crate) fn take(&mut self, token: Token, from: Side, at_most: u32, turn: &mut Turn) {
        assert_eq!(from, Side::Client, "only clients have headers");
        let id = self.live(token).client;
        let conn = &mut self.conns[id.0];
        if std::mem::take(&mut conn.peeked) {
            conn.lowat = 1;
        }
        conn.unlooked = false;
        let start = turn.bytes.len() as u32;
        let (len, stop) = match self.read(id, at_most.into()) {
            Got::Data(bytes) => {
                let conn = &mut self.conns[id.0];
                for range in bytes.ranges() {
                    turn.bytes.extend(
                        (range.at..range.at + range.len).map(|at| conn.byte(at, range.stream)),
                    );
                }
                conn.proxied.away += bytes.len();
                let told = at_most as usize > MAX_HELLO;
                let header = conn.proxied.away <= conn.proxied.header;
                assert!(header || told, "more was taken than a header");
                let whole = bytes.len() == u64::from(at_most);
                (bytes.len() as u32, if whole { Stop::Budget } else { Stop::Drained })
            }
            Got::Nothing => (0, Stop::Drained),
            Got::End => (0, Stop::Eof),
            Got::Failed(why) => (0, Stop::Failed { side: from, why }),
        };
        self.event(token, Event::Taken { from, start, len, stop }, turn);
    }

    pub(crate) fn give(
        &mut self,
        token: Token,
        to: Side,
        (start, len): (u32, u32),
        turn: &mut Turn,
    ) {
        let id = self.live(token).conn(to).expect("Give to a side that is not there");
        let given = self.output[start as usize..][..len as usize].to_vec();
        let own = &mut self.conns[id.0].proxied.own;
        let at = own.len() as u64;
        own.extend_from_slice(&given);
        let mut bytes = Bytes::default();
        bytes.push(Range { stream: OWN, at, len: len.into() });
        let written = self.write(id, &mut bytes);
        let left = bytes.len() as usize;
        let stop = match written {
            Err(why) => Stop::Failed { side: to, why },
            Ok(_) if left > 0 => Stop::Blocked,
            Ok(_) => Stop::Drained,
        };
        let sent = given.len() - left;
        self.conns[id.0].proxied.own.truncate(at as usize + sent);
        let start = turn.bytes.len() as u32;
        turn.bytes.extend_from_slice(&given[sent..]);
        self.live(token).introducing = stop == Stop::Blocked;
        self.event(
            token,
            Event::Given { to, sent: sent as u32, start, len: left as u32, stop },
            turn,
        );
    }
}
