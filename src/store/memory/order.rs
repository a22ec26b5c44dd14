//! Numbers of rows in the order of their keys, in pieces: putting one in moves a piece, not all that lies behind it.
//!
//! It knows no keys: whoever asks compares.

/// How many numbers a piece holds.
const PIECE_MAX: usize = 512;

/// No piece is empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Order(Vec<Vec<u32>>);

impl Order {
    /// The piece and the place in it of the first row that is not `before`.
    fn find(&self, before: impl Fn(u32) -> bool) -> (usize, usize) {
        let piece = self.0.partition_point(|piece| before(piece[0])).saturating_sub(1);
        (piece, self.0.get(piece).map_or(0, |rows| rows.partition_point(|row| before(*row))))
    }

    pub fn insert(&mut self, row: u32, before: impl Fn(u32) -> bool) {
        let (piece, at) = self.find(before);
        let Some(rows) = self.0.get_mut(piece) else { return self.0.push(vec![row]) };
        rows.insert(at, row);
        if rows.len() > PIECE_MAX {
            let second = rows.split_off(PIECE_MAX / 2);
            self.0.insert(piece + 1, second);
        }
    }

    pub fn remove(&mut self, row: u32, before: impl Fn(u32) -> bool) {
        let (mut piece, mut at) = self.find(before);
        if self.0.get(piece).is_some_and(|rows| at == rows.len()) {
            (piece, at) = (piece + 1, 0);
        }
        debug_assert_eq!(self.0[piece][at], row);
        self.0[piece].remove(at);
        if self.0[piece].is_empty() {
            self.0.remove(piece);
        }
    }

    /// From the first row that is not `before` up to the last that is `within`.
    pub fn range<'a>(
        &'a self,
        before: &dyn Fn(u32) -> bool,
        within: &dyn Fn(u32) -> bool,
    ) -> impl Iterator<Item = u32> + use<'a> {
        let ((piece, at), (last, end)) = (self.find(before), self.find(within));
        let pieces = self.0.iter().enumerate().take(last + 1).skip(piece);
        pieces.flat_map(move |(number, rows)| {
            let from = if number == piece { at } else { 0 };
            let to = if number == last { end } else { rows.len() };
            rows[from.min(to)..to].iter().copied()
        })
    }
}
