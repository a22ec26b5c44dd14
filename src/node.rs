//! A running node: opens everything, wires the rooms together, and takes them down in order.
//!
//! The only place that reads the wall clock, draws the run's random id and owns the tasks: every task is
//! spawned on one tracker and ends when one token is cancelled.

mod alarms;
mod reload;
mod report;
pub mod restore;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::alarms::Alarms;
use self::reload::Reloader;
use self::report::Reporter;
use crate::asterisk::driver::{self, Bound, DriverConfig, Shown};
use crate::cluster::streams::{self, Streams, StreamsConfig, WanConfig};
use crate::cluster::tls::{Identity, IdentityFiles, TlsError};
use crate::cluster::{Gossip, GossipConfig, GossipError, Mesh, MeshConfig, MeshError, Rings, Traffic};
use crate::config::sip::own_eid;
use crate::config::{self, Config, Verify};
use crate::core::clock::UnixMs;
use crate::core::eid::Eid;
use crate::core::family::{Mode, ShareError};
use crate::core::path::Family;
use crate::core::replica::{CELLS_FROM_DEFAULT, Input, Outcome, Refusal, Replica, Settings};
use crate::core::sketch::SketchKey;
use crate::core::storage::{Reads, Run, StoreError};
use crate::core::verify::VerifyConfig;
use crate::http::{self, Api};
use crate::metrics::Metrics;
use crate::store::redb::{Options, RedbReads, RedbStore};
use crate::store::writer::{self, BatchReport, Database, SubmitError, WriterLimits};

/// How long tasks may take to end when the node stops.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Without a reachable peer a node is ready after this long: it may be the first.
const LONELY_READY: Duration = Duration::from_secs(5);
/// How often the feed's head and the shared families are handed to the gossip, at most.
const ANNOUNCE_GAP: Duration = Duration::from_millis(200);
/// How often certificates are looked at, those of connected peers too.
const CERTIFICATE_CHECK_GAP: Duration = Duration::from_secs(3_600);
/// How often a certificate that expires soon is warned of.
const EXPIRY_WARNING_GAP: Duration = Duration::from_secs(24 * 3_600);
/// A certificate is warned of when it expires within this long.
const EXPIRY_WARNING_S: i64 = 30 * 86_400;

/// Why a node did not start, or did not stop as it should.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("the configuration says eid = \"{configured}\", the certificate says {certificate}: change one of them")]
    OtherEid { configured: Eid, certificate: Eid },
    #[error("{dir}: {error}", dir = dir.display())]
    Store { dir: PathBuf, error: StoreError },
    #[error("{0}")]
    Submit(#[from] SubmitError),
    #[error(
        "[shared] {family} = \"{wanted}\": the store says {stored}; a mode cannot be changed, unshare the family first"
    )]
    ModeConflict { family: Family, wanted: Mode, stored: Mode },
    #[error("[shared] {family}: {refusal}")]
    Share { family: Family, refusal: Refusal },
    #[error("{0}")]
    Mesh(#[from] MeshError),
    #[error("{0}")]
    Gossip(#[from] GossipError),
    #[error("the token file {file} {what}")]
    Token { file: PathBuf, what: String },
    #[error("cannot listen for HTTP on {listen}: {error}; is another node running here?")]
    Listen { listen: std::net::SocketAddr, error: std::io::Error },
    #[error("cannot listen for SIP on {listen}: {error}; does the Asterisk of this server have that port?")]
    ListenSip { listen: String, error: std::io::Error },
    #[error("[[asterisk]] '{name}': {what}")]
    AsteriskEid { name: String, what: String },
    #[error(
        "the writer has ended: an invariant is broken (the panic before this says which). The node stops, since it could \
         not take a write any more; what it acknowledged is durable"
    )]
    WriterEnded,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// The wall clock, in milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn unix_ms() -> UnixMs {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Runs a node until it is told to stop (SIGTERM or SIGINT). On SIGHUP it reads `file` anew.
pub fn run(config: Config, file: &Path) -> Result<(), NodeError> {
    let logs = reload::init_logs(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // From here on a SIGHUP is no end, also while the store is still being opened.
        let hang_up = signal(SignalKind::hangup())?;
        let node = Node::start(config).await?;
        node.spawn(node.reloader.clone().on_hang_up(hang_up, file.to_path_buf(), logs));
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let told = async {
            tokio::select! {
                biased;
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
        };
        let ended = until_told(&node.database, told).await;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        match ended {
            Ok(()) => node.stop().await,
            Err(_) => node.cancel.cancel(),
        }
        ended
    });
    // A read that waits for a slow client must not keep the process from ending.
    runtime.shutdown_timeout(STOP_MAX);
    result
}

/// Waits until the node is told to stop, or can take no write any more.
async fn until_told<R: Reads>(database: &Database<R>, told: impl Future<Output = ()>) -> Result<(), NodeError> {
    tokio::select! {
        biased;
        () = database.writer_ended() => Err(NodeError::WriterEnded),
        () = told => Ok(()),
    }
}

/// A node that runs.
pub struct Node {
    database: Database<RedbReads>,
    writer: writer::Writer,
    tracker: TaskTracker,
    cancel: CancellationToken,
    cluster: std::net::SocketAddr,
    streams: Streams,
    reloader: Reloader,
    mesh: Mesh,
}

impl Node {
    /// Opens the store, then the cluster endpoint, then HTTP. It returns when all of them work.
    pub async fn start(config: Config) -> Result<Self, NodeError> {
        let now_s = unix_ms() / 1_000;
        let identity = Identity::load_files(&identity_files(&config), now_s)?;
        let eid = identity.eid();
        if let Some(configured) = config.eid.filter(|configured| *configured != eid) {
            return Err(NodeError::OtherEid { configured, certificate: eid });
        }
        let token = read_token(&config)?;
        let replica = open_replica(&config, eid)?;
        let run = replica.run();
        let metrics = Arc::new(Metrics::new(&eid.to_string(), &config.site, env!("CARGO_PKG_VERSION")));
        let alarms = Alarms::default();
        let limits = WriterLimits { queue_max: config.limits.writer_queue_max, batch_max: config.limits.batch_max };
        let on_batch = observer(metrics.clone(), alarms.clone());
        let (database, writer) = writer::start(replica, limits, unix_ms, on_batch)?;

        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let mesh = Mesh::start(mesh_config(&config), identity, run, tracker.clone(), cancel.clone()).await?;
        let gossip_config = GossipConfig {
            interval_ms: config.gossip.interval_ms,
            wide_interval_ms: config.gossip.wide_interval_ms,
            ring_nodes_max: config.gossip.ring_nodes_max,
            dead_node_grace_ms: config.gossip.dead_node_grace_s * 1_000,
            ..GossipConfig::new(unix_ms())
        };
        let gossip = Gossip::start(gossip_config, mesh.clone(), &tracker, cancel.clone())?;
        let streams = streams::start(
            StreamsConfig {
                unreachable_patience_ms: unreachable_patience_ms(&config),
                verify: verify_config(&config),
                wan: WanConfig { batch_ms: config.wan.batch_ms, bytes_per_s: config.wan.bytes_per_s },
                ..StreamsConfig::default()
            },
            mesh.clone(),
            database.clone(),
            gossip.members(),
            tracker.clone(),
            cancel.clone(),
        );
        database.submit(Input::Admit).await?;

        let ready = Arc::new(AtomicBool::new(false));
        let spawn = |task: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let cancel = cancel.clone();
            tracker.spawn(async move { cancel.run_until_cancelled(task).await });
        };
        spawn(Box::pin(become_ready(ready.clone(), mesh.clone(), streams.clone())));
        spawn(Box::pin(announce(database.clone(), gossip.clone())));
        spawn(Box::pin(watch_certificates(mesh.clone())));
        let reloader = Reloader::new(&config, mesh.clone());
        spawn(Box::pin(announce_needs(streams.clone(), gossip.clone())));

        let adapter = start_adapter(&config, &database, &ready, &tracker, &cancel).await?;
        let (cluster, stop) = (mesh.local_address()?, cancel.clone());
        let reporter = Reporter {
            database: database.clone(),
            mesh: mesh.clone(),
            gossip,
            streams: streams.clone(),
            alarms,
            ready,
            since_unix_ms: unix_ms(),
            reloader: reloader.clone(),
            policy: config.tombstones.policy(),
            adapter,
        };
        let api = Api {
            database: database.clone(),
            metrics,
            status: Arc::new(move || reporter.report()),
            token,
            import_max_bytes: config.limits.http_body_max_bytes,
            watchers: http::Watchers::new(cancel.clone()),
        };
        let listen = config.http.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| NodeError::Listen { listen, error })?;
        let http = listener.local_addr()?;
        tracker.spawn(async move {
            let listener = http::LimitedListener::new(listener, http::ConnectionLimits::default());
            let server = axum::serve(listener, http::router(api)).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = server.await {
                tracing::error!(%error, "HTTP ended");
            }
        });
        tracing::info!(%eid, %run, site = config.site, %cluster, %http, data_dir = %config.data_dir.display(), "node is up");
        Ok(Self { database, writer, tracker, cancel, cluster, streams, reloader, mesh })
    }

    /// Runs a task until it ends or the node stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move { cancel.run_until_cancelled(task).await });
    }

    pub fn database(&self) -> &Database<RedbReads> {
        &self.database
    }

    /// Where the cluster endpoint listens.
    pub fn cluster_address(&self) -> std::net::SocketAddr {
        self.cluster
    }

    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Bytes to and from all peers since the start.
    pub fn traffic(&self) -> Traffic {
        self.mesh.traffic()
    }

    /// Ends all tasks, then the writer, which closes the store.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        if tokio::time::timeout(STOP_MAX, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "tasks did not end in time; what is acknowledged is durable");
            return;
        }
        drop(self.database);
        drop(self.streams);
        drop(self.reloader);
        let joined = tokio::task::spawn_blocking(move || self.writer.join());
        match tokio::time::timeout(STOP_MAX, joined).await {
            Ok(Ok(())) => tracing::info!("stopped"),
            Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
            Err(_) => tracing::warn!("the writer did not end in time; what is acknowledged is durable"),
        }
    }
}

/// Binds the SIP sockets and starts the adapter, if an Asterisk is attached.
async fn start_adapter(
    config: &Config,
    database: &Database<RedbReads>,
    ready: &Arc<AtomicBool>,
    tracker: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<Option<Shown>, NodeError> {
    if config.asterisk.is_empty() {
        return Ok(None);
    }
    if let Some(attached) = config.asterisk.iter().find(|attached| attached.eid == database.eid()) {
        return Err(NodeError::AsteriskEid { name: attached.name.clone(), what: own_eid(attached.eid) });
    }
    let bound = Bound::bind(&config.sip.listen).await;
    let bound = bound.map_err(|(listen, error)| NodeError::ListenSip { listen: listen.into(), error })?;
    let attachments = config.attachments(&bound.listening());
    #[expect(clippy::disallowed_methods, reason = "the one draw of what the run's SIP identifiers come from")]
    let seed = rand::random();
    let driver = DriverConfig {
        attachments,
        seed,
        now_unix_ms: unix_ms(),
        ready: ready.clone(),
        security_log: config.sip.security_log.clone(),
        unix_ms,
    };
    let shown = driver::start(driver, bound, database.clone(), tracker, cancel);
    for listen in &shown.listening {
        tracing::info!(listen = String::from(*listen), asterisks = config.asterisk.len(), "SIP is up");
    }
    Ok(Some(shown))
}

fn read_token(config: &Config) -> Result<Option<String>, NodeError> {
    let Some(file) = &config.http.token_file else { return Ok(None) };
    let fault = |what: String| NodeError::Token { file: file.clone(), what };
    let text = std::fs::read_to_string(file).map_err(|error| fault(format!("cannot be read: {error}")))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(fault("is empty: put a long random text into it".to_string()));
    }
    Ok(Some(token.to_string()))
}

/// Opens the store and sets the marks of the configuration, before anyone can connect.
fn open_replica(config: &Config, eid: Eid) -> Result<Replica<RedbStore>, NodeError> {
    let fault = |error| NodeError::Store { dir: config.data_dir.clone(), error };
    let options = Options { cache_bytes: config.limits.store_cache_bytes, ..Options::new(eid) };
    let store = RedbStore::open(&config.data_dir, &options).map_err(fault)?;
    let settings = Settings {
        eid,
        limits: config.limits.of_input(),
        max_clock_drift_ms: config.clock.max_clock_drift_ms,
        never_globally: config.never_shared.clone(),
        policy: config.tombstones.policy(),
        sketch_key: SketchKey::of_cluster(&config.cluster.name),
        cells_from: CELLS_FROM_DEFAULT,
    };
    #[expect(clippy::disallowed_methods, reason = "the one draw of the run's id")]
    let mut replica = Replica::open(store, settings, Run(rand::random()), unix_ms()).map_err(fault)?;
    for (family, mode) in &config.shared {
        let input = Input::Share { family: family.clone(), mode: *mode };
        let outcome = replica.handle(vec![input], unix_ms()).map_err(fault)?.outcomes.remove(0);
        match outcome {
            Outcome::Refused(Refusal::Share(ShareError::AlreadyShared(family))) => {
                let stored = replica.ledger().families.mark(&family).expect("it is shared already").mode;
                if stored != *mode {
                    return Err(NodeError::ModeConflict { family, wanted: *mode, stored });
                }
            }
            Outcome::Refused(refusal) => return Err(NodeError::Share { family: family.clone(), refusal }),
            _ => {}
        }
    }
    Ok(replica)
}

/// Counts each batch, raises its alarms and logs its failure.
fn observer(metrics: Arc<Metrics>, alarms: Alarms) -> impl FnMut(BatchReport<'_>) + Send + 'static {
    move |report| {
        metrics.count_batch(&report);
        match report.result {
            Ok(committed) => {
                for alarm in &committed.alarms {
                    alarms.raise(alarm, unix_ms());
                }
            }
            Err(error) => {
                tracing::error!(%error, inputs = report.inputs, "a batch was not written; its writers were told")
            }
        }
    }
}

fn verify_config(config: &Config) -> VerifyConfig {
    let Verify { gap_ms, settle_ms, patience_ms, served_max } = config.verify;
    VerifyConfig { gap_ms, settle_ms, patience_ms, served_max }
}

fn identity_files(config: &Config) -> IdentityFiles {
    let crate::config::Tls { ca, cert, key, crl, .. } = config.tls.clone();
    IdentityFiles { ca, cert, key, crl }
}

fn seeds(config: &Config) -> Vec<String> {
    config.cluster.seeds.iter().map(ToString::to_string).collect()
}

fn rings(gossip: &config::Gossip) -> Rings {
    match gossip.rings {
        config::Rings::One => Rings::One,
        config::Rings::BySite => Rings::BySite,
    }
}

/// Longer than membership takes to notice a death: that of a node of another site is heard of over two speakers.
fn unreachable_patience_ms(config: &Config) -> u64 {
    match config.gossip.rings {
        config::Rings::One => 15_000,
        config::Rings::BySite => 45_000,
    }
}

fn mesh_config(config: &Config) -> MeshConfig {
    MeshConfig {
        cluster: config.cluster.name.clone(),
        site: config.site.clone(),
        rings: rings(&config.gossip),
        listen: config.cluster.listen,
        advertise: config.cluster.advertise.as_ref().map(ToString::to_string),
        seeds: seeds(config),
        trust: config.trust(),
        ..MeshConfig::default()
    }
}

/// Ready: the first catch-up from a reachable peer is done, or no peer was reachable for a while.
async fn become_ready(ready: Arc<AtomicBool>, mesh: Mesh, streams: Streams) {
    let lonely_since = Instant::now();
    let mut follows = streams.watch_follows();
    let mut peers = mesh.peers();
    loop {
        let alone = peers.borrow_and_update().is_empty();
        follows.borrow_and_update();
        if streams.caught_up_with_one() || (alone && lonely_since.elapsed() >= LONELY_READY) {
            ready.store(true, Ordering::Release);
            return;
        }
        tokio::select! {
            biased;
            changed = follows.changed() => if changed.is_err() { return },
            changed = peers.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(lonely_since + LONELY_READY), if alone => {}
        }
    }
}

/// Hands the head and the shared families to the gossip, when they change and not too often.
async fn announce(database: Database<RedbReads>, gossip: Gossip) {
    let mut published = database.watch();
    loop {
        let now = published.borrow_and_update().clone();
        let marks = now.ledger.families.marks();
        gossip.set_families(&marks.iter().map(|(family, mark)| (family.clone(), mark.mode)).collect());
        gossip.set_head(now.ledger.head);
        let roots = now.ledger.summaries.iter().map(|(family, summary)| (family.clone(), summary.root));
        gossip.set_roots(roots.collect());
        tokio::time::sleep(ANNOUNCE_GAP).await;
        if published.changed().await.is_err() {
            return;
        }
    }
}

/// Hands on what the plan of the streams needs, as it changes.
async fn announce_needs(streams: Streams, gossip: Gossip) {
    let mut needs = streams.watch_needs();
    loop {
        let now = needs.borrow_and_update().clone();
        gossip.set_unreached(now.unreached);
        gossip.set_settled(now.settled);
        gossip.set_needed(now.dial);
        if needs.changed().await.is_err() {
            return;
        }
    }
}

/// Warns of this node's certificate before it expires, and cuts peers whose certificates have.
async fn watch_certificates(mesh: Mesh) {
    let mut warned: Option<Instant> = None;
    loop {
        let quiet = warned.is_some_and(|at| at.elapsed() < EXPIRY_WARNING_GAP);
        if let Some(days) = expires_soon(mesh.identity().expires_unix_s()).filter(|_| !quiet) {
            tracing::warn!(days, "the node's certificate expires soon: make a new one with kinfolk tls issue --renew");
            warned = Some(Instant::now());
        }
        tokio::time::sleep(CERTIFICATE_CHECK_GAP).await;
        reload::log_cuts(&mesh.recheck());
    }
}

/// In how many days the certificate expires, if it is time to say so.
fn expires_soon(expires_unix_s: i64) -> Option<i64> {
    let left_s = expires_unix_s - i64::try_from(unix_ms() / 1_000).unwrap_or(i64::MAX);
    (left_s <= EXPIRY_WARNING_S).then_some(left_s / 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_node_whose_writer_panicked_stops_and_says_why() {
        let replica = Replica::open(MemoryStore::new(), Settings::new(Eid::new([2, 0, 0, 0, 0, 1])), Run(1), unix_ms());
        let on_batch = |_: BatchReport<'_>| panic!("an invariant is broken, as this test wants");
        let (database, _writer) =
            writer::start(replica.expect("opens"), WriterLimits::default(), unix_ms, on_batch).expect("starts");
        assert!(matches!(until_told(&database, async {}).await, Ok(())), "it runs until it is told");
        assert_eq!(database.submit(Input::Admit).await, Err(SubmitError::Stopping));
        let ended = until_told(&database, std::future::pending()).await;
        assert!(matches!(ended, Err(NodeError::WriterEnded)), "{ended:?}");
    }
}
