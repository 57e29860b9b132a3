//! The bytes of the messages between the processes of an upgrade. Two programs that name one
//! version must mean one thing by all bytes: `hand_over/version-N.golden` has a packet of each kind
//! as version N writes it.

mod examples;
mod reading;

use std::collections::BTreeSet;
use std::path::PathBuf;

use ringway::wire::hand_over::{Message, VERSION, binary, hexadecimal, read, write};

use crate::examples::examples;

/// Bytes in front of the JSON.
const HEAD: usize = 10;

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
