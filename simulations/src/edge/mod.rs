//! The edge world: nodes with attached Asterisks, in virtual time.
//!
//! The adapter and the replica are the daemon's own; the Asterisk is the model of the measured one
//! ([`crate::asterisk`]). Between them are datagrams that are late, lost, doubled and overtaken. Between the
//! nodes records travel by their feeds, simply: how nodes follow each other is the other world's affair.
//!
//! At rest each Asterisk's database must equal its node's view, apart from what the patch cannot convey.

pub mod history;
mod judge;
mod pbx;
pub mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kinfolk::asterisk::adapter::{
    Adapter, AddressBlock, AttachmentSettings, Credentials, Destination, Effect, Event as Happening, Quotas, Remote,
    Sight, Times, Transport,
};
use kinfolk::asterisk::digest::Algorithm;
use kinfolk::core::clock::Stamp;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
#[cfg(feature = "mutants")]
use kinfolk::core::mutants::Mutant;
use kinfolk::core::path::{Family, Limits, Path, Value};
use kinfolk::core::record::{Record, RecordKey};
use kinfolk::core::replica::{Apply, Input, Outcome, Replica, Settings};
use kinfolk::core::storage::{Read, Run, StoreError};
use kinfolk::store::memory::MemoryStore;

use crate::check::{Check, Checked, Violation};
use crate::queue::Queue;
use crate::rng::{Rng, mix};
use history::{Fault, History, Ms, Victim, Write};
use pbx::Pbx;

const WALL_AT_START: u64 = 1_790_000_000_000;
/// How often nodes look for what a lost frame did not bring.
const SYNC_EVERY: Ms = 700;
/// An Asterisk answers 489 for so long after its start.
const BOOT_MS: Ms = 400;

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

/// What a swarm of the edge world found.
#[derive(Default)]
pub struct Found {
    pub runs: u64,
    pub stats: Stats,
    /// The least seed that failed.
    pub failure: Option<(u64, Violation)>,
    pub trace: u64,
}

/// Runs seeds one after another on each thread, until one fails or `enough`.
pub fn swarm(
    first: u64,
    seeds: u64,
    threads: usize,
    enough: &(dyn Fn() -> bool + Sync),
    progress: &(dyn Fn(u64) + Sync),
) -> Found {
    let (next, found) = (AtomicU64::new(first), Mutex::new(Found::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let failed = found.lock().expect("no thread panics with it").failure.is_some();
                    if seed - first >= seeds || failed || enough() {
                        return;
                    }
                    let ran = run(history::draw(seed));
                    let mut found = found.lock().expect("no thread panics with it");
                    found.runs += 1;
                    found.trace ^= mix(ran.trace ^ mix(seed));
                    found.stats.add(ran.stats);
                    progress(found.runs);
                    if let Some(violation) = ran.violation
                        && found.failure.as_ref().is_none_or(|(least, _)| seed < *least)
                    {
                        found.failure = Some((seed, violation));
                    }
                }
            });
        }
    });
    found.into_inner().expect("all threads have ended")
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
                if incarnations == (self.nodes[from].incarnation, self.nodes[to].incarnation)
                    && !self.peers_cut(from, to)
                {
                    let mode = self.families.iter().find(|(one, _)| *one == family).expect("one of the two").1;
                    let apply = Apply {
                        source: node_eid(from),
                        crossing: false,
                        family: family.clone(),
                        mode,
                        since: None,
                        records,
                        cursor: None,
                        drop_cursor: None,
                    };
                    self.submit(to, Input::Apply(apply), Waiting::Peer { from, family, cursor });
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

    // ---- processes ----------------------------------------------------------------------------

    fn start_node(&mut self, node: usize) -> Checked {
        if self.nodes[node].process.is_some() {
            return Ok(());
        }
        let wall = self.wall();
        self.nodes[node].incarnation += 1;
        let incarnation = u64::from(self.nodes[node].incarnation);
        let run = Run(mix(self.history.seed ^ (node as u64) << 32 ^ incarnation));
        let disk = self.nodes[node].disk.take().expect("it is down");
        let mut replica = Replica::open(disk, Settings::new(node_eid(node)), run, wall).expect("memory opens");
        if incarnation == 1 {
            let share = |(family, mode): &(Family, Mode)| Input::Share { family: family.clone(), mode: *mode };
            replica.handle(self.families.iter().map(share).collect(), wall).expect("memory commits");
        }
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&run.0.to_le_bytes());
        let adapter = Adapter::new(node_eid(node), vec![self.settings_of(node)], seed);
        self.nodes[node].process = Some(Process {
            replica,
            adapter,
            inbox: Vec::new(),
            commit_due: false,
            timer: None,
            cursors: BTreeMap::new(),
        });
        self.adapter(node, Happening::Woken)
    }

    fn settings_of(&self, node: usize) -> AttachmentSettings {
        let pbx = &self.pbxes[node];
        let address: SocketAddr = pbx.address().parse().expect("an address");
        AttachmentSettings {
            name: pbx.name().to_owned(),
            eid: pbx.eid(),
            uri: format!("sip:{}@{}", pbx.name(), pbx.address()),
            transport: Transport::Udp,
            from: format!("sip:kinfolk@{}", node_address(node)),
            sent_by: node_address(node),
            listen_user: "kinfolk".into(),
            credentials: self.history.credentials.then(credentials),
            algorithm: Algorithm::Md5,
            accept_from: vec![AddressBlock { address: address.ip(), prefix_bits: 32 }],
            families: Vec::new(),
            allow_family_delete: false,
            quotas: Quotas::default(),
            limits: Limits::default(),
            times: Times::default(),
        }
    }

    fn crash(&mut self, victim: Victim, for_ms: Ms) {
        match victim {
            Victim::Node(node) => {
                if let Some(process) = self.nodes[node].process.take() {
                    self.nodes[node].disk = Some(process.replica.into_store());
                    self.nodes[node].incarnation += 1;
                    self.queue.put(self.now + for_ms, Event::StartNode { node });
                }
            }
            Victim::Asterisk(asterisk) => {
                if self.pbxes[asterisk].stop() {
                    self.queue.put(self.now + for_ms, Event::StartAsterisk { asterisk });
                }
            }
        }
    }

    fn start_asterisk(&mut self, asterisk: usize) {
        if self.pbxes[asterisk].start() {
            let incarnation = self.pbxes[asterisk].incarnation;
            self.queue.put(self.now + BOOT_MS, Event::Load { asterisk, incarnation });
        }
    }

    /// Lets something happen at an Asterisk that is up, and sends what it sends.
    fn asterisk(
        &mut self,
        asterisk: usize,
        happens: impl FnOnce(&mut crate::asterisk::Asterisk) -> Vec<crate::asterisk::Packet>,
    ) {
        let Some(process) = &mut self.pbxes[asterisk].process else { return };
        let packets = happens(process);
        self.pbxes[asterisk].settle();
        for packet in packets {
            self.deliver(asterisk, |bytes| Event::ToNode { node: asterisk, bytes }, packet.bytes);
        }
        let pbx = &mut self.pbxes[asterisk];
        if let Some(due) = pbx.process.as_ref().and_then(crate::asterisk::Asterisk::next_timer)
            && pbx.timer.is_none_or(|timer| due < timer)
        {
            pbx.timer = Some(due);
            self.queue.put(due, Event::AsteriskTimer { asterisk, incarnation: pbx.incarnation });
        }
    }

    fn deliver(&mut self, edge: usize, event: impl Fn(Vec<u8>) -> Event, bytes: Vec<u8>) {
        self.stats.packets += 1;
        let copies = 1 + u64::from(self.rng.chance(self.history.double_per_mille));
        for _ in 0..copies {
            if self.edges_cut[edge] > self.now || (self.rng.chance(self.history.loss_per_mille) && !self.healed) {
                self.stats.lost += 1;
                continue;
            }
            let delay = self.history.edge_ms + self.rng.between(0, self.history.edge_jitter_ms);
            self.queue.put(self.now + delay, event(bytes.clone()));
        }
    }

    /// Lets something happen at a node's adapter, and does what it asks for.
    fn adapter(&mut self, node: usize, happening: Happening) -> Checked {
        let now = self.wall();
        let Some(process) = &mut self.nodes[node].process else { return Ok(()) };
        let read = process.replica.read().expect("memory reads");
        let sight = Sight { read: &read, ledger: process.replica.ledger(), ready: true };
        let effects = process.adapter.handle(happening, now, sight);
        drop(read);
        if let Some(due) = process.adapter.next_timer() {
            let due = due.saturating_sub(WALL_AT_START).max(self.now + 1);
            if process.timer.is_none_or(|timer| due < timer) {
                process.timer = Some(due);
                let incarnation = self.nodes[node].incarnation;
                self.queue.put(due, Event::NodeTimer { node, incarnation });
            }
        }
        for effect in effects {
            match effect {
                Effect::Send { to, bytes } => {
                    if matches!(to, Destination::Reply(_)) {
                        self.answers_truly(node, &bytes)?;
                    }
                    self.deliver(node, |bytes| Event::ToAsterisk { asterisk: node, bytes }, bytes);
                }
                Effect::Submit { input, .. } => self.submit(node, input, Waiting::Adapter),
                Effect::Refused(_) => {}
            }
        }
        Ok(())
    }

    // ---- commits and peers ----------------------------------------------------------------------

    fn submit(&mut self, node: usize, input: Input, waiting: Waiting) {
        let incarnation = self.nodes[node].incarnation;
        let Some(process) = &mut self.nodes[node].process else { return };
        process.inbox.push((input, waiting));
        if !process.commit_due {
            process.commit_due = true;
            self.queue.put(self.now + self.history.commit_ms, Event::Commit { node, incarnation });
        }
    }

    fn commit(&mut self, node: usize) -> Checked {
        let wall = self.wall();
        let full = self.nodes[node].full_until > self.now;
        let process = self.nodes[node].process.as_mut().expect("it is up");
        process.commit_due = false;
        let (inputs, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut process.inbox).into_iter().unzip();
        if full {
            process.replica.store_mut().fail_next_commit(StoreError::Full);
        }
        let result = process.replica.handle(inputs.clone(), wall);
        process.replica.store_mut().forget_planned_failures();
        let outcomes: Vec<Result<Outcome, StoreError>> = match result {
            Ok(committed) => committed.outcomes.into_iter().map(Ok).collect(),
            Err(error) => waiting.iter().map(|_| Err(error.clone())).collect(),
        };
        if !full {
            self.stamps_once(node, &inputs)?;
        }
        for (waiting, outcome) in waiting.into_iter().zip(outcomes) {
            match waiting {
                Waiting::Adapter => self.adapter(node, Happening::Committed { attachment: 0, outcome })?,
                Waiting::Peer { from, family, cursor } => {
                    let process = self.nodes[node].process.as_mut().expect("it is up");
                    if matches!(outcome, Ok(Outcome::Applied(_))) {
                        process.cursors.insert((from, family), cursor);
                    }
                }
                Waiting::Nobody => {}
            }
        }
        self.adapter(node, Happening::Woken)?;
        for to in (0..self.nodes.len()).filter(|to| *to != node) {
            self.tell(node, to);
        }
        Ok(())
    }

    fn peers_cut(&self, a: usize, b: usize) -> bool {
        self.nodes[a].cut_until > self.now || self.nodes[b].cut_until > self.now
    }

    /// Sends what the other has not taken yet.
    fn tell(&mut self, from: usize, to: usize) {
        if self.peers_cut(from, to) {
            return;
        }
        let (Some(source), Some(target)) = (&self.nodes[from].process, &self.nodes[to].process) else { return };
        let read = source.replica.read().expect("memory reads");
        for (family, mode) in &self.families {
            let after = target.cursors.get(&(from, family.clone())).copied().unwrap_or(0);
            let (mut records, mut cursor) = (Vec::new(), after);
            read.feed(family.top(), after, &mut |(seq, _, key)| {
                cursor = seq;
                if let Some(stored) = read.record(&key).expect("memory reads")
                    && mode.owns(&key)
                {
                    records.push(Record::new(key, stored));
                }
                ControlFlow::Continue(())
            })
            .expect("memory reads");
            if cursor > after {
                let incarnations = (self.nodes[from].incarnation, self.nodes[to].incarnation);
                let family = family.clone();
                let event = Event::Records { from, to, incarnations, family, records, cursor };
                self.queue.put(self.now + self.history.peer_ms, event);
            }
        }
    }

    // ---- users and faults -----------------------------------------------------------------------

    fn write(&mut self, index: usize) -> Checked {
        let (_, Write { pair, at_asterisk, unique, key, delete }) = self.history.writes[index];
        let (family, key, value) =
            (self.families[usize::from(unique)].0.clone(), format!("k{key}"), format!("v{index}"));
        self.remember(pair, at_asterisk, format!("/{family}/{key}"), (!delete).then(|| value.clone()));
        if at_asterisk {
            let now = self.now;
            if delete {
                self.pbxes[pair].deletes(&family, &key);
                self.asterisk(pair, |pbx| pbx.del(now, family.as_str(), &key));
            } else {
                self.pbxes[pair].puts(&family, &key);
                self.asterisk(pair, |pbx| pbx.put(now, family.as_str(), &key, &value));
            }
            return Ok(());
        }
        let path = Path::of(family.as_str(), &key).expect("a path");
        let input = match delete {
            true => Input::Delete { path },
            false => Input::Put { path, value: Value::new(&value).expect("a value") },
        };
        self.submit(pair, input, Waiting::Nobody);
        Ok(())
    }

    fn remember(&mut self, pair: usize, at_asterisk: bool, path: String, value: Option<String>) {
        if at_asterisk && self.pbxes[pair].process.is_none() {
            return;
        }
        let write = at_asterisk.then_some((pair, value));
        let last = self.last_writes.entry(path).or_insert_with(|| write.clone());
        let only = last.as_ref().map(|(pair, _)| *pair) == Some(pair);
        *last = write.filter(|_| only);
    }

    fn fault(&mut self, index: usize) {
        let now = self.now;
        match self.history.faults[index].1 {
            Fault::Crash { victim, for_ms } => self.crash(victim, for_ms),
            Fault::OldDatabase { asterisk, for_ms } => {
                if self.pbxes[asterisk].stop() {
                    self.pbxes[asterisk].restore();
                    self.queue.put(now + for_ms, Event::StartAsterisk { asterisk });
                }
            }
            Fault::Backup { asterisk } => self.pbxes[asterisk].back_up(),
            Fault::EdgeCut { pair, for_ms } => self.edges_cut[pair] = now + for_ms,
            Fault::PeerCut { node, for_ms } => self.nodes[node].cut_until = now + for_ms,
            Fault::DiskFull { node, for_ms } => self.nodes[node].full_until = now + for_ms,
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        self.history.double_per_mille = 0;
        for pair in 0..self.history.pairs {
            self.edges_cut[pair] = 0;
            (self.nodes[pair].cut_until, self.nodes[pair].full_until) = (0, 0);
            self.queue.put(self.now, Event::StartNode { node: pair });
            self.queue.put(self.now, Event::StartAsterisk { asterisk: pair });
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
