//! One connection: who is on the other side, whether it is admitted, and what it carries while it stands.
//!
//! Never here: who dials when. Invariant: whatever is wrong with a connection ends that connection only.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{Connection, ConnectionError, RecvStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::access::{Cut, Passed};
use super::config::{is_plain, ms};
use super::table::{Admission, Link, PeerInfo};
use super::{Incoming, MeshConfig, Ring, Rings, Shared, pulse};
use crate::cluster::frames::{self, FrameError};
use crate::cluster::tls::{self, CertificateEidError, Distrust};
use crate::core::codec::{self, Message};
use crate::core::eid::Eid;
use crate::core::message::{Gossip, Hello, WideGossip};
use crate::core::protocol::Versions;
use crate::core::trust::Grants;

/// Close codes, and what they tell the other side.
pub(super) const CLOSE_DUPLICATE: u32 = 1;
pub(super) const CLOSE_SELF: u32 = 2;
pub(super) const CLOSE_DUPLICATE_EID: u32 = 3;
pub(super) const CLOSE_REFUSED: u32 = 4;
pub(super) const CLOSE_RECHECKED: u32 = 5;
pub(super) const CLOSE_RING_FULL: u32 = 6;
pub(super) const CLOSE_UNNEEDED: u32 = 7;
pub(super) const CLOSE_SILENT: u32 = 8;

/// TLS alerts are told as QUIC transport errors of this range (RFC 9001, 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;
/// Addresses of one name that are looked at.
const RESOLVED_MAX: usize = 16;

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the certificate names no node: {0}")]
    Certificate(#[from] CertificateEidError),
    #[error("{0} is distrusted: {1}")]
    Distrusted(Eid, Distrust),
    #[error("{0} is listed in [tls] revoked")]
    Banned(Eid),
    #[error("it belongs to the cluster '{0}'; check [cluster] name on both sides")]
    Cluster(String),
    #[error(
        "it speaks version {theirs} of the protocol between nodes, this program {ours}: bring the older one to a program \
         that speaks both first"
    )]
    Protocol { ours: Versions, theirs: Versions },
    #[error("it says it is {claimed}, but its certificate is that of {certificate}")]
    EidMismatch { claimed: Eid, certificate: Eid },
    #[error("{found} answers where membership says another node is")]
    Unexpected { found: Eid },
    #[error("a text in its hello is empty, too long or holds control characters")]
    HelloText,
    #[error("it is this node itself")]
    Own,
    #[error("it bears this node's EID in another run")]
    DuplicateEid,
    #[error("another connection to {0} stays")]
    Duplicate(Eid),
    #[error("{0} peers are connected already; raise the limit peers_max if the cluster is that large")]
    TooManyPeers(usize),
    #[error(
        "it is new, and {0} nodes are as many as one ring of gossip carries: set [gossip] rings = \"by-site\" on every \
         node, or forget dead ones first"
    )]
    RingFull(usize),
    #[error("no hello came in time")]
    NoHello,
    #[error("its hello is no hello: {0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Lost(#[from] ConnectionError),
}

impl LinkError {
    /// The name under which the peer's fault is counted; none if it is nobody's fault, or the peer refused us.
    fn reason(&self) -> Option<&'static str> {
        match self {
            LinkError::Certificate(_) => Some("certificate_eid"),
            LinkError::Distrusted(_, Distrust::Revoked) | LinkError::Banned(_) => Some("revoked"),
            LinkError::Distrusted(_, Distrust::Expired | Distrust::Ca) => Some("tls"),
            LinkError::Protocol { .. } => Some("protocol_version"),
            LinkError::Cluster(_) => Some("cluster_name"),
            LinkError::EidMismatch { .. } => Some("eid_mismatch"),
            LinkError::Unexpected { .. } => Some("unexpected_eid"),
            LinkError::HelloText => Some("hello_text"),
            LinkError::DuplicateEid => Some("duplicate_eid"),
            LinkError::TooManyPeers(_) => Some("too_many_peers"),
            LinkError::RingFull(_) => Some("ring_full"),
            LinkError::NoHello => Some("frame_timeout"),
            LinkError::Frame(error) => error.reason(),
            LinkError::Lost(ConnectionError::TransportError(error)) if TLS_ALERTS.contains(&error.code.into()) => {
                Some("tls")
            }
            LinkError::Own | LinkError::Duplicate(_) | LinkError::Lost(_) => None,
        }
    }

    /// The code with which the other side closed, if it did.
    pub fn code_of_peer(&self) -> Option<u64> {
        let lost = match self {
            LinkError::Lost(lost) => lost,
            LinkError::Frame(FrameError::Read(quinn::ReadError::ConnectionLost(lost))) => lost,
            LinkError::Frame(FrameError::Write(quinn::WriteError::ConnectionLost(lost))) => lost,
            _ => return None,
        };
        match lost {
            ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
            _ => None,
        }
    }
}

/// A connection that was admitted.
pub(super) struct Greeted {
    pub peer: Eid,
    connection: Connection,
    info: PeerInfo,
    gossip: mpsc::Receiver<(Ring, Vec<u8>)>,
}

impl Shared {
    /// Counts and logs why a connection did not become a link.
    pub(super) fn note_failure(&self, remote: SocketAddr, error: &LinkError) {
        if matches!(error, LinkError::DuplicateEid) {
            self.duplicate_seen.notify_one();
        }
        // Who is refused for good comes again and again.
        let known = error.peer().is_some_and(|peer| !self.access.note_refused(peer, error));
        match error.reason() {
            Some(reason) if self.counters.refuse(reason) && !known => {
                tracing::warn!(%remote, reason, "refused a node: {error}");
            }
            _ => tracing::debug!(%remote, "no connection: {error}"),
        }
    }
}

impl LinkError {
    /// The peer, if it is refused because of its certificate.
    fn peer(&self) -> Option<Eid> {
        match self {
            LinkError::Distrusted(peer, _) | LinkError::Banned(peer) => Some(*peer),
            _ => None,
        }
    }
}

/// Closes with the code and the short name of the reason. Of our texts none goes out that a peer's bytes are in.
pub(super) fn close(connection: &Connection, error: &LinkError) {
    let code = match error {
        LinkError::Duplicate(_) => CLOSE_DUPLICATE,
        LinkError::Own => CLOSE_SELF,
        LinkError::DuplicateEid => CLOSE_DUPLICATE_EID,
        LinkError::RingFull(_) => CLOSE_RING_FULL,
        _ => CLOSE_REFUSED,
    };
    let reason = error.reason().unwrap_or("closed");
    match error {
        // The other side learns what it would have to speak.
        LinkError::Protocol { ours, .. } => {
            let text = format!("{reason}: this node speaks {ours}");
            connection.close(code.into(), text.as_bytes());
        }
        _ => connection.close(code.into(), reason.as_bytes()),
    }
}

pub(super) fn certificate_of(connection: &Connection) -> Result<Eid, LinkError> {
    Ok(tls::peer_eid(connection)?)
}

/// Checks the hello of the other side and, if all is well, enters the connection into the table.
pub(super) async fn admit(
    shared: &Arc<Shared>,
    connection: &Connection,
    passed: Passed,
    hello: Hello,
    dialled: bool,
) -> Result<Greeted, LinkError> {
    let Passed { eid: certificate, grants } = passed;
    let protocol = check(shared, certificate, &hello)?;
    if let Some(nodes) = shared.full_ring(certificate, &hello.site) {
        return Err(LinkError::RingFull(nodes));
    }
    let remote = connection.remote_address();
    let advertised = resolve(&hello.advertise, &shared.config).await;
    let info = PeerInfo {
        run: hello.run,
        site: hello.site,
        address: hello.advertise,
        gossip_address: advertised.into_iter().find(|address| !address.ip().is_unspecified()).unwrap_or(remote),
        remote,
        version: hello.version,
        protocol,
        grants,
        dialled,
        link: name_of(connection),
        connected_since: Instant::now(),
    };
    let (queue, gossip) = mpsc::channel(shared.config.gossip_queue_max);
    let link = Link { connection: connection.clone(), info: info.clone(), gossip: queue };
    shared.access.remember(certificate, &info.grants);
    let admission = shared.table().admit(certificate, link);
    match admission {
        Admission::Admitted => {}
        Admission::Replaced(old) => {
            shared.counters.replaced.add(1);
            old.close(CLOSE_DUPLICATE.into(), b"replaced");
        }
        Admission::Duplicate => return Err(LinkError::Duplicate(certificate)),
        Admission::TooMany => return Err(LinkError::TooManyPeers(shared.config.peers_max)),
    }
    shared.counters.opened.add(1);
    Ok(Greeted { peer: certificate, connection: connection.clone(), info, gossip })
}

/// Gives the version of the protocol to speak.
fn check(shared: &Shared, certificate: Eid, hello: &Hello) -> Result<u8, LinkError> {
    if !is_plain(&hello.cluster) {
        return Err(LinkError::HelloText);
    }
    if hello.cluster != shared.config.cluster {
        return Err(LinkError::Cluster(hello.cluster.clone()));
    }
    if hello.eid != certificate {
        return Err(LinkError::EidMismatch { claimed: hello.eid, certificate });
    }
    if [&hello.site, &hello.advertise, &hello.version].into_iter().any(|text| text.is_empty() || !is_plain(text)) {
        return Err(LinkError::HelloText);
    }
    let spoken = shared.config.protocol;
    match (hello.eid == shared.eid, hello.run == shared.run) {
        (true, true) => Err(LinkError::Own),
        (true, false) => Err(LinkError::DuplicateEid),
        (false, _) => spoken.common(hello.protocol).ok_or(LinkError::Protocol { ours: spoken, theirs: hello.protocol }),
    }
}

/// Checks a standing connection anew, and cuts it if it would not be admitted as it is: the peer comes back at
/// once, with what it is trusted for now, or is refused.
pub(super) fn recheck(shared: &Shared, connection: &Connection, granted: &Grants) -> Option<Cut> {
    let (peer, why) = match shared.access.judge(connection) {
        Ok(passed) if passed.grants == *granted => return None,
        Ok(passed) => {
            connection.close(CLOSE_RECHECKED.into(), b"trusted for other families now");
            (passed.eid, "it is trusted for other families now".to_string())
        }
        Err(error) => {
            close(connection, &error);
            shared.note_failure(connection.remote_address(), &error);
            (certificate_of(connection).ok()?, error.to_string())
        }
    };
    Some(Cut { peer, why })
}

/// The same on both sides of a connection, and on no other: taken from its secrets (RFC 8446, 7.5).
fn name_of(connection: &Connection) -> u64 {
    let mut name = [0; 8];
    let exported = connection.export_keying_material(&mut name, b"EXPORTER-kinfolk-link", b"");
    debug_assert!(exported.is_ok(), "the handshake is over");
    u64::from_be_bytes(name)
}

/// The addresses of `host:port`; none if it does not resolve in time.
pub(super) async fn resolve(address: &str, config: &MeshConfig) -> Vec<SocketAddr> {
    if let Ok(address) = address.parse() {
        return vec![address];
    }
    match tokio::time::timeout(ms(config.resolve_timeout_ms), tokio::net::lookup_host(address)).await {
        Ok(Ok(addresses)) => addresses.take(RESOLVED_MAX).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// Carries streams and gossip until the connection ends.
pub(super) async fn serve(shared: Arc<Shared>, greeted: Greeted) {
    let Greeted { peer, connection, info, gossip } = greeted;
    tracing::info!(
        %peer, run = %info.run, site = info.site, remote = %info.remote, dialled = info.dialled, protocol = info.protocol,
        link = format_args!("{:016x}", info.link), "connected"
    );
    let near = info.site == shared.config.site;
    let ended = tokio::select! {
        ended = connection.closed() => ended,
        ended = pulse::watch(&shared.config, peer, &connection), if near => ended,
        ended = hand_on_streams(&shared, &connection, peer, &info) => ended,
        ended = receive_gossip(&shared, &connection, peer, &info) => ended,
        ended = send_gossip(&shared, &connection, gossip) => ended,
    };
    let stats = connection.stats();
    shared.table().remove(peer, &connection);
    shared.counters.closed.add(1);
    shared.counters.sent_bytes.add(stats.udp_tx.bytes);
    shared.counters.received_bytes.add(stats.udp_rx.bytes);
    tracing::info!(%peer, run = %info.run, link = format_args!("{:016x}", info.link), "disconnected: {ended}");
}

async fn hand_on_streams(shared: &Shared, connection: &Connection, peer: Eid, info: &PeerInfo) -> ConnectionError {
    loop {
        let (send, recv) = match connection.accept_bi().await {
            Ok(stream) => stream,
            Err(ended) => return ended,
        };
        let incoming = Incoming { peer, run: info.run, site: info.site.clone(), send, recv };
        if shared.incoming.send(incoming).await.is_err() {
            return connection.closed().await;
        }
    }
}

/// Each message is a short stream of its own, so that a lost packet delays no other message.
async fn receive_gossip(shared: &Arc<Shared>, connection: &Connection, peer: Eid, info: &PeerInfo) -> ConnectionError {
    let (address, far) = (info.gossip_address, info.site != shared.config.site);
    loop {
        match connection.accept_uni().await {
            Ok(recv) => shared.spawn(receive_one(shared.clone(), recv, peer, address, far)),
            Err(ended) => return ended,
        }
    }
}

async fn receive_one(shared: Arc<Shared>, mut recv: RecvStream, peer: Eid, address: SocketAddr, far: bool) {
    match read_gossip(&shared, &mut recv).await {
        Ok((ring, _)) if shared.config.rings.misplaced(ring, far) => {
            if shared.counters.refuse("gossip_ring") {
                tracing::warn!(%peer, "it gossips in other rings: [gossip] rings must be the same on every node");
            }
        }
        Ok((ring, payload)) => {
            if shared.gossip[ring as usize].try_send((address, payload)).is_err() {
                shared.counters.gossip_dropped_full.add(1);
            }
        }
        Err(error) => {
            let _ = recv.stop(CLOSE_REFUSED.into());
            if let Some(reason) = error.reason()
                && shared.counters.refuse(reason)
            {
                tracing::warn!(%peer, reason, "refused a message: {error}");
            }
        }
    }
}

async fn read_gossip(shared: &Shared, recv: &mut RecvStream) -> Result<(Ring, Vec<u8>), FrameError> {
    let timeout = ms(shared.config.gossip_timeout_ms);
    let frame = tokio::time::timeout(timeout, frames::read_frame(recv)).await;
    let (header, payload) = frame.map_err(|_| FrameError::TimedOut(timeout.as_millis()))??.ok_or(FrameError::Ended)?;
    if header.kind == WideGossip::KIND {
        let WideGossip { payload } = codec::decode_payload(header, &payload)?;
        return Ok((Ring::Wide, payload));
    }
    let Gossip { payload } = codec::decode_payload(header, &payload)?;
    Ok((Ring::Near, payload))
}

impl Rings {
    /// Whether a node that gossips like this one would not have sent a message of this ring here.
    pub(super) fn misplaced(self, ring: Ring, far: bool) -> bool {
        match (self, ring) {
            (Rings::One, Ring::Near) => false,
            (Rings::One, Ring::Wide) => true,
            (Rings::BySite, Ring::Near) => far,
            (Rings::BySite, Ring::Wide) => !far,
        }
    }
}

/// A message that cannot be sent in time is dropped: the next ones say more.
async fn send_gossip(
    shared: &Shared,
    connection: &Connection,
    mut messages: mpsc::Receiver<(Ring, Vec<u8>)>,
) -> ConnectionError {
    while let Some((ring, payload)) = messages.recv().await {
        let sent = async {
            let mut send = connection.open_uni().await.ok()?;
            let written = match ring {
                Ring::Near => frames::write_frame(&mut send, &Gossip { payload }).await,
                Ring::Wide => frames::write_frame(&mut send, &WideGossip { payload }).await,
            };
            written.ok()?;
            send.finish().ok()
        };
        let sent = tokio::time::timeout(ms(shared.config.gossip_timeout_ms), sent).await;
        if !matches!(sent, Ok(Some(()))) {
            shared.counters.gossip_dropped_unsent.add(1);
        }
    }
    connection.closed().await
}
