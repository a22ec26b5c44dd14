//! The purge floors within a batch: notes in the books, and the adoption of a floor in bounded steps.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Batch, Step};
use crate::core::books::Step as RoundStep;
use crate::core::books::{Entry, Note, Standing};
use crate::core::clock::Hlc;
use crate::core::eid::Eid;
use crate::core::floor::{self, Move, Seen};
use crate::core::path::{Family, Path};
use crate::core::record::{RecordKey, Stored};
use crate::core::register::Register;
use crate::core::replica::{Outcome, Refusal, Verified, Wanted};
use crate::core::storage::{LocalFloor, Span, StoreError, Write};

/// How many records one batch looks at for the adoption of a floor, and how many of them it changes at most.
const SETTLE_LOOK_MAX: usize = 16_384;
const SETTLE_CHANGE_MAX: usize = 2_048;

/// What one look at a family found to be below a floor.
struct Below {
    found: Vec<(RecordKey, Stored)>,
    /// None: that was the end.
    go_on_behind: Option<RecordKey>,
}

impl<W: Write> Batch<'_, W> {
    pub(super) fn seen<'b>(&'b self, family: &'b Family) -> Seen<'b> {
        self.ledger.seen(family, self.settings.eid, self.run, self.settings.policy, self.now)
    }

    // ---- the books ----------------------------------------------------------------------------

    /// A record of the books has changed: what it says of floors takes effect with this batch.
    pub(super) fn note_in_books(&mut self, path: &Path, register: &Register) {
        let told = Arc::make_mut(&mut self.ledger.books).note(path, register);
        if let Some(family) = told.filter(|family| self.families().mark(family).is_some()) {
            self.refresh_floor(&family);
        }
    }

    /// Streams end when the floor that they were opened at is not in force any more, as they do when marks change.
    fn refresh_floor(&mut self, family: &Family) {
        let floor = floor::standing(&self.ledger.books, family, self.ledger.local_floor(family));
        if self.ledger.families.floor_of(family) != (!floor.rising).then_some(floor.adopted) {
            Arc::make_mut(&mut self.ledger.families).set_floor(family, floor);
            self.marks_changed = true;
        }
    }

    /// Writes an entry. One that does not fit is left out: nothing is promised then, and nothing purged.
    fn enter(&mut self, entry: &Entry) -> Result<bool, StoreError> {
        let (Ok(path), Ok(value)) = (entry.path(), entry.value()) else { return Ok(false) };
        Ok(self.write_here(RecordKey::plain(path), Some(value))?.is_ok())
    }

    pub(super) fn admit(&mut self) -> Step<Outcome> {
        let me = self.eid();
        let known = self.ledger.books.members.contains_key(&me);
        if !known || mutant!(AdmitAgain) {
            self.enter(&Entry::Member(me, Standing::Admitted))?;
        }
        let shared: Vec<Family> = self.families().marks().keys().cloned().collect();
        for family in shared {
            if !self.ledger.books.of(&family).sharers.contains_key(&me) {
                self.enter(&Entry::Share(me, family))?;
            }
        }
        Ok(Ok(Outcome::Noted))
    }

    /// A family is shared from now on. What this store has of it is older than what it knows of the floor.
    pub(super) fn enter_share(&mut self, family: &Family) -> Result<(), StoreError> {
        self.enter(&Entry::Share(self.eid(), family.clone()))?;
        self.refresh_floor(family);
        Ok(())
    }

    pub(super) fn leave_share(&mut self, family: &Family) -> Result<(), StoreError> {
        self.set_local_floor(family, None)?;
        self.ledger.settling.remove(family);
        self.ledger.waits.remove(family);
        let Ok(path) = Entry::Share(self.eid(), family.clone()).path() else { return Ok(()) };
        let key = RecordKey::plain(path);
        if let Some(existing) = self.write.record(&key)?.filter(|existing| !existing.register.is_tombstone()) {
            // The only refusal is a register at the end of all stamps.
            let _ = self.write_over(&key, Some(&existing), None)?;
        }
        Ok(())
    }

    pub(super) fn set_standing(&mut self, eid: Eid, standing: Standing) -> Step<Outcome> {
        let Some(now) = self.ledger.books.members.get(&eid).copied() else {
            return Ok(Err(Refusal::NoMember(eid)));
        };
        if eid == self.eid() && standing == Standing::Decommissioned {
            return Ok(Err(Refusal::Myself));
        }
        if now != standing {
            self.enter(&Entry::Member(eid, standing))?;
        }
        Ok(Ok(Outcome::Noted))
    }

    fn set_local_floor(&mut self, family: &Family, floor: Option<LocalFloor>) -> Result<(), StoreError> {
        self.write.set_floor(family, floor)?;
        let floors = Arc::make_mut(&mut self.ledger.floors);
        match floor {
            Some(floor) => _ = floors.insert(family.clone(), floor),
            None => _ = floors.remove(family),
        }
        self.changed = true;
        Ok(())
    }

    // ---- the steps ----------------------------------------------------------------------------

    /// Does for every family what is due.
    pub(super) fn floors(&mut self, verified: Option<&Verified>) -> Step<Outcome> {
        let (mut wanted, mut more) = (Vec::new(), false);
        let shared: Vec<Family> = self.families().marks().keys().cloned().collect();
        for family in shared {
            if let Some(floor) = self.seen(&family).pending() {
                more |= self.settle(&family, floor)?.is_continue();
                continue;
            }
            let verified = verified.filter(|verified| verified.family == family);
            wanted.extend(self.step_on(&family, verified)?);
        }
        Ok(Ok(Outcome::Floors { wanted, more }))
    }

    /// Steps on until there is something to wait for; gives the verify that is waited for.
    fn step_on(&mut self, family: &Family, verified: Option<&Verified>) -> Result<Option<Wanted>, StoreError> {
        loop {
            let before = (self.ledger.head, self.ledger.local_floor(family));
            match self.seen(family).next_move() {
                Move::Wait => {
                    self.ledger.waits.remove(family);
                    return Ok(None);
                }
                Move::Begin(round) => {
                    if !self.enter(&Entry::Round(family.clone(), round))? {
                        return Ok(None);
                    }
                }
                Move::Note(note) => self.note(family, note)?,
                Move::Verify(note) => {
                    if !self.has_verified(family, note, verified) {
                        let peer = note.round.collector;
                        return Ok(Some(Wanted { family: family.clone(), peer, run: note.round.run }));
                    }
                    self.note(family, note)?;
                }
                Move::Raise(floor) => {
                    self.enter(&Entry::Floor(family.clone(), floor))?;
                    return Ok(None);
                }
            }
            if before == (self.ledger.head, self.ledger.local_floor(family)) {
                return Ok(None);
            }
        }
    }

    fn note(&mut self, family: &Family, note: Note) -> Result<(), StoreError> {
        let local = self.ledger.local_floor(family);
        let target = note.round.target;
        let floor = match note.step {
            RoundStep::Promised => local,
            // What the members of this round have gathered may be new here, whatever an earlier one had spread.
            RoundStep::Gathered => LocalFloor { gathered: target, spread: Hlc::ZERO, ..local },
            RoundStep::Spread => LocalFloor { spread: target, ..local },
        };
        if floor != local {
            self.set_local_floor(family, Some(floor))?;
        }
        self.enter(&Entry::Step(self.eid(), family.clone(), note))?;
        Ok(())
    }

    /// Whether `verified` is what the note waits for: with the collector, in the run that began the round, and of a
    /// state in which this node saw that it is due.
    fn has_verified(&mut self, family: &Family, note: Note, verified: Option<&Verified>) -> bool {
        let head = self.ledger.head;
        let due_since = match self.ledger.waits.get(family) {
            Some((waiting, since)) if *waiting == note => *since,
            _ => {
                self.ledger.waits.insert(family.clone(), (note, head));
                head
            }
        };
        verified.is_some_and(|verified| {
            verified.peer == note.round.collector && verified.run == note.round.run && verified.head >= due_since
        })
    }

    // ---- adopting a floor ---------------------------------------------------------------------

    /// One step towards a higher floor; continue, if there is more. Until it is adopted the family is not exchanged,
    /// and nothing is stamped below it: so what has been looked at stays as it is.
    fn settle(&mut self, family: &Family, floor: Hlc) -> Result<ControlFlow<()>, StoreError> {
        let took_part = self.seen(family).took_part();
        let Below { found, go_on_behind } = self.below(family, floor, took_part)?;
        for (key, stored) in found {
            self.erase(family, &key, &stored)?;
            if took_part {
                self.counts.purged += 1;
            } else {
                self.set_aside(&key, stored.register, floor)?;
            }
        }
        self.changed = true;
        if let Some(last) = go_on_behind {
            self.ledger.settling.insert(family.clone(), last);
            return Ok(ControlFlow::Continue(()));
        }
        self.ledger.settling.remove(family);
        if !took_part {
            self.forget_cursors(family)?;
        }
        let local = self.ledger.local_floor(family);
        self.set_local_floor(family, Some(LocalFloor { adopted: floor, ..local }))?;
        self.refresh_floor(family);
        Ok(ControlFlow::Break(()))
    }

    /// Records at or below the floor that have to go, and where to go on, if that is not the end: a node that took part
    /// drops its tombstones, any other sets everything aside.
    fn below(&self, family: &Family, floor: Hlc, took_part: bool) -> Result<Below, StoreError> {
        let mode = self.families().mode_of(family).expect("only what is shared has a floor");
        let behind = self.ledger.settling.get(family);
        let span = behind.map_or(Span::Under(family), |behind| Span::Behind(family, behind));
        let (mut found, mut last, mut looked_at) = (Vec::new(), None, 0);
        self.write.scan(span, &mut |(key, stored)| {
            looked_at += 1;
            let full = looked_at > SETTLE_LOOK_MAX || found.len() >= SETTLE_CHANGE_MAX;
            if full {
                return ControlFlow::Break(());
            }
            let of_family = key.path.key_in(family).is_some() && mode.owns(&key);
            let goes = stored.register.is_tombstone() || !took_part;
            last = Some(key.clone());
            if of_family && goes && stored.register.stamp().hlc <= floor {
                found.push((key, stored));
            }
            ControlFlow::Continue(())
        })?;
        let full = looked_at > SETTLE_LOOK_MAX || found.len() >= SETTLE_CHANGE_MAX;
        Ok(Below { found, go_on_behind: last.filter(|_| full) })
    }

    /// Takes a record out of the family, as if it had never been there.
    fn erase(&mut self, family: &Family, key: &RecordKey, stored: &Stored) -> Result<(), StoreError> {
        let tally = self.ledger.tallies.get_mut(family).expect("every shared family has a tally");
        tally.count(stored.register.is_tombstone(), -1);
        self.sum_gone(family, key, stored);
        self.write.remove_record(key)?;
        self.changed = true;
        Ok(())
    }

    /// What was set aside comes back only if the family is had from its peers from the beginning.
    fn forget_cursors(&mut self, family: &Family) -> Result<(), StoreError> {
        for key in self.write.cursors()?.into_keys().filter(|key| key.family == *family) {
            self.write.set_cursor(&key, None)?;
        }
        Ok(())
    }
}
