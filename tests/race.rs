//! The race that servers with the patch of 2015 lose: after it they stay different.

mod common;

use std::sync::{Barrier, Mutex};

use kinfolk::cli::demo::acks::{Acks, read_export};
use kinfolk::core::clock::Stamp;

/// Rounds in which both writes happened within [`CLOSE_MS`] of each other, by their stamps.
const CLOSE_ROUNDS: usize = 1_000;
const CLOSE_MS: u64 = 1;
/// Rounds at most, close or not.
const ROUNDS_MAX: usize = 20_000;

/// The stamps of the two writes of one round.
type Round = [Stamp; 2];

fn is_close(round: &Round) -> bool {
    round[0].hlc.unix_ms().abs_diff(round[1].hlc.unix_ms()) <= CLOSE_MS
}

fn value(round: usize, node: usize) -> String {
    format!("round {round} node {node}")
}

/// Lets two nodes write each key at the same moment, until enough rounds were close.
fn race(fleet: &kinfolk::cli::demo::fleet::Fleet) -> Vec<Round> {
    let barrier = Barrier::new(2);
    let stamps = Mutex::new([const { Vec::new() }; 2]);
    let rounds = || -> Vec<Round> {
        let [first, second] = &*stamps.lock().expect("no writer panicked");
        first.iter().copied().zip(second.iter().copied()).map(|(a, b)| [a, b]).collect()
    };
    std::thread::scope(|scope| {
        for node in 0..2 {
            let (api, barrier, stamps, rounds) = (fleet.api(node), &barrier, &stamps, &rounds);
            scope.spawn(move || {
                for round in 0..ROUNDS_MAX {
                    barrier.wait();
                    let stamp = api.put(&format!("/race/{round}"), &value(round, node)).expect("written");
                    stamps.lock().expect("no writer panicked")[node].push(stamp);
                    barrier.wait();
                    // Both see the same rounds here, so both end together.
                    if rounds().iter().filter(|round| is_close(round)).count() == CLOSE_ROUNDS {
                        return;
                    }
                }
            });
        }
    });
    rounds()
}

#[test]
fn two_nodes_that_put_different_values_to_one_key_within_a_millisecond_never_differ_after_it() {
    let fleet = common::fleet(2, &[("race", "global")]);
    let rounds = race(&fleet);
    let (export, took) = fleet.wait_equal(&[0, 1], common::SOON).expect("0 rounds differ");
    let mut acks = Acks::default();
    for (round, stamps) in rounds.iter().enumerate() {
        for (node, stamp) in stamps.iter().enumerate() {
            acks.acknowledged((None, format!("/race/{round}")), Some(value(round, node)), *stamp);
        }
    }
    let export = read_export(&export).expect("an export");
    assert_eq!(acks.faults(&export), [""; 0]);
    assert_eq!(export.len(), rounds.len());
    let close = rounds.iter().filter(|round| is_close(round)).count();
    let won_by_first = rounds.iter().filter(|[first, second]| first > second).count();
    eprintln!(
        "{} rounds, {close} of them within {CLOSE_MS} ms, 0 differ {} ms after the last; won by the first in {won_by_first}",
        rounds.len(),
        took.as_millis()
    );
    assert_eq!(close, CLOSE_ROUNDS, "the rounds did not race");
}
