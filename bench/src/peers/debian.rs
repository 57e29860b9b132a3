//! Programs of Debian packages: from the folder of newer ones that `bench/install-peers` fills, or
//! else the machine's own.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::process::Program;

pub struct Debian {
    root: PathBuf,
}

impl Debian {
    pub fn new(peers: &Path) -> Self {
        Self { root: peers.join("debian") }
    }

    /// The program, and the folder that its own files are under (`/` for the machine's).
    ///
    /// One of the folder runs by the folder's own loader and libraries, and so shares everything
    /// else with the rest: files, cores, network.
    pub fn program(&self, path: &str) -> anyhow::Result<(Program, PathBuf)> {
        let inside = self.root.join(path);
        if inside.exists() {
            let (loader, libraries) = match std::env::consts::ARCH {
                "aarch64" => ("usr/lib/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
                _ => ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
            };
            let words = [
                self.root.join(loader),
                "--library-path".into(),
                self.root.join(libraries),
                inside,
            ];
            return Ok((Program::new(words), self.root.clone()));
        }
        let own = Path::new("/").join(path);
        if !own.exists() {
            bail!("neither {} nor {}", inside.display(), own.display());
        }
        Ok((Program::new([own]), "/".into()))
    }
}
