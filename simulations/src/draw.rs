//! Draws a whole history from a seed: the mixed swarm.

use kinfolk::core::family::Mode;
use kinfolk::core::verify::VerifyConfig;

use crate::clock::{HOUR, MINUTE, MS, SECOND, Us, YEAR_MS};
use crate::history::*;
use crate::rng::Rng;

mod floors;

/// In so many of a thousand runs of the mixed swarm purge floors rise.
const FLOORS_PER_MILLE: u64 = 100;

/// The history of a seed. Sizes are small, so that ten thousand of them fit into minutes; what matters is
/// the mixture.
pub fn mixed(seed: u64) -> History {
    drawn(seed, FLOORS_PER_MILLE)
}

/// The same, but that purge floors rise in every run.
pub fn purging(seed: u64) -> History {
    drawn(seed, 1_000)
}

/// One of these two.
pub fn history(seed: u64, with_purging: bool) -> History {
    if with_purging { purging(seed) } else { mixed(seed) }
}

fn drawn(seed: u64, floors_per_mille: u64) -> History {
    let root = Rng::new(seed);
    let mut rng = root.fork(1);
    let nodes = nodes(&mut rng);
    let families = families(&mut rng);
    let mut busy_us = match rng.below(10) {
        0 => rng.between(1, 12) * HOUR,
        1..=3 => rng.between(4, 12) * MINUTE,
        _ => rng.between(30, 150) * SECOND,
    };
    let mut writes = shares(&mut root.fork(2), nodes.len(), &families);
    writes.extend(traffic(&mut root.fork(3), nodes.len(), &families, busy_us));
    writes.extend(change_of_mode(&mut root.fork(6), nodes.len(), &families, busy_us));
    writes.sort_by_key(|write| write.at_us);
    let mut faults = faults(&mut root.fork(4), &nodes, busy_us);
    upgrades(&mut root.fork(41), &mut faults, nodes.len(), busy_us);
    let mut verify = verify(&mut root.fork(30));
    let mut rng_of_floors = root.fork(31);
    let floors = rng_of_floors.chance(floors_per_mille).then(|| {
        let mut drawing = floors::Drawing {
            nodes: nodes.len(),
            families: &families,
            busy_us: &mut busy_us,
            writes: &mut writes,
            faults: &mut faults,
            verify: &mut verify,
        };
        drawing.draw(&mut rng_of_floors, &mut root.fork(32))
    });
    let lasting = lasting_bridge(&mut root.fork(5), &mut faults, &mut writes, nodes.len(), busy_us);
    History {
        seed,
        links: links(&mut rng),
        rings: rings(&mut root.fork(40), &nodes, lasting.is_some()),
        timing: Timing {
            patience_us: root.fork(20).between(0, 12) * SECOND,
            relay_after_us: *root.fork(42).pick(&[0, 4, 10, 30]) * SECOND,
            ..timing(&mut rng)
        },
        checking: Checking {
            cursor_one_in: 4,
            sweep_every_us: (busy_us / 12).max(SECOND),
            each_commit: true,
            books: true,
            spread: false,
            dial_needed: root.fork(21).chance(500),
            warm_start: false,
        },
        verify,
        nodes,
        families,
        writes,
        faults,
        lasting,
        heal_at_us: busy_us,
        converge_within_us: if verify.times.settle_ms > 10_000 { 8 * MINUTE } else { 3 * MINUTE },
        floors,
        probe: true,
    }
}

fn nodes(rng: &mut Rng) -> Vec<NodeSpec> {
    let count = *rng.pick(&[2, 3, 3, 3, 4, 4, 5, 5, 6, 7]);
    let sites = rng.between(1, 3) as usize;
    let skewed = rng.chance(500);
    (0..count)
        .map(|n| NodeSpec {
            site: if n < sites { n } else { rng.index(sites) },
            clock_offset_ms: if skewed { rng.between(0, 60_000) as i64 - 30_000 } else { rng.below(20) as i64 },
            clock_drift_ppm: rng.below(401) as i64 - 200,
            value_max_bytes: if rng.chance(200) { 256 } else { 65_536 },
            protocol_version: 1,
            commit_us: *rng.pick(&[200, 1_000, 1_000, 4_000, 20_000]),
            absent: n >= 2 && rng.chance(120),
        })
        .collect()
}

pub fn books() -> FamilySpec {
    FamilySpec { name: kinfolk::core::path::BOOKS_FAMILY.into(), mode: Mode::Global, keys: Vec::new() }
}

fn families(rng: &mut Rng) -> Vec<FamilySpec> {
    let keys = |rng: &mut Rng| {
        let count = rng.between(2, 8);
        (0..count).map(|n| if n % 3 == 2 { format!("sub/k{n}") } else { format!("k{n}") }).collect::<Vec<_>>()
    };
    let mut families = vec![books(), FamilySpec { name: "foo".into(), mode: Mode::Global, keys: keys(rng) }];
    if rng.chance(700) {
        families.push(FamilySpec { name: "uni".into(), mode: Mode::Unique, keys: keys(rng) });
    }
    if rng.chance(400) {
        families.push(FamilySpec { name: "bar/one".into(), mode: Mode::Global, keys: keys(rng) });
        families.push(FamilySpec { name: "bar/two".into(), mode: Mode::Unique, keys: keys(rng) });
    }
    families
}

pub fn links(rng: &mut Rng) -> Links {
    let near = *rng.pick(&[(100, 400), (200, 2_000), (1_000, 5_000)]);
    let far = *rng.pick(&[(10 * MS, 14 * MS), (40 * MS, 90 * MS), (100 * MS, 400 * MS)]);
    let table = |rng: &mut Rng, (low, high): (Us, Us)| {
        // A long tail: one delay in sixteen is ten times as long, so that streams overtake each other.
        (0..16).map(|n| if n == 15 { high * 10 } else { rng.between(low, high) }).collect()
    };
    let lossy = rng.chance(400);
    Links {
        near_us: table(rng, near),
        far_us: table(rng, far),
        far_by_sites: false,
        near_loss_per_mille: if lossy { rng.below(20) } else { 0 },
        far_loss_per_mille: if lossy { rng.below(100) } else { 1 },
        far_bytes_per_s: *rng.pick(&[0, 0, 20_000, 1_000_000]),
        idle_timeout_us: rng.between(5, 15) * SECOND,
        near_silence_us: None,
        silent_deaths: false,
    }
}

pub fn timing(rng: &mut Rng) -> Timing {
    Timing {
        view_up_us: (50 * MS, rng.between(100, 4_000) * MS),
        view_down_us: (2 * SECOND, rng.between(3, 20) * SECOND),
        plan_delay_us: rng.between(10, 300) * MS,
        late_us: rng.between(0, 2_000) * MS,
        patience_us: 10 * SECOND,
        relay_after_us: 0,
        retry_us: (100 * MS, rng.between(200, 4_000) * MS),
        idle_say_us: rng.between(1, 10) * SECOND,
        idle_say_entries: *rng.pick(&[1, 1, 10, 1_000]),
        window_frames: rng.between(1, 3) as u32,
    }
}

/// Most runs verify; some show what is lost without, some that it suffices.
fn verify(rng: &mut Rng) -> Verify {
    let mode = *rng.pick(&[VerifyMode::On, VerifyMode::On, VerifyMode::On, VerifyMode::Off, VerifyMode::Only]);
    let times = VerifyConfig {
        gap_ms: rng.between(500, 3_000),
        settle_ms: rng.between(100, 1_000),
        patience_ms: rng.between(3_000, 30_000),
        served_max: rng.between(1, 4) as usize,
    };
    Verify { mode, times }
}

/// Every node shares most families at the start.
fn shares(rng: &mut Rng, nodes: usize, families: &[FamilySpec]) -> Vec<Write> {
    let mut writes = Vec::new();
    for node in 0..nodes {
        for (family, spec) in families.iter().enumerate().skip(1) {
            if rng.chance(930) {
                let late = if rng.chance(100) { 20 * SECOND } else { SECOND };
                let kind = WriteKind::Share { family, mode: spec.mode };
                writes.push(Write { at_us: rng.below(late), node, kind });
            }
        }
    }
    writes
}

/// In some runs a family is shared in the other mode from some time on: everyone ends it, and begins anew.
fn change_of_mode(rng: &mut Rng, nodes: usize, families: &[FamilySpec], busy_us: Us) -> Vec<Write> {
    let mut writes = Vec::new();
    if !rng.chance(150) {
        return writes;
    }
    let family = rng.between(1, families.len() as u64 - 1) as usize;
    let mode = other(families[family].mode);
    let at = rng.between(busy_us / 3, busy_us / 2);
    for node in 0..nodes {
        let mut push = |at_us, kind| writes.push(Write { at_us, node, kind });
        push(at + rng.below(SECOND), WriteKind::Unshare { family });
        // Gossip of the old mode may still be about: more than one attempt.
        for attempt in 1..=3 {
            push(at + attempt * busy_us / 8 + rng.below(SECOND), WriteKind::Share { family, mode });
        }
    }
    writes
}

fn traffic(rng: &mut Rng, nodes: usize, families: &[FamilySpec], busy_us: Us) -> Vec<Write> {
    let count = rng.between(20, 160);
    let large = rng.chance(150);
    let switching = rng.chance(350);
    // Bursts: most writes lie near one of a few moments, so that they conflict.
    let moments: Vec<Us> = (0..6).map(|_| rng.below(busy_us)).collect();
    (0..count)
        .map(|_| {
            let near = rng.pick(&moments) + rng.below(2 * SECOND);
            let at_us = if rng.chance(600) { near.min(busy_us - 1) } else { rng.below(busy_us) };
            Write { at_us, node: rng.index(nodes), kind: write_kind(rng, families, large, switching) }
        })
        .collect()
}

fn write_kind(rng: &mut Rng, families: &[FamilySpec], large: bool, switching: bool) -> WriteKind {
    let family = rng.between(1, families.len() as u64 - 1) as usize;
    let key = rng.index(families[family].keys.len());
    match rng.below(100) {
        0..=56 => {
            let bytes = if large && rng.chance(700) { rng.between(30_000, 65_536) } else { rng.between(8, 40) };
            WriteKind::Put { family, key, bytes: bytes as usize }
        }
        57..=81 => WriteKind::Delete { family, key },
        82..=84 => WriteKind::DeleteTree { family },
        85..=86 => WriteKind::ImportFresh { family, lines: rng.between(1, 6) as usize },
        87..=89 => WriteKind::ImportStamped { family, lines: rng.between(1, 8) as usize },
        90..=92 => WriteKind::Refused { kind: rng.below(6) as u8 },
        93..=95 if switching => WriteKind::Unshare { family },
        96..=99 if switching => {
            let mode = if rng.chance(250) { other(families[family].mode) } else { families[family].mode };
            WriteKind::Share { family, mode }
        }
        _ => WriteKind::Put { family, key, bytes: 12 },
    }
}

fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Global => Mode::Unique,
        Mode::Unique => Mode::Global,
    }
}

fn faults(rng: &mut Rng, nodes: &[NodeSpec], busy_us: Us) -> Vec<Fault> {
    let mut faults = Vec::new();
    // Losses that only verify can mend make a key exempt from convergence, so most seeds have none.
    let lossy = rng.chance(300);
    let count = if rng.chance(100) { 0 } else { rng.between(2, 14) };
    for _ in 0..count {
        let at_us = rng.below(busy_us);
        let for_us = match rng.below(4) {
            0 => rng.between(100, 3_000) * MS,
            1 => busy_us / 3,
            _ => rng.between(3, 40) * SECOND,
        };
        faults.push(Fault { at_us, for_us, kind: fault_kind(rng, nodes.len(), lossy) });
    }
    for (node, spec) in nodes.iter().enumerate().filter(|(_, spec)| spec.absent) {
        let _ = spec;
        faults.push(Fault { at_us: rng.below(busy_us), for_us: 0, kind: FaultKind::Join { node } });
    }
    faults.sort_by_key(|fault| fault.at_us);
    faults
}

/// In some runs not all is mended: two parts that never hear each other reach each other through one node.
fn lasting_bridge(
    rng: &mut Rng,
    faults: &mut Vec<Fault>,
    writes: &mut Vec<Write>,
    nodes: usize,
    busy_us: Us,
) -> Option<usize> {
    if nodes < 3 || !rng.chance(120) {
        return None;
    }
    // The bridge has to live, and to be trusted with what lies below a promised floor.
    faults.retain(|fault| !matches!(fault.kind, FaultKind::Die { .. }));
    writes.retain(|write| !matches!(write.kind, WriteKind::Decommission { .. }));
    let kind = FaultKind::Bridge { groups: groups(rng, nodes), bridge: rng.index(nodes) };
    faults.push(Fault { at_us: busy_us - rng.below(busy_us / 2) - 1, for_us: HOUR * 24 * 365, kind });
    Some(faults.len() - 1)
}

/// Where one node alone reaches all and is not asked to speak, the ring of sites stays parted: no lasting bridges there.
fn rings(rng: &mut Rng, nodes: &[NodeSpec], bridged: bool) -> Rings {
    let one_site = nodes.iter().all(|node| node.site == nodes[0].site);
    if one_site || bridged || !rng.chance(350) {
        return Rings::One;
    }
    Rings::BySite {
        speak_after_us: rng.between(100, 3_000) * MS,
        hold_us: rng.between(2, 20) * SECOND,
        wide_us: rng.between(100, 3_000) * MS,
    }
}

/// In some runs nodes are upgraded one after another, and some of them rolled back: old and new go side by side.
fn upgrades(rng: &mut Rng, faults: &mut Vec<Fault>, nodes: usize, busy_us: Us) {
    if !rng.chance(200) {
        return;
    }
    let (first, step) = (rng.below(busy_us / 2), rng.between(1, busy_us / 8));
    for n in 0..nodes {
        let at_us = first + n as Us * step;
        let for_us = if rng.chance(400) { rng.between(1, busy_us / 3) } else { HOUR * 24 * 365 };
        faults.push(Fault { at_us, for_us, kind: FaultKind::Upgrade { node: (n + first as usize) % nodes } });
    }
    faults.sort_by_key(|fault| fault.at_us);
}

fn groups(rng: &mut Rng, nodes: usize) -> Vec<u8> {
    loop {
        let groups: Vec<u8> = (0..nodes).map(|_| rng.below(2) as u8).collect();
        if groups.contains(&0) && groups.contains(&1) {
            return groups;
        }
    }
}

fn fault_kind(rng: &mut Rng, nodes: usize, lossy: bool) -> FaultKind {
    let node = rng.index(nodes);
    let second = (node + 1 + rng.index(nodes - 1)) % nodes;
    if lossy && rng.chance(250) {
        return match rng.below(9) {
            0 | 1 => FaultKind::Wipe { node },
            2 | 3 => FaultKind::Snapshot { node },
            4 | 5 => FaultKind::Rollback { node },
            6 => FaultKind::OldBackup { node },
            7 => FaultKind::Clone { node },
            _ => FaultKind::Die { node },
        };
    }
    let hour: i64 = 3_600_000;
    match rng.below(35) {
        0..=3 => FaultKind::Partition { groups: groups(rng, nodes) },
        4 | 5 => FaultKind::OneWay { groups: groups(rng, nodes) },
        6..=8 => FaultKind::Bridge { groups: groups(rng, nodes), bridge: node },
        9 => FaultKind::Flap { groups: groups(rng, nodes), period_us: rng.between(1, 8) * SECOND },
        10..=12 => FaultKind::Reset { a: node, b: second },
        13 => FaultKind::Slow {
            a: node,
            b: second,
            extra_us: rng.between(50, 2_000) * MS,
            loss_per_mille: rng.below(300),
        },
        14..=16 => FaultKind::Crash { node },
        17 | 18 => FaultKind::CrashInCommit { node, durable: rng.chance(500) },
        19 | 20 => FaultKind::ClockJump { node, by_ms: *rng.pick(&[hour, -hour, 30_000, -30_000]) },
        21 => FaultKind::ClockAhead { node, by_ms: *rng.pick(&[YEAR_MS, hour]) },
        22 => FaultKind::ClockFreeze { node },
        23 | 24 => FaultKind::RestartInPast { node, by_ms: *rng.pick(&[hour, 40_000, YEAR_MS]) },
        25 | 26 => FaultKind::CommitFails { node, durable: rng.chance(500) },
        27 => FaultKind::DiskFull { node },
        28 => FaultKind::Suspect { observer: node, subject: second },
        29 => FaultKind::Ghost { observer: node, subject: second },
        30 | 31 => FaultKind::Starve { node },
        32 => FaultKind::NextVersion { node },
        _ => FaultKind::Garbage { from: node, to: second, kind: rng.below(5) as u8 },
    }
}
