//! Many seeds, one after another on each thread; and the table of planted faults.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::coverage::Coverage;
use crate::draw;
use crate::run::{Outcome, run};

/// How a swarm is run.
pub struct Swarm<'a> {
    pub first_seed: u64,
    pub seeds: u64,
    pub threads: usize,
    /// Whether purge floors rise in every run.
    pub purging: bool,
    /// Asked between two seeds: enough time spent?
    pub enough: &'a (dyn Fn() -> bool + Sync),
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// What a swarm found.
pub struct Found {
    pub coverage: Coverage,
    /// Mixed from the traces of all runs, in whatever order they ended.
    pub trace: u64,
    /// The failed runs, the least seed first.
    pub failures: Vec<Outcome>,
}

impl Swarm<'_> {
    /// Runs the seeds until they are through, the time is up, or one has failed.
    pub fn run(&self) -> Found {
        let next = AtomicU64::new(self.first_seed);
        let stop = AtomicBool::new(false);
        let found = Mutex::new(Found { coverage: Coverage::default(), trace: 0, failures: Vec::new() });
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let over = seed - self.first_seed >= self.seeds || stop.load(Ordering::Relaxed);
                        if over || (self.enough)() {
                            break;
                        }
                        let mut outcome = run(draw::history(seed, self.purging), false, &mut |_| {});
                        outcome.world = None;
                        let mut found = found.lock().expect("no thread panics with it");
                        found.coverage.add(&outcome);
                        found.trace ^= crate::rng::mix(outcome.trace ^ crate::rng::mix(seed));
                        (self.progress)(found.coverage.runs);
                        if outcome.violation.is_some() {
                            stop.store(true, Ordering::Relaxed);
                            found.failures.push(outcome);
                        }
                    }
                });
            }
        });
        let mut found = found.into_inner().expect("all threads have ended");
        found.failures.sort_by_key(|outcome| outcome.seed);
        found
    }
}

/// How long each planted fault may live: each is found within 60 s of a core that has nothing else to do, and CI has busier ones.
pub const MUTANT_TIME: Duration = Duration::from_secs(120);

#[cfg(feature = "mutants")]
pub mod mutants {
    //! Every planted fault, one at a time, against the world that it is planted in, on one core.

    use kinfolk::core::mutants::Mutant;

    use super::*;
    use crate::edge;
    use crate::history::VerifyMode;

    /// What these lose, a verify repairs before it is seen: they are hunted without.
    const REPAIRED: [Mutant; 4] =
        [Mutant::BatchEndSkipsRecord, Mutant::FetchedNotFar, Mutant::ModeIgnored, Mutant::SinceIgnored];

    /// What belongs to purge floors is hunted where these rise in every run.
    const OF_FLOORS: [Mutant; 5] = [
        Mutant::LowerFloorStays,
        Mutant::NobodyDoubts,
        Mutant::OldImportTaken,
        Mutant::PromiseNotKept,
        Mutant::QuarantineForgets,
    ];

    /// One row of the table.
    pub struct Row {
        pub name: &'static str,
        pub what: &'static str,
        /// The check that found it, the seed, and how many seeds were run.
        pub found: Option<(&'static str, u64, u64)>,
    }

    /// Runs seeds against one planted fault until a check finds it or `enough`.
    pub fn hunt(mutant: Mutant, name: &'static str, what: &'static str, enough: &dyn Fn() -> bool) -> Row {
        Mutant::activate(Some(mutant));
        let mut found = None;
        let mut runs = 0;
        while found.is_none() && !enough() {
            runs += 1;
            let violation = match edge::MUTANTS.contains(&mutant) {
                true => edge::run(edge::history::draw(runs)).violation,
                false => {
                    let mut history = draw::history(runs, OF_FLOORS.contains(&mutant));
                    if REPAIRED.contains(&mutant) {
                        history.verify.mode = VerifyMode::Off;
                    }
                    run(history, false, &mut |_| {}).violation
                }
            };
            found = violation.map(|violation| (violation.check.name(), runs, runs));
        }
        Mutant::activate(None);
        Row { name, what, found }
    }

    /// The table as it is kept in the repository.
    pub fn table(rows: &[Row]) -> String {
        let names: Vec<String> = REPAIRED.iter().map(|mutant| format!("`{mutant:?}`")).collect();
        let repaired = names.join(", ");
        let mut text = format!(
            "# Planted faults and what finds them\n\n\
             Made by `cargo run --release -p simulations --features mutants -- --mutants`: one build, each fault switched on \
             at run time\nand hunted with the mixed swarm, with `--purging` if it is one of the purge floors', or with the \
             edge world if it is\nthe adapter's, from seed 1 on one core, for at most 120 s. What a verify repairs before it \
             is seen is hunted with\n`--verify off`: {repaired}. A fault\nthat lives is a missing check, and the command \
             fails.\n\n\
             | fault | what it does | found by the check | at seed |\n| --- | --- | --- | --- |\n",
        );
        for row in rows {
            let (check, seed) = match row.found {
                Some((check, seed, _)) => (check.to_owned(), seed.to_string()),
                None => ("**lives**".to_owned(), "–".to_owned()),
            };
            text += &format!("| {} | {} | {check} | {seed} |\n", row.name, row.what);
        }
        text += &format!("\n{} faults, {} found.\n", rows.len(), rows.iter().filter(|row| row.found.is_some()).count());
        text
    }
}
