//! What the mesh is told at its start; every limit by name and unit.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{MeshError, pulse};
use crate::core::message::HELLO_TEXT_MAX_BYTES;
use crate::core::protocol::Versions;
use crate::core::trust::Trust;

/// The port of the cluster's endpoint unless configured, UDP.
pub const DEFAULT_PORT: u16 = 7480;

/// Who gossips with whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rings {
    /// Everyone with everyone.
    #[default]
    One,
    /// Each site in a ring of its own, and one node of each in a ring of sites.
    BySite,
}

/// The configuration of a node's mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// The cluster's name; nodes of another are refused.
    pub cluster: String,
    pub site: String,
    pub rings: Rings,
    /// The program's version, for people.
    pub version: String,
    /// The versions of the protocol to speak; others than the program's own are for tests only.
    pub protocol: Versions,
    pub listen: SocketAddr,
    /// `host:port` under which others reach this node; none: the address listened on.
    pub advertise: Option<String>,
    /// `host:port` each.
    pub seeds: Vec<String>,
    /// Whom the node distrusts, and what it trusts the others for, until it is told anew.
    pub trust: Trust,
    /// A connection on which nothing came for this long is lost.
    pub idle_timeout_ms: u64,
    /// A silent connection is kept alive this often.
    pub keep_alive_ms: u64,
    /// Within a site: how often a connection is looked at, and the peer asked for a sign of life if nothing has come …
    pub pulse_ms: u64,
    /// … and after how long without one the connection is lost.
    pub silence_ms: u64,
    /// The round trip that is assumed of a peer before it is measured: a lost first packet is sent again after
    /// three times as long (RFC 9002, 6.2).
    pub initial_round_trip_ms: u64,
    /// The longest a handshake, or the opening of a stream, may take.
    pub connect_timeout_ms: u64,
    /// The longest the exchange of hellos may take.
    pub hello_timeout_ms: u64,
    /// The longest a name may take to resolve.
    pub resolve_timeout_ms: u64,
    /// The pause after a failed dial doubles from here …
    pub backoff_min_ms: u64,
    /// … to here.
    pub backoff_max_ms: u64,
    /// How long the greater EID waits for the smaller one to dial, so that they seldom dial at once.
    pub dial_yield_ms: u64,
    /// Peers connected at a time.
    pub peers_max: usize,
    /// Streams of request and answer that a peer may have open at a time.
    pub bi_streams_per_peer_max: u32,
    /// Gossip messages that a peer may have in flight at a time.
    pub uni_streams_per_peer_max: u32,
    /// What one stream may send before the reader has taken it.
    pub stream_window_bytes: u32,
    /// What one connection may send before the readers have taken it.
    pub connection_window_bytes: u32,
    pub hello_max_bytes: usize,
    /// Gossip messages waiting for one peer.
    pub gossip_queue_max: usize,
    /// Gossip messages received and not yet taken.
    pub gossip_inbox_max: usize,
    /// The longest one gossip message may take to be sent or received.
    pub gossip_timeout_ms: u64,
    /// Streams opened by peers and not yet taken.
    pub incoming_queue_max: usize,
    /// Addresses dialled only because gossip is sent there.
    pub wanted_max: usize,
    /// How long such an address is dialled after the last message to it.
    pub wanted_hold_ms: u64,
    /// Where not everyone is connected: a connection to another site that this side made is closed when it has not
    /// been needed here for this long. If the other side needs it, that one makes another.
    pub unneeded_hold_ms: u64,
    /// How long the alarm of a duplicate EID stands after it was last seen.
    pub duplicate_hold_ms: u64,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            cluster: "kinfolk".into(),
            site: "default".into(),
            rings: Rings::One,
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: Versions::SPOKEN,
            listen: (Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into(),
            advertise: None,
            seeds: Vec::new(),
            trust: Trust::default(),
            idle_timeout_ms: 3_000,
            keep_alive_ms: 1_000,
            pulse_ms: 300,
            silence_ms: 1_200,
            initial_round_trip_ms: 100,
            connect_timeout_ms: 3_000,
            hello_timeout_ms: 3_000,
            resolve_timeout_ms: 3_000,
            backoff_min_ms: 100,
            backoff_max_ms: 1_000,
            dial_yield_ms: 200,
            peers_max: 1_000,
            bi_streams_per_peer_max: 1_024,
            uni_streams_per_peer_max: 64,
            stream_window_bytes: 1024 * 1024,
            connection_window_bytes: 8 * 1024 * 1024,
            hello_max_bytes: 4_096,
            gossip_queue_max: 256,
            gossip_inbox_max: 1_024,
            gossip_timeout_ms: 2_000,
            incoming_queue_max: 256,
            wanted_max: 1_000,
            wanted_hold_ms: 60_000,
            unneeded_hold_ms: 30_000,
            duplicate_hold_ms: 30_000,
        }
    }
}

impl MeshConfig {
    pub(super) fn check(&self) -> Result<(), MeshError> {
        let texts = [("name", self.cluster.as_str()), ("site", &self.site), ("version", &self.version)];
        for (name, text) in texts.into_iter().chain(self.advertise.as_deref().map(|text| ("advertise", text))) {
            if !is_plain(text) || text.is_empty() {
                return Err(MeshError::Text { name, max_bytes: HELLO_TEXT_MAX_BYTES });
            }
        }
        Ok(())
    }

    /// Both directions of every connection get the same limits.
    pub(super) fn transport(&self) -> quinn::TransportConfig {
        let mut transport = quinn::TransportConfig::default();
        let idle = quinn::IdleTimeout::try_from(ms(self.idle_timeout_ms)).ok();
        transport
            .max_idle_timeout(idle)
            .initial_rtt(ms(self.initial_round_trip_ms))
            .keep_alive_interval(Some(ms(self.keep_alive_ms)))
            .max_concurrent_bidi_streams(self.bi_streams_per_peer_max.into())
            .max_concurrent_uni_streams(self.uni_streams_per_peer_max.into())
            .stream_receive_window(self.stream_window_bytes.into())
            .receive_window(self.connection_window_bytes.into())
            .send_window(self.connection_window_bytes.into())
            .datagram_receive_buffer_size(Some(pulse::RECEIVED_MAX_BYTES));
        transport
    }
}

/// Text that may stand in a hello, and so in a log line.
pub(super) fn is_plain(text: &str) -> bool {
    text.len() <= HELLO_TEXT_MAX_BYTES && !text.contains(char::is_control)
}

pub(super) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
