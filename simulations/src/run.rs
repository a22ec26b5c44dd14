//! One run of one history, and what is told of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::check::{Check, Violation};
use crate::clock::Us;
use crate::history::History;
use crate::judge::Branches;
use crate::world::{Stats, World};

/// What came of a run.
pub struct Outcome {
    pub seed: u64,
    pub trace: u64,
    pub virtual_us: Us,
    pub stats: Stats,
    pub branches: Branches,
    pub frames: u64,
    pub bytes: u64,
    pub violation: Option<Violation>,
    /// The world as the run left it; gone when the program itself panicked.
    pub world: Option<World>,
}

/// Runs a history to its end. A panic of the core is a violation like any other.
pub fn run(history: History, curve: bool, watch: &mut dyn FnMut(&World)) -> Outcome {
    let seed = history.seed;
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(history);
        world.record_curve = curve;
        let violation = world.run(watch).err();
        (world, violation)
    }));
    match done {
        Ok((world, violation)) => Outcome {
            seed,
            trace: world.trace(),
            virtual_us: world.now,
            stats: world.stats.clone(),
            branches: world.branches,
            frames: world.net.frames,
            bytes: world.net.bytes.iter().sum(),
            violation,
            world: Some(world),
        },
        Err(panic) => Outcome {
            seed,
            trace: 0,
            virtual_us: 0,
            stats: Stats::default(),
            branches: Branches::default(),
            frames: 0,
            bytes: 0,
            violation: Some(Violation { check: Check::NoPanic, what: text_of(panic.as_ref()) }),
            world: None,
        },
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text").to_owned()
}
