//! Cut networks, lost disks and restarts, on real processes behind forwarders.

#![expect(clippy::disallowed_methods, reason = "real processes need the real clock")]

mod common;

use std::time::{Duration, Instant};

use kinfolk::cli::demo::acks::{Acks, read_export};
use kinfolk::cli::demo::forwarder::Rule;

use common::{SOON, TestFleet};

/// The patience of 15 s before a neighbour is asked, the idle timeout of 5 s before it, and room.
const THROUGH_NEIGHBOUR_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(5);
const SHARED: [(&str, &str); 2] = [("foo", "global"), ("uni", "unique")];

/// Puts and deletes at a node, told to the acks.
fn write(fleet: &TestFleet, acks: &mut Acks, node: usize, path: &str, value: Option<&str>) {
    let api = fleet.api(node);
    let owner = path.starts_with("/uni/").then(|| fleet.eid(node));
    let stamp = match value {
        Some(value) => api.put(path, value).expect("written"),
        None => api.delete(path).expect("an answer").expect("it was there"),
    };
    acks.acknowledged((owner, path.to_string()), value.map(str::to_string), stamp);
}

fn connected(fleet: &TestFleet, node: usize, other: usize) -> bool {
    let members = fleet.api(node).status().map(|status| status.members).unwrap_or_default();
    members.iter().any(|member| member.eid == fleet.eid(other) && member.connected)
}

fn wait_lost(fleet: &TestFleet, node: usize, other: usize) {
    let lost = || (!connected(fleet, node, other)).then_some(());
    fleet.wait_for("a lost connection", SOON, lost).expect("it is missed");
}

#[track_caller]
fn settle(fleet: &TestFleet, acks: &Acks, what: &str) {
    let nodes: Vec<usize> = (0..fleet.count()).collect();
    let (export, took) = fleet.wait_equal(&nodes, SOON).expect("equal");
    assert_eq!(acks.faults(&read_export(&export).expect("an export")), [""; 0]);
    eprintln!("{what}: equal after {} ms", took.as_millis());
}

#[test]
fn both_sides_of_a_partition_go_on_writing_and_end_equal_after_it() {
    let fleet = common::start(common::plan(3, &SHARED).forwarded());
    let mut acks = Acks::default();
    for key in 0..20 {
        write(&fleet, &mut acks, 0, &format!("/foo/{key}"), Some("before"));
    }
    settle(&fleet, &acks, "before the partition");
    fleet.network().isolate(2);
    wait_lost(&fleet, 0, 2);
    wait_lost(&fleet, 2, 1);
    for key in 0..20 {
        let path = format!("/foo/{key}");
        let (first, second) = if key % 2 == 0 { (1, 2) } else { (2, 1) };
        write(&fleet, &mut acks, first, &path, if key % 3 == 0 { None } else { Some("first") });
        write(&fleet, &mut acks, second, &path, if key % 5 == 0 { None } else { Some("second") });
        write(&fleet, &mut acks, key % 3, &format!("/uni/{key}"), Some("own"));
    }
    assert_ne!(fleet.api(0).export().expect("an export"), fleet.api(2).export().expect("an export"));
    fleet.network().heal();
    settle(&fleet, &acks, "partition healed");

    // One way only: what node 2 says is lost, what it is told arrives.
    fleet.network().set(2, 0, Rule::Drop);
    fleet.network().set(2, 1, Rule::Drop);
    wait_lost(&fleet, 0, 2);
    write(&fleet, &mut acks, 0, "/foo/one-way", Some("from 0"));
    write(&fleet, &mut acks, 2, "/foo/one-way", Some("from 2"));
    fleet.network().heal();
    settle(&fleet, &acks, "one-way partition healed");
}

#[test]
fn two_nodes_that_cannot_reach_each_other_exchange_through_the_third() {
    let fleet = common::start(common::plan(3, &SHARED).forwarded());
    let mut acks = Acks::default();
    write(&fleet, &mut acks, 0, "/foo/before", Some("x"));
    settle(&fleet, &acks, "before");
    fleet.network().set_both(0, 2, Rule::Drop);
    wait_lost(&fleet, 0, 2);
    let cut = Instant::now();
    write(&fleet, &mut acks, 0, "/foo/left", Some("from 0"));
    write(&fleet, &mut acks, 2, "/foo/right", Some("from 2"));
    write(&fleet, &mut acks, 2, "/uni/k", Some("own of 2"));
    write(&fleet, &mut acks, 0, "/foo/before", None);
    let (export, _) = fleet.wait_equal(&[0, 1, 2], THROUGH_NEIGHBOUR_MAX).expect("equal through node 1");
    assert_eq!(acks.faults(&read_export(&export).expect("an export")), [""; 0]);
    assert!(!connected(&fleet, 0, 2), "there is still no direct connection");
    eprintln!("bridged: equal {:.1} s after the connection was missed", cut.elapsed().as_secs_f64());
    let began = Instant::now();
    write(&fleet, &mut acks, 0, "/foo/later", Some("fast"));
    fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
    eprintln!("bridged: a further write took {} ms", began.elapsed().as_millis());
}

#[test]
fn a_wiped_node_gets_everything_back_its_own_unique_records_included() {
    let mut fleet = common::fleet(3, &SHARED);
    let mut acks = Acks::default();
    for key in 0..300 {
        write(&fleet, &mut acks, key % 3, &format!("/foo/{key}"), Some("x"));
        write(&fleet, &mut acks, key % 3, &format!("/uni/{key}"), Some("own"));
    }
    write(&fleet, &mut acks, 1, "/foo/1", None);
    settle(&fleet, &acks, "before the wipe");
    let before = fleet.api(1).export().expect("an export");
    fleet.kill_9(1).expect("killed");
    write(&fleet, &mut acks, 0, "/foo/0", Some("while away"));
    std::fs::remove_dir_all(fleet.data_dir(1)).expect("wiped");
    fleet.restart(1).expect("it starts with nothing");
    settle(&fleet, &acks, "wiped node refilled");
    assert_eq!(fleet.api(1).value("/uni/4").expect("an answer").as_deref(), Some("own"), "its own copy");
    assert_eq!(before.lines().count(), fleet.api(1).export().expect("an export").lines().count());
    write(&fleet, &mut acks, 1, "/uni/4", Some("newer"));
    settle(&fleet, &acks, "and it writes on");
}

#[test]
fn a_cluster_whose_nodes_all_die_at_once_comes_back_with_every_acknowledged_write() {
    let mut fleet = common::fleet(3, &SHARED);
    let mut acks = Acks::default();
    for key in 0..60 {
        write(&fleet, &mut acks, key % 3, &format!("/foo/{}", key % 20), Some(&key.to_string()));
    }
    for node in 0..3 {
        fleet.kill_9(node).expect("killed");
    }
    for node in 0..3 {
        fleet.spawn(node).expect("started");
    }
    for node in 0..3 {
        fleet.wait_ready(node).expect("ready");
    }
    settle(&fleet, &acks, "whole cluster restarted");
    write(&fleet, &mut acks, 0, "/foo/after", Some("x"));
    settle(&fleet, &acks, "and writes on");
}

#[test]
fn a_node_that_is_told_to_stop_does_so_quickly_and_with_exit_code_0() {
    let mut fleet = common::fleet(2, &SHARED);
    let mut acks = Acks::default();
    write(&fleet, &mut acks, 0, "/foo/k", Some("x"));
    settle(&fleet, &acks, "two nodes");
    let (status, took) = fleet.stop(0).expect("it stops");
    eprintln!("stopped after {} ms", took.as_millis());
    assert_eq!(status.code(), Some(0), "{}", fleet.log_tail(0));
    assert!(took < STOP_MAX, "it took {took:?}");
    write(&fleet, &mut acks, 1, "/foo/k", Some("y"));
    fleet.restart(0).expect("it starts again");
    settle(&fleet, &acks, "and is back");
}
