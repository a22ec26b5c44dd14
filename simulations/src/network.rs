//! Links between hosts: who hears whom, how long a frame takes, which connections stand.
//!
//! A connection between two hosts carries ordered streams, as QUIC does: a frame is late, never missing,
//! until the connection breaks; then everything in flight is gone. What a broken link holds back goes on
//! when it mends in time. The two sides may learn of a break at different moments.

use std::sync::Arc;

use crate::clock::{MS, SECOND, Us};
use crate::history::{HostId, Links};
use crate::rng::Rng;

/// One side's request or the other's answer on one stream.
#[derive(Debug)]
pub struct Frame {
    pub from: HostId,
    pub to: HostId,
    /// The connection it travels on.
    pub epoch: u32,
    pub stream: u64,
    /// Its place in the stream: what comes early waits for what was sent before it.
    pub place: u32,
    pub family: usize,
    /// From the source of the stream to its follower.
    pub from_source: bool,
    /// Of a reconcile: from the side that answers if `from_source`.
    pub reconcile: bool,
    /// Followers that are equally far are sent the same bytes.
    pub bytes: Arc<[u8]>,
    /// The connection broke when only so many bytes had arrived.
    pub cut_at: Option<usize>,
    /// The damage is our own: the receiver must refuse it.
    pub damaged: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    pub epoch: u32,
    pub up: bool,
    pub connecting: bool,
    /// The connection that the lower and the higher host believe to stand; 0 for none.
    pub believed: [u32; 2],
}

#[derive(Clone, Debug)]
pub struct SlowLink {
    pub a: HostId,
    pub b: HostId,
    pub extra_us: Us,
    pub loss_per_mille: u64,
    pub until: Us,
}

pub struct Network {
    hosts: usize,
    pub links: Links,
    pairs: Vec<Pair>,
    blocked: Vec<bool>,
    free_at: Vec<Us>,
    pub bytes: Vec<u64>,
    pub frames: u64,
    pub held: Vec<Frame>,
    pub slow: Vec<SlowLink>,
    pub rng: Rng,
}

impl Network {
    pub fn new(hosts: usize, links: Links, rng: Rng) -> Self {
        let square = hosts * hosts;
        Self {
            hosts,
            links,
            pairs: vec![Pair::default(); square],
            blocked: vec![false; square],
            free_at: vec![0; square],
            bytes: vec![0; square],
            frames: 0,
            held: Vec::new(),
            slow: Vec::new(),
            rng,
        }
    }

    pub fn pair(&self, a: HostId, b: HostId) -> &Pair {
        &self.pairs[a.min(b) * self.hosts + a.max(b)]
    }

    pub fn pair_mut(&mut self, a: HostId, b: HostId) -> &mut Pair {
        &mut self.pairs[a.min(b) * self.hosts + a.max(b)]
    }

    /// The connection to `peer` that `host` believes to stand.
    pub fn believed(&self, host: HostId, peer: HostId) -> u32 {
        self.pair(host, peer).believed[usize::from(host > peer)]
    }

    pub fn set_believed(&mut self, host: HostId, peer: HostId, epoch: u32) {
        self.pair_mut(host, peer).believed[usize::from(host > peer)] = epoch;
    }

    pub fn blocked(&self, from: HostId, to: HostId) -> bool {
        self.blocked[from * self.hosts + to]
    }

    pub fn open_both_ways(&self, a: HostId, b: HostId) -> bool {
        !self.blocked(a, b) && !self.blocked(b, a)
    }

    pub fn set_blocks(&mut self, blocked: impl Fn(HostId, HostId) -> bool) {
        for from in 0..self.hosts {
            for to in 0..self.hosts {
                self.blocked[from * self.hosts + to] = blocked(from, to);
            }
        }
    }

    /// How long a frame of this size takes now, from one host to another.
    pub fn transit_us(&mut self, from: HostId, to: HostId, near: bool, bytes: usize, now: Us) -> Us {
        let at = from * self.hosts + to;
        self.bytes[at] += bytes as u64;
        self.frames += 1;
        let table = if near { &self.links.near_us } else { &self.links.far_us };
        let mut delay = *self.rng.pick(table);
        let mut loss = if near { self.links.near_loss_per_mille } else { self.links.far_loss_per_mille };
        for slow in self.slow.iter().filter(|slow| slow.until > now) {
            if (slow.a, slow.b) == (from, to) || (slow.b, slow.a) == (from, to) {
                delay += slow.extra_us;
                loss += slow.loss_per_mille;
            }
        }
        // What is lost is sent again after a timeout that doubles.
        let mut timeout = 2 * delay + 20 * MS;
        while loss > 0 && timeout < 5 * SECOND && self.rng.chance(loss.min(900)) {
            delay += timeout;
            timeout *= 2;
        }
        if !near && self.links.far_bytes_per_s > 0 {
            let busy_until = self.free_at[at].max(now) + bytes as Us * SECOND / self.links.far_bytes_per_s;
            self.free_at[at] = busy_until;
            return busy_until - now + delay;
        }
        delay
    }

    pub fn bytes_between(&self, from: HostId, to: HostId) -> u64 {
        self.bytes[from * self.hosts + to]
    }
}
