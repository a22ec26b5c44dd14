//! What the core needs of a store. The trait lives here, not in `store`, because the [`Replica`] is
//! generic over it; `store` implements it on disk and in memory.
//!
//! Duties of an implementation, held to by one model test over all of them:
//!
//! * A [`Write`] sees its own changes, and nobody else sees them before [`Write::commit`] returns `Ok`.
//! * A commit is whole or not at all, and durable when it returns. Dropping a [`Write`] undoes it.
//! * Each record stands in the change feed once, at the sequence number it was last put with. The feed is
//!   kept by the first segment of the path, so that a quiet family costs its followers nothing.
//!
//! The caller's duty: no two records bear the same sequence number.
//!
//! [`Replica`]: super::replica::Replica

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use serde::{Deserialize, Serialize};

use super::clock::{Hlc, UnixMs};
use super::eid::Eid;
use super::family::Mark;
use super::path::Family;
use super::record::{Class, Classes, RecordKey, Stored};
use super::register::Register;

/// How many runs a store remembers. A follower whose cursor names an older one compares.
pub const RUNS_MAX: usize = 4_096;

/// One opening of a store: a random id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Run(pub u64);

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Run {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Run)
    }
}

/// An entry in the list of runs: the run and the first sequence number that it could give out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStart {
    pub run: Run,
    pub first_seq: u64,
}

/// What a cursor is kept under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CursorKey {
    pub source: Eid,
    pub family: Family,
    pub classes: Classes,
}

/// How far a follower has everything: a sequence number of one run of the source. A newer run of the same
/// source replaces the cursor: the source itself judges whether the run it names is part of its past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    pub run: Run,
    pub seq: u64,
}

/// What a store knows by itself of a shared family's purge floor. It is no part of the books, which come back from
/// the peers: a disk that is rolled back or copied must lose this together with the records that it speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalFloor {
    /// Nothing at or below it is here that is not a live winner: tombstones are purged, doubtful values quarantined.
    pub adopted: Hlc,
    /// The target of the round that the node has last gathered for.
    pub gathered: Hlc,
    /// This store holds every winner up to here: its node has taken part in a round to its end.
    pub spread: Hlc,
}

/// A record that was set aside: whether it was deleted elsewhere cannot be told any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    pub register: Register,
    /// The purge floor that it lies below.
    pub floor: Hlc,
    pub since_unix_ms: UnixMs,
}

/// Where a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span<'a> {
    /// Every record, the cluster's books included.
    All,
    /// The records whose path is this family's own or lies under it, of every owner.
    Under(&'a Family),
    /// The same, those behind this key.
    Behind(&'a Family, &'a RecordKey),
}

/// The keys of [`Span::Under`], in the form of [`RecordKey::to_bytes`]: those of the family's own path, and
/// those under it. What sorts between the two (`/foo!`) belongs to others.
pub fn family_ranges(family: &Family) -> [Range<Vec<u8>>; 2] {
    let from = |end: u8| [b"/", family.as_str().as_bytes(), &[end]].concat();
    [from(0)..from(1), from(b'/')..from(b'/' + 1)]
}

/// The keys of [`Span::Behind`]: what is left of these ranges behind a key.
pub fn ranges_behind(family: &Family, key: &RecordKey) -> [Range<Vec<u8>>; 2] {
    // The least key that is greater.
    let next = [&key.to_bytes()[..], &[0]].concat();
    family_ranges(family).map(|range| range.start.max(next.clone()).min(range.end.clone())..range.end)
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the disk that holds the data directory is full: free some space; writes go on by themselves then, reads never stopped"
    )]
    Full,
    #[error(
        "the store is damaged ({0}): put this data directory aside and start with an empty one, the cluster fills it"
    )]
    Corrupted(String),
    #[error("the store cannot be read or written: {0}")]
    Io(String),
    #[error(
        "the store has format {found}, this program knows up to {known}: run the newer kinfolk that wrote it, or start with an empty data directory"
    )]
    NewerFormat { found: u32, known: u32 },
    #[error("the data directory is in use by {0}: stop that process, or give this one a data directory of its own")]
    InUse(String),
    #[error(
        "the data directory belongs to node {stored}, the certificate says {given}: use that node's certificate, or an empty data directory"
    )]
    OtherNode { stored: Eid, given: Eid },
}

/// Takes what a scan finds; breaks it off when it has enough.
pub type Visit<'a, T> = &'a mut dyn FnMut(T) -> ControlFlow<()>;

/// One consistent view.
pub trait Read {
    fn record(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError>;

    /// Visits records in the order of their keys.
    fn scan(&self, span: Span<'_>, visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError>;

    /// Visits the feed of a first segment in the order of sequence numbers, those greater than `after`.
    fn feed(&self, top: &str, after: u64, visit: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError>;

    /// As [`feed`](Self::feed), but visits the entries of these classes only. After `looks_max` entries, wanted or
    /// not, it ends and tells the sequence number that it came to; none if there was nothing more to see. A store
    /// that keeps the classes apart need not look at those that are not wanted.
    fn feed_of(
        &self,
        top: &str,
        classes: Classes,
        after: u64,
        looks_max: usize,
        visit: Visit<'_, (u64, Class, RecordKey)>,
    ) -> Result<Option<u64>, StoreError> {
        let (mut looked_at, mut came_to) = (0, None);
        self.feed(top, after, &mut |(seq, class, key)| {
            looked_at += 1;
            if classes.contains(class) && visit((seq, class, key)).is_break() {
                return ControlFlow::Break(());
            }
            if looked_at == looks_max {
                came_to = Some(seq);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(came_to)
    }

    /// The greatest sequence number ever given out; 0 before the first.
    fn head(&self) -> Result<u64, StoreError>;

    fn marks(&self) -> Result<BTreeMap<Family, Mark>, StoreError>;

    /// The latest [`RUNS_MAX`] runs, oldest first.
    fn runs(&self) -> Result<Vec<RunStart>, StoreError>;

    fn cursor(&self, key: &CursorKey) -> Result<Option<Cursor>, StoreError>;

    fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError>;

    /// What this store knows of its purge floors, by family.
    fn floors(&self) -> Result<BTreeMap<Family, LocalFloor>, StoreError>;

    /// Visits the records that are set aside, in the order of their keys.
    fn quarantine(&self, visit: Visit<'_, (RecordKey, Quarantined)>) -> Result<(), StoreError>;

    fn quarantined(&self, key: &RecordKey) -> Result<Option<Quarantined>, StoreError>;

    /// The adapter's own state under this key.
    fn adapter(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
}

/// One transaction. A second one may only begin when this one has been committed or dropped.
pub trait Write: Read + Sized {
    /// Puts a record and moves it in the change feed to `stored.seq`.
    fn put_record(&mut self, key: &RecordKey, stored: &Stored) -> Result<(), StoreError>;

    /// Takes a record out, also out of the feed.
    fn remove_record(&mut self, key: &RecordKey) -> Result<(), StoreError>;

    fn set_head(&mut self, head: u64) -> Result<(), StoreError>;

    fn set_mark(&mut self, family: &Family, mark: Option<Mark>) -> Result<(), StoreError>;

    /// Appends to the list of runs, and forgets the oldest beyond [`RUNS_MAX`].
    fn append_run(&mut self, start: RunStart) -> Result<(), StoreError>;

    fn set_cursor(&mut self, key: &CursorKey, cursor: Option<Cursor>) -> Result<(), StoreError>;

    fn set_floor(&mut self, family: &Family, floor: Option<LocalFloor>) -> Result<(), StoreError>;

    /// Sets a record aside, or takes it out again. Not what is in the feed under this key, if anything is.
    fn set_quarantined(&mut self, key: &RecordKey, quarantined: Option<&Quarantined>) -> Result<(), StoreError>;

    fn set_adapter(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError>;

    fn commit(self) -> Result<(), StoreError> {
        self.commit_while(|| {})
    }

    /// Commits, and does something that does not need the store at the same time or after that: after a commit that
    /// failed it is done or not.
    fn commit_while(self, meanwhile: impl FnOnce()) -> Result<(), StoreError>;
}

/// Begins reads of a store from any thread, also while its owner is in the middle of a transaction.
pub trait Reads: Clone + Send + Sync + 'static {
    type Reader: Read + Send + 'static;

    /// The state of the last commit that succeeded.
    fn read(&self) -> Result<Self::Reader, StoreError>;
}

/// A store. Reading never waits for writing.
pub trait Store {
    type Reader: Read;
    type Reads: Reads<Reader = Self::Reader>;
    type Writer<'a>: Write
    where
        Self: 'a;

    /// A handle for those who read while the store itself belongs to the writer.
    fn reads(&self) -> Self::Reads;

    fn read(&self) -> Result<Self::Reader, StoreError> {
        self.reads().read()
    }

    fn write(&mut self) -> Result<Self::Writer<'_>, StoreError>;

    /// After a commit that failed: brings the store back to its last durable state, open for writing.
    fn reopen(&mut self) -> Result<(), StoreError>;
}
