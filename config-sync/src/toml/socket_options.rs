//! The keys of socket options, which listeners and backends share.

use toml::de::DeValue;

use crate::machine::Machine;
use crate::table::routing::SocketOptions;
use crate::toml::reader::{Reader, Table, boolean, or, string};
use crate::toml::values::{keepalive, user_timeout};

pub(crate) fn options<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    machine: &Machine,
    default: SocketOptions,
) -> SocketOptions {
    let congestion = |value| congestion(value, machine);
    SocketOptions {
        nodelay: or(reader.get(table, "nodelay", boolean), default.nodelay),
        keepalive: or(reader.get(table, "keepalive", keepalive), default.keepalive),
        user_timeout: or(reader.get(table, "user_timeout", user_timeout), default.user_timeout),
        congestion: or(reader.get(table, "congestion", congestion), default.congestion),
    }
}

/// A congestion control that this kernel has.
pub(crate) fn congestion(value: &DeValue<'_>, machine: &Machine) -> Result<[u8; 16], String> {
    let name = string(value)?;
    let padded = padded(name).ok_or_else(|| "must be at most 15 characters".to_owned())?;
    if name.is_empty() || machine.congestion.iter().any(|known| known == name) {
        return Ok(padded);
    }
    let known = machine.congestion.join(", ");
    Err(format!("this kernel has no \"{name}\" loaded; it has {known}"))
}

/// The name with its NUL, padded to the 16 bytes that the kernel takes (`TCP_CA_NAME_MAX`).
fn padded(name: &str) -> Option<[u8; 16]> {
    let mut padded = [0; 16];
    padded[..15].get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    Some(padded)
}
