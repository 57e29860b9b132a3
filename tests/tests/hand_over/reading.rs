//! What is read of a message, and what is refused.

use ringway::wire::hand_over::{
    Action, Fault, Figures, Flow, MOST_BYTES, MOST_FIGURES, MOST_FLOWS, MOST_HEADER, MOST_NUMBERS,
    MOST_OVERRIDES, MOST_SESSIONS, MOST_SOCKETS, MOST_TICKETS, Message, Name, Override, Secret,
    Session, Tickets, What, hexadecimal, read, write,
};

use crate::HEAD;
use crate::examples::{flow, session};

fn name() -> Name {
    Name { what: What::Udp, address: "[::1]:53".into(), interface: 2, worker: 7 }
}

fn an_override() -> Override {
    Override {
        listener: None,
        backend: Some("b".repeat(253)),
        endpoint: Some("e".repeat(253)),
        action: Action::Weight(256),
        left: Some(u64::MAX),
    }
}

#[test]
fn a_session_that_contradicts_itself_is_refused() {
    let unsound = [
        Session { bytes: [0, u64::MAX], ..session() },
        Session { ended: [true; 2], ..session() },
        Session { client_first: None, ..session() },
        Session { ended: [false; 2], ..session() },
    ];
    for session in unsound {
        assert_eq!(read(&write(&Message::Sessions(vec![session]))), Err(Fault::Session));
    }
}

fn tickets() -> Tickets {
    Tickets {
        listener: "l".repeat(253),
        admission: hexadecimal(&[7; 32]),
        current: Secret::new(&[1; 48]),
        previous: Some(Secret::new(&[2; 48])),
        next: u64::MAX,
    }
}

#[test]
fn keys_are_not_shown() {
    let text = format!("{:?}", Message::Tickets(vec![tickets()]));
    assert!(!text.contains("01") && text.contains("Secret"), "{text}");
    assert_eq!(tickets().current.bytes(), Some(vec![1; 48]));
}

/// With the longest numbers.
fn long_flow() -> Flow {
    Flow {
        peer: "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().expect("an address"),
        timeout: u32::MAX,
        datagrams: [u32::MAX; 2],
        bytes: [u64::MAX >> 2; 2],
        opened: u64::MAX,
        last: u64::MAX,
        ..flow()
    }
}

#[test]
fn a_flow_that_cannot_be_is_refused() {
    assert_eq!(flow().header(), Some(vec![0x0d, 0xff, 0]));
    let unsound = [
        Flow { bytes: [0, u64::MAX], ..flow() },
        Flow { header: "0".into(), ..flow() },
        Flow { header: "0g".into(), ..flow() },
        Flow { header: "é".into(), ..flow() },
        Flow { header: "00".repeat(MOST_HEADER + 1), ..flow() },
    ];
    for flow in unsound {
        assert_eq!(read(&write(&Message::Flows(vec![flow]))), Err(Fault::Flow));
    }
}

fn figures() -> Figures {
    Figures {
        flow: u32::MAX,
        datagrams: [u32::MAX; 2],
        bytes: [u64::MAX >> 2; 2],
        last: u64::MAX,
        refused: false,
        promoted: false,
    }
}

#[test]
fn figures_are_short_and_sound() {
    let few = Figures { flow: 1, datagrams: [2, 3], bytes: [4, 5], last: 6, ..figures() };
    let few = Figures { refused: true, ..few };
    let bytes = write(&Message::Figures(vec![few]));
    assert_eq!(&bytes[HEAD..], b"{\"figures\":[[1,[2,3],[4,5],6,true,false]]}");
    let unsound = Figures { bytes: [u64::MAX, 0], ..few };
    assert_eq!(read(&write(&Message::Figures(vec![unsound]))), Err(Fault::Flow));
    let many = write(&Message::Figures(vec![few; MOST_FIGURES + 1]));
    assert_eq!(read(&many), Err(Fault::Entries(MOST_FIGURES + 1)));
}

fn all() -> Vec<Message> {
    let program = || "0.1.0".to_owned();
    vec![
        Message::Hello { program: program(), workers: 4 },
        Message::Offer {
            program: program(),
            generation: 3,
            workers: 2,
            seed: u64::MAX,
            sockets: 5,
            overrides: 1,
            tickets: 1,
        },
        Message::Tickets(vec![tickets(); MOST_TICKETS]),
        Message::Overrides(vec![an_override(); MOST_OVERRIDES]),
        Message::Sockets(vec![name(); MOST_SOCKETS]),
        Message::Refused { why: "\"no\"".into() },
        Message::Taken((0..u32::try_from(MOST_NUMBERS).expect("few")).collect()),
        Message::Ready,
        Message::Yours,
        Message::Mine,
        Message::Sessions(vec![session(); MOST_SESSIONS]),
        Message::Flows(vec![long_flow(); MOST_FLOWS]),
        Message::Figures(vec![figures(); MOST_FIGURES]),
        Message::Adopted(vec![true; MOST_FLOWS]),
        Message::Draining { processes: 1, sessions: 2, flows: 3 },
    ]
}

#[test]
fn what_is_written_is_read() {
    for message in all() {
        let bytes = write(&message);
        assert!(bytes.len() <= MOST_BYTES, "{message:?}");
        assert_eq!(read(&bytes), Ok(message));
    }
}

#[test]
fn what_is_cut_or_longer_is_refused() {
    let bytes = write(&Message::Ready);
    for len in 0..bytes.len() {
        let fault = read(&bytes[..len]).expect_err("a part is no message");
        assert!(matches!(fault, Fault::Head(_) | Fault::Length { .. }), "{fault}");
    }
    let longer = [&bytes[..], b" "].concat();
    assert_eq!(read(&longer), Err(Fault::Length { said: 7, has: 8 }));
}

#[test]
fn another_version_is_named() {
    let mut bytes = write(&Message::Ready);
    bytes[5] = 9;
    assert_eq!(read(&bytes), Err(Fault::Version(9)));
    bytes[0] = b'x';
    assert_eq!(read(&bytes), Err(Fault::Head(bytes.len())));
}

#[test]
fn too_many_entries_and_unknown_words_are_refused() {
    let many = write(&Message::Sockets(vec![name(); MOST_SOCKETS + 1]));
    assert_eq!(read(&many), Err(Fault::Entries(MOST_SOCKETS + 1)));
    let many = write(&Message::Adopted(vec![true; MOST_FLOWS + 1]));
    assert_eq!(read(&many), Err(Fault::Entries(MOST_FLOWS + 1)));
    let many = write(&Message::Flows(vec![long_flow(); MOST_FLOWS + 1]));
    assert_eq!(read(&many), Err(Fault::Entries(MOST_FLOWS + 1)));
    let many = write(&Message::Sessions(vec![session(); MOST_SESSIONS + 1]));
    assert_eq!(read(&many), Err(Fault::Entries(MOST_SESSIONS + 1)));
    let json = b"{\"hello\":{\"program\":\"\",\"workers\":1,\"more\":1}}";
    let length = u32::try_from(json.len()).expect("short").to_be_bytes();
    let magic_and_version = &write(&Message::Ready)[..6];
    let unknown = [magic_and_version, &length, json].concat();
    assert!(matches!(read(&unknown), Err(Fault::Json(_))));
}
