//! Three real processes under random writes and random kill -9 end equal, and owe nothing to any writer.

#![expect(clippy::disallowed_methods, reason = "real processes need the real clock")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kinfolk::cli::demo::acks::{Acks, read_export};
use kinfolk::cli::demo::api::{Api, CallError};
use kinfolk::core::eid::Eid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const OPERATIONS: usize = 10_000;
/// The kills fall among the operations before this one.
const LAST_KILL_BEFORE: usize = 9_500;
const KILLS: usize = 8;
/// How many operations the others do at most while a node is down.
const DOWN_FOR_OPERATIONS: usize = 500;
const WRITERS_PER_NODE: u64 = 6;
const FAMILIES: [(&str, &str); 3] = [("alpha", "global"), ("beta", "global"), ("uni", "unique")];
const TREES: u32 = 6;
const KEYS: u32 = 12;
/// What the issue allows.
const EQUAL_MAX: Duration = Duration::from_secs(10);
const PROGRESS_MAX: Duration = Duration::from_secs(60);

#[test]
fn ten_thousand_random_writes_under_kill_9_end_byte_identical_and_owe_nothing() {
    let seed = common::seed();
    let mut fleet = common::fleet(3, &FAMILIES);
    let began = Instant::now();
    let (done, broken) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (acks, last_write) = std::thread::scope(|scope| {
        let mut writers = Vec::new();
        for node in 0..3 {
            for writer in 0..WRITERS_PER_NODE {
                let rng = StdRng::seed_from_u64(seed ^ (node as u64 * 100 + writer + 1));
                let writer = Writer { api: fleet.api(node), eid: fleet.eid(node), rng, acks: Acks::default() };
                let (done, broken) = (&done, &broken);
                writers.push(scope.spawn(move || writer.run(done, broken)));
            }
        }
        let killed = kill_at_random(&mut fleet, seed, &done);
        broken.store(killed.is_err(), Ordering::Relaxed);
        let mut all = Acks::default();
        let mut last_write = began;
        for writer in writers {
            let (acks, at) = writer.join().expect("a writer does not panic");
            all.add(acks);
            last_write = last_write.max(at);
        }
        killed.expect("nodes are killed and come back");
        (all, last_write)
    });
    let (export, _) = fleet.wait_equal(&[0, 1, 2], EQUAL_MAX).expect("equal exports");
    let converged = last_write.elapsed();
    let records = read_export(&export).expect("an export");
    let tombstones = records.values().filter(|record| record.value.is_none()).count();
    eprintln!(
        "{} acknowledged, {} unanswered, {KILLS} kills, {:.1} s; equal {} ms after the last write: {} records, {tombstones} tombstones",
        acks.count(),
        acks.count_unanswered(),
        began.elapsed().as_secs_f64(),
        converged.as_millis(),
        records.len(),
    );
    assert!(converged <= EQUAL_MAX, "equal only {converged:?} after the last write");
    let faults = acks.faults(&records);
    assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(10)]);
}

fn kill_at_random(fleet: &mut common::TestFleet, seed: u64, done: &AtomicUsize) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let at_least = |wanted: usize| move || (done.load(Ordering::Relaxed) >= wanted).then_some(());
    for kill in 0..KILLS {
        let slice = LAST_KILL_BEFORE / KILLS;
        let at = kill * slice + rng.random_range(0..slice - DOWN_FOR_OPERATIONS);
        let (node, down_for) = (rng.random_range(0..3), rng.random_range(0..DOWN_FOR_OPERATIONS));
        fleet.wait_for("writes", PROGRESS_MAX, at_least(at)).map_err(|error| error.to_string())?;
        fleet.kill_9(node).map_err(|error| error.to_string())?;
        let killed_at = done.load(Ordering::Relaxed);
        fleet.wait_for("writes", PROGRESS_MAX, at_least(killed_at + down_for)).map_err(|error| error.to_string())?;
        fleet.restart(node).map_err(|error| error.to_string())?;
    }
    Ok(())
}

struct Writer {
    api: Api,
    eid: Eid,
    rng: StdRng,
    acks: Acks,
}

impl Writer {
    /// Writes until all operations are done; gives what it knows of its writes, and when the last one ended.
    fn run(mut self, done: &AtomicUsize, broken: &AtomicBool) -> (Acks, Instant) {
        let mut last = Instant::now();
        while done.load(Ordering::Relaxed) < OPERATIONS && !broken.load(Ordering::Relaxed) {
            match self.write() {
                Ok(()) => {
                    done.fetch_add(1, Ordering::Relaxed);
                    last = Instant::now();
                }
                // The node is down: nothing was done. It is asked again until it is back.
                Err(CallError::NotSent(_)) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => panic!("node {} refused: {error}", self.eid),
            }
        }
        (self.acks, last)
    }

    /// One random operation. Sent but not answered counts as done.
    fn write(&mut self) -> Result<(), CallError> {
        let (family, mode) = FAMILIES[self.rng.random_range(0..FAMILIES.len())];
        let tree = format!("/{family}/t{}", self.rng.random_range(0..TREES));
        let path = format!("{tree}/k{}", self.rng.random_range(0..KEYS));
        let key = ((mode == "unique").then_some(self.eid), path.clone());
        match self.rng.random_range(0..100) {
            0..70 => {
                let value = format!("{:x}", self.rng.random::<u64>());
                match self.api.put(&path, &value) {
                    Ok(stamp) => self.acks.acknowledged(key, Some(value), stamp),
                    Err(CallError::NoAnswer { .. }) => self.acks.unanswered(key, Some(value), self.eid),
                    Err(error) => return Err(error),
                }
            }
            70..97 => match self.api.delete(&path) {
                Ok(Some(stamp)) => self.acks.acknowledged(key, None, stamp),
                Ok(None) => {}
                Err(CallError::NoAnswer { .. }) => self.acks.unanswered(key, None, self.eid),
                Err(error) => return Err(error),
            },
            _ => {
                // A count is all that comes back: its tombstones are known by their node and place.
                self.acks.tree_deleted(&tree, self.eid);
                match self.api.delete_tree(&tree) {
                    Ok(_) | Err(CallError::NoAnswer { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}
