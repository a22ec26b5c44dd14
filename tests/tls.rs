//! Certificates, lists and rules that change while real nodes run: SIGHUP, and what comes of it.

#![expect(clippy::disallowed_methods, reason = "real processes need the real clock")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use kinfolk::cluster::tls::{self, CA_CERT_FILE, CRL_FILE, Wanted};
use kinfolk::core::clock::Hlc;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::message::{Follow, FollowReply};
use kinfolk::core::path::Family;
use kinfolk::core::record::Classes;
use kinfolk::node::unix_ms;
use kinfolk::status::Status;
use rustix::process::{Pid, Signal, kill_process};

use common::peer::{Peer, identity};
use common::{SOON, TestFleet};

const SHARED: [(&str, &str); 2] = [("foo", "global"), ("bar", "global")];
/// A cut is a matter of moments; the rest is for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);
/// For long enough that a stream which is still open would have carried the write.
const QUIET: Duration = Duration::from_millis(1_500);

fn now_s() -> u64 {
    unix_ms() / 1_000
}

fn family(name: &str) -> Family {
    Family::new(name).expect("a family")
}

fn status(fleet: &TestFleet, node: usize) -> Status {
    fleet.api(node).status().expect("a status")
}

/// Changes the node's configuration file as a person would.
fn edit(fleet: &TestFleet, node: usize, change: impl FnOnce(String) -> String) {
    let file = fleet.config_file(node);
    let text = std::fs::read_to_string(&file).expect("a configuration");
    std::fs::write(&file, change(text)).expect("written");
}

/// SIGHUP, and waits until the node has dealt with it.
fn reload(fleet: &TestFleet, node: usize) {
    let count = || fleet.api(node).metric("kinfolk_reloads_total", "").unwrap_or_default();
    let before = count();
    let pid = fleet.pid(node).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("it runs");
    kill_process(pid, Signal::HUP).expect("told");
    fleet.wait_for("a reload", SOON, || (count() > before).then_some(())).expect("it reloads");
}

fn reload_all(fleet: &TestFleet) {
    (0..fleet.count()).for_each(|node| reload(fleet, node));
}

fn connected(fleet: &TestFleet, node: usize, other: usize) -> bool {
    status(fleet, node).members.iter().any(|member| member.eid == fleet.eid(other) && member.connected)
}

#[track_caller]
fn wait_connected(fleet: &TestFleet, node: usize, other: usize, wanted: bool, max: Duration) -> Duration {
    let began = Instant::now();
    let what = format!("node {node} connected to {other}: {wanted}");
    fleet.wait_for(&what, max, || (connected(fleet, node, other) == wanted).then_some(())).expect("in time");
    began.elapsed()
}

/// What is written at one node arrives at the other.
#[track_caller]
fn arrives(fleet: &TestFleet, from: usize, to: usize, path: &str, value: &str) {
    fleet.api(from).put(path, value).expect("written");
    let there = || fleet.api(to).value(path).ok()??.eq(value).then_some(());
    fleet.wait_for(&format!("{path} = {value} at node {to}"), SOON, there).expect("it arrives");
}

/// What is written at one node does not arrive at the other, though there is time for it.
#[track_caller]
fn stays_away(fleet: &TestFleet, from: usize, to: usize, path: &str, value: &str) {
    fleet.api(from).put(path, value).expect("written");
    std::thread::sleep(QUIET);
    assert_ne!(fleet.api(to).value(path).expect("an answer").as_deref(), Some(value), "{path} at node {to}");
}

fn renew(dir: &Path, eid: Eid, valid_days: u32, families: &[&str]) {
    let families = families.iter().map(|name| family(name)).collect();
    let wanted = Wanted { eid: Some(eid), families, valid_days, renew: true };
    tls::issue_wanted(dir, &wanted, now_s()).expect("issued");
}

#[test]
fn certificates_and_the_ca_are_changed_under_way_and_no_connection_is_missed_for_long() {
    let fleet = common::fleet(3, &SHARED);
    let pids: Vec<_> = (0..3).map(|node| fleet.pid(node)).collect();
    let dir = fleet.tls_dir();
    arrives(&fleet, 0, 1, "/foo/k", "before");

    // A new certificate of the same CA.
    let before = status(&fleet, 0).node.certificate_expires_unix_s.expect("known");
    renew(&dir, fleet.eid(0), 300, &[]);
    reload(&fleet, 0);
    let after = status(&fleet, 0).node.certificate_expires_unix_s.expect("known");
    assert!(after > before + 200 * 86_400, "{before} {after}");
    assert!(connected(&fleet, 0, 1), "who is connected stays so");
    arrives(&fleet, 1, 0, "/foo/k", "renewed");

    // A new CA: first both are trusted, then certificates of the new one are given out, then the old one goes.
    let next = tempfile::tempdir().expect("a directory");
    tls::init_ca(next.path(), "fleet", now_s()).expect("a CA");
    let ca = dir.join(CA_CERT_FILE);
    let read = |path: &Path| std::fs::read_to_string(path).expect("a certificate");
    let (old, new) = (read(&ca), read(&next.path().join(CA_CERT_FILE)));
    std::fs::write(&ca, old.clone() + &new).expect("written");
    reload_all(&fleet);
    for node in 0..3 {
        let issued = tls::issue(next.path(), Some(fleet.eid(node)), 100, now_s()).expect("issued");
        for made in [&issued.cert, &issued.key] {
            std::fs::copy(made, dir.join(made.file_name().expect("a name"))).expect("copied");
        }
    }
    reload_all(&fleet);
    arrives(&fleet, 2, 0, "/foo/k", "both CAs");
    std::fs::write(&ca, &new).expect("written");
    reload_all(&fleet);
    // Connections that were made with certificates of the old CA are cut, and made again with the new ones.
    for (node, other) in [(0, 1), (1, 2), (2, 0)] {
        let took = wait_connected(&fleet, node, other, true, SOON);
        eprintln!("node {node} to {other}: connected under the new CA after {} ms", took.as_millis());
    }
    for (node, other) in [(0, 1), (1, 2), (2, 0)] {
        arrives(&fleet, node, other, "/foo/k", &format!("the new CA, {node}"));
    }
    assert_eq!(pids, (0..3).map(|node| fleet.pid(node)).collect::<Vec<_>>(), "nobody was restarted");

    // The old CA's certificates open nothing any more.
    let stranger = Eid::new([2, 0, 0, 0, 0, 0x77]);
    std::fs::write(&ca, &old).expect("written");
    let issued = tls::issue(&dir, Some(stranger), 2, now_s());
    std::fs::write(&ca, &new).expect("written");
    issued.expect("the old CA can still make them");
    let both = next.path().join("both.pem");
    std::fs::write(&both, old + &new).expect("written");
    block_on(async {
        if let Ok(peer) = Peer::connect_as(&identity(&both, &dir, stranger), fleet.listen(0)).await {
            assert!(peer.hello(stranger).await.is_none(), "nobody answers it");
        }
    });
}

#[test]
fn a_revoked_node_is_cut_at_once_refused_and_named_until_it_has_a_new_certificate() {
    let fleet = common::fleet(3, &SHARED);
    let dir = fleet.tls_dir();
    arrives(&fleet, 2, 0, "/foo/k", "while trusted");
    let eid = fleet.eid(2);
    let revoked = tls::revoke(&dir, &[eid], &[], now_s()).expect("revoked");
    assert_eq!((revoked.added, revoked.total), (1, 1));
    for node in [0, 1] {
        let crl = format!("[tls]\ncrl = {:?}\n", dir.join(CRL_FILE).display().to_string());
        edit(&fleet, node, |text| text.replace("[tls]\n", &crl));
        reload(&fleet, node);
        let took = wait_connected(&fleet, node, 2, false, AT_ONCE);
        eprintln!("node {node}: cut {} ms after the reload was done", took.as_millis());
    }
    stays_away(&fleet, 2, 0, "/foo/k", "from the revoked node");
    stays_away(&fleet, 0, 2, "/foo/k", "for those who are trusted");
    arrives(&fleet, 0, 1, "/foo/k", "among the others all goes on");
    let refused = || fleet.api(0).metric("kinfolk_refused_total", "reason=\"revoked\"").ok().filter(|n| *n > 0.0);
    fleet.wait_for("a counted refusal", SOON, refused).expect("counted");
    let access = status(&fleet, 0).node.access;
    assert_eq!(access.revoked_certificates, 1);
    assert_eq!(access.refused.iter().map(|refused| refused.eid).collect::<Vec<_>>(), [eid]);
    assert!(access.refused[0].why.contains("revoked"), "{}", access.refused[0].why);
    assert!(status(&fleet, 0).node.alarms.iter().any(|alarm| alarm.contains(&eid.to_string())));
    assert!(fleet.log(0).contains("its certificate is revoked"), "{}", fleet.log_tail(0));

    // Its own certificate is no use to it either, as soon as it has the list.
    let crl = format!("[tls]\ncrl = {:?}\n", dir.join(CRL_FILE).display().to_string());
    edit(&fleet, 2, |text| text.replace("[tls]\n", &crl));
    reload(&fleet, 2);
    assert!(status(&fleet, 2).node.alarms.iter().any(|alarm| alarm.contains("is revoked")));

    renew(&dir, eid, 100, &[]);
    reload(&fleet, 2);
    let took = wait_connected(&fleet, 0, 2, true, SOON);
    eprintln!("back {} ms after its new certificate was loaded", took.as_millis());
    fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
}

#[test]
fn an_eid_can_be_refused_without_its_certificate_at_hand_and_let_in_again() {
    let fleet = common::fleet(2, &SHARED);
    arrives(&fleet, 0, 1, "/foo/k", "before");
    let line = format!("[tls]\nrevoked = [\"{}\"]\n", fleet.eid(1));
    edit(&fleet, 0, |text| text.replace("[tls]\n", &line));
    reload(&fleet, 0);
    wait_connected(&fleet, 0, 1, false, AT_ONCE);
    stays_away(&fleet, 1, 0, "/foo/k", "while refused");
    edit(&fleet, 0, |text| text.replace(&line, "[tls]\n"));
    reload(&fleet, 0);
    wait_connected(&fleet, 0, 1, true, SOON);
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
    assert!(status(&fleet, 0).node.access.refused.is_empty());
}

#[test]
fn a_node_whose_certificate_names_families_is_neither_served_nor_followed_in_others() {
    let mut fleet = common::prepare(common::plan(3, &SHARED));
    let dir = fleet.tls_dir();
    renew(&dir, fleet.eid(2), 100, &["foo"]);
    for node in 0..3 {
        fleet.spawn(node).expect("started");
    }
    for node in 0..3 {
        fleet.wait_ready(node).expect("ready");
    }
    wait_connected(&fleet, 0, 2, true, SOON);
    arrives(&fleet, 0, 2, "/foo/k", "for all");
    arrives(&fleet, 2, 1, "/foo/k", "by all");
    arrives(&fleet, 0, 1, "/bar/k", "for two");
    stays_away(&fleet, 0, 2, "/bar/k", "not for the third");
    stays_away(&fleet, 2, 0, "/bar/other", "not by the third");
    assert_eq!(status(&fleet, 0).node.access.limited[&fleet.eid(2)], ["foo"]);
    let alarms = status(&fleet, 2).node.alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("does not name the shared family 'bar'")), "{alarms:?}");
    let counted = || fleet.api(0).metric("kinfolk_refused_total", "reason=\"family_not_allowed\"").expect("metrics");
    assert_eq!(counted(), 0.0, "it knows what it is trusted for, and does not ask for more");

    // Nor does a peer that asks for it get it, whatever it claims.
    let eid = Eid::new([2, 0, 0, 0, 0, 0x66]);
    renew(&dir, eid, 2, &["foo"]);
    let ask = |name: &str| Follow {
        family: family(name),
        mode: Mode::Global,
        classes: Classes::ALL,
        cursor: None,
        floor: Hlc::ZERO,
    };
    block_on(async {
        let peer = Peer::connect(&dir, eid, fleet.listen(0)).await;
        peer.hello(eid).await.expect("it is let in");
        let unknown = Some(FollowReply::OtherFloor { floor: None });
        assert_eq!(peer.follow(&ask("foo")).await, unknown, "the books do not say yet that it shares it");
        assert_eq!(peer.follow(&ask("bar")).await, Some(FollowReply::NotShared { mode: None }));
    });
    assert_eq!(counted(), 1.0);

    // With a certificate for both, after a reload, everything is exchanged.
    renew(&dir, fleet.eid(2), 100, &["foo", "bar"]);
    reload(&fleet, 2);
    // The others learn of it with the next connection.
    fleet.stop(2).expect("it stops");
    fleet.restart(2).expect("it starts");
    fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
}

#[test]
fn the_local_allow_list_binds_at_the_next_reload_and_gives_way_at_another() {
    let mut fleet = common::fleet(2, &SHARED);
    arrives(&fleet, 1, 0, "/bar/k", "before");
    let list = format!("\n[allow]\n\"{}\" = [\"foo\"]\n", fleet.eid(1));
    edit(&fleet, 0, |text| text + &list);
    reload(&fleet, 0);
    arrives(&fleet, 1, 0, "/foo/k", "allowed");
    stays_away(&fleet, 1, 0, "/bar/k", "not accepted");
    stays_away(&fleet, 0, 1, "/bar/k2", "not served");
    assert_eq!(status(&fleet, 0).node.access.limited[&fleet.eid(1)], ["foo"]);
    // Who is not served a family becomes ready without it.
    fleet.stop(1).expect("it stops");
    fleet.restart(1).expect("ready");
    edit(&fleet, 0, |text| text.replace(&list, ""));
    reload(&fleet, 0);
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
    assert!(status(&fleet, 0).node.access.limited.is_empty());
}

#[test]
fn a_reload_that_cannot_be_done_changes_nothing_and_what_needs_a_restart_is_named() {
    let fleet = common::fleet(2, &SHARED);
    let file = fleet.config_file(0);
    let good = std::fs::read_to_string(&file).expect("a configuration");
    edit(&fleet, 0, |text| text + "\n[limits]\nbatch_max = 0\n");
    reload(&fleet, 0);
    let alarms = status(&fleet, 0).node.alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("batch_max: 0 is too little")), "{alarms:?}");
    assert_eq!(fleet.api(0).metric("kinfolk_reloads_total", "outcome=\"failed\"").expect("metrics"), 1.0);
    arrives(&fleet, 0, 1, "/foo/k", "all goes on");

    // Somebody else's certificate is no reload, but another node.
    let own = format!("{}.pem", fleet.eid(0).compact());
    let (theirs, key) = (format!("{}.pem", fleet.eid(1).compact()), format!("{}.key", fleet.eid(0).compact()));
    let changed = good.replace(&own, &theirs).replace(&key, &format!("{}.key", fleet.eid(1).compact()));
    std::fs::write(&file, changed).expect("written");
    reload(&fleet, 0);
    let alarms = status(&fleet, 0).node.alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("restart it if that is meant")), "{alarms:?}");

    std::fs::write(&file, good + "\n[limits]\nbatch_max = 77\n").expect("written");
    edit(&fleet, 0, |text| format!("log = \"debug\"\n{text}"));
    reload(&fleet, 0);
    let alarms = status(&fleet, 0).node.alarms;
    assert!(!alarms.iter().any(|alarm| alarm.contains("reload")), "{alarms:?}");
    let log = fleet.log(0);
    assert!(log.contains("only after a restart") && log.contains("limits.batch_max"), "{log}");
    arrives(&fleet, 1, 0, "/foo/k", "later");
    let debug = || fleet.log(0).contains("DEBUG").then_some(());
    fleet.wait_for("the new log filter", SOON, debug).expect("in force");
}

#[test]
fn seeds_that_are_added_while_nodes_run_bring_them_together() {
    let mut fleet = common::prepare(common::plan(2, &SHARED));
    let seeds: Vec<String> = (0..2).map(|node| format!("seeds = [\"{}\"]", fleet.advertised(1 - node))).collect();
    for (node, line) in seeds.iter().enumerate() {
        edit(&fleet, node, |text| text.replace(line, "seeds = []"));
        fleet.spawn(node).expect("started");
    }
    for node in 0..2 {
        fleet.wait_ready(node).expect("ready");
    }
    stays_away(&fleet, 0, 1, "/foo/k", "alone");
    edit(&fleet, 0, |text| text.replace("seeds = []", &seeds[0]));
    reload(&fleet, 0);
    wait_connected(&fleet, 0, 1, true, SOON);
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}
