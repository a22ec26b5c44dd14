//! A peer that need not behave: QUIC with a certificate, and then whatever bytes a test likes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use kinfolk::cluster::tls::{CA_CERT_FILE, Identity, NODE_DNS_NAME};
use kinfolk::core::codec::{decode_frame, encode_frame};
use kinfolk::core::eid::Eid;
use kinfolk::core::message::{Follow, FollowReply, Hello};
use kinfolk::core::protocol::Versions;
use kinfolk::core::storage::Run;
use kinfolk::node::unix_ms;
use quinn::{Connection, Endpoint, RecvStream, SendStream};

const ANSWER_MAX: Duration = Duration::from_secs(5);
const ANSWER_MAX_BYTES: usize = 1 << 20;

pub struct Peer {
    pub connection: Connection,
    _endpoint: Endpoint,
}

pub fn identity(ca: &Path, dir: &Path, eid: Eid) -> Identity {
    let file = |extension| dir.join(eid.compact()).with_extension(extension);
    Identity::load(ca, &file("pem"), &file("key"), unix_ms() / 1_000).expect("an identity")
}

impl Peer {
    /// Connects with the certificate of `eid` in `tls_dir`.
    pub async fn connect(tls_dir: &Path, eid: Eid, to: SocketAddr) -> Peer {
        let identity = identity(&tls_dir.join(CA_CERT_FILE), tls_dir, eid);
        Self::connect_as(&identity, to).await.expect("connected")
    }

    pub async fn connect_as(identity: &Identity, to: SocketAddr) -> Result<Peer, quinn::ConnectionError> {
        let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("an endpoint");
        endpoint.set_default_client_config(identity.client_config());
        let connection = endpoint.connect(to, NODE_DNS_NAME).expect("a good address").await?;
        Ok(Peer { connection, _endpoint: endpoint })
    }

    /// Says hello as `claimed`; the answer, if the node gave one.
    pub async fn hello(&self, claimed: Eid) -> Option<Hello> {
        self.hello_speaking(claimed, Versions::SPOKEN).await
    }

    pub async fn hello_speaking(&self, claimed: Eid, protocol: Versions) -> Option<Hello> {
        let hello = Hello {
            cluster: "fleet".into(),
            eid: claimed,
            run: Run(7),
            site: "default".into(),
            advertise: "127.0.0.1:9".into(),
            version: "test".into(),
            protocol,
        };
        let answer = self.ask(&encode_frame(&hello).expect("a frame")).await?;
        decode_frame(&answer).ok()
    }

    /// Asks to follow a family; the first frame of the answer.
    pub async fn follow(&self, request: &Follow) -> Option<FollowReply> {
        let (mut send, mut recv) = self.open().await?;
        send.write_all(&encode_frame(request).expect("a frame")).await.ok()?;
        let reply = tokio::time::timeout(ANSWER_MAX, read_frame(&mut recv)).await.ok()??;
        decode_frame(&reply).ok()
    }

    /// Sends bytes on a stream of their own and reads what comes back, to its end.
    pub async fn ask(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (mut send, mut recv) = self.open().await?;
        send.write_all(bytes).await.ok()?;
        send.finish().ok()?;
        tokio::time::timeout(ANSWER_MAX, recv.read_to_end(ANSWER_MAX_BYTES)).await.ok()?.ok()
    }

    /// Sends bytes as a message of one direction.
    pub async fn tell(&self, bytes: &[u8]) -> Option<()> {
        let mut send = self.connection.open_uni().await.ok()?;
        send.write_all(bytes).await.ok()?;
        send.finish().ok()
    }

    async fn open(&self) -> Option<(SendStream, RecvStream)> {
        self.connection.open_bi().await.ok()
    }
}

async fn read_frame(recv: &mut RecvStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 8];
    recv.read_exact(&mut frame).await.ok()?;
    let length = u32::from_le_bytes(frame[4..].try_into().ok()?) as usize;
    let mut payload = vec![0; length];
    recv.read_exact(&mut payload).await.ok()?;
    frame.append(&mut payload);
    Some(frame)
}
