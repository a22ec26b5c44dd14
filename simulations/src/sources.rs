//! The streams that a process serves, and which classes anyone among their followers wants.
//!
//! Kept so that a commit of records that nobody here waits for costs nothing: in a full mesh of a thousand
//! nodes that is nearly every commit. The daemon wakes its followers by scope for the same reason.

use kinfolk::core::record::{Class, Classes};

use crate::history::{FamilyIx, HostId};
use crate::host::Serving;
use crate::table::Table;

const CLASSES: [Class; 3] = [Class::Local, Class::Near, Class::Far];

#[derive(Default)]
pub struct Sources {
    streams: Table<Serving>,
    /// By family and class, how many streams want it.
    wanted: Vec<[u32; 3]>,
}

impl Sources {
    pub fn get(&self, family: FamilyIx, peer: HostId) -> Option<&Serving> {
        self.streams.get(family, peer)
    }

    pub fn get_mut(&mut self, family: FamilyIx, peer: HostId) -> Option<&mut Serving> {
        self.streams.get_mut(family, peer)
    }

    pub fn iter(&self) -> impl Iterator<Item = ((FamilyIx, HostId), &Serving)> {
        self.streams.by_family()
    }

    pub fn insert(&mut self, family: FamilyIx, peer: HostId, serving: Serving) {
        self.remove(family, peer);
        if self.wanted.len() <= family {
            self.wanted.resize(family + 1, [0; 3]);
        }
        for (count, class) in self.wanted[family].iter_mut().zip(CLASSES) {
            *count += u32::from(serving.source.wants(Classes::only(class)));
        }
        self.streams.insert(family, peer, serving);
    }

    pub fn remove(&mut self, family: FamilyIx, peer: HostId) {
        if let Some(serving) = self.streams.remove(family, peer) {
            for (count, class) in self.wanted[family].iter_mut().zip(CLASSES) {
                *count -= u32::from(serving.source.wants(Classes::only(class)));
            }
        }
    }

    /// The hosts among which the followers of a family are that want any of these classes: none, if no one does.
    pub fn perhaps_wanting(&self, family: FamilyIx, classes: Classes) -> std::ops::Range<HostId> {
        let counts = self.wanted.get(family).copied().unwrap_or_default();
        let any = counts.iter().zip(CLASSES).any(|(count, class)| *count > 0 && classes.contains(class));
        0..if any { self.streams.width(family) } else { 0 }
    }
}
