//! What stands in `ops/`: every metric that it names is shown by a node, and a real Prometheus takes it and
//! scrapes real nodes. That one needs `prometheus` and `promtool` in the PATH and else skips itself.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kinfolk::cli::demo::api::Api;
use kinfolk::cli::demo::fleet::free_port;
use serde_json::Value as Json;

use common::{SOON, TestFleet};

const SHARED: [(&str, &str); 1] = [("foo", "global")];
/// Every metric of ours begins so.
const PREFIX: &str = "kinfolk_";

fn ops(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(ops(file)).expect("a file of ops/")
}

fn dashboard() -> Json {
    serde_json::from_str(&read("grafana/kinfolk.json")).expect("JSON")
}

/// The panels' expressions, with the title of the panel.
fn dashboard_expressions() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let of_panel = |panel: &Json| {
        let title = panel["title"].as_str().expect("a title").to_string();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let expression = move |target: Json| (title.clone(), target["expr"].as_str().expect("an expr").to_string());
        targets.into_iter().map(expression)
    };
    panels.iter().flat_map(of_panel).collect()
}

fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with(PREFIX)).map(str::to_string).collect()
}

/// The names of series that a page of OpenMetrics declares.
fn declared(page: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a kind");
        let suffixes: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    names
}

fn metrics(fleet: &TestFleet, node: usize) -> String {
    fleet.api(node).get("/metrics").expect("an answer").body
}

#[test]
fn every_metric_that_the_dashboard_and_the_rules_name_is_shown_by_a_node() {
    let fleet = common::fleet(2, &SHARED);
    // What has no label's value yet is not shown: a node that follows nobody has no lag.
    let follows = || Some(declared(&metrics(&fleet, 0))).filter(|names| names.contains("kinfolk_follow_lag_seconds"));
    let declared = fleet.wait_for("metrics of a node that follows another", SOON, follows).expect("shown");
    assert!(declared.contains("kinfolk_puts_total") && declared.contains("kinfolk_node_info"), "{declared:?}");
    // The whole of the dashboard: its variables and annotations ask too.
    for file in ["grafana/kinfolk.json", "prometheus/kinfolk.rules.yml"] {
        let named = names_in(&read(file));
        assert!(named.len() > 8, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&declared).collect();
        assert!(unknown.is_empty(), "{file} names what no node shows: {unknown:?}");
    }
}

#[test]
fn the_dashboard_has_panels_that_do_not_overlap_and_numbers_that_do_not_repeat() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut taken = BTreeSet::new();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} overlaps another panel", panel["title"]);
            }
        }
    }
}

/// A running Prometheus that is ended with the test.
struct Prometheus {
    child: Child,
    api: Api,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(fleet: &TestFleet) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let targets: Vec<String> = (0..fleet.count()).map(|node| format!("\"{}\"", fleet.http(node))).collect();
        let example = read("prometheus/prometheus.example.yml");
        let config: String = example
            .lines()
            .map(|line| match line.trim_start().split_once(':') {
                Some(("scrape_interval" | "evaluation_interval", _)) => line.replace("15s", "1s"),
                _ if line.contains("- targets:") => format!("      - targets: [{}]", targets.join(", ")),
                _ if line.contains("- kinfolk.rules.yml") => {
                    format!("  - {:?}", ops("prometheus/kinfolk.rules.yml").display().to_string())
                }
                _ => line.to_string(),
            })
            .map(|line| line + "\n")
            .collect();
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("written");
        let listen = free_port().expect("a free port");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("prometheus runs");
        Self { child, api: Api::new(listen), _dir: dir }
    }

    fn get(&self, path: &str) -> Option<Json> {
        let reply = self.api.get(path).ok()?;
        serde_json::from_str::<Json>(&reply.body).ok()
    }

    /// The samples that an expression gives now; an error says which.
    fn query(&self, expression: &str) -> Option<Vec<Json>> {
        let encoded = percent_encoding::utf8_percent_encode(expression, percent_encoding::NON_ALPHANUMERIC);
        let answer = self.get(&format!("/api/v1/query?query={encoded}"))?;
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        Some(answer["data"]["result"].as_array()?.clone())
    }
}

/// Says loudly what is not tested if there is no Prometheus here.
fn skip() -> bool {
    let there = |program: &str| {
        let asked = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    let missing: Vec<&str> = ["prometheus", "promtool"].into_iter().filter(|program| !there(program)).collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: {} not in the PATH (Debian package prometheus): ops/ is not tried", missing.join(", "));
    }
    !missing.is_empty()
}

#[track_caller]
fn promtool(args: &[&str]) {
    let ran = Command::new("promtool").args(args).current_dir(ops("prometheus")).output().expect("promtool runs");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "promtool {args:?}: {said}");
}

#[test]
fn promtool_takes_the_rules_and_their_tests_and_the_example() {
    if skip() {
        return;
    }
    promtool(&["check", "rules", "kinfolk.rules.yml"]);
    promtool(&["test", "rules", "kinfolk.test.yml"]);
    promtool(&["check", "config", "prometheus.example.yml"]);
}

#[test]
fn a_real_prometheus_scrapes_three_nodes_and_answers_every_panel_and_rule() {
    if skip() {
        return;
    }
    let mut fleet = common::fleet(3, &SHARED);
    let prometheus = Prometheus::start(&fleet);
    for key in 0..30 {
        fleet.api(key % 3).put(&format!("/foo/{key}"), "v").expect("written");
    }
    fleet.api(0).delete("/foo/0").expect("deleted");
    fleet.wait_equal(&[0, 1, 2], SOON).expect("equal");
    let up = || (prometheus.query("sum(up{job=\"kinfolk\"}) == 3")?.len() == 1).then_some(());
    fleet.wait_for("Prometheus to scrape three nodes", SOON, up).expect("scraped");
    let targets = prometheus.get("/api/v1/targets").expect("an answer");
    for target in targets["data"]["activeTargets"].as_array().expect("targets") {
        assert_eq!((&target["lastError"], &target["health"]), (&"".into(), &"up".into()), "{target}");
    }
    let keys = || {
        let samples =
            prometheus.query("kinfolk_keys{family=\"foo\"} == 29 and kinfolk_tombstones{family=\"foo\"} == 1")?;
        (samples.len() == 3).then_some(())
    };
    fleet.wait_for("the keys that were written", SOON, keys).expect("counted");

    // Rates need two scrapes.
    for (title, expression) in dashboard_expressions() {
        let expression = expression.replace("$__rate_interval", "1m").replace("$site", ".*");
        let quiet_when_well = title == "Refused, by reason";
        let answered = || {
            let samples = prometheus.query(&expression)?;
            (quiet_when_well || !samples.is_empty()).then_some(())
        };
        fleet.wait_for(&format!("{title}: {expression}"), SOON, answered).expect("a panel with something in it");
    }
    let rules = || {
        let answer = prometheus.get("/api/v1/rules")?;
        let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    };
    let rules = fleet.wait_for("every rule to be evaluated", SOON, rules).expect("evaluated");
    assert_eq!(rules.len(), read("prometheus/kinfolk.rules.yml").matches("- alert:").count());
    for rule in &rules {
        assert_eq!((&rule["health"], &rule["state"]), (&"ok".into(), &"inactive".into()), "{rule}");
    }

    // A dead node is seen, by Prometheus and by its peers, and the alert begins its wait.
    fleet.kill_9(2).expect("killed");
    let pending = || Some(prometheus.query("ALERTS{alertname=\"KinfolkDown\"}")?.len() == 1).filter(|seen| *seen);
    fleet.wait_for("the alert of a dead node", SOON, pending).expect("alerted");
    let missed = || Some(prometheus.query("kinfolk_members{state=\"dead\"} == 1")?.len() == 2).filter(|seen| *seen);
    fleet.wait_for("both peers to miss it", SOON + SOON, missed).expect("missed");
}
