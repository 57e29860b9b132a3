//! Points in time for people: a log line's, or an event's.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Turns the workers' clock into time of day. The offset is taken once, so that lines keep their
/// order when the system's clock is changed.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// Microseconds of Unix time at which the workers' clock stood at 0.
    start: u64,
}

impl WallClock {
    /// `micros` is the time of the workers' clock at `now`.
    pub fn new(now: SystemTime, micros: u64) -> Self {
        let unix = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Self { start: u64::try_from(unix).unwrap_or(0).saturating_sub(micros) }
    }

    /// The microseconds of Unix time at this time of the workers' clock.
    pub fn unix(self, micros: u64) -> u64 {
        self.start.saturating_add(micros)
    }

    /// The time of the workers' clock at these microseconds of Unix time.
    pub fn micros(self, unix: u64) -> u64 {
        unix.saturating_sub(self.start)
    }

    pub fn at(self, micros: u64) -> Timestamp {
        Timestamp(self.start.saturating_add(micros))
    }
}

/// Microseconds of Unix time, shown in UTC in the form of RFC 3339, with six digits of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl Timestamp {
    pub fn of(time: SystemTime) -> Self {
        WallClock::new(time, 0).at(0)
    }

    /// Writes digit by digit, which is fast, because each line has a timestamp.
    fn text(self) -> [u8; 27] {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date(days);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let fields = [
            (0..4, year),
            (5..7, month),
            (8..10, day),
            (11..13, second / 3_600),
            (14..16, second / 60 % 60),
            (17..19, second % 60),
            (20..26, micros),
        ];
        for (place, mut value) in fields {
            for digit in text[place].iter_mut().rev() {
                *digit = b'0' + u8::try_from(value % 10).expect("a digit");
                value /= 10;
            }
        }
        text
    }
}

/// Year, month and day of a number of days after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097; // days in 400 years
    const TO_1970: u64 = 719_468; // days from 0000-03-01
    // Years that begin in March have the leap day last, so months have a regular pattern.
    let days = days + TO_1970;
    let in_cycle = days % CYCLE;
    let leap_days = in_cycle / 1_460 + in_cycle / (CYCLE - 1) - in_cycle / 36_524;
    let year = (in_cycle - leap_days) / 365;
    let in_year = in_cycle - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month + 2) / 5 + 1;
    let after_new_year = u64::from(month >= 10);
    (days / CYCLE * 400 + year + after_new_year, month + 3 - 12 * after_new_year, day)
}

/// For `serde(serialize_with)`.
pub fn as_text<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    let text = time.text();
    // The text has only digits and a few ASCII signs.
    serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        let shown = |seconds: u64, micros: u64| Timestamp(seconds * 1_000_000 + micros).to_string();
        assert_eq!(shown(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(shown(951_782_400, 1), "2000-02-29T00:00:00.000001Z");
        assert_eq!(shown(1_709_251_199, 999_999), "2024-02-29T23:59:59.999999Z");
        assert_eq!(shown(1_735_689_599, 0), "2024-12-31T23:59:59.000000Z");
        assert_eq!(shown(1_735_689_600, 0), "2025-01-01T00:00:00.000000Z");
        assert_eq!(shown(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn wall_clock_follows_the_workers_clock() {
        let clock = WallClock::new(UNIX_EPOCH + Duration::from_secs(100), 40_000_000);
        assert_eq!(clock.at(40_000_000), Timestamp(100_000_000));
        assert_eq!(clock.at(41_500_000), Timestamp(101_500_000));
    }
}
