//! Membership: who is alive, where, and what each node says of itself; by chitchat, over the mesh.
//!
//! Never here: records, and what follows from membership (that is `core::topology`). Invariants: an end of
//! chitchat's task, by panic or otherwise, is survived; what is published is what was read, checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, ProtocolVersion, spawn_chitchat};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gossip_config::GossipConfig;
use super::gossip_far::{Far, ToldRoots};
use super::gossip_transport::{MeshTransport, TransportState, decode_all};
use super::gossip_values::{self, Own};
use super::gossip_wide::Wide;
use super::members::{Members, Seen, View};
use super::{GossipMessage, Mesh, Peers, Ring, Rings, sleep_until};
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::path::Family;
use crate::core::sketch::Root;
use crate::core::topology::{Member, rings};

/// How long chitchat gets to end when it is told to.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why membership did not start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    #[error("the mesh's gossip was taken before; start membership once for each mesh")]
    Taken,
}

/// A handle to the node's membership; clones are the same one.
#[derive(Clone)]
pub struct Gossip(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub config: GossipConfig,
    pub mesh: Mesh,
    pub own: watch::Sender<Own>,
    pub members: watch::Sender<Arc<Vec<Member>>>,
    /// Members to which a connection is needed.
    needed: watch::Sender<BTreeSet<Eid>>,
    pub wide: Wide,
    #[cfg(test)]
    kill: tokio::sync::Notify,
}

impl Gossip {
    /// Joins the cluster by the mesh's seeds.
    pub fn start(
        config: GossipConfig,
        mesh: Mesh,
        tracker: &TaskTracker,
        cancel: CancellationToken,
    ) -> Result<Gossip, GossipError> {
        let heard = [Ring::Near, Ring::Wide].map(|ring| mesh.take_gossip(ring));
        let [Some(near), Some(wide)] = heard else { return Err(GossipError::Taken) };
        let by_site = mesh.config().rings == Rings::BySite;
        let own = Own {
            site: mesh.config().site.clone(),
            address: mesh.advertise().into(),
            version: mesh.config().version.clone(),
            run: mesh.run(),
            head: 0,
            families: BTreeMap::new(),
            roots: BTreeMap::new(),
            unreached: BTreeSet::new(),
            settled: false,
            met: BTreeMap::new(),
        };
        let gossip = Gossip(Arc::new(Shared {
            config,
            mesh,
            own: watch::Sender::new(own),
            members: watch::Sender::default(),
            needed: watch::Sender::default(),
            wide: Wide::default(),
            #[cfg(test)]
            kill: tokio::sync::Notify::new(),
        }));
        let transport = gossip.transport(Ring::Near, near, tracker, &cancel);
        tracker.spawn(gossip.clone().supervise(transport, cancel.clone()));
        if by_site {
            let transport = gossip.transport(Ring::Wide, wide, tracker, &cancel);
            let speaking = gossip.clone().speak(transport);
            tracker.spawn(async move { cancel.run_until_cancelled(speaking).await });
        }
        Ok(gossip)
    }

    fn transport(
        &self,
        ring: Ring,
        heard: mpsc::Receiver<GossipMessage>,
        tracker: &TaskTracker,
        cancel: &CancellationToken,
    ) -> MeshTransport {
        let (transport, decoded) = MeshTransport::new(self.0.mesh.clone(), ring, self.0.config.decoded_queue_max);
        let state = transport.state().clone();
        tracker.spawn(self.clone().decode(heard, decoded, state, tracker.clone(), cancel.clone()));
        transport
    }

    /// What this node shares, whole each time.
    pub fn set_families(&self, families: &BTreeMap<Family, Mode>) {
        self.0.own.send_if_modified(|own| {
            let changed = own.families != *families;
            if changed {
                own.families.clone_from(families);
            }
            changed
        });
    }

    /// The root of each family that this node exchanges.
    pub fn set_roots(&self, roots: BTreeMap<Family, Root>) {
        self.0.own.send_if_modified(|own| {
            let changed = own.roots != roots;
            own.roots = roots;
            changed
        });
    }

    /// The head of this node's change feed.
    pub fn set_head(&self, head: u64) {
        self.0.own.send_if_modified(|own| std::mem::replace(&mut own.head, head) != head);
    }

    /// Live members that this node needs and cannot connect.
    pub fn set_unreached(&self, unreached: BTreeSet<Eid>) {
        self.0.own.send_if_modified(|own| {
            let changed = own.unreached != unreached;
            own.unreached = unreached;
            changed
        });
    }

    /// Whether this node has been there for long enough to be relay before others.
    pub fn set_settled(&self, settled: bool) {
        self.0.own.send_if_modified(|own| std::mem::replace(&mut own.settled, settled) != settled);
    }

    /// Members to which a connection is needed, where not everyone is connected anyway.
    pub fn set_needed(&self, needed: BTreeSet<Eid>) {
        self.0.needed.send_if_modified(|last| std::mem::replace(last, needed.clone()) != needed);
    }

    /// All other nodes that are known, live and dead, by EID.
    pub fn members(&self) -> watch::Receiver<Arc<Vec<Member>>> {
        self.0.members.subscribe()
    }

    /// Decodes in a task of its own, so that a message that makes chitchat's decoder panic costs itself only.
    async fn decode(
        self,
        heard: mpsc::Receiver<GossipMessage>,
        decoded: mpsc::Sender<chitchat::transport::RecvOutcome>,
        state: Arc<TransportState>,
        tracker: TaskTracker,
        cancel: CancellationToken,
    ) {
        let heard = Arc::new(Mutex::new(heard));
        while !cancel.is_cancelled() {
            let (token, task) =
                (cancel.clone(), decode_all(self.0.mesh.clone(), heard.clone(), decoded.clone(), state.clone()));
            let ended = tracker.spawn(async move { token.run_until_cancelled(task).await }).await;
            let Err(panic) = ended else { return };
            self.0.mesh.counters().refuse("gossip_payload");
            tracing::error!("a gossip message made the decoder panic: {panic}");
        }
    }

    /// Starts chitchat, and starts it again whenever it ends without having been told to.
    async fn supervise(self, transport: MeshTransport, cancel: CancellationToken) {
        let config = &self.0.config;
        let mut members = Members::new(config, &self.0.mesh);
        let (min, max) = (Duration::from_millis(config.restart_min_ms), Duration::from_millis(config.restart_max_ms));
        let mut backoff = min;
        let mut generation = config.generation;
        loop {
            let began = Instant::now();
            let Some(ended) = cancel.run_until_cancelled(self.session(&transport, &mut members, generation)).await
            else {
                return;
            };
            self.0.mesh.counters().gossip_restarts.add(1);
            tracing::error!(generation, "membership ended and is started again: {ended}");
            // A former generation's values would count for newer than those of a fresh start.
            generation += 1;
            backoff = if began.elapsed() > max { min } else { (backoff * 2).min(max) };
            if cancel.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
                return;
            }
        }
    }

    /// One life of chitchat; returns why it ended. Dropped on cancel, and with the handle chitchat ends.
    async fn session(&self, transport: &MeshTransport, members: &mut Members, generation: u64) -> String {
        let mut own = self.0.own.subscribe();
        let values = self.values(&own.borrow_and_update());
        let config = self.chitchat_config(Ring::Near, generation);
        let me = config.chitchat_id.clone();
        let handle = match spawn_chitchat(config, values.into_iter().collect(), transport).await {
            Ok(handle) => handle,
            Err(error) => return format!("it did not start: {error:#}"),
        };
        members.begin(me);
        let died = handle.termination_watcher();
        tokio::select! {
            ended = died => match ended {
                Ok(()) => "it stopped by itself".into(),
                Err(error) => format!("{error:#}"),
            },
            () = self.attend(&handle, members, &mut own) => {
                let _ = tokio::time::timeout(FAREWELL, handle.shutdown()).await;
                "it was killed".into()
            }
        }
    }

    pub(super) fn chitchat_config(&self, ring: Ring, generation: u64) -> ChitchatConfig {
        let (config, mesh) = (&self.0.config, &self.0.mesh);
        let cluster = &mesh.config().cluster;
        let (cluster_id, interval_ms, seed_nodes) = match (ring, mesh.config().rings) {
            (Ring::Near, Rings::One) => (cluster.clone(), config.interval_ms, mesh.config().seeds.clone()),
            (Ring::Near, Rings::BySite) => {
                (format!("{cluster}\n{}", mesh.config().site), config.interval_ms, mesh.config().seeds.clone())
            }
            (Ring::Wide, _) => (format!("{cluster}\n"), config.wide_interval_ms, Vec::new()),
        };
        ChitchatConfig {
            chitchat_id: ChitchatId::new(mesh.eid().to_string(), generation, mesh.gossip_address()),
            cluster_id,
            gossip_interval: Duration::from_millis(interval_ms),
            listen_addr: mesh.gossip_address(),
            seed_nodes,
            failure_detector_config: config.failure_detector(),
            marked_for_deletion_grace_period: Duration::from_millis(config.deleted_value_grace_ms),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        }
    }

    pub(super) fn values(&self, own: &Own) -> BTreeMap<String, String> {
        let (values, left_out) = own.values(self.0.config.families_max_bytes);
        if left_out > 0 {
            self.0.mesh.counters().gossip_families_left_out.add(left_out as u64);
            tracing::error!(
                left_out,
                families_max_bytes = self.0.config.families_max_bytes,
                "not all shared families fit into gossip; others will not follow those left out"
            );
        }
        values
    }

    /// Looks at the members whenever there may be something new.
    async fn attend(&self, handle: &ChitchatHandle, members: &mut Members, own: &mut watch::Receiver<Own>) {
        let mut live = handle.chitchat().lock().await.live_nodes_watcher();
        let mut peers = self.0.mesh.peers();
        let (mut needed, mut told) = (self.0.needed.subscribe(), self.0.wide.told.subscribe());
        let mut tick = tokio::time::interval(Duration::from_millis(self.0.config.members_refresh_ms));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut greetings = Greetings::new(Duration::from_millis(self.0.config.interval_ms));
        let (mut claims, mut roots) = (BTreeMap::new(), ToldRoots::default());
        loop {
            tokio::select! {
                Ok(()) = live.changed() => {}
                Ok(()) = peers.changed() => peers.mark_changed(),
                Ok(()) = needed.changed() => {}
                Ok(()) = told.changed() => {}
                _ = tick.tick() => {}
                () = sleep_until(greetings.due()) => {}
                Ok(()) = own.changed() => {
                    let values = self.with_claims(&own.borrow_and_update(), &claims);
                    handle.with_chitchat(|chitchat| set_values(chitchat.self_node_state(), &values)).await;
                }
                () = self.killed() => return,
            }
            // Whatever woke: other branches may have been ready too.
            if peers.has_changed().is_ok_and(|changed| changed) {
                greetings.begin();
            }
            let view = View { peers: &peers.borrow_and_update().clone(), now: Instant::now() };
            let mut seen = handle.with_chitchat(|chitchat| members.look(chitchat, &view)).await;
            self.note_size(&seen, members);
            let told = told.borrow_and_update().clone();
            let news = self.look_afar(&mut seen, members, &told, &view);
            let of_far = || members.far.members().map(|member| (member.eid, member.roots.clone())).collect();
            if roots.refresh(view.now, of_far) | news {
                claims = self.claims(members, &roots);
                let values = self.with_claims(&own.borrow(), &claims);
                handle.with_chitchat(|chitchat| set_values(chitchat.self_node_state(), &values)).await;
            }
            members.remember(&seen.members, view.now);
            self.dial(members, &needed.borrow_and_update(), seen.met);
            self.publish(seen.members);
            let mut unheard = members.unheard(view.peers).peekable();
            if greetings.greets(unheard.peek().is_some(), view.now) {
                unheard.for_each(|address| _ = handle.gossip(address));
            }
            tokio::time::sleep(Duration::from_millis(self.0.config.members_gap_ms)).await;
        }
    }

    /// Closes the ring to new nodes when it is full.
    fn note_size(&self, seen: &Seen, members: &Members) {
        let full = seen.states >= self.0.config.ring_nodes_max;
        self.0.mesh.set_full_ring(full.then(|| (seen.states, members.known())));
    }

    /// Adds the nodes of other sites, where they are not in this ring, and finds out who speaks for this site. True if
    /// what this node tells of them is to be told anew.
    fn look_afar(&self, seen: &mut Seen, members: &mut Members, told: &[Member], view: &View<'_>) -> bool {
        let (mesh, me) = (&self.0.mesh, self.0.mesh.eid());
        if mesh.config().rings == Rings::One {
            return false;
        }
        let live = seen.members.iter().filter(|member| member.live).map(|member| member.eid);
        let first = rings::speaker(live.chain([me])) == Some(me);
        let speaks = members.is_first_for(first, view.now) >= Some(Duration::from_millis(self.0.config.speak_after_ms));
        let turned = self.0.wide.speaks.send_if_modified(|last| std::mem::replace(last, speaks) != speaks);
        let news = members.far.take(told.iter().chain(&seen.claims), view.now);
        let met = met(view.peers, &mesh.config().site, &members.far);
        self.0.own.send_if_modified(|own| std::mem::replace(&mut own.met, met.clone()) != met);
        seen.members.extend(members.far_members(view));
        seen.members.sort_by_key(|member| member.eid);
        turned || (speaks && news)
    }

    /// What the speaker tells its site of the others.
    fn claims(&self, members: &Members, roots: &ToldRoots) -> BTreeMap<String, String> {
        if !*self.0.wide.speaks.borrow() {
            return BTreeMap::new();
        }
        let max_bytes = self.0.config.families_max_bytes;
        let claim = |member: &Member| gossip_values::claim(member, roots.of(member.eid), max_bytes);
        members.far.members().map(claim).collect()
    }

    fn with_claims(&self, own: &Own, claims: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut values = self.values(own);
        values.extend(claims.iter().map(|(key, text)| (key.clone(), text.clone())));
        values
    }

    fn dial(&self, members: &Members, needed: &BTreeSet<Eid>, met: BTreeMap<Eid, String>) {
        let speaks = *self.0.wide.speaks.borrow();
        let mut addresses = members.addresses(needed, speaks);
        if speaks {
            met.into_iter().for_each(|(eid, address)| _ = addresses.entry(eid).or_insert(address));
        }
        self.0.mesh.set_known(&addresses);
    }

    fn publish(&self, seen: Vec<Member>) {
        self.0.members.send_if_modified(|members| {
            let changed = **members != seen;
            if changed {
                *members = Arc::new(seen);
            }
            changed
        });
    }

    #[cfg(not(test))]
    async fn killed(&self) {
        std::future::pending().await
    }

    #[cfg(test)]
    async fn killed(&self) {
        self.0.kill.notified().await;
    }

    /// Ends chitchat as a fault would.
    #[cfg(test)]
    pub(super) fn kill(&self) {
        self.0.kill.notify_one();
    }
}

/// Connected nodes of sites of which nothing is heard.
fn met(peers: &Peers, site: &str, far: &Far) -> BTreeMap<Eid, String> {
    let unknown = peers.iter().filter(|(_, peer)| peer.site != site && !far.hears_of(&peer.site));
    unknown.map(|(eid, peer)| (*eid, peer.address.clone())).collect()
}

/// Sets what differs, and takes back what is no longer among the values.
pub(super) fn set_values(state: &mut chitchat::NodeState, values: &BTreeMap<String, String>) {
    let stale: Vec<String> = state
        .key_values()
        .map(|(key, _)| key)
        .filter(|key| gossip_values::is_taken_back(key) && !values.contains_key(*key))
        .map(str::to_string)
        .collect();
    for key in stale {
        state.delete(&key);
    }
    for (key, value) in values {
        state.set(key, value);
    }
}

/// When peers that are connected but not live yet are greeted. One must be heard twice to be believed alive, which is
/// judged once an interval: so the second word follows soon.
struct Greetings {
    interval: Duration,
    /// Words since the peers changed.
    words: u32,
    last: Option<Instant>,
}

impl Greetings {
    fn new(interval: Duration) -> Self {
        Self { interval, words: 0, last: None }
    }

    /// There are other peers, or none to greet.
    fn begin(&mut self) {
        (self.words, self.last) = (0, None);
    }

    fn due(&self) -> Option<Instant> {
        let gap = if self.words < 2 { self.interval / 3 } else { self.interval };
        Some(self.last? + gap)
    }

    /// Whether it is time to, if there are any.
    fn greets(&mut self, any: bool, now: Instant) -> bool {
        if !any {
            self.begin();
            return false;
        }
        let greets = self.due().is_none_or(|due| now >= due);
        if greets {
            (self.words, self.last) = (self.words + 1, Some(now));
        }
        greets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_not_live_is_greeted_at_once_once_more_soon_and_then_every_interval() {
        let (began, interval) = (Instant::now(), Duration::from_millis(300));
        let mut greetings = Greetings::new(interval);
        assert!(!greetings.greets(false, began), "nobody is there to be greeted");
        let mut greeted_ms = |from_ms: u64, to_ms: u64| -> Vec<u64> {
            let at = |ms| began + Duration::from_millis(ms);
            (from_ms..to_ms).step_by(50).filter(|ms| greetings.greets(true, at(*ms))).collect()
        };
        assert_eq!(greeted_ms(0, 1_000), [0, 100, 400, 700]);
        greetings.begin();
        assert!(greetings.greets(true, began + Duration::from_millis(1_000)), "there are other peers");
    }
}
