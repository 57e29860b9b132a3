//! The file of a Unix socket.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crate::table::address::{Address, UnixPath};

/// The file of a Unix socket that was opened. The drop removes the file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode. Another process may have put a socket of its own there since. `None`: the
    /// file stays.
    id: Option<(u64, u64)>,
}

impl SocketFile {
    /// The file of a socket that has just been bound. `None`: the socket has no file.
    pub(super) fn of(address: &Address) -> Option<Self> {
        Self::at(address.unix()?)
    }

    /// The file of a socket that has just been bound to this path.
    pub fn at(path: UnixPath) -> Option<Self> {
        let path = path.file()?;
        let found = fs::symlink_metadata(path).ok()?;
        Some(Self { path: path.to_owned(), id: Some((found.dev(), found.ino())) })
    }

    /// Leaves the file there, because another process goes on with the socket.
    pub fn leave(mut self) {
        self.id = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("{}: the socket's file can't be removed: {error}", self.path.display());
        }
    }
}
