//! What happens in a run of the edge world: drawn from a seed, or laid out by a test.

use crate::rng::Rng;

/// Milliseconds of virtual time.
pub type Ms = u64;

#[derive(Clone, Debug)]
pub struct History {
    pub seed: u64,
    /// Nodes, each with one Asterisk attached.
    pub pairs: usize,
    /// One way, between a node and its Asterisk, and how much it varies.
    pub edge_ms: Ms,
    pub edge_jitter_ms: Ms,
    pub loss_per_mille: u64,
    pub double_per_mille: u64,
    /// One way, between nodes.
    pub peer_ms: Ms,
    pub commit_ms: Ms,
    pub credentials: bool,
    pub writes: Vec<(Ms, Write)>,
    pub faults: Vec<(Ms, Fault)>,
    /// Then everything is mended.
    pub heal_at: Ms,
    /// And so long after it all must be equal.
    pub settle_ms: Ms,
    /// What a test crashes, right after that many events.
    pub crash_after: Option<(u64, Victim)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Node(usize),
    Asterisk(usize),
}

/// A write by a user. Values name the write, so that none is written twice.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub pair: usize,
    /// Through the Asterisk, or through the node.
    pub at_asterisk: bool,
    pub unique: bool,
    pub key: usize,
    pub delete: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The process ends, and is back after so long.
    Crash {
        victim: Victim,
        for_ms: Ms,
    },
    /// An Asterisk comes back with its database of the last backup.
    OldDatabase {
        asterisk: usize,
        for_ms: Ms,
    },
    Backup {
        asterisk: usize,
    },
    /// Nothing passes between a node and its Asterisk.
    EdgeCut {
        pair: usize,
        for_ms: Ms,
    },
    /// Nothing passes between this node and the others.
    PeerCut {
        node: usize,
        for_ms: Ms,
    },
    /// Commits fail.
    DiskFull {
        node: usize,
        for_ms: Ms,
    },
}

pub const KEYS: usize = 3;
const SECOND: Ms = 1_000;

/// A history out of a seed.
pub fn draw(seed: u64) -> History {
    let mut rng = Rng::new(seed).fork(77);
    let pairs = rng.between(1, 3) as usize;
    let busy_ms = rng.between(2, 90) * SECOND;
    let faults = if rng.chance(250) { 0 } else { rng.between(1, 6) };
    let writes = rng.between(2, 60);
    let keys = rng.between(1, KEYS as u64);
    let crowded = rng.chance(500);
    let mut history = History {
        seed,
        pairs,
        edge_ms: *rng.pick(&[0, 1, 20, 50]),
        edge_jitter_ms: *rng.pick(&[0, 0, 3, 30]),
        loss_per_mille: *rng.pick(&[0, 0, 20, 150]),
        double_per_mille: *rng.pick(&[0, 0, 50]),
        peer_ms: *rng.pick(&[0, 5, 40, 400]),
        commit_ms: *rng.pick(&[0, 1, 8]),
        credentials: rng.chance(300),
        writes: Vec::new(),
        faults: Vec::new(),
        heal_at: busy_ms + 5 * SECOND,
        settle_ms: 240 * SECOND,
        crash_after: None,
    };
    for _ in 0..writes {
        // Crowded writes fall into the same moments: they cross each other on the wire.
        let at = rng.below(busy_ms);
        let at = if crowded { at / 3_000 * 3_000 + rng.below(120) } else { at };
        let write = Write {
            pair: rng.index(pairs),
            at_asterisk: rng.chance(850),
            unique: rng.chance(250),
            key: rng.below(keys) as usize,
            delete: rng.chance(200),
        };
        history.writes.push((at + 3 * SECOND, write));
    }
    history.writes.sort_by_key(|(at, _)| *at);
    for _ in 0..faults {
        let at = 3 * SECOND + rng.below(busy_ms);
        let fault = draw_fault(&mut rng, pairs);
        history.faults.push((at, fault));
        if let Fault::OldDatabase { asterisk, .. } = fault {
            history.faults.push((rng.below(at), Fault::Backup { asterisk }));
        }
    }
    history
}

fn draw_fault(rng: &mut Rng, pairs: usize) -> Fault {
    let pair = rng.index(pairs);
    let for_ms = *rng.pick(&[200, 3_000, 20_000, 45_000, 70_000]);
    match rng.below(8) {
        0 | 1 => Fault::Crash { victim: Victim::Node(pair), for_ms },
        2 => Fault::Crash { victim: Victim::Asterisk(pair), for_ms },
        3 => Fault::OldDatabase { asterisk: pair, for_ms },
        4 | 5 => Fault::EdgeCut { pair, for_ms },
        6 => Fault::PeerCut { node: pair, for_ms },
        _ => Fault::DiskFull { node: pair, for_ms: for_ms.min(20_000) },
    }
}
