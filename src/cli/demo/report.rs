//! The tables at the end of the demo, at 80 columns.

use std::collections::BTreeSet;
use std::io::{self, Write};

use xxhash_rust::xxh3::xxh3_128;

use super::NAMES;
use super::acks::{Ack, Key, read_export};
use crate::core::clock::Stamp;

/// What is left of 80 columns beside the time of a step.
pub const TEXT_COLUMNS: usize = 71;
const VALUE_COLUMNS: usize = 18;
const KEY_COLUMNS: usize = 24;

/// A key that several nodes wrote, and what became of it.
pub struct Contest {
    path: String,
    winner: Ack,
    losers: Vec<Ack>,
}

impl Contest {
    /// `acks` with the greatest stamp first; `found` is what the nodes hold now.
    pub fn new(key: &Key, acks: Vec<Ack>, found: Option<&Ack>) -> Self {
        let winner = found.cloned().unwrap_or_else(|| acks[0].clone());
        let losers = acks.into_iter().filter(|ack| ack.stamp != winner.stamp).collect();
        Self { path: key.1.clone(), winner, losers }
    }
}

/// For each contested key the winner, and what each lost write lost against.
pub fn contests(out: &mut dyn Write, contests: &[Contest]) -> io::Result<()> {
    writeln!(out, "\nWhat each lost write lost against: a greater stamp (time, then EID)\n")?;
    let header = ["Key", "", "Node", "Value", "Stamp, UTC", "Behind"];
    row(out, header)?;
    for contest in contests {
        let path = fit(&contest.path, KEY_COLUMNS);
        let winner = &contest.winner;
        row(out, [&path, "won", node_of(winner), &value(winner), &moment(winner.stamp), ""])?;
        for loser in &contest.losers {
            let behind = behind(loser.stamp, winner.stamp);
            row(out, ["", "lost", node_of(loser), &value(loser), &moment(loser.stamp), &behind])?;
        }
    }
    Ok(())
}

fn row(out: &mut dyn Write, [key, won, node, value, stamp, behind]: [&str; 6]) -> io::Result<()> {
    let line = format!("{key:<KEY_COLUMNS$} {won:<4} {node:<4} {value:<VALUE_COLUMNS$} {stamp:<14} {behind:>9}");
    writeln!(out, "{}", line.trim_end())
}

/// What each node holds in its shared families.
pub fn nodes(out: &mut dyn Write, exports: &[String]) -> io::Result<()> {
    writeln!(out, "\nEvery node, by its own export (stamps and tombstones included)\n")?;
    writeln!(out, "Node   Keys  Tombstones    Bytes  Digest (XXH3-128)                 Equal")?;
    let digests: Vec<u128> = exports.iter().map(|export| xxh3_128(export.as_bytes())).collect();
    let equal = digests.iter().collect::<BTreeSet<_>>().len() == 1;
    for ((name, export), digest) in NAMES.iter().zip(exports).zip(&digests) {
        let records = read_export(export).unwrap_or_default();
        let tombstones = records.values().filter(|record| record.value.is_none()).count();
        let keys = records.len() - tombstones;
        let (bytes, equal) = (export.len(), if equal { "yes" } else { "NO" });
        writeln!(out, "{name:<4} {keys:>6}  {tombstones:>10}  {bytes:>7}  {digest:032x}  {equal}")?;
    }
    Ok(())
}

/// The demo's EIDs end in their node's letter.
fn node_of(ack: &Ack) -> &'static str {
    let last = ack.stamp.eid.bytes()[5];
    NAMES.get(usize::from(last.wrapping_sub(0x0a))).copied().unwrap_or("?")
}

fn value(ack: &Ack) -> String {
    ack.value.as_deref().map_or_else(|| "(deleted)".to_string(), |value| fit(value, VALUE_COLUMNS))
}

/// `hh:mm:ss.mmm`, and the counter if it counts.
fn moment(stamp: Stamp) -> String {
    let (ms, counter) = (stamp.hlc.unix_ms(), stamp.hlc.counter());
    let seconds = ms / 1_000 % 86_400;
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let counter = if counter == 0 { String::new() } else { format!("+{counter}") };
    format!("{h:02}:{m:02}:{s:02}.{:03}{counter}", ms % 1_000)
}

/// By how much a stamp is less than another.
fn behind(stamp: Stamp, winner: Stamp) -> String {
    let ms = winner.hlc.unix_ms().saturating_sub(stamp.hlc.unix_ms());
    if ms >= 10_000 {
        format!("{:.1} s", ms as f64 / 1e3)
    } else if ms > 0 {
        format!("{ms} ms")
    } else if winner.hlc > stamp.hlc {
        "counter".to_string()
    } else {
        "EID".to_string()
    }
}

/// `text`, cut to this many columns.
pub fn fit(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_string();
    }
    text.chars().take(columns - 1).chain(['…']).collect()
}
