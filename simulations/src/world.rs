//! The world: events in virtual time, handled one after the other.
//!
//! Never here: what an event means (`process`, `streams`, `faults`), the wall clock, hash maps.

use std::collections::BTreeMap;
use std::sync::Arc;

use kinfolk::core::codec::PROTOCOL_VERSION;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::message::Entries;
use kinfolk::core::path::Family;
use kinfolk::core::protocol::{PROTOCOL_VERSION_MIN, Versions};
use kinfolk::store::memory::{Common, MemoryStore};
use xxhash_rust::xxh3::xxh3_64;

use crate::check::Checked;
use crate::clock::{SECOND, Us, WallClock};
use crate::decoder::Decoder;
use crate::history::{FamilyIx, FaultKind, History, HostId, NodeSpec};
use crate::host::Host;
use crate::judge::Branches;
use crate::membership::Membership;
use crate::model::{Acknowledged, DiskModel};
use crate::nearby::Nearby;
use crate::network::{Frame, Network};
use crate::queue::Queue;
use crate::reconcile::Compared;
use crate::rng::{Rng, mix};
use crate::spread::Spread;
use crate::verify::VerifyStats;

#[derive(Debug)]
pub enum Event {
    Frame(Frame),
    Commit {
        node: HostId,
        incarnation: u32,
    },
    Plan {
        node: HostId,
        incarnation: u32,
    },
    Retry {
        node: HostId,
        incarnation: u32,
        peer: HostId,
        family: FamilyIx,
    },
    StreamEnded {
        node: HostId,
        peer: HostId,
        family: FamilyIx,
        stream: u64,
    },
    SourceReady {
        node: HostId,
        peer: HostId,
        family: FamilyIx,
        stream: u64,
    },
    Idle {
        node: HostId,
        incarnation: u32,
    },
    Nearby(Box<Nearby>),
    /// A look at the roots that were heard.
    Look {
        node: HostId,
        incarnation: u32,
    },
    ReconcileOver {
        node: HostId,
        stream: u64,
        opened: bool,
    },
    Connected {
        a: HostId,
        b: HostId,
    },
    ConnectionLost {
        node: HostId,
        peer: HostId,
        epoch: u32,
    },
    LinkTimeout {
        a: HostId,
        b: HostId,
        epoch: u32,
    },
    View {
        observer: HostId,
        subject: HostId,
        live: bool,
    },
    Heard {
        observer: HostId,
        subject: HostId,
        version: u32,
    },
    Write {
        index: usize,
    },
    Fault {
        index: usize,
    },
    FaultEnds {
        index: usize,
    },
    Flap {
        index: usize,
    },
    Start {
        node: HostId,
        incarnation: u32,
    },
    /// A node may begin or cease to speak for its site.
    Voice {
        node: HostId,
        incarnation: u32,
    },
    Topology,
    Sweep,
    /// A look at the purge floors.
    Floors {
        node: HostId,
        incarnation: u32,
    },
    /// A purge floor waits for a verify with its collector.
    Collect {
        node: HostId,
        incarnation: u32,
        family: FamilyIx,
        peer: Eid,
    },
    Heal,
    Inspect,
}

/// Counts for reports and coverage.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub events: u64,
    pub writes: u64,
    pub refused: u64,
    pub unanswered: u64,
    pub commits: u64,
    pub commits_failed: u64,
    pub frames_refused: u64,
    pub frames_too_long: u64,
    /// Frames that came over two streams of one follower.
    pub frames_doubled: u64,
    /// Gossip that came again, and gossip that came after newer.
    pub news_repeated: u64,
    pub news_overtaken: u64,
    pub compares: u64,
    pub give_ups: u64,
    pub mode_conflicts: u64,
    pub detours: u64,
    /// Two rings of gossip: a node began or ceased to speak for its site; one lost hearing of a node of another site.
    pub speakers_turned: u64,
    pub sites_unheard: u64,
    /// Connections that were made between two programs of which one is newer, and between two newer ones.
    pub connected_mixed: u64,
    pub connected_next: u64,
    /// Records that were lost between sites and fetched nearby.
    pub fetched_nearby: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub exempt_keys: u64,
    pub verifies: u64,
    pub other_floors: u64,
    pub purged: u64,
    pub set_aside: u64,
    pub released: u64,
    pub discarded: u64,
    pub verify: VerifyStats,
    pub converged_after_us: Option<Us>,
    pub probe_converged_after_us: Option<Us>,
    /// By family: moment and how many (node, key) pairs lag behind the winner.
    pub lagging: BTreeMap<FamilyIx, Vec<(Us, u64)>>,
}

/// Where the run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Faults,
    Healing { since: Us },
    Probing { since: Us },
    Done,
}

pub struct World {
    pub now: Us,
    pub(crate) queue: Queue<Event>,
    /// Of how many of the next events it has been looked at what they need.
    pub(crate) looked_ahead: usize,
    trace: u64,
    pub history: History,
    pub rng: Rng,
    pub hosts: Vec<Host>,
    /// Of all hosts, side by side.
    pub eids: Vec<Eid>,
    /// Host slots in use; the rest waits for clones.
    pub net: Network,
    /// What the disks hold alike.
    pub common: Common,
    pub views: Membership,
    /// The names of the sites, as they are gossiped.
    pub sites: Vec<String>,
    pub families: Vec<(Family, Mode)>,
    pub family_ix: BTreeMap<Family, FamilyIx>,
    pub acknowledged: Acknowledged,
    pub branches: Branches,
    pub stats: Stats,
    pub streams: u64,
    pub runs: u64,
    pub phase: Phase,
    /// Faults that take the network apart and have not ended, by index.
    pub apart: Vec<usize>,
    pub flapped: Vec<bool>,
    pub clones: BTreeMap<usize, HostId>,
    pub record_curve: bool,
    /// How writes spread, where that is measured.
    pub spread: Spread,
    /// What was last encoded: the next follower may be sent the same.
    pub encoded: Option<(Entries, Arc<[u8]>)>,
    pub decoder: Decoder,
    /// The topology is looked at later in this instant.
    pub topology_due: bool,
    /// What both sides of the reconciles under way held, by stream.
    pub compared: BTreeMap<u64, Compared>,
    /// A violation seen where none could be returned.
    pub broken: Option<crate::check::Violation>,
}

pub fn eid_of(host: HostId) -> Eid {
    let [a, b] = (host as u16 + 1).to_be_bytes();
    Eid::new([2, 0, 0, 0, a, b])
}

impl World {
    pub fn new(history: History) -> Self {
        let root = Rng::new(history.seed);
        let clones = history.faults.iter().filter(|fault| matches!(fault.kind, FaultKind::Clone { .. })).count();
        let slots = history.nodes.len() + clones;
        let families: Vec<(Family, Mode)> = history
            .families
            .iter()
            .map(|spec| (Family::new(&spec.name).expect("histories name good families"), spec.mode))
            .collect();
        let sites = history.nodes.iter().map(|spec| spec.site).collect();
        let common = Common::default();
        let mut world = Self {
            now: 0,
            queue: Queue::new(),
            looked_ahead: 0,
            trace: mix(history.seed),
            rng: root.fork(10),
            hosts: history.nodes.iter().enumerate().map(|(id, spec)| host(eid_of(id), spec, &common)).collect(),
            eids: (0..history.nodes.len()).map(eid_of).collect(),
            common,
            net: Network::new(slots, sites, history.links.clone(), root.fork(11)),
            views: Membership::new(slots),
            family_ix: families.iter().enumerate().map(|(ix, (family, _))| (family.clone(), ix)).collect(),
            families,
            sites: (0..=history.nodes.iter().map(|spec| spec.site).max().unwrap_or(0))
                .map(|n| format!("s{n}"))
                .collect(),
            acknowledged: Acknowledged {
                halved: history.floors.is_some_and(|floors| floors.halved),
                ..Acknowledged::default()
            },
            branches: Branches::default(),
            stats: Stats::default(),
            streams: 0,
            runs: 0,
            phase: Phase::Faults,
            apart: Vec::new(),
            flapped: vec![false; history.faults.len()],
            clones: BTreeMap::new(),
            record_curve: false,
            spread: Spread::default(),
            encoded: None,
            decoder: Decoder::default(),
            topology_due: false,
            compared: BTreeMap::new(),
            broken: None,
            history,
        };
        world.set_the_stage();
        world
    }

    fn set_the_stage(&mut self) {
        for index in 0..self.history.writes.len() {
            self.schedule_at(self.history.writes[index].at_us, Event::Write { index });
        }
        for index in 0..self.history.faults.len() {
            self.schedule_at(self.history.faults[index].at_us, Event::Fault { index });
        }
        self.schedule_at(self.history.heal_at_us, Event::Heal);
        self.schedule_at(self.history.checking.sweep_every_us, Event::Sweep);
        for node in 0..self.hosts.len() {
            if !self.hosts[node].spec.absent {
                // At the very start everyone starts within a moment of each other.
                let at = if self.history.checking.warm_start { 0 } else { self.rng.below(SECOND / 5) };
                self.schedule_at(at, Event::Start { node, incarnation: 0 });
            }
        }
    }

    pub fn schedule_at(&mut self, at: Us, event: Event) {
        self.queue.put(at, event);
    }

    pub fn schedule(&mut self, after: Us, event: Event) {
        self.schedule_at(self.now + after, event);
    }

    /// Mixes something into the trace hash: equal hashes mean equal runs.
    pub fn traced(&mut self, what: u64) {
        self.trace = mix(self.trace ^ what);
    }

    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Runs to the end, or to the first check that does not hold.
    pub fn run(&mut self, mut watch: impl FnMut(&World)) -> Checked {
        while self.phase != Phase::Done {
            let Some((at, event)) = self.queue.take() else { break };
            self.now = at;
            self.look_ahead();
            self.stats.events += 1;
            self.handle(event)?;
            if let Some(violation) = self.broken.take() {
                return Err(violation);
            }
            if self.stats.events & 0xffff == 0 {
                watch(self);
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Checked {
        if let Some(until) = self.waits_for_processor(&event) {
            self.schedule_at(until, event);
            return Ok(());
        }
        self.traced(self.now);
        match event {
            Event::Frame(frame) => self.on_frame(frame),
            Event::Commit { node, incarnation } => self.if_current(node, incarnation, Self::commit),
            Event::Plan { node, incarnation } => self.if_current(node, incarnation, Self::plan),
            Event::Retry { node, incarnation, peer, family } => {
                self.if_current(node, incarnation, |world, node| world.on_retry(node, peer, family))
            }
            Event::StreamEnded { node, peer, family, stream } => self.on_stream_ended(node, peer, family, stream),
            Event::SourceReady { node, peer, family, stream } => self.on_source_ready(node, peer, family, stream),
            Event::Idle { node, incarnation } => self.if_current(node, incarnation, Self::on_idle),
            Event::Nearby(what) => self.on_nearby(*what),
            Event::Look { node, incarnation } => self.if_current(node, incarnation, Self::on_look),
            Event::ReconcileOver { node, stream, opened } => self.on_reconcile_over(node, stream, opened),
            Event::Connected { a, b } => self.on_connected(a, b),
            Event::ConnectionLost { node, peer, epoch } => self.on_connection_lost(node, peer, epoch),
            Event::LinkTimeout { a, b, epoch } => self.on_link_timeout(a, b, epoch),
            Event::View { observer, subject, live } => self.on_view(observer, subject, live),
            Event::Heard { observer, subject, version } => self.on_heard(observer, subject, version),
            Event::Write { index } => self.on_write(index),
            Event::Fault { index } => self.on_fault(index),
            Event::FaultEnds { index } => self.on_fault_ends(index),
            Event::Flap { index } => self.on_flap(index),
            Event::Start { node, incarnation } => self.on_start(node, incarnation),
            Event::Voice { node, incarnation } => self.if_current(node, incarnation, Self::on_voice),
            Event::Topology => self.on_topology(),
            Event::Sweep => self.on_sweep(),
            Event::Floors { node, incarnation } => self.if_current(node, incarnation, Self::on_floors),
            Event::Collect { node, incarnation, family, peer } => {
                self.if_current(node, incarnation, |world, node| world.on_collect(node, family, peer))
            }
            Event::Heal => self.on_heal(),
            Event::Inspect => self.on_inspect(),
        }
    }

    /// A starved process handles nothing; what comes for it waits, in its order.
    fn waits_for_processor(&self, event: &Event) -> Option<Us> {
        let node = match event {
            Event::Frame(frame) => frame.to as HostId,
            Event::Commit { node, .. } | Event::Plan { node, .. } | Event::Retry { node, .. } => *node,
            Event::StreamEnded { node, .. } | Event::SourceReady { node, .. } | Event::Idle { node, .. } => *node,
            Event::ConnectionLost { node, .. }
            | Event::Look { node, .. }
            | Event::Floors { node, .. }
            | Event::Collect { node, .. }
            | Event::ReconcileOver { node, .. } => *node,
            Event::View { observer, .. } | Event::Heard { observer, .. } => *observer,
            Event::Write { index } => self.history.writes[*index].node,
            _ => return None,
        };
        let until = self.hosts[node].starved_until;
        (until > self.now).then_some(until)
    }

    fn if_current(
        &mut self,
        node: HostId,
        incarnation: u32,
        act: impl FnOnce(&mut Self, HostId) -> Checked,
    ) -> Checked {
        let current = self.hosts[node].up() && self.hosts[node].incarnation == incarnation;
        if current { act(self, node) } else { Ok(()) }
    }

    pub fn near(&self, a: HostId, b: HostId) -> bool {
        self.hosts[a].spec.site == self.hosts[b].spec.site
    }

    /// Mixes the content of every disk into the trace, at the end of a run.
    pub fn trace_disks(&mut self) {
        for host in 0..self.hosts.len() {
            let text = format!("{:?}", self.hosts[host].model.held);
            self.traced(xxh3_64(text.as_bytes()));
        }
    }
}

pub fn host(eid: Eid, spec: &NodeSpec, common: &Common) -> Host {
    Host {
        eid,
        clock: WallClock::new(spec.clock_offset_ms, spec.clock_drift_ppm),
        version: PROTOCOL_VERSION,
        spoken: Versions { min: PROTOCOL_VERSION_MIN, max: spec.protocol_version },
        spec: spec.clone(),
        disk: MemoryStore::in_common(common),
        model: DiskModel::default(),
        snapshots: Vec::new(),
        process: None,
        up_since: 0,
        incarnation: 0,
        gone_for_good: false,
        starved_until: 0,
        disk_full_until: 0,
        next_commit: None,
    }
}

impl World {
    /// What the nodes believe and do about one family, for a person who looks for a fault.
    pub fn describe_streams(&self) -> String {
        let mut text = String::new();
        for (id, host) in self.hosts.iter().enumerate() {
            let Some(process) = &host.process else {
                text += &format!("node {id} {} down\n", host.eid);
                continue;
            };
            text += &format!("node {id} {} marks {:?}\n", host.eid, host.model.marks);
            let ledger = process.replica.ledger();
            for family in ledger.families.marks().keys() {
                text += &format!(
                    "  floor of {family}: exchanged at {:?}, local {:?}, books {:?}\n",
                    ledger.families.floor_of(family),
                    ledger.floors.get(family),
                    ledger.books.of(family)
                );
            }
            for ((peer, family), follow) in process.follows.by_host() {
                let cursor = follow.follower.as_ref().map(|follower| (follower.cursor_seq(), follower.head()));
                text += &format!(
                    "  follows {peer} in {} for {} (asked {:?}): stream {}, replied {}, applying {}, gave up {}, retry {}, at {cursor:?}\n",
                    self.families[family].0,
                    follow.wanted,
                    follow.follower.as_ref().map(|follower| follower.asked()),
                    follow.stream,
                    follow.replied,
                    follow.applying,
                    follow.gave_up,
                    follow.retry_due
                );
            }
            for ((family, peer), serving) in process.sources.iter() {
                text += &format!(
                    "  serves {peer} in {}: stream {} sent {} in flight {}\n",
                    self.families[family].0,
                    serving.stream,
                    serving.source.sent_to(),
                    serving.in_flight
                );
            }
        }
        text
    }
}
