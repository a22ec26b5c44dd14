//! A fleet: nodes as child processes on this machine, with a CA, data directories and logs of their own in
//! one temporary directory.
//!
//! Invariants: every process is ended by the id it was started with, at the latest when the fleet is
//! dropped; then the directory goes too, unless it is to be kept. Nothing waits without a bound, and every
//! wait ends when the fleet is interrupted.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;

use super::api::{Api, CallError};
use super::forwarder::Forwarders;
use crate::cluster::tls::{self, CA_CERT_FILE, TlsError};
use crate::core::eid::Eid;
use crate::node::unix_ms;

/// How long a node may take to become ready, and to stop.
pub const READY_MAX: Duration = Duration::from_secs(30);
pub const STOP_MAX: Duration = Duration::from_secs(15);
/// Between two looks at what is waited for.
const LOOK_GAP: Duration = Duration::from_millis(20);
/// Below the range from which systems draw ports for outgoing sockets, so that none takes the port of a
/// node while it is down.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
const PORT_TRIES: usize = 200;
/// Another process may take a port between our look and the node's start.
const START_TRIES: usize = 5;
const CERT_DAYS: u32 = 60;
/// How much of a log is shown when something failed.
const LOG_TAIL_LINES: usize = 15;

/// What a fleet should be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program that the nodes run.
    pub binary: PathBuf,
    pub nodes: Vec<NodePlan>,
    /// Whether packets between the nodes pass forwarders, so that the network can be cut.
    pub forwarded: bool,
}

/// What one node should be.
#[derive(Clone, Debug)]
pub struct NodePlan {
    pub eid: Eid,
    /// Families and modes for `[shared]`.
    pub shared: Vec<(String, String)>,
    /// Where the data goes; none: into the fleet's directory.
    pub data_dir: Option<PathBuf>,
    /// Where its cluster endpoint listens; none: at a free port of 127.0.0.1.
    pub listen: Option<SocketAddr>,
    /// Further lines before the first section of the configuration.
    pub top: String,
    /// A program, with its arguments, that is given the node's command line to run.
    pub launcher: Vec<String>,
    /// Nodes that its configuration names; none: all others.
    pub seeds: Option<Vec<usize>>,
    /// Further lines of `[http]`.
    pub http_more: String,
    /// Further lines of `[gossip]`.
    pub gossip_more: String,
    /// Further sections of the configuration.
    pub more: String,
}

impl Plan {
    /// `count` nodes 02:00:00:00:00:0a and so on, all sharing the same families.
    pub fn new(binary: impl Into<PathBuf>, count: u8, shared: &[(&str, &str)]) -> Self {
        let shared: Vec<_> = shared.iter().map(|(family, mode)| (family.to_string(), mode.to_string())).collect();
        let node = |n| NodePlan {
            eid: Eid::new([2, 0, 0, 0, 0, 0x0a + n]),
            shared: shared.clone(),
            data_dir: None,
            listen: None,
            top: String::new(),
            launcher: Vec::new(),
            seeds: None,
            http_more: String::new(),
            gossip_more: String::new(),
            more: String::new(),
        };
        Self { binary: binary.into(), nodes: (0..count).map(node).collect(), forwarded: false }
    }

    pub fn forwarded(mut self) -> Self {
        self.forwarded = true;
        self
    }
}

/// Why a fleet did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("no free port was found on 127.0.0.1")]
    NoPort,
    #[error("node {eid} ended ({status}); its log says:\n{log}")]
    Ended { eid: Eid, status: ExitStatus, log: String },
    #[error("{what} was waited for, {waited_s} s long and in vain")]
    TimedOut { what: String, waited_s: u64 },
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Other(String),
}

fn io_fault(what: impl Into<String>) -> impl FnOnce(io::Error) -> FleetError {
    let what = what.into();
    |error| FleetError::Io { what, error }
}

/// One node of the fleet.
#[derive(Debug)]
struct Member {
    plan: NodePlan,
    dir: PathBuf,
    listen: SocketAddr,
    http: SocketAddr,
    child: Option<Child>,
}

/// The running nodes, numbered from 0.
#[derive(Debug)]
pub struct Fleet {
    binary: PathBuf,
    members: Vec<Member>,
    forwarders: Option<Forwarders>,
    interrupted: Arc<AtomicBool>,
    // Last, so that the directory goes after everything that uses it.
    dir: TempDir,
}

impl Fleet {
    /// Starts all nodes; returns when all are ready.
    pub fn start(plan: Plan) -> Result<Self, FleetError> {
        Self::start_unless(plan, Arc::default())
    }

    /// The same; it, and every later wait, ends when `interrupted` becomes true.
    pub fn start_unless(plan: Plan, interrupted: Arc<AtomicBool>) -> Result<Self, FleetError> {
        let mut fleet = Self::prepare(plan, interrupted)?;
        for node in 0..fleet.members.len() {
            fleet.spawn(node)?;
        }
        for node in 0..fleet.members.len() {
            fleet.wait_ready_or_move(node)?;
        }
        Ok(fleet)
    }

    /// Makes certificates, directories and configurations, and starts no node yet.
    pub fn prepare(plan: Plan, interrupted: Arc<AtomicBool>) -> Result<Self, FleetError> {
        let dir = tempfile::Builder::new().prefix("kinfolk-").tempdir();
        let dir = dir.map_err(io_fault("cannot make a temporary directory"))?;
        let tls_dir = dir.path().join("tls");
        tls::init_ca(&tls_dir, "fleet", unix_ms() / 1_000)?;
        let mut members = Vec::new();
        for node in plan.nodes {
            tls::issue(&tls_dir, Some(node.eid), CERT_DAYS, unix_ms() / 1_000)?;
            let node_dir = dir.path().join(node.eid.compact());
            std::fs::create_dir(&node_dir).map_err(io_fault(format!("cannot make {}", node_dir.display())))?;
            let (listen, http) = (node.listen.map_or_else(free_port, Ok)?, free_port()?);
            members.push(Member { plan: node, dir: node_dir, listen, http, child: None });
        }
        let listen = members.iter().map(|member| member.listen).collect();
        let forwarders = plan.forwarded.then(|| Forwarders::start(listen)).transpose();
        let forwarders = forwarders.map_err(io_fault("cannot start the forwarders"))?;
        let fleet = Self { binary: plan.binary, members, forwarders, interrupted, dir };
        (0..fleet.members.len()).try_for_each(|node| fleet.write_config(node))?;
        Ok(fleet)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the CA and the certificates are.
    pub fn tls_dir(&self) -> PathBuf {
        self.dir.path().join("tls")
    }

    pub fn count(&self) -> usize {
        self.members.len()
    }

    pub fn eid(&self, node: usize) -> Eid {
        self.members[node].plan.eid
    }

    /// Where the node's cluster endpoint listens.
    pub fn listen(&self, node: usize) -> SocketAddr {
        self.members[node].listen
    }

    pub fn http(&self, node: usize) -> SocketAddr {
        self.members[node].http
    }

    /// `--node` for the command line.
    pub fn url(&self, node: usize) -> String {
        format!("http://{}", self.http(node))
    }

    /// A client with a connection of its own.
    pub fn api(&self, node: usize) -> Api {
        Api::new(self.http(node))
    }

    pub fn config_file(&self, node: usize) -> PathBuf {
        self.members[node].dir.join("node.toml")
    }

    pub fn log_file(&self, node: usize) -> PathBuf {
        self.members[node].dir.join("log")
    }

    pub fn data_dir(&self, node: usize) -> PathBuf {
        let member = &self.members[node];
        member.plan.data_dir.clone().unwrap_or_else(|| member.dir.join("data"))
    }

    /// The id of the node's process, if it runs.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.members[node].child.as_ref().map(Child::id)
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// If the plan wanted no forwarders.
    pub fn network(&self) -> &Forwarders {
        self.forwarders.as_ref().expect("the plan wanted forwarders")
    }

    /// `kinfolk` with these arguments, in an environment that says nothing of nodes.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        clean(&mut command).args(args);
        command
    }

    /// Starts the node's process; does not wait for it.
    pub fn spawn(&mut self, node: usize) -> Result<(), FleetError> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file(node));
        let log = log.map_err(io_fault("cannot write a log"))?;
        let fault = || io_fault(format!("cannot run {}", self.binary.display()));
        let err = log.try_clone().map_err(fault())?;
        let mut command = match self.members[node].plan.launcher.split_first() {
            None => Command::new(&self.binary),
            Some((launcher, args)) => {
                let mut command = Command::new(launcher);
                command.args(args).arg(&self.binary);
                command
            }
        };
        clean(&mut command).args(["run", "--config"]).arg(self.config_file(node));
        // A group of its own: Ctrl-C is for the parent, which then ends its children in its own way.
        command.stdout(log).stderr(err).process_group(0);
        let child = command.spawn().map_err(fault())?;
        self.members[node].child = Some(child);
        Ok(())
    }

    /// Waits until the node says that it is ready.
    pub fn wait_ready(&mut self, node: usize) -> Result<(), FleetError> {
        let api = self.api(node);
        let deadline = Instant::now() + READY_MAX;
        loop {
            if api.get("/health/ready").is_ok_and(|reply| reply.ok()) {
                return Ok(());
            }
            if let Some(status) = self.exit_status(node)? {
                self.members[node].child = None;
                return Err(FleetError::Ended { eid: self.eid(node), status, log: self.log_tail(node) });
            }
            let what = || format!("node {} to become ready (log: {})", self.eid(node), self.log_tail(node));
            self.pause(deadline, READY_MAX, what)?;
        }
    }

    /// Starts a node that is down, with the data it has, and waits until it is ready.
    pub fn restart(&mut self, node: usize) -> Result<(), FleetError> {
        if self.members[node].child.is_some() && self.exit_status(node)?.is_none() {
            // Nobody would end the one that runs.
            return Err(FleetError::Other(format!("node {} runs already: stop it first", self.eid(node))));
        }
        self.spawn(node)?;
        self.wait_ready(node)
    }

    /// Ends the node's process as a power failure would.
    pub fn kill_9(&mut self, node: usize) -> Result<(), FleetError> {
        let Some(mut child) = self.members[node].child.take() else { return Ok(()) };
        let ended = child.kill().and_then(|()| child.wait());
        ended.map(|_| ()).map_err(io_fault(format!("cannot end node {}", self.eid(node))))
    }

    /// Asks the node to stop (SIGTERM); gives its exit status and how long it took.
    pub fn stop(&mut self, node: usize) -> Result<(ExitStatus, Duration), FleetError> {
        let pid = self.pid(node).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.ok_or_else(|| FleetError::Other(format!("node {} does not run", self.eid(node))))?;
        let began = Instant::now();
        kill_process(pid, Signal::TERM)
            .map_err(|error| io_fault(format!("cannot stop node {}", self.eid(node)))(error.into()))?;
        let status = self.wait_exit(node)?;
        Ok((status, began.elapsed()))
    }

    /// Waits until the node's process has ended.
    pub fn wait_exit(&mut self, node: usize) -> Result<ExitStatus, FleetError> {
        let deadline = Instant::now() + STOP_MAX;
        loop {
            if let Some(status) = self.exit_status(node)? {
                self.members[node].child = None;
                return Ok(status);
            }
            self.pause(deadline, STOP_MAX, || format!("the end of node {}", self.eid(node)))?;
        }
    }

    /// Changes the plan of a node; it counts from its next start.
    pub fn replan(&mut self, node: usize, change: impl FnOnce(&mut NodePlan)) -> Result<(), FleetError> {
        change(&mut self.members[node].plan);
        self.write_config(node)
    }

    /// Looks until `probe` gives something, for `max` at most.
    pub fn wait_for<T>(
        &self,
        what: &str,
        max: Duration,
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<T, FleetError> {
        let deadline = Instant::now() + max;
        loop {
            if let Some(found) = probe() {
                return Ok(found);
            }
            self.pause(deadline, max, || what.to_string())?;
        }
    }

    /// Waits until the exports of these nodes are equal to the last byte; gives the export and how long it took.
    pub fn wait_equal(&self, nodes: &[usize], max: Duration) -> Result<(String, Duration), FleetError> {
        let apis: Vec<Api> = nodes.iter().map(|node| self.api(*node)).collect();
        let began = Instant::now();
        let export = self.wait_for("equal exports", max, || {
            let first = apis[0].export().ok()?;
            apis[1..].iter().all(|api| api.export().is_ok_and(|other| other == first)).then_some(first)
        })?;
        Ok((export, began.elapsed()))
    }

    /// Nodes whose process ended though nobody here ended it: one sentence each.
    pub fn ended(&mut self) -> Vec<String> {
        let running = self.members.iter_mut().filter_map(|member| Some((member.plan.eid, member.child.as_mut()?)));
        let ended = running.filter_map(|(eid, child)| Some((eid, child.try_wait().ok()??)));
        ended.map(|(eid, status)| format!("node {eid} ended by itself ({status})")).collect()
    }

    /// Keeps the directory; gives its path.
    pub fn keep(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_path_buf()
    }

    /// The end of the node's log.
    pub fn log_tail(&self, node: usize) -> String {
        let log = self.log(node);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// The node's log.
    pub fn log(&self, node: usize) -> String {
        std::fs::read(self.log_file(node)).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// For a first start: a port that was taken meanwhile is exchanged for another.
    fn wait_ready_or_move(&mut self, node: usize) -> Result<(), FleetError> {
        for _ in 1..START_TRIES {
            match self.wait_ready(node) {
                Err(FleetError::Ended { log, .. }) if log.contains("cannot listen") => {
                    let (listen, http) = (free_port()?, free_port()?);
                    let member = &mut self.members[node];
                    (member.listen, member.http) = (listen, http);
                    if let Some(forwarders) = &self.forwarders {
                        forwarders.set_node(node, listen);
                    }
                    // A fresh log, so that the next look at it sees no old complaint.
                    File::create(self.log_file(node)).map_err(io_fault("cannot write a log"))?;
                    self.write_config(node)?;
                    self.spawn(node)?;
                }
                other => return other,
            }
        }
        self.wait_ready(node)
    }

    fn exit_status(&mut self, node: usize) -> Result<Option<ExitStatus>, FleetError> {
        let eid = self.eid(node);
        match &mut self.members[node].child {
            Some(child) => child.try_wait().map_err(io_fault(format!("cannot ask for node {eid}"))),
            None => Err(FleetError::Other(format!("node {eid} does not run"))),
        }
    }

    fn pause(&self, deadline: Instant, max: Duration, what: impl FnOnce() -> String) -> Result<(), FleetError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(FleetError::Interrupted);
        }
        if Instant::now() >= deadline {
            return Err(FleetError::TimedOut { what: what(), waited_s: max.as_secs() });
        }
        #[expect(clippy::disallowed_methods, reason = "waits for processes, with a deadline")]
        std::thread::sleep(LOOK_GAP);
        Ok(())
    }

    /// The address under which the others reach the node.
    pub fn advertised(&self, node: usize) -> SocketAddr {
        self.forwarders.as_ref().map_or(self.listen(node), |forwarders| forwarders.address(node))
    }

    fn write_config(&self, node: usize) -> Result<(), FleetError> {
        let file = self.config_file(node);
        std::fs::write(&file, self.config(node)).map_err(io_fault(format!("cannot write {}", file.display())))
    }

    fn config(&self, node: usize) -> String {
        let plan = &self.members[node].plan;
        let tls = self.tls_dir();
        let quoted = |path: PathBuf| format!("{:?}", path.display().to_string());
        let seeds: Vec<String> = (0..self.count())
            .filter(|other| *other != node && plan.seeds.as_ref().is_none_or(|seeds| seeds.contains(other)))
            .map(|other| format!("\"{}\"", self.advertised(other)))
            .collect();
        let cert = |extension| quoted(tls.join(plan.eid.compact()).with_extension(extension));
        let mut text = format!(
            "{}data_dir = {}\n\n[cluster]\nname = \"fleet\"\nlisten = \"{}\"\nadvertise = \"{}\"\nseeds = [{}]\n\n\
             [tls]\nca = {}\ncert = {}\nkey = {}\n\n[http]\nlisten = \"{}\"\n{}\n[gossip]\ninterval_ms = 200\n{}\n[shared]\n",
            plan.top,
            quoted(self.data_dir(node)),
            self.listen(node),
            self.advertised(node),
            seeds.join(", "),
            quoted(tls.join(CA_CERT_FILE)),
            cert("pem"),
            cert("key"),
            self.http(node),
            plan.http_more,
            plan.gossip_more,
        );
        for (family, mode) in &plan.shared {
            let _ = writeln!(text, "{family:?} = {mode:?}");
        }
        text + "\n" + &plan.more
    }
}

/// Takes out of the environment what names a node.
fn clean(command: &mut Command) -> &mut Command {
    command.env_remove("KINFOLK_NODE").env_remove("KINFOLK_TOKEN").stdin(Stdio::null())
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            // It may have ended by itself; either way it is waited for, so that no zombie stays.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An address on loopback that is free for both UDP and TCP just now, and that this program has not had before: who was
/// given one may not listen there yet.
#[expect(clippy::disallowed_methods, reason = "two fleets on one machine should not try the same ports")]
pub fn free_port() -> Result<SocketAddr, FleetError> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..PORT_TRIES)
        .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, rand::random_range(PORTS))))
        .filter(|address| !given.contains(&address.port()))
        .find(|address| UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok())
        .inspect(|address| _ = given.insert(address.port()))
        .ok_or(FleetError::NoPort)
}
