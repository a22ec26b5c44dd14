//! The sketches of this node's shared families, kept while records come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::decode::cells_of;
use super::index::{Index, Move};
use super::{CELLS_MAX, CELLS_MIN, Cell, Hashed, Item, Root, SketchKey, add_all};
use crate::core::clock::Stamp;
use crate::core::path::Family;
use crate::core::record::RecordKey;

/// Items that wait, at most, to be summed at once.
const WAITING_MAX: usize = 256;

/// What is yet to be done to a sketch.
#[derive(Default)]
struct Waiting {
    sums: Vec<(Hashed, i64)>,
    moves: Vec<Move>,
}

/// How many cells are kept of a family of so many records: enough to tell twice as many differences apart, so
/// that a small family costs little.
pub fn cells_for(records: u64) -> usize {
    let wanted = usize::try_from(records.saturating_mul(2)).unwrap_or(usize::MAX);
    wanted.clamp(CELLS_MIN, CELLS_MAX).next_power_of_two()
}

/// What is compared first of a family: the root, and of how many records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub root: Root,
    pub records: u64,
}

/// The sketch of one family. A clone is a snapshot: it shares what does not change.
#[derive(Clone, Debug)]
pub struct Sketch {
    key: SketchKey,
    summary: Summary,
    cells: Arc<Vec<Cell>>,
    index: Index,
}

impl Sketch {
    /// Of the records that `each` hands to its argument, with their places in the feed.
    pub fn build<E>(
        key: SketchKey,
        each: impl FnOnce(&mut dyn FnMut(&RecordKey, Stamp, u64)) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut builder = Builder::new(key);
        each(&mut |record, stamp, seq| builder.add(record, stamp, seq))?;
        Ok(builder.finish())
    }

    pub fn key(&self) -> SketchKey {
        self.key
    }

    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// The cells that are kept.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Places in the feed of records whose keys have this hash.
    pub fn places(&self, key: u64) -> impl Iterator<Item = u64> {
        self.index.of(key)
    }

    /// A sum and nothing more: cells and places are made from a scan of the records when they are needed.
    pub fn without_cells(key: SketchKey, summary: Summary) -> Self {
        Self { key, summary, cells: Arc::default(), index: Index::default() }
    }

    /// Whether it keeps cells and places.
    pub fn keeps_cells(&self) -> bool {
        !self.cells.is_empty()
    }

    /// Whether it has grown out of its cells: build it anew.
    fn is_outgrown(&self) -> bool {
        self.cells.len() < cells_for(self.summary.records)
    }

    fn add(&mut self, item: &Hashed, seq: u64) {
        self.count(item, 1);
        self.index.insert(item.key(), seq);
        self.sum(&[(*item, 1)]);
    }

    /// An item is in from now on, or out; what is left to be done is its place in the feed, and the cells.
    fn count(&mut self, item: &Hashed, by: i64) {
        self.summary.root.toggle(item);
        self.summary.records = self.summary.records.checked_add_signed(by).expect("only what is in is taken out");
    }

    fn sum(&mut self, items: &[(Hashed, i64)]) {
        add_all(Arc::make_mut(&mut self.cells).as_mut_slice(), items);
    }

    /// Whether both sum the same records and find them at the same places.
    pub fn agrees_with(&self, other: &Sketch) -> bool {
        if !self.keeps_cells() || !other.keeps_cells() {
            return self.summary == other.summary;
        }
        let cells = self.cells.len().min(other.cells.len());
        let entries = self.index.entries().eq(other.index.entries());
        self.summary == other.summary && self.cells[..cells] == other.cells[..cells] && entries
    }
}

/// Sums records without knowing beforehand how many there will be.
pub struct Builder {
    key: SketchKey,
    sketch: Sketch,
    /// Kept while they are few; later they are summed at once.
    few: Vec<Hashed>,
}

impl Builder {
    pub fn new(key: SketchKey) -> Self {
        let sketch = Sketch { key, summary: Summary::default(), cells: Arc::default(), index: Index::default() };
        Self { key, sketch, few: Vec::new() }
    }

    pub fn add(&mut self, record: &RecordKey, stamp: Stamp, seq: u64) {
        let item = self.key.item(record, stamp);
        if self.sketch.cells.is_empty() {
            self.sketch.summary.root.toggle(&item);
            self.sketch.summary.records += 1;
            self.sketch.index.insert(item.key(), seq);
            self.few.push(item);
            if self.few.len() > CELLS_MAX / 2 {
                self.sketch.cells = Arc::new(cells_of(std::mem::take(&mut self.few).into_iter(), CELLS_MAX));
            }
        } else {
            self.sketch.add(&item, seq);
        }
    }

    pub fn finish(mut self) -> Sketch {
        if self.sketch.cells.is_empty() {
            let cells = cells_for(self.sketch.summary.records);
            self.sketch.cells = Arc::new(cells_of(self.few.into_iter(), cells));
        }
        self.sketch
    }
}

/// A change of a sketch, staged by a batch and carried out when the batch is durable.
#[derive(Debug)]
pub enum Change {
    /// The family is shared from now on.
    Shared(Family, Box<Sketch>),
    Unshared(Family),
    /// A record was put, over another or not.
    Put {
        family: Family,
        old: Option<(Hashed, u64)>,
        new: (Hashed, u64),
    },
    /// A record is not there any more.
    Gone {
        family: Family,
        old: (Hashed, u64),
    },
}

/// The sketches of all families that this node exchanges.
///
/// A small family's cells are not kept: a scan when they are wanted costs less than to change some twenty of them with
/// each write. Its sum is in the summary alone, which the caller keeps.
#[derive(Debug, Default)]
pub struct Sketches {
    of: BTreeMap<Family, Arc<Sketch>>,
    /// Families of fewer records keep no cells.
    cells_from: u64,
    /// Those that do.
    with_cells: BTreeSet<Family>,
}

impl Sketches {
    /// None at all, for now.
    pub fn new(cells_from: u64) -> Self {
        Self { cells_from, ..Self::default() }
    }

    pub fn get(&self, family: &Family) -> Option<&Arc<Sketch>> {
        self.of.get(family)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Family, &Arc<Sketch>)> {
        self.of.iter()
    }

    pub fn replace(&mut self, family: Family, sketch: Sketch) {
        let small = sketch.summary.records < self.cells_from;
        let sketch = if small { Sketch::without_cells(sketch.key, sketch.summary) } else { sketch };
        if small {
            self.with_cells.remove(&family);
        } else {
            self.with_cells.insert(family.clone());
        }
        self.of.insert(family, Arc::new(sketch));
    }

    /// Whether changes of a family that now has so many records are to be handed to [`Self::apply`].
    pub fn follows(&self, family: &Family, records: u64) -> bool {
        records >= self.cells_from || self.with_cells.contains(family)
    }

    /// Carries out what a durable batch has staged, and names the families whose sketches must be built anew,
    /// since they have outgrown their cells.
    pub fn apply(&mut self, changes: Vec<Change>) -> Vec<Family> {
        let mut waiting: BTreeMap<Family, Waiting> = BTreeMap::new();
        let mut outgrown = Vec::new();
        for change in changes {
            let (family, old, new) = match change {
                Change::Shared(family, sketch) => {
                    // It was summed with all that came before.
                    waiting.remove(&family);
                    self.replace(family, *sketch);
                    continue;
                }
                Change::Unshared(family) => {
                    waiting.remove(&family);
                    self.of.remove(&family);
                    self.with_cells.remove(&family);
                    continue;
                }
                Change::Put { family, old, new } => (family, old, Some(new)),
                Change::Gone { family, old } => (family, Some(old), None),
            };
            let sketch = Arc::make_mut(self.of.get_mut(&family).expect("what is exchanged has a sketch"));
            if !sketch.keeps_cells() {
                // It has come to more records than that: only those changes are handed in.
                if !outgrown.contains(&family) {
                    outgrown.push(family);
                }
                continue;
            }
            let waiting = match waiting.get_mut(&family) {
                Some(waiting) => waiting,
                None => waiting.entry(family).or_default(),
            };
            sketch.change(old.filter(|_| !mutant!(OldItemStays)), new, waiting);
            if waiting.sums.len() >= WAITING_MAX {
                sketch.settle(waiting);
            }
        }
        for (family, mut waiting) in waiting {
            let sketch = Arc::make_mut(self.of.get_mut(&family).expect("what is exchanged has a sketch"));
            sketch.settle(&mut waiting);
            if sketch.is_outgrown() && !outgrown.contains(&family) {
                outgrown.push(family);
            }
        }
        outgrown.retain(|family| self.of.get(family).is_some_and(|sketch| sketch.is_outgrown()));
        outgrown
    }
}

impl Sketch {
    /// Takes one item out and another of the same record in; the cells and the index wait.
    fn change(&mut self, old: Option<(Hashed, u64)>, new: Option<(Hashed, u64)>, waiting: &mut Waiting) {
        for (change, by) in [(&old, -1), (&new, 1)] {
            if let Some((item, _)) = change {
                self.count(item, by);
                waiting.sums.push((*item, by));
            }
        }
        if let Some((item, _)) = old.or(new) {
            let seq_of = |change: Option<(Hashed, u64)>| change.map(|(_, seq)| seq);
            waiting.moves.push(Move { key: item.key(), old: seq_of(old), new: seq_of(new) });
        }
    }

    fn settle(&mut self, waiting: &mut Waiting) {
        self.sum(&waiting.sums);
        self.index.apply(&waiting.moves);
        waiting.sums.clear();
        waiting.moves.clear();
    }
}

/// The cells of a whole set, as many as are asked for.
pub(super) fn extended(key: SketchKey, items: &[Item], count: usize) -> Vec<Cell> {
    cells_of(items.iter().map(|item| key.hash(*item)), count)
}

impl Sketch {
    /// The first `count` cells. A family that keeps fewer is small: its items are given whole.
    pub fn prefix<E>(
        &self,
        count: usize,
        items: impl FnOnce() -> Result<Vec<Item>, E>,
    ) -> Result<std::borrow::Cow<'_, [Cell]>, E> {
        match self.cells.get(..count) {
            Some(cells) => Ok(cells.into()),
            None => Ok(extended(self.key, &items()?, count).into()),
        }
    }

    /// The item of a record.
    pub fn item_of(&self, record: &RecordKey, stamp: Stamp) -> Item {
        Item { key: self.key.key_hash(record), stamp }
    }
}
