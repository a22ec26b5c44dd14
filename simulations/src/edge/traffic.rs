//! What goes between an Asterisk and its node's adapter, into the node's database, and to the other nodes.

use kinfolk::asterisk::adapter::{Destination, Effect, Sight};
use kinfolk::core::replica::Outcome;
use kinfolk::core::storage::StoreError;

use super::*;

impl World {
    /// Lets something happen at an Asterisk that is up, and sends what it sends.
    pub(super) fn asterisk(
        &mut self,
        asterisk: usize,
        happens: impl FnOnce(&mut crate::asterisk::Asterisk) -> Vec<crate::asterisk::Packet>,
    ) {
        let Some(process) = &mut self.pbxes[asterisk].process else { return };
        let packets = happens(process);
        self.pbxes[asterisk].settle();
        for packet in packets {
            self.deliver(asterisk, |bytes| Event::ToNode { node: asterisk, bytes }, packet.bytes);
        }
        let pbx = &mut self.pbxes[asterisk];
        if let Some(due) = pbx.process.as_ref().and_then(crate::asterisk::Asterisk::next_timer)
            && pbx.timer.is_none_or(|timer| due < timer)
        {
            pbx.timer = Some(due);
            self.queue.put(due, Event::AsteriskTimer { asterisk, incarnation: pbx.incarnation });
        }
    }

    pub(super) fn deliver(&mut self, edge: usize, event: impl Fn(Vec<u8>) -> Event, bytes: Vec<u8>) {
        self.stats.packets += 1;
        let copies = 1 + u64::from(self.rng.chance(self.history.double_per_mille));
        for _ in 0..copies {
            if self.edges_cut[edge] > self.now || (self.rng.chance(self.history.loss_per_mille) && !self.healed) {
                self.stats.lost += 1;
                continue;
            }
            let delay = self.history.edge_ms + self.rng.between(0, self.history.edge_jitter_ms);
            self.queue.put(self.now + delay, event(bytes.clone()));
        }
    }

    /// Lets something happen at a node's adapter, and does what it asks for.
    pub(super) fn adapter(&mut self, node: usize, happening: Happening) -> Checked {
        let now = self.wall();
        let Some(process) = &mut self.nodes[node].process else { return Ok(()) };
        let read = process.replica.read().expect("memory reads");
        let sight = Sight { read: &read, ledger: process.replica.ledger(), ready: true };
        let effects = process.adapter.handle(happening, now, sight);
        drop(read);
        if let Some(due) = process.adapter.next_timer() {
            let due = due.saturating_sub(WALL_AT_START).max(self.now + 1);
            if process.timer.is_none_or(|timer| due < timer) {
                process.timer = Some(due);
                let incarnation = self.nodes[node].incarnation;
                self.queue.put(due, Event::NodeTimer { node, incarnation });
            }
        }
        for effect in effects {
            match effect {
                Effect::Send { to, bytes } => {
                    if matches!(to, Destination::Reply(_)) {
                        self.answers_truly(node, &bytes)?;
                    }
                    self.deliver(node, |bytes| Event::ToAsterisk { asterisk: node, bytes }, bytes);
                }
                Effect::Submit { input, .. } => self.submit(node, input, Waiting::Adapter),
                Effect::Refused(_) => {}
            }
        }
        Ok(())
    }

    pub(super) fn submit(&mut self, node: usize, input: Input, waiting: Waiting) {
        let incarnation = self.nodes[node].incarnation;
        let Some(process) = &mut self.nodes[node].process else { return };
        process.inbox.push((input, waiting));
        if !process.commit_due {
            process.commit_due = true;
            self.queue.put(self.now + self.history.commit_ms, Event::Commit { node, incarnation });
        }
    }

    pub(super) fn commit(&mut self, node: usize) -> Checked {
        let wall = self.wall();
        let full = self.nodes[node].full_until > self.now;
        let process = self.nodes[node].process.as_mut().expect("it is up");
        process.commit_due = false;
        let (inputs, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut process.inbox).into_iter().unzip();
        if full {
            process.replica.store_mut().fail_next_commit(StoreError::Full);
        }
        let result = process.replica.handle(inputs.clone(), wall);
        process.replica.store_mut().forget_planned_failures();
        let outcomes: Vec<Result<Outcome, StoreError>> = match result {
            Ok(committed) => committed.outcomes.into_iter().map(Ok).collect(),
            Err(error) => waiting.iter().map(|_| Err(error.clone())).collect(),
        };
        if !full {
            self.stamps_once(node, &inputs)?;
        }
        for (waiting, outcome) in waiting.into_iter().zip(outcomes) {
            match waiting {
                Waiting::Adapter => self.adapter(node, Happening::Committed { attachment: 0, outcome })?,
                Waiting::Peer { from, family, cursor } => {
                    let process = self.nodes[node].process.as_mut().expect("it is up");
                    if matches!(outcome, Ok(Outcome::Applied(_))) {
                        process.cursors.insert((from, family), cursor);
                    }
                }
                Waiting::Nobody => {}
            }
        }
        self.adapter(node, Happening::Woken)?;
        if full {
            // Nothing new to tell. Two full nodes without delays would tell each other for ever, at one instant.
            return Ok(());
        }
        for to in (0..self.nodes.len()).filter(|to| *to != node) {
            self.tell(node, to);
        }
        Ok(())
    }

    pub(super) fn peers_cut(&self, a: usize, b: usize) -> bool {
        self.nodes[a].cut_until > self.now || self.nodes[b].cut_until > self.now
    }

    /// Sends what the other has not taken yet.
    pub(super) fn tell(&mut self, from: usize, to: usize) {
        if self.peers_cut(from, to) {
            return;
        }
        let (Some(source), Some(target)) = (&self.nodes[from].process, &self.nodes[to].process) else { return };
        let read = source.replica.read().expect("memory reads");
        for (family, mode) in &self.families {
            let after = target.cursors.get(&(from, family.clone())).copied().unwrap_or(0);
            let (mut records, mut cursor) = (Vec::new(), after);
            read.feed(family.top(), after, &mut |(seq, _, key)| {
                cursor = seq;
                if let Some(stored) = read.record(&key).expect("memory reads")
                    && mode.owns(&key)
                {
                    records.push(Record::new(key, stored));
                }
                ControlFlow::Continue(())
            })
            .expect("memory reads");
            if cursor > after {
                let incarnations = (self.nodes[from].incarnation, self.nodes[to].incarnation);
                let family = family.clone();
                let event = Event::Records { from, to, incarnations, family, records, cursor };
                self.queue.put(self.now + self.history.peer_ms, event);
            }
        }
    }
    pub(super) fn arrive(&mut self, from: usize, to: usize, family: Family, records: Vec<Record>, cursor: u64) {
        if self.peers_cut(from, to) {
            return;
        }
        let mode = self.families.iter().find(|(one, _)| *one == family).expect("one of the two").1;
        let apply = Apply {
            source: node_eid(from),
            crossing: false,
            family: family.clone(),
            mode,
            since: None,
            floor: None,
            records,
            cursor: None,
            drop_cursor: None,
        };
        self.submit(to, Input::Apply(apply), Waiting::Peer { from, family, cursor });
    }
}
