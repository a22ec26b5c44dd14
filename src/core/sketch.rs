//! Sketches of sets of records: rateless invertible Bloom lookup tables (Yang, Gilad, Alizadeh: "Practical
//! Rateless Set Reconciliation", SIGCOMM 2024).
//!
//! A set is summed into a sequence of cells without end; each item is in cell 0, and in cell `i` with
//! probability 1 / (1 + i/2). Two sequences subtracted leave the sum of the items that only one side has, and
//! about 1.35 cells for each of these suffice to take them out one by one, whatever the sizes of the sets.
//! A prefix of the sequence is kept while the set changes: an item touches about 2·ln(cells) cells of it.
//!
//! Never here: what an item means, records, stores. Invariants: integers only, so that every machine makes the
//! same cells; a cell of a longer prefix is the same as that of a shorter one; whatever a peer sends, decoding
//! ends, and in bounded memory.

mod decode;
mod family;
mod index;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher128};
use xxhash_rust::xxh3::xxh3_128;

pub use self::decode::{Decoder, Differences};
pub use self::family::{Builder, Change, Sketch, Sketches, Summary, cells_for};
pub use self::wire::{CELL_BYTES, ESTIMATE_CELLS, cells_wanted, estimate, estimator, pack, unpack};
use super::clock::{Hlc, Stamp};
use super::eid::Eid;
use super::record::RecordKey;

/// Cells that are kept of a family, at most; 48 bytes each. About three quarters as many differences can be
/// told apart; with more of them, everything is fetched.
pub const CELLS_MAX: usize = 32_768;
/// Cells that are kept of a family, at least.
pub const CELLS_MIN: usize = 16;

/// A peer's cells are not what a correct one sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the cells are cut off or have bytes left over")]
    Length,
    #[error("more than {CELLS_MAX} cells were sent, or not those that are next")]
    TooMany,
    #[error("an item came out of a cell that it does not belong to")]
    Misplaced,
    #[error("an item with a stamp above the protocol's maximum came out of a cell")]
    Stamp,
    #[error("more items came out of the cells than cells were sent, or one came out twice")]
    Endless,
    #[error("the items that came out of the cells do not explain the difference of the roots")]
    Root,
}

/// The key of the hashes: the same on all members, or nothing could be compared; drawn from what the operator
/// chose, so that nobody who only writes values can choose inputs that cancel out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SketchKey(u64, u64);

impl SketchKey {
    /// Nodes of clusters of other names do not talk to each other, so all that do have the same key.
    pub fn of_cluster(name: &str) -> Self {
        let hash = xxh3_128(format!("kinfolk sketch 1 {name}").as_bytes());
        Self(hash as u64, (hash >> 64) as u64)
    }

    /// The hash of owner and path: the same for all items of a record.
    pub fn key_hash(self, key: &RecordKey) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        hasher.write(key.path.as_str().as_bytes());
        hasher.write(&[0]);
        if let Some(owner) = key.owner.filter(|_| !mutant!(OwnerNotHashed)) {
            hasher.write(&owner.bytes());
        }
        hasher.finish()
    }

    /// The item of a record, hashed.
    pub fn item(self, key: &RecordKey, stamp: Stamp) -> Hashed {
        self.item_of(self.key_hash(key), stamp)
    }

    /// The same, where the hash of the key is known.
    pub fn item_of(self, key: u64, stamp: Stamp) -> Hashed {
        self.hash(Item { key, stamp })
    }

    fn hash(self, item: Item) -> Hashed {
        let words = item.words();
        let mut hasher = SipHasher128::new_with_keys(self.1, self.0);
        let mut bytes = [0; 32];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        hasher.write(&bytes);
        let hash = hasher.finish128();
        Hashed { words, check: hash.h1, seed: hash.h2 }
    }
}

impl fmt::Debug for SketchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SketchKey(…)")
    }
}

/// What stands for a record: the hash of its owner and path, and its stamp, which carries the hash of its value.
///
/// Two keys of one family with the same 64-bit hash would hide each other; among a million keys the chance
/// that any two do is below 1 in 30 million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub key: u64,
    pub stamp: Stamp,
}

impl Item {
    fn words(self) -> [u64; 4] {
        let [a, b, c, d, e, f] = self.stamp.eid.bytes();
        let eid = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let hash = if mutant!(ValueHashNotSketched) { 0 } else { self.stamp.hash };
        [self.key, self.stamp.hlc.as_u64(), eid, hash]
    }

    fn from_words([key, hlc, eid, hash]: [u64; 4]) -> Result<Self, Broken> {
        let hlc = Hlc::from_u64(hlc).ok_or(Broken::Stamp)?;
        let [eid @ .., 0, 0] = eid.to_le_bytes() else { return Err(Broken::Stamp) };
        Ok(Self { key, stamp: Stamp { hlc, eid: Eid::new(eid), hash } })
    }
}

/// An item with its keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    words: [u64; 4],
    check: u64,
    seed: u64,
}

impl Hashed {
    pub fn root(&self) -> Root {
        Root { high: self.seed, low: self.check }
    }

    /// The hash of owner and path.
    pub fn key(&self) -> u64 {
        self.words[0]
    }
}

/// The sum of a whole set: the XOR of the keyed 128-bit hashes of its items. What is equal has the same root;
/// since whole items are hashed, fields that two records have swapped do not cancel out.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "u128", into = "u128")]
pub struct Root {
    // In halves: a row of whole ones asks the allocator for more than it gives readily.
    high: u64,
    low: u64,
}

impl From<u128> for Root {
    fn from(root: u128) -> Self {
        Self { high: (root >> 64) as u64, low: root as u64 }
    }
}

impl From<Root> for u128 {
    fn from(Root { high, low }: Root) -> u128 {
        u128::from(high) << 64 | u128::from(low)
    }
}

impl Root {
    /// Takes an item in, or out if it is in.
    pub fn toggle(&mut self, item: &Hashed) {
        let Root { high, low } = item.root();
        (self.high, self.low) = (self.high ^ high, self.low ^ low);
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from(*self))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Root {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Root::from)
    }
}

/// The cells that an item is in, in rising order.
///
/// From cell `i` an item should stay out of all cells up to `j` with probability
/// ∏ (1 − 2/(k+2)) over k in i+1..=j, which is (i+1)(i+2) / ((j+1)(j+2)): nearly the square of (i+1½)/(j+1½), and
/// so the chance that both of two draws from 0..1 are below that ratio. The greater of the two draws gives the next
/// cell with one division; no roots, no floating point. Cells 1 and 2 get 4 and 2 % fewer items than they should, cells
/// from 16 on as many, and decoding takes as many cells as with the exact chances (counted for 1 to 5,000 items).
#[derive(Clone, Copy, Debug)]
struct Places {
    at: u64,
    state: u64,
}

impl Places {
    fn of(item: &Hashed) -> Self {
        Self { at: 0, state: item.seed }
    }

    #[inline]
    fn advance(&mut self) {
        // SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let greater = (bits & 0xffff_ffff).max(bits >> 32) + 1;
        self.at = (((2 * self.at + 3) << 31) - greater / 2) / greater;
    }

    /// The next of its cells below `end`.
    #[inline]
    fn next_below(&mut self, end: usize) -> Option<usize> {
        let at = usize::try_from(self.at).ok().filter(|at| *at < end)?;
        self.advance();
        Some(at)
    }
}

/// The bits of an item's hash that a cell sums: that some other sum passes for an item has a chance of one in 2⁴⁰, and
/// then the roots tell.
const CHECK_MASK: u64 = (1 << 40) - 1;

/// The sum of the items that a cell holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    words: [u64; 4],
    check: u64,
    count: i64,
}

impl Cell {
    #[inline]
    fn add(&mut self, item: &Hashed, by: i64) {
        for (sum, word) in self.words.iter_mut().zip(item.words) {
            *sum ^= word;
        }
        self.check ^= item.check & CHECK_MASK;
        self.count = self.count.wrapping_add(by);
    }

    /// What is in the one cell and not in the other.
    fn minus(mut self, other: &Cell) -> Cell {
        for (sum, word) in self.words.iter_mut().zip(other.words) {
            *sum ^= word;
        }
        self.check ^= other.check;
        self.count = self.count.wrapping_sub(other.count);
        self
    }

    fn is_empty(&self) -> bool {
        *self == Cell::default()
    }
}

/// Adds an item to a prefix, or takes it out.
fn add_to(cells: &mut [Cell], item: &Hashed, by: i64) {
    let mut places = Places::of(item);
    while let Some(at) = places.next_below(cells.len()) {
        cells[at].add(item, by);
    }
}

/// Items whose cells are found at the same time: each step waits for a division, and those of other items meanwhile
/// go on.
const LANES: usize = 4;

/// Adds many items to a prefix, or takes them out.
fn add_all(cells: &mut [Cell], items: &[(Hashed, i64)]) {
    let (quads, rest) = items.as_chunks::<LANES>();
    for quad in quads {
        let mut places = quad.each_ref().map(|(item, _)| Places::of(item));
        let mut left = true;
        while left {
            left = false;
            for (places, (item, by)) in places.iter_mut().zip(quad) {
                if let Some(at) = places.next_below(cells.len()) {
                    cells[at].add(item, *by);
                    left = true;
                }
            }
        }
    }
    rest.iter().for_each(|(item, by)| add_to(cells, item, *by));
}
