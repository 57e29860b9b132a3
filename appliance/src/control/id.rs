//! The id of a session or flow, in the log and in the API.

use std::fmt;
use std::str::FromStr;

use config_sync::table::request::{Handle, Of};
use serde::{Serialize, Serializer};

/// Names one session or flow: its worker, its handle there, and the run of the process. An id of an
/// earlier run names nothing, so that nobody kills the wrong session after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    pub worker: usize,
    pub handle: Handle,
    pub run: Run,
}

/// A number that was drawn when the process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run(pub u32);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, handle: Handle { of, slot, generation }, run: Run(run) } = self;
        let letter = match of {
            Of::Sessions => 's',
            Of::Flows => 'f',
        };
        write!(f, "{letter}{worker}-{slot:x}-{generation:x}-{run:08x}")
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            format!("{text:?} is no id of a session or flow, such as s0-1f-2-9ac1e07b")
        })
    }
}

fn parse(text: &str) -> Option<Id> {
    let hex = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(text, 16).ok().filter(|_| digits && text.len() <= 8)
    };
    let of = match text.as_bytes().first()? {
        b's' => Of::Sessions,
        b'f' => Of::Flows,
        _ => return None,
    };
    let mut parts = text[1..].split('-');
    let worker = parts.next()?;
    let worker = worker.parse::<u16>().ok().filter(|_| !worker.starts_with('+'))?.into();
    let (slot, generation) = (hex(parts.next()?)?, hex(parts.next()?)?);
    let run = Run(hex(parts.next()?)?);
    parts.next().is_none().then_some(Id { worker, handle: Handle { of, slot, generation }, run })
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_shown() {
        for of in [Of::Sessions, Of::Flows] {
            let handle = Handle { of, slot: 0x1f, generation: 2 };
            let id = Id { worker: 12, handle, run: Run(0x9a_c1e0) };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        let handle = Handle { of: Of::Flows, slot: 0, generation: 10 };
        let shown = Id { worker: 0, handle, run: Run(u32::MAX) }.to_string();
        assert_eq!(shown, "f0-0-a-ffffffff");
    }

    #[test]
    fn all_else_is_no_id() {
        let texts = [
            "",
            "s",
            "s0",
            "s0-1-2",
            "s0-1-2-3-4",
            "x0-1-2-3",
            "s-1-2-3",
            "s0-g-2-3",
            "s+1-1-2-3",
            "s0-+1-2-3",
            "s0-111111111-2-3",
            "s99999-1-2-3",
            "\u{e9}0-1-2-3",
        ];
        assert!(texts.iter().all(|text| text.parse::<Id>().is_err()));
    }
}
