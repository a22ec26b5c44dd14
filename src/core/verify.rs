//! When a node compares a family with whom: a pure scheduler over the roots that members gossip.
//!
//! Writes under way make roots differ for moments, so a difference is looked into when it has settled (neither
//! root has changed for `settle_ms`), or when some root has differed for `patience_ms`, settled or not. Per family there is at
//! most one verify at a time and one in `gap_ms`, with a peer drawn from those that differ: after the death of an origin each
//! of n nodes starts a few, not n. Only the first few after a quiet time may follow each other sooner (`CLOSE_MAX`), since
//! the first often brings half of what is lacking and shows where the rest is.
//!
//! Never here: sockets, waiting, chance (a number is handed in). What it believes may be old: the reconcile that
//! it starts compares roots afresh.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::eid::Eid;
use super::path::Family;
use super::reconcile::Ended;
use super::sketch::Root;

/// Milliseconds of a clock that only goes forward.
pub type MonotonicMs = u64;

/// Limits and times of verifying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyConfig {
    /// The least time between two verifies of one family at one node.
    pub gap_ms: u64,
    /// A difference is looked into when neither root has changed for this long …
    pub settle_ms: u64,
    /// … or when there has been one for this long, settled or not.
    pub patience_ms: u64,
    /// How many reconciles of others a node answers at a time; more are told that it is busy.
    pub served_max: usize,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        Self { gap_ms: 2_000, settle_ms: 500, patience_ms: 30_000, served_max: 8 }
    }
}

/// A peer that failed is left alone for so many gaps.
const PENALTY_GAPS: u64 = 5;

/// Verifies of one family that may come close together after a time without any.
const CLOSE_MAX: u64 = 3;

/// The root of one family at one peer, as last heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    root: Root,
    /// Since when it has been this one.
    since: MonotonicMs,
    /// Until when the peer is left alone.
    penalty_until: MonotonicMs,
}

#[derive(Clone, Debug, Default)]
struct State {
    own: Root,
    own_since: MonotonicMs,
    peers: BTreeMap<Eid, Heard>,
    /// Since when some root has differed without a verify; none while all are equal.
    differing_since: Option<MonotonicMs>,
    running: Option<Eid>,
    next_at: MonotonicMs,
    /// Each verify takes a gap; up to here the gaps of those so far reach.
    taken_to: MonotonicMs,
}

/// Chooses what to verify.
#[derive(Clone, Debug)]
pub struct Verifier {
    config: VerifyConfig,
    families: BTreeMap<Family, State>,
}

/// The roots that members gossip, by family: those of live, connected members that share it as we do.
pub type Roots = BTreeMap<Family, BTreeMap<Eid, Root>>;

/// How a verify ended, for the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// The peer could not answer now, or the stream broke.
    Failed,
}

impl From<&Ended> for Verdict {
    fn from(ended: &Ended) -> Self {
        match ended {
            Ended::Equal { .. } | Ended::Reconciled { .. } | Ended::Everything | Ended::LeftToPeer => Verdict::Done,
            Ended::NotShared { .. } | Ended::OtherFloor { .. } | Ended::Busy => Verdict::Failed,
        }
    }
}

impl Verifier {
    pub fn new(config: VerifyConfig) -> Self {
        Self { config, families: BTreeMap::new() }
    }

    /// Takes in what is known now: our own roots, by exchanged family, and those of the members.
    pub fn observe(&mut self, own: &BTreeMap<Family, Root>, roots: &Roots, now: MonotonicMs) {
        self.families.retain(|family, _| own.contains_key(family));
        for (family, root) in own {
            let state = self.families.entry(family.clone()).or_default();
            if state.own != *root {
                (state.own, state.own_since) = (*root, now);
            }
            let heard = roots.get(family);
            state.peers.retain(|peer, _| heard.is_some_and(|heard| heard.contains_key(peer)));
            for (peer, root) in heard.into_iter().flatten() {
                let fresh = Heard { root: *root, since: now, penalty_until: 0 };
                let known = state.peers.entry(*peer).or_insert(fresh);
                if known.root != *root {
                    (known.root, known.since) = (*root, now);
                }
            }
            let differs = state.peers.values().any(|heard| heard.root != state.own);
            state.differing_since = match state.differing_since {
                _ if !differs => None,
                None => Some(now),
                since => since,
            };
        }
    }

    /// The verify that is to be started for a family now, if one is: it runs until [`Self::ended`]. `chance`
    /// chooses among the peers.
    pub fn due(&mut self, family: &Family, now: MonotonicMs, chance: u64) -> Option<Eid> {
        let config = self.config;
        let state = self.families.get_mut(family)?;
        if state.running.is_some() || now < state.next_at {
            return None;
        }
        let impatient = state.differing_since? + config.patience_ms <= now;
        let settled = |since: MonotonicMs| since + config.settle_ms <= now || impatient;
        if !settled(state.own_since) || mutant!(VerifyNever) {
            return None;
        }
        let differing =
            |(_, heard): &(&Eid, &Heard)| heard.root != state.own && settled(heard.since) && heard.penalty_until <= now;
        let candidates: Vec<Eid> = state.peers.iter().filter(differing).map(|(peer, _)| *peer).collect();
        if candidates.is_empty() {
            return None;
        }
        state.running = Some(candidates[(chance % candidates.len() as u64) as usize]);
        state.running
    }

    /// A verify has ended. `chance` spreads the nodes, so that they do not go on in step.
    pub fn ended(&mut self, family: &Family, peer: Eid, verdict: Verdict, now: MonotonicMs, chance: u64) {
        let gap_ms = self.config.gap_ms.max(1);
        let Some(state) = self.families.get_mut(family).filter(|state| state.running == Some(peer)) else { return };
        if !mutant!(VerifyNeverEnds) {
            state.running = None;
        }
        state.taken_to = state.taken_to.max(now) + gap_ms + chance % gap_ms;
        let soon = self.config.settle_ms.clamp(1, gap_ms);
        let close = state.taken_to.saturating_sub((CLOSE_MAX - 1) * gap_ms);
        state.next_at = close.max(now + soon + chance % soon);
        // Patience begins anew: whatever differs now has not been seen by this verify.
        state.differing_since = state.differing_since.map(|_| now);
        if verdict == Verdict::Failed
            && let Some(heard) = state.peers.get_mut(&peer)
        {
            heard.penalty_until = now + gap_ms * PENALTY_GAPS;
        }
    }

    /// When to look again at the latest, if nothing new is heard; none if all is equal.
    pub fn next_look(&self, now: MonotonicMs) -> Option<MonotonicMs> {
        let look = |state: &State| {
            let impatient_at = state.differing_since? + self.config.patience_ms;
            if state.running.is_some() {
                return None;
            }
            let settled_at = |since: MonotonicMs| (since + self.config.settle_ms).min(impatient_at);
            let differing = state.peers.values().filter(|heard| heard.root != state.own);
            let ready = differing.map(|heard| settled_at(heard.since.max(state.own_since)).max(heard.penalty_until));
            Some(ready.min()?.max(state.next_at).max(now + 1))
        };
        self.families.values().filter_map(look).min()
    }

    /// Peers whose root, as last heard, is equal to ours, and others.
    pub fn agreement(&self, family: &Family) -> (usize, usize) {
        let Some(state) = self.families.get(family) else { return (0, 0) };
        let equal = state.peers.values().filter(|heard| heard.root == state.own).count();
        (equal, state.peers.len() - equal)
    }
}
