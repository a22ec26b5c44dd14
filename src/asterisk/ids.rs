//! Tags, branches, Call-IDs and ETags: from one random seed, so that a run can be replayed.

use super::digest::tag;

/// Gives texts that nobody can guess and that do not repeat, also not after a restart, since the seed is
/// drawn afresh.
#[derive(Clone, Debug)]
pub struct Ids {
    seed: [u8; 32],
    given: u64,
}

impl Ids {
    pub fn new(seed: [u8; 32]) -> Self {
        Self { seed, given: 0 }
    }

    /// 32 hexadecimal digits.
    pub fn token(&mut self) -> String {
        self.given += 1;
        tag(&self.seed, &format!("id {}", self.given))
    }

    /// A branch of RFC 3261.
    pub fn branch(&mut self) -> String {
        format!("z9hG4bK{}", self.token())
    }
}

/// A seed of its own for each use.
pub fn derived(seed: &[u8; 32], use_of_it: &str) -> [u8; 32] {
    let text = tag(seed, use_of_it);
    let mut key = [0; 32];
    key.copy_from_slice(text.as_bytes());
    key
}
