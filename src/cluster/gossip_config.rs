//! What membership is told at its start; every limit by name and unit.

use std::time::Duration;

use chitchat::FailureDetectorConfig;

use crate::core::topology::rings::RING_NODES_MAX_DEFAULT;

/// The configuration of membership. Names, addresses and seeds are the mesh's.
#[derive(Clone, Debug, PartialEq)]
pub struct GossipConfig {
    /// Must be greater at each start of this node: its start time in ms since 1970.
    pub generation: u64,
    pub interval_ms: u64,
    /// The same in the ring of sites.
    pub wide_interval_ms: u64,
    /// A node is dead when nothing was heard of it for this many times its smoothed mean interval.
    pub phi_threshold: f64,
    /// Intervals that are remembered of each node.
    pub sampling_window: usize,
    /// The interval that is assumed at first. It weighs as much as five measured ones, for good, and so
    /// keeps the threshold away from the very short intervals of a quiet network.
    pub initial_interval_ms: u64,
    /// Longer intervals are no samples.
    pub max_interval_ms: u64,
    /// A dead node is forgotten after this long.
    pub dead_node_grace_ms: u64,
    /// A deleted value is remembered for this long.
    pub deleted_value_grace_ms: u64,
    /// The members are looked at this often at least …
    pub members_refresh_ms: u64,
    /// … and this far apart at least.
    pub members_gap_ms: u64,
    /// What is heard of this node's own EID must go on for so long before it is a duplicate: the traces of its
    /// former run die out sooner.
    pub duplicate_confirm_ms: u64,
    /// Addresses of nodes that membership has forgotten are dialled for so long.
    pub remember_ms: u64,
    /// The pause before chitchat is started again doubles from here …
    pub restart_min_ms: u64,
    /// … to here.
    pub restart_max_ms: u64,
    /// Names and modes of shared families that are gossiped, in bytes.
    pub families_max_bytes: usize,
    /// Nodes in one ring, dead ones and former runs that are remembered among them. Of more, new ones are refused.
    pub ring_nodes_max: usize,
    /// A node of another site that no speaker tells of is believed to be as it was for so long.
    pub claim_hold_ms: u64,
    /// Who finds that it speaks for its site waits so long first: a node that has just started knows nobody yet.
    pub speak_after_ms: u64,
    /// Who speaks for its site no more stays in the ring of sites for so long, so that it hears who does.
    pub linger_ms: u64,
    /// Messages decoded and not yet taken by chitchat.
    pub decoded_queue_max: usize,
}

impl GossipConfig {
    pub fn new(generation: u64) -> Self {
        Self {
            generation,
            interval_ms: 300,
            wide_interval_ms: 1_000,
            phi_threshold: 20.0,
            sampling_window: 100,
            initial_interval_ms: 1_500,
            max_interval_ms: 5_000,
            dead_node_grace_ms: 15 * 60 * 1_000,
            deleted_value_grace_ms: 15 * 60 * 1_000,
            members_refresh_ms: 1_000,
            members_gap_ms: 50,
            duplicate_confirm_ms: 10_000,
            remember_ms: 24 * 60 * 60 * 1_000,
            restart_min_ms: 500,
            restart_max_ms: 30_000,
            families_max_bytes: 16 * 1024,
            ring_nodes_max: RING_NODES_MAX_DEFAULT,
            claim_hold_ms: 20_000,
            speak_after_ms: 2_000,
            linger_ms: 3_000,
            decoded_queue_max: 1_024,
        }
    }

    /// When a node counts as dead, in the words of chitchat.
    pub fn failure_detector(&self) -> FailureDetectorConfig {
        FailureDetectorConfig {
            phi_threshold: self.phi_threshold,
            sampling_window_size: self.sampling_window,
            max_interval: Duration::from_millis(self.max_interval_ms),
            initial_interval: Duration::from_millis(self.initial_interval_ms),
            dead_node_grace_period: Duration::from_millis(self.dead_node_grace_ms),
        }
    }
}
