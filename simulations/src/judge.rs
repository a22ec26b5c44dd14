//! Judges one commit: were the outcomes the right ones, and does the disk now hold what it must?
//!
//! Called after every batch, before its effects are released; it also carries the model forward.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use kinfolk::core::clock::{Hlc, Stamp, UnixMs};
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::path::{BOOKS_FAMILY, Family, MARKS_FAMILY, Path, Value};
use kinfolk::core::record::{Class, RecordKey};
use kinfolk::core::register::value_hash;
use kinfolk::core::replica::{Alarm, Apply, Committed, ImportLine, Imported, Input, Merges, Outcome, Refusal};
use kinfolk::core::storage::{Cursor, CursorKey, Read, Span};

use crate::check::{Check, Checked, Violation, ensure};
use crate::floors::{books_of, bound, settle_model, target_of};
use crate::model::{Acknowledged, DiskModel, Held};

pub const MAX_CLOCK_DRIFT_MS: u64 = 60_000;

pub type Elsewhere = BTreeMap<Family, Vec<(Eid, Mode)>>;

/// How often each branch of a merge was taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Branches {
    pub won_fresh: u64,
    pub won_over: u64,
    pub lost: u64,
    pub same: u64,
    pub duplicate_eid: u64,
    pub far_future: u64,
    pub beat_far_future: u64,
    pub barred: u64,
}

pub struct Judge<'a, R: Read> {
    pub me: Eid,
    pub value_max_bytes: usize,
    pub now: UnixMs,
    pub model: &'a mut DiskModel,
    pub acknowledged: &'a mut Acknowledged,
    pub elsewhere: &'a mut Elsewhere,
    pub branches: &'a mut Branches,
    pub read: &'a R,
    pub touched: BTreeSet<RecordKey>,
    pub duplicates: BTreeSet<Eid>,
    pub far: BTreeSet<Eid>,
    pub cursors: BTreeMap<CursorKey, Option<Cursor>>,
    /// The greatest stamp that arrived within the drift limit: the clock must have followed it.
    pub near: Option<Hlc>,
}

fn wrong(check: Check, what: String) -> Checked {
    Err(Violation { check, what })
}

impl<R: Read> Judge<'_, R> {
    /// A batch that succeeded.
    pub fn committed(&mut self, inputs: &[Input], committed: &Committed) -> Checked {
        ensure(inputs.len() == committed.outcomes.len(), Check::OneStampOnce, || {
            format!("{} inputs got {} outcomes", inputs.len(), committed.outcomes.len())
        })?;
        for (input, outcome) in inputs.iter().zip(&committed.outcomes) {
            self.one(input, outcome)?;
        }
        for (key, cursor) in &self.cursors {
            let kept = self.read.cursor(key).expect("memory reads");
            ensure(kept == *cursor, Check::CursorHonest, || {
                format!("the cursor {key:?} is {kept:?}, must be {cursor:?}")
            })?;
        }
        self.alarms(&committed.alarms)?;
        self.disk_is_as_modelled()
    }

    fn one(&mut self, input: &Input, outcome: &Outcome) -> Checked {
        match input {
            Input::Put { path, value } if path.top() == MARKS_FAMILY => {
                let mode = value.as_str().parse().ok();
                self.mark(path, mode, outcome)
            }
            Input::Delete { path } if path.top() == MARKS_FAMILY => self.mark(path, None, outcome),
            Input::Put { path, value } => self.put(path, value, outcome),
            Input::Delete { path } => self.delete(path, outcome),
            Input::DeleteTree { tree } => self.delete_tree(tree, outcome),
            Input::Share { family, mode } => self.share(family, *mode, outcome),
            Input::Unshare { family } => self.unshare(family, outcome),
            Input::Import { lines } => match outcome {
                Outcome::Imported(imported) => self.import(lines, imported),
                other => wrong(Check::StaysWritable, format!("an import ended as {other:?}")),
            },
            Input::Apply(apply) => self.apply(apply, outcome),
            Input::Elsewhere { modes } => {
                *self.elsewhere = modes.clone();
                Ok(())
            }
            Input::Admit => self.admit(),
            Input::Floors | Input::Verified(_) => {
                let gone = settle_model(self.read, self.model, self.acknowledged);
                for key in &gone {
                    let cursors = self.cursors.iter_mut().filter(|(at, _)| key.path.key_in(&at.family).is_some());
                    for (at, cursor) in cursors {
                        *cursor = self.read.cursor(at).expect("memory reads");
                    }
                }
                self.touched.extend(gone);
                self.books()
            }
            Input::Standing { .. } => self.books(),
            Input::Release { key } => self.release(key, outcome),
            Input::Discard { key } => {
                let discarded = matches!(outcome, Outcome::Noted);
                let there = self.model.aside.remove(key).is_some();
                ensure(discarded == there, Check::Quarantine, || {
                    format!("a discard of {} ended as {outcome:?}", key.path)
                })
            }
            // Attached servers are simulated in a world of their own.
            Input::Adapter(_) => wrong(Check::StaysWritable, format!("nobody is attached, and yet {outcome:?}")),
        }
    }

    fn mark(&mut self, path: &Path, mode: Option<Mode>, outcome: &Outcome) -> Checked {
        let family = path.marked_family().expect("a mark's path").expect("the workload names families");
        match mode {
            Some(mode) => self.share(&family, mode, outcome),
            None => self.unshare(&family, outcome),
        }
    }

    // ---- local writes ---------------------------------------------------------------------------

    fn put(&mut self, path: &Path, value: &Value, outcome: &Outcome) -> Checked {
        let allowed = may_be_written(path) && value.as_str().len() <= self.value_max_bytes;
        match outcome {
            Outcome::Written { stamp, .. } => {
                ensure(allowed, Check::StaysWritable, || format!("a put of {path} was taken, it must be refused"))?;
                let key = self.model.own_key(self.me, path);
                self.write(key, *stamp, Some(value))
            }
            other => ensure(!allowed, Check::StaysWritable, || format!("a good put of {path} ended as {other:?}")),
        }
    }

    fn delete(&mut self, path: &Path, outcome: &Outcome) -> Checked {
        let key = self.model.own_key(self.me, path);
        let expected = may_be_written(path) && self.model.live(&key);
        match outcome {
            Outcome::Written { stamp, .. } => {
                ensure(expected, Check::StaysWritable, || format!("a delete of {path}, which is absent, was taken"))?;
                self.delete_record(key, *stamp)
            }
            other => ensure(!expected, Check::StaysWritable, || format!("a good delete of {path} ended as {other:?}")),
        }
    }

    fn delete_record(&mut self, key: RecordKey, stamp: Stamp) -> Checked {
        if self.model.covering(&key.path).is_some() {
            return self.write(key, stamp, None);
        }
        self.model.held.remove(&key);
        // In a family that is not shared the record simply goes, and with it what the node knew of its stamp.
        self.acknowledged.forgotten.insert((self.me, key.path.clone()));
        self.touched.insert(key);
        Ok(())
    }

    /// The tombstones bear stamps that the outcome does not tell: they are read from the disk. A batch ends
    /// with such an input, so nothing has been written over them.
    fn delete_tree(&mut self, tree: &Family, outcome: &Outcome) -> Checked {
        let Outcome::Removed { count } = outcome else {
            return ensure(!may_be_named(tree.top()), Check::StaysWritable, || {
                format!("a deltree ended as {outcome:?}")
            });
        };
        let keys = self.model.writable_under(self.me, tree);
        ensure(*count == keys.len() as u64, Check::StaysWritable, || {
            format!("deltree of {tree} removed {count} records, {} were there", keys.len())
        })?;
        for key in keys {
            match self.stored_stamp(&key) {
                Some(stamp) => self.delete_record(key, stamp)?,
                None => self.delete_record(key.clone(), self.model.held[&key].stamp)?,
            }
        }
        Ok(())
    }

    fn stored_stamp(&self, key: &RecordKey) -> Option<Stamp> {
        self.read.record(key).expect("memory reads").map(|stored| stored.register.stamp())
    }

    /// A new write of this node, acknowledged with this stamp.
    fn write(&mut self, key: RecordKey, stamp: Stamp, value: Option<&Value>) -> Checked {
        let path = &key.path;
        ensure(stamp.eid == self.me && stamp.hash == value_hash(value), Check::OneStampOnce, || {
            format!("the stamp {stamp} of {path} names another node or value")
        })?;
        if let Some(seen) = self.model.held.get(&key) {
            ensure(stamp > seen.stamp, Check::BeatsWhatItSaw, || {
                format!("{path} was written with {stamp} where the node held {}", seen.stamp)
            })?;
            let far = seen.stamp.hlc.unix_ms() > self.now + MAX_CLOCK_DRIFT_MS;
            self.branches.beat_far_future += u64::from(far);
        }
        let may_repeat = self.acknowledged.doubled.contains(&self.me)
            || self.acknowledged.forgotten.contains(&(self.me, path.clone()));
        // An import may have put a record under its owner beside the one of the path that is nobody's, with the stamp of
        // that one: deleted at once, both are deleted with the same.
        let twin =
            || self.model.held.iter().any(|(other, held)| other.path == *path && *other != key && held.stamp == stamp);
        let repeated = self.acknowledged.repeats(path, stamp) && !may_repeat && !(value.is_none() && twin());
        ensure(!repeated, Check::OneStampOnce, || format!("{path} bears the stamp {stamp} for the second time"))?;
        self.acknowledged.note(path, stamp);
        if self.model.covering(path).is_some() || path.top() == BOOKS_FAMILY {
            self.acknowledged.publish(&key, stamp);
            self.acknowledged.exported.push((key.clone(), value.cloned(), stamp));
        }
        self.hold(key, Held { stamp, tombstone: value.is_none(), class: Class::Local, origin: true });
        Ok(())
    }

    fn hold(&mut self, key: RecordKey, held: Held) {
        self.touched.insert(key.clone());
        self.model.hold(key, held);
    }

    /// What the node has entered in the books is in nobody's outcome: it is read from the disk. A batch ends with
    /// whatever may enter something.
    fn books(&mut self) -> Checked {
        let mut own = Vec::new();
        self.read
            .scan(Span::Under(&Family::books()), &mut |(key, stored)| {
                let stamp = stored.register.stamp();
                let known = self.model.held.get(&key).is_some_and(|held| held.stamp == stamp);
                if stamp.eid == self.me && !known {
                    own.push((key, stored.register));
                }
                ControlFlow::Continue(())
            })
            .expect("memory reads");
        for (key, register) in own {
            self.acknowledged.target = self.acknowledged.target.max(target_of(&key, register.value()));
            self.write(key, register.stamp(), register.value())?;
        }
        Ok(())
    }

    fn admit(&mut self) -> Checked {
        let member = RecordKey::plain(Path::new(&format!("/{BOOKS_FAMILY}/member/{}", self.me)).expect("a path"));
        let before = self.model.held.get(&member).map(|held| held.stamp);
        self.books()?;
        let after = self.model.held.get(&member).map(|held| held.stamp);
        ensure(after.is_some(), Check::DurableAck, || "an admitted node is not in its books".into())?;
        // It would take back that it was decommissioned.
        ensure(before.is_none() || before == after, Check::OneStampOnce, || "a known member is entered again".into())
    }

    /// What was set aside and is written anew.
    fn release(&mut self, key: &RecordKey, outcome: &Outcome) -> Checked {
        let own = *key == self.model.own_key(self.me, &key.path);
        let Some(aside) = self.model.aside.get(key).filter(|_| own).cloned() else {
            return ensure(matches!(outcome, Outcome::Refused(_)), Check::Quarantine, || {
                format!("{} is not set aside, or not this node's, and was taken back", key.path)
            });
        };
        match outcome {
            Outcome::Written { stamp, .. } => {
                self.write(key.clone(), *stamp, aside.value.as_ref())?;
                self.model.aside.remove(key);
                Ok(())
            }
            Outcome::Noted => {
                self.model.aside.remove(key);
                ensure(aside.value.is_none(), Check::Quarantine, || format!("{} was not taken back", key.path))
            }
            other => {
                let too_long = aside.value.is_some_and(|value| value.as_str().len() > self.value_max_bytes);
                ensure(too_long, Check::StaysWritable, || format!("a good release of {} ended as {other:?}", key.path))
            }
        }
    }

    // ---- sharing --------------------------------------------------------------------------------

    fn share(&mut self, family: &Family, mode: Mode, outcome: &Outcome) -> Checked {
        let never = mode == Mode::Global && ["registrar", "IAX", "SIP", "pbx", "dundi"].contains(&family.top());
        let taken = self.model.marks.keys().any(|other| other.overlaps(family));
        let elsewhere = self.elsewhere.get(family).is_some_and(|modes| modes.iter().any(|(_, other)| *other != mode));
        let allowed = may_be_named(family.top()) && !never && !taken && !elsewhere;
        let shared = matches!(outcome, Outcome::Shared | Outcome::Written { .. });
        ensure(shared == allowed, Check::SharingOnly, || {
            format!("sharing {family} as {mode} ended as {outcome:?}, allowed was {allowed}")
        })?;
        if shared {
            self.model.share(self.me, family, mode);
            self.acknowledged.publish_family(self.model, family, mode);
            self.touch_family(family);
        }
        self.books()
    }

    fn unshare(&mut self, family: &Family, outcome: &Outcome) -> Checked {
        let allowed = self.model.marks.contains_key(family);
        let unshared = matches!(outcome, Outcome::Unshared | Outcome::Written { .. });
        ensure(unshared == allowed, Check::SharingOnly, || format!("unsharing {family} ended as {outcome:?}"))?;
        if unshared {
            self.model.unshare(self.me, family);
            self.acknowledged.losses += 1;
            self.touch_family(family);
            for (_, cursor) in self.cursors.iter_mut().filter(|(key, _)| key.family == *family) {
                *cursor = None;
            }
            let cursors = self.read.cursors().expect("memory reads");
            let left = cursors.keys().filter(|key| key.family == *family).count();
            ensure(left == 0, Check::CursorHonest, || format!("{left} cursors of {family} survive its unsharing"))?;
        }
        self.books()
    }

    fn touch_family(&mut self, family: &Family) {
        let keys = self.model.held.keys().filter(|key| family.covers(&key.path)).cloned();
        self.touched.extend(keys);
    }

    // ---- what arrives ---------------------------------------------------------------------------

    fn apply(&mut self, apply: &Apply, outcome: &Outcome) -> Checked {
        if self.model.mode_of(&apply.family) != Some(apply.mode) {
            return ensure(matches!(outcome, Outcome::Refused(_)), Check::SharingOnly, || {
                format!("records of {}, which is not shared as {} here, were taken", apply.family, apply.mode)
            });
        }
        let marks = self.read.marks().expect("memory reads");
        let sharing = marks.get(&apply.family).map_or(0, |mark| mark.since);
        if matches!(outcome, Outcome::Refused(Refusal::NotShared(_)))
            && apply.since.is_some_and(|since| since != sharing)
        {
            // Asked for before the family was unshared and shared again.
            return Ok(());
        }
        if matches!(outcome, Outcome::Refused(Refusal::OtherFloor(_))) && self.acknowledged.target.is_some() {
            return Ok(());
        }
        let Outcome::Applied(merges) = outcome else {
            return wrong(Check::SharingOnly, format!("what a correct source sent was answered {outcome:?}"));
        };
        let mut expected = Merges::default();
        for record in &apply.records {
            let stamp = record.register.stamp();
            ensure(self.acknowledged.is_known(&record.key.path, stamp), Check::KnownWinner, || {
                format!("{} arrived with {stamp}, which nobody acknowledged", record.key.path)
            })?;
            let class = if record.crossed || apply.crossing { Class::Far } else { Class::Near };
            if self.is_barred(&record.key, stamp) {
                expected.barred += 1;
                self.note_arrival(stamp);
                // Also what is not taken tells that two nodes bear one EID.
                self.note_duplicate(self.model.held.get(&record.key).copied(), stamp);
                continue;
            }
            self.merge(&record.key, stamp, record.register.is_tombstone(), class, false, &mut expected);
        }
        ensure(*merges == expected, Check::KnownWinner, || format!("merges were {merges:?}, must be {expected:?}"))?;
        let key = |classes| CursorKey { source: apply.source, family: apply.family.clone(), classes };
        if let Some((classes, cursor)) = apply.cursor {
            self.cursors.insert(key(classes), Some(cursor));
        }
        if let Some(classes) = apply.drop_cursor {
            self.cursors.insert(key(classes), None);
        }
        Ok(())
    }

    fn merge(
        &mut self,
        key: &RecordKey,
        stamp: Stamp,
        tombstone: bool,
        class: Class,
        origin: bool,
        merges: &mut Merges,
    ) {
        self.touched.insert(key.clone());
        self.note_arrival(stamp);
        let before = self.model.held.get(key).copied();
        self.note_duplicate(before, stamp);
        if let Some(before) = before
            && stamp <= before.stamp
        {
            self.model.see(key, stamp);
            let same = stamp == before.stamp;
            // What came over another site first, and now from this one, is kept as this one's.
            if same && before.class == Class::Far && class == Class::Near {
                self.hold(key.clone(), Held { class, ..before });
            }
            *if same { &mut merges.same } else { &mut merges.lost } += 1;
            *if same { &mut self.branches.same } else { &mut self.branches.lost } += 1;
            return;
        }
        *if before.is_some() { &mut self.branches.won_over } else { &mut self.branches.won_fresh } += 1;
        merges.won += 1;
        self.hold(key.clone(), Held { stamp, tombstone, class, origin });
    }

    fn note_duplicate(&mut self, before: Option<Held>, stamp: Stamp) {
        let same_moment = |before: Stamp| (before.hlc, before.eid) == (stamp.hlc, stamp.eid);
        if before.is_some_and(|before| same_moment(before.stamp) && before.stamp != stamp) {
            self.duplicates.insert(stamp.eid);
            self.branches.duplicate_eid += 1;
        }
    }

    fn note_arrival(&mut self, stamp: Stamp) {
        if stamp.hlc.unix_ms() > self.now + MAX_CLOCK_DRIFT_MS {
            self.far.insert(stamp.eid);
            self.branches.far_future += 1;
        } else {
            self.near = self.near.max(Some(stamp.hlc));
        }
    }

    /// A record that would be new here and was not taken, since it lies below a promise. A batch ends with each apply
    /// where there are such.
    fn is_barred(&mut self, key: &RecordKey, stamp: Stamp) -> bool {
        let below = self.acknowledged.target.is_some_and(|target| stamp.hlc <= target);
        let fresh = self.model.held.get(key).is_none_or(|held| held.stamp < stamp);
        let barred = below && fresh && self.stored_stamp(key) < Some(stamp);
        self.branches.barred += u64::from(barred);
        barred
    }

    fn is_below_floor(&self, line: &ImportLine, stamp: Stamp) -> bool {
        let Some((family, mode)) = self.model.covering(&line.key.path) else { return false };
        crate::model::exchanged(&line.key, mode) && stamp.hlc <= bound(self.read, &books_of(self.read), self.me, family)
    }

    fn import(&mut self, lines: &[ImportLine], imported: &Imported) -> Checked {
        let mut expected = Merges::default();
        let mut written = 0;
        for line in lines {
            match (line.stamp, &line.value) {
                (Some(stamp), _) if self.is_below_floor(line, stamp) => {
                    let refused = imported.refused.iter().any(|(refused, _)| lines.get(*refused) == Some(line));
                    let what = || format!("the import brings {} of {stamp} back, below the floor", line.key.path);
                    ensure(refused, Check::NoResurrection, what)?;
                }
                (Some(stamp), value) => self.import_stamped(line, stamp, value.is_none(), &mut expected),
                (None, Some(value)) => {
                    // Its stamp is read from the disk; the workload imports no path twice.
                    let key = self.model.own_key(self.me, &line.key.path);
                    if value.as_str().len() <= self.value_max_bytes {
                        let stamp = self.stored_stamp(&key);
                        let Some(stamp) = stamp else {
                            return wrong(Check::DurableAck, format!("the imported {} is not there", key.path));
                        };
                        self.write(key, stamp, Some(value))?;
                        written += 1;
                    }
                }
                (None, None) => {}
            }
        }
        ensure(imported.merges == expected && imported.written == written, Check::KnownWinner, || {
            format!("the import was {imported:?}, must be {expected:?} and {written} written")
        })
    }

    fn import_stamped(&mut self, line: &ImportLine, stamp: Stamp, tombstone: bool, expected: &mut Merges) {
        self.acknowledged.imported.insert((line.key.clone(), stamp));
        let covering = self.model.covering(&line.key.path).map(|(_, mode)| mode);
        if covering.is_some_and(|mode| !crate::model::exchanged(&line.key, mode)) {
            return;
        }
        let won = expected.won;
        self.merge(&line.key, stamp, tombstone, Class::Local, true, expected);
        if expected.won > won && covering.is_some() {
            self.acknowledged.publish(&line.key, stamp);
        }
    }

    // ---- afterwards -----------------------------------------------------------------------------

    fn alarms(&self, alarms: &BTreeSet<Alarm>) -> Checked {
        let mut duplicates = BTreeSet::new();
        let mut far = BTreeSet::new();
        for alarm in alarms {
            match alarm {
                Alarm::DuplicateEid { eid } => duplicates.insert(*eid),
                Alarm::FarFuture { eid, .. } => far.insert(*eid),
            };
        }
        ensure(duplicates == self.duplicates && far == self.far, Check::Alarms, || {
            format!("alarms were {alarms:?}; duplicates {:?} and far futures {:?} came", self.duplicates, self.far)
        })?;
        let falsely = duplicates.iter().find(|eid| !self.acknowledged.doubled.contains(eid));
        ensure(falsely.is_none(), Check::Alarms, || format!("{falsely:?} is no duplicate"))
    }

    fn disk_is_as_modelled(&self) -> Checked {
        for key in &self.touched {
            let stored = self.read.record(key).expect("memory reads");
            let found = stored.as_ref().map(|stored| (stored.register.stamp(), stored.register.is_tombstone()));
            let wanted = self.model.held.get(key).map(|held| (held.stamp, held.tombstone));
            if found != wanted {
                return Err(mismatch(key, found, wanted));
            }
            let class = stored.map(|stored| stored.class);
            ensure(class == self.model.held.get(key).map(|held| held.class), Check::ClassTrue, || {
                format!("{} is kept as {class:?}, it is {:?}", key.path, self.model.held.get(key))
            })?;
        }
        Ok(())
    }
}

/// Names the promise that a wrong record breaks.
pub fn mismatch(key: &RecordKey, found: Option<(Stamp, bool)>, wanted: Option<(Stamp, bool)>) -> Violation {
    let check = match (found, wanted) {
        (Some((found, false)), Some((wanted, true))) if found < wanted => Check::NoResurrection,
        (None, Some((_, true))) => Check::NoResurrection,
        (None, Some(_)) => Check::DurableAck,
        _ => Check::KnownWinner,
    };
    Violation { check, what: format!("{} ({:?}) is {found:?} on disk, must be {wanted:?}", key.path, key.owner) }
}

fn may_be_named(top: &str) -> bool {
    top != BOOKS_FAMILY && top != MARKS_FAMILY && top.parse::<Eid>().is_err()
}

fn may_be_written(path: &Path) -> bool {
    may_be_named(path.top())
}
