//! Real gossip, with the daemon's own times, over a transport in memory and under paused time. Its chance
//! cannot be seeded, so only what must come about in the end is asserted, within bounds of virtual time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::transport::ChannelTransport;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, ProtocolVersion, spawn_chitchat};
use kinfolk::cluster::GossipConfig;
use tokio::time::Instant;

const NODES: usize = 10;
/// The one that all others are told of.
const SEED_NODE: usize = 0;
/// By then everyone has heard of everyone.
const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// By then a node that is not heard any more counts as dead: the threshold times the longest mean interval that
/// a quiet network settles at, with room to spare.
const DEAD_WITHIN: Duration = Duration::from_secs(180);

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 10_000 + node as u16))
}

fn name(node: usize) -> String {
    format!("02:00:00:00:00:{:02x}", node + 1)
}

struct Cluster {
    transport: ChannelTransport,
    nodes: Vec<Option<ChitchatHandle>>,
}

impl Cluster {
    async fn start() -> Self {
        let mut cluster = Self { transport: ChannelTransport::with_mtu(65_507), nodes: Vec::new() };
        cluster.nodes.resize_with(NODES, || None);
        for node in 0..NODES {
            cluster.start_node(node, 1).await;
        }
        cluster
    }

    async fn start_node(&mut self, node: usize, generation: u64) {
        let daemon = GossipConfig::new(generation);
        let seeds = if node == SEED_NODE { Vec::new() } else { vec![address(SEED_NODE).to_string()] };
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(name(node), generation, address(node)),
            cluster_id: "simulated".into(),
            gossip_interval: Duration::from_millis(daemon.interval_ms),
            listen_addr: address(node),
            seed_nodes: seeds,
            failure_detector_config: daemon.failure_detector(),
            marked_for_deletion_grace_period: Duration::from_millis(daemon.deleted_value_grace_ms),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let started = spawn_chitchat(config, Vec::new(), &self.transport).await;
        self.nodes[node] = Some(started.expect("the address is free"));
    }

    async fn stop_node(&mut self, node: usize) {
        let handle = self.nodes[node].take().expect("it runs");
        handle.shutdown().await.expect("it stops");
    }

    /// Cuts every link between the two groups, or mends it.
    async fn set_links(&self, groups: [&[usize]; 2], open: bool) {
        for a in groups[0] {
            for b in groups[1] {
                if open {
                    self.transport.add_link(address(*a), address(*b)).await;
                } else {
                    self.transport.remove_link(address(*a), address(*b)).await;
                }
            }
        }
    }

    /// Whom a node holds for alive, itself included, each with its generation.
    async fn live(&self, node: usize) -> BTreeSet<(String, u64)> {
        let handle = self.nodes[node].as_ref().expect("it runs");
        let live = |chitchat: &mut chitchat::Chitchat| {
            chitchat.live_nodes().map(|id| (id.node_id.to_string(), id.generation_id)).collect()
        };
        handle.with_chitchat(live).await
    }

    /// Until each of these nodes holds exactly `wanted` for alive. Time is virtual: waiting costs none.
    async fn all_see(&self, observers: &[usize], wanted: &[(usize, u64)], within: Duration, what: &str) {
        let wanted: BTreeSet<_> = wanted.iter().map(|(node, generation)| (name(*node), *generation)).collect();
        let began = Instant::now();
        loop {
            let mut differing = None;
            for observer in observers {
                let live = self.live(*observer).await;
                if live != wanted {
                    differing = Some((*observer, live));
                    break;
                }
            }
            let Some((observer, live)) = differing else { return };
            assert!(began.elapsed() < within, "{what}: after {within:?} node {observer} still sees {live:?} alive");
            tokio::time::advance(Duration::from_millis(100)).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn first_generation(nodes: &[usize]) -> Vec<(usize, u64)> {
    nodes.iter().map(|node| (*node, 1)).collect()
}

fn everyone() -> Vec<usize> {
    (0..NODES).collect()
}

#[tokio::test(start_paused = true)]
async fn ten_nodes_that_know_one_of_them_learn_of_all() {
    let cluster = Cluster::start().await;
    cluster.all_see(&everyone(), &first_generation(&everyone()), HEARD_WITHIN, "the start").await;
}

#[tokio::test(start_paused = true)]
async fn halves_that_are_cut_apart_see_each_other_dead_and_alive_again_when_they_are_mended() {
    let cluster = Cluster::start().await;
    let all = everyone();
    let (left, right) = all.split_at(NODES / 2);
    cluster.all_see(&all, &first_generation(&all), HEARD_WITHIN, "the start").await;
    cluster.set_links([left, right], false).await;
    cluster.all_see(left, &first_generation(left), DEAD_WITHIN, "left of the cut").await;
    cluster.all_see(right, &first_generation(right), DEAD_WITHIN, "right of the cut").await;
    cluster.set_links([left, right], true).await;
    cluster.all_see(&all, &first_generation(&all), DEAD_WITHIN, "the mending").await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_is_seen_dead_and_alive_when_it_starts_with_a_greater_generation() {
    let mut cluster = Cluster::start().await;
    let all = everyone();
    cluster.all_see(&all, &first_generation(&all), HEARD_WITHIN, "the start").await;
    let stopped = NODES - 1;
    cluster.stop_node(stopped).await;
    let others = &all[..stopped];
    cluster.all_see(others, &first_generation(others), DEAD_WITHIN, "the stop").await;
    cluster.start_node(stopped, 2).await;
    let mut wanted = first_generation(others);
    wanted.push((stopped, 2));
    cluster.all_see(&all, &wanted, DEAD_WITHIN, "the restart").await;
}
