//! Holds every store to the duties of the trait: random transactions run on each and on a model too simple
//! to be wrong, and every read function must answer the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use proptest::prelude::{Just, ProptestConfig, Strategy, TestCaseError, any, prop_assert_eq, prop_oneof, proptest};

use super::memory::MemoryStore;
use super::redb::{Options, RedbStore};
use crate::core::clock::{Hlc, Stamp};
use crate::core::eid::Eid;
use crate::core::family::{Mark, Mode};
use crate::core::path::{Family, Path, Value};
use crate::core::record::{Class, Classes, RecordKey, Stored};
use crate::core::register::{Register, value_hash};
use crate::core::storage::{
    Cursor, CursorKey, LocalFloor, Quarantined, RUNS_MAX, Read, Reads, Run, RunStart, Span, Store, StoreError, Write,
};

pub(super) const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);

/// Chosen to sort next to each other, and around the borders of families.
const PATHS: [&str; 12] = [
    "/foo/a",
    "/foo/a!",
    "/foo/a/b",
    "/foo/a/c",
    "/foo!/a",
    "/foo0/a",
    "/foobar/a",
    "/fo/o",
    "/02:00:00:00:00:02/foo/a",
    "/__kinfolk/purge",
    "/foo/ü",
    "/z/\u{10ffff}",
];
const FAMILIES: [&str; 8] = ["foo", "foo/a", "fo", "foo0", "foo!", "z", "absent", "02:00:00:00:00:02/foo"];
const OWNERS: [Option<Eid>; 3] = [None, Some(EID), Some(Eid::new([0xff; 6]))];

pub(super) fn family(name: &str) -> Family {
    Family::new(name).expect("a family")
}

pub(super) fn key(path: &str) -> RecordKey {
    RecordKey::plain(Path::new(path).expect("a path"))
}

pub(super) fn stored(value: Option<&str>, class: Class, seq: u64) -> Stored {
    let value = value.map(|text| Value::new(text).expect("a value"));
    let hlc = Hlc::from_u64(seq).expect("a small one");
    let stamp = Stamp { hlc, eid: EID, hash: value_hash(value.as_ref()) };
    Stored { register: Register::new(value, stamp), class, seq }
}

fn stamp(n: u64) -> Stamp {
    Stamp { hlc: Hlc::from_u64(n).expect("a small one"), eid: EID, hash: n }
}

fn cursor_key(n: u8) -> CursorKey {
    let source = Eid::new([2, 0, 0, 0, 0, n % 3]);
    let classes = Classes::from_bits(1 + n % 7).expect("a set");
    CursorKey { source, family: family(FAMILIES[usize::from(n) % 4]), classes }
}

#[derive(Clone, Debug)]
enum Op {
    Put { path: usize, owner: usize, value: Option<String>, class: Class, same_seq: bool },
    Remove { path: usize, owner: usize },
    Head,
    Mark { family: usize, mark: Option<bool> },
    Run(u64),
    Cursor { key: u8, seq: Option<u64> },
    Floor { family: usize, floor: Option<u64> },
    Quarantine { path: usize, owner: usize, value: Option<Option<String>> },
    Adapter { key: u8, value: Option<Vec<u8>> },
}

#[derive(Clone, Debug)]
struct Transaction {
    ops: Vec<Op>,
    commit: bool,
}

fn any_op() -> impl Strategy<Value = Op> {
    let class = prop_oneof![Just(Class::Local), Just(Class::Near), Just(Class::Far)];
    let place = (0..PATHS.len(), 0..OWNERS.len());
    let value = proptest::option::weighted(0.8, "[a-zü]{0,12}");
    prop_oneof![
        8 => (place.clone(), value, class, any::<bool>()).prop_map(|((path, owner), value, class, same_seq)| {
            Op::Put { path, owner, value, class, same_seq }
        }),
        3 => place.prop_map(|(path, owner)| Op::Remove { path, owner }),
        1 => Just(Op::Head),
        1 => (0..FAMILIES.len(), any::<Option<bool>>()).prop_map(|(family, mark)| Op::Mark { family, mark }),
        1 => any::<u64>().prop_map(Op::Run),
        2 => (any::<u8>(), any::<Option<u64>>()).prop_map(|(key, seq)| Op::Cursor { key, seq }),
        1 => (0..FAMILIES.len(), proptest::option::of(0..1_000_u64))
            .prop_map(|(family, floor)| Op::Floor { family, floor }),
        2 => (0..PATHS.len(), 0..OWNERS.len(), proptest::option::of(proptest::option::of("[a-z]{0,3}")))
            .prop_map(|(path, owner, value)| Op::Quarantine { path, owner, value }),
        1 => (0_u8..4, any::<Option<Vec<u8>>>()).prop_map(|(key, value)| Op::Adapter { key, value }),
    ]
}

fn any_transaction() -> impl Strategy<Value = Transaction> {
    (proptest::collection::vec(any_op(), 0..12), proptest::bool::weighted(0.75))
        .prop_map(|(ops, commit)| Transaction { ops, commit })
}

/// The model: plain collections, copied for each transaction.
#[derive(Clone, Debug, Default)]
struct Model {
    records: Vec<(RecordKey, Stored)>,
    all: Everything,
    last_seq: u64,
}

/// What every read function answers, to every question there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Everything {
    points: Vec<Option<Stored>>,
    scans: Vec<Vec<(RecordKey, Stored)>>,
    feeds: Vec<Vec<(u64, Class, RecordKey)>>,
    head: u64,
    marks: BTreeMap<Family, Mark>,
    runs: Vec<RunStart>,
    cursors: BTreeMap<CursorKey, Cursor>,
    cursor_points: Vec<Option<Cursor>>,
    floors: BTreeMap<Family, LocalFloor>,
    quarantine: BTreeMap<RecordKey, Quarantined>,
    quarantine_points: Vec<Option<Quarantined>>,
    adapter: BTreeMap<u8, Vec<u8>>,
}

fn all_keys() -> impl Iterator<Item = RecordKey> {
    PATHS.into_iter().flat_map(|path| OWNERS.map(|owner| RecordKey { owner, ..key(path) }))
}

fn tops() -> BTreeSet<String> {
    PATHS.iter().map(|path| key(path).path.top().to_owned()).chain(["absent".to_owned()]).collect()
}

/// Where feeds are read from: the ends, and the middle of what a test gives out.
const AFTER: [u64; 4] = [0, 7, u64::MAX - 1, u64::MAX];

/// Takes at most `limit` and then breaks off.
fn taking<T>(limit: usize, into: &mut Vec<T>) -> impl FnMut(T) -> ControlFlow<()> + '_ {
    move |item| {
        into.push(item);
        if into.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

pub(super) fn everything(view: &impl Read) -> Result<Everything, StoreError> {
    let mut all = Everything { head: view.head()?, marks: view.marks()?, runs: view.runs()?, ..Everything::default() };
    for key in all_keys() {
        all.points.push(view.record(&key)?);
    }
    let families: Vec<Family> = FAMILIES.map(family).into();
    for span in std::iter::once(Span::All).chain(families.iter().map(Span::Under)) {
        for limit in [usize::MAX, 2] {
            let mut found = Vec::new();
            view.scan(span, &mut taking(limit, &mut found))?;
            all.scans.push(found);
        }
    }
    for (family, key) in families.iter().take(2).flat_map(|family| all_keys().map(move |key| (family, key))) {
        let mut found = Vec::new();
        view.scan(Span::Behind(family, &key), &mut taking(usize::MAX, &mut found))?;
        all.scans.push(found);
    }
    for top in tops() {
        for after in AFTER {
            let mut found = Vec::new();
            view.feed(&top, after, &mut taking(usize::MAX, &mut found))?;
            by_class(view, &top, after, &found)?;
            all.feeds.push(found);
        }
    }
    all.cursors = view.cursors()?;
    for n in 0..=u8::MAX {
        all.cursor_points.push(view.cursor(&cursor_key(n))?);
    }
    all.floors = view.floors()?;
    let mut quarantine = Vec::new();
    view.quarantine(&mut taking(usize::MAX, &mut quarantine))?;
    let sorted = quarantine.is_sorted_by_key(|(key, _)| key.clone());
    all.quarantine = if sorted { quarantine.into_iter().collect() } else { BTreeMap::new() };
    for key in all_keys() {
        all.quarantine_points.push(view.quarantined(&key)?);
    }
    for n in 0..4 {
        all.adapter.extend(view.adapter(&[n])?.map(|value| (n, value)));
    }
    Ok(all)
}

/// The feed by classes must tell what the whole feed tells of them.
fn by_class(view: &impl Read, top: &str, after: u64, whole: &[(u64, Class, RecordKey)]) -> Result<(), StoreError> {
    for classes in (1..8).filter_map(Classes::from_bits) {
        let mut found = Vec::new();
        let came_to = view.feed_of(top, classes, after, usize::MAX, &mut taking(usize::MAX, &mut found))?;
        let wanted: Vec<_> = whole.iter().filter(|(_, class, _)| classes.contains(*class)).cloned().collect();
        assert_eq!((came_to, &found), (None, &wanted), "{classes} of {top} after {after}");
        let mut early = Vec::new();
        let came_to = view.feed_of(top, classes, after, 2, &mut taking(usize::MAX, &mut early))?;
        let missed = wanted.iter().find(|(seq, ..)| {
            came_to.is_none_or(|came_to| *seq <= came_to) && !early.iter().any(|(there, ..)| there == seq)
        });
        assert_eq!(missed, None, "{classes} of {top} after {after}, complete to {came_to:?}");
    }
    Ok(())
}

impl Model {
    fn everything(&self) -> Everything {
        let mut all = self.all.clone();
        let mut sorted = self.records.clone();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        let find = |key: &RecordKey| sorted.iter().find(|(k, _)| k == key).map(|(_, stored)| stored.clone());
        all.points = all_keys().map(|key| find(&key)).collect();
        let under =
            |name: &str| sorted.iter().filter(|(key, _)| family(name).covers(&key.path)).cloned().collect::<Vec<_>>();
        for scan in std::iter::once(sorted.clone()).chain(FAMILIES.map(under)) {
            let first = scan.iter().take(2).cloned().collect();
            all.scans.extend([scan, first]);
        }
        for (name, behind) in FAMILIES.into_iter().take(2).flat_map(|name| all_keys().map(move |key| (name, key))) {
            all.scans.push(under(name).into_iter().filter(|(key, _)| *key > behind).collect());
        }
        for top in tops() {
            let mut feed: Vec<_> = sorted.iter().filter(|(key, _)| key.path.top() == top).collect();
            feed.sort_by_key(|(_, stored)| stored.seq);
            for after in AFTER {
                let later = feed.iter().filter(|(_, stored)| stored.seq > after);
                all.feeds.push(later.map(|(key, stored)| (stored.seq, stored.class, key.clone())).collect());
            }
        }
        all.quarantine_points = all_keys().map(|key| all.quarantine.get(&key).cloned()).collect();
        all.cursor_points = (0..=u8::MAX).map(|n| all.cursors.get(&cursor_key(n)).copied()).collect();
        all
    }

    fn record_key(path: usize, owner: usize) -> RecordKey {
        RecordKey { owner: OWNERS[owner], ..key(PATHS[path]) }
    }

    /// Does the operation here and in the store.
    fn apply(&mut self, op: &Op, writer: &mut impl Write) -> Result<(), StoreError> {
        match op {
            Op::Put { path, owner, value, class, same_seq } => {
                let key = Self::record_key(*path, *owner);
                let old = self.records.iter().position(|(k, _)| *k == key).map(|at| self.records.swap_remove(at));
                let seq = match old {
                    Some((_, old)) if *same_seq => old.seq,
                    _ => self.last_seq + 1,
                };
                self.last_seq = self.last_seq.max(seq);
                let stored = stored(value.as_deref(), *class, seq);
                self.records.push((key.clone(), stored.clone()));
                writer.put_record(&key, &stored)
            }
            Op::Remove { path, owner } => {
                let key = Self::record_key(*path, *owner);
                self.records.retain(|(k, _)| *k != key);
                writer.remove_record(&key)
            }
            Op::Head => {
                self.all.head = self.last_seq;
                writer.set_head(self.last_seq)
            }
            Op::Mark { family: name, mark } => {
                let family = family(FAMILIES[*name]);
                let mode = |global| if global { Mode::Global } else { Mode::Unique };
                let mark = mark.map(|global| Mark { mode: mode(global), since: self.last_seq, stamp: stamp(1) });
                set(&mut self.all.marks, &family, mark);
                writer.set_mark(&family, mark)
            }
            Op::Run(run) => {
                let start = RunStart { run: Run(*run), first_seq: self.last_seq + 1 };
                self.all.runs.push(start);
                writer.append_run(start)
            }
            Op::Cursor { key, seq } => {
                let key = cursor_key(*key);
                let cursor = seq.map(|seq| Cursor { run: Run(seq / 2), seq });
                set(&mut self.all.cursors, &key, cursor);
                writer.set_cursor(&key, cursor)
            }
            Op::Floor { family: name, floor } => {
                let family = family(FAMILIES[*name]);
                let hlc = |ms| Hlc::from_u64(ms).expect("in range");
                let floor = floor.map(|floor| LocalFloor {
                    adopted: hlc(floor),
                    gathered: hlc(floor / 3),
                    spread: hlc(floor / 2),
                });
                set(&mut self.all.floors, &family, floor);
                writer.set_floor(&family, floor)
            }
            Op::Quarantine { path, owner, value } => {
                let key = Self::record_key(*path, *owner);
                let quarantined = value.as_ref().map(|value| Quarantined {
                    register: stored(value.as_deref(), Class::Near, 1).register,
                    floor: Hlc::ZERO,
                    since_unix_ms: self.last_seq,
                });
                set(&mut self.all.quarantine, &key, quarantined.clone());
                writer.set_quarantined(&key, quarantined.as_ref())
            }
            Op::Adapter { key, value } => {
                set(&mut self.all.adapter, key, value.clone());
                writer.set_adapter(&[*key], value.as_deref())
            }
        }
    }
}

fn set<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
}

/// Runs the transactions, comparing inside each, after each, and with snapshots taken before each.
fn run(store: &mut impl Store, transactions: &[Transaction]) -> Result<Everything, TestCaseError> {
    let fail = |error: StoreError| TestCaseError::fail(error.to_string());
    let mut model = Model::default();
    for transaction in transactions {
        let reads = store.reads();
        let (before, snapshot) = (model.everything(), reads.read().map_err(fail)?);
        let mut changed = model.clone();
        let mut writer = store.write().map_err(fail)?;
        for op in &transaction.ops {
            changed.apply(op, &mut writer).map_err(fail)?;
        }
        prop_assert_eq!(&everything(&writer).map_err(fail)?, &changed.everything(), "inside the transaction");
        prop_assert_eq!(&everything(&reads.read().map_err(fail)?).map_err(fail)?, &before, "outside, meanwhile");
        // What was given out in a dropped transaction may be given out again.
        if transaction.commit {
            writer.commit().map_err(fail)?;
            model = changed;
        } else {
            drop(writer);
        }
        prop_assert_eq!(&everything(&snapshot).map_err(fail)?, &before, "the snapshot from before");
        drop(snapshot);
        prop_assert_eq!(&everything(&store.read().map_err(fail)?).map_err(fail)?, &model.everything(), "after");
    }
    Ok(model.everything())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_store_answers_as_the_model_does(transactions in proptest::collection::vec(any_transaction(), 1..8)) {
        run(&mut MemoryStore::new(), &transactions)?;

        let dir = tempfile::tempdir()?;
        let options = Options::new(EID);
        let open = || RedbStore::open(dir.path(), &options).map_err(|error| TestCaseError::fail(error.to_string()));
        let mut store = open()?;
        let expected = run(&mut store, &transactions)?;
        drop(store);
        let reopened = everything(&open()?.read().expect("it reads")).expect("it reads");
        prop_assert_eq!(reopened, expected, "after closing and opening");
    }
}

fn put(store: &mut impl Store, path: &str, seq: u64) -> Result<(), StoreError> {
    let mut writer = store.write()?;
    writer.put_record(&key(path), &stored(Some("v"), Class::Local, seq))?;
    writer.commit()
}

fn on_disk() -> (tempfile::TempDir, RedbStore) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(dir.path(), &Options::new(EID)).expect("it opens");
    (dir, store)
}

#[test]
fn a_dropped_transaction_leaves_nothing() {
    fn check(mut store: impl Store) {
        put(&mut store, "/foo/a", 1).expect("put");
        let before = everything(&store.read().expect("a read")).expect("it reads");
        let mut writer = store.write().expect("a transaction");
        writer.put_record(&key("/foo/b"), &stored(None, Class::Far, 2)).expect("put");
        writer.remove_record(&key("/foo/a")).expect("removed");
        writer.set_head(2).expect("set");
        writer.set_adapter(b"k", Some(b"v")).expect("set");
        drop(writer);
        assert_eq!(everything(&store.read().expect("a read")).expect("it reads"), before);
    }
    check(MemoryStore::new());
    check(on_disk().1);
}

#[test]
fn a_snapshot_does_not_see_later_commits() {
    fn check(mut store: impl Store) {
        put(&mut store, "/foo/a", 1).expect("put");
        let reads = store.reads();
        let snapshot = std::thread::spawn(move || reads.read().expect("a read").record(&key("/foo/b")));
        assert_eq!(snapshot.join().expect("no panic"), Ok(None), "reading works on another thread");
        let snapshot = store.read().expect("a read");
        for seq in 2..50 {
            put(&mut store, "/foo/b", seq).expect("put");
        }
        assert_eq!(snapshot.record(&key("/foo/b")), Ok(None));
        let now = store.read().expect("a read").record(&key("/foo/b")).expect("it reads").expect("it is there");
        assert_eq!(now.seq, 49);
    }
    check(MemoryStore::new());
    check(on_disk().1);
}

#[test]
fn the_visitor_of_a_scan_in_a_transaction_may_read_the_same_table() {
    fn check(mut store: impl Store) {
        let mut writer = store.write().expect("a transaction");
        for n in 0..200 {
            let record = stored(Some("v"), Class::Local, n + 1);
            writer.put_record(&key(&format!("/foo/{n:03}")), &record).expect("put");
        }
        let mut seen = 0;
        writer
            .scan(Span::Under(&family("foo")), &mut |(key, stored)| {
                assert_eq!(writer.record(&key), Ok(Some(stored)));
                seen += 1;
                ControlFlow::Continue(())
            })
            .expect("it scans");
        assert_eq!(seen, 200);
    }
    check(MemoryStore::new());
    check(on_disk().1);
}

#[test]
fn the_oldest_runs_are_forgotten_beyond_the_maximum() {
    fn check(mut store: impl Store) {
        let start = |n: usize| RunStart { run: Run(n as u64 * 7), first_seq: n as u64 };
        for from in [0, RUNS_MAX - 2] {
            let mut writer = store.write().expect("a transaction");
            for n in from..from + RUNS_MAX - 2 {
                writer.append_run(start(n)).expect("appended");
            }
            writer.commit().expect("committed");
        }
        let runs = store.read().expect("a read").runs().expect("it reads");
        let total = 2 * (RUNS_MAX - 2);
        assert_eq!(runs, (total - RUNS_MAX..total).map(start).collect::<Vec<_>>());
    }
    check(MemoryStore::new());
    check(on_disk().1);
}

#[test]
fn a_copied_store_in_memory_goes_its_own_way() {
    let mut store = MemoryStore::new();
    put(&mut store, "/foo/a", 1).expect("put");
    let mut copy = store.clone();
    put(&mut copy, "/foo/b", 2).expect("put");
    put(&mut store, "/foo/c", 2).expect("put");
    let has = |store: &MemoryStore, path| store.read().expect("a read").record(&key(path)).expect("it reads").is_some();
    assert_eq!(["/foo/a", "/foo/b", "/foo/c"].map(|path| has(&store, path)), [true, false, true]);
    assert_eq!(["/foo/a", "/foo/b", "/foo/c"].map(|path| has(&copy, path)), [true, true, false]);
}

#[test]
fn an_injected_failure_fails_one_commit_and_leaves_nothing() {
    let mut store = MemoryStore::new();
    store.fail_next_commit(StoreError::Full);
    assert_eq!(put(&mut store, "/foo/a", 1), Err(StoreError::Full));
    assert_eq!(store.read().expect("a read").record(&key("/foo/a")), Ok(None));
    assert_eq!(store.reopen(), Ok(()));
    assert_eq!(put(&mut store, "/foo/a", 1), Ok(()));
}

#[test]
fn a_store_in_memory_can_be_sent_to_another_thread() {
    fn send<T: Send>(_: T) {}
    send(MemoryStore::new());
}
