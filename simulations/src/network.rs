//! Links between hosts: who hears whom, how long a frame takes, which connections stand.
//!
//! A connection between two hosts carries ordered streams, as QUIC does: a frame is late, never missing,
//! until the connection breaks; then everything in flight is gone. What a broken link holds back goes on
//! when it mends in time. The two sides may learn of a break at different moments.

use std::sync::Arc;

use crate::clock::{MS, SECOND, Us};
use crate::history::{FamilyIx, HostId, Links};
use crate::rng::{Rng, mix};

/// One side's request or the other's answer on one stream. Small: a thousand of them leave at each commit.
#[derive(Debug)]
pub struct Frame {
    pub from: u32,
    pub to: u32,
    /// The connection it travels on.
    pub epoch: u32,
    pub stream: u64,
    /// Its place in the stream: what comes early waits for what was sent before it.
    pub place: u32,
    pub family: u32,
    /// From the source of the stream to its follower.
    pub from_source: bool,
    /// Of a reconcile: from the side that answers if `from_source`.
    pub reconcile: bool,
    /// Followers that are equally far are sent the same bytes.
    pub bytes: Arc<[u8]>,
    /// The damage is our own: the receiver must refuse it.
    pub damaged: bool,
}

impl Frame {
    pub fn from(&self) -> HostId {
        self.from as HostId
    }

    pub fn to(&self) -> HostId {
        self.to as HostId
    }

    pub fn family(&self) -> FamilyIx {
        self.family as FamilyIx
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    pub epoch: u32,
    pub up: bool,
    pub connecting: bool,
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
    /// The site of each host.
    sites: Vec<usize>,
    pub links: Links,
    /// Each pair twice, by either host first: what a host sends to many lies side by side.
    pairs: Vec<Pair>,
    /// What each host believes of its connection to each peer.
    believed: Vec<u32>,
    blocked: Vec<bool>,
    any_blocked: bool,
    free_at: Vec<Us>,
    pub bytes: Vec<u64>,
    pub frames: u64,
    /// Frames between sites, and how often these were sent: what is lost is sent again.
    pub far_frames: u64,
    pub far_sendings: u64,
    pub held: Vec<Frame>,
    pub slow: Vec<SlowLink>,
    pub rng: Rng,
}

impl Network {
    pub fn new(hosts: usize, sites: Vec<usize>, links: Links, rng: Rng) -> Self {
        let square = hosts * hosts;
        Self {
            hosts,
            sites,
            links,
            pairs: vec![Pair::default(); square],
            believed: vec![0; square],
            blocked: vec![false; square],
            any_blocked: false,
            free_at: vec![0; square],
            bytes: vec![0; square],
            frames: 0,
            far_frames: 0,
            far_sendings: 0,
            held: Vec::new(),
            slow: Vec::new(),
            rng,
        }
    }

    pub fn pair(&self, a: HostId, b: HostId) -> &Pair {
        &self.pairs[a * self.hosts + b]
    }

    pub fn set_pair(&mut self, a: HostId, b: HostId, pair: Pair) {
        self.pairs[a * self.hosts + b] = pair;
        self.pairs[b * self.hosts + a] = pair;
    }

    /// The connection to `peer` that `host` believes to stand; 0 for none.
    pub fn believed(&self, host: HostId, peer: HostId) -> u32 {
        self.believed[host * self.hosts + peer]
    }

    pub fn set_believed(&mut self, host: HostId, peer: HostId, epoch: u32) {
        self.believed[host * self.hosts + peer] = epoch;
    }

    pub fn blocked(&self, from: HostId, to: HostId) -> bool {
        self.any_blocked && self.blocked[from * self.hosts + to]
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
        self.any_blocked = self.blocked.contains(&true);
    }

    /// The delay between the sites of two hosts, where that is always the same.
    pub fn far_delay_us(&self, a: HostId, b: HostId) -> Option<Us> {
        let (a, b) = (*self.sites.get(a)? as u64, *self.sites.get(b)? as u64);
        let at = mix(a.min(b) << 32 | a.max(b)) % self.links.far_us.len() as u64;
        self.links.far_by_sites.then(|| self.links.far_us[at as usize])
    }

    /// How long a frame of this size takes now, from one host to another.
    pub fn transit_us(&mut self, from: HostId, to: HostId, near: bool, bytes: usize, now: Us) -> Us {
        let at = from * self.hosts + to;
        self.bytes[at] += bytes as u64;
        self.frames += 1;
        let table = if near { &self.links.near_us } else { &self.links.far_us };
        let mut delay = match self.far_delay_us(from, to) {
            Some(fixed) if !near => fixed,
            _ => *self.rng.pick(table),
        };
        let mut loss = if near { self.links.near_loss_per_mille } else { self.links.far_loss_per_mille };
        for slow in self.slow.iter().filter(|slow| slow.until > now) {
            if (slow.a, slow.b) == (from, to) || (slow.b, slow.a) == (from, to) {
                delay += slow.extra_us;
                loss += slow.loss_per_mille;
            }
        }
        self.far_frames += u64::from(!near);
        self.far_sendings += u64::from(!near);
        // What is lost is sent again after a timeout that doubles, as QUIC's probe timeout does: a round trip and what a
        // receiver may hold back its acknowledgement (RFC 9002, 6.2.1; RFC 9000, 18.2).
        let mut timeout = 2 * delay + 25 * MS;
        while loss > 0 && timeout < 5 * SECOND && self.rng.chance(loss.min(900)) {
            delay += timeout;
            timeout *= 2;
            self.far_sendings += u64::from(!near);
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
