//! Chance that is the same on every machine.

/// A small generator of our own (xorshift64*): a seed gives the same script everywhere.
pub struct Dice(u64);

impl Dice {
    /// `seed`: not 0.
    pub fn new(seed: u64) -> Self {
        Self(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed))
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}
