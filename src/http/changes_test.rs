//! Watchers on real sockets, against a node in memory.

use std::net::SocketAddr;

use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::core::path::{Path, Value};
use crate::core::replica::{Input, Outcome};
use crate::http::tests::empty_api;
use crate::http::{ConnectionLimits, LimitedListener, router};
use crate::store::memory::MemoryReads;
use crate::store::writer::Database;

const PATIENCE: Duration = Duration::from_secs(10);

/// A node that serves HTTP.
struct Served {
    address: SocketAddr,
    database: Database<MemoryReads>,
    stop: CancellationToken,
}

async fn serve() -> Served {
    let stop = CancellationToken::new();
    let api = crate::http::Api { watchers: Watchers::new(stop.clone()), ..empty_api() };
    let database = api.database.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let listener = LimitedListener::new(listener, ConnectionLimits::default());
    tokio::spawn(async move { axum::serve(listener, router(api)).await });
    Served { address, database, stop }
}

impl Served {
    async fn with(families: &[&str]) -> Self {
        let served = serve().await;
        for family in families {
            served.share(family).await;
        }
        served
    }

    async fn share(&self, family: &str) {
        let input = Input::Share { family: Family::new(family).expect("a family"), mode: Mode::Global };
        assert_eq!(self.database.submit(input).await, Ok(Outcome::Shared));
    }

    async fn put(&self, path: &str, value: &str) {
        let (path, value) = (Path::new(path).expect("a path"), Value::new(value).expect("a value"));
        let outcome = self.database.submit(Input::Put { path, value }).await;
        assert!(matches!(outcome, Ok(Outcome::Written { .. })), "{outcome:?}");
    }

    async fn delete(&self, path: &str) {
        let outcome = self.database.submit(Input::Delete { path: Path::new(path).expect("a path") }).await;
        assert!(matches!(outcome, Ok(Outcome::Written { .. })), "{outcome:?}");
    }

    async fn watch(&self, query: &str, last_event_id: Option<&str>) -> Watcher {
        let mut stream = TcpStream::connect(self.address).await.expect("connects");
        let header = last_event_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let request = format!("GET /v1/changes{query} HTTP/1.1\r\nHost: node\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        Watcher { stream: BufReader::new(stream), text: String::new(), head: String::new() }.read_head().await
    }
}

#[derive(Debug, PartialEq)]
struct Event {
    id: String,
    kind: String,
    data: Json,
}

impl Event {
    fn seq(&self) -> u64 {
        self.id.split_once(':').expect("run:seq").1.parse().expect("a number")
    }

    /// Path and value.
    fn change(&self) -> (&str, Option<&str>) {
        assert_eq!(self.kind, "change");
        (self.data["path"].as_str().expect("a path"), self.data["value"].as_str())
    }
}

/// Reads a chunked answer as events.
struct Watcher {
    stream: BufReader<TcpStream>,
    /// What has arrived and is not a whole event yet.
    text: String,
    head: String,
}

impl Watcher {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.expect("readable");
        line
    }

    async fn read_head(mut self) -> Self {
        loop {
            let line = self.line().await;
            if line.trim().is_empty() {
                return self;
            }
            self.head.push_str(&line.to_lowercase());
        }
    }

    /// One more chunk; false at the end.
    async fn chunk(&mut self) -> bool {
        let line = self.line().await;
        let Ok(length) = usize::from_str_radix(line.trim(), 16) else { return false };
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk).await.expect("a whole chunk");
        self.text.push_str(std::str::from_utf8(&chunk[..length]).expect("UTF-8, pages are whole events"));
        length > 0
    }

    /// The next event; none if the stream ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_string();
                self.text = rest.to_string();
                if event == ":" {
                    continue;
                }
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name)).expect("the field is there");
                    line.to_string()
                };
                let data = serde_json::from_str(&field("data: ")).expect("JSON");
                return Some(Event { id: field("id: "), kind: field("event: "), data });
            }
            if !tokio::time::timeout(PATIENCE, self.chunk()).await.expect("something comes in time") {
                return None;
            }
        }
    }

    async fn event(&mut self) -> Event {
        self.next().await.expect("the stream goes on")
    }

    async fn reset(&mut self) {
        let event = self.event().await;
        assert_eq!((event.kind.as_str(), &event.data), ("reset", &json!({})));
        assert_eq!(event.seq(), 0);
    }
}

#[tokio::test]
async fn a_watcher_gets_the_full_state_and_then_each_change() {
    let node = Served::with(&["foo"]).await;
    node.put("/foo/a", "1").await;
    node.put("/foo/b", "2").await;
    node.put("/local/a", "not told").await;
    node.delete("/foo/b").await;
    let mut watcher = node.watch("", None).await;
    assert!(watcher.head.contains("200 ok") && watcher.head.contains("content-type: text/event-stream"));
    watcher.reset().await;
    let first = watcher.event().await;
    assert_eq!(first.change(), ("/foo/a", Some("1")));
    let fields: Vec<_> = first.data.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["owner", "path", "stamp", "value"], "as an export's line has it");
    assert_eq!(watcher.event().await.change(), ("/foo/b", None));
    node.put("/foo/a", "3").await;
    node.put("/local/a", "not told either").await;
    node.delete("/foo/a").await;
    let last = loop {
        let event = watcher.event().await;
        if event.change().1.is_none() {
            break event;
        }
        assert_eq!(event.change(), ("/foo/a", Some("3")));
    };
    assert_eq!(last.change(), ("/foo/a", None));
}

#[tokio::test]
async fn a_watcher_that_comes_back_gets_what_it_has_not_seen_and_no_more() {
    let node = Served::with(&["foo"]).await;
    for n in 0..5 {
        node.put(&format!("/foo/{n}"), "old").await;
    }
    let mut watcher = node.watch("", None).await;
    watcher.reset().await;
    let mut events = Vec::new();
    for _ in 0..5 {
        events.push(watcher.event().await);
    }
    drop(watcher);
    node.put("/foo/0", "new").await;
    for (query, header) in
        [(format!("?since={}", events[2].id), None), ("?since=0000000000000001:0".to_string(), Some(&*events[2].id))]
    {
        let mut again = node.watch(&query, header).await;
        assert_eq!(again.event().await, events[3], "{query} {header:?}");
        assert_eq!(again.event().await, events[4]);
        assert_eq!(again.event().await.change(), ("/foo/0", Some("new")));
    }
}

#[tokio::test]
async fn a_place_that_the_store_does_not_know_begins_anew() {
    let node = Served::with(&["foo"]).await;
    node.put("/foo/a", "1").await;
    for since in ["00000000deadbeef:1", "0000000000000001:999", "0000000000000001:0"] {
        let mut watcher = node.watch(&format!("?since={since}"), None).await;
        watcher.reset().await;
        assert_eq!(watcher.event().await.change(), ("/foo/a", Some("1")), "{since}");
    }
}

#[tokio::test]
async fn what_is_no_place_in_the_changes_is_refused() {
    let node = Served::with(&[]).await;
    for query in ["?since=5", "?since=x:1", "?since=1:-1", "?since=", "?from=1:1"] {
        assert!(node.watch(query, None).await.head.contains("400 bad request"), "{query}");
    }
    assert!(node.watch("", Some("\u{fc}")).await.head.contains("400 bad request"));
}

#[tokio::test]
async fn changes_of_several_families_come_in_one_order_and_none_is_missed() {
    let node = Served::with(&["a/x", "a/y", "b"]).await;
    let count = PAGE_MAX_ENTRIES as u64 * 2 + 50;
    for n in 0..count {
        let family = ["a/x", "b", "a/y", "a/z"][(n % 4) as usize];
        node.put(&format!("/{family}/{n}"), "v").await;
    }
    let mut watcher = node.watch("", None).await;
    watcher.reset().await;
    let (mut last, mut paths) = (0, std::collections::BTreeSet::new());
    let shared = (0..count).filter(|n| n % 4 != 3).count();
    while paths.len() < shared {
        let event = watcher.event().await;
        assert!(event.seq() > last);
        last = event.seq();
        assert!(paths.insert(event.change().0.to_string()), "each once");
    }
    assert!(paths.iter().all(|path| !path.starts_with("/a/z/")));
}

#[tokio::test]
async fn a_family_that_is_shared_or_unshared_meanwhile_begins_anew() {
    let node = Served::with(&["foo"]).await;
    node.put("/bar/a", "before it was shared").await;
    let mut watcher = node.watch("", None).await;
    watcher.reset().await;
    node.share("bar").await;
    watcher.reset().await;
    let event = watcher.event().await;
    assert_eq!(event.change(), ("/bar/a", Some("before it was shared")));
    let family = Family::new("bar").expect("a family");
    assert_eq!(node.database.submit(Input::Unshare { family }).await, Ok(Outcome::Unshared));
    watcher.reset().await;
    node.share("bar").await;
    let mut later = node.watch(&format!("?since={}", event.id), None).await;
    later.reset().await;
}

#[tokio::test]
async fn a_slow_watcher_costs_lag_and_no_memory() {
    let node = Served::with(&["foo"]).await;
    let mut watcher = node.watch("", None).await;
    watcher.reset().await;
    // 64 MB in all, more than the sockets of the system hold by far.
    let rounds = 1_000;
    let filler = "v".repeat(64_000);
    for round in 0..rounds {
        node.put("/foo/big", &format!("{filler}{round}")).await;
    }
    let last = format!("{filler}{}", rounds - 1);
    let mut told = 0;
    while watcher.event().await.change() != ("/foo/big", Some(&*last)) {
        told += 1;
    }
    assert!(told < rounds - 1, "what was overwritten meanwhile is not told: {told} were");
}

#[tokio::test]
async fn a_stream_ends_when_the_node_stops_and_one_too_many_is_told_to_wait() {
    let node = Served::with(&["foo"]).await;
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS_MAX {
        let mut watcher = node.watch("", None).await;
        watcher.reset().await;
        watchers.push(watcher);
    }
    assert!(node.watch("", None).await.head.contains("503 service unavailable"));
    drop(watchers.pop());
    let freed = async {
        while !node.watch("", None).await.head.contains("200 ok") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("one that goes away makes room");
    node.stop.cancel();
    assert_eq!(watchers[0].next().await, None);
}
