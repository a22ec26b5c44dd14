//! What reconciling costs, beside a hash trie, ranges, and the least that any protocol could send.
//!
//! `cargo bench --bench reconcile` makes every table; `-- bytes cpu upkeep` names parts. Bytes and turns are
//! counted frame by frame, as they would cross; processor time is that of the one thread that works.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod rivals;
mod synthetic;

use std::sync::Arc;

use kinfolk::core::codec;
use kinfolk::core::eid::Eid;
use kinfolk::core::reconcile::{Answerer, Ended, Opener, Peer, Step};
use kinfolk::core::sketch::{Change, Sketches};

use synthetic::{KEY, Synthetic, foo};

const KEYS: usize = 1_000_000;
const DIFFERENCES: [usize; 5] = [0, 1, 10, 1_000, 10_000];

/// Processor time of this thread, in nanoseconds.
pub fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux says it");
    stat.split(' ').next().and_then(|text| text.parse().ok()).expect("a number")
}

/// What one reconcile cost.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    to_answerer: usize,
    to_opener: usize,
    /// Of these, the records themselves.
    record_bytes: usize,
    records: usize,
    turns: usize,
    opener_ns: u64,
    answerer_ns: u64,
    /// Until both sides have all that they lack; the confirmation comes after.
    turns_of_content: usize,
}

fn reconcile(ours: &Synthetic, theirs: &Synthetic) -> (Ended, Cost) {
    let (left, right) = (ours.snapshot(), theirs.snapshot());
    let peer = |last| Peer { eid: Eid::new([2, 0, 0, 0, 0, last]), crossing: false };
    let mut cost = Cost::default();
    let mut opener = Opener::new(&left, peer(2), Some(theirs.sketch.summary().root));
    let mut opener_spoke = false;
    let Ok(Step::Ask(ask)) = opener.next(&left.read) else { panic!("it asks first") };
    let mut said = |cost: &mut Cost, by_opener: bool, frame: &[u8], content: bool| {
        *if by_opener { &mut cost.to_answerer } else { &mut cost.to_opener } += frame.len();
        cost.turns += usize::from(opener_spoke != by_opener);
        opener_spoke = by_opener;
        if content {
            cost.turns_of_content = cost.turns;
        }
    };
    said(&mut cost, true, &codec::encode_frame(&ask).expect("fits"), true);
    let began = cpu_ns();
    let mut answerer = Answerer::open(Some(&right), peer(1), &ask).expect("no fault").expect("shared");
    cost.answerer_ns += cpu_ns() - began;
    let mut answering = true;
    loop {
        if answering {
            let began = cpu_ns();
            let step = answerer.next(&right.read).expect("no fault");
            let frame = match step {
                Step::Send(frame) => Some(codec::encode_frame(&frame).expect("fits")),
                Step::End(_) => {
                    answering = false;
                    None
                }
                _ => None,
            };
            cost.answerer_ns += cpu_ns() - began;
            if let Some(bytes) = frame {
                let began = cpu_ns();
                let frame = codec::decode_frame(&bytes).expect("a frame");
                let content = count_records(&mut cost, &frame);
                opener.on_frame(&left.read, frame).expect("no fault");
                cost.opener_ns += cpu_ns() - began;
                said(&mut cost, false, &bytes, content);
            }
        }
        let began = cpu_ns();
        let step = opener.next(&left.read).expect("no fault");
        let frame = match &step {
            Step::Send(frame) => Some(codec::encode_frame(frame).expect("fits")),
            _ => None,
        };
        cost.opener_ns += cpu_ns() - began;
        if let Step::End(ended) = step {
            return (ended, cost);
        }
        if let Some(bytes) = frame {
            let began = cpu_ns();
            let frame = codec::decode_frame(&bytes).expect("a frame");
            let content = count_records(&mut cost, &frame);
            answerer.on_frame(&right.read, frame).expect("no fault");
            cost.answerer_ns += cpu_ns() - began;
            said(&mut cost, true, &bytes, content);
        }
    }
}

fn count_records(cost: &mut Cost, frame: &kinfolk::core::message::Reconcile) -> bool {
    use kinfolk::core::message::{Entries, Reconcile};
    match frame {
        Reconcile::Records { records, .. } => {
            let entries = |records| Entries { records, complete_to: 0, head: 0 };
            let empty = codec::encode_frame(&entries(Vec::new())).expect("fits").len();
            cost.record_bytes += codec::encode_frame(&entries(records.clone())).expect("fits").len() - empty;
            cost.records += records.len();
            true
        }
        _ => true,
    }
}

/// What differs, and how: keys spread over the family or side by side; new on one side or changed.
fn cases(count: usize) -> Vec<(&'static str, usize, Synthetic, Synthetic)> {
    let scattered = |n: usize| (n * (KEYS / count.max(1)) + 17) % KEYS;
    let clustered = |n: usize| KEYS / 3 + n;
    let mut cases = Vec::new();
    for (place, at) in [("scattered", &scattered as &dyn Fn(usize) -> usize), ("clustered", &clustered)] {
        let keys: Vec<usize> = (0..count).map(at).collect();
        // Each side changed half of them: a changed key is two items.
        let changed =
            |side: usize| keys.iter().enumerate().filter(move |(n, _)| n % 2 == side).map(|(_, key)| (*key, Some(1)));
        let name = if place == "scattered" { "changed, scattered" } else { "changed, clustered" };
        cases.push((name, 2 * count, Synthetic::new(KEYS, changed(0)), Synthetic::new(KEYS, changed(1))));
        // Each side lacks half of them.
        let lacks =
            |side: usize| keys.iter().enumerate().filter(move |(n, _)| n % 2 == side).map(|(_, key)| (*key, None));
        let name = if place == "scattered" { "absent, scattered" } else { "absent, clustered" };
        cases.push((name, count, Synthetic::new(KEYS, lacks(0)), Synthetic::new(KEYS, lacks(1))));
        if count == 0 {
            break;
        }
    }
    cases
}

fn bytes() {
    println!("\n{KEYS} keys; bytes above the records themselves, both directions together");
    println!(
        "{:>7} {:<19} {:>6} {:>9} {:>7} {:>6} {:>10} {:>5} {:>10} {:>5} {:>9}  within the goal",
        "differ", "how", "items", "ours", "B/item", "turns", "trie", "turns", "ranges", "turns", "least"
    );
    for count in DIFFERENCES {
        for (name, items, ours, theirs) in cases(count) {
            let (ended, cost) = reconcile(&ours, &theirs);
            let above = cost.to_answerer + cost.to_opener - cost.record_bytes;
            let (trie, ranges) = (rivals::trie(&ours, &theirs), rivals::ranges(&ours, &theirs));
            let goal = if items == 0 {
                cost.to_answerer <= 64 && cost.to_opener <= 64
            } else {
                above <= 70 * items + 1_024 && cost.turns_of_content <= 4
            };
            let per_item = if items == 0 { 0.0 } else { (above as f64 - 1_024.0).max(0.0) / items as f64 };
            println!(
                "{count:>7} {name:<19} {items:>6} {above:>9} {per_item:>7.1} {:>6} {:>10} {:>5} {:>10} {:>5} {:>9}  {goal} ({}, {} records)",
                cost.turns_of_content,
                trie.bytes,
                trie.turns,
                ranges.bytes,
                ranges.turns,
                rivals::least_bytes(items),
                ended.name(),
                cost.records,
            );
        }
    }
    println!(
        "B/item: after the 1 KiB that the goal allows. Turns: messages of one direction until both have everything."
    );
}

fn cpu() {
    println!("\nProcessor time of a reconcile of 1000 differences in {KEYS} keys, least and median of 11, in ms");
    for (name, items, ours, theirs) in cases(1_000) {
        let mut runs: Vec<Cost> = (0..11).map(|_| reconcile(&ours, &theirs).1).collect();
        let ms = |ns: u64| ns as f64 / 1e6;
        runs.sort_by_key(|cost| cost.opener_ns);
        let opener = (ms(runs[0].opener_ns), ms(runs[5].opener_ns));
        runs.sort_by_key(|cost| cost.answerer_ns);
        let answerer = (ms(runs[0].answerer_ns), ms(runs[5].answerer_ns));
        println!(
            "{name:<19} {items:>5} items: opener {:.2} {:.2}, answerer {:.2} {:.2}",
            opener.0, opener.1, answerer.0, answerer.1
        );
    }
}

fn upkeep() {
    println!("\nUpkeep of the sketch of {KEYS} keys, processor time of a write (hashing, cells, index), in ns");
    let set = Synthetic::new(KEYS, std::iter::empty());
    for (what, batch, held) in [
        ("in batches of 1000", 1_000, false),
        ("in batches of 1", 1, false),
        ("in batches of 1000, while a snapshot is held", 1_000, true),
    ] {
        let mut sketches = Sketches::default();
        sketches.replace(foo(), (*set.sketch).clone());
        let mut seqs: Vec<u64> = (1..=KEYS as u64).collect();
        let (mut head, mut spent) = (KEYS as u64, 0);
        let mut version = vec![0_u32; KEYS];
        let writes = 200_000;
        let mut n = 7_usize;
        for _ in 0..writes / batch {
            let mut puts = Vec::with_capacity(batch);
            for _ in 0..batch {
                n = (n + 7_654_321) % KEYS;
                head += 1;
                let old = (synthetic::record_key(n), synthetic::stamp(n, version[n]), seqs[n]);
                version[n] += 1;
                seqs[n] = head;
                puts.push((old, synthetic::stamp(n, version[n]), head));
            }
            let family = foo();
            let snapshot = held.then(|| sketches.get(&family).cloned());
            let began = cpu_ns();
            let change = |((key, stamp, seq), new, head): &((kinfolk::core::record::RecordKey, _, u64), _, u64)| {
                let hash = KEY.key_hash(key);
                let (old, new) = (KEY.item_of(hash, *stamp), KEY.item_of(hash, *new));
                Change::Put { family: family.clone(), old: Some((old, *seq)), new: (new, *head) }
            };
            let changes = puts.iter().map(change).collect();
            sketches.apply(changes);
            spent += cpu_ns() - began;
            drop(snapshot);
        }
        println!("{what:<45} {:>6}", spent / writes as u64);
    }
    let memory = |sketch: &Arc<kinfolk::core::sketch::Sketch>| sketch.cells().len() * 48 / 1024;
    println!("cells kept: {} KiB; index: 16 bytes a record", memory(&set.sketch));
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let runs = |part: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == part);
    if runs("bytes") {
        bytes();
    }
    if runs("cpu") {
        cpu();
    }
    if runs("upkeep") {
        upkeep();
    }
}
