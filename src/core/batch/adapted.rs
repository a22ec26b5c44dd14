//! Writes of an attached server, together with the adapter's rows that tell of them.

use super::{Batch, Step};
use crate::core::clock::Hlc;
use crate::core::path::Family;
use crate::core::replica::{Adapted, AdapterWrite, Outcome, Refusal};
use crate::core::storage::Write;

/// More writes to one key than a message can hold: so many stamps must be left over, so that no write is
/// refused after another one was made.
const WRITES_MAX: u64 = 1 << 16;

impl<W: Write> Batch<'_, W> {
    pub(super) fn adapter(&mut self, adapted: Adapted) -> Step<Outcome> {
        for write in &adapted.writes {
            step!(self.check_adapter_write(write)?);
        }
        let mut written = 0;
        for AdapterWrite { key, value, only_if_absent } in adapted.writes {
            let existing = self.write.record(&key)?;
            if existing.is_some() && only_if_absent {
                continue;
            }
            let counter = if value.is_some() { &mut self.counts.puts } else { &mut self.counts.deletes };
            *counter += 1;
            self.write_over(&key, existing.as_ref(), value)?.expect("checked before the first write");
            written += 1;
        }
        for (key, row) in adapted.rows {
            self.write.set_adapter(&key, row.as_deref())?;
            self.changed = true;
        }
        Ok(Ok(Outcome::Adapted { written }))
    }

    /// Everything that can refuse a write, before anything is written.
    fn check_adapter_write(&self, AdapterWrite { key, value, .. }: &AdapterWrite) -> Step<()> {
        step!(super::writable(&key.path));
        let Some((family, mark)) = self.families().covering(&key.path) else {
            let top = Family::new(key.path.top()).expect("a segment of a path");
            return Ok(Err(Refusal::NotShared(top)));
        };
        if !mark.mode.owns(key) {
            return Ok(Err(Refusal::OutsideFamily { path: key.path.clone(), family: family.clone() }));
        }
        if let Some(value) = value {
            step!(self.settings.limits.check(&key.path, value));
        }
        let last = self.write.record(key)?.map_or(Hlc::ZERO, |stored| stored.register.stamp().hlc);
        let last = self.ledger.floors.get(family).map_or(last, |floor| last.max(*floor));
        let room = Hlc::MAX.as_u64() - last.as_u64() >= WRITES_MAX;
        Ok(if room { Ok(()) } else { Err(Refusal::StampExhausted) })
    }
}
