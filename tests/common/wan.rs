//! Wide-area links between the sites of a [`Network`]: each site's bridge stands in for the nodes elsewhere, and what
//! comes for them is delayed, now and then dropped, and sent on by the other site's bridge in the sender's name. So every
//! packet bears its true addresses. (The kernel's own `netem` is not everywhere.)
//!
//! Counted are the packets that left a site, dropped ones too, as its own line would count them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::netns::Network;

const DATAGRAM_MAX_BYTES: usize = 65_536;

/// What is on its way between two sites, in one direction.
#[derive(Default)]
struct Line {
    cut: AtomicBool,
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

/// What passed from one site to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    pub packets: u64,
    /// Of UDP payload.
    pub bytes: u64,
    pub dropped: u64,
}

struct Shared {
    sites: Vec<usize>,
    addresses: Vec<SocketAddr>,
    /// By site, then node elsewhere.
    sockets: Vec<BTreeMap<usize, UdpSocket>>,
    /// By site of the sender, then of the receiver.
    lines: Vec<Vec<Line>>,
    delay: Duration,
    loss: f64,
}

/// The running links. Dropping them ends them.
pub struct Wan {
    shared: Arc<Shared>,
    cancel: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Wan {
    /// Connects all sites with each other. `loss` is the share of packets that is dropped.
    pub fn start(network: &Network, delay: Duration, loss: f64, seed: u64) -> Self {
        let sites: Vec<usize> = (0..network.count()).map(|node| network.site(node)).collect();
        let count = sites.iter().max().map_or(0, |last| last + 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let sockets = {
            let _within = runtime.enter();
            let taken = |(node, socket): (usize, std::net::UdpSocket)| {
                socket.set_nonblocking(true).expect("a socket");
                (node, UdpSocket::from_std(socket).expect("a socket"))
            };
            (0..count).map(|site| network.stand_in(site).into_iter().map(taken).collect()).collect()
        };
        let lines = (0..count).map(|_| (0..count).map(|_| Line::default()).collect()).collect();
        let addresses = (0..network.count()).map(|node| network.address(node)).collect();
        let shared = Arc::new(Shared { sites, addresses, sockets, lines, delay, loss });
        let cancel = CancellationToken::new();
        let (carried, token) = (shared.clone(), cancel.clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                for site in 0..count {
                    for to in carried.sockets[site].keys() {
                        let rng = StdRng::seed_from_u64(seed ^ ((site as u64) << 32 | *to as u64));
                        tokio::spawn(carry(carried.clone(), site, *to, rng));
                    }
                }
                token.cancelled().await;
            });
        });
        Self { shared, cancel, thread: Some(thread) }
    }

    /// Cuts a site off from all others, or connects it again.
    pub fn cut(&self, site: usize, cut: bool) {
        for other in 0..self.shared.lines.len() {
            self.shared.lines[site][other].cut.store(cut, Relaxed);
            self.shared.lines[other][site].cut.store(cut, Relaxed);
        }
    }

    pub fn passed(&self, from: usize, to: usize) -> Passed {
        let line = &self.shared.lines[from][to];
        let (packets, bytes) = (line.packets.load(Relaxed), line.bytes.load(Relaxed));
        Passed { packets, bytes, dropped: line.dropped.load(Relaxed) }
    }

    /// All that left any site for another.
    pub fn all_passed(&self) -> Passed {
        let count = self.shared.lines.len();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        pairs.map(|(from, to)| self.passed(from, to)).fold(Passed::default(), |sum, one| Passed {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
            dropped: sum.dropped + one.dropped,
        })
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Carries what `site` sends to the node `to`, which is elsewhere.
async fn carry(shared: Arc<Shared>, site: usize, to: usize, mut rng: StdRng) {
    let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
    loop {
        let Ok((length, sender)) = shared.sockets[site][&to].recv_from(&mut buffer).await else { continue };
        let Some(from) = shared.addresses.iter().position(|address| *address == sender) else { continue };
        let there = shared.sites[to];
        let line = &shared.lines[site][there];
        line.packets.fetch_add(1, Relaxed);
        line.bytes.fetch_add(length as u64, Relaxed);
        if line.cut.load(Relaxed) || rng.random_bool(shared.loss) {
            line.dropped.fetch_add(1, Relaxed);
            continue;
        }
        let (shared, packet) = (shared.clone(), buffer[..length].to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(shared.delay).await;
            // The node may be gone; its network would not say so either.
            let _ = shared.sockets[there][&from].send_to(&packet, shared.addresses[to]).await;
        });
    }
}
