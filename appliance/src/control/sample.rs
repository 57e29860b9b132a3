//! Writes one of so many lines of a reason.

use crate::control::log_line::Line;

/// Of `each` lines one is written. 0: none.
#[derive(Debug, Default)]
pub struct Sample {
    pub each: u32,
    /// Lines that were left out since the last one.
    left_out: u32,
    /// Rejections that those lines would have reported as suppressed.
    suppressed: u32,
}

impl Sample {
    /// Whether the line is written. Such a line stands for those that were left out, too.
    pub fn admits(&mut self, line: &mut Line<'_>) -> bool {
        self.suppressed = self.suppressed.saturating_add(line.suppressed);
        // The first line of a reason is written at once.
        let is_due = self.left_out == 0 || self.left_out >= self.each;
        if self.each == 0 || !is_due {
            self.left_out = self.left_out.saturating_add(1);
            return false;
        }
        self.left_out = 1;
        line.sampled = Some(self.each);
        line.suppressed = std::mem::take(&mut self.suppressed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::log_line::closed;
    use crate::stats::records::CloseReason;

    #[test]
    fn a_sampled_reason_has_one_line_of_so_many() {
        let mut sample = Sample { each: 3, ..Sample::default() };
        let mut written = Vec::new();
        for number in 1..=8 {
            let mut line = Line { suppressed: 1, ..closed() };
            if sample.admits(&mut line) {
                written.push((number, line.suppressed, line.sampled));
            }
        }
        assert_eq!(written, [(1, 1, Some(3)), (4, 3, Some(3)), (7, 3, Some(3))]);
        let mut none = Sample::default();
        assert!((0..9).all(|_| !none.admits(&mut closed())), "0 is none at all");
        let mut text = Vec::new();
        Line { sampled: Some(100), ..closed() }.text(&mut text);
        let text = String::from_utf8(text).expect("text");
        assert!(text.ends_with(" worker=1 sampled=100"), "{text}");
    }

    #[test]
    fn the_configuration_knows_every_reason() {
        let words: Vec<_> = CloseReason::ALL.iter().map(|reason| reason.word()).collect();
        assert_eq!(words, config_sync::model::config::CLOSE_REASONS);
    }
}
