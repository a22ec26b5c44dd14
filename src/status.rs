//! The shape of `GET /v1/status`: written by the HTTP server, read by `kinfolk status`.
//!
//! Counts and moments only, never keys or values. A field that is not known yet is null, not 0.

pub mod quarantine;
pub mod why;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::core::eid::Eid;
use crate::core::family::Mode;

/// What a node says of itself and of the cluster as it sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub node: NodeStatus,
    /// Every member known by gossip, the node itself included, by EID.
    pub members: Vec<MemberStatus>,
    /// The families that this node shares, by name.
    pub families: Vec<FamilyStatus>,
    /// The attached Asterisks; null without any.
    #[serde(default)]
    pub adapter: Option<AdapterStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub eid: Eid,
    pub site: String,
    pub version: String,
    /// The run: a random id of this opening of the store, as 16 hex digits.
    pub run: String,
    /// The last committed local sequence number.
    pub head: u64,
    pub ready: bool,
    /// When the node started.
    pub since_unix_ms: u64,
    pub certificate_expires_unix_s: Option<i64>,
    /// Keys in quarantine.
    #[serde(default)]
    pub quarantined: u64,
    /// What a person should look at: one sentence each.
    #[serde(default)]
    pub alarms: Vec<String>,
    #[serde(default)]
    pub access: AccessStatus,
}

/// Whom the node refuses for their certificate, and who is trusted for some families only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessStatus {
    /// How many certificates are on the lists of revoked ones.
    pub revoked_certificates: u64,
    /// Peers refused within the last hour.
    pub refused: Vec<RefusedStatus>,
    /// The families that a connected peer is trusted for; one that is not here: all.
    pub limited: BTreeMap<Eid, Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStatus {
    pub eid: Eid,
    pub why: String,
    pub last_ms_ago: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub eid: Eid,
    pub site: String,
    /// `host:port` as advertised.
    pub address: String,
    pub version: String,
    /// The failure detector's opinion.
    pub live: bool,
    /// Whether there is a connection to it; true for the node itself.
    pub connected: bool,
    /// The feed head it gossips.
    pub head: Option<u64>,
    pub families: BTreeMap<String, Mode>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyStatus {
    pub name: String,
    pub mode: Mode,
    /// Live records, of every owner.
    pub keys: u64,
    pub tombstones: u64,
    /// Whether the members that this node exchanges it with have the same, as far as it has heard.
    #[serde(default)]
    pub agreement: AgreementStatus,
    #[serde(default)]
    pub floor: FloorStatus,
    pub follows: Vec<FollowStatus>,
}

/// The purge floor of a family: up to which moment deletions are not remembered any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorStatus {
    /// Null before it has risen for the first time.
    pub unix_ms: Option<u64>,
    /// A higher one is being adopted: the family is not exchanged until then.
    pub adopting: bool,
    /// Who keeps it from rising; null if it is not due.
    pub pinned: Option<PinnedStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedStatus {
    pub by: Vec<Eid>,
    /// The step that they have not taken: `promised`, `gathered`, `spread`.
    pub lacks: String,
    /// For how long the floor could have risen.
    pub ms: u64,
}

/// Members by whether the root of what they have of a family is this node's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreementStatus {
    pub root: Option<String>,
    pub equal: u64,
    pub differing: u64,
    /// For how long some root has differed; null if all are equal.
    pub differing_ms: Option<u64>,
}

/// One follow stream of one family, seen from the follower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowStatus {
    pub source: Eid,
    /// `local`, `near`, `far`.
    pub classes: Vec<String>,
    /// How far this node has everything; null before the first transfer is complete.
    pub cursor_seq: Option<u64>,
    /// The source's head as last heard.
    pub head: Option<u64>,
    pub lag_entries: Option<u64>,
    pub lag_ms: Option<u64>,
    pub connected: bool,
}

/// The SIP adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterStatus {
    /// As `[sip] listen` has it.
    pub listening: Vec<String>,
    /// Refusals of messages that concern no attachment, by reason.
    pub refused: BTreeMap<String, u64>,
    /// In the order of the configuration.
    pub asterisks: Vec<AsteriskStatus>,
}

/// One attached Asterisk. Counts are since the start of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsteriskStatus {
    pub name: String,
    /// Whether the last thing that was sent to it was answered.
    pub reachable: bool,
    /// How long ago anything last came from it; null: not since the start.
    pub heard_ago_ms: Option<u64>,
    /// Entries of the message that waits for its answer.
    pub in_flight: u64,
    /// Changes that it has not got yet.
    pub lag_entries: u64,
    /// Its PUBLISHes that were answered 200.
    pub accepted: u64,
    /// Entries of these that became writes.
    pub written: u64,
    /// Repetitions that were recognised.
    pub repeated: u64,
    /// Messages of ours that it answered 200, and the entries in them.
    pub delivered: u64,
    pub delivered_entries: u64,
    /// Messages of ours that it did not.
    pub failed: u64,
    /// Entries that the patch cannot take, since they are too long.
    pub undeliverable: u64,
    /// How often it was found restarted.
    pub restarts: u64,
    /// Answers that waited because of its quota of updates.
    pub delayed: u64,
    /// Refusals by reason.
    pub refused: BTreeMap<String, u64>,
    /// Why the last message to it was not accepted, if it was not.
    pub fault: Option<String>,
}

/// `2026-11-22 08:55:00 UTC`. The date by Howard Hinnant's `civil_from_days`: years that begin in March put the
/// leap day last.
pub fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}
