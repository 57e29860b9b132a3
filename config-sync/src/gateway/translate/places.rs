//! Places of what stands in no file.

use std::sync::Arc;

use crate::model::place::{At, Place};

/// Nothing here stands in a file: problems say of which listener, route or backend they are, by the
/// name in the configuration, so that it can be left out.
pub(super) fn at<T>(value: T, of: &str) -> At<T> {
    let place = Place { file: Arc::from(of), line: 0, column: 0, field: String::new() };
    At { value, place }
}
