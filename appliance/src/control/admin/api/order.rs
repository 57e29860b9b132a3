//! Keeps the first rows of a sorted list. However long the list is, only the rows of one page are
//! kept, so the memory of a list is bounded.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::net::IpAddr;

/// What the rows of a list are compared by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Number(u64),
    Address(IpAddr, u16),
    /// A worker, and a slot there.
    Slot(usize, u32),
    Text(String),
}

impl Key {
    pub fn text(text: impl ToString) -> Self {
        Self::Text(text.to_string())
    }
}

/// The first rows among those that were shown so far.
pub struct First<T> {
    most: usize,
    reverse: bool,
    /// The last of the first rows is at the top.
    rows: BinaryHeap<Placed<T>>,
    seen: u64,
}

impl<T> First<T> {
    pub fn new(most: usize, reverse: bool) -> Self {
        Self { most, reverse, rows: BinaryHeap::new(), seen: 0 }
    }

    /// Keeps a row if it is one of the first. Rows with equal keys stay in the order in which they
    /// came. Rows without a key are the last, in either direction.
    pub fn show(&mut self, key: Option<Key>, row: impl FnOnce() -> T) {
        let place = Place { key, reverse: self.reverse, number: self.seen };
        self.seen += 1;
        if self.rows.len() >= self.most {
            if self.rows.peek().is_none_or(|last| last.place < place) {
                return;
            }
            self.rows.pop();
        }
        self.rows.push(Placed { place, row: row() });
    }

    /// The first rows in their order, and the number of all that were shown.
    pub fn end(self) -> (Vec<T>, u64) {
        let rows = self.rows.into_sorted_vec();
        (rows.into_iter().map(|placed| placed.row).collect(), self.seen)
    }
}

/// The place of a row. A greater place is a later one.
#[derive(PartialEq, Eq)]
struct Place {
    key: Option<Key>,
    reverse: bool,
    number: u64,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_key = match (&self.key, &other.key) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(one), Some(two)) => {
                // Whoever sorts by a number looks for the greatest.
                let greatest_first = matches!(one, Key::Number(_));
                match greatest_first != self.reverse {
                    true => Reverse(one).cmp(&Reverse(two)),
                    false => one.cmp(two),
                }
            }
        };
        by_key.then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

struct Placed<T> {
    place: Place,
    row: T,
}

impl<T> Ord for Placed<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place.cmp(&other.place)
    }
}

impl<T> PartialOrd for Placed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Placed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl<T> Eq for Placed<T> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(most: usize, reverse: bool, keys: &[Option<Key>]) -> Vec<usize> {
        let mut first = First::new(most, reverse);
        for (number, key) in keys.iter().enumerate() {
            first.show(key.clone(), || number);
        }
        let (rows, seen) = first.end();
        assert_eq!(seen, keys.len() as u64);
        rows
    }

    #[test]
    fn numbers_begin_with_the_greatest_and_words_with_a() {
        let numbers = [Some(Key::Number(3)), None, Some(Key::Number(9)), Some(Key::Number(3))];
        assert_eq!(first(9, false, &numbers), [2, 0, 3, 1]);
        assert_eq!(first(9, true, &numbers), [0, 3, 2, 1]);
        assert_eq!(first(2, false, &numbers), [2, 0]);
        let words = ["web", "dns", "web"].map(|word| Some(Key::text(word)));
        assert_eq!(first(9, false, &words), [1, 0, 2]);
        assert_eq!(first(1, true, &words), [0]);
        let at = |ip: [u8; 4], port| Some(Key::Address(IpAddr::from(ip), port));
        let clients = [at([10, 0, 0, 10], 1), at([10, 0, 0, 9], 2), at([10, 0, 0, 9], 1)];
        assert_eq!(first(9, false, &clients), [2, 1, 0]);
    }

    proptest! {
        /// A page has what the whole list would have at its beginning.
        #[test]
        fn a_page_is_the_beginning_of_the_list(
            keys in prop::collection::vec(prop::option::of(0u64..9), 0..60),
            most in 1usize..20,
            reverse: bool,
        ) {
            let keys: Vec<_> = keys.into_iter().map(|key| key.map(Key::Number)).collect();
            let whole = first(keys.len() + 1, reverse, &keys);
            prop_assert_eq!(&first(most, reverse, &keys)[..], &whole[..most.min(whole.len())]);
        }
    }
}
