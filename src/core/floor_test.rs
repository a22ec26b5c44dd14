//! Purge floors over whole replicas: rounds, adoption, quarantine. Exchange and verify are done by hand here; the
//! simulator does them as the daemon does.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::backup;
use super::books::{Standing, Step};
use super::clock::{Hlc, UnixMs};
use super::eid::Eid;
use super::family::Mode;
use super::floor::{Policy, Seen};
use super::path::{Family, Path, Value};
use super::record::{Record, RecordKey};
use super::replica::{Apply, Input, Outcome, Refusal, Replica, Settings, Verified, Wanted};
use super::storage::{Read, Run, Span, Store, Write};
use crate::store::memory::MemoryStore;

const START: UnixMs = 1_790_000_000_000;
const DAY: u64 = 86_400_000;
const POLICY: Policy = Policy { retention_ms: 10 * DAY, interval_ms: DAY / 4 };

type Node = Replica<MemoryStore>;

fn eid(last: u8) -> Eid {
    Eid::new([2, 0, 0, 0, 0, last])
}

fn foo() -> Family {
    Family::new("foo").expect("a family")
}

fn path(text: &str) -> Path {
    Path::new(text).expect("a path")
}

fn open(store: MemoryStore, last: u8, run: u64, now: UnixMs) -> Node {
    let settings = Settings { policy: POLICY, ..Settings::new(eid(last)) };
    Replica::open(store, settings, Run(run), now).expect("opens")
}

#[track_caller]
fn hand(node: &mut Node, input: Input, now: UnixMs) -> Outcome {
    let outcome = node.handle(vec![input], now).expect("commits").outcomes.remove(0);
    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    outcome
}

fn refused(node: &mut Node, input: Input, now: UnixMs) -> Option<Refusal> {
    match node.handle(vec![input], now).expect("commits").outcomes.remove(0) {
        Outcome::Refused(refusal) => Some(refusal),
        _ => None,
    }
}

fn member(last: u8) -> Node {
    let mut node = open(MemoryStore::new(), last, u64::from(last), START);
    hand(&mut node, Input::Share { family: foo(), mode: Mode::Global }, START);
    hand(&mut node, Input::Admit, START);
    node
}

fn put(node: &mut Node, key: &str, value: &str, now: UnixMs) {
    hand(node, Input::Put { path: path(key), value: Value::new(value).expect("a value") }, now);
}

fn records(node: &Node, family: &Family) -> BTreeMap<RecordKey, Record> {
    let mut records = BTreeMap::new();
    let read = node.read().expect("reads");
    read.scan(Span::Under(family), &mut |(key, stored)| {
        records.insert(key.clone(), Record::new(key, stored));
        ControlFlow::Continue(())
    })
    .expect("scanned");
    records
}

/// What a key holds at a node: none, a tombstone, or a value.
fn holds(node: &Node, key: &str) -> Option<Option<String>> {
    let found = records(node, &foo()).remove(&RecordKey::plain(path(key)))?;
    Some(found.register.value().map(ToString::to_string))
}

fn value(text: &str) -> Option<Option<String>> {
    Some(Some(text.to_string()))
}

fn aside(node: &Node) -> Vec<String> {
    let mut keys = Vec::new();
    let read = node.read().expect("reads");
    read.quarantine(&mut |(key, _)| {
        keys.push(key.path.to_string());
        ControlFlow::Continue(())
    })
    .expect("scanned");
    keys
}

fn send(from: &Node, to: &mut Node, family: &Family, now: UnixMs) -> Option<Refusal> {
    let apply = Apply {
        source: from.eid(),
        crossing: false,
        family: family.clone(),
        mode: Mode::Global,
        since: None,
        floor: from.ledger().families.floor_of(family),
        records: records(from, family).into_values().collect(),
        cursor: None,
        drop_cursor: None,
    };
    refused(to, Input::Apply(apply), now)
}

/// Looks at the floor of a node, until its books and those of the others are quiet.
fn settle(nodes: &mut [Node], reached: &[(usize, usize)], now: UnixMs) {
    for _ in 0..12 {
        for node in nodes.iter_mut() {
            while let Outcome::Floors { more: true, .. } = hand(node, Input::Floors, now) {}
        }
        for &(a, b) in reached {
            let (a, b) = (a.min(b), a.max(b));
            let (left, right) = nodes.split_at_mut(b);
            let (one, two) = (&mut left[a], &mut right[0]);
            send(one, two, &Family::books(), now);
            send(two, one, &Family::books(), now);
            let head = (one.ledger().head, two.ledger().head);
            let verified = send(one, two, &foo(), now).is_none() && send(two, one, &foo(), now).is_none();
            if verified {
                for (node, peer, head) in [(0, 1, head.0), (1, 0, head.1)] {
                    let pair = [&mut *one, &mut *two];
                    let (peer, run) = (pair[peer].eid(), pair[peer].run());
                    let [one, two] = pair;
                    let node = if node == 0 { one } else { two };
                    hand(node, Input::Verified(Verified { family: foo(), peer, run, head }), now);
                }
            }
        }
    }
}

const ALL: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];

/// Three members with two keys; one is deleted while the third may be away.
fn cluster(away: bool) -> Vec<Node> {
    let mut nodes: Vec<Node> = (1..=3).map(member).collect();
    put(&mut nodes[0], "/foo/kept", "v", START);
    put(&mut nodes[0], "/foo/gone", "v", START);
    settle(&mut nodes, &ALL, START);
    hand(&mut nodes[1], Input::Delete { path: path("/foo/gone") }, START + 1);
    settle(&mut nodes, if away { &ALL[..1] } else { &ALL }, START + 2);
    nodes
}

fn floor(node: &Node) -> Option<Hlc> {
    node.ledger().families.floor_of(&foo())
}

#[test]
fn a_tombstone_goes_everywhere_when_every_member_has_had_it_and_retention_is_over() {
    let mut nodes = cluster(false);
    settle(&mut nodes, &ALL, START + 9 * DAY);
    assert!(nodes.iter().all(|node| holds(node, "/foo/gone") == Some(None)), "retention is not over");
    settle(&mut nodes, &ALL, START + 11 * DAY);
    let due = Hlc::from_parts(START + DAY, 0);
    for node in &nodes {
        assert_eq!(floor(node), due);
        assert_eq!((holds(node, "/foo/gone"), holds(node, "/foo/kept")), (None, value("v")));
        assert_eq!(node.ledger().tallies[&foo()].tombstones, 0);
        assert_eq!(aside(node), Vec::<String>::new(), "nothing is in doubt for members that took part");
    }
}

#[test]
fn where_nothing_was_deleted_no_round_begins() {
    let mut nodes: Vec<Node> = (1..=2).map(member).collect();
    put(&mut nodes[0], "/foo/kept", "v", START);
    settle(&mut nodes, &ALL[..1], START + 30 * DAY);
    assert_eq!(nodes[0].ledger().books.of(&foo()).round, None);
    put(&mut nodes[0], "/foo/gone", "v", START + 30 * DAY);
    hand(&mut nodes[0], Input::Delete { path: path("/foo/gone") }, START + 30 * DAY);
    settle(&mut nodes, &ALL[..1], START + 41 * DAY);
    assert_eq!(nodes.iter().map(|node| holds(node, "/foo/gone")).collect::<Vec<_>>(), [None, None]);
}

#[test]
fn a_member_that_is_away_pins_the_tombstones_and_is_named() {
    let mut nodes = cluster(true);
    settle(&mut nodes, &ALL[..1], START + 30 * DAY);
    assert!(floor(&nodes[0]) < Hlc::from_parts(START, 0), "{:?}", floor(&nodes[0]));
    assert_eq!(holds(&nodes[0], "/foo/gone"), Some(None));
    let ledger = nodes[0].ledger();
    let family = foo();
    let seen = Seen {
        me: eid(1),
        run: Run(1),
        books: &ledger.books,
        family: &family,
        local: Default::default(),
        tombstones: 1,
        policy: POLICY,
        now: START + 30 * DAY,
    };
    let pinned = seen.pinned().expect("it is pinned");
    assert_eq!((pinned.by, pinned.lacks), (vec![eid(3)], Step::Promised));
    settle(&mut nodes, &ALL, START + 31 * DAY);
    assert!(nodes.iter().all(|node| holds(node, "/foo/gone").is_none()), "it came back, and had everything first");
}

#[test]
fn what_a_decommissioned_member_brings_back_is_set_aside_and_spreads_nowhere() {
    let mut nodes = cluster(true);
    put(&mut nodes[2], "/foo/own", "written while away", START + 3);
    let input = Input::Standing { eid: eid(3), standing: Standing::Decommissioned };
    hand(&mut nodes[0], input, START + 20 * DAY);
    settle(&mut nodes, &ALL[..1], START + 20 * DAY);
    assert_eq!(holds(&nodes[0], "/foo/gone"), None, "nobody waits for it");
    put(&mut nodes[2], "/foo/late", "written just now", START + 21 * DAY);
    settle(&mut nodes, &ALL, START + 21 * DAY);
    for node in &nodes {
        assert_eq!((holds(node, "/foo/gone"), holds(node, "/foo/own")), (None, None));
        assert_eq!((holds(node, "/foo/kept"), holds(node, "/foo/late")), (value("v"), value("written just now")));
    }
    assert_eq!(aside(&nodes[2]), ["/foo/gone", "/foo/own"]);
    // The operator knows which of the two was never deleted.
    let key = |text| RecordKey::plain(path(text));
    hand(&mut nodes[2], Input::Release { key: key("/foo/own") }, START + 21 * DAY);
    hand(&mut nodes[2], Input::Discard { key: key("/foo/gone") }, START + 21 * DAY);
    assert_eq!(refused(&mut nodes[2], Input::Discard { key: key("/foo/gone") }, START), Some(Refusal::NotQuarantined));
    settle(&mut nodes, &ALL, START + 21 * DAY);
    assert!(nodes.iter().all(|node| holds(node, "/foo/own") == value("written while away")));
    assert_eq!((aside(&nodes[2]).len(), nodes[2].ledger().quarantined), (0, 0));
}

#[test]
fn an_old_backup_restored_as_a_new_member_resurrects_nothing() {
    let mut nodes: Vec<Node> = (1..=2).map(member).collect();
    put(&mut nodes[0], "/foo/kept", "v", START);
    put(&mut nodes[0], "/foo/gone", "v", START);
    let (mut store, mut head) = (MemoryStore::new(), 0);
    {
        let mut bytes: Vec<Vec<u8>> = Vec::new();
        let taken = backup::Head { eid: eid(1), taken_unix_ms: START, version: "0".into() };
        let mut emit = |piece: Vec<u8>| {
            bytes.push(piece);
            ControlFlow::Continue(())
        };
        backup::write(&nodes[0].read().expect("reads"), taken, &mut emit).expect("written");
        let bytes = bytes.concat();
        let (preamble, mut rest) = bytes.split_first_chunk().expect("a preamble");
        let mut decoder = backup::Decoder::begin(preamble).expect("a backup");
        let mut write = store.write().expect("a transaction");
        while let Some((piece, behind)) = rest.split_first_chunk() {
            let (row, behind) = behind.split_at(decoder.row_bytes(piece).expect("a length"));
            backup::restore(&mut write, decoder.piece(piece, row).expect("a piece"), &mut head).expect("restored");
            rest = behind;
        }
        write.commit().expect("durable");
    }
    hand(&mut nodes[1], Input::Floors, START);
    settle(&mut nodes, &ALL[..1], START + 1);
    hand(&mut nodes[1], Input::Delete { path: path("/foo/gone") }, START + 2);
    settle(&mut nodes, &ALL[..1], START + 20 * DAY);
    assert_eq!(holds(&nodes[0], "/foo/gone"), None, "it is forgotten");
    let mut restored = open(store, 9, 99, START + 21 * DAY);
    hand(&mut restored, Input::Admit, START + 21 * DAY);
    assert_eq!(holds(&restored, "/foo/gone"), value("v"));
    assert!(send(&restored, &mut nodes[0], &foo(), START + 21 * DAY).is_some(), "at another floor nothing is taken");
    nodes.push(restored);
    settle(&mut nodes, &ALL, START + 21 * DAY);
    for node in &nodes {
        assert_eq!((holds(node, "/foo/gone"), holds(node, "/foo/kept")), (None, value("v")));
    }
    assert_eq!(aside(&nodes[2]), ["/foo/gone"], "what is alive elsewhere is not in doubt");
}

#[test]
fn an_import_does_not_bring_back_what_lies_below_the_floor() {
    let mut nodes = cluster(false);
    let old = records(&nodes[2], &foo()).remove(&RecordKey::plain(path("/foo/kept"))).expect("it is there");
    settle(&mut nodes, &ALL, START + 11 * DAY);
    let line = super::replica::ImportLine {
        key: RecordKey::plain(path("/foo/gone")),
        value: old.register.value().cloned(),
        stamp: Some(old.register.stamp()),
    };
    let outcome = hand(&mut nodes[0], Input::Import { lines: vec![line] }, START + 11 * DAY);
    let Outcome::Imported(imported) = outcome else { panic!("{outcome:?}") };
    assert_eq!(imported.refused, [(0, Refusal::BelowFloor(foo()))]);
    assert_eq!(holds(&nodes[0], "/foo/gone"), None);
}

#[test]
fn only_a_verify_with_the_collectors_run_and_since_it_was_due_counts() {
    let mut nodes: Vec<Node> = (1..=2).map(member).collect();
    let now = START + 11 * DAY;
    let wanted = |node: &mut Node, input| match hand(node, input, now) {
        Outcome::Floors { mut wanted, .. } => wanted.pop(),
        other => panic!("{other:?}"),
    };
    let books_meet = |nodes: &mut Vec<Node>| {
        let (one, two) = nodes.split_at_mut(1);
        send(&one[0], &mut two[0], &Family::books(), now);
        send(&two[0], &mut one[0], &Family::books(), now);
    };
    put(&mut nodes[0], "/foo/gone", "v", START);
    hand(&mut nodes[0], Input::Delete { path: path("/foo/gone") }, START + 1);
    books_meet(&mut nodes);
    let before = nodes[1].ledger().head;
    for _ in 0..3 {
        nodes.iter_mut().for_each(|node| _ = wanted(node, Input::Floors));
        books_meet(&mut nodes);
    }
    let collector = Wanted { family: foo(), peer: eid(1), run: Run(1) };
    assert_eq!(wanted(&mut nodes[1], Input::Floors).as_ref(), Some(&collector));
    let head = nodes[1].ledger().head;
    let verified = |peer, run, head| Input::Verified(Verified { family: foo(), peer, run: Run(run), head });
    for stale in [verified(eid(1), 1, before), verified(eid(1), 7, head), verified(eid(3), 1, head)] {
        assert_eq!(wanted(&mut nodes[1], stale).as_ref(), Some(&collector), "it still waits");
    }
    assert_eq!(wanted(&mut nodes[1], verified(eid(1), 1, head)), None, "now it waits for the others");
    let family = foo();
    assert_eq!(nodes[1].ledger().books.of(&family).notes[&eid(2)].step, Step::Gathered);
}

#[test]
fn records_that_come_without_a_floor_bring_nothing_from_below_it() {
    let mut nodes = cluster(false);
    let old = records(&nodes[2], &foo()).remove(&RecordKey::plain(path("/foo/gone"))).expect("it is there");
    settle(&mut nodes, &ALL, START + 11 * DAY);
    let apply = Apply {
        source: eid(3),
        crossing: true,
        family: foo(),
        mode: Mode::Global,
        since: None,
        floor: None,
        records: vec![old],
        cursor: None,
        drop_cursor: None,
    };
    let Outcome::Applied(merges) = hand(&mut nodes[0], Input::Apply(apply), START + 11 * DAY) else { panic!() };
    assert_eq!((merges.barred, holds(&nodes[0], "/foo/gone")), (1, None));
}

#[test]
fn a_family_is_exchanged_only_with_whom_the_books_know_to_share_it() {
    let nodes = cluster(false);
    let books = &nodes[0].ledger().books;
    assert!(books.knows(&foo(), eid(2)) && books.knows(&Family::books(), eid(9)));
    assert!(!books.knows(&foo(), eid(9)) && !books.knows(&Family::new("bar").expect("a family"), eid(2)));
}

#[test]
fn a_node_that_the_books_lack_is_entered_again() {
    let mut node = member(1);
    assert!(node.ledger().stands_in_books(eid(1)));
    let share = Path::new(&format!("/__kinfolk/share/{}/foo", eid(1))).expect("a path");
    let gone = super::register::Register::new(
        None,
        super::clock::Stamp {
            hlc: Hlc::from_parts(START + 5, 0).expect("a moment"),
            eid: eid(1),
            hash: super::register::value_hash(None),
        },
    );
    let apply = Apply {
        source: eid(2),
        crossing: false,
        family: Family::books(),
        mode: Mode::Global,
        since: None,
        floor: None,
        records: vec![Record { key: RecordKey::plain(share), register: gone, crossed: false }],
        cursor: None,
        drop_cursor: None,
    };
    hand(&mut node, Input::Apply(apply), START + 6);
    assert!(!node.ledger().stands_in_books(eid(1)), "its disk is older than its unsharing");
    hand(&mut node, Input::Admit, START + 7);
    assert!(node.ledger().stands_in_books(eid(1)));
}

#[test]
fn nothing_is_purged_by_a_node_that_is_alone() {
    let mut node = member(1);
    put(&mut node, "/foo/k", "v", START);
    hand(&mut node, Input::Delete { path: path("/foo/k") }, START);
    for day in 1..40 {
        hand(&mut node, Input::Floors, START + day * DAY);
    }
    assert_eq!(holds(&node, "/foo/k"), Some(None));
}

/// Its disk may have been put back, and the floors it raised before be known to those that left alone.
#[test]
fn a_collector_whose_members_have_all_left_raises_nothing_until_another_joins() {
    let mut nodes = cluster(false);
    nodes.truncate(2);
    settle(&mut nodes, &ALL[..1], START + 11 * DAY);
    assert!(nodes[0].ledger().books.of(&foo()).round.is_some(), "the third pins the round");
    for last in [2, 3] {
        let input = Input::Standing { eid: eid(last), standing: Standing::Decommissioned };
        hand(&mut nodes[0], input, START + 11 * DAY);
    }
    settle(&mut nodes[..1], &[], START + 30 * DAY);
    assert_eq!(holds(&nodes[0], "/foo/gone"), Some(None));
    nodes[1] = member(4);
    settle(&mut nodes, &ALL[..1], START + 31 * DAY);
    assert!(nodes.iter().all(|node| holds(node, "/foo/gone").is_none() && holds(node, "/foo/kept") == value("v")));
}

#[test]
fn who_is_no_member_cannot_be_decommissioned_and_nobody_decommissions_itself() {
    let mut node = member(1);
    let input = |last| Input::Standing { eid: eid(last), standing: Standing::Decommissioned };
    assert_eq!(refused(&mut node, input(7), START), Some(Refusal::NoMember(eid(7))));
    assert_eq!(refused(&mut node, input(1), START), Some(Refusal::Myself));
}
