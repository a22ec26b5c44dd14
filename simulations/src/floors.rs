//! Purge floors: each node looks now and then what is due, and what a floor waits for is verified.
//!
//! It is verified with the daemon's own reconcile, as everything else is (`reconcile`); here is only who asks whom.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use kinfolk::core::books::{Books, Entry};
use kinfolk::core::clock::Hlc;
use kinfolk::core::eid::Eid;
use kinfolk::core::path::Family;
use kinfolk::core::reconcile::Ended;
use kinfolk::core::record::RecordKey;
use kinfolk::core::replica::{Input, Outcome, Verified, Wanted};
use kinfolk::core::storage::{Read, Span};

use crate::check::{Check, Checked, ensure};
use crate::clock::SECOND;
use crate::history::{BOOKS, FamilyIx, HostId};
use crate::host::Waiting;
use crate::model::{Acknowledged, Aside, DiskModel, exchanged};
use crate::reconcile::Session;
use crate::world::{Event, Phase, World};

/// For how long after the healing rounds begin.
const ROUNDS_AFTER_HEALING_US: u64 = 40 * SECOND;

/// The books as a disk holds them.
pub fn books_of(read: &impl Read) -> Books {
    let mut books = Books::default();
    read.scan(Span::Under(&Family::books()), &mut |(key, stored)| {
        books.note(&key.path, &stored.register);
        ControlFlow::Continue(())
    })
    .expect("memory reads");
    books
}

/// The moment at or below which the node `me` writes nothing into a family.
pub fn bound(read: &impl Read, books: &Books, me: Eid, family: &Family) -> Hlc {
    let of = books.of(family);
    let adopted = read.floors().expect("memory reads").get(family).copied().unwrap_or_default().adopted;
    let promised = of.notes.get(&me).map_or(Hlc::ZERO, |note| note.round.target);
    of.floor.max(adopted).max(promised)
}

/// Carries the model over what a node did about its floors: tombstones that it dropped, records that it set
/// aside. Whatever else is gone is left for the comparison with the disk.
pub fn settle_model(read: &impl Read, model: &mut DiskModel, acknowledged: &mut Acknowledged) -> BTreeSet<RecordKey> {
    let books = books_of(read);
    let floors = read.floors().expect("memory reads");
    let mut gone = BTreeSet::new();
    for (family, mode) in model.marks.clone() {
        let local = floors.get(&family).copied().unwrap_or_default();
        // A lower floor that was written later may stand there, until the higher one is written again.
        let floor = books.of(&family).floor.max(local.adopted);
        let took_part = local.spread >= floor;
        let below = model.held.iter().filter(|(key, held)| {
            key.path.key_in(&family).is_some() && exchanged(key, mode) && held.stamp.hlc <= floor
        });
        let below: Vec<_> = below.map(|(key, held)| (key.clone(), *held)).collect();
        for (key, held) in below {
            if read.record(&key).expect("memory reads").is_some() {
                continue;
            }
            let aside = read.quarantined(&key).expect("memory reads").map(|aside| aside.register);
            match aside {
                Some(register) if register.stamp() >= held.stamp => {
                    let aside = Aside { stamp: register.stamp(), value: register.value().cloned() };
                    model.aside.insert(key.clone(), aside);
                    acknowledged.losses += u64::from(held.origin);
                    acknowledged.set_aside += 1;
                }
                // Of two halves that have decommissioned each other neither is to be told of the other's deletions.
                _ if held.tombstone && took_part && acknowledged.halved => acknowledged.losses += 1,
                _ if held.tombstone && took_part => {
                    let (tombstone, seen) =
                        acknowledged.purged.entry(key.clone()).or_insert_with(|| (held.stamp, BTreeSet::new()));
                    *tombstone = held.stamp.max(*tombstone);
                    seen.extend(model.seen.get(&key).into_iter().flatten());
                }
                _ => continue,
            }
            model.held.remove(&key);
            gone.insert(key);
        }
    }
    gone
}

/// A verify with a collector that a floor waits for.
#[derive(Clone, Copy, Debug)]
pub struct Collecting {
    family: FamilyIx,
    /// The node's head when it began.
    head: u64,
}

impl World {
    /// Whether a family is exchanged with a peer.
    pub fn knows(&self, node: HostId, peer: HostId, family: FamilyIx) -> bool {
        let process = self.hosts[node].process.as_ref().expect("it is up");
        let books = &process.replica.ledger().books;
        !self.history.checking.books || books.knows(&self.families[family].0, self.hosts[peer].eid)
    }

    pub fn look_at_floors_later(&mut self, node: HostId) {
        if let Some(floors) = self.history.floors {
            let incarnation = self.hosts[node].incarnation;
            self.schedule(floors.look_every_us, Event::Floors { node, incarnation });
        }
    }

    pub fn on_floors(&mut self, node: HostId) -> Checked {
        self.look_at_floors_later(node);
        if self.rounds_go_on(node) {
            self.submit(node, Input::Floors, Waiting::Floors);
        }
        Ok(())
    }

    /// Some time after the healing no more rounds begin, since each of them makes the books differ for moments.
    fn rounds_go_on(&self, node: HostId) -> bool {
        let (Phase::Healing { since } | Phase::Probing { since }) = self.phase else { return true };
        let families = &self.hosts[node].process.as_ref().expect("checked by the caller").replica.ledger().families;
        let adopting = families.marks().keys().any(|family| families.floor_of(family).is_none());
        adopting || self.now < since + ROUNDS_AFTER_HEALING_US
    }

    /// What came of a look.
    pub fn on_looked(&mut self, node: HostId, outcome: &Outcome) {
        let Outcome::Floors { wanted, more } = outcome else { return };
        if *more {
            self.submit(node, Input::Floors, Waiting::Floors);
        }
        let (low, high) = self.history.floors.map_or((0, 0), |floors| floors.verify_us);
        let collectors = wanted.iter().map(|wanted| wanted.peer).collect();
        let process = self.hosts[node].process.as_mut().expect("it has just committed");
        if std::mem::replace(&mut process.verifying.collectors, collectors) != process.verifying.collectors {
            self.plan_soon(node);
        }
        for Wanted { family, peer, .. } in wanted {
            let Some(family) = self.family_ix.get(family).copied() else { continue };
            let after = self.rng.between(low, high);
            let (incarnation, peer) = (self.hosts[node].incarnation, *peer);
            self.schedule(after, Event::Collect { node, incarnation, family, peer });
        }
    }

    /// Verifies with the collector, if it can be reached.
    pub fn on_collect(&mut self, node: HostId, family: FamilyIx, peer: Eid) -> Checked {
        let reached = |host: &HostId| self.hosts[*host].eid == peer && self.net.believed(node, *host) != 0;
        let Some(peer) = (0..self.hosts.len()).find(reached) else { return Ok(()) };
        let head = self.hosts[node].process.as_ref().expect("checked by the caller").replica.ledger().head;
        // The books first: the collector has to know whom this node exchanges the family with.
        self.collect(node, peer, BOOKS, Collecting { family, head })
    }

    fn collect(&mut self, node: HostId, peer: HostId, family: FamilyIx, collecting: Collecting) -> Checked {
        if let Some(stream) = self.open_reconcile(node, peer, family, false)? {
            let process = self.hosts[node].process.as_mut().expect("it has just asked");
            process.verifying.collecting.insert(stream, collecting);
        }
        Ok(())
    }

    /// A verify with the collector has ended.
    pub fn on_collected(&mut self, node: HostId, over: &Session, collecting: Collecting, ended: &Ended) -> Checked {
        let Some(run) = ended.verified_run() else { return Ok(()) };
        let Collecting { family, head } = collecting;
        if over.family == BOOKS {
            let head = self.hosts[node].process.as_ref().expect("it has just compared").replica.ledger().head;
            return self.collect(node, over.peer, family, Collecting { family, head });
        }
        self.stats.verifies += 1;
        let (family, peer) = (self.families[family].0.clone(), self.hosts[over.peer].eid);
        let verified = Verified { family, peer, run, head };
        // What is due then is seen at the next look, as in the daemon.
        self.submit(node, Input::Verified(verified), Waiting::Nobody);
        Ok(())
    }

    // ---- checks ---------------------------------------------------------------------------------

    /// What was deleted below a floor is alive nowhere where that floor is adopted.
    pub fn nothing_has_risen(&self) -> Checked {
        if self.acknowledged.purged.is_empty() {
            return Ok(());
        }
        let adopted: Vec<_> = self.hosts.iter().map(adopted_by).collect();
        for (key, (tombstone, seen)) in &self.acknowledged.purged {
            for (node, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.up()) {
                let Some(held) = host.model.held.get(key).filter(|held| !held.tombstone) else { continue };
                // In a family that is shared in the other mode the record is the node's own affair.
                let Some((family, _)) = host.model.covering(&key.path).filter(|(_, mode)| exchanged(key, *mode)) else {
                    continue;
                };
                let floor = adopted[node].get(family).copied().unwrap_or(Hlc::ZERO);
                let known =
                    seen.contains(&held.stamp) && !self.acknowledged.imported.contains(&(key.clone(), held.stamp));
                let risen = held.stamp < *tombstone && known && floor >= tombstone.hlc;
                ensure(!risen, Check::NoResurrection, || {
                    format!(
                        "node {node} shows {} as of {} at the floor {floor}, it was deleted with {tombstone}",
                        key.path, held.stamp
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Every node that is up has adopted every floor that it knows, and all have the same.
    pub fn floors_are_in_step(&self) -> bool {
        if self.history.floors.is_none() {
            return true;
        }
        let mut seen: BTreeMap<Family, Hlc> = BTreeMap::new();
        for process in self.hosts.iter().filter_map(|host| host.process.as_ref()) {
            let families = &process.replica.ledger().families;
            for family in families.marks().keys() {
                let Some(floor) = families.floor_of(family) else { return false };
                if *seen.entry(family.clone()).or_insert(floor) != floor {
                    return false;
                }
            }
        }
        true
    }

    /// Whether a record is in doubt: it lies below what a member has promised, and its only home is a node that the
    /// member's round does not count, or the member has had everything up to there from those that counted before.
    /// It is set aside as soon as the floor rises, or taken with the next round; others may pin either.
    pub fn is_in_doubt(
        &self,
        sharing: &[HostId],
        home: HostId,
        family: &Family,
        stamp: kinfolk::core::clock::Stamp,
    ) -> bool {
        let home = self.hosts[home].eid;
        sharing.iter().filter_map(|host| self.hosts[*host].process.as_ref()).any(|process| {
            let books = &process.replica.ledger().books;
            let of = books.of(family);
            let below = of.notes.get(&process.replica.eid()).is_some_and(|note| stamp.hlc <= note.round.target);
            let counted = of.round.as_ref().is_some_and(|round| {
                round.members.get(&home).is_some_and(|share| of.sharers.get(&home) == Some(share))
            });
            let local = process.replica.ledger().floors.get(family).copied().unwrap_or_default();
            let held_all = local.spread > local.adopted && stamp.hlc <= local.spread;
            held_all || below && !(counted && books.is_admitted(home))
        })
    }

    /// What is set aside on the disk is what must be.
    pub fn quarantine_is_true(&self, node: HostId) -> Checked {
        let host = &self.hosts[node];
        let Some(process) = &host.process else { return Ok(()) };
        let read = process.replica.read().expect("memory reads");
        let mut found = BTreeMap::new();
        read.quarantine(&mut |(key, aside)| {
            found.insert(key, aside.register.stamp());
            ControlFlow::Continue(())
        })
        .expect("memory reads");
        let wanted: BTreeMap<_, _> = host.model.aside.iter().map(|(key, aside)| (key.clone(), aside.stamp)).collect();
        ensure(
            found == wanted && process.replica.ledger().quarantined == wanted.len() as u64,
            Check::Quarantine,
            || format!("node {node} has set aside {found:?}, it must be {wanted:?}"),
        )
    }
}

fn adopted_by(host: &crate::host::Host) -> BTreeMap<Family, Hlc> {
    let Some(process) = &host.process else { return BTreeMap::new() };
    process.replica.ledger().floors.iter().map(|(family, local)| (family.clone(), local.adopted)).collect()
}

/// The greatest moment that a round of these records would raise a floor to.
pub fn target_of(key: &RecordKey, value: Option<&kinfolk::core::path::Value>) -> Option<Hlc> {
    match Entry::read(&key.path, value?)? {
        Entry::Round(_, round) => Some(round.id.target),
        _ => None,
    }
}
