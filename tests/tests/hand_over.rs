//! The bytes of the messages between the processes of an upgrade. Two programs that name one
//! version must mean one thing by all bytes: `hand_over/version-N.golden` has a packet of each kind
//! as version N writes it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ringway::wire::hand_over::{
    Action, Figures, Flow, Message, Name, Override, Secret, Session, Tickets, VERSION, What,
    binary, hexadecimal, read, write,
};

/// Bytes in front of the JSON.
const HEAD: usize = 10;

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn session() -> Session {
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

fn flow() -> Flow {
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
fn examples() -> Vec<Message> {
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

/// The number of kinds of messages. A new kind needs a number here, and an example above.
const KINDS: usize = 15;

fn kind(message: &Message) -> usize {
    match message {
        Message::Hello { .. } => 0,
        Message::Offer { .. } => 1,
        Message::Sockets(_) => 2,
        Message::Overrides(_) => 3,
        Message::Tickets(_) => 4,
        Message::Refused { .. } => 5,
        Message::Taken(_) => 6,
        Message::Ready => 7,
        Message::Yours => 8,
        Message::Mine => 9,
        Message::Sessions(_) => 10,
        Message::Flows(_) => 11,
        Message::Figures(_) => 12,
        Message::Adopted(_) => 13,
        Message::Draining { .. } => 14,
    }
}

/// A packet as a line: the head in hexadecimal digits, and the JSON.
fn line(message: &Message) -> String {
    let bytes = write(message);
    let (head, json) = bytes.split_at(HEAD);
    format!("{} {}\n", hexadecimal(head), std::str::from_utf8(json).expect("JSON"))
}

/// `RINGWAY_UPDATE_GOLDEN=1 cargo test --workspace --test hand_over` writes the bytes of a new
/// version, and never those of one that is known.
#[test]
fn the_bytes_of_a_version_never_change() {
    let examples = examples();
    let kinds: BTreeSet<_> = examples.iter().map(kind).collect();
    assert_eq!(kinds.len(), KINDS, "each kind of message has an example");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("hand_over");
    let path = folder.join(format!("version-{VERSION}.golden"));
    let own = examples.iter().map(line).collect::<String>();
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    if known.is_empty() && std::env::var_os("RINGWAY_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, own).expect("it is written");
        return;
    }
    assert!(
        !known.is_empty(),
        "{} is missing: RINGWAY_UPDATE_GOLDEN=1 cargo test --workspace --test hand_over writes it, \
         and the file of the version before can go",
        path.display()
    );
    for (own, known) in own.lines().zip(known.lines()) {
        assert_eq!(
            own, known,
            "these bytes of the hand-over have changed, but VERSION in wire/hand_over.rs is still \
             {VERSION}, so a process of the program before would misread them. Raise VERSION. Then \
             RINGWAY_UPDATE_GOLDEN=1 cargo test --workspace --test hand_over writes the bytes of \
             the new version"
        );
    }
    let count = (own.lines().count(), known.lines().count());
    assert_eq!(count.0, count.1, "{} has a packet for each example", path.display());
    for (known, message) in known.lines().zip(examples) {
        let (head, json) = known.split_once(' ').expect("a head and JSON");
        let bytes = [&binary(head).expect("digits")[..], json.as_bytes()].concat();
        assert_eq!(read(&bytes), Ok(message), "bytes that this version has written are read");
    }
}
