//! What attached Asterisks cost and get: the adapter in process on real sockets and a real store, the model of a
//! patched Asterisk as the other end, and beside it two of these models without anything between them.
//!
//! `cargo bench --bench asterisk`. A pair of real patched Asterisks reached 1,500 to 1,900 updates a second, and
//! 23 with 20 ms one way: one update a message, one message in flight.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[path = "../../tests/common/patched.rs"]
mod patched;
#[path = "../node/table.rs"]
mod table;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kinfolk::asterisk::driver::{self, Bound, DriverConfig};
use kinfolk::asterisk::settings::AttachmentSettings;
use kinfolk::config::Config;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::path::{Family, Path, Value};
use kinfolk::core::replica::{Input, Outcome, Replica, Settings};
use kinfolk::core::storage::Run;
use kinfolk::store::redb::{Options, RedbReads, RedbStore};
use kinfolk::store::writer::{self, Database, Writer, WriterLimits};
use simulations::asterisk::Settings as AsteriskSettings;
use simulations::asterisk::astdb::AstDb;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use patched::{Host, Patched, Wire};
use table::{median, whole};

const ROUNDS: usize = 5;
const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);
/// Longer than pushes wait for the content of an Asterisk that has just come.
const SETTLED: Duration = Duration::from_secs(6);
/// A round that is not done by then has hung.
const ROUND_MAX: Duration = Duration::from_secs(120);

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("before the year 584 million")
}

/// A node's database on disk with its adapter, and the Asterisks attached to it.
struct World {
    database: Database<RedbReads>,
    asterisks: Vec<Patched>,
    _hosts: Vec<Host>,
    cancel: CancellationToken,
    _writer: Writer,
    _dir: tempfile::TempDir,
}

fn eid_of(n: usize) -> String {
    format!("02:00:00:00:01:{n:02x}")
}

fn asterisk_settings(n: usize, own: SocketAddr, peer: SocketAddr, round: u64) -> AsteriskSettings {
    let name = format!("ast{n}");
    let settings = AsteriskSettings::new(&name, &eid_of(n), &own.to_string(), &peer.to_string(), &name);
    let seed = unix_ms() ^ (round << 32) ^ n as u64;
    AsteriskSettings { resource: "kinfolk".into(), seed, ..settings }.sharing("foo", Mode::Global)
}

impl World {
    async fn start(count: usize, one_way: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = RedbStore::open(dir.path(), &Options::new(EID)).expect("opens");
        let replica = Replica::open(store, Settings::new(EID), Run(1), unix_ms()).expect("opens");
        let (database, writer) = writer::start(replica, WriterLimits::default(), unix_ms, |_| ()).expect("starts");
        let share = Input::Share { family: Family::new("foo").expect("a family"), mode: Mode::Global };
        assert_eq!(database.submit(share).await, Ok(Outcome::Shared));
        let hosts: Vec<_> = (0..count).map(|_| Host::new()).collect();
        let bound = Bound::bind(&["udp:127.0.0.1:0".parse().expect("an address")]).await.expect("bound");
        let sip = bound.listening()[0].address;
        let config = DriverConfig {
            attachments: attachments(&hosts, &bound),
            seed: [7; 32],
            now_unix_ms: unix_ms(),
            ready: Arc::new(AtomicBool::new(true)),
            security_log: None,
            unix_ms,
        };
        let cancel = CancellationToken::new();
        driver::start(config, bound, database.clone(), &TaskTracker::new(), &cancel);
        let wire = Wire { to: sip, one_way, speed: 1 };
        let asterisks = hosts.iter().enumerate();
        let asterisks = asterisks
            .map(|(n, host)| host.start(asterisk_settings(n, host.address(), sip, 0), AstDb::default(), wire))
            .collect();
        Self { database, asterisks, _hosts: hosts, cancel, _writer: writer, _dir: dir }
    }

    /// Until what was asked at the start has been answered.
    async fn settle(&self) {
        tokio::time::sleep(SETTLED).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn attachments(hosts: &[Host], bound: &Bound) -> Vec<AttachmentSettings> {
    let mut text = String::from("[cluster]\nadvertise = \"127.0.0.1:1\"\n[sip]\nlisten = [\"udp:127.0.0.1:5060\"]\n");
    for (n, host) in hosts.iter().enumerate() {
        let uri = format!("sip:kinfolk@{}", host.address());
        text += &format!(
            "[[asterisk]]\nname = \"ast{n}\"\neid = \"{}\"\nuri = \"{uri}\"\nupdates_per_s_max = 1000000\n",
            eid_of(n)
        );
    }
    Config::parse("bench", &text).expect("a configuration").attachments(&bound.listening())
}

/// Looks every millisecond until it is so; gives the seconds since `began`.
fn until(began: Instant, mut done: impl FnMut() -> bool) -> f64 {
    while !done() {
        assert!(began.elapsed() < ROUND_MAX, "it hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed().as_secs_f64()
}

/// Queues puts in the Asterisk, all at once.
fn put_many(asterisk: &Patched, round: usize, count: usize, of: usize) {
    asterisk.act(move |asterisk, now| {
        let puts =
            (0..count).flat_map(|n| asterisk.put(now, "foo", &format!("{of}/{n:06}"), &format!("value {round}")));
        (puts.collect(), ())
    });
}

/// PUBLISHes that were answered 200, each with one durable update in it, a second.
async fn accepted(asterisks: usize, puts_each: usize) -> f64 {
    let world = World::start(asterisks, Duration::ZERO).await;
    world.settle().await;
    let rates: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            let began = Instant::now();
            world.asterisks.iter().enumerate().for_each(|(of, asterisk)| put_many(asterisk, round, puts_each, of));
            let seconds = until(began, || world.asterisks.iter().all(|asterisk| asterisk.queued() == 0));
            assert!(world.asterisks.iter().all(|asterisk| asterisk.counts().dropped == 0));
            (asterisks * puts_each) as f64 / seconds
        })
        .collect();
    median(&rates)
}

/// Updates that were written at the node and stand in the Asterisk's database, a second.
async fn delivered(one_way: Duration, count: usize) -> f64 {
    let world = World::start(1, one_way).await;
    world.settle().await;
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        let began = Instant::now();
        let value = format!("value {round}");
        let puts = (0..count).map(|n| {
            let (database, value) = (world.database.clone(), Value::new(&value).expect("a value"));
            let path = Path::new(&format!("/foo/{n:06}")).expect("a path");
            tokio::spawn(async move { database.submit(Input::Put { path, value }).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.expect("no panic").expect("written");
        }
        let all = || world.asterisks[0].db().tree("foo").filter(|(_, found)| **found == *value).count() == count;
        rates.push(count as f64 / until(began, all));
    }
    median(&rates)
}

/// The same between two patched Asterisks and nothing else.
fn patch_alone(one_way: Duration, count: usize) -> f64 {
    let hosts = [Host::new(), Host::new()];
    let [a, b] = [0, 1].map(|n| {
        let (own, peer) = (hosts[n].address(), hosts[1 - n].address());
        let settings = asterisk_settings(n, own, peer, 1);
        let server_uri = format!("sip:kinfolk@{peer}");
        // The wire is in front of both, so each has half of it.
        let wire = Wire { to: peer, one_way: one_way / 2, speed: 1 };
        hosts[n].start(AsteriskSettings { server_uri, ..settings }, AstDb::default(), wire)
    });
    let mut rates = Vec::new();
    for round in 0..ROUNDS.min(3) {
        let began = Instant::now();
        put_many(&a, round, count, 0);
        let value = format!("value {round}");
        let all = || b.db().tree("foo").filter(|(_, found)| **found == *value).count() == count;
        rates.push(count as f64 / until(began, all));
    }
    median(&rates)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut rows = Vec::new();
    for (asterisks, puts_each) in [(1, 1_000), (10, 200)] {
        let rate = runtime.block_on(accepted(asterisks, puts_each));
        rows.push(vec![whole(asterisks as f64), whole(rate)]);
    }
    table::print("PUBLISHes accepted durably, one update each", &["Asterisks", "a second"], &rows);
    let mut rows = Vec::new();
    for (ms, count, alone_count) in [(0, 5_000, 1_000), (20, 2_000, 40)] {
        let one_way = Duration::from_millis(ms);
        let ours = runtime.block_on(delivered(one_way, count));
        let alone = patch_alone(one_way, alone_count);
        rows.push(vec![whole(ms as f64), whole(ours), whole(alone), format!("{:.1}", ours / alone)]);
    }
    let head = ["one way, ms", "kinfolk, updates/s", "the patch alone, updates/s", "ratio"];
    table::print("Updates delivered to an Asterisk", &head, &rows);
}
