//! UDP sockets and TCP connections. Every address is asked of the [`Gate`] before a byte is looked at.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::Gate;
use crate::asterisk::event::{Event, Refused, RefusedReason, Remote, Transport};
use crate::asterisk::framing::Framer;
use crate::asterisk::message::{Headers, MESSAGE_MAX_BYTES, Request};
use crate::config::Listen;

/// TCP connections at a time, both those that came and those that were made.
const CONNECTIONS_MAX: usize = 256;
/// A connection on which nothing came or went for this long is closed; the next message opens another.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// How long a peer may take to take in what is written, and to accept a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages that may wait to be written to one connection.
const WRITES_WAITING_MAX: usize = 64;
/// A pause after the system had no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 16 * 1_024;

/// Sockets that are bound and that nobody reads yet.
pub struct Bound {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Bound {
    /// Binds all, or says which one could not be.
    pub async fn bind(listen: &[Listen]) -> Result<Self, (Listen, io::Error)> {
        let mut bound = Self { udp: Vec::new(), tcp: Vec::new() };
        for one in listen {
            let result = match one.transport {
                Transport::Udp => UdpSocket::bind(one.address).await.map(|socket| bound.udp.push(socket)),
                Transport::Tcp => TcpListener::bind(one.address).await.map(|listener| bound.tcp.push(listener)),
                Transport::Tls => Err(io::Error::new(io::ErrorKind::Unsupported, "TLS is not done here")),
            };
            result.map_err(|error| (*one, error))?;
        }
        Ok(bound)
    }

    /// Where it listens, with the ports that the system chose.
    pub fn listening(&self) -> Vec<Listen> {
        let udp = self.udp.iter().map(|socket| (Transport::Udp, socket.local_addr()));
        let tcp = self.tcp.iter().map(|listener| (Transport::Tcp, listener.local_addr()));
        let all = udp.chain(tcp);
        all.filter_map(|(transport, address)| Some(Listen { transport, address: address.ok()? })).collect()
    }
}

type Writes = mpsc::Sender<Vec<u8>>;

pub struct Sockets {
    udp: Vec<Arc<UdpSocket>>,
    connections: Mutex<BTreeMap<u64, Writes>>,
    next_connection: AtomicU64,
    permits: Arc<Semaphore>,
    room: Room,
}

/// What every reading task needs.
#[derive(Clone)]
struct Room {
    events: mpsc::Sender<Event>,
    gate: Arc<Gate>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Room {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move { cancel.run_until_cancelled_owned(task).await });
    }
}

impl Sockets {
    pub fn start(
        bound: Bound,
        events: mpsc::Sender<Event>,
        gate: Arc<Gate>,
        tracker: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Arc<Self> {
        let room = Room { events, gate, tracker: tracker.clone(), cancel: cancel.clone() };
        let sockets = Arc::new(Self {
            udp: bound.udp.into_iter().map(Arc::new).collect(),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(1),
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            room,
        });
        for (index, socket) in sockets.udp.iter().enumerate() {
            sockets.room.spawn(read_datagrams(socket.clone(), index as u64, sockets.room.clone()));
        }
        for listener in bound.tcp {
            sockets.room.spawn(accept(listener, sockets.clone()));
        }
        sockets
    }

    /// An answer to a request. What cannot be sent is lost as it could be in the network: it is asked again.
    pub async fn reply(&self, to: Remote, bytes: Vec<u8>) {
        match to.transport {
            Transport::Udp => {
                let socket = usize::try_from(to.connection).ok().and_then(|index| self.udp.get(index));
                if let Some(socket) = socket
                    && let Err(error) = socket.send_to(&bytes, to.address).await
                {
                    tracing::debug!(to = %to.address, %error, "an answer could not be sent");
                }
            }
            Transport::Tcp | Transport::Tls => {
                let mut connections = self.connections();
                let full = connections.get(&to.connection).is_some_and(|writes| writes.try_send(bytes).is_err());
                if full {
                    // Its peer takes nothing in: it is closed.
                    connections.remove(&to.connection);
                }
            }
        }
    }

    /// Sends a datagram from the first socket of the address's kind.
    pub async fn send_datagram(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let same_kind = |socket: &&Arc<UdpSocket>| socket.local_addr().is_ok_and(|own| own.is_ipv4() == to.is_ipv4());
        let socket = self.udp.iter().find(same_kind).ok_or(io::ErrorKind::AddrNotAvailable)?;
        socket.send_to(bytes, to).await.map(|_| ())
    }

    /// Connects; what is put into the channel is written. The channel closes with the connection.
    pub async fn connect(self: &Arc<Self>, to: SocketAddr) -> io::Result<Writes> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| io::ErrorKind::QuotaExceeded)?;
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await??;
        Ok(self.run(stream, to, permit))
    }

    fn run(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) -> Writes {
        // Small messages must not wait for more; a socket that refuses the option works all the same.
        let _ = stream.set_nodelay(true);
        let (writes, waiting) = mpsc::channel(WRITES_WAITING_MAX);
        let number = self.next_connection.fetch_add(1, Relaxed);
        self.connections().insert(number, writes.clone());
        let remote = Remote { transport: Transport::Tcp, address: peer, connection: number };
        let (sockets, room) = (self.clone(), self.room.clone());
        self.room.spawn(async move {
            if let Err(error) = carry(stream, remote, waiting, &room).await {
                tracing::debug!(%peer, %error, "a SIP connection ended");
            }
            sockets.connections().remove(&number);
            drop(permit);
        });
        writes
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Writes>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_datagrams(socket: Arc<UdpSocket>, index: u64, room: Room) {
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    loop {
        let (length, address) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An earlier answer of ours was refused by its receiver's system, most often.
                tracing::debug!(%error, "a SIP socket reports");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let from = Remote { transport: Transport::Udp, address, connection: index };
        if !room.gate.lists(address.ip()) {
            room.gate.stranger(from, &buffer[..length]);
            continue;
        }
        if room.events.send(Event::Received { from, bytes: buffer[..length].to_vec() }).await.is_err() {
            return;
        }
    }
}

async fn accept(listener: TcpListener, sockets: Arc<Sockets>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a SIP connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !sockets.room.gate.lists(peer.ip()) {
            let from = Remote { transport: Transport::Tcp, address: peer, connection: 0 };
            sockets.room.gate.stranger(from, &[]);
            continue;
        }
        match sockets.permits.clone().try_acquire_owned() {
            Ok(permit) => drop(sockets.run(stream, peer, permit)),
            Err(_) => tracing::warn!(%peer, "too many SIP connections: one more is closed"),
        }
    }
}

/// Reads and writes until either side ends, is silent for too long, or loses its place.
async fn carry(
    mut stream: TcpStream,
    from: Remote,
    mut waiting: mpsc::Receiver<Vec<u8>>,
    room: &Room,
) -> io::Result<()> {
    let mut framer = Framer::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        tokio::select! {
            biased;
            write = waiting.recv() => match write {
                Some(bytes) => tokio::time::timeout(PATIENCE, stream.write_all(&bytes)).await??,
                None => return Ok(()),
            },
            read = tokio::time::timeout(SILENCE_MAX, stream.read(&mut buffer)) => {
                let length = read??;
                if length == 0 {
                    return Ok(());
                }
                framer.push(&buffer[..length]);
                loop {
                    match framer.next_message() {
                        Ok(Some(bytes)) => {
                            if room.events.send(Event::Received { from, bytes }).await.is_err() {
                                return Ok(());
                            }
                        }
                        Ok(None) => break,
                        Err(error) => {
                            let request =
                                Request { method: "?".into(), uri: String::new(), headers: Headers::default(), body: Vec::new() };
                            let reason = RefusedReason::Malformed;
                            room.gate.refused(&Refused::new(None, &request, from, reason, &error.to_string()));
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}
