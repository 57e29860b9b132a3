//! SIP (RFC 3261): OPTIONS, and the status of the answer.

use crate::health::probe::talk::reply::{Facts, Reply, shown};
use crate::model::health_check::{Sip, Transport};

#[derive(Debug)]
pub struct SipTalk<'c> {
    sip: &'c Sip,
    call: String,
}

impl<'c> SipTalk<'c> {
    pub(super) fn new(sip: &'c Sip, facts: &Facts) -> (Self, Vec<u8>) {
        let Facts { host, local, random, .. } = facts;
        let call = format!("{random:016x}@{}", local.ip());
        let via = match sip.transport {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
        };
        let request = format!(
            "OPTIONS sip:{host} SIP/2.0\r\n\
             Via: SIP/2.0/{via} {local};branch=z9hG4bK{random:016x};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:ringway@{local}>;tag={random:016x}\r\n\
             To: <sip:{host}>\r\n\
             Call-ID: {call}\r\n\
             CSeq: 1 OPTIONS\r\n\
             Contact: <sip:ringway@{local}>\r\n\
             Accept: application/sdp\r\n\
             Content-Length: 0\r\n\r\n"
        );
        (Self { sip, call }, request.into_bytes())
    }

    pub(super) fn reply(&self, answer: &[u8], ended: bool) -> Reply {
        let mut rest = answer;
        loop {
            let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else {
                return match ended {
                    true => Reply::Bad(format!("the answer does not end: {}", shown(rest))),
                    false => Reply::More,
                };
            };
            let head = &rest[..end];
            let Some((code, reason)) = status(head) else {
                return Reply::Bad(format!("the answer is no SIP: {}", shown(head)));
            };
            if !head.windows(self.call.len()).any(|part| part == self.call.as_bytes()) {
                return Reply::bad("the answer has another Call-ID");
            }
            // A provisional answer (section 8.2.6.1) comes before the answer.
            if (100..200).contains(&code) {
                rest = &rest[end + 4..];
                continue;
            }
            return match self.sip.status.iter().any(|range| range.contains(&code)) {
                true => Reply::Good,
                false => Reply::Bad(format!("its status is {code} {}", reason.trim())),
            };
        }
    }
}

/// The status of a head's first line, `SIP/2.0 200 OK`.
fn status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let rest = line.strip_prefix(b"SIP/2.0 ")?;
    let (code, reason) = rest.split_at_checked(3)?;
    if !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = str::from_utf8(code).ok()?.parse().ok()?;
    Some((code, reason[..reason.len().min(64)].escape_ascii().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::probe::talk::testing::facts;

    #[test]
    fn the_final_status_decides() {
        let sip = Sip::default();
        let (talk, request) = SipTalk::new(&sip, &facts(None));
        let request = String::from_utf8(request).expect("text");
        assert!(request.starts_with("OPTIONS sip:host.example SIP/2.0\r\nVia: SIP/2.0/UDP 127.0"));
        let call = request.lines().find(|line| line.starts_with("Call-ID: ")).expect("an id");
        let answer = |status: &str| format!("SIP/2.0 {status}\r\n{call}\r\n\r\n");
        let ok = answer("200 OK");
        for len in 0..ok.len() {
            assert_eq!(talk.reply(&ok.as_bytes()[..len], false), Reply::More);
        }
        assert_eq!(talk.reply(ok.as_bytes(), true), Reply::Good);
        let trying = answer("100 Trying");
        assert_eq!(talk.reply(trying.as_bytes(), false), Reply::More);
        assert_eq!(talk.reply((trying + &ok).as_bytes(), false), Reply::Good);
        let busy = answer("503 Service Unavailable");
        let why = Reply::bad("its status is 503 Service Unavailable");
        assert_eq!(talk.reply(busy.as_bytes(), false), why);
        let other = "SIP/2.0 200 OK\r\nCall-ID: other\r\n\r\n";
        let why = Reply::bad("the answer has another Call-ID");
        assert_eq!(talk.reply(other.as_bytes(), false), why);
        let why = Reply::bad("the answer is no SIP: \"HTTP/1.1 200 OK\"");
        assert_eq!(talk.reply(b"HTTP/1.1 200 OK\r\n\r\n", false), why);
        assert!(matches!(talk.reply(b"SIP/2.0 \xff\xff\xff\r\n\r\n", true), Reply::Bad(_)));
    }
}
