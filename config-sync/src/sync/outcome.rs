//! What became of a wish, and how long that took.

/// The time that the latest table took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Parsing, checking and compiling.
    pub compile_micros: u64,
    /// Opening the table's new sockets, and handing the table out.
    pub publish_micros: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Published {
        generation: u64,
    },
    /// The text of the file is the text that was looked at last, or the process is draining.
    Unchanged,
    /// The configuration in force stays. The text is for the operator, and has every fault, one per
    /// line.
    Rejected(String),
}
