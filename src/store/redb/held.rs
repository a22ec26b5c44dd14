//! The changes of one table that wait to be written, found by key: keys and rows lie in one piece of memory, so that a
//! change costs no allocation of its own, and all of them go to another thread as one.

use std::ops::Range;

use hashbrown::HashTable;

/// So many changes of one table wait at most …
const CHANGES_MAX: usize = 512;
/// … and so many bytes of them, beyond which the next one is the last.
const BYTES_MAX: usize = 1024 * 1024;

/// What is yet to be written to one table.
#[derive(Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    changes: Vec<Change>,
    /// Where the change of a key stands among them.
    places: HashTable<usize>,
}

struct Change {
    hash: u64,
    key: Range<usize>,
    /// None: the row ends.
    row: Option<Range<usize>>,
}

impl Held {
    /// `row` writes the row behind what it is given; none ends the row. `hash` is the key's.
    pub fn change(&mut self, hash: u64, key: &[u8], row: Option<impl FnOnce(&mut Vec<u8>)>) {
        let place = match self.place(hash, key) {
            Some(place) => place,
            None => {
                let key = appended(&mut self.bytes, |bytes| bytes.extend_from_slice(key));
                let place = self.changes.len();
                self.changes.push(Change { hash, key, row: None });
                self.places.insert_unique(hash, place, |place| self.changes[*place].hash);
                place
            }
        };
        self.changes[place].row = row.map(|row| appended(&mut self.bytes, row));
    }

    /// The change of this key, if there is one: its row, or the end of it.
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<Option<&[u8]>> {
        let place = self.place(hash, key)?;
        Some(self.changes[place].row.clone().map(|row| &self.bytes[row]))
    }

    fn place(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.places.find(hash, |place| &self.bytes[self.changes[*place].key.clone()] == key).copied()
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether it is to be written now.
    pub fn is_full(&self) -> bool {
        self.changes.len() >= CHANGES_MAX || self.bytes.len() >= BYTES_MAX
    }

    /// The hashes of the keys that are changed.
    pub fn hashes(&self) -> impl Iterator<Item = u64> {
        self.changes.iter().map(|change| change.hash)
    }

    /// The changes in the order of keys, in which writing them touches the fewest pages.
    pub fn in_order(&mut self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let bytes = &self.bytes;
        // Most often they came in order.
        self.changes.sort_by(|a, b| bytes[a.key.clone()].cmp(&bytes[b.key.clone()]));
        let of = |range: &Range<usize>| &bytes[range.clone()];
        self.changes.iter().map(move |change| (of(&change.key), change.row.as_ref().map(of)))
    }
}

/// Where what `write` appends comes to lie.
fn appended(bytes: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
    let start = bytes.len();
    write(bytes);
    start..bytes.len()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::hash::BuildHasher;

    use hashbrown::DefaultHashBuilder;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_held_is_a_map_of_the_latest_changes(
            steps in prop::collection::vec((0..40_u8, prop::option::of(any::<u16>())), 0..300),
        ) {
            let hasher = DefaultHashBuilder::default();
            let (mut held, mut model) = (Held::default(), BTreeMap::new());
            for (key, row) in steps {
                let key = vec![b'k'; usize::from(key)];
                let row = row.map(|row| row.to_be_bytes().to_vec());
                held.change(hasher.hash_one(&key[..]), &key, row.as_ref().map(|row| |bytes: &mut Vec<u8>| bytes.extend_from_slice(row)));
                model.insert(key.clone(), row.clone());
                prop_assert_eq!(held.get(hasher.hash_one(&key[..]), &key), Some(row.as_deref()));
            }
            for key in (0..50).map(|length| vec![b'k'; length]) {
                prop_assert_eq!(held.get(hasher.hash_one(&key[..]), &key), model.get(&key).map(|row| row.as_deref()));
            }
            let hashes: Vec<u64> = held.hashes().collect();
            prop_assert!(model.keys().all(|key| hashes.contains(&hasher.hash_one(&key[..]))));
            let expected: Vec<_> = model.iter().map(|(key, row)| (&key[..], row.as_deref())).collect();
            prop_assert_eq!(held.in_order().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn it_is_full_with_many_changes_and_with_many_bytes() {
        let mut held = Held::default();
        for n in 0..CHANGES_MAX {
            assert!(!held.is_full(), "{n} changes");
            held.change(n as u64, &n.to_be_bytes(), None::<fn(&mut Vec<u8>)>);
        }
        assert!(held.is_full());
        let mut held = Held::default();
        while !held.is_full() {
            held.change(1, b"one and the same", Some(|bytes: &mut Vec<u8>| bytes.extend([0; 60_000])));
        }
        assert!(held.bytes.len() < BYTES_MAX + 60_000 && held.changes.len() == 1);
    }
}
