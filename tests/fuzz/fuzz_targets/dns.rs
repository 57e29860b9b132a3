//! Any bytes at all from a client of a DNS server: no panic, and no answer that could do harm.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::wire::dns::{NoQuery, read_query, write_truncated};

/// A query for the root, up to its counts of answers and of what follows.
const START: [u8; 6] = [0xab, 0xcd, 1, 0, 0, 1];

fuzz_target!(|input: &[u8]| {
    amplifies_nothing(input);
    // Mutation seldom finds that there is one question.
    amplifies_nothing(&[&START[..], input].concat());
});

/// What is answered is answered by no more bytes, and by no query: two gateways that sit in front
/// of each other do not go on for ever.
fn amplifies_nothing(message: &[u8]) {
    let Ok(query) = read_query(message) else { return };
    assert!(query.question_end <= message.len());
    let mut answer = Vec::new();
    write_truncated(message, query, &mut answer);
    assert!(answer.len() <= message.len());
    assert_eq!(read_query(&answer), Err(NoQuery));
    // The id, the opcode and "recursion desired" are the query's.
    assert_eq!(answer[..2], message[..2]);
    assert_eq!(answer[2] & 0x79, message[2] & 0x79);
}
