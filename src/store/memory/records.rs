//! The records of a store in memory: found by key, in the order of keys, and in the order of the change feed.
//!
//! What a thousand stores of one process hold alike is there once (`common`): a row is a pointer to it and its place
//! in this store's feed, 16 bytes. Beside it a record takes a slot in the table by which it is found (4 bytes, between
//! three and six eighths of the slots in use), a number in the order of keys (4) and an entry in the feed (16).
//!
//! The feed is kept by first segment and class: in a mesh of a thousand nodes nearly every entry came from others, and
//! all followers ask for local ones. An entry is not taken out when its record moves on. It is passed over, since its
//! row names another place, and swept out when half as many are dead as there are.

use std::sync::Arc;

use super::common::Held;
use super::order::Order;
use crate::core::mutant;
use crate::core::path::Path;
use crate::core::record::{Class, Classes, RecordKey};
use crate::core::register::Register;

const CLASSES: [Class; 3] = [Class::Local, Class::Near, Class::Far];

/// Dead entries that a feed may hold in any case.
const DEAD_MIN: usize = 16;

/// Where a record stands in the feed: its sequence number and, in the two lowest bits, its class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Place {
    pub fn new(class: Class, seq: u64) -> Self {
        Self(seq << 2 | lane_of(class) as u64)
    }

    pub fn seq(self) -> u64 {
        self.0 >> 2
    }

    pub fn class(self) -> Class {
        CLASSES[(self.0 & 3) as usize]
    }
}

fn lane_of(class: Class) -> usize {
    match class {
        Class::Local => 0,
        Class::Near => 1,
        Class::Far => 2,
    }
}

/// A record that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub register: &'a Register,
    pub place: Place,
}

#[derive(Clone, Debug, Default)]
struct Row {
    /// None: the row is free.
    held: Option<Arc<Held>>,
    place: Place,
}

/// The entries of one class, each with the row that it stands for, by sequence number.
#[derive(Clone, Debug, Default)]
struct Lane {
    entries: Vec<(u64, u32)>,
    dead: usize,
}

/// Everything under one first segment, by class.
#[derive(Clone, Debug)]
struct Feed {
    /// A path under it: its text is held in common with other stores, one of our own would be another miss.
    of: Path,
    lanes: [Lane; 3],
}

#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    rows: Vec<Row>,
    free: Vec<u32>,
    /// Open addressing: the number of a row, plus one; 0 for none.
    table: Vec<u32>,
    order: Order,
    feeds: Vec<Feed>,
}

impl Records {
    pub fn get(&self, key: &RecordKey) -> Option<Seen<'_>> {
        let (_, row) = self.find(key, Held::hash_of(key))?;
        Some(self.seen(row)?.1)
    }

    fn seen(&self, row: u32) -> Option<(&RecordKey, Seen<'_>)> {
        let Row { held, place } = &self.rows[row as usize];
        let held = held.as_ref()?;
        Some((&held.key, Seen { register: &held.register, place: *place }))
    }

    fn held(&self, row: u32) -> &Arc<Held> {
        self.rows[row as usize].held.as_ref().expect("what is in the table and in the order is there")
    }

    /// Its slot and its row.
    fn find(&self, key: &RecordKey, hash: u64) -> Option<(usize, u32)> {
        let mask = self.table.len().checked_sub(1)?;
        let mut slot = hash as usize & mask;
        loop {
            let row = self.table[slot].checked_sub(1)?;
            if self.held(row).key == *key {
                return Some((slot, row));
            }
            slot = (slot + 1) & mask;
        }
    }

    /// See `MemoryStore::glance`.
    pub fn glance(&self, step: u8, key: &RecordKey) -> u64 {
        let Some(mask) = self.table.len().checked_sub(1) else { return 0 };
        if step == 0 {
            return (self.rows.len() ^ self.feeds.len()) as u64;
        }
        let row = self.table[Held::hash_of(key) as usize & mask];
        let lanes = self.feeds.iter().flat_map(|feed| &feed.lanes);
        if step == 1 {
            return u64::from(row) ^ lanes.map(|lane| lane.entries.len() as u64).sum::<u64>();
        }
        let last: u64 = lanes.filter_map(|lane| lane.entries.last()).map(|(seq, _)| *seq).sum();
        last ^ self.rows.get((row as usize).wrapping_sub(1)).map_or(0, |row| row.place.0)
    }

    /// Puts a record in; `fed` says whether it gets an entry in the feed at its new place.
    pub fn put(&mut self, held: Arc<Held>, place: Place, fed: bool) {
        let at = self.feed_at(&held.key.path);
        let (row, before) = match self.find(&held.key, held.hash) {
            Some((_, row)) => {
                let before = std::mem::replace(&mut self.rows[row as usize], Row { held: Some(held), place }).place;
                (row, Some(before))
            }
            None => (self.insert(held, place), None),
        };
        if before == Some(place) {
            return;
        }
        if let Some(before) = before {
            self.bury(at, before);
        }
        if fed {
            self.feeds[at].lanes[lane_of(place.class())].put(place.seq(), row);
        }
    }

    pub fn remove(&mut self, key: &RecordKey) {
        let Some((slot, row)) = self.find(key, Held::hash_of(key)) else { return };
        self.close(slot);
        let Self { rows, order, .. } = self;
        order.remove(row, |other| key_of(rows, other) < key);
        let place = std::mem::take(&mut self.rows[row as usize]).place;
        self.free.push(row);
        let at = self.feed_at(&key.path);
        self.bury(at, place);
    }

    fn insert(&mut self, held: Arc<Held>, place: Place) -> u32 {
        let row = self.free.pop().unwrap_or_else(|| {
            grow(&mut self.rows);
            self.rows.push(Row::default());
            u32::try_from(self.rows.len() - 1).expect("a store in memory has fewer records than that")
        });
        let hash = held.hash;
        self.rows[row as usize] = Row { held: Some(held), place };
        let Self { rows, order, .. } = self;
        let key = key_of(rows, row);
        order.insert(row, |other| key_of(rows, other) < key);
        let records = self.rows.len() - self.free.len();
        if 4 * records > 3 * self.table.len() {
            self.table = vec![0; (2 * self.table.len()).max(16)];
            for row in 0..self.rows.len() as u32 {
                let hash = self.rows[row as usize].held.as_ref().map(|held| held.hash);
                hash.into_iter().for_each(|hash| self.enter(hash, row));
            }
        } else {
            self.enter(hash, row);
        }
        row
    }

    fn enter(&mut self, hash: u64, row: u32) {
        let mask = self.table.len() - 1;
        let mut slot = hash as usize & mask;
        while self.table[slot] != 0 {
            slot = (slot + 1) & mask;
        }
        self.table[slot] = row + 1;
    }

    /// Empties a slot, and moves up what stands behind it only because it was taken.
    fn close(&mut self, slot: usize) {
        let mask = self.table.len() - 1;
        let (mut hole, mut next) = (slot, (slot + 1) & mask);
        while let Some(row) = self.table[next].checked_sub(1) {
            let home = self.held(row).hash as usize & mask;
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(hole) & mask {
                self.table[hole] = self.table[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.table[hole] = 0;
    }

    // ---- the order of keys ------------------------------------------------------------------------

    /// The records from the first that is not `before` to the last that is not `beyond`, in the order of keys.
    pub fn range<'a>(
        &'a self,
        before: &dyn Fn(&RecordKey) -> bool,
        beyond: &dyn Fn(&RecordKey) -> bool,
    ) -> impl Iterator<Item = (&'a RecordKey, Seen<'a>)> + use<'a> {
        let key = |row| key_of(&self.rows, row);
        let rows = self.order.range(&|row| before(key(row)), &|row| !beyond(key(row)));
        rows.map(|row| self.seen(row).expect("what is in the order is there"))
    }

    // ---- the feed -----------------------------------------------------------------------------------

    fn feed_at(&mut self, path: &Path) -> usize {
        match self.feeds.binary_search_by(|feed| feed.of.top().cmp(path.top())) {
            Ok(at) => at,
            Err(at) => {
                grow(&mut self.feeds);
                self.feeds.insert(at, Feed { of: path.clone(), lanes: Default::default() });
                at
            }
        }
    }

    /// An entry stands for nothing any more.
    fn bury(&mut self, feed: usize, place: Place) {
        let lane = &mut self.feeds[feed].lanes[lane_of(place.class())];
        lane.dead += 1;
        if lane.dead > DEAD_MIN && 3 * lane.dead > lane.entries.len() && !mutant!(FeedEntryLeft) {
            let class = place.class();
            lane.entries.retain(|(seq, row)| self.rows[*row as usize].place == Place::new(class, *seq));
            lane.dead = 0;
        }
    }

    /// The entries after a sequence number, of these classes, in order.
    pub fn feed(&self, top: &str, classes: Classes, after: u64) -> impl Iterator<Item = (u64, Class, &RecordKey)> {
        let feed = self.feeds.binary_search_by(|feed| feed.of.top().cmp(top)).ok().map(|at| &self.feeds[at]);
        let mut left = CLASSES.map(|class| {
            let lane = feed.filter(|_| classes.contains(class)).map(|feed| &feed.lanes[lane_of(class)]);
            let entries = lane.map_or(&[][..], |lane| &lane.entries);
            &entries[entries.partition_point(|(seq, _)| *seq <= after)..]
        });
        std::iter::from_fn(move || {
            loop {
                let firsts = left.iter().zip(CLASSES).filter_map(|(entries, class)| Some((*entries.first()?, class)));
                let ((seq, row), class) = firsts.min()?;
                let lane = &mut left[lane_of(class)];
                *lane = &lane[1..];
                match self.seen(row) {
                    Some((key, seen)) if seen.place == Place::new(class, seq) || mutant!(FeedEntryLeft) => {
                        return Some((seq, class, key));
                    }
                    _ => {}
                }
            }
        })
    }
}

fn key_of(rows: &[Row], row: u32) -> &RecordKey {
    &rows[row as usize].held.as_ref().expect("what is in the order is there").key
}

impl Lane {
    fn put(&mut self, seq: u64, row: u32) {
        let entry = (seq, row);
        grow(&mut self.entries);
        if self.entries.last().is_none_or(|last| *last < entry) {
            return self.entries.push(entry);
        }
        match self.entries.binary_search(&entry) {
            // It was left when the record went, and the record has come back.
            Ok(_) => self.dead = self.dead.saturating_sub(1),
            Err(at) => self.entries.insert(at, entry),
        }
    }
}

/// Room for one more. By an eighth, not by as much again: of a thousand stores the slack would weigh more than the
/// copying.
fn grow<T>(entries: &mut Vec<T>) {
    if entries.len() == entries.capacity() {
        entries.reserve_exact((entries.len() / 8).max(4));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::clock::{Hlc, Stamp};
    use crate::core::eid::Eid;
    use crate::core::path::Value;
    use crate::core::register::value_hash;

    fn held(key: u64, seq: u64) -> Arc<Held> {
        let value = Value::new(&seq.to_string()).expect("a value");
        let hlc = Hlc::from_u64(seq).expect("a small one");
        let stamp = Stamp { hlc, eid: Eid::new([2; 6]), hash: value_hash(Some(&value)) };
        let key = RecordKey::plain(Path::new(&format!("/{}/{key}", key % 2)).expect("a path"));
        Arc::new(Held::new(&key, &Register::new(Some(value), stamp)))
    }

    fn everything(records: &Records, top: &str) -> (Vec<RecordKey>, Vec<(u64, Class, RecordKey)>) {
        let keys = records.range(&|_| false, &|_| false).map(|(key, _)| key.clone()).collect();
        let feed = records.feed(top, Classes::ALL, 0).map(|(seq, class, key)| (seq, class, key.clone())).collect();
        (keys, feed)
    }

    #[test]
    fn thousands_of_records_that_come_move_and_go_are_found_in_either_order() {
        let (mut records, mut model) = (Records::default(), BTreeMap::new());
        for seq in 1..6_000_u64 {
            let chance = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let (held, class) = (held(chance % 1_400, seq), CLASSES[(chance % 3) as usize]);
            if seq % 5 == 0 {
                records.remove(&held.key);
                model.remove(&held.key);
            } else {
                model.insert(held.key.clone(), (seq, class));
                records.put(held, Place::new(class, seq), true);
            }
            if seq % 500 == 0 {
                let mut feed: Vec<_> = model.iter().map(|(key, (seq, class))| (*seq, *class, key.clone())).collect();
                feed.retain(|(.., key)| key.path.top() == "1");
                feed.sort_unstable();
                assert_eq!(everything(&records, "1"), (model.keys().cloned().collect(), feed), "after {seq}");
                assert!(model.iter().all(|(key, (seq, class))| {
                    records.get(key).is_some_and(|seen| seen.place == Place::new(*class, *seq))
                }));
            }
        }
        let dead: usize = records.feeds.iter().flat_map(|feed| &feed.lanes).map(|lane| lane.dead).sum();
        assert!(dead <= model.len(), "{dead} entries stand for nothing");
    }

    #[test]
    fn what_goes_and_comes_back_at_its_old_place_stands_in_the_feed_once() {
        let mut records = Records::default();
        for seq in 1..=3 {
            records.put(held(2 * seq, seq), Place::new(Class::Near, seq), true);
        }
        let first = held(2, 1);
        records.remove(&first.key);
        assert_eq!(everything(&records, "0").1.len(), 2);
        records.put(first, Place::new(Class::Near, 1), true);
        assert_eq!(everything(&records, "0").1.iter().map(|(seq, ..)| *seq).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
