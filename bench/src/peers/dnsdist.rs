//! dnsdist: UDP, for DNS.

use super::debian::Debian;
use super::process::{Running, write};
use super::{Found, Setup};

pub fn find(debian: &Debian) -> anyhow::Result<Found> {
    let (program, _) = debian.program("usr/bin/dnsdist")?;
    let version = program.version("--version", |line| {
        let words = line.strip_prefix("dnsdist ")?;
        Some(format!("dnsdist {}", words.split_whitespace().next()?))
    })?;
    Ok(Found { version, program })
}

pub fn start(found: &Found, setup: &Setup) -> anyhow::Result<Running> {
    let Setup { listen, workers, .. } = setup;
    let locals = format!("setLocal(\"{listen}\", {{reusePort=true}})\n")
        + &format!("addLocal(\"{listen}\", {{reusePort=true}})\n").repeat(workers - 1);
    let servers: String = setup
        .backends
        .iter()
        .map(|at| format!("newServer({{address=\"{at}\", healthCheckMode=\"up\", sockets=4}})\n"))
        .collect();
    // No cache, no ACL, no record of recent queries: forwarding alone.
    let text = format!(
        "{locals}{servers}setACL({{\"0.0.0.0/0\"}})\nsetSecurityPollSuffix(\"\")\n\
         setRingBuffersOptions({{recordQueries=false, recordResponses=false}})\n"
    );
    let file = write(&setup.dir, "dnsdist.lua", &text)?;
    let file = file.display().to_string();
    Running::start(&found.program, &["--supervised", "--disable-syslog", "-C", &file], text, setup)
}
