//! What a PUBLISH from an Asterisk means: the event state compositor of RFC 3903 section 6.
//!
//! The statuses are chosen by what a patched Asterisk makes of them (measured): after 400, 403, 404, 489,
//! 500 or 503 it drops the update, after 423 without `Min-Expires` or an unexpected 401 it never publishes
//! again, after 412 it sends the same body under a new Call-ID. So a good update gets 200, or 412 first.

use xxhash_rust::xxh3::xxh3_64;

use super::body::{self, Body};
use super::event::{Moment, RefusedReason, Remote};
use super::header::{self, UriError};
use super::message::{Request, Response};
use super::rows::Inbound;
use super::settings::{AttachmentSettings, Times};
use crate::core::mutant;

/// What is answered besides PUBLISH.
pub const ALLOW: &str = "PUBLISH, OPTIONS";

/// A PUBLISH of the right shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub call_id: String,
    pub cseq: u32,
    pub if_match: Option<String>,
    pub expires_s: u32,
    pub body: Option<Body>,
    /// Of the body's bytes; 0 without a body.
    pub body_hash: u64,
}

/// An answer that refuses, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub response: Response,
    pub reason: RefusedReason,
    pub text: String,
}

impl Refusal {
    pub fn new(status: u16, reason: RefusedReason, text: impl Into<String>) -> Self {
        Self { response: Response::new(status), reason, text: text.into() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.response.headers.push(name, value);
        self
    }
}

/// The user part that the Request-URI names.
pub fn called_user(uri: &str) -> Result<String, Refusal> {
    match header::uri(uri) {
        Ok(uri) => uri.user.ok_or_else(|| Refusal::new(404, RefusedReason::Unknown, "the Request-URI names no user")),
        Err(UriError::Scheme) => Err(Refusal::new(416, RefusedReason::Unknown, "the Request-URI is no SIP URI")),
        Err(UriError::Malformed) => Err(Refusal::new(400, RefusedReason::Malformed, "the Request-URI is malformed")),
    }
}

/// Headers that must be there once and well-formed in any request (RFC 3261 section 8.1.1): without them
/// it cannot even be answered. Gives the number of the CSeq.
pub fn answerable(request: &Request) -> Option<u32> {
    let headers = &request.headers;
    let (cseq, method) = header::cseq(headers.only("CSeq")?)?;
    let whole = headers.get("Via").and_then(header::via).is_some()
        && headers.only("From").and_then(header::name_addr).is_some()
        && headers.only("To").and_then(header::name_addr).is_some()
        && headers.only("Call-ID").is_some_and(|id| !id.is_empty());
    (whole && method == request.method).then_some(cseq)
}

/// Reads a PUBLISH; everything that does not depend on what was before.
pub fn read(request: &Request, settings: &AttachmentSettings) -> Result<Publish, Refusal> {
    let headers = &request.headers;
    let malformed = |what: &str| Refusal::new(400, RefusedReason::Malformed, what);
    let cseq = answerable(request).ok_or_else(|| malformed("a header is missing or malformed"))?;
    let call_id = headers.get("Call-ID").unwrap_or_default().to_owned();
    if let Some(wanted) = headers.get("Require") {
        let refusal = Refusal::new(420, RefusedReason::Extension, format!("it requires {wanted}"));
        return Err(refusal.with("Unsupported", wanted));
    }
    let event = headers.only("Event").map(header::bare);
    if event.as_deref() != Some(body::EVENT) {
        let event = event.unwrap_or_default();
        return Err(
            Refusal::new(489, RefusedReason::Event, format!("event '{event}'")).with("Allow-Events", body::EVENT)
        );
    }
    let times = &settings.times;
    let expires_s = expires(headers.get("Expires"), times).ok_or_else(|| malformed("Expires is malformed"))?;
    if expires_s > 0 && expires_s < times.expires_min_s {
        return Err(Refusal::new(423, RefusedReason::TooBrief, format!("Expires {expires_s} is too brief"))
            .with("Min-Expires", &times.expires_min_s.to_string()));
    }
    let if_match = match headers.all("SIP-If-Match").count() {
        0 => None,
        1 => headers.get("SIP-If-Match").map(str::to_owned),
        _ => return Err(malformed("SIP-If-Match stands there twice")),
    };
    let body = if request.body.is_empty() { None } else { Some(read_body(request, settings)?) };
    let body_hash = body.as_ref().map_or(0, |_| xxh3_64(&request.body).max(1));
    Ok(Publish { call_id, cseq, if_match, expires_s: expires_s.min(times.expires_max_s), body, body_hash })
}

/// Without the header it is the default of this event, an hour (RFC 3903 section 6, step 4).
fn expires(value: Option<&str>, times: &Times) -> Option<u32> {
    value.map_or(Some(times.expires_s), header::seconds)
}

fn read_body(request: &Request, settings: &AttachmentSettings) -> Result<Body, Refusal> {
    let content_type = request.headers.only("Content-Type").map(header::bare);
    let encoded =
        request.headers.get("Content-Encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"));
    if content_type.as_deref() != Some(body::CONTENT_TYPE) || encoded {
        let found = content_type.unwrap_or_default();
        return Err(Refusal::new(415, RefusedReason::ContentType, format!("content type '{found}'"))
            .with("Accept", body::CONTENT_TYPE));
    }
    if request.body.len() > BODY_MAX_BYTES {
        return Err(Refusal::new(413, RefusedReason::TooLarge, format!("a body of {} bytes", request.body.len())));
    }
    let body =
        Body::parse(&request.body).map_err(|error| Refusal::new(400, RefusedReason::Body, format!("body: {error}")))?;
    if body.eid != settings.eid {
        return Err(Refusal::new(
            403,
            RefusedReason::Eid,
            format!("the body is of {}, not {}", body.eid, settings.eid),
        ));
    }
    Ok(body)
}

/// The longest body that is read, in bytes. A patched Asterisk sends whole messages of up to 4,000.
pub const BODY_MAX_BYTES: usize = 32_768;

/// How a PUBLISH stands to what was before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The very request that was carried out last: the answer was lost.
    Answered,
    /// It goes on from the ETag that was given out last.
    Continues,
    /// It begins a publication.
    Begins {
        /// Under a new Call-ID that we did not cause: the Asterisk was restarted.
        restarted: bool,
        /// The body that was carried out last, whose answer its sender never got.
        repeated: bool,
    },
    /// 412. With `told`, its next Call-ID will be a new one because of that.
    Stale { told: bool },
    /// Neither an ETag nor a body (RFC 3903 section 6, step 5).
    Empty,
}

/// After its end a publication is good for a while yet: the patch refreshes at the very second, and its
/// request may have to be repeated.
const GRACE_MS: u64 = super::transaction::GIVE_UP_MS;

pub fn standing(last: &Inbound, publish: &Publish, now: Moment) -> Standing {
    let same_call = publish.call_id == last.call_id;
    if same_call && publish.cseq == last.cseq && publish.body_hash == last.body_hash {
        return if mutant!(RetransmissionWritten) { Standing::Continues } else { Standing::Answered };
    }
    if same_call && publish.cseq <= last.cseq {
        return Standing::Stale { told: false };
    }
    if let Some(etag) = &publish.if_match {
        let current = last.etag.as_ref() == Some(etag) && now <= last.expires_at.saturating_add(GRACE_MS);
        return if current { Standing::Continues } else { Standing::Stale { told: true } };
    }
    // A patched Asterisk sends the same body again after a 412, under a new Call-ID.
    let follows_412 = last.told_stale == Some(publish.body_hash);
    if publish.body.is_none() && !follows_412 {
        return if publish.expires_s == 0 { Standing::Stale { told: true } } else { Standing::Empty };
    }
    let first = last.call_id.is_empty();
    let restarted = !first && !same_call && !follows_412;
    let resent = publish.body_hash == last.body_hash && publish.body_hash != 0 && (same_call || follows_412);
    Standing::Begins {
        restarted: restarted && !mutant!(RestartIgnored),
        repeated: resent && !mutant!(SameBodyWrittenAgain),
    }
}

/// An answer to a request (RFC 3261 section 8.2.6), to where it came from (RFC 3581).
pub fn answer(request: &Request, mut response: Response, from: &Remote, tag: &str, server: &str) -> Response {
    let mut headers = super::message::Headers::default();
    for (at, value) in request.headers.all("Via").enumerate() {
        headers.push("Via", if at == 0 { received(value, from) } else { value.to_owned() });
    }
    for name in ["Call-ID", "From"] {
        headers.push(name, request.headers.get(name).unwrap_or_default());
    }
    let to = request.headers.get("To").unwrap_or_default();
    let tagged = header::name_addr(to).is_some_and(|to| to.tag.is_some());
    headers.push("To", if tagged { to.to_owned() } else { format!("{to};tag={tag}") });
    headers.push("CSeq", request.headers.get("CSeq").unwrap_or_default());
    for (name, value) in response.headers.iter() {
        headers.push(name, value);
    }
    headers.push("Server", server);
    response.headers = headers;
    response
}

/// A `Via` line with where the request really came from in its first value.
fn received(value: &str, from: &Remote) -> String {
    let (first, rest) = match header::split(value, ',').next() {
        Some(first) => (first, &value[first.len()..]),
        None => (value, ""),
    };
    let mut line = String::new();
    for (at, piece) in header::split(first, ';').enumerate() {
        let (name, _) = header::parameter_of(piece);
        if at > 0 && name.eq_ignore_ascii_case("received") {
            continue;
        }
        if at > 0 {
            line.push(';');
        }
        if at > 0 && name.eq_ignore_ascii_case("rport") {
            line += &format!("rport={};received={}", from.address.port(), from.address.ip());
        } else {
            line += piece.trim();
        }
    }
    if !line.contains(";received=") {
        line += &format!(";received={}", from.address.ip());
    }
    line + rest
}
