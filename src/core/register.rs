//! The last-writer-wins register: a stamp, and a value or a tombstone.
//!
//! `crdts::LWWReg` asks its caller for markers that are globally unique, and keeps the first value
//! silently where two are equal. Here the marker is a [`Stamp`] that carries the hash of the value, so
//! that even two clones of one EID, which may stamp alike, are ordered; should the hashes collide as
//! well, the values decide. So the order is total, and a merge is commutative, associative and
//! idempotent for any input.

use crdts::{CvRDT, LWWReg};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::clock::Stamp;
use super::path::Value;

/// What a tombstone hashes to.
const TOMBSTONE_HASH: u64 = 0x6b69_6e66_6f6c_6b21;

/// The value hash of a stamp: XXH3-64 of the bytes; a tombstone has its own constant.
///
/// Not keyed: the hash only orders clones of one EID, and no one gains from a collision there.
pub fn value_hash(value: Option<&Value>) -> u64 {
    value.map_or(TOMBSTONE_HASH, |value| xxh3_64(value.as_str().as_bytes()))
}

/// A register that has been written at least once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register(LWWReg<Option<Value>, Stamp>);

/// What a merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Merge {
    /// The arriving write has the greater stamp, or the key was absent: it is the value now.
    Won,
    /// The arriving write has the smaller stamp: nothing changed.
    Lost,
    /// Both are the same write: nothing changed.
    Same,
}

/// A merge, and whether it showed that two nodes use one EID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    pub merge: Merge,
    /// Both writes bear the same time and EID but are not the same write.
    pub duplicate_eid: bool,
}

/// The register's stamp does not belong to its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stamp {stamp} does not carry the hash of its value, {hash:016x}")]
pub struct HashMismatch {
    stamp: Stamp,
    hash: u64,
}

impl Register {
    /// A register with this content. The stamp's hash must be [`value_hash`] of the value.
    pub fn new(value: Option<Value>, stamp: Stamp) -> Self {
        let register = Self(LWWReg { val: value, marker: stamp });
        debug_assert_eq!(register.check(), Ok(()));
        register
    }

    /// A register of content that came from outside.
    pub fn checked(value: Option<Value>, stamp: Stamp) -> Result<Self, HashMismatch> {
        let register = Self(LWWReg { val: value, marker: stamp });
        register.check()?;
        Ok(register)
    }

    /// Checks what came from outside: a wrong hash would order clones differently on different nodes.
    pub fn check(&self) -> Result<(), HashMismatch> {
        let hash = value_hash(self.value());
        if hash == self.0.marker.hash { Ok(()) } else { Err(HashMismatch { stamp: self.0.marker, hash }) }
    }

    pub fn value(&self) -> Option<&Value> {
        self.0.val.as_ref()
    }

    pub fn is_tombstone(&self) -> bool {
        self.0.val.is_none()
    }

    pub fn stamp(&self) -> Stamp {
        self.0.marker
    }

    /// Takes `other` in: the greatest stamp wins, and after it, if two stamps are equal to the last bit,
    /// the greater value (a tombstone is less than any value).
    pub fn merge(&mut self, other: Register) -> Merged {
        let (ours, theirs) = (self.stamp(), other.stamp());
        let equal_markers = self.0.validate_merge(&other.0).is_err();
        let duplicate_eid = equal_markers || (ours != theirs && (ours.hlc, ours.eid) == (theirs.hlc, theirs.eid));
        if mutant!(TieByArrival) && ours.hlc == theirs.hlc && ours != theirs {
            *self = other;
            return Merged { merge: Merge::Won, duplicate_eid };
        }
        let merge = if equal_markers {
            if self.0.val < other.0.val {
                *self = other;
                Merge::Won
            } else {
                Merge::Lost
            }
        } else if ours == theirs {
            Merge::Same
        } else {
            self.0.merge(other.0);
            if self.stamp() == theirs { Merge::Won } else { Merge::Lost }
        };
        Merged { merge, duplicate_eid }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::clock::Hlc;
    use crate::core::eid::Eid;

    fn register(ms: u64, node: u8, value: Option<&str>) -> Register {
        let value = value.map(|value| Value::new(value).expect("a value"));
        let hlc = Hlc::from_parts(1_790_000_000_000 + ms, 0).expect("in range");
        let stamp = Stamp { hlc, eid: Eid::new([2, 0, 0, 0, 0, node]), hash: value_hash(value.as_ref()) };
        Register::new(value, stamp)
    }

    #[test]
    fn the_greater_stamp_wins_whatever_the_order_of_arrival() {
        let (old, new) = (register(1, 9, Some("old")), register(2, 1, None));
        let mut a = old.clone();
        assert_eq!(a.merge(new.clone()), Merged { merge: Merge::Won, duplicate_eid: false });
        let mut b = new;
        assert_eq!(b.merge(old), Merged { merge: Merge::Lost, duplicate_eid: false });
        assert_eq!(a, b);
        assert!(a.is_tombstone());
    }

    #[test]
    fn the_same_write_twice_changes_nothing() {
        let mut a = register(1, 1, Some("v"));
        let copy = a.clone();
        assert_eq!(a.merge(copy), Merged { merge: Merge::Same, duplicate_eid: false });
    }

    #[test]
    fn clones_of_one_eid_are_ordered_and_reported() {
        let (one, two) = (register(1, 1, Some("one")), register(1, 1, Some("two")));
        let (mut a, mut b) = (one.clone(), two.clone());
        assert!(a.merge(two).duplicate_eid);
        assert!(b.merge(one).duplicate_eid);
        assert_eq!(a, b);
    }

    #[test]
    fn equal_stamps_with_different_values_still_converge() {
        let one = register(1, 1, Some("one"));
        let forged = Register(LWWReg { val: Some(Value::new("two").expect("a value")), marker: one.stamp() });
        assert!(forged.check().is_err(), "what arrives with a wrong hash is refused before it is merged");
        let (mut a, mut b) = (one.clone(), forged.clone());
        a.merge(forged);
        b.merge(one);
        assert_eq!(a, b);
        assert_eq!(a.value().map(Value::as_str), Some("two"));
    }

    fn any_register() -> impl Strategy<Value = Register> {
        (0..3u64, 0..2u8, proptest::option::of("[ab]{0,1}"))
            .prop_map(|(ms, node, value)| register(ms, node, value.as_deref()))
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_and_idempotent(a in any_register(), b in any_register(), c in any_register()) {
            let merged = |x: &Register, y: &Register| { let mut x = x.clone(); x.merge(y.clone()); x };
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a);
        }
    }
}
