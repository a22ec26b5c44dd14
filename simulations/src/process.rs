//! Processes: start, crash, and the writer that drains its inbox into one batch and releases its effects
//! only after the commit. What the daemon's writer thread and node do, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use kinfolk::core::clock::Hlc;
use kinfolk::core::floor::Policy;
use kinfolk::core::nearby::Nearby;
use kinfolk::core::path::{Family, Limits};
use kinfolk::core::record::{Class, Classes, RecordKey};
use kinfolk::core::register::value_hash;
use kinfolk::core::replica::{Committed, Input, Outcome, Replica, Settings};
use kinfolk::core::storage::{Read, Run, Span, Store, StoreError};
use kinfolk::core::topology::{Patience, Probation};

use crate::check::{Check, Checked, ensure};
use crate::clock::MS;
use crate::floors::settle_model;
use crate::history::HostId;
use crate::host::{CommitFate, Process, Queued, Waiting};
use crate::judge::{Judge, MAX_CLOCK_DRIFT_MS, mismatch};
use crate::membership::Told;
use crate::model::{Aside, Held};
use crate::rings::Voice;
use crate::rng::mix;
use crate::sources::Sources;
use crate::spread;
use crate::table::Table;
use crate::verify::Verifying;
use crate::world::{Event, World};

/// How many inputs one batch takes.
const BATCH_MAX_INPUTS: usize = 256;

impl World {
    pub fn on_start(&mut self, node: HostId, incarnation: u32) -> Checked {
        let host = &self.hosts[node];
        if host.up() || host.gone_for_good || host.incarnation != incarnation {
            return Ok(());
        }
        self.runs += 1;
        let run = Run(mix(self.history.seed ^ mix(self.runs)));
        let now = self.now;
        let timing = &self.history.timing;
        let host = &mut self.hosts[node];
        host.incarnation += 1;
        host.up_since = now;
        let wall = host.wall(now);
        let mut settings = Settings::new(host.eid);
        if let Some(floors) = self.history.floors {
            settings.policy = Policy { retention_ms: floors.retention_ms, interval_ms: floors.interval_ms };
        }
        settings.limits = Limits { value_max_bytes: host.spec.value_max_bytes, ..Limits::default() };
        if self.history.checking.each_commit && mix(self.history.seed ^ node as u64).is_multiple_of(2) {
            // Small families are summed as large ones are.
            settings.cells_from = 0;
        }
        let replica = Replica::open(std::mem::take(&mut host.disk), settings, run, wall).expect("memory opens");
        host.process = Some(Process {
            replica,
            inbox: VecDeque::new(),
            commit_due: false,
            plan_due: false,
            follows: Table::default(),
            sources: Sources::default(),
            elsewhere_told: BTreeMap::new(),
            elsewhere_forgotten: true,
            elsewhere_judged: BTreeMap::new(),
            wall_max: wall,
            members: Vec::new(),
            members_heard: Vec::new(),
            patience: Patience::new(timing.late_us / MS, timing.patience_us / MS),
            probation: Probation::new(now / MS, timing.relay_after_us / MS),
            settled: false,
            dial: BTreeSet::new(),
            unreached: Arc::default(),
            patience_ends: 0,
            head_at_idle: 0,
            voice: Voice::default(),
            nearby: Nearby::default(),
            verifying: Verifying::new(self.history.verify.times),
        });
        self.disk_equals_model(node)?;
        self.clock_is_sane(node, self.greatest_near(node))?;
        if self.history.checking.books {
            self.submit(node, Input::Admit, Waiting::Nobody);
        }
        self.tell(node);
        self.schedule(self.history.timing.idle_say_us, Event::Idle { node, incarnation: incarnation + 1 });
        self.look_at_floors_later(node);
        self.started(node);
        Ok(())
    }

    /// The process is gone in this instant; what it had not committed is lost.
    pub fn crash(&mut self, node: HostId) {
        let Some(process) = self.hosts[node].process.take() else { return };
        let host = &mut self.hosts[node];
        host.disk = process.replica.into_store();
        host.next_commit = None;
        host.starved_until = 0;
        self.views.forget(node);
        self.drop_connections_of(node);
        self.topology_changed();
    }

    pub fn submit(&mut self, node: HostId, input: Input, waiting: Waiting) {
        let (incarnation, commit_us) = (self.hosts[node].incarnation, self.hosts[node].spec.commit_us);
        let Some(process) = &mut self.hosts[node].process else { return };
        process.inbox.push_back(Queued { input, waiting });
        if !process.commit_due {
            process.commit_due = true;
            self.schedule(commit_us, Event::Commit { node, incarnation });
        }
    }

    /// One batch. It ends at an input whose effects the judge reads from the disk.
    pub fn commit(&mut self, node: HostId) -> Checked {
        let (mut inputs, mut waiting) = (Vec::new(), Vec::new());
        let wall = self.hosts[node].wall(self.now);
        let judged = self.history.checking.each_commit;
        let host = &mut self.hosts[node];
        let process = host.process.as_mut().expect("checked by the caller");
        process.commit_due = false;
        while inputs.len() < BATCH_MAX_INPUTS
            && let Some(queued) = process.inbox.pop_front()
        {
            let last =
                ends_batch(&queued.input) || self.history.floors.is_some() && matches!(queued.input, Input::Apply(_));
            inputs.push(queued.input);
            waiting.push(queued.waiting);
            if last {
                break;
            }
        }
        if process.inbox.is_empty() {
            // What comes next is put at the beginning again, not all around.
            process.inbox.clear();
        }
        let fate = host
            .next_commit
            .take()
            .or((host.disk_full_until > self.now).then_some(CommitFate { durable: false, crash: false }));
        match fate {
            Some(CommitFate { durable: true, .. }) => {
                process.replica.store_mut().fail_after_next_commit(StoreError::Io("planted".into()));
            }
            Some(_) => process.replica.store_mut().fail_next_commit(StoreError::Full),
            None => {}
        }
        process.wall_max = process.wall_max.max(wall);
        let kept = if judged { inputs.clone() } else { Vec::new() };
        let arriving = if self.history.checking.spread { spread::arriving(&inputs) } else { Vec::new() };
        let result = process.replica.handle(inputs, wall);
        // A fate that met no commit is over: the batch changed nothing.
        process.replica.store_mut().forget_planned_failures();
        self.stats.commits += 1;
        match result {
            Ok(committed) => {
                if self.history.checking.spread {
                    self.note_spread(node, &arriving, &committed);
                }
                if judged {
                    self.judge(node, &kept, &committed, wall)?;
                }
                if fate.is_some_and(|fate| fate.crash) {
                    self.crash(node);
                    return Ok(());
                }
                self.release(node, waiting, committed)?;
            }
            Err(error) => self.commit_failed(node, &kept, waiting, fate, &error)?,
        }
        let host = &mut self.hosts[node];
        let (incarnation, commit_us) = (host.incarnation, host.spec.commit_us);
        if let Some(process) = &mut host.process
            && !process.inbox.is_empty()
            && !process.commit_due
        {
            process.commit_due = true;
            self.schedule(commit_us, Event::Commit { node, incarnation });
        }
        Ok(())
    }

    fn judge(&mut self, node: HostId, inputs: &[Input], committed: &Committed, wall: u64) -> Checked {
        let host = &mut self.hosts[node];
        let process = host.process.as_mut().expect("it has just committed");
        let read = process.replica.read().expect("memory reads");
        let mut judge = Judge {
            me: host.eid,
            value_max_bytes: host.spec.value_max_bytes,
            now: wall,
            model: &mut host.model,
            acknowledged: &mut self.acknowledged,
            elsewhere: &mut process.elsewhere_judged,
            branches: &mut self.branches,
            read: &read,
            touched: BTreeSet::new(),
            duplicates: BTreeSet::new(),
            far: BTreeSet::new(),
            cursors: BTreeMap::new(),
            near: None,
        };
        let judged = judge.committed(inputs, committed);
        let seen = judge.near;
        judged.map_err(|violation| self.at(node, violation))?;
        self.clock_is_sane(node, seen)
    }

    pub fn at(&self, node: HostId, mut violation: crate::check::Violation) -> crate::check::Violation {
        let at = self.now / 1_000;
        violation.what = format!("node {node} at {at} ms: {}", violation.what);
        violation
    }

    fn clock_is_sane(&self, node: HostId, seen: Option<Hlc>) -> Checked {
        let process = self.hosts[node].process.as_ref().expect("it is up");
        let last = process.replica.clock_last().unix_ms();
        // One millisecond for a counter that carried. There is no stamp from before the epoch, where a wall clock may be.
        let limit = (process.wall_max + MAX_CLOCK_DRIFT_MS).max(Hlc::ZERO.unix_ms()) + 1;
        ensure(last <= limit, Check::ClockSane, || {
            format!("node {node}: the clock stands {} ms beyond the drift limit", last - limit)
        })?;
        let behind = seen.filter(|seen| *seen > process.replica.clock_last());
        ensure(behind.is_none(), Check::BeatsWhatItSaw, || {
            format!("node {node}: the clock is behind {behind:?}, which it saw")
        })
    }

    /// The greatest stamp on a disk that its clock must have been seeded with.
    fn greatest_near(&self, node: HostId) -> Option<Hlc> {
        let latest = self.hosts[node].wall(self.now) + MAX_CLOCK_DRIFT_MS;
        let held = self.hosts[node].model.held.values().map(|held| held.stamp.hlc);
        held.filter(|hlc| hlc.unix_ms() <= latest).max()
    }

    /// Acknowledgements, wake-ups of followers, changed marks: only what is durable.
    fn release(&mut self, node: HostId, waiting: Vec<Waiting>, committed: Committed) -> Checked {
        self.stats.purged += committed.counts.purged;
        self.stats.set_aside += committed.counts.quarantined;
        self.stats.released += committed.counts.released;
        self.stats.discarded += committed.counts.discarded;
        for (waiting, outcome) in waiting.into_iter().zip(&committed.outcomes) {
            match waiting {
                Waiting::Follow { peer, family, stream, reopen } => {
                    let applied = matches!(outcome, Outcome::Applied(_));
                    self.on_applied(node, peer, family, stream, applied, reopen)?;
                }
                Waiting::Reconcile { stream, opened } => {
                    let applied = matches!(outcome, Outcome::Applied(_));
                    self.on_reconcile_applied(node, stream, opened, applied)?;
                }
                Waiting::Client => match outcome {
                    Outcome::Refused(_) => self.stats.refused += 1,
                    _ => self.stats.writes += 1,
                },
                Waiting::Floors => self.on_looked(node, outcome),
                Waiting::Nobody => {}
            }
        }
        if committed.marks_changed {
            self.end_streams_of_changed_marks(node);
            self.tell(node);
            self.plan_soon(node);
        }
        if !committed.touched.is_empty() || committed.marks_changed {
            self.roots_changed(node);
        }
        if self.history.checking.books && committed.touched.contains_key(&Family::books()) {
            let host = &self.hosts[node];
            let ledger = host.process.as_ref().expect("it has just committed").replica.ledger();
            if !ledger.stands_in_books(host.eid) {
                self.submit(node, Input::Admit, Waiting::Nobody);
            }
        }
        if self.history.floors.is_some() && committed.touched.contains_key(&Family::books()) {
            // Somebody may have been decommissioned, or admitted again.
            self.plan_soon(node);
        }
        for (family, classes) in &committed.touched {
            if let Some(ix) = self.family_ix.get(family).copied() {
                self.wake_sources(node, ix, *classes)?;
            }
        }
        Ok(())
    }

    /// Gossips the run, the marks and the unreached members of a node.
    pub fn tell(&mut self, node: HostId) {
        let process = self.hosts[node].process.as_ref().expect("it is up");
        let families = Arc::new(process.replica.ledger().families.shared());
        let (unreached, settled) = (process.unreached.clone(), process.settled);
        self.views.tell(node, Told { run: process.replica.run(), families, unreached, settled });
        self.spread_news(node);
    }

    fn commit_failed(
        &mut self,
        node: HostId,
        inputs: &[Input],
        waiting: Vec<Waiting>,
        fate: Option<CommitFate>,
        error: &StoreError,
    ) -> Checked {
        self.stats.commits_failed += 1;
        let Some(fate) = fate else {
            return ensure(false, Check::StaysWritable, || format!("node {node} failed by itself: {error}"));
        };
        if fate.durable && self.history.checking.each_commit {
            self.adopt_what_landed(node, inputs)?;
        }
        self.disk_equals_model(node)?;
        if fate.crash {
            self.crash(node);
            return Ok(());
        }
        for waiting in waiting {
            match waiting {
                Waiting::Follow { peer, family, stream, .. } => {
                    self.on_applied(node, peer, family, stream, false, false)?
                }
                Waiting::Reconcile { stream, opened } => self.on_reconcile_applied(node, stream, opened, false)?,
                Waiting::Client => self.stats.unanswered += 1,
                Waiting::Floors | Waiting::Nobody => {}
            }
        }
        // Marks may have landed: the daemon looks at the ledger after a failure.
        self.end_streams_of_changed_marks(node);
        self.tell(node);
        let process = self.hosts[node].process.as_mut().expect("it is up");
        process.elsewhere_told.clear();
        process.elsewhere_forgotten = true;
        self.plan_soon(node);
        self.roots_changed(node);
        // And so may records: nobody was told to wake the followers.
        for family in 0..self.families.len() {
            self.wake_sources(node, family, Classes::ALL)?;
        }
        Ok(())
    }

    /// A commit landed though nobody was told: its writes are not acknowledged, but they are there, and
    /// they count. Nothing else may be there.
    fn adopt_what_landed(&mut self, node: HostId, inputs: &[Input]) -> Checked {
        let mut hashes = BTreeSet::from([value_hash(None)]);
        for input in inputs {
            match input {
                Input::Put { value, .. } => _ = hashes.insert(value_hash(Some(value))),
                Input::Import { lines } => hashes.extend(lines.iter().map(|line| value_hash(line.value.as_ref()))),
                Input::Admit => {
                    _ = hashes.insert(value_hash(kinfolk::core::path::Value::new("admitted").ok().as_ref()))
                }
                _ => {}
            }
        }
        let host = &mut self.hosts[node];
        let process = host.process.as_mut().expect("it is up");
        let read = process.replica.read().expect("memory reads");
        let marks: BTreeMap<_, _> =
            read.marks().expect("memory reads").into_iter().map(|(family, mark)| (family, mark.mode)).collect();
        for family in host.model.marks.clone().into_keys() {
            if !marks.contains_key(&family) {
                host.model.unshare(host.eid, &family);
                self.acknowledged.losses += 1;
            }
        }
        let mut found = BTreeMap::new();
        let mut strange = None;
        read.scan(Span::All, &mut |(key, stored)| {
            let stamp = stored.register.stamp();
            let before = host.model.held.get(&key).copied();
            let known = self.acknowledged.is_known(&key.path, stamp);
            let own_books = key.path.top() == kinfolk::core::path::BOOKS_FAMILY && stamp.eid == host.eid;
            if !known && !own_books && (stamp.eid != host.eid || !hashes.contains(&stamp.hash)) {
                strange = Some((key.clone(), stamp));
                return ControlFlow::Break(());
            }
            self.acknowledged.note(&key.path, stamp);
            if own_books {
                let target = crate::floors::target_of(&key, stored.register.value());
                self.acknowledged.target = self.acknowledged.target.max(target);
            }
            let tombstone = stored.register.is_tombstone();
            let fresh = before.is_none_or(|before| before.stamp != stamp);
            let origin = if fresh { stored.class == Class::Local } else { before.is_some_and(|before| before.origin) };
            found.insert(key, Held { stamp, tombstone, class: stored.class, origin });
            ControlFlow::Continue(())
        })
        .expect("memory reads");
        if let Some((key, stamp)) = strange {
            return ensure(false, Check::KnownWinner, || format!("{} with {stamp} landed on node {node}", key.path));
        }
        settle_model(&read, &mut host.model, &mut self.acknowledged);
        let lost = lost_records(&host.model.held, &found, inputs);
        ensure(lost.is_none(), Check::DurableAck, || format!("{lost:?} vanished from node {node} in a failed commit"))?;
        host.model.held = found;
        host.model.aside = asides(&read);
        for (family, mode) in marks {
            if !host.model.marks.contains_key(&family) {
                host.model.share(host.eid, &family, mode);
            }
            self.acknowledged.publish_family(&host.model, &family, mode);
        }
        let books = kinfolk::core::path::Family::books();
        self.acknowledged.publish_family(&host.model, &books, kinfolk::core::family::Mode::Global);
        Ok(())
    }

    /// The whole disk against the whole model.
    pub fn disk_equals_model(&self, node: HostId) -> Checked {
        if !self.history.checking.each_commit {
            return Ok(());
        }
        let host = &self.hosts[node];
        let read = match &host.process {
            Some(process) => process.replica.read(),
            None => host.disk.read(),
        }
        .expect("memory reads");
        let mut wanted = host.model.held.iter();
        let mut wrong = None;
        read.scan(Span::All, &mut |(key, stored)| {
            let found = (stored.register.stamp(), stored.register.is_tombstone());
            let next = wanted.next().map(|(key, held)| (key, (held.stamp, held.tombstone)));
            if next != Some((&key, found)) {
                wrong = Some(match next {
                    Some((missing, held)) if *missing < key => mismatch(missing, None, Some(held)),
                    Some((same, held)) if *same == key => mismatch(&key, Some(found), Some(held)),
                    _ => mismatch(&key, Some(found), None),
                });
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .expect("memory reads");
        let missing = || wanted.next().map(|(key, held)| mismatch(key, None, Some((held.stamp, held.tombstone))));
        match wrong.or_else(missing) {
            Some(violation) => Err(self.at(node, violation)),
            None => Ok(()),
        }
    }
}

fn asides(read: &impl Read) -> BTreeMap<RecordKey, Aside> {
    let mut asides = BTreeMap::new();
    read.quarantine(&mut |(key, aside)| {
        let (stamp, value) = (aside.register.stamp(), aside.register.value().cloned());
        asides.insert(key, Aside { stamp, value });
        ControlFlow::Continue(())
    })
    .expect("memory reads");
    asides
}

fn ends_batch(input: &Input) -> bool {
    matches!(
        input,
        Input::DeleteTree { .. }
            | Input::Share { .. }
            | Input::Unshare { .. }
            | Input::Import { .. }
            | Input::Admit
            | Input::Floors
            | Input::Verified(_)
            | Input::Standing { .. }
            | Input::Release { .. }
            | Input::Discard { .. }
    ) || matches!(input, Input::Put { path, .. } | Input::Delete { path } if path.top() == kinfolk::core::path::MARKS_FAMILY)
}

/// A record that is not there any more, though nothing in the batch took it away.
fn lost_records(
    before: &BTreeMap<RecordKey, Held>,
    found: &BTreeMap<RecordKey, Held>,
    inputs: &[Input],
) -> Option<RecordKey> {
    let rehomes = inputs.iter().any(ends_batch);
    let deletes =
        |key: &RecordKey| inputs.iter().any(|input| matches!(input, Input::Delete { path } if *path == key.path));
    let gone = before.iter().find(|(key, held)| match found.get(key) {
        Some(now) => now.stamp < held.stamp,
        None => !rehomes && !deletes(key),
    });
    gone.map(|(key, _)| key.clone())
}
