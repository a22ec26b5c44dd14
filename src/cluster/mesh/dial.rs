//! The side that dials: one task for each address, for as long as somebody names that address.
//!
//! Never here: giving up. Invariants: an address is not dialled while the node that answers there is
//! connected; addresses that only gossip names are bounded in number and forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::ms;
use super::link::{
    self, CLOSE_DUPLICATE, CLOSE_DUPLICATE_EID, CLOSE_RING_FULL, CLOSE_SELF, CLOSE_UNNEEDED, Greeted, LinkError,
};
use super::{MeshConfig, PeerInfo, Rings, Shared};
use crate::cluster::frames;
use crate::cluster::tls::NODE_DNS_NAME;
use crate::core::eid::Eid;

/// How often a name that leads back to this node is looked up again.
const OWN_AGAIN: Duration = Duration::from_secs(60);
/// How often addresses that nobody names any more are dropped.
const SWEEP: Duration = Duration::from_secs(1);

/// The addresses to dial, and who names them.
#[derive(Default)]
pub(super) struct Targets {
    seeds: BTreeSet<String>,
    /// By membership: who is expected there.
    known: BTreeMap<String, BTreeSet<Eid>>,
    /// By gossip: when it was last sent there.
    wanted: BTreeMap<SocketAddr, Instant>,
    /// Found to be this node itself.
    own: BTreeSet<SocketAddr>,
}

impl Targets {
    pub fn of_seeds(seeds: &[String]) -> Self {
        Self { seeds: seeds.iter().cloned().collect(), ..Self::default() }
    }

    /// True if anything changed.
    pub fn set_known(&mut self, me: Eid, known: &BTreeMap<Eid, String>) -> bool {
        let mut by_address = BTreeMap::<String, BTreeSet<Eid>>::new();
        for (eid, address) in known.iter().filter(|(eid, _)| **eid != me) {
            by_address.entry(address.clone()).or_default().insert(*eid);
        }
        let changed = by_address != self.known;
        self.known = by_address;
        changed
    }

    /// True if anything changed.
    pub fn set_seeds(&mut self, seeds: &[String]) -> bool {
        let seeds = seeds.iter().cloned().collect();
        let changed = seeds != self.seeds;
        self.seeds = seeds;
        changed
    }

    /// True if the address is a new one.
    pub fn want(&mut self, address: SocketAddr, config: &MeshConfig) -> bool {
        if self.own.contains(&address) {
            return false;
        }
        let room = self.wanted.len() < config.wanted_max;
        match self.wanted.get_mut(&address) {
            Some(last) => {
                *last = Instant::now();
                false
            }
            None if room => self.wanted.insert(address, Instant::now()).is_none(),
            None => false,
        }
    }

    #[cfg(test)]
    pub fn found_itself(&self) -> bool {
        !self.own.is_empty()
    }

    fn addresses(&self) -> BTreeSet<String> {
        let wanted = self.wanted.keys().map(SocketAddr::to_string);
        self.seeds.iter().chain(self.known.keys()).cloned().chain(wanted).collect()
    }

    /// The nodes that may answer at the address; none given: any.
    fn expected(&self, address: &str) -> Option<BTreeSet<Eid>> {
        if self.seeds.contains(address) { None } else { self.known.get(address).cloned() }
    }

    fn hold_wanted(&mut self, hold: Duration) {
        let now = Instant::now();
        self.wanted.retain(|_, last| now < *last + hold);
    }
}

/// Keeps one task for each address that is named.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut tasks = BTreeMap::<String, CancellationToken>::new();
    let mut unneeded = BTreeMap::<Eid, Instant>::new();
    loop {
        let named = {
            let mut targets = shared.targets();
            targets.hold_wanted(ms(shared.config.wanted_hold_ms));
            targets.addresses()
        };
        tasks.retain(|address, task| {
            let keep = named.contains(address);
            if !keep {
                task.cancel();
            }
            keep
        });
        close_unneeded(&shared, &named, &mut unneeded);
        for address in named {
            tasks.entry(address.clone()).or_insert_with(|| {
                let stop = shared.cancel.child_token();
                let (dialler, token) = (Dialler::new(shared.clone(), address), stop.clone());
                shared.tracker.spawn(async move {
                    token.run_until_cancelled(dialler.run()).await;
                });
                stop
            });
        }
        let _ = tokio::time::timeout(SWEEP, shared.targets_changed.notified()).await;
    }
}

/// Ends connections to other sites that were made here, and are needed here no more.
fn close_unneeded(shared: &Shared, named: &BTreeSet<String>, since: &mut BTreeMap<Eid, Instant>) {
    if shared.config.rings == Rings::One {
        return;
    }
    let (now, hold) = (Instant::now(), ms(shared.config.unneeded_hold_ms));
    let needed = |info: &PeerInfo| {
        let addresses = [info.gossip_address, info.remote].map(|address| address.to_string());
        named.contains(&info.address) || addresses.iter().any(|address| named.contains(address))
    };
    let table = shared.table();
    let unneeded = || {
        table.all().filter(|(_, link)| link.info.dialled && link.info.site != shared.config.site && !needed(&link.info))
    };
    let eids: BTreeSet<Eid> = unneeded().map(|(eid, _)| eid).collect();
    since.retain(|eid, _| eids.contains(eid));
    for (eid, link) in unneeded() {
        if now >= *since.entry(eid).or_insert(now) + hold {
            tracing::debug!(peer = %eid, "closed a connection that is not needed");
            link.connection.close(CLOSE_UNNEEDED.into(), b"not needed");
        }
    }
}

/// What came of one attempt.
enum Dialled {
    Linked(Eid),
    /// Connected already, by another connection.
    Standing(Eid),
    /// Nothing but this node itself answers here.
    Own,
    Failed(String),
}

struct Dialler {
    shared: Arc<Shared>,
    address: String,
    /// Who answered here last.
    answered: Option<Eid>,
    backoff: Duration,
    last_fault: Option<String>,
}

impl Dialler {
    fn new(shared: Arc<Shared>, address: String) -> Self {
        let backoff = ms(shared.config.backoff_min_ms);
        Self { shared, address, answered: None, backoff, last_fault: None }
    }

    async fn run(mut self) {
        self.yield_to_the_smaller().await;
        loop {
            self.until_not_connected().await;
            let began = Instant::now();
            match self.dial().await {
                Dialled::Linked(peer) => {
                    (self.answered, self.last_fault) = (Some(peer), None);
                    self.until_not_connected().await;
                }
                Dialled::Standing(peer) => self.answered = Some(peer),
                Dialled::Own => tokio::time::sleep(OWN_AGAIN).await,
                Dialled::Failed(fault) => self.note(fault),
            }
            self.pause(began).await;
        }
    }

    /// If the peer is known and has the smaller EID, its dial is the one that would stay: let it come first.
    async fn yield_to_the_smaller(&self) {
        let expected = self.shared.targets().expected(&self.address);
        if expected.is_some_and(|eids| eids.iter().all(|eid| *eid < self.shared.eid)) {
            tokio::time::sleep(ms(self.shared.config.dial_yield_ms)).await;
        }
    }

    async fn until_not_connected(&self) {
        let mut peers = self.shared.table().peers();
        let expected = self.shared.targets().expected(&self.address).unwrap_or_default();
        let gone = peers.wait_for(|peers| {
            let answered = self.answered.is_some_and(|eid| peers.contains_key(&eid));
            let expected = !expected.is_empty() && expected.iter().all(|eid| peers.contains_key(eid));
            !answered && !expected && !peers.values().any(|peer| peer.address == self.address)
        });
        let _ = gone.await;
    }

    /// A link that stood for a while makes the pauses short again.
    async fn pause(&mut self, began: Instant) {
        let (min, max) = (ms(self.shared.config.backoff_min_ms), ms(self.shared.config.backoff_max_ms));
        if self.last_fault.is_none() && began.elapsed() > max {
            self.backoff = min;
        }
        #[expect(clippy::disallowed_methods, reason = "jitter, so that nodes do not dial all at once")]
        let jitter = rand::random_range(0.5..=1.0);
        tokio::time::sleep(self.backoff.mul_f64(jitter)).await;
        self.backoff = (self.backoff * 2).min(max);
    }

    fn note(&mut self, fault: String) {
        self.shared.counters.dials_failed.add(1);
        if self.last_fault.as_ref() == Some(&fault) {
            tracing::debug!(address = self.address, "still not connected: {fault}");
        } else {
            tracing::warn!(address = self.address, "cannot connect, will keep trying: {fault}");
            self.last_fault = Some(fault);
        }
    }

    async fn dial(&self) -> Dialled {
        let resolved = link::resolve(&self.address, &self.shared.config).await;
        let others: Vec<_> = {
            let targets = self.shared.targets();
            resolved.iter().filter(|address| !targets.own.contains(*address)).copied().collect()
        };
        if others.is_empty() {
            let fault = || Dialled::Failed("the name does not resolve".into());
            return if resolved.is_empty() { fault() } else { Dialled::Own };
        }
        let mut outcome = Dialled::Own;
        for remote in others {
            match self.dial_one(remote).await {
                Dialled::Own => _ = self.shared.targets().own.insert(remote),
                Dialled::Failed(fault) => outcome = Dialled::Failed(fault),
                done => return done,
            }
        }
        outcome
    }

    async fn dial_one(&self, remote: SocketAddr) -> Dialled {
        let connection = match self.connect(remote).await {
            Ok(connection) => connection,
            Err(fault) => return Dialled::Failed(fault),
        };
        let fault = match self.greet(&connection).await {
            Ok(greeted) => {
                let peer = greeted.peer;
                self.shared.spawn(link::serve(self.shared.clone(), greeted));
                return Dialled::Linked(peer);
            }
            Err(fault) => fault,
        };
        link::close(&connection, &fault);
        self.judge(&connection, remote, fault)
    }

    async fn connect(&self, remote: SocketAddr) -> Result<quinn::Connection, String> {
        let connecting = self
            .shared
            .endpoint
            .connect_with(self.shared.access.client_config(), remote, NODE_DNS_NAME)
            .map_err(|error| error.to_string())?;
        match tokio::time::timeout(ms(self.shared.config.connect_timeout_ms), connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                let error = LinkError::from(error);
                self.shared.note_failure(remote, &error);
                Err(error.to_string())
            }
            Err(_) => Err("no answer".into()),
        }
    }

    /// The dialler speaks first; an answer means that the other side admitted it.
    async fn greet(&self, connection: &quinn::Connection) -> Result<Greeted, LinkError> {
        let passed = self.shared.access.judge(connection)?;
        let certificate = passed.eid;
        let expected = self.shared.targets().expected(&self.address);
        if expected.is_some_and(|eids| !eids.contains(&certificate)) {
            return Err(LinkError::Unexpected { found: certificate });
        }
        let _greeting = Greeting::begin(&self.shared, certificate).ok_or(LinkError::Duplicate(certificate))?;
        let timeout = ms(self.shared.config.hello_timeout_ms);
        let exchange = async {
            let (mut send, mut recv) = connection.open_bi().await?;
            frames::write_frame(&mut send, &self.shared.hello()).await?;
            let _ = send.finish();
            Ok::<_, LinkError>(frames::read_message(&mut recv, self.shared.config.hello_max_bytes, timeout).await?)
        };
        let hello = tokio::time::timeout(timeout, exchange).await.map_err(|_| LinkError::NoHello)??;
        link::admit(&self.shared, connection, passed, hello, true).await
    }

    /// What a failed greeting means. Only a peer with our own certificate's EID can tell that it is us.
    fn judge(&self, connection: &quinn::Connection, remote: SocketAddr, fault: LinkError) -> Dialled {
        let peer = link::certificate_of(connection).ok();
        let code = fault.code_of_peer();
        let closed_as = |wanted: u32| code == Some(u64::from(wanted));
        match (peer, &fault) {
            (Some(peer), LinkError::Duplicate(_)) => return Dialled::Standing(peer),
            (Some(peer), _) if closed_as(CLOSE_DUPLICATE) => return Dialled::Standing(peer),
            (Some(_), _) if closed_as(CLOSE_RING_FULL) => {
                self.shared.ring().refused = Some(Instant::now());
                let what =
                    "its ring of gossip has no room for one more node: set [gossip] rings = \"by-site\" on every node";
                return Dialled::Failed(what.into());
            }
            (Some(peer), _) if peer == self.shared.eid && closed_as(CLOSE_SELF) => return Dialled::Own,
            (Some(peer), _) if peer == self.shared.eid && closed_as(CLOSE_DUPLICATE_EID) => {
                self.shared.note_failure(remote, &LinkError::DuplicateEid);
                return Dialled::Failed(LinkError::DuplicateEid.to_string());
            }
            _ => self.shared.note_failure(remote, &fault),
        }
        Dialled::Failed(fault.to_string())
    }
}

/// While it lives, no other dial of ours greets the same peer.
struct Greeting<'a> {
    shared: &'a Shared,
    peer: Eid,
}

impl<'a> Greeting<'a> {
    fn begin(shared: &'a Shared, peer: Eid) -> Option<Self> {
        // Not `then_some`: a greeting that is made and dropped would end another's, and wait for ever for the
        // table that this statement still holds.
        let begun = shared.table().begin_greeting(peer);
        begun.then(|| Self { shared, peer })
    }
}

impl Drop for Greeting<'_> {
    fn drop(&mut self) {
        self.shared.table().end_greeting(self.peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{Ca, Node, config, eid};

    #[tokio::test]
    async fn a_second_greeting_of_one_peer_is_declined_and_ends_nothing_of_the_first() {
        let node = Node::start(config(), Ca::new().identity(1), 11).await;
        let shared = &*node.mesh.0;
        let first = Greeting::begin(shared, eid(2)).expect("nobody else greets it");
        assert!(Greeting::begin(shared, eid(2)).is_none());
        assert!(Greeting::begin(shared, eid(2)).is_none(), "still the first one's");
        assert!(Greeting::begin(shared, eid(3)).is_some(), "another peer is another matter");
        drop(first);
        assert!(Greeting::begin(shared, eid(2)).is_some());
    }
}
