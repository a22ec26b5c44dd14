//! A cluster whose nodes are stopped and started one after the other, as an upgrade does it, under writes.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use kinfolk::cli::demo::acks::{Acks, read_export};
use kinfolk::cli::demo::api::CallError;

use common::SOON;

/// Rounds over all nodes.
const ROUNDS: usize = 2;

#[test]
fn nodes_that_are_restarted_in_turn_lose_no_acknowledged_write_and_the_others_take_writes_all_the_time() {
    let mut fleet = common::fleet(3, &[("foo", "global"), ("uni", "unique")]);
    let done = AtomicBool::new(false);
    let acks = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|node| {
                let (api, eid, done) = (fleet.api(node), fleet.eid(node), &done);
                scope.spawn(move || {
                    let (mut acks, mut written, mut down) = (Acks::default(), 0_u64, 0_u64);
                    while !done.load(Ordering::Relaxed) {
                        let family = if written.is_multiple_of(3) { "uni" } else { "foo" };
                        let path = format!("/{family}/{}", written % 50);
                        let (owner, value) = ((family == "uni").then_some(eid), format!("{node}-{written}"));
                        match api.put(&path, &value) {
                            Ok(stamp) => {
                                acks.acknowledged((owner, path), Some(value), stamp);
                                written += 1;
                            }
                            Err(CallError::NotSent(_)) => down += 1,
                            Err(_) => {
                                acks.unanswered((owner, path), Some(value), eid);
                                written += 1;
                            }
                        }
                    }
                    (acks, written, down)
                })
            })
            .collect();
        let mut restarts = Ok(());
        'rounds: for _ in 0..ROUNDS {
            for node in 0..3 {
                restarts = fleet.stop(node).map(|_| ()).and_then(|()| fleet.restart(node));
                if restarts.is_err() {
                    break 'rounds;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        let mut all = Acks::default();
        for writer in writers {
            let (acks, written, down) = writer.join().expect("a writer does not panic");
            eprintln!("{written} writes, {down} attempts while the node was down");
            assert!(written > 0);
            all.add(acks);
        }
        restarts.expect("every node stops and starts");
        all
    });
    let (export, took) = fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
    assert_eq!(acks.faults(&read_export(&export).expect("an export")), [""; 0]);
    eprintln!("equal {} ms after the last write", took.as_millis());
}
