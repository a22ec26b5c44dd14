//! What was lost on the way from another site is fetched nearby, before the source can know that it was lost.
//!
//! A packet that goes missing on a link is sent again a round trip later at the earliest, so that a write needs three times
//! the delay of that link; among a hundred sites, with one packet in twenty lost, every write meets such a link. Others
//! have what is missing, and some of them are near. So a relay that gets a frame from another site tells the few relays
//! that are nearest to it how far it is with that source ([`Heard`]: no record in it). Whoever follows the same source,
//! is not that far itself, and still is not when the source's own frame should have come, asks for the rest ([`Missing`])
//! and applies it without moving its cursor. The frame that comes late then changes nothing.
//!
//! Never here: sockets, and anything that convergence rests on. Nothing of this need arrive; nothing of it is durable.
//! Invariant: what is kept for others is bounded.

use std::collections::{BTreeMap, VecDeque};

use super::eid::Eid;
use super::family::Mode;
use super::message::{Heard, Missing};
use super::path::Family;
use super::record::Record;
use super::replica::Apply;
use super::storage::{Cursor, Run};

/// So many relays are told, of those at other sites: the nearest.
pub const TOLD_MAX: usize = 4;
/// Bytes of records that are kept for others, of all sources.
const KEPT_MAX_BYTES: usize = 1024 * 1024;
/// Larger frames are a transfer, and no news that somebody waits for.
const FRAME_MAX_BYTES: usize = 32 * 1024;

/// What came from one source in one frame.
#[derive(Debug)]
struct Piece {
    /// The cursor before and after it.
    from: u64,
    to: u64,
    records: Vec<Record>,
    bytes: usize,
}

/// How far this node is with one source, and what came last from it.
#[derive(Debug)]
struct Of {
    run: Run,
    got_to: u64,
    pieces: VecDeque<Piece>,
    /// Somebody has been asked, and may answer until then.
    asked_until: u64,
}

/// Of each source at other sites, what came lately. Times are in one unit of the caller's choice.
#[derive(Debug, Default)]
pub struct Nearby {
    of: BTreeMap<(Family, Eid), Of>,
    kept_bytes: usize,
    /// In the order of their coming, so that the oldest goes first.
    order: VecDeque<(Family, Eid)>,
}

/// What a frame has brought.
#[derive(Clone, Copy, Debug)]
pub struct Brought<'a> {
    /// How far the follower was before it.
    pub from: u64,
    pub cursor: Cursor,
    /// The follower had all that it knew of before the frame came.
    pub news: bool,
    pub records: &'a [Record],
}

/// What to do about something that another has and this node may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It is here, or its source is not followed any more.
    Nothing,
    Ask(Missing),
    /// Another has been asked; look again then.
    Again(u64),
}

impl Nearby {
    /// A follower begins or goes on at its cursor.
    pub fn follows(&mut self, family: &Family, source: Eid, cursor: Cursor) {
        if self.of.get(&(family.clone(), source)).is_some_and(|of| of.run != cursor.run) {
            self.leaves(family, source);
        }
        let of = self.of.entry((family.clone(), source)).or_insert_with(|| Of::at(cursor));
        of.got_to = of.got_to.max(cursor.seq);
    }

    /// The source is not followed any more.
    pub fn leaves(&mut self, family: &Family, source: Eid) {
        if let Some(of) = self.of.remove(&(family.clone(), source)) {
            self.kept_bytes -= of.pieces.iter().map(|piece| piece.bytes).sum::<usize>();
            self.order.retain(|(of_family, of_source)| (of_family, *of_source) != (family, source));
        }
    }

    /// The family is not shared any more: what is kept of it is for nobody.
    pub fn forget(&mut self, family: &Family) {
        let sources: Vec<Eid> = self.of.keys().filter(|(of, _)| of == family).map(|(_, source)| *source).collect();
        sources.into_iter().for_each(|source| self.leaves(family, source));
    }

    /// A frame has brought this node from one sequence number to a cursor, and is durable. What to tell others, if it is
    /// worth it: what this node catches up with is no news to them, though it may come to a head that they have not heard of.
    pub fn came(&mut self, family: &Family, source: Eid, brought: Brought<'_>) -> Option<Heard> {
        let Brought { from, cursor, news, records } = brought;
        self.follows(family, source, cursor);
        if !news {
            return None;
        }
        let of = self.of.get_mut(&(family.clone(), source)).expect("it has just been noted");
        let bytes: usize = records.iter().map(Record::frame_bytes).sum();
        // What was passed over belongs to the row of pieces too.
        match of.pieces.back_mut() {
            Some(last) if records.is_empty() && last.records.is_empty() && last.to == from => last.to = cursor.seq,
            _ if bytes > FRAME_MAX_BYTES => return None,
            _ => {
                of.pieces.push_back(Piece { from, to: cursor.seq, records: records.to_vec(), bytes });
                self.order.push_back((family.clone(), source));
                self.kept_bytes += bytes;
            }
        }
        while self.kept_bytes > KEPT_MAX_BYTES
            && let Some(oldest) = self.order.pop_front()
        {
            let piece =
                self.of.get_mut(&oldest).and_then(|of| of.pieces.pop_front()).expect("one for each in the order");
            self.kept_bytes -= piece.bytes;
        }
        (!records.is_empty()).then(|| Heard { family: family.clone(), source, run: cursor.run, to: cursor.seq })
    }

    /// Whether another has what this node should have too and lacks.
    pub fn lacks(&self, heard: &Heard) -> bool {
        let of = self.of.get(&(heard.family.clone(), heard.source));
        of.is_some_and(|of| of.run == heard.run && of.got_to < heard.to)
    }

    /// The source's own frame should have come by now. Whoever is asked answers within `answer_within`.
    pub fn due(&mut self, heard: &Heard, now: u64, answer_within: u64) -> Due {
        if !self.lacks(heard) {
            return Due::Nothing;
        }
        let of = self.of.get_mut(&(heard.family.clone(), heard.source)).expect("it lacks something of it");
        if of.asked_until > now {
            return Due::Again(of.asked_until);
        }
        of.asked_until = now + answer_within;
        Due::Ask(Missing { after: of.got_to })
    }

    /// What another lacks of a source; nothing if not all of it is kept.
    pub fn answer(&self, heard: &Heard, missing: Missing) -> Vec<Record> {
        let Some(of) = self.of.get(&(heard.family.clone(), heard.source)).filter(|of| of.run == heard.run) else {
            return Vec::new();
        };
        let (mut records, mut came_to) = (Vec::new(), missing.after);
        for piece in of.pieces.iter().filter(|piece| piece.to > missing.after && piece.to <= heard.to) {
            // A gap: something in between is not kept any more.
            if piece.from > came_to {
                return Vec::new();
            }
            came_to = piece.to;
            records.extend(piece.records.iter().cloned());
        }
        records
    }

    /// What another had, to be applied like a frame of the source but for the cursor: so nothing rests on it, and the
    /// source's own frame that comes late finds everything as it brings it. It is the source's, whoever handed it on: what a
    /// purge floor bars of the source's, another may have barred as well, and hand on all the same.
    pub fn apply(heard: &Heard, mode: Mode, records: Vec<Record>) -> Apply {
        Apply {
            source: heard.source,
            crossing: !mutant!(FetchedNotFar),
            family: heard.family.clone(),
            mode,
            since: None,
            floor: None,
            records,
            cursor: None,
            drop_cursor: None,
        }
    }

    /// What another had has been applied here.
    pub fn fetched(&mut self, heard: &Heard) {
        if let Some(of) = self.of.get_mut(&(heard.family.clone(), heard.source)).filter(|of| of.run == heard.run) {
            of.got_to = of.got_to.max(heard.to);
            of.asked_until = 0;
        }
    }
}

impl Of {
    fn at(cursor: Cursor) -> Self {
        Self { run: cursor.run, got_to: cursor.seq, pieces: VecDeque::new(), asked_until: 0 }
    }
}

/// The nearest of those that can be told, by how far they are.
pub fn nearest(mut others: Vec<(u64, Eid)>) -> Vec<Eid> {
    others.sort_unstable();
    others.truncate(TOLD_MAX);
    others.into_iter().map(|(_, eid)| eid).collect()
}

#[cfg(test)]
#[path = "nearby_test.rs"]
mod tests;
