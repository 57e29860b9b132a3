//! FNV-1a of 64 bits (draft-eastlake-fnv). The hash of a text is equal on every machine and after a
//! restart; hashes with a random seed are not.

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn of(text: &str) -> u64 {
        let mut hash = Self::new();
        hash.add(text.as_bytes());
        hash.value()
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_fnv_1a() {
        assert_eq!(Fnv::of("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
