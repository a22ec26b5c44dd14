//! What breaks, and how it is mended.

use kinfolk::core::codec::{self, CodecError, FRAME_MAX_BYTES, HEADER_BYTES};
use kinfolk::core::message::Entries;
use kinfolk::store::memory::MemoryStore;

use crate::check::{Check, Checked, ensure};
use crate::clock::MS;
use crate::history::{FaultKind, HostId};
use crate::host::CommitFate;
use crate::model::DiskModel;
use crate::network::SlowLink;
use crate::upgrade;
use crate::world::{Event, Phase, World, host};

impl World {
    pub fn on_fault(&mut self, index: usize) -> Checked {
        let fault = self.history.faults[index].clone();
        if self.phase != Phase::Faults || !self.can_fire(&fault.kind) {
            return Ok(());
        }
        *self.stats.faults.entry(fault.kind.name()).or_default() += 1;
        self.schedule(fault.for_us, Event::FaultEnds { index });
        let until = self.now + fault.for_us;
        match fault.kind {
            FaultKind::Partition { .. } | FaultKind::OneWay { .. } | FaultKind::Bridge { .. } => {
                self.apart.push(index);
                self.recompute_blocks();
            }
            FaultKind::Flap { period_us, .. } => {
                self.apart.push(index);
                self.schedule(period_us, Event::Flap { index });
                self.recompute_blocks();
            }
            FaultKind::Reset { a, b } => self.reset(a, b),
            FaultKind::Slow { a, b, extra_us, loss_per_mille } => {
                self.net.slow.push(SlowLink { a, b, extra_us, loss_per_mille, until });
            }
            FaultKind::Crash { node } => self.down(node),
            FaultKind::CrashInCommit { node, durable } => {
                self.hosts[node].next_commit = Some(CommitFate { durable, crash: true });
            }
            FaultKind::Wipe { .. } | FaultKind::Rollback { .. } | FaultKind::OldBackup { .. } => {
                self.lose_past(&fault.kind)
            }
            FaultKind::Snapshot { node } => self.snapshot(node),
            FaultKind::Clone { node } => self.clone_host(index, node),
            FaultKind::Join { node } => self.start_again(node),
            FaultKind::Die { node } => {
                self.down(node);
                self.hosts[node].gone_for_good = true;
                self.acknowledged.losses += 1;
            }
            FaultKind::ClockJump { node, by_ms } | FaultKind::ClockAhead { node, by_ms } => {
                self.hosts[node].clock.jump(by_ms);
            }
            FaultKind::ClockFreeze { node } => self.hosts[node].clock.freeze(self.now),
            FaultKind::RestartInPast { node, by_ms } => {
                self.down(node);
                self.hosts[node].clock.jump(-by_ms);
            }
            FaultKind::CommitFails { node, durable } => {
                self.hosts[node].next_commit = Some(CommitFate { durable, crash: false });
            }
            FaultKind::DiskFull { node } => self.hosts[node].disk_full_until = until,
            FaultKind::Suspect { observer, subject } => self.force_belief(observer, subject, Some(false)),
            FaultKind::Ghost { observer, subject } => self.force_belief(observer, subject, Some(true)),
            FaultKind::Starve { node } => self.hosts[node].starved_until = until.min(self.history.heal_at_us),
            FaultKind::NextVersion { node } => self.hosts[node].version = codec::PROTOCOL_VERSION + 1,
            FaultKind::Upgrade { node } => self.change_program(node, upgrade::NEXT),
            FaultKind::Garbage { from, to, kind } => return self.garbage(from, to, kind),
        }
        Ok(())
    }

    /// A fault that meets nothing to break does not count as fired.
    fn can_fire(&self, kind: &FaultKind) -> bool {
        let up = |node: &HostId| self.hosts[*node].up();
        match kind {
            FaultKind::Crash { node }
            | FaultKind::CrashInCommit { node, .. }
            | FaultKind::Wipe { node }
            | FaultKind::Snapshot { node }
            | FaultKind::Clone { node }
            | FaultKind::RestartInPast { node, .. }
            | FaultKind::CommitFails { node, .. }
            | FaultKind::DiskFull { node }
            | FaultKind::Upgrade { node }
            | FaultKind::Starve { node } => up(node),
            // Someone has to be left.
            FaultKind::Die { node } => up(node) && self.hosts.iter().filter(|host| host.up()).count() > 2,
            FaultKind::Rollback { node } | FaultKind::OldBackup { node } => {
                up(node) && !self.hosts[*node].snapshots.is_empty()
            }
            FaultKind::Reset { a, b } => self.net.pair(*a, *b).up,
            FaultKind::Suspect { observer, subject } => self.views.belief(*observer, *subject).live,
            FaultKind::Ghost { observer, subject } => {
                up(observer) && self.views.belief(*observer, *subject).version > 0
            }
            FaultKind::Garbage { from, to, .. } => up(from) && up(to),
            _ => true,
        }
    }

    pub fn on_fault_ends(&mut self, index: usize) -> Checked {
        match self.history.faults[index].kind.clone() {
            FaultKind::Partition { .. }
            | FaultKind::OneWay { .. }
            | FaultKind::Bridge { .. }
            | FaultKind::Flap { .. } => {
                self.apart.retain(|at| *at != index);
                self.recompute_blocks();
                self.note_mending(index);
            }
            FaultKind::Crash { node }
            | FaultKind::CrashInCommit { node, .. }
            | FaultKind::Wipe { node }
            | FaultKind::Rollback { node }
            | FaultKind::OldBackup { node }
            | FaultKind::RestartInPast { node, .. } => self.start_again(node),
            FaultKind::Clone { .. } => self.end_clone(index),
            FaultKind::ClockAhead { node, by_ms } if self.phase == Phase::Faults => self.hosts[node].clock.jump(-by_ms),
            FaultKind::ClockFreeze { node } => self.hosts[node].clock.thaw(),
            FaultKind::Suspect { observer, subject } | FaultKind::Ghost { observer, subject } => {
                self.force_belief(observer, subject, None);
            }
            FaultKind::NextVersion { node } => self.hosts[node].version = codec::PROTOCOL_VERSION,
            // Whoever is upgraded by then stays it: the cluster ends with both programs.
            FaultKind::Upgrade { node } if self.phase == Phase::Faults => {
                self.change_program(node, codec::PROTOCOL_VERSION);
            }
            _ => {}
        }
        Ok(())
    }

    pub fn on_flap(&mut self, index: usize) -> Checked {
        if !self.apart.contains(&index) {
            return Ok(());
        }
        self.flapped[index] = !self.flapped[index];
        if let FaultKind::Flap { period_us, .. } = self.history.faults[index].kind {
            self.schedule(period_us, Event::Flap { index });
        }
        self.recompute_blocks();
        Ok(())
    }

    fn recompute_blocks(&mut self) {
        let faults: Vec<(FaultKind, bool)> =
            self.apart.iter().map(|at| (self.history.faults[*at].kind.clone(), self.flapped[*at])).collect();
        // A clone stands where its original stands.
        let place: Vec<HostId> = self
            .hosts
            .iter()
            .map(|host| self.hosts.iter().position(|first| first.eid == host.eid).expect("itself at least"))
            .collect();
        self.net.set_blocks(|from, to| {
            let at =
                |host: HostId, groups: &[u8]| place.get(host).and_then(|host| groups.get(*host)).copied().unwrap_or(0);
            faults.iter().any(|(kind, flapped)| match kind {
                FaultKind::Partition { groups } => at(from, groups) != at(to, groups),
                FaultKind::OneWay { groups } => at(from, groups) == 0 && at(to, groups) == 1,
                FaultKind::Bridge { groups, bridge } => {
                    at(from, groups) != at(to, groups) && from != *bridge && to != *bridge
                }
                FaultKind::Flap { groups, .. } => !flapped && at(from, groups) != at(to, groups),
                _ => false,
            })
        });
        self.links_changed();
    }

    /// The connection breaks while a frame is under way: some of its bytes arrive.
    fn reset(&mut self, a: HostId, b: HostId) {
        let entries = Entries { records: Vec::new(), complete_to: u64::MAX - 7, head: u64::MAX - 7 };
        let bytes = codec::encode_frame(&entries).expect("it is small");
        let cut_at = self.rng.index(bytes.len());
        let part = bytes[..cut_at].to_vec();
        let taken = codec::decode_frame::<Entries>(&part).is_ok();
        self.cut_short(taken);
        self.break_connection(a, b);
    }

    fn cut_short(&mut self, taken: bool) {
        self.stats.frames_refused += 1;
        if taken {
            self.broken.get_or_insert(crate::check::Violation {
                check: Check::Wire,
                what: "a part of a frame was taken for a frame".into(),
            });
        }
    }

    fn down(&mut self, node: HostId) {
        self.crash(node);
    }

    pub fn start_again(&mut self, node: HostId) {
        let incarnation = self.hosts[node].incarnation;
        let after = self.rng.between(MS, 200 * MS);
        self.schedule(after, Event::Start { node, incarnation });
    }

    fn snapshot(&mut self, node: HostId) {
        let host = &mut self.hosts[node];
        let process = host.process.as_ref().expect("checked before it fired");
        host.snapshots.push((process.replica.store().clone(), host.model.clone()));
    }

    /// A disk that does not know what it knew.
    fn lose_past(&mut self, kind: &FaultKind) {
        let (FaultKind::Wipe { node } | FaultKind::Rollback { node } | FaultKind::OldBackup { node }) = kind else {
            return;
        };
        self.crash(*node);
        let host = &mut self.hosts[*node];
        let (disk, model) = match kind {
            FaultKind::Wipe { .. } => (MemoryStore::in_common(&self.common), DiskModel::default()),
            FaultKind::Rollback { .. } => host.snapshots.last().cloned().expect("checked before it fired"),
            _ => host.snapshots.first().cloned().expect("checked before it fired"),
        };
        if matches!(kind, FaultKind::Wipe { .. }) {
            host.snapshots.clear();
        }
        (host.disk, host.model) = (disk, model);
        self.acknowledged.doubled.insert(self.hosts[*node].eid);
        self.acknowledged.losses += 1;
    }

    fn clone_host(&mut self, index: usize, node: HostId) {
        let id = self.hosts.len();
        let original = &self.hosts[node];
        let mut copy = host(original.eid, &original.spec, &self.common);
        copy.disk = original.process.as_ref().expect("checked before it fired").replica.store().clone();
        copy.model = original.model.clone();
        copy.clock = original.clock.clone();
        self.eids.push(copy.eid);
        self.hosts.push(copy);
        self.clones.insert(index, id);
        self.acknowledged.doubled.insert(self.hosts[id].eid);
        self.acknowledged.losses += 1;
        self.recompute_blocks();
        self.start_again(id);
    }

    pub fn end_clone(&mut self, index: usize) {
        if let Some(id) = self.clones.get(&index).copied() {
            self.crash(id);
            self.hosts[id].gone_for_good = true;
        }
    }

    fn force_belief(&mut self, observer: HostId, subject: HostId, belief: Option<bool>) {
        self.views.belief_mut(observer, subject).forced = belief;
        self.plan_soon(observer);
    }

    /// Bytes that are no frame: each kind must be refused.
    fn garbage(&mut self, from: HostId, to: HostId, kind: u8) -> Checked {
        let entries = Entries { records: Vec::new(), complete_to: 7, head: 7 };
        let mut bytes = codec::encode_frame(&entries).expect("it is small");
        match kind {
            0 => bytes[0] ^= 1,
            1 => bytes[2] = codec::PROTOCOL_VERSION + 1,
            2 => {
                bytes.resize(HEADER_BYTES + FRAME_MAX_BYTES + 1, 0);
                bytes[4..HEADER_BYTES].copy_from_slice(&(FRAME_MAX_BYTES as u32 + 1).to_le_bytes());
            }
            3 => {
                // The header counts a byte that no field owns.
                bytes.push(0);
                let length = bytes.len() as u32 - 8;
                bytes[4..8].copy_from_slice(&length.to_le_bytes());
            }
            _ => bytes.truncate(bytes.len() - 1 - self.rng.index(8)),
        }
        self.stats.frames_refused += 1;
        let taken = codec::decode_frame::<Entries>(&bytes);
        ensure(taken.is_err(), Check::Wire, || {
            format!("garbage of kind {kind} from node {from} was taken by node {to}")
        })?;
        if matches!(taken, Err(CodecError::TooLong(_))) {
            self.stats.frames_too_long += 1;
        }
        // Who sends such a thing is hung up on; what it had to say comes again, from the durable cursor.
        let follows = &mut self.hosts[to].process.as_mut().expect("checked before it fired").follows;
        let streams: Vec<_> = follows.of_host_mut(from).map(|(family, _)| family).collect();
        for family in streams {
            self.retry_later(to, from, family);
        }
        Ok(())
    }

    // ---- the end of all faults ------------------------------------------------------------------

    pub fn on_heal(&mut self) -> Checked {
        let lasting = self.history.lasting;
        self.apart.retain(|index| Some(*index) == lasting);
        self.net.slow.clear();
        let faults: Vec<usize> = self.clones.keys().copied().collect();
        for index in faults {
            self.end_clone(index);
        }
        for node in 0..self.hosts.len() {
            let host = &mut self.hosts[node];
            host.version = codec::PROTOCOL_VERSION;
            host.starved_until = host.starved_until.min(self.now);
            host.disk_full_until = 0;
            host.next_commit = None;
            host.clock.thaw();
            if !host.up() && !host.gone_for_good {
                self.start_again(node);
            }
            for subject in 0..self.hosts.len() {
                self.views.belief_mut(node, subject).forced = None;
            }
            self.plan_soon(node);
        }
        self.phase = Phase::Healing { since: self.now };
        self.recompute_blocks();
        self.schedule(100 * MS, Event::Inspect);
        Ok(())
    }
}
