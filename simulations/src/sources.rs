//! The streams that a process serves, and which classes anyone among their followers wants.
//!
//! Kept so that a commit of records that nobody here waits for costs nothing: in a full mesh of a thousand
//! nodes that is nearly every commit. The daemon wakes its followers by scope for the same reason.

use std::collections::BTreeMap;

use kinfolk::core::record::{Class, Classes};

use crate::history::{FamilyIx, HostId};
use crate::host::Serving;

const CLASSES: [Class; 3] = [Class::Local, Class::Near, Class::Far];

#[derive(Default)]
pub struct Sources {
    streams: BTreeMap<(FamilyIx, HostId), Serving>,
    /// By family and class, how many streams want it.
    wanted: BTreeMap<FamilyIx, [u32; 3]>,
}

impl Sources {
    pub fn get(&self, at: (FamilyIx, HostId)) -> Option<&Serving> {
        self.streams.get(&at)
    }

    pub fn get_mut(&mut self, at: (FamilyIx, HostId)) -> Option<&mut Serving> {
        self.streams.get_mut(&at)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&(FamilyIx, HostId), &Serving)> {
        self.streams.iter()
    }

    pub fn insert(&mut self, at: (FamilyIx, HostId), serving: Serving) {
        self.remove(at);
        let counts = self.wanted.entry(at.0).or_default();
        for (count, class) in counts.iter_mut().zip(CLASSES) {
            *count += u32::from(serving.source.wants(Classes::only(class)));
        }
        self.streams.insert(at, serving);
    }

    pub fn remove(&mut self, at: (FamilyIx, HostId)) {
        if let Some(serving) = self.streams.remove(&at) {
            let counts = self.wanted.get_mut(&at.0).expect("it was counted");
            for (count, class) in counts.iter_mut().zip(CLASSES) {
                *count -= u32::from(serving.source.wants(Classes::only(class)));
            }
        }
    }

    /// The followers of a family that want any of these classes.
    pub fn wanting(&self, family: FamilyIx, classes: Classes) -> Vec<HostId> {
        let counts = self.wanted.get(&family).copied().unwrap_or_default();
        if !counts.iter().zip(CLASSES).any(|(count, class)| *count > 0 && classes.contains(class)) {
            return Vec::new();
        }
        let of_family = self.streams.range((family, 0)..=(family, HostId::MAX));
        of_family.filter(|(_, serving)| serving.source.wants(classes)).map(|((_, peer), _)| *peer).collect()
    }
}
