//! What a node must hold: a model of one disk, and of what the whole cluster has acknowledged.
//!
//! Computed from inputs and acknowledged outcomes alone; shares no rule with the core except the order of
//! stamps. The world keeps one [`DiskModel`] for each disk, and copies it where it copies the disk.

use std::collections::{BTreeMap, BTreeSet};

use kinfolk::core::clock::Stamp;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::path::{Family, Path};
use kinfolk::core::record::{Class, RecordKey};

/// One record as a disk must hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub stamp: Stamp,
    pub tombstone: bool,
    pub class: Class,
    /// The record is for this node to spread: it was written or imported here, or was here when the family
    /// was shared.
    pub origin: bool,
}

/// A record that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    pub stamp: Stamp,
    pub value: Option<kinfolk::core::path::Value>,
}

#[derive(Clone, Debug, Default)]
pub struct DiskModel {
    pub held: BTreeMap<RecordKey, Held>,
    pub marks: BTreeMap<Family, Mode>,
    /// Records in quarantine.
    pub aside: BTreeMap<RecordKey, Aside>,
    /// The stamps of all that was ever held here, or lost here against what was.
    pub seen: BTreeMap<RecordKey, BTreeSet<Stamp>>,
}

impl DiskModel {
    pub fn mode_of(&self, family: &Family) -> Option<Mode> {
        if *family == Family::books() { Some(Mode::Global) } else { self.marks.get(family).copied() }
    }

    /// The shared family that a path lies in, found the plain way.
    pub fn covering(&self, path: &Path) -> Option<(&Family, Mode)> {
        self.marks.iter().find(|(family, _)| path.key_in(family).is_some()).map(|(family, mode)| (family, *mode))
    }

    /// The record that the node `me` writes at `path`.
    pub fn own_key(&self, me: Eid, path: &Path) -> RecordKey {
        match self.covering(path) {
            Some((_, Mode::Unique)) => RecordKey::owned(me, path.clone()),
            _ => RecordKey::plain(path.clone()),
        }
    }

    pub fn live(&self, key: &RecordKey) -> bool {
        self.held.get(key).is_some_and(|held| !held.tombstone)
    }

    /// The live records at or under `tree` that the node `me` can write.
    pub fn writable_under(&self, me: Eid, tree: &Family) -> Vec<RecordKey> {
        let ours = |key: &RecordKey| key.owner.is_none_or(|owner| owner == me);
        let live = self.held.iter().filter(|(_, held)| !held.tombstone).map(|(key, _)| key);
        live.filter(|key| ours(key) && tree.covers(&key.path)).cloned().collect()
    }

    /// Puts a record there; what was set aside under its key is settled by the same or a later write.
    pub fn hold(&mut self, key: RecordKey, held: Held) {
        if self.aside.get(&key).is_some_and(|aside| aside.stamp <= held.stamp) {
            self.aside.remove(&key);
        }
        self.see(&key, held.stamp);
        self.held.insert(key, held);
    }

    pub fn see(&mut self, key: &RecordKey, stamp: Stamp) {
        match self.seen.get_mut(key) {
            Some(seen) => _ = seen.insert(stamp),
            None => _ = self.seen.insert(key.clone(), BTreeSet::from([stamp])),
        }
    }

    fn under(&self, family: &Family) -> Vec<RecordKey> {
        self.held.keys().filter(|key| key.path.key_in(family).is_some()).cloned().collect()
    }

    /// Gives the family's records of one owner to another; stamps stay.
    fn rehome(&mut self, family: &Family, from: Option<Eid>, to: Option<Eid>) {
        for key in self.under(family).into_iter().filter(|key| key.owner == from) {
            let mut held = self.held.remove(&key).expect("was listed");
            let key = RecordKey { owner: to, path: key.path };
            if let Some(there) = self.held.get(&key).filter(|there| there.stamp > held.stamp) {
                (held.stamp, held.tombstone) = (there.stamp, there.tombstone);
            }
            self.see(&key, held.stamp);
            self.held.insert(key, held);
        }
    }

    pub fn share(&mut self, me: Eid, family: &Family, mode: Mode) {
        if mode == Mode::Unique {
            self.rehome(family, None, Some(me));
        }
        self.marks.insert(family.clone(), mode);
        for key in self.under(family) {
            let spread = exchanged(&key, mode);
            let held = self.held.get_mut(&key).expect("was listed");
            held.origin |= spread;
            if spread && held.class == Class::Far {
                held.class = Class::Near;
            }
        }
    }

    pub fn unshare(&mut self, me: Eid, family: &Family) {
        if self.marks.remove(family) == Some(Mode::Unique) {
            self.rehome(family, Some(me), None);
        }
        for key in self.under(family) {
            self.held.get_mut(&key).expect("was listed").origin = false;
        }
    }
}

/// Whether nodes exchange this record in a family shared as `mode`.
pub fn exchanged(key: &RecordKey, mode: Mode) -> bool {
    key.owner.is_some() == (mode == Mode::Unique)
}

/// What the cluster as a whole has acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    /// Every stamp that was ever given, by path.
    pub known: BTreeMap<Path, BTreeSet<Stamp>>,
    /// The greatest stamp that was ever there to be spread.
    pub published: BTreeMap<RecordKey, Stamp>,
    /// Old exports: what [`Input::Import`](kinfolk::core::replica::Input::Import) may bring back.
    pub exported: Vec<(RecordKey, Option<kinfolk::core::path::Value>, Stamp)>,
    /// EIDs that may stamp twice alike: clones, and nodes whose disk has lost its past.
    pub doubled: BTreeSet<Eid>,
    /// Paths that a node has deleted while their family was not shared: nothing is left there to remember
    /// their stamps by, and after a restart with the clock back they may be given again.
    pub forgotten: BTreeSet<(Eid, Path)>,
    /// Losses that the design allows until there is verify: origins gone, wiped, rolled back or unshared.
    pub losses: u64,
    /// The latest tombstone of each record that a node dropped because it took part in a round, and what the nodes
    /// that dropped it had seen: members who never met are told nothing of each other's deletions.
    pub purged: BTreeMap<RecordKey, (Stamp, BTreeSet<Stamp>)>,
    /// What operators have carried from one node to another in a file: members need not have met for that.
    pub imported: BTreeSet<(RecordKey, Stamp)>,
    /// Two halves of the cluster decommission each other: each forgets deletions without the other.
    pub halved: bool,
    /// How many records were set aside.
    pub set_aside: u64,
    /// The greatest moment that any round would raise a floor to.
    pub target: Option<kinfolk::core::clock::Hlc>,
}

impl Acknowledged {
    pub fn is_known(&self, path: &Path, stamp: Stamp) -> bool {
        self.known.get(path).is_some_and(|stamps| stamps.contains(&stamp))
    }

    pub fn note(&mut self, path: &Path, stamp: Stamp) {
        self.known.entry(path.clone()).or_default().insert(stamp);
    }

    /// Whether a write of this path bears the same time and EID already.
    pub fn repeats(&self, path: &Path, stamp: Stamp) -> bool {
        let same = Stamp { hash: 0, ..stamp }..=Stamp { hash: u64::MAX, ..stamp };
        self.known.get(path).is_some_and(|stamps| stamps.range(same).next().is_some())
    }

    pub fn publish(&mut self, key: &RecordKey, stamp: Stamp) {
        let greatest = self.published.entry(key.clone()).or_insert(stamp);
        *greatest = stamp.max(*greatest);
    }

    pub fn publish_family(&mut self, model: &DiskModel, family: &Family, mode: Mode) {
        for (key, held) in &model.held {
            if key.path.key_in(family).is_some() && exchanged(key, mode) {
                self.publish(key, held.stamp);
            }
        }
    }
}
