//! The plan of one family.
//!
//! Where every link that is needed stands, it is this: all mates (members of the own site) for what they wrote
//! themselves; the relay (the first of the site by rank, of those that have settled) also for what has crossed; and if this node is the
//! relay, one node of each other site for all that was written there.
//!
//! Where a live member is out of reach, its records take another way. What makes this possible is that each
//! node gossips whom it cannot reach:
//!
//! * A missed *mate* is bridged: a mate that reaches it is asked for what it got from the site.
//! * A site whose members cannot reach each other falls into *fragments*, by what they gossip; each fragment is
//!   followed as if it were a site.
//! * A relay that reaches nobody of a fragment takes a *detour*: the relay of a third site that does reach it is
//!   asked for everything. Where no third site does, every node of the site tries, and the first by rank that
//!   reaches the fragment *carries* it for its site.
//! * Where all that is in vain, this node asks everyone it is connected to for everything.
//!
//! A node that died a moment ago, and is believed alive, looks the same for a while. That costs duplicates, so
//! patience with a connection should last longer than it takes membership to notice a death.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::rank::rank;
use super::{Loss, Losses, Me, Member};
use crate::core::eid::Eid;
use crate::core::path::Family;
use crate::core::record::Classes;

/// So many late nodes of a fragment, and all its nodes are tried at once.
const LATE_ENOUGH: usize = 2;

/// What one family asks for.
#[derive(Default)]
pub(super) struct OfFamily {
    pub scopes: BTreeMap<Eid, Classes>,
    pub dial: BTreeSet<Eid>,
    /// This node is the relay.
    pub relay: bool,
}

/// How this node stands with a live member.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Connected,
    /// Not yet connected, or not for a moment.
    Awaited,
    Late,
    Missed,
}

/// Who is asked in the name of a site.
#[derive(Clone, Copy)]
enum Role<'a> {
    Me,
    Mate(&'a Member),
}

/// Members that share the family with this node, in each site those first that would be its relay first.
pub(super) struct Look<'a> {
    losses: &'a Losses,
    mates: Vec<&'a Member>,
    /// How many mates rank above this node.
    place: usize,
    others: BTreeMap<&'a str, Vec<&'a Member>>,
    /// Another site is known to share the family, though perhaps nobody there is alive.
    many_sites: bool,
    out: OfFamily,
}

impl<'a> Look<'a> {
    pub fn new(me: Me<'a>, family: &Family, peers: impl Iterator<Item = &'a Member>, losses: &'a Losses) -> Self {
        let mut mates = Vec::new();
        let mut others = BTreeMap::<&str, Vec<&Member>>::new();
        let (mut many_sites, mut calm) = (false, losses.is_empty());
        for peer in peers {
            many_sites |= peer.site != me.site;
            calm &= peer.unreached.is_empty();
            match peer.live {
                true if peer.site == me.site => mates.push(peer),
                true => others.entry(&peer.site).or_default().push(peer),
                false => {}
            }
        }
        mates.sort_by_cached_key(|member| Reverse(place(me, family, member.settled, member.eid)));
        let own = place(me, family, me.settled, me.eid);
        let place_of_own = mates.iter().take_while(|mate| place(me, family, mate.settled, mate.eid) > own).count();
        // Where nobody is out of reach, only the relay has anything to do with other sites.
        if place_of_own > 0 && calm {
            others.clear();
        }
        for site in others.values_mut() {
            site.sort_by_cached_key(|member| Reverse(place(me, family, member.settled, member.eid)));
        }
        Self { losses, mates, place: place_of_own, others, many_sites, out: OfFamily::default() }
    }

    pub fn plan(mut self) -> OfFamily {
        for mate in self.mates.clone() {
            self.out.dial.insert(mate.eid);
            self.ask(mate, Classes::LOCAL);
        }
        let relay = self.relay();
        if self.many_sites {
            match relay {
                Role::Me => self.out.relay = true,
                Role::Mate(_) if mutant!(FarNotAsked) => {}
                Role::Mate(mate) => self.ask(mate, Classes::FAR),
            }
        }
        let sites: Vec<_> = self.others.values().cloned().collect();
        let mut in_vain = false;
        for fragment in sites.iter().flat_map(|site| fragments(site)) {
            in_vain |= !self.reach_fragment(relay, &fragment);
        }
        in_vain |= !self.bridge_mates(relay);
        if in_vain && !mutant!(DetourForgotten) {
            let everyone: Vec<_> = self.mates.iter().copied().chain(sites.into_iter().flatten()).collect();
            everyone.into_iter().for_each(|member| self.ask(member, Classes::ALL));
        }
        self.out
    }

    /// Adds to what a member is asked for, if it can be asked.
    fn ask(&mut self, member: &Member, classes: Classes) {
        if member.connected {
            let scope = self.out.scopes.entry(member.eid).or_insert(classes);
            *scope = *scope | classes;
        }
    }

    fn reach(&self, member: &Member) -> Reach {
        match self.losses.get(&member.eid) {
            _ if member.connected => Reach::Connected,
            None => Reach::Awaited,
            Some(Loss::Late) => Reach::Late,
            Some(Loss::Missed) => Reach::Missed,
        }
    }

    /// The first of the site that can be asked, or soon. Whoever ranks lower asks higher, so that what has
    /// crossed goes down the ranks and never in a circle.
    fn relay(&self) -> Role<'a> {
        let above = &self.mates[..self.place];
        let good = |mate: &&&Member| mutant!(StandbyForgotten) || is_near_at_hand(self.reach(mate));
        above.iter().find(good).map_or(Role::Me, |mate| Role::Mate(mate))
    }

    // ---- other sites ----------------------------------------------------------------------------

    /// What this node does so that a fragment's writes reach its site. False if nobody can help.
    fn reach_fragment(&mut self, relay: Role<'a>, fragment: &[&'a Member]) -> bool {
        let missed = self.misses(relay, fragment);
        let detour = if missed { self.detour(relay, fragment) } else { None };
        match (relay, missed, detour) {
            (Role::Me, false, _) => self.follow_fragment(fragment),
            (Role::Me, true, Some(third)) => {
                // Tried on, else nobody would notice that it can be reached again.
                self.follow_fragment(fragment);
                self.ask(third, Classes::ALL);
            }
            (Role::Mate(_), false, _) | (Role::Mate(_), true, Some(_)) => {}
            // As if it were not missed: it will be tried on.
            (Role::Me, true, None) if mutant!(CarrierForgotten) => self.follow_fragment(fragment),
            (_, true, None) => return self.carry_fragment(fragment),
        }
        true
    }

    /// Whether nobody of the fragment is in reach of `who`, as far as is known here.
    fn misses(&self, who: Role<'a>, fragment: &[&Member]) -> bool {
        let mut members = fragment.iter();
        match who {
            Role::Me => members.all(|member| self.reach(member) == Reach::Missed),
            Role::Mate(mate) => members.all(|member| mate.unreached.contains(&member.eid)),
        }
    }

    /// One node of the fragment, for all that was written there: the first that is connected, unless a better
    /// one is about to be.
    fn follow_fragment(&mut self, fragment: &[&'a Member]) {
        let mut late = 0;
        for member in fragment {
            self.out.dial.insert(member.eid);
            match self.reach(member) {
                Reach::Connected if mutant!(NearNotAsked) => return self.ask(member, Classes::LOCAL),
                Reach::Connected => return self.ask(member, Classes::LOCAL | Classes::NEAR),
                Reach::Awaited if late < LATE_ENOUGH => return,
                Reach::Awaited => {}
                Reach::Late | Reach::Missed => late += 1,
            }
        }
    }

    /// The relay of a third site that is in reach of `who` and does reach the fragment.
    fn detour(&self, who: Role<'a>, fragment: &[&Member]) -> Option<&'a Member> {
        if mutant!(DetourForgotten) {
            return None;
        }
        let site = &fragment[0].site;
        let reached = |third: &&Member| match who {
            Role::Me => third.connected,
            Role::Mate(mate) => !mate.unreached.contains(&third.eid),
        };
        let reaches = |third: &&Member| fragment.iter().any(|member| !third.unreached.contains(&member.eid));
        let mut thirds = self.others.iter().filter(|(of, _)| *of != site).map(|(_, site)| site[0]);
        thirds.find(|third| reached(third) && reaches(third))
    }

    /// Every node of the site tries; the first that may reach the fragment, if need be over a third site, does it,
    /// and the others follow that one for what has crossed.
    fn carry_fragment(&mut self, fragment: &[&'a Member]) -> bool {
        let thirds = self.others.values().map(|site| site[0].eid);
        self.out.dial.extend(fragment.iter().map(|member| member.eid).chain(thirds));
        let (above, below) = self.mates.split_at(self.place);
        let order = above.iter().map(|mate| Role::Mate(mate)).chain([Role::Me]);
        let order = order.chain(below.iter().map(|mate| Role::Mate(mate)));
        let at_hand = |role: &Role<'_>| match role {
            Role::Me => true,
            Role::Mate(mate) => is_near_at_hand(self.reach(mate)),
        };
        let can = |role: &Role<'a>| !self.misses(*role, fragment) || self.detour(*role, fragment).is_some();
        match order.filter(at_hand).find(can) {
            Some(Role::Mate(mate)) => self.ask(mate, Classes::FAR),
            Some(Role::Me) => match self.detour(Role::Me, fragment) {
                Some(third) if self.misses(Role::Me, fragment) => self.ask(third, Classes::ALL),
                _ => self.follow_fragment(fragment),
            },
            None => return false,
        }
        true
    }

    // ---- the own site ---------------------------------------------------------------------------

    /// What this node does about mates that it cannot reach. False if nobody can help.
    fn bridge_mates(&mut self, relay: Role<'a>) -> bool {
        let mut helped = true;
        for missed in self.mates.clone() {
            if self.reach(missed) != Reach::Missed || mutant!(BridgeForgotten) {
                continue;
            }
            let reaches = |mate: &&&Member| mate.connected && !mate.unreached.contains(&missed.eid);
            if let Some(bridge) = self.mates.iter().find(reaches).copied() {
                self.ask(bridge, Classes::NEAR);
                continue;
            }
            match (relay, self.detour(relay, &[missed])) {
                (Role::Me, Some(third)) => self.ask(third, Classes::ALL),
                // What the relay had from the missed mate before it was missed does not come by the detour again.
                (Role::Mate(mate), Some(_)) => self.ask(mate, Classes::NEAR),
                (_, None) => helped = false,
            }
        }
        helped
    }
}

/// By rank, but those who have just come back behind all others, and the decommissioned behind these.
fn place(me: Me<'_>, family: &Family, settled: bool, eid: Eid) -> (bool, bool, (u64, Eid)) {
    (!me.decommissioned.contains(&eid), settled, rank(family, eid))
}

fn is_near_at_hand(reach: Reach) -> bool {
    matches!(reach, Reach::Connected | Reach::Awaited)
}

/// The parts of a site whose members reach each other, if need be one over another, by what they gossip.
fn fragments<'a>(site: &[&'a Member]) -> Vec<Vec<&'a Member>> {
    let parted = |a: &Member, b: &Member| a.unreached.contains(&b.eid) || b.unreached.contains(&a.eid);
    let whole = site.iter().all(|member| member.unreached.is_empty());
    if whole || mutant!(FragmentsIgnored) {
        return vec![site.to_vec()];
    }
    let mut fragments = Vec::new();
    let mut left = site.to_vec();
    while !left.is_empty() {
        let mut fragment = vec![left.remove(0)];
        let mut at = 0;
        while at < fragment.len() {
            let from = fragment[at];
            let (near, apart) = left.into_iter().partition::<Vec<_>, _>(|member| !parted(from, member));
            fragment.extend(near);
            left = apart;
            at += 1;
        }
        // In the order of their ranks again.
        fragments.push(site.iter().copied().filter(|member| fragment.iter().any(|of| of.eid == member.eid)).collect());
    }
    fragments
}
