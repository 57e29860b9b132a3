//! MySQL and MariaDB (MySQL Internals, "Client/Server Protocol", version 10): the greeting, and a
//! session of a user, who may ask whether the server is read-only.
//!
//! A server counts each connection that ends between its greeting and the client's answer, and
//! shuts out a host with `max_connect_errors` of them. So every check answers the greeting.

use aws_lc_rs::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use crate::health::probe::talk::reply::{Channel, Facts, Farewell, MOST_OF_ANSWER, Reply, shown};
use crate::model::health_check::{Login, Role};

pub struct MysqlTalk<'c> {
    login: &'c Login,
    password: Vec<u8>,
    channel: Channel,
    awaits: Awaits,
    /// The user has logged in.
    is_in: bool,
    /// The bytes of the answer whose packets were taken already.
    read: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Awaits {
    Greeting,
    /// The answer to a user without a name: whatever it is.
    Refusal,
    /// An answer after Ringway has given the login up for this reason.
    End(String),
    Admission,
    /// The column count, the column, and the end of columns.
    Columns(Role, u8),
    Row(Role),
    /// The end of rows. The server is read-only, or not.
    EndOfRows(Role, bool),
}

const QUIT: &[u8] = b"\x01\0\0\0\x01";
const QUESTION: &[u8] = b"\x03SELECT @@global.read_only";

/// What the client can (Protocol::CapabilityFlags): long passwords, protocol 4.1, passwords by
/// challenge, and the name of the way in which the user logs in.
const CAPABILITIES: u32 = 1 | PROTOCOL_41 | 0x8000 | PLUGIN_AUTH;
const PROTOCOL_41: u32 = 0x200;
const TLS: u32 = 0x800;
const PLUGIN_AUTH: u32 = 0x8_0000;
/// utf8mb4_general_ci.
const CHARSET: u8 = 45;

const NATIVE: &[u8] = b"mysql_native_password";
const SHA2: &[u8] = b"caching_sha2_password";
const CLEAR: &[u8] = b"mysql_clear_password";

/// What comes after a packet.
enum Next {
    Packet,
    /// The payload of a packet in answer.
    Say(Vec<u8>),
    Secure {
        first: Vec<u8>,
        then: Vec<u8>,
    },
    /// A command, which begins a new series of packets.
    Ask(&'static [u8]),
    Good,
}

impl<'c> MysqlTalk<'c> {
    pub(super) fn new(login: &'c Login, facts: &Facts) -> Self {
        Self {
            login,
            password: facts.password.clone().unwrap_or_default(),
            channel: facts.channel,
            awaits: Awaits::Greeting,
            is_in: false,
            read: 0,
        }
    }

    pub(super) fn reply(&mut self, answer: &[u8], ended: bool) -> Reply {
        loop {
            let rest = answer.get(self.read..).unwrap_or_default();
            let Some((sequence, payload)) = packet(rest) else {
                return match (&self.awaits, ended) {
                    _ if is_too_long(rest) => no_mysql(rest),
                    (_, false) => Reply::More,
                    (Awaits::End(why), true) => Reply::Bad(why.clone()),
                    (_, true) => Reply::Bad(format!("the answer does not end: {}", shown(rest))),
                };
            };
            self.read += 4 + payload.len();
            let next = match self.take(payload) {
                Err(why) => return Reply::Bad(why),
                Ok(Next::Packet) => continue,
                Ok(next) => next,
            };
            let taken = std::mem::take(&mut self.read);
            let reply = sequence.wrapping_add(1);
            return match next {
                Next::Say(payload) => Reply::Say { taken, bytes: framed(reply, &payload) },
                Next::Ask(question) => Reply::Say { taken, bytes: framed(0, question) },
                Next::Secure { first, then } => Reply::Secure {
                    taken,
                    bytes: framed(reply, &first),
                    then: framed(reply.wrapping_add(1), &then),
                },
                Next::Packet | Next::Good => Reply::Good,
            };
        }
    }

    fn take(&mut self, payload: &[u8]) -> Result<Next, String> {
        let first = payload.first().copied();
        let awaits = std::mem::replace(&mut self.awaits, Awaits::Admission);
        if first == Some(0xff) {
            return match awaits {
                Awaits::Refusal => Ok(Next::Good),
                Awaits::End(why) => Err(why),
                _ => Err(error(payload)),
            };
        }
        let (awaits, next) = match (awaits, first) {
            (Awaits::Greeting, Some(10)) => return self.greeted(payload),
            (Awaits::Greeting, _) => return Err(not_mysql(payload)),
            (Awaits::End(why), _) => return Err(why),
            (Awaits::Refusal, Some(0)) => {
                // Somebody without a name may come in.
                self.is_in = true;
                (Awaits::Refusal, Next::Good)
            }
            // No password leads to a refusal, however it is asked for.
            (Awaits::Refusal, _) => (Awaits::End(UNKNOWN.to_owned()), Next::Say(Vec::new())),
            (Awaits::Admission, Some(0)) => {
                self.is_in = true;
                match self.login.role {
                    None => (Awaits::Admission, Next::Good),
                    Some(role) => (Awaits::Columns(role, 3), Next::Ask(QUESTION)),
                }
            }
            (Awaits::Admission, Some(1)) => return self.more(&payload[1..]),
            (Awaits::Admission, Some(0xfe)) => return self.switched(&payload[1..]),
            (Awaits::Columns(role, 1), _) => (Awaits::Row(role), Next::Packet),
            (Awaits::Columns(role, left), _) => (Awaits::Columns(role, left - 1), Next::Packet),
            (Awaits::Row(role), _) => {
                (Awaits::EndOfRows(role, is_read_only(payload)?), Next::Packet)
            }
            (Awaits::EndOfRows(role, is_read_only), Some(0xfe)) => {
                return judged(role, is_read_only).map(|()| Next::Good);
            }
            _ => return Err(not_mysql(payload)),
        };
        self.awaits = awaits;
        Ok(next)
    }

    fn greeted(&mut self, payload: &[u8]) -> Result<Next, String> {
        let greeting = Greeting::read(payload).ok_or_else(|| not_mysql(payload))?;
        if greeting.capabilities & PROTOCOL_41 == 0 {
            return Err("it is older than MySQL 4.1".to_owned());
        }
        let wants_tls = self.channel != Channel::Plain;
        if wants_tls && greeting.capabilities & TLS == 0 {
            return Err("it grants no TLS".to_owned());
        }
        let plugin = if greeting.plugin == SHA2 { SHA2 } else { NATIVE };
        let capabilities = CAPABILITIES | if wants_tls { TLS } else { 0 };
        let mut first = capabilities.to_le_bytes().to_vec();
        first.extend_from_slice(&(1_u32 << 24).to_le_bytes());
        first.push(CHARSET);
        first.extend_from_slice(&[0; 23]);
        let mut then = first.clone();
        let user = self.login.user.as_deref();
        then.extend_from_slice(user.unwrap_or_default().as_bytes());
        let proof = match user {
            Some(_) => self.proof(plugin, &greeting.salt),
            None => Vec::new(),
        };
        then.push(0);
        // A proof has at most 32 bytes.
        then.push(u8::try_from(proof.len()).unwrap_or_default());
        then.extend_from_slice(&proof);
        then.extend_from_slice(plugin);
        then.push(0);
        self.awaits = if user.is_some() { Awaits::Admission } else { Awaits::Refusal };
        Ok(if wants_tls { Next::Secure { first, then } } else { Next::Say(then) })
    }

    /// The server wants the login in another way.
    fn switched(&mut self, request: &[u8]) -> Result<Next, String> {
        let end = request.iter().position(|byte| *byte == 0).unwrap_or(request.len());
        let plugin = &request[..end];
        let salt = request.get(end + 1..).unwrap_or_default();
        let salt = salt.strip_suffix(b"\0").unwrap_or(salt);
        match plugin {
            NATIVE | SHA2 => Ok(Next::Say(self.proof(plugin, salt))),
            CLEAR => Ok(self.clear()),
            b"" => Ok(self.give_up("it asks for a login as before MySQL 4.1".to_owned())),
            other => {
                let way = shown(other);
                Ok(self.give_up(format!("it asks for a login by {way}, which a check can't")))
            }
        }
    }

    /// More of `caching_sha2_password`: the server's cache knows the user, or it does not.
    fn more(&mut self, data: &[u8]) -> Result<Next, String> {
        match data {
            [3] => Ok(Next::Packet),
            [4] => Ok(self.clear()),
            other => Err(not_mysql(other)),
        }
    }

    fn clear(&mut self) -> Next {
        if self.channel == Channel::Verified {
            return Next::Say([&self.password[..], b"\0"].concat());
        }
        let why = "it asks for the password in clear text, which Ringway tells only over TLS with \
                   a certificate that was verified";
        self.give_up(why.to_owned())
    }

    /// Ends the login by an empty answer, so that the server counts no broken handshake.
    fn give_up(&mut self, why: String) -> Next {
        self.awaits = Awaits::End(why);
        Next::Say(Vec::new())
    }

    /// What proves that the password is known.
    fn proof(&self, plugin: &[u8], salt: &[u8]) -> Vec<u8> {
        let hash = |algorithm: &'static Algorithm, bytes: &[u8]| digest(algorithm, bytes);
        if self.password.is_empty() {
            return Vec::new();
        }
        let (algorithm, salt_is_first): (&'static Algorithm, bool) = match plugin == SHA2 {
            true => (&SHA256, false),
            false => (&SHA1_FOR_LEGACY_USE_ONLY, true),
        };
        let once = hash(algorithm, &self.password);
        let twice = hash(algorithm, once.as_ref());
        let salted = match salt_is_first {
            true => [salt, twice.as_ref()].concat(),
            false => [twice.as_ref(), salt].concat(),
        };
        let mask = hash(algorithm, &salted);
        once.as_ref().iter().zip(mask.as_ref()).map(|(byte, mask)| byte ^ mask).collect()
    }

    pub(super) fn farewell(&self) -> Farewell {
        if self.is_in { Farewell::Say(QUIT) } else { Farewell::Wait }
    }
}

/// A reason that is not told: the refusal is good.
const UNKNOWN: &str = "it refuses a user without a name";

/// The server's first packet.
struct Greeting<'a> {
    capabilities: u32,
    salt: Vec<u8>,
    plugin: &'a [u8],
}

impl<'a> Greeting<'a> {
    fn read(payload: &'a [u8]) -> Option<Self> {
        let version = payload.get(1..)?;
        let end = version.iter().position(|byte| *byte == 0)?;
        // The number of the connection has 4 bytes, and a byte 0 ends the first part of the salt.
        let rest = version.get(end + 5..)?;
        let (first, rest) = rest.split_at_checked(8)?;
        let [_, low, low2, rest @ ..] = rest else { return None };
        // The character set and the status have 3 bytes.
        let more = rest.get(3..).unwrap_or_default();
        let [high, high2, _, more @ ..] = more else {
            let capabilities = u32::from_le_bytes([*low, *low2, 0, 0]);
            return Some(Self { capabilities, salt: first.to_vec(), plugin: b"" });
        };
        let second = more.get(10..).unwrap_or_default();
        let (salt, plugin) = second.split_at(second.len().min(13));
        let salt = [first, salt.strip_suffix(b"\0").unwrap_or(salt)].concat();
        let plugin = plugin.strip_suffix(b"\0").unwrap_or(plugin);
        let capabilities = u32::from_le_bytes([*low, *low2, *high, *high2]);
        Some(Self { capabilities, salt, plugin })
    }
}

/// The first packet: its number and its payload.
fn packet(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let [_, _, _, sequence, rest @ ..] = bytes else { return None };
    Some((*sequence, rest.get(..length(bytes)?)?))
}

fn length(bytes: &[u8]) -> Option<usize> {
    let [low, middle, high, ..] = bytes else { return None };
    usize::try_from(u32::from_le_bytes([*low, *middle, *high, 0])).ok()
}

/// Whether the packet can't be one of those that are waited for.
fn is_too_long(bytes: &[u8]) -> bool {
    length(bytes).is_some_and(|len| len + 4 > MOST_OF_ANSWER)
}

/// A packet. Payloads of checks have less than 16 MiB.
fn framed(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let [low, middle, high, ..] = payload.len().to_le_bytes();
    [&[low, middle, high, sequence], payload].concat()
}

/// The one value of a row, as text. Newer MariaDB has words for it.
fn is_read_only(row: &[u8]) -> Result<bool, String> {
    match row {
        [len, value @ ..] if usize::from(*len) == value.len() && !value.is_empty() => {
            Ok(!matches!(value, b"0" | b"OFF"))
        }
        _ => Err(not_mysql(row)),
    }
}

fn judged(role: Role, is_read_only: bool) -> Result<(), String> {
    match (role, is_read_only) {
        (Role::Primary, false) | (Role::Replica, true) => Ok(()),
        (Role::Primary, true) => Err("it is read-only, so it is a replica".to_owned()),
        (Role::Replica, false) => Err("it is not read-only, so it is a primary".to_owned()),
    }
}

/// The text of an error packet, and its number. The state is there only after the greeting.
fn error(payload: &[u8]) -> String {
    let [_, low, high, text @ ..] = payload else { return not_mysql(payload) };
    let number = u16::from_le_bytes([*low, *high]);
    let text = match text {
        [b'#', _, _, _, _, _, text @ ..] => text,
        text => text,
    };
    format!("{} ({number})", shown(text))
}

fn not_mysql(answer: &[u8]) -> String {
    format!("the answer is no MySQL: {}", shown(answer))
}

fn no_mysql(answer: &[u8]) -> Reply {
    Reply::Bad(not_mysql(answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::probe::talk::testing::facts;

    const OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];
    const SALT: [u8; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];
    const NATIVE_PROOF: &str = "b32bb3a583e1340c0a1108d58b1be49781ad8c2f";
    const SHA2_PROOF: &str = "746ebe205d56a0707acb3e796e834e0dd7b1d61743b26bd5202c7a623230c7c9";

    fn greeting(plugin: &[u8], capabilities: u32) -> Vec<u8> {
        let [low, low2, high, high2] = capabilities.to_le_bytes();
        let parts = [
            &b"\x0a8.0.36\0\x07\0\0\0"[..],
            &SALT[..8],
            &[0, low, low2, 45, 2, 0, high, high2, 21],
            &[0; 10],
            &SALT[8..],
            b"\0",
            plugin,
            b"\0",
        ];
        framed(0, &parts.concat())
    }

    fn login(role: Option<Role>) -> Login {
        Login { user: Some("me".to_owned()), role, ..Login::default() }
    }

    /// What is said to a greeting with this plugin, and the conversation after that.
    fn greeted<'c>(login: &'c Login, plugin: &[u8], facts: &Facts) -> (MysqlTalk<'c>, Reply) {
        let mut talk = MysqlTalk::new(login, facts);
        let greeting = greeting(plugin, CAPABILITIES | TLS);
        for end in 0..greeting.len() {
            assert_eq!(talk.reply(&greeting[..end], false), Reply::More);
        }
        let reply = talk.reply(&greeting, false);
        (talk, reply)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn said(reply: Reply) -> Vec<u8> {
        let Reply::Say { bytes, .. } = reply else { panic!("{reply:?}") };
        bytes
    }

    #[test]
    fn the_password_is_proven_and_not_told() {
        let login = login(None);
        for (plugin, proof) in [(NATIVE, NATIVE_PROOF), (SHA2, SHA2_PROOF)] {
            let (mut talk, reply) = greeted(&login, plugin, &facts(Some("secret")));
            let said = said(reply);
            assert_eq!((said[3], length(&said)), (1, Some(said.len() - 4)));
            assert_eq!(said[4..8], CAPABILITIES.to_le_bytes());
            let rest = said[36..].strip_prefix(b"me\0").expect("the user");
            let (len, rest) = rest.split_first().expect("a length");
            let (proven, name) = rest.split_at(usize::from(*len));
            assert_eq!((hex(proven).as_str(), name), (proof, &[plugin, b"\0"].concat()[..]));
            assert_eq!(talk.reply(&framed(2, OK), false), Reply::Good);
            assert_eq!(talk.farewell(), Farewell::Say(b"\x01\0\0\0\x01"));
        }
        let (mut talk, _) = greeted(&login, SHA2, &facts(Some("secret")));
        let other = [b"\xfe", NATIVE, b"\0", &SALT, b"\0"].concat();
        let proof = said(talk.reply(&framed(2, &other), false));
        assert_eq!((hex(&proof[4..]).as_str(), proof[3]), (NATIVE_PROOF, 3));
        assert_eq!(talk.reply(&framed(4, OK), false), Reply::Good);
    }

    #[test]
    fn clear_text_is_for_verified_tls() {
        let login = login(None);
        for channel in [Channel::Plain, Channel::Unverified, Channel::Verified] {
            let facts = Facts { channel, ..facts(Some("secret")) };
            let (mut talk, reply) = greeted(&login, SHA2, &facts);
            assert_eq!(matches!(reply, Reply::Secure { .. }), channel != Channel::Plain);
            if let Reply::Secure { bytes, then, .. } = reply {
                assert_eq!((bytes.len(), bytes[3], then[3]), (36, 1, 2));
                assert_eq!(bytes[4..], then[4..36]);
            }
            let told = said(talk.reply(&framed(4, &[1, 4]), false));
            if channel == Channel::Verified {
                assert_eq!(told, framed(5, b"secret\0"));
                assert_eq!(talk.reply(&framed(6, OK), false), Reply::Good);
            } else {
                assert_eq!(told, framed(5, b""));
                let Reply::Bad(why) = talk.reply(b"", true) else { panic!("it is good") };
                assert!(why.starts_with("it asks for the password in clear text"), "{why}");
            }
        }
        let (mut talk, _) = greeted(&login, SHA2, &facts(Some("secret")));
        assert_eq!(talk.reply(&framed(2, &[1, 3]), false), Reply::More, "its cache knows the user");
        let (mut talk, _) = greeted(&login, NATIVE, &facts(Some("secret")));
        assert_eq!(
            said(talk.reply(&framed(2, b"\xfeclient_ed25519\0salt"), false)),
            framed(3, b"")
        );
        let why = "it asks for a login by \"client_ed25519\", which a check can't";
        let denied = framed(4, b"\xff\x15\x04#28000Access denied");
        assert_eq!(talk.reply(&denied, false), Reply::bad(why));
    }

    #[test]
    fn without_a_user_a_refusal_is_good() {
        let login = Login::default();
        let (mut talk, reply) = greeted(&login, NATIVE, &facts(None));
        assert_eq!(&said(reply)[36..38], b"\0\0", "no user, and no password");
        let denied = framed(2, b"\xff\x15\x04#28000Access denied");
        assert_eq!(talk.reply(&denied, false), Reply::Good);
        let mut talk = MysqlTalk::new(&login, &facts(None));
        let blocked = framed(0, b"\xff\x69\x04Host '10.0.0.1' is blocked");
        assert_eq!(
            talk.reply(&blocked, false),
            Reply::bad("\"Host \\'10.0.0.1\\' is blocked\" (1129)")
        );
        let facts = Facts { channel: Channel::Unverified, ..facts(None) };
        let mut talk = MysqlTalk::new(&login, &facts);
        let plain = greeting(NATIVE, CAPABILITIES);
        assert_eq!(talk.reply(&plain, false), Reply::bad("it grants no TLS"));
    }

    #[test]
    fn the_role_is_whether_the_server_is_read_only() {
        for (role, value, verdict) in [
            (Role::Primary, "0", Reply::Good),
            (Role::Replica, "1", Reply::Good),
            (Role::Primary, "OFF", Reply::Good),
            (Role::Primary, "1", Reply::bad("it is read-only, so it is a replica")),
            (Role::Replica, "0", Reply::bad("it is not read-only, so it is a primary")),
        ] {
            let login = login(Some(role));
            let (mut talk, _) = greeted(&login, NATIVE, &facts(None));
            let question = said(talk.reply(&framed(2, OK), false));
            assert_eq!(question, framed(0, b"\x03SELECT @@global.read_only"));
            let row =
                [&[u8::try_from(value.len()).expect("it is short")], value.as_bytes()].concat();
            let end = b"\xfe\0\0\x02\0";
            let packets = [&b"\x01"[..], b"\x03def", end, &row, end];
            let answer: Vec<_> =
                (1..).zip(packets).flat_map(|(nth, packet)| framed(nth, packet)).collect();
            assert_eq!(talk.reply(&answer[..answer.len() - 1], false), Reply::More);
            assert_eq!(talk.reply(&answer, false), verdict);
            assert_eq!(talk.farewell(), Farewell::Say(QUIT));
        }
    }

    #[test]
    fn what_is_no_mysql() {
        let login = Login::default();
        for lie in
            [&b"HTTP/1.1 400 Bad Request"[..], b"\x01\0\0\0\x09", b"\x02\0\0\0\x0a8", b"SSH-2.0"]
        {
            let Reply::Bad(why) = MysqlTalk::new(&login, &facts(None)).reply(lie, true) else {
                panic!("{lie:?}")
            };
            assert!(why.starts_with("the answer "), "{why}");
        }
        let mut talk = MysqlTalk::new(&login, &facts(None));
        assert!(matches!(talk.reply(b"HTTP/1.1", false), Reply::Bad(_)), "it is not waited for");
    }
}
