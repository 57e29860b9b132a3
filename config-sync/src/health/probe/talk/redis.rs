//! Redis and what speaks its protocol (RESP 2): AUTH, and PING or ROLE.

use crate::health::probe::talk::reply::{Facts, Reply, shown};
use crate::model::health_check::{Login, Role};

#[derive(Debug)]
pub struct RedisTalk<'c> {
    login: &'c Login,
    awaits: Awaits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    Auth,
    Pong,
    Role(Role),
}

pub(super) const FAREWELL: &[u8] = b"*1\r\n$4\r\nQUIT\r\n";

impl<'c> RedisTalk<'c> {
    pub(super) fn new(login: &'c Login, facts: &Facts) -> (Self, Vec<u8>) {
        let mut talk = Self { login, awaits: Awaits::Auth };
        let Some(password) = &facts.password else {
            let question = talk.ask();
            return (talk, question);
        };
        let user = login.user.as_deref().map(str::as_bytes);
        let words: Vec<_> =
            [b"AUTH".as_slice()].into_iter().chain(user).chain([&**password]).collect();
        (talk, command(&words))
    }

    fn ask(&mut self) -> Vec<u8> {
        match self.login.role {
            None => {
                self.awaits = Awaits::Pong;
                command(&[b"PING"])
            }
            Some(role) => {
                self.awaits = Awaits::Role(role);
                command(&[b"ROLE"])
            }
        }
    }

    pub(super) fn reply(&mut self, answer: &[u8], ended: bool) -> Reply {
        let Some((line, taken)) = line(answer) else {
            return match ended {
                true => Reply::Bad(format!("the answer does not end: {}", shown(answer))),
                false => Reply::More,
            };
        };
        match (self.awaits, line) {
            (_, [b'-', error @ ..]) => Reply::Bad(format!("the answer is {}", shown(error))),
            (Awaits::Auth, b"+OK") => Reply::Say { taken, bytes: self.ask() },
            (Awaits::Pong, b"+PONG") => Reply::Good,
            (Awaits::Role(asked), [b'*', ..]) => role(&answer[taken..], asked, ended),
            _ => Reply::Bad(format!("the answer is {}", shown(line))),
        }
    }
}

/// The first element of the answer to ROLE.
fn role(answer: &[u8], asked: Role, ended: bool) -> Reply {
    let whole = line(answer).and_then(|(length, taken)| {
        let (word, _) = line(&answer[taken..])?;
        Some((length, word))
    });
    match whole {
        None if !ended => Reply::More,
        Some((b"$6", b"master")) if asked == Role::Primary => Reply::Good,
        Some((b"$5", b"slave")) if asked == Role::Replica => Reply::Good,
        Some((_, word)) => Reply::Bad(format!("its role is {}", shown(word))),
        None => Reply::Bad(format!("the answer does not end: {}", shown(answer))),
    }
}

/// The first line without its end, and its length with it.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], end + 2))
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::probe::talk::testing::facts;

    #[test]
    fn ping_is_answered_by_pong() {
        let login = Login::default();
        let (mut talk, said) = RedisTalk::new(&login, &facts(None));
        assert_eq!(said, b"*1\r\n$4\r\nPING\r\n");
        assert_eq!(talk.reply(b"+PON", false), Reply::More);
        assert_eq!(talk.reply(b"+PONG\r\n", false), Reply::Good);
        let refused = talk.reply(b"-NOAUTH Authentication required.\r\n", false);
        assert_eq!(refused, Reply::bad("the answer is \"NOAUTH Authentication required.\""));
        assert_eq!(talk.reply(b"+PO", true), Reply::bad("the answer does not end: \"+PO\""));
        assert_eq!(talk.reply(b"HTTP/1.1\r\n", true), Reply::bad("the answer is \"HTTP/1.1\""));
    }

    #[test]
    fn auth_comes_first_and_the_role_is_the_first_word() {
        let login =
            Login { user: Some("me".to_owned()), role: Some(Role::Replica), ..Login::default() };
        let (mut talk, said) = RedisTalk::new(&login, &facts(Some("secret")));
        assert_eq!(said, b"*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$6\r\nsecret\r\n");
        let bytes = b"*1\r\n$4\r\nROLE\r\n".to_vec();
        assert_eq!(talk.reply(b"+OK\r\n", false), Reply::Say { taken: 5, bytes });
        assert_eq!(talk.reply(b"*5\r\n$5\r\nsla", false), Reply::More);
        assert_eq!(talk.reply(b"*5\r\n$5\r\nslave\r\n$9\r\n", false), Reply::Good);
        let master = talk.reply(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", false);
        assert_eq!(master, Reply::bad("its role is \"master\""));
        assert_eq!(talk.reply(b"*0\r\n", true), Reply::bad("the answer does not end: \"\""));
    }
}
