//! The figures of a node, in process at its handle, beside raw redb where there is a peer.
//!
//! `cargo bench --bench node` runs everything in one go; `-- writes get apply visible memory` names parts.
//! Ours and the peer's rounds alternate, and what counts is the median of the ratios of the pairs: the
//! machine's moods hit both. Absolute times are shown only to say what the ratios are made of.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod apply;
mod get;
mod memory;
mod raw;
mod table;
mod visible;
mod writes;

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use kinfolk::core::clock::UnixMs;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::path::{Family, Path, Value};
use kinfolk::core::replica::{Input, Outcome, Replica, Settings};
use kinfolk::core::storage::Run;
use kinfolk::store::redb::{Options, RedbReads, RedbStore};
use kinfolk::store::writer::{self, BatchReport, Database, Writer, WriterLimits};

pub const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);

pub fn unix_ms() -> UnixMs {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("before the year 584 million")
}

pub fn foo() -> Family {
    Family::new("foo").expect("a family")
}

/// Keys and values of the size that an Asterisk keeps: 23 and 42 bytes.
pub fn path(n: usize) -> Path {
    Path::new(&format!("/foo/contact/{n:010}")).expect("a path")
}

pub fn value(n: usize, round: usize) -> Value {
    Value::new(&format!("sip:{n:010}@192.0.2.17:5060;round={round:06}")).expect("a value")
}

/// A node's database on disk, with foo shared, and the batches that its writer made.
pub struct Ours {
    pub database: Database<RedbReads>,
    pub batches: Arc<Mutex<Vec<usize>>>,
    _writer: Writer,
    _dir: tempfile::TempDir,
}

impl Ours {
    pub async fn open(options: Options) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = RedbStore::open(dir.path(), &options).expect("opens");
        let replica = Replica::open(store, Settings::new(EID), Run(1), unix_ms()).expect("opens");
        let batches = Arc::new(Mutex::new(Vec::new()));
        let seen = batches.clone();
        let on_batch = move |report: BatchReport<'_>| seen.lock().expect("no panic").push(report.inputs);
        let (database, writer) = writer::start(replica, WriterLimits::default(), unix_ms, on_batch).expect("starts");
        let share = Input::Share { family: foo(), mode: Mode::Global };
        assert_eq!(database.submit(share).await, Ok(Outcome::Shared));
        batches.lock().expect("no panic").clear();
        Self { database, batches, _writer: writer, _dir: dir }
    }

    /// Loads keys without measuring.
    pub async fn load(&self, keys: usize) {
        for start in (0..keys).step_by(1_000) {
            let puts = (start..keys.min(start + 1_000)).map(|n| {
                let database = self.database.clone();
                let put = Input::Put { path: path(n), value: value(n, 0) };
                tokio::spawn(async move { database.submit(put).await })
            });
            for put in puts.collect::<Vec<_>>() {
                put.await.expect("no panic").expect("written");
            }
        }
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [mode, keys, cache_bytes] = &wanted[..]
        && mode == memory::CHILD
    {
        return memory::child(keys.parse().expect("a number"), cache_bytes.parse().expect("a number"));
    }
    let runs = |part: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if runs("writes") {
        runtime.block_on(writes::run());
    }
    if runs("get") {
        runtime.block_on(get::run());
    }
    if runs("apply") {
        runtime.block_on(apply::run());
    }
    if runs("visible") {
        runtime.block_on(visible::run());
    }
    if runs("memory") {
        memory::run();
    }
}
