//! Alerts of TLS (RFC 8446, section 6).

#![forbid(unsafe_code)]

/// A fatal alert, with its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    /// A message could not be read (RFC 8446, section 6.2).
    DecodeError = 50,
    /// The server has a fault that has nothing to do with the client (RFC 8446, section 6.2).
    InternalError = 80,
    /// A server name is needed, and none was sent (RFC 8446, section 9.2).
    MissingExtension = 109,
    /// Nobody has the server name that was sent (RFC 6066, section 3).
    UnrecognizedName = 112,
    /// None of the protocols that were offered is there (RFC 7301, section 3.2).
    NoApplicationProtocol = 120,
}

impl Alert {
    /// The alert as a record that is not encrypted: before any key is agreed on (RFC 8446, section
    /// 5.1).
    pub fn record(self) -> [u8; 7] {
        const ALERT: u8 = 21;
        let [level, description] = self.message();
        [ALERT, 3, 3, 0, 2, level, description]
    }

    /// The alert without a record.
    pub fn message(self) -> [u8; 2] {
        const FATAL: u8 = 2;
        [FATAL, self as u8]
    }
}
