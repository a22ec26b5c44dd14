//! Two other ways to find what differs, and the least that any could send.
//!
//! Both cut the family into parts, compare the hashes of the parts, 8 bytes each, and go on where they differ; a
//! part with few items is sent whole, 30 bytes an item, as many as were found to make it cheapest. The trie cuts by
//! the hash of the key, so that a part needs no name; ranges are cut by the order of the paths into parts of equal
//! size, whose bounds are sent as 8 bytes (Meyer: "Range-Based Set Reconciliation", SRDS 2023). Neither sends
//! frame headers here. Records are not counted, as with ours.

use kinfolk::core::clock::Stamp;
use xxhash_rust::xxh3::xxh3_64;

use crate::synthetic::{Synthetic, record_key, stamp};

const FAN_OUT: usize = 16;
const HASH_BYTES: usize = 8;
const BOUND_BYTES: usize = 8;
const ITEM_BYTES: usize = 30;
const LEAVES: [usize; 5] = [1, 2, 4, 8, 16];

#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub bytes: usize,
    pub turns: usize,
}

/// Items in order, each with its hash, and the XOR of all hashes before it.
struct Side {
    order: Vec<u64>,
    sums: Vec<u64>,
}

impl Side {
    fn new(mut items: Vec<(u64, u64)>) -> Self {
        items.sort_unstable();
        let sums = std::iter::once(0).chain(items.iter().scan(0, |sum, (_, hash)| {
            *sum ^= hash;
            Some(*sum)
        }));
        let sums = sums.collect();
        Self { order: items.into_iter().map(|(order, _)| order).collect(), sums }
    }

    /// The places of the items from `low` up to and without `high`; none is without end.
    fn range(&self, low: u64, high: Option<u64>) -> (usize, usize) {
        let at = |bound: u64| self.order.partition_point(|order| *order < bound);
        (at(low), high.map_or(self.order.len(), at))
    }

    fn sum(&self, (from, to): (usize, usize)) -> u64 {
        self.sums[from] ^ self.sums[to]
    }
}

fn sides(set: &Synthetic, by_hash: bool) -> Side {
    let items = (0..set.keys).filter_map(|n| Some((n, set.version(n)?))).map(|(n, version)| {
        let Stamp { hlc, hash, .. } = stamp(n, version);
        let key = xxh3_64(record_key(n).path.as_str().as_bytes());
        let item = xxh3_64(&[key.to_le_bytes(), hlc.as_u64().to_le_bytes(), hash.to_le_bytes()].concat());
        (if by_hash { key } else { n as u64 }, item)
    });
    Side::new(items.collect())
}

/// One message after the other, each about all parts that still differ.
fn descend(
    (ours, theirs): (&Side, &Side),
    leaf_items: usize,
    part_bytes: usize,
    split: impl Fn(u64, Option<u64>, &Side) -> Vec<(u64, Option<u64>)>,
) -> Cost {
    let mut parts: Vec<(u64, Option<u64>)> = vec![(0, None)];
    // The first message is the sum of everything.
    let mut cost = Cost { bytes: HASH_BYTES, turns: 1 };
    parts.retain(|(low, high)| ours.sum(ours.range(*low, *high)) != theirs.sum(theirs.range(*low, *high)));
    let mut speaker_is_ours = false;
    while !parts.is_empty() {
        cost.turns += 1;
        let speaker = if speaker_is_ours { ours } else { theirs };
        let mut next = Vec::new();
        let mut leaves = 0;
        for (low, high) in parts {
            let (from, to) = speaker.range(low, high);
            if to - from <= leaf_items {
                // Its items; the other side knows then what it lacks, and answers with what it has more.
                cost.bytes += 1 + ITEM_BYTES * (to - from);
                leaves += 1;
                continue;
            }
            let children = split(low, high, speaker);
            cost.bytes += part_bytes * children.len();
            next.extend(children);
        }
        // Which of the parts differ: a bit each.
        cost.bytes += next.len().div_ceil(8);
        next.retain(|(low, high)| ours.sum(ours.range(*low, *high)) != theirs.sum(theirs.range(*low, *high)));
        if next.is_empty() && leaves > 0 {
            // The answer to the last leaves: what is wanted, as a number in the part.
            cost.turns += 1;
            cost.bytes += leaves;
        }
        parts = next;
        speaker_is_ours = !speaker_is_ours;
    }
    cost
}

fn cheapest(
    sides: (&Side, &Side),
    part_bytes: usize,
    split: impl Fn(u64, Option<u64>, &Side) -> Vec<(u64, Option<u64>)>,
) -> Cost {
    let costs = LEAVES.map(|leaf| descend(sides, leaf, part_bytes, &split));
    costs.into_iter().min_by_key(|cost| cost.bytes).expect("there are some")
}

/// A trie of fan-out 16 over the hashes of the keys.
pub fn trie(ours: &Synthetic, theirs: &Synthetic) -> Cost {
    let (ours, theirs) = (sides(ours, true), sides(theirs, true));
    let split = |low: u64, high: Option<u64>, _: &Side| {
        let width = high.map_or(0_u64.wrapping_sub(low), |high| high - low);
        let step = if width == 0 { 1 << 60 } else { width / FAN_OUT as u64 };
        let child = |n: u64| (low + n * step, if n + 1 == FAN_OUT as u64 { high } else { Some(low + (n + 1) * step) });
        (0..FAN_OUT as u64).map(child).collect()
    };
    cheapest((&ours, &theirs), HASH_BYTES, split)
}

/// Ranges of the order of the paths, cut into 16 of equal size.
pub fn ranges(ours: &Synthetic, theirs: &Synthetic) -> Cost {
    let (ours, theirs) = (sides(ours, false), sides(theirs, false));
    let split = |low: u64, high: Option<u64>, side: &Side| {
        let (from, to) = side.range(low, high);
        let bound = |n: usize| side.order[from + (to - from) * n / FAN_OUT];
        let mut bounds: Vec<u64> = (1..FAN_OUT).map(bound).filter(|bound| *bound > low).collect();
        bounds.dedup();
        let starts = std::iter::once(low).chain(bounds.iter().copied());
        let ends = bounds.iter().copied().map(Some).chain([high]);
        starts.zip(ends).collect()
    };
    cheapest((&ours, &theirs), HASH_BYTES + BOUND_BYTES, split)
}

/// The information in a set of so many differing items of 240 bits: no protocol that knows nothing else can do with
/// less.
pub fn least_bytes(items: usize) -> usize {
    let log2_factorial: f64 = (1..=items).map(|n| (n as f64).log2()).sum();
    ((240.0 * items as f64 - log2_factorial) / 8.0).ceil() as usize
}
