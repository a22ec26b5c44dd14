//! Arguments and exit code of the simulator.
fn main() {
    let from: u64 = std::env::args().nth(1).map_or(1, |n| n.parse().expect("a seed"));
    let count: u64 = std::env::args().nth(2).map_or(1, |n| n.parse().expect("a count"));
    let mut bad = 0;
    for seed in from..from + count {
        let outcome = simulations::run::run(simulations::draw::mixed(seed), false, &mut |_| {});
        if let Some(violation) = outcome.violation {
            bad += 1;
            println!("seed {seed}: {violation}");
            if count == 1 {
                println!("{}", outcome.world.unwrap().describe_streams());
                let h = simulations::draw::mixed(seed);
                for f in &h.faults {
                    println!("{} +{}: {:?}", f.at_us / 1000, f.for_us / 1000, f.kind);
                }
                println!("heal {}", h.heal_at_us / 1000);
                if std::env::args().nth(3).is_some() {
                    for w in &h.writes {
                        println!("{} node {} {:?}", w.at_us / 1000, w.node, w.kind);
                    }
                }
            }
        } else if count == 1 {
            println!("seed {seed}: {:?} {:?} trace {:x}", outcome.stats, outcome.branches, outcome.trace);
        }
    }
    println!("{bad} of {count} bad");
}
