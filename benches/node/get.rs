//! Point reads, each with a read transaction of its own, beside the same with raw redb.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Instant;

use kinfolk::core::codec::encode_row;
use kinfolk::core::path::Path;
use kinfolk::core::storage::{Read, Span};
use kinfolk::store::redb::{CACHE_DEFAULT_BYTES, Options};

use crate::raw::{Raw, Row};
use crate::table::{self, median};
use crate::{EID, Ours, path};

const KEYS: usize = 100_000;
const READS: usize = 50_000;
const ROUNDS: usize = 15;

pub async fn run() {
    let (ours, raw) = (Ours::open(Options::new(EID)).await, Raw::create(CACHE_DEFAULT_BYTES));
    ours.load(KEYS).await;
    let mut rows = Vec::new();
    let view = ours.database.view().expect("reads");
    let scanned = view.read.scan(Span::All, &mut |(key, stored)| {
        rows.push(Row { key: key.to_bytes(), value: encode_row(&stored) });
        ControlFlow::Continue(())
    });
    scanned.expect("reads");
    drop(view);
    raw.commit(&rows);

    // A fixed scatter over all keys: the order is the same for both.
    let wanted: Vec<Path> = (0..READS).map(|n| path(n.wrapping_mul(48_271) % KEYS)).collect();
    let keys: Vec<Vec<u8>> = wanted.iter().map(|path| [path.as_str().as_bytes(), &[0]].concat()).collect();
    let (mut our_ns, mut raw_ns, mut ratios) = (vec![], vec![], vec![]);
    tokio::task::block_in_place(|| {
        for round in 0..=ROUNDS {
            let started = Instant::now();
            for path in &wanted {
                let found = ours.database.view().and_then(|view| view.get(path)).expect("reads");
                black_box(found.expect("it is there"));
            }
            let ours = started.elapsed().as_secs_f64() * 1e9 / READS as f64;
            let started = Instant::now();
            for key in &keys {
                black_box(raw.get(key));
            }
            let raw = started.elapsed().as_secs_f64() * 1e9 / READS as f64;
            // The first round fills the caches.
            if round > 0 {
                our_ns.push(ours);
                raw_ns.push(raw);
                ratios.push(ours / raw);
            }
        }
    });
    let figures = vec![table::whole(median(&our_ns)), table::whole(median(&raw_ns)), format!("{:.2}", median(&ratios))];
    let title = format!("A read at {} keys", table::whole(KEYS as f64));
    table::print(&title, &["kinfolk, ns", "raw redb, ns", "ratio (goal ≤ 2)"], &[figures]);
}
