//! Starts the verifies that [`core::verify`](crate::core::verify) calls for, and counts what came of them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::reconcile::{Compared, reconcile};
use super::{Members, Shared};
use crate::cluster::sleep_until;
use crate::core::eid::Eid;
use crate::core::path::Family;
use crate::core::reconcile::{Ended, Peer};
use crate::core::sketch::Root;
use crate::core::storage::Reads;
use crate::core::verify::{Roots, Verdict, Verifier};

/// Roots are looked at this far apart at least, in ms: under load they change with every commit.
const LOOK_GAP_MS: u64 = 100;
/// Verifies of different families that may run at a time.
const RUNNING_MAX: usize = 4;

/// How a reconcile can end, by the names that are counted.
pub const OUTCOMES: [&str; 9] =
    ["equal", "reconciled", "everything", "left_to_peer", "not_shared", "other_floor", "busy", "failed", "served"];

/// Whether a family is equal at the members that this node exchanges it with, by the roots last heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    pub equal: usize,
    pub differing: usize,
    /// Since when, in a row, some root has differed.
    pub differing_since: Option<Instant>,
}

/// Counts of reconciles, this node's own and those that it answered.
#[derive(Debug, Default)]
pub struct Verifies {
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
    agreement: Mutex<BTreeMap<Family, Agreement>>,
    /// When this node and a peer last were, verified over the connection, equal.
    verified: Mutex<BTreeMap<(Family, Eid), Instant>>,
    /// When a peer last named a run of this node that its disk does not know.
    unknown_run: Mutex<Option<Instant>>,
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
    pub received_records: AtomicU64,
}

impl Verifies {
    pub(super) fn count(&self, outcome: &'static str) {
        *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// How often each outcome was met, the ones never met included.
    pub fn outcomes(&self) -> BTreeMap<&'static str, u64> {
        let seen = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        OUTCOMES.into_iter().map(|name| (name, seen.get(name).copied().unwrap_or(0))).collect()
    }

    pub fn agreement(&self, family: &Family) -> Agreement {
        self.agreement.lock().unwrap_or_else(PoisonError::into_inner).get(family).copied().unwrap_or_default()
    }

    /// Sent and received bytes of frames, and received records.
    pub fn traffic(&self) -> (u64, u64, u64) {
        (self.sent_bytes.load(Relaxed), self.received_bytes.load(Relaxed), self.received_records.load(Relaxed))
    }

    fn agree(&self, verifier: &Verifier, own: &BTreeMap<Family, Root>) {
        let mut known = self.agreement.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|family, _| own.contains_key(family));
        for family in own.keys() {
            let (equal, differing) = verifier.agreement(family);
            let agreement = known.entry(family.clone()).or_default();
            let since = (differing > 0).then(|| agreement.differing_since.unwrap_or_else(Instant::now));
            *agreement = Agreement { equal, differing, differing_since: since };
        }
    }

    pub(super) fn note_unknown_run(&self) {
        *self.unknown_run.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// When this node last learnt that its disk lacks a run that others have followed.
    pub fn unknown_run(&self) -> Option<Instant> {
        *self.unknown_run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_verified(&self, family: &Family, peer: Eid) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.insert((family.clone(), peer), Instant::now());
    }

    /// When this node last knew, over a connection, that each side durably has what the other had.
    pub fn verified(&self, family: &Family, peer: Eid) -> Option<Instant> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&(family.clone(), peer)).copied()
    }
}

/// Runs until the node stops. `refetch` is told what had better be followed anew, from the beginning.
pub(super) async fn run<R: Reads>(
    room: Shared<R>,
    mut members: watch::Receiver<Members>,
    refetch: mpsc::Sender<(Eid, Family)>,
) {
    let cancel = room.cancel.clone();
    let (ended, mut endings) = mpsc::channel(RUNNING_MAX);
    let mut verifier = Verifier::new(room.config.verify);
    let mut published = room.database.watch();
    let started = Instant::now();
    let mut running = 0;
    let work = async {
        loop {
            let now = ms_since(started);
            let (own, roots) = roots(&room, &mut members, &mut published);
            verifier.observe(&own, &roots, now);
            room.streams.verifies.agree(&verifier, &own);
            for family in own.keys() {
                if running >= RUNNING_MAX {
                    break;
                }
                // What comes whole just now is compared when it is here.
                if room.is_fetched(family) {
                    continue;
                }
                if let Some(peer) = verifier.due(family, now, chance()) {
                    running += 1;
                    let (room, family, ended) = (room.clone(), family.clone(), ended.clone());
                    let (refetch, cancel) = (refetch.clone(), room.cancel.clone());
                    room.tracker.clone().spawn(async move {
                        cancel.run_until_cancelled(verify(room, peer, family, refetch, ended)).await;
                    });
                }
            }
            let look = verifier.next_look(now).filter(|_| running < RUNNING_MAX).map(|at| at.max(now + LOOK_GAP_MS));
            tokio::select! {
                biased;
                ending = endings.recv() => if let Some((family, peer, verdict)) = ending {
                    running -= 1;
                    verifier.ended(&family, peer, verdict, ms_since(started), chance());
                },
                changed = members.changed() => if changed.is_err() { return },
                changed = published.changed() => if changed.is_err() { return },
                () = sleep_until(look.map(|at| started + Duration::from_millis(at))) => {}
            }
            tokio::time::sleep(Duration::from_millis(LOOK_GAP_MS)).await;
        }
    };
    cancel.run_until_cancelled(work).await;
}

fn ms_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "spreads the nodes over their peers")]
fn chance() -> u64 {
    rand::random()
}

/// Our own roots, and those of the members that we follow.
fn roots<R: Reads>(
    room: &Shared<R>,
    members: &mut watch::Receiver<Members>,
    published: &mut watch::Receiver<std::sync::Arc<crate::store::writer::Published>>,
) -> (BTreeMap<Family, Root>, Roots) {
    let ledger = published.borrow_and_update().ledger.clone();
    let own = ledger.summaries.iter().map(|(family, summary)| (family.clone(), summary.root)).collect();
    let members = members.borrow_and_update().clone();
    let follows = room.streams.follows.borrow();
    let mut roots = Roots::new();
    for (peer, family) in follows.keys() {
        let member = members.iter().find(|member| member.eid == *peer && member.live && member.connected);
        if let Some(root) = member.and_then(|member| member.roots.get(family)) {
            roots.entry(family.clone()).or_default().insert(*peer, *root);
        }
    }
    (own, roots)
}

async fn verify<R: Reads>(
    room: Shared<R>,
    eid: Eid,
    family: Family,
    refetch: mpsc::Sender<(Eid, Family)>,
    ended: mpsc::Sender<(Family, Eid, Verdict)>,
) {
    let peer = room.peer(eid).unwrap_or(Peer { eid, crossing: false });
    let result = reconcile(&room, peer, &family).await;
    if matches!(result, Ok(Compared { ended: Ended::Everything, .. })) {
        let _ = refetch.send((eid, family.clone())).await;
    }
    let verdict = result.as_ref().map_or(Verdict::Failed, |compared| Verdict::from(&compared.ended));
    let _ = ended.send((family, eid, verdict)).await;
}
