//! Resident memory per key. A child process opens a store, notes its resident set, loads the keys and notes
//! it again. With the smallest cache what grows is the daemon's own; with the default one redb's cache, which
//! is bounded by the configuration however many keys there are, is in the figure as well.

use std::process::Command;

use kinfolk::store::redb::{CACHE_DEFAULT_BYTES, Options};

use crate::table::{self, whole};
use crate::{EID, Ours};

/// The name of this mode on the command line.
pub const CHILD: &str = "memory-child";
const KEYS: usize = 100_000;
/// The least that the configuration allows.
const CACHE_MIN_BYTES: usize = 1 << 20;

pub fn run() {
    let program = std::env::current_exe().expect("this program has a path");
    let row = |(name, cache_bytes): (&str, usize)| {
        let args = [CHILD, &KEYS.to_string(), &cache_bytes.to_string()];
        let output = Command::new(&program).args(args).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let (before, after) = text.trim().split_once(' ').expect("two figures");
        let [before, after] = [before, after].map(|figure| figure.parse::<f64>().expect("a number"));
        vec![name.to_string(), whole(before / 1e3), whole(after / 1e3), whole((after - before) / KEYS as f64)]
    };
    let rows = [("1 MiB, the least", CACHE_MIN_BYTES), ("64 MiB, the default", CACHE_DEFAULT_BYTES)].map(row);
    let title = format!("Resident memory at {} keys", whole(KEYS as f64));
    table::print(&title, &["redb's cache", "empty, kB", "loaded, kB", "bytes per key"], &rows);
}

pub fn child(keys: usize, cache_bytes: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let ours = Ours::open(Options { cache_bytes, ..Options::new(EID) }).await;
        // What a first batch of writers leaves behind is not the keys'.
        ours.load(1_000).await;
        let before = resident_bytes();
        ours.load(keys).await;
        println!("{before} {}", resident_bytes());
    });
}

/// The second field of statm: resident pages.
fn resident_bytes() -> u64 {
    const PAGE_BYTES: u64 = 4_096;
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * PAGE_BYTES
}
