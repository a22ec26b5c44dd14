//! From chitchat's state to members: one entry an EID, checked.
//!
//! Never here: waiting, sockets. Invariant: what one node gossips of itself, however wrong, touches its own entry only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatId, Heartbeat};
use tokio::time::Instant;

use super::gossip_config::GossipConfig;
use super::gossip_far::Far;
use super::gossip_values::{self, Read};
use super::{Mesh, PeerInfo, Peers, Rings};
use crate::core::eid::Eid;
use crate::core::topology::{Member, rings};

/// Nodes of all sites whose addresses are remembered, where not all of them are connected.
const REMEMBERED_MAX: usize = 4_096;

/// What is looked at beside chitchat's own state.
pub(super) struct View<'a> {
    pub peers: &'a Peers,
    pub now: Instant,
}

/// What is read of the nodes of a ring, each anew only when it says something new.
pub(super) struct Reader {
    mesh: Mesh,
    read: BTreeMap<ChitchatId, (u64, Read)>,
}

impl Reader {
    pub fn new(mesh: &Mesh) -> Self {
        Self { mesh: mesh.clone(), read: BTreeMap::new() }
    }

    pub fn forget(&mut self) {
        self.read.clear();
    }

    pub fn keep_only(&mut self, states: &BTreeMap<ChitchatId, chitchat::NodeState>) {
        self.read.retain(|id, _| states.contains_key(id));
    }

    /// None if the name is no EID.
    pub fn eid(&mut self, id: &ChitchatId) -> Option<Eid> {
        let eid = id.node_id.parse().ok();
        if eid.is_none() && self.read.insert(id.clone(), (0, Read::default())).is_none() {
            self.mesh.counters().gossip_values_ignored.add(1);
            tracing::debug!(id = ?id, "ignored a gossiping node whose name is no EID");
        }
        eid
    }

    pub fn read(&mut self, id: &ChitchatId, eid: Eid, state: &chitchat::NodeState) -> &Read {
        let version = state.max_version();
        if self.read.get(id).is_none_or(|(read_at, _)| *read_at != version) {
            let read = gossip_values::read(eid, state.key_values());
            self.mesh.counters().gossip_values_ignored.add(read.ignored);
            if read.ignored > 0 {
                tracing::debug!(member = %eid, ignored = read.ignored, "ignored gossiped values that make no sense");
            }
            self.read.insert(id.clone(), (version, read));
        }
        &self.read[id].1
    }
}

/// What was seen in a ring.
#[derive(Default)]
pub(super) struct Seen {
    /// The other members, by EID.
    pub members: Vec<Member>,
    /// What live members tell of nodes of other sites, those first that would speak first.
    pub claims: Vec<Member>,
    /// Nodes of other sites that members met.
    pub met: BTreeMap<Eid, String>,
    /// How many nodes the ring holds, dead ones and former runs among them.
    pub states: usize,
}

/// What is remembered between looks.
pub(super) struct Members {
    mesh: Mesh,
    remember: Duration,
    confirm: Duration,
    /// The ids under which this process has gossiped.
    mine: BTreeSet<ChitchatId>,
    reader: Reader,
    /// The nodes of other sites, where they are not in this ring.
    pub far: Far,
    /// Since when this node ranks first of its site.
    first_since: Option<Instant>,
    /// Others under our own EID: since when, and the last heartbeat.
    doubles: BTreeMap<ChitchatId, (Instant, Heartbeat)>,
    /// Where nodes are or were, and when that was last heard of.
    remembered: BTreeMap<Eid, Remembered>,
    live: BTreeSet<Eid>,
}

struct Remembered {
    site: String,
    address: String,
    live: bool,
    heard: Instant,
}

impl Members {
    pub fn new(config: &GossipConfig, mesh: &Mesh) -> Self {
        Self {
            mesh: mesh.clone(),
            remember: Duration::from_millis(config.remember_ms),
            confirm: Duration::from_millis(config.duplicate_confirm_ms),
            mine: BTreeSet::new(),
            reader: Reader::new(mesh),
            first_since: None,
            far: Far::new(
                Duration::from_millis(config.claim_hold_ms),
                Duration::from_millis(config.dead_node_grace_ms),
            ),
            doubles: BTreeMap::new(),
            remembered: BTreeMap::new(),
            live: BTreeSet::new(),
        }
    }

    /// From now on this process gossips as `me`.
    pub fn begin(&mut self, me: ChitchatId) {
        self.mine.insert(me);
        self.reader.forget();
    }

    /// Of several ids of one EID the live ones count, and of those the latest. Where each site has a ring of its own,
    /// who says that it is of another site is none of this one.
    pub fn look(&mut self, chitchat: &Chitchat, view: &View<'_>) -> Seen {
        let live: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
        let states = chitchat.node_states();
        self.reader.keep_only(states);
        self.doubles.retain(|id, _| states.contains_key(id));
        let by_site = self.mesh.config().rings == Rings::BySite;
        let mut best = BTreeMap::<Eid, ((bool, u64), &ChitchatId)>::new();
        for (id, state) in states {
            let Some(eid) = self.reader.eid(id) else { continue };
            let live = live.contains(id);
            if eid == self.mesh.eid() {
                self.look_at_double(id, live, state.heartbeat(), view.now);
                continue;
            }
            let Some(member) = &self.reader.read(id, eid, state).member else { continue };
            let rank = (live, id.generation_id);
            if by_site && member.site != self.mesh.config().site {
                continue;
            }
            if best.get(&eid).is_none_or(|(other, _)| *other < rank) {
                best.insert(eid, (rank, id));
            }
        }
        let mut seen = Seen { states: states.len(), ..Seen::default() };
        for (eid, ((live, _), id)) in &best {
            let Read { member: Some(member), met, .. } = self.reader.read(id, *eid, &states[id]) else { continue };
            let connected = view.peers.contains_key(eid);
            seen.members.push(Member { live: *live, connected, ..member.clone() });
            if *live {
                seen.met.extend(met.clone());
            }
        }
        let mut speakers: Vec<Eid> = best.iter().filter(|(_, ((live, _), _))| *live).map(|(eid, _)| *eid).collect();
        rings::by_rank(&mut speakers);
        let (me, site) = (self.mesh.eid(), &self.mesh.config().site);
        for eid in speakers {
            let id = best[&eid].1;
            let claims = self.reader.read(id, eid, &states[id]).claims.iter();
            seen.claims.extend(claims.filter(|claim| claim.eid != me && claim.site != *site).cloned());
        }
        seen
    }

    /// For how long this node has ranked first of its site, if it does now.
    pub fn is_first_for(&mut self, first: bool, now: Instant) -> Option<Duration> {
        self.first_since = if first { self.first_since.or(Some(now)) } else { None };
        self.first_since.map(|since| now - since)
    }

    /// The nodes of other sites as members.
    pub fn far_members(&self, view: &View<'_>) -> impl Iterator<Item = Member> {
        let connected = |member: &Member| view.peers.contains_key(&member.eid);
        self.far.members().map(move |member| Member { connected: connected(member), ..member.clone() })
    }

    /// Addresses to dial: those of members, and for a while those of forgotten ones. Else two halves that were
    /// apart for longer than chitchat remembers would never meet again. Where each site has a ring of its own, not
    /// everyone is dialled.
    pub fn addresses(&self, needed: &BTreeSet<Eid>, speaks: bool) -> BTreeMap<Eid, String> {
        let config = self.mesh.config();
        let known = || {
            let known = |(eid, known): (&Eid, &Remembered)| (*eid, known.live);
            self.remembered.iter().map(known)
        };
        let dial = match config.rings {
            Rings::One => known().map(|(eid, _)| eid).collect(),
            Rings::BySite => {
                let known = known().map(|(eid, live)| rings::Known { eid, site: &self.remembered[&eid].site, live });
                rings::dial(&config.site, speaks, needed, known)
            }
        };
        dial.into_iter().map(|eid| (eid, self.remembered[&eid].address.clone())).collect()
    }

    /// Who may come and go though the ring is full.
    pub fn known(&self) -> BTreeSet<Eid> {
        self.remembered.keys().copied().collect()
    }

    /// Peers that are connected but not live by gossip: a word to them, and both sides hear of each other.
    pub fn unheard<'a>(&'a self, peers: &'a Peers) -> impl Iterator<Item = SocketAddr> + 'a {
        let config = self.mesh.config();
        let ours = move |peer: &PeerInfo| config.rings == Rings::One || peer.site == config.site;
        let unheard = peers.iter().filter(move |(eid, peer)| ours(peer) && !self.live.contains(eid));
        unheard.map(|(_, peer)| peer.gossip_address)
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

    /// All other members, those of other sites too.
    pub fn remember(&mut self, members: &[Member], now: Instant) {
        self.live = members.iter().filter(|member| member.live).map(|member| member.eid).collect();
        let max = match self.mesh.config().rings {
            Rings::One => self.mesh.config().peers_max,
            Rings::BySite => REMEMBERED_MAX,
        };
        self.remembered.values_mut().for_each(|known| known.live = false);
        for member in members {
            if self.remembered.len() >= max && !self.remembered.contains_key(&member.eid) {
                continue;
            }
            let (site, address) = (member.site.clone(), member.address.clone());
            self.remembered.insert(member.eid, Remembered { site, address, live: member.live, heard: now });
        }
        let hold = self.remember;
        self.remembered.retain(|_, known| now < known.heard + hold);
    }
}
