//! MariaDB servers.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use nix::sys::signal::Signal;

use super::{Daemon, Folder, free_address, program};
use crate::pki::Issued;

/// A MariaDB of our own in a temporary folder. Users `me` and `ringway`, with the password
/// "secret", and `open`, without one, come from anywhere.
pub struct MariaDb {
    pub address: SocketAddr,
    daemon: Daemon,
    folder: Folder,
}

impl MariaDb {
    /// `settings`: such as `--read-only=1`.
    pub fn start(issued: &Issued, settings: &[&str]) -> Self {
        let everywhere = format!("--bind-address={}", Ipv4Addr::UNSPECIFIED);
        Self::start_with(free_address(), issued, &[&[everywhere.as_str()][..], settings].concat())
    }

    /// One that listens at this address alone.
    pub fn start_at(address: SocketAddr, issued: &Issued, settings: &[&str]) -> Self {
        let here = format!("--bind-address={}", address.ip());
        Self::start_with(address, issued, &[&[here.as_str()][..], settings].concat())
    }

    fn start_with(address: SocketAddr, issued: &Issued, settings: &[&str]) -> Self {
        let folder = Folder::new();
        let at = |name: &str| folder.file(name).display().to_string();
        let (cert, key) = (at("server.pem"), at("server.key"));
        folder.write("server.pem", &issued.cert);
        folder.write("server.key", &issued.key);
        let data = format!("--datadir={}", at("data"));
        let user = format!("--user={}", program("id", &["-un"]).trim());
        let quick = ["--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M"];
        let install =
            ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"];
        let words = [&install[..], &[&data, &user], &quick].concat();
        program("mariadb-install-db", &words);
        // A statement of this file has one line.
        let users = "create user me identified by 'secret';\ncreate user open;\n\
                     create user ringway identified by 'secret';\n";
        let init = folder.write("init.sql", users).display().to_string();
        let mut command = Command::new("mariadbd");
        command.args(["--no-defaults", &data, &user]).args(quick).args([
            format!("--socket={}", at("socket")),
            format!("--pid-file={}", at("pid")),
            format!("--log-error={}", at("log")),
            format!("--init-file={init}"),
            format!("--port={}", address.port()),
            format!("--ssl-cert={cert}"),
            format!("--ssl-key={key}"),
        ]);
        command.arg("--performance-schema=on").args(settings);
        Self { address, daemon: Daemon::start(address, &mut command), folder }
    }

    /// What root gets as an answer, without names of columns.
    pub fn ask(&self, query: &str) -> String {
        let socket = self.folder.file("socket").display().to_string();
        let words = ["--no-defaults", "-uroot", "-N", "-S", &socket, "-e", query];
        program("mariadb", &words).trim().to_owned()
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        // It ignores SIGINT, and nobody needs its data any more.
        self.daemon.signal(Signal::SIGKILL);
    }
}
