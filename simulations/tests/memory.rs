//! How much memory a node of the simulator takes for each key, beside an empty one, in a world of a thousand nodes.
//!
//! By hand, since it holds a million records; with the allocator of the simulator:
//!
//!     cargo test --release -p simulations --test memory -- --ignored --nocapture

use simulations::clock::{MS, SECOND};
use simulations::history::{History, Write, WriteKind};
use simulations::run::run;
use simulations::scenario;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NODES: usize = 1_000;
const KEYS: usize = 1_000;
const VALUE_BYTES: usize = 32;
/// `/foo/k123`, as scenarios name keys.
const PATH_BYTES: usize = "/foo/k123".len();
/// What a key may cost beyond its own text and its value's.
const OVERHEAD_MAX_BYTES: usize = 64;
const FROM_S: u64 = 10;

/// Memory of this process that is in use, without pages of files, which the kernel may drop.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux 4.14 or later");
    let line = status.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line of it");
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes * 1_024
}

/// Each key is written once, at another node.
fn history() -> History {
    let text = format!(
        "about = \"Keys and nothing else.\"\nverify = \"off\"\nduration_s = 40\nprobe = false\n\
         [sites]\ns = {{ nodes = {}, copies = 4 }}\n[families]\nfoo = {{ mode = \"global\", keys = {KEYS} }}\n\
         [writes]\nper_s = 0\n[checks]\neach_commit = false\nbooks = false\nwarm_start = true\n",
        NODES / 4
    );
    let mut history = scenario::read(&text, Some(1)).expect("a scenario");
    history.writes.extend((0..KEYS).map(|key| Write {
        at_us: FROM_S * SECOND + key as u64 * 20 * MS,
        node: key * 7 % NODES,
        kind: WriteKind::Put { family: 1, key, bytes: VALUE_BYTES },
    }));
    history
}

#[test]
#[ignore = "holds a million records; its figure stands in docs/multi-site.md"]
fn a_thousand_nodes_hold_each_key_in_no_more_than_its_text_and_64_bytes() {
    let mut empty = 0;
    let outcome = run(history(), false, &mut |world| {
        if world.now < FROM_S * SECOND {
            empty = resident_bytes();
        }
    });
    let full = resident_bytes();
    assert!(outcome.violation.is_none(), "{:?}", outcome.violation);
    let world = outcome.world.expect("it ran to its end");
    assert!(world.hosts.iter().all(|host| {
        let process = host.process.as_ref().expect("nobody fell");
        process.replica.ledger().tallies.iter().all(|(_, tally)| tally.keys == KEYS as u64)
    }));
    let a_key = full.saturating_sub(empty) / (NODES * KEYS);
    eprintln!("{} a node without keys, {a_key} for each key, texts in common", empty / NODES);
    assert!(a_key <= PATH_BYTES + VALUE_BYTES + OVERHEAD_MAX_BYTES, "{a_key} bytes a key");
}
