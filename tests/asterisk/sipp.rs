//! SIPp as a client that has nothing of ours in it. Without it (Debian: sip-tester) these tests say so and pass.

use std::process::Command;

use crate::common::SOON;
use crate::world::World;

const SCENARIO: &str = include_str!("publish.xml");

fn sipp_is_there() -> bool {
    let there = Command::new("sipp").arg("-v").output().is_ok();
    if !there {
        eprintln!("SKIPPED: sipp is not installed (Debian: apt-get install sip-tester)");
    }
    there
}

#[test]
fn sipp_publishes_modifies_refreshes_is_refused_and_removes() {
    if !sipp_is_there() {
        return;
    }
    let world = World::new(1, "");
    let scenario = std::env::temp_dir().join(format!("kinfolk-sipp-{}.xml", crate::common::random()));
    std::fs::write(&scenario, SCENARIO).expect("written");
    let out = Command::new("sipp")
        .arg(world.sip[0].to_string())
        .args([
            "-i",
            "127.0.0.1",
            "-p",
            &crate::world::free_port().port().to_string(),
            "-m",
            "1",
            "-timeout",
            "30",
            "-nostdin",
            "-trace_err",
            "-s",
            "ast0",
            "-sf",
        ])
        .arg(&scenario)
        .current_dir(world.fleet.dir())
        .output()
        .expect("it runs");
    std::fs::remove_file(&scenario).expect("it was there");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{text}");
    assert_eq!(world.fleet.api(0).value("/foo/sipp").expect("answered").as_deref(), Some("two"));
    let accepted = || (world.status(0).accepted == 4 && world.status(0).refused.get("stale") == Some(&1)).then_some(());
    world.fleet.wait_for("four are accepted and one was stale", SOON, accepted).expect("the status says so");
}
