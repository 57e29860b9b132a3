//! The file with the number of the process that serves (`--pid-file`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The drop removes the file, if this process has put its number there and has not left it to
/// another.
pub struct PidFile {
    path: PathBuf,
    /// Open from the start, because later the process may write no file.
    file: File,
    is_ours: bool,
}

impl PidFile {
    /// Makes the file if it is not there. What is in it stays until [`Self::claim`].
    ///
    /// # Errors
    /// The file can't be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        Ok(Self { path: path.to_owned(), file, is_ours: false })
    }

    /// Puts the number of this process into the file.
    pub fn claim(&mut self) {
        let text = format!("{}\n", std::process::id());
        let written = self.file.set_len(0).and_then(|()| self.file.write_all(text.as_bytes()));
        match written {
            Ok(()) => self.is_ours = true,
            Err(error) => tracing::error!("--pid-file {}: {error}", self.path.display()),
        }
    }

    /// Leaves the file to another process, which goes on with the work.
    pub fn leave(mut self) {
        self.is_ours = false;
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let own = std::process::id().to_string();
        let is_own = |text: String| text.trim() == own;
        if self.is_ours
            && fs::read_to_string(&self.path).is_ok_and(is_own)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("--pid-file {}: it can't be removed: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_left_as_it_is_until_it_is_claimed() {
        let path = std::env::temp_dir().join(format!("pid-file-{}", std::process::id()));
        fs::write(&path, "123456789\n").expect("a file");
        let text = || fs::read_to_string(&path).expect("it is there");
        drop(PidFile::open(&path).expect("it opens"));
        assert_eq!(text(), "123456789\n");
        let mut ours = PidFile::open(&path).expect("it opens");
        ours.claim();
        assert_eq!(text(), format!("{}\n", std::process::id()));
        ours.leave();
        assert!(path.exists(), "another process has it");
        let mut ours = PidFile::open(&path).expect("it opens");
        ours.claim();
        drop(ours);
        assert!(!path.exists());
    }
}
