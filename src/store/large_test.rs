//! Transactions with so many changes that a store writes them before the commit, and on a thread of its own: whatever is
//! read in between, and whatever becomes of them, both stores answer as a plain map does.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::memory::MemoryStore;
use super::model_test::{key, stored};
use super::redb::{Options, RedbStore};
use crate::core::eid::Eid;
use crate::core::record::{Class, RecordKey, Stored};
use crate::core::storage::{Read, Span, Store, Write};

const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);
const STEPS: usize = 6_000;
const KEYS: u64 = 4_000;

type Model = BTreeMap<Vec<u8>, (RecordKey, Stored)>;

struct Numbers(TestRng);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }
}

fn numbered(n: u64) -> RecordKey {
    key(&format!("/foo/{n:06}"))
}

fn check_one(read: &impl Read, model: &Model, key: &RecordKey) {
    let expected = model.get(&key.to_bytes()).map(|(_, stored)| stored.clone());
    assert_eq!(read.record(key).expect("reads"), expected, "{key:?}");
}

fn check_all(read: &impl Read, model: &Model) {
    let mut records = Vec::new();
    let mut collect = |record| {
        records.push(record);
        ControlFlow::Continue(())
    };
    read.scan(Span::All, &mut collect).expect("scans");
    assert!(records.iter().eq(model.values()), "the records are not those of the model");
    let mut feed = Vec::new();
    let mut collect = |entry| {
        feed.push(entry);
        ControlFlow::Continue(())
    };
    read.feed("foo", 0, &mut collect).expect("reads the feed");
    let mut expected: Vec<_> = model.values().map(|(key, stored)| (stored.seq, stored.class, key.clone())).collect();
    expected.sort();
    assert_eq!(feed, expected);
}

/// Carries out one transaction with `steps` steps; gives what the store must hold after a commit.
fn fill(writer: &mut impl Write, before: &Model, steps: usize, numbers: &mut Numbers, seq: &mut u64) -> Model {
    let mut model = before.clone();
    let mut next = 0;
    for step in 0..steps {
        match numbers.below(100) {
            0..55 => {
                // In order, as a fresh node gets them: each is looked for before it is put.
                next += 1 + numbers.below(3);
                put(writer, &mut model, numbered(next), numbers, seq);
            }
            55..75 => {
                let key = numbered(numbers.below(KEYS));
                put(writer, &mut model, key, numbers, seq);
            }
            75..85 => {
                let key = numbered(numbers.below(KEYS));
                check_one(writer, &model, &key);
                writer.remove_record(&key).expect("removes");
                model.remove(&key.to_bytes());
            }
            _ => check_one(writer, &model, &numbered(numbers.below(2 * KEYS))),
        }
        if numbers.below(2_500) == 0 {
            println!("all of it is read at step {step}");
            check_all(writer, &model);
        }
    }
    model
}

fn put(writer: &mut impl Write, model: &mut Model, key: RecordKey, numbers: &mut Numbers, seq: &mut u64) {
    check_one(writer, model, &key);
    *seq += 1;
    let class = if numbers.below(2) == 0 { Class::Local } else { Class::Far };
    let stored = stored(Some("sip:a@192.0.2.17:5060"), class, *seq);
    writer.put_record(&key, &stored).expect("puts");
    model.insert(key.to_bytes(), (key, stored));
}

fn check(mut store: impl Store, seed: u8) {
    println!("seed {seed}");
    let (mut numbers, mut seq) = (Numbers(TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32])), 0);
    let mut model = Model::new();
    for (steps, commits) in [(300, true), (STEPS, true), (STEPS, false), (STEPS, true), (40, true)] {
        let mut writer = store.write().expect("begins");
        let changed = fill(&mut writer, &model, steps, &mut numbers, &mut seq);
        if commits {
            let mut done = false;
            writer.commit_while(|| done = true).expect("commits");
            assert!(done, "what was to be done meanwhile is done");
            model = changed;
        } else {
            drop(writer);
        }
        check_all(&store.read().expect("reads"), &model);
    }
}

#[test]
fn a_large_transaction_sees_its_own_changes_and_is_whole_or_nothing() {
    for seed in 1..=4 {
        let dir = tempfile::tempdir().expect("a directory");
        check(RedbStore::open(dir.path(), &Options::new(EID)).expect("opens"), seed);
        check(MemoryStore::new(), seed);
    }
}

/// The thread of a transaction that is given up must not outlive it: a store can be opened again at once.
#[test]
fn a_large_transaction_that_is_given_up_is_over_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || RedbStore::open(dir.path(), &Options::new(EID)).expect("opens");
    let mut store = open();
    for _ in 0..20 {
        let mut writer = store.write().expect("begins");
        for n in 0..2_000 {
            writer.put_record(&numbered(n), &stored(Some("v"), Class::Local, n + 1)).expect("puts");
        }
        drop(writer);
        store.reopen().expect("is opened again");
        check_all(&store.read().expect("reads"), &Model::new());
    }
    drop(store);
    check_all(&open().read().expect("reads"), &Model::new());
}
