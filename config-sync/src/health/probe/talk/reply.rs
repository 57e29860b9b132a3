//! What to do after the bytes of an answer.

/// The most bytes of one answer that are looked at.
pub const MOST_OF_ANSWER: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The answer is not whole yet.
    More,
    Good,
    /// The text says what is wrong with the answer.
    Bad(String),
}
