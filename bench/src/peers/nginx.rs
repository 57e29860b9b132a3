//! nginx, stream module.

use super::debian::Debian;
use super::process::{Running, write};
use super::{Found, Setup, Transport};

pub fn find(debian: &Debian) -> anyhow::Result<Found> {
    let (program, _) = debian.program("usr/sbin/nginx")?;
    debian.program(MODULE)?;
    let version = program
        .version("-v", |line| Some(line.strip_prefix("nginx version: ")?.replace('/', " ")))?;
    Ok(Found { version, program })
}

const MODULE: &str = "usr/lib/nginx/modules/ngx_stream_module.so";

pub fn start(found: &Found, setup: &Setup) -> anyhow::Result<Running> {
    // The module lies beside the program: under the same root.
    let program = found.program.placed(setup);
    let root = program.command();
    let path = root.get_args().last().unwrap_or(root.get_program());
    let module = path.to_string_lossy().replace("usr/sbin/nginx", MODULE);
    let text = configuration(setup, &module);
    let file = write(&setup.dir, "nginx.conf", &text)?;
    let (prefix, file) = (setup.dir.display().to_string(), file.display().to_string());
    Running::start(&found.program, &["-p", &prefix, "-c", &file, "-e", "stderr"], text, setup)
}

fn configuration(setup: &Setup, module: &str) -> String {
    let Setup { listen, workers, udp, .. } = setup;
    let (protocol, ends) = match setup.transport {
        Transport::Tcp => ("", String::new()),
        Transport::Udp => {
            (" udp", udp.responses.map(|n| format!("proxy_responses {n}; ")).unwrap_or_default())
        }
    };
    let timeout = match setup.transport {
        Transport::Tcp => 600,
        Transport::Udp => udp.idle.as_secs().max(1),
    };
    let bind = match udp.sources.len() {
        0 => String::new(),
        _ => "proxy_bind $source; ".to_owned(),
    };
    let share = 100.0 / udp.sources.len().max(1) as f64;
    let sources: String = match udp.sources.split_last() {
        None => String::new(),
        Some((last, others)) => {
            let others: String =
                others.iter().map(|ip| format!("        {share:.2}% {ip};\n")).collect();
            format!(
                "    split_clients $remote_port$remote_addr $source {{\n{others}        * {last};\n    }}\n"
            )
        }
    };
    let servers: String =
        setup.backends.iter().map(|address| format!("server {address}; ")).collect();
    format!(
        "load_module {module};\ndaemon off;\nuser root;\nworker_processes {workers};\n\
         worker_rlimit_nofile 20000;\npid nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 19000; multi_accept on; }}\n\
         stream {{\n{sources}    access_log off;\n    upstream b {{ {servers}}}\n    \
         server {{ listen {listen}{protocol} reuseport backlog_; proxy_pass b; \
         proxy_buffer_size 64k; proxy_timeout {timeout}s; proxy_connect_timeout 5s; {bind}{ends}}}\n}}\n"
    )
    .replace(" backlog_", if setup.transport == Transport::Tcp { " backlog=4096" } else { "" })
}
