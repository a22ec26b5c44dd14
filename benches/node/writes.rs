//! Durable puts per second at several numbers of concurrent writers, beside raw redb that commits the same
//! records in the batch sizes that our writer really used.

use std::time::Instant;

use kinfolk::core::clock::Stamp;
use kinfolk::core::codec::encode_row;
use kinfolk::core::record::{Class, RecordKey, Stored};
use kinfolk::core::register::Register;
use kinfolk::core::replica::{Input, Outcome};
use kinfolk::store::redb::{CACHE_DEFAULT_BYTES, Options};

use crate::raw::{Raw, Row};
use crate::table::{self, median, whole};
use crate::{EID, Ours, path, value};

const ROUNDS: usize = 21;

/// Writers, and how many puts each of them makes in a round.
const LEVELS: [(usize, usize); 4] = [(1, 100), (10, 60), (100, 40), (1_000, 20)];

pub async fn run() {
    let mut rows = Vec::new();
    for (writers, puts_each) in LEVELS {
        let (ours, raw) = (Ours::open(Options::new(EID)).await, Raw::create(CACHE_DEFAULT_BYTES));
        let (mut our_rates, mut raw_rates, mut ratios, mut batch_sizes) = (vec![], vec![], vec![], vec![]);
        for round in 0..ROUNDS {
            let (seconds, written) = round_of_ours(&ours, writers, puts_each, round).await;
            let batches = std::mem::take(&mut *ours.batches.lock().expect("no panic"));
            let raw_seconds = tokio::task::block_in_place(|| raw.replay(&written, &batches)).as_secs_f64();
            our_rates.push(written.len() as f64 / seconds);
            raw_rates.push(written.len() as f64 / raw_seconds);
            ratios.push(raw_seconds / seconds);
            batch_sizes.extend(batches.iter().map(|size| *size as f64));
        }
        rows.push(vec![
            whole(writers as f64),
            whole(median(&our_rates)),
            whole(median(&raw_rates)),
            format!("{:.2}", median(&ratios)),
            format!("{} / {}", whole(median(&batch_sizes)), whole(table::percentile(&batch_sizes, 100.0))),
        ]);
    }
    let head = ["writers", "kinfolk, puts/s", "raw redb, puts/s", "ratio (goal ≥ 0.5)", "batch, median / most"];
    table::print("Durable puts", &head, &rows);
}

/// All writers at once, each putting one key after the other. Half of a round's keys are those of the round
/// before. Gives the seconds it took, and the records in the order of their commits.
async fn round_of_ours(ours: &Ours, writers: usize, puts_each: usize, round: usize) -> (f64, Vec<Row>) {
    let first = round * writers * puts_each / 2;
    let key_of = move |writer, put| first + put * writers + writer;
    let put_of = |n| (n, Input::Put { path: path(n), value: value(n, round) });
    // Made beforehand, as the peer's rows are: what is measured begins at the handle.
    let inputs: Vec<Vec<(usize, Input)>> =
        (0..writers).map(|writer| (0..puts_each).map(|put| put_of(key_of(writer, put))).collect()).collect();
    let started = Instant::now();
    let tasks: Vec<_> = inputs
        .into_iter()
        .map(|inputs| {
            let database = ours.database.clone();
            tokio::spawn(async move {
                let mut written = Vec::with_capacity(puts_each);
                for (n, input) in inputs {
                    match database.submit(input).await.expect("written") {
                        Outcome::Written { stamp, .. } => written.push((stamp, n)),
                        other => panic!("not written but {other:?}"),
                    }
                }
                written
            })
        })
        .collect();
    let mut written = Vec::with_capacity(writers * puts_each);
    for task in tasks {
        written.extend(task.await.expect("no panic"));
    }
    let seconds = started.elapsed().as_secs_f64();
    written.sort_unstable();
    (seconds, written.into_iter().map(|(stamp, n)| row(stamp, n, round)).collect())
}

fn row(stamp: Stamp, n: usize, round: usize) -> Row {
    let register = Register::new(Some(value(n, round)), stamp);
    // Its own sequence number would have as many bytes.
    let value = encode_row(&Stored { register, class: Class::Local, seq: 1 });
    Row { key: RecordKey::plain(path(n)).to_bytes(), value }
}
