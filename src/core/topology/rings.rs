//! Rings of gossip: who speaks for a site in the ring of sites, and whom a node dials where each site gossips by itself.
//!
//! The speaker of a site is its relay for the cluster's books, once that has settled, so that its connections to the others serve
//! both.

use std::collections::{BTreeMap, BTreeSet};

use super::rank::rank;
use crate::core::eid::Eid;
use crate::core::path::Family;

/// One ring carries so many nodes unless configured. Its digests, of which each node sends about six in each round, are
/// then 15 KB long (30 bytes a node, measured on names that hardly compress).
pub const RING_NODES_MAX_DEFAULT: usize = 500;
/// A ring may never be larger. Its digests are then 30 KB long; chitchat panics for good where one has 65 KB, which the
/// former runs of nodes that restart again and again must not reach either.
pub const RING_NODES_MAX: usize = 1_000;
/// So many nodes of a site of which nobody is known to live are tried.
const TRIED_PER_SITE: usize = 3;

/// Who speaks for a site whose live nodes are these.
pub fn speaker(live: impl IntoIterator<Item = Eid>) -> Option<Eid> {
    live.into_iter().max_by_key(|eid| rank(&Family::books(), *eid))
}

/// In the order in which they would speak for their site.
pub fn by_rank(eids: &mut [Eid]) {
    eids.sort_by_cached_key(|eid| std::cmp::Reverse(rank(&Family::books(), *eid)));
}

/// A node that is known, whether or not it lives.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub eid: Eid,
    pub site: &'a str,
    pub live: bool,
}

/// Whom a node of `site` dials: all of its site; at other sites those that its plan needs, and if it speaks for its
/// site, the speaker of each other site, or some of its nodes where none is known to live.
pub fn dial<'a>(
    site: &str,
    speaks: bool,
    needed: &BTreeSet<Eid>,
    known: impl IntoIterator<Item = Known<'a>>,
) -> BTreeSet<Eid> {
    let mut dial = BTreeSet::new();
    let mut sites = BTreeMap::<&str, (Vec<Eid>, Vec<Eid>)>::new();
    for Known { eid, site: of, live } in known {
        if of == site || needed.contains(&eid) {
            dial.insert(eid);
        }
        if of != site && speaks {
            let (living, dead) = sites.entry(of).or_default();
            if live { living } else { dead }.push(eid);
        }
    }
    for (living, mut dead) in sites.into_values() {
        match speaker(living) {
            Some(speaker) => _ = dial.insert(speaker),
            None if mutant!(SilentSiteNotTried) => {}
            None => {
                by_rank(&mut dead);
                dial.extend(dead.into_iter().take(TRIED_PER_SITE));
            }
        }
    }
    dial
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eid(n: u8) -> Eid {
        Eid::new([2, 0, 0, 0, 0, n])
    }

    fn known(n: u8, site: &str, live: bool) -> Known<'_> {
        Known { eid: eid(n), site, live }
    }

    #[test]
    fn all_nodes_of_a_site_name_the_same_speaker_and_the_next_one_when_it_dies() {
        let all: Vec<Eid> = (1..=10).map(eid).collect();
        let first = speaker(all.clone()).expect("there are some");
        assert_eq!(speaker(all.iter().rev().copied()), Some(first));
        let mut ranked = all.clone();
        by_rank(&mut ranked);
        assert_eq!(speaker(all.into_iter().filter(|eid| *eid != first)), Some(ranked[1]));
        assert_eq!(speaker([]), None);
    }

    #[test]
    fn a_node_dials_its_site_and_whom_it_needs_and_a_speaker_also_one_of_each_site() {
        let nodes = [known(1, "a", false), known(2, "b", true), known(3, "b", true), known(4, "c", true)];
        let needed = [eid(4), eid(9)].into();
        assert_eq!(dial("a", false, &needed, nodes), [eid(1), eid(4)].into());
        let speaks = dial("a", true, &needed, nodes);
        assert_eq!(speaks.len(), 3, "its mate, whom it needs, and one of site b: {speaks:?}");
        assert!(speaks.contains(&speaker([eid(2), eid(3)]).expect("there are some")));
    }

    #[test]
    fn a_speaker_tries_some_nodes_of_a_site_of_which_none_is_known_to_live() {
        let nodes = (1..=9).map(|n| known(n, "b", false));
        assert_eq!(dial("a", true, &BTreeSet::new(), nodes).len(), TRIED_PER_SITE);
    }
}
