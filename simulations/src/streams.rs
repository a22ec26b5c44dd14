//! Drives the daemon's follow sessions over the simulated network: opens what the plan names, carries
//! frames as bytes through the codec, applies before it reads on, starts anew from the durable cursor
//! after any failure. The duties are those of the daemon's own driver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kinfolk::core::codec::{self, CodecError, FRAME_MAX_BYTES, HEADER_BYTES};
use kinfolk::core::message::{Entries, Follow as FollowRequest, FollowReply};
use kinfolk::core::record::{Class, Classes};
use kinfolk::core::replica::Input;
use kinfolk::core::session::{Follower, Next, Source};
use kinfolk::core::storage::{Cursor, Read};
use kinfolk::core::topology::{self, Me};

use crate::check::{Check, Checked, ensure};
use crate::clock::MS;
use crate::history::{BOOKS, FamilyIx, HostId, VerifyMode};
use crate::host::{Follow, Serving, Waiting};
use crate::links::Seen;
use crate::model::exchanged;
use crate::network::Frame;
use crate::upgrade;
use crate::world::{Event, World, eid_of};

impl World {
    // ---- the plan -------------------------------------------------------------------------------

    pub fn plan_soon(&mut self, node: HostId) {
        let incarnation = self.hosts[node].incarnation;
        let delay = self.history.timing.plan_delay_us;
        let Some(process) = &mut self.hosts[node].process else { return };
        if !process.plan_due {
            process.plan_due = true;
            self.schedule(delay, Event::Plan { node, incarnation });
        }
    }

    pub fn plan(&mut self, node: HostId) -> Checked {
        let me = self.hosts[node].eid;
        let Seen { members, route, modes_may_differ } = self.members_seen_by(node);
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        process.plan_due = false;
        let mut shared = process.replica.ledger().families.shared();
        if !self.history.checking.books {
            shared.remove(&self.families[BOOKS].0);
        }
        if modes_may_differ || process.elsewhere_forgotten {
            process.elsewhere_forgotten = false;
            let modes = topology::modes_elsewhere(&members);
            if process.elsewhere_told != modes {
                process.elsewhere_told = modes.clone();
                self.submit(node, Input::Elsewhere { modes }, Waiting::Nobody);
            }
        }
        let site = self.sites[self.hosts[node].spec.site].clone();
        let losses = self.losses(node, &members);
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        let settled = process.probation.look(&site, &members, self.now / MS);
        let decommissioned = process.replica.ledger().books.decommissioned();
        let who = Me { eid: me, site: &site, settled, decommissioned: &decommissioned };
        let plan = topology::plan(who, &shared, &members, &losses);
        self.need(node, &members, settled, &plan, &losses);
        self.hosts[node].process.as_mut().expect("checked by the caller").members = members;
        self.look_at_voice(node);
        self.stats.mode_conflicts += plan.conflicts.len() as u64;
        let mut wanted = BTreeMap::new();
        for ((eid, family), classes) in plan.follow {
            let peer = route.binary_search_by_key(&eid, |(eid, _)| *eid).ok().map(|at| route[at].1);
            if let (Some(peer), Some(ix)) = (peer, self.family_ix.get(&family)) {
                self.stats.detours += u64::from(classes == Classes::ALL);
                wanted.insert((peer, *ix), classes);
            }
        }
        self.follow_these(node, &wanted)?;
        self.roots_changed(node);
        Ok(())
    }

    fn follow_these(&mut self, node: HostId, wanted: &BTreeMap<(HostId, FamilyIx), Classes>) -> Checked {
        let process = self.hosts[node].process.as_mut().expect("it is up");
        process.follows.retain(|at @ (peer, family), follow| {
            let stays = wanted.get(&at) == Some(&follow.wanted);
            if !stays {
                process.nearby.leaves(&self.families[family].0, eid_of(peer));
            }
            stays
        });
        let mut fresh = Vec::new();
        for (at @ (peer, family), classes) in wanted {
            match process.follows.get_mut(*family, *peer) {
                // Membership has spoken: what was given up is tried again.
                Some(follow) if follow.gave_up => {
                    follow.gave_up = false;
                    fresh.push(*at);
                }
                Some(_) => {}
                None => {
                    process.follows.insert(*family, *peer, Follow { taking_up: true, ..Follow::new(*classes) });
                    fresh.push(*at);
                }
            }
        }
        for (peer, family) in fresh {
            self.open_stream(node, peer, family)?;
        }
        Ok(())
    }

    // ---- the following side ---------------------------------------------------------------------

    /// A follower from the durable cursor, and its first request.
    fn open_stream(&mut self, node: HostId, peer: HostId, family: FamilyIx) -> Checked {
        if !self.knows(node, peer, family) {
            self.retry_later(node, peer, family);
            return Ok(());
        }
        let (name, source) = (self.families[family].0.clone(), self.hosts[peer].eid);
        let crossing = !self.near(node, peer);
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let Some(mode) = process.replica.ledger().families.mode_of(&name) else { return Ok(()) };
        let Some(follow) = process.follows.get_mut(family, peer) else { return Ok(()) };
        let read = process.replica.read().expect("memory reads");
        let mut follower = Follower::new(&read, source, crossing, name, mode, follow.wanted).expect("memory reads");
        if follow.taking_up {
            follower.take_up();
        }
        follow.follower = Some(follower);
        self.ask(node, peer, family)
    }

    /// Asks for entries, or compares first.
    fn ask(&mut self, node: HostId, peer: HostId, family: FamilyIx) -> Checked {
        if self.compare_first(node, peer, family)? {
            return Ok(());
        }
        let only_verified = self.history.verify.mode == VerifyMode::Only && family != BOOKS;
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let follow = process.follows.get_mut(family, peer).expect("it is being followed");
        // Where everything is wanted, the first copy has no end to be seen: that stream stays.
        let begun = follow.follower.as_ref().is_some_and(|follower| follower.cursor_seq() > 0);
        if only_verified && begun && !follow.is_fetching() {
            *follow = follow.broken_off();
        } else {
            self.request(node, peer, family);
        }
        Ok(())
    }

    fn request(&mut self, node: HostId, peer: HostId, family: FamilyIx) {
        self.streams += 1;
        let stream = self.streams;
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let follow = process.follows.get_mut(family, peer).expect("it is being followed");
        let request = follow.follower.as_mut().expect("a follower was made").request();
        (follow.stream, follow.replied, follow.applying) = (stream, false, false);
        follow.waiting.clear();
        follow.next_place = 0;
        let bytes = codec::encode_frame(&request).expect("a request fits in a frame").into();
        let epoch = self.net.believed(node, peer);
        if epoch == 0 {
            return self.retry_later(node, peer, family);
        }
        let frame = Frame {
            from: node as u32,
            to: peer as u32,
            epoch,
            stream,
            place: 0,
            family: family as u32,
            from_source: false,
            reconcile: false,
            bytes,
            damaged: false,
        };
        self.send(frame);
    }

    /// Ends the present stream; another is opened from the durable cursor after a pause.
    pub fn retry_later(&mut self, node: HostId, peer: HostId, family: FamilyIx) {
        let (low, high) = self.history.timing.retry_us;
        let pause = self.rng.between(low, high);
        let host = &mut self.hosts[node];
        let incarnation = host.incarnation;
        let process = host.process.as_mut().expect("it is up");
        let Some(follow) = process.follows.get_mut(family, peer) else { return };
        let due = follow.retry_due;
        *follow = Follow { retry_due: true, ..follow.broken_off() };
        if !due {
            self.schedule(pause, Event::Retry { node, incarnation, peer, family });
        }
    }

    pub fn on_retry(&mut self, node: HostId, peer: HostId, family: FamilyIx) -> Checked {
        let connected = self.net.believed(node, peer) != 0;
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let Some(follow) = process.follows.get_mut(family, peer) else { return Ok(()) };
        follow.retry_due = false;
        if connected && follow.stream == 0 && !follow.gave_up {
            self.open_stream(node, peer, family)?;
        }
        Ok(())
    }

    pub fn on_stream_ended(&mut self, node: HostId, peer: HostId, family: FamilyIx, stream: u64) -> Checked {
        let Some(process) = &self.hosts[node].process else { return Ok(()) };
        if process.follows.get(family, peer).is_some_and(|follow| follow.stream == stream) {
            self.retry_later(node, peer, family);
        }
        Ok(())
    }

    fn on_frame_from_source(&mut self, frame: Frame) -> Checked {
        let (node, peer, family, stream) = (frame.to(), frame.from(), frame.family(), frame.stream);
        self.credit(peer, node, family, stream);
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        let Some(follow) = process.follows.get_mut(family, peer).filter(|follow| follow.stream == stream) else {
            return Ok(());
        };
        if follow.applying || follow.next_place != frame.place {
            follow.waiting.insert(frame.place, (frame.bytes, frame.damaged));
            return Ok(());
        }
        follow.next_place += 1;
        self.take_frame(node, peer, family, &frame.bytes, frame.damaged)?;
        self.take_waiting(node, peer, family, stream)
    }

    /// Takes what has come, in the order in which it was sent, until there is something to apply.
    fn take_waiting(&mut self, node: HostId, peer: HostId, family: FamilyIx, stream: u64) -> Checked {
        while let Some(process) = &mut self.hosts[node].process
            && let Some(follow) = process.follows.get_mut(family, peer)
            && follow.stream == stream
            && !follow.applying
            && let Some((bytes, damaged)) = follow.waiting.remove(&follow.next_place)
        {
            follow.next_place += 1;
            self.take_frame(node, peer, family, &bytes, damaged)?;
        }
        Ok(())
    }

    fn take_frame(
        &mut self,
        node: HostId,
        peer: HostId,
        family: FamilyIx,
        bytes: &Arc<[u8]>,
        damaged: bool,
    ) -> Checked {
        let once = !self.history.checking.each_commit;
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let follow = process.follows.get_mut(family, peer).expect("checked by the caller");
        let follower = follow.follower.as_mut().expect("a stream has a follower");
        let (from, news, asked) = (follower.cursor_seq(), follower.caught_up(), follower.asked());
        let mut replied = None;
        let next = if follow.replied {
            self.decoder.entries(bytes, once).map(|entries| follower.on_entries(entries))
        } else {
            follow.replied = true;
            codec::decode_frame::<FollowReply>(bytes).map(|reply| {
                replied = Some(reply.clone());
                follower.on_reply(reply)
            })
        };
        if let Some(reply) = replied.filter(|_| self.is_told_nearby(node, peer, asked)) {
            self.nearby_follows(node, peer, family, &reply);
        }
        let next = match next {
            Ok(Ok(next)) if !damaged => next,
            Ok(Ok(_)) => return ensure(false, Check::Wire, || format!("node {node} took a frame that was damaged")),
            Ok(Err(violation)) => {
                return ensure(damaged, Check::CursorHonest, || {
                    format!("node {node} accuses node {peer}: {violation}")
                });
            }
            Err(error) => return self.refused_frame(node, peer, family, &error, damaged),
        };
        if self.is_told_nearby(node, peer, asked) {
            self.note_brought(node, peer, family, (from, news), &next);
        }
        self.act(node, peer, family, next)
    }

    fn refused_frame(
        &mut self,
        node: HostId,
        peer: HostId,
        family: FamilyIx,
        error: &CodecError,
        damaged: bool,
    ) -> Checked {
        self.stats.frames_refused += 1;
        let versions_differ = self.hosts[node].version != self.hosts[peer].version;
        let expected = damaged || (versions_differ && matches!(error, CodecError::Version(_)));
        ensure(expected, Check::Wire, || format!("node {node} refused a good frame of node {peer}: {error}"))?;
        self.retry_later(node, peer, family);
        Ok(())
    }

    pub fn act(&mut self, node: HostId, peer: HostId, family: FamilyIx, next: Next) -> Checked {
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let follow = process.follows.get_mut(family, peer).expect("checked by the caller");
        let (apply, reopen) = match next {
            Next::Read => return Ok(()),
            Next::Apply(apply) => (apply, false),
            Next::ApplyThenReopen(apply) => (apply, true),
            Next::Reopen => {
                self.stats.compares += 1;
                return self.ask(node, peer, family);
            }
            Next::OtherFloor { .. } => {
                self.stats.other_floors += 1;
                self.retry_later(node, peer, family);
                return Ok(());
            }
            Next::GiveUp { .. } => {
                self.stats.give_ups += 1;
                *follow = Follow { gave_up: true, ..follow.broken_off() };
                return Ok(());
            }
        };
        follow.applying = true;
        let stream = follow.stream;
        // A stream that its follower has just left may have handed in the same frame.
        if self.history.checking.each_commit && self.rng.chance(10) {
            self.stats.frames_doubled += 1;
            self.submit(node, Input::Apply(apply.clone()), Waiting::Nobody);
        }
        self.submit(node, Input::Apply(apply), Waiting::Follow { peer, family, stream, reopen });
        Ok(())
    }

    /// The outcome of an apply has come: on with the stream, or from the durable cursor again.
    pub fn on_applied(
        &mut self,
        node: HostId,
        peer: HostId,
        family: FamilyIx,
        stream: u64,
        applied: bool,
        reopen: bool,
    ) -> Checked {
        let check_cursor = applied && self.rng.below(self.history.checking.cursor_one_in) == 0;
        if check_cursor {
            self.cursor_is_honest(node, peer, family)?;
        }
        let Some(process) = &mut self.hosts[node].process else { return Ok(()) };
        let Some(follow) = process.follows.get_mut(family, peer).filter(|follow| follow.stream == stream) else {
            return Ok(());
        };
        follow.applying = false;
        if !applied {
            self.retry_later(node, peer, family);
            return Ok(());
        }
        if let Some(brought) = follow.brought.take() {
            self.tell_nearby(node, peer, family, *brought);
        }
        if reopen {
            return self.ask(node, peer, family);
        }
        self.take_waiting(node, peer, family, stream)
    }

    // ---- the serving side -----------------------------------------------------------------------

    fn on_request(&mut self, frame: Frame) -> Checked {
        let (node, peer, family, stream) = (frame.to(), frame.from(), frame.family(), frame.stream);
        let request = match codec::decode_frame::<FollowRequest>(&frame.bytes) {
            Ok(request) => {
                ensure(!frame.damaged, Check::Wire, || format!("node {node} took a request that was damaged"))?;
                // The same text, held in common by the streams of a thousand nodes.
                let name = &self.families[family].0;
                let family = if request.family == *name { name.clone() } else { request.family };
                FollowRequest { family, ..request }
            }
            Err(error) => {
                self.stats.frames_refused += 1;
                // The stream is reset, and its follower sees that.
                self.schedule(MS, Event::StreamEnded { node: peer, peer: node, family, stream });
                let versions_differ = self.hosts[node].version != self.hosts[peer].version;
                return ensure(frame.damaged || versions_differ, Check::Wire, || {
                    format!("node {node} refused a good request of node {peer}: {error}")
                });
            }
        };
        let known = self.knows(node, peer, family);
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        // Streams of one connection overtake each other: one that its follower has left is of no use.
        if process.sources.get(family, peer).is_some_and(|serving| serving.stream > stream) {
            return Ok(());
        }
        let read = process.replica.read().expect("memory reads");
        let families = process.replica.ledger().families.clone();
        let (reply, source) = match known {
            true => Source::open(&read, &families, &request).expect("memory reads"),
            false => (FollowReply::OtherFloor { floor: None }, None),
        };
        drop(read);
        process.sources.remove(family, peer);
        let bytes = codec::encode_frame(&reply).expect("a reply fits in a frame").into();
        let serving = source.is_some();
        if let Some(source) = source {
            let state = Serving { source, stream, in_flight: 0, starved: false, frames_sent: 1 };
            process.sources.insert(family, peer, state);
        }
        self.send_from_source(node, peer, family, stream, 0, bytes);
        if serving { self.pump(node, peer, family) } else { Ok(()) }
    }

    fn send_from_source(
        &mut self,
        node: HostId,
        peer: HostId,
        family: FamilyIx,
        stream: u64,
        place: u32,
        bytes: Arc<[u8]>,
    ) {
        let epoch = self.net.believed(node, peer);
        let frame = Frame {
            from: node as u32,
            to: peer as u32,
            epoch,
            stream,
            place,
            family: family as u32,
            from_source: true,
            reconcile: false,
            bytes,
            damaged: false,
        };
        self.send(frame);
    }

    pub fn wake_sources(&mut self, node: HostId, family: FamilyIx, classes: Classes) -> Checked {
        let process = self.hosts[node].process.as_ref().expect("it is up");
        for peer in process.sources.perhaps_wanting(family, classes) {
            let process = self.hosts[node].process.as_ref().expect("it is up");
            if process.sources.get(family, peer).is_some_and(|serving| serving.source.wants(classes)) {
                self.pump(node, peer, family)?;
            }
        }
        Ok(())
    }

    /// Sends what the window allows.
    fn pump(&mut self, node: HostId, peer: HostId, family: FamilyIx) -> Checked {
        let window = self.history.timing.window_frames;
        loop {
            let process = self.hosts[node].process.as_mut().expect("it is up");
            let Some(serving) = process.sources.get_mut(family, peer) else { return Ok(()) };
            if serving.in_flight >= window {
                serving.starved = true;
                return Ok(());
            }
            serving.starved = false;
            let read = process.replica.read().expect("memory reads");
            let Some(entries) = serving.source.next(&read).expect("memory reads") else { return Ok(()) };
            drop(read);
            serving.in_flight += 1;
            let (stream, place) = (serving.stream, serving.frames_sent);
            serving.frames_sent += 1;
            self.what_is_sent_may_be_sent(node, family, peer, &entries)?;
            let bytes = match &self.encoded {
                Some((same, bytes)) if *same == entries => bytes.clone(),
                _ => match codec::encode_frame(&entries) {
                    Ok(bytes) => self.encoded.insert((entries, bytes.into())).1.clone(),
                    Err(error) => {
                        return ensure(false, Check::Bounded, || format!("node {node} made a frame: {error}"));
                    }
                },
            };
            self.send_from_source(node, peer, family, stream, place, bytes);
        }
    }

    /// A frame has arrived: there is room for another.
    fn credit(&mut self, node: HostId, peer: HostId, family: FamilyIx, stream: u64) {
        let back_us = if self.near(node, peer) { self.net.links.near_us[0] } else { self.net.links.far_us[0] };
        let Some(process) = &mut self.hosts[node].process else { return };
        let Some(serving) = process.sources.get_mut(family, peer).filter(|serving| serving.stream == stream) else {
            return;
        };
        serving.in_flight = serving.in_flight.saturating_sub(1);
        if serving.starved {
            self.schedule(back_us, Event::SourceReady { node, peer, family, stream });
        }
    }

    pub fn on_source_ready(&mut self, node: HostId, peer: HostId, family: FamilyIx, stream: u64) -> Checked {
        let Some(process) = &self.hosts[node].process else { return Ok(()) };
        let same = process.sources.get(family, peer).is_some_and(|serving| serving.stream == stream);
        if same { self.pump(node, peer, family) } else { Ok(()) }
    }

    /// Now and then followers learn how far they are complete, also where nothing is for them.
    pub fn on_idle(&mut self, node: HostId) -> Checked {
        let (every, entries) = (self.history.timing.idle_say_us, self.history.timing.idle_say_entries);
        let incarnation = self.hosts[node].incarnation;
        self.schedule(every, Event::Idle { node, incarnation });
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        let head = process.replica.ledger().head;
        if head < process.head_at_idle + entries {
            return Ok(());
        }
        process.head_at_idle = head;
        let behind = process.sources.iter().filter(|(_, serving)| serving.source.sent_to() < head);
        let behind: Vec<_> = behind.map(|(at, _)| at).collect();
        for (family, peer) in behind {
            self.pump(node, peer, family)?;
        }
        Ok(())
    }

    pub fn end_streams_of_changed_marks(&mut self, node: HostId) {
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let families = process.replica.ledger().families.clone();
        let over = process.sources.iter().filter(|(_, serving)| !serving.source.still_serves(&families));
        let ended: Vec<_> = over.map(|(at, serving)| (at, serving.stream)).collect();
        for ((family, peer), _) in &ended {
            process.sources.remove(*family, *peer);
        }
        // A follower of what is not shared any more stops too; the next plan drops it.
        let unshared = |family: FamilyIx| families.mode_of(&self.families[family].0).is_none();
        process.follows.retain(|(_, family), _| !unshared(family));
        (0..self.families.len()).filter(|ix| unshared(*ix)).for_each(|ix| process.nearby.forget(&self.families[ix].0));
        for ((family, peer), stream) in ended {
            let after = self.rng.between(MS, 100 * MS);
            self.schedule(after, Event::StreamEnded { node: peer, peer: node, family, stream });
        }
    }

    // ---- frames ---------------------------------------------------------------------------------

    pub fn on_frame(&mut self, mut frame: Frame) -> Checked {
        let stands = self.net.pair(frame.from(), frame.to()).epoch == frame.epoch && self.hosts[frame.to()].up();
        if !stands {
            return Ok(());
        }
        if self.net.blocked(frame.from(), frame.to()) {
            self.net.held.push(frame);
            return Ok(());
        }
        self.traced(frame.stream ^ (frame.bytes.len() as u64) << 32 ^ xxhash_rust::xxh3::xxh3_64(&frame.bytes));
        if !frame.damaged && self.speaks_with(frame.to(), frame.from()) == Some(upgrade::NEXT) {
            frame.bytes = upgrade::decoded(&frame.bytes).ok_or_else(|| self.wrong_version(&frame))?;
        }
        ensure(frame.bytes.len() <= HEADER_BYTES + FRAME_MAX_BYTES, Check::Bounded, || "a frame is too long".into())?;
        if frame.reconcile {
            return self.on_reconcile_frame(frame);
        }
        if frame.from_source { self.on_frame_from_source(frame) } else { self.on_request(frame) }
    }

    // ---- checks of what is sent and kept --------------------------------------------------------

    /// Only what is durable, only what the stream is for.
    fn what_is_sent_may_be_sent(&self, node: HostId, family: FamilyIx, peer: HostId, entries: &Entries) -> Checked {
        if !self.history.checking.each_commit {
            return Ok(());
        }
        let host = &self.hosts[node];
        let name = &self.families[family].0;
        let Some(mode) = host.model.mode_of(name) else {
            return ensure(false, Check::SharingOnly, || format!("node {node} serves {name} unshared"));
        };
        let process = host.process.as_ref().expect("it is up");
        let serving = process.sources.get(family, peer);
        let wanted = |class| serving.is_none_or(|serving| serving.source.wants(Classes::only(class)));
        let mut keys = BTreeSet::new();
        for record in &entries.records {
            let key = &record.key;
            ensure(key.path.key_in(name).is_some() && exchanged(key, mode), Check::SharingOnly, || {
                format!("node {node} sends {} of {:?} for {name}, shared as {mode}", key.path, key.owner)
            })?;
            let held = host.model.held.get(key);
            let stamp = record.register.stamp();
            ensure(held.is_some_and(|held| held.stamp == stamp), Check::DurableAck, || {
                format!("node {node} sends {} with {stamp}, it holds {held:?}", key.path)
            })?;
            let held = held.expect("just seen");
            let true_class = record.crossed == (held.class == Class::Far) && (held.origin || wanted(held.class));
            ensure(true_class, Check::ClassTrue, || {
                format!("node {node} sends {} as its own or with a wrong crossed mark: {held:?}", key.path)
            })?;
            ensure(keys.insert(key), Check::Bounded, || format!("node {node} sends {} twice in a frame", key.path))?;
        }
        Ok(())
    }

    /// Everything in the source's feed up to the cursor, in its scope, is at the follower.
    pub fn cursor_is_honest(&self, node: HostId, peer: HostId, family: FamilyIx) -> Checked {
        let name = &self.families[family].0;
        let (Some(ours), Some(theirs)) = (&self.hosts[node].process, &self.hosts[peer].process) else { return Ok(()) };
        if !self.history.checking.each_commit {
            return Ok(());
        }
        let (read, feed) = (ours.replica.read().expect("memory reads"), theirs.replica.read().expect("memory reads"));
        let (Some(mode), Some(theirs_mode)) =
            (self.hosts[node].model.mode_of(name), self.hosts[peer].model.mode_of(name))
        else {
            return Ok(());
        };
        let cursors = read.cursors().expect("memory reads");
        let mine = cursors.iter().filter(|(key, _)| key.source == self.hosts[peer].eid && key.family == *name);
        for (key, cursor) in mine.filter(|_| mode == theirs_mode) {
            if !self.is_of_its_past(peer, name, *cursor) {
                continue;
            }
            let mut missing = None;
            let visit = &mut |(seq, class, record): (u64, Class, kinfolk::core::record::RecordKey)| {
                if seq > cursor.seq {
                    return std::ops::ControlFlow::Break(());
                }
                let wanted =
                    key.classes.contains(class) && record.path.key_in(name).is_some() && exchanged(&record, mode);
                let there = self.hosts[peer].model.held.get(&record).map(|held| held.stamp);
                let here = self.hosts[node].model.held.get(&record).map(|held| held.stamp);
                let below = there.is_some_and(|there| Some(there.hlc) <= self.acknowledged.target);
                if wanted && here < there && !below {
                    missing = Some((record, here, there));
                    return std::ops::ControlFlow::Break(());
                }
                std::ops::ControlFlow::Continue(())
            };
            feed.feed(name.top(), 0, visit).expect("memory reads");
            ensure(missing.is_none(), Check::CursorHonest, || {
                format!("node {node} claims {}@{peer} up to {}, but {missing:?}", name, cursor.seq)
            })?;
        }
        Ok(())
    }

    /// Whether the source would resume there: the run is in its past, and the family was shared already.
    fn is_of_its_past(&self, peer: HostId, family: &kinfolk::core::path::Family, cursor: Cursor) -> bool {
        let process = self.hosts[peer].process.as_ref().expect("it is up");
        let read = process.replica.read().expect("memory reads");
        let runs = read.runs().expect("memory reads");
        let Some(at) = runs.iter().position(|start| start.run == cursor.run) else { return false };
        let end = runs.get(at + 1).map_or(read.head().expect("memory reads"), |next| next.first_seq - 1);
        let since = process.replica.ledger().families.mark(family).map_or(0, |mark| mark.since);
        cursor.seq <= end && cursor.seq >= since
    }
}

impl Follow {
    pub fn new(wanted: Classes) -> Self {
        Self {
            wanted,
            taking_up: false,
            waits_to_compare: false,
            follower: None,
            stream: 0,
            replied: false,
            applying: false,
            waiting: BTreeMap::new(),
            next_place: 0,
            gave_up: false,
            retry_due: false,
            brought: None,
        }
    }

    /// What is left of it when its stream has ended.
    pub fn broken_off(&self) -> Self {
        let Self { wanted, retry_due, taking_up, waits_to_compare, .. } = *self;
        Self { retry_due, taking_up, waits_to_compare, ..Self::new(wanted) }
    }
}
