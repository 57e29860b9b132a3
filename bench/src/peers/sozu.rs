//! Sōzu.

use std::path::Path;

use anyhow::bail;

use super::process::{Program, Running, write};
use super::{Found, Setup, Transport};

pub fn find(peers: &Path) -> anyhow::Result<Found> {
    let path = peers.join("sozu/bin/sozu");
    if !path.exists() {
        bail!("no {}", path.display());
    }
    let program = Program::new([path]);
    let version = program.version("--version", |line| {
        Some(format!("Sōzu {}", line.strip_prefix("sozu ")?.split_whitespace().next()?))
    })?;
    Ok(Found { version, program })
}

pub fn start(found: &Found, setup: &Setup) -> anyhow::Result<Running> {
    let text = configuration(setup);
    let file = write(&setup.dir, "sozu.toml", &text)?;
    let file = file.display().to_string();
    Running::start(&found.program, &["start", "-c", &file], text, setup)
}

fn configuration(setup: &Setup) -> String {
    match setup.transport {
        Transport::Tcp | Transport::Tls => {
            render(setup, "tcp", "front_timeout = 600\nback_timeout = 600\n", "")
        }
        Transport::Udp => {
            let idle = setup.udp.idle.as_secs().max(1);
            let listener = format!(
                "front_timeout = {idle}\nback_timeout = {idle}\nmax_flows = 13000\n\
                 max_rx_datagram_size = 65000\n"
            );
            let responses = setup.udp.responses;
            let cluster = responses.map(|n| format!("[clusters.b.udp]\nresponses = {n}\n"));
            render(setup, "udp", &listener, &cluster.unwrap_or_default())
        }
    }
}

fn render(setup: &Setup, protocol: &str, options: &str, cluster: &str) -> String {
    let Setup { listen, workers, dir, .. } = setup;
    let backends: Vec<_> =
        setup.backends.iter().map(|at| format!("{{ address = \"{at}\" }}")).collect();
    format!(
        "command_socket = \"{}\"\nworker_count = {workers}\nworker_automatic_restart = false\n\
         log_level = \"error\"\nlog_target = \"stdout\"\nmax_connections = 9000\n\
         buffer_size = 65536\nmax_buffers = 20000\nactivate_listeners = true\n\
         connect_timeout = 5\n\n\
         [[listeners]]\nprotocol = \"{protocol}\"\naddress = \"{listen}\"\n{options}\n\
         [clusters.b]\nprotocol = \"tcp\"\nfrontends = [{{ address = \"{listen}\" }}]\n\
         backends = [{}]\n{cluster}",
        dir.join("command").display(),
        backends.join(", "),
    )
}
