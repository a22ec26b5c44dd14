//! What is lost between sites is fetched from a relay nearby: real processes in network namespaces, lines that lose a third.

#![expect(clippy::disallowed_methods, reason = "real processes need the real clock")]

mod common;

use std::time::{Duration, Instant};

use common::netns::{self, Network};
use common::wan::Wan;

/// One node each.
const SITES: [usize; 5] = [0, 1, 2, 3, 4];
const DELAY: Duration = Duration::from_millis(30);
const LOSS: f64 = 0.33;
const WRITES_MAX: usize = 400;
const SOON: Duration = Duration::from_secs(120);

#[test]
fn what_lines_that_lose_a_third_have_lost_is_fetched_from_a_relay_nearby_and_all_end_equal() {
    if !netns::available() {
        return;
    }
    let seed = common::seed();
    let network = Network::new(&SITES);
    let wan = Wan::start(&network, DELAY, LOSS, seed);
    let fleet = netns::start(&network, common::plan(5, &[("foo", "global")]));
    let all: Vec<usize> = (0..SITES.len()).collect();
    fleet.api(0).put("/foo/first", "x").expect("written");
    fleet.wait_equal(&all, SOON).expect("equal at first");

    let began = Instant::now();
    let fetched = || -> f64 {
        let of = |node: &usize| fleet.api(*node).metric("kinfolk_wan_fetched_nearby_records_total", "").unwrap_or(0.0);
        all.iter().map(of).sum()
    };
    let mut written = 0;
    while written < WRITES_MAX && (written < 40 || fetched() == 0.0) {
        fleet.api(written % SITES.len()).put(&format!("/foo/{written}"), "a value").expect("written");
        written += 1;
        // Apart, so that each is a frame of its own.
        std::thread::sleep(Duration::from_millis(100));
    }
    fleet.wait_equal(&all, SOON).expect("equal in the end");
    let (fetched, copies) = (fetched(), written * (SITES.len() - 1));
    eprintln!(
        "{written} writes in {:.0} s: {fetched} of {copies} copies were fetched nearby",
        began.elapsed().as_secs_f64()
    );
    assert!(fetched > 0.0, "a third is lost, and some of that nearby came first");
    drop(fleet);
    drop(wan);
}
