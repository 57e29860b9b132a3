//! What load generators and backends send each other, so that each can check the other's bytes.

/// Bytes of a request: size of the answer (LE u32), sequence number (8 bytes), zeros.
pub const REQUEST: usize = 64;

/// The size of an answer that has no end: the rest of the connection is a bulk stream.
pub const ENDLESS: u32 = u32::MAX;

/// A sequence number as it travels; the answer begins with it, or with as much as fits.
pub type Sequence = [u8; 8];

pub fn request(size: u32, sequence: Sequence) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&size.to_le_bytes());
    request[4..12].copy_from_slice(&sequence);
    request
}

pub fn parse_request(request: &[u8; REQUEST]) -> (u32, Sequence) {
    let [a, b, c, d, rest @ ..] = request;
    let mut sequence = Sequence::default();
    sequence.copy_from_slice(&rest[..8]);
    (u32::from_le_bytes([*a, *b, *c, *d]), sequence)
}

/// Bulk streams repeat this many bytes.
pub const PERIOD: usize = 256 << 10;

/// What bulk streams carry: from any position below [`PERIOD`] there is at least a PERIOD of it.
pub fn pattern() -> Vec<u8> {
    (0..2 * PERIOD as u64).map(pattern_at).collect()
}

/// Whether a bulk stream holds `bytes` at `position`.
pub fn is_pattern(position: u64, bytes: &[u8]) -> bool {
    (position..).zip(bytes).all(|(position, byte)| pattern_at(position) == *byte)
}

/// Differs between all 8-byte words of a period, so that bytes lost or doubled show.
fn pattern_at(position: u64) -> u8 {
    let word = (position % PERIOD as u64) / 8;
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[(position % 8) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let sequence = *b"sequence";
        assert_eq!(parse_request(&request(70_000, sequence)), (70_000, sequence));
    }

    #[test]
    fn a_shifted_stream_is_noticed() {
        let pattern = pattern();
        for position in [0, 5, 4_096, PERIOD - 3] {
            let bytes = &pattern[position..position + 64];
            assert!(is_pattern(position as u64 + 3 * PERIOD as u64, bytes));
            for shift in [1, 8, 4_096, 65_536] {
                assert!(!is_pattern((position + shift) as u64, bytes), "{position} + {shift}");
            }
        }
    }
}
