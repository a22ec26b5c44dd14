//! The edge world: nodes with attached Asterisks, in virtual time.
//!
//! The adapter and the replica are the daemon's own; the Asterisk is the model of the measured one
//! ([`crate::asterisk`]). Between them are datagrams that are late, lost, doubled and overtaken. Between the
//! nodes records travel by their feeds, simply: how nodes follow each other is the other world's affair.
//!
//! At rest each Asterisk's database must equal its node's view, apart from what the patch cannot convey.

mod faults;
pub mod history;
mod judge;
mod pbx;
pub mod steps;
mod swarm;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::ControlFlow;

use kinfolk::asterisk::adapter::{Adapter, Credentials, Event as Happening, Remote, Transport};
use kinfolk::core::clock::Stamp;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
#[cfg(feature = "mutants")]
use kinfolk::core::mutants::Mutant;
use kinfolk::core::path::{Family, Path};
use kinfolk::core::record::{Record, RecordKey};
use kinfolk::core::replica::{Apply, Input, Replica};
use kinfolk::core::storage::Read;
use kinfolk::store::memory::MemoryStore;

use crate::check::{Check, Checked, Violation};
use crate::queue::Queue;
use crate::rng::{Rng, mix};
use history::{History, Ms, Victim};
use pbx::Pbx;
pub use swarm::{Found, swarm};

const WALL_AT_START: u64 = 1_790_000_000_000;
/// How often nodes look for what a lost frame did not bring.
const SYNC_EVERY: Ms = 700;
/// An Asterisk answers 489 for so long after its start.
const BOOT_MS: Ms = 400;
/// A run has some thousands of events.
const EVENTS_MAX: u64 = 500_000;

#[derive(Debug)]
enum Event {
    ToNode { node: usize, bytes: Vec<u8> },
    ToAsterisk { asterisk: usize, bytes: Vec<u8> },
    Commit { node: usize, incarnation: u32 },
    NodeTimer { node: usize, incarnation: u32 },
    AsteriskTimer { asterisk: usize, incarnation: u32 },
    Records { from: usize, to: usize, incarnations: (u32, u32), family: Family, records: Vec<Record>, cursor: u64 },
    Sync { from: usize, to: usize },
    Write { index: usize },
    Fault { index: usize },
    StartNode { node: usize },
    StartAsterisk { asterisk: usize },
    Load { asterisk: usize, incarnation: u32 },
    Heal,
    End,
}

struct Node {
    eid: Eid,
    disk: Option<MemoryStore>,
    process: Option<Process>,
    incarnation: u32,
    full_until: Ms,
    cut_until: Ms,
}

struct Process {
    replica: Replica<MemoryStore>,
    adapter: Adapter,
    inbox: Vec<(Input, Waiting)>,
    commit_due: bool,
    timer: Option<Ms>,
    /// How far the feeds of the others have been taken.
    cursors: BTreeMap<(usize, Family), u64>,
}

#[derive(Clone, Debug)]
enum Waiting {
    Adapter,
    Peer { from: usize, family: Family, cursor: u64 },
    Nobody,
}

/// Planted faults of the adapter: hunted here.
#[cfg(feature = "mutants")]
pub const MUTANTS: [Mutant; 15] = [
    Mutant::AnsweredBeforeCommit,
    Mutant::AnswersAreUpdates,
    Mutant::AnswersNeverOld,
    Mutant::CursorBeforePush,
    Mutant::DeletesNotTold,
    Mutant::EchoForgotten,
    Mutant::LateAnswers,
    Mutant::OldContentWins,
    Mutant::OvertakenForgotten,
    Mutant::PushNotRepeated,
    Mutant::RestartIgnored,
    Mutant::RetransmissionWritten,
    Mutant::SameBodyWrittenAgain,
    Mutant::ShadowNotKept,
    Mutant::UniqueDelete,
];

/// What a run counts, for coverage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub events: u64,
    pub packets: u64,
    pub lost: u64,
    pub accepted: u64,
    pub dropped_by_asterisk: u64,
    /// Keys whose last write at the only Asterisk that wrote them is not what it holds at rest.
    pub rolled_back: u64,
    /// Keys that an Asterisk lacks because it could not tell of its delete.
    pub exempt: u64,
}

pub struct World {
    history: History,
    now: Ms,
    queue: Queue<Event>,
    rng: Rng,
    trace: u64,
    nodes: Vec<Node>,
    pbxes: Vec<Pbx>,
    /// Nothing passes between a node and its Asterisk until then.
    edges_cut: Vec<Ms>,
    families: [(Family, Mode); 2],
    /// The stamp that each value got.
    stamped: BTreeMap<String, Stamp>,
    /// The last write to each path: by which Asterisk, and what; none if it had several writers.
    last_writes: BTreeMap<String, Option<(usize, Option<String>)>>,
    healed: bool,
    pub stats: Stats,
}

/// What came of a run.
pub struct Ran {
    pub violation: Option<Violation>,
    pub trace: u64,
    pub stats: Stats,
}

/// Runs a history to its end or to the first check that does not hold.
pub fn run(history: History) -> Ran {
    let mut world = World::new(history);
    let violation = world.run().err();
    Ran { violation, trace: world.trace, stats: world.stats }
}

impl Stats {
    fn add(&mut self, other: Stats) {
        self.events += other.events;
        self.packets += other.packets;
        self.lost += other.lost;
        self.accepted += other.accepted;
        self.dropped_by_asterisk += other.dropped_by_asterisk;
        self.rolled_back += other.rolled_back;
        self.exempt += other.exempt;
    }
}

fn node_eid(node: usize) -> Eid {
    Eid::new([2, 0, 0, 0, 1, node as u8])
}

fn node_address(node: usize) -> String {
    format!("10.0.0.{}:5060", node + 1)
}

impl World {
    fn new(history: History) -> Self {
        let rng = Rng::new(history.seed).fork(78);
        let family = |name: &str| Family::new(name).expect("a family");
        let node = |node| Node {
            eid: node_eid(node),
            disk: Some(MemoryStore::new()),
            process: None,
            incarnation: 0,
            full_until: 0,
            cut_until: 0,
        };
        let mut world = Self {
            now: 0,
            queue: Queue::new(),
            rng,
            trace: mix(history.seed),
            nodes: (0..history.pairs).map(node).collect(),
            pbxes: (0..history.pairs).map(|at| Pbx::new(at, &history)).collect(),
            edges_cut: vec![0; history.pairs],
            families: [(family("foo"), Mode::Global), (family("uni"), Mode::Unique)],
            stamped: BTreeMap::new(),
            last_writes: BTreeMap::new(),
            healed: false,
            stats: Stats::default(),
            history,
        };
        world.set_the_stage();
        world
    }

    fn set_the_stage(&mut self) {
        for node in 0..self.history.pairs {
            let at = self.rng.below(300);
            self.queue.put(at, Event::StartNode { node });
            let at = self.rng.below(300);
            self.queue.put(at, Event::StartAsterisk { asterisk: node });
            for to in (0..self.history.pairs).filter(|to| *to != node) {
                self.queue.put(SYNC_EVERY, Event::Sync { from: node, to });
            }
        }
        for (index, (at, _)) in self.history.writes.iter().enumerate() {
            self.queue.put(*at, Event::Write { index });
        }
        for (index, (at, _)) in self.history.faults.iter().enumerate() {
            self.queue.put(*at, Event::Fault { index });
        }
        self.queue.put(self.history.heal_at, Event::Heal);
        self.queue.put(self.history.heal_at + self.history.settle_ms, Event::End);
    }

    fn run(&mut self) -> Checked {
        while let Some((at, event)) = self.queue.take() {
            self.now = at;
            self.stats.events += 1;
            self.trace = mix(self.trace ^ at ^ (self.stats.events << 32));
            if matches!(event, Event::End) {
                return self.judge();
            }
            if self.stats.events > EVENTS_MAX {
                return broken(Check::Ends, format!("{EVENTS_MAX} events, and only {at} ms have passed: {event:?}"));
            }
            self.handle(event)?;
            if let Some((after, victim)) = self.history.crash_after
                && self.stats.events == after
            {
                self.crash(victim, 1_000);
            }
        }
        Ok(())
    }

    fn wall(&self) -> u64 {
        WALL_AT_START + self.now
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::ToNode { node, bytes } => {
                let source: SocketAddr = self.pbxes[node].address().parse().expect("an address");
                let from = Remote { transport: Transport::Udp, address: source, connection: 0 };
                self.adapter(node, Happening::Received { from, bytes })
            }
            Event::ToAsterisk { asterisk, bytes } => {
                let (now, source) = (self.now, node_address(asterisk));
                self.asterisk(asterisk, |pbx| pbx.receive(now, &source, &bytes));
                Ok(())
            }
            Event::Commit { node, incarnation } if self.nodes[node].incarnation == incarnation => self.commit(node),
            Event::NodeTimer { node, incarnation } if self.nodes[node].incarnation == incarnation => {
                self.nodes[node].process.as_mut().expect("it is up").timer = None;
                self.adapter(node, Happening::Timer)
            }
            Event::AsteriskTimer { asterisk, incarnation } if self.pbxes[asterisk].incarnation == incarnation => {
                let now = self.now;
                self.pbxes[asterisk].timer = None;
                self.asterisk(asterisk, |pbx| pbx.timer(now));
                Ok(())
            }
            Event::Records { from, to, incarnations, family, records, cursor } => {
                if incarnations == (self.nodes[from].incarnation, self.nodes[to].incarnation) {
                    self.arrive(from, to, family, records, cursor);
                }
                Ok(())
            }
            Event::Sync { from, to } => {
                self.queue.put(self.now + SYNC_EVERY, Event::Sync { from, to });
                self.tell(from, to);
                Ok(())
            }
            Event::Write { index } => self.write(index),
            Event::Fault { index } => {
                self.fault(index);
                Ok(())
            }
            Event::StartNode { node } => self.start_node(node),
            Event::StartAsterisk { asterisk } => {
                self.start_asterisk(asterisk);
                Ok(())
            }
            Event::Load { asterisk, incarnation } if self.pbxes[asterisk].incarnation == incarnation => {
                let now = self.now;
                self.asterisk(asterisk, |pbx| pbx.load(now));
                Ok(())
            }
            Event::Heal => {
                self.heal();
                Ok(())
            }
            Event::Commit { .. } | Event::NodeTimer { .. } | Event::AsteriskTimer { .. } | Event::Load { .. } => Ok(()),
            Event::End => unreachable!("handled by the caller"),
        }
    }
}

pub(crate) fn credentials() -> Credentials {
    Credentials { username: "ast".into(), password: "secret".into() }
}

/// What a node would show to an Asterisk: plain paths, and others' copies under their EID.
fn shown(read: &impl Read, families: &[(Family, Mode)], me: Eid) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    for (family, mode) in families {
        read.scan(kinfolk::core::storage::Span::Under(family), &mut |(key, stored)| {
            if mode.owns(&key)
                && let Some(value) = stored.register.value()
            {
                let path = match key.owner {
                    Some(owner) if owner != me => format!("/{owner}{}", key.path),
                    _ => key.path.to_string(),
                };
                shown.insert(path, value.to_string());
            }
            ControlFlow::Continue(())
        })
        .expect("memory reads");
    }
    shown
}

type Keys = BTreeSet<String>;

fn broken(check: Check, what: String) -> Checked {
    Err(Violation { check, what })
}

/// The record that an Asterisk's write means.
fn record_of(path: &Path, owner: Option<Eid>) -> RecordKey {
    RecordKey { owner, path: path.clone() }
}
