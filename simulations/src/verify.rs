//! Drives the daemon's reconcile machines and its verify scheduler over the simulated network.
//!
//! Roots are heard late and now and then out of date, as gossip brings them. What a verify claims is checked
//! against what both sides held when they compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use kinfolk::core::clock::Stamp;
use kinfolk::core::codec;
use kinfolk::core::message::{Compare, Reconcile};
use kinfolk::core::reconcile::{Answerer, Ended, Fault, Opener, Peer, Snapshot, Step};
use kinfolk::core::record::RecordKey;
use kinfolk::core::replica::{Apply, Input};
use kinfolk::core::sketch::Root;
use kinfolk::core::storage::Read;
use kinfolk::core::verify::{Roots, Verdict, Verifier, VerifyConfig};
use kinfolk::store::memory::MemoryReader;

use crate::check::{Check, Checked, ensure};
use crate::clock::{MS, SECOND, Us};
use crate::history::{FamilyIx, HostId, VerifyMode};
use crate::host::{Follow, Waiting};
use crate::model::exchanged;
use crate::network::Frame;
use crate::world::{Event, World};

/// A session that has not ended by then has met a peer that forgot it.
const SESSION_MAX_US: Us = 120 * SECOND;
/// While a family is fetched whole from one source, comparing with the others waits; so long at most.
const FETCH_PATIENCE_US: Us = 60 * SECOND;

enum Machine {
    Opener(Box<Opener>),
    Answerer(Box<Answerer>),
}

/// One side of a reconcile.
pub struct Session {
    peer: HostId,
    family: FamilyIx,
    machine: Machine,
    read: MemoryReader,
    next_out: u32,
    next_in: u32,
    /// Frames that came early or while an apply was under way, and whether they are damaged.
    waiting: BTreeMap<u32, (Arc<[u8]>, bool)>,
    applying: bool,
}

/// What a process knows of verifying.
pub struct Verifying {
    scheduler: Verifier,
    /// By stream, and whether we opened it.
    sessions: BTreeMap<(u64, bool), Session>,
    heard: BTreeMap<HostId, Arc<BTreeMap<kinfolk::core::path::Family, Root>>>,
    running: BTreeMap<u64, (kinfolk::core::path::Family, kinfolk::core::eid::Eid)>,
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
            look_at: 0,
            fetching: BTreeMap::new(),
        }
    }
}

type Held = BTreeMap<RecordKey, Stamp>;

/// What the two sides of a stream held when they compared, and which processes they were.
pub struct Compared {
    opener: (HostId, u32, Held),
    answerer: Option<(HostId, u32, Held)>,
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
        if !self.verifies() {
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
            let fetched =
                process.follows.iter().any(|((_, of), follow)| *of == ix && follow.stream != 0 && follow.is_fetching());
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
            let peer = process.follows.keys().find(|(peer, of)| *of == ix && self.hosts[*peer].eid == eid);
            let Some((peer, _)) = peer.copied() else {
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
        let followed: Vec<(HostId, FamilyIx)> = process.follows.keys().copied().collect();
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

    fn verify_ended(
        &mut self,
        node: HostId,
        family: &kinfolk::core::path::Family,
        eid: kinfolk::core::eid::Eid,
        verdict: Verdict,
    ) {
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
    pub fn compare_first(
        &mut self,
        node: HostId,
        peer: HostId,
        family: FamilyIx,
    ) -> Result<bool, crate::check::Violation> {
        let verifies = self.verifies();
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let Some(follow) = process.follows.get_mut(&(peer, family)) else { return Ok(true) };
        let follower = follow.follower.as_mut().expect("a follower was made");
        if !follower.must_compare() {
            return Ok(false);
        }
        if !verifies {
            follower.on_compared(&Ended::Everything);
            return Ok(false);
        }
        let holder = process.verifying.fetching.get(&family).copied();
        if let Some((holder, since)) = holder.filter(|(holder, _)| *holder != peer) {
            let busy =
                process.follows.get(&(holder, family)).is_some_and(|follow| follow.stream != 0 && follow.is_fetching());
            if busy && self.now < since + FETCH_PATIENCE_US {
                self.retry_later(node, peer, family);
                return Ok(true);
            }
        }
        process.verifying.fetching.insert(family, (peer, self.now));
        self.stats.verify.bootstraps += 1;
        if self.open_reconcile(node, peer, family, true)?.is_none() {
            self.retry_later(node, peer, family);
        }
        Ok(true)
    }

    // ---- sessions -------------------------------------------------------------------------------

    fn open_reconcile(
        &mut self,
        node: HostId,
        peer: HostId,
        family: FamilyIx,
        bootstrap: bool,
    ) -> Result<Option<u64>, crate::check::Violation> {
        if self.net.believed(node, peer) == 0 {
            return Ok(None);
        }
        let name = self.families[family].0.clone();
        let crossing = !self.near(node, peer);
        let (eid, incarnation) = (self.hosts[peer].eid, self.hosts[node].incarnation);
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let Some(snapshot) = process.replica.snapshot(&name).expect("memory reads") else { return Ok(None) };
        self.streams += 1;
        let stream = self.streams;
        let machine = Box::new(Opener::new(&snapshot, Peer { eid, crossing }));
        let session = session(peer, family, Machine::Opener(machine), snapshot);
        process.verifying.sessions.insert((stream, true), session);
        if bootstrap {
            let follow = process.follows.get_mut(&(peer, family)).expect("it is being followed");
            (follow.stream, follow.replied, follow.applying, follow.next_place) = (stream, false, false, 0);
            follow.waiting.clear();
        }
        if self.history.checking.each_commit {
            let held = self.held(node, family);
            self.compared.insert(stream, Compared { opener: (node, incarnation, held), answerer: None });
        }
        self.schedule(SESSION_MAX_US, Event::ReconcileOver { node, stream, opened: true });
        self.step(node, stream, true)?;
        Ok(Some(stream))
    }

    fn held(&self, node: HostId, family: FamilyIx) -> Held {
        let host = &self.hosts[node];
        let name = &self.families[family].0;
        let Some(mode) = host.model.mode_of(name) else { return Held::new() };
        let of_family =
            host.model.held.iter().filter(|(key, _)| key.path.key_in(name).is_some() && exchanged(key, mode));
        of_family.map(|(key, held)| (key.clone(), held.stamp)).collect()
    }

    /// What the machine wants, until it waits for a frame or a commit, or has ended.
    fn step(&mut self, node: HostId, stream: u64, opened: bool) -> Checked {
        loop {
            let Some(process) = &mut self.hosts[node].process else { return Ok(()) };
            let Some(session) = process.verifying.sessions.get_mut(&(stream, opened)) else { return Ok(()) };
            if session.applying {
                return Ok(());
            }
            let step = match &mut session.machine {
                Machine::Opener(machine) => machine.next(&session.read),
                Machine::Answerer(machine) => machine.next(&session.read).map(|step| match step {
                    Step::Ask(ask) => Step::Ask(ask),
                    Step::Send(frame) => Step::Send(frame),
                    Step::Read => Step::Read,
                    Step::Apply(apply) => Step::Apply(apply),
                    Step::End(_) => Step::End(Ended::Busy),
                }),
            };
            match step {
                Ok(Step::Ask(ask)) => self.say(node, stream, opened, &ask)?,
                Ok(Step::Send(frame)) => self.say(node, stream, opened, &frame)?,
                Ok(Step::Apply(apply)) => {
                    session.applying = true;
                    self.submit(node, Input::Apply(apply), Waiting::Reconcile { stream, opened });
                    return Ok(());
                }
                Ok(Step::Read) => {
                    let Some((bytes, damaged)) = session.waiting.remove(&session.next_in) else { return Ok(()) };
                    session.next_in += 1;
                    self.take(node, stream, opened, &bytes, damaged)?;
                }
                Ok(Step::End(ended)) => {
                    let over = process.verifying.sessions.remove(&(stream, opened)).expect("it has just stepped");
                    if opened {
                        // The stream is finished, also where the other side would read on.
                        self.schedule(SECOND, Event::ReconcileOver { node: over.peer, stream, opened: false });
                    }
                    return if opened { self.reconcile_ended(node, stream, ended) } else { Ok(()) };
                }
                Err(fault) => return self.faulty(node, stream, opened, &fault, false),
            }
        }
    }

    fn take(&mut self, node: HostId, stream: u64, opened: bool, bytes: &[u8], damaged: bool) -> Checked {
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let session = process.verifying.sessions.get_mut(&(stream, opened)).expect("checked by the caller");
        let frame = match codec::decode_frame::<Reconcile>(bytes) {
            Ok(_) if damaged => {
                return ensure(false, Check::Wire, || format!("node {node} took a frame that was damaged"));
            }
            Ok(frame) => frame,
            Err(error) => {
                let peer = session.peer;
                self.stats.frames_refused += 1;
                let versions_differ = self.hosts[node].version != self.hosts[peer].version;
                ensure(damaged || versions_differ, Check::Wire, || {
                    format!("node {node} refused a good frame of node {peer}: {error}")
                })?;
                return self.break_session(node, stream, opened);
            }
        };
        if let Reconcile::Records { records, .. } = &frame {
            self.stats.verify.records += records.len() as u64;
            for record in records {
                let held = session.read.record(&record.key).expect("memory reads");
                let held = held.map(|stored| stored.register.stamp());
                ensure(held < Some(record.register.stamp()), Check::Bounded, || {
                    format!("{} crossed to node {node} in vain: it held {held:?}", record.key.path)
                })?;
            }
        }
        self.stats.verify.more_cells += u64::from(matches!(frame, Reconcile::More { .. }));
        let taken = match &mut session.machine {
            Machine::Opener(machine) => machine.on_frame(&session.read, frame),
            Machine::Answerer(machine) => machine.on_frame(&session.read, frame),
        };
        match taken {
            Ok(()) => Ok(()),
            Err(fault) => self.faulty(node, stream, opened, &fault, damaged),
        }
    }

    fn faulty(&mut self, node: HostId, stream: u64, opened: bool, fault: &Fault, damaged: bool) -> Checked {
        ensure(damaged, Check::CursorHonest, || format!("node {node} cannot reconcile: {fault}"))?;
        self.break_session(node, stream, opened)
    }

    fn say<M: codec::Message>(&mut self, node: HostId, stream: u64, opened: bool, message: &M) -> Checked {
        let bytes = match codec::encode_frame(message) {
            Ok(bytes) => bytes,
            Err(error) => return ensure(false, Check::Bounded, || format!("node {node} made a frame: {error}")),
        };
        self.stats.verify.bytes += bytes.len() as u64;
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let session = process.verifying.sessions.get_mut(&(stream, opened)).expect("it speaks");
        let (peer, family, place) = (session.peer, session.family, session.next_out);
        session.next_out += 1;
        let epoch = self.net.believed(node, peer);
        let frame = Frame {
            from: node,
            to: peer,
            epoch,
            stream,
            place,
            family,
            from_source: !opened,
            reconcile: true,
            bytes: bytes.into(),
            cut_at: None,
            damaged: false,
        };
        self.send(frame);
        Ok(())
    }

    pub fn on_reconcile_frame(&mut self, frame: Frame) -> Checked {
        let (node, stream) = (frame.to, frame.stream);
        let opened = frame.from_source;
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        if let Some(session) = process.verifying.sessions.get_mut(&(stream, opened)) {
            session.waiting.insert(frame.place, (frame.bytes, frame.damaged));
            return self.step(node, stream, opened);
        }
        if opened || frame.place != 0 {
            return Ok(());
        }
        let ask = match codec::decode_frame::<Compare>(&frame.bytes) {
            Ok(ask) => {
                ensure(!frame.damaged, Check::Wire, || format!("node {node} took a request that was damaged"))?;
                ask
            }
            Err(error) => {
                self.stats.frames_refused += 1;
                self.schedule(MS, Event::ReconcileOver { node: frame.from, stream, opened: true });
                let versions_differ = self.hosts[node].version != self.hosts[frame.from].version;
                return ensure(frame.damaged || versions_differ, Check::Wire, || {
                    format!("node {node} refused a good request of node {}: {error}", frame.from)
                });
            }
        };
        self.answer(node, frame.from, frame.family, stream, &ask)
    }

    fn answer(&mut self, node: HostId, peer: HostId, family: FamilyIx, stream: u64, ask: &Compare) -> Checked {
        let crossing = !self.near(node, peer);
        let (eid, incarnation, max) =
            (self.hosts[peer].eid, self.hosts[node].incarnation, self.history.verify.times.served_max);
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let serving = process.verifying.sessions.keys().filter(|(_, opened)| !opened).count();
        let snapshot = process.replica.snapshot(&ask.family).expect("memory reads");
        let opened = Answerer::open(snapshot.as_ref(), Peer { eid, crossing }, ask);
        let answer = match opened {
            Ok(answer) if serving < max => answer,
            Ok(_) => Err(Reconcile::Busy),
            Err(fault) => return ensure(false, Check::CursorHonest, || format!("node {node} cannot answer: {fault}")),
        };
        match (answer, snapshot) {
            (Ok(machine), Some(snapshot)) => {
                let mut session = session(peer, family, Machine::Answerer(Box::new(machine)), snapshot);
                session.next_in = 1;
                process.verifying.sessions.insert((stream, false), session);
                self.schedule(SESSION_MAX_US, Event::ReconcileOver { node, stream, opened: false });
                let held = self.history.checking.each_commit.then(|| self.held(node, family));
                if let (Some(compared), Some(held)) = (self.compared.get_mut(&stream), held) {
                    compared.answerer = Some((node, incarnation, held));
                }
                self.step(node, stream, false)
            }
            (Err(refusal), _) => {
                let bytes = codec::encode_frame(&refusal).expect("a refusal fits in a frame").into();
                let epoch = self.net.believed(node, peer);
                let (from_source, reconcile) = (true, true);
                let frame = Frame {
                    from: node,
                    to: peer,
                    epoch,
                    stream,
                    place: 0,
                    family,
                    from_source,
                    reconcile,
                    bytes,
                    cut_at: None,
                    damaged: false,
                };
                self.send(frame);
                Ok(())
            }
            (Ok(_), None) => {
                ensure(false, Check::SharingOnly, || format!("node {node} answers for what it does not share"))
            }
        }
    }

    /// The outcome of an apply has come.
    pub fn on_reconcile_applied(&mut self, node: HostId, stream: u64, opened: bool, applied: bool) -> Checked {
        let Some(process) = &mut self.hosts[node].process else { return Ok(()) };
        let Some(session) = process.verifying.sessions.get_mut(&(stream, opened)) else { return Ok(()) };
        session.applying = false;
        if applied { self.step(node, stream, opened) } else { self.break_session(node, stream, opened) }
    }

    /// One side gives up; the other learns of it.
    fn break_session(&mut self, node: HostId, stream: u64, opened: bool) -> Checked {
        let Some(process) = &mut self.hosts[node].process else { return Ok(()) };
        let Some(session) = process.verifying.sessions.remove(&(stream, opened)) else { return Ok(()) };
        self.schedule(MS, Event::ReconcileOver { node: session.peer, stream, opened: !opened });
        if opened { self.reconcile_broke(node, stream, session) } else { Ok(()) }
    }

    /// A stream was reset, or has lasted for too long.
    pub fn on_reconcile_over(&mut self, node: HostId, stream: u64, opened: bool) -> Checked {
        self.break_session(node, stream, opened)
    }

    /// A connection is gone, and all sessions over it.
    pub fn break_sessions_with(&mut self, node: HostId, peer: HostId) -> Checked {
        let Some(process) = &self.hosts[node].process else { return Ok(()) };
        let of_peer = process.verifying.sessions.iter().filter(|(_, session)| session.peer == peer);
        let broken: Vec<(u64, bool)> = of_peer.map(|(at, _)| *at).collect();
        for (stream, opened) in broken {
            let process = self.hosts[node].process.as_mut().expect("it is up");
            let session = process.verifying.sessions.remove(&(stream, opened)).expect("was listed");
            if opened {
                self.reconcile_broke(node, stream, session)?;
            }
        }
        Ok(())
    }

    fn reconcile_broke(&mut self, node: HostId, stream: u64, session: Session) -> Checked {
        self.stats.verify.broken += 1;
        self.compared.remove(&stream);
        let process = self.hosts[node].process.as_mut().expect("it is up");
        if let Some((family, eid)) = process.verifying.running.remove(&stream) {
            self.verify_ended(node, &family, eid, Verdict::Failed);
            return Ok(());
        }
        let at = (session.peer, session.family);
        if process.follows.get(&at).is_some_and(|follow| follow.stream == stream) {
            self.retry_later(node, at.0, at.1);
        }
        Ok(())
    }

    fn reconcile_ended(&mut self, node: HostId, stream: u64, ended: Ended) -> Checked {
        self.count_end(&ended);
        let compared = self.compared.remove(&stream);
        if ended.is_verified() {
            self.claim_is_true(compared, &ended)?;
        }
        let process = self.hosts[node].process.as_mut().expect("it is up");
        if let Some((family, eid)) = process.verifying.running.remove(&stream) {
            self.verify_ended(node, &family, eid, Verdict::from(&ended));
            if ended == Ended::Everything {
                self.follow_anew(node, &family, eid);
            }
            return Ok(());
        }
        let comparing = process.follows.iter_mut().find(|(_, follow)| follow.stream == stream);
        let Some((&(peer, family), follow)) = comparing else { return Ok(()) };
        match follow.follower.as_mut().expect("it compares").on_compared(&ended) {
            Some(next) => self.act(node, peer, family, next),
            None => {
                self.retry_later(node, peer, family);
                Ok(())
            }
        }
    }

    /// The cursor is forgotten and the stream opened anew.
    fn follow_anew(&mut self, node: HostId, family: &kinfolk::core::path::Family, eid: kinfolk::core::eid::Eid) {
        let ix = self.family_ix[family];
        let process = self.hosts[node].process.as_ref().expect("it is up");
        let followed = process.follows.iter().find(|((peer, of), _)| *of == ix && self.hosts[*peer].eid == eid);
        let Some((&(peer, _), follow)) = followed else { return };
        let Some(mode) = process.replica.ledger().families.mode_of(family) else { return };
        let drop_cursor = Some(follow.wanted);
        let crossing = !self.near(node, peer);
        let (source, family) = (eid, family.clone());
        let apply =
            Apply { source, crossing, family, mode, since: None, records: Vec::new(), cursor: None, drop_cursor };
        self.submit(node, Input::Apply(apply), Waiting::Nobody);
        self.retry_later(node, peer, ix);
    }

    fn count_end(&mut self, ended: &Ended) {
        let stats = &mut self.stats.verify;
        let count = match ended {
            Ended::Equal { .. } => &mut stats.equal,
            Ended::Reconciled { .. } => &mut stats.reconciled,
            Ended::Everything => &mut stats.everything,
            Ended::LeftToPeer => &mut stats.left_to_peer,
            Ended::NotShared { .. } | Ended::OtherFloor { .. } | Ended::Busy => &mut stats.not_done,
        };
        *count += 1;
    }

    /// After a verify each side durably has what the other had when they compared, or something newer.
    fn claim_is_true(&self, compared: Option<Compared>, ended: &Ended) -> Checked {
        let Some(Compared { opener, answerer: Some(answerer) }) = compared else { return Ok(()) };
        for ((holder, incarnation, _), (_, _, wanted)) in [(&opener, &answerer), (&answerer, &opener)] {
            let host = &self.hosts[*holder];
            if host.incarnation != *incarnation || !host.up() {
                continue;
            }
            let lacking = wanted.iter().find(|(key, stamp)| {
                let shared = host.model.covering(&key.path).is_some_and(|(_, mode)| exchanged(key, mode));
                shared && host.model.held.get(key).is_none_or(|held| held.stamp < **stamp)
            });
            ensure(lacking.is_none(), Check::VerifiedTrue, || {
                format!("node {holder} lacks {lacking:?} after {ended:?}")
            })?;
        }
        Ok(())
    }
}

fn session(peer: HostId, family: FamilyIx, machine: Machine, snapshot: Snapshot<MemoryReader>) -> Session {
    let (read, waiting) = (snapshot.read, BTreeMap::new());
    Session { peer, family, machine, read, next_out: 0, next_in: 0, waiting, applying: false }
}

impl Follow {
    /// It compares, or fetches the family whole.
    pub fn is_fetching(&self) -> bool {
        self.follower.as_ref().is_some_and(|follower| follower.must_compare() || follower.asked() != self.wanted)
    }
}
