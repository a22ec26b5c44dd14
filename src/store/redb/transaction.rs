//! A transaction: reading its own changes, changing, and committing.
//!
//! redb lets a table be open only once at a time, and opening one for each row has its price. So changes are
//! held back, table by table, and written in one go and in order: before the table is scanned, when they are
//! many, and at the commit. When they are many a thread of the transaction's own writes them, while more are made. A
//! record is read from what is held, else from the snapshot from before, unless it has been written since.

use std::cell::RefCell;
use std::hash::BuildHasher;
use std::marker::PhantomData;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use ::redb::{
    Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableError, TableHandle,
    WriteTransaction,
};
use hashbrown::{DefaultHashBuilder, HashSet};

use super::absent::Absent;
use super::held::Held;
use super::inserter::{Closing, Inserter};
use super::rows::{
    ADAPTER, Bounds, CURSORS, FEED, FLOORS, HEAD, MARKS, META, QUARANTINE, RECORDS, RUNS, RowVisit, Rows, TABLES,
    Table, View, feed_class, feed_key, get, is_records, row,
};
use super::{Opened, RedbStore, from_storage, from_table, from_transaction};
use crate::core::codec::{append_row, encode_row};
use crate::core::family::Mark;
use crate::core::path::Family;
use crate::core::record::{RecordKey, Stored};
use crate::core::storage::{Cursor, CursorKey, LocalFloor, Quarantined, RUNS_MAX, RunStart, StoreError, Write};

/// How many rows a scan takes at a time.
const CHUNK_ROWS: usize = 64;

/// A redb transaction on one opening of the store, which lends itself for as long.
pub struct Transaction<'a> {
    inserter: RefCell<Inserter>,
    held: RefCell<[Held; TABLES.len()]>,
    /// Of the keys of everything that is held and written.
    hasher: DefaultHashBuilder,
    /// The records that are written: for the others the snapshot from before does. By hash, so that one may be in here
    /// that was not.
    records_written: RefCell<HashSet<u64>>,
    /// The record that was read last, and where it stands in the feed: most often it is the next to be put.
    last_read: RefCell<Option<(Vec<u8>, Option<u64>)>>,
    /// The state before this transaction.
    before: Arc<ReadTransaction>,
    /// Its records; none in a store that is being founded.
    records_before: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    /// What is known not to be among them.
    records_absent: RefCell<Absent>,
    opened: Arc<Opened>,
    _store: PhantomData<&'a mut RedbStore>,
}

impl Transaction<'_> {
    pub(super) fn begin(opened: Arc<Opened>) -> Result<Self, StoreError> {
        let mut txn = opened.db.begin_write().map_err(from_transaction)?;
        txn.set_durability(Durability::Immediate).map_err(|error| StoreError::Io(error.to_string()))?;
        let before = opened.db.begin_read().map_err(from_transaction)?;
        let records_before = match before.open_table(RECORDS) {
            Err(TableError::TableDoesNotExist(_)) => None,
            opened => Some(opened.map_err(from_table)?),
        };
        Ok(Self {
            inserter: RefCell::new(Inserter::new(Box::new(txn))),
            held: RefCell::default(),
            hasher: DefaultHashBuilder::default(),
            records_written: RefCell::default(),
            last_read: RefCell::default(),
            before: Arc::new(before),
            records_before,
            records_absent: RefCell::default(),
            opened,
            _store: PhantomData,
        })
    }

    /// `row` writes the row behind what it is given; none ends it.
    fn change(&self, table: Table, key: &[u8], row: Option<impl FnOnce(&mut Vec<u8>)>) -> Result<(), StoreError> {
        let full = {
            let held = &mut self.held.borrow_mut()[index(table)];
            held.change(self.hasher.hash_one(key), key, row);
            held.is_full()
        };
        if full { self.write_held(table, true) } else { Ok(()) }
    }

    fn write_held(&self, table: Table, many: bool) -> Result<(), StoreError> {
        let held = std::mem::take(&mut self.held.borrow_mut()[index(table)]);
        if held.is_empty() {
            return Ok(());
        }
        if is_records(table) {
            self.records_written.borrow_mut().extend(held.hashes());
        }
        self.inserter.borrow_mut().write(table, held, many)
    }

    /// Works with redb's own transaction, in which all changes of this table are written.
    fn with_txn<T>(
        &self,
        table: Table,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.write_held(table, false)?;
        work(self.inserter.borrow_mut().own()?)
    }
}

/// The table's place in [`TABLES`].
fn index(table: Table) -> usize {
    TABLES.iter().position(|known| known.name() == table.name()).expect("all tables are known")
}

impl Rows for Transaction<'_> {
    fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let hash = self.hasher.hash_one(key);
        if let Some(row) = self.held.borrow()[index(table)].get(hash, key) {
            return row.map(decode).transpose();
        }
        if let Some(before) = self.records_before.as_ref().filter(|_| is_records(table))
            && !self.records_written.borrow().contains(&hash)
        {
            let mut absent = self.records_absent.borrow_mut();
            if absent.has(key) {
                return Ok(None);
            }
            let found = get(before, key, decode)?;
            absent.note(before, key, found.is_some())?;
            return Ok(found);
        }
        let mut inserter = self.inserter.borrow_mut();
        get(&inserter.own()?.open_table(table).map_err(from_table)?, key, decode)
    }

    /// By chunks: redb opens a table once at a time, and the visitor may want to read it too.
    fn range(&self, table: Table, bounds: Bounds<'_>, visit: RowVisit<'_>) -> Result<ControlFlow<()>, StoreError> {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let from = last.as_deref().map_or(bounds.0, Bound::Excluded);
            let chunk =
                self.with_txn(table, |txn| chunk(&txn.open_table(table).map_err(from_table)?, (from, bounds.1)))?;
            for (key, value) in &chunk {
                if visit(key, value)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            if chunk.len() < CHUNK_ROWS {
                return Ok(ControlFlow::Continue(()));
            }
            last = chunk.into_iter().next_back().map(|(key, _)| key);
        }
    }

    fn note_record(&self, key: Vec<u8>, seq: Option<u64>) {
        *self.last_read.borrow_mut() = Some((key, seq));
    }
}

type Row = (Vec<u8>, Vec<u8>);

fn chunk(table: &impl ReadableTable<&'static [u8], &'static [u8]>, bounds: Bounds<'_>) -> Result<Vec<Row>, StoreError> {
    let rows = table.range::<&[u8]>(bounds).map_err(from_storage)?.take(CHUNK_ROWS);
    rows.map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).map_err(from_storage))
        .collect()
}

impl View<Transaction<'_>> {
    pub(super) fn create_tables(&self) -> Result<(), StoreError> {
        let mut inserter = self.0.inserter.borrow_mut();
        let txn = inserter.own()?;
        TABLES.into_iter().try_for_each(|table| txn.open_table(table).map(drop).map_err(from_table))
    }

    pub(super) fn set(&self, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        self.0.change(table, key, value.map(|value| |bytes: &mut Vec<u8>| bytes.extend_from_slice(value)))
    }

    /// Where the record of this key stands in the feed, and the key's bytes.
    fn place_of(&self, key: &RecordKey) -> Result<(Vec<u8>, Option<u64>), StoreError> {
        let bytes = key.to_bytes();
        // It moves: should it be put once more, what is held of it tells.
        if let Some(read) = self.0.last_read.take().filter(|(last, _)| *last == bytes) {
            return Ok(read);
        }
        let seq = self.0.get(RECORDS, &bytes, row::<Stored>("records"))?.map(|stored| stored.seq);
        Ok((bytes, seq))
    }

    /// Puts or removes a record; the row that this replaces tells where the record stood in the feed.
    fn change_record(&self, key: &RecordKey, stored: Option<&Stored>) -> Result<(), StoreError> {
        let ((bytes, seq), top) = (self.place_of(key)?, key.path.top());
        if let Some(old) = seq.filter(|old| stored.is_none_or(|new| new.seq != *old)) {
            self.0.change(FEED, &feed_key(top, old), None::<fn(&mut Vec<u8>)>)?;
        }
        if let Some(new) = stored {
            let row = |row: &mut Vec<u8>| {
                row.push(feed_class(new.class));
                row.extend_from_slice(&bytes);
            };
            self.0.change(FEED, &feed_key(top, new.seq), Some(row))?;
        }
        self.0.change(RECORDS, &bytes, stored.map(|stored| |row: &mut Vec<u8>| append_row(stored, row)))
    }
}

impl Write for View<Transaction<'_>> {
    fn put_record(&mut self, key: &RecordKey, stored: &Stored) -> Result<(), StoreError> {
        self.change_record(key, Some(stored))
    }

    fn remove_record(&mut self, key: &RecordKey) -> Result<(), StoreError> {
        self.change_record(key, None)
    }

    fn set_head(&mut self, head: u64) -> Result<(), StoreError> {
        self.set(META, HEAD, Some(&encode_row(&head)))
    }

    fn set_mark(&mut self, family: &Family, mark: Option<Mark>) -> Result<(), StoreError> {
        self.set(MARKS, family.as_str().as_bytes(), mark.as_ref().map(encode_row).as_deref())
    }

    fn append_run(&mut self, start: RunStart) -> Result<(), StoreError> {
        self.0.with_txn(RUNS, |txn| {
            let mut runs = txn.open_table(RUNS).map_err(from_table)?;
            let newest = match runs.last().map_err(from_storage)? {
                Some((key, _)) => Some(ordinal(key.value())?),
                None => None,
            };
            let next = newest.map_or(0, |newest| newest + 1);
            runs.insert(&next.to_be_bytes()[..], &encode_row(&start)[..]).map_err(from_storage)?;
            // Ordinals have no gaps, so that the one to forget is known by its number.
            if let Some(oldest) = next.checked_sub(RUNS_MAX as u64) {
                runs.remove(&oldest.to_be_bytes()[..]).map_err(from_storage)?;
            }
            Ok(())
        })
    }

    fn set_cursor(&mut self, key: &CursorKey, cursor: Option<Cursor>) -> Result<(), StoreError> {
        self.set(CURSORS, &encode_row(key), cursor.as_ref().map(encode_row).as_deref())
    }

    fn set_floor(&mut self, family: &Family, floor: Option<LocalFloor>) -> Result<(), StoreError> {
        self.set(FLOORS, family.as_str().as_bytes(), floor.as_ref().map(encode_row).as_deref())
    }

    fn set_quarantined(&mut self, key: &RecordKey, quarantined: Option<&Quarantined>) -> Result<(), StoreError> {
        self.set(QUARANTINE, &key.to_bytes(), quarantined.map(encode_row).as_deref())
    }

    fn set_adapter(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        self.set(ADAPTER, key, value)
    }

    fn commit_while(self, meanwhile: impl FnOnce()) -> Result<(), StoreError> {
        TABLES.into_iter().try_for_each(|table| self.0.write_held(table, false))?;
        let Transaction { inserter, before, opened, .. } = self.0;
        inserter.into_inner().commit(Closing { opened, before }, meanwhile)
    }
}

fn ordinal(key: &[u8]) -> Result<u64, StoreError> {
    let key = key.try_into().map_err(|_| StoreError::Corrupted("table runs: an odd key".to_owned()))?;
    Ok(u64::from_be_bytes(key))
}
