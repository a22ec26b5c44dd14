//! What goes to a follower that fetches everything: stretches of the feed in the order of keys.
//!
//! In the order of the feed each record would land on another page of the follower's tree, and each commit would write as
//! many pages as it has records; in the order of keys it writes a few. So the keys of a stretch are gathered, sorted, and
//! sent frame by frame. A stretch has no end before its last frame is sent: whatever breaks off is sent once more from its
//! beginning. Stretches grow, so that a follower need not wait for the first.
//!
//! Records are read when they are sent, as they are then: in one go where the keys lie close together in the store, one
//! by one where they do not.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::Frame;
use crate::core::family::Mode;
use crate::core::path::Family;
use crate::core::record::{Classes, Record, RecordKey, Stored};
use crate::core::storage::{Read, Span, StoreError};

/// Entries of the feed that the first stretch looks at; the following grow, so many times each, up to so many …
const FIRST_ENTRIES: usize = 256;
const GROWTH_MAX: usize = 8;
const MOST_ENTRIES: usize = 1 << 20;
/// … and until one took so many bytes of records: a stream that breaks costs no more than two stretches of that.
const ENOUGH_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of keys that a stretch holds, at most: what one follower that fetches everything costs its source.
const KEYS_MAX_BYTES: usize = 16 * 1024 * 1024;
/// A scan ends when it has come by so many other records one behind the other: reading by key costs less.
const PASSED_OVER_MAX: usize = 4;
/// A scan that ends sooner has not been worth it …
const SCANNED_MIN: usize = 8;
/// … and more keys go by before the next one: twice as many each time, up to so many.
const BY_KEY_MAX: usize = 64;

/// One stretch of the feed of a family.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The keys, one behind the other.
    bytes: Vec<u8>,
    /// Where each begins and ends, in the order of keys, the last to be sent first.
    places: Vec<(u32, u32)>,
    /// With all of them sent, the follower is complete to here.
    pub complete_to: u64,
    entries: usize,
    /// Bytes of records that have been sent of it.
    sent_bytes: usize,
    /// How many records are read by their keys before one scan and the next.
    by_key: usize,
}

impl Window {
    /// The stretch behind this one, from `after` on.
    pub fn gather<R: Read>(
        &mut self,
        read: &R,
        family: &Family,
        mode: Mode,
        classes: Classes,
        after: u64,
    ) -> Result<(), StoreError> {
        let head = read.head()?;
        if self.sent_bytes < ENOUGH_BYTES {
            let growth = (2 * ENOUGH_BYTES / self.sent_bytes.max(1)).min(GROWTH_MAX);
            self.entries = (self.entries * growth).clamp(FIRST_ENTRIES, MOST_ENTRIES);
        }
        self.bytes.clear();
        (self.sent_bytes, self.by_key) = (0, 1);
        let mut full_before = None;
        let came_to = read.feed_of(family.top(), classes, after, self.entries, &mut |(seq, _, key)| {
            if key.path.key_in(family).is_none() || !mode.owns(&key) {
                return ControlFlow::Continue(());
            }
            if self.bytes.len() >= KEYS_MAX_BYTES {
                full_before = Some(seq);
                return ControlFlow::Break(());
            }
            let start = self.bytes.len();
            key.append_to(&mut self.bytes);
            let place = |at: usize| u32::try_from(at).expect("bounded by KEYS_MAX_BYTES and a key");
            self.places.push((place(start), place(self.bytes.len())));
            ControlFlow::Continue(())
        })?;
        self.complete_to = full_before.map_or(came_to.unwrap_or(head), |seq| seq - 1);
        self.sort();
        Ok(())
    }

    /// By the first bytes that may differ, as a number, and only then by the whole keys, which lie all over the place.
    fn sort(&mut self) {
        let Some(first) = self.places.first().map(|place| key_at(&self.bytes, *place)) else { return };
        let common_bytes = self.places.iter().fold(first.len(), |common_bytes, place| {
            let both = first[..common_bytes].iter().zip(key_at(&self.bytes, *place));
            both.take_while(|(one, other)| one == other).count()
        });
        let first_of = |place: (u32, u32)| {
            let mut first = [0; size_of::<u64>()];
            let own = key_at(&self.bytes, place).get(common_bytes..).unwrap_or_default();
            let length = own.len().min(first.len());
            first[..length].copy_from_slice(&own[..length]);
            (u64::from_be_bytes(first), place)
        };
        let mut keys: Vec<_> = self.places.drain(..).map(first_of).collect();
        keys.sort_unstable_by(|(a, one), (b, other)| {
            b.cmp(a).then_with(|| key_at(&self.bytes, *other).cmp(key_at(&self.bytes, *one)))
        });
        self.places.extend(keys.into_iter().map(|(_, place)| place));
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The next records, as many as go into one frame.
    pub fn next<R: Read>(&mut self, read: &R, family: &Family) -> Result<Vec<Record>, StoreError> {
        let mut frame = Frame::default();
        'frame: while !self.is_empty() {
            for _ in 0..self.by_key {
                if self.take_by_key(read, &mut frame)?.is_break() {
                    break 'frame;
                }
            }
            let before = frame.records.len();
            if self.take_by_scan(read, family, &mut frame)?.is_break() {
                break;
            }
            let worth_it = frame.records.len() - before >= SCANNED_MIN;
            self.by_key = if worth_it { 1 } else { (2 * self.by_key).min(BY_KEY_MAX) };
        }
        self.sent_bytes += frame.bytes;
        Ok(frame.records)
    }

    /// What has been written since the keys were gathered stands behind them in the feed, and comes from there.
    fn belongs(&self, stored: &Stored) -> bool {
        stored.seq <= self.complete_to
    }

    /// Breaks where there is no more, or no more fits.
    fn take_by_key<R: Read>(&mut self, read: &R, frame: &mut Frame) -> Result<ControlFlow<()>, StoreError> {
        let Some(place) = self.places.last() else { return Ok(ControlFlow::Break(())) };
        let key = RecordKey::from_bytes(key_at(&self.bytes, *place)).expect("it was a key");
        if let Some(stored) = read.record(&key)?.filter(|stored| self.belongs(stored))
            && frame.take(key, stored).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        self.places.pop();
        Ok(ControlFlow::Continue(()))
    }

    /// Takes what lies behind the last record of the frame, as long as it lies close. Breaks where no more fits.
    fn take_by_scan<R: Read>(
        &mut self,
        read: &R,
        family: &Family,
        frame: &mut Frame,
    ) -> Result<ControlFlow<()>, StoreError> {
        let Some(last) = frame.records.last() else { return Ok(ControlFlow::Continue(())) };
        let (last, mut bytes) = (last.key.clone(), Vec::new());
        let (mut full, mut passed_over) = (ControlFlow::Continue(()), 0);
        read.scan(Span::Behind(family, &last), &mut |(key, stored)| {
            bytes.clear();
            key.append_to(&mut bytes);
            let order = loop {
                let Some(place) = self.places.last() else { return ControlFlow::Break(()) };
                match key_at(&self.bytes, *place).cmp(&bytes) {
                    // It is not there any more.
                    Ordering::Less => _ = self.places.pop(),
                    order => break order,
                }
            };
            if order == Ordering::Greater {
                passed_over += 1;
                return if passed_over < PASSED_OVER_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
            }
            passed_over = 0;
            if self.belongs(&stored) {
                full = frame.take(key, stored);
            }
            if full.is_continue() {
                self.places.pop();
            }
            full
        })?;
        Ok(full)
    }
}

fn key_at(bytes: &[u8], (start, end): (u32, u32)) -> &[u8] {
    &bytes[start as usize..end as usize]
}
