//! Our publication at an Asterisk: the event publication agent of RFC 3903 section 4.
//!
//! One request is under way at most; what it carries is the caller's affair. Here are its headers, its
//! transaction, its credentials, and the pauses after a failure.
//!
//! A request that failed is never sent again as it was: the caller renders the next one afresh.

use super::body;
use super::digest::Challenge;
use super::event::{Moment, Transport};
use super::header;
use super::ids::Ids;
use super::message::{Headers, Request, Response};
use super::settings::{AttachmentSettings, Credentials, Times};
use super::transaction::{Client, ClientStep};

/// A patched Asterisk takes no message of more bytes, headers included; this leaves it room.
pub const MESSAGE_LIMIT_BYTES: usize = 3_990;
/// What credentials may add to a message before the challenge is known.
const CREDENTIALS_BYTES: usize = 640;

/// What we call ourselves.
pub const AGENT: &str = concat!("Kinfolk/", env!("CARGO_PKG_VERSION"));

#[derive(Clone, Debug)]
pub struct Publication {
    uri: String,
    from: String,
    sent_by: String,
    transport: Transport,
    credentials: Option<Credentials>,
    times: Times,
    call_id: String,
    cseq: u32,
    expires_s: u32,
    /// The last challenge, and how often its nonce was used.
    challenge: Option<(Challenge, u32)>,
    sending: Option<Sending>,
    /// An answer that came at an awkward moment.
    kept: Option<Response>,
    failures: u32,
    /// Nothing is sent before this moment.
    pub not_before: Moment,
}

#[derive(Clone, Debug)]
struct Sending {
    client: Client,
    etag: Option<String>,
    body: Vec<u8>,
    /// It has been challenged: a second challenge that is not for a stale nonce means wrong credentials.
    challenged: u32,
}

/// What an answer means for the publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It belongs to nothing that is under way.
    Nothing,
    /// Sent once more, with credentials or a longer life; still under way.
    Again(Vec<u8>),
    Accepted {
        etag: String,
    },
    /// 412: the Asterisk knows no such publication.
    Gone,
    Failed(String),
}

impl Publication {
    pub fn new(settings: &AttachmentSettings, ids: &mut Ids) -> Self {
        Self {
            uri: settings.uri.clone(),
            from: settings.from.clone(),
            sent_by: settings.sent_by.clone(),
            transport: settings.transport,
            credentials: settings.credentials.clone(),
            times: settings.times,
            call_id: ids.token(),
            cseq: 0,
            expires_s: settings.times.expires_s,
            challenge: None,
            sending: None,
            kept: None,
            failures: 0,
            not_before: 0,
        }
    }

    pub fn is_busy(&self) -> bool {
        self.sending.is_some()
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The longest body that a message may carry.
    pub fn body_max_bytes(&self, etag: Option<&str>) -> usize {
        let credentials = if self.credentials.is_some() { CREDENTIALS_BYTES } else { 0 };
        let mut ids = Ids::new([0; 32]);
        let bare = self.request(etag, Vec::new(), &mut ids).0.print().len();
        // The numbers of CSeq and Content-Length may grow by some digits.
        MESSAGE_LIMIT_BYTES.saturating_sub(bare + credentials + 16)
    }

    /// Sends a body; gives the bytes. Nothing else may be under way.
    pub fn send(&mut self, etag: Option<String>, body: Vec<u8>, ids: &mut Ids, now: Moment) -> Vec<u8> {
        debug_assert!(self.sending.is_none(), "one request at a time");
        self.cseq += 1;
        let (client, bytes) = self.begin(etag.as_deref(), &body, ids, now);
        self.sending = Some(Sending { client, etag, body, challenged: 0 });
        bytes
    }

    /// Nobody waits for the answer any more.
    pub fn abandon(&mut self) {
        (self.sending, self.kept) = (None, None);
    }

    fn begin(&mut self, etag: Option<&str>, body: &[u8], ids: &mut Ids, now: Moment) -> (Client, Vec<u8>) {
        let (mut request, branch) = self.request(etag, body.to_vec(), ids);
        if let (Some(credentials), Some((challenge, count))) = (&self.credentials, &mut self.challenge) {
            // The nonce is used until it is refused: that saves a round trip for each update.
            *count += 1;
            let answer = challenge.answer(credentials, "PUBLISH", &self.uri, *count, &ids.token());
            request.headers.push("Authorization", answer.print());
        }
        let bytes = request.print();
        (Client::new(branch, bytes.clone(), self.transport, now), bytes)
    }

    fn request(&self, etag: Option<&str>, body: Vec<u8>, ids: &mut Ids) -> (Request, String) {
        let branch = ids.branch();
        let via = format!("SIP/2.0/{} {};rport;branch={branch}", self.transport.via_name(), self.sent_by);
        let mut headers = Headers::default()
            .with("Via", via)
            .with("From", format!("<{}>;tag={}", self.from, ids.token()))
            .with("To", format!("<{}>", self.uri))
            .with("Call-ID", &self.call_id)
            .with("CSeq", format!("{} PUBLISH", self.cseq))
            .with("Event", body::EVENT);
        if let Some(etag) = etag {
            headers.push("SIP-If-Match", etag);
        }
        headers.push("Expires", self.expires_s.to_string());
        headers.push("Max-Forwards", "70");
        headers.push("User-Agent", AGENT);
        headers.push("Content-Type", body::CONTENT_TYPE);
        (Request { method: "PUBLISH".into(), uri: self.uri.clone(), headers, body }, branch)
    }

    /// Whether a response answers what is under way.
    pub fn is_answer(&self, response: &Response) -> bool {
        self.sending.as_ref().is_some_and(|sending| sending.client.answered_by(&response.headers))
    }

    /// Keeps an answer for later; it stops the repetitions.
    pub fn keep(&mut self, response: Response) {
        self.kept.get_or_insert(response);
    }

    /// Gives what was kept.
    pub fn kept(&mut self) -> Option<Response> {
        self.kept.take()
    }

    pub fn on_response(&mut self, response: &Response, ids: &mut Ids, now: Moment) -> Answered {
        let Some(sending) = self.sending.as_mut().filter(|sending| sending.client.answered_by(&response.headers))
        else {
            return Answered::Nothing;
        };
        match response.status {
            100..200 => {
                sending.client.provisional();
                Answered::Nothing
            }
            200..300 => self.accepted(response, now),
            401 => self.challenged("WWW-Authenticate", response, ids, now),
            407 => self.challenged("Proxy-Authenticate", response, ids, now),
            412 => {
                self.sending = None;
                self.call_id = ids.token();
                (self.failures, self.not_before) = (0, now);
                Answered::Gone
            }
            423 => self.too_brief(response, ids, now),
            _ => {
                let text = format!("{} {}", response.status, response.reason);
                self.refused(text, now)
            }
        }
    }

    fn accepted(&mut self, response: &Response, now: Moment) -> Answered {
        let Some(etag) = response.headers.only("SIP-ETag").filter(|etag| !etag.is_empty()) else {
            return self.refused("200 without SIP-ETag".into(), now);
        };
        self.sending = None;
        (self.failures, self.not_before) = (0, now);
        Answered::Accepted { etag: etag.to_owned() }
    }

    fn challenged(&mut self, header: &str, response: &Response, ids: &mut Ids, now: Moment) -> Answered {
        let challenges = response.headers.all(header).filter_map(|value| Challenge::parse(value).ok());
        // The strongest that both know (RFC 8760 section 2.6).
        let challenge = challenges.max_by_key(|challenge| challenge.algorithm);
        let sending = self.sending.as_mut().expect("the answer belongs to it");
        sending.challenged += 1;
        let first = sending.challenged == 1;
        match challenge {
            Some(challenge) if self.credentials.is_some() && (first || (challenge.stale && sending.challenged < 4)) => {
                self.challenge = Some((challenge, 0));
                Answered::Again(self.resend(ids, now))
            }
            Some(_) if self.credentials.is_some() => {
                self.challenge = None;
                self.refused("the Asterisk does not take the credentials".into(), now)
            }
            _ => {
                self.refused("the Asterisk asks for credentials that are not configured, or not known here".into(), now)
            }
        }
    }

    /// RFC 3903 section 4.5 and RFC 3261 section 10.2.8: the next one asks for what is wanted.
    fn too_brief(&mut self, response: &Response, ids: &mut Ids, now: Moment) -> Answered {
        match response.headers.get("Min-Expires").and_then(header::seconds) {
            Some(least) if least > self.expires_s => {
                self.expires_s = least;
                Answered::Again(self.resend(ids, now))
            }
            _ => self.refused("423 without a Min-Expires to follow".into(), now),
        }
    }

    /// The same body as a new request.
    fn resend(&mut self, ids: &mut Ids, now: Moment) -> Vec<u8> {
        let Sending { etag, body, challenged, .. } = self.sending.take().expect("something is under way");
        self.cseq += 1;
        let (client, bytes) = self.begin(etag.as_deref(), &body, ids, now);
        self.sending = Some(Sending { client, etag, body, challenged });
        bytes
    }

    /// What is under way has failed: the next request waits, longer with each failure.
    pub fn failed(&mut self, now: Moment) {
        self.abandon();
        self.failures = self.failures.saturating_add(1);
        let pause = self.times.retry_min_ms.saturating_mul(1 << (self.failures - 1).min(16));
        self.not_before = now + pause.min(self.times.retry_max_ms);
    }

    fn refused(&mut self, text: String, now: Moment) -> Answered {
        self.failed(now);
        Answered::Failed(text)
    }

    /// When the request under way wants to be looked at.
    pub fn due(&self) -> Option<Moment> {
        self.sending.as_ref().filter(|_| self.kept.is_none()).map(|sending| sending.client.due())
    }

    /// Looks at the request under way: its repetition, or why it failed.
    pub fn on_timer(&mut self, now: Moment) -> Option<Result<Vec<u8>, String>> {
        if self.kept.is_some() {
            return None;
        }
        let sending = self.sending.as_mut()?;
        match sending.client.step(now) {
            ClientStep::Wait => None,
            ClientStep::Repeat => Some(Ok(sending.client.bytes().to_vec())),
            ClientStep::TimedOut => {
                self.failed(now);
                Some(Err("no answer for 32 s".into()))
            }
        }
    }
}
