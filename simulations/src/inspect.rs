//! Looks at the whole world: costly checks now and then, and after the healing whether all became equal.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use kinfolk::core::clock::Stamp;
use kinfolk::core::family::Mode;
use kinfolk::core::few::Few;
use kinfolk::core::path::{BOOKS_FAMILY, Family, MARKS_FAMILY, Path, Value};
use kinfolk::core::record::RecordKey;
use kinfolk::core::replica::{Input, Tally};
use kinfolk::core::storage::{Read, Span};
use kinfolk::core::view::View;

use crate::check::{Check, Checked, Violation, ensure};
use crate::clock::{MS, SECOND};
use crate::history::{BOOKS, FamilyIx, HostId};
use crate::host::Waiting;
use crate::membership::components;
use crate::model::exchanged;
use crate::world::{Event, Phase, World};

/// What keeps a family from being equal, for one node and key.
#[derive(Debug)]
pub struct Lag {
    pub node: HostId,
    pub key: RecordKey,
    pub holds: Option<Stamp>,
    pub must: Stamp,
}

impl World {
    pub fn on_sweep(&mut self) -> Checked {
        if self.phase == Phase::Faults {
            self.schedule(self.history.checking.sweep_every_us, Event::Sweep);
        }
        for node in 0..self.hosts.len() {
            self.node_is_sound(node)?;
        }
        self.nothing_has_risen()?;
        if self.record_curve {
            self.note_lags();
        }
        Ok(())
    }

    fn note_lags(&mut self) {
        for family in 1..self.families.len() {
            let lags = [Mode::Global, Mode::Unique].map(|mode| self.lags(family, mode).0.len() as u64);
            self.stats.lagging.entry(family).or_default().push((self.now, lags[0] + lags[1]));
        }
    }

    /// Everything that can be checked of one node by itself.
    fn node_is_sound(&self, node: HostId) -> Checked {
        self.disk_equals_model(node)?;
        let Some(process) = &self.hosts[node].process else { return Ok(()) };
        if !self.history.checking.each_commit {
            return Ok(());
        }
        self.ledger_is_true(node)?;
        self.feed_is_true(node)?;
        self.view_is_true(node)?;
        self.quarantine_is_true(node)?;
        for ((peer, family), _) in process.follows.by_host() {
            self.cursor_is_honest(node, peer, family)?;
        }
        ensure(process.inbox.len() < 100_000, Check::Bounded, || format!("node {node}: the inbox has no end"))
    }

    fn ledger_is_true(&self, node: HostId) -> Checked {
        let host = &self.hosts[node];
        let ledger = host.process.as_ref().expect("it is up").replica.ledger();
        let mut tallies: Few<Family, Tally> =
            host.model.marks.keys().map(|family| (family.clone(), Tally::default())).collect();
        for (key, held) in &host.model.held {
            if let Some((family, _)) = host.model.covering(&key.path).filter(|(_, mode)| exchanged(key, *mode)) {
                let tally = tallies.get_mut(family).expect("a mark");
                *if held.tombstone { &mut tally.tombstones } else { &mut tally.keys } += 1;
            }
        }
        ensure(ledger.tallies == tallies, Check::Ledger, || {
            format!("node {node} counts {:?}, there are {tallies:?}", ledger.tallies)
        })?;
        let process = host.process.as_ref().expect("it is up");
        let wrong = process.replica.check_sketches().expect("memory reads");
        ensure(wrong.is_empty(), Check::Ledger, || {
            format!("node {node}: the sketches of {wrong:?} are not of its disk")
        })?;
        let marks: BTreeMap<_, _> =
            ledger.families.marks().iter().map(|(family, mark)| (family.clone(), mark.mode)).collect();
        ensure(marks == host.model.marks, Check::SharingOnly, || {
            format!("node {node} shares {marks:?}, it must share {:?}", host.model.marks)
        })
    }

    /// Each record stands in the feed once, at its own sequence number, and none is above the head.
    fn feed_is_true(&self, node: HostId) -> Checked {
        let process = self.hosts[node].process.as_ref().expect("it is up");
        let read = process.replica.read().expect("memory reads");
        let head = process.replica.ledger().head;
        let stored_head = read.head().expect("memory reads");
        ensure(head >= stored_head, Check::Ledger, || format!("node {node}: head {head}, on disk {stored_head}"))?;
        let mut at = BTreeMap::new();
        read.scan(Span::All, &mut |(key, stored)| {
            at.insert(stored.seq, (key, stored.class));
            ControlFlow::Continue(())
        })
        .expect("memory reads");
        let records = self.hosts[node].model.held.len();
        ensure(at.len() == records, Check::Bounded, || format!("node {node}: sequence numbers are shared"))?;
        let tops: BTreeSet<String> = at.values().map(|(key, _)| key.path.top().to_owned()).collect();
        let mut fed = 0;
        for top in tops {
            let mut wrong = None;
            read.feed(&top, 0, &mut |(seq, class, key)| {
                fed += 1;
                if at.get(&seq) != Some(&(key.clone(), class)) || seq > head {
                    wrong = Some((seq, key));
                }
                ControlFlow::Continue(())
            })
            .expect("memory reads");
            ensure(wrong.is_none(), Check::Bounded, || format!("node {node}: the feed holds {wrong:?}"))?;
        }
        ensure(fed == records, Check::CursorHonest, || {
            format!("node {node}: the feed has {fed} entries for {records} records")
        })
    }

    /// A reader finds every live record of the model under its path, and nothing else.
    fn view_is_true(&self, node: HostId) -> Checked {
        let host = &self.hosts[node];
        let process = host.process.as_ref().expect("it is up");
        let read = process.replica.read().expect("memory reads");
        let view = View { read, families: process.replica.ledger().families.clone(), eid: host.eid };
        let shown = view.tree(None).expect("memory reads");
        let mut wanted = BTreeSet::new();
        for (key, _) in host.model.held.iter().filter(|(_, held)| !held.tombstone) {
            let path = match key.owner {
                Some(owner) if owner != host.eid => format!("/{owner}{}", key.path),
                _ => key.path.to_string(),
            };
            if key.path.top() != kinfolk::core::path::BOOKS_FAMILY {
                wanted.insert(path);
            }
        }
        let shown: BTreeSet<String> =
            shown.iter().filter(|entry| entry.path.top() != MARKS_FAMILY).map(|entry| entry.path.to_string()).collect();
        ensure(shown == wanted, Check::View, || {
            let differing: Vec<_> = shown.symmetric_difference(&wanted).take(3).collect();
            format!("node {node} shows {} paths, holds {}: {differing:?}", shown.len(), wanted.len())
        })?;
        for (key, held) in host.model.held.iter().filter(|(key, _)| key.owner.is_none_or(|owner| owner == host.eid)) {
            let own = host.model.own_key(host.eid, &key.path) == *key;
            if own && key.path.top() != kinfolk::core::path::BOOKS_FAMILY {
                let found = view.get(&key.path).expect("memory reads").map(|found| found.stamp);
                let must = (!held.tombstone).then_some(held.stamp);
                ensure(found == must, Check::View, || format!("node {node} shows {} as {found:?}", key.path))?;
            }
        }
        Ok(())
    }

    // ---- convergence ----------------------------------------------------------------------------

    /// Who is up and shares the family in this mode.
    fn sharing(&self, family: FamilyIx, mode: Mode) -> Vec<HostId> {
        let name = &self.families[family].0;
        let shares = |host: &HostId| self.hosts[*host].up() && self.hosts[*host].model.mode_of(name) == Some(mode);
        (0..self.hosts.len()).filter(shares).collect()
    }

    /// Where replicas do not hold the winner, and how many keys are exempt: those whose greatest stamp went
    /// down with a disk, a dead origin or an unsharing before it had spread.
    pub fn lags(&self, family: FamilyIx, mode: Mode) -> (Vec<Lag>, u64) {
        let sharing = self.sharing(family, mode);
        if self.phase == Phase::Faults {
            return self.lags_among(&sharing, family, mode);
        }
        // A node carries on only what it shares: without a path over such nodes nothing is promised.
        let open = |a, b| self.net.open_both_ways(a, b) && self.admit_each_other(a, b, family);
        let group = components(self.hosts.len(), |host| sharing.contains(&host), open);
        let mut parts: BTreeMap<Option<HostId>, Vec<HostId>> = BTreeMap::new();
        sharing.iter().for_each(|host| parts.entry(group[*host]).or_default().push(*host));
        let whole = parts.len() < 2;
        let (lags, exempt): (Vec<_>, Vec<_>) = parts.values().map(|part| self.lags_among(part, family, mode)).unzip();
        // A winner that is at home in another part has not gone down with anything.
        (lags.into_iter().flatten().collect(), if whole { exempt.iter().sum() } else { 0 })
    }

    /// The same among hosts that can all exchange the family.
    fn lags_among(&self, sharing: &[HostId], family: FamilyIx, mode: Mode) -> (Vec<Lag>, u64) {
        let name = &self.families[family].0;
        let mut must: BTreeMap<&RecordKey, Option<Stamp>> = BTreeMap::new();
        for host in sharing {
            for (key, held) in &self.hosts[*host].model.held {
                if key.path.key_in(name).is_some() && exchanged(key, mode) {
                    let winner = must.entry(key).or_default();
                    // A verify brings what anyone has, whoever wrote it.
                    let counts = held.origin || self.history.verify.mode.repairs();
                    *winner = (*winner).max(counts.then_some(held.stamp));
                }
            }
        }
        let (mut lags, mut exempt) = (Vec::new(), 0);
        for (key, winner) in must {
            let published = self.acknowledged.published.get(key).copied();
            let greatest = winner.is_some_and(|winner| published.is_none_or(|top| top <= winner));
            exempt += u64::from(!greatest);
            // What nobody has any more is lost; what somebody has must be everywhere.
            let Some(winner) = winner.filter(|_| greatest || self.history.verify.mode.repairs()) else {
                continue;
            };
            let homes = sharing.iter().filter(|host| {
                self.hosts[**host].model.held.get(key).is_some_and(|held| held.origin && held.stamp == winner)
            });
            if homes.clone().all(|home| self.is_in_doubt(sharing, *home, name, winner)) {
                continue;
            }
            for host in sharing {
                let holds = self.hosts[*host].model.held.get(key).map(|held| held.stamp);
                if holds != Some(winner) {
                    lags.push(Lag { node: *host, key: key.clone(), holds, must: winner });
                }
            }
        }
        (lags, exempt)
    }

    /// Whether two nodes exchange a family at all. Without verifies a node whose disk was put back never hears what it wrote
    /// since, so that it may take itself for a sharer while the books of all others say that it ended that.
    fn admit_each_other(&self, a: HostId, b: HostId, family: FamilyIx) -> bool {
        let lost = self.acknowledged.losses > 0 && !self.history.verify.mode.repairs();
        !lost || (self.knows(a, b, family) && self.knows(b, a, family))
    }

    /// After the healing, once a second: are all replicas equal?
    pub fn on_inspect(&mut self) -> Checked {
        let since = match self.phase {
            Phase::Healing { since } | Phase::Probing { since } => since,
            Phase::Faults | Phase::Done => return Ok(()),
        };
        if self.record_curve {
            self.note_lags();
        }
        let mut first = None;
        let mut exempt = 0;
        for family in 0..self.families.len() {
            for mode in [Mode::Global, Mode::Unique] {
                if family == BOOKS && (mode == Mode::Unique || !self.history.checking.books) {
                    continue;
                }
                let (lags, without) = self.lags(family, mode);
                exempt += without;
                first = first.or(lags.into_iter().next());
            }
        }
        if first.is_none() && !self.history.checking.each_commit {
            first = self.unlike_the_first();
        }
        let working =
            self.hosts.iter().any(|host| host.process.as_ref().is_some_and(|process| !process.inbox.is_empty()));
        let expected = self.hosts.iter().filter(|host| !host.gone_for_good).all(|host| host.up());
        match first {
            None if expected && !working && self.floors_are_in_step() => self.converged(since, exempt),
            lag if self.now > since + self.history.converge_within_us => {
                let homes: Vec<_> = lag.iter().flat_map(|lag| self.homes(&lag.key)).collect();
                let what =
                    format!("{} s after the healing still: {lag:?}; held by {homes:?}", (self.now - since) / SECOND);
                Err(Violation { check: Check::Convergence, what })
            }
            _ => {
                let soon = self.now < since + 5 * SECOND && self.history.checking.each_commit;
                let step = if soon { 100 * MS } else { SECOND };
                self.schedule(step, Event::Inspect);
                Ok(())
            }
        }
    }

    /// Where no model is kept: a node whose disk is unlike that of the first.
    fn unlike_the_first(&self) -> Option<Lag> {
        let content = |host: &crate::host::Host| {
            let read = host.process.as_ref()?.replica.read().expect("memory reads");
            let mut content = Vec::new();
            read.scan(Span::All, &mut |(key, stored)| {
                // Books that nobody follows say of each node only what it says of itself.
                if self.history.checking.books || key.path.top() != BOOKS_FAMILY {
                    content.push((key, stored.register.stamp()));
                }
                ControlFlow::Continue(())
            })
            .expect("memory reads");
            Some(content)
        };
        let mut contents = self.hosts.iter().enumerate().filter_map(|(id, host)| content(host).map(|all| (id, all)));
        let (_, first) = contents.next()?;
        contents.find_map(|(node, other)| {
            let differs = first.iter().zip(&other).find(|(a, b)| a != b).map(|(a, _)| a).or(first.get(other.len()));
            let differs = differs.or(other.get(first.len()));
            differs.map(|(key, must)| Lag { node, key: key.clone(), holds: None, must: *must })
        })
    }

    fn homes(&self, key: &RecordKey) -> Vec<(HostId, crate::model::Held)> {
        let held = |(id, host): (HostId, &crate::host::Host)| host.model.held.get(key).map(|held| (id, *held));
        self.hosts.iter().enumerate().filter_map(held).collect()
    }

    fn converged(&mut self, since: u64, exempt: u64) -> Checked {
        ensure(exempt == 0 || self.acknowledged.losses > 0, Check::Convergence, || {
            format!("{exempt} winners are nowhere at home, though nothing was lost")
        })?;
        let took = self.now - since;
        if matches!(self.phase, Phase::Healing { .. }) {
            self.stats.converged_after_us = Some(took);
            self.stats.exempt_keys = exempt;
            if self.history.probe {
                self.phase = Phase::Probing { since: self.now };
                self.probe();
                self.schedule(100 * MS, Event::Inspect);
                return Ok(());
            }
        } else {
            self.stats.probe_converged_after_us = Some(took);
        }
        for node in 0..self.hosts.len() {
            self.node_is_sound(node)?;
        }
        self.nothing_has_risen()?;
        self.trace_disks();
        self.phase = Phase::Done;
        Ok(())
    }

    /// One more write at every node in every family that it shares.
    fn probe(&mut self) {
        for node in 0..self.hosts.len() {
            for family in 1..self.families.len() {
                if !self.hosts[node].up() || self.hosts[node].model.mode_of(&self.families[family].0).is_none() {
                    continue;
                }
                let path = Path::of(self.families[family].0.as_str(), &format!("k{}", node % 3)).expect("a path");
                let value = Value::new(&format!("probe{node}")).expect("a value");
                self.submit(node, Input::Put { path, value }, Waiting::Client);
            }
        }
    }
}
