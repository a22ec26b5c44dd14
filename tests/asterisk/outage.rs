//! Outages: of the Asterisk, then of the node. The patch alone loses what is not answered within 32 s.
//!
//! The Asterisk's clock runs ten times as fast as ours, so that 7 s are 70 s to it. `KINFOLK_OUTAGE_S=70` has both
//! in real time (`just asterisk-outage`).

use std::time::Duration;

use simulations::asterisk::astdb::AstDb;

use crate::common::patched::Wire;
use crate::world::{World, foo};

/// How long an outage is, and how fast the Asterisk's clock runs.
fn outage() -> (Duration, u32) {
    match std::env::var("KINFOLK_OUTAGE_S").ok().map(|text| text.parse().expect("a number of seconds")) {
        Some(seconds) => (Duration::from_secs(seconds), 1),
        None => (Duration::from_secs(7), 10),
    }
}

#[test]
fn an_outage_of_the_asterisk_and_then_of_the_node_loses_nothing() {
    let (outage, speed) = outage();
    let mut world = World::new(2, "");
    let wire = Wire { speed, ..world.wire(0, 0) };
    let a = world.hosts[0].start(world.settings(0), AstDb::default(), wire);
    let b = world.start(1, AstDb::default(), 0);
    a.put("foo", "before", "1");
    b.put("foo", "deleted", "soon");
    world.settle(&[&a, &b]);
    assert_eq!(foo(&a), foo(&b));

    // The Asterisk is down; the others go on.
    let db = a.kill();
    for n in 0..5 {
        b.put("foo", &format!("while-asterisk-down-{n}"), "x");
    }
    b.del("foo", "deleted");
    std::thread::sleep(outage);
    let a = world.hosts[0].start(world.settings(0), db, wire);
    world.settle(&[&a, &b]);
    assert_eq!(foo(&a), foo(&b));
    assert_eq!(foo(&a).len(), 6, "{:?}", foo(&a));

    // The node is down; its Asterisk goes on, and drops what nobody answers.
    world.fleet.kill_9(0).expect("killed");
    for n in 0..5 {
        a.put("foo", &format!("while-node-down-{n}"), "y");
        std::thread::sleep(outage / 5);
    }
    assert!(a.counts().dropped > 0, "{:?}: the outage is longer than its patience", a.counts());
    world.fleet.restart(0).expect("restarted");
    let all = || {
        let (a, b) = (foo(&a), foo(&b));
        (a == b && a.len() == 11).then_some(())
    };
    let result = world.fleet.wait_for("everything is everywhere", crate::world::PATIENCE, all);
    assert!(result.is_ok(), "\n{:?}\n{:?}", foo(&a), foo(&b));
    eprintln!("{} updates were dropped by the Asterisk, 0 were lost", a.counts().dropped);
}
