//! Tables for people, as wide as the terminal.

use std::io::{self, IsTerminal as _};

use terminal_size::{Width, terminal_size};

/// A table: its titles, and its rows. Columns of numbers stand to the right.
pub struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// A column is not made narrower than this.
const NARROWEST: usize = 8;

impl Table {
    pub fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.titles.len(), "a cell for each title");
        // Names of others are shown, and must not move the cursor.
        let clean = |cell: String| cell.replace(|c: char| c.is_control(), "\u{fffd}");
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// The text, for the width of the terminal. Without a terminal, nothing is cut.
    pub fn text(&self) -> String {
        let width = terminal_size().filter(|_| io::stdout().is_terminal());
        self.fit(width.map_or(usize::MAX, |(Width(width), _)| width.into()))
    }

    fn fit(&self, most: usize) -> String {
        let widths = widths(&self.titles, &self.rows, (2, most));
        let right: Vec<bool> = (0..widths.len()).map(|at| is_number(&self.rows, at)).collect();
        let mut text = String::new();
        let titles: Vec<String> = self.titles.iter().map(|title| (*title).to_owned()).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
                let cell = cut(cell, *width);
                match right {
                    true => line.push_str(&format!("{cell:>width$}  ")),
                    false => line.push_str(&format!("{cell:<width$}  ")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The width of each column of a table that is at most as wide as `most`. `gap` is between columns.
/// The widest columns are made narrower first.
pub fn widths(titles: &[&str], rows: &[Vec<String>], (gap, most): (usize, usize)) -> Vec<usize> {
    let mut widths: Vec<usize> = (0..titles.len())
        .map(|column| {
            let cells = rows.iter().map(|row| len(&row[column]));
            cells.chain([len(titles[column])]).max().unwrap_or(0)
        })
        .collect();
    while widths.iter().sum::<usize>() + gap * widths.len().saturating_sub(1) > most {
        let Some(widest) = widths.iter_mut().max().filter(|width| **width > NARROWEST) else {
            break;
        };
        *widest -= 1;
    }
    widths
}

/// Whether all cells of the column are numbers.
pub fn is_number(rows: &[Vec<String>], column: usize) -> bool {
    let mut cells = rows.iter().map(|row| &row[column]).filter(|cell| *cell != "-").peekable();
    cells.peek().is_some()
        && cells.all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()) && len(cell) < 9)
}

fn len(text: &str) -> usize {
    text.chars().count()
}

pub fn cut(cell: &str, width: usize) -> String {
    if len(cell) <= width {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}\u{2026}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_and_cuts_the_widest_column() {
        let mut table = Table::new(&["NAME", "COUNT"]);
        table.row(vec!["a-name-that-is-long".to_owned(), "1".to_owned()]);
        table.row(vec!["b\x1b".to_owned(), "12345".to_owned()]);
        let whole = table.fit(80);
        let lines: Vec<_> = whole.lines().collect();
        assert_eq!(lines[0], "NAME                 COUNT");
        assert_eq!(lines[1], "a-name-that-is-long      1");
        assert_eq!(lines[2], "b\u{fffd}                   12345");
        let cut = table.fit(16);
        assert!(cut.lines().all(|line| line.chars().count() <= 16), "{cut}");
        assert!(cut.contains("a-name-t\u{2026}"), "{cut}");
    }
}
