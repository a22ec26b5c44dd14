//! Real processes in network namespaces: a cable is pulled out, both sides write on, and it is put back; meanwhile the
//! disk of the node that was cut off is lost or put back to yesterday's, or the origin of the last writes dies for good.

#![expect(clippy::disallowed_methods, reason = "real processes need the real clock")]

mod common;

use std::time::{Duration, Instant};

use kinfolk::cli::demo::acks::{Acks, read_export};

use common::netns::{self, Network};
use common::{SOON, TestFleet, copy_dir};

const SHARED: [(&str, &str); 2] = [("foo", "global"), ("uni", "unique")];
/// The node that is cut off.
const C: usize = 2;
/// Keys that are written differently on both sides, and keys that one side only writes.
const CONTESTED: usize = 100;
const DISTINCT: usize = 1_000;
/// The last writes of an origin that is killed for good.
const LAST: usize = 50;
const WRITERS: usize = 4;
/// The goal is 2 s and the transfer; the rest is for a machine that does much else.
const EQUAL_MAX: Duration = Duration::from_secs(10);

/// Three nodes, each in its namespace. The fleet is declared after the network, and so ends before it.
struct Lab {
    fleet: TestFleet,
    network: Network,
    acks: Acks,
}

impl Lab {
    fn start() -> Self {
        let network = Network::new(&[0, 0, 0]);
        let fleet = netns::start(&network, common::plan(3, &SHARED));
        Self { fleet, network, acks: Acks::default() }
    }

    /// Writes these keys at a node, several at a time, and keeps the acknowledgements.
    fn write(&mut self, node: usize, keys: &[(String, String)]) {
        let fleet = &self.fleet;
        let done: Vec<Acks> = std::thread::scope(|scope| {
            let parts = keys.chunks(keys.len().div_ceil(WRITERS));
            let writers: Vec<_> = parts
                .map(|part| {
                    let (api, eid) = (fleet.api(node), fleet.eid(node));
                    scope.spawn(move || {
                        let mut acks = Acks::default();
                        for (path, value) in part {
                            let stamp = api.put(path, value).expect("written");
                            let owner = path.starts_with("/uni/").then_some(eid);
                            acks.acknowledged((owner, path.clone()), Some(value.clone()), stamp);
                        }
                        acks
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().expect("a writer does not panic")).collect()
        });
        done.into_iter().for_each(|acks| self.acks.add(acks));
    }

    /// What both sides of the cut write: the same keys differently, and keys of their own.
    fn write_on_both_sides(&mut self, round: &str) {
        for node in [0, C] {
            let contested = (0..CONTESTED).map(|key| (format!("/foo/both/{key}"), format!("{round} of {node}")));
            let distinct = (0..DISTINCT).map(|key| {
                let family = if key % 10 == 0 { "uni" } else { "foo" };
                (format!("/{family}/{round}/{node}/{key}"), key.to_string())
            });
            let keys: Vec<_> = contested.chain(distinct).collect();
            self.write(node, &keys);
        }
    }

    fn cut_off(&self) {
        self.network.cut(C);
        self.wait_lost(0, C);
        self.wait_lost(C, 0);
    }

    fn wait_lost(&self, node: usize, other: usize) {
        let lost = || {
            let members = self.fleet.api(node).status().ok()?.members;
            let connected = members.iter().any(|member| member.eid == self.fleet.eid(other) && member.connected);
            (!connected).then_some(())
        };
        self.fleet.wait_for("a lost connection", SOON, lost).expect("it is missed");
    }

    #[track_caller]
    fn settle(&self, what: &str, max: Duration) -> Duration {
        self.settle_among(&[0, 1, 2], what, max)
    }

    #[track_caller]
    fn settle_among(&self, nodes: &[usize], what: &str, max: Duration) -> Duration {
        let (export, took) = self.fleet.wait_equal(nodes, max).expect("equal");
        assert_eq!(self.acks.faults(&read_export(&export).expect("an export")), [""; 0]);
        eprintln!("{what}: equal after {} ms", took.as_millis());
        took
    }

    /// Puts the cable back and waits until all are equal.
    #[track_caller]
    fn heal_and_settle(&self, what: &str) {
        let before = self.network.counted(C);
        let healed = Instant::now();
        self.network.heal(C);
        let connected = || {
            let members = self.fleet.api(C).status().ok()?.members;
            (members.iter().filter(|member| member.connected).count() == 3).then(|| healed.elapsed())
        };
        let connected = self.fleet.wait_for("both connections of C", EQUAL_MAX, connected).expect("connected");
        self.settle(what, EQUAL_MAX);
        let (took, after) = (healed.elapsed(), self.network.counted(C));
        eprintln!(
            "{what}: connected {} ms and equal {} ms after the heal; C received {} bytes and sent {}",
            connected.as_millis(),
            took.as_millis(),
            after.received_bytes - before.received_bytes,
            after.sent_bytes - before.sent_bytes
        );
        assert!(took < EQUAL_MAX, "{what}: {took:?}");
    }
}

#[test]
fn the_same_with_the_disk_of_the_node_that_was_cut_off_wiped_meanwhile() {
    if !netns::available() {
        return;
    }
    let mut lab = Lab::start();
    let own: Vec<_> = (0..200).map(|key| (format!("/uni/own/{key}"), key.to_string())).collect();
    lab.write(C, &own);
    lab.settle("before the cut", SOON);
    lab.cut_off();
    lab.fleet.kill_9(C).expect("killed");
    std::fs::remove_dir_all(lab.fleet.data_dir(C)).expect("wiped");
    // It finds nobody, and so is ready with nothing. What it writes now, it writes on the new disk.
    lab.fleet.restart(C).expect("it starts with nothing");
    assert_eq!(lab.fleet.api(C).value("/uni/own/7").expect("an answer"), None);
    lab.write_on_both_sides("wiped");
    lab.heal_and_settle("wiped");
    assert_eq!(lab.fleet.api(C).value("/uni/own/7").expect("an answer").as_deref(), Some("7"), "its own copy is back");
}

#[test]
fn the_same_with_the_disk_of_the_node_that_was_cut_off_put_back_to_yesterdays() {
    if !netns::available() {
        return;
    }
    let mut lab = Lab::start();
    let own = |day: &str| (0..200).map(|key| (format!("/uni/own/{key}"), day.to_string())).collect::<Vec<_>>();
    lab.write(C, &own("yesterday"));
    lab.settle("yesterday", SOON);
    lab.fleet.stop(C).expect("it stops");
    let backup = lab.fleet.data_dir(C).with_extension("yesterday");
    copy_dir(&lab.fleet.data_dir(C), &backup);
    lab.fleet.restart(C).expect("it starts again");
    lab.write(C, &own("today"));
    lab.write_on_both_sides("today");
    lab.settle("today", SOON);
    lab.cut_off();
    lab.fleet.kill_9(C).expect("killed");
    std::fs::remove_dir_all(lab.fleet.data_dir(C)).expect("removed");
    std::fs::rename(&backup, lab.fleet.data_dir(C)).expect("yesterday's disk is back");
    lab.fleet.restart(C).expect("it starts with yesterday's disk");
    let value = |lab: &Lab| lab.fleet.api(C).value("/uni/own/7").expect("an answer");
    assert_eq!(value(&lab).as_deref(), Some("yesterday"));
    lab.write_on_both_sides("put back");
    lab.heal_and_settle("put back");
    assert_eq!(value(&lab).as_deref(), Some("today"), "what it wrote since is back");
}

#[test]
fn the_last_writes_of_an_origin_that_is_killed_for_good_reach_the_node_that_could_not_hear_it() {
    if !netns::available() {
        return;
    }
    let mut lab = Lab::start();
    lab.write(0, &[("/foo/before".into(), "x".into())]);
    lab.settle("before the cut", SOON);
    // The writer is the one that dies; of the two that remain one cannot hear it.
    lab.network.cut(0);
    lab.wait_lost(0, C);
    lab.wait_lost(C, 0);
    let last: Vec<_> = (0..LAST).map(|key| (format!("/foo/last/{key}"), "of the dead".to_string())).collect();
    lab.write(C, &last);
    let heard = |path: &str| lab.fleet.api(1).value(path).is_ok_and(|value| value.is_some());
    let all = || last.iter().all(|(path, _)| heard(path)).then_some(());
    lab.fleet.wait_for("the last writes at node 1", SOON, all).expect("they come");
    lab.fleet.kill_9(C).expect("killed, for good");
    lab.network.heal(0);
    let healed = Instant::now();
    lab.settle_among(&[0, 1], "origin killed", EQUAL_MAX);
    eprintln!("origin killed: equal {} ms after the heal", healed.elapsed().as_millis());
}

#[test]
fn a_node_that_was_cut_off_and_the_others_are_equal_soon_after_the_heal_and_nothing_is_lost() {
    if !netns::available() {
        return;
    }
    let mut lab = Lab::start();
    lab.write(0, &[("/foo/before".into(), "x".into())]);
    lab.settle("before the cut", SOON);
    for round in ["first", "second"] {
        lab.cut_off();
        lab.write_on_both_sides(round);
        let exports = [0, C].map(|node| lab.fleet.api(node).export().expect("an export"));
        assert_ne!(exports[0], exports[1], "the cut is one");
        lab.heal_and_settle(&format!("{round} cut"));
    }
}
