//! Its receiving side: the event state compositor, as it answers (RFC 3903 section 6, measured).

use std::collections::BTreeMap;

use kinfolk::asterisk::digest::Authorization;
use kinfolk::asterisk::event::Transport;
use kinfolk::asterisk::header;
use kinfolk::asterisk::message::Request;
use kinfolk::asterisk::transaction::{Arrival as Transaction, ServerKey, Servers};

use super::bodies::Applied;
use super::{MESSAGE_MAX_BYTES, Settings, content_length, uuid};
use crate::rng::Rng;

/// Server transactions that it remembers; the real one has no bound.
const TRANSACTIONS_MAX: usize = 4_096;
/// Without an Expires header.
const EXPIRES_DEFAULT_S: u64 = 3_600;

#[derive(Clone, Debug)]
pub struct Compositor {
    /// Publications by their entity tag, with the moment at which they expire.
    publications: BTreeMap<u64, u64>,
    /// The next entity tag: one counter for all publications, also for those that fail.
    next_tag: u64,
    servers: Servers,
    /// Nonces that it gave out.
    nonces: Vec<String>,
}

impl Default for Compositor {
    fn default() -> Self {
        Self { publications: BTreeMap::new(), next_tag: 0, servers: Servers::new(TRANSACTIONS_MAX), nonces: Vec::new() }
    }
}

/// What is known of a message besides its content.
pub struct Heard<'a> {
    pub source: &'a str,
    pub len: usize,
    pub loaded: bool,
}

/// A request whose body is being applied.
pub struct Pending {
    key: Option<ServerKey>,
    /// The answer's headers up to the status's own.
    head: String,
    /// The publication that it replaces; none for an initial one.
    replaces: Option<u64>,
    expires_s: u64,
}

/// What a request leads to.
pub enum Arrived {
    Nothing,
    Answered(Vec<u8>),
    /// A body to apply first; then [`Compositor::applied`] gives the answer.
    Body(Vec<u8>, Pending),
}

enum Step {
    Answer(u16, &'static str),
    Apply {
        replaces: Option<u64>,
        expires_s: u64,
        body: Vec<u8>,
    },
    /// A publication that goes on, or ends, without a body.
    Bare {
        replaces: u64,
        expires_s: u64,
    },
}

impl Compositor {
    pub fn receive(
        &mut self,
        now: u64,
        request: &Request,
        heard: Heard<'_>,
        settings: &Settings,
        rng: &mut Rng,
    ) -> Arrived {
        if request.method == "ACK" || (settings.tcp && heard.len > MESSAGE_MAX_BYTES) {
            return Arrived::Nothing;
        }
        let key = ServerKey::of(&request.headers, &request.method);
        match key.as_ref().map(|key| self.servers.arrive(key, now)) {
            Some(Transaction::Pending) => return Arrived::Nothing,
            Some(Transaction::Answered(bytes)) => return Arrived::Answered(bytes),
            Some(Transaction::New) | None => {}
        }
        let head = answer_head(request, heard.source);
        let challenge = settings.endpoint_auth.is_some() && !self.is_authorized(request, settings);
        if challenge && heard.len <= MESSAGE_MAX_BYTES && request.method == "PUBLISH" {
            let answer = self.challenge(head, settings, rng);
            return self.complete(now, key, answer, settings);
        }
        match self.judge(now, request, &heard, settings) {
            Step::Answer(status, reason) => {
                let answer = print(status, reason, &head, "", settings);
                self.complete(now, key, answer, settings)
            }
            Step::Bare { replaces, expires_s } => {
                let pending = Pending { key, head, replaces: Some(replaces), expires_s };
                let answer = self.applied(now, pending, Applied::Taken, settings);
                Arrived::Answered(answer)
            }
            Step::Apply { replaces, expires_s, body } => {
                Arrived::Body(body, Pending { key, head, replaces, expires_s })
            }
        }
    }

    /// In the order in which the real one looks at a request.
    fn judge(&mut self, now: u64, request: &Request, heard: &Heard<'_>, settings: &Settings) -> Step {
        self.publications.retain(|_, expires| *expires > now);
        let headers = &request.headers;
        if heard.len > MESSAGE_MAX_BYTES {
            return Step::Answer(500, "Internal Server Error");
        }
        if request.uri.starts_with("tel:") {
            return Step::Answer(416, "Unsupported URI Scheme");
        }
        if request.method == "OPTIONS" {
            return Step::Answer(404, "Not Found");
        }
        if request.method != "PUBLISH" {
            return Step::Answer(405, "Method Not Allowed");
        }
        if !heard.loaded || headers.get("Event").map(header::bare).as_deref() != Some("asterisk-db") {
            return Step::Answer(489, "Bad Event");
        }
        let expires_s = headers.get("Expires").and_then(|text| text.trim().parse().ok()).unwrap_or(EXPIRES_DEFAULT_S);
        // A body without a content type is none to pjproject.
        let body = Some(&request.body).filter(|body| !body.is_empty() && headers.get("Content-Type").is_some());
        let replaces = match headers.get("SIP-If-Match") {
            None if expires_s == 0 => return Step::Answer(412, "Conditional Request Failed"),
            None => None,
            Some(text) => match text.trim().parse::<u64>() {
                Ok(tag) if self.publications.contains_key(&tag) => Some(tag),
                Ok(_) => return Step::Answer(412, "Conditional Request Failed"),
                Err(_) => return Step::Answer(400, "Bad Request"),
            },
        };
        match (replaces, body) {
            (None, None) => Step::Answer(400, "Bad Request"),
            (None, Some(_)) if !names_resource(&request.uri, settings) => Step::Answer(404, "Not Found"),
            (Some(replaces), None) => Step::Bare { replaces, expires_s },
            (replaces, Some(body)) => {
                // Another type is no JSON to it: an error like any other.
                let body = if is_json(headers.get("Content-Type")) { body.clone() } else { Vec::new() };
                Step::Apply { replaces, expires_s, body }
            }
        }
    }

    /// The answer once the body has been applied.
    pub fn applied(&mut self, now: u64, pending: Pending, outcome: Applied, settings: &Settings) -> Vec<u8> {
        let tag = self.next_tag;
        self.next_tag += 1;
        if let Some(replaced) = pending.replaces {
            self.publications.remove(&replaced);
        }
        let answer = if outcome == Applied::Bad && pending.replaces.is_none() {
            print(500, "Internal Server Error", &pending.head, "", settings)
        } else {
            if outcome == Applied::Taken && pending.expires_s > 0 {
                self.publications.insert(tag, now + pending.expires_s * 1_000);
            }
            let own = format!("SIP-ETag: {tag}\r\nExpires: {}\r\n", pending.expires_s);
            print(200, "OK", &pending.head, &own, settings)
        };
        if let Some(key) = &pending.key {
            self.servers.answer(key, answer.clone(), transport(settings), now);
        }
        answer
    }

    fn complete(&mut self, now: u64, key: Option<ServerKey>, answer: Vec<u8>, settings: &Settings) -> Arrived {
        if let Some(key) = &key {
            self.servers.answer(key, answer.clone(), transport(settings), now);
        }
        Arrived::Answered(answer)
    }

    fn challenge(&mut self, head: String, settings: &Settings, rng: &mut Rng) -> Vec<u8> {
        let nonce = uuid(rng);
        let opaque = &uuid(rng)[..8];
        let own = format!(
            "WWW-Authenticate: Digest  realm=\"asterisk\",nonce=\"{nonce}\",opaque=\"{opaque}\",algorithm=md5,qop=\"auth\"\r\n"
        );
        self.nonces.push(nonce);
        if self.nonces.len() > TRANSACTIONS_MAX {
            self.nonces.remove(0);
        }
        print(401, "Unauthorized", &head, &own, settings)
    }

    /// A nonce serves once here. The real one takes it for some seconds.
    fn is_authorized(&mut self, request: &Request, settings: &Settings) -> bool {
        let Some(credentials) = &settings.endpoint_auth else { return true };
        let given = request.headers.get("Authorization").and_then(|text| Authorization::parse(text).ok());
        let Some(given) = given.filter(|given| given.username == credentials.username) else { return false };
        let known = self.nonces.iter().position(|nonce| *nonce == given.nonce);
        let right = given.expected(&credentials.password, &request.method) == given.response;
        match known {
            Some(at) if right => {
                self.nonces.remove(at);
                true
            }
            _ => false,
        }
    }
}

fn transport(settings: &Settings) -> Transport {
    if settings.tcp { Transport::Tcp } else { Transport::Udp }
}

/// Case counts, parameters do not.
fn is_json(content_type: Option<&str>) -> bool {
    content_type.and_then(|text| text.split(';').next()).is_some_and(|text| text.trim() == "application/json")
}

fn names_resource(uri: &str, settings: &Settings) -> bool {
    header::uri(uri).ok().and_then(|uri| uri.user).as_deref() == Some(&*settings.resource)
}

/// Via with the sender's address, and the headers that are copied, in pjproject's order. The To tag is the
/// branch of the request.
fn answer_head(request: &Request, source: &str) -> String {
    let get = |name| request.headers.get(name).unwrap_or("");
    let (host, port) = source.rsplit_once(':').unwrap_or((source, "5060"));
    let via = get("Via").replacen(";rport;", &format!(";rport={port};received={host};"), 1);
    let branch = header::via(get("Via")).and_then(|via| via.branch).unwrap_or_default().to_string();
    format!(
        "Via: {via}\r\nCall-ID: {}\r\nFrom: {}\r\nTo: {};tag={branch}\r\nCSeq: {}\r\n",
        get("Call-ID"),
        get("From"),
        get("To"),
        get("CSeq")
    )
}

fn print(status: u16, reason: &str, head: &str, own: &str, settings: &Settings) -> Vec<u8> {
    let server = format!("Server: Asterisk {}\r\n", settings.name);
    format!("SIP/2.0 {status} {reason}\r\n{head}{own}{server}{}", content_length(None)).into_bytes()
}
