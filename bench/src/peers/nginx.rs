//! nginx, stream module.

use std::net::IpAddr;

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
    let path = root.get_args().last().unwrap_or_else(|| root.get_program());
    let module = path.to_string_lossy().replace("usr/sbin/nginx", MODULE);
    let text = configuration(setup, &module);
    let file = write(&setup.dir, "nginx.conf", &text)?;
    let (prefix, file) = (setup.dir.display().to_string(), file.display().to_string());
    Running::start(&found.program, &["-p", &prefix, "-c", &file, "-e", "stderr"], text, setup)
}

fn configuration(setup: &Setup, module: &str) -> String {
    let Setup { listen, workers, udp, .. } = setup;
    let (options, timeout) = match setup.transport {
        Transport::Tcp | Transport::Tls => ("reuseport backlog=4096", 600_000),
        Transport::Udp => ("udp reuseport", udp.idle.as_millis()),
    };
    let responses = udp.responses.filter(|_| setup.transport == Transport::Udp);
    let responses = responses.map(|n| format!("proxy_responses {n};")).unwrap_or_default();
    let (sources, bind) = match udp.sources.is_empty() {
        true => (String::new(), ""),
        false => (source_map(&udp.sources), "proxy_bind $source;"),
    };
    let servers: String =
        setup.backends.iter().map(|address| format!("server {address}; ")).collect();
    format!(
        "load_module {module};\ndaemon off;\nuser root;\nworker_processes {workers};\n\
         worker_rlimit_nofile 20000;\npid nginx.pid;\nerror_log stderr crit;\n\
         events {{\n    worker_connections 19000;\n    multi_accept on;\n}}\n\
         stream {{\n{sources}    access_log off;\n    upstream b {{ {servers}}}\n    \
         server {{\n        listen {listen} {options};\n        proxy_pass b;\n        \
         proxy_buffer_size 64k;\n        proxy_timeout {timeout}ms;\n        \
         proxy_connect_timeout 5s;\n        {bind}\n        {responses}\n    }}\n}}\n"
    )
}

/// Spreads flows over local addresses.
fn source_map(sources: &[IpAddr]) -> String {
    let share = 100.0 / sources.len() as f64;
    let mut map = "    split_clients $remote_port$remote_addr $source {\n".to_owned();
    for (number, address) in (1..).zip(sources) {
        // The last takes what rounding has left.
        let part = if number == sources.len() { "*".to_owned() } else { format!("{share:.2}%") };
        map += &format!("        {part} {address};\n");
    }
    map + "    }\n"
}

#[cfg(test)]
mod tests {
    use super::super::{More, UdpShape};
    use super::*;

    #[test]
    fn a_flow_ends_as_the_shape_says() {
        let mut setup = Setup {
            transport: Transport::Udp,
            listen: "127.0.0.1:9000".parse().expect("an address"),
            backends: vec!["127.0.0.1:9001".parse().expect("an address")],
            workers: 2,
            cores: Vec::new(),
            udp: UdpShape { responses: Some(1), ..UdpShape::default() },
            more: More::default(),
            certificates: "/tmp".into(),
            dir: "/tmp".into(),
            netns: None,
        };
        let udp = configuration(&setup, "/m.so");
        assert!(udp.contains("listen 127.0.0.1:9000 udp reuseport;"), "{udp}");
        assert!(udp.contains("proxy_timeout 30000ms;") && udp.contains("proxy_responses 1;"));
        setup.transport = Transport::Tcp;
        let tcp = configuration(&setup, "/m.so");
        assert!(tcp.starts_with("load_module /m.so;\n"), "{tcp}");
        assert!(tcp.contains("listen 127.0.0.1:9000 reuseport backlog=4096;"), "{tcp}");
        assert!(!tcp.contains("proxy_responses"), "{tcp}");
    }
}
