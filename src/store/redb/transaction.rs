//! A transaction: reading its own changes, changing, and committing.
//!
//! Tables are opened for each operation and closed after it: redb lets a table be open only once at a time.
//! That has its price for each row, so what changes in the feed is kept back and written in one go, before
//! anyone reads the feed and before the commit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use ::redb::{Durability, ReadableDatabase, ReadableTable, TableHandle, WriteTransaction};

use super::rows::{
    ADAPTER, Bounds, CURSORS, FEED, HEAD, MARKS, META, RECORDS, RUNS, RowVisit, Rows, TABLES, Table, View, feed_key,
    feed_row, get, row,
};
use super::{Opened, RedbStore, from_commit, from_storage, from_table, from_transaction};
use crate::core::codec::encode_row;
use crate::core::family::Mark;
use crate::core::path::Family;
use crate::core::record::{RecordKey, Stored};
use crate::core::storage::{Cursor, CursorKey, RUNS_MAX, RunStart, StoreError, Write};

/// How many rows a scan takes at a time.
const CHUNK_ROWS: usize = 64;
/// How many changes of the feed are kept back at most.
const FEED_CHANGES_MAX: usize = 4_096;

/// A redb transaction on one opening of the store, which lends itself for as long.
pub struct Transaction<'a> {
    txn: WriteTransaction,
    /// What is yet to be written to the feed: by key, the row or its end.
    feed: RefCell<BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
    opened: Arc<Opened>,
    _store: PhantomData<&'a mut RedbStore>,
}

impl Transaction<'_> {
    pub(super) fn begin(opened: Arc<Opened>) -> Result<Self, StoreError> {
        let mut txn = opened.db.begin_write().map_err(from_transaction)?;
        txn.set_durability(Durability::Immediate).map_err(|error| StoreError::Io(error.to_string()))?;
        Ok(Self { txn, feed: RefCell::default(), opened, _store: PhantomData })
    }

    fn change_feed(&self, key: Vec<u8>, row: Option<Vec<u8>>) -> Result<(), StoreError> {
        self.feed.borrow_mut().insert(key, row);
        if self.feed.borrow().len() < FEED_CHANGES_MAX { Ok(()) } else { self.write_feed() }
    }

    fn before_reading(&self, table: Table) -> Result<(), StoreError> {
        if table.name() == FEED.name() { self.write_feed() } else { Ok(()) }
    }

    fn write_feed(&self) -> Result<(), StoreError> {
        let changes = self.feed.take();
        if changes.is_empty() {
            return Ok(());
        }
        let mut feed = self.txn.open_table(FEED).map_err(from_table)?;
        for (key, row) in &changes {
            match row {
                Some(row) => feed.insert(&**key, &**row),
                None => feed.remove(&**key),
            }
            .map_err(from_storage)?;
        }
        Ok(())
    }

    /// Puts a row, or takes it out, and says what `decode` makes of the old one.
    fn replace<T>(
        &self,
        table: Table,
        key: &[u8],
        value: Option<&[u8]>,
        decode: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut table = self.txn.open_table(table).map_err(from_table)?;
        let old = match value {
            Some(value) => table.insert(key, value),
            None => table.remove(key),
        };
        old.map_err(from_storage)?.map(|old| decode(old.value())).transpose()
    }
}

impl Rows for Transaction<'_> {
    fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.before_reading(table)?;
        get(&self.txn.open_table(table).map_err(from_table)?, key, decode)
    }

    /// By chunks: redb opens a table once at a time, and the visitor may want to read it too.
    fn range(&self, table: Table, bounds: Bounds<'_>, visit: RowVisit<'_>) -> Result<ControlFlow<()>, StoreError> {
        let mut last: Option<Vec<u8>> = None;
        loop {
            self.before_reading(table)?;
            let from = last.as_deref().map_or(bounds.0, Bound::Excluded);
            let chunk = chunk(&self.txn.open_table(table).map_err(from_table)?, (from, bounds.1))?;
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
}

type Row = (Vec<u8>, Vec<u8>);

fn chunk(table: &impl ReadableTable<&'static [u8], &'static [u8]>, bounds: Bounds<'_>) -> Result<Vec<Row>, StoreError> {
    let rows = table.range::<&[u8]>(bounds).map_err(from_storage)?.take(CHUNK_ROWS);
    rows.map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).map_err(from_storage))
        .collect()
}

impl View<Transaction<'_>> {
    pub(super) fn create_tables(&self) -> Result<(), StoreError> {
        TABLES.into_iter().try_for_each(|table| self.0.txn.open_table(table).map(drop).map_err(from_table))
    }

    pub(super) fn set(&self, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        self.0.replace(table, key, value, |_| Ok(())).map(drop)
    }

    /// Puts or removes a record; the row that this replaces tells where the record stands in the feed.
    fn change_record(&self, key: &RecordKey, stored: Option<&Stored>) -> Result<(), StoreError> {
        let (bytes, top) = (key.to_bytes(), key.path.top());
        let value = stored.map(encode_row);
        let old = self.0.replace(RECORDS, &bytes, value.as_deref(), row::<Stored>("records"))?;
        if let Some(old) = old.filter(|old| stored.is_none_or(|new| new.seq != old.seq)) {
            self.0.change_feed(feed_key(top, old.seq), None)?;
        }
        match stored {
            Some(new) => self.0.change_feed(feed_key(top, new.seq), Some(feed_row(new.class, &bytes))),
            None => Ok(()),
        }
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
        let mut runs = self.0.txn.open_table(RUNS).map_err(from_table)?;
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
    }

    fn set_cursor(&mut self, key: &CursorKey, cursor: Option<Cursor>) -> Result<(), StoreError> {
        self.set(CURSORS, &encode_row(key), cursor.as_ref().map(encode_row).as_deref())
    }

    fn set_adapter(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        self.set(ADAPTER, key, value)
    }

    fn commit(self) -> Result<(), StoreError> {
        self.0.write_feed()?;
        let Transaction { txn, opened, .. } = self.0;
        let before = opened.db.begin_read().map_err(from_transaction)?;
        opened.disk.begin_commit()?;
        opened.set_before_commit(Some(Arc::new(before)));
        let committed = txn.commit().map_err(from_commit);
        // A lost commit is the reason for whatever redb may say of it.
        opened.disk.end_commit()?;
        // A snapshot keeps the pages that it shows from being used again.
        opened.set_before_commit(None);
        committed
    }
}

fn ordinal(key: &[u8]) -> Result<u64, StoreError> {
    let key = key.try_into().map_err(|_| StoreError::Corrupted("table runs: an odd key".to_owned()))?;
    Ok(u64::from_be_bytes(key))
}
