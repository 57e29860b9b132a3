//! A DNS server with one small zone, and the client that counts the answers.

use std::net::SocketAddr;
use std::process::Command;

use super::{Daemon, Folder, free_address, program};

const ZONE: &str = "$ORIGIN example.test.\n$TTL 60\n\
    @ SOA ns hostmaster 1 3600 900 86400 60\n@ NS ns\nns A 192.0.2.1\n\
    www A 192.0.2.80\nwww AAAA 2001:db8::80\n\
    long TXT \"0123456789012345678901234567890123456789012345678901234567890123456789\"\n";

const QUERIES: &str = "www.example.test A\nwww.example.test AAAA\nlong.example.test TXT\n\
    missing.example.test A\n";

/// `nsd`, on UDP and TCP.
#[derive(Debug)]
pub struct Nsd {
    pub address: SocketAddr,
    folder: Folder,
    _daemon: Daemon,
}

impl Nsd {
    pub fn start() -> Self {
        let (folder, address) = (Folder::new(), free_address());
        let here = folder.file("").display().to_string();
        folder.write("zone", ZONE);
        let config = format!(
            "server:\n  ip-address: {}@{}\n  username: \"\"\n  zonesdir: \"{here}\"\n  \
             database: \"\"\n  pidfile: \"{here}/pid\"\n  xfrdfile: \"\"\n  \
             zonelistfile: \"{here}/zones\"\n  server-count: 1\n  tcp-count: 200\n  \
             rrl-ratelimit: 0\n\
             remote-control:\n  control-enable: no\n\
             zone:\n  name: example.test\n  zonefile: zone\n",
            address.ip(),
            address.port()
        );
        let config = folder.write("nsd.conf", &config);
        let daemon = Daemon::start(address, Command::new("nsd").arg("-d").arg("-c").arg(config));
        Self { address, folder, _daemon: daemon }
    }

    /// Runs `dnsperf` through `address`. `mode`: `udp` or `tcp`. Each query must be answered.
    /// Returns how many there were.
    pub fn dnsperf(&self, address: SocketAddr, mode: &str, load: &[&str]) -> u64 {
        let queries = self.folder.write("queries", QUERIES).display().to_string();
        let port = address.port().to_string();
        let base = ["-s", "127.0.0.1", "-p", &port, "-d", &queries, "-m", mode];
        let printed = program("dnsperf", &[&base[..], load].concat());
        let number = |what: &str| -> u64 {
            let line = printed.lines().find(|line| line.trim_start().starts_with(what));
            let line = line.unwrap_or_else(|| panic!("no {what} in {printed}"));
            let word = line.split_whitespace().nth(2);
            word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number: {line}"))
        };
        assert_eq!(number("Queries lost:"), 0, "{mode}: {printed}");
        let sent = number("Queries sent:");
        assert_eq!(number("Queries completed:"), sent, "{mode}: {printed}");
        sent
    }
}
