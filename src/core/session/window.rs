//! What goes to a follower that fetches everything: stretches of the feed in the order of keys.
//!
//! In the order of the feed each record would land on another page of the follower's tree, and each commit would write as
//! many pages as it has records; in the order of keys it writes a few. So the keys of a stretch are gathered, sorted, and
//! sent frame by frame. A stretch has no end before its last frame is sent: whatever breaks off is sent once more from its
//! beginning. Stretches grow, so that a follower need not wait for the first.
//!
//! Never here: records. They are read when they are sent, as they are then.

use std::ops::ControlFlow;

use crate::core::family::Mode;
use crate::core::path::Family;
use crate::core::record::{Classes, RecordKey};
use crate::core::storage::{Read, StoreError};

/// Entries of the feed that the first stretch looks at; the following double, up to so many …
const FIRST_ENTRIES: usize = 256;
const MOST_ENTRIES: usize = 1 << 20;
/// … and until one took so many bytes of records: a stream that breaks costs no more than two stretches of that.
const ENOUGH_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of keys that a stretch holds, at most: what one follower that fetches everything costs its source.
const KEYS_MAX_BYTES: usize = 16 * 1024 * 1024;

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
            self.entries = (self.entries * 2).clamp(FIRST_ENTRIES, MOST_ENTRIES);
        }
        self.bytes.clear();
        self.sent_bytes = 0;
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
            self.bytes.extend_from_slice(&key.to_bytes());
            let place = |at: usize| u32::try_from(at).expect("bounded by KEYS_MAX_BYTES and a key");
            self.places.push((place(start), place(self.bytes.len())));
            ControlFlow::Continue(())
        })?;
        self.complete_to = full_before.map_or(came_to.unwrap_or(head), |seq| seq - 1);
        let bytes = &self.bytes;
        self.places.sort_unstable_by(|a, b| key_at(bytes, *b).cmp(key_at(bytes, *a)));
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The next key; it stays the next until [`Self::advance`].
    pub fn peek(&self) -> Option<RecordKey> {
        let place = self.places.last()?;
        Some(RecordKey::from_bytes(key_at(&self.bytes, *place)).expect("it was a key"))
    }

    /// The next key is done with; its record took so many bytes, if there was one to send.
    pub fn advance(&mut self, record_bytes: usize) {
        self.places.pop();
        self.sent_bytes += record_bytes;
    }
}

fn key_at(bytes: &[u8], (start, end): (u32, u32)) -> &[u8] {
    &bytes[start as usize..end as usize]
}
