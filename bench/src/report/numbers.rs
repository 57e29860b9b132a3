//! Numbers as people read them.

use crate::stats::Interval;

/// The middle, and its bounds in parentheses.
pub fn interval(of: Interval) -> String {
    format!("{} ({} to {})", figure(of.middle), figure(of.low), figure(of.high))
}

/// Three digits that count, or all before the point.
pub fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let all = [1234.5, 12.34, 1.234, 0.1234, 0.0].map(figure);
        assert_eq!(all, ["1234", "12.3", "1.23", "0.123", "0"]);
    }
}
