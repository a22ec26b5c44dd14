//! The purge floor of a family: below it there are no tombstones any more, and no deletion is undone all the same.
//!
//! A tombstone may go only when no value that it beats can come back. So the floor rises to a moment H, the
//! *target* of a round, in three steps that every member of the round notes in the books:
//!
//! 1. *promised*: it stamps nothing at or below H any more, and takes nothing at or below H from whoever is not of
//!    the round. The promise binds with the commit of the note.
//! 2. *gathered*: after it has seen that all have promised, it has verified with the collector, the member with the
//!    least EID. So when all have gathered, the collector holds every winner up to H.
//! 3. *spread*: after it has seen that all have gathered, it has verified with the collector again. So when all
//!    have spread, every member holds every winner up to H, the tombstones too, and can drop these.
//!
//! Then the collector raises the floor in the books, and each node *adopts* it when it hears of it. A node that
//! knows from its own store that it has spread H, or more, drops its tombstones up to H. Any other node (one
//! that was restored, rolled back or decommissioned, or shares the family anew) cannot know which of its records up
//! to H were deleted meanwhile: it sets them all aside, in quarantine, and has them again from its peers where they are
//! still alive; what does not come back stays listed. Nodes exchange a family at equal floors only.
//!
//! A round is void when its collector restarts (its disk may have lost what it gathered), is not the collector any
//! more, or has no other member left. A member that has left (decommissioned, unshared, shared anew) is not waited for.
//! A member that is absent is: it pins the tombstones, and the status names it.
//!
//! Here are the decisions only, as functions of the books, what the store knows by itself, and the time. Never here:
//! writing them down (`batch`), verifying.

use std::collections::BTreeMap;

use super::books::{Books, FamilyBooks, Note, Round, RoundId, Step};
use super::clock::{Hlc, UnixMs};
use super::eid::Eid;
use super::family::Floor;
use super::path::Family;
use super::storage::{LocalFloor, Run};

/// How long deletions are remembered at least.
pub const RETENTION_DEFAULT_MS: u64 = 10 * 24 * 3_600 * 1_000;
/// How far a floor rises at once, at least.
pub const INTERVAL_DEFAULT_MS: u64 = 6 * 3_600 * 1_000;

/// How floors rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A target lies so far in the past. The longest of all members counts: none promises before its own is over.
    pub retention_ms: u64,
    /// A floor rises by so much or not at all: each rise costs every member some writes to the books.
    pub interval_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { retention_ms: RETENTION_DEFAULT_MS, interval_ms: INTERVAL_DEFAULT_MS }
    }
}

impl Policy {
    /// The latest moment whose deletions may be forgotten now.
    fn due(&self, now: UnixMs) -> Hlc {
        Hlc::from_parts(now.saturating_sub(self.retention_ms), 0).unwrap_or(Hlc::ZERO)
    }

    fn later(&self, floor: Hlc) -> Hlc {
        if floor == Hlc::ZERO {
            return Hlc::ZERO;
        }
        Hlc::from_parts(floor.unix_ms().saturating_add(self.interval_ms), floor.counter()).unwrap_or(Hlc::MAX)
    }
}

/// One family as one node sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub me: Eid,
    pub run: Run,
    pub books: &'a Books,
    pub family: &'a Family,
    pub local: LocalFloor,
    /// How many tombstones the node holds: where there are none, no floor need rise.
    pub tombstones: u64,
    pub policy: Policy,
    pub now: UnixMs,
}

/// Who keeps tombstones from being dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    pub by: Vec<Eid>,
    /// The step that they have not noted.
    pub lacks: Step,
    /// Since when, about: the moment at which the floor could have begun to rise.
    pub since_unix_ms: UnixMs,
}

/// What a node does next about a family's floor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing, until something changes.
    Wait,
    /// Begin this round.
    Begin(Round),
    /// Note this.
    Note(Note),
    /// Verify with the collector of this round, in the run that it names; then note it.
    Verify(Note),
    /// Raise the floor.
    Raise(Hlc),
}

/// The floor that is to be adopted yet: neither the run nor the time decide that.
fn pending(books: &Books, family: &Family, local: LocalFloor) -> Option<Hlc> {
    let floor = books.of(family).floor;
    (floor > local.adopted).then_some(floor)
}

/// A family's floor as it is exchanged.
pub(super) fn standing(books: &Books, family: &Family, local: LocalFloor) -> Floor {
    Floor { adopted: local.adopted, rising: pending(books, family, local).is_some() }
}

impl Seen<'_> {
    fn of(&self) -> &FamilyBooks {
        self.books.of(self.family)
    }

    /// The floor that the node must have: the books', or its own where the books have lost theirs.
    pub fn floor(&self) -> Hlc {
        self.of().floor.max(self.local.adopted)
    }

    /// The floor that is to be adopted yet.
    pub fn pending(&self) -> Option<Hlc> {
        pending(self.books, self.family, self.local)
    }

    /// The moment at or below which this node stamps nothing.
    pub fn bound(&self) -> Hlc {
        let promised = self.of().notes.get(&self.me).map_or(Hlc::ZERO, |note| note.round.target);
        if mutant!(PromiseNotKept) { self.floor() } else { self.floor().max(promised) }
    }

    /// Whether the node may drop its tombstones up to the floor: it knows by itself that it holds every winner.
    pub fn took_part(&self) -> bool {
        self.local.spread >= self.floor() || mutant!(NobodyDoubts)
    }

    /// The round in force: one that can still raise the floor, of the collector of now. A collector whose members have
    /// all left raises nothing: if its disk was put back, nobody told it of floors that it had raised before.
    pub fn round(&self) -> Option<&Round> {
        let round = self.of().round.as_ref()?;
        let collector = self.collector()?;
        let alone = self.counted(round).nth(1).is_none();
        (round.id.collector == collector && round.id.target > self.floor() && !alone).then_some(round)
    }

    fn collector(&self) -> Option<Eid> {
        self.books.sharers(self.family).map(|(eid, _)| eid).min()
    }

    /// Members of a round that still count: not decommissioned, and sharing since before it began.
    fn counted<'a>(&'a self, round: &'a Round) -> impl Iterator<Item = Eid> + 'a {
        let shares = |eid: &Eid, share: &Hlc| self.of().sharers.get(eid) == Some(share) && self.books.is_admitted(*eid);
        round.members.iter().filter(move |(eid, share)| shares(eid, share)).map(|(eid, _)| *eid)
    }

    /// How far a member is in a round.
    pub fn step_of(&self, eid: Eid, round: &RoundId) -> Option<Step> {
        self.of().notes.get(&eid).filter(|note| note.round == *round).map(|note| note.step)
    }

    /// Who has not come so far yet.
    pub fn behind<'a>(&'a self, round: &'a Round, step: Step) -> impl Iterator<Item = Eid> + 'a {
        self.counted(round).filter(move |eid| self.step_of(*eid, &round.id) < Some(step))
    }

    fn all(&self, round: &Round, step: Step) -> bool {
        self.behind(round, step).next().is_none()
    }

    /// The moment at or below which this node takes nothing new from `source`. What the members of the round have
    /// will be gathered, so it is taken, until this node has had everything up to there itself.
    pub fn bar(&self, source: Eid) -> Hlc {
        let spread = if self.local.spread > self.local.adopted { self.local.spread } else { Hlc::ZERO };
        let Some(note) = self.of().notes.get(&self.me) else { return spread };
        let target = note.round.target;
        let member = self.of().round.as_ref().is_some_and(|round| self.counted(round).any(|eid| eid == source));
        // A round that is void, and that this node has gathered nothing for, comes to nothing without it. And before the
        // collector gathers, it begins anew with who has joined.
        let void = self.round().is_none_or(|round| round.id != note.round);
        let joined = || self.books.sharers(self.family).any(|(eid, _)| eid == source);
        let gathers_yet = self.local.gathered < target && (void || joined());
        // Nobody counts on what a decommissioned node has gathered.
        let counts = self.books.is_admitted(self.me);
        if member || gathers_yet || !counts || target <= self.local.adopted {
            return spread;
        }
        spread.max(target)
    }

    /// What is to be done now.
    pub fn next_move(&self) -> Move {
        // Two collectors that did not know each other may have raised it, and the lower floor was written later.
        if self.local.adopted > self.of().written_floor && !mutant!(LowerFloorStays) {
            return Move::Raise(self.local.adopted);
        }
        let takes_part = self.books.is_admitted(self.me) && self.of().sharers.contains_key(&self.me);
        if !takes_part || self.pending().is_some() {
            return Move::Wait;
        }
        let collects = self.collector() == Some(self.me);
        if collects && let Some(begin) = self.begin() {
            return begin;
        }
        let Some(round) = self.round() else { return Move::Wait };
        if !self.counted(round).any(|eid| eid == self.me) {
            return Move::Wait;
        }
        let others_behind = |step| self.behind(round, step).any(|eid| eid != self.me);
        let note = |step| Note { round: round.id, step };
        match self.step_of(self.me, &round.id) {
            // The collector promises last: a target from a clock that is ahead binds nobody.
            None if collects && others_behind(Step::Promised) => Move::Wait,
            None if self.may_promise(&round.id) => Move::Note(note(Step::Promised)),
            None => Move::Wait,
            Some(Step::Promised) if collects => {
                if others_behind(Step::Gathered) {
                    Move::Wait
                } else {
                    Move::Note(note(Step::Gathered))
                }
            }
            Some(Step::Promised) if self.all(round, Step::Promised) => Move::Verify(note(Step::Gathered)),
            Some(Step::Gathered) if self.all(round, Step::Gathered) => {
                let spread = note(Step::Spread);
                if collects { Move::Note(spread) } else { Move::Verify(spread) }
            }
            Some(Step::Spread) if collects && (self.all(round, Step::Spread)) => Move::Raise(round.id.target),
            Some(_) => Move::Wait,
        }
    }

    /// What the tombstones wait for, if the floor is overdue or a round is under way.
    pub fn pinned(&self) -> Option<Pinned> {
        let rises = |since: Hlc| since.unix_ms().saturating_add(self.policy.retention_ms);
        if let Some(round) = self.round() {
            let behind = |step| (self.behind(round, step).collect::<Vec<_>>(), step);
            let (mut by, lacks) = Step::ALL.into_iter().map(behind).find(|(by, _)| !by.is_empty())?;
            if by.len() > 1 {
                // The collector steps last: it waits for the others.
                by.retain(|eid| *eid != round.id.collector);
            }
            return Some(Pinned { by, lacks, since_unix_ms: rises(round.id.target) });
        }
        // No round has begun: that is the collector's part.
        self.is_due(self.policy.due(self.now)).then(|| Pinned {
            by: self.collector().into_iter().collect(),
            lacks: Step::Promised,
            since_unix_ms: rises(self.earliest()),
        })
    }

    /// The least moment that a floor is worth raising to: what is older than the sharing was deleted before it.
    fn earliest(&self) -> Hlc {
        let shared = self.books.sharers(self.family).map(|(_, share)| share).min().unwrap_or(Hlc::ZERO);
        self.policy.later(self.floor()).max(shared)
    }

    /// Whether a round up to `target` is worth its verifies. Alone, a node whose clock is ahead would bind itself; and
    /// nobody is there to be told of deletions.
    fn is_due(&self, target: Hlc) -> bool {
        self.tombstones > 0 && target > self.earliest() && self.books.sharers(self.family).nth(1).is_some()
    }

    /// Nobody promises what its own clock says is not over yet, nor less than it has promised before.
    fn may_promise(&self, round: &RoundId) -> bool {
        let promised = self.of().notes.get(&self.me).map_or(Hlc::ZERO, |note| note.round.target);
        round.target <= self.policy.due(self.now) && round.target >= promised
    }

    /// As the collector: a new round, unless one of this run is under way.
    fn begin(&self) -> Option<Move> {
        let due = self.policy.due(self.now);
        let members: BTreeMap<_, _> = self.books.sharers(self.family).collect();
        let under_way = self.round().is_some_and(|round| {
            let gathered = self.step_of(self.me, &round.id) >= Some(Step::Gathered);
            // Whoever has unshared and shared again has joined too; a collector that has leads its round no further.
            let joined = !gathered && members.iter().any(|(eid, share)| round.members.get(eid) != Some(share));
            let leads = self.counted(round).any(|eid| eid == self.me);
            (round.id.run == self.run) && round.id.target <= due && leads && !joined
        });
        if under_way {
            return None;
        }
        // A round that did not come to its end has members that take nothing below its target from others: they wait
        // for one that does, whether or not this node has anything to purge.
        let unfinished = self.of().round.as_ref().is_some_and(|round| round.id.target > self.floor());
        let worth_it = self.is_due(due) || (unfinished && members.len() > 1);
        let promised = self.of().notes.values().map(|note| note.round.target).max().unwrap_or(Hlc::ZERO);
        let id = RoundId { target: due, collector: self.me, run: self.run };
        (worth_it && due > promised).then_some(Move::Begin(Round { id, members }))
    }
}
