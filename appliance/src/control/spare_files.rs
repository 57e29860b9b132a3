//! Spare files: open files that are closed when important work needs a file, and sessions have
//! taken all others that the process may open.

use std::fs::File;
use std::io;

use parking_lot::Mutex;

#[derive(Debug)]
pub struct SpareFiles {
    count: usize,
    files: Mutex<Vec<File>>,
}

impl SpareFiles {
    /// Keeps up to `count` files. None is open before [`Self::fill`].
    pub fn new(count: usize) -> Self {
        Self { count, files: Mutex::default() }
    }

    /// Keeps `count` files, which are all open already, and at first some more.
    ///
    /// # Errors
    /// Not so many files are left.
    pub fn filled(count: usize, more: usize) -> io::Result<Self> {
        let files: io::Result<_> = (0..count + more).map(|_| File::open("/dev/null")).collect();
        Ok(Self { count, files: Mutex::new(files?) })
    }

    /// Opens the missing spare files. The caller calls this where a file may just have been closed,
    /// so that no session takes the file first.
    pub fn fill(&self) {
        let mut files = self.files.lock();
        while files.len() < self.count
            && let Ok(file) = File::open("/dev/null")
        {
            files.push(file);
        }
    }

    /// Closes up to `count` spare files. True if any was open.
    pub fn give_up(&self, count: usize) -> bool {
        let mut files = self.files.lock();
        let left = files.len().saturating_sub(count);
        files.drain(left..).count() > 0
    }
}
