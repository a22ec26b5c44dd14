//! What an idle cluster gossips: real chitchat with the daemon's own values and intervals, over a transport in memory that
//! counts bytes, under paused time.
//!
//! A table of it, with larger rings, by hand:
//!
//!     cargo test --release -p simulations --test idle -- --include-ignored --nocapture

use std::net::SocketAddr;
use std::time::Duration;

use chitchat::transport::ChannelTransport;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, ProtocolVersion, spawn_chitchat};
use kinfolk::cluster::GossipConfig;

/// Everyone has heard of everyone by then, or the ring is too large for the machine.
const HEARD_WITHIN: Duration = Duration::from_secs(120);
const MEASURED: Duration = Duration::from_secs(30);
/// chitchat's messages are datagrams, also where something else carries them.
const MESSAGE_MAX_BYTES: usize = 65_507;

fn address(node: usize) -> SocketAddr {
    let [high, low] = (node as u16).to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 7_480))
}

fn name(node: usize) -> String {
    let [high, low] = (node as u16).to_be_bytes();
    format!("02:00:00:00:{high:02x}:{low:02x}")
}

/// What a node says of itself that shares one family of so many keys: of the keys there is only the root, 16 bytes.
fn values(node: usize, keys: u64) -> Vec<(String, String)> {
    let own = [
        ("site", format!("site{:03}", node / 10)),
        ("address", address(node).to_string()),
        ("protocol", "1".into()),
        ("version", "0.1.0".into()),
        ("run", format!("{:016x}", node + 1)),
        ("head", keys.to_string()),
        ("unreached", String::new()),
        ("family:foo", "global".into()),
        ("root:foo", format!("{:032x}", u128::from(keys) << 64 | 0xfeed)),
    ];
    own.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// Bytes that each node of a ring sends in a second while nothing happens.
async fn idle_bytes_per_s(nodes: usize, interval_ms: u64, keys: u64) -> u64 {
    let transport = ChannelTransport::with_mtu(MESSAGE_MAX_BYTES);
    let mut handles: Vec<ChitchatHandle> = Vec::new();
    let daemon = GossipConfig { interval_ms, ..GossipConfig::new(1) };
    for node in 0..nodes {
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(name(node), 1_764_000_000_000, address(node)),
            cluster_id: "simulated".into(),
            gossip_interval: Duration::from_millis(interval_ms),
            listen_addr: address(node),
            seed_nodes: if node == 0 { Vec::new() } else { vec![address(0).to_string()] },
            failure_detector_config: daemon.failure_detector(),
            marked_for_deletion_grace_period: Duration::from_millis(daemon.deleted_value_grace_ms),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        handles.push(spawn_chitchat(config, values(node, keys), &transport).await.expect("the address is free"));
    }
    let began = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut all = true;
        for handle in &handles {
            all &= handle.with_chitchat(|chitchat| chitchat.live_nodes().count()).await == nodes;
        }
        if all {
            break;
        }
        assert!(began.elapsed() < HEARD_WITHIN, "{nodes} nodes do not all hear of each other");
    }
    let before = transport.statistics().num_bytes_total;
    tokio::time::sleep(MEASURED).await;
    let bytes = transport.statistics().num_bytes_total - before;
    for handle in handles {
        let _ = handle.shutdown().await;
    }
    bytes / nodes as u64 / MEASURED.as_secs()
}

const NEAR_MS: u64 = 300;

#[tokio::test(start_paused = true)]
async fn an_idle_node_gossips_as_much_with_ten_million_keys_as_with_ten_thousand() {
    let (few, many) = (idle_bytes_per_s(5, NEAR_MS, 10_000).await, idle_bytes_per_s(5, NEAR_MS, 10_000_000).await);
    // Whom a node asks is drawn, so that no two rings send the very same.
    assert!(few.abs_diff(many) <= few / 20, "{few} and {many} bytes a second");
}

#[tokio::test(start_paused = true)]
#[ignore = "a table for docs/multi-site.md"]
async fn how_much_an_idle_node_gossips_in_rings_of_several_sizes() {
    for keys in [10_000, 10_000_000] {
        eprintln!("10 nodes with {keys} keys: {} bytes a second and node", idle_bytes_per_s(10, NEAR_MS, keys).await);
    }
    let mut rings = Vec::new();
    for (nodes, interval_ms) in [(10, NEAR_MS), (50, NEAR_MS), (100, NEAR_MS), (10, 1_000), (100, 1_000)] {
        let bytes = idle_bytes_per_s(nodes, interval_ms, 10_000).await;
        eprintln!("a ring of {nodes}, every {interval_ms} ms: {bytes} bytes a second and node");
        rings.push(((nodes, interval_ms), bytes));
    }
    let of = |ring: (usize, u64)| rings.iter().find(|(of, _)| *of == ring).expect("measured").1;
    // The digest is what grows, and it grows by the same for each node.
    let flat_1000 = of((100, NEAR_MS)) + (of((100, NEAR_MS)) - of((50, NEAR_MS))) * 18;
    for wide_ms in [NEAR_MS, 1_000] {
        // One of ten speaks for its site in the ring of sites.
        let mean = |sites| of((10, NEAR_MS)) + of((sites, wide_ms)) / 10;
        let growth = mean(100) as f64 / mean(10) as f64;
        eprintln!(
            "two rings, that of the sites every {wide_ms} ms: 100 nodes {}, 1,000 nodes {} ({growth:.2} times as much); a \
             speaker {}; one ring of 1,000 by extrapolation {flat_1000} ({:.0} times as much)",
            mean(10),
            mean(100),
            of((10, NEAR_MS)) + of((100, wide_ms)),
            flat_1000 as f64 / mean(100) as f64,
        );
    }
}
