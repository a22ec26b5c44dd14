//! From chitchat's state to members: one entry an EID, checked.
//!
//! Never here: waiting, sockets. Invariant: what one node gossips, however wrong, touches its own entry only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatId, Heartbeat};
use tokio::time::Instant;

use super::gossip::GossipConfig;
use super::gossip_values::{self, Read};
use super::{Mesh, Peers};
use crate::core::eid::Eid;
use crate::core::topology::Member;

/// What is looked at beside chitchat's own state.
pub(super) struct View<'a> {
    pub peers: &'a Peers,
    pub now: Instant,
}

/// What is remembered between looks.
pub(super) struct Members {
    mesh: Mesh,
    remember: Duration,
    confirm: Duration,
    /// The ids under which this process has gossiped.
    mine: BTreeSet<ChitchatId>,
    /// What was read of each id, at which version.
    read: BTreeMap<ChitchatId, (u64, Read)>,
    /// Others under our own EID: since when, and the last heartbeat.
    doubles: BTreeMap<ChitchatId, (Instant, Heartbeat)>,
    /// Where nodes are or were, and when that was last heard of.
    remembered: BTreeMap<Eid, (String, Instant)>,
    addresses: BTreeMap<Eid, String>,
    live: BTreeSet<Eid>,
}

impl Members {
    pub fn new(config: &GossipConfig, mesh: &Mesh) -> Self {
        Self {
            mesh: mesh.clone(),
            remember: Duration::from_millis(config.remember_ms),
            confirm: Duration::from_millis(config.duplicate_confirm_ms),
            mine: BTreeSet::new(),
            read: BTreeMap::new(),
            doubles: BTreeMap::new(),
            remembered: BTreeMap::new(),
            addresses: BTreeMap::new(),
            live: BTreeSet::new(),
        }
    }

    /// From now on this process gossips as `me`.
    pub fn begin(&mut self, me: ChitchatId) {
        self.mine.insert(me);
        self.read.clear();
    }

    /// The other members, by EID. Of several ids of one EID the live ones count, and of those the latest.
    pub fn look(&mut self, chitchat: &Chitchat, view: &View<'_>) -> Vec<Member> {
        let live: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
        let states = chitchat.node_states();
        self.read.retain(|id, _| states.contains_key(id));
        self.doubles.retain(|id, _| states.contains_key(id));
        let mut best = BTreeMap::<Eid, ((bool, u64), Member)>::new();
        for (id, state) in states {
            let Ok(eid) = id.node_id.parse::<Eid>() else {
                self.ignore_id(id);
                continue;
            };
            let live = live.contains(id);
            if eid == self.mesh.eid() {
                self.look_at_double(id, live, state.heartbeat(), view.now);
                continue;
            }
            let Some(member) = self.read(id, eid, state) else { continue };
            let (rank, connected) = ((live, id.generation_id), view.peers.contains_key(&eid));
            if best.get(&eid).is_none_or(|(other, _)| *other < rank) {
                best.insert(eid, (rank, Member { live, connected, ..member }));
            }
        }
        let members: Vec<Member> = best.into_values().map(|(_, member)| member).collect();
        self.remember(&members, view.now);
        members
    }

    /// Addresses to dial: those of members, and for a while those of forgotten ones. Else two halves that were
    /// apart for longer than chitchat remembers would never meet again.
    pub fn addresses(&self) -> &BTreeMap<Eid, String> {
        &self.addresses
    }

    /// Peers that are connected but not live by gossip: a word to them, and both sides hear of each other.
    pub fn unheard<'a>(&'a self, peers: &'a Peers) -> impl Iterator<Item = SocketAddr> + 'a {
        peers.iter().filter(|(eid, _)| !self.live.contains(eid)).map(|(_, peer)| peer.gossip_address)
    }

    fn read(&mut self, id: &ChitchatId, eid: Eid, state: &chitchat::NodeState) -> Option<Member> {
        let version = state.max_version();
        if let Some((read_at, read)) = self.read.get(id)
            && *read_at == version
        {
            return read.member.clone();
        }
        let read = gossip_values::read(eid, state.key_values());
        self.mesh.counters().gossip_values_ignored.add(read.ignored);
        if read.ignored > 0 {
            tracing::debug!(member = %eid, ignored = read.ignored, "ignored gossiped values that make no sense");
        }
        self.read.insert(id.clone(), (version, read.clone()));
        read.member
    }

    fn ignore_id(&mut self, id: &ChitchatId) {
        if self.read.insert(id.clone(), (0, Read::default())).is_none() {
            self.mesh.counters().gossip_values_ignored.add(1);
            tracing::debug!(id = ?id, "ignored a gossiping node whose name is no EID");
        }
    }

    /// A former run of this node may be seen live for some seconds; its heartbeat does not go on.
    fn look_at_double(&mut self, id: &ChitchatId, live: bool, heartbeat: Heartbeat, now: Instant) {
        if self.mine.contains(id) {
            return;
        }
        let (since, last) = self.doubles.entry(id.clone()).or_insert((now, heartbeat));
        if live && heartbeat > *last && now >= *since + self.confirm {
            self.mesh.report_duplicate_eid();
        }
        *last = heartbeat;
    }

    fn remember(&mut self, members: &[Member], now: Instant) {
        self.live = members.iter().filter(|member| member.live).map(|member| member.eid).collect();
        let max = self.mesh.config().peers_max;
        for member in members {
            if self.remembered.len() >= max && !self.remembered.contains_key(&member.eid) {
                continue;
            }
            self.remembered.insert(member.eid, (member.address.clone(), now));
        }
        let hold = self.remember;
        self.remembered.retain(|_, (_, heard)| now < *heard + hold);
        self.addresses = self.remembered.iter().map(|(eid, (address, _))| (*eid, address.clone())).collect();
    }
}
