//! Drives the follow sessions of [`core::session`](crate::core::session) over the mesh: serves the streams
//! that peers open, and keeps one stream open to every source that the plan names.
//!
//! Never here: what is asked or sent (the sessions decide), who follows whom (the topology decides).
//! Invariants: what a follower read is durable before it reads on; a follower that ends is made anew from
//! its durable cursor; a peer that says what a correct one does not say is left alone for a while.

mod ahead;
mod floors;
mod follow;
mod nearby;
mod reconcile;
mod serve;
mod verify;
mod wan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::follow::Follow;
pub use self::follow::Progress;
pub use self::verify::{Agreement, OUTCOMES, Verifies};
use self::wan::Wan;
pub use self::wan::WanConfig;
use super::mesh::Mesh;
use super::sleep_until;
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::path::Family;
use crate::core::reconcile::Peer;
use crate::core::record::Classes;
use crate::core::replica::{Apply, Input};
use crate::core::storage::Reads;
use crate::core::topology::{
    self, Loss, Me, Member, ModeConflict, Patience, Plan, Probation, Shared as SharedFamilies,
};
use crate::core::verify::VerifyConfig;
use crate::store::writer::{Database, Published};

/// Limits and times of the follow streams.
#[derive(Clone, Debug)]
pub struct StreamsConfig {
    /// A needed connection that is missing for this long is replaced by one to a stand-by.
    pub late_patience_ms: u64,
    /// A needed live member that cannot be connected for this long is told to be out of reach, and its records
    /// are fetched over others.
    pub unreachable_patience_ms: u64,
    /// Who finds another node of its site in office takes the office of relay after this long: one that comes and goes
    /// never does.
    pub relay_after_ms: u64,
    pub wan: WanConfig,
    /// How often a source tells a quiet follower that it is complete further, at most.
    pub idle_frame_ms: u64,
    /// The longest a peer may take to say what it wants, or to answer.
    pub request_timeout_ms: u64,
    /// The pause after a stream that broke doubles from here …
    pub backoff_min_ms: u64,
    /// … to here.
    pub backoff_max_ms: u64,
    /// The longest that a peer may take over one frame of a reconcile: it may have much to decode and commit.
    pub reconcile_timeout_ms: u64,
    /// While a family is fetched whole from one source, comparing with the others waits, so that it does not come
    /// from each of them; this long at most.
    pub fetch_patience_ms: u64,
    pub verify: VerifyConfig,
}

impl Default for StreamsConfig {
    fn default() -> Self {
        Self {
            late_patience_ms: 1_000,
            unreachable_patience_ms: 15_000,
            relay_after_ms: 60_000,
            wan: WanConfig::default(),
            idle_frame_ms: 1_000,
            request_timeout_ms: 5_000,
            backoff_min_ms: 50,
            backoff_max_ms: 2_000,
            reconcile_timeout_ms: 30_000,
            fetch_patience_ms: 60_000,
            verify: VerifyConfig::default(),
        }
    }
}

/// The other members as membership publishes them.
pub type Members = Arc<Vec<Member>>;

/// How far each followed stream is, by source and family.
pub type Follows = BTreeMap<(Eid, Family), Progress>;

/// What the plan needs of the other rooms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Members to which a connection is needed.
    pub dial: BTreeSet<Eid>,
    /// Those of them that live and could not be connected for long: to be gossiped.
    pub unreached: BTreeSet<Eid>,
    /// Families for which this node is its site's relay.
    pub relay_of: BTreeSet<Family>,
    /// Whether this node has been there for long enough to be relay before others.
    pub settled: bool,
}

/// What the streams tell the node.
#[derive(Clone)]
pub struct Streams {
    follows: watch::Sender<Follows>,
    conflicts: watch::Sender<Vec<ModeConflict>>,
    verifies: Arc<Verifies>,
    needs: watch::Sender<Needs>,
}

impl Streams {
    /// What reconciles did so far, and how far this node agrees with others.
    pub fn verifies(&self) -> &Verifies {
        &self.verifies
    }

    /// How far each followed stream is now.
    pub fn follows(&self) -> Follows {
        self.follows.borrow().clone()
    }

    /// Changes when a stream gets further, breaks or is planned.
    pub fn watch_follows(&self) -> watch::Receiver<Follows> {
        self.follows.subscribe()
    }

    /// Members that share a family of this node in the other mode.
    pub fn conflicts(&self) -> Vec<ModeConflict> {
        self.conflicts.borrow().clone()
    }

    /// What the plan needs, whole each time.
    pub fn watch_needs(&self) -> watch::Receiver<Needs> {
        self.needs.subscribe()
    }

    /// Whether this node has, of some source, every family that it follows there and is served.
    pub fn caught_up_with_one(&self) -> bool {
        let mut follows = self.follows.borrow().clone();
        follows.retain(|_, progress| !progress.turned_away);
        let sources: BTreeSet<Eid> = follows.keys().map(|(source, _)| *source).collect();
        sources
            .into_iter()
            .any(|source| follows.iter().filter(|((of, _), _)| *of == source).all(|(_, progress)| progress.caught_up))
    }
}

/// Everything a task of this room needs.
struct Room<R> {
    config: StreamsConfig,
    wan: Wan,
    nearby: nearby::Known,
    mesh: Mesh,
    database: Database<R>,
    members: watch::Receiver<Members>,
    streams: Streams,
    tracker: TaskTracker,
    cancel: CancellationToken,
    /// Reconciles of others that may be answered at a time.
    answering: Semaphore,
    /// By family, the right to fetch it whole.
    fetching: Mutex<BTreeMap<Family, Arc<Semaphore>>>,
    /// What followed streams may hold that is not written yet.
    read_ahead: ahead::Budget,
    /// With whom a purge floor waits to verify.
    collectors: watch::Sender<BTreeSet<Eid>>,
}

/// How long a source waits for the books to name a follower: its entry comes by another stream of the same connection.
const INTRODUCTION_MAX: Duration = Duration::from_secs(1);

impl<R: Reads> Room<R> {
    fn knows(&self, family: &Family, peer: Eid) -> bool {
        self.database.published().ledger.books.knows(family, peer)
    }

    /// Whether a family that is shared here is exchanged with `peer` yet. Waits a moment for it to be introduced.
    async fn lets_in(&self, family: &Family, peer: Eid) -> bool {
        let shared = self.database.published().ledger.families.mode_of(family).is_some();
        if shared {
            let _ = tokio::time::timeout(INTRODUCTION_MAX, self.introduced(family, peer)).await;
        }
        !shared || self.knows(family, peer)
    }

    /// Waits until the books say that `peer` shares the family; until then it is not exchanged with it.
    async fn introduced(&self, family: &Family, peer: Eid) {
        // An error means that the node stops.
        let _ = self.database.watch().wait_for(|published| published.ledger.books.knows(family, peer)).await;
    }
}

impl<R> Room<R> {
    /// A peer as a reconcile wants it; none while there is no connection with it.
    fn peer(&self, eid: Eid) -> Option<Peer> {
        let peers = self.mesh.peers();
        let crossing = peers.borrow().get(&eid)?.site != self.mesh.config().site;
        Some(Peer { eid, crossing })
    }

    /// Whether a family is compared for the first time, or comes whole, from some source.
    fn is_fetched(&self, family: &Family) -> bool {
        let fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.get(family).is_some_and(|right| right.available_permits() == 0)
    }

    fn fetching(&self, family: &Family) -> Arc<Semaphore> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.entry(family.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }
}

type Shared<R> = Arc<Room<R>>;

/// Starts serving and following.
pub fn start<R: Reads>(
    config: StreamsConfig,
    mesh: Mesh,
    database: Database<R>,
    members: watch::Receiver<Members>,
    tracker: TaskTracker,
    cancel: CancellationToken,
) -> Streams {
    let streams = Streams {
        follows: watch::Sender::default(),
        conflicts: watch::Sender::default(),
        verifies: Arc::default(),
        needs: watch::Sender::default(),
    };
    let (answering, wan) = (Semaphore::new(config.verify.served_max), Wan::new(config.wan));
    let (refetch, refetches) = mpsc::channel(64);
    let room = Arc::new(Room {
        config,
        wan,
        nearby: nearby::Known::default(),
        mesh,
        database,
        members: members.clone(),
        streams: streams.clone(),
        tracker,
        cancel,
        answering,
        fetching: Mutex::default(),
        read_ahead: ahead::Budget::default(),
        collectors: watch::Sender::default(),
    });
    room.tracker.spawn(serve::run(room.clone()));
    room.tracker.spawn(floors::run(room.clone()));
    room.tracker.spawn(verify::run(room.clone(), members.clone(), refetch));
    room.tracker.spawn(Planner::new(room.clone(), members, refetches).run());
    streams
}

/// Keeps the running follow streams equal to the plan.
struct Planner<R> {
    room: Shared<R>,
    members: watch::Receiver<Members>,
    trust: watch::Receiver<u64>,
    collectors: watch::Receiver<BTreeSet<Eid>>,
    published: watch::Receiver<Arc<Published>>,
    /// Patience counts from here.
    began: Instant,
    patience: Patience,
    probation: Probation,
    running: BTreeMap<(Eid, Family), (Classes, CancellationToken)>,
    told_elsewhere: BTreeMap<Family, Vec<(Eid, Mode)>>,
    /// What a verify found to be followed anew better, from the beginning.
    refetches: mpsc::Receiver<(Eid, Family)>,
}

impl<R: Reads> Planner<R> {
    fn new(room: Shared<R>, members: watch::Receiver<Members>, refetches: mpsc::Receiver<(Eid, Family)>) -> Self {
        let (published, trust) = (room.database.watch(), room.mesh.trust_changes());
        let collectors = room.collectors.subscribe();
        let patience = Patience::new(room.config.late_patience_ms, room.config.unreachable_patience_ms);
        let probation = Probation::new(0, room.config.relay_after_ms);
        Self {
            room,
            members,
            trust,
            collectors,
            published,
            began: Instant::now(),
            patience,
            probation,
            running: BTreeMap::new(),
            told_elsewhere: BTreeMap::new(),
            refetches,
        }
    }

    async fn run(mut self) {
        let cancel = self.room.cancel.clone();
        let step = async {
            loop {
                self.replan().await;
                if self.changed().await.is_err() {
                    return;
                }
            }
        };
        cancel.run_until_cancelled(step).await;
    }

    /// Waits until members or shared families change, a member has been missed for long enough, or this node has settled.
    async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        let (families, books) = {
            let published = self.published.borrow_and_update();
            (published.ledger.families.clone(), published.ledger.books.clone())
        };
        let now_ms = self.now_ms();
        let next_ms = [self.patience.next_change_ms(now_ms), self.probation.next_change_ms(now_ms)];
        let next = next_ms.into_iter().flatten().min().map(|at_ms| self.began + Duration::from_millis(at_ms));
        let time_passes = sleep_until(next);
        let families_change = self.published.wait_for(|published| {
            let now = &published.ledger;
            // Most batches leave the books alone, and comparing their members costs as many as there are.
            let same_members = Arc::ptr_eq(&now.books, &books) || now.books.members == books.members;
            !Arc::ptr_eq(&now.families, &families) || !same_members
        });
        let refetch = tokio::select! {
            biased;
            refetch = self.refetches.recv() => refetch,
            changed = self.members.changed() => return changed,
            changed = self.trust.changed() => return changed,
            changed = self.collectors.changed() => return changed,
            changed = families_change => return changed.map(|_| ()),
            () = time_passes => return Ok(()),
        };
        if let Some((source, family)) = refetch {
            self.follow_anew(source, family).await;
        }
        Ok(())
    }

    /// Forgets the cursor; the next plan starts the stream from the beginning.
    async fn follow_anew(&mut self, source: Eid, family: Family) {
        let Some((classes, cancel)) = self.running.remove(&(source, family.clone())) else { return };
        cancel.cancel();
        let Some(mode) = self.room.database.published().ledger.families.mode_of(&family) else { return };
        let apply = Apply::forgetting(source, family, mode, classes);
        // If it fails the stream goes on from its cursor, and the next verify finds the difference again.
        let _ = self.room.database.submit(Input::Apply(apply)).await;
    }

    async fn replan(&mut self) {
        self.trust.borrow_and_update();
        let members = self.room.mesh.trusted(self.members.borrow_and_update().clone());
        self.tell_elsewhere(&members).await;
        let published = self.room.database.published();
        let shared = published.ledger.families.shared();
        let plan = self.plan(&shared, &members, &published.ledger.books.decommissioned());
        self.room.streams.conflicts.send_if_modified(|conflicts| {
            let changed = *conflicts != plan.conflicts;
            if changed {
                for ModeConflict { family, member, mode } in &plan.conflicts {
                    tracing::error!(%family, %member, theirs = %mode, "a member shares a family in the other mode: no exchange");
                }
                conflicts.clone_from(&plan.conflicts);
            }
            changed
        });
        self.running.retain(|key @ (source, family), (classes, cancel)| {
            let stays = plan.follow.get(key) == Some(classes);
            if !stays {
                cancel.cancel();
                self.room.nearby.leaves(family, *source);
            }
            stays
        });
        self.room.streams.follows.send_modify(|follows| follows.retain(|key, _| plan.follow.contains_key(key)));
        for ((source, family), classes) in plan.follow {
            if self.running.contains_key(&(source, family.clone())) {
                continue;
            }
            let crossing =
                members.iter().any(|member| member.eid == source && member.site != self.room.mesh.config().site);
            let cancel = self.room.cancel.child_token();
            let follow = Follow::new(self.room.clone(), source, crossing, family.clone(), shared[&family], classes);
            let task_cancel = cancel.clone();
            self.room.tracker.spawn(async move { task_cancel.run_until_cancelled(follow.run()).await });
            self.running.insert((source, family), (classes, cancel));
        }
    }

    /// The writer refuses to share a family in another mode than a live member: it must know theirs.
    async fn tell_elsewhere(&mut self, members: &[Member]) {
        let modes = topology::modes_elsewhere(members);
        if modes != self.told_elsewhere
            && self.room.database.submit(Input::Elsewhere { modes: modes.clone() }).await.is_ok()
        {
            self.told_elsewhere = modes;
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn plan(&mut self, shared: &SharedFamilies, members: &[Member], decommissioned: &BTreeSet<Eid>) -> Plan {
        let now_ms = self.now_ms();
        let site = self.room.mesh.config().site.clone();
        let losses = self.patience.losses(members, now_ms);
        let settled = self.probation.look(&site, members, now_ms);
        let me = Me { eid: self.room.mesh.eid(), site: &site, settled, decommissioned };
        let plan = topology::plan(me, shared, members, &losses);
        self.patience.need(&plan.dial, members, now_ms);
        let missed = losses.iter().filter(|(eid, loss)| **loss == Loss::Missed && plan.dial.contains(eid));
        let unreached = missed.map(|(eid, _)| *eid).collect();
        let mut dial = plan.dial.clone();
        dial.extend(self.collectors.borrow_and_update().iter().copied());
        let needs = Needs { dial, unreached, relay_of: plan.relay_of.clone(), settled };
        self.room.streams.needs.send_if_modified(|last| {
            let changed = *last != needs;
            *last = needs;
            changed
        });
        plan
    }
}
