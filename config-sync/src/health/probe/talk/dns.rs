//! DNS (RFC 1035): one question, and the code of the answer.

use crate::health::probe::talk::reply::{Facts, Reply};
use crate::model::health_check::{Dns, RCODES, Transport};

#[derive(Debug)]
pub struct DnsTalk<'c> {
    dns: &'c Dns,
    /// The message, without the length that TCP has in front.
    query: Vec<u8>,
}

/// The length of a header (section 4.1.1).
const HEADER: usize = 12;

impl<'c> DnsTalk<'c> {
    pub(super) fn new(dns: &'c Dns, facts: &Facts) -> (Self, Vec<u8>) {
        let [high, low, ..] = facts.random.to_be_bytes();
        // The query asks for recursion (RD), and has one question.
        let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in dns.query.split('.').filter(|label| !label.is_empty()) {
            // The reader of the key takes labels of 63 bytes at the most.
            query.push(u8::try_from(label.len()).unwrap_or(63));
            query.extend_from_slice(&label.as_bytes()[..label.len().min(63)]);
        }
        let [high, low] = dns.record.to_be_bytes();
        query.extend([0, high, low, 0, 1]);
        let said = match dns.transport {
            Transport::Udp => query.clone(),
            Transport::Tcp => {
                let length = u16::try_from(query.len()).unwrap_or(u16::MAX);
                [&length.to_be_bytes()[..], &query].concat()
            }
        };
        (Self { dns, query }, said)
    }

    pub(super) fn reply(&self, answer: &[u8], ended: bool) -> Reply {
        let message = match self.dns.transport {
            Transport::Udp => answer,
            Transport::Tcp => match framed(answer) {
                Some(message) => message,
                None if ended => return Reply::bad("the answer does not end"),
                None => return Reply::More,
            },
        };
        let Some(header) = message.first_chunk::<HEADER>() else {
            return match ended {
                true => Reply::bad("the answer is no DNS: it is too short"),
                false => Reply::More,
            };
        };
        if header[..2] != self.query[..2] {
            return Reply::bad("the answer is to another question");
        }
        // QR says that this is an answer, and the operation is a query.
        if header[2] & 0xf8 != 0x80 {
            return Reply::bad("the answer is no DNS: its header is none of an answer");
        }
        let asked = &self.query[HEADER..];
        let question = message.get(HEADER..self.query.len());
        let same = question.is_some_and(|question| question.eq_ignore_ascii_case(asked));
        if header[4..6] != [0, 0] && !same {
            return Reply::bad("the answer is to another question");
        }
        let rcode = header[3] & 0x0f;
        if self.dns.rcodes.contains(&rcode) {
            return Reply::Good;
        }
        let name = RCODES.iter().find(|(_, known)| *known == rcode).map(|(name, _)| *name);
        Reply::Bad(format!("its code is {}", name.unwrap_or("unknown")))
    }
}

/// The message after its length (section 4.2.2), if the message is whole.
fn framed(answer: &[u8]) -> Option<&[u8]> {
    let (length, rest) = answer.split_first_chunk::<2>()?;
    rest.get(..u16::from_be_bytes(*length).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::probe::talk::testing::facts;

    fn dns(transport: Transport) -> Dns {
        Dns { query: "db.Example.com".to_owned(), transport, ..Dns::default() }
    }

    /// The answer to a query, with this code.
    fn answer(query: &[u8], rcode: u8) -> Vec<u8> {
        let mut answer = query.to_vec();
        (answer[2], answer[3]) = (0x81, 0x80 | rcode);
        answer
    }

    #[test]
    fn the_code_decides() {
        let dns = dns(Transport::Udp);
        let (talk, query) = DnsTalk::new(&dns, &facts(None));
        assert_eq!(&query[2..], b"\x01\0\0\x01\0\0\0\0\0\0\x02db\x07Example\x03com\0\0\x01\0\x01");
        assert_eq!(talk.reply(&answer(&query, 0), true), Reply::Good);
        let lower = answer(&query.to_ascii_lowercase(), 0);
        assert_eq!(talk.reply(&lower, true), Reply::Good);
        let why = Reply::bad("its code is REFUSED");
        assert_eq!(talk.reply(&answer(&query, 5), true), why);
        let why = Reply::bad("the answer is to another question");
        let mut other = answer(&query, 0);
        other[0] ^= 1;
        assert_eq!(talk.reply(&other, true), why);
        let mut other = answer(&query, 0);
        other[14] = b'x';
        assert_eq!(talk.reply(&other, true), why);
        assert_eq!(talk.reply(&answer(&query[..20], 0), true), why);
        assert!(matches!(talk.reply(&query, true), Reply::Bad(_)), "its own question");
        assert!(matches!(talk.reply(&query[..5], true), Reply::Bad(_)));
    }

    #[test]
    fn over_tcp_a_length_is_in_front() {
        let dns = dns(Transport::Tcp);
        let (talk, said) = DnsTalk::new(&dns, &facts(None));
        let answer = [&said[..2], &answer(&said[2..], 0)].concat();
        for len in 0..answer.len() {
            assert_eq!(talk.reply(&answer[..len], false), Reply::More);
        }
        assert_eq!(talk.reply(&answer, false), Reply::Good);
        assert_eq!(talk.reply(&answer[..9], true), Reply::bad("the answer does not end"));
    }
}
