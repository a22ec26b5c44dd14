//! What a run looks like afterwards: a summary for the terminal.

use std::time::Duration;

use crate::clock::SECOND;
use crate::run::Outcome;

/// The summary table.
pub fn summary(outcome: &Outcome, took: Duration) -> String {
    let virtual_s = outcome.virtual_us as f64 / SECOND as f64;
    let speed = format!("{:.2} s, {:.0} × real time", took.as_secs_f64(), virtual_s / took.as_secs_f64());
    let rows = rows(outcome).into_iter().chain([("took", speed)]);
    rows.map(|(name, value)| format!("  {name:<32} {value}\n")).collect()
}

/// What is told of a run, without how long it took.
pub fn rows(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let (stats, branches) = (&outcome.stats, &outcome.branches);
    let after = |us: Option<u64>| us.map_or("–".to_owned(), |us| format!("{:.2} s", us as f64 / SECOND as f64));
    let faults: Vec<String> = stats.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
    vec![
        ("virtual time", format!("{} s", outcome.virtual_us / SECOND)),
        ("events", stats.events.to_string()),
        (
            "inputs",
            format!("{} acknowledged, {} refused, {} unanswered", stats.writes, stats.refused, stats.unanswered),
        ),
        ("commits", format!("{}, {} failed", stats.commits, stats.commits_failed)),
        (
            "merges",
            format!("{} won, {} lost, {} same", branches.won_fresh + branches.won_over, branches.lost, branches.same),
        ),
        ("conflicts", format!("{} (an arriving write lost to a greater one)", branches.lost)),
        ("faults", if faults.is_empty() { "none".to_owned() } else { faults.join(", ") }),
        ("frames", format!("{}, {} refused", outcome.frames, stats.frames_refused)),
        ("bytes", outcome.bytes.to_string()),
        ("equal after the mending", after(stats.converged_after_us)),
        ("equal after one more write each", after(stats.probe_converged_after_us)),
        ("keys whose greatest write is lost", stats.exempt_keys.to_string()),
        ("verifies", format!("{} started, {} before following", stats.verify.started, stats.verify.bootstraps)),
        (
            "their ends",
            format!(
                "{} equal, {} reconciled, {} fetched whole, {} not done, {} broke off",
                stats.verify.equal,
                stats.verify.reconciled,
                stats.verify.everything + stats.verify.left_to_peer,
                stats.verify.not_done,
                stats.verify.broken
            ),
        ),
        ("their cost", format!("{} bytes, {} records crossed", stats.verify.bytes, stats.verify.records)),
    ]
}
