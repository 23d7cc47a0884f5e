//! Choices that look random and are the same in every run.

/// Marsaglia's xorshift (64 bits): small, the same everywhere, and good enough to choose with.
pub struct Random(u64);

impl Random {
    pub fn of(round: u64) -> Random {
        Random(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, most: usize) -> usize {
        for shift in [13_i32, -7, 17] {
            self.0 ^= if shift > 0 { self.0 << shift } else { self.0 >> -shift };
        }
        (self.0 >> 33) as usize % most.max(1)
    }

    pub fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// Up to `most` of these pieces in a row.
    pub fn text(&mut self, pieces: &[&str], most: usize) -> String {
        (0..self.below(most)).map(|_| self.one(pieces)).collect()
    }
}

/// The seeds of a run: so many by default, more by `UPDATER_ROUNDS`, from `UPDATER_SEED` on.
pub fn rounds(by_default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("UPDATER_SEED").unwrap_or(1);
    first..first + number("UPDATER_ROUNDS").unwrap_or(by_default)
}
