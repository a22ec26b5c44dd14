//! The simulator's model of a patched Asterisk on real sockets, with a wire as long as a test likes.

#![allow(dead_code, reason = "each user takes a part")]

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::Duration;

use simulations::asterisk::astdb::AstDb;
use simulations::asterisk::{Asterisk, Counts, Packet, Settings};
use tokio::sync::mpsc;
use tokio::time::Instant;

const DATAGRAM_MAX_BYTES: usize = 65_535;

/// Something to do with the process.
type Command = Box<dyn FnOnce(&mut Asterisk, u64) -> Vec<Packet> + Send>;

/// The host of an Asterisk: its address stays when the process ends.
pub struct Host {
    socket: UdpSocket,
}

impl Host {
    pub fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_nonblocking(true).expect("a socket");
        Self { socket }
    }

    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("bound")
    }

    /// Starts the process.
    pub fn start(&self, settings: Settings, db: AstDb, wire: Wire) -> Patched {
        // What came while no process ran is lost.
        let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
        while self.socket.recv(&mut buffer).is_ok() {}
        let socket = self.socket.try_clone().expect("a descriptor");
        let (commands, inbox) = mpsc::unbounded_channel();
        let asterisk = Asterisk::new(settings, db);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(
                Process { asterisk, wire, started: Instant::now(), out: VecDeque::new(), heard: VecDeque::new() }
                    .run(socket, inbox),
            )
        });
        let patched = Patched { commands, thread };
        patched.act(|asterisk, now| (asterisk.load(now), ()));
        patched
    }
}

/// What lies between the Asterisk and its node.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub to: SocketAddr,
    /// In each direction.
    pub one_way: Duration,
    /// How many times faster than ours the Asterisk's clock runs.
    pub speed: u32,
}

/// A running process.
pub struct Patched {
    commands: mpsc::UnboundedSender<Command>,
    thread: JoinHandle<AstDb>,
}

impl Patched {
    /// Does something in the process, and returns when it is done there.
    pub fn act<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Asterisk, u64) -> (Vec<Packet>, T) + Send + 'static,
    ) -> T {
        let (tell, told) = blocking::channel();
        let command: Command = Box::new(move |asterisk, now| {
            let (packets, result) = act(asterisk, now);
            let _ = tell.send(result);
            packets
        });
        assert!(self.commands.send(command).is_ok(), "the process runs");
        told.recv().expect("the process runs")
    }

    pub fn put(&self, family: &str, key: &str, value: &str) {
        let (family, key, value) = (family.to_string(), key.to_string(), value.to_string());
        self.act(move |asterisk, now| (asterisk.put(now, &family, &key, &value), ()));
    }

    pub fn del(&self, family: &str, key: &str) {
        let (family, key) = (family.to_string(), key.to_string());
        self.act(move |asterisk, now| (asterisk.del(now, &family, &key), ()));
    }

    pub fn db(&self) -> AstDb {
        self.act(|asterisk, _| (Vec::new(), asterisk.db().clone()))
    }

    pub fn counts(&self) -> Counts {
        self.act(|asterisk, _| (Vec::new(), asterisk.counts()))
    }

    pub fn queued(&self) -> usize {
        self.act(|asterisk, _| (Vec::new(), asterisk.queued()))
    }

    pub fn is_dead(&self) -> bool {
        self.act(|asterisk, _| (Vec::new(), asterisk.is_dead()))
    }

    /// Ends the process as a kill does: its queue is gone, its database stays.
    pub fn kill(self) -> AstDb {
        drop(self.commands);
        self.thread.join().expect("it did not panic")
    }
}

struct Process {
    asterisk: Asterisk,
    wire: Wire,
    started: Instant,
    /// On the wire in each direction: when it arrives.
    out: VecDeque<(Instant, SocketAddr, Vec<u8>)>,
    heard: VecDeque<(Instant, SocketAddr, Vec<u8>)>,
}

impl Process {
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 * u64::from(self.wire.speed)
    }

    fn due(&self) -> Instant {
        let timer = self.asterisk.next_timer().map(|ms| self.started + Duration::from_millis(ms) / self.wire.speed);
        let queues = [self.out.front(), self.heard.front()].into_iter().flatten().map(|(at, ..)| *at);
        let far = Instant::now() + Duration::from_secs(1);
        queues.chain(timer).min().unwrap_or(far).min(far)
    }

    fn post(&mut self, packets: Vec<Packet>, answer_to: SocketAddr) {
        let at = Instant::now() + self.wire.one_way;
        for packet in packets {
            let to = if packet.answer { answer_to } else { self.wire.to };
            self.out.push_back((at, to, packet.bytes));
        }
    }

    async fn run(mut self, socket: UdpSocket, mut inbox: mpsc::UnboundedReceiver<Command>) -> AstDb {
        let socket = tokio::net::UdpSocket::from_std(socket).expect("a socket");
        let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
        loop {
            tokio::select! {
                biased;
                command = inbox.recv() => match command {
                    Some(command) => {
                        let now = self.now();
                        let packets = command(&mut self.asterisk, now);
                        self.post(packets, self.wire.to);
                    }
                    None => return self.asterisk.into_db(),
                },
                heard = socket.recv_from(&mut buffer) => if let Ok((length, from)) = heard {
                    self.heard.push_back((Instant::now() + self.wire.one_way, from, buffer[..length].to_vec()));
                },
                () = tokio::time::sleep_until(self.due()) => {}
            }
            self.deliver(&socket).await;
        }
    }

    async fn deliver(&mut self, socket: &tokio::net::UdpSocket) {
        while self.heard.front().is_some_and(|(at, ..)| *at <= Instant::now()) {
            let (_, from, bytes) = self.heard.pop_front().expect("it is there");
            let packets = self.asterisk.receive(self.now(), &from.to_string(), &bytes);
            self.post(packets, from);
        }
        if self.asterisk.next_timer().is_some_and(|at| at <= self.now()) {
            let packets = self.asterisk.timer(self.now());
            self.post(packets, self.wire.to);
        }
        while self.out.front().is_some_and(|(at, ..)| *at <= Instant::now()) {
            let (_, to, bytes) = self.out.pop_front().expect("it is there");
            // A node that is down refuses it; the Asterisk repeats it.
            let _ = socket.send_to(&bytes, to).await;
        }
    }
}
