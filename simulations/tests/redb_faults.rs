//! The real store under the real replica, on a disk that loses and tears what was not synced, fills up, fails
//! to sync, and flips bits. The seed is printed; the same seed breaks the same disk in the same way.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use kinfolk::core::clock::Stamp;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::path::{BOOKS_FAMILY, Family, Path, Value};
use kinfolk::core::replica::{Input, Outcome, Replica, Settings};
use kinfolk::core::storage::{Read, Run, Span, StoreError};
use kinfolk::store::redb::{Options, RedbStore};
use redb::StorageBackend;
use simulations::rng::Rng;

const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);
const CYCLES: u64 = 120;
const KEYS: u64 = 12;
const START_UNIX_MS: u64 = 1_790_000_000_000;

/// How the disk refuses, while it does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    /// Nothing beyond what is written already finds room.
    Full,
    SyncFails,
    /// The power goes before this many more writes.
    DiesAfter(u64),
}

enum Op {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Op {
    /// Its first `torn` bytes, or all of it.
    fn do_to(&self, image: &mut Vec<u8>, torn: Option<usize>) {
        match self {
            Op::SetLen(len) => image.resize(*len, 0),
            Op::Write { offset, bytes } => {
                let bytes = &bytes[..torn.unwrap_or(bytes.len())];
                let end = offset + bytes.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[*offset..end].copy_from_slice(bytes);
            }
        }
    }
}

struct State {
    /// What has survived for certain.
    synced: Vec<u8>,
    /// What a read sees.
    seen: Vec<u8>,
    since_sync: Vec<Op>,
    mood: Mood,
}

#[derive(Clone)]
struct FaultyDisk(Arc<Mutex<State>>);

impl std::fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultyDisk")
    }
}

impl FaultyDisk {
    fn new(image: Vec<u8>) -> Self {
        let state = State { synced: image.clone(), seen: image, since_sync: Vec::new(), mood: Mood::Well };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    /// What the power cut leaves: any part of what was not synced, some of it torn. What truncates is kept in
    /// its place, as a file system's journal does.
    fn after_power_cut(&self, rng: &mut Rng) -> Vec<u8> {
        let state = self.state();
        let mut image = state.synced.clone();
        let survive_per_mille = *rng.pick(&[0, 100, 500, 900, 1_000]);
        for op in &state.since_sync {
            if let Op::Write { bytes, .. } = op {
                if !rng.chance(survive_per_mille) {
                    continue;
                }
                let torn = rng.chance(100).then(|| rng.index(bytes.len() + 1));
                op.do_to(&mut image, torn);
            } else {
                op.do_to(&mut image, None);
            }
        }
        image
    }

    fn change(&self, op: Op) -> io::Result<()> {
        let mut state = self.state();
        let grows = match &op {
            Op::SetLen(len) => *len > state.seen.len(),
            Op::Write { offset, bytes } => offset + bytes.len() > state.seen.len(),
        };
        match state.mood {
            Mood::Full if grows => return Err(io::ErrorKind::StorageFull.into()),
            Mood::DiesAfter(0) => return Err(io::Error::other("the power is gone")),
            Mood::DiesAfter(left) => state.mood = Mood::DiesAfter(left - 1),
            _ => {}
        }
        op.do_to(&mut state.seen, None);
        state.since_sync.push(op);
        Ok(())
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let found = state.seen.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        match state.mood {
            Mood::SyncFails => return Err(io::Error::other("the cable is out")),
            Mood::DiesAfter(0) => return Err(io::Error::other("the power is gone")),
            _ => {}
        }
        state.synced = state.seen.clone();
        state.since_sync.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Op::Write { offset: offset as usize, bytes: data.to_vec() })
    }
}

fn path(key: u64) -> Path {
    Path::of("foo", &format!("k{key}")).expect("a path")
}

fn open(disk: &FaultyDisk, run: u64, now: u64) -> Result<Replica<RedbStore>, StoreError> {
    let options = Options { cache_bytes: 256 * 1024, eid: EID };
    let store = RedbStore::with_backend(disk.clone(), &options)?;
    Replica::open(store, Settings::new(EID), Run(run), now)
}

/// Stamp and value of every record.
type Content = BTreeMap<Path, (Stamp, Option<String>)>;

fn content(replica: &Replica<RedbStore>) -> Result<Content, StoreError> {
    let mut content = Content::new();
    replica.read()?.scan(Span::All, &mut |(key, stored)| {
        // What the node enters in the books by itself is no client's.
        if key.path.top() == BOOKS_FAMILY {
            return ControlFlow::Continue(());
        }
        let value = stored.register.value().map(|value| value.as_str().to_owned());
        content.insert(key.path, (stored.register.stamp(), value));
        ControlFlow::Continue(())
    })?;
    Ok(content)
}

/// What clients were told, and what they were not told yet.
#[derive(Default)]
struct Clients {
    acknowledged: Content,
    head: u64,
    /// Values of batches that failed since the last crash, by path: they may have landed or not.
    unanswered: BTreeMap<Path, Vec<Option<String>>>,
    stamps: BTreeMap<Path, Stamp>,
    values: u64,
}

impl Clients {
    /// Some writes and deletes in one batch, and what they would leave.
    fn batch(&mut self, rng: &mut Rng) -> (Vec<Input>, Vec<(Path, Option<String>)>) {
        let mut wanted = Vec::new();
        for _ in 0..rng.between(1, 6) {
            self.values += 1;
            let filler = "x".repeat(*rng.pick(&[0, 10, 3_000, 30_000]));
            let value = rng.chance(850).then(|| format!("w{}.{filler}", self.values));
            wanted.push((path(rng.below(KEYS)), value));
        }
        let input = |(path, value): &(Path, Option<String>)| match value {
            Some(text) => Input::Put { path: path.clone(), value: Value::new(text).expect("a value") },
            None => Input::Delete { path: path.clone() },
        };
        (wanted.iter().map(input).collect(), wanted)
    }

    fn answered(&mut self, wanted: Vec<(Path, Option<String>)>, outcomes: &[Outcome], head: u64) {
        for ((path, value), outcome) in wanted.into_iter().zip(outcomes) {
            if let Outcome::Written { stamp, .. } = outcome {
                let before = self.stamps.insert(path.clone(), *stamp);
                assert!(before.is_none_or(|before| before < *stamp), "{path}: {stamp} was given after {before:?}");
                self.acknowledged.insert(path, (*stamp, value));
            }
        }
        assert!(head >= self.head, "the head went from {} back to {head}", self.head);
        self.head = head;
    }

    /// Looks at a store that was opened again, and counts what has landed though nobody was told.
    fn check(&mut self, found: &Content, head: u64) -> u64 {
        assert!(head >= self.head, "head {head} after {} was acknowledged", self.head);
        for (path, (stamp, value)) in &self.acknowledged {
            let there = found.get(path);
            assert!(there.is_some_and(|there| there.0 >= *stamp), "{path} with {stamp} is gone, there is {there:?}");
            if there.is_some_and(|there| there.0 == *stamp) {
                assert_eq!(there.map(|there| &there.1), Some(value), "{path} has another value");
            }
        }
        let mut landed = 0;
        for (path, (stamp, value)) in found {
            if self.acknowledged.get(path).is_some_and(|known| known.0 == *stamp) {
                continue;
            }
            let tried = self.unanswered.get(path).is_some_and(|values| values.contains(value));
            assert!(tried, "{path} holds {stamp}, which nobody wrote");
            landed += 1;
            self.stamps.insert(path.clone(), *stamp);
            self.acknowledged.insert(path.clone(), (*stamp, value.clone()));
        }
        self.unanswered.clear();
        self.head = head;
        landed
    }
}

/// What happened: a run in which a fault never did is not worth much.
#[derive(Debug, Default)]
struct Seen {
    lost_something: u64,
    full: u64,
    sync_failed: u64,
    died_in_commit: u64,
    landed_unanswered: u64,
}

fn share(replica: &mut Replica<RedbStore>, now: u64) {
    let family = Family::new("foo").expect("a family");
    let shared = replica.handle(vec![Input::Share { family, mode: Mode::Global }], now);
    assert_eq!(shared.expect("the disk is well").outcomes, [Outcome::Shared]);
}

#[test]
fn what_was_acknowledged_outlives_power_cuts_full_disks_and_failing_syncs() {
    let mut seen = Seen::default();
    for seed in [1, 2] {
        println!("seed: {seed}");
        crash_again_and_again(seed, &mut seen);
    }
    println!("{seen:?}");
    let Seen { lost_something, full, sync_failed, died_in_commit, .. } = seen;
    assert!([lost_something, full, sync_failed, died_in_commit].iter().all(|count| *count > 0), "{seen:?}");
}

fn crash_again_and_again(seed: u64, seen: &mut Seen) {
    let mut rng = Rng::new(seed);
    let mut disk = FaultyDisk::new(Vec::new());
    let mut clients = Clients::default();
    let mut now = START_UNIX_MS;
    for cycle in 1..=CYCLES {
        // A restart finds the clock a little back, now and then.
        now = now + rng.below(2_000) - if rng.chance(200) { 900 } else { 0 };
        let mut replica = open(&disk, cycle, now)
            .unwrap_or_else(|error| panic!("seed {seed}, cycle {cycle}: it does not open: {error}"));
        let found = content(&replica).expect("the disk is well");
        seen.landed_unanswered += clients.check(&found, replica.ledger().head);
        if cycle == 1 {
            share(&mut replica, now);
            clients.head = replica.ledger().head;
        }
        for _ in 0..rng.between(1, 8) {
            now += rng.below(20);
            let mood = match rng.below(10) {
                0..=2 => Mood::Full,
                3 => Mood::SyncFails,
                4 => Mood::DiesAfter(rng.below(30)),
                _ => Mood::Well,
            };
            let (inputs, wanted) = clients.batch(&mut rng);
            disk.state().mood = mood;
            let result = replica.handle(inputs, now);
            let dead = disk.state().mood == Mood::DiesAfter(0);
            match result {
                Ok(committed) => clients.answered(wanted, &committed.outcomes, replica.ledger().head),
                Err(error) => {
                    assert_ne!(mood, Mood::Well, "seed {seed}, cycle {cycle}: a disk that is well failed: {error}");
                    for (path, value) in wanted {
                        clients.unanswered.entry(path).or_default().push(value);
                    }
                    seen.full += u64::from(mood == Mood::Full);
                    seen.sync_failed += u64::from(mood == Mood::SyncFails);
                    seen.died_in_commit += u64::from(dead);
                }
            }
            if dead {
                break;
            }
            disk.state().mood = Mood::Well;
        }
        seen.lost_something += u64::from(!disk.state().since_sync.is_empty());
        // The power is cut before the program can close anything.
        let image = disk.after_power_cut(&mut rng);
        drop(replica);
        disk = FaultyDisk::new(image);
    }
}

#[test]
fn a_flipped_bit_is_refused_or_changes_nothing() {
    let seed = 3;
    println!("seed: {seed}");
    let mut rng = Rng::new(seed);
    let disk = FaultyDisk::new(Vec::new());
    let mut clients = Clients::default();
    let mut replica = open(&disk, 1, START_UNIX_MS).expect("the disk is well");
    share(&mut replica, START_UNIX_MS);
    for _ in 0..20 {
        let (inputs, _) = clients.batch(&mut rng);
        replica.handle(inputs, START_UNIX_MS).expect("the disk is well");
    }
    let before = content(&replica).expect("the disk is well");
    drop(replica);
    let good = disk.state().seen.clone();
    let (mut refused, mut equal) = (0, 0);
    for _ in 0..60 {
        let mut image = good.clone();
        let at = rng.index(image.len());
        image[at] ^= 1 << rng.below(8);
        let reread = open(&FaultyDisk::new(image), 2, START_UNIX_MS).and_then(|replica| content(&replica));
        match reread {
            Ok(found) => {
                assert_eq!(found, before, "seed {seed}: a flipped bit in byte {at} changed what is read");
                equal += 1;
            }
            Err(StoreError::Corrupted(_)) => refused += 1,
            Err(other) => panic!("seed {seed}: a flipped bit in byte {at}: {other}"),
        }
    }
    println!("refused {refused}, equal {equal}");
    assert!(refused > 0, "no flip met anything that counts");
}
