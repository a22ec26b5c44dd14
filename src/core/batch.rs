//! One batch of inputs inside one store transaction: how each input is carried out.

mod floors;
mod quarantine;
mod summed;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::clock::{Clock, Hlc, Observed, Stamp, UnixMs};
use super::eid::Eid;
use super::family::{Families, Mark, Mode};
use super::losers::{How, Loser, Losers};
use super::path::{BOOKS_FAMILY, Family, MARKS_FAMILY, Path, Value};
use super::record::{Class, Classes, Record, RecordKey, Stored};
use super::register::{Merge, Merged, Register, value_hash};
use super::replica::{
    Alarm, Apply, Committed, Counts, ImportLine, Imported, Input, Ledger, Merges, Outcome, Refusal, Settings, Tally,
};
use super::sketch::{Change, Sketches};
use super::storage::{CursorKey, Run, Span, StoreError, Write};

/// `Err` is the store's: it ends the batch. A refusal is an outcome: only its input is not carried out.
type Step<T> = Result<Result<T, Refusal>, StoreError>;

/// Takes the value out of a [`Step`], or returns from the function with its refusal.
macro_rules! step {
    ($step:expr) => {
        match $step {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal.into())),
        }
    };
}

mod adapted;

/// What stays as it is while a batch is carried out.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub settings: &'a Settings,
    pub run: Run,
    pub sketches: &'a Sketches,
}

/// A batch that has been carried out and is not durable yet.
pub(super) struct Carried<W> {
    /// None if nothing has changed: that costs no flush.
    pub write: Option<W>,
    pub ledger: Ledger,
    /// What becomes of the sketches.
    pub changes: Vec<Change>,
    pub committed: Committed,
}

pub(super) struct Batch<'a, W: Write> {
    write: W,
    settings: &'a Settings,
    clock: &'a mut Clock,
    run: Run,
    /// As they are without this batch.
    sketches: &'a Sketches,
    ledger: Ledger,
    now: UnixMs,
    touched: BTreeMap<Family, Classes>,
    counts: Counts,
    alarms: BTreeSet<Alarm>,
    /// What becomes of the sketches when the batch is durable.
    changes: Vec<Change>,
    losers: Losers,
    changed: bool,
    marks_changed: bool,
}

impl<'a, W: Write> Batch<'a, W> {
    pub fn new(write: W, ground: Ground<'a>, clock: &'a mut Clock, ledger: Ledger, now: UnixMs) -> Self {
        let Ground { settings, run, sketches } = ground;
        Self {
            write,
            settings,
            clock,
            run,
            sketches,
            ledger,
            now,
            touched: BTreeMap::new(),
            counts: Counts::default(),
            alarms: BTreeSet::new(),
            changes: Vec::new(),
            losers: Losers::default(),
            changed: false,
            marks_changed: false,
        }
    }

    /// Ends the batch: what is left to be done is to make it durable.
    pub fn finish(mut self, outcomes: Vec<Outcome>) -> Result<Carried<W>, StoreError> {
        if self.changed && !mutant!(HeadNotStored) {
            self.write.set_head(self.ledger.head)?;
        }
        let Self { write, ledger, touched, counts, alarms, changes, losers, changed, marks_changed, .. } = self;
        let committed = Committed { outcomes, touched, counts, alarms, losers, changed, marks_changed };
        Ok(Carried { write: changed.then_some(write), ledger, changes, committed })
    }

    pub fn carry_out(&mut self, input: Input) -> Result<Outcome, StoreError> {
        let outcome = match input {
            Input::Put { path, value } => self.put(path, value)?,
            Input::Delete { path } => self.delete(path)?,
            Input::DeleteTree { tree } => self.delete_tree(&tree)?,
            Input::Share { family, mode } => self.share(family, mode)?.map(|_| Outcome::Shared),
            Input::Unshare { family } => self.unshare(&family)?.map(|_| Outcome::Unshared),
            Input::Import { lines } => Ok(Outcome::Imported(self.import(lines)?)),
            Input::Apply(apply) => self.apply(apply)?.map(Outcome::Applied),
            Input::Elsewhere { modes } => {
                self.ledger.elsewhere = Arc::new(modes);
                Ok(Outcome::Noted)
            }
            Input::Admit => self.admit()?,
            Input::Floors => self.floors(None)?,
            Input::Verified(verified) => self.floors(Some(&verified))?,
            Input::Standing { eid, standing } => self.set_standing(eid, standing)?,
            Input::Release { key } => self.release(key)?,
            Input::Discard { key } => self.discard(&key)?,
            Input::Adapter(adapted) => self.adapter(adapted)?,
        };
        Ok(outcome.unwrap_or_else(Outcome::Refused))
    }

    fn eid(&self) -> Eid {
        self.settings.eid
    }

    fn families(&self) -> &Families {
        &self.ledger.families
    }

    // ---- local writes -------------------------------------------------------------------------

    fn put(&mut self, path: Path, value: Value) -> Step<Outcome> {
        if let Some(family) = path.marked_family() {
            let family = step!(family);
            let mode = step!(value.as_str().parse::<Mode>());
            return Ok(self.share(family, mode)?.map(|stamp| Outcome::Written { path, stamp }));
        }
        step!(writable(&path));
        step!(self.settings.limits.check(&path, &value));
        let key = self.own_key(path.clone());
        if mutant!(WrittenTwice) {
            let stamp = step!(self.write_here(key.clone(), Some(value.clone()))?);
            step!(self.write_here(key, Some(value))?);
            return Ok(Ok(Outcome::Written { path, stamp }));
        }
        let stamp = step!(self.write_here(key, Some(value))?);
        self.counts.puts += 1;
        Ok(Ok(Outcome::Written { path, stamp }))
    }

    fn delete(&mut self, path: Path) -> Step<Outcome> {
        if let Some(family) = path.marked_family() {
            let family = step!(family);
            return Ok(self.unshare(&family)?.map(|stamp| Outcome::Written { path, stamp }));
        }
        step!(writable(&path));
        let key = self.own_key(path.clone());
        let existing = match self.write.record(&key)? {
            Some(stored) if !stored.register.is_tombstone() => stored,
            _ => return Ok(Err(Refusal::NotFound)),
        };
        let stamp = step!(self.delete_here(key, existing)?);
        Ok(Ok(Outcome::Written { path, stamp }))
    }

    fn delete_tree(&mut self, tree: &Family) -> Step<Outcome> {
        step!(writable_top(tree.top(), || format!("/{tree}")));
        let me = self.eid();
        let mut keys = Vec::new();
        self.write.scan(Span::Under(tree), &mut |(key, stored)| {
            let ours = key.owner.is_none_or(|owner| owner == me) || mutant!(DeltreeTakesOthers);
            if ours && !stored.register.is_tombstone() {
                keys.push(key);
            }
            ControlFlow::Continue(())
        })?;
        let mut count = 0;
        for key in keys {
            // The only refusal is a register at the end of all stamps: it stays, and is not counted.
            let existing = self.write.record(&key)?.expect("the scan has just found it");
            count += u64::from(self.delete_here(key, existing)?.is_ok());
        }
        Ok(Ok(Outcome::Removed { count }))
    }

    /// The record that this node writes at `path`: its own copy in a unique family.
    fn own_key(&self, path: Path) -> RecordKey {
        match self.families().covering(&path) {
            Some((_, mark)) if mark.mode == Mode::Unique => RecordKey::owned(self.eid(), path),
            _ => RecordKey::plain(path),
        }
    }

    /// A tombstone in a shared family; elsewhere the record simply goes.
    fn delete_here(&mut self, key: RecordKey, existing: Stored) -> Step<Stamp> {
        self.counts.deletes += 1;
        if self.families().covering(&key.path).is_some() && !mutant!(TombstoneForgotten) {
            return self.write_over(&key, Some(&existing), None);
        }
        let hlc = self.clock.tick(self.now);
        self.write.remove_record(&key)?;
        self.changed = true;
        Ok(Ok(Stamp { hlc, eid: self.eid(), hash: value_hash(None) }))
    }

    fn write_here(&mut self, key: RecordKey, value: Option<Value>) -> Step<Stamp> {
        let existing = self.write.record(&key)?;
        self.write_over(&key, existing.as_ref(), value)
    }

    fn write_over(&mut self, key: &RecordKey, existing: Option<&Stored>, value: Option<Value>) -> Step<Stamp> {
        let Some(hlc) = self.next_hlc(key, existing) else {
            return Ok(Err(Refusal::StampExhausted));
        };
        let stamp = Stamp { hlc, eid: self.eid(), hash: value_hash(value.as_ref()) };
        if let Some(existing) = existing.filter(|_| key.path.top() != BOOKS_FAMILY) {
            self.losers.push(Loser::new(key, &existing.register, stamp, How::Overwritten, self.now));
        }
        self.store(key, Register::new(value, stamp), Class::Local, existing)?;
        Ok(Ok(stamp))
    }

    /// The stamp of a local write is the greatest of three: the clock's next tick; the replaced stamp plus
    /// one, since a far-future stamp was merged but not observed; the purge floor, or what is promised of it, plus
    /// one.
    fn next_hlc(&mut self, key: &RecordKey, existing: Option<&Stored>) -> Option<Hlc> {
        let tick = self.clock.tick(self.now);
        let after_replaced = match existing {
            Some(stored) if !mutant!(RegisterRuleLeftOut) => stored.register.stamp().hlc.next()?,
            _ => Hlc::ZERO,
        };
        let after_floor = match self.families().covering(&key.path) {
            Some((family, _)) => self.seen(family).bound().next()?,
            None => Hlc::ZERO,
        };
        Some(tick.max(after_replaced).max(after_floor))
    }

    /// Puts a record at the next sequence number and keeps the books about it.
    fn store(
        &mut self,
        key: &RecordKey,
        register: Register,
        class: Class,
        existing: Option<&Stored>,
    ) -> Result<(), StoreError> {
        self.ledger.head += 1;
        let tombstone = register.is_tombstone();
        if key.path.top() == BOOKS_FAMILY {
            touch(&mut self.touched, &Family::books(), class);
            self.note_in_books(&key.path, &register);
        } else if let Some((family, _)) = self.ledger.families.of_record(key) {
            let tally = self.ledger.tallies.get_mut(family).expect("every shared family has a tally");
            if let Some(existing) = existing.filter(|_| !mutant!(StaleTally)) {
                tally.count(existing.register.is_tombstone(), -1);
            }
            tally.count(tombstone, 1);
            touch(&mut self.touched, family, class);
        }
        self.settle_quarantine(key, &register)?;
        if let Some(family) = self.exchanged(key) {
            self.sum_put(&family, key, existing, &register);
        }
        self.write.put_record(key, &Stored { register, class, seq: self.ledger.head })?;
        self.changed = true;
        Ok(())
    }

    // ---- sharing ------------------------------------------------------------------------------

    fn share(&mut self, family: Family, mode: Mode) -> Step<Stamp> {
        let elsewhere =
            self.ledger.elsewhere.get(&family).and_then(|modes| modes.iter().find(|(_, other)| *other != mode));
        let elsewhere = elsewhere.filter(|_| !mutant!(ElsewhereIgnored));
        step!(self.families().check_share(&family, mode, elsewhere.copied()));
        let eid = self.eid();
        let stamp = Stamp { hlc: self.clock.tick(self.now), eid, hash: value_hash(None) };
        self.ledger.head += 1;
        let mark = Mark { mode, since: self.ledger.head, stamp };
        self.write.set_mark(&family, Some(mark))?;
        if mode == Mode::Unique && !mutant!(RehomeForgotten) {
            self.rehome(&family, None, Some(eid))?;
        }
        self.spread_what_crossed(&family, mode)?;
        let tally = self.tally(&family, mode)?;
        self.ledger.tallies.insert(family.clone(), tally);
        self.sum_shared(&family, mode)?;
        Arc::make_mut(&mut self.ledger.families).insert(family.clone(), mark);
        self.enter_share(&family)?;
        self.changed = true;
        self.marks_changed = true;
        Ok(Ok(stamp))
    }

    fn unshare(&mut self, family: &Family) -> Step<Stamp> {
        let Some(mark) = self.families().mark(family) else {
            return Ok(Err(Refusal::NotShared(family.clone())));
        };
        self.write.set_mark(family, None)?;
        for key in self.write.cursors()?.into_keys().filter(|key| key.family == *family) {
            if mutant!(CursorNotDropped) {
                continue;
            }
            self.write.set_cursor(&key, None)?;
        }
        let eid = self.eid();
        if mark.mode == Mode::Unique {
            self.rehome(family, Some(eid), None)?;
        }
        self.ledger.tallies.remove(family);
        self.sum_unshared(family);
        Arc::make_mut(&mut self.ledger.families).remove(family);
        self.leave_share(family)?;
        self.changed = true;
        self.marks_changed = true;
        Ok(Ok(Stamp { hlc: self.clock.tick(self.now), eid, hash: value_hash(None) }))
    }

    /// Gives the family's records of one owner to another, with the stamps and the places in the feed that
    /// they have: sharing announces nothing as a new write.
    fn rehome(&mut self, family: &Family, from: Option<Eid>, to: Option<Eid>) -> Result<(), StoreError> {
        let mut moving = Vec::new();
        self.write.scan(Span::Under(family), &mut |(key, stored)| {
            if key.owner == from && key.path.key_in(family).is_some() {
                moving.push((key, stored));
            }
            ControlFlow::Continue(())
        })?;
        for (key, mut stored) in moving {
            self.write.remove_record(&key)?;
            let key = RecordKey { owner: to, path: key.path };
            if let Some(there) = self.write.record(&key)? {
                stored.register.merge(there.register);
            }
            self.write.put_record(&key, &stored)?;
        }
        Ok(())
    }

    /// What is here when a family is shared is for this node to spread, wherever it came from once: as crossed
    /// it would not be served to other sites. Followers compare with a new sharing, so places in the feed stay.
    fn spread_what_crossed(&mut self, family: &Family, mode: Mode) -> Result<(), StoreError> {
        let mut crossed = Vec::new();
        self.write.scan(Span::Under(family), &mut |(key, stored)| {
            if stored.class.crossed() && key.path.key_in(family).is_some() && mode.owns(&key) {
                crossed.push((key, stored));
            }
            ControlFlow::Continue(())
        })?;
        for (key, stored) in crossed {
            self.write.put_record(&key, &Stored { class: Class::Near, ..stored })?;
        }
        Ok(())
    }

    fn tally(&self, family: &Family, mode: Mode) -> Result<Tally, StoreError> {
        let mut tally = Tally::default();
        self.write.scan(Span::Under(family), &mut |(key, stored)| {
            if key.path.key_in(family).is_some() && mode.owns(&key) {
                tally.count(stored.register.is_tombstone(), 1);
            }
            ControlFlow::Continue(())
        })?;
        Ok(tally)
    }

    // ---- what arrives -------------------------------------------------------------------------

    /// All of it or nothing: a record that does not belong there would be lost for good if the cursor
    /// moved past it.
    fn apply(&mut self, apply: Apply) -> Step<Merges> {
        let Apply { source, crossing, family, mode, since, floor, records, cursor, drop_cursor } = apply;
        if self.families().mode_of(&family) != Some(mode) && !mutant!(UnsharedReceived) {
            return Ok(Err(Refusal::NotShared(family)));
        }
        let asked_before = since.is_some_and(|since| self.families().since_of(&family) != since);
        if asked_before && !mutant!(UnsharedReceived) {
            return Ok(Err(Refusal::NotShared(family)));
        }
        let in_step = self.families().floor_of(&family);
        if in_step.is_none() || floor.is_some_and(|floor| in_step != Some(floor)) {
            return Ok(Err(Refusal::OtherFloor(family)));
        }
        let mut bar = self.seen(&family).bar(source);
        if floor.is_none() {
            bar = bar.max(in_step.unwrap_or_default());
        }
        for record in &records {
            step!(check_arriving(record, &family, mode));
            if mutant!(LimitsBindMerge)
                && let Some(value) = record.register.value()
            {
                step!(self.settings.limits.check(&record.key.path, value));
            }
        }
        let mut merges = Merges::default();
        for record in records {
            let class = if mutant!(ClassConfused) { Class::Local } else { Class::arriving(record.crossed, crossing) };
            self.merge(&record.key, record.register, class, bar, &mut merges)?;
        }
        let cursor_key = |classes| CursorKey { source, family: family.clone(), classes };
        if let Some((classes, cursor)) = cursor.filter(|_| !mutant!(CursorNotKept)) {
            self.write.set_cursor(&cursor_key(classes), Some(cursor))?;
            self.changed = true;
        }
        if let Some(classes) = drop_cursor {
            self.write.set_cursor(&cursor_key(classes), None)?;
            self.changed = true;
        }
        self.counts.merges.add(merges);
        Ok(Ok(merges))
    }

    /// Merges at once, always, but for what lies at or below `bar` and would be new here: what this node has
    /// promised of the family's purge floor, or holds already. The clock follows, unless the stamp lies too far in
    /// the future.
    fn merge(
        &mut self,
        key: &RecordKey,
        register: Register,
        class: Class,
        bar: Hlc,
        merges: &mut Merges,
    ) -> Result<(), StoreError> {
        let stamp = register.stamp();
        self.counts.drift_max_ms = self.counts.drift_max_ms.max(stamp.hlc.unix_ms().saturating_sub(self.now));
        if mutant!(ClockDoesNotObserve) {
            // A planted fault: the clock learns nothing.
        } else if let Observed::FarFuture { ahead_ms } = self.clock.observe(stamp.hlc, self.now) {
            self.counts.far_future += 1;
            self.alarms.insert(Alarm::FarFuture { eid: stamp.eid, ahead_ms });
        }
        let existing = self.write.record(key)?;
        let merged = match &existing {
            Some(_) if mutant!(DeleteLosesToValue) && register.is_tombstone() => {
                Merged { merge: Merge::Lost, duplicate_eid: false }
            }
            None => Merged { merge: Merge::Won, duplicate_eid: false },
            Some(stored) => stored.register.clone().merge(register.clone()),
        };
        if merged.duplicate_eid {
            self.counts.duplicate_eid += 1;
            self.alarms.insert(Alarm::DuplicateEid { eid: stamp.eid });
        }
        match merged.merge {
            Merge::Won if stamp.hlc <= bar => merges.barred += 1,
            Merge::Won => {
                if let Some(existing) = existing.as_ref().filter(|_| key.path.top() != BOOKS_FAMILY) {
                    self.losers.push(Loser::new(key, &existing.register, stamp, How::Replaced, self.now));
                }
                self.store(key, register, class, existing.as_ref())?;
                merges.won += 1;
            }
            Merge::Lost => {
                let winner = existing.as_ref().expect("only what is there can win").register.stamp();
                self.losers.push(Loser::new(key, &register, winner, How::Late, self.now));
                merges.lost += 1;
            }
            Merge::Same => {
                merges.same += 1;
                // It came over another site first. Kept as crossed, it would not be served as this site's own.
                let nearer = class == Class::Near && !mutant!(NearerClassIgnored);
                if nearer && existing.as_ref().is_some_and(|stored| stored.class.crossed()) {
                    self.store(key, register, class, existing.as_ref())?;
                }
            }
        }
        Ok(())
    }

    fn import(&mut self, lines: Vec<ImportLine>) -> Result<Imported, StoreError> {
        let mut imported = Imported::default();
        for (at, line) in lines.into_iter().enumerate() {
            match self.import_line(line, &mut imported.merges)? {
                Ok(written) => imported.written += written,
                Err(refusal) => imported.refused.push((at, refusal)),
            }
        }
        self.counts.merges.add(imported.merges);
        Ok(imported)
    }

    /// Gives the number of new writes the line made: 0 or 1.
    fn import_line(&mut self, line: ImportLine, merges: &mut Merges) -> Step<u64> {
        let ImportLine { key, value, stamp } = line;
        step!(writable(&key.path));
        let Some(stamp) = stamp.filter(|_| !mutant!(ImportStampsAfresh)) else {
            let outcome = match value {
                Some(value) => self.put(key.path, value)?,
                None => self.delete(key.path)?,
            };
            return Ok(outcome.map(|_| 1));
        };
        let family = self.families().covering(&key.path).map(|(family, mark)| (family.clone(), mark.mode));
        let record = Record { key, register: step!(Register::checked(value, stamp)), crossed: false };
        if let Some((family, mode)) = family {
            step!(check_arriving(&record, &family, mode));
            // Whether it was deleted since cannot be told any more, or will not be for long.
            if record.register.stamp().hlc <= self.seen(&family).bound() && !mutant!(OldImportTaken) {
                return Ok(Err(Refusal::BelowFloor(family)));
            }
        }
        self.merge(&record.key, record.register, Class::Local, Hlc::ZERO, merges)?;
        Ok(Ok(0))
    }
}

fn touch(touched: &mut BTreeMap<Family, Classes>, family: &Family, class: Class) {
    match touched.get_mut(family) {
        Some(classes) => *classes = *classes | Classes::only(class),
        None => _ = touched.insert(family.clone(), Classes::only(class)),
    }
}

fn writable(path: &Path) -> Result<(), Refusal> {
    writable_top(path.top(), || path.to_string())
}

fn writable_top(top: &str, path: impl Fn() -> String) -> Result<(), Refusal> {
    if top == BOOKS_FAMILY || top == MARKS_FAMILY {
        return Err(Refusal::Reserved(path()));
    }
    match top.parse::<Eid>() {
        Ok(_) => Err(Refusal::UnderEid { path: path() }),
        Err(_) => Ok(()),
    }
}

/// A record may arrive in a family only if it lies in it and is owned as the family's mode says.
fn check_arriving(record: &Record, family: &Family, mode: Mode) -> Result<(), Refusal> {
    let belongs = record.key.path.key_in(family).is_some() && mode.owns(&record.key);
    if !belongs {
        return Err(Refusal::OutsideFamily { path: record.key.path.clone(), family: family.clone() });
    }
    Ok(record.register.check()?)
}

impl Merges {
    pub fn add(&mut self, other: Merges) {
        self.won += other.won;
        self.lost += other.lost;
        self.same += other.same;
        self.barred += other.barred;
    }
}
