//! Addresses as HAProxy writes them (its manual: `bind`, `server`).

use std::net::IpAddr;

/// What a server's address comes to, as Ringway's file has it.
pub fn server(text: &str) -> Result<String, String> {
    if let Some(path) = unix(text)? {
        return Ok(path);
    }
    let text = of_family(text)?;
    let (host, port) = split(text);
    let host = bracketed(host);
    if host.is_empty() || host == "*" || host == "0.0.0.0" {
        return Err(format!("{text:?} is not the address of one machine"));
    }
    let is_ip = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if !is_ip && port.is_none_or(|port| port.starts_with('+')) {
        return Err(format!("{text:?} has no port, and only an address can have the client's"));
    }
    match port {
        // Without a port, and with a sign, the client's port counts.
        None => Ok(format!("{host}:+0")),
        Some(port) if port.starts_with('+') => Ok(format!("{host}:{port}")),
        Some(port) if port.starts_with('-') => {
            Err(format!("{text:?}: a port below the client's has no counterpart"))
        }
        Some(port) => number(port).map(|port| format!("{host}:{port}")),
    }
}

/// What the addresses of a `bind` line come to. `v6only`: IPv6 alone.
pub fn bind(text: &str, v6only: bool) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for text in text.split(',') {
        if let Some(path) = unix(text)? {
            all.push(path);
            continue;
        }
        let text = of_family(text)?;
        let (host, port) = split(text);
        let port = port.ok_or_else(|| format!("{text:?} has no port"))?;
        let port = match port.split_once('-') {
            Some((from, to)) => format!("{}-{}", number(from)?, number(to)?),
            None => number(port)?.to_string(),
        };
        match host {
            "" | "*" | "0.0.0.0" => all.push(format!("0.0.0.0:{port}")),
            // Linux gives IPv4 to such a socket too (net.ipv6.bindv6only).
            "::" | "[::]" if !v6only => {
                all.extend([format!("0.0.0.0:{port}"), format!("[::]:{port}")]);
            }
            host => {
                let host = bracketed(host);
                let is_ip = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
                if !is_ip {
                    return Err(format!("{host:?} is a name: write its address"));
                }
                all.push(format!("{host}:{port}"));
            }
        }
    }
    Ok(all)
}

fn unix(text: &str) -> Result<Option<String>, String> {
    if let Some(name) = text.strip_prefix("abns@") {
        return Ok(Some(format!("unix:@{name}")));
    }
    let path = text.strip_prefix("unix@").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(Some(format!("unix:{path}")));
    }
    match path.len() < text.len() {
        true => Err(format!("{text:?}: a Unix socket needs a whole path")),
        false => Ok(None),
    }
}

/// Takes `ipv4@` and the like off.
fn of_family(text: &str) -> Result<&str, String> {
    match text.split_once('@') {
        None => Ok(text),
        Some(("ipv4" | "ipv6" | "tcp" | "tcp4" | "tcp6", rest)) => Ok(rest),
        Some((family, _)) => Err(format!("addresses of the kind {family}@ have no counterpart")),
    }
}

/// Host and port. The last colon is in front of the port, unless it is inside of brackets.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    }
}

fn bracketed(host: &str) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

fn number(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{text:?} is no port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_manual() {
        for (text, expected) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("db.example.com:5432", "db.example.com:5432"),
            ("::1:80", "[::1]:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("ipv4@10.0.0.1:80", "10.0.0.1:80"),
            ("/run/x.sock", "unix:/run/x.sock"),
            ("unix@/run/x.sock", "unix:/run/x.sock"),
            ("abns@x", "unix:@x"),
            ("10.0.0.1", "10.0.0.1:+0"),
            ("10.0.0.1:+1000", "10.0.0.1:+1000"),
        ] {
            assert_eq!(server(text).as_deref(), Ok(expected), "{text}");
        }
        for text in
            ["", "*:80", "db.example.com", "db:+1", "10.0.0.1:x", "10.0.0.1:-1", "fd@3", "unix@x"]
        {
            assert!(server(text).is_err(), "{text}");
        }
        let two = ["0.0.0.0:80", "[::]:80"].map(str::to_owned).to_vec();
        assert_eq!(bind(":::80", false), Ok(two));
        assert_eq!(bind(":::80", true), Ok(vec!["[::]:80".into()]));
        let three = ["0.0.0.0:80", "0.0.0.0:81", "10.0.0.1:100-110"].map(str::to_owned).to_vec();
        assert_eq!(bind(":80,*:81,10.0.0.1:100-110", false), Ok(three));
        assert!(bind("example.com:80", false).is_err() && bind("*", false).is_err());
    }
}
