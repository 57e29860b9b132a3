//! The keys of a backend about endpoints that go down or are removed.

use crate::model::gone::{CLOSE_AFTER, OnGone, WhenGone};
use crate::toml::reader::{Reader, Table, or, word};
use crate::toml::values::duration;

pub(crate) const WORDS: [(&str, OnGone); 2] = [("keep", OnGone::Keep), ("close", OnGone::Close)];

pub(crate) fn read<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> WhenGone {
    WhenGone {
        on_down: reader.get(table, "on_down", word(&WORDS)),
        on_removed: reader.get(table, "on_removed", word(&WORDS)),
        close_after: or(reader.get(table, "close_after", duration), CLOSE_AFTER),
    }
}
