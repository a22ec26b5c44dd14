//! A network between nodes on one machine that can be cut: UDP forwarders, one before each node.
//!
//! Each node advertises its forwarder's address, so every packet between two nodes passes here. Who sent a
//! packet is told by its source address, which is the address that node listens on; towards a node each
//! other node has a socket of its own, so that answers find back. Rules are per ordered pair.
//!
//! Never here: what is in a packet. A packet from an address that is no node's is dropped. Needs no root.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

/// No UDP datagram is larger.
const DATAGRAM_MAX_BYTES: usize = 65_536;
/// Packets that may be on their way under a delay; more are dropped, as a real queue would.
const DELAYED_MAX: usize = 8_192;
const DROP: u64 = u64::MAX;

/// What happens to the packets from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Pass,
    Drop,
    Delay(Duration),
}

impl Rule {
    fn encode(self) -> u64 {
        match self {
            Rule::Pass => 0,
            Rule::Drop => DROP,
            Rule::Delay(delay) => u64::try_from(delay.as_micros()).unwrap_or(DROP - 1).min(DROP - 1),
        }
    }
}

/// What passed from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    pub packets: u64,
    pub bytes: u64,
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Link {
    rule: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    /// Where each node listens.
    nodes: RwLock<Vec<SocketAddr>>,
    /// By sender, then receiver.
    links: Vec<Vec<Link>>,
    delayed: AtomicUsize,
}

impl Shared {
    fn node(&self, index: usize) -> SocketAddr {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner)[index]
    }

    fn node_at(&self, address: SocketAddr) -> Option<usize> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).iter().position(|node| *node == address)
    }
}

/// The running forwarders. Dropping them ends them.
#[derive(Debug)]
pub struct Forwarders {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    cancel: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Forwarders {
    /// One forwarder for each node, everything passing. `nodes` is where they listen.
    pub fn start(nodes: Vec<SocketAddr>) -> io::Result<Self> {
        let count = nodes.len();
        let links = (0..count).map(|_| (0..count).map(|_| Link::default()).collect()).collect();
        let shared = Arc::new(Shared { nodes: RwLock::new(nodes), links, delayed: AtomicUsize::new(0) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cancel = CancellationToken::new();
        let addresses = {
            let _within = runtime.enter();
            spawn_all(&shared)?
        };
        let token = cancel.clone();
        let thread =
            std::thread::Builder::new().name("forwarders".into()).spawn(move || runtime.block_on(token.cancelled()))?;
        Ok(Self { shared, addresses, cancel, thread: Some(thread) })
    }

    /// The address that node `index` advertises.
    pub fn address(&self, index: usize) -> SocketAddr {
        self.addresses[index]
    }

    /// Node `index` listens elsewhere now.
    pub fn set_node(&self, index: usize, listen: SocketAddr) {
        self.shared.nodes.write().unwrap_or_else(PoisonError::into_inner)[index] = listen;
    }

    /// Sets the rule for one direction.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        self.shared.links[from][to].rule.store(rule.encode(), Relaxed);
    }

    /// Sets the rule for both directions.
    pub fn set_both(&self, one: usize, other: usize, rule: Rule) {
        self.set(one, other, rule);
        self.set(other, one, rule);
    }

    /// Cuts a node off from all others, both ways.
    pub fn isolate(&self, node: usize) {
        (0..self.addresses.len()).filter(|other| *other != node).for_each(|other| {
            self.set_both(node, other, Rule::Drop);
        });
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.shared.links.iter().flatten().for_each(|link| link.rule.store(Rule::Pass.encode(), Relaxed));
    }

    /// What went from one node to another so far.
    pub fn passed(&self, from: usize, to: usize) -> Passed {
        let link = &self.shared.links[from][to];
        Passed {
            packets: link.packets.load(Relaxed),
            bytes: link.bytes.load(Relaxed),
            dropped: link.dropped.load(Relaxed),
        }
    }

    /// The same, of all pairs together.
    pub fn passed_in_all(&self) -> Passed {
        let pairs = (0..self.addresses.len()).flat_map(|from| (0..self.addresses.len()).map(move |to| (from, to)));
        pairs.map(|(from, to)| self.passed(from, to)).fold(Passed::default(), |sum, of| Passed {
            packets: sum.packets + of.packets,
            bytes: sum.bytes + of.bytes,
            dropped: sum.dropped + of.dropped,
        })
    }
}

impl Drop for Forwarders {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            // A forwarder that panicked has been heard of on stderr.
            let _ = thread.join();
        }
    }
}

/// Spawns every direction; gives the addresses to advertise.
fn spawn_all(shared: &Arc<Shared>) -> io::Result<Vec<SocketAddr>> {
    let count = shared.links.len();
    let doors = (0..count).map(|_| socket()).collect::<io::Result<Vec<_>>>()?;
    for (to, door) in doors.iter().enumerate() {
        let mut inner = Vec::new();
        for from in 0..count {
            let socket = socket()?;
            // What node `to` answers to the socket that stands for `from` leaves by `to`'s own door.
            tokio::spawn(carry_back(shared.clone(), socket.clone(), door.clone(), to, from));
            inner.push(socket);
        }
        tokio::spawn(carry_in(shared.clone(), door.clone(), inner, to));
    }
    doors.iter().map(|door| door.local_addr()).collect()
}

fn socket() -> io::Result<Arc<UdpSocket>> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_nonblocking(true)?;
    Ok(Arc::new(UdpSocket::from_std(socket)?))
}

async fn carry_in(shared: Arc<Shared>, door: Arc<UdpSocket>, inner: Vec<Arc<UdpSocket>>, to: usize) {
    let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
    loop {
        // An error is about one packet (an unreachable port, say), never about the socket.
        let Ok((bytes, source)) = door.recv_from(&mut buffer).await else { continue };
        if let Some(from) = shared.node_at(source) {
            carry(&shared, (from, to), &inner[from], &buffer[..bytes], shared.node(to)).await;
        }
    }
}

async fn carry_back(shared: Arc<Shared>, inner: Arc<UdpSocket>, door: Arc<UdpSocket>, from: usize, to: usize) {
    let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
    loop {
        let Ok((bytes, source)) = inner.recv_from(&mut buffer).await else { continue };
        if source == shared.node(from) {
            carry(&shared, (from, to), &door, &buffer[..bytes], shared.node(to)).await;
        }
    }
}

/// Does with one packet what the rule says.
async fn carry(shared: &Arc<Shared>, (from, to): (usize, usize), by: &Arc<UdpSocket>, packet: &[u8], goal: SocketAddr) {
    let link = &shared.links[from][to];
    let rule = link.rule.load(Relaxed);
    if rule == DROP || (rule > 0 && shared.delayed.load(Relaxed) >= DELAYED_MAX) {
        link.dropped.fetch_add(1, Relaxed);
        return;
    }
    link.packets.fetch_add(1, Relaxed);
    link.bytes.fetch_add(packet.len() as u64, Relaxed);
    if rule == 0 {
        let _ = by.send_to(packet, goal).await;
        return;
    }
    shared.delayed.fetch_add(1, Relaxed);
    let (shared, by, packet) = (shared.clone(), by.clone(), packet.to_vec());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_micros(rule)).await;
        let _ = by.send_to(&packet, goal).await;
        shared.delayed.fetch_sub(1, Relaxed);
    });
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const NEVER: Duration = Duration::from_millis(100);

    fn node() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket")
    }

    fn received(node: &UdpSocket, within: Duration) -> Option<(Vec<u8>, SocketAddr)> {
        node.set_read_timeout(Some(within)).expect("set");
        let mut buffer = [0; 64];
        node.recv_from(&mut buffer).ok().map(|(bytes, source)| (buffer[..bytes].to_vec(), source))
    }

    #[test]
    fn packets_and_their_answers_pass_as_the_rules_say() {
        let nodes = [node(), node(), node()];
        let listen = nodes.iter().map(|node| node.local_addr().expect("an address")).collect();
        let forwarders = Forwarders::start(listen).expect("started");
        nodes[0].send_to(b"hello", forwarders.address(1)).expect("sent");
        let (packet, source) = received(&nodes[1], SOON).expect("it passes");
        assert_eq!(packet, b"hello");
        nodes[1].send_to(b"answer", source).expect("sent");
        assert_eq!(received(&nodes[0], SOON), Some((b"answer".to_vec(), forwarders.address(1))));
        nodes[2].send_to(b"other", forwarders.address(1)).expect("sent");
        assert_ne!(received(&nodes[1], SOON).expect("it passes").1, source, "each sender has a socket of its own");

        forwarders.set(0, 1, Rule::Drop);
        nodes[0].send_to(b"lost", forwarders.address(1)).expect("sent");
        assert_eq!(received(&nodes[1], NEVER), None);
        nodes[1].send_to(b"one way", source).expect("sent");
        assert!(received(&nodes[0], SOON).is_some(), "the other direction is open");
        assert_eq!(forwarders.passed(0, 1), Passed { packets: 1, bytes: 5, dropped: 1 });

        forwarders.set(0, 1, Rule::Delay(Duration::from_millis(1)));
        nodes[0].send_to(b"late", forwarders.address(1)).expect("sent");
        assert!(received(&nodes[1], SOON).is_some());
        node().send_to(b"stranger", forwarders.address(1)).expect("sent");
        assert_eq!(received(&nodes[1], NEVER), None, "nobody's packet");
    }
}
