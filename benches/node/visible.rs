//! Three whole nodes on loopback in one process: how long after a put is acknowledged by the first node it
//! can be read, durably, on the third. Put after put: the next begins when the last is seen.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path as FilePath;
use std::time::Instant;

use kinfolk::cluster::tls;
use kinfolk::config::{self, Config};
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::record::Classes;
use kinfolk::core::replica::{Input, Outcome};
use kinfolk::node::Node;
use kinfolk::store::redb::CACHE_DEFAULT_BYTES;

use crate::raw::{Raw, Row};
use crate::table::{self, percentile, whole};
use crate::{foo, path, unix_ms, value};

const SAMPLES: usize = 1_500;
/// Puts before the first that counts.
const WARM_UP: usize = 100;

pub async fn run() {
    let dir = tempfile::tempdir().expect("a directory");
    tls::init_ca(dir.path(), "kinfolk", unix_ms() / 1_000).expect("makes a CA");
    let mut nodes: Vec<Node> = Vec::new();
    for n in 1..=3 {
        let seed = nodes.first().map(|first| first.cluster_address());
        nodes.push(Node::start(config(dir.path(), n, seed)).await.expect("starts"));
    }
    for node in &nodes {
        let mut follows = node.streams().watch_follows();
        let everything = |follows: &kinfolk::cluster::streams::Follows| {
            follows.iter().filter(|((_, family), progress)| *family == foo() && progress.caught_up).count() == 2
        };
        follows.wait_for(everything).await.expect("the node runs");
    }
    let raw = Raw::create(CACHE_DEFAULT_BYTES);
    let (mut visible_ms, mut put_ms, mut raw_ms) = (vec![], vec![], vec![]);
    for n in 0..WARM_UP + SAMPLES {
        let (put, visible) = sample(&nodes[0], &nodes[2], n).await;
        let row = Row { key: path(n).as_str().as_bytes().to_vec(), value: vec![0; 80] };
        let alone = tokio::task::block_in_place(|| raw.replay(&[row], &[1])).as_secs_f64() * 1e3;
        if n >= WARM_UP {
            put_ms.push(put);
            visible_ms.push(visible);
            raw_ms.push(alone);
        }
    }
    for node in nodes {
        node.stop().await;
    }
    let row = |name: &str, figures: &[f64]| {
        let ratio = percentile(figures, 50.0) / percentile(&raw_ms, 50.0);
        let ms = |percent| format!("{:.2}", percentile(figures, percent));
        vec![name.to_string(), ms(50.0), ms(99.0), format!("{ratio:.1}")]
    };
    let title = format!("From one node to the third, {} puts", whole(SAMPLES as f64));
    let rows = [
        row("one record committed by raw redb", &raw_ms),
        row("put, until it is acknowledged", &put_ms),
        row("acknowledged, until it is visible on the third node", &visible_ms),
    ];
    table::print(&title, &["", "p50, ms", "p99, ms", "p50 beside raw redb"], &rows);
}

/// Milliseconds to the acknowledgement, and from there until the third node shows the value.
async fn sample(first: &Node, third: &Node, n: usize) -> (f64, f64) {
    let mut wakes = third.database().wakes(&foo(), Classes::ALL);
    let started = Instant::now();
    match first.database().submit(Input::Put { path: path(n), value: value(n, 0) }).await.expect("written") {
        Outcome::Written { .. } => {}
        other => panic!("not written but {other:?}"),
    }
    let acknowledged = Instant::now();
    loop {
        wakes.borrow_and_update();
        if third.database().view().and_then(|view| view.get(&path(n))).expect("reads").is_some() {
            break;
        }
        wakes.changed().await.expect("the node runs");
    }
    let visible = acknowledged.elapsed();
    ((acknowledged - started).as_secs_f64() * 1e3, visible.as_secs_f64() * 1e3)
}

fn config(dir: &FilePath, n: u8, seed: Option<SocketAddr>) -> Config {
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
