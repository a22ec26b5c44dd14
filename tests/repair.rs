//! What the follow streams cannot bring: a lost disk, yesterday's disk, an origin that is gone for good. On real
//! processes; each is equal again within a bounded time, with every acknowledged write.

#![expect(clippy::disallowed_methods, reason = "real processes need the real clock")]

mod common;

use std::time::{Duration, Instant};

use kinfolk::cli::demo::acks::{Acks, read_export};
use kinfolk::cli::demo::forwarder::Rule;
use kinfolk::core::path::Value;
use kinfolk::core::register::value_hash;

use common::{SOON, TestFleet, copy_dir};

const SHARED: [(&str, &str); 2] = [("foo", "global"), ("uni", "unique")];
/// From the moment when a difference can be seen: the settling, two rounds of gossip, the reconcile, and room for
/// a slow machine.
const REPAIRED_MAX: Duration = Duration::from_secs(15);

fn put(fleet: &TestFleet, acks: &mut Acks, node: usize, path: &str, value: &str) {
    let owner = path.starts_with("/uni/").then(|| fleet.eid(node));
    let stamp = fleet.api(node).put(path, value).expect("written");
    acks.acknowledged((owner, path.to_string()), Some(value.to_string()), stamp);
}

#[track_caller]
fn equal(fleet: &TestFleet, acks: &Acks, nodes: &[usize], within: Duration, what: &str) {
    let (export, took) = fleet.wait_equal(nodes, within).expect("equal");
    assert_eq!(acks.faults(&read_export(&export).expect("an export")), [""; 0]);
    eprintln!("{what}: equal after {} ms", took.as_millis());
}

fn metric(fleet: &TestFleet, node: usize, name: &str, label: &str) -> u64 {
    fleet.api(node).metric(name, label).expect("it is counted") as u64
}

#[test]
fn the_last_writes_of_an_origin_that_is_gone_for_good_reach_everyone_from_the_one_peer_that_has_them() {
    let mut fleet = common::start(common::plan(3, &SHARED).forwarded());
    let mut acks = Acks::default();
    put(&fleet, &mut acks, 0, "/foo/before", "x");
    equal(&fleet, &acks, &[0, 1, 2], SOON, "before");
    fleet.network().set_both(0, 2, Rule::Drop);
    for key in 0..50 {
        put(&fleet, &mut acks, 0, &format!("/foo/last-{key}"), "of the dead");
    }
    let there =
        || (0..50).all(|key| fleet.api(1).value(&format!("/foo/last-{key}")).is_ok_and(|v| v.is_some())).then_some(());
    fleet.wait_for("the last writes at node 1", SOON, there).expect("they come");
    fleet.kill_9(0).expect("killed, for good");
    equal(&fleet, &acks, &[1, 2], REPAIRED_MAX, "origin gone");
}

#[test]
fn yesterdays_disk_becomes_equal_and_what_it_wrote_since_comes_back_to_it() {
    let mut fleet = common::fleet(3, &SHARED);
    let mut acks = Acks::default();
    for key in 0..100 {
        put(&fleet, &mut acks, key % 3, &format!("/foo/{key}"), "yesterday");
        put(&fleet, &mut acks, key % 3, &format!("/uni/{key}"), "own");
    }
    equal(&fleet, &acks, &[0, 1, 2], SOON, "yesterday");
    fleet.stop(2).expect("it stops");
    let backup = fleet.data_dir(2).with_extension("yesterday");
    copy_dir(&fleet.data_dir(2), &backup);
    fleet.restart(2).expect("it starts again");
    for key in 0..200 {
        put(&fleet, &mut acks, key % 3, &format!("/foo/{key}"), "today");
        put(&fleet, &mut acks, key % 3, &format!("/uni/{key}"), "own, today");
    }
    equal(&fleet, &acks, &[0, 1, 2], SOON, "today");
    fleet.kill_9(2).expect("killed");
    std::fs::remove_dir_all(fleet.data_dir(2)).expect("removed");
    std::fs::rename(&backup, fleet.data_dir(2)).expect("yesterday's disk is back");
    put(&fleet, &mut acks, 0, "/foo/0", "while away");
    fleet.restart(2).expect("it starts with yesterday's disk");
    equal(&fleet, &acks, &[0, 1, 2], REPAIRED_MAX, "yesterday's disk");
    let alarms = fleet.api(2).status().expect("a status").node.alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("put back or copied")), "{alarms:?}");
    assert!(metric(&fleet, 2, "kinfolk_refused_total", "unknown_run") >= 1);
    assert!(fleet.log(2).contains("if it was copied, stop the other node"), "the log says what to do");
    put(&fleet, &mut acks, 2, "/uni/2", "and it writes on");
    equal(&fleet, &acks, &[0, 1, 2], SOON, "afterwards");
}

#[test]
fn a_wiped_node_fetches_its_families_from_one_peer_and_compares_with_the_other() {
    let mut fleet = common::fleet(3, &SHARED);
    let mut acks = Acks::default();
    for key in 0..300 {
        put(&fleet, &mut acks, key % 3, &format!("/foo/{key}"), "x");
    }
    equal(&fleet, &acks, &[0, 1, 2], SOON, "before the wipe");
    fleet.kill_9(1).expect("killed");
    std::fs::remove_dir_all(fleet.data_dir(1)).expect("wiped");
    let began = Instant::now();
    fleet.restart(1).expect("it starts with nothing");
    equal(&fleet, &acks, &[0, 1, 2], REPAIRED_MAX, "wiped node refilled");
    let merged = |outcome: &str| metric(&fleet, 1, "kinfolk_merges_total", outcome);
    eprintln!("refilled {:.1} s after the start", began.elapsed().as_secs_f64());
    let (won, same) = (merged("won"), merged("same"));
    assert!(won >= 300 && same < 100, "won {won}, came in vain {same}: the second peer had nothing to send");
}

#[test]
fn the_status_says_whether_the_others_have_the_same() {
    let fleet = common::fleet(2, &[("foo", "global")]);
    let mut acks = Acks::default();
    put(&fleet, &mut acks, 0, "/foo/k", "x");
    equal(&fleet, &acks, &[0, 1], SOON, "two nodes");
    let agreed = || {
        let status = fleet.api(1).status().ok()?;
        let family = status.families.first()?;
        (family.agreement.equal == 1 && family.agreement.differing == 0).then(|| family.agreement.root.clone())?
    };
    let root = fleet.wait_for("equal roots", SOON, agreed).expect("they are equal");
    assert_eq!(root.len(), 32);
}

/// A line of an export, as a writer with that EID would have made it.
fn line(path: &str, value: &str, unix_ms: u128, writer: &str) -> String {
    let hash = value_hash(Some(&Value::new(value).expect("a value")));
    let stamp = format!("{unix_ms}.0@{writer}#{hash:016x}");
    serde_json::json!({ "owner": null, "path": path, "value": value, "stamp": stamp }).to_string()
}

#[test]
fn a_stamp_from_the_future_and_one_stamp_on_two_values_are_told_by_status_metrics_and_log() {
    let fleet = common::fleet(2, &[("foo", "global")]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let lines = [
        line("/foo/ahead", "of the mad clock", now + 365 * 86_400_000, "02:00:00:00:00:e1"),
        line("/foo/twice", "of one", now, "02:00:00:00:00:e2"),
        line("/foo/twice", "of the other", now, "02:00:00:00:00:e2"),
    ];
    let report = fleet.api(0).call("POST", "/v1/import", &[], lines.join("\n").as_bytes()).expect("an answer");
    assert!(report.ok(), "{}", report.detail());
    fleet.wait_equal(&[0, 1], SOON).expect("merged at once, everywhere");
    let told = |node: usize, metric_name: &str, words: [&str; 3]| {
        let says = |text: &str| words.iter().all(|word| text.contains(word));
        let alarms = fleet.api(node).status().expect("a status").node.alarms;
        assert!(alarms.iter().any(|alarm| says(alarm)), "node {node}: {alarms:?}");
        assert!(metric(&fleet, node, metric_name, "") >= 1, "node {node}: {metric_name}");
        assert_eq!(fleet.log(node).lines().filter(|line| says(line)).count(), 1, "node {node}: one line of the log");
    };
    for node in [0, 1] {
        let words = ["02:00:00:00:00:e1", "in the future", "mend the clock"];
        told(node, "kinfolk_merges_far_future_total", words);
    }
    let words = ["two nodes write as", "02:00:00:00:00:e2", "a certificate of its own"];
    told(0, "kinfolk_merges_duplicate_eid_total", words);
}

#[test]
fn two_live_nodes_of_one_eid_are_told_so_by_status_metrics_and_log_on_both() {
    let mut fleet = common::prepare(common::plan(3, &SHARED));
    // Node 2 is run with the certificate of node 0, and a disk of its own.
    let file = fleet.config_file(2);
    let config = std::fs::read_to_string(&file).expect("readable");
    let of = |node: usize, extension: &str| format!("{}.{extension}", fleet.eid(node).compact());
    let cloned = config.replace(&of(2, "pem"), &of(0, "pem")).replace(&of(2, "key"), &of(0, "key"));
    assert_ne!(cloned, config);
    std::fs::write(&file, cloned).expect("written");
    for node in [0, 1, 2] {
        fleet.spawn(node).expect("it starts");
    }
    for node in [0, 2] {
        let told = || {
            let status = fleet.api(node).status().ok()?;
            let alarm =
                status.node.alarms.iter().find(|alarm| alarm.contains("another live node has this node's EID"))?;
            Some((alarm.clone(), status.node.ready))
        };
        let (alarm, ready) = fleet.wait_for("the alarm", SOON, told).expect("it is told");
        assert!(alarm.contains("02:00:00:00:00:0a") && alarm.contains("stop one of them"), "node {node}: {alarm}");
        assert!(!ready, "node {node}: nobody should write here before one of them is stopped");
        assert!(metric(&fleet, node, "kinfolk_refused_total", "duplicate_eid") >= 1, "node {node}");
        assert!(fleet.log(node).contains("issue it a certificate of its own"), "node {node}: the log says what to do");
        let shown = fleet.command(&["status", "--node", &fleet.url(node)]).output().expect("it runs");
        assert!(String::from_utf8_lossy(&shown.stdout).contains(&alarm), "node {node}: kinfolk status shows it");
    }
    let alarms = fleet.api(1).status().expect("a status").node.alarms;
    assert!(
        !alarms.iter().any(|alarm| alarm.contains("this node's EID")),
        "the third node is none of the two: {alarms:?}"
    );
}
