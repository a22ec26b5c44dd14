//! Membership: who is alive, where, and what each node says of itself; by chitchat, over the mesh.
//!
//! Never here: records, and what follows from membership (that is `core::topology`). Invariants: an end of
//! chitchat's task, by panic or otherwise, is survived; what is published is what was read, checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion, spawn_chitchat};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gossip_transport::{MeshTransport, decode_all};
use super::gossip_values::{self, Own};
use super::members::{Members, View};
use super::{GossipMessage, Mesh};
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::path::Family;
use crate::core::sketch::Root;
use crate::core::topology::Member;

/// How long chitchat gets to end when it is told to.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why membership did not start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    #[error("the mesh's gossip was taken before; start membership once for each mesh")]
    Taken,
}

/// The configuration of membership. Names, addresses and seeds are the mesh's.
#[derive(Clone, Debug, PartialEq)]
pub struct GossipConfig {
    /// Must be greater at each start of this node: its start time in ms since 1970.
    pub generation: u64,
    pub interval_ms: u64,
    /// A node is dead when nothing was heard of it for this many times its smoothed mean interval.
    pub phi_threshold: f64,
    /// Intervals that are remembered of each node.
    pub sampling_window: usize,
    /// The interval that is assumed at first. It weighs as much as five measured ones, for good, and so
    /// keeps the threshold away from the very short intervals of a quiet network.
    pub initial_interval_ms: u64,
    /// Longer intervals are no samples.
    pub max_interval_ms: u64,
    /// A dead node is forgotten after this long.
    pub dead_node_grace_ms: u64,
    /// A deleted value is remembered for this long.
    pub deleted_value_grace_ms: u64,
    /// The members are looked at this often at least …
    pub members_refresh_ms: u64,
    /// … and this far apart at least.
    pub members_gap_ms: u64,
    /// What is heard of this node's own EID must go on for so long before it is a duplicate: the traces of its
    /// former run die out sooner.
    pub duplicate_confirm_ms: u64,
    /// Addresses of nodes that membership has forgotten are dialled for so long.
    pub remember_ms: u64,
    /// The pause before chitchat is started again doubles from here …
    pub restart_min_ms: u64,
    /// … to here.
    pub restart_max_ms: u64,
    /// Names and modes of shared families that are gossiped, in bytes.
    pub families_max_bytes: usize,
    /// Messages decoded and not yet taken by chitchat.
    pub decoded_queue_max: usize,
}

impl GossipConfig {
    pub fn new(generation: u64) -> Self {
        Self {
            generation,
            interval_ms: 300,
            phi_threshold: 20.0,
            sampling_window: 100,
            initial_interval_ms: 1_500,
            max_interval_ms: 5_000,
            dead_node_grace_ms: 15 * 60 * 1_000,
            deleted_value_grace_ms: 15 * 60 * 1_000,
            members_refresh_ms: 1_000,
            members_gap_ms: 50,
            duplicate_confirm_ms: 10_000,
            remember_ms: 24 * 60 * 60 * 1_000,
            restart_min_ms: 500,
            restart_max_ms: 30_000,
            families_max_bytes: 16 * 1024,
            decoded_queue_max: 1_024,
        }
    }

    /// When a node counts as dead, in the words of chitchat.
    pub fn failure_detector(&self) -> FailureDetectorConfig {
        FailureDetectorConfig {
            phi_threshold: self.phi_threshold,
            sampling_window_size: self.sampling_window,
            max_interval: Duration::from_millis(self.max_interval_ms),
            initial_interval: Duration::from_millis(self.initial_interval_ms),
            dead_node_grace_period: Duration::from_millis(self.dead_node_grace_ms),
        }
    }
}

/// A handle to the node's membership; clones are the same one.
#[derive(Clone)]
pub struct Gossip(Arc<Shared>);

struct Shared {
    config: GossipConfig,
    mesh: Mesh,
    own: watch::Sender<Own>,
    members: watch::Sender<Arc<Vec<Member>>>,
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
        let heard = mesh.take_gossip().ok_or(GossipError::Taken)?;
        let (transport, decoded) = MeshTransport::new(mesh.clone(), config.decoded_queue_max);
        let own = Own {
            site: mesh.config().site.clone(),
            address: mesh.advertise().into(),
            version: mesh.config().version.clone(),
            run: mesh.run(),
            head: 0,
            families: BTreeMap::new(),
            roots: BTreeMap::new(),
            unreached: BTreeSet::new(),
        };
        let gossip = Gossip(Arc::new(Shared {
            config,
            mesh,
            own: watch::Sender::new(own),
            members: watch::Sender::default(),
            #[cfg(test)]
            kill: tokio::sync::Notify::new(),
        }));
        let decoding = gossip.clone().decode(heard, decoded, tracker.clone(), cancel.clone());
        tracker.spawn(decoding);
        tracker.spawn(gossip.clone().supervise(transport, cancel));
        Ok(gossip)
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

    /// All other nodes that are known, live and dead, by EID.
    pub fn members(&self) -> watch::Receiver<Arc<Vec<Member>>> {
        self.0.members.subscribe()
    }

    /// Decodes in a task of its own, so that a message that makes chitchat's decoder panic costs itself only.
    async fn decode(
        self,
        heard: mpsc::Receiver<GossipMessage>,
        decoded: mpsc::Sender<chitchat::transport::RecvOutcome>,
        tracker: TaskTracker,
        cancel: CancellationToken,
    ) {
        let heard = Arc::new(Mutex::new(heard));
        while !cancel.is_cancelled() {
            let (token, task) = (cancel.clone(), decode_all(self.0.mesh.clone(), heard.clone(), decoded.clone()));
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
        let config = self.chitchat_config(generation);
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

    fn chitchat_config(&self, generation: u64) -> ChitchatConfig {
        let (config, mesh) = (&self.0.config, &self.0.mesh);
        ChitchatConfig {
            chitchat_id: ChitchatId::new(mesh.eid().to_string(), generation, mesh.gossip_address()),
            cluster_id: mesh.config().cluster.clone(),
            gossip_interval: Duration::from_millis(config.interval_ms),
            listen_addr: mesh.gossip_address(),
            seed_nodes: mesh.config().seeds.clone(),
            failure_detector_config: config.failure_detector(),
            marked_for_deletion_grace_period: Duration::from_millis(config.deleted_value_grace_ms),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        }
    }

    fn values(&self, own: &Own) -> BTreeMap<String, String> {
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
        let mut tick = tokio::time::interval(Duration::from_millis(self.0.config.members_refresh_ms));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A peer that is connected and not live yet needs two words, a heartbeat apart, to be believed alive.
        let heartbeat = Duration::from_millis(self.0.config.interval_ms);
        let mut unheard = false;
        loop {
            let greet = tokio::select! {
                Ok(()) = live.changed() => false,
                Ok(()) = peers.changed() => true,
                _ = tick.tick() => true,
                () = tokio::time::sleep(heartbeat), if unheard => true,
                Ok(()) = own.changed() => {
                    let values = self.values(&own.borrow_and_update());
                    handle.with_chitchat(|chitchat| set_values(chitchat.self_node_state(), &values)).await;
                    false
                }
                () = self.killed() => return,
            };
            let view = View { peers: &peers.borrow_and_update().clone(), now: Instant::now() };
            let seen = handle.with_chitchat(|chitchat| members.look(chitchat, &view)).await;
            self.0.mesh.set_known(members.addresses());
            self.publish(seen);
            unheard = members.unheard(view.peers).next().is_some();
            if greet {
                members.unheard(view.peers).for_each(|address| _ = handle.gossip(address));
            }
            tokio::time::sleep(Duration::from_millis(self.0.config.members_gap_ms)).await;
        }
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

/// Sets what differs, and takes back families that are no longer among the values.
fn set_values(state: &mut chitchat::NodeState, values: &BTreeMap<String, String>) {
    let stale: Vec<String> = state
        .key_values()
        .map(|(key, _)| key)
        .filter(|key| gossip_values::is_family(key) && !values.contains_key(*key))
        .map(str::to_string)
        .collect();
    for key in stale {
        state.delete(&key);
    }
    for (key, value) in values {
        state.set(key, value);
    }
}
