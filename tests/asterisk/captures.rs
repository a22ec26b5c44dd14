//! What real patched Asterisks sent is sent to a node, byte for byte but for the entity tags, which are the node's.

use std::net::UdpSocket;
use std::time::Duration;

use kinfolk::asterisk::message::{Message, Response};
use simulations::asterisk::captures::{self, Captured};

use crate::common::{self, TestFleet};
use crate::world::{SHARED, free_port};

const STARTUP: &str = include_str!("../fixtures/asterisk/01-startup-refresh-put-del.txt");
const DELETES: &str = include_str!("../fixtures/asterisk/02-del-deltree.txt");
const REFRESH: &str = include_str!("../fixtures/asterisk/03-refresh.txt");
const EDGE: &str = include_str!("../fixtures/asterisk/04-edge.txt");
const AST1: &str = "127.0.0.11:5060";

/// A node to which the captured ast1 is attached, and a socket that speaks for it.
struct Replay {
    fleet: TestFleet,
    socket: UdpSocket,
    etag: Option<String>,
}

impl Replay {
    fn start() -> Self {
        let (sip, socket) = (free_port(), UdpSocket::bind("127.0.0.1:0").expect("a free port"));
        let mut plan = common::plan(1, &SHARED);
        let own = socket.local_addr().expect("bound");
        plan.nodes[0].more = format!(
            "[sip]\nlisten = [\"udp:{sip}\"]\n[[asterisk]]\nname = \"ast1\"\neid = \"02:00:00:00:00:01\"\nuri = \"sip:ast2@{own}\"\n"
        );
        socket.connect(sip).expect("connected");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        Self { fleet: common::start(plan), socket, etag: None }
    }

    /// Sends a captured request with the node's own entity tag; requests of the node are left unanswered.
    fn ask(&mut self, captured: &Captured) -> Response {
        let line = |line: &str| match (line.split_once(": "), &self.etag) {
            (Some(("SIP-If-Match", _)), Some(etag)) => format!("SIP-If-Match: {etag}"),
            _ => line.to_string(),
        };
        let (head, body) = captured.text().split_once("\r\n\r\n").expect("an empty line");
        let head: Vec<_> = head.split("\r\n").map(line).collect();
        self.socket.send(format!("{}\r\n\r\n{body}", head.join("\r\n")).as_bytes()).expect("sent");
        let mut buffer = [0; 8_192];
        loop {
            let length = self.socket.recv(&mut buffer).expect("an answer");
            if let Ok(Message::Response(response)) = Message::parse(&buffer[..length]) {
                self.etag = response.headers.get("SIP-ETag").map(str::to_string).or(self.etag.take());
                return response;
            }
        }
    }

    fn value(&self, path: &str) -> Option<String> {
        self.fleet.api(0).value(path).expect("answered")
    }
}

#[test]
fn every_captured_request_is_taken_for_what_it_means() {
    let mut replay = Replay::start();
    let mut seen = 0;
    for capture in [STARTUP, DELETES, REFRESH, EDGE] {
        for captured in captures::read(capture).iter().filter(|one| one.is_request() && one.from == AST1) {
            let response = replay.ask(captured);
            assert_eq!(response.status, 200, "{}", captured.text());
            assert_eq!(response.headers.get("Expires"), Some("3600"));
            for copied in ["Call-ID", "CSeq", "From"] {
                assert_eq!(response.headers.get(copied), captured.header(copied));
            }
            seen += 1;
        }
        if capture == DELETES {
            assert_eq!((replay.value("/foo/k1"), replay.value("/foo/k2").as_deref()), (None, Some("v2")));
            assert_eq!(replay.value("/foo/sub/k3").as_deref(), Some("v3"));
            assert_eq!(replay.value("/02:00:00:00:00:01/uni/k2"), None);
            assert_eq!(replay.value("/02:00:00:00:00:01/uni/k1").as_deref(), Some("u1"));
        }
    }
    assert_eq!(seen, 29);
    // The answer to a refresh with full keys stands where it belongs, and nowhere else.
    for (path, value) in [
        ("/foo/a", "1"),
        ("/foo/c/d", "3"),
        ("/02:00:00:00:00:01/uni/x", "10"),
        ("/foo/a/b/c", "x"),
        ("/foo/clé-é", "żółw ☃ 😀"),
        ("/foo/q\"uote's", "say \"hi\" \\ back\\slash, comma, {json} </x> tab\there"),
        ("/foo/empty", ""),
        ("/foo/newline", "line1\nline2\r\nline3"),
        ("/foo/ctl", "a\u{1}b\u{1f}c\u{7f}d"),
    ] {
        assert_eq!(replay.value(path).as_deref(), Some(value), "{path}");
    }
    let export = replay.fleet.api(0).export().expect("an export");
    assert!(!export.contains("foo//foo") && !export.contains("uni/uni"), "{export}");
    let longest = replay.value(&format!("/foo/{}", "K".repeat(250)));
    assert_eq!(longest.as_deref(), Some("n250"));
    assert_eq!(replay.value("/foo/val1000").map(|value| value.len()), Some(1_000));
}

#[test]
fn a_repeated_request_gets_the_same_answer_and_writes_nothing() {
    let mut replay = Replay::start();
    let messages = captures::read(STARTUP);
    let requests: Vec<_> = messages.iter().filter(|one| one.is_request() && one.from == AST1).collect();
    replay.ask(requests[0]);
    let etag = replay.etag.clone();
    let first = replay.ask(requests[1]);
    replay.fleet.api(0).put("/foo/k1", "newer").expect("written");
    replay.etag = etag;
    let again = replay.ask(requests[1]);
    assert_eq!(first, again);
    assert_eq!(replay.value("/foo/k1").as_deref(), Some("newer"));
}
