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

mod incoming;
mod outgoing;

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

    /// What was sent last is not answered and given up; then the Asterisk is asked, and accepts that.
    fn gives_up_and_asks(&mut self) {
        let failed = self.status().counts.failed;
        for _ in 0..20 {
            if self.status().counts.failed > failed {
                break;
            }
            self.now = self.adapter.next_timer().expect("a timer");
            self.event(Event::Timer);
        }
        self.out.clear();
        self.now += 1_000;
        self.event(Event::Timer);
        assert_eq!(Body::parse(&self.out[0].body).expect("a body").content, Content::Refresh);
        self.accept_all();
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
            floor: None,
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
