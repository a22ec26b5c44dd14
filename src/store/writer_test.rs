//! The writer thread: what goes into one batch, who is told what, and when.
//!
//! No clock decides anything here. A test holds the thread where it wants it: between two batches by not
//! letting it report the first, or in the middle of a commit by not letting the disk sync.

use std::io;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use ::redb::StorageBackend;
use ::redb::backends::InMemoryBackend;

use super::memory::{MemoryReads, MemoryStore};
use super::redb::{Options, RedbStore};
use super::writer::{BatchReport, Database, SubmitError, Writer, WriterLimits, start};
use crate::core::clock::UnixMs;
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::path::{Family, Path, Value};
use crate::core::record::Classes;
use crate::core::replica::{Input, Outcome, Replica, Settings};
use crate::core::storage::{Reads, Run, Store, StoreError};

const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);

fn now() -> UnixMs {
    1_790_000_000_000
}

fn foo() -> Family {
    Family::new("foo").expect("a family")
}

fn path(n: usize) -> Path {
    Path::new(&format!("/foo/{n}")).expect("a path")
}

fn put(n: usize) -> Input {
    Input::Put { path: path(n), value: Value::new("value").expect("a value") }
}

/// Changes nothing, so that it needs no commit.
fn nothing() -> Input {
    Input::Delete { path: path(999_999) }
}

fn replica<S: Store>(store: S) -> Replica<S> {
    let mut replica = Replica::open(store, Settings::new(EID), Run(1), now()).expect("opens");
    replica.handle(vec![Input::Share { family: foo(), mode: Mode::Global }], now()).expect("commits");
    replica
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

type Submission<'a> = Pin<Box<dyn Future<Output = Result<Outcome, SubmitError>> + 'a>>;

/// Hands an input in as far as that goes without waiting: into the queue, if that has room.
fn hand_in<R: Reads>(database: &Database<R>, input: Input) -> Submission<'_> {
    let mut submission: Submission<'_> = Box::pin(database.submit(input));
    assert_eq!(poll(&mut submission), Poll::Pending, "nobody has answered yet");
    submission
}

fn written(outcome: Result<Outcome, SubmitError>) -> bool {
    matches!(outcome, Ok(Outcome::Written { .. }))
}

fn is_there<R: Reads>(database: &Database<R>, n: usize) -> bool {
    database.view().and_then(|view| view.get(&path(n))).expect("it reads").is_some()
}

/// A writer that is held after each batch until the test lets it go on.
struct Held {
    database: Database<MemoryReads>,
    writer: Writer,
    /// How many inputs each batch had, and whether it was written.
    reports: Receiver<(usize, bool)>,
    go_on: Sender<()>,
}

impl Held {
    fn start(replica: Replica<MemoryStore>, limits: WriterLimits) -> Self {
        let (report, reports) = channel();
        let (go_on, gone_on) = channel();
        let on_batch = move |batch: BatchReport<'_>| {
            let _ = report.send((batch.inputs, batch.result.is_ok()));
            // When the test has let go of its end, nobody holds it any more.
            let _ = gone_on.recv();
        };
        let (database, writer) = start(replica, limits, now, on_batch).expect("starts");
        Self { database, writer, reports, go_on }
    }

    fn next_batch(&self) -> (usize, bool) {
        self.reports.recv().expect("the writer runs")
    }

    fn go_on(&self) {
        self.go_on.send(()).expect("the writer runs");
    }
}

#[test]
fn what_waits_goes_into_one_batch() {
    let held = Held::start(replica(MemoryStore::new()), WriterLimits { queue_max: 100, batch_max: 7 });
    let first = hand_in(&held.database, put(0));
    assert_eq!(held.next_batch(), (1, true));
    let waiting: Vec<_> = (1..=10).map(|n| hand_in(&held.database, put(n))).collect();
    held.go_on();
    assert_eq!(held.next_batch(), (7, true), "as many as a batch may hold");
    held.go_on();
    assert_eq!(held.next_batch(), (3, true), "and then the rest");
    held.go_on();
    assert!(written(block_on(first)));
    for submission in waiting {
        assert!(written(block_on(submission)));
    }
}

#[test]
fn a_batch_that_fails_is_told_to_every_writer_in_it_and_the_next_one_works() {
    let mut replica = replica(MemoryStore::new());
    replica.store_mut().fail_next_commit(StoreError::Full);
    let held = Held::start(replica, WriterLimits::default());
    let first = hand_in(&held.database, nothing());
    assert_eq!(held.next_batch(), (1, true), "what changes nothing needs no commit");
    let before = held.database.published();
    let losing: Vec<_> = (0..5).map(|n| hand_in(&held.database, put(n))).collect();
    held.go_on();
    assert!(matches!(block_on(first), Ok(Outcome::Refused(_))));
    assert_eq!(held.next_batch(), (5, false));

    let failed = held.database.published();
    assert_eq!(failed.fault, Some(StoreError::Full));
    assert_eq!(failed.ledger.head, before.ledger.head);
    assert!((0..5).all(|n| !is_there(&held.database, n)), "reads go on and show what was there before");
    let next = hand_in(&held.database, put(1));
    held.go_on();
    for submission in losing {
        assert_eq!(block_on(submission), Err(SubmitError::Store(StoreError::Full)));
    }

    assert_eq!(held.next_batch(), (1, true));
    held.go_on();
    assert!(written(block_on(next)));
    assert_eq!(held.database.published().fault, None);
    assert!(is_there(&held.database, 1));
}

#[test]
fn who_finds_the_queue_full_waits_outside_and_loses_nothing() {
    let held = Held::start(replica(MemoryStore::new()), WriterLimits { queue_max: 2, batch_max: 10 });
    let first = hand_in(&held.database, put(0));
    held.next_batch();
    let waiting: Vec<_> = (1..=4).map(|n| hand_in(&held.database, put(n))).collect();
    held.go_on();
    assert_eq!(held.next_batch(), (2, true), "no more had room");
    // From here on nothing holds the writer.
    drop(held.go_on);
    block_on(async {
        assert!(written(first.await));
        for submission in waiting {
            assert!(written(submission.await));
        }
    });
    assert!((0..=4).all(|n| is_there(&held.database, n)));
}

#[test]
fn a_writer_that_gave_up_waiting_does_not_keep_its_write_from_being_done() {
    let held = Held::start(replica(MemoryStore::new()), WriterLimits::default());
    let first = hand_in(&held.database, put(0));
    held.next_batch();
    drop(hand_in(&held.database, put(1)));
    drop(held.go_on);
    assert!(written(block_on(first)));
    assert!(written(block_on(held.database.submit(put(2)))));
    assert!(is_there(&held.database, 1));
}

#[test]
fn the_writer_ends_when_the_last_handle_is_gone_and_what_was_handed_in_is_done() {
    let held = Held::start(replica(MemoryStore::new()), WriterLimits::default());
    drop(hand_in(&held.database, put(1)));
    assert_eq!(held.next_batch(), (1, true));
    let reads = held.database.view().expect("reads");
    let other = held.database.clone();
    drop(hand_in(&other, put(2)));
    let Held { database, writer, reports, go_on } = held;
    drop((database, other, go_on));
    writer.join();
    assert_eq!(reports.iter().collect::<Vec<_>>(), [(1, true)], "what still waited");
    assert!(reads.get(&path(1)).expect("reads").is_some(), "a view outlives the writer");
}

#[test]
fn a_panic_of_the_writer_is_seen_by_every_handle_and_acknowledges_nothing() {
    let on_batch = |_: BatchReport<'_>| panic!("an invariant is broken, as this test wants");
    let (database, writer) =
        start(replica(MemoryStore::new()), WriterLimits::default(), now, on_batch).expect("starts");
    let mut ended = Box::pin(database.writer_ended());
    assert_eq!(poll(&mut ended), Poll::Pending);
    assert_eq!(block_on(database.submit(put(1))), Err(SubmitError::Stopping));
    block_on(ended);
    assert_eq!(block_on(database.submit(put(2))), Err(SubmitError::Stopping));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.join())).is_err());
}

// ---- durable before anything else -------------------------------------------------------------

/// A disk in memory whose syncs wait for the test, once it has shut the gate.
#[derive(Debug)]
struct GatedDisk {
    inner: InMemoryBackend,
    gate: Arc<Mutex<Option<Gate>>>,
}

#[derive(Debug)]
struct Gate {
    reached: Sender<()>,
    open: Receiver<()>,
}

impl StorageBackend for GatedDisk {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Some(gate) = self.gate.lock().expect("no panic").take() {
            gate.reached.send(()).expect("the test waits for it");
            gate.open.recv().expect("the test opens it");
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }
}

#[test]
fn nothing_is_answered_published_woken_or_shown_before_it_is_on_the_disk() {
    let gate = Arc::new(Mutex::new(None));
    let disk = GatedDisk { inner: InMemoryBackend::new(), gate: gate.clone() };
    let store = RedbStore::with_backend(disk, &Options::new(EID)).expect("opens");
    let (database, _writer) = start(replica(store), WriterLimits::default(), now, |_| ()).expect("starts");
    let head = database.published().ledger.head;
    let mut wakes = database.wakes(&foo(), Classes::LOCAL);
    wakes.borrow_and_update();

    let (reached, syncing) = channel();
    let (open_gate, open) = channel();
    *gate.lock().expect("no panic") = Some(Gate { reached, open });
    let mut submission = hand_in(&database, put(1));
    syncing.recv().expect("the commit comes to its sync");
    assert_eq!(poll(&mut submission), Poll::Pending, "not acknowledged");
    assert_eq!(database.published().ledger.head, head, "not published");
    assert!(!wakes.has_changed().expect("the writer runs"), "no follower is woken");
    assert!(!is_there(&database, 1), "not shown");

    open_gate.send(()).expect("the disk waits for it");
    assert!(written(block_on(submission)));
    assert_eq!(database.published().ledger.head, head + 1);
    assert!(wakes.has_changed().expect("the writer runs"));
    assert!(is_there(&database, 1));
}

/// Started in a runtime, the writer has the answers of a large batch handed out by a task of that.
#[test]
fn of_a_large_batch_as_well_each_writer_gets_its_own_outcome() {
    const WRITERS: usize = 500;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let held = {
        let _inside = runtime.enter();
        Held::start(replica(MemoryStore::new()), WriterLimits::default())
    };
    let first = hand_in(&held.database, put(0));
    assert_eq!(held.next_batch(), (1, true));
    let waiting: Vec<_> = (1..=WRITERS).map(|n| hand_in(&held.database, put(n))).collect();
    held.go_on();
    assert_eq!(held.next_batch(), (WRITERS, true), "all that waited are one batch");
    held.go_on();
    for (n, submission) in std::iter::once(first).chain(waiting).enumerate() {
        let Ok(Outcome::Written { path: written, .. }) = runtime.block_on(submission) else { panic!("{n} is missing") };
        assert_eq!(written, path(n));
    }
}
