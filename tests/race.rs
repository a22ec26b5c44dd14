//! The race that servers with the patch of 2015 lose: after it they stay different.

mod common;

use std::sync::Barrier;

use kinfolk::cli::demo::acks::{Acks, read_export};

const ROUNDS: usize = 1_000;

#[test]
fn two_nodes_that_put_different_values_to_one_key_at_once_never_differ_after_it() {
    let fleet = common::fleet(2, &[("race", "global")]);
    let barrier = Barrier::new(2);
    let stamps: Vec<Vec<_>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|node| {
                let (api, barrier) = (fleet.api(node), &barrier);
                scope.spawn(move || {
                    let put = |round| {
                        barrier.wait();
                        api.put(&format!("/race/{round}"), &format!("round {round} node {node}")).expect("written")
                    };
                    (0..ROUNDS).map(put).collect::<Vec<_>>()
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer does not panic")).collect()
    });
    let (export, took) = fleet.wait_equal(&[0, 1], common::SOON).expect("0 rounds differ");
    let mut acks = Acks::default();
    for (node, stamps) in stamps.iter().enumerate() {
        for (round, stamp) in stamps.iter().enumerate() {
            acks.acknowledged((None, format!("/race/{round}")), Some(format!("round {round} node {node}")), *stamp);
        }
    }
    let export = read_export(&export).expect("an export");
    assert_eq!(acks.faults(&export), [""; 0]);
    assert_eq!(export.len(), ROUNDS);
    let apart_ms = |round: usize| stamps[0][round].hlc.unix_ms().abs_diff(stamps[1][round].hlc.unix_ms());
    let within = |ms: u64| (0..ROUNDS).filter(|round| apart_ms(*round) <= ms).count();
    let won_by_first = (0..ROUNDS).filter(|round| stamps[0][*round] > stamps[1][*round]).count();
    eprintln!(
        "{ROUNDS} rounds, 0 differ {} ms after the last; stamps within 1 ms in {}, within 5 ms in {}; won by the first in {won_by_first}",
        took.as_millis(),
        within(1),
        within(5),
    );
    assert!(within(5) > ROUNDS / 10, "the rounds did not race");
}
