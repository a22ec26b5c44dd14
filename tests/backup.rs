//! `kinfolk backup`, `restore` and `why` on real processes.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use common::{SOON, TestFleet};

fn run(fleet: &TestFleet, args: &[&str]) -> Output {
    fleet.command(args).output().expect("the binary runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[track_caller]
fn ends(output: &Output, code: i32, part: &str) {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(part), "{part:?} is not in {said}");
}

fn wait_value(fleet: &TestFleet, node: usize, path: &str, value: Option<&str>) {
    let api = fleet.api(node);
    let there = || (api.value(path).ok()?.as_deref() == value).then_some(());
    fleet.wait_for(&format!("{path} = {value:?}"), SOON, there).expect("it arrives");
}

#[test]
fn a_node_restored_from_an_old_backup_brings_back_what_was_lost_and_nothing_that_was_deleted() {
    // The third node is not there yet: it will be the restored one.
    let mut fleet = common::prepare(common::plan(3, &[("foo", "global"), ("uni", "unique")]));
    for node in [0, 1] {
        fleet.restart(node).expect("starts");
    }
    let api = fleet.api(0);
    api.put("/foo/kept", "v").expect("written");
    api.put("/foo/deleted", "old").expect("written");
    api.put("/foo/changed", "old").expect("written");
    api.put("/uni/k", "mine").expect("written");
    api.put("/own/k", "local").expect("written");
    let file = fleet.dir().join("backup");
    let made = run(&fleet, &["--node", &fleet.url(0), "backup", text(&file)]);
    ends(&made, 0, "records and the marks of 2 shared families");
    assert_eq!(std::fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
    ends(&run(&fleet, &["--node", &fleet.url(0), "backup", text(&file)]), 1, "--replace");

    api.delete("/foo/deleted").expect("deleted");
    api.put("/foo/changed", "new").expect("written");
    wait_value(&fleet, 1, "/foo/changed", Some("new"));
    let config = fleet.config_file(2);
    ends(&run(&fleet, &["restore", text(&file), "--config", text(&config)]), 0, &fleet.eid(2).to_string());
    ends(&run(&fleet, &["restore", text(&file), "--config", text(&config)]), 3, "holds a store already");
    fleet.restart(2).expect("starts");
    fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
    let restored = fleet.api(2);
    assert_eq!(restored.value("/foo/kept").expect("an answer").as_deref(), Some("v"));
    assert_eq!(restored.value("/foo/deleted").expect("an answer"), None);
    assert_eq!(restored.value("/foo/changed").expect("an answer").as_deref(), Some("new"));
    assert_eq!(restored.value("/own/k").expect("an answer").as_deref(), Some("local"), "local keys are in it too");
    let of_first = format!("/{}/uni/k", fleet.eid(0));
    assert_eq!(restored.value(&of_first).expect("an answer").as_deref(), Some("mine"));
    assert_eq!(restored.value("/uni/k").expect("an answer"), None, "it is another server");
}

#[test]
fn a_cluster_that_is_lost_whole_comes_back_from_one_backup() {
    let mut fleet = common::fleet(2, &[("foo", "global")]);
    fleet.api(0).put("/foo/k", "v").expect("written");
    wait_value(&fleet, 1, "/foo/k", Some("v"));
    let file = fleet.dir().join("backup");
    ends(&run(&fleet, &["--node", &fleet.url(1), "backup", text(&file)]), 0, "taken");
    for node in [0, 1] {
        fleet.kill_9(node).expect("killed");
        std::fs::remove_dir_all(fleet.data_dir(node)).expect("wiped");
    }
    ends(&run(&fleet, &["restore", text(&file), "--config", text(&fleet.config_file(0))]), 0, "records");
    for node in [0, 1] {
        fleet.spawn(node).expect("starts");
    }
    wait_value(&fleet, 1, "/foo/k", Some("v"));
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
    fleet.api(1).put("/foo/k", "after").expect("written");
    wait_value(&fleet, 0, "/foo/k", Some("after"));
}

#[test]
fn a_damaged_backup_is_refused_and_leaves_nothing_behind() {
    let fleet = common::prepare(common::plan(1, &[]));
    let mut fleet = fleet;
    fleet.restart(0).expect("starts");
    for n in 0..50 {
        fleet.api(0).put(&format!("/foo/{n}"), "v").expect("written");
    }
    let file = fleet.dir().join("backup");
    ends(&run(&fleet, &["--node", &fleet.url(0), "backup", text(&file)]), 0, "51 records");
    fleet.stop(0).expect("stops");
    ends(&run(&fleet, &["--node", &fleet.url(0), "backup", text(&fleet.dir().join("other"))]), 3, "Is it running?");
    assert!(!fleet.dir().join("other").exists());

    let whole = std::fs::read(&file).expect("it is there");
    let dir = fleet.dir().join("restored");
    let restore = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("written");
        run(&fleet, &["restore", text(&file), "--data-dir", text(&dir), "--eid", "02:00:00:00:00:77"])
    };
    ends(&restore(&whole[..whole.len() / 2]), 3, "cut off");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    ends(&restore(&flipped), 3, "checksum does not fit");
    ends(&restore(b"something else"), 3, "does not begin as a backup does");
    ends(&restore(&[&whole[..], b"x"].concat()), 3, "follows after its end");
    assert!(!dir.exists(), "nothing was made of them");
    ends(&restore(&whole), 0, "51 records");
    assert_eq!(std::fs::read_dir(&dir).expect("it is there").count(), 1, "the store alone");
}

#[test]
fn why_tells_the_winner_and_the_losers_that_a_node_saw() {
    let fleet = common::fleet(2, &[("foo", "global")]);
    fleet.api(0).put("/foo/k", "first").expect("written");
    wait_value(&fleet, 1, "/foo/k", Some("first"));
    let stamp = fleet.api(1).put("/foo/k", "second").expect("written");
    wait_value(&fleet, 0, "/foo/k", Some("second"));
    let said = run(&fleet, &["--node", &fleet.url(0), "why", "/foo/k"]);
    ends(&said, 0, "Value: second");
    ends(&said, 0, &stamp.to_string());
    ends(&said, 0, &format!("by {}", fleet.eid(1)));
    ends(&said, 0, "Value: first");
    ends(&said, 0, "replaced by a later write that arrived");
    ends(&run(&fleet, &["--node", &fleet.url(1), "why", "/foo/k"]), 0, "overwritten at this node");
    ends(&run(&fleet, &["--node", &fleet.url(0), "why", "/foo/absent"]), 1, "nothing stands at '/foo/absent'");
    ends(&run(&fleet, &["--node", &fleet.url(0), "why", "foo"]), 2, "'foo'");
    let json = run(&fleet, &["--node", &fleet.url(0), "why", "--json", "/foo/k"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["losers"][0]["how"], "replaced");
}
