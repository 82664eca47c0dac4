//! A small seeded generator, so that a trace is the same wherever and whenever it is made.

/// SplitMix64 (Steele, Lea and Flood, 2014): one addition and a mix a number. Good enough to draw
/// workloads with, and nothing else.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator that draws the same numbers for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        crate::tie::mix(self.0)
    }

    /// A number below `n`; 0 if there is none.
    pub fn below(&mut self, n: u64) -> u64 {
        // The high half of a wide product: no division, and no bias worth speaking of.
        u64::try_from((u128::from(self.draw()) * u128::from(n)) >> 64).unwrap_or(0)
    }

    /// True once in `n` draws.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these, drawn by weight; `None` if there are none.
    pub fn weighted<'a, T>(&mut self, of: &'a [(u32, T)]) -> Option<&'a T> {
        let mut left = self.below(of.iter().map(|(weight, _)| u64::from(*weight)).sum());
        of.iter().find_map(|(weight, value)| match left.checked_sub(u64::from(*weight)) {
            Some(rest) => {
                left = rest;
                None
            }
            None => Some(value),
        })
    }

    /// A waiting time with this mean, exponentially distributed.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn waiting(&mut self, mean: f64) -> f64 {
        let uniform = ((self.draw() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -mean * uniform.ln()
    }
}
