//! The unit scenarios of the 2015 patch, and what sharing must never do, on real processes.

mod common;

use kinfolk::cli::demo::acks::read_export;
use kinfolk::cli::demo::api::{Api, Reply};
use kinfolk::core::clock::Hlc;
use kinfolk::core::family::Mode;
use kinfolk::core::message::{Follow, FollowReply};
use kinfolk::core::path::Family;
use kinfolk::core::record::Classes;

use common::peer::Peer;
use common::{SOON, TestFleet};

fn share(api: &Api, family: &str, mode: &str) -> Reply {
    let body = format!(r#"{{"mode":"{mode}"}}"#);
    api.call("PUT", &format!("/v1/shared/{family}"), &[], body.as_bytes()).expect("an answer")
}

fn unshare(api: &Api, family: &str) -> Reply {
    api.call("DELETE", &format!("/v1/shared/{family}"), &[], b"").expect("an answer")
}

#[track_caller]
fn says(reply: &Reply, status: u16, part: &str) {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert!(reply.detail().contains(part), "{part:?} is not in {}", reply.body);
}

/// Waits until `node` knows by gossip how `other` shares `family`.
fn wait_known(fleet: &TestFleet, node: usize, other: usize, family: &str, mode: Option<Mode>) {
    let (api, eid) = (fleet.api(node), fleet.eid(other));
    let known = || {
        let members = api.status().ok()?.members;
        let member = members.into_iter().find(|member| member.eid == eid && member.live)?;
        (member.families.get(family).copied() == mode).then_some(())
    };
    fleet.wait_for("the news of a shared family", SOON, known).expect("membership shows it");
}

fn wait_value(fleet: &TestFleet, node: usize, path: &str, value: Option<&str>) {
    let api = fleet.api(node);
    let there = || (api.value(path).ok()?.as_deref() == value).then_some(());
    fleet.wait_for(&format!("{path} = {value:?}"), SOON, there).expect("it arrives");
}

#[test]
fn a_family_is_shared_once_in_one_mode_without_overlap_and_unshared_once() {
    let fleet = common::fleet(2, &[]);
    let api = fleet.api(0);
    assert_eq!(share(&api, "foo", "global").status, 200);
    says(&share(&api, "foo", "global"), 409, "shared already");
    says(&share(&api, "foo", "unique"), 409, "shared already");
    says(&share(&api, "foo%2Fbar", "global"), 409, "overlaps");
    assert_eq!(share(&api, "deep%2Fer", "unique").status, 200);
    says(&share(&api, "deep", "unique"), 409, "overlaps");
    says(&share(&api, "registrar", "global"), 403, "must never be shared");
    says(&share(&api, "__asterisk_shared_family", "unique"), 403, "must never be shared");
    assert_eq!(api.get("/v1/shared").expect("an answer").body, r#"{"deep/er":"unique","foo":"global"}"#);
    assert_eq!(api.value("/__asterisk_shared_family/foo").expect("an answer").as_deref(), Some("GLOBAL"));
    assert_eq!(unshare(&api, "foo").status, 200);
    says(&unshare(&api, "foo"), 404, "does not exist");
    assert_eq!(api.get("/v1/shared/foo").expect("an answer").status, 404);
    assert_eq!(share(&api, "foo", "unique").status, 200, "unshared, it may be shared in the other mode");
    let said = fleet.command(&["--node", &fleet.url(0), "database", "put", "shared", "foo", "unique"]).output();
    let said = said.expect("the binary runs");
    assert_eq!(said.stdout, b"Could not share family 'foo' (is it already shared?)\n");
    assert_eq!(said.status.code(), Some(1));
}

#[test]
fn a_mode_other_than_that_of_a_live_member_is_refused_and_names_it() {
    let fleet = common::fleet(2, &[]);
    assert_eq!(share(&fleet.api(0), "foo", "global").status, 200);
    wait_known(&fleet, 1, 0, "foo", Some(Mode::Global));
    let reply = share(&fleet.api(1), "foo", "unique");
    says(&reply, 409, &fleet.eid(0).to_string());
    says(&reply, 409, "shared as global");
    assert_eq!(share(&fleet.api(1), "foo", "global").status, 200);
    assert_eq!(unshare(&fleet.api(0), "foo").status, 200);
    assert_eq!(unshare(&fleet.api(1), "foo").status, 200);
    wait_known(&fleet, 1, 0, "foo", None);
    assert_eq!(share(&fleet.api(1), "foo", "unique").status, 200, "nobody shares it any more");
}

#[test]
fn values_from_before_the_sharing_join_with_the_stamps_they_have_and_are_no_new_writes() {
    let fleet = common::fleet(2, &[]);
    let (a, b) = (fleet.api(0), fleet.api(1));
    let old = a.put("/foo/k", "old").expect("written");
    let only = a.put("/foo/only", "here").expect("written");
    let new = b.put("/foo/k", "new").expect("written");
    assert!(old < new);
    // The node with the older value shares later: were that a new write, it would win.
    assert_eq!(share(&b, "foo", "global").status, 200);
    assert_eq!(share(&a, "foo", "global").status, 200);
    wait_value(&fleet, 1, "/foo/only", Some("here"));
    let (export, _) = fleet.wait_equal(&[0, 1], SOON).expect("equal");
    let export = read_export(&export).expect("an export");
    let stamps: Vec<_> = export.values().map(|record| (record.value.as_deref(), record.stamp)).collect();
    assert_eq!(stamps, [(Some("new"), new), (Some("here"), only)]);
    assert_eq!(a.metric("kinfolk_puts_total", "").expect("metrics"), 2.0);
    assert_eq!(b.metric("kinfolk_puts_total", "").expect("metrics"), 1.0);
}

#[test]
fn an_unshared_family_ignores_updates_until_it_is_shared_again() {
    let fleet = common::fleet(2, &[("foo", "global"), ("bar", "global")]);
    let (a, b) = (fleet.api(0), fleet.api(1));
    a.put("/foo/k", "before").expect("written");
    wait_value(&fleet, 1, "/foo/k", Some("before"));
    assert_eq!(unshare(&b, "foo").status, 200);
    a.put("/foo/k", "after").expect("written");
    a.put("/bar/mark", "passed").expect("written");
    wait_value(&fleet, 1, "/bar/mark", Some("passed"));
    assert_eq!(b.value("/foo/k").expect("an answer").as_deref(), Some("before"), "kept as local data, not updated");
    b.put("/foo/local", "mine").expect("written");
    b.put("/bar/mark2", "passed").expect("written");
    wait_value(&fleet, 0, "/bar/mark2", Some("passed"));
    assert_eq!(a.value("/foo/local").expect("an answer"), None, "and tells nobody of its own");
    assert_eq!(share(&b, "foo", "global").status, 200);
    wait_value(&fleet, 1, "/foo/k", Some("after"));
    wait_value(&fleet, 0, "/foo/local", Some("mine"));
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
}

#[test]
fn unique_values_are_seen_elsewhere_under_the_eid_of_their_server_and_only_it_writes_them() {
    let fleet = common::fleet(3, &[("uni", "unique")]);
    for node in 0..3 {
        fleet.api(node).put("/uni/k", &format!("of {node}")).expect("written");
    }
    for (node, other) in [(0, 1), (1, 2), (2, 0)] {
        wait_value(&fleet, node, &format!("/{}/uni/k", fleet.eid(other)), Some(&format!("of {other}")));
        assert_eq!(fleet.api(node).value("/uni/k").expect("an answer"), Some(format!("of {node}")));
        let path = format!("/v1/db/{}/uni/k", fleet.eid(other));
        says(&fleet.api(node).call("PUT", &path, &[], b"x").expect("an answer"), 403, "only that server writes it");
        says(&fleet.api(node).call("DELETE", &path, &[], b"").expect("an answer"), 403, "only that server writes it");
    }
    let entries = fleet.api(0).get("/v1/keys/k").expect("an answer").body;
    assert!(entries.contains(&format!("/{}/uni/k", fleet.eid(1))), "{entries}");
    fleet.api(1).delete_tree("/uni").expect("deleted");
    wait_value(&fleet, 0, &format!("/{}/uni/k", fleet.eid(1)), None);
    assert_eq!(fleet.api(0).value("/uni/k").expect("an answer").as_deref(), Some("of 0"), "its own copy stays");
    fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
}

#[test]
fn a_node_that_shares_only_one_family_never_stores_serves_or_receives_another() {
    let mut plan = common::plan(3, &[("a", "global"), ("b", "global")]);
    plan.nodes[2].shared.truncate(1);
    let fleet = common::start(plan);
    let (both, only_a) = (fleet.api(0), fleet.api(2));
    only_a.put("/b/own", "of the third").expect("written");
    for n in 0..200 {
        both.put(&format!("/a/{n}"), "a").expect("written");
        both.put(&format!("/b/{n}"), "b").expect("written");
    }
    wait_value(&fleet, 2, "/a/199", Some("a"));
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
    let all = only_a.get("/v1/export?all=true").expect("an answer").body;
    let of_b: Vec<&str> = all.lines().filter(|line| line.contains("\"/b/")).collect();
    assert!(of_b.len() == 1 && of_b[0].contains("/b/own"), "it holds of b only its own local key: {of_b:?}");
    assert_eq!(fleet.api(1).value("/b/own").expect("an answer"), None, "and nobody else holds that");
    let page = only_a.get("/metrics").expect("an answer").body;
    assert!(page.contains("family=\"a\"") && !page.contains("family=\"b\""), "no series of b");
    // Only what won: while it boots, the third node may be sent some records by both of the others.
    let won = only_a.metric("kinfolk_merges_total", "outcome=\"won\"").expect("metrics");
    assert!((200.0..230.0).contains(&won), "{won} records were new: the 200 of a, and the cluster's books");
    assert!(fleet.api(0).status().expect("a status").members.iter().any(|member| {
        member.eid == fleet.eid(2) && member.families.contains_key("a") && !member.families.contains_key("b")
    }));
    assert_eq!(asked_for(&fleet, 2, "b"), Some(FollowReply::NotShared { mode: None }), "it serves none of b");
    let stranger = asked_for(&fleet, 2, "a");
    assert_eq!(stranger, Some(FollowReply::OtherFloor { floor: None }), "not before the books say that it shares it");
    assert!(matches!(asked_for(&fleet, 2, "__kinfolk"), Some(FollowReply::Resume { .. })));
    assert_eq!(fleet.api(2).metric("kinfolk_follow_lag_entries", "family=\"b\"").expect("metrics"), 0.0);
}

/// What the node answers a peer with a good certificate that wants to follow `family`.
fn asked_for(fleet: &TestFleet, node: usize, family: &str) -> Option<FollowReply> {
    let eid = kinfolk::cluster::tls::issue(&fleet.tls_dir(), None, 2, kinfolk::node::unix_ms() / 1_000);
    let eid = eid.expect("a certificate").eid;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let peer = Peer::connect(&fleet.tls_dir(), eid, fleet.listen(node)).await;
        peer.hello(eid).await.expect("admitted");
        let family = Family::new(family).expect("a family");
        peer.follow(&Follow { family, mode: Mode::Global, classes: Classes::ALL, cursor: None, floor: Hlc::ZERO }).await
    })
}
