//! A network of the tests' own: each node in a network namespace, those of a site on one bridge in another one.
//!
//! Made and removed by the test, under names that bear its process id; this machine's own network is not touched.
//! Needs root and iproute2. The HTTP of a node listens on loopback in its namespace; a thread that lives there
//! carries connections to it from the same address out here.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use kinfolk::cli::demo::fleet::Plan;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the names of namespaces begin with; the process id and a number follow.
const PREFIX: &str = "kinfolk-test-";
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
    /// The site of each node.
    sites: Vec<usize>,
}

/// Says loudly what is not tested where namespaces cannot be made.
pub fn available() -> bool {
    let root = rustix::process::geteuid().is_root();
    let ip = Command::new("ip").arg("-V").output().is_ok_and(|ran| ran.status.success());
    let reason = match (root, ip) {
        (false, _) => "they need root",
        (_, false) => "iproute2 is not installed",
        _ => {
            let name = new_prefix() + "try";
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
    /// Namespaces for nodes at these sites, numbered from 0. Between sites nothing passes; see `wan`.
    pub fn new(sites: &[usize]) -> Self {
        remove_left_over();
        let network = Self { prefix: new_prefix(), sites: sites.to_vec() };
        network.make().unwrap_or_else(|error| panic!("no network: {error}"));
        network
    }

    fn make(&self) -> io::Result<()> {
        for switch in self.switches() {
            run(&["netns", "add", &switch])?;
            run(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
            run(&["-n", &switch, "link", "set", "bridge", "up"])?;
        }
        for node in 0..self.sites.len() {
            let switch = self.switch(self.site(node));
            let (space, port) = (self.space(node), self.port(node));
            run(&["netns", "add", &space])?;
            run(&["-n", &space, "link", "set", "lo", "up"])?;
            run(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "cluster", "netns", &space])?;
            run(&["-n", &switch, "link", "set", &port, "master", "bridge"])?;
            run(&["-n", &switch, "link", "set", &port, "up"])?;
            run(&["-n", &space, "addr", "add", &format!("{}/16", self.address(node).ip()), "dev", "cluster"])?;
            run(&["-n", &space, "link", "set", "cluster", "up"])?;
        }
        Ok(())
    }

    /// The namespace of a site's bridge.
    pub fn switch(&self, site: usize) -> String {
        format!("{}s{site}", self.prefix)
    }

    fn switches(&self) -> impl Iterator<Item = String> {
        (0..=self.sites.iter().copied().max().unwrap_or(0)).map(|site| self.switch(site))
    }

    pub fn count(&self) -> usize {
        self.sites.len()
    }

    pub fn site(&self, node: usize) -> usize {
        self.sites[node]
    }

    fn port(&self, node: usize) -> String {
        format!("port{node}")
    }

    pub fn space(&self, node: usize) -> String {
        format!("{}n{node}", self.prefix)
    }

    /// Where the node's cluster endpoint listens: the same address for everyone, wherever it is.
    pub fn address(&self, node: usize) -> SocketAddr {
        let byte = |number: usize| u8::try_from(number).expect("few nodes");
        (Ipv4Addr::new(10, 88, byte(self.site(node)), byte(node + 1)), CLUSTER_PORT).into()
    }

    /// Makes the plan's nodes run in their namespaces.
    pub fn house(&self, plan: &mut Plan) {
        for (node, plan) in plan.nodes.iter_mut().enumerate() {
            plan.listen = Some(self.address(node));
            plan.launcher = ["ip", "netns", "exec"].map(str::to_string).into_iter().chain([self.space(node)]).collect();
            plan.top = format!("site = \"site-{}\"\n", self.site(node));
        }
    }

    /// Pulls the node's cable out: its interface is still up, nothing comes or goes.
    pub fn cut(&self, node: usize) {
        self.set_port(node, "down");
    }

    pub fn heal(&self, node: usize) {
        self.set_port(node, "up");
    }

    fn set_port(&self, node: usize, state: &str) {
        let done = run(&["-n", &self.switch(self.site(node)), "link", "set", &self.port(node), state]);
        done.unwrap_or_else(|error| panic!("port {node} {state}: {error}"));
    }

    /// What has passed the node's interface.
    pub fn counted(&self, node: usize) -> Counted {
        counted(&self.space(node), "cluster")
    }

    /// What has left the site (received by its bridge from the nodes), and what has come from elsewhere.
    pub fn left_and_came(&self, site: usize) -> (u64, u64) {
        let Counted { sent_bytes, received_bytes, .. } = counted(&self.switch(site), "bridge");
        (received_bytes, sent_bytes)
    }

    /// Gives a site's bridge the addresses of all nodes elsewhere, and a socket for each: so packets to them come here.
    pub fn stand_in(&self, site: usize) -> Vec<(usize, UdpSocket)> {
        let switch = self.switch(site);
        let elsewhere: Vec<usize> = (0..self.count()).filter(|node| self.site(*node) != site).collect();
        for node in &elsewhere {
            let address = format!("{}/32", self.address(*node).ip());
            run(&["-n", &switch, "addr", "add", &address, "dev", "bridge"]).expect("an address");
        }
        // The bridge reaches its own site only.
        let net = format!("10.88.{site}.0/24");
        run(&["-n", &switch, "route", "add", &net, "dev", "bridge"]).expect("a route");
        let addresses: Vec<_> = elsewhere.into_iter().map(|node| (node, self.address(node))).collect();
        let bind = move || {
            enter(&switch);
            let bind = |(node, address)| (node, UdpSocket::bind(address).expect("an address of the bridge"));
            addresses.into_iter().map(bind).collect()
        };
        std::thread::spawn(bind).join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
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

fn new_prefix() -> String {
    format!("{PREFIX}{}-{}-", std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed))
}

/// Removes what a test has left that was killed, and so could not.
fn remove_left_over() {
    let list = Command::new("ip").args(["netns", "list"]).output().expect("ip runs").stdout;
    for line in String::from_utf8_lossy(&list).lines() {
        let space = line.split(' ').next().unwrap_or_default();
        let pid = space.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test may be at it as well.
            let _ = run(&["netns", "del", space]);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The interfaces go with their namespaces.
        for space in (0..self.count()).map(|node| self.space(node)).chain(self.switches()) {
            if let Err(error) = run(&["netns", "del", &space]) {
                eprintln!("{space} is left over: {error}");
            }
        }
    }
}

fn counted(space: &str, link: &str) -> Counted {
    let show = Command::new("ip").args(["-j", "-s", "-n", space, "link", "show", link]).output();
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

/// Starts a fleet in the network's namespaces.
pub fn start(network: &Network, mut plan: Plan) -> super::TestFleet {
    network.house(&mut plan);
    let mut fleet = super::prepare(plan);
    for node in 0..network.count() {
        network.carry_http(node, fleet.http(node));
        fleet.spawn(node).expect("started");
    }
    for node in 0..network.count() {
        fleet.wait_ready(node).expect("ready");
    }
    fleet
}
