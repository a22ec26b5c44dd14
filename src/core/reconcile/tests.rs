//! Two replicas and every byte between them.

use proptest::prelude::*;

use super::*;
use crate::core::clock::UnixMs;
use crate::core::codec;
use crate::core::path::{Path, Value};
use crate::core::record::Class;
use crate::core::replica::{Input, Outcome, Replica, Settings};
use crate::core::sketch::Root;
use crate::store::memory::{MemoryReader, MemoryStore};

const NOW: UnixMs = 1_790_000_000_000;

type TestReplica = Replica<MemoryStore>;

fn foo() -> Family {
    Family::new("foo").expect("a family")
}

fn node(last: u8) -> TestReplica {
    let settings = Settings::new(Eid::new([2, 0, 0, 0, 0, last]));
    let mut replica = Replica::open(MemoryStore::new(), settings, Run(last.into()), NOW).expect("opens");
    handle(&mut replica, vec![Input::Share { family: foo(), mode: Mode::Global }]);
    replica
}

fn handle(replica: &mut TestReplica, inputs: Vec<Input>) -> Vec<Outcome> {
    replica.handle(inputs, NOW).expect("commits").outcomes
}

fn put(n: usize, text: &str) -> Input {
    let path = Path::new(&format!("/foo/key-{n:06}")).expect("a path");
    Input::Put { path, value: Value::new(text).expect("a value") }
}

fn write(replica: &mut TestReplica, keys: std::ops::Range<usize>, text: &str) {
    let puts = keys.map(|n| put(n, text)).collect();
    handle(replica, puts);
}

/// Everything of one goes to the other.
fn copy(from: &TestReplica, to: &mut TestReplica) {
    let mut records = Vec::new();
    let read = from.read().expect("reads");
    let visit = &mut |(key, stored)| {
        records.push(Record::new(key, stored));
        ControlFlow::Continue(())
    };
    read.scan(Span::Under(&foo()), visit).expect("reads");
    let apply = Apply {
        source: from.eid(),
        crossing: false,
        family: foo(),
        mode: Mode::Global,
        since: None,
        floor: None,
        records,
        cursor: None,
        drop_cursor: None,
    };
    handle(to, vec![Input::Apply(apply)]);
}

fn snapshot(replica: &TestReplica) -> Snapshot<MemoryReader> {
    replica.snapshot(&foo()).expect("reads").expect("it is shared")
}

/// What crossed: frames and bytes of each direction, and how often the direction changed.
#[derive(Debug, Default)]
struct Wire {
    from_opener: usize,
    from_answerer: usize,
    turns: usize,
    opener_spoke: bool,
    records: u64,
}

impl Wire {
    fn carry(&mut self, by_opener: bool, frame: &Reconcile) -> Reconcile {
        let bytes = codec::encode_frame(frame).expect("it fits");
        self.said(by_opener, bytes.len());
        if let Reconcile::Records { records, .. } = frame {
            self.records += records.len() as u64;
        }
        codec::decode_frame(&bytes).expect("it is read")
    }

    fn said(&mut self, by_opener: bool, bytes: usize) {
        *if by_opener { &mut self.from_opener } else { &mut self.from_answerer } += bytes;
        self.turns += usize::from(self.opener_spoke != by_opener);
        self.opener_spoke = by_opener;
    }
}

/// Runs one reconcile to its end. A frame may be changed on its way.
fn reconcile_through(
    ours: &mut TestReplica,
    theirs: &mut TestReplica,
    heard: bool,
    change: &mut dyn FnMut(bool, Reconcile) -> Reconcile,
) -> Result<(Ended, Wire), Fault> {
    let (left, right) = (snapshot(ours), snapshot(theirs));
    let peer = |of: &TestReplica| Peer { eid: of.eid(), crossing: true };
    let mut opener = Opener::new(&left, peer(theirs), Some(right.sketch.summary().root).filter(|_| heard));
    let mut wire = Wire::default();
    let Step::Ask(ask) = opener.next(&left.read)? else { panic!("it asks first") };
    wire.said(true, codec::encode_frame(&ask).expect("it fits").len());
    let mut answerer = match Answerer::open(Some(&right), peer(ours), &ask)? {
        Ok(answerer) => Some(answerer),
        Err(reply) => {
            opener.on_frame(&left.read, reply)?;
            None
        }
    };
    for _ in 0..10_000 {
        if let Some(answering) = &mut answerer {
            match answering.next(&right.read)? {
                Step::Send(frame) => {
                    let frame = change(false, wire.carry(false, &frame));
                    opener.on_frame(&left.read, frame)?;
                    continue_opener(&mut opener, &left.read, ours)?;
                }
                Step::Apply(apply) => applied(theirs, apply),
                Step::End(_) => answerer = None,
                Step::Read | Step::Ask(_) => {}
            }
        }
        match opener.next(&left.read)? {
            Step::Send(frame) => {
                let frame = change(true, wire.carry(true, &frame));
                let answering = answerer.as_mut().expect("it waits for this");
                answering.on_frame(&right.read, frame)?;
            }
            Step::Apply(apply) => applied(ours, apply),
            Step::End(ended) => return Ok((ended, wire)),
            Step::Read | Step::Ask(_) => {}
        }
    }
    Err(StoreError::Io("the stream broke".to_string()).into())
}

/// The opener reads on only when what came is durable.
fn continue_opener(opener: &mut Opener, read: &MemoryReader, ours: &mut TestReplica) -> Result<(), Fault> {
    if !opener.has_pending() {
        return Ok(());
    }
    if let Step::Apply(apply) = opener.next(read)? {
        applied(ours, apply);
    }
    Ok(())
}

fn applied(replica: &mut TestReplica, apply: Apply) {
    let outcome = handle(replica, vec![Input::Apply(apply)]).remove(0);
    let Outcome::Applied(merges) = outcome else { panic!("{outcome:?}") };
    assert_eq!((merges.lost, merges.same), (0, 0), "no record crosses in vain");
}

fn reconcile(ours: &mut TestReplica, theirs: &mut TestReplica) -> (Ended, Wire) {
    reconcile_through(ours, theirs, true, &mut |_, frame| frame).expect("both are correct")
}

/// The same where the opener has not heard that the other differs.
fn reconcile_unheard(ours: &mut TestReplica, theirs: &mut TestReplica) -> (Ended, Wire) {
    reconcile_through(ours, theirs, false, &mut |_, frame| frame).expect("both are correct")
}

#[track_caller]
fn assert_equal(a: &TestReplica, b: &TestReplica) {
    let root = |replica: &TestReplica| replica.ledger().summaries[&foo()];
    assert_eq!(root(a), root(b));
    assert_eq!(a.check_sketches(), Ok(vec![]));
    assert_eq!(b.check_sketches(), Ok(vec![]));
}

fn pair(keys: usize) -> (TestReplica, TestReplica) {
    let (mut a, mut b) = (node(1), node(2));
    write(&mut a, 0..keys, "common");
    copy(&a, &mut b);
    (a, b)
}

#[test]
fn equal_families_cost_at_most_64_bytes_each_way() {
    let (mut a, mut b) = pair(100);
    let (ended, wire) = reconcile(&mut a, &mut b);
    let head = b.ledger().head;
    assert_eq!(ended, Ended::Equal { run: Run(2), head });
    assert!(wire.from_opener <= 64 && wire.from_answerer <= 64, "{wire:?}");
    assert_eq!(wire.turns, 2);
}

#[test]
fn a_difference_that_was_heard_of_costs_two_round_trips_and_70_bytes_an_item_whatever_its_size() {
    for count in [1, 3, 20, 200, 2_000] {
        let (mut a, mut b) = pair(5_000);
        write(&mut a, 5_000..5_000 + count / 2, "only here");
        write(&mut b, 8_000..8_000 + count.div_ceil(2), "only there");
        let (ended, wire) = reconcile(&mut a, &mut b);
        assert!(matches!(ended, Ended::Reconciled { .. }), "{ended:?}");
        assert_eq!(wire.turns, 4, "{count} differences");
        let record_bytes = 80;
        assert!(wire.from_opener + wire.from_answerer < 1_024 + count * (70 + record_bytes), "{count}: {wire:?}");
        assert_equal(&a, &b);
    }
}

#[test]
fn a_few_differences_that_were_not_heard_of_decode_from_the_first_cells_and_many_take_a_round_trip_more() {
    for (count, turns) in [(3, 4), (300, 6)] {
        let (mut a, mut b) = pair(5_000);
        write(&mut b, 6_000..6_000 + count, "only there");
        let (ended, wire) = reconcile_unheard(&mut a, &mut b);
        assert!(matches!(ended, Ended::Reconciled { sent: 0, received, .. } if received == count as u64), "{ended:?}");
        assert_eq!(wire.turns, turns, "{count}");
        assert_equal(&a, &b);
    }
}

#[test]
fn many_differences_cross_once_each_and_only_towards_the_side_that_lacks_them() {
    let (mut a, mut b) = pair(3_000);
    write(&mut a, 0..100, "changed here");
    write(&mut b, 50..150, "changed there, later");
    handle(&mut b, vec![put(20, "again")]);
    write(&mut a, 3_000..3_100, "new here");
    let (ended, wire) = reconcile(&mut a, &mut b);
    let Ended::Reconciled { sent, received, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(sent + received, wire.records);
    assert_equal(&a, &b);
}

#[test]
fn what_is_repaired_is_near_or_has_crossed() {
    let (mut a, mut b) = pair(10);
    write(&mut b, 10..11, "there");
    reconcile(&mut a, &mut b);
    let key = RecordKey::plain(Path::new("/foo/key-000010").expect("a path"));
    let stored = a.read().expect("reads").record(&key).expect("reads").expect("it came");
    assert_eq!(stored.class, Class::Far, "the peer of these tests is at another site");
}

#[test]
fn an_empty_family_is_fetched_whole_and_its_peer_lets_it() {
    let (mut a, mut b) = (node(1), node(2));
    write(&mut b, 0..50, "there");
    assert_eq!(reconcile(&mut a, &mut b).0, Ended::Everything);
    assert_eq!(reconcile(&mut b, &mut a).0, Ended::LeftToPeer);
}

#[test]
fn a_family_that_is_not_shared_or_in_the_other_mode_is_not_compared() {
    let (mut a, mut b) = (node(1), node(2));
    handle(&mut b, vec![Input::Unshare { family: foo() }]);
    assert!(b.snapshot(&foo()).expect("reads").is_none());
    handle(&mut b, vec![Input::Share { family: foo(), mode: Mode::Unique }]);
    assert_eq!(reconcile(&mut a, &mut b).0, Ended::NotShared { mode: Some(Mode::Unique) });
    let (mode, floor, root) = (Mode::Global, Hlc::ZERO, Root::default());
    let ask = Compare { family: foo(), mode, floor, root, counts: None };
    let peer = Peer { eid: a.eid(), crossing: false };
    let refused = Answerer::open::<MemoryReader>(None, peer, &ask).expect("no fault").expect_err("refused");
    assert_eq!(refused, Reconcile::NotShared { mode: None });
}

#[test]
fn families_are_compared_at_equal_floors_only() {
    let (a, b) = pair(3);
    let floor = Hlc::from_u64(5).expect("in range");
    let left = Snapshot { floor: Some(floor), ..snapshot(&a) };
    let mut opener = Opener::new(&left, Peer { eid: b.eid(), crossing: false }, None);
    let Step::Ask(ask) = opener.next(&left.read).expect("no fault") else { panic!("it asks first") };
    let refused = Answerer::open(Some(&snapshot(&b)), Peer { eid: a.eid(), crossing: false }, &ask).expect("no fault");
    opener.on_frame(&left.read, refused.expect_err("refused")).expect("makes sense");
    assert_eq!(opener.next(&left.read), Ok(Step::End(Ended::OtherFloor { floor: Some(Hlc::ZERO) })));
}

#[test]
fn what_breaks_off_is_taken_up_where_it_ended() {
    let (mut a, mut b) = pair(2_000);
    write(&mut b, 2_000..2_200, "there");
    let broken = reconcile_through(&mut a, &mut b, true, &mut |by_opener, frame| match frame {
        Reconcile::Records { mut records, wants, .. } if !by_opener => {
            records.truncate(100);
            Reconcile::Records { records, wants, last: false }
        }
        other => other,
    });
    assert!(broken.is_err());
    assert_eq!(a.ledger().summaries[&foo()].records, 2_100, "what came stays");
    let (ended, _) = reconcile(&mut a, &mut b);
    assert!(ended.is_verified(), "{ended:?}");
    assert_equal(&a, &b);
}

#[test]
fn a_peer_that_says_what_makes_no_sense_is_accused() {
    type Change = fn(bool, Reconcile) -> Reconcile;
    let changes: [Change; 8] = [
        |_, _| Reconcile::Cells { packed: Vec::new(), last: true },
        |_, _| Reconcile::More { upto: 3 },
        |by_opener, frame| match frame {
            Reconcile::Differs { run, head, root, records, mut cells, last, estimator } if !by_opener => {
                cells.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
                cells.truncate(35);
                Reconcile::Differs { run, head, root, records, cells, last, estimator }
            }
            other => other,
        },
        |by_opener, frame| match frame {
            Reconcile::Differs { run, head, root, records, estimator, .. } if !by_opener => {
                Reconcile::Differs { run, head, root, records, cells: Vec::new(), last: false, estimator }
            }
            other => other,
        },
        |_, frame| match frame {
            Reconcile::Records { records, last, .. } => Reconcile::Records { records, wants: vec![7; 400], last },
            other => other,
        },
        |by_opener, frame| match frame {
            Reconcile::Records { mut records, wants, last } if !by_opener => {
                records.truncate(records.len() / 2);
                Reconcile::Records { records, wants, last }
            }
            other => other,
        },
        |by_opener, frame| match frame {
            Reconcile::Records { records, wants, last } if !by_opener => {
                Reconcile::Records { records: [records.clone(), records].concat(), wants, last }
            }
            other => other,
        },
        |by_opener, frame| match frame {
            Reconcile::Records { mut records, wants, last } if by_opener => {
                records = std::iter::repeat_n(records, 5).flatten().collect();
                Reconcile::Records { records, wants, last }
            }
            other => other,
        },
    ];
    for (at, mut change) in changes.into_iter().enumerate() {
        let (mut a, mut b) = pair(1_000);
        write(&mut a, 1_000..1_100, "here");
        write(&mut b, 2_000..2_100, "there");
        let result = reconcile_through(&mut a, &mut b, true, &mut change);
        assert!(matches!(result, Err(Fault::Violation(_))), "{at}: {:?}", result.map(|(ended, _)| ended));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_two_nodes_hold_they_end_equal(
        writes in proptest::collection::vec((any::<bool>(), 0..40_usize, 0..3_u8), 0..120),
        common in 0..300_usize,
    ) {
        let (mut a, mut b) = pair(common);
        for (here, n, what) in writes {
            let replica = if here { &mut a } else { &mut b };
            let Input::Put { path, value } = put(n * 7, &format!("{here} {what}")) else { unreachable!() };
            let input = if what == 0 { Input::Delete { path } } else { Input::Put { path, value } };
            handle(replica, vec![input]);
        }
        // Whoever is told to fetch everything does.
        for turn in 0..4 {
            let (ours, theirs) = if turn % 2 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
            if reconcile(ours, theirs).0 == Ended::Everything {
                copy(theirs, ours);
            }
        }
        assert_equal(&a, &b);
    }
}
