//! The status of a node as of now: what `GET /v1/status` and `/metrics` show.

mod floors;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::alarms::Alarms;
use super::reload::Reloader;
use super::{expires_soon, unix_ms};
use crate::asterisk::driver::Shown;
use crate::asterisk::event::{AttachmentStatus, RefusedReason};
use crate::cluster::streams::{Agreement, Follows, Streams};
use crate::cluster::{Gossip, Mesh, WanCounters};
use crate::core::family::Mode;
use crate::core::floor::Policy;
use crate::core::path::Family;
use crate::core::record::Classes;
use crate::core::replica::Tally;
use crate::core::storage::Reads;
use crate::core::topology::Member;
use crate::metrics::{Extra, WanTotals};
use crate::status::{
    AccessStatus, AdapterStatus, AgreementStatus, AsteriskStatus, FamilyStatus, FollowStatus, MemberStatus, NodeStatus,
    RefusedStatus, Status,
};
use crate::store::writer::{Database, Published};

/// For how long a disk that has lost its past is spoken of.
const ROLLED_BACK_SHOWN: std::time::Duration = std::time::Duration::from_secs(3_600);

pub struct Reporter<R> {
    pub database: Database<R>,
    pub mesh: Mesh,
    pub gossip: Gossip,
    pub streams: Streams,
    pub alarms: Alarms,
    pub ready: Arc<AtomicBool>,
    pub since_unix_ms: u64,
    pub reloader: Reloader,
    /// How purge floors rise.
    pub policy: Policy,
    /// None if no Asterisk is attached.
    pub adapter: Option<Shown>,
}

impl<R: Reads> Reporter<R> {
    pub fn report(&self) -> (Status, Extra) {
        let published = self.database.published();
        let status = Status {
            node: self.node(&published),
            members: self.members(&published),
            families: self.families(&published),
            adapter: self.adapter.as_ref().map(adapter_status),
        };
        let extra = Extra {
            refused: self.mesh.counters().refused().into_iter().collect(),
            verifies: self.streams.verifies().outcomes().into_iter().collect(),
            verify_traffic: self.streams.verifies().traffic(),
            reloads: self.reloader.counts(),
            wan: wan_totals(&self.mesh.counters().wan),
            clock_ahead_ms: published.clock_last.unix_ms().saturating_sub(unix_ms()),
        };
        (status, extra)
    }

    fn node(&self, published: &Published) -> NodeStatus {
        let duplicate_eid = *self.mesh.duplicate_eid().borrow();
        NodeStatus {
            eid: self.database.eid(),
            site: self.mesh.config().site.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            run: published.run.to_string(),
            head: published.ledger.head,
            ready: self.ready.load(Ordering::Acquire) && !duplicate_eid,
            since_unix_ms: self.since_unix_ms,
            certificate_expires_unix_s: Some(self.mesh.identity().expires_unix_s()),
            quarantined: published.ledger.quarantined,
            alarms: self.alarm_texts(published, duplicate_eid),
            access: self.access(),
        }
    }

    fn alarm_texts(&self, published: &Published, duplicate_eid: bool) -> Vec<String> {
        let mut alarms = Vec::new();
        if duplicate_eid {
            alarms.push(format!(
                "another live node has this node's EID {}: stop one of them, and give it a certificate of its own and an \
                 empty data directory",
                self.database.eid()
            ));
        }
        if let Some(fault) = &published.fault {
            alarms.push(format!("the last write failed: {fault}"));
        }
        if let Some(days) = expires_soon(self.mesh.identity().expires_unix_s()) {
            alarms
                .push(format!("the certificate expires in {days} days: make a new one with kinfolk tls issue --renew"));
        }
        if self.mesh.refused_by_full_ring() {
            alarms.push(
                "others refuse this node: their ring of gossip has no room for one more; set [gossip] rings = \"by-site\" \
                 on every node"
                    .to_string(),
            );
        }
        self.trust_alarms(published, &mut alarms);
        alarms.extend(self.streams.conflicts().iter().map(|conflict| {
            let (family, member, mode) = (&conflict.family, conflict.member, conflict.mode);
            format!("{member} shares '{family}' as {mode}, this node does not: no exchange until one of them changes")
        }));
        if self.streams.verifies().unknown_run().is_some_and(|at| at.elapsed() < ROLLED_BACK_SHOWN) {
            alarms.push(
                "this node's disk was lost, put back or copied: what is missing comes from the members by itself; if it was \
                 copied, stop the other node"
                    .to_string(),
            );
        }
        self.tombstone_alarms(published, &mut alarms);
        alarms.extend(self.alarms.texts(unix_ms()));
        alarms
    }

    /// What is wrong with the certificate and the configuration of this node, and who is refused for theirs.
    fn trust_alarms(&self, published: &Published, alarms: &mut Vec<String>) {
        if let Some(fault) = self.reloader.fault() {
            alarms.push(format!("the last reload changed nothing: {fault}"));
        }
        let identity = self.mesh.identity();
        let shared = published.ledger.families.marks().keys();
        alarms.extend(shared.filter(|family| !identity.grants().allow(family)).map(|family| {
            format!("this node's certificate does not name the shared family '{family}': others do not exchange it")
        }));
        alarms.extend(self.mesh.refused_peers().into_values().map(|refused| format!("refused: {}", refused.why)));
    }

    /// What the others are trusted for, where that is not everything.
    fn access(&self) -> AccessStatus {
        let now = Instant::now();
        let refused = self.mesh.refused_peers().into_iter().map(|(eid, refused)| RefusedStatus {
            eid,
            why: refused.why,
            last_ms_ago: u64::try_from((now - refused.last).as_millis()).unwrap_or(u64::MAX),
        });
        let peers = self.mesh.peers();
        let peers = peers.borrow();
        let limited = peers.iter().filter_map(|(eid, peer)| Some((*eid, peer.grants.names()?)));
        AccessStatus {
            revoked_certificates: self.mesh.identity().revoked() as u64,
            refused: refused.collect(),
            limited: limited.collect(),
        }
    }

    fn members(&self, published: &Published) -> Vec<MemberStatus> {
        let families = |families: &BTreeMap<Family, Mode>| {
            families.iter().map(|(family, mode)| (family.to_string(), *mode)).collect()
        };
        let marks = published.ledger.families.marks();
        let own = MemberStatus {
            eid: self.database.eid(),
            site: self.mesh.config().site.clone(),
            address: self.mesh.advertise().to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            live: true,
            connected: true,
            head: Some(published.ledger.head),
            families: families(&marks.iter().map(|(family, mark)| (family.clone(), mark.mode)).collect()),
        };
        let others = self.gossip.members();
        let others = others.borrow();
        let other = |member: &Member| MemberStatus {
            eid: member.eid,
            site: member.site.clone(),
            address: member.address.clone(),
            version: member.version.clone(),
            live: member.live,
            connected: member.connected,
            // Of a node that is heard of over speakers only, the head is not told.
            head: Some(member.head).filter(|head| *head > 0),
            families: families(&member.families),
        };
        let mut status: Vec<MemberStatus> = others.iter().map(other).chain([own]).collect();
        status.sort_by_key(|member| member.eid);
        status
    }

    fn families(&self, published: &Published) -> Vec<FamilyStatus> {
        let follows = self.streams.follows();
        let now = Instant::now();
        let marks = published.ledger.families.marks();
        let family_status = |(family, mark): (&Family, &crate::core::family::Mark)| {
            let Tally { keys, tombstones } = published.ledger.tallies.get(family).copied().unwrap_or_default();
            let follows = follows_of(&follows, family, now);
            let agreement = self.agreement(published, family, now);
            let floor = self.floor(published, family);
            FamilyStatus { name: family.to_string(), mode: mark.mode, keys, tombstones, agreement, floor, follows }
        };
        marks.iter().map(family_status).collect()
    }

    fn agreement(&self, published: &Published, family: &Family, now: Instant) -> AgreementStatus {
        let Agreement { equal, differing, differing_since } = self.streams.verifies().agreement(family);
        let ms = |since| u64::try_from(now.saturating_duration_since(since).as_millis()).ok();
        AgreementStatus {
            root: published.ledger.summaries.get(family).map(|summary| summary.root.to_string()),
            equal: equal as u64,
            differing: differing as u64,
            differing_ms: differing_since.and_then(ms),
        }
    }
}

fn wan_totals(wan: &WanCounters) -> WanTotals {
    WanTotals {
        records: [wan.sent_records.get(), wan.received_records.get()],
        bytes: [wan.sent_bytes.get(), wan.received_bytes.get()],
        sent_unpacked_bytes: wan.sent_unpacked_bytes.get(),
        fetched_nearby: wan.fetched_nearby.get(),
    }
}

fn follows_of(follows: &Follows, family: &Family, now: Instant) -> Vec<FollowStatus> {
    let of_family: BTreeMap<_, _> = follows.iter().filter(|((_, of), _)| of == family).collect();
    let follow_status = |((source, _), progress): (&(_, Family), &crate::cluster::streams::Progress)| FollowStatus {
        source: *source,
        classes: class_names(progress.classes),
        cursor_seq: Some(progress.cursor_seq),
        head: Some(progress.head),
        lag_entries: Some(progress.lag_entries()),
        lag_ms: u64::try_from(progress.lag(now).as_millis()).ok(),
        connected: progress.connected,
    };
    of_family.into_iter().map(follow_status).collect()
}

fn adapter_status(shown: &Shown) -> AdapterStatus {
    let by_name = |counts: &BTreeMap<RefusedReason, u64>| {
        counts.iter().map(|(reason, count)| (reason.as_str().to_string(), *count)).collect()
    };
    let asterisk = |one: &AttachmentStatus| {
        let counts = one.counts;
        AsteriskStatus {
            name: one.name.clone(),
            reachable: one.reachable,
            heard_ago_ms: one.last_heard.map(|at| unix_ms().saturating_sub(at)),
            in_flight: one.in_flight as u64,
            lag_entries: one.lag,
            accepted: counts.accepted,
            written: counts.written,
            repeated: counts.repeated,
            delivered: counts.delivered,
            delivered_entries: counts.delivered_entries,
            failed: counts.failed,
            undeliverable: counts.undeliverable,
            restarts: counts.restarts,
            delayed: counts.delayed,
            refused: by_name(&one.refused),
            fault: one.fault.clone(),
        }
    };
    AdapterStatus {
        listening: shown.listening.iter().map(|listen| String::from(*listen)).collect(),
        refused: by_name(&shown.refusals.counts()),
        asterisks: shown.attachments.borrow().iter().map(asterisk).collect(),
    }
}

fn class_names(classes: Classes) -> Vec<String> {
    classes.to_string().split('+').map(str::to_string).collect()
}
