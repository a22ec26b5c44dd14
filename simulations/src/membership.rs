//! Who believes what about whom: a model of gossip and its failure detector.
//!
//! The true state is "up, and gossip gets through, if need be over others". A belief follows it late, each
//! observer at its own moment, and some beliefs are wrong for a while. A node that restarts knows nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::path::Family;
use kinfolk::core::storage::Run;

use crate::history::HostId;

/// What a host tells about itself; each change is a new version.
#[derive(Clone, Debug)]
pub struct Told {
    pub run: Run,
    pub families: Arc<BTreeMap<Family, Mode>>,
    pub unreached: Arc<BTreeSet<Eid>>,
    pub settled: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Belief {
    pub live: bool,
    /// What the belief is on its way to.
    pub becoming: bool,
    /// The version of what the subject told that has arrived; 0 for none.
    pub version: u32,
    /// A planted error, while it lasts.
    pub forced: Option<bool>,
}

impl Belief {
    pub fn says_live(&self) -> bool {
        self.version > 0 && self.forced.unwrap_or(self.live)
    }
}

pub struct Membership {
    hosts: usize,
    beliefs: Vec<Belief>,
    told: Vec<Vec<Told>>,
}

impl Membership {
    pub fn new(hosts: usize) -> Self {
        Self { hosts, beliefs: vec![Belief::default(); hosts * hosts], told: vec![Vec::new(); hosts] }
    }

    pub fn belief(&self, observer: HostId, subject: HostId) -> &Belief {
        &self.beliefs[observer * self.hosts + subject]
    }

    pub fn belief_mut(&mut self, observer: HostId, subject: HostId) -> &mut Belief {
        &mut self.beliefs[observer * self.hosts + subject]
    }

    pub fn forget(&mut self, observer: HostId) {
        for subject in 0..self.hosts {
            *self.belief_mut(observer, subject) = Belief::default();
        }
    }

    pub fn tell(&mut self, host: HostId, told: Told) {
        self.told[host].push(told);
    }

    /// The number of the newest version that a host has told.
    pub fn newest(&self, host: HostId) -> u32 {
        self.told[host].len() as u32
    }

    /// What `observer` has heard from `subject`.
    pub fn heard(&self, observer: HostId, subject: HostId) -> Option<&Told> {
        let version = self.belief(observer, subject).version;
        self.told[subject].get((version as usize).checked_sub(1)?)
    }
}

/// Groups of hosts between which gossip gets through, by the least host of each; a host that is down is
/// in no group.
pub fn components(
    hosts: usize,
    up: impl Fn(HostId) -> bool,
    open: impl Fn(HostId, HostId) -> bool,
) -> Vec<Option<HostId>> {
    let mut group = vec![None; hosts];
    let mut unreached: Vec<HostId> = (0..hosts).filter(|host| up(*host)).collect();
    while let Some(first) = unreached.first().copied() {
        let mut border = vec![first];
        unreached.remove(0);
        group[first] = Some(first);
        while let Some(at) = border.pop() {
            unreached.retain(|next| {
                let reached = open(at, *next);
                if reached {
                    group[*next] = Some(first);
                    border.push(*next);
                }
                !reached
            });
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gossip_gets_through_over_others_but_not_over_the_dead() {
        let open = |a: usize, b: usize| a.abs_diff(b) == 1;
        assert_eq!(components(3, |_| true, open), [Some(0), Some(0), Some(0)]);
        assert_eq!(components(3, |host| host != 1, open), [Some(0), None, Some(2)]);
    }
}
