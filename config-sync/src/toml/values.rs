//! Readers of single values of a configuration: durations, addresses, names. A reader that refuses
//! a value says what is allowed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;

use crate::machine;
use crate::model::admission::{read_range, unmapped};
use crate::model::endpoint::{Address, DnsName};
use crate::table::address::{EndpointAddress, Interface, UNIX, UnixPath};
use crate::table::routing::Sources;
use crate::toml::reader::{Read, string};

/// A duration in milliseconds, up to 1193 hours: one or more pairs of number and unit, such as
/// `"1h30m"` (the form of the Gateway API, GEP-2257).
pub(crate) fn duration(value: &DeValue<'_>) -> Read<u32> {
    let text = string(value).map_err(|message| format!("{message}; {DURATION}"))?;
    let millis =
        parse_duration(text).ok_or_else(|| format!("\"{text}\" is no duration; {DURATION}"))?;
    u32::try_from(millis).map_err(|_| format!("\"{text}\" is too long; at most \"1193h\""))
}

const DURATION: &str = "a duration is a number and ms, s, m or h, such as \"300ms\", \"5s\" or \
                        \"1h30m\"; \"0s\" is off";

/// A duration of at least `least`. "0s" for off is refused, because off would make no sense.
pub(crate) fn duration_from(least: Duration) -> impl Fn(&DeValue<'_>) -> Read<u32> {
    move |value| {
        let millis = duration(value)?;
        let refused = || format!("must be at least \"{}ms\"; it can't be off", least.as_millis());
        (u128::from(millis) >= least.as_millis()).then_some(millis).ok_or_else(refused)
    }
}

/// Whole seconds for keepalive, as the kernel counts (tcp(7), `TCP_KEEPIDLE`: up to 32,767).
pub(crate) fn keepalive(value: &DeValue<'_>) -> Read<u32> {
    let millis = duration(value)?;
    let refused = || "must be whole seconds, \"0s\" (off) to \"32767s\"".to_owned();
    (millis % 1000 == 0 && millis <= 32_767_000).then_some(millis / 1000).ok_or_else(refused)
}

/// Milliseconds that fit the kernel's signed number (tcp(7), `TCP_USER_TIMEOUT`).
pub(crate) fn user_timeout(value: &DeValue<'_>) -> Read<u32> {
    let millis = duration(value)?;
    let refused = || "must be at most \"596h\"".to_owned();
    i32::try_from(millis).is_ok().then_some(millis).ok_or_else(refused)
}

fn parse_duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut millis = 0u64;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) =
            tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let scale = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let part = number.parse::<u64>().ok()?.checked_mul(scale)?;
        millis = millis.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(millis)
}

/// The name of a listener, route or backend. The name becomes a label of metrics and a word in the
/// log.
pub(crate) fn name(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if text.is_empty() || text.len() > 253 || !text.chars().all(plain) {
        return Err("must be 1 to 253 of the characters a-z A-Z 0-9 - _ . / :".to_owned());
    }
    Ok(text.to_owned())
}

/// A host name (RFC 1123), in lower case; the first label may be `*`. An underscore is allowed too.
/// No host may have an underscore in its name, but clients ask for such names (of containers, for
/// example), and DNS has such names (RFC 2181, section 11).
pub(crate) fn hostname(value: &DeValue<'_>) -> Read<String> {
    read_hostname(string(value)?)
}

/// A name that a client can ask for.
pub(crate) fn exact_hostname(value: &DeValue<'_>) -> Read<String> {
    let name = hostname(value)?;
    if name.starts_with("*.") {
        return Err(format!("\"{name}\" is a pattern; give one name, such as \"db.example.com\""));
    }
    Ok(name)
}

pub(crate) fn read_hostname(text: &str) -> Read<String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !name.split('.').all(label) || name.parse::<IpAddr>().is_ok() {
        return Err(format!(
            "\"{text}\" is no host name (RFC 1123): labels of letters, digits, underscores and \
             inner hyphens, such as \"db.example.com\"; the first may be *, as in \"*.example.com\""
        ));
    }
    Ok(text.to_ascii_lowercase())
}

/// The address of a listener or of the admin API.
pub(crate) fn listen_address(value: &DeValue<'_>) -> Read<SocketAddr> {
    socket_address(value, |port| {
        format!("every address is written \"0.0.0.0:{port}\" (IPv4) or \"[::]:{port}\" (IPv6)")
    })
}

/// The address of an endpoint: IP:PORT, NAME:PORT, or `srv:` and the name of a service.
pub(crate) fn endpoint(value: &DeValue<'_>) -> Read<Address> {
    let text = value.as_str().unwrap_or_default();
    if let Some(name) = text.strip_prefix(UNIX) {
        return Ok(Address::Fixed(EndpointAddress::At(UnixPath::new(name)?.into())));
    }
    if let Some(service) = text.strip_prefix("srv:") {
        return dns_name(service).map(|name| Address::Name(DnsName::Service(name.into())));
    }
    if let Some((host, shift)) = text.rsplit_once(":+") {
        return shifted(text, host, shift).map(Address::Fixed);
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && is_dns_name(host)
    {
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(PORT)?;
        let host = dns_name(host)?.into();
        return Ok(Address::Name(DnsName::Host { host, port }));
    }
    if is_dns_name(text) {
        return Err(format!("the port is missing: write \"{text}:5432\", with the right port"));
    }
    let address = socket_address(value, |port| {
        format!("the IP address is missing; on this machine it is \"127.0.0.1:{port}\"")
    })?;
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("{} is not the address of one machine", address.ip()));
    }
    Ok(Address::Fixed(address.into()))
}

/// The address of an endpoint whose port depends on the client's.
fn shifted(text: &str, host: &str, shift: &str) -> Read<EndpointAddress> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip = match bare {
        Some(v6) => v6.parse().map(IpAddr::V6),
        None => host.parse().map(IpAddr::V4),
    };
    let is_number = shift.bytes().all(|byte| byte.is_ascii_digit());
    let shift = shift.parse::<u16>().ok().filter(|_| is_number);
    let (Ok(ip), Some(shift)) = (ip, shift) else {
        return Err(format!(
            "\"{text}\" must be IP:+NUMBER, such as \"10.0.0.1:+0\" (the client's port) or \
             \"[2001:db8::1]:+1000\""
        ));
    };
    unmapped(ip)?;
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} is not the address of one machine"));
    }
    Ok(EndpointAddress::Shifted { ip, shift })
}

/// Whether a text is meant as a name: an IPv4 address has no letter, and IPv6 has colons.
fn is_dns_name(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_alphabetic()) && !text.contains([':', '['])
}

/// One name that the DNS can be asked for, in lower case and without the last dot.
pub(crate) fn dns_name(text: &str) -> Read<String> {
    let name = read_hostname(text.strip_suffix('.').unwrap_or(text))?;
    match name.starts_with("*.") || !is_dns_name(&name) {
        true => Err(format!("\"{text}\" is not the name of one host, such as \"db.example.com\"")),
        false => Ok(name),
    }
}

/// Local addresses to connect from: one address, or all addresses of a prefix.
pub(crate) fn source(value: &DeValue<'_>) -> Read<Sources> {
    let text = string(value)?;
    let no_source = || {
        format!(
            "\"{text}\" is no IP address or prefix; a source has no port, such as \"10.0.0.2\" or \
             \"10.1.0.0/16\""
        )
    };
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let first = address.parse::<IpAddr>().map_err(|_| no_source())?;
    if first.is_unspecified() || first.is_multicast() {
        return Err(format!("{first} is not the address of one machine"));
    }
    unmapped(first)?;
    let Some(prefix) = prefix else { return Ok(first.into()) };
    let (bits, length) = match first {
        IpAddr::V4(first) => (u128::from(first.to_bits()), 32),
        IpAddr::V6(first) => (first.to_bits(), 128),
    };
    let prefix = prefix.parse::<u32>().ok().filter(|prefix| (1..=length).contains(prefix));
    let free = length - prefix.ok_or_else(no_source)?;
    if bits.trailing_zeros() < free {
        return Err(format!("\"{text}\" has bits behind its prefix; they must be 0"));
    }
    Ok(Sources { first, count: 1 << free.min(MOST_SOURCES) })
}

/// Addresses of clients: one address, or all addresses of a prefix.
pub(crate) fn range(value: &DeValue<'_>) -> Read<IpNet> {
    read_range(string(value)?)
}

/// The most source addresses of one prefix, as a power of two. A worker can have that many flows.
const MOST_SOURCES: u32 = 20;

/// `portless` gives the hint for a value that is only a port.
fn socket_address(value: &DeValue<'_>, portless: impl Fn(&str) -> String) -> Read<SocketAddr> {
    const FORM: &str = "must be IP:PORT, such as \"10.0.0.1:5432\" or \"[2001:db8::1]:5432\"";
    let text = string(value).map_err(|message| format!("{message}; it {FORM}"))?;
    let (bare, scope) = scope(text)?.unwrap_or_else(|| (text.to_owned(), 0));
    if let Ok(address) = bare.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err(PORT.to_owned());
        }
        unmapped(address.ip())?;
        return scoped(address, scope);
    }
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let hint = if text.parse::<IpAddr>().is_ok() {
        "the port is missing".to_owned()
    } else if matches!(host, "" | "*") && is_number(port) {
        portless(port)
    } else if is_number(text) {
        portless(text)
    } else if bare.parse::<IpAddr>().is_ok() && is_number(port) {
        PORT.to_owned()
    } else if host.contains(|c: char| c.is_ascii_alphabetic()) && !host.contains(':') {
        "a name can't be listened on; give an IP address".to_owned()
    } else {
        "this is neither IPv4 nor IPv6 with a port".to_owned()
    };
    Err(format!("{FORM}, not \"{text}\": {hint}"))
}

/// The address without its scope, and the number of the scope's interface. `[fe80::1%eth0]:53` has
/// the scope `eth0`.
fn scope(text: &str) -> Read<Option<(String, u32)>> {
    let parts = text.strip_prefix('[').and_then(|text| text.split_once(']'));
    let Some(((ip, scope), port)) = parts.and_then(|(ip, port)| Some((ip.split_once('%')?, port)))
    else {
        return Ok(None);
    };
    let (_, index) = machine::interface(scope).ok_or_else(|| no_interface(scope))?;
    Ok(Some((format!("[{ip}]{port}"), index)))
}

/// A network interface of this machine, by its name.
pub(crate) fn interface(value: &DeValue<'_>) -> Read<Interface> {
    let name = string(value)?;
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    let found = machine::interface(name).filter(|_| !is_number);
    let (name, index) = found.ok_or_else(|| no_interface(name))?;
    Ok(Interface { name: name.into(), index })
}

fn no_interface(name: &str) -> String {
    let known = machine::interfaces().join(", ");
    format!("this machine has no interface \"{name}\"; it has {known}")
}

/// The address with the scope that it needs, if any.
fn scoped(address: SocketAddr, scope: u32) -> Read<SocketAddr> {
    let SocketAddr::V6(mut v6) = address else { return Ok(address) };
    let (ip, port) = (*v6.ip(), v6.port());
    match (ip.is_unicast_link_local(), scope) {
        (true, 0) => Err(format!(
            "{ip} is link-local, so its interface must be named, such as \"[{ip}%eth0]:{port}\""
        )),
        (false, scope) if scope != 0 => {
            Err(format!("only link-local addresses have a scope; write \"[{ip}]:{port}\""))
        }
        _ => {
            v6.set_scope_id(scope);
            Ok(v6.into())
        }
    }
}

const PORT: &str = "the port must be 1 to 65535";

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(reader: impl Fn(&DeValue<'_>) -> Read<T>, text: &str) -> Read<T> {
        reader(&DeValue::String(text.into()))
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0s", 0),
            ("300ms", 300),
            ("5s", 5_000),
            ("1h30m", 5_400_000),
            ("1193h", 4_294_800_000),
        ] {
            assert_eq!(read(duration, text), Ok(millis), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.5s", "5 s", "5S", "1d", "99999999999999999999s", "5s1"]
        {
            assert!(read(duration, text).unwrap_err().contains("\"300ms\""), "{text}");
        }
        assert!(read(duration, "1194h").unwrap_err().contains("too long"));
        assert_eq!(read(keepalive, "1m"), Ok(60));
        assert!(read(keepalive, "500ms").is_err() && read(keepalive, "32768s").is_err());
        assert!(read(user_timeout, "597h").is_err());
        assert!(read(duration_from(Duration::from_millis(100)), "99ms").is_err());
    }

    #[test]
    fn host_names_are_stored_in_lower_case() {
        assert_eq!(read(hostname, "DB.Example.com"), Ok("db.example.com".to_owned()));
        assert_eq!(read(hostname, "*.Example.com"), Ok("*.example.com".to_owned()));
        assert_eq!(read(hostname, "my_DB.shop"), Ok("my_db.shop".to_owned()));
        for text in
            ["", "*", "*.", ".", "a..b", "-a.b", "a-.b", "a.*.b", "ä.de", "10.0.0.1", "a.", "*.*.b"]
        {
            assert!(read(hostname, text).unwrap_err().contains("RFC 1123"), "{text}");
        }
        assert!(read(hostname, &"a".repeat(64)).is_err());
        assert!(read(hostname, &"a.".repeat(127)).is_err());
    }

    #[test]
    fn addresses_say_what_is_wrong_with_them() {
        assert_eq!(
            read(endpoint, "[::1]:53"),
            Ok(Address::Fixed("[::1]:53".parse::<SocketAddr>().expect("address").into()))
        );
        let host = |host: &str, port| Ok(Address::Name(DnsName::Host { host: host.into(), port }));
        assert_eq!(read(endpoint, "DB.internal.:5432"), host("db.internal", 5432));
        assert_eq!(read(endpoint, "localhost:80"), host("localhost", 80));
        let service = Address::Name(DnsName::Service("_pg._tcp.example.com".into()));
        assert_eq!(read(endpoint, "srv:_pg._tcp.Example.com"), Ok(service));
        for (text, hint) in [
            ("db.internal:0", "the port must be 1 to 65535"),
            ("db.internal:http", "the port must be 1 to 65535"),
            ("-db.internal:80", "is no host name (RFC 1123)"),
            ("*.internal:80", "is not the name of one host"),
            ("srv:*.internal", "is not the name of one host"),
            ("srv:", "is no host name (RFC 1123)"),
            ("localhost", "the port is missing: write \"localhost:5432\""),
            ("10.0.0.1", "port is missing"),
            ("::1", "port is missing"),
            ("10.0.0.256:80", "neither"),
            ("10.0.0.1:0", "1 to 65535"),
            ("10.0.0.1:99999", "the port must be 1 to 65535"),
            ("[::1]:99999", "the port must be 1 to 65535"),
            (":80", "on this machine it is \"127.0.0.1:80\""),
            ("80", "on this machine it is \"127.0.0.1:80\""),
            ("10.0.0:80", "neither"),
            ("[::ffff:10.0.0.1]:80", "write it as 10.0.0.1"),
            ("0.0.0.0:80", "not the address of one machine"),
            ("224.0.0.1:80", "not the address of one machine"),
        ] {
            let message = read(endpoint, text).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
        assert!(read(listen_address, "0.0.0.0:53").is_ok());
        assert!(read(listen_address, "localhost:53").unwrap_err().contains("can't be listened on"));
        for text in [":80", "*:80", "80"] {
            let message = read(listen_address, text).unwrap_err();
            assert!(message.contains("\"0.0.0.0:80\" (IPv4) or \"[::]:80\" (IPv6)"), "{message}");
        }
        let number = listen_address(DeValue::parse("80").expect("TOML").get_ref()).unwrap_err();
        assert!(number.contains("not a whole number; it must be IP:PORT"), "{number}");
        assert!(read(source, "10.0.0.2:0").unwrap_err().contains("a source has no port"));
        assert!(read(source, "0.0.0.0").is_err());
    }

    #[test]
    fn ranges_are_addresses_and_prefixes() {
        for (text, expected) in [
            ("10.0.0.2", "10.0.0.2/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(read(range, text).map(|net| net.to_string()), Ok(expected.into()));
        }
        for (text, hint) in [
            ("10.0.0.1/8", "bits behind its prefix; write 10.0.0.0/8"),
            ("10.0.0.0/33", "no IP address or prefix"),
            ("10.0.0.0/", "no IP address or prefix"),
            ("10.0.0.0:80", "no IP address or prefix"),
            ("office", "no IP address or prefix"),
            ("::ffff:10.0.0.0/104", "write it as 10.0.0.0"),
            ("::ffff:10.0.0.1", "write it as 10.0.0.1"),
        ] {
            let message = read(range, text).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }

    #[test]
    fn sources_are_addresses_and_prefixes() {
        for (text, first, count) in [
            ("10.0.0.2", "10.0.0.2", 1),
            ("127.1.0.0/16", "127.1.0.0", 65_536),
            ("10.0.0.2/32", "10.0.0.2", 1),
            ("fd00:1::/120", "fd00:1::", 256),
            ("10.0.0.0/8", "10.0.0.0", 1 << 20),
            ("fd00:1::/64", "fd00:1::", 1 << 20),
        ] {
            let first = first.parse().expect("address");
            assert_eq!(read(source, text), Ok(Sources { first, count }), "{text}");
        }
        for (text, hint) in [
            ("10.0.0.1/16", "bits behind its prefix"),
            ("10.0.0.0/33", "no IP address or prefix"),
            ("10.0.0.0/0", "no IP address or prefix"),
            ("10.0.0.0/", "no IP address or prefix"),
            ("0.0.0.0/8", "not the address of one machine"),
            ("ff00::/8", "not the address of one machine"),
            ("::ffff:10.0.0.0/104", "write it as 10.0.0.0"),
        ] {
            let message = read(source, text).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }
}
