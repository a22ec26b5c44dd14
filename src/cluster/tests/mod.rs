//! Real sockets on loopback. Waiting is always for a condition, with a bound.

mod gossip;
mod mesh;
mod pairing;
mod rings;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::tls::{CA_CERT_FILE, Identity, Issued, NODE_VALID_DAYS, init_ca, issue};
use super::{Mesh, MeshConfig, PeerInfo, Ring};
use crate::core::eid::Eid;
use crate::core::storage::Run;

pub(super) const SOON: Duration = Duration::from_secs(10);

/// Waits until the condition holds; panics with what was wanted if it does not in time.
pub(super) async fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(within, holds).await.is_ok(), "not within {within:?}: {what}");
}

pub(super) fn eid(last: u8) -> Eid {
    Eid::new([2, 0, 0, 0, 0, last])
}

/// Certificates are checked against the real clock by rustls.
fn now_unix_s() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "rustls checks certificates against it")]
    std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs()
}

pub(super) struct Ca(Arc<tempfile::TempDir>);

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        init_ca(dir.path(), "test", now_unix_s()).expect("a CA");
        Self(Arc::new(dir))
    }

    pub fn file(&self) -> PathBuf {
        self.0.path().join(CA_CERT_FILE)
    }

    pub fn issue(&self, last: u8) -> Issued {
        issue(self.0.path(), Some(eid(last)), NODE_VALID_DAYS, now_unix_s()).expect("a certificate")
    }

    pub fn identity(&self, last: u8) -> Identity {
        let issued = self.issue(last);
        Identity::load(&self.file(), &issued.cert, &issued.key, now_unix_s()).expect("an identity")
    }

    /// Trusts `other` too, but its own certificate is of this CA.
    pub fn identity_that_trusts(&self, last: u8, other: &Ca) -> Identity {
        let issued = self.issue(last);
        let both = self.0.path().join("both.pem");
        let read = |path| std::fs::read(path).expect("a CA file");
        std::fs::write(&both, [read(self.file()), read(other.file())].concat()).expect("a file");
        Identity::load(&both, &issued.cert, &issued.key, now_unix_s()).expect("an identity")
    }
}

pub(super) fn config() -> MeshConfig {
    MeshConfig { listen: ([127, 0, 0, 1], 0).into(), dial_yield_ms: 0, ..MeshConfig::default() }
}

pub(super) fn config_with_seed(seed: &Node) -> MeshConfig {
    MeshConfig { seeds: vec![seed.address()], ..config() }
}

pub(super) struct Node {
    pub mesh: Mesh,
    pub tracker: TaskTracker,
    pub cancel: CancellationToken,
}

impl Node {
    pub async fn start(config: MeshConfig, identity: Identity, run: u64) -> Node {
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let mesh =
            Mesh::start(config, identity, Run(run), tracker.clone(), cancel.clone()).await.expect("a mesh starts");
        Node { mesh, tracker, cancel }
    }

    pub fn address(&self) -> String {
        self.mesh.advertise().into()
    }

    pub fn peer(&self, last: u8) -> Option<PeerInfo> {
        self.mesh.peers().borrow().get(&eid(last)).cloned()
    }

    pub fn refused(&self, reason: &str) -> u64 {
        self.mesh.counters().refused()[reason]
    }

    pub async fn connected(&self, last: u8) -> PeerInfo {
        eventually(&format!("{} is connected to {}", self.mesh.eid(), eid(last)), SOON, || self.peer(last).is_some())
            .await;
        self.peer(last).expect("just seen")
    }

    pub async fn refuses(&self, reason: &str) {
        eventually(&format!("refused: {reason}"), SOON, || self.refused(reason) > 0).await;
    }

    /// Stops it as a signal would; every task must end.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        assert!(tokio::time::timeout(SOON, self.tracker.wait()).await.is_ok(), "tasks are left over");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A node in a runtime of its own, that can die without a word.
pub(super) struct Mortal {
    pub node: Option<Node>,
    pub runtime: Option<tokio::runtime::Runtime>,
}

impl Mortal {
    pub async fn start(config: MeshConfig, identity: Identity, run: u64) -> Mortal {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let node = runtime.spawn(Node::start(config, identity, run)).await.expect("it started");
        Mortal { node: Some(node), runtime: Some(runtime) }
    }

    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("alive")
    }

    pub fn kill(mut self) {
        self.die();
    }

    fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.die();
    }
}
