//! What nodes say to each other, one frame kind each. Shapes are fixed by golden vectors in `codec`.

use serde::{Deserialize, Serialize};

use super::clock::Hlc;
use super::codec::Message;
use super::eid::Eid;
use super::family::Mode;
use super::path::Family;
use super::protocol::Versions;
use super::record::{Classes, Record};
use super::sketch::Root;
use super::storage::{Cursor, Run};

/// The longest text a hello may carry in one of its fields, in bytes.
pub const HELLO_TEXT_MAX_BYTES: usize = 256;

/// The first frame of each side on a new connection. It never changes: by it two nodes find out what they have in
/// common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster's name: nodes of another cluster are refused.
    pub cluster: String,
    /// Must be the EID of the certificate.
    pub eid: Eid,
    pub run: Run,
    pub site: String,
    /// `host:port` under which others reach this node.
    pub advertise: String,
    /// The program's version, for people.
    pub version: String,
    /// The versions of the protocol that it speaks.
    pub protocol: Versions,
}

/// A follower's request, the first frame on a follow stream. The scope is the follower's to name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    pub family: Family,
    pub mode: Mode,
    pub classes: Classes,
    /// Where it left off; none: from the beginning.
    pub cursor: Option<Cursor>,
    /// The follower's purge floor of the family: it is exchanged at equal floors only.
    pub floor: Hlc,
}

/// The source's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FollowReply {
    /// Entries after the cursor follow. From now on cursors of this run.
    Resume { run: Run, head: u64 },
    /// The cursor names a run, or a part of a run, that this source does not have, or is older than the
    /// sharing of the family: compare. The stream ends.
    Compare { run: Run, head: u64 },
    /// The family is not shared here, or in another mode. The stream ends.
    NotShared { mode: Option<Mode> },
    /// The source has another purge floor, or is adopting one. The stream ends; whoever has the lower one adopts
    /// the higher one when it hears of it.
    OtherFloor { floor: Option<Hlc> },
}

/// A piece of the change feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    pub records: Vec<Record>,
    /// The follower now has everything of its scope up to this sequence number.
    pub complete_to: u64,
    /// The source's head when this was read.
    pub head: u64,
}

impl Entries {
    /// Makes one piece of two that came one behind the other: both are durable at once then, at the price of one. Gives
    /// back what does not continue this one: it is for the session to judge.
    pub fn join(&mut self, next: Entries) -> Result<(), Entries> {
        if next.complete_to < self.complete_to {
            return Err(next);
        }
        let Entries { mut records, complete_to, head } = next;
        self.records.append(&mut records);
        (self.complete_to, self.head) = (complete_to, head);
        Ok(())
    }
}

/// The first frame of a reconcile: what the opener has of a family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    pub family: Family,
    pub mode: Mode,
    /// Its purge floor: families are compared at equal floors only.
    pub floor: Hlc,
    pub root: Root,
    /// Where the opener has reason to expect a difference: so that the answer can bring the cells that tell it.
    pub counts: Option<Counts>,
}

/// From what may be estimated how much differs: how many records a side has, and its estimator as in `sketch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub records: u64,
    pub estimator: Vec<u8>,
}

/// Every other frame of a reconcile, in both directions; who says what when is told in `reconcile`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reconcile {
    /// The roots are equal, at this head of the answerer's feed. The stream ends.
    Equal { run: Run, head: u64 },
    /// The roots differ. The answerer's first cells, of a set of so many records, and whether they are all for now; its
    /// estimator, unless it could estimate itself how many are needed (else it is empty).
    Differs { run: Run, head: u64, root: Root, records: u64, cells: Vec<u8>, last: bool, estimator: Vec<u8> },
    /// The family is not shared here, or in another mode. The stream ends.
    NotShared { mode: Option<Mode> },
    /// The answerer has another purge floor. The stream ends.
    OtherFloor { floor: Option<Hlc> },
    /// Too many are being answered already. The stream ends.
    Busy,
    /// The answerer's next cells.
    Cells { packed: Vec<u8>, last: bool },
    /// These cells do not decode: send more, up to so many in all.
    More { upto: u32 },
    /// Records that the receiver lacks, and the hashes of the keys of those that the sender lacks. From the answerer, the
    /// last says also that what the opener sent is durable there.
    Records { records: Vec<Record>, wants: Vec<u64>, last: bool },
}

impl Reconcile {
    pub fn name(&self) -> &'static str {
        match self {
            Reconcile::Equal { .. } => "equal",
            Reconcile::Differs { .. } => "differs",
            Reconcile::NotShared { .. } => "not shared",
            Reconcile::OtherFloor { .. } => "other floor",
            Reconcile::Busy => "busy",
            Reconcile::Cells { .. } => "cells",
            Reconcile::More { .. } => "more",
            Reconcile::Records { .. } => "records",
        }
    }
}

/// A message of the membership protocol, opaque here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossip {
    pub payload: Vec<u8>,
}

/// The same between the speakers of sites, who gossip in a ring of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WideGossip {
    pub payload: Vec<u8>,
}

/// A piece of the change feed as it goes between sites: the payload of an [`Entries`] frame, compressed with zstd
/// (RFC 8878). Unpacked it is no longer than a frame's payload may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    pub payload: Vec<u8>,
}

/// A relay has everything of a source at another site, in the scope of that site, up to here: for the relays near it, which
/// may lack some of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    pub family: Family,
    pub source: Eid,
    pub run: Run,
    pub to: u64,
}

/// The answer to a [`Heard`] of one that lacks what comes after this. The records follow as [`Entries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub after: u64,
}

impl Message for Hello {
    const KIND: u8 = 1;
}
impl Message for Follow {
    const KIND: u8 = 2;
}
impl Message for FollowReply {
    const KIND: u8 = 3;
}
impl Message for Entries {
    const KIND: u8 = 4;
}
impl Message for Heard {
    const KIND: u8 = 22;
}
impl Message for Missing {
    const KIND: u8 = 23;
}
impl Message for Packed {
    const KIND: u8 = 20;
}
impl Message for Gossip {
    const KIND: u8 = 5;
}
impl Message for WideGossip {
    const KIND: u8 = 21;
}
impl Message for Compare {
    const KIND: u8 = 6;
}
impl Message for Reconcile {
    const KIND: u8 = 7;
}
