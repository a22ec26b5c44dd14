//! The shape of `GET /v1/why/…`: written by the HTTP server, read by `kinfolk why`.

use serde::{Deserialize, Serialize};

use crate::core::eid::Eid;
use crate::core::family::Mode;

/// Why a path shows what it shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    pub path: String,
    /// The server whose copy it is, in a unique family.
    pub owner: Option<Eid>,
    /// The shared family that it belongs to; null: it is this node's own.
    pub family: Option<String>,
    pub shared: Option<Mode>,
    /// What stands there; null: nothing, not even the trace of a delete.
    pub winner: Option<Write>,
    /// Where the winner came from: `local` (written here), `near` (from this site), `far`.
    pub arrived: Option<String>,
    /// Writes that this node saw lose since it started, newest first.
    pub losers: Vec<LostWrite>,
    /// How many of these a node remembers, of all keys together.
    pub losers_max: usize,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Null: a delete.
    pub value: Option<String>,
    pub stamp: String,
    /// The time in the stamp.
    pub unix_ms: u64,
    /// The node that stamped it.
    pub origin: Eid,
}

/// One write that lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostWrite {
    #[serde(flatten)]
    pub write: Write,
    /// The stamp that it lost against.
    pub lost_to: String,
    /// `overwritten` (here), `replaced` (by what arrived), `late` (it arrived after what beats it).
    pub how: String,
    pub seen_unix_ms: u64,
}
