//! The store in memory: for the simulator and for tests.
//!
//! Invariants:
//!
//! * The committed state is immutable while a reader holds it. A writer collects its changes beside it,
//!   so a commit costs as much as its changes; only when a reader is alive at that moment is the state
//!   copied.
//! * A clone of the store is a copy of the disk: from then on the two have nothing in common.
//!
//! It never fails by itself; [`MemoryStore::fail_next_commit`] makes it.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

pub use self::common::Common;
use self::common::Held;
use self::cursors::Cursors;
use self::delta::{Delta, merged};
use self::records::{Place, Records, Seen};
use crate::core::eid::Eid;
use crate::core::family::Mark;
use crate::core::mutant;
use crate::core::path::Family;
use crate::core::record::{Class, Classes, RecordKey, Stored};
use crate::core::storage::{
    Cursor, CursorKey, LocalFloor, Quarantined, RUNS_MAX, Read, Reads, RunStart, Span, Store, StoreError, Visit, Write,
};

mod common;
mod cursors;
mod delta;
mod order;
mod records;

/// Everything that is committed.
#[derive(Clone, Debug, Default)]
struct State {
    records: Records,
    marks: BTreeMap<Family, Mark>,
    runs: BTreeMap<u64, RunStart>,
    cursors: Cursors,
    floors: BTreeMap<Family, LocalFloor>,
    quarantine: BTreeMap<RecordKey, Quarantined>,
    adapter: BTreeMap<Vec<u8>, Vec<u8>>,
    head: u64,
}

#[derive(Debug)]
struct Changes {
    records: Delta<Keyed, Pending>,
    marks: Delta<Family, Mark>,
    runs: Delta<u64, RunStart>,
    cursors: Delta<CursorKey, Cursor>,
    floors: Delta<Family, LocalFloor>,
    quarantine: Delta<RecordKey, Quarantined>,
    adapter: Delta<Vec<u8>, Vec<u8>>,
    head: Option<u64>,
}

impl Changes {
    const NONE: Self = Self {
        records: Delta::NONE,
        marks: Delta::NONE,
        runs: Delta::NONE,
        cursors: Delta::NONE,
        floors: Delta::NONE,
        quarantine: Delta::NONE,
        adapter: Delta::NONE,
        head: None,
    };

    fn apply(self, state: &mut State) {
        for (Keyed(key), change) in self.records.into_changes() {
            match change {
                Some(Pending { held, place, fed }) => state.records.put(held, place, fed),
                None => state.records.remove(&key),
            }
        }
        self.marks.apply(&mut state.marks);
        self.runs.apply(&mut state.runs);
        for (key, change) in self.cursors.into_changes() {
            state.cursors.set(&key, change);
        }
        self.floors.apply(&mut state.floors);
        self.quarantine.apply(&mut state.quarantine);
        self.adapter.apply(&mut state.adapter);
        state.head = self.head.unwrap_or(state.head);
    }
}

/// A record that a transaction puts.
#[derive(Debug)]
struct Pending {
    held: Arc<Held>,
    place: Place,
    /// Whether it gets an entry in the feed.
    fed: bool,
}

impl Pending {
    fn seen(&self) -> Seen<'_> {
        Seen { register: &self.held.register, place: self.place }
    }
}

fn stored(seen: Seen<'_>) -> Stored {
    Stored { register: seen.register.clone(), class: seen.place.class(), seq: seen.place.seq() }
}

/// What changed records are kept by: their keys, in an order in which other places can be looked up as well. A family's
/// records lie between two places of which one, the least path under the family, is no path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Keyed(RecordKey);

trait Sorted {
    fn sorted(&self) -> (&str, Option<Eid>);
}

impl Sorted for Keyed {
    fn sorted(&self) -> (&str, Option<Eid>) {
        (self.0.path.as_str(), self.0.owner)
    }
}

impl Sorted for (String, Option<Eid>) {
    fn sorted(&self) -> (&str, Option<Eid>) {
        (&self.0, self.1)
    }
}

impl Borrow<RecordKey> for Keyed {
    fn borrow(&self) -> &RecordKey {
        &self.0
    }
}

impl<'a> Borrow<dyn Sorted + 'a> for Keyed {
    fn borrow(&self) -> &(dyn Sorted + 'a) {
        self
    }
}

impl PartialEq for dyn Sorted + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.sorted() == other.sorted()
    }
}

impl Eq for dyn Sorted + '_ {}

impl PartialOrd for dyn Sorted + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Sorted + '_ {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.sorted().cmp(&other.sorted())
    }
}

type Edge = Bound<(String, Option<Eid>)>;

/// The ranges of [`Span::Under`]: those of the family's own path, and those under it. What sorts between the
/// two (`/foo!`) belongs to others.
fn ranges_under(family: &Family) -> [(Edge, Edge); 2] {
    let place = |end: &str, owner| (format!("/{family}{end}"), owner);
    let last = Some(Eid::new([0xff; Eid::BYTES]));
    [
        (Bound::Included(place("", None)), Bound::Included(place("", last))),
        // '0' comes after '/'.
        (Bound::Included(place("/", None)), Bound::Excluded(place("0", None))),
    ]
}

/// What of a range lies behind a key.
fn rest((from, to): (Edge, Edge), behind: &RecordKey) -> Option<(Edge, Edge)> {
    if is_beyond(behind, &to) {
        return None;
    }
    let key = || (behind.path.as_str().to_owned(), behind.owner);
    Some((if is_before(behind, &from) { from } else { Bound::Excluded(key()) }, to))
}

/// Whether a key lies before a range that begins so.
fn is_before(key: &RecordKey, from: &Edge) -> bool {
    let key = (key.path.as_str(), key.owner);
    match from {
        Bound::Included(edge) => key < edge.sorted(),
        Bound::Excluded(edge) => key <= edge.sorted(),
        Bound::Unbounded => false,
    }
}

/// Whether a key lies beyond a range that ends so.
fn is_beyond(key: &RecordKey, to: &Edge) -> bool {
    let key = (key.path.as_str(), key.owner);
    match to {
        Bound::Included(edge) => key > edge.sorted(),
        Bound::Excluded(edge) => key >= edge.sorted(),
        Bound::Unbounded => false,
    }
}

/// A committed state.
#[derive(Debug)]
pub struct MemoryReader {
    state: Arc<State>,
}

/// A committed state, and changes to it that only this view sees.
#[derive(Clone, Copy)]
struct View<'a> {
    state: &'a State,
    changes: &'a Changes,
}

static NO_CHANGES: Changes = Changes::NONE;

impl Read for View<'_> {
    fn record(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        Ok(self.seen(key).map(stored))
    }

    fn scan(&self, span: Span<'_>, visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
        let mut visit = |(key, seen): (&RecordKey, Seen<'_>)| visit((key.clone(), stored(seen)));
        let _ended_early: ControlFlow<()> = match span {
            Span::All => self.range(&(Bound::Unbounded, Bound::Unbounded)).try_for_each(&mut visit),
            Span::Under(family) => {
                ranges_under(family).iter().try_for_each(|range| self.range(range).try_for_each(&mut visit))
            }
            Span::Behind(family, behind) => ranges_under(family)
                .into_iter()
                .filter_map(|range| rest(range, behind))
                .try_for_each(|range| self.range(&range).try_for_each(&mut visit)),
        };
        Ok(())
    }

    fn feed(&self, top: &str, after: u64, visit: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError> {
        self.feed_of(top, Classes::ALL, after, usize::MAX, visit).map(|_| ())
    }

    fn feed_of(
        &self,
        top: &str,
        classes: Classes,
        after: u64,
        looks_max: usize,
        visit: Visit<'_, (u64, Class, RecordKey)>,
    ) -> Result<Option<u64>, StoreError> {
        let old = self.state.records.feed(top, classes, after);
        if self.changes.records.is_empty() {
            return Ok(visit_feed(old, looks_max, visit));
        }
        let stays = |(.., key): &(u64, Class, &RecordKey)| self.changes.records.change(*key).is_none();
        let mut entries: Vec<_> = old.filter(stays).collect();
        for (Keyed(key), change) in self.changes.records.changes::<Keyed>(..) {
            let Some(Pending { place, fed: true, .. }) = change else { continue };
            if place.seq() > after && classes.contains(place.class()) && key.path.top() == top {
                entries.push((place.seq(), place.class(), key));
            }
        }
        entries.sort_unstable();
        Ok(visit_feed(entries.into_iter(), looks_max, visit))
    }

    fn head(&self) -> Result<u64, StoreError> {
        Ok(self.changes.head.unwrap_or(self.state.head))
    }

    fn marks(&self) -> Result<BTreeMap<Family, Mark>, StoreError> {
        Ok(self.changes.marks.all(&self.state.marks).map(|(family, mark)| (family.clone(), *mark)).collect())
    }

    fn runs(&self) -> Result<Vec<RunStart>, StoreError> {
        Ok(self.changes.runs.all(&self.state.runs).map(|(_, start)| *start).collect())
    }

    fn cursor(&self, key: &CursorKey) -> Result<Option<Cursor>, StoreError> {
        Ok(self.changes.cursors.change(key).copied().unwrap_or_else(|| self.state.cursors.get(key)))
    }

    fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError> {
        let mut cursors: BTreeMap<CursorKey, Cursor> = self.state.cursors.all().collect();
        for (key, change) in self.changes.cursors.changes::<CursorKey>(..) {
            match change {
                Some(cursor) => _ = cursors.insert(key.clone(), *cursor),
                None => _ = cursors.remove(key),
            }
        }
        Ok(cursors)
    }

    fn floors(&self) -> Result<BTreeMap<Family, LocalFloor>, StoreError> {
        Ok(self.changes.floors.all(&self.state.floors).map(|(family, floor)| (family.clone(), *floor)).collect())
    }

    fn quarantine(&self, visit: Visit<'_, (RecordKey, Quarantined)>) -> Result<(), StoreError> {
        let mut entries = self.changes.quarantine.all(&self.state.quarantine);
        let _ended_early: ControlFlow<()> = entries.try_for_each(|(key, entry)| visit((key.clone(), entry.clone())));
        Ok(())
    }

    fn quarantined(&self, key: &RecordKey) -> Result<Option<Quarantined>, StoreError> {
        Ok(self.changes.quarantine.get(&self.state.quarantine, key).cloned())
    }

    fn adapter(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.changes.adapter.get(&self.state.adapter, key).cloned())
    }
}

impl<'a> View<'a> {
    fn seen(self, key: &RecordKey) -> Option<Seen<'a>> {
        match self.changes.records.change(key) {
            Some(change) => change.as_ref().map(Pending::seen),
            None => self.state.records.get(key),
        }
    }

    /// The records of a range, changes included, in order.
    fn range<'b>(self, (from, to): &'b (Edge, Edge)) -> impl Iterator<Item = (&'b RecordKey, Seen<'b>)>
    where
        'a: 'b,
    {
        let old = self.state.records.range(&|key| is_before(key, from), &|key| is_beyond(key, to));
        let range = (from.as_ref().map(|at| at as &dyn Sorted), to.as_ref().map(|at| at as &dyn Sorted));
        let new = self.changes.records.changes::<dyn Sorted>(range);
        merged(old, new.map(|(Keyed(key), change)| (key, change.map(Pending::seen))))
    }
}

/// Visits entries of the feed, no more than so many, and tells where it broke off.
fn visit_feed<'a>(
    entries: impl Iterator<Item = (u64, Class, &'a RecordKey)>,
    looks_max: usize,
    visit: Visit<'_, (u64, Class, RecordKey)>,
) -> Option<u64> {
    for (looked_at, (seq, class, key)) in (1..).zip(entries) {
        if visit((seq, class, key.clone())).is_break() {
            return None;
        }
        if looked_at == looks_max {
            return Some(seq);
        }
    }
    None
}

/// Reads from any thread: here the store shows its state, unless it is just changing it.
#[derive(Clone, Debug, Default)]
pub struct MemoryReads(Arc<RwLock<Arc<State>>>);

impl Reads for MemoryReads {
    type Reader = MemoryReader;

    fn read(&self) -> Result<MemoryReader, StoreError> {
        // A panic elsewhere cannot have left the state half changed: it is replaced or changed whole.
        let state = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        Ok(MemoryReader { state })
    }
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Arc<State>,
    /// Where it is shown to others, if anyone has asked. The owner of a store takes no lock.
    shown: OnceLock<MemoryReads>,
    common: Option<Common>,
    fail_next_commit: Option<StoreError>,
    fail_after_next_commit: Option<StoreError>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that holds in common with others what it and they hold alike.
    pub fn in_common(common: &Common) -> Self {
        Self { common: Some(common.clone()), ..Self::default() }
    }

    /// The next commit fails with this error and leaves nothing behind.
    pub fn fail_next_commit(&mut self, error: StoreError) {
        self.fail_next_commit = Some(error);
    }

    /// The next commit is durable and reports this error all the same, as one whose flush was done but
    /// whose success could not be told.
    pub fn fail_after_next_commit(&mut self, error: StoreError) {
        self.fail_after_next_commit = Some(error);
    }

    /// Looks at what a put of this record and a cursor will need, one step further with each of three steps. Who does
    /// so for several stores, step by step, waits for their memory together and not one after the other. Tells a
    /// number that is made of it.
    pub fn glance(&self, step: u8, key: &RecordKey, scope: Option<(&Family, Classes, Eid)>) -> u64 {
        let State { records, cursors, head, .. } = &*self.state;
        let cursors = match scope {
            Some(scope) if step > 0 => cursors.glance(step, scope),
            _ => *head,
        };
        cursors ^ records.glance(step, key)
    }

    /// Commits succeed again.
    pub fn forget_planned_failures(&mut self) {
        (self.fail_next_commit, self.fail_after_next_commit) = (None, None);
    }
}

impl Clone for MemoryStore {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), common: self.common.clone(), ..Self::default() }
    }
}

impl Store for MemoryStore {
    type Reader = MemoryReader;
    type Reads = MemoryReads;
    type Writer<'a> = MemoryWriter<'a>;

    fn reads(&self) -> MemoryReads {
        self.shown.get_or_init(|| MemoryReads(Arc::new(RwLock::new(self.state.clone())))).clone()
    }

    fn read(&self) -> Result<MemoryReader, StoreError> {
        Ok(MemoryReader { state: self.state.clone() })
    }

    fn write(&mut self) -> Result<MemoryWriter<'_>, StoreError> {
        Ok(MemoryWriter { changes: Changes::NONE, store: self })
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A transaction on a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryWriter<'a> {
    store: &'a mut MemoryStore,
    changes: Changes,
}

impl MemoryReader {
    fn view(&self) -> View<'_> {
        View { state: &self.state, changes: &NO_CHANGES }
    }
}

impl MemoryWriter<'_> {
    fn view(&self) -> View<'_> {
        View { state: &self.store.state, changes: &self.changes }
    }
}

/// Reads through the view of a reader or writer.
macro_rules! reads_through_view {
    ($type:ty) => {
        impl Read for $type {
            fn record(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
                self.view().record(key)
            }

            fn scan(&self, span: Span<'_>, visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
                self.view().scan(span, visit)
            }

            fn feed(&self, top: &str, after: u64, visit: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError> {
                self.view().feed(top, after, visit)
            }

            fn feed_of(
                &self,
                top: &str,
                classes: Classes,
                after: u64,
                looks_max: usize,
                visit: Visit<'_, (u64, Class, RecordKey)>,
            ) -> Result<Option<u64>, StoreError> {
                self.view().feed_of(top, classes, after, looks_max, visit)
            }

            fn head(&self) -> Result<u64, StoreError> {
                self.view().head()
            }

            fn marks(&self) -> Result<BTreeMap<Family, Mark>, StoreError> {
                self.view().marks()
            }

            fn runs(&self) -> Result<Vec<RunStart>, StoreError> {
                self.view().runs()
            }

            fn cursor(&self, key: &CursorKey) -> Result<Option<Cursor>, StoreError> {
                self.view().cursor(key)
            }

            fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError> {
                self.view().cursors()
            }

            fn floors(&self) -> Result<BTreeMap<Family, LocalFloor>, StoreError> {
                self.view().floors()
            }

            fn quarantine(&self, visit: Visit<'_, (RecordKey, Quarantined)>) -> Result<(), StoreError> {
                self.view().quarantine(visit)
            }

            fn quarantined(&self, key: &RecordKey) -> Result<Option<Quarantined>, StoreError> {
                self.view().quarantined(key)
            }

            fn adapter(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
                self.view().adapter(key)
            }
        }
    };
}

reads_through_view!(MemoryReader);
reads_through_view!(MemoryWriter<'_>);

impl Write for MemoryWriter<'_> {
    fn put_record(&mut self, key: &RecordKey, stored: &Stored) -> Result<(), StoreError> {
        let held = match &self.store.common {
            Some(common) => common.hold(key, &stored.register),
            None => Arc::new(Held::new(key, &stored.register)),
        };
        let fed = !mutant!(FeedEntrySkipped) || self.view().seen(key).is_none();
        let pending = Pending { held, place: Place::new(stored.class, stored.seq), fed };
        self.changes.records.set(Keyed(key.clone()), Some(pending));
        Ok(())
    }

    fn remove_record(&mut self, key: &RecordKey) -> Result<(), StoreError> {
        if self.view().seen(key).is_some() {
            self.changes.records.set(Keyed(key.clone()), None);
        }
        Ok(())
    }

    fn set_head(&mut self, head: u64) -> Result<(), StoreError> {
        self.changes.head = Some(head);
        Ok(())
    }

    fn set_mark(&mut self, family: &Family, mark: Option<Mark>) -> Result<(), StoreError> {
        self.changes.marks.set(family.clone(), mark);
        Ok(())
    }

    fn append_run(&mut self, start: RunStart) -> Result<(), StoreError> {
        let Self { store, changes } = self;
        let state = &store.state;
        let newest = [state.runs.last_key_value().map(|(n, _)| *n), changes.runs.last_key().copied()];
        let ordinal = newest.into_iter().flatten().max().map_or(0, |newest| newest + 1);
        changes.runs.set(ordinal, Some(start));
        // Ordinals have no gaps, so that the one to forget is known by its number.
        if let Some(oldest) = ordinal.checked_sub(RUNS_MAX as u64) {
            changes.runs.set(oldest, None);
        }
        Ok(())
    }

    fn set_cursor(&mut self, key: &CursorKey, cursor: Option<Cursor>) -> Result<(), StoreError> {
        self.changes.cursors.set(key.clone(), cursor);
        Ok(())
    }

    fn set_floor(&mut self, family: &Family, floor: Option<LocalFloor>) -> Result<(), StoreError> {
        self.changes.floors.set(family.clone(), floor);
        Ok(())
    }

    fn set_quarantined(&mut self, key: &RecordKey, quarantined: Option<&Quarantined>) -> Result<(), StoreError> {
        self.changes.quarantine.set(key.clone(), quarantined.cloned());
        Ok(())
    }

    fn set_adapter(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        self.changes.adapter.set(key.to_vec(), value.map(<[u8]>::to_vec));
        Ok(())
    }

    fn commit_while(self, meanwhile: impl FnOnce()) -> Result<(), StoreError> {
        let Self { store, changes } = self;
        meanwhile();
        if let Some(error) = store.fail_next_commit.take() {
            return Err(error);
        }
        match store.shown.get() {
            None => changes.apply(Arc::make_mut(&mut store.state)),
            Some(MemoryReads(shown)) => {
                let mut shown = shown.write().unwrap_or_else(PoisonError::into_inner);
                // A hold of our own on the state would force a copy.
                *shown = Arc::default();
                changes.apply(Arc::make_mut(&mut store.state));
                shown.clone_from(&store.state);
            }
        }
        store.fail_after_next_commit.take().map_or(Ok(()), Err)
    }
}
