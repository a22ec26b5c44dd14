//! The peer: redb alone. One table, key bytes to row bytes, the same cache, the same check on opening,
//! every commit immediately durable: what one would write who wanted nothing but the records on the disk.

use std::time::{Duration, Instant};

use redb::{Database, Durability, ReadableDatabase, TableDefinition};

const TABLE: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("records");

/// The bytes of a record as our own store keeps them.
pub struct Row {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

pub struct Raw {
    pub db: Database,
    _dir: tempfile::TempDir,
}

impl Raw {
    pub fn create(cache_bytes: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let db = Database::builder()
            .set_cache_size(cache_bytes)
            .set_check_integrity_on_open(true)
            .create(dir.path().join("raw.redb"))
            .expect("opens");
        let raw = Self { db, _dir: dir };
        raw.commit(&[]);
        raw
    }

    pub fn commit(&self, rows: &[Row]) {
        let mut txn = self.db.begin_write().expect("begins");
        txn.set_durability(Durability::Immediate).expect("it may");
        let mut table = txn.open_table(TABLE).expect("opens");
        for row in rows {
            table.insert(&*row.key, &*row.value).expect("inserts");
        }
        drop(table);
        txn.commit().expect("commits");
    }

    /// Commits the rows in batches of these sizes, and says how long that took.
    pub fn replay(&self, rows: &[Row], batches: &[usize]) -> Duration {
        assert_eq!(rows.len(), batches.iter().sum::<usize>(), "every record was in a batch");
        let started = Instant::now();
        let mut rest = rows;
        for batch in batches {
            let (now, later) = rest.split_at(*batch);
            self.commit(now);
            rest = later;
        }
        started.elapsed()
    }

    /// One point read with a transaction of its own; gives the length of the value.
    pub fn get(&self, key: &[u8]) -> usize {
        let txn = self.db.begin_read().expect("begins");
        let table = txn.open_table(TABLE).expect("opens");
        table.get(key).expect("reads").expect("it is there").value().len()
    }
}
