//! The names of workloads, by which their runs are found.

/// Bytes of an answer, by the name used in workloads.
pub const SIZES: [(&str, u32); 7] = [
    ("64", 64),
    ("1k", 1 << 10),
    ("4k", 4 << 10),
    ("16k", 16 << 10),
    ("64k", 64 << 10),
    ("256k", 256 << 10),
    ("1m", 1 << 20),
];

/// Whether `name` is `pattern`, in which each `*` stands for any text.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|from| rest.get(from..).is_some_and(|rest| matches(tail, rest)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        assert!(matches("tcp-*", "tcp-idle"));
        assert!(matches("*-64x*", "tcp-request-64x512"));
        assert!(matches("dns", "dns"));
        assert!(!matches("tcp-*", "udp-64-100"));
        assert!(!matches("*-64x1", "tcp-request-64x12"));
        assert!(!matches("dns", "dns2"));
    }
}
