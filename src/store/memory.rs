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
use std::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::{Arc, PoisonError, RwLock};

use crate::core::family::Mark;
use crate::core::mutant;
use crate::core::path::Family;
use crate::core::record::{Class, RecordKey, Stored};
use crate::core::storage::{
    Cursor, CursorKey, LocalFloor, Quarantined, RUNS_MAX, Read, Reads, RunStart, Span, Store, StoreError, Visit, Write,
    family_ranges, ranges_behind,
};

/// Everything that is committed. Records are kept under the bytes of their keys: a family is a range of
/// those, while the least path under a family is no path.
#[derive(Clone, Debug, Default)]
struct State {
    records: BTreeMap<Vec<u8>, (RecordKey, Stored)>,
    feed: BTreeMap<(String, u64), (Class, RecordKey)>,
    marks: BTreeMap<Family, Mark>,
    runs: BTreeMap<u64, RunStart>,
    cursors: BTreeMap<CursorKey, Cursor>,
    floors: BTreeMap<Family, LocalFloor>,
    quarantine: BTreeMap<RecordKey, Quarantined>,
    adapter: BTreeMap<Vec<u8>, Vec<u8>>,
    head: u64,
}

/// What a transaction changes in one map; None takes the entry out.
#[derive(Debug)]
struct Delta<K, V>(BTreeMap<K, Option<V>>);

impl<K, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V> Delta<K, V> {
    fn get<'a, Q: Ord + ?Sized>(&'a self, base: &'a BTreeMap<K, V>, key: &Q) -> Option<&'a V>
    where
        K: Borrow<Q>,
    {
        match self.0.get(key) {
            Some(change) => change.as_ref(),
            None => base.get(key),
        }
    }

    /// The entries of the range, changes included, in order.
    fn range<'a, Q: Ord + ?Sized>(
        &'a self,
        base: &'a BTreeMap<K, V>,
        range: impl RangeBounds<Q> + Clone,
    ) -> impl Iterator<Item = (&'a K, &'a V)>
    where
        K: Borrow<Q>,
    {
        let mut old = base.range(range.clone()).peekable();
        let mut new = self.0.range(range).peekable();
        let merged = std::iter::from_fn(move || {
            let Some((changed, _)) = new.peek() else { return old.next().map(|(key, value)| (key, Some(value))) };
            if old.peek().is_some_and(|(key, _)| key < changed) {
                return old.next().map(|(key, value)| (key, Some(value)));
            }
            old.next_if(|(key, _)| key == changed);
            new.next().map(|(key, value)| (key, value.as_ref()))
        });
        merged.filter_map(|(key, value)| value.map(|value| (key, value)))
    }

    fn all<'a>(&'a self, base: &'a BTreeMap<K, V>) -> impl Iterator<Item = (&'a K, &'a V)> {
        self.range::<K>(base, ..)
    }

    fn set(&mut self, key: K, value: Option<V>) {
        self.0.insert(key, value);
    }

    fn apply(self, base: &mut BTreeMap<K, V>) {
        for (key, change) in self.0 {
            match change {
                Some(value) => base.insert(key, value),
                None => base.remove(&key),
            };
        }
    }
}

#[derive(Debug, Default)]
struct Changes {
    records: Delta<Vec<u8>, (RecordKey, Stored)>,
    feed: Delta<(String, u64), (Class, RecordKey)>,
    marks: Delta<Family, Mark>,
    runs: Delta<u64, RunStart>,
    cursors: Delta<CursorKey, Cursor>,
    floors: Delta<Family, LocalFloor>,
    quarantine: Delta<RecordKey, Quarantined>,
    adapter: Delta<Vec<u8>, Vec<u8>>,
    head: Option<u64>,
}

impl Changes {
    fn apply(self, state: &mut State) {
        self.records.apply(&mut state.records);
        self.feed.apply(&mut state.feed);
        self.marks.apply(&mut state.marks);
        self.runs.apply(&mut state.runs);
        self.cursors.apply(&mut state.cursors);
        self.floors.apply(&mut state.floors);
        self.quarantine.apply(&mut state.quarantine);
        self.adapter.apply(&mut state.adapter);
        state.head = self.head.unwrap_or(state.head);
    }
}

/// A committed state, and changes to it that only this view sees. A reader has none.
#[derive(Debug)]
pub struct MemoryReader {
    state: Arc<State>,
    changes: Changes,
}

impl Read for MemoryReader {
    fn record(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        let found = self.changes.records.get(&self.state.records, key.to_bytes().as_slice());
        Ok(found.map(|(_, stored)| stored.clone()))
    }

    fn scan(&self, span: Span<'_>, visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
        let mut over = |range: (Bound<&[u8]>, Bound<&[u8]>)| {
            let mut entries = self.changes.records.range::<[u8]>(&self.state.records, range);
            entries.try_for_each(|(_, entry)| visit(entry.clone()))
        };
        let _ended_early: ControlFlow<()> = match span {
            Span::All => over((Bound::Unbounded, Bound::Unbounded)),
            Span::Under(family) => family_ranges(family)
                .iter()
                .try_for_each(|range| over((Bound::Included(&range.start), Bound::Excluded(&range.end)))),
            Span::Behind(family, key) => ranges_behind(family, key)
                .iter()
                .filter(|range| !range.is_empty())
                .try_for_each(|range| over((Bound::Included(&range.start), Bound::Excluded(&range.end)))),
        };
        Ok(())
    }

    fn feed(&self, top: &str, after: u64, visit: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError> {
        let range = (Bound::Excluded((top.to_owned(), after)), Bound::Included((top.to_owned(), u64::MAX)));
        // A range that excludes and includes one and the same end panics.
        if after < u64::MAX {
            let mut entries = self.changes.feed.range(&self.state.feed, range);
            let _ended_early: ControlFlow<()> =
                entries.try_for_each(|((_, seq), (class, key))| visit((*seq, *class, key.clone())));
        }
        Ok(())
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
        Ok(self.changes.cursors.get(&self.state.cursors, key).copied())
    }

    fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError> {
        Ok(self.changes.cursors.all(&self.state.cursors).map(|(key, cursor)| (key.clone(), *cursor)).collect())
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
        Ok(MemoryReader { state: self.state(), changes: Changes::default() })
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
        Ok(MemoryWriter { view: self.reads.read()?, store: self })
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A transaction on a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryWriter<'a> {
    store: &'a mut MemoryStore,
    view: MemoryReader,
}

impl Read for MemoryWriter<'_> {
    fn record(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        self.view.record(key)
    }

    fn scan(&self, span: Span<'_>, visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
        self.view.scan(span, visit)
    }

    fn feed(&self, top: &str, after: u64, visit: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError> {
        self.view.feed(top, after, visit)
    }

    fn head(&self) -> Result<u64, StoreError> {
        self.view.head()
    }

    fn marks(&self) -> Result<BTreeMap<Family, Mark>, StoreError> {
        self.view.marks()
    }

    fn runs(&self) -> Result<Vec<RunStart>, StoreError> {
        self.view.runs()
    }

    fn cursor(&self, key: &CursorKey) -> Result<Option<Cursor>, StoreError> {
        self.view.cursor(key)
    }

    fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError> {
        self.view.cursors()
    }

    fn floors(&self) -> Result<BTreeMap<Family, LocalFloor>, StoreError> {
        self.view.floors()
    }

    fn quarantine(&self, visit: Visit<'_, (RecordKey, Quarantined)>) -> Result<(), StoreError> {
        self.view.quarantine(visit)
    }

    fn quarantined(&self, key: &RecordKey) -> Result<Option<Quarantined>, StoreError> {
        self.view.quarantined(key)
    }

    fn adapter(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.view.adapter(key)
    }
}

impl Write for MemoryWriter<'_> {
    fn put_record(&mut self, key: &RecordKey, stored: &Stored) -> Result<(), StoreError> {
        let forgets = mutant!(FeedEntrySkipped) && self.view.record(key)?.is_some();
        self.remove_record(key)?;
        let changes = &mut self.view.changes;
        if !forgets {
            changes.feed.set((key.path.top().to_owned(), stored.seq), Some((stored.class, key.clone())));
        }
        changes.records.set(key.to_bytes(), Some((key.clone(), stored.clone())));
        Ok(())
    }

    fn remove_record(&mut self, key: &RecordKey) -> Result<(), StoreError> {
        let MemoryReader { state, changes } = &mut self.view;
        let bytes = key.to_bytes();
        if let Some(seq) = changes.records.get(&state.records, bytes.as_slice()).map(|(_, old)| old.seq) {
            if !mutant!(FeedEntryLeft) {
                changes.feed.set((key.path.top().to_owned(), seq), None);
            }
            changes.records.set(bytes, None);
        }
        Ok(())
    }

    fn set_head(&mut self, head: u64) -> Result<(), StoreError> {
        self.view.changes.head = Some(head);
        Ok(())
    }

    fn set_mark(&mut self, family: &Family, mark: Option<Mark>) -> Result<(), StoreError> {
        self.view.changes.marks.set(family.clone(), mark);
        Ok(())
    }

    fn append_run(&mut self, start: RunStart) -> Result<(), StoreError> {
        let MemoryReader { state, changes } = &mut self.view;
        let newest = [state.runs.last_key_value().map(|(n, _)| *n), changes.runs.0.last_key_value().map(|(n, _)| *n)];
        let ordinal = newest.into_iter().flatten().max().map_or(0, |newest| newest + 1);
        changes.runs.set(ordinal, Some(start));
        // Ordinals have no gaps, so that the one to forget is known by its number.
        if let Some(oldest) = ordinal.checked_sub(RUNS_MAX as u64) {
            changes.runs.set(oldest, None);
        }
        Ok(())
    }

    fn set_cursor(&mut self, key: &CursorKey, cursor: Option<Cursor>) -> Result<(), StoreError> {
        self.view.changes.cursors.set(key.clone(), cursor);
        Ok(())
    }

    fn set_floor(&mut self, family: &Family, floor: Option<LocalFloor>) -> Result<(), StoreError> {
        self.view.changes.floors.set(family.clone(), floor);
        Ok(())
    }

    fn set_quarantined(&mut self, key: &RecordKey, quarantined: Option<&Quarantined>) -> Result<(), StoreError> {
        self.view.changes.quarantine.set(key.clone(), quarantined.cloned());
        Ok(())
    }

    fn set_adapter(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        self.view.changes.adapter.set(key.to_vec(), value.map(<[u8]>::to_vec));
        Ok(())
    }

    fn commit(self) -> Result<(), StoreError> {
        let Self { store, view: MemoryReader { state, changes } } = self;
        if let Some(error) = store.fail_next_commit.take() {
            return Err(error);
        }
        // Our own hold on the state would force a copy.
        drop(state);
        changes.apply(Arc::make_mut(&mut store.reads.0.write().unwrap_or_else(PoisonError::into_inner)));
        store.fail_after_next_commit.take().map_or(Ok(()), Err)
    }
}
