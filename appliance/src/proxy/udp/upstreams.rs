//! Opens the upstream sockets towards endpoints, and the pairs on shared sockets.

use config_sync::table::routing::EndpointId;

use crate::contract::{Kind, Op, Origin, Token, Why};
use crate::proxy::core::Core;
use crate::proxy::udp::choose::{Choice, NO_SOCKET, NO_SOURCE, Refusal};
use crate::proxy::udp::ports::From;
use crate::proxy::udp::shared_sockets::Pair;
use crate::proxy::udp::state::{Flows, Role, Upstream};
use crate::proxy::udp::sweep::MOST_CLOSES;
use crate::stats::detail::Detail;
use crate::stats::records::{CloseReason, DropReason};

/// Microseconds. A shortage counts for this long after it was last seen.
pub const SHORTAGE: u64 = 2_000_000;

impl Flows {
    /// Returns a socket towards the endpoint, or a pair: a rested one, or a new one.
    pub fn upstream_for(&mut self, core: &mut Core, choice: &Choice) -> Result<u32, Refusal> {
        let role = choice.role;
        for _ in 0..MOST_CLOSES {
            let first = self.endpoints[choice.endpoint.index()].first;
            if !self.has_rested(first) {
                break;
            }
            if self.is_wanted(first, choice) {
                self.unqueue_first(core, choice.endpoint.index());
                return Ok(first);
            }
            self.close_first(core, choice.endpoint.index());
        }
        match role {
            Role::Pair => self.new_pair(core, choice),
            Role::Socket | Role::Own | Role::Shared => self.new_socket(core, choice),
        }
    }

    pub fn new_socket(&mut self, core: &mut Core, choice: &Choice) -> Result<u32, Refusal> {
        let from = From { origin: choice.source, ipv4: choice.address.is_ipv4() };
        if !self.ports.may_ask(from, core.now) {
            return Err(NO_SOCKET);
        }
        let upstream = Upstream::new(choice.endpoint, choice.role, from);
        let Some((slot, generation)) = self.upstreams.insert(upstream) else {
            self.shortage_until = core.now + SHORTAGE;
            return Err(NO_SOCKET);
        };
        self.newcomers.has_opened();
        self.count_upstreams(core);
        let token = Token { kind: Kind::Upstream, slot, generation };
        let Choice { address, source, interface, .. } = *choice;
        core.push(token, Op::Open { address, source, interface });
        core.push(token, Op::Receive);
        Ok(slot)
    }

    pub fn new_pair(&mut self, core: &mut Core, choice: &Choice) -> Result<u32, Refusal> {
        let (id, address) = (choice.endpoint, choice.address);
        let ipv4 = address.is_ipv4();
        let is_open = self.pairs.socket(ipv4).is_some();
        if self.upstreams.room() < 1 + u32::from(!is_open) {
            self.shortage_until = core.now + SHORTAGE;
            return Err(NO_SOCKET);
        }
        let from = From { origin: Origin::Any, ipv4 };
        if !is_open && !self.ports.may_ask(from, core.now) {
            return Err(NO_SOCKET);
        }
        let Some(local) = self.pairs.take(id, address) else {
            self.pairs_shortage_until = core.now + SHORTAGE;
            return Err(NO_SOURCE);
        };
        if !is_open {
            let socket = Upstream::new(EndpointId(u32::MAX), Role::Shared, from);
            let (slot, generation) = self.upstreams.insert(socket).expect("there is room for two");
            self.pairs.opened(ipv4, slot);
            let token = Token { kind: Kind::Upstream, slot, generation };
            core.push(token, Op::OpenShared { ipv4 });
            core.push(token, Op::Receive);
        }
        let pair = Upstream::new(id, Role::Pair, from);
        let (slot, _) = self.upstreams.insert(pair).expect("there is room");
        self.pairs.insert(slot, Pair { endpoint: address, local });
        self.count_upstreams(core);
        Ok(slot)
    }

    pub fn is_scarce(&self, role: Role, now: u64) -> bool {
        self.upstreams.len() > self.ample
            || now < self.shortage_until.max(self.ports_short_until)
            || (role == Role::Pair && now < self.pairs_shortage_until)
    }

    pub fn close_socket(&mut self, core: &mut Core, slot: u32) {
        if let Some(socket) = self.upstreams.at_mut(slot) {
            socket.closing = true;
        }
        core.push(self.upstream_token(slot), Op::CloseUpstream);
    }

    pub fn upstream_gone(&mut self, core: &mut Core, slot: u32) {
        if let Some(Upstream { role: Role::Pair, endpoint, .. }) = self.upstreams.remove(slot)
            && let Some(unused) = self.pairs.remove(slot, endpoint)
        {
            self.close_socket(core, unused);
        }
        self.count_upstreams(core);
    }

    pub fn count_upstreams(&self, core: &Core) {
        let pairs = self.pairs.len() as u64;
        core.counters.pairs.set(pairs);
        core.counters.upstreams.set(u64::from(self.upstreams.len()) - pairs);
    }

    pub fn upstream_token(&self, slot: u32) -> Token {
        Token { kind: Kind::Upstream, slot, generation: self.upstreams.generation(slot) }
    }

    /// Notes a shortage of this machine, so that rested sockets are closed soon.
    pub fn open_failed(&mut self, core: &Core, from: From, why: Why) {
        match why {
            Why::NoPorts => {
                self.ports_short_until = core.now + SHORTAGE;
                if self.ports.ran_out(from, core.now) {
                    core.counters.port_shortages.add(1);
                }
            }
            Why::NoFiles => {
                self.shortage_until = core.now + SHORTAGE;
                core.counters.file_shortages.add(1);
            }
            Why::NoMemory => self.shortage_until = core.now + SHORTAGE,
            _ => {}
        }
    }

    /// An upstream slot got no socket, and the datagrams that it was given in this turn are lost.
    pub fn unopened(&mut self, core: &mut Core, slot: u32, why: Why) {
        let Some(upstream) = self.upstreams.at_mut(slot) else { return };
        let (flow, sent) = (upstream.flow, u64::from(upstream.sent));
        upstream.closing = true;
        self.upstream_gone(core, slot);
        if let Some(unserved) = self.flows.at_mut(flow) {
            let counters = core.counters.listener(unserved.listener);
            counters.to_endpoints.sub(sent);
            counters.dropped[DropReason::NoSocket as usize].add(sent);
            if unserved.opened == core.now {
                let bytes = std::mem::take(&mut unserved.bytes_up);
                counters.bytes_up.sub(bytes);
                core.counters.endpoint(unserved.endpoint).bytes_up.sub(bytes);
            }
            self.end(core, flow, CloseReason::LocalLimit.because(Detail::why(why)));
        }
    }

    /// Learns from other workers until when source ports are short, and returns the time that this
    /// worker knows.
    pub fn share_shortage(&mut self, until: u64) -> u64 {
        self.ports_short_until = self.ports_short_until.max(until);
        self.ports_short_until
    }
}
