//! What the cluster room counts, for metrics to read.
//!
//! Never here: labels that a peer can choose. The set of reasons is fixed when the program is built.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::{Duration, Instant};

/// Every reason for which a peer, a stream or a message is refused.
pub const REFUSALS: [&str; 28] = [
    "tls",
    "certificate_eid",
    "unexpected_eid",
    "eid_mismatch",
    "cluster_name",
    "hello_text",
    "duplicate_eid",
    "too_many_peers",
    "too_many_connections",
    "frame_magic",
    "frame_version",
    "frame_kind",
    "frame_too_long",
    "frame_cut_off",
    "frame_left_over",
    "frame_payload",
    "frame_timeout",
    "frame_missing",
    "gossip_payload",
    "gossip_ring",
    "ring_full",
    "protocol_version",
    "revoked",
    "family_not_allowed",
    "follow",
    "reconcile",
    "unknown_run",
    "other",
];

/// A refusal for one reason is logged at most this often, in ms; the count tells of the others.
const LOG_GAP_MS: u64 = 1_000;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of a node's cluster room.
#[derive(Debug, Default)]
pub struct Counters {
    refused: Mutex<BTreeMap<&'static str, Refused>>,
    /// Connections to peers that were admitted.
    pub opened: Counter,
    /// Admitted connections that ended.
    pub closed: Counter,
    /// Admitted connections that gave way to a better one to the same peer.
    pub replaced: Counter,
    /// Dials that led to no admitted connection.
    pub dials_failed: Counter,
    /// Gossip that found its peer's queue, or our own, full.
    pub gossip_dropped_full: Counter,
    /// Gossip to an address without a connection.
    pub gossip_dropped_unconnected: Counter,
    /// Gossip that could not be written in time.
    pub gossip_dropped_unsent: Counter,
    /// Gossip of our own that could not be encoded, or is too long to travel.
    pub gossip_dropped_unencoded: Counter,
    /// Values gossiped by others that make no sense.
    pub gossip_values_ignored: Counter,
    /// Families of our own that did not fit into what is gossiped.
    pub gossip_families_left_out: Counter,
    /// Unexpected ends of the membership task.
    pub gossip_restarts: Counter,
    pub wan: WanCounters,
    /// Bytes of connections that have ended; see `Mesh::traffic` for the sum with those that stand.
    pub(super) sent_bytes: Counter,
    pub(super) received_bytes: Counter,
}

/// The feed between this site and others, as it passed this node.
#[derive(Debug, Default)]
pub struct WanCounters {
    pub sent_records: Counter,
    pub sent_frames: Counter,
    /// Bytes of frames as they were sent, and as they were before they were packed.
    pub sent_bytes: Counter,
    pub sent_unpacked_bytes: Counter,
    pub received_records: Counter,
    pub received_bytes: Counter,
    /// Of the received ones those that were lost on the way from their site and fetched nearby.
    pub fetched_nearby: Counter,
}

#[derive(Debug, Default)]
struct Refused {
    count: u64,
    logged: Option<Instant>,
}

impl Counters {
    /// Counts a refusal. True if it may be logged now.
    pub fn refuse(&self, reason: &'static str) -> bool {
        debug_assert!(REFUSALS.contains(&reason), "{reason} is not in the fixed set");
        let mut refused = self.lock();
        let entry = refused.entry(reason).or_default();
        entry.count += 1;
        let now = Instant::now();
        let quiet = entry.logged.is_some_and(|logged| now < logged + Duration::from_millis(LOG_GAP_MS));
        if !quiet {
            entry.logged = Some(now);
        }
        !quiet
    }

    /// How often each reason was met, the ones never met included.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        let refused = self.lock();
        let known = REFUSALS.into_iter().map(|reason| (reason, 0));
        known.chain(refused.iter().map(|(reason, entry)| (*reason, entry.count))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refusals_are_all_counted_and_seldom_logged() {
        let counters = Counters::default();
        assert!(counters.refuse("tls"));
        assert!(!counters.refuse("tls"));
        assert!(counters.refuse("cluster_name"));
        assert_eq!(counters.refused()["tls"], 2);
        assert_eq!(counters.refused()["frame_magic"], 0);
    }
}
