//! Tombstones go when every member has them, and no deletion is undone by whoever was away. On real processes, with
//! a retention of a second instead of ten days.

mod common;

use std::io::Write;
use std::time::Duration;

use common::{SOON, TestFleet};

/// A round has three steps, each at a look every two seconds and gossiped, and there may be one before it.
const ROUND_MAX: Duration = Duration::from_secs(60);

fn fleet(nodes: u8) -> TestFleet {
    let mut fleet = common::prepare(common::plan(nodes, &[("foo", "global")]));
    for node in 0..usize::from(nodes) {
        let mut config = std::fs::OpenOptions::new().append(true).open(fleet.config_file(node)).expect("a config");
        config.write_all(b"\n[tombstones]\nretention_s = 1\nfloor_interval_s = 1\n").expect("written");
        fleet.spawn(node).expect("it starts");
    }
    for node in 0..usize::from(nodes) {
        fleet.wait_ready(node).expect("ready");
    }
    fleet
}

fn exported(fleet: &TestFleet, node: usize, path: &str) -> bool {
    fleet.api(node).export().expect("an export").contains(&format!("\"path\":\"{path}\""))
}

#[track_caller]
fn purged(fleet: &TestFleet, nodes: &[usize], path: &str) {
    let gone = || nodes.iter().all(|node| !exported(fleet, *node, path)).then_some(());
    fleet.wait_for("the tombstone to go", ROUND_MAX, gone).expect("it goes");
}

fn run(fleet: &TestFleet, node: usize, args: &[&str]) -> String {
    let url = fleet.url(node);
    let output = fleet.command(&[&["--node", &url], args].concat()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_tombstone_goes_once_all_have_it_and_whoever_comes_back_from_before_undoes_nothing() {
    let mut fleet = fleet(3);
    for key in ["stays", "goes", "old"] {
        fleet.api(0).put(&format!("/foo/{key}"), "x").expect("written");
    }
    fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
    fleet.api(1).delete("/foo/goes").expect("deleted");
    fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
    purged(&fleet, &[0, 1, 2], "/foo/goes");
    assert!((0..3).all(|node| exported(&fleet, node, "/foo/stays")));

    // The one that is away pins what is deleted now, until it is decommissioned.
    fleet.kill_9(2).expect("killed");
    fleet.api(0).delete("/foo/old").expect("deleted");
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
    let rounds = || {
        let status = run(&fleet, 0, &["status"]);
        status.contains("pinned").then_some(status)
    };
    let status = fleet.wait_for("the status to say what pins the tombstone", ROUND_MAX, rounds).expect("it does");
    assert!(status.contains(&fleet.eid(2).to_string()), "{status}");
    assert!(exported(&fleet, 0, "/foo/old") && exported(&fleet, 1, "/foo/old"));
    run(&fleet, 0, &["decommission", &fleet.eid(2).to_string()]);
    purged(&fleet, &[0, 1], "/foo/old");

    // It comes back with a value that was deleted, and nobody can tell any more that it was.
    fleet.restart(2).expect("it starts again");
    let doubtful = || run(&fleet, 2, &["quarantine", "list"]).contains("/foo/old").then_some(());
    fleet.wait_for("the old value in quarantine", ROUND_MAX, doubtful).expect("it is set aside");
    fleet.wait_equal(&[0, 1, 2], ROUND_MAX).expect("equal");
    assert!((0..3).all(|node| fleet.api(node).value("/foo/old").expect("an answer").is_none()), "undone");
    assert!((0..3).all(|node| fleet.api(node).value("/foo/stays").expect("an answer").is_some()), "lost");
    run(&fleet, 2, &["quarantine", "drop", "/foo/old"]);
    assert!(!run(&fleet, 2, &["quarantine", "list"]).contains("/foo/old"));
}

#[test]
fn what_a_backup_holds_of_keys_that_were_deleted_and_forgotten_since_is_set_aside() {
    let mut fleet = fleet(2);
    for key in ["stays", "goes", "missed"] {
        fleet.api(0).put(&format!("/foo/{key}"), "x").expect("written");
    }
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
    let file = fleet.dir().join("backup");
    let file = file.to_str().expect("UTF-8");
    run(&fleet, 1, &["backup", file]);
    for key in ["goes", "missed"] {
        fleet.api(0).delete(&format!("/foo/{key}")).expect("deleted");
        purged(&fleet, &[0, 1], &format!("/foo/{key}"));
    }

    fleet.stop(1).expect("it stops");
    std::fs::remove_dir_all(fleet.data_dir(1)).expect("its disk is gone");
    let config = fleet.config_file(1);
    run(&fleet, 0, &["restore", file, "--config", config.to_str().expect("UTF-8")]);
    fleet.restart(1).expect("it starts again");
    let doubtful = || {
        let list = run(&fleet, 1, &["quarantine", "list"]);
        (list.contains("/foo/goes") && list.contains("/foo/missed")).then_some(list)
    };
    let list = fleet.wait_for("both in quarantine", ROUND_MAX, doubtful).expect("they are set aside");
    fleet.wait_equal(&[0, 1], ROUND_MAX).expect("equal");
    assert!(!list.contains("/foo/stays") || !run(&fleet, 1, &["quarantine", "list"]).contains("/foo/stays"));
    for (key, there) in [("stays", true), ("goes", false), ("missed", false)] {
        for node in 0..2 {
            let value = fleet.api(node).value(&format!("/foo/{key}")).expect("an answer");
            assert_eq!(value.is_some(), there, "/foo/{key} at node {node}");
        }
    }
    let status = run(&fleet, 1, &["status"]);
    assert!(status.contains("2 keys are in quarantine") && status.contains("Forgotten deletions"), "{status}");

    run(&fleet, 1, &["quarantine", "adopt", "/foo/missed"]);
    run(&fleet, 1, &["quarantine", "drop", "--all"]);
    let back = || fleet.api(0).value("/foo/missed").expect("an answer");
    fleet.wait_for("what was adopted", SOON, back).expect("it is written anew");
    let api = fleet.api(1);
    assert_eq!(api.metric("kinfolk_quarantined", "").expect("metrics"), 0.0);
    for outcome in ["adopted", "dropped"] {
        let label = format!("outcome=\"{outcome}\"");
        assert_eq!(api.metric("kinfolk_quarantine_total", &label).expect("metrics"), 1.0, "{outcome}");
    }
}
