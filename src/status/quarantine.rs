//! What `GET /v1/quarantine` answers and `kinfolk quarantine list` prints.

use serde::{Deserialize, Serialize};

use crate::core::eid::Eid;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// By key.
    pub entries: Vec<Doubtful>,
}

/// A record that was set aside, since whether it was deleted elsewhere cannot be told any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubtful {
    /// What adopt and drop take: an owned record stands under its owner's EID.
    pub path: String,
    pub owner: Option<Eid>,
    /// None: a deletion.
    pub value: Option<String>,
    pub stamp: String,
    /// When it was written, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The purge floor that it lies below, in milliseconds since 1970.
    pub floor_unix_ms: u64,
    /// When it was set aside, in milliseconds since 1970.
    pub since_unix_ms: u64,
}
