//! Reconcile: two nodes make one family equal at the price of the difference. Both ends as state machines, no
//! sockets.
//!
//! The opener asks with its root and, where it has heard that the other's differs, an estimator. Equal roots end it.
//! Else the answerer sends cells of its sketch: as many as the estimate wants, or a few and an estimator of its own, from
//! which the opener tells how many more it wants. When they decode, the opener sends the records that the answerer lacks and
//! names the ones that it lacks itself; the answerer answers with those when what came is durable:
//!
//! ```text
//! opener     answerer
//!   ── Compare ──►
//!   ◄── Differs ──  ◄── Cells ── …
//!   ── More ──►                       (only where the cells were too few, or nothing could be estimated)
//!   ◄── Cells ── …
//!   ── Records, wants ──► …
//!   ◄── Records ── …
//! ```
//!
//! So no record crosses that the other side has or that would lose there, and both hold everything within two round trips,
//! or three where one side had not heard of the difference or the estimate was too low. Where fetching everything costs less
//! than the cells, the opener is told so. What was applied before a stream broke stays applied: the next attempt finds so
//! much less to do.
//!
//! Both sides work on snapshots, so that cells, roots and records of one stream belong together. Never here:
//! waiting, choosing a peer (`verify`). Invariants: memory is bounded by [`CELLS_MAX`] on both sides; a peer that
//! says what a correct one does not say is an error.

mod answerer;
mod exchange;
mod opener;
#[cfg(test)]
mod tests;

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, OnceLock};

pub use self::answerer::Answerer;
pub use self::opener::Opener;
use super::clock::Hlc;
use super::eid::Eid;
use super::family::Mode;
use super::message::{Compare, Counts, Reconcile};
use super::path::Family;
use super::record::{Record, RecordKey};
use super::replica::Apply;
use super::sketch::{
    Broken, CELL_BYTES, CELLS_MAX, Cell, ESTIMATE_CELLS, Item, Sketch, cells_wanted, estimate, estimator,
};
use super::storage::{Read, Run, Span, StoreError};

/// Cells that the answerer sends where nothing is estimated yet: they decode where hardly anything differs.
const FIRST_CELLS: usize = 8;
/// Cells in one frame, at most.
const FRAME_CELLS: usize = 4_096;
/// How often an opener may ask for more cells.
const ROUNDS_MAX: u32 = 8;
/// What a record costs on the wire, about: to judge whether everything is cheaper than cells.
const RECORD_BYTES: u64 = 100;

/// What is best done about an estimated difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advice {
    /// So many cells will most likely decode.
    Cells(usize),
    /// The opener had better fetch everything.
    Everything,
    /// The answerer had better, and will.
    LeftToPeer,
}

/// `differing` of the records that the opener and the answerer have differ, as far as can be estimated.
fn advise(opener: u64, answerer: u64, differing: u64) -> Advice {
    let wanted = cells_wanted(differing);
    // The answerer's less the opener's is known, and their sum is estimated.
    let lacking = ((differing + answerer).saturating_sub(opener) / 2).min(answerer);
    let dear = wanted as u64 * CELL_BYTES > (answerer - lacking) * RECORD_BYTES;
    if wanted <= CELLS_MAX && !dear && opener > 0 {
        return Advice::Cells(wanted);
    }
    let little = lacking < differing / 16 || answerer == 0;
    if little { Advice::LeftToPeer } else { Advice::Everything }
}

/// One family of a store at one moment: its sketch and its records belong together.
#[derive(Clone, Debug)]
pub struct Snapshot<R> {
    pub read: R,
    pub family: Family,
    pub mode: Mode,
    /// The sharing that it belongs to, by the sequence number of its mark.
    pub since: u64,
    /// None while a higher one is being adopted: nothing is compared then.
    pub floor: Option<Hlc>,
    pub sketch: Arc<Sketch>,
    pub run: Run,
    pub head: u64,
}

impl Snapshot<()> {
    /// `read` must begin before anything else is committed.
    pub fn with<R>(self, read: R) -> Snapshot<R> {
        let Self { read: (), family, mode, since, floor, sketch, run, head } = self;
        Snapshot { read, family, mode, since, floor, sketch, run, head }
    }
}

/// Who is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub eid: Eid,
    /// It is at another site.
    pub crossing: bool,
}

/// What the driver does next. When it is done it asks again.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<E> {
    Ask(Compare),
    Send(Reconcile),
    /// Read the next frame and hand it in.
    Read,
    /// Apply this; ask again only when it is durable.
    Apply(Apply),
    End(E),
}

/// How a reconcile ended, for the side that opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The roots were equal: each side had what the other had. The run and the head of the peer are those of
    /// the snapshot that was compared.
    Equal {
        run: Run,
        head: u64,
    },
    /// Now each side durably has what the other had when they compared.
    Reconciled {
        run: Run,
        head: u64,
        sent: u64,
        received: u64,
    },
    /// It is cheaper to fetch everything from the peer.
    Everything,
    /// It is the peer that lacks nearly everything that differs: it will fetch.
    LeftToPeer,
    NotShared {
        mode: Option<Mode>,
    },
    /// The peer has another purge floor, or one of the two is adopting one: nothing can be compared until both have
    /// the same.
    OtherFloor {
        floor: Option<Hlc>,
    },
    /// The peer serves as many as it can.
    Busy,
}

impl Ended {
    /// A short name for counting; the set of names is fixed.
    pub fn name(&self) -> &'static str {
        match self {
            Ended::Equal { .. } => "equal",
            Ended::Reconciled { .. } => "reconciled",
            Ended::Everything => "everything",
            Ended::LeftToPeer => "left_to_peer",
            Ended::NotShared { .. } => "not_shared",
            Ended::OtherFloor { .. } => "other_floor",
            Ended::Busy => "busy",
        }
    }

    /// Whether both sides are known to hold, durably, everything that either had when they compared: what the
    /// books may call a verify with this peer.
    pub fn is_verified(&self) -> bool {
        self.verified_run().is_some()
    }

    /// The run of the peer in which it compared, if it is verified.
    pub fn verified_run(&self) -> Option<Run> {
        match self {
            Ended::Equal { run, .. } | Ended::Reconciled { run, .. } => Some(*run),
            _ => None,
        }
    }
}

/// How it ended for the side that answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub sent: u64,
    pub received: u64,
}

/// The peer said something that a correct one does not say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("its cells are broken: {0}")]
    Cells(#[from] Broken),
    #[error("a '{0}' came where it makes no sense")]
    Unexpected(&'static str),
    #[error("a record came that was not asked for, or older than it was said to be: {0}")]
    Unwanted(String),
    #[error("it wants a record that it cannot know of, or more than there are")]
    Wants,
    #[error("it did not send what was asked for")]
    Missing,
    #[error("it asks for cells without end")]
    Endless,
}

/// Why a machine does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the peer broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Fault::Violation(broken.into())
    }
}

/// What both sides need of a snapshot: cells, and records by their items.
#[derive(Debug)]
struct Own {
    peer: Peer,
    family: Family,
    mode: Mode,
    since: u64,
    floor: Option<Hlc>,
    sketch: Arc<Sketch>,
    /// Of a family that keeps fewer cells than are needed: as many as are needed.
    extended: Vec<Cell>,
    /// Of a family that keeps no places: its keys by their hashes, in order.
    keys: OnceLock<Vec<(u64, RecordKey)>>,
}

impl Own {
    fn new<R>(snapshot: &Snapshot<R>, peer: Peer) -> Self {
        let Snapshot { family, mode, since, floor, sketch, .. } = snapshot;
        let (family, sketch) = (family.clone(), sketch.clone());
        let (mode, since, floor) = (*mode, *since, *floor);
        Self { peer, family, mode, since, floor, sketch, extended: Vec::new(), keys: OnceLock::new() }
    }

    fn cells<R: Read>(&mut self, read: &R, range: Range<usize>) -> Result<&[Cell], StoreError> {
        if self.sketch.cells().len() >= range.end {
            return Ok(&self.sketch.cells()[range]);
        }
        if self.extended.len() < range.end {
            let (family, mode, sketch) = (&self.family, self.mode, &self.sketch);
            let items = || -> Result<Vec<Item>, StoreError> {
                let mut items = Vec::new();
                read.scan(Span::Under(family), &mut |(key, stored)| {
                    if key.path.key_in(family).is_some() && mode.owns(&key) {
                        items.push(sketch.item_of(&key, stored.register.stamp()));
                    }
                    ControlFlow::Continue(())
                })?;
                Ok(items)
            };
            let count = range.end.next_power_of_two().min(CELLS_MAX);
            self.extended = sketch.prefix(count, items)?.into_owned();
        }
        Ok(&self.extended[range])
    }

    /// A scan, the first time.
    fn keys<R: Read>(&self, read: &R) -> Result<&[(u64, RecordKey)], StoreError> {
        if let Some(keys) = self.keys.get() {
            return Ok(keys);
        }
        let mut keys = Vec::new();
        read.scan(Span::Under(&self.family), &mut |(key, stored)| {
            if key.path.key_in(&self.family).is_some() && self.mode.owns(&key) {
                keys.push((self.sketch.item_of(&key, stored.register.stamp()).key, key));
            }
            ControlFlow::Continue(())
        })?;
        keys.sort_unstable();
        Ok(self.keys.get_or_init(|| keys))
    }

    fn of_hash<R: Read>(&self, read: &R, hash: u64) -> Result<Vec<RecordKey>, StoreError> {
        if !self.sketch.keeps_cells() {
            let keys = self.keys(read)?;
            let from = keys.partition_point(|(other, _)| *other < hash);
            let same = keys[from..].iter().take_while(|(other, _)| *other == hash);
            return Ok(same.map(|(_, key)| key.clone()).collect());
        }
        let mut keys = Vec::new();
        for seq in self.sketch.places(hash) {
            read.feed(self.family.top(), seq - 1, &mut |(seen, _, key)| {
                keys.extend((seen == seq).then_some(key));
                ControlFlow::Break(())
            })?;
        }
        Ok(keys)
    }

    fn records(&self) -> u64 {
        self.sketch.summary().records
    }

    fn counts<R: Read>(&mut self, read: &R) -> Result<Counts, StoreError> {
        let estimator = estimator(self.cells(read, 0..ESTIMATE_CELLS.end)?);
        Ok(Counts { records: self.records(), estimator })
    }

    /// About how many items differ from a set of which these are the counts.
    fn estimate<R: Read>(&mut self, read: &R, theirs: &Counts) -> Result<u64, Fault> {
        let records = self.records();
        let cells = self.cells(read, 0..ESTIMATE_CELLS.end)?;
        Ok(estimate(cells, records, &theirs.estimator, theirs.records)?)
    }

    /// The keys of our records with this hash, and with this stamp if it is given.
    fn find<R: Read>(&self, read: &R, key: u64, wanted: Option<&Item>) -> Result<Vec<RecordKey>, StoreError> {
        let mut found = Vec::new();
        for at in self.of_hash(read, key)? {
            let stored = read.record(&at)?;
            if stored.is_some_and(|stored| wanted.is_none_or(|item| stored.register.stamp() == item.stamp)) {
                found.push(at);
            }
        }
        Ok(found)
    }

    fn apply(&self, records: Vec<Record>) -> Apply {
        Apply {
            source: self.peer.eid,
            crossing: self.peer.crossing,
            family: self.family.clone(),
            mode: self.mode,
            since: Some(self.since),
            floor: self.floor,
            records,
            cursor: None,
            drop_cursor: None,
        }
    }
}
