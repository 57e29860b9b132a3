//! Finds lines and columns in the texts of files.

use std::sync::Arc;

use crate::model::place::Place;

/// The lines of one file.
pub(crate) struct Lines<'t> {
    text: &'t str,
    file: Arc<str>,
    /// The first byte of the file, counted over all files.
    pub(crate) start: usize,
    /// The byte at which each line begins.
    lines: Vec<usize>,
    /// The number of characters before each [`BLOCK`] of bytes. Thousands of values may be in one
    /// line, and counting from the line's beginning for each value would take seconds.
    blocks: Vec<usize>,
}

const BLOCK: usize = 1_024;

/// The number of characters that begin in these bytes of UTF-8.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

impl<'t> Lines<'t> {
    /// The lines of all files, each a name and a text.
    pub(crate) fn of(files: &[(&str, &'t str)]) -> Vec<Self> {
        let mut start = 0;
        let mut of_file = |(file, text): &(&str, &'t str)| {
            let lines = Self::new(file, text, start);
            // A fault may be at the end of a file, which is not yet the next file.
            start += text.len() + 1;
            lines
        };
        files.iter().map(&mut of_file).collect()
    }

    fn new(file: &str, text: &'t str, start: usize) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(newlines.map(|(at, _)| at + 1)).collect();
        let mut blocks = vec![0];
        for (nth, block) in text.as_bytes().chunks(BLOCK).enumerate() {
            blocks.push(blocks[nth] + characters(block));
        }
        Self { text, file: file.into(), start, lines, blocks }
    }

    /// The place of a byte of this file.
    pub(crate) fn place(&self, byte: usize, field: String) -> Place {
        let line = self.lines.partition_point(|start| *start <= byte).max(1);
        let start = self.lines[line - 1];
        let before = self.characters_before(byte) - self.characters_before(start);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Place {
            file: Arc::clone(&self.file),
            line: number(line),
            column: number(before + 1),
            field,
        }
    }

    fn characters_before(&self, byte: usize) -> usize {
        let byte = byte.min(self.text.len());
        let block = byte / BLOCK;
        self.blocks[block] + characters(&self.text.as_bytes()[block * BLOCK..byte])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_in_long_lines() {
        let long = "ä".repeat(BLOCK);
        let lines = Lines::of(&[("f", &long)]);
        for at in [0, 1, BLOCK / 2 - 1, BLOCK / 2, BLOCK / 2 + 1, BLOCK] {
            let column = lines[0].place(2 * at, String::new()).column;
            assert_eq!(column as usize, at + 1);
        }
    }
}
