//! Who follows whom, in which scope: a pure function of what this node believes about the members.
//!
//! The follower names the scope; a source never filters by what it believes about roles. So a wrong or
//! outdated belief here costs a detour, a duplicate or a delay, never a record.
//!
//! Within a site everyone follows everyone's own writes. Between sites each family has one relay a site, which
//! follows one node of every other site for all that was written there; the rest of the site follows the
//! relay for what has crossed. Any node of a site will do as the source of its site, since each has all that was
//! written there: only the choice of the *follower* makes a relay one. What happens when links are cut is told
//! in `sites`.

mod patience;
mod probation;
mod rank;
pub mod rings;
mod sites;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::patience::{Loss, Losses, Patience};
pub use self::probation::Probation;
pub use self::rank::{RELAYS_PER_SITE_MAX, rank};
use self::sites::Look;
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
    /// Behind an [`Arc`], since a simulated cluster of a thousand nodes knows a million members.
    pub families: Arc<Shared>,
    /// The root of what it has of each family, the books included, as last gossiped.
    pub roots: BTreeMap<Family, Root>,
    /// The head of its change feed, as last gossiped.
    pub head: u64,
    /// Live members that it needs and has tried in vain to connect, as it gossips them.
    pub unreached: BTreeSet<Eid>,
    /// Whether it has been there for long enough to be relay before others, as it gossips itself.
    pub settled: bool,
    /// Whether the failure detector believes it alive.
    pub live: bool,
    /// Whether a connection to it stands.
    pub connected: bool,
}

/// What this node shares.
pub type Shared = BTreeMap<Family, Mode>;

/// The node that plans.
#[derive(Clone, Copy, Debug)]
pub struct Me<'a> {
    pub eid: Eid,
    pub site: &'a str,
    /// What it gossips of itself.
    pub settled: bool,
    /// Decommissioned members. One that still runs comes last as a relay: what was promised of a purge floor is not
    /// taken from it.
    pub decommissioned: &'a BTreeSet<Eid>,
}

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
    /// Members to which this node needs a connection, whether or not one stands.
    pub dial: BTreeSet<Eid>,
    /// Families that have members at other sites, and for which this node is its site's relay.
    pub relay_of: BTreeSet<Family>,
}

/// The plan for the node `me` that shares `shared`. `losses` says which connections it waits for in vain.
///
/// The cluster's books are shared by every member and not gossiped as shared.
pub fn plan(me: Me<'_>, shared: &Shared, members: &[Member], losses: &Losses) -> Plan {
    let mut plan = Plan::default();
    let books = Family::books();
    let others = || members.iter().filter(|member| member.eid != me.eid);
    for (family, mode) in shared {
        let theirs = |member: &Member| match member.families.get(family) {
            None if *family == books => Some(Mode::Global),
            theirs => theirs.copied(),
        };
        let mut peers = Vec::with_capacity(members.len());
        for member in others() {
            match theirs(member) {
                Some(theirs) if theirs == *mode => peers.push(member),
                Some(mode) if member.live => {
                    plan.conflicts.push(ModeConflict { family: family.clone(), member: member.eid, mode });
                }
                _ => {}
            }
        }
        let of_family = Look::new(me, family, peers.into_iter(), losses).plan();
        plan.dial.extend(of_family.dial);
        if of_family.relay {
            plan.relay_of.insert(family.clone());
        }
        plan.follow.extend(of_family.scopes.into_iter().map(|(source, classes)| ((source, family.clone()), classes)));
    }
    plan
}

/// The modes of live members by family, as [`Input::Elsewhere`](super::replica::Input::Elsewhere) wants them.
pub fn modes_elsewhere(members: &[Member]) -> BTreeMap<Family, Vec<(Eid, Mode)>> {
    let mut modes: BTreeMap<Family, Vec<(Eid, Mode)>> = BTreeMap::new();
    for member in members.iter().filter(|member| member.live) {
        for (family, mode) in member.families.iter() {
            modes.entry(family.clone()).or_default().push((member.eid, *mode));
        }
    }
    modes
}

#[cfg(test)]
mod model_test;
#[cfg(test)]
mod tests;
