//! The keys of `[resolver]`.

use std::net::{IpAddr, SocketAddr};

use toml::de::DeValue;

use crate::model::place::At;
use crate::model::resolver::{DnsTransport, NameServer, Resolver, TTL};
use crate::toml::reader::{Read, Reader, Section, Table, any, or, string};
use crate::toml::values::{dns_name, duration};

pub(crate) static RESOLVER: Section = Section {
    name: "resolver",
    keys: &[any("servers"), any("min_ttl"), any("max_ttl"), any("keep")],
};

pub(crate) fn resolver<'t>(reader: &mut Reader<'t>, root: &Table<'t>) -> Resolver {
    let default = Resolver::default();
    let Some(table) = reader.table(root, "resolver", &RESOLVER) else { return default };
    let servers = reader.list(&table, "servers", server).unwrap_or_default();
    let min_ttl = reader.get(&table, "min_ttl", ttl);
    let max_ttl = reader.get(&table, "max_ttl", ttl);
    let keep = or(reader.get(&table, "keep", duration), default.keep);
    let least = min_ttl.as_ref().map_or(default.min_ttl, |at| at.value);
    // A given minimum above the default maximum moves the maximum.
    let most = max_ttl.as_ref().map_or_else(|| default.max_ttl.max(least), |at| at.value);
    if let Some(at) = max_ttl.as_ref().or(min_ttl.as_ref()).filter(|_| least > most) {
        reader.refuse(&at.place, "min_ttl is above max_ttl");
    }
    let shared = servers.iter().map(|at: &At<NameServer>| at.value.address);
    let mut seen = std::collections::BTreeSet::new();
    let twice = shared.zip(&servers).find(|(address, _)| !seen.insert(*address));
    if let Some((address, at)) = twice {
        reader.refuse(&at.place, format!("{address} is named twice"));
    }
    Resolver { servers, min_ttl: least.min(most), max_ttl: most, keep }
}

fn ttl(value: &DeValue<'_>) -> Read<u32> {
    let millis = duration(value)?;
    match TTL.contains(&millis) {
        true => Ok(millis),
        false => Err("must be \"1s\" to \"24h\"".to_owned()),
    }
}

/// `IP`, `IP:PORT`, `tcp:IP:PORT` or `tls:IP:PORT#NAME`. A port may be missing.
fn server(value: &DeValue<'_>) -> Read<NameServer> {
    const FORM: &str = "must be such as \"10.0.0.53\", \"10.0.0.53:53\", \"tcp:10.0.0.53:53\" or \
                        \"tls:9.9.9.9:853#dns.quad9.net\"";
    let text = string(value)?;
    let no_server = || format!("{FORM}, not \"{text}\"");
    let (transport, rest, port) = if let Some(rest) = text.strip_prefix("tls:") {
        let (address, name) = rest
            .split_once('#')
            .ok_or_else(|| format!("{FORM}: the name of the server's certificate is missing"))?;
        (DnsTransport::Tls(dns_name(name)?.into()), address, 853)
    } else if let Some(rest) = text.strip_prefix("tcp:") {
        (DnsTransport::Tcp, rest, 53)
    } else {
        (DnsTransport::Udp, text.strip_prefix("udp:").unwrap_or(text), 53)
    };
    let bare = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(rest);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => rest.parse().map_err(|_| no_server())?,
    };
    match address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        true => Err(no_server()),
        false => Ok(NameServer { address, transport }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Read<NameServer> {
        let quoted = format!("\"{text}\"");
        server(DeValue::parse(&quoted).expect("TOML").get_ref())
    }

    #[test]
    fn servers_are_addresses_with_a_transport() {
        for (text, address, transport) in [
            ("10.0.0.53", "10.0.0.53:53", DnsTransport::Udp),
            ("udp:10.0.0.53:5353", "10.0.0.53:5353", DnsTransport::Udp),
            ("::1", "[::1]:53", DnsTransport::Udp),
            ("[::1]:54", "[::1]:54", DnsTransport::Udp),
            ("tcp:[::1]", "[::1]:53", DnsTransport::Tcp),
            ("tls:9.9.9.9#dns.quad9.net", "9.9.9.9:853", DnsTransport::Tls("dns.quad9.net".into())),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(read(text), Ok(NameServer { address, transport }), "{text}");
        }
        for text in ["", "ns.example.com", "10.0.0.53:0", "0.0.0.0", "tls:9.9.9.9", "tls:9.9.9.9#"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
