//! Places of values that are in no file.

use std::sync::Arc;

use crate::model::place::{At, Place};

/// A value's place. The place has the configuration's name of the listener, route or backend
/// instead of a file name, so that the part with a problem can be left out.
pub(super) fn at<T>(value: T, of: &str) -> At<T> {
    let place = Place { file: Arc::from(of), line: 0, column: 0, field: String::new() };
    At { value, place }
}
