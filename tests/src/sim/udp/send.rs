//! Sending: up to endpoints, down to clients, and that no reply reaches another client.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{BufferId, Event, Kind, Part, Token, Why};
use ringway::wire::proxy_header::read::{Header, read, read_datagram};

use crate::sim::coverage::{Fault, State};
use crate::sim::kernel::process::parts;
use crate::sim::kernel::{Kernel, Pending, Turn};
use crate::sim::udp::datagram::{Datagram, Exchange, HeldBuffer, Pair, Path};
use crate::sim::udp::upstream::{Upstream, Use};

/// Bytes of the largest datagram that goes to an endpoint in one packet.
const WHOLE: u32 = 500;

impl Kernel {
    pub(crate) fn send_up(&mut self, token: Token, buffer: BufferId, part: Part, turn: &mut Turn) {
        let datagram = self.take_from_client(token, buffer, part, turn);
        if self.open_failed.contains(&token) {
            return;
        }
        let upstream = self.upstream(token);
        let exchange = datagram.exchange;
        assert!(!upstream.away, "SendUp on a socket that is another process's");
        upstream.serves = Some(exchange);
        let endpoint = upstream.address.expect("SendUp on a shared socket");
        let (port, interface) = (upstream.port, upstream.interface);
        let is_new = !std::mem::replace(&mut upstream.used, true);
        let path = Path { port, endpoint, local: None };
        if self.refused.remove(&token).is_some_and(|turn| turn < self.turn) {
            self.fed.push((endpoint, exchange));
        }
        self.went_through_sockets(token.slot);
        let used = Use { slot: token.slot, exchange, ended: None };
        if let Some(before) = self.used.insert((path.port, endpoint), used) {
            let gives_way = before.gives_way(exchange, self.now, self.rest_of(endpoint));
            assert!(gives_way, "{path:?} carries {exchange:?} too soon after {before:?}");
            // A new socket's first datagram may be late: its client may have sent too many before.
            if before.exchange != exchange && !is_new {
                self.given.push((endpoint, interface));
            }
        }
        self.send_on(token, path, datagram);
    }

    pub(crate) fn send_via(
        &mut self,
        token: Token,
        (buffer, part): (BufferId, Part),
        via: u32,
        pair @ (endpoint, local): Pair,
        turn: &mut Turn,
    ) {
        let datagram = self.take_from_client(token, buffer, part, turn);
        assert!(!self.upstreams.contains_key(&token.slot), "a flow's slot has a socket");
        if self.open_failed.iter().any(|failed| failed.slot == via) {
            return;
        }
        let (now, rest) = (self.now, self.rest_of(endpoint));
        let shared = self.upstreams.get_mut(&via).expect("SendVia no socket");
        assert!(shared.address.is_none() && !shared.closing, "SendVia a socket that is not shared");
        let exchange = datagram.exchange;
        if let Some(before) = shared.pairs.get(&pair) {
            let gives_way = before.gives_way(exchange, now, rest);
            assert!(gives_way, "{pair:?} carries {exchange:?} too soon after {before:?}");
        }
        shared.pairs.insert(pair, Use { slot: token.slot, exchange, ended: None });
        let path = Path { port: shared.port, endpoint, local: Some(local) };
        self.send_on(token, path, datagram);
    }

    fn rest_of(&self, endpoint: SocketAddr) -> u64 {
        self.rests.get(&endpoint.ip()).copied().unwrap_or(0)
    }

    /// What is sent to an endpoint of a buffer, which is given back with its last part.
    fn take_from_client(
        &mut self,
        token: Token,
        buffer: BufferId,
        part: Part,
        turn: &mut Turn,
    ) -> Datagram {
        let held = self.ring().buffers.get_mut(&buffer.0).expect("a buffer is given back twice");
        let whole = held.datagram;
        assert_eq!(held.token.kind, Kind::Socket, "an endpoint is sent what an endpoint sent");
        assert!(!whole.truncated, "a truncated datagram is forwarded");
        let first = u32::from(part.first);
        let end = if part.count == 0 { whole.count } else { first + u32::from(part.count) };
        let in_order = held.answered <= first && first < end && end <= whole.count;
        assert!(in_order && part.more == (end < whole.count), "{part:?} of {whole:?}");
        held.answered = end;
        if !part.more {
            self.take_buffer(buffer);
        }
        let (datagram, sizes) = match whole.train {
            Some(train) => self.trains[train].part(first as usize..end as usize, part.strip, whole),
            None => {
                assert_eq!((first, end, part.strip), (0, whole.count, 0), "it has no header");
                (whole, vec![whole.bytes / whole.count; whole.count as usize])
            }
        };
        self.introduced(part, datagram.exchange.source());
        let grown = |size: &&u32| **size <= WHOLE && WHOLE < **size + u32::from(part.head.1);
        let count = sizes.iter().filter(grown).count() as u32;
        if count > 0 {
            self.fragmented += u64::from(count);
            self.event(token, Event::Fragmented { count }, turn);
        }
        datagram
    }

    /// A header in front of a datagram names the datagram's client.
    fn introduced(&self, part: Part, client: SocketAddr) {
        let (start, len) = (part.head.0 as usize, usize::from(part.head.1));
        let head = &self.output[start..][..len];
        if head.is_empty() {
            return;
        }
        // The model gives backends to listeners of every protocol; the compiler allows version 2.
        let read = match head.starts_with(b"PROXY ") {
            true => match read(head) {
                Header::Known { len, addresses } => Ok((len, addresses)),
                other => panic!("an endpoint was told {other:?}"),
            },
            false => read_datagram(head),
        };
        let (whole, addresses) = read.expect("a header");
        let source = addresses.map(|addresses| addresses.source);
        assert_eq!((whole, source), (len, Some(client)), "what an endpoint was told");
    }

    fn send_on(&mut self, token: Token, path: Path, datagram: Datagram) {
        let key = (self.process, datagram.exchange);
        // A flow that was given another endpoint has left its socket or pair.
        if let Some(before) = self.ways.insert(key, path).filter(|old| *old != path)
            && let Some(used) = self.used.get_mut(&(before.port, before.endpoint))
            && used.exchange == datagram.exchange
        {
            used.ended.get_or_insert(self.now);
        }
        self.begun.entry(key).or_insert(self.now);
        let before = self.homes.insert(key, path.endpoint);
        if let Some(before) = before.filter(|before| *before != path.endpoint) {
            self.moves.push((datagram.exchange, before, path.endpoint));
        }
        let carried = Some(datagram.exchange);
        let process = self.process;
        let here = |of: &&mut Upstream| parts(of.token.slot).0 == process;
        for left in self.upstreams.values_mut().filter(here) {
            if left.serves == carried && left.token != token {
                left.serves = None;
                self.refused.remove(&left.token);
            }
        }
        for shared in self.upstreams.values_mut().filter(here) {
            for ((endpoint, local), used) in &mut shared.pairs {
                if used.exchange == datagram.exchange
                    && (*endpoint, Some(*local)) != (path.endpoint, path.local)
                {
                    used.ended.get_or_insert(self.now);
                }
            }
        }
        if self.rng.per_mille(self.faults.send_fails) {
            let why = self.rng.pick(&[
                if path.local.is_none() { Why::Refused } else { Why::BadSource },
                Why::Blocked,
                Why::TooBig,
                Why::NoMemory,
                Why::Other(1),
            ]);
            let refused = why == Why::Refused;
            let fault = if refused { Fault::SendRefused } else { Fault::SendFailed };
            self.coverage.hit(State::Live, fault);
            self.soon(Pending::SendFailed(token, why, datagram.count));
            return;
        }
        self.sent_up.push((path, datagram));
    }

    pub(crate) fn send_down(
        &mut self,
        token: Token,
        buffer: BufferId,
        from: u32,
        peer: SocketAddr,
        local: Option<IpAddr>,
    ) {
        let HeldBuffer { token: upstream, datagram, came, .. } = self.take_buffer(buffer);
        let Exchange { socket, client, local: spoken_to, .. } = datagram.exchange;
        assert_eq!(upstream.kind, Kind::Upstream, "SendDown of what a client sent");
        let slot = match came {
            None => upstream.slot,
            Some(pair) => {
                let shared = self.upstreams.get(&upstream.slot);
                let used = shared.and_then(|shared| shared.pairs.get(&pair));
                used.expect("a stranger's datagram is forwarded").slot
            }
        };
        assert_eq!(slot, from, "SendDown names another upstream slot");
        self.went_through_sockets(slot);
        assert!(!datagram.truncated, "a truncated datagram is forwarded");
        assert_eq!(peer, client, "a reply reaches another client (quarantine)");
        let descriptor = self.descriptor(socket);
        assert_eq!(token, Token::socket(descriptor), "a reply leaves by another listening socket");
        let listening = self.listening_socket(token, Transport::Udp);
        assert!(!listening.ending, "SendDown after Unlisten");
        let wildcard = self.bound[&socket].address.ip().is_unspecified();
        if wildcard || local.is_some() {
            assert_eq!(local, Some(spoken_to), "a reply leaves from another address");
        }
        if self.rng.per_mille(self.faults.send_fails) {
            let why = self.rng.pick(&[Why::Blocked, Why::NoMemory, Why::Other(1)]);
            self.coverage.hit(State::Live, Fault::SendFailed);
            self.soon(Pending::SendFailed(token, why, datagram.count));
            return;
        }
        self.sent_down.push(datagram);
    }

    pub(crate) fn send_failed(&mut self, token: Token, why: Why, count: u32, turn: &mut Turn) {
        let there = match token.kind {
            Kind::Socket => self.listening.contains_key(&SocketId(token.slot)),
            // The slot of a flow on a shared socket has nothing in the ring.
            _ => self.upstreams.get(&token.slot).is_none_or(|u| u.token == token),
        };
        if there {
            self.event(token, Event::SendFailed { why, count }, turn);
        }
        if there && why == Why::Refused {
            self.is_refused(token);
        }
    }
}
