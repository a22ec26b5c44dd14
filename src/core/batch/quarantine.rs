//! Records that were set aside: put there, confirmed by what arrives, and released or discarded by the operator.

use super::{Batch, Step};
use crate::core::clock::Hlc;
use crate::core::record::RecordKey;
use crate::core::register::Register;
use crate::core::replica::{Outcome, Refusal};
use crate::core::storage::{Quarantined, StoreError, Write};

impl<W: Write> Batch<'_, W> {
    /// Sets a record aside. Of two under one key the later one stays.
    pub(super) fn set_aside(&mut self, key: &RecordKey, register: Register, floor: Hlc) -> Result<(), StoreError> {
        if mutant!(QuarantineForgets) {
            return Ok(());
        }
        let before = self.write.quarantined(key)?;
        if before.as_ref().is_some_and(|before| before.register.stamp() >= register.stamp()) {
            return Ok(());
        }
        let quarantined = Quarantined { register, floor, since_unix_ms: self.now };
        self.write.set_quarantined(key, Some(&quarantined))?;
        self.ledger.quarantined += u64::from(before.is_none());
        self.counts.quarantined += 1;
        Ok(())
    }

    /// A record is about to be stored. What was set aside under its key is no longer in doubt if it is the same write or
    /// an older one.
    pub(super) fn settle_quarantine(&mut self, key: &RecordKey, register: &Register) -> Result<(), StoreError> {
        if self.ledger.quarantined == 0 {
            return Ok(());
        }
        match self.write.quarantined(key)? {
            Some(quarantined) if quarantined.register.stamp() <= register.stamp() => self.forget_quarantined(key),
            _ => Ok(()),
        }
    }

    fn forget_quarantined(&mut self, key: &RecordKey) -> Result<(), StoreError> {
        self.write.set_quarantined(key, None)?;
        self.ledger.quarantined -= 1;
        self.changed = true;
        Ok(())
    }

    /// Writes what was set aside anew, as this node's own write of now.
    pub(super) fn release(&mut self, key: RecordKey) -> Step<Outcome> {
        let Some(quarantined) = self.write.quarantined(&key)? else { return Ok(Err(Refusal::NotQuarantined)) };
        let path = key.path.clone();
        if key != self.own_key(path.clone()) {
            return Ok(Err(Refusal::UnderEid { path: key.text_under_eid() }));
        }
        let outcome = match quarantined.register.value() {
            Some(value) => self.put(path, value.clone())?,
            None => match self.delete(path.clone())? {
                // It is not there any more, which is what was wanted.
                Err(Refusal::NotFound) => Ok(Outcome::Noted),
                outcome => outcome,
            },
        };
        self.counts.released += u64::from(outcome.is_ok());
        if outcome.is_ok() && self.write.quarantined(&key)?.is_some() {
            self.forget_quarantined(&key)?;
        }
        Ok(outcome)
    }

    pub(super) fn discard(&mut self, key: &RecordKey) -> Step<Outcome> {
        if self.write.quarantined(key)?.is_none() {
            return Ok(Err(Refusal::NotQuarantined));
        }
        self.forget_quarantined(key)?;
        self.counts.discarded += 1;
        Ok(Ok(Outcome::Noted))
    }
}
