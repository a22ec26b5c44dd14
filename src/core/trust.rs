//! What a peer is trusted for: the families that its certificate names, as far as this node's own allow list
//! goes along (design: "Trust").
//!
//! A family that is granted carries everything under it. The cluster's books are granted to every member: without
//! them nobody could know who is one. Never here: who the peer is (its certificate says that).

use std::collections::{BTreeMap, BTreeSet};

use super::eid::Eid;
use super::path::Family;

/// The families that a peer may be served, followed in, or believed to share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Grants {
    #[default]
    All,
    /// These and what lies under them; none of them: the books only.
    Only(BTreeSet<Family>),
}

impl Grants {
    /// Those that a certificate or a list names.
    pub fn only(families: impl IntoIterator<Item = Family>) -> Self {
        Grants::Only(families.into_iter().collect())
    }

    pub fn allow(&self, family: &Family) -> bool {
        match self {
            Grants::All => true,
            Grants::Only(granted) => *family == Family::books() || granted.iter().any(|of| within(family, of)),
        }
    }

    /// What both sides grant.
    pub fn and(&self, other: &Grants) -> Grants {
        let (Grants::Only(these), Grants::Only(those)) = (self, other) else {
            return if *self == Grants::All { other.clone() } else { self.clone() };
        };
        let inner = |family: &Family, of: &BTreeSet<Family>| of.iter().any(|outer| within(family, outer));
        let both = these.iter().filter(|family| inner(family, those));
        Grants::only(both.chain(those.iter().filter(|family| inner(family, these))).cloned())
    }

    /// The families by name, for people; none: all.
    pub fn names(&self) -> Option<Vec<String>> {
        match self {
            Grants::All => None,
            Grants::Only(families) => Some(families.iter().map(Family::to_string).collect()),
        }
    }
}

fn within(family: &Family, outer: &Family) -> bool {
    let rest = family.as_str().strip_prefix(outer.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// This node's own list: what it grants at most, whatever a certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    pub by_eid: BTreeMap<Eid, Grants>,
    /// For every other peer.
    pub others: Grants,
}

impl Allow {
    pub fn of(&self, peer: Eid) -> &Grants {
        self.by_eid.get(&peer).unwrap_or(&self.others)
    }
}

/// What the operator says of peers, beside their certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    pub allow: Allow,
    /// Refused whatever certificate they show.
    pub revoked: BTreeSet<Eid>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &str) -> Family {
        Family::new(name).expect("a family")
    }

    fn only(names: &[&str]) -> Grants {
        Grants::only(names.iter().map(|name| family(name)))
    }

    #[test]
    fn a_granted_family_carries_what_lies_under_it_and_nothing_beside_it() {
        let grants = only(&["CF", "a/b"]);
        for (name, allowed) in [("CF", true), ("CF/x", true), ("CFx", false), ("a/b", true), ("a", false), ("b", false)]
        {
            assert_eq!(grants.allow(&family(name)), allowed, "{name}");
            assert!(Grants::All.allow(&family(name)));
        }
    }

    #[test]
    fn the_books_are_for_every_member() {
        assert!(only(&[]).allow(&Family::books()));
        assert!(!only(&[]).allow(&family("CF")));
    }

    #[test]
    fn what_two_lists_grant_is_what_each_of_them_does() {
        let (one, other) = (only(&["a", "b/x", "c"]), only(&["a/1", "b", "d"]));
        assert_eq!(one.and(&other), only(&["a/1", "b/x"]));
        assert_eq!(one.and(&Grants::All), one);
        assert_eq!(Grants::All.and(&other), other);
        assert_eq!(Grants::All.and(&Grants::All), Grants::All);
        assert_eq!(one.and(&only(&["d"])), only(&[]));
    }

    #[test]
    fn the_list_grants_by_eid_and_else_as_to_the_others() {
        let known = Eid::new([2, 0, 0, 0, 0, 1]);
        let allow = Allow { by_eid: [(known, only(&["CF"]))].into(), others: only(&[]) };
        assert_eq!(allow.of(known), &only(&["CF"]));
        assert_eq!(allow.of(Eid::new([2, 0, 0, 0, 0, 2])), &only(&[]));
        assert_eq!(Allow::default().of(known), &Grants::All);
    }
}
