//! How long a connection has been waited for, and what that means.
//!
//! Two thresholds: soon a stand-by is used instead; much later the member counts as out of reach, and this
//! node says so in its gossip. Else every restart would make nodes ask for everything. Time is an argument.

use std::collections::{BTreeMap, BTreeSet};

use super::Member;
use crate::core::eid::Eid;

/// A live member that is needed, and to which no connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// For a while: another is asked in its place.
    Late,
    /// For so long that it is out of reach, though it lives.
    Missed,
}

/// By member; who is neither connected nor here is still waited for.
pub type Losses = BTreeMap<Eid, Loss>;

/// Since when each needed connection has been missing.
#[derive(Clone, Debug)]
pub struct Patience {
    late_ms: u64,
    missed_ms: u64,
    since_ms: BTreeMap<Eid, u64>,
}

impl Patience {
    /// None at all is not possible: what is lost at once would never be looked at again.
    pub fn new(late_ms: u64, missed_ms: u64) -> Self {
        let missed_ms = missed_ms.max(1);
        Self { late_ms: late_ms.clamp(1, missed_ms), missed_ms, since_ms: BTreeMap::new() }
    }

    /// What is lost by now.
    pub fn losses(&self, members: &[Member], now_ms: u64) -> Losses {
        let loss = |member: &Member| {
            if mutant!(WaitedForEver) {
                return None;
            }
            let waited_ms = now_ms.saturating_sub(*self.since_ms.get(&member.eid).filter(|_| is_missing(member))?);
            match waited_ms {
                waited if waited >= self.missed_ms => Some((member.eid, Loss::Missed)),
                waited if waited >= self.late_ms => Some((member.eid, Loss::Late)),
                _ => None,
            }
        };
        members.iter().filter_map(loss).collect()
    }

    /// From now on these are needed, and no others.
    pub fn need(&mut self, dial: &BTreeSet<Eid>, members: &[Member], now_ms: u64) {
        let missing = members.iter().filter(|member| is_missing(member)).map(|member| member.eid);
        let missing: BTreeSet<Eid> = missing.filter(|eid| dial.contains(eid)).collect();
        self.since_ms.retain(|eid, _| missing.contains(eid));
        for eid in missing {
            self.since_ms.entry(eid).or_insert(now_ms);
        }
    }

    /// When the next loss is to be looked at.
    pub fn next_change_ms(&self, now_ms: u64) -> Option<u64> {
        let ends = self.since_ms.values().flat_map(|since| [since + self.late_ms, since + self.missed_ms]);
        ends.filter(|end| *end > now_ms).min()
    }
}

fn is_missing(member: &Member) -> bool {
    member.live && !member.connected
}
