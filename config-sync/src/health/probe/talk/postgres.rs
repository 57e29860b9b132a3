//! PostgreSQL (its manual, "Frontend/Backend Protocol", version 3.0): a request for TLS, or a
//! session of a user, who may ask whether the server is in recovery.

use std::io;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{
    AuthenticationSaslBody, DataRowBody, ErrorFields, Header, Message,
};
use postgres_protocol::message::frontend;

use crate::health::probe::talk::reply::{Channel, Facts, Farewell, MOST_OF_ANSWER, Reply, shown};
use crate::model::health_check::{Login, Role};

pub struct PostgresTalk<'c> {
    login: &'c Login,
    password: Option<Vec<u8>>,
    channel: Channel,
    awaits: Awaits,
    /// The user has logged in.
    is_in: bool,
    /// The bytes of the answer whose messages were taken already.
    read: usize,
}

enum Awaits {
    /// The byte that grants or refuses TLS.
    Grant,
    /// Nothing but TLS.
    Tls,
    Login,
    Challenge(Box<ScramSha256>),
    Proof(Box<ScramSha256>),
    /// The server has proven that it knows the password too.
    Admission,
    Ready,
    /// Whether the server is in recovery, once it has said so.
    Recovery(Role, Option<bool>),
}

/// The database that every cluster has when it is made.
const DATABASE: &str = "postgres";
const QUESTION: &str = "SELECT pg_is_in_recovery()";
/// The length, and the code 1234, 5679.
const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
/// The letter and the length.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

impl<'c> PostgresTalk<'c> {
    pub(super) fn new(login: &'c Login, facts: &Facts) -> (Self, Vec<u8>) {
        let is_clear = login.user.is_some() && facts.channel == Channel::Plain;
        let mut talk = Self {
            login,
            password: facts.password.clone(),
            channel: facts.channel,
            awaits: Awaits::Grant,
            is_in: false,
            read: 0,
        };
        let said = if is_clear { talk.start() } else { SSL_REQUEST.to_vec() };
        (talk, said)
    }

    /// The first bytes of the session, or none if nobody is to log in.
    fn start(&mut self) -> Vec<u8> {
        let Some(user) = &self.login.user else {
            self.awaits = Awaits::Tls;
            return Vec::new();
        };
        self.awaits = Awaits::Login;
        let parameters =
            [("user", user.as_str()), ("database", DATABASE), ("application_name", "ringway")];
        message(|bytes| frontend::startup_message(parameters, bytes))
            .expect("the name of a user has no byte 0")
    }

    pub(super) fn reply(&mut self, answer: &[u8], ended: bool) -> Reply {
        match self.awaits {
            Awaits::Grant => return self.granted(answer, ended),
            Awaits::Tls => return Reply::Good,
            _ => {}
        }
        loop {
            let rest = answer.get(self.read..).unwrap_or_default();
            let Ok(header) = Header::parse(rest) else { return no_postgres(rest) };
            let len = header.map(|header| usize::try_from(header.len()).unwrap_or(usize::MAX));
            if len.is_some_and(|len| len >= MOST_OF_ANSWER) {
                return no_postgres(rest);
            }
            let whole = len.and_then(|len| rest.get(..=len));
            let Some(whole) = whole else {
                return match ended {
                    true => Reply::Bad(format!("the answer does not end: {}", shown(rest))),
                    false => Reply::More,
                };
            };
            let Ok(Some(message)) = Message::parse(&mut BytesMut::from(whole)) else {
                return no_postgres(whole);
            };
            self.read += whole.len();
            match self.take(message) {
                Ok(None) => {}
                Ok(Some(Next::Good)) => return Reply::Good,
                Ok(Some(Next::Say(bytes))) => {
                    return Reply::Say { taken: std::mem::take(&mut self.read), bytes };
                }
                Err(why) => return Reply::Bad(why),
            }
        }
    }

    fn granted(&mut self, answer: &[u8], ended: bool) -> Reply {
        match answer.first() {
            Some(b'S') => Reply::Secure { taken: 1, bytes: Vec::new(), then: self.start() },
            Some(b'N') if self.channel == Channel::Plain => Reply::Good,
            Some(b'N') => Reply::bad("it grants no TLS"),
            Some(_) => no_postgres(answer),
            None if ended => Reply::bad("it closes without an answer"),
            None => Reply::More,
        }
    }

    fn take(&mut self, message: Message) -> Result<Option<Next>, String> {
        use Message as M;
        let awaits = std::mem::replace(&mut self.awaits, Awaits::Ready);
        let (awaits, next) = match (awaits, message) {
            (_, M::ErrorResponse(body)) => return Err(error(body.fields())),
            (awaits, M::NoticeResponse(_) | M::ParameterStatus(_)) => (awaits, None),
            (Awaits::Login | Awaits::Admission, M::AuthenticationOk) => {
                self.is_in = true;
                (Awaits::Ready, None)
            }
            (Awaits::Login, M::AuthenticationCleartextPassword) => {
                if self.channel != Channel::Verified {
                    return Err(
                        "it asks for the password in clear text, which Ringway tells only \
                                over TLS with a certificate that was verified"
                            .to_owned(),
                    );
                }
                let password = self.password()?;
                (Awaits::Admission, say(|bytes| frontend::password_message(password, bytes))?)
            }
            (Awaits::Login, M::AuthenticationMd5Password(body)) => {
                let user = self.login.user.as_deref().unwrap_or_default();
                let hash = md5_hash(user.as_bytes(), self.password()?, body.salt());
                let said =
                    |bytes: &mut BytesMut| frontend::password_message(hash.as_bytes(), bytes);
                (Awaits::Admission, say(said)?)
            }
            (Awaits::Login, M::AuthenticationSasl(body)) => self.scram(&body)?,
            (Awaits::Challenge(mut scram), M::AuthenticationSaslContinue(body)) => {
                scram.update(body.data()).map_err(refused)?;
                let next = say(|bytes| frontend::sasl_response(scram.message(), bytes))?;
                (Awaits::Proof(scram), next)
            }
            (Awaits::Proof(mut scram), M::AuthenticationSaslFinal(body)) => {
                scram.finish(body.data()).map_err(refused)?;
                (Awaits::Admission, None)
            }
            (Awaits::Login, other) if is_login(&other) => {
                return Err("it asks for a login by Kerberos, GSSAPI or SSPI, which a check \
                            does not have"
                    .to_owned());
            }
            (Awaits::Ready, M::BackendKeyData(_)) => (Awaits::Ready, None),
            (Awaits::Ready, M::ReadyForQuery(_)) => match self.login.role {
                None => (Awaits::Ready, Some(Next::Good)),
                Some(role) => {
                    (Awaits::Recovery(role, None), say(|bytes| frontend::query(QUESTION, bytes))?)
                }
            },
            (Awaits::Recovery(role, said), M::RowDescription(_) | M::CommandComplete(_)) => {
                (Awaits::Recovery(role, said), None)
            }
            (Awaits::Recovery(role, None), M::DataRow(row)) => {
                (Awaits::Recovery(role, Some(is_in_recovery(&row)?)), None)
            }
            (Awaits::Recovery(role, Some(said)), M::ReadyForQuery(_)) => {
                return judged(role, said).map(Some);
            }
            _ => return Err("its answers are out of turn".to_owned()),
        };
        self.awaits = awaits;
        Ok(next)
    }

    fn scram(&self, body: &AuthenticationSaslBody) -> Result<(Awaits, Option<Next>), String> {
        let known = body.mechanisms().any(|mechanism| Ok(mechanism == SCRAM_SHA_256));
        if !known.unwrap_or(false) {
            return Err("it asks for a login by SASL, but not by SCRAM-SHA-256".to_owned());
        }
        // "unsupported" and not "unrequested": to a server that offers channel binding the latter
        // says that somebody has taken the offer away.
        let scram = ScramSha256::new(self.password()?, ChannelBinding::unsupported());
        let first = |bytes: &mut BytesMut| {
            frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), bytes)
        };
        let next = say(first)?;
        Ok((Awaits::Challenge(Box::new(scram)), next))
    }

    fn password(&self) -> Result<&[u8], String> {
        let missing = || "it asks for a password, and the check has no `password_file`".to_owned();
        self.password.as_deref().ok_or_else(missing)
    }

    pub(super) fn farewell(&self) -> Farewell {
        match self.awaits {
            Awaits::Tls => Farewell::Reset,
            _ if self.is_in => Farewell::Say(TERMINATE),
            _ => Farewell::End,
        }
    }
}

/// What comes after a message.
enum Next {
    Say(Vec<u8>),
    Good,
}

fn message(write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let mut bytes = BytesMut::new();
    write(&mut bytes)?;
    Ok(bytes.to_vec())
}

/// A text with a byte 0 can't be said.
fn say(write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<Option<Next>, String> {
    let said = message(write).map_err(|error| format!("the login can't be said: {error}"))?;
    Ok(Some(Next::Say(said)))
}

fn is_login(message: &Message) -> bool {
    use Message as M;
    matches!(
        message,
        M::AuthenticationGss
            | M::AuthenticationKerberosV5
            | M::AuthenticationScmCredential
            | M::AuthenticationSspi
    )
}

fn is_in_recovery(row: &DataRowBody) -> Result<bool, String> {
    let range = row.ranges().next().ok().flatten().flatten();
    match range.and_then(|range| row.buffer().get(range)) {
        Some(b"t") => Ok(true),
        Some(b"f") => Ok(false),
        _ => Err("its answer is neither true nor false".to_owned()),
    }
}

fn judged(role: Role, is_in_recovery: bool) -> Result<Next, String> {
    match (role, is_in_recovery) {
        (Role::Primary, false) | (Role::Replica, true) => Ok(Next::Good),
        (Role::Primary, true) => Err("it is in recovery, so it is a replica".to_owned()),
        (Role::Replica, false) => Err("it is not in recovery, so it is a primary".to_owned()),
    }
}

/// The text of an error, and its SQLSTATE.
fn error(mut fields: ErrorFields<'_>) -> String {
    let (mut code, mut text) = (Vec::new(), Vec::new());
    while let Ok(Some(field)) = fields.next() {
        match field.type_() {
            b'C' => code = field.value_bytes().to_vec(),
            b'M' => text = field.value_bytes().to_vec(),
            _ => {}
        }
    }
    format!("{} ({})", shown(&text), code[..code.len().min(5)].escape_ascii())
}

fn refused(error: io::Error) -> String {
    format!("its answer to SCRAM-SHA-256 is refused: {error}")
}

fn no_postgres(answer: &[u8]) -> Reply {
    Reply::Bad(format!("the answer is no PostgreSQL: {}", shown(answer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::probe::talk::testing::facts;

    const START: &[u8] = b"\0\0\0\x3c\0\x03\0\0user\0me\0database\0postgres\0\
                           application_name\0ringway\0\0";
    const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";

    fn login(role: Option<Role>) -> Login {
        Login { user: Some("me".to_owned()), role, ..Login::default() }
    }

    fn said(reply: Reply) -> Vec<u8> {
        let Reply::Say { bytes, .. } = reply else { panic!("{reply:?}") };
        bytes
    }

    /// What is said to a server that asks for the password in this way.
    fn asked(how: &[u8], password: Option<&str>, channel: Channel) -> Reply {
        let login = login(None);
        let facts = Facts { channel, ..facts(password) };
        let (mut talk, _) = PostgresTalk::new(&login, &facts);
        if channel != Channel::Plain {
            let secure = Reply::Secure { taken: 1, bytes: Vec::new(), then: START.to_vec() };
            assert_eq!(talk.reply(b"S", false), secure);
        }
        let len = u8::try_from(how.len()).expect("it is short") + 4;
        talk.reply(&[b"R\0\0\0", &[len][..], how].concat(), false)
    }

    #[test]
    fn without_a_user_the_answer_about_tls_is_enough() {
        let login = Login::default();
        let (mut talk, said) = PostgresTalk::new(&login, &facts(None));
        assert_eq!(said, b"\0\0\0\x08\x04\xd2\x16\x2f");
        assert_eq!(talk.reply(b"", false), Reply::More);
        assert_eq!(talk.reply(b"N", false), Reply::Good);
        assert_eq!(talk.farewell(), Farewell::End, "a server logs a reset");
        assert_eq!(talk.reply(b"", true), Reply::bad("it closes without an answer"));
        let lies = Reply::bad("the answer is no PostgreSQL: \"HTTP/1.1\"");
        assert_eq!(talk.reply(b"HTTP/1.1", false), lies);
        let secure = Reply::Secure { taken: 1, bytes: Vec::new(), then: Vec::new() };
        assert_eq!(talk.reply(b"S", false), secure);
        assert_eq!(talk.reply(b"", false), Reply::Good);
        let facts = Facts { channel: Channel::Verified, ..facts(None) };
        let (mut talk, _) = PostgresTalk::new(&login, &facts);
        assert_eq!(talk.reply(b"N", false), Reply::bad("it grants no TLS"));
    }

    #[test]
    fn the_role_is_what_the_server_says_of_recovery() {
        for (role, answer, verdict) in [
            (Role::Primary, b'f', Reply::Good),
            (Role::Replica, b't', Reply::Good),
            (Role::Primary, b't', Reply::bad("it is in recovery, so it is a replica")),
            (Role::Replica, b'f', Reply::bad("it is not in recovery, so it is a primary")),
            (Role::Replica, b'x', Reply::bad("its answer is neither true nor false")),
        ] {
            let login = login(Some(role));
            let (mut talk, said_first) = PostgresTalk::new(&login, &facts(None));
            assert_eq!(said_first, START);
            let setting = b"S\0\0\0\x08a\0b\0";
            let key = b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02";
            let admitted = [OK, setting, key, READY].concat();
            for end in 0..admitted.len() {
                assert_eq!(talk.reply(&admitted[..end], false), Reply::More);
            }
            let bytes = b"Q\0\0\0\x1fSELECT pg_is_in_recovery()\0".to_vec();
            let taken = admitted.len();
            assert_eq!(talk.reply(&admitted, false), Reply::Say { taken, bytes });
            let row = [b'D', 0, 0, 0, 11, 0, 1, 0, 0, 0, 1, answer];
            let done = b"C\0\0\0\x0dSELECT 1\0";
            let answer = [b"T\0\0\0\x06\0\0", &row[..], done, READY].concat();
            assert_eq!(talk.reply(&answer, false), verdict);
            assert_eq!(talk.farewell(), Farewell::Say(b"X\0\0\0\x04"));
        }
    }

    #[test]
    fn a_password_is_told_only_as_it_may_be() {
        let clear = &b"\0\0\0\x03"[..];
        let md5 = &b"\0\0\0\x05\x01\x02\x03\x04"[..];
        let hash = said(asked(md5, Some("secret"), Channel::Plain));
        assert_eq!(hash, b"p\0\0\0\x28md58322d584bf59f0253d58346307bb6ba3\0");
        let told = said(asked(clear, Some("secret"), Channel::Verified));
        assert_eq!(told, b"p\0\0\0\x0bsecret\0");
        for channel in [Channel::Plain, Channel::Unverified] {
            let Reply::Bad(why) = asked(clear, Some("secret"), channel) else { panic!("told") };
            assert!(why.starts_with("it asks for the password in clear text"), "{why}");
        }
        let missing = Reply::bad("it asks for a password, and the check has no `password_file`");
        assert_eq!(asked(md5, None, Channel::Plain), missing);
        let Reply::Bad(why) = asked(clear, Some("a\0b"), Channel::Verified) else { panic!("told") };
        assert!(why.starts_with("the login can't be said: "), "{why}");
        let first = said(asked(b"\0\0\0\x0aSCRAM-SHA-256\0\0", Some("s"), Channel::Plain));
        assert_eq!(first[5..].split(|byte| *byte == 0).next(), Some(&b"SCRAM-SHA-256"[..]));
        let other = Reply::bad("it asks for a login by SASL, but not by SCRAM-SHA-256");
        assert_eq!(asked(b"\0\0\0\x0aX\0\0", Some("s"), Channel::Plain), other);
        let kerberos = asked(b"\0\0\0\x07", Some("s"), Channel::Plain);
        assert!(matches!(kerberos, Reply::Bad(_)), "{kerberos:?}");
    }

    #[test]
    fn a_server_that_does_not_prove_that_it_knows_the_password_is_bad() {
        let login = login(None);
        let (mut talk, _) = PostgresTalk::new(&login, &facts(Some("secret")));
        let asks = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
        assert!(matches!(talk.reply(asks, false), Reply::Say { .. }));
        assert_eq!(talk.reply(OK, false), Reply::bad("its answers are out of turn"));
        assert_eq!(talk.farewell(), Farewell::End);
    }

    #[test]
    fn errors_are_shown_and_long_messages_are_not_waited_for() {
        let login = login(None);
        let reply = |answer: &[u8], ended| {
            let (mut talk, _) = PostgresTalk::new(&login, &facts(None));
            talk.reply(answer, ended)
        };
        let starting = b"E\0\0\0\x26SFATAL\0C57P03\0Mit is starting up\0\0";
        assert_eq!(reply(starting, false), Reply::bad("\"it is starting up\" (57P03)"));
        assert_eq!(reply(OK, false), Reply::More);
        assert!(matches!(reply(OK, true), Reply::Bad(_)));
        for lie in [&b"E\xff\xff\xff\xff"[..], b"E\x7f\xff\xff\xff", b"E\0\0\0\x03", b"HTTP/1.1"] {
            let Reply::Bad(why) = reply(lie, false) else { panic!("{lie:?}") };
            assert!(why.starts_with("the answer is no PostgreSQL: "), "{why}");
        }
    }
}
