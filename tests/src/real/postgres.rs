//! PostgreSQL servers.

use std::net::SocketAddr;
use std::process::Command;

use super::{Daemon, Folder, free_address, is_root, program};
use crate::pki::Issued;

/// A PostgreSQL of our own in a temporary folder, that lets everyone in. It refuses to run as root.
pub struct Postgres {
    pub address: SocketAddr,
    _daemon: Daemon,
    _folder: Folder,
}

impl Postgres {
    /// `settings`: such as `ssl=on`.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(Folder::new(), settings)
    }

    /// One that takes TLS too, and has a `cluster_name`. A user `scram` needs a password.
    pub fn with_tls(name: &str, issued: &Issued) -> Self {
        let folder = Folder::new();
        let cert = folder.write("server.pem", &issued.cert).display().to_string();
        let key = folder.write("server.key", &issued.key).display().to_string();
        program("chmod", &["600", &key]);
        if is_root() {
            program("chown", &["postgres", &key]);
        }
        let (cert, key) = (format!("ssl_cert_file={cert}"), format!("ssl_key_file={key}"));
        let hba = "host all scram 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
        let hba = format!("hba_file={}", folder.write("hba", hba).display());
        let name = format!("cluster_name={name}");
        Self::start_in(folder, &["ssl=on", &cert, &key, &hba, &name])
    }

    fn start_in(folder: Folder, settings: &[&str]) -> Self {
        let address = free_address();
        let data = folder.file("data").display().to_string();
        let programs = program("sh", &["-c", "ls -d /usr/lib/postgresql/*/bin | tail -1"]);
        let programs = programs.trim();
        let (initdb, postgres) = (format!("{programs}/initdb"), format!("{programs}/postgres"));
        let initdb = [&initdb, "-D", &data, "-A", "trust", "-U", "postgres", "--no-sync"];
        let user = as_postgres();
        let words: Vec<&str> = user.iter().copied().chain(initdb).collect();
        program(words[0], &words[1..]);
        let port = address.port().to_string();
        let sockets = folder.file("").display().to_string();
        let mut words: Vec<&str> = user;
        words.extend([&postgres, "-D", &data, "-p", &port, "-k", &sockets, "-F"]);
        words.extend(["-c", "listen_addresses=127.0.0.1"]);
        words.extend(settings.iter().flat_map(|setting| ["-c", setting]));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Self { address, _daemon: Daemon::start(address, &mut command), _folder: folder }
    }
}

/// The words in front of a command that must not run as root.
fn as_postgres() -> Vec<&'static str> {
    if is_root() {
        vec!["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
    } else {
        vec!["env", "--"]
    }
}
