//! What a batch does to the sketches of the families it touches: staged, and carried out once it is durable.

use std::ops::ControlFlow;

use super::Batch;
use crate::core::family::Mode;
use crate::core::path::{BOOKS_FAMILY, Family};
use crate::core::record::{RecordKey, Stored};
use crate::core::register::Register;
use crate::core::sketch::{Change, Sketch};
use crate::core::storage::{Span, StoreError, Write};

impl<W: Write> Batch<'_, W> {
    /// A record of an exchanged family is about to be put at the head, over `existing` if there is one.
    pub(super) fn sum_put(&mut self, family: &Family, key: &RecordKey, existing: Option<&Stored>, register: &Register) {
        let (sketch_key, hash) = (self.settings.sketch_key, self.settings.sketch_key.key_hash(key));
        let item = |register: &Register| sketch_key.item_of(hash, register.stamp());
        let old = existing.map(|stored| (item(&stored.register), stored.seq));
        let new = item(register);
        let summary = self.ledger.summaries.get_mut(family).expect("every exchanged family has a summary");
        match &old {
            Some((old, _)) => summary.root.toggle(old),
            None => summary.records += 1,
        }
        summary.root.toggle(&new);
        let records = summary.records;
        if self.is_followed(family, records) {
            self.changes.push(Change::Put { family: family.clone(), old, new: (new, self.ledger.head) });
        }
    }

    /// Whether cells are kept of the family, or are to be, so that each change matters to them.
    fn is_followed(&self, family: &Family, records: u64) -> bool {
        let shared_now = |change: &Change| matches!(change, Change::Shared(shared, _) if shared == family);
        self.sketches.follows(family, records) || self.changes.iter().any(shared_now)
    }

    /// A record of an exchanged family is about to be taken out.
    pub(super) fn sum_gone(&mut self, family: &Family, key: &RecordKey, existing: &Stored) {
        let item = self.settings.sketch_key.item(key, existing.register.stamp());
        let summary = self.ledger.summaries.get_mut(family).expect("every exchanged family has a summary");
        summary.root.toggle(&item);
        summary.records -= 1;
        self.changes.push(Change::Gone { family: family.clone(), old: (item, existing.seq) });
    }

    /// A family is shared from now on: its records, as they are now, are summed.
    pub(super) fn sum_shared(&mut self, family: &Family, mode: Mode) -> Result<(), StoreError> {
        let sketch = Sketch::build(self.settings.sketch_key, |add| {
            self.write.scan(Span::Under(family), &mut |(key, stored)| {
                if key.path.key_in(family).is_some() && mode.owns(&key) {
                    add(&key, stored.register.stamp(), stored.seq);
                }
                ControlFlow::Continue(())
            })
        })?;
        self.ledger.summaries.insert(family.clone(), sketch.summary());
        self.changes.push(Change::Shared(family.clone(), Box::new(sketch)));
        Ok(())
    }

    pub(super) fn sum_unshared(&mut self, family: &Family) {
        self.ledger.summaries.remove(family);
        self.changes.push(Change::Unshared(family.clone()));
    }

    /// The exchanged family that a record takes part in, the books included.
    pub(super) fn exchanged(&self, key: &RecordKey) -> Option<Family> {
        if key.path.top() == BOOKS_FAMILY {
            return Some(Family::books());
        }
        self.ledger.families.of_record(key).map(|(family, _)| family.clone())
    }
}
