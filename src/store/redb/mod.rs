//! The store on disk: one redb file in the data directory.
//!
//! Invariants:
//!
//! * A commit that returned `Ok` is on the disk: durability is always immediate, with one sync each.
//! * A commit that returned an error has changed nothing that anyone reads, now or after a restart, unless
//!   the disk refused even to take the old header back.
//! * Reading goes on through all of that: see `disk`. Only readers that began before a reopening may be
//!   told, once writing has begun anew, to begin again; they are never served another state.
//! * Two processes never have the same directory open.
//!
//! Every opening checks the whole file against its checksums, which costs one pass over it: redb serves
//! flipped bits otherwise.

mod absent;
mod disk;
mod guard;
mod held;
mod inserter;
mod rows;
#[cfg(test)]
mod tests;
mod transaction;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ::redb::backends::FileBackend;
use ::redb::{
    CommitError, Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageBackend, StorageError, TableError,
    TransactionError,
};

use crate::core::eid::Eid;
use crate::core::storage::{Reads, Store, StoreError, Write};
use disk::{Disk, RawFile, from_io};
use rows::{EID, FORMAT, META, Snapshot, Txn, View};
use transaction::Transaction;

/// The file in the data directory.
pub const FILE_NAME: &str = "kinfolk.redb";
/// The format of the tables that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
pub const CACHE_DEFAULT_BYTES: usize = 64 * 1024 * 1024;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much memory redb may use for its cache.
    pub cache_bytes: usize,
    /// The node that the store belongs to.
    pub eid: Eid,
}

impl Options {
    pub fn new(eid: Eid) -> Self {
        Self { cache_bytes: CACHE_DEFAULT_BYTES, eid }
    }
}

/// One opening of the database.
struct Opened {
    db: Database,
    disk: Disk,
    /// What readers get while a commit runs, should it be lost: redb then takes it for done.
    before_commit: Mutex<Option<Arc<ReadTransaction>>>,
}

impl Opened {
    /// Opens without writing to the file.
    fn new(raw: Arc<RawFile>, options: &Options) -> Result<Self, StoreError> {
        let disk = Disk::new(raw);
        let db = Database::builder()
            .set_cache_size(options.cache_bytes)
            .set_check_integrity_on_open(true)
            .create_with_backend(disk.clone())
            .map_err(from_database)?;
        Ok(Self { db, disk, before_commit: Mutex::new(None) })
    }

    fn set_before_commit(&self, txn: Option<Arc<ReadTransaction>>) {
        *self.before_commit.lock().unwrap_or_else(PoisonError::into_inner) = txn;
    }

    fn begin_read(&self) -> Result<Txn, StoreError> {
        let txn = self.db.begin_read().map_err(from_transaction)?;
        // In this order: a commit is marked as lost before redb lets anyone see it.
        if self.disk.is_lost()
            && let Some(before) = &*self.before_commit.lock().unwrap_or_else(PoisonError::into_inner)
        {
            return Ok(Txn::Shared(Arc::clone(before)));
        }
        Ok(Txn::Own(txn))
    }
}

/// A consistent view of the last commit.
pub type RedbReader = View<Snapshot>;
/// A transaction.
pub type RedbWriter<'a> = View<Transaction<'a>>;

/// Begins reads from any thread. While a handle or a reader is alive, so is the lock on the directory.
#[derive(Clone)]
pub struct RedbReads(Arc<RwLock<Arc<Opened>>>);

impl RedbReads {
    fn opened(&self) -> Arc<Opened> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reads for RedbReads {
    type Reader = RedbReader;

    fn read(&self) -> Result<RedbReader, StoreError> {
        let opened = self.opened();
        Ok(View(Snapshot::new(opened.begin_read()?, opened)))
    }
}

/// A store on disk.
pub struct RedbStore {
    reads: RedbReads,
    options: Options,
    /// Earlier openings that readers may still be using.
    retired: Vec<Disk>,
}

impl RedbStore {
    /// Opens the store in `dir`, which is created if it is missing.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, StoreError> {
        let (lock, file) = guard::claim(dir)?;
        let backend = FileBackend::new(file).map_err(from_database)?;
        Self::over(RawFile::new(Box::new(backend), Some(lock)), options)
    }

    /// Opens a store on something else than a file, which nobody else may be using. Its locks are not used.
    pub fn with_backend(backend: impl StorageBackend, options: &Options) -> Result<Self, StoreError> {
        Self::over(RawFile::new(Box::new(backend), None), options)
    }

    fn over(raw: RawFile, options: &Options) -> Result<Self, StoreError> {
        let opened = Opened::new(Arc::new(raw), options)?;
        let known = check_owner(&opened, options)?;
        // A full disk does not keep a node from serving what it has.
        match opened.disk.catch_up() {
            Err(StoreError::Full) if known => {}
            outcome => outcome?,
        }
        let reads = RedbReads(Arc::new(RwLock::new(Arc::new(opened))));
        let mut store = Self { reads, options: options.clone(), retired: Vec::new() };
        if !known {
            store.found()?;
        }
        Ok(store)
    }

    /// Writes what a new store begins with: all tables, so that reading need not ask whether they exist.
    fn found(&mut self) -> Result<(), StoreError> {
        let eid = self.options.eid;
        let writer = self.write()?;
        writer.create_tables()?;
        writer.set(META, FORMAT, Some(&FORMAT_VERSION.to_be_bytes()))?;
        writer.set(META, EID, Some(&eid.bytes()))?;
        writer.commit()
    }
}

impl Store for RedbStore {
    type Reader = RedbReader;
    type Reads = RedbReads;
    type Writer<'a> = RedbWriter<'a>;

    fn reads(&self) -> RedbReads {
        self.reads.clone()
    }

    fn write(&mut self) -> Result<RedbWriter<'_>, StoreError> {
        let opened = self.reads.opened();
        if opened.disk.is_lost() {
            return Err(disk::gone_by());
        }
        // Nothing is written before the readers of earlier openings are kept off the file.
        for disk in self.retired.drain(..) {
            disk.fence();
        }
        opened.disk.catch_up()?;
        Transaction::begin(opened).map(View)
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        let old = self.reads.opened();
        old.disk.detach();
        // Readers go on with the old opening until the new one is ready.
        let opened = Opened::new(Arc::clone(old.disk.raw()), &self.options)?;
        check_owner(&opened, &self.options)?;
        self.retired.push(old.disk.clone());
        *self.reads.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(opened);
        Ok(())
    }
}

/// Whether the store is this node's (`true`) or nobody's yet.
fn check_owner(opened: &Opened, options: &Options) -> Result<bool, StoreError> {
    let meta = match opened.begin_read()?.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(false),
        meta => meta.map_err(from_table)?,
    };
    // Bare bytes, so that a newer format of rows does not keep an older program from reading these two.
    let get = |key| match meta.get(key).map_err(from_storage)? {
        Some(row) => Ok(row.value().to_vec()),
        None => Err(StoreError::Corrupted("table meta lacks the format or the owner".to_owned())),
    };
    let odd = |_| StoreError::Corrupted("table meta holds an odd format or owner".to_owned());
    let found = u32::from_be_bytes(get(FORMAT)?.try_into().map_err(odd)?);
    if found > FORMAT_VERSION {
        return Err(StoreError::NewerFormat { found, known: FORMAT_VERSION });
    }
    let stored = Eid::new(get(EID)?.try_into().map_err(odd)?);
    if stored == options.eid { Ok(true) } else { Err(StoreError::OtherNode { stored, given: options.eid }) }
}

fn from_storage(error: StorageError) -> StoreError {
    match error {
        // redb's word for a file that does not begin as its own do.
        StorageError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            StoreError::Corrupted(error.to_string())
        }
        StorageError::Io(error) => from_io(&error),
        StorageError::Corrupted(what) => StoreError::Corrupted(what),
        other => StoreError::Io(other.to_string()),
    }
}

fn from_table(error: TableError) -> StoreError {
    match error {
        TableError::Storage(error) => from_storage(error),
        // All tables were there at opening: what else is wrong with one is in the file.
        other => StoreError::Corrupted(other.to_string()),
    }
}

fn from_transaction(error: TransactionError) -> StoreError {
    match error {
        TransactionError::Storage(error) => from_storage(error),
        other => StoreError::Io(other.to_string()),
    }
}

fn from_commit(error: CommitError) -> StoreError {
    match error {
        CommitError::Storage(error) => from_storage(error),
        other => StoreError::Io(other.to_string()),
    }
}

fn from_database(error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::Storage(error) => from_storage(error),
        DatabaseError::UpgradeRequired(version) => {
            StoreError::Corrupted(format!("its file has version {version}, which this program never wrote"))
        }
        other => StoreError::Io(other.to_string()),
    }
}
