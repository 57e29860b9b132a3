//! What clients and endpoints do, and when.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::routing::{Endpoint, Protocol, SocketId, Transport};

use super::peer::Peer;
use super::{Action, World};
use crate::hello::offering;
use crate::sim::endpoints::{endpoint_at, places};
use crate::sim::protocols::PROTOCOL;
use crate::sim::proxied::{Proxied, some_header};
use crate::sim::tcp::conn::EndpointMode;
use crate::sim::udp::datagram::{Datagram, Exchange, Path};
use crate::sim::world::process::Next;
use crate::sim::world::upgrade::state::Upgrade;

/// Replies come so much earlier than a socket that rests from now on serves another flow,
/// microseconds: more than the kernel's own delays.
const EARLIER: u64 = 50_000;

/// What clients offer that do not want the route of `PROTOCOL`, and what those that do.
const OFFERS: [&[&str]; 3] = [&["x"], &[PROTOCOL], &["x", PROTOCOL, "y"]];

impl World {
    pub(super) fn act(&mut self) {
        // A jump makes many actions due: some of them in this turn, the rest in the next.
        for _ in 0..100 {
            let Some(entry) = self.actions.first_entry() else { break };
            if entry.key().0 > self.kernel.now {
                break;
            }
            let action = entry.remove();
            self.carry_on(action);
        }
    }

    fn carry_on(&mut self, action: Action) {
        match action {
            Action::Arrive => {
                // More than this many at once teach nothing new.
                let crowded = self.actions.len() > 100;
                for _ in 0..if crowded { 0 } else { self.rng.scale(1, 4) } {
                    if self.rng.per_mille(self.habits.udp) {
                        self.new_exchange();
                    } else {
                        self.new_client();
                    }
                }
                let delay = self.rng.between(1, self.habits.arrivals);
                self.after(delay, Action::Arrive);
            }
            Action::Peer(index) => {
                let next = self.peers[index].step(&mut self.kernel, &mut self.rng);
                if let Some(at) = next {
                    self.after(at - self.kernel.now, Action::Peer(index));
                }
            }
            Action::Send { left, mut datagram, pause } => {
                self.kernel.client_sends(datagram);
                datagram.number += 1;
                // Most of a proxy's trains look like the one before.
                if datagram.train.is_some() && self.rng.per_mille(200) {
                    let next = self.kernel.proxied(datagram.exchange);
                    datagram = Datagram { number: datagram.number, ..next };
                }
                if left > 1 {
                    let delay = self.rng.between(1, pause);
                    self.after(delay, Action::Send { left: left - 1, datagram, pause });
                }
            }
            Action::Reply(path, datagram) => self.kernel.endpoint_sends(path, datagram),
            Action::Unreachable(path) => self.kernel.endpoint_refuses(path),
            Action::SwapTable => {
                // Bursts coalesce while the worker has no time.
                if self.process.next_table.is_none() {
                    self.change_model();
                    let overloaded = self.rng.per_mille(50);
                    self.process.counters.overloaded.set(u64::from(overloaded));
                    self.process.next_table = Some(Next::Model);
                }
                let delay = self.rng.between(1, self.habits.table_swaps);
                self.after(delay, Action::SwapTable);
            }
            Action::Ask => {
                self.ask();
                let delay = self.asks.scale(100, 1_000_000);
                self.after(delay, Action::Ask);
            }
            Action::Upgrade => self.next_upgrade(),
            Action::ChangeEndpoint => {
                let all: Vec<_> = self.process.model.endpoints().collect();
                let (_, endpoint) = self.rng.pick(&all);
                self.change_endpoint(&endpoint);
                let delay = self.rng.scale(100, 1_000_000);
                self.after(delay, Action::ChangeEndpoint);
            }
        }
    }

    fn change_model(&mut self) {
        let model = &mut self.process.model;
        let before: Vec<bool> = model.sockets.iter().map(|socket| socket.present).collect();
        model.change(&mut self.rng);
        // Nobody changes the sockets while two processes have them.
        if self.upgrades.iter().any(Upgrade::is_undecided) {
            for (socket, present) in model.sockets.iter_mut().zip(before) {
                socket.present = present;
            }
        }
    }

    pub(super) fn join(&mut self, peer: Peer) {
        self.peers.push(peer);
        let delay = self.rng.scale(1, 2_000);
        self.after(delay, Action::Peer(self.peers.len() - 1));
    }

    pub(super) fn change_endpoint(&mut self, endpoint: &Endpoint) {
        let mode = match self.rng.below(10) {
            0..6 => EndpointMode::Accepts,
            6 => EndpointMode::AcceptsAfter(self.rng.scale(1_000, 3_000_000)),
            7 => EndpointMode::Refuses,
            8 => EndpointMode::Silent,
            _ => EndpointMode::Unreachable,
        };
        for place in places(endpoint, &self.process.model.ports()) {
            self.kernel.set_endpoint(place, mode);
        }
    }

    /// A socket of this transport, listening or leaving or gone.
    fn some_socket(&mut self, transport: Transport) -> (SocketId, Protocol, IpAddr) {
        let of_kind = self.process.model.sockets.iter().filter(|s| s.transport() == transport);
        let all: Vec<_> = of_kind.map(|s| (s.id, s.protocol, s.address.ip())).collect();
        self.rng.pick(&all)
    }

    fn next_client(&mut self) -> SocketAddr {
        self.came += 1;
        let [_, _, high, low] = self.came.to_be_bytes();
        SocketAddr::from(([198, 18, high, low], 10_000 + (self.came % 50_000) as u16))
    }

    fn new_client(&mut self) {
        let (socket, protocol, ip) = self.some_socket(Transport::Tcp);
        let client = self.next_client();
        let address = if ip == UNIX_CLIENT.ip() { UNIX_CLIENT } else { client };
        let mut prefix = Vec::new();
        let mut proxied = Proxied::default();
        if self.process.model.believes(socket, address.ip()) {
            // Clients of a proxy in front have other addresses than all that come by themselves.
            let IpAddr::V4(ip) = client.ip() else { unreachable!("clients have IPv4 addresses") };
            let [_, _, high, low] = ip.octets();
            let source = SocketAddr::from(([100, 64, high, low], client.port()));
            (prefix, proxied) = some_header(&mut self.rng, source);
        }
        let silent = protocol == Protocol::Tls && self.rng.per_mille(100);
        let mut offers = false;
        if protocol == Protocol::Tls && !silent {
            let (hello, names_it) = self.some_hello();
            prefix.extend(hello);
            offers = names_it;
        }
        let window = self.rng.scale(4_096, 4 << 20);
        let len = prefix.len() as u64;
        let conn = self.kernel.peer_connect(socket, address, prefix, window);
        self.kernel.conn_mut(conn).proxied = proxied;
        self.clients.connects(address, conn, offers);
        let mut peer = Peer::random(&mut self.rng, conn, self.kernel.now, len);
        if silent {
            peer.says_nothing(len);
        }
        if len == 0 && self.rng.per_mille(150) {
            peer.listens();
        }
        if self.quiet {
            peer.quiet();
        }
        self.join(peer);
    }

    /// A hello, and whether it offers `PROTOCOL`.
    fn some_hello(&mut self) -> (Vec<u8>, bool) {
        let names = [Some("a.test"), Some("x.b.test"), Some("y.x.b.test"), Some("none.test"), None];
        let name = self.rng.pick(&names);
        let padding = self.rng.scale(1, 2_000) as u16;
        let fragment = self.rng.scale(16, 4_096) as usize;
        let fault = self.rng.below(20);
        // What follows a hello that is cut off is read as a part of it.
        let offers = fault > 1 && self.rng.per_mille(400);
        let offered = if offers { self.rng.pick(&OFFERS[1..]) } else { OFFERS[0] };
        let mut hello = offering(offered, name, padding, fragment);
        match fault {
            0 => hello[0] = b'G',
            1 => hello.truncate(self.rng.below(hello.len() as u64) as usize),
            _ => {}
        }
        (hello, offers)
    }

    fn new_exchange(&mut self) {
        let (socket, _, ip) = self.some_socket(Transport::Udp);
        let client = self.next_client();
        let local: IpAddr =
            if ip.is_unspecified() { [192, 0, 2, self.rng.between(1, 2) as u8].into() } else { ip };
        let exchange = Exchange { socket, client, says: None, local };
        self.exchanges += 1;
        let count = if self.rng.per_mille(200) { self.rng.between(2, 64) as u32 } else { 1 };
        let bytes = if self.rng.per_mille(20) { 0 } else { self.rng.scale(1, 1_200) as u32 };
        let count = if bytes == 0 { 1 } else { count };
        let (bytes, truncated) = (bytes * count, false);
        let mut datagram = Datagram { exchange, number: 0, bytes, count, truncated, train: None };
        if self.process.model.believes(socket, client.ip()) {
            datagram = self.kernel.proxied(exchange);
        }
        // Only flows with many datagrams are promoted.
        let most = if self.habits.slow { 200 } else { self.rng.pick(&[30, 30, 30, 200]) };
        let left = self.rng.scale(1, most) as u32;
        let least = if self.habits.slow { 200_000 } else { 10 };
        let pause = self.rng.scale(least, 500_000);
        self.carry_on(Action::Send { left, datagram, pause });
    }

    pub(super) fn endpoint_hears(&mut self, path: Path, datagram: Datagram) {
        let address = path.endpoint;
        let id = endpoint_at(address);
        self.check_place(id, address, self.process.model.port(datagram.exchange.socket));
        let present = self.process.present.get(&id).copied().unwrap_or(0);
        let lame_duck = u64::from(self.process.model.lame_duck) * 1_000;
        // Leaving sockets keep their flows where they are; one may have come back in this turn.
        let socket = datagram.exchange.socket;
        let leaving =
            ![&self.process.in_force, &self.process.before].iter().all(|ids| ids.contains(&socket));
        assert!(
            leaving || self.kernel.now <= present.saturating_add(lame_duck + 1_000),
            "a flow feeds {address}, which left the table {} us ago",
            self.kernel.now - present
        );
        match self.rng.below(20) {
            0..4 => {}
            4 => {
                let delay = self.rng.scale(10, 1_000);
                self.after(delay, Action::Unreachable(path));
            }
            5 if path.local.is_some() => self.spoof(path, datagram),
            habit => {
                for _ in 0..if habit == 6 { 3 } else { 1 } {
                    let late = self.rng.per_mille(200);
                    let most = if late { self.lateness(address) } else { 2_000 };
                    let delay = self.rng.scale(10, most);
                    self.after(delay, Action::Reply(path, datagram));
                }
            }
        }
    }

    /// Someone else answers: from another port or address, or to an address that has no flow.
    fn spoof(&mut self, path: Path, datagram: Datagram) {
        let SocketAddr::V4(endpoint) = path.endpoint else { return };
        let [_, _, pool, host] = endpoint.ip().octets();
        let (port, strange) = (endpoint.port(), [10, 200, pool, host]);
        let path = match self.rng.below(3) {
            0 => Path { endpoint: (*endpoint.ip(), port + 1).into(), ..path },
            1 => Path { endpoint: (strange, port).into(), ..path },
            _ => Path { local: Some(strange.into()), ..path },
        };
        let delay = self.rng.scale(10, 150_000);
        self.after(delay, Action::Reply(path, datagram));
    }

    /// How late an endpoint answers at the most, microseconds.
    fn lateness(&self, endpoint: SocketAddr) -> u64 {
        self.kernel.rests[&endpoint.ip()] - EARLIER
    }
}
