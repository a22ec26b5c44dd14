//! What the tests of the real binary share: fleets whose logs are shown when a test fails, and the seed.

#![allow(dead_code, reason = "each test uses a part")]

pub mod netns;
pub mod patched;
pub mod peer;
pub mod wan;

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use kinfolk::cli::demo::fleet::{Fleet, Plan};

/// The bound of waits that a working cluster is far below.
pub const SOON: Duration = Duration::from_secs(20);

pub const BINARY: &str = env!("CARGO_BIN_EXE_kinfolk");

/// A fleet that shows the ends of its logs if the test fails.
pub struct TestFleet(Fleet);

impl Deref for TestFleet {
    type Target = Fleet;
    fn deref(&self) -> &Fleet {
        &self.0
    }
}

impl DerefMut for TestFleet {
    fn deref_mut(&mut self) -> &mut Fleet {
        &mut self.0
    }
}

impl Drop for TestFleet {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in 0..self.0.count() {
            eprintln!("---- log of node {} ----\n{}", self.0.eid(node), self.0.log_tail(node));
        }
        if std::env::var_os("KINFOLK_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.0.keep().display());
        }
    }
}

/// KINFOLK_TEST_BINARY tries another build of the program than the one that the tests came with.
pub fn plan(count: u8, shared: &[(&str, &str)]) -> Plan {
    let binary = std::env::var("KINFOLK_TEST_BINARY");
    Plan::new(binary.unwrap_or_else(|_| BINARY.into()), count, shared)
}

/// A running fleet.
pub fn start(plan: Plan) -> TestFleet {
    TestFleet(Fleet::start(plan).expect("the fleet starts"))
}

/// A fleet of which no node runs yet.
pub fn prepare(plan: Plan) -> TestFleet {
    TestFleet(Fleet::prepare(plan, Default::default()).expect("the fleet is prepared"))
}

/// Nodes that share the same families, running.
pub fn fleet(count: u8, shared: &[(&str, &str)]) -> TestFleet {
    start(plan(count, shared))
}

/// The seed of this run, printed; KINFOLK_TEST_SEED sets it.
pub fn seed() -> u64 {
    let given = std::env::var("KINFOLK_TEST_SEED").ok();
    #[expect(clippy::disallowed_methods, reason = "a new seed for each run; it is printed")]
    let seed = given.map_or_else(rand::random, |text| text.parse().expect("KINFOLK_TEST_SEED is a number"));
    eprintln!("seed: {seed} (again with KINFOLK_TEST_SEED={seed})");
    seed
}

/// A number drawn afresh.
pub fn random() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "ports and identifiers that other tests do not use")]
    rand::random()
}

/// Keeps a node's disk as it is now. The node must not run.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
