//! How much memory a node takes for each key, beside an empty one.
//!
//! By hand, with the binary that is shipped, since a debug build says little about it:
//!
//!     cargo build --release
//!     KINFOLK_TEST_BINARY=target/release/kinfolk cargo test --test memory -- --ignored --nocapture

mod common;

use common::{plan, start};

const KEYS: usize = 1_000_000;
const KEYS_A_REQUEST: usize = 20_000;
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// What a key may cost beyond its own text and its value's.
const OVERHEAD_MAX_BYTES: u64 = 64;

/// Memory of a process that is in use, in bytes, without pages of files, which the kernel may drop.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("Linux 4.14 or later");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes * 1_024
}

fn line(key: usize) -> String {
    format!("{{\"owner\":null,\"path\":\"/foo/key{key:07}\",\"value\":\"{:032}\"}}\n", key * 7_919)
}

#[test]
#[ignore = "writes a million keys; its figure stands in docs/multi-site.md"]
fn a_million_keys_cost_a_node_no_more_memory_than_their_texts_and_64_bytes_each() {
    let mut fleet = start(plan(1, &[("foo", "global")]));
    fleet.wait_ready(0).expect("ready");
    let empty = resident_bytes(fleet.pid(0).expect("it runs"));
    for first in (0..KEYS).step_by(KEYS_A_REQUEST) {
        let body: String = (first..first + KEYS_A_REQUEST).map(line).collect();
        let reply = fleet.api(0).call("POST", "/v1/import?as_new=true", &[], body.as_bytes()).expect("an answer");
        assert!(reply.ok(), "{}", reply.detail());
    }
    let written = resident_bytes(fleet.pid(0).expect("it runs"));
    fleet.stop(0).expect("it stops");
    fleet.restart(0).expect("it starts again");
    fleet.wait_ready(0).expect("ready");
    let opened = resident_bytes(fleet.pid(0).expect("it runs"));
    let texts = ("/foo/key0000000".len() + 32) as u64;
    let status = fleet.api(0).status().expect("a status");
    let keys: u64 = status.families.iter().map(|family| family.keys).sum();
    for (when, bytes) in [("after the writes", written), ("after a restart", opened)] {
        let above = bytes.saturating_sub(empty);
        eprintln!(
            "{when}: {bytes} bytes, {above} above an empty node's {empty}; {} a key without the cache of {CACHE_BYTES}",
            above.saturating_sub(CACHE_BYTES) / KEYS as u64
        );
    }
    assert_eq!(keys, KEYS as u64);
    let most = KEYS as u64 * (texts + OVERHEAD_MAX_BYTES) + CACHE_BYTES;
    assert!(written.max(opened) - empty <= most, "more than {most} bytes above an empty node");
}
