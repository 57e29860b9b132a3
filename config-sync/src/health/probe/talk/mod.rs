//! What a check says, and what the answers mean. Nothing here does I/O: bytes in, replies out.

mod http;
pub mod reply;

use crate::health::probe::talk::http::HttpTalk;
use crate::health::probe::talk::reply::Reply;
use crate::model::health_check::{HealthCheck, Kind};

/// One check's conversation. What the endpoint sends is never trusted.
#[derive(Debug)]
pub enum Talk<'c> {
    Http(HttpTalk<'c>),
}

impl<'c> Talk<'c> {
    /// The conversation, and the bytes that begin it. `host` is the name to ask for. `None`:
    /// nothing is said, because the connection itself is the check.
    pub fn new(check: &'c HealthCheck, host: &str) -> Option<(Self, Vec<u8>)> {
        match &check.kind {
            Kind::Tcp | Kind::Tls => None,
            Kind::Http(http) => Some((Self::Http(HttpTalk(http)), HttpTalk(http).request(host))),
        }
    }

    /// The words for the conversation, before the endpoint's address.
    pub fn doing(&self) -> &'static str {
        match self {
            Self::Http(_) => "HTTP with",
        }
    }

    /// What to do after all bytes of the `answer` so far. If the answer `ended`, there is no more
    /// of it, and the reply is not [`Reply::More`].
    pub fn reply(&mut self, answer: &[u8], ended: bool) -> Reply {
        match self {
            Self::Http(http) => http.reply(answer, ended),
        }
    }
}
