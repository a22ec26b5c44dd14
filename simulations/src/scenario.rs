//! Scenario files: sites, links, families, traffic and an outage in TOML. See `simulations/README.md`.
//!
//! Whatever a file leaves out has a default that does not depend on the seed, except the moments and
//! places of the writes.

use std::collections::BTreeMap;

use kinfolk::core::family::Mode;
use kinfolk::core::path::Family;
use kinfolk::core::verify::VerifyConfig;
use serde::Deserialize;

use crate::clock::{HOUR, MS, SECOND, Us};
use crate::draw;
use crate::history::*;
use crate::rng::Rng;

/// Scenarios that come with the program.
pub const INCLUDED: &[(&str, &str)] = &[
    ("split-brain", include_str!("../scenarios/split-brain.toml")),
    ("bad-day", include_str!("../scenarios/bad-day.toml")),
    ("one-way-wan", include_str!("../scenarios/one-way-wan.toml")),
    ("flapping-site", include_str!("../scenarios/flapping-site.toml")),
    ("rolling-restart", include_str!("../scenarios/rolling-restart.toml")),
    ("datacentre-loss", include_str!("../scenarios/datacentre-loss.toml")),
    ("clock-jump", include_str!("../scenarios/clock-jump.toml")),
    ("backup-restored", include_str!("../scenarios/backup-restored.toml")),
    ("mass-join", include_str!("../scenarios/mass-join.toml")),
    ("thousand-nodes", include_str!("../scenarios/thousand-nodes.toml")),
    ("thousand-nodes-idle", include_str!("../scenarios/thousand-nodes-idle.toml")),
    ("dead-origin", include_str!("../scenarios/dead-origin.toml")),
    ("verify-load", include_str!("../scenarios/verify-load.toml")),
    ("ten-sites", include_str!("../scenarios/ten-sites.toml")),
    ("hundred-sites", include_str!("../scenarios/hundred-sites.toml")),
    ("hundred-sites-calm", include_str!("../scenarios/hundred-sites-calm.toml")),
    ("ten-sites-calm", include_str!("../scenarios/ten-sites-calm.toml")),
    ("site-cut-off", include_str!("../scenarios/site-cut-off.toml")),
    ("flapping-relay", include_str!("../scenarios/flapping-relay.toml")),
    ("rolling-upgrade", include_str!("../scenarios/rolling-upgrade.toml")),
    ("two-rings", include_str!("../scenarios/two-rings.toml")),
    ("five-nodes-three-sites", include_str!("../scenarios/five-nodes-three-sites.toml")),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    #[serde(default = "one")]
    seed: u64,
    /// `on`, `off` or `only`.
    #[serde(default = "verify_on")]
    verify: VerifyMode,
    #[serde(default)]
    rings: RingsFile,
    duration_s: u64,
    #[serde(default = "three_minutes")]
    converge_within_s: u64,
    #[serde(default = "yes")]
    probe: bool,
    sites: BTreeMap<String, Site>,
    #[serde(default)]
    links: LinkFile,
    #[serde(default)]
    families: BTreeMap<String, FamilyFile>,
    #[serde(default)]
    writes: WritesFile,
    #[serde(default)]
    faults: Vec<FaultFile>,
    #[serde(default)]
    checks: ChecksFile,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RingsFile {
    #[default]
    One,
    BySite,
}

/// An upgrade that is not rolled back.
const FOR_GOOD_US: Us = 365 * 24 * HOUR;

/// The daemon's own times.
const BY_SITE: Rings = Rings::BySite { speak_after_us: 2 * SECOND, hold_us: 20 * SECOND, wide_us: 3 * SECOND };

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Site {
    nodes: usize,
    /// So many sites like this one, numbered behind the name.
    #[serde(default)]
    copies: usize,
    /// The last so many of them are down until a `join` fault.
    #[serde(default)]
    absent: usize,
    #[serde(default)]
    clock_offset_ms: i64,
    #[serde(default)]
    clock_drift_ppm: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LinkFile {
    near_ms: [u64; 2],
    far_ms: [u64; 2],
    far_by_sites: bool,
    far_loss_per_mille: u64,
    far_bytes_per_s: u64,
    idle_timeout_s: u64,
    near_silence_ms: Option<u64>,
    silent_deaths: bool,
}

impl Default for LinkFile {
    fn default() -> Self {
        Self {
            near_ms: [1, 2],
            far_ms: [20, 60],
            far_by_sites: false,
            far_loss_per_mille: 1,
            far_bytes_per_s: 0,
            idle_timeout_s: 10,
            near_silence_ms: None,
            silent_deaths: false,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FamilyFile {
    mode: Mode,
    #[serde(default = "eight")]
    keys: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WritesFile {
    per_s: u64,
    bytes: usize,
    deletes_per_cent: u64,
    from_s: u64,
}

impl Default for WritesFile {
    fn default() -> Self {
        Self { per_s: 0, bytes: 32, deletes_per_cent: 15, from_s: 2 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultFile {
    kind: String,
    at_s: u64,
    #[serde(default)]
    for_s: u64,
    /// Sites that are cut off from the rest, or whose nodes all meet the fault.
    #[serde(default)]
    sites: Vec<String>,
    /// The relays of these sites, for the first family.
    #[serde(default)]
    relays: Vec<String>,
    /// It comes again after so many seconds, so often in all.
    #[serde(default)]
    every_s: u64,
    #[serde(default = "one")]
    times: u64,
    /// Nodes by their number, counted through the sites in alphabetical order.
    #[serde(default)]
    nodes: Vec<usize>,
    #[serde(default)]
    by_ms: i64,
    #[serde(default)]
    period_s: u64,
    /// So many seconds between one node and the next.
    #[serde(default)]
    apart_s: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ChecksFile {
    each_commit: bool,
    books: bool,
    dial_needed: bool,
    spread: bool,
    warm_start: bool,
}

impl Default for ChecksFile {
    fn default() -> Self {
        Self { each_commit: true, books: true, dial_needed: false, spread: false, warm_start: false }
    }
}

fn verify_on() -> VerifyMode {
    VerifyMode::On
}
fn one() -> u64 {
    1
}
fn yes() -> bool {
    true
}
fn three_minutes() -> u64 {
    180
}
fn eight() -> usize {
    8
}

/// Why a text is not a scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    #[error("there are {0} nodes; 1 to 2000 are possible")]
    Nodes(usize),
    #[error("'{0}' is no good name for a family")]
    Family(String),
    #[error("fault {at} names the site '{site}', which the scenario does not have")]
    Site { at: usize, site: String },
    #[error("fault {at} names node {node}, there are {count}")]
    Node { at: usize, node: usize, count: usize },
    #[error("fault {at}: '{kind}' is no kind of fault; there are {}", FaultKind::NAMES.join(", "))]
    Kind { at: usize, kind: String },
    #[error("fault {at}: a '{kind}' needs {needs}")]
    Needs { at: usize, kind: String, needs: &'static str },
    #[error("there are writes but no family")]
    NoFamily,
}

/// What a scenario says of itself, and the names of its sites in the order of their numbers. Nothing, if it is none.
pub fn told(text: &str) -> (String, Vec<String>) {
    let Ok(file) = toml::from_str::<File>(text) else { return Default::default() };
    let sites = file.sites.into_iter().flat_map(copies).collect::<BTreeMap<_, _>>();
    (file.about, sites.into_keys().collect())
}

/// The history that a scenario describes, and the seed it names unless another is given.
pub fn read(text: &str, seed: Option<u64>) -> Result<History, ScenarioError> {
    let mut file: File = toml::from_str(text)?;
    file.sites = file.sites.into_iter().flat_map(copies).collect();
    let seed = seed.unwrap_or(file.seed);
    let root = Rng::new(seed);
    let nodes = nodes(&file);
    if nodes.is_empty() || nodes.len() > 2_000 {
        return Err(ScenarioError::Nodes(nodes.len()));
    }
    let mut families = vec![draw::books()];
    for (name, family) in &file.families {
        Family::new(name).map_err(|_| ScenarioError::Family(name.clone()))?;
        let keys = (0..family.keys.max(1)).map(|n| format!("k{n}")).collect();
        families.push(FamilySpec { name: name.clone(), mode: family.mode, keys });
    }
    let mut faults = Vec::new();
    for (at, fault) in file.faults.iter().enumerate() {
        for time in 0..fault.times {
            let later_us = time * fault.every_s * SECOND;
            let again = |fault: Fault| Fault { at_us: fault.at_us + later_us, ..fault };
            faults.extend(fault_of(&file, nodes.len(), at, fault)?.into_iter().map(again));
        }
    }
    faults.sort_by_key(|fault| fault.at_us);
    let duration_us = file.duration_s * SECOND;
    Ok(History {
        seed,
        links: links(&file.links, &mut root.fork(1)),
        timing: timing(),
        rings: if file.rings == RingsFile::BySite { BY_SITE } else { Rings::One },
        checking: Checking {
            cursor_one_in: if file.checks.each_commit { 16 } else { u64::MAX },
            sweep_every_us: (duration_us / 120).max(SECOND),
            each_commit: file.checks.each_commit,
            books: file.checks.books,
            dial_needed: file.checks.dial_needed,
            spread: file.checks.spread,
            warm_start: file.checks.warm_start,
        },
        verify: Verify { mode: file.verify, times: VerifyConfig::default() },
        writes: writes(&file, &families, nodes.len(), &mut root.fork(2))?,
        nodes,
        families,
        faults,
        lasting: None,
        heal_at_us: duration_us,
        converge_within_us: file.converge_within_s * SECOND,
        floors: None,
        probe: file.probe,
    })
}

/// A site, or as many as there are to be of it.
fn copies((name, site): (String, Site)) -> Vec<(String, Site)> {
    match site.copies {
        0 => vec![(name, site)],
        count => (0..count).map(|n| (format!("{name}{n:03}"), site.clone())).collect(),
    }
}

fn nodes(file: &File) -> Vec<NodeSpec> {
    let mut nodes = Vec::new();
    for (index, site) in file.sites.values().enumerate() {
        for n in 0..site.nodes {
            nodes.push(NodeSpec {
                site: index,
                clock_offset_ms: site.clock_offset_ms + (n as i64 * 7) % 20,
                clock_drift_ppm: site.clock_drift_ppm,
                value_max_bytes: 65_536,
                protocol_version: 1,
                commit_us: MS,
                absent: n >= site.nodes - site.absent.min(site.nodes),
            });
        }
    }
    nodes
}

fn links(file: &LinkFile, rng: &mut Rng) -> Links {
    let table = |rng: &mut Rng, [low, high]: [u64; 2]| {
        (0..16).map(|_| rng.between(low * MS, low.max(high) * MS)).collect::<Vec<_>>()
    };
    Links {
        near_us: table(rng, file.near_ms),
        far_us: if file.far_by_sites { even_steps(file.far_ms) } else { table(rng, file.far_ms) },
        far_by_sites: file.far_by_sites,
        near_loss_per_mille: 0,
        far_loss_per_mille: file.far_loss_per_mille,
        far_bytes_per_s: file.far_bytes_per_s,
        idle_timeout_us: file.idle_timeout_s.max(1) * SECOND,
        near_silence_us: file.near_silence_ms.map(|ms| ms.max(1) * MS),
        silent_deaths: file.silent_deaths,
    }
}

/// From the least to the greatest, whatever the seed.
fn even_steps([low, high]: [u64; 2]) -> Vec<Us> {
    const STEPS: u64 = 63;
    (0..=STEPS).map(|n| (low * STEPS + high.saturating_sub(low) * n) * MS / STEPS).collect()
}

fn timing() -> Timing {
    Timing {
        view_up_us: (100 * MS, 2 * SECOND),
        view_down_us: (5 * SECOND, 12 * SECOND),
        plan_delay_us: 200 * MS,
        late_us: SECOND,
        patience_us: 20 * SECOND,
        relay_after_us: 60 * SECOND,
        retry_us: (100 * MS, 2 * SECOND),
        idle_say_us: 10 * SECOND,
        idle_say_entries: 10_000,
        window_frames: 4,
    }
}

fn writes(file: &File, families: &[FamilySpec], nodes: usize, rng: &mut Rng) -> Result<Vec<Write>, ScenarioError> {
    let mut writes = Vec::new();
    for node in 0..nodes {
        for (family, spec) in families.iter().enumerate().skip(1) {
            let at_us = if file.checks.warm_start { MS } else { rng.below(SECOND) };
            writes.push(Write { at_us, node, kind: WriteKind::Share { family, mode: spec.mode } });
        }
    }
    // A node that starts late shares when it has joined.
    let count = file.writes.per_s * file.duration_s.saturating_sub(file.writes.from_s);
    if count > 0 && families.len() < 2 {
        return Err(ScenarioError::NoFamily);
    }
    for _ in 0..count {
        let at_us = rng.between(file.writes.from_s * SECOND, file.duration_s * SECOND - 1);
        let family = rng.between(1, families.len() as u64 - 1) as usize;
        let key = rng.index(families[family].keys.len());
        let delete = rng.below(100) < file.writes.deletes_per_cent;
        let kind = if delete {
            WriteKind::Delete { family, key }
        } else {
            WriteKind::Put { family, key, bytes: file.writes.bytes }
        };
        writes.push(Write { at_us, node: rng.index(nodes), kind });
    }
    for (at, fault) in file.faults.iter().enumerate().filter(|(_, fault)| fault.kind == "join") {
        for (n, node) in fault_nodes(file, nodes, at, fault)?.into_iter().enumerate() {
            for (family, spec) in families.iter().enumerate().skip(1) {
                let at_us = (fault.at_s + n as u64 * fault.apart_s) * SECOND + SECOND;
                writes.push(Write { at_us, node, kind: WriteKind::Share { family, mode: spec.mode } });
            }
        }
    }
    writes.sort_by_key(|write| write.at_us);
    Ok(writes)
}

/// The first of a site by rank for the first family.
fn relay_of(file: &File, site: &str) -> Option<HostId> {
    let family = Family::new(file.families.keys().next()?).ok()?;
    let first: usize = file.sites.iter().take_while(|(name, _)| *name != site).map(|(_, site)| site.nodes).sum();
    let nodes = first..first + file.sites.get(site)?.nodes;
    nodes.max_by_key(|node| kinfolk::core::topology::rank(&family, crate::world::eid_of(*node)))
}

/// The nodes that a fault names, one by one or by their sites.
fn fault_nodes(file: &File, count: usize, at: usize, fault: &FaultFile) -> Result<Vec<HostId>, ScenarioError> {
    let mut nodes = fault.nodes.clone();
    for name in &fault.relays {
        nodes.push(relay_of(file, name).ok_or_else(|| ScenarioError::Site { at, site: name.clone() })?);
    }
    if let Some(node) = nodes.iter().copied().find(|node| *node >= count) {
        return Err(ScenarioError::Node { at, node, count });
    }
    for name in &fault.sites {
        let mut first = 0;
        let mut found = false;
        for (site, spec) in &file.sites {
            if site == name {
                // Only those who are not there can join.
                let from = if fault.kind == "join" { spec.nodes - spec.absent.min(spec.nodes) } else { 0 };
                nodes.extend(first + from..first + spec.nodes);
                found = true;
            }
            first += spec.nodes;
        }
        if !found {
            return Err(ScenarioError::Site { at, site: name.clone() });
        }
    }
    Ok(nodes)
}

fn fault_of(file: &File, count: usize, at: usize, fault: &FaultFile) -> Result<Vec<Fault>, ScenarioError> {
    let nodes = fault_nodes(file, count, at, fault)?;
    let needs = |needs| ScenarioError::Needs { at, kind: fault.kind.clone(), needs };
    if nodes.is_empty() {
        return Err(needs("sites or nodes"));
    }
    let groups: Vec<u8> = (0..count).map(|node| u8::from(!nodes.contains(&node))).collect();
    let second = || nodes.get(1).or(fault.relays.first().and(nodes.first())).copied().ok_or_else(|| needs("two nodes"));
    let whole = match fault.kind.as_str() {
        "partition" => Some(FaultKind::Partition { groups }),
        "one-way" => Some(FaultKind::OneWay { groups }),
        "bridge" => Some(FaultKind::Bridge { bridge: nodes[0], groups }),
        "flap" => Some(FaultKind::Flap { groups, period_us: fault.period_s.max(1) * SECOND }),
        "reset" => Some(FaultKind::Reset { a: nodes[0], b: second()? }),
        "slow" => {
            let extra_us = fault.by_ms.max(0) as Us * MS;
            Some(FaultKind::Slow { a: nodes[0], b: second()?, extra_us, loss_per_mille: 0 })
        }
        "suspect" => Some(FaultKind::Suspect { observer: nodes[0], subject: second()? }),
        "ghost" => Some(FaultKind::Ghost { observer: nodes[0], subject: second()? }),
        "garbage" => Some(FaultKind::Garbage { from: nodes[0], to: second()?, kind: 4 }),
        _ => None,
    };
    let (at_us, for_us) = match (fault.kind.as_str(), fault.for_s) {
        ("upgrade", 0) => (fault.at_s * SECOND, FOR_GOOD_US),
        (_, for_s) => (fault.at_s * SECOND, for_s * SECOND),
    };
    if let (Some(FaultKind::Suspect { subject, .. }), false) = (&whole, fault.relays.is_empty()) {
        return Ok(half_suspect(file, *subject, at_us, for_us));
    }
    if let Some(kind) = whole {
        return Ok(vec![Fault { at_us, for_us, kind }]);
    }
    let each = |(n, node): (usize, HostId)| {
        let kind =
            of_one(&fault.kind, node, fault.by_ms).ok_or(ScenarioError::Kind { at, kind: fault.kind.clone() })?;
        Ok(Fault { at_us: at_us + n as Us * fault.apart_s * SECOND, for_us, kind })
    };
    nodes.into_iter().enumerate().map(each).collect()
}

/// Every second node of the cluster believes that one is dead.
fn half_suspect(file: &File, subject: HostId, at_us: Us, for_us: Us) -> Vec<Fault> {
    let count: usize = file.sites.values().map(|site| site.nodes).sum();
    let observers = (0..count).filter(|observer| *observer != subject && observer % 2 == 0);
    observers.map(|observer| Fault { at_us, for_us, kind: FaultKind::Suspect { observer, subject } }).collect()
}

fn of_one(kind: &str, node: HostId, by_ms: i64) -> Option<FaultKind> {
    Some(match kind {
        "crash" => FaultKind::Crash { node },
        "crash-before-commit" => FaultKind::CrashInCommit { node, durable: false },
        "crash-after-commit" => FaultKind::CrashInCommit { node, durable: true },
        "wipe" => FaultKind::Wipe { node },
        "snapshot" => FaultKind::Snapshot { node },
        "rollback" => FaultKind::Rollback { node },
        "old-backup" => FaultKind::OldBackup { node },
        "clone" => FaultKind::Clone { node },
        "join" => FaultKind::Join { node },
        "die" => FaultKind::Die { node },
        "clock-jump" => FaultKind::ClockJump { node, by_ms },
        "clock-ahead" => FaultKind::ClockAhead { node, by_ms },
        "clock-freeze" => FaultKind::ClockFreeze { node },
        "restart-in-past" => FaultKind::RestartInPast { node, by_ms },
        "commit-fails" => FaultKind::CommitFails { node, durable: false },
        "commit-fails-but-lands" => FaultKind::CommitFails { node, durable: true },
        "disk-full" => FaultKind::DiskFull { node },
        "starve" => FaultKind::Starve { node },
        "next-version" => FaultKind::NextVersion { node },
        "upgrade" => FaultKind::Upgrade { node },
        _ => return None,
    })
}
