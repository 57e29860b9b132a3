//! The keys that say where a listener listens.

use nix::unistd::{Group, User};
use toml::de::DeValue;

use crate::model::listener::NamedOwner;
use crate::model::place::At;
use crate::table::address::{Address, Interface, Owner, UNIX, UnixPath};
use crate::table::routing::Protocol;
use crate::toml::reader::{Read, Reader, Table, boolean, or, string};
use crate::toml::values::{interface, listen_address};

/// Where a listener listens.
pub(crate) struct Binding {
    pub(crate) addresses: Vec<At<Address>>,
    pub(crate) interface: Option<Interface>,
    pub(crate) freebind: bool,
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<NamedOwner>,
}

/// The most ports of one range.
pub(crate) const MOST_PORTS: u16 = 1_000;

/// Reads the keys of a listener's sockets. `given` has the addresses as they stand in the file.
pub(crate) fn binding<'t>(
    reader: &mut Reader<'t>,
    table: &Table<'t>,
    given: Vec<At<Vec<Address>>>,
    protocol: Option<Protocol>,
) -> Binding {
    let mut addresses = Vec::new();
    let is_udp = protocol == Some(Protocol::Udp);
    for At { value, place } in given {
        if is_udp && value.iter().any(|address| address.unix().is_some()) {
            reader.refuse(&place, "a Unix socket is for TCP and TLS listeners only");
        }
        addresses.extend(value.into_iter().map(|value| At { value, place: place.clone() }));
    }
    let has_unix = addresses.iter().any(|at| at.value.unix().is_some());
    let has_ip = addresses.iter().any(|at| at.value.ip().is_some());
    if !addresses.is_empty() {
        let unix = [("mode", has_unix), ("owner", has_unix)].map(|key| (key, "Unix sockets"));
        let ip = [("interface", has_ip), ("freebind", has_ip)].map(|key| (key, "IP addresses"));
        for ((key, _), of) in unix.into_iter().chain(ip).filter(|((_, has), _)| !has) {
            let message = format!("is for {of} only, and the listener has none");
            reader.get(table, key, |_| Err::<(), _>(message));
        }
    }
    Binding {
        addresses,
        interface: reader.get(table, "interface", interface).map(|at| at.value),
        freebind: or(reader.get(table, "freebind", boolean), false),
        mode: reader.get(table, "mode", mode).map(|at| at.value),
        owner: reader.get(table, "owner", owner).map(|at| at.value),
    }
}

/// Reads an address of a listener: one address, the ports of a range, or a Unix socket.
pub(crate) fn bind_address(value: &DeValue<'_>) -> Read<Vec<Address>> {
    if let Some(name) = value.as_str().and_then(|text| text.strip_prefix(UNIX)) {
        return Ok(vec![Address::Unix(UnixPath::new(name)?)]);
    }
    let range = value.as_str().and_then(port_range);
    let Some((host, first, last)) = range else {
        return listen_address(value).map(|address| vec![address.into()]);
    };
    let begin = listen_address(&DeValue::String(format!("{host}:{first}").into()))?;
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
        return Err(format!("\"{first}-{last}\" is no range of ports; a port is 1 to 65535"));
    };
    if last <= first {
        return Err(format!("\"{first}-{last}\" is no range: the second port must be the greater"));
    }
    if last - first >= MOST_PORTS {
        let ports = u32::from(last - first) + 1;
        return Err(format!("the range has {ports} ports; {MOST_PORTS} at the most"));
    }
    let at = |port| {
        let mut address = begin;
        address.set_port(port);
        address.into()
    };
    Ok((first..=last).map(at).collect())
}

/// The host, the first port and the last port of `HOST:FIRST-LAST`.
fn port_range(text: &str) -> Option<(&str, &str, &str)> {
    let (host, ports) = text.rsplit_once(':')?;
    let (first, last) = ports.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(first) && is_number(last)).then_some((host, first, last))
}

fn mode(value: &DeValue<'_>) -> Read<u32> {
    let text = string(value).map_err(|message| format!("{message}; {MODE}"))?;
    let is_octal = matches!(text.len(), 3 | 4) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    mode.ok_or_else(|| format!("\"{text}\" is no mode; {MODE}"))
}

const MODE: &str = "a mode is three or four octal digits, such as \"0660\"";

/// `USER`, `USER:GROUP` or `:GROUP`, by name or number.
fn owner(value: &DeValue<'_>) -> Read<NamedOwner> {
    let text = string(value)?;
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    if user.is_empty() && group.is_empty() {
        return Err("must be a user, \"user:group\" or \":group\"".to_owned());
    }
    let look_up = |name: &str, what, found: Option<u32>| match name {
        "" => Ok(None),
        name => match name.parse::<u32>().ok().or(found) {
            Some(id) => Ok(Some(id)),
            None => Err(format!("this machine has no {what} \"{name}\"")),
        },
    };
    let user_id = User::from_name(user).ok().flatten().map(|user| user.uid.as_raw());
    let group_id = Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw());
    let owner =
        Owner { user: look_up(user, "user", user_id)?, group: look_up(group, "group", group_id)? };
    Ok(NamedOwner { text: text.to_owned(), owner })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Read<Vec<String>> {
        let read = bind_address(&DeValue::String(text.into()))?;
        Ok(read.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_listener_is_on_an_address_a_range_of_ports_or_a_unix_socket() {
        for text in ["0.0.0.0:53", "[fe80::1%lo]:53", "unix:/run/x.sock", "unix:@name"] {
            assert_eq!(said(text), Ok(vec![text.to_owned()]));
        }
        let range = ["[::1]:65534".to_owned(), "[::1]:65535".to_owned()];
        assert_eq!(said("[::1]:65534-65535"), Ok(range.into()));
        assert_eq!(said("0.0.0.0:20000-20999").expect("1,000 ports").len(), 1_000);
        for (text, hint) in [
            ("0.0.0.0:20000-21000", "1001 ports; 1000 at the most"),
            ("0.0.0.0:2-2", "the second port must be the greater"),
            ("0.0.0.0:9-3", "the second port must be the greater"),
            ("0.0.0.0:0-3", "the port must be 1 to 65535"),
            ("0.0.0.0:9-65536", "a port is 1 to 65535"),
            (":1-9", "must be IP:PORT"),
            ("unix:run/x.sock", "an absolute path such as"),
            ("unix:@", "an absolute path such as"),
            ("unix:/run/", "an absolute path such as"),
            ("[fe80::1%nowhere]:53", "no interface \"nowhere\"; it has "),
            ("[fe80::1]:53", "[fe80::1%eth0]:53"),
            ("[2001:db8::1%lo]:53", "have a scope"),
        ] {
            let message = said(text).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(said(&long).unwrap_err().contains("108 bytes; 107 at the most"));
    }

    #[test]
    fn modes_and_owners() {
        let read = |text: &str| mode(&DeValue::String(text.to_owned().into()));
        assert_eq!((read("0660"), read("777")), (Ok(0o660), Ok(0o777)));
        for wrong in ["", "66", "0o660", "1777", "0888", "rw-"] {
            assert!(read(wrong).unwrap_err().contains("such as \"0660\""), "{wrong}");
        }
        let read = |text: &str| owner(&DeValue::String(text.to_owned().into()));
        let expected = Owner { user: Some(0), group: Some(12) };
        assert_eq!(read("root:12").map(|named| named.owner), Ok(expected));
        let expected = Owner { user: None, group: Some(0) };
        assert_eq!(read(":root").map(|named| named.owner), Ok(expected));
        assert!(read("nobody-of-that-name").unwrap_err().contains("has no user"));
        assert!(read(":").unwrap_err().contains("\"user:group\""));
    }
}
