//! The model of a patched Asterisk is held to the captures of real ones, byte for byte.

use kinfolk::asterisk::digest::Authorization;
use kinfolk::asterisk::message::Message;
use kinfolk::asterisk::settings::Credentials;
use kinfolk::core::family::Mode;
use simulations::asterisk::astdb::AstDb;
use simulations::asterisk::captures::{self, Captured};
use simulations::asterisk::{Asterisk, Packet, Settings};

const STARTUP: &str = include_str!("../../tests/fixtures/asterisk/01-startup-refresh-put-del.txt");
const DELETES: &str = include_str!("../../tests/fixtures/asterisk/02-del-deltree.txt");
const REFRESH: &str = include_str!("../../tests/fixtures/asterisk/03-refresh.txt");
const EDGE: &str = include_str!("../../tests/fixtures/asterisk/04-edge.txt");
const STATUSES: &str = include_str!("../../tests/fixtures/asterisk/07-status-table.txt");
const AUTH: &str = include_str!("../../tests/fixtures/asterisk/15-real-auth.txt");

const AST1: &str = "127.0.0.11:5060";
const AST2: &str = "127.0.0.12:5060";

/// The captured ones call each other by the sender's name: ast1 publishes to `sip:ast1@127.0.0.12`.
fn ast1() -> Settings {
    let settings = Settings::new("ast1", "02:00:00:00:00:01", AST1, AST2, "ast1");
    let settings = Settings { resource: "ast2".to_string(), ..settings };
    settings.sharing("foo", Mode::Global).sharing("uni", Mode::Unique)
}

fn ast2() -> Settings {
    let settings = Settings::new("ast2", "02:00:00:00:00:02", AST2, AST1, "ast2");
    let settings = Settings { resource: "ast1".to_string(), ..settings };
    settings.sharing("foo", Mode::Global).sharing("uni", Mode::Unique)
}

fn all_of(captured: &[&str]) -> Vec<Captured> {
    captured.iter().flat_map(|text| captures::read(text)).collect()
}

fn answers(packets: Vec<Packet>) -> Vec<Vec<u8>> {
    packets.into_iter().filter(|packet| packet.answer).map(|packet| packet.bytes).collect()
}

/// The one request among what was sent.
fn request(packets: &[Packet]) -> Vec<u8> {
    let mut requests = packets.iter().filter(|packet| !packet.answer);
    let request = requests.next().expect("it sends a request").bytes.clone();
    assert!(requests.next().is_none(), "one at a time");
    request
}

#[test]
fn the_model_answers_every_captured_request_with_the_captured_bytes() {
    let captured = all_of(&[STARTUP, DELETES, REFRESH, EDGE]);
    let mut ast2 = Asterisk::new(ast2(), AstDb::default());
    ast2.load(0);
    let mut seen = 0;
    for answer in captured.iter().filter(|message| !message.is_request() && message.from == AST2) {
        let asked = captured.iter().find(|message| message.is_request() && message.branch() == answer.branch());
        let sent = answers(ast2.receive(0, AST1, &asked.expect("it was asked").bytes));
        let shown: Vec<_> = sent.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        assert_eq!(shown, [answer.text()]);
        seen += 1;
    }
    assert_eq!(seen, 29, "all that the real one answered");
    let db = ast2.db();
    assert_eq!(db.get("foo", "a/b/c"), Some("x"));
    assert_eq!(db.get("foo", "clé-é"), Some("żółw ☃ 😀"));
    assert_eq!(db.get("foo", "newline"), Some("line1\nline2\r\nline3"));
    assert_eq!(db.get("foo", "ctl"), Some("a\u{1}b\u{1f}c\u{7f}d"));
    assert_eq!(db.get("foo", "empty"), Some(""));
    assert_eq!(db.get("foo", &"K".repeat(250)), Some("n250"));
    assert_eq!(db.get("foo", "/foo/a"), Some("1"), "the answer to a refresh is stored at the wrong place");
    assert_eq!(db.get("02:00:00:00:00:01/uni", "k2"), Some("u2"), "the copy of a deleted unique key stays");
    assert_eq!(db.get("foo", "k1"), None);
}

/// A text in which what is drawn at random is blanked.
fn blanked(text: &str) -> String {
    let line = |line: &str| {
        let cut = |mark: &str| line.split_once(mark).map(|(before, _)| format!("{before}{mark}…"));
        match line.split(':').next() {
            Some("Via") => cut("branch="),
            Some("From") => cut("tag="),
            Some("Call-ID" | "CSeq") => cut(": "),
            Some("Authorization") => cut("Digest"),
            _ => None,
        }
        .unwrap_or_else(|| line.to_string())
    };
    text.split("\r\n").map(line).collect::<Vec<_>>().join("\r\n")
}

/// A captured answer for the model's own request.
fn answer_to(request: &[u8], captured: &Captured) -> Vec<u8> {
    let Ok(Message::Request(request)) = Message::parse(request) else { panic!("a request") };
    let header = |name: &str| format!("{name}: {}", request.headers.get(name).expect("it is there"));
    let line = |line: &str| match line.split(':').next() {
        Some(name @ ("Via" | "Call-ID" | "From" | "CSeq")) => header(name),
        _ => line.to_string(),
    };
    captured.text().split("\r\n").map(line).collect::<Vec<_>>().join("\r\n").into_bytes()
}

#[test]
fn the_model_sends_what_the_captured_one_sent_but_for_what_is_drawn_at_random() {
    let captured = all_of(&[STARTUP, DELETES, REFRESH, EDGE]);
    let mut model = Asterisk::new(ast1(), AstDb::default());
    let mut sent = model.load(0);
    let mut seen = 0;
    for real in captured.iter().filter(|message| message.is_request()) {
        if real.from == AST2 {
            sent = model.receive(0, AST2, &real.bytes);
            continue;
        }
        if sent.iter().all(|packet| packet.answer) {
            sent = act(&mut model, real);
        }
        let bytes = request(&sent);
        assert_eq!(blanked(&String::from_utf8_lossy(&bytes)), blanked(real.text()));
        let answer = captured.iter().find(|message| !message.is_request() && message.branch() == real.branch());
        sent = model.receive(0, AST2, &answer_to(&bytes, answer.expect("it was answered")));
        seen += 1;
    }
    assert_eq!((seen, model.queued(), model.counts().dropped), (29, 0, 0));
}

/// Does what the captured one must have been told to send this.
fn act(model: &mut Asterisk, real: &Captured) -> Vec<Packet> {
    let body: serde_json::Value = serde_json::from_str(real.body()).expect("JSON");
    let state = &body["dbstate"];
    let text = |json: &serde_json::Value| json.as_str().expect("a text").to_string();
    let (family, entry) = (text(&state["family"]), &state["entries"][0]);
    let key = text(&entry["key"]);
    if key == "a" {
        // Told to nobody: the refresh that follows shows that both trees were deleted before.
        model.deltree("foo", None);
        model.deltree("uni", None);
    }
    match text(&state["verb"]).as_str() {
        "put" => model.put(0, &family, &key, &text(&entry["data"])),
        _ => model.del(0, &family, &key),
    }
}

#[test]
fn the_model_answers_challenges_as_the_captured_one_did() {
    let captured = captures::read(AUTH);
    let credentials = Credentials { username: "ast1".into(), password: "s3cret".into() };
    let content =
        captured.iter().find(|message| message.body().contains("/foo/a401")).expect("the answer to a refresh");
    let mut model = Asterisk::new(Settings { outbound_auth: Some(credentials), ..ast1() }, content_of(content));
    let mut sent = model.load(0);
    let mut seen = 0;
    for real in captured.iter().filter(|message| message.is_request() && message.from == AST1) {
        if sent.iter().all(|packet| packet.answer) {
            sent = match real == content {
                true => model.receive(0, AST2, &captured[0].bytes), // its refresh
                false => act(&mut model, real),
            };
        }
        let bytes = request(&sent);
        assert_eq!(blanked(&String::from_utf8_lossy(&bytes)), blanked(real.text()));
        if let Some(header) = real.header("Authorization") {
            let given = Authorization::parse(header).expect("a digest");
            assert_eq!(given.expected("s3cret", "PUBLISH"), given.response, "the arithmetic is the real one's");
        }
        let answer = captured.iter().find(|message| !message.is_request() && message.branch() == real.branch());
        sent = model.receive(0, AST2, &answer_to(&bytes, answer.expect("it was answered")));
        seen += 1;
    }
    assert_eq!((seen, model.is_dead(), model.queued()), (8, false, 0));
}

/// The database whose content this answer to a refresh tells.
fn content_of(answer: &Captured) -> AstDb {
    let body: serde_json::Value = serde_json::from_str(answer.body()).expect("JSON");
    let mut db = AstDb::default();
    for entry in body["dbstate"]["entries"].as_array().expect("entries") {
        let key = entry["key"].as_str().and_then(|key| key.strip_prefix("/foo/")).expect("a full key");
        assert!(db.put("foo", key, entry["data"].as_str().expect("a text")));
    }
    db
}

// ---- the table of statuses --------------------------------------------------------------------

/// A request as the measurement sent it: the good put, changed.
struct Probe {
    uri: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Probe {
    fn with_body(body: &str) -> Self {
        let headers = [("Event", "asterisk-db"), ("Expires", "3600"), ("Content-Type", "application/json")];
        let headers = headers.map(|(name, value)| (name, value.to_string())).to_vec();
        Self { uri: "sip:ast1@127.0.0.12:5060".into(), headers, body: body.to_string() }
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(have, _)| *have != name);
        self
    }

    fn set(self, name: &'static str, value: &str) -> Self {
        let mut probe = self.without(name);
        probe.headers.push((name, value.to_string()));
        probe
    }

    fn to(mut self, uri: &str) -> Self {
        self.uri = uri.to_string();
        self
    }

    fn print(&self, number: usize) -> Vec<u8> {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!(
            "PUBLISH {} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.11:5070;rport;branch=z9hG4bKprobe{number}\r\n\
             From: <sip:ast1@127.0.0.11>;tag=1\r\nTo: <sip:ast1@127.0.0.12>\r\nCall-ID: c{number}\r\n\
             CSeq: 1 PUBLISH\r\nMax-Forwards: 70\r\n{headers}Content-Length: {}\r\n\r\n{}",
            self.uri,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

const EID: &str = "02:00:00:00:00:09";

fn state(verb: &str, family: &str, share_type: &str, entries: &str) -> String {
    let inner = format!(r#""verb":"{verb}","family":"{family}","share_type":"{share_type}","entries":{entries}"#);
    format!(r#"{{"type":"dbstate","eid":"{EID}","dbstate":{{{inner}}}}}"#)
}

fn entry(key: &str) -> String {
    format!(r#"[{{"key":"{key}","data":"1"}}]"#)
}

fn put(key: &str) -> String {
    state("put", "foo", "global", &entry(key))
}

/// The request of a row of the table, by the row's name.
fn probe(name: &str) -> Probe {
    let good = |key: &str| Probe::with_body(&put(key));
    let body = Probe::with_body;
    let eid = |eid: &str, of: &str| body(&of.replace(&format!("\"{EID}\""), eid));
    let uni = |key: &str| state("put", "uni", "unique", &entry(key));
    let cut = |what: &str| body(&put("t").replace(what, ""));
    match name {
        "good put" => good("t"),
        "bad JSON" => body("{\"type\":"),
        "empty JSON object" => body("{}"),
        "JSON array" => body("[]"),
        "missing eid" => cut(&format!(r#","eid":"{EID}""#)),
        "eid not a string" => eid("5", &put("t")),
        "eid garbage \"hello\"" => eid("\"hello\"", &put("geid")),
        "missing type" => cut(r#""type":"dbstate","#),
        "unknown type \"x\"" => body(&put("t").replace("\"dbstate\",\"eid", "\"x\",\"eid")),
        "missing dbstate object" => body(&format!(r#"{{"type":"dbstate","eid":"{EID}"}}"#)),
        "missing family" => cut(r#""family":"foo","#),
        "missing verb" => cut(r#""verb":"put","#),
        "unknown verb \"update\"" => body(&state("update", "foo", "global", &entry("t"))),
        "verb PUT (upper case)" => body(&state("PUT", "foo", "global", &entry("upper"))),
        "missing share_type" => cut(r#""share_type":"global","#),
        "unknown share_type \"local\"" => body(&state("put", "foo", "local", &entry("t"))),
        "share_type GLOBAL upper" => body(&state("put", "foo", "GLOBAL", &entry("upperG"))),
        "put entries missing" => cut(&format!(r#","entries":{}"#, entry("t"))),
        "put entries null" => body(&state("put", "foo", "global", "null")),
        "put entries []" => body(&state("put", "foo", "global", "[]")),
        "entry without data" => body(&state("put", "foo", "global", r#"[{"key":"nodata"}]"#)),
        "entry data number" => body(&state("put", "foo", "global", r#"[{"key":"num","data":5}]"#)),
        "entry empty key" => good(""),
        "unshared family" => body(&state("put", "nshared", "global", &entry("t"))),
        "unknown extra members" => body(&put("extra").replace("{\"type", "{\"more\":[1],\"type")),
        "unique share_type for a family locally GLOBAL (foo)" => body(&state("put", "foo", "unique", &entry("mixed"))),
        "global share_type for a family locally UNIQUE (uni)" => body(&state("put", "uni", "global", &entry("mixed2"))),
        "own EID of receiver (02)" => eid("\"02:00:00:00:00:02\"", &put("own")),
        "eid uppercase hex" => eid("\"0A:00:00:00:00:0B\"", &uni("upperhex")),
        "content type text/plain" => good("ct").set("Content-Type", "text/plain"),
        "content type Application/JSON (case)" => good("ct").set("Content-Type", "Application/JSON"),
        "content type application/json;charset=utf-8" => {
            good("ctparam").set("Content-Type", "application/json;charset=utf-8")
        }
        "body without Content-Type" => good("t").without("Content-Type"),
        "no body, no etag" => body("").without("Content-Type"),
        "unknown resource (user nobody)" => good("t").to("sip:nobody@127.0.0.12:5060"),
        "R-URI without user" => good("t").to("sip:127.0.0.12:5060"),
        "tel: R-URI" => good("t").to("tel:5"),
        "resource user AST1 uppercase" => good("t").to("sip:AST1@127.0.0.12:5060"),
        "no Event header" => good("t").without("Event"),
        "Event: presence" => good("t").set("Event", "presence"),
        "Event: asterisk-db;id=5" => good("evid").set("Event", "asterisk-db;id=5"),
        "Expires missing" => good("noexp").without("Expires"),
        "Expires 1" => good("exp1").set("Expires", "1"),
        "Expires 60" => good("exp60").set("Expires", "60"),
        "Expires 999999999" => good("expbig").set("Expires", "999999999"),
        "Expires 0 without etag" => good("t").set("Expires", "0"),
        "SIP-If-Match unknown 99999" => good("t").set("SIP-If-Match", "99999"),
        "SIP-If-Match \"abc\"" => good("t").set("SIP-If-Match", "abc"),
        "refresh type" => body(&format!(r#"{{"type":"refresh","eid":"{EID}"}}"#)),
        "delete key t" => body(&state("delete", "foo", "global", r#"[{"key":"t","data":""}]"#)),
        "delete key without data member" => body(&state("delete", "foo", "global", r#"[{"key":"x"}]"#)),
        "delete entries null" => body(&state("delete", "foo", "global", "null")),
        "delete UNSHARED family, one key" => body(&state("delete", "nshared", "global", r#"[{"key":"x1","data":""}]"#)),
        "delete UNSHARED family, entries null" => body(&state("delete", "nshared", "global", "null")),
        other => panic!("no probe for {other}"),
    }
}

/// `status`, `sip-etag` and `expires` of a row, and the paths that came and went.
fn expectation(row: &str) -> (String, Option<u64>, Vec<String>, Vec<String>) {
    let (head, changes) = row.split_once('}').expect("headers in braces");
    let etag = head.split_once("'sip-etag': '").map(|(_, rest)| rest.split('\'').next().expect("a number"));
    let (came, went) = changes.split_once("-[").unwrap_or((changes, ""));
    let paths = |text: &str| {
        text.split("(b'").skip(1).map(|rest| rest.split('\'').next().expect("a path").to_string()).collect()
    };
    let status = head.split(" {").next().expect("a status").to_string();
    (status, etag.map(|etag| etag.parse().expect("a number")), paths(came), paths(went))
}

#[test]
fn the_model_answers_each_row_of_the_table_of_statuses_as_measured() {
    let mut model = Asterisk::new(ast2(), AstDb::default());
    model.load(0);
    let mut first_etag = None;
    let rows = STATUSES.lines().skip(1).take_while(|line| !line.starts_with("===")).map(|line| line.split_once(" -> "));
    let rows: Vec<_> = rows.map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 56);
    for (number, (name, expected)) in rows.iter().enumerate() {
        let name = name.trim();
        // A malformed EID, which becomes what was on its stack, and a second handler: not modelled.
        if name.contains("dashes") || name.contains("asterisk-devicestate") {
            if name.contains("dashes") {
                model.receive(0, "127.0.0.11:5070", &probe("put entries []").print(9_999));
            }
            continue;
        }
        prepare(&mut model, name);
        let before = model.db().paths().clone();
        let answer = answers(model.receive(0, "127.0.0.11:5070", &probe(name).print(number))).remove(0);
        let Ok(Message::Response(answer)) = Message::parse(&answer) else { panic!("{name}: an answer") };
        let (status, etag, came, went) = expectation(expected);
        assert_eq!(format!("{} {}", answer.status, answer.reason), status, "{name}");
        let given = answer.headers.get("SIP-ETag").map(|etag| etag.parse::<u64>().expect("a number"));
        let first = *first_etag.get_or_insert(etag.unwrap_or(0));
        assert_eq!(given, etag.map(|etag| etag - first), "{name}");
        let after = model.db().paths();
        let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).cloned().collect();
        let gone: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).cloned().collect();
        assert_eq!((new, gone), (came, went), "{name}");
    }
}

/// What stood in the real one's database before these rows.
fn prepare(model: &mut Asterisk, name: &str) {
    match name {
        "delete entries null" => {
            model.put(0, "foo", "x1", "1");
            model.put(0, "foo", "x2/y", "1");
        }
        "delete UNSHARED family, one key" => {
            model.put(0, "nshared", "x1", "1");
        }
        "delete UNSHARED family, entries null" => {
            model.put(0, "nshared", "x2", "1");
        }
        _ => {}
    }
}

// ---- the sequence of entity tags, and what stops or loses updates ------------------------------

#[test]
fn entity_tags_follow_each_other_as_measured() {
    let mut model = Asterisk::new(ast2(), AstDb::default());
    model.load(0);
    let rows = STATUSES.lines().skip_while(|line| !line.contains("etag sequence")).skip(1);
    let rows: Vec<_> = rows.take_while(|line| !line.starts_with("===")).collect();
    assert_eq!(rows.len(), 13);
    let (first, mut now) = (540, 0);
    for (number, row) in rows.iter().enumerate() {
        let (name, expected) = row.split_once(" -> ").expect("a row");
        let name = name.trim();
        let mut probe = match name {
            _ if name.contains("BAD body") => Probe::with_body(&put("seq").replace(r#""verb":"put","#, "")),
            _ if name.contains("bodiless") || name.contains("no body") => Probe::with_body("").without("Content-Type"),
            _ => Probe::with_body(&put("seq")),
        };
        if name.contains("etag") {
            let tag: u64 = name.rsplit(' ').find_map(|word| word.parse().ok()).expect("a tag");
            probe = probe.set("SIP-If-Match", &(tag - first).to_string());
        }
        if name.contains("remove (") || name.contains("remove WITH") {
            probe = probe.set("Expires", "0");
        }
        if expected.contains("'expires': '3'") {
            probe = probe.set("Expires", "3");
        }
        if name.contains("after expiry") {
            now += 4_000;
        }
        let answer = answers(model.receive(now, AST1, &probe.print(number))).remove(0);
        let Ok(Message::Response(answer)) = Message::parse(&answer) else { panic!("{name}: an answer") };
        let (status, etag, _, _) = expectation(expected);
        assert_eq!(format!("{} {}", answer.status, answer.reason), status, "{name}");
        let given = answer.headers.get("SIP-ETag").map(|etag| etag.parse::<u64>().expect("a number"));
        assert_eq!(given, etag.map(|etag| etag - first), "{name}");
    }
}

/// The answer of this status to the request among what was sent, with one more header.
fn answered(model: &mut Asterisk, now: u64, sent: &[Packet], status: &str, header: &str) -> Vec<Packet> {
    let bytes = request(sent);
    let text = String::from_utf8(bytes).expect("UTF-8");
    let copied = ["Via", "From", "To", "Call-ID", "CSeq"]
        .map(|name| text.lines().find(|line| line.starts_with(&format!("{name}:"))).expect("it is there"));
    let answer = format!("SIP/2.0 {status}\r\n{}\r\n{header}Content-Length: 0\r\n\r\n", copied.join("\r\n"));
    model.receive(now, AST2, answer.as_bytes())
}

#[test]
fn an_update_that_is_refused_is_dropped_and_the_next_one_goes_out() {
    for status in ["400 Bad Request", "403 Forbidden", "404 Not Found", "489 Bad Event", "500 No", "503 Later"] {
        let mut model = Asterisk::new(ast1(), AstDb::default());
        let sent = model.load(0);
        assert!(model.put(0, "foo", "a", "1").is_empty(), "one in flight");
        assert!(model.put(0, "foo", "b", "2").is_empty());
        let sent = answered(&mut model, 0, &sent, "200 OK", "SIP-ETag: 7\r\nExpires: 3600\r\n");
        let sent = answered(&mut model, 0, &sent, status, "");
        let text = String::from_utf8(request(&sent)).expect("UTF-8");
        assert!(text.contains("SIP-If-Match: 7\r\n") && text.contains(r#""key":"b""#), "{text}");
        assert_eq!(model.counts().dropped, 1);
    }
}

#[test]
fn a_challenge_without_credentials_or_a_423_without_min_expires_silences_it() {
    for status in ["401 Unauthorized", "423 Interval Too Brief"] {
        let mut model = Asterisk::new(ast1(), AstDb::default());
        let sent = model.load(0);
        assert!(answered(&mut model, 0, &sent, status, "").is_empty());
        assert!(model.is_dead() && model.put(0, "foo", "a", "1").is_empty(), "{status}");
    }
    let mut model = Asterisk::new(ast1(), AstDb::default());
    let sent = model.load(0);
    let sent = answered(&mut model, 0, &sent, "423 Interval Too Brief", "Min-Expires: 7000\r\n");
    assert!(String::from_utf8(request(&sent)).expect("UTF-8").contains("Expires: 7000\r\n"));
}

#[test]
fn a_412_makes_a_new_publication_of_the_same_body() {
    let mut model = Asterisk::new(ast1(), AstDb::default());
    let first = model.load(0);
    answered(&mut model, 0, &first, "200 OK", "SIP-ETag: 7\r\nExpires: 3600\r\n");
    let second = model.put(0, "foo", "a", "1");
    let third = answered(&mut model, 0, &second, "412 Conditional Request Failed", "");
    let (second, third) = (request(&second), request(&third));
    let header = |bytes: &[u8], name: &str| match Message::parse(bytes) {
        Ok(Message::Request(request)) => request.headers.get(name).map(str::to_string),
        other => panic!("a request, not {other:?}"),
    };
    assert_eq!((header(&second, "SIP-If-Match").as_deref(), header(&third, "SIP-If-Match")), (Some("7"), None));
    assert_ne!(header(&second, "Call-ID"), header(&third, "Call-ID"));
}

#[test]
fn an_update_that_nobody_answers_is_repeated_for_32_s_and_then_dropped() {
    let mut model = Asterisk::new(ast1(), AstDb::default());
    model.load(0);
    model.put(0, "foo", "a", "1");
    let mut times = vec![];
    while model.queued() > 1 {
        let now = model.next_timer().expect("it waits");
        times.push(now);
        assert_eq!(model.timer(now).len(), 1, "a repetition, or at last the next one");
    }
    assert_eq!(times, [500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500, 32_000]);
    let large = "v".repeat(3_700);
    model.put(0, "foo", "large", &large);
    let sent = model.timer(64_000);
    assert!(sent.is_empty() && model.queued() == 0, "what is larger than 4,000 bytes is never sent");
}

#[test]
fn it_refreshes_its_publication_without_a_body_when_it_expires() {
    let mut model = Asterisk::new(ast1(), AstDb::default());
    let sent = model.load(0);
    answered(&mut model, 0, &sent, "200 OK", "SIP-ETag: 7\r\nExpires: 60\r\n");
    assert_eq!(model.next_timer(), Some(60_000));
    let text = String::from_utf8(request(&model.timer(60_000))).expect("UTF-8");
    assert!(text.ends_with("Content-Length:  0\r\n\r\n") && text.contains("SIP-If-Match: 7\r\n"), "{text}");
}
