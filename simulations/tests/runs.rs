//! The simulator as it runs in every build: a short swarm, determinism, the included scenarios, and every
//! seed that ever found a fault.

use simulations::draw;
use simulations::history::History;
use simulations::run::{Outcome, run};
use simulations::scenario;
use simulations::spread::Told;

fn outcome(history: History) -> Outcome {
    run(history, false, &mut |_| {})
}

fn holds(name: &str, outcome: &Outcome) {
    if let Some(violation) = &outcome.violation {
        panic!("{name}: {violation}\nreplay: cargo run --release -p simulations -- --seed {}", outcome.seed);
    }
}

#[test]
fn the_first_seeds_of_the_mixed_swarm_hold_every_check() {
    for seed in 1..=60 {
        holds("mixed", &outcome(draw::mixed(seed)));
        holds("purging", &outcome(draw::purging(seed)));
    }
}

#[test]
fn a_seed_run_twice_is_the_same_run_to_the_last_bit() {
    for seed in 1..=25 {
        let (first, second) = (outcome(draw::mixed(seed)), outcome(draw::mixed(seed)));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!((first.bytes, first.stats.events), (second.bytes, second.stats.events), "seed {seed}");
    }
}

#[test]
fn two_seeds_are_two_runs() {
    assert_ne!(outcome(draw::mixed(1)).trace, outcome(draw::mixed(2)).trace);
}

#[test]
fn every_included_scenario_holds_every_check() {
    // The largest are run by hand: their figures stand in the README.
    for (name, text) in scenario::INCLUDED.iter().filter(|(name, _)| {
        let by_hand = ["thousand", "ten-sites", "hundred-sites", "site-cut-off"];
        !by_hand.iter().any(|large| name.starts_with(large))
    }) {
        let history = scenario::read(text, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        holds(name, &outcome(history));
    }
    for (name, text) in scenario::INCLUDED {
        assert!(scenario::read(text, Some(7)).is_ok_and(|history| history.seed == 7), "{name}");
    }
}

#[test]
fn a_relay_that_comes_and_goes_costs_hardly_a_copy_more() {
    let (_, text) = scenario::INCLUDED.iter().find(|(name, _)| *name == "flapping-relay").expect("it is included");
    let outcome = outcome(scenario::read(text, None).expect("a scenario"));
    holds("flapping-relay", &outcome);
    let told = outcome.world.expect("it ran to its end").spread_told();
    let writes: u64 = told.iter().map(|(_, told)| told.writes as u64).sum();
    let mean = |of: fn(&Told) -> u64| told.iter().map(|(_, told)| of(told) * told.writes as u64).sum::<u64>() / writes;
    let (crossings, redundant) = (mean(|told| told.crossings_per_mille), mean(|told| told.redundant_per_mille));
    assert!(crossings <= 1_050, "{crossings} thousandths of a copy for each other site");
    assert!(redundant <= 20, "{redundant} thousandths of a copy in vain for each node");
}

#[test]
fn every_seed_that_ever_found_a_fault_is_run_again() {
    type Drawn = fn(u64) -> History;
    let lists: [(&str, Drawn); 2] = [
        (include_str!("../regressions/seeds.txt"), draw::mixed),
        (include_str!("../regressions/purging.txt"), draw::purging),
    ];
    for (list, drawn) in lists {
        for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (seed, what) = line.split_once(' ').expect("a seed and what it was");
            holds(what, &outcome(drawn(seed.parse().expect("a seed"))));
        }
    }
}

#[test]
fn a_faulty_scenario_is_refused_with_what_is_wrong_with_it() {
    let refused = |text: &str| scenario::read(text, None).expect_err(text).to_string();
    let head = "about = \"x\"\nduration_s = 10\n[sites]\na = { nodes = 2 }\n";
    let fault = |fault: &str| refused(&format!("{head}[[faults]]\nat_s = 1\n{fault}"));
    assert!(fault("kind = \"earthquake\"\nnodes = [0]").contains("'earthquake' is no kind of fault"));
    assert!(fault("kind = \"crash\"\nnodes = [7]").contains("node 7, there are 2"));
    assert!(fault("kind = \"partition\"\nsites = [\"b\"]").contains("site 'b'"));
    assert!(fault("kind = \"partition\"").contains("needs sites or nodes"));
    assert!(refused(&format!("{head}[writes]\nper_s = 1")).contains("no family"));
    assert!(refused("about = \"x\"\nduration_s = 1\nsites = {}\nplanets = 9").contains("planets"));
}
