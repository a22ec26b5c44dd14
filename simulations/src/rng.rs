//! The only source of chance in the simulated world: integers from one `u64` seed (SplitMix64).
//!
//! Never here: randomness of the operating system, floating point.

/// A stream of numbers. Two streams from the same seed and tag are equal, on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// SplitMix64's finaliser: a bijection that scatters neighbouring numbers.
pub const fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x6b69_6e66_6f6c_6b00))
    }

    /// A stream of its own, so that drawing more in one place changes nothing in another.
    pub fn fork(&self, tag: u64) -> Self {
        Self(mix(self.0 ^ mix(tag.wrapping_add(1))))
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number less than `bound`, which is not 0. The bias is below 2⁻³² for the bounds used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_numbers_and_forks_do_not_disturb() {
        let mut a = Rng::new(7);
        let mut b = Rng::new(7);
        let _ = b.fork(3).draw();
        assert_eq!((0..9).map(|_| a.draw()).collect::<Vec<_>>(), (0..9).map(|_| b.draw()).collect::<Vec<_>>());
    }

    #[test]
    fn numbers_stay_within_their_bounds() {
        let mut rng = Rng::new(1);
        for _ in 0..1_000 {
            assert!((3..=5).contains(&rng.between(3, 5)));
            assert!(!rng.chance(0) && rng.chance(1_000));
        }
    }
}
