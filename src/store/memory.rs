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
use std::sync::{Arc, PoisonError, RwLock};

use self::delta::Delta;
use self::feed::{Feed, FeedChanges};
use crate::core::eid::Eid;
use crate::core::family::Mark;
use crate::core::mutant;
use crate::core::path::Family;
use crate::core::record::{Class, Classes, RecordKey, Stored};
use crate::core::storage::{Cursor, CursorKey, RUNS_MAX, Read, Reads, RunStart, Span, Store, StoreError, Visit, Write};

mod delta;
mod feed;

/// By family and scope, then by source: of these there may be many.
type Cursors = BTreeMap<(Family, Classes), BTreeMap<Eid, Cursor>>;

/// Everything that is committed.
#[derive(Clone, Debug, Default)]
struct State {
    records: BTreeMap<Keyed, Stored>,
    feed: Feed,
    marks: BTreeMap<Family, Mark>,
    runs: BTreeMap<u64, RunStart>,
    cursors: Cursors,
    adapter: BTreeMap<Vec<u8>, Vec<u8>>,
    head: u64,
}

#[derive(Debug)]
struct Changes {
    records: Delta<Keyed, Stored>,
    feed: FeedChanges,
    marks: Delta<Family, Mark>,
    runs: Delta<u64, RunStart>,
    cursors: Delta<CursorKey, Cursor>,
    adapter: Delta<Vec<u8>, Vec<u8>>,
    head: Option<u64>,
}

impl Changes {
    const NONE: Self = Self {
        records: Delta::NONE,
        feed: FeedChanges::NONE,
        marks: Delta::NONE,
        runs: Delta::NONE,
        cursors: Delta::NONE,
        adapter: Delta::NONE,
        head: None,
    };

    fn apply(self, state: &mut State) {
        self.records.apply(&mut state.records);
        self.feed.apply(&mut state.feed);
        self.marks.apply(&mut state.marks);
        self.runs.apply(&mut state.runs);
        for (CursorKey { source, family, classes }, change) in self.cursors.into_changes() {
            let of_scope = state.cursors.entry((family, classes)).or_default();
            match change {
                Some(cursor) => of_scope.insert(source, cursor),
                None => of_scope.remove(&source),
            };
        }
        self.adapter.apply(&mut state.adapter);
        state.head = self.head.unwrap_or(state.head);
    }
}

/// What records are kept by: their keys, in an order in which other places can be looked up as well. A family's
/// records lie between two places of which one, the least path under the family, is no path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Keyed(RecordKey);

trait Place {
    fn place(&self) -> (&str, Option<Eid>);
}

impl Place for Keyed {
    fn place(&self) -> (&str, Option<Eid>) {
        (self.0.path.as_str(), self.0.owner)
    }
}

impl Place for (String, Option<Eid>) {
    fn place(&self) -> (&str, Option<Eid>) {
        (&self.0, self.1)
    }
}

impl Borrow<RecordKey> for Keyed {
    fn borrow(&self) -> &RecordKey {
        &self.0
    }
}

impl<'a> Borrow<dyn Place + 'a> for Keyed {
    fn borrow(&self) -> &(dyn Place + 'a) {
        self
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn Place + '_ {}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place().cmp(&other.place())
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
        Ok(self.changes.records.get(&self.state.records, key).cloned())
    }

    fn scan(&self, span: Span<'_>, visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
        let _ended_early: ControlFlow<()> = match span {
            Span::All => self
                .changes
                .records
                .all(&self.state.records)
                .try_for_each(|(key, stored)| visit((key.0.clone(), stored.clone()))),
            Span::Under(family) => ranges_under(family).iter().try_for_each(|(from, to)| {
                let range = (from.as_ref().map(|at| at as &dyn Place), to.as_ref().map(|at| at as &dyn Place));
                let mut entries = self.changes.records.range::<dyn Place>(&self.state.records, range);
                entries.try_for_each(|(key, stored)| visit((key.0.clone(), stored.clone())))
            }),
        };
        Ok(())
    }

    fn feed(&self, top: &str, after: u64, visit: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError> {
        self.changes.feed.visit(&self.state.feed, (top, Classes::ALL, after), usize::MAX, visit);
        Ok(())
    }

    fn feed_of(
        &self,
        top: &str,
        classes: Classes,
        after: u64,
        looks_max: usize,
        visit: Visit<'_, (u64, Class, RecordKey)>,
    ) -> Result<Option<u64>, StoreError> {
        Ok(self.changes.feed.visit(&self.state.feed, (top, classes, after), looks_max, visit))
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
        let of_scope = || self.state.cursors.get(&(key.family.clone(), key.classes))?.get(&key.source);
        let found = self.changes.cursors.change(key).map_or_else(of_scope, Option::as_ref);
        Ok(found.copied())
    }

    fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError> {
        let mut cursors = BTreeMap::new();
        for ((family, classes), of_scope) in &self.state.cursors {
            let key = |source: &Eid| CursorKey { source: *source, family: family.clone(), classes: *classes };
            cursors.extend(of_scope.iter().map(|(source, cursor)| (key(source), *cursor)));
        }
        for (key, change) in self.changes.cursors.changes::<CursorKey>(..) {
            match change {
                Some(cursor) => _ = cursors.insert(key.clone(), *cursor),
                None => _ = cursors.remove(key),
            }
        }
        Ok(cursors)
    }

    fn adapter(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.changes.adapter.get(&self.state.adapter, key).cloned())
    }
}

/// Reads from any thread; shares the state with the store it came from.
#[derive(Clone, Debug, Default)]
pub struct MemoryReads(Arc<RwLock<Arc<State>>>);

impl MemoryReads {
    fn state(&self) -> Arc<State> {
        // A panic elsewhere cannot have left the state half changed: it is replaced or changed whole.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reads for MemoryReads {
    type Reader = MemoryReader;

    fn read(&self) -> Result<MemoryReader, StoreError> {
        Ok(MemoryReader { state: self.state() })
    }
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    reads: MemoryReads,
    fail_next_commit: Option<StoreError>,
    fail_after_next_commit: Option<StoreError>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
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

    /// Commits succeed again.
    pub fn forget_planned_failures(&mut self) {
        (self.fail_next_commit, self.fail_after_next_commit) = (None, None);
    }
}

impl Clone for MemoryStore {
    fn clone(&self) -> Self {
        let state = RwLock::new(self.reads.state());
        Self { reads: MemoryReads(Arc::new(state)), ..Self::default() }
    }
}

impl Store for MemoryStore {
    type Reader = MemoryReader;
    type Reads = MemoryReads;
    type Writer<'a> = MemoryWriter<'a>;

    fn reads(&self) -> MemoryReads {
        self.reads.clone()
    }

    fn write(&mut self) -> Result<MemoryWriter<'_>, StoreError> {
        Ok(MemoryWriter { state: self.reads.state(), changes: Changes::NONE, store: self })
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A transaction on a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryWriter<'a> {
    store: &'a mut MemoryStore,
    state: Arc<State>,
    changes: Changes,
}

impl MemoryReader {
    fn view(&self) -> View<'_> {
        View { state: &self.state, changes: &NO_CHANGES }
    }
}

impl MemoryWriter<'_> {
    fn view(&self) -> View<'_> {
        View { state: &self.state, changes: &self.changes }
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
        let Self { state, changes, .. } = self;
        let before = changes.records.get(&state.records, key).map(|old| (old.class, old.seq));
        if let Some((class, seq)) = before.filter(|_| !mutant!(FeedEntryLeft)) {
            changes.feed.take_out(key, class, seq);
        }
        if before.is_none() || !mutant!(FeedEntrySkipped) {
            changes.feed.put(key, stored.class, stored.seq);
        }
        changes.records.set(Keyed(key.clone()), Some(stored.clone()));
        Ok(())
    }

    fn remove_record(&mut self, key: &RecordKey) -> Result<(), StoreError> {
        let Self { state, changes, .. } = self;
        if let Some((class, seq)) = changes.records.get(&state.records, key).map(|old| (old.class, old.seq)) {
            if !mutant!(FeedEntryLeft) {
                changes.feed.take_out(key, class, seq);
            }
            changes.records.set(Keyed(key.clone()), None);
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
        let Self { state, changes, .. } = self;
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

    fn set_adapter(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        self.changes.adapter.set(key.to_vec(), value.map(<[u8]>::to_vec));
        Ok(())
    }

    fn commit(self) -> Result<(), StoreError> {
        let Self { store, state, changes } = self;
        if let Some(error) = store.fail_next_commit.take() {
            return Err(error);
        }
        // Our own hold on the state would force a copy.
        drop(state);
        changes.apply(Arc::make_mut(&mut store.reads.0.write().unwrap_or_else(PoisonError::into_inner)));
        store.fail_after_next_commit.take().map_or(Ok(()), Err)
    }
}
