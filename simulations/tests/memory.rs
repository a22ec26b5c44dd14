//! How much memory a node of the simulator takes for each key, beside an empty one, in a world of a thousand nodes.
//!
//! By hand, since it holds a million records; with the allocator of the simulator:
//!
//!     cargo test --release -p simulations --test memory -- --ignored --nocapture

use cap::Cap;
use mimalloc::MiMalloc;
use simulations::clock::{MS, SECOND};
use simulations::history::{History, Write, WriteKind};
use simulations::run::run;
use simulations::scenario;

/// Counts what is asked of it and not given back. Resident memory would count what the start of a world takes and frees,
/// which is more than its keys take.
#[global_allocator]
static ALLOCATOR: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

const NODES: usize = 1_000;
const KEYS: usize = 1_000;
const VALUE_BYTES: usize = 32;
/// `/foo/k123`, as scenarios name keys.
const PATH_BYTES: usize = "/foo/k123".len();
/// What a key may cost beyond its own text and its value's.
const OVERHEAD_MAX_BYTES: usize = 64;
const FROM_S: u64 = 10;

/// Each key is written once, at another node.
fn history(keys: usize) -> History {
    let text = format!(
        "about = \"Keys and nothing else.\"\nverify = \"off\"\nduration_s = 40\nprobe = false\n\
         [sites]\ns = {{ nodes = {}, copies = 4 }}\n[families]\nfoo = {{ mode = \"global\", keys = {KEYS} }}\n\
         [writes]\nper_s = 0\n[checks]\neach_commit = false\nbooks = false\nwarm_start = true\n",
        NODES / 4
    );
    let mut history = scenario::read(&text, Some(1)).expect("a scenario");
    history.writes.extend((0..keys).map(|key| Write {
        at_us: FROM_S * SECOND + key as u64 * 20 * MS,
        node: key * 7 % NODES,
        kind: WriteKind::Put { family: 1, key, bytes: VALUE_BYTES },
    }));
    history
}

/// What a world in which each node holds so many keys has allocated at its end.
fn allocated_with(keys: usize) -> usize {
    let before = ALLOCATOR.allocated();
    let outcome = run(history(keys), false, &mut |_| {});
    assert!(outcome.violation.is_none(), "{:?}", outcome.violation);
    let world = outcome.world.as_ref().expect("it ran to its end");
    assert!(world.hosts.iter().all(|host| {
        let process = host.process.as_ref().expect("nobody fell");
        process.replica.ledger().tallies.iter().all(|(_, tally)| tally.keys == keys as u64)
    }));
    ALLOCATOR.allocated() - before
}

#[test]
#[ignore = "holds a million records; its figure stands in docs/multi-site.md"]
fn a_thousand_nodes_hold_each_key_in_no_more_than_its_text_and_64_bytes() {
    let (empty, full) = (allocated_with(0), allocated_with(KEYS));
    assert!(full > empty, "{KEYS} keys cannot take nothing: {full} beside {empty}");
    let a_key = (full - empty) / (NODES * KEYS);
    eprintln!("{} a node without keys, {a_key} for each key, texts in common", empty / NODES);
    assert!(a_key <= PATH_BYTES + VALUE_BYTES + OVERHEAD_MAX_BYTES, "{a_key} bytes a key");
}
