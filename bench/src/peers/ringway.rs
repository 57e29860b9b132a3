//! Ringway, with everything that is on by default: metrics, an access log, limits.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;

use super::process::{Program, Running, write};
use super::{Found, Setup, Transport};

/// What differs from the configuration of the comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Default,
    FastPath,
    WithoutLog,
}

pub fn find(binary: &Path) -> anyhow::Result<Found> {
    if !binary.exists() {
        bail!("no {}", binary.display());
    }
    let program = Program::new([binary]);
    // A commit may stand behind the number.
    let version = program.version("--version", |line| {
        let number = line.split_once(" (").map_or(line, |(number, _)| number);
        Some(number.replacen("ringway", "Ringway", 1))
    })?;
    Ok(Found { version, program })
}

/// # Errors
/// It ends at once, or does not listen in time; the kernel is to forward (`fast_path`), and can't.
pub fn start(found: &Found, setup: &Setup, variant: Variant) -> anyhow::Result<Running> {
    let text = configuration(setup, variant);
    let file = write(&setup.dir, "ringway.toml", &text)?;
    let file = file.display().to_string();
    // Some measurements take most listeners away again.
    let arguments = ["--log-level", "warn", "run", "--allow-empty", "--config", &file];
    Running::start(&found.program, &arguments, text, setup)
}

fn configuration(setup: &Setup, variant: Variant) -> String {
    let Setup { listen, dir, udp, .. } = setup;
    let cores: Vec<_> = match setup.cores.as_slice() {
        [] => (0..setup.workers).map(|core| core.to_string()).collect(),
        cores => cores.iter().take(setup.workers).map(ToString::to_string).collect(),
    };
    let admin = listen.port().wrapping_add(1_000).max(1_024);
    let (protocol, options) = match setup.transport {
        Transport::Tcp => ("TCP", String::new()),
        Transport::Tls => {
            let file = |name| setup.certificates.join(name).display().to_string();
            let (cert, key) = (file("cert.pem"), file("key.pem"));
            let tls = format!("certificates = [{{ cert = \"{cert}\", key = \"{key}\" }}]");
            let tls = format!("mode = \"Terminate\", min_version = \"1.3\", {tls}");
            ("TLS", format!("tls = {{ {tls} }}\n"))
        }
        Transport::Udp => {
            let mut options = format!("flow_timeout = \"{}ms\"\n", udp.idle.as_millis());
            if let Some(responses) = udp.responses {
                let _ = writeln!(options, "responses = {responses}");
            }
            ("UDP", options)
        }
    };
    let quoted = |list: Vec<String>| format!("[{}]", list.join(", "));
    let endpoints = quoted(setup.backends.iter().map(|at| format!("\"{at}\"")).collect());
    let (mut backend, mut limits) = (setup.more.backend.clone(), setup.more.limits.clone());
    if setup.transport == Transport::Udp && udp.responses.is_some() {
        // Endpoints answer within milliseconds. With the default of 2 s the rate of new flows would
        // be that of the source ports; others let none rest.
        backend.push_str("upstream_rest = \"200ms\"\n");
    }
    if !udp.sources.is_empty() {
        let sources = quoted(udp.sources.iter().map(|ip| format!("\"{ip}\"")).collect());
        let _ = writeln!(backend, "source = {sources}");
        // By itself it allows no more flows than one address has ports.
        limits.push_str("flows = 30000\n");
    }
    if variant == Variant::FastPath {
        backend.push_str("fast_path = \"required\"\n");
    }
    if udp.shared {
        // One local address for each flow.
        backend.push_str("upstream_sockets = \"shared\"\nsource = [\"127.64.0.0/14\"]\n");
        limits.push_str("flows = 100000\n");
    }
    let log = match variant {
        Variant::WithoutLog => "off".to_owned(),
        Variant::Default | Variant::FastPath => dir.join("access.log").display().to_string(),
    };
    if !limits.is_empty() {
        limits = format!("[limits]\n{limits}\n");
    }
    format!(
        "[workers]\ncores = [{}]\n\n[admin]\naddress = \"127.0.0.1:{admin}\"\n\n\
         [access_log]\npath = \"{log}\"\n\n{limits}\
         [[listeners]]\nname = \"main\"\nprotocol = \"{protocol}\"\n\
         address = \"{listen}\"\n{options}{}\n\
         [[routes]]\nname = \"main\"\nlisteners = [\"main\"]\n\
         backends = [{{ name = \"main\" }}]\n\n\
         [[backends]]\nname = \"main\"\nendpoints = {endpoints}\n{backend}",
        cores.join(", "),
        setup.more.listener,
    )
}
