//! Rendezvous hashing: everyone ranks the nodes of a site for a family alike, without a word being said.
//!
//! A node that comes or goes changes the relay only where it is itself the first; all others keep theirs.

use xxhash_rust::xxh3::xxh3_64;

use crate::core::eid::Eid;
use crate::core::path::Family;

/// Families fall into so many groups, and a group shares its ranks: a site has at most so many relays,
/// however many families there are, and so a bounded number of connections to the other sites.
pub const RELAYS_PER_SITE_MAX: u64 = 4;

/// A node's rank for a family: the greatest of a site is its relay. The EID decides between equal hashes.
pub fn rank(family: &Family, eid: Eid) -> (u64, Eid) {
    let group = xxh3_64(family.as_str().as_bytes()) % RELAYS_PER_SITE_MAX;
    let mut bytes = [0; 8 + Eid::BYTES];
    bytes[..8].copy_from_slice(&group.to_le_bytes());
    bytes[8..].copy_from_slice(&eid.bytes());
    (xxh3_64(&bytes), eid)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn first(family: &Family, eids: impl IntoIterator<Item = u16>) -> u16 {
        let eid = |n: &u16| Eid::new([2, 0, 0, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
        eids.into_iter().max_by_key(|n| rank(family, eid(n))).expect("not empty")
    }

    fn family(n: usize) -> Family {
        Family::new(&format!("f{n}")).expect("a family")
    }

    #[test]
    fn a_node_that_goes_changes_the_relay_only_where_it_was_the_relay() {
        for n in 0..50 {
            let (before, after) = (first(&family(n), 0..20), first(&family(n), (0..20).filter(|eid| *eid != 7)));
            assert!(before == after || before == 7);
        }
    }

    #[test]
    fn a_site_has_few_relays_and_the_load_is_spread_over_sites() {
        let relays: BTreeSet<u16> = (0..200).map(|n| first(&family(n), 0..100)).collect();
        assert!((2..=RELAYS_PER_SITE_MAX as usize).contains(&relays.len()), "{relays:?}");
        let mut places = BTreeMap::<u16, usize>::new();
        for site in 0..1_000 {
            *places.entry(first(&family(0), site * 10..site * 10 + 10) - site * 10).or_default() += 1;
        }
        assert!(places.len() == 10 && places.values().all(|count| (60..140).contains(count)), "{places:?}");
    }
}
