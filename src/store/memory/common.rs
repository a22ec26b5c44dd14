//! What several stores of one process hold in common.
//!
//! A simulated cluster is a thousand stores that come to hold the same records. Each of them put in with [`Common`] is
//! in memory once, with its key. A store of its own does without.

use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::core::record::RecordKey;
use crate::core::register::Register;

/// A record without what each store knows of it by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub key: RecordKey,
    /// Of the key.
    pub hash: u64,
    pub register: Register,
}

impl Held {
    pub fn new(key: &RecordKey, register: &Register) -> Self {
        Self { key: key.clone(), hash: Self::hash_of(key), register: register.clone() }
    }

    /// For a table that never leaves this process: nobody gains from keys that collide but slower tests.
    pub fn hash_of(key: &RecordKey) -> u64 {
        let path = key.path.as_str().as_bytes();
        match key.owner {
            None => xxh3_64(path),
            Some(owner) => xxh3_64_with_seed(path, xxh3_64(&owner.bytes())),
        }
    }
}

/// Records that are held by stores which were made with it. A handle: clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Common(Arc<Mutex<Table>>);

/// Open addressing. What no store holds any more is dropped when there is no room left.
#[derive(Debug, Default)]
struct Table {
    slots: Vec<Option<Arc<Held>>>,
    used: usize,
}

/// The fewest slots there are.
const SLOTS_MIN: usize = 64;

impl Common {
    pub(super) fn hold(&self, key: &RecordKey, register: &Register) -> Arc<Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hold(key, register)
    }
}

impl Table {
    fn hold(&mut self, key: &RecordKey, register: &Register) -> Arc<Held> {
        if 4 * self.used >= 3 * self.slots.len() {
            self.make_room();
        }
        let slot = self.slot(register, |held| held.register == *register && held.key == *key);
        match &self.slots[slot] {
            Some(held) => Arc::clone(held),
            None => {
                self.used += 1;
                Arc::clone(self.slots[slot].insert(Arc::new(Held::new(key, register))))
            }
        }
    }

    /// The slot of the record that is meant, or the free one that it would take.
    fn slot(&self, register: &Register, is_meant: impl Fn(&Held) -> bool) -> usize {
        let (stamp, mask) = (register.stamp(), self.slots.len() - 1);
        let mixed = (stamp.hlc.as_u64() ^ stamp.hash.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut slot = (mixed >> 32) as usize & mask;
        while self.slots[slot].as_ref().is_some_and(|held| !is_meant(held)) {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn make_room(&mut self) {
        let old = std::mem::take(&mut self.slots);
        let held: Vec<_> = old.into_iter().flatten().filter(|held| Arc::strong_count(held) > 1).collect();
        self.used = held.len();
        self.slots.resize((2 * held.len()).next_power_of_two().max(SLOTS_MIN), None);
        for held in held {
            let slot = self.slot(&held.register, |_| false);
            self.slots[slot] = Some(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::{Hlc, Stamp};
    use crate::core::eid::Eid;
    use crate::core::path::{Path, Value};
    use crate::core::register::value_hash;

    fn record(n: u64) -> (RecordKey, Register) {
        let value = Value::new(&n.to_string()).expect("a value");
        let stamp =
            Stamp { hlc: Hlc::from_u64(n).expect("small"), eid: Eid::new([2; 6]), hash: value_hash(Some(&value)) };
        (RecordKey::plain(Path::new(&format!("/foo/{n}")).expect("a path")), Register::new(Some(value), stamp))
    }

    #[test]
    fn what_two_stores_hold_is_there_once_and_what_none_holds_goes() {
        let common = Common::default();
        let hold = |n| {
            let (key, register) = record(n);
            common.hold(&key, &register)
        };
        let kept: Vec<_> = (0..100).map(hold).collect();
        assert!((0..100).all(|n| Arc::ptr_eq(&hold(n), &kept[n as usize])));
        (100..100_000).for_each(|n| drop(hold(n)));
        assert!((0..100).all(|n| Arc::ptr_eq(&hold(n), &kept[n as usize])));
        let table = common.0.lock().expect("nobody panicked");
        assert!(table.slots.len() <= 512, "{} slots for a hundred", table.slots.len());
    }
}
