//! The second half of a reconcile: who sends which records, and what may come.

use std::collections::BTreeMap;

use super::{Own, Violation};
use crate::core::clock::Stamp;
use crate::core::codec::FRAME_MAX_BYTES;
use crate::core::message::Reconcile;
use crate::core::record::{Record, RecordKey};
use crate::core::sketch::{Differences, Item};
use crate::core::storage::{Read, StoreError};

/// How many bytes of records and wants go into one frame: below its limit by more than any fixed part.
const BATCH_MAX_BYTES: usize = FRAME_MAX_BYTES - 4_096;
const WANT_BYTES: usize = 8;

/// What is still to be sent, told and received.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    to_send: Vec<RecordKey>,
    to_want: Vec<u64>,
    /// The records that we lack, by the hash of their keys: the stamp that each must have at least.
    awaited: BTreeMap<u64, Stamp>,
    /// How many records may come without having been asked for: we have not decoded, the peer has.
    pub unasked: usize,
    /// How many records the peer has asked for.
    wanted: usize,
    pub sent: u64,
    pub received: u64,
}

impl Exchange {
    /// The peer has decoded, not we: so many records may come unasked.
    pub fn unasked(records: usize) -> Self {
        Self { unasked: records, ..Self::default() }
    }

    /// Of two items of one record the one with the greater stamp wins, and only that one crosses.
    pub fn plan<R: Read>(own: &Own, read: &R, differences: Differences) -> Result<Self, StoreError> {
        let by_key = |items: &[Item]| items.iter().map(|item| (item.key, item.stamp)).collect::<BTreeMap<_, _>>();
        let (ours, theirs) = (by_key(&differences.ours), by_key(&differences.theirs));
        let beats = |item: &Item, others: &BTreeMap<u64, Stamp>| {
            others.get(&item.key).is_none_or(|other| *other < item.stamp) || mutant!(LosersSent)
        };
        let mut exchange = Self::default();
        for item in differences.ours.iter().filter(|item| beats(item, &theirs)) {
            if mutant!(OffersForgotten) && item.stamp.hlc.as_u64() & 3 == 0 {
                continue;
            }
            let found = own.find(read, item.key, Some(item))?;
            let Some(key) = found.into_iter().next() else {
                return Err(StoreError::Corrupted("the sketch names a record that is not there".to_string()));
            };
            exchange.to_send.push(key);
        }
        for item in differences.theirs.iter().filter(|item| beats(item, &ours)) {
            if mutant!(WantForgotten) && item.stamp.hlc.as_u64() & 3 == 0 {
                continue;
            }
            exchange.awaited.insert(item.key, item.stamp);
            exchange.to_want.push(item.key);
        }
        Ok(exchange)
    }

    /// The peer has told which records it lacks; `most` in all, since no more came out of its cells.
    pub fn add_wants<R: Read>(
        &mut self,
        own: &Own,
        read: &R,
        wants: &[u64],
        most: usize,
    ) -> Result<Result<(), Violation>, StoreError> {
        let room = usize::try_from(own.sketch.summary().records).unwrap_or(usize::MAX);
        self.wanted += wants.len();
        if self.to_send.len() + wants.len() > room || self.wanted > most {
            return Ok(Err(Violation::Wants));
        }
        for key in wants {
            let found = own.find(read, *key, None)?;
            if found.is_empty() {
                return Ok(Err(Violation::Wants));
            }
            self.to_send.extend(found);
        }
        Ok(Ok(()))
    }

    /// The next frame of records and wants; it says whether it is the last.
    pub fn next_frame<R: Read>(&mut self, read: &R) -> Result<Reconcile, StoreError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(key) = self.to_send.pop() {
            let Some(stored) = read.record(&key)? else { continue };
            let record = Record::new(key.clone(), stored);
            bytes += record.frame_bytes();
            if bytes > BATCH_MAX_BYTES && !records.is_empty() {
                self.to_send.push(key);
                break;
            }
            records.push(record);
        }
        let room = BATCH_MAX_BYTES.saturating_sub(bytes) / WANT_BYTES;
        let wants = self.to_want.split_off(self.to_want.len() - self.to_want.len().min(room));
        self.sent += records.len() as u64;
        let last = self.to_send.is_empty() && self.to_want.is_empty();
        Ok(Reconcile::Records { records, wants, last })
    }

    /// Records came: each must be one that we lack, and come once.
    pub fn receive(&mut self, own: &Own, records: &[Record]) -> Result<(), Violation> {
        for record in records {
            let item = own.sketch.item_of(&record.key, record.register.stamp());
            match self.awaited.remove(&item.key) {
                Some(least) if item.stamp >= least => {}
                None if self.unasked > 0 => self.unasked -= 1,
                _ => return Err(Violation::Unwanted(record.key.path.to_string())),
            }
        }
        self.received += records.len() as u64;
        Ok(())
    }

    /// The peer has sent its last record: everything that we lacked must have come.
    pub fn complete(&self) -> Result<(), Violation> {
        if self.awaited.is_empty() { Ok(()) } else { Err(Violation::Missing) }
    }
}
