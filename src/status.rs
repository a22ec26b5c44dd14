//! The shape of `GET /v1/status`: written by the HTTP server, read by `kinfolk status`.
//!
//! Counts and moments only, never keys or values. A field that is not known yet is null, not 0.

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
    pub follows: Vec<FollowStatus>,
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
