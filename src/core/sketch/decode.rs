//! Takes the differing items out of subtracted cells.

use super::{Broken, CELLS_MAX, CHECK_MASK, Cell, Hashed, Item, Places, Root, SketchKey, add_to};

/// The items that one side has and the other has not. A record that both have with different stamps is one of
/// each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    pub ours: Vec<Item>,
    pub theirs: Vec<Item>,
}

/// Compares a peer's cells, which come in pieces, with our own.
///
/// Memory: as many cells as were sent, at most [`CELLS_MAX`], and no more items than cells.
#[derive(Debug)]
pub struct Decoder {
    key: SketchKey,
    /// Ours less theirs, and less what has come out.
    cells: Vec<Cell>,
    /// What has come out: the item, where it goes on behind the cells so far, and 1 if it is ours.
    found: Vec<(Hashed, Places, i64)>,
    pure: Vec<usize>,
}

impl Decoder {
    pub fn new(key: SketchKey) -> Self {
        Self { key, cells: Vec::new(), found: Vec::new(), pure: Vec::new() }
    }

    /// How many cells it has seen.
    pub fn cells(&self) -> usize {
        self.cells.len()
    }

    /// Takes the next cells of both sides. They come from where the last ones ended.
    pub fn push(&mut self, ours: &[Cell], theirs: &[Cell]) -> Result<(), Broken> {
        let start = self.cells.len();
        if ours.len() != theirs.len() || start + theirs.len() > CELLS_MAX {
            return Err(Broken::TooMany);
        }
        self.cells.extend(ours.iter().zip(theirs).map(|(ours, theirs)| ours.minus(theirs)));
        let end = self.cells.len();
        for (item, places, side) in &mut self.found {
            while let Some(at) = places.next_below(end) {
                self.cells[at].add(item, -*side);
            }
        }
        self.pure.extend((start..end).rev());
        self.peel()
    }

    /// A cell with one item gives it away; without it, others of its cells may have but one.
    fn peel(&mut self) -> Result<(), Broken> {
        let end = self.cells.len();
        while let Some(at) = self.pure.pop() {
            let cell = self.cells[at];
            if !matches!(cell.count, 1 | -1) {
                continue;
            }
            let Ok(item) = Item::from_words(cell.words) else { continue };
            let hashed = self.key.hash(item);
            if hashed.check & CHECK_MASK != cell.check {
                continue;
            }
            if self.found.len() >= end {
                return Err(Broken::Endless);
            }
            let mut places = Places::of(&hashed);
            let mut belongs = false;
            while let Some(place) = places.next_below(end) {
                belongs |= place == at;
                self.cells[place].add(&hashed, -cell.count);
                self.pure.push(place);
            }
            if !belongs {
                return Err(Broken::Misplaced);
            }
            self.found.push((hashed, places, cell.count));
        }
        Ok(())
    }

    /// The differences, if the cells so far explain the difference of the two roots.
    pub fn differences(&self, ours: Root, theirs: Root) -> Result<Option<Differences>, Broken> {
        // Every item is in the first cell: when it is empty, all have come out.
        if self.cells.is_empty() || !(self.cells[0].is_empty() || mutant!(DecodedTooEarly) && !self.found.is_empty()) {
            return Ok(None);
        }
        let mut explained = ours;
        for (item, ..) in &self.found {
            explained.toggle(item);
        }
        if explained != theirs && !mutant!(DecodedTooEarly) {
            return Err(Broken::Root);
        }
        let side = |wanted: i64| {
            let of_side = self.found.iter().filter(|(.., side)| *side == wanted);
            let mut items = of_side.map(|(item, ..)| Item::from_words(item.words)).collect::<Result<Vec<_>, _>>()?;
            items.sort_unstable();
            let twice = items.windows(2).any(|pair| pair[0] == pair[1]);
            if twice { Err(Broken::Endless) } else { Ok(items) }
        };
        Ok(Some(Differences { ours: side(1)?, theirs: side(-1)? }))
    }
}

/// The cells of a set given whole: for families too small to keep as many cells as a peer does.
pub(super) fn cells_of(items: impl Iterator<Item = Hashed>, count: usize) -> Vec<Cell> {
    let mut cells = vec![Cell::default(); count];
    items.for_each(|item| add_to(&mut cells, &item, 1));
    cells
}
