//! A network of the tests' own: each node in a network namespace, all of them on one bridge in another one.
//!
//! Made and removed by the test, under names that bear its process id; this machine's own network is not touched.
//! Needs root and iproute2. The HTTP of a node listens on loopback in its namespace; a thread that lives there
//! carries connections to it from the same address out here.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Networks of this process, so that tests in one process do not meet.
static NETWORKS: AtomicUsize = AtomicUsize::new(0);

/// The port of every node's cluster endpoint, each in its own namespace.
const CLUSTER_PORT: u16 = 7480;

/// Bytes and packets that left a node through its interface, and came in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    pub sent_bytes: u64,
    pub sent_packets: u64,
    pub received_bytes: u64,
    pub received_packets: u64,
}

pub struct Network {
    prefix: String,
    count: usize,
}

/// Says loudly what is not tested where namespaces cannot be made.
pub fn available() -> bool {
    let root = rustix::process::geteuid().is_root();
    let ip = Command::new("ip").arg("-V").output().is_ok_and(|ran| ran.status.success());
    let reason = match (root, ip) {
        (false, _) => "they need root",
        (_, false) => "iproute2 is not installed",
        _ => {
            let name = format!("kf{:x}try", std::process::id());
            let made = run(&["netns", "add", &name]).and_then(|()| run(&["netns", "del", &name]));
            let Err(error) = made else { return true };
            eprintln!(
                "SKIPPED: network namespaces cannot be made here ({error}): partitions of real interfaces are not tried"
            );
            return false;
        }
    };
    eprintln!("SKIPPED: network namespaces: {reason}: partitions of real interfaces are not tried");
    false
}

impl Network {
    /// Namespaces for `count` nodes.
    pub fn new(count: usize) -> Self {
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        // Names of interfaces have 15 characters at most.
        let network = Self { prefix: format!("kf{:x}{number}", std::process::id()), count };
        network.make().unwrap_or_else(|error| panic!("no network: {error}"));
        network
    }

    fn make(&self) -> io::Result<()> {
        let switch = self.switch();
        run(&["netns", "add", &switch])?;
        run(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        run(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for node in 0..self.count {
            let (space, port) = (self.space(node), self.port(node));
            run(&["netns", "add", &space])?;
            run(&["-n", &space, "link", "set", "lo", "up"])?;
            run(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "cluster", "netns", &space])?;
            run(&["-n", &switch, "link", "set", &port, "master", "bridge"])?;
            run(&["-n", &switch, "link", "set", &port, "up"])?;
            run(&["-n", &space, "addr", "add", &format!("{}/24", self.address(node).ip()), "dev", "cluster"])?;
            run(&["-n", &space, "link", "set", "cluster", "up"])?;
        }
        Ok(())
    }

    fn switch(&self) -> String {
        format!("{}sw", self.prefix)
    }

    fn port(&self, node: usize) -> String {
        format!("port{node}")
    }

    pub fn space(&self, node: usize) -> String {
        format!("{}n{node}", self.prefix)
    }

    /// Where the node's cluster endpoint listens.
    pub fn address(&self, node: usize) -> SocketAddr {
        let host = u8::try_from(node + 1).expect("few nodes");
        (Ipv4Addr::new(10, 88, 0, host), CLUSTER_PORT).into()
    }

    /// What the plan of a node must say, so that it runs in its namespace.
    pub fn launcher(&self, node: usize) -> Vec<String> {
        ["ip", "netns", "exec"].map(str::to_string).into_iter().chain([self.space(node)]).collect()
    }

    /// Pulls the node's cable out: its interface is still up, nothing comes or goes.
    pub fn cut(&self, node: usize) {
        self.set_port(node, "down");
    }

    pub fn heal(&self, node: usize) {
        self.set_port(node, "up");
    }

    fn set_port(&self, node: usize, state: &str) {
        let done = run(&["-n", &self.switch(), "link", "set", &self.port(node), state]);
        done.unwrap_or_else(|error| panic!("port {node} {state}: {error}"));
    }

    /// What has passed the node's interface.
    pub fn counted(&self, node: usize) -> Counted {
        let show = Command::new("ip").args(["-j", "-s", "-n", &self.space(node), "link", "show", "cluster"]).output();
        let show = show.expect("ip runs").stdout;
        let links: serde_json::Value = serde_json::from_slice(&show).expect("JSON");
        let of = |direction: &str, what: &str| links[0]["stats64"][direction][what].as_u64().expect("a number");
        Counted {
            sent_bytes: of("tx", "bytes"),
            sent_packets: of("tx", "packets"),
            received_bytes: of("rx", "bytes"),
            received_packets: of("rx", "packets"),
        }
    }

    /// Runs what is given on a thread inside the node's namespace; sockets that it opens stay there.
    pub fn inside<T: Send + 'static>(&self, node: usize, what: impl FnOnce() -> T + Send + 'static) -> T {
        let space = self.space(node);
        let thread = std::thread::spawn(move || {
            enter(&space);
            what()
        });
        thread.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    }

    /// From now on connections to `http` out here reach the same address inside.
    pub fn carry_http(&self, node: usize, http: SocketAddr) {
        let listener = TcpListener::bind(http).expect("an address that is free");
        let space = self.space(node);
        // It ends with the process: a test's threads do.
        std::thread::spawn(move || {
            enter(&space);
            for outside in listener.incoming().flatten() {
                if let Ok(inside) = TcpStream::connect(http) {
                    copy(outside, inside);
                }
            }
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The interfaces go with their namespaces.
        for space in (0..self.count).map(|node| self.space(node)).chain([self.switch()]) {
            if let Err(error) = run(&["netns", "del", &space]) {
                eprintln!("{space} is left over: {error}");
            }
        }
    }
}

fn enter(space: &str) {
    let file = File::open(format!("/run/netns/{space}")).expect("a namespace");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
}

/// Both directions, each on a thread, until one side ends.
fn copy(outside: TcpStream, inside: TcpStream) {
    let _ = (outside.set_nodelay(true), inside.set_nodelay(true));
    let pipe = |from: &TcpStream, to: &TcpStream| {
        let (mut from, mut to) = (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    };
    pipe(&outside, &inside);
    pipe(&inside, &outside);
}

fn run(args: &[&str]) -> io::Result<()> {
    let ran = Command::new("ip").args(args).output()?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    Err(io::Error::other(format!("ip {}: {}", args.join(" "), said.trim())))
}
