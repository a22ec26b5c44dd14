//! What a node knows of other sites where each site gossips by itself: what is claimed of their nodes.
//!
//! Never here: who may claim what, sockets. Invariant: a claim that is not repeated is believed for a while, so that
//! nothing is lost while one speaker takes over from another; then the node is held for dead, and forgotten later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::core::eid::Eid;
use crate::core::path::Family;
use crate::core::sketch::Root;
use crate::core::topology::Member;

/// Roots change with every write. Told on they are as they were up to this long ago.
const ROOTS_GAP: Duration = Duration::from_secs(10);

/// The roots that are told of other nodes, taken anew now and then.
#[derive(Default)]
pub(super) struct ToldRoots {
    taken: Option<Instant>,
    roots: BTreeMap<Eid, BTreeMap<Family, Root>>,
}

impl ToldRoots {
    /// Takes them anew if it is time to. True if any has changed.
    pub fn refresh(&mut self, now: Instant, roots: impl FnOnce() -> BTreeMap<Eid, BTreeMap<Family, Root>>) -> bool {
        if self.taken.is_some_and(|taken| now < taken + ROOTS_GAP) {
            return false;
        }
        self.taken = Some(now);
        let roots = roots();
        let changed = roots != self.roots;
        self.roots = roots;
        changed
    }

    pub fn of(&self, eid: Eid) -> &BTreeMap<Family, Root> {
        const NONE: &BTreeMap<Family, Root> = &BTreeMap::new();
        self.roots.get(&eid).unwrap_or(NONE)
    }
}

pub(super) struct Far {
    hold: Duration,
    forget: Duration,
    seen: BTreeMap<Eid, (Member, Instant)>,
}

impl Far {
    pub fn new(hold: Duration, forget: Duration) -> Self {
        Self { hold, forget, seen: BTreeMap::new() }
    }

    /// Takes what is claimed now; of several claims of one node the first counts. True if anything but a root changed.
    pub fn take<'a>(&mut self, claims: impl Iterator<Item = &'a Member>, now: Instant) -> bool {
        let (mut told, mut changed) = (BTreeSet::new(), false);
        for claim in claims {
            if !told.insert(claim.eid) {
                continue;
            }
            match self.seen.get_mut(&claim.eid) {
                Some((member, heard)) if member == claim => *heard = now,
                Some((member, heard)) => {
                    let roots = claim.roots.clone();
                    changed |= Member { roots, ..member.clone() } != *claim;
                    (*member, *heard) = (claim.clone(), now);
                }
                None => {
                    self.seen.insert(claim.eid, (claim.clone(), now));
                    changed = true;
                }
            }
        }
        for (member, _) in self.seen.values_mut().filter(|(_, heard)| now >= *heard + self.hold) {
            changed |= std::mem::replace(&mut member.live, false);
        }
        let before = self.seen.len();
        self.seen.retain(|_, (_, heard)| now < *heard + self.forget);
        changed || self.seen.len() < before
    }

    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.seen.values().map(|(member, _)| member)
    }

    /// Whether a node of the site is believed to live.
    pub fn hears_of(&self, site: &str) -> bool {
        self.members().any(|member| member.live && member.site == site)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::storage::Run;

    const SECOND: Duration = Duration::from_secs(1);

    fn member(last: u8, live: bool) -> Member {
        Member {
            eid: Eid::new([2, 0, 0, 0, 0, last]),
            run: Run(1),
            site: "far".into(),
            address: "far.example:7480".into(),
            protocol_version: 1,
            version: "1".into(),
            families: Arc::default(),
            roots: BTreeMap::new(),
            head: 0,
            unreached: BTreeSet::new(),
            settled: true,
            live,
            connected: false,
        }
    }

    fn live(far: &Far) -> Vec<bool> {
        far.members().map(|member| member.live).collect()
    }

    #[tokio::test]
    async fn a_claim_is_believed_for_a_while_then_the_node_is_dead_and_later_forgotten() {
        let (mut far, start) = (Far::new(20 * SECOND, 100 * SECOND), Instant::now());
        assert!(far.take([&member(1, true), &member(2, true)].into_iter(), start));
        assert!(!far.take([&member(1, true)].into_iter(), start + 19 * SECOND));
        assert_eq!(live(&far), [true, true], "a speaker may be about to take over");
        assert!(far.hears_of("far") && !far.hears_of("elsewhere"));
        assert!(far.take([&member(1, true)].into_iter(), start + 20 * SECOND));
        assert_eq!(live(&far), [true, false]);
        assert!(far.take([].into_iter(), start + 100 * SECOND));
        assert_eq!(live(&far), [false]);
        assert!(far.take([&member(1, true)].into_iter(), start + 101 * SECOND));
        assert_eq!(live(&far), [true]);
    }

    #[tokio::test]
    async fn another_root_is_taken_and_is_no_news() {
        let (mut far, now) = (Far::new(SECOND, SECOND), Instant::now());
        far.take([&member(1, true)].into_iter(), now);
        let roots: BTreeMap<Family, Root> = [(Family::books(), "ab".parse().expect("a root"))].into();
        let other = Member { roots: roots.clone(), ..member(1, true) };
        assert!(!far.take([&other].into_iter(), now));
        assert_eq!(far.members().next(), Some(&other));
        let mut told = ToldRoots::default();
        assert!(told.refresh(now, || [(other.eid, roots.clone())].into()));
        assert!(!told.refresh(now + ROOTS_GAP / 2, BTreeMap::new), "it is not yet time");
        assert_eq!(*told.of(other.eid), roots);
        assert!(told.refresh(now + ROOTS_GAP, BTreeMap::new));
        assert!(told.of(other.eid).is_empty());
    }

    #[tokio::test]
    async fn of_two_claims_the_first_counts() {
        let mut far = Far::new(SECOND, SECOND);
        far.take([&member(1, false), &member(1, true)].into_iter(), Instant::now());
        assert_eq!(live(&far), [false]);
    }
}
