//! What a run looks like afterwards: a summary for the terminal.

use std::time::Duration;

use crate::clock::SECOND;
use crate::run::Outcome;

/// The summary table.
pub fn summary(outcome: &Outcome, took: Duration) -> String {
    let (stats, branches) = (&outcome.stats, &outcome.branches);
    let virtual_s = outcome.virtual_us as f64 / SECOND as f64;
    let after = |us: Option<u64>| us.map_or("–".to_owned(), |us| format!("{:.2} s", us as f64 / SECOND as f64));
    let faults: Vec<String> = stats.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let rows = [
        ("virtual time", format!("{virtual_s:.1} s ({:.0} × real time)", virtual_s / took.as_secs_f64())),
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
        ("conflicts", (branches.won_over + branches.lost).to_string()),
        ("faults", if faults.is_empty() { "none".to_owned() } else { faults.join(", ") }),
        ("frames", format!("{}, {} refused", outcome.frames, stats.frames_refused)),
        ("bytes", outcome.bytes.to_string()),
        ("equal after healing", after(stats.converged_after_us)),
        ("equal after one more write each", after(stats.probe_converged_after_us)),
        ("keys exempt", stats.exempt_keys.to_string()),
    ];
    rows.iter().map(|(name, value)| format!("  {name:<32} {value}\n")).collect()
}
