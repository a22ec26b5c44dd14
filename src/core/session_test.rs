//! Follow sessions frame by frame: what a source sends, and what a follower makes of it.

use super::clock::Hlc;
use super::clock::UnixMs;
use super::eid::Eid;
use super::family::Mode;
use super::message::{Entries, Follow, FollowReply};
use super::path::{Family, Path, Value};
use super::reconcile::Ended;
use super::record::Classes;
use super::replica::{Apply, Input, Outcome, Replica, Settings};
use super::session::{Follower, Next, Source, Violation};
use super::storage::{Cursor, Run};
use crate::store::memory::MemoryStore;

const NOW: UnixMs = 1_790_000_000_000;
const SOURCE: Eid = Eid::new([2, 0, 0, 0, 0, 1]);
const FOLLOWER: Eid = Eid::new([2, 0, 0, 0, 0, 2]);
const SOURCE_RUN: Run = Run(0xa);

type TestReplica = Replica<MemoryStore>;

fn foo() -> Family {
    Family::new("foo").expect("a family")
}

fn put(path: &str, value: &str) -> Input {
    Input::Put { path: Path::new(path).expect("a path"), value: Value::new(value).expect("a value") }
}

fn handle(replica: &mut TestReplica, inputs: Vec<Input>) -> Vec<Outcome> {
    replica.handle(inputs, NOW).expect("commits").outcomes
}

fn sharing_foo(eid: Eid, run: Run) -> TestReplica {
    let mut replica = Replica::open(MemoryStore::new(), Settings::new(eid), run, NOW).expect("opens");
    let share = Input::Share { family: foo(), mode: Mode::Global };
    assert_eq!(handle(&mut replica, vec![share]), [Outcome::Shared]);
    replica
}

/// A source that shares foo and has these many keys in it.
fn source_with(keys: usize) -> TestReplica {
    let mut source = sharing_foo(SOURCE, SOURCE_RUN);
    handle(&mut source, (0..keys).map(|key| put(&format!("/foo/{key}"), "value")).collect());
    source
}

fn follower_of(replica: &TestReplica) -> Follower {
    follower_in(replica, Classes::LOCAL)
}

fn follower_in(replica: &TestReplica, scope: Classes) -> Follower {
    let read = replica.read().expect("reads");
    Follower::new(&read, SOURCE, false, foo(), Mode::Global, scope).expect("reads")
}

/// A follower's store with a cursor at `seq` in this scope.
fn kept_at(seq: u64, scope: Classes) -> TestReplica {
    let mut replica = sharing_foo(FOLLOWER, Run(0xb));
    let cursor = Some((scope, Cursor { run: SOURCE_RUN, seq }));
    let apply = Apply {
        source: SOURCE,
        crossing: false,
        family: foo(),
        mode: Mode::Global,
        since: None,
        floor: None,
        records: Vec::new(),
        cursor,
        drop_cursor: None,
    };
    handle(&mut replica, vec![Input::Apply(apply)]);
    replica
}

/// A follower with a kept cursor at `seq`, on a stream that is open.
fn resumed_at(seq: u64) -> Follower {
    let mut follower = follower_of(&kept_at(seq, Classes::LOCAL));
    assert_eq!(follower.request().cursor, Some(Cursor { run: SOURCE_RUN, seq }));
    assert_eq!(follower.on_reply(FollowReply::Resume { run: SOURCE_RUN, head: seq }), Ok(Next::Read));
    follower
}

fn complete_to(seq: u64) -> Entries {
    Entries { records: Vec::new(), complete_to: seq, head: seq }
}

fn open(source: &TestReplica, request: &Follow) -> (FollowReply, Option<Source>) {
    Source::open(&source.read().expect("reads"), &source.ledger().families, request).expect("reads")
}

fn next(session: &mut Source, source: &TestReplica) -> Option<Entries> {
    session.next(&source.read().expect("reads")).expect("reads")
}

// ---- everything, by key ------------------------------------------------------------------------

/// A follower without a cursor, after a comparison that has found too much to differ.
fn fetching(follower: &TestReplica) -> Follower {
    let mut session = follower_of(follower);
    assert_eq!(session.on_compared(&Ended::Everything), Some(Next::Reopen));
    session
}

#[test]
fn everything_comes_in_the_order_of_keys_and_is_complete_only_with_the_last_frame() {
    let mut source = sharing_foo(SOURCE, SOURCE_RUN);
    let key = |n: usize| format!("/foo/{:05}", n * 7_919 % 10_000);
    handle(
        &mut source,
        (0..10_000).map(|n| put(&key(n), "a value of some length, so that it takes several frames")).collect(),
    );
    let mut target = sharing_foo(FOLLOWER, Run(0xb));
    let mut follower = fetching(&target);
    let (reply, session) = open(&source, &follower.request());
    let mut session = session.expect("it is served");
    assert_eq!(follower.on_reply(reply), Ok(Next::Read));
    let (mut last, mut frames) = (String::new(), 0);
    loop {
        let entries = next(&mut session, &source).expect("it is not complete");
        frames += 1;
        for record in &entries.records {
            let path = record.key.path.to_string();
            assert!(last < path, "{path} came after {last}");
            last = path;
        }
        if frames == 2 {
            // Behind and before what is being sent.
            handle(&mut source, vec![put("/foo/00000", "new"), put("/foo/09999", "new")]);
        }
        let complete = entries.complete_to;
        match follower.on_entries(entries).expect("a correct source") {
            Next::Apply(apply) => {
                assert_eq!(apply.cursor.map_or(0, |(_, cursor)| cursor.seq), complete);
                handle(&mut target, vec![Input::Apply(apply)]);
                if complete > 0 {
                    last = String::new();
                }
            }
            Next::ApplyThenReopen(apply) => {
                handle(&mut target, vec![Input::Apply(apply)]);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(frames > 3, "{frames}");
    assert_eq!(target.ledger().summaries[&foo()], source.ledger().summaries[&foo()]);
}

// ---- the follower -----------------------------------------------------------------------------

#[test]
fn entries_before_the_reply_are_a_violation() {
    let mut follower = follower_of(&sharing_foo(FOLLOWER, Run(0xb)));
    follower.request();
    assert_eq!(follower.on_entries(complete_to(1)), Err(Violation::EntriesBeforeReply));
}

#[test]
fn a_reply_belongs_to_one_stream() {
    let mut follower = resumed_at(5);
    assert_eq!(follower.on_reply(FollowReply::Resume { run: SOURCE_RUN, head: 5 }), Err(Violation::SecondReply));
    follower.request();
    assert_eq!(follower.on_entries(complete_to(6)), Err(Violation::EntriesBeforeReply), "the next stream has none yet");
    assert_eq!(follower.on_reply(FollowReply::Resume { run: SOURCE_RUN, head: 6 }), Ok(Next::Read));
}

#[test]
fn a_source_that_goes_backwards_is_caught_and_the_cursor_stays() {
    let mut follower = resumed_at(5);
    let backwards = Violation::Backwards { before: 5, complete_to: 4 };
    assert_eq!(follower.on_entries(complete_to(4)), Err(backwards));
    assert_eq!(follower.cursor_seq(), 5);
}

#[test]
fn a_cursor_that_only_passed_what_others_want_is_not_written_each_time() {
    let mut follower = resumed_at(5);
    assert_eq!(follower.on_entries(complete_to(6)), Ok(Next::Read));
    assert_eq!(follower.cursor_seq(), 6, "it is known, only not kept");
    let far = 5 + 10_000;
    assert_eq!(follower.on_entries(complete_to(far - 1)), Ok(Next::Read));
    match follower.on_entries(complete_to(far)) {
        Ok(Next::Apply(apply)) => {
            assert_eq!(apply.cursor, Some((Classes::LOCAL, Cursor { run: SOURCE_RUN, seq: far })));
            assert_eq!(apply.records, []);
        }
        other => panic!("the cursor moved far and is not kept: {other:?}"),
    }
    assert_eq!(follower.on_entries(complete_to(far + 1)), Ok(Next::Read), "counted from where it was kept");
}

#[test]
fn a_cursor_at_the_end_of_all_numbers_does_no_harm() {
    let mut follower = resumed_at(5);
    assert!(matches!(follower.on_entries(complete_to(u64::MAX)), Ok(Next::Apply(_))));
    assert_eq!(follower.on_entries(complete_to(u64::MAX)), Ok(Next::Read));
}

#[test]
fn a_source_that_the_plan_names_anew_is_compared_with_before_it_goes_on() {
    let cursor = Some(Cursor { run: SOURCE_RUN, seq: 3 });
    let kept = kept_at(3, Classes::OF_SITE);
    let mut follower = follower_in(&kept, Classes::OF_SITE);
    assert!(!follower.must_compare(), "its connection was lost, no more");
    follower.take_up();
    assert!(follower.must_compare(), "others may have brought what is behind its cursor");
    // Little differed: it starts where the source was then.
    let equal = Ended::Equal { run: SOURCE_RUN, head: 90 };
    let Some(Next::ApplyThenReopen(apply)) = follower.clone().on_compared(&equal) else { panic!("it starts there") };
    assert_eq!(apply.cursor, Some((Classes::OF_SITE, Cursor { run: SOURCE_RUN, seq: 90 })));
    // Much differs: it has no need to fetch from the beginning.
    assert_eq!(follower.on_compared(&Ended::Everything), Some(Next::Reopen));
    assert!(!follower.must_compare());
    let request = follower.request();
    assert_eq!((request.cursor, request.classes), (cursor, Classes::OF_SITE));
}

#[test]
fn what_a_source_wrote_itself_is_asked_from_the_cursor_on_whoever_was_asked_meanwhile() {
    let mut follower = follower_of(&kept_at(3, Classes::LOCAL));
    follower.take_up();
    assert!(!follower.must_compare());
}

#[test]
fn a_follower_gives_up_where_the_family_is_not_shared_alike() {
    let mut follower = follower_of(&sharing_foo(FOLLOWER, Run(0xb)));
    follower.request();
    let mode = Some(Mode::Unique);
    assert_eq!(follower.on_reply(FollowReply::NotShared { mode }), Ok(Next::GiveUp { mode }));
}

#[test]
fn a_follower_told_to_compare_asks_for_everything_from_the_beginning() {
    let mut follower = resumed_at(5);
    follower.request();
    assert_eq!(follower.on_reply(FollowReply::Compare { run: Run(0xc), head: 9 }), Ok(Next::Reopen));
    assert_eq!(follower.cursor_seq(), 0);
    assert!(!follower.caught_up());
    let request = follower.request();
    assert_eq!((request.classes, request.cursor), (Classes::ALL, None));
}

// ---- both sides -------------------------------------------------------------------------------

/// Reads one frame over and applies it; the follower's task may then be gone.
fn one_frame(source: &TestReplica, session: &mut Source, follower: &mut Follower, to: &mut TestReplica) -> Next {
    let entries = next(session, source).expect("there is more");
    let next = follower.on_entries(entries).expect("no violation");
    if let Next::Apply(apply) | Next::ApplyThenReopen(apply) = &next {
        let outcomes = handle(to, vec![Input::Apply(apply.clone())]);
        assert!(matches!(outcomes[..], [Outcome::Applied(_)]), "{outcomes:?}");
    }
    next
}

#[test]
fn a_bootstrap_that_is_cut_short_goes_on_where_it_was() {
    let mut source = sharing_foo(SOURCE, SOURCE_RUN);
    let large = "v".repeat(8_000);
    handle(&mut source, (0..300).map(|key| put(&format!("/foo/{key:03}"), &large)).collect());
    let mut to = sharing_foo(FOLLOWER, Run(0xb));

    let mut follower = follower_of(&to);
    let request = follower.request();
    assert_eq!((request.classes, request.cursor), (Classes::ALL, None), "a new follower wants everything");
    let (reply, session) = open(&source, &request);
    follower.on_reply(reply).expect("no violation");
    let mut session = session.expect("resumes");
    while follower.cursor_seq() == 0 {
        let step = one_frame(&source, &mut session, &mut follower, &mut to);
        assert!(matches!(step, Next::Apply(_)), "one stretch does not hold it all: {step:?}");
    }
    let reached = follower.cursor_seq();
    assert!(reached < source.ledger().head);
    // Of the next stretch only a part comes.
    one_frame(&source, &mut session, &mut follower, &mut to);
    assert_eq!(follower.cursor_seq(), reached);

    // The follower's process ends here, and comes back with nothing but its store.
    let mut follower = follower_of(&to);
    let request = follower.request();
    assert_eq!(request.classes, Classes::ALL);
    assert_eq!(request.cursor, Some(Cursor { run: SOURCE_RUN, seq: reached }));
    let (reply, session) = open(&source, &request);
    let mut session = session.expect("resumes");
    follower.on_reply(reply).expect("no violation");
    let mut frames = 0;
    while !matches!(one_frame(&source, &mut session, &mut follower, &mut to), Next::ApplyThenReopen(_)) {
        frames += 1;
        assert!(frames < 12, "it never ends");
    }
    let keys = to.ledger().tallies[&foo()].keys;
    assert_eq!(keys, 300);
    let request = follower.request();
    assert_eq!(request.classes, Classes::LOCAL, "from here on in its own scope");
    assert_eq!(request.cursor, Some(Cursor { run: SOURCE_RUN, seq: source.ledger().head }));
    assert_eq!(follower_of(&to).request(), request, "and so after another restart");
}

#[test]
fn a_source_says_once_that_nothing_is_new_and_then_waits() {
    let mut source = source_with(0);
    let head = source.ledger().head;
    let cursor = Some(Cursor { run: SOURCE_RUN, seq: head });
    let request = Follow { family: foo(), mode: Mode::Global, classes: Classes::LOCAL, cursor, floor: Hlc::ZERO };
    let (reply, session) = open(&source, &request);
    assert_eq!(reply, FollowReply::Resume { run: SOURCE_RUN, head });
    let mut session = session.expect("resumes");
    assert_eq!(next(&mut session, &source), Some(complete_to(head)), "so that a quiet family shows no lag");
    assert_eq!(next(&mut session, &source), None);
    handle(&mut source, vec![put("/bar/a", "not shared")]);
    assert_eq!(next(&mut session, &source), Some(complete_to(head + 1)), "others' writes move the cursor");
    handle(&mut source, vec![put("/foo/a", "new")]);
    let entries = next(&mut session, &source).expect("something is new");
    assert_eq!((entries.records.len(), entries.complete_to), (1, head + 2));
}

#[test]
fn a_long_feed_of_what_nobody_asked_for_is_read_in_pieces() {
    const SCAN_MAX_ENTRIES: usize = 16_384;
    let deep = Family::new("foo/deep").expect("a family");
    let mut source = Replica::open(MemoryStore::new(), Settings::new(SOURCE), SOURCE_RUN, NOW).expect("opens");
    handle(&mut source, vec![Input::Share { family: deep.clone(), mode: Mode::Global }]);
    // In the feed of the same first segment, but not in the family.
    handle(&mut source, (0..=SCAN_MAX_ENTRIES).map(|key| put(&format!("/foo/{key}"), "value")).collect());
    let (mode, classes) = (Mode::Global, Classes::LOCAL);
    let request = Follow { family: deep, mode, classes, cursor: None, floor: Hlc::ZERO };
    let (_, session) = open(&source, &request);
    let mut session = session.expect("resumes");
    let head = source.ledger().head;
    let first = next(&mut session, &source).expect("there is more");
    assert_eq!((first.records.len(), first.complete_to, first.head), (0, head - 1, head), "bounded, yet it moves");
    assert_eq!(next(&mut session, &source), Some(complete_to(head)));
    assert_eq!(next(&mut session, &source), None);
}

#[test]
fn a_cursor_beyond_the_end_of_its_run_is_answered_compare() {
    let source = source_with(3);
    let head = source.ledger().head;
    let ask = |run, seq| {
        let cursor = Some(Cursor { run, seq });
        open(&source, &Follow { family: foo(), mode: Mode::Global, classes: Classes::LOCAL, cursor, floor: Hlc::ZERO })
            .0
    };
    assert_eq!(ask(SOURCE_RUN, head), FollowReply::Resume { run: SOURCE_RUN, head });
    assert_eq!(ask(SOURCE_RUN, head + 1), FollowReply::Compare { run: SOURCE_RUN, head });
    assert_eq!(ask(Run(0xdead), 1), FollowReply::Compare { run: SOURCE_RUN, head });
}

/// Written in clumps, in part anew and deleted while they are sent: some frames are scanned, some read key by key.
#[test]
fn whatever_lies_between_the_records_of_a_stretch_a_family_comes_whole() {
    for step in [1, 3, 7, 64, 641] {
        const KEYS: usize = 6_007;
        let mut source = sharing_foo(SOURCE, SOURCE_RUN);
        let key = |n: usize| format!("/foo/{:05}", (n * step) % KEYS);
        handle(&mut source, (0..KEYS).map(|n| put(&key(n), &format!("{n:0150}"))).collect());
        let mut to = sharing_foo(FOLLOWER, Run(0xb));
        let mut follower = follower_of(&to);
        let (reply, session) = open(&source, &follower.request());
        let mut session = session.expect("resumes");
        follower.on_reply(reply).expect("no violation");
        let mut frames = 0;
        while !matches!(one_frame(&source, &mut session, &mut follower, &mut to), Next::ApplyThenReopen(_)) {
            frames += 1;
            let again = (frames * 97..frames * 97 + 40).map(|n| put(&key(n % KEYS), "again"));
            let gone =
                (0..300).map(|n| Input::Delete { path: Path::new(&key((frames * 311 + n) % KEYS)).expect("a path") });
            if frames < 5 {
                handle(&mut source, again.chain(gone).collect());
            }
            assert!(frames < 100, "it never ends");
        }
        assert!(frames > 5, "step {step}: {frames} frames");
        assert_eq!(to.ledger().summaries[&foo()], source.ledger().summaries[&foo()], "step {step}");
    }
}
