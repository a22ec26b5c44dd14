//! What Prometheus scrapes: OpenMetrics text (`prometheus-client`).
//!
//! The number of series depends on families, members and reasons, never on keys. Handles of hot counters
//! are kept, so that counting costs no look-up.

mod asterisk;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use self::asterisk::AsteriskMetrics;
use crate::core::replica::Outcome;
use crate::core::storage::StoreError;
use crate::status::Status;
use crate::store::writer::BatchReport;

/// The content type of the OpenMetrics text format, version 1.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FamilyLabel {
    family: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FollowLabel {
    source: String,
    family: String,
}

type Gauges<L> = Family<L, Gauge>;
type FloatGauge = Gauge<f64, AtomicU64>;

/// All metrics of a node.
pub struct Metrics {
    registry: Mutex<Registry>,
    puts: Counter,
    deletes: Counter,
    won: Counter,
    lost: Counter,
    same: Counter,
    barred: Counter,
    batch_inputs: Histogram,
    batch_seconds: Histogram,
    batch_failures: Family<ReasonLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    verifies: Family<OutcomeLabel, Counter>,
    verify_sent: Counter,
    verify_received: Counter,
    verify_records: Counter,
    differing: Gauges<FamilyLabel>,
    far_future: Counter,
    duplicate_eid: Counter,
    drift_max_ms: AtomicU64,
    drift: FloatGauge,
    clock_ahead: FloatGauge,
    head: Gauge,
    members: Gauges<StateLabel>,
    keys: Gauges<FamilyLabel>,
    tombstones: Gauges<FamilyLabel>,
    purged: Counter,
    quarantine: Family<OutcomeLabel, Counter>,
    quarantined: Gauge,
    floor: Family<FamilyLabel, FloatGauge>,
    pinned: Family<FamilyLabel, FloatGauge>,
    lag_entries: Gauges<FollowLabel>,
    lag_seconds: Family<FollowLabel, FloatGauge>,
    wan_records: Family<DirectionLabel, Counter>,
    wan_bytes: Family<DirectionLabel, Counter>,
    wan_unpacked_bytes: Counter,
    wan_fetched_nearby: Counter,
    ready: Gauge,
    alarms: Gauge,
    reloads: Family<OutcomeLabel, Counter>,
    refused_peers: Gauge,
    revoked_certificates: Gauge,
    certificate_expiry: Gauge,
    asterisks: AsteriskMetrics,
}

/// Brings a counter to what is counted elsewhere.
fn raise(counter: &Counter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

/// What the scrape knows beside the status.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Refusals counted by the cluster's connections, by reason, since the start.
    pub refused: Vec<(&'static str, u64)>,
    /// Ends of reconciles, by outcome, since the start.
    pub verifies: Vec<(&'static str, u64)>,
    /// Bytes that they sent and received, and records that came by them.
    pub verify_traffic: (u64, u64, u64),
    /// Reloads of the configuration, by what came of them.
    pub reloads: [(&'static str, u64); 2],
    /// How far the hybrid clock is ahead of the wall clock, in milliseconds.
    pub clock_ahead_ms: u64,
    pub wan: WanTotals,
}

/// The feed between sites as it passed this node, since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct WanTotals {
    /// Sent and received.
    pub records: [u64; 2],
    /// Sent and received.
    pub bytes: [u64; 2],
    pub sent_unpacked_bytes: u64,
    pub fetched_nearby: u64,
}

impl Metrics {
    pub fn new(eid: &str, site: &str, version: &str) -> Self {
        let mut registry = Registry::with_prefix("kinfolk");
        let labels = [("eid", eid), ("site", site), ("version", version)];
        let info = Info::new(labels.map(|(name, value)| (name.to_string(), value.to_string())).to_vec());
        registry.register("node", "The node itself", info);
        let merges = Family::<OutcomeLabel, Counter>::default();
        let merge = |outcome| merges.get_or_create(&OutcomeLabel { outcome }).clone();
        let metrics = Self {
            puts: Counter::default(),
            deletes: Counter::default(),
            won: merge("won"),
            lost: merge("lost"),
            same: merge("same"),
            barred: merge("barred"),
            batch_inputs: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            batch_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            batch_failures: Family::default(),
            refused: Family::default(),
            verifies: Family::default(),
            verify_sent: Counter::default(),
            verify_received: Counter::default(),
            verify_records: Counter::default(),
            differing: Family::default(),
            far_future: Counter::default(),
            duplicate_eid: Counter::default(),
            drift_max_ms: AtomicU64::new(0),
            drift: FloatGauge::default(),
            clock_ahead: FloatGauge::default(),
            head: Gauge::default(),
            members: Family::default(),
            keys: Family::default(),
            tombstones: Family::default(),
            purged: Counter::default(),
            quarantine: Family::default(),
            quarantined: Gauge::default(),
            floor: Family::default(),
            pinned: Family::default(),
            lag_entries: Family::default(),
            lag_seconds: Family::default(),
            wan_records: Family::default(),
            wan_bytes: Family::default(),
            wan_unpacked_bytes: Counter::default(),
            wan_fetched_nearby: Counter::default(),
            ready: Gauge::default(),
            alarms: Gauge::default(),
            reloads: Family::default(),
            refused_peers: Gauge::default(),
            revoked_certificates: Gauge::default(),
            certificate_expiry: Gauge::default(),
            asterisks: AsteriskMetrics::default(),
            registry: Mutex::new(Registry::default()),
        };
        // A series that began with its first count would hide that count from everyone who asks for increases.
        for reason in STORE_REASONS {
            metrics.batch_failures.get_or_create(&ReasonLabel { reason }).inc_by(0);
        }
        registry.register("merges", "Records that arrived, by what the merge did", merges);
        metrics.register(&mut registry);
        Self { registry: Mutex::new(registry), ..metrics }
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("puts", "Values written at this node", self.puts.clone());
        registry.register("deletes", "Keys deleted at this node", self.deletes.clone());
        registry.register("commit_batch_inputs", "Inputs in one commit", self.batch_inputs.clone());
        let help = "How long a batch took, its commit included";
        registry.register_with_unit("commit_duration", help, Unit::Seconds, self.batch_seconds.clone());
        registry.register("commit_failures", "Batches that failed, by reason", self.batch_failures.clone());
        registry.register("refused", "Input refused, by reason", self.refused.clone());
        let help =
            "Comparisons of a family with a member, by how they ended; \"served\" are those that the member began";
        registry.register("verifies", help, self.verifies.clone());
        let help = "Bytes of frames sent for comparing and repairing";
        registry.register_with_unit("verify_sent", help, Unit::Bytes, self.verify_sent.clone());
        let help = "Bytes of frames received for comparing and repairing";
        registry.register_with_unit("verify_received", help, Unit::Bytes, self.verify_received.clone());
        let help = "Records that came by comparing, not by following";
        registry.register("verify_records_repaired", help, self.verify_records.clone());
        let help = "Members whose root of a shared family, as last heard, is not this node's";
        registry.register("roots_differing", help, self.differing.clone());
        let help = "Records that arrived with stamps beyond max_clock_drift";
        registry.register("merges_far_future", help, self.far_future.clone());
        let help = "Records that arrived with the stamp of another value: two nodes write under one EID";
        registry.register("merges_duplicate_eid", help, self.duplicate_eid.clone());
        let help = "The furthest that an arriving stamp lay ahead of this node's wall clock since the start";
        registry.register_with_unit("clock_drift_seen_max", help, Unit::Seconds, self.drift.clone());
        let help = "How far the hybrid clock is ahead of the wall clock";
        registry.register_with_unit("clock_ahead", help, Unit::Seconds, self.clock_ahead.clone());
        registry.register("feed_head", "The greatest local sequence number", self.head.clone());
        registry.register("members", "Members of the cluster other than this node", self.members.clone());
        registry.register("keys", "Live keys of a shared family, every owner's", self.keys.clone());
        registry.register("tombstones", "Tombstones of a shared family", self.tombstones.clone());
        let help = "Tombstones dropped below a purge floor";
        registry.register("tombstones_purged", help, self.purged.clone());
        let help = "How long a family's purge floor has been due while members keep it from rising";
        registry.register_with_unit("tombstones_pinned", help, Unit::Seconds, self.pinned.clone());
        let help = "The moment up to which deletions of a family are not remembered any more, in seconds since 1970";
        registry.register("purge_floor_timestamp_seconds", help, self.floor.clone());
        registry.register("quarantined", "Keys in quarantine", self.quarantined.clone());
        let help = "Records that were set aside, adopted and dropped in the quarantine";
        registry.register("quarantine", help, self.quarantine.clone());
        let help = "How many sequence numbers this node is behind a source it follows";
        registry.register("follow_lag_entries", help, self.lag_entries.clone());
        let help = "How long this node has been behind a source it follows";
        registry.register_with_unit("follow_lag", help, Unit::Seconds, self.lag_seconds.clone());
        let help = "Records that passed between this node and nodes of other sites";
        registry.register("wan_records", help, self.wan_records.clone());
        let help = "Bytes of the feed between this node and nodes of other sites, as they travelled";
        registry.register_with_unit("wan", help, Unit::Bytes, self.wan_bytes.clone());
        let help = "Bytes of the feed sent to other sites before they were packed";
        registry.register_with_unit("wan_unpacked", help, Unit::Bytes, self.wan_unpacked_bytes.clone());
        let help = "Records that were lost between sites and fetched from a relay nearby, since the start";
        registry.register("wan_fetched_nearby_records", help, self.wan_fetched_nearby.clone());
        registry.register("ready", "1 if the node is ready", self.ready.clone());
        registry.register("alarms", "Alarms that kinfolk status shows", self.alarms.clone());
        registry.register("reloads", "Reloads of the configuration, by outcome", self.reloads.clone());
        let help = "Peers refused for their certificate within the last hour";
        registry.register("refused_peers", help, self.refused_peers.clone());
        let help = "Certificates on the lists of revoked ones";
        registry.register("revoked_certificates", help, self.revoked_certificates.clone());
        let help = "When the node's certificate expires, in seconds since 1970";
        registry.register("certificate_expiry_timestamp_seconds", help, self.certificate_expiry.clone());
        self.asterisks.register(registry);
    }

    /// Counts a batch of the writer.
    pub fn count_batch(&self, report: &BatchReport<'_>) {
        self.batch_inputs.observe(report.inputs as f64);
        self.batch_seconds.observe(report.took.as_secs_f64());
        match report.result {
            Ok(committed) => {
                let counts = &committed.counts;
                self.puts.inc_by(counts.puts);
                self.deletes.inc_by(counts.deletes);
                self.won.inc_by(counts.merges.won);
                self.lost.inc_by(counts.merges.lost);
                self.same.inc_by(counts.merges.same);
                self.barred.inc_by(counts.merges.barred);
                self.purged.inc_by(counts.purged);
                for (outcome, count) in
                    [("set_aside", counts.quarantined), ("adopted", counts.released), ("dropped", counts.discarded)]
                {
                    self.quarantine.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
                }
                self.far_future.inc_by(counts.far_future);
                self.duplicate_eid.inc_by(counts.duplicate_eid);
                let drift_max_ms = self.drift_max_ms.fetch_max(counts.drift_max_ms, Relaxed).max(counts.drift_max_ms);
                self.drift.set(drift_max_ms as f64 / 1e3);
                committed.outcomes.iter().for_each(|outcome| self.count_outcome(outcome));
            }
            Err(error) => {
                let reason = store_reason(error);
                self.batch_failures.get_or_create(&ReasonLabel { reason }).inc();
            }
        }
    }

    fn count_outcome(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Refused(refusal) => self.refuse(refusal.reason()),
            Outcome::Imported(imported) => {
                imported.refused.iter().for_each(|(_, refusal)| self.refuse(refusal.reason()));
            }
            _ => {}
        }
    }

    /// Counts refused input. Reasons are names from the program's text, never input.
    pub fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The text of a scrape, with the gauges as the status shows them.
    pub fn scrape(&self, status: &Status, extra: &Extra) -> Result<String, fmt::Error> {
        self.set_gauges(status, extra);
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(page)
    }

    fn set_gauges(&self, status: &Status, extra: &Extra) {
        self.head.set(signed(status.node.head));
        self.ready.set(i64::from(status.node.ready));
        self.quarantined.set(signed(status.node.quarantined));
        self.alarms.set(signed(status.node.alarms.len() as u64));
        self.certificate_expiry.set(status.node.certificate_expires_unix_s.unwrap_or(0));
        self.refused_peers.set(signed(status.node.access.refused.len() as u64));
        self.revoked_certificates.set(signed(status.node.access.revoked_certificates));
        for (outcome, count) in extra.reloads {
            let counter = self.reloads.get_or_create(&OutcomeLabel { outcome });
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        for (at, direction) in ["sent", "received"].into_iter().enumerate() {
            let label = DirectionLabel { direction };
            raise(&self.wan_records.get_or_create(&label), extra.wan.records[at]);
            raise(&self.wan_bytes.get_or_create(&label), extra.wan.bytes[at]);
        }
        raise(&self.wan_unpacked_bytes, extra.wan.sent_unpacked_bytes);
        raise(&self.wan_fetched_nearby, extra.wan.fetched_nearby);
        self.clock_ahead.set(extra.clock_ahead_ms as f64 / 1e3);
        for (reason, count) in &extra.refused {
            let counter = self.refused.get_or_create(&ReasonLabel { reason });
            raise(&counter, *count);
        }
        for (outcome, count) in &extra.verifies {
            let counter = self.verifies.get_or_create(&OutcomeLabel { outcome });
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        let (sent, received, records) = extra.verify_traffic;
        for (counter, count) in
            [(&self.verify_sent, sent), (&self.verify_received, received), (&self.verify_records, records)]
        {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        let others = || status.members.iter().filter(|member| member.eid != status.node.eid);
        let live = others().filter(|member| member.live).count();
        for (state, count) in [("live", live), ("dead", others().count() - live)] {
            self.members.get_or_create(&StateLabel { state }).set(signed(count as u64));
        }
        self.set_family_gauges(status);
        if let Some(adapter) = &status.adapter {
            self.asterisks.set(adapter);
        }
    }

    /// Families and sources that are gone leave no series behind.
    fn set_family_gauges(&self, status: &Status) {
        self.keys.clear();
        self.tombstones.clear();
        self.floor.clear();
        self.pinned.clear();
        self.differing.clear();
        self.lag_entries.clear();
        self.lag_seconds.clear();
        for family in &status.families {
            let label = FamilyLabel { family: family.name.clone() };
            self.keys.get_or_create(&label).set(signed(family.keys));
            self.tombstones.get_or_create(&label).set(signed(family.tombstones));
            self.differing.get_or_create(&label).set(signed(family.agreement.differing));
            self.floor.get_or_create(&label).set(family.floor.unix_ms.unwrap_or(0) as f64 / 1e3);
            let pinned_ms = family.floor.pinned.as_ref().map_or(0, |pinned| pinned.ms);
            self.pinned.get_or_create(&label).set(pinned_ms as f64 / 1e3);
            for follow in &family.follows {
                let label = FollowLabel { source: follow.source.to_string(), family: family.name.clone() };
                if let Some(entries) = follow.lag_entries {
                    self.lag_entries.get_or_create(&label).set(signed(entries));
                }
                if let Some(lag_ms) = follow.lag_ms {
                    self.lag_seconds.get_or_create(&label).set(lag_ms as f64 / 1e3);
                }
            }
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What [`store_reason`] can say.
const STORE_REASONS: [&str; 4] = ["disk_full", "corrupted", "io", "not_ours"];

fn store_reason(error: &StoreError) -> &'static str {
    match error {
        StoreError::Full => "disk_full",
        StoreError::Corrupted(_) => "corrupted",
        StoreError::Io(_) => "io",
        StoreError::NewerFormat { .. } | StoreError::InUse(_) | StoreError::OtherNode { .. } => "not_ours",
    }
}
