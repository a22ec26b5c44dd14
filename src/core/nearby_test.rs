use super::*;
use crate::core::clock::{Hlc, Stamp};
use crate::core::path::{Path, Value};
use crate::core::record::RecordKey;
use crate::core::register::{Register, value_hash};

const SOURCE: Eid = Eid::new([2, 0, 0, 0, 0, 1]);
const RUN: Run = Run(7);

fn family() -> Family {
    Family::new("foo").expect("a family")
}

fn record(key: u64, bytes: usize) -> Record {
    let value = Value::new(&"x".repeat(bytes)).expect("a value");
    let path = Path::of("foo", &format!("k{key}")).expect("a path");
    let hlc = Hlc::from_parts(1_790_000_000_000 + key, 0).expect("in range");
    let stamp = Stamp { hlc, eid: SOURCE, hash: value_hash(Some(&value)) };
    Record { key: RecordKey { owner: None, path }, register: Register::new(Some(value), stamp), crossed: false }
}

fn at(seq: u64) -> Cursor {
    Cursor { run: RUN, seq }
}

fn news(from: u64, to: u64, records: &[Record]) -> Brought<'_> {
    Brought { from, cursor: at(to), news: true, records }
}

/// One that got these frames, and what it said of the last.
fn with(frames: &[(u64, u64, usize)]) -> (Nearby, Option<Heard>) {
    let mut nearby = Nearby::default();
    let mut heard = None;
    for (from, to, bytes) in frames {
        let records = if *bytes == 0 { Vec::new() } else { vec![record(*to, *bytes)] };
        heard = nearby.came(&family(), SOURCE, news(*from, *to, &records));
    }
    (nearby, heard)
}

#[test]
fn what_was_lost_on_the_way_is_asked_of_one_that_has_it_and_is_whole() {
    let (here, heard) = with(&[(0, 3, 10), (3, 5, 10), (5, 6, 10)]);
    let heard = heard.expect("worth telling");
    let (mut there, _) = with(&[(0, 3, 10)]);
    let Due::Ask(missing) = there.due(&heard, 100, 50) else { panic!("it lacks something") };
    let keys: Vec<_> = here.answer(&heard, missing).into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [record(5, 1).key, record(6, 1).key]);
    there.fetched(&heard);
    assert_eq!(there.due(&heard, 101, 50), Due::Nothing);
}

/// A purge floor bars by whose it is, and one that has barred a record still hands it on.
#[test]
fn what_was_fetched_is_the_source_s_whoever_handed_it_on_and_moves_no_cursor() {
    let heard = with(&[(0, 3, 10)]).1.expect("worth telling");
    let apply = Nearby::apply(&heard, Mode::Global, vec![record(3, 10)]);
    assert_eq!((apply.source, apply.cursor, apply.crossing), (SOURCE, None, true));
}

#[test]
fn what_has_come_by_itself_meanwhile_is_not_asked_for() {
    let (_, heard) = with(&[(0, 3, 10)]);
    let (mut there, _) = with(&[(0, 2, 10)]);
    let heard = heard.expect("worth telling");
    assert!(there.lacks(&heard));
    there.came(&family(), SOURCE, news(2, 3, &[record(3, 10)]));
    assert_eq!(there.due(&heard, 0, 50), Due::Nothing);
}

#[test]
fn one_is_asked_at_a_time_and_the_next_when_it_does_not_answer() {
    let (_, heard) = with(&[(0, 3, 10)]);
    let heard = heard.expect("worth telling");
    let (mut there, _) = with(&[(0, 2, 10)]);
    assert_eq!(there.due(&heard, 100, 50), Due::Ask(Missing { after: 2 }));
    assert_eq!(there.due(&heard, 120, 50), Due::Again(150));
    assert_eq!(there.due(&heard, 150, 50), Due::Ask(Missing { after: 2 }));
}

#[test]
fn a_frame_without_records_leaves_no_gap_and_is_not_told_of() {
    let (here, heard) = with(&[(0, 3, 10), (3, 40, 0), (40, 60, 0), (60, 61, 10)]);
    assert_eq!(here.answer(&heard.expect("worth telling"), Missing { after: 3 }).len(), 1);
    assert_eq!(with(&[(0, 3, 10), (3, 40, 0)]).1, None);
}

#[test]
fn what_a_node_catches_up_with_is_not_told_to_those_who_have_it() {
    let (mut here, _) = with(&[(0, 3, 10)]);
    // Others have all of it; that the head is at 40 they have not heard, since nothing for them came since.
    let known = [record(4, 10)];
    let caught_up = Brought { news: false, ..news(3, 40, &known) };
    assert_eq!(here.came(&family(), SOURCE, caught_up), None);
    let heard = here.came(&family(), SOURCE, news(40, 41, &[record(41, 10)])).expect("worth telling");
    assert_eq!(here.answer(&heard, Missing { after: 5 }), [], "some of it is not kept");
    assert_eq!(here.answer(&heard, Missing { after: 40 }).len(), 1);
}

#[test]
fn nothing_is_answered_where_something_in_between_is_not_kept() {
    let (here, heard) = with(&[(3, 5, 10), (5, 6, 10)]);
    let heard = heard.expect("worth telling");
    assert_eq!(here.answer(&heard, Missing { after: 2 }), []);
    assert_eq!(here.answer(&Heard { run: Run(8), ..heard.clone() }, Missing { after: 5 }), []);
    assert_eq!(here.answer(&heard, Missing { after: 5 }).len(), 1);
}

#[test]
fn what_is_kept_is_bounded_and_a_transfer_is_not_kept_at_all() {
    let mut nearby = Nearby::default();
    for n in 0..200 {
        let source = Eid::new([2, 0, 0, 0, 0, (n % 5) as u8]);
        assert!(nearby.came(&family(), source, news(n, n + 1, &[record(n, 20_000)])).is_some());
        assert!(nearby.kept_bytes <= KEPT_MAX_BYTES);
    }
    assert_eq!(nearby.came(&family(), SOURCE, news(200, 201, &[record(1, 60_000)])), None);
    (0..5).for_each(|n| nearby.leaves(&family(), Eid::new([2, 0, 0, 0, 0, n])));
    assert_eq!((nearby.kept_bytes, nearby.order.len(), nearby.of.len()), (0, 0, 0));
}

#[test]
fn a_source_that_runs_anew_or_is_not_followed_is_not_asked_about() {
    let (_, heard) = with(&[(0, 3, 10)]);
    let heard = heard.expect("worth telling");
    assert_eq!(Nearby::default().due(&heard, 0, 50), Due::Nothing);
    let (mut there, _) = with(&[(0, 2, 10)]);
    there.follows(&family(), SOURCE, Cursor { run: Run(8), seq: 1 });
    assert_eq!(there.due(&heard, 0, 50), Due::Nothing);
    there.leaves(&family(), SOURCE);
    assert_eq!(there.due(&Heard { run: Run(8), ..heard }, 0, 50), Due::Nothing);
}

#[test]
fn the_nearest_are_told() {
    let eid = |n| Eid::new([2, 0, 0, 0, 0, n]);
    let told = nearest((1..=9).map(|n| (u64::from(n) * 31 % 17, eid(n))).collect());
    assert_eq!(told.len(), TOLD_MAX);
    assert!(nearest(vec![(5, eid(1)), (2, eid(2))]) == [eid(2), eid(1)]);
}

#[test]
fn what_a_source_sent_in_its_former_run_is_forgotten_and_takes_no_room() {
    let (mut nearby, _) = with(&[(0, 3, 6_000), (3, 4, 6_000)]);
    let again = Cursor { run: Run(8), seq: 1 };
    nearby.came(&family(), SOURCE, Brought { from: 0, cursor: again, news: true, records: &[record(1, 6_000)] });
    assert_eq!(nearby.order.len(), 1);
    // More than is kept: the oldest goes, whichever run it is of.
    for seq in 2..400 {
        let cursor = Cursor { run: Run(8), seq };
        let records = [record(seq, 6_000)];
        nearby.came(&family(), SOURCE, Brought { from: seq - 1, cursor, news: true, records: &records });
    }
    assert!(nearby.kept_bytes <= KEPT_MAX_BYTES && nearby.order.len() > 10);
}
