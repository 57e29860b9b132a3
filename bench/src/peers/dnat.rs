//! nftables DNAT in the gateway's namespace: what the kernel does by itself.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::process::{Program, Running};
use super::{Found, Setup, Transport};

pub fn find() -> anyhow::Result<Found> {
    let program = Program::new(["nft"]);
    // "nftables v1.0.6 (Lester Gooch #5)"
    let version = program.version("--version", |line| {
        Some(line.split(" (").next()?.replacen("nftables v", "nftables ", 1))
    })?;
    Ok(Found { version, program })
}

pub fn start(setup: &Setup) -> anyhow::Result<Running> {
    let Some(netns) = &setup.netns else {
        bail!("DNAT needs a network of its own: --network veth");
    };
    let text = rules(setup);
    let mut nft = Command::new("ip")
        .args(["netns", "exec", netns, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("nft")?;
    nft.stdin.take().context("its input")?.write_all(text.as_bytes())?;
    if !nft.wait()?.success() {
        bail!("nft refuses:\n{text}");
    }
    let mut undo = Command::new("ip");
    undo.args(["netns", "exec", netns, "nft", "delete", "table", "ip", "bench"]);
    Ok(Running::rules(setup.listen, text, undo))
}

fn rules(setup: &Setup) -> String {
    let protocol = match setup.transport {
        Transport::Tcp | Transport::Tls => "tcp",
        Transport::Udp => "udp",
    };
    let (port, backend) = (setup.listen.port(), setup.backends[0]);
    let back = backend.port();
    format!(
        "table ip bench {{\n\
         chain pre {{\ntype nat hook prerouting priority -100;\n\
         {protocol} dport {port} dnat to {backend}\n}}\n\
         chain post {{\ntype nat hook postrouting priority 100;\n\
         {protocol} dport {back} masquerade\n}}\n}}\n"
    )
}
