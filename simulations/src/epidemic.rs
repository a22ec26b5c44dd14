//! The comparator: flat push-pull gossip over the same network, for what a write would take without relays.
//!
//! Every node, every 100 ms, exchanges with three others drawn from all: a digest goes out, what the sender lacks
//! and a digest come back, and what the other lacks goes out. Each of the three is a datagram that may be lost, and
//! is not sent again: the next round will do.

use crate::clock::{MS, Us};
use crate::history::HostId;
use crate::queue::Queue;
use crate::rng::Rng;
use crate::spread::Told;
use crate::world::World;

const ROUND_US: Us = 100 * MS;
const FAN_OUT: usize = 3;
/// Writes that are followed, one after another.
const WRITES: usize = 100;

enum Event {
    Round {
        node: HostId,
    },
    /// What `to` is told: whether `from` had the write when it sent this.
    Digest {
        from: HostId,
        to: HostId,
        has: bool,
    },
    Answer {
        from: HostId,
        to: HostId,
        has: bool,
        brings: bool,
    },
    Push {
        from: HostId,
        to: HostId,
    },
}

struct Exchange<'a> {
    world: &'a World,
    rng: Rng,
    queue: Queue<Event>,
    now: Us,
    came: Vec<u32>,
    crossings: u64,
    last_at: Us,
}

impl World {
    /// How a write spreads by gossip alone in a network like this one.
    pub fn epidemic(&self) -> Told {
        let mut rng = Rng::new(self.history.seed).fork(30);
        let (mut took, mut crossings, mut redundant) = (Vec::new(), 0, 0);
        for _ in 0..WRITES {
            let mut exchange = Exchange {
                world: self,
                rng: rng.fork(31),
                queue: Queue::new(),
                now: 0,
                came: vec![0; self.hosts.len()],
                crossings: 0,
                last_at: 0,
            };
            rng.draw();
            exchange.run();
            took.push(exchange.last_at);
            crossings += exchange.crossings;
            redundant += exchange.came.iter().map(|came| u64::from(came.saturating_sub(1))).sum::<u64>();
        }
        took.sort_unstable();
        let sites = self.hosts.iter().map(|host| host.spec.site).max().unwrap_or(0) as u64;
        Told {
            writes: WRITES,
            incomplete: 0,
            on_all_us: [50, 90, 99, 100].map(|per_cent| took[(WRITES * per_cent / 100).min(WRITES - 1)]),
            crossings_per_mille: crossings * 1_000 / WRITES as u64 / sites.max(1),
            redundant_per_mille: redundant * 1_000 / WRITES as u64 / self.hosts.len() as u64,
        }
    }
}

impl Exchange<'_> {
    /// Until every node has it.
    fn run(&mut self) {
        let hosts = self.came.len();
        for node in 0..hosts {
            let at = self.rng.below(ROUND_US);
            self.queue.put(at, Event::Round { node });
        }
        let origin = self.rng.index(hosts);
        self.came[origin] = 1;
        let mut lacking = hosts - 1;
        while lacking > 0
            && let Some((at, event)) = self.queue.take()
        {
            self.now = at;
            lacking -= usize::from(self.on(event));
        }
    }

    /// True if a node has it now that lacked it.
    fn on(&mut self, event: Event) -> bool {
        match event {
            Event::Round { node } => {
                for _ in 0..FAN_OUT {
                    let to = (node + 1 + self.rng.index(self.came.len() - 1)) % self.came.len();
                    self.send(node, to, Event::Digest { from: node, to, has: self.came[node] > 0 });
                }
                self.queue.put(self.now + ROUND_US, Event::Round { node });
                false
            }
            Event::Digest { from, to, has } => {
                let ours = self.came[to] > 0;
                self.send(to, from, Event::Answer { from: to, to: from, has: ours, brings: ours && !has });
                false
            }
            Event::Answer { from, to, has, brings } => {
                if !has && self.came[to] > 0 {
                    self.send(to, from, Event::Push { from: to, to: from });
                }
                brings && self.arrives(from, to)
            }
            Event::Push { from, to } => self.arrives(from, to),
        }
    }

    fn arrives(&mut self, from: HostId, to: HostId) -> bool {
        self.came[to] += 1;
        self.crossings += u64::from(!self.world.near(from, to));
        if self.came[to] == 1 {
            self.last_at = self.now;
        }
        self.came[to] == 1
    }

    fn send(&mut self, from: HostId, to: HostId, event: Event) {
        let links = &self.world.net.links;
        let near = self.world.near(from, to);
        let loss = if near { links.near_loss_per_mille } else { links.far_loss_per_mille };
        if self.rng.chance(loss) {
            return;
        }
        let table = if near { &links.near_us } else { &links.far_us };
        let drawn = *self.rng.pick(table);
        let delay = if near { drawn } else { self.world.net.far_delay_us(from, to).unwrap_or(drawn) };
        self.queue.put(self.now + delay, event);
    }
}
