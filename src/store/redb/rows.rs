//! The tables, and reading them: the same over a snapshot and inside a transaction.
//!
//! Every table maps bytes to bytes. Integers in keys are big endian, so that they sort as numbers; values
//! are rows of [`codec`](crate::core::codec). What does not decode is damage, never skipped.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow, Range};
use std::sync::Arc;

use ::redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, TableHandle};
use serde::de::DeserializeOwned;

use super::{Opened, from_storage, from_table};
use crate::core::codec::{decode_row, encode_row};
use crate::core::family::Mark;
use crate::core::path::Family;
use crate::core::record::{Class, RecordKey, Stored};
use crate::core::storage::{
    Cursor, CursorKey, LocalFloor, Quarantined, Read, RunStart, Span, StoreError, Visit, family_ranges, ranges_behind,
};

pub type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Key bytes → [`Stored`].
pub(super) const RECORDS: Table = TableDefinition::new("records");
/// First segment, NUL, sequence number → class, then the record's key bytes.
pub(super) const FEED: Table = TableDefinition::new("feed");
/// Family → [`Mark`].
pub(super) const MARKS: Table = TableDefinition::new("marks");
/// Ordinal → [`RunStart`]. Ordinals have no gaps.
pub(super) const RUNS: Table = TableDefinition::new("runs");
/// [`CursorKey`] → [`Cursor`].
pub(super) const CURSORS: Table = TableDefinition::new("cursors");
/// Family → [`LocalFloor`].
pub(super) const FLOORS: Table = TableDefinition::new("floors");
/// Key bytes → [`Quarantined`].
pub(super) const QUARANTINE: Table = TableDefinition::new("quarantine");
/// The adapter's own keys and values, bare.
pub(super) const ADAPTER: Table = TableDefinition::new("adapter");
/// [`FORMAT`], [`EID`], [`HEAD`].
pub(super) const META: Table = TableDefinition::new("meta");
pub(super) const TABLES: [Table; 9] = [RECORDS, FEED, MARKS, RUNS, CURSORS, FLOORS, QUARANTINE, ADAPTER, META];

pub(super) const FORMAT: &[u8] = b"format";
pub(super) const EID: &[u8] = b"eid";
pub(super) const HEAD: &[u8] = b"head";

pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);
pub type RowVisit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError>;

/// The rows of one view.
pub trait Rows {
    fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError>;

    /// Visits rows in the order of their keys, and says whether it got to the end.
    fn range(&self, table: Table, bounds: Bounds<'_>, visit: RowVisit<'_>) -> Result<ControlFlow<()>, StoreError>;

    /// Hears where a record that was read, or put, stands in the feed.
    fn note_record(&self, _key: Vec<u8>, _seq: Option<u64>) {}
}

/// Records are read one by one, and so have a way of their own.
pub(super) fn is_records(table: Table) -> bool {
    table.name() == RECORDS.name()
}

/// A snapshot's own transaction, or one that several share.
pub(super) enum Txn {
    Own(ReadTransaction),
    Shared(Arc<ReadTransaction>),
}

impl std::ops::Deref for Txn {
    type Target = ReadTransaction;

    fn deref(&self) -> &ReadTransaction {
        match self {
            Txn::Own(txn) => txn,
            Txn::Shared(txn) => txn,
        }
    }
}

/// A snapshot. The opening is kept, since redb closes its file under the transactions of a dropped database.
pub struct Snapshot {
    records: OnceCell<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    txn: Txn,
    _opened: Arc<Opened>,
}

impl Snapshot {
    pub(super) fn new(txn: Txn, opened: Arc<Opened>) -> Self {
        Self { records: OnceCell::new(), txn, _opened: opened }
    }

    /// Records are read one by one; the other tables as a whole, where opening does not count.
    fn with_table<T>(
        &self,
        table: Table,
        read: impl FnOnce(&ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if !is_records(table) {
            return read(&self.txn.open_table(table).map_err(from_table)?);
        }
        if let Some(records) = self.records.get() {
            return read(records);
        }
        let opened = self.txn.open_table(table).map_err(from_table)?;
        read(self.records.get_or_init(|| opened))
    }
}

impl Rows for Snapshot {
    fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.with_table(table, |table| get(table, key, decode))
    }

    fn range(&self, table: Table, bounds: Bounds<'_>, visit: RowVisit<'_>) -> Result<ControlFlow<()>, StoreError> {
        self.with_table(table, |table| {
            for row in table.range::<&[u8]>(bounds).map_err(from_storage)? {
                let (key, value) = row.map_err(from_storage)?;
                if visit(key.value(), value.value())?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}

pub(super) fn get<T>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: &[u8],
    decode: impl FnOnce(&[u8]) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let row = ReadableTable::get(table, key).map_err(from_storage)?;
    row.map(|row| decode(row.value())).transpose()
}

pub(super) fn feed_key(top: &str, seq: u64) -> Vec<u8> {
    [top.as_bytes(), &[0], &seq.to_be_bytes()].concat()
}

/// What stands before the record's key in a row of the feed.
pub(super) fn feed_class(class: Class) -> u8 {
    match class {
        Class::Local => 0,
        Class::Near => 1,
        Class::Far => 2,
    }
}

fn decode_feed(key: &[u8], row: &[u8]) -> Result<(u64, Class, RecordKey), StoreError> {
    let seq = key.last_chunk().ok_or_else(|| damaged("feed", "a key without a sequence number"))?;
    let (class, key) = match row {
        [0, key @ ..] => (Class::Local, key),
        [1, key @ ..] => (Class::Near, key),
        [2, key @ ..] => (Class::Far, key),
        _ => return Err(damaged("feed", "an unknown class")),
    };
    Ok((u64::from_be_bytes(*seq), class, decode_key(key)?))
}

fn decode_key(bytes: &[u8]) -> Result<RecordKey, StoreError> {
    RecordKey::from_bytes(bytes).map_err(|error| damaged("records", error))
}

fn decode_family(bytes: &[u8]) -> Result<Family, StoreError> {
    let text = std::str::from_utf8(bytes).map_err(|error| damaged("marks", error))?;
    Family::new(text).map_err(|error| damaged("marks", error))
}

/// A decoder of the table's rows.
pub(super) fn row<T: DeserializeOwned>(table: &'static str) -> impl Fn(&[u8]) -> Result<T, StoreError> {
    move |bytes| decode_row(bytes).map_err(|error| damaged(table, error))
}

fn damaged(table: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupted(format!("table {table}: {error}"))
}

const ALL: Bounds<'static> = (Bound::Unbounded, Bound::Unbounded);

/// What the core reads, over rows.
pub struct View<R>(pub(super) R);

impl<R: Rows> View<R> {
    fn scan_range(
        &self,
        bounds: Bounds<'_>,
        visit: Visit<'_, (RecordKey, Stored)>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let decode = row("records");
        self.0.range(RECORDS, bounds, &mut |key, value| Ok(visit((decode_key(key)?, decode(value)?))))
    }

    fn scan_ranges(&self, ranges: &[Range<Vec<u8>>], visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
        // redb panics at a range that ends before it begins.
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let bounds = (Bound::Included(&*range.start), Bound::Excluded(&*range.end));
            if self.scan_range(bounds, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Collects a small table.
    fn collect<T, C: Extend<T>>(
        &self,
        table: Table,
        mut into: C,
        decode: impl Fn(&[u8], &[u8]) -> Result<T, StoreError>,
    ) -> Result<C, StoreError> {
        let _to_the_end: ControlFlow<()> = self.0.range(table, ALL, &mut |key, value| {
            into.extend([decode(key, value)?]);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(into)
    }
}

impl<R: Rows> Read for View<R> {
    fn record(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        let bytes = key.to_bytes();
        let stored: Option<Stored> = self.0.get(RECORDS, &bytes, row("records"))?;
        self.0.note_record(bytes, stored.as_ref().map(|stored| stored.seq));
        Ok(stored)
    }

    fn scan(&self, span: Span<'_>, visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
        match span {
            Span::All => self.scan_range(ALL, visit).map(|_ended_early| ()),
            Span::Under(family) => self.scan_ranges(&family_ranges(family), visit),
            Span::Behind(family, key) => self.scan_ranges(&ranges_behind(family, key), visit),
        }
    }

    fn feed(&self, top: &str, after: u64, visit: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError> {
        let (after, end) = (feed_key(top, after), feed_key(top, u64::MAX));
        if after == end {
            return Ok(());
        }
        let bounds = (Bound::Excluded(&*after), Bound::Included(&*end));
        self.0.range(FEED, bounds, &mut |key, row| Ok(visit(decode_feed(key, row)?))).map(|_ended_early| ())
    }

    fn head(&self) -> Result<u64, StoreError> {
        Ok(self.0.get(META, HEAD, row("meta"))?.unwrap_or(0))
    }

    fn marks(&self) -> Result<BTreeMap<Family, Mark>, StoreError> {
        let decode = row("marks");
        self.collect(MARKS, BTreeMap::new(), |key, value| Ok((decode_family(key)?, decode(value)?)))
    }

    fn runs(&self) -> Result<Vec<RunStart>, StoreError> {
        let decode = row::<RunStart>("runs");
        self.collect(RUNS, Vec::new(), |_, value| decode(value))
    }

    fn cursor(&self, key: &CursorKey) -> Result<Option<Cursor>, StoreError> {
        self.0.get(CURSORS, &encode_row(key), row("cursors"))
    }

    fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError> {
        let (key_of, decode) = (row("cursors"), row("cursors"));
        self.collect(CURSORS, BTreeMap::new(), |key, value| Ok((key_of(key)?, decode(value)?)))
    }

    fn floors(&self) -> Result<BTreeMap<Family, LocalFloor>, StoreError> {
        let decode = row("floors");
        self.collect(FLOORS, BTreeMap::new(), |key, value| Ok((decode_family(key)?, decode(value)?)))
    }

    fn quarantine(&self, visit: Visit<'_, (RecordKey, Quarantined)>) -> Result<(), StoreError> {
        let decode = row("quarantine");
        let visit = &mut |key: &[u8], value: &[u8]| Ok(visit((decode_key(key)?, decode(value)?)));
        self.0.range(QUARANTINE, ALL, visit).map(|_ended_early| ())
    }

    fn quarantined(&self, key: &RecordKey) -> Result<Option<Quarantined>, StoreError> {
        self.0.get(QUARANTINE, &key.to_bytes(), row("quarantine"))
    }

    fn adapter(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(ADAPTER, key, |value| Ok(value.to_vec()))
    }
}
