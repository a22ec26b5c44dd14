//! What it costs to read and write a row on disk and a frame between nodes.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kinfolk::core::clock::{Hlc, Stamp};
use kinfolk::core::codec::{decode_frame, decode_row, encode_frame, encode_row};
use kinfolk::core::eid::Eid;
use kinfolk::core::message::Entries;
use kinfolk::core::path::{Path, Value};
use kinfolk::core::record::{Class, Record, RecordKey, Stored};
use kinfolk::core::register::{Register, value_hash};

const FRAME_RECORDS: u64 = 1_000;

fn register(n: u64) -> Register {
    let value = Some(Value::new(&format!("sip:{n:08}@192.0.2.17:5060;transport=udp")).expect("a value"));
    let hlc = Hlc::from_parts(1_790_000_000_000 + n, 0).expect("in range");
    let stamp = Stamp { hlc, eid: Eid::new([2, 0, 0, 0, 0, 1]), hash: value_hash(value.as_ref()) };
    Register::new(value, stamp)
}

fn record(n: u64) -> Record {
    let key = RecordKey::plain(Path::new(&format!("/registrar/contact/{n:08}")).expect("a path"));
    Record { key, register: register(n), crossed: false }
}

fn rows(c: &mut Criterion) {
    let stored = Stored { register: register(7), class: Class::Local, seq: 7 };
    let row = encode_row(&stored);
    c.bench_function("row/encode", |b| b.iter(|| encode_row(black_box(&stored))));
    c.bench_function("row/decode", |b| b.iter(|| decode_row::<Stored>(black_box(&row)).expect("a row")));
    let key = record(7).key.to_bytes();
    c.bench_function("key/decode", |b| b.iter(|| RecordKey::from_bytes(black_box(&key)).expect("a key")));
}

fn frames(c: &mut Criterion) {
    let entries = Entries { records: (0..FRAME_RECORDS).map(record).collect(), complete_to: 1, head: 1 };
    let frame = encode_frame(&entries).expect("it fits");
    let mut group = c.benchmark_group("frame of 1000 records");
    group.throughput(Throughput::Elements(FRAME_RECORDS));
    group.bench_function("encode", |b| b.iter(|| encode_frame(black_box(&entries)).expect("it fits")));
    group.bench_function("decode", |b| {
        b.iter_batched(|| &frame, |frame| decode_frame::<Entries>(black_box(frame)), BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group! {
    name = codec;
    config = Criterion::default().sample_size(30).warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = rows, frames
}
criterion_main!(codec);
