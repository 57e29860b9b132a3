//! Files that are open for no other purpose than to be closed for something that matters, when
//! sessions have taken all others that the process may open.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub struct SpareFiles {
    count: usize,
    files: Mutex<Vec<File>>,
}

impl SpareFiles {
    /// For `count` files at once. None is there before [`Self::fill`].
    pub fn new(count: usize) -> Self {
        Self { count, files: Mutex::default() }
    }

    /// Called where a file may just have been closed, so that no session has it first.
    pub fn fill(&self) {
        let mut files = self.files();
        while files.len() < self.count
            && let Ok(file) = File::open("/dev/null")
        {
            files.push(file);
        }
    }

    /// Closes some, as far as there are any. True if there were.
    pub fn give_up(&self, count: usize) -> bool {
        let mut files = self.files();
        let left = files.len().saturating_sub(count);
        files.drain(left..).count() > 0
    }

    fn files(&self) -> MutexGuard<'_, Vec<File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
