//! How a write spreads: when it is on all nodes, how often it crossed between sites, how often it came in vain.
//!
//! Counted at the commits that bring it, so that nothing of the way is assumed. Never here: a verdict.

use std::collections::BTreeMap;

use kinfolk::core::clock::Stamp;
use kinfolk::core::eid::Eid;
use kinfolk::core::replica::{Committed, Input, Outcome};

use crate::clock::{MS, SECOND, Us};
use crate::history::{FaultKind, HostId};
use crate::mending::Mending;
use crate::world::World;

/// After a fault of one node so long, what was written is told apart: it takes until then to be noticed.
const UPSET_US: Us = 20 * SECOND;

/// The way of one write.
#[derive(Clone, Debug)]
pub struct Way {
    pub path: String,
    pub origin: HostId,
    pub at: Us,
    /// In how many commits each node was given it.
    pub came: Vec<u16>,
    crossings: u32,
    /// When it came to the last of the nodes that were up all the while.
    last_at: Us,
}

#[derive(Clone, Debug, Default)]
pub struct Spread {
    ways: BTreeMap<Stamp, Way>,
    /// What came since the end of a cut.
    pub mending: Option<Mending>,
}

impl Spread {
    pub fn ways(&self) -> impl Iterator<Item = &Way> {
        self.ways.values()
    }
}

/// The records of a batch that come from others, and from whom.
pub fn arriving(inputs: &[Input]) -> Vec<(Stamp, Eid)> {
    let applies = inputs.iter().filter_map(|input| match input {
        Input::Apply(apply) => Some(apply),
        _ => None,
    });
    let records = |apply: &kinfolk::core::replica::Apply| {
        apply.records.iter().map(|record| (record.register.stamp(), apply.source)).collect::<Vec<_>>()
    };
    applies.flat_map(records).collect()
}

/// What is told of all writes of a kind.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub writes: usize,
    /// Writes that did not reach every node that was up all the while.
    pub incomplete: usize,
    /// From the acknowledgement to the last node: the median, the 90th and 99th of a hundred, the last.
    pub on_all_us: [Us; 4],
    /// Copies between sites, in thousandths of one for each other site.
    pub crossings_per_mille: u64,
    /// Copies that came to a node that had it, in thousandths of one for each node.
    pub redundant_per_mille: u64,
}

impl World {
    pub fn note_spread(&mut self, node: HostId, arriving: &[(Stamp, Eid)], committed: &Committed) {
        let (now, hosts) = (self.now, self.hosts.len());
        for outcome in &committed.outcomes {
            if let Outcome::Written { path, stamp } = outcome {
                let mut came = vec![0; hosts];
                came[node] = 1;
                let way = Way { path: path.to_string(), origin: node, at: now, came, crossings: 0, last_at: now };
                self.spread.ways.insert(*stamp, way);
            }
        }
        for (stamp, source) in arriving {
            let source = self.host_of(*source);
            let far = !self.near(node, source);
            let Some(way) = self.spread.ways.get_mut(stamp) else { continue };
            if let Some(mending) = &mut self.spread.mending {
                mending.note(now, [node, source], way);
            }
            if way.came[node] == 0 && self.hosts[node].up_since <= way.at {
                way.last_at = way.last_at.max(now);
            }
            way.came[node] = way.came[node].saturating_add(1);
            way.crossings += u32::from(far);
        }
    }

    /// Writes in quiet times, and those within a while of a fault. Writes over the same key are left out: a feed
    /// tells of the latest only.
    pub fn spread_told(&self) -> [(&'static str, Told); 2] {
        let mut of_path = BTreeMap::<&str, u32>::new();
        self.spread.ways.values().for_each(|way| *of_path.entry(&way.path).or_default() += 1);
        let upset = |way: &&Way| {
            let of_node = self.history.faults.iter().filter(|fault| !matches!(fault.kind, FaultKind::Slow { .. }));
            of_node
                .flat_map(|fault| [fault.at_us, fault.at_us + fault.for_us])
                .any(|at| (at.saturating_sub(SECOND)..at + UPSET_US).contains(&way.at))
        };
        let single: Vec<&Way> = self.spread.ways.values().filter(|way| of_path[way.path.as_str()] == 1).collect();
        let (upset, quiet): (Vec<_>, Vec<_>) = single.into_iter().partition(upset);
        [("quiet", self.told_of(&quiet)), ("within 20 s of a fault", self.told_of(&upset))]
    }

    fn told_of(&self, ways: &[&Way]) -> Told {
        let hosts = self.hosts.len() as u64;
        let sites = self.hosts.iter().map(|host| host.spec.site).max().unwrap_or(0) as u64;
        let missing = |way: &&&Way| {
            let there =
                |(node, host): (usize, &crate::host::Host)| way.came[node] > 0 || host.up_since > way.at || !host.up();
            self.hosts.iter().enumerate().filter(|(node, host)| !there((*node, host))).count() > 1
        };
        let mut took: Vec<Us> = ways.iter().map(|way| way.last_at - way.at).collect();
        took.sort_unstable();
        let at = |per_cent: usize| took.get((took.len() * per_cent / 100).min(took.len().saturating_sub(1))).copied();
        let count = ways.len().max(1) as u64;
        let crossings: u64 = ways.iter().map(|way| u64::from(way.crossings)).sum();
        let again = |way: &&Way| way.came.iter().map(|came| u64::from(came.saturating_sub(1))).sum::<u64>();
        Told {
            writes: ways.len(),
            incomplete: ways.iter().filter(missing).count(),
            on_all_us: [50, 90, 99, 100].map(|per_cent| at(per_cent).unwrap_or(0)),
            crossings_per_mille: crossings * 1_000 / count / sites.max(1),
            redundant_per_mille: ways.iter().map(again).sum::<u64>() * 1_000 / count / hosts,
        }
    }

    /// The table of it for a terminal, with the comparator beside it.
    pub fn spread_table(&self) -> String {
        let mut far: Vec<Us> = Vec::new();
        for a in 0..self.hosts.len() {
            let others = (0..a).filter(|b| !self.near(a, *b));
            far.extend(others.filter_map(|b| self.net.far_delay_us(a, b)));
        }
        let max = far.iter().copied().max().unwrap_or(0);
        let mean = far.iter().sum::<Us>() / (far.len() as u64).max(1);
        let sendings = self.net.far_sendings * 1_000 / self.net.far_frames.max(1);
        let mut text = format!(
            "  one-way delay between sites: mean {} ms, greatest {} ms; a frame between sites was sent {}.{:03} times; {} \
             records were fetched nearby\n",
            mean / MS,
            max / MS,
            sendings / 1_000,
            sendings % 1_000,
            self.stats.fetched_nearby
        );
        let rows = self.spread_told().into_iter().filter(|(_, told)| told.writes > 0);
        for (when, told) in rows.chain([("flat push-pull gossip", self.epidemic())]) {
            let [half, most, nearly, all] = told.on_all_us.map(|us| us / MS);
            let of_max = |us: Us| format!("{}.{:02}", us / max.max(1), us * 100 / max.max(1) % 100);
            let thousandths = |n: u64| format!("{}.{:03}", n / 1_000, n % 1_000);
            text += &format!(
                "  {when}: {} writes, on all nodes after {half} ms (half of them; {} × the greatest delay), {most} ms (90 %), \
                 {nearly} ms (99 %), {all} ms (all; {} ×); {} not on all; crossings {} × (sites − 1); redundant copies a node {}\n",
                told.writes,
                of_max(told.on_all_us[0]),
                of_max(told.on_all_us[3]),
                told.incomplete,
                thousandths(told.crossings_per_mille),
                thousandths(told.redundant_per_mille),
            );
        }
        text
    }
}
