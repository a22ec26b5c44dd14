//! What goes wrong with disks: full, failing, damaged, somebody else's.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;
use crate::core::record::Class;
use crate::core::storage::Read;
use crate::store::model_test::{EID, Everything, everything, key, stored};

const PAGE_BYTES: u64 = 4_096;

/// A disk in memory. As on a real one, what is written once can be written again when it is full.
#[derive(Debug, Default)]
struct FakeDisk {
    bytes: Mutex<Vec<u8>>,
    allocated: Mutex<BTreeSet<u64>>,
    full: AtomicBool,
    /// How many more writes succeed.
    writes_left: AtomicU64,
    sync_fails: AtomicBool,
    syncs: AtomicUsize,
    writes: AtomicUsize,
}

#[derive(Clone, Debug)]
struct Fake(Arc<FakeDisk>);

impl Fake {
    fn new() -> Self {
        Self(Arc::new(FakeDisk { writes_left: AtomicU64::new(u64::MAX), ..FakeDisk::default() }))
    }

    fn heal(&self) {
        self.0.full.store(false, SeqCst);
        self.0.writes_left.store(u64::MAX, SeqCst);
        self.0.sync_fails.store(false, SeqCst);
    }

    /// A copy of what is on it now: what a crash would leave, every write having reached it.
    fn image(&self) -> Self {
        let copy = Self::new();
        *copy.0.bytes.lock().expect("no panic") = self.0.bytes.lock().expect("no panic").clone();
        copy
    }
}

impl StorageBackend for Fake {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.bytes.lock().expect("no panic").len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.bytes.lock().expect("no panic");
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.bytes.lock().expect("no panic").resize(len as usize, 0);
        self.0.allocated.lock().expect("no panic").retain(|page| page * PAGE_BYTES < len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.syncs.fetch_add(1, SeqCst);
        if self.0.sync_fails.load(SeqCst) { Err(io::Error::other("the cable is out")) } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let pages: Vec<u64> = (offset / PAGE_BYTES..(offset + data.len() as u64).div_ceil(PAGE_BYTES)).collect();
        let mut allocated = self.0.allocated.lock().expect("no panic");
        if self.0.full.load(SeqCst) && !pages.iter().all(|page| allocated.contains(page)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.0.writes_left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        allocated.extend(pages);
        self.0.writes.fetch_add(1, SeqCst);
        let mut bytes = self.0.bytes.lock().expect("no panic");
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(())
    }
}

/// With a small cache, so that reads do reach the disk.
fn options() -> Options {
    Options { cache_bytes: 64 * 1024, eid: EID }
}

fn open(fake: &Fake) -> RedbStore {
    RedbStore::with_backend(fake.clone(), &options()).expect("it opens")
}

/// Writes `count` records of about a page from `seq` on, in one transaction.
fn fill(store: &mut RedbStore, seq: u64, count: u64) -> Result<(), StoreError> {
    let mut writer = store.write()?;
    for seq in seq..seq + count {
        let record = stored(Some(&format!("{seq:03000}")), Class::Local, seq);
        writer.put_record(&key(&format!("/foo/{:03}", seq % 100)), &record)?;
    }
    writer.set_head(seq + count - 1)?;
    writer.commit()
}

/// A store with some records, and what it holds.
fn filled() -> (Fake, RedbStore, Everything) {
    let fake = Fake::new();
    let mut store = open(&fake);
    fill(&mut store, 1, 80).expect("filled");
    let expected = state(&store.read().expect("a read"));
    (fake, store, expected)
}

/// Everything, and all records.
fn state(view: &impl Read) -> Everything {
    everything(view).expect("it reads")
}

/// How the disk refuses.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Refusal {
    /// Nothing new finds room, but what is allocated can be written.
    Full,
    /// Every write but the first so many.
    From(u64),
    Sync,
}

impl Refusal {
    fn all() -> impl Iterator<Item = Refusal> {
        [Refusal::Full, Refusal::Sync].into_iter().chain((0..40).map(Refusal::From))
    }

    fn begin(self, fake: &Fake) {
        match self {
            Refusal::Full => fake.0.full.store(true, SeqCst),
            Refusal::From(write) => fake.0.writes_left.store(write, SeqCst),
            Refusal::Sync => fake.0.sync_fails.store(true, SeqCst),
        }
    }

    fn error(self) -> StoreError {
        if self == Refusal::Sync { StoreError::Io("the cable is out".to_owned()) } else { StoreError::Full }
    }
}

#[test]
fn after_a_refused_commit_reads_go_on_and_writes_recover_when_space_returns() {
    for refusal in Refusal::all() {
        let fake = Fake::new();
        let mut store = open(&fake);
        fill(&mut store, 1, 80).expect("filled");
        let (reads, expected) = (store.reads(), state(&store.read().expect("a read")));
        let early = reads.read().expect("a read");

        refusal.begin(&fake);
        let refused = fill(&mut store, 81, 60);
        assert_eq!(refused, Err(refusal.error()), "{refusal:?}");
        assert_eq!(state(&reads.read().expect("a read")), expected, "{refusal:?}: a new reader, before the reopening");
        assert_eq!(state(&early), expected, "{refusal:?}: an old reader, before the reopening");
        assert_eq!(state(&open(&fake.image()).read().expect("a read")), expected, "{refusal:?}: after a crash here");

        store.reopen().expect("it reopens");
        assert_eq!(state(&reads.read().expect("a read")), expected, "{refusal:?}: a new reader, after the reopening");
        assert_eq!(state(&early), expected, "{refusal:?}: an old reader, after the reopening");
        if refusal != Refusal::Full {
            assert_eq!(
                store.write().err(),
                Some(refusal.error()),
                "{refusal:?}: writing is refused as long as the disk refuses"
            );
        }
        assert_eq!(state(&reads.read().expect("a read")), expected, "{refusal:?}: a new reader, after trying to write");

        fake.heal();
        fill(&mut store, 81, 60).expect("writes recover");
        let grown = state(&reads.read().expect("a read"));
        assert_ne!(grown, expected, "{refusal:?}");
        drop((early, reads, store));
        assert_eq!(state(&open(&fake).read().expect("a read")), grown, "{refusal:?}: after closing and opening");
    }
}

#[test]
fn a_disk_that_stays_full_refuses_again_and_again_and_loses_nothing() {
    let (fake, mut store, expected) = filled();
    fake.0.full.store(true, SeqCst);
    for _ in 0..5 {
        let refused = fill(&mut store, 81, 60);
        assert_eq!(refused, Err(StoreError::Full));
        store.reopen().expect("it reopens");
        assert_eq!(state(&store.read().expect("a read")), expected);
    }
    fake.heal();
    fill(&mut store, 81, 60).expect("writes recover");
}

/// So many rows that a thread of the transaction writes them.
#[test]
fn a_disk_that_fills_up_while_a_large_transaction_is_written_refuses_it_and_loses_nothing() {
    let (fake, mut store, expected) = filled();
    for writes_left in [0, 1, 40, 400] {
        fake.0.writes_left.store(writes_left, SeqCst);
        let refused = fill(&mut store, 81, 2_000);
        assert_eq!(refused, Err(StoreError::Full), "after {writes_left} writes");
        store.reopen().expect("it reopens");
        assert_eq!(state(&store.read().expect("a read")), expected);
        fake.heal();
    }
    fill(&mut store, 81, 2_000).expect("writes recover");
}

#[test]
fn a_reader_from_before_the_reopening_is_never_served_another_state() {
    let fake = Fake::new();
    let mut store = open(&fake);
    fill(&mut store, 1, 80).expect("filled");
    let early = store.read().expect("a read");
    let expected = state(&early);
    store.reopen().expect("it reopens");
    for round in 0..20 {
        fill(&mut store, 100 + 80 * round, 80).expect("filled");
    }
    match everything(&early) {
        Ok(seen) => assert_eq!(seen, expected),
        Err(error) => assert!(error.to_string().contains("begin it anew"), "{error}"),
    }
}

#[test]
fn a_node_starts_on_a_full_disk_and_serves_reads() {
    let (fake, store, expected) = filled();
    drop(store);
    fake.0.writes_left.store(0, SeqCst);
    let mut store = open(&fake);
    assert_eq!(state(&store.read().expect("a read")), expected);
    assert_eq!(store.write().err(), Some(StoreError::Full));
    fake.heal();
    fill(&mut store, 81, 60).expect("writes recover");
}

#[test]
fn a_commit_that_need_not_grow_the_file_takes_one_sync() {
    let fake = Fake::new();
    let mut store = open(&fake);
    fill(&mut store, 1, 100).expect("filled");
    for round in 1..20 {
        let before = fake.0.syncs.load(SeqCst);
        fill(&mut store, 100 * round, 10).expect("filled");
        assert_eq!(fake.0.syncs.load(SeqCst), before + 1);
    }
}

#[test]
fn opening_writes_nothing_before_the_store_is_known_to_be_this_nodes() {
    let fake = Fake::new();
    drop(open(&fake));
    let before = fake.0.writes.load(SeqCst);
    let other = Eid::new([2, 0, 0, 0, 0, 9]);
    let refused = RedbStore::with_backend(fake.clone(), &Options::new(other)).err();
    assert_eq!(refused, Some(StoreError::OtherNode { stored: EID, given: other }));
    assert_eq!(fake.0.writes.load(SeqCst), before);
}

#[test]
fn a_newer_format_is_refused_with_what_to_do() {
    let fake = Fake::new();
    let mut store = open(&fake);
    let writer = store.write().expect("a transaction");
    writer.set(META, FORMAT, Some(&(FORMAT_VERSION + 1).to_be_bytes())).expect("set");
    writer.commit().expect("committed");
    drop(store);
    let refused = RedbStore::with_backend(fake, &options()).err().expect("it is refused");
    assert_eq!(refused, StoreError::NewerFormat { found: FORMAT_VERSION + 1, known: FORMAT_VERSION });
    assert!(refused.to_string().contains("run the newer kinfolk"), "{refused}");
}

#[test]
fn a_second_opening_of_a_directory_names_the_process_that_has_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("new/data");
    let store = RedbStore::open(&data, &options()).expect("it opens");
    let refused = RedbStore::open(&data, &options()).err().expect("it is refused");
    let StoreError::InUse(holder) = &refused else { panic!("{refused}") };
    let pid = std::process::id();
    assert!(holder.starts_with(&format!("process {pid} (")), "{holder}");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&data).expect("it is there"));
    assert_eq!(mode & 0o777, 0o700, "nobody else may read it");

    let reads = store.reads();
    drop(store);
    assert!(matches!(RedbStore::open(&data, &options()), Err(StoreError::InUse(_))), "a read handle is left");
    drop(reads);
    RedbStore::open(&data, &options()).expect("now it is free");
}

#[test]
fn what_is_no_store_is_refused_as_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(FILE_NAME), [7; 10_000]).expect("written");
    let refused = RedbStore::open(dir.path(), &options()).err();
    assert!(matches!(refused, Some(StoreError::Corrupted(_))), "{refused:?}");
}

/// Pages that hold something: a flip elsewhere changes nothing.
fn used_bits(bytes: &[u8]) -> Vec<usize> {
    let used = |page: &[u8]| page.iter().any(|byte| *byte != 0);
    let pages = bytes.chunks(PAGE_BYTES as usize).enumerate().filter(|(_, page)| used(page));
    pages.flat_map(|(at, page)| at * PAGE_BYTES as usize * 8..(at * PAGE_BYTES as usize + page.len()) * 8).collect()
}

#[test]
fn a_flipped_bit_is_never_served() {
    const FLIPS: usize = 300;
    let seed: [u8; 32] = std::array::from_fn(|n| n as u8);
    println!("seed {seed:?}");
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);

    let fake = Fake::new();
    let mut store = open(&fake);
    fill(&mut store, 1, 60).expect("filled");
    fill(&mut store, 61, 60).expect("filled");
    let expected = state(&store.read().expect("a read"));
    drop(store);
    let bits = used_bits(&fake.0.bytes.lock().expect("no panic"));

    let (mut refused, mut unharmed) = (0, 0);
    for _ in 0..FLIPS {
        let bit = bits[rng.next_u64() as usize % bits.len()];
        let damaged = fake.image();
        damaged.0.bytes.lock().expect("no panic")[bit / 8] ^= 1 << (bit % 8);
        match RedbStore::with_backend(damaged, &options()) {
            Err(error) => {
                assert!(matches!(error, StoreError::Corrupted(_)), "bit {bit}: {error}");
                refused += 1;
            }
            Ok(store) => {
                assert_eq!(state(&store.read().expect("a read")), expected, "bit {bit}");
                unharmed += 1;
            }
        }
    }
    println!("{refused} refused, {unharmed} without harm");
    assert!(refused > FLIPS / 4, "only {refused} of {FLIPS}: are the flips in used pages?");
}
