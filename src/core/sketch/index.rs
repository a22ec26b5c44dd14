//! Where each record stands in the change feed, by the hash of its key: so that the records of decoded items are found
//! without a scan. 16 bytes a record, in buckets that a snapshot shares until they change.
//!
//! Never here: what is found there. Invariant: each bucket is in order, and holds what its share of all hashes holds.

use std::sync::Arc;

/// Entries of one bucket, on average at most.
const BUCKET_ENTRIES: usize = 64;

/// The hash of a key, and a place in the feed.
type Entry = (u64, u64);

#[derive(Clone, Debug)]
pub(super) struct Index {
    bits: u32,
    buckets: Vec<Arc<Vec<Entry>>>,
    entries: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { bits: 0, buckets: vec![Arc::default()], entries: 0 }
    }
}

/// A record takes a place in the feed, leaves it, or both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub key: u64,
    pub old: Option<u64>,
    pub new: Option<u64>,
}

impl Index {
    /// Does many at once: no two buckets lie near each other in memory, so all are asked for before the first is waited
    /// for.
    pub fn apply(&mut self, moves: &[Move]) {
        std::hint::black_box(moves.iter().map(|of| self.near(of.key)).fold(0, u64::wrapping_add));
        for Move { key, old, new } in moves.iter().copied() {
            match (old, new) {
                (Some(old), Some(new)) => self.replace(key, old, new),
                (Some(old), None) => self.remove(key, old),
                (None, Some(new)) => self.insert(key, new),
                (None, None) => {}
            }
        }
    }

    /// Something that lies where the key does.
    fn near(&self, key: u64) -> u64 {
        let bucket = &self.buckets[self.bucket_of(key)];
        bucket.get(expected_at(bucket, self.bits, key)).map_or(0, |entry| entry.1)
    }

    pub fn insert(&mut self, key: u64, seq: u64) {
        if self.entries >= self.buckets.len() * BUCKET_ENTRIES {
            self.double();
        }
        let (bits, at) = (self.bits, self.bucket_of(key));
        let bucket = Arc::make_mut(&mut self.buckets[at]);
        bucket.insert(first_from(bucket, bits, (key, seq)), (key, seq));
        self.entries += 1;
    }

    fn remove(&mut self, key: u64, seq: u64) {
        let (bits, at) = (self.bits, self.bucket_of(key));
        let bucket = Arc::make_mut(&mut self.buckets[at]);
        let place = first_from(bucket, bits, (key, seq));
        if bucket.get(place) == Some(&(key, seq)) {
            bucket.remove(place);
            self.entries -= 1;
        }
    }

    /// A record has moved in the feed: mostly there is but one of its hash, and nothing else moves.
    fn replace(&mut self, key: u64, old: u64, new: u64) {
        let (bits, at) = (self.bits, self.bucket_of(key));
        let bucket = Arc::make_mut(&mut self.buckets[at]);
        let place = first_from(bucket, bits, (key, old));
        if bucket.get(place) == Some(&(key, old)) && bucket.get(place + 1).is_none_or(|next| next.0 != key) {
            bucket[place].1 = new;
            return;
        }
        self.remove(key, old);
        self.insert(key, new);
    }

    pub fn of(&self, key: u64) -> impl Iterator<Item = u64> {
        let bucket = &self.buckets[self.bucket_of(key)];
        let start = first_from(bucket, self.bits, (key, 0));
        bucket[start..].iter().take_while(move |entry| entry.0 == key).map(|entry| entry.1)
    }

    /// All entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.buckets.iter().flat_map(|bucket| bucket.iter().copied())
    }

    fn bucket_of(&self, key: u64) -> usize {
        if self.bits == 0 { 0 } else { (key >> (64 - self.bits)) as usize }
    }

    fn double(&mut self) {
        self.bits += 1;
        let old = std::mem::take(&mut self.buckets);
        for bucket in old {
            let shift = 64 - self.bits;
            let middle = bucket.partition_point(|entry| (entry.0 >> shift) & 1 == 0);
            self.buckets.push(Arc::new(bucket[..middle].to_vec()));
            self.buckets.push(Arc::new(bucket[middle..].to_vec()));
        }
    }
}

/// The place of the first entry that is not less. Hashes lie evenly in a bucket's share of them, so that it is near the
/// place that the hash itself tells: that costs one or two lines of memory, a binary search one for each step.
fn first_from(bucket: &[Entry], bits: u32, wanted: Entry) -> usize {
    let mut place = expected_at(bucket, bits, wanted.0);
    while place > 0 && bucket[place - 1] >= wanted {
        place -= 1;
    }
    while place < bucket.len() && bucket[place] < wanted {
        place += 1;
    }
    place
}

/// Where a key should be if hashes lay quite evenly.
fn expected_at(bucket: &[Entry], bits: u32, key: u64) -> usize {
    let share = key << bits;
    ((u128::from(share) * bucket.len() as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// With few keys many have the same hash; shifted, they fill few buckets.
        #[test]
        fn an_index_is_an_ordered_set_whatever_the_hashes_are(
            steps in prop::collection::vec((any::<u8>(), 0..4_u64, 0..3_u8), 0..600),
            shift in prop::sample::select(vec![0, 30, 56]),
        ) {
            let (mut index, mut model) = (Index::default(), BTreeSet::new());
            for (key, seq, step) in steps {
                let key = u64::from(key) << shift;
                match step {
                    0 => {
                        index.remove(key, seq);
                        model.remove(&(key, seq));
                    }
                    1 if model.contains(&(key, seq)) && !model.contains(&(key, seq + 10)) => {
                        index.replace(key, seq, seq + 10);
                        model.remove(&(key, seq));
                        model.insert((key, seq + 10));
                    }
                    _ if model.insert((key, seq)) => index.insert(key, seq),
                    _ => {}
                }
                prop_assert!(index.of(key).eq(model.range((key, 0)..=(key, u64::MAX)).map(|entry| entry.1)));
            }
            prop_assert!(index.entries().eq(model.iter().copied()));
            prop_assert_eq!(index.entries, model.len());
        }
    }
}
