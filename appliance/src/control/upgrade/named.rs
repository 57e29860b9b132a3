//! Sessions and flows by names, as they go from process to process, and by this process's ids.

use std::net::SocketAddr;
use std::time::Duration;

use config_sync::compile::tls::ticketer::{NAME, SavedKeys, Secret};
use config_sync::compile::tls::tickets::SavedTickets;
use config_sync::sync::hand_over::{Place, PlaceIds};
use config_sync::sync::overrides::{Action, Override};
use config_sync::table::address::{Address, EndpointAddress, UNIX, UnixPath};
use config_sync::table::moving::{FlowFigures, Moving, MovingFlow};
use config_sync::table::routing::{Bound, Protocol, Timeouts, Transport};

use crate::control::timestamp::WallClock;
use crate::wire::hand_over::{self, Figures, Flow, Session, Tickets, binary, hexadecimal};

/// What an operator has said, as it goes from process to process.
pub fn said(of: Override) -> hand_over::Override {
    let millis = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    hand_over::Override {
        listener: of.listener.as_deref().map(str::to_owned),
        backend: of.backend.as_deref().map(str::to_owned),
        endpoint: of.endpoint,
        action: match of.action {
            Action::Drain => hand_over::Action::Drain,
            Action::Disable => hand_over::Action::Disable,
            Action::Weight(weight) => hand_over::Action::Weight(weight),
        },
        left: of.left.map(millis),
    }
}

/// What an operator has said to the process before.
pub fn heard(of: hand_over::Override) -> Override {
    Override {
        listener: of.listener.map(Into::into),
        backend: of.backend.map(Into::into),
        endpoint: of.endpoint,
        action: match of.action {
            hand_over::Action::Drain => Action::Drain,
            hand_over::Action::Disable => Action::Disable,
            hand_over::Action::Weight(weight) => Action::Weight(weight),
        },
        left: of.left.map(Duration::from_millis),
    }
}

/// The keys of a listener's tickets, as they go from process to process.
pub fn shown(of: &SavedTickets) -> Tickets {
    let secret = |of: &Secret| {
        let mut bytes = [&of.name[..], &of.bytes].concat();
        let secret = hand_over::Secret::new(&bytes);
        hand_over::forget(std::mem::take(&mut bytes));
        secret
    };
    Tickets {
        listener: of.listener.clone(),
        admission: hexadecimal(&of.admission),
        current: secret(&of.keys.current),
        previous: of.keys.previous.as_ref().map(secret),
        next: of.keys.next,
    }
}

/// The keys of a listener's tickets in the process before. `None`: they are none.
pub fn taken(of: &Tickets) -> Option<SavedTickets> {
    let secret = |of: &hand_over::Secret| {
        let bytes = of.bytes()?;
        let (name, rest) = bytes.split_first_chunk::<NAME>()?;
        let secret = Secret { name: *name, bytes: rest.try_into().ok()? };
        hand_over::forget(bytes);
        Some(secret)
    };
    let previous = match &of.previous {
        Some(previous) => Some(secret(previous)?),
        None => None,
    };
    Some(SavedTickets {
        listener: of.listener.clone(),
        admission: binary(&of.admission)?.try_into().ok()?,
        keys: SavedKeys { current: secret(&of.current)?, previous, next: of.next },
    })
}

/// The session by names.
pub fn named(moving: Moving, place: Place, wall: WallClock) -> Session {
    let Timeouts { hello, idle, write_stall, half_close, lifetime } = moving.timeouts;
    Session {
        address: text(place.bound.address),
        interface: place.bound.interface,
        tls: moving.protocol == Protocol::Tls,
        listener: place.listener,
        route: place.route,
        backend: place.backend,
        endpoint: endpoint_text(place.endpoint),
        close_after: place.close_after,
        client: moving.client,
        local: moving.local,
        peer: moving.peer,
        destination: moving.destination,
        unique_id: moving.unique_id.map(halves),
        server_name: moving.server_name.map(Into::into),
        timeouts: [hello, idle, write_stall, half_close, lifetime],
        opened: wall.unix(moving.opened),
        last_byte: wall.unix(moving.last_byte),
        connect: moving.connect,
        bytes: moving.bytes,
        ended: moving.ended,
        client_first: moving.client_first,
        ending: moving.ending,
        paced: moving.paced,
    }
}

/// The flow by names. `worker`: the one of the new process that gets the client's datagrams.
pub fn named_flow(moving: MovingFlow, place: Place, worker: usize, wall: WallClock) -> Flow {
    Flow {
        address: text(place.bound.address),
        interface: place.bound.interface,
        listener: place.listener,
        route: place.route.unwrap_or_default(),
        backend: place.backend,
        endpoint: endpoint_text(place.endpoint),
        close_after: place.close_after,
        worker: u32::try_from(worker).unwrap_or(u32::MAX),
        peer: moving.peer,
        local: moving.local,
        said: moving.said,
        header: hexadecimal(&moving.header),
        unique_id: moving.unique_id.map(halves),
        timeout: moving.timeout,
        responses: moving.responses,
        datagrams: moving.datagrams,
        bytes: moving.bytes,
        opened: wall.unix(moving.opened),
        last: wall.unix(moving.last),
        refused: moving.refused,
        own: moving.own,
        through: moving.interface,
    }
}

/// Where the flow belongs. `None`: one of the addresses is none.
pub fn place_of_flow(flow: &Flow) -> Option<Place> {
    Some(Place {
        bound: Bound {
            transport: Transport::Udp,
            address: address(&flow.address)?,
            interface: flow.interface,
        },
        listener: flow.listener.clone(),
        route: Some(flow.route.clone()),
        backend: flow.backend.clone(),
        endpoint: endpoint(&flow.endpoint)?,
        close_after: flow.close_after,
    })
}

/// The flow by ids. `None`: it is on no route.
pub fn flow_by_ids(flow: Flow, ids: PlaceIds, wall: WallClock) -> Option<MovingFlow> {
    Some(MovingFlow {
        socket: ids.socket,
        listener: ids.listener,
        route: ids.route?,
        backend: ids.backend,
        endpoint: ids.endpoint,
        header: flow.header()?,
        peer: flow.peer,
        local: flow.local,
        said: flow.said,
        unique_id: flow.unique_id.map(whole),
        timeout: flow.timeout,
        responses: flow.responses,
        datagrams: flow.datagrams,
        bytes: flow.bytes,
        opened: wall.micros(flow.opened),
        last: wall.micros(flow.last),
        refused: flow.refused,
        own: flow.own,
        interface: flow.through,
    })
}

/// What a flow has carried, for the other process. `number`: which flow.
pub fn figures_there(number: u32, of: FlowFigures, wall: WallClock) -> Figures {
    let FlowFigures { datagrams, bytes, last, refused, promoted } = of;
    Figures { flow: number, datagrams, bytes, last: wall.unix(last), refused, promoted }
}

/// The same in this process.
pub fn figures_here(of: &Figures, wall: WallClock) -> FlowFigures {
    let Figures { datagrams, bytes, last, refused, promoted, .. } = *of;
    FlowFigures { datagrams, bytes, last: wall.micros(last), refused, promoted }
}

/// An id in two halves.
fn halves(id: u128) -> [u64; 2] {
    let half = |id: u128| u64::try_from(id & u128::from(u64::MAX)).unwrap_or(0);
    [half(id >> 64), half(id)]
}

fn whole([high, low]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// Where the session belongs. `None`: one of the addresses is none.
pub fn place(session: &Session) -> Option<Place> {
    Some(Place {
        bound: Bound {
            transport: Transport::Tcp,
            address: address(&session.address)?,
            interface: session.interface,
        },
        listener: session.listener.clone(),
        route: session.route.clone(),
        backend: session.backend.clone(),
        endpoint: endpoint(&session.endpoint)?,
        close_after: session.close_after,
    })
}

fn endpoint(text: &str) -> Option<EndpointAddress> {
    Some(match text.rsplit_once(":+") {
        Some((ip, shift)) => EndpointAddress::Shifted {
            ip: ip.trim_start_matches('[').trim_end_matches(']').parse().ok()?,
            shift: shift.parse().ok()?,
        },
        None => EndpointAddress::At(address(text)?),
    })
}

fn endpoint_text(endpoint: EndpointAddress) -> String {
    match endpoint {
        EndpointAddress::At(address) => text(address),
        shifted @ EndpointAddress::Shifted { .. } => shifted.to_string(),
    }
}

/// The session by ids.
pub fn by_ids(session: Session, ids: PlaceIds, wall: WallClock) -> Moving {
    let [hello, idle, write_stall, half_close, lifetime] = session.timeouts;
    Moving {
        socket: ids.socket,
        protocol: if session.tls { Protocol::Tls } else { Protocol::Tcp },
        listener: ids.listener,
        route: ids.route,
        backend: Some(ids.backend),
        endpoint: ids.endpoint,
        client: session.client,
        local: session.local,
        peer: session.peer,
        destination: session.destination,
        unique_id: session.unique_id.map(whole),
        server_name: session.server_name.map(Into::into),
        timeouts: Timeouts { hello, idle, write_stall, half_close, lifetime },
        opened: wall.micros(session.opened),
        last_byte: wall.micros(session.last_byte),
        connect: session.connect,
        bytes: session.bytes,
        ended: session.ended,
        client_first: session.client_first,
        ending: session.ending,
        paced: session.paced,
    }
}

/// An address whose scope is a number, which can be read back.
fn text(address: Address) -> String {
    match address {
        Address::Ip(address) => address.to_string(),
        Address::Unix(_) => address.to_string(),
    }
}

fn address(text: &str) -> Option<Address> {
    match text.strip_prefix(UNIX) {
        Some(name) => UnixPath::new(name).ok().map(Address::Unix),
        None => text.parse::<SocketAddr>().ok().map(Address::Ip),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};
    use std::time::{Duration, SystemTime};

    use config_sync::table::routing::{BackendId, EndpointId, ListenerId, RouteId, SocketId};

    use super::*;

    #[test]
    fn keys_are_the_same_after_their_way() {
        let secret = |of| Secret { name: [of; NAME], bytes: [of + 1; 32] };
        let before = SavedTickets {
            listener: "l".into(),
            admission: [9; 32],
            keys: SavedKeys { current: secret(1), previous: Some(secret(3)), next: 5 },
        };
        assert_eq!(taken(&shown(&before)), Some(before.clone()));
        let short = Tickets { current: hand_over::Secret::new(&[1; 47]), ..shown(&before) };
        assert_eq!(taken(&short), None);
    }

    #[test]
    fn figures_are_the_same_after_their_way() {
        let wall = WallClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(9), 5);
        let (datagrams, bytes, last) = ([1, 2], [3, 4], 5_000_000);
        for (refused, promoted) in [(true, false), (false, true)] {
            let figures = FlowFigures { datagrams, bytes, last, refused, promoted };
            let there = figures_there(7, figures, wall);
            assert_eq!((there.flow, there.last), (7, 13_999_995));
            assert_eq!(figures_here(&there, wall), figures);
        }
    }

    #[test]
    fn a_session_is_the_same_after_its_way_through_names() {
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let wall = WallClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(9), 5);
        let endpoints = [
            EndpointAddress::At(Address::Ip("[fe80::1%3]:80".parse().expect("an address"))),
            EndpointAddress::At(Address::Unix(UnixPath::new("@app").expect("a name"))),
            EndpointAddress::Shifted { ip: IpAddr::V6(Ipv6Addr::LOCALHOST), shift: 0 },
            EndpointAddress::Shifted { ip: at(0).ip(), shift: 9 },
        ];
        for endpoint in endpoints {
            let before = Place {
                bound: Bound {
                    transport: Transport::Tcp,
                    address: Address::Ip(at(443)),
                    interface: 2,
                },
                listener: "l".into(),
                route: Some("r".into()),
                backend: "b".into(),
                endpoint,
                close_after: Some(3),
            };
            let moving = Moving {
                socket: SocketId(1),
                protocol: Protocol::Tls,
                listener: ListenerId(2),
                route: Some(RouteId(3)),
                backend: Some(BackendId(4)),
                endpoint: EndpointId(5),
                client: at(1),
                local: at(2),
                peer: Some(at(3)),
                destination: None,
                unique_id: Some(u128::MAX - 5),
                server_name: Some("a.example".into()),
                timeouts: Timeouts {
                    hello: 1,
                    idle: 2,
                    write_stall: 3,
                    half_close: 4,
                    lifetime: 5,
                },
                opened: 6,
                last_byte: 7,
                connect: Some(8),
                bytes: [9, 10],
                ended: [false, true],
                client_first: Some(false),
                ending: true,
                paced: [true, false],
            };
            let session = named(moving.clone(), before.clone(), wall);
            assert_eq!(place(&session), Some(before));
            let ids = PlaceIds {
                socket: SocketId(1),
                listener: ListenerId(2),
                route: Some(RouteId(3)),
                backend: BackendId(4),
                endpoint: EndpointId(5),
            };
            assert_eq!(by_ids(session, ids, wall), moving);
        }
    }
}
