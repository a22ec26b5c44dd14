//! Connections and beliefs as events: sending, breaking and making connections, gossip that arrives late.

use std::borrow::Cow;
use std::collections::BTreeSet;

use kinfolk::core::eid::Eid;
use kinfolk::core::topology::{Loss, Losses, Member, Plan};

use crate::check::Checked;
use crate::clock::{MS, SECOND, Us};
use crate::history::HostId;
use crate::network::{Frame, Pair};
use crate::rings::Hears;
use crate::upgrade;
use crate::world::{Event, World};

/// The members as one node sees them, in the order of their EIDs.
pub struct Seen {
    pub members: Vec<Member>,
    /// The host behind each that is believed alive.
    pub route: Vec<(Eid, HostId)>,
    /// Somebody may share something else than when this node looked last, or be alive or dead since.
    pub modes_may_differ: bool,
}

impl World {
    /// Sends a frame on the connection that the sender believes in.
    pub fn send(&mut self, mut frame: Frame) {
        if self.hosts[frame.from()].version != 1 {
            // The third byte of a frame is the version of the protocol.
            let mut bytes = frame.bytes.to_vec();
            bytes[2] = self.hosts[frame.from()].version;
            frame.bytes = bytes.into();
            frame.damaged = true;
        }
        let (from, to) = (frame.from(), frame.to());
        if frame.epoch == 0 || !self.net.pair(from, to).up || self.net.pair(from, to).epoch != frame.epoch {
            return;
        }
        if !frame.damaged && self.speaks_with(from, to) == Some(upgrade::NEXT) {
            frame.bytes = upgrade::encoded(&frame.bytes);
        }
        let near = self.near(from, to);
        let transit = self.net.transit_us(from, to, near, frame.bytes.len(), self.now);
        self.schedule(transit, Event::Frame(frame));
    }

    // ---- connections ----------------------------------------------------------------------------

    fn may_connect(&self, a: HostId, b: HostId) -> bool {
        let (first, second) = (&self.hosts[a], &self.hosts[b]);
        let connect = first.up() && second.up() && first.eid != second.eid && self.net.open_both_ways(a, b);
        connect && self.speaks_with(a, b).is_some()
    }

    /// Both sides keep trying with pauses; an attempt that gets through is all that is simulated of it.
    fn consider_connecting(&mut self, a: HostId, b: HostId) {
        if a == b || !self.may_connect(a, b) || self.net.pair(a, b).up || self.net.pair(a, b).connecting {
            return;
        }
        let dials_needed = self.history.checking.dial_needed || self.gossips_by_site();
        if dials_needed && !self.needs(a, b) && !self.needs(b, a) {
            return;
        }
        let pair = *self.net.pair(a, b);
        self.net.set_pair(a, b, Pair { connecting: true, ..pair });
        let warm = self.history.checking.warm_start && self.now == 0;
        let pause = if warm { 0 } else { self.rng.between(5 * MS, self.history.timing.retry_us.1) };
        self.schedule(pause, Event::Connected { a, b });
    }

    pub fn on_connected(&mut self, a: HostId, b: HostId) -> Checked {
        let pair = *self.net.pair(a, b);
        if pair.up || !self.may_connect(a, b) {
            self.net.set_pair(a, b, Pair { connecting: false, ..pair });
            return Ok(());
        }
        let epoch = pair.epoch + 1;
        self.net.set_pair(a, b, Pair { epoch, up: true, connecting: false });
        self.count_version(a, b);
        for (node, peer) in [(a, b), (b, a)] {
            if self.net.believed(node, peer) != 0 {
                self.forget_connection(node, peer)?;
            }
            self.net.set_believed(node, peer, epoch);
            self.plan_soon(node);
            self.reopen_streams(node, peer);
        }
        Ok(())
    }

    fn reopen_streams(&mut self, node: HostId, peer: HostId) {
        let incarnation = self.hosts[node].incarnation;
        let Some(process) = &mut self.hosts[node].process else { return };
        let mut families = Vec::new();
        for (family, follow) in process.follows.of_host_mut(peer) {
            if follow.stream == 0 && !follow.retry_due {
                follow.retry_due = true;
                families.push(family);
            }
        }
        for family in families {
            self.schedule(MS, Event::Retry { node, incarnation, peer, family });
        }
    }

    /// For how long nothing comes on a connection before it is given up.
    fn silence_us(&self, a: HostId, b: HostId) -> Us {
        let links = &self.history.links;
        links.near_silence_us.filter(|_| self.near(a, b)).unwrap_or(links.idle_timeout_us)
    }

    /// Breaks a connection; each side learns of it in its own time.
    pub fn break_connection(&mut self, a: HostId, b: HostId) {
        let pair = *self.net.pair(a, b);
        if !pair.up {
            return;
        }
        let epoch = pair.epoch;
        self.net.set_pair(a, b, Pair { epoch: epoch + 1, up: false, ..pair });
        self.net
            .held
            .retain(|frame| (frame.from().min(frame.to()), frame.from().max(frame.to())) != (a.min(b), a.max(b)));
        let timeout = self.silence_us(a, b);
        for (node, peer) in [(a, b), (b, a)] {
            let after = if self.history.links.silent_deaths {
                // What was heard last was up to a keep-alive old.
                timeout - self.rng.below(timeout / 4)
            } else {
                let late = if self.rng.chance(500) { timeout } else { 50 * MS };
                self.rng.below(late)
            };
            self.schedule(after, Event::ConnectionLost { node, peer, epoch });
        }
        self.consider_connecting(a, b);
    }

    pub fn on_connection_lost(&mut self, node: HostId, peer: HostId, epoch: u32) -> Checked {
        if self.net.believed(node, peer) == epoch {
            self.forget_connection(node, peer)?;
            self.plan_soon(node);
        }
        Ok(())
    }

    fn forget_connection(&mut self, node: HostId, peer: HostId) -> Checked {
        self.net.set_believed(node, peer, 0);
        self.break_sessions_with(node, peer)?;
        let Some(process) = &mut self.hosts[node].process else { return Ok(()) };
        for family in 0..self.families.len() {
            process.sources.remove(family, peer);
        }
        for (_, follow) in process.follows.of_host_mut(peer) {
            *follow = follow.broken_off();
        }
        Ok(())
    }

    pub fn drop_connections_of(&mut self, node: HostId) {
        for peer in 0..self.hosts.len() {
            if peer != node {
                self.net.set_believed(node, peer, 0);
                self.break_connection(node, peer);
                self.net.set_believed(node, peer, 0);
            }
        }
    }

    pub fn on_link_timeout(&mut self, a: HostId, b: HostId, epoch: u32) -> Checked {
        let pair = self.net.pair(a, b);
        if pair.up && pair.epoch == epoch && !self.net.open_both_ways(a, b) {
            self.break_connection(a, b);
        }
        Ok(())
    }

    // ---- who hears whom -------------------------------------------------------------------------

    /// A process has started. Where all start in the same instant, their topology is looked at once.
    pub fn started(&mut self, node: HostId) {
        if !(self.history.checking.warm_start && self.now == 0) {
            self.topology_changed();
        } else if !std::mem::replace(&mut self.topology_due, true) {
            self.schedule(0, Event::Topology);
        }
        self.plan_soon(node);
    }

    pub fn on_topology(&mut self) -> Checked {
        self.topology_due = false;
        self.topology_changed();
        Ok(())
    }

    /// After anything that changes who is up or which links are open.
    pub fn topology_changed(&mut self) {
        self.beliefs_turn();
        let hosts = self.hosts.len();
        for a in 0..hosts {
            for b in a + 1..hosts {
                self.consider_connecting(a, b);
            }
        }
    }

    /// Beliefs begin to follow what is heard now.
    pub fn beliefs_turn(&mut self) {
        let (hosts, reach) = (self.hosts.len(), self.reach());
        let warm = self.history.checking.warm_start && self.now == 0;
        for observer in 0..hosts {
            if !self.hosts[observer].up() {
                continue;
            }
            for subject in 0..hosts {
                let heard = reach.hears(observer, subject);
                let becoming = heard == Hears::Live;
                let belief = self.views.belief_mut(observer, subject);
                if observer == subject || belief.becoming == becoming {
                    continue;
                }
                belief.becoming = becoming;
                self.stats.sites_unheard += u64::from(heard == Hears::Nothing);
                let after = if warm { 0 } else { self.belief_takes_us(observer, subject, heard) };
                self.schedule(after, Event::View { observer, subject, live: becoming });
            }
        }
    }

    pub fn on_view(&mut self, observer: HostId, subject: HostId, live: bool) -> Checked {
        let newest = self.views.newest(subject);
        let belief = self.views.belief_mut(observer, subject);
        if belief.becoming == live && self.hosts[observer].up() {
            belief.live = live;
            if live {
                belief.version = newest;
            }
            self.plan_soon(observer);
        }
        Ok(())
    }

    /// What a node tells about itself reaches each observer that can hear it, late.
    pub fn spread_news(&mut self, subject: HostId) {
        let version = self.views.newest(subject);
        let (low, high) = self.history.timing.view_up_us;
        // A cluster that is warm has been told long ago what its nodes share as it begins.
        let warm = self.history.checking.warm_start && self.now < SECOND;
        for observer in 0..self.hosts.len() {
            if observer != subject && self.views.belief(observer, subject).becoming {
                let after = if warm { 0 } else { self.belief_takes_us(observer, subject, Hears::Live) };
                self.schedule(after, Event::Heard { observer, subject, version });
                // Datagrams come twice, and overtake each other.
                if !warm && self.rng.chance(100) {
                    let again = self.rng.between(low, 2 * high);
                    self.schedule(again, Event::Heard { observer, subject, version });
                }
            }
        }
    }

    pub fn on_heard(&mut self, observer: HostId, subject: HostId, version: u32) -> Checked {
        let newest = self.views.newest(subject);
        let belief = self.views.belief_mut(observer, subject);
        self.stats.news_repeated += u64::from(belief.version == version);
        self.stats.news_overtaken += u64::from(belief.version > version);
        if self.hosts[observer].up() && belief.version < version {
            // News that was missed on the way comes with the next.
            belief.version = if belief.becoming { newest } else { version };
            self.plan_soon(observer);
        }
        Ok(())
    }

    /// The members as one node sees them. Of two clones gossip shows one, now this, now that.
    pub fn members_seen_by(&mut self, node: HostId) -> Seen {
        let me = self.eids[node];
        let mut route: Vec<(Eid, HostId)> = Vec::with_capacity(self.eids.len());
        let mut known: Vec<(Eid, HostId, bool)> = Vec::with_capacity(self.eids.len());
        for subject in (0..self.eids.len()).filter(|subject| self.eids[*subject] != me) {
            let (eid, belief) = (self.eids[subject], self.views.belief(node, subject));
            if !belief.says_live() {
                if belief.version > 0 {
                    known.push((eid, subject, false));
                }
                continue;
            }
            // Hosts stand in the order of their EIDs, but for clones.
            match route.last().filter(|(last, _)| *last >= eid) {
                None => route.push((eid, subject)),
                Some(_) => match route.binary_search_by_key(&eid, |(eid, _)| *eid) {
                    Err(at) => route.insert(at, (eid, subject)),
                    Ok(at) if self.rng.chance(500) => route[at].1 = subject,
                    Ok(_) => {}
                },
            }
        }
        known.retain(|(eid, ..)| route.binary_search_by_key(eid, |(eid, _)| *eid).is_err());
        known.extend(route.iter().map(|(eid, subject)| (*eid, *subject, true)));
        known.sort_unstable();
        known.dedup_by_key(|(eid, ..)| *eid);
        self.members_of(node, &known, route)
    }

    /// Those that are known, in the order of EIDs. Most are as they were when the last plan was made.
    fn members_of(&mut self, node: HostId, known: &[(Eid, HostId, bool)], route: Vec<(Eid, HostId)>) -> Seen {
        let process = self.hosts[node].process.as_mut().expect("checked by the caller");
        let mut members = std::mem::take(&mut process.members);
        let mut heard = std::mem::take(&mut process.members_heard);
        let same = known.len() == members.len() && known.iter().zip(&members).all(|((eid, ..), of)| *eid == of.eid);
        if !same {
            (members, heard) = (Vec::with_capacity(known.len()), Vec::with_capacity(known.len()));
        }
        let mut modes_may_differ = !same;
        for (place, (eid, subject, live)) in known.iter().enumerate() {
            let version = self.views.belief(node, *subject).version;
            let connected = *live && self.net.believed(node, *subject) != 0;
            if same && heard[place] == (*subject, version) {
                let member = &mut members[place];
                modes_may_differ |= member.live != *live;
                (member.live, member.connected) = (*live, connected);
                continue;
            }
            let told = self.views.heard(node, *subject).expect("only those are known of whom something was heard");
            let member = Member {
                eid: *eid,
                run: told.run,
                site: self.sites[self.hosts[*subject].spec.site].clone(),
                address: String::new(),
                protocol_version: 1,
                version: String::new(),
                families: told.families.clone(),
                roots: Default::default(),
                head: 0,
                unreached: (*told.unreached).clone(),
                settled: told.settled,
                live: *live,
                connected,
            };
            modes_may_differ = true;
            if same {
                (members[place], heard[place]) = (member, (*subject, version));
            } else {
                members.push(member);
                heard.push((*subject, version));
            }
        }
        self.hosts[node].process.as_mut().expect("checked by the caller").members_heard = heard;
        Seen { members, route, modes_may_differ }
    }

    /// Which needed connections are waited for in vain by now.
    pub fn losses(&self, node: HostId, members: &[Member]) -> Losses {
        let process = self.hosts[node].process.as_ref().expect("checked by the caller");
        process.patience.losses(members, self.now / MS)
    }

    /// What the plan needs: connections, a look when patience or probation ends, and a word about who is out of reach and
    /// whether this node has settled.
    pub fn need(&mut self, node: HostId, members: &[Member], settled: bool, plan: &Plan, losses: &Losses) {
        let collectors = &self.hosts[node].process.as_ref().expect("checked by the caller").verifying.collectors;
        let mut needed = Cow::Borrowed(&plan.dial);
        if !collectors.is_empty() {
            needed.to_mut().extend(collectors);
        }
        let (now, dial) = (self.now, self.dials(node, &needed));
        let host = &mut self.hosts[node];
        let incarnation = host.incarnation;
        let process = host.process.as_mut().expect("checked by the caller");
        process.patience.need(&plan.dial, members, now / MS);
        let ends = [process.patience.next_change_ms(now / MS), process.probation.next_change_ms(now / MS)];
        let ends = ends.into_iter().flatten().min().map(|at| at * MS);
        let due = ends.filter(|at| process.patience_ends <= now || *at < process.patience_ends);
        if let Some(at) = due {
            process.patience_ends = at;
        }
        let missed = losses.iter().filter(|(eid, loss)| **loss == Loss::Missed && plan.dial.contains(eid));
        let unreached: BTreeSet<Eid> = missed.map(|(eid, _)| *eid).collect();
        let told_anew = *process.unreached != unreached || process.settled != settled;
        process.settled = settled;
        if *process.unreached != unreached {
            process.unreached = unreached.into();
        }
        let fresh: Vec<Eid> = dial.difference(&process.dial).copied().collect();
        process.dial = dial;
        if let Some(at) = due {
            self.schedule_at(at, Event::Plan { node, incarnation });
        }
        if told_anew {
            self.tell(node);
        }
        if (self.history.checking.dial_needed || self.gossips_by_site()) && !fresh.is_empty() {
            let named = |host: &HostId| fresh.contains(&self.hosts[*host].eid);
            for peer in (0..self.hosts.len()).filter(named).collect::<Vec<_>>() {
                self.consider_connecting(node.min(peer), node.max(peer));
            }
        }
    }

    fn needs(&self, node: HostId, peer: HostId) -> bool {
        self.hosts[node].process.as_ref().is_some_and(|process| process.dial.contains(&self.hosts[peer].eid))
    }

    /// After a partition began or ended: what is cut times out, what is free again goes on.
    pub fn links_changed(&mut self) {
        for a in 0..self.hosts.len() {
            for b in a + 1..self.hosts.len() {
                let pair = *self.net.pair(a, b);
                if pair.up && !self.net.open_both_ways(a, b) {
                    let after = self.silence_us(a, b) + self.rng.below(SECOND);
                    self.schedule(after, Event::LinkTimeout { a, b, epoch: pair.epoch });
                }
            }
        }
        let held = std::mem::take(&mut self.net.held);
        let after = self.rng.between(20 * MS, 400 * MS);
        for frame in held {
            self.schedule(after, Event::Frame(frame));
        }
        self.topology_changed();
    }
}
