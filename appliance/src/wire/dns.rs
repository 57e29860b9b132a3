//! Reads queries of DNS over UDP (RFC 1035, section 4), and writes answers that say nothing but
//! "come over TCP". What stands behind the question is looked at for its borders alone.

/// A message that a server may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// The bytes of the header and the first question.
    pub question_end: usize,
    /// The question is for all types of records (RFC 8482).
    pub is_any: bool,
}

/// A message that is no query, or can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoQuery;

/// Bytes in front of the first question.
const HEADER: usize = 12;
/// The largest name, with the root's empty label (RFC 1035, section 3.1).
const MAX_NAME: usize = 255;

// The first byte of the flags: QR, Opcode (4 bits), AA, TC, RD.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;

// Opcodes, in place (RFC 6895, section 2.2).
const QUERY: u8 = 0 << 3;
const NOTIFY: u8 = 4 << 3;
const UPDATE: u8 = 5 << 3;

/// The question for all types of records (RFC 1035, section 3.2.3).
const ANY: [u8; 2] = [0, 255];

/// Reads what a client has sent in one datagram.
///
/// # Errors
/// It is a response; its opcode is none of QUERY, NOTIFY (RFC 1996) and UPDATE (RFC 2136); it does
/// not have exactly one question or zone (RFC 9619); a QUERY has answers; or a part that the header
/// counts is not there whole. Bytes behind the last part are ignored, as servers ignore them.
pub fn read_query(message: &[u8]) -> Result<Query, NoQuery> {
    let header: &[u8; HEADER] = message.first_chunk().ok_or(NoQuery)?;
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let [questions, answers, authorities, additional] = [4, 6, 8, 10].map(count);
    let opcode = header[2] & OPCODE;
    let may_ask = match opcode {
        QUERY => answers == 0,
        NOTIFY | UPDATE => true,
        _ => false,
    };
    if header[2] & RESPONSE != 0 || !may_ask || questions != 1 {
        return Err(NoQuery);
    }
    let (fixed, question_end) = behind_name(message, HEADER, false)
        .and_then(|at| Some((message.get(at..at + 4)?, at + 4)))
        .ok_or(NoQuery)?;
    let mut at = question_end;
    // There are no more records than bytes, so the loop is short.
    for _ in 0..answers + authorities + additional {
        at = behind_record(message, at).ok_or(NoQuery)?;
    }
    Ok(Query { question_end, is_any: opcode == QUERY && fixed[..2] == ANY })
}

/// Writes the answer to a query that was read by [`read_query`]: no records, but the flag TC, by
/// which an honest client asks again over TCP (RFC 1035, section 4.2.1). The answer is no longer
/// than the query.
pub fn write_truncated(message: &[u8], query: Query, output: &mut Vec<u8>) {
    let asked = message[2] & (OPCODE | RECURSION_DESIRED);
    output.extend_from_slice(&message[..2]);
    output.extend_from_slice(&[RESPONSE | TRUNCATED | asked, 0]);
    output.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    output.extend_from_slice(&message[HEADER..query.question_end]);
}

/// The place behind a name. In front of a question there is no name that it could point to. `None`:
/// the name is too long, or is not there whole.
fn behind_name(message: &[u8], start: usize, may_point: bool) -> Option<usize> {
    let mut at = start;
    loop {
        let label = usize::from(*message.get(at)?);
        match label >> 6 {
            0b00 if label == 0 => return Some(at + 1),
            // One byte is left for the root.
            0b00 if at + 1 + label - start < MAX_NAME => at += 1 + label,
            0b11 if may_point => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// The place behind a record: name, type, class, TTL, length, data.
fn behind_record(message: &[u8], start: usize) -> Option<usize> {
    let at = behind_name(message, start, true)?;
    let fixed: &[u8; 10] = message.get(at..)?.first_chunk()?;
    let data = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let end = at + fixed.len() + data;
    (end <= message.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query for `www.example` of this type, with recursion.
    fn query(of_type: u8) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(b"\x03www\x07example\x00\x00");
        message.extend_from_slice(&[of_type, 0, 1]);
        message
    }

    /// The same with an OPT record (RFC 6891), whose name is the root.
    fn with_edns(mut message: Vec<u8>) -> Vec<u8> {
        message[11] = 1;
        message.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        message
    }

    fn changed(at: usize, value: u8) -> Vec<u8> {
        let mut message = query(1);
        message[at] = value;
        message
    }

    #[test]
    fn queries_are_known() {
        let len = query(1).len();
        let plain = Query { question_end: len, is_any: false };
        assert_eq!(read_query(&query(1)), Ok(plain));
        assert_eq!(read_query(&with_edns(query(28))), Ok(plain));
        assert_eq!(read_query(&query(255)), Ok(Query { is_any: true, ..plain }));
        let root = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        assert_eq!(read_query(&root), Ok(Query { question_end: 17, is_any: false }));
        assert_eq!(read_query(&[&query(1)[..], b"rest"].concat()), Ok(plain));
        // NOTIFY with the zone's SOA, whose name points to the question.
        let mut notify = changed(2, 4 << 3);
        notify[7] = 1;
        notify.extend_from_slice(&[0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read_query(&notify), Ok(plain));
        // An UPDATE of all records of a name is no question for them.
        let mut update = query(255);
        update[2] = 5 << 3;
        assert_eq!(read_query(&update), Ok(plain));
    }

    #[test]
    fn everything_else_is_no_query() {
        let whole = with_edns(query(1));
        for len in 0..whole.len() {
            assert_eq!(read_query(&whole[..len]), Err(NoQuery), "{len} bytes");
        }
        for (fault, message) in [
            ("a response", changed(2, 0x81)),
            ("opcode 1, which is obsolete", changed(2, 1 << 3)),
            ("opcode 6, which is for streams", changed(2, 6 << 3)),
            ("no question", changed(5, 0)),
            ("two questions", changed(5, 2)),
            ("65,281 questions", changed(4, 255)),
            ("an answer in a query", changed(7, 1)),
            ("a record that is not there", changed(11, 1)),
            ("a name that points", changed(12, 0xc0)),
            ("a label of a kind that nobody uses", changed(12, 0x41)),
            ("no end of the name", changed(24, 1)),
        ] {
            assert_eq!(read_query(&message), Err(NoQuery), "{fault}");
        }
        let long = |labels: usize, last: u8| {
            let mut message = query(1)[..HEADER].to_vec();
            for _ in 0..labels {
                message.push(63);
                message.resize(message.len() + 63, b'a');
            }
            message.push(last);
            message.resize(message.len() + usize::from(last), b'a');
            message.extend_from_slice(&[0, 0, 1, 0, 1]);
            message
        };
        assert!(read_query(&long(3, 61)).is_ok(), "255 bytes");
        assert_eq!(read_query(&long(3, 62)), Err(NoQuery), "256 bytes");
    }

    #[test]
    fn a_truncated_answer_repeats_the_question_alone() {
        let message = with_edns(query(1));
        let mut answer = Vec::new();
        write_truncated(&message, read_query(&message).expect("a query"), &mut answer);
        let mut expected = query(1);
        expected[2] = 0x83;
        assert_eq!(answer, expected);
    }

    proptest! {
        /// Whatever a client sends: no panic, and no answer that is longer than the query or that
        /// would itself be taken for a query.
        #[test]
        fn an_answer_amplifies_nothing(
            start in any::<[u8; 3]>(),
            rest in prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..80),
        ) {
            let message = [&start[..], &rest].concat();
            if let Ok(query) = read_query(&message) {
                let mut answer = Vec::new();
                write_truncated(&message, query, &mut answer);
                prop_assert!(answer.len() <= message.len());
                prop_assert_eq!(read_query(&answer), Err(NoQuery));
            }
        }
    }
}
