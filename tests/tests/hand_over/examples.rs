//! Messages with all that they may have.

use std::net::SocketAddr;

use ringway::wire::hand_over::{
    Action, Figures, Flow, Message, Name, Override, Secret, Session, Tickets, What, hexadecimal,
};

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

pub fn session() -> Session {
    Session {
        address: "[::]:443".into(),
        interface: 3,
        tls: true,
        listener: "web".into(),
        route: Some("web".into()),
        backend: "blue".into(),
        endpoint: "unix:/run/app.sock".into(),
        close_after: Some(10_000),
        client: at(1),
        local: at(2),
        peer: Some(at(3)),
        destination: Some(at(4)),
        unique_id: Some([u64::MAX, 1]),
        server_name: Some("a.example".into()),
        timeouts: [1, 2, 3, 4, u32::MAX],
        opened: 5,
        last_byte: 6,
        connect: Some(7),
        bytes: [u64::MAX >> 2, 8],
        ended: [true, false],
        client_first: Some(true),
        ending: true,
        paced: [false, true],
    }
}

fn bare_session() -> Session {
    Session {
        tls: false,
        route: None,
        close_after: None,
        peer: None,
        destination: None,
        unique_id: None,
        server_name: None,
        connect: None,
        ended: [false; 2],
        client_first: None,
        ..session()
    }
}

pub fn flow() -> Flow {
    Flow {
        address: "[::]:53".into(),
        interface: 3,
        listener: "dns".into(),
        route: "dns".into(),
        backend: "blue".into(),
        endpoint: "192.0.2.9:+1".into(),
        close_after: Some(10_000),
        worker: 63,
        peer: "[2001:db8::1]:65535".parse().expect("an address"),
        local: Some(at(0).ip()),
        said: Some([at(1), at(2)]),
        header: hexadecimal(&[0x0d, 0xff, 0]),
        unique_id: Some([u64::MAX, 1]),
        timeout: 30_000,
        responses: 1,
        datagrams: [2, 3],
        bytes: [4, 5],
        opened: 6,
        last: 7,
        refused: true,
        own: true,
        through: 8,
    }
}

fn bare_flow() -> Flow {
    Flow { close_after: None, local: None, said: None, unique_id: None, own: false, ..flow() }
}

fn names() -> Vec<Name> {
    let of = |what, address: &str| Name { what, address: address.into(), interface: 2, worker: 7 };
    vec![
        of(What::Tcp, "[::]:443"),
        of(What::Udp, "192.0.2.1:53"),
        of(What::Admin, "unix:/run/ringway/admin.sock"),
        of(What::Door, ""),
    ]
}

fn overrides() -> Vec<Override> {
    let of_endpoint = |action, left| Override {
        listener: None,
        backend: Some("blue".into()),
        endpoint: Some("192.0.2.9:80".into()),
        action,
        left,
    };
    let of_listener = Override {
        listener: Some("web".into()),
        backend: None,
        endpoint: None,
        action: Action::Drain,
        left: None,
    };
    vec![
        of_endpoint(Action::Weight(256), Some(60_000)),
        of_endpoint(Action::Disable, None),
        of_listener,
    ]
}

fn tickets() -> Vec<Tickets> {
    let of = |listener: &str, previous| Tickets {
        listener: listener.into(),
        admission: hexadecimal(&[7; 32]),
        current: Secret::new(&[1; 48]),
        previous,
        next: 5,
    };
    vec![of("web", None), of("mail", Some(Secret::new(&[2; 48])))]
}

/// A short message of each kind.
pub fn examples() -> Vec<Message> {
    vec![
        Message::Hello { program: "0.1.0".into(), workers: 4 },
        Message::Offer {
            program: "0.1.0".into(),
            generation: 3,
            workers: 2,
            seed: u64::MAX,
            sockets: 5,
            overrides: 3,
            tickets: 2,
        },
        Message::Sockets(names()),
        Message::Overrides(overrides()),
        Message::Tickets(tickets()),
        Message::Refused { why: "\"no\"".into() },
        Message::Taken(vec![0, 3]),
        Message::Ready,
        Message::Yours,
        Message::Mine,
        Message::Sessions(vec![session(), bare_session()]),
        Message::Flows(vec![flow(), bare_flow()]),
        Message::Figures(vec![Figures {
            flow: 1,
            datagrams: [2, 3],
            bytes: [4, 5],
            last: 6,
            refused: true,
            promoted: true,
        }]),
        Message::Adopted(vec![true, false]),
        Message::Draining { processes: 1, sessions: 2, flows: 3 },
    ]
}
