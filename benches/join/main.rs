//! What it costs a fresh node to join a cluster with a million keys, beside copying the same records over the same
//! kind of connection.
//!
//! `cargo bench --bench join` runs it; `-- keys=100000 rounds=5` changes it. Both are in this process: the nodes, and
//! the two ends of a copy ([`copy`]). Rounds alternate, so that the machine's moods hit all alike; what counts is the
//! median of the ratios. Processor time is that of the whole process, both ends together.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod copy;
#[path = "../node/table.rs"]
mod table;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use kinfolk::cluster::tls;
use kinfolk::config::{self, Config};
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::path::{Family, Path, Value};
use kinfolk::core::replica::Input;
use kinfolk::node::{Node, unix_ms};

use copy::Sink;
use table::{median, whole};

const FAMILY: &str = "foo";
const VALUE_BYTES: usize = 32;

/// What one way of getting everything cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub took: Duration,
    pub cpu: Duration,
    /// Of UDP payload, both directions.
    pub bytes: u64,
}

pub fn foo() -> Family {
    Family::new(FAMILY).expect("a family")
}

/// Fifteen bytes of path, written in no order of theirs: the multiplier shares no factor with a power of ten.
fn path(n: usize, keys: usize) -> Path {
    Path::new(&format!("/{FAMILY}/{:010}", (n * 7_654_321) % keys.max(1))).expect("a path")
}

fn value(n: usize) -> Value {
    Value::new(&format!("{:>VALUE_BYTES$}", format!("sip:{n}@192.0.2.17:5060"))).expect("a value")
}

/// Processor time of this process, all threads, ended ones too; in the kernel's ticks of 10 ms (proc(5)).
pub fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux says it");
    let (_, behind_the_name) = stat.rsplit_once(')').expect("a name in brackets");
    let fields = behind_the_name.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

pub fn config(dir: &FilePath, n: u8, seed: Option<SocketAddr>) -> Config {
    let eid = Eid::new([2, 0, 0, 0, 0, n]);
    let issued = tls::issue(dir, Some(eid), tls::NODE_VALID_DAYS, unix_ms() / 1_000).expect("issues");
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let seeds = seed.iter().map(|seed| seed.to_string().parse().expect("host and port")).collect();
    Config {
        data_dir: dir.join(format!("node{n}")),
        cluster: config::Cluster { listen: anywhere, seeds, ..config::Cluster::default() },
        tls: config::Tls {
            ca: dir.join(tls::CA_CERT_FILE),
            cert: issued.cert,
            key: issued.key,
            ..config::Tls::default()
        },
        http: config::Http { listen: anywhere, token_file: None },
        shared: BTreeMap::from([(foo(), Mode::Global)]),
        ..Config::default()
    }
}

/// A node that has everything.
async fn full(dir: &FilePath, keys: usize) -> Node {
    let node = Node::start(config(dir, 1, None)).await.expect("starts");
    for start in (0..keys).step_by(1_000) {
        let puts = (start..keys.min(start + 1_000)).map(|n| {
            let database = node.database().clone();
            let put = Input::Put { path: path(n, keys), value: value(n) };
            tokio::spawn(async move { database.submit(put).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.expect("no panic").expect("written");
        }
    }
    node
}

/// From the start of a node with an empty disk until it has durably what the other has.
async fn join(dir: &FilePath, other: &Node, n: u8) -> Cost {
    let wanted = other.database().published().ledger.summaries[&foo()];
    let config = config(dir, n, Some(other.cluster_address()));
    let data = config.data_dir.clone();
    let (began, cpu_before) = (Instant::now(), cpu());
    let node = Node::start(config).await.expect("starts");
    let mut published = node.database().watch();
    let equal = published.wait_for(|published| published.ledger.summaries.get(&foo()) == Some(&wanted)).await;
    drop(equal.expect("the node runs"));
    let (took, cpu) = (began.elapsed(), cpu() - cpu_before);
    let traffic = node.traffic();
    node.stop().await;
    std::fs::remove_dir_all(data).expect("removed");
    Cost { took, cpu, bytes: traffic.sent_bytes + traffic.received_bytes }
}

fn argument(name: &str, default: usize) -> usize {
    let given = std::env::args().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
    given.unwrap_or(default)
}

async fn run(keys: usize, rounds: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    tls::init_ca(dir.path(), "kinfolk", unix_ms() / 1_000).expect("makes a CA");
    let node = full(dir.path(), keys).await;
    let ends = copy::identities(dir.path());
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for round in 0..rounds {
        costs[0].push(join(dir.path(), &node, 2 + round as u8).await);
        costs[1].push(copy::run(dir.path(), ends.clone(), node.database(), Sink::SameTables).await);
        costs[2].push(copy::run(dir.path(), ends.clone(), node.database(), Sink::OneTable).await);
        eprintln!("round {round}: {:?}", costs.each_ref().map(|costs| costs[round]));
    }
    let ratio = |at: usize, of: fn(&Cost) -> f64| {
        let pairs = costs[0].iter().zip(&costs[at]);
        median(&pairs.map(|(join, copy)| of(join) / of(copy)).collect::<Vec<_>>())
    };
    let (seconds, cpu_s) = (|cost: &Cost| cost.took.as_secs_f64(), |cost: &Cost| cost.cpu.as_secs_f64());
    let bytes = |cost: &Cost| cost.bytes as f64;
    let names = ["a fresh node joins", "a copy into the same tables", "a copy into one table"];
    let rows = names.iter().enumerate().map(|(at, name)| {
        let of = |figure: fn(&Cost) -> f64| median(&costs[at].iter().map(figure).collect::<Vec<_>>());
        let times =
            |figure: fn(&Cost) -> f64| if at == 0 { String::new() } else { format!("{:.2}", ratio(at, figure)) };
        vec![
            name.to_string(),
            format!("{:.2}", of(seconds)),
            times(seconds),
            format!("{:.2}", of(cpu_s)),
            times(cpu_s),
            whole(of(bytes)),
            times(bytes),
        ]
    });
    table::print(
        &format!("{} keys, medians of {rounds} rounds", whole(keys as f64)),
        &["", "s", "join / this", "processor s, both ends", "join / this", "bytes", "join / this"],
        &rows.collect::<Vec<_>>(),
    );
    node.stop().await;
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(argument("keys", 1_000_000), argument("rounds", 5)));
}
