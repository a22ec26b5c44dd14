//! What sketches promise. Sets are of items with small numbers, so that they overlap.

use std::collections::BTreeSet;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::core::path::{Family, Path};

const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);

fn key() -> SketchKey {
    SketchKey::of_cluster("test")
}

fn record(n: u64) -> RecordKey {
    let path = Path::new(&format!("/foo/k{n}")).expect("a path");
    if n.is_multiple_of(3) { RecordKey::owned(EID, path) } else { RecordKey::plain(path) }
}

fn stamp(version: u64) -> Stamp {
    Stamp { hlc: Hlc::from_u64(version << 20).expect("in range"), eid: EID, hash: version.wrapping_mul(7) }
}

fn sketch(set: &[(u64, u64)]) -> Sketch {
    let build = |add: &mut dyn FnMut(&RecordKey, Stamp, u64)| -> Result<(), Infallible> {
        (1..).zip(set).for_each(|(seq, (n, version))| add(&record(*n), stamp(*version), seq));
        Ok(())
    };
    Sketch::build(key(), build).expect("cannot fail")
}

fn items(set: &[(u64, u64)]) -> Vec<Item> {
    set.iter().map(|(n, version)| sketch(&[]).item_of(&record(*n), stamp(*version))).collect()
}

fn prefix(set: &[(u64, u64)], count: usize) -> Vec<Cell> {
    sketch(set).prefix(count, || Ok::<_, Infallible>(items(set))).expect("cannot fail").into_owned()
}

/// Decodes in pieces; says how many cells it took.
fn decode(ours: &[(u64, u64)], theirs: &[(u64, u64)]) -> (usize, Differences) {
    let (our_cells, their_cells) = (prefix(ours, 4_096), prefix(theirs, 4_096));
    let (our_root, their_root) = (sketch(ours).summary().root, sketch(theirs).summary().root);
    let mut decoder = Decoder::new(key());
    let mut at = 0;
    loop {
        let next = (at + at / 4 + 4).min(4_096);
        let sent = pack(&their_cells[at..next], at, theirs.len() as u64);
        let received = unpack(&sent, at, theirs.len() as u64).expect("well formed");
        decoder.push(&our_cells[at..next], &received).expect("correct cells");
        at = next;
        if let Some(differences) = decoder.differences(our_root, their_root).expect("correct cells") {
            return (at, differences);
        }
        assert!(at < 4_096, "does not decode");
    }
}

fn set(of: std::ops::Range<u64>, version: u64) -> Vec<(u64, u64)> {
    of.map(|n| (n, version)).collect()
}

#[test]
fn equal_sets_have_equal_roots_whatever_the_order() {
    let set = set(0..100, 1);
    let backwards: Vec<_> = set.iter().rev().copied().collect();
    assert_eq!(sketch(&set).summary(), sketch(&backwards).summary());
    assert_ne!(sketch(&set).summary().root, sketch(&set[1..]).summary().root);
}

#[test]
fn fields_that_two_records_have_swapped_do_not_cancel_out() {
    let (a, b) = (sketch(&[(1, 10), (2, 20)]).summary(), sketch(&[(1, 20), (2, 10)]).summary());
    assert_ne!(a.root, b.root);
}

#[test]
fn the_owner_and_the_hash_of_the_value_are_part_of_an_item() {
    let path = Path::new("/foo/k").expect("a path");
    let (plain, owned) = (RecordKey::plain(path.clone()), RecordKey::owned(EID, path));
    assert_ne!(key().item(&plain, stamp(1)), key().item(&owned, stamp(1)));
    let other_value = Stamp { hash: 99, ..stamp(1) };
    assert_ne!(key().item(&plain, stamp(1)).root(), key().item(&plain, other_value).root());
}

#[test]
fn clusters_of_other_names_have_other_keys() {
    assert_ne!(SketchKey::of_cluster("a"), SketchKey::of_cluster("b"));
}

/// Were it another one on some machine, nodes would never agree.
#[test]
fn the_cells_of_an_item_are_the_same_on_every_machine() {
    let item = key().item(&RecordKey::plain(Path::new("/foo/golden").expect("a path")), stamp(5));
    let mut places = Places::of(&item);
    let first: Vec<usize> = std::iter::from_fn(|| places.next_below(CELLS_MAX)).take(12).collect();
    let cells = prefix(&[(1, 1), (2, 2)], 16);
    let packed: String = pack(&cells[..2], 0, 2).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (item.root().to_string().as_str(), &first[..], packed.as_str()),
        (GOLDEN_ROOT, &GOLDEN_PLACES[..], GOLDEN_CELLS)
    );
}

const GOLDEN_ROOT: &str = "1d5f464eab6f47b29c841b90e2cf15b0";
const GOLDEN_PLACES: [usize; 12] = [0, 8, 11, 22, 112, 130, 449, 479, 584, 937, 994, 2_771];
const GOLDEN_CELLS: &str = "38d227d516e15cca000030000000000000000000000009000000000000001871afdabc00\
                            11d84007e2d5607300002000000000000200000000010e00000000000000c9454efe6f00";

#[test]
fn an_item_is_in_cell_i_with_probability_1_over_1_plus_half_i() {
    let mut hits = [0_u32; 400];
    for n in 0..20_000 {
        let item = key().item(&record(n), stamp(1));
        let mut places = Places::of(&item);
        while let Some(at) = places.next_below(hits.len()) {
            hits[at] += 1;
        }
    }
    assert_eq!(hits[0], 20_000);
    for (at, hits) in hits.iter().enumerate().skip(1) {
        let expected = 20_000.0 * 2.0 / (at as f64 + 2.0);
        let off = (f64::from(*hits) - expected).abs();
        // The nearest to the beginning get some per cent too few.
        let allowed = 5.0 * expected.sqrt() + expected * if at < 8 { 0.05 } else { 0.0 };
        assert!(off < allowed, "cell {at}: {hits} instead of {expected}");
    }
}

#[test]
fn a_thousand_differences_need_fewer_than_one_and_a_half_cells_each() {
    let (common, mine) = (set(0..3_000, 1), set(3_000..4_000, 1));
    let (cells, differences) = decode(&[common.clone(), mine].concat(), &common);
    assert_eq!((differences.ours.len(), differences.theirs.len()), (1_000, 0));
    assert!(cells < 1_900, "{cells} cells (the pieces grow by a quarter)");
}

#[test]
fn the_estimate_is_near_for_few_and_many_differences() {
    for count in [0, 1, 10, 100, 1_000, 5_000] {
        let (common, mine) = (set(0..2_000, 1), set(2_000..2_000 + count, 1));
        let both = [common.clone(), mine].concat();
        // A changed record is two items.
        let changed: Vec<_> = both.iter().map(|(n, v)| (*n, if *n < count / 2 { v + 1 } else { *v })).collect();
        let (ours, theirs) = (prefix(&both, 512), prefix(&common, 512));
        let one_sided = estimate(&ours, both.len() as u64, &estimator(&theirs), common.len() as u64).expect("fits");
        let theirs = prefix(&changed, 512);
        let mixed = estimate(&ours, both.len() as u64, &estimator(&theirs), both.len() as u64).expect("fits");
        for (estimated, true_count) in [(one_sided, count), (mixed, count / 2 * 2)] {
            let off = estimated.abs_diff(true_count);
            assert!(off <= true_count * 3 / 10 + 12, "{estimated} instead of {true_count}");
        }
    }
}

/// The estimate may be a third too low for few items: then more cells are asked for.
#[test]
fn as_many_cells_as_are_wanted_mostly_decode() {
    for count in [1, 2, 5, 10, 30, 100, 1_000] {
        let decoding = (0..20_u64).filter(|round| {
            let common = set(0..200, 1);
            let mine = [common.clone(), set(1_000 + round * 5_000..1_000 + round * 5_000 + count, 1)].concat();
            let wanted = cells_wanted(count);
            let mut decoder = Decoder::new(key());
            decoder.push(&prefix(&mine, wanted), &prefix(&common, wanted)).expect("correct cells");
            let (ours, theirs) = (sketch(&mine).summary().root, sketch(&common).summary().root);
            decoder.differences(ours, theirs).expect("correct cells").is_some()
        });
        let decoding = decoding.count();
        assert!(decoding >= 18, "{decoding} of 20 sets of {count}");
    }
}

#[test]
fn an_estimator_of_another_length_is_refused() {
    assert_eq!(estimate(&prefix(&[], 512), 0, &[0; 3], 0), Err(Broken::Length));
}

#[test]
fn cells_cut_off_anywhere_or_too_many_are_refused() {
    let packed = pack(&prefix(&set(0..9, 1), 16), 0, 9);
    assert!(unpack(&packed[..packed.len() - 1], 0, 9).is_err());
    assert_eq!(unpack(&packed[..20], 0, 9), Err(Broken::Length));
    assert_eq!(unpack(&packed, CELLS_MAX - 3, 9), Err(Broken::TooMany));
}

#[test]
fn cells_that_never_end_are_an_error_not_a_loop() {
    // A cell that gives away an item of another place, and one that gives the same item again and again.
    let item = key().item(&record(1), stamp(1));
    let mut lone = Cell::default();
    lone.add(&item, 1);
    let mut everywhere = vec![lone; 64];
    let mut decoder = Decoder::new(key());
    assert!(decoder.push(&everywhere, &[Cell::default(); 64]).is_err());
    everywhere.iter_mut().for_each(|cell| cell.count = i64::MIN);
    let mut decoder = Decoder::new(key());
    decoder.push(&everywhere, &[Cell::default(); 64]).expect("nothing comes out");
    assert_eq!(decoder.differences(Root::default(), Root::default()), Ok(None));
}

#[test]
fn differences_that_do_not_explain_the_roots_are_an_error() {
    let (ours, theirs) = (set(0..5, 1), set(0..4, 1));
    let mut decoder = Decoder::new(key());
    decoder.push(&prefix(&ours, 16), &prefix(&theirs, 16)).expect("correct cells");
    let lie = sketch(&set(0..3, 1)).summary().root;
    assert_eq!(decoder.differences(sketch(&ours).summary().root, lie), Err(Broken::Root));
}

#[test]
fn a_small_family_keeps_few_cells_and_grows_out_of_them() {
    assert_eq!(cells_for(0), CELLS_MIN);
    assert_eq!(cells_for(u64::MAX), CELLS_MAX);
    let mut sketches = Sketches::default();
    let foo = Family::new("foo").expect("a family");
    sketches.replace(foo.clone(), sketch(&set(0..8, 1)));
    let change = |n| Change::Put { family: foo.clone(), old: None, new: (key().item(&record(n), stamp(1)), n) };
    assert_eq!(sketches.apply(vec![change(8)]), std::slice::from_ref(&foo));
}

#[test]
fn a_large_family_is_summed_as_a_small_one_is() {
    let all = set(0..20_000, 1);
    let large = sketch(&all);
    assert_eq!(large.cells().len(), CELLS_MAX);
    assert_eq!(large.cells()[..64], extended_cells(&all, 64)[..]);
    assert!((0..20_000).all(|n| large.places(items(&[(n, 1)])[0].key).eq([n + 1])), "each is found where it stands");
}

fn extended_cells(set: &[(u64, u64)], count: usize) -> Vec<Cell> {
    super::family::extended(key(), &items(set), count)
}

fn any_set() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::btree_map(0..60_u64, 0..3_u64, 0..50).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn any_two_sets_decode_to_their_symmetric_difference(ours in any_set(), theirs in any_set()) {
        let (_, differences) = decode(&ours, &theirs);
        let of = |set: &[(u64, u64)]| items(set).into_iter().collect::<BTreeSet<_>>();
        let (a, b) = (of(&ours), of(&theirs));
        prop_assert_eq!(differences.ours, a.difference(&b).copied().collect::<Vec<_>>());
        prop_assert_eq!(differences.theirs, b.difference(&a).copied().collect::<Vec<_>>());
    }

    #[test]
    fn an_updated_sketch_is_the_one_built_anew(changes in proptest::collection::vec((0..20_u64, 0..4_u64), 0..60)) {
        let foo = Family::new("foo").expect("a family");
        let mut sketches = Sketches::default();
        sketches.replace(foo.clone(), sketch(&[]));
        let mut now = std::collections::BTreeMap::<u64, (u64, u64)>::new();
        for (seq, (n, version)) in (1..).zip(changes) {
            let item = |version| key().item(&record(n), stamp(version));
            let before = now.get(&n).map(|(version, seq)| (item(*version), *seq));
            let change = match (version, before) {
                (0, Some(old)) => { now.remove(&n); Change::Gone { family: foo.clone(), old } }
                (0, None) => continue,
                (version, old) => {
                    now.insert(n, (version, seq));
                    Change::Put { family: foo.clone(), old, new: (item(version), seq) }
                }
            };
            sketches.apply(vec![change]);
        }
        let anew = Sketch::build(key(), |add: &mut dyn FnMut(&RecordKey, Stamp, u64)| -> Result<(), Infallible> {
            now.iter().for_each(|(n, (version, seq))| add(&record(*n), stamp(*version), *seq));
            Ok(())
        }).expect("cannot fail");
        prop_assert!(sketches.get(&foo).expect("it is there").agrees_with(&anew));
    }

    #[test]
    fn whatever_a_peer_sends_decoding_ends(bytes in proptest::collection::vec(any::<u8>(), 0..2_000), ours in any_set()) {
        if let Ok(cells) = unpack(&bytes, 0, 5) {
            let mut decoder = Decoder::new(key());
            if decoder.push(&prefix(&ours, cells.len()), &cells).is_ok() {
                let _ = decoder.differences(sketch(&ours).summary().root, Root::default());
            }
        }
    }
}
