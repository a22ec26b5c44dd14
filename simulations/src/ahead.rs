//! Looks at what the next events of an instant will need, before they are handled.
//!
//! A thousand nodes fill more memory than a processor keeps near it, and each event is another node's: handled one by
//! one, they wait for memory most of the time. Looked at step by step for several of them, what they wait for comes
//! together. Nothing is changed, and nothing decided: only time is saved.

use std::hint::black_box;

use kinfolk::core::replica::Input;

use crate::host::{Host, Queued, Waiting};
use crate::world::{Event, World};

/// How many events are looked at together: about as many reads as a processor has under way.
const AHEAD: usize = 16;
/// In smaller worlds everything is near anyway.
const HOSTS_MIN: usize = 64;
/// Each step needs what the one before it found.
const STEPS: u8 = 5;

impl World {
    /// To be called before each event.
    pub(crate) fn look_ahead(&mut self) {
        if self.looked_ahead > 0 {
            self.looked_ahead -= 1;
            return;
        }
        if self.hosts.len() < HOSTS_MIN {
            return;
        }
        for step in 0..STEPS {
            for event in self.queue.upcoming(AHEAD) {
                black_box(self.glance(event, step));
            }
        }
        self.looked_ahead = self.queue.upcoming(AHEAD).count();
    }

    /// A number that is made of what an event needs.
    fn glance(&self, event: &Event, step: u8) -> u64 {
        match event {
            Event::Frame(frame) if frame.from_source => {
                self.hosts[frame.to()].glance_stream(frame.family(), frame.from(), step)
            }
            Event::Commit { node, .. } => self.hosts[*node].glance_commit(step),
            _ => 0,
        }
    }
}

impl Host {
    fn glance_stream(&self, family: usize, peer: usize, step: u8) -> u64 {
        let Some(process) = &self.process else { return self.starved_until };
        match step {
            0 => self.starved_until ^ process.follows.families() as u64 ^ process.inbox.len() as u64,
            1 => process.follows.width(family) as u64 ^ u64::from(process.commit_due) ^ u64::from(self.incarnation),
            2 => process.follows.get(family, peer).map_or(0, |follow| {
                let waits = follow.waiting.len() ^ usize::from(follow.applying) ^ usize::from(follow.brought.is_some());
                follow.stream ^ u64::from(follow.next_place) ^ waits as u64
            }),
            3 => {
                let follow = process.follows.get(family, peer);
                let follower = follow.and_then(|follow| follow.follower.as_ref());
                follower.map_or(0, |follower| follower.cursor_seq() ^ follower.head() ^ follower.asked().bits() as u64)
            }
            _ => 0,
        }
    }

    fn glance_commit(&self, step: u8) -> u64 {
        let Some(process) = &self.process else { return self.starved_until };
        let (replica, ledger) = (&process.replica, process.replica.ledger());
        match step {
            0 => {
                let own = u64::from(replica.eid().bytes()[5]) ^ replica.clock_last().as_u64() ^ replica.run().0;
                self.starved_until ^ self.disk_full_until ^ process.wall_max ^ ledger.head ^ own
            }
            1 => {
                let tallied = ledger.tallies.iter().next().map_or(0, |(_, tally)| tally.keys);
                let summed = ledger.summaries.iter().last().map_or(0, |(_, summary)| summary.records);
                let shared = (ledger.families.marks().len() ^ ledger.floors.len() ^ ledger.elsewhere().len()) as u64;
                tallied ^ summed ^ shared ^ process.inbox.front().map_or(0, |queued| glance_input(&queued.input))
            }
            _ => match process.inbox.front() {
                Some(Queued { input: Input::Apply(apply), waiting: Waiting::Follow { peer, family, .. } }) => {
                    let mark = ledger.families.since_of(&apply.family);
                    let stream = self.glance_stream(*family, *peer, step - 1);
                    let record = apply.records.first();
                    let scope = apply.cursor.map(|(classes, _)| (&apply.family, classes, apply.source));
                    mark ^ stream ^ record.map_or(0, |record| replica.store().glance(step - 2, &record.key, scope))
                }
                _ => 0,
            },
        }
    }
}

fn glance_input(input: &Input) -> u64 {
    match input {
        Input::Apply(apply) => apply.records.len() as u64 ^ apply.since.unwrap_or(0),
        _ => 0,
    }
}
