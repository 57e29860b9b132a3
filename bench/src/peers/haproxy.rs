//! HAProxy, TCP mode, spliced or copying.

use super::debian::Debian;
use super::process::{Running, write};
use super::{Found, Setup, Transport};

pub fn find(debian: &Debian) -> anyhow::Result<Found> {
    let (program, _) = debian.program("usr/sbin/haproxy")?;
    let version = program.version("-v", |line| {
        let words = line.strip_prefix("HAProxy version ")?;
        Some(format!("HAProxy {}", words.split_whitespace().next()?))
    })?;
    Ok(Found { version, program })
}

pub fn start(found: &Found, setup: &Setup, splice: bool) -> anyhow::Result<Running> {
    let text = configuration(setup, splice);
    let file = write(&setup.dir, "haproxy.cfg", &text)?;
    let file = file.display().to_string();
    Running::start(&found.program, &["-db", "-q", "-f", &file], text, setup)
}

/// `maxconn`: two files a connection, and two a pipe, within the 20,000 that the limit often is.
fn configuration(setup: &Setup, splice: bool) -> String {
    let Setup { listen, workers, .. } = setup;
    let (splices, buffers, most) = match splice {
        true => (
            "    option splice-request\n    option splice-response\n",
            "    maxpipes 1500\n",
            8_300,
        ),
        // Without splicing, a larger buffer is worth more than the default of 16 KiB in bulk.
        false => ("", "    tune.bufsize 65536\n", 9_500),
    };
    // A session is resumed by a ticket, on any thread.
    let tls = match setup.transport {
        Transport::Tls => format!(
            " ssl crt {} ssl-min-ver TLSv1.3",
            setup.certificates.join("both.pem").display()
        ),
        Transport::Tcp | Transport::Udp => String::new(),
    };
    let servers: String = (0..)
        .zip(&setup.backends)
        .map(|(number, address)| format!("    server s{number} {address}\n"))
        .collect();
    format!(
        "global\n    nbthread {workers}\n    maxconn {most}\n{buffers}\
         defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 600s\n    \
         timeout server 600s\n{splices}\
         frontend f\n    bind {listen} backlog 4096 shards by-thread{tls}\n    maxconn {most}\n    \
         default_backend b\n\
         backend b\n    balance roundrobin\n{servers}"
    )
}

#[cfg(test)]
mod tests {
    use super::super::{More, UdpShape};
    use super::*;

    #[test]
    fn splicing_is_forced_or_absent() {
        let setup = Setup {
            transport: Transport::Tcp,
            listen: "127.0.0.1:9000".parse().expect("an address"),
            backends: vec!["127.0.0.1:9001".parse().expect("an address")],
            workers: 2,
            cores: Vec::new(),
            udp: UdpShape::default(),
            more: More::default(),
            certificates: "/tmp".into(),
            dir: "/tmp".into(),
            netns: None,
        };
        let spliced = configuration(&setup, true);
        assert!(spliced.contains("option splice-request\n    option splice-response\n"));
        assert!(spliced.contains("nbthread 2\n"));
        assert!(spliced.contains("bind 127.0.0.1:9000 backlog 4096 shards by-thread\n"));
        assert!(spliced.ends_with("balance roundrobin\n    server s0 127.0.0.1:9001\n"));
        let copied = configuration(&setup, false);
        assert!(!copied.contains("splice") && copied.contains("tune.bufsize 65536\n"));
    }
}
