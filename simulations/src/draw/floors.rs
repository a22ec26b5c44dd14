//! Draws what purge floors are about: retentions that a run outlasts, and whoever is away for longer.

use super::groups;
use crate::clock::{HOUR, MS, SECOND, Us};
use crate::history::*;
use crate::rng::Rng;

/// A history that is being drawn.
pub struct Drawing<'a> {
    pub nodes: usize,
    pub families: &'a [FamilySpec],
    pub busy_us: &'a mut Us,
    pub writes: &'a mut Vec<Write>,
    pub faults: &'a mut Vec<Fault>,
    pub verify: &'a mut Verify,
}

impl Drawing<'_> {
    /// `later` draws what was thought of later, so that earlier seeds stay what they were in the rest.
    pub fn draw(&mut self, rng: &mut Rng, later: &mut Rng) -> Floors {
        let retention_ms = rng.between(5, 40) * 1_000;
        let retention_us = retention_ms * MS;
        *self.busy_us = (*self.busy_us).max(retention_us * rng.between(3, 6)).min(HOUR);
        let busy_us = *self.busy_us;
        self.faults.retain(|fault| fault.at_us < busy_us);
        self.writes.retain(|write| write.at_us < busy_us);
        if self.nodes > 2 && rng.chance(600) {
            self.half_told(rng, retention_us);
        }
        if rng.chance(300) {
            let at_us = rng.below(busy_us / 3);
            self.fault(at_us, 2 * retention_us, FaultKind::Partition { groups: groups(rng, self.nodes) });
        }
        if rng.chance(300) {
            let node = rng.index(self.nodes);
            let from = rng.below(busy_us / 4);
            self.fault(from, 0, FaultKind::Snapshot { node });
            let at_us = (from + 2 * retention_us).min(busy_us - 1);
            self.fault(at_us, rng.between(1, 5) * SECOND, FaultKind::OldBackup { node });
        }
        self.standing(rng);
        self.decommission_the_dead(rng);
        if self.verify.mode == VerifyMode::Off {
            // Whoever raises a floor may die in that moment: without verify not all would hear of it.
            self.verify.mode = VerifyMode::On;
        }
        if later.chance(400) {
            self.verify_late(later);
        }
        if later.chance(100) {
            self.apart_from_the_start(later, retention_us);
        }
        let halved = later.chance(150);
        if halved {
            self.two_halves(later, retention_us);
        }
        self.faults.sort_by_key(|fault| fault.at_us);
        self.writes.sort_by_key(|write| write.at_us);
        Floors {
            retention_ms,
            interval_ms: rng.between(1, 10) * 1_000,
            look_every_us: rng.between(300, 3_000) * MS,
            verify_us: (20 * MS, rng.between(100, 4_000) * MS),
            halved,
        }
    }

    fn fault(&mut self, at_us: Us, for_us: Us, kind: FaultKind) {
        self.faults.push(Fault { at_us, for_us, kind });
    }

    fn write(&mut self, at_us: Us, node: HostId, kind: WriteKind) {
        self.writes.push(Write { at_us, node, kind });
    }

    /// Members that are decommissioned, and perhaps admitted again; and what is done about the quarantine.
    fn standing(&mut self, rng: &mut Rng) {
        let busy_us = *self.busy_us;
        for _ in 0..rng.below(3) {
            let (node, subject) = (rng.index(self.nodes), rng.index(self.nodes));
            let at_us = rng.below(busy_us);
            self.write(at_us, node, WriteKind::Decommission { subject });
            if rng.chance(500) {
                self.write(rng.between(at_us, busy_us - 1), node, WriteKind::Readmit { subject });
            }
        }
        for _ in 0..rng.below(6) {
            let at_us = rng.between(busy_us / 2, busy_us - 1);
            let kind = WriteKind::Quarantine { release: rng.chance(500) };
            self.write(at_us, rng.index(self.nodes), kind);
        }
    }

    fn decommission_the_dead(&mut self, rng: &mut Rng) {
        let died = |fault: &Fault| match fault.kind {
            FaultKind::Die { node } => Some((fault.at_us, node)),
            _ => None,
        };
        let dead: Vec<(Us, HostId)> = self.faults.iter().filter_map(died).collect();
        for (since, subject) in dead {
            let at_us = rng.between(since, *self.busy_us - 1);
            for node in (0..self.nodes).filter(|node| *node != subject) {
                self.write(at_us, node, WriteKind::Decommission { subject });
            }
        }
    }

    /// A node that only one other hears deletes keys and then dies: without a verify nobody else would ever know.
    fn half_told(&mut self, rng: &mut Rng, retention_us: Us) {
        let busy_us = *self.busy_us;
        let node = rng.index(self.nodes);
        let hears = (node + 1 + rng.index(self.nodes - 1)) % self.nodes;
        let groups = (0..self.nodes).map(|other| u8::from(other != node && other != hears)).collect();
        let from = rng.between(5 * SECOND, (busy_us / 4).max(6 * SECOND));
        let until = from + rng.between(14, 25) * SECOND;
        let after = until + rng.between(1, 2 + retention_us / SECOND) * SECOND;
        self.fault(from, until - from + rng.between(100, 4_000) * MS, FaultKind::Partition { groups });
        for _ in 0..rng.between(1, 6) {
            let family = rng.between(1, self.families.len() as u64 - 1) as usize;
            let key = rng.index(self.families[family].keys.len());
            self.write(rng.between(from, until), node, WriteKind::Delete { family, key });
        }
        if until < busy_us {
            self.fault(until, 0, FaultKind::Die { node });
        }
        for other in (0..self.nodes).filter(|other| *other != node) {
            self.write(after.min(busy_us - 1), other, WriteKind::Decommission { subject: node });
        }
    }

    /// Differences are looked into late, so that the floor's own verifies are the first to find them.
    fn verify_late(&mut self, rng: &mut Rng) {
        self.verify.times.settle_ms = rng.between(20_000, 40_000);
        self.verify.times.patience_ms = rng.between(40_000, 60_000);
    }

    /// A cut that begins while the members still get to know each other.
    fn apart_from_the_start(&mut self, rng: &mut Rng, retention_us: Us) {
        let (from, kind) =
            (rng.between(700 * MS, 4 * SECOND), FaultKind::Partition { groups: groups(rng, self.nodes) });
        self.fault(from, retention_us * rng.between(2, 4), kind);
    }

    /// Two halves that do not hear each other for long decommission each other. Each has a collector then, that raises
    /// a floor.
    fn two_halves(&mut self, rng: &mut Rng, retention_us: Us) {
        let groups = groups(rng, self.nodes);
        let from = rng.between(5 * SECOND, (*self.busy_us / 3).max(6 * SECOND));
        let until = (from + 3 * retention_us).min(*self.busy_us - 1);
        for pair in 0..self.nodes * self.nodes {
            let (node, subject) = (pair / self.nodes, pair % self.nodes);
            if groups[node] != groups[subject] {
                self.write(rng.between(from, until), node, WriteKind::Decommission { subject });
            }
        }
        self.fault(from, until - from, FaultKind::Partition { groups });
        if rng.chance(500) {
            for subject in 0..self.nodes {
                self.write(rng.between(until, *self.busy_us), 0, WriteKind::Readmit { subject });
            }
        }
    }
}
