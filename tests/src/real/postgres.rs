//! PostgreSQL servers.

use std::net::SocketAddr;
use std::process::Command;

use super::{Daemon, Folder, free_address, is_root, program};
use crate::pki::Issued;

/// A PostgreSQL of our own in a temporary folder, that lets everyone in. It refuses to run as root.
pub struct Postgres {
    pub address: SocketAddr,
    _daemon: Daemon,
    folder: Folder,
}

impl Postgres {
    /// `settings`: such as `ssl=on`.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(Folder::new(), settings)
    }

    /// One that takes TLS too, and has a `cluster_name`. A user `scram` needs a password, and so do
    /// users `md5` and `clear`, who give it in these ways.
    pub fn with_tls(name: &str, issued: &Issued) -> Self {
        let folder = Folder::new();
        let cert = folder.write("server.pem", &issued.cert).display().to_string();
        let key = folder.write("server.key", &issued.key).display().to_string();
        program("chmod", &["600", &key]);
        if is_root() {
            program("chown", &["postgres", &key]);
        }
        let (cert, key) = (format!("ssl_cert_file={cert}"), format!("ssl_key_file={key}"));
        let hba = "host all scram 127.0.0.1/32 scram-sha-256\nhost all md5 127.0.0.1/32 md5\n\
                   host all clear 127.0.0.1/32 password\nhost all all 127.0.0.1/32 trust\n\
                   host replication all 127.0.0.1/32 trust\n";
        let hba = format!("hba_file={}", folder.write("hba", hba).display());
        let name = format!("cluster_name={name}");
        Self::start_in(folder, &["ssl=on", &cert, &key, &hba, &name])
    }

    /// A replica of this server, which it follows.
    #[must_use]
    pub fn replica(&self, settings: &[&str]) -> Self {
        let folder = Folder::new();
        let data = folder.file("data").display().to_string();
        let tool = tool("pg_basebackup");
        let port = self.address.port();
        let of = format!("host=127.0.0.1 port={port} user=postgres sslmode=disable");
        let copy = ["-D", &data, "-d", &of];
        let more = ["-R", "-X", "stream", "-c", "fast", "--no-sync"];
        let words = [&as_postgres(), &[tool.as_str()][..], &copy, &more].concat();
        program(words[0], &words[1..]);
        Self::run_in(folder, settings)
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.file("data/log/log")).unwrap_or_default()
    }

    fn start_in(folder: Folder, settings: &[&str]) -> Self {
        let data = folder.file("data").display().to_string();
        let tool = tool("initdb");
        let initdb = [&tool, "-D", &data, "-A", "trust", "-U", "postgres", "--no-sync"];
        let words = [&as_postgres()[..], &initdb].concat();
        program(words[0], &words[1..]);
        Self::run_in(folder, settings)
    }

    fn run_in(folder: Folder, settings: &[&str]) -> Self {
        let (address, postgres) = (free_address(), tool("postgres"));
        let data = folder.file("data").display().to_string();
        let port = address.port().to_string();
        let sockets = folder.file("").display().to_string();
        let mut words = as_postgres();
        words.extend([&postgres, "-D", &data, "-p", &port, "-k", &sockets, "-F"]);
        words.extend(["-c", "listen_addresses=127.0.0.1", "-c", "logging_collector=on"]);
        words.extend(["-c", "log_directory=log", "-c", "log_filename=log"]);
        words.extend(settings.iter().flat_map(|setting| ["-c", setting]));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Self { address, _daemon: Daemon::start(address, &mut command), folder }
    }
}

/// The path of one of the server's programs.
fn tool(name: &str) -> String {
    let script = format!("ls -d /usr/lib/postgresql/*/bin/{name} | tail -1");
    program("sh", &["-c", &script]).trim().to_owned()
}

/// The words in front of a command that must not run as root.
fn as_postgres() -> Vec<&'static str> {
    if is_root() {
        vec!["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
    } else {
        vec!["env", "--"]
    }
}
