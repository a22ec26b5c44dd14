//! What happens in one run, written down before it starts: nodes, links, writes and faults in time order.
//!
//! A seed draws it or a scenario gives it; the shrinker takes pieces out of it. Everything else (delays,
//! losses, suspicions) is drawn while the world runs, from the same seed.

use kinfolk::core::family::Mode;
use kinfolk::core::verify::VerifyConfig;

use crate::clock::Us;

pub type HostId = usize;
pub type FamilyIx = usize;

/// Index of the cluster's own books in every family table.
pub const BOOKS: FamilyIx = 0;

#[derive(Clone, Debug)]
pub struct History {
    pub seed: u64,
    pub nodes: Vec<NodeSpec>,
    /// Family 0 is the books.
    pub families: Vec<FamilySpec>,
    pub links: Links,
    pub timing: Timing,
    pub rings: Rings,
    pub checking: Checking,
    pub verify: Verify,
    pub writes: Vec<Write>,
    pub faults: Vec<Fault>,
    /// The one fault that is not mended: a bridge, which leaves everyone reachable through someone.
    pub lasting: Option<usize>,
    /// When faults and writes have ended and everything is mended.
    pub heal_at_us: Us,
    /// How long after that the replicas may take to become equal.
    pub converge_within_us: Us,
    /// How purge floors rise, where they do.
    pub floors: Option<Floors>,
    /// After convergence every node writes once more, and that must spread as well.
    pub probe: bool,
}

/// Whether nodes verify, and in what time.
#[derive(Clone, Copy, Debug)]
pub struct Verify {
    pub mode: VerifyMode,
    pub times: VerifyConfig,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyMode {
    On,
    /// A follower without a cursor fetches everything, and nothing is repaired.
    Off,
    /// A follower without a cursor compares; beside that nobody looks at roots, which in the largest worlds is most of the
    /// work.
    Starts,
    /// After its first copy, what a family gets comes by verifies alone: its streams stay closed.
    Only,
}

impl VerifyMode {
    /// Whether what any live node holds comes to all.
    pub fn repairs(self) -> bool {
        matches!(self, Self::On | Self::Only)
    }
}

impl std::str::FromStr for VerifyMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            "starts" => Ok(Self::Starts),
            "only" => Ok(Self::Only),
            other => Err(format!("'{other}' is none of on, off, starts and only")),
        }
    }
}

#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub site: usize,
    pub clock_offset_ms: i64,
    pub clock_drift_ppm: i64,
    pub value_max_bytes: usize,
    /// The greatest version of the protocol that its program speaks.
    pub protocol_version: u8,
    pub commit_us: Us,
    /// Down until a [`FaultKind::Join`].
    pub absent: bool,
}

#[derive(Clone, Debug)]
pub struct FamilySpec {
    pub name: String,
    pub mode: Mode,
    pub keys: Vec<String>,
}

/// Delays as tables of microseconds that a draw picks from: integers only.
#[derive(Clone, Debug)]
pub struct Links {
    pub near_us: Vec<Us>,
    pub far_us: Vec<Us>,
    /// Two sites are always equally far from each other; else each frame draws its delay.
    pub far_by_sites: bool,
    pub near_loss_per_mille: u64,
    pub far_loss_per_mille: u64,
    /// Bytes per second of one direction between two nodes of different sites; 0 is unlimited.
    pub far_bytes_per_s: u64,
    pub idle_timeout_us: Us,
    /// The same between two nodes of one site, where these look more often.
    pub near_silence_us: Option<Us>,
    /// A process dies without a word: nobody notices before a timeout. Else one peer in two is told at once.
    pub silent_deaths: bool,
}

#[derive(Clone, Debug)]
pub struct Timing {
    pub view_up_us: (Us, Us),
    pub view_down_us: (Us, Us),
    pub plan_delay_us: Us,
    /// For how long a needed connection is waited for before a stand-by is used in its place …
    pub late_us: Us,
    /// … and before its member counts as out of reach, and is reached over others.
    pub patience_us: Us,
    /// Who finds another of its site in office takes the office of relay after so long.
    pub relay_after_us: Us,
    pub retry_us: (Us, Us),
    pub idle_say_us: Us,
    pub idle_say_entries: u64,
    pub window_frames: u32,
}

/// Whether all gossip in one ring, or each site in its own and one of each in a ring of sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    One,
    BySite {
        /// Who finds that it is the first of its site waits so long before it speaks.
        speak_after_us: Us,
        /// What no speaker tells of any more is believed for so long.
        hold_us: Us,
        /// What comes from another site is later by up to this.
        wide_us: Us,
    },
}

/// How often the costly checks are made.
#[derive(Clone, Debug)]
pub struct Checking {
    /// One in so many applied frames has its cursor checked against the source's feed.
    pub cursor_one_in: u64,
    pub sweep_every_us: Us,
    /// Whether every commit is compared with the model of the winner.
    pub each_commit: bool,
    /// Whether the cluster's books are followed and written. Off in the largest worlds.
    pub books: bool,
    /// Whether only those connect of whom one needs the other, as in large clusters; else everyone connects.
    pub dial_needed: bool,
    /// Whether the way of each client's write through the cluster is measured.
    pub spread: bool,
    /// Whether all nodes know and reach each other when the world begins.
    pub warm_start: bool,
}

/// Retention shortened to what a run can see the end of.
#[derive(Clone, Copy, Debug)]
pub struct Floors {
    pub retention_ms: u64,
    pub interval_ms: u64,
    pub look_every_us: Us,
    /// How long a verify takes.
    pub verify_us: (Us, Us),
    /// Two halves decommission each other.
    pub halved: bool,
}

#[derive(Clone, Debug)]
pub struct Write {
    pub at_us: Us,
    pub node: HostId,
    pub kind: WriteKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteKind {
    Put {
        family: FamilyIx,
        key: usize,
        bytes: usize,
    },
    Delete {
        family: FamilyIx,
        key: usize,
    },
    DeleteTree {
        family: FamilyIx,
    },
    Share {
        family: FamilyIx,
        mode: Mode,
    },
    Unshare {
        family: FamilyIx,
    },
    /// Lines without stamps.
    ImportFresh {
        family: FamilyIx,
        lines: usize,
    },
    /// Lines that other nodes once acknowledged, with their stamps: an old export.
    ImportStamped {
        family: FamilyIx,
        lines: usize,
    },
    /// The operator of this node gives up another one, or takes it back.
    Decommission {
        subject: HostId,
    },
    Readmit {
        subject: HostId,
    },
    /// The operator of this node looks at its quarantine: takes the first record of it back, or drops it.
    Quarantine {
        release: bool,
    },
    /// Something that must be refused, of the given kind.
    Refused {
        kind: u8,
    },
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub at_us: Us,
    pub for_us: Us,
    pub kind: FaultKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Nodes of different groups do not hear each other.
    Partition {
        groups: Vec<u8>,
    },
    /// Group 0 is not heard by group 1; the other way works.
    OneWay {
        groups: Vec<u8>,
    },
    /// As a partition, but one node hears everyone.
    Bridge {
        groups: Vec<u8>,
        bridge: HostId,
    },
    Flap {
        groups: Vec<u8>,
        period_us: Us,
    },
    /// Connections between the two break, a frame half sent.
    Reset {
        a: HostId,
        b: HostId,
    },
    Slow {
        a: HostId,
        b: HostId,
        extra_us: Us,
        loss_per_mille: u64,
    },
    Crash {
        node: HostId,
    },
    /// The process dies while a commit is under way, which reaches the disk or does not.
    CrashInCommit {
        node: HostId,
        durable: bool,
    },
    Wipe {
        node: HostId,
    },
    Snapshot {
        node: HostId,
    },
    /// The disk goes back to the latest snapshot while the node is down.
    Rollback {
        node: HostId,
    },
    /// The disk goes back to the oldest snapshot while the node is down.
    OldBackup {
        node: HostId,
    },
    /// A copy of the disk starts as another process with the same EID.
    Clone {
        node: HostId,
    },
    Join {
        node: HostId,
    },
    /// Never comes back.
    Die {
        node: HostId,
    },
    ClockJump {
        node: HostId,
        by_ms: i64,
    },
    /// Jumps, and goes back when the fault ends.
    ClockAhead {
        node: HostId,
        by_ms: i64,
    },
    ClockFreeze {
        node: HostId,
    },
    /// The node restarts and its clock has gone back.
    RestartInPast {
        node: HostId,
        by_ms: i64,
    },
    CommitFails {
        node: HostId,
        durable: bool,
    },
    DiskFull {
        node: HostId,
    },
    /// A live node is believed dead.
    Suspect {
        observer: HostId,
        subject: HostId,
    },
    /// A dead node is believed alive.
    Ghost {
        observer: HostId,
        subject: HostId,
    },
    /// The process gets no processor time; what arrives waits.
    Starve {
        node: HostId,
    },
    /// The node speaks the next version of the protocol until the fault ends.
    NextVersion {
        node: HostId,
    },
    /// The node is restarted with a program that speaks the next version as well, and again with the old one when the fault
    /// ends.
    Upgrade {
        node: HostId,
    },
    /// A frame that is no frame arrives.
    Garbage {
        from: HostId,
        to: HostId,
        kind: u8,
    },
}

impl FaultKind {
    /// Its name in coverage, reports and scenario files.
    pub fn name(&self) -> &'static str {
        match self {
            FaultKind::Partition { .. } => "partition",
            FaultKind::OneWay { .. } => "one-way",
            FaultKind::Bridge { .. } => "bridge",
            FaultKind::Flap { .. } => "flap",
            FaultKind::Reset { .. } => "reset",
            FaultKind::Slow { .. } => "slow",
            FaultKind::Crash { .. } => "crash",
            FaultKind::CrashInCommit { durable: false, .. } => "crash-before-commit",
            FaultKind::CrashInCommit { durable: true, .. } => "crash-after-commit",
            FaultKind::Wipe { .. } => "wipe",
            FaultKind::Snapshot { .. } => "snapshot",
            FaultKind::Rollback { .. } => "rollback",
            FaultKind::OldBackup { .. } => "old-backup",
            FaultKind::Clone { .. } => "clone",
            FaultKind::Join { .. } => "join",
            FaultKind::Die { .. } => "die",
            FaultKind::ClockJump { .. } => "clock-jump",
            FaultKind::ClockAhead { .. } => "clock-ahead",
            FaultKind::ClockFreeze { .. } => "clock-freeze",
            FaultKind::RestartInPast { .. } => "restart-in-past",
            FaultKind::CommitFails { durable: false, .. } => "commit-fails",
            FaultKind::CommitFails { durable: true, .. } => "commit-fails-but-lands",
            FaultKind::DiskFull { .. } => "disk-full",
            FaultKind::Suspect { .. } => "suspect",
            FaultKind::Ghost { .. } => "ghost",
            FaultKind::Starve { .. } => "starve",
            FaultKind::NextVersion { .. } => "next-version",
            FaultKind::Upgrade { .. } => "upgrade",
            FaultKind::Garbage { .. } => "garbage",
        }
    }

    /// Every name there is, so that a fault that never fired is seen as a hole.
    pub const NAMES: [&str; 29] = [
        "partition",
        "one-way",
        "bridge",
        "flap",
        "reset",
        "slow",
        "crash",
        "crash-before-commit",
        "crash-after-commit",
        "wipe",
        "snapshot",
        "rollback",
        "old-backup",
        "clone",
        "join",
        "die",
        "clock-jump",
        "clock-ahead",
        "clock-freeze",
        "restart-in-past",
        "commit-fails",
        "commit-fails-but-lands",
        "disk-full",
        "suspect",
        "ghost",
        "starve",
        "next-version",
        "upgrade",
        "garbage",
    ];

    /// Whether the fault takes the network apart (for the timeline).
    pub fn is_partition(&self) -> bool {
        matches!(
            self,
            FaultKind::Partition { .. } | FaultKind::OneWay { .. } | FaultKind::Bridge { .. } | FaultKind::Flap { .. }
        )
    }
}
