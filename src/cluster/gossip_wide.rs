//! The ring of sites: one node of each site speaks for it there, and tells its own site what it hears.
//!
//! Never here: who speaks (that is `core::topology::rings`), what is done with what is told. Invariants: a speaker is
//! heard on its own site only; one that another of its site holds for dead is not heard at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatHandle, ChitchatId, spawn_chitchat};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::gossip::{Gossip, set_values};
use super::gossip_far::ToldRoots;
use super::gossip_transport::MeshTransport;
use super::gossip_values::{self, Read};
use super::members::Reader;
use super::{Mesh, Peers, Ring};
use crate::core::eid::Eid;
use crate::core::path::Family;
use crate::core::sketch::Root;
use crate::core::topology::{Member, rank, rings};

/// How long chitchat gets to end when this node speaks for its site no more.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the two rings of a node tell each other.
#[derive(Default)]
pub(super) struct Wide {
    /// Whether this node speaks for its site.
    pub speaks: watch::Sender<bool>,
    /// The nodes of other sites, as their speakers tell of them. Empty while this node does not speak.
    pub told: watch::Sender<Arc<Vec<Member>>>,
}

impl Gossip {
    /// Is in the ring of sites whenever this node speaks for its own.
    pub(super) async fn speak(self, transport: MeshTransport) {
        let config = &self.0.config;
        let mut speaks = self.0.wide.speaks.subscribe();
        let mut generation = config.generation;
        let (min, max) = (config.restart_min_ms, config.restart_max_ms);
        let mut backoff_ms = min;
        loop {
            transport.state().set_deaf(true);
            self.0.wide.told.send_replace(Arc::default());
            if speaks.wait_for(|speaks| *speaks).await.is_err() {
                return;
            }
            transport.state().set_deaf(false);
            // Each stay in the ring counts for newer than the one before.
            generation += 1;
            let Some(fault) = self.stay(&transport, generation).await else {
                backoff_ms = min;
                continue;
            };
            self.0.mesh.counters().gossip_restarts.add(1);
            tracing::error!("the ring of sites ended and is joined again: {fault}");
            tokio::time::sleep(Duration::from_millis(backoff_ms)).await;
            backoff_ms = (backoff_ms * 2).min(max);
        }
    }

    /// One stay in the ring; returns why it ended, or none if another speaks now.
    async fn stay(&self, transport: &MeshTransport, generation: u64) -> Option<String> {
        let config = self.chitchat_config(Ring::Wide, generation);
        let values = self.values(&self.0.own.borrow()).into_iter().collect();
        let handle = match spawn_chitchat(config, values, transport).await {
            Ok(handle) => handle,
            Err(error) => return Some(format!("it did not start: {error:#}")),
        };
        tracing::info!(site = self.0.mesh.config().site, "this node speaks for its site");
        let died = handle.termination_watcher();
        tokio::select! {
            ended = died => Some(ended.map_or_else(|error| format!("{error:#}"), |()| "it stopped by itself".into())),
            () = self.attend_wide(&handle) => {
                let _ = tokio::time::timeout(FAREWELL, handle.shutdown()).await;
                tracing::info!("another node speaks for the site");
                None
            }
        }
    }

    /// Tells and hears until another node of the site speaks.
    async fn attend_wide(&self, handle: &ChitchatHandle) {
        let mut live = handle.chitchat().lock().await.live_nodes_watcher();
        let (mut own, mut members) = (self.0.own.subscribe(), self.0.members.subscribe());
        let mut speaks = self.0.wide.speaks.subscribe();
        let mut tick = tokio::time::interval(Duration::from_millis(self.0.config.wide_interval_ms));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reader = Reader::new(&self.0.mesh);
        let (mut until, mut roots) = (None::<Instant>, ToldRoots::default());
        loop {
            let greet = tokio::select! {
                Ok(()) = live.changed() => false,
                Ok(()) = own.changed() => false,
                Ok(()) = members.changed() => false,
                Ok(()) = speaks.changed() => false,
                _ = tick.tick() => true,
            };
            own.borrow_and_update();
            members.borrow_and_update();
            let linger = Duration::from_millis(self.0.config.linger_ms);
            until = if *speaks.borrow_and_update() { None } else { until.or(Some(Instant::now() + linger)) };
            if until.is_some_and(|until| Instant::now() >= until) {
                return;
            }
            roots.refresh(Instant::now(), || self.roots_of_relays());
            let values = self.wide_values(&roots);
            handle.with_chitchat(|chitchat| set_values(chitchat.self_node_state(), &values)).await;
            let heard = handle.with_chitchat(|chitchat| look(chitchat, &mut reader, &self.0.mesh)).await;
            if greet {
                let peers = self.0.mesh.peers();
                let peers = peers.borrow().clone();
                let to_greet = self.to_greet(&heard, &peers);
                to_greet.into_iter().for_each(|address| _ = handle.gossip(address));
            }
            let told = Arc::new(tell(heard));
            self.0.wide.told.send_if_modified(|last| {
                *last != told && {
                    *last = told.clone();
                    true
                }
            });
            tokio::time::sleep(Duration::from_millis(self.0.config.members_gap_ms)).await;
        }
    }

    /// What this node says of itself, and of the others of its site.
    fn wide_values(&self, roots: &ToldRoots) -> BTreeMap<String, String> {
        let mut values = self.values(&self.0.own.borrow());
        let members = self.0.members.borrow();
        let mates = members.iter().filter(|member| member.site == self.0.mesh.config().site);
        let max_bytes = self.0.config.families_max_bytes;
        values.extend(mates.map(|mate| gossip_values::claim(mate, roots.of(mate.eid), max_bytes)));
        values
    }

    /// What the relays of this site have of the families that they relay: other sites compare with those that they
    /// follow.
    fn roots_of_relays(&self) -> BTreeMap<Eid, BTreeMap<Family, Root>> {
        let members = self.0.members.borrow();
        let (me, own) = (self.0.mesh.eid(), self.0.own.borrow());
        let mates = || members.iter().filter(|member| member.live && member.site == own.site);
        let mut relays = BTreeMap::<&Family, Eid>::new();
        for (eid, family) in mates()
            .flat_map(|mate| mate.roots.keys().map(|family| (mate.eid, family)))
            .chain(own.roots.keys().map(|family| (me, family)))
        {
            let relay = relays.entry(family).or_insert(eid);
            if rank(family, eid) > rank(family, *relay) {
                *relay = eid;
            }
        }
        let of = |mate: &Member| {
            let relayed = mate.roots.iter().filter(|(family, _)| relays.get(family) == Some(&mate.eid));
            (mate.eid, relayed.map(|(family, root)| (family.clone(), *root)).collect())
        };
        mates().map(of).collect()
    }

    /// Connected nodes that may speak for their site, and are not heard: those that should, and all of a site of which
    /// nothing is heard.
    fn to_greet(&self, heard: &[Speaker], peers: &Peers) -> Vec<SocketAddr> {
        let here: BTreeSet<Eid> = heard.iter().filter(|of| of.member.live).map(|of| of.member.eid).collect();
        let members = self.0.members.borrow();
        let mut sites = BTreeMap::<&str, Vec<Eid>>::new();
        for member in members.iter().filter(|member| member.live) {
            sites.entry(&member.site).or_default().push(member.eid);
        }
        let may_speak =
            |eid: Eid, site: &str| sites.get(site).is_none_or(|live| rings::speaker(live.iter().copied()) == Some(eid));
        let own_site = &self.0.mesh.config().site;
        let greeted = peers.iter().filter(|(eid, peer)| peer.site != *own_site && !here.contains(*eid));
        greeted.filter(|(eid, peer)| may_speak(**eid, &peer.site)).map(|(_, peer)| peer.gossip_address).collect()
    }
}

/// A node in the ring of sites, and what it tells of its own.
#[derive(Clone, Debug)]
struct Speaker {
    member: Member,
    mates: Vec<Member>,
}

/// The others in the ring, live and dead. Of several stays of one node the live ones count, and of those the latest.
fn look(chitchat: &Chitchat, reader: &mut Reader, mesh: &Mesh) -> Vec<Speaker> {
    let live: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
    let states = chitchat.node_states();
    reader.keep_only(states);
    let mut best = BTreeMap::<Eid, ((bool, u64), Speaker)>::new();
    for (id, state) in states {
        let Some(eid) = reader.eid(id).filter(|eid| *eid != mesh.eid()) else { continue };
        let rank = (live.contains(id), id.generation_id);
        let Read { member: Some(member), claims, .. } = reader.read(id, eid, state) else { continue };
        if member.site == mesh.config().site || best.get(&eid).is_some_and(|(other, _)| *other >= rank) {
            continue;
        }
        let mates = claims.iter().filter(|mate| mate.site == member.site && mate.eid != eid).cloned().collect();
        let speaker = Speaker { member: Member { live: rank.0, ..member.clone() }, mates };
        best.insert(eid, (rank, speaker));
    }
    best.into_values().map(|(_, speaker)| speaker).collect()
}

/// What the live speakers tell, those first that should speak. One that another holds for dead, and that does not hold
/// that one for dead in turn, has died a moment ago; where both do, their site has fallen apart, and each tells of its part.
fn tell(mut heard: Vec<Speaker>) -> Vec<Member> {
    heard.retain(|speaker| speaker.member.live);
    let holds_for_dead = |who: &Speaker, whom: Eid| who.mates.iter().any(|mate| mate.eid == whom && !mate.live);
    let died = |speaker: &Speaker| {
        let eid = speaker.member.eid;
        heard.iter().any(|other| holds_for_dead(other, eid) && !holds_for_dead(speaker, other.member.eid))
    };
    let died: BTreeSet<Eid> = heard.iter().filter(|speaker| died(speaker)).map(|speaker| speaker.member.eid).collect();
    let mut order: Vec<Eid> = heard.iter().map(|speaker| speaker.member.eid).collect();
    rings::by_rank(&mut order);
    heard.retain(|speaker| !died.contains(&speaker.member.eid));
    heard.sort_by_key(|speaker| order.iter().position(|eid| *eid == speaker.member.eid));
    let (mut told, mut mates) = (Vec::new(), Vec::new());
    for Speaker { member, mates: of } in heard {
        told.push(Member { head: 0, ..member });
        mates.extend(of);
    }
    let (live, dead): (Vec<Member>, Vec<Member>) = mates.into_iter().partition(|mate| mate.live);
    told.into_iter().chain(live).chain(dead).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::storage::Run;

    fn eid(last: u8) -> Eid {
        Eid::new([2, 0, 0, 0, 0, last])
    }

    fn member(last: u8, live: bool) -> Member {
        Member {
            eid: eid(last),
            run: Run(1),
            site: "far".into(),
            address: "far.example:7480".into(),
            protocol_version: 1,
            version: "1".into(),
            families: Arc::default(),
            roots: BTreeMap::new(),
            head: 5,
            unreached: BTreeSet::new(),
            settled: true,
            live,
            connected: false,
        }
    }

    fn speaker(last: u8, live: bool, mates: &[(u8, bool)]) -> Speaker {
        Speaker { member: member(last, live), mates: mates.iter().map(|(last, live)| member(*last, *live)).collect() }
    }

    /// Whom the first claim says to live, and whom to be dead.
    fn told(heard: Vec<Speaker>) -> (Vec<Eid>, Vec<Eid>) {
        let mut first = BTreeMap::new();
        for member in tell(heard) {
            first.entry(member.eid).or_insert(member.live);
        }
        let of = |live: bool| first.iter().filter(|(_, is)| **is == live).map(|(eid, _)| *eid).collect();
        (of(true), of(false))
    }

    #[test]
    fn a_speaker_that_its_successor_holds_for_dead_is_not_heard() {
        let heard = vec![speaker(1, true, &[(2, true), (3, true)]), speaker(2, true, &[(1, false), (3, false)])];
        assert_eq!(told(heard), (vec![eid(2)], vec![eid(1), eid(3)]));
    }

    #[test]
    fn of_a_site_that_has_fallen_apart_both_speakers_are_heard() {
        let heard = vec![
            speaker(1, true, &[(2, false), (3, true), (4, false)]),
            speaker(2, true, &[(1, false), (3, false), (4, true)]),
        ];
        assert_eq!(told(heard), (vec![eid(1), eid(2), eid(3), eid(4)], vec![]));
    }

    #[test]
    fn a_speaker_that_is_dead_to_the_ring_tells_nothing() {
        assert_eq!(told(vec![speaker(1, false, &[(2, true)])]), (vec![], vec![]));
    }
}
