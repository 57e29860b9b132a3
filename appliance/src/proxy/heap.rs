//! Sizes of what stands on the heap, for the most memory that a worker may use.

/// The longest server name, in bytes (RFC 1035, section 2.3.4).
pub const SERVER_NAME: usize = 253;

/// The longest PROXY header that the gateway writes, in bytes (`write`).
pub const HEADER: usize = 1_024;

/// The bytes that glibc's heap has for a block: the block's size stands in front, blocks are
/// multiples of 16 bytes, and the smallest has 32.
pub const fn block(len: usize) -> usize {
    let whole = (len + 8).next_multiple_of(16);
    if whole < 32 { 32 } else { whole }
}

/// A hash table with room for so many values: seven of eight places may be used, there is a power
/// of two of them, and each has a byte of its own (hashbrown).
pub const fn hash_table(room: usize, value: usize) -> usize {
    (room * 8 / 7 + 1).next_power_of_two() * (value + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_tables_are_as_large_as_their_libraries_make_them() {
        assert_eq!([0, 24, 25, 100].map(block), [32, 32, 48, 112]);
        let table = hashbrown::HashTable::<u32>::with_capacity(1_000);
        assert!(table.allocation_size() <= hash_table(1_000, 4) + 64);
        assert!(table.allocation_size() * 2 > hash_table(1_000, 4));
    }
}
