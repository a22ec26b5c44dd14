//! The mesh: one QUIC endpoint a node, at most one kept connection to each peer.
//!
//! It dials the seeds and whatever addresses membership and gossip make known, for ever, and refuses who
//! does not belong here. Streams that peers open are handed on unread.
//!
//! Never here: what streams carry (only hellos and gossip are read here), who is alive (membership), the
//! wall clock. Invariants: nothing waits on a peer but the task of that peer's connection; every task is
//! the tracker's and ends on cancel.

mod accept;
mod access;
mod config;
mod dial;
mod link;
mod pulse;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use access::{Cut, RefusedPeer};
pub use config::{DEFAULT_PORT, MeshConfig, Rings};
pub use table::{PeerInfo, Peers};

use self::access::Access;
use self::config::ms;
use self::dial::Targets;
use self::table::{Link, Table};
use super::counters::Counters;
use super::tls::Identity;
use crate::core::eid::Eid;
use crate::core::message::Hello;
use crate::core::path::Family;
use crate::core::storage::Run;
use crate::core::topology::Member;
use crate::core::trust::Trust;

/// Why the mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("cannot listen on UDP {listen}: {source}; is another node running here?")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error("[cluster] {name} is empty, longer than {max_bytes} bytes or holds control characters")]
    Text { name: &'static str, max_bytes: usize },
    #[error("listening on {0} does not say where others reach this node; set [cluster] advertise = \"host:port\"")]
    NoAdvertise(SocketAddr),
    #[error("[cluster] advertise = \"{0}\" is not a host:port that resolves here")]
    Advertise(String),
    #[error("the certificate is now that of {now}, this node runs as {running}: restart it if that is meant")]
    OtherEid { running: Eid, now: Eid },
}

/// Why a stream to a peer was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no connection to {0} stands")]
    NotConnected(Eid),
    #[error("the connection to {peer} broke: {source}")]
    Lost { peer: Eid, source: ConnectionError },
    #[error("{peer} let no further stream be opened for {waited_ms} ms")]
    Busy { peer: Eid, waited_ms: u64 },
}

/// A stream that a peer opened. Its first frame says what it wants.
#[derive(Debug)]
pub struct Incoming {
    pub peer: Eid,
    pub run: Run,
    pub site: String,
    pub send: SendStream,
    pub recv: RecvStream,
}

/// A ring of gossip, by the messages that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The whole cluster's, or this site's.
    Near,
    /// That of the sites.
    Wide,
}

/// A message of the membership protocol, and the address by which gossip knows its sender.
pub type GossipMessage = (SocketAddr, Vec<u8>);

/// Bytes over the wire since the start, all peers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

/// A handle to the node's mesh; clones are the same mesh.
#[derive(Clone)]
pub struct Mesh(Arc<Shared>);

/// What the tasks of the mesh share. Locks are held for moments, never while waiting.
struct Shared {
    config: MeshConfig,
    eid: Eid,
    run: Run,
    advertise: String,
    gossip_address: SocketAddr,
    endpoint: Endpoint,
    access: Access,
    counters: Counters,
    table: Mutex<Table>,
    targets: Mutex<Targets>,
    targets_changed: Notify,
    duplicate: watch::Sender<bool>,
    duplicate_seen: Notify,
    incoming: mpsc::Sender<Incoming>,
    /// By ring.
    gossip: [mpsc::Sender<GossipMessage>; 2],
    ring: Mutex<RingState>,
    receivers: Mutex<Receivers>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Default)]
struct Receivers {
    incoming: Option<mpsc::Receiver<Incoming>>,
    /// By ring.
    gossip: [Option<mpsc::Receiver<GossipMessage>>; 2],
}

/// Whether there is room for one more in this node's ring of gossip.
#[derive(Default)]
struct RingState {
    /// So many are in it, and these of them may come and go; none: it is not full.
    full: Option<(usize, BTreeSet<Eid>)>,
    /// When another last refused this node because its ring is full.
    refused: Option<Instant>,
}

impl Mesh {
    /// Listens, and dials the seeds. `run` is that of the store's opening.
    pub async fn start(
        config: MeshConfig,
        identity: Identity,
        run: Run,
        tracker: TaskTracker,
        cancel: CancellationToken,
    ) -> Result<Mesh, MeshError> {
        config.check()?;
        let (eid, transport) = (identity.eid(), Arc::new(config.transport()));
        let endpoint = listen(&config, &identity, &transport)?;
        let (advertise, gossip_address) = advertised(&config, &endpoint).await?;
        let (incoming, incoming_taken) = mpsc::channel(config.incoming_queue_max);
        let (near, near_taken) = mpsc::channel(config.gossip_inbox_max);
        let (wide, wide_taken) = mpsc::channel(config.gossip_inbox_max);
        let shared = Arc::new(Shared {
            eid,
            run,
            advertise,
            gossip_address,
            endpoint,
            access: Access::new(identity, transport, config.trust.clone()),
            counters: Counters::default(),
            table: Mutex::new(Table::new(eid, config.peers_max)),
            targets: Mutex::new(Targets::of_seeds(&config.seeds)),
            targets_changed: Notify::new(),
            duplicate: watch::Sender::new(false),
            duplicate_seen: Notify::new(),
            incoming,
            gossip: [near, wide],
            ring: Mutex::default(),
            receivers: Mutex::new(Receivers {
                incoming: Some(incoming_taken),
                gossip: [Some(near_taken), Some(wide_taken)],
            }),
            tracker,
            cancel,
            config,
        });
        tracing::info!(eid = %shared.eid, run = %run, advertise = shared.advertise, "cluster endpoint is open");
        shared.tracker.spawn(accept::run(shared.clone()));
        shared.spawn(dial::run(shared.clone()));
        shared.spawn(watch_duplicates(shared.clone()));
        Ok(Mesh(shared))
    }

    pub fn eid(&self) -> Eid {
        self.0.eid
    }

    pub fn run(&self) -> Run {
        self.0.run
    }

    pub fn config(&self) -> &MeshConfig {
        &self.0.config
    }

    /// `host:port` under which others are told to reach this node.
    pub fn advertise(&self) -> &str {
        &self.0.advertise
    }

    /// The same, resolved; the name by which gossip knows this node.
    pub fn gossip_address(&self) -> SocketAddr {
        self.0.gossip_address
    }

    /// Where the endpoint listens.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.0.endpoint.local_addr()
    }

    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub fn traffic(&self) -> Traffic {
        let counters = &self.0.counters;
        let ended = Traffic { sent_bytes: counters.sent_bytes.get(), received_bytes: counters.received_bytes.get() };
        self.0.table().links().map(|link| link.connection.stats()).fold(ended, |sum, stats| Traffic {
            sent_bytes: sum.sent_bytes + stats.udp_tx.bytes,
            received_bytes: sum.received_bytes + stats.udp_rx.bytes,
        })
    }

    /// The round trip to a peer as last measured, if it is connected.
    pub fn round_trip(&self, peer: Eid) -> Option<std::time::Duration> {
        self.0.table().link(peer).map(|link| link.connection.rtt())
    }

    /// The peers to which a connection stands.
    pub fn peers(&self) -> watch::Receiver<Peers> {
        self.0.table().peers()
    }

    /// Whether another live node bears this node's EID: then neither is ready.
    pub fn duplicate_eid(&self) -> watch::Receiver<bool> {
        self.0.duplicate.subscribe()
    }

    /// For whoever sees the duplicate by other means than a connection to it.
    pub fn report_duplicate_eid(&self) {
        self.0.duplicate_seen.notify_one();
    }

    /// Where membership says the other nodes are, whole each time. A node other than the one expected at an
    /// address is refused, unless the address is a seed too: then the operator's word is enough.
    pub fn set_known(&self, known: &BTreeMap<Eid, String>) {
        if self.0.targets().set_known(self.0.eid, known) {
            self.0.targets_changed.notify_one();
        }
    }

    /// The other nodes to dial first, whole each time. Who is connected stays so.
    pub fn set_seeds(&self, seeds: &[String]) {
        if self.0.targets().set_seeds(seeds) {
            self.0.targets_changed.notify_one();
        }
    }

    /// Takes another certificate of the same EID, other CAs, lists and rules. New connections go by them at
    /// once; those that stand are checked anew, and cut if they would not be made as they are.
    pub fn reload(&self, identity: Identity, trust: Trust) -> Result<Vec<Cut>, MeshError> {
        if identity.eid() != self.0.eid {
            return Err(MeshError::OtherEid { running: self.0.eid, now: identity.eid() });
        }
        let server = self.0.access.replace(identity, trust);
        self.0.endpoint.set_server_config(Some(server));
        Ok(self.recheck())
    }

    /// Checks the connections that stand by the clock and the rules of now; says which it cut.
    pub fn recheck(&self) -> Vec<Cut> {
        let standing: Vec<_> = {
            let table = self.0.table();
            table.links().map(|link| (link.connection.clone(), link.info.grants.clone())).collect()
        };
        standing.into_iter().filter_map(|(connection, grants)| link::recheck(&self.0, &connection, &grants)).collect()
    }

    /// Whether the peer may be served, followed in, and believed to share the family. What this node's own
    /// certificate does not name, others would refuse it.
    pub fn allows(&self, peer: Eid, family: &Family) -> bool {
        if !self.0.access.own_grants_allow(family) {
            return false;
        }
        let linked = self.0.table().link(peer).map(|link| link.info.grants.allow(family));
        linked.unwrap_or_else(|| self.0.access.last_known(peer).allow(family))
    }

    /// The members, without the families that they are not trusted for.
    pub fn trusted(&self, members: Arc<Vec<Member>>) -> Arc<Vec<Member>> {
        let within = |member: &Member| member.families.keys().all(|family| self.allows(member.eid, family));
        if members.iter().all(within) {
            return members;
        }
        let trusted = members.iter().cloned().map(|mut member| {
            Arc::make_mut(&mut member.families).retain(|family, _| self.allows(member.eid, family));
            member
        });
        Arc::new(trusted.collect())
    }

    /// For whoever turns a peer away because of a family. Logged once an hour each.
    pub fn note_not_allowed(&self, peer: Eid, family: &Family) {
        self.0.counters.refuse("family_not_allowed");
        if self.0.access.note_not_allowed(peer, family) {
            tracing::warn!(%peer, %family, "refused a follower: the peer, or this node, is not trusted for the family");
        }
    }

    /// Changes when somebody is trusted for more, or less, than before.
    pub fn trust_changes(&self) -> watch::Receiver<u64> {
        self.0.access.changes()
    }

    /// The certificate in use, and what is trusted by it.
    pub fn identity(&self) -> Identity {
        self.0.access.identity()
    }

    /// Peers refused of late because their certificate is revoked or not trusted any more.
    pub fn refused_peers(&self) -> BTreeMap<Eid, RefusedPeer> {
        self.0.access.refused()
    }

    /// Opens a stream of request and answer. The first frame says what is wanted.
    pub async fn open_bi(&self, peer: Eid) -> Result<(SendStream, RecvStream), OpenError> {
        let connection =
            self.0.table().link(peer).map(|link| link.connection.clone()).ok_or(OpenError::NotConnected(peer))?;
        let waited_ms = self.0.config.connect_timeout_ms;
        match tokio::time::timeout(ms(waited_ms), connection.open_bi()).await {
            Ok(opened) => opened.map_err(|source| OpenError::Lost { peer, source }),
            Err(_) => Err(OpenError::Busy { peer, waited_ms }),
        }
    }

    /// The streams that peers open; they can be taken once.
    pub fn take_incoming(&self) -> Option<mpsc::Receiver<Incoming>> {
        self.0.receivers().incoming.take()
    }

    /// The gossip that peers send in a ring; it can be taken once.
    pub fn take_gossip(&self, ring: Ring) -> Option<mpsc::Receiver<GossipMessage>> {
        self.0.receivers().gossip[ring as usize].take()
    }

    /// From now on nobody new is admitted to the ring of gossip of so many nodes; none: everybody is.
    pub fn set_full_ring(&self, full: Option<(usize, BTreeSet<Eid>)>) {
        self.0.ring().full = full;
    }

    /// Whether others refused this node lately because their ring of gossip is full.
    pub fn refused_by_full_ring(&self) -> bool {
        let hold = ms(2 * self.0.config.backoff_max_ms + self.0.config.duplicate_hold_ms);
        self.0.ring().refused.is_some_and(|at| at.elapsed() < hold)
    }

    /// Sends gossip if the peer is connected and keeps up; else the message is dropped and counted. An
    /// address without a connection is dialled for a while.
    ///
    /// chitchat gossips with seeds wherever they are: what is not for their ring is dropped.
    pub fn send_gossip(&self, ring: Ring, address: SocketAddr, payload: Vec<u8>) {
        let of = |link: &Link| (link.gossip.clone(), link.info.site != self.0.config.site);
        let Some((queue, far)) = self.0.table().link_at(address).map(of) else {
            self.0.counters.gossip_dropped_unconnected.add(1);
            return self.want(address);
        };
        if self.0.config.rings.misplaced(ring, far) {
            return;
        }
        if queue.try_send((ring, payload)).is_err() {
            self.0.counters.gossip_dropped_full.add(1);
        }
    }

    fn want(&self, address: SocketAddr) {
        if address != self.0.gossip_address && self.0.targets().want(address, &self.0.config) {
            self.0.targets_changed.notify_one();
        }
    }
}

#[cfg(test)]
impl Mesh {
    /// Whether a dial of this node has come back to itself.
    pub(super) fn found_itself(&self) -> bool {
        self.0.targets().found_itself()
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn targets(&self) -> MutexGuard<'_, Targets> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) -> MutexGuard<'_, RingState> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many nodes fill the ring that this one would come into, if it is a new one.
    fn full_ring(&self, peer: Eid, site: &str) -> Option<usize> {
        let ring = self.ring();
        let (nodes, members) = ring.full.as_ref()?;
        let joins = self.config.rings == Rings::One || site == self.config.site;
        (joins && !members.contains(&peer)).then_some(*nodes)
    }

    fn receivers(&self) -> MutexGuard<'_, Receivers> {
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spawns a task that is dropped on cancel.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            cancel.run_until_cancelled(task).await;
        });
    }

    fn hello(&self) -> Hello {
        Hello {
            cluster: self.config.cluster.clone(),
            eid: self.eid,
            run: self.run,
            site: self.config.site.clone(),
            advertise: self.advertise.clone(),
            version: self.config.version.clone(),
            protocol: self.config.protocol,
        }
    }
}

fn listen(
    config: &MeshConfig,
    identity: &Identity,
    transport: &Arc<quinn::TransportConfig>,
) -> Result<Endpoint, MeshError> {
    let fault = |source| MeshError::Listen { listen: config.listen, source };
    Endpoint::server(access::server_config(identity, transport), config.listen).map_err(fault)
}

async fn advertised(config: &MeshConfig, endpoint: &Endpoint) -> Result<(String, SocketAddr), MeshError> {
    let local = endpoint.local_addr().map_err(|source| MeshError::Listen { listen: config.listen, source })?;
    match &config.advertise {
        Some(text) => {
            let resolved = link::resolve(text, config).await.first().copied();
            Ok((text.clone(), resolved.ok_or_else(|| MeshError::Advertise(text.clone()))?))
        }
        None if local.ip().is_unspecified() => Err(MeshError::NoAdvertise(local)),
        None => Ok((local.to_string(), local)),
    }
}

/// Raises the alarm when a duplicate is seen, and ends it when none was seen for a while.
async fn watch_duplicates(shared: Arc<Shared>) {
    let hold = ms(shared.config.duplicate_hold_ms);
    loop {
        shared.duplicate_seen.notified().await;
        shared.duplicate.send_replace(true);
        tracing::error!(eid = %shared.eid, "another live node bears this node's EID; issue it a certificate of its own");
        while tokio::time::timeout(hold, shared.duplicate_seen.notified()).await.is_ok() {}
        shared.duplicate.send_replace(false);
        tracing::info!(eid = %shared.eid, hold_ms = shared.config.duplicate_hold_ms, "the duplicate EID was not seen again");
    }
}
