//! The writes that lost lately, for a person who asks why a key has the value it has.
//!
//! In memory only, bounded in number and bytes, oldest forgotten first. Nothing is decided by it: the
//! register decides, and this is a note of what it decided against. A batch collects its own; they are kept
//! only when the batch is durable.

use std::collections::VecDeque;

use super::clock::{Stamp, UnixMs};
use super::path::Value;
use super::record::RecordKey;
use super::register::Register;

/// How many writes that lost a node remembers.
pub const LOSERS_MAX: usize = 1_024;
/// How many bytes of keys and values of these it keeps.
pub const LOSERS_MAX_BYTES: usize = 1 << 20;

/// How a write lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was the value until it was written over or deleted at this node.
    Overwritten,
    /// It was the value until a greater stamp arrived.
    Replaced,
    /// It arrived and the value that was there had the greater stamp.
    Late,
}

impl How {
    /// A short name that does not change, for programs.
    pub fn name(self) -> &'static str {
        match self {
            How::Overwritten => "overwritten",
            How::Replaced => "replaced",
            How::Late => "late",
        }
    }
}

/// A write that lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loser {
    pub key: RecordKey,
    /// None: it was a delete.
    pub value: Option<Value>,
    pub stamp: Stamp,
    /// What it lost against.
    pub winner: Stamp,
    pub how: How,
    /// When this node saw it lose, by its wall clock.
    pub seen: UnixMs,
}

impl Loser {
    pub fn new(key: &RecordKey, lost: &Register, winner: Stamp, how: How, seen: UnixMs) -> Self {
        Self { key: key.clone(), value: lost.value().cloned(), stamp: lost.stamp(), winner, how, seen }
    }

    fn bytes(&self) -> usize {
        self.key.path.as_str().len() + self.value.as_ref().map_or(0, |value| value.as_str().len())
    }
}

/// The latest losers, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losers {
    ring: VecDeque<Loser>,
    bytes: usize,
}

impl Losers {
    pub fn push(&mut self, loser: Loser) {
        self.bytes += loser.bytes();
        self.ring.push_back(loser);
        while self.ring.len() > LOSERS_MAX || self.bytes > LOSERS_MAX_BYTES {
            let oldest = self.ring.pop_front().expect("what is over a limit is not empty");
            self.bytes -= oldest.bytes();
        }
    }

    /// Takes in those of a batch, which are newer.
    pub fn extend(&mut self, newer: Losers) {
        newer.ring.into_iter().for_each(|loser| self.push(loser));
    }

    /// Those of one record, newest first.
    pub fn of<'a>(&'a self, key: &'a RecordKey) -> impl Iterator<Item = &'a Loser> {
        self.ring.iter().rev().filter(move |loser| loser.key == *key)
    }

    pub fn len(&self) -> usize {
        self.ring.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Hlc;
    use crate::core::eid::Eid;
    use crate::core::path::{Path, VALUE_MAX_BYTES};
    use crate::core::register::value_hash;

    fn loser(key: &str, n: u64, value: &str) -> Loser {
        let value = Value::new(value).expect("a value");
        let stamp = |n, value: &Value| Stamp {
            hlc: Hlc::from_parts(1_790_000_000_000 + n, 0).expect("in range"),
            eid: Eid::new([2, 0, 0, 0, 0, 1]),
            hash: value_hash(Some(value)),
        };
        let key = RecordKey::plain(Path::new(key).expect("a path"));
        let lost = Register::new(Some(value.clone()), stamp(n, &value));
        Loser::new(&key, &lost, stamp(n + 1, &value), How::Overwritten, n)
    }

    #[test]
    fn the_oldest_losers_are_forgotten_first() {
        let mut losers = Losers::default();
        for n in 0..=LOSERS_MAX as u64 {
            losers.push(loser("/foo/k", n, "v"));
        }
        assert_eq!(losers.len(), LOSERS_MAX);
        let key = loser("/foo/k", 0, "v").key;
        let seen: Vec<_> = losers.of(&key).map(|loser| loser.seen).collect();
        assert_eq!((seen[0], seen[LOSERS_MAX - 1]), (LOSERS_MAX as u64, 1));
        assert_eq!(losers.of(&loser("/foo/other", 0, "v").key).count(), 0);
    }

    #[test]
    fn large_values_do_not_fill_the_memory() {
        let mut losers = Losers::default();
        let large = "v".repeat(VALUE_MAX_BYTES);
        let mut batch = Losers::default();
        for n in 0..100 {
            batch.push(loser("/foo/k", n, &large));
        }
        losers.extend(batch);
        assert!(losers.bytes <= LOSERS_MAX_BYTES);
        assert_eq!(losers.bytes, losers.len() * (VALUE_MAX_BYTES + "/foo/k".len()));
    }
}
