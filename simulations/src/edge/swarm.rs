//! Many seeds on many threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Stats, history, run};
use crate::check::Violation;
use crate::rng::mix;

/// What a swarm of the edge world found.
#[derive(Default)]
pub struct Found {
    pub runs: u64,
    pub stats: Stats,
    /// The least seed that failed.
    pub failure: Option<(u64, Violation)>,
    pub trace: u64,
}

/// Runs seeds one after another on each thread, until one fails or `enough`.
pub fn swarm(
    first: u64,
    seeds: u64,
    threads: usize,
    enough: &(dyn Fn() -> bool + Sync),
    progress: &(dyn Fn(u64) + Sync),
) -> Found {
    let (next, found) = (AtomicU64::new(first), Mutex::new(Found::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let failed = found.lock().expect("no thread panics with it").failure.is_some();
                    if seed - first >= seeds || failed || enough() {
                        return;
                    }
                    let ran = run(history::draw(seed));
                    let mut found = found.lock().expect("no thread panics with it");
                    found.runs += 1;
                    found.trace ^= mix(ran.trace ^ mix(seed));
                    found.stats.add(ran.stats);
                    progress(found.runs);
                    if let Some(violation) = ran.violation
                        && found.failure.as_ref().is_none_or(|(least, _)| seed < *least)
                    {
                        found.failure = Some((seed, violation));
                    }
                }
            });
        }
    });
    found.into_inner().expect("all threads have ended")
}
