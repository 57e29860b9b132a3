//! What to do after the bytes of an answer.

/// The most bytes of one answer that are looked at.
pub const MOST_OF_ANSWER: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The answer is not whole yet.
    More,
    /// Forget this many bytes of the answer, say these bytes, and wait for the next answer.
    Say {
        taken: usize,
        bytes: Vec<u8>,
    },
    /// Forget this many bytes of the answer, say these bytes, begin TLS, and say the others within.
    /// That nothing of the answer may be left is the driver's to see to.
    Secure {
        taken: usize,
        bytes: Vec<u8>,
        then: Vec<u8>,
    },
    Good,
    /// The check is good, and the endpoint asks for this share of its weight, in percent.
    Share(u16),
    /// The text says what is wrong with the answer.
    Bad(String),
}

impl Reply {
    pub(super) fn bad(why: impl Into<String>) -> Self {
        Self::Bad(why.into())
    }
}

/// How a conversation ends once the verdict is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// At once, by a reset.
    Reset,
    /// After a good answer the endpoint gets a moment to close first.
    Wait,
    /// These bytes make the endpoint close.
    Say(&'static [u8]),
    /// The endpoint is told that no more comes, because it would log a reset.
    End,
}

/// What a password would go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Plain,
    /// TLS with whoever answers.
    Unverified,
    /// TLS with an endpoint whose certificate is good.
    Verified,
}

/// The facts of one check that its settings do not have.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The name to ask for.
    pub host: String,
    /// The local address of the connection.
    pub local: std::net::SocketAddr,
    /// The content of `password_file`.
    pub password: Option<Vec<u8>>,
    /// Nobody can foresee this number.
    pub random: u64,
    /// What the check speaks over. Some types begin in clear, and go on over TLS.
    pub channel: Channel,
}

/// The beginning of an answer, for the log.
pub(super) fn shown(answer: &[u8]) -> String {
    let part = &answer[..answer.len().min(80)];
    let more = if part.len() < answer.len() { "..." } else { "" };
    format!("\"{}{more}\"", part.escape_ascii())
}
