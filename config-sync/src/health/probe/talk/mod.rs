//! What a check says, and what the answers mean. Nothing here does I/O: bytes in, replies out.

mod agent;
mod dns;
mod exchange;
mod http;
mod mysql;
mod postgres;
mod redis;
pub mod reply;
mod sip;
#[cfg(test)]
mod testing;

use crate::health::probe::talk::dns::DnsTalk;
use crate::health::probe::talk::exchange::ExchangeTalk;
use crate::health::probe::talk::http::HttpTalk;
use crate::health::probe::talk::mysql::MysqlTalk;
use crate::health::probe::talk::postgres::PostgresTalk;
use crate::health::probe::talk::redis::RedisTalk;
use crate::health::probe::talk::reply::{Facts, Farewell, Reply, shown};
use crate::health::probe::talk::sip::SipTalk;
use crate::model::health_check::{HealthCheck, Kind, Udp};

/// One check's conversation. What the endpoint sends is never trusted.
pub enum Talk<'c> {
    /// Nothing is said: the connection itself is the check.
    Silent,
    Http(HttpTalk<'c>),
    Exchange(ExchangeTalk<'c>),
    Mysql(Box<MysqlTalk<'c>>),
    Postgres(Box<PostgresTalk<'c>>),
    Redis(RedisTalk<'c>),
    Dns(DnsTalk<'c>),
    Sip(SipTalk<'c>),
    Udp(&'c Udp),
    Agent,
}

impl<'c> Talk<'c> {
    /// The conversation, and the bytes that begin it.
    pub fn new(check: &'c HealthCheck, facts: &Facts) -> (Self, Vec<u8>) {
        match &check.kind {
            Kind::Tcp | Kind::Tls => (Self::Silent, Vec::new()),
            Kind::Http(http) => {
                let talk = HttpTalk(http);
                let said = talk.request(&facts.host);
                (Self::Http(talk), said)
            }
            Kind::Exchange(steps) => {
                let mut talk = ExchangeTalk::new(steps);
                let said = talk.said();
                (Self::Exchange(talk), said)
            }
            Kind::Mysql(login) => (Self::Mysql(Box::new(MysqlTalk::new(login, facts))), Vec::new()),
            Kind::Postgres(login) => {
                let (talk, said) = PostgresTalk::new(login, facts);
                (Self::Postgres(Box::new(talk)), said)
            }
            Kind::Redis(login) => {
                let (talk, said) = RedisTalk::new(login, facts);
                (Self::Redis(talk), said)
            }
            Kind::Dns(dns) => {
                let (talk, said) = DnsTalk::new(dns, facts);
                (Self::Dns(talk), said)
            }
            Kind::Sip(sip) => {
                let (talk, said) = SipTalk::new(sip, facts);
                (Self::Sip(talk), said)
            }
            Kind::Udp(udp) => (Self::Udp(udp), udp.send.to_vec()),
            Kind::Agent(send) => (Self::Agent, send.as_deref().unwrap_or_default().to_vec()),
        }
    }

    /// Whether the conversation itself says when TLS begins.
    pub fn begins_in_clear(&self) -> bool {
        matches!(self, Self::Mysql(_) | Self::Postgres(_))
    }

    /// The words for the conversation, before the endpoint's address.
    pub fn doing(&self) -> &'static str {
        match self {
            Self::Silent => "the connection with",
            Self::Http(_) => "HTTP with",
            Self::Exchange(_) => "the exchange with",
            Self::Mysql(_) => "MySQL at",
            Self::Postgres(_) => "PostgreSQL at",
            Self::Redis(_) => "Redis at",
            Self::Dns(_) => "DNS at",
            Self::Sip(_) => "SIP at",
            Self::Udp(_) => "UDP at",
            Self::Agent => "the agent at",
        }
    }

    /// What to do after all bytes of the `answer` so far. If the answer `ended`, there is no more
    /// of it, and the reply is not [`Reply::More`].
    pub fn reply(&mut self, answer: &[u8], ended: bool) -> Reply {
        match self {
            Self::Silent => Reply::Good,
            Self::Http(http) => http.reply(answer, ended),
            Self::Exchange(exchange) => exchange.reply(answer, ended),
            Self::Mysql(mysql) => mysql.reply(answer, ended),
            Self::Postgres(postgres) => postgres.reply(answer, ended),
            Self::Redis(redis) => redis.reply(answer, ended),
            Self::Dns(dns) => dns.reply(answer, ended),
            Self::Sip(sip) => sip.reply(answer, ended),
            Self::Udp(udp) => match &udp.expect {
                Some(expect) if expect.end_in(answer).is_none() => {
                    let shown = shown(answer);
                    Reply::Bad(format!("the answer does not have {expect}, but is {shown}"))
                }
                _ => Reply::Good,
            },
            Self::Agent => agent::reply(answer, ended),
        }
    }

    pub fn farewell(&self) -> Farewell {
        match self {
            Self::Silent => Farewell::Reset,
            Self::Mysql(mysql) => mysql.farewell(),
            Self::Postgres(postgres) => postgres.farewell(),
            Self::Redis(_) => Farewell::Say(redis::FAREWELL),
            _ => Farewell::Wait,
        }
    }
}
