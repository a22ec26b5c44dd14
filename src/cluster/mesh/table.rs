//! The connections that stand, at most one to each peer, and which of two stays.
//!
//! Never here: waiting. Invariant: of two connections between the same two runs, both sides keep the same
//! one, in whatever order they see them; see [`newer_stays`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Ring;
use crate::core::eid::Eid;
use crate::core::storage::Run;
use crate::core::trust::Grants;

/// A peer to which a connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    pub run: Run,
    pub site: String,
    /// `host:port` under which it says it is reached.
    pub address: String,
    /// The same, resolved; the name by which gossip knows it.
    pub gossip_address: SocketAddr,
    /// Where its packets come from.
    pub remote: SocketAddr,
    /// The program's version, for people.
    pub version: String,
    /// The version of the protocol that is spoken with it.
    pub protocol: u8,
    /// What it is trusted for.
    pub grants: Grants,
    /// Whether this side dialled.
    pub dialled: bool,
    /// The connection's name, the same on both sides.
    pub link: u64,
    pub connected_since: Instant,
}

/// The peers by EID, as published.
pub type Peers = Arc<BTreeMap<Eid, PeerInfo>>;

/// What decides which of two connections to a peer stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub run: Run,
    pub dialled: bool,
}

/// Whether a connection whose hello comes later displaces the one that stands. A new run means that the
/// peer restarted; a second connection dialled by the same side means that this side has lost the first;
/// else two dials crossed, and the one dialled by the smaller EID stays.
pub(super) fn newer_stays(me: Eid, peer: Eid, standing: Claim, newer: Claim) -> bool {
    newer.run != standing.run || newer.dialled == standing.dialled || newer.dialled == (me < peer)
}

/// A connection that stands.
pub(super) struct Link {
    pub connection: quinn::Connection,
    pub info: PeerInfo,
    pub gossip: mpsc::Sender<(Ring, Vec<u8>)>,
}

/// What became of a connection that asked to be admitted.
pub(super) enum Admission {
    Admitted,
    /// The connection returned here gave way and is to be closed.
    Replaced(quinn::Connection),
    /// Another connection to this peer stays.
    Duplicate,
    TooMany,
}

pub(super) struct Table {
    me: Eid,
    peers_max: usize,
    links: BTreeMap<Eid, Link>,
    by_address: BTreeMap<SocketAddr, Eid>,
    /// Peers with which a connection of our own dialling exchanges hellos.
    greeting: BTreeSet<Eid>,
    peers: watch::Sender<Peers>,
}

impl Table {
    pub fn new(me: Eid, peers_max: usize) -> Self {
        Self {
            me,
            peers_max,
            links: BTreeMap::new(),
            by_address: BTreeMap::new(),
            greeting: BTreeSet::new(),
            peers: watch::Sender::default(),
        }
    }

    pub fn peers(&self) -> watch::Receiver<Peers> {
        self.peers.subscribe()
    }

    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    pub fn all(&self) -> impl Iterator<Item = (Eid, &Link)> {
        self.links.iter().map(|(peer, link)| (*peer, link))
    }

    pub fn link(&self, peer: Eid) -> Option<&Link> {
        self.links.get(&peer)
    }

    pub fn link_at(&self, address: SocketAddr) -> Option<&Link> {
        self.links.get(self.by_address.get(&address)?)
    }

    /// Of our own dials to one peer only one at a time may greet, and none while an earlier one stands.
    /// So a second greeting from the same dialler means that it let go of the first.
    pub fn begin_greeting(&mut self, peer: Eid) -> bool {
        let dialled = self.links.get(&peer).is_some_and(|link| link.info.dialled);
        !dialled && self.greeting.insert(peer)
    }

    pub fn end_greeting(&mut self, peer: Eid) {
        self.greeting.remove(&peer);
    }

    pub fn admit(&mut self, peer: Eid, mut link: Link) -> Admission {
        let newer = Claim { run: link.info.run, dialled: link.info.dialled };
        let standing = self.links.get(&peer).map(|old| Claim { run: old.info.run, dialled: old.info.dialled });
        match standing {
            None if self.links.len() >= self.peers_max => return Admission::TooMany,
            Some(standing) if !newer_stays(self.me, peer, standing, newer) => return Admission::Duplicate,
            _ => {}
        }
        let old = self.forget(peer);
        if self.by_address.get(&link.info.gossip_address).is_some_and(|holder| *holder != peer) {
            link.info.gossip_address = link.info.remote;
        }
        for address in [link.info.gossip_address, link.info.remote] {
            self.by_address.entry(address).or_insert(peer);
        }
        self.links.insert(peer, link);
        self.publish();
        old.map_or(Admission::Admitted, |old| Admission::Replaced(old.connection))
    }

    /// Forgets the connection named `link`, unless another has taken its place.
    pub fn remove(&mut self, peer: Eid, connection: &quinn::Connection) {
        let id = connection.stable_id();
        if self.links.get(&peer).is_some_and(|standing| standing.connection.stable_id() == id) {
            self.forget(peer);
            self.publish();
        }
    }

    fn forget(&mut self, peer: Eid) -> Option<Link> {
        self.by_address.retain(|_, holder| *holder != peer);
        self.links.remove(&peer)
    }

    fn publish(&self) {
        let peers = self.links.iter().map(|(peer, link)| (*peer, link.info.clone())).collect();
        self.peers.send_replace(Arc::new(peers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Eid = Eid::new([2, 0, 0, 0, 0, 1]);
    const GREAT: Eid = Eid::new([2, 0, 0, 0, 0, 2]);

    fn claim(run: u64, dialled: bool) -> Claim {
        Claim { run: Run(run), dialled }
    }

    /// What one side keeps of two connections that it sees in this order.
    fn kept(me: Eid, peer: Eid, first: Claim, second: Claim) -> Claim {
        if newer_stays(me, peer, first, second) { second } else { first }
    }

    #[test]
    fn when_dials_cross_both_sides_keep_the_one_of_the_smaller_eid_in_any_order() {
        for small_sees_its_own_first in [true, false] {
            for great_sees_its_own_first in [true, false] {
                let order = |own_first| (claim(9, own_first), claim(9, !own_first));
                let (first, second) = order(small_sees_its_own_first);
                assert!(kept(SMALL, GREAT, first, second).dialled);
                let (first, second) = order(great_sees_its_own_first);
                assert!(!kept(GREAT, SMALL, first, second).dialled);
            }
        }
    }

    #[test]
    fn a_second_dial_of_the_same_side_displaces_the_first() {
        for (me, peer) in [(SMALL, GREAT), (GREAT, SMALL)] {
            for dialled in [true, false] {
                assert!(newer_stays(me, peer, claim(1, dialled), claim(1, dialled)));
            }
        }
    }

    #[test]
    fn a_restarted_peer_displaces_its_former_self_whoever_dialled() {
        for (me, peer) in [(SMALL, GREAT), (GREAT, SMALL)] {
            for (before, after) in [(true, true), (true, false), (false, true), (false, false)] {
                assert!(newer_stays(me, peer, claim(1, before), claim(2, after)));
            }
        }
    }
}
