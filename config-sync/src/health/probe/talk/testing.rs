//! For tests of the conversations.

use crate::health::probe::talk::reply::{Channel, Facts};

pub(super) fn facts(password: Option<&str>) -> Facts {
    Facts {
        host: "host.example".to_owned(),
        local: "127.0.0.1:1000".parse().expect("an address"),
        password: password.map(|password| password.as_bytes().to_vec()),
        random: 0x0102_0304_0506_0708,
        channel: Channel::Plain,
    }
}
