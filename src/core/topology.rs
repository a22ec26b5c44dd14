//! Who follows whom, in which scope: a pure function of what this node believes about the members.
//!
//! The follower names the scope; a source never filters by what it believes about roles. So a wrong or
//! outdated belief here costs a detour or a delay, never a record.

use std::collections::BTreeMap;

use super::eid::Eid;
use super::family::Mode;
use super::path::Family;
use super::record::Classes;
use super::sketch::Root;
use super::storage::Run;

/// One node of the cluster as membership shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub eid: Eid,
    pub run: Run,
    pub site: String,
    /// `host:port` of its cluster endpoint.
    pub address: String,
    pub protocol_version: u8,
    /// Version of the program, for people.
    pub version: String,
    pub families: BTreeMap<Family, Mode>,
    /// The root of what it has of each family, the books included, as last gossiped.
    pub roots: BTreeMap<Family, Root>,
    /// The head of its change feed, as last gossiped.
    pub head: u64,
    /// Whether the failure detector believes it alive.
    pub live: bool,
    /// Whether a connection to it stands.
    pub connected: bool,
}

/// What this node shares.
pub type Shared = BTreeMap<Family, Mode>;

/// Another member shares a family in the other mode: no exchange, and an alarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeConflict {
    pub family: Family,
    pub member: Eid,
    pub mode: Mode,
}

/// What to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub follow: BTreeMap<(Eid, Family), Classes>,
    pub conflicts: Vec<ModeConflict>,
}

/// The plan for the node `me` that shares `shared`.
///
/// Each live, connected member that shares a family is followed for its local writes. If a live member
/// cannot be reached from here, every neighbour that shares a family with it is followed for everything:
/// one of them can reach it. The cluster's books are shared by every member and not gossiped as shared.
pub fn plan(me: Eid, shared: &Shared, members: &[Member]) -> Plan {
    let mut plan = Plan::default();
    let books = Family::books();
    let others = || members.iter().filter(|member| member.eid != me && member.live);
    for (family, mode) in shared {
        let theirs = |member: &Member| match member.families.get(family) {
            None if *family == books => Some(Mode::Global),
            theirs => theirs.copied(),
        };
        let sharing = || others().filter_map(|member| Some((member, theirs(member)?)));
        plan.conflicts.extend(sharing().filter(|(_, theirs)| theirs != mode).map(|(member, mode)| ModeConflict {
            family: family.clone(),
            member: member.eid,
            mode,
        }));
        let peers = || sharing().filter(|(_, theirs)| theirs == mode).map(|(member, _)| member);
        let reached = peers().all(|member| member.connected) || mutant!(DetourForgotten);
        let classes = if reached { Classes::LOCAL } else { Classes::ALL };
        for member in peers().filter(|member| member.connected) {
            plan.follow.insert((member.eid, family.clone()), classes);
        }
    }
    plan
}

/// The modes of live members by family, as [`Input::Elsewhere`](super::replica::Input::Elsewhere) wants them.
pub fn modes_elsewhere(members: &[Member]) -> BTreeMap<Family, Vec<(Eid, Mode)>> {
    let mut modes: BTreeMap<Family, Vec<(Eid, Mode)>> = BTreeMap::new();
    for member in members.iter().filter(|member| member.live) {
        for (family, mode) in &member.families {
            modes.entry(family.clone()).or_default().push((member.eid, *mode));
        }
    }
    modes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eid(last: u8) -> Eid {
        Eid::new([2, 0, 0, 0, 0, last])
    }

    fn shared(families: &[(&str, Mode)]) -> Shared {
        families.iter().map(|(name, mode)| (Family::new(name).expect("a family"), *mode)).collect()
    }

    fn member(last: u8, families: &[(&str, Mode)]) -> Member {
        Member {
            eid: eid(last),
            run: Run(u64::from(last)),
            site: "default".into(),
            address: format!("127.0.0.1:{last}"),
            protocol_version: 1,
            version: "0".into(),
            families: shared(families),
            roots: BTreeMap::new(),
            head: 0,
            live: true,
            connected: true,
        }
    }

    const FOO: &[(&str, Mode)] = &[("foo", Mode::Global)];

    #[test]
    fn everyone_follows_the_local_writes_of_everyone_who_shares() {
        let members = [member(1, FOO), member(2, FOO), member(3, &[("bar", Mode::Global)])];
        let plan = plan(eid(1), &shared(FOO), &members);
        assert_eq!(
            plan.follow.into_iter().collect::<Vec<_>>(),
            [((eid(2), Family::new("foo").expect("family")), Classes::LOCAL)]
        );
    }

    #[test]
    fn the_books_are_followed_at_everyone_whatever_else_they_share() {
        let books = Family::books();
        let plan = plan(eid(1), &[(books.clone(), Mode::Global)].into(), &[member(2, &[]), member(3, FOO)]);
        let sources: Vec<_> = plan.follow.into_keys().collect();
        assert_eq!(sources, [(eid(2), books.clone()), (eid(3), books)]);
        assert_eq!(plan.conflicts, []);
    }

    #[test]
    fn a_live_member_out_of_reach_is_reached_through_the_neighbours() {
        let unreachable = Member { connected: false, ..member(3, FOO) };
        let plan = plan(eid(1), &shared(FOO), &[member(2, FOO), unreachable]);
        assert_eq!(plan.follow.values().copied().collect::<Vec<_>>(), [Classes::ALL]);
    }

    #[test]
    fn a_dead_member_changes_nothing() {
        let dead = Member { live: false, connected: false, ..member(3, FOO) };
        let plan = plan(eid(1), &shared(FOO), &[member(2, FOO), dead]);
        assert_eq!(plan.follow.values().copied().collect::<Vec<_>>(), [Classes::LOCAL]);
    }

    #[test]
    fn another_mode_is_a_conflict_and_no_exchange() {
        let plan = plan(eid(1), &shared(FOO), &[member(2, &[("foo", Mode::Unique)])]);
        assert!(plan.follow.is_empty());
        assert_eq!(plan.conflicts.len(), 1);
    }
}
