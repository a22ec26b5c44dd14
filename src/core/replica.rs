//! The state machine of one node: inputs and the time go in, outcomes and effects come out.
//!
//! A batch of inputs is one store transaction. What the caller gets back may be acted upon at once
//! (acknowledged, told to followers, shown): it is durable. The replica's own state changes only after
//! the commit; when a commit fails the store is reopened and the state is rebuilt from it.
//!
//! Never here: waiting, sockets, the wall clock. Duties of the caller: hand in arriving records with the
//! EID that the certificate of their source names, and release nothing before `handle` returned.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::batch::{Batch, Carried, Ground};
use super::books::{Books, Note, Standing};
use super::clock::{Clock, Hlc, MAX_CLOCK_DRIFT_DEFAULT_MS, Stamp, UnixMs};
use super::eid::Eid;
use super::family::{Families, Mode, ShareError, UnknownMode};
use super::few::Few;
use super::floor::{self, Policy, Seen};
use super::losers::Losers;
use super::path::{BOOKS_FAMILY, Family, Limits, Path, PathError, Value};
use super::reconcile::Snapshot;
use super::record::{Classes, Record, RecordKey};
use super::register::HashMismatch;
use super::sketch::{Builder, Sketch, SketchKey, Sketches, Summary};
use super::storage::{Cursor, LocalFloor, Read, Run, RunStart, Span, Store, StoreError, Write};

/// A scan of so many records takes a millisecond or two, which a comparison may.
pub const CELLS_FROM_DEFAULT: u64 = 2_048;

/// What does not change while a node runs.
#[derive(Clone, Debug)]
pub struct Settings {
    pub eid: Eid,
    pub limits: Limits,
    pub max_clock_drift_ms: NonZeroU64,
    /// Families that the configuration adds to those that are never shared globally.
    pub never_globally: Vec<Family>,
    /// How purge floors rise.
    pub policy: Policy,
    /// The same on all nodes of a cluster.
    pub sketch_key: SketchKey,
    /// Families of fewer records are summed by a scan when they are compared, not with each write.
    pub cells_from: u64,
}

impl Settings {
    pub fn new(eid: Eid) -> Self {
        Self {
            eid,
            limits: Limits::default(),
            max_clock_drift_ms: MAX_CLOCK_DRIFT_DEFAULT_MS,
            never_globally: Vec::new(),
            policy: Policy::default(),
            sketch_key: SketchKey::of_cluster(""),
            cells_from: CELLS_FROM_DEFAULT,
        }
    }
}

/// What a replica can be asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Put {
        path: Path,
        value: Value,
    },
    Delete {
        path: Path,
    },
    /// Deletes every live record under `tree` that this node can write.
    DeleteTree {
        tree: Family,
    },
    Share {
        family: Family,
        mode: Mode,
    },
    Unshare {
        family: Family,
    },
    Import {
        lines: Vec<ImportLine>,
    },
    Apply(Apply),
    /// The modes in which live members share families, for the check that a new sharing agrees.
    Elsewhere {
        modes: BTreeMap<Family, Vec<(Eid, Mode)>>,
    },
    /// Enters this node and what it shares in the cluster's books, unless it stands there. To be handed in at the start,
    /// and whenever the books lack it.
    Admit,
    /// Does what is due about the purge floors. To be handed in now and then, and whenever the books changed.
    Floors,
    /// A verify has ended well.
    Verified(Verified),
    /// Admits or decommissions a member.
    Standing {
        eid: Eid,
        standing: Standing,
    },
    /// Takes a record out of quarantine and writes it anew.
    Release {
        key: RecordKey,
    },
    /// Takes a record out of quarantine for good.
    Discard {
        key: RecordKey,
    },
    Adapter(Adapted),
}

/// Both sides hold, durably, everything of the family that either had when they compared, at equal floors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub family: Family,
    pub peer: Eid,
    /// The run of the peer in which it compared.
    pub run: Run,
    /// This node's head when its side of the comparison was taken.
    pub head: u64,
}

/// A verify that a purge floor waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub family: Family,
    pub peer: Eid,
    pub run: Run,
}

impl Apply {
    /// No records, but a cursor to forget: the source is followed from the beginning.
    pub fn forgetting(source: Eid, family: Family, mode: Mode, classes: Classes) -> Self {
        Self {
            source,
            crossing: false,
            family,
            mode,
            since: None,
            floor: None,
            records: Vec::new(),
            cursor: None,
            drop_cursor: Some(classes),
        }
    }
}

/// Writes of an attached server, and the adapter's own rows that tell of them: one transaction, or none of
/// it if one of the writes is refused. Without writes it only keeps rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapted {
    pub writes: Vec<AdapterWrite>,
    /// None takes a row out.
    pub rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A write of an attached server. Unlike a user's it names the record itself, since a server writes its own
/// copies of a unique family under its own EID, and it leaves a tombstone also where nothing was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterWrite {
    pub key: RecordKey,
    pub value: Option<Value>,
    /// Written only if the key has no register, not even a tombstone.
    pub only_if_absent: bool,
}

/// One line of an import. Without a stamp it is a new write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportLine {
    pub key: RecordKey,
    pub value: Option<Value>,
    pub stamp: Option<Stamp>,
}

/// Records that arrive from another node, and the cursor that they bring this one to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apply {
    pub source: Eid,
    /// The source is at another site.
    pub crossing: bool,
    pub family: Family,
    pub mode: Mode,
    /// The sharing under which they were asked for, by the sequence number of its mark; none: whichever is in
    /// force. What was asked for before the family was unshared and shared again must not bring back a
    /// cursor from then.
    pub since: Option<u64>,
    /// The purge floor under which they were asked for; none: whichever is in force.
    pub floor: Option<Hlc>,
    pub records: Vec<Record>,
    /// The cursor to keep, with the scope it is kept for.
    pub cursor: Option<(Classes, Cursor)>,
    /// A cursor of another scope that is not needed any more.
    pub drop_cursor: Option<Classes>,
}

/// What became of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written {
        path: Path,
        stamp: Stamp,
    },
    /// How many records a [`Input::DeleteTree`] deleted.
    Removed {
        count: u64,
    },
    Shared,
    Unshared,
    Imported(Imported),
    Applied(Merges),
    /// How many writes of an [`Input::Adapter`] were made: all but those that were only for an absent key.
    Adapted {
        written: u64,
    },
    /// [`Input::Elsewhere`], [`Input::Admit`] and others that have nothing to tell.
    Noted,
    /// [`Input::Floors`] and [`Input::Verified`].
    Floors {
        wanted: Vec<Wanted>,
        /// A floor is being adopted and the batch was full: hand in [`Input::Floors`] again at once.
        more: bool,
    },
    Refused(Refusal),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    pub merges: Merges,
    /// Lines that became new writes.
    pub written: u64,
    /// Refused lines by their place in the import, from 0. The others were taken.
    pub refused: Vec<(usize, Refusal)>,
}

/// Merges by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merges {
    pub won: u64,
    pub lost: u64,
    pub same: u64,
    /// Not taken: at or below what the node has promised of the purge floor.
    pub barred: u64,
}

/// Why an input was not carried out. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("Database entry does not exist.")]
    NotFound,
    #[error("{0}")]
    Invalid(#[from] PathError),
    #[error(
        "'{path}' is under the EID of a server: only that server writes it, as a key of a unique family of its own"
    )]
    UnderEid { path: String },
    #[error("'{0}' is kept by the program itself and cannot be written")]
    Reserved(String),
    #[error("{0}")]
    Share(#[from] ShareError),
    #[error("{0}")]
    UnknownMode(#[from] UnknownMode),
    #[error("Shared family '{0}' does not exist.")]
    NotShared(Family),
    #[error("the record '{path}' does not belong to family '{family}' as it is shared here")]
    OutsideFamily { path: Path, family: Family },
    #[error("{0}")]
    HashMismatch(#[from] HashMismatch),
    #[error(
        "the record is older than the purge floor of family '{0}', so that whether it was deleted since cannot be told: \
         import it as a new write (--as-new) if you want it back"
    )]
    BelowFloor(Family),
    #[error("family '{0}' is exchanged at another purge floor here")]
    OtherFloor(Family),
    #[error("{0} is no member of this cluster's books")]
    NoMember(Eid),
    #[error("a node does not decommission itself: ask another one, when this one is gone")]
    Myself,
    #[error("nothing is in quarantine there")]
    NotQuarantined,
    #[error("the record bears the greatest stamp there is, nothing can be written over it")]
    StampExhausted,
}

impl Refusal {
    /// A short name for counting; the set of names is fixed.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::NotFound => "not_found",
            Refusal::Invalid(PathError::ValueTooLong { .. }) => "value_too_long",
            Refusal::Invalid(_) => "bad_path_or_value",
            Refusal::UnderEid { .. } => "under_eid",
            Refusal::Reserved(_) => "reserved",
            Refusal::Share(_) | Refusal::UnknownMode(_) => "share",
            Refusal::NotShared(_) => "not_shared",
            Refusal::OutsideFamily { .. } => "outside_family",
            Refusal::HashMismatch(_) => "hash_mismatch",
            Refusal::BelowFloor(_) => "below_floor",
            Refusal::OtherFloor(_) => "other_floor",
            Refusal::NoMember(_) | Refusal::Myself => "decommission",
            Refusal::NotQuarantined => "quarantine",
            Refusal::StampExhausted => "stamp_exhausted",
        }
    }
}

/// Something that an operator must see.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// A record of this node lies too far in the future: its clock is wrong, or ours is.
    FarFuture { eid: Eid, ahead_ms: u64 },
    /// Two different writes bear the same time and EID: two nodes use one EID.
    DuplicateEid { eid: Eid },
}

/// A batch that is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// One for each input, in their order.
    pub outcomes: Vec<Outcome>,
    /// Shared families with new entries in the change feed, and the classes of these: only followers that
    /// asked for one of them have anything to read.
    pub touched: BTreeMap<Family, Classes>,
    pub counts: Counts,
    pub alarms: BTreeSet<Alarm>,
    /// Writes that lost in it.
    pub losers: Losers,
    /// Whether the batch changed the store at all.
    pub changed: bool,
    /// Whether marks changed.
    pub marks_changed: bool,
}

/// What a batch did, for counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub puts: u64,
    pub deletes: u64,
    pub merges: Merges,
    /// Tombstones dropped below a purge floor, and records set aside there.
    pub purged: u64,
    pub quarantined: u64,
    /// Records written anew out of quarantine, and dropped there.
    pub released: u64,
    pub discarded: u64,
    /// The furthest that an arriving stamp lay ahead of this node's wall clock, in milliseconds.
    pub drift_max_ms: u64,
    /// Arriving records whose stamps lay beyond `max_clock_drift`.
    pub far_future: u64,
    /// Arriving records that bore the stamp of another value: two nodes write under one EID.
    pub duplicate_eid: u64,
}

/// Keys and tombstones of a shared family, every owner's copy counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub keys: u64,
    pub tombstones: u64,
}

/// What a replica knows without asking its store. Staged by a batch, kept when the batch is durable.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub families: Arc<Families>,
    pub tallies: Few<Family, Tally>,
    /// The root of each exchanged family, the books included, and how many records it sums.
    pub summaries: Few<Family, Summary>,
    /// The cluster's books, read.
    pub books: Arc<Books>,
    /// What this store knows by itself of the purge floors.
    pub floors: Arc<BTreeMap<Family, LocalFloor>>,
    /// How many records are in quarantine.
    pub quarantined: u64,
    /// How far the adoption of a floor has come.
    pub(super) settling: BTreeMap<Family, RecordKey>,
    /// Notes that wait for a verify, and the head when it was seen that one is due.
    pub(super) waits: BTreeMap<Family, (Note, u64)>,
    pub head: u64,
    pub(super) elsewhere: Arc<BTreeMap<Family, Vec<(Eid, Mode)>>>,
}

/// One node's replica over its store.
pub struct Replica<S: Store> {
    store: S,
    settings: Settings,
    clock: Clock,
    ledger: Ledger,
    /// Of what is durable, as the ledger is.
    sketches: Sketches,
    run: Run,
    /// A commit failed and the store has not been brought back yet.
    broken: bool,
}

impl<S: Store> Replica<S> {
    /// Opens the store for a new run, whose random id the caller draws.
    pub fn open(mut store: S, settings: Settings, run: Run, now: UnixMs) -> Result<Self, StoreError> {
        let mut clock = Clock::new(settings.max_clock_drift_ms);
        let (ledger, sketches) = load(&store.read()?, &settings, &mut clock, now)?;
        let mut write = store.write()?;
        write.append_run(RunStart { run, first_seq: ledger.head + 1 })?;
        write.commit()?;
        Ok(Self { store, settings, clock, ledger, sketches, run, broken: false })
    }

    pub fn eid(&self) -> Eid {
        self.settings.eid
    }

    pub fn run(&self) -> Run {
        self.run
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The greatest moment this node's clock has made or observed.
    pub fn clock_last(&self) -> Hlc {
        self.clock.last()
    }

    /// A consistent view of what is durable.
    pub fn read(&self) -> Result<S::Reader, StoreError> {
        self.store.read()
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    /// For tests and the simulator, which make a store fail.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Gives the store back, as a crash or a stop would leave it.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Carries out a batch in one transaction. On an error nothing has changed and nothing may be
    /// released; the next call first brings the store back.
    pub fn handle(&mut self, inputs: Vec<Input>, now: UnixMs) -> Result<Committed, StoreError> {
        if self.broken {
            self.recover(now)?;
        }
        #[cfg(feature = "mutants")]
        let early = if mutant!(CursorBeforeData) { inputs.clone() } else { Vec::new() };
        // A transaction that does not even begin leaves nothing to bring back.
        let write = self.store.write()?;
        let ground = Ground { settings: &self.settings, run: self.run, sketches: &self.sketches };
        let carried = Self::carry_out(write, ground, &mut self.clock, self.ledger.clone(), inputs, now);
        let sketches = &mut self.sketches;
        match carried.and_then(|carried| Self::make_durable(carried, sketches, &self.ledger)) {
            Ok((ledger, outgrown, committed)) => {
                self.ledger = ledger;
                self.sum_anew(outgrown, now);
                Ok(committed)
            }
            Err(error) => {
                #[cfg(feature = "mutants")]
                if mutant!(CursorBeforeData) {
                    self.save_cursors(&early)?;
                }
                self.broken = true;
                // The first error says why; if this one fails too, the next call tries again.
                let _ = self.recover(now);
                Err(error)
            }
        }
    }

    fn carry_out<W: Write>(
        write: W,
        ground: Ground<'_>,
        clock: &mut Clock,
        ledger: Ledger,
        inputs: Vec<Input>,
        now: UnixMs,
    ) -> Result<Carried<W>, StoreError> {
        let mut batch = Batch::new(write, ground, clock, ledger, now);
        let mut outcomes = Vec::with_capacity(inputs.len());
        for input in inputs {
            outcomes.push(batch.carry_out(input)?);
        }
        batch.finish(outcomes)
    }

    /// Commits, and sums what has changed, which need not wait for the disk: should the commit fail, all is loaded anew.
    /// Names the families whose sketches must be built anew.
    fn make_durable<W: Write>(
        carried: Carried<W>,
        sketches: &mut Sketches,
        before: &Ledger,
    ) -> Result<(Ledger, Vec<Family>, Committed), StoreError> {
        let Carried { write, ledger, changes, committed } = carried;
        let mut outgrown = Vec::new();
        let sum = || outgrown = sketches.apply(changes);
        match write.map(|write| write.commit_while(sum)) {
            Some(Err(_)) if mutant!(AckBeforeCommit) => {
                let early = Committed { outcomes: committed.outcomes, ..Committed::default() };
                return Ok((before.clone(), Vec::new(), early));
            }
            Some(durable) => durable?,
            None => {}
        }
        Ok((ledger, outgrown, committed))
    }

    /// A planted fault: cursors in a transaction of their own, which outlives that of what they count.
    #[cfg(feature = "mutants")]
    fn save_cursors(&mut self, inputs: &[Input]) -> Result<(), StoreError> {
        let mut write = self.store.write()?;
        for input in inputs {
            if let Input::Apply(Apply { source, family, cursor: Some((classes, cursor)), .. }) = input {
                let key = super::storage::CursorKey { source: *source, family: family.clone(), classes: *classes };
                write.set_cursor(&key, Some(*cursor))?;
            }
        }
        write.commit()
    }

    /// Reopens the store after a failed commit. The commit may have reached the disk all the same, so the
    /// state is read afresh; the clock only ever goes forward.
    fn recover(&mut self, now: UnixMs) -> Result<(), StoreError> {
        self.store.reopen()?;
        if mutant!(FailedCommitForgotten) {
            self.broken = false;
            return Ok(());
        }
        let elsewhere = self.ledger.elsewhere.clone();
        let (ledger, sketches) = load(&self.store.read()?, &self.settings, &mut self.clock, now)?;
        self.ledger = Ledger { elsewhere, ..ledger };
        if !mutant!(SketchSurvivesFailure) {
            self.sketches = sketches;
        }
        self.broken = false;
        Ok(())
    }

    /// Builds sketches that have outgrown their cells anew from the store; when that fails, everything is loaded anew
    /// before the next batch.
    fn sum_anew(&mut self, outgrown: Vec<Family>, now: UnixMs) {
        for family in outgrown {
            match self.store.read().and_then(|read| self.scan_sketch(&read, &family)) {
                Ok(sketch) => self.sketches.replace(family, sketch),
                Err(_) => {
                    self.broken = true;
                    let _ = self.recover(now);
                    return;
                }
            }
        }
    }

    /// A family's sketch from a scan of the store.
    fn scan_sketch(&self, read: &S::Reader, family: &Family) -> Result<Sketch, StoreError> {
        let mode = self.ledger.families.mode_of(family).expect("only what is exchanged is summed");
        Sketch::build(self.settings.sketch_key, |add| {
            read.scan(Span::Under(family), &mut |(key, stored)| {
                if key.path.key_in(family).is_some() && mode.owns(&key) {
                    add(&key, stored.register.stamp(), stored.seq);
                }
                ControlFlow::Continue(())
            })
        })
    }

    /// One exchanged family as it is durable now; none if it is not exchanged, or as long as a store that failed has not
    /// been brought back. It belongs with a read that begins before the next batch.
    pub fn pin(&self, family: &Family) -> Option<Snapshot<()>> {
        if self.broken {
            // The sketches may be ahead of it.
            return None;
        }
        let families = &self.ledger.families;
        let sketch = match self.sketches.get(family)? {
            kept if kept.keeps_cells() => kept.clone(),
            _ => Sketch::without_cells(self.settings.sketch_key, *self.ledger.summaries.get(family)?).into(),
        };
        Some(Snapshot {
            read: (),
            family: family.clone(),
            mode: families.mode_of(family)?,
            since: families.since_of(family),
            floor: families.floor_of(family),
            sketch,
            run: self.run,
            head: self.ledger.head,
        })
    }

    /// The same with its read.
    pub fn snapshot(&self, family: &Family) -> Result<Option<Snapshot<S::Reader>>, StoreError> {
        let read = self.store.read()?;
        Ok(self.pin(family).map(|pinned| pinned.with(read)))
    }

    /// Compares every sketch with a scan of the store, and names the families where they differ: there are none
    /// unless a program or a disk is at fault.
    pub fn check_sketches(&self) -> Result<Vec<Family>, StoreError> {
        let read = self.store.read()?;
        let mut differing = Vec::new();
        for family in self.ledger.families.shared().into_keys() {
            let scanned = self.scan_sketch(&read, &family)?;
            let kept = self.sketches.get(&family).is_some_and(|kept| !kept.keeps_cells() || kept.agrees_with(&scanned));
            if !kept || self.ledger.summaries.get(&family) != Some(&scanned.summary()) {
                differing.push(family);
            }
        }
        Ok(differing)
    }
}

/// One scan of the store: seeds the clock with the greatest stamp that is not too far in the future, counts
/// keys and tombstones, and sums the exchanged families.
fn load<R: Read>(
    read: &R,
    settings: &Settings,
    clock: &mut Clock,
    now: UnixMs,
) -> Result<(Ledger, Sketches), StoreError> {
    let mut families = Families::new(read.marks()?, settings.never_globally.iter().cloned());
    let mut tallies: Few<Family, Tally> =
        families.marks().keys().map(|family| (family.clone(), Tally::default())).collect();
    let (mut books, books_family) = (Books::default(), Family::books());
    let mut greatest = Hlc::ZERO;
    let builder = |family| (family, Builder::new(settings.sketch_key));
    let mut builders: BTreeMap<Family, Builder> = families.shared().into_keys().map(builder).collect();
    read.scan(Span::All, &mut |(key, stored)| {
        let hlc = stored.register.stamp().hlc;
        if hlc > greatest && clock.is_near(hlc, now) {
            greatest = hlc;
        }
        if let Some((family, _)) = families.of_record(&key) {
            let tally = tallies.get_mut(family).expect("every shared family has a tally");
            tally.count(stored.register.is_tombstone(), 1);
            let builder = builders.get_mut(family).expect("every shared family has a builder");
            builder.add(&key, stored.register.stamp(), stored.seq);
        } else if key.path.top() == BOOKS_FAMILY {
            let builder = builders.get_mut(&books_family).expect("the books are always shared");
            builder.add(&key, stored.register.stamp(), stored.seq);
            books.note(&key.path, &stored.register);
        }
        ControlFlow::Continue(())
    })?;
    if !mutant!(ClockNotSeeded) {
        clock.seed(greatest, now);
    }
    let head = read.head()?;
    let floors = read.floors()?;
    for family in families.marks().keys().cloned().collect::<Vec<_>>() {
        let local = floors.get(&family).copied().unwrap_or_default();
        families.set_floor(&family, floor::standing(&books, &family, local));
    }
    let mut quarantined = 0;
    read.quarantine(&mut |_| {
        quarantined += 1;
        ControlFlow::Continue(())
    })?;
    let mut sketches = Sketches::new(settings.cells_from);
    let mut summaries = Few::default();
    for (family, builder) in builders {
        let sketch = builder.finish();
        summaries.insert(family.clone(), sketch.summary());
        sketches.replace(family, sketch);
    }
    let ledger = Ledger {
        families: Arc::new(families),
        tallies,
        summaries,
        books: Arc::new(books),
        floors: Arc::new(floors),
        quarantined,
        head,
        ..Ledger::default()
    };
    Ok((ledger, sketches))
}

impl Ledger {
    /// Whether the books say of this node that it is a member and shares what it shares. They do not when a disk was put
    /// back from before the family was unshared.
    pub fn stands_in_books(&self, me: Eid) -> bool {
        let shares = |family: &Family| self.books.of(family).sharers.contains_key(&me);
        self.books.members.contains_key(&me) && self.families.marks().keys().all(shares)
    }

    /// What this store knows of a family's floor.
    pub fn local_floor(&self, family: &Family) -> LocalFloor {
        self.floors.get(family).copied().unwrap_or_default()
    }

    /// A family as what decides on its floor wants to see it.
    pub fn seen<'a>(&'a self, family: &'a Family, me: Eid, run: Run, policy: Policy, now: UnixMs) -> Seen<'a> {
        let tombstones = self.tallies.get(family).map_or(0, |tally| tally.tombstones);
        Seen { me, run, books: &self.books, family, local: self.local_floor(family), tombstones, policy, now }
    }

    /// The modes in which live members share families, as this node was last told.
    pub fn elsewhere(&self) -> &BTreeMap<Family, Vec<(Eid, Mode)>> {
        &self.elsewhere
    }
}

impl Tally {
    pub(super) fn count(&mut self, tombstone: bool, by: i64) {
        let counter = if tombstone { &mut self.tombstones } else { &mut self.keys };
        *counter = counter.checked_add_signed(by).expect("a tally counts what is there");
    }
}
