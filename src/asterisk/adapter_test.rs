//! The adapter over a replica in memory: what is answered to whom, what becomes of it, and what goes out.

use super::adapter::{
    Adapter, AddressBlock, AttachmentSettings, Credentials, Destination, Effect, Event, Moment, Quotas, RefusedReason,
    Remote, Sight, Times, Transport,
};
use super::body::{Body, Content, DbState, Verb};
use super::digest::{Algorithm, Authorization, Challenge};
use super::message::{Headers, Message, Request, Response};
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::path::{Family, Limits, Path, Value};
use crate::core::record::{Record, RecordKey};
use crate::core::register::{Register, value_hash};
use crate::core::replica::{Apply, Input, Outcome, Replica, Settings};
use crate::core::storage::{Read, Run, StoreError};
use crate::store::memory::MemoryStore;

const NODE: Eid = Eid::new([2, 0, 0, 0, 1, 0]);
const AST: Eid = Eid::new([2, 0, 0, 0, 0, 1]);
const OTHER: Eid = Eid::new([2, 0, 0, 0, 0, 9]);
const START: Moment = 1_790_000_000_000;

fn settings() -> AttachmentSettings {
    AttachmentSettings {
        name: "ast1".into(),
        eid: AST,
        uri: "sip:ast1@10.1.0.1:5060".into(),
        transport: Transport::Udp,
        from: "sip:kinfolk@10.0.0.1".into(),
        sent_by: "10.0.0.1:5060".into(),
        listen_user: "kinfolk".into(),
        credentials: None,
        algorithm: Algorithm::Md5,
        accept_from: vec![AddressBlock { address: "10.1.0.0".parse().expect("an address"), prefix_bits: 24 }],
        families: Vec::new(),
        allow_family_delete: false,
        quotas: Quotas::default(),
        limits: Limits::default(),
        times: Times::default(),
    }
}

/// A node with one attachment; what is to be committed is committed at once.
struct Rig {
    replica: Replica<MemoryStore>,
    adapter: Adapter,
    now: Moment,
    etag: Option<String>,
    cseq: u32,
    branch: u32,
    call_id: String,
    /// What was sent to the Asterisk's URI.
    out: Vec<Request>,
    refused: Vec<RefusedReason>,
    lines: Vec<String>,
    fails: bool,
    from: &'static str,
}

impl Rig {
    fn with(settings: AttachmentSettings) -> Self {
        let mut replica = Replica::open(MemoryStore::default(), Settings::new(NODE), Run(1), START).expect("opens");
        let share = |name, mode| Input::Share { family: Family::new(name).expect("a family"), mode };
        replica.handle(vec![share("foo", Mode::Global), share("uni", Mode::Unique)], START).expect("commits");
        let adapter = Adapter::new(NODE, vec![settings], [1; 32]);
        Self {
            replica,
            adapter,
            now: START,
            etag: None,
            cseq: 100,
            branch: 0,
            call_id: "call-1".into(),
            out: Vec::new(),
            refused: Vec::new(),
            lines: Vec::new(),
            fails: false,
            from: "10.1.0.1:5060",
        }
    }

    fn new() -> Self {
        Self::with(settings())
    }

    /// Our publication is established, and the question after it answered with nothing.
    fn settled() -> Self {
        let mut rig = Self::new();
        rig.settle();
        rig
    }

    fn settle(&mut self) {
        self.event(Event::Woken);
        for _ in 0..3 {
            self.accept_all();
            self.now += 6_000;
            self.event(Event::Timer);
        }
        self.accept_all();
        self.out.clear();
    }

    /// Hands in an event and does what comes of it; gives the answers.
    fn event(&mut self, event: Event) -> Vec<Response> {
        let (mut events, mut answers) = (vec![event], Vec::new());
        while !events.is_empty() {
            let event = events.remove(0);
            let read = self.replica.read().expect("reads");
            let sight = Sight { read: &read, ledger: self.replica.ledger(), ready: true };
            let effects = self.adapter.handle(event, self.now, sight);
            drop(read);
            for effect in effects {
                match effect {
                    Effect::Send { to: Destination::Reply(_), bytes } => match Message::parse(&bytes) {
                        Ok(Message::Response(response)) => answers.push(response),
                        other => panic!("no response but {other:?}"),
                    },
                    Effect::Send { bytes, .. } => match Message::parse(&bytes) {
                        Ok(Message::Request(request)) => {
                            assert!(bytes.len() < 4_000, "{} bytes", bytes.len());
                            self.out.push(request);
                        }
                        other => panic!("no request but {other:?}"),
                    },
                    Effect::Submit { attachment, input } => {
                        let outcome = self.commit(input);
                        events.push(Event::Committed { attachment, outcome });
                    }
                    Effect::Refused(refused) => {
                        self.refused.push(refused.reason);
                        self.lines.push(refused.line);
                    }
                }
            }
        }
        answers
    }

    fn commit(&mut self, input: Input) -> Result<Outcome, StoreError> {
        if self.fails {
            self.replica.store_mut().fail_next_commit(StoreError::Full);
        }
        let result = self.replica.handle(vec![input], self.now);
        self.replica.store_mut().forget_planned_failures();
        result.map(|mut committed| committed.outcomes.remove(0))
    }

    fn request(&mut self, body: &str) -> Request {
        self.cseq += 1;
        self.branch += 1;
        let mut headers = Headers::default()
            .with("Via", format!("SIP/2.0/UDP 10.1.0.1:5060;rport;branch=z9hG4bKPj{}", self.branch))
            .with("From", "<sip:ast1@10.1.0.1>;tag=t")
            .with("To", "<sip:kinfolk@10.0.0.1>")
            .with("Call-ID", &self.call_id)
            .with("CSeq", format!("{} PUBLISH", self.cseq))
            .with("Event", "asterisk-db")
            .with("Expires", "3600");
        if let Some(etag) = &self.etag {
            headers.push("SIP-If-Match", etag);
        }
        if !body.is_empty() {
            headers.push("Content-Type", "application/json");
        }
        Request { method: "PUBLISH".into(), uri: "sip:kinfolk@10.0.0.1:5060".into(), headers, body: body.into() }
    }

    fn receive(&mut self, request: &Request) -> Vec<Response> {
        let from = Remote { transport: Transport::Udp, address: self.from.parse().expect("an address"), connection: 0 };
        self.event(Event::Received { from, bytes: request.print() })
    }

    fn send(&mut self, request: &Request) -> Response {
        let mut answers = self.receive(request);
        assert_eq!(answers.len(), 1, "one answer");
        let answer = answers.remove(0);
        if answer.status == 200 && request.method == "PUBLISH" {
            self.etag = answer.headers.get("SIP-ETag").map(str::to_owned);
        }
        answer
    }

    fn publish(&mut self, body: &str) -> u16 {
        let request = self.request(body);
        self.send(&request).status
    }

    fn put(&mut self, key: &str, value: &str) -> u16 {
        self.publish(&state("put", "foo", "global", &format!(r#"[{{"key":"{key}","data":"{value}"}}]"#)))
    }

    /// Accepts what was sent last, as the Asterisk would.
    fn accept_all(&mut self) -> usize {
        let mut accepted = 0;
        let mut at = 0;
        while at < self.out.len() {
            let request = self.out[at].clone();
            at += 1;
            accepted += 1;
            self.answer(&request, 200, &[("SIP-ETag", &format!("e{accepted}.{}", self.now)), ("Expires", "3600")]);
        }
        accepted
    }

    fn answer(&mut self, request: &Request, status: u16, extra: &[(&str, &str)]) {
        let mut response = Response::new(status);
        for name in ["Via", "Call-ID", "From", "To", "CSeq"] {
            response.headers.push(name, request.headers.get(name).expect("it is there"));
        }
        for (name, value) in extra {
            response.headers.push(name, value);
        }
        let from = Remote { transport: Transport::Udp, address: self.from.parse().expect("an address"), connection: 0 };
        self.event(Event::Received { from, bytes: response.print() });
    }

    fn get(&self, path: &str) -> Option<String> {
        self.record(&RecordKey::plain(Path::new(path).expect("a path")))
    }

    fn record(&self, key: &RecordKey) -> Option<String> {
        let stored = self.replica.read().expect("reads").record(key).expect("reads")?;
        stored.register.value().map(ToString::to_string)
    }

    fn write_here(&mut self, path: &str, value: &str) {
        let input = Input::Put { path: Path::new(path).expect("a path"), value: Value::new(value).expect("a value") };
        self.commit(input).expect("commits");
        self.event(Event::Woken);
    }

    fn delete_here(&mut self, path: &str) {
        self.commit(Input::Delete { path: Path::new(path).expect("a path") }).expect("commits");
        self.event(Event::Woken);
    }

    /// A unique record of another server arrives.
    fn arrives(&mut self, owner: Eid, path: &str, value: Option<&str>) {
        self.now += 1;
        let value = value.map(|value| Value::new(value).expect("a value"));
        let hlc = crate::core::clock::Hlc::from_parts(self.now, 0).expect("in range");
        let stamp = crate::core::clock::Stamp { hlc, eid: OTHER, hash: value_hash(value.as_ref()) };
        let key = RecordKey::owned(owner, Path::new(path).expect("a path"));
        let records = vec![Record { key, register: Register::new(value, stamp), crossed: false }];
        let apply = Apply {
            source: OTHER,
            crossing: false,
            family: Family::new("uni").expect("a family"),
            mode: Mode::Unique,
            since: None,
            records,
            cursor: None,
            drop_cursor: None,
        };
        self.commit(Input::Apply(apply)).expect("commits");
        self.event(Event::Woken);
    }

    /// The last body that was sent, as (verb, family, mode, EID, entries).
    fn last_body(&self) -> (Verb, String, Mode, Eid, Vec<(String, String)>) {
        let body = Body::parse(&self.out.last().expect("something was sent").body).expect("a body");
        let Content::State(DbState { verb, family, mode, entries }) = body.content else { panic!("a question") };
        let entries =
            entries.expect("never null").into_iter().map(|entry| (entry.key, entry.data.expect("always data")));
        (verb, family, mode, body.eid, entries.collect())
    }

    fn status(&self) -> super::adapter::AttachmentStatus {
        let read = self.replica.read().expect("reads");
        let sight = Sight { read: &read, ledger: self.replica.ledger(), ready: true };
        self.adapter.status(sight).remove(0)
    }
}

fn state(verb: &str, family: &str, mode: &str, entries: &str) -> String {
    format!(
        r#"{{"type":"dbstate","eid":"02:00:00:00:00:01","dbstate":{{"verb":"{verb}","family":"{family}","share_type":"{mode}","entries":{entries}}}}}"#
    )
}

const REFRESH: &str = r#"{"type":"refresh","eid":"02:00:00:00:00:01"}"#;

// ---- what comes in ------------------------------------------------------------------------------

#[test]
fn an_update_is_durable_and_answered_with_an_etag() {
    let mut rig = Rig::settled();
    let request = rig.request(&state("put", "foo", "global", r#"[{"key":"k1","data":"v1"},{"key":"a/b","data":""}]"#));
    let answer = rig.send(&request);
    assert_eq!((answer.status, answer.headers.get("Expires")), (200, Some("3600")));
    assert!(answer.headers.get("SIP-ETag").is_some_and(|etag| !etag.is_empty()));
    assert!(answer.headers.get("Via").is_some_and(|via| via.contains(";rport=5060;received=10.1.0.1;branch=")));
    assert!(answer.headers.get("To").is_some_and(|to| to.contains(";tag=")));
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("v1"));
    assert_eq!(rig.get("/foo/a/b").as_deref(), Some(""));
    assert_eq!(rig.publish(&state("delete", "foo", "global", r#"[{"key":"k1","data":""}]"#)), 200);
    assert_eq!(rig.get("/foo/k1"), None);
    assert!(rig.out.is_empty(), "what was never pushed is not echoed: {:?}", rig.out);
}

#[test]
fn a_unique_update_is_the_asterisks_own_copy() {
    let mut rig = Rig::settled();
    assert_eq!(rig.publish(&state("put", "uni", "unique", r#"[{"key":"k1","data":"u1"}]"#)), 200);
    let own = RecordKey::owned(AST, Path::new("/uni/k1").expect("a path"));
    assert_eq!(rig.record(&own).as_deref(), Some("u1"));
    assert_eq!(rig.publish(&state("delete", "uni", "unique", r#"[{"key":"k1","data":""}]"#)), 200);
    assert_eq!(rig.record(&own), None);
}

#[test]
fn nothing_is_answered_200_before_it_is_durable() {
    let mut rig = Rig::settled();
    rig.fails = true;
    let request = rig.request(&state("put", "foo", "global", r#"[{"key":"k1","data":"v1"}]"#));
    assert_eq!(rig.receive(&request), vec![], "the disk is full: the sender waits");
    assert_eq!(rig.receive(&request), vec![], "and repeats");
    rig.fails = false;
    rig.now += 1_000;
    let answers = rig.event(Event::Timer);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200]);
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("v1"));
}

#[test]
fn a_retransmission_gets_the_same_answer_and_is_no_new_write() {
    let mut rig = Rig::settled();
    let request = rig.request(&state("put", "foo", "global", r#"[{"key":"k1","data":"v1"}]"#));
    let answer = rig.send(&request);
    rig.write_here("/foo/k1", "newer");
    assert_eq!(rig.receive(&request), vec![answer.clone()]);
    // After a restart of the node nobody remembers the transaction, but the link is on disk.
    rig.adapter = Adapter::new(NODE, vec![settings()], [2; 32]);
    let again = rig.send(&request);
    assert_eq!((again.status, again.headers.get("SIP-ETag")), (200, answer.headers.get("SIP-ETag")));
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("newer"));
}

#[test]
fn a_stale_etag_gets_412_and_the_same_body_after_it_is_no_new_write() {
    let mut rig = Rig::settled();
    let before = rig.etag.clone();
    assert_eq!(rig.put("k1", "v1"), 200);
    rig.write_here("/foo/k1", "newer");
    // The sender never got the 200, and goes on with what it has.
    rig.etag = before.or(Some("unknown".into()));
    assert_eq!(rig.put("k1", "v1"), 412);
    (rig.etag, rig.call_id) = (None, "call-2".into());
    assert_eq!(rig.put("k1", "v1"), 200);
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("newer"));
    assert_eq!(rig.status().counts.restarts, 0, "the new Call-ID was our doing");
}

#[test]
fn a_publication_can_be_refreshed_and_removed() {
    let mut rig = Rig::settled();
    assert_eq!(rig.publish(""), 400, "neither an ETag nor a body");
    assert_eq!(rig.put("k1", "v1"), 200);
    assert_eq!(rig.publish(""), 200);
    let mut request = rig.request("");
    request.headers.remove("Expires");
    request.headers.push("Expires", "0");
    let answer = rig.send(&request);
    assert_eq!((answer.status, answer.headers.get("Expires")), (200, Some("0")));
    assert_eq!(rig.put("k1", "v2"), 412, "it is over");
}

#[test]
fn an_expired_publication_gets_412_and_a_late_refresh_does_not() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("k1", "v1"), 200);
    rig.now += 3_600_000 + 10_000;
    assert_eq!(rig.publish(""), 200, "the patch refreshes at the very second");
    rig.now += 3_600_000 + 40_000;
    assert_eq!(rig.publish(""), 412);
}

#[test]
fn each_refusal_has_its_status_and_the_header_that_goes_with_it() {
    let good = state("put", "foo", "global", r#"[{"key":"k","data":"v"}]"#);
    let mut rig = Rig::settled();
    let mut changed = |change: &dyn Fn(&mut Request)| {
        let mut request = rig.request(&good);
        change(&mut request);
        rig.send(&request)
    };
    let header = |name: &'static str, value: &'static str| {
        move |request: &mut Request| {
            request.headers.remove(name);
            request.headers.push(name, value);
        }
    };
    let event = changed(&header("Event", "presence"));
    assert_eq!((event.status, event.headers.get("Allow-Events")), (489, Some("asterisk-db")));
    assert_eq!(changed(&|request| request.headers.remove("Event")).status, 489);
    let media = changed(&header("Content-Type", "text/plain"));
    assert_eq!((media.status, media.headers.get("Accept")), (415, Some("application/json")));
    assert_eq!(changed(&|request| request.headers.remove("Content-Type")).status, 415);
    let brief = changed(&header("Expires", "3"));
    assert_eq!((brief.status, brief.headers.get("Min-Expires")), (423, Some("10")));
    let extension = changed(&header("Require", "100rel"));
    assert_eq!((extension.status, extension.headers.get("Unsupported")), (420, Some("100rel")));
    assert_eq!(changed(&|request| request.body = vec![b' '; 40_000]).status, 413);
    assert_eq!(changed(&|request| request.body = b"{}".to_vec()).status, 400);
    assert_eq!(changed(&|request| request.uri = "sip:nobody@10.0.0.1".into()).status, 404);
    assert_eq!(changed(&|request| request.uri = "sip:10.0.0.1".into()).status, 404);
    assert_eq!(changed(&|request| request.uri = "tel:+123".into()).status, 416);
    let other = good.replace("02:00:00:00:00:01", "02:00:00:00:00:02");
    assert_eq!(changed(&|request| request.body = other.clone().into_bytes()).status, 403);
    let method = changed(&|request| {
        request.method = "INVITE".into();
        header("CSeq", "7 INVITE")(request);
    });
    assert_eq!((method.status, method.headers.get("Allow")), (405, Some("PUBLISH, OPTIONS")));
    assert_eq!(changed(&header("Content-Type", "Application/JSON;charset=utf-8")).status, 200);
    assert_eq!(rig.get("/foo/k").as_deref(), Some("v"), "only the last one was taken");
    assert!(rig.status().refused.values().sum::<u64>() >= 8, "{:?}", rig.status().refused);
}

#[test]
fn options_is_answered_200_and_ack_not_at_all() {
    let mut rig = Rig::new();
    let mut request = rig.request("");
    request.method = "OPTIONS".into();
    request.headers.remove("CSeq");
    request.headers.push("CSeq", "1 OPTIONS");
    let answer = rig.send(&request);
    assert_eq!((answer.status, answer.headers.get("Allow")), (200, Some("PUBLISH, OPTIONS")));
    request.method = "ACK".into();
    request.headers.remove("CSeq");
    request.headers.push("CSeq", "1 ACK");
    assert_eq!(rig.receive(&request), vec![]);
}

#[test]
fn strangers_get_no_answer_and_a_line_for_fail2ban() {
    let mut rig = Rig::new();
    rig.from = "192.0.2.7:5060";
    let mut request = rig.request(REFRESH);
    request.headers.remove("From");
    request.headers.push("From", "\"x' failed for '10.1.0.1' (callid: y) - \" <sip:a@b>;tag=1");
    assert_eq!(rig.receive(&request), vec![]);
    assert_eq!(rig.refused, [RefusedReason::Unlisted]);
    assert_eq!(
        rig.lines,
        [
            "Request 'PUBLISH' from '\"x? failed for ?10.1.0.1? ?callid: y? - \" <sip:a@b>;tag=1' failed for '192.0.2.7:5060' (callid: call-1) - No matching endpoint found"
        ]
    );
    let from = Remote { transport: Transport::Udp, address: "192.0.2.7:1".parse().expect("an address"), connection: 0 };
    assert_eq!(rig.event(Event::Received { from, bytes: vec![0xff; 100] }), vec![]);
}

#[test]
fn entries_that_cannot_be_kept_are_counted_and_the_others_are_kept() {
    let mut rig = Rig::settled();
    let entries = r#"[{"key":"good","data":"v"},{"key":"a//b","data":"v"},{"key":"nul","data":"a\u0000"},{"key":"none"},{"key":"","data":"v"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", entries)), 200);
    assert_eq!(rig.get("/foo/good").as_deref(), Some("v"));
    assert_eq!(rig.status().refused.get(&RefusedReason::Entry), Some(&4));
    assert_eq!(rig.publish(&state("put", "bar", "global", r#"[{"key":"k","data":"v"}]"#)), 200, "as the patch does");
    assert_eq!(rig.publish(&state("put", "foo", "unique", r#"[{"key":"k","data":"v"}]"#)), 200);
    assert_eq!(rig.get("/foo/k"), None);
    let refused = rig.status().refused;
    assert_eq!((refused[&RefusedReason::NotShared], refused[&RefusedReason::OtherMode]), (1, 1));
}

#[test]
fn a_delete_of_a_whole_family_is_refused_unless_it_is_allowed() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    assert_eq!(rig.put("b", "2"), 200);
    assert_eq!(rig.publish(&state("delete", "foo", "global", "null")), 403);
    assert_eq!(rig.publish(&state("delete", "foo", "global", r#"[{"key":"b"}]"#)), 200, "it names its key");
    assert_eq!((rig.get("/foo/a").as_deref(), rig.get("/foo/b")), (Some("1"), None));
    let mut allowing = Rig::with(AttachmentSettings { allow_family_delete: true, ..settings() });
    allowing.settle();
    assert_eq!(allowing.put("a", "1"), 200);
    assert_eq!(allowing.publish(&state("delete", "foo", "global", "null")), 200);
    assert_eq!(allowing.get("/foo/a"), None);
}

#[test]
fn an_asterisk_with_a_password_is_challenged_and_let_in() {
    let credentials = Credentials { username: "ast".into(), password: "secret".into() };
    for algorithm in [Algorithm::Md5, Algorithm::Sha256] {
        let mut rig = Rig::with(AttachmentSettings { credentials: Some(credentials.clone()), algorithm, ..settings() });
        let body = state("put", "foo", "global", r#"[{"key":"k1","data":"v1"}]"#);
        let mut request = rig.request(&body);
        let answer = rig.send(&request);
        assert_eq!(answer.status, 401);
        let challenge =
            Challenge::parse(answer.headers.get("WWW-Authenticate").expect("a challenge")).expect("well-formed");
        assert_eq!(challenge.algorithm, algorithm);
        request = rig.request(&body);
        let answer = challenge.answer(&credentials, "PUBLISH", &request.uri, 1, "c");
        let wrong = Authorization { response: "0".repeat(32), ..answer.clone() };
        let mut forged = rig.request(&body);
        forged.headers.push("Authorization", wrong.print());
        assert_eq!(rig.send(&forged).status, 401);
        assert!(rig.lines.last().is_some_and(|line| line.ends_with("- Failed to authenticate")));
        request.headers.push("Authorization", answer.print());
        assert_eq!(rig.send(&request).status, 200);
        assert_eq!(rig.get("/foo/k1").as_deref(), Some("v1"));
        let mut replayed = rig.request(&body);
        replayed.headers.push("Authorization", answer.print());
        let again = rig.send(&replayed);
        assert_eq!(again.status, 401);
        assert!(again.headers.get("WWW-Authenticate").is_some_and(|challenge| challenge.contains("stale=true")));
    }
}

#[test]
fn quotas_refuse_what_is_new_and_delay_what_is_fast() {
    let quotas = Quotas { updates_per_s: 2, keys_max: 2, tombstones_max: 1 };
    let mut rig = Rig::with(AttachmentSettings { quotas, ..settings() });
    rig.settle();
    assert_eq!((rig.put("a", "1"), rig.put("b", "1")), (200, 200));
    let third = rig.request(&state("put", "foo", "global", r#"[{"key":"a","data":"2"}]"#));
    assert_eq!(rig.receive(&third), vec![], "the third within a second waits");
    assert_eq!(rig.get("/foo/a").as_deref(), Some("2"), "though it is done");
    rig.now += 499;
    assert_eq!(rig.event(Event::Timer), vec![]);
    rig.now += 1;
    let answers = rig.event(Event::Timer);
    assert_eq!(answers.len(), 1);
    rig.etag = answers[0].headers.get("SIP-ETag").map(str::to_owned);
    rig.now += 5_000;
    assert_eq!(rig.put("c", "1"), 403, "a third key");
    assert_eq!(rig.put("b", "2"), 200, "not a new one");
    assert_eq!(rig.publish(&state("delete", "foo", "global", r#"[{"key":"a","data":""}]"#)), 200);
    assert_eq!(rig.publish(&state("delete", "foo", "global", r#"[{"key":"b","data":""}]"#)), 403);
    assert_eq!(rig.get("/foo/b").as_deref(), Some("2"));
    assert_eq!(rig.status().refused.get(&RefusedReason::Quota), Some(&2));
    assert_eq!(rig.status().counts.delayed, 1);
}

// ---- what goes out ------------------------------------------------------------------------------

#[test]
fn the_first_publish_says_nothing_and_the_second_asks() {
    let mut rig = Rig::new();
    rig.write_here("/foo/k", "v");
    assert_eq!(rig.out.len(), 1);
    assert_eq!(rig.out[0].headers.get("SIP-If-Match"), None);
    assert_eq!(rig.last_body(), (Verb::Put, "foo".into(), Mode::Global, NODE, vec![]));
    let first = rig.out[0].clone();
    rig.answer(&first, 200, &[("SIP-ETag", "5"), ("Expires", "3600")]);
    assert_eq!(rig.out.len(), 2);
    assert_eq!(rig.out[1].headers.get("SIP-If-Match"), Some("5"));
    assert_eq!(rig.out[1].body, format!("{{\"type\":\"refresh\",\"eid\":\"{NODE}\"}}").into_bytes());
    let second = rig.out[1].clone();
    rig.answer(&second, 200, &[("SIP-ETag", "6"), ("Expires", "3600")]);
    assert_eq!(rig.out.len(), 2, "its content comes first, if it has any");
    rig.now += 5_000;
    rig.event(Event::Timer);
    assert_eq!(rig.last_body(), (Verb::Put, "foo".into(), Mode::Global, NODE, vec![("k".into(), "v".into())]));
}

#[test]
fn changes_go_out_several_in_a_message_of_one_kind_and_never_too_large() {
    let mut rig = Rig::settled();
    for key in 0..100 {
        let path = Path::new(&format!("/foo/key-{key:03}")).expect("a path");
        rig.commit(Input::Put { path, value: Value::new(&"x".repeat(60)).expect("a value") }).expect("commits");
    }
    rig.commit(Input::Delete { path: Path::new("/foo/key-050").expect("a path") }).expect("commits");
    rig.event(Event::Woken);
    let messages = rig.accept_all();
    let bodies: Vec<Body> = rig.out.iter().map(|request| Body::parse(&request.body).expect("a body")).collect();
    let entries = |body: &Body| match &body.content {
        Content::State(state) => (state.verb, state.entries.clone().expect("never null")),
        Content::Refresh => panic!("no question is due"),
    };
    let told: usize = bodies.iter().map(|body| entries(body).1.len()).sum();
    assert_eq!((told, messages), (100, 4), "99 puts in three messages and a delete");
    let delete = bodies.iter().map(entries).find(|(verb, _)| *verb == Verb::Delete).expect("a delete");
    assert_eq!((delete.1[0].key.as_str(), delete.1[0].data.as_deref()), ("key-050", Some("")));
    assert_eq!(rig.status().lag, 0);
}

#[test]
fn what_the_patch_cannot_take_is_left_out_and_counted() {
    let mut rig = Rig::settled();
    rig.write_here(&format!("/foo/{}", "k".repeat(251)), "v");
    rig.write_here("/foo/large", &"v".repeat(4_000));
    assert_eq!(rig.status().counts.undeliverable, 2);
    assert!(rig.out.is_empty());
    rig.write_here(&format!("/foo/{}", "k".repeat(250)), "v");
    assert_eq!(rig.out.len(), 1, "253 bytes of family and key fit");
    rig.accept_all();
    rig.arrives(OTHER, &format!("/uni/{}", "k".repeat(233)), Some("v"));
    assert_eq!(rig.status().counts.undeliverable, 3, "under an EID it is 235");
}

#[test]
fn copies_of_others_go_under_their_eid_and_are_deleted_as_what_they_are_there() {
    let mut rig = Rig::settled();
    rig.arrives(OTHER, "/uni/k", Some("v"));
    assert_eq!(rig.last_body(), (Verb::Put, "uni".into(), Mode::Unique, OTHER, vec![("k".into(), "v".into())]));
    rig.accept_all();
    rig.arrives(OTHER, "/uni/k", None);
    // A unique delete would delete the Asterisk's own key.
    assert_eq!(
        rig.last_body(),
        (Verb::Delete, format!("{OTHER}/uni"), Mode::Global, NODE, vec![("k".into(), String::new())])
    );
}

#[test]
fn a_restored_copy_of_its_own_goes_to_its_plain_path_under_our_eid() {
    let mut rig = Rig::settled();
    rig.arrives(AST, "/uni/k", Some("v"));
    assert_eq!(rig.last_body(), (Verb::Put, "uni".into(), Mode::Global, NODE, vec![("k".into(), "v".into())]));
}

#[test]
fn one_request_is_under_way_and_it_is_repeated_until_it_is_given_up() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "1");
    rig.write_here("/foo/b", "2");
    assert_eq!(rig.out.len(), 1);
    let mut repeated = 0;
    while rig.out.len() > repeated + 1 || rig.status().counts.failed == 0 {
        let due = rig.adapter.next_timer().expect("a timer");
        assert!(due > rig.now, "it waits");
        rig.now = due;
        rig.event(Event::Timer);
        repeated = rig.out.len() - 1;
    }
    // RFC 3261 section 17.1.2.2: 0.5, 1, 2, 4, 4 … until 32 s.
    assert_eq!(repeated, 10);
    assert!(rig.out.iter().all(|request| *request == rig.out[0]), "the same bytes");
    assert!(!rig.status().reachable);
    assert_eq!(rig.get("/foo/b").as_deref(), Some("2"));
}

#[test]
fn a_push_that_failed_is_rendered_afresh() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "old");
    let first = rig.out.remove(0);
    rig.write_here("/foo/a", "new");
    rig.answer(&first, 503, &[]);
    assert_eq!(rig.status().fault.as_deref(), Some("503 Service Unavailable"));
    rig.now += 500;
    rig.event(Event::Timer);
    // It is asked first what it could not tell meanwhile; then the push follows.
    rig.accept_all();
    rig.now += 5_000;
    rig.event(Event::Timer);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "new".to_owned())]);
}

#[test]
fn after_412_everything_is_sent_again_deletes_included() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "1");
    rig.accept_all();
    rig.write_here("/foo/b", "2");
    rig.accept_all();
    rig.delete_here("/foo/b");
    let last = rig.out.last().expect("sent").clone();
    rig.out.clear();
    rig.answer(&last, 412, &[]);
    assert_eq!(rig.out[0].headers.get("SIP-If-Match"), None, "a fresh publication");
    assert_eq!(rig.last_body().4, []);
    assert_ne!(rig.out[0].headers.get("Call-ID"), last.headers.get("Call-ID"));
    rig.accept_all();
    rig.out.clear();
    rig.now += 5_000;
    rig.event(Event::Timer);
    rig.accept_all();
    let told: Vec<_> = rig.out.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    assert!(
        told.iter().any(|body| body.contains(r#""verb":"put""#) && body.contains(r#"{"key":"a","data":"1"}"#)),
        "{told:?}"
    );
    assert!(
        told.iter().any(|body| body.contains(r#""verb":"delete""#) && body.contains(r#"{"key":"b","data":""}"#)),
        "{told:?}"
    );
}

#[test]
fn a_refresh_request_is_answered_with_everything() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    assert_eq!(rig.publish(REFRESH), 200);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "1".to_owned())]);
}

#[test]
fn an_asterisk_under_a_new_call_id_was_restarted_and_its_old_content_does_not_win() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "old"), 200);
    rig.write_here("/foo/a", "new");
    rig.accept_all();
    (rig.etag, rig.call_id) = (None, "call-9".into());
    assert_eq!(rig.publish(REFRESH), 200);
    assert_eq!(rig.status().counts.restarts, 1);
    let content = r#"[{"key":"/foo/a","data":"old"},{"key":"/foo/fresh","data":"v"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", content)), 200);
    assert_eq!(rig.get("/foo/a").as_deref(), Some("new"));
    assert_eq!(rig.get("/foo/fresh").as_deref(), Some("v"), "what nobody has is taken");
    rig.settle();
    assert_eq!(rig.status().lag, 0);
}

#[test]
fn an_answer_to_a_question_brings_back_what_could_not_be_told() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    // It is asked once a minute, and had nothing left to send.
    rig.now += 70_000;
    rig.event(Event::Timer);
    assert_eq!(rig.out.len(), 1, "the question");
    rig.accept_all();
    let content = r#"[{"key":"/foo/a","data":"lost update"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", content)), 200);
    assert_eq!(rig.get("/foo/a").as_deref(), Some("lost update"));
}

#[test]
fn an_answer_that_a_push_has_overtaken_is_ignored() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    rig.now += 70_000;
    rig.event(Event::Timer);
    rig.accept_all();
    rig.write_here("/foo/a", "pushed");
    rig.accept_all();
    let content = r#"[{"key":"/foo/a","data":"1"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", content)), 200);
    assert_eq!(rig.get("/foo/a").as_deref(), Some("pushed"));
}

#[test]
fn an_update_that_crossed_a_push_is_followed_by_a_push_of_the_winner() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "pushed");
    let push = rig.out.remove(0);
    assert_eq!(rig.put("a", "crossed"), 200);
    rig.answer(&push, 200, &[("SIP-ETag", "9"), ("Expires", "3600")]);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "crossed".to_owned())], "it may hold either");
    rig.accept_all();
    rig.out.clear();
    assert_eq!(rig.put("a", "next"), 200);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "next".to_owned())], "something was sent since its last update");
    rig.accept_all();
    rig.out.clear();
}

#[test]
fn our_publish_is_authenticated_and_a_nonce_is_used_again() {
    let credentials = Credentials { username: "ast".into(), password: "secret".into() };
    let mut rig = Rig::with(AttachmentSettings { credentials: Some(credentials), ..settings() });
    rig.event(Event::Woken);
    let first = rig.out[0].clone();
    rig.answer(
        &first,
        401,
        &[("WWW-Authenticate", "Digest  realm=\"asterisk\",nonce=\"n1\",opaque=\"o\",algorithm=md5,qop=\"auth\"")],
    );
    let answer =
        Authorization::parse(rig.out[1].headers.get("Authorization").expect("credentials")).expect("well-formed");
    assert_eq!(answer.response, answer.expected("secret", "PUBLISH"));
    assert_eq!(rig.out[1].body, first.body);
    let second = rig.out[1].clone();
    rig.answer(&second, 200, &[("SIP-ETag", "1"), ("Expires", "3600")]);
    let next =
        Authorization::parse(rig.out[2].headers.get("Authorization").expect("credentials")).expect("well-formed");
    assert_eq!((next.nonce.as_str(), next.qop.map(|(_, count)| count)), ("n1", Some(2)));
    // Wrong credentials do not go round in circles.
    let third = rig.out[2].clone();
    for _ in 0..3 {
        let last = rig.out.last().expect("sent").clone();
        rig.answer(
            &last,
            401,
            &[("WWW-Authenticate", "Digest realm=\"asterisk\", nonce=\"n2\", algorithm=MD5, qop=\"auth\"")],
        );
    }
    assert_eq!(rig.out.len(), 4, "once more and then a pause");
    assert_eq!(rig.out[3].body, third.body);
    assert!(rig.status().fault.is_some_and(|fault| fault.contains("credentials")));
}
