//! HTTP/1.1 (RFC 9112): a request, the status of the answer, and a look into its body.

use std::fmt::Write as _;

use httparse::Status;

use crate::health::probe::talk::reply::Reply;
use crate::model::health_check::Http;

#[derive(Debug)]
pub struct HttpTalk<'c>(pub(super) &'c Http);

/// The most header fields of an answer.
const MOST_FIELDS: usize = 100;

/// How the end of a body is known (RFC 9112, section 6.3).
#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClosed,
}

impl HttpTalk<'_> {
    pub(super) fn request(&self, host: &str) -> Vec<u8> {
        let Http { method, path, .. } = self.0;
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
        _ = write!(text, "User-Agent: ringway/{}\r\n", env!("CARGO_PKG_VERSION"));
        text.push_str("Accept: */*\r\nConnection: close\r\n\r\n");
        text.into_bytes()
    }

    pub(super) fn reply(&self, answer: &[u8], ended: bool) -> Reply {
        let mut rest = answer;
        loop {
            let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
            let mut head = httparse::Response::new(&mut fields);
            let len = match head.parse(rest) {
                Ok(Status::Complete(len)) => len,
                Ok(Status::Partial) if ended && answer.is_empty() => {
                    return Reply::Bad("closed without an answer".to_owned());
                }
                Ok(Status::Partial) if ended => {
                    return Reply::Bad("the head of the answer does not end".to_owned());
                }
                Ok(Status::Partial) => return Reply::More,
                Err(error) => return Reply::Bad(format!("the answer is no HTTP: {error}")),
            };
            let code = head.code.unwrap_or_default();
            rest = &rest[len..];
            // Interim answers (RFC 9110, section 15.2) come before the answer.
            if (100..200).contains(&code) && code != 101 {
                continue;
            }
            return match self.framing(&head) {
                _ if !self.0.status.iter().any(|range| range.contains(&code)) => {
                    let reason = head.reason.unwrap_or_default();
                    let reason: String = reason.chars().take(64).collect();
                    Reply::Bad(format!("its status is {}", format!("{code} {reason}").trim()))
                }
                Ok(framing) => self.body(rest, framing, ended),
                Err(why) => Reply::Bad(why),
            };
        }
    }

    fn framing(&self, head: &httparse::Response<'_, '_>) -> Result<Framing, String> {
        if self.0.method == "HEAD" || matches!(head.code, Some(204 | 304)) {
            return Ok(Framing::Length(0));
        }
        let of = |name: &str| {
            let mut fields = head.headers.iter();
            fields.find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
        };
        if let Some(coding) = of("transfer-encoding") {
            let last = coding.rsplit(|byte| *byte == b',').next().unwrap_or_default();
            let is_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
            return Ok(if is_chunked { Framing::Chunked } else { Framing::UntilClosed });
        }
        let Some(length) = of("content-length") else { return Ok(Framing::UntilClosed) };
        let length = str::from_utf8(length).ok().and_then(|length| length.trim().parse().ok());
        length.map(Framing::Length).ok_or_else(|| "its Content-Length is no number".to_owned())
    }

    fn body(&self, bytes: &[u8], framing: Framing, ended: bool) -> Reply {
        let Some(expect) = &self.0.body else { return Reply::Good };
        let (body, is_whole) = match framing {
            Framing::Length(length) if bytes.len() >= length => (bytes[..length].to_vec(), true),
            Framing::Length(_) | Framing::UntilClosed => (bytes.to_vec(), false),
            Framing::Chunked => match unchunked(bytes) {
                Ok(body) => body,
                Err(why) => return Reply::Bad(why.to_owned()),
            },
        };
        match () {
            () if !is_whole && !ended => Reply::More,
            () if expect.end_in(&body).is_some() => Reply::Good,
            () => Reply::Bad("its body does not have what is expected".to_owned()),
        }
    }
}

/// The data of the chunks so far, and whether the last chunk is among them.
fn unchunked(mut bytes: &[u8]) -> Result<(Vec<u8>, bool), &'static str> {
    let mut body = Vec::new();
    loop {
        let (start, length) = match httparse::parse_chunk_size(bytes) {
            Ok(Status::Complete((start, length))) => (start, length),
            Ok(Status::Partial) => return Ok((body, false)),
            Err(_) => return Err("its chunks are no chunks"),
        };
        if length == 0 {
            return Ok((body, true));
        }
        let data = &bytes[start..];
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if data.len() < length {
            body.extend_from_slice(data);
            return Ok((body, false));
        }
        body.extend_from_slice(&data[..length]);
        bytes = match &data[length..] {
            [b'\r', b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return Ok((body, false)),
            _ => return Err("its chunks are no chunks"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::health_check::{Expect, Pattern};

    fn verdict(http: &Http, answer: &str) -> Reply {
        let talk = HttpTalk(http);
        let whole = talk.reply(answer.as_bytes(), true);
        // The pieces in which an answer comes change nothing.
        for len in 0..answer.len() {
            match talk.reply(&answer.as_bytes()[..len], false) {
                Reply::More => {}
                early => assert_eq!(early, whole, "{answer:?} at {len}"),
            }
        }
        whole
    }

    fn bad(http: &Http, answer: &str) -> String {
        let Reply::Bad(why) = verdict(http, answer) else { panic!("{answer:?} is good") };
        why
    }

    fn with_body(body: &str) -> Http {
        Http { body: Some(Expect::Bytes(body.as_bytes().into())), ..Http::default() }
    }

    #[test]
    fn the_request_asks_for_the_path_of_the_host() {
        let http = Http { path: "/primary".to_owned(), ..Http::default() };
        let request = String::from_utf8(HttpTalk(&http).request("10.0.0.1:8008")).expect("text");
        assert!(request.starts_with("GET /primary HTTP/1.1\r\nHost: 10.0.0.1:8008\r\n"));
        assert!(request.ends_with("\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn the_status_decides() {
        let http = Http::default();
        assert_eq!(verdict(&http, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), Reply::Good);
        assert_eq!(verdict(&http, "HTTP/1.0 302 Found\r\n\r\n"), Reply::Good);
        assert_eq!(verdict(&http, "HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200\r\n\r\n"), Reply::Good);
        let refused = bad(&http, "HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert_eq!(refused, "its status is 503 Service Unavailable");
        let only = Http { status: vec![200..=200, 429..=429], ..Http::default() };
        assert_eq!(verdict(&only, "HTTP/1.1 429 Too Many\r\n\r\n"), Reply::Good);
        assert_eq!(bad(&only, "HTTP/1.1 204 \r\n\r\n"), "its status is 204");
    }

    #[test]
    fn what_is_no_answer_is_bad() {
        let http = Http::default();
        assert_eq!(bad(&http, ""), "closed without an answer");
        assert_eq!(bad(&http, "HTTP/1.1 200 OK\r\nA: b"), "the head of the answer does not end");
        assert!(bad(&http, "SSH-2.0-OpenSSH_9.2\r\n").contains("is no HTTP"));
        let endless = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS + 1));
        assert!(bad(&http, &endless).contains("too many headers"));
        let length = "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n";
        assert_eq!(bad(&http, length), "its Content-Length is no number");
    }

    #[test]
    fn the_body_is_looked_into_once_it_is_whole() {
        let http = with_body("\"health\":\"true\"");
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{\"health\":\"true\"}";
        assert_eq!(verdict(&http, ok), Reply::Good);
        assert!(bad(&http, &ok.replace("true", "fals")).contains("does not have"));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let two = format!("{chunks}a\r\n{{\"health\":\r\n7;x=y\r\n\"true\"}}\r\n0\r\n\r\n");
        assert_eq!(verdict(&http, &two), Reply::Good);
        assert!(bad(&http, &format!("{chunks}zz\r\n")).contains("no chunks"));
        assert!(bad(&http, &format!("{chunks}1\r\nab\r\n")).contains("no chunks"));
        let close = "HTTP/1.1 200 OK\r\n\r\n{\"health\":\"true\"}";
        assert_eq!(verdict(&http, close), Reply::Good);
        let none = Http { method: "HEAD".to_owned(), ..with_body("x") };
        assert!(bad(&none, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").contains("not have"));
        let regex = Expect::Regex(Pattern::read("^[a-z]+$").expect("a regex"));
        let http = Http { body: Some(regex), ..Http::default() };
        assert_eq!(verdict(&http, "HTTP/1.1 200 OK\r\n\r\nabc"), Reply::Good);
        assert!(bad(&http, "HTTP/1.1 200 OK\r\n\r\nabc1").contains("does not have"));
    }
}
