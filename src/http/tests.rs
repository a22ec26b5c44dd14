//! The contract's table of routes, row by row, against a node without a network.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::HeaderMap;
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::core::clock::UnixMs;
use crate::core::eid::Eid;
use crate::core::path::VALUE_MAX_BYTES;
use crate::core::replica::{Input, Replica, Settings};
use crate::core::storage::{Run, StoreError};
use crate::status::NodeStatus;
use crate::store::memory::{MemoryReads, MemoryStore};
use crate::store::writer::{self, WriterLimits};

const EID: &str = "02:00:00:00:00:01";
const IMPORT_MAX_BYTES: usize = 100_000;

fn now() -> UnixMs {
    1_790_000_000_000
}

fn settings() -> Settings {
    Settings::new(EID.parse().expect("an EID"))
}

fn api(replica: Replica<MemoryStore>) -> Api<MemoryReads> {
    let (database, _writer) = writer::start(replica, WriterLimits::default(), now, |_| ()).expect("starts");
    let status = || {
        let node = NodeStatus {
            eid: EID.parse().expect("an EID"),
            site: "ulm".into(),
            version: "0.1.0".into(),
            run: Run(1).to_string(),
            head: 0,
            ready: true,
            since_unix_ms: now(),
            certificate_expires_unix_s: None,
            quarantined: 0,
            access: Default::default(),
            alarms: vec![],
        };
        (Status { node, members: vec![], families: vec![], adapter: None }, Extra::default())
    };
    let metrics = Arc::new(Metrics::new(EID, "ulm", "0.1.0"));
    let (status, watchers) = (Arc::new(status), Watchers::new(CancellationToken::new()));
    Api { database, metrics, status, token: None, import_max_bytes: IMPORT_MAX_BYTES, watchers }
}

pub(super) fn empty_api() -> Api<MemoryReads> {
    api(Replica::open(MemoryStore::new(), settings(), Run(1), now()).expect("opens"))
}

/// A node to talk to.
struct Http(Router);

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn kind(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).map_or("", |kind| kind.to_str().expect("ASCII"))
    }

    #[track_caller]
    fn json(&self) -> Json {
        assert_eq!((self.status, self.kind()), (200, "application/json"), "{}", self.text());
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// The detail of problem JSON of this status, whose other members must be as RFC 9457 has them.
    #[track_caller]
    fn problem(&self, status: u16) -> String {
        assert_eq!((self.status, self.kind()), (status, "application/problem+json"), "{}", self.text());
        let problem: Json = serde_json::from_slice(&self.body).expect("JSON");
        let title = StatusCode::from_u16(status).expect("a status").canonical_reason();
        assert_eq!(problem["type"], "about:blank");
        assert_eq!(problem["title"].as_str(), title);
        assert_eq!(problem["status"], status);
        problem["detail"].as_str().expect("a text").to_string()
    }
}

impl Http {
    fn new() -> Self {
        Self(router(empty_api()))
    }

    /// A node with these values, whose family foo is shared.
    async fn with(values: &[(&str, &str)]) -> Self {
        let http = Self::new();
        http.put("/v1/shared/foo", r#"{"mode":"global"}"#).await.json();
        for (path, value) in values {
            http.put(path, value).await.json();
        }
        http
    }

    async fn send(&self, request: Request) -> Answer {
        let response = self.0.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a whole body");
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn call(&self, method: &str, uri: &str, body: impl Into<Body>) -> Answer {
        self.send(Request::builder().method(method).uri(uri).body(body.into()).expect("a request")).await
    }

    async fn get(&self, uri: &str) -> Answer {
        self.call("GET", uri, Body::empty()).await
    }

    async fn put(&self, uri: &str, body: &str) -> Answer {
        self.call("PUT", uri, body.to_string()).await
    }

    async fn delete(&self, uri: &str) -> Answer {
        self.call("DELETE", uri, Body::empty()).await
    }

    async fn get_plain(&self, uri: &str) -> Answer {
        let request = Request::builder().uri(uri).header("accept", "text/plain").body(Body::empty());
        self.send(request.expect("a request")).await
    }
}

/// A body whose client goes away in the middle of it.
fn cut_off_body() -> Body {
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    Body::from_stream(tokio_stream::iter([Ok(Bytes::from_static(b"half a va")), Err(broken)]))
}

// ---- /v1/db -----------------------------------------------------------------------------------

#[tokio::test]
async fn a_value_is_put_by_put_or_post_and_read_as_json_or_text() {
    let http = Http::new();
    for method in ["PUT", "POST"] {
        let written = http.call(method, "/v1/db/foo/a", format!("by {method}")).await.json();
        let stamp = written["stamp"].as_str().expect("a stamp").to_string();
        assert!(stamp.parse::<crate::core::clock::Stamp>().is_ok(), "{stamp}");
        assert_eq!(written, json!({"path": "/foo/a", "stamp": stamp}));
        let found = http.get("/v1/db/foo/a").await.json();
        assert_eq!(found, json!({"path": "/foo/a", "value": format!("by {method}"), "stamp": stamp, "owner": null}));
    }
    let plain = http.get_plain("/v1/db/foo/a").await;
    assert_eq!((plain.status, plain.kind(), plain.text()), (200, "text/plain; charset=utf-8", "by POST"));
}

#[tokio::test]
async fn a_record_of_a_unique_family_names_its_owner() {
    let http = Http::new();
    http.put("/v1/shared/uni", r#"{"mode":"unique"}"#).await.json();
    http.put("/v1/db/uni/a", "mine").await.json();
    for uri in
        ["/v1/db/uni/a".to_string(), format!("/v1/db/{EID}/uni/a"), format!("/v1/db/{}/uni/a", EID.replace(':', "%3A"))]
    {
        let found = http.get(&uri).await.json();
        assert_eq!((&found["owner"], &found["value"]), (&json!(EID), &json!("mine")), "{uri}");
    }
}

#[tokio::test]
async fn each_segment_of_a_path_is_percent_encoded() {
    let http = Http::new();
    for (uri, path) in [
        ("/v1/db/foo/a%20b", "/foo/a b"),
        ("/v1/db/foo/%C3%BC", "/foo/ü"),
        ("/v1/db/foo%2Fbar/key", "/foo/bar/key"),
        ("/v1/db/foo/100%25", "/foo/100%"),
        ("/v1/db/foo/a+b", "/foo/a+b"),
        ("/v1/db/foo/%3Fq%23", "/foo/?q#"),
        ("/v1/db/SIP/Registry/1/2/3", "/SIP/Registry/1/2/3"),
    ] {
        assert_eq!(http.put(uri, path).await.json()["path"], path);
        assert_eq!(http.get(uri).await.json()["value"], path);
    }
    assert_eq!(http.get("/v1/db/foo/bar%2Fkey").await.json()["path"], "/foo/bar/key", "the same path");
}

#[tokio::test]
async fn a_malformed_path_is_refused_and_the_fault_is_named() {
    let http = Http::new();
    let long = format!("/v1/db/foo/{}", "k".repeat(1_020));
    for (uri, why) in [
        ("/v1/db/foo/%00", "NUL"),
        ("/v1/db/foo/%ff", "UTF-8: byte 5"),
        ("/v1/db/foo//a", "segment 2 is empty"),
        ("/v1/db/foo/a/", "segment 3 is empty"),
        ("/v1/db/foo", "a family and a key"),
        (&long, "at most 1024"),
    ] {
        for method in ["GET", "PUT", "POST", "DELETE"] {
            let detail = http.call(method, uri, "value").await.problem(400);
            assert!(detail.contains(why), "{method} {uri}: {detail}");
        }
    }
}

#[tokio::test]
async fn an_empty_value_is_a_value() {
    let http = Http::with(&[("/v1/db/foo/a", "")]).await;
    assert_eq!(http.get("/v1/db/foo/a").await.json()["value"], "");
    let plain = http.get_plain("/v1/db/foo/a").await;
    assert_eq!((plain.status, plain.text()), (200, ""));
}

#[tokio::test]
async fn the_largest_value_is_taken_and_one_byte_more_is_not() {
    let http = Http::new();
    let largest = "v".repeat(VALUE_MAX_BYTES);
    http.put("/v1/db/foo/a", &largest).await.json();
    assert_eq!(http.get_plain("/v1/db/foo/a").await.text(), largest);
    let detail = http.put("/v1/db/foo/a", &format!("{largest}v")).await.problem(413);
    assert!(detail.contains("65536 bytes"), "{detail}");
    assert_eq!(http.get_plain("/v1/db/foo/a").await.text(), largest, "what was there stays");
}

#[tokio::test]
async fn a_lower_limit_of_the_configuration_binds_too() {
    let mut settings = settings();
    settings.limits.value_max_bytes = 3;
    settings.limits.path_max_bytes = 6;
    let http = Http(router(api(Replica::open(MemoryStore::new(), settings, Run(1), now()).expect("opens"))));
    http.put("/v1/db/foo/a", "123").await.json();
    assert!(http.put("/v1/db/foo/a", "1234").await.problem(413).contains("at most 3"));
    assert!(http.put("/v1/db/foo/ab", "1").await.problem(400).contains("at most 6"));
}

#[tokio::test]
async fn a_value_with_a_nul_or_that_is_not_utf_8_is_refused() {
    let http = Http::new();
    assert!(http.put("/v1/db/foo/a", "a\0").await.problem(400).contains("NUL byte: byte 1"));
    let detail = http.call("PUT", "/v1/db/foo/a", vec![b'a', 0xff]).await.problem(400);
    assert!(detail.contains("UTF-8: byte 1"), "{detail}");
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_no_value_and_not_called_too_large() {
    let http = Http::new();
    for (method, uri) in [("PUT", "/v1/db/foo/a"), ("POST", "/v1/import"), ("PUT", "/v1/shared/foo")] {
        let detail = http.call(method, uri, cut_off_body()).await.problem(400);
        assert!(detail.contains("cut off"), "{method} {uri}: {detail}");
    }
    http.get("/v1/db/foo/a").await.problem(404);
}

#[tokio::test]
async fn a_path_under_an_eid_or_in_the_books_is_read_only() {
    let http = Http::new();
    for (method, uri) in [
        ("PUT", "/v1/db/02:00:00:00:00:09/foo/a"),
        ("DELETE", "/v1/db/02:00:00:00:00:09/foo/a"),
        ("DELETE", "/v1/tree/02:00:00:00:00:09/foo"),
        ("PUT", "/v1/db/__kinfolk/member"),
        ("DELETE", "/v1/tree/__kinfolk"),
    ] {
        http.call(method, uri, "value").await.problem(403);
    }
    http.get("/v1/db/__kinfolk/member").await.problem(404);
}

#[tokio::test]
async fn deleting_tells_what_was_deleted_and_that_nothing_was_there() {
    let http = Http::with(&[("/v1/db/foo/a", "v")]).await;
    let deleted = http.delete("/v1/db/foo/a").await.json();
    assert_eq!(deleted["path"], "/foo/a");
    assert!(deleted["stamp"].is_string());
    assert_eq!(http.delete("/v1/db/foo/a").await.problem(404), "Database entry does not exist.");
    http.get("/v1/db/foo/a").await.problem(404);
    assert_eq!(http.get_plain("/v1/db/foo/a").await.problem(404), "Database entry not found.");
}

#[tokio::test]
async fn a_full_disk_is_507_and_loses_only_the_write_that_was_told() {
    let mut replica = Replica::open(MemoryStore::new(), settings(), Run(1), now()).expect("opens");
    let put = |path: &str| Input::Put {
        path: crate::core::path::Path::new(path).expect("a path"),
        value: crate::core::path::Value::new("v").expect("a value"),
    };
    replica.handle(vec![put("/foo/before")], now()).expect("commits");
    replica.store_mut().fail_next_commit(StoreError::Full);
    let http = Http(router(api(replica)));
    assert!(http.put("/v1/db/foo/a", "v").await.problem(507).contains("full"));
    http.get("/v1/db/foo/a").await.problem(404);
    http.get("/v1/db/foo/before").await.json();
    http.put("/v1/db/foo/a", "v").await.json();
}

// ---- /v1/tree and /v1/keys --------------------------------------------------------------------

#[tokio::test]
async fn a_tree_lists_entries_by_path_with_their_sharing() {
    let http = Http::with(&[("/v1/db/foo/b", "2"), ("/v1/db/foo/a/x", "1"), ("/v1/db/local/a", "3")]).await;
    let foo_a = json!({"path": "/foo/a/x", "value": "1", "shared": "global"});
    let foo_b = json!({"path": "/foo/b", "value": "2", "shared": "global"});
    let local = json!({"path": "/local/a", "value": "3", "shared": null});
    let mark = json!({"path": "/__asterisk_shared_family/foo", "value": "GLOBAL", "shared": null});
    assert_eq!(http.get("/v1/tree").await.json(), json!({"entries": [mark, foo_a, foo_b, local]}));
    assert_eq!(http.get("/v1/tree/foo").await.json(), json!({"entries": [foo_a, foo_b]}));
    assert_eq!(http.get("/v1/tree/foo/a").await.json(), json!({"entries": [foo_a]}));
    assert_eq!(http.get("/v1/tree/foo%2Fa").await.json(), json!({"entries": [foo_a]}));
    assert_eq!(http.get("/v1/tree/absent").await.json(), json!({"entries": []}));
    http.get("/v1/tree/foo//a").await.problem(400);
    http.get("/v1/tree/%ff").await.problem(400);
}

#[tokio::test]
async fn keys_are_found_in_every_family() {
    let http = Http::with(&[("/v1/db/foo/1001", "a"), ("/v1/db/bar/x/1001", "b"), ("/v1/db/bar/1002", "c")]).await;
    let entries = http.get("/v1/keys/1001").await.json();
    let paths: Vec<_> = entries["entries"].as_array().expect("a list").iter().map(|entry| &entry["path"]).collect();
    assert_eq!(paths, ["/bar/x/1001", "/foo/1001"]);
    assert_eq!(http.get("/v1/keys/none").await.json(), json!({"entries": []}));
    http.get("/v1/keys/%00").await.problem(400);
}

#[tokio::test]
async fn a_deleted_tree_says_how_many_there_were() {
    let http = Http::with(&[("/v1/db/foo/a/1", "1"), ("/v1/db/foo/a/2", "2"), ("/v1/db/foo/b", "3")]).await;
    assert_eq!(http.delete("/v1/tree/foo/a").await.json(), json!({"removed": 2}));
    assert_eq!(http.delete("/v1/tree/foo/a").await.problem(404), "Database entries do not exist.");
    assert_eq!(http.delete("/v1/tree/foo").await.json(), json!({"removed": 1}));
    assert_eq!(http.delete("/v1/tree").await.problem(400), "a family must be named");
}

// ---- /v1/shared -------------------------------------------------------------------------------

#[tokio::test]
async fn families_are_shared_listed_and_unshared() {
    let http = Http::new();
    assert_eq!(http.get("/v1/shared").await.json(), json!({}));
    assert_eq!(http.put("/v1/shared/foo", r#"{"mode":"global"}"#).await.json(), json!({"mode": "global"}));
    assert_eq!(http.put("/v1/shared/a%2Fb", r#"{"mode":"unique"}"#).await.json(), json!({"mode": "unique"}));
    assert_eq!(http.get("/v1/shared").await.json(), json!({"a/b": "unique", "foo": "global"}));
    assert_eq!(http.get("/v1/shared/a%2Fb").await.json(), json!({"mode": "unique"}));
    http.delete("/v1/shared/a%2Fb").await.json();
    assert_eq!(http.get("/v1/shared").await.json(), json!({"foo": "global"}));
    assert_eq!(http.get("/v1/shared/a%2Fb").await.problem(404), "Shared family 'a/b' does not exist.");
    assert_eq!(http.delete("/v1/shared/a%2Fb").await.problem(404), "Shared family 'a/b' does not exist.");
}

#[tokio::test]
async fn what_cannot_be_shared_is_a_conflict_or_forbidden() {
    let api = empty_api();
    let other: Eid = "02:00:00:00:00:09".parse().expect("an EID");
    let uni = crate::core::path::Family::new("uni").expect("a family");
    let modes = BTreeMap::from([(uni, vec![(other, crate::core::family::Mode::Unique)])]);
    api.database.submit(Input::Elsewhere { modes }).await.expect("noted");
    let http = Http(router(api));
    let global = r#"{"mode":"global"}"#;
    http.put("/v1/shared/foo", global).await.json();
    assert!(http.put("/v1/shared/foo", global).await.problem(409).contains("shared already"));
    assert!(http.put("/v1/shared/foo", r#"{"mode":"unique"}"#).await.problem(409).contains("shared already"));
    assert!(http.put("/v1/shared/foo/a", global).await.problem(409).contains("overlaps"));
    assert!(http.put("/v1/shared/uni", global).await.problem(409).contains("02:00:00:00:00:09"));
    for never in ["registrar", "IAX", "SIP", "pbx", "dundi", "__asterisk_shared_family", "__kinfolk"] {
        http.put(&format!("/v1/shared/{never}"), global).await.problem(403);
    }
}

#[tokio::test]
async fn a_body_that_names_no_mode_is_refused_with_an_example() {
    let http = Http::new();
    let long = format!(r#"{{"mode":"{}"}}"#, "g".repeat(2_000));
    for body in ["", "global", "{}", r#"{"mode":7}"#, r#"{"mode":"global","x":1}"#, long.as_str()] {
        assert!(http.put("/v1/shared/foo", body).await.problem(400).contains(r#"{"mode":"global"}"#), "{body}");
    }
    assert_eq!(http.put("/v1/shared/foo", r#"{"mode":"local"}"#).await.problem(400), "Unknown share type: 'local'");
}

// ---- export and import ------------------------------------------------------------------------

/// A node with puts, a deleted key, a unique family, and local values.
async fn well_filled() -> Http {
    let http =
        Http::with(&[("/v1/db/foo/a", "1"), ("/v1/db/foo/ü", "two\nlines \"\\"), ("/v1/db/foo/gone", "3")]).await;
    http.put("/v1/shared/uni", r#"{"mode":"unique"}"#).await.json();
    http.put("/v1/db/uni/mine", "").await.json();
    http.put("/v1/db/local/a", "stays here").await.json();
    http.delete("/v1/db/foo/gone").await.json();
    http
}

#[tokio::test]
async fn an_export_has_the_records_of_shared_families_as_lines() {
    let http = well_filled().await;
    let export = http.get("/v1/export").await;
    assert_eq!((export.status, export.kind()), (200, "application/x-ndjson"));
    assert!(export.text().ends_with('\n'));
    let lines: Vec<Json> = export.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let brief = |line: &Json| json!([line["owner"], line["path"], line["value"]]);
    assert_eq!(
        lines.iter().map(brief).collect::<Vec<_>>(),
        [
            json!([null, "/foo/a", "1"]),
            json!([null, "/foo/gone", null]),
            json!([null, "/foo/ü", "two\nlines \"\\"]),
            json!([EID, "/uni/mine", ""]),
        ]
    );
    let keys: Vec<_> = lines[0].as_object().expect("an object").keys().collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert!(export.text().starts_with(r#"{"owner":null,"path":"/foo/a","value":"1","stamp":""#), "{}", export.text());
    assert!(http.get("/v1/export?all=true").await.text().contains("/local/a"));
}

#[tokio::test]
async fn an_export_imported_elsewhere_is_exported_as_the_same_bytes() {
    let export = well_filled().await.get("/v1/export").await;
    let other = Http::with(&[]).await;
    other.put("/v1/shared/uni", r#"{"mode":"unique"}"#).await.json();
    let report = other.call("POST", "/v1/import", export.body.clone()).await.json();
    assert_eq!(report, json!({"won": 4, "lost": 0, "same": 0, "written": 0, "refused": []}));
    assert_eq!(other.get("/v1/export").await.text(), export.text());
    let report = other.call("POST", "/v1/import", export.body.clone()).await.json();
    assert_eq!(report, json!({"won": 0, "lost": 0, "same": 4, "written": 0, "refused": []}));
}

#[tokio::test]
async fn an_import_refuses_lines_by_their_number_and_takes_the_others() {
    let http = Http::with(&[("/v1/db/foo/no-value", "stays")]).await;
    let lines = [
        r#"{"owner":null,"path":"/foo/a","value":"1"}"#,
        "not JSON",
        "",
        r#"{"owner":null,"path":"/foo//a","value":"1"}"#,
        r#"{"owner":null,"path":"/foo/b","value":"1","stamp":"yesterday"}"#,
        r#"{"owner":null,"path":"/foo/b","value":"1","stamp":"1790000000000.0@02:00:00:00:00:09#0000000000000000"}"#,
        r#"{"owner":null,"path":"/02:00:00:00:00:09/foo/b","value":"1"}"#,
        r#"{"owner":null,"path":"/foo/absent","value":null}"#,
        r#"{"owner":null,"path":"/foo/no-value"}"#,
        r#"{"owner":null,"path":"/foo/z","value":"26"}"#,
    ];
    let mut body = lines.join("\n").into_bytes();
    body.extend(b"\n{\"path\":\"/foo/\xff\",\"value\":\"1\"}");
    let report = http.call("POST", "/v1/import", body).await.json();
    let refused: Vec<_> = report["refused"].as_array().expect("a list").iter().map(|line| &line["line"]).collect();
    assert_eq!(refused, [2, 4, 5, 6, 7, 8, 9, 11], "{report}");
    assert!(report["refused"].as_array().expect("a list").iter().all(|line| line["reason"].is_string()));
    assert_eq!(report["written"], 2);
    http.get("/v1/db/foo/z").await.json();
    http.get("/v1/db/foo/no-value").await.json();
}

#[tokio::test]
async fn an_import_as_new_stamps_the_lines_afresh() {
    let http = well_filled().await;
    let export = http.get("/v1/export").await;
    let line = export.text().lines().next().expect("a line").to_string();
    let report = http.call("POST", "/v1/import?as_new=true", line.clone()).await.json();
    assert_eq!(report["written"], 1);
    let again = http.get("/v1/export").await;
    let stamp = |line: &str| serde_json::from_str::<Json>(line).expect("JSON")["stamp"].to_string();
    assert_ne!(stamp(again.text().lines().next().expect("a line")), stamp(&line));
}

#[tokio::test]
async fn an_import_that_is_too_large_is_refused_whole() {
    let http = Http::with(&[]).await;
    let body = format!("{{\"path\":\"/foo/a\",\"value\":\"1\"}}\n{}", " ".repeat(IMPORT_MAX_BYTES));
    assert!(http.call("POST", "/v1/import", body).await.problem(413).contains("send it in parts"));
    http.get("/v1/db/foo/a").await.problem(404);
}

#[tokio::test]
async fn a_question_that_is_no_yes_or_no_is_problem_json_too() {
    let http = Http::new();
    http.get("/v1/export?all=perhaps").await.problem(400);
    http.call("POST", "/v1/import?as_new=perhaps", "").await.problem(400);
}

// ---- around the routes ------------------------------------------------------------------------

#[tokio::test]
async fn health_status_and_metrics_answer() {
    let http = Http::new();
    assert_eq!(http.get("/health/live").await.status, 200);
    assert_eq!(http.get("/health/ready").await.status, 200);
    assert_eq!(http.get("/v1/status").await.json()["node"]["eid"], EID);
    let metrics = http.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.kind().starts_with("application/openmetrics-text"), "{}", metrics.kind());
    assert!(metrics.text().ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_what_is_wrong() {
    let mut api = empty_api();
    let (mut status, _) = (api.status)();
    status.node.ready = false;
    status.node.alarms = vec!["the sky is falling".into()];
    api.status = Arc::new(move || (status.clone(), Extra::default()));
    let http = Http(router(api));
    assert!(http.get("/health/ready").await.problem(503).contains("the sky is falling"));
    assert_eq!(http.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn with_a_token_nothing_but_health_is_answered_without_it() {
    let http = Http(router(Api { token: Some("s3cret".into()), ..empty_api() }));
    let ask = async |uri: &str, token: &str| {
        let request = Request::builder().uri(uri).header("authorization", token).body(Body::empty());
        http.send(request.expect("a request")).await
    };
    for uri in [
        "/v1/db/foo/a",
        "/v1/tree",
        "/v1/keys/a",
        "/v1/shared",
        "/v1/why/foo/a",
        "/v1/export",
        "/v1/status",
        "/metrics",
    ] {
        let refused = http.get(uri).await;
        assert!(refused.problem(401).contains("Authorization: Bearer"), "{uri}");
        assert_eq!(refused.headers[header::WWW_AUTHENTICATE], "Bearer");
        for wrong in ["Bearer s3cret2", "Bearer S3cret", "Bearer ", "s3cret", "Basic s3cret"] {
            ask(uri, wrong).await.problem(401);
        }
        assert_ne!(ask(uri, "Bearer s3cret").await.status, 401, "{uri}");
    }
    http.put("/v1/db/foo/a", "v").await.problem(401);
    http.get("/v1/changes").await.problem(401);
    http.call("PATCH", "/v1/db/foo/a", "v").await.problem(401);
    for uri in ["/health/live", "/health/ready"] {
        assert_eq!(http.get(uri).await.status, 200);
    }
}

#[tokio::test]
async fn a_web_page_cannot_use_a_node_without_a_token() {
    let http = Http::new();
    let request = Request::builder().uri("/v1/tree").header("origin", "https://example.com").body(Body::empty());
    http.send(request.expect("a request")).await.problem(403);
}

#[tokio::test]
async fn an_unknown_path_or_method_is_problem_json() {
    let http = Http::new();
    for uri in ["/", "/v1", "/v1/db", "/v1/db/", "/v1/keys", "/v2/db/foo/a", "/health"] {
        http.get(uri).await.problem(404);
    }
    for (method, uri, allowed) in [
        ("PATCH", "/v1/db/foo/a", "GET,HEAD,PUT,POST,DELETE"),
        ("PUT", "/v1/tree/foo", "GET,HEAD,DELETE"),
        ("POST", "/v1/shared", "GET,HEAD"),
        ("GET", "/v1/import", "POST"),
        ("POST", "/health/live", "GET,HEAD"),
    ] {
        let answer = http.call(method, uri, "").await;
        assert!(answer.problem(405).contains(method), "{method} {uri}");
        assert_eq!(answer.headers[header::ALLOW], allowed, "{method} {uri}");
    }
}

#[tokio::test]
async fn head_answers_as_get_does_but_for_the_body() {
    let http = Http::with(&[("/v1/db/foo/a", "v")]).await;
    let (get, head) = (http.get("/v1/db/foo/a").await, http.call("HEAD", "/v1/db/foo/a", "").await);
    assert_eq!((head.status, head.kind(), head.body.len()), (200, get.kind(), 0));
    assert_eq!(http.call("HEAD", "/v1/db/foo/absent", "").await.status, 404);
    let not_allowed = http.call("HEAD", "/v1/import", "").await;
    assert_eq!((not_allowed.status, not_allowed.kind()), (405, "application/problem+json"));
}

// ---- /v1/why ----------------------------------------------------------------------------------

#[tokio::test]
async fn why_names_the_winner_and_what_lost_against_it() {
    let http = Http::with(&[("/v1/db/foo/a", "one"), ("/v1/db/foo/a", "two")]).await;
    let late = r#"{"owner":null,"path":"/foo/a","value":"late","stamp":"1700000000000.0@02:00:00:00:00:09#HASH"}"#;
    let hash = crate::core::register::value_hash(Some(&crate::core::path::Value::new("late").expect("a value")));
    let late = late.replace("1700000000000", "1710000000000").replace("HASH", &format!("{hash:016x}"));
    assert_eq!(http.call("POST", "/v1/import", late).await.json()["lost"], 1);
    let why = http.get("/v1/why/foo/a").await.json();
    assert_eq!((&why["winner"]["value"], &why["winner"]["origin"]), (&json!("two"), &json!(EID)));
    assert_eq!((&why["shared"], &why["arrived"], &why["owner"]), (&json!("global"), &json!("local"), &json!(null)));
    let losers = why["losers"].as_array().expect("losers");
    let told: Vec<_> = losers.iter().map(|loser| (loser["value"].as_str(), loser["how"].as_str())).collect();
    assert_eq!(told, [(Some("late"), Some("late")), (Some("one"), Some("overwritten"))]);
    assert_eq!(losers[0]["lost_to"], why["winner"]["stamp"]);
    assert_eq!(losers[0]["origin"], "02:00:00:00:00:09");
    http.delete("/v1/db/foo/a").await.json();
    let why = http.get("/v1/why/foo/a").await.json();
    assert_eq!((&why["winner"]["value"], &why["losers"][0]["value"]), (&json!(null), &json!("two")));
}

#[tokio::test]
async fn why_of_what_never_was_or_is_no_record_says_so() {
    let http = Http::with(&[]).await;
    assert!(http.get("/v1/why/foo/absent").await.problem(404).contains("nothing stands at '/foo/absent'"));
    assert!(http.get("/v1/why/__asterisk_shared_family/foo").await.problem(404).contains("kept by the program itself"));
    assert!(http.get("/v1/why/foo").await.problem(400).contains("a family and a key"));
}

// ---- /v1/backup -------------------------------------------------------------------------------

#[tokio::test]
async fn a_backup_is_whole_and_of_now() {
    use crate::core::backup::{Decoder, PREAMBLE_BYTES, Piece};
    let http = Http::with(&[("/v1/db/foo/a", "v")]).await;
    let backup = http.get("/v1/backup").await;
    assert_eq!((backup.status, backup.kind()), (200, "application/octet-stream"));
    let (preamble, mut rest) = backup.body.split_first_chunk::<PREAMBLE_BYTES>().expect("a preamble");
    let mut decoder = Decoder::begin(preamble).expect("a backup");
    let mut records = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk() {
        let (row, behind) = behind.split_at(decoder.row_bytes(header).expect("a length"));
        match decoder.piece(header, row).expect("a piece") {
            Piece::Head(head) => assert_eq!(head.taken_unix_ms, now()),
            Piece::Records(more) => records.extend(more),
            _ => {}
        }
        rest = behind;
    }
    decoder.finish().expect("whole");
    let paths: Vec<String> = records.iter().map(|record| record.key.path.to_string()).collect();
    // The books come first: that the node shares foo.
    assert!(paths.len() == 2 && paths[0].starts_with("/__kinfolk/share/") && paths[1] == "/foo/a", "{paths:?}");
}

#[tokio::test]
async fn who_is_not_in_the_books_cannot_be_decommissioned() {
    let http = Http::with(&[]).await;
    let body = r#"{"standing":"decommissioned"}"#;
    let detail = http.call("PUT", "/v1/members/02:00:00:00:00:09", body).await.problem(404);
    assert!(detail.contains("02:00:00:00:00:09"), "{detail}");
    assert!(http.call("PUT", "/v1/members/nobody", body).await.problem(400).contains("'nobody' is no EID"));
    let detail = http.call("PUT", "/v1/members/02:00:00:00:00:09", r#"{"standing":"gone"}"#).await.problem(400);
    assert!(detail.contains("decommissioned"), "{detail}");
}

#[tokio::test]
async fn an_empty_quarantine_is_listed_and_has_nothing_to_adopt_or_drop() {
    let http = Http::with(&[]).await;
    assert_eq!(http.call("GET", "/v1/quarantine", "").await.json(), json!({ "entries": [] }));
    assert!(http.call("POST", "/v1/quarantine/foo/a", "").await.problem(404).contains("nothing is in quarantine"));
    assert!(http.call("DELETE", "/v1/quarantine/foo/a", "").await.problem(404).contains("nothing is in quarantine"));
}
