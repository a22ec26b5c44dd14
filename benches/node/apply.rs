//! Records from another node, applied batch by batch with their cursor, one batch at a time as a follow
//! stream does it; beside raw redb that commits the same records in the same batches.

use std::time::Instant;

use kinfolk::core::clock::{Hlc, Stamp};
use kinfolk::core::codec::encode_row;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::record::{Class, Classes, Record, RecordKey, Stored};
use kinfolk::core::register::{Register, value_hash};
use kinfolk::core::replica::{Apply, Input, Outcome};
use kinfolk::core::storage::{Cursor, Run};
use kinfolk::store::redb::{CACHE_DEFAULT_BYTES, Options};

use crate::raw::{Raw, Row};
use crate::table::{self, median, whole};
use crate::{EID, Ours, foo, path, unix_ms, value};

const SOURCE: Eid = Eid::new([2, 0, 0, 0, 0, 9]);
const ROUNDS: usize = 21;
/// Records in a batch, and batches in a round.
const LEVELS: [(usize, usize); 3] = [(1, 100), (100, 20), (1_000, 10)];

pub async fn run() {
    let mut rows = Vec::new();
    for (batch, batches) in LEVELS {
        let (ours, raw) = (Ours::open(Options::new(EID)).await, Raw::create(CACHE_DEFAULT_BYTES));
        let (mut our_rates, mut raw_rates, mut ratios) = (vec![], vec![], vec![]);
        for round in 0..ROUNDS {
            // As in the puts, half of a round's keys are known from the round before.
            let first = round * batch * batches / 2;
            let records: Vec<Record> = (first..first + batch * batches).map(|n| record(n, round)).collect();
            let written: Vec<Row> = records.iter().map(row).collect();
            let inputs: Vec<Input> = records.chunks(batch).enumerate().map(|(n, part)| input(part, n)).collect();
            let started = Instant::now();
            for input in inputs {
                match ours.database.submit(input).await.expect("written") {
                    Outcome::Applied(merges) => assert_eq!(merges.won, batch as u64),
                    other => panic!("not applied but {other:?}"),
                }
            }
            let seconds = started.elapsed().as_secs_f64();
            let sizes = vec![batch; batches];
            let raw_seconds = tokio::task::block_in_place(|| raw.replay(&written, &sizes)).as_secs_f64();
            our_rates.push(written.len() as f64 / seconds);
            raw_rates.push(written.len() as f64 / raw_seconds);
            ratios.push(raw_seconds / seconds);
        }
        rows.push(vec![
            whole(batch as f64),
            whole(median(&our_rates)),
            whole(median(&raw_rates)),
            format!("{:.2}", median(&ratios)),
        ]);
    }
    let head = ["records in a batch", "kinfolk, records/s", "raw redb, records/s", "ratio"];
    table::print("Remote records applied", &head, &rows);
}

fn record(n: usize, round: usize) -> Record {
    let value = Some(value(n, round));
    let hlc = Hlc::from_parts(unix_ms(), n as u64).expect("in range");
    let stamp = Stamp { hlc, eid: SOURCE, hash: value_hash(value.as_ref()) };
    Record { key: RecordKey::plain(path(n)), register: Register::new(value, stamp), crossed: false }
}

fn row(record: &Record) -> Row {
    let stored = Stored { register: record.register.clone(), class: Class::Near, seq: 1 };
    Row { key: record.key.to_bytes(), value: encode_row(&stored) }
}

fn input(records: &[Record], n: usize) -> Input {
    Input::Apply(Apply {
        source: SOURCE,
        crossing: false,
        family: foo(),
        mode: Mode::Global,
        since: None,
        floor: None,
        records: records.to_vec(),
        cursor: Some((Classes::LOCAL, Cursor { run: Run(9), seq: n as u64 })),
        drop_cursor: None,
    })
}
