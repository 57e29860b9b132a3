//! Says what a request is for, in 64 bits that come back in its completions.

use crate::contract::Side;

/// The purpose of an entry, which comes back in its completions. 64 bits: what (4), side (4), slot
/// (32), generation (24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserData {
    pub what: What,
    pub side: Side,
    pub slot: u32,
    pub generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A cancellation that found nothing. Nothing waits for this completion.
    Ignored = 0,
    /// The eventfd of commands.
    Wake = 1,
    /// Multishot accept on a listening socket.
    Accept = 2,
    /// The pause before a listening socket is closed.
    Lull = 3,
    /// Multishot poll on one side of a session.
    Poll = 4,
    /// Multishot receive on a UDP listening socket.
    ReceiveDown = 5,
    /// Multishot receive on an upstream socket.
    ReceiveUp = 6,
    /// The slot is an index into the sends of one turn.
    Send = 7,
    /// Multishot receive on one side of a session.
    Stream = 8,
    /// A descriptor for a registered file.
    Install = 9,
}

impl UserData {
    pub fn new(what: What, slot: u32, generation: u32) -> Self {
        Self { what, side: Side::Client, slot, generation }
    }

    pub fn poll(side: Side, slot: u32, generation: u32) -> Self {
        Self { what: What::Poll, side, slot, generation }
    }

    pub fn stream(side: Side, slot: u32, generation: u32) -> Self {
        Self { what: What::Stream, side, slot, generation }
    }

    pub fn encode(self) -> u64 {
        let side = u64::from(self.side == Side::Endpoint);
        (self.what as u64)
            | side << 4
            | u64::from(self.slot) << 8
            | u64::from(self.generation & 0xff_ffff) << 40
    }

    #[expect(clippy::cast_possible_truncation, reason = "the fields are taken out of their bits")]
    pub fn decode(data: u64) -> Self {
        let what = match data & 15 {
            1 => What::Wake,
            2 => What::Accept,
            3 => What::Lull,
            4 => What::Poll,
            5 => What::ReceiveDown,
            6 => What::ReceiveUp,
            7 => What::Send,
            8 => What::Stream,
            9 => What::Install,
            _ => What::Ignored,
        };
        let side = if data >> 4 & 1 == 0 { Side::Client } else { Side::Endpoint };
        Self { what, side, slot: (data >> 8) as u32, generation: (data >> 40) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_their_64_bits() {
        let slots = [0, 1, 0x8000_0001, u32::MAX];
        for what in [What::Ignored, What::Wake, What::Accept, What::Lull, What::Poll, What::Stream]
        {
            for (side, slot) in [Side::Client, Side::Endpoint].iter().zip(slots.repeat(2)) {
                let user_data = UserData { what, side: *side, slot, generation: 0xff_fffe };
                assert_eq!(UserData::decode(user_data.encode()), user_data);
            }
        }
    }
}
