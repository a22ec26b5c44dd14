//! chitchat over the mesh.
//!
//! chitchat lets its transport be chosen, but keeps the encoding of its messages to itself. So each message
//! takes a way through chitchat's own UDP socket on loopback, paired with a plain socket of ours that is
//! connected to it: what the pair's chitchat side sends, our side receives as bytes, and the reverse. That
//! costs some tens of µs a message, at some tens of messages a second. The way out, should chitchat publish
//! its codec one day: [`Encoder`] and [`Decoder`] become two function calls; nothing else changes.
//!
//! Never here: an error that chitchat would take for the end of its transport, or a wait on a peer.
//! Invariants: what did not come from the pair's own other half is dropped, so nobody on this machine can
//! slip in a message; no exchange can hang or be answered by the remains of an earlier one.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpTransport};
use chitchat::{ChitchatEnvelope, ChitchatMessage, ProtocolVersion};
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::{GossipMessage, Mesh, Ring};

/// The longest message of chitchat, in bytes: what a UDP datagram holds.
const MESSAGE_MAX_BYTES: usize = 65_507;
/// A node whose own digest is longer than this answers none. chitchat panics where the digest leaves no room for an
/// answer behind it (`assert!(mtu >= 100)` in 0.13), and would do so for good. Rings are full long before that.
const DIGEST_MAX_BYTES: usize = 56_000;
/// The longest that one exchange on loopback may take. It takes some tens of µs.
const EXCHANGE: Duration = Duration::from_millis(500);
/// The pause before a pair of sockets is opened again.
const REOPEN: Duration = Duration::from_millis(200);

/// Why a message was not encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum PairError {
    #[error("the loopback pair failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("chitchat's side of the loopback pair failed: {0}")]
    Chitchat(anyhow::Error),
    #[error("the loopback pair gave no answer within {} ms", EXCHANGE.as_millis())]
    TimedOut,
    #[error("{0} bytes are more than a message may have")]
    TooLong(usize),
}

/// chitchat's UDP socket and ours, which hears nobody else.
struct Pair {
    theirs: Box<dyn Socket>,
    ours: UdpSocket,
    our_address: SocketAddr,
    buffer: Vec<u8>,
}

impl Pair {
    async fn open() -> Result<Self, PairError> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let theirs = UdpTransport.open(loopback).await.map_err(PairError::Chitchat)?;
        let ours = UdpSocket::bind(loopback).await?;
        ours.connect(theirs.local_addr().map_err(PairError::Chitchat)?).await?;
        let our_address = ours.local_addr()?;
        Ok(Self { theirs, ours, our_address, buffer: vec![0; MESSAGE_MAX_BYTES + 1] })
    }

    async fn encode(&mut self, envelope: ChitchatEnvelope) -> Result<Vec<u8>, PairError> {
        // The remains of an exchange that timed out.
        while self.ours.try_recv(&mut self.buffer).is_ok() {}
        self.theirs.send(self.our_address, envelope).await.map_err(PairError::Chitchat)?;
        let received = self.ours.recv(&mut self.buffer).await?;
        Ok(self.buffer[..received].to_vec())
    }
}

/// Turns chitchat's messages into bytes.
pub(super) struct Encoder(Pair);

impl Encoder {
    pub async fn open() -> Result<Self, PairError> {
        Ok(Self(Pair::open().await?))
    }

    pub async fn encode(&mut self, envelope: ChitchatEnvelope) -> Result<Vec<u8>, PairError> {
        timeout(EXCHANGE, self.0.encode(envelope)).await.map_err(|_| PairError::TimedOut)?
    }
}

/// Turns bytes into chitchat's messages.
///
/// chitchat passes over what it cannot decode without a word. So behind each message goes a marker, a message
/// that only this decoder can have made: when it comes, the message before it will come no more.
pub(super) struct Decoder {
    pair: Pair,
    marker: Vec<u8>,
    marker_name: String,
}

impl Decoder {
    pub async fn open() -> Result<Self, PairError> {
        #[expect(clippy::disallowed_methods, reason = "nobody else on loopback may guess it")]
        let marker_name = format!("{:032x}", rand::random::<u128>());
        let message = ChitchatMessage::Syn { cluster_id: marker_name.clone(), digest: Default::default() };
        let marker = Encoder::open().await?.encode(ChitchatEnvelope { version: ProtocolVersion::V1, message }).await?;
        Ok(Self { pair: Pair::open().await?, marker, marker_name })
    }

    /// The message in the bytes; none if there is none. After an error the decoder must be opened anew.
    pub async fn decode(&mut self, bytes: &[u8]) -> Result<Option<ChitchatEnvelope>, PairError> {
        if bytes.len() > MESSAGE_MAX_BYTES {
            return Ok(None);
        }
        timeout(EXCHANGE, self.exchange(bytes)).await.map_err(|_| PairError::TimedOut)?
    }

    async fn exchange(&mut self, bytes: &[u8]) -> Result<Option<ChitchatEnvelope>, PairError> {
        self.pair.ours.send(bytes).await?;
        self.pair.ours.send(&self.marker).await?;
        let mut decoded = None;
        loop {
            let received = self.pair.theirs.recv().await.map_err(PairError::Chitchat)?;
            if received.from_addr != self.pair.our_address {
                continue;
            }
            match received.envelope.message {
                ChitchatMessage::Syn { cluster_id, .. } if cluster_id == self.marker_name => return Ok(decoded),
                message => decoded = Some(ChitchatEnvelope { version: received.envelope.version, message }),
            }
        }
    }

    #[cfg(test)]
    pub fn address(&self) -> SocketAddr {
        self.pair.theirs.local_addr().expect("bound")
    }
}

/// A decoded message and its sender's address.
type Decoded = RecvOutcome;

/// What chitchat gets as its transport. It can be opened again when chitchat is started again.
pub(super) struct MeshTransport {
    mesh: Mesh,
    ring: Ring,
    decoded: Arc<Mutex<mpsc::Receiver<Decoded>>>,
    state: Arc<TransportState>,
}

/// What the two directions of a ring's transport know of each other.
#[derive(Default)]
pub(super) struct TransportState {
    /// The length of the latest digest that was sent.
    digest_bytes: AtomicUsize,
    /// What is heard is dropped: this node is not in the ring.
    deaf: AtomicBool,
}

impl TransportState {
    pub fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }
}

impl MeshTransport {
    /// The transport, and the queue into which [`decode_all`] must be run.
    pub fn new(mesh: Mesh, ring: Ring, queue_max: usize) -> (Self, mpsc::Sender<Decoded>) {
        let (sender, decoded) = mpsc::channel(queue_max);
        (Self { mesh, ring, decoded: Arc::new(Mutex::new(decoded)), state: Arc::default() }, sender)
    }

    pub fn state(&self) -> &Arc<TransportState> {
        &self.state
    }
}

#[async_trait]
impl Transport for MeshTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let encoder = Some(Encoder::open().await?);
        let (mesh, decoded, state) = (self.mesh.clone(), self.decoded.clone(), self.state.clone());
        Ok(Box::new(MeshSocket { mesh, ring: self.ring, encoder, decoded, state }))
    }
}

struct MeshSocket {
    mesh: Mesh,
    ring: Ring,
    /// None after it failed, until it is opened again.
    encoder: Option<Encoder>,
    decoded: Arc<Mutex<mpsc::Receiver<Decoded>>>,
    state: Arc<TransportState>,
}

impl MeshSocket {
    async fn encode(&mut self, envelope: ChitchatEnvelope) -> Result<Vec<u8>, PairError> {
        let mut encoder = match self.encoder.take() {
            Some(encoder) => encoder,
            None => Encoder::open().await?,
        };
        let bytes = encoder.encode(envelope).await?;
        self.encoder = Some(encoder);
        if bytes.len() > MESSAGE_MAX_BYTES { Err(PairError::TooLong(bytes.len())) } else { Ok(bytes) }
    }
}

#[async_trait]
impl Socket for MeshSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.mesh.gossip_address())
    }

    /// Hands over to the mesh and returns at once. A failure is a lost message, and gossip outlives those.
    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        let is_digest = matches!(envelope.message, ChitchatMessage::Syn { .. });
        match self.encode(envelope).await {
            Ok(bytes) => {
                let num_bytes_sent = bytes.len();
                if is_digest {
                    self.state.digest_bytes.store(num_bytes_sent, Ordering::Relaxed);
                }
                self.mesh.send_gossip(self.ring, to, bytes);
                Ok(SendOutcome { num_bytes_sent })
            }
            Err(error) => {
                self.mesh.counters().gossip_dropped_unencoded.add(1);
                tracing::debug!(%to, "dropped a gossip message: {error}");
                Ok(SendOutcome { num_bytes_sent: 0 })
            }
        }
    }

    /// May be dropped at any await without losing a message: decoding happens elsewhere.
    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        match self.decoded.lock().await.recv().await {
            Some(decoded) => Ok(decoded),
            None => std::future::pending().await,
        }
    }
}

/// Decodes what the mesh hears until it stops.
pub(super) async fn decode_all(
    mesh: Mesh,
    heard: Arc<Mutex<mpsc::Receiver<GossipMessage>>>,
    decoded: mpsc::Sender<Decoded>,
    state: Arc<TransportState>,
) {
    let mut heard = heard.lock().await;
    let mut decoder = None;
    while let Some((from_addr, bytes)) = heard.recv().await {
        if state.deaf.load(Ordering::Relaxed) {
            continue;
        }
        let mut ready = match decoder.take() {
            Some(ready) => ready,
            None => open_decoder().await,
        };
        match ready.decode(&bytes).await {
            Ok(Some(ChitchatEnvelope { message: ChitchatMessage::Syn { .. }, .. }))
                if state.digest_bytes.load(Ordering::Relaxed) > DIGEST_MAX_BYTES =>
            {
                if mesh.counters().refuse("ring_full") {
                    tracing::error!(
                        digest_bytes = state.digest_bytes.load(Ordering::Relaxed),
                        "the ring of gossip is too large to be answered: set [gossip] rings = \"by-site\" on every node"
                    );
                }
            }
            Ok(Some(envelope)) => {
                let message = RecvOutcome { from_addr, envelope, num_bytes_received: bytes.len() };
                if decoded.try_send(message).is_err() {
                    mesh.counters().gossip_dropped_full.add(1);
                }
            }
            Ok(None) => {
                if mesh.counters().refuse("gossip_payload") {
                    tracing::warn!(from = %from_addr, bytes = bytes.len(), "refused a gossip message: it cannot be decoded");
                }
            }
            Err(error) => {
                tracing::warn!("lost a gossip message: {error}");
                continue;
            }
        }
        decoder = Some(ready);
    }
}

async fn open_decoder() -> Decoder {
    loop {
        match Decoder::open().await {
            Ok(decoder) => return decoder,
            Err(error) => tracing::warn!("cannot decode gossip, will try again: {error}"),
        }
        tokio::time::sleep(REOPEN).await;
    }
}
