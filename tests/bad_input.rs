//! Bad input of every kind gives a clear error, is counted by its reason, and loses nothing.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use kinfolk::cli::demo::acks::{Acks, read_export};
use kinfolk::cli::demo::api::{CallError, Reply};
use kinfolk::cluster::tls::{self, CA_CERT_FILE};
use kinfolk::core::clock::Hlc;
use kinfolk::core::codec::{FRAME_MAX_BYTES, MAGIC, PROTOCOL_VERSION, encode_frame};
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::message::{Follow, Gossip};
use kinfolk::core::path::Family;
use kinfolk::core::record::Classes;
use kinfolk::node::unix_ms;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use common::peer::{Peer, identity};
use common::{SOON, TestFleet};

/// A request, and what comes of it: method, path, body; status, a part of the detail, the reason it is counted by.
type Case<'a> = (&'a str, &'a str, &'a [u8], u16, &'a str, &'a str);

const VALUE_MAX_BYTES: usize = 65_536;
const VALID_DAYS: u32 = 2;

fn refused(fleet: &TestFleet, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    fleet.api(0).metric("kinfolk_refused_total", &label).expect("metrics") as u64
}

/// Waits until at least `count` refusals for this reason are counted.
#[track_caller]
fn wait_refused(fleet: &TestFleet, reason: &str, count: u64) {
    let counted = || (refused(fleet, reason) >= count).then_some(());
    let waited = fleet.wait_for(&format!("{count} refusals, {reason}"), SOON, counted);
    waited.unwrap_or_else(|error| panic!("{error}; counted: {}", refused(fleet, reason)));
}

#[track_caller]
fn is_problem(reply: &Reply, status: u16, part: &str) {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert_eq!(reply.content_type, "application/problem+json");
    assert!(reply.detail().contains(part), "{part:?} is not in {}", reply.body);
}

/// The node goes on: it takes a write and its neighbour gets it.
#[track_caller]
fn goes_on(fleet: &TestFleet, path: &str) {
    fleet.api(0).put(path, "still here").expect("written");
    let there = || fleet.api(1).value(path).ok()??.eq("still here").then_some(());
    fleet.wait_for("the next write", SOON, there).expect("it spreads");
}

#[test]
fn http_input_that_cannot_be_taken_is_refused_with_a_problem_and_counted() {
    let fleet = common::fleet(2, &[("foo", "global")]);
    let api = fleet.api(0);
    let large = vec![b'x'; VALUE_MAX_BYTES + 1];
    let long = format!("/v1/db/foo/{}", "k".repeat(1_100));
    let foreign = format!("/v1/db/{}/foo/k", fleet.eid(1));
    let cases: &[Case<'_>] = &[
        ("PUT", "/v1/db/foo", b"v", 400, "family and a key", "bad_path_or_value"),
        ("PUT", "/v1/db/foo//k", b"v", 400, "segment 2 is empty", "bad_path_or_value"),
        ("PUT", "/v1/db/foo/%00", b"v", 400, "NUL", "bad_path_or_value"),
        ("PUT", "/v1/db/foo/%ff", b"v", 400, "UTF-8", "bad_path_or_value"),
        ("PUT", &long, b"v", 400, "at most 1024", "bad_path_or_value"),
        ("PUT", "/v1/db/foo/k", b"a\0b", 400, "NUL", "bad_path_or_value"),
        ("PUT", "/v1/db/foo/k", b"\xff\xfe", 400, "UTF-8", "bad_path_or_value"),
        ("PUT", "/v1/db/foo/k", &large, 413, "65536", "value_too_long"),
        ("PUT", &foreign, b"v", 403, "only that server writes it", "under_eid"),
        ("PUT", "/v1/shared/bar", br#"{"mode":"local"}"#, 400, "Unknown share type: 'local'", "share"),
        ("PUT", "/v1/shared/bar", b"global", 400, "is wanted", "share"),
        ("PUT", "/v1/shared/foo", br#"{"mode":"global"}"#, 409, "shared already", "share"),
        ("DELETE", "/v1/tree", b"", 400, "family", "bad_path_or_value"),
    ];
    for (method, path, body, status, part, reason) in cases {
        let before = refused(&fleet, reason);
        is_problem(&api.call(method, path, &[], body).expect("an answer"), *status, part);
        assert_eq!(refused(&fleet, reason), before + 1, "{method} {path} is counted as {reason}");
    }
    is_problem(&api.get("/v1/nothing").expect("an answer"), 404, "/v1/nothing");
    is_problem(&api.call("PUT", "/v1/status", &[], b"").expect("an answer"), 405, "PUT");
    is_problem(&api.get("/v1/db/foo/absent").expect("an answer"), 404, "not found");
    let largest = "x".repeat(VALUE_MAX_BYTES);
    api.put("/foo/largest", &largest).expect("the largest value is taken");
    api.put("/foo/empty", "").expect("an empty value is a value");
    let line = b"{\"owner\":null,\"path\":\"/foo/i\",\"value\":\"v\"}\nnonsense\n";
    let report = api.call("POST", "/v1/import", &[], line).expect("an answer");
    assert!(report.ok() && report.body.contains("\"written\":1") && report.body.contains("\"line\":2"), "{report:?}");
    assert_eq!(refused(&fleet, "import_line"), 1);
    goes_on(&fleet, "/foo/k");
    assert_eq!(fleet.api(1).value("/foo/largest").expect("an answer"), Some(largest));
    fleet.wait_equal(&[0, 1], SOON).expect("equal");
}

#[test]
fn without_the_token_nothing_but_health_is_answered() {
    let token = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token.path(), "correct horse battery staple\n").expect("written");
    let mut plan = common::plan(2, &[("foo", "global")]);
    plan.nodes[0].http_more = format!("token_file = {:?}\n", token.path());
    let fleet = common::start(plan);
    let api = fleet.api(0);
    let wrong = [("authorization", "Bearer correct horse")];
    for path in ["/v1/status", "/v1/tree", "/metrics", "/v1/export?all=true", "/v1/db/foo/k"] {
        is_problem(&api.get(path).expect("an answer"), 401, "bearer token");
        is_problem(&api.call("GET", path, &wrong, b"").expect("an answer"), 401, "bearer token");
    }
    is_problem(&api.call("PUT", "/v1/db/foo/k", &[], b"v").expect("an answer"), 401, "bearer token");
    assert!(api.get("/health/live").expect("an answer").ok());
    let right = [("authorization", "Bearer correct horse battery staple")];
    assert!(api.call("PUT", "/v1/db/foo/k", &right, b"v").expect("an answer").ok());
    let page = api.call("GET", "/metrics", &right, b"").expect("an answer").body;
    assert!(page.contains("kinfolk_refused_total{reason=\"http_token\"} 11"), "{page}");
}

#[test]
fn a_peer_that_does_not_belong_or_lies_is_refused_by_reason_and_the_node_goes_on() {
    let fleet = common::fleet(2, &[("foo", "global")]);
    let own = issue(&fleet.tls_dir());
    let other_ca = tempfile::tempdir().expect("a directory");
    tls::init_ca(other_ca.path(), "other", unix_ms() / 1_000).expect("a CA");
    let foreign = issue(other_ca.path());
    // The stranger itself trusts both CAs, so that it is the node that refuses.
    let both = other_ca.path().join("both.pem");
    let of = |dir: &Path| std::fs::read_to_string(dir.join(CA_CERT_FILE)).expect("a CA");
    std::fs::write(&both, of(&fleet.tls_dir()) + &of(other_ca.path())).expect("written");
    block_on(async {
        let stranger = Peer::connect_as(&identity(&both, other_ca.path(), foreign), fleet.listen(0)).await;
        if let Ok(stranger) = stranger {
            assert!(stranger.hello(foreign).await.is_none(), "nobody answers a stranger");
        }
        let liar = Peer::connect(&fleet.tls_dir(), own, fleet.listen(0)).await;
        assert!(liar.hello(fleet.eid(1)).await.is_none(), "a hello as somebody else is not answered");
        let honest = Peer::connect(&fleet.tls_dir(), own, fleet.listen(0)).await;
        assert_eq!(honest.hello(own).await.map(|hello| hello.eid), Some(fleet.eid(0)));
    });
    wait_refused(&fleet, "tls", 1);
    wait_refused(&fleet, "eid_mismatch", 1);
    assert!(fleet.log(0).contains("but its certificate is that of"), "{}", fleet.log_tail(0));
    goes_on(&fleet, "/foo/k");
}

#[test]
fn corrupt_frames_of_a_peer_with_a_good_certificate_are_refused_by_reason_and_the_node_goes_on() {
    let fleet = common::fleet(2, &[("foo", "global")]);
    let seed = common::seed();
    let eid = issue(&fleet.tls_dir());
    let family = Family::new("foo").expect("a family");
    let good =
        encode_frame(&Follow { family, mode: Mode::Global, classes: Classes::ALL, cursor: None, floor: Hlc::ZERO });
    let good = good.expect("a frame");
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let too_long = u32::try_from(FRAME_MAX_BYTES + 1).expect("fits").to_le_bytes();
    let mut longer = good.clone();
    longer.push(0);
    let length = u32::try_from(longer.len() - 8).expect("fits").to_le_bytes();
    longer[4..8].copy_from_slice(&length);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("frame_magic", with(0, b'X')),
        ("frame_version", with(2, 99)),
        ("frame_kind", with(3, 1)),
        ("frame_too_long", [&MAGIC[..], &[PROTOCOL_VERSION, 2], &too_long].concat()),
        ("frame_cut_off", good[..good.len() - 1].to_vec()),
        ("frame_cut_off", good[..5].to_vec()),
        ("frame_left_over", longer),
        ("frame_payload", [&good[..8], &vec![0xff; good.len() - 8]].concat()),
        ("frame_missing", Vec::new()),
    ];
    block_on(async {
        let peer = Peer::connect(&fleet.tls_dir(), eid, fleet.listen(0)).await;
        peer.hello(eid).await.expect("admitted");
        for (reason, frame) in &cases {
            let before = refused(&fleet, reason);
            let answer = peer.ask(frame).await;
            assert!(answer.is_none_or(|answer| answer.is_empty()), "{reason} gets no answer");
            wait_refused(&fleet, reason, before + 1);
        }
        let gossip = encode_frame(&Gossip { payload: vec![0xa5; 100] }).expect("a frame");
        peer.tell(&gossip).await.expect("sent");
        wait_refused(&fleet, "gossip_payload", 1);
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..300 {
            let mut frame = good.clone();
            (0..rng.random_range(1..4)).for_each(|_| {
                let at = rng.random_range(0..frame.len());
                frame[at] = rng.random();
            });
            frame.truncate(rng.random_range(0..=frame.len()));
            peer.tell(&frame).await.expect("the connection stands");
        }
    });
    assert!(fleet.api(0).get("/health/ready").expect("an answer").ok());
    goes_on(&fleet, "/foo/k");
}

#[test]
fn a_full_disk_refuses_writes_clearly_serves_reads_loses_nothing_and_recovers() {
    let disk = tempfile::tempdir().expect("a directory");
    let dir = disk.path().display();
    let probe = format!("mount -t tmpfs tmpfs {dir}");
    if !Command::new("unshare").args(["-rm", "sh", "-c", &probe]).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this machine lets nobody mount a small disk in a namespace of its own (unshare -rm)");
        return;
    }
    let script =
        format!("mount -t tmpfs -o size=12m tmpfs {dir} && head -c 6000000 /dev/zero > {dir}/ballast && exec \"$@\"");
    let mut plan = common::plan(2, &[("foo", "global")]);
    plan.nodes[0].launcher = ["unshare", "-rm", "sh", "-c", &script, "sh"].map(str::to_string).into();
    plan.nodes[0].data_dir = Some(disk.path().join("data"));
    let fleet = common::start(plan);
    let api = fleet.api(0);
    let mut acks = Acks::default();
    let mut written = Vec::new();
    let full = (0..400).find_map(|n| {
        let (path, value) = (format!("/foo/{n}"), format!("{n:0>30000}"));
        match api.put(&path, &value) {
            Ok(stamp) => {
                acks.acknowledged((None, path.clone()), Some(value.clone()), stamp);
                written.push((path, value));
                None
            }
            Err(error) => Some(error),
        }
    });
    let full = full.expect("the disk is full some time");
    assert!(matches!(&full, CallError::Refused { status: 507, detail } if detail.contains("full")), "{full}");
    for (path, value) in &written {
        assert_eq!(api.value(path).expect("reads go on").as_ref(), Some(value), "{path}");
    }
    assert!(api.metric("kinfolk_commit_failures_total", "").expect("metrics") >= 1.0);
    // What others write in the meantime waits at them.
    let stamp = fleet.api(1).put("/foo/elsewhere", "x").expect("the other disk has room");
    acks.acknowledged((None, "/foo/elsewhere".into()), Some("x".into()), stamp);
    let pid = fleet.pid(0).expect("it runs");
    std::fs::remove_file(format!("/proc/{pid}/root{dir}/ballast")).expect("space is freed");
    let recovered = || api.put("/foo/after", "room").ok();
    let stamp = fleet.wait_for("writes again", SOON, recovered).expect("writes recover");
    acks.acknowledged((None, "/foo/after".into()), Some("room".into()), stamp);
    let (export, _) = fleet.wait_equal(&[0, 1], SOON).expect("equal");
    assert_eq!(acks.faults(&read_export(&export).expect("an export")), [""; 0]);
    eprintln!("full after {} writes of 30 kB; all of them there, and writes recovered", written.len());
}

#[test]
fn what_is_wrong_with_files_and_directories_stops_the_start_with_its_reason() {
    let mut plan = common::plan(2, &[("foo", "global")]);
    let shared_dir = tempfile::tempdir().expect("a directory");
    plan.nodes[0].data_dir = Some(shared_dir.path().join("data"));
    plan.nodes[1].data_dir = Some(shared_dir.path().join("data"));
    let mut fleet = common::prepare(plan);
    fleet.spawn(0).expect("started");
    fleet.wait_ready(0).expect("ready");
    fleet.api(0).put("/foo/k", "v").expect("written");
    let pid = fleet.pid(0).expect("it runs");
    starts_not(&fleet, 1, 3, &[&format!("in use by process {pid}"), "kinfolk run"]);

    let key = fleet.tls_dir().join(fleet.eid(1).compact()).with_extension("key");
    let mode = |mode| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).expect("changed");
    mode(0o644);
    starts_not(&fleet, 1, 3, &["can be used by others", "chmod 600"]);
    mode(0o600);

    fleet.stop(0).expect("stopped");
    starts_not(&fleet, 1, 3, &["belongs to node", &fleet.eid(0).to_string()]);
    let file = fleet.data_dir(0).join("kinfolk.redb");
    let mut bytes = std::fs::read(&file).expect("the store");
    bytes.chunks_mut(4_096).skip(1).for_each(|page| page.iter_mut().skip(64).step_by(512).for_each(|byte| *byte ^= 1));
    std::fs::write(&file, bytes).expect("damaged");
    starts_not(&fleet, 0, 3, &["the store is damaged", "put this data directory aside"]);
}

#[test]
fn a_bad_configuration_stops_the_start_with_all_that_is_wrong() {
    let fleet = common::prepare(common::plan(1, &[]));
    let good = std::fs::read_to_string(fleet.config_file(0)).expect("a configuration");
    let other = issue(&fleet.tls_dir());
    let other_ca = tempfile::tempdir().expect("a directory");
    tls::init_ca(other_ca.path(), "other", unix_ms() / 1_000).expect("a CA");
    let (ca, foreign) = (fleet.tls_dir().join(CA_CERT_FILE), other_ca.path().join(CA_CERT_FILE));
    let foreign = good.replace(&ca.display().to_string(), &foreign.display().to_string());
    let cases = [
        (good.replace("listen = ", "listens = "), 2, "unknown field `listens`"),
        (good.replace("[http]\nlisten = \"127.0.0.1", "[http]\nlisten = \"0.0.0.0"), 2, "token_file"),
        (format!("{good}\n[clock]\nmax_clock_drift_ms = 0\n"), 2, "would mean no limit"),
        (format!("{good}\n[sip]\nlisten = [\"smtp:1\"]\n"), 2, "no place to listen for SIP"),
        (good.replace("[shared]", "[shared]\nregistrar = \"global\""), 2, "must never be shared"),
        (good.replace("[shared]", "[shared]\nfoo = \"local\""), 2, "local"),
        ("data_dir = ".to_string(), 2, "kinfolk config example"),
        (format!("eid = \"{other}\"\n{good}"), 3, "the certificate says"),
        (foreign, 3, "was not issued by the CA"),
        (good.replace("ca.pem", "no.pem"), 3, "cannot read"),
    ];
    for (text, code, part) in cases {
        std::fs::write(fleet.config_file(0), text).expect("written");
        starts_not(&fleet, 0, code, &[part, if code == 2 { "node.toml" } else { "" }]);
    }
}

/// Runs the node, which must end by itself with this exit code and these parts in what it says.
#[track_caller]
fn starts_not(fleet: &TestFleet, node: usize, code: i32, parts: &[&str]) {
    let file = fleet.config_file(node).display().to_string();
    let said = fleet.command(&["run", "--config", &file]).output().expect("the binary runs");
    let text = String::from_utf8_lossy(&said.stderr);
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(said.status.code(), Some(code), "{text}");
}

fn issue(dir: &Path) -> Eid {
    tls::issue(dir, None, VALID_DAYS, unix_ms() / 1_000).expect("a certificate").eid
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}
