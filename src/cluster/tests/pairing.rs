//! The loopback pair that lends us chitchat's codec.

use async_trait::async_trait;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport};
use chitchat::{ChitchatConfig, ChitchatEnvelope, ChitchatId, ChitchatMessage, ProtocolVersion, spawn_chitchat};
use std::net::SocketAddr;
use tokio::sync::mpsc;

use super::*;
use crate::cluster::gossip_transport::{Decoder, Encoder};
use crate::core::topology::rings::{RING_NODES_MAX, RING_NODES_MAX_DEFAULT};

/// Records what chitchat says.
struct Recorder(mpsc::UnboundedSender<ChitchatEnvelope>);

#[async_trait]
impl Transport for Recorder {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(Recorder(self.0.clone())))
    }
}

#[async_trait]
impl Socket for Recorder {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 1).into())
    }

    async fn send(&mut self, _to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        let _ = self.0.send(envelope);
        Ok(SendOutcome { num_bytes_sent: 0 })
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        std::future::pending().await
    }
}

/// What a node that knows of `nodes` others says first.
#[expect(clippy::disallowed_methods, reason = "random, so that compression cannot make the digest small")]
async fn digest_of(nodes: u16) -> ChitchatEnvelope {
    let (said, mut heard) = mpsc::unbounded_channel();
    let ids: Vec<ChitchatId> = (0..=nodes)
        .map(|n| {
            let name = Eid::new(rand::random()).to_string();
            ChitchatId::new(name, rand::random(), (rand::random::<[u8; 4]>(), n).into())
        })
        .collect();
    let config = ChitchatConfig {
        chitchat_id: ids[0].clone(),
        cluster_id: "test".into(),
        gossip_interval: Duration::from_millis(10),
        listen_addr: ([127, 0, 0, 1], 1).into(),
        seed_nodes: vec!["127.0.0.1:2".into()],
        failure_detector_config: Default::default(),
        marked_for_deletion_grace_period: Duration::from_secs(60),
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: ProtocolVersion::V1,
    };
    let handle = spawn_chitchat(config, Vec::new(), &Recorder(said)).await.expect("it starts");
    handle
        .with_chitchat(|chitchat| {
            for n in 1..=nodes {
                chitchat.reset_node_state_if_update(&ids[usize::from(n)], std::iter::empty(), u64::from(n), 0);
            }
        })
        .await;
    while heard.try_recv().is_ok() {}
    heard.recv().await.expect("a message");
    heard.recv().await.expect("a message")
}

fn syn(name: &str) -> ChitchatEnvelope {
    let message = ChitchatMessage::Syn { cluster_id: name.into(), digest: Default::default() };
    ChitchatEnvelope { version: ProtocolVersion::V1, message }
}

#[tokio::test]
async fn a_large_digest_survives_the_way_there_and_back() {
    let (mut encoder, mut decoder) = (Encoder::open().await.expect("a pair"), Decoder::open().await.expect("a pair"));
    let digest = digest_of(1_000).await;
    let text = format!("{digest:?}");
    let bytes = encoder.encode(digest).await.expect("encoded");
    assert!(bytes.len() > 20_000, "only {} bytes", bytes.len());
    let back = decoder.decode(&bytes).await.expect("a pair that works").expect("a message");
    assert!(format!("{back:?}") == text, "it is another message");
}

/// The largest ring that is allowed must stay far from the digest at which chitchat panics.
#[tokio::test]
async fn the_digest_of_the_largest_ring_leaves_room_for_an_answer() {
    let mut encoder = Encoder::open().await.expect("a pair");
    for nodes in [10, 100, RING_NODES_MAX_DEFAULT, RING_NODES_MAX] {
        let digest = digest_of(u16::try_from(nodes - 1).expect("few")).await;
        let bytes = encoder.encode(digest).await.expect("encoded").len();
        eprintln!("a digest of {nodes} nodes that hardly compress: {bytes} bytes, {} a node", bytes / nodes);
        assert!(bytes < 50_000);
    }
}

#[tokio::test]
async fn a_digest_too_large_to_travel_is_an_error_and_the_next_message_goes_through() {
    let mut encoder = Encoder::open().await.expect("a pair");
    let small = syn("small");
    let long = ChitchatMessage::Syn { cluster_id: "x".repeat(65_600), digest: Default::default() };
    let refused = encoder.encode(ChitchatEnvelope { version: ProtocolVersion::V1, message: long }).await;
    assert!(refused.is_err());
    assert!(encoder.encode(small).await.is_ok());
}

#[tokio::test]
async fn bytes_that_are_no_message_are_told_at_once_and_leave_nothing_behind() {
    let (mut encoder, mut decoder) = (Encoder::open().await.expect("a pair"), Decoder::open().await.expect("a pair"));
    let good = encoder.encode(syn("good")).await.expect("encoded");
    for bad in [&b""[..], b"x", &good[..good.len() - 1], &[0xff; 1_000], &vec![0; 100_000]] {
        assert_eq!(decoder.decode(bad).await.expect("a pair that works"), None);
        assert_eq!(decoder.decode(&good).await.expect("a pair that works"), Some(syn("good")));
    }
}

#[tokio::test]
async fn a_datagram_of_a_stranger_on_this_machine_is_never_taken_for_a_message() {
    let (mut encoder, mut decoder) = (Encoder::open().await.expect("a pair"), Decoder::open().await.expect("a pair"));
    let (forged, good) = (syn("forged"), syn("good"));
    let forged = encoder.encode(forged).await.expect("encoded");
    let good = encoder.encode(good).await.expect("encoded");
    let stranger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    for _ in 0..3 {
        stranger.send_to(&forged, decoder.address()).await.expect("sent");
        assert_eq!(decoder.decode(&good).await.expect("a pair that works"), Some(syn("good")));
        stranger.send_to(&forged, decoder.address()).await.expect("sent");
        assert_eq!(decoder.decode(b"bad").await.expect("a pair that works"), None);
    }
}
