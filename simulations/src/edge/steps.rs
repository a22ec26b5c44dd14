//! One key and two writers, with a crash of either side at every step: all of it, nothing drawn.
//!
//! A step is an event: something arrives, a commit, a timer. Each side of each pair is crashed after each of
//! them, from the first write until well after everything has come to rest.

use super::history::{History, Ms, Victim, Write};
use super::run;
use crate::check::Violation;

/// When the first of the two writes is made.
const AT: Ms = 12_000;
/// So many events come between the first write and rest, and some more.
const STEPS: u64 = 70;
const VICTIMS: [Victim; 4] = [Victim::Node(0), Victim::Asterisk(0), Victim::Node(1), Victim::Asterisk(1)];

/// Two Asterisks on two nodes, nothing lost, nothing drawn but the start.
pub fn quiet_pair(edge_ms: Ms, writes: Vec<(Ms, Write)>) -> History {
    History {
        seed: 1,
        pairs: 2,
        edge_ms,
        edge_jitter_ms: 0,
        loss_per_mille: 0,
        double_per_mille: 0,
        peer_ms: 3,
        commit_ms: 2,
        credentials: false,
        heal_at: writes.last().map_or(0, |(at, _)| at + 10_000),
        writes,
        faults: Vec::new(),
        settle_ms: 130_000,
        crash_after: None,
    }
}

/// A put of the one key by the Asterisk of a pair.
pub fn put(pair: usize) -> Write {
    Write { pair, at_asterisk: true, unique: false, key: 0, delete: false }
}

/// Crashes at every step for one delay, one gap between the writes, and a second writer that puts or
/// deletes. Gives how many runs that were, or the first that broke a check.
pub fn every_step(edge_ms: Ms, gap: Ms, delete: bool, stride: u64) -> Result<u64, (String, Violation)> {
    let writes = vec![(AT, put(0)), (AT + gap, Write { delete, ..put(1) })];
    let from = events_before(edge_ms, AT);
    let mut runs = 0;
    for step in (from..from + STEPS).step_by(stride as usize) {
        for victim in VICTIMS {
            let mut history = quiet_pair(edge_ms, writes.clone());
            history.crash_after = Some((step, victim));
            runs += 1;
            if let Some(violation) = run(history).violation {
                let what = format!("{edge_ms} ms, gap {gap} ms, {victim:?} crashed after event {step}");
                return Err((what, violation));
            }
        }
    }
    Ok(runs)
}

/// All delays and gaps.
pub fn everything() -> Result<u64, (String, Violation)> {
    let mut runs = 0;
    for edge_ms in [0, 20, 50] {
        for gap in [0, 1, 2, 5, 10, 20, 21, 30, 41, 60] {
            for delete in [false, true] {
                runs += every_step(edge_ms, gap, delete, 1)?;
            }
        }
    }
    Ok(runs)
}

/// How many events there are before a moment when nothing is written.
fn events_before(edge_ms: Ms, at: Ms) -> u64 {
    let mut history = quiet_pair(edge_ms, Vec::new());
    (history.heal_at, history.settle_ms) = (at, 0);
    run(history).stats.events - 1
}
