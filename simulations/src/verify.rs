//! When nodes verify: the daemon's scheduler over roots that are heard late and now and then out of date, as gossip
//! brings them; and which follower compares before it asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kinfolk::core::eid::Eid;
use kinfolk::core::path::Family;
use kinfolk::core::reconcile::Ended;
use kinfolk::core::sketch::Root;
use kinfolk::core::verify::{Roots, Verdict, Verifier, VerifyConfig};

use crate::check::{Checked, Violation};
use crate::clock::{MS, SECOND, Us};
use crate::floors::Collecting;
use crate::history::{FamilyIx, HostId, VerifyMode};
use crate::host::Follow;
use crate::reconcile::Session;
use crate::world::{Event, World};

/// While a family is fetched whole from one source, comparing with the others waits; so long at most.
const FETCH_PATIENCE_US: Us = 60 * SECOND;

/// What a process knows of verifying.
pub struct Verifying {
    pub scheduler: Verifier,
    /// By stream, and whether we opened it.
    pub sessions: BTreeMap<(u64, bool), Session>,
    heard: BTreeMap<HostId, Arc<BTreeMap<Family, Root>>>,
    pub running: BTreeMap<u64, (Family, Eid)>,
    /// By stream, the own head at which a verify with a collector began.
    pub collecting: BTreeMap<u64, Collecting>,
    /// With whom a purge floor waits to verify.
    pub collectors: BTreeSet<Eid>,
    /// The next look, 0 for none.
    look_at: Us,
    /// Who fetches a family whole, and since when.
    fetching: BTreeMap<FamilyIx, (HostId, Us)>,
}

impl Verifying {
    pub fn new(config: VerifyConfig) -> Self {
        Self {
            scheduler: Verifier::new(config),
            sessions: BTreeMap::new(),
            heard: BTreeMap::new(),
            running: BTreeMap::new(),
            collecting: BTreeMap::new(),
            collectors: BTreeSet::new(),
            look_at: 0,
            fetching: BTreeMap::new(),
        }
    }

    /// A peer's root as it was last heard.
    pub fn heard_of(&self, peer: HostId, family: &Family) -> Option<Root> {
        self.heard.get(&peer)?.get(family).copied()
    }
}

/// Counts for coverage and for the table of costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyStats {
    pub started: u64,
    pub bootstraps: u64,
    pub equal: u64,
    pub reconciled: u64,
    pub everything: u64,
    pub left_to_peer: u64,
    pub not_done: u64,
    pub broken: u64,
    pub more_cells: u64,
    pub records: u64,
    pub bytes: u64,
}

impl World {
    // ---- when -----------------------------------------------------------------------------------

    fn verifies(&self) -> bool {
        self.history.verify.mode != VerifyMode::Off
    }

    /// A process has other roots than before: whoever hears it looks again, in its own time.
    pub fn roots_changed(&mut self, node: HostId) {
        if !self.history.verify.mode.repairs() {
            return;
        }
        let (low, high) = self.history.timing.view_up_us;
        for observer in 0..self.hosts.len() {
            let hears = observer == node || self.views.belief(observer, node).becoming;
            if self.hosts[observer].up() && hears && self.looks_later_than(observer, self.now + low) {
                let at = self.now + self.rng.between(low, high);
                self.look_at(observer, at);
            }
        }
    }

    fn looks_later_than(&self, node: HostId, at: Us) -> bool {
        let process = self.hosts[node].process.as_ref().expect("it is up");
        process.verifying.look_at == 0 || process.verifying.look_at > at
    }

    fn look_at(&mut self, node: HostId, at: Us) {
        let incarnation = self.hosts[node].incarnation;
        let Some(process) = &mut self.hosts[node].process else { return };
        if process.verifying.look_at == 0 || at < process.verifying.look_at {
            process.verifying.look_at = at;
            self.schedule_at(at, Event::Look { node, incarnation });
        }
    }

    pub fn on_look(&mut self, node: HostId) -> Checked {
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        if process.verifying.look_at == 0 || self.now < process.verifying.look_at {
            return Ok(());
        }
        process.verifying.look_at = 0;
        let (roots, late) = self.roots_heard(node);
        let now_ms = self.now / MS;
        let mut due = Vec::new();
        let chances: Vec<u64> = (0..self.families.len()).map(|_| self.rng.draw()).collect();
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        let own: BTreeMap<_, _> =
            process.replica.ledger().summaries.iter().map(|(family, summary)| (family.clone(), summary.root)).collect();
        process.verifying.scheduler.observe(&own, &roots, now_ms);
        let mut next_fetch = false;
        for family in own.keys() {
            let Some(ix) = self.family_ix.get(family).copied() else { continue };
            // What comes whole just now is compared when it is here.
            let fetched = process
                .follows
                .by_host()
                .any(|((_, of), follow)| of == ix && follow.stream != 0 && follow.is_fetching());
            if fetched {
                next_fetch = true;
                continue;
            }
            if let Some(peer) = process.verifying.scheduler.due(family, now_ms, chances[ix]) {
                due.push((ix, family.clone(), peer));
            }
        }
        let next = process.verifying.scheduler.next_look(now_ms).map(|at| at * MS);
        for (ix, family, eid) in due {
            let process = self.hosts[node].process.as_ref().expect("checked by the caller");
            let peer = {
                let mut followed = process.follows.by_host().map(|(at, _)| at);
                followed.find(|(peer, of)| *of == ix && self.hosts[*peer].eid == eid)
            };
            let Some((peer, _)) = peer else {
                self.verify_ended(node, &family, eid, Verdict::Failed);
                continue;
            };
            self.stats.verify.started += 1;
            let stream = self.open_reconcile(node, peer, ix, false)?;
            let process = self.hosts[node].process.as_mut().expect("it is up");
            match stream {
                Some(stream) if process.verifying.sessions.contains_key(&(stream, true)) => {
                    process.verifying.running.insert(stream, (family, eid));
                }
                _ => self.verify_ended(node, &family, eid, Verdict::Failed),
            }
        }
        if let Some(at) = next {
            self.look_at(node, at.max(self.now + 50 * MS));
        }
        if late || next_fetch {
            let again = self.now + self.rng.between(200 * MS, SECOND);
            self.look_at(node, again);
        }
        Ok(())
    }

    /// The roots of the peers that are followed, some of them as they were at the last look.
    fn roots_heard(&mut self, node: HostId) -> (Roots, bool) {
        let process = self.hosts[node].process.as_ref().expect("it is up");
        let followed: Vec<(HostId, FamilyIx)> = process.follows.by_host().map(|(at, _)| at).collect();
        let mut fresh = BTreeMap::new();
        let mut late = false;
        for (peer, _) in &followed {
            let believed = self.net.believed(node, *peer) != 0 && self.views.belief(node, *peer).becoming;
            if fresh.contains_key(peer) || !believed {
                continue;
            }
            let Some(theirs) = &self.hosts[*peer].process else { continue };
            let roots = theirs.replica.ledger().summaries.iter();
            let roots: BTreeMap<_, _> = roots.map(|(family, summary)| (family.clone(), summary.root)).collect();
            let before = process.verifying.heard.get(peer);
            let stale = before.is_some_and(|before| **before != roots) && self.rng.chance(200);
            late |= stale;
            let heard = if stale { before.expect("just seen").clone() } else { Arc::new(roots) };
            fresh.insert(*peer, heard);
        }
        let mut roots = Roots::new();
        for (peer, family) in followed {
            let name = &self.families[family].0;
            if let Some(root) = fresh.get(&peer).and_then(|heard| heard.get(name)) {
                roots.entry(name.clone()).or_default().insert(self.hosts[peer].eid, *root);
            }
        }
        self.hosts[node].process.as_mut().expect("it is up").verifying.heard = fresh;
        (roots, late)
    }

    pub fn verify_ended(&mut self, node: HostId, family: &Family, eid: Eid, verdict: Verdict) {
        let (now_ms, chance) = (self.now / MS, self.rng.draw());
        let Some(process) = &mut self.hosts[node].process else { return };
        process.verifying.scheduler.ended(family, eid, verdict, now_ms, chance);
        let next = process.verifying.scheduler.next_look(now_ms);
        if let Some(at) = next {
            self.look_at(node, (at * MS).max(self.now + 50 * MS));
        }
    }

    // ---- bootstrap ------------------------------------------------------------------------------

    /// A follower without a cursor compares, unless its family comes whole from another source just now. Says
    /// whether the stream is taken care of.
    pub fn compare_first(&mut self, node: HostId, peer: HostId, family: FamilyIx) -> Result<bool, Violation> {
        let verifies = self.verifies();
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let Some(follow) = process.follows.get_mut(family, peer) else { return Ok(true) };
        let follower = follow.follower.as_mut().expect("a follower was made");
        if !follower.must_compare() {
            return Ok(false);
        }
        if !verifies {
            follower.on_compared(&Ended::Everything);
            return Ok(false);
        }
        let has_waited = std::mem::take(&mut follow.waits_to_compare);
        let holder = process.verifying.fetching.get(&family).copied();
        if let Some((holder, since)) = holder.filter(|(holder, _)| *holder != peer) {
            let busy =
                process.follows.get(family, holder).is_some_and(|follow| follow.stream != 0 && follow.is_fetching());
            if busy && self.now < since + FETCH_PATIENCE_US {
                process.follows.get_mut(family, peer).expect("seen above").waits_to_compare = true;
                self.retry_later(node, peer, family);
                return Ok(true);
            }
        }
        // The first that compares brings what all have; then the others may compare at once.
        if !has_waited {
            process.verifying.fetching.insert(family, (peer, self.now));
        }
        self.stats.verify.bootstraps += 1;
        if self.open_reconcile(node, peer, family, true)?.is_none() {
            self.retry_later(node, peer, family);
        }
        Ok(true)
    }
}

impl World {
    /// A family has been compared with one source: whoever waited for that compares now.
    pub fn compare_the_others(&mut self, node: HostId, family: FamilyIx) {
        let incarnation = self.hosts[node].incarnation;
        let Some(process) = &self.hosts[node].process else { return };
        let waiting: Vec<HostId> = process
            .follows
            .of_family(family)
            .filter(|(_, follow)| follow.waits_to_compare)
            .map(|(peer, _)| peer)
            .collect();
        for peer in waiting {
            self.schedule(MS, Event::Retry { node, incarnation, peer, family });
        }
    }
}

impl Follow {
    /// It compares, or fetches the family whole.
    pub fn is_fetching(&self) -> bool {
        self.follower.as_ref().is_some_and(|follower| follower.must_compare() || follower.asked() != self.wanted)
    }
}
