//! A simulated server: its disk, its clock, and the process that runs on it while it is up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kinfolk::core::clock::UnixMs;
use kinfolk::core::eid::Eid;
use kinfolk::core::nearby::Nearby;
use kinfolk::core::protocol::Versions;
use kinfolk::core::record::Classes;
use kinfolk::core::replica::{Input, Replica};
use kinfolk::core::session::{Follower, Source};
use kinfolk::core::topology::{Member, Patience, Probation};
use kinfolk::store::memory::MemoryStore;

use crate::clock::{Us, WallClock};
use crate::history::{FamilyIx, HostId, NodeSpec};
use crate::judge::Elsewhere;
use crate::model::DiskModel;
use crate::nearby::Brought;
use crate::rings::Voice;
use crate::sources::Sources;
use crate::table::Table;
use crate::verify::Verifying;

pub struct Host {
    pub eid: Eid,
    pub spec: NodeSpec,
    pub clock: WallClock,
    /// What its frames are said to be, whatever was agreed on.
    pub version: u8,
    /// What its program speaks.
    pub spoken: Versions,
    /// The disk while no process has it open.
    pub disk: MemoryStore,
    pub model: DiskModel,
    pub snapshots: Vec<(MemoryStore, DiskModel)>,
    pub process: Option<Process>,
    /// When the present process was started.
    pub up_since: Us,
    /// How often it has been started; events of an earlier process are void.
    pub incarnation: u32,
    pub gone_for_good: bool,
    pub starved_until: Us,
    pub disk_full_until: Us,
    /// What the next commit meets.
    pub next_commit: Option<CommitFate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitFate {
    /// It reaches the disk, though the process is told that it did not or dies first.
    pub durable: bool,
    pub crash: bool,
}

/// Who waits for the outcome of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    Client,
    Follow {
        peer: HostId,
        family: FamilyIx,
        stream: u64,
        reopen: bool,
    },
    Reconcile {
        stream: u64,
        opened: bool,
    },
    /// The purge floors were looked at.
    Floors,
    Nobody,
}

pub struct Queued {
    pub input: Input,
    pub waiting: Waiting,
}

pub struct Process {
    pub replica: Replica<MemoryStore>,
    pub inbox: VecDeque<Queued>,
    pub commit_due: bool,
    pub plan_due: bool,
    pub follows: Table<Follow>,
    pub sources: Sources,
    /// What the replica has been told of the modes elsewhere.
    pub elsewhere_told: Elsewhere,
    /// It may not have come to be known: it is told again.
    pub elsewhere_forgotten: bool,
    /// The same as the judge knows it: only once it is committed.
    pub elsewhere_judged: Elsewhere,
    pub wall_max: UnixMs,
    /// The members of the last plan, and for each the host behind it and which version of what that one told.
    pub members: Vec<Member>,
    pub members_heard: Vec<(HostId, u32)>,
    pub patience: Patience,
    pub probation: Probation,
    /// As it was last told.
    pub settled: bool,
    /// To whom it needs a connection, and whom of these it cannot reach.
    pub dial: BTreeSet<Eid>,
    pub unreached: Arc<BTreeSet<Eid>>,
    /// The plan that looks whether patience with one of them has ended.
    pub patience_ends: Us,
    pub head_at_idle: u64,
    pub voice: Voice,
    pub nearby: Nearby,
    pub verifying: Verifying,
}

/// The following side of a stream, as the daemon's driver keeps it.
pub struct Follow {
    pub wanted: Classes,
    /// It has not been compared since the plan named it.
    pub taking_up: bool,
    /// Another source is being compared with first.
    pub waits_to_compare: bool,
    pub follower: Option<Follower>,
    /// 0: no stream stands.
    pub stream: u64,
    pub replied: bool,
    /// An apply is under way: what arrives meanwhile waits.
    pub applying: bool,
    /// Frames that came early or while an apply was under way, and whether they are damaged, by place.
    pub waiting: BTreeMap<u32, (Arc<[u8]>, bool)>,
    /// The place of the frame to be taken next.
    pub next_place: u32,
    pub gave_up: bool,
    pub retry_due: bool,
    /// What the frame that is being applied brings, if others are told of it.
    pub brought: Option<Box<Brought>>,
}

/// The serving side of a stream.
pub struct Serving {
    pub source: Source,
    pub stream: u64,
    pub in_flight: u32,
    /// There was more to send than the window allowed.
    pub starved: bool,
    pub frames_sent: u32,
}

impl Host {
    pub fn up(&self) -> bool {
        self.process.is_some()
    }

    pub fn wall(&self, now: Us) -> UnixMs {
        self.clock.now(now)
    }
}
