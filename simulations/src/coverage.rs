//! What a swarm has covered: how often each fault fired and each branch of a merge was taken. One that
//! never did is a hole, and the swarm fails.

use std::collections::BTreeMap;

use crate::history::FaultKind;
use crate::run::Outcome;

#[derive(Clone, Debug, Default)]
pub struct Coverage {
    pub runs: u64,
    pub virtual_s: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.virtual_s += outcome.virtual_us / 1_000_000;
        for (name, count) in self::counts(outcome) {
            *self.counts.entry(name).or_default() += count;
        }
    }

    pub fn merge(&mut self, other: &Coverage) {
        self.runs += other.runs;
        self.virtual_s += other.virtual_s;
        for (name, count) in &other.counts {
            *self.counts.entry(name).or_default() += count;
        }
    }

    /// What never happened.
    pub fn holes(&self) -> Vec<&'static str> {
        self.counts.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect()
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        for (name, count) in &self.counts {
            text += &format!("  {name:<32} {count:>12}\n");
        }
        text
    }
}

fn counts(outcome: &Outcome) -> Vec<(&'static str, u64)> {
    let (stats, branches) = (&outcome.stats, &outcome.branches);
    let mut counts = vec![
        ("merge: won, key was absent", branches.won_fresh),
        ("merge: won over another", branches.won_over),
        ("merge: lost", branches.lost),
        ("merge: same", branches.same),
        ("merge: duplicate EID", branches.duplicate_eid),
        ("merge: far future", branches.far_future),
        ("write over a far future", branches.beat_far_future),
        ("input acknowledged", stats.writes),
        ("input refused", stats.refused),
        ("input unanswered", stats.unanswered),
        ("commit", stats.commits),
        ("commit failed", stats.commits_failed),
        ("stream: compare", stats.compares),
        ("stream: gave up", stats.give_ups),
        ("stream: frame refused", stats.frames_refused),
        ("stream: frame longer than allowed", stats.frames_too_long),
        ("stream: frame came over two", stats.frames_doubled),
        ("gossip: news repeated", stats.news_repeated),
        ("gossip: news overtaken", stats.news_overtaken),
        ("gossip: a speaker began or ended", stats.speakers_turned),
        ("gossip: nothing heard of a site", stats.sites_unheard),
        ("upgrade: connected old and new", stats.connected_mixed),
        ("upgrade: connected new and new", stats.connected_next),
        ("nearby: record fetched", stats.fetched_nearby),
        ("plan: detour over a neighbour", stats.detours),
        ("plan: mode conflict", stats.mode_conflicts),
        ("floor: tombstone dropped", stats.purged),
        ("floor: record set aside", stats.set_aside),
        ("floor: arrival below a promise", branches.barred),
        ("floor: other floor met", stats.other_floors),
        ("floor: verified with the collector", stats.verifies),
        ("quarantine: released", stats.released),
        ("quarantine: discarded", stats.discarded),
        ("key whose greatest write is nowhere", stats.exempt_keys),
        ("verify: started", stats.verify.started),
        ("verify: compared before following", stats.verify.bootstraps),
        ("verify: equal", stats.verify.equal),
        ("verify: reconciled", stats.verify.reconciled),
        ("verify: everything is fetched", stats.verify.everything),
        ("verify: left to the peer", stats.verify.left_to_peer),
        ("verify: not done", stats.verify.not_done),
        ("verify: broken off", stats.verify.broken),
        ("verify: record crossed", stats.verify.records),
    ];
    counts.extend(FaultKind::NAMES.iter().map(|name| (*name, stats.faults.get(name).copied().unwrap_or(0))));
    counts
}
