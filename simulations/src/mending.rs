//! What the mending of a cut costs: how long until each side has what the other wrote, and what crossed for it.
//!
//! Counted at the commits that bring it. The least that must cross is known too: of each key, the latest that either
//! side wrote while they were apart. Never here: a verdict.

use std::collections::BTreeSet;

use crate::clock::{MS, SECOND, Us};
use crate::history::{FaultKind, HostId};
use crate::spread::Way;
use crate::world::World;

/// From the end of a cut on.
#[derive(Clone, Debug)]
pub struct Mending {
    cut_at: Us,
    at: Us,
    groups: Vec<u8>,
    /// Bytes that had gone to each side by then.
    bytes_before: [u64; 2],
    /// Records written before that came from the other side since.
    crossed: u64,
    /// When the first and the last node got something that was written while they were apart.
    first_at: Option<Us>,
    last_at: Us,
}

impl Mending {
    /// One record comes to `node` from `source`.
    pub fn note(&mut self, now: Us, [node, source]: [HostId; 2], way: &Way) {
        self.crossed += u64::from(way.at < self.at && self.groups[node] != self.groups[source]);
        let missed = way.came[node] == 0 && self.groups[node] != self.groups[way.origin];
        if missed && (self.cut_at..self.at).contains(&way.at) {
            self.first_at.get_or_insert(now);
            self.last_at = now;
        }
    }
}

impl World {
    /// A cut has just ended.
    pub fn note_mending(&mut self, index: usize) {
        let fault = &self.history.faults[index];
        let FaultKind::Partition { groups } = &fault.kind else { return };
        if !self.history.checking.spread {
            return;
        }
        let groups = groups.clone();
        self.spread.mending = Some(Mending {
            cut_at: fault.at_us,
            at: self.now,
            bytes_before: self.bytes_to_sides(&groups),
            groups,
            crossed: 0,
            first_at: None,
            last_at: self.now,
        });
    }

    fn bytes_to_sides(&self, groups: &[u8]) -> [u64; 2] {
        let mut bytes = [0; 2];
        for from in 0..groups.len() {
            for to in (0..groups.len()).filter(|to| groups[*to] != groups[from]) {
                bytes[usize::from(groups[to] != 0)] += self.net.bytes_between(from, to);
            }
        }
        bytes
    }

    pub fn mended(&self) -> Option<Mended> {
        let mending = self.spread.mending.as_ref()?;
        let apart = mending.cut_at..mending.at;
        let written = || self.spread.ways().filter(|way| apart.contains(&way.at));
        let keys: BTreeSet<_> = written().map(|way| (way.path.as_str(), mending.groups[way.origin])).collect();
        let after = self.bytes_to_sides(&mending.groups);
        let first_at = mending.first_at.unwrap_or(mending.at);
        let of = |side: usize| SideMended {
            writes: written().filter(|way| usize::from(mending.groups[way.origin] != 0) == side).count(),
            keys: keys.iter().filter(|(_, group)| usize::from(*group != 0) == side).count(),
            bytes_came: after[side] - mending.bytes_before[side],
        };
        Some(Mended {
            apart_us: mending.at - mending.cut_at,
            sides: [of(0), of(1)],
            all_keys: self.spread.ways().map(|way| way.path.as_str()).collect::<BTreeSet<_>>().len(),
            crossed: mending.crossed,
            first_us: first_at - mending.at,
            rest_us: mending.last_at - first_at,
        })
    }

    /// The lines of it for a terminal; none where nothing was cut apart.
    pub fn mending_table(&self) -> String {
        let Some(mended) = self.mended() else { return String::new() };
        let [one, other] = mended.sides;
        let rate = self.history.links.far_bytes_per_s;
        let transfer = match rate {
            0 => "on links without a limit".to_owned(),
            rate => format!("{} ms at {rate} bytes/s", one.bytes_came.max(other.bytes_came) * 1_000 / rate),
        };
        let max_us = self.history.links.far_us.iter().copied().max().unwrap_or(0);
        format!(
            "  apart for {} s: {} writes to {} keys on one side, {} to {} on the other, of {} keys\n  after the cut: the \
             first of these came after {} ms, the last to the last node {} ms later; {} records crossed, {} had to; {} and \
             {} bytes, {transfer}; three round trips are at most {} ms\n",
            mended.apart_us / SECOND,
            one.writes,
            one.keys,
            other.writes,
            other.keys,
            mended.all_keys,
            mended.first_us / MS,
            mended.rest_us / MS,
            mended.crossed,
            one.keys + other.keys,
            one.bytes_came,
            other.bytes_came,
            6 * max_us / MS,
        )
    }
}

/// What came of a mending.
#[derive(Clone, Copy, Debug)]
pub struct Mended {
    pub apart_us: Us,
    /// The group 0 of the cut, and the rest.
    pub sides: [SideMended; 2],
    /// Keys that were ever written.
    pub all_keys: usize,
    pub crossed: u64,
    /// From the end of the cut until the first of what was missed came anywhere …
    pub first_us: Us,
    /// … and from then until the last came to the last node.
    pub rest_us: Us,
}

#[derive(Clone, Copy, Debug)]
pub struct SideMended {
    /// What was written there while they were apart, and to how many keys: so many records had to cross.
    pub writes: usize,
    pub keys: usize,
    pub bytes_came: u64,
}
