//! Carries the daemon's reconcile machines over the simulated network: frames as bytes through the codec, commits
//! before the next step, streams that break. What a verify claims is checked against what both sides held.

use std::collections::BTreeMap;
use std::sync::Arc;

use kinfolk::core::clock::Stamp;
use kinfolk::core::codec;
use kinfolk::core::eid::Eid;
use kinfolk::core::message::{Compare, Reconcile};
use kinfolk::core::path::Family;
use kinfolk::core::reconcile::{Answerer, Ended, Fault, Opener, Peer, Snapshot, Step};
use kinfolk::core::record::RecordKey;
use kinfolk::core::replica::{Apply, Input};
use kinfolk::core::storage::Read;
use kinfolk::core::verify::Verdict;
use kinfolk::store::memory::MemoryReader;

use crate::check::{Check, Checked, Violation, ensure};
use crate::clock::{MS, SECOND, Us};
use crate::history::{FamilyIx, HostId};
use crate::host::Waiting;
use crate::model::exchanged;
use crate::network::Frame;
use crate::world::{Event, World};

/// A session that has not ended by then has met a peer that forgot it.
const SESSION_MAX_US: Us = 120 * SECOND;
enum Machine {
    Opener(Box<Opener>),
    Answerer(Box<Answerer>),
}

/// One side of a reconcile.
pub struct Session {
    pub peer: HostId,
    pub family: FamilyIx,
    machine: Machine,
    read: MemoryReader,
    next_out: u32,
    next_in: u32,
    /// Frames that came early or while an apply was under way, and whether they are damaged.
    waiting: BTreeMap<u32, (Arc<[u8]>, bool)>,
    applying: bool,
}

type Held = BTreeMap<RecordKey, Stamp>;

/// What the two sides of a stream were when they compared.
pub struct Compared {
    opener: Side,
    answerer: Option<Side>,
}

/// What a side held, under which sharing, and which process it was.
struct Side {
    node: HostId,
    incarnation: u32,
    family: FamilyIx,
    since: u64,
    held: Held,
}

impl World {
    // ---- sessions -------------------------------------------------------------------------------

    pub fn open_reconcile(
        &mut self,
        node: HostId,
        peer: HostId,
        family: FamilyIx,
        bootstrap: bool,
    ) -> Result<Option<u64>, Violation> {
        if self.net.believed(node, peer) == 0 || !self.knows(node, peer, family) {
            return Ok(None);
        }
        let name = self.families[family].0.clone();
        let crossing = !self.near(node, peer);
        let eid = self.hosts[peer].eid;
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let Some(snapshot) = process.replica.snapshot(&name).expect("memory reads") else { return Ok(None) };
        self.streams += 1;
        let stream = self.streams;
        let heard = process.verifying.heard_of(peer, &name);
        let machine = Box::new(Opener::new(&snapshot, Peer { eid, crossing }, heard));
        let session = session(peer, family, Machine::Opener(machine), snapshot);
        process.verifying.sessions.insert((stream, true), session);
        if bootstrap {
            let follow = process.follows.get_mut(family, peer).expect("it is being followed");
            (follow.stream, follow.replied, follow.applying, follow.next_place) = (stream, false, false, 0);
            follow.waiting.clear();
        }
        if self.history.checking.each_commit {
            let opener = self.side(node, family);
            self.compared.insert(stream, Compared { opener, answerer: None });
        }
        self.schedule(SESSION_MAX_US, Event::ReconcileOver { node, stream, opened: true });
        self.step(node, stream, true)?;
        Ok(Some(stream))
    }

    fn side(&self, node: HostId, family: FamilyIx) -> Side {
        let (incarnation, since) = (self.hosts[node].incarnation, self.since(node, family));
        Side { node, incarnation, family, since, held: self.held(node, family) }
    }

    /// The sharing of a family that is in force.
    fn since(&self, node: HostId, family: FamilyIx) -> u64 {
        let process = self.hosts[node].process.as_ref().expect("it is up");
        process.replica.ledger().families.since_of(&self.families[family].0)
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
                    return if opened { self.reconcile_ended(node, stream, &over, ended) } else { Ok(()) };
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
            from: node as u32,
            to: peer as u32,
            epoch,
            stream,
            place,
            family: family as u32,
            from_source: !opened,
            reconcile: true,
            bytes: bytes.into(),
            damaged: false,
        };
        self.send(frame);
        Ok(())
    }

    pub fn on_reconcile_frame(&mut self, frame: Frame) -> Checked {
        let (node, from, stream) = (frame.to(), frame.from(), frame.stream);
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
                self.schedule(MS, Event::ReconcileOver { node: from, stream, opened: true });
                let versions_differ = self.hosts[node].version != self.hosts[from].version;
                return ensure(frame.damaged || versions_differ, Check::Wire, || {
                    format!("node {node} refused a good request of node {}: {error}", from)
                });
            }
        };
        self.answer(node, from, frame.family(), stream, &ask)
    }

    fn answer(&mut self, node: HostId, peer: HostId, family: FamilyIx, stream: u64, ask: &Compare) -> Checked {
        let crossing = !self.near(node, peer);
        let (eid, max) = (self.hosts[peer].eid, self.history.verify.times.served_max);
        let known = self.knows(node, peer, family);
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let serving = process.verifying.sessions.keys().filter(|(_, opened)| !opened).count();
        let snapshot = process.replica.snapshot(&ask.family).expect("memory reads");
        let opened = Answerer::open(snapshot.as_ref(), Peer { eid, crossing }, ask);
        let answer = match opened {
            Ok(_) if !known => Err(Reconcile::OtherFloor { floor: None }),
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
                let answerer = self.history.checking.each_commit.then(|| self.side(node, family));
                if let Some(compared) = self.compared.get_mut(&stream) {
                    compared.answerer = answerer;
                }
                self.step(node, stream, false)
            }
            (Err(refusal), _) => {
                let bytes = codec::encode_frame(&refusal).expect("a refusal fits in a frame").into();
                let epoch = self.net.believed(node, peer);
                let (from_source, reconcile) = (true, true);
                let frame = Frame {
                    from: node as u32,
                    to: peer as u32,
                    epoch,
                    stream,
                    place: 0,
                    family: family as u32,
                    from_source,
                    reconcile,
                    bytes,
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
        if process.verifying.collecting.remove(&stream).is_some() {
            return Ok(());
        }
        if let Some((family, eid)) = process.verifying.running.remove(&stream) {
            self.verify_ended(node, &family, eid, Verdict::Failed);
            return Ok(());
        }
        let (peer, family) = (session.peer, session.family);
        if process.follows.get(family, peer).is_some_and(|follow| follow.stream == stream) {
            self.retry_later(node, peer, family);
        }
        Ok(())
    }

    fn reconcile_ended(&mut self, node: HostId, stream: u64, over: &Session, ended: Ended) -> Checked {
        self.count_end(&ended);
        let compared = self.compared.remove(&stream);
        if ended.is_verified() {
            self.claim_is_true(compared, &ended)?;
        }
        let process = self.hosts[node].process.as_mut().expect("it is up");
        if let Some(collecting) = process.verifying.collecting.remove(&stream) {
            return self.on_collected(node, over, collecting, &ended);
        }
        if let Some((family, eid)) = process.verifying.running.remove(&stream) {
            self.verify_ended(node, &family, eid, Verdict::from(&ended));
            if ended == Ended::Everything {
                self.follow_anew(node, &family, eid);
            }
            return Ok(());
        }
        let comparing = process.follows.by_host().find(|(_, follow)| follow.stream == stream);
        let Some(((peer, family), _)) = comparing else { return Ok(()) };
        let follow = process.follows.get_mut(family, peer).expect("it has just been found");
        follow.taking_up &= !(ended.is_verified() || matches!(ended, Ended::Everything | Ended::LeftToPeer));
        if !matches!(ended, Ended::Everything) {
            self.compare_the_others(node, family);
        }
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let follow = process.follows.get_mut(family, peer).expect("it has just been found");
        match follow.follower.as_mut().expect("it compares").on_compared(&ended) {
            Some(next) => self.act(node, peer, family, next),
            None => {
                self.retry_later(node, peer, family);
                Ok(())
            }
        }
    }

    /// The cursor is forgotten and the stream opened anew.
    fn follow_anew(&mut self, node: HostId, family: &Family, eid: Eid) {
        let ix = self.family_ix[family];
        let process = self.hosts[node].process.as_ref().expect("it is up");
        let followed = process.follows.by_host().find(|((peer, of), _)| *of == ix && self.hosts[*peer].eid == eid);
        let Some(((peer, _), follow)) = followed else { return };
        let Some(mode) = process.replica.ledger().families.mode_of(family) else { return };
        let apply = Apply::forgetting(eid, family.clone(), mode, follow.wanted);
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

    /// After a verify each side durably has what the other had when they compared, or something newer. A side that has
    /// ended its sharing since, and shares anew, may have let go of it; a starved peer hears of the verify's end after that.
    fn claim_is_true(&self, compared: Option<Compared>, ended: &Ended) -> Checked {
        let Some(Compared { opener, answerer: Some(answerer) }) = compared else { return Ok(()) };
        for (holder, wanted) in [(&opener, &answerer.held), (&answerer, &opener.held)] {
            let Side { node, incarnation, family, since, .. } = *holder;
            let host = &self.hosts[node];
            if host.incarnation != incarnation || !host.up() || self.since(node, family) != since {
                continue;
            }
            let lacking = wanted.iter().find(|(key, stamp)| {
                let shared = host.model.covering(&key.path).is_some_and(|(_, mode)| exchanged(key, mode));
                let below = Some(stamp.hlc) <= self.acknowledged.target;
                shared && !below && host.model.held.get(key).is_none_or(|held| held.stamp < **stamp)
            });
            ensure(lacking.is_none(), Check::VerifiedTrue, || {
                format!("node {node} lacks {lacking:?} after {ended:?}")
            })?;
        }
        Ok(())
    }
}

fn session(peer: HostId, family: FamilyIx, machine: Machine, snapshot: Snapshot<MemoryReader>) -> Session {
    let (read, waiting) = (snapshot.read, BTreeMap::new());
    Session { peer, family, machine, read, next_out: 0, next_in: 0, waiting, applying: false }
}
