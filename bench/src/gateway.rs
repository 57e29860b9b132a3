//! A gateway process under measurement, stopped when dropped.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub struct Gateway {
    process: Child,
    file: std::path::PathBuf,
}

impl Gateway {
    /// Starts the gateway with this configuration, and waits until `listener` accepts.
    pub fn start(binary: &Path, config: &str, listener: SocketAddr) -> anyhow::Result<Self> {
        let name = format!("ringway-bench-{}-{}.toml", std::process::id(), listener.port());
        let file = std::env::temp_dir().join(name);
        std::fs::File::create(&file)?.write_all(config.as_bytes())?;
        let process = Command::new(binary)
            .args(["--log-level", "error", "run", "--config"])
            .arg(&file)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| {
                format!("{}: build it with `cargo build --release`", binary.display())
            })?;
        let gateway = Self { process, file };
        let patience = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(listener).is_err() {
            if Instant::now() > patience {
                bail!("the gateway does not accept on {listener}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(gateway)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap_or(0));
        // Twice: the second signal does not wait for sessions.
        for _ in 0..2 {
            let _ = kill(pid, Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(300));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}
