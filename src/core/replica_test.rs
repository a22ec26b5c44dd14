//! What a replica promises, input by input. Names are sentences; each asserts what would break.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::clock::{Hlc, Stamp, UnixMs};
use super::codec;
use super::eid::Eid;
use super::family::{Mode, ShareError};
use super::message::{Follow, FollowReply};
use super::path::{Family, Path, Value};
use super::record::{Class, Classes, Record, RecordKey};
use super::register::{Register, value_hash};
use super::replica::{Alarm, Apply, Committed, ImportLine, Input, Outcome, Refusal, Replica, Settings};
use super::session::{Follower, Next, Source};
use super::storage::{Cursor, Read, Run, StoreError};
use super::view::View;
use crate::store::memory::{MemoryReader, MemoryStore};

const NOW: UnixMs = 1_790_000_000_000;
const HOUR_MS: UnixMs = 3_600_000;
const YEAR_MS: UnixMs = 31_536_000_000;

type TestReplica = Replica<MemoryStore>;

fn eid(last: u8) -> Eid {
    Eid::new([2, 0, 0, 0, 0, last])
}

fn family(name: &str) -> Family {
    Family::new(name).expect("a family")
}

fn path(text: &str) -> Path {
    Path::new(text).expect("a path")
}

fn value(text: &str) -> Value {
    Value::new(text).expect("a value")
}

fn plain(at: &str) -> RecordKey {
    RecordKey::plain(path(at))
}

fn put(at: &str, text: &str) -> Input {
    Input::Put { path: path(at), value: value(text) }
}

fn delete(at: &str) -> Input {
    Input::Delete { path: path(at) }
}

fn delete_tree(tree: &str) -> Input {
    Input::DeleteTree { tree: family(tree) }
}

fn share(name: &str, mode: Mode) -> Input {
    Input::Share { family: family(name), mode }
}

fn unshare(name: &str) -> Input {
    Input::Unshare { family: family(name) }
}

fn open(store: MemoryStore, node: u8, run: u64, now: UnixMs) -> TestReplica {
    Replica::open(store, Settings::new(eid(node)), Run(run), now).expect("opens")
}

fn replica(node: u8) -> TestReplica {
    open(MemoryStore::default(), node, u64::from(node), NOW)
}

fn sharing(node: u8, families: &[(&str, Mode)]) -> TestReplica {
    let mut replica = replica(node);
    for (name, mode) in families {
        assert_eq!(one(&mut replica, share(name, *mode)), Outcome::Shared);
    }
    replica
}

fn sharing_foo(node: u8) -> TestReplica {
    sharing(node, &[("foo", Mode::Global)])
}

fn handle(replica: &mut TestReplica, input: Input) -> Committed {
    replica.handle(vec![input], NOW).expect("commits")
}

fn one(replica: &mut TestReplica, input: Input) -> Outcome {
    handle(replica, input).outcomes.remove(0)
}

fn refusal(replica: &mut TestReplica, input: Input) -> Refusal {
    match one(replica, input) {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused but {other:?}"),
    }
}

fn write(replica: &mut TestReplica, input: Input) -> Stamp {
    match one(replica, input) {
        Outcome::Written { stamp, .. } => stamp,
        other => panic!("not written but {other:?}"),
    }
}

fn view(replica: &TestReplica) -> View<MemoryReader> {
    View { read: replica.read().expect("reads"), families: replica.ledger().families.clone(), eid: replica.eid() }
}

fn get(replica: &TestReplica, at: &str) -> Option<String> {
    view(replica).get(&path(at)).expect("reads").map(|found| found.value.to_string())
}

fn tree(replica: &TestReplica) -> Vec<String> {
    let entries = view(replica).tree(None).expect("reads");
    entries.iter().map(|entry| format!("{}={}", entry.path, entry.value)).collect()
}

fn export(replica: &TestReplica) -> Vec<(RecordKey, Register)> {
    let mut records = Vec::new();
    let mut visit = |record: Record| {
        records.push((record.key, record.register));
        ControlFlow::Continue(())
    };
    view(replica).export(false, &mut visit).expect("reads");
    records
}

fn register(node: u8, ms: UnixMs, text: Option<&str>) -> Register {
    let value = text.map(value);
    let hlc = Hlc::from_parts(ms, 0).expect("in range");
    let stamp = Stamp { hlc, eid: eid(node), hash: value_hash(value.as_ref()) };
    Register::new(value, stamp)
}

fn arriving_as(from: u8, name: &str, mode: Mode, records: Vec<(RecordKey, Register)>) -> Input {
    let records = records.into_iter().map(|(key, register)| Record { key, register, crossed: false }).collect();
    let cursor = Some((Classes::LOCAL, Cursor { run: Run(9), seq: 9 }));
    let family = family(name);
    Input::Apply(Apply {
        source: eid(from),
        crossing: false,
        mode,
        since: None,
        floor: None,
        family,
        records,
        cursor,
        drop_cursor: None,
    })
}

fn arriving(from: u8, name: &str, records: Vec<(RecordKey, Register)>) -> Input {
    arriving_as(from, name, Mode::Global, records)
}

/// Lets `to` follow `from` until it has everything. Gives the number of records that crossed.
fn follow(from: &TestReplica, to: &mut TestReplica, name: &str, mode: Mode) -> usize {
    let read = to.read().expect("reads");
    let mut follower = Follower::new(&read, from.eid(), false, family(name), mode, Classes::LOCAL).expect("reads");
    drop(read);
    let mut crossed = 0;
    loop {
        let request = follower.request();
        let read = from.read().expect("reads");
        let (reply, source) = Source::open(&read, &from.ledger().families, &request).expect("reads");
        match follower.on_reply(reply).expect("no violation") {
            Next::Reopen => continue,
            Next::GiveUp { .. } => return crossed,
            _ => {}
        }
        let mut source = source.expect("a stream that goes on has a source");
        let mut reopen = false;
        while !reopen && let Some(entries) = source.next(&read).expect("reads") {
            crossed += entries.records.len();
            let next = follower.on_entries(entries).expect("no violation");
            reopen = matches!(next, Next::ApplyThenReopen(_));
            if let Next::Apply(apply) | Next::ApplyThenReopen(apply) = next {
                assert!(matches!(one(to, Input::Apply(apply)), Outcome::Applied(_)));
            }
        }
        if !reopen {
            assert!(follower.caught_up());
            return crossed;
        }
    }
}

fn follow_foo(from: &TestReplica, to: &mut TestReplica) -> usize {
    follow(from, to, "foo", Mode::Global)
}

// ---- local writes -----------------------------------------------------------------------------

#[test]
fn a_value_is_read_where_it_was_put_and_is_gone_when_deleted() {
    let mut replica = sharing_foo(1);
    write(&mut replica, put("/foo/k", "v"));
    write(&mut replica, put("/plain/k", ""));
    assert_eq!(get(&replica, "/foo/k").as_deref(), Some("v"));
    assert_eq!(get(&replica, "/plain/k").as_deref(), Some(""), "an empty value is a value");
    for at in ["/foo/k", "/plain/k"] {
        write(&mut replica, delete(at));
        assert_eq!(get(&replica, at), None);
        assert_eq!(refusal(&mut replica, delete(at)), Refusal::NotFound);
    }
    let records = export(&replica);
    assert_eq!(records.len(), 1, "a shared family keeps a tombstone, a plain one keeps nothing");
    assert!(records[0].1.is_tombstone());
}

#[test]
fn a_later_input_of_a_batch_sees_the_earlier() {
    let mut replica = sharing_foo(1);
    let inputs = vec![put("/foo/k", "1"), delete("/foo/k"), delete("/foo/k")];
    let committed = replica.handle(inputs, NOW).expect("commits");
    let written = |outcome: &Outcome| match outcome {
        Outcome::Written { stamp, .. } => Some(*stamp),
        _ => None,
    };
    let stamps: Vec<_> = committed.outcomes.iter().filter_map(written).collect();
    assert_eq!(stamps.len(), 2);
    assert!(stamps[0] < stamps[1]);
    assert_eq!(committed.outcomes[2], Outcome::Refused(Refusal::NotFound));
}

#[test]
fn deltree_takes_whole_segments_and_only_what_this_node_can_write() {
    let mut replica = sharing(1, &[("foo", Mode::Global), ("uni", Mode::Unique)]);
    for at in ["/foo/b", "/foo/b/c", "/foo/B/d", "/foo/bb", "/uni/b"] {
        write(&mut replica, put(at, "v"));
    }
    let theirs = (RecordKey::owned(eid(2), path("/uni/b")), register(2, NOW, Some("x")));
    one(&mut replica, arriving_as(2, "uni", Mode::Unique, vec![theirs]));
    assert_eq!(one(&mut replica, delete_tree("foo/b")), Outcome::Removed { count: 2 });
    assert_eq!(get(&replica, "/foo/B/d").as_deref(), Some("v"));
    assert_eq!(get(&replica, "/foo/bb").as_deref(), Some("v"));
    assert_eq!(one(&mut replica, delete_tree("uni")), Outcome::Removed { count: 1 });
    assert_eq!(get(&replica, "/02:00:00:00:00:02/uni/b").as_deref(), Some("x"));
    assert_eq!(one(&mut replica, delete_tree("uni")), Outcome::Removed { count: 0 });
}

#[test]
fn what_only_others_may_write_is_refused_and_named() {
    let mut replica = replica(1);
    for at in ["/02:00:00:00:00:02/foo/k", "/02:00:00:00:00:01/foo/k", "/0A:00:00:00:00:01/foo/k"] {
        assert_eq!(refusal(&mut replica, put(at, "v")), Refusal::UnderEid { path: at.to_string() });
        assert_eq!(refusal(&mut replica, delete(at)), Refusal::UnderEid { path: at.to_string() });
    }
    assert!(matches!(refusal(&mut replica, put("/__kinfolk/member/x", "v")), Refusal::Reserved(_)));
    assert!(matches!(refusal(&mut replica, delete_tree("__asterisk_shared_family")), Refusal::Reserved(_)));
}

#[test]
fn local_limits_bind_local_input_only() {
    let mut settings = Settings::new(eid(1));
    settings.limits.value_max_bytes = 3;
    let mut replica = Replica::open(MemoryStore::default(), settings, Run(1), NOW).expect("opens");
    one(&mut replica, share("foo", Mode::Global));
    assert!(matches!(refusal(&mut replica, put("/foo/k", "long")), Refusal::Invalid(_)));
    one(&mut replica, arriving(2, "foo", vec![(plain("/foo/k"), register(2, NOW, Some("long")))]));
    assert_eq!(get(&replica, "/foo/k").as_deref(), Some("long"));
}

#[test]
fn listings_take_whole_segments_as_asterisk_does() {
    let mut replica = sharing_foo(1);
    for at in ["/foo/a", "/foo/b/c", "/foo/b/d", "/other/a", "/foobar/a"] {
        write(&mut replica, put(at, "v"));
    }
    let paths =
        |entries: Vec<super::view::Entry>| entries.iter().map(|entry| entry.path.to_string()).collect::<Vec<_>>();
    let tree = |name: &str| paths(view(&replica).tree(Some(&family(name))).expect("reads"));
    assert_eq!(tree("foo"), ["/foo/a", "/foo/b/c", "/foo/b/d"]);
    assert_eq!(tree("foo/b"), ["/foo/b/c", "/foo/b/d"]);
    assert_eq!(tree("foo/a"), ["/foo/a"]);
    let keys = |name: &str| paths(view(&replica).keys(&family(name)).expect("reads"));
    assert_eq!(keys("a"), ["/foo/a", "/foobar/a", "/other/a"]);
    assert_eq!(keys("b/c"), ["/foo/b/c"]);
    let shared = view(&replica).tree(Some(&family("foo/a"))).expect("reads")[0].shared;
    assert_eq!(shared, Some(Mode::Global));
}

// ---- stamps -----------------------------------------------------------------------------------

#[test]
fn a_write_beats_the_far_future_value_it_replaces_though_the_clock_does_not_follow() {
    let mut replica = sharing_foo(1);
    let year_ahead = register(2, NOW + YEAR_MS, Some("mad"));
    let committed = handle(&mut replica, arriving(2, "foo", vec![(plain("/foo/k"), year_ahead.clone())]));
    assert_eq!(get(&replica, "/foo/k").as_deref(), Some("mad"), "merged at once");
    let alarm = Alarm::FarFuture { eid: eid(2), ahead_ms: YEAR_MS };
    assert_eq!(committed.alarms.into_iter().collect::<Vec<_>>(), [alarm]);
    assert_eq!((committed.counts.far_future, committed.counts.duplicate_eid), (1, 0));
    assert!(write(&mut replica, put("/foo/k", "sane")) > year_ahead.stamp());
    let beside = write(&mut replica, put("/foo/other", "v"));
    assert_eq!(beside.hlc.unix_ms(), NOW, "other keys are stamped with the present");
}

#[test]
fn a_write_made_after_seeing_a_value_beats_it_whatever_the_clocks_say() {
    let mut ahead = sharing_foo(1);
    let mut behind = sharing_foo(2);
    let seen = ahead.handle(vec![put("/foo/k", "seen")], NOW + 50_000).expect("commits");
    follow_foo(&ahead, &mut behind);
    write(&mut behind, put("/foo/k2", "other key, also later"));
    let later = behind.handle(vec![put("/foo/k", "later")], NOW - HOUR_MS).expect("commits");
    assert_ne!(seen.outcomes, later.outcomes);
    follow_foo(&behind, &mut ahead);
    assert_eq!(get(&ahead, "/foo/k").as_deref(), Some("later"));
}

#[test]
fn a_write_after_a_purge_floor_lies_above_it() {
    let mut replica = sharing_foo(1);
    let floor = Hlc::from_parts(NOW + 10_000_000, 0).expect("in range");
    let note = (plain("/__kinfolk/floor/foo"), register(2, NOW, Some(&floor.as_u64().to_string())));
    assert!(matches!(one(&mut replica, arriving(2, "__kinfolk", vec![note])), Outcome::Applied(_)));
    assert!(write(&mut replica, put("/foo/k", "v")).hlc > floor);
    let mut again = open(replica.into_store(), 1, 2, NOW);
    assert!(write(&mut again, put("/foo/k2", "v")).hlc > floor, "also after a restart");
}

#[test]
fn no_stamp_is_given_twice_after_a_restart_with_the_wall_clock_back() {
    let mut replica = sharing_foo(1);
    let first = write(&mut replica, put("/foo/k", "v"));
    for back_ms in [30_000, HOUR_MS, 10 * YEAR_MS] {
        let mut again = open(replica.store().clone(), 1, back_ms, NOW - back_ms);
        let outcome = again.handle(vec![put("/foo/k", "v")], NOW - back_ms).expect("commits").outcomes.remove(0);
        assert!(matches!(outcome, Outcome::Written { stamp, .. } if stamp > first), "{back_ms} ms back");
    }
}

#[test]
fn nothing_is_written_over_the_greatest_stamp_there_is() {
    let mut replica = sharing_foo(1);
    let last = value("last");
    let stamp = Stamp { hlc: Hlc::MAX, eid: eid(2), hash: value_hash(Some(&last)) };
    one(&mut replica, arriving(2, "foo", vec![(plain("/foo/k"), Register::new(Some(last), stamp))]));
    assert_eq!(refusal(&mut replica, put("/foo/k", "v")), Refusal::StampExhausted);
    assert_eq!(one(&mut replica, delete_tree("foo")), Outcome::Removed { count: 0 });
}

#[test]
fn two_nodes_with_one_eid_are_reported() {
    let mut replica = sharing_foo(1);
    one(&mut replica, arriving(2, "foo", vec![(plain("/foo/k"), register(3, NOW, Some("a")))]));
    let committed = handle(&mut replica, arriving(2, "foo", vec![(plain("/foo/k"), register(3, NOW, Some("b")))]));
    assert!(committed.alarms.contains(&Alarm::DuplicateEid { eid: eid(3) }));
    assert_eq!(committed.counts.duplicate_eid, 1);
}

// ---- sharing: the scenarios of the patch's own unit tests -------------------------------------

#[test]
fn a_family_is_shared_once_only_and_its_mode_cannot_change() {
    let mut replica = sharing_foo(1);
    for mode in [Mode::Global, Mode::Unique] {
        let expected = Refusal::Share(ShareError::AlreadyShared(family("foo")));
        assert_eq!(refusal(&mut replica, share("foo", mode)), expected);
    }
    assert_eq!(get(&replica, "/__asterisk_shared_family/foo").as_deref(), Some("GLOBAL"));
}

#[test]
fn an_overlapping_share_is_refused() {
    let mut replica = sharing(1, &[("foo/bar", Mode::Global)]);
    for name in ["foo", "foo/bar/baz"] {
        let expected = Refusal::Share(ShareError::Overlaps(family(name), family("foo/bar")));
        assert_eq!(refusal(&mut replica, share(name, Mode::Global)), expected);
    }
}

#[test]
fn a_family_that_a_live_member_shares_in_another_mode_is_refused() {
    let mut replica = replica(1);
    let modes = BTreeMap::from([(family("foo"), vec![(eid(2), Mode::Unique)])]);
    one(&mut replica, Input::Elsewhere { modes });
    let expected = Refusal::Share(ShareError::OtherMode(family("foo"), Mode::Unique, eid(2)));
    assert_eq!(refusal(&mut replica, share("foo", Mode::Global)), expected);
    assert_eq!(one(&mut replica, share("foo", Mode::Unique)), Outcome::Shared);
}

#[test]
fn unsharing_twice_fails() {
    let mut replica = sharing_foo(1);
    assert_eq!(one(&mut replica, unshare("foo")), Outcome::Unshared);
    assert_eq!(refusal(&mut replica, unshare("foo")), Refusal::NotShared(family("foo")));
}

#[test]
fn marks_are_seen_and_written_as_keys() {
    let mut replica = replica(1);
    write(&mut replica, put("/__asterisk_shared_family/uni", "UNIQUE"));
    assert_eq!(tree(&replica), ["/__asterisk_shared_family/uni=UNIQUE"]);
    let bad = put("/__asterisk_shared_family/bar", "local");
    assert!(matches!(refusal(&mut replica, bad), Refusal::UnknownMode(_)));
    write(&mut replica, delete("/__asterisk_shared_family/uni"));
    assert!(tree(&replica).is_empty());
}

#[test]
fn values_from_before_the_sharing_are_not_announced_as_new_writes() {
    let mut replica = replica(1);
    let before = write(&mut replica, put("/foo/k", "old"));
    let committed = handle(&mut replica, share("foo", Mode::Global));
    assert!(!committed.touched.contains_key(&family("foo")), "no follower is woken but those of the books");
    assert_eq!(export(&replica)[0].1.stamp(), before, "the stamp is the one of the write");
    let mut other = sharing_foo(2);
    write(&mut other, put("/foo/k", "newer"));
    follow_foo(&replica, &mut other);
    assert_eq!(get(&other, "/foo/k").as_deref(), Some("newer"), "an older value does not win by being shared later");
    follow_foo(&other, &mut replica);
    assert_eq!(export(&replica), export(&other));
}

#[test]
fn an_unshared_family_ignores_updates() {
    let mut replica = sharing_foo(1);
    one(&mut replica, unshare("foo"));
    let update = arriving(2, "foo", vec![(plain("/foo/k"), register(2, NOW, Some("v")))]);
    assert_eq!(refusal(&mut replica, update), Refusal::NotShared(family("foo")));
    assert_eq!(get(&replica, "/foo/k"), None);
}

#[test]
fn unique_values_land_under_the_eid_of_their_owner_elsewhere() {
    let mut a = sharing(1, &[("uni", Mode::Unique)]);
    let mut b = sharing(2, &[("uni", Mode::Unique)]);
    write(&mut a, put("/uni/k", "a"));
    write(&mut b, put("/uni/k", "b"));
    follow(&a, &mut b, "uni", Mode::Unique);
    follow(&b, &mut a, "uni", Mode::Unique);
    assert_eq!(
        tree(&b),
        ["/02:00:00:00:00:01/uni/k=a", "/__asterisk_shared_family/uni=UNIQUE", "/uni/k=b"],
        "the other's copy under its EID, one's own at the plain path"
    );
    assert_eq!(get(&a, "/02:00:00:00:00:01/uni/k").as_deref(), Some("a"), "one's own copy is also there");
    assert_eq!(export(&a), export(&b));
}

#[test]
fn sharing_as_unique_makes_the_records_ones_own_and_unsharing_makes_them_plain_again() {
    let mut replica = replica(1);
    let before = write(&mut replica, put("/uni/k", "v"));
    one(&mut replica, share("uni", Mode::Unique));
    assert_eq!(export(&replica)[0].0, RecordKey::owned(eid(1), path("/uni/k")));
    assert_eq!(export(&replica)[0].1.stamp(), before);
    one(&mut replica, unshare("uni"));
    assert_eq!(get(&replica, "/uni/k").as_deref(), Some("v"));
    assert!(export(&replica).is_empty());
    assert_eq!(one(&mut replica, share("uni", Mode::Global)), Outcome::Shared, "the mode may be another now");
    assert_eq!(export(&replica)[0].0, plain("/uni/k"));
}

#[test]
fn copies_from_a_time_as_unique_are_not_served_when_the_family_is_shared_globally() {
    // Found by the simulator: seed 5826 of the mixed swarm.
    let mut a = sharing(1, &[("uni", Mode::Unique)]);
    let mut b = sharing(2, &[("uni", Mode::Unique)]);
    write(&mut b, put("/uni/k", "b"));
    follow(&b, &mut a, "uni", Mode::Unique);
    for replica in [&mut a, &mut b] {
        one(replica, unshare("uni"));
        one(replica, share("uni", Mode::Global));
    }
    assert_eq!(follow(&a, &mut b, "uni", Mode::Global), 0);
    write(&mut a, put("/uni/k", "a"));
    assert_eq!(follow(&a, &mut b, "uni", Mode::Global), 1);
    assert_eq!(get(&b, "/uni/k").as_deref(), Some("a"));
    follow(&b, &mut a, "uni", Mode::Global);
    assert_eq!(export(&a), export(&b), "nor are they exported or counted as the family's");
    assert_eq!(a.ledger().tallies, b.ledger().tallies);
}

#[test]
fn what_was_asked_for_under_an_earlier_sharing_brings_back_no_cursor() {
    let mut a = sharing_foo(1);
    let mut b = sharing_foo(2);
    write(&mut a, put("/foo/k", "v"));
    let read = b.read().expect("reads");
    let mut follower = Follower::new(&read, eid(1), false, family("foo"), Mode::Global, Classes::LOCAL).expect("reads");
    drop(read);
    let (reply, source) = {
        let read = a.read().expect("reads");
        Source::open(&read, &a.ledger().families, &follower.request()).expect("reads")
    };
    follower.on_reply(reply).expect("no violation");
    let entries = source.expect("shared").next(&a.read().expect("reads")).expect("reads").expect("entries");
    let Next::ApplyThenReopen(late) = follower.on_entries(entries).expect("no violation") else {
        panic!("a whole family is applied")
    };
    one(&mut b, unshare("foo"));
    write(&mut b, put("/foo/other", "v"));
    one(&mut b, share("foo", Mode::Global));
    assert_eq!(refusal(&mut b, Input::Apply(late)), Refusal::NotShared(family("foo")));
    assert!(b.read().expect("reads").cursors().expect("reads").is_empty());
}

#[test]
fn a_source_knows_when_its_sharing_has_ended() {
    let mut a = sharing_foo(1);
    let read = a.read().expect("reads");
    let request =
        Follow { family: family("foo"), mode: Mode::Global, classes: Classes::ALL, cursor: None, floor: Hlc::ZERO };
    let (_, source) = Source::open(&read, &a.ledger().families, &request).expect("reads");
    let source = source.expect("shared");
    drop(read);
    assert!(source.still_serves(&a.ledger().families));
    one(&mut a, unshare("foo"));
    assert!(!source.still_serves(&a.ledger().families));
    one(&mut a, share("foo", Mode::Global));
    assert!(!source.still_serves(&a.ledger().families), "another sharing has another beginning");
}

// ---- following --------------------------------------------------------------------------------

#[test]
fn a_node_neither_receives_nor_serves_a_family_it_does_not_share() {
    let mut a = sharing(1, &[("a", Mode::Global), ("b", Mode::Global)]);
    let mut b = sharing(2, &[("a", Mode::Global)]);
    write(&mut a, put("/a/k", "v"));
    write(&mut a, put("/b/k", "secret"));
    follow(&a, &mut b, "a", Mode::Global);
    assert_eq!(refusal(&mut b, arriving(1, "b", Vec::new())), Refusal::NotShared(family("b")));
    assert_eq!(get(&b, "/b/k"), None);
    write(&mut b, put("/b/k", "local"));
    let request =
        Follow { family: family("b"), mode: Mode::Global, classes: Classes::ALL, cursor: None, floor: Hlc::ZERO };
    let (reply, source) = Source::open(&b.read().expect("reads"), &b.ledger().families, &request).expect("reads");
    assert_eq!(reply, FollowReply::NotShared { mode: None });
    assert!(source.is_none());
}

#[test]
fn a_record_outside_its_family_is_refused_whole_and_moves_no_cursor() {
    let mut replica = sharing_foo(1);
    let good = (plain("/foo/k"), register(2, NOW, Some("v")));
    for bad in [plain("/bar/k"), RecordKey::owned(eid(2), path("/foo/k2"))] {
        let update = arriving(2, "foo", vec![good.clone(), (bad, register(2, NOW, Some("v")))]);
        assert!(matches!(refusal(&mut replica, update), Refusal::OutsideFamily { .. }));
    }
    assert_eq!(get(&replica, "/foo/k"), None);
    assert!(replica.read().expect("reads").cursors().expect("reads").is_empty());
}

#[test]
fn a_follower_resumes_at_its_cursor_and_each_record_crosses_once() {
    let mut a = sharing_foo(1);
    let mut b = sharing_foo(2);
    for n in 0..1_000 {
        write(&mut a, put(&format!("/foo/k{}", n % 10), &n.to_string()));
    }
    assert_eq!(follow_foo(&a, &mut b), 10, "compacted: each record stands once");
    write(&mut a, put("/foo/k3", "last"));
    assert_eq!(follow_foo(&a, &mut b), 1);
    assert_eq!(follow_foo(&a, &mut b), 0);
    assert_eq!(export(&a), export(&b));
}

#[test]
fn a_follower_of_a_restarted_source_resumes_and_of_a_rolled_back_one_compares() {
    let mut a = sharing_foo(1);
    let mut b = sharing_foo(2);
    write(&mut a, put("/foo/k1", "v"));
    let snapshot = a.store().clone();
    follow_foo(&a, &mut b);
    write(&mut a, put("/foo/k2", "v"));
    follow_foo(&a, &mut b);
    let mut restarted = open(a.into_store(), 1, 11, NOW);
    write(&mut restarted, put("/foo/k3", "v"));
    assert_eq!(follow_foo(&restarted, &mut b), 1, "a known run: only what is new");
    let mut rolled_back = open(snapshot, 1, 12, NOW + 1);
    write(&mut rolled_back, put("/foo/k4", "v"));
    assert_eq!(follow_foo(&rolled_back, &mut b), 2, "everything again, and nothing is skipped");
    assert_eq!(get(&b, "/foo/k4").as_deref(), Some("v"));
}

#[test]
fn a_family_shared_again_is_compared_since_writes_may_have_been_missed() {
    let mut a = sharing_foo(1);
    let mut b = sharing_foo(2);
    write(&mut a, put("/foo/k1", "v"));
    follow_foo(&a, &mut b);
    one(&mut a, unshare("foo"));
    write(&mut a, put("/foo/k2", "v"));
    one(&mut a, share("foo", Mode::Global));
    assert_eq!(follow_foo(&a, &mut b), 2);
    assert_eq!(export(&a), export(&b));
}

#[test]
fn a_wiped_node_gets_its_own_unique_records_back() {
    let mut a = sharing(1, &[("uni", Mode::Unique)]);
    let mut b = sharing(2, &[("uni", Mode::Unique)]);
    write(&mut a, put("/uni/k", "mine"));
    follow(&a, &mut b, "uni", Mode::Unique);
    let mut wiped = sharing(1, &[("uni", Mode::Unique)]);
    follow(&b, &mut wiped, "uni", Mode::Unique);
    assert_eq!(get(&wiped, "/uni/k").as_deref(), Some("mine"));
}

#[test]
fn the_largest_values_cross_in_frames_within_the_limit() {
    let mut a = sharing_foo(1);
    let large = "v".repeat(65_536);
    for n in 0..20 {
        write(&mut a, put(&format!("/foo/{n}"), &large));
    }
    let read = a.read().expect("reads");
    let request =
        Follow { family: family("foo"), mode: Mode::Global, classes: Classes::ALL, cursor: None, floor: Hlc::ZERO };
    let (_, source) = Source::open(&read, &a.ledger().families, &request).expect("reads");
    let mut source = source.expect("shared");
    let mut records = 0;
    while let Some(entries) = source.next(&read).expect("reads") {
        records += entries.records.len();
        codec::encode_frame(&entries).expect("within the frame limit");
    }
    assert_eq!(records, 20);
}

// ---- failing commits --------------------------------------------------------------------------

#[test]
fn a_failed_commit_changes_nothing_and_the_next_write_works() {
    let mut replica = sharing_foo(1);
    write(&mut replica, put("/foo/k", "kept"));
    let state = |replica: &TestReplica| (replica.ledger().head, replica.ledger().tallies.clone(), export(replica));
    let before = state(&replica);
    replica.store_mut().fail_next_commit(StoreError::Full);
    let error = replica.handle(vec![put("/foo/k", "lost"), share("bar", Mode::Global)], NOW).expect_err("no space");
    assert_eq!(error, StoreError::Full);
    assert_eq!(state(&replica), before);
    assert_eq!(replica.ledger().families.mark(&family("bar")), None);
    write(&mut replica, put("/foo/k", "written"));
    assert_eq!(get(&replica, "/foo/k").as_deref(), Some("written"));
}

#[test]
fn a_batch_that_changes_nothing_costs_no_commit() {
    let mut replica = sharing_foo(1);
    replica.store_mut().fail_next_commit(StoreError::Full);
    let committed = handle(&mut replica, delete("/foo/absent"));
    assert!(!committed.changed);
}

// ---- import -----------------------------------------------------------------------------------

#[test]
fn an_import_merges_stamped_lines_and_writes_the_others_afresh() {
    let mut replica = sharing_foo(1);
    let ours = write(&mut replica, put("/foo/k", "ours"));
    let line = |at: &str, text: &str, stamp| ImportLine { key: plain(at), value: Some(value(text)), stamp };
    let old = register(2, NOW - 1_000, Some("old")).stamp();
    let lines = vec![
        line("/foo/k", "old", Some(old)),
        line("/foo/k2", "old", Some(old)),
        line("/foo/k3", "fresh", None),
        line("/foo/k4", "forged", Some(old)),
        line("/02:00:00:00:00:02/foo/k", "v", None),
    ];
    let Outcome::Imported(imported) = one(&mut replica, Input::Import { lines }) else { panic!("not imported") };
    assert_eq!((imported.merges.lost, imported.merges.won, imported.written), (1, 1, 1));
    assert_eq!(imported.refused.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(get(&replica, "/foo/k").as_deref(), Some("ours"));
    assert_eq!(export(&replica)[0].1.stamp(), ours);
}

// ---- counting and books -----------------------------------------------------------------------

#[test]
fn tallies_count_what_the_store_holds_also_after_a_restart() {
    let mut replica = sharing_foo(1);
    write(&mut replica, put("/other/k", "v"));
    for n in 0..5 {
        write(&mut replica, put(&format!("/foo/{n}"), "v"));
    }
    write(&mut replica, delete("/foo/0"));
    write(&mut replica, put("/foo/1", "again"));
    let tally = replica.ledger().tallies[&family("foo")];
    assert_eq!((tally.keys, tally.tombstones), (4, 1));
    let again = open(replica.into_store(), 1, 2, NOW);
    assert_eq!(again.ledger().tallies[&family("foo")], tally);
}

#[test]
fn a_node_enters_itself_in_the_books_once_and_the_books_are_replicated_but_not_seen() {
    let mut a = replica(1);
    assert!(handle(&mut a, Input::Admit).changed);
    assert!(!handle(&mut a, Input::Admit).changed);
    assert!(tree(&a).is_empty());
    assert_eq!(get(&a, "/__kinfolk/member/02:00:00:00:00:01"), None);
    let mut b = replica(2);
    follow(&a, &mut b, "__kinfolk", Mode::Global);
    let record = b.read().expect("reads").record(&plain("/__kinfolk/member/02:00:00:00:00:01")).expect("reads");
    assert!(record.is_some());
}

/// The same record from another site, or from this one; gives the class that it has then, and what was done.
fn arrives(node: &mut TestReplica, crossing: bool) -> (Class, Committed) {
    let Input::Apply(apply) = arriving(2, "foo", vec![(plain("/foo/k"), register(2, NOW, Some("v")))]) else {
        unreachable!("it is one");
    };
    let committed = handle(node, Input::Apply(Apply { crossing, cursor: None, ..apply }));
    (class_of(node), committed)
}

fn class_of(node: &TestReplica) -> Class {
    node.read().expect("reads").record(&plain("/foo/k")).expect("reads").expect("it is there").class
}

#[test]
fn a_record_that_came_over_another_site_first_is_kept_as_this_sites_own_when_it_comes_from_here() {
    let mut node = sharing_foo(1);
    assert_eq!(arrives(&mut node, true).0, Class::Far);
    let (class, nearer) = arrives(&mut node, false);
    assert_eq!((class, nearer.touched[&family("foo")]), (Class::Near, Classes::NEAR), "and followers are woken");
    assert!(!arrives(&mut node, true).1.changed, "it never goes back");
}

#[test]
fn what_had_crossed_before_a_family_was_shared_is_for_this_node_to_spread() {
    let mut node = sharing_foo(1);
    arrives(&mut node, true);
    one(&mut node, unshare("foo"));
    one(&mut node, share("foo", Mode::Global));
    assert_eq!(class_of(&node), Class::Near);
}
