//! Drives the daemon's own code for what was lost between sites and is fetched nearby. The duties are those of the
//! daemon's own driver: tell the nearest relays, wait as long as the source's own frame needs, ask, apply.

use kinfolk::core::codec;
use kinfolk::core::eid::Eid;
use kinfolk::core::message::{Entries, FollowReply, Heard, Missing};
use kinfolk::core::nearby::{self, Due, nearest};
use kinfolk::core::record::{Classes, Record};
use kinfolk::core::replica::{Apply, Input};
use kinfolk::core::session::Next;
use kinfolk::core::storage::Cursor;

use crate::check::Checked;
use crate::clock::{MS, Us};
use crate::history::{FamilyIx, HostId};
use crate::host::Waiting;
use crate::world::{Event, World};

/// The source's own frame may be this much later than the link is long.
const GRACE_US: Us = 5 * MS;

/// What is on its way between two relays, or waits at one.
#[derive(Debug)]
pub enum Nearby {
    Told { from: HostId, to: HostId, heard: Heard },
    Due { node: HostId, incarnation: u32, peer: HostId, heard: Heard },
    Asked { from: HostId, to: HostId, heard: Heard, missing: Missing },
    Answered { to: HostId, heard: Heard, records: Vec<Record> },
}

/// What an applied frame brought, until it is durable.
#[derive(Debug)]
pub struct Brought {
    pub from: u64,
    pub cursor: Cursor,
    pub news: bool,
    pub records: Vec<Record>,
}

impl World {
    /// A stream has been answered: from here on this node knows how far it is with the source.
    pub fn nearby_follows(&mut self, node: HostId, peer: HostId, family: FamilyIx, reply: &FollowReply) {
        let FollowReply::Resume { run, .. } = reply else { return };
        let (name, source) = (&self.families[family].0, self.hosts[peer].eid);
        let Some(process) = &mut self.hosts[node].process else { return };
        let follower = process.follows.get(family, peer).and_then(|follow| follow.follower.as_ref());
        if let Some(follower) = follower.filter(|follower| follower.asked() == Classes::OF_SITE) {
            process.nearby.follows(name, source, Cursor { run: *run, seq: follower.cursor_seq() });
        }
    }

    /// Whether what comes on this stream is worth telling.
    pub fn is_told_nearby(&self, node: HostId, peer: HostId, asked: Classes) -> bool {
        asked == Classes::OF_SITE && !self.near(node, peer)
    }

    /// What a frame brings is told when it is durable. One without records needs no commit.
    pub fn note_brought(&mut self, node: HostId, peer: HostId, family: FamilyIx, before: (u64, bool), next: &Next) {
        let (from, news) = before;
        let process = self.hosts[node].process.as_mut().expect("it is up");
        let Some(follow) = process.follows.get_mut(family, peer) else { return };
        let follower = follow.follower.as_ref().expect("a stream has a follower");
        match next {
            Next::Apply(Apply { records, cursor: Some((_, cursor)), .. }) => {
                let brought = Brought { from, cursor: *cursor, news, records: records.clone() };
                follow.brought = Some(Box::new(brought));
            }
            Next::Read if let Some(cursor) = follower.cursor() => {
                self.tell_nearby(node, peer, family, Brought { from, cursor, news, records: Vec::new() });
            }
            _ => {}
        }
    }

    /// A frame from another site is durable.
    pub fn tell_nearby(&mut self, node: HostId, peer: HostId, family: FamilyIx, brought: Brought) {
        let Brought { from, cursor, news, records } = brought;
        let brought = nearby::Brought { from, cursor, news, records: &records };
        let (name, source) = (self.families[family].0.clone(), self.hosts[peer].eid);
        let Some(process) = &mut self.hosts[node].process else { return };
        let Some(heard) = process.nearby.came(&name, source, brought) else { return };
        let process = self.hosts[node].process.as_ref().expect("it was up a line ago");
        let mut others = Vec::new();
        for (other, follow) in process.follows.of_family(family) {
            let apart = self.hosts[other].spec.site != self.hosts[peer].spec.site && !self.near(node, other);
            if apart && follow.wanted == Classes::OF_SITE && follow.stream != 0 {
                others.push((self.far_us(node, other), self.hosts[other].eid));
            }
        }
        for eid in nearest(others) {
            let to = self.host_of(eid);
            let bytes = codec::encode_frame(&heard).map_or(0, |frame| frame.len());
            let heard = heard.clone();
            self.send_nearby(node, to, bytes, Nearby::Told { from: node, to, heard });
        }
    }

    fn far_us(&self, a: HostId, b: HostId) -> Us {
        let table = &self.net.links.far_us;
        self.net.far_delay_us(a, b).unwrap_or_else(|| table.iter().sum::<Us>() / table.len() as u64)
    }

    fn send_nearby(&mut self, from: HostId, to: HostId, bytes: usize, what: Nearby) {
        if self.net.believed(from, to) != 0 && self.net.pair(from, to).up && !self.net.blocked(from, to) {
            let transit = self.net.transit_us(from, to, false, bytes, self.now);
            self.schedule(transit, Event::Nearby(Box::new(what)));
        }
    }

    pub fn on_nearby(&mut self, what: Nearby) -> Checked {
        match what {
            Nearby::Told { from, to, heard } => {
                let (incarnation, source) = (self.hosts[to].incarnation, self.host_of(heard.source));
                if self.hosts[to].process.as_ref().is_some_and(|process| process.nearby.lacks(&heard)) {
                    let wait = self.far_us(to, source) + GRACE_US;
                    let due = Nearby::Due { node: to, incarnation, peer: from, heard };
                    self.schedule(wait, Event::Nearby(Box::new(due)));
                }
            }
            Nearby::Due { node, incarnation, peer, heard } => self.nearby_due(node, incarnation, peer, heard),
            Nearby::Asked { from, to, heard, missing } => {
                let Some(process) = &self.hosts[to].process else { return Ok(()) };
                let records = process.nearby.answer(&heard, missing);
                if records.is_empty() {
                    return Ok(());
                }
                let entries = Entries { records, complete_to: heard.to, head: heard.to };
                let bytes = codec::encode_frame(&entries).map_or(0, |frame| frame.len());
                let records = entries.records;
                self.send_nearby(to, from, bytes, Nearby::Answered { to: from, heard, records });
            }
            Nearby::Answered { to, heard, records } => self.nearby_fetched(to, &heard, records),
        }
        Ok(())
    }

    fn nearby_due(&mut self, node: HostId, incarnation: u32, peer: HostId, heard: Heard) {
        let answer_within = 2 * self.far_us(node, peer) + 2 * GRACE_US;
        if self.hosts[node].incarnation != incarnation {
            return;
        }
        let now = self.now;
        let Some(process) = &mut self.hosts[node].process else { return };
        match process.nearby.due(&heard, now, answer_within) {
            Due::Nothing => {}
            Due::Ask(missing) => {
                let bytes = codec::encode_frame(&missing).map_or(0, |frame| frame.len());
                self.send_nearby(node, peer, bytes, Nearby::Asked { from: node, to: peer, heard, missing });
            }
            Due::Again(at) => {
                let due = Nearby::Due { node, incarnation, peer, heard };
                self.schedule_at(at, Event::Nearby(Box::new(due)));
            }
        }
    }

    fn nearby_fetched(&mut self, node: HostId, heard: &Heard, records: Vec<Record>) {
        let Some(process) = &mut self.hosts[node].process else { return };
        let Some(mode) = process.replica.ledger().families.mode_of(&heard.family) else { return };
        if !process.nearby.lacks(heard) {
            return;
        }
        process.nearby.fetched(heard);
        self.stats.fetched_nearby += records.len() as u64;
        let apply = nearby::Nearby::apply(heard, mode, records);
        self.submit(node, Input::Apply(apply), Waiting::Nobody);
    }

    /// The host behind an EID, in a world without clones.
    pub fn host_of(&self, eid: Eid) -> HostId {
        let bytes = eid.bytes();
        usize::from(u16::from_be_bytes([bytes[4], bytes[5]])) - 1
    }
}
