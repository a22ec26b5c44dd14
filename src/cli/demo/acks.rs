//! What a cluster owes to those who wrote: every acknowledged write is the winner, or lost to a greater
//! stamp.
//!
//! Knows only acknowledgements and an export, nothing of the nodes. A write without an acknowledgement may
//! or may not have been carried out; a deltree acknowledges a count, so the tombstones under it by its node
//! are explained by it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::core::clock::Stamp;
use crate::core::eid::Eid;

/// A record's key: the owner if its family is unique, and the path.
pub type Key = (Option<Eid>, String);

/// One acknowledged write; no value is a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub stamp: Stamp,
    pub value: Option<String>,
}

/// Records of an export by their keys.
pub type Export = BTreeMap<Key, Ack>;

#[derive(Deserialize)]
struct Line {
    owner: Option<Eid>,
    path: String,
    value: Option<String>,
    stamp: String,
}

/// Reads what `kinfolk export` prints.
pub fn read_export(text: &str) -> Result<Export, String> {
    let mut export = Export::new();
    for line in text.lines() {
        let read = |error: &dyn std::fmt::Display| format!("{line:?} is no line of an export: {error}");
        let Line { owner, path, value, stamp } = serde_json::from_str(line).map_err(|error| read(&error))?;
        let stamp = stamp.parse().map_err(|error| read(&error))?;
        if export.insert((owner, path), Ack { stamp, value }).is_some() {
            return Err(format!("{line:?} stands twice in one export"));
        }
    }
    Ok(export)
}

/// Everything that was written, as far as the writers know.
#[derive(Clone, Debug, Default)]
pub struct Acks {
    acked: BTreeMap<Key, Vec<Ack>>,
    /// Sent, but never answered.
    unanswered: BTreeMap<Key, Vec<(Eid, Option<String>)>>,
    /// Trees that a node was told to delete, answered or not.
    trees: BTreeSet<(Eid, String)>,
}

impl Acks {
    pub fn acknowledged(&mut self, key: Key, value: Option<String>, stamp: Stamp) {
        self.acked.entry(key).or_default().push(Ack { stamp, value });
    }

    pub fn unanswered(&mut self, key: Key, value: Option<String>, node: Eid) {
        self.unanswered.entry(key).or_default().push((node, value));
    }

    /// `tree` is a path without a '/' at its end.
    pub fn tree_deleted(&mut self, tree: &str, node: Eid) {
        self.trees.insert((node, tree.to_string()));
    }

    /// Takes in what another writer knows.
    pub fn add(&mut self, other: Acks) {
        for (key, acks) in other.acked {
            self.acked.entry(key).or_default().extend(acks);
        }
        for (key, writes) in other.unanswered {
            self.unanswered.entry(key).or_default().extend(writes);
        }
        self.trees.extend(other.trees);
    }

    /// How many writes were acknowledged.
    pub fn count(&self) -> usize {
        self.acked.values().map(Vec::len).sum()
    }

    pub fn count_unanswered(&self) -> usize {
        self.unanswered.values().map(Vec::len).sum()
    }

    /// The acknowledged writes of a key, the greatest stamp first.
    pub fn of(&self, key: &Key) -> Vec<Ack> {
        let mut acks = self.acked.get(key).cloned().unwrap_or_default();
        acks.sort_by_key(|ack| std::cmp::Reverse(ack.stamp));
        acks
    }

    /// What is owed and not there: one sentence each.
    pub fn faults(&self, export: &Export) -> Vec<String> {
        let mut faults = Vec::new();
        let mut stamps = BTreeSet::new();
        for (key, acks) in &self.acked {
            for ack in acks.iter().filter(|ack| !stamps.insert(ack.stamp)) {
                faults.push(format!("the stamp {} was acknowledged twice, at {}", ack.stamp, key.1));
            }
            faults.extend(self.fault_of(key, acks, export.get(key)));
        }
        faults
    }

    fn fault_of(&self, key: &Key, acks: &[Ack], found: Option<&Ack>) -> Option<String> {
        let best = acks.iter().max_by_key(|ack| ack.stamp)?;
        let Some(found) = found else {
            return Some(format!("{} is gone; {} was acknowledged", key.1, best.stamp));
        };
        if found.stamp < best.stamp {
            return Some(format!("{} holds {}, less than the acknowledged {}", key.1, found.stamp, best.stamp));
        }
        if found.stamp == best.stamp {
            let same = found.value == best.value;
            return (!same).then(|| format!("{} holds {:?}, acknowledged was {:?}", key.1, found.value, best.value));
        }
        (!self.explains(key, found)).then(|| format!("nobody wrote what {} holds: {found:?}", key.1))
    }

    /// Whether somebody may have written this without an acknowledgement of its own.
    fn explains(&self, key: &Key, found: &Ack) -> bool {
        let by = found.stamp.eid;
        let unanswered = self.unanswered.get(key).into_iter().flatten();
        let by_write = unanswered.into_iter().any(|(node, value)| *node == by && *value == found.value);
        let under = |tree: &str| key.1.strip_prefix(tree).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        by_write || (found.value.is_none() && self.trees.iter().any(|(node, tree)| *node == by && under(tree)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "02:00:00:00:00:0a";

    fn stamp(ms: u64) -> Stamp {
        format!("17900000000{ms:02}.0@{A}#00000000000000ab").parse().expect("a stamp")
    }

    fn key(path: &str) -> Key {
        (None, path.to_string())
    }

    fn holding(path: &str, value: Option<&str>, ms: u64) -> Export {
        [(key(path), Ack { stamp: stamp(ms), value: value.map(str::to_string) })].into()
    }

    #[test]
    fn a_write_that_is_gone_or_beaten_by_less_or_by_nobody_is_a_fault() {
        let mut acks = Acks::default();
        acks.acknowledged(key("/f/k"), Some("1".into()), stamp(1));
        acks.acknowledged(key("/f/k"), Some("2".into()), stamp(2));
        assert_eq!(acks.faults(&holding("/f/k", Some("2"), 2)), [""; 0]);
        for (export, part) in [
            (Export::new(), "is gone"),
            (holding("/f/k", Some("1"), 1), "less than"),
            (holding("/f/k", Some("x"), 2), "acknowledged was"),
            (holding("/f/k", Some("3"), 3), "nobody wrote"),
        ] {
            let faults = acks.faults(&export);
            assert!(faults.len() == 1 && faults[0].contains(part), "{faults:?}");
        }
    }

    #[test]
    fn unanswered_writes_and_deleted_trees_explain_what_is_found() {
        let mut acks = Acks::default();
        let a = A.parse().expect("an EID");
        acks.acknowledged(key("/f/k"), Some("1".into()), stamp(1));
        acks.unanswered(key("/f/k"), Some("3".into()), a);
        assert!(acks.faults(&holding("/f/k", Some("3"), 3)).is_empty());
        acks.tree_deleted("/f", a);
        assert!(acks.faults(&holding("/f/k", None, 4)).is_empty());
        acks.acknowledged(key("/ff/k"), Some("1".into()), stamp(5));
        let mut export = holding("/f/k", None, 4);
        export.extend(holding("/ff/k", None, 6));
        assert_eq!(acks.faults(&export).len(), 1, "/f is no prefix of /ff by segments");
    }

    #[test]
    fn a_stamp_that_was_given_twice_is_a_fault() {
        let mut acks = Acks::default();
        acks.acknowledged(key("/f/k"), Some("1".into()), stamp(1));
        acks.acknowledged(key("/f/k"), Some("1".into()), stamp(1));
        assert_eq!(acks.faults(&holding("/f/k", Some("1"), 1)).len(), 1);
    }
}
