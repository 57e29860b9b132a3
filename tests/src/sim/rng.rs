//! A small generator of numbers, so that a seed is a run, on every machine and for ever.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
    /// Bytes that choices are made of while there are some; the next one is last.
    script: Vec<u8>,
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut rng = Self { state: seed ^ 0x9E37_79B9_7F4A_7C15, script: Vec::new() };
        rng.number();
        rng
    }

    /// Makes its choices of these bytes, one or a few for each, and goes on by itself after them: a
    /// fuzzer that changes one changes one choice.
    pub fn scripted(bytes: &[u8]) -> Self {
        Self { script: bytes.iter().rev().copied().collect(), ..Self::new(0) }
    }

    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `n - 1`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        match n {
            0 => 0,
            _ if self.script.is_empty() => self.number() % n,
            _ => self.scripted_number(n) % n,
        }
    }

    /// Of as many bytes of the script as `n` numbers need.
    fn scripted_number(&mut self, n: u64) -> u64 {
        let bytes = (u64::BITS - (n - 1).leading_zeros()).div_ceil(8);
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.script.pop().unwrap_or(0)))
    }

    /// `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True in `n` of 1000 cases.
    pub fn per_mille(&mut self, n: u32) -> bool {
        n > 0 && self.below(1000) < u64::from(n)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Between `from` and `to` with every power of two as likely: small ones are not drowned.
    pub fn scale(&mut self, from: u64, to: u64) -> u64 {
        let (low, high) = (from.max(1).ilog2(), to.max(1).ilog2());
        let power = self.between(u64::from(low), u64::from(high));
        self.between(1 << power, (2 << power) - 1).clamp(from, to)
    }
}
